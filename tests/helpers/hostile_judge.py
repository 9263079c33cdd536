"""What must hold of every hostile input, whatever the command makes of it."""

import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.hostile_files import CANARY
from tests.helpers.hostile_grammar import Hostile

SECONDS, BYTES = 30, 2 * 2**30
# Commands whose status 1 means that some of the work failed.
_MAY_FAIL_IN_PART = ("spectra", "density", "surface", "audit", "train")
_STOPPED = {signal.SIGINT: (130, -signal.SIGINT), signal.SIGTERM: (143, -signal.SIGTERM)}


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        status: The exit status; minus the signal where one ended it; None where it was killed after
            SECONDS.
        peak: Bytes of memory beyond what the process had when it was forked.
    """

    status: int | None
    seconds: float
    peak: int
    stdout: str
    stderr: str


def forked(work: Callable[[], int]) -> int:
    """Start a child that does some work; returns its process id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = work()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    return child


def judge(hostile: Hostile, outcome: Outcome, folder: Path, before: dict[str, Any]) -> list[str]:
    """What is wrong with how a command met an input, a few words each."""
    if outcome.status is None:
        return [f"still running after {SECONDS} s"]
    text = outcome.stdout + outcome.stderr
    wrong = []
    if "Traceback (most recent call last)" in text or "Exception ignored" in text:
        wrong.append("traceback")
    if re.search(r"\bat 0x[0-9a-f]{6,}|<_io\.", text):
        wrong.append("an address in a message")
    if outcome.peak > BYTES:
        wrong.append(f"{outcome.peak / 2**30:.1f} GiB")
    wrong += _wrong_status(hostile, outcome)
    left = (
        list((folder / "tmp").rglob("*")) if outcome.status not in (-signal.SIGKILL, None) else []
    )
    if left:
        wrong.append(f"left in the temporary folder: {left[0].name}")
    return wrong + _wrong_files(hostile, outcome, folder / "study", before)


def _wrong_status(hostile: Hostile, outcome: Outcome) -> list[str]:
    lines = [
        line for line in outcome.stderr.splitlines() if re.match(r"(landscape: |Aborted!)", line)
    ]
    quiet = hostile.streams.startswith("stderr")
    if hostile.signal is not None and outcome.status in _STOPPED[hostile.signal[0]]:  # type: ignore[index]
        return []
    if outcome.status == 2 and "--dry-run" in hostile.argv and "refused" in outcome.stdout:
        return []
    if outcome.status == 2:
        return (
            []
            if quiet or (len(lines) == 1 and outcome.stderr.rstrip().splitlines()[-1:] == lines)
            else ["not one line with status 2"]
        )
    if outcome.status == 1 and hostile.streams == "stdout pipe":
        # As click ends where nobody reads.
        return []
    if outcome.status == 1:
        said = (
            "failed" in outcome.stdout
            or "undecided" in outcome.stdout
            or any(line.startswith("landscape: ") for line in lines)
        )
        return [] if hostile.argv[0] in _MAY_FAIL_IN_PART and said else ["status 1"]
    return [] if outcome.status == 0 else [f"status {outcome.status}"]


def snapshot(study: Path) -> dict[str, Any]:
    """Every file by name, with what changes when it is written."""
    found = {}
    for path in sorted(study.rglob("*")):
        status = path.lstat()
        found[str(path.relative_to(study))] = (
            status.st_mode,
            status.st_size,
            status.st_mtime_ns,
            status.st_ino,
        )
    return {
        name: value if not (study / name).is_dir() else value[:1] for name, value in found.items()
    }


def _outputs(hostile: Hostile) -> tuple[str, ...]:
    """Beginnings of the names of files that the command may write."""
    argv = hostile.argv
    named = [
        argv[i + 1]
        for i, word in enumerate(argv[:-1])
        if (word in ("-o", "--data") and argv[0] != "train") or word == "-o"
    ]
    # Beside a figure lies its .h5, beside a store its parts.
    return tuple(os.path.splitext(name)[0] or name for name in named if name not in ("", ".", "/"))


def _wrong_files(
    hostile: Hostile, outcome: Outcome, study: Path, before: dict[str, Any]
) -> list[str]:
    after = snapshot(study)
    wrong = ["pickled code ran"] if any(CANARY in name for name in after) else []
    outputs = _outputs(hostile)
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    for name in sorted(changed):
        base = name.removeprefix(".")
        # The folder of an output may be made for it.
        mine = any(
            base.startswith(output) or name.startswith(output) or output.startswith(f"{name}/")
            for output in outputs
        )
        if not mine:
            wrong.append(f"{'wrote' if name in after else 'removed'} {name}")
        elif name in after and name not in before and re.search(r"\.tmp|~$|\.part$", name):
            wrong.append(f"left {name}")
        elif (
            outcome.status == 2
            and name not in before
            and not name.endswith(".lock")
            and hostile.argv[0] != "train"
        ):
            wrong.append(f"refused, but wrote {name}")
        elif name in after and not _is_readable(study, name):
            wrong.append(f"half-written: {name}")
    return wrong


def _is_readable(study: Path, name: str) -> bool:
    """Whether a file that was written is whole, by its own reader, in a process of its own."""
    path = study / name
    if path.is_dir() or ".parts" in name or path.is_symlink():
        return True

    def work() -> int:
        os.close(1)
        os.open("/dev/null", os.O_WRONLY)
        return 0 if _read(path) else 3

    _, status = os.waitpid(forked(work), 0)
    return os.waitstatus_to_exitcode(status) == 0


def _read(path: Path) -> bool:
    if path.suffix == ".png":
        from PIL import Image

        with Image.open(path) as picture:
            picture.load()
    elif path.suffix == ".h5":
        from landscape.pipeline import describe

        return bool(describe(path))
    elif path.suffix == ".pt":
        from landscape.clip.checkpoint import read_checkpoint

        return bool(read_checkpoint(path))
    elif path.suffix in (".yaml", ".yml"):
        import yaml

        return isinstance(yaml.safe_load(path.read_text()), dict)
    elif path.suffix == ".json":
        return json.loads(path.read_text()) is not None
    elif path.suffix in (".html", ".svg", ".pdf"):
        ends = {".html": b"</html>", ".svg": b"</svg>", ".pdf": b"%%EOF"}
        return path.read_bytes().rstrip().endswith(ends[path.suffix])
    return True
