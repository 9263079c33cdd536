"""Table 1: the metric of every checkpoint on every set.

Written for a terminal, CSV, JSON and LaTeX.
"""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from landscape.compare.accuracy import METRIC_TITLES, SetScore, scores_of, winners
from landscape.compare.accuracy_means import ZERO_SHOT, AccuracyMean, accuracy_means, is_distorted
from landscape.compare.tables import escaped_latex, format_of
from landscape.datasets.suite import SUITE
from landscape.errors import StoreError
from landscape.files import write_atomically
from landscape.statistics import Bootstrap, Interval
from landscape.store.predictions import PredictionStore, left_out_of, notes_on
from landscape.suggestions import nearest
from landscape.terminal import TextTable, terminal_width, wrapped

COLUMNS = (
    "series label model epoch dataset condition title metric value low high n num_pictures "
    "num_unread chance best"
).split()


def _published() -> tuple[str, ...]:
    """Name the sets of the published Table 1.

    The import is here, as data sets import torch.
    """
    return tuple(dataset.identifier for dataset in SUITE)


@dataclass(frozen=True)
class AccuracyTable:
    """Scores of a store.

    Marks those that a paired test shows to be the best of their epoch.

    Attributes:
        notes: Sentences that a reader should know about the sets.
        mean: Mean over the zero-shot sets that all checkpoints have answered; None where these are
            fewer than two.
    """

    scores: Sequence[SetScore]
    best: frozenset[tuple[str, int, str, str]]
    notes: tuple[str, ...] = ()
    mean: AccuracyMean | None = None

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
        best, notes = (
            frozenset(winners(chosen, bootstrap)),
            (*notes_on(store.sets.values()), *left_out_of(store.sets.values())),
        )
        zero_shot = {
            name: pictures for name, pictures in chosen.sets.items() if not is_distorted(pictures)
        }
        mean = accuracy_means(zero_shot, list(chosen.checkpoints.values()), bootstrap).get(
            ZERO_SHOT
        )
        if mean is None or len(mean.datasets) < 2:
            return cls(scores_of(chosen, bootstrap), best, notes)
        return cls(scores_of(chosen, bootstrap), best, (*notes, *mean.notes), mean)

    @property
    def is_resampled(self) -> bool:
        """Tell whether any number in the table comes from the bootstrap."""
        return self.mean is not None or any(score.metric != "top1" for score in self.scores)

    def is_best(self, score: SetScore) -> bool:
        return (score.series, score.epoch, score.dataset, score.condition) in self.best


def chosen_checkpoints(
    store: PredictionStore, *, series: Sequence[str] = (), epochs: Sequence[int] | None = None
) -> PredictionStore:
    """Restrict a store to some series and epochs.

    Raises:
        StoreError: If a series or an epoch is missing, or nothing is left.
    """
    names = dict.fromkeys(name for name, _ in store.checkpoints)
    for name in series:
        if name not in names:
            raise StoreError(f"there is no series {name!r} in this store; {nearest(name, names)}")
    known = sorted({epoch for _, epoch in store.checkpoints})
    for epoch in epochs or ():
        if epoch not in known:
            raise StoreError(
                f"no series of this store has an epoch {epoch}; it has "
                f"{', '.join(map(str, known))}."
            )
    kept = {
        key: checkpoint
        for key, checkpoint in store.checkpoints.items()
        if (not series or key[0] in series) and (epochs is None or key[1] in epochs)
    }
    if not kept:
        raise StoreError("nothing is answered in this store yet; run `landscape evaluate` first.")
    return replace(store, checkpoints=kept)


def distinct_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Label each series for tables and figures.

    Where several series share a label, their names are added.
    """
    counts = Counter(labels.values())
    return {
        name: label if counts[label] == 1 else f"{label} ({name})" for name, label in labels.items()
    }


# --- texts ----------------------------------------------------------------------------------------


def rows(table: AccuracyTable) -> list[dict[str, Any]]:
    """List a row of plain values per checkpoint and set.

    Unknown numbers are None.
    """
    records = [score.row() | {"best": table.is_best(score)} for score in table.scores]
    return [{key: _known(value) for key, value in row.items()} for row in records]


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def to_csv(table: AccuracyTable) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(table))
    return text.getvalue()


def to_json(table: AccuracyTable) -> str:
    mean = table.mean
    means = (
        []
        if mean is None
        else [
            {
                "series": series,
                "epoch": epoch,
                "value": value.value,
                "low": _known(value.low),
                "high": _known(value.high),
                "datasets": list(mean.datasets),
            }
            for (series, epoch), value in mean.values.items()
        ]
    )
    return (
        json.dumps({"rows": rows(table), "means": means, "notes": list(table.notes)}, indent=1)
        + "\n"
    )


def to_terminal(table: AccuracyTable) -> str:
    """Render a column per checkpoint and a row per set.

    Cells hold percent, and half the width of the interval.
    """
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
    """Lay out checkpoints, sets with their title and facts, and cells."""
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
    if table.mean is not None:
        sets["mean"] = ("mean", f"mean of {_counted(table.mean.datasets)}", ("", ""))
        cells |= {
            ("mean", (labels[series], epoch)): _percent(value)
            for (series, epoch), value in table.mean.values.items()
        }
    return checkpoints, list(sets.values()), cells


def _short(metric: str) -> str:
    return {
        "top1": "top-1",
        "mean_per_class": "per class",
        "top1_top5": "top-1, top-5",
        "roc_auc": "AUC",
    }[metric]


def _counted(datasets: Sequence[str]) -> str:
    """Say how many sets there are, and of how many published ones."""
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
            "* better than every other series at this epoch by a paired test, corrected for all "
            "sets and pairs."
        )
    metrics = dict.fromkeys(score.metric for score in table.scores)
    named = "; ".join(METRIC_TITLES[metric] for metric in metrics)
    lines.append(f"Metrics: {named}. Intervals: Wilson for top-1, else bootstrap.")
    there = set() if table.mean is None else set(table.mean.datasets)
    missing = [name for name in _published() if name not in there] if there else []
    if missing and there <= set(_published()):
        lines.append(f"Sets of the published table that are missing: {', '.join(missing)}.")
    unread = sum(score.num_unread for score in table.scores)
    if unread:
        lines.append(
            f"{unread} answers are missing, as pictures could not be read; they count as wrong."
        )
    return [*lines, *table.notes]


def to_latex(table: AccuracyTable) -> str:
    """Render a row per checkpoint and a column per set.

    Needs the LaTeX package booktabs.
    """
    checkpoints, sets, cells = _grid(table)
    heads = [r"\rotatebox{90}{" + escaped_latex(title) + "}" for _, title, _ in sets]
    lines = []
    for label, epoch in checkpoints:
        row_cells = [cells.get((key, (label, epoch)), "--") for key, _, _ in sets]
        texts = [
            rf"\textbf{{{escaped_latex(cell[:-2])}}}"
            if cell.endswith(" *")
            else escaped_latex(cell)
            for cell in row_cells
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
    """Return the table as text, or write it to a file.

    Returns a sentence that names the file where one is written.

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
    """Return any table as text, or write it to a file.

    Returns a sentence that names the file where one is written.

    Args:
        formats: Functions that make text, by the names that `format_of` gives.

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
