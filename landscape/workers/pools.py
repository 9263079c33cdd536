"""Pools of named workers that run calls.

A pool is this process, processes of this machine, or an executor of the caller's. Every pool is a
context manager; leaving it ends its workers at once.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from typing import Any, Protocol, Self

from landscape.errors import WorkerDied, WorkerError
from landscape.workers.child import ChildProcess

# Seconds of a unit for workers on this machine: 100 times the cost of passing it to a worker.
_LOCAL_UNIT_SECONDS = 2.0


class Pool(Protocol):
    """Workers that run the calls given to `submit`.

    Attributes:
        window: Units that a worker may hold at a time, running and waiting.
        unit_seconds: How long a unit should take; 0 for units of one item.
        dashboard: Address of a page that shows the workers, if there is one.
    """

    window: int
    unit_seconds: float
    dashboard: str | None

    def workers(self) -> tuple[str, ...]:
        """Return the names of the present workers.

        They may change between calls.
        """

    def submit(self, worker: str, function: Callable[..., Any], /, *args: Any) -> "Future[Any]":
        """Send a call to a worker, or to another if it has left.

        Returns:
            The call's result, or the error that it raised; WorkerDied where the worker ended during
            the call. The future is cancelled where the worker left before the call began. It never
            stays pending for good.
        """

    def close(self) -> None:
        """End the workers at once."""


class Closing:
    """A base class that closes the pool on leaving a `with` block."""

    def close(self) -> None:
        """End the workers at once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class InlinePool(Closing):
    """This process as a pool: `submit` calculates before it returns.

    An error that is no Exception, such as KeyboardInterrupt, is raised by `submit` itself.
    """

    window = 1
    unit_seconds = 0.0
    dashboard: str | None = None
    name = "this process"

    def workers(self) -> tuple[str, ...]:
        return (self.name,)

    def submit(self, worker: str, function: Callable[..., Any], /, *args: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future


class LocalPool(Closing):
    """Child processes on this machine, named "worker 1" and so on.

    Each starts with its first call.

    Args:
        num_workers: Number of processes.
        num_threads: Threads of torch in each.
        environments: Variables to set in each process, in order, such as CUDA_VISIBLE_DEVICES.
    """

    window = 2
    unit_seconds = _LOCAL_UNIT_SECONDS
    dashboard: str | None = None

    def __init__(
        self,
        num_workers: int,
        *,
        num_threads: int = 1,
        environments: Sequence[Mapping[str, str]] | None = None,
    ) -> None:
        if num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, got {num_workers}.")
        self._num_threads = num_threads
        self._environments = environments or ()
        self._children: dict[str, ChildProcess] = {}
        self.grow(num_workers)

    def grow(self, num_workers: int) -> None:
        """Grow the pool to at least this many workers."""
        if self._environments and num_workers > len(self._environments):
            raise ValueError(
                f"environments must be given for all {num_workers} workers, got "
                f"{len(self._environments)}."
            )
        for index in range(len(self._children), num_workers):
            name = f"worker {index + 1}"
            environment = self._environments[index] if self._environments else {}
            self._children[name] = ChildProcess(
                name, num_threads=self._num_threads, environment=environment
            )

    def workers(self) -> tuple[str, ...]:
        return tuple(self._children)

    @property
    def pids(self) -> dict[str, int | None]:
        """Return each worker's process number; None where it has not started."""
        return {name: child.pid for name, child in self._children.items()}

    def submit(self, worker: str, function: Callable[..., Any], /, *args: Any) -> "Future[Any]":
        return self._children[worker].submit(function, *args)

    def close(self) -> None:
        for child in self._children.values():
            child.close()


class ExecutorPool(Closing):
    """A `concurrent.futures` executor of the caller's, as a pool.

    Examples are executors of processes on this machine (loky), of MPI (mpi4py), of Parsl or
    submitit. Its processes import landscape and read the same files under the same paths. It
    appears as a single worker, "executor". Closing the pool leaves the executor to its owner.

    Args:
        executor: The executor; one of threads is refused, since calculations seed generators that
            belong to their process.
        max_pending: Calls that it holds at a time; twice its number of workers if None.
        unit_seconds: How long a unit should take.
    """

    dashboard: str | None = None
    name = "executor"

    def __init__(
        self,
        executor: Executor,
        *,
        max_pending: int | None = None,
        unit_seconds: float = _LOCAL_UNIT_SECONDS,
    ) -> None:
        if isinstance(executor, ThreadPoolExecutor):
            raise WorkerError(
                "executor: a ThreadPoolExecutor, but one of processes is needed: calculations set "
                "random numbers and threads that belong to their process. Use ProcessPoolExecutor, "
                "or workers=."
            )
        self._executor = executor
        self.window = max_pending or 2 * _num_workers(executor)
        self.unit_seconds = unit_seconds

    def workers(self) -> tuple[str, ...]:
        return (self.name,)

    def submit(self, worker: str, function: Callable[..., Any], /, *args: Any) -> "Future[Any]":
        result: Future[Any] = Future()
        try:
            answer = self._executor.submit(function, *args)
        # RuntimeError: the executor is shut down; BrokenExecutor is a subclass.
        except RuntimeError as error:
            raise WorkerError(
                f"executor: {type(self._executor).__name__} takes no more work ({error}), so what "
                "is left cannot be calculated. Run again with a new one; what is done is kept."
            ) from error
        result.add_done_callback(lambda _: answer.cancel())
        answer.add_done_callback(lambda _: self._forward(answer, result))
        return result

    def _forward(self, answer: "Future[Any]", result: "Future[Any]") -> None:
        if answer.cancelled():
            result.cancel()
        if not result.set_running_or_notify_cancel():
            return
        try:
            result.set_result(answer.result())
        except BrokenExecutor as error:
            result.set_exception(
                WorkerDied(
                    f"{self.name}: {type(self._executor).__name__} has lost a process ({error})"
                )
            )
        # An error that the call raised.
        except BaseException as error:
            result.set_exception(error)


def _num_workers(executor: Executor) -> int:
    # The standard library and loky have the first attribute, mpi4py has the second.
    for attribute in ("_max_workers", "num_workers"):
        number = getattr(executor, attribute, None)
        if isinstance(number, int) and number > 0:
            return number
    return os.cpu_count() or 1
