"""Threads of torch and BLAS: as many as the work can use, and none that spins while it waits.

A thread that spins at a barrier holds the core that the thread it waits for needs: beside busy processes, a product of a
100 x 10 and a 10 x 20 matrix was seen to take 33 ms with two threads on two cores, and 10 microseconds with one.
`prepare` is for a process of our own, the command line; `fit` acts in such a process alone. The sections `single_blas_thread`,
`single_openmp_thread` and `threads_for` are for any process, and change nothing outside.
Imports nothing heavy, since `prepare` has to run before torch and NumPy are loaded: their thread pools read the environment
once.
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

# Set where the user has not. The first two are for GNU's and Intel's OpenMP, in torch; the last for NumPy's and SciPy's BLAS,
# which multiply matrices of some hundred rows here.
_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "OPENBLAS_NUM_THREADS": "1"}
# With which a user chooses the number of threads of torch.
_NUM_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
# Parameters outside of embedding tables from which a network gets all cores. Medians of training steps with one and two
# threads, in turn on two shared cores: 0.1 M parameters 0.041 and 0.053 s, 1.8 M 0.59 and 0.70 s, 31 M 11.2 and 5.9 s.
_LARGE = 10_000_000
# The limit of a container: microseconds of CPU time, or "max", and the period in which they may be used.
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
# Time that each core has spent, since the machine started, on every kind of work and without work.
_STAT = Path("/proc/stat")
# How long the cores are watched. The kernel counts in units of 10 ms, so a share is known to 5 %.
_WATCHED_SECONDS = 0.2
# How many times as fast more threads must be. What does not pay: of a small vision transformer, two threads on two cores made
# products 1.15 times as fast for 1.7 times the CPU time, and 2 to 4 times as slow beside one busy process. What does: 1.9 times
# for 31 M parameters. Single measurements of the same work differ by 10 %.
_CLEARLY_FASTER = 1.3

# Multiplications, each with a number of its own, for which a second thread is not woken: at the 5 to 10 GB/s that one core reads
# they take some milliseconds, as does waiting for a thread that has lost its core to another process.
_FEW_MULTIPLICATIONS = 30_000_000

# Whether this is a process of our own in which nobody has chosen the number of threads.
_automatic = False


def prepare(num_threads: int | None = None) -> None:
    """Set the threads of a process of our own, before torch and NumPy are loaded.

    Variables that the user has set stay as they are, except that `num_threads` beats them. A process that has loaded torch
    before belongs to somebody else: there only a given number is set.

    Args:
        num_threads: Threads of torch; None leaves the choice to the user's environment, else to `fit`.
    """
    global _automatic
    if num_threads is not None:
        _automatic = False
        os.environ.update(dict.fromkeys(_NUM_THREADS, str(num_threads)))
    if "torch" in sys.modules:
        if num_threads is not None:
            sys.modules["torch"].set_num_threads(num_threads)
        return
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not any(name in os.environ for name in _NUM_THREADS):
        _automatic = True
        os.environ["OMP_NUM_THREADS"] = "1"


def chosen() -> int | None:
    """The number of threads that the user has chosen, by an option or a variable; None where nobody has."""
    told = [os.environ[name] for name in _NUM_THREADS if name in os.environ]
    return int(told[0]) if told and not _automatic and told[0].isdecimal() else None


def is_automatic() -> bool:
    """Whether this is a process of our own in which nobody has chosen the number of threads."""
    return _automatic


def fit(network: "nn.Module") -> None:
    """Give torch the threads that work with this network can use, where the choice was left to us."""
    import torch

    if _automatic:
        torch.set_num_threads(num_threads_for(num_multiplied(network)))


def num_multiplied(network: "nn.Module") -> int:
    """Count the parameters that are multiplied, that is outside of embedding tables."""
    import torch

    tables = {
        id(module.weight) for module in network.modules() if isinstance(module, torch.nn.Embedding)
    }
    return sum(
        parameter.numel() for parameter in network.parameters() if id(parameter) not in tables
    )


def num_threads_for(num_parameters: int) -> int:
    """One thread for a small network, all available cores for a large one.

    A rule of the size alone, not of the load: the number decides in which order sums are rounded, so the same command must come
    to the same number on the same machine.

    Args:
        num_parameters: Parameters that are multiplied, that is outside of embedding tables.
    """
    return 1 if num_parameters < _LARGE else available_cores()


def available_cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its container."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = _QUOTA.read_text().split()
        return min(cores, max(1, int(quota) // int(period)))
    # No container, another version of cgroups, or no limit ("max").
    except (OSError, ValueError):
        return cores


def free_cores() -> int:
    """Count the available cores that others leave free now, at least 1; takes 0.2 s.

    What this process itself uses meanwhile counts as free. All available cores where the system does not say what they do.
    """
    available = available_cores()
    before, used, begun = _core_times(), time.process_time(), time.perf_counter()
    time.sleep(_WATCHED_SECONDS)
    after, used, seconds = _core_times(), time.process_time() - used, time.perf_counter() - begun
    idle = 0.0
    for core, (idle_after, total_after) in after.items():
        idle_before, total_before = before.get(core, (0, 0))
        # Where time stands still, as in some sandboxes, nothing is known.
        if total_after <= total_before:
            return available
        idle += (idle_after - idle_before) / (total_after - total_before)
    if not after:
        return available
    return min(available, max(1, round(idle + used / seconds)))


def _core_times() -> dict[int, tuple[int, int]]:
    """Time without work and all time of every core of this process, in units of the system; empty where it is not told."""
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
    # Columns: user, nice, system, idle, waiting for a disk, two kinds of interrupts, stolen by another virtual machine.
    return {
        core: (row[3] + row[4], sum(row))
        for core, row in times.items()
        if core in allowed and len(row) > 4
    }


def faster_with(
    candidates: Iterable[int], product: Callable[[], object], *, num_parameters: int
) -> int:
    """Choose the number of threads for a product: more than 1 only where that is clearly faster.

    Small networks get 1 without a measurement. For large ones the product is called once with one thread and once with each
    candidate, in ascending order, until a candidate is not 1.3 times as fast as the best number before it. torch has its number
    of threads back afterwards.

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
        # A single thread that waits for nothing takes as long as its CPU time; the rest was lost to others, and is no gain.
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
    """Wall and CPU seconds of a call with this number of threads."""
    import torch

    torch.set_num_threads(num_threads)
    begun, cpu_begun = time.perf_counter(), time.process_time()
    product()
    return time.perf_counter() - begun, time.process_time() - cpu_begun


# One section at a time: the number of BLAS threads belongs to the process, and a second Python thread that began meanwhile would
# take the 1 for the user's number and set it again when it ends.
_blas_lock = RLock()


@contextmanager
def single_blas_thread() -> Iterator[None]:
    """Run NumPy's BLAS on one thread in this section; afterwards it has the threads that it had.

    For matrices of up to some hundred rows. Entering takes 20 microseconds.
    """
    with _blas_lock, _pools("blas", "torch" in sys.modules).limit(limits=1):
        yield


@contextmanager
def single_openmp_thread() -> Iterator[None]:
    """Run torch on one thread in this section, in this Python thread alone.

    Not by `torch.set_num_threads`: it sets a number of the process, which a Python thread that first uses torch during the
    section would keep for good. Where the user has called that function, MKL's matrix products keep the user's number.
    """
    with _pools("openmp", True).limit(limits=1):
        yield


@contextmanager
def threads_for(num_multiplications: int) -> Iterator[None]:
    """Run torch on one thread in this section where the work is small, else on the user's threads.

    Args:
        num_multiplications: Multiplications in the section that read a number of their own, as those of a matrix and a
            vector do.
    """
    if num_multiplications >= _FEW_MULTIPLICATIONS or torch_threads() == 1:
        yield
        return
    with single_openmp_thread():
        yield


def torch_threads() -> int:
    """The number of threads that torch has in this Python thread now."""
    import torch

    return torch.get_num_threads()


@cache
def _pools(kind: str, with_torch: bool) -> Any:
    # Kept, since finding the libraries takes 2 ms; found again once torch, which not every command loads, has brought its own.
    if with_torch:
        import torch  # noqa: F401  (so that its libraries, and NumPy's, are there to be found)
    import numpy  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api=kind)
