"""The Dask client, and the code that runs inside a Dask worker.

A Dask worker has a child process for calculations, which ends with the worker. Dask runs tasks in a
thread beside its own threads, which draw from the global random generator. So calls are passed on
to a child process, as the bytes that came. The worker itself loads no torch, and the death of the
child is an exception of one call.
"""

import os
import threading
from typing import Any

from distributed import Client, Reschedule, Worker, WorkerPlugin, get_worker

from landscape.workers.child import ChildProcess

# Seconds after which a worker that was told to end and still runs is killed.
_GRACE = 10.0
# Seconds without a call after which a child ends: the sender may be gone, and the child holds a
# model.
_IDLE = 300.0

_lock = threading.Lock()
_child: ChildProcess | None = None
_num_threads = 0
_ending = False
_num_calls = 0
_idle: threading.Timer | None = None


def calculate(num_threads: int, call: bytes) -> bytes:
    """Run a pickled call in the child of this worker.

    Returns:
        The answer in bytes, for landscape.workers.messages.unpack.

    Raises:
        WorkerDied: If the child ended during the call.
        Reschedule: If the worker is ending; Dask then gives the call to another.
    """
    _count_call(1)
    try:
        return _calculate(num_threads, call)
    finally:
        _count_call(-1)


def _count_call(change: int) -> None:
    """Count the running calls; end a child without calls later."""
    global _num_calls, _idle
    with _lock:
        _num_calls += change
        if _idle is not None:
            _idle.cancel()
            _idle = None
        if not _num_calls:
            _idle = threading.Timer(_IDLE, _close_if_idle)
            _idle.daemon = True
            _idle.start()


def _close_if_idle() -> None:
    if not _num_calls:
        close_child()


def _calculate(num_threads: int, call: bytes) -> bytes:
    child = _child_with(num_threads)
    try:
        return child.submit_pickled(call).result()
    # Another thread closed the child: this worker is ending, or another pool needs another number
    # of threads.
    except BaseException:
        if _ending or child is not _child:
            raise Reschedule() from None
        raise


def close_child() -> None:
    """End the child; the next call starts another."""
    global _child
    with _lock:
        child, _child = _child, None
    if child is not None:
        child.close()


def _child_with(num_threads: int) -> ChildProcess:
    global _child, _num_threads
    if _ending:
        raise Reschedule()
    if num_threads != _num_threads:
        close_child()
    with _lock:
        if _child is None:
            _child, _num_threads = (
                ChildProcess(f"worker {get_worker().address}", num_threads=num_threads),
                num_threads,
            )
        return _child


class EndWithWorker(WorkerPlugin):
    """A plugin that ends the child when the Dask worker ends.

    Otherwise a thread would wait for the child. It also ends the worker itself if that is ours and
    hangs.

    Args:
        is_ours: Whether this worker's process was started for this run alone.
    """

    name = "landscape-end-with-worker"

    def __init__(self, *, is_ours: bool) -> None:
        self.is_ours = is_ours

    def teardown(self, worker: Worker) -> None:
        global _ending
        if self.is_ours:
            _ending = True
            timer = threading.Timer(_GRACE, os._exit, (0,))
            timer.daemon = True
            timer.start()
        close_child()


class QuietClient(Client):
    """A client whose calls leave nothing behind in the scheduler.

    For each call, Dask's own client adds an entry to a list of the scheduler that is never
    shortened (distributed 2026.8, Span).
    """

    def _graph_to_futures(self, *args: Any, **options: Any) -> Any:
        if "span_metadata" in options:
            options["span_metadata"] = {"collections": []}
        return super()._graph_to_futures(*args, **options)
