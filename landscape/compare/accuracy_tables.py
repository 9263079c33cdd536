"""Table 1: the metric of every checkpoint on every set, for a terminal, CSV, JSON and LaTeX."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from landscape.compare.accuracy import (
    METRIC_TITLES,
    MeanScore,
    SetScore,
    means_of,
    scores_of,
    winners,
)
from landscape.compare.tables import escaped_latex, format_of
from landscape.errors import StoreError
from landscape.files import write_atomically
from landscape.statistics import Bootstrap, Interval
from landscape.store.predictions import PredictionStore, notes_on
from landscape.terminal import TextTable, terminal_width, wrapped

COLUMNS = (
    "series label model epoch dataset condition title metric value low high n num_pictures num_unread chance best"
).split()


def _published() -> tuple[str, ...]:
    """The sets of the published Table 1; imported here, as data sets bring torch."""
    from landscape.datasets.suite import SUITE

    return tuple(one.identifier for one in SUITE)


@dataclass(frozen=True)
class AccuracyTable:
    """The scores of a store, and which of them are the best of their epoch by a paired test.

    Attributes:
        notes: What a reader should know of the sets, a sentence each.
        means: Over the sets that all checkpoints have answered.
    """

    scores: Sequence[SetScore]
    best: frozenset[tuple[str, int, str, str]]
    notes: tuple[str, ...] = ()
    means: Sequence[MeanScore] = ()

    @classmethod
    def of(
        cls,
        store: PredictionStore,
        *,
        series: Sequence[str] = (),
        epochs: Sequence[int] | None = None,
        bootstrap: Bootstrap = Bootstrap(),
    ) -> "AccuracyTable":
        """Compute everything that the table shows.

        Raises:
            StoreError: If there is no such series or epoch, or nothing is answered yet.
        """
        chosen = chosen_checkpoints(store, series=series, epochs=epochs)
        best, notes = frozenset(winners(chosen, bootstrap)), tuple(notes_on(store.sets.values()))
        return cls(scores_of(chosen, bootstrap), best, notes, means_of(chosen, bootstrap))

    def is_best(self, score: SetScore) -> bool:
        return (score.series, score.epoch, score.dataset, score.condition) in self.best


def chosen_checkpoints(
    store: PredictionStore, *, series: Sequence[str] = (), epochs: Sequence[int] | None = None
) -> PredictionStore:
    """The part of a store that is of some series and epochs.

    Raises:
        StoreError: If one is not there, or nothing is left.
    """
    names = dict.fromkeys(name for name, _ in store.checkpoints)
    for name in series:
        if name not in names:
            raise StoreError(
                f"there is no series {name!r} in this store; it has {', '.join(names)}."
            )
    known = sorted({epoch for _, epoch in store.checkpoints})
    for epoch in epochs or ():
        if epoch not in known:
            raise StoreError(
                f"no series of this store has an epoch {epoch}; it has {', '.join(map(str, known))}."
            )
    kept = {
        key: one
        for key, one in store.checkpoints.items()
        if (not series or key[0] in series) and (epochs is None or key[1] in epochs)
    }
    if not kept:
        raise StoreError("nothing is answered in this store yet; run `landscape evaluate` first.")
    return replace(store, checkpoints=kept)


def distinct_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """What tables and figures call each series: its label, with its name where several have one label."""
    counts = Counter(labels.values())
    return {
        name: label if counts[label] == 1 else f"{label} ({name})" for name, label in labels.items()
    }


# --- texts ------------------------------------------------------------------------------------------------------------


def rows(table: AccuracyTable) -> list[dict[str, Any]]:
    """A row for each checkpoint and set, as plain values; what is not known is None."""
    found = [score.row() | {"best": table.is_best(score)} for score in table.scores]
    return [{key: _known(value) for key, value in row.items()} for row in found]


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def to_csv(table: AccuracyTable) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(table))
    return text.getvalue()


def to_json(table: AccuracyTable) -> str:
    means = [
        {
            "series": mean.series,
            "epoch": mean.epoch,
            "value": mean.value.value,
            "low": _known(mean.value.low),
            "high": _known(mean.value.high),
            "datasets": list(mean.datasets),
        }
        for mean in table.means
    ]
    return (
        json.dumps({"rows": rows(table), "means": means, "notes": list(table.notes)}, indent=1)
        + "\n"
    )


def to_terminal(table: AccuracyTable) -> str:
    """A column for each checkpoint, a row for each set: percent, and half the width of the interval."""
    width = terminal_width()
    checkpoints, sets, cells = _grid(table)
    header = ("set", "n", "chance", *(f"{label} {epoch}" for label, epoch in checkpoints))
    lines = [
        (title, *facts, *(cells.get((key, checkpoint), "") for checkpoint in checkpoints))
        for key, title, facts in sets
    ]
    grid = TextTable(
        title="Percent ± half of the 95 % interval",
        header=header,
        rows=tuple(lines),
        num_names=1,
        num_left=1,
    )
    return "\n".join([grid.text(width), *(wrapped(line, width) for line in _remarks(table))])


def _grid(
    table: AccuracyTable,
) -> tuple[list[tuple[str, int]], list[tuple[Any, str, tuple[str, str]]], dict[Any, str]]:
    """Checkpoints, sets with their title and facts, and the cells."""
    several = len({score.metric for score in table.scores}) > 1
    labels = distinct_labels({score.series: score.label for score in table.scores})
    checkpoints = list(dict.fromkeys((labels[score.series], score.epoch) for score in table.scores))
    sets: dict[Any, tuple[Any, str, tuple[str, str]]] = {}
    cells: dict[Any, str] = {}
    for score in table.scores:
        key = score.dataset, score.condition
        title = f"{score.title} {score.condition}".strip() + (
            f", {_short(score.metric)}" if several else ""
        )
        chance = "" if math.isnan(score.chance) else f"{100 * score.chance:.1f}"
        sets.setdefault(key, (key, title, (f"{score.num_pictures:,}", chance)))
        cells[key, (labels[score.series], score.epoch)] = _cell(score, best=table.is_best(score))
    for mean in table.means:
        sets.setdefault("mean", ("mean", f"mean of {_counted(mean.datasets)}", ("", "")))
        cells["mean", (labels[mean.series], mean.epoch)] = _percent(mean.value)
    return checkpoints, list(sets.values()), cells


def _short(metric: str) -> str:
    return {
        "top1": "top-1",
        "mean_per_class": "per class",
        "top1_top5": "top-1, top-5",
        "roc_auc": "AUC",
    }[metric]


def _counted(datasets: Sequence[str]) -> str:
    """How many sets there are; of the published table's, how many of those."""
    published = _published()
    return (
        f"{len(datasets)} of {len(published)} sets"
        if set(datasets) <= set(published)
        else f"{len(datasets)} sets"
    )


def _percent(value: Interval) -> str:
    half = "" if math.isnan(value.low) else f" ± {50 * (value.high - value.low):.1f}"
    return f"{100 * value.value:.1f}{half}"


def _cell(score: SetScore, *, best: bool) -> str:
    partly = f" ({score.n} of {score.num_pictures})" if score.n < score.num_pictures else ""
    return f"{_percent(score.value)}{' *' if best else ''}{partly}"


def _remarks(table: AccuracyTable) -> list[str]:
    lines = []
    if table.best:
        lines.append(
            "* better than every other series at this epoch by a paired test, corrected for all sets and pairs."
        )
    metrics = dict.fromkeys(score.metric for score in table.scores)
    named = "; ".join(METRIC_TITLES[metric] for metric in metrics)
    lines.append(f"Metrics: {named}. Intervals: Wilson for top-1, else bootstrap.")
    there = set(table.means[0].datasets) if table.means else set()
    missing = [name for name in _published() if name not in there] if there else []
    if missing and there <= set(_published()):
        lines.append(f"Of the published table's sets there are not: {', '.join(missing)}.")
    unread = sum(score.num_unread for score in table.scores)
    if unread:
        lines.append(
            f"{unread} answers are missing, as pictures could not be read; they count as wrong."
        )
    return [*lines, *table.notes]


def to_latex(table: AccuracyTable) -> str:
    """A row for each checkpoint, a column for each set, in the manner of the package booktabs."""
    checkpoints, sets, cells = _grid(table)
    heads = [r"\rotatebox{90}{" + escaped_latex(title) + "}" for _, title, _ in sets]
    lines = []
    for label, epoch in checkpoints:
        found = [cells.get((key, (label, epoch)), "--") for key, _, _ in sets]
        texts = [
            rf"\textbf{{{escaped_latex(cell[:-2])}}}"
            if cell.endswith(" *")
            else escaped_latex(cell)
            for cell in found
        ]
        lines.append(" & ".join([escaped_latex(label), str(epoch), *texts]) + r" \\")
    return "\n".join(
        [
            "% Needs \\usepackage{booktabs, graphicx}. Written by landscape table.",
            *(f"% {line}" for line in _remarks(table)),
            rf"\begin{{tabular}}{{lr{'r' * len(sets)}}}",
            r"\toprule",
            " & ".join(["", "epoch", *heads]) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


FORMATS: dict[str, Callable[[AccuracyTable], str]] = {
    "table": to_terminal,
    "csv": to_csv,
    "json": to_json,
    "latex": to_latex,
}


def write_table(table: AccuracyTable, output: Path | None, *, kind: str | None) -> str:
    """The table as text, or, where it goes to a file, a sentence that says so.

    Raises:
        StoreError: If the suffix and the format disagree, or the file cannot be written.
    """
    return shown_or_written(FORMATS, table, output, kind=kind, num_rows=len(table.scores))


T = TypeVar("T")


def shown_or_written(
    formats: Mapping[str, Callable[[T], str]],
    table: T,
    output: Path | None,
    *,
    kind: str | None,
    num_rows: int,
) -> str:
    """A table of any kind as text, or, where it goes to a file, a sentence that says so.

    Args:
        formats: Makers of text, by the names that `format_of` gives.

    Raises:
        StoreError: If the suffix and the format disagree, or the file cannot be written.
    """
    try:
        wanted = format_of(output, kind=kind)
    except ValueError as error:
        raise StoreError(f"table: {error}") from error
    text = formats[wanted](table)
    if output is None:
        return text.rstrip()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, text.encode())
    except OSError as error:
        reason = error.strerror or error
        raise StoreError(
            f"{output}: cannot be written ({reason}); choose a folder that is writable."
        ) from error
    return f"{output}: {num_rows} rows."
