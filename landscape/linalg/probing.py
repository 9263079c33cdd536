"""Random probes: spectral density and trace from products alone.

Both first spend products on the outlying eigenvalues, treat these exactly, and draw their probes
from the orthogonal complement: a few large eigenvalues would otherwise cause most of the error.
Knows matrices, not networks: imports only torch, numpy, landscape.threads and landscape.linalg.
Shapes: n = dimension of the operator, k = eigenpairs that stand out, m = products of a probe.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from landscape.errors import NumericalError
from landscape.linalg.estimate import Estimate, student_widening
from landscape.linalg.krylov import KrylovBasis
from landscape.linalg.operator import (
    SymmetricOperator,
    check_is_operator,
    refuse_cut,
    seeded,
    together,
)
from landscape.linalg.probed import MIN_NODES
from landscape.linalg.stochastic import SpectralDensity, pad
from landscape.linalg.support import SupportedPart
from landscape.linalg.vectors import all_finite
from landscape.threads import single_blas_thread

# Relative residual at which an eigenpair counts as exact: its value is then right to about 1e-6,
# relative to the gap.
_EXACT = 1e-3
# Eigenvalues as near as this, relatively, may be copies of one.
_COPY = 1e-2
# Columns of the identity that are multiplied at once.
_COLUMNS = 64


@dataclass(frozen=True)
class _Cost:
    """Cost and errors of a Krylov basis, kept after the basis is freed."""

    num_matvecs: int
    rounding: float
    defect: float

    @classmethod
    def of(cls, basis: KrylovBasis) -> "_Cost":
        return cls(
            basis.num_matvecs,
            basis.error,
            basis.orthogonality_defect() if basis.num_matvecs else 0.0,
        )


@dataclass(frozen=True)
class _Rule:
    """The quadrature of one probe.

    `remainder` is the entry that would continue its tridiagonal matrix (NaN if it is not known).
    """

    nodes: Float[np.ndarray, " m"]
    weights: Float[np.ndarray, " m"]
    remainder: float


@dataclass(frozen=True)
class _Exact:
    """Outlying eigenpairs with their residual norms.

    `rest` is the quadrature of the other eigenvalues by the vector that found these.
    """

    values: Float[np.ndarray, " k"]
    vectors: Float[Tensor, "n k"]
    norms: Float[np.ndarray, " k"]
    rest: _Rule | None
    cost: _Cost

    def have_copies(self, rules: list[_Rule]) -> bool:
        """Tell whether a probe met copies of these eigenvalues.

        The probes are orthogonal to these eigenvectors, so what cannot be told from one of their
        eigenvalues is a copy.
        """
        met = np.concatenate([rule.nodes for rule in rules])
        return bool((np.abs(met[:, None] - self.values) <= _COPY * np.abs(self.values)).any())


@together
def density(
    A: SymmetricOperator,
    *,
    num_probes: int = 2,
    num_matvecs: int = 64,
    num_deflation: int | None = None,
    seed: int = 0,
    generator: torch.Generator | None = None,
) -> SpectralDensity:
    """Estimate the distribution of all eigenvalues of A.

    By stochastic Lanczos quadrature after deflation.

    Costs num_deflation + num_probes * num_matvecs products, fewer where a Krylov space is
    exhausted. Memory: max(num_deflation, num_matvecs + outlying eigenvectors) vectors.

    Args:
        A: The operator. Where it knows its support, the zeros outside are counted exactly and cost
            nothing.
        num_probes: Random probes; standard errors fall with its root.
        num_matvecs: Products per probe: the number of nodes, hence the resolution in eigenvalue. At
            least 4, or the dimension of the support where that is smaller: with fewer nodes the
            error of the estimate is unknown.
        num_deflation: Products spent first on outlying eigenvalues; default: `num_matvecs`. The
            starting vector of that run serves as one more probe of the others, unless there are
            copies or fewer than 4 products. 0 is the plain method.
        seed: Seed of all random vectors; ignored where `generator` is given.
        generator: CPU generator of all random vectors.

    Raises:
        ValueError: If A is no operator, or a number is out of range.
        NumericalError: If a product is not finite.

    Source: Bhattacharjee, Jayaram, C. Musco, C. Musco & Ray, Improved spectral density estimation
    via explicit and implicit deflation (2025), arXiv 2410.21690.

    Examples:
        >>> import torch, landscape
        >>> from landscape.linalg import DenseOperator
        >>> values = torch.tensor([5.0, 3.0, 1.0, -1.0, -2.0], dtype=torch.float64)
        >>> A = DenseOperator(torch.diag(values))
        >>> density = landscape.density(A, num_matvecs=5)
        >>> round(density.num_negative().value, 6)
        2.0
    """
    check_is_operator(A)
    num_deflation = num_matvecs if num_deflation is None else num_deflation
    if num_probes < 1 or num_deflation < 0:
        raise ValueError(
            f"num_probes must be at least 1 and num_deflation at least 0, got {num_probes} and "
            f"{num_deflation}."
        )
    generator = generator if generator is not None else seeded(seed)
    part = A if A.support_runs is None else SupportedPart(A)
    fewest = max(1, min(MIN_NODES, part.n))
    if num_matvecs < fewest:
        raise ValueError(
            f"num_matvecs must be at least {fewest}, got {num_matvecs}: so few nodes do not know "
            "the variance of what they estimate, so its error would be false. Spend more products "
            "on fewer probes."
        )
    exact = _standing_out(part, num_deflation, generator)
    if len(exact.values) == part.n:
        # Nothing is left to probe; the rule stands for none of the eigenvalues.
        return _assemble(A, part.n, exact, [_Rule(np.zeros(1), np.ones(1), 0.0)], [exact.cost])
    rules, costs = map(
        list, zip(*(_probe(part, exact.vectors, num_matvecs, generator) for _ in range(num_probes)))
    )
    # The first vector saw each eigenspace as one direction. If there are copies, its quadrature
    # lacks them, and it is no probe of the rest.
    if exact.rest is not None and not exact.have_copies(rules):
        rules.append(exact.rest)
    return _assemble(A, part.n, exact, rules, [exact.cost, *costs])


def _assemble(
    A: SymmetricOperator, supported: int, exact: _Exact, rules: list[_Rule], costs: list[_Cost]
) -> SpectralDensity:
    return SpectralDensity(
        nodes=pad([torch.from_numpy(rule.nodes) for rule in rules]),
        weights=pad([torch.from_numpy(rule.weights) for rule in rules]),
        n=A.n,
        operators=torch.zeros(len(rules), dtype=torch.int64),
        remainders=torch.tensor([rule.remainder for rule in rules], dtype=torch.float64),
        exact=torch.from_numpy(exact.values)[None],
        exact_residuals=torch.from_numpy(exact.norms)[None],
        num_zeros=torch.tensor([A.n - supported]),
        resolution=max(cost.rounding for cost in costs),
        rounding=float(torch.finfo(A.dtype).eps),
        num_matvecs=sum(cost.num_matvecs for cost in costs),
        orthogonality_defect=max(cost.defect for cost in costs),
        checked=A.checked,
    )


def dense_spectrum(A: SymmetricOperator) -> Float[Tensor, " n"]:
    """Compute all eigenvalues of A, ascending, in float64.

    From the matrix that products with unit vectors assemble: for small operators.

    Costs as many products as the support has coordinates, and memory for the square of that.

    Raises:
        ValueError: If A is no operator, or cut over several processes.
        NumericalError: If a product is not finite.
    """
    check_is_operator(A)
    refuse_cut(A, "dense_spectrum")
    part = A if A.support_runs is None else SupportedPart(A)
    identity = torch.eye(part.n, dtype=A.dtype, device=A.device)
    M = torch.cat(
        [(part @ columns).double().cpu() for columns in identity.split(_COLUMNS, dim=1)], dim=1
    )
    _check_finite(part, M, "unit vectors")
    # Products are symmetric to rounding only; the symmetric part is the nearest symmetric matrix.
    inside = torch.linalg.eigvalsh((M + M.T) / 2)
    return torch.cat([inside, torch.zeros(A.n - part.n, dtype=torch.float64)]).sort().values


@together
def trace(
    A: SymmetricOperator,
    *,
    num_matvecs: int = 60,
    seed: int = 0,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Estimate the sum of all eigenvalues of A.

    Half of the products span a Krylov space Q, in which the trace is known; the others are random
    probes v orthogonal to it. v^T A v has the variance

        2 (||B||_F^2 - (trace B)^2 / d) / (d (d + 2)),

    B being A on the complement of Q and d its dimension, and ||A v||^2 estimates ||B||_F^2: the
    error does not rest on the spread of few numbers.

    Args:
        A: The operator.
        num_matvecs: Products to spend, at least 4. From n on, the trace is exact.
        seed: Seed of all random vectors; ignored where `generator` is given.
        generator: CPU generator of all random vectors.

    Raises:
        ValueError: If A is no operator, or num_matvecs is below 4.
        NumericalError: If a product is not finite.

    Source: Meyer, Musco, Musco & Woodruff, Hutch++ (2021), arXiv 2010.09649, with the Krylov space
    in the place of the sketch: Chen & Hallman, Krylov-aware stochastic trace estimation (2023),
    arXiv 2205.01736.

    Examples:
        >>> import torch, landscape
        >>> from landscape.linalg import DenseOperator
        >>> values = torch.tensor([5.0, 3.0, 1.0, -1.0, -2.0], dtype=torch.float64)
        >>> A = DenseOperator(torch.diag(values))
        >>> round(landscape.trace(A, num_matvecs=5).value, 6)
        6.0
    """
    check_is_operator(A)
    if num_matvecs < 4:
        raise ValueError(
            "num_matvecs must be at least 4, two for the part that stands out and two probes, got "
            f"{num_matvecs}."
        )
    generator = generator if generator is not None else seeded(seed)
    part = A if A.support_runs is None else SupportedPart(A)
    basis = KrylovBasis(part, generator=generator)
    target = part.n if num_matvecs >= part.n else num_matvecs // 2
    while basis.num_matvecs < target and basis.expand():
        pass
    # trace A = trace(Q^T A Q) + d E[v^T A v] for a random unit vector v orthogonal to Q.
    H, _ = basis.projected()
    known, eps = float(np.trace(H)), float(torch.finfo(A.dtype).eps)
    with single_blas_thread():
        slack = 4 * eps * float(np.abs(np.linalg.eigvalsh(H)).sum())
    num_probes = num_matvecs - basis.num_matvecs
    free = part.n - basis.num_matvecs
    if not free:
        return Estimate(known, 0.0, None, known - slack, known + slack)
    Q = basis.combine(np.eye(basis.num_matvecs))
    pairs = np.array([_quotients(part, Q, generator) for _ in range(num_probes)])
    quotient, square = pairs.mean(axis=0)
    size = (free + 2) * num_probes / 2
    variance = free**2 * max(square - quotient**2, 0) / max(size - 1, 0.5)
    # A form that a few eigenvalues dominate has as many degrees of freedom as there are probes, and
    # no form has fewer.
    error = math.sqrt(variance) * student_widening(num_probes)
    slack += 4 * eps * free * math.sqrt(square)
    value = known + free * quotient
    return Estimate(float(value), error, None, float(value - slack), float(value + slack))


def _standing_out(A: SymmetricOperator, num_matvecs: int, generator: torch.Generator) -> _Exact:
    """Compute the outlying eigenpairs with a relative residual of `_EXACT`.

    They are those of a Krylov space of `num_matvecs` products.
    """
    basis = KrylovBasis(A, generator=generator)
    while basis.num_matvecs < num_matvecs and basis.expand():
        pass
    H, coupling = basis.projected()
    with single_blas_thread():
        values, coordinates = np.linalg.eigh(H)
        norms = np.linalg.norm(coupling @ coordinates, axis=0) + basis.error
    kept = (norms <= _EXACT * np.abs(values)) | basis.is_complete
    # Squared first components are the quadrature weights of the starting vector (Golub-Welsch).
    seen = coordinates[0] ** 2 if len(values) else np.zeros(0)
    # With a second chain, the coordinates are no longer those of one random vector.
    one_chain = len(basis.chain_starts) == 1 and not kept.all()
    # If it met exact eigenvalues alone, the weight that is left is rounding.
    left = seen[~kept].sum()
    is_probe = one_chain and len(values) >= MIN_NODES and left > torch.finfo(A.dtype).eps
    rest = _Rule(values[~kept], seen[~kept] / left, math.nan) if is_probe else None
    return _Exact(
        values[kept], basis.combine(coordinates[:, kept]), norms[kept], rest, _Cost.of(basis)
    )


def _probe(
    A: SymmetricOperator, exact: Float[Tensor, "n k"], num_matvecs: int, generator: torch.Generator
) -> tuple[_Rule, _Cost]:
    """Compute the quadrature of a random unit vector orthogonal to `exact`.

    Orthogonal to its columns, that is.
    """
    basis = KrylovBasis(A, generator=generator)
    basis.lock(exact)
    basis.start_chain()
    # Without a pending row the space is invariant and the rule exact; expand() would start another
    # chain.
    while basis.num_matvecs < num_matvecs and basis.pending:
        basis.expand()
    H, coupling = basis.projected()
    with single_blas_thread():
        nodes, vectors = np.linalg.eigh(H)
    return _Rule(
        nodes, vectors[0] ** 2, float(coupling[0, -1]) if len(coupling) else 0.0
    ), _Cost.of(basis)


def _quotients(
    A: SymmetricOperator, Q: Float[Tensor, "n k"], generator: torch.Generator
) -> tuple[float, float]:
    """Compute the Rayleigh quotient and a squared length for a random probe.

    These are v^T A v and the squared length of A v without its part in Q, for a random unit vector
    v orthogonal to Q.

    Raises:
        NumericalError: If A v is not finite.
    """
    v = _orthogonal(A, A.random(generator), Q)
    v /= A.space.norm(v)
    w = A @ v
    _check_finite(A, w, "a random probe")
    return float(A.space.inner(v[None], w)[0]), A.space.norm(_orthogonal(A, w, Q)) ** 2


def _check_finite(A: SymmetricOperator, product: Tensor, multiplied: str) -> None:
    if A.space.any(not all_finite(product)):
        raise NumericalError(
            f"the product of the operator with {multiplied} is not finite: its eigenvalues do not "
            "exist. Check the loss and the parameters for overflow, or use dtype float64."
        )


def _orthogonal(
    A: SymmetricOperator, w: Float[Tensor, " n"], Q: Float[Tensor, "n k"]
) -> Float[Tensor, " n"]:
    """Remove from w its components along the columns of Q, twice."""
    for _ in range(2):
        w = w - Q @ torch.as_tensor(A.space.inner(Q.T, w)).to(w)
    return w
