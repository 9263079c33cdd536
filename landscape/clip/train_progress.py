"""Progress of a training run: bars on a terminal, else a line per epoch.

The bars show the time left.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Reporter(Protocol):
    """The interface that receives the progress of a training run.

    It gets every epoch (1 is the first), every step's loss in nats, and what was measured.
    """

    def begin(self, epoch: int) -> None: ...

    def step(self, loss: float) -> None: ...

    def measured(self, text: str) -> None: ...

    def end(self, epoch: int, loss: float) -> None: ...


@contextmanager
def reporter(
    title: str, *, first: int, last: int, num_steps: int, progress: bool | None
) -> Iterator[Reporter]:
    """Report the epochs from `first` to `last` on stderr.

    Args:
        num_steps: Number of steps per epoch.
        progress: None draws bars where stderr is a terminal and writes lines elsewhere; True always
            draws bars, False shows nothing.
    """
    if not (sys.stderr.isatty() if progress is None else progress):
        yield _Lines(title, last, shown=progress is None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("left{task.fields[loss]}{task.fields[measured]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        everything = bars.add_task(
            title, total=(last - first + 1) * num_steps, loss="", measured=""
        )
        yield _Bars(bars, everything, last=last, num_steps=num_steps)


class _Bars:
    """A bar for the run, and one per epoch with its mean loss."""

    def __init__(self, bars: Progress, everything: Any, *, last: int, num_steps: int) -> None:
        self._bars, self._everything, self._last, self._num_steps = (
            bars,
            everything,
            last,
            num_steps,
        )
        self._current = everything
        self._losses: list[float] = []

    def begin(self, epoch: int) -> None:
        self._losses = []
        self._current = self._bars.add_task(
            f"  epoch {epoch}/{self._last}", total=self._num_steps, loss="", measured=""
        )

    def step(self, loss: float) -> None:
        self._losses.append(loss)
        self._bars.update(
            self._current, advance=1, loss=f", loss {sum(self._losses) / len(self._losses):.4f}"
        )
        self._bars.advance(self._everything)

    def measured(self, text: str) -> None:
        self._bars.update(self._everything, measured=f", {text}")

    def end(self, epoch: int, loss: float) -> None:
        self._bars.update(self._current, loss=f", loss {loss:.4f}")


class _Lines:
    def __init__(self, title: str, last: int, *, shown: bool) -> None:
        self._title, self._last, self._shown = title, last, shown
        self._begun = time.monotonic()
        self._measured = ""

    def begin(self, epoch: int) -> None:
        self._begun = time.monotonic()

    def step(self, loss: float) -> None:
        pass

    def measured(self, text: str) -> None:
        self._measured = f"{text}, "

    def end(self, epoch: int, loss: float) -> None:
        seconds = time.monotonic() - self._begun
        left = f"{self._measured}{seconds:.1f} s, {seconds * (self._last - epoch):.0f} s left"
        if self._shown:
            print(
                f"{self._title}: epoch {epoch}/{self._last}, loss {loss:.4f}, {left}",
                file=sys.stderr,
                flush=True,
            )
