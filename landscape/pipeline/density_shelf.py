"""The file of densities behind a figure: what it knows of what is asked for, and what is left to measure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from landscape.errors import StoreError
from landscape.store import DensityRecord, is_density_file, read_densities, write_densities

Key = tuple[str, int]


class Job(Protocol):
    """A checkpoint to measure: `facts` are its fields of `DensityRecord`."""

    @property
    def facts(self) -> dict[str, Any]: ...

    @property
    def key(self) -> Key: ...


def stored_digests(target: Path) -> dict[Key, str]:
    """Digest of the weights of each checkpoint in a file of densities; empty if there is no such file.

    Raises:
        StoreError: If the file is damaged.
    """
    records = read_densities(target) if is_density_file(target) else []
    return {(record.series, record.epoch): record.checkpoint_sha256 for record in records}


class DensityShelf:
    """The records of a file that count.

    Args:
        num_batches: Batches that are asked for.
        unaudited: Whether a record without an audit will do.

    Attributes:
        known: By checkpoint that is asked for, the record of what was measured as asked; of some batches, or of more.
        todo: Indices of the jobs that lack batches, or the audit.

    Raises:
        StoreError: If the file is something else, or damaged.
    """

    def __init__(self, target: Path, jobs: Sequence[Job], *, num_batches: int, unaudited: bool) -> None:
        if target.exists() and not is_density_file(target):
            raise StoreError(
                f"{target}: holds something else, or is damaged, and would be overwritten by the densities behind the figure; "
                "name another output with -o, or remove it."
            )
        self.target = target
        self._order = [job.key for job in jobs]
        stored = {(one.series, one.epoch): one for one in read_densities(target)} if target.exists() else {}
        self.known: dict[Key, DensityRecord] = {}
        self.todo: list[int] = []
        for index, job in enumerate(jobs):
            one = stored.pop(job.key, None)
            if one is not None and one.checkpoint_sha256 == job.facts["checkpoint_sha256"] and one.matches(job.facts["settings"]):
                self.known[job.key] = one
            there = self.known[job.key].batches if job.key in self.known else ()
            # An audit that was left out is made up for.
            audited = unaudited or (job.key in self.known and self.known[job.key].audited)
            if not audited or not set(range(num_batches)) <= set(there):
                self.todo.append(index)
        # Checkpoints that are not asked for stay in the file where they were measured in the same way.
        self._others = [one for one in stored.values() if jobs and one.matches(jobs[0].facts["settings"])]

    def keep(self, key: Key, record: DensityRecord) -> None:
        """Write a record, and all others again."""
        self.known[key] = record
        write_densities(self.target, [*(self.known[key] for key in self._order if key in self.known), *self._others])
