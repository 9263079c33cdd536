"""Checkpoints: find the weights in any file of them, prove that they fit a model, load them; and write our own.

Known layouts: this package's, open_clip's (`epoch`, `name`, `state_dict`, `optimizer`), timm's (`arch`, `state_dict`,
`state_dict_ema`, or `model`), SLIP's and mamba-clip's (`epoch`, `state_dict`, `args`), a bare state dict, safetensors.
Nothing is loaded in part, resized or left out in silence.
"""

import contextlib
import os
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from landscape.clip.published import is_published, published_state_dict
from landscape.clip.untrusted import SAFETENSORS, one_line, read_untrusted, unreadable
from landscape.errors import CheckpointError
from landscape.manifest import sha256_of_file, sync_folder
from landscape.version import VERSION

State = dict[str, Tensor]

_WRAPPERS = {"online": ("state_dict", "model", "model_state_dict"), "ema": ("state_dict_ema", "model_ema")}
_NUM_SHOWN = 3


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint file holds.

    Attributes:
        kind: "torch", "torch before 1.6" or "safetensors".
        layout: Who wrote it: "landscape", "open_clip", "timm", "slip" (also mamba-clip), "training run" (some other),
            or "state dict" (the weights alone).
        epoch: As stored, None where it is not. Finished epochs, except for timm: there the number of the last one from 0.
        name: Of the run, or of timm's architecture, where stored.
        weights: "online", or "ema" for the averaged copy.
        num_tensors, num_parameters: Of the chosen weights, buffers included; parameters are numbers, not tensors.
        dtypes: As stored, sorted.
        keys: The first tensor names, prefixes of wrappers removed.
        notes: What was converted or left out, one sentence each.
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


def read_checkpoint(path: Path, *, expected_sha256: str | None = None) -> dict[str, Any]:
    """Everything that a checkpoint stores, such as the optimizer's state to resume from; tensors on the CPU.

    Raises:
        CheckpointError: As `load_checkpoint`, short of what needs a model.
    """
    return _read(path, expected_sha256)[2]


def describe_checkpoint(path: Path, *, weights: str = "online", expected_sha256: str | None = None) -> CheckpointInfo:
    """What is inside a checkpoint, without the model that it belongs to.

    Raises:
        CheckpointError: As `load_checkpoint`, short of what needs the model.
    """
    sha256, kind, stored = _read(path, expected_sha256)
    state, notes = _find_weights(path, stored, weights)
    return _describe(path, sha256, kind, stored, state, weights, notes=tuple(notes))


def load_checkpoint(
    model: nn.Module, path: Path, *, expected_sha256: str | None = None, weights: str = "online"
) -> CheckpointInfo:
    """Load the weights of a checkpoint into `model`, all of them or none; no code in the file is run.

    Args:
        model: Its dtypes and devices are kept; stored numbers are converted to them, and the result says so.
        expected_sha256: In hexadecimal. Without it only the checksums inside the file are compared.
        weights: "online", or "ema" for the averaged copy that timm and mamba-clip save beside them. An average has no
            batch-norm statistics of its own (mamba-clip never updates them): those of the online weights are taken.

    Raises:
        CheckpointError: If the file is missing, truncated, changed, unsafe, or does not fit the model to the last tensor
            and shape, or holds a weight that is not finite. The model is then as it was.
        ValueError: If `weights` is neither.
    """
    sha256, kind, stored = _read(path, expected_sha256)
    expected = model.state_dict()
    found, notes = _find_weights(path, stored, weights)
    state = _with_scalars_of(found, expected)
    _check_fit(path, state, expected)
    converted = {name: _convert(path, name, tensor, expected[name].dtype) for name, tensor in state.items()}
    _check_finite(path, converted)
    model.load_state_dict(converted, strict=True)
    return _describe(path, sha256, kind, stored, found, weights, notes=(*notes, *_note_casts(state, converted)))


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
    contents = {"epoch": epoch, "name": name, "state_dict": model.state_dict(), "landscape_version": VERSION}
    if optimizer is not None:
        contents["optimizer"] = optimizer.state_dict()
    if taken := sorted(set(contents).union({"optimizer"}).intersection(extra or {})):
        raise ValueError(f"extra must not name {', '.join(taken)}: the layout has that entry already.")
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


def _read(path: Path, expected_sha256: str | None) -> tuple[str, str, dict[str, Any]]:
    """sha256, kind and contents."""
    try:
        sha256 = sha256_of_file(path)
    except OSError as error:
        raise unreadable(path, error) from error
    if expected_sha256 is not None and sha256 != expected_sha256.lower():
        raise CheckpointError(
            f"{path}: is not the file that was listed (sha256 expected {expected_sha256}, got {sha256}), so its numbers would "
            "belong to other weights. Restore the file, or list it anew."
        )
    kind, stored = read_untrusted(path, verified=expected_sha256 is not None)
    if not isinstance(stored, dict) or not all(isinstance(key, str) for key in stored):
        raise CheckpointError(
            f"{path}: holds a {type(stored).__name__}, but a checkpoint is a dict by name. Save model.state_dict() instead."
        )
    return sha256, kind, stored


def _find_weights(path: Path, stored: dict[str, Any], weights: str) -> tuple[State, list[str]]:
    """The chosen state dict of a checkpoint, prefixes of wrappers removed, and what was left out."""
    if weights not in _WRAPPERS:
        raise ValueError(f'weights must be "online" or "ema", got {weights!r}.')
    found = [stored[key] for key in _WRAPPERS[weights] if isinstance(stored.get(key), dict)]
    beside = [stored[key] for key in _WRAPPERS["online"] if isinstance(stored.get(key), dict)]
    state = _checked_state(path, (found or beside or [stored])[0], stored)
    if is_published(state):
        return _from_published(path, state, weights)
    if weights == "ema" and not found:
        raise CheckpointError(f'{path}: has no averaged weights. Load it with weights="online".')
    return state, []


def _checked_state(path: Path, state: dict[Any, Any], stored: dict[str, Any]) -> State:
    if not state or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise CheckpointError(
            f"{path}: no weights found among its entries ({_shown(repr(key) for key in stored)}); expected 'state_dict', "
            "'model', or the tensors themselves by name. Save {'epoch': ..., 'state_dict': model.state_dict()}."
        )
    return _without_prefixes(path, state)


def _without_prefixes(path: Path, state: State) -> State:
    """Undo what DistributedDataParallel (module.) and torch.compile (_orig_mod.) put in front of names."""
    plain = {key.replace("_orig_mod.", ""): tensor for key, tensor in state.items()}
    while plain and all(key.startswith("module.") for key in plain):
        plain = {key.removeprefix("module."): tensor for key, tensor in plain.items()}
    if len(plain) < len(state):
        raise CheckpointError(
            f"{path}: holds some tensors twice, with and without '_orig_mod.' in their names. Save the state_dict of one model."
        )
    return plain


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
        notes.append(f"Left out the {left_out} tensors of the {'online' if weights == 'ema' else 'averaged'} copy.")
    return renamed, [*notes, *(str(warning.message) for warning in said)]


def _with_scalars_of(state: State, expected: Mapping[str, Tensor]) -> State:
    """Some open_clip releases stored the scalars as vectors of one number; they take the model's shape."""
    scalars = {
        name: state[name].reshape(expected[name].shape)
        for name in ("logit_scale", "logit_bias")
        if name in state and name in expected and state[name].numel() == expected[name].numel() == 1
    }
    return state | scalars


def _check_fit(path: Path, state: State, expected: Mapping[str, Tensor]) -> None:
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    misfits = [
        f"{name!r} expected {tuple(expected[name].shape)}, got {tuple(tensor.shape)}"
        for name, tensor in state.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    faults = [
        f"{len(found)} {what} ({_shown(found)})"
        for found, what in (
            (misfits, f"of {len(expected)} tensors of another shape"),
            ([repr(name) for name in missing], f"of {len(expected)} tensors missing"),
            ([repr(name) for name in unexpected], "tensors that the model does not have"),
        )
        if found
    ]
    if faults:
        raise CheckpointError(
            f"{path}: does not fit the model: {'; '.join(faults)}. Nothing is loaded in part, and no position embedding is "
            "resized. Name the model that wrote this checkpoint."
        )


def _convert(path: Path, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in the model's dtype, refused unless it holds numbers of the same sort.

    A tensor on the meta device has a shape and no numbers, and load_state_dict skips it without an error.
    """
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise CheckpointError(
            f"{path}: {name!r} holds no plain numbers ({tensor.layout}, device {tensor.device}), so there is nothing to load. "
            "Save a dense tensor."
        )
    same_sort = tensor.dtype == dtype or (tensor.dtype.is_floating_point and dtype.is_floating_point)
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
        if tensor.is_floating_point() and (count := tensor.numel() - int(torch.isfinite(tensor).sum())):
            bad[name] = count
    if bad:
        shown = _shown(f"{name!r} with {count} of {state[name].numel()}" for name, count in bad.items())
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
    return [f"Converted {count} tensors from {old} to {new}." for (old, new), count in casts.items()]


def _describe(
    path: Path, sha256: str, kind: str, stored: dict[str, Any], state: State, weights: str, *, notes: tuple[str, ...]
) -> CheckpointInfo:
    epoch, name = stored.get("epoch"), stored.get("name", stored.get("arch"))
    return CheckpointInfo(
        path=path,
        kind=kind,
        layout=_layout(kind, stored),
        epoch=epoch if type(epoch) is int else None,
        name=name if type(name) is str else None,
        weights=weights,
        num_tensors=len(state),
        num_parameters=sum(tensor.numel() for tensor in state.values()),
        dtypes=tuple(sorted({_short(tensor.dtype) for tensor in state.values()})),
        num_bytes=path.stat().st_size,
        sha256=sha256,
        keys=tuple(list(state)[:5]),
        notes=notes,
    )


def _layout(kind: str, stored: dict[str, Any]) -> str:
    if kind == SAFETENSORS or all(isinstance(value, Tensor) for value in stored.values()):
        return "state dict"
    if "landscape_version" in stored:
        return "landscape"
    if "arch" in stored or "state_dict_ema" in stored or ("model" in stored and "state_dict" not in stored):
        return "timm"
    if "name" in stored and "state_dict" in stored:
        return "open_clip"
    if "args" in stored and any(key.startswith("best_acc") for key in stored):
        return "slip"
    return "training run"


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


def _write_whole(path: Path, contents: Mapping[str, Any]) -> None:
    """Through a hidden file in the same folder, synced and renamed."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        # An open file, because torch.save puts a path's own name into the archive, and so into its sha256.
        with temporary.open("wb") as file:
            torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)
