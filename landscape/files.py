"""Files that are written whole or not at all, and their digests."""

import hashlib
import os
from pathlib import Path


def sha256_of_file(path: Path) -> str:
    """Digest a file in blocks, whatever its size.

    Raises:
        OSError: If the file cannot be read.
    """
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Put a whole file at `path`, also when the process or the machine dies on the way.

    The content goes to a hidden temporary file in the same folder, reaches the disk, and is renamed. A file that
    was at `path` stays as it was until then. There may be one writer per path at a time: what a killed one left
    behind is overwritten by the next.

    Raises:
        OSError: If the folder or the disk does not take it; nothing is left behind then.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder (renames, removals) survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
