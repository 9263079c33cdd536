"""Threads of torch and BLAS: as many as the work can use.

No thread may spin while it waits: a thread that spins at a barrier holds the core that the awaited
thread needs. Beside busy processes, a product of a 100 x 10 and a 10 x 20 matrix took 33 ms with
two threads on two cores, and 10 microseconds with one.

`prepare` is for a process of our own, the command line; `fit` acts only in such a process. The
sections `single_blas_thread`, `single_openmp_thread` and `threads_for` are for any process, and
change nothing outside.

Imports nothing heavy, since `prepare` has to run before torch and NumPy are loaded: their thread
pools read the environment once.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

# Set unless the user has set them. The first two are for GNU's and Intel's OpenMP, in torch; the
# last for NumPy's and SciPy's BLAS, which multiply matrices of some hundred rows here.
_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "OPENBLAS_NUM_THREADS": "1"}
# Variables by which a user chooses the number of threads of torch.
NUM_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
# Number of parameters outside of embedding tables from which a network gets all cores. Median times
# of training steps with one and two threads, in turn on two shared cores: 0.1 M parameters 0.041
# and 0.053 s, 1.8 M 0.59 and 0.70 s, 31 M 11.2 and 5.9 s.
_LARGE = 10_000_000
# The limit of a container: microseconds of CPU time, or "max", and the period in which they may be
# used.
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
# Time that each core has spent on every kind of work and idle since the machine started.
_STAT = Path("/proc/stat")
# Seconds for which the cores are observed. The kernel counts in units of 10 ms, so a share is known
# to 5 %.
_WATCHED_SECONDS = 0.2
# Required speed-up by more threads. Not worthwhile: for a small vision transformer, two threads on
# two cores made products 1.15 times as fast for 1.7 times the CPU time, and 2 to 4 times as slow
# beside one busy process. Worthwhile: 1.9 times for 31 M parameters. Single measurements of the
# same work differ by 10 %.
_CLEARLY_FASTER = 1.3

# Number of multiplications, each with its own factor from memory, below which a second thread is
# not used: at the 5 to 10 GB/s that one core reads they take some milliseconds, as does waiting for
# a thread that has lost its core to another process.
_FEW_MULTIPLICATIONS = 30_000_000

# Whether this is a process of our own in which the user has not chosen the number of threads.
_automatic = False


def prepare(num_threads: int | None = None) -> None:
    """Set the threads of a process before it loads torch.

    For a process of our own. NumPy must not be loaded before, either. Variables that the user has
    set stay as they are, except that `num_threads` overrides them. A process that has loaded torch
    before is not our own: there only a given number is set.

    Args:
        num_threads: Threads of torch; None leaves the choice to the user's environment, else to
            `fit`.
    """
    global _automatic
    if num_threads is not None:
        _automatic = False
        os.environ.update(dict.fromkeys(NUM_THREADS, str(num_threads)))
    if "torch" in sys.modules:
        if num_threads is not None:
            sys.modules["torch"].set_num_threads(num_threads)
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not any(name in os.environ for name in NUM_THREADS):
        _automatic = True
        os.environ["OMP_NUM_THREADS"] = "1"


def chosen() -> int | None:
    """Return the number of threads that the user chose.

    By an option or a variable; None if the user chose none.
    """
    told = [os.environ[name] for name in NUM_THREADS if name in os.environ]
    return int(told[0]) if told and not _automatic and told[0].isdecimal() else None


def is_automatic() -> bool:
    """Tell whether the number of threads is chosen automatically.

    That is so in a process of our own in which the user has not chosen it.
    """
    return _automatic


def fit(network: "nn.Module") -> None:
    """Set the threads of torch to what this network can use.

    Only where the user has left the choice to us.
    """
    import torch

    if _automatic:
        torch.set_num_threads(num_threads_for(num_multiplied(network)))


def num_multiplied(network: "nn.Module") -> int:
    """Count the multiplied parameters: those outside of embedding tables."""
    import torch

    tables = {
        id(module.weight) for module in network.modules() if isinstance(module, torch.nn.Embedding)
    }
    return sum(
        parameter.numel() for parameter in network.parameters() if id(parameter) not in tables
    )


def num_threads_for(num_parameters: int) -> int:
    """Choose the number of threads from the size of a network.

    One for a small network, all available cores for a large one. The rule depends on the size
    alone, not on the load. The number determines in which order sums are rounded, so the same
    command must use the same number on the same machine.

    Args:
        num_parameters: Parameters that are multiplied, that is outside of embedding tables.
    """
    return 1 if num_parameters < _LARGE else available_cores()


def available_cores() -> int:
    """Count the cores that this process may use.

    Its affinity and the quota of its container limit them.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = _QUOTA.read_text().split()
        return min(cores, max(1, int(quota) // int(period)))
    # No container, another version of cgroups, or no limit "max".
    except (OSError, ValueError):
        return cores


def free_cores() -> int:
    """Count the available cores that are free now, at least 1.

    Takes 0.2 s. The time that this process itself uses meanwhile counts as free. Returns all
    available cores where the system does not report their use.
    """
    available = available_cores()
    before, used, begun = _core_times(), time.process_time(), time.perf_counter()
    time.sleep(_WATCHED_SECONDS)
    after, used, seconds = _core_times(), time.process_time() - used, time.perf_counter() - begun
    idle = 0.0
    for core, (idle_after, total_after) in after.items():
        idle_before, total_before = before.get(core, (0, 0))
        # In some sandboxes the counters do not advance; then nothing is known.
        if total_after <= total_before:
            return available
        # A core that is idle for a share s of the time counts as s free cores.
        idle += (idle_after - idle_before) / (total_after - total_before)
    if not after:
        return available
    return min(available, max(1, round(idle + used / seconds)))


def _core_times() -> dict[int, tuple[int, int]]:
    """Return idle and total time of every core of this process.

    In units of the system; empty where it does not report them.
    """
    try:
        lines = [line.split() for line in _STAT.read_text().splitlines()]
        times = {
            int(line[0][3:]): [int(part) for part in line[1:9]]
            for line in lines
            if line[:1] and line[0][3:].isdigit()
        }
    except (OSError, ValueError):
        return {}
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else times.keys()
    # Columns: user, nice, system, idle, waiting for a disk, two kinds of interrupts, stolen by
    # another virtual machine.
    return {
        core: (row[3] + row[4], sum(row))
        for core, row in times.items()
        if core in allowed and len(row) > 4
    }


def faster_with(
    candidates: Iterable[int], product: Callable[[], object], *, num_parameters: int
) -> int:
    """Choose the number of threads for a product.

    More than 1 only where that is clearly faster. Small networks get 1 without a measurement. For
    large ones the product is called once with one thread and once with each candidate, in ascending
    order, until a candidate is not 1.3 times as fast as the best number before it. Afterwards torch
    has its former number of threads again.

    Args:
        candidates: Numbers of threads; those below 2 are left out.
        product: The work. Call it once before, so that nothing in it is done for the first time.
        num_parameters: Parameters that are multiplied; see `num_multiplied`.
    """
    if num_parameters < _LARGE:
        return 1
    import torch

    before = torch.get_num_threads()
    best = 1
    try:
        seconds, cpu_seconds = _timed(product, 1)
        # A single thread that waits for nothing takes as long as its CPU time. The rest was lost to
        # other processes, so more threads do not gain it.
        fastest = min(seconds, cpu_seconds)
        for candidate in sorted({number for number in candidates if number > 1}):
            seconds, _ = _timed(product, candidate)
            if seconds * _CLEARLY_FASTER > fastest:
                break
            best, fastest = candidate, seconds
    finally:
        torch.set_num_threads(before)
    return best


def _timed(product: Callable[[], object], num_threads: int) -> tuple[float, float]:
    """Measure wall and CPU seconds of a call.

    It runs with the given number of threads.
    """
    import torch

    torch.set_num_threads(num_threads)
    begun, cpu_begun = time.perf_counter(), time.process_time()
    product()
    return time.perf_counter() - begun, time.process_time() - cpu_begun


# Only one section at a time: the number of BLAS threads belongs to the process. A second Python
# thread that began meanwhile would take the 1 for the user's number and set it again when it ends.
_blas_lock = RLock()


@contextmanager
def single_blas_thread() -> Iterator[None]:
    """Run NumPy's BLAS on one thread in this section.

    Afterwards it has its former threads again. For matrices of up to some hundred rows. Entering
    takes 20 microseconds.
    """
    with _blas_lock, _pools("blas", "torch" in sys.modules).limit(limits=1):
        yield


@contextmanager
def single_openmp_thread() -> Iterator[None]:
    """Run torch on one thread in this section.

    Only in this Python thread. This does not use `torch.set_num_threads`, which sets a number of
    the process: a Python thread that first uses torch during the section would keep that number for
    good. Where the user has called that function, MKL's matrix products keep the user's number.
    """
    with _pools("openmp", True).limit(limits=1):
        yield


@contextmanager
def threads_for(num_multiplications: int) -> Iterator[None]:
    """Run torch on one thread if the work is small.

    Otherwise torch has the user's threads in this section.

    Args:
        num_multiplications: Multiplications in the section that read their own factor from memory,
            as those of a matrix and a vector do.
    """
    if num_multiplications >= _FEW_MULTIPLICATIONS or torch_threads() == 1:
        yield
        return
    with single_openmp_thread():
        yield


def torch_threads() -> int:
    """Return the present number of torch threads.

    In this Python thread.
    """
    import torch

    return torch.get_num_threads()


@cache
def _pools(kind: str, with_torch: bool) -> Any:
    # Cached, since finding the libraries takes 2 ms. They are searched again once torch, which not
    # every command loads, has added its own.
    if with_torch:
        import torch  # noqa: F401  (so that its libraries, and NumPy's, are there to be found)
    import numpy  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api=kind)
