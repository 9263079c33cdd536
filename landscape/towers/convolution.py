"""Depthwise convolution whose second derivatives cost about two gradients.

PyTorch differentiates a grouped convolution twice by a loop over the groups: on a CPU a Hessian-vector product
through a depthwise layer of 128 to 384 channels costs 9 to 25 gradients. (With one group it is as fast as here.)
The trilinear form

    f(x, w, g) = <convolve(x, w), g>

has three partial gradients (the output, the input's gradient, the weight's gradient), each of them bilinear and
each differentiable in terms of the other two. Written as three functions that call each other, the set is closed:
every order of derivative, forward and reverse, runs on PyTorch's fast first-order kernels.

Shapes: b = pictures, c = input channels, o = output channels, s = spatial sizes (one or two of them).
"""

from dataclasses import dataclass
from typing import Any, Optional

import torch
from jaxtyping import Float
from torch import Tensor, nn

from landscape.kernels.forward_mode import forward_rule

_aten = torch.ops.aten


@dataclass(frozen=True)
class _Geometry:
    """What fixes a convolution besides its arrays; `input_size` and `weight_size` are needed to go backwards."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    groups: int

    def forward(self, x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
        zeros, ones = [0] * len(self.stride), [1] * len(self.stride)
        return _aten.convolution(
            x, weight, bias, self.stride, self.padding, ones, False, zeros, self.groups
        )

    def backward(self, grad: Tensor, x: Tensor, weight: Tensor, *, wanted: int) -> Tensor:
        """The gradient for x (wanted=0) or for weight (wanted=1); the unwanted array only lends its shape."""
        zeros, ones = [0] * len(self.stride), [1] * len(self.stride)
        mask = [wanted == 0, wanted == 1, False]
        return _aten.convolution_backward(
            grad, x, weight, None, self.stride, self.padding, ones, False, zeros, self.groups, mask
        )[wanted]


def _sum(*terms: Optional[Tensor]) -> Optional[Tensor]:
    present = [term for term in terms if term is not None]
    return sum(present[1:], present[0]) if present else None


class _Bilinear(torch.autograd.Function):
    """What the three functions share: both arrays are kept, the geometry and one shape ride along."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        first, second, *ctx.rest = inputs
        ctx.save_for_backward(first, second)
        ctx.save_for_forward(first, second)


class _Output(_Bilinear):
    """(x, w) -> y."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, geometry: _Geometry) -> Tensor:
        return geometry.forward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Optional[Tensor], ...]:
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
    def jvp(ctx: Any, dx: Optional[Tensor], dweight: Optional[Tensor], _: None) -> Optional[Tensor]:
        with forward_rule(ctx) as (x, weight):
            return _sum(
                None if dx is None else _Output.apply(dx, weight, *ctx.rest),
                None if dweight is None else _Output.apply(x, dweight, *ctx.rest),
            )


class _InputGradient(_Bilinear):
    """(g, w) -> the gradient for x, of shape (b, *size)."""

    @staticmethod
    def forward(grad: Tensor, weight: Tensor, geometry: _Geometry, size: tuple[int, ...]) -> Tensor:
        return geometry.backward(grad, grad.new_empty((grad.shape[0], *size)), weight, wanted=0)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Optional[Tensor], ...]:
        (grad, weight), (geometry, _) = ctx.saved_tensors, ctx.rest
        for_grad = _Output.apply(cotangent, weight, geometry) if ctx.needs_input_grad[0] else None
        for_weight = (
            _WeightGradient.apply(cotangent, grad, geometry, weight.shape)
            if ctx.needs_input_grad[1]
            else None
        )
        return for_grad, for_weight, None, None

    @staticmethod
    def jvp(
        ctx: Any, dgrad: Optional[Tensor], dweight: Optional[Tensor], *_: None
    ) -> Optional[Tensor]:
        with forward_rule(ctx) as (grad, weight):
            return _sum(
                None if dgrad is None else _InputGradient.apply(dgrad, weight, *ctx.rest),
                None if dweight is None else _InputGradient.apply(grad, dweight, *ctx.rest),
            )


class _WeightGradient(_Bilinear):
    """(x, g) -> the gradient for the weight, of shape `size`."""

    @staticmethod
    def forward(x: Tensor, grad: Tensor, geometry: _Geometry, size: tuple[int, ...]) -> Tensor:
        return geometry.backward(grad, x, x.new_empty(size), wanted=1)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Optional[Tensor], ...]:
        (x, grad), (geometry, _) = ctx.saved_tensors, ctx.rest
        for_x = (
            _InputGradient.apply(grad, cotangent, geometry, x.shape[1:])
            if ctx.needs_input_grad[0]
            else None
        )
        for_grad = _Output.apply(x, cotangent, geometry) if ctx.needs_input_grad[1] else None
        return for_x, for_grad, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Optional[Tensor], dgrad: Optional[Tensor], *_: None) -> Optional[Tensor]:
        with forward_rule(ctx) as (x, grad):
            return _sum(
                None if dx is None else _WeightGradient.apply(dx, grad, *ctx.rest),
                None if dgrad is None else _WeightGradient.apply(x, dgrad, *ctx.rest),
            )


def _casts(kind: str) -> bool:
    """Whether autocast is on for a kind of device; there are kinds that it does not know, such as meta."""
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def convolve(
    x: Float[Tensor, "b c *s"],
    weight: Float[Tensor, "o cg *k"],
    bias: Optional[Float[Tensor, " o"]] = None,
    *,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    groups: int = 1,
) -> Float[Tensor, "b o *t"]:
    """Cross-correlate as `torch.nn.functional.conv2d` does (no dilation), differentiable to any order in both modes.

    Under autocast the arrays are cast as PyTorch casts those of its own convolutions.
    """
    kind = x.device.type
    if _casts(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    y = _Output.apply(x, weight, _Geometry(stride, padding, groups))
    return y if bias is None else y + bias.view(-1, *[1] * len(stride))


class DepthwiseConv1d(nn.Conv1d):
    """One filter per channel along a sequence; names and initialisation of `torch.nn.Conv1d`, unpadded.

    Written as a sum over the few taps: its derivatives are elementwise operations and sums, which a compiler fuses with their
    neighbours. PyTorch's gradient for the filters of a short sequence costs several times its value.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__(channels, channels, kernel_size, groups=channels)

    def forward(self, x: Float[Tensor, "b c l"]) -> Float[Tensor, "b c t"]:
        assert self.bias is not None
        if _casts(x.device.type) or x.dtype.itemsize < torch.float32.itemsize:
            # Which sums in float32 and rounds once.
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
    """One filter per channel on a grid of the same size; names and initialisation of `torch.nn.Conv2d`."""

    def __init__(self, channels: int, kernel_size: int, *, bias: bool = True) -> None:
        super().__init__(
            channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=bias
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        margin = self.kernel_size[0] // 2
        return convolve(
            x, self.weight, self.bias, stride=(1, 1), padding=(margin, margin), groups=self.groups
        )
