"""Calculating child processes and pools of them: results, errors, deaths, and who ends whom."""

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from landscape.errors import PictureError, WorkerDied, WorkerError
from landscape.workers import ChildProcess, ExecutorPool, InlinePool, LocalPool, call_all, dispatch
from tests.helpers import worker_calls
from tests.helpers.processes import environment_of_scripts, is_running, run_script, wait_until

# Calculates in two children, as a user's script would that knows nothing of guards; prints the sum.
SCRIPT = """
from landscape.workers import LocalPool, dispatch
import operator
print("main runs")
with LocalPool(2) as pool:
    done = dispatch({2: range(10), 3: range(10)}, pool, multiples)
    print(sum(result for unit in done for result in unit.results))
"""
SCRIPT = SCRIPT.replace("import operator", "from tests.helpers.worker_calls import multiples")
# Starts a child in a long call, says its number, and waits.
PARENT = """
import sys, time
from landscape.workers import ChildProcess
from tests.helpers import worker_calls
from tests.helpers.processes import environment_of_scripts, is_running, run_script, wait_until
child = ChildProcess("worker 1")
print(child.submit(worker_calls.describe_process).result()["pid"], flush=True)
child.submit({call})
{more}
time.sleep(60)
"""


@pytest.fixture
def child() -> Iterator[ChildProcess]:
    with ChildProcess("worker 1") as process:
        yield process


def test_a_child_returns_what_the_function_returns_in_the_order_of_the_calls(child):
    futures = [child.submit(math.factorial, number) for number in range(20)]
    assert [future.result() for future in futures] == [
        math.factorial(number) for number in range(20)
    ]


def test_a_child_runs_in_another_session_without_torchruns_variables_and_the_main_module(
    monkeypatch,
):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")
    monkeypatch.syspath_prepend("/somewhere")
    with ChildProcess(
        "worker 1", num_threads=3, environment={"CUDA_VISIBLE_DEVICES": "5"}
    ) as process:
        seen = process.submit(worker_calls.describe_process).result()
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"} & set(
        seen["environment"]
    )
    assert (
        seen["environment"]["CUDA_VISIBLE_DEVICES"] == "5"
        and seen["environment"]["OMP_NUM_THREADS"] == "3"
    )
    assert seen["session"] == seen["pid"] != os.getsid(0)
    assert seen["path"] == sys.path and seen["main"].endswith("serve.py") and not seen["torch"]


def test_a_child_has_its_own_number_of_threads_whatever_the_parent_has(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with ChildProcess("worker 1", num_threads=1) as process:
        assert process.submit(worker_calls.torch_threads).result() == 1


def test_an_exception_comes_back_as_it_was_with_the_place_where_it_was_raised(child):
    error = child.submit(int, "many").exception()
    with pytest.raises(ValueError) as here:
        int("many")
    assert type(error) is ValueError and str(error) == str(here.value)
    assert "serve.py" in error.__notes__[0]


def test_an_error_of_ours_keeps_type_and_message_whatever_its_constructor_takes(child):
    error = child.submit(worker_calls.raise_two_words).exception()
    assert (
        type(error) is worker_calls.TwoWordError
        and str(error) == "here: this"
        and error.exit_code == 2
    )
    sent = child.submit(
        worker_calls.raise_it, PictureError("a.png is torn.", "Remove it.")
    ).exception()
    assert (
        type(sent) is PictureError
        and str(sent) == "a.png is torn. Remove it."
        and sent.problem == "a.png is torn."
    )


@pytest.mark.parametrize("function", [worker_calls.raise_locked, worker_calls.raise_interrupt])
def test_an_error_that_cannot_be_sent_comes_back_as_the_text_of_its_traceback(child, function):
    error = child.submit(function).exception()
    assert type(error) is RuntimeError and function.__name__ in str(error)
    assert child.submit(abs, -1).result() == 1


def test_results_that_cannot_be_sent_fail_their_call_alone(child):
    # Up to Python 3.12 it says that it cannot pickle it, from 3.13 that it cannot get it.
    assert "return_lambda" in str(child.submit(worker_calls.return_lambda).exception())
    assert child.submit(abs, -1).result() == 1


def test_a_function_that_the_child_cannot_import_is_refused_with_advice(child, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "of_the_script", lambda: 1, raising=False)
    function = sys.modules["__main__"].of_the_script
    function.__module__, function.__qualname__ = "__main__", "of_the_script"
    with pytest.raises(WorkerError, match="in a module"):
        child.submit(function).result()


def test_prints_and_warnings_of_children_break_nothing_and_are_shown_once(capfd):
    with LocalPool(3) as pool:
        lines = [
            pool.submit(worker, worker_calls.say, "a remark").result() for worker in pool.workers()
        ]
    assert lines == ["a remark"] * 3
    shown = capfd.readouterr()
    assert shown.out == "" and shown.err.splitlines().count("a remark") == 1
    assert shown.err.count("raw a remark") == 1 and shown.err.count("UserWarning: a remark") == 1


def test_a_killed_child_fails_its_call_by_name_and_the_next_call_has_a_new_process(child):
    first = child.submit(os.getpid).result()
    assert child.pid == first
    killed, queued = child.submit(os.kill, first, signal.SIGKILL), child.submit(os.getpid)
    with pytest.raises(
        WorkerDied,
        match=rf"^worker 1 \(process {first}\) was killed by signal 9, perhaps for memory$",
    ):
        killed.result()
    assert queued.result() == child.pid != first


def test_a_killed_child_is_detected_although_a_process_that_it_started_holds_its_pipes(
    child,
):
    forked = child.submit(worker_calls.fork_and_go_on).result()
    with pytest.raises(WorkerDied, match="killed by signal 9"):
        child.submit(os.kill, child.pid, signal.SIGKILL).result(timeout=20)
    wait_until(lambda: not is_running(forked))


def test_a_child_that_dies_between_calls_costs_nothing(child):
    first = child.submit(os.getpid).result()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not is_running(first))
    assert child.submit(os.getpid).result() != first


def test_a_death_reports_the_status_and_the_last_line(child):
    with pytest.raises(WorkerDied, match="ended with status 3; its last line: out of luck$"):
        child.submit(worker_calls.say_and_die, "out of luck").result()


def test_a_child_that_cannot_start_is_an_error_and_no_endless_loop():
    with LocalPool(1, environments=[{"PYTHONHOME": "/nowhere"}]) as pool:
        with pytest.raises(
            WorkerError, match=r"^worker 1 cannot start: \(process \d+\) ended with status 1; "
        ) as caught:
            list(dispatch({"a": range(3)}, pool, worker_calls.squares))
    assert not isinstance(caught.value, WorkerDied)


def test_closing_ends_a_child_in_the_middle_of_a_call_and_cancels_those_that_wait():
    process = ChildProcess("worker 1")
    pid = process.submit(os.getpid).result()
    descriptors = len(os.listdir("/proc/self/fd"))
    running, waiting = process.submit(time.sleep, 60), process.submit(abs, 1)
    time.sleep(0.3)
    process.close()
    wait_until(lambda: not is_running(pid))
    with pytest.raises(WorkerError, match="closed"):
        running.result()
    with pytest.raises(CancelledError):
        waiting.result()
    assert len(os.listdir("/proc/self/fd")) == descriptors - 4
    with pytest.raises(RuntimeError, match="closed"):
        process.submit(abs, 1)


@pytest.mark.parametrize("call", ["time.sleep, 60", "worker_calls.hold_the_lock, 60"])
def test_a_child_ends_with_its_killed_parent_even_in_a_call_that_holds_the_interpreter(call):
    ends = start_parent(call)
    parent, pid = next(ends)
    time.sleep(0.3)
    parent.kill()
    wait_until(lambda: not is_running(pid))


def test_a_child_ends_with_its_parent_although_a_fork_of_the_parent_holds_the_pipes():
    ends = start_parent(
        "time.sleep, 60",
        more="import os; print(forked, flush=True) if (forked := os.fork()) else None",
    )
    parent, pid = next(ends)
    forked = int(parent.stdout.readline())
    parent.kill()
    try:
        wait_until(lambda: not is_running(pid))
    finally:
        os.kill(forked, signal.SIGKILL)


def test_an_interrupt_of_the_terminal_reaches_the_parent_alone():
    ends = start_parent(
        "time.sleep, 60",
        more="try: time.sleep(60)\nexcept KeyboardInterrupt: print(child.pid, flush=True)",
    )
    parent, pid = next(ends)
    time.sleep(0.3)
    os.killpg(parent.pid, signal.SIGINT)
    assert int(parent.stdout.readline()) == pid and is_running(pid)
    parent.kill()
    wait_until(lambda: not is_running(pid))


def test_an_interrupt_sent_to_the_child_itself_disturbs_nothing(child):
    pid = child.submit(os.getpid).result()
    sleeping = child.submit(worker_calls.sleep, "a", (1,))
    time.sleep(0.3)
    os.kill(pid, signal.SIGINT)
    assert sleeping.result() == [1] and child.pid == pid


def start_parent(call: str, *, more: str = "") -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """Yield a process with a child in a long call, and the child's number."""
    script = PARENT.format(call=call, more=more)
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command,
        env=environment_of_scripts(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        try:
            yield parent, int(parent.stdout.readline())
        finally:
            parent.kill()


def test_a_script_without_a_guard_calculates_in_children_and_runs_once(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    assert run_script([sys.executable, str(script)]) == "main runs\n225\n"


def test_a_script_from_standard_input_calculates_in_children():
    assert run_script([sys.executable, "-"], input=SCRIPT) == "main runs\n225\n"


def test_every_rank_of_torchrun_calculates_in_children_of_its_own(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
        str(script),
    ]
    assert run_script(command).split("\n").count("225") == 2


def test_a_notebook_calculates_in_children(monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", environment_of_scripts()["PYTHONPATH"])
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SCRIPT)])
    nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    assert "".join(output.text for output in notebook.cells[0].outputs) == "main runs\n225\n"


def test_a_module_beside_the_script_does_not_replace_one_of_the_library(tmp_path):
    (tmp_path / "pickle.py").write_text("raise SystemExit('the wrong module')")
    command = (
        "from landscape.workers import ChildProcess\nwith ChildProcess('w') as c: "
        "print(c.submit(abs, -3).result())"
    )
    script = f"import sys; sys.path.remove(''); {command}"
    assert run_script([sys.executable, "-c", script], cwd=tmp_path) == "3\n"


def test_the_inline_pool_calculates_at_once_and_lets_interrupts_through():
    with InlinePool() as pool:
        assert pool.submit("this process", os.getpid).result() == os.getpid()
        assert type(pool.submit("this process", int, "x").exception()) is ValueError
        with pytest.raises(KeyboardInterrupt):
            pool.submit("this process", worker_calls.raise_interrupt)


def test_a_local_pool_grows_and_gives_each_worker_its_own_process_and_environment():
    environments = [{"DEVICE": str(number)} for number in range(3)]
    with LocalPool(1, environments=environments) as pool:
        pool.grow(3)
        assert pool.workers() == ("worker 1", "worker 2", "worker 3")
        seen = [
            pool.submit(name, worker_calls.describe_process).result() for name in pool.workers()
        ]
        assert [process["environment"]["DEVICE"] for process in seen] == ["0", "1", "2"]
        assert [process["pid"] for process in seen] == list(pool.pids.values()) and len(
            set(pool.pids.values())
        ) == 3
        with pytest.raises(ValueError, match="environments"):
            pool.grow(4)


def test_an_executor_calculates_and_its_broken_processes_are_workers_that_died():
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        pool = ExecutorPool(executor)
        assert pool.window == 4
        done = list(dispatch({"a": range(10)}, pool, worker_calls.squares))
        assert sorted(result[2] for unit in done for result in unit.results) == [
            item**2 for item in range(10)
        ]
        with pytest.raises(WorkerDied, match="ProcessPoolExecutor has lost a process"):
            pool.submit("executor", os._exit, 1).result()
        with pytest.raises(WorkerError, match="takes no more work"):
            pool.submit("executor", abs, 1)


def test_an_executor_of_threads_is_refused():
    with ThreadPoolExecutor(1) as executor, pytest.raises(WorkerError, match="processes"):
        ExecutorPool(executor)


def test_a_child_killed_in_a_unit_costs_no_item(tmp_path):
    task = str(tmp_path / "died")
    with LocalPool(2) as pool:
        done = list(dispatch({task: range(30)}, pool, worker_calls.die_once))
    assert Path(task).exists()
    assert sorted(result for unit in done for result in unit.results) == [
        item**2 for item in range(30)
    ]


def test_an_item_that_kills_every_worker_is_lost_alone():
    with LocalPool(2) as pool:
        done = list(dispatch({"a": range(40)}, pool, worker_calls.die_at_poison))
    results = {
        item: result for unit in done for item, result in zip(unit.items, unit.results, strict=True)
    }
    lost = results.pop(worker_calls.POISON)
    assert "was killed by signal 9" in lost.reason
    assert results == {item: item**2 for item in range(40) if item != worker_calls.POISON}


def test_calls_of_all_arguments_survive_one_death_each_and_give_up_after_three(tmp_path):
    with LocalPool(2) as pool:
        arguments = [(str(tmp_path / str(index)), (worker_calls.POISON,)) for index in range(3)]
        assert sorted(call_all(pool, worker_calls.die_once, arguments)) == [
            (index, [169]) for index in range(3)
        ]
        with pytest.raises(WorkerError, match="for the third time"):
            list(call_all(pool, worker_calls.die_at_poison, [("a", (worker_calls.POISON,))]))
