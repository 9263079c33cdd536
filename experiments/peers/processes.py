"""Work done in a process of its own, so that its peak memory is its own, and a crash is a row and not the end.

A task is the dotted name of a function of the folder experiments; its arguments and its result travel as JSON.
"""

import importlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import landscape

EXPERIMENTS = Path(__file__).parents[1]


class TaskFailed(Exception):
    """A process ended without a result; the message says why in one line."""


def run_task(
    task: str, arguments: dict[str, Any], *, python: str = sys.executable, threads: int = 1
) -> Any:
    """The result of `task(**arguments)` in a new process.

    Raises:
        TaskFailed: If it ends without a result.
    """
    paths = [
        str(EXPERIMENTS),
        str(Path(landscape.__file__).parents[1]),
        os.environ.get("PYTHONPATH", ""),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONWARNINGS": "ignore",
    }
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        done = subprocess.run(
            [python, "-m", "peers.processes", task, str(answer)],
            input=json.dumps(arguments),
            env=environment,
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if done.returncode or not answer.exists():
            raise TaskFailed(reason(done.stderr, done.returncode))
        return json.loads(answer.read_text())


def reason(stderr: str, status: int) -> str:
    """The exception that ended a process in one line, or else the signal, the last line, the exit status."""
    lines = [line.rstrip() for line in stderr.splitlines() if line.strip()]
    named = [
        line
        for line in lines
        if re.match(r"[\w.]*(Error|Exception|Interrupt|NoConvergence)\b", line)
    ]
    if status < 0:
        return f"killed by signal {-status}"
    return (named or lines or [f"exit status {status}"])[-1][:300]


def write_json(path: Path, document: Any) -> None:
    """Write a document; numbers that JSON does not know, such as those of a run that failed, become null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [plain(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    path.write_text(json.dumps(plain(document), indent=1, allow_nan=False) + "\n")


def peak_mebibytes() -> float:
    """Largest resident memory of this process so far.

    Not ru_maxrss where it can be helped: on Linux a child inherits that of the process that started it.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
            1024 if sys.platform == "linux" else 1024**2
        )
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


def main() -> None:
    task, answer = sys.argv[1:]
    module, _, function = task.rpartition(".")
    result = getattr(importlib.import_module(module), function)(**json.load(sys.stdin))
    Path(answer).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
