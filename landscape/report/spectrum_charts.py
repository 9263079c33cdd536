"""The charts that the epoch slider moves: the top eigenvalues as Figure 3 draws them, and the whole spectral density.

Smoothing, coordinate and limits are those of landscape.figures. Shapes: n = nodes of quadratures, m = grid points.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from landscape.errors import StoreError
from landscape.figures import AsinhAxis, kernel_density
from landscape.figures.eigenvalue_plan import Plan, footnote, make_plan
from landscape.figures.style import LineStyle
from landscape.report.chart import PLAIN, Chart, Trace, asinh_axis, line_of, literal, negative_side, packed
from landscape.report.study import Study
from landscape.store import SpectraTable

# The quadratures are no finer than this.
_DENSITY_POINTS = 256
# Standard deviation of the kernel of the whole density, as a share of its axis.
_DENSITY_WIDTH = 0.012
# The logarithmic axis of the whole density ends this many decades below the highest peak: a weight of one parameter in a million.
_DECADES = 6
# Values closer together than this share of the axis share a tick below the curves.
_RUG_STEP = 1 / 1500
# Below this share of the highest peak a line would only colour the base line.
_INVISIBLE = 1e-3
_HOVER = "<b>{label}</b><br>λ = %{{customdata:.4~g}}{more}<extra></extra>"


def spectrum_chart(study: Study, styles: Mapping[str, LineStyle], *, keep_unconverged: bool) -> tuple[Chart | str, Plan | None]:
    """The distribution of the top-k eigenvalues, a frame per epoch, and the plan behind it.

    Without any value to draw, a sentence that says why, and None.
    """
    try:
        plan = make_plan(study.samples(), epochs=study.epochs, clip_quantile=0.0, keep_unconverged=keep_unconverged)
    except StoreError as error:
        return str(error), None
    peak = float(plan.envelope.max())
    frames = tuple(
        tuple(trace for row, name in enumerate(plan.labels) for trace in _curve_and_rug(plan, name, epoch, styles[name], row))
        for epoch in study.epochs
    )
    xaxis, narrow = asinh_axis(plan.axis, plan.limits)
    layout = {
        "xaxis": {**xaxis, "anchor": "y2"},
        "yaxis": {**PLAIN, "title": {"text": "density"}, "range": [0, 1.05 * peak], "domain": [0.18, 1], "nticks": 5},
        # One row of ticks per series, like a second panel below the curves.
        "yaxis2": {"range": [len(plan.labels) - 0.4, -0.6], "domain": [0, 0.15], "visible": False, "fixedrange": True},
        "shapes": negative_side(plan.limits),
    }
    return Chart(frames=frames, layout=layout, narrow=narrow, note=footnote(plan)), plan


def _curve_and_rug(plan: Plan, series: str, epoch: int, style: LineStyle, row: int) -> list[Trace]:
    """Two traces, empty where nothing was measured: frames have equal traces."""
    curve = plan.curves.get((series, epoch))
    drawn = curve is not None and curve.drawn.size > 0
    density = curve.density if curve is not None and drawn else np.zeros_like(plan.grid)
    visible = np.where(density > _INVISIBLE * float(plan.envelope.max()), density, np.nan)
    step = _RUG_STEP * (plan.limits[1] - plan.limits[0])
    ticks = np.unique(np.round(curve.drawn / step)) * step if curve is not None and drawn else np.zeros(0)
    label = literal(plan.labels[series])
    return [
        line_of(
            series,
            style,
            x=plan.grid,
            y=visible,
            customdata=packed(plan.axis.inverse(plan.grid)),
            hovertemplate=_HOVER.format(label=label, more="<br>density %{y:.3~g}"),
        ),
        {
            "type": "scatter",
            "mode": "markers",
            "x": packed(ticks),
            "y": packed(np.full(ticks.size, row)),
            "yaxis": "y2",
            "customdata": packed(plan.axis.inverse(ticks)),
            "marker": {"symbol": "line-ns-open", "size": 9, "color": style.color, "line": {"width": 1}},
            "meta": series,
            "hovertemplate": _HOVER.format(label=label, more="<br>a measured value"),
        },
    ]


def density_chart(study: Study, styles: Mapping[str, LineStyle]) -> Chart | str:
    """The whole spectral density by the stored quadratures, averaged over the batches, a frame per epoch.

    Without a quadrature, a sentence that says so.
    """
    nodes = {key: _nodes(table) for key, table in study.tables.items()}
    pooled = np.concatenate([values for values, _ in nodes.values()])
    if pooled.size == 0:
        return "No density is drawn: the method of this store leaves no quadrature; measure with --method lanczos to get one."
    axis = AsinhAxis.fit(pooled)
    low, high = axis.forward(np.array([pooled.min(), pooled.max()])).tolist()
    width = _DENSITY_WIDTH * max(high - low, 1.0)
    limits = (min(low, 0.0) - 4 * width, max(high, 0.0) + 4 * width)
    grid = np.linspace(*limits, _DENSITY_POINTS)
    densities = {
        key: kernel_density(axis.forward(values), grid, width=width, weights=weights)
        for key, (values, weights) in nodes.items()
        if values.size
    }
    top = float(np.log10(max(density.max() for density in densities.values())))
    xaxis, narrow = asinh_axis(axis, limits)
    yaxis = {**PLAIN, "title": {"text": "density"}, "type": "log", "dtick": 1, "exponentformat": "power"}
    layout = {
        "xaxis": xaxis,
        "yaxis": {**yaxis, "range": [top - _DECADES, top + 0.3]},
        "shapes": negative_side(limits),
    }
    frames = tuple(
        tuple(_density_line(study, name, densities.get((name, epoch)), axis, grid, styles[name], top) for name in study.series)
        for epoch in study.epochs
    )
    note = (
        "Of all eigenvalues, by Lanczos quadratures of one random start each, averaged over mini-batches: an estimate without "
        f"a certificate. Gaussian kernel of width {width:.2f} in the drawn coordinate."
    )
    return Chart(frames=frames, layout=layout, narrow=narrow, note=note)


def _nodes(table: SpectraTable) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Nodes and weights of all quadratures of a checkpoint."""
    there = np.isfinite(table.ritz_values) & np.isfinite(table.ritz_weights)
    return table.ritz_values[there], table.ritz_weights[there]


def _density_line(
    study: Study,
    series: str,
    density: Float[np.ndarray, " m"] | None,
    axis: AsinhAxis,
    grid: Float[np.ndarray, " m"],
    style: LineStyle,
    top: float,
) -> Trace:
    # What lies far below the axis would make the line dive through it, and takes no part in a logarithmic picture.
    shown = np.full(grid.shape, np.nan) if density is None else np.where(density > 10 ** (top - _DECADES - 1), density, np.nan)
    hover = _HOVER.format(label=literal(study.labels[series]), more="<br>density %{y:.2~e}")
    return line_of(series, style, x=grid, y=shown, customdata=packed(axis.inverse(grid)), hovertemplate=hover)
