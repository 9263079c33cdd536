"""Figure 1a: a bar per observer, such as the accuracy out of distribution, with the bootstrap's whiskers.

What is drawn was computed in landscape.answers. Sizes are in inches.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from landscape.answers import CHANCE, SIXTEEN, Answers, Resamples, resample
from landscape.errors import AnswersError
from landscape.figures.observers import Look, check_datasets, observer_looks
from landscape.figures.page import Page, paper_width
from landscape.figures.style import paper_style
from landscape.figures.text import text_width, wrap
from landscape.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAME_POINTS = 6.5
_ROW, _NAME_LINE = 0.2, 0.105
_MOST_NAME = 1.9


@dataclass(frozen=True)
class BarMetric:
    """What an axis of bars shows.

    Args:
        label: Of the axis.
        note: What it is of models, and of people.
        chance: Where guessing ends up; None where that depends on the observers.
    """

    label: str
    note: str
    chance: float | None = None


_WITH = "of models with people, averaged over conditions, people and sets; of people, one person with another"
BAR_METRICS = {
    "accuracy": BarMetric(
        "Accuracy out of distribution", "share of right answers, averaged over sets", CHANCE
    ),
    "accuracy_difference": BarMetric("Accuracy difference", f"squared difference {_WITH}"),
    "observed_consistency": BarMetric(
        "Observed consistency", f"share of pictures that both have right or both wrong, {_WITH}"
    ),
    "error_consistency": BarMetric(
        "Error consistency \N{GREEK SMALL LETTER KAPPA}", f"agreement beyond chance {_WITH}", 0.0
    ),
}


@dataclass(frozen=True)
class Bar:
    """One observer.

    Args:
        missing: Data sets that are missing from its mean.
    """

    look: Look
    interval: Interval
    missing: tuple[str, ...]


def ood_bars(
    answers: Answers,
    *,
    metric: str = "accuracy",
    datasets: Sequence[str] = SIXTEEN,
    resamples: Resamples | None = None,
    labels: Mapping[str, str] | None = None,
    title: str | None = None,
) -> "Figure":
    """Draw one number of every observer as a bar, the smallest at the bottom.

    Whiskers are the bootstrap's interval: over pictures, and of people over people too. A mean is over those of the data sets
    that an observer has; the note says which are missing, and a star marks observers that lack more than all others do.

    Args:
        metric: One of `BAR_METRICS`.
        datasets: Of the mean; by default the paper's 16.
        resamples: Of these answers; by default `resample(answers)`.
        labels: What to call observers, by their names; "humans" are all people together.
        title: Heading of the figure; none by default, as papers want it.

    Raises:
        ValueError: If there is no such metric or data set.
        AnswersError: If no observer has a value.
    """
    if metric not in BAR_METRICS:
        raise ValueError(f"metric: there is no {metric!r}; there are {', '.join(BAR_METRICS)}.")
    check_datasets(datasets)
    plan = _BarPlan.of(
        answers, resamples or resample(answers), metric=metric, datasets=datasets, labels=labels
    )
    with paper_style():
        return _draw(plan, title=title or "")


@dataclass(frozen=True, kw_only=True)
class _BarPlan:
    """The bars, the smallest first.

    Args:
        missing: Data sets that are missing from all bars.
        without: Labels of observers that have no value.
    """

    metric: BarMetric
    bars: tuple[Bar, ...]
    datasets: tuple[str, ...]
    missing: tuple[str, ...]
    without: tuple[str, ...]
    confidence: float

    @classmethod
    def of(
        cls,
        answers: Answers,
        resamples: Resamples,
        *,
        metric: str,
        datasets: Sequence[str],
        labels: Mapping[str, str] | None,
    ) -> "_BarPlan":
        bars, without = [], []
        for name, look in observer_looks(answers, labels).items():
            interval = resamples.interval(name, metric, datasets)
            if math.isfinite(interval.value):
                bars.append(
                    Bar(look, interval, resamples.scores[name].mean(metric, datasets).missing)
                )
            else:
                without.append(look.label)
        if not bars:
            needs = "" if metric == "accuracy" else ", and of people, with whom it compares"
            raise AnswersError(
                f"figure: no observer has a value of {metric.replace('_', ' ')}, so there is nothing to draw. It needs answers "
                f"to all conditions that count of at least one of {', '.join(datasets)}{needs}."
            )
        return cls(
            metric=BAR_METRICS[metric],
            bars=tuple(sorted(bars, key=lambda bar: bar.interval.value)),
            datasets=tuple(datasets),
            missing=tuple(name for name in datasets if all(name in bar.missing for bar in bars)),
            without=tuple(without),
            confidence=resamples.settings.confidence,
        )

    def lacks_more(self, bar: Bar) -> tuple[str, ...]:
        """Data sets that are missing from this bar, but not from all."""
        return tuple(name for name in bar.missing if name not in self.missing)

    @property
    def note(self) -> str:
        sentences = [f"Bars: {self.metric.note}. {self._sets}"]
        for bar in self.bars:
            if lacking := self.lacks_more(bar):
                compared = "so it compares with the others only roughly"
                sentences.append(
                    f"* {bar.look.label}: also without {', '.join(lacking)}, {compared}."
                )
        if self.without:
            sentences.append(f"No value: {', '.join(self.without)}.")
        people = (
            "; of people also over people" if any(bar.look.is_people for bar in self.bars) else ""
        )
        sentences.append(
            f"Whiskers: {100 * self.confidence:g} % bootstrap intervals over pictures{people}."
        )
        if self.metric.chance is not None:
            sentences.append("Dotted: chance, 1/16." if self.metric.chance else "Chance: 0.")
        return " ".join(sentences)

    @property
    def _sets(self) -> str:
        """The data sets of the means."""
        total = len(self.datasets)
        there = [name for name in self.datasets if name not in self.missing]
        if not self.missing:
            return f"Sets: all {total}." if total > 4 else f"Sets: {', '.join(there)}."
        short = (
            f"without {', '.join(self.missing)}"
            if len(self.missing) < len(there)
            else f"only {', '.join(there)}"
        )
        return f"Sets: {len(there)} of {total}, {short}."


def _draw(plan: _BarPlan, *, title: str) -> "Figure":
    starred = [bar.look.label + " *" * bool(plan.lacks_more(bar)) for bar in plan.bars]
    names = [wrap(name, _MOST_NAME, points=_NAME_POINTS) for name in starred]
    left = 0.15 + max(
        text_width(line, points=_NAME_POINTS) for name in names for line in name.splitlines()
    )
    left, right = max(0.6, left), 0.42
    heights = [max(_ROW, 0.06 + _NAME_LINE * (name.count("\n") + 1)) for name in names]
    page = Page(
        num_columns=1,
        panel=(paper_width(1) - left - right, sum(heights) + 0.06),
        title=title,
        note=plan.note,
        left=left,
        right=right,
    )
    fig, [ax] = page.figure()
    tops = [sum(heights[:at]) for at in range(len(heights))]
    centres = [top + height / 2 for top, height in zip(tops, heights, strict=True)]
    _set_axes(ax, plan, height=page.panel[1])
    for bar, name, at in zip(plan.bars, names, centres, strict=True):
        _draw_bar(ax, bar, name, at)
    page.write(fig, [ax], [])
    return fig


def _set_axes(ax: "Axes", plan: _BarPlan, *, height: float) -> None:
    numbers = [number for bar in plan.bars for number in _numbers(bar.interval)]
    chance = plan.metric.chance
    low = min(0.0, *numbers)
    high = max(*numbers, chance or 0.0)
    ax.set_xlim(
        low - (0.03 * (high - low) if low < 0 else 0.0),
        high + 0.02 * (high - low) if high > low else 1.0,
    )
    ax.set_ylim(-0.03, height - 0.03)
    ax.set_yticks([])
    ax.spines["left"].set_visible(low == 0)
    ax.set_xlabel(plan.metric.label)
    if chance:
        ax.axvline(chance, color="0.35", linestyle=":", linewidth=0.9, zorder=4)
    if low < 0:
        ax.axvline(0.0, color="0.35", linestyle="-", linewidth=0.6, zorder=1)


def _numbers(interval: Interval) -> list[float]:
    return [
        number for number in (interval.value, interval.low, interval.high) if math.isfinite(number)
    ]


def _draw_bar(ax: "Axes", bar: Bar, name: str, at: float) -> None:
    """A bar with its whisker, its name to the left and its value to the right."""
    interval = bar.interval
    ax.barh(at, interval.value, height=0.68 * _ROW, color=bar.look.color, linewidth=0, zorder=2)
    if math.isfinite(interval.low) and math.isfinite(interval.high):
        # The pale line below keeps it visible on dark bars.
        for color, width, order in (("white", 2.2, 5), ("0.25", 0.9, 6)):
            ax.plot(
                [interval.low, interval.high],
                [at, at],
                color=color,
                linestyle="-",
                linewidth=width,
                zorder=order,
                solid_capstyle="butt",
            )
    beside: dict[str, Any] = {"fontsize": _NAME_POINTS, "parse_math": False}
    beside |= {"textcoords": "offset points", "va": "center"}
    ax.annotate(name, (0, at), (-5, 0), xycoords=("axes fraction", "data"), ha="right", **beside)
    # To the right of the bar too, where the bar and its whisker are negative.
    end = max(0.0, *_numbers(interval))
    ax.annotate(f"{interval.value:.3f}".replace("-", "\N{MINUS SIGN}"), (end, at), (4, 0), **beside)
