"""Tables of a page, as texts.

They show what was measured, how it compares, and what certifies it.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from landscape.compare import METRICS, Comparison, Difference, Metric, Summary
from landscape.compare.sentences import sides_text, summary_text
from landscape.linalg.number_text import short as comparable
from landscape.manifest.samples import samples_of
from landscape.report.study import Study
from landscape.store import SpectraTable, models_as_trained, value_text
from landscape.store.table import combined
from landscape.terminal import TOGETHER

# Columns of the table of numbers, where the comparison has them, in this order.
_CERTAIN = ("lambda_max", "nep", "ape", "num_negative_at_least")
_ESTIMATED = (
    "num_negative_estimate",
    "negative_share",
    "negative_mass",
    "trace",
    "trace_per_parameter",
)
_NUMBERS = (*_CERTAIN, *_ESTIMATED, "loss")
NOTHING = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Texts in rows.

    The first `num_heads` cells of a row name its subject; the others are numbers if `numeric`, else
    words.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    num_heads: int = 2
    numeric: bool = True


def number(value: float, spec: str | None = None) -> str:
    """Format a number as the comparison does, or by `spec`.

    It has the signs of print; a dash where there is none.
    """
    if not math.isfinite(value):
        return NOTHING
    return printed(comparable(value) if spec is None else format(value, spec))


def printed(text: str) -> str:
    """Replace the signs of numbers by those of print.

    These are a minus, short exponents, and no break before an error or a unit.
    """
    short = re.sub(r"(?<=[\d)])e([+-]\d+)", lambda match: f"e{int(match[1])}", text)
    return TOGETHER.sub("\N{NO-BREAK SPACE}", short).replace("-", _MINUS)


def interval(value: float, low: float, high: float) -> str:
    """Format a number with its interval in brackets, which do not break."""
    return (
        number(value)
        if number(low) == NOTHING
        else f"{number(value)} [{number(low)},\N{NO-BREAK SPACE}{number(high)}]"
    )


def summary_cell(row: Summary) -> str:
    """Format an estimate with its error, or another number with its interval.

    An estimate may be "unknown".
    """
    metric = METRICS[row.metric]
    return (
        interval(row.value, row.low, row.high)
        if metric.estimate is None
        else printed(summary_text(row))
    )


def numbers_table(study: Study) -> Table | None:
    """Tabulate every metric of every checkpoint.

    Planned checkpoints without a record are included. None without a comparison.
    """
    comparison = study.comparison
    if comparison is None:
        return None
    metrics = [metric for name in _NUMBERS for metric in comparison.metrics if metric.name == name]
    rows = []
    for planned in study.plan.series:
        for epoch in planned.epochs:
            summaries = [comparison.summary(planned.name, epoch, metric.name) for metric in metrics]
            cells = [NOTHING if summary is None else summary_cell(summary) for summary in summaries]
            rows.append(
                (
                    _label(study, planned.name),
                    str(epoch),
                    _batches(study, planned.name, epoch),
                    *cells,
                )
            )
    header = ("series", "epoch", "batches", *(with_unit(metric) for metric in metrics))
    caption = (
        f"In brackets: {100 * comparison.confidence:g} % bootstrap intervals over mini-batches. "
        "After \N{PLUS-MINUS SIGN}: one standard error, of random probes and mini-batches and half "
        "of what the quadratures leave open; unknown where that tells no digit."
    )
    return Table(caption=caption, header=header, rows=tuple(rows))


def with_unit(metric: Metric) -> str:
    """Format a metric as the heading of a column."""
    return metric.label if metric.unit == "1" else f"{metric.label} ({metric.unit})"


def _label(study: Study, series: str) -> str:
    planned = study.plan.named(series)
    return study.labels.get(series, planned.label if planned else series)


def _batches(study: Study, series: str, epoch: int) -> str:
    table = study.tables.get((series, epoch))
    if table is None:
        return "not measured"
    return (
        f"{table.num_records}"
        if table.num_records == table.num_planned
        else f"{table.num_records} of {table.num_planned}"
    )


def difference_tables(comparison: Comparison) -> list[tuple[Metric, Table]]:
    """Tabulate the pairwise differences of every metric that has any."""
    header = (
        "first against second",
        "epoch",
        "first",
        "second",
        "difference",
        "ratio",
        "effect",
        "p (Holm)",
        "batches",
    )
    how = "paired by mini-batch" if comparison.paired else "not paired: the batches differ"
    caption = (
        f"First minus second, {how}; in brackets {100 * comparison.confidence:g} % bootstrap "
        "intervals; p-values by permutation, corrected over epochs and pairs after Holm "
        f"({comparison.num_resamples} resamples, seed {comparison.seed})."
    )
    tables = []
    for metric in comparison.metrics:
        rows = tuple(
            _difference_row(comparison, row)
            for row in comparison.differences
            if row.metric == metric.name
        )
        if rows:
            tables.append((metric, Table(caption=caption, header=header, rows=rows)))
    return tables


def _difference_row(comparison: Comparison, row: Difference) -> tuple[str, ...]:
    # Differences of shares are in percent, as the shares are.
    scale = 100 if METRICS[row.metric].is_share else 1
    return (
        f"{comparison.label(row.first)} against {comparison.label(row.second)}",
        str(row.epoch),
        *map(printed, sides_text(row)),
        interval(*(scale * number for number in (row.difference, row.low, row.high))),
        interval(row.ratio, row.ratio_low, row.ratio_high),
        number(row.effect, "+.2f"),
        number(row.p_holm, ".2g"),
        str(row.num_batches),
    )


def certificate_table(study: Study) -> Table:
    """Tabulate the certificates of the eigenvalues of every measured checkpoint."""
    certified = (
        "eigenvalues converged",
        "worst residual",
        "worst of the rest",
        "negative for certain",
        "basis defect",
        "missed",
    )
    header = ("series", "epoch", "batches", *certified, "products per batch", "CPU s per batch")
    rows = []
    for (series, epoch), table in study.tables.items():
        rows.append(
            (
                study.labels[series],
                str(epoch),
                _batches(study, series, epoch),
                f"{table.eigenvalues.size - table.num_not_converged} of {table.eigenvalues.size}",
                _worst(table.residuals[table.converged]),
                _worst(table.residuals[~table.converged]),
                _certain_negatives(table),
                _worst(table.orthogonality_defect),
                _worst(table.missed_probability),
                number(float(np.median(table.num_matvecs)), "g"),
                number(float(np.median(table.seconds)), ".2g"),
            )
        )
    caption = (
        "Residual: |Hv \N{MINUS SIGN} λv| / |λ|, rounding included; an eigenvalue of the Hessian "
        "lies that near. Negative for certain: a lower bound of the number of negative "
        "eigenvalues, median over mini-batches and its range. Basis defect: how far the vectors of "
        "a Krylov basis are from orthonormal, max |V’V − I|. Missed: the largest probability, over "
        "the random start, with which a further eigenvalue beyond the last, more than 5 % from "
        "every value found, was missed."
    )
    return Table(caption=caption, header=header, rows=tuple(rows))


def _worst(errors: np.ndarray) -> str:
    known = errors[~np.isnan(errors)]
    return number(float(known.max()), ".1e") if known.size else NOTHING


def _certain_negatives(table: SpectraTable) -> str:
    counts = table.num_negative[table.num_negative >= 0]
    if not counts.size:
        return NOTHING
    low, high = int(counts.min()), int(counts.max())
    return f"{np.median(counts):g}" + (f" ({low}\N{EN DASH}{high})" if low < high else "")


def _not_passed(reason: str) -> str:
    return next((word for word in ("failed", "undecided") if word in reason), "not audited")


def audit_table(study: Study) -> Table:
    """Tabulate the verdict on the products of every series.

    A series has several rows where its runs disagree.
    """
    rows = []
    for series in study.series:
        for verdict in study.audits[series] or ({},):
            passed = verdict.get("passed") is True
            error = verdict.get("worst_error")
            rows.append(
                (
                    study.labels[series],
                    next(
                        table.model for (name, _), table in study.tables.items() if name == series
                    ),
                    "passed" if passed else _not_passed(str(verdict.get("reason", ""))),
                    number(error, ".1e") if isinstance(error, float) else NOTHING,
                    str(verdict.get("epoch", NOTHING)),
                    str(verdict.get("dtype", NOTHING)),
                    str(verdict.get("reason", "")) or ("" if passed else "no verdict is stored"),
                )
            )
    header = ("series", "model", "verdict", "worst error", "at epoch", "in", "remark")
    caption = (
        "Tested: products against differences of gradients, gradients against those of the loss, "
        "symmetry, repetition."
    )
    return Table(caption=caption, header=header, rows=tuple(rows), numeric=False)


def trained_table(study: Study) -> Table | None:
    """Tabulate the settings that each model was trained with, and their sources.

    None in stores that do not know them.
    """
    of_series = {}
    for series in study.series:
        settings = combined(
            table.settings for (name, _), table in study.tables.items() if name == series
        )
        of_series[series] = models_as_trained(settings)
    names = list(
        dict.fromkeys(name for models in of_series.values() for used in models for name in used)
    )
    if not names:
        return None
    rows = []
    for name in names:
        cells = []
        for models in of_series.values():
            said = dict.fromkeys(
                f"{value_text(used[name][0])} ({used[name][1]})" for used in models if name in used
            )
            cells.append("; ".join(said) or NOTHING)
        rows.append((name.replace("_", " "), *cells))
    header = ("setting", *(study.labels[series] for series in of_series))
    caption = (
        "The models as they were trained; in brackets who says so: a file of the run, the "
        "manifest, or the model's default."
    )
    return Table(caption=caption, header=header, rows=tuple(rows), num_heads=1, numeric=False)


def checkpoint_table(study: Study) -> Table:
    """Tabulate the digest of every file of weights."""
    rows = tuple(
        (study.labels[series], str(epoch), f"{table.num_params:,}", table.checkpoint_sha256)
        for (series, epoch), table in study.tables.items()
    )
    return Table(
        caption="Files of weights.",
        header=("series", "epoch", "parameters", "sha256"),
        rows=rows,
        numeric=False,
    )


def batch_table(study: Study) -> tuple[str, Table]:
    """Tabulate the digest of the samples of every batch.

    A sentence says whether all checkpoints were measured on the same samples.
    """
    digests: dict[int, set[str]] = {}
    for table in study.tables.values():
        for batch, digest in zip(table.batch.tolist(), table.batch_sha256, strict=True):
            digests.setdefault(batch, set()).add(digest)
    rows = tuple((str(batch), "; ".join(sorted(digests[batch]))) for batch in sorted(digests))
    different = [batch for batch, values in digests.items() if len(values) > 1]
    samples = samples_of(study.plan.protocol["data"])
    sentence = (
        f"Every checkpoint was measured on the same {samples}, batch by batch ({len(digests)} "
        "batches)."
    )
    if different:
        sentence = (
            f"The {samples} of {len(different)} of {len(digests)} batches differ between "
            "checkpoints."
        )
    caption = f"{samples.capitalize()} of each batch."
    return sentence, Table(
        caption=caption, header=("batch", "sha256"), rows=rows, num_heads=1, numeric=False
    )


def facts(mapping: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Format keys and values as texts.

    Where records disagree, all values of a key are listed.
    """
    return [(key, _fact(value)) for key, value in mapping.items()]


def _fact(value: Any) -> str:
    if isinstance(value, Mapping) and set(value) == {"several"}:
        return "; ".join(map(_fact, value["several"]))
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_fact(part)}" for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_fact, value))
    # A separator may be a tab.
    return repr(value) if isinstance(value, str) and not value.strip() else str(value)
