"""What is left to measure, and what a run made of it. Imports no torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from landscape.manifest import Checkpoint, CheckpointSeries, Manifest
from landscape.store import task_key


@dataclass(frozen=True)
class Task:
    """The batches of one checkpoint that are not stored yet, in order."""

    series: CheckpointSeries
    checkpoint: Checkpoint
    batches: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.series.name} epoch {self.checkpoint.epoch}: {len(self.batches)} batches ({_ranges(self.batches)})"


def _ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers with their runs joined: "0-3, 7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def plan(manifest: Manifest, stored: frozenset[str]) -> list[Task]:
    """The tasks that are left when the records with the keys `stored` are there, in the order of the manifest."""
    tasks = []
    for series in manifest.series:
        for checkpoint in series.checkpoints:
            everything = range(manifest.data.num_batches)
            left = tuple(batch for batch in everything if task_key(series.name, checkpoint.epoch, batch) not in stored)
            if left:
                tasks.append(Task(series, checkpoint, left))
    return tasks


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """What a run found, did and left undone.

    Attributes:
        num_planned: Batches that the manifest asks for, over all checkpoints.
        num_stored: Of those, measured before this run.
        num_measured: Measured by this run.
        num_unconverged: Eigenvalues measured by this run whose residual missed the tolerance.
        failures: A line for each batch that failed; it is tried again by the next run.
        todo: In a dry run, what it would have measured.
        forecast: In a dry run, lines about what would be met.
        num_refused: In a dry run, reasons for which it would be refused.
        what: "" for the spectra of the whole, "modules" for those of modules.
    """

    output: Path
    num_planned: int
    num_stored: int
    num_measured: int = 0
    num_unconverged: int = 0
    failures: tuple[str, ...] = ()
    todo: tuple[Task, ...] = ()
    forecast: tuple[str, ...] = ()
    num_refused: int = 0
    what: str = ""

    @property
    def complete(self) -> bool:
        return self.num_stored + self.num_measured == self.num_planned

    def summary(self) -> str:
        """For a terminal."""
        of = f"{self.what} of " if self.what else ""
        lines = [f"to measure: {of}{task}" for task in self.todo]
        lines += [f"failed: {failure}" for failure in self.failures]
        done = self.num_stored + self.num_measured
        failed = f", {len(self.failures)} failed" if self.failures else ""
        counts = f"{self.num_measured} now, {self.num_stored} before{failed}"
        lines.append(f"{self.output}: {of}{done} of {self.num_planned} batches are measured ({counts}).")
        if self.num_unconverged:
            lines.append(f"{self.num_unconverged} of the eigenvalues measured now missed the tolerance; they are marked so.")
        return "\n".join([*lines, *self.forecast])
