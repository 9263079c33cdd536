"""Means of accuracies over data sets, with resamples of pictures that all checkpoints share.

The one definition of a mean over sets in this project; tables, comparisons of series and the report
take it from here. There are three means, each over the same sets for every checkpoint: accuracy
over zero-shot sets, accuracy over out-of-distribution sets, and how much of the accuracy above
chance is left under a distortion.

Shapes: r = resamples, c = checkpoints, n = pictures.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from landscape.answers.benchmark import CUE_CONFLICT, DATASETS
from landscape.compare.accuracy import Scored
from landscape.distortions import KINDS
from landscape.statistics import Bootstrap, Interval, percentile_interval, wilson_interval
from landscape.store.predictions import CheckpointPredictions, PictureSet

ZERO_SHOT, OOD, ROBUSTNESS = "zero_shot", "ood", "robustness"
MEAN_TITLES = {
    ZERO_SHOT: "zero-shot accuracy",
    OOD: "out-of-distribution accuracy",
    ROBUSTNESS: "accuracy above chance that distortions leave",
}
# Prefix of data sets that are the user's own pictures under a distortion.
_OWN = "own/"

Key = tuple[str, int]
_Name = tuple[str, str]


@dataclass(frozen=True, kw_only=True, eq=False)
class AccuracyMean:
    """One of the three means, for every checkpoint that has it.

    Args:
        values: Mean of each checkpoint, with the percentile interval over pictures.
        resamples: Mean of each checkpoint in every resample (r,) of the same pictures.
        datasets: Data sets that are averaged, the same for all checkpoints.
        chance: Mean of a model that guesses; NaN where it is not known.
        notes: Sentences about sets that were left out.
    """

    name: str
    values: Mapping[Key, Interval]
    resamples: Mapping[Key, Float[np.ndarray, " r"]]
    datasets: tuple[str, ...]
    chance: float = math.nan
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return MEAN_TITLES[self.name]


@dataclass(frozen=True, eq=False)
class _Sampled:
    """Metric of every checkpoint on a set, and in every resample of the set."""

    pictures: PictureSet
    values: dict[Key, float] = field(default_factory=dict)
    resamples: dict[Key, Float[np.ndarray, " r"]] = field(default_factory=dict)
    shown: dict[Key, Scored] = field(default_factory=dict)


def is_distorted(pictures: PictureSet) -> bool:
    """Tell whether a set is out of distribution.

    It is one if it is a condition of a distortion, or a set of published stimuli.
    """
    return (
        bool(pictures.condition)
        or pictures.rule.startswith("imagenet16")
        or pictures.dataset.startswith(_OWN)
    )


def control_of(dataset: str) -> str | None:
    """Return the undistorted condition of a data set, or None."""
    # own/<folder>/<distortion>
    kind = KINDS.get(dataset.rpartition("/")[2])
    return None if kind is None else kind.control


def accuracy_means(
    sets: Mapping[_Name, PictureSet],
    checkpoints: Sequence[CheckpointPredictions],
    bootstrap: Bootstrap = Bootstrap(),
) -> dict[str, AccuracyMean]:
    """Compute the means that these answers allow, by name.

    A set counts if every checkpoint with a set of its kind was shown all of it. The mean of every
    checkpoint is therefore over the same sets. A mean of out-of-distribution sets is over data
    sets, each a mean over its conditions, as in the benchmark. Conditions that the benchmark
    excludes are left out of published sets; the control is left out of others.

    Robustness is (accuracy - chance) / (accuracy of the control - chance), both means over the data
    sets that have a control: 1 where a distortion costs no accuracy, 0 where accuracy falls to
    chance. It is given only where the control is above chance in every resample.
    """
    drawn = {
        name: _sampled(pictures, checkpoints, bootstrap, stream)
        for name, pictures, stream in _streams(sets)
    }
    means = {}
    for name, wanted in ((ZERO_SHOT, False), (OOD, True)):
        of_kind = {
            key: drawn[key]
            for key, pictures in sets.items()
            if is_distorted(pictures) is wanted and pictures.dataset != CUE_CONFLICT
        }
        common, notes = _common(of_kind)
        weights = condition_weights(sampled.pictures for sampled in common.values())
        mean = _mean(name, common, weights, bootstrap, notes)
        if mean.values:
            means[name] = mean
        if wanted and mean.values and (kept := _robustness(common, bootstrap)) is not None:
            means[ROBUSTNESS] = kept
    return means


def counts_in_means(pictures: PictureSet) -> bool:
    """Tell whether a condition counts in means.

    For the benchmark's sets the kept conditions count, for others all but the control.
    """
    published = None if pictures.dataset.startswith(_OWN) else DATASETS.get(pictures.dataset)
    if published is None or not is_distorted(pictures):
        return not pictures.condition or pictures.condition != control_of(pictures.dataset)
    return pictures.condition in {condition.name for condition in published.kept}


def condition_weights(sets: Iterable[PictureSet]) -> dict[_Name, float]:
    """Compute weights, of sum 1, of the conditions that count in means.

    Each data set has the same weight, and so has each condition within a data set.
    """
    conditions: dict[str, list[_Name]] = {}
    for pictures in sets:
        if counts_in_means(pictures):
            conditions.setdefault(pictures.dataset, []).append(pictures.name)
    return _shares(conditions)


def _shares(conditions: Mapping[str, Sequence[_Name]]) -> dict[_Name, float]:
    return {
        name: 1 / (len(names) * len(conditions)) for names in conditions.values() for name in names
    }


def weighted_mean(weights: Mapping[_Name, float], numbers: Mapping[_Name, Any]) -> Any:
    """Average numbers, or arrays of resamples, by weights of sum 1."""
    return sum(weight * numbers[name] for name, weight in weights.items())


def _streams(sets: Mapping[_Name, PictureSet]) -> list[tuple[_Name, PictureSet, int]]:
    """Number the random sequence of each set.

    Conditions and tasks of the same pictures share a number, so that they are resampled together.
    Sets of other pictures may share keys that are plain numbers, as pictures in arrays have them;
    these differ in the first part of their data set's name.
    """
    numbers: dict[tuple[str, tuple[str, ...]], int] = {}
    keys = {
        name: (pictures.dataset.partition("/")[0], pictures.keys) for name, pictures in sets.items()
    }
    return [
        (name, pictures, numbers.setdefault(keys[name], len(numbers)))
        for name, pictures in sets.items()
    ]


def _sampled(
    pictures: PictureSet,
    checkpoints: Sequence[CheckpointPredictions],
    bootstrap: Bootstrap,
    stream: int,
) -> _Sampled:
    sampled = _Sampled(pictures)
    for checkpoint in checkpoints:
        answers = checkpoint.sets.get(pictures.name)
        # An accuracy on a part of the pictures is not comparable with one on all of them.
        if answers is not None and answers.complete and len(pictures):
            sampled.shown[checkpoint.key] = Scored(pictures, answers)
    if sampled.shown:
        scored = list(sampled.shown.values())

        def statistic(weights: Float[np.ndarray, "r n"]) -> Float[np.ndarray, "r c"]:
            return np.stack([each.statistic(weights) for each in scored], axis=1)

        whole = statistic(np.ones((1, len(pictures))))[0]
        resamples = bootstrap.resample(statistic, scored[0].strata, stream=stream)
        for number, key in enumerate(sampled.shown):
            sampled.values[key], sampled.resamples[key] = float(whole[number]), resamples[:, number]
    return sampled


def _common(sets: Mapping[_Name, _Sampled]) -> tuple[dict[_Name, _Sampled], tuple[str, ...]]:
    """Select the sets that all checkpoints have, of those that have any.

    The second value is a sentence on what is left out, if anything is.
    """
    having = {key for sampled in sets.values() for key in sampled.values}
    common = {
        name: sampled for name, sampled in sets.items() if having and having <= set(sampled.values)
    }
    left_out = [sampled.pictures.place for name, sampled in sets.items() if name not in common]
    if not (having and left_out):
        return common, ()
    names = ", ".join(left_out[:5]) + (
        f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
    )
    return common, (f"Left out of means, as not every checkpoint was shown all of it: {names}.",)


def _mean(
    name: str,
    sets: Mapping[_Name, _Sampled],
    weights: Mapping[_Name, float],
    bootstrap: Bootstrap,
    notes: tuple[str, ...],
) -> AccuracyMean:
    """Average over sets by weights, for every checkpoint."""
    keys = list(dict.fromkeys(key for set_name in weights for key in sets[set_name].values))
    values, resamples = {}, {}
    for key in keys:
        value, resampled = _weighted(sets, weights, key)
        values[key] = _interval(value, resampled, sets, weights, key, bootstrap)
        resamples[key] = resampled
    datasets = tuple(dict.fromkeys(sets[set_name].pictures.dataset for set_name in weights))
    chance = _mean_chance(sets, weights) if weights else math.nan
    return AccuracyMean(
        name=name, values=values, resamples=resamples, datasets=datasets, chance=chance, notes=notes
    )


def _weighted(
    sets: Mapping[_Name, _Sampled], weights: Mapping[_Name, float], key: Key
) -> tuple[float, Float[np.ndarray, " r"]]:
    value = weighted_mean(weights, {name: sets[name].values[key] for name in weights})
    return value, weighted_mean(weights, {name: sets[name].resamples[key] for name in weights})


def _interval(
    value: float,
    resampled: Float[np.ndarray, " r"],
    sets: Mapping[_Name, _Sampled],
    weights: Mapping[_Name, float],
    key: Key,
    bootstrap: Bootstrap,
) -> Interval:
    """Compute the percentile interval, or Wilson's of a single top-1 accuracy.

    Wilson's interval is the one that tables of accuracy show.
    """
    if len(weights) == 1:
        (name,) = weights
        scored = sets[name].shown[key]
        if scored.pictures.metric == "top1":
            low, high = wilson_interval(
                int(scored.correct.sum()), scored.num_items, confidence=bootstrap.confidence
            )
            return Interval(value, float(low), float(high))
    return percentile_interval(value, resampled, bootstrap.confidence)


def _robustness(sets: Mapping[_Name, _Sampled], bootstrap: Bootstrap) -> AccuracyMean | None:
    """Compute the share of the accuracy above chance that is left.

    None where no data set has a control and a known chance.
    """
    both = {}
    with_control = {name[0] for name in sets if name[1] == control_of(name[0])}
    distorted = condition_weights(
        sampled.pictures
        for name, sampled in sets.items()
        if name[0] in with_control and math.isfinite(sampled.pictures.chance)
    )
    datasets = tuple(dict.fromkeys(name[0] for name in distorted))
    controls = _shares(
        {name[0]: [name] for name in sets if name[0] in datasets and name[1] == control_of(name[0])}
    )
    if not distorted:
        return None
    chance = {id(weights): _mean_chance(sets, weights) for weights in (controls, distorted)}
    at_chance = []
    for key in next(iter(sets.values())).values:
        clean, resampled_clean = _weighted(sets, controls, key)
        value, resampled = _weighted(sets, distorted, key)
        above = resampled_clean - chance[id(controls)]
        # A quotient whose denominator may be zero has neither a value nor an interval.
        if not (above > 0).all():
            at_chance.append(f"{key[0]} epoch {key[1]}")
            continue
        shares = (resampled - chance[id(distorted)]) / above
        share = (value - chance[id(distorted)]) / (clean - chance[id(controls)])
        both[key] = (percentile_interval(share, shares, bootstrap.confidence), shares)
    notes = []
    if at_chance:
        notes.append(
            f"No kept share of the accuracy is given for {', '.join(at_chance)}: there the "
            "accuracy on undistorted pictures cannot be distinguished from guessing, so a "
            "distortion has nothing to reduce."
        )
    return AccuracyMean(
        name=ROBUSTNESS,
        values={key: interval for key, (interval, _) in both.items()},
        resamples={key: shares for key, (_, shares) in both.items()},
        datasets=datasets,
        chance=0.0,
        notes=tuple(notes),
    )


def _mean_chance(sets: Mapping[_Name, _Sampled], weights: Mapping[_Name, float]) -> float:
    return float(weighted_mean(weights, {name: sets[name].pictures.chance for name in weights}))
