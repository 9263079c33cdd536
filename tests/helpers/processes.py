"""What tests of worker processes share: scripts, whether a process runs, and results by item."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from landscape.workers import Done
from landscape.workers.cluster_file import import_dask_jobqueue
from tests.helpers.folders import ROOT


def require_dask() -> None:
    """Skip where Dask is not installed; otherwise load it, and keep the handler of Ctrl-C."""
    try:
        import_dask_jobqueue()
    except ImportError as error:
        pytest.skip(f"{error.name} is not installed", allow_module_level=True)


def environment_of_scripts() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def helper_command(program: str, *arguments: object) -> list[str]:
    """Return the command that runs a module of tests.helpers as a program."""
    return [sys.executable, "-m", f"tests.helpers.{program}", *map(str, arguments)]


def run_script(arguments: list[str], **options: Any) -> str:
    result = subprocess.run(
        arguments,
        env=environment_of_scripts(),
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def is_running(pid: int) -> bool:
    """Tell whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(400):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("nothing happened in 20 s")


def results_of(done: Iterable[Done[Any]]) -> dict[Any, Any]:
    results: dict[Any, Any] = {}
    for unit in done:
        for item, result in zip(unit.items, unit.results, strict=True):
            assert (unit.task, item) not in results
            results[unit.task, item] = result
    return results
