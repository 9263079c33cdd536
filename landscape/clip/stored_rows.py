"""Rows of stored tensors, read from files into the caller's memory.

Files are read, not mapped: torch and safetensors map a whole file as private and writable, which
Linux charges in full, so that mapping a file larger than the memory fails (safetensors issue 528).
A file that is truncated meanwhile is an error, not a SIGBUS.
"""

from math import prod
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import torch
from torch import Tensor

from landscape.containers.stand_ins import (
    ITEM_SIZES,
    ChunkedStub,
    NamedStub,
    Span,
    Stub,
    TensorStub,
)
from landscape.containers.weight_files import damaged, unreadable
from landscape.files import open_regular

# Bytes read at a time where numbers are converted or reordered on the way.
_BLOCK = 1 << 20


class StoredRows:
    """A reader of rows of tensors from any number of files; to be closed.

    It takes at most one block of memory of its own.
    """

    def __init__(self) -> None:
        self._open: dict[Path, BinaryIO] = {}
        # Used for every block: glibc may place a new one elsewhere each time, and keep all.
        self._block = torch.empty(0, dtype=torch.uint8)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        while self._open:
            self._open.popitem()[1].close()

    def copy(self, stub: Stub, start: int, out: Tensor) -> None:
        """Copy rows start, start + 1, ... of a stored tensor to `out`.

        They are converted to its dtype and device.

        Args:
            start: First row, counted along dimension 0; 0 where the tensor has no dimension.
            out: Shape (rows, ...) with the stored tensor's other dimensions; any strides.

        Raises:
            CheckpointError: If a file cannot be read, or has become shorter since it was opened.
        """
        if isinstance(stub, ChunkedStub):
            self._copy_chunks(stub, start, out)
            return
        span, offset, strides = _place(stub)
        first = offset + start * strides[0] if strides else offset
        try:
            self._copy_view(_View(span, stub.dtype), first, strides, out)
        except OSError as error:
            raise unreadable(span.path, error) from error
        except (EOFError, ValueError) as error:
            raise damaged(span.path, error) from error

    def _copy_chunks(self, stub: ChunkedStub, start: int, out: Tensor) -> None:
        """Read the wanted rows of each piece; skip pieces of other rows."""
        for offsets, piece in stub.chunks:
            if not offsets:
                self.copy(piece, 0, out)
                continue
            low, high = (
                max(start, offsets[0]),
                min(start + out.shape[0], offsets[0] + piece.shape[0]),
            )
            if low < high:
                columns = tuple(
                    slice(at, at + length)
                    for at, length in zip(offsets[1:], piece.shape[1:], strict=True)
                )
                self.copy(
                    piece, low - offsets[0], out[(slice(low - start, high - start), *columns)]
                )

    def _copy_view(self, view: "_View", offset: int, strides: tuple[int, ...], out: Tensor) -> None:
        """Fill `out` from a strided view of the span, block by block.

        A view that does not fit into a block is divided along its largest stride.

        Args:
            offset: Offset in elements; strides are in elements too.
        """
        if out.numel() == 0:
            return
        shape = tuple(out.shape)
        if _is_row_major(shape, strides) and view.is_stored_as(out):
            self._read_into(view.span, offset * view.item_size, out)
            return
        length = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if length * view.item_size <= _BLOCK or out.numel() == 1:
            numbers = self._numbers(view, offset, length)
            out.copy_(numbers.as_strided(shape, strides))
            return
        # Dimensions of one element cannot be split, however large their stride is.
        dim = max(range(len(shape)), key=lambda dim: (shape[dim] > 1, strides[dim]))
        step = max(1, min(_BLOCK // (view.item_size * max(strides[dim], 1)), shape[dim] // 2))
        for at in range(0, shape[dim], step):
            part = out.narrow(dim, at, min(step, shape[dim] - at))
            self._copy_view(view, offset + at * strides[dim], strides, part)

    def _numbers(self, view: "_View", offset: int, length: int) -> Tensor:
        """Read elements of the span in the stored dtype; the next call overwrites them.

        They get the byte order of this machine.
        """
        size, is_swapped = length * view.item_size, view.span.byteorder != "little"
        if self._block.numel() < size:
            self._block = torch.empty(max(size, _BLOCK), dtype=torch.uint8)
        # A whole storage is swapped.
        block = torch.empty(size, dtype=torch.uint8) if is_swapped else self._block[:size]
        numbers = block.view(view.dtype)
        self._read_into(view.span, offset * view.item_size, numbers)
        if is_swapped:
            numbers.untyped_storage().byteswap(view.dtype)
        return numbers

    def _read_into(self, span: Span, start: int, out: Tensor) -> None:
        """Fill a contiguous tensor on the CPU with bytes of a file."""
        size = out.numel() * out.element_size()
        if start < 0 or start + size > span.size:
            raise ValueError("a tensor that ends behind its storage")
        if span.path not in self._open:
            self._open[span.path] = open_regular(span.path)
        file = self._open[span.path]
        file.seek(span.start + start)
        # numpy has no bfloat16, but every dtype has bytes.
        content = out.detach().reshape(-1).view(torch.uint8).numpy().data
        filled = 0
        while filled < size:
            count = file.readinto(content[filled:])  # type: ignore[attr-defined]
            if not count:
                raise EOFError("the file became shorter")
            filled += count


class _View:
    """The place of stored numbers, and their dtype."""

    def __init__(self, span: Span, dtype: str) -> None:
        self.span, self.dtype, self.item_size = span, getattr(torch, dtype), ITEM_SIZES[dtype]

    def is_stored_as(self, out: Tensor) -> bool:
        """Tell whether the bytes of the file are those of `out`."""
        plain = (
            out.is_contiguous() and out.device.type == "cpu" and not (out.is_conj() or out.is_neg())
        )
        return plain and out.dtype == self.dtype and self.span.byteorder == "little"


def _place(stub: TensorStub | NamedStub) -> tuple[Span, int, tuple[int, ...]]:
    """Return span, offset and strides; both in elements."""
    if isinstance(stub, NamedStub):
        return stub.span, 0, row_major(stub.shape)
    if stub.storage.span is None:
        raise damaged(Path("the checkpoint"), ValueError("a storage without a place in the file"))
    return stub.storage.span, stub.offset, stub.stride


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Compute the strides of a contiguous tensor, in elements."""
    return tuple(prod(shape[dim + 1 :]) for dim in range(len(shape)))


def _is_row_major(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    pairs = zip(shape, strides, row_major(shape), strict=True)
    return all(size == 1 or stride == wanted for size, stride, wanted in pairs)
