"""The epochs of a run's checkpoints, and the checkpoints that a manifest lists."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from landscape.containers.outline import Outline, outline
from landscape.errors import CheckpointError, ManifestError
from landscape.files import check_regular
from landscape.manifest.init.folders import natural_order

_COPY = re.compile(
    r"(?i)(?:^|[^a-z])(last|latest|best|final|current|resume|recovery|copy|backup|old)"
)
_NAMED_EPOCH = re.compile(r"(?i)ep(?:och)?[-_=]?(\d+)")
_WITHIN = "within an epoch"
COUNTS = ("finished", "from-zero")


@dataclass(frozen=True)
class Listed:
    """A checkpoint of the manifest.

    Attributes:
        epoch: Finished epochs; None where the user has to state it.
        hint: Other information about the epoch.
    """

    path: Path
    epoch: int | None
    hint: str = ""


@dataclass(frozen=True)
class Listing:
    """The checkpoints of a run.

    Attributes:
        last: Outline of the last checkpoint.
        left_out: Files that are not listed, with the reason.
        remarks: Points that the user should check.
    """

    checkpoints: tuple[Listed, ...]
    last: Outline
    left_out: tuple[tuple[Path, str], ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Read:
    path: Path
    outline: Outline
    epoch: int | None
    number: int | None
    why: str
    by_user: bool = False

    @property
    def is_copy(self) -> bool:
        return self.path.is_symlink() or _COPY.search(self.path.name) is not None


def list_checkpoints(paths: Iterable[Path], *, counts: str | None = None) -> Listing:
    """List the checkpoints of a run by epoch.

    Reads the outline of each file, and leaves out files that have no epoch or repeat one.

    Args:
        counts: Meaning of the number in a file or its name where that is not known: "finished"
            epochs, or epochs "from-zero", of which epoch 0 is after the first one. None leaves the
            epoch to the user.

    Raises:
        ManifestError: If none of the files can be read.
    """
    read: list[_Read] = []
    left_out: list[tuple[Path, str]] = []
    for path in paths:
        if reason := _unwritable(path):
            left_out.append((path, reason))
            continue
        try:
            read.append(_read(path, counts))
        except CheckpointError as error:
            reason = str(error).removeprefix(f"{path}: ").partition(". ")[0].rstrip(".")
            left_out.append((path, reason))
    if not read:
        path, reason = left_out[0]
        raise ManifestError(
            f"{path}: {reason}; no other file there is a checkpoint that can be read. Name another "
            "folder."
        )
    with_epoch = [checkpoint for checkpoint in read if checkpoint.epoch is not None]
    if not with_epoch:
        # Without epochs it is not known which of two files is a copy.
        chosen = [Listed(checkpoint.path, None, checkpoint.why) for checkpoint in read]
        advice = (
            "the numbers in files or names are taken with --epoch-numbers finished, or from-zero"
        )
        remarks = (advice,) if all(checkpoint.number is not None for checkpoint in read) else ()
        return Listing(tuple(chosen), read[-1].outline, tuple(left_out), remarks)
    left_out += [
        (checkpoint.path, f"{checkpoint.why}; to list it, add a line with its epoch")
        for checkpoint in read
        if checkpoint.epoch is None
    ]
    return _without_copies(with_epoch, left_out)


def _unwritable(path: Path) -> str:
    """Explain why a path cannot stand in a manifest, if so."""
    if not str(path).isprintable():
        return "its name holds characters that a manifest cannot; rename it"
    return ""


def _read(path: Path, counts: str | None) -> _Read:
    look = outline(path)
    number, why = _number(path, look)
    epoch = look.epoch if look.epoch is not None else _epoch_of_trainer(path)
    if epoch is None and number is not None and counts is not None:
        epoch = number + (counts == "from-zero")
        why = f"number {number}, by --epoch-numbers {counts}"
        return _Read(path, look, epoch, number, why, by_user=True)
    return _Read(path, look, epoch, number, why)


def _epoch_of_trainer(path: Path) -> int | None:
    """Return the epoch of a transformers Trainer checkpoint, if whole."""
    value = _trainer_epoch(path)
    return int(value) if value is not None and value.is_integer() else None


def _trainer_epoch(path: Path) -> float | None:
    state = (path if path.is_dir() else path.parent) / "trainer_state.json"
    try:
        check_regular(state)
        value = json.loads(state.read_text(encoding="utf-8")).get("epoch")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return float(value) if type(value) in (int, float) and 0 <= value < 1e9 else None


def _number(path: Path, look: Outline) -> tuple[int | None, str]:
    """Find a number of unknown meaning that may be the epoch.

    Returns:
        The number, or None; and a remark about it.
    """
    trainer = _trainer_epoch(path)
    if trainer is not None and not trainer.is_integer():
        return None, f"within an epoch: trainer_state.json says epoch {trainer:.4g}"
    note = next((note for note in look.notes if "epoch" in note), "")
    if _WITHIN in note:
        return None, note.rstrip(".")
    if type(look.stored_epoch) is int:
        said = "not whether that is after so many epochs, or counted from 0"
        return look.stored_epoch, f"the file says epoch {look.stored_epoch}, {said}"
    name = path.parent.name if _is_inside_folder(path) else path.name
    match = _NAMED_EPOCH.search(name)
    numbers = re.findall(r"\d+", name)
    number = match[1] if match else numbers[0] if len(numbers) == 1 else None
    if number is None or len(number) > 9:
        return None, "the file does not say its epoch"
    return int(number), f"the file does not say its epoch, its name says {int(number)}"


def _is_inside_folder(path: Path) -> bool:
    return re.fullmatch(r"checkpoint[-_]\d+", path.parent.name) is not None


def _without_copies(read: list[_Read], left_out: list[tuple[Path, str]]) -> Listing:
    """Keep one checkpoint per epoch; leave out the files that repeat one."""
    chosen: dict[int, _Read] = {}
    repeated: list[tuple[_Read, _Read]] = []
    for checkpoint in sorted(read, key=_preferred_first):
        assert checkpoint.epoch is not None
        first = chosen.setdefault(checkpoint.epoch, checkpoint)
        if first is checkpoint:
            continue
        said = f"epoch {checkpoint.epoch} as well, which is listed as {first.path.name}"
        left_out.append((checkpoint.path, said))
        if not checkpoint.is_copy:
            repeated.append((first, checkpoint))
    ordered = [chosen[epoch] for epoch in sorted(chosen)]
    listed = tuple(
        Listed(checkpoint.path, checkpoint.epoch, checkpoint.why if checkpoint.by_user else "")
        for checkpoint in ordered
    )
    return Listing(listed, ordered[-1].outline, tuple(left_out), _remarks(repeated))


def _preferred_first(checkpoint: _Read) -> tuple[object, ...]:
    """Return a sort key for files of an epoch.

    The file that is named after the epoch comes first.
    """
    named = _NAMED_EPOCH.search(checkpoint.path.name) is not None
    return (checkpoint.is_copy, not named, natural_order(checkpoint.path))


def _remarks(repeated: list[tuple[_Read, _Read]]) -> tuple[str, ...]:
    if not repeated:
        return ()
    first, other = repeated[0]
    more = f", and so in {len(repeated) - 1} more cases" if len(repeated) > 1 else ""
    return (
        f"{first.path.name} and {other.path.name} are both of epoch {first.epoch}, and the first "
        f"is listed{more}; if they are of two runs, give each a folder of its own",
    )
