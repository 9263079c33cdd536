"""Charts of plotly as plain JSON values, and shared parts of charts.

Python decides everything that is drawn; the browser only swaps frames and switches series.
"""

import base64
import html
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from landscape.figures import AsinhAxis
from landscape.figures.asinh_axis import Ticks
from landscape.figures.style import LineStyle
from landscape.store import UNIT

Trace = dict[str, Any]
_LINE_WIDTH = 2.0
# Width of a tick's label and the space after it, as a share of the plot: about 40 pixels of 900,
# and of 300 on a phone.
_WIDE_GAP, _NARROW_GAP = 0.05, 0.125
PLAIN = {
    "zeroline": False,
    "showline": True,
    "linecolor": "#555",
    "ticks": "outside",
    "gridcolor": "#ececec",
    "automargin": True,
}


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Chart as plotly's JSON, ready for a browser.

    Args:
        frames: Traces of each frame; all frames have the same number, in the same order. A trace's
            `meta` is the name of its series.
        layout: Layout of every frame: the spectrum moves, the axes do not.
        narrow: Properties of the horizontal axis that differ where the page is narrow.
        note: Paragraph below the chart.
    """

    frames: tuple[tuple[Trace, ...], ...]
    layout: dict[str, Any]
    narrow: dict[str, Any] = field(default_factory=dict)
    note: str

    def to_json(self) -> dict[str, Any]:
        """Return the values for the page's script.

        The note is part of the page's text.
        """
        return {"frames": self.frames, "layout": self.layout, "narrow": self.narrow}


def packed(array: np.ndarray) -> dict[str, str]:
    """Encode an array in base64, for plotly.js.

    It is read without parsing digits: single precision; NaN is a gap.
    """
    shape = {"shape": ", ".join(map(str, array.shape))} if array.ndim > 1 else {}
    return {
        "dtype": "f4",
        "bdata": base64.b64encode(array.astype("<f4").tobytes()).decode(),
        **shape,
    }


def literal(text: str) -> str:
    """Escape a user's text so that plotly shows it unchanged.

    Plotly reads a little HTML, and %{...} in templates.
    """
    return html.escape(text, quote=False).replace("%{", "%&#123;")


def dash_of(style: LineStyle) -> str:
    """Return plotly's name of a dash pattern, with lengths in pixels."""
    return ",".join(f"{length * _LINE_WIDTH:g}px" for length in style.dash) or "solid"


def line_of(
    series: str, style: LineStyle, *, x: np.ndarray, y: np.ndarray, **properties: Any
) -> Trace:
    """Make the curve of a series; NaN in `y` are gaps."""
    line = {"color": style.color, "dash": dash_of(style), "width": _LINE_WIDTH}
    return {
        "type": "scatter",
        "mode": "lines",
        "x": packed(x),
        "y": packed(y),
        "line": line,
        "meta": series,
        **properties,
    }


def band_of(
    series: str, style: LineStyle, *, x: np.ndarray, low: np.ndarray, high: np.ndarray
) -> Trace:
    """Fill the area between two curves.

    There is a polygon for each run without NaN, all in one trace.
    """
    there = np.isfinite(low) & np.isfinite(high)
    starts = np.flatnonzero(np.diff(there, prepend=False, append=False))
    # Each polygon goes along the lower curve and back along the upper one; NaN separates polygons.
    runs = [slice(first, last) for first, last in zip(starts[::2], starts[1::2])]
    along = [part for run in runs for part in (x[run], x[run][::-1], [np.nan])]
    around = [part for run in runs for part in (low[run], high[run][::-1], [np.nan])]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": packed(np.concatenate([np.zeros(0), *along])),
        "y": packed(np.concatenate([np.zeros(0), *around])),
        "line": {"width": 0},
        "fill": "toself",
        "fillcolor": (
            f"rgba({', '.join(str(int(style.color[i : i + 2], 16)) for i in (1, 3, 5))}, 0.13)"
        ),
        "hoverinfo": "skip",
        "meta": series,
    }


def negative_side(limits: tuple[float, float]) -> list[dict[str, Any]]:
    """Draw a shade over negative eigenvalues, and a line at zero."""
    whole = {"type": "rect", "xref": "x", "yref": "paper", "y0": 0, "y1": 1, "layer": "below"}
    return [
        {**whole, "x0": limits[0], "x1": 0, "fillcolor": "#f3f3f3", "line": {"width": 0}},
        {**whole, "type": "line", "x0": 0, "x1": 0, "line": {"width": 1, "color": "#777"}},
    ]


def coordinate(axis: AsinhAxis) -> str:
    """Format the drawn coordinate as a formula."""
    return "asinh λ" if axis.linear_width == 1 else f"asinh(λ / {axis.linear_width:g})"


def asinh_axis(
    axis: AsinhAxis, limits: tuple[float, float]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make plotly's horizontal axis in u, with ticks in eigenvalues.

    The second value holds the properties that differ on a narrow page.
    """
    low, high = axis.inverse(np.array(limits)).tolist()
    wide, narrow = (
        _plotly_ticks(axis, axis.ticks(low, high, gap=gap * (limits[1] - limits[0])))
        for gap in (_WIDE_GAP, _NARROW_GAP)
    )
    wide["title"] = {"text": f"Hessian eigenvalue λ ({UNIT}), drawn at {coordinate(axis)}"}
    narrow["title"] = {"text": f"λ ({UNIT})"}
    return {**PLAIN, **wide, "range": list(limits), "showgrid": False}, narrow


def _plotly_ticks(axis: AsinhAxis, ticks: Ticks) -> dict[str, Any]:
    positions: Float[np.ndarray, " ticks"] = axis.forward(np.array(ticks.major))
    return {
        "tickmode": "array",
        "tickvals": positions.tolist(),
        "ticktext": [from_mathtext(label) for label in ticks.labels],
    }


def from_mathtext(label: str) -> str:
    """Convert a label of the figures to the HTML that plotly reads.

    An example of a label is "$-5{\\times}10^{3}$".
    """
    if not label.startswith("$"):
        return label
    text = label.strip("$").replace(r"{\times}", "×").replace("-", "\N{MINUS SIGN}")
    return re.sub(r"\^\{(.*?)\}", r"<sup>\1</sup>", text)
