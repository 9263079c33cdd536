"""Messages between a process and its child: framed bytes on a pipe, calls and answers pickled."""

import os
import pickle
import select
import struct
import traceback
from collections.abc import Callable
from typing import Any

from landscape.errors import LandscapeError

_LENGTH = struct.Struct(">Q")
_BLOCK = 1 << 20
# Milliseconds after which a reader asks whether the other process still lives: a process forked from it may hold the pipe open.
_PATIENCE = 500


def send(descriptor: int, content: bytes) -> None:
    """Write one message.

    Raises:
        BrokenPipeError: If nobody reads any more.
    """
    for part in (_LENGTH.pack(len(content)), content):
        view = memoryview(part)
        while view:
            view = view[os.write(descriptor, view) :]


def receive(descriptor: int, is_alive: Callable[[], bool]) -> bytes | None:
    """Read one message; None where the pipe has ended or its writer is gone."""
    header = _read(descriptor, _LENGTH.size, is_alive)
    return None if header is None else _read(descriptor, _LENGTH.unpack(header)[0], is_alive)


def _read(descriptor: int, size: int, is_alive: Callable[[], bool]) -> bytes | None:
    # poll, since select refuses descriptors from 1024 on.
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    content = bytearray()
    while len(content) < size:
        # What a process wrote before it ended is still read.
        if not poll.poll(_PATIENCE):
            if not is_alive() and not poll.poll(0):
                return None
            continue
        part = os.read(descriptor, min(size - len(content), _BLOCK))
        if not part:
            return None
        content += part
    return bytes(content)


def pack_result(value: Any) -> bytes:
    """Pickle what a call returned.

    Raises:
        Exception: If it cannot be pickled.
    """
    return pickle.dumps((True, value), pickle.HIGHEST_PROTOCOL)


def pack_error(error: BaseException) -> bytes:
    """Pickle what a call raised: as it is, or as a RuntimeError with the text of its traceback."""
    text = "".join(traceback.format_exception(error))
    if isinstance(error, LandscapeError):
        candidates: list[Exception] = [error, _rebuild(type(error), str(error))]
    elif isinstance(error, Exception):
        error.add_note(f"Raised in a worker:\n{text}")
        candidates = [error]
    # KeyboardInterrupt and SystemExit would end the process that receives them.
    else:
        candidates = []
    for candidate in candidates:
        try:
            content = pickle.dumps((False, candidate), pickle.HIGHEST_PROTOCOL)
            # Some exceptions can be pickled, and not read again.
            if str(pickle.loads(content)[1]) == str(error):
                return content
        # Whatever a class of somebody else's does when it is pickled.
        except Exception:
            continue
    return pickle.dumps(
        (False, RuntimeError(f"A worker raised an error that cannot be sent:\n{text}"))
    )


def _rebuild(kind: type[LandscapeError], message: str) -> LandscapeError:
    """Make an exception of this type with nothing but a message, whatever its constructor takes."""
    error = _Rebuilt(message)
    error.kind = kind
    return error


class _Rebuilt(LandscapeError):
    """Stand for an exception that cannot be pickled; unpickles as one of the type `kind`."""

    kind: type[LandscapeError]

    def __reduce__(self) -> tuple[Any, ...]:
        return _with_message, (self.kind, str(self))


def _with_message(kind: type[LandscapeError], message: str) -> LandscapeError:
    # BaseException.__new__ stores the message; __init__ is not called.
    return kind.__new__(kind, message)


def unpack(answer: bytes) -> Any:
    """Return what the call returned, or raise what it raised."""
    succeeded, value = pickle.loads(answer)
    if not succeeded:
        raise value
    return value
