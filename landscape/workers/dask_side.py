"""What is Dask's own: the client, and what runs inside a worker: one calculating child process, and its end with the worker.

Dask runs tasks in a thread beside its own, which draw from the global random generator. So the calls go on to a child process, as
the bytes that came; the worker itself loads no torch, and the death of the child is an exception of one call.
"""

import os
import threading
from typing import Any

from distributed import Client, Reschedule, Worker, WorkerPlugin, get_worker

from landscape.workers.child import ChildProcess

# Seconds after which a worker that was told to end and did not is ended.
_GRACE = 10.0
# Seconds without a call after which a child ends: whoever sent them may be gone, and it holds a model.
_IDLE = 300.0

_lock = threading.Lock()
_child: ChildProcess | None = None
_num_threads = 0
_ending = False
_num_calls = 0
_idle: threading.Timer | None = None


def calculate(num_threads: int, call: bytes) -> bytes:
    """Calculate a pickled call in the child of this worker.

    Returns:
        For landscape.workers.messages.unpack.

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
    """Count the calls that go on, and let the child end some time after the last of them."""
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
    # Closed by another thread: this worker ends, or another pool wants other threads.
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
    """End the child when the worker ends, so that no thread waits for it; and the worker itself if it is ours and hangs.

    Args:
        is_ours: Whether this worker's process was started for us alone.
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

    Dask's own adds an entry for each call to a list of the scheduler's that is never shortened (distributed 2026.8, Span).
    """

    def _graph_to_futures(self, *args: Any, **options: Any) -> Any:
        if "span_metadata" in options:
            options["span_metadata"] = {"collections": []}
        return super()._graph_to_futures(*args, **options)
