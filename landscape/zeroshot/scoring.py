"""From scores of classes to what is stored of a picture: the best classes, each with its score.

Shapes: n = pictures, c = classes, t = classes that are stored of each picture.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32
from torch import Tensor

# All classes of small sets are stored, as areas under curves and shape biases need every score; of others the best few.
MOST_STORED, _BEST = 16, 5


def num_stored(num_classes: int) -> int:
    """How many classes of a picture are stored: all up to 16, else the best 5."""
    return num_classes if num_classes <= MOST_STORED else _BEST


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says of some pictures.

    Attributes:
        top: The best classes, the best first; -1 throughout where a picture could not be read.
        scores: Of these classes; NaN where a picture could not be read.
        unread: Why, by the place of the picture.
    """

    top: Int32[np.ndarray, "n t"]
    scores: Float32[np.ndarray, "n t"]
    unread: dict[int, str]

    def __len__(self) -> int:
        return len(self.top)


def predictions_of(scores: Float[Tensor, "n c"]) -> tuple[Int32[np.ndarray, "n t"], Float32[np.ndarray, "n t"]]:
    """The best classes of each picture and their scores; of equal scores the class with the lowest number comes first.

    ImageNet has two pairs of classes of one name, whose scores are equal to the bit: a sort that keeps the order of equals
    gives the same answer on every machine.
    """
    ordered = torch.sort(scores.float(), dim=1, descending=True, stable=True)
    kept = num_stored(scores.shape[1])
    return ordered.indices[:, :kept].cpu().numpy().astype(np.int32), ordered.values[:, :kept].cpu().numpy()
