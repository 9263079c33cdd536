"""Pools over Dask: the values, deaths of workers, of their children and of the scheduler, and what
is refused.
"""

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import landscape
from landscape.errors import MissingDependencyError, WorkerError
from landscape.workers import InlinePool, Lost, call_all, dispatch
from landscape.workers.cluster_file import read_cluster_file
from landscape.workers.dask_pool import DaskPool, connect_scheduler, start_cluster
from tests.helpers import worker_calls
from tests.helpers.processes import (
    environment_of_scripts,
    is_running,
    require_dask,
    results_of,
    run_script,
    wait_until,
)

distributed = pytest.importorskip("distributed")
require_dask()

LOCAL = (
    "cluster: local\nworkers: 2\ncores: 1\nmemory: 2GB\ninterface: lo\nscheduler_options: "
    "{dashboard_address: null}\n"
)
SCRIPT = """
from pathlib import Path
from landscape.workers import dispatch
from landscape.workers.dask_pool import start_cluster
from tests.helpers.worker_calls import multiples
with start_cluster(Path({path!r})) as pool:
    units = dispatch({{2: range(10), 3: range(10)}}, pool, multiples)
    print(sum(result for unit in units for result in unit.results))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two Dask workers in processes of their own."""
    folder = str(tmp_path_factory.mktemp("dask"))
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address=None,
        local_directory=folder,
    ) as cluster:
        yield cluster


@pytest.fixture
def pool(cluster: Any) -> Iterator[DaskPool]:
    with connect_scheduler(cluster.scheduler_address) as pool:
        yield pool


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write a cluster file."""

    def write_text(text: str) -> Path:
        path = tmp_path / "cluster.yaml"
        path.write_text(text)
        return path

    return write_text


def pids_of(cluster: Any) -> dict[str, int]:
    with distributed.Client(cluster, set_as_default=False) as client:
        return client.run(os.getpid)


def test_values_are_bit_equal_to_this_process_although_dask_draws_random_numbers(pool):
    tasks = {"a": range(30), "b": range(30, 40)}
    here = results_of(dispatch(tasks, InlinePool(), worker_calls.seeded_bytes))
    assert results_of(dispatch(tasks, pool, worker_calls.seeded_bytes)) == here


def test_both_workers_calculate_in_a_child_each_which_ends_with_the_pool(cluster):
    workers = pids_of(cluster)
    with connect_scheduler(cluster.scheduler_address) as pool:
        wait_until(lambda: len(pool.workers()) == 2)
        children = set(
            results_of(dispatch({"a": range(40)}, pool, worker_calls.pid_slowly)).values()
        )
        assert len(children) == 2 and not children & set(workers.values()) and not pool.waiting
    for pid in children:
        wait_until(lambda pid=pid: not is_running(pid))
    assert pids_of(cluster) == workers


def test_an_error_of_the_function_comes_back_with_its_type(pool):
    with pytest.raises(worker_calls.TwoWordError, match="item 13: bad luck"):
        list(dispatch({"a": range(20)}, pool, worker_calls.fail_at_poison))
    assert sorted(call_all(pool, abs, [(-1,), (-2,)])) == [(0, 1), (1, 2)]


def test_a_call_cancelled_while_its_result_is_collected_stops_no_later_call(pool):
    """Five collections at a time go to the scheduler; those that wait share a task."""
    in_loop = asyncio.run_coroutine_threadsafe
    semaphore, loop = pool._client._gather_semaphore, pool._loop
    wait_until(lambda: pool.workers())
    for _ in range(5):
        in_loop(semaphore.acquire(), loop).result(10)
    cancelled = pool.submit(pool.workers()[0], abs, -1)
    wait_until(lambda: pool._client._gather_future)
    cancelled.cancel()
    later = pool.submit(pool.workers()[0], abs, -2)
    for _ in range(5):
        loop.call_soon_threadsafe(semaphore.release)
    assert later.result(30) == 2


def test_a_child_killed_on_a_worker_costs_no_item_and_a_poisonous_item_itself_alone(pool, tmp_path):
    results = results_of(dispatch({str(tmp_path / "died"): range(30)}, pool, worker_calls.die_once))
    assert sorted(results.values()) == [item**2 for item in range(30)]
    results = results_of(dispatch({"a": range(30)}, pool, worker_calls.die_at_poison))
    lost = results.pop(("a", worker_calls.POISON))
    assert (
        isinstance(lost, Lost)
        and "worker tcp://" in lost.reason
        and "was killed by signal 9" in lost.reason
    )
    assert results == {("a", item): item**2 for item in range(30) if item != worker_calls.POISON}


def test_a_killed_worker_costs_no_item_and_its_child_does_not_stay(cluster, pool):
    results = {}
    for number, unit in enumerate(dispatch({"a": range(60)}, pool, worker_calls.pid_slowly)):
        results.update(results_of([unit]))
        if number == 5:
            address, pid = min(pids_of(cluster).items())
            os.kill(pid, signal.SIGKILL)
    assert len(results) == 60
    for child in set(results.values()):
        children = set(worker_children(cluster))
        wait_until(
            lambda child=child, children=children: child in children or not is_running(child)
        )


def test_an_item_that_kills_the_workers_themselves_is_lost_alone(pool):
    results = results_of(dispatch({"a": range(20)}, pool, worker_calls.kill_parent_at_poison))
    lost = results.pop(("a", worker_calls.POISON))
    assert isinstance(lost, Lost) and "has gone in the middle of its work" in lost.reason
    assert results == {("a", item): item**2 for item in range(20) if item != worker_calls.POISON}


def worker_children(cluster: Any) -> list[int]:
    """Number the children that the workers that are there have."""
    pids = []
    for worker in pids_of(cluster).values():
        for task in Path(f"/proc/{worker}/task").iterdir():
            pids += map(int, (task / "children").read_text().split())
    return pids


def test_a_worker_with_another_version_is_refused_by_name(cluster, monkeypatch):
    version = landscape.__version__
    monkeypatch.setattr(landscape, "__version__", "9.9")
    with connect_scheduler(cluster.scheduler_address) as pool:
        with pytest.raises(WorkerError) as caught:
            list(dispatch({"a": range(3)}, pool, worker_calls.squares))
    message = str(caught.value)
    assert (
        message.startswith("worker tcp://127.0.0.1:")
        and f": landscape {version}, but 9.9 here" in message
    )
    assert "\n" not in message and caught.value.exit_code == 2


@pytest.mark.parametrize(
    "address, words",
    [
        ("tcp://127.0.0.1:1", "no Dask scheduler answers at tcp://127.0.0.1:1"),
        ("smoke://127.0.0.1:1", "no Dask scheduler answers at smoke://"),
        ("/nowhere/scheduler.json", "no scheduler file"),
    ],
)
def test_a_scheduler_that_is_not_there_is_one_line(address, words):
    with pytest.raises(WorkerError) as caught:
        connect_scheduler(address, timeout=1.0)
    assert str(caught.value).startswith(address) and words in str(caught.value)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_a_scheduler_file_without_an_address_is_refused(tmp_path):
    path = tmp_path / "scheduler.json"
    path.write_text("{}")
    with pytest.raises(WorkerError, match="no scheduler file .*'address'"):
        connect_scheduler(str(path), timeout=1.0)


def test_the_end_of_the_scheduler_is_one_line_and_no_hang(tmp_path):
    path = tmp_path / "scheduler.json"
    options: dict[str, Any] = {
        "env": environment_of_scripts(),
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
        "cwd": tmp_path,
    }
    program = [
        sys.executable,
        "-m",
        "distributed.cli.dask_scheduler",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--no-dashboard",
    ]
    scheduler = subprocess.Popen([*program, "--scheduler-file", str(path)], **options)
    program = [
        sys.executable,
        "-m",
        "distributed.cli.dask_worker",
        "--no-nanny",
        "--no-dashboard",
        "--nthreads",
        "1",
    ]
    worker = subprocess.Popen([*program, "--scheduler-file", str(path)], **options)
    try:
        with connect_scheduler(str(path)) as pool:
            assert json.loads(path.read_text())["address"].startswith("tcp://127.0.0.1")
            done = []
            with pytest.raises(WorkerError, match="the Dask scheduler has gone"):
                for unit in dispatch({"a": range(10**6)}, pool, worker_calls.pid_slowly):
                    done.append(unit)
                    if len(done) == 3:
                        scheduler.kill()
        assert len(done) >= 3
    finally:
        for process in (worker, scheduler):
            process.kill()
            process.wait()


def test_a_cluster_file_starts_workers_that_calculate_for_a_script_without_a_guard(tmp_path, write):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(path=str(write(LOCAL))))
    assert run_script([sys.executable, str(script)], cwd=tmp_path) == "225\n"


def test_jobs_that_end_are_replaced_and_nothing_is_lost(write, monkeypatch, tmp_path):
    import dask

    monkeypatch.setattr("landscape.workers.dask_pool._RENEWAL_INTERVAL", 1.0)
    monkeypatch.setenv("PYTHONPATH", environment_of_scripts()["PYTHONPATH"])
    monkeypatch.chdir(tmp_path)
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "0.5s"}):
        with start_cluster(write(LOCAL.replace("workers: 2", "workers: 1"))) as pool:
            results, killed = {}, []
            for unit in dispatch({"a": range(40)}, pool, worker_calls.pid_slowly):
                results.update(results_of([unit]))
                if len(results) >= 5 and not killed:
                    killed = [job.job_id for job in pool._cluster.workers.values()]
                    os.killpg(int(killed[0]), signal.SIGKILL)
            assert len(results) == 40 and len(set(results.values())) == 2
            jobs = [job.job_id for job in pool._cluster.workers.values()]
            assert len(jobs) == 1 and jobs != killed
    wait_until(lambda: not is_running(int(jobs[0])))


@pytest.mark.parametrize(
    "text, words",
    [
        ("workers: 2\ncores: 1\nmemory: 1GB\n", "'cluster' is missing: expected one of slurm, pbs"),
        ("cluster: slrum\nworkers: 2\n", "Did you mean 'slurm'?"),
        (
            "cluster: slurm\nworkers: 2\ncores: 1\nmemory: 1GB\nqeue: gpu\n",
            "Did you mean 'queue'?",
        ),
        (
            "cluster: pbs\nworkers: 2\ncores: 1\nmemory: 1GB\njob_mem: 1GB\n",
            "unknown key 'job_mem'",
        ),
        ("cluster: slurm\nworkers: 2\nmemory: 1GB\n", "'cores' is missing"),
        (
            "cluster: slurm\nworkers: many\ncores: 1\nmemory: 1GB\n",
            "workers: 'many', expected a whole number, at least 1",
        ),
        (
            "cluster: slurm\nworkers: 0\ncores: 1\nmemory: 1GB\n",
            "workers: 0, expected a whole number, at least 1",
        ),
        (
            "cluster: slurm\nworkers: true\ncores: 1\nmemory: 1GB\n",
            "workers: True, expected a whole number",
        ),
        (
            "cluster: slurm\nworkers: 2\ncores: 1\nmemory: 1GB\nwalltime: 4:00:00\n",
            "walltime: 14400, expected a text in quotes",
        ),
        (
            "cluster: slurm\nworkers: 2\ncores: 1\nmemory: 1GB\njob_extra_directives: -q\n",
            "expected a list",
        ),
        ("- slurm\n", "list, but a mapping"),
        ("cluster: [slurm\n", "no YAML"),
    ],
)
def test_a_wrong_cluster_file_is_one_line_that_names_file_and_key(write, text, words):
    path = write(text)
    with pytest.raises(WorkerError) as caught:
        start_cluster(path)
    assert (
        str(caught.value).startswith(f"{path}: ")
        and words in str(caught.value)
        and "\n" not in str(caught.value)
    )


def test_a_missing_cluster_file_is_one_line(tmp_path):
    with pytest.raises(WorkerError, match="cannot be read: No such file"):
        read_cluster_file(tmp_path / "none.yaml")


def test_every_kind_of_cluster_takes_the_keys_of_its_queue(write):
    from landscape.workers.cluster_file import CLUSTERS, keys_of

    for kind in CLUSTERS:
        assert {
            "cores",
            "memory",
            "interface",
            "job_script_prologue",
            "scheduler_options",
        } <= keys_of(kind)
        assert read_cluster_file(write(LOCAL.replace("local", kind))).kind == kind
    assert (
        "job_cpu" in keys_of("slurm")
        and "resource_spec" in keys_of("pbs")
        and "disk" in keys_of("htcondor")
    )


def test_a_queue_that_refuses_the_job_is_one_line_with_its_words(
    write, tmp_path, monkeypatch, capfd
):
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(
        "#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpu' >&2\nexit 1\n"
    )
    sbatch.chmod(sbatch.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    path = write(LOCAL.replace("local", "slurm"))
    with pytest.raises(
        WorkerError, match="slurm has refused a job: .*invalid partition specified: gpu"
    ) as caught:
        start_cluster(path)
    assert "\n" not in str(caught.value)
    time.sleep(0.3)
    assert capfd.readouterr().err == ""


def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with pytest.raises(MissingDependencyError, match="pip install distributed dask-jobqueue"):
        connect_scheduler("tcp://127.0.0.1:1")


def test_a_child_without_calls_ends_after_some_time_and_not_between_two(monkeypatch):
    from landscape.workers import dask_side

    closed = []
    monkeypatch.setattr(dask_side, "_IDLE", 0.3)
    monkeypatch.setattr(dask_side, "close_child", lambda: closed.append(time.monotonic()))
    monkeypatch.setattr(dask_side, "_calculate", lambda num_threads, call: time.sleep(0.1) or call)
    for _ in range(6):
        assert dask_side.calculate(1, b"call") == b"call"
        # Calls of 0.6 s in all, never 0.3 s apart.
        assert not closed
    ended = time.monotonic()
    wait_until(lambda: closed)
    assert closed[0] - ended > 0.2


def test_the_handler_of_ctrl_c_outlives_the_import_of_dask_jobqueue():
    code = """
import signal
from landscape.workers.cluster_file import cluster_class
handler = lambda *_: None
signal.signal(signal.SIGINT, handler)
cluster_class("slurm")
print(signal.getsignal(signal.SIGINT) is handler)
"""
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert finished.stdout == "True\n"
