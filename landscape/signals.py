"""Requests to stop (Ctrl-C, SIGTERM, SIGHUP), but never during a save.

Each raises an exception.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_STOPPING = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, name)
)
# Seconds after which a lost signal is sent again.
_A_MOMENT = 0.02
# The signals received in each active section of `stop_requests`.
_sections: list[list[int]] = []
_Handler = Callable[[int, FrameType | None], object]


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end; unwinds as Ctrl-C does.

    Args:
        number: Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Raise `Stopped` for every request to end the process.

    It is raised in the main thread. Signals that the caller ignores, as under nohup, stay ignored.
    A signal is sent again if it comes while Python runs a callback of a weak reference or a
    `__del__`: no exception leaves these.

    Yields:
        The numbers of the received signals. C++ code may convert the exception to one of its own;
        this list shows the request all the same.
    """
    came: list[int] = []
    _sections.append(came)

    def stop(number: int, _: FrameType | None) -> None:
        came.append(number)
        raise Stopped(number)

    try:
        with _handling(stop), _sent_again_where_lost():
            yield came
    finally:
        _sections.pop()


def obey_lost_request() -> None:
    """Raise `Stopped` again for a signal whose exception was lost.

    For long loops: callbacks of futures, for example, may write an exception to a log only.
    """
    if _sections and _sections[-1] and threading.current_thread() is threading.main_thread():
        raise Stopped(_sections[-1][0])


@contextmanager
def stopping_later() -> Iterator[list[int]]:
    """Delay requests to stop until a short block ends.

    A second request takes effect at once. For saves: in the middle of a save, C++ code would
    convert the exception to an error of its own or end the process. Whatever the block raises, a
    request that came meanwhile takes effect instead.

    Yields:
        The numbers of the received signals, so that a long block can end early.
    """
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in _STOPPING}

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        handler = before[number]
        if len(came) > 1 and callable(handler):
            handler(number, frame)

    try:
        with _handling(note):
            yield came
    finally:
        if came:
            signal.raise_signal(came[0])


@contextmanager
def _sent_again_where_lost() -> Iterator[None]:
    """Send a signal again if Python could only report its exception."""
    before = sys.unraisablehook

    def report(lost: Any) -> None:
        if isinstance(lost.exc_value, Stopped):
            # Shortly afterwards, when the callback has ended.
            threading.Timer(_A_MOMENT, os.kill, (os.getpid(), lost.exc_value.number)).start()
        else:
            before(lost)

    sys.unraisablehook = report
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def _handling(handler: _Handler) -> Iterator[None]:
    """Handle signals unless ignored or handled outside of Python.

    Only the main thread can handle signals; in other threads this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _STOPPING}
    before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
