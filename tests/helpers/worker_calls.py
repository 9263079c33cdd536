"""Functions that worker processes import and call, and a pool whose workers do what a test says."""

import os
import random
import signal
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from landscape.errors import LandscapeError, WorkerDied

POISON = 13


class TwoWordError(LandscapeError):
    """Its constructor takes more than a message, so that pickle alone cannot make it again."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")


class LockedError(Exception):
    """Holds what cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("locked")
        self.stream = sys.stderr


def squares(task: str, items: tuple[int, ...]) -> list[tuple[str, int, int]]:
    return [(task, item, item**2) for item in items]


def die_at_poison(task: str, items: tuple[int, ...]) -> list[int]:
    """Be killed when the item comes that cannot be calculated."""
    for item in items:
        if item == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
    return [item**2 for item in items]


def die_once(task: str, items: tuple[int, ...]) -> list[int]:
    """Be killed the first time that an item comes; the task is the file that remembers."""
    if POISON in items and not Path(task).exists():
        Path(task).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return [item**2 for item in items]


def fail_at_poison(task: str, items: tuple[int, ...]) -> list[int]:
    if POISON in items:
        raise TwoWordError("item 13", "bad luck")
    return list(items)


def raise_two_words() -> None:
    raise TwoWordError("here", "this")


def raise_locked() -> None:
    raise LockedError


def raise_interrupt() -> None:
    raise KeyboardInterrupt


def say_and_die(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
    os._exit(3)


def say(line: str) -> str:
    """Say it in all ways that could disturb a protocol on standard output."""
    print(line)
    os.write(1, f"raw {line}\n".encode())
    warnings.warn(line, stacklevel=1)
    return line


def describe_process() -> dict[str, Any]:
    return {
        "environment": dict(os.environ),
        "session": os.getsid(0),
        "pid": os.getpid(),
        "path": list(sys.path),
        "main": getattr(sys.modules["__main__"], "__file__", ""),
        "torch": "torch" in sys.modules,
    }


def torch_threads() -> int:
    import torch

    return torch.get_num_threads()


def hold_the_lock(seconds: float) -> None:
    """Stay in one call of C that never releases the interpreter lock, for at least some seconds."""
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        sum(range(3 * 10**9))


class ScriptedPool:
    """Workers without processes: `fate` says of each call whether it runs, dies, or never begins.

    A call ends when `dispatch` waits: which one of those that are pending, `choose` says.
    """

    dashboard = None
    current: "ScriptedPool | None" = None

    def __init__(
        self,
        names: Sequence[str],
        *,
        window: int = 2,
        unit_seconds: float = 2.0,
        fate: Callable[[str, str, tuple[int, ...]], str] = lambda *_: "run",
        choose: Callable[[int], int] = lambda _: 0,
    ) -> None:
        self.names = tuple(names)
        self.window = window
        self.unit_seconds = unit_seconds
        self.calls: list[tuple[str, str, tuple[int, ...]]] = []
        self.most_pending = 0
        self._fate, self._choose = fate, choose
        self._waiting: list[Callable[[], None]] = []
        self._futures: deque[Future[Any]] = deque(maxlen=10)
        ScriptedPool.current = self

    def workers(self) -> tuple[str, ...]:
        return self.names

    def end_a_call(self) -> None:
        if self._waiting:
            self._waiting.pop(self._choose(len(self._waiting)))()

    def submit(self, worker: str, function: Callable[..., Any], /, *args: Any) -> "Future[Any]":
        assert worker in self.names
        future: Future[Any] = Future()
        _, task, items = args
        self.calls.append((worker, task, items))

        def end() -> None:
            fate = self._fate(worker, task, items)
            if fate == "cancel" or not future.set_running_or_notify_cancel():
                future.cancel()
            elif fate == "die":
                future.set_exception(WorkerDied(f"{worker} was killed"))
            else:
                try:
                    future.set_result(function(*args))
                except Exception as error:
                    future.set_exception(error)

        self._futures.append(future)
        self._waiting.append(end)
        self.most_pending = max(self.most_pending, len(self._waiting))
        return future

    def num_cancelled(self) -> int:
        return sum(future.cancelled() for future in self._futures)

    def close(self) -> None:
        self._waiting.clear()


class ScriptedQueue(SimpleQueue):
    """The queue in which `dispatch` waits, which has the scripted pool go on."""

    def get(self, *args: Any, **options: Any) -> Any:
        if self.empty() and ScriptedPool.current is not None:
            ScriptedPool.current.end_a_call()
        return super().get(*args, **options)


def multiples(task: int, items: tuple[int, ...]) -> list[int]:
    return [task * item for item in items]


def raise_it(error: Exception) -> None:
    raise error


def return_lambda() -> Any:
    return lambda: 1


def sleep(task: str, items: tuple[int, ...]) -> list[int]:
    time.sleep(1.3)
    return list(items)


def seeded_bytes(task: str, items: tuple[int, ...]) -> list[bytes]:
    """Calculate with seeded global generators, slowly enough for anything else in the process to
    draw from them.
    """
    import torch

    results = []
    for item in items:
        random.seed(item)
        torch.manual_seed(item)
        matrix = torch.randn(40, 40)
        time.sleep(0.02)
        results.append((matrix @ matrix).numpy().tobytes() + random.randbytes(8))
    return results


def pid_slowly(task: str, items: tuple[int, ...]) -> list[int]:
    time.sleep(0.05)
    return [os.getpid() for _ in items]


def kill_parent_at_poison(task: str, items: tuple[int, ...]) -> list[int]:
    """End the process that started this one, as a system short of memory may do, and wait for the
    end.
    """
    if POISON in items:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    return [item**2 for item in items]


def fork_and_go_on() -> int:
    """Start a process as loaders of pictures do: it has all that this one has open."""
    forked = os.fork()
    if not forked:
        time.sleep(60)
        os._exit(0)
    return forked


def squares_slowly(task: str, items: tuple[int, ...]) -> list[int]:
    time.sleep(0.003 * len(items))
    return [item**2 for item in items]
