"""Metrics of predictions with intervals, and paired tests between models.

All numbers come from the stored answers to pictures. A picture that could not be read counts as a
wrong answer, so that models are never compared on different pictures.

Shapes: n = pictures, r = resamples.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from landscape.statistics import (
    Bootstrap,
    Interval,
    bootstrap_p_value,
    half_top_1_and_5,
    holm,
    mcnemar,
    mean_class_recall,
    minimal_detectable_difference,
    percentile_interval,
    roc_auc,
    wilson_interval,
)
from landscape.store.predictions import (
    CheckpointPredictions,
    PictureSet,
    PredictionStore,
    SetPredictions,
)

METRIC_TITLES = {
    "top1": "top-1 accuracy",
    "mean_per_class": "mean recall of the classes",
    "top1_top5": "mean of top-1 and top-5 accuracy",
    "roc_auc": "area under the ROC curve",
}


@dataclass(frozen=True, eq=False)
class Scored:
    """Answers of one checkpoint to a set, ready for the metric of the set.

    Attributes:
        pictures: The set, with its labels and its metric.
        correct: Whether the best class is the label.
        shown: Which pictures were shown to the model.
    """

    pictures: PictureSet
    answers: SetPredictions

    @cached_property
    def shown(self) -> Bool[np.ndarray, " n"]:
        return self.answers.done

    @cached_property
    def correct(self) -> Bool[np.ndarray, " n"]:
        return np.asarray(self.answers.top[:, 0] == self.pictures.labels)

    @property
    def num_items(self) -> int:
        return int(self.shown.sum())

    def statistic(self, weights: Float[np.ndarray, "r n"]) -> Float[np.ndarray, " r"]:
        """Compute the metric of resamples from the weight of each shown picture."""
        labels, metric, shown = self.pictures.labels[self.shown], self.pictures.metric, self.shown
        values: Any
        if metric == "mean_per_class":
            values = mean_class_recall(labels, self.correct[shown], weights)
        elif metric == "roc_auc":
            both = 0 < (labels == 1).sum() < len(labels)
            values = (
                roc_auc(self._margins()[shown], labels == 1, weights)
                if both
                else np.full(len(weights), np.nan)
            )
        else:
            both = metric == "top1_top5"
            hits = (
                half_top_1_and_5(labels, self.answers.top[shown])
                if both
                else self.correct[shown].astype(float)
            )
            values = weights @ hits / weights.sum(axis=1)
        return np.asarray(values, dtype=float)

    def _margins(self) -> Float[np.ndarray, " n"]:
        """Subtract the score of class 0 from that of class 1.

        An unread picture gets the worst margin: -inf where its label is 1, inf where it is 0.
        """
        top, scores = self.answers.top, self.answers.scores.astype(float)
        margins = np.where(top[:, 0] == 1, scores[:, 0] - scores[:, 1], scores[:, 1] - scores[:, 0])
        return np.where(
            top[:, 0] >= 0, margins, np.where(self.pictures.labels == 1, -np.inf, np.inf)
        )

    @property
    def strata(self) -> np.ndarray:
        """Return the stratum of each shown picture.

        Metrics of classes are resampled class by class, as the sets were drawn. Accuracies over all
        pictures have a single stratum.
        """
        if self.pictures.metric in ("mean_per_class", "roc_auc"):
            return self.pictures.labels[self.shown]
        return np.zeros(self.num_items, int)


@dataclass(frozen=True, kw_only=True)
class SetScore:
    """The metric of one checkpoint on a set.

    Attributes:
        value: Metric from 0 to 1 with its interval: Wilson's for top-1, else the bootstrap's.
        n: Number of the `num_pictures` pictures that were shown.
        num_unread: How many of these could not be read; they count as wrong.
        chance: Metric of a model that guesses; NaN where it is not known.
    """

    series: str
    label: str
    model: str
    epoch: int
    dataset: str
    condition: str
    title: str
    metric: str
    value: Interval
    n: int
    num_pictures: int
    num_unread: int
    chance: float

    def row(self) -> dict[str, Any]:
        """Convert to plain values, one row of a table."""
        names = ("series", "label", "model", "epoch", "dataset", "condition", "title", "metric")
        numbers = {
            "value": self.value.value,
            "low": self.value.low,
            "high": self.value.high,
            "n": self.n,
        }
        rest = {
            "num_pictures": self.num_pictures,
            "num_unread": self.num_unread,
            "chance": self.chance,
        }
        return {name: getattr(self, name) for name in names} | numbers | rest


def score_of(scored: Scored, bootstrap: Bootstrap, *, stream: int = 0) -> Interval:
    """Compute a metric with its interval."""
    if scored.pictures.metric == "top1":
        num_right, n = int(scored.correct[scored.shown].sum()), scored.num_items
        low, high = wilson_interval(num_right, n, confidence=bootstrap.confidence)
        return Interval(num_right / n, float(low), float(high))
    return bootstrap.interval(scored.statistic, scored.strata, stream=stream)


def scores_of(store: PredictionStore, bootstrap: Bootstrap = Bootstrap()) -> list[SetScore]:
    """Score every checkpoint on every set that it has answered.

    A single answered picture is enough. The scores are in the order of the store.
    """
    scores = []
    for checkpoint in store.checkpoints.values():
        for number, (name, pictures) in enumerate(store.sets.items()):
            answers = checkpoint.sets.get(name)
            if answers is None or not answers.done.any():
                continue
            scored = Scored(pictures, answers)
            scores.append(
                SetScore(
                    series=checkpoint.series,
                    label=checkpoint.label,
                    model=checkpoint.model,
                    epoch=checkpoint.epoch,
                    dataset=pictures.dataset,
                    condition=pictures.condition,
                    title=pictures.title,
                    metric=pictures.metric,
                    value=score_of(scored, bootstrap, stream=number),
                    n=scored.num_items,
                    num_pictures=len(pictures),
                    num_unread=len(answers.unread),
                    chance=pictures.chance,
                )
            )
    return scores


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """Difference of two checkpoints on a set that both have answered.

    Attributes:
        difference: First minus second, with the interval of the paired bootstrap.
        p_value: McNemar's exact test for top-1, else of the bootstrap.
        p_holm: The p value after Holm's correction over all tests of the pair.
        detectable: The difference that a test of this size finds in 80 % of cases; NaN for
            other metrics than top-1.
    """

    first: tuple[str, int]
    second: tuple[str, int]
    dataset: str
    condition: str
    metric: str
    difference: Interval
    p_value: float
    p_holm: float
    detectable: float
    n: int


def paired_tests(
    store: PredictionStore,
    first: CheckpointPredictions,
    second: CheckpointPredictions,
    bootstrap: Bootstrap = Bootstrap(),
) -> list[PairedTest]:
    """Compare two checkpoints per set, on the pictures that both were shown."""
    tests = []
    for number, (name, pictures) in enumerate(store.sets.items()):
        both = [checkpoint.sets.get(name) for checkpoint in (first, second)]
        if any(answers is None for answers in both):
            continue
        shown = both[0].done & both[1].done  # type: ignore[union-attr]
        if not shown.any():
            continue
        pair = [Scored(pictures, _only(answers, shown)) for answers in both if answers is not None]
        tests.append((pictures, *_difference(pair, bootstrap, stream=number), int(shown.sum())))
    corrected = holm(np.array([p for _, _, p, _, _ in tests])) if tests else np.zeros(0)
    return [
        PairedTest(
            first=first.key,
            second=second.key,
            dataset=pictures.dataset,
            condition=pictures.condition,
            metric=pictures.metric,
            difference=difference,
            p_value=p,
            p_holm=float(adjusted),
            detectable=detectable,
            n=n,
        )
        for (pictures, difference, p, detectable, n), adjusted in zip(tests, corrected)
    ]


def _only(answers: SetPredictions, shown: Bool[np.ndarray, " n"]) -> SetPredictions:
    return SetPredictions(top=answers.top, scores=answers.scores, done=shown, unread=answers.unread)


def _difference(
    pair: Sequence[Scored], bootstrap: Bootstrap, *, stream: int
) -> tuple[Interval, float, float]:
    """Compute the difference, its interval, the p value and the detectable difference."""
    first, second = pair

    def statistic(weights: Float[np.ndarray, "r n"]) -> Float[np.ndarray, " r"]:
        return np.asarray(first.statistic(weights) - second.statistic(weights))

    whole = float(statistic(np.ones((1, first.num_items)))[0])
    if first.pictures.metric != "top1":
        resampled = bootstrap.resample(statistic, first.strata, stream=stream)
        return (
            percentile_interval(whole, resampled, bootstrap.confidence),
            bootstrap_p_value(resampled),
            float("nan"),
        )
    test = mcnemar(first.correct[first.shown], second.correct[second.shown])
    n, share = test.num_items, test.discordant_share
    # Resampling pictures is drawing how many of each of these three kinds there are.
    kinds = (
        np.array([test.first_only, test.second_only, n - test.first_only - test.second_only]) / n
    )
    counts = np.random.default_rng([bootstrap.seed, stream]).multinomial(
        n, kinds, size=bootstrap.num_resamples
    )
    interval = percentile_interval(whole, (counts[:, 0] - counts[:, 1]) / n, bootstrap.confidence)
    detectable = minimal_detectable_difference(n, share) if 0 < share < 1 else float("nan")
    return interval, test.p_value, detectable


def winners(
    store: PredictionStore, bootstrap: Bootstrap = Bootstrap(), *, alpha: float = 0.05
) -> set[tuple[str, int, str, str]]:
    """Find the checkpoints that are significantly best at their epoch.

    Returns (series, epoch, dataset, condition) wherever the metric is better than that of every
    other series.

    Tests are corrected by Holm over the sets of each pair, and again over the pairs of an epoch
    (Bonferroni).
    """
    best: set[tuple[str, int, str, str]] = set()
    for checkpoints in _by_epoch(store):
        pairs = list(combinations(checkpoints, 2))
        beaten: dict[tuple[str, int, str, str], set[str]] = {}
        for first, second in pairs:
            for test in paired_tests(store, first, second, bootstrap):
                if not test.p_holm * len(pairs) <= alpha:
                    continue
                won, lost = (first, second) if test.difference.value > 0 else (second, first)
                beaten.setdefault((*won.key, test.dataset, test.condition), set()).add(lost.series)
        for key, lost_by in beaten.items():
            rivals = {rival.series for rival in checkpoints if key[2:] in rival.sets} - {key[0]}
            if rivals and rivals <= lost_by:
                best.add(key)
    return best


def _by_epoch(store: PredictionStore) -> Iterable[list[CheckpointPredictions]]:
    for epoch in sorted({epoch for _, epoch in store.checkpoints}):
        yield [checkpoint for checkpoint in store.checkpoints.values() if checkpoint.epoch == epoch]
