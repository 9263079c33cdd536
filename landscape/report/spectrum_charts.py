"""The charts that the epoch slider moves: the top eigenvalues as Figure 3 draws them, and the whole spectral density.

What is drawn, in which coordinate and how smooth is decided by landscape.figures.
"""

from collections.abc import Mapping

import numpy as np

from landscape.errors import StoreError
from landscape.figures.density_plan import DensityPlan
from landscape.figures.density_plan import footnote as density_footnote
from landscape.figures.density_plan import make_density_plan
from landscape.figures.eigenvalue_plan import Plan, footnote, make_plan
from landscape.figures.style import LineStyle
from landscape.report.chart import (
    PLAIN,
    Chart,
    Trace,
    asinh_axis,
    band_of,
    line_of,
    literal,
    negative_side,
    packed,
)
from landscape.report.study import Study

# Decades of the whole density above its highest curve: bands rise above it.
_HEADROOM = 0.7
# Values closer together than this share of the axis share a tick below the curves.
_RUG_STEP = 1 / 1500
# Below this share of the highest peak a line would only colour the base line.
_INVISIBLE = 1e-3
_HOVER = "<b>{label}</b><br>λ = %{{customdata:.4~g}}{more}<extra></extra>"


def spectrum_chart(
    study: Study, styles: Mapping[str, LineStyle], *, keep_unconverged: bool
) -> tuple[Chart | str, Plan | None]:
    """The distribution of the top-k eigenvalues, a frame per epoch, and the plan behind it.

    Without any value to draw, a sentence that says why, and None.
    """
    try:
        plan = make_plan(
            study.samples(),
            epochs=study.epochs,
            clip_quantile=0.0,
            keep_unconverged=keep_unconverged,
        )
    except StoreError as error:
        return str(error), None
    peak = float(plan.envelope.max())
    frames = tuple(
        tuple(
            trace
            for row, name in enumerate(plan.labels)
            for trace in _curve_and_rug(plan, name, epoch, styles[name], row)
        )
        for epoch in study.epochs
    )
    xaxis, narrow = asinh_axis(plan.axis, plan.limits)
    layout = {
        "xaxis": {**xaxis, "anchor": "y2"},
        "yaxis": {
            **PLAIN,
            "title": {"text": "density"},
            "range": [0, 1.05 * peak],
            "domain": [0.18, 1],
            "nticks": 5,
        },
        # One row of ticks per series, like a second panel below the curves.
        "yaxis2": {
            "range": [len(plan.labels) - 0.4, -0.6],
            "domain": [0, 0.15],
            "visible": False,
            "fixedrange": True,
        },
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
    ticks = (
        np.unique(np.round(curve.drawn / step)) * step
        if curve is not None and drawn
        else np.zeros(0)
    )
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
            "marker": {
                "symbol": "line-ns-open",
                "size": 9,
                "color": style.color,
                "line": {"width": 1},
            },
            "meta": series,
            "hovertemplate": _HOVER.format(label=label, more="<br>a measured value"),
        },
    ]


def density_chart(study: Study, styles: Mapping[str, LineStyle]) -> Chart | str:
    """The whole spectral density as `landscape.figures.density_figure` draws it, a frame per epoch.

    Without a quadrature, a sentence that says so.
    """
    if not study.densities:
        return f"No density is drawn: {study.why_no_density}"
    plan = make_density_plan(study.densities, epochs=sorted({one.epoch for one in study.densities}))
    frames = tuple(
        tuple(
            trace
            for name in study.series
            for trace in _density_and_band(plan, study, name, epoch, styles[name])
        )
        for epoch in study.epochs
    )
    xaxis, narrow = asinh_axis(plan.axis, plan.limits)
    ends = [float(np.log10(plan.floor)), float(np.log10(plan.peak)) + _HEADROOM]
    yaxis = {
        **PLAIN,
        "title": {"text": "density"},
        "type": "log",
        "dtick": 1,
        "exponentformat": "power",
        "range": ends,
    }
    layout = {"xaxis": xaxis, "yaxis": yaxis, "shapes": negative_side(plan.limits)}
    note = f"{density_footnote(plan, shares=True)} An estimate without a certificate. {study.why_no_density}".rstrip()
    return Chart(frames=frames, layout=layout, narrow=narrow, note=note)


def _density_and_band(
    plan: DensityPlan, study: Study, series: str, epoch: int, style: LineStyle
) -> list[Trace]:
    """Two traces, empty where nothing was measured."""
    curve = plan.curves.get((series, epoch))
    nothing = np.full(plan.grid.shape, np.nan)
    value = nothing if curve is None else plan.above_floor(curve.value)
    high = nothing if curve is None else plan.above_floor(curve.high)
    low = nothing if curve is None else np.maximum(curve.low, plan.floor)
    more = f"<br>density %{{y:.2~e}}<br>share of λ &lt; 0: {plan.remark(series, epoch)}"
    hover = _HOVER.format(label=literal(study.labels[series]), more=more)
    return [
        band_of(series, style, x=plan.grid, low=low, high=high),
        line_of(
            series,
            style,
            x=plan.grid,
            y=value,
            customdata=packed(plan.axis.inverse(plan.grid)),
            hovertemplate=hover,
        ),
    ]
