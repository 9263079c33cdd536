"""Shape bias: the share of shape among decisions for shape or texture.

The pictures have a shape of one category and a texture of another.

Shapes: r = resamples, o = observers, n = pictures.

Source: Geirhos et al., ImageNet-trained CNNs are biased towards texture, ICLR 2019 (arXiv
1811.12231); 2021 (arXiv 2106.07411) for the figure.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from landscape.answers.benchmark import CATEGORIES, CUE_CONFLICT
from landscape.answers.consistency import share
from landscape.answers.table import NOT_SHOWN, Answers, Kind, Trials


@dataclass(frozen=True)
class ShapeBias:
    """Number of answers that named the shape, and of those that named the texture.

    Args:
        shape, texture: Number of such answers.
        num_conflicts: Trials with a picture whose shape and texture differ, 1,200 of the 1,280
            pictures.
        num_trials: All trials, with the pictures that have no conflict.
    """

    shape: int
    texture: int
    num_conflicts: int
    num_trials: int

    @property
    def bias(self) -> float:
        """Return the share of shape among both, S / (S + T).

        Other answers, and missing ones, do not count. NaN where neither was ever named.
        """
        named = self.shape + self.texture
        return self.shape / named if named else math.nan


def shape_bias(answers: Answers, model: str | None = None) -> ShapeBias | None:
    """Count over all categories, as the benchmark's vertical line does.

    The count is pooled, not the mean over categories: for people these are .9587 and .9538.

    Args:
        model: Name of a model; None for all people together.

    Returns:
        None without answers to cue-conflict.
    """
    trials, who = _rows(answers, model)
    return None if trials is None else _count(trials, "human" if model is None else "model", who)


def shape_bias_by_category(answers: Answers, model: str | None = None) -> dict[str, ShapeBias]:
    """Count for each category of the shape, as the benchmark's markers do.

    Args:
        model: Name of a model; None for all people together.

    Returns:
        Categories in alphabetical order; empty without answers to cue-conflict.
    """
    trials, who = _rows(answers, model)
    if trials is None:
        return {}
    kind: Kind = "human" if model is None else "model"
    return {
        name: _count(trials, kind, who, trials.category == index)
        for index, name in enumerate(CATEGORIES)
    }


def shape_bias_by_person(answers: Answers) -> dict[str, ShapeBias]:
    """Count the shape and texture answers of each person."""
    trials, _ = _rows(answers, None)
    if trials is None:
        return {}
    return {
        name: _count(trials, "human", np.arange(len(trials.humans)) == at)
        for at, name in enumerate(trials.humans)
    }


def resampled_shape_bias(
    trials: Trials,
    kind: Kind,
    weights: Float[np.ndarray, "r n"],
    people: Float[np.ndarray, "r h"] | None = None,
) -> Float[np.ndarray, "r o"]:
    """Compute the shape bias in every resample.

    The result is for each model, or, where the kind is "human", for all people together, (r, 1).

    Args:
        people: How often each person counts.
    """
    shape, texture, _ = _hits(trials, kind)
    named_shape, named_texture = weights @ shape.T.astype(float), weights @ texture.T.astype(float)
    if kind == "human":
        counts = np.ones(shape.shape[0]) if people is None else people
        named_shape = (named_shape * counts).sum(axis=1, keepdims=True)
        named_texture = (named_texture * counts).sum(axis=1, keepdims=True)
    return np.asarray(share(named_shape, named_shape + named_texture))


def _rows(answers: Answers, model: str | None) -> tuple[Trials | None, Bool[np.ndarray, " o"]]:
    """Select the trials of cue-conflict, and mark the requested observers."""
    trials = answers.trials.get(CUE_CONFLICT)
    observers = () if trials is None else trials.humans if model is None else trials.models
    meant = np.array([model is None or name == model for name in observers], dtype=bool)
    return (trials if meant.any() else None), meant


def _hits(
    trials: Trials, kind: Kind
) -> tuple[Bool[np.ndarray, "o n"], Bool[np.ndarray, "o n"], Bool[np.ndarray, " n"]]:
    """Mark answers with the shape, with the texture, and conflicting pictures."""
    responses = trials.human_responses if kind == "human" else trials.model_responses
    texture = trials.texture
    conflict = texture != trials.category
    return (responses == trials.category) & conflict, (responses == texture) & conflict, conflict


def _count(
    trials: Trials,
    kind: Kind,
    who: Bool[np.ndarray, " o"],
    pictures: Bool[np.ndarray, " n"] | None = None,
) -> ShapeBias:
    responses = trials.human_responses if kind == "human" else trials.model_responses
    shape, texture, conflict = _hits(trials, kind)
    meant = who[:, None] & (responses != NOT_SHOWN) & (True if pictures is None else pictures)
    counts = (shape & meant, texture & meant, conflict & meant, meant)
    return ShapeBias(*(int(count.sum()) for count in counts))
