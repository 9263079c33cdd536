"""Results of a comparison of accuracies.

Frozen rows, from which tables, sentences and files are made.
"""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from landscape.compare.result import plain

# Families of sets, each with a mean of its own, and the name of its sets in sentences.
FAMILIES = {
    "table1": "sets of Table 1",
    "sets": "sets",
    "distorted": "distorted sets",
    "ood": "out-of-distribution sets",
}


@dataclass(frozen=True, kw_only=True)
class EvaluatedSeries:
    """A series of evaluated checkpoints.

    Args:
        name: Unique within the comparison: "vit", or "a:vit" where two stores have a series of that
            name.
        label: Name to show to people, unique too.
        store: Name of the file.
        epochs: Epochs that have answered any picture, ascending.
    """

    name: str
    label: str
    model: str
    store: str
    epochs: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SetDifference:
    """Two series at one epoch, compared on the pictures that both were shown.

    Args:
        first, second: Names of the series; positive differences mean that the first is better.
        family: One of `FAMILIES`.
        dataset, condition: As in `PictureSet`; the condition of a set of the benchmark is "", its
            kept ones pooled.
        n: Number of the `num_pictures` pictures that count.
        num_unread: How many of these either series could not read; they count as wrong.
        first_value, second_value: Metric of each, from 0 to 1.
        difference, low, high: First minus second, with the interval of the paired bootstrap over
            pictures; NaN where it gives none.
        p_value: McNemar's exact test for accuracies, else of the bootstrap.
        p_holm: The p value after Holm's correction over all sets of this pair at this epoch.
        discordant_share: Share of pictures that exactly one of the two has right; NaN for other
            metrics than accuracy.
        detectable: Smallest difference that the test finds with 80 % power at the level of Holm's
            first step, alpha over the number of sets, given how many pictures tell the two apart;
            NaN where these are too few, or for other metrics.
        at_chance: Whether chance is within the interval of either series' metric.
    """

    first: str
    second: str
    epoch: int
    family: str
    dataset: str
    condition: str
    title: str
    metric: str
    n: int
    num_pictures: int
    num_unread: int
    first_value: float
    second_value: float
    difference: float
    low: float
    high: float
    p_value: float
    p_holm: float
    discordant_share: float
    detectable: float
    at_chance: bool

    @property
    def place(self) -> str:
        """Return the title and condition, as shown to people."""
        return f"{self.title} {self.condition}".strip()

    @property
    def is_exact(self) -> bool:
        """Tell whether the p value is of McNemar's test."""
        return self.metric == "top1"

    def direction(self, alpha: float) -> int:
        """Return the sign of a significant difference, else 0.

        1 where the first is demonstrably better, -1 where the second is, 0 where neither is.
        """
        return (
            int(math.copysign(1, self.difference))
            if self.difference and self.p_holm <= alpha
            else 0
        )


@dataclass(frozen=True, kw_only=True)
class MeanDifference:
    """One number over several sets, for two series at one epoch.

    Args:
        name: "mean_table1", "mean_sets" and "mean_distorted" of sets; of the benchmark's
            "ood_accuracy_17", "ood_accuracy_16", "accuracy_difference", "observed_consistency",
            "error_consistency" and "shape_bias".
        label: Name in tables.
        is_accuracy: Whether it is shown in percent.
        difference, low, high: First minus second, with the paired bootstrap's interval.
        p_value: Of the bootstrap; not corrected.
        num_sets: Number of the `num_planned` sets that both have.
        missing: The other sets.
    """

    first: str
    second: str
    epoch: int
    name: str
    label: str
    is_accuracy: bool
    first_value: float
    second_value: float
    difference: float
    low: float
    high: float
    p_value: float
    num_sets: int
    num_planned: int
    missing: tuple[str, ...]

    def direction(self, alpha: float) -> int:
        """Return the sign of a significant difference, else 0.

        1 where the first is demonstrably larger, -1 where the second is, 0 where neither is.
        """
        shown = self.p_value <= alpha and (math.isnan(self.low) or self.low * self.high > 0)
        return int(math.copysign(1, self.difference)) if self.difference and shown else 0


@dataclass(frozen=True, kw_only=True)
class AccuracyComparison:
    """All results; a gap is a missing row and a sentence in `notes`.

    Args:
        stores: Names of the files.
        epochs: Epochs that were compared, ascending.
        sets, means: A row per pair, epoch and set, or number.
        notes: What is missing, was answered in part, or differs from the paper.
        caveats: What the numbers do not show.
        sentences: Sentences to quote, one per pair, epoch and headline.
    """

    stores: tuple[str, ...]
    series: tuple[EvaluatedSeries, ...]
    epochs: tuple[int, ...]
    sets: tuple[SetDifference, ...]
    means: tuple[MeanDifference, ...]
    notes: tuple[str, ...]
    caveats: tuple[str, ...]
    sentences: tuple[str, ...]
    confidence: float
    num_resamples: int
    seed: int

    @property
    def alpha(self) -> float:
        """Return the level of the tests."""
        return 1 - self.confidence

    @property
    def pairs(self) -> tuple[tuple[str, str, int], ...]:
        """List first, second and epoch of every comparison."""
        rows: list[SetDifference | MeanDifference] = [*self.sets, *self.means]
        return tuple(dict.fromkeys((row.first, row.second, row.epoch) for row in rows))

    def label(self, series: str) -> str:
        """Return the label of a series, as shown to people."""
        return next(info.label for info in self.series if info.name == series)

    def of_pair(
        self, pair: tuple[str, str, int]
    ) -> tuple[list[SetDifference], list[MeanDifference]]:
        """Select the rows of a pair at an epoch."""
        return (
            [row for row in self.sets if (row.first, row.second, row.epoch) == pair],
            [row for row in self.means if (row.first, row.second, row.epoch) == pair],
        )

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values; null for unknown numbers."""
        content: dict[str, Any] = {"kind": "accuracy"} | {
            field.name: getattr(self, field.name) for field in fields(self)
        }
        for name in ("series", "sets", "means"):
            content[name] = [
                {key: plain(value) for key, value in asdict(row).items()}
                for row in getattr(self, name)
            ]
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in content.items()
        }
