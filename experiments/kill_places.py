"""What kill_campaign.py kills: processes that bear a tag, a scheduler with its workers, jobs of a
Slurm.

Each of them logs the records that it computes.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TAG = "LANDSCAPE_KILL_CAMPAIGN"
SERVERS = f"{os.getpid()}-servers"
CLUSTER = """
cluster: {kind}
workers: 2
cores: 1
memory: {memory}
walltime: "00:30:00"
interface: lo
local_directory: {folder}/dask
log_directory: {folder}/logs
scheduler_options: {{dashboard_address: null}}
"""
SITE = """
import functools, importlib.machinery, os, sys, time

log = os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
unit = 0

def note(what, key):
    os.write(log, f"{{what}} {{key}} {{os.getpid()}} {{unit}} {{time.monotonic()}}\\n".encode())

def count_units(function):
    @functools.wraps(function)
    def counted(*arguments, **options):
        global unit
        unit += 1
        return function(*arguments, **options)
    return counted

def note_record(function):
    @functools.wraps(function)
    def noted(bench, index):
        key = f"{{bench.series}}/{{bench.checkpoint.epoch}}/{{index}}"
        note("begin", key)
        record = function(bench, index)
        note("end", key)
        return record
    return noted

WRAPPERS = {{
    "landscape.pipeline.session": ("measure_unit", count_units),
    "landscape.pipeline.spectra_bench": ("_measure", note_record),
}}

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in WRAPPERS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        execute = spec.loader.exec_module
        def execute_and_wrap(module):
            execute(module)
            attribute, wrapper = WRAPPERS[name]
            setattr(module, attribute, wrapper(getattr(module, attribute)))
        spec.loader.exec_module = execute_and_wrap
        return spec

sys.meta_path.insert(0, Finder)
"""


@dataclass(frozen=True)
class Process:
    """A process of the campaign: "parent", "child", "worker", "nanny", "scheduler" or "other"."""

    pid: int
    parent: int
    kind: str


def kind_of(arguments: list[str]) -> str:
    # What a nanny starts, and starts again.
    if any("spawn_main" in argument for argument in arguments):
        return "worker"
    modules = {"landscape": "parent", "landscape.workers.serve": "child"}
    modules |= {
        "distributed.cli.dask_worker": "worker",
        "distributed.cli.dask_scheduler": "scheduler",
    }
    module = arguments[arguments.index("-m") + 1] if "-m" in arguments else ""
    return "nanny" if "--nanny" in arguments else modules.get(module, "other")


def processes(tag: str) -> list[Process]:
    """Every process that has inherited the tag and is no zombie."""
    result = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{TAG}={tag}".encode() not in (folder / "environ").read_bytes().split(b"\0"):
                continue
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            arguments = (folder / "cmdline").read_bytes().decode().split("\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if state != "Z":
            result.append(Process(int(folder.name), int(parent), kind_of(arguments)))
    return result


def is_below(process: Process, ancestor: int, there: list[Process]) -> bool:
    parents = {one.pid: one.parent for one in there}
    pid: int | None = process.pid
    while pid is not None and pid != ancestor:
        pid = parents.get(pid)
    return pid is not None


class Servers:
    """A scheduler of Dask and two workers, as people start them by hand."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.file = folder / "scheduler.json"
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def keep(self) -> None:
        """Start what does not run; a new scheduler gets new workers."""
        if (scheduler := self.running.get("scheduler")) is None or scheduler.poll() is not None:
            self.close()
            self.file.unlink(missing_ok=True)
            options = [
                "--host",
                "127.0.0.1",
                "--port",
                "0",
                "--no-dashboard",
                "--scheduler-file",
                str(self.file),
            ]
            self.start("scheduler", "dask_scheduler", options)
        options = [
            "--no-nanny",
            "--no-dashboard",
            "--nthreads",
            "1",
            "--scheduler-file",
            str(self.file),
        ]
        for name in ("worker 1", "worker 2"):
            if name not in self.running or self.running[name].poll() is not None:
                self.start(
                    name, "dask_worker", [*options, "--local-directory", str(self.folder / "dask")]
                )

    def start(self, name: str, module: str, options: list[str]) -> None:
        command = [sys.executable, "-m", f"distributed.cli.{module}", *options]
        quiet: dict[str, Any] = {
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
            "cwd": self.folder,
        }
        self.running[name] = subprocess.Popen(command, env=self.environment, **quiet)

    def close(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait()
        self.running.clear()


@contextmanager
def at_place(
    place: str, folder: Path, environment: dict[str, str]
) -> Iterator[tuple[list[str], Callable[[], None]]]:
    """Start what a place needs; yields the options of a run there, and what is to be called while
    it lasts.

    Args:
        environment: Of the runs; gets what they need.
    """
    if place == "local":
        yield ["--workers", "2"], lambda: None
    elif place == "scheduler":
        servers = Servers(folder, environment | {TAG: SERVERS})
        try:
            yield ["--scheduler", str(servers.file)], servers.keep
        finally:
            servers.close()
    else:
        with slurm(folder / "slurm") if place == "slurm" else nullcontext({}) as variables:
            environment |= variables
            file = folder / "cluster.yaml"
            kind, memory = ("slurm", "500MB") if place == "slurm" else ("local", "2GB")
            file.write_text(CLUSTER.format(kind=kind, memory=memory, folder=folder))
            yield ["--cluster", str(file)], lambda: None


def slurm(folder: Path) -> AbstractContextManager[dict[str, str]]:
    """A Slurm of one node; the variables that its commands need."""
    sys.path.insert(0, str(ROOT))
    from tests.helpers.slurm_node import missing, slurm_node

    if missing():
        raise SystemExit(missing())
    return slurm_node(folder)


def environment_of(folder: Path, log: Path) -> dict[str, str]:
    """The variables of processes that log what they compute."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(SITE.format(log=str(log)))
    path = os.pathsep.join(map(str, (folder / "site", ROOT)))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
