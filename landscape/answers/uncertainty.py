"""Uncertainty of the benchmark's numbers, and tests whether two models differ.

The uncertainty is over other pictures and other people. Pictures are resampled within each
condition and category, for all observers at once, so that pictures that are hard for both of two
models do not blur their difference. People are resampled too where the number is about people;
there are 4 to 10 per data set, so such intervals are rough. Data sets are resampled independently,
though about a tenth of the pictures are in a second one too, distorted in another way.

Coverage at nominal 95 %, for samples drawn from the answers of ResNet-50, SimCLR and people as if
these were the whole population: for means over 17 data sets 93 to 95 % for accuracy and both
consistencies, 92 to 94 % for differences of the two models, and 89 % for the accuracy difference.
The last is a mean of squares. The noise of the samples raises it, and that of the resamples raises
it once more, so its interval is too high by 0.3 standard errors. Use it to compare models rather
than by itself.

Shapes: r = resamples, d = data sets, o = models and then people, c = conditions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from landscape.answers.benchmark import CUE_CONFLICT, DATASETS, SEVENTEEN
from landscape.answers.metrics import HUMANS, METRICS, measure, pooled_condition_accuracies
from landscape.answers.scores import Scores, score
from landscape.answers.shape_texture import resampled_shape_bias
from landscape.answers.table import Answers, Trials
from landscape.statistics import (
    Bootstrap,
    Interval,
    bootstrap_p_value,
    percentile_interval,
    stratified_weights,
)
from landscape.suggestions import nearest

SHAPE_BIAS = "shape_bias"
# Streams of random numbers: pictures of data set i have stream i, its people i plus this number.
_PEOPLE = 1000


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Difference of one number between two models on the same pictures.

    Args:
        value: Number of the first minus that of the second.
        low, high: Ends of the paired bootstrap's interval; NaN where it gives none.
        p_value: P-value of "there is no difference", from the same resamples.
        num_datasets: Data sets that both models have.
        missing: Data sets that one of them lacks; they are in neither mean.
    """

    metric: str
    first: float
    second: float
    value: float
    low: float
    high: float
    p_value: float
    num_datasets: int
    missing: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Resamples:
    """Every number of every observer, with its value in each resample.

    Args:
        observers: Models, then "humans".
        by_dataset: For each of `METRICS` an array (r, o) per data set.
        shape_bias: (r, o), or None without cue-conflict.
        people_by_condition: People's pooled accuracy in each condition, (1 + r, c) per data set:
            first the numbers themselves.
    """

    settings: Bootstrap
    observers: tuple[str, ...]
    scores: dict[str, Scores]
    by_dataset: dict[str, dict[str, Float[np.ndarray, "r o"]]]
    shape_bias: Float[np.ndarray, "r o"] | None
    people_by_condition: dict[str, Float[np.ndarray, "1+r c"]]

    def interval(self, observer: str, metric: str, datasets: Sequence[str] = SEVENTEEN) -> Interval:
        """Return a number of one observer with its interval.

        A mean is over those of the data sets that the observer has.

        Args:
            observer: A model, or "humans".
            metric: One of `METRICS`, or "shape_bias".
            datasets: A single data set, or those of a mean; unused by shape bias.
        """
        value, resampled, _ = self._values(observer, metric, datasets)
        return percentile_interval(value, resampled, self.settings.confidence)

    def condition_intervals(self, dataset: str) -> list[Interval]:
        """Return people's accuracy in each condition, with its interval.

        Empty where no person answered the data set.
        """
        if HUMANS not in self.scores or dataset not in self.scores[HUMANS].by_dataset:
            return []
        values, points = self.people_by_condition[dataset][1:], self.people_by_condition[dataset][0]
        return [
            percentile_interval(float(points[at]), values[:, at], self.settings.confidence)
            for at in range(len(points))
        ]

    def difference(
        self, first: str, second: str, metric: str, datasets: Sequence[str] = SEVENTEEN
    ) -> Difference:
        """Compare two observers by one number, with paired resamples.

        A mean is over those of the data sets that both have.

        Args:
            metric, datasets: As in `interval`.
        """
        both = [self._values(observer, metric, datasets)[2] for observer in (first, second)]
        shared = [name for name in datasets if all(name in present for present in both)]
        first_value, first_resampled, _ = self._values(first, metric, shared)
        second_value, second_resampled, _ = self._values(second, metric, shared)
        resampled = first_resampled - second_resampled
        interval = percentile_interval(
            first_value - second_value, resampled, self.settings.confidence
        )
        return Difference(
            metric=metric,
            first=first_value,
            second=second_value,
            value=interval.value,
            low=interval.low,
            high=interval.high,
            p_value=bootstrap_p_value(resampled) if math.isfinite(interval.value) else math.nan,
            num_datasets=len(shared),
            missing=tuple(name for name in datasets if name not in shared),
        )

    def _values(
        self, observer: str, metric: str, datasets: Sequence[str]
    ) -> tuple[float, Float[np.ndarray, " r"], tuple[str, ...]]:
        """Look up a number, its resamples, and the data sets behind it."""
        if observer not in self.scores:
            raise ValueError(f"there is no observer {observer!r}; {nearest(observer, self.scores)}")
        column, nothing = (
            self.observers.index(observer),
            np.full(self.settings.num_resamples, math.nan),
        )
        if metric == SHAPE_BIAS:
            counts = self.scores[observer].shape_bias
            if counts is None or self.shape_bias is None:
                return math.nan, nothing, ()
            return counts.bias, self.shape_bias[:, column], tuple(datasets)
        mean = self.scores[observer].mean(metric, datasets)
        if not mean.datasets:
            return math.nan, nothing, ()
        return (
            mean.value,
            np.mean([self.by_dataset[name][metric][:, column] for name in mean.datasets], axis=0),
            mean.datasets,
        )


def resample(
    answers: Answers, settings: Bootstrap | None = None, *, resample_people: bool = False
) -> Resamples:
    """Resample pictures and people, and compute every number of every resample.

    A number about people (accuracy, likeness of one person to another) varies over pictures and
    people, who are drawn independently; its interval is slightly too wide. A number that compares a
    model with people varies over pictures only, unless `resample_people` is set.

    Args:
        settings: By default 2,000 resamples, 95 %, seed 0.
        resample_people: Let the likeness of models to people vary over people as well: how
            different it would be with other people, not only with other pictures.

    Source: Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1 (2007), for two crossed
    factors.
    """
    settings = settings or Bootstrap()
    observers = (*answers.models, HUMANS)
    by_dataset, people_by_condition = {}, {}
    bias = None
    for name, trials in answers.trials.items():
        stream = list(DATASETS).index(name)
        people, pairs = _people_weights(trials, settings, _PEOPLE + stream)
        columns = [observers.index(observer) for observer in (*trials.models, HUMANS)]
        metrics = {
            metric: np.full((settings.num_resamples, len(observers)), math.nan)
            for metric in METRICS
        }
        conditions = [pooled_condition_accuracies(trials)[None]]
        biases = []
        start = 0
        for weights in settings.weights(trials.strata, stream=stream):
            rows = slice(start, start + len(weights))
            start = rows.stop
            block = measure(
                trials,
                weights,
                people[rows],
                people[rows] if resample_people else None,
                pairs[rows],
            )
            for metric in METRICS:
                metrics[metric][rows, columns] = block[metric]
            conditions.append(pooled_condition_accuracies(trials, weights, people[rows]))
            if name == CUE_CONFLICT:
                of_models = resampled_shape_bias(trials, "model", weights)
                biases.append(
                    np.hstack(
                        [of_models, resampled_shape_bias(trials, "human", weights, people[rows])]
                    )
                )
        by_dataset[name], people_by_condition[name] = metrics, np.concatenate(conditions)
        if biases:
            bias = np.full((settings.num_resamples, len(observers)), math.nan)
            bias[:, columns] = np.concatenate(biases)
    return Resamples(settings, observers, score(answers), by_dataset, bias, people_by_condition)


def _people_weights(
    trials: Trials, settings: Bootstrap, stream: int
) -> tuple[Float[np.ndarray, "r h"], Float[np.ndarray, "r h"]]:
    """Draw weights of people, and others for pairs of people.

    Pairs need at least two different people. With three or more people, a draw of only one person,
    from which no pair can be made, is drawn again. With two people no other draw is possible, so
    there is no interval.
    """
    generator = np.random.default_rng([settings.seed, stream])
    strata = np.zeros(len(trials.humans))
    people = stratified_weights(strata, settings.num_resamples, generator)
    pairs = people.copy()
    while len(strata) > 2 and (alone := (pairs > 0).sum(axis=1) < 2).any():
        pairs[alone] = stratified_weights(strata, int(alone.sum()), generator)
    return people, pairs
