"""Metrics of the benchmark on one data set, as functions of weights.

The weights are those of pictures and people. Without weights the results are the published numbers;
with the weights of a bootstrap, those of every resample.

Shapes: r = resamples, m = models, h = people, c = conditions, n = pictures, * = none or resamples.

Source: Geirhos et al. 2021 (arXiv 2106.07411). Means are taken over conditions, then people, then
data sets.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from landscape.answers.consistency import PairCounts, count_pairs, share
from landscape.answers.table import Kind, Trials

METRICS = ("accuracy", "accuracy_difference", "observed_consistency", "error_consistency")
# The observer that stands for all people together.
HUMANS = "humans"


@dataclass(frozen=True, eq=False)
class HumanLikeness:
    """Likeness of an observer's answers to people's, on one data set.

    NaN where observers share no picture of a condition that counts.

    Args:
        observed: Observed consistency, mean over kept conditions, then over people.
        error_consistency: Cohen's kappa of right and wrong, averaged in the same way.
        accuracy_difference: Squared difference of the accuracies, averaged in the same way.
    """

    observed: Float[np.ndarray, "*s"]
    error_consistency: Float[np.ndarray, "*s"]
    accuracy_difference: Float[np.ndarray, "*s"]


def condition_accuracies(
    trials: Trials, kind: Kind, weights: Float[np.ndarray, "r n"] | None = None
) -> Float[np.ndarray, "*r o c"]:
    """Compute each observer's accuracy in each condition, excluded ones too.

    Returns:
        NaN where an observer saw no picture of a condition.
    """
    right, shown = _condition_counts(trials, kind, weights)
    return share(right, shown)


def accuracies(
    trials: Trials, kind: Kind, weights: Float[np.ndarray, "r n"] | None = None
) -> Float[np.ndarray, "*r o"]:
    """Compute each observer's accuracy, pooled over the kept conditions.

    It is the number of right answers over that of trials. It differs from the mean of the
    conditions' accuracies unless conditions have the same number of pictures.

    Returns:
        NaN where an observer saw no picture of a kept condition: then it is not the accuracy of
            this data set.
    """
    right, shown = _condition_counts(trials, kind, weights)
    kept = _kept(trials)
    complete = (shown[..., kept] > 0).all(axis=-1)
    return np.where(
        complete, share(right[..., kept].sum(axis=-1), shown[..., kept].sum(axis=-1)), np.nan
    )


def pooled_accuracy(
    trials: Trials,
    weights: Float[np.ndarray, "r n"] | None = None,
    people: Float[np.ndarray, "r h"] | None = None,
) -> Float[np.ndarray, "*r"]:
    """Compute people's accuracy, pooled over people and the kept conditions.

    It is the number of right answers over that of trials.

    Args:
        people: Weights of a bootstrap, how often each person counts.
    """
    right, shown = _pooled_counts(trials, weights, people)
    kept = _kept(trials)
    complete = (shown[..., kept] > 0).all(axis=-1)
    return np.where(
        complete, share(right[..., kept].sum(axis=-1), shown[..., kept].sum(axis=-1)), np.nan
    )


def pooled_condition_accuracies(
    trials: Trials,
    weights: Float[np.ndarray, "r n"] | None = None,
    people: Float[np.ndarray, "r h"] | None = None,
) -> Float[np.ndarray, "*r c"]:
    """Compute people's pooled accuracy in each condition, the plots' human line."""
    return share(*_pooled_counts(trials, weights, people))


def models_and_people(
    trials: Trials,
    weights: Float[np.ndarray, "r n"] | None = None,
    people: Float[np.ndarray, "r h"] | None = None,
) -> HumanLikeness:
    """Compare every model with every person on one data set.

    Results are (*r, m), NaN without people.

    Args:
        people: Weights of a bootstrap, how often each person counts.
    """
    pairs = _pairs(trials, "model", weights)
    counts = np.ones(len(trials.humans)) if people is None else people[:, None, :]
    return HumanLikeness(
        *(share((values * counts).sum(axis=-1), counts.sum(axis=-1)) for values in pairs)
    )


def people_and_people(
    trials: Trials,
    weights: Float[np.ndarray, "r n"] | None = None,
    people: Float[np.ndarray, "r h"] | None = None,
) -> HumanLikeness:
    """Compare every person with every other on one data set.

    Each pair counts once; results are (*r).

    Args:
        people: Weights of a bootstrap, how often each person counts; a pair counts by the product.
            Nobody is compared with themselves, so a resample with only one person has no value.
    """
    pairs = _pairs(trials, "human", weights)
    first, second = np.triu_indices(len(trials.humans), k=1)
    counts = np.ones(len(first)) if people is None else people[:, first] * people[:, second]
    return HumanLikeness(
        *(
            share((values[..., first, second] * counts).sum(axis=-1), counts.sum(axis=-1))
            for values in pairs
        )
    )


def measure(
    trials: Trials,
    weights: Float[np.ndarray, "r n"] | None = None,
    people: Float[np.ndarray, "r h"] | None = None,
    models_people: Float[np.ndarray, "r h"] | None = None,
    pairs_of_people: Float[np.ndarray, "r h"] | None = None,
) -> dict[str, Float[np.ndarray, "*r o"]]:
    """Compute the four metrics of every model and of people.

    People are the last column. Their accuracy is pooled, and their likeness is that of one person
    to another.

    Args:
        people: As in `pooled_accuracy`.
        models_people: As in `models_and_people`; by default models are compared with all people,
            each counting once.
        pairs_of_people: As in `people_and_people`.

    Returns:
        An array for each of `METRICS`.
    """
    models, pairs = (
        models_and_people(trials, weights, models_people),
        people_and_people(trials, weights, pairs_of_people),
    )
    columns = {
        "accuracy": (
            accuracies(trials, "model", weights),
            pooled_accuracy(trials, weights, people),
        ),
        "accuracy_difference": (models.accuracy_difference, pairs.accuracy_difference),
        "observed_consistency": (models.observed, pairs.observed),
        "error_consistency": (models.error_consistency, pairs.error_consistency),
    }
    return {
        name: np.concatenate([first, last[..., None]], axis=-1)
        for name, (first, last) in columns.items()
    }


def _pairs(
    trials: Trials, kind: Kind, weights: Float[np.ndarray, "r n"] | None
) -> list[Float[np.ndarray, "*r o h"]]:
    """Compare each observer with each person by three measures.

    The measures are averaged over the kept conditions.
    """
    first, second = trials.correct(kind), trials.correct("human")
    counts: list[PairCounts] = []
    for here, condition in zip(trials.slices, trials.dataset.conditions, strict=True):
        if condition.excluded:
            continue
        counts.append(
            count_pairs(
                first[:, here], second[:, here], None if weights is None else weights[:, here]
            )
        )
    measures = [
        [pair.observed, pair.error_consistency, pair.squared_accuracy_difference] for pair in counts
    ]
    return [np.mean([values[index] for values in measures], axis=0) for index in range(3)]


def _condition_counts(
    trials: Trials, kind: Kind, weights: Float[np.ndarray, "r n"] | None
) -> tuple[Any, Any]:
    """Count right answers and shown pictures, (*r, o, c) each."""
    correct = trials.correct(kind)
    rows = np.ones((1, len(trials.images))) if weights is None else weights
    shape = (len(rows), len(correct), len(trials.dataset.conditions))
    right, shown = np.zeros(shape), np.zeros(shape)
    for condition, here in enumerate(trials.slices):
        right[..., condition] = rows[:, here] @ np.nan_to_num(correct[:, here]).T
        shown[..., condition] = rows[:, here] @ (~np.isnan(correct[:, here])).T.astype(float)
    return (right[0], shown[0]) if weights is None else (right, shown)


def _pooled_counts(
    trials: Trials,
    weights: Float[np.ndarray, "r n"] | None,
    people: Float[np.ndarray, "r h"] | None,
) -> tuple[Any, Any]:
    """Count right answers and trials of all people together, (*r, c) each."""
    right, shown = _condition_counts(trials, "human", weights)
    counts = np.ones(len(trials.humans)) if people is None else people
    return (right * counts[..., None]).sum(axis=-2), (shown * counts[..., None]).sum(axis=-2)


def _kept(trials: Trials) -> Any:
    return np.array([not condition.excluded for condition in trials.dataset.conditions])
