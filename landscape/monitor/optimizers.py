"""Stability threshold and preconditioned Hessian of an optimizer, for a monitor."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from landscape import stability
from landscape.errors import ObjectiveError
from landscape.linalg.operator import SymmetricOperator
from landscape.monitor.measurement import Threshold

_Result = TypeVar("_Result")


def is_adaptive(optimizer: torch.optim.Optimizer, weight_decay: float = 0.0) -> bool:
    """Tell whether the threshold is of another matrix than the Hessian.

    It may be so for SGD too, which may have several rates, or an L2 term of its own.

    Args:
        weight_decay: Coefficient of the L2 term in the measured loss.
    """
    groups = optimizer.param_groups
    if not isinstance(optimizer, torch.optim.SGD):
        return True
    return len({float(group["lr"]) for group in groups}) > 1 or any(
        group["weight_decay"] != weight_decay for group in groups
    )


def has_units(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether an optimizer has a preconditioner.

    An adaptive one has none before its first step.
    """
    return isinstance(optimizer, torch.optim.SGD) or bool(optimizer.state)


def threshold_of(optimizer: torch.optim.Optimizer, weight_decay: float = 0.0) -> Threshold | None:
    """Compute the threshold of an optimizer with its current settings.

    Returns None for Muon, which has a preconditioner and no threshold.

    Raises:
        LandscapeError: If no threshold is known for it.
    """
    if allowing_refusals(stability.kind_of, optimizer) == "Muon":
        return None
    made = allowing_refusals(stability.stability_threshold, optimizer)
    of = "preconditioned" if is_adaptive(optimizer, weight_decay) else "hessian"
    return Threshold(
        value=float(made.value), formula=str(made.formula), source=str(made.source), of=of
    )


def preconditioned(H: SymmetricOperator, optimizer: torch.optim.Optimizer) -> SymmetricOperator:
    """Build P^-1/2 H P^-1/2 with the current preconditioner of an optimizer.

    Raises:
        LandscapeError: If it has no preconditioner, or none of these parameters.
    """
    return allowing_refusals(stability.preconditioned, H, optimizer)


def adds_decay(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether an optimizer adds an L2 term to the gradients that it is given."""
    state = stability.state_of(optimizer)
    return any(state.l2_coefficient(group) for group in range(len(state.groups)))


def allowing_refusals(function: Callable[..., _Result], *arguments: Any) -> _Result:
    """Call a function of `landscape.stability`; turn ValueError into ObjectiveError.

    An ObjectiveError of a later measurement does not end the training.
    """
    try:
        return function(*arguments)
    except ValueError as error:
        raise ObjectiveError(str(error)) from error
