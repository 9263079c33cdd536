"""Checkpoints of several files: sharded, distributed, and folders of a hub.

Shards have an index; distributed checkpoints are folders of torch.distributed.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from landscape.containers.distributed import METADATA, read_distributed
from landscape.containers.weight_files import (
    WeightFile,
    aliases_in,
    damaged,
    read_weight_file,
    unreadable,
)
from landscape.errors import CheckpointError
from landscape.files import sha256_of_file

SHARDED = "sharded"
# Name, bytes, time of change and inode of each file of a checkpoint.
Stamps = tuple[tuple[str, int, int, int], ...]
# Digests of checkpoints, by the state of their files when the digest was computed.
_digests: dict[Stamps, str] = {}
_INDEX = "*.index.json"
# In the order in which transformers and huggingface_hub look for them.
_WHOLE = (
    "model.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_LARGEST_INDEX = 64 << 20
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.(safetensors|bin|pt)")


def read_weights(path: Path, *, verified: bool = True) -> WeightFile:
    """Read a checkpoint of one file or several, without its numbers.

    Args:
        path: A file of weights, an index of shards, or a folder that holds one of these or a
            checkpoint of torch.distributed.

    Raises:
        CheckpointError: As `read_weight_file`; also if a shard is named, or a folder holds no
            checkpoint or several.
    """
    try:
        if path.is_dir():
            return _read_folder(path, verified)
        if path.name == METADATA or path.suffix == ".distcp":
            raise CheckpointError(
                f"{path}: is a part of a checkpoint of torch.distributed. Name the folder that "
                f"holds all of it: {path.parent}"
            )
        if path.name.endswith(_INDEX[1:]) and path.is_file():
            return _read_index(path, verified)
        indices = (
            sorted(path.parent.glob(_INDEX))
            if _SHARD.fullmatch(path.name) and path.is_file()
            else []
        )
    except OSError as error:
        raise unreadable(path, error) from error
    if indices:
        raise CheckpointError(
            f"{path}: is one of several shards. Name the index of all of them: {indices[0]}"
        )
    return read_weight_file(path, verified=verified)


def _read_folder(folder: Path, verified: bool) -> WeightFile:
    if (folder / METADATA).is_file():
        return read_distributed(folder, verified=verified)
    for name in _WHOLE:
        if (folder / name).is_file():
            return read_weight_file(folder / name, verified=verified)
    indices = sorted(folder.glob(_INDEX))
    if len(indices) == 1:
        return _read_index(indices[0], verified)
    here = sorted(file.name for file in folder.iterdir())[:5]
    raise CheckpointError(
        f"{folder}: is a folder, but not of a checkpoint (expected {METADATA}, {_WHOLE[0]}, "
        f"{_WHOLE[1]} or one {_INDEX}; there are {', '.join(here) or 'no files'}). Name the file "
        "of weights."
    )


def _read_index(path: Path, verified: bool) -> WeightFile:
    """Read the shards that an index lists, as one state dict."""
    if path.stat().st_size > _LARGEST_INDEX:
        raise CheckpointError(
            f"{path}: is larger than {_LARGEST_INDEX >> 20} MB, as no index of shards is. Get the "
            "original file."
        )
    try:
        index = json.loads(path.read_bytes())
        placed: dict[str, str] = dict(index["weight_map"])
        metadata: dict[str, Any] = dict(index.get("metadata") or {})
        if not placed or not all(
            type(name) is str and Path(name).name == name for name in placed.values()
        ):
            raise ValueError("its weight_map does not name files beside it")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(path, error) from error
    shards = {
        name: read_weight_file(path.parent / name, verified=verified)
        for name in sorted(set(placed.values()))
    }
    lost = [name for name, shard in placed.items() if name not in shards[shard].stored]
    unlisted = [name for shard in shards.values() for name in shard.stored if name not in placed]
    if lost or unlisted:
        raise CheckpointError(
            f"{path}: does not fit its shards ({len(lost)} tensors are not where it says, "
            f"{len(unlisted)} are not listed), so files of two checkpoints are mixed. Copy the "
            "whole checkpoint again."
        )
    stored = {name: shards[shard].stored[name] for name, shard in placed.items()}
    files = (path, *(path.parent / name for name in shards))
    foreign = tuple(sorted({name for shard in shards.values() for name in shard.foreign}))
    aliases = aliases_in(metadata, stored)
    return WeightFile(
        path=path,
        kind=SHARDED,
        stored=stored,
        files=files,
        metadata=metadata,
        foreign=foreign,
        aliases=aliases,
    )


def digest_of_checkpoint(path: Path, files: Sequence[Path] | None = None) -> str:
    """Compute the sha256 of a checkpoint of one or several files.

    For several files it covers their names and digests. A process reads files once: while their
    sizes and times of change stay the same, so does the digest.

    Args:
        files: The files that `read_weights` says belong to it, where that is known.

    Raises:
        CheckpointError: If a file cannot be read, or, without `files`, as `read_weights`.
    """
    if files is None:
        files = read_weights(path).files if path.is_dir() or path.suffix == ".json" else (path,)
    try:
        # Recorded before reading, so that a file that changes meanwhile is digested again.
        stamps = stamps_of(files)
        if stamps not in _digests:
            _digests[stamps] = _digest(files)
        return _digests[stamps]
    except OSError as error:
        raise unreadable(path, error) from error


def known_digests() -> dict[Stamps, str]:
    """Copy all digests that this process has computed.

    They are for `remember_digests` in another process.
    """
    return dict(_digests)


def remember_digests(digests: Mapping[Stamps, str]) -> None:
    """Store digests that another process has computed of the same files."""
    _digests.update(digests)


def stamps_of(files: Sequence[Path]) -> Stamps:
    """Record name, bytes, time of change and inode of each file.

    A change of any file changes the result.

    Raises:
        OSError: If the state of a file cannot be read.
    """
    statuses = [(file, file.stat()) for file in sorted(files)]
    return tuple(
        (str(file), status.st_size, status.st_mtime_ns, status.st_ino) for file, status in statuses
    )


def _digest(files: Sequence[Path]) -> str:
    if len(files) == 1:
        return sha256_of_file(files[0])
    listed = "".join(f"{file.name} {sha256_of_file(file)}\n" for file in sorted(files))
    return hashlib.sha256(listed.encode()).hexdigest()
