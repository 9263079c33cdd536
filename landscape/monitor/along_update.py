"""Sharpness along the step that an optimizer would take next, for a monitor."""

import torch
from torch import nn

from landscape.curvature.objective import Batch, Objective, Params, flatten, select_parameters
from landscape.curvature.operators.hessian import HessianOperator, reached_gradients
from landscape.monitor.measurement import UpdateSharpness
from landscape.monitor.optimizers import adds_decay, allowing_refusals
from landscape.stability.critical import critical_of
from landscape.stability.directional import directional_of
from landscape.stability.nearby import LossNearby
from landscape.stability.update import Update, next_update


def along_update(
    H: HessianOperator,
    objective: Objective,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
) -> UpdateSharpness | None:
    """Measure along the step that the optimizer would take on this batch.

    Losses are those of the whole step. What is made of a product is of its part in the parameters
    of the Hessian.

    Returns None where that step is none: at a learning rate of 0, as at the start of a warm-up, and
    where the gradient is zero.

    Args:
        H: The Hessian of the objective at the model's present parameters.

    Raises:
        LandscapeError: If there is no such step, or no loss.
    """
    if not any(float(group["lr"]) for group in optimizer.param_groups):
        return None
    trained = _trained(optimizer, model)
    slopes = reached_gradients(objective, trained, batch)
    regularized = {
        name: slopes.get(name, torch.zeros_like(tensor)) + H.weight_decay * tensor
        for name, tensor in trained.items()
    }
    # An L2 term that the optimizer adds itself must not come in twice; without one in the loss, a
    # parameter that the loss does not reach has no gradient, so that nothing moves it.
    is_plain = not H.weight_decay or adds_decay(optimizer)
    update = allowing_refusals(next_update, optimizer, model, slopes if is_plain else regularized)
    if not any(bool(update.displacement[name].any()) for name in H.params):
        return None
    nearby = LossNearby(objective, trained, batch)
    slope = flatten({name: regularized[name] for name in H.params})
    return allowing_refusals(_measured, H, nearby, slope, update)


def _trained(optimizer: torch.optim.Optimizer, model: nn.Module) -> Params:
    """Return the parameters of a model that an optimizer moves, by name."""
    held = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
    own = dict(model.named_parameters())
    return {
        name: tensor for name, tensor in select_parameters(model).items() if id(own[name]) in held
    }


def _measured(
    H: HessianOperator, nearby: LossNearby, slope: torch.Tensor, update: Update
) -> UpdateSharpness:
    critical = critical_of(nearby, update)
    along = directional_of(H, slope, update, estimate_rounding=False)
    return UpdateSharpness(
        rate=update.rate,
        critical=critical.value,
        critical_low=critical.low,
        critical_high=critical.high,
        directional=along.value,
        predicted_change=along.predicted_change,
        change=critical.change,
        num_losses=critical.num_losses,
    )
