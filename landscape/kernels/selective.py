r"""The fused selective scan, with derivatives of every order in both modes and under vmap.

Let y(theta) be the scan, L = <dy, y(theta)>, G the gradient of L in theta, and H the Hessian of L
in (theta, dy). Then

    backward of y is G;  jvp of y is P, the part of H that belongs to dy;
    backward and jvp of G are products with H;

one fused kernel each. Only third derivatives, which are products with the derivative of H, use the
slow twin: elementwise operations around `linear_scan`, with all states in memory.

Shapes: theta = (u, s, A, B, C, D, bias) as in selective_kernels.py, each with a leading dimension r
of independent rows.
"""

import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from landscape.kernels.forward_mode import forward_rule
from landscape.kernels.linear import linear_scan

_THETA = ("u", "s", "A", "B", "C", "D", "bias")
_NUM_INPUTS = len(_THETA)


def _schema(*tensors: str, num_outputs: int) -> str:
    """Write an operator's schema with flat tensors only.

    The vmap behind `is_grads_batched` cannot loop over an operator that takes a list.
    """
    arguments = ", ".join(f"Tensor {name}" if name != "dy_" else "Tensor? dy_" for name in tensors)
    outputs = ", ".join(["Tensor"] * num_outputs)
    return f"({arguments}, bool softplus) -> " + (outputs if num_outputs == 1 else f"({outputs})")


_THETA_ = tuple(f"{name}_" for name in _THETA)


def _operator(name: str, schema: str) -> Callable[[Callable[..., Any]], Any]:
    return torch.library.custom_op(f"landscape::selective_{name}", mutates_args=(), schema=schema)


def _cpu() -> ModuleType:
    """Load the CPU kernels on first use; Numba takes long to import."""
    from landscape.kernels import cpu_selective

    return cpu_selective


@_operator("forward", _schema(*_THETA, num_outputs=1))
def _forward(*args: Any) -> Tensor:
    return _cpu().forward(args[:-1], args[-1])


@_operator("gradient", _schema(*_THETA, "dy", num_outputs=_NUM_INPUTS))
def _gradient(*args: Any) -> tuple[Tensor, ...]:
    return tuple(_cpu().gradient(args[:-2], *args[-2:]))


@_operator("push", _schema(*_THETA, *_THETA_, num_outputs=1))
def _push(*args: Any) -> Tensor:
    return _cpu().push(args[:_NUM_INPUTS], args[_NUM_INPUTS:-1], args[-1])


@_operator("tangent", _schema(*_THETA, "dy", *_THETA_, "dy_", num_outputs=_NUM_INPUTS + 1))
def _tangent(*args: Any) -> tuple[Tensor, ...]:
    p, q = args[: _NUM_INPUTS + 1], args[_NUM_INPUTS + 1 : -1]
    return tuple(_cpu().tangent(p[:-1], p[-1], q[:-1], q[-1], args[-1]))


def _like(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors)


_forward.register_fake(lambda *args: _like(args[0])[0])
_gradient.register_fake(lambda *args: _like(*args[:_NUM_INPUTS]))
_push.register_fake(lambda *args: _like(args[0])[0])
_tangent.register_fake(lambda *args: _like(*args[: _NUM_INPUTS + 1]))


def _map_rows(call: Callable[..., Any], info: Any, in_dims: Any, args: Any) -> tuple[Any, Any]:
    """Apply the vmap rule of all operators and Functions here.

    Mapped examples become more rows.
    """

    def fold(x: Any, dim: int | None) -> Any:
        if not isinstance(x, Tensor):
            return x
        # Rows do not depend on each other, so n examples of r rows are one call with n r rows.
        mapped = x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
        return mapped.flatten(0, 1)

    def unfold(x: Tensor) -> Tensor:
        return x.unflatten(0, (info.batch_size, x.shape[0] // info.batch_size))

    outputs = call(*(fold(x, dim) for x, dim in zip(args, in_dims)))
    if isinstance(outputs, Tensor):
        return unfold(outputs), 0
    return tuple(map(unfold, outputs)), (0,) * len(outputs)


def _register_vmap(operator: Any) -> None:
    operator.register_vmap(lambda info, in_dims, *args: _map_rows(operator, info, in_dims, args))


# torch.func.linearize records these operators, not the Functions below.
for _kernel in (_forward, _gradient, _push, _tangent):
    _register_vmap(_kernel)


def _dense(tangents: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    return [
        torch.zeros_like(x) if tangent is None else tangent for tangent, x in zip(tangents, like)
    ]


class _Scan(torch.autograd.Function):
    """The scan y(theta); called with theta and softplus."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return _forward(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.softplus = inputs[-1]
        ctx.save_for_backward(*inputs[:-1])
        ctx.save_for_forward(*inputs[:-1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return (*_Gradient.apply(*ctx.saved_tensors, dy, ctx.softplus), None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        with forward_rule(ctx) as theta:
            return _Push.apply(*theta, *_dense(tangents[:-1], theta), ctx.softplus)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
        return _map_rows(_Scan.apply, info, in_dims, args)


class _Gradient(torch.autograd.Function):
    """The gradient of <dy, y(theta)> in theta; called with theta, dy and softplus."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return _gradient(*args)

    setup_context = _Scan.setup_context

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        # G is the part dL/d theta of the gradient of L in p = (theta, dy). So the gradient of <v,
        # G> in p is the Hessian times (v, 0), since a Hessian is symmetric; None is that zero.
        return (*_Tangent.apply(*ctx.saved_tensors, *cotangents, None, ctx.softplus), None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        with forward_rule(ctx) as p:
            # The derivative of G along a direction of p is the part for theta of H times the
            # direction. The last part of the result, the derivative of y, is not asked for.
            directions = (*_dense(tangents[:_NUM_INPUTS], p), tangents[_NUM_INPUTS])
            return _Tangent.apply(*p, *directions, ctx.softplus)[:_NUM_INPUTS]

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _map_rows(_Gradient.apply, info, in_dims, args)


class _Push(torch.autograd.Function):
    """The derivative of y along theta_; called with theta, theta_ and softplus."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return _push(*args)

    setup_context = _Scan.setup_context

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        theta, theta_ = ctx.saved_tensors[:_NUM_INPUTS], ctx.saved_tensors[_NUM_INPUTS:]
        # The value is <dy, J(theta) theta_> = <theta_, G>: linear in theta_, with gradient G there,
        # and with gradient H_{theta theta} theta_ in theta.
        along = _Tangent.apply(*theta, dy, *theta_, None, ctx.softplus)[:_NUM_INPUTS]
        return (*along, *_Gradient.apply(*theta, dy, ctx.softplus), None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        with forward_rule(ctx) as saved:
            theta, theta_ = saved[:_NUM_INPUTS], saved[_NUM_INPUTS:]
            first, second = (
                _dense(tangents[:_NUM_INPUTS], theta),
                _dense(tangents[_NUM_INPUTS:-1], theta_),
            )
            zero = torch.zeros_like(theta[0])
            # The derivative of J(theta) theta_ along `first` is y''[theta_, first]. L is linear in
            # dy, so this is the gradient in dy of <first, H theta_>, whatever dy is: hence zero.
            curved = _third_derivative(
                (*theta, zero), (*theta_, zero), (*first, zero), ctx.softplus
            )[-1]
            return curved + _Push.apply(*theta, *second, ctx.softplus)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
        return _map_rows(_Push.apply, info, in_dims, args)


class _Tangent(torch.autograd.Function):
    """H times a direction.

    Called with (theta, dy), the direction, whose last part may be None for zero, and softplus.
    """

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return _tangent(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        ctx.softplus, ctx.has_dy_ = inputs[-1], inputs[-2] is not None
        saved = inputs[:-1] if ctx.has_dy_ else inputs[:-2]
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        p, q = _halves(ctx.saved_tensors)
        along = _third_derivative(p, q, cotangents, ctx.softplus)
        # The value is <c, H(p) q>. Its gradient in q is H c, since H is symmetric; that in p is a
        # third derivative of L, symmetric in c and q.
        products = _Tangent.apply(*p, *cotangents, ctx.softplus)
        return (*along, *products[:-1], products[-1] if ctx.has_dy_ else None, None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        with forward_rule(ctx) as saved:
            p, q = _halves(saved)
            # d(H(p) q) = (dH along first) q + H second.
            first, second = _dense(tangents[: len(p)], p), _dense(tangents[len(p) : -1], q)
            along = _third_derivative(p, q, first, ctx.softplus)
            return tuple(x + y for x, y in zip(along, _Tangent.apply(*p, *second, ctx.softplus)))

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _map_rows(_Tangent.apply, info, in_dims, args)


def _halves(saved: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Split into (theta, dy) and its direction.

    A part that was None becomes zero.
    """
    p, q = tuple(saved[: _NUM_INPUTS + 1]), tuple(saved[_NUM_INPUTS + 1 :])
    return p, q if len(q) == len(p) else (*q, torch.zeros_like(p[-1]))


def composed(*theta_and_softplus: Any) -> Tensor:
    """Compute y(theta) by elementwise operations and `linear_scan`.

    This is the slow twin of the fused kernels.
    """
    u, s, A, B, C, D, bias, softplus = theta_and_softplus
    delta = s + bias[..., None]
    delta = F.softplus(delta) if softplus else delta
    decay = torch.exp(delta[:, :, None] * A[..., None])
    h = linear_scan(decay, (delta * u)[:, :, None] * B[:, None])
    return (h * C[:, None]).sum(dim=2) + D[..., None] * u


def _third_derivative(
    p: Sequence[Tensor], q: Sequence[Tensor], r: Sequence[Tensor], softplus: bool
) -> tuple[Tensor, ...]:
    """Compute the gradient in p of <r, H(p) q>.

    It is symmetric in q and r. The slow twin is differentiated three times.
    """
    everything = tuple(range(len(p)))

    def value(*p: Tensor) -> Tensor:
        return (composed(*p[:-1], softplus) * p[-1]).sum()

    def product(*p: Tensor) -> tuple[Tensor, ...]:
        # The vjp of the gradient is the transpose of H times q, which is H q.
        return torch.func.vjp(torch.func.grad(value, everything), *p)[1](tuple(q))

    return torch.func.vjp(product, *p)[1](tuple(r))


def fused(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
) -> Tensor:
    """Run `selective_scan` without gate, for B and C that vary in time.

    Shapes and meaning are as there.
    """
    (batch, channels, length), states = u.shape, A.shape[1]
    B, C = (X[:, None] if X.dim() == 3 else X for X in (B, C))
    # B and C may have different numbers of groups. With their least common multiple, all channels
    # of a row read one B and one C. Groups are consecutive channels, so a plain reshape divides
    # them.
    groups = math.lcm(B.shape[1], C.shape[1])
    rows = batch * groups
    B, C = (
        X if X.shape[1] == groups else X.repeat_interleave(groups // X.shape[1], dim=1)
        for X in (B, C)
    )
    B, C = (X.reshape(rows, states, length) for X in (B, C))
    D, delta_bias = (u.new_zeros(channels) if x is None else x for x in (D, delta_bias))
    u, delta = (x.reshape(rows, channels // groups, length) for x in (u, delta))
    # One copy for each row; autograd sums their gradients over the batch.
    A, D, delta_bias = (
        x.expand(batch, *x.shape).reshape(rows, channels // groups, *x.shape[1:])
        for x in (A, D, delta_bias)
    )
    return _Scan.apply(u, delta, A, B, C, D, delta_bias, softplus).reshape(batch, channels, length)
