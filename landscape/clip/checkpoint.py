"""Checkpoints: find the weights in any file of them, prove that they fit a model, load them; and write our own.

What the trainers write is in the table of landscape.containers.layouts. Nothing is loaded in part, resized or left out in
silence, and nothing in a file is run.
"""

import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from landscape.clip.fit import fit_to_model
from landscape.clip.hf_names import hf_clip_state_dict, is_hf_clip
from landscape.clip.misfit import is_constant
from landscape.clip.published import is_published, published_state_dict
from landscape.clip.stored_tensors import StoredTensors
from landscape.containers.folders import digest_of_checkpoint, read_weights
from landscape.containers.layouts import Contents, entry, interpret, kind_of_entries
from landscape.containers.names import without_wrappers
from landscape.containers.plain import whole_number
from landscape.containers.weight_files import WeightFile, note_of_stand_ins, one_line
from landscape.errors import CheckpointError
from landscape.files import save_atomically, sha256_of_file
from landscape.version import VERSION

State = dict[str, Tensor]

_NUM_SHOWN = 3


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint file holds.

    Attributes:
        kind: "torch", "torch before 1.6", "TorchScript", "safetensors", "sharded" or "distributed".
        layout: Who wrote it, such as "open_clip", "timm" or "lightning"; "training run" where that is unknown, "state dict"
            for weights alone.
        epoch: Finished epochs, 0 for the initialisation; None where the file does not say.
        stored_epoch: The number in the file, which many trainers count from 0.
        name: Of the run, or of timm's architecture, where stored.
        weights: "online", or "ema" for the averaged copy.
        available: The copies that the file holds.
        settings: What the file says of the run: plain values under its own keys, such as {"args": {...}}.
        num_tensors, num_parameters: Of the chosen weights, buffers included; parameters are numbers, not tensors.
        dtypes: As stored, sorted.
        sha256: Of the file; of several files, see `digest_of_checkpoint`.
        keys: The first tensor names, prefixes of wrappers removed.
        notes: What was chosen, converted, filled in or left out, one sentence each.
    """

    path: Path
    kind: str
    layout: str
    epoch: int | None
    name: str | None
    weights: str
    num_tensors: int
    num_parameters: int
    dtypes: tuple[str, ...]
    num_bytes: int
    sha256: str
    keys: tuple[str, ...]
    notes: tuple[str, ...] = ()
    stored_epoch: int | float | None = None
    available: tuple[str, ...] = ("online",)
    settings: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(path: Path, *, expected_sha256: str | None = None) -> dict[str, Any]:
    """Everything that a checkpoint stores, such as the optimizer's state to resume from; tensors on the CPU.

    Objects that are neither tensors nor plain containers are stand-ins, see landscape.containers.inert.

    Raises:
        CheckpointError: As `load_checkpoint`, short of what needs a model.
    """
    file = _read(path, expected_sha256)[1]
    if not isinstance(file.stored, dict):
        raise CheckpointError(
            f"{path}: holds a {kind_of_entries(file.stored)}, but a checkpoint is a dict by name. Save model.state_dict() "
            "instead."
        )
    stored: dict[str, Any] = StoredTensors().tree(file.stored)
    return stored


def describe_checkpoint(
    path: Path, *, weights: str = "online", expected_sha256: str | None = None
) -> CheckpointInfo:
    """What is inside a checkpoint, without the model that it belongs to.

    Raises:
        CheckpointError: As `load_checkpoint`, short of what needs the model.
    """
    sha256, file, contents = _look_into(path, weights, expected_sha256)
    state, notes = _state_of(file, contents, weights)
    notes += _notes_of_equal_copies(file, contents)
    return _describe(path, sha256, file, contents, state, weights, notes=tuple(notes))


def load_checkpoint(
    model: nn.Module, path: Path, *, expected_sha256: str | None = None, weights: str = "online"
) -> CheckpointInfo:
    """Load the weights of a checkpoint into `model`, all of them or none; no code in the file is run.

    Args:
        model: Its dtypes and devices are kept; stored numbers are converted to them, and the result says so.
        path: A file, an index of shards, or a folder that holds one or a checkpoint of torch.distributed.
        expected_sha256: In hexadecimal. Without it only the checksums inside the file are compared.
        weights: "online" for what the optimizer trained, or "ema" for its average, where the file has one. An average of
            mamba-clip has no batch-norm statistics of its own: those of the online weights are taken.

    Raises:
        CheckpointError: If the file is missing, truncated, changed, unsafe, or does not fit the model to the last tensor
            and shape, or holds a weight that is not finite. The model is then as it was.
        ValueError: If `weights` is neither.
    """
    sha256, file, contents = _look_into(path, weights, expected_sha256)
    stored, notes = _state_of(file, contents, weights)
    notes += _notes_of_equal_copies(file, contents, asked=weights)
    state, said = fit_to_model(path, stored, model, aliases=file.aliases)
    expected = model.state_dict()
    converted = {
        name: _convert(path, name, tensor, expected[name].dtype) for name, tensor in state.items()
    }
    _check_finite(
        path, {name: tensor for name, tensor in converted.items() if not is_constant(name)}
    )
    model.load_state_dict(converted, strict=True)
    notes = [*notes, *said, *_note_casts(state, converted)]
    return _describe(path, sha256, file, contents, stored, weights, notes=tuple(notes))


def check_fit(model: nn.Module, path: Path, *, weights: str = "online") -> Contents:
    """See by names and shapes that a checkpoint fits `model`: no number is looked at, and no digest.

    Raises:
        CheckpointError: As `load_checkpoint`, short of what needs the numbers.
    """
    file = read_weights(path)
    contents = _contents(path, file, weights)
    state, _ = _state_of(file, contents, weights)
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
    """Write a checkpoint in open_clip's layout, whole or not at all; equal contents give equal bytes.

    Args:
        epoch: Finished epochs; 0 before the first step.
        extra: More entries of the same dict, such as {"scaler": ...}: tensors, numbers, strings and containers of them.

    Returns:
        The sha256 of the file.

    Raises:
        CheckpointError: If the file cannot be written.
        ValueError: If `extra` names an entry of the layout, or something could not be read back without running code.
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
    """Write any dict of tensors and plain values with torch.save, whole or not at all; equal contents give equal bytes.

    Returns:
        The sha256 of the file.

    Raises:
        CheckpointError: If the file cannot be written; nothing is left behind, and what was at `path` stays.
        ValueError: If something in it could not be read back without running code.
    """
    contents = dict(contents)
    _check_plain(contents, "the checkpoint")
    try:
        _write_whole(path, contents)
        return sha256_of_file(path)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: cannot be written ({one_line(error)}), so this epoch would be lost. Check the folder, its permissions and "
            "the space left."
        ) from error


def _read(path: Path, expected_sha256: str | None) -> tuple[str, WeightFile]:
    """sha256 and contents."""
    file = read_weights(path, verified=expected_sha256 is not None)
    sha256 = digest_of_checkpoint(path, file.files)
    if expected_sha256 is not None and sha256 != expected_sha256.lower():
        raise CheckpointError(
            f"{path}: is not the file that was listed (sha256 expected {expected_sha256}, got {sha256}), so its numbers would "
            "belong to other weights. Restore the file, or list it anew."
        )
    return sha256, file


def _look_into(
    path: Path, weights: str, expected_sha256: str | None
) -> tuple[str, WeightFile, Contents]:
    if weights not in ("online", "ema"):
        raise ValueError(f'weights must be "online" or "ema", got {weights!r}.')
    sha256, file = _read(path, expected_sha256)
    return sha256, file, _contents(path, file, weights)


def _contents(path: Path, file: WeightFile, weights: str) -> Contents:
    contents = interpret(path, file.stored, metadata=file.metadata)
    if weights not in contents.copies:
        what, other = ("averaged", "online") if weights == "ema" else ("trained", "ema")
        raise CheckpointError(
            f'{path}: has no {what} weights. Load it with weights="{other}", in a manifest weights: {other}.'
        )
    return contents


def _state_of(file: WeightFile, contents: Contents, weights: str) -> tuple[State, list[str]]:
    """The chosen copy, by open_clip's names where another package's are known; and what was done."""
    stubs = without_wrappers(file.path, contents.copies[weights])
    state = StoredTensors().state(stubs)
    notes = [
        note.format(taken="averaged" if weights == "ema" else "online") for note in contents.notes
    ]
    notes += note_of_stand_ins(file.foreign)
    if is_published(state):
        state, said = _from_published(file.path, state, weights)
        return state, [*said, *notes]
    if is_hf_clip(state):
        return hf_clip_state_dict(state), [
            *notes,
            "Renamed from transformers' CLIP to open_clip's names; q, k and v joined.",
        ]
    return state, notes


def _notes_of_equal_copies(
    file: WeightFile, contents: Contents, *, asked: str | None = None
) -> list[str]:
    """Tell a file of Lightning's averaging that was saved after `fit`, which has put the average into the model.

    The first average is a copy of what was trained, so two equal copies are then no sign of it.
    """
    averaged = whole_number(entry(file.stored, "averaging_state.n_averaged")) or 0
    online, ema = contents.copies.get("online", {}), contents.copies.get("ema", {})
    reader = StoredTensors()
    if not averaged or online.keys() != ema.keys():
        return []
    if not all(torch.equal(reader.read(online[name]), reader.read(ema[name])) for name in online):
        return []
    if averaged == 1:
        return [
            "Both copies are equal after one update of the average: saved right then, or after `fit`, which replaces one."
        ]
    if asked == "online":
        raise CheckpointError(
            f"{file.path}: holds the average twice ({averaged} updates, all {len(online)} tensors of both copies equal), and no "
            "trained weights: at the end of `fit` Lightning puts the average into the model. Load it with "
            'weights="ema", in a manifest weights: ema, or take a file that ModelCheckpoint wrote.'
        )
    return [
        "In this file both copies are the average: `fit` puts it into the model at its end, so no trained weights are left."
    ]


def _from_published(path: Path, state: State, weights: str) -> tuple[State, list[str]]:
    """SLIP's and mamba-clip's names become open_clip's; what is said on the way becomes a note."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            renamed = published_state_dict(state, weights=weights)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
    notes = ["Renamed from the layout of SLIP and mamba-clip to open_clip's."]
    if left_out := len(state) - len(renamed):
        notes.append(
            f"Left out the {left_out} tensors of the {'online' if weights == 'ema' else 'averaged'} copy."
        )
    return renamed, [*notes, *(str(warning.message) for warning in said)]


def _convert(path: Path, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in the model's dtype, refused unless it holds numbers of the same sort.

    A tensor on the meta device has a shape and no numbers, and load_state_dict skips it without an error.
    """
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise CheckpointError(
            f"{path}: {name!r} holds no plain numbers ({tensor.layout}, device {tensor.device}), so there is nothing to load. "
            "Save a dense tensor."
        )
    same_sort = tensor.dtype == dtype or (
        tensor.dtype.is_floating_point and dtype.is_floating_point
    )
    if not same_sort:
        raise CheckpointError(
            f"{path}: {name!r} is {tensor.dtype}, but the model's is {dtype}, and one cannot stand for the other. "
            "Name the model that wrote this checkpoint."
        )
    return tensor.detach().to(dtype)


def _check_finite(path: Path, state: State) -> None:
    """After conversion: what overflows in the model's dtype is not finite either."""
    bad = {}
    for name, tensor in state.items():
        if tensor.is_floating_point() and (
            count := tensor.numel() - int(torch.isfinite(tensor).sum())
        ):
            bad[name] = count
    if bad:
        shown = _shown(
            f"{name!r} with {count} of {state[name].numel()}" for name, count in bad.items()
        )
        raise CheckpointError(
            f"{path}: {len(bad)} of {len(state)} tensors hold NaN or infinite numbers ({shown}), so no loss or curvature is "
            "defined. Training diverged before this epoch: measure an earlier one."
        )


def _note_casts(state: State, converted: State) -> list[str]:
    casts: dict[tuple[str, str], int] = {}
    for name, tensor in state.items():
        if tensor.dtype != converted[name].dtype:
            cast = (_short(tensor.dtype), _short(converted[name].dtype))
            casts[cast] = casts.get(cast, 0) + 1
    return [
        f"Converted {count} tensors from {old} to {new}." for (old, new), count in casts.items()
    ]


def _describe(
    path: Path,
    sha256: str,
    file: WeightFile,
    contents: Contents,
    state: State,
    weights: str,
    *,
    notes: tuple[str, ...],
) -> CheckpointInfo:
    return CheckpointInfo(
        path=path,
        kind=file.kind,
        layout=contents.layout,
        epoch=contents.epoch,
        stored_epoch=contents.stored_epoch,
        name=contents.name,
        weights=weights,
        available=contents.available,
        settings=contents.settings,
        num_tensors=len(state),
        num_parameters=sum(tensor.numel() for tensor in state.values()),
        dtypes=tuple(sorted({_short(tensor.dtype) for tensor in state.values()})),
        num_bytes=sum(part.stat().st_size for part in file.files),
        sha256=sha256,
        keys=tuple(list(state)[:5]),
        notes=notes,
    )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shown(items: Iterable[str]) -> str:
    found = list(items)
    return ", ".join(found[:_NUM_SHOWN]) + (", ..." if len(found) > _NUM_SHOWN else "")


def _check_plain(value: Any, where: str) -> None:
    """By exact type: numpy's float64 is a float, but its pickle asks for numpy's code."""
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
    """What torch.save writes to: the disk's error waits until it is through.

    Raised inside torch's C++ code, it would come out as another error, or end the process.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        """Write, or pretend to after the first error."""
        if self.error is None:
            try:
                self.stream.write(content)
            except OSError as error:
                self.error = error
        return memoryview(content).nbytes

    def flush(self) -> None:
        """Do nothing: the file is flushed when it is whole."""


def _write_whole(path: Path, contents: Mapping[str, Any]) -> None:
    def write(stream: BinaryIO) -> None:
        # Not a path, because torch.save puts its name into the archive, and so into its sha256.
        sink = _Sink(stream)
        torch.save(contents, sink)  # type: ignore[arg-type]
        if sink.error is not None:
            raise sink.error

    save_atomically(path, write, num_bytes=_num_bytes(contents))


def _num_bytes(value: Any) -> int:
    """Bytes of the tensors in plain containers."""
    if isinstance(value, Mapping):
        return sum(map(_num_bytes, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(_num_bytes, value))
    return value.nbytes if isinstance(value, Tensor) else 0
