"""Threads of torch and BLAS: as many as the work can use, and none that spins while it waits.

A thread that spins at a barrier holds the core that the thread it waits for needs: beside busy processes, a product of a
100 x 10 and a 10 x 20 matrix was seen to take 33 ms with two threads on two cores, and 10 microseconds with one.
`prepare` is for a process of our own, the command line; `fit` acts in such a process alone. The sections `single_blas_thread` and
`single_openmp_thread` are for any process, and change nothing outside.
Imports nothing heavy, since `prepare` has to run before torch and NumPy are loaded: their thread pools read the environment
once.
"""

import os
import sys
from collections.abc import Iterator
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


def fit(network: "nn.Module") -> None:
    """Give torch the threads that work with this network can use, where the choice was left to us."""
    import torch

    if _automatic:
        tables = {id(m.weight) for m in network.modules() if isinstance(m, torch.nn.Embedding)}
        torch.set_num_threads(num_threads_for(sum(p.numel() for p in network.parameters() if id(p) not in tables)))


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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text().split()
        return min(cores, max(1, int(quota) // int(period)))
    # No container, another version of cgroups, or no limit ("max").
    except (OSError, ValueError):
        return cores


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


@cache
def _pools(kind: str, with_torch: bool) -> Any:
    # Kept, since finding the libraries takes 2 ms; found again once torch, which not every command loads, has brought its own.
    if with_torch:
        import torch  # noqa: F401  (so that its libraries, and NumPy's, are there to be found)
    import numpy  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api=kind)
