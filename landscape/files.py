"""Files: written whole or not at all, read only where they are regular, and digested."""

import errno
import fcntl
import hashlib
import io
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from landscape.signals import stopping_later

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}
_BLOCK = 1 << 24


def cache_dir() -> Path:
    """The folder for what can be made again: $LANDSCAPE_CACHE, or ~/.cache/landscape. It need not exist."""
    return Path(os.environ.get("LANDSCAPE_CACHE") or Path.home() / ".cache" / "landscape")


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file for reading; anything else, such as a named pipe, is refused at once and never waited for.

    Raises:
        OSError: If it cannot be opened or is no regular file.
    """
    # Without O_NONBLOCK, opening a pipe waits until somebody writes to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _check_regular(os.fstat(descriptor).st_mode)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, *, largest: int) -> bytes:
    """Read a regular file of at most `largest` bytes.

    Raises:
        OSError: If it cannot be read, is no regular file, or is larger.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > largest:
            raise OSError(errno.EFBIG, f"it has {size} bytes, at most {largest} are expected")
        return stream.read(largest)


def check_regular(path: Path) -> None:
    """Refuse what is there and no regular file, for readers that open the file themselves.

    Raises:
        OSError: If there is something else, or nothing.
    """
    _check_regular(os.stat(path).st_mode)


def _check_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise OSError(
            errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL,
            f"it is {kind}, not a regular file",
        )


def sha256_of_file(path: Path) -> str:
    """Digest a file in blocks, whatever its size.

    Raises:
        OSError: If the file cannot be read.
    """
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(
    path: Path,
    content: bytes,
    *,
    temporary: Path | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Put a whole file at `path`, also when the process or the machine dies on the way.

    The content goes to a hidden temporary file in the same folder, reaches the disk, and is renamed. A file that
    was at `path` stays as it was until then. What a killed writer left behind is overwritten by the next.

    Args:
        temporary: Another place for the temporary file, on the same file system.
        check: Looks at the temporary file before it is renamed; what it raises stops that.

    Raises:
        OSError: If the folder or the disk does not take it, or another process writes the same file; nothing is left
            behind then.
    """

    def write(stream: BinaryIO) -> None:
        for start in range(0, len(content), _BLOCK):
            stream.write(content[start : start + _BLOCK])

    save_atomically(path, write, num_bytes=len(content), temporary=temporary, check=check)


def save_atomically(
    path: Path,
    write: Callable[[BinaryIO], object],
    *,
    num_bytes: int = 0,
    temporary: Path | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Let `write` fill a file that appears whole or not at all; the rest is as in `write_atomically`.

    Requests to stop are put off until it is done.

    Args:
        num_bytes: About how many are going to be written; a disk with less room is refused beforehand.
    """
    with stopping_later():
        if os.path.exists(path):
            check_regular(path)
        _check_room(path.parent, num_bytes)
        temporary = path.with_name(f".{path.name}.tmp") if temporary is None else temporary
        stream = _open_alone(temporary)
        try:
            with stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
                if check is not None:
                    check(temporary)
                os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def _open_or_make(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o666)


def _open_alone(path: Path) -> BinaryIO:
    """Open a file for writing, emptied, with a lock that the kernel drops when the process ends.

    Raises:
        OSError: If it cannot be opened, or another process writes it.
    """
    while True:
        stream = open(path, "r+b", opener=_open_or_make)
        try:
            _lock(stream)
            # Another writer may have renamed it before we locked it: emptied, it would be lost.
            if path.exists() and os.path.samestat(os.fstat(stream.fileno()), os.stat(path)):
                stream.truncate(0)
                return stream
            stream.close()
        except BlockingIOError:
            stream.close()
            raise OSError(errno.EBUSY, "another process is writing it") from None
        except BaseException:
            stream.close()
            path.unlink(missing_ok=True)
            raise


def _lock(stream: BinaryIO) -> None:
    """Take the lock of an open file.

    Raises:
        BlockingIOError: If another has it.
    """
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # On a file system without locks, whoever writes one file twice at a time is on their own.
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
            raise


def _check_room(folder: Path, num_bytes: int) -> None:
    """Refuse before anything is written what the disk cannot take; a quota shows only when it is reached."""
    if num_bytes and (usage := shutil.disk_usage(folder)).total and usage.free < num_bytes:
        reason = f"{os.strerror(errno.ENOSPC)}: it takes {num_bytes:,} bytes, and {usage.free:,} are free"
        raise OSError(errno.ENOSPC, reason)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder (renames, removals) survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
