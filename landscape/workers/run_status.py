"""The status file of a running measurement.

A small file beside the parts of the output, for processes that only read.
"""

import json
import math
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from landscape.files import read_regular

STATUS_FILE = "status.json"
# Largest size that is read, in bytes. With a thousand workers the file takes about 100 kB.
_LARGEST = 2**24
# A worker is slow if it takes this many times the median of all.
_SLOW = 1.3
Worker = tuple[str, int, float]


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """The state of a running measurement.

    Args:
        num_planned, num_done, num_failed: Items of the whole output; done ones of earlier runs
            count.
        started, updated: Seconds since the epoch of Unix.
        rate_per_minute: Batches of this run a minute; 0 while none is known.
        seconds_left: Estimate; infinite while none is known.
        workers: Name, number of finished items and seconds per item of each worker.
        dashboard: Address of a page with more, where there is one.
        pid, host: The process that writes the output.
        noun: Name of an item, in the plural: "batches" or "points".
    """

    num_planned: int
    num_done: int
    num_failed: int
    started: float
    updated: float
    rate_per_minute: float
    seconds_left: float
    workers: tuple[Worker, ...]
    dashboard: str | None
    pid: int
    host: str
    noun: str = "batches"

    def __post_init__(self) -> None:
        """Convert every value to its type.

        Raises:
            ValueError, TypeError: If that is not possible.
        """
        for name in ("num_planned", "num_done", "num_failed", "pid"):
            object.__setattr__(self, name, int(getattr(self, name)))
        for name in ("started", "updated", "rate_per_minute", "seconds_left"):
            object.__setattr__(self, name, float(getattr(self, name)))
        workers = tuple(
            (str(name), int(items), float(seconds)) for name, items, seconds in self.workers
        )
        object.__setattr__(self, "workers", workers)
        object.__setattr__(self, "host", str(self.host))
        object.__setattr__(
            self, "dashboard", None if self.dashboard is None else str(self.dashboard)
        )


def write_status(folder: Path, status: RunStatus) -> None:
    """Write the status file of a run.

    It lies in the folder of the output's parts. A single rename replaces the old file. A failure to
    write must not end the run, so nothing is raised then.
    """
    temporary = folder / f".{STATUS_FILE}.tmp"
    try:
        temporary.write_text(json.dumps(asdict(status)))
        os.replace(temporary, folder / STATUS_FILE)
    except OSError:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            pass


def remove_status(folder: Path) -> None:
    """Remove the files of `write_status`, complete or not."""
    for name in (STATUS_FILE, f".{STATUS_FILE}.tmp"):
        with suppress(OSError):
            (folder / name).unlink(missing_ok=True)


def read_status(folder: Path) -> RunStatus | None:
    """Read the status of a run; None if missing or damaged."""
    try:
        value: Any = json.loads(read_regular(folder / STATUS_FILE, largest=_LARGEST))
        return RunStatus(**value)
    except (OSError, LookupError, ValueError, TypeError, ArithmeticError, RecursionError):
        return None


def status_lines(status: RunStatus, *, now: float | None = None) -> list[str]:
    """Describe a running measurement in lines of text.

    Args:
        now: Seconds since the epoch of Unix; by default the present time.
    """
    now = time.time() if now is None else now
    line = (
        f"running: process {status.pid} on {status.host}: {status.num_done} of "
        f"{status.num_planned} {status.noun}"
    )
    if status.rate_per_minute > 0:
        line += f", {status.rate_per_minute:.3g} a minute"
    if math.isfinite(status.seconds_left):
        line += f", about {_duration(status.seconds_left)} left"
    line += f", {status.num_failed} failed, updated {_duration(max(0.0, now - status.updated))} ago"
    lines = [line] + ([f"dashboard: {status.dashboard}"] if status.dashboard else [])
    times = {name: seconds for name, items, seconds in status.workers if items}
    if len(times) > 1:
        slowest = max(times, key=lambda name: times[name])
        others = median(times.values())
        if times[slowest] > _SLOW * others:
            lines.append(
                f"slowest worker {slowest}: {times[slowest]:.3g} s each beside a median of "
                f"{others:.3g} s"
            )
    return lines


def _duration(seconds: float) -> str:
    """Format a duration in a suitable unit."""
    for unit, size, words in (
        (60.0, 1.0, "s"),
        (3600.0, 60.0, "minutes"),
        (math.inf, 3600.0, "hours"),
    ):
        if seconds < unit:
            return f"{seconds / size:.0f} {words}" if size == 1 else f"{seconds / size:.1f} {words}"
    return "unknown"
