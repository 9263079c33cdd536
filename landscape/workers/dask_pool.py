"""Pools of Dask workers: of a running scheduler, or jobs of a queue.

The coordinator hands out units and retries them; Dask transports them. Jobs are started by
dask_jobqueue. Each worker calculates in a child process (landscape.workers.dask_side), and joins
the pool when its versions equal those of this process.

A call is bound to its worker. When the worker has gone, the call that it was calculating raises
WorkerDied and those that waited are cancelled, so the coordinator knows which call to retry as a
failure. Dask's own mechanism, `allow_other_workers`, counts the death against all of them. It also
leaves calls pending for good whose worker was the last, even when others join (distributed 2026.8).
"""

import asyncio
import json
import logging
import math
import os
import pickle
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from landscape.errors import MissingDependencyError, WorkerDied, WorkerError
from landscape.workers.cluster_file import (
    ClusterSettings,
    cluster_class,
    import_dask_jobqueue,
    read_cluster_file,
)
from landscape.workers.messages import unpack
from landscape.workers.pools import Closing

if TYPE_CHECKING:
    from distributed import Client

# Seconds: to wait for a scheduler, between queries of its workers, between requests for workers
# that have gone, and to close connections.
_CONNECT_TIMEOUT = 8.0
_INTERVAL = 0.5
# Consecutive queries without an answer after which the scheduler counts as gone.
_MAX_MISSES = 3
_RENEWAL_INTERVAL = 20.0
_FAREWELL = 5.0
# Log messages per worker that a scheduler keeps; Dask's default is 1000.
_LOG_LENGTH = 50
# Seconds of a unit: much longer than Dask's overhead, and short beside the time limit of a job.
_UNIT_SECONDS = 60.0
# An expression, so that a worker can evaluate it whatever it has installed. It imports nothing
# heavy.
_VERSIONS = """{
    "Python": "%d.%d" % __import__("sys").version_info[:2],
    "landscape": __import__("landscape").__version__
        if __import__("importlib.util", fromlist=["util"]).find_spec("landscape") else None,
    "torch": next((d.version for d in
        __import__("importlib.metadata", fromlist=["metadata"]).distributions(name="torch")), None),
}"""


class DaskPool(Closing):
    """The workers of a Dask scheduler.

    Args:
        client: Connected to the scheduler; the pool closes it.
        cluster: The object that started the scheduler and is closed with the pool; None if another
            process started it.
        num_workers: Workers to ask the cluster for, again when some have gone.
        num_threads: Threads of torch in each worker's child.
    """

    window = 2
    unit_seconds = _UNIT_SECONDS

    def __init__(
        self, client: "Client", *, cluster: Any = None, num_workers: int = 0, num_threads: int = 1
    ) -> None:
        self._client = client
        self._cluster = cluster
        self._num_workers = num_workers
        self._num_threads = num_threads
        self._address = client.scheduler.address
        self._workers: tuple[str, ...] = ()
        self._problem: WorkerError | None = None
        self._renewed = time.monotonic()
        self._next_key = 0
        # In the order of submission, with the worker of each; used in Dask's loop alone.
        self._pending: dict[asyncio.Task[Any], str] = {}
        self._blamed: set[asyncio.Task[Any]] = set()
        self._versions = eval(_VERSIONS)
        # A scheduler without bokeh has an address, but shows nothing there.
        self.dashboard: str | None = (find_spec("bokeh") and client.dashboard_link) or None
        client.register_plugin(_dask_side().EndWithWorker(is_ours=cluster is not None))
        # Dask's loop, which runs in a thread of its own.
        self._loop: asyncio.AbstractEventLoop = getattr(client.loop, "asyncio_loop")
        self._watcher = asyncio.run_coroutine_threadsafe(self._watch(), self._loop)

    @property
    def waiting(self) -> bool:
        """Tell whether calculations wait for a worker."""
        return not self._workers

    def workers(self) -> tuple[str, ...]:
        """Return the addresses of the connected workers with matching versions.

        Raises:
            WorkerError: If a worker has other versions, or the scheduler has gone.
        """
        if self._problem is not None:
            raise self._problem
        return self._workers

    def submit(self, worker: str, function: Callable[..., Any], /, *args: Any) -> "Future[Any]":
        if self._problem is not None:
            raise self._problem
        call = pickle.dumps((function, args), pickle.HIGHEST_PROTOCOL)
        self._next_key += 1
        key = f"landscape-{self._client.id}-{self._next_key}"
        return asyncio.run_coroutine_threadsafe(self._calculate(key, worker, call), self._loop)

    def close(self) -> None:
        """Release the workers; end them if this process has started them."""
        self._watcher.cancel()
        try:
            asyncio.run_coroutine_threadsafe(self._leave(), self._loop).result(_FAREWELL)
        # A scheduler or worker that has gone, or that hangs, cannot be closed in order.
        except Exception:
            pass
        for part in (self._client, self._cluster):
            if part is not None:
                _close(part)

    async def _calculate(self, key: str, worker: str, call: bytes) -> Any:
        from distributed import CancelledError, KilledWorker

        # The scheduler is ending: `_watch` detects that and sets the error.
        if self._client.status != "running":
            await asyncio.sleep(_INTERVAL)
            raise asyncio.CancelledError
        task = asyncio.current_task()
        assert task is not None
        self._pending[task] = worker
        future = self._client.submit(
            _dask_side().calculate, self._num_threads, call, key=key, workers=[worker], pure=False
        )
        # Dask's client collects the results of several futures in a task that it shares. Cancelling
        # one await would cancel that for all, and for every call to come (distributed 2026.8).
        result = asyncio.ensure_future(future._result())
        result.add_done_callback(_retrieve_error)
        try:
            await asyncio.wait([result])
            return unpack(result.result())
        except KilledWorker as error:
            raise WorkerDied(f"worker {worker} died again and again with the same work") from error
        # The scheduler has dropped the call, or has gone: no work was lost. Sent again at once, the
        # call would come back at once, so wait.
        except CancelledError:
            await asyncio.sleep(_INTERVAL)
            raise asyncio.CancelledError from None
        except asyncio.CancelledError:
            if task not in self._blamed:
                raise
            raise WorkerDied(f"worker {worker} has gone in the middle of its work") from None
        finally:
            self._pending.pop(task, None)
            self._blamed.discard(task)
            # This was the last reference: the scheduler and the workers now drop the call.
            future.release()

    async def _leave(self) -> None:
        for task in tuple(self._pending):
            task.cancel()
        if self._cluster is None and self._workers:
            await self._client._run(
                _dask_side().close_child, workers=list(self._workers), on_error="ignore"
            )

    async def _watch(self) -> None:
        known: set[str] = set()
        misses = 0
        while self._problem is None:
            try:
                there = set(await self._client.scheduler.ncores())
                known = (known & there) | await self._accept(sorted(there - known))
                self._workers = tuple(sorted(known))
                self._give_up_calls_of_gone(there)
                self._renew()
                misses = 0
            # A busy scheduler may fail to answer once. No error may end this loop in silence.
            except Exception:
                misses += 1
                if misses >= _MAX_MISSES or self._client.status != "running":
                    self._end_without_scheduler()
            await asyncio.sleep(_INTERVAL)

    async def _accept(self, joining: list[str]) -> set[str]:
        """Return the workers with matching versions; record the first mismatch."""
        if not joining:
            return set()
        answers = await self._client._run(eval, _VERSIONS, workers=joining, on_error="return")
        accepted = set()
        for address, versions in answers.items():
            # The worker has gone meanwhile, or is too busy: it is asked again.
            if isinstance(versions, OSError):
                continue
            if versions == self._versions:
                accepted.add(address)
            elif self._problem is None:
                self._problem = _refusal(address, versions, self._versions)
        return accepted

    def _give_up_calls_of_gone(self, there: set[str]) -> None:
        gone: set[str] = set()
        for task, worker in tuple(self._pending.items()):
            if worker not in there:
                # The worker was calculating the first of its calls; the others waited.
                if worker not in gone:
                    self._blamed.add(task)
                gone.add(worker)
                task.cancel()

    def _renew(self) -> None:
        """Request workers again in place of those gone.

        A worker goes, for example, at the time limit of its job.
        """
        if self._cluster is None or len(self._workers) >= self._num_workers:
            self._renewed = time.monotonic()
        elif time.monotonic() - self._renewed > _RENEWAL_INTERVAL:
            self._renewed = time.monotonic()
            # This submits the jobs that have ended once more.
            self._cluster.scale(self._num_workers)

    def _end_without_scheduler(self) -> None:
        self._problem = WorkerError(
            f"{self._address}: the Dask scheduler has gone, so no worker can be reached. What is "
            "done is kept: start it again and run the same command."
        )
        for task in tuple(self._pending):
            task.cancel()


def connect_scheduler(
    address_or_file: str, *, num_threads: int = 1, timeout: float = _CONNECT_TIMEOUT
) -> DaskPool:
    """Connect to a running Dask scheduler.

    Args:
        address_or_file: tcp://host:port, tls://host:port, or the path of a scheduler file.
        num_threads: Threads of torch in each worker's child.
        timeout: Seconds to wait for the scheduler.

    Raises:
        WorkerError: If no scheduler answers.
        MissingDependencyError: If Dask is not installed.
    """
    client_class = _require_dask()
    deadline = time.monotonic() + timeout
    address = (
        address_or_file
        if "://" in address_or_file
        else _address_in(Path(address_or_file), deadline)
    )
    try:
        client = client_class(
            # Rounded, since Dask's message says it to the last digit.
            address,
            timeout=round(max(1.0, deadline - time.monotonic()), 1),
            set_as_default=False,
        )
    # ValueError: an unknown protocol; ImportError: the scheduler has a Dask that does not
    # understand ours.
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise WorkerError(
            f"{address_or_file}: no Dask scheduler answers at {address} ({_one_line(error)}). "
            "Start one with `dask scheduler`, or check host and port."
        ) from error
    return DaskPool(client, num_threads=num_threads)


def start_cluster(path: Path, *, num_threads: int = 1) -> DaskPool:
    """Start workers as jobs of a queue.

    Closing the pool ends them.

    Args:
        path: A cluster file (landscape.workers.cluster_file).
        num_threads: Threads of torch in each worker's child.

    Raises:
        WorkerError: If the file is wrong, or the queue refuses a job.
        MissingDependencyError: If Dask or dask_jobqueue is not installed.
    """
    client_class = _require_dask()
    import dask

    settings = read_cluster_file(path)
    try:
        with warnings.catch_warnings():
            # The scheduler then shows its page on another port.
            warnings.filterwarnings("ignore", message="Port .* is already in use")
            # The scheduler runs in this process and keeps that many messages for every worker.
            dask.config.set({"distributed.admin.low-level-log-length": _LOG_LENGTH})
            cluster = cluster_class(settings.kind)(**_options(settings, num_threads))
    # The constructors of dask_jobqueue and Dask raise errors of many types for a wrong value.
    except Exception as error:
        raise WorkerError(
            f"{path}: {settings.kind} cannot start workers: {_one_line(error)}."
        ) from error
    try:
        cluster.sync(_submit_jobs, cluster, settings.num_workers)
        # The scheduler runs on this machine, so results need not pass through it.
        client = client_class(
            cluster, timeout=_CONNECT_TIMEOUT, set_as_default=False, direct_to_workers=True
        )
    except Exception as error:
        _close(cluster)
        raise WorkerError(
            f"{path}: {settings.kind} has refused a job: {_one_line(error)}."
        ) from error
    return DaskPool(
        client, cluster=cluster, num_workers=settings.num_workers, num_threads=num_threads
    )


async def _submit_jobs(cluster: Any, num_workers: int) -> None:
    """Submit jobs as `scale` does, but wait until that is done.

    An error of the queue is then raised here.
    """
    num_jobs = math.ceil(num_workers / cluster._dummy_job.worker_processes)
    while len(cluster.worker_spec) < num_jobs:
        cluster.worker_spec.update(cluster.new_worker_spec())
    await cluster._correct_state()


def _options(settings: ClusterSettings, num_threads: int) -> dict[str, Any]:
    """Return the file's options, completed with two defaults.

    A worker for every `num_threads` cores, and a PYTHONPATH that leads to this package.
    """
    options = dict(settings.options)
    options.setdefault("processes", max(1, options["cores"] // num_threads))
    root = Path(__file__).resolve().parents[2]
    if "site-packages" not in root.parts:
        prologue = list(options.get("job_script_prologue", []))
        options["job_script_prologue"] = [
            *prologue,
            f'export PYTHONPATH="{root}${{PYTHONPATH:+:$PYTHONPATH}}"',
        ]
    return options


def _close(part: Any) -> None:
    try:
        part.close(timeout=_FAREWELL)
    # Errors that Dask raises where the other side has gone, or jobs never began, need no action.
    except Exception:
        pass


def _retrieve_error(task: "asyncio.Task[Any]") -> None:
    """Take the error of a result that nobody waits for, so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()


def _dask_side() -> ModuleType:
    """Import what needs Dask, which is optional."""
    from landscape.workers import dask_side

    return dask_side


def _require_dask() -> "type[Client]":
    """Import Dask, silence its log and return the client class."""
    try:
        import_dask_jobqueue()
        client_class: type[Client] = _dask_side().QuietClient
    except ImportError as error:
        raise MissingDependencyError(
            f"workers on other machines: {error.name} is needed and not installed. "
            "Run `pip install distributed dask-jobqueue`."
        ) from error
    # Dask reports on standard error, for example connections that end. This package reports them
    # itself, on one line.
    for name in (
        "distributed",
        *(name for name in logging.root.manager.loggerDict if name.startswith("distributed.")),
    ):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return client_class


def _address_in(path: Path, deadline: float) -> str:
    while True:
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["address"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            # A scheduler that is starting at this moment writes the file soon.
            if (
                time.monotonic() < deadline
                and not path.exists()
                and os.path.isdir(path.absolute().parent)
            ):
                time.sleep(_INTERVAL)
                continue
            raise WorkerError(
                f"{path}: no scheduler file ({_one_line(error)}), and no address such as "
                f"tcp://host:8786. Start one with `dask scheduler --scheduler-file {path}`."
            ) from error


def _refusal(address: str, theirs: Any, ours: dict[str, str]) -> WorkerError:
    if not isinstance(theirs, dict):
        return WorkerError(f"worker {address}: it cannot say its versions: {_one_line(theirs)}.")
    differences = [
        f"{name} {theirs[name] or 'is missing'}, but {ours[name]} here"
        for name in ours
        if theirs[name] != ours[name]
    ]
    return WorkerError(
        f"worker {address}: {'; '.join(differences)}: numbers could differ. Install the same "
        "versions on all machines."
    )


def _one_line(error: Any) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
