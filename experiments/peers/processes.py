"""Work done in processes of its own, so that its peak memory is its own, and a crash is a row and
not the end.

A task is the dotted name of a function of the folder experiments; its arguments and its result
travel as JSON.
"""

import importlib
import json
import math
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import landscape

EXPERIMENTS = Path(__file__).parents[1]


class TaskFailed(Exception):
    """A process ended without a result; the message says why in one line."""


# Tensors go back to the system as soon as they are freed, so that the resident memory is what is in
# use.
MEMORY_OF_TENSORS = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16), "MALLOC_MMAP_MAX_": str(1 << 20)}


def run_task(
    task: str, arguments: dict[str, Any], *, python: str = sys.executable, threads: int = 1
) -> Any:
    """The result of `task(**arguments)` in a new process.

    Raises:
        TaskFailed: If it ends without a result.
    """
    return run_together(task, arguments, 1, python=python, threads=threads)[0]


def run_together(
    task: str,
    arguments: dict[str, Any],
    count: int,
    *,
    python: str = sys.executable,
    threads: int = 1,
    variables: Mapping[str, str] | None = None,
) -> list[Any]:
    """The results of `task(**arguments)` in new processes that can join a process group by the
    variables of torchrun.

    Raises:
        TaskFailed: If one ends without a result; the others are ended.
    """
    paths = [
        str(EXPERIMENTS),
        str(Path(landscape.__file__).parents[1]),
        os.environ.get("PYTHONPATH", ""),
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": str(threads),
        "PYTHONWARNINGS": "ignore",
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        **(variables or {}),
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "arguments.json").write_text(json.dumps(arguments))
        running = [_started(task, Path(folder), python, environment, rank) for rank in range(count)]
        try:
            for rank, process in enumerate(running):
                if process.wait() or not _answer(Path(folder), rank).exists():
                    raise TaskFailed(
                        reason(_errors(Path(folder), rank).read_text(), process.returncode)
                    )
        finally:
            for process in running:
                process.kill()
                process.wait()
        return [json.loads(_answer(Path(folder), rank).read_text()) for rank in range(count)]


def _answer(folder: Path, rank: int) -> Path:
    return folder / f"answer_{rank}.json"


def _errors(folder: Path, rank: int) -> Path:
    return folder / f"errors_{rank}.txt"


def _started(
    task: str, folder: Path, python: str, environment: Mapping[str, str], rank: int
) -> subprocess.Popen[bytes]:
    with (
        open(folder / "arguments.json", "rb") as arguments,
        open(_errors(folder, rank), "wb") as errors,
    ):
        return subprocess.Popen(
            [python, "-m", "peers.processes", task, str(_answer(folder, rank))],
            stdin=arguments,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )


def reason(stderr: str, status: int) -> str:
    """The exception that ended a process in one line, or else the signal, the last line, the exit
    status.
    """
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
    """Write a document; numbers that JSON does not know, such as those of a run that failed, become
    null.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [plain(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    path.write_text(json.dumps(plain(document), indent=1, allow_nan=False) + "\n")


def peak_mebibytes() -> float:
    """Largest resident memory of this process so far.

    Not ru_maxrss where it can be helped: on Linux a child inherits that of the process that started
    it.
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
