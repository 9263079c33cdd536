"""What a comparison finds: frozen rows that tables, figures and pages are made of."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from landscape.compare.metrics import Metric


@dataclass(frozen=True, kw_only=True)
class SeriesInfo:
    """A series of checkpoints.

    Args:
        name: Unique within the comparison: "vit", or "a:vit" where two stores have a series of that name.
        store: Name of the file.
        epochs: Those with a record, ascending.
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
        num_left_out: Batches that were measured but do not count: no certificate, or the record does not say this number.
        num_planned: Batches that the manifest asks for.
        value: What stands for all batches, by the location of the metric; NaN where it is unknown.
        low, high: Ends of the interval of `value`: of the bootstrap, NaN for fewer than two batches, or where all say the same;
            for what quadratures estimate, `Estimate.interval`.
        mean, standard_error, q05, q25, median, q75, q95: Of the values of single batches; for what quadratures estimate, the
            standard error is that of `Estimate`.
        known: Whether the quadratures tell it; True for what is not estimated.
        open_low, open_high: The bracket that the quadratures leave; NaN for what is not estimated.
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
    """By how much a metric of one series exceeds that of another at one epoch.

    Args:
        first, second: Names of the series; positive differences mean that the first is larger.
        paired: Whether both were measured on the same batches, and these are compared one by one.
        num_batches: Paired: batches that count in both. Unpaired: the smaller number of the two.
        num_left_out: Batches that were measured for both, or unpaired for either, but do not count.
        num_uncertified: Of what counts, paired: batches with a record that has no certificate; unpaired: such records. 0 for
            what is not made of eigenvalues.
        audited: Whether all products behind both series at this epoch passed an audit.
        first_value, second_value: The location of each over the batches that count.
        first_error, second_error: Their standard errors, for what quadratures estimate; NaN otherwise.
        difference, low, high: With its bootstrap interval, widened by what quadratures leave open. Paired medians: the median of
            the differences batch by batch.
        ratio, ratio_low, ratio_high: first / second likewise; NaN where not both are positive.
        effect: Matched-pairs rank-biserial correlation, or Cliff's delta if unpaired; -1 to 1.
        p_value: Of the permutation test. Where quadratures leave a difference open, this and the effect are those of its end
            that is nearest to 0.
        smallest_p: The smallest that the test could have given with so many batches and resamples; NaN where there is none.
        p_holm: Corrected for all epochs and pairs of series of this metric.
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
    """Everything that was found; a gap is a row that is missing, and a sentence in `notes`.

    Args:
        stores: Names of the files.
        epochs: Those looked at, ascending: all that any series has, or what was asked for.
        metrics: Those that at least one record says something about.
        notes: What was left out, is missing, or was measured in another way.
        caveats: What the numbers do not show.
        sentences: To quote: the largest eigenvalue and the share of negative ones, at the last epoch of each pair; where a
            normalised metric says otherwise, or records are not certified, that too.
        protocol: Settings that all records share.
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

    def summary(self, series: str, epoch: int, metric: str) -> Summary | None:
        """The row of a series, or None where there is a gap."""
        return next(
            (
                one
                for one in self.summaries
                if (one.series, one.epoch, one.metric) == (series, epoch, metric)
            ),
            None,
        )

    def difference(self, first: str, second: str, epoch: int, metric: str) -> Difference | None:
        """The row of a pair, or None where it could not be compared."""
        key = (first, second, epoch, metric)
        return next(
            (
                one
                for one in self.differences
                if (one.first, one.second, one.epoch, one.metric) == key
            ),
            None,
        )

    def label(self, series: str) -> str:
        """What a person calls a series; its name where labels are not unique."""
        labels = {one.name: one.label for one in self.series}
        label = labels[series]
        return label if list(labels.values()).count(label) == 1 else f"{label} ({series})"

    def to_json(self) -> dict[str, Any]:
        """Plain values; null for what is unknown."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        named = [one.name for one in fields(Metric) if one.name not in ("of", "estimate")]
        found["metrics"] = [
            {name: getattr(metric, name) for name in named} for metric in self.metrics
        ]
        for name in ("series", "summaries", "differences"):
            found[name] = [
                {key: plain(value) for key, value in asdict(row).items()}
                for row in getattr(self, name)
            ]
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in found.items()
        }


def plain(value: Any) -> Any:
    """None for a number that is not finite, as JSON has none."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
