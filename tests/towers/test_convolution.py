"""The depthwise convolutions against PyTorch's own, which is right in every derivative and only
slow.
"""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, linearize, vmap
from torch.nn import functional as F

from landscape.linalg.operator import seeded
from landscape.towers.convolution import DepthwiseConv1d, DepthwiseConv2d, convolve

# (input, weight, stride, padding, groups): a grid, a sequence, a plain strided layer whose last
# column no filter sees.
CASES = {
    "depthwise grid": ((2, 3, 4, 5), (3, 1, 3, 3), (1, 1), (1, 1), 3),
    "depthwise sequence": ((2, 3, 6), (3, 1, 4), (1,), (0,), 3),
    "two groups, stride 2": ((2, 4, 6, 6), (6, 2, 3, 3), (2, 2), (1, 1), 2),
    "unused last column": ((1, 2, 6, 6), (3, 2, 3, 3), (2, 2), (0, 0), 1),
}


def _case(name: str) -> tuple[Tensor, Tensor, dict]:
    size, filters, stride, padding, groups = CASES[name]
    generator = seeded(0)
    x = torch.randn(size, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(filters, generator=generator, dtype=torch.float64, requires_grad=True)
    return x, weight, {"stride": stride, "padding": padding, "groups": groups}


def _torch_convolution(x: Tensor, weight: Tensor, options: dict) -> Tensor:
    return (F.conv1d if x.dim() == 3 else F.conv2d)(x, weight, **options)


@pytest.mark.parametrize("name", CASES)
def test_values_and_first_two_derivatives_equal_pytorchs(name):
    x, weight, options = _case(name)
    results = []
    for function in (
        lambda x, w: convolve(x, w, **options),
        lambda x, w: _torch_convolution(x, w, options),
    ):
        y = function(x, weight)
        gradients = torch.autograd.grad(y.pow(3).sum(), (x, weight), create_graph=True)
        directions = [
            torch.randn(g.shape, generator=seeded(i), dtype=g.dtype)
            for i, g in enumerate(gradients)
        ]
        results.append([y, *gradients, *torch.autograd.grad(gradients, (x, weight), directions)])
    for ours, theirs in zip(*results):
        # Sums of at most a hundred products of order 100 in float64.
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_derivatives_of_both_modes_agree_with_differences(name):
    x, weight, options = _case(name)

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return convolve(x, weight, **options)

    assert gradcheck(
        function,
        (x, weight),
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert gradgradcheck(function, (x, weight), check_fwd_over_rev=True, check_rev_over_rev=True)


def test_every_route_to_a_hessian_vector_product_agrees():
    x, weight, options = _case("depthwise grid")

    def loss(weight: Tensor) -> Tensor:
        return convolve(x, weight, **options).tanh().sum()

    directions = torch.randn(4, *weight.shape, generator=seeded(3), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(loss(weight), weight, create_graph=True)
    rows = [torch.autograd.grad(gradient, weight, v, retain_graph=True)[0] for v in directions]
    batched = torch.autograd.grad(gradient, weight, directions, is_grads_batched=True)[0]
    pushed = torch.stack([jvp(grad(loss), (weight,), (v,))[1] for v in directions])
    linear = vmap(linearize(grad(loss), weight)[1])(directions)
    for products in (batched, pushed, linear):
        torch.testing.assert_close(products, torch.stack(rows), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_nested_forward_mode_gives_the_second_derivative(name):
    x, weight, options = _case(name)
    u, v = (torch.randn(2, *weight.shape, generator=seeded(i), dtype=torch.float64) for i in (4, 5))

    def along(function, t: Tensor, s: Tensor) -> Tensor:
        return function(x + t * x.cos(), weight + t * u[0] + s * v[0]).tanh().sum()

    values = []
    for function in (
        lambda x, w: convolve(x, w, **options),
        lambda x, w: _torch_convolution(x, w, options),
    ):
        one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)

        def slope(s: Tensor) -> Tensor:
            return jvp(lambda t: along(function, t, s), (zero,), (one,))[1]

        values.append(jvp(slope, (zero,), (one,))[1])
    torch.testing.assert_close(values[0], values[1], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_fourth_derivatives_equal_pytorchs(name):
    """The first order at which every backward has been differentiated by both of its arguments."""
    x, weight, options = _case(name)

    def fourth(function) -> list[Tensor]:
        value = function(x, weight).sin().sum()
        for order in range(4):
            slopes = torch.autograd.grad(value, (x, weight), create_graph=order < 3)
            value = sum(slope.sin().sum() for slope in slopes)
        return list(slopes)

    ours = fourth(lambda x, w: convolve(x, w, **options))
    theirs = fourth(lambda x, w: _torch_convolution(x, w, options))
    for mine, truth in zip(ours, theirs):
        torch.testing.assert_close(mine, truth, rtol=1e-9, atol=1e-11 * float(truth.abs().max()))


@pytest.mark.parametrize("bias", [True, False])
def test_the_grid_module_is_a_drop_in_for_pytorchs(bias):
    torch.manual_seed(0)
    ours = DepthwiseConv2d(5, 3, bias=bias)
    torch.manual_seed(0)
    theirs = torch.nn.Conv2d(5, 5, 3, padding=1, groups=5, bias=bias)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    x = torch.randn(2, 5, 4, 7, generator=seeded(1))
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)


def test_the_sequence_module_is_a_drop_in_for_pytorchs():
    torch.manual_seed(0)
    ours = DepthwiseConv1d(5, 4)
    torch.manual_seed(0)
    theirs = torch.nn.Conv1d(5, 5, 4, groups=5)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    x = torch.randn(2, 5, 9, generator=seeded(1))
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)


SEQUENCE = (
    lambda: DepthwiseConv1d(4, 3),
    (2, 4, 9),
    lambda x, layer: F.conv1d(x, layer.weight, layer.bias, groups=4),
)
GRID = (
    lambda: DepthwiseConv2d(4, 3),
    (2, 4, 5, 5),
    lambda x, layer: F.conv2d(x, layer.weight, layer.bias, padding=1, groups=4),
)


@pytest.mark.parametrize("build, size, function", [SEQUENCE, GRID], ids=["sequence", "grid"])
def test_mixed_precision_training_runs_as_with_pytorchs_layer(build, size, function):
    torch.manual_seed(0)
    layer = build()
    x = torch.randn(size, generator=seeded(1))
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = layer(x), function(x, layer)
    assert y.dtype == expected.dtype == torch.bfloat16
    # Half of bfloat16's 8 bits of precision are at stake where the bias is added after rounding.
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)
    y.float().pow(2).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("build, size", [SEQUENCE[:2], GRID[:2]], ids=["sequence", "grid"])
def test_shapes_alone_can_be_computed(build, size):
    with torch.device("meta"):
        layer = build()
    assert layer(torch.empty(size, device="meta")).shape[:2] == size[:2]


def test_the_sequence_module_has_pytorchs_derivatives():
    torch.manual_seed(0)
    layer = DepthwiseConv1d(3, 4).double()
    x = torch.randn(2, 3, 7, generator=seeded(1), dtype=torch.float64, requires_grad=True)
    results = []
    for function in (layer, lambda x: F.conv1d(x, layer.weight, layer.bias, groups=3)):
        inputs = (x, layer.weight, layer.bias)
        gradients = torch.autograd.grad(function(x).pow(3).sum(), inputs, create_graph=True)
        directions = [
            torch.randn(g.shape, generator=seeded(i), dtype=g.dtype)
            for i, g in enumerate(gradients)
        ]
        results.append([*gradients, *torch.autograd.grad(gradients, inputs, directions)])
    for ours, theirs in zip(*results):
        # Sums of at most a hundred products of order 100 in float64.
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("weight_needs", [True, False])
@pytest.mark.parametrize("x_needs", [True, False])
def test_only_the_asked_derivatives_are_computed(x_needs, weight_needs):
    x, weight, options = _case("depthwise grid")
    x, weight = x.detach().requires_grad_(x_needs), weight.detach().requires_grad_(weight_needs)
    y = convolve(x, weight, **options)
    assert y.requires_grad == (x_needs or weight_needs)
    if y.requires_grad:
        y.sum().backward()
    assert (x.grad is not None) == x_needs and (weight.grad is not None) == weight_needs
