"""Symmetric matrices known by their products with vectors: their sums, multiples, averages and shifts.

Knows matrices, not networks: imports only torch and landscape.threads; SciPy, which takes 0.15 s, where an operator is converted.
Shapes: n = dimension of the operator, k = number of vectors.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from landscape.threads import threads_for

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

# The types of numbers that SciPy's operators can hold.
_SCIPY_DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}


class SymmetricOperator(ABC):
    """A fixed symmetric n x n matrix known by its products with vectors.

    The matrix never changes during the life of the object. `A @ v` takes a vector (n,) or a block (n, k) of
    the operator's dtype and device and returns the same shape. Operators add, subtract and take real factors:
    `A + B`, `0.5 * A`, `A / 2`, `-A` are operators too; see `Combination`.
    """

    n: int
    dtype: torch.dtype
    device: torch.device
    # Ascending indices outside of which every row and column is exactly zero; None where none is known to be. A promise
    # of the operator, which lets a solver carry shorter vectors.
    support: Int64[Tensor, " s"] | None = None
    # Error of a product with a vector of length 1 beyond rounding, in the operator's unit: 0 but for approximations. Solvers
    # add it to every bound.
    error_estimate: float = 0.0
    # So that numpy leaves `number * A` to the operator.
    __array_ufunc__ = None

    @abstractmethod
    def matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Multiply k vectors, the columns of V."""

    def matmat_in_support(self, V: Float[Tensor, "s k"]) -> Float[Tensor, "s k"]:
        """Multiply k vectors that are zero outside of `support`, given by their entries in it; so are the products."""
        assert self.support is not None
        whole = torch.zeros(self.n, V.shape[1], dtype=V.dtype, device=V.device).index_copy_(
            0, self.support, V
        )
        return self.matmat(whole).index_select(0, self.support)

    def __matmul__(self, V: Tensor) -> Tensor:
        """Multiply a vector (n,) or a block (n, k).

        Raises:
            ValueError: If the shape, dtype or device of V is not the operator's.
        """
        if not isinstance(V, Tensor):
            raise ValueError(
                f"A {type(self).__name__} multiplies torch tensors, got {type(V).__name__}."
            )
        if V.ndim not in (1, 2) or V.shape[0] != self.n:
            raise ValueError(
                f"A {type(self).__name__} of size {self.n} cannot multiply a tensor of shape {tuple(V.shape)}."
            )
        if V.dtype != self.dtype or V.device != self.device:
            raise ValueError(
                f"A {type(self).__name__} in {self.dtype} on {self.device} cannot multiply a tensor in {V.dtype} on "
                f"{V.device}; convert it with V.to(A.device, A.dtype)."
            )
        return self.matmat(V) if V.ndim == 2 else self.matmat(V[:, None])[:, 0]

    @property
    def shape(self) -> tuple[int, int]:
        return (self.n, self.n)

    def product_errors(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Sizes of the errors in the entries of A @ v, as another way of computing it shows them; 0 where there is none.

        Asked of small operators, where the symmetry of a few products tells too little of their rounding.
        """
        return torch.zeros_like(v)

    @property
    def checked(self) -> str:
        """What is known of its products being those of the matrix that is meant, in words; "" where nothing is to be known."""
        return ""

    @property
    def num_unused(self) -> int:
        """Coordinates outside of the support: as many eigenvalues are exactly zero, and vectors leave them out."""
        return 0 if self.support is None else self.n - len(self.support)

    def __repr__(self) -> str:
        unused = f", {self.num_unused:,} of them unused" if self.num_unused else ""
        return f"{type(self).__name__}(n={self.n:,}{unused}, {str(self.dtype).removeprefix('torch.')} on {self.device})"

    def __add__(self, other: object) -> "SymmetricOperator":
        return (
            Combination([self, other], [1.0, 1.0])
            if isinstance(other, SymmetricOperator)
            else NotImplemented
        )

    def __radd__(self, other: object) -> "SymmetricOperator":
        # What sum() begins with.
        return self if isinstance(other, Real) and other == 0 else NotImplemented

    def __sub__(self, other: object) -> "SymmetricOperator":
        return (
            Combination([self, other], [1.0, -1.0])
            if isinstance(other, SymmetricOperator)
            else NotImplemented
        )

    def __mul__(self, factor: object) -> "SymmetricOperator":
        return Combination([self], [float(factor)]) if isinstance(factor, Real) else NotImplemented

    __rmul__ = __mul__

    def __neg__(self) -> "SymmetricOperator":
        return self * -1.0

    def __truediv__(self, divisor: object) -> "SymmetricOperator":
        if not isinstance(divisor, Real):
            return NotImplemented
        if divisor == 0:
            raise ValueError(f"A {type(self).__name__} cannot be divided by 0.")
        return self * (1 / float(divisor))

    def to_scipy(self) -> "LinearOperator":
        """Convert to SciPy's LinearOperator, for any of its iterative methods.

        It takes numpy arrays of any real type and returns those of the operator's dtype:
        scipy.sparse.linalg.eigsh(A.to_scipy(), k=3).

        Raises:
            ValueError: If the operator is in neither float32 nor float64, which SciPy could not hold.
        """
        if self.dtype not in _SCIPY_DTYPES:
            raise ValueError(
                f"SciPy holds operators in float32 or float64, got one in {self.dtype}."
            )
        from scipy.sparse.linalg import LinearOperator

        multiply = self._multiply_numpy
        # A symmetric matrix is its own adjoint.
        return LinearOperator(
            self.shape,
            matvec=multiply,
            rmatvec=multiply,
            matmat=multiply,
            rmatmat=multiply,
            dtype=_SCIPY_DTYPES[self.dtype],
        )

    def _multiply_numpy(self, V: np.ndarray) -> np.ndarray:
        """Multiply a vector (n,) or a block (n, k) of numpy."""
        if np.iscomplexobj(V):
            raise ValueError(
                "A real symmetric operator multiplies real vectors, got complex ones; multiply both parts."
            )
        # SciPy's solvers pass views of their own workspace, and of any byte order or stride.
        block = torch.tensor(
            np.ascontiguousarray(V, dtype=_SCIPY_DTYPES[self.dtype]), device=self.device
        )
        products: np.ndarray = (self @ block).cpu().numpy()
        return products


class DenseOperator(SymmetricOperator):
    """A symmetric matrix held in memory.

    Args:
        matrix: (n, n), symmetric to rounding, of floating-point numbers.

    Raises:
        ValueError: If the matrix is not real, square and finite, has no rows, or is not symmetric to 100 units of rounding.
    """

    def __init__(self, matrix: Float[Tensor, "n n"]) -> None:
        if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
            got = matrix.dtype if isinstance(matrix, Tensor) else type(matrix).__name__
            raise ValueError(
                f"A DenseOperator needs a tensor of real floating-point numbers, got {got}; convert the matrix."
            )
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.numel():
            raise ValueError(
                f"A DenseOperator needs a square matrix with at least one row, got shape {tuple(matrix.shape)}."
            )
        if not torch.isfinite(matrix).all():
            raise ValueError("A DenseOperator needs a finite matrix, got infinite or NaN entries.")
        defect = (matrix - matrix.T).abs().max()
        if defect > 100 * torch.finfo(matrix.dtype).eps * matrix.abs().max():
            raise ValueError(
                f"A DenseOperator needs a symmetric matrix, got entries that differ by {defect:.1e} across the diagonal."
            )
        self.matrix = matrix
        self.n = matrix.shape[0]
        self.dtype = matrix.dtype
        self.device = matrix.device

    def matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        with threads_for(self.matrix.numel() * V.shape[1]):
            return self.matrix @ V


class Combination(SymmetricOperator):
    """sum_i coefficient_i A_i + shift I. Combinations of combinations are flattened, and terms with coefficient 0 dropped.

    Args:
        terms: At least one operator; all of one size, dtype and device.
        coefficients: One finite number per term.
        shift: A finite multiple of the identity that is added.

    Attributes:
        terms, coefficients, shift: What the combination is made of.
        support: The coordinates in the support of any term; None where a shift or a term without a support reaches all.

    Raises:
        ValueError: If there is no term or one is no operator, their sizes, dtypes or devices differ, or a number is not
            finite.
    """

    terms: tuple[SymmetricOperator, ...]
    coefficients: tuple[float, ...]

    def __init__(
        self,
        terms: Sequence[SymmetricOperator],
        coefficients: Sequence[float],
        *,
        shift: float = 0.0,
    ) -> None:
        if not terms or len(terms) != len(coefficients):
            raise ValueError(
                f"A combination needs as many coefficients as operators, at least one; got {len(terms)} operators and "
                f"{len(coefficients)} coefficients."
            )
        if not all(math.isfinite(number) for number in (*coefficients, shift)):
            raise ValueError(
                f"A combination needs finite coefficients, got {list(coefficients)} and a shift of {shift}."
            )
        first = terms[0]
        for term in terms:
            check_is_operator(term)
            if (term.n, term.dtype, term.device) != (first.n, first.dtype, first.device):
                raise ValueError(
                    f"Operators can be combined only where size, dtype and device agree, got n = {first.n} in {first.dtype} on "
                    f"{first.device} and n = {term.n} in {term.dtype} on {term.device}."
                )
        self.n, self.dtype, self.device = first.n, first.dtype, first.device
        self.shift = float(shift)
        pairs: list[tuple[SymmetricOperator, float]] = []
        for term, coefficient in zip(terms, coefficients):
            if isinstance(term, Combination):
                self.shift += coefficient * term.shift
                pairs += [
                    (part, coefficient * factor)
                    for part, factor in zip(term.terms, term.coefficients)
                ]
            else:
                pairs.append((term, float(coefficient)))
        kept = [(term, coefficient) for term, coefficient in pairs if coefficient != 0]
        self.terms = tuple(term for term, _ in kept)
        self.coefficients = tuple(coefficient for _, coefficient in kept)
        self.error_estimate = sum(
            abs(coefficient) * term.error_estimate for term, coefficient in kept
        )
        self.support = (
            None if self.shift else union_of_supports([term.support for term in self.terms])
        )

    @property
    def checked(self) -> str:
        """What the terms say, each sentence once."""
        return said_once(term.checked for term in self.terms)

    def matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        products = self.shift * V
        for term, coefficient in zip(self.terms, self.coefficients):
            products.add_(term @ V, alpha=coefficient)
        return products

    def product_errors(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        errors = torch.zeros_like(v)
        for term, coefficient in zip(self.terms, self.coefficients):
            errors.add_(term.product_errors(v), alpha=abs(coefficient))
        return errors


def average(
    operators: Iterable[SymmetricOperator], *, weights: Sequence[float] | None = None
) -> Combination:
    """The average of operators, such as the Hessian of a data set from those of its batches.

    Args:
        operators: Of one size, dtype and device.
        weights: One number >= 0 per operator, of any positive sum, by which they are divided; equal by default.

    Raises:
        ValueError: If there is no operator, the operators do not go together, or the weights are no weights.
    """
    terms = list(operators)
    return Combination(terms, normalized_weights(len(terms), weights))


def normalized_weights(count: int, weights: Sequence[float] | None) -> list[float]:
    """Weights that sum to 1; equal ones where none are given.

    Raises:
        ValueError: If there are not `count` weights, one is negative or not finite, or their sum is 0.
    """
    if count == 0:
        raise ValueError("An average needs at least one operator, got none.")
    given = [1.0] * count if weights is None else [float(weight) for weight in weights]
    total = sum(given)
    if (
        len(given) != count
        or not all(math.isfinite(weight) and weight >= 0 for weight in given)
        or total == 0
    ):
        raise ValueError(
            f"An average of {count} operators needs {count} finite weights >= 0 that are not all 0, got {given}."
        )
    return [weight / total for weight in given]


def shifted(A: SymmetricOperator, sigma: float) -> Combination:
    """A + sigma I: the same eigenvectors, every eigenvalue larger by sigma.

    Raises:
        ValueError: If sigma is not finite.
    """
    return Combination([A], [1.0], shift=sigma)


def union_of_supports(supports: Sequence[Int64[Tensor, " s"] | None]) -> Int64[Tensor, " s"] | None:
    """The coordinates in any of the supports, ascending; None if there is none, or as soon as one of them is everything."""
    known = [support for support in supports if support is not None]
    return torch.cat(known).unique() if known and len(known) == len(supports) else None


def said_once(texts: Iterable[str]) -> str:
    """What several operators or results say in `checked`, each sentence once."""
    return "; ".join(dict.fromkeys(said for text in texts for said in text.split("; ") if said))


def check_is_operator(A: object) -> None:
    """Refuse a matrix in the place of an operator.

    Raises:
        ValueError: If `A` is no SymmetricOperator.
    """
    if not isinstance(A, SymmetricOperator):
        raise ValueError(
            f"This needs a SymmetricOperator, got a {type(A).__name__}: wrap a symmetric torch matrix as DenseOperator(matrix), "
            "or give the operator of a model, such as landscape.hessian(...)."
        )


def check_num_pairs(A: SymmetricOperator, k: int) -> None:
    """Refuse a number of eigenpairs that A does not have, and what is no operator.

    Raises:
        ValueError: If `A` is no SymmetricOperator, or `k` no integer from 1 to its dimension.
    """
    check_is_operator(A)
    if not isinstance(k, Integral):
        raise ValueError(f"k must be an integer, got {k!r}.")
    if not 1 <= k <= A.n:
        raise ValueError(f"k must be between 1 and the operator's dimension {A.n}, got {k}.")


def seeded(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator with a fixed seed: the only source of randomness in this package."""
    return torch.Generator(device=device).manual_seed(seed)
