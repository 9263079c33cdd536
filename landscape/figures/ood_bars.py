"""Figure 1a: a bar per observer, such as the accuracy out of distribution.

Whiskers are the bootstrap's. The numbers are computed in landscape.answers. Sizes are in inches.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from landscape.answers import CHANCE, SIXTEEN, Answers, Resamples, resample
from landscape.errors import AnswersError
from landscape.figures.observers import Look, check_datasets, model_looks, observer_looks
from landscape.figures.page import Page, paper_width
from landscape.figures.style import paper_style
from landscape.figures.text import text_width, wrap
from landscape.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAME_POINTS = 6.5
_ROW, _NAME_LINE = 0.2, 0.105
_MAX_NAME = 1.9


@dataclass(frozen=True)
class BarMetric:
    """Contents of an axis of bars.

    Args:
        label: Label of the axis.
        note: Definition of the number, for models and for people.
        chance: Value of guessing; None where that depends on the observers.
    """

    label: str
    note: str
    chance: float | None = None


_WITH = (
    "of models with people, averaged over conditions, people and sets; of people, one person with "
    "another"
)
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
    """Bar of one observer.

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
    """Draw one number of every observer as a bar, in ascending order.

    The smallest is at the bottom.

    Whiskers are the bootstrap's interval: over pictures, and of people over people too. A mean is
    over those of the data sets that an observer has. The note says which are missing, and a star
    marks observers that lack more than all others do.

    Args:
        metric: One of `BAR_METRICS`.
        datasets: Data sets of the mean; by default the paper's 16.
        resamples: Resamples of these answers; by default `resample(answers)`.
        labels: Labels of observers, by their names; "humans" are all people together.
        title: Heading of the figure; none by default, as in papers.

    Raises:
        ValueError: If there is no such metric or data set.
        AnswersError: If no observer has a value.
    """
    if metric not in BAR_METRICS:
        raise ValueError(f"metric: there is no {metric!r}; there are {', '.join(BAR_METRICS)}.")
    check_datasets(datasets)
    layout = _BarLayout.of(
        answers, resamples or resample(answers), metric=metric, datasets=datasets, labels=labels
    )
    lacking = [bar.look.label for bar in layout.bars if layout.lacks_more(bar)]
    with paper_style():
        return _draw(
            layout.metric, layout.bars, starred=lacking, note=layout.note, title=title or ""
        )


def own_bars(
    values: Mapping[str, Interval],
    *,
    datasets: Sequence[str],
    chance: float,
    confidence: float = 0.95,
    notes: Sequence[str] = (),
    title: str | None = None,
) -> "Figure":
    """Draw each model's mean accuracy on the user's own distorted pictures.

    A bar per model, the smallest at the bottom.

    Args:
        values: Mean of each model, by its label, with the bootstrap's interval over pictures.
        datasets: Names of what the means are over, such as distortions.
        chance: Accuracy of guessing.
        confidence: Confidence of the intervals.
        notes: Sentences on the means.
        title: Heading of the figure; none by default.

    Raises:
        ValueError: If there is no model or no data set.
    """
    if not values or not datasets:
        raise ValueError("own_bars needs at least one model and one data set.")
    looks = model_looks(list(values))
    bars = sorted(
        (Bar(looks[name], value, ()) for name, value in values.items()),
        key=lambda bar: bar.interval.value,
    )
    sets = f"{len(datasets)} distorted sets" if len(datasets) > 4 else ", ".join(datasets)
    sentences = [
        f"Bars: share of right answers, averaged over levels but the control, then over {sets}.",
        "People never saw these pictures.",
        f"Whiskers: {100 * confidence:g} % bootstrap intervals over pictures.",
        f"Dotted: chance ({chance:.2g}).",
        *notes,
    ]
    metric = BarMetric(BAR_METRICS["accuracy"].label, sentences[0], chance)
    with paper_style():
        return _draw(metric, bars, starred=(), note=" ".join(sentences), title=title or "")


@dataclass(frozen=True, kw_only=True)
class _BarLayout:
    """The bars, in ascending order of their values.

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
    ) -> "_BarLayout":
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
                f"figure: no observer has a value of {metric.replace('_', ' ')}, so there is "
                "nothing to draw. It needs answers to all conditions that count of at least one of "
                f"{', '.join(datasets)}{needs}."
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
        """List data sets that this bar lacks, but not all bars."""
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
        """Name the data sets of the means."""
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


def _draw(
    metric: BarMetric, bars: Sequence[Bar], *, starred: Collection[str], note: str, title: str
) -> "Figure":
    labels = [bar.look.label + " *" * (bar.look.label in starred) for bar in bars]
    names = [wrap(label, _MAX_NAME, points=_NAME_POINTS) for label in labels]
    left = 0.15 + max(
        text_width(line, points=_NAME_POINTS) for name in names for line in name.splitlines()
    )
    left, right = max(0.6, left), 0.42
    heights = [max(_ROW, 0.06 + _NAME_LINE * (name.count("\n") + 1)) for name in names]
    page = Page(
        num_columns=1,
        panel=(paper_width(1) - left - right, sum(heights) + 0.06),
        title=title,
        note=note,
        left=left,
        right=right,
    )
    fig, [ax] = page.figure()
    tops = [sum(heights[:at]) for at in range(len(heights))]
    centres = [top + height / 2 for top, height in zip(tops, heights, strict=True)]
    _set_axes(ax, metric, bars, height=page.panel[1])
    for bar, name, at in zip(bars, names, centres, strict=True):
        _draw_bar(ax, bar, name, at)
    page.write(fig, [ax], [])
    return fig


def _set_axes(ax: "Axes", metric: BarMetric, bars: Sequence[Bar], *, height: float) -> None:
    numbers = [number for bar in bars for number in _numbers(bar.interval)]
    chance = metric.chance
    low = min(0.0, *numbers)
    high = max(*numbers, chance or 0.0)
    ax.set_xlim(
        low - (0.03 * (high - low) if low < 0 else 0.0),
        high + 0.02 * (high - low) if high > low else 1.0,
    )
    ax.set_ylim(-0.03, height - 0.03)
    ax.set_yticks([])
    ax.spines["left"].set_visible(low == 0)
    ax.set_xlabel(metric.label)
    if chance:
        ax.axvline(chance, color="0.35", linestyle=":", linewidth=0.9, zorder=4)
    if low < 0:
        ax.axvline(0.0, color="0.35", linestyle="-", linewidth=0.6, zorder=1)


def _numbers(interval: Interval) -> list[float]:
    return [
        number for number in (interval.value, interval.low, interval.high) if math.isfinite(number)
    ]


def _draw_bar(ax: "Axes", bar: Bar, name: str, at: float) -> None:
    """Draw a bar with its whisker, its name and its value.

    The name is to the left, the value to the right.
    """
    interval = bar.interval
    ax.barh(at, interval.value, height=0.68 * _ROW, color=bar.look.color, linewidth=0, zorder=2)
    if math.isfinite(interval.low) and math.isfinite(interval.high):
        # The pale line below keeps the whisker visible on dark bars.
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
