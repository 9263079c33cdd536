"""Checkpoints whose files are gone.

Measurements on them stay valid, but no more can be made.
"""

from collections.abc import Sequence

from landscape.errors import CheckpointError
from landscape.manifest.manifest import Manifest
from landscape.manifest.reading_series import may_be_checkpoint
from landscape.manifest.selection import Task
from landscape.manifest.settings import Checkpoint


def is_gone(checkpoint: Checkpoint) -> bool:
    """Tell whether the file of this checkpoint is gone."""
    return not may_be_checkpoint(checkpoint.path)


def check_weights(
    manifest: Manifest, tasks: Sequence[Task], selected: Sequence[Task]
) -> tuple[str, ...]:
    """Check that every checkpoint with remaining measurements exists.

    Args:
        tasks: Remaining measurements.
        selected: All requested measurements, stored or not.

    Returns:
        A note for each checkpoint that is gone and has nothing left to measure.

    Raises:
        CheckpointError: If a checkpoint is gone and has measurements left; names the first.
    """
    for task in tasks:
        if is_gone(task.checkpoint):
            raise CheckpointError(
                f"{manifest.path}: series {task.series.name!r}, epoch {task.checkpoint.epoch}: "
                f"there {_missing(task.checkpoint)}, and {len(task.indices)} of its "
                f"{manifest.data.num_batches} batches are not measured yet. Restore it or train it "
                "again."
            )
    gone = [(task.series.name, task.checkpoint) for task in selected if is_gone(task.checkpoint)]
    return tuple(
        f"{name}: epoch {checkpoint.epoch}: measured; its checkpoint {checkpoint.path} is gone."
        for name, checkpoint in gone
    )


def _missing(checkpoint: Checkpoint) -> str:
    """Describe what is missing; completes a sentence that begins with "there"."""
    path = checkpoint.path
    return f"are no weights in the folder {path}" if path.is_dir() else f"is no file {path}"


def digest_of(checkpoint: Checkpoint, *, stored: str | None = None) -> str:
    """Return the SHA-256 digest of a checkpoint's weights.

    Args:
        stored: Digest in the records of this checkpoint, for a file that is gone and whose digest
            the manifest lacks.

    Raises:
        CheckpointError: If the digest is not known, or the file is another one than the manifest
            lists.
    """
    known = checkpoint.sha256 or stored
    return known if known is not None and is_gone(checkpoint) else checkpoint.verify()
