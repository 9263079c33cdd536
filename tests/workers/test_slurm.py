"""Workers as jobs of a real Slurm of one node: the values, a killed child, a cancelled job, and
what Slurm refuses.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from landscape.errors import WorkerError
from landscape.workers import InlinePool, dispatch
from landscape.workers.dask_pool import start_cluster
from tests.helpers import worker_calls
from tests.helpers.processes import (
    environment_of_scripts,
    is_running,
    require_dask,
    results_of,
    wait_until,
)
from tests.helpers.slurm_node import missing, slurm_node

require_dask()
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(missing()), reason=missing())]

FILE = """
cluster: slurm
workers: {workers}
cores: 1
memory: 500MB
walltime: "00:10:00"
interface: lo
queue: {queue}
local_directory: {folder}/dask
log_directory: {folder}/logs
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with slurm_node(tmp_path_factory.mktemp("slurm")) as variables:
        yield variables


@pytest.fixture
def write(slurm: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a cluster file; jobs find the modules of the tests."""
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", environment_of_scripts()["PYTHONPATH"])
    monkeypatch.chdir(tmp_path)

    def write_file(*, workers: int, queue: str = "debug") -> Path:
        path = tmp_path / "cluster.yaml"
        path.write_text(FILE.format(workers=workers, queue=queue, folder=tmp_path))
        return path

    return write_file


def job_ids() -> list[str]:
    return subprocess.run(
        ["squeue", "-h", "-o", "%i"], capture_output=True, text=True, check=True
    ).stdout.split()


def test_jobs_of_slurm_calculate_the_same_bits_and_a_killed_child_costs_nothing(write, tmp_path):
    here = results_of(dispatch({"a": range(30)}, InlinePool(), worker_calls.seeded_bytes))
    with start_cluster(write(workers=min(2, os.cpu_count() or 1))) as pool:
        assert results_of(dispatch({"a": range(30)}, pool, worker_calls.seeded_bytes)) == here
        results = results_of(
            dispatch({str(tmp_path / "died"): range(30)}, pool, worker_calls.die_once)
        )
        assert (tmp_path / "died").exists() and sorted(results.values()) == [
            item**2 for item in range(30)
        ]
    wait_until(lambda: not job_ids())


def test_a_cancelled_job_is_replaced_and_nothing_is_lost(write, monkeypatch):
    import dask

    monkeypatch.setattr("landscape.workers.dask_pool._RENEWAL_INTERVAL", 1.0)
    results: dict[Any, Any] = {}
    cancelled: list[str] = []
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "0.5s"}):
        with start_cluster(write(workers=1)) as pool:
            for unit in dispatch({"a": range(60)}, pool, worker_calls.pid_slowly):
                results |= results_of([unit])
                if len(results) >= 5 and not cancelled:
                    cancelled = job_ids()
                    subprocess.run(["scancel", *cancelled], check=True)
    pids = set(results.values())
    assert len(results) == 60 and len(cancelled) == 1 and len(pids) == 2
    wait_until(lambda: not any(map(is_running, pids)))


def test_a_partition_that_slurm_does_not_have_is_one_line(write):
    with pytest.raises(
        WorkerError, match="slurm has refused a job: .*invalid partition specified: nowhere"
    ) as caught:
        start_cluster(write(workers=1, queue="nowhere"))
    assert "\n" not in str(caught.value)
