r"""The fused kernels of the selective scan on tensors: allocation, sizes of tiles, tasks.

theta = (u, s, A, B, C, D, bias); shapes as in selective_kernels.py. A direction of theta has the
same shapes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.kernels import selective_kernels, tangent_kernels
from landscape.kernels.cpu import flat, run
from landscape.kernels.lanes import VECTOR_BYTES

# Bytes of a tile, about a second-level cache. With shorter tiles more steps are run twice, which
# costs more.
_TILE_BYTES = 1 << 19
# Smallest number of tasks in a call, so that a batch of one still uses many threads. It is not the
# number of threads, since rounding would then depend on it.
_MIN_TASKS = 16
_FORWARD = selective_kernels.FORWARD_QUANTITIES
_GRADIENT = selective_kernels.GRADIENT_QUANTITIES
_TANGENT = tangent_kernels.TANGENT_QUANTITIES


def _arrays(tensors: Sequence[Tensor]) -> tuple[np.ndarray, ...]:
    return tuple(flat(x) for x in tensors)


def _num_parts(u: Tensor) -> int:
    """Return the number of parts into which a row's channels are divided.

    Each part is a task.
    """
    blocks = -(-u.shape[1] * u.element_size() // VECTOR_BYTES)
    return max(1, min(blocks, -(-_MIN_TASKS // max(u.shape[0], 1))))


def _launch(
    kernel: Callable[..., Any], theta: Sequence[Tensor], quantities: int, softplus: bool, *args: Any
) -> None:
    """Run a kernel over all rows.

    `args` are the kernel's arguments between its scratch memory and its sizes; the last of them
    holds those after the sizes.
    """
    u, states = theta[0], theta[2].shape[2]
    rows, channels, length = u.shape
    lanes = VECTOR_BYTES // u.element_size()
    # At least `lanes` steps, so that whole square blocks can be transposed into the tile.
    tile_steps = min(length, max(lanes, _TILE_BYTES // (quantities * VECTOR_BYTES)))
    # For each state: A, the adjoint state and the sum for A, each with its derivative; then the
    # state at the start of each tile, with its derivative.
    # One start more than tiles: without a backward run, `tangent` stores the state after the last
    # one.
    num_vectors = (
        quantities * tile_steps + 6 * states + 2 * states * (-(-length // tile_steps) + 1) + 2
    )
    sizes = (channels, states, length, _num_parts(u), tile_steps, softplus)
    before, after = args[:-1], args[-1]
    work = quantities * u.numel() * states // _FORWARD
    run(kernel, rows * sizes[3], work, num_vectors * lanes, u, *before, sizes, *after)


def _like(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors]


def _with_parts(out: list[Tensor], parts: int) -> list[Tensor]:
    """Give dB and dC a dimension for sums over parts of the channels."""
    # B and C are shared by the channels of a row, so dB and dC are sums over channels. Each task
    # has a sum of its own: no two threads write to one place, and the order of additions is fixed.
    shape = (out[3].shape[0], parts, *out[3].shape[1:])
    return [*out[:3], out[3].new_empty(shape), out[4].new_empty(shape), *out[5:]]


def _add_parts(out: list[Tensor]) -> list[Tensor]:
    return [*out[:3], out[3].sum(1), out[4].sum(1), *out[5:]]


def forward(theta: Sequence[Tensor], softplus: bool) -> Tensor:
    """Compute y."""
    (y,) = _like(theta[:1])
    _launch(selective_kernels.forward, theta, _FORWARD, softplus, _arrays(theta), flat(y), ())
    return y


def gradient(theta: Sequence[Tensor], dy: Tensor, softplus: bool) -> list[Tensor]:
    """Compute the gradient of <dy, y> in theta."""
    out = _with_parts(_like(theta), _num_parts(theta[0]))
    _launch(
        selective_kernels.gradient,
        theta,
        _GRADIENT,
        softplus,
        _arrays((*theta, dy)),
        _arrays(out),
        (),
    )
    return _add_parts(out)


def tangent(
    theta: Sequence[Tensor],
    dy: Tensor,
    theta_: Sequence[Tensor],
    dy_: Tensor | None,
    softplus: bool,
) -> list[Tensor]:
    """Differentiate y and the gradient of <dy, y> in theta along a direction.

    The direction is (theta_, dy_); dy_ None stands for zero.

    Returns:
        The derivatives of the gradient in the order of theta, then that of y.
    """
    out = _with_parts(_like((*theta, dy)), _num_parts(theta[0]))
    # The kernel takes an array of no elements for zero; a full array of zeros would be read for
    # nothing.
    dy_ = dy.new_empty(0) if dy_ is None else dy_
    arrays = (_arrays((*theta, dy)), _arrays((*theta_, dy_)), _arrays(out))
    _launch(tangent_kernels.tangent, theta, _TANGENT, softplus, *arrays, (True,))
    return _add_parts(out)


def push(theta: Sequence[Tensor], theta_: Sequence[Tensor], softplus: bool) -> Tensor:
    """Compute the derivative of y along theta_."""
    (y_,) = _like(theta[:1])
    unused = y_.new_empty(0)
    arrays = (_arrays((*theta, unused)), _arrays((*theta_, unused)), _arrays((*[unused] * 7, y_)))
    _launch(tangent_kernels.tangent, theta, _TANGENT, softplus, *arrays, (False,))
    return y_
