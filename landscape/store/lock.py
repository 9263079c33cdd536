"""A lock for the single writer of an output.

It ends with its process, however that ends.
"""

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path

from landscape.errors import StoreError

_NAME = "lock"
# Errors that flock raises on a file system without locks, such as Lustre mounted without -o flock.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_held: set[int] = set()


def _close_in_child() -> None:
    # A child made by fork shares the lock, and would hold it after the parent is killed.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


def _owner(descriptor: int) -> str:
    return os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"


def lock_owner(folder: Path) -> str | None:
    """Return who holds a folder's lock, such as "process 1 on host".

    None if no holder is known.
    """
    try:
        descriptor = os.open(folder / _NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return _owner(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)


class FolderLock:
    """An exclusive lock on a folder, which it creates.

    The kernel releases it when the process ends, also by SIGKILL.

    Raises:
        StoreError: If another process holds it, or the folder cannot be made or locked.
    """

    def __init__(self, folder: Path, *, output: Path) -> None:
        self.folder = folder
        self.made_folder = False
        try:
            self._descriptor = self._acquire(output)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                raise StoreError(
                    f"{output}: its file system has no locks ({error.strerror}), so that two runs "
                    "could write it at once. Name an output in another folder, or have the file "
                    "system mounted with locks (Lustre: -o flock)."
                ) from error
            raise StoreError(
                f"{output}: cannot be written ({folder}: {error.strerror}); choose a writable "
                "folder."
            ) from error
        _held.add(self._descriptor)
        # A full disk cannot store the owner's name, but the lock still holds.
        with suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(
                self._descriptor, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0
            )

    def _acquire(self, output: Path) -> int:
        for _ in range(1000):
            try:
                os.mkdir(self.folder)
                self.made_folder = True
            except FileExistsError:
                pass
            try:
                descriptor = os.open(
                    self.folder / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
                )
            except FileNotFoundError:
                # The previous writer has just removed its folder.
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_current(descriptor):
                    return descriptor
            except BlockingIOError:
                owner = _owner(descriptor)
                os.close(descriptor)
                raise StoreError(
                    f"{output}: {owner} is writing it. Two runs would do the same work twice; wait "
                    "for that one, or stop it."
                ) from None
            except OSError:
                os.close(descriptor)
                raise
            os.close(descriptor)
        raise OSError(errno.EBUSY, "its lock comes and goes")

    def _is_current(self, descriptor: int) -> bool:
        """Tell whether the locked file still guards the folder.

        If it was removed before it was locked, the lock protects nothing.
        """
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.folder / _NAME))
        except FileNotFoundError:
            return False

    @property
    def held(self) -> bool:
        return self._descriptor in _held

    def release(self, *, remove_folder: bool) -> None:
        """Release the lock. May be called twice.

        With `remove_folder`, an otherwise empty folder is removed first.
        """
        if not self.held:
            return
        if remove_folder:
            try:
                (self.folder / _NAME).unlink(missing_ok=True)
                self.folder.rmdir()
            except OSError:
                # The folder holds a foreign file, or the next writer already uses it.
                pass
        _held.discard(self._descriptor)
        os.close(self._descriptor)
