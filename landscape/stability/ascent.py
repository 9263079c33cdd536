r"""The highest loss near the parameters: lower bounds of it, by ascent.

The region is a ball, |x| <= radius, as in sharpness-aware minimisation (SAM), or a box, |x_i| <=
epsilon (|w_i| + 1) around the parameters w, as in Keskar et al. A step of the ascent goes towards
the point of the region at which the linear model of the loss is highest: radius g / |g|, or the
corner of the signs of g. It is taken whole if the loss rises, and halved otherwise. For a convex
loss whole steps always rise: this is the generalised power method. Every point that is evaluated
lies in the region, also after rounding, so the highest loss among them, less what rounding can add
to it, is a lower bound of the maximum; how far the maximum lies above is not known.

Sources: Foret, Kleiner, Mobahi & Neyshabur, Sharpness-aware minimization for efficiently improving
generalization (2021), arXiv 2010.01412, equation 2; Keskar, Mudigere, Nocedal, Smelyanskiy & Tang,
On large-batch training for deep learning (2017), arXiv 1609.04836, metric 2.1, who use L-BFGS-B;
Journée, Nesterov, Richtárik & Sepulchre, Generalized power method for sparse principal component
analysis (2010), JMLR 11, section 3.

Shapes: n = total size of the parameters.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from landscape.curvature.objective import Batch
from landscape.linalg.operator import seeded
from landscape.linalg.vectors import norm
from landscape.stability.nearby import LossNearby

# Halvings of a step that does not rise before the ascent ends.
_HALVINGS = 8


@dataclass(frozen=True, kw_only=True)
class LossRise:
    """A certified lower bound of how far the loss rises in a region around the parameters.

    Attributes:
        value: Highest loss that was evaluated in the region less the loss at its centre and less
            `noise`, in nats; at least 0. The maximum of the loss is at least `loss` + `value`.
        noise: Difference of the two losses that rounding makes: 8 units of rounding, or the
            distance from the same difference in float64 if that is larger and the model has it.
        first: Change of the loss by the first whole step, which SAM takes for the maximum; it may
            be negative, or not finite where the loss is not or raises an exception.
        loss: The loss at the centre, in nats.
        region: "ball" or "box".
        size: The radius, or epsilon.
        reach: Size of the smallest region of this kind that holds the point of the highest loss,
            measured after rounding: at most `size`.
        offset: The point (n,), relative to the centre.
        num_losses, num_gradients: Evaluations, those that tell whether the loss is random included,
            and those in float64 not.
    """

    value: float
    noise: float
    first: float
    loss: float
    region: str
    size: float
    reach: float
    offset: Float[Tensor, " n"]
    num_losses: int
    num_gradients: int

    @property
    def relative(self) -> float:
        """Return Keskar's sharpness, 100 `value` / (1 + `loss`), in percent."""
        return 100 * self.value / (1 + self.loss)

    def __str__(self) -> str:
        bound = f"at least {self.value:.6g} nats in a {self.region} of {self.size:g}"
        return bound if self.value else f"{bound} (rounding {self.noise:.1g})"


class _Region(ABC):
    """A region around the parameters, given by its size."""

    name: str

    def __init__(self, size: float) -> None:
        self.size = size

    @abstractmethod
    def highest(self, slope: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Maximise slope . x over the region."""

    @abstractmethod
    def reach(self, moved: Float[Tensor, " n"]) -> float:
        """Return the size of the smallest region that holds a point."""

    def within(self, offset: Float[Tensor, " n"], nearby: LossNearby) -> Float[Tensor, " n"]:
        """Move an offset towards the centre until its rounded point lies in the region."""
        shrunk, share = offset, torch.finfo(offset.dtype).eps
        while self.reach(nearby.moved_by(shrunk)) > self.size:
            # More each time, as a little less may round to the same point; zero in the end.
            shrunk = offset * (1 - share)
            share = min(2 * share, 1.0)
        return shrunk


class _Ball(_Region):
    """Offsets of at most a length."""

    name = "ball"

    def highest(self, slope: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return slope * (self.size / norm(slope))

    def reach(self, moved: Float[Tensor, " n"]) -> float:
        return norm(moved)


class _Box(_Region):
    """Offsets of at most a fraction of each |parameter| + 1."""

    name = "box"

    def __init__(self, size: float, centre: Float[Tensor, " n"]) -> None:
        super().__init__(size)
        self._units = centre.double().abs() + 1

    def highest(self, slope: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return (self.size * self._units * slope.sign()).to(slope)

    def reach(self, moved: Float[Tensor, " n"]) -> float:
        return float((moved.abs() / self._units).max())


def sam_sharpness(
    model: nn.Module,
    loss: Callable[[Any, Batch], Tensor],
    batch: Batch,
    *,
    radius: float = 0.05,
    num_steps: int = 1,
    parameters: str | Sequence[str] = "all",
    weight_decay: float = 0.0,
    seed: int = 0,
) -> LossRise:
    """Bound the loss's rise in a ball from below, by SAM's ascent.

    One step is SAM's own: the loss at w + radius g / |g|. More steps raise the bound.

    Args:
        model, loss, batch, parameters, weight_decay: As in `landscape.hessian`. The model stays as
            it is.
        radius: Euclidean length of the largest offset. 0.05 as in most experiments of the source.
        num_steps: Gradients to spend.
        seed: Seed of the direction of the first step where the gradient is exactly zero.

    Raises:
        ObjectiveError: If the loss is not one finite, deterministic number.
        ValueError: If the radius is not positive and finite, or there is no step.

    Source: Foret et al. (2021); see this module.

    Examples:
        >>> import torch, landscape
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        >>> batch = torch.randn(32, 4).double(), torch.randn(32, 1).double()
        >>> def loss(model, batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        ...
        >>> one_step = landscape.sam_sharpness(model, loss, batch, radius=0.05)
        >>> ten = landscape.sam_sharpness(model, loss, batch, radius=0.05, num_steps=10)
        >>> 0 < one_step.value <= ten.value
        True
    """
    _check("radius", radius, num_steps)
    nearby = LossNearby.of(model, loss, batch, parameters=parameters, weight_decay=weight_decay)
    return _ascended(nearby, _Ball(radius), num_steps, seed)


def keskar_sharpness(
    model: nn.Module,
    loss: Callable[[Any, Batch], Tensor],
    batch: Batch,
    *,
    epsilon: float = 1e-3,
    num_steps: int = 10,
    parameters: str | Sequence[str] = "all",
    weight_decay: float = 0.0,
    seed: int = 0,
) -> LossRise:
    """Bound the loss's rise in a relative box from below.

    `relative` of the result is the sharpness of Keskar et al., in the whole space, with the bound
    in the place of the maximum.

    Args:
        model, loss, batch, parameters, weight_decay, seed: As in `sam_sharpness`.
        epsilon: Largest offset of each parameter w_i as a fraction of |w_i| + 1. 1e-3 as in the
            source, table 3.
        num_steps: Gradients to spend at most. 10 as the iterations of the source.

    Raises:
        ObjectiveError, ValueError: As in `sam_sharpness`.

    Source: Keskar et al. (2017); see this module.

    Examples:
        >>> import torch, landscape
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        >>> batch = torch.randn(32, 4).double(), torch.randn(32, 1).double()
        >>> def loss(model, batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        ...
        >>> rise = landscape.keskar_sharpness(model, loss, batch, epsilon=1e-3)
        >>> rise.value > 0
        True
    """
    _check("epsilon", epsilon, num_steps)
    nearby = LossNearby.of(model, loss, batch, parameters=parameters, weight_decay=weight_decay)
    return _ascended(nearby, _Box(epsilon, nearby.centre), num_steps, seed)


def _ascended(nearby: LossNearby, region: _Region, num_steps: int, seed: int) -> LossRise:
    best, highest = torch.zeros_like(nearby.centre), nearby.loss
    first = math.nan
    for number in range(num_steps):
        target = region.within(region.highest(_uphill(nearby, best, seed)), nearby)
        loss = nearby.loss_at(target)
        if number == 0:
            first = loss - nearby.loss
        # SAM's single step is what it is.
        for _ in range(_HALVINGS if num_steps > 1 else 0):
            if _is_rise(loss, highest):
                break
            target = region.within((best + target) / 2, nearby)
            loss = nearby.loss_at(target)
        if not _is_rise(loss, highest):
            break
        best, highest = target, loss
    rise, noise = highest - nearby.loss, nearby.noise_of(highest)
    # At the point that was evaluated, which rounding has moved.
    exact = nearby.change_in_float64(nearby.moved_by(best)) if rise > noise else None
    if exact is not None:
        noise = max(noise, abs(rise - exact))
    return LossRise(
        value=max(rise - noise, 0.0),
        noise=noise,
        first=first,
        loss=nearby.loss,
        region=region.name,
        size=region.size,
        reach=region.reach(nearby.moved_by(best)),
        offset=best,
        num_losses=nearby.num_losses,
        num_gradients=nearby.num_gradients,
    )


def _is_rise(loss: float, highest: float) -> bool:
    """Tell whether a loss is higher; one that is not finite bounds nothing."""
    return math.isfinite(loss) and loss > highest


def _uphill(nearby: LossNearby, offset: Float[Tensor, " n"], seed: int) -> Float[Tensor, " n"]:
    """Return the gradient, or where it is zero a random direction."""
    slope = nearby.gradient_at(offset)
    if bool(slope.any()):
        return slope
    return torch.randn(len(slope), generator=seeded(seed), dtype=torch.float64).to(slope)


def _check(name: str, size: float, num_steps: int) -> None:
    if not (math.isfinite(size) and size > 0):
        raise ValueError(
            f"{name} must be positive and finite, got {size}: the region around the parameters "
            "would hold no other point. Use a small positive number."
        )
    if num_steps < 1:
        raise ValueError(
            f"num_steps must be at least 1, got {num_steps}: without a gradient there is no ascent."
        )
