"""An operator in other coordinates of some matrices: F A F with a block diagonal F.

Knows matrices, not networks: imports only torch and landscape.linalg.
Shapes: n = dimension of the operator, k = number of vectors, r, c = rows and columns of a matrix
among the coordinates, d = r or c.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from landscape.linalg.coordinates import Coordinates
from landscape.linalg.operator import SymmetricOperator, check_is_operator, refuse_cut


@dataclass(frozen=True, eq=False)
class MatrixFactor:
    """A symmetric matrix that multiplies a matrix among the coordinates.

    Attributes:
        start: First coordinate of the matrix, whose rows follow one another.
        shape: Its rows and columns.
        factor: The symmetric matrix, on the left, or on the right if `is_right`.
        is_right: Whether it multiplies from the right; then it has the size of the columns.
    """

    start: int
    shape: tuple[int, int]
    factor: Float[Tensor, "d d"]
    is_right: bool

    @property
    def stop(self) -> int:
        """Return the coordinate after the last."""
        return self.start + self.shape[0] * self.shape[1]

    def multiply(self, V: Float[Tensor, "n k"], factor: Float[Tensor, "d d"]) -> None:
        """Multiply the matrix in each of k vectors, in place."""
        matrices = V[self.start : self.stop].reshape(*self.shape, V.shape[1])
        rule = "rck,cd->rdk" if self.is_right else "dr,rck->dck"
        operands = (matrices, factor) if self.is_right else (factor, matrices)
        V[self.start : self.stop] = torch.einsum(rule, *operands).reshape(-1, V.shape[1])


class BlockScaledOperator(SymmetricOperator):
    """F A F for an operator A and a symmetric F that multiplies matrices of coordinates.

    Outside of the matrices F is the identity. Solvers take it as any other operator, with the
    certificates of A: an error e of A becomes F e F.

    Args:
        A: The operator, whole in this process.
        factors: Factors in the operator's dtype on its device, of matrices without common
            coordinates.

    Attributes:
        whole, factors: What the operator is made of.
        support: The support of A, and all coordinates of a matrix that it reaches.

    Raises:
        ValueError: If A is no operator or cut over processes, or a factor is not finite or of
            another dtype, device or shape than its matrix needs.
    """

    def __init__(self, A: SymmetricOperator, factors: Sequence[MatrixFactor]) -> None:
        check_is_operator(A)
        refuse_cut(A, "BlockScaledOperator")
        for block in factors:
            _check(A, block)
        self.whole, self.factors = A, tuple(factors)
        self.n, self.dtype, self.device = A.n, A.dtype, A.device
        runs = A.support_runs
        self.support = None if runs is None else _with_matrices(runs, self.factors)
        self.error_estimate = 0.0
        if A.error_estimate:
            # ||F e F|| <= ||F||^2 ||e||; F is 1 outside of the matrices.
            norms = [float(torch.linalg.matrix_norm(block.factor, 2)) for block in factors]
            self.error_estimate = max([1.0, *norms]) ** 2 * A.error_estimate

    @property
    def checked(self) -> str:
        """Return what A says of its products."""
        return self.whole.checked

    def multiply_factor(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Multiply k vectors by F."""
        V = V.clone(memory_format=torch.contiguous_format)
        for block in self.factors:
            block.multiply(V, block.factor)
        return V

    def matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        return self.multiply_factor(self.whole @ self.multiply_factor(V))

    def product_errors(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        errors = self.whole.product_errors(self.multiply_factor(v[:, None])[:, 0])[:, None].clone()
        # |F e| <= |F| |e|, entry by entry.
        for block in self.factors:
            block.multiply(errors, block.factor.abs())
        return errors[:, 0]


def _with_matrices(support: Coordinates, factors: Sequence[MatrixFactor]) -> Coordinates:
    """Add to a support all coordinates of the matrices that it reaches."""
    reached = [
        Coordinates(np.array([block.start]), np.array([block.stop]), support.device)
        for block in factors
        if np.diff(support.count_below(np.array([block.start, block.stop]))).any()
    ]
    return Coordinates.union([support, *reached]) if reached else support


def _check(A: SymmetricOperator, block: MatrixFactor) -> None:
    size = block.shape[1] if block.is_right else block.shape[0]
    factor = block.factor
    if (factor.shape, factor.dtype, factor.device) != ((size, size), A.dtype, A.device):
        raise ValueError(
            f"factor: must be a matrix of shape {(size, size)} in {A.dtype} on {A.device}, got "
            f"shape {tuple(factor.shape)} in {factor.dtype} on {factor.device}."
        )
    if not 0 <= block.start <= block.stop <= A.n:
        raise ValueError(
            f"factor: is of the coordinates {block.start} to {block.stop - 1}, but the operator "
            f"has {A.n}."
        )
    if not torch.isfinite(factor).all():
        raise ValueError(
            "factor: must be finite, got infinite or NaN entries, which no eigenvalue survives."
        )
