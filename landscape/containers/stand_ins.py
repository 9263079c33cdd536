"""Stand-ins for objects that were not made and tensors that were not read."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

# Bytes per element of the dtypes that torch.save writes.
ITEM_SIZES = {
    **dict.fromkeys(("float64", "int64", "complex64", "uint64"), 8),
    **dict.fromkeys(("float32", "int32", "uint32", "complex32"), 4),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2),
    **dict.fromkeys(("uint8", "int8", "bool"), 1),
    **dict.fromkeys(
        ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"), 1
    ),
    "complex128": 16,
}
MAX_DIMS = 64


class NeedsCode(Exception):
    """A pickle asks for an object that no checkpoint needs; its name is the argument."""


class TooLarge(Exception):
    """A pickle declares more numbers than its file can hold; the argument is the number."""


@dataclass(frozen=True)
class Global:
    """A Python object that a pickle names, as "module.name"."""

    name: str


class Inert:
    """A stand-in for an object: what the pickle states of it, not carried out.

    Attributes:
        name: "module.name" of its class, or of the function that would have made it.
        args: Arguments of that call.
        state: Argument for `__setstate__`, or contents for `__dict__`.
        items: Appended elements.
        entries: Assigned elements, as in a dict.
    """

    __slots__ = ("args", "entries", "items", "name", "state")

    def __init__(self, name: str, args: Iterable[Any] = ()) -> None:
        self.name = name
        self.args = tuple(args)
        self.state: Any = None
        self.items: list[Any] = []
        self.entries: dict[Any, Any] = {}

    def __repr__(self) -> str:
        return f"<{self.name}>"


@dataclass(frozen=True)
class Span:
    """A range of bytes in a file."""

    path: Path
    start: int
    size: int
    byteorder: str = "little"


@dataclass(eq=False)
class Storage:
    """A flat array in a file.

    `span` is None until the reader of the file knows it.
    """

    key: str
    dtype: str
    size: int
    span: Span | None = None


@dataclass(frozen=True, eq=False)
class TensorStub:
    """A tensor that was not read: a strided view of a storage.

    Offset and strides are in elements.
    """

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    storage: Storage

    @property
    def size(self) -> int:
        """Return the number of elements."""
        return prod(self.shape)


@dataclass(frozen=True, eq=False)
class NamedStub:
    """A tensor of a safetensors file, by its name there.

    `span` holds its numbers in row-major order.
    """

    dtype: str
    shape: tuple[int, ...]
    path: Path
    name: str
    span: Span

    @property
    def size(self) -> int:
        """Return the number of elements."""
        return prod(self.shape)


@dataclass(frozen=True, eq=False)
class ChunkedStub:
    """A tensor that a distributed run wrote in pieces: (offsets, piece)."""

    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[tuple[tuple[int, ...], TensorStub], ...]

    @property
    def size(self) -> int:
        """Return the number of elements."""
        return prod(self.shape)


Stub = TensorStub | NamedStub | ChunkedStub


def simple_key(value: Any, *, nested: bool = True) -> Any:
    """Return a dict key; refuse one whose hash takes too long.

    Allowed are simple values and flat tuples of them.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(value, (str, bytes, int, float, complex, type(None), Inert, Global)):
        return value
    if nested and type(value) is tuple and len(value) <= MAX_DIMS:
        return tuple(simple_key(item, nested=False) for item in value)
    raise ValueError(f"a key that is a {type(value).__name__}")
