"""After how many epochs each checkpoint of a run was written, and which of them a manifest lists."""

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
        epoch: Finished epochs; None where the user has to say it.
        hint: What is known of the epoch otherwise.
    """

    path: Path
    epoch: int | None
    hint: str = ""


@dataclass(frozen=True)
class Listing:
    """The checkpoints of a run.

    Attributes:
        last: What the last of them says of itself.
        left_out: Files that are not listed, and why.
        remarks: What the user should look at.
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
    """Read what each file says of itself, and leave out what has no epoch or repeats one.

    Args:
        counts: What the number in a file or its name counts where that is not known: "finished" epochs, or epochs "from-zero",
            of which epoch 0 is after the first one. None leaves the epoch to the user.

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
            f"{path}: {reason}; no other file there is a checkpoint that can be read. Name another folder."
        )
    with_epoch = [one for one in read if one.epoch is not None]
    if not with_epoch:
        # Which of two files is a copy cannot be told without epochs.
        chosen = [Listed(one.path, None, one.why) for one in read]
        advice = (
            "the numbers in files or names are taken with --epoch-numbers finished, or from-zero"
        )
        remarks = (advice,) if all(one.number is not None for one in read) else ()
        return Listing(tuple(chosen), read[-1].outline, tuple(left_out), remarks)
    left_out += [
        (one.path, f"{one.why}; to list it, add a line with its epoch")
        for one in read
        if one.epoch is None
    ]
    return _without_copies(with_epoch, left_out)


def _unwritable(path: Path) -> str:
    """Why a path cannot stand in a manifest; empty where it can."""
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
    """The epoch of a checkpoint of transformers' Trainer, if it is a whole one."""
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
    """A number that may be the epoch though nobody says what it counts, and what is to be said of it."""
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
    """One checkpoint per epoch; the files that repeat one are left out."""
    chosen: dict[int, _Read] = {}
    repeated: list[tuple[_Read, _Read]] = []
    for one in sorted(read, key=_preferred_first):
        assert one.epoch is not None
        first = chosen.setdefault(one.epoch, one)
        if first is one:
            continue
        said = f"epoch {one.epoch} as well, which is listed as {first.path.name}"
        left_out.append((one.path, said))
        if not one.is_copy:
            repeated.append((first, one))
    ordered = [chosen[epoch] for epoch in sorted(chosen)]
    listed = tuple(Listed(one.path, one.epoch, one.why if one.by_user else "") for one in ordered)
    return Listing(listed, ordered[-1].outline, tuple(left_out), _remarks(repeated))


def _preferred_first(one: _Read) -> tuple[object, ...]:
    """Sort key: of several files of an epoch, the one that is named after it comes first."""
    named = _NAMED_EPOCH.search(one.path.name) is not None
    return (one.is_copy, not named, natural_order(one.path))


def _remarks(repeated: list[tuple[_Read, _Read]]) -> tuple[str, ...]:
    if not repeated:
        return ()
    first, other = repeated[0]
    more = f", and so in {len(repeated) - 1} more cases" if len(repeated) > 1 else ""
    return (
        f"{first.path.name} and {other.path.name} are both of epoch {first.epoch}, and the first is "
        f"listed{more}; if they are of two runs, give each a folder of its own",
    )
