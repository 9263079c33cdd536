"""A named model with random weights, and pictures for it, without a manifest."""

import torch

from landscape import threads
from landscape.clip.image_text import curvature_batches, open_pairs
from landscape.clip.model import build_model, image_size_of, preprocess_for, tokenizer_for
from landscape.curvature import Batch
from landscape.manifest import DataSettings

# The protocol of the papers: batches of 15. One batch is enough to audit a model that no manifest
# describes.
_PAIRS_PER_BATCH = 15


def model_on_openmoji(
    name: str, device: torch.device, *, num_batches: int
) -> tuple[torch.nn.Module, list[Batch]]:
    """Build a named model with random weights, and batches of OpenMoji pictures.

    The weights are those of seed 0. This is for models that no manifest describes.

    Raises:
        LandscapeError: If there is no such model, or the pictures are not available.
    """
    model = build_model(name, seed=0, device=device)
    threads.fit(model)
    num_samples = num_batches * _PAIRS_PER_BATCH
    data = DataSettings(
        source="openmoji",
        num_samples=num_samples,
        batch_size=_PAIRS_PER_BATCH,
        image_size=image_size_of(model)[0],
    )
    batches = curvature_batches(
        open_pairs(data),
        num_samples=data.num_samples,
        batch_size=data.batch_size,
        seed=0,
        transform=preprocess_for(model),
        tokenizer=tokenizer_for(model),
    )
    return model, [
        {key: value.to(device) for key, value in batches[i].items()} for i in range(num_batches)
    ]
