"""The linear recurrence, with derivatives of every order that are made of itself.

Knows arrays, not networks; a kernel is imported when it first runs. Shapes: l = length; all other dimensions are independent.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from landscape.kernels import reference
from landscape.kernels.backends import Backend, resolve_backend
from landscape.kernels.forward_mode import forward_rule


@torch.library.custom_op("landscape::linear_scan", mutates_args=())
def _kernel(a: Tensor, b: Tensor, reverse: bool, backend: str) -> Tensor:
    if backend == "cpu":
        from landscape.kernels import cpu

        return cpu.linear_scan(a, b, reverse)
    from landscape.kernels import gpu

    return gpu.linear_scan(a, b, reverse)


@_kernel.register_fake
def _(a: Tensor, b: Tensor, reverse: bool, backend: str) -> Tensor:
    return torch.empty_like(b, memory_format=torch.contiguous_format)


def _to_front(in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of one shape for each example, with the mapped dimension first, in all of them."""
    moved = (x[None] if dim is None else x.movedim(dim, 0) for x, dim in zip(tensors, in_dims))
    return torch.broadcast_tensors(*moved)


# torch.func.linearize records the operator itself, not the Function below.
@_kernel.register_vmap
def _(info: Any, in_dims: tuple, a: Tensor, b: Tensor, reverse: bool, backend: str) -> tuple[Tensor, int]:
    return _kernel(*_to_front(in_dims, a, b), reverse, backend), 0


def _shift(x: Tensor, later: bool) -> Tensor:
    """Move by one step, to later or to earlier times; a zero moves in."""
    return F.pad(x[..., :-1], (1, 0)) if later else F.pad(x[..., 1:], (0, 1))


class _LinearScan(torch.autograd.Function):
    """The recurrence with derivatives that are made of the same function, hence have derivatives themselves."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, reverse: bool, backend: str) -> Tensor:
        if backend != "log_depth":
            return _kernel(a, b, reverse, backend)
        h = reference.linear_scan_log_depth(a, b, reverse=reverse)
        # A Function may not return its input.
        return h.clone() if h is b else h

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        a, _, ctx.reverse, ctx.backend = inputs
        ctx.save_for_backward(a, output)
        ctx.save_for_forward(a, output)

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor, Tensor, None, None]:
        # The adjoint runs the other way: g_t = dh_t + a_{t+1} g_{t+1}, and then da_t = g_t h_{t-1}.
        a, h = ctx.saved_tensors
        g = _LinearScan.apply(_shift(a, later=ctx.reverse), dh, not ctx.reverse, ctx.backend)
        return g * _shift(h, later=not ctx.reverse), g, None, None

    @staticmethod
    def jvp(ctx: Any, da: Tensor | None, db: Tensor | None, *_: None) -> Tensor:
        with forward_rule(ctx) as (a, h):
            source = torch.zeros_like(h) if db is None else db
            if da is not None:
                source = source + da * _shift(h, later=not ctx.reverse)
            return _LinearScan.apply(a, source, ctx.reverse, ctx.backend)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, a: Tensor, b: Tensor, reverse: bool, backend: str) -> tuple[Tensor, int]:
        return _LinearScan.apply(*_to_front(in_dims, a, b), reverse, backend), 0


def _check_pair(a: Tensor, b: Tensor) -> None:
    if a.dtype != b.dtype or a.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"linear_scan: a and b must both be float32 or both be float64, got {a.dtype} and {b.dtype}; a recurrence "
            "multiplies rounding errors, so half precision is not supported. Convert them with .float()."
        )
    if a.device != b.device:
        raise ValueError(f"linear_scan: a and b must be on one device, got {a.device} and {b.device}.")
    if a.dim() == 0 or b.dim() == 0 or a.shape[-1] != b.shape[-1] or b.shape[-1] == 0:
        raise ValueError(
            f"linear_scan: the last dimension of a and b is time, of one length >= 1; got shapes {tuple(a.shape)} and "
            f"{tuple(b.shape)}."
        )


def linear_scan(
    a: Float[Tensor, "*#rows l"], b: Float[Tensor, "*#rows l"], *, reverse: bool = False, backend: Backend = "auto"
) -> Float[Tensor, "*rows l"]:
    r"""First-order linear recurrence h_t = a_t h_{t-1} + b_t along the last dimension, from h_{-1} = 0.

    Differentiable to any order in reverse and forward mode, under `torch.func` and with `is_grads_batched`.

    Args:
        a: Coefficients; a_0 multiplies the initial state, which is zero. Leading dimensions broadcast.
        b: Sources. float32 or float64, as `a`.
        reverse: Run from the end to the beginning: h_t = a_t h_{t+1} + b_t, from h_l = 0.
        backend: See `landscape.kernels.backends`; "reference" is differentiated by ordinary autograd, all others by scans.

    Returns:
        Every state h_t, contiguous.

    Raises:
        ValueError: If shapes, dtypes, devices or the back end do not fit, or the length is zero.
        MissingDependencyError: If a back end was asked for by name and is not installed.

    Source: the adjoint of a linear recurrence is the reversed recurrence, as in Martin & Cundy, Parallelizing linear
    recurrent neural nets over sequence length (2018), section 2.2.
    """
    _check_pair(a, b)
    chosen = resolve_backend(backend, b.device)
    try:
        a, b = torch.broadcast_tensors(a, b)
    except RuntimeError:
        raise ValueError(f"linear_scan: shapes {tuple(a.shape)} and {tuple(b.shape)} do not broadcast.") from None
    if chosen == "reference":
        return reference.linear_scan_loop(a, b, reverse=reverse)
    return _LinearScan.apply(a, b, reverse, chosen)
