"""Requests to stop (Ctrl-C, SIGTERM, SIGHUP): one exception each, and never in the middle of a save."""

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
# Seconds.
_A_MOMENT = 0.02
# The signals that came in each section of `stop_requests` that is entered.
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
    """Raise `Stopped` in the main thread for every signal that asks the process to end.

    Signals that the caller ignores, as under nohup, stay ignored.

    A signal that comes while Python runs a callback of a weak reference or a `__del__`, which no exception leaves, is sent again.

    Yields:
        The numbers of the signals that came. C++ code may turn the exception into one of its own; this list tells.
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
    """Raise `Stopped` again for a signal that came in this section and whose exception somebody swallowed.

    For loops that run long: callbacks of futures, for one, may end an exception in a log.
    """
    if _sections and _sections[-1] and threading.current_thread() is threading.main_thread():
        raise Stopped(_sections[-1][0])


@contextmanager
def stopping_later() -> Iterator[list[int]]:
    """Put off requests to stop until the block ends, which must be short; a second one is obeyed at once.

    For saves: in the middle of one, C++ code would turn the exception into an error of its own or end the process.
    Whatever the block raises, a request that came meanwhile is obeyed instead.

    Yields:
        The numbers of the signals that came, so that a long block can end early.
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
    """Send a signal again whose exception Python could only report, and not raise."""
    before = sys.unraisablehook

    def report(lost: Any) -> None:
        if isinstance(lost.exc_value, Stopped):
            # A moment later, when the callback is over.
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
    """Handle the signals that are neither ignored nor handled outside of Python; elsewhere than in the main thread none is."""
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
