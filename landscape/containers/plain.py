"""Plain values from stand-ins: settings, epochs and numbers that a file states."""

import math
import re
import struct
from typing import Any

from landscape.containers.stand_ins import ITEM_SIZES, Global, Inert, Stub, TensorStub

# Replaces a value that was not copied because it is too long.
TOO_LONG = "... (too long to be read)"
_MAX_VALUES = 20_000
# Limit for all values of a mapping together. A pickle can refer to one part many times, under every
# name again.
_MAX_IN_ALL = 500_000
_MAX_DEPTH = 24
_SCALAR = re.compile(r"numpy\.(_?core)\.multiarray\.scalar")
_FORMATS = {
    "f8": "d",
    "f4": "f",
    "f2": "e",
    "i8": "q",
    "i4": "i",
    "i2": "h",
    "i1": "b",
    "u8": "Q",
    "u4": "I",
    "u2": "H",
    "u1": "B",
    "b1": "?",
}
_TENSOR_FORMATS = {
    "float64": "d",
    "float32": "f",
    "float16": "e",
    "int64": "q",
    "int32": "i",
    "int16": "h",
    "int8": "b",
    "uint8": "B",
}


def plain(value: Any) -> Any:
    """Copy a value as dicts, lists, text and numbers.

    Anything else is named as "<module.class>". Namespaces and objects become dicts of their
    attributes. At most 20,000 values are copied for each name, since a pickle can refer to one part
    many times; longer values become `TOO_LONG`, and values deeper than 24 levels "...".
    """
    return _Copy().top(value)


class _Copy:
    """A copy in progress, with its budget of values."""

    def __init__(self) -> None:
        self.left = _MAX_VALUES
        self.in_all = _MAX_IN_ALL

    def top(self, value: Any) -> Any:
        """Copy a value; the items of a mapping have a budget each."""
        inner = value
        for _ in range(_MAX_DEPTH):
            wrapped = _wrapped(inner) if isinstance(inner, Inert) else None
            if wrapped is None:
                break
            inner = wrapped[0]
        if not isinstance(inner, dict):
            return self._budgeted(value, _MAX_DEPTH)
        return {_text(key): self._budgeted(item, _MAX_DEPTH) for key, item in inner.items()}

    def _budgeted(self, value: Any, depth: int) -> Any:
        self.left = budget = min(_MAX_VALUES, self.in_all)
        copied = self.copy(value, depth) if budget > 0 else TOO_LONG
        self.in_all -= budget - max(self.left, 0)
        return TOO_LONG if self.left < 0 else copied

    def copy(self, value: Any, depth: int) -> Any:
        """Copy a part; `left` is negative afterwards where it is too long."""
        self.left -= 1
        if self.left < 0 or depth < 0:
            return "..."
        if value is None or type(value) in (str, int, float, bool):
            return value
        if isinstance(value, dict):
            return {
                _text(key): self.copy(item, depth - 1)
                for key, item in value.items()
                if self.left >= 0
            }
        if isinstance(value, (list, tuple, set, frozenset)):
            return [self.copy(item, depth - 1) for item in value if self.left >= 0]
        if isinstance(value, Inert):
            return self._object(value, depth)
        number = number_in(value)
        if number is not None:
            return number
        return (
            f"<{value.name}>"
            if isinstance(value, Global)
            else f"<{type(value).__name__.removesuffix('Stub').lower()}>"
        )

    def _object(self, value: Inert, depth: int) -> Any:
        number = number_in(value)
        if number is not None:
            return number
        if value.name.startswith("pathlib.") and all(type(part) is str for part in value.args):
            return "/".join(value.args).replace("//", "/")
        wrapped = _wrapped(value)
        if wrapped is not None:
            return self.copy(wrapped[0], depth - 1)
        if len(value.args) == 1 and type(value.args[0]) in (str, int, float):
            return value.args[0]
        return f"<{value.name}>"


def _wrapped(value: Inert) -> tuple[Any] | None:
    """Return an object's contents in a tuple; None if it has none."""
    state = value.state
    if isinstance(state, dict):
        # OmegaConf wraps every value in a node.
        for key in ("_content", "_val"):
            if key in state:
                return (state[key],)
    for content in (value.entries, value.items, state if isinstance(state, dict) else None):
        if content:
            return (content,)
    return None


def _text(key: Any) -> str:
    return (
        key
        if type(key) is str
        else str(key)
        if type(key) in (int, float, bool, type(None))
        else "..."
    )


def whole_number(value: Any) -> int | None:
    """Read a count; None if the value is not a count.

    A count is an int, a whole float, a NumPy number or a tensor of one number.
    """
    number = value if type(value) in (int, float) else number_in(value)
    if type(number) is float and math.isfinite(number) and number == int(number):
        return int(number)
    return number if type(number) is int else None


def number_in(value: Any) -> int | float | None:
    """Read the number in a NumPy scalar or one-element tensor; else None."""
    if isinstance(value, Inert) and _SCALAR.fullmatch(value.name) and len(value.args) == 2:
        dtype, content = value.args
        code = dtype.args[0] if isinstance(dtype, Inert) and dtype.args else None
        code = code.lstrip("<=|") if type(code) is str else None
        return _unpack(_FORMATS.get(code or ""), content)
    if isinstance(value, TensorStub) and value.size == 1:
        return _unpack(_TENSOR_FORMATS.get(value.dtype), stored_bytes(value))
    return None


def stored_bytes(stub: TensorStub) -> bytes:
    """Read the bytes of a tensor's first element from the file."""
    span = stub.storage.span
    if span is None or span.byteorder != "little":
        return b""
    size = ITEM_SIZES[stub.dtype]
    with span.path.open("rb") as file:
        file.seek(span.start + stub.offset * size)
        return file.read(size)


def _unpack(code: str | None, content: Any) -> int | float | None:
    if code is None or type(content) is not bytes or len(content) != struct.calcsize(f"<{code}"):
        return None
    number: int | float = struct.unpack(f"<{code}", content)[0]
    return number


def is_tensors(value: Any) -> bool:
    """Tell whether this is a state dict: one or more named tensors."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(type(k) is str and isinstance(v, Stub) for k, v in value.items())
    )
