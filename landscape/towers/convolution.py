"""Depthwise convolution whose second derivatives cost about two gradients.

PyTorch differentiates a grouped convolution twice by a loop over the groups: on a CPU a
Hessian-vector product through a depthwise layer of 128 to 384 channels costs 9 to 25 gradients.
(With one group it is as fast as here.) The trilinear form

    f(x, w, g) = <convolve(x, w), g>

has three partial gradients (the output, the input's gradient, the weight's gradient). Each of them
is bilinear, and its derivatives are the other two. Written as three functions that call each other,
the set is closed: every order of derivative, forward and reverse, runs on PyTorch's fast
first-order kernels.

Shapes: b = pictures, c = input channels, o = output channels, s = spatial sizes (one or two of
them).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from landscape.kernels.forward_mode import forward_rule

_aten = torch.ops.aten


@dataclass(frozen=True)
class _Geometry:
    """The settings of a convolution besides its arrays.

    Its backward pass also needs the sizes of input and weight.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    groups: int

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        zeros, ones = [0] * len(self.stride), [1] * len(self.stride)
        return _aten.convolution(
            x, weight, bias, self.stride, self.padding, ones, False, zeros, self.groups
        )

    def backward(self, grad: Tensor, x: Tensor, weight: Tensor, *, wanted: int) -> Tensor:
        """Compute the gradient for x (wanted=0) or for weight (wanted=1).

        Only the shape of the other array is used.
        """
        zeros, ones = [0] * len(self.stride), [1] * len(self.stride)
        mask = [wanted == 0, wanted == 1, False]
        return _aten.convolution_backward(
            grad, x, weight, None, self.stride, self.padding, ones, False, zeros, self.groups, mask
        )[wanted]


def _sum(*terms: Tensor | None) -> Tensor | None:
    present = [term for term in terms if term is not None]
    return sum(present[1:], present[0]) if present else None


class _Bilinear(torch.autograd.Function):
    """The common part of the three functions.

    It saves both arrays for derivatives, with the geometry and a shape.
    """

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        first, second, *ctx.rest = inputs
        ctx.save_for_backward(first, second)
        ctx.save_for_forward(first, second)


class _Output(_Bilinear):
    """The convolution (x, w) -> y."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
        return geometry.forward(x, weight)

    # y is linear in x and in w, so <y, grad> = f(x, w, grad): its gradients are the other two
    # functions.
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (geometry,) = ctx.saved_tensors, ctx.rest
        for_x = (
            _InputGradient.apply(grad, weight, geometry, x.shape[1:])
            if ctx.needs_input_grad[0]
            else None
        )
        for_weight = (
            _WeightGradient.apply(x, grad, geometry, weight.shape)
            if ctx.needs_input_grad[1]
            else None
        )
        return for_x, for_weight, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dweight: Tensor | None, _: None) -> Tensor | None:
        with forward_rule(ctx) as (x, weight):
            return _sum(
                None if dx is None else _Output.apply(dx, weight, *ctx.rest),
                None if dweight is None else _Output.apply(x, dweight, *ctx.rest),
            )


class _InputGradient(_Bilinear):
    """The gradient for x: (g, w) -> array of shape (b, *size)."""

    @staticmethod
    def forward(grad: Tensor, weight: Tensor, geometry: _Geometry, size: tuple[int, ...]) -> Tensor:
        return geometry.backward(grad, grad.new_empty((grad.shape[0], *size)), weight, wanted=0)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        (grad, weight), (geometry, _) = ctx.saved_tensors, ctx.rest
        for_grad = _Output.apply(cotangent, weight, geometry) if ctx.needs_input_grad[0] else None
        for_weight = (
            _WeightGradient.apply(cotangent, grad, geometry, weight.shape)
            if ctx.needs_input_grad[1]
            else None
        )
        return for_grad, for_weight, None, None

    @staticmethod
    def jvp(ctx: Any, dgrad: Tensor | None, dweight: Tensor | None, *_: None) -> Tensor | None:
        with forward_rule(ctx) as (grad, weight):
            return _sum(
                None if dgrad is None else _InputGradient.apply(dgrad, weight, *ctx.rest),
                None if dweight is None else _InputGradient.apply(grad, dweight, *ctx.rest),
            )


class _WeightGradient(_Bilinear):
    """The gradient for the weight: (x, g) -> array of shape `size`."""

    @staticmethod
    def forward(x: Tensor, grad: Tensor, geometry: _Geometry, size: tuple[int, ...]) -> Tensor:
        return geometry.backward(grad, x, x.new_empty(size), wanted=1)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        (x, grad), (geometry, _) = ctx.saved_tensors, ctx.rest
        for_x = (
            _InputGradient.apply(grad, cotangent, geometry, x.shape[1:])
            if ctx.needs_input_grad[0]
            else None
        )
        for_grad = _Output.apply(x, cotangent, geometry) if ctx.needs_input_grad[1] else None
        return for_x, for_grad, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dgrad: Tensor | None, *_: None) -> Tensor | None:
        with forward_rule(ctx) as (x, grad):
            return _sum(
                None if dx is None else _WeightGradient.apply(dx, grad, *ctx.rest),
                None if dgrad is None else _WeightGradient.apply(x, dgrad, *ctx.rest),
            )


def _casts(kind: str) -> bool:
    """Tell whether autocast is on for a kind of device.

    False for kinds that autocast does not know, such as meta.
    """
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def convolve(
    x: Float[Tensor, "b c *s"],
    weight: Float[Tensor, "o cg *k"],
    bias: Float[Tensor, " o"] | None = None,
    *,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    groups: int = 1,
) -> Float[Tensor, "b o *t"]:
    """Cross-correlate as `torch.nn.functional.conv2d` does, without dilation.

    Differentiable to any order in reverse and forward mode. Under autocast the arrays are cast as
    PyTorch casts those of its own convolutions.
    """
    kind = x.device.type
    if _casts(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    y = _Output.apply(x, weight, _Geometry(stride, padding, groups))
    return y if bias is None else y + bias.view(-1, *[1] * len(stride))


class DepthwiseConv1d(nn.Conv1d):
    """A filter per channel along a sequence, unpadded.

    Names and initialisation are those of `torch.nn.Conv1d`. It is written as a sum over the few
    taps: its derivatives are elementwise operations and sums, which a compiler fuses with their
    neighbours. PyTorch's gradient for the filters of a short sequence costs several times its
    value.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__(channels, channels, kernel_size, groups=channels)

    def forward(self, x: Float[Tensor, "b c l"]) -> Float[Tensor, "b c t"]:
        assert self.bias is not None
        if _casts(x.device.type) or x.dtype.itemsize < torch.float32.itemsize:
            # `convolve` sums in float32 and rounds once.
            return convolve(
                x, self.weight, self.bias, stride=(1,), padding=(0,), groups=self.groups
            )
        length = x.shape[-1] - self.kernel_size[0] + 1
        first, *taps = self.weight[:, 0].unbind(-1)
        y = self.bias[:, None] + first[:, None] * x[..., :length]
        for k, tap in enumerate(taps, 1):
            y = torch.addcmul(y, tap[:, None], x[..., k : k + length])
        return y


class DepthwiseConv2d(nn.Conv2d):
    """A filter per channel on a grid; the grid keeps its size.

    Names and initialisation are those of `torch.nn.Conv2d`.
    """

    def __init__(self, channels: int, kernel_size: int, *, bias: bool = True) -> None:
        super().__init__(
            channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=bias
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        margin = self.kernel_size[0] // 2
        return convolve(
            x, self.weight, self.bias, stride=(1, 1), padding=(margin, margin), groups=self.groups
        )
