"""Diagonal matrices as operators, and the diagonal of an operator from random probes.

Knows matrices, not networks: imports only torch and landscape.linalg.
Shapes: n = dimension of the operator, q = vectors that are deflated, m = number of probes.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.linalg.estimate import student_widening
from landscape.linalg.operator import SymmetricOperator, check_is_operator, refuse_cut, seeded
from landscape.linalg.signs import checked_basis, sign_probes
from landscape.linalg.vectors import all_finite


class DiagonalOperator(SymmetricOperator):
    """A diagonal matrix.

    Args:
        entries: The diagonal (n,), finite floating-point numbers.

    Raises:
        ValueError: If it is no such vector.
    """

    def __init__(self, entries: Float[Tensor, " n"]) -> None:
        if (
            not isinstance(entries, Tensor)
            or not entries.is_floating_point()
            or entries.ndim != 1
            or not len(entries)
            or not all_finite(entries)
        ):
            raise ValueError(
                "A DiagonalOperator needs its diagonal, a vector of finite floating-point numbers "
                "with at least one entry. Convert it, or leave out what is not finite."
            )
        self.entries = entries.detach()
        self.n, self.dtype, self.device = len(entries), entries.dtype, entries.device

    def matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        return self.entries[:, None] * V


@dataclass(frozen=True)
class DiagonalEstimate:
    """The diagonal of an operator, each entry with its standard error.

    Attributes:
        values: (n,) estimates in the operator's unit, unbiased, in float64 on its device.
        errors: (n,) standard errors, widened by Student's t so that three of them hold the truth as
            often as three standard deviations do. At least rounding, also where all samples agree;
            0 where the diagonal is exact or every product is zero.
        num_probes: Random vectors.
        num_matvecs: Products spent.
    """

    values: Float[Tensor, " n"]
    errors: Float[Tensor, " n"]
    num_probes: int
    num_matvecs: int


def diagonal(
    A: SymmetricOperator,
    *,
    num_probes: int = 30,
    deflate: Float[Tensor, "n q"] | None = None,
    seed: int = 0,
    generator: torch.Generator | None = None,
) -> DiagonalEstimate:
    """Estimate the diagonal of A from products with random signs.

    The mean of z * (A z) over vectors z of random signs; entry i has the variance sum_{j != i}
    A_ij^2 / m, estimated from the spread over the probes.

    Args:
        A: The operator.
        num_probes: Random vectors, at least 10. From n on the unit vectors are multiplied instead,
            and the diagonal is exact.
        deflate: Orthonormal vectors, such as leading eigenvectors of A: their part of the diagonal
            is computed exactly, by as many products, and only the rest is estimated.
        seed: Seed of the random signs; ignored where `generator` is given.
        generator: CPU generator of the random signs.

    Raises:
        ValueError: If A is no operator or cut over processes, there are too few probes, or
            `deflate` is not orthonormal.
        NumericalError: If a product is not finite.

    Source: Bekas, Kokiopoulou & Saad, An estimator for the diagonal of a matrix (2007), Applied
    Numerical Mathematics 57; with deflation as in Baston & Nakatsukasa, Stochastic diagonal
    estimation (2022), arXiv 2201.10684.

    Examples:
        >>> import torch, landscape
        >>> from landscape.linalg import DenseOperator
        >>> values = torch.tensor([5.0, 3.0, 1.0, -1.0, -2.0], dtype=torch.float64)
        >>> A = DenseOperator(torch.diag(values))
        >>> landscape.diagonal(A, num_probes=5).values
        tensor([ 5.0000,  3.0000,  1.0000, -1.0000, -2.0000], dtype=torch.float64)
    """
    check_is_operator(A)
    refuse_cut(A, "diagonal")
    Q = checked_basis(A, deflate)
    AQ = (A @ Q.to(A.dtype)).double()
    # A = QQ'A + AQQ' - QQ'AQQ' + PAP with P = I - QQ'; the diagonals of the first three are known.
    known = (2 * Q * AQ - (Q @ (Q.T @ AQ)) * Q).sum(1)
    mean = torch.zeros(A.n, dtype=torch.float64, device=A.device)
    # Sums of squared deviations from the mean, updated as by Welford (1962): the difference of mean
    # square and squared mean would cancel where the diagonal is large.
    deviations, squares = torch.zeros_like(mean), torch.zeros_like(mean)
    probes = sign_probes(A, num_probes, generator if generator is not None else seeded(seed))
    for number, z in enumerate(probes, start=1):
        inside = Q.T @ z
        product = probes.product(A, z - Q @ inside)
        # z * (P A P z), whose expectation is the diagonal of P A P: E[z_i z_j] is 0 for i != j and
        # 1 for i = j.
        sample = z * (product - Q @ (Q.T @ product))
        change = sample - mean
        mean += change / number
        deviations += change * (sample - mean)
        squares += product.square()
    error = torch.zeros_like(mean)
    if not probes.are_exact:
        # Over m - 1, the variance of a sample; over m as well, that of their mean.
        variance = deviations.clamp(min=0) / (probes.count * (probes.count - 1))
        error = variance.sqrt() * student_widening(probes.count - 1)
        # Entries that never moved are known to rounding alone: of their parts, of their row, whose
        # norm is the root of the mean square of (A z)_i, and of the vectors that are deflated.
        squares /= probes.count
        size = 2 * (Q * AQ).abs().sum(1) + mean.abs() + squares.sqrt() + squares.mean().sqrt()
        error = torch.maximum(error, torch.finfo(A.dtype).eps * size)
    return DiagonalEstimate(known + mean, error, probes.count, probes.count + Q.shape[1])
