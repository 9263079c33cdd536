"""Two versions of the package side by side: the tree of a commit, and processes that measure with
it in turn.

A script that measures is its own worker: started with `--work`, it reads one line per measurement
and answers with one line of JSON. Imports nothing of the package, so that it serves any version.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
THREAD_VARIABLES = ("OMP_", "MKL_", "OPENBLAS_", "KMP_", "GOMP_", "NUMBA_NUM_", "NUMBA_THREADING_")


class WorkerFailed(Exception):
    """A worker ended without an answer; the message holds the end of what it wrote."""


@contextmanager
def source_of(commit: str | None) -> Iterator[Path]:
    """The tree of a commit in a temporary folder; None for this checkout."""
    if commit is None:
        yield ROOT
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "archive", commit, "landscape"], cwd=ROOT, check=True, capture_output=True
        ).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as members:
            members.extractall(folder, filter="data")
        yield Path(folder)


class Worker:
    """A process that measures with the package at `source`.

    Args:
        script: What is started, with `arguments`.
        threads: Of torch; None for the default of a process without any variable that sets threads.
    """

    def __init__(
        self, script: str, arguments: Sequence[object], *, source: Path, threads: int | None = None
    ) -> None:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(THREAD_VARIABLES)
        }
        environment["PYTHONPATH"] = os.pathsep.join([str(source), str(ROOT / "experiments")])
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, script, *map(str, arguments)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def ask(self, request: object) -> Any:
        """One measurement: the answer to a line.

        Raises:
            WorkerFailed: If the process ended without one.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            self._log.seek(0)
            raise WorkerFailed(self._log.read()[-2000:])
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()


@contextmanager
def workers(
    script: str, arguments: dict[Path, Sequence[object]], *, threads: int | None = None
) -> Iterator[dict[Path, Worker]]:
    """A worker for each tree, with arguments of its own."""
    with ExitStack() as stack:
        started = {}
        for source, given in arguments.items():
            started[source] = Worker(script, given, source=source, threads=threads)
            stack.callback(started[source].close)
        yield started


def requests() -> Iterator[Any]:
    """In a worker: what is to be measured, line by line."""
    for line in sys.stdin:
        yield json.loads(line)


@contextmanager
def busy_process() -> Iterator[None]:
    """One process that takes all of a core, wherever the system puts it."""
    process = subprocess.Popen(["sh", "-c", "while :; do :; done"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def commit_of(source: str) -> str:
    """The short name of a commit."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", source],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()
