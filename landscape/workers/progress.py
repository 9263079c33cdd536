"""Progress of a run: a bar, log lines, and a status file.

The bar is for a terminal, the lines for a log, the file beside the output for `landscape info`.
"""

import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from landscape.workers.run_status import RunStatus, remove_status, status_lines, write_status

# Seconds between two lines in a log, and between two versions of the status file.
_BETWEEN_LINES, _BETWEEN_FILES = 120.0, 5.0


@dataclass
class _Pace:
    """Number of items that a worker has finished, and their total time."""

    num_items: int = 0
    seconds: float = 0.0


@dataclass(kw_only=True)
class Progress:
    """Progress of a run over all its workers, as a context manager.

    Args:
        num_planned: Items that the output is going to hold.
        num_stored: Items among them that were stored before this run.
        noun: Name of an item, in the plural.
        folder: Folder of the status file, which other processes read.
        shown: None draws a bar where stderr is a terminal and writes lines elsewhere; True draws a
            bar; False is silent.
        dashboard: Address of the scheduler's own page.
    """

    num_planned: int
    num_stored: int
    noun: str
    folder: Path
    shown: bool | None = None
    dashboard: str | None = None
    clock: Callable[[], float] = time.time
    _num_done: int = 0
    _num_failed: int = 0
    _paces: dict[str, _Pace] = field(default_factory=dict)
    _bars: Any = None
    _said: set[str] = field(default_factory=lambda: {""})

    def __enter__(self) -> Self:
        self._started = self._line_at = self._file_at = self.clock()
        if sys.stderr.isatty() if self.shown is None else self.shown:
            self._bars, self._bar = _new_bar(self.num_planned, self.num_stored)
            self._bars.start()
        self._keep()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()
        remove_status(self.folder)

    def begin(self, title: str) -> None:
        """Show what is measured now, unless already shown.

        An empty title is ignored.
        """
        if title in self._said:
            return
        self._said.add(title)
        if self._bars is not None:
            self._bars.update(self._bar, description=title)
        else:
            self._print(title)

    def add(self, worker: str, *, num_done: int, num_failed: int, seconds: float) -> None:
        """Add the items that a worker has just finished."""
        pace = self._paces.setdefault(worker, _Pace())
        pace.num_items += num_done + num_failed
        pace.seconds += seconds
        self._num_done += num_done
        self._num_failed += num_failed
        if self._bars is not None:
            self._bars.update(self._bar, advance=num_done + num_failed)
        self.tick()

    def tick(self) -> None:
        """Write the line and file that are due.

        To be called about every second.
        """
        now = self.clock()
        if self._bars is None and now - self._line_at >= _BETWEEN_LINES:
            self._line_at = now
            for line in status_lines(self.status(), now=now):
                self._print(line)
        if now - self._file_at >= _BETWEEN_FILES:
            self._file_at = now
            self._keep()

    def status(self) -> RunStatus:
        """Return the present state of the run."""
        now = self.clock()
        done = self._num_done + self._num_failed
        rate = 60 * done / (now - self._started) if done and now > self._started else 0.0
        left = self.num_planned - self.num_stored - done
        return RunStatus(
            num_planned=self.num_planned,
            num_done=self.num_stored + self._num_done,
            num_failed=self._num_failed,
            started=self._started,
            updated=now,
            rate_per_minute=rate,
            seconds_left=60 * left / rate if rate else math.inf,
            workers=tuple(
                (name, pace.num_items, pace.seconds / max(1, pace.num_items))
                for name, pace in self._paces.items()
            ),
            dashboard=self.dashboard,
            pid=os.getpid(),
            host=platform.node(),
            noun=self.noun,
        )

    def _keep(self) -> None:
        write_status(self.folder, self.status())

    def _print(self, line: str) -> None:
        if self.shown is None:
            print(line, file=sys.stderr, flush=True)


def show_notes(notes: Iterable[str], *, shown: bool | None) -> None:
    """Write notes to stderr, a line each, unless progress is silent."""
    for note in notes if shown is not False else ():
        print(f"note: {note}", file=sys.stderr, flush=True)


def _new_bar(total: int, done: int) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    bars = Progress(*columns, console=Console(stderr=True))
    return bars, bars.add_task("", total=total, completed=done)
