"""Pairwise comparison of evaluated series.

Gives a test per set, and bootstrap intervals of the differences of means.

Shapes: r = resamples, n = pictures, s = sets.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from landscape.answers import Answers
from landscape.compare.accuracy import Scored
from landscape.compare.accuracy_benchmark import BenchmarkPair
from landscape.compare.accuracy_join import JoinedStores, join_stores
from landscape.compare.accuracy_means import condition_weights, counts_in_means, weighted_mean
from landscape.compare.accuracy_result import (
    AccuracyComparison,
    EvaluatedSeries,
    MeanDifference,
    SetDifference,
)
from landscape.compare.accuracy_sentences import caveats, notes, sentences
from landscape.datasets import SUITE
from landscape.errors import StoreError
from landscape.statistics import (
    Bootstrap,
    bootstrap_p_value,
    holm,
    mcnemar,
    minimal_detectable_difference,
    percentile_interval,
    wilson_interval,
)
from landscape.store.predictions import CheckpointPredictions, PictureSet, PredictionStore

_TABLE_1 = tuple(known.identifier for known in SUITE)
_MEANS = {"table1": "mean, Table 1", "sets": "mean", "distorted": "mean, distorted"}

# Gives the answers of people and of evaluated series, each by its label, at an epoch.
# None where the answers to the benchmark's stimuli are missing.
AnswersAt = Callable[[PredictionStore, int], Answers | None]
Pair = tuple[EvaluatedSeries, EvaluatedSeries]


def compare_predictions(
    paths: Sequence[Path],
    *,
    series: Sequence[str] = (),
    epochs: Sequence[int] | None = None,
    bootstrap: Bootstrap = Bootstrap(num_resamples=4999),
    answers_at: Callable[[JoinedStores], AnswersAt] | None = None,
) -> AccuracyComparison:
    """Compare the accuracy of the series in files of predictions.

    Tells which series is more accurate, on which sets, and how certain that is. Every pair is
    compared on the pictures that both were shown. On the benchmark's sets the answers also give
    likeness to people and shape bias.

    Args:
        series: Names, as in the files; all by default.
        epochs: Epochs to compare, where both series of a pair have them; by default the last that
            both have.
        answers_at: How to read answers to the benchmark's stimuli; without it the benchmark's sets
            are left out.

    Raises:
        StoreError: As `join_stores`, or if there are not two series with an epoch in common.
        AnswersError: If answers contradict each other.
    """
    joined = join_stores(paths, series=series)
    chosen = _chosen(joined, epochs)
    answers_of = answers_at(joined) if answers_at is not None else None
    read = (
        {epoch: answers_of(joined.store, epoch) for epoch in {epoch for _, epoch in chosen}}
        if answers_of
        else {}
    )
    sets: list[SetDifference] = []
    means: list[MeanDifference] = []
    for (first, second), epoch in chosen:
        rows, numbers = _family_rows(joined.store, (first, second), epoch, bootstrap)
        benchmark = BenchmarkPair.of(
            read.get(epoch), (first, second), epoch, bootstrap, store=joined.store
        )
        sets += _corrected([*rows, *benchmark.sets], alpha=1 - bootstrap.confidence)
        means += [*numbers, *benchmark.means]
    comparison = AccuracyComparison(
        stores=tuple(map(str, paths)),
        series=joined.series,
        epochs=tuple(sorted({row.epoch for row in sets})),
        sets=tuple(sets),
        means=tuple(means),
        notes=(),
        caveats=(),
        sentences=(),
        confidence=bootstrap.confidence,
        num_resamples=bootstrap.num_resamples,
        seed=bootstrap.seed,
    )
    if not sets:
        raise StoreError(
            f"{', '.join(comparison.stores)}: no two series were shown the same picture, so there "
            "is nothing to compare. Evaluate both on one data set."
        )
    compared = [(pair[0].name, pair[1].name, epoch) for pair, epoch in chosen]
    return replace(
        comparison,
        notes=notes(comparison, joined, compared, wanted=epochs),
        caveats=caveats(comparison, joined),
        sentences=sentences(comparison),
    )


def _chosen(joined: JoinedStores, epochs: Sequence[int] | None) -> list[tuple[Pair, int]]:
    """Choose the pairs of series and the epochs for the comparison."""
    files = ", ".join(dict.fromkeys(info.store for info in joined.series))
    if len(joined.series) < 2:
        raise StoreError(
            f"{files}: {joined.series[0].name!r} is the only series here, so there is no "
            "difference to take. Name stores, or with --series series, of two or more."
        )
    chosen = []
    for pair in itertools.combinations(joined.series, 2):
        common = sorted(set(pair[0].epochs) & set(pair[1].epochs))
        chosen += [
            (pair, epoch)
            for epoch in common
            if epoch in (common[-1:] if epochs is None else epochs)
        ]
    if not chosen:
        there = "; ".join(
            f"{info.name} {', '.join(map(str, info.epochs))}" for info in joined.series
        )
        asked = "" if epochs is None else f" of {', '.join(map(str, epochs))}"
        raise StoreError(
            f"{files}: no two series have an epoch{asked} in common, so none can be compared; "
            f"there are: {there}."
        )
    return chosen


# --- sets -----------------------------------------------------------------------------------------


def _family_of(pictures: PictureSet) -> str:
    if pictures.condition:
        return "distorted"
    return "table1" if pictures.dataset in _TABLE_1 else "sets"


def _family_rows(
    store: PredictionStore, pair: Pair, epoch: int, bootstrap: Bootstrap
) -> tuple[list[SetDifference], list[MeanDifference]]:
    """Compute the rows of all shared sets, and their families' means.

    The benchmark's sets are left out.
    """
    checkpoints = tuple(store.checkpoints[info.name, epoch] for info in pair)
    shared = {
        name: scored
        for name, pictures in store.sets.items()
        if not pictures.rule.startswith("imagenet16")
        and (scored := _shown_to_both(pictures, checkpoints)) is not None
    }
    resampled = _resample(shared, bootstrap)
    rows = [
        _set_row(pair, epoch, scored, resampled[name], bootstrap) for name, scored in shared.items()
    ]
    means = []
    for family in _MEANS:
        names = [name for name in shared if _family_of(store.sets[name]) == family]
        if condition_weights(store.sets[name] for name in names):
            means.append(
                _mean_row(
                    store,
                    pair,
                    epoch,
                    family,
                    {name: shared[name] for name in names},
                    resampled,
                    bootstrap,
                )
            )
    return rows, means


def _shown_to_both(
    pictures: PictureSet, checkpoints: Sequence[CheckpointPredictions]
) -> tuple[Scored, Scored] | None:
    first, second = (checkpoint.sets.get(pictures.name) for checkpoint in checkpoints)
    if first is None or second is None or not (done := first.done & second.done).any():
        return None
    return Scored(pictures, replace(first, done=done)), Scored(pictures, replace(second, done=done))


def _resample(
    shared: dict[tuple[str, str], tuple[Scored, Scored]], bootstrap: Bootstrap
) -> dict[tuple[str, str], Float[np.ndarray, "r 2"]]:
    """Resample both metrics of each set; sets of the same pictures together.

    A picture that is hard in one distortion, or for one choice of classes, is hard in another.
    Independent draws would make the interval of a mean over such sets too narrow.
    """
    resampled: dict[tuple[str, str], Float[np.ndarray, "r 2"]] = {}
    for stream, names in enumerate(_clusters([scored[0].pictures for scored in shared.values()])):
        if len(names) == 1 and shared[names[0]][0].pictures.metric == "top1":
            resampled[names[0]] = _resampled_shares(*shared[names[0]], bootstrap, stream=stream)
            continue
        lead = shared[names[0]][0].pictures
        place = {key: number for number, key in enumerate(lead.keys)}
        columns = [
            np.array(
                [
                    place[key]
                    for key in np.array(shared[name][0].pictures.keys, dtype=object)[
                        shared[name][0].shown
                    ]
                ]
            )
            for name in names
        ]

        def statistic(weights: Float[np.ndarray, "r n"]) -> Float[np.ndarray, "r s 2"]:
            pairs = zip(columns, names, strict=True)
            values = [
                [scored.statistic(weights[:, column]) for scored in shared[name]]
                for column, name in pairs
            ]
            return np.moveaxis(np.array(values), 2, 0)

        drawn = bootstrap.resample(
            statistic, _strata(lead, place, [shared[name][0] for name in names]), stream=stream
        )
        resampled |= {name: drawn[:, number] for number, name in enumerate(names)}
    return resampled


def _resampled_shares(
    first: Scored, second: Scored, bootstrap: Bootstrap, *, stream: int
) -> Float[np.ndarray, "r 2"]:
    """Compute two accuracies in every resample.

    A picture is one of four kinds: right by both series, by the first, by the second, or by
    neither. A resample of pictures is therefore a multinomial draw of the four counts.
    """
    right, other = first.correct[first.shown], second.correct[second.shown]
    kinds = np.array(
        [
            (right & other).mean(),
            (right & ~other).mean(),
            (~right & other).mean(),
            (~right & ~other).mean(),
        ]
    )
    generator = np.random.default_rng([bootstrap.seed, stream])
    counts = generator.multinomial(len(right), kinds, size=bootstrap.num_resamples)
    return np.asarray(
        np.stack([counts[:, 0] + counts[:, 1], counts[:, 0] + counts[:, 2]], axis=1) / len(right)
    )


def _clusters(sets: Sequence[PictureSet]) -> list[list[tuple[str, str]]]:
    """Group the sets of the same pictures.

    A set belongs to a group if its pictures are a part of those of the group's largest set. Returns
    the names of the sets of each group.
    """
    clusters: list[tuple[frozenset[str], list[tuple[str, str]]]] = []
    for pictures in sorted(sets, key=len, reverse=True):
        keys = frozenset(pictures.keys)
        names = next((names for known, names in clusters if keys <= known), None)
        if names is None:
            clusters.append((keys, names := []))
        names.append(pictures.name)
    return [names for _, names in clusters]


def _strata(lead: PictureSet, place: dict[str, int], members: Sequence[Scored]) -> np.ndarray:
    """Choose the strata of sets that are resampled together.

    They are the classes of the first set whose metric is defined by classes, as in `Scored.strata`.
    Pictures that this set lacks form one more stratum.
    """
    strata = np.full(len(lead), -1)
    for member in members:
        if member.pictures.metric in ("mean_per_class", "roc_auc"):
            strata[[place[key] for key in member.pictures.keys]] = member.pictures.labels
            break
    # Pictures that no series was shown (yet) are no part of the sample.
    shown = {
        key
        for member in members
        for key, done in zip(member.pictures.keys, member.shown, strict=True)
        if done
    }
    return np.where([key in shown for key in lead.keys], strata, -2)


def _set_row(
    pair: Pair,
    epoch: int,
    scored: tuple[Scored, Scored],
    resampled: Float[np.ndarray, "r 2"],
    bootstrap: Bootstrap,
) -> SetDifference:
    pictures, n = scored[0].pictures, scored[0].num_items
    first, second = (float(side.statistic(np.ones((1, n)))[0]) for side in scored)
    by = resampled[:, 0] - resampled[:, 1]
    interval = percentile_interval(first - second, by, bootstrap.confidence)
    if pictures.metric == "top1":
        test = mcnemar(*(side.correct[side.shown] for side in scored))
        p_value, discordant = test.p_value, test.discordant_share
        ends = [
            wilson_interval(round(value * n), n, confidence=bootstrap.confidence)
            for value in (first, second)
        ]
    else:
        p_value, discordant = bootstrap_p_value(by), math.nan
        ranges = [
            percentile_interval(value, resampled[:, at], bootstrap.confidence)
            for at, value in enumerate((first, second))
        ]
        ends = [(bounds.low, bounds.high) for bounds in ranges]
    return SetDifference(
        first=pair[0].name,
        second=pair[1].name,
        epoch=epoch,
        family=_family_of(pictures),
        dataset=pictures.dataset,
        condition=pictures.condition,
        title=pictures.title,
        metric=pictures.metric,
        n=n,
        num_pictures=len(pictures),
        num_unread=len(
            {place for side in scored for place in side.answers.unread if side.shown[place]}
        ),
        first_value=first,
        second_value=second,
        difference=interval.value,
        low=interval.low,
        high=interval.high,
        p_value=p_value,
        p_holm=math.nan,
        discordant_share=discordant,
        detectable=math.nan,
        at_chance=all(low <= pictures.chance <= high for low, high in ends),
    )


def _corrected(rows: Sequence[SetDifference], *, alpha: float) -> list[SetDifference]:
    """Apply Holm's correction over the sets of a pair.

    Adds the smallest difference that the first step of the correction can detect.
    """
    corrected = holm(np.array([row.p_value for row in rows], dtype=float))
    known = [math.isfinite(row.discordant_share) for row in rows]
    detectable = [
        minimal_detectable_difference(row.n, row.discordant_share, alpha=alpha / len(rows))
        if told
        else math.nan
        for row, told in zip(rows, known, strict=True)
    ]
    return [
        replace(row, p_holm=float(p), detectable=least)
        for row, p, least in zip(rows, corrected, detectable, strict=True)
    ]


def _mean_row(
    store: PredictionStore,
    pair: Pair,
    epoch: int,
    family: str,
    shared: dict[tuple[str, str], tuple[Scored, Scored]],
    resampled: dict[tuple[str, str], Float[np.ndarray, "r 2"]],
    bootstrap: Bootstrap,
) -> MeanDifference:
    """Average over sets.

    Within a data set, the mean is first over the conditions that count.
    """
    shares = condition_weights(scored[0].pictures for scored in shared.values())
    whole = {
        name: np.concatenate([side.statistic(np.ones((1, side.num_items))) for side in scored])
        for name, scored in shared.items()
    }
    first, second = map(float, weighted_mean(shares, whole))
    drawn = weighted_mean(
        shares, {name: values[:, 0] - values[:, 1] for name, values in resampled.items()}
    )
    interval = percentile_interval(first - second, drawn, bootstrap.confidence)
    known = [
        name
        for name, pictures in store.sets.items()
        if _family_of(pictures) == family and name not in shared
    ]
    missing = [
        store.sets[name].place
        for name in known
        if not store.sets[name].rule.startswith("imagenet16") and counts_in_means(store.sets[name])
    ]
    if family == "table1":
        missing = [known.title for known in SUITE if (known.identifier, "") not in shared]
    return MeanDifference(
        first=pair[0].name,
        second=pair[1].name,
        epoch=epoch,
        name=f"mean_{family}",
        label=_MEANS[family],
        is_accuracy=True,
        first_value=first,
        second_value=second,
        difference=interval.value,
        low=interval.low,
        high=interval.high,
        p_value=bootstrap_p_value(drawn),
        num_sets=len(shares),
        num_planned=len(shares) + len(missing),
        missing=tuple(missing),
    )
