"""The chosen weights of a checkpoint by open_clip's names, and its description."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from landscape.clip.hf_names import hf_clip_state_dict, is_hf_clip
from landscape.clip.published import is_published, published_state_dict
from landscape.clip.stored_rows import StoredRows
from landscape.clip.stored_tensors import StoredTensors
from landscape.clip.unread_tensors import unread
from landscape.containers.folders import digest_of_checkpoint, read_weights
from landscape.containers.layouts import Contents, entry, interpret
from landscape.containers.names import without_wrappers
from landscape.containers.plain import whole_number
from landscape.containers.stand_ins import Stub
from landscape.containers.weight_files import WeightFile, note_of_stand_ins
from landscape.errors import CheckpointError

State = dict[str, Tensor]

_NUM_SHOWN = 3
# Numbers that are checked at a time: torch.isfinite takes 1.75 times their memory, and glibc may
# keep that of several steps.
_BLOCK = 1 << 16


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint file holds.

    Attributes:
        kind: "torch", "torch before 1.6", "TorchScript", "safetensors", "sharded" or "distributed".
        layout: The library that wrote it, such as "open_clip", "timm" or "lightning"; "training
            run" where that is unknown, "state dict" for weights alone.
        epoch: Number of finished epochs, 0 for the initialisation; None where the file does not
            say.
        stored_epoch: The number in the file, which many trainers count from 0.
        name: Name of the run, or of timm's architecture, where stored.
        weights: "online", or "ema" for the averaged copy.
        available: The copies of the weights that the file holds.
        settings: The run's settings that the file stores: plain values under its own keys, such as
            {"args": {...}}.
        num_tensors, num_parameters: Sizes of the chosen weights, buffers included; parameters are
            numbers, not tensors.
        dtypes: The stored dtypes, sorted.
        sha256: Digest of the file; for several files, see `digest_of_checkpoint`.
        keys: The first tensor names, prefixes of wrappers removed.
        notes: What was chosen, converted, filled in or left out, as one sentence each.
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


def read_with_digest(path: Path, expected_sha256: str | None) -> tuple[str, WeightFile]:
    """Read a checkpoint without its numbers, and compute its digest.

    Raises:
        CheckpointError: As `read_weights`; also if the digest is another one.
    """
    file = read_weights(path, verified=expected_sha256 is not None)
    sha256 = digest_of_checkpoint(path, file.files)
    check_digest(path, sha256, expected_sha256)
    return sha256, file


def check_digest(path: Path, sha256: str, expected_sha256: str | None) -> None:
    """Refuse a checkpoint whose digest is not the expected one.

    Args:
        expected_sha256: None accepts any digest.

    Raises:
        CheckpointError: If the digests differ.
    """
    if expected_sha256 is not None and sha256 != expected_sha256.lower():
        raise CheckpointError(
            f"{path}: is not the file that was listed (sha256 expected {expected_sha256}, got "
            f"{sha256}), so its numbers would belong to other weights. Restore the file, or list "
            "it anew."
        )


def look_into(
    path: Path, weights: str, expected_sha256: str | None
) -> tuple[str, WeightFile, Contents]:
    """Return a checkpoint's digest, its files and what they hold.

    Raises:
        CheckpointError: As `read_with_digest` and `contents_of`.
        ValueError: As `check_copy`.
    """
    check_copy(weights)
    sha256, file = read_with_digest(path, expected_sha256)
    return sha256, file, contents_of(path, file, weights)


def check_copy(weights: str) -> None:
    """Refuse the name of an unknown copy of the weights.

    Raises:
        ValueError: If it is neither "online" nor "ema".
    """
    if weights not in ("online", "ema"):
        raise ValueError(f'weights must be "online" or "ema", got {weights!r}.')


def contents_of(path: Path, file: WeightFile, weights: str) -> Contents:
    """Interpret what a file holds, and require the requested copy.

    Raises:
        CheckpointError: If there are no weights in it, or not this copy.
    """
    contents = interpret(path, file.stored, metadata=file.metadata)
    if weights not in contents.copies:
        what, other = ("averaged", "online") if weights == "ema" else ("trained", "ema")
        raise CheckpointError(
            f'{path}: has no {what} weights. Load it with weights="{other}", in a manifest '
            f"weights: {other}."
        )
    return contents


def state_of(
    file: WeightFile, contents: Contents, weights: str, *, reader: StoredRows | None = None
) -> tuple[State, list[str]]:
    """Return the chosen copy by open_clip's names, and notes on the renaming.

    Names are changed where those of another package are recognised.

    Args:
        reader: Leaves the numbers unread, to be read by rows; without it they are memory-mapped.
    """
    state = _tensors(file.path, without_wrappers(file.path, contents.copies[weights]), reader)
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


def _tensors(path: Path, stubs: dict[str, Stub], reader: StoredRows | None) -> State:
    return StoredTensors().state(stubs) if reader is None else dict(unread(path, stubs, reader))


def notes_of_equal_copies(
    file: WeightFile,
    contents: Contents,
    *,
    asked: str | None = None,
    reader: StoredRows | None = None,
) -> list[str]:
    """Detect a Lightning file that holds the average twice.

    Lightning's `fit` puts the average into the model when it ends. A file that is saved afterwards
    has no trained weights left. The first average is a copy of the trained weights, so two equal
    copies are then no sign of it.

    Raises:
        CheckpointError: If the trained weights are asked for and the file has only the average.
    """
    averaged = whole_number(entry(file.stored, "averaging_state.n_averaged")) or 0
    online, ema = contents.copies.get("online", {}), contents.copies.get("ema", {})
    if not averaged or online.keys() != ema.keys():
        return []
    first, second = (_tensors(file.path, copy, reader) for copy in (online, ema))
    if not all(torch.equal(first[name], second[name]) for name in online):
        return []
    if averaged == 1:
        return [
            "Both copies are equal after one update of the average: saved right then, or after "
            "`fit`, which replaces one."
        ]
    if asked == "online":
        raise CheckpointError(
            f"{file.path}: holds the average twice ({averaged} updates, all {len(online)} tensors "
            "of both copies equal), and no trained weights: at the end of `fit` Lightning puts the "
            'average into the model. Load it with weights="ema", in a manifest weights: ema, or '
            "take a file that ModelCheckpoint wrote."
        )
    return [
        "In this file both copies are the average: `fit` puts it into the model at its end, so no "
        "trained weights are left."
    ]


def _from_published(path: Path, state: State, weights: str) -> tuple[State, list[str]]:
    """Rename the tensors of SLIP and mamba-clip to open_clip's names.

    Warnings on the way become notes.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            renamed = published_state_dict(state, weights=weights)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
    notes = ["Renamed from the layout of SLIP and mamba-clip to open_clip's."]
    if left_out := len(state) - len(renamed):
        notes.append(
            f"Left out the {left_out} tensors of the "
            f"{'online' if weights == 'ema' else 'averaged'} copy."
        )
    return renamed, [*notes, *(str(warning.message) for warning in said)]


def check_convertible(path: Path, name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """Refuse a stored tensor whose numbers cannot become the model's.

    It must be dense and on the CPU. Its dtype must be the model's, or both must be floating point.
    A tensor on the meta device has a shape and no numbers, and load_state_dict skips it without an
    error.

    Raises:
        CheckpointError: If so.
    """
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise CheckpointError(
            f"{path}: {name!r} holds no plain numbers ({tensor.layout}, device {tensor.device}), "
            "so there is nothing to load. Save a dense tensor."
        )
    same_sort = tensor.dtype == dtype or (
        tensor.dtype.is_floating_point and dtype.is_floating_point
    )
    if not same_sort:
        raise CheckpointError(
            f"{path}: {name!r} is {tensor.dtype}, but the model's is {dtype}, and only "
            "floating-point numbers are converted. "
            "Name the model that wrote this checkpoint."
        )


def check_finite(path: Path, state: State) -> None:
    """Refuse weights that are not finite after conversion.

    A number that overflows in the model's dtype is not finite either.

    Raises:
        CheckpointError: If so.
    """
    bad = {}
    for name, tensor in state.items():
        if tensor.is_floating_point() and (
            count := sum(_num_not_finite(part) for part in tensor.flatten().split(_BLOCK))
        ):
            bad[name] = count
    if bad:
        shown = _shown(
            f"{name!r} with {count} of {state[name].numel()}" for name, count in bad.items()
        )
        raise CheckpointError(
            f"{path}: {len(bad)} of {len(state)} tensors hold NaN or infinite numbers ({shown}), "
            "so no loss or curvature is defined. Training diverged before this epoch: measure an "
            "earlier one."
        )


def _num_not_finite(part: Tensor) -> int:
    return part.numel() - int(torch.count_nonzero(torch.isfinite(part)))


def note_casts(state: State, converted: State) -> list[str]:
    """Report how many tensors were converted, by dtypes."""
    casts: dict[tuple[str, str], int] = {}
    for name, tensor in state.items():
        if tensor.dtype != converted[name].dtype:
            cast = (_short(tensor.dtype), _short(converted[name].dtype))
            casts[cast] = casts.get(cast, 0) + 1
    return [
        f"Converted {count} tensors from {old} to {new}." for (old, new), count in casts.items()
    ]


def describe(
    path: Path,
    sha256: str,
    file: WeightFile,
    contents: Contents,
    state: State,
    weights: str,
    *,
    notes: tuple[str, ...],
) -> CheckpointInfo:
    """Assemble the description of a checkpoint."""
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
    shown = list(items)
    return ", ".join(shown[:_NUM_SHOWN]) + (", ..." if len(shown) > _NUM_SHOWN else "")
