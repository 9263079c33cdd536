"""Results of a comparison.

Frozen rows, from which tables, figures and pages are made.
"""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from landscape.compare.eigenvectors import SeriesVectors
from landscape.compare.metrics import Metric


@dataclass(frozen=True, kw_only=True)
class SeriesInfo:
    """A series of checkpoints.

    Args:
        name: Unique within the comparison: "vit", or "a:vit" where two stores have a series of that
            name.
        store: Name of the file.
        epochs: Epochs with a record, ascending.
    """

    name: str
    label: str
    model: str
    num_params: int
    store: str
    epochs: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One metric of one series at one epoch, over its batches.

    Args:
        num_batches: Batches that count.
        num_left_out: Batches that were measured but do not count: no certificate, or the record
            does not contain this number.
        num_planned: Batches that the manifest asks for.
        value: Number for all batches, by the location of the metric; NaN where it is unknown.
        low, high: Ends of the interval of `value`. Of the bootstrap: NaN for fewer than two
            batches, or where all have the same value. For quadrature estimates:
            `Estimate.interval`.
        mean, standard_error, q05, q25, median, q75, q95: Statistics of the values of single
            batches; for quadrature estimates the standard error is that of `Estimate`.
        known: Whether the quadratures determine it; True for numbers that are not estimated.
        open_low, open_high: The bracket that the quadratures leave; NaN for numbers that are not
            estimated.
    """

    series: str
    epoch: int
    metric: str
    num_batches: int
    num_left_out: int
    num_planned: int
    value: float
    low: float
    high: float
    mean: float
    standard_error: float
    q05: float
    q25: float
    median: float
    q75: float
    q95: float
    known: bool = True
    open_low: float = math.nan
    open_high: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Difference of a metric between two series at one epoch.

    Args:
        first, second: Names of the series; positive differences mean that the first is larger.
        paired: Whether both were measured on the same batches, and these are compared one by one.
        num_batches: Paired: batches that count in both. Unpaired: the smaller number of the two.
        num_left_out: Batches that were measured for both, or unpaired for either, but do not count.
        num_uncertified: Of what counts, paired: batches with a record that has no certificate;
            unpaired: such records. 0 for numbers that are not made of eigenvalues.
        audited: Whether all products behind both series at this epoch passed an audit.
        first_value, second_value: The location of each over the batches that count.
        first_error, second_error: Their standard errors, for quadrature estimates; NaN otherwise.
        difference, low, high: First minus second, with its bootstrap interval, widened by what
            quadratures leave open. Paired medians: the median of the differences batch by batch.
        ratio, ratio_low, ratio_high: first / second likewise; NaN where not both are positive.
        effect: Matched-pairs rank-biserial correlation, or Cliff's delta if unpaired; -1 to 1.
        p_value: Of the permutation test. Where quadratures leave a difference open, this and the
            effect are those of its end that is nearest to 0.
        smallest_p: Smallest p value that the test could have given with so many batches and
            resamples; NaN where there is none.
        p_holm: The p value after Holm's correction for all epochs and pairs of series of this
            metric.
    """

    first: str
    second: str
    epoch: int
    metric: str
    paired: bool
    num_batches: int
    num_left_out: int
    num_uncertified: int
    audited: bool
    first_value: float
    second_value: float
    difference: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float
    effect: float
    p_value: float
    smallest_p: float
    p_holm: float
    first_error: float = math.nan
    second_error: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All results; a gap is a missing row and a sentence in `notes`.

    Args:
        stores: Names of the files.
        epochs: Epochs of the comparison, ascending: all that any series has, or those requested.
        metrics: Metrics that at least one record contains.
        notes: What was left out, is missing, or was measured in another way.
        caveats: What the numbers do not show.
        sentences: Sentences to quote: the largest eigenvalue and the share of negative ones, at the
            last epoch of each pair. They name normalised metrics that say otherwise, and records
            that are not certified.
        protocol: Settings that all records share.
        eigenvectors: What is computed from kept eigenvectors, for each series that has them.
    """

    stores: tuple[str, ...]
    series: tuple[SeriesInfo, ...]
    epochs: tuple[int, ...]
    metrics: tuple[Metric, ...]
    summaries: tuple[Summary, ...]
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]
    caveats: tuple[str, ...]
    sentences: tuple[str, ...]
    protocol: dict[str, dict[str, Any]]
    paired: bool
    confidence: float
    num_resamples: int
    seed: int
    eigenvectors: tuple[SeriesVectors, ...] = ()

    def summary(self, series: str, epoch: int, metric: str) -> Summary | None:
        """Return the row of a series, or None at a gap."""
        return next(
            (
                row
                for row in self.summaries
                if (row.series, row.epoch, row.metric) == (series, epoch, metric)
            ),
            None,
        )

    def difference(self, first: str, second: str, epoch: int, metric: str) -> Difference | None:
        """Return the row of a pair, or None if not compared."""
        key = (first, second, epoch, metric)
        return next(
            (
                row
                for row in self.differences
                if (row.first, row.second, row.epoch, row.metric) == key
            ),
            None,
        )

    def label(self, series: str) -> str:
        """Return the label of a series, made unique by its name."""
        labels = {info.name: info.label for info in self.series}
        label = labels[series]
        return label if list(labels.values()).count(label) == 1 else f"{label} ({series})"

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values; null for unknown numbers."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        named = [field.name for field in fields(Metric) if field.name not in ("of", "estimate")]
        content["metrics"] = [
            {name: getattr(metric, name) for name in named} for metric in self.metrics
        ]
        for name in ("series", "summaries", "differences"):
            content[name] = [
                {key: plain(value) for key, value in asdict(row).items()}
                for row in getattr(self, name)
            ]
        content["eigenvectors"] = [plain(asdict(series)) for series in self.eigenvectors]
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in content.items()
        }


def plain(value: Any) -> Any:
    """Replace numbers that are not finite by None, for JSON, also within other values."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
