"""Texts and tables of the chapter on accuracy.

Sentences, correlations, checkpoints, and every set.
"""

import math
from collections.abc import Mapping
from typing import Any

from landscape.compare.accuracy import METRIC_TITLES
from landscape.compare.accuracy_means import MEAN_TITLES, OOD, ROBUSTNESS
from landscape.compare.correlation import COVERS, ONE_SERIES, Correlation
from landscape.compare.correlation_sentences import correlation_sentences, ends, signed
from landscape.compare.metrics import METRICS
from landscape.compare.sharpness_accuracy import SHARPNESS, CheckpointRow, SharpnessAccuracy
from landscape.report.accuracy_charts import OVER_EPOCHS, num_panels, percent
from landscape.report.tables import NOTHING, Table, interval, number, with_unit
from landscape.statistics import Interval

_SCOPES = {
    "all": "all checkpoints",
    "same_epoch": "series at the same epoch",
    "within": "training, mean of series",
}
# Height of a panel of the chart over epochs, and of the axis below, in rem.
_PANEL, _BELOW = 11, 4


def accuracy_texts(accuracy: SharpnessAccuracy, labels: Mapping[str, str]) -> dict[str, Any]:
    """Return the texts and tables for the chapter's template.

    Args:
        labels: Label of each series.
    """
    several = [row for row in accuracy.correlations if row.scope != ONE_SERIES]
    of_series = [row for row in accuracy.correlations if row.scope == ONE_SERIES]
    known = [row for row in several if math.isfinite(row.value)]
    return {
        "files": " and ".join(accuracy.files),
        "num_checkpoints": len(accuracy.rows),
        "sentences": correlation_sentences(accuracy.correlations),
        "headings": {OVER_EPOCHS: "Sharpness and accuracy over epochs"}
        | {
            f"accuracy-{name}": f"{_capital(title)} against sharpness"
            for name, title in MEAN_TITLES.items()
        },
        "height": _PANEL * num_panels(accuracy) + _BELOW,
        "correlations": _correlation_table(known, labels, accuracy) if known else None,
        "covers": tuple(COVERS.values()),
        "reasons": _reasons(several),
        "of_series": _correlation_table(of_series, labels, accuracy) if of_series else None,
        "checkpoints": _checkpoint_table(accuracy, labels),
        "notes": (*_meanings(accuracy), *accuracy.notes),
        "sets": _set_table(accuracy, labels),
    }


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"


def _correlation_table(
    correlations: list[Correlation], labels: Mapping[str, str], accuracy: SharpnessAccuracy
) -> Table:
    header = (
        "sharpness",
        "accuracy",
        "over",
        "checkpoints",
        "series",
        "correlation",
        "measurement error",
        "series as clusters",
    )
    rows = tuple(
        (
            METRICS[row.metric].label,
            MEAN_TITLES[row.mean],
            labels[row.series] if row.series else _SCOPES[row.scope],
            str(row.num_points),
            str(row.num_series),
            signed(row.value) if math.isfinite(row.value) else f"none: {row.why_not}",
            ends(row.measured) or NOTHING,
            ends(row.clusters) or NOTHING,
            number(row.p_value, ".2g"),
        )
        for row in correlations
    )
    caption = (
        "Spearman\N{RIGHT SINGLE QUOTATION MARK}s rank correlation: negative where the sharper, or "
        "less convex, checkpoint is the less accurate one. At the same epoch, ranks are taken "
        "among the series of an epoch, so what training does to all of them does not count. In "
        f"brackets: {100 * accuracy.confidence:g} % intervals, each covering what stands below "
        f"({accuracy.num_resamples} resamples); none where hardly any resample, or no series left "
        "out, changes the order."
    )
    return Table(caption=caption, header=(*header, "permutation p"), rows=rows, num_heads=3)


def _reasons(correlations: list[Correlation]) -> tuple[str, ...]:
    """Say why there is no correlation, each reason once."""
    if not correlations:
        return (
            "No rank correlation: no checkpoint has both a sharpness that counts and a mean "
            "accuracy.",
        )
    reasons: dict[str, list[str]] = {}
    for row in correlations:
        if not math.isfinite(row.value):
            what = f"{METRICS[row.metric].label} and {MEAN_TITLES[row.mean]}, {_SCOPES[row.scope]}"
            reasons.setdefault(row.why_not, []).append(what)
    return tuple(f"No rank correlation ({why}): {'; '.join(of)}." for why, of in reasons.items())


def _checkpoint_table(accuracy: SharpnessAccuracy, labels: Mapping[str, str]) -> Table:
    metrics = [name for name in SHARPNESS if any(name in row.sharpness for row in accuracy.rows)]
    titles = (
        *(with_unit(METRICS[name]) for name in metrics),
        *(f"{mean.title} (%)" for mean in accuracy.means.values()),
    )
    rows = tuple(
        (
            labels[row.series],
            str(row.epoch),
            *(_cell(row.sharpness.get(name)) for name in metrics),
            *(_share(row.means.get(name)) for name in accuracy.means),
        )
        for row in accuracy.rows
    )
    level = f"{100 * accuracy.confidence:g} % intervals"
    caption = f"In brackets: {level}, of sharpness over mini-batches and of accuracy over pictures."
    return Table(caption=caption, header=("series", "epoch", *titles), rows=rows)


def _cell(measured: Interval | None) -> str:
    return NOTHING if measured is None else interval(measured.value, measured.low, measured.high)


def _share(measured: Interval | None) -> str:
    """Format a share in percent to a tenth, as tables do."""
    if measured is None:
        return NOTHING
    shown = percent(measured)
    value, low, high = (number(end, ".1f") for end in (shown.value, shown.low, shown.high))
    return value if low == NOTHING else f"{value} [{low},\N{NO-BREAK SPACE}{high}]"


def _meanings(accuracy: SharpnessAccuracy) -> tuple[str, ...]:
    """Name the sets of each mean."""
    said = []
    for name, mean in accuracy.means.items():
        sets = (
            f"{len(mean.datasets)} data set{'s' * (len(mean.datasets) != 1)} "
            f"({', '.join(mean.datasets)})"
        )
        if name == ROBUSTNESS:
            said.append(
                f"{_capital(mean.title)}: (accuracy \N{MINUS SIGN} chance) / (accuracy on "
                f"undistorted pictures \N{MINUS SIGN} chance), both means over {sets} that have an "
                "undistorted condition; 100 % where a distortion takes nothing."
            )
        elif name == OOD:
            said.append(
                f"{_capital(mean.title)}: mean over {sets} of the mean over conditions, without "
                "the undistorted one and those that the benchmark excludes. Sets of pictures with "
                "the same names are drawn anew together."
            )
        else:
            said.append(f"{_capital(mean.title)}: mean over {sets}, each by its own metric.")
    return tuple(said)


def _set_table(accuracy: SharpnessAccuracy, labels: Mapping[str, str]) -> Table:
    """Tabulate a row per set and condition, a column per checkpoint."""
    cells: dict[tuple[str, str], dict[tuple[str, int], str]] = {}
    facts: dict[tuple[str, str], tuple[str, ...]] = {}
    for row in accuracy.rows:
        for score in row.scores:
            name = score.dataset, score.condition
            chance = number(100 * score.chance, ".1f")
            metric = METRIC_TITLES[score.metric]
            facts.setdefault(
                name, (score.dataset, score.condition, metric, str(score.num_pictures), chance)
            )
            partly = "" if score.n == score.num_pictures else f" (of {score.n})"
            cells.setdefault(name, {})[row.key] = f"{_share(score.value)}{partly}"
    header = (
        "set",
        "condition",
        "metric",
        "pictures",
        "chance",
        *(_column(row, labels) for row in accuracy.rows),
    )
    rows = tuple(
        (*facts[name], *(cells[name].get(row.key, NOTHING) for row in accuracy.rows))
        for name in cells
    )
    level = f"{100 * accuracy.confidence:g} % intervals"
    caption = (
        f"Percent, with {level} over pictures; pictures that could not be read count as wrong."
    )
    return Table(caption=caption, header=header, rows=rows, num_heads=3)


def _column(row: CheckpointRow, labels: Mapping[str, str]) -> str:
    return f"{labels[row.series]}, {row.epoch}"
