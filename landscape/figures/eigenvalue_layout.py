"""Contents of Figure 3: values, coordinate and limits.

Numbers only, no matplotlib.

Shapes: n = eigenvalues of one curve, m = grid points.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from landscape.errors import StoreError
from landscape.figures.asinh_axis import AsinhAxis, LinearAxis
from landscape.figures.density import bandwidth, kernel_density
from landscape.figures.samples import EigenvalueSample, disambiguate, epochs_to_draw
from landscape.figures.style import MAX_SERIES

_GRID_POINTS = 512
# A kernel narrower than this share of the axis is thinner than the line that would draw it.
_NARROWEST = 0.01
# In u, where half a unit is a factor of 1.65: a wider kernel would spread a few scattered values
# over eigenvalues that were not measured.
_WIDEST = 0.5


@dataclass(frozen=True)
class Curve:
    """One series in one panel.

    Args:
        drawn: u of every value that counts, including those beyond the axis.
        density: Density on the grid of the layout, per unit of u; zero when there are no values.
        width: Standard deviation of the kernel in u.
        sample: Source of the values.
        share: Share of negative values (NEP of Park & Kim 2022, arXiv 2202.06709); NaN where no
            batch counts.
    """

    drawn: Float[np.ndarray, " n"]
    density: Float[np.ndarray, " m"]
    width: float
    sample: EigenvalueSample
    share: float

    @property
    def remark(self) -> str:
        """Return the share of negative values, or why there is no curve."""
        if self.drawn.size:
            return "unknown" if math.isnan(self.share) else percent(self.share)
        return "none converged" if self.sample.finite.any() else "no finite value"


@dataclass(frozen=True)
class Layout:
    """Panels by epoch, texts of the legend by series, curves by both.

    The keys of curves are (series, epoch). `limits` and `grid` are in u.
    """

    epochs: tuple[int, ...]
    labels: dict[str, str]
    axis: AsinhAxis
    limits: tuple[float, float]
    grid: Float[np.ndarray, " m"]
    curves: dict[tuple[str, int], Curve]
    keep_unconverged: bool

    @property
    def envelope(self) -> Float[np.ndarray, " m"]:
        """Return the largest density of any curve, over the grid."""
        return np.max([curve.density for curve in self.curves.values()], axis=0)

    def remark(self, series: str, epoch: int) -> str:
        """Return the text about a series in a panel."""
        curve = self.curves.get((series, epoch))
        return "not measured" if curve is None else curve.remark


def make_layout(
    samples: Sequence[EigenvalueSample],
    *,
    epochs: Sequence[int] | None,
    clip_quantile: float,
    keep_unconverged: bool,
    linear: bool = False,
) -> Layout:
    """Choose panels, values, coordinate, limits and kernels.

    Arguments and errors are as in `figure3`.
    """
    if not 0.0 <= clip_quantile < 0.5:
        raise ValueError(f"clip_quantile must be in [0, 0.5), got {clip_quantile}.")
    labels = _labels(samples)
    epochs = _epochs(samples, epochs)
    shown = {(s.series, s.epoch): s for s in samples if s.epoch in epochs}
    values = {key: _usable(s, keep_unconverged=keep_unconverged) for key, s in shown.items()}
    pooled = np.concatenate(list(values.values()))
    if pooled.size == 0:
        total = sum(s.values.size for s in shown.values())
        raise StoreError(
            f"figure: none of the {total} eigenvalues is finite and converged - there is nothing "
            "to draw - raise max_matvecs or tol, or ask for the values that did not converge as "
            "well."
        )
    axis = (LinearAxis if linear else AsinhAxis).fit(pooled)
    drawn = {key: axis.forward(v) for key, v in values.items()}
    widths, limits = _widths_and_limits(drawn, clip_quantile=clip_quantile)
    grid = np.linspace(*limits, _GRID_POINTS)
    curves = {}
    for key, u in drawn.items():
        density = kernel_density(u, grid, width=widths[key]) if u.size else np.zeros_like(grid)
        share = shown[key].negative_share(keep_unconverged=keep_unconverged)
        curves[key] = Curve(
            drawn=u, density=density, width=widths[key], sample=shown[key], share=share
        )
    return Layout(epochs, labels, axis, limits, grid, curves, keep_unconverged)


def _labels(samples: Sequence[EigenvalueSample]) -> dict[str, str]:
    """Map series to their texts in the legend, in order of appearance.

    Equal texts get the name of the series.
    """
    if not samples:
        raise ValueError("samples: there are none, so there is nothing to draw.")
    keys = [(sample.series, sample.epoch) for sample in samples]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ValueError(
            f"samples: series {twice[0]!r} has more than one sample for epoch {twice[1]}."
        )
    labels: dict[str, str] = {}
    for sample in samples:
        labels.setdefault(sample.series, sample.label)
    if len(labels) > MAX_SERIES:
        raise ValueError(
            f"samples: {len(labels)} series, but more than {MAX_SERIES} curves in a panel cannot "
            "be told apart."
        )
    return disambiguate(labels)


def _epochs(samples: Sequence[EigenvalueSample], wanted: Sequence[int] | None) -> tuple[int, ...]:
    measured = sorted({sample.epoch for sample in samples})
    if wanted is None:
        return epochs_to_draw(measured)
    unknown = sorted(set(wanted) - set(measured))
    if unknown or not wanted:
        raise ValueError(
            f"epochs: no series has {unknown or 'an epoch of an empty list'}; measured are "
            f"{measured}."
        )
    return tuple(sorted(set(wanted)))


def _usable(sample: EigenvalueSample, *, keep_unconverged: bool) -> Float[np.ndarray, " n"]:
    return sample.values[sample.finite & (sample.converged | keep_unconverged)].astype(np.float64)


def _widths_and_limits(
    drawn: dict[tuple[str, int], Float[np.ndarray, " n"]], *, clip_quantile: float
) -> tuple[dict[tuple[str, int], float], tuple[float, float]]:
    """Choose kernel widths, and limits of the axis in u.

    The axis holds every value with three kernel widths around it, and zero with room on both sides.
    """
    filled = {key: u for key, u in drawn.items() if u.size}
    low, high = (
        float(q)
        for q in np.quantile(
            np.concatenate(list(filled.values())), [clip_quantile, 1 - clip_quantile]
        )
    )
    # Even where all values have one sign, the figure shows that the other side of zero is empty.
    room = max(math.asinh(1.0), 0.15 * max(-low, high))
    floor = _NARROWEST * (max(high, room) - min(low, -room))
    widths = {
        key: bandwidth(u, floor=floor, ceiling=_WIDEST) if u.size else floor
        for key, u in drawn.items()
    }
    if clip_quantile == 0:
        low = float(min(u.min() - 3 * widths[key] for key, u in filled.items()))
        high = float(max(u.max() + 3 * widths[key] for key, u in filled.items()))
    return widths, (min(low, -room), max(high, room))


def footnote(layout: Layout) -> str:
    """Describe the numbers behind the curves, and what was left out.

    Returns one paragraph.
    """
    samples = [curve.sample for curve in layout.curves.values()]
    drawn = [curve for curve in layout.curves.values() if curve.drawn.size]
    top, batches = (
        span([s.values.shape[1] for s in samples]),
        span([s.num_batches for s in samples]),
    )
    of_batches = "of 1 mini-batch" if batches == "1" else f"of each of {batches} mini-batches"
    sentences = [
        f"Each curve: {span([c.drawn.size for c in drawn])} eigenvalues, the top {top} "
        f"{of_batches}.",
        f"Gaussian kernel of width {span([c.width for c in drawn], '.2f')} in the drawn "
        "coordinate; every curve has area 1.",
        "Ticks below the curves: single values.",
    ]
    infinite = sum(int(np.count_nonzero(~s.finite)) for s in samples)
    loose = sum(int(np.count_nonzero(s.finite & ~s.converged)) for s in samples)
    low, high = layout.limits
    beyond = sum(int(np.count_nonzero((c.drawn < low) | (c.drawn > high))) for c in drawn)
    if infinite:
        sentences.append(f"Left out: {infinite} values that are not finite.")
    if loose:
        sentences.append(
            f"{'Drawn' if layout.keep_unconverged else 'Left out'}: {loose} values that did not "
            "converge."
        )
    if loose and not layout.keep_unconverged:
        sentences.append("Shares: of the batches of which all values converged.")
    if beyond:
        sentences.append(f"Beyond the axis, but part of the curves: {beyond} values.")
    return " ".join(sentences + _unfinished(layout))


def _unfinished(layout: Layout) -> list[str]:
    """Write one sentence for each series and number of missing batches."""
    epochs: dict[tuple[str, int, int], list[int]] = {}
    for (series, epoch), curve in layout.curves.items():
        sample = curve.sample
        if sample.num_batches < sample.planned:
            epochs.setdefault(
                (layout.labels[series], sample.num_batches, sample.planned), []
            ).append(epoch)
    return [
        f"Unfinished: {label}, {done} of {planned} batches at epoch{'s' * (len(at) > 1)} "
        f"{', '.join(map(str, sorted(at)))}."
        for (label, done, planned), at in epochs.items()
    ]


def percent(share: float) -> str:
    """Format whole percents; a few of many are never "none" or "all"."""
    if 0 < share < 0.01:
        return "< 1 %"
    if 0.99 < share < 1:
        return "> 99 %"
    return f"{100 * share:.0f} %"


def span(numbers: Sequence[float], spec: str = "g") -> str:
    """Format the smallest and the largest number, or the only one."""
    low, high = format(min(numbers), spec), format(max(numbers), spec)
    return low if low == high else f"{low}\N{EN DASH}{high}"
