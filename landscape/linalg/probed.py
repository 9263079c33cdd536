"""Sums over whole spectra and their densities, from random probes, with their errors.

The only place where traces, counts and shares of a spectrum are computed, whatever prints them. An
estimate has three errors, and each is reported: the probes are few, the operators are a sample (one
per mini-batch), and a quadrature does not fix where the measure steps.
Knows numbers, not operators: imports only numpy, scipy and landscape.linalg, no torch.
Shapes: n = dimension of an operator, b = operators, p = probes over all operators, m = nodes,
c = eigenvalues known exactly, g = grid points.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from landscape.linalg import quadrature_bounds as bounds
from landscape.linalg.estimate import Estimate, Sums, share_error
from landscape.linalg.rules import Rule, padded, without_zero_block
from landscape.threads import single_blas_thread

_Function = Callable[[np.ndarray], np.ndarray]
# m nodes integrate polynomials up to the degree 2m - 1. The variance of a sum of squares has degree
# 4 and its skewness 6: with fewer nodes an error is not small but unknown, and comes out as zero
# from a single one.
MIN_NODES = 4


@dataclass(frozen=True, eq=False, kw_only=True)
class ProbedSpectrum:
    r"""Quadratures of random probes of the spectra of some operators.

    The attributes are those of `SpectralDensity`.

    Each operator's eigenvalues are of three kinds: exact ones, a block that is zero, and the rest,
    of which every probe is a uniformly random unit vector. For such a vector of length d and a
    function f,

        E v^T f(A) v = mu_1   and   Var v^T f(A) v = 2 (mu_2 - mu_1^2) / (d + 2),
        where mu_k = trace f(A)^k / d,

    and the same quadrature that gives mu_1 gives mu_2: even a single probe yields its own standard
    error.

    Source: Ubaru, Chen & Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature
    (2017); moments of a uniform unit vector: Fang, Kotz & Ng, Symmetric Multivariate and Related
    Distributions (1990), section 3.1.
    """

    nodes: Float[np.ndarray, "p m"]
    weights: Float[np.ndarray, "p m"]
    n: int
    operators: Int[np.ndarray, " p"]
    remainders: Float[np.ndarray, " p"]
    exact: Float[np.ndarray, "b c"]
    exact_residuals: Float[np.ndarray, "b c"]
    num_zeros: Int[np.ndarray, " b"]
    resolution: float
    rounding: float

    @classmethod
    def from_rules(
        cls,
        rules: Sequence[Rule],
        n: int,
        *,
        rounding: float,
        operators: Sequence[int] | None = None,
    ) -> "ProbedSpectrum":
        """Collect the quadratures of random starts.

        Arguments and errors are those of `SpectralDensity.from_quadratures`.
        """
        if not rules:
            raise ValueError("quadratures must be at least one, got none.")
        owners = list(range(len(rules))) if operators is None else list(operators)
        if len(owners) != len(rules) or set(owners) != set(range(max(owners, default=0) + 1)):
            raise ValueError(
                f"operators must number {len(rules)} quadratures from 0 without gaps, got {owners}."
            )
        parts = [without_zero_block(rule, n) for rule in rules]
        for index, (nodes, _, num_zeros) in enumerate(parts):
            if not has_enough_nodes(len(nodes), n - num_zeros):
                raise ValueError(
                    f"quadrature {index} has {len(nodes)} nodes, but takes at least {MIN_NODES} "
                    "to know its own error. Spend more products on it."
                )
        zeros = dict(zip(owners, (part[2] for part in parts)))
        nodes, weights = padded([part[0] for part in parts]), padded([part[1] for part in parts])
        nothing = np.empty((len(zeros), 0))
        return cls(
            nodes=nodes,
            weights=weights,
            n=n,
            operators=np.array(owners),
            # A rule of as many nodes as there are dimensions is the measure itself.
            remainders=np.array(
                [0.0 if len(x) == n - num_zeros else math.nan for x, _, num_zeros in parts]
            ),
            exact=nothing,
            exact_residuals=nothing,
            num_zeros=np.array([zeros[index] for index in range(len(zeros))]),
            resolution=64 * rounding * float(np.nanmax(np.abs(nodes))),
            rounding=rounding,
        )

    def of_operators(self, chosen: Sequence[int]) -> "ProbedSpectrum":
        """Select some of the operators, in the given order.

        What all operators share stays.
        """
        rows = [np.flatnonzero(self.operators == index) for index in chosen]
        order = np.concatenate(rows)
        return replace(
            self,
            nodes=self.nodes[order],
            weights=self.weights[order],
            operators=np.repeat(np.arange(len(rows)), [len(row) for row in rows]),
            remainders=self.remainders[order],
            exact=self.exact[list(chosen)],
            exact_residuals=self.exact_residuals[list(chosen)],
            num_zeros=self.num_zeros[list(chosen)],
        )

    @property
    def num_probes(self) -> int:
        return len(self.nodes)

    @property
    def num_operators(self) -> int:
        return len(self.num_zeros)

    def trace(self) -> Estimate:
        """Estimate the sum of all eigenvalues."""
        return self._sums(lambda x: x).estimate(open_low=self._slack, open_high=self._slack)

    def trace_per_parameter(self) -> Estimate:
        """Estimate the mean eigenvalue."""
        return self.trace() * (1 / self.n)

    def trace_of_each(self) -> Float[np.ndarray, " b"]:
        """Estimate the trace of each operator.

        Their mean is the value of `trace`.
        """
        return self._sums(lambda x: x).values

    def sum_of_squares(self) -> Estimate:
        """Estimate the sum of squared eigenvalues: the squared Frobenius norm."""
        sums = self._sums(np.square)
        # An exact pair leaves its residual r in the matrix, in a row and in a column: 2 |r|^2 of
        # the squared Frobenius norm are missed.
        missed = 2 * float(np.nansum(np.square(self.exact_residuals))) / self.num_operators
        slack = 16 * self.rounding * float(sums.values.mean())
        return sums.estimate(open_low=slack, open_high=missed + slack)

    def num_negative(self) -> Estimate:
        """Estimate how many eigenvalues are negative: below minus `resolution`.

        The value is the middle of what the quadratures prove for their probes. An eigenvalue that
        no probe has distinguished from zero widens [low, high], to most of n where most of the
        spectrum is near zero: then it is not known.
        """
        # Each probe bounds the share of its own measure below zero; times its dimension that is a
        # count.
        free = self._dimensions
        low, high = self._below_zero
        mean_low, mean_high = (
            float(self._averages @ low @ free) / len(free),
            float(self._averages @ high @ free) / len(free),
        )
        # An exact eigenvalue is negative for sure if its whole interval is, and possibly if a part
        # is.
        exact, doubt = self.exact, self.exact_residuals
        known = [
            float((exact + sign * doubt < -self.resolution).sum()) / len(free) for sign in (1, -1)
        ]
        middle = self.num_negative_of_each()
        size = float(free[self.operators].sum())
        spread = share_error(float(low.mean()), float(high.mean()), size) * float(free.mean())
        variances = np.full(len(free), spread**2 * len(free))
        batches = Sums(middle, variances, np.array(math.inf), np.array(0.0)).estimate()
        value = float(middle.mean())
        ends = min(value, mean_low + known[0]), max(value, mean_high + known[1])
        return Estimate(value, spread, batches.batch_error, *ends, whole=float(self.n))

    def num_negative_of_each(self) -> Float[np.ndarray, " b"]:
        """Return the middle of each operator's bracket of negative eigenvalues.

        Their mean is the value of `num_negative`.
        """
        low, high = self._below_zero
        return self._averages @ (low + high) / 2 * self._dimensions + (
            self.exact < -self.resolution
        ).sum(axis=1)

    def negative_share(self) -> Estimate:
        """Divide `num_negative` by the number of all eigenvalues, n."""
        # Exactly 1, which n / n is and n * (1 / n) need not be.
        return replace(self.num_negative() * (1 / self.n), whole=1.0)

    def negative_mass(self) -> Estimate:
        """Estimate the negative eigenvalues' share of the sum of all |lambda|.

        NaN if all are zero.
        """
        negative, size = self.negative_mass_of_each()
        total = float(size.mean())
        if total == 0:
            return Estimate(math.nan, 0.0, None, math.nan, math.nan, whole=1.0)
        share = float(negative.mean()) / total
        # To first order, the error of a ratio a / b is that of (a - (a / b) b) / b, which is a sum
        # over eigenvalues.
        errors = self._sums(lambda x: np.maximum(-x, 0) - share * np.abs(x)).estimate() * (
            1 / total
        )
        free = self._dimensions / self.num_operators
        left, right = (
            float(self._averages @ side @ free) + self._slack for side in self._open_mass
        )
        # The trace is the same wherever the quadrature is off: the positive side grows as the
        # negative one does.
        trace, mass = total - 2 * share * total, share * total
        ends = [share, *(_part_of(mass + off, trace) for off in (-left, right))]
        return Estimate(
            share, errors.probe_error, errors.batch_error, min(ends), max(ends), whole=1.0
        )

    def negative_mass_of_each(self) -> tuple[Float[np.ndarray, " b"], Float[np.ndarray, " b"]]:
        """Sum |lambda| over each operator's negative eigenvalues, and over all.

        These are numerator and denominator of the negative mass.
        """
        return self._sums(lambda x: np.maximum(-x, 0)).values, self._sums(np.abs).values

    def estimates(self) -> dict[str, Estimate]:
        """Collect the estimates that summarise a spectrum, by printed name."""
        return {
            "trace": self.trace(),
            "trace per parameter": self.trace_per_parameter(),
            "negative share": self.negative_share(),
            "negative eigenvalues": self.num_negative(),
            "negative mass": self.negative_mass(),
            "sum of squares": self.sum_of_squares(),
        }

    def cumulative(self, grid: Float[np.ndarray, " g"]) -> Estimate:
        """Estimate the share of the eigenvalues up to each grid point.

        The bounds of the estimate hold for what the probes saw.
        """
        sums = self._sums(lambda x: (x[..., None] <= grid).astype(np.float64))
        sides = np.zeros((2, self.num_probes, len(grid)))
        for row, (nodes, weights, _) in enumerate(self._rules()):
            sides[:, row] = bounds.cumulative_bounds(nodes, weights, grid)
        owners, free = self.operators, self._dimensions
        seen = np.stack(
            [
                (weights[:, None] * (nodes[:, None] <= grid)).sum(axis=0)
                for nodes, weights, _ in self._rules()
            ]
        )
        gaps = np.abs(sides - seen) * free[owners][:, None]
        below, above = np.einsum("bp,spg->sg", self._averages, gaps) / self.num_operators
        return sums.estimate(open_low=below, open_high=above) * (1 / self.n)

    def density(self, grid: Float[np.ndarray, " g"], *, width: float) -> Estimate:
        """Estimate the eigenvalue density at the grid points.

        It is per unit of eigenvalue, smoothed by a Gaussian kernel of standard deviation `width`.

        Its integral is 1. A width below the distance of the nodes shows nodes, not eigenvalues.

        Raises:
            ValueError: If width is not positive.
        """
        if not width > 0:
            raise ValueError(f"width must be > 0, got {width}.")
        scale = 1 / (width * math.sqrt(2 * math.pi))
        return self.mean(lambda x: scale * np.exp(-0.5 * ((grid - x[..., None]) / width) ** 2))

    def mean(self, function: _Function) -> Estimate:
        """Average a function over all n eigenvalues.

        Args:
            function: Takes an array of eigenvalues and returns one of the same shape, or with one
                axis more at the end. What the quadratures leave open is not bounded here: let it be
                smooth on the scale of their nodes.
        """
        return self._sums(function).estimate() * (1 / self.n)

    def measure(self) -> tuple[Float[np.ndarray, " q"], Float[np.ndarray, " q"]]:
        """Return the estimated eigenvalue distribution without smoothing.

        Ascending points, and the share of the eigenvalues at each.
        """
        there = ~np.isnan(self.nodes)
        counts = (self.weights * (self._averages.T @ self._dimensions)[:, None])[there]
        exact = self.exact[~np.isnan(self.exact)]
        points = np.concatenate([self.nodes[there], exact, np.zeros(self.num_operators)])
        counts = np.concatenate([counts, np.ones(len(exact)), self.num_zeros])
        order = np.argsort(points, kind="stable")
        kept = order[counts[order] > 0]
        return points[kept], counts[kept] / (self.n * self.num_operators)

    @cached_property
    def _slack(self) -> float:
        """Bound the effect of rounding on a sum of (absolute) eigenvalues.

        Some units for each eigenvalue, at their root mean square.
        """
        return 16 * self.rounding * math.sqrt(self.n * float(self._sums(np.square).values.mean()))

    @cached_property
    def _dimensions(self) -> Float[np.ndarray, " b"]:
        """Count each operator's eigenvalues that only its probes know."""
        known = np.count_nonzero(~np.isnan(self.exact), axis=1)
        return (self.n - self.num_zeros - known).astype(np.float64)

    @cached_property
    def _averages(self) -> Float[np.ndarray, "b p"]:
        """Build the matrix that averages over the probes of each operator."""
        # Entry (b, p) is 1 / (probes of operator b) if probe p is one of them.
        belongs = np.arange(self.num_operators)[:, None] == self.operators
        return belongs / belongs.sum(axis=1, keepdims=True)

    def _sums(self, function: _Function) -> Sums:
        """Sum a function over the spectra, with variances."""
        nodes, weights = np.nan_to_num(self.nodes), np.nan_to_num(self.weights)
        seen = function(nodes)
        centre = self._average(weights, seen)
        # Central moments of f over each probe's measure.
        offset = seen - centre[self.operators][:, None]
        # Products, since numpy's powers of 3 and 4 take ten times as long.
        square = offset * offset
        second, third, fourth = (
            self._average(weights, power) for power in (square, square * offset, square * square)
        )
        shape = (-1,) + (1,) * (second.ndim - 1)
        free = self._dimensions.reshape(shape)
        # Var = 2 (mu_2 - mu_1^2) / (d + 2) for a probe, over p probes: division by (d + 2) p / 2.
        # The estimated mean itself uses up one of these degrees of freedom, hence - 1.
        size = (free + 2) * np.count_nonzero(self._averages, axis=1).reshape(shape) / 2
        variances = free**2 * second / np.maximum(size - 1, 0.5)
        # Satterthwaite: a sum of variances with the variance `spread` has 2 total^2 / spread
        # degrees of freedom.
        spread = np.sum((free**2 / size) ** 2 * np.maximum(fourth - second**2, 0) / size, axis=0)
        total = np.sum(free**2 / size * second, axis=0)
        freedom = np.full(total.shape, math.inf)
        np.divide(2 * total**2, spread, out=freedom, where=spread > 0)
        # Far from all nodes a kernel is so small that its cube underflows.
        skewness, cube = np.zeros(total.shape), total**1.5
        np.divide(np.sum(free**3 / size**2 * third, axis=0), cube, out=skewness, where=cube > 0)
        # A positive semidefinite form of a random vector has at least one degree of freedom.
        freedom = np.maximum(freedom, self.num_probes)
        return Sums(free * centre + self._known(function, shape), variances, freedom, skewness)

    def _average(self, weights: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Apply every probe's quadrature, then average over each operator's probes."""
        return self._averages @ np.einsum("pm,pm...->p...", weights, values)

    def _known(self, function: _Function, shape: tuple[int, ...]) -> np.ndarray:
        """Sum a function over the exact eigenvalues and the zeros."""
        exact = self.exact
        there = ~np.isnan(exact)
        values = function(np.nan_to_num(exact))
        known = (values * there.reshape(there.shape + (1,) * (values.ndim - 2))).sum(axis=1)
        return known + self.num_zeros.reshape(shape) * function(np.zeros((1, 1)))[0]

    def _rules(self) -> list[tuple[np.ndarray, np.ndarray, float | None]]:
        """Collect nodes, weights and remainder of every probe."""
        rules = []
        for nodes, weights, remainder in zip(self.nodes, self.weights, self.remainders.tolist()):
            there = ~np.isnan(nodes)
            rules.append(
                (nodes[there], weights[there], None if math.isnan(remainder) else remainder)
            )
        return rules

    @cached_property
    def _below_zero(self) -> tuple[Float[np.ndarray, " p"], Float[np.ndarray, " p"]]:
        """Bound the measure that each probe has below zero."""
        # Thousands of small matrices: entering the section for each would take half of the time.
        with single_blas_thread():
            pairs = [
                bounds.mass_below(x, w, -self.resolution, remainder=rest)
                for x, w, rest in self._rules()
            ]
        low, high = np.array(pairs).T
        return low, high

    @cached_property
    def _open_mass(self) -> tuple[Float[np.ndarray, " p"], Float[np.ndarray, " p"]]:
        """Bound the error of each probe's integral of max(-x, 0).

        Returns how far the integral may lie below and above the probe's quadrature.
        """
        with single_blas_thread():
            integrals = [bounds.negative_part(x, w, remainder=rest) for x, w, rest in self._rules()]
        return (
            np.array([value - low for value, (low, _) in integrals]),
            np.array([high - value for value, (_, high) in integrals]),
        )


def has_enough_nodes(num_nodes: int, dimension: int) -> bool:
    """Tell whether a quadrature knows its own error.

    It does with `MIN_NODES` nodes, or if it is exact.
    """
    return num_nodes >= min(MIN_NODES, dimension)


def _part_of(mass: float, trace: float) -> float:
    """Convert a mass of negative eigenvalues and a trace to a share."""
    return (
        min(max(mass / (trace + 2 * mass), 0.0), 1.0)
        if 0 < mass < math.inf and trace + 2 * mass > 0
        else float(mass > 0)
    )
