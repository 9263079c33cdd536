"""Comparisons as text.

Tables for a terminal and for LaTeX, rows for CSV, everything for JSON.
"""

import csv
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from landscape.compare.eigenvector_tables import vector_grids
from landscape.compare.grid import Grid
from landscape.compare.metrics import HEADLINES, METRICS, NORMALISED, QUOTED, Metric
from landscape.compare.result import Comparison, Difference, plain
from landscape.compare.sentences import p_text, sides_text, summary_text, with_interval
from landscape.errors import StoreError
from landscape.manifest import write_atomically
from landscape.terminal import TextTable, terminal_width, wrapped

# Columns of the CSV file; `value` is the difference in the rows of a pair.
CSV_COLUMNS = (
    "kind metric unit epoch first second paired num_batches num_left_out num_planned "
    "num_uncertified audited value low high mean standard_error q05 q25 median q75 q95 first_value "
    "second_value ratio ratio_low ratio_high effect p_value smallest_p p_holm known open_low "
    "open_high first_error second_error"
).split()


def grids(comparison: Comparison, metrics: Sequence[str] | None = None) -> list[Grid]:
    """Tabulate the numbers of every series, the differences, and the eigenvectors.

    Args:
        metrics: Names of metrics. By default `HEADLINES` of every series, the differences of those
            that sentences quote, and in one table those of their normalised versions.
    """
    known = {metric.name: metric for metric in comparison.metrics}
    chosen, contrasted = (
        [known[name] for name in names if name in known]
        for names in ((HEADLINES, QUOTED) if metrics is None else (metrics, metrics))
    )
    tables: list[Grid | None] = [_series_grid(comparison, chosen)]
    for metric in contrasted:
        tables.append(_pair_grid(comparison, metric))
        if metrics is None and metric.name in NORMALISED:
            versions = [known[name] for name in NORMALISED[metric.name] if name in known]
            tables.append(_normalised_grid(comparison, metric, versions))
    tables += vector_grids(comparison.eigenvectors, confidence=comparison.confidence)
    return [grid for grid in tables if grid is not None]


def _series_grid(comparison: Comparison, metrics: Sequence[Metric]) -> Grid:
    rows = []
    for epoch in comparison.epochs:
        for info in comparison.series:
            summaries = [comparison.summary(info.name, epoch, metric.name) for metric in metrics]
            counted = {summary.num_batches for summary in summaries if summary is not None}
            batches = (
                "-".join(map(str, sorted({min(counted), max(counted)}))) if counted else "none"
            )
            values = [summary_text(summary) if summary is not None else "" for summary in summaries]
            rows.append((str(epoch), comparison.label(info.name), batches, *values))
    header = (
        "epoch",
        "series",
        "batches",
        *(f"{metric.label}, {_located(metric)}" for metric in metrics),
    )
    return Grid("Each series over its batches", header, tuple(rows))


def _pair_grid(comparison: Comparison, metric: Metric) -> Grid | None:
    differences = [row for row in comparison.differences if row.metric == metric.name]
    names = list(dict.fromkeys((row.first, row.second) for row in differences))
    scale = 100 if metric.is_share else 1
    rows = [
        (
            f"{comparison.label(row.first)} \N{MINUS SIGN} {comparison.label(row.second)}",
            str(row.epoch),
            str(row.num_batches),
            " vs ".join(sides_text(row)),
            with_interval(*(scale * number for number in (row.difference, row.low, row.high))),
            with_interval(row.ratio, row.ratio_low, row.ratio_high)
            if math.isfinite(row.ratio)
            else "",
            f"{row.effect:+.2f}" if math.isfinite(row.effect) else "",
            p_text(row.p_holm),
        )
        for row in sorted(differences, key=lambda row: names.index((row.first, row.second)))
    ]
    header = (
        "pair",
        "epoch",
        "batches",
        _located(metric),
        "difference",
        "ratio",
        "effect",
        "Holm p",
    )
    unit = "" if metric.unit == "1" else f", {metric.unit}"
    unit = ", %" if metric.is_share else unit
    title = (
        f"{metric.label}{unit}: {'paired ' if comparison.paired else ''}differences "
        f"[{100 * comparison.confidence:g} %]"
    )
    return Grid(title, header, tuple(rows)) if rows else None


def _normalised_grid(
    comparison: Comparison, metric: Metric, versions: Sequence[Metric]
) -> Grid | None:
    """Tabulate each normalised version, a row per pair and epoch.

    Cells hold the ratio, or where there is none the difference.
    """
    by_key = {(row.first, row.second, row.epoch, row.metric): row for row in comparison.differences}
    keys = dict.fromkeys(
        key[:3] for key in by_key if key[3] in {version.name for version in versions}
    )
    pairs = list(dict.fromkeys(key[:2] for key in keys))
    rows = []
    for first, second, epoch in sorted(keys, key=lambda key: pairs.index(key[:2])):
        cells = [_compact(by_key.get((first, second, epoch, version.name))) for version in versions]
        rows.append((f"{comparison.label(first)} / {comparison.label(second)}", str(epoch), *cells))
    header = ("pair", "epoch", *(version.label for version in versions))
    paired = "paired " if comparison.paired else ""
    title = (
        f"{metric.label}, normalised: {paired}ratios [{100 * comparison.confidence:g} %] and Holm p"
    )
    return Grid(title, header, tuple(rows)) if rows else None


def _compact(row: Difference | None) -> str:
    if row is None:
        return ""
    ratio = with_interval(row.ratio, row.ratio_low, row.ratio_high)
    what = (
        ratio
        if math.isfinite(row.ratio)
        else f"difference {with_interval(row.difference, row.low, row.high)}"
    )
    return f"{what}, p {p_text(row.p_holm)}"


def _located(metric: Metric) -> str:
    return "pooled" if metric.location == "ratio" else metric.location


def to_terminal(
    comparison: Comparison, metrics: Sequence[str] | None = None, *, width: int | None = None
) -> str:
    """Render tables, then sentences to quote, gaps, and limits of the numbers.

    Args:
        width: Columns of the terminal; by default its own number, or 120 without a terminal.
    """
    return text_of(grids(comparison, metrics), texts_of(comparison), width=width)


def text_of(
    tables: Sequence[Grid],
    texts: Sequence[tuple[str, tuple[str, ...]]],
    *,
    width: int | None = None,
) -> str:
    """Render tables and headed lists of sentences for a terminal.

    Args:
        texts: Headings, each with its sentences.
        width: As in `to_terminal`.
    """
    width = width if width is not None else terminal_width() or 120
    parts = [_text_table(grid).text(width) for grid in tables]
    for heading, lines in texts:
        if lines:
            parts += ["", wrapped(heading, width), *(wrapped(f"- {line}", width) for line in lines)]
    return "\n".join(parts)


def _text_table(grid: Grid) -> TextTable:
    sections = [index for index in range(len(grid.rows)) if grid.begins_section(index)]
    return TextTable(
        title=grid.title,
        header=grid.header,
        rows=grid.rows,
        num_names=2,
        num_left=2,
        sections=sections,
    )


class WithSentences(Protocol):
    """Comparison of any kind that has sentences."""

    @property
    def sentences(self) -> tuple[str, ...]: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    @property
    def caveats(self) -> tuple[str, ...]: ...


def texts_of(comparison: WithSentences) -> list[tuple[str, tuple[str, ...]]]:
    """Return the sentences of a comparison under their headings."""
    return [
        ("To quote:", comparison.sentences),
        ("What is missing or differs:", comparison.notes),
        ("What these numbers do not show:", comparison.caveats),
    ]


def to_csv(comparison: Comparison) -> str:
    """Render one row per series, epoch and metric, and one per pair.

    `kind` is "series" or "difference"; unknown numbers are empty.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for kind, rows in (("series", comparison.summaries), ("difference", comparison.differences)):
        for row in rows:
            fields = {
                key: "" if plain(value) is None else value for key, value in asdict(row).items()
            }
            fields = {
                {"series": "first", "difference": "value"}.get(key, key): value
                for key, value in fields.items()
            }
            writer.writerow({"kind": kind, "unit": METRICS[row.metric].unit, **fields})
    return stream.getvalue()


def to_json(comparison: Comparison) -> str:
    return json.dumps(comparison.to_json(), indent=1, allow_nan=False) + "\n"


_LATEX = {character: f"\\{character}" for character in "&%$#_{}"}
_LATEX |= {character: f"${character}$" for character in "<>"}
_LATEX |= {
    "\\": r"\textbackslash{}",
    "^": r"\^{}",
    "~": r"\~{}",
    "|": r"\textbar{}",
    "\N{MINUS SIGN}": "$-$",
}


def to_latex(comparison: Comparison, metrics: Sequence[str] | None = None) -> str:
    """Render tables for the LaTeX package booktabs, sentences as comments."""
    return latex_of(grids(comparison, metrics), texts_of(comparison))


def latex_of(tables: Sequence[Grid], texts: Sequence[tuple[str, tuple[str, ...]]]) -> str:
    """Render tables, and lists of sentences as comments, for LaTeX."""
    parts = ["% Needs \\usepackage{booktabs}. Written by landscape compare."]
    parts += [f"% {heading} {line}" for heading, lines in texts for line in lines]
    for grid in tables:
        columns = "".join(justify[0] for justify in grid.justified)
        parts += [
            r"\begin{table}",
            r"\centering\small",
            rf"\caption{{{escaped_latex(grid.title)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(map(escaped_latex, grid.header)) + r" \\",
            r"\midrule",
            *_latex_rows(grid),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    return "\n".join(parts) + "\n"


def _latex_rows(grid: Grid) -> list[str]:
    lines: list[str] = []
    for index, row in enumerate(grid.rows):
        if grid.begins_section(index):
            lines.append(r"\addlinespace")
        text = " & ".join(escaped_latex(cell) for cell in row)
        # The end of the row before would read these as its own argument.
        lines.append(("{}" if text.startswith(("[", "*")) else "") + text + r" \\")
    return lines


def escaped_latex(text: str) -> str:
    escaped = re.sub(r"[\\^~\u2212<>|&%$#_{}]", lambda match: _LATEX[match.group()], text)
    powers = re.sub(
        r"(?<=[\d)])e([+-]\d+)\b", lambda match: rf"$\times10^{{{int(match[1])}}}$", escaped
    )
    return re.sub(r"(?<![\w.{])-(?=[\d.])", "$-$", powers)


FORMATS: dict[str, Callable[..., str]] = {
    "table": to_terminal,
    "csv": to_csv,
    "json": to_json,
    "latex": to_latex,
}
SUFFIXES = {".txt": "table", ".csv": "csv", ".json": "json", ".tex": "latex"}


def format_of(path: Path | None, *, kind: str | None = None) -> str:
    """Choose the format: `kind`, what the suffix says, or a table.

    Returns a name in `FORMATS`. The table is for output without a file.

    Raises:
        ValueError: If neither names a format, or they name different ones: readers of the file rely
            on its name.
    """
    told = None if path is None else SUFFIXES.get(path.suffix.lower())
    if path is not None and kind is None and told is None:
        known = ", ".join(SUFFIXES)
        raise ValueError(
            f"{path}: a comparison cannot be written as {path.suffix!r}; the suffix must be one of "
            f"{known}."
        )
    if path is not None and told is None and path.exists():
        raise ValueError(
            f"{path}: is there already, and its name does not say that it is a comparison, so it "
            f"is not overwritten; name a file that ends in {', '.join(SUFFIXES)}."
        )
    if kind is not None and told is not None and kind != told:
        suffix = next(suffix for suffix, other in SUFFIXES.items() if other == kind)
        raise ValueError(
            f"{path}: its name says {told}, but --format says {kind}; leave out --format, or name "
            f"a file that ends in {suffix}."
        )
    return kind or told or "table"


def write_comparison(
    comparison: Comparison,
    path: Path,
    *,
    kind: str | None = None,
    metrics: Sequence[str] | None = None,
) -> None:
    """Write a comparison into a file, whole or not at all.

    Args:
        kind: One of `FORMATS`; by default as the suffix says.
        metrics: Metrics that tables show; CSV and JSON hold all.

    Raises:
        ValueError: If the suffix says no format.
        StoreError: If the file cannot be written.
    """
    kind = format_of(path, kind=kind)
    write_text(
        path,
        FORMATS[kind](comparison, metrics)
        if kind in ("table", "latex")
        else FORMATS[kind](comparison),
    )


def write_text(path: Path, text: str) -> None:
    """Write a rendered comparison, whole or not at all.

    Raises:
        StoreError: If the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written ({error.strerror}) - the comparison is not saved - choose "
            "a folder that is writable."
        ) from error
