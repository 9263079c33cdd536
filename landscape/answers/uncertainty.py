"""How far the benchmark's numbers would move with other pictures and other people, and whether two models differ.

Pictures are resampled within each condition and category, for all observers at once, so that what is hard for both of two
models does not blur their difference. People are resampled too where the number is about people; they are 4 to 10 per data set,
so such intervals are rough. Data sets are resampled independently, though about a tenth of the pictures are in a second one
too, distorted in another way.

Coverage at nominal 95 %, samples drawn from the answers of ResNet-50, SimCLR and people as if these were all there are: of
means over 17 data sets 93 to 95 % for accuracy and both consistencies, and 92 to 94 % for differences of the two models; 89 %
for the accuracy difference. That is a mean of squares, which the noise of the samples raises, and that of the resamples once
more, so its interval lies too high by 0.3 standard errors; compare models by it rather than reading it alone.
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

SHAPE_BIAS = "shape_bias"
# Streams of random numbers: pictures of data set i have i, its people this much more.
_PEOPLE = 1000


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One number of two models on the same pictures.

    Args:
        value: That of the first minus that of the second.
        low, high: Ends of the paired bootstrap's interval; NaN where it gives none.
        p_value: Of "there is no difference", from the same resamples.
        num_datasets: Data sets that both models have.
        missing: Those that one of them lacks; they are in neither mean.
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
    """Every number of every observer, and what it is in each resample.

    Args:
        observers: Models, then "humans".
        by_dataset: For each of `METRICS` an array (r, o) per data set.
        shape_bias: (r, o), or None without cue-conflict.
        people_by_condition: People's pooled accuracy in each condition, (1 + r, c) per data set: first the numbers themselves.
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
            datasets: One, or those of a mean; unused by shape bias.
        """
        value, resampled, _ = self._values(observer, metric, datasets)
        return percentile_interval(value, resampled, self.settings.confidence)

    def condition_intervals(self, dataset: str) -> list[Interval]:
        """Return people's accuracy in each condition of a data set, with its interval."""
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
            raise ValueError(
                f"there is no observer {observer!r}; there are {', '.join(self.scores)}."
            )
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

    A number of people (accuracy, likeness of one person to another) varies over pictures and people, who are drawn
    independently; that is slightly too wide. A number of a model beside people varies over pictures only, unless asked.

    Args:
        settings: By default 2,000 resamples, 95 %, seed 0.
        resample_people: Let the likeness of models to people vary over people as well: how far it would be from other people,
            not only on other pictures.

    Source: Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1 (2007), for two crossed factors.
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

    For pairs at least two different ones are needed. Of three or more people a draw of one person only, from which no pair can
    be made, is drawn again; of two it is all there can be, so there is no interval.
    """
    generator = np.random.default_rng([settings.seed, stream])
    strata = np.zeros(len(trials.humans))
    people = stratified_weights(strata, settings.num_resamples, generator)
    pairs = people.copy()
    while len(strata) > 2 and (alone := (pairs > 0).sum(axis=1) < 2).any():
        pairs[alone] = stratified_weights(strata, int(alone.sum()), generator)
    return people, pairs
