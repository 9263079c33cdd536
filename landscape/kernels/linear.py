"""The linear recurrence; its derivatives of every order are linear recurrences too.

Knows arrays, not networks; a kernel is imported when it first runs. Shapes: l = length; all other
dimensions are independent.
"""

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from landscape.kernels import reference
from landscape.kernels.backends import Backend, resolve_backend
from landscape.kernels.forward_mode import forward_rule


def _cpu() -> ModuleType:
    """Load the CPU kernels on first use; Numba takes long to import."""
    from landscape.kernels import cpu

    return cpu


@torch.library.custom_op("landscape::linear_scan", mutates_args=())
def _kernel(a: Tensor, b: Tensor, reverse: bool, backend: str) -> Tensor:
    if backend == "cpu":
        return _cpu().linear_scan(a, b, reverse)
    from landscape.kernels import gpu

    return gpu.linear_scan(a, b, reverse)


@torch.library.custom_op("landscape::linear_gradient", mutates_args=())
def _gradient_kernel(a: Tensor, h: Tensor, dh: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    return _cpu().linear_gradient(a, h, dh, reverse)


@torch.library.custom_op("landscape::linear_product", mutates_args=())
def _product_kernel(
    a: Tensor, h: Tensor, g: Tensor, va: Tensor, vb: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _cpu().linear_product(a, h, g, va, vb, reverse)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_kernel.register_fake(lambda a, b, *_: _like(b))
_gradient_kernel.register_fake(lambda a, *_: (_like(a), _like(a)))
_product_kernel.register_fake(lambda a, *_: (_like(a), _like(a), _like(a)))


def _mapped(call: Callable[..., Any], info: Any, in_dims: tuple, args: tuple) -> tuple[Any, Any]:
    """Apply the vmap rule of all operators and Functions here.

    The mapped dimension becomes the first one of all tensors.
    """
    # Time must stay last. The kernels take flat arrays of one shape, so that what is not mapped is
    # expanded too.
    moved = [
        x[None] if dim is None else x.movedim(dim, 0)
        for x, dim in zip(args, in_dims)
        if isinstance(x, Tensor)
    ]
    outputs = call(*torch.broadcast_tensors(*moved), *args[len(moved) :])
    return outputs, 0 if isinstance(outputs, Tensor) else (0,) * len(outputs)


def _register_vmap(operator: Any) -> None:
    operator.register_vmap(lambda info, in_dims, *args: _mapped(operator, info, in_dims, args))


# torch.func.linearize records the operators themselves, not the Functions below.
for _operator in (_kernel, _gradient_kernel, _product_kernel):
    _register_vmap(_operator)


def _shift(x: Tensor, later: bool) -> Tensor:
    """Move by a step to later or earlier times; fill with zero."""
    return F.pad(x[..., :-1], (1, 0)) if later else F.pad(x[..., 1:], (0, 1))


class _LinearScan(torch.autograd.Function):
    """The scan h(a, b); called with a, b, reverse and the back end."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, reverse: bool, backend: str) -> Tensor:
        if backend != "log_depth":
            return _kernel(a, b, reverse, backend)
        h = reference.linear_scan_log_depth(a, b, reverse=reverse)
        # A Function may not return its input.
        return h.clone() if h is b else h

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        # h is linear in b, so that no derivative needs the value of b.
        a, _, ctx.reverse, ctx.backend = inputs
        ctx.save_for_backward(a, output)
        ctx.save_for_forward(a, output)

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor, Tensor, None, None]:
        a, h = ctx.saved_tensors
        # The CPU has fused kernels for the gradient and its derivative. Elsewhere the gradient is
        # made of another scan, whose derivatives are those of this class.
        if ctx.backend == "cpu":
            return (*_LinearGradient.apply(a, h, dh, ctx.reverse), None, None)
        return (*_gradient(a, h, dh, ctx.reverse, ctx.backend), None, None)

    @staticmethod
    def jvp(ctx: Any, da: Tensor | None, db: Tensor | None, *_: None) -> Tensor:
        with forward_rule(ctx) as (a, h):
            # h'_t = a_t h'_{t-1} + (b'_t + a'_t h_{t-1}): the same recurrence with another source.
            source = torch.zeros_like(h) if db is None else db
            if da is not None:
                source = source + da * _shift(h, later=not ctx.reverse)
            return _LinearScan.apply(a, source, ctx.reverse, ctx.backend)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
        return _mapped(_LinearScan.apply, info, in_dims, args)


def _gradient(
    a: Tensor, h: Tensor, dh: Tensor, reverse: bool, backend: str
) -> tuple[Tensor, Tensor]:
    """Compute the gradient of <dh, h> in a and b.

    The adjoint runs in the other direction: g_t = dh_t + a_{t+1} g_{t+1}. It is the gradient in b;
    that in a is da_t = g_t h_{t-1}.
    """
    # h_{t+1} = a_{t+1} h_t + b_{t+1}, so g_t = dL/dh_t gets dh_t directly and a_{t+1} g_{t+1}
    # through the next state. The zero that a shift fills in multiplies g_l = 0, or stands for
    # h_{-1} = 0.
    g = _LinearScan.apply(_shift(a, later=reverse), dh, not reverse, backend)
    return g * _shift(h, later=not reverse), g


class _LinearGradient(torch.autograd.Function):
    """The function `_gradient` in one pass over memory, on the CPU.

    Called with a, h, dh and reverse.
    """

    @staticmethod
    def forward(a: Tensor, h: Tensor, dh: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
        return _gradient_kernel(a, h, dh, reverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        # dh enters the derivatives only through g = db, which is an output.
        a, h, _, ctx.reverse = inputs
        ctx.save_for_backward(a, h, output[1])
        ctx.save_for_forward(a, h, output[1])

    @staticmethod
    def backward(ctx: Any, va: Tensor, vb: Tensor) -> tuple[Tensor | None, ...]:
        return (*_LinearProduct.apply(*ctx.saved_tensors, va, vb, ctx.reverse), None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, Tensor]:
        with forward_rule(ctx) as (a, h, g):
            a_, h_, dh_ = (torch.zeros_like(g) if x is None else x for x in tangents[:3])
            # g_t = dh_t + a_{t+1} g_{t+1} gives g'_t = (dh'_t + a'_{t+1} g_{t+1}) + a_{t+1}
            # g'_{t+1}: the adjoint recurrence with another source. Applied to that source, the
            # gradient gives g'_t h_{t-1} and g'_t; the product rule for da_t = g_t h_{t-1} adds g_t
            # h'_{t-1}.
            source = dh_ + _shift(a_, later=ctx.reverse) * _shift(g, later=ctx.reverse)
            da_, g_ = _LinearGradient.apply(a, h, source, ctx.reverse)
            return da_ + g * _shift(h_, later=not ctx.reverse), g_

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple, *args: Any
    ) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        return _mapped(_LinearGradient.apply, info, in_dims, args)


# With M = <va, da> + <vb, db> = sum over t of (va_t h_{t-1} + vb_t) g_t, and g_{t-1} = dh_{t-1} +
# a_t g_t, let k_t = dM/dg_t = (vb_t + va_t h_{t-1}) + a_t k_{t-1}: the adjoint of the adjoint runs
# in the direction of the scan again. g_t depends on dh_t with factor 1.
class _LinearProduct(torch.autograd.Function):
    """The derivatives of <va, da> + <vb, db> in a, h and dh, in one pass.

    They are k_{t-1} g_t, va_{t+1} g_{t+1} and k_t, where k is the scan of a and vb_t + va_t
    h_{t-1}. Called with a, h, g = db, va, vb and reverse.
    """

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        return _product_kernel(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
        # vb enters only through k. `before` reads t - 1 and `after` t + 1, in the direction of the
        # scan.
        saved = (*inputs[:4], output[2])
        ctx.before, ctx.after = (
            partial(_shift, later=not inputs[-1]),
            partial(_shift, later=inputs[-1]),
        )
        ctx.reverse = inputs[-1]
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, xa: Tensor, xh: Tensor, xd: Tensor) -> tuple[Tensor | None, ...]:
        (a, h, g, va, k), before, after = ctx.saved_tensors, ctx.before, ctx.after
        # N = sum over t of xa_t k_{t-1} g_t + xh_{t-1} va_t g_t + xd_t k_t. Collected by k_t: the
        # factor is xd_t + xa_{t+1} g_{t+1}. k is the scan of a and (vb_t + va_t h_{t-1}), so its
        # gradients in a and in the source are `by_a` and `by_vb`; the chain rule through the source
        # gives the rest.
        xh = before(xh)
        by_a, by_vb = _LinearGradient.apply(a, k, xd + after(xa * g), ctx.reverse)
        return (
            by_a,
            after(by_vb * va),
            xa * before(k) + xh * va,
            xh * g + by_vb * before(h),
            by_vb,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        with forward_rule(ctx) as (a, h, g, va, k):
            a_, h_, g_, va_, vb_ = (torch.zeros_like(k) if x is None else x for x in tangents[:-1])
            before, after = ctx.before, ctx.after
            # k'_t = a_t k'_{t-1} + (a'_t k_{t-1} + derivative of the source). Only the CPU's
            # gradient comes here.
            k_ = _LinearScan.apply(
                a, vb_ + va_ * before(h) + va * before(h_) + a_ * before(k), ctx.reverse, "cpu"
            )
            return before(k_) * g + before(k) * g_, after(va_ * g + va * g_), k_

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _mapped(_LinearProduct.apply, info, in_dims, args)


def _check_pair(a: Tensor, b: Tensor) -> None:
    if a.dtype != b.dtype or a.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"linear_scan: a and b must both be float32 or both be float64, got {a.dtype} and "
            f"{b.dtype}; a recurrence multiplies rounding errors, so half precision is not "
            "supported. Convert them with .float()."
        )
    if a.device != b.device:
        raise ValueError(
            f"linear_scan: a and b must be on one device, got {a.device} and {b.device}."
        )
    if a.dim() == 0 or b.dim() == 0 or a.shape[-1] != b.shape[-1] or b.shape[-1] == 0:
        raise ValueError(
            "linear_scan: the last dimension of a and b is time, of one length >= 1; got shapes "
            f"{tuple(a.shape)} and {tuple(b.shape)}."
        )


def linear_scan(
    a: Float[Tensor, "*#rows l"],
    b: Float[Tensor, "*#rows l"],
    *,
    reverse: bool = False,
    backend: Backend = "auto",
) -> Float[Tensor, "*rows l"]:
    r"""Run the linear recurrence along the last dimension.

    h_t = a_t h_{t-1} + b_t, from h_{-1} = 0. Differentiable to any order in reverse and forward
    mode, under `torch.func` and with `is_grads_batched`.

    Args:
        a: Coefficients; a_0 multiplies the initial state, which is zero. Leading dimensions
            broadcast.
        b: Sources. float32 or float64, as `a`.
        reverse: Run from the end to the beginning: h_t = a_t h_{t+1} + b_t, from h_l = 0.
        backend: See `landscape.kernels.backends`; "reference" is differentiated by ordinary
            autograd, all others by scans.

    Returns:
        Every state h_t, contiguous.

    Raises:
        ValueError: If shapes, dtypes, devices or the back end do not fit, or the length is zero.
        MissingDependencyError: If a back end was asked for by name and is not installed.

    Source: the adjoint of a linear recurrence is the reversed recurrence, as in Martin & Cundy,
    Parallelizing linear recurrent neural nets over sequence length (2018), section 2.2.
    """
    _check_pair(a, b)
    chosen = resolve_backend(backend, b.device)
    try:
        # Outside of the Function, so that autograd sums the gradients over expanded dimensions.
        a, b = torch.broadcast_tensors(a, b)
    except RuntimeError:
        raise ValueError(
            f"linear_scan: shapes {tuple(a.shape)} and {tuple(b.shape)} do not broadcast."
        ) from None
    if chosen == "reference":
        return reference.linear_scan_loop(a, b, reverse=reverse)
    return _LinearScan.apply(a, b, reverse, chosen)
