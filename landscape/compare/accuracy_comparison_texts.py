"""Comparisons of accuracies as text.

Tables for a terminal and for LaTeX, rows for CSV, everything for JSON.
"""

import csv
import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from landscape.compare.accuracy_result import AccuracyComparison, MeanDifference, SetDifference
from landscape.compare.result import plain
from landscape.compare.sentences import p_text
from landscape.compare.tables import Grid, latex_of, text_of, texts_of, write_text

# Columns of the CSV file. `kind` is "set" or "mean"; `name` is the data set, or what the number is.
CSV_COLUMNS = (
    "kind first second epoch family name condition title metric n num_pictures num_unread "
    "first_value second_value difference low high p_value p_holm discordant_share detectable "
    "at_chance num_sets num_planned missing"
).split()
_TOGETHER = "\N{NO-BREAK SPACE}"
_SET_HEADER = ("pair", "set", "n", "%", "difference", "MDD", "Holm p")
_MEAN_HEADER = ("pair", "number", "sets", "values", "difference", "p")
_METRICS = {"mean_per_class": ", per class", "top1_top5": ", top-1, top-5", "roc_auc": ", AUC"}


def grids(comparison: AccuracyComparison) -> list[Grid]:
    """Tabulate the sets of every pair, their means, and likeness to people.

    There is one table of each kind per epoch.
    """
    confidence = f"[{100 * comparison.confidence:g} %]"
    tables = []
    for epoch in comparison.epochs:
        at = f"Epoch {epoch}" if epoch else "Initialisation"
        sets = [row for row in comparison.sets if row.epoch == epoch]
        rows = tuple(_set_texts(comparison, row) for row in sets)
        tables.append(
            Grid(f"{at}, each set: paired differences in points {confidence}", _SET_HEADER, rows)
        )
        means = [row for row in comparison.means if row.epoch == epoch]
        rows = tuple(_mean_texts(comparison, row) for row in means)
        tables.append(
            Grid(
                f"{at}, over sets: paired differences {confidence}, accuracies in percent",
                _MEAN_HEADER,
                rows,
            )
        )
    return [grid for grid in tables if grid.rows]


def _pair_text(comparison: AccuracyComparison, row: SetDifference | MeanDifference) -> str:
    return f"{comparison.label(row.first)} \N{MINUS SIGN} {comparison.label(row.second)}"


def _set_texts(comparison: AccuracyComparison, row: SetDifference) -> tuple[str, ...]:
    # Numbers as in `landscape table`: one decimal of a percent.
    return (
        _pair_text(comparison, row),
        row.place + _METRICS.get(row.metric, ""),
        f"{row.n:,}" + (f" of {row.num_pictures:,}" if row.n < row.num_pictures else ""),
        f"{100 * row.first_value:.1f} vs {100 * row.second_value:.1f}",
        _difference_text(row, scale=100, digits=1),
        "" if math.isnan(row.detectable) else f"{100 * row.detectable:.1f}",
        p_text(row.p_holm),
    )


def _mean_texts(comparison: AccuracyComparison, row: MeanDifference) -> tuple[str, ...]:
    scale, digits = (100, 1) if row.is_accuracy else (1, 3)
    return (
        _pair_text(comparison, row),
        row.label,
        f"{row.num_sets}" + (f" of {row.num_planned}" if row.missing else ""),
        f"{scale * row.first_value:.{digits}f} vs {scale * row.second_value:.{digits}f}",
        _difference_text(row, scale=scale, digits=digits),
        p_text(row.p_value),
    )


def _difference_text(row: SetDifference | MeanDifference, *, scale: int, digits: int) -> str:
    value, low, high = (
        f"{scale * number:.{digits}f}" for number in (row.difference, row.low, row.high)
    )
    return value if math.isnan(row.low) else f"{value} [{low}, {high}]"


def to_terminal(comparison: AccuracyComparison, *, width: int | None = None) -> str:
    """Render tables, then sentences to quote, gaps, and limits of the numbers.

    Args:
        width: Columns of the terminal; by default its own number, or 120 without a terminal.
    """
    return text_of(
        [_glued(grid) for grid in grids(comparison)], texts_of(comparison), width=width
    ).replace(_TOGETHER, " ")


def _glued(grid: Grid) -> Grid:
    """Keep "79.2 vs 58.1" and "20 of 30" on one line."""
    rows = tuple(
        (*row[:2], *(re.sub(" (vs|of) ", rf"{_TOGETHER}\1{_TOGETHER}", cell) for cell in row[2:]))
        for row in grid.rows
    )
    return replace(grid, rows=rows)


def to_latex(comparison: AccuracyComparison) -> str:
    """Render tables for the LaTeX package booktabs, sentences as comments."""
    return latex_of(grids(comparison), texts_of(comparison))


def to_csv(comparison: AccuracyComparison) -> str:
    """Render one row per pair, epoch and set, and one per mean.

    `kind` is "set" or "mean"; unknown numbers are empty.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(
        stream, CSV_COLUMNS, restval="", extrasaction="ignore", lineterminator="\n"
    )
    writer.writeheader()
    for row in comparison.sets:
        writer.writerow({"kind": "set", "name": row.dataset} | _known(row))
    for mean in comparison.means:
        # `name` identifies shape bias and kappa; the metric of a mean is that of its sets.
        writer.writerow(
            {"kind": "mean", "title": mean.label}
            | _known(mean)
            | {"missing": ", ".join(mean.missing)}
        )
    return stream.getvalue()


def _known(row: SetDifference | MeanDifference) -> dict[str, Any]:
    return {key: "" if plain(value) is None else value for key, value in asdict(row).items()}


def to_json(comparison: AccuracyComparison) -> str:
    return json.dumps(comparison.to_json(), indent=1, allow_nan=False) + "\n"


FORMATS: dict[str, Callable[[AccuracyComparison], str]] = {
    "table": to_terminal,
    "csv": to_csv,
    "json": to_json,
    "latex": to_latex,
}


def write_accuracy_comparison(
    comparison: AccuracyComparison, output: Path | None, *, kind: str
) -> str:
    """Return a comparison as text, or write it to a file.

    Returns a sentence that names the file where one is written.

    Args:
        kind: One of `FORMATS`.

    Raises:
        StoreError: If the file cannot be written.
    """
    text = FORMATS[kind](comparison)
    if output is None:
        return text.rstrip()
    write_text(output, text)
    return (
        f"{output}: {len(comparison.series)} series, epochs "
        f"{', '.join(map(str, comparison.epochs))}."
    )
