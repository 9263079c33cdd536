"""Spectral densities and certified counts as torch tensors; probed.py makes the estimates.

An estimate is no certificate. "At least j eigenvalues are negative" is proved by Ritz values
(`EigenPairs.ritz`); the estimates here say "about N".
Knows matrices, not networks: imports only torch, numpy and landscape.linalg.
Shapes: n = dimension of an operator, b = operators, p = probes over all operators, m = nodes,
c = eigenvalues known exactly, g = grid points.
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
    r"""Quadratures of random probes, which describe all eigenvalues together.

    They are stored raw: drawing smooths them.

    The estimates are those of `ProbedSpectrum`, where their errors are derived.

    Attributes:
        nodes: (p, m) Ritz values; rows with fewer end in NaN.
        weights: (p, m) their weights, which sum to 1 in every row; NaN likewise.
        n: Dimension, the same for all operators.
        operators: (p,) index of the operator that each probe saw.
        remainders: (p,) the off-diagonal entry that would go on with the tridiagonal matrix; NaN
            where it was not kept.
        exact: (b, c) eigenvalues that are known one by one and seen by no probe; rows with fewer
            end in NaN.
        exact_residuals: (b, c) residual norms ||A v - value v|| of those.
        num_zeros: (b,) eigenvalues that are zero by structure, beside all others.
        resolution: Eigenvalues nearer to zero than this cannot be told from it: they count as zero,
            not as negative.
        rounding: Unit of rounding of the products.
        num_matvecs: Products spent, where that was counted.
        orthogonality_defect: The largest |v_i^T v_j - delta_ij| in any Krylov basis, where it was
            measured; at the level of rounding no eigenvalue has a spurious copy.
        checked: What the operators say of their products; see `SymmetricOperator.checked`.

    Examples:
        >>> import torch, landscape
        >>> from landscape.linalg import DenseOperator
        >>> values = torch.tensor([5.0, 3.0, 1.0, -1.0, -2.0], dtype=torch.float64)
        >>> A = DenseOperator(torch.diag(values))
        >>> density = landscape.density(A, num_matvecs=5)
        >>> density.n, round(density.trace().value, 6)
        (5, 6.0)
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
        """Collect the quadratures of `eigsh`, one or more for each operator.

        Args:
            quadratures: Of random starts that are independent of each other. A warm start is none.
                Each of at least 4 nodes, or of as many as its operator has dimensions outside of
                the zeros: with fewer the error is unknown.
            n: Dimension of every operator.
            dtype: The dtype of the products; it decides what counts as zero: 64 units of rounding
                of the largest node.
            operators: Index of each quadrature's operator; 0, 1, 2, ... by default, an operator for
                each.

        Raises:
            ValueError: If there is no quadrature, or one has too few nodes, or `operators` are not
                as many, or leave out a number.
        """
        rules = [
            (rule.nodes.double().cpu().numpy(), rule.weights.double().cpu().numpy())
            for rule in quadratures
        ]
        return cls.of(
            ProbedSpectrum.from_rules(
                rules, n, rounding=float(torch.finfo(dtype).eps), operators=operators
            )
        )

    @classmethod
    def of(cls, spectrum: ProbedSpectrum) -> "SpectralDensity":
        """Convert a ProbedSpectrum to tensors."""
        arrays: dict[str, Any] = {
            name: torch.from_numpy(getattr(spectrum, name)) for name in _ARRAYS
        }
        return cls(
            **arrays, n=spectrum.n, resolution=spectrum.resolution, rounding=spectrum.rounding
        )

    @classmethod
    def pooled(cls, densities: Sequence["SpectralDensity"]) -> "SpectralDensity":
        """Combine the densities of several operators of one dimension.

        Each operator keeps its own probes.

        Raises:
            ValueError: If there is none, or the dimensions differ.
        """
        if len({density.n for density in densities}) != 1:
            raise ValueError(
                f"densities must be of one dimension, got {[density.n for density in densities]}."
            )
        starts = np.cumsum([0, *(density.num_operators for density in densities)])
        defects = [
            density.orthogonality_defect
            for density in densities
            if density.orthogonality_defect is not None
        ]
        products = [density.num_matvecs for density in densities if density.num_matvecs is not None]
        return cls(
            nodes=pad([row for density in densities for row in density.nodes]),
            weights=pad([row for density in densities for row in density.weights]),
            n=densities[0].n,
            operators=torch.cat(
                [density.operators + int(start) for density, start in zip(densities, starts)]
            ),
            remainders=torch.cat([density.remainders for density in densities]),
            exact=pad([row for density in densities for row in density.exact]),
            exact_residuals=pad([row for density in densities for row in density.exact_residuals]),
            num_zeros=torch.cat([density.num_zeros for density in densities]),
            resolution=max(density.resolution for density in densities),
            rounding=max(density.rounding for density in densities),
            num_matvecs=sum(products) if len(products) == len(densities) else None,
            orthogonality_defect=max(defects) if len(defects) == len(densities) else None,
            checked=said_once(density.checked for density in densities),
        )

    def by_operator(self) -> list["SpectralDensity"]:
        """Split into the density of each operator; the inverse of `pooled`.

        What all operators share is repeated in each.

        Products were counted together: they are shared out evenly, and what is left over stands
        with the first.
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
        counts = (
            f"{self.num_probes} probes{operators}, {int(torch.isfinite(self.exact).sum())} exact "
            "eigenvalues"
        )
        checked = f", {self.checked}" if self.checked else ""
        return (
            f"SpectralDensity(n={self.n}, {counts}, trace {self.trace()}, negative share "
            f"{self.negative_share()}{checked})"
        )

    @cached_property
    def probed(self) -> ProbedSpectrum:
        """Convert to NumPy arrays, from which the estimates are computed."""
        arrays = {name: getattr(self, name).numpy() for name in _ARRAYS}
        return ProbedSpectrum(
            **arrays, n=self.n, resolution=self.resolution, rounding=self.rounding
        )

    def trace(self) -> Estimate:
        """Estimate the sum of all eigenvalues."""
        return self.probed.trace()

    def trace_per_parameter(self) -> Estimate:
        """Estimate the mean eigenvalue."""
        return self.probed.trace_per_parameter()

    def sum_of_squares(self) -> Estimate:
        """Estimate the sum of squared eigenvalues: the squared Frobenius norm."""
        return self.probed.sum_of_squares()

    def num_negative(self) -> Estimate:
        """Estimate how many eigenvalues are negative.

        See `ProbedSpectrum.num_negative`.
        """
        return self.probed.num_negative()

    def negative_share(self) -> Estimate:
        """Divide `num_negative` by the number of all eigenvalues, n."""
        return self.probed.negative_share()

    def negative_mass(self) -> Estimate:
        """Estimate the negative eigenvalues' share of the sum of all |lambda|.

        NaN if all are zero.
        """
        return self.probed.negative_mass()

    def cumulative(self, grid: Float[np.ndarray, " g"]) -> Estimate:
        """Estimate the share of the eigenvalues up to each grid point.

        See `ProbedSpectrum.cumulative`.
        """
        return self.probed.cumulative(grid)

    def density(self, grid: Float[np.ndarray, " g"], *, width: float) -> Estimate:
        """Estimate the density at the grid points under a Gaussian kernel.

        See `ProbedSpectrum.density`.
        """
        return self.probed.density(grid, width=width)

    def mean(self, function: Callable[[np.ndarray], np.ndarray]) -> Estimate:
        """Average a function over all n eigenvalues; see `ProbedSpectrum.mean`."""
        return self.probed.mean(function)

    def measure(self) -> tuple[Float[np.ndarray, " q"], Float[np.ndarray, " q"]]:
        """Return the estimated eigenvalue distribution without smoothing.

        Ascending points, and the share of the eigenvalues at each.
        """
        return self.probed.measure()


@dataclass(frozen=True)
class NegativeCounts:
    """Two answers to "how many eigenvalues are negative?", proved and estimated.

    They must not be confused.

    Attributes:
        certified: At least so many are: proved by Ritz values beyond rounding.
        estimated: About so many are, as random probes suggest.
        n: Of so many eigenvalues.

    Examples:
        >>> import torch, landscape
        >>> from landscape.linalg import DenseOperator
        >>> values = torch.tensor([5.0, 3.0, 1.0, -1.0, -2.0], dtype=torch.float64)
        >>> A = DenseOperator(torch.diag(values))
        >>> pairs, density = landscape.eigsh(A, k=1), landscape.density(A, num_matvecs=5)
        >>> landscape.NegativeCounts.of(pairs, density)
        NegativeCounts(certified: at least 2; estimated: about 2 ± 0 (probes 0); of 5)
    """

    certified: int
    estimated: Estimate
    n: int

    @classmethod
    def of(cls, pairs: EigenPairs, density: SpectralDensity) -> "NegativeCounts":
        """Combine the results for one operator.

        Raises:
            ValueError: If the pairs come from a method without Ritz values, or the density is of
                several operators.
        """
        if pairs.ritz is None:
            raise ValueError(
                "pairs must come from `eigsh`: power iteration has no Ritz values, so it certifies "
                "no count."
            )
        if density.num_operators != 1:
            raise ValueError(
                "density must be of the operator of the pairs alone, got one of "
                f"{density.num_operators}."
            )
        return cls(certified=pairs.ritz.num_negative, estimated=density.num_negative(), n=density.n)

    def __repr__(self) -> str:
        return (
            f"NegativeCounts(certified: at least {self.certified}; estimated: about "
            f"{self.estimated!r}; of {self.n})"
        )


def pad(rows: Sequence[Float[Tensor, " m"]]) -> Float[Tensor, "p m"]:
    """Stack rows of different lengths in a float64 matrix padded with NaN."""
    longest = max(map(len, rows), default=0)
    out = torch.full((len(rows), longest), math.nan, dtype=torch.float64)
    for target, row in zip(out, rows):
        target[: len(row)] = row
    return out
