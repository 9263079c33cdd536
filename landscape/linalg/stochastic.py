"""Sums over a whole spectrum, and its density, from the quadratures of a few random probes: estimates, with their errors.

An estimate is no certificate. "At least j eigenvalues are negative" is proved by Ritz values (`EigenPairs.ritz`); what stands
here says "about N, give or take". Three things keep an estimate from the truth, and each is named: the probes are few, the
operators are a sample (one per mini-batch), and a quadrature does not fix where the measure steps.
Knows matrices, not networks: imports only torch, numpy, scipy and landscape.linalg.
Shapes: n = dimension of an operator, b = operators, p = probes over all operators, m = nodes, c = eigenvalues known exactly,
g = grid points.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from landscape.linalg import bounds
from landscape.linalg.estimate import Estimate, Sums, share_error
from landscape.linalg.operator import EigenPairs, Quadrature

_Function = Callable[[np.ndarray], np.ndarray]
# m nodes integrate polynomials up to the degree 2m - 1. The variance of a sum of squares has degree 4 and its skewness 6: with
# fewer nodes an error is not small but unknown, and comes out as zero from a single one.
FEWEST_NODES = 4


@dataclass(frozen=True, eq=False, kw_only=True)
class SpectralDensity:
    r"""Raw quadratures of random probes: what is known about all eigenvalues together. Smoothing is left to the drawing.

    Each operator's eigenvalues are of three kinds: exact ones, a block that is zero, and the rest, of which every probe is a
    uniformly random unit vector. For such a vector of length d and a function f,

        E v^T f(A) v = mu_1   and   Var v^T f(A) v = 2 (mu_2 - mu_1^2) / (d + 2),   mu_k = trace f(A)^k / d,

    and the same quadrature that gives mu_1 gives mu_2: even one probe knows its own standard error.

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

    Source: Ubaru, Chen & Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature (2017); moments of a uniform unit
    vector: Fang, Kotz & Ng, Symmetric Multivariate and Related Distributions (1990), section 3.1.
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

    @classmethod
    def from_quadratures(
        cls, quadratures: Sequence[Quadrature], n: int, *, dtype: torch.dtype, operators: Sequence[int] | None = None
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
        if not quadratures:
            raise ValueError("quadratures must be at least one, got none.")
        owners = list(range(len(quadratures))) if operators is None else list(operators)
        if len(owners) != len(quadratures) or set(owners) != set(range(max(owners, default=0) + 1)):
            raise ValueError(f"operators must number {len(quadratures)} quadratures from 0 without gaps, got {owners}.")
        parts = [_without_zero_block(one, n) for one in quadratures]
        for index, (found, _, num_zeros) in enumerate(parts):
            if len(found) < min(FEWEST_NODES, n - num_zeros):
                raise ValueError(
                    f"quadrature {index} has {len(found)} nodes, but takes at least {FEWEST_NODES} to know its own error. Spend "
                    "more products on it."
                )
        zeros = dict(zip(owners, (part[2] for part in parts)))
        nodes, weights = pad([part[0] for part in parts]), pad([part[1] for part in parts])
        eps = float(torch.finfo(dtype).eps)
        return cls(
            nodes=nodes,
            weights=weights,
            n=n,
            operators=torch.tensor(owners),
            remainders=torch.full((len(parts),), math.nan, dtype=torch.float64),
            exact=torch.empty(len(zeros), 0, dtype=torch.float64),
            exact_residuals=torch.empty(len(zeros), 0, dtype=torch.float64),
            num_zeros=torch.tensor([zeros[index] for index in range(len(zeros))]),
            resolution=64 * eps * float(nodes.nan_to_num().abs().max()),
            rounding=eps,
        )

    @classmethod
    def pooled(cls, densities: Sequence["SpectralDensity"]) -> "SpectralDensity":
        """The densities of several operators of the same dimension, each with its own probes, as one.

        Raises:
            ValueError: If there is none, or the dimensions differ.
        """
        if len({one.n for one in densities}) != 1:
            raise ValueError(f"densities must be of one dimension, got {[one.n for one in densities]}.")
        starts = np.cumsum([0, *(one.num_operators for one in densities)])
        defects = [one.orthogonality_defect for one in densities if one.orthogonality_defect is not None]
        products = [one.num_matvecs for one in densities if one.num_matvecs is not None]
        return cls(
            nodes=pad([row for one in densities for row in one.nodes]),
            weights=pad([row for one in densities for row in one.weights]),
            n=densities[0].n,
            operators=torch.cat([one.operators + int(start) for one, start in zip(densities, starts)]),
            remainders=torch.cat([one.remainders for one in densities]),
            exact=pad([row for one in densities for row in one.exact]),
            exact_residuals=pad([row for one in densities for row in one.exact_residuals]),
            num_zeros=torch.cat([one.num_zeros for one in densities]),
            resolution=max(one.resolution for one in densities),
            rounding=max(one.rounding for one in densities),
            num_matvecs=sum(products) if len(products) == len(densities) else None,
            orthogonality_defect=max(defects) if len(defects) == len(densities) else None,
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
        return f"SpectralDensity(n={self.n}, {counts}, trace {self.trace()}, negative share {self.negative_share()})"

    def trace(self) -> Estimate:
        """Sum of all eigenvalues."""
        return self._sums(lambda x: x).estimate(open_low=self._slack, open_high=self._slack)

    def sum_of_squares(self) -> Estimate:
        """Sum of the squares of all eigenvalues: the squared Frobenius norm."""
        sums = self._sums(np.square)
        # Exact eigenvectors are exact to their residuals only; both sides of the matrix hold what they leave.
        missed = 2 * float(np.nansum(np.square(self.exact_residuals.numpy()))) / self.num_operators
        slack = 16 * self.rounding * float(sums.values.mean())
        return sums.estimate(open_low=slack, open_high=missed + slack)

    def num_negative(self) -> Estimate:
        """About how many eigenvalues are negative: below minus `resolution`.

        The value is the middle of what the quadratures prove for their probes. An eigenvalue that no probe has told apart from
        zero widens [low, high], to most of n where most of the spectrum is near zero: then it is not known.
        """
        free = self._dimensions
        low, high = self._below_zero
        mean_low, mean_high = float(self._averages @ low @ free) / len(free), float(self._averages @ high @ free) / len(free)
        exact, doubt = self.exact.numpy(), self.exact_residuals.numpy()
        known = [float((exact + sign * doubt < -self.resolution).sum()) / len(free) for sign in (1, -1)]
        middle = self._averages @ (low + high) / 2 * free + (exact < -self.resolution).sum(axis=1)
        size = float(free[self.operators.numpy()].sum())
        spread = share_error(float(low.mean()), float(high.mean()), size) * float(free.mean())
        variances = np.full(len(free), spread**2 * len(free))
        batches = Sums(middle, variances, np.array(math.inf), np.array(0.0)).estimate()
        value = float(middle.mean())
        return Estimate(value, spread, batches.batch_error, min(value, mean_low + known[0]), max(value, mean_high + known[1]))

    def negative_share(self) -> Estimate:
        """`num_negative` as a share of all n eigenvalues."""
        return self.num_negative() * (1 / self.n)

    def negative_mass(self) -> Estimate:
        """Sum of |lambda| over the negative eigenvalues, as a share of the sum over all; NaN if all are zero."""
        negative, size = self._sums(lambda x: np.maximum(-x, 0)), self._sums(np.abs)
        total = float(size.values.mean())
        if total == 0:
            return Estimate(math.nan, 0.0, None, math.nan, math.nan)
        share = float(negative.values.mean()) / total
        # To first order, the error of a ratio is that of a sum.
        errors = self._sums(lambda x: np.maximum(-x, 0) - share * np.abs(x)).estimate() * (1 / total)
        free = self._dimensions / self.num_operators
        left, right = (float(self._averages @ side @ free) + self._slack for side in self._open_mass)
        # The trace is the same wherever the quadrature is off: the positive side grows as the negative one does.
        trace, mass = total - 2 * share * total, share * total
        ends = [share, *(_part_of(mass + off, trace) for off in (-left, right))]
        return Estimate(share, errors.probe_error, errors.batch_error, min(ends), max(ends))

    def cumulative(self, grid: Float[np.ndarray, " g"]) -> Estimate:
        """Share of the eigenvalues up to each grid point, between bounds that hold for what the probes saw."""
        sums = self._sums(lambda x: (x[..., None] <= grid).astype(np.float64))
        sides = np.zeros((2, self.num_probes, len(grid)))
        for row, (nodes, weights, _) in enumerate(self._rules()):
            sides[:, row] = bounds.cumulative_bounds(nodes, weights, grid)
        owners, free = self.operators.numpy(), self._dimensions
        seen = np.stack([(weights[:, None] * (nodes[:, None] <= grid)).sum(axis=0) for nodes, weights, _ in self._rules()])
        gaps = np.abs(sides - seen) * free[owners][:, None]
        below, above = np.einsum("bp,spg->sg", self._averages, gaps) / self.num_operators
        return sums.estimate(open_low=below, open_high=above) * (1 / self.n)

    def density(self, grid: Float[np.ndarray, " g"], *, width: float) -> Estimate:
        """Density at the grid points per unit of eigenvalue, smoothed by a Gaussian kernel of standard deviation `width`.

        Its integral is 1. A width below the distance of the nodes shows nodes, not eigenvalues.

        Raises:
            ValueError: If width is not positive.
        """
        if not width > 0:
            raise ValueError(f"width must be > 0, got {width}.")
        scale = 1 / (width * math.sqrt(2 * math.pi))
        return self.mean(lambda x: scale * np.exp(-0.5 * ((grid - x[..., None]) / width) ** 2))

    def mean(self, function: _Function) -> Estimate:
        """Average of a function over all n eigenvalues.

        Args:
            function: Takes an array of eigenvalues and returns one of the same shape, or with one axis more at the end. What
                the quadratures leave open is not bounded here: let it be smooth on the scale of their nodes.
        """
        return self._sums(function).estimate() * (1 / self.n)

    def measure(self) -> tuple[Float[np.ndarray, " q"], Float[np.ndarray, " q"]]:
        """The estimated distribution of eigenvalues as it stands: ascending points, and the share of eigenvalues at each."""
        there = ~np.isnan(self.nodes.numpy())
        counts = (self.weights.numpy() * (self._averages.T @ self._dimensions)[:, None])[there]
        exact = self.exact.numpy()[~np.isnan(self.exact.numpy())]
        points = np.concatenate([self.nodes.numpy()[there], exact, np.zeros(self.num_operators)])
        counts = np.concatenate([counts, np.ones(len(exact)), self.num_zeros.numpy()])
        order = np.argsort(points, kind="stable")
        kept = order[counts[order] > 0]
        return points[kept], counts[kept] / (self.n * self.num_operators)

    @cached_property
    def _slack(self) -> float:
        """What rounding can do to a sum of eigenvalues or of their sizes: some units for each, at their root mean square."""
        return 16 * self.rounding * math.sqrt(self.n * float(self._sums(np.square).values.mean()))

    @cached_property
    def _dimensions(self) -> Float[np.ndarray, " b"]:
        """Eigenvalues of each operator that only its probes know."""
        known = np.count_nonzero(~np.isnan(self.exact.numpy()), axis=1)
        return (self.n - self.num_zeros.numpy() - known).astype(np.float64)

    @cached_property
    def _averages(self) -> Float[np.ndarray, "b p"]:
        """The matrix that takes the mean over the probes of each operator."""
        belongs = np.arange(self.num_operators)[:, None] == self.operators.numpy()
        return belongs / belongs.sum(axis=1, keepdims=True)

    def _sums(self, function: _Function) -> Sums:
        """Sums of a function over the spectra."""
        nodes, weights = np.nan_to_num(self.nodes.numpy()), np.nan_to_num(self.weights.numpy())
        seen = function(nodes)
        centre = self._average(weights, seen)
        offset = seen - centre[self.operators.numpy()][:, None]
        # Products, since numpy's powers of 3 and 4 take ten times as long.
        square = offset * offset
        second, third, fourth = (self._average(weights, power) for power in (square, square * offset, square * square))
        shape = (-1,) + (1,) * (second.ndim - 1)
        free = self._dimensions.reshape(shape)
        # (d + 2) p / 2 is the number by which moments become variances of their means; the mean takes a part of one itself.
        size = (free + 2) * np.count_nonzero(self._averages, axis=1).reshape(shape) / 2
        variances = free**2 * second / np.maximum(size - 1, 0.5)
        spread = np.sum((free**2 / size) ** 2 * np.maximum(fourth - second**2, 0) / size, axis=0)
        total = np.sum(free**2 / size * second, axis=0)
        freedom = np.full(total.shape, math.inf)
        np.divide(2 * total**2, spread, out=freedom, where=spread > 0)
        # Far from all nodes a kernel is so small that its cube is none.
        skewness, cube = np.zeros(total.shape), total**1.5
        np.divide(np.sum(free**3 / size**2 * third, axis=0), cube, out=skewness, where=cube > 0)
        # A positive semidefinite form of a random vector has at least one degree of freedom.
        freedom = np.maximum(freedom, self.num_probes)
        return Sums(free * centre + self._known(function, shape), variances, freedom, skewness)

    def _average(self, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Quadrature of every probe, then the mean over the probes of each operator."""
        return self._averages @ np.einsum("pm,pm...->p...", weights, values)

    def _known(self, function: _Function, shape: tuple[int, ...]) -> np.ndarray:
        """What exact eigenvalues and the zeros contribute."""
        exact = self.exact.numpy()
        there = ~np.isnan(exact)
        values = function(np.nan_to_num(exact))
        known = (values * there.reshape(there.shape + (1,) * (values.ndim - 2))).sum(axis=1)
        return known + self.num_zeros.numpy().reshape(shape) * function(np.zeros((1, 1)))[0]

    def _rules(self) -> list[tuple[np.ndarray, np.ndarray, float | None]]:
        """Nodes, weights and remainder of every probe."""
        rules = []
        for nodes, weights, remainder in zip(self.nodes.numpy(), self.weights.numpy(), self.remainders.tolist()):
            there = ~np.isnan(nodes)
            rules.append((nodes[there], weights[there], None if math.isnan(remainder) else remainder))
        return rules

    @cached_property
    def _below_zero(self) -> tuple[Float[np.ndarray, " p"], Float[np.ndarray, " p"]]:
        """Bounds of the measure that each probe has below zero."""
        pairs = [bounds.mass_below(x, w, -self.resolution, remainder=rest) for x, w, rest in self._rules()]
        low, high = np.array(pairs).T
        return low, high

    @cached_property
    def _open_mass(self) -> tuple[Float[np.ndarray, " p"], Float[np.ndarray, " p"]]:
        """How far the integral of max(-x, 0) may lie below and above each probe's quadrature."""
        found = [bounds.negative_part(x, w, remainder=rest) for x, w, rest in self._rules()]
        return np.array([value - low for value, (low, _) in found]), np.array([high - value for value, (_, high) in found])


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
            raise ValueError("pairs must come from `eigsh`: power iteration has no Ritz values, so it certifies no count.")
        if density.num_operators != 1:
            raise ValueError(f"density must be of the operator of the pairs alone, got one of {density.num_operators}.")
        return cls(certified=pairs.ritz.num_negative, estimated=density.num_negative(), n=density.n)

    def __repr__(self) -> str:
        one = self.estimated
        return (
            f"NegativeCounts(certified: at least {self.certified}; estimated: about {one.value:.4g} ± {one.standard_error:.2g}, "
            f"quadrature leaves {one.low:.4g} to {one.high:.4g} open; of {self.n})"
        )


def pad(rows: Sequence[Float[Tensor, " m"]]) -> Float[Tensor, "p m"]:
    """Rows of different lengths as a matrix in float64, filled up with NaN."""
    longest = max(map(len, rows), default=0)
    out = torch.full((len(rows), longest), math.nan, dtype=torch.float64)
    for target, row in zip(out, rows):
        target[: len(row)] = row
    return out


def _part_of(mass: float, trace: float) -> float:
    """The share of negative mass where that mass is this and the trace that."""
    return min(max(mass / (trace + 2 * mass), 0.0), 1.0) if 0 < mass < math.inf and trace + 2 * mass > 0 else float(mass > 0)


def _without_zero_block(quadrature: Quadrature, n: int) -> tuple[Tensor, Tensor, int]:
    """Nodes and weights of the support alone, and how many eigenvalues lie outside of it.

    `SupportedPart` adds them as a node of exactly 0 whose weight is a whole number of n-ths; no probe is needed to know them.
    """
    nodes, order = quadrature.nodes.double().cpu().sort()
    weights = quadrature.weights.double().cpu()[order]
    at_zero = (nodes == 0).nonzero()[:, 0]
    if len(at_zero) and len(nodes) > 1:
        block = int(at_zero[-1])
        count = float(weights[block]) * n
        if abs(count - round(count)) < 1e-7 * max(1.0, count) and 0 < round(count) < n:
            kept = torch.arange(len(nodes)) != block
            return nodes[kept], weights[kept] / weights[kept].sum(), round(count)
    return nodes, weights, 0
