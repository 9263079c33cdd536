"""Checkpoints whose files are gone: what was measured on them stands, and nothing more can be."""

from collections.abc import Sequence

from landscape.errors import CheckpointError
from landscape.manifest.manifest import Manifest
from landscape.manifest.reading_series import may_be_checkpoint
from landscape.manifest.selection import Task
from landscape.manifest.settings import Checkpoint


def is_gone(checkpoint: Checkpoint) -> bool:
    """Whether there is no file of this checkpoint."""
    return not may_be_checkpoint(checkpoint.path)


def check_weights(
    manifest: Manifest, tasks: Sequence[Task], selected: Sequence[Task]
) -> tuple[str, ...]:
    """See that every checkpoint that has something left to measure is there.

    Args:
        tasks: What is left.
        selected: All that was asked for, stored or not.

    Returns:
        A note for each checkpoint that is gone and has nothing left.

    Raises:
        CheckpointError: If one is gone and has; names the first.
    """
    for task in tasks:
        if is_gone(task.checkpoint):
            raise CheckpointError(
                f"{manifest.path}: series {task.series.name!r}, epoch {task.checkpoint.epoch}: there is no file "
                f"{task.checkpoint.path}, and {len(task.indices)} of its {manifest.data.num_batches} batches are not "
                "measured yet. Restore it or train it again."
            )
    gone = [(task.series.name, task.checkpoint) for task in selected if is_gone(task.checkpoint)]
    return tuple(
        f"{name}: epoch {one.epoch}: measured; its checkpoint {one.path} is gone."
        for name, one in gone
    )


def digest_of(checkpoint: Checkpoint, *, stored: str | None = None) -> str:
    """The SHA-256 digest of a checkpoint's weights.

    Args:
        stored: What records of this checkpoint say, for a file that is gone and whose digest the manifest lacks.

    Raises:
        CheckpointError: If nobody knows it, or the file is another one than the manifest lists.
    """
    known = checkpoint.sha256 or stored
    return known if known is not None and is_gone(checkpoint) else checkpoint.verify()
