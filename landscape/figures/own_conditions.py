"""Accuracy by level of a distortion on the user's own pictures.

As Figure 2, without people.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.answers import DATASETS
from landscape.figures.condition_panels import ConditionPanel, LevelValues, draw_condition_panels
from landscape.figures.observers import Look, check_num_models, model_looks
from landscape.figures.style import paper_style
from landscape.statistics import wilson_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NO_PEOPLE = "People never saw these pictures, so there is no human line."
# Axis label of levels that are not the benchmark's.
_LEVEL = "Level"


@dataclass(frozen=True, kw_only=True)
class ConditionCurve:
    """Accuracies of one series on one distorted data set.

    Args:
        series: Label of the series; any text.
        dataset: Name of the distortion, as in `benchmark.DATASETS` or another.
        conditions: Names of the levels, in the order of the axis; a single level is drawn as a bar.
        accuracy: Accuracy in each condition; NaN where there is none.
        low, high: Ends of its interval; NaN for none.
        num_pictures: Number of answered pictures in each condition.
        chance: Accuracy of guessing, such as 1 / number of classes.
        num_levels: Number of levels for larger pictures; None for the levels that are here.

    Raises:
        ValueError: If there is no condition, a condition occurs twice, or the lengths differ.
    """

    series: str
    dataset: str
    conditions: tuple[str, ...]
    accuracy: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    num_pictures: tuple[int, ...]
    chance: float
    num_levels: int | None = None

    def __post_init__(self) -> None:
        lengths = {
            len(getattr(self, name))
            for name in ("conditions", "accuracy", "low", "high", "num_pictures")
        }
        if lengths != {len(set(self.conditions))} or not self.conditions:
            raise ValueError(
                f"curve of {self.series!r} on {self.dataset}: every condition needs a name of its "
                "own, an accuracy, both ends of an interval and a number of pictures; got "
                f"{len(self.conditions)} conditions, lengths {sorted(lengths)}."
            )

    @classmethod
    def of_counts(
        cls,
        series: str,
        dataset: str,
        *,
        conditions: Sequence[str],
        num_right: Sequence[int],
        num_pictures: Sequence[int],
        chance: float,
        confidence: float = 0.95,
    ) -> "ConditionCurve":
        """Compute accuracies with Wilson's intervals.

        Raises:
            ValueError: If lengths differ, or a condition has no picture.
        """
        low, high = wilson_interval(num_right, num_pictures, confidence=confidence)
        return cls(
            series=series,
            dataset=dataset,
            conditions=tuple(conditions),
            accuracy=_floats(np.asarray(num_right) / np.asarray(num_pictures)),
            low=_floats(low),
            high=_floats(high),
            num_pictures=tuple(map(int, num_pictures)),
            chance=chance,
        )


def own_conditions(
    curves: Sequence[ConditionCurve],
    *,
    intervals: str = "Wilson's 95 % intervals",
    title: str | None = None,
) -> "Figure":
    """Draw a panel per data set, a line or bar per series.

    There are whiskers. The note says that people never saw these pictures.

    Args:
        curves: At most one per series and data set; panels and the legend are in their order.
        intervals: Description of the whiskers.
        title: Heading of the figure; none by default, as in papers.

    Raises:
        ValueError: If there is no curve, two are of one series and data set, or curves of a data
            set have different chances.
        AnswersError: If there are more than 9 series.
    """
    if not curves:
        raise ValueError("there is no curve, so there is nothing to draw.")
    looks = model_looks(list(dict.fromkeys(curve.series for curve in curves)))
    check_num_models(len(looks))
    by_dataset: dict[str, list[ConditionCurve]] = {}
    for curve in curves:
        by_dataset.setdefault(curve.dataset, []).append(curve)
    panels = [_panel(name, group, looks) for name, group in by_dataset.items()]
    with paper_style():
        return draw_condition_panels(
            panels, list(looks.values()), title=title or "", note=_note(curves, intervals)
        )


def _panel(
    name: str, curves: Sequence[ConditionCurve], looks: Mapping[str, Look]
) -> ConditionPanel:
    series = [curve.series for curve in curves]
    chances = {curve.chance for curve in curves}
    if len(set(series)) < len(series) or len(chances) > 1:
        raise ValueError(
            f"{name}: curves need different series and one chance; got {', '.join(series)} and "
            f"{sorted(chances)}."
        )
    conditions = tuple(
        dict.fromkeys(condition for curve in curves for condition in curve.conditions)
    )
    known = DATASETS.get(name)
    levels = {level.name: level.tick for level in known.conditions} if known else {}
    published = [
        levels.get(known.condition_named(text) or "") if known else None for text in conditions
    ]
    ticks = tuple(tick for tick in published if tick is not None)
    has_ticks = len(ticks) == len(conditions)
    planned = max(curve.num_levels or 0 for curve in curves)
    partly = f" ({len(conditions)} of {planned} levels)" if planned > len(conditions) else ""
    return ConditionPanel(
        title=f"{known.label if known else name}{partly}",
        axis_label=known.axis_label if known and has_ticks else _LEVEL,
        ticks=ticks if has_ticks else conditions,
        hollow=(False,) * len(conditions),
        observers=tuple(
            LevelValues(
                looks[curve.series],
                *(_aligned(curve, conditions, field) for field in ("accuracy", "low", "high")),
            )
            for curve in curves
        ),
        chance=chances.pop(),
    )


def _aligned(curve: ConditionCurve, conditions: Sequence[str], field: str) -> Any:
    """Align numbers of a curve with the conditions of a panel.

    NaN where the curve has none.
    """
    values = dict(zip(curve.conditions, getattr(curve, field), strict=True))
    return np.array([values.get(condition, np.nan) for condition in conditions], dtype=float)


def _note(curves: Sequence[ConditionCurve], intervals: str) -> str:
    counts = sorted({number for curve in curves for number in curve.num_pictures})
    counted = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    chances = sorted({curve.chance for curve in curves})
    chance = ", ".join(f"{value:.3g}" for value in chances)
    return (
        f"{NO_PEOPLE} Each accuracy: of {counted} pictures. Whiskers: {intervals}. Dotted: chance "
        f"({chance})."
    )


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in np.atleast_1d(values))
