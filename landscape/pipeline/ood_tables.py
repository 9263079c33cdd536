"""The table of Figure 1: a row per model and one of people.

For a terminal, CSV, JSON and LaTeX. Every number is the benchmark's, with a bootstrap interval;
`landscape.answers` computes it.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landscape.answers import HUMANS, SEVENTEEN, SHAPE_BIAS, SIXTEEN, Answers, Resamples, resample
from landscape.compare.accuracy_tables import shown_or_written
from landscape.compare.tables import escaped_latex
from landscape.errors import AnswersError
from landscape.statistics import Interval
from landscape.terminal import TextTable, terminal_width, wrapped

# Columns: metric, data sets of the mean, and heading.
_COLUMNS = {
    "ood_accuracy_17": ("accuracy", SEVENTEEN, "OOD accuracy, 17 sets"),
    "ood_accuracy_16": ("accuracy", SIXTEEN, "OOD accuracy, 16 sets"),
    "accuracy_difference": ("accuracy_difference", SEVENTEEN, "accuracy difference"),
    "observed_consistency": ("observed_consistency", SEVENTEEN, "observed consistency"),
    "error_consistency": ("error_consistency", SEVENTEEN, "error consistency"),
    SHAPE_BIAS: (SHAPE_BIAS, (), "shape bias"),
}
COLUMNS = (
    "model",
    "label",
    "kind",
    *(f"{name}{end}" for name in _COLUMNS for end in ("", "_low", "_high", "_sets")),
    "missing",
)
_TOGETHER = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True, kw_only=True)
class OodCell:
    """A number with its interval.

    Args:
        interval: NaN where there is none.
        num_sets: Data sets in its mean; 1 for shape bias.
        missing: Data sets that are missing from its mean.
    """

    interval: Interval
    num_sets: int
    missing: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class OodRow:
    """The numbers of an observer.

    Args:
        model: Name of the observer; "humans" stands for all people together.
        cells: Numbers by the name of the column.
    """

    model: str
    label: str
    cells: Mapping[str, OodCell]

    @property
    def is_people(self) -> bool:
        return self.model == HUMANS

    @property
    def missing(self) -> tuple[str, ...]:
        """Return the data sets that are missing from any of the means."""
        return tuple(
            name for name in SEVENTEEN if any(name in cell.missing for cell in self.cells.values())
        )


@dataclass(frozen=True, kw_only=True)
class OodTable:
    """Rows of models in the order of the answers, then people.

    Args:
        confidence: Confidence of the intervals.
    """

    rows: tuple[OodRow, ...]
    confidence: float

    @property
    def notes(self) -> list[str]:
        """Return the notes for readers, a sentence each."""
        lines = []
        gaps: dict[tuple[str, ...], list[str]] = {}
        for row in self.rows:
            if row.missing:
                gaps.setdefault(row.missing, []).append(row.label)
        for missing, labels in gaps.items():
            who = "all rows" if len(labels) == len(self.rows) else ", ".join(labels)
            lines.append(
                f"Not in the means of {who}: {', '.join(missing)}. Their means compare with no "
                "published ones."
            )
        if any(row.is_people for row in self.rows):
            lines.append(
                "Accuracy difference (squared) and consistencies: of models with people; of "
                "people, one person with another. Intervals of people are over pictures and "
                "people, others over pictures."
            )
            lines.append(
                "A difference is squared, so noise raises it: its intervals lie too high by about "
                "a third of a standard error."
            )
        return lines


def ood_table(
    answers: Answers, *, resamples: Resamples | None = None, labels: Mapping[str, str] | None = None
) -> OodTable:
    """Compute the means of every observer, and their intervals.

    Args:
        resamples: Resamples of these answers; by default `resample(answers)`.
        labels: Labels of observers, by their names; "humans" are all people together.

    Raises:
        AnswersError: If there is no answer.
    """
    if not len(answers):
        raise AnswersError(
            "table: there is no answer, so there is nothing to tabulate. Name answers of models or "
            "people."
        )
    resamples = resamples or resample(answers)
    names = {HUMANS: "people"} | dict(labels or {})
    rows = tuple(
        OodRow(
            model=name,
            label=names.get(name, name),
            cells={column: _cell(resamples, name, column) for column in _COLUMNS},
        )
        for name in resamples.scores
    )
    return OodTable(rows=rows, confidence=resamples.settings.confidence)


def _cell(resamples: Resamples, observer: str, column: str) -> OodCell:
    metric, datasets, _ = _COLUMNS[column]
    if metric == SHAPE_BIAS:
        interval = resamples.interval(observer, metric)
        return OodCell(interval=interval, num_sets=int(math.isfinite(interval.value)), missing=())
    mean = resamples.scores[observer].mean(metric, datasets)
    interval = resamples.interval(observer, metric, datasets)
    return OodCell(interval=interval, num_sets=len(mean.datasets), missing=mean.missing)


# --- texts -------------------------------------------------------------------------------


def rows(table: OodTable) -> list[dict[str, Any]]:
    """Return a row of plain values per observer.

    An unknown value is None. Keys are `COLUMNS`. The mean of a column is over `<column>_sets` data
    sets, all that the observer has; `missing` names the others.
    """
    records = []
    for row in table.rows:
        record: dict[str, Any] = {
            "model": row.model,
            "label": row.label,
            "kind": "human" if row.is_people else "model",
        }
        for name, cell in row.cells.items():
            numbers = zip(
                ("", "_low", "_high"),
                (cell.interval.value, cell.interval.low, cell.interval.high),
                strict=True,
            )
            record |= {
                f"{name}{end}": number if math.isfinite(number) else None for end, number in numbers
            }
            record[f"{name}_sets"] = cell.num_sets
        records.append(record | {"missing": ", ".join(row.missing)})
    return records


def to_csv(table: OodTable) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(table))
    return text.getvalue()


def to_json(table: OodTable) -> str:
    content = {"confidence": table.confidence, "rows": rows(table), "notes": table.notes}
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def to_terminal(table: OodTable, *, width: int | None = None) -> str:
    """Draw the table and its notes.

    Args:
        width: Columns of the terminal; by default as many as it has, or 120 where there is none.
    """
    width = width if width is not None else terminal_width() or 120
    # "(2 of 17)" stays on one line.
    cells = [
        tuple(text.replace(" of ", f"{_TOGETHER}of{_TOGETHER}") for text in _texts(row)[1:])
        for row in table.rows
    ]
    grid = TextTable(
        title=_title(table),
        header=_header(),
        rows=tuple((row.label, *texts) for row, texts in zip(table.rows, cells, strict=True)),
        sections=[at for at, row in enumerate(table.rows) if row.is_people and at],
    )
    drawn = grid.text(width).replace(_TOGETHER, " ")
    return "\n".join([drawn, *(wrapped(line, width) for line in table.notes)])


def to_latex(table: OodTable) -> str:
    """Write the table for the LaTeX package booktabs, with notes as comments."""
    lines = []
    for at, row in enumerate(table.rows):
        if row.is_people and at:
            lines.append(r"\midrule")
        lines.append(" & ".join(escaped_latex(text) for text in _texts(row)) + r" \\")
    return "\n".join(
        [
            "% Needs \\usepackage{booktabs}. Written by landscape table.",
            f"% {_title(table)}",
            *(f"% {line}" for line in table.notes),
            rf"\begin{{tabular}}{{l{'r' * len(_COLUMNS)}}}",
            r"\toprule",
            " & ".join(escaped_latex(text) for text in _header()) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _title(table: OodTable) -> str:
    return f"Out of distribution [{100 * table.confidence:g} % interval]"


def _header() -> tuple[str, ...]:
    return ("model", *(label for _, _, label in _COLUMNS.values()))


def _texts(row: OodRow) -> tuple[str, ...]:
    return (row.label, *(_text(name, cell) for name, cell in row.cells.items()))


def _text(name: str, cell: OodCell) -> str:
    """Format a number with its interval.

    If some sets are missing, with the number of sets too.
    """
    interval = cell.interval
    if not math.isfinite(interval.value):
        return ""
    ends = (
        f" [{_number(interval.low)}, {_number(interval.high)}]"
        if math.isfinite(interval.low)
        else ""
    )
    partly = f" ({cell.num_sets} of {len(_COLUMNS[name][1])})" if cell.missing else ""
    return f"{_number(interval.value)}{ends}{partly}"


def _number(value: float) -> str:
    """Format a number with three decimals, without the leading zero.

    Published tables do so; a row then fits into 120 columns.
    """
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


FORMATS: dict[str, Callable[[OodTable], str]] = {
    "table": to_terminal,
    "csv": to_csv,
    "json": to_json,
    "latex": to_latex,
}


def write(table: OodTable, output: Path | None = None, *, kind: str | None = None) -> str:
    """Return the table as text, or a sentence about its file.

    Args:
        output: The file; None for none.
        kind: One of `FORMATS`; by default by the suffix, and a table without a file.

    Raises:
        StoreError: If the suffix and the format disagree, or the file cannot be written.
    """
    return shown_or_written(FORMATS, table, output, kind=kind, num_rows=len(table.rows))
