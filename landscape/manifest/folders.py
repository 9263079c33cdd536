"""Checkpoints of several files: shards with an index, folders of torch.distributed, folders of a hub."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from landscape.manifest.files import sha256_of_file
from landscape.manifest.weight_files import WeightFile, read_weight_file, unreadable


def read_weights(path: Path, *, verified: bool = True) -> WeightFile:
    """Read a checkpoint of one file or several, without its numbers.

    Raises:
        CheckpointError: As `read_weight_file`.
    """
    return read_weight_file(path, verified=verified)


def digest_of_checkpoint(path: Path, files: Sequence[Path] | None = None) -> str:
    """The sha256 of a checkpoint: of its file, or of the names and digests of all its files.

    Args:
        files: What `read_weights` says belongs to it, where that is known.

    Raises:
        CheckpointError: If a file cannot be read, or, without `files`, as `read_weights`.
    """
    if files is None:
        files = read_weights(path).files if path.is_dir() or path.suffix == ".json" else (path,)
    try:
        if tuple(files) == (path,):
            return sha256_of_file(path)
        listed = "".join(f"{file.name} {sha256_of_file(file)}\n" for file in sorted(files))
    except OSError as error:
        raise unreadable(path, error) from error
    return hashlib.sha256(listed.encode()).hexdigest()
