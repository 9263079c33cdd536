"""Metrics of predictions, each with its interval, and paired tests between models: everything from the answers to pictures.

A picture that could not be read counts as a wrong answer, so that models are never compared on different pictures.
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
    """The answers of one checkpoint to a set, as the metric of the set sees them.

    Attributes:
        correct: Whether the best class is the label.
        shown: Which pictures were shown to the model.
    """

    one: PictureSet
    answers: SetPredictions

    @cached_property
    def shown(self) -> Bool[np.ndarray, " n"]:
        return self.answers.done

    @cached_property
    def correct(self) -> Bool[np.ndarray, " n"]:
        return np.asarray(self.answers.top[:, 0] == self.one.labels)

    @property
    def num_items(self) -> int:
        return int(self.shown.sum())

    def statistic(self, weights: Float[np.ndarray, "r n"]) -> Float[np.ndarray, " r"]:
        """The metric of resamples, given the weight of each picture that was shown."""
        labels, metric, shown = self.one.labels[self.shown], self.one.metric, self.shown
        found: Any
        if metric == "mean_per_class":
            found = mean_class_recall(labels, self.correct[shown], weights)
        elif metric == "roc_auc":
            both = 0 < (labels == 1).sum() < len(labels)
            found = (
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
            found = weights @ hits / weights.sum(axis=1)
        return np.asarray(found, dtype=float)

    def _margins(self) -> Float[np.ndarray, " n"]:
        """Score of class 1 less that of class 0; an unread picture as wrong as can be."""
        top, scores = self.answers.top, self.answers.scores.astype(float)
        margins = np.where(top[:, 0] == 1, scores[:, 0] - scores[:, 1], scores[:, 1] - scores[:, 0])
        return np.where(top[:, 0] >= 0, margins, np.where(self.one.labels == 1, -np.inf, np.inf))

    @property
    def strata(self) -> np.ndarray:
        """Pictures are resampled class by class, as the sets were drawn; accuracies over all pictures alike."""
        return (
            self.one.labels[self.shown]
            if self.one.metric in ("mean_per_class", "roc_auc")
            else np.zeros(self.num_items, int)
        )


@dataclass(frozen=True, kw_only=True)
class SetScore:
    """The metric of one checkpoint on a set.

    Attributes:
        value: From 0 to 1, with its interval: Wilson's for top-1, of the bootstrap for others.
        n: Pictures that were shown, of `num_pictures`.
        num_unread: Of these, those that could not be read; they count as wrong.
        chance: Of the metric, NaN where it is not known.
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
        """As plain values, one row of a table."""
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
    """A metric with its interval."""
    if scored.one.metric == "top1":
        num_right, n = int(scored.correct[scored.shown].sum()), scored.num_items
        low, high = wilson_interval(num_right, n, confidence=bootstrap.confidence)
        return Interval(num_right / n, float(low), float(high))
    return bootstrap.interval(scored.statistic, scored.strata, stream=stream)


def scores_of(store: PredictionStore, bootstrap: Bootstrap = Bootstrap()) -> list[SetScore]:
    """Every checkpoint on every set of which it has seen a picture, in the order of the store."""
    scores = []
    for checkpoint in store.checkpoints.values():
        for number, (name, one) in enumerate(store.sets.items()):
            answers = checkpoint.sets.get(name)
            if answers is None or not answers.done.any():
                continue
            scored = Scored(one, answers)
            scores.append(
                SetScore(
                    series=checkpoint.series,
                    label=checkpoint.label,
                    model=checkpoint.model,
                    epoch=checkpoint.epoch,
                    dataset=one.dataset,
                    condition=one.condition,
                    title=one.title,
                    metric=one.metric,
                    value=score_of(scored, bootstrap, stream=number),
                    n=scored.num_items,
                    num_pictures=len(one),
                    num_unread=len(answers.unread),
                    chance=one.chance,
                )
            )
    return scores


@dataclass(frozen=True, kw_only=True)
class MeanScore:
    """The mean of the metrics of one checkpoint over the sets that every checkpoint has answered whole.

    Attributes:
        value: From 0 to 1, with the bootstrap's interval over pictures.
        datasets: Over which the mean is taken.
    """

    series: str
    label: str
    epoch: int
    value: Interval
    datasets: tuple[str, ...]


def means_of(store: PredictionStore, bootstrap: Bootstrap = Bootstrap()) -> list[MeanScore]:
    """The mean over data sets of every checkpoint; none where fewer than two sets were answered whole by all.

    Sets of distorted pictures, which have conditions, are not among them. Where several sets are of the same pictures, such as
    OpenMoji's by group and by name, there is no mean: they are different questions, and their errors are not independent.
    """
    common = [
        (number, one)
        for number, (name, one) in enumerate(store.sets.items())
        if not one.condition
        and all(
            name in each.sets and each.sets[name].complete for each in store.checkpoints.values()
        )
    ]
    # The tasks of OpenMoji are named openmoji/group, openmoji/name, ...
    if len(common) < 2 or len({one.dataset.partition("/")[0] for _, one in common}) < len(common):
        return []
    means = []
    for checkpoint in store.checkpoints.values():
        values, resampled = [], []
        for number, one in common:
            scored = Scored(one, checkpoint.sets[one.name])
            values.append(float(scored.statistic(np.ones((1, len(one))))[0]))
            resampled.append(_resampled(scored, bootstrap, stream=number))
        means.append(
            MeanScore(
                series=checkpoint.series,
                label=checkpoint.label,
                epoch=checkpoint.epoch,
                value=percentile_interval(
                    float(np.mean(values)), np.mean(resampled, axis=0), bootstrap.confidence
                ),
                datasets=tuple(one.dataset for _, one in common),
            )
        )
    return means


def _resampled(scored: Scored, bootstrap: Bootstrap, *, stream: int) -> Float[np.ndarray, " r"]:
    """The metric of resampled pictures."""
    if scored.one.metric != "top1":
        return bootstrap.resample(scored.statistic, scored.strata, stream=stream)
    n = scored.num_items
    # Resampling pictures is drawing how many are right.
    generator = np.random.default_rng([bootstrap.seed, stream])
    return (
        generator.binomial(n, scored.correct[scored.shown].mean(), size=bootstrap.num_resamples) / n
    )


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """The difference of two checkpoints on a set that both have answered.

    Attributes:
        difference: First less second, with its interval of the paired bootstrap.
        p_value: McNemar's exact test for top-1, else of the bootstrap.
        p_holm: Corrected over all tests of the pair.
        detectable: The difference that a test of this size finds in 80 % of cases; NaN but for top-1.
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
    """Compare two checkpoints, set by set, on the pictures that both were shown."""
    found = []
    for number, (name, one) in enumerate(store.sets.items()):
        both = [checkpoint.sets.get(name) for checkpoint in (first, second)]
        if any(answers is None for answers in both):
            continue
        shown = both[0].done & both[1].done  # type: ignore[union-attr]
        if not shown.any():
            continue
        pair = [Scored(one, _only(answers, shown)) for answers in both if answers is not None]
        found.append((one, *_difference(pair, bootstrap, stream=number), int(shown.sum())))
    corrected = holm(np.array([p for _, _, p, _, _ in found])) if found else np.zeros(0)
    return [
        PairedTest(
            first=first.key,
            second=second.key,
            dataset=one.dataset,
            condition=one.condition,
            metric=one.metric,
            difference=difference,
            p_value=p,
            p_holm=float(adjusted),
            detectable=detectable,
            n=n,
        )
        for (one, difference, p, detectable, n), adjusted in zip(found, corrected)
    ]


def _only(answers: SetPredictions, shown: Bool[np.ndarray, " n"]) -> SetPredictions:
    return SetPredictions(top=answers.top, scores=answers.scores, done=shown, unread=answers.unread)


def _difference(
    pair: Sequence[Scored], bootstrap: Bootstrap, *, stream: int
) -> tuple[Interval, float, float]:
    """The difference with its interval, the p value, and the difference that could have been detected."""
    first, second = pair

    def statistic(weights: Float[np.ndarray, "r n"]) -> Float[np.ndarray, " r"]:
        return np.asarray(first.statistic(weights) - second.statistic(weights))

    whole = float(statistic(np.ones((1, first.num_items)))[0])
    if first.one.metric != "top1":
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
    """(series, epoch, dataset, condition) whose metric is the best of its epoch by a paired test against every other series.

    Tests are corrected by Holm over the sets of each pair, and again over the pairs of an epoch (Bonferroni).
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
            rivals = {one.series for one in checkpoints if key[2:] in one.sets} - {key[0]}
            if rivals and rivals <= lost_by:
                best.add(key)
    return best


def _by_epoch(store: PredictionStore) -> Iterable[list[CheckpointPredictions]]:
    for epoch in sorted({epoch for _, epoch in store.checkpoints}):
        yield [one for one in store.checkpoints.values() if one.epoch == epoch]
