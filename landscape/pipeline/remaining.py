"""The remaining tasks of a run, and its report. Imports no torch."""

from dataclasses import dataclass, replace
from pathlib import Path

from landscape.errors import ManifestError
from landscape.manifest import Manifest, Selection, Task
from landscape.store import task_key


def plan(
    manifest: Manifest, stored: frozenset[str], selection: Selection = Selection()
) -> list[Task]:
    """List the selected tasks that are not stored, in manifest order.

    Args:
        stored: Keys of the stored records.
    """
    tasks = []
    for task in selection.tasks(manifest):
        name, epoch = task.series.name, task.checkpoint.epoch
        left = tuple(batch for batch in task.indices if task_key(name, epoch, batch) not in stored)
        if left:
            tasks.append(replace(task, indices=left))
    return tasks


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """Report of a run.

    Attributes:
        num_planned: Requested batches, over all checkpoints.
        num_stored: Batches among them that were measured before this run.
        num_measured: Batches measured by this run.
        num_unconverged: Eigenvalues measured by this run whose residual missed the tolerance.
        failures: A line for each batch that failed; the next run tries it again.
        todo: In a dry run, the tasks that it would have measured.
        forecast: In a dry run, lines of the forecast.
        num_refused: In a dry run, number of reasons for which the run would be refused.
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
        """Format the report for a terminal."""
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
                f"{self.num_unconverged} of the eigenvalues measured now missed the tolerance; "
                "they are marked so."
            )
        return "\n".join([*lines, *self.forecast])


def refuse_preconditioned(manifest: Manifest, what: str) -> None:
    """Refuse a manifest of the preconditioned Hessian, for what measures the Hessian itself.

    Raises:
        ManifestError: If it is one.
    """
    if manifest.hessian.preconditioner != "none":
        raise ManifestError(
            f"{manifest.path}: preconditioner is {manifest.hessian.preconditioner}, but {what} "
            "measures the Hessian itself, in other units. Use a manifest with `preconditioner: "
            "none` for it."
        )
