"""Comparison of two series on the benchmark's stimuli.

Covers accuracy out of distribution, likeness to people, and shape bias.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from landscape.answers import (
    CHANCE,
    DATASETS,
    SEVENTEEN,
    SHAPE_BIAS,
    SIXTEEN,
    Answers,
    DatasetTest,
    Resamples,
    compare_models,
    resample,
)
from landscape.compare.accuracy_result import EvaluatedSeries, MeanDifference, SetDifference
from landscape.statistics import Bootstrap, wilson_interval
from landscape.store.predictions import CheckpointPredictions, PredictionStore

# For each number: its name in tables, whether it is an accuracy, and the data sets of its mean.
_NUMBERS = {
    "ood_accuracy_17": ("OOD accuracy (17)", True, SEVENTEEN),
    "ood_accuracy_16": ("OOD accuracy (16)", True, SIXTEEN),
    "accuracy_difference": ("accuracy difference", False, SEVENTEEN),
    "observed_consistency": ("observed consistency", False, SEVENTEEN),
    "error_consistency": ("error consistency", False, SEVENTEEN),
    SHAPE_BIAS: ("shape bias", False, ("cue-conflict",)),
}


@dataclass(frozen=True, kw_only=True)
class BenchmarkPair:
    """The benchmark's rows of a pair.

    There are none where the two did not answer the same stimuli.
    """

    sets: tuple[SetDifference, ...] = ()
    means: tuple[MeanDifference, ...] = ()

    @classmethod
    def of(
        cls,
        answers: Answers | None,
        pair: tuple[EvaluatedSeries, EvaluatedSeries],
        epoch: int,
        bootstrap: Bootstrap,
        *,
        store: PredictionStore,
    ) -> "BenchmarkPair":
        """Compare two series on the stimuli that both answered.

        Args:
            answers: Answers of people, and of series by their labels.
            store: Source of the series' answers; it knows which pictures could not be read.
        """
        labels = (pair[0].label, pair[1].label)
        if answers is None or not set(labels) <= set(answers.models):
            return cls()
        shared = _answered_by_both(answers.only(models=labels), labels)
        if not set(labels) <= set(shared.models):
            return cls()
        resamples = resample(shared, bootstrap)
        compared = compare_models(shared, *labels, resamples=resamples)
        checkpoints = [store.checkpoints[info.name, epoch] for info in pair]
        rows = [
            _set_row(test, pair, epoch, resamples, *_counts(store, checkpoints, test.dataset))
            for test in compared.tests
        ]
        means = []
        for name, by in compared.differences.items():
            label, is_accuracy, datasets = _NUMBERS[name]
            numbers = {key: getattr(by, key) for key in ("low", "high", "p_value", "missing")}
            means.append(
                MeanDifference(
                    **_names(pair, epoch),
                    name=name,
                    label=label,
                    is_accuracy=is_accuracy,
                    first_value=by.first,
                    second_value=by.second,
                    difference=by.value,
                    num_sets=by.num_datasets,
                    num_planned=len(datasets),
                    **numbers,
                )
            )
        return cls(sets=tuple(rows), means=tuple(means))


def _names(pair: tuple[EvaluatedSeries, EvaluatedSeries], epoch: int) -> dict[str, Any]:
    return {"first": pair[0].name, "second": pair[1].name, "epoch": epoch}


def _answered_by_both(answers: Answers, labels: tuple[str, str]) -> Answers:
    """Leave out the pictures that only one of two models answered."""
    table = answers.table
    of_models = table[table.kind == "model"]
    seen = of_models.groupby(["dataset", "image"], observed=True).size()
    alone = seen[seen < len(labels)]
    gone = set(alone.index)
    if not gone:
        return answers
    keep = [key not in gone for key in zip(table.dataset, table.image, strict=True)]
    return Answers(table[keep].reset_index(drop=True))


def _counts(
    store: PredictionStore, checkpoints: Sequence[CheckpointPredictions], dataset: str
) -> tuple[int, int]:
    """Count the pictures of a data set's kept conditions, and unread ones.

    A picture counts as unread if either series could not read it.
    """
    names = [
        (dataset, condition.name)
        for condition in DATASETS[dataset].kept
        if (dataset, condition.name) in store.sets
    ]
    unread = [
        {
            place
            for checkpoint in checkpoints
            if name in checkpoint.sets
            for place in checkpoint.sets[name].unread
        }
        for name in names
    ]
    return sum(len(store.sets[name]) for name in names), sum(map(len, unread))


def _set_row(
    test: DatasetTest,
    pair: tuple[EvaluatedSeries, EvaluatedSeries],
    epoch: int,
    resamples: Resamples,
    num_pictures: int,
    num_unread: int,
) -> SetDifference:
    by = resamples.difference(pair[0].label, pair[1].label, "accuracy", (test.dataset,))
    n, confidence = test.num_pictures, resamples.settings.confidence
    ends = [
        wilson_interval(round(value * n), n, confidence=confidence)
        for value in (test.first, test.second)
    ]
    return SetDifference(
        **_names(pair, epoch),
        family="ood",
        dataset=test.dataset,
        condition="",
        title=DATASETS[test.dataset].label,
        metric="top1",
        n=n,
        num_pictures=num_pictures,
        num_unread=num_unread,
        first_value=test.first,
        second_value=test.second,
        difference=test.difference,
        low=by.low,
        high=by.high,
        p_value=test.p_value,
        p_holm=math.nan,
        discordant_share=(test.first_only + test.second_only) / n,
        detectable=math.nan,
        at_chance=all(low <= CHANCE <= high for low, high in ends),
    )
