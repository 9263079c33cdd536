"""Triton kernel of the linear recurrence; imported only when a scan runs on a GPU (or in Triton's interpreter).

A program walks through the length of a few rows, tile by tile; inside a tile the recurrence is an associative scan, so
that loads and stores are contiguous.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Elements of one tile: a few per thread of the 4 warps that Triton starts by default.
_TILE = 1024
_TILE_STEPS = 256


@triton.jit
def _compose(a1, b1, a2, b2):  # type: ignore[no-untyped-def]
    """The step (a1, b1) followed by the step (a2, b2)."""
    return a1 * a2, a2 * b1 + b2


@triton.jit
def _linear_scan(  # type: ignore[no-untyped-def]
    a, b, h, num_rows, length, REVERSE: tl.constexpr, ROWS: tl.constexpr, STEPS: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    steps = tl.arange(0, STEPS)[None, :]
    state = tl.zeros((ROWS, 1), dtype=h.dtype.element_ty)
    for start in range(0, length, STEPS):
        t = start + steps
        inside = (row < num_rows) & (t < length)
        at = row.to(tl.int64) * length + (length - 1 - t if REVERSE else t)
        decay, source = (
            tl.load(a + at, mask=inside, other=0.0),
            tl.load(b + at, mask=inside, other=0.0),
        )
        decay, source = tl.associative_scan((decay, source), 1, _compose)
        states = source + decay * state
        tl.store(h + at, states, mask=inside)
        state = tl.sum(tl.where(steps == STEPS - 1, states, 0.0), axis=1, keep_dims=True)


def linear_scan(a: Tensor, b: Tensor, reverse: bool) -> Tensor:
    """h_t = a_t h_{t-1} + b_t along the last dimension of two tensors of one shape, on their GPU."""
    a, b = a.contiguous(), b.contiguous()
    h = torch.empty_like(b)
    length = b.shape[-1]
    num_rows = b.numel() // length
    if num_rows:
        steps = min(triton.next_power_of_2(length), _TILE_STEPS)
        rows = max(1, _TILE // steps)
        with torch.cuda.device_of(b):
            _linear_scan[(triton.cdiv(num_rows, rows),)](
                a, b, h, num_rows, length, reverse, rows, steps
            )
    return h
