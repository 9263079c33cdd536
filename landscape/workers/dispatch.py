"""Dispatch of units of work to the workers of a pool.

Windows are small, the size of a unit follows from measured times, and only the call during which a
worker died counts as a failure.

A task is what a worker must load, such as a checkpoint. Its items are what is calculated with it. A
worker keeps getting items of the task that it holds. When a worker dies, its unit is tried again
whole, then item by item. An item whose worker died each time is `Lost`; every other item has its
result. The last attempt has its worker to itself: of two calls that a worker held, the first may
have ended, with its result still on the way, so which one killed the worker is not certain.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from landscape.errors import WorkerDied, WorkerError
from landscape.workers.pools import Pool

T = TypeVar("T", bound=Hashable)
L = TypeVar("L")

# Longest time in seconds between two ticks while no call ends.
_TICK = 0.5
# Number of times that a unit is tried whole before its items are tried singly.
_WHOLE_ATTEMPTS = 2


@dataclass(frozen=True)
class Lost:
    """The result of an item during which every worker died."""

    reason: str


@dataclass(frozen=True)
class Done(Generic[T]):
    """A unit that has ended.

    Attributes:
        task: What the worker had to load.
        items: The task's items in this unit.
        results: One per item; `Lost` for an item whose worker died each time.
        worker: Name of the worker that ended it.
        seconds: How long the worker took; 0 where it died.
    """

    task: T
    items: tuple[int, ...]
    results: tuple[Any, ...]
    worker: str
    seconds: float


@dataclass(frozen=True)
class _Unit(Generic[T]):
    task: T
    items: tuple[int, ...]
    attempt: int = 0

    @property
    def is_last_attempt(self) -> bool:
        return self.attempt >= _WHOLE_ATTEMPTS


def dispatch(
    tasks: Mapping[T, Sequence[int]],
    pool: Pool,
    function: Callable[[T, tuple[int, ...]], Sequence[Any]],
    *,
    largest_unit: int = 20,
    unit_seconds: float = 0.0,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[Done[T]]:
    """Calculate all items; yield each unit as it ends.

    Args:
        tasks: Items of each task, in the order in which they are wanted.
        pool: The workers.
        function: Calculates some items of a task: one result per item. Defined in a module, so that
            it can be pickled.
        largest_unit: Largest number of items of a unit.
        unit_seconds: Shortest duration of a unit, where that is more than the pool's own value.
        tick: Called at least every second while workers calculate elsewhere.

    Raises:
        Exception: The error that `function` raised; units that wait are cancelled.
    """
    plan = _Plan(tasks, pool, largest_unit, unit_seconds)
    window: _Window[_Unit[T]] = _Window(pool, tick)
    failure: Exception | None = None
    try:
        while True:
            for worker in window.free_workers():
                unit = plan.next_unit(worker, is_idle=window.is_idle(worker))
                if unit is None:
                    break
                window.submit(
                    worker,
                    unit,
                    _timed,
                    function,
                    unit.task,
                    unit.items,
                    alone=unit.is_last_attempt,
                )
            if not window.num_pending and plan.is_done:
                return
            for worker, unit, future in window.ended():
                try:
                    done = _take(plan, worker, unit, future)
                except Exception as error:
                    failure = failure or error
                    continue
                if done is not None:
                    yield done
            if failure is not None:
                raise failure
    finally:
        window.cancel()


def call_all(
    pool: Pool,
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    *,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, Any]]:
    """Call a function with each tuple of arguments in a pool.

    Yields the index and result of each call as it ends.

    Raises:
        WorkerError: If workers died three times during the same call.
        Exception: The error that the function raised.
    """
    window: _Window[tuple[int, int]] = _Window(pool, tick)
    waiting: deque[tuple[int, int]] = deque((index, 0) for index in range(len(arguments)))
    try:
        while waiting or window.num_pending:
            for worker in window.free_workers():
                if not waiting or (waiting[0][1] >= _WHOLE_ATTEMPTS and not window.is_idle(worker)):
                    break
                index, attempt = waiting.popleft()
                window.submit(
                    worker,
                    (index, attempt),
                    function,
                    *arguments[index],
                    alone=attempt >= _WHOLE_ATTEMPTS,
                )
            for _, (index, attempt), future in window.ended():
                if future.cancelled():
                    waiting.appendleft((index, attempt))
                elif isinstance(error := future.exception(), WorkerDied):
                    if attempt >= _WHOLE_ATTEMPTS:
                        raise WorkerError(
                            f"{error}, for the third time with the same work. Give it more memory, "
                            "or a queue that does not end its jobs. Results so far are saved; run "
                            "the same command to resume."
                        ) from error
                    waiting.appendleft((index, attempt + 1))
                else:
                    yield index, future.result()
    finally:
        window.cancel()


def _take(plan: "_Plan[T]", worker: str, unit: _Unit[T], future: "Future[Any]") -> Done[T] | None:
    """Convert a finished future to a finished unit.

    None if its items are tried again.
    """
    # The call never began.
    if future.cancelled():
        plan.again(unit)
        return None
    error = future.exception()
    if isinstance(error, WorkerDied):
        if not unit.is_last_attempt:
            plan.after_death(unit)
            return None
        return Done(unit.task, unit.items, tuple(Lost(str(error)) for _ in unit.items), worker, 0.0)
    results, seconds = future.result()
    if len(results) != len(unit.items):
        raise ValueError(
            f"function must return one result per item ({len(unit.items)}), got {len(results)}."
        )
    plan.learn(len(unit.items), seconds)
    return Done(unit.task, unit.items, tuple(results), worker, seconds)


def _timed(
    function: Callable[[T, tuple[int, ...]], Sequence[Any]], task: T, items: tuple[int, ...]
) -> tuple[Any, float]:
    begun = time.perf_counter()
    return function(task, items), time.perf_counter() - begun


class _Plan(Generic[T]):
    """The remaining items, each worker's task, and the mean time of an item."""

    def __init__(
        self, tasks: Mapping[T, Sequence[int]], pool: Pool, largest_unit: int, unit_seconds: float
    ) -> None:
        self._tasks = tasks
        self._pool = pool
        self._largest_unit = largest_unit
        self._unit_seconds = max(pool.unit_seconds, unit_seconds)
        # Position of the first item that no worker has, for each task with such an item.
        self._open = {task: 0 for task, items in tasks.items() if items}
        self._num_left = sum(len(items) for items in tasks.values())
        self._again: deque[_Unit[T]] = deque()
        self._held: dict[str, T] = {}
        self._num_items, self._seconds = 0, 0.0

    @property
    def is_done(self) -> bool:
        return not self._open and not self._again

    def next_unit(self, worker: str, *, is_idle: bool) -> _Unit[T] | None:
        """Return the next unit for a worker, if any; a last attempt only for one that is idle."""
        unit = self._next_again(worker, is_idle) or self._next_new(worker)
        if unit is not None:
            self._held[worker] = unit.task
        return unit

    def again(self, unit: _Unit[T]) -> None:
        """Queue a unit again whose call never began.

        This does not count as an attempt.
        """
        self._again.appendleft(unit)

    def after_death(self, unit: _Unit[T]) -> None:
        """Retry a unit whose worker died.

        The unit is tried whole, then item by item.
        """
        attempt = unit.attempt + 1
        parts = [unit.items] if attempt < _WHOLE_ATTEMPTS else [(item,) for item in unit.items]
        self._again.extend(_Unit(unit.task, items, attempt) for items in parts)

    def learn(self, num_items: int, seconds: float) -> None:
        """Update the mean time of an item."""
        self._num_items += num_items
        self._seconds += seconds

    def _next_again(self, worker: str, is_idle: bool) -> _Unit[T] | None:
        units = [unit for unit in self._again if is_idle or not unit.is_last_attempt]
        if not units:
            return None
        held = self._held.get(worker)
        unit = next((unit for unit in units if unit.task == held), units[0])
        self._again.remove(unit)
        return unit

    def _next_new(self, worker: str) -> _Unit[T] | None:
        if not self._open:
            return None
        task = self._task_for(worker)
        items, begin = self._tasks[task], self._open[task]
        part = tuple(items[begin : begin + self._size()])
        self._num_left -= len(part)
        if begin + len(part) == len(items):
            del self._open[task]
        else:
            self._open[task] = begin + len(part)
        return _Unit(task, part)

    def _task_for(self, worker: str) -> T:
        if (held := self._held.get(worker)) in self._open:
            return held
        there = set(self._pool.workers())
        holders = Counter(
            task for name, task in self._held.items() if name in there and name != worker
        )
        free = next((task for task in self._open if not holders[task]), None)
        return max(self._open, key=self._left_of) if free is None else free

    def _left_of(self, task: T) -> int:
        return len(self._tasks[task]) - self._open[task]

    def _size(self) -> int:
        if not self._num_items:
            return 1
        wanted = (
            self._unit_seconds * self._num_items / self._seconds
            if self._seconds
            else self._largest_unit
        )
        # Leave two units for each worker, or as many as an executor holds, so that all workers end
        # at about the same time.
        places = max(1, len(self._pool.workers())) * max(2, self._pool.window)
        return max(1, min(int(wanted), self._largest_unit, self._num_left // places))


class _Window(Generic[L]):
    """The labelled calls that the workers hold, and those that have ended."""

    def __init__(self, pool: Pool, tick: Callable[[], None]) -> None:
        self._pool = pool
        self._tick = tick
        self._pending: dict[int, tuple[str, L, Future[Any]]] = {}
        self._counts: Counter[str] = Counter()
        # Workers whose call must be their only one.
        self._alone: set[str] = set()
        self._ended: SimpleQueue[int] = SimpleQueue()
        self._next_number = 0
        self._ticked = time.monotonic()

    @property
    def num_pending(self) -> int:
        return len(self._pending)

    def free_workers(self) -> Iterator[str]:
        """Yield a worker for each free place.

        The first place of every worker comes before the second place of any.
        """
        for level in range(self._pool.window):
            for worker in self._pool.workers():
                if self._counts[worker] <= level and worker not in self._alone:
                    yield worker

    def is_idle(self, worker: str) -> bool:
        """Tell whether a worker holds no call."""
        return not self._counts[worker]

    def submit(
        self, worker: str, label: L, function: Callable[..., Any], *args: Any, alone: bool = False
    ) -> None:
        """Submit a call; give its worker no other while it lasts if it is to be alone."""
        future = self._pool.submit(worker, function, *args)
        number = self._next_number
        self._next_number += 1
        self._pending[number] = worker, label, future
        self._counts[worker] += 1
        if alone:
            self._alone.add(worker)
        future.add_done_callback(lambda _: self._ended.put(number))

    def ended(self) -> Iterator[tuple[str, L, "Future[Any]"]]:
        """Yield calls that have ended.

        Waits up to one tick for the first.
        """
        if time.monotonic() - self._ticked >= _TICK:
            self._ticked = time.monotonic()
            self._tick()
        try:
            for _ in range(max(1, self._ended.qsize())):
                number = self._ended.get(timeout=_TICK)
                worker, label, future = self._pending.pop(number)
                self._counts[worker] -= 1
                if not self._counts[worker]:
                    del self._counts[worker]
                self._alone.discard(worker)
                yield worker, label, future
        except Empty:
            return

    def cancel(self) -> None:
        for _, _, future in self._pending.values():
            future.cancel()
        self._pending.clear()
