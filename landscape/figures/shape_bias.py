"""Figure 1b: decisions for shape or texture, by category of the shape.

A row per category, a marker per observer, and a line at each pooled value.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from landscape.answers import (
    CATEGORIES,
    CUE_CONFLICT,
    Answers,
    ShapeBias,
    shape_bias,
    shape_bias_by_category,
)
from landscape.errors import AnswersError
from landscape.figures.observers import MARKER_EDGE, Look, check_num_models, observer_looks
from landscape.figures.page import Page
from landscape.figures.style import paper_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEFT, _RIGHT, _WIDTH = 0.72, 0.2, 4.5
# Height of a row, and the height that each observer adds.
_ROW, _PER_OBSERVER = 0.18, 0.014
# Room for the labels of the upper axis.
_UPPER = 0.4
# Share of a row over which its markers are spread, so that none hides another.
_SPREAD = 0.8
_POOLED = "all"


@dataclass(frozen=True)
class ObserverBias:
    """Shape bias of one observer.

    Args:
        look: Label, colour and marker.
        pooled: Bias over all categories.
        by_category: Bias by category of the shape.
    """

    look: Look
    pooled: ShapeBias
    by_category: dict[str, ShapeBias]


def shape_bias_matrix(
    answers: Answers, *, labels: Mapping[str, str] | None = None, title: str | None = None
) -> "Figure":
    """Draw the share of texture decisions, by category of the shape.

    The shares are of the decisions for shape or texture. Rows are ordered by people's share of
    shape, the largest at the top; without people alphabetically. The vertical line of an observer
    is its pooled value, not the mean of its markers; its marker is in the row "all".

    Args:
        labels: Labels of observers, by their names; "humans" are all people together.
        title: Heading of the figure; none by default, as in papers.

    Raises:
        AnswersError: If nobody named a shape or a texture of cue-conflict, or there are more than 9
            models.
    """
    check_num_models(len(answers.models))
    observers = []
    for name, look in observer_looks(answers, labels).items():
        model = None if look.is_people else name
        pooled = shape_bias(answers, model)
        if pooled is not None and math.isfinite(pooled.bias):
            observers.append(ObserverBias(look, pooled, shape_bias_by_category(answers, model)))
    if not observers:
        raise AnswersError(
            f"figure: nobody named a shape or a texture of {CUE_CONFLICT}, so there is no shape "
            "bias to draw. Add answers to it."
        )
    with paper_style():
        return _draw(
            observers,
            _ordered(observers),
            title=title or "",
            without=_without(answers, labels, observers),
        )


def _ordered(observers: list[ObserverBias]) -> list[str]:
    """Order the categories from the top row to the bottom."""
    people = next((observer for observer in observers if observer.look.is_people), None)
    if people is None:
        return list(CATEGORIES)
    # Categories where people named neither are at the bottom.
    share = {name: people.by_category[name].bias for name in CATEGORIES}
    return sorted(
        CATEGORIES,
        key=lambda name: share[name] if math.isfinite(share[name]) else -1.0,
        reverse=True,
    )


def _without(
    answers: Answers, labels: Mapping[str, str] | None, observers: list[ObserverBias]
) -> list[str]:
    drawn = [observer.look for observer in observers]
    return [look.label for look in observer_looks(answers, labels).values() if look not in drawn]


def _draw(
    observers: list[ObserverBias], categories: list[str], *, title: str, without: list[str]
) -> "Figure":
    page = Page(
        num_columns=1,
        panel=(
            _WIDTH - _LEFT - _RIGHT,
            (_ROW + _PER_OBSERVER * len(observers)) * (len(categories) + 1),
        ),
        title=title,
        note=_note(observers, without),
        left=_LEFT,
        right=_RIGHT,
        panel_titles=_UPPER,
        legend=tuple(
            f"{observer.look.label} ({observer.pooled.bias:.3f})" for observer in observers
        ),
    )
    fig, [ax] = page.figure()
    _set_axes(ax, categories)
    rows = {name: len(categories) - 1 - at for at, name in enumerate(categories)}
    for at, observer in enumerate(observers):
        _draw_observer(ax, observer, rows, offset=_SPREAD * (0.5 - (at + 0.5) / len(observers)))
    page.write(fig, [ax], [observer.look.sample() for observer in observers])
    return fig


def _set_axes(ax: "Axes", categories: list[str]) -> None:
    """Draw two axes of the same numbers, and lines between the rows.

    Texture is below and shape above. The lines are dotted.
    """
    num = len(categories)
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.5, num + 0.5)
    ax.set_yticks(range(num + 1), [*reversed(categories), _POOLED])
    ax.tick_params(axis="y", length=0)
    for at in range(num - 1):
        ax.axhline(at + 0.5, color="0.6", linestyle=":", linewidth=0.6, zorder=1)
    ax.axhline(num - 0.5, color="0.2", linestyle="-", linewidth=0.6, zorder=1)
    ax.spines[["top", "right"]].set_visible(True)
    ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    ax.set_xticks(ticks, [f"{tick:.1f}" for tick in ticks])
    ax.set_xlabel(f"Fraction of {_quoted('texture')} decisions  \N{RIGHTWARDS ARROW}")
    functions: Any = (_mirrored, _mirrored)
    upper = ax.secondary_xaxis("top", functions=functions)
    upper.set_xticks(ticks, [f"{tick:.1f}" for tick in ticks])
    upper.set_xlabel(f"\N{LEFTWARDS ARROW}  Fraction of {_quoted('shape')} decisions")


def _quoted(text: str) -> str:
    return f"\N{LEFT SINGLE QUOTATION MARK}{text}\N{RIGHT SINGLE QUOTATION MARK}"


def _mirrored(share: float) -> float:
    return 1 - share


def _draw_observer(
    ax: "Axes", observer: ObserverBias, rows: Mapping[str, int], *, offset: float
) -> None:
    look = observer.look
    ax.axvline(
        1 - observer.pooled.bias,
        color=look.color,
        linestyle="-",
        linewidth=1.1,
        alpha=0.75,
        zorder=2,
    )
    biases = {rows[name]: observer.by_category[name].bias for name in rows} | {
        len(rows): observer.pooled.bias
    }
    drawn = {row: 1 - bias for row, bias in biases.items() if math.isfinite(bias)}
    ax.plot(
        list(drawn.values()),
        [row + offset for row in drawn],
        color=look.color,
        linestyle="none",
        marker=look.marker,
        markersize=1.15 * look.size,
        zorder=5 if look.is_people else 4,
        **MARKER_EDGE,
    )


def _note(observers: list[ObserverBias], without: list[str]) -> str:
    conflicts = sorted(
        {observer.pooled.num_conflicts for observer in observers if not observer.look.is_people}
    )
    counted = (
        f"{conflicts[0]}"
        if len(conflicts) == 1
        else f"{conflicts[0]} to {conflicts[-1]}"
        if conflicts
        else ""
    )
    people = next((observer for observer in observers if observer.look.is_people), None)
    trials = [f"{counted} answers of a model"] * bool(counted)
    trials += [f"{people.pooled.num_conflicts} answers of people"] if people else []
    order = "people's share of shape" if people else "the alphabet (there are no people)"
    sentences = [
        f"Of {' and '.join(trials)} to pictures whose shape and texture differ, those count that "
        "name one of the two.",
        f"Lines, numbers and the row {_quoted(_POOLED)}: pooled over categories.",
        f"Rows: in the order of {order}.",
    ]
    empty = [
        f"{observer.look.label} of {', '.join(names)}"
        for observer in observers
        if (
            names := [
                name for name, bias in observer.by_category.items() if not math.isfinite(bias.bias)
            ]
        )
    ]
    if empty:
        sentences.append(f"Neither was named: by {'; by '.join(empty)}.")
    if without:
        sentences.append(f"No value: {', '.join(without)}.")
    return " ".join(sentences)
