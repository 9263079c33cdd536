"""Messages between a process and its child.

Bytes on a pipe, with their length in front; calls and answers are pickled.
"""

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
# Milliseconds after which a reader checks that the other process still runs: a process forked from
# it may hold the pipe open.
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
    """Read a message; None at the end of the pipe.

    Also None if the writer is gone.
    """
    header = _read(descriptor, _LENGTH.size, is_alive)
    return None if header is None else _read(descriptor, _LENGTH.unpack(header)[0], is_alive)


def _read(descriptor: int, size: int, is_alive: Callable[[], bool]) -> bytes | None:
    # poll, since select refuses descriptors from 1024 on.
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    content = bytearray()
    while len(content) < size:
        # Bytes that a process wrote before it ended are still read.
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
    """Pickle the error of a call.

    An error that cannot be sent becomes a RuntimeError with the text of its traceback.
    """
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
            # Some exceptions can be pickled, but not unpickled.
            if str(pickle.loads(content)[1]) == str(error):
                return content
        # A class of another package may raise anything when it is pickled.
        except Exception:
            continue
    return pickle.dumps(
        (False, RuntimeError(f"A worker raised an error that cannot be sent:\n{text}"))
    )


def _rebuild(kind: type[LandscapeError], message: str) -> LandscapeError:
    """Build an exception of this type from its message alone.

    The constructor of the type may take other arguments.
    """
    error = _Rebuilt(message)
    error.kind = kind
    return error


class _Rebuilt(LandscapeError):
    """A substitute for an exception that cannot be pickled.

    It unpickles as an exception of the type `kind`.
    """

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
