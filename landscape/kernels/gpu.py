"""The linear recurrence as a Triton kernel.

Imported only when a scan runs on a GPU (or in Triton's interpreter). A program processes the length
of a few rows, tile by tile. Inside a tile the recurrence is an associative scan, so that loads and
stores are contiguous.
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
    """Compose two steps: (a1, b1), then (a2, b2).

    A step is h -> a h + b, so the second after the first is h -> a2 a1 h + (a2 b1 + b2).
    """
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
        # int64, since row * length exceeds 2^31 for large batches. A reversed scan reads the same
        # steps from the row's end.
        at = row.to(tl.int64) * length + (length - 1 - t if REVERSE else t)
        decay, source = (
            tl.load(a + at, mask=inside, other=0.0),
            tl.load(b + at, mask=inside, other=0.0),
        )
        # (decay, source)_t becomes the composition of the tile's steps up to t, so that h_t =
        # decay_t h + source_t, where h is the state before the tile.
        decay, source = tl.associative_scan((decay, source), 1, _compose)
        states = source + decay * state
        tl.store(h + at, states, mask=inside)
        # A block of registers has no index: the last column is picked by a mask and a sum. In the
        # last tile it may be padding, but then no tile follows.
        state = tl.sum(tl.where(steps == STEPS - 1, states, 0.0), axis=1, keep_dims=True)


def linear_scan(a: Tensor, b: Tensor, reverse: bool) -> Tensor:
    """Run h_t = a_t h_{t-1} + b_t along the last dimension, on a GPU.

    Both tensors have one shape.
    """
    a, b = a.contiguous(), b.contiguous()
    h = torch.empty_like(b)
    length = b.shape[-1]
    num_rows = b.numel() // length
    if num_rows:
        # Triton's ranges must be powers of two. Short rows share a program, which keeps its size.
        steps = min(triton.next_power_of_2(length), _TILE_STEPS)
        rows = max(1, _TILE // steps)
        with torch.cuda.device_of(b):
            _linear_scan[(triton.cdiv(num_rows, rows),)](
                a, b, h, num_rows, length, reverse, rows, steps
            )
    return h
