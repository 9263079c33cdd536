"""Layers with right values and wrong derivatives, each in a small model with a loss: what a check
of an operator has to catch.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan

from landscape.linalg.operator import seeded


class SavedSine(torch.autograd.Function):
    """sin that keeps its input for a backward pass, which is left to those that inherit it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()


class TorchScan(nn.Module):
    """h_t = sigmoid(a_t) h_{t-1} + b_t by torch's scan: right gradients, wrong second derivatives
    (torch 2.14).
    """

    def forward(self, ab: Tensor) -> Tensor:
        a, b = ab.transpose(0, 1).chunk(2, -1)

        def step(h: Tensor, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            h = x[0] * h + x[1]
            return h, h.clone()

        return scan(step, torch.zeros_like(b[0]), (a.sigmoid(), b))[1].transpose(0, 1)


class _ConstantSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.slope = 1 - x.detach().tanh().square()
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.slope


class ConstantSlope(nn.Module):
    """tanh whose backward passes on the graph of what comes in and treats what it saved as
    constant.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _ConstantSlope.apply(x)


class StraightThrough(nn.Module):
    """Rounding to sixteenths whose derivative is said to be 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x + ((16 * x).round() / 16 - x).detach()


class _WrongFactor(SavedSine):
    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 1.1 * g * ctx.saved_tensors[0].cos()


class WrongFactor(nn.Module):
    """sin with a backward that is off by a tenth, and consistently so."""

    def forward(self, x: Tensor) -> Tensor:
        return _WrongFactor.apply(x)


FAULTS: dict[str, type[nn.Module]] = {
    "torch's scan": TorchScan,
    "an opaque function that drops terms": ConstantSlope,
    "a straight-through estimator": StraightThrough,
    "a backward that is off by a factor": WrongFactor,
}


def faulty(
    name: str, seed: int, dtype: torch.dtype
) -> tuple[nn.Module, Callable[[Any, Any], Tensor], Tensor]:
    """A model with the fault in its middle (module "1"), a loss and a batch, of random weights and
    inputs.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = 8 if FAULTS[name] is TorchScan else 16
        model = nn.Sequential(nn.Linear(6, 16), FAULTS[name](), nn.Linear(width, 2)).to(dtype)
    batch = torch.randn(3, 5, 6, generator=seeded(seed), dtype=torch.float64).to(dtype)
    return model, lambda model, batch: model(batch).square().mean(), batch
