"""Checkpoints: read any supported format, check the fit to a model, load and write.

What the trainers write is in the table of landscape.containers.layouts. A checkpoint is loaded
completely or not at all. No tensor is resized, nothing is left out without a note, and no code in a
file is run.
"""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from landscape.clip.checkpoint_state import (
    CheckpointInfo,
    check_convertible,
    check_finite,
    contents_of,
    describe,
    look_into,
    note_casts,
    notes_of_equal_copies,
    read_with_digest,
    state_of,
)
from landscape.clip.fit import fit_to_model
from landscape.clip.misfit import is_constant
from landscape.clip.stored_rows import StoredRows
from landscape.clip.stored_tensors import StoredTensors
from landscape.containers.folders import read_weights
from landscape.containers.layouts import Contents, kind_of_entries
from landscape.containers.weight_files import one_line
from landscape.errors import CheckpointError
from landscape.files import save_atomically, sha256_of_file
from landscape.version import VERSION

__all__ = [
    "CheckpointInfo",
    "check_fit",
    "describe_checkpoint",
    "load_checkpoint",
    "read_checkpoint",
    "save_checkpoint",
    "write_checkpoint",
]


def read_checkpoint(path: Path, *, expected_sha256: str | None = None) -> dict[str, Any]:
    """Read everything that a checkpoint stores, with tensors on the CPU.

    This includes, for example, the optimizer's state from which to resume. Objects that are neither
    tensors nor plain containers are stand-ins, see landscape.containers.inert.

    Raises:
        CheckpointError: As `load_checkpoint`, except for what needs a model.
    """
    file = read_with_digest(path, expected_sha256)[1]
    if not isinstance(file.stored, dict):
        raise CheckpointError(
            f"{path}: holds a {kind_of_entries(file.stored)}, but a checkpoint is a dict by name. "
            "Save model.state_dict() instead."
        )
    stored: dict[str, Any] = StoredTensors().tree(file.stored)
    return stored


def describe_checkpoint(
    path: Path, *, weights: str = "online", expected_sha256: str | None = None
) -> CheckpointInfo:
    """Describe what a checkpoint holds, without its model.

    Raises:
        CheckpointError: As `load_checkpoint`, except for what needs the model.
    """
    sha256, file, contents = look_into(path, weights, expected_sha256)
    state, notes = state_of(file, contents, weights)
    notes += notes_of_equal_copies(file, contents)
    return describe(path, sha256, file, contents, state, weights, notes=tuple(notes))


def load_checkpoint(
    model: nn.Module, path: Path, *, expected_sha256: str | None = None, weights: str = "online"
) -> CheckpointInfo:
    """Load a checkpoint's weights into `model`, all of them or none.

    No code in the file is run.

    Args:
        model: Its dtypes and devices are kept; stored numbers are converted to them, and the result
            says so.
        path: A file, an index of shards, or a folder that holds one or a checkpoint of
            torch.distributed.
        expected_sha256: Expected digest in hexadecimal. Without it only the checksums inside the
            file are compared.
        weights: "online" for the weights that the optimizer trained, or "ema" for their average,
            where the file has one. An average of mamba-clip has no batch-norm statistics of its
            own: those of the online weights are taken.

    Raises:
        CheckpointError: If the file is missing, truncated, changed or unsafe, if any tensor or
            shape does not fit the model, or if a weight is not finite. The model is then unchanged.
        ValueError: If `weights` is neither.
    """
    sha256, file, contents = look_into(path, weights, expected_sha256)
    stored, notes = state_of(file, contents, weights)
    notes += notes_of_equal_copies(file, contents, asked=weights)
    state, said = fit_to_model(path, stored, model, aliases=file.aliases)
    expected = model.state_dict()
    for name, tensor in state.items():
        check_convertible(path, name, tensor, expected[name].dtype)
    converted = {name: tensor.detach().to(expected[name].dtype) for name, tensor in state.items()}
    check_finite(
        path, {name: tensor for name, tensor in converted.items() if not is_constant(name)}
    )
    model.load_state_dict(converted, strict=True)
    notes = [*notes, *said, *note_casts(state, converted)]
    return describe(path, sha256, file, contents, stored, weights, notes=tuple(notes))


def check_fit(model: nn.Module, path: Path, *, weights: str = "online") -> Contents:
    """Check by names and shapes that a checkpoint fits `model`.

    Numbers are read only to compare tied weights.

    Raises:
        CheckpointError: As `load_checkpoint`, except for what needs the numbers.
    """
    file = read_weights(path)
    contents = contents_of(path, file, weights)
    with StoredRows() as reader:
        state, _ = state_of(file, contents, weights, reader=reader)
        fit_to_model(path, state, model, aliases=file.aliases)
    return contents


def save_checkpoint(
    path: Path,
    *,
    model: nn.Module,
    epoch: int,
    name: str,
    optimizer: torch.optim.Optimizer | None = None,
    extra: Mapping[str, Any] | None = None,
) -> str:
    """Write a complete checkpoint in open_clip's layout, or nothing.

    Equal contents give equal bytes.

    Args:
        epoch: Number of finished epochs; 0 before the first step.
        extra: More entries of the same dict, such as {"scaler": ...}: tensors, numbers, strings and
            containers of them.

    Returns:
        The sha256 of the file.

    Raises:
        CheckpointError: If the file cannot be written.
        ValueError: If `extra` names an entry of the layout, or something could not be read back
            without running code.
    """
    contents = {
        "epoch": epoch,
        "name": name,
        "state_dict": model.state_dict(),
        "landscape_version": VERSION,
    }
    if optimizer is not None:
        contents["optimizer"] = optimizer.state_dict()
    if taken := sorted(set(contents).union({"optimizer"}).intersection(extra or {})):
        raise ValueError(
            f"extra must not name {', '.join(taken)}: the layout has that entry already."
        )
    contents.update(extra or {})
    return write_checkpoint(path, contents)


def write_checkpoint(path: Path, contents: Mapping[str, Any]) -> str:
    """Write a dict of tensors and plain values with torch.save, or nothing.

    Equal contents give equal bytes.

    Returns:
        The sha256 of the file.

    Raises:
        CheckpointError: If the file cannot be written; nothing is left behind, and the previous
            file at `path` stays.
        ValueError: If something in it could not be read back without running code.
    """
    contents = dict(contents)
    _check_plain(contents, "the checkpoint")
    try:
        _write_whole(path, contents)
        return sha256_of_file(path)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: cannot be written ({one_line(error)}), so this epoch would be lost. Check "
            "the folder, its permissions and the space left."
        ) from error


def _check_plain(value: Any, where: str) -> None:
    """Refuse values that only running code could read back.

    Types are compared exactly: numpy's float64 is a float, but its pickle asks for numpy's code.
    """
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _check_plain(key, f"a key of {where}")
            _check_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    elif type(value) not in (Tensor, nn.Parameter, str, int, float, bool, type(None)):
        kind = f"{type(value).__module__}.{type(value).__name__}"
        raise ValueError(f"{where} is a {kind}, which cannot be read back without running code.")


class _Sink:
    """A stream for torch.save that holds disk errors back.

    Raised inside torch's C++ code, the error would become another error, or end the process.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        """Write the content; after the first error, only report its size."""
        if self.error is None:
            try:
                self.stream.write(content)
            except OSError as error:
                self.error = error
        return memoryview(content).nbytes

    def flush(self) -> None:
        """Do nothing: the file is flushed once it is complete."""


def _write_whole(path: Path, contents: Mapping[str, Any]) -> None:
    def write(stream: BinaryIO) -> None:
        # A stream, not a path: torch.save would store the path's name in the archive, and so change
        # its sha256.
        sink = _Sink(stream)
        torch.save(contents, sink)  # type: ignore[arg-type]
        if sink.error is not None:
            raise sink.error

    save_atomically(path, write, num_bytes=_num_bytes(contents))


def _num_bytes(value: Any) -> int:
    """Count the bytes of the tensors in plain containers."""
    if isinstance(value, Mapping):
        return sum(map(_num_bytes, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(_num_bytes, value))
    return value.nbytes if isinstance(value, Tensor) else 0
