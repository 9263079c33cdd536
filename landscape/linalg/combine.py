"""Operators made of operators: sums, multiples, averages and shifts, and the rows and columns of some coordinates.

Nothing is formed: a product with the combination is the combination of products.
Knows matrices, not networks. Shapes: n = dimension of the operators, s = number of chosen coordinates, k = vectors.
"""

import math
from collections.abc import Iterable, Sequence
from numbers import Real

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from landscape.linalg.operator import SymmetricOperator, check_is_operator, said_once


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

    def __init__(self, terms: Sequence[SymmetricOperator], coefficients: Sequence[float], *, shift: float = 0.0) -> None:
        if not terms or len(terms) != len(coefficients):
            raise ValueError(
                f"A combination needs as many coefficients as operators, at least one; got {len(terms)} operators and "
                f"{len(coefficients)} coefficients."
            )
        if not all(math.isfinite(number) for number in (*coefficients, shift)):
            raise ValueError(f"A combination needs finite coefficients, got {list(coefficients)} and a shift of {shift}.")
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
                pairs += [(part, coefficient * factor) for part, factor in zip(term.terms, term.coefficients)]
            else:
                pairs.append((term, float(coefficient)))
        kept = [(term, coefficient) for term, coefficient in pairs if coefficient != 0]
        self.terms = tuple(term for term, _ in kept)
        self.coefficients = tuple(coefficient for _, coefficient in kept)
        self.error_estimate = sum(abs(coefficient) * term.error_estimate for term, coefficient in kept)
        self.support = None if self.shift else union_of_supports([term.support for term in self.terms])

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


class Restriction(SymmetricOperator):
    """The rows and columns of A in chosen coordinates: the operator seen by vectors that are zero elsewhere.

    The restriction of a Hessian to the coordinates of a module is the Hessian of the loss by that module's parameters.

    Args:
        A: The whole operator.
        rows: Indices of the chosen coordinates, each once; their order is that of the restriction.

    Attributes:
        whole, rows: A and the indices.

    Raises:
        ValueError: If A is no operator, the indices are no vector of int64, one is out of range, or one is there twice.
    """

    def __init__(self, A: SymmetricOperator, rows: Int64[Tensor, " s"]) -> None:
        check_is_operator(A)
        if rows.ndim != 1 or rows.dtype != torch.int64:
            raise ValueError(f"The chosen coordinates must be a vector of int64 indices, got {rows.dtype} {tuple(rows.shape)}.")
        if len(rows) and not (0 <= int(rows.min()) and int(rows.max()) < A.n):
            raise ValueError(f"The chosen coordinates must lie in 0..{A.n - 1}, got {int(rows.min())} to {int(rows.max())}.")
        # Ascending indices need no sorting to be seen as different.
        if not bool((rows[1:] > rows[:-1]).all()) and len(rows.unique()) < len(rows):
            raise ValueError("A coordinate was chosen twice; its row would stand in the restriction twice. Give each index once.")
        self.whole = A
        self.rows = rows.to(A.device)
        self.n, self.dtype, self.device = len(rows), A.dtype, A.device
        self.error_estimate = A.error_estimate
        if A.support is not None and A.support is not rows:
            inside = torch.isin(self.rows, A.support)
            # Where nothing is inside all is zero, but a solver needs a coordinate to begin with.
            self.support = inside.nonzero()[:, 0] if bool(inside.any()) and not bool(inside.all()) else None

    @property
    def checked(self) -> str:
        """What the whole operator says."""
        return self.whole.checked

    def matmat(self, V: Float[Tensor, "s k"]) -> Float[Tensor, "s k"]:
        return (self.whole @ self.extend(V)).index_select(0, self.rows)

    def product_errors(self, v: Float[Tensor, " s"]) -> Float[Tensor, " s"]:
        return self.whole.product_errors(self.extend(v[:, None])[:, 0]).index_select(0, self.rows)

    def extend(self, V: Float[Tensor, "s k"]) -> Float[Tensor, "n k"]:
        """The same vectors as vectors of the whole operator, zero in the coordinates that were not chosen."""
        whole = torch.zeros(self.whole.n, V.shape[1], dtype=V.dtype, device=V.device)
        return whole.index_copy_(0, self.rows, V)


def average(operators: Iterable[SymmetricOperator], *, weights: Sequence[float] | None = None) -> Combination:
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
    if len(given) != count or not all(math.isfinite(weight) and weight >= 0 for weight in given) or total == 0:
        raise ValueError(f"An average of {count} operators needs {count} finite weights >= 0 that are not all 0, got {given}.")
    return [weight / total for weight in given]


def shifted(A: SymmetricOperator, sigma: float) -> Combination:
    """A + sigma I: the same eigenvectors, every eigenvalue larger by sigma.

    Raises:
        ValueError: If sigma is not finite.
    """
    return Combination([A], [1.0], shift=sigma)


def restricted(A: SymmetricOperator, rows: Int64[Tensor, " s"]) -> Restriction:
    """The rows and columns of A in the coordinates `rows`; see `Restriction`."""
    return Restriction(A, rows)


def multiple(A: SymmetricOperator, factor: object) -> Combination:
    """factor * A, or NotImplemented where the factor is no real number, as Python's operators want it."""
    return Combination([A], [float(factor)]) if isinstance(factor, Real) else NotImplemented


def union_of_supports(supports: Sequence[Int64[Tensor, " s"] | None]) -> Int64[Tensor, " s"] | None:
    """The coordinates in any of the supports, ascending; None if there is none, or as soon as one of them is everything."""
    known = [support for support in supports if support is not None]
    return torch.cat(known).unique() if known and len(known) == len(supports) else None
