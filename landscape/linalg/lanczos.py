"""Extreme eigenpairs of a symmetric operator by Lanczos, stopped by residual bounds alone.

Knows matrices, not networks: imports only torch, numpy, landscape.errors, landscape.threads and
landscape.linalg.
Shapes: n = dimension of the operator, k = wanted eigenpairs, m = dimension of the Krylov space.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float

from landscape.linalg.krylov import KrylovBasis
from landscape.linalg.missed import NEAR, Chain, MissedLook, look
from landscape.linalg.operator import SymmetricOperator, check_num_pairs, seeded, together
from landscape.linalg.results import EigenPairs, Quadrature, RitzValues
from landscape.linalg.support import SupportedPart
from landscape.linalg.value_bounds import value_bounds
from landscape.threads import single_blas_thread

Which = Literal["LM", "LA", "SA"]

# Up to this size a product is cheap, and the check for missed eigenvalues is run to its full
# length; above it, the first chain shows where an eigenvalue may have been missed, and a second
# start may not cost more than a tenth or so of a run for five eigenvalues (20 to 30 products).
_FULL_CHECK_SIZE = 1000
SPOT_CHECKS = 4
# Vectors beside the k wanted ones that a restarted run needs: those that wait in two chains, and
# some to work with.
MIN_EXTRA_VECTORS = 6
# Least noise in a start whose chain shows where an eigenvalue was missed; with less noise, rounding
# hides too much.
MIN_NOISE = 1.0
# Limit for a k-th eigenvalue that is hardly larger than the next: it would need any number of
# checks.
_MAX_CHECKS = 100


@dataclass(frozen=True)
class _Ritz:
    """All Ritz pairs of a basis, the most wanted first, with the norms of their residuals."""

    values: Float[np.ndarray, " m"]
    coordinates: Float[np.ndarray, "m m"]
    norms: Float[np.ndarray, " m"]

    @property
    def residuals(self) -> Float[np.ndarray, " m"]:
        """Divide the norms by the sizes of the values.

        An exact zero with norm 0 has residual 0.
        """
        size = np.abs(self.values)
        return np.divide(
            self.norms, size, out=np.where(self.norms > 0, np.inf, 0.0), where=size > 0
        )


@dataclass(frozen=True)
class _Wanted:
    """The request: k pairs at one end, and their relative residual tol."""

    k: int
    which: Which
    tol: float

    def sizes(self, values: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        """Compute the sort key for `which`: larger means wanted first."""
        return {"LM": np.abs(values), "LA": values, "SA": -values}[self.which]

    def ritz(self, basis: KrylovBasis) -> _Ritz:
        H, coupling = basis.projected()
        with single_blas_thread():
            # Ritz pairs: eigenpairs of A restricted to the done rows, H = V_done A V_done^T. Their
            # residuals lie along the pending rows: ||A x - theta x|| = ||B y||.
            values, coordinates = np.linalg.eigh(H)
            order = np.argsort(-self.sizes(values), kind="stable")
            coordinates = coordinates[:, order]
            norms = np.linalg.norm(coupling @ coordinates, axis=0) + basis.error
        return _Ritz(values[order], coordinates, norms)

    def converged(self, ritz: _Ritz) -> Bool[np.ndarray, " k"]:
        return ritz.residuals[: self.k] <= self.tol

    def satisfied(self, ritz: _Ritz, error: float) -> bool:
        """Tell whether every wanted pair is done, and all are settled.

        A pair is done if it has converged, or little but the products' error is left of its
        residual.
        """
        if len(ritz.values) < self.k:
            return False
        return bool(
            (self.converged(ritz) | (ritz.norms[: self.k] <= 2 * error)).all()
        ) and self.settled(ritz, error)

    def settled(self, ritz: _Ritz, error: float) -> bool:
        """Tell whether no other Ritz value can pass the last wanted one.

        What the tolerance leaves open does not count.
        """
        if len(ritz.values) < self.k:
            return False
        sizes = self.sizes(ritz.values)
        # An eigenvalue lies within its residual norm of each Ritz value, so it may reach this far.
        open_to = sizes[self.k :] + ritz.norms[self.k :]
        return bool((open_to <= sizes[self.k - 1] + self.slack(ritz, error)).all())

    def slack(self, ritz: _Ritz, error: float) -> float:
        """Compute how much the place of the last wanted value is open.

        A value this far beyond it may still change places with it, by tolerance or rounding.
        """
        return float(max(self.tol * abs(ritz.values[self.k - 1]), 2 * error))

    def moved(self, old: _Ritz, new: _Ritz, error: float) -> bool:
        """Tell whether a wanted value changed more than a converged pair can.

        That is about tol^2 / relative gap.
        """
        # Ritz values of a symmetric matrix are right to the square of their residual, over the gap.
        before, after = old.values[: self.k], new.values[: self.k]
        return bool(
            (np.abs(after - before) > np.maximum(0.1 * self.tol * np.abs(before), 2 * error)).any()
        )


def num_spot_checks(A: SymmetricOperator) -> int | None:
    """Return the `num_checks` that searches for copies of multiple eigenvalues.

    None where the default searches for them already, and to the end.
    """
    return SPOT_CHECKS if A.n - A.num_unused > _FULL_CHECK_SIZE else None


def num_vectors_in(memory: int, A: SymmetricOperator) -> int:
    """Compute how many Krylov vectors of this operator `memory` bytes hold.

    The result is a `max_basis`. For a cut operator, the bytes are those of every process.
    """
    support = A.support_runs
    held = (
        A.n - A.num_unused if A.space.is_whole else A.num_local if support is None else len(support)
    )
    return int(-A.space.largest(-float(memory // max(1, held * A.dtype.itemsize))))


@together
def eigsh(
    A: SymmetricOperator,
    k: int,
    which: Which = "LM",
    *,
    tol: float = 1e-3,
    max_matvecs: int | None = None,
    seed: int = 0,
    generator: torch.Generator | None = None,
    num_checks: int | None = None,
    max_basis: int | None = None,
    start: Float[torch.Tensor, "n j"] | None = None,
    noise: float = 0.1,
    return_vectors: bool = True,
) -> EigenPairs:
    """Compute k extreme eigenpairs of A to a residual bound of `tol`.

    It stops as soon as every one of them meets the bound.

    Where the operator knows its support, the vectors are kept to that; the result is that of the
    whole operator.

    Args:
        A: The operator.
        k: Number of pairs, 1 <= k <= n.
        which: "LM" largest in magnitude, "LA" largest, "SA" smallest (most negative).
        tol: Wanted ||A v - value v|| / |value|. The value itself is then right to about
            tol^2 / relative gap.
        max_matvecs: Limit on products. Default: max(300, 20 k), at most n where all vectors are
            kept.
        seed: Seed of the random starting vectors; ignored where `generator` is given.
        generator: CPU generator of the random starting vectors.
        num_checks: Products spent, after convergence, on a second random start orthogonal to the
            whole basis, which shows copies of multiple eigenvalues that one Lanczos chain cannot
            see, and values that it had not seen yet when k others had converged. Default: as many
            as find a missed eigenvalue with 99 % probability where n <= 1000. For larger operators
            none: the first chain goes on until a further eigenvalue that was missed with more than
            1 % probability could only lie within 5 % of a computed value, as `missed` states. Where
            it cannot get there, because it ended, was restarted or did not start at random, or
            because of rounding, at most 4 of the checks for n <= 1000 are made instead, a spot
            check. `copies_checked` says whether copies were searched for to the end.
        max_basis: Vectors of size n kept in memory at most, from k + 6 on; when that many are
            there, half of the unwanted ones are dropped (thick restart), at the cost of more
            products. By default all are kept: a basis grows by one a product.
        start: Vectors near the wanted eigenvectors, such as those of another batch or checkpoint
            (recycling): the run starts from their sum and a random vector. Certificates are the
            same; but the quadrature, which is unbiased for a random start alone, is None.
        noise: Length of that random vector where the sum has length 1. From 1 on, for n > 1000, the
            chain itself tells where an eigenvalue may have been missed, as that of a random start
            does, if `start` was chosen before `seed`; below, it gets the spot check.
        return_vectors: Whether to form the (n, k) Ritz vectors.

    Returns:
        The pairs, most wanted first, with `converged` true exactly where the bound met `tol`; the
        quadrature of the first chain; the Ritz values of both ends. When `max_matvecs` is spent, or
        rounding allows no smaller residual, the best pairs so far are returned with `converged`
        false where it is, and `settled` false where another value may belong among them; `missed`
        says where one may be of which nothing was seen.

    Raises:
        ValueError: If A is no operator, k, which, tol, max_matvecs, num_checks, max_basis or noise
            is out of range, or `start` has another shape, is not finite, or is zero.
        NumericalError: If a product is not finite.

    Source: Parlett, The Symmetric Eigenvalue Problem (1998), chapter 13; the number of checks from
    the growth of Chebyshev polynomials, Saad, Numerical Methods for Large Eigenvalue Problems
    (2011), section 6.6.

    Examples:
        >>> import torch, landscape
        >>> from landscape.linalg import DenseOperator
        >>> values = torch.tensor([5.0, 3.0, 1.0, -1.0, -2.0], dtype=torch.float64)
        >>> A = DenseOperator(torch.diag(values))
        >>> landscape.eigsh(A, k=2, which="LA").values
        tensor([5.0000, 3.0000], dtype=torch.float64)
        >>> landscape.eigsh(A, k=1, which="SA").values
        tensor([-2.0000], dtype=torch.float64)
    """
    limit = _check_arguments(A, k, which, tol, max_matvecs, num_checks, max_basis)
    if not (math.isfinite(noise) and noise > 0):
        raise ValueError(
            f"noise must be finite and > 0, got {noise}: without a random part a start can hide "
            "eigenvalues."
        )
    towards = None if start is None else _direction(A, start)
    if A.support_runs is not None and A.num_unused:
        part = SupportedPart(A)
        if part.n == 0:
            return part.whole_pairs(part.no_pairs(return_vectors=return_vectors), k, which)
        # Where the support is smaller than k, zeros fill the rest.
        inside = eigsh(
            part,
            min(k, part.n),
            which,
            tol=tol,
            max_matvecs=max_matvecs,
            seed=seed,
            generator=generator,
            num_checks=num_checks,
            max_basis=max_basis,
            start=_within(part, towards),
            noise=noise,
            return_vectors=return_vectors,
        )
        return part.whole_pairs(inside, k, which)
    basis = KrylovBasis(
        A, generator=generator if generator is not None else seeded(seed), max_rows=max_basis
    )
    if towards is not None:
        basis.start_chain(towards, noise=noise)
    wanted = _Wanted(k, which, tol)
    looks = A.n > _FULL_CHECK_SIZE and (towards is None or noise >= MIN_NOISE)
    thorough = False
    # Converge; search for missed eigenvalues; if the search moved a wanted value, converge again.
    while True:
        ritz = _iterate(basis, wanted, limit)
        if looks and num_checks != 0 and len(basis.chain_starts) == 1:
            ritz, excluded = _exclude_missed(basis, ritz, wanted, limit)
            # The chain itself has excluded them, so no second start is needed.
            if excluded and num_checks is None:
                break
        if (
            basis.is_complete
            or basis.num_matvecs >= limit
            or not wanted.satisfied(ritz, basis.error)
        ):
            break
        if max_basis is not None and max_basis < k + len(basis.pending) + 3:
            # No room for one more chain beside the wanted pairs.
            break
        ritz, moved, thorough = _look_for_missed(basis, ritz, wanted, limit, num_checks)
        if not moved:
            break
    pairs = _pairs(
        basis,
        ritz,
        wanted,
        return_vectors=return_vectors,
        copies_checked=thorough or basis.is_complete,
    )
    if looks and pairs.settled:
        pairs = replace(pairs, missed=_look(basis, ritz, wanted)[0])
    return pairs if towards is None else replace(pairs, quadrature=None)


def _direction(
    A: SymmetricOperator, start: Float[torch.Tensor, "n j"]
) -> Float[torch.Tensor, " n"]:
    """Add up the starting vectors, each scaled to length 1.

    Raises:
        ValueError: If it is no direction of the operator's space.
    """
    if start.ndim != 2 or start.shape[0] != A.num_local or start.shape[1] == 0:
        raise ValueError(
            f"start must have the shape (n, j) = ({A.num_local}, j), got {tuple(start.shape)}."
        )
    columns = start.to(A.device, A.dtype)
    lengths = A.space.norms(columns)
    if not (torch.isfinite(lengths).all() and (lengths > 0).all()):
        raise ValueError(
            "start has a column that is zero or not finite, which is no direction to start from."
        )
    return columns @ (1 / lengths).to(columns)


def _within(
    part: SupportedPart, towards: Float[torch.Tensor, " n"] | None
) -> Float[torch.Tensor, "s 1"] | None:
    """Restrict the starting direction to the part; None if it lies outside."""
    if towards is None:
        return None
    inside = part.within(towards)[:, None]
    return inside if part.space.any(bool(inside.any())) else None


def _iterate(basis: KrylovBasis, wanted: _Wanted, limit: int) -> _Ritz:
    """Expand the basis until all wanted pairs have converged.

    Stops earlier where they cannot get better, or where the limit is reached.
    """
    ritz = wanted.ritz(basis)
    while basis.num_matvecs < limit and not wanted.satisfied(ritz, basis.error):
        if not _expand(basis, ritz, wanted):
            break
        ritz = wanted.ritz(basis)
    return ritz


def _expand(basis: KrylovBasis, ritz: _Ritz, wanted: _Wanted) -> bool:
    """Expand the basis by one product, restarting first if it is full.

    Returns False if there was nothing left to multiply.
    """
    if basis.is_full:
        assert basis.max_rows is not None
        # As a rule, half of the unwanted pairs are kept: those dropped have to be computed again,
        # those kept take space.
        kept = min(
            wanted.k + (basis.max_rows - wanted.k) // 2,
            basis.max_rows - max(len(basis.pending), 1) - 1,
        )
        basis.restart(ritz.values[:kept], ritz.coordinates[:, :kept])
    return basis.expand()


def _exclude_missed(
    basis: KrylovBasis, ritz: _Ritz, wanted: _Wanted, limit: int
) -> tuple[_Ritz, bool]:
    """Expand the first chain until it excludes further, distant eigenvalues.

    Only eigenvalues near those computed may then have been missed. Returns the Ritz pairs, and
    whether the chain got there.
    """
    most = basis.num_matvecs + _number_of_checks(basis, ritz, wanted)
    while wanted.satisfied(ritz, basis.error):
        made, within_reach = _look(basis, ritz, wanted)
        if made.satisfied:
            return ritz, True
        ended = basis.num_restarts or basis.is_full or not basis.pending
        if ended or not within_reach or basis.num_matvecs >= min(limit, most):
            break
        basis.expand()
        ritz = _iterate(basis, wanted, limit)
    return ritz, False


def _look(basis: KrylovBasis, ritz: _Ritz, wanted: _Wanted) -> tuple[MissedLook, bool]:
    """Evaluate where the first chain may have missed eigenvalues.

    Returns that, and whether a longer chain could exclude them.
    """
    diagonal, couplings = basis.recurrence()
    eps = torch.finfo(basis.A.dtype).eps
    chain = Chain(diagonal, couplings, basis.A.n, basis.error, eps, basis.random_share)
    others = ritz.values[wanted.k :][ritz.residuals[wanted.k :] <= wanted.tol]
    with single_blas_thread():
        return look(
            chain,
            wanted.which,
            ritz.values[: wanted.k],
            others,
            slack=wanted.slack(ritz, basis.error),
            near=max(NEAR, wanted.tol),
        )


def _look_for_missed(
    basis: KrylovBasis, ritz: _Ritz, wanted: _Wanted, limit: int, num_checks: int | None
) -> tuple[_Ritz, bool, bool]:
    """Expand from a random start orthogonal to the basis.

    It stops once enough products in a row have moved no wanted value.

    The old chains are expanded in turn with the new one: the new one is orthogonal to them, so it
    cannot see what they were about to converge to.

    Returns:
        The Ritz pairs of the larger basis; whether a wanted value moved: then another search is
        needed, since each random start shows only one more copy of a multiple eigenvalue; and
        whether the search was long enough to show a missed value.
    """
    any_moved, quiet = False, 0
    if basis.is_full:
        basis.restart(ritz.values[: wanted.k], ritz.coordinates[:, : wanted.k])
        ritz = wanted.ritz(basis)
    basis.start_chain()
    while basis.num_matvecs < limit:
        thorough = _number_of_checks(basis, ritz, wanted)
        spot = thorough if basis.A.n <= _FULL_CHECK_SIZE else min(thorough, SPOT_CHECKS)
        enough = quiet >= (spot if num_checks is None else num_checks)
        # No Ritz value of the new chain may still move beyond the wanted values either.
        settled = num_checks == 0 or wanted.satisfied(ritz, basis.error)
        if (enough and settled) or not _expand(basis, ritz, wanted):
            break
        old, ritz = ritz, wanted.ritz(basis)
        moved = wanted.moved(old, ritz, basis.error)
        any_moved, quiet = any_moved or moved, 0 if moved else quiet + 1
    return ritz, any_moved, quiet >= _number_of_checks(basis, ritz, wanted)


def _number_of_checks(basis: KrylovBasis, ritz: _Ritz, wanted: _Wanted) -> int:
    """Compute how many products show a missed value with 99 % probability.

    A random start then shows any further value beyond the k-th one.

    The start has a component of at least 1 / (100 sqrt(n)) along that eigenvector with 99 %
    probability; a Chebyshev polynomial on the interval of the unwanted Ritz values amplifies it by
    cosh((p - 1) acosh(ratio)) in p products. It is seen once the other components weigh less than
    the square root of tol. Every chain gets as many products.
    """
    if len(ritz.values) == wanted.k:
        return min(_MAX_CHECKS, basis.A.n)
    rest = ritz.values[wanted.k :]
    edge = ritz.values[wanted.k - 1]
    # T_{p-1}((x - centre) / radius) stays within [-1, 1] on the unwanted values and grows like
    # cosh((p - 1) acosh |.|) outside. `ratio` places the k-th value, beyond which one may be
    # missed.
    if wanted.which == "LM":
        centre, radius = 0.0, np.abs(rest).max()
    else:
        centre, radius = (rest.max() + rest.min()) / 2, (rest.max() - rest.min()) / 2
    ratio = abs(edge - centre) / radius if radius > 0 else math.inf
    needed = _MAX_CHECKS
    if ratio > 1:
        # From 1 / (100 sqrt(n)) up to 1 / sqrt(tol):
        # solve cosh((p - 1) acosh(ratio)) >= amplification.
        amplification = 100 * math.sqrt(basis.A.n / wanted.tol)
        needed = min(
            needed,
            len(basis.pending)
            * (1 + math.ceil(math.acosh(amplification) / math.acosh(min(ratio, 1e6)))),
        )
    return needed


def _pairs(
    basis: KrylovBasis, ritz: _Ritz, wanted: _Wanted, *, return_vectors: bool, copies_checked: bool
) -> EigenPairs:
    k = min(wanted.k, len(ritz.values))
    bounds = value_bounds(
        ritz.values[:k], ritz.norms[:k], ritz.values[k:], ritz.norms[k:], error=basis.error
    )
    with np.errstate(invalid="ignore"):
        # A residual that was divided by the value and multiplied again may differ in the last
        # digit.
        bounds = np.fmin(bounds, ritz.residuals[:k] * np.abs(ritz.values[:k]))
    ascending = np.argsort(ritz.values, kind="stable")
    nodes, weights = basis.quadrature()
    return EigenPairs(
        values=torch.from_numpy(ritz.values[:k].copy()),
        vectors=basis.combine(ritz.coordinates[:, :k]) if return_vectors else None,
        residuals=torch.from_numpy(ritz.residuals[:k].copy()),
        converged=torch.from_numpy(wanted.converged(ritz)),
        num_matvecs=basis.num_matvecs,
        quadrature=Quadrature(nodes=torch.from_numpy(nodes), weights=torch.from_numpy(weights)),
        ritz=RitzValues(
            values=torch.from_numpy(ritz.values[ascending]),
            norms=torch.from_numpy(ritz.norms[ascending]),
            rounding=basis.error,
            orthogonality_defect=basis.orthogonality_defect(),
        ),
        copies_checked=copies_checked,
        settled=wanted.settled(ritz, basis.error),
        checked=basis.A.checked,
        value_bounds=torch.from_numpy(bounds),
    )


def _check_arguments(
    A: SymmetricOperator,
    k: int,
    which: str,
    tol: float,
    max_matvecs: int | None,
    num_checks: int | None,
    max_basis: int | None,
) -> int:
    """Check that every argument is in range; return the limit on products."""
    check_num_pairs(A, k)
    if which not in ("LM", "LA", "SA"):
        raise ValueError(f"which must be 'LM', 'LA' or 'SA', got {which!r}.")
    if not (math.isfinite(tol) and tol > 0):
        raise ValueError(f"tol must be finite and > 0, got {tol}.")
    if max_matvecs is not None and max_matvecs < k:
        raise ValueError(
            f"max_matvecs must be at least k = {k}, got {max_matvecs}: k products give at most k "
            "pairs."
        )
    if num_checks is not None and num_checks < 0:
        raise ValueError(f"num_checks must be >= 0, got {num_checks}.")
    if max_basis is not None and max_basis < k + MIN_EXTRA_VECTORS:
        raise ValueError(
            f"max_basis must be at least k + {MIN_EXTRA_VECTORS} = {k + MIN_EXTRA_VECTORS}, got "
            f"{max_basis}: {k} pairs and the vectors that improve them must fit. Allow more "
            "memory, ask for fewer pairs, or use float32."
        )
    limit = max(300, 20 * k) if max_matvecs is None else max_matvecs
    # Without restarts n products span the whole space.
    return limit if max_basis is not None and max_basis < A.n else min(A.n, limit)
