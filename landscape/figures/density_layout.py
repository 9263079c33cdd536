"""Contents of a figure of whole spectral densities: coordinate, kernel, curves and bands.

Numbers only, no matplotlib: the figure and the page draw the same numbers. The kernel and its width
belong to the drawing. Densities are per unit of the drawn coordinate u = asinh(lambda / w), so that
areas are shares.

Shapes: g = grid points.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from landscape.figures.asinh_axis import AsinhAxis, LinearAxis
from landscape.figures.eigenvalue_layout import span
from landscape.figures.samples import disambiguate, epochs_to_draw
from landscape.figures.style import MAX_SERIES

if TYPE_CHECKING:
    from landscape.linalg import Estimate, SpectralDensity

_GRID_POINTS = 800
# Width of the kernel as a share of the axis: about the resolution of print.
_NARROWEST = 1 / 150
_BAND = 2


@dataclass(frozen=True, eq=False)
class DensitySample:
    """Spectrum of one checkpoint.

    Args:
        series, label, epoch: As in `EigenvalueSample`.
        density: Density estimated from the probes.
        dense: All eigenvalues of each operator (b, n), where they are known.
    """

    series: str
    label: str
    epoch: int
    density: "SpectralDensity"
    dense: Float[np.ndarray, "b n"] | None = None

    @property
    def remark(self) -> str:
        """Format the share of negative eigenvalues as the terminal prints it.

        It is in percent with its whole standard error, or unknown.
        """
        return str(self.density.negative_share())


@dataclass(frozen=True, eq=False)
class DensityCurve:
    """One series at one epoch, on the grid of the layout.

    Densities are per unit of u.

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
class DensityLayout:
    """Panels by epoch, texts of the legend by series, curves by both.

    Args:
        grid: Grid points in u; its ends are those of the axis.
        width: Width of the kernel, in u.
        floor: Lower end of the logarithmic axis of the densities.
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
        """Return the largest density of any curve."""
        curves = self.curves.values()
        return max(
            float(np.max(density))
            for curve in curves
            for density in (curve.value, curve.exact)
            if density is not None
        )

    def remark(self, series: str, epoch: int) -> str:
        """Return the text about a series in a panel."""
        curve = self.curves.get((series, epoch))
        return "not measured" if curve is None else curve.sample.remark

    def above_floor(self, density: Float[np.ndarray, " g"]) -> Float[np.ndarray, " g"]:
        """Replace the parts of a curve below the axis by NaN."""
        return np.where(density > self.floor, density, np.nan)


def make_density_layout(
    samples: Sequence[DensitySample],
    *,
    epochs: Sequence[int] | None = None,
    width: float | None = None,
    linear: bool = False,
) -> DensityLayout:
    """Choose panels, coordinate and kernel, and smooth the densities.

    Arguments and errors are as in `density_figure`.
    """
    keys = [(sample.series, sample.epoch) for sample in samples]
    labels = disambiguate({sample.series: sample.label for sample in samples})
    measured = sorted({sample.epoch for sample in samples})
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
    shown = [sample for sample in samples if sample.epoch in wanted]
    nodes = [sample.density.measure()[0] for sample in shown]
    axis = LinearAxis.fit(np.concatenate(nodes)) if linear else AsinhAxis(_linear_width(shown))
    points = axis.forward(np.concatenate(nodes))
    low, high = min(float(points.min()), -1.0), max(float(points.max()), 1.0)
    width = width if width is not None else _NARROWEST * (high - low)
    kernel = _Kernel(axis, np.linspace(low - 4 * width, high + 4 * width, _GRID_POINTS), width)
    return DensityLayout(
        epochs=wanted,
        labels=labels,
        axis=axis,
        grid=kernel.grid,
        width=width,
        # A tenth of the peak of one eigenvalue of the largest spectrum, so that an eigenvalue that
        # is spread over a few kernels is visible too.
        floor=0.04 / (max(sample.density.n for sample in shown) * width),
        curves={(sample.series, sample.epoch): kernel.curve(sample) for sample in shown},
    )


@dataclass(frozen=True, eq=False)
class _Kernel:
    axis: AsinhAxis
    grid: Float[np.ndarray, " g"]
    width: float

    def curve(self, sample: DensitySample) -> DensityCurve:
        smoothed = self.smoothed(sample.density)
        value, error = np.asarray(smoothed.value), np.asarray(smoothed.standard_error)
        exact = (
            None
            if sample.dense is None
            else np.mean([self.mean(values) for values in sample.dense], axis=0)
        )
        return DensityCurve(sample, value, value - _BAND * error, value + _BAND * error, exact)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Average the kernels of given eigenvalues.

        Most may be exactly zero, those of parameters without effect; all zeros share one evaluation
        of the kernel.
        """
        others = values[values != 0]
        zeros = len(values) - len(others)
        return (self.of(others).sum(axis=0) + zeros * self.of(np.zeros(1))[0]) / len(values)

    def of(self, values: np.ndarray) -> np.ndarray:
        """Evaluate the kernel of every eigenvalue at every grid point.

        Values are per unit of u.
        """
        offset = (self.grid - self.axis.forward(values)[..., None]) / self.width
        return np.exp(-0.5 * offset**2) / (self.width * math.sqrt(2 * math.pi))

    def smoothed(self, density: "SpectralDensity") -> "Estimate":
        """Smooth the density on the grid.

        Half of a node's weight is spread evenly to either neighbour, then the kernel is applied.
        """
        nodes, left, right = _neighbours(density, self.axis)

        def function(values: np.ndarray) -> np.ndarray:
            at = np.minimum(np.searchsorted(nodes, values), len(nodes) - 1)
            drawn, is_node = self.axis.forward(values), nodes[at] == values
            low, high = np.where(is_node, left[at], drawn), np.where(is_node, right[at], drawn)
            return (self._evenly(low, drawn) + self._evenly(drawn, high)) / 2

        return density.mean(function)

    def _evenly(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Smooth a uniform distribution from low to high at grid points x.

        The convolution with a Gaussian of width w is (Phi((x - low) / w) - Phi((x - high) / w)) /
        (high - low).
        """
        from scipy.special import ndtr

        # At least a thousandth of the kernel: not visible, and it avoids a division by zero.
        short = np.maximum(1e-3 * self.width - (high - low), 0) / 2
        low, high = (low - short)[..., None], (high + short)[..., None]
        return (ndtr((self.grid - low) / self.width) - ndtr((self.grid - high) / self.width)) / (
            high - low
        )


def _linear_width(samples: Sequence[DensitySample]) -> float:
    """Choose the width within which the axis is linear.

    Closer to zero, the nodes of a probe do not resolve single eigenvalues. The width is half of the
    distance between the nodes around the one nearest to zero, in the geometric mean over all
    probes. It is rounded down to 1, 2 or 5 times a power of ten; it is 1 where no probe has three
    nodes.
    """
    gaps = []
    for row in (row[~np.isnan(row)] for sample in samples for row in sample.density.nodes.numpy()):
        if len(row) > 2:
            nearest = int(np.clip(np.abs(row).argmin(), 1, len(row) - 2))
            gaps.append(float(row[nearest + 1] - row[nearest - 1]) / 2)
    gaps = [gap for gap in gaps if gap > 0]
    # The geometric mean, as gaps differ by orders of magnitude between probes.
    wanted = float(np.exp(np.mean(np.log(gaps)))) if gaps else 1.0
    decade = 10.0 ** math.floor(math.log10(wanted))
    return max(factor * decade for factor in (1, 2, 5) if factor * decade <= wanted * (1 + 1e-9))


def _neighbours(
    density: "SpectralDensity", axis: AsinhAxis
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all nodes, ascending, and the axis positions of their neighbours.

    Beyond its last node a probe contains nothing, so the node is its own neighbour there.
    """
    nodes, left, right = [np.full(1, np.inf)], [np.zeros(1)], [np.zeros(1)]
    for row in density.nodes.numpy():
        there = row[~np.isnan(row)]
        drawn = axis.forward(there)
        nodes.append(there)
        left.append(np.append(drawn[:1], drawn[:-1]))
        right.append(np.append(drawn[1:], drawn[-1:]))
    order = np.argsort(np.concatenate(nodes), kind="stable")
    return np.concatenate(nodes)[order], np.concatenate(left)[order], np.concatenate(right)[order]


def footnote(layout: DensityLayout, *, shares: bool) -> str:
    """Describe the numbers behind the curves, and their limits, in a paragraph.

    Args:
        shares: Whether `DensityLayout.remark` stands beside the curves.
    """
    samples = [curve.sample for curve in layout.curves.values()]
    densities = [sample.density for sample in samples]
    batches = span([density.num_operators for density in densities])
    several = max(density.num_operators for density in densities) > 1
    probes = span([density.num_probes / density.num_operators for density in densities])
    over = f"probes{' and batches' * several}"
    sentences = [
        f"All {span([density.n for density in densities], ',')} eigenvalues, {batches} "
        f"mini-batch{'es' * several}, {probes} random probe{'s' * (probes != '1')} each.",
        "Weights of nodes spread to their neighbours, then a Gaussian kernel of width "
        f"{layout.width:.2g} on this axis; area 1. Flat stretches are not resolved.",
        f"Band: {_BAND} standard errors over {over}; what lies between nodes is not in it.",
    ]
    if shares:
        sentences.append(
            f"Shares below zero: ± one standard error, of {over} and half of what the quadratures "
            "leave open; unknown where that tells no digit."
        )
    zeros = [float(density.num_zeros.double().mean()) / density.n for density in densities]
    if max(zeros) > 0:
        sentences.append(
            f"{span([100 * share for share in zeros], '.3g')} % are zero by structure: rows that "
            "no batch uses."
        )
    if any(sample.dense is not None for sample in samples):
        sentences.append(
            "Grey: the exact spectrum, from the assembled matrix, under the same kernel."
        )
    return " ".join(sentences)
