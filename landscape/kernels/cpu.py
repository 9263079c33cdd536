"""Numba kernel of the linear recurrence, and what every kernel of this room on the CPU shares: tiles and threads.

Imported only when a scan runs on the CPU. A kernel is compiled once per dtype and cached on disk.
Shapes: l = length; a tile holds `lanes` rows (16 in float32, 8 in float64) and some steps of several quantities,
stored as tile[step, quantity, lane] so that one step of one quantity is one vector.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.kernels.lanes import VECTOR_BYTES, compiled, lane_count, load, splat, store, transpose

# Arithmetic steps below which waking a second thread costs more than it saves; about 100 microseconds of work.
_SERIAL_WORK = 100_000
# Steps of one tile; two quantities in and one out then fit a first-level cache of 32 KiB.
_TILE_STEPS = 128


@compiled
def load_tile(source, start, length, rows, steps, tile, at, pitch):  # type: ignore[no-untyped-def]
    """Copy source[start + i * length + t] to lane i of tile[at + t * pitch], zero in lanes beyond `rows`."""
    lanes = lane_count(tile)
    done = 0
    if rows == lanes:
        for t in range(0, steps - lanes + 1, lanes):
            transpose(source, start + t, length, tile, at + t * pitch, pitch)
            done = t + lanes
    for i in range(lanes):
        for t in range(done, steps):
            tile[at + t * pitch + i] = source[start + i * length + t] if i < rows else tile.dtype.type(0)


@compiled
def store_tile(target, start, length, rows, steps, tile, at, pitch):  # type: ignore[no-untyped-def]
    """The reverse of `load_tile`; lanes beyond `rows` are dropped."""
    lanes = lane_count(tile)
    done = 0
    if rows == lanes:
        for t in range(0, steps - lanes + 1, lanes):
            transpose(tile, at + t * pitch, pitch, target, start + t, length)
            done = t + lanes
    for i in range(rows):
        for t in range(done, steps):
            target[start + i * length + t] = tile[at + t * pitch + i]


@compiled
def _linear_scan(first, last, tile, a, b, h, num_rows, length, reverse):  # type: ignore[no-untyped-def]
    """h_t = a_t h_{t-1} + b_t for blocks `first` to `last` of `lanes` rows each."""
    lanes = lane_count(tile)
    for block in range(first, last):
        rows = min(lanes, num_rows - block * lanes)
        state = splat(tile.dtype.type(0))
        for done in range(0, length, _TILE_STEPS):
            steps = min(_TILE_STEPS, length - done)
            start = block * lanes * length + (length - done - steps if reverse else done)
            load_tile(a, start, length, rows, steps, tile, 0, 2 * lanes)
            load_tile(b, start, length, rows, steps, tile, lanes, 2 * lanes)
            for i in range(steps):
                at = 2 * lanes * (steps - 1 - i if reverse else i)
                state = load(tile, at) * state + load(tile, at + lanes)
                store(tile, at, state)
            store_tile(h, start, length, rows, steps, tile, 0, 2 * lanes)


@cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, thread_name_prefix="landscape-scan")


# Threads do not survive a fork; a forked process (a data loader's worker) starts its own when it needs them.
os.register_at_fork(after_in_child=_pool.cache_clear)


def run(kernel: Callable[..., Any], num_tasks: int, work: int, scratch_size: int, like: Tensor, *args: Any) -> None:
    """Call kernel(first, last, scratch, *args) so that the ranges cover `num_tasks` tasks.

    Uses at most `torch.get_num_threads()` threads. They are Python threads, since the kernels hold no GIL: Numba's own
    threading layers either cannot be entered by two threads at once or fight with torch's OpenMP threads.

    Args:
        kernel: Compiled; its tasks are independent of each other.
        num_tasks: Number of tasks.
        work: Arithmetic steps of all tasks together; little work is done in this thread.
        scratch_size: Elements of scratch memory that one thread needs, uninitialised.
        like: A tensor with the dtype of the scratch memory.
    """
    num_threads = 1 if work < _SERIAL_WORK else max(1, min(torch.get_num_threads(), num_tasks))
    scratch = like.new_empty(num_threads, scratch_size).numpy()
    bounds = [num_tasks * i // num_threads for i in range(num_threads + 1)]
    calls = [(bounds[i], bounds[i + 1], scratch[i], *args) for i in range(num_threads)]
    waiting = [_pool(num_threads - 1).submit(kernel, *call) for call in calls[1:]]
    kernel(*calls[0])
    for future in waiting:
        future.result()


def flat(x: Tensor) -> np.ndarray:
    """The elements in order, shared with `x` where it is contiguous."""
    return x.detach().contiguous().view(-1).numpy()


def linear_scan(a: Tensor, b: Tensor, reverse: bool) -> Tensor:
    """h_t = a_t h_{t-1} + b_t along the last dimension of two tensors of one shape."""
    h = torch.empty_like(b, memory_format=torch.contiguous_format)
    length = b.shape[-1]
    num_rows = b.numel() // length
    lanes = VECTOR_BYTES // b.element_size()
    tile_size = 2 * lanes * min(length, _TILE_STEPS)
    blocks = -(-num_rows // lanes)
    run(_linear_scan, blocks, b.numel(), tile_size, b, flat(a), flat(b), flat(h), num_rows, length, reverse)
    return h
