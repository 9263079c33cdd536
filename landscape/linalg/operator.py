"""Symmetric operators: sums, multiples, averages and shifts of them.

Knows matrices, not networks: imports only torch and landscape.threads; SciPy, which takes 0.15 s,
where an operator is converted. Where an operator is cut over several processes, a vector (n,) is
the part of it that this process holds.
Shapes: n = dimension of the operator, l = entries that this process holds (n unless the operator is
cut), k = number of vectors.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from landscape.linalg.coordinates import Coordinates
from landscape.linalg.vectors import VectorSpace, all_finite
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

    The matrix never changes during the life of the object. `A @ v` takes a vector (n,) or a block
    (n, k) of the operator's dtype and device and returns the same shape. Operators add, subtract
    and take real factors: `A + B`, `0.5 * A`, `A / 2`, `-A` are operators too; see `Combination`.

    An operator may be cut over several processes: `space` then says so, n stays the dimension of
    the whole matrix, and vectors, products and `support` are those of the entries that this process
    holds, `num_local` of them.

    Examples:
        >>> import torch, landscape
        >>> from landscape.linalg import DenseOperator
        >>> values = torch.tensor([5.0, 3.0, 1.0, -1.0, -2.0], dtype=torch.float64)
        >>> A = DenseOperator(torch.diag(values))
        >>> A @ torch.ones(5, dtype=torch.float64)
        tensor([ 5.,  3.,  1., -1., -2.], dtype=torch.float64)
        >>> (2 * A).n, (A - A).n
        (5, 5)
    """

    n: int
    dtype: torch.dtype
    device: torch.device
    # Error of a product with a vector of length 1 beyond rounding, in the operator's unit: 0 but
    # for approximations. Solvers add it to every bound.
    error_estimate: float = 0.0
    # Makes NumPy leave `number * A` to the operator.
    __array_ufunc__ = None
    # The support as it was set, and what it was converted to.
    _stated_support: Tensor | Coordinates | None = None
    _converted_support: tuple[Tensor, Coordinates] | None = None

    @property
    def support(self) -> Int64[Tensor, " s"] | None:
        """Return the support: ascending indices; None if none is known.

        Outside of it every row and column is exactly zero.

        The operator guarantees this, so a solver may keep shorter vectors. An operator sets it, as
        a vector of int64 or as `Coordinates`. Of an operator that is cut, None in all processes or
        in none.
        The vector may be a new tensor at each access, of 8 bytes a coordinate; `support_runs` tells
        the same without it.
        """
        stated = self._stated_support
        return stated.indices() if isinstance(stated, Coordinates) else stated

    @support.setter
    def support(self, stated: Tensor | Coordinates | None) -> None:
        self._stated_support = stated

    @property
    def support_runs(self) -> Coordinates | None:
        """Return the `support` as runs of consecutive coordinates.

        Raises:
            ValueError: If the operator states another support than ascending indices of its
                coordinates.
        """
        # A subclass may have an attribute or a property of its own.
        stated = (
            self._stated_support
            if type(self).support is SymmetricOperator.support
            else self.support
        )
        if stated is None or isinstance(stated, Coordinates):
            return stated
        if self._converted_support is None or self._converted_support[0] is not stated:
            self._converted_support = stated, self._converted(stated)
        return self._converted_support[1]

    def _converted(self, stated: Tensor) -> Coordinates:
        try:
            support = Coordinates.from_indices(stated).to(self.device)
        except ValueError as error:
            raise ValueError(f"{type(self).__name__}.support: {error}") from error
        if support.stop > self.num_local:
            raise ValueError(
                f"{type(self).__name__}.support: must lie in 0..{self.num_local - 1}, as vectors "
                f"have no more entries, got {support.stop - 1}."
            )
        return support

    @abstractmethod
    def matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Multiply k vectors, the columns of V."""

    def matmat_in_support(self, V: Float[Tensor, "s k"]) -> Float[Tensor, "s k"]:
        """Multiply k vectors that are zero outside of `support`.

        They are given by their entries in it, and so are the products.
        """
        support = self.support_runs
        assert support is not None
        return support.select(self.matmat(support.expand(V, self.num_local)))

    @property
    def space(self) -> VectorSpace:
        """Return the space: how vectors are held, summed and drawn.

        By default they are whole, in this process.
        """
        return VectorSpace(self.n)

    @property
    def num_local(self) -> int:
        """Count the entries of a vector that this process holds.

        n, unless the operator is cut over several processes.
        """
        return self.space.num_local

    def random(
        self, generator: torch.Generator, count: int | None = None
    ) -> Float[Tensor, "l ..."]:
        """Draw standard normal vectors in the operator's dtype on its device.

        One vector, or `count` vectors as columns.

        The numbers come from the CPU in float64, so that all devices, types and numbers of
        processes get the same ones.
        """
        return self.space.random(generator, count).to(self.device, self.dtype)

    def __matmul__(self, V: Tensor) -> Tensor:
        """Multiply a vector (n,) or a block (n, k).

        Raises:
            ValueError: If the shape, dtype or device of V is not the operator's.
        """
        if not isinstance(V, Tensor):
            raise ValueError(
                f"A {type(self).__name__} multiplies torch tensors, got {type(V).__name__}."
            )
        if V.ndim not in (1, 2) or V.shape[0] != self.num_local:
            size = (
                f"{self.n}"
                if self.space.is_whole
                else f"{self.n}, {self.num_local} of it in this process,"
            )
            raise ValueError(
                f"A {type(self).__name__} of size {size} cannot multiply a tensor of shape "
                f"{tuple(V.shape)}."
            )
        if V.dtype != self.dtype or V.device != self.device:
            raise ValueError(
                f"A {type(self).__name__} in {self.dtype} on {self.device} cannot multiply a "
                f"tensor in {V.dtype} on {V.device}; convert it with V.to(A.device, A.dtype)."
            )
        return self.matmat(V) if V.ndim == 2 else self.matmat(V[:, None])[:, 0]

    @property
    def shape(self) -> tuple[int, int]:
        return (self.n, self.n)

    def product_errors(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Estimate the absolute errors of the entries of A @ v.

        Another way of computing the product shows them; 0 if there is no other way.

        Solvers use it for small operators, where the symmetry of a few products tells too little of
        their rounding.
        """
        return torch.zeros_like(v)

    @property
    def checked(self) -> str:
        """Describe how the products were verified; "" if nothing is known.

        Verified means compared with products of the intended matrix.
        """
        return ""

    @property
    def num_unused(self) -> int:
        """Count the coordinates outside of the support.

        As many eigenvalues are exactly zero, and vectors leave them out.

        Over all processes. Operators that are cut count once, when they are made: this asks no
        other process.
        """
        support = self.support_runs
        return 0 if support is None else self.n - len(support)

    def __repr__(self) -> str:
        unused = f", {self.num_unused:,} of them unused" if self.num_unused else ""
        return (
            f"{type(self).__name__}(n={self.n:,}{unused}, {str(self.dtype).removeprefix('torch.')} "
            f"on {self.device})"
        )

    def __add__(self, other: object) -> "SymmetricOperator":
        return (
            Combination([self, other], [1.0, 1.0])
            if isinstance(other, SymmetricOperator)
            else NotImplemented
        )

    def __radd__(self, other: object) -> "SymmetricOperator":
        # sum() begins with 0.
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
            ValueError: If the operator is in neither float32 nor float64, which SciPy could not
                hold, or cut over several processes.
        """
        refuse_cut(self, "to_scipy")
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
        """Multiply a NumPy vector (n,) or block (n, k)."""
        if np.iscomplexobj(V):
            raise ValueError(
                "A real symmetric operator multiplies real vectors, got complex ones; multiply "
                "both parts."
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
        ValueError: If the matrix is not real, square and finite, has no rows, or is not symmetric
            to 100 units of rounding.
    """

    def __init__(self, matrix: Float[Tensor, "n n"]) -> None:
        if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
            got = matrix.dtype if isinstance(matrix, Tensor) else type(matrix).__name__
            raise ValueError(
                f"A DenseOperator needs a tensor of real floating-point numbers, got {got}; "
                "convert the matrix."
            )
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.numel():
            raise ValueError(
                "A DenseOperator needs a square matrix with at least one row, got shape "
                f"{tuple(matrix.shape)}."
            )
        if not all_finite(matrix):
            raise ValueError("A DenseOperator needs a finite matrix, got infinite or NaN entries.")
        defect = (matrix - matrix.T).abs().max()
        if defect > 100 * torch.finfo(matrix.dtype).eps * matrix.abs().max():
            raise ValueError(
                "A DenseOperator needs a symmetric matrix, got entries that differ by "
                f"{defect:.1e} across the diagonal."
            )
        self.matrix = matrix
        self.n = matrix.shape[0]
        self.dtype = matrix.dtype
        self.device = matrix.device

    def matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        with threads_for(self.matrix.numel() * V.shape[1]):
            return self.matrix @ V


class Combination(SymmetricOperator):
    """A linear combination of operators: sum_i coefficient_i A_i + shift I.

    Combinations of combinations are flattened, and terms with coefficient 0 dropped.

    Args:
        terms: At least one operator; all of one size, dtype and device.
        coefficients: One finite number per term.
        shift: A finite multiple of the identity that is added.

    Attributes:
        terms, coefficients, shift: What the combination is made of.
        support: The coordinates in the support of any term; None where a shift or a term without a
            support reaches all.
        space: The space of the terms.

    Raises:
        ValueError: If there is no term or one is no operator, their sizes, dtypes or devices
            differ, they are cut over processes in different ways, or a number is not finite.
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
                "A combination needs as many coefficients as operators, at least one; got "
                f"{len(terms)} operators and {len(coefficients)} coefficients."
            )
        if not all(math.isfinite(number) for number in (*coefficients, shift)):
            raise ValueError(
                f"A combination needs finite coefficients, got {list(coefficients)} and a shift of "
                f"{shift}."
            )
        first = terms[0]
        for term in terms:
            check_is_operator(term)
            if (term.n, term.dtype, term.device) != (first.n, first.dtype, first.device):
                raise ValueError(
                    "Operators can be combined only where size, dtype and device agree, got n = "
                    f"{first.n} in {first.dtype} on {first.device} and n = {term.n} in "
                    f"{term.dtype} on {term.device}."
                )
            if term.space != first.space:
                raise ValueError(
                    "Operators can be combined only where their vectors are cut over the same "
                    f"processes in the same way, got {first.num_local} and {term.num_local} "
                    f"entries of {term.n} in this process. Build all with one mesh, or all without "
                    "one."
                )
        self.n, self.dtype, self.device = first.n, first.dtype, first.device
        self.shift = float(shift)
        # Flattened, so that a sum of sums costs no extra pass over vectors.
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
        # Triangle inequality: |sum c_i e_i| <= sum |c_i| |e_i|.
        self.error_estimate = sum(
            abs(coefficient) * term.error_estimate for term, coefficient in kept
        )
        self._space = first.space
        self.support = (
            None if self.shift else union_of_supports([term.support_runs for term in self.terms])
        )
        self._num_unused = count_unused(self._space, self.support_runs)

    @property
    def space(self) -> VectorSpace:
        return self._space

    @property
    def num_unused(self) -> int:
        return self._num_unused

    @property
    def checked(self) -> str:
        """Join what the terms say, each sentence once."""
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
    """Average operators, such as the Hessians of a data set's batches.

    Args:
        operators: Operators of one size, dtype and device.
        weights: A number >= 0 for each operator; they are divided by their sum, which must be
            positive. Equal by default.

    Raises:
        ValueError: If there is no operator, the operators do not go together, or the weights are no
            weights.

    Examples:
        >>> import torch, landscape
        >>> from landscape.linalg import DenseOperator
        >>> values = torch.tensor([5.0, 3.0, 1.0, -1.0, -2.0], dtype=torch.float64)
        >>> A = DenseOperator(torch.diag(values))
        >>> B = landscape.average([A, -A], weights=[3, 1])
        >>> landscape.eigsh(B, k=1).values
        tensor([2.5000], dtype=torch.float64)
    """
    terms = list(operators)
    return Combination(terms, normalized_weights(len(terms), weights))


def normalized_weights(count: int, weights: Sequence[float] | None) -> list[float]:
    """Scale weights to sum to 1; equal weights if none are given.

    Raises:
        ValueError: If there are not `count` weights, one is negative or not finite, or their sum is
            0.
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
            f"An average of {count} operators needs {count} finite weights >= 0 that are not all "
            f"0, got {given}."
        )
    return [weight / total for weight in given]


def shifted(A: SymmetricOperator, sigma: float) -> Combination:
    """Build A + sigma I: same eigenvectors, every eigenvalue larger by sigma.

    Raises:
        ValueError: If sigma is not finite.

    Examples:
        >>> import torch, landscape
        >>> from landscape.linalg import DenseOperator
        >>> values = torch.tensor([5.0, 3.0, 1.0, -1.0, -2.0], dtype=torch.float64)
        >>> A = DenseOperator(torch.diag(values))
        >>> landscape.eigsh(landscape.shifted(A, 10.0), k=1).values
        tensor([15.0000], dtype=torch.float64)
    """
    return Combination([A], [1.0], shift=sigma)


def union_of_supports(supports: Sequence[Coordinates | None]) -> Coordinates | None:
    """Unite supports.

    None if there is none, or if one of them is None, which means everything.
    """
    known = [support for support in supports if support is not None]
    return Coordinates.union(known) if known and len(known) == len(supports) else None


def count_unused(space: VectorSpace, support: Coordinates | None) -> int:
    """Count the entries of the whole vector outside of a support.

    The support is that of this process. Collective where the space is cut.
    """
    return 0 if support is None else space.n - space.restricted(support).n


def said_once(texts: Iterable[str]) -> str:
    """Join the `checked` texts of operators or results, each sentence once."""
    return "; ".join(dict.fromkeys(said for text in texts for said in text.split("; ") if said))


_Options = ParamSpec("_Options")
_Result = TypeVar("_Result")


def together(
    solver: "Callable[Concatenate[SymmetricOperator, _Options], _Result]",
) -> "Callable[Concatenate[SymmetricOperator, _Options], _Result]":
    """Make a solver fail in all processes if it fails in one.

    See `VectorSpace.together`.
    """

    @wraps(solver)
    def run(A: SymmetricOperator, *args: _Options.args, **options: _Options.kwargs) -> _Result:
        # The solver itself refuses what is no operator.
        if not isinstance(A, SymmetricOperator):
            return solver(A, *args, **options)
        with A.space.together():
            return solver(A, *args, **options)

    return run


def check_is_operator(A: object) -> None:
    """Refuse a matrix in the place of an operator.

    Raises:
        ValueError: If `A` is no SymmetricOperator.
    """
    if not isinstance(A, SymmetricOperator):
        raise ValueError(
            f"This needs a SymmetricOperator, got a {type(A).__name__}: wrap a symmetric torch "
            "matrix as DenseOperator(matrix), or give the operator of a model, such as "
            "landscape.hessian(...)."
        )


def refuse_cut(A: SymmetricOperator, what: str) -> None:
    """Refuse an operator that is cut over several processes.

    For functions that need whole vectors.

    Raises:
        ValueError: If it is.
    """
    if not A.space.is_whole:
        raise ValueError(
            f"{what}: the vectors of this {type(A).__name__} are cut over several processes, "
            f"{A.num_local:,} of {A.n:,} entries here, so there are no whole ones to work on. Use "
            "eigsh, density or trace, which work on cut vectors, or build the operator in one "
            "process, without a mesh."
        )


def check_num_pairs(A: SymmetricOperator, k: int) -> None:
    """Refuse a number of eigenpairs that A does not have, and non-operators.

    Raises:
        ValueError: If `A` is no SymmetricOperator, or `k` no integer from 1 to its dimension.
    """
    check_is_operator(A)
    if not isinstance(k, Integral):
        raise ValueError(f"k must be an integer, got {k!r}.")
    if not 1 <= k <= A.n:
        raise ValueError(f"k must be between 1 and the operator's dimension {A.n}, got {k}.")


def seeded(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Create a generator with a fixed seed.

    It is the only source of randomness in this package.
    """
    return torch.Generator(device=device).manual_seed(seed)
