"""A child process that runs calls sent over pipes.

If the child dies, exactly one call raises an exception.

The child is started as a program of its own, not by multiprocessing. Nothing of the parent's main
module is imported, so scripts without a `__main__` guard, notebooks, scripts from standard input
and torchrun work. The child has its own session, so Ctrl-C in the terminal reaches only the parent.
The child ends with the parent, however that ends (landscape.workers.serve).

What the child prints, on either stream, is shown line by line on the parent's standard error. A
line that any child of this process has already printed is not shown again, so N workers give a
warning once.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from types import MappingProxyType
from typing import IO, Any

from landscape.errors import WorkerDied, WorkerError
from landscape.workers.messages import receive, send, unpack

# Variables by which torchrun tells a process that it is one of several. A child is not one of them.
_RANK_VARIABLES = frozenset(
    ("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT")
    + ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE")
)
_RANK_PREFIX = "TORCHELASTIC_"
# Number of consecutive processes killed before they can calculate, after which none is started.
_MAX_START_DEATHS = 3
# Lines that are remembered as already shown.
_MAX_LINES = 10_000
_LONGEST_LINE = 1 << 16
# Seconds to wait for the last output of a process that has ended.
_A_MOMENT = 1.0

_NOTHING: Mapping[str, str] = MappingProxyType({})


class ChildProcess:
    """A child process that runs one call after another.

    The first call starts it; the next call after its death starts it again.

    Args:
        name: What messages call it, such as "worker 2".
        num_threads: Threads of torch.
        environment: Variables to set in the child.
    """

    def __init__(
        self, name: str, *, num_threads: int = 1, environment: Mapping[str, str] = _NOTHING
    ) -> None:
        self.name = name
        self._num_threads = num_threads
        self._environment = dict(environment)
        self._calls: SimpleQueue[tuple[Future[bytes], bytes] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._process: _Process | None = None
        self._start_deaths = 0
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Return the process number; None while no process runs."""
        process = self._process
        return None if process is None else process.popen.pid

    def submit(self, function: Callable[..., Any], /, *args: Any) -> "Future[Any]":
        """Queue a call.

        Returns:
            Its result, or what it raised; WorkerDied if the process ended during the call.

        Raises:
            Exception: If the function or an argument cannot be pickled.
        """
        result: Future[Any] = Future()
        answer = self.submit_pickled(pickle.dumps((function, args), pickle.HIGHEST_PROTOCOL))
        # Cancelling reaches the queue through the result.
        result.add_done_callback(lambda _: answer.cancel())
        answer.add_done_callback(lambda _: _forward(answer, result))
        return result

    def submit_pickled(self, call: bytes) -> "Future[bytes]":
        """Queue a pickled pair (function, arguments).

        The result is for landscape.workers.messages.unpack.
        """
        answer: Future[bytes] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError(f"{self.name} is closed.")
            self._calls.put((answer, call))
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name=self.name, daemon=True)
                self._thread.start()
        return answer

    def close(self) -> None:
        """End the process at once; cancel calls that wait."""
        with self._lock:
            self._closed = True
            process = self._process
        while (call := _next_of(self._calls)) is not None:
            call[0].cancel()
        self._calls.put(None)
        if process is not None:
            process.end()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_A_MOMENT)

    def __enter__(self) -> "ChildProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            future, content = call
            if not future.set_running_or_notify_cancel():
                continue
            try:
                answer = self._ask(content)
            # The thread continues, whatever happens to a call.
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(answer)
            # A result may be large, and the next call may come much later: free the memory now.
            del call, future, content
            answer = b""
        if self._process is not None:
            self._process.end()
            self._process.last_words()
            self._process = None

    def _ask(self, content: bytes) -> bytes:
        for _ in range(_MAX_START_DEATHS):
            process = self._process or self._start()
            begun = process.ask(content) is not None
            if begun and (answer := process.receive()) is not None:
                return answer
            self._process = None
            words = process.last_words()
            if self._closed:
                raise WorkerError(f"{self.name} was closed.")
            # If the process died before it began this call, another process can run the call.
            if begun:
                break
        raise WorkerDied(f"{self.name} {words}")

    def _start(self) -> "_Process":
        with self._lock:
            if self._closed:
                raise WorkerError(f"{self.name} was closed.")
            process = self._process = _Process.start(
                self.name, environment_of_child(self._environment)
            )
        if process.ask(pickle.dumps((sys.path, self._num_threads))) is None:
            self._process = None
            words = process.last_words()
            self._start_deaths += 1
            # A process that was killed by a signal may start the next time.
            if (
                process.popen.returncode < 0
                and self._start_deaths < _MAX_START_DEATHS
                and not self._closed
            ):
                raise WorkerDied(f"{self.name} {words}")
            raise WorkerError(f"{self.name} cannot start: {words}.")
        self._start_deaths = 0
        return process


@dataclass
class _Process:
    """A running child: its pipes, and the last line that it printed."""

    popen: "subprocess.Popen[bytes]"
    requests: int
    answers: int
    life: int
    lines: "_Lines"

    @classmethod
    def start(cls, name: str, environment: dict[str, str]) -> "_Process":
        pipes = [os.pipe() for _ in range(3)]
        (requests, to_child), (from_child, answers), (life, keep) = pipes
        theirs = (requests, answers, life)
        # Without -P, a random.py in the current folder would be imported instead of the library's.
        command = [
            sys.executable,
            "-P",
            "-m",
            "landscape.workers.serve",
            *map(str, theirs),
            str(os.getpid()),
        ]
        try:
            popen = subprocess.Popen(
                command,
                env=environment,
                pass_fds=theirs,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            for descriptor in (to_child, from_child, keep):
                os.close(descriptor)
            raise WorkerError(
                f"{name} cannot start: {sys.executable or 'no Python'}: {error.strerror}."
            ) from error
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        assert popen.stdout is not None
        return cls(popen, to_child, from_child, keep, _Lines(popen.stdout))

    def ask(self, content: bytes) -> bytes | None:
        """Send a message and return the first reply.

        None if the process ended instead.
        """
        try:
            send(self.requests, content)
        except BrokenPipeError:
            return None
        return self.receive()

    def receive(self) -> bytes | None:
        """Wait for a message; return None if the process ended."""
        return receive(self.answers, lambda: self.popen.poll() is None)

    def end(self) -> None:
        """Kill the process and its group, without waiting."""
        if self.popen.poll() is None:
            _kill_group(self.popen.pid)

    def last_words(self) -> str:
        """Clean up after a process has ended; describe how."""
        try:
            self.popen.wait(_A_MOMENT)
        # The process has closed its pipes and still runs.
        except subprocess.TimeoutExpired:
            self.end()
        status = self.popen.wait()
        # Also kill processes that it started, such as those that load pictures.
        _kill_group(self.popen.pid)
        for descriptor in (self.requests, self.answers, self.life):
            os.close(descriptor)
        how = (
            f"ended with status {status}"
            if status >= 0
            else f"was killed by signal {-status}{_meaning(-status)}"
        )
        line = self.lines.last()
        return f"(process {self.popen.pid}) {how}" + (f"; its last line: {line}" if line else "")


class _Lines:
    """A thread that shows each line of a child's output once.

    It keeps the last line.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._last = ""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def last(self) -> str:
        self._thread.join(_A_MOMENT)
        return self._last

    def _read(self) -> None:
        with self._stream:
            while content := self._stream.readline(_LONGEST_LINE):
                line = content.decode(errors="replace").rstrip()
                self._last = line.strip() or self._last
                if _is_new(line):
                    _show(line)


_shown: set[str] = set()
_shown_lock = threading.Lock()


def _is_new(line: str) -> bool:
    with _shown_lock:
        if line in _shown:
            return False
        if len(_shown) >= _MAX_LINES:
            _shown.clear()
        _shown.add(line)
        return True


def _show(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    # The parent's standard error is closed, or is a pipe that nobody reads.
    except (OSError, ValueError):
        pass


def environment_of_child(own: Mapping[str, str]) -> dict[str, str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in _RANK_VARIABLES and not name.startswith(_RANK_PREFIX)
    }
    # The folder of this package comes first: the child must run the same code as its parent.
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return inherited | {"PYTHONPATH": path} | dict(own)


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _meaning(number: int) -> str:
    if number == signal.SIGKILL:
        return ", perhaps for memory"
    try:
        return f" ({signal.Signals(number).name})"
    # A real-time signal.
    except ValueError:
        return ""


def _forward(answer: "Future[bytes]", result: "Future[Any]") -> None:
    if answer.cancelled():
        result.cancel()
        result.set_running_or_notify_cancel()
    elif result.set_running_or_notify_cancel():
        try:
            value = unpack(answer.result())
        # Raised by the call, or by unpickling its result.
        except Exception as error:
            result.set_exception(error)
        else:
            result.set_result(value)


def _next_of(calls: "SimpleQueue[Any]") -> Any:
    try:
        return calls.get_nowait()
    except Empty:
        return None
