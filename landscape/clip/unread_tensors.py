"""Unread tensors of a checkpoint: names, shapes and dtypes, and rows on demand.

Functions that rename and check a checkpoint work on them. Renaming transposes, joins and reshapes a
few tensors on the way. Here these operations are recorded and applied to the rows that are read in
the end.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from landscape.clip.stored_rows import StoredRows
from landscape.containers.stand_ins import ITEM_SIZES, Stub
from landscape.errors import CheckpointError

# Numbers of a tensor that a check compares in one step.
_BLOCK = 1 << 20


class _Source(Protocol):
    """A source of rows."""

    def copy(self, start: int, out: Tensor) -> None:
        """Fill `out` with rows start, start + 1, ..."""


class UnreadTensor(Tensor):
    """A tensor with a shape and a dtype whose numbers are still in a file.

    It can be transposed, joined with others along dimension 0, reshaped if it has one number, and
    compared. Every other operation is an error, because it would need the numbers.
    """

    source: _Source

    @staticmethod
    def __new__(cls, source: _Source, shape: Sequence[int], dtype: torch.dtype) -> "UnreadTensor":
        """Make a tensor on the CPU that has no memory."""
        tensor: UnreadTensor = torch.Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=dtype)
        tensor.source = source
        return tensor

    def __init__(self, source: _Source, shape: Sequence[int], dtype: torch.dtype) -> None:
        super().__init__()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"UnreadTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Record an operation on the tensor."""
        operation = _OPERATIONS.get(func)
        if operation is None:
            raise NotImplementedError(f"{func} of a tensor that was not read")
        return operation(*args, **(kwargs or {}))

    def read(
        self,
        start: int,
        stop: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """Read rows [start, stop) along dimension 0 into memory of their own.

        A tensor without dimensions is read whole.

        Raises:
            CheckpointError: If a file cannot be read, or has become shorter since it was opened.
        """
        shape = (stop - start, *self.shape[1:]) if self.ndim else ()
        rows = torch.empty(shape, dtype=self.dtype if dtype is None else dtype, device=device)
        self.source.copy(start, rows)
        return rows


def unread(path: Path, stubs: Mapping[str, Stub], reader: StoredRows) -> dict[str, Tensor]:
    """Make the tensors of a checkpoint without reading their numbers.

    Raises:
        CheckpointError: If torch has no such dtype.
    """
    return {
        name: UnreadTensor(_Stored(reader, stub), stub.shape, _dtype(path, name, stub))
        for name, stub in stubs.items()
    }


def _dtype(path: Path, name: str, stub: Stub) -> torch.dtype:
    dtype = getattr(torch, stub.dtype, None)
    if not isinstance(dtype, torch.dtype) or stub.dtype not in ITEM_SIZES:
        raise CheckpointError(
            f"{path}: {name!r} is stored as {stub.dtype}, which is not read here, so nothing of it "
            "would be right. Save it as float32."
        )
    return dtype


class _Stored:
    """Rows as they are in the file."""

    def __init__(self, reader: StoredRows, stub: Stub) -> None:
        self.reader, self.stub = reader, stub

    def copy(self, start: int, out: Tensor) -> None:
        self.reader.copy(self.stub, start, out)


class _Transposed:
    """Rows that are columns of another matrix, which is read in blocks of rows."""

    def __init__(self, matrix: UnreadTensor) -> None:
        self.matrix = matrix

    def copy(self, start: int, out: Tensor) -> None:
        rows, columns = self.matrix.shape
        step = max(1, _BLOCK // max(columns, 1))
        for at in range(0, rows, step):
            block = self.matrix.read(at, min(at + step, rows))
            out[:, at : at + step].copy_(block[:, start : start + out.shape[0]].T)


class _Joined:
    """Rows of several tensors, one after another."""

    def __init__(self, parts: Sequence[UnreadTensor]) -> None:
        self.parts = parts

    def copy(self, start: int, out: Tensor) -> None:
        begin = 0
        for part in self.parts:
            low, high = max(start, begin), min(start + out.shape[0], begin + part.shape[0])
            if low < high:
                part.source.copy(low - begin, out[low - start : high - start])
            begin += part.shape[0]


class _Single:
    """A single number in another shape."""

    def __init__(self, number: UnreadTensor) -> None:
        self.number = number

    def copy(self, start: int, out: Tensor) -> None:
        if out.numel():
            self.number.source.copy(0, out.view(self.number.shape))


def _transpose(tensor: UnreadTensor, dims: Sequence[int]) -> UnreadTensor:
    if tensor.ndim != 2 or list(dims) != [1, 0]:
        raise NotImplementedError(f"dimensions {dims} of a tensor that was not read")
    return UnreadTensor(_Transposed(tensor), (tensor.shape[1], tensor.shape[0]), tensor.dtype)


def _join(tensors: Sequence[UnreadTensor], dim: int = 0) -> UnreadTensor:
    first = tensors[0]
    if dim != 0 or any(
        tensor.shape[1:] != first.shape[1:] or tensor.dtype != first.dtype for tensor in tensors
    ):
        raise NotImplementedError("a join of unlike tensors that were not read")
    return UnreadTensor(
        _Joined(tensors),
        (sum(tensor.shape[0] for tensor in tensors), *first.shape[1:]),
        first.dtype,
    )


def _reshape(tensor: UnreadTensor, shape: Sequence[int]) -> UnreadTensor:
    if tensor.numel() != 1:
        raise NotImplementedError(f"the shape {shape} of a tensor that was not read")
    return UnreadTensor(_Single(tensor), shape, tensor.dtype)


def _equal(first: Tensor, second: Tensor) -> bool:
    """Compare as torch.equal does, block by block."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if first is second:
        return True
    length = first.shape[0] if first.ndim else 1
    step = max(1, _BLOCK * length // max(first.numel(), 1))
    blocks = ((at, min(at + step, length)) for at in range(0, length, step))
    return all(torch.equal(rows_of(first, *block), rows_of(second, *block)) for block in blocks)


def rows_of(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Return rows [start, stop) of a tensor, read or not.

    A tensor without dimensions is returned whole.
    """
    if isinstance(tensor, UnreadTensor):
        return tensor.read(start, stop)
    return tensor[start:stop] if tensor.ndim else tensor


_OPERATIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.permute.default: _transpose,
    torch.ops.aten.cat.default: _join,
    torch.ops.aten.view.default: _reshape,
    torch.ops.aten.equal.default: _equal,
}
