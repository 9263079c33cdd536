"""Safe files: written whole or not at all, read only if regular, digested."""

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
# First bytes of an HDF5 file.
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def cache_dir() -> Path:
    """Return the folder for what can be made again.

    It is $LANDSCAPE_CACHE, or ~/.cache/landscape. It need not exist.
    """
    return Path(os.environ.get("LANDSCAPE_CACHE") or Path.home() / ".cache" / "landscape")


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file for reading; refuse anything else.

    It is refused at once; a named pipe, for example, is never waited for.

    Raises:
        OSError: If it cannot be opened or is no regular file.
    """
    # Without O_NONBLOCK, opening a pipe waits until another process writes to it.
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
    """Refuse a path that is no regular file.

    For readers that open the file themselves.

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
    """Write a whole file, or leave the old one.

    This holds also when the process or the machine dies meanwhile. The content goes to a hidden
    temporary file in the same folder, reaches the disk, and is renamed. Until then a file at `path`
    stays as it was. The remains of a killed writer are overwritten by the next.

    Args:
        temporary: Another place for the temporary file, on the same file system.
        check: Called with the temporary file before it is renamed; an error that it raises prevents
            that.

    Raises:
        OSError: If the folder or the disk does not take it, or another process writes the same
            file; nothing is left behind then.
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
    """Write a file by a function, whole or not at all.

    `write` fills the file; the rest is as in `write_atomically`. Requests to stop are delayed until
    it is done.

    Args:
        num_bytes: Approximate size of the file; a disk with less room is refused beforehand.
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
    """Open a file for writing, emptied and locked.

    The kernel releases the lock when the process ends.

    Raises:
        OSError: If it cannot be opened, or another process writes it.
    """
    while True:
        stream = open(path, "r+b", opener=_open_or_make)
        try:
            _lock(stream)
            # Another writer may have renamed the file before we locked it: to empty it would lose
            # its content.
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
    """Lock an open file.

    Raises:
        BlockingIOError: If another process has locked it.
    """
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # A file system without locks cannot protect a file that two processes write at a time.
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
            raise


def _check_room(folder: Path, num_bytes: int) -> None:
    """Refuse to write more than the disk can hold.

    A quota shows only when it is reached.
    """
    if num_bytes and (usage := shutil.disk_usage(folder)).total and usage.free < num_bytes:
        reason = (
            f"{os.strerror(errno.ENOSPC)}: it takes {num_bytes:,} bytes, and {usage.free:,} are "
            "free"
        )
        raise OSError(errno.ENOSPC, reason)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk.

    Renames and removals then survive a power cut.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
