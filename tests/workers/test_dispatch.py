"""Who gets which unit, how large it is, and what is tried again: with workers that do what the test
says.
"""

import random
import sys
import threading
import time
import tracemalloc
from collections import Counter
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landscape.workers import InlinePool, LocalPool, Lost, dispatch
from tests.helpers import worker_calls
from tests.helpers.worker_calls import POISON, ScriptedPool, ScriptedQueue, squares


@pytest.fixture(autouse=True)
def scripted_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let scripted pools end calls where `dispatch` waits."""
    monkeypatch.setattr(ScriptedPool, "current", None)
    monkeypatch.setattr(sys.modules["landscape.workers.dispatch"], "SimpleQueue", ScriptedQueue)


class Clock:
    """A clock that stands still except for what items take."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)

    def spend(self, seconds: float):
        def calculate(task: str, items: tuple[int, ...]) -> list[int]:
            self.now += seconds * len(items)
            return list(items)

        return calculate


def tasks_in_turn(pool: ScriptedPool, worker: str) -> list[str]:
    """Name the tasks that a worker had to load, in order."""
    return [task for task, _ in groupby(task for name, task, _ in pool.calls if name == worker)]


def test_a_worker_keeps_its_task_until_it_is_used_up_and_then_takes_one_that_nobody_holds():
    pool = ScriptedPool(["w1", "w2"], unit_seconds=0)
    list(dispatch({name: range(6) for name in "abcd"}, pool, squares))
    assert tasks_in_turn(pool, "w1")[:2] == ["a", "c"] and tasks_in_turn(pool, "w2")[:2] == [
        "b",
        "d",
    ]
    assert len(tasks_in_turn(pool, "w1") + tasks_in_turn(pool, "w2")) <= 5


def test_a_worker_without_a_task_helps_with_the_one_that_has_most_left():
    pool = ScriptedPool(["w1", "w2", "w3"], unit_seconds=0)
    list(dispatch({"short": range(2), "long": range(40), "longer": range(60)}, pool, squares))
    assert tasks_in_turn(pool, "w1")[:2] == ["short", "longer"]


def test_a_worker_never_holds_more_than_its_window():
    pool = ScriptedPool(["w1", "w2", "w3"], window=2)
    list(dispatch({"a": range(200)}, pool, squares))
    assert pool.most_pending == 6
    assert [worker for worker, _, _ in pool.calls[:6]] == ["w1", "w2", "w3"] * 2


def test_units_last_as_long_as_the_pool_wants_and_shrink_towards_the_end(monkeypatch):
    pool = ScriptedPool(["w1", "w2"], unit_seconds=2.0)
    list(dispatch({"a": range(200)}, pool, Clock(monkeypatch).spend(0.25)))
    sizes = [len(items) for _, _, items in pool.calls]
    assert sizes[:4] == [1] * 4 and sizes[4] == 8
    left = 200
    for size in sizes:
        assert size <= max(1, left // 4)
        left -= size
    assert left == 0 and sizes[-1] == 1


@pytest.mark.parametrize("seconds, largest", [(5.0, 1), (0.001, 7)])
def test_units_have_at_least_one_item_and_at_most_the_largest_number(monkeypatch, seconds, largest):
    pool = ScriptedPool(["w1"], unit_seconds=2.0)
    done = list(dispatch({"a": range(50)}, pool, Clock(monkeypatch).spend(seconds), largest_unit=7))
    assert max(len(items) for _, _, items in pool.calls) == largest
    assert sum(unit.seconds for unit in done) == pytest.approx(50 * seconds)


def test_a_unit_whose_worker_died_is_tried_whole_and_then_item_by_item(monkeypatch):
    clock = Clock(monkeypatch)
    pool = ScriptedPool(["w1", "w2"], fate=lambda _, __, items: "die" if POISON in items else "run")
    done = list(dispatch({"a": range(40)}, pool, clock.spend(0.5)))
    tried = [items for _, _, items in pool.calls if POISON in items]
    assert len(tried) == 3 and tried[0] == tried[1] and len(tried[0]) > 1 and tried[2] == (POISON,)
    lost = [unit for unit in done if Lost in map(type, unit.results)]
    assert [(unit.items, unit.results) for unit in lost] == [((POISON,), lost[0].results)]
    assert "was killed" in lost[0].results[0].reason
    assert sorted(item for unit in done for item in unit.items) == list(range(40))


def test_units_that_never_began_on_a_dead_worker_are_not_blamed():
    cancelled: Counter[tuple[int, ...]] = Counter()

    def fate(worker: str, task: str, items: tuple[int, ...]) -> str:
        cancelled[items] += 1
        return "cancel" if cancelled[items] < 6 else "run"

    done = list(
        dispatch({"a": range(10)}, ScriptedPool(["w1"], unit_seconds=0, fate=fate), squares)
    )
    assert sorted(unit.results[0][1] for unit in done) == list(range(10))


def test_what_shares_a_worker_with_a_poisonous_item_is_not_lost_with_it():
    """The first of two calls has ended, and its result dies with the worker that the second one
    kills.
    """
    ended: Counter[tuple[str, tuple[int, ...]]] = Counter()

    def fate(worker: str, _: str, items: tuple[int, ...]) -> str:
        held = Counter((name, part) for name, _, part in pool.calls if name == worker) - ended
        ended[worker, items] += 1
        return "die" if any(POISON in part for _, part in held) else "run"

    pool = ScriptedPool(["w1", "w2"], unit_seconds=0, fate=fate)
    done = list(dispatch({"a": range(20)}, pool, squares))
    results = {item: result for unit in done for item, result in zip(unit.items, unit.results)}
    assert [item for item, result in results.items() if isinstance(result, Lost)] == [POISON]
    assert len(results) == 20


def test_workers_that_join_get_work_and_those_that_leave_block_nothing():
    pool = ScriptedPool(["w1", "w2"], unit_seconds=0)
    done = []
    for unit in dispatch({"a": range(30), "b": range(30)}, pool, squares):
        done.append(unit)
        if len(done) == 10:
            pool.names = ("w2", "w3")
    assert Counter(item for unit in done for item in unit.items) == Counter([*range(30)] * 2)
    assert {worker for worker, _, _ in pool.calls[-20:]} == {"w2", "w3"}


def test_without_workers_it_waits_and_ticks_until_one_comes():
    pool = ScriptedPool([])
    ticks = []

    def tick() -> None:
        ticks.append(time.monotonic())
        if len(ticks) == 3:
            pool.names = ("w1",)

    assert len(list(dispatch({"a": range(3)}, pool, squares, tick=tick))) == 3
    assert len(ticks) >= 3


def test_ticks_come_while_a_long_unit_runs():
    ticks = []
    with LocalPool(1) as pool:
        list(dispatch({"a": (0,)}, pool, worker_calls.sleep, tick=lambda: ticks.append(1)))
    assert len(ticks) >= 2


def test_an_error_of_the_function_is_raised_after_what_has_ended_and_cancels_what_waits():
    pool = ScriptedPool(["w1", "w2"], unit_seconds=0)
    done = []
    with pytest.raises(worker_calls.TwoWordError, match="item 13: bad luck"):
        for unit in dispatch({"a": range(40)}, pool, worker_calls.fail_at_poison):
            done += unit.items
    assert done == list(range(POISON))
    assert pool.num_cancelled() == 3 and len(pool.calls) == POISON + 1 + 3


def test_a_function_that_loses_a_result_is_refused():
    with pytest.raises(ValueError, match="one result per item"):
        list(dispatch({"a": range(4)}, InlinePool(), lambda task, items: []))


def test_leaving_early_cancels_what_waits():
    pool = ScriptedPool(["w1"], unit_seconds=0)
    units = dispatch({"a": range(100)}, pool, squares)
    next(units)
    units.close()
    assert pool.num_cancelled() == len(pool.calls) - 1 == 1


def test_in_this_process_items_are_calculated_in_order_by_the_calling_thread():
    seen = []

    def calculate(task: str, items: tuple[int, ...]) -> list[int]:
        assert threading.current_thread() is threading.main_thread()
        seen.append((task, items))
        return list(items)

    results = [unit.results for unit in dispatch({"a": (3, 1), "b": (2,)}, InlinePool(), calculate)]
    assert seen == [("a", (3,)), ("a", (1,)), ("b", (2,))] and results == [(3,), (1,), (2,)]


def test_memory_does_not_grow_with_the_number_of_items():
    pool = ScriptedPool(["w1", "w2"])
    pool.calls = Forgetful()
    tracemalloc.start()
    try:
        num_bytes = sum(
            len(result)
            for unit in dispatch({"a": range(100_000)}, pool, heavy)
            for result in unit.results
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert num_bytes == 200_000_000 and peak < 2_000_000


class Forgetful(list):
    def append(self, _: object) -> None:
        pass


def heavy(task: str, items: tuple[int, ...]) -> list[bytes]:
    return [bytes(2_000) for _ in items]


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 25), max_size=5),
    seed=st.integers(0, 10**6),
    poison=st.sets(st.integers(0, 24), max_size=3),
    window=st.integers(1, 4),
)
def test_whatever_dies_leaves_or_joins_every_item_ends_once_and_only_poison_is_lost(
    sizes, seed, poison, window
):
    rng = random.Random(seed)
    marks: Counter[tuple[str, int]] = Counter()

    def fate(worker: str, task: str, items: tuple[int, ...]) -> str:
        if rng.random() < 0.1:
            return "cancel"
        # An innocent is beside a death at most twice: that is what it survives.
        if poison & set(items) or (
            rng.random() < 0.2 and all(marks[task, item] < 2 for item in items)
        ):
            marks.update((task, item) for item in items)
            return "die"
        return "run"

    pool = ScriptedPool(["w1", "w2", "w3"], window=window, fate=fate, choose=rng.randrange)
    tasks = {f"task {index}": range(size) for index, size in enumerate(sizes)}
    results = {}
    for unit in dispatch(tasks, pool, squares, largest_unit=6):
        pool.names = tuple(rng.sample(["w1", "w2", "w3", "w4", "w5"], rng.randint(1, 5)))
        for item, result in zip(unit.items, unit.results, strict=True):
            assert (unit.task, item) not in results
            results[unit.task, item] = result
    assert results.keys() == {(task, item) for task, items in tasks.items() for item in items}
    for (task, item), result in results.items():
        assert isinstance(result, Lost) == (item in poison)
        assert isinstance(result, Lost) or result == (task, item, item**2)
