"""The program of a child process, started by landscape.workers.child alone.

Usage: `python -m landscape.workers.serve REQUESTS ANSWERS LIFE PARENT`. The arguments are three
descriptors of pipes and the number of the parent process. Calls run in the main thread, where
nothing else draws random numbers.

The process ends with its parent, however that ends. A thread reads the pipe of requests and sees
its end. Where Python code cannot run, in a long C call that holds the interpreter lock, Linux sends
SIGKILL when the pipe LIFE is closed.
"""

import fcntl
import os
import pickle
import signal
import sys
import threading
from io import TextIOWrapper
from queue import SimpleQueue

from landscape.errors import WorkerError
from landscape.threads import prepare
from landscape.workers.messages import pack_error, pack_result, receive, send


def main() -> None:
    """Answer calls until the parent closes the pipe or ends."""
    requests, answers, life, parent = map(int, sys.argv[1:])
    for descriptor in (requests, answers, life):
        os.set_inheritable(descriptor, False)
    # The parent ends this process; a SIGINT to a whole job is the parent's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_when_closed(life)
    calls: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_read_calls, args=(requests, parent, calls), daemon=True).start()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    path, num_threads = pickle.loads(calls.get())
    sys.path[:] = path
    prepare(num_threads)
    try:
        send(answers, b"")
        while True:
            call = calls.get()
            # Report that this call has begun, so the parent knows whether it died in this call.
            send(answers, b"")
            send(answers, _answer(call))
    except BrokenPipeError:
        _end()


def _answer(content: bytes) -> bytes:
    try:
        function, args = pickle.loads(content)
    # Unpickling an object of another package may raise anything.
    except Exception as error:
        return pack_error(
            WorkerError(
                f"A worker cannot read its call ({type(error).__name__}: {error}): what is sent "
                "must be defined in a module that can be imported, not in the script that runs. "
                "Move it into a module."
            )
        )
    try:
        return pack_result(function(*args))
    except BaseException as error:
        return pack_error(error)


def _read_calls(descriptor: int, parent: int, calls: "SimpleQueue[bytes]") -> None:
    while (content := receive(descriptor, lambda: os.getppid() == parent)) is not None:
        calls.put(content)
    _end()


def _end() -> None:
    """End this process at once, and all processes of its group."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def end_when_closed(life: int) -> None:
    """Make Linux kill this process when a pipe closes.

    The group of the process is killed too, if the process leads it. The pipe closes when its other
    end does; no data may be sent through it.
    """
    if not hasattr(fcntl, "F_SETSIG"):
        return
    group = os.getpgrp() == os.getpid()
    fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(life, fcntl.F_SETOWN, -os.getpid() if group else os.getpid())
    fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)


if __name__ == "__main__":
    main()
