"""The linear recurrence on the CPU, and the threads of all kernels here.

Imported only when a scan runs on the CPU. A kernel is compiled once per dtype and cached on disk.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.kernels import linear_kernels

# Arithmetic steps below which starting a second thread costs more than it saves; about 100
# microseconds of work.
_SERIAL_WORK = 100_000


@cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, thread_name_prefix="landscape-scan")


# A forked process (a data loader's worker) does not inherit threads; it starts its own on demand.
os.register_at_fork(after_in_child=_pool.cache_clear)


def run(
    kernel: Callable[..., Any],
    num_tasks: int,
    work: int,
    scratch_size: int,
    like: Tensor,
    *args: Any,
) -> None:
    """Call kernel(first, last, scratch, *args) on ranges that cover all tasks.

    Uses at most `torch.get_num_threads()` threads. They are Python threads, since the kernels hold
    no GIL. Numba's own threading layers either cannot be entered by two threads at once or compete
    with torch's OpenMP threads.

    Args:
        kernel: Compiled function, whose tasks are independent of each other.
        num_tasks: Number of tasks.
        work: Arithmetic steps of all tasks together; little work is done in this thread.
        scratch_size: Elements of scratch memory that one thread needs, uninitialised.
        like: A tensor with the dtype of the scratch memory.
    """
    num_threads = 1 if work < _SERIAL_WORK else max(1, min(torch.get_num_threads(), num_tasks))
    scratch = like.new_empty(num_threads, scratch_size).numpy()
    # Shares differ by at most one task. A task belongs to one thread, so no sum depends on how many
    # threads there are.
    bounds = [num_tasks * i // num_threads for i in range(num_threads + 1)]
    calls = [(bounds[i], bounds[i + 1], scratch[i], *args) for i in range(num_threads)]
    # This thread takes the first share, so the pool has one thread less; where that leaves none,
    # the list is empty and no pool is made.
    waiting = [_pool(num_threads - 1).submit(kernel, *call) for call in calls[1:]]
    kernel(*calls[0])
    for future in waiting:
        future.result()


def flat(x: Tensor) -> np.ndarray:
    """Return the elements in order.

    Memory is shared with `x` where it is contiguous.
    """
    return x.detach().contiguous().view(-1).numpy()


def _by_rows(
    kernel: Callable[..., Any], inputs: tuple[Tensor, ...], num_outputs: int, reverse: bool
) -> tuple[Tensor, ...]:
    """Run a kernel of the linear recurrence along the last dimension.

    All tensors have one shape.
    """
    like = inputs[0]
    outputs = tuple(
        torch.empty_like(like, memory_format=torch.contiguous_format) for _ in range(num_outputs)
    )
    length = like.shape[-1]
    run(
        kernel,
        like.numel() // length,
        like.numel(),
        0,
        like,
        *map(flat, (*inputs, *outputs)),
        length,
        reverse,
    )
    return outputs


def linear_scan(a: Tensor, b: Tensor, reverse: bool) -> Tensor:
    """Run h_t = a_t h_{t-1} + b_t along the last dimension.

    Both tensors have one shape.
    """
    return _by_rows(linear_kernels.scan, (a, b), 1, reverse)[0]


def linear_gradient(a: Tensor, h: Tensor, dh: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """Compute the gradient of <dh, h> in a and b.

    Here h = linear_scan(a, b, reverse).
    """
    da, db = _by_rows(linear_kernels.gradient, (a, h, dh), 2, reverse)
    return da, db


def linear_product(
    a: Tensor, h: Tensor, g: Tensor, va: Tensor, vb: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiate <va, da> + <vb, db> in a, h and dh.

    da and db are the results of `linear_gradient`, and g = db.
    """
    ua, uh, ud = _by_rows(linear_kernels.product, (a, h, g, va, vb), 3, reverse)
    return ua, uh, ud
