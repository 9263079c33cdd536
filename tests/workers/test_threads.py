"""Threads of torch and BLAS: who sets them, and that nobody's are changed for good."""

import json
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from threadpoolctl import ThreadpoolController, threadpool_info
from torch import nn

import landscape
from landscape import threads
from landscape.linalg import DenseOperator, SymmetricOperator, vectors

VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "KMP_BLOCKTIME",
)
# Run as a program: only a process in which torch is not loaded yet can be set up.
PROBE = """
import json, os, sys
from landscape import cli, threads
assert "torch" not in sys.modules and "numpy" not in sys.modules
try:
    cli.main(sys.argv[1:], standalone_mode=False)
except SystemExit:
    pass
threads.available_cores = lambda: 3
import torch, numpy
from threadpoolctl import ThreadpoolController, threadpool_info
class Network(torch.nn.Module):
    def __init__(self, width, rows):
        super().__init__()
        self.layer, self.table = torch.nn.Linear(width, width), torch.nn.Embedding(rows, 10)
at_start = torch.get_num_threads()
with torch.device("meta"):
    small, large = Network(10, 2_000_000), Network(4000, 10)
sizes = []
for network in (large, small):
    threads.fit(network)
    sizes.append(torch.get_num_threads())
blas = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
seen = {"start": at_start, "large": sizes[0], "small": sizes[1], "blas": blas}
print(json.dumps(seen | {"wait": os.environ["OMP_WAIT_POLICY"]}))
"""


def set_up_by_command(*arguments: str, **variables: str) -> dict[str, object]:
    """What a process with these variables has after a command, for a large and then a small network
    on three cores.
    """
    environment = {
        name: value for name, value in os.environ.items() if name not in VARIABLES
    } | variables
    command = [sys.executable, "-c", PROBE, *arguments]
    result = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def blas_threads() -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def ask_blas(number: int) -> None:
    """Set the number as a user does, once for the process; no Python thread keeps the right to set
    it.
    """
    with ThreadpoolController().limit(limits=number, user_api="blas") as limiter:
        limiter.restore_original_limits = lambda: None


@pytest.fixture
def two_threads():
    """A process whose user asked torch and BLAS for two threads."""
    before, blas_before = torch.get_num_threads(), blas_threads()[0]
    torch.set_num_threads(2)
    ask_blas(2)
    yield
    torch.set_num_threads(before)
    ask_blas(blas_before)


@pytest.fixture
def hessian():
    model = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 5))
    batch = torch.randn(100, 10), torch.randint(5, (100,))
    return landscape.hessian(
        model, lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]), batch
    )


def test_a_command_gives_small_networks_one_thread_and_large_ones_all_cores():
    assert set_up_by_command("surface", "-h") == {
        "start": 1,
        "large": 3,
        "small": 1,
        "blas": [1],
        "wait": "PASSIVE",
    }


def test_variables_of_the_user_win():
    seen = set_up_by_command(
        "surface", "-h", OMP_NUM_THREADS="2", OPENBLAS_NUM_THREADS="2", OMP_WAIT_POLICY="ACTIVE"
    )
    assert seen == {"start": 2, "large": 2, "small": 2, "blas": [2], "wait": "ACTIVE"}


def test_the_option_beats_the_environment():
    nowhere = ("spectra", "nowhere.yaml", "-o", "x.h5", "--threads", "2")
    seen = set_up_by_command(*nowhere, OMP_NUM_THREADS="1")
    assert (seen["start"], seen["large"], seen["small"]) == (2, 2, 2)


def test_a_process_that_has_loaded_torch_is_left_alone(two_threads, monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    threads.prepare()
    threads.fit(nn.Linear(2, 2))
    assert torch.get_num_threads() == 2 and not any(name in os.environ for name in VARIABLES)


@pytest.mark.parametrize(
    ("quota", "cores"), [("150000 100000", 1), ("400000 100000", 4), ("max 100000", 8), ("", 8)]
)
def test_the_quota_of_a_container_limits_the_cores(quota, cores, tmp_path, monkeypatch):
    path = tmp_path / "cpu.max"
    path.write_text(quota)
    monkeypatch.setattr(threads, "_QUOTA", path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert threads.available_cores() == cores


# --- cores that are free --------------------------------------------------------------------------


def stat_file(*idle_and_total):
    """The lines of /proc/stat for cores that were idle for so many of so many units of time."""
    lines = [
        f"cpu{core} {total - idle} 0 0 {idle - 1} 1 0 0 0 0 0"
        for core, (idle, total) in enumerate(idle_and_total)
    ]
    return "\n".join(["cpu  1 1 1 1 1 1 1 1 0 0", *lines, "intr 5", ""])


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A machine of four cores whose counters go from one text to another while they are watched for
    0.2 s.
    """
    clock = {"wall": 0.0, "cpu": 0.0}

    def watch(before, after, *, own_seconds=0.0, allowed=(0, 1, 2, 3)):
        path = tmp_path / "stat"
        path.write_text(before)

        def sleep(seconds):
            path.write_text(after)
            clock["wall"] += seconds
            clock["cpu"] += own_seconds

        monkeypatch.setattr(threads, "_STAT", path)
        monkeypatch.setattr(threads, "_QUOTA", tmp_path / "no quota")
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(allowed), raising=False)
        monkeypatch.setattr(
            threads,
            "time",
            SimpleNamespace(
                sleep=sleep, perf_counter=lambda: clock["wall"], process_time=lambda: clock["cpu"]
            ),
        )
        return threads.free_cores()

    return watch


START = stat_file((500, 1000), (500, 1000), (500, 1000), (500, 1000))


@pytest.mark.parametrize(
    "idle, free",
    [((20, 20, 20, 20), 4), ((19, 0, 20, 1), 2), ((0, 0, 0, 0), 1), ((8, 8, 8, 8), 2)],
    ids=["quiet", "two busy processes", "all busy", "much of everything"],
)
def test_cores_that_others_leave_idle_are_free_and_at_least_one(idle, free, watched):
    assert watched(START, stat_file(*((500 + units, 1020) for units in idle))) == free


def test_what_the_process_itself_uses_counts_as_free(watched):
    # Another process on core 0; 0.2 s of CPU time in 0.2 s are our own core 1.
    after = stat_file((500, 1020), (500, 1020), (520, 1020), (520, 1020))
    assert watched(START, after) == 2
    assert watched(START, after, own_seconds=0.2) == 3


def test_cores_of_others_are_neither_counted_nor_watched(watched):
    after = stat_file((520, 1020), (500, 1020), (520, 1020), (520, 1020))
    assert watched(START, after, allowed=(0, 1)) == 1
    assert watched(START, after, allowed=(2, 3)) == 2


def test_a_quota_limits_the_free_cores(watched, tmp_path, monkeypatch):
    after = stat_file(*((520, 1020),) * 4)
    assert watched(START, after) == 4
    (tmp_path / "no quota").write_text("200000 100000")
    assert watched(START, after) == 2


@pytest.mark.parametrize(
    "stat", [START, "", "cpu 1 2", "cpu0 a b c d e f g h", "cpu9 1 1 1 1 1 1 1 1"]
)
def test_all_cores_are_taken_for_free_where_the_system_does_not_say_what_they_do(stat, watched):
    assert watched(stat, stat) == 4


def test_all_cores_are_taken_for_free_where_the_system_has_no_such_file(tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "_STAT", tmp_path / "nowhere")
    assert threads.free_cores() == threads.available_cores()


def test_this_machine_has_a_free_core():
    assert 1 <= threads.free_cores() <= threads.available_cores()


# --- threads that pay -----------------------------------------------------------------------------


class TimedProduct:
    """A product whose wall and CPU seconds depend on torch's number of threads, on a clock of its
    own.
    """

    def __init__(self, monkeypatch, **seconds):
        self.seconds = {
            int(number.removeprefix("with_")): value for number, value in seconds.items()
        }
        self.asked, self.wall, self.cpu = [], 0.0, 0.0
        clock = SimpleNamespace(perf_counter=lambda: self.wall, process_time=lambda: self.cpu)
        monkeypatch.setattr(threads, "time", clock)

    def __call__(self):
        number = torch.get_num_threads()
        self.asked.append(number)
        wall, cpu = self.seconds[number]
        self.wall, self.cpu = self.wall + wall, self.cpu + cpu


LARGE = 10_000_000


@pytest.mark.parametrize(
    "wall, chosen",
    [(5.0, 2), (7.6, 2), (7.8, 1), (8.7, 1), (30.0, 1)],
    ids=["twice as fast", "clearly faster", "a little too slow", "1.15 times as fast", "slower"],
)
def test_more_threads_are_taken_where_they_are_clearly_faster(wall, chosen, monkeypatch):
    product = TimedProduct(monkeypatch, with_1=(10.0, 10.0), with_2=(wall, 2 * wall))
    assert threads.faster_with([1, 2], product, num_parameters=LARGE) == chosen
    assert product.asked == [1, 2]


def test_a_larger_number_has_to_pay_beside_the_one_before_it(monkeypatch):
    product = TimedProduct(
        monkeypatch,
        with_1=(10, 10),
        with_2=(5.5, 11),
        with_4=(3, 12),
        with_8=(2.8, 20),
        with_16=(1, 16),
    )
    assert threads.faster_with([16, 8, 2, 4], product, num_parameters=LARGE) == 4
    assert product.asked == [1, 2, 4, 8]


def test_time_that_others_took_from_a_single_thread_is_no_gain_of_two(monkeypatch):
    # Beside busy processes: 20 s of wall time for 10 s of work.
    product = TimedProduct(monkeypatch, with_1=(20, 10), with_2=(9, 18))
    assert threads.faster_with([2], product, num_parameters=LARGE) == 1


def test_small_networks_have_one_thread_without_a_measurement(monkeypatch):
    product = TimedProduct(monkeypatch)
    assert threads.faster_with([2], product, num_parameters=LARGE - 1) == 1
    assert product.asked == []


def test_torch_has_its_number_of_threads_back_after_a_measurement_and_after_an_error(
    two_threads, monkeypatch
):
    product = TimedProduct(monkeypatch, with_1=(10, 10), with_3=(3, 9))
    assert threads.faster_with([3], product, num_parameters=LARGE) == 3
    assert torch.get_num_threads() == 2
    with pytest.raises(KeyError):
        threads.faster_with([4], product, num_parameters=LARGE)
    assert torch.get_num_threads() == 2


def test_parameters_of_embedding_tables_are_not_multiplied():
    network = nn.Sequential(nn.Embedding(100, 10), nn.Linear(10, 3, bias=False))
    assert threads.num_multiplied(network) == 30


# --- sections -------------------------------------------------------------------------------------


def test_small_matrices_are_solved_on_one_blas_thread_and_the_users_number_returns(
    hessian, two_threads, monkeypatch
):
    seen, eigh = [], np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda H: seen.append(blas_threads()) or eigh(H))
    landscape.eigsh(hessian, k=1, tol=0.1, seed=0)
    assert seen and all(set(numbers) == {1} for numbers in seen)
    assert set(blas_threads()) == {2} and torch.get_num_threads() == 2


def test_blas_has_the_users_number_again_after_an_error(two_threads):
    with pytest.raises(KeyError), threads.single_blas_thread():
        raise KeyError
    assert set(blas_threads()) == {2}


def test_sections_in_two_python_threads_give_the_users_number_back(two_threads):
    begun, seen = threading.Event(), []

    def other() -> None:
        begun.set()
        with threads.single_blas_thread():
            seen.append(blas_threads())

    with threads.single_blas_thread():
        waiting = threading.Thread(target=other)
        waiting.start()
        begun.wait()
        waiting.join(timeout=0.2)
        assert not seen
    waiting.join()
    assert set(blas_threads()) == {2}


@pytest.mark.parametrize(("rows", "expected"), [(100, {1}), (50_000, {2})])
def test_small_products_run_on_one_thread_and_large_ones_on_the_users(rows, expected, two_threads):
    seen = []

    def loss(model, batch):
        seen.append(torch.get_num_threads())
        return model(batch).square().mean()

    landscape.hessian(nn.Linear(200, 30), loss, torch.randn(rows // 10, 200))
    assert set(seen) == expected and torch.get_num_threads() == 2


def test_a_python_thread_begun_during_a_section_has_the_users_number_of_threads(two_threads):
    seen = []
    with threads.single_openmp_thread():
        assert torch.get_num_threads() == 1
        other = threading.Thread(
            target=lambda: seen.append((torch.ones(100_000).sum(), torch.get_num_threads())[1])
        )
        other.start()
        other.join()
    assert seen == [2] and torch.get_num_threads() == 2


class Watched(SymmetricOperator):
    """diag(1, 2, ..., n), a user's operator that notes the number of torch's threads in its
    products.
    """

    def __init__(self, n):
        self.n, self.dtype, self.device = n, torch.float64, torch.device("cpu")
        self.seen = []

    def matmat(self, V):
        self.seen.append(torch.get_num_threads())
        return torch.arange(1, self.n + 1, dtype=self.dtype)[:, None] * V


@pytest.mark.parametrize(
    ("limit", "expected"), [(30_000_000, {1}), (10, {2})], ids=["small", "large"]
)
def test_a_small_basis_is_grown_on_one_thread_and_products_of_others_have_the_users(
    limit, expected, two_threads, monkeypatch
):
    operator, seen, norm = Watched(50), [], vectors.norm
    monkeypatch.setattr(threads, "_FEW_MULTIPLICATIONS", limit)
    monkeypatch.setattr(vectors, "norm", lambda w: seen.append(torch.get_num_threads()) or norm(w))
    landscape.eigsh(operator, k=2, seed=0)
    # After those of the start vector: the rounding that the operator states of its first product.
    del seen[3]
    assert set(seen) == expected and set(operator.seen) == {2} and torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("limit", "expected"), [(30_000_000, {1}), (50 * 50, {2})], ids=["small", "large"]
)
def test_a_small_matrix_is_multiplied_on_one_thread(limit, expected, two_threads, monkeypatch):
    operator, seen, matmul = DenseOperator(torch.eye(50)), [], torch.Tensor.__matmul__
    monkeypatch.setattr(threads, "_FEW_MULTIPLICATIONS", limit)
    monkeypatch.setattr(
        torch.Tensor,
        "__matmul__",
        lambda M, V: seen.append(torch.get_num_threads()) or matmul(M, V),
    )
    assert torch.equal(operator @ torch.ones(50), torch.ones(50))
    assert set(seen) == expected and torch.get_num_threads() == 2
