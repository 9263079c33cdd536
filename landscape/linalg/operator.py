"""A symmetric matrix that is known only by its action, and what an eigensolver returns.

Knows matrices, not networks: imports only torch.
Shapes: n = dimension of the operator, k = number of vectors or of eigenpairs.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


class SymmetricOperator(ABC):
    """A fixed symmetric n x n matrix known by its products with vectors.

    The matrix never changes during the life of the object. `A @ v` takes a vector (n,) or a block (n, k) of
    the operator's dtype and device and returns the same shape. Operators add, subtract and take real factors:
    `A + B`, `0.5 * A`, `A / 2`, `-A` are operators too; see landscape.linalg.combine.
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

    def __matmul__(self, V: Tensor) -> Tensor:
        """Multiply a vector (n,) or a block (n, k).

        Raises:
            ValueError: If the shape, dtype or device of V is not the operator's.
        """
        if not isinstance(V, Tensor):
            raise ValueError(f"A {type(self).__name__} multiplies torch tensors, got {type(V).__name__}.")
        if V.ndim not in (1, 2) or V.shape[0] != self.n:
            raise ValueError(f"A {type(self).__name__} of size {self.n} cannot multiply a tensor of shape {tuple(V.shape)}.")
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

    # Within the methods, because these modules are made of operators.
    def __add__(self, other: object) -> "SymmetricOperator":
        from landscape.linalg.combine import Combination

        return Combination([self, other], [1.0, 1.0]) if isinstance(other, SymmetricOperator) else NotImplemented

    def __radd__(self, other: object) -> "SymmetricOperator":
        # What sum() begins with.
        return self if isinstance(other, Real) and other == 0 else NotImplemented

    def __sub__(self, other: object) -> "SymmetricOperator":
        from landscape.linalg.combine import Combination

        return Combination([self, other], [1.0, -1.0]) if isinstance(other, SymmetricOperator) else NotImplemented

    def __mul__(self, factor: object) -> "SymmetricOperator":
        from landscape.linalg.combine import multiple

        return multiple(self, factor)

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
        """The same matrix for SciPy: a LinearOperator of the operator's dtype that takes and gives numpy arrays.

        It serves any of SciPy's iterative methods: scipy.sparse.linalg.eigsh(A.to_scipy(), k=3).
        """
        from landscape.linalg.for_scipy import ScipyOperator

        return ScipyOperator(self)


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
            raise ValueError(f"A DenseOperator needs a tensor of real floating-point numbers, got {got}; convert the matrix.")
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.numel():
            raise ValueError(f"A DenseOperator needs a square matrix with at least one row, got shape {tuple(matrix.shape)}.")
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
        return self.matrix @ V


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


@dataclass(frozen=True)
class Quadrature:
    """Gauss quadrature of the operator's spectral measure seen from one random unit vector.

    Attributes:
        nodes: Ritz values of the Krylov space of that vector (m,), ascending; in the operator's unit.
        weights: Squared first components of the eigenvectors of the tridiagonal matrix (m,); they sum to 1.

    For a start vector drawn uniformly from the sphere, n * sum(weights * f(nodes)) is an unbiased estimate of
    trace f(A) for polynomials f up to degree 2m - 1.

    Source: Golub & Meurant, Matrices, Moments and Quadrature (2010), chapter 6.
    """

    nodes: Float[Tensor, " m"]
    weights: Float[Tensor, " m"]


@dataclass(frozen=True)
class RitzValues:
    """Everything that a Krylov space says of both ends of the spectrum: the eigenvalues of V^T A V for its basis V (n, m).

    Attributes:
        values: (m,), ascending, in the operator's unit.
        norms: (m,) bounds of ||A v - value v||: an eigenvalue of A lies within `norms` of each value.
        rounding: Bound of what rounding can have done to a value, in the operator's unit.
        orthogonality_defect: max |V^T V - I|, computed from the basis: far below 1, so no value is a ghost of another.
    """

    values: Float[Tensor, " m"]
    norms: Float[Tensor, " m"]
    rounding: float
    orthogonality_defect: float

    @property
    def num_negative(self) -> int:
        """A certified lower bound of the number of negative eigenvalues of A, copies counted.

        No residual is needed for it: x^T A x < 0 on a subspace of dimension j proves j negative eigenvalues.

        Source: Cauchy's interlacing theorem; Parlett, The Symmetric Eigenvalue Problem (1998), section 10.1.
        """
        return int(torch.count_nonzero(self.values < -self.rounding))

    @property
    def num_positive(self) -> int:
        """Likewise of the positive ones."""
        return int(torch.count_nonzero(self.values > self.rounding))

    def end(self, which: str, k: int) -> tuple[Float[Tensor, " j"], Float[Tensor, " j"]]:
        """The k values at one end, the outermost first, and their residuals as fractions of them; all where there are fewer.

        Args:
            which: "LA" for the largest, "SA" for the smallest.
        """
        values, norms = (self.values, self.norms) if which == "SA" else (self.values.flip(0), self.norms.flip(0))
        values, norms = values[:k], norms[:k]
        return values, torch.where(norms > 0, norms / values.abs(), 0.0)


@dataclass(frozen=True)
class EigenPairs:
    """Eigenvalues with their certificates.

    Attributes:
        values: (k,) Ritz values, ordered as `which` asks, the most wanted first.
        vectors: (n, k) orthonormal Ritz vectors, or None where they were not asked for.
        residuals: (k,) ||A v - value v|| / |value|. An eigenvalue of A lies within residual * |value| of the value.
        converged: (k,) whether the pair met the tolerance. Never true for a pair that did not.
        num_matvecs: Products with A that were spent.
        copies_checked: Whether the search for further copies of multiple eigenvalues, which one Krylov chain cannot see, went
            on until a missed one would have been found with 99 % probability. Where it is false, the set of values is that
            of the top k only if none of them is multiple, or as far as a shorter search could tell.
        settled: Whether no other Ritz value can still belong among the values: each, with its bound, stays below the last of
            them, but for what the tolerance leaves open. Never true of a method that keeps no other Ritz values.
        quadrature: Nodes and weights of the same Krylov space, where the method gives them.
        ritz: All Ritz values of the same Krylov space, where the method gives them: both ends, and certified counts.
        checked: What the operator says of its products, such as "operator checked: product within 2.1e-08 ... of central
            differences"; "" where it says nothing.
    """

    values: Float[Tensor, " k"]
    vectors: Float[Tensor, "n k"] | None
    residuals: Float[Tensor, " k"]
    converged: Bool[Tensor, " k"]
    num_matvecs: int
    quadrature: Quadrature | None = None
    ritz: RitzValues | None = None
    copies_checked: bool = False
    settled: bool = False
    checked: str = ""

    def __repr__(self) -> str:
        rows = ", ".join(
            f"{_with_bound(value, abs(value) * residual)}{'' if done else ' (not converged)'}"
            for value, residual, done in zip(self.values.tolist(), self.residuals.tolist(), self.converged.tolist())
        )
        doubt = "" if self.settled or self.ritz is None else ", another value may belong among them"
        checked = f", {self.checked}" if self.checked else ""
        return f"EigenPairs([{rows}], num_matvecs={self.num_matvecs}{doubt}{checked})"


def _with_bound(value: float, bound: float) -> str:
    """A value and its bound in so few digits that the printed interval still holds what the bound holds."""
    if not (math.isfinite(value) and math.isfinite(bound)) or bound == 0:
        # A relative residual says nothing of a value of zero.
        return f"{value:.6g} ± {'unknown' if math.isnan(bound) else f'{bound:.1g}'}"
    # As many digits as the bound leaves, from 6 on; what cutting the value costs is added to the bound.
    digits = max(6, min(17, math.ceil(math.log10(abs(value) / bound)) + 1)) if value else 6
    shown = f"{value:.{digits}g}"
    most = bound + abs(float(shown) - value)
    exponent = math.floor(math.log10(most))
    return f"{shown} ± {math.ceil(most / 10.0**exponent * (1 - 1e-12)) * 10.0**exponent:.1g}"


def seeded(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator with a fixed seed: the only source of randomness in this package."""
    return torch.Generator(device=device).manual_seed(seed)
