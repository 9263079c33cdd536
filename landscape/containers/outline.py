"""The outline of a checkpoint: what it states, without its numbers and without torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from landscape.containers.folders import read_weights
from landscape.containers.layouts import interpret
from landscape.containers.names import without_wrappers
from landscape.containers.weight_files import note_of_stand_ins


@dataclass(frozen=True, kw_only=True)
class Outline:
    """The outline of a checkpoint.

    Attributes:
        kind: "torch", "torch before 1.6", "TorchScript", "safetensors", "sharded" or "distributed".
        layout: The library that wrote it; see landscape.containers.layouts.
        epoch: Number of finished epochs, 0 for the initialisation; None where the file does not
            say.
        stored_epoch: The number in the file, which some trainers count from 0.
        name: Name of the run or the architecture, where stored.
        available: Copies of the weights that the file holds, of "online" and "ema".
        settings: The run's settings that the file stores: plain values under the file's own keys,
            such as {"args": {...}}.
        shapes: Shape of each tensor of the online weights (of the averaged ones if there are no
            others), by name; prefixes of DistributedDataParallel and torch.compile are removed,
            other prefixes are not.
        dtypes: Dtypes of the same tensors, by name.
        files: Every file that was read; several for a sharded checkpoint.
        notes: What was chosen and converted, as one sentence each.
    """

    path: Path
    kind: str
    layout: str
    epoch: int | None
    stored_epoch: int | float | None
    name: str | None
    available: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def outline(path: Path) -> Outline:
    """Read the outline of a checkpoint.

    Its tensors are not read, and no code in it is run.

    Args:
        path: A file of torch.save, torch.jit.save or safetensors, an index of shards, or a folder
            that holds one of these or a checkpoint of torch.distributed.

    Raises:
        CheckpointError: If it is missing, damaged, unsafe, or holds no weights.
    """
    file = read_weights(path)
    contents = interpret(file.path, file.stored, metadata=file.metadata)
    state = without_wrappers(file.path, contents.copies[contents.available[0]])
    return Outline(
        path=path,
        kind=file.kind,
        layout=contents.layout,
        epoch=contents.epoch,
        stored_epoch=contents.stored_epoch,
        name=contents.name,
        available=contents.available,
        settings=contents.settings,
        shapes={name: stub.shape for name, stub in state.items()},
        dtypes={name: stub.dtype for name, stub in state.items()},
        files=file.files,
        notes=(
            *(note for note in contents.notes if "{taken}" not in note),
            *note_of_stand_ins(file.foreign),
        ),
    )
