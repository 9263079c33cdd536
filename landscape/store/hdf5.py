"""Safe reading and writing of HDF5 files that anybody may have written.

What a file declares is compared with what it holds before memory is allocated. All readers and
writers of HDF5 in landscape.store use this module.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

from landscape.errors import StoreError
from landscape.files import HDF5_SIGNATURE, check_regular, save_atomically
from landscape.signals import Stopped, stopping_later

# Errors that h5py, JSON and our own checks raise on a corrupt file.
CORRUPT = (
    OSError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    EOFError,
    MemoryError,
)
# The largest magnitude of a stored eigenvalue: that of a float32, whose square is still a float64.
LARGEST_VALUE = float(np.finfo(np.float32).max)
# Deflate cannot compress more bytes into a single byte.
_MAX_PACKED = 1032
_RESTORE = "Restore it from a copy, or name another output."
_MAX_BEHIND = 2**20
_names = itertools.count()
_PAGE = 2**12


@contextmanager
def corrupt_file_errors(path: Path, *, advice: str = _RESTORE) -> Iterator[None]:
    """Convert errors raised on a corrupt file to a one-line error.

    Raises:
        StoreError: In place of the errors in `CORRUPT`.
    """
    try:
        yield
    except CORRUPT as error:
        # str() of a KeyError is the repr of its message.
        said = error.args[0] if isinstance(error, KeyError) and error.args else error
        reason = " ".join(str(said).split()).rstrip(".")[:200] or type(error).__name__
        raise StoreError(
            f"{path}: damaged, or not written by landscape ({reason}). {advice}"
        ) from error


def open_hdf5(path: Path) -> h5py.File:
    """Open a regular file for reading.

    Files are never written in place, so no lock is needed.

    Raises:
        OSError: If there is no file, or it is something else.
    """
    check_regular(path)
    _check_end(path)
    return h5py.File(path, "r", locking=False)


def _check_end(path: Path) -> None:
    """Refuse a file longer than its first block says.

    A small excess is allowed. HDF5 itself does not check that.
    """
    with open(path, "rb") as file:
        head, size = file.read(48), os.fstat(file.fileno()).st_size
    # The position of the end depends on the version of the block.
    start = 40 if head[8:9] < b"\2" else 28
    end = int.from_bytes(head[start : start + 8], "little")
    if head.startswith(HDF5_SIGNATURE) and size > end + _MAX_BEHIND:
        raise OSError(f"it has {size} bytes, but its own end is at {end}")


def has_attribute(path: Path, name: str, *, value: str | None = None) -> bool:
    """Tell whether a path is an HDF5 file with this attribute.

    Where `value` is given, the attribute must have that value.
    """
    try:
        with open_hdf5(path) as file:
            return bool(name in file.attrs and (value is None or file.attrs[name] == value))
    except CORRUPT:
        return False


def file_image(write: Callable[[h5py.File], object]) -> bytes:
    """Build an HDF5 file in memory and return its bytes.

    HDF5 may end the process when the disk fails during a write.
    """
    # Tracked order lets readers see groups in the order of writing, and attributes exceed 64 KiB
    # (HDF5 1).
    name = f"landscape-{next(_names)}"
    with h5py.File(name, "w", driver="core", backing_store=False, track_order=True) as file:
        write(file)
        file.flush()
        image: bytes = file.id.get_file_image()
        return image


class _DiskFile:
    """A file object for HDF5 on a disk that may fail.

    HDF5 may end the process when a write fails. So this object stores the first error and hides it
    from HDF5. From then on, what HDF5 writes goes to memory and is read back from there.

    Attributes:
        error: The first error of the disk.
    """

    def __init__(self, descriptor: int) -> None:
        self.error: OSError | None = None
        self._descriptor = descriptor
        self._position = 0
        self._end = 0
        self._pages: dict[int, bytearray] = {}

    def check(self) -> None:
        """Raise the error of the disk, if there was one."""
        if self.error is not None:
            raise self.error

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + (
            self._end if whence == os.SEEK_END else self._position if whence else 0
        )
        return self._position

    def tell(self) -> int:
        return self._position

    def write(self, data: memoryview) -> int:
        left, position = memoryview(data).cast("B"), self._position
        size = len(left)
        try:
            while left and self.error is None:
                written = os.pwrite(self._descriptor, left, position)
                left, position = left[written:], position + written
        except OSError as error:
            self.error = error
        if left:
            self._keep(bytes(left), position)
        self._position += size
        self._end = max(self._end, self._position)
        return size

    def readinto(self, buffer: memoryview) -> int:
        into = memoryview(buffer).cast("B")
        content = self._read(self._position, len(into))
        into[: len(content)] = content
        self._position += len(content)
        return len(content)

    def read(self, size: int) -> bytes:
        content = self._read(self._position, size)
        self._position += len(content)
        return content

    def truncate(self, size: int) -> int:
        try:
            if self.error is None:
                os.ftruncate(self._descriptor, size)
        except OSError as error:
            self.error = error
        self._end = size
        return size

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

    def _keep(self, data: bytes, position: int) -> None:
        """Store in memory what the disk does not take."""
        while data:
            number, start = divmod(position, _PAGE)
            if number not in self._pages:
                self._pages[number] = bytearray(self._read_disk(number * _PAGE, _PAGE))
            page = self._pages[number]
            page[start : start + len(data)] = data[: _PAGE - start]
            data, position = data[_PAGE - start :], position + _PAGE - start

    def _read(self, position: int, size: int) -> bytes:
        content = bytearray(self._read_disk(position, size))
        for number in (
            range(position // _PAGE, (position + size - 1) // _PAGE + 1) if self._pages else ()
        ):
            if number in self._pages:
                first, last = (
                    max(position, number * _PAGE),
                    min(position + size, (number + 1) * _PAGE),
                )
                content[first - position : last - position] = self._pages[number][
                    first - number * _PAGE : last - number * _PAGE
                ]
        return bytes(content)

    def _read_disk(self, position: int, size: int) -> bytes:
        """Read bytes of the file; zeros where that fails.

        Zeros also stand for bytes past the end.
        """
        content = b""
        try:
            while len(content) < size and (
                block := os.pread(self._descriptor, size - len(content), position + len(content))
            ):
                content += block
        except OSError as error:
            self.error = self.error or error
        return content.ljust(size, b"\0")


def save_hdf5(
    path: Path,
    write: Callable[[h5py.File, Callable[[], None]], object],
    *,
    num_bytes: int = 0,
    temporary: Path | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write an HDF5 file that appears whole or not at all.

    It is never in memory as a whole.

    Args:
        write: Gets the file and a function to call now and then, which raises if the disk failed or
            a request to stop came.
        num_bytes, temporary, check: As in `save_atomically`.

    Raises:
        OSError: If the disk does not take it.
    """

    def fill(stream: BinaryIO) -> None:
        disk = _DiskFile(stream.fileno())
        # HDF5 would treat an exception within its call as a failed write.
        with stopping_later() as came:

            def go_on() -> None:
                disk.check()
                if came:
                    raise Stopped(came[0])

            try:
                # Tracked order lets readers see groups in the order of writing, and attributes
                # exceed 64 KiB (HDF5 1).
                with h5py.File(disk, "w", track_order=True) as file:
                    write(file, go_on)
            finally:
                disk.check()

    save_atomically(path, fill, num_bytes=num_bytes, temporary=temporary, check=check)


def groups_in(group: h5py.Group) -> Iterator[tuple[str, h5py.Group]]:
    """Yield the groups in a group by name, in order.

    Raises:
        ValueError: If a member is something else.
    """
    for name in group:
        yield name, _member(group, name, h5py.Group)


def open_array(
    group: h5py.Group, name: str, *, dtype: str, shape: tuple[int | None, ...]
) -> h5py.Dataset:
    """Check a dataset as `read_array` does, and leave its numbers in the file.

    Raises:
        ValueError: If the dataset is something else, or declares more than is stored.
    """
    dataset = _dataset(group, name)
    wanted = np.dtype(dtype)
    if dataset.dtype.kind != wanted.kind:
        raise ValueError(f"{dataset.name} holds {dataset.dtype}, not {wanted}")
    fits = len(dataset.shape) == len(shape) and all(
        a is None or a == b for a, b in zip(shape, dataset.shape)
    )
    if not fits:
        expected = ", ".join("any" if length is None else str(length) for length in shape)
        raise ValueError(f"{dataset.name} has shape {dataset.shape}, not ({expected})")
    _check_size(dataset)
    return dataset


def read_array(
    group: h5py.Group, name: str, *, dtype: str, shape: tuple[int | None, ...]
) -> np.ndarray:
    """Read a dataset of numbers, truth values or fixed-length texts.

    Args:
        dtype: Type of the result; the dataset must be of the same kind.
        shape: Expected shape; None stands for any length.

    Raises:
        ValueError: If the dataset is something else, or declares more than is stored.
    """
    dataset = open_array(group, name, dtype=dtype, shape=shape)
    return np.asarray(dataset[()]).astype(np.dtype(dtype), copy=False)


def read_texts(group: h5py.Group, name: str) -> list[str]:
    """Read a dataset of texts with a single axis.

    Raises:
        ValueError: If the dataset is something else, or declares more than is stored.
    """
    dataset = _dataset(group, name)
    if h5py.check_string_dtype(dataset.dtype) is None or len(dataset.shape) != 1:
        raise ValueError(
            f"{dataset.name} holds {dataset.dtype} of shape {dataset.shape}, not a list of texts"
        )
    _check_size(dataset)
    texts, left = [], dataset.file.id.get_filesize()
    view = dataset.asstr()
    # Many entries may share a text in the file, but each would be a copy in memory.
    for row in range(dataset.shape[0]):
        texts.append(str(view[row]))
        left -= len(texts[-1])
        if left < 0:
            raise ValueError(f"{dataset.name} holds more text than the file has bytes")
    return texts


def _dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    dataset = _member(group, name, h5py.Dataset)
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"{dataset.name} lies in another file")
    if dataset.shape is None:
        raise ValueError(f"{dataset.name} is empty")
    return dataset


def _member(group: h5py.Group, name: str, kind: type) -> h5py.Group | h5py.Dataset:
    """Return a member that lies in the same file.

    Links are refused: they may lead to other files, and to pipes.
    """
    link = group.get(name, getlink=True)
    if link is None:
        raise ValueError(f"{group.name} has no {name}")
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"{group.name}/{name} is a link")
    member = group[name]
    if not isinstance(member, kind):
        raise ValueError(f"{member.name} is no {kind.__name__.lower()}")
    return member


def _check_size(dataset: h5py.Dataset) -> None:
    """Refuse a dataset that declares more than is stored.

    The check comes before memory is allocated.
    """
    item = dataset.dtype.itemsize
    chunk = (
        int(np.prod([float(length) for length in dataset.chunks]))
        if dataset.chunks and dataset.size
        else 0
    )
    declared = item * max(dataset.size, chunk)
    stored = dataset.id.get_storage_size()
    most = stored * (_MAX_PACKED if dataset.compression else 1)
    if declared > most or stored > dataset.file.id.get_filesize():
        raise ValueError(
            f"{dataset.name} declares {declared:,} bytes in shape {dataset.shape}, and {stored:,} "
            "are stored"
        )


def check_mapping(value: object, name: str) -> Mapping[str, object]:
    """Return the value if it is a JSON object.

    Raises:
        ValueError: If it is something else.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {value!r:.50}, not a mapping")
    return value
