"""The part of a manifest that is measured, by checkpoint."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from landscape.errors import ManifestError
from landscape.manifest.manifest import Manifest
from landscape.manifest.settings import Checkpoint, CheckpointSeries
from landscape.suggestions import nearest


@dataclass(frozen=True)
class Task:
    """The remaining measurements of a checkpoint.

    Attributes:
        indices: Indices of mini-batches, or of the points of a surface, in order.
    """

    series: CheckpointSeries
    checkpoint: Checkpoint
    indices: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.place}: {len(self.indices)} batches ({_ranges(self.indices)})"

    @property
    def place(self) -> str:
        """Return the name of its checkpoint for messages."""
        return f"{self.series.name} epoch {self.checkpoint.epoch}"


def _ranges(numbers: Iterable[int]) -> str:
    """Format ascending numbers with consecutive ones joined: "0-3, 7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The part of a manifest that is measured; by default all of it.

    Args:
        series: Names of series.
        epochs: Epochs of each series; None for all.
        num_batches: Number of mini-batches of each checkpoint, from the first; None for all.
        shard: (i, N): the i-th of N equal shares of all that is selected, counted from 1.
    """

    series: tuple[str, ...] = ()
    epochs: tuple[int, ...] | None = None
    num_batches: int | None = None
    shard: tuple[int, int] | None = None

    def check(self, manifest: Manifest) -> None:
        """Refuse a selection that the manifest does not contain.

        Raises:
            ManifestError: If it has no such series, epoch or number of batches.
        """
        names = [series.name for series in manifest.series]
        for name in self.series:
            if name not in names:
                raise ManifestError(
                    f"{manifest.path}: there is no series {name!r}; {nearest(name, names)}"
                )
        known = sorted({epoch for series in manifest.series for epoch in series.epochs})
        for epoch in self.epochs or ():
            if epoch not in known:
                raise ManifestError(
                    f"{manifest.path}: no series has an epoch {epoch}; it has {known}."
                )
        if self.shard is not None and not 1 <= self.shard[0] <= self.shard[1]:
            raise ManifestError(
                f"shard {self.shard}: must be (i, N) with 1 <= i <= N, as (1, 8) for the first of "
                "eight."
            )
        if not self.tasks(manifest) and self.shard is None:
            raise ManifestError(
                f"{manifest.path}: no checkpoint of {', '.join(self.series)} has an epoch among "
                f"{self.epochs}."
            )
        if self.num_batches is not None and not 1 <= self.num_batches <= manifest.data.num_batches:
            raise ManifestError(
                f"{manifest.path}: has {manifest.data.num_batches} batches, but {self.num_batches} "
                "were asked for. Lower --batches, or raise num_samples."
            )

    def tasks(self, manifest: Manifest) -> list[Task]:
        """List everything that is selected, stored or not, in manifest order."""
        num_batches = manifest.data.num_batches if self.num_batches is None else self.num_batches
        tasks = [
            Task(series, checkpoint, tuple(range(num_batches)))
            for series in manifest.series
            for checkpoint in series.checkpoints
            if series.name in (self.series or (series.name,))
            and checkpoint.epoch in (self.epochs or (checkpoint.epoch,))
        ]
        return tasks if self.shard is None else _share(tasks, *self.shard)


def _share(tasks: list[Task], number: int, num_shares: int) -> list[Task]:
    """Return the `number`-th of equal shares of all batches.

    A share holds consecutive batches, so that it needs few checkpoints.
    """
    total = sum(len(task.indices) for task in tasks)
    first, end = total * (number - 1) // num_shares, total * number // num_shares
    shares, begin = [], 0
    for task in tasks:
        indices = task.indices[max(0, first - begin) : max(0, end - begin)]
        begin += len(task.indices)
        if indices:
            shares.append(replace(task, indices=indices))
    return shares
