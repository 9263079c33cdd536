"""Densities of whole spectra and certified counts, as torch holds them; the estimates themselves are in probed.py.

An estimate is no certificate. "At least j eigenvalues are negative" is proved by Ritz values (`EigenPairs.ritz`); what stands
here says "about N, give or take".
Knows matrices, not networks: imports only torch, numpy and landscape.linalg.
Shapes: n = dimension of an operator, b = operators, p = probes over all operators, m = nodes, c = eigenvalues known exactly,
g = grid points.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from landscape.linalg.estimate import Estimate
from landscape.linalg.operator import said_once
from landscape.linalg.probed import ProbedSpectrum
from landscape.linalg.results import EigenPairs, Quadrature

_ARRAYS = ("nodes", "weights", "operators", "remainders", "exact", "exact_residuals", "num_zeros")


@dataclass(frozen=True, eq=False, kw_only=True)
class SpectralDensity:
    r"""Raw quadratures of random probes: what is known about all eigenvalues together. Smoothing is left to the drawing.

    The estimates are those of `ProbedSpectrum`, where their errors are derived.

    Attributes:
        nodes: (p, m) Ritz values; rows with fewer end in NaN.
        weights: (p, m) their weights, which sum to 1 in every row; NaN likewise.
        n: Dimension, the same for all operators.
        operators: (p,) index of the operator that each probe saw.
        remainders: (p,) the off-diagonal entry that would go on with the tridiagonal matrix; NaN where it was not kept.
        exact: (b, c) eigenvalues that are known one by one and seen by no probe; rows with fewer end in NaN.
        exact_residuals: (b, c) residual norms ||A v - value v|| of those.
        num_zeros: (b,) eigenvalues that are zero by structure, beside all others.
        resolution: Eigenvalues nearer to zero than this cannot be told from it: they count as zero, not as negative.
        rounding: Unit of rounding of the products.
        num_matvecs: Products spent, where that was counted.
        orthogonality_defect: The largest |v_i^T v_j - delta_ij| in any Krylov basis, where it was measured; at the level of
            rounding there can be no ghosts.
        checked: What the operators say of their products; see `SymmetricOperator.checked`.
    """

    nodes: Float[Tensor, "p m"]
    weights: Float[Tensor, "p m"]
    n: int
    operators: Int64[Tensor, " p"]
    remainders: Float[Tensor, " p"]
    exact: Float[Tensor, "b c"]
    exact_residuals: Float[Tensor, "b c"]
    num_zeros: Int64[Tensor, " b"]
    resolution: float
    rounding: float = float(np.finfo(np.float64).eps)
    num_matvecs: int | None = None
    orthogonality_defect: float | None = None
    checked: str = ""

    @classmethod
    def from_quadratures(
        cls,
        quadratures: Sequence[Quadrature],
        n: int,
        *,
        dtype: torch.dtype,
        operators: Sequence[int] | None = None,
    ) -> "SpectralDensity":
        """Take the quadratures that `eigsh` leaves, of one operator or of several, one probe each or more.

        Args:
            quadratures: Of random starts that are independent of each other. A warm start is none. Each of at least 4 nodes, or
                of as many as its operator has dimensions outside of the zeros: fewer do not know their own error.
            n: Dimension of every operator.
            dtype: Of the products; it decides what counts as zero: 64 units of rounding of the largest node.
            operators: The operator of each; 0, 1, 2, ... by default, an operator for each.

        Raises:
            ValueError: If there is no quadrature, or one has too few nodes, or `operators` are not as many, or leave out a
                number.
        """
        rules = [
            (one.nodes.double().cpu().numpy(), one.weights.double().cpu().numpy())
            for one in quadratures
        ]
        return cls.of(
            ProbedSpectrum.from_rules(
                rules, n, rounding=float(torch.finfo(dtype).eps), operators=operators
            )
        )

    @classmethod
    def of(cls, spectrum: ProbedSpectrum) -> "SpectralDensity":
        """The same numbers with tensors."""
        arrays: dict[str, Any] = {
            name: torch.from_numpy(getattr(spectrum, name)) for name in _ARRAYS
        }
        return cls(
            **arrays, n=spectrum.n, resolution=spectrum.resolution, rounding=spectrum.rounding
        )

    @classmethod
    def pooled(cls, densities: Sequence["SpectralDensity"]) -> "SpectralDensity":
        """The densities of several operators of the same dimension, each with its own probes, as one.

        Raises:
            ValueError: If there is none, or the dimensions differ.
        """
        if len({one.n for one in densities}) != 1:
            raise ValueError(
                f"densities must be of one dimension, got {[one.n for one in densities]}."
            )
        starts = np.cumsum([0, *(one.num_operators for one in densities)])
        defects = [
            one.orthogonality_defect for one in densities if one.orthogonality_defect is not None
        ]
        products = [one.num_matvecs for one in densities if one.num_matvecs is not None]
        return cls(
            nodes=pad([row for one in densities for row in one.nodes]),
            weights=pad([row for one in densities for row in one.weights]),
            n=densities[0].n,
            operators=torch.cat(
                [one.operators + int(start) for one, start in zip(densities, starts)]
            ),
            remainders=torch.cat([one.remainders for one in densities]),
            exact=pad([row for one in densities for row in one.exact]),
            exact_residuals=pad([row for one in densities for row in one.exact_residuals]),
            num_zeros=torch.cat([one.num_zeros for one in densities]),
            resolution=max(one.resolution for one in densities),
            rounding=max(one.rounding for one in densities),
            num_matvecs=sum(products) if len(products) == len(densities) else None,
            orthogonality_defect=max(defects) if len(defects) == len(densities) else None,
            checked=said_once(one.checked for one in densities),
        )

    def by_operator(self) -> list["SpectralDensity"]:
        """The density of each operator, which `pooled` makes this one of again; what all share stands with every one of them.

        Products were counted together: they are shared out evenly, and what is left over stands with the first.
        """
        parts = []
        each, rest = divmod(self.num_matvecs or 0, self.num_operators)
        for index in range(self.num_operators):
            own, here = self.operators == index, slice(index, index + 1)
            parts.append(
                replace(
                    self,
                    nodes=self.nodes[own],
                    weights=self.weights[own],
                    operators=torch.zeros(int(own.sum()), dtype=torch.int64),
                    remainders=self.remainders[own],
                    exact=self.exact[here],
                    exact_residuals=self.exact_residuals[here],
                    num_zeros=self.num_zeros[here],
                    num_matvecs=None if self.num_matvecs is None else each + rest * (index == 0),
                )
            )
        return parts

    @property
    def num_probes(self) -> int:
        return len(self.nodes)

    @property
    def num_operators(self) -> int:
        return len(self.num_zeros)

    def __repr__(self) -> str:
        operators = "" if self.num_operators == 1 else f" of {self.num_operators} operators"
        counts = f"{self.num_probes} probes{operators}, {int(torch.isfinite(self.exact).sum())} exact eigenvalues"
        checked = f", {self.checked}" if self.checked else ""
        return f"SpectralDensity(n={self.n}, {counts}, trace {self.trace()}, negative share {self.negative_share()}{checked})"

    @cached_property
    def probed(self) -> ProbedSpectrum:
        """The same numbers without torch, which know their estimates."""
        arrays = {name: getattr(self, name).numpy() for name in _ARRAYS}
        return ProbedSpectrum(
            **arrays, n=self.n, resolution=self.resolution, rounding=self.rounding
        )

    def trace(self) -> Estimate:
        """Sum of all eigenvalues."""
        return self.probed.trace()

    def trace_per_parameter(self) -> Estimate:
        """Mean eigenvalue."""
        return self.probed.trace_per_parameter()

    def sum_of_squares(self) -> Estimate:
        """Sum of the squares of all eigenvalues: the squared Frobenius norm."""
        return self.probed.sum_of_squares()

    def num_negative(self) -> Estimate:
        """About how many eigenvalues are negative; see `ProbedSpectrum.num_negative`."""
        return self.probed.num_negative()

    def negative_share(self) -> Estimate:
        """`num_negative` as a share of all n eigenvalues."""
        return self.probed.negative_share()

    def negative_mass(self) -> Estimate:
        """Sum of |lambda| over the negative eigenvalues, as a share of the sum over all; NaN if all are zero."""
        return self.probed.negative_mass()

    def cumulative(self, grid: Float[np.ndarray, " g"]) -> Estimate:
        """Share of the eigenvalues up to each grid point; see `ProbedSpectrum.cumulative`."""
        return self.probed.cumulative(grid)

    def density(self, grid: Float[np.ndarray, " g"], *, width: float) -> Estimate:
        """Density at the grid points under a Gaussian kernel; see `ProbedSpectrum.density`."""
        return self.probed.density(grid, width=width)

    def mean(self, function: Callable[[np.ndarray], np.ndarray]) -> Estimate:
        """Average of a function over all n eigenvalues; see `ProbedSpectrum.mean`."""
        return self.probed.mean(function)

    def measure(self) -> tuple[Float[np.ndarray, " q"], Float[np.ndarray, " q"]]:
        """The estimated distribution of eigenvalues as it stands: ascending points, and the share of eigenvalues at each."""
        return self.probed.measure()


@dataclass(frozen=True)
class NegativeCounts:
    """Two answers to "how many eigenvalues are negative?" that must not be taken for each other.

    Attributes:
        certified: At least so many are: proved by Ritz values beyond rounding.
        estimated: About so many are, as random probes suggest.
        n: Of so many eigenvalues.
    """

    certified: int
    estimated: Estimate
    n: int

    @classmethod
    def of(cls, pairs: EigenPairs, density: SpectralDensity) -> "NegativeCounts":
        """Of one operator.

        Raises:
            ValueError: If the pairs come from a method without Ritz values, or the density is of several operators.
        """
        if pairs.ritz is None:
            raise ValueError(
                "pairs must come from `eigsh`: power iteration has no Ritz values, so it certifies no count."
            )
        if density.num_operators != 1:
            raise ValueError(
                f"density must be of the operator of the pairs alone, got one of {density.num_operators}."
            )
        return cls(certified=pairs.ritz.num_negative, estimated=density.num_negative(), n=density.n)

    def __repr__(self) -> str:
        return f"NegativeCounts(certified: at least {self.certified}; estimated: about {self.estimated!r}; of {self.n})"


def pad(rows: Sequence[Float[Tensor, " m"]]) -> Float[Tensor, "p m"]:
    """Rows of different lengths as a matrix in float64, filled up with NaN."""
    longest = max(map(len, rows), default=0)
    out = torch.full((len(rows), longest), math.nan, dtype=torch.float64)
    for target, row in zip(out, rows):
        target[: len(row)] = row
    return out
