"""The loss of one batch at and near the parameters of a model, which stays as it is.

Parameters are copied and moved copies are evaluated, so an exception leaves nothing to restore.
Shapes: n = total size of the parameters under study.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from landscape.curvature.audits.promotion import promoted, widened
from landscape.curvature.guards.preconditions import check_loss, check_same_loss
from landscape.curvature.hvp.evaluation import Problem, value_of
from landscape.curvature.hvp.memory import is_out_of_memory
from landscape.curvature.hvp.unchecked import checked_leaves
from landscape.curvature.objective import (
    Batch,
    Objective,
    Params,
    flatten,
    select_parameters,
    squared_norm,
    unflatten,
)
from landscape.curvature.operators.hessian import gradient

# Units of rounding of the loss within which two losses cannot be told apart, as in
# FiniteDifferenceOperator.
_ROUNDINGS = 8


class LossNearby:
    """The objective at `params` plus an offset, on one batch, in nats.

    Losses are evaluated as the Hessian's is, attention in its plain form. Global random states,
    modes and gradients stay as they are.

    Args:
        objective, params, batch: As in HessianOperator.

    Attributes:
        params: Copies of the parameters.
        loss: The objective at them, the L2 term included.
        noise: Difference of two losses near `loss` that rounding can make: 8 units of rounding of
            it. An allowance and no bound.
        num_losses, num_gradients: Evaluations so far.

    Raises:
        ObjectiveError: If the loss is not one finite, deterministic number that depends on the
            parameters, and as `landscape.curvature.guards.check_twice_differentiable`.
    """

    def __init__(self, objective: Objective, params: Params, batch: Batch) -> None:
        leaves = checked_leaves(objective, params, batch, copy=True)
        self.params = {name: leaf.detach() for name, leaf in leaves.items()}
        self.num_gradients = 0
        # The loss at the parameters in float64, once it is known.
        self._exact_loss: float | None = None
        self._objective, self._batch = objective, batch
        self._problem = Problem(objective=objective, leaves=leaves, batch=batch)
        self._centre = flatten(self.params)
        dtype = self._centre.dtype
        # In one section, at whose end random states are restored: two sections would draw alike.
        with self._problem.differentiating():
            data_term = objective.data_term(leaves, batch)
            check_loss(data_term, batch, dtype=dtype)
            again = float(value_of(objective, self.params, batch))
        check_same_loss(data_term.item(), again, dtype=dtype)
        self.loss = again + self._decay(self.params)
        self.num_losses = 2
        self.noise = self.noise_of(self.loss)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        loss: Callable[[Any, Batch], Tensor],
        batch: Batch,
        *,
        parameters: str | Sequence[str],
        weight_decay: float,
    ) -> Self:
        """Build the loss near the present parameters of a model; see `landscape.hessian`."""
        objective = Objective.from_closure(model, loss, weight_decay=weight_decay)
        return cls(objective, select_parameters(model, parameters), batch)

    @property
    def centre(self) -> Float[Tensor, " n"]:
        """Return the parameters as one vector."""
        return self._centre

    def noise_of(self, loss: float) -> float:
        """Return the `noise` between the loss at the parameters and another one."""
        larger = max(abs(self.loss), abs(loss))
        return float(_ROUNDINGS * torch.finfo(self._centre.dtype).eps * larger)

    def loss_at(self, offset: Float[Tensor, " n"]) -> float:
        """Evaluate the loss at an offset; it may not be finite, and NaN is where it raises.

        Losses often refuse the numbers that a step too far leads to. Only memory that runs out is
        no property of the point, and is raised.
        """
        self.num_losses += 1
        moved = unflatten(self._centre + offset, self.params)
        with self._problem.differentiating():
            try:
                return float(value_of(self._objective, moved, self._batch)) + self._decay(moved)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                return math.nan

    def change_in_float64(self, offset: Float[Tensor, " n"]) -> float | None:
        """Compute the change of the loss to an offset, with the point itself in float64.

        The rounding of a nearly fitted network's loss is many units of it, as scores cancel, and
        the rounding of the point is as large as the offset. None in float64, and where the loss
        cannot be taken there; NaN where it raises at the offset.
        """
        if self._centre.dtype == torch.float64:
            return None
        moved = unflatten(self._centre.double() + offset.double(), self.params)
        with self._problem.differentiating():
            wide = promoted(self._objective, self.params, self._batch)
            if wide is None:
                return None

            def loss_at(params: Params) -> float:
                value = float(value_of(wide.objective, widened(params), wide.batch))
                return value + self._decay(params)

            if self._exact_loss is None:
                try:
                    self._exact_loss = loss_at(self.params)
                except Exception:
                    # Whatever a kernel raises when it meets another type, or memory runs out.
                    return None
            try:
                return loss_at(moved) - self._exact_loss
            except Exception as error:
                if is_out_of_memory(error):
                    return None
                return math.nan

    def gradient_at(self, offset: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Compute the gradient at an offset, in nats per parameter.

        Raises:
            ObjectiveError: As `landscape.curvature.gradient`.
        """
        self.num_gradients += 1
        moved = unflatten(self._centre + offset, self.params)
        with self._problem.differentiating():
            return gradient(self._objective, moved, self._batch)

    def moved_by(self, offset: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the offset of the evaluated point, after rounding, in float64."""
        return (self._centre + offset).double() - self._centre.double()

    def _decay(self, params: Params) -> float:
        decay = self._objective.weight_decay
        if not decay:
            return 0.0
        return 0.5 * decay * float(squared_norm({k: t.double() for k, t in params.items()}))
