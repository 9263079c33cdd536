"""What is left to measure, and what a run made of it. Imports no torch."""

from dataclasses import dataclass, replace
from pathlib import Path

from landscape.manifest import Manifest, Selection, Task
from landscape.store import task_key


def plan(
    manifest: Manifest, stored: frozenset[str], selection: Selection = Selection()
) -> list[Task]:
    """The selected tasks that are left when the records with the keys `stored` are there, in the order of the manifest."""
    tasks = []
    for task in selection.tasks(manifest):
        name, epoch = task.series.name, task.checkpoint.epoch
        left = tuple(batch for batch in task.indices if task_key(name, epoch, batch) not in stored)
        if left:
            tasks.append(replace(task, indices=left))
    return tasks


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """What a run found, did and left undone.

    Attributes:
        num_planned: Batches that were asked for, over all checkpoints.
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
        lines.append(
            f"{self.output}: {of}{done} of {self.num_planned} batches are measured ({counts})."
        )
        if self.num_unconverged:
            lines.append(
                f"{self.num_unconverged} of the eigenvalues measured now missed the tolerance; they are marked so."
            )
        return "\n".join([*lines, *self.forecast])
