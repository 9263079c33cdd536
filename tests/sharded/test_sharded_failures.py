"""What fails in one of two processes that share a model fails in both, at once: memory, interrupts,
sums, solvers.

Truth: what each process raises, and that both can go on afterwards.
"""

import json
import multiprocessing
import os
import time
import traceback
import warnings
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

import landscape
from landscape.linalg.krylov import KrylovBasis
from landscape.sharded import check, weights
from landscape.sharded.layout import Cut
from landscape.sharded.processes import Processes

SIZE = 2
# Seconds that a process waits for one that does not answer; and those of the other cases, in which
# all answer.
SHORT, LONG = 2, 40
MEMORY = "CUDA out of memory. (simulated)"
MEMORY_ERROR = (
    "MemoryLimitError: Memory ran out in one of the processes that share the model. Use "
    "hvp='rebuilt', fewer rows "
)
OTHER_FAILED = "Process 1 of 2 failed, so all stop. It says: "
PATHS = "ObjectiveError: The processes take different paths through the loss: process 0 at "

# What process 1, in which something fails, and process 0 raise.
EXPECTED = {
    "memory for a piece": (MEMORY_ERROR, f"MemoryLimitError: {OTHER_FAILED}Memory ran out"),
    "memory after a gathering": (MEMORY_ERROR, f"MemoryLimitError: {OTHER_FAILED}Memory ran out"),
    "memory for a derivative": (MEMORY_ERROR, f"MemoryLimitError: {OTHER_FAILED}Memory ran out"),
    "memory for a whole weight": (MEMORY_ERROR, f"MemoryLimitError: {OTHER_FAILED}Memory ran out"),
    "memory for a whole vector": (MEMORY_ERROR, f"MemoryLimitError: {OTHER_FAILED}Memory ran out"),
    "memory for a Krylov vector": (MEMORY_ERROR, f"MemoryLimitError: {OTHER_FAILED}Memory ran out"),
    "a solver": ("OSError: between products", f"LandscapeError: {OTHER_FAILED}between products"),
    "few numbers": (
        2
        * (
            f"{PATHS}a sum of 1 numbers over the processes, process 1 at a sum of 3 numbers over "
            "the processes.",
        )
    ),
    "many numbers": (
        2
        * (
            f"{PATHS}a sum of 8 numbers over the processes, process 1 at a sum of 9 numbers over "
            "the processes.",
        )
    ),
    "numbers of a vector": (
        2 * (f"{PATHS}a sum of 1 numbers over the processes, process 1 at a sum of 9 numbers",)
    ),
    "memory in float64": (MEMORY_ERROR, f"MemoryLimitError: {OTHER_FAILED}CUDA out of memory"),
    "an interrupt": ("KeyboardInterrupt: ", f"LandscapeError: {OTHER_FAILED}KeyboardInterrupt"),
    "an exit": ("SystemExit: 3", f"LandscapeError: {OTHER_FAILED}3"),
}


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What each process saw."""
    folder = tmp_path_factory.mktemp("processes")
    # Imports take longer than what is tested.
    fork = multiprocessing.get_context("fork")
    started = [fork.Process(target=main, args=(rank, folder)) for rank in range(SIZE)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for process in started:
            process.start()
    for process in started:
        process.join(120)
        process.kill()
    for rank in range(SIZE):
        assert (folder / f"{rank}.json").exists(), (folder / f"{rank}.log").read_text()[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(SIZE)]


@pytest.mark.parametrize("case", EXPECTED)
def test_the_failure_of_one_process_is_raised_by_both_at_once(case, seen):
    own, other = EXPECTED[case]
    assert seen[1][case]["said"].startswith(own)
    assert seen[0][case]["said"].startswith(other)
    assert max(process[case]["seconds"] for process in seen) < LONG / 2
    # After that, they take a product together.
    assert [process[case]["afterwards"] for process in seen] == ["nothing"] * SIZE


def test_a_check_in_float64_is_left_out_by_both_where_it_cannot_be_made_by_one(seen):
    assert seen[0]["no float64"] == seen[1]["no float64"]
    assert seen[0]["no float64"]["verdict"].startswith(
        "operator checked: a little off the parameters"
    )
    # Where every process can, the check is made in float64.
    assert seen[0]["float64"] == seen[1]["float64"] and seen[0]["float64"]["verdict"].endswith(
        "in float64"
    )


def test_a_process_that_is_lost_is_waited_for_once(seen):
    lost = seen[0]["lost"]
    assert lost["said"].startswith(
        "WorkerDied: Another process ended, or did not answer within the timeout"
    )
    assert lost["notes"] == [] and lost["told"] == 0


# --- the program of one process -------------------------------------------------------------------


def replace_in_last(rank, where, name, make):
    """Put `make(old)` in the place of an attribute, in process 1 alone; returns the old one."""
    old = getattr(where, name)
    if rank:
        setattr(where, name, make(old))
    return old


def out_of_memory(*args, **options):
    raise torch.OutOfMemoryError(MEMORY)


def at_call(number, fail=out_of_memory):
    """A function that fails at its call of this number, counted from 0."""
    calls = iter(range(10**6))
    return lambda old: (
        lambda *args, **options: fail() if next(calls) == number else old(*args, **options)
    )


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return (
        nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3), nn.Tanh(), nn.Linear(3, 1))
        .to(dtype)
        .eval()
    )


def mean_square(model, x):
    return model(x).square().mean()


class Cases:
    """What is done by both processes, and goes wrong in process 1."""

    def __init__(self, mesh):
        self.mesh, self.rank, self.processes = mesh, mesh.get_local_rank(), Processes(mesh)
        self.x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)[
            2 * self.rank :
        ][:2]
        self.A = self.operator()

    def operator(self, loss=mean_square, dtype=torch.float64, check=False):
        return landscape.hessian(
            network(dtype), loss, self.x.to(dtype), mesh=self.mesh, check=check
        )

    def multiply(self):
        return self.A @ torch.ones(self.A.num_local, dtype=self.A.dtype)

    def run(self):
        def no_large_buffer(old):
            return lambda shape, *args, **options: (
                out_of_memory() if shape == (8, 5) else old(shape, *args, **options)
            )

        def between_products():
            raise OSError("between products")

        cases = {
            "memory for a piece": (self.multiply, (Cut, "padded", at_call(1))),
            "memory after a gathering": (
                self.multiply,
                (weights.GatheredWeights, "_hold", at_call(0)),
            ),
            "memory for a derivative": (self.multiply, (Cut, "padded_pieces", at_call(1))),
            "memory for a whole weight": (self.multiply, (torch, "empty", no_large_buffer)),
            "memory for a whole vector": (
                lambda: self.A.space.gathered(self.A.gradient()),
                (torch, "zeros", at_call(0)),
            ),
            "memory for a Krylov vector": (
                lambda: landscape.eigsh(self.A, 2),
                (KrylovBasis, "_append", at_call(3)),
            ),
            "a solver": (
                lambda: landscape.density(self.A),
                (KrylovBasis, "_append", at_call(3, between_products)),
            ),
            "few numbers": (lambda: self.sums(1, 3), None),
            "many numbers": (lambda: self.sums(8, 9), None),
            "numbers of a vector": (
                lambda: self.processes.total(np.ones(9 if self.rank else 1)),
                None,
            ),
            "memory in float64": (lambda: self.checked(torch.OutOfMemoryError(MEMORY)), None),
            "an interrupt": (lambda: self.interrupted(KeyboardInterrupt()), None),
            "an exit": (lambda: self.interrupted(SystemExit(3)), None),
        }
        seen = {name: self.failure(*case) for name, case in cases.items()}
        seen["no float64"] = {"verdict": self.checked(TypeError("only float32"))}
        seen["float64"] = {"verdict": self.checked(None)}
        return seen | {"lost": self.lost()}

    def failure(self, call, replacement):
        started = time.monotonic()
        old = None if replacement is None else replace_in_last(self.rank, *replacement)
        said = self.raised(call)
        if replacement is not None:
            setattr(*replacement[:2], old)
        seconds = time.monotonic() - started
        return {"said": said, "seconds": seconds, "afterwards": self.raised(self.multiply)}

    def raised(self, call):
        try:
            call()
        except BaseException as error:
            return f"{type(error).__name__}: {error}"
        return "nothing"

    def sums(self, *counts):
        with self.processes.together():
            self.processes.total(np.ones(counts[self.rank]))

    def interrupted(self, error):
        def loss(model, x):
            hidden = model[:2](x)
            if self.rank:
                raise error
            return model[2:](hidden).square().mean()

        self.operator(loss)

    def checked(self, error):
        """Check an operator in float32, where differences are said not to settle at first, so that
        float64 is tried.
        """

        def loss(model, x):
            hidden = model[:2](x)
            if self.rank and x.dtype == torch.float64 and error is not None:
                raise error
            return model[2:](hidden).square().mean()

        judged, calls = check._judged, iter(range(100))
        check._judged = lambda *args: None if next(calls) == 0 else judged(*args)
        try:
            return self.operator(loss, torch.float32, check=True).check().__str__()
        finally:
            check._judged = judged

    def lost(self):
        """A process waits for one that sleeps, in a group with a short timeout."""
        processes = Processes(
            DeviceMesh.from_group(dist.new_group(timeout=timedelta(seconds=SHORT)), "cpu")
        )
        if self.rank:
            time.sleep(1.5 * SHORT)
            return {}
        tell, told = processes._tell, []
        processes._tell = lambda error: told.append(error) or tell(error)
        try:
            with processes.together():
                processes.total(np.ones(3))
        except Exception as error:
            return {
                "said": f"{type(error).__name__}: {error}",
                "notes": getattr(error, "__notes__", []),
                "told": len(told),
            }
        return {"said": "nothing"}


def main(rank, folder):
    with open(folder / f"{rank}.log", "w") as log:
        os.dup2(log.fileno(), 2)
    try:
        measure(rank, folder)
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        # A group of which a process was lost cannot be left in order.
        os._exit(0)


def measure(rank, folder):
    # The threads of the process that was forked are not here.
    torch.set_num_threads(1)
    # All weights are gathered one by one.
    weights._SMALL = 0
    timeout = timedelta(seconds=LONG)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=SIZE, timeout=timeout
    )
    seen = Cases(init_device_mesh("cpu", (SIZE,))).run()
    (folder / f"{rank}.json").write_text(json.dumps(seen))
