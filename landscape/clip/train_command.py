"""The options of `landscape train`, turned into a training run."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.clip.model import image_size_of
from landscape.clip.train import train
from landscape.errors import LandscapeError
from landscape.manifest import DataSettings

if TYPE_CHECKING:
    from landscape.clip.train import TrainReport

# The published measurement: 3000 pairs in batches of 15, arXiv 2404.19394; it becomes the protocol
# of the run's manifest.
_NUM_SAMPLES, _BATCH_SIZE = 3000, 15


def train_run(
    *, model: str, output: Path, source: str, split: str, image_size: int | None, **options: Any
) -> "TrainReport":
    """Train with data named as on the command line.

    The other options are those of `landscape.clip.train.train`.

    Raises:
        LandscapeError: If an option has an invalid value, or as `train`.
    """
    if source == "openmoji" and image_size is None:
        image_size = max(image_size_of(model))
    try:
        data = DataSettings(
            source=source if source == "openmoji" else os.path.abspath(source),
            split=split,
            image_size=image_size,
            num_samples=_NUM_SAMPLES,
            batch_size=_BATCH_SIZE,
        )
        return train(model=model, output=output, data=data, **options)
    except ValueError as error:
        raise LandscapeError(f"train: {error}") from error
