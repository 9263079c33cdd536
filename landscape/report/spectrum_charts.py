"""Charts that the epoch slider moves.

The top eigenvalues as in Figure 3, and the whole spectral density. landscape.figures decides the
numbers, the coordinate and the smoothing.
"""

from collections.abc import Mapping

import numpy as np

from landscape.errors import StoreError
from landscape.figures.density_layout import DensityLayout, make_density_layout
from landscape.figures.density_layout import footnote as density_footnote
from landscape.figures.eigenvalue_layout import Layout, footnote, make_layout
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

# Decades of the density axis above the highest curve: bands rise above it.
_HEADROOM = 0.7
# Values closer together than this share of the axis share a tick below the curves.
_RUG_STEP = 1 / 1500
# Below this share of the highest peak a line coincides with the base line.
_INVISIBLE = 1e-3
_HOVER = "<b>{label}</b><br>λ = %{{customdata:.4~g}}{more}<extra></extra>"


def spectrum_chart(
    study: Study, styles: Mapping[str, LineStyle], *, keep_unconverged: bool
) -> tuple[Chart | str, Layout | None]:
    """Chart the distribution of the top-k eigenvalues, a frame per epoch.

    Also returns the layout of the chart. Without any value to draw, returns a sentence that says
    why, and None.
    """
    try:
        panels = make_layout(
            study.samples(),
            epochs=study.epochs,
            clip_quantile=0.0,
            keep_unconverged=keep_unconverged,
        )
    except StoreError as error:
        return str(error), None
    peak = float(panels.envelope.max())
    frames = tuple(
        tuple(
            trace
            for row, name in enumerate(panels.labels)
            for trace in _curve_and_rug(panels, name, epoch, styles[name], row)
        )
        for epoch in study.epochs
    )
    xaxis, narrow = asinh_axis(panels.axis, panels.limits)
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
            "range": [len(panels.labels) - 0.4, -0.6],
            "domain": [0, 0.15],
            "visible": False,
            "fixedrange": True,
        },
        "shapes": negative_side(panels.limits),
    }
    return Chart(frames=frames, layout=layout, narrow=narrow, note=footnote(panels)), panels


def _curve_and_rug(
    panels: Layout, series: str, epoch: int, style: LineStyle, row: int
) -> list[Trace]:
    """Make two traces, empty where nothing was measured.

    All frames need the same traces.
    """
    curve = panels.curves.get((series, epoch))
    drawn = curve is not None and curve.drawn.size > 0
    density = curve.density if curve is not None and drawn else np.zeros_like(panels.grid)
    visible = np.where(density > _INVISIBLE * float(panels.envelope.max()), density, np.nan)
    step = _RUG_STEP * (panels.limits[1] - panels.limits[0])
    ticks = (
        np.unique(np.round(curve.drawn / step)) * step
        if curve is not None and drawn
        else np.zeros(0)
    )
    label = literal(panels.labels[series])
    return [
        line_of(
            series,
            style,
            x=panels.grid,
            y=visible,
            customdata=packed(panels.axis.inverse(panels.grid)),
            hovertemplate=_HOVER.format(label=label, more="<br>density %{y:.3~g}"),
        ),
        {
            "type": "scatter",
            "mode": "markers",
            "x": packed(ticks),
            "y": packed(np.full(ticks.size, row)),
            "yaxis": "y2",
            "customdata": packed(panels.axis.inverse(ticks)),
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
    """Chart the whole spectral density, a frame per epoch.

    It is drawn as in `landscape.figures.density_figure`. Without a quadrature, returns a sentence
    that says so.
    """
    if not study.densities:
        return f"No density is drawn: {study.why_no_density}"
    panels = make_density_layout(
        study.densities, epochs=sorted({sample.epoch for sample in study.densities})
    )
    frames = tuple(
        tuple(
            trace
            for name in study.series
            for trace in _density_and_band(panels, study, name, epoch, styles[name])
        )
        for epoch in study.epochs
    )
    xaxis, narrow = asinh_axis(panels.axis, panels.limits)
    ends = [float(np.log10(panels.floor)), float(np.log10(panels.peak)) + _HEADROOM]
    yaxis = {
        **PLAIN,
        "title": {"text": "density"},
        "type": "log",
        "dtick": 1,
        "exponentformat": "power",
        "range": ends,
    }
    layout = {"xaxis": xaxis, "yaxis": yaxis, "shapes": negative_side(panels.limits)}
    note = (
        f"{density_footnote(panels, shares=True)} An estimate without a certificate. "
        f"{study.why_no_density}"
    ).rstrip()
    return Chart(frames=frames, layout=layout, narrow=narrow, note=note)


def _density_and_band(
    panels: DensityLayout, study: Study, series: str, epoch: int, style: LineStyle
) -> list[Trace]:
    """Make two traces, empty where nothing was measured."""
    curve = panels.curves.get((series, epoch))
    nothing = np.full(panels.grid.shape, np.nan)
    value = nothing if curve is None else panels.above_floor(curve.value)
    high = nothing if curve is None else panels.above_floor(curve.high)
    low = nothing if curve is None else np.maximum(curve.low, panels.floor)
    more = f"<br>density %{{y:.2~e}}<br>share of λ &lt; 0: {panels.remark(series, epoch)}"
    hover = _HOVER.format(label=literal(study.labels[series]), more=more)
    return [
        band_of(series, style, x=panels.grid, low=low, high=high),
        line_of(
            series,
            style,
            x=panels.grid,
            y=value,
            customdata=packed(panels.axis.inverse(panels.grid)),
            hovertemplate=hover,
        ),
    ]
