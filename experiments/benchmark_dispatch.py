"""What a unit costs the coordinator: no-op units that return a record of 2 kB, through Dask and
through local children.

    python experiments/benchmark_dispatch.py                            # a few minutes
    python experiments/benchmark_dispatch.py --units 100000 --workers 2 # one configuration

Scheduler, client and dispatcher live in one process, whose CPU time is divided by the number of
units; the workers are processes of their own (jobs of `cluster: local`). Every unit has one item,
as when items are long. Memory is the resident set of the coordinator, before the first unit, on the
way, and at its highest, read every 500 units. Each row is a process of its own.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from landscape.workers import LocalPool, Pool, dispatch

RECORD_BYTES = 2_100
ITEMS_OF_A_TASK = 200
FILE = (
    "cluster: local\nworkers: {workers}\ncores: 1\nmemory: 1GB\ninterface: lo\nscheduler_options: "
    "{{dashboard: false}}\n"
)


@dataclass(frozen=True)
class Row:
    """Costs of one run: CPU milliseconds a unit of the coordinator, seconds of the clock, and
    MiB.
    """

    pool: str
    workers: int
    units: int
    cpu_ms: float
    seconds: float
    before: float
    peak: float
    after: dict[int, float]


def no_op(task: str, items: tuple[int, ...]) -> list[bytes]:
    return [os.urandom(RECORD_BYTES) for _ in items]


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_pool(kind: str, num_workers: int) -> Pool:
    if kind == "local":
        return LocalPool(num_workers)
    from landscape.workers.dask_pool import start_cluster

    path = Path("cluster.yaml")
    path.write_text(FILE.format(workers=num_workers))
    return start_cluster(path)


def measure(kind: str, num_workers: int, num_units: int) -> Row:
    """Run the units and measure this process, from the moment when all workers are there."""
    tasks = {
        f"task {begin}": range(min(ITEMS_OF_A_TASK, num_units - begin))
        for begin in range(0, num_units, ITEMS_OF_A_TASK)
    }
    pool = open_pool(kind, num_workers)
    try:
        while len(pool.workers()) < num_workers:
            time.sleep(0.2)
        # So that every child has started.
        for _ in dispatch({"first": range(8 * num_workers)}, pool, no_op, largest_unit=1):
            pass
        before = peak = resident_mib()
        after: dict[int, float] = {}
        begun, cpu = time.perf_counter(), time.process_time()
        for number, unit in enumerate(dispatch(tasks, pool, no_op, largest_unit=1), start=1):
            assert len(unit.results[0]) == RECORD_BYTES
            if number % 500 == 0:
                peak = max(peak, resident_mib())
            if number in (1_000, 10_000, 100_000, num_units) or number % 10_000 == 0:
                after[number] = resident_mib()
                print(f"{number} units, {after[number]:.0f} MiB", file=sys.stderr, flush=True)
        cpu, seconds = time.process_time() - cpu, time.perf_counter() - begun
        peak = max(peak, resident_mib())
    finally:
        pool.close()
    return Row(kind, num_workers, num_units, 1000 * cpu / num_units, seconds, before, peak, after)


def report(kind: str, num_workers: int, num_units: int) -> None:
    print(json.dumps(asdict(measure(kind, num_workers, num_units))))


def measure_apart(kind: str, num_workers: int, num_units: int) -> Row:
    """Measure in a process and a folder of their own."""
    code = f"import benchmark_dispatch as b; b.report({kind!r}, {num_workers}, {num_units})"
    here = Path(__file__).resolve().parent
    path = os.pathsep.join((str(here), str(here.parent)))
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": path},
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
        )
    if result.returncode:
        raise SystemExit(result.returncode)
    return Row(**json.loads(result.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, help="units of the one configuration to run")
    parser.add_argument("--workers", type=int, default=2, help="its workers")
    parser.add_argument("--pool", choices=("dask", "local"), default="dask")
    arguments = parser.parse_args()
    cases = [("dask", workers, 2_000) for workers in (1, 2, 4, 8)]
    cases += [("dask", 2, 1_000), ("dask", 2, 10_000), ("local", 2, 10_000)]
    if arguments.units:
        cases = [(arguments.pool, arguments.workers, arguments.units)]
    versions = f"Python {platform.python_version()}, distributed {version('distributed')}"
    print(f"{versions}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    heads = f"{'CPU ms a unit':>14} {'seconds':>8} {'MiB before':>11} {'at most':>8}  after units"
    print(f"{'pool':6} {'workers':>7} {'units':>7} {heads}")
    for case in cases:
        row = measure_apart(*case)
        numbers = f"{row.cpu_ms:14.2f} {row.seconds:8.1f} {row.before:11.0f} {row.peak:8.0f}"
        after = ", ".join(f"{number}: {mib:.0f}" for number, mib in row.after.items())
        print(f"{row.pool:6} {row.workers:7} {row.units:7} {numbers}  {after}", flush=True)


if __name__ == "__main__":
    main()
