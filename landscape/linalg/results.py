"""Results of eigensolvers: eigenpairs with their certificates, Ritz values and quadratures.

Knows numbers, not operators: imports only torch and landscape.linalg.missed.
Shapes: n = dimension of the operator, k = number of eigenpairs, m = number of Ritz values.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from landscape.linalg.missed import MissedLook


@dataclass(frozen=True)
class Quadrature:
    """Gauss quadrature of the operator's spectral measure seen from one random unit vector.

    Attributes:
        nodes: Ritz values of the Krylov space of that vector (m,), ascending; in the operator's
            unit.
        weights: Squared first components of the eigenvectors of the tridiagonal matrix (m,); they
            sum to 1.

    For a start vector drawn uniformly from the sphere, n * sum(weights * f(nodes)) is an unbiased
    estimate of trace f(A) for polynomials f up to degree 2m - 1.

    Source: Golub & Meurant, Matrices, Moments and Quadrature (2010), chapter 6.
    """

    nodes: Float[Tensor, " m"]
    weights: Float[Tensor, " m"]


@dataclass(frozen=True)
class RitzValues:
    """The eigenvalues of V^T A V for a Krylov basis V (n, m).

    They describe both ends of the spectrum as far as the Krylov space shows them.

    Attributes:
        values: (m,), ascending, in the operator's unit.
        norms: (m,) bounds of ||A v - value v||: an eigenvalue of A lies within `norms` of each
            value.
        rounding: Bound of what rounding can have done to a value, in the operator's unit.
        orthogonality_defect: max |V^T V - I|, computed from the basis: far below 1, so no value is
            a spurious copy of another.
    """

    values: Float[Tensor, " m"]
    norms: Float[Tensor, " m"]
    rounding: float
    orthogonality_defect: float

    @property
    def num_negative(self) -> int:
        """Count the certified negative eigenvalues of A, copies included.

        A lower bound of their number.

        No residual is needed for it: x^T A x < 0 on a subspace of dimension j proves j negative
        eigenvalues.

        Source: Cauchy's interlacing theorem; Parlett, The Symmetric Eigenvalue Problem (1998),
        section 10.1.
        """
        return int(torch.count_nonzero(self.values < -self.rounding))

    @property
    def num_positive(self) -> int:
        """Count the certified positive eigenvalues; see `num_negative`."""
        return int(torch.count_nonzero(self.values > self.rounding))

    def end(self, which: str, k: int) -> tuple[Float[Tensor, " j"], Float[Tensor, " j"]]:
        """Return the k outermost values at one end, with relative residuals.

        The outermost comes first. All values where there are fewer than k. Residuals are fractions
        of the values.

        Args:
            which: "LA" for the largest, "SA" for the smallest.
        """
        values, norms = (
            (self.values, self.norms)
            if which == "SA"
            else (self.values.flip(0), self.norms.flip(0))
        )
        values, norms = values[:k], norms[:k]
        return values, torch.where(norms > 0, norms / values.abs(), 0.0)


@dataclass(frozen=True)
class EigenPairs:
    """Eigenvalues with their certificates.

    Attributes:
        values: (k,) Ritz values, ordered as `which` asks, the most wanted first.
        vectors: (n, k) orthonormal Ritz vectors, or None where they were not asked for.
        residuals: (k,) ||A v - value v|| / |value|. An eigenvalue of A lies within
            residual * |value| of the value.
        converged: (k,) whether the pair met the tolerance. Never true for a pair that did not.
        num_matvecs: Products with A that were spent.
        copies_checked: Whether the search for further copies of multiple eigenvalues, which one
            Krylov chain cannot see, went on until a missed one would have been detected with 99 %
            probability. Where it is false, the set of values is that of the top k only if none of
            them is multiple, or as far as a shorter search could tell.
        settled: Whether no other Ritz value can still belong among the values: each, with its
            bound, stays below the last of them, but for what the tolerance leaves open. Never true
            of a method that keeps no other Ritz values.
        missed: Where a further eigenvalue may have been missed, and with what probability; None
            where no look was made: for n <= 1000, from a start that was not random, where the
            values are not settled, or by another method.
        value_bounds: (k,) bounds of |lambda - value| in the operator's unit, quadratic in the
            residuals and at most residual * |value|; None where the method keeps no other Ritz
            values. They assume that the eigenvalues of A on the complement of the Ritz vectors lie
            within the residuals of the other values, or in the hull of the intervals value ±
            residual norm of the unwanted Ritz values: that nothing which the Krylov space has not
            seen lies beyond.
        quadrature: Nodes and weights of the same Krylov space, where the method gives them.
        ritz: All Ritz values of the same Krylov space, where the method gives them: both ends, and
            certified counts.
        checked: What the operator says of its products, such as "operator checked: product within
            2.1e-08 ... of central differences"; "" where it says nothing.

    Examples:
        >>> import torch, landscape
        >>> from landscape.linalg import DenseOperator
        >>> values = torch.tensor([5.0, 3.0, 1.0, -1.0, -2.0], dtype=torch.float64)
        >>> A = DenseOperator(torch.diag(values))
        >>> pairs = landscape.eigsh(A, k=2)
        >>> pairs.values
        tensor([5.0000, 3.0000], dtype=torch.float64)
        >>> bool((pairs.residuals < 1e-12).all()), pairs.converged.tolist()
        (True, [True, True])
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
    missed: MissedLook | None = None
    value_bounds: Float[Tensor, " k"] | None = None

    def __repr__(self) -> str:
        rows = ", ".join(
            f"{_with_bound(value, abs(value) * residual)}{'' if done else ' (not converged)'}"
            for value, residual, done in zip(
                self.values.tolist(), self.residuals.tolist(), self.converged.tolist()
            )
        )
        doubt = "" if self.settled or self.ritz is None else ", another value may belong among them"
        missed = f", {self.missed}" if self.missed is not None else ""
        checked = f", {self.checked}" if self.checked else ""
        return f"EigenPairs([{rows}], num_matvecs={self.num_matvecs}{doubt}{missed}{checked})"


def _with_bound(value: float, bound: float) -> str:
    """Write a value and its bound in few digits.

    The printed interval still holds what the bound holds.
    """
    if not (math.isfinite(value) and math.isfinite(bound)) or bound == 0:
        # A relative residual is undefined for a value of zero.
        return f"{value:.6g} ± {'unknown' if math.isnan(bound) else f'{bound:.1g}'}"
    # As many digits as the bound justifies, at least 6; the rounding of the value is added to the
    # bound.
    digits = max(6, min(17, math.ceil(math.log10(abs(value) / bound)) + 1)) if value else 6
    shown = f"{value:.{digits}g}"
    most = bound + abs(float(shown) - value)
    exponent = math.floor(math.log10(most))
    return f"{shown} ± {math.ceil(most / 10.0**exponent * (1 - 1e-12)) * 10.0**exponent:.1g}"
