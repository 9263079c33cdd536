"""What a picture of whole spectral densities shows, decided before the first stroke: coordinate, kernel, curves and bands.

Numbers only, no matplotlib: the figure and the page draw the same. The kernel and its width belong to the drawing. Densities are
per unit of the drawn coordinate u = asinh(lambda / w), so that areas mean shares. Shapes: g = grid points.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from landscape.figures.asinh_axis import AsinhAxis
from landscape.figures.eigenvalue_plan import span
from landscape.figures.samples import epochs_to_draw, told_apart
from landscape.figures.style import MAX_SERIES

if TYPE_CHECKING:
    from landscape.linalg import Estimate, SpectralDensity

_GRID_POINTS = 800
# The width of the kernel, as a part of the axis: about what print shows.
_NARROWEST = 1 / 150
_BAND = 2


@dataclass(frozen=True, eq=False)
class DensitySample:
    """The spectrum of one checkpoint.

    Args:
        series, label, epoch: As in `EigenvalueSample`.
        density: What the probes saw.
        dense: All eigenvalues of each operator (b, n), where they are known.
    """

    series: str
    label: str
    epoch: int
    density: "SpectralDensity"
    dense: Float[np.ndarray, "b n"] | None = None

    @property
    def remark(self) -> str:
        """The share of negative eigenvalues as the terminal prints it: in percent with its whole standard error, or unknown."""
        return str(self.density.negative_share())


@dataclass(frozen=True, eq=False)
class DensityCurve:
    """One series at one epoch, on the grid of the plan, per unit of u.

    Args:
        value: The density.
        low, high: Ends of its band.
        exact: The exact spectrum under the same kernel, where it is known.
    """

    sample: DensitySample
    value: Float[np.ndarray, " g"]
    low: Float[np.ndarray, " g"]
    high: Float[np.ndarray, " g"]
    exact: Float[np.ndarray, " g"] | None


@dataclass(frozen=True, eq=False)
class DensityPlan:
    """Panels by epoch, texts of the legend by series, and the curves by (series, epoch).

    Args:
        grid: In u; its ends are those of the axis.
        width: Of the kernel, in u.
        floor: Where the logarithmic axis of the densities ends.
    """

    epochs: tuple[int, ...]
    labels: Mapping[str, str]
    axis: AsinhAxis
    grid: Float[np.ndarray, " g"]
    width: float
    floor: float
    curves: Mapping[tuple[str, int], DensityCurve]

    @property
    def limits(self) -> tuple[float, float]:
        return float(self.grid[0]), float(self.grid[-1])

    @property
    def peak(self) -> float:
        """The largest density of any curve."""
        curves = self.curves.values()
        return max(
            float(np.max(one))
            for curve in curves
            for one in (curve.value, curve.exact)
            if one is not None
        )

    def remark(self, series: str, epoch: int) -> str:
        """What is said about a series in a panel."""
        curve = self.curves.get((series, epoch))
        return "not measured" if curve is None else curve.sample.remark

    def above_floor(self, density: Float[np.ndarray, " g"]) -> Float[np.ndarray, " g"]:
        """A curve as it is drawn: NaN where it lies below the axis."""
        return np.where(density > self.floor, density, np.nan)


def make_density_plan(
    samples: Sequence[DensitySample],
    *,
    epochs: Sequence[int] | None = None,
    width: float | None = None,
) -> DensityPlan:
    """Choose panels, coordinate and kernel, and smooth; arguments and errors as of `density_figure`."""
    keys = [(one.series, one.epoch) for one in samples]
    labels = told_apart({one.series: one.label for one in samples})
    measured = sorted({one.epoch for one in samples})
    wanted = epochs_to_draw(measured) if epochs is None else tuple(sorted(set(epochs)))
    if not samples or len(set(keys)) < len(keys) or len(labels) > MAX_SERIES:
        raise ValueError(
            f"samples must be one per series and epoch, of 1 to {MAX_SERIES} series, got {keys}."
        )
    if not wanted or not set(wanted) <= set(measured):
        raise ValueError(
            f"epochs: no series has {sorted(set(wanted) - set(measured))}; measured are {measured}."
        )
    if width is not None and not width > 0:
        raise ValueError(f"width must be > 0, got {width}.")
    shown = [one for one in samples if one.epoch in wanted]
    axis = AsinhAxis(_linear_width(shown))
    points = np.concatenate([axis.forward(one.density.measure()[0]) for one in shown])
    low, high = min(float(points.min()), -1.0), max(float(points.max()), 1.0)
    width = width if width is not None else _NARROWEST * (high - low)
    kernel = _Kernel(axis, np.linspace(low - 4 * width, high + 4 * width, _GRID_POINTS), width)
    return DensityPlan(
        epochs=wanted,
        labels=labels,
        axis=axis,
        grid=kernel.grid,
        width=width,
        # A tenth of the height of one eigenvalue of the largest spectrum: one that is spread over a few kernels is seen too.
        floor=0.04 / (max(one.density.n for one in shown) * width),
        curves={(one.series, one.epoch): kernel.curve(one) for one in shown},
    )


@dataclass(frozen=True, eq=False)
class _Kernel:
    axis: AsinhAxis
    grid: Float[np.ndarray, " g"]
    width: float

    def curve(self, sample: DensitySample) -> DensityCurve:
        found = self.smoothed(sample.density)
        value, error = np.asarray(found.value), np.asarray(found.standard_error)
        exact = (
            None
            if sample.dense is None
            else np.mean([self.mean(values) for values in sample.dense], axis=0)
        )
        return DensityCurve(sample, value, value - _BAND * error, value + _BAND * error, exact)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """The density of given eigenvalues. Most may be exactly zero, of parameters without use: all of those are one kernel."""
        others = values[values != 0]
        zeros = len(values) - len(others)
        return (self.of(others).sum(axis=0) + zeros * self.of(np.zeros(1))[0]) / len(values)

    def of(self, values: np.ndarray) -> np.ndarray:
        """The kernel of every eigenvalue at every grid point, per unit of u."""
        offset = (self.grid - self.axis.forward(values)[..., None]) / self.width
        return np.exp(-0.5 * offset**2) / (self.width * math.sqrt(2 * math.pi))

    def smoothed(self, density: "SpectralDensity") -> "Estimate":
        """The density on the grid: half of a node's weight spread evenly to either neighbour, then the kernel."""
        nodes, left, right = _neighbours(density, self.axis)

        def function(values: np.ndarray) -> np.ndarray:
            at = np.minimum(np.searchsorted(nodes, values), len(nodes) - 1)
            drawn, found = self.axis.forward(values), nodes[at] == values
            low, high = np.where(found, left[at], drawn), np.where(found, right[at], drawn)
            return (self._evenly(low, drawn) + self._evenly(drawn, high)) / 2

        return density.mean(function)

    def _evenly(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """A uniform distribution from low to high under the kernel, at every grid point."""
        from scipy.special import ndtr

        # A thousandth of the kernel makes no difference, and no division by zero.
        short = np.maximum(1e-3 * self.width - (high - low), 0) / 2
        low, high = (low - short)[..., None], (high + short)[..., None]
        return (ndtr((self.grid - low) / self.width) - ndtr((self.grid - high) / self.width)) / (
            high - low
        )


def _linear_width(samples: Sequence[DensitySample]) -> float:
    """How far from zero a probe's nodes begin to tell eigenvalues apart: the axis is linear where nothing is resolved.

    Half of the distance of the nodes around the one nearest to zero, in the geometric mean of all probes, rounded down to 1, 2 or
    5 times a power of ten; 1 where no probe has three nodes.
    """
    gaps = []
    for row in (row[~np.isnan(row)] for one in samples for row in one.density.nodes.numpy()):
        if len(row) > 2:
            nearest = int(np.clip(np.abs(row).argmin(), 1, len(row) - 2))
            gaps.append(float(row[nearest + 1] - row[nearest - 1]) / 2)
    gaps = [gap for gap in gaps if gap > 0]
    wanted = float(np.exp(np.mean(np.log(gaps)))) if gaps else 1.0
    decade = 10.0 ** math.floor(math.log10(wanted))
    return max(factor * decade for factor in (1, 2, 5) if factor * decade <= wanted * (1 + 1e-9))


def _neighbours(
    density: "SpectralDensity", axis: AsinhAxis
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All nodes, ascending, and where on the axis the neighbours of each lie; beyond its last node a probe sees nothing."""
    nodes, left, right = [np.full(1, np.inf)], [np.zeros(1)], [np.zeros(1)]
    for row in density.nodes.numpy():
        there = row[~np.isnan(row)]
        drawn = axis.forward(there)
        nodes.append(there)
        left.append(np.append(drawn[:1], drawn[:-1]))
        right.append(np.append(drawn[1:], drawn[-1:]))
    order = np.argsort(np.concatenate(nodes), kind="stable")
    return np.concatenate(nodes)[order], np.concatenate(left)[order], np.concatenate(right)[order]


def footnote(plan: DensityPlan, *, shares: bool) -> str:
    """The numbers behind the curves and what they do not show, as one paragraph.

    Args:
        shares: Whether `DensityPlan.remark` stands beside the curves.
    """
    samples = [one.sample for one in plan.curves.values()]
    densities = [one.density for one in samples]
    batches = span([one.num_operators for one in densities])
    several = max(one.num_operators for one in densities) > 1
    probes = span([one.num_probes / one.num_operators for one in densities])
    over = f"probes{' and batches' * several}"
    sentences = [
        f"All {span([one.n for one in densities], ',')} eigenvalues, {batches} mini-batch{'es' * several}, "
        f"{probes} random probe{'s' * (probes != '1')} each.",
        f"Weights of nodes spread to their neighbours, then a Gaussian kernel of width {plan.width:.2g} on this axis; area 1. "
        "Flat stretches are not resolved.",
        f"Band: {_BAND} standard errors over {over}; what lies between nodes is not in it.",
    ]
    if shares:
        sentences.append(
            f"Shares below zero: ± one standard error, of {over} and half of what the quadratures leave open; unknown where that "
            "tells no digit."
        )
    zeros = [float(one.num_zeros.double().mean()) / one.n for one in densities]
    if max(zeros) > 0:
        sentences.append(
            f"{span([100 * share for share in zeros], '.3g')} % are zero by structure: rows that no batch uses."
        )
    if any(one.dense is not None for one in samples):
        sentences.append(
            "Grey: the exact spectrum, from the assembled matrix, under the same kernel."
        )
    return " ".join(sentences)
