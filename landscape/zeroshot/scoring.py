"""Stored predictions from scores: the best classes of a picture, each with its score.

Shapes: n = pictures, a = classes that the model scores, c = classes of the set, t = classes that
are stored of each picture.
"""

from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32
from torch import Tensor

from landscape.answers import category_scores

# All classes of small sets are stored, as areas under curves and shape biases need every score; for
# others only the best few.
MAX_STORED, _BEST = 16, 5
# Rules that turn the scores of the classes that a model was given into those of a set's classes.
COSINE, _IMAGENET16 = "cosine", "imagenet16, scale "


class Scaled(Protocol):
    """A model whose scores are cosines that it learned to multiply, or logits."""

    @property
    def gives_logits(self) -> bool: ...

    @property
    def logit_scale(self) -> float: ...


def imagenet16(scale: float | None) -> str:
    """Name the rule from ImageNet's 1000 classes to model-vs-human's 16 categories.

    Args:
        scale: Factor of cosines before the softmax; None for the one that each model has learned.
    """
    return f"{_IMAGENET16}{'learned' if scale is None else f'{scale:g}'}"


def by_rule(
    rule: str, scores: Float[Tensor, "n a"], model: Scaled
) -> tuple[Float[Tensor, "n c"], bool]:
    """Compute scores of a set's classes from those that the model gave.

    Returns:
        The scores, and whether the last of equal ones wins.
    """
    if not rule.startswith(_IMAGENET16):
        return scores, False
    asked = rule.removeprefix(_IMAGENET16)
    scale = 1.0 if model.gives_logits else model.logit_scale if asked == "learned" else float(asked)
    return torch.from_numpy(category_scores(scores.cpu().double().numpy(), scale=scale)), True


def num_stored(num_classes: int) -> int:
    """Return how many classes of a picture are stored.

    All up to 16, else the best 5.
    """
    return num_classes if num_classes <= MAX_STORED else _BEST


def predictions_of(
    scores: Float[Tensor, "n c"], last_wins: bool = False
) -> tuple[Int32[np.ndarray, "n t"], Float32[np.ndarray, "n t"]]:
    """Select the best classes of each picture, with their scores.

    Of equal scores the class with the lowest number comes first: ImageNet has two pairs of classes
    of one name, whose scores are equal to the bit, and a sort that keeps the order of equals gives
    the same answer on every machine.

    Args:
        last_wins: The class with the highest number comes first, as in model-vs-human's toolbox.
    """
    ordered = torch.sort(
        scores.flip(1) if last_wins else scores, dim=1, descending=True, stable=True
    )
    kept, num_classes = num_stored(scores.shape[1]), scores.shape[1]
    indices = num_classes - 1 - ordered.indices if last_wins else ordered.indices
    return indices[:, :kept].cpu().numpy().astype(np.int32), ordered.values[
        :, :kept
    ].float().cpu().numpy()
