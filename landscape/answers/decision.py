"""Decision of a model among 16 categories, from its 1000 ImageNet scores.

Uses numpy, in float64.

Shapes: * = any shape, one entry per picture; 1000 = ImageNet classes; 16 = categories, in the order
of `CATEGORIES`.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from landscape.answers.benchmark import CATEGORIES, IMAGENET_INDICES

NUM_CLASSES = 1000
# Rounding of 1000 float32 probabilities changes their sum by less; logits or percent differ by far
# more.
_SUM_TOLERANCE = 1e-3


def category_scores(
    logits: Float[np.ndarray, "*s 1000"], *, scale: float = 1.0
) -> Float[np.ndarray, "*s 16"]:
    r"""Average a model's probabilities over the ImageNet classes of each category.

    With p = softmax(scale * logits) over the 1000 classes and C_k the classes of category k, the
    score is

        s_k = (1 / |C_k|) sum_{i in C_k} p_i.

    The probabilities of the 793 classes in no category are ignored, so scores do not sum to 1. It
    is a mean and not a sum, as "dog" has 109 classes and "airplane" one. The mean of probabilities
    depends on the scale of the logits, so the scale changes decisions: state it.

    Args:
        logits: Logits of a classifier, or cosines of a CLIP model with its class texts.
        scale: 1 for a classifier, 100 for cosines in the benchmark's toolbox. A CLIP model's own is
            exp(logit_scale).

    Returns:
        The 16 scores of each picture.

    Raises:
        ValueError: If there are not 1000 logits, or a logit is not finite.

    Source: Geirhos et al. 2021 (arXiv 2106.07411), and Geirhos et al. 2018 (arXiv 1808.08750) for
    the mapping to 16 categories.
    """
    logits = _checked(logits, "logits") * scale
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return _means(exponentials / exponentials.sum(axis=-1, keepdims=True))


def category_scores_of_probabilities(
    probabilities: Float[np.ndarray, "*s 1000"],
) -> Float[np.ndarray, "*s 16"]:
    """Average given probabilities as `category_scores` does after its softmax.

    Raises:
        ValueError: If there are not 1000, one is not finite or negative, or they do not sum to 1.
    """
    probabilities = _checked(probabilities, "probabilities")
    sums = probabilities.sum(axis=-1)
    if (probabilities < 0).any() or (np.abs(sums - 1) > _SUM_TOLERANCE).any():
        raise ValueError(
            "probabilities must not be negative and must sum to 1 over the 1000 classes; are these "
            "logits?"
        )
    return _means(probabilities)


def decide(scores: Float[np.ndarray, "*s 16"]) -> Int[np.ndarray, "*s"]:
    """Choose the category with the largest score.

    Of equal scores, the last category in alphabetical order is chosen: the toolbox sorts ascending
    and takes the last. In practice scores are never equal.

    Returns:
        Positions in `CATEGORIES`.

    Raises:
        ValueError: If there are not 16 scores, or one is NaN.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.shape[-1:] != (len(CATEGORIES),) or np.isnan(scores).any():
        raise ValueError(
            f"a decision needs {len(CATEGORIES)} scores that are numbers, got shape {scores.shape}."
        )
    return np.asarray(len(CATEGORIES) - 1 - np.argmax(scores[..., ::-1], axis=-1))


def _means(probabilities: Float[np.ndarray, "*s 1000"]) -> Float[np.ndarray, "*s 16"]:
    means = [probabilities[..., list(IMAGENET_INDICES[name])].mean(axis=-1) for name in CATEGORIES]
    return np.stack(means, axis=-1)


def _checked(values: Any, name: str) -> Float[np.ndarray, "*s 1000"]:
    values = np.asarray(values, dtype=np.float64)
    if values.shape[-1:] != (NUM_CLASSES,):
        raise ValueError(
            f"{name} of {NUM_CLASSES} ImageNet classes are needed in the last axis, got shape "
            f"{values.shape}."
        )
    if not np.isfinite(values).all():
        raise ValueError(
            f"{int((~np.isfinite(values)).sum())} of the {name} are not finite; a decision would "
            "be arbitrary."
        )
    return values
