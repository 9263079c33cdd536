"""Means of accuracies over data sets, checkpoint by checkpoint, with resamples of pictures that all checkpoints share.

Three means, each over the same sets for every checkpoint: accuracy over zero-shot sets, accuracy over out-of-distribution sets,
and how much of the accuracy above chance a distortion leaves. Shapes: r = resamples, c = checkpoints, n = pictures.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from landscape.answers.benchmark import CUE_CONFLICT, DATASETS
from landscape.compare.accuracy import Scored
from landscape.statistics import Bootstrap, Interval, percentile_interval, wilson_interval
from landscape.store.predictions import CheckpointPredictions, PictureSet

ZERO_SHOT, OOD, ROBUSTNESS = "zero_shot", "ood", "robustness"
MEAN_TITLES = {
    ZERO_SHOT: "zero-shot accuracy",
    OOD: "out-of-distribution accuracy",
    ROBUSTNESS: "accuracy above chance that distortions leave",
}
# Before the names of one's own pictures through a distortion.
_OWN = "own/"

Key = tuple[str, int]
_Name = tuple[str, str]


@dataclass(frozen=True, kw_only=True, eq=False)
class AccuracyMean:
    """One of the three means, of every checkpoint that has it.

    Args:
        values: Of each checkpoint, with the percentile interval over pictures.
        resamples: Of each checkpoint (r,), over the same pictures.
        datasets: What it is the mean over, the same for all.
        chance: What guessing gives; NaN where it is not known.
        notes: What was left out, a sentence each.
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
    """The metric of every checkpoint on a set: as it is, and of every resample."""

    one: PictureSet
    values: dict[Key, float] = field(default_factory=dict)
    resamples: dict[Key, Float[np.ndarray, " r"]] = field(default_factory=dict)
    shown: dict[Key, Scored] = field(default_factory=dict)


def is_distorted(one: PictureSet) -> bool:
    """Tell whether a set is out of distribution: a condition of a distortion, or published stimuli."""
    return bool(one.condition) or one.rule.startswith("imagenet16") or one.dataset.startswith(_OWN)


def control_of(dataset: str) -> str | None:
    """Name the undistorted condition of a data set; None where it has none."""
    from landscape.distortions import KINDS

    # own/<folder>/<distortion>
    kind = KINDS.get(dataset.rpartition("/")[2])
    return None if kind is None else kind.control


def accuracy_means(
    sets: Mapping[_Name, PictureSet],
    checkpoints: Sequence[CheckpointPredictions],
    bootstrap: Bootstrap = Bootstrap(),
) -> dict[str, AccuracyMean]:
    """Compute the means that these answers give, by name.

    A set counts where every checkpoint with a set of its kind was shown all of it, so that no two checkpoints differ in what
    their mean is over. A mean of out-of-distribution sets is over data sets of means over conditions, as in the benchmark:
    of a published set without the conditions that the benchmark excludes, of others without the control.

    Robustness is (accuracy - chance) / (accuracy of the control - chance), both means over the data sets that have a control:
    1 where a distortion takes nothing, 0 where it leaves guessing. Only where the control is above chance in every resample.
    """
    drawn = {
        name: _sampled(one, checkpoints, bootstrap, stream) for name, one, stream in _streams(sets)
    }
    means = {}
    for name, wanted in ((ZERO_SHOT, False), (OOD, True)):
        of_kind = {
            key: drawn[key]
            for key, one in sets.items()
            if is_distorted(one) is wanted and one.dataset != CUE_CONFLICT
        }
        common, notes = _common(of_kind)
        weights = (
            _weights_of_conditions(common, controls=False)
            if wanted
            else {key: 1.0 for key in common}
        )
        mean = _mean(name, common, weights, bootstrap, notes)
        if mean.values:
            means[name] = mean
        if wanted and mean.values and (kept := _robustness(common, bootstrap)) is not None:
            means[ROBUSTNESS] = kept
    return means


def _streams(sets: Mapping[_Name, PictureSet]) -> list[tuple[_Name, PictureSet, int]]:
    """Sets with the number of their random sequence: conditions of the same pictures are resampled together."""
    numbers: dict[tuple[str, ...], int] = {}
    return [(name, one, numbers.setdefault(one.keys, len(numbers))) for name, one in sets.items()]


def _sampled(
    one: PictureSet, checkpoints: Sequence[CheckpointPredictions], bootstrap: Bootstrap, stream: int
) -> _Sampled:
    sampled = _Sampled(one)
    for checkpoint in checkpoints:
        answers = checkpoint.sets.get(one.name)
        # A checkpoint that was shown a part of the pictures has an accuracy on other pictures than the rest.
        if answers is not None and answers.complete and len(one):
            sampled.shown[checkpoint.key] = Scored(one, answers)
    if sampled.shown:
        scored = list(sampled.shown.values())

        def statistic(weights: Float[np.ndarray, "r n"]) -> Float[np.ndarray, "r c"]:
            return np.stack([each.statistic(weights) for each in scored], axis=1)

        whole = statistic(np.ones((1, len(one))))[0]
        resamples = bootstrap.resample(statistic, scored[0].strata, stream=stream)
        for number, key in enumerate(sampled.shown):
            sampled.values[key], sampled.resamples[key] = float(whole[number]), resamples[:, number]
    return sampled


def _common(sets: Mapping[_Name, _Sampled]) -> tuple[dict[_Name, _Sampled], tuple[str, ...]]:
    """The sets that all checkpoints have, of those that have any; and what is left out."""
    having = {key for sampled in sets.values() for key in sampled.values}
    common = {
        name: sampled for name, sampled in sets.items() if having and having <= set(sampled.values)
    }
    left_out = [sampled.one.place for name, sampled in sets.items() if name not in common]
    if not (having and left_out):
        return common, ()
    names = ", ".join(left_out[:5]) + (
        f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
    )
    return common, (f"Left out of means, as not every checkpoint was shown all of it: {names}.",)


def _weights_of_conditions(sets: Mapping[_Name, _Sampled], *, controls: bool) -> dict[_Name, float]:
    """Weights of conditions by which each data set counts the same.

    Args:
        controls: Weigh the controls alone; otherwise what counts in means.
    """
    conditions: dict[str, list[_Name]] = {}
    for name, sampled in sets.items():
        counts = name[1] == control_of(name[0]) if controls else _counts(sampled.one)
        if counts:
            conditions.setdefault(name[0], []).append(name)
    return {name: 1 / len(names) for names in conditions.values() for name in names}


def _counts(one: PictureSet) -> bool:
    published = None if one.dataset.startswith(_OWN) else DATASETS.get(one.dataset)
    if published is None:
        return one.condition != control_of(one.dataset)
    return one.condition in {condition.name for condition in published.kept}


def _mean(
    name: str,
    sets: Mapping[_Name, _Sampled],
    weights: Mapping[_Name, float],
    bootstrap: Bootstrap,
    notes: tuple[str, ...],
) -> AccuracyMean:
    """The weighted mean over sets of every checkpoint."""
    keys = list(dict.fromkeys(key for set_name in weights for key in sets[set_name].values))
    values, resamples = {}, {}
    for key in keys:
        value, resampled = _weighted(sets, weights, key)
        values[key] = _interval(value, resampled, sets, weights, key, bootstrap)
        resamples[key] = resampled
    datasets = tuple(dict.fromkeys(sets[set_name].one.dataset for set_name in weights))
    chance = _mean_chance(sets, weights) if weights else math.nan
    return AccuracyMean(
        name=name, values=values, resamples=resamples, datasets=datasets, chance=chance, notes=notes
    )


def _weighted(
    sets: Mapping[_Name, _Sampled], weights: Mapping[_Name, float], key: Key
) -> tuple[float, Float[np.ndarray, " r"]]:
    total = sum(weights.values())
    value = sum(weight * sets[name].values[key] for name, weight in weights.items()) / total
    resampled = (
        sum((weight * sets[name].resamples[key] for name, weight in weights.items()), np.zeros(()))
        / total
    )
    return value, resampled


def _interval(
    value: float,
    resampled: Float[np.ndarray, " r"],
    sets: Mapping[_Name, _Sampled],
    weights: Mapping[_Name, float],
    key: Key,
    bootstrap: Bootstrap,
) -> Interval:
    """The percentile interval; Wilson's of a single top-1 accuracy, as tables of accuracy have it."""
    if len(weights) == 1:
        (name,) = weights
        scored = sets[name].shown[key]
        if scored.one.metric == "top1":
            low, high = wilson_interval(
                int(scored.correct.sum()), scored.num_items, confidence=bootstrap.confidence
            )
            return Interval(value, float(low), float(high))
    return percentile_interval(value, resampled, bootstrap.confidence)


def _robustness(sets: Mapping[_Name, _Sampled], bootstrap: Bootstrap) -> AccuracyMean | None:
    """What is kept of the accuracy above chance; None where no data set has a control and a known chance."""
    both = {}
    controls = _weights_of_conditions(sets, controls=True)
    with_control = {name[0] for name in controls}
    distorted = {
        name: weight
        for name, weight in _weights_of_conditions(sets, controls=False).items()
        if name[0] in with_control and math.isfinite(sets[name].one.chance)
    }
    datasets = tuple(dict.fromkeys(name[0] for name in distorted))
    controls = {name: weight for name, weight in controls.items() if name[0] in datasets}
    if not distorted:
        return None
    chance = {id(weights): _mean_chance(sets, weights) for weights in (controls, distorted)}
    at_chance = []
    for key in next(iter(sets.values())).values:
        clean, resampled_clean = _weighted(sets, controls, key)
        value, resampled = _weighted(sets, distorted, key)
        above = resampled_clean - chance[id(controls)]
        # A quotient by what may be zero has neither a value nor an interval.
        if not (above > 0).all():
            at_chance.append(f"{key[0]} epoch {key[1]}")
            continue
        shares = (resampled - chance[id(distorted)]) / above
        share = (value - chance[id(distorted)]) / (clean - chance[id(controls)])
        both[key] = (percentile_interval(share, shares, bootstrap.confidence), shares)
    notes = []
    if at_chance:
        notes.append(
            f"No share that is kept is given of {', '.join(at_chance)}: there the accuracy on undistorted pictures cannot be "
            "told from guessing, so there is nothing to keep."
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
    return sum(weight * sets[name].one.chance for name, weight in weights.items()) / sum(
        weights.values()
    )
