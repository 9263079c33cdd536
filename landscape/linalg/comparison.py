"""How alike two symmetric operators are: cosine, relative error, leading eigenspaces.

Inner products of matrices, <A, B> = trace(A B), are estimated from products of all operators with
the same random vectors, so that their errors cancel where the operators are alike. What the leading
eigenvectors of all operators span is treated exactly, as in Hutch++: a few large eigenvalues would
otherwise cause most of the error.

Knows matrices, not networks: imports only torch, numpy and landscape.linalg.
Shapes: n = dimension of the operators, q = vectors that are treated exactly, m = probes, o =
operators.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from landscape.linalg.angles import PrincipalAngles, principal_angles
from landscape.linalg.estimate import Estimate
from landscape.linalg.lanczos import eigsh
from landscape.linalg.operator import SymmetricOperator, check_is_operator, refuse_cut, seeded
from landscape.linalg.results import EigenPairs
from landscape.linalg.signs import jackknife, sign_probes

# Singular values of the eigenvectors of all operators together, below which a direction is in the
# span of the others already.
_DEPENDENT = 1e-3
# Least error of an estimate in rounding units of the operators' type, each relative to the products
# that it is made of.
_ROUNDINGS = 4.0


@dataclass(frozen=True)
class Likeness:
    """How alike an operator A is to a reference H.

    Attributes:
        cosine: <A, H> / (|A| |H|) in the Frobenius norm: 1 for A = c H with a positive c.
        relative_error: |A - H| / |H|.
        norm_ratio: |A| / |H|.
        scale: The c that makes |c A - H| least, <A, H> / |A|^2; |c A - H| / |H| is then the sine of
            the angle whose cosine is `cosine`.
        angles: Principal angles between the leading eigenspaces; None where not asked for.

    Each estimate carries its standard error over the probes, which is at least that of rounding; 0
    where unit vectors were multiplied.
    """

    cosine: Estimate
    relative_error: Estimate
    norm_ratio: Estimate
    scale: Estimate
    angles: PrincipalAngles | None


@dataclass(frozen=True)
class CurvatureComparison:
    """A matrix beside others, on the same batch and by the same random vectors.

    Attributes:
        rows: What was found of each of the others, by name.
        pairs: Eigenpairs of the reference ("") and of the others, by name; the last of each tells
            the gap. Empty where none were asked for.
        num_probes: Random vectors.
        num_matvecs: Products of each operator, those for its eigenpairs not included.
        is_exact: Whether unit vectors were multiplied, so that only rounding is left.
    """

    rows: Mapping[str, Likeness]
    pairs: Mapping[str, EigenPairs]
    num_probes: int
    num_matvecs: int
    is_exact: bool

    def __str__(self) -> str:
        width = max(len("matrix"), *map(len, self.rows))
        lines = [f"{'matrix':{width}}  {'cosine':18}  {'|A - H| / |H|':18}  {'|A| / |H|':18}"]
        for name, row in self.rows.items():
            numbers = (row.cosine, row.relative_error, row.norm_ratio)
            lines.append(f"{name:{width}}  " + "  ".join(f"{number!s:18}" for number in numbers))
        lines += [
            f"{name}: principal angles {row.angles}"
            for name, row in self.rows.items()
            if row.angles is not None
        ]
        return "\n".join(line.rstrip() for line in lines)


def compare_curvature(
    H: SymmetricOperator,
    others: Mapping[str, SymmetricOperator],
    *,
    num_probes: int = 30,
    k: int = 5,
    tol: float = 1e-3,
    max_matvecs: int | None = None,
    seed: int = 0,
    generator: torch.Generator | None = None,
) -> CurvatureComparison:
    """Compare a Hessian with approximations of it.

    Costs num_probes products of every operator beside the eigenpairs, and one more for each of
    these, of whichever operator: the part that they span is treated exactly.

    Args:
        H: The reference.
        others: Approximations by name, such as the Gauss-Newton matrix, the empirical Fisher matrix
            and an optimizer's preconditioner; of the size, dtype and device of H.
        num_probes: Random vectors, at least 10; from n on all inner products are exact.
        k: Leading eigenpairs, of largest magnitude, whose spaces are compared; k + 1 are computed.
            0 for none.
        tol, max_matvecs: As in `eigsh`, for the eigenpairs.
        seed: Seed of all random vectors; ignored where `generator` is given.
        generator: CPU generator of all random vectors.

    Raises:
        ValueError: If what is given are no operators, they do not go together or are cut over
            processes, or a number is out of range.
        NumericalError: If a product is not finite.

    Source: Hutchinson (1990) for the estimator of a trace; Meyer, Musco, Musco & Woodruff, Hutch++
    (2021), arXiv 2010.09649, for the part that is treated exactly. The errors are jackknife errors.

    Examples:
        >>> import torch, landscape
        >>> from landscape.linalg import DenseOperator
        >>> values = torch.tensor([5.0, 3.0, 1.0, -1.0, -2.0], dtype=torch.float64)
        >>> A = DenseOperator(torch.diag(values))
        >>> compared = landscape.compare_curvature(A, {"twice": 2 * A}, num_probes=5, k=0)
        >>> print(compared)
        matrix  cosine              |A - H| / |H|       |A| / |H|
        twice   1 ± 0               1 ± 0               2 ± 0
    """
    operators = _checked(H, others, k)
    generator = generator if generator is not None else seeded(seed)
    pairs = {
        name: eigsh(A, k + 1, "LM", tol=tol, max_matvecs=max_matvecs, generator=generator)
        for name, A in (operators.items() if k else ())
    }
    Q = _span(H, [computed.vectors for computed in pairs.values()])
    probes = sign_probes(H, num_probes, generator)
    # With P = I - Q Q^T, <A, H> = trace(Q^T A H Q) + trace(P A H P), as P P = P. The first term is
    # <A Q, H Q>, from q products of each operator. For a probe z with E[z z^T] = I the second is
    # the expectation of (A P z).(H P z).
    known = _sums([(A @ Q.to(A.dtype)).double() for A in operators.values()])
    samples = []
    for z in probes:
        rest = z - Q @ (Q.T @ z)
        # The same vector for all operators: where these are alike, so are the errors of their sums,
        # and they cancel in ratios and in the difference.
        samples.append(_sums([probes.product(A, rest)[:, None] for A in operators.values()]))
    table = np.stack(samples)
    rows = {}
    for number, name in enumerate(others, start=1):
        rows[name] = _likeness(
            table[:, :, number],
            known[:, number],
            eps=_ROUNDINGS * torch.finfo(H.dtype).eps,
            exact=probes.are_exact,
            angles=principal_angles(pairs[name], pairs[""]) if k else None,
        )
    return CurvatureComparison(
        rows, pairs, probes.count, probes.count + Q.shape[1], probes.are_exact
    )


def _likeness(
    samples: Float[np.ndarray, "m 4"],
    known: Float[np.ndarray, " 4"],
    *,
    eps: float,
    exact: bool,
    angles: PrincipalAngles | None,
) -> Likeness:
    """Make ratios of <A, H>, |A|^2, |H|^2 and |A - H|^2."""

    # Rounding moves the products of A and H by about eps |A| and eps |H|.
    _, of_A, of_H, _ = known + samples.mean(axis=0)
    norm_ratio = float(np.sqrt(_divided(of_A, of_H)))

    def estimate(statistic: Callable[..., np.ndarray], size: float) -> Estimate:
        return jackknife(samples, statistic, known=known, rounding=eps * size, exact=exact)

    def cosine(sums: Float[np.ndarray, "... 4"]) -> Float[np.ndarray, "..."]:
        return _divided(sums[..., 0], np.sqrt(sums[..., 1] * sums[..., 2]))

    return Likeness(
        cosine=estimate(cosine, 1.0),
        relative_error=estimate(
            lambda sums: np.sqrt(_divided(sums[..., 3], sums[..., 2])), 1 + norm_ratio
        ),
        norm_ratio=estimate(lambda sums: np.sqrt(_divided(sums[..., 1], sums[..., 2])), norm_ratio),
        scale=estimate(
            lambda sums: _divided(sums[..., 0], sums[..., 1]),
            1 / norm_ratio if norm_ratio else math.nan,
        ),
        angles=angles,
    )


def _divided(
    top: Float[np.ndarray, "..."], bottom: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """Divide; NaN where a matrix is zero."""
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0)


def _sums(products: list[Float[Tensor, "n q"]]) -> Float[np.ndarray, "4 o"]:
    """Compute the four sums of the products of every operator.

    They are <A, H>, |A|^2, |H|^2 and |A - H|^2, and the first products are those of H. The
    difference is taken before it is squared, so that two nearly equal matrices lose no digits.
    """
    first = products[0]
    columns = [
        torch.stack(
            [
                (other * first).sum(),
                other.square().sum(),
                first.square().sum(),
                (other - first).square().sum(),
            ]
        )
        for other in products
    ]
    return np.asarray(torch.stack(columns, dim=1).cpu())


def _span(H: SymmetricOperator, vectors: list[Tensor | None]) -> Float[Tensor, "n q"]:
    """Return an orthonormal basis of the eigenvectors of all operators, in float64."""
    blocks = [block.double() for block in vectors if block is not None]
    if not blocks:
        return torch.zeros(H.n, 0, dtype=torch.float64, device=H.device)
    left, sizes, _ = torch.linalg.svd(torch.cat(blocks, dim=1), full_matrices=False)
    return left[:, sizes > _DEPENDENT]


def _checked(
    H: SymmetricOperator, others: Mapping[str, SymmetricOperator], k: int
) -> dict[str, SymmetricOperator]:
    """Return all operators by name, that of the reference being "".

    Raises:
        ValueError: As in `compare_curvature`.
    """
    if not isinstance(others, Mapping) or not others or "" in others:
        raise ValueError(
            "others must hold at least one operator by a name that is not empty, such as "
            "{'Gauss-Newton': landscape.gauss_newton(...)}, as results are told apart by name."
        )
    for name, A in {"": H, **others}.items():
        check_is_operator(A)
        refuse_cut(A, "compare_curvature")
        if (A.n, A.dtype, A.device) != (H.n, H.dtype, H.device):
            raise ValueError(
                f"{name}: has n = {A.n:,} in {A.dtype} on {A.device}, but the reference n = "
                f"{H.n:,} in {H.dtype} on {H.device}, so there is no difference of the two. Build "
                "both by the same parameters of one model."
            )
    if not 0 <= k < H.n:
        raise ValueError(
            f"k must be between 0 and n - 1 = {H.n - 1}, got {k}: one more eigenvalue tells the "
            "gap after the k-th. Ask for fewer."
        )
    return {"": H, **others}
