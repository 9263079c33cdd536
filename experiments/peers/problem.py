"""The problem that every contender gets: the same weights, the same batch, the same plain PyTorch.

A batch is read once and kept as a file, so that no process has to draw pictures.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from landscape import kernels
from landscape.clip.checkpoint import load_checkpoint
from landscape.clip.image_text import curvature_batches, open_pairs
from landscape.clip.model import build_model, preprocess_for, tokenizer_for
from landscape.clip.objectives import contrastive_objective
from landscape.curvature import Batch, Objective, Params
from landscape.manifest import DataSettings

BATCH_SIZE = 15
RECIPE = "openmoji_demo"


@dataclass(frozen=True)
class Case:
    """One Hessian.

    Attributes:
        model: Name of an open_clip model or of one of landscape's configurations.
        epoch: Of the checkpoint; 0 is the initialisation.
        checkpoint: The weights.
        batches: A file of batches as `save_batches` writes it.
        scan: Back end of the selective scan of Mamba towers.
    """

    model: str
    epoch: int
    checkpoint: str
    batches: str
    scan: str = "reference"


def case_title(model: str, epoch: int) -> str:
    """What tables call a case."""
    return f"{model} at initialisation" if epoch == 0 else f"{model} after {epoch} epochs"


def trained(run: Path, model: str, epochs: int) -> dict[int, Path]:
    """The checkpoints of all epochs from 0 on, trained on OpenMoji where they are not there yet."""
    from landscape.pipeline import train_run

    folder = run / model / "checkpoints"
    if not (folder / f"epoch_{epochs}.pt").exists():
        train_run(
            model=model,
            output=run / model,
            source="openmoji",
            split="train",
            image_size=None,
            recipe=RECIPE,
            epochs=epochs,
        )
    return {epoch: folder / f"epoch_{epoch}.pt" for epoch in range(epochs + 1)}


def save_batches(run: Path, model: str, num_batches: int) -> Path:
    """The first batches of the protocol of checkpoints.yaml, in float64; more batches only add to
    the end.
    """
    path = run / f"{model}_{num_batches}_batches.pt"
    if not path.exists():
        transform = preprocess_for(model)
        num_samples = num_batches * BATCH_SIZE
        pairs = open_pairs(
            DataSettings(
                source="openmoji",
                image_size=transform.size[0],
                num_samples=num_samples,
                batch_size=BATCH_SIZE,
            )
        )
        batches = curvature_batches(
            pairs,
            num_samples=num_samples,
            batch_size=BATCH_SIZE,
            seed=0,
            transform=transform,
            tokenizer=tokenizer_for(model),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save([dict(batches[index]) for index in range(num_batches)], path)
    return path


def load(case: Case, dtype: torch.dtype, index: int = 0) -> tuple[Objective, Params, Batch]:
    """The contrastive loss of one batch by all parameters. To be evaluated under `scan_backend`."""
    network = build_model(case.model, dtype=dtype)
    load_checkpoint(network, Path(case.checkpoint))
    objective, params = contrastive_objective(network)
    batch: dict[str, Tensor] = torch.load(case.batches, weights_only=True)[index]
    return objective, params, {"image": batch["image"].to(dtype), "text": batch["text"]}


@contextmanager
def scan_backend(backend: str) -> Iterator[None]:
    """For as long as the context lasts, the towers scan with this back end."""
    scan = functools.partial(kernels.selective_scan, backend=backend)  # type: ignore[arg-type]
    with mock.patch.object(kernels, "selective_scan", scan):
        yield
