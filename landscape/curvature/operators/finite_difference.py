"""The Hessian by central differences of gradients.

It is for kernels that have no second derivative.

Every number carries the error of the differences, which in float32 is seldom below 1e-3 of the
largest eigenvalue.

Shapes: n = total size of the parameters, k = number of vectors or of eigenpairs.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from landscape.curvature.guards.explanations import no_checkpointing
from landscape.curvature.guards.graph import refuse_bypassed_parameters, refuse_edited_gradients
from landscape.curvature.guards.nodes import graph_nodes, module_timeline
from landscape.curvature.guards.preconditions import check_loss, check_same_loss, reading_only
from landscape.curvature.hvp.evaluation import float32_products
from landscape.curvature.hvp.unchecked import checked_leaves
from landscape.curvature.objective import Batch, Objective, Params, flatten, squared_norm, unflatten
from landscape.errors import ObjectiveError
from landscape.linalg.operator import SymmetricOperator, seeded
from landscape.linalg.vectors import all_finite

# Lengths of the step as fractions of the length of the parameters, from large to small by factors
# of 4.
_LARGEST = {torch.float32: 2.0**-6, torch.float64: 2.0**-8}
_MAX_STEPS = 9
# A relative change of the difference between two steps below which the ladder may end.
_USEFUL = 0.1
# A gradient may miss the slope of the loss by this fraction, beside rounding.
_SLOPE_TOLERANCE = {torch.float32: 2e-2, torch.float64: 1e-3}


class FiniteDifferenceOperator(SymmetricOperator):
    """(g(x + h v) - g(x - h v)) / 2h for vectors v of length 1, and proportionally for others.

    Needs only first derivatives, by any kernels, fused attention included. Not linear to the last
    digit: products carry rounding divided by h, and h^2 times fourth derivatives of the loss.
    `error_estimate` says how much. A product costs two gradients. The L2 term is exact.

    Args:
        objective: Must be deterministic, and its gradient the derivative of its loss, which is
            tested.
        params: Parameters at which to differentiate; copied.
        batch: As in HessianOperator.
        step: h, an absolute length in parameter space. By default the one of a ladder, by factors
            of 4, at which halving the step changes products least; costs about 20 gradients.

    Attributes:
        step: The step h.
        error_estimate: ||D(h) v - D(h/2) v||, the largest over a few directions v of length 1 (one
            random, the gradient, and its image, which lies towards the largest eigenvalues), and at
            least the rounding of the gradient over h: of the size of the error of a product in nats
            per squared parameter. An estimate and no bound. Solvers add it to every residual.
        loss, params, num_params: As in HessianOperator.

    Raises:
        ObjectiveError: If the loss is not one finite, deterministic number, or its gradient is not
            its derivative.
        ValueError: If `step` is not positive and finite.

    Source: Nocedal & Wright, Numerical Optimization (2006), section 8.1, on the two errors of a
    step.

    Examples:
        >>> import torch, landscape
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> batch = torch.randn(32, 4), torch.randn(32, 1)
        >>> def loss(model, batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        ...
        >>> from landscape.curvature import select_parameters
        >>> objective = landscape.Objective.from_closure(model, loss)
        >>> D = landscape.FiniteDifferenceOperator(objective, select_parameters(model), batch)
        >>> H = landscape.hessian(model, loss, batch)
        >>> v = torch.ones(H.n)
        >>> bool((D @ v - H @ v).norm() < 1e-2 * (H @ v).norm())
        True
    """

    def __init__(
        self, objective: Objective, params: Params, batch: Batch, *, step: float | None = None
    ) -> None:
        check_step(step)
        leaves = checked_leaves(objective, params, batch, copy=True)
        self.n = self.num_params = sum(leaf.numel() for leaf in leaves.values())
        self._prepare(
            objective, {name: leaf.detach() for name, leaf in leaves.items()}, batch, step=step
        )

    def _prepare(
        self,
        objective: Objective,
        params: Params,
        batch: Batch,
        *,
        step: float | None,
        weight_decay: float | None = None,
    ) -> None:
        """Choose the step, and compare the gradient with differences of the loss.

        Args:
            params: Copies, where to differentiate; of an operator that is cut, this process's
                pieces.
            weight_decay: Coefficient of the L2 term; by default that of the objective.
        """
        first = next(iter(params.values()))
        self.params = params
        self.dtype, self.device = first.dtype, first.device
        self.weight_decay = objective.weight_decay if weight_decay is None else weight_decay
        self._objective, self._batch = objective, batch
        self._centre = flatten(self.params)
        # A random loss is refused before any difference, in which its noise would be divided by 2
        # h.
        value, slope = self._loss_and_gradient(None)
        again, _ = self._loss_and_gradient(None)
        check_same_loss(value, again, dtype=self.dtype)
        self.loss = value
        if self.weight_decay:
            square = float(squared_norm({k: v.double() for k, v in self.params.items()}))
            self.loss += 0.5 * self.weight_decay * float(self.space.total(np.array([square]))[0])
        direction = self._unit(slope)
        if direction is None:
            raise ObjectiveError(
                "The gradient is exactly zero, so nothing tells whether it is the derivative of "
                "the loss. Use other parameters."
            )
        # Each entry of a gradient is rounded to its own last place, at least.
        # Two of these errors are divided by 2 h, so a difference carries noise / h.
        self._noise = torch.finfo(self.dtype).eps * self.space.norm(slope)
        self.step, image = (
            self._ladder(direction) if step is None else (step, self._difference(direction, step))
        )
        self._check_slope(slope, value)
        self.error_estimate = max(self._estimated_error(direction, image), self._noise / self.step)

    def matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Multiply k vectors, one by one.

        Raises:
            ObjectiveError: If a product is not finite.
        """
        columns = []
        for v in V.detach().T:
            length = self.space.norm(v)
            if length == 0:
                columns.append(torch.zeros_like(v))
                continue
            # The step is a length in parameter space. H v = |v| H (v / |v|), so that every vector
            # uses the same length.
            columns.append(self._difference(v / length, self.step) * length)
        products = torch.stack(columns, dim=1) if columns else torch.zeros_like(V)
        if self.space.any(not all_finite(products)):
            raise ObjectiveError(
                "A difference of gradients is not finite: the loss overflows next to the "
                "parameters."
            )
        return products.add(V, alpha=self.weight_decay) if self.weight_decay else products

    @property
    def module(self) -> nn.Module | None:
        """Return the model behind the loss, whose parameters were copied.

        None where the objective names none.
        """
        return self._objective.module

    @property
    def checked(self) -> str:
        return (
            "operator checked: the gradient is the derivative of the loss, and products are "
            "differences of it"
        )

    def _loss_and_gradient(
        self, offset: Float[Tensor, " n"] | None
    ) -> tuple[float, Float[Tensor, " n"]]:
        """Evaluate the data term and its gradient at `offset` from the parameters."""
        centre = self._centre if offset is None else self._centre + offset
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            # Rounding to 10 bits would be divided by the step.
            float32_products(),
            self._without_hooks(),
        ):
            # Cloned in here, because an inference tensor cannot take part in what is
            # differentiated.
            leaves = {
                name: piece.clone().requires_grad_()
                for name, piece in unflatten(centre, self.params).items()
            }
            # What modules do is judged at the centre alone; differences, which are many, need no
            # hooks.
            watched = module_timeline(self._objective.module) if offset is None else nullcontext()
            with watched as timeline, reading_only(leaves):
                loss = self._objective.data_term(leaves, self._batch)
            if timeline is not None:
                check_loss(loss, self._batch, dtype=self.dtype)
                refuse_edited_gradients([loss], leaves, timeline)
                if self._objective.module is not None:
                    refuse_bypassed_parameters(
                        list(graph_nodes(loss)), leaves, self._objective.module
                    )
            gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return loss.item(), flatten(dict(zip(leaves, gradients)))

    def _without_hooks(self) -> AbstractContextManager[None]:
        """Return a context in which the loss may install no saved-tensor hooks."""
        return no_checkpointing()

    def _difference(self, v: Float[Tensor, " n"], step: float) -> Float[Tensor, " n"]:
        # g(x + h v) - g(x - h v) = 2 h (H v + h^2 / 6 g'''[v, v, v] + ...): terms of even order
        # cancel, so the error is h^2 and not h, for two gradients.
        return (self._loss_and_gradient(step * v)[1] - self._loss_and_gradient(-step * v)[1]) / (
            2 * step
        )

    def _ladder(self, v: Float[Tensor, " n"]) -> tuple[float, Float[Tensor, " n"]]:
        """Choose the step whose difference along v changes least.

        The change is that to the next smaller step. Returns the step and its difference.
        """
        # The floor lets the ladder begin where all parameters are zero.
        step = _LARGEST[self.dtype] * max(self.space.norm(self._centre), 1e-3)
        before = self._difference(v, step)
        best, least, num_worse = (step, before), math.inf, 0
        for _ in range(_MAX_STEPS):
            step /= 4
            value = self._difference(v, step)
            # Relative, because at large steps, where the loss levels off, differences shrink with 1
            # / step. Rounding counts as a change: else steps would look best that are too small to
            # change the gradient at all.
            size = max(
                self.space.norm(value), self.space.norm(before), torch.finfo(torch.float64).tiny
            )
            # With a truncation error C h^2 the change is C h^2 (1 - 1/16): 15 times the error of
            # the smaller of the two steps, which is the one that is kept.
            moved = max(self.space.norm(value - before), self._noise / step) / size
            if moved < least:
                best, least, num_worse = (step, value), moved, 0
            else:
                num_worse += 1
            # Two in a row, because a kink makes a single step bad; and not before any step has been
            # good.
            if num_worse == 2 and least < _USEFUL:
                break
            before = value
        return best

    def _check_slope(self, slope: Float[Tensor, " n"], value: float) -> None:
        """Check that the loss changes along its gradient as the gradient says."""
        v, size = self._unit(slope), self.space.norm(slope)
        assert v is not None
        errors = []
        # Along the unit gradient the slope is |g|, the largest of all directions and so the one
        # least hidden by rounding. Other steps, for where a kink lies next to the first.
        for step in (self.step, 4 * self.step, self.step / 4):
            ahead, behind = (
                self._loss_and_gradient(step * v)[0],
                self._loss_and_gradient(-step * v)[0],
            )
            # Two losses, each off by up to 8 units of rounding, over 2 h; that is no fault of the
            # gradient.
            rounding = 8 * torch.finfo(self.dtype).eps * abs(value) / step
            errors.append((abs((ahead - behind) / (2 * step) - size) - rounding) / size)
            if errors[-1] <= _SLOPE_TOLERANCE[self.dtype]:
                return
        raise ObjectiveError(
            "The gradient is not the derivative of the loss: along it the loss changes at a rate "
            f"that is off by {min(errors):.1%}. Look for detach, no_grad, rounding or a wrong "
            "backward; `landscape audit` names the module."
        )

    def _estimated_error(self, direction: Float[Tensor, " n"], image: Float[Tensor, " n"]) -> float:
        random = self._unit(self.random(seeded(0)))
        largest = 0.0
        # D(h) = H + C h^2 + ..., so D(h) - D(h/2) is about 3/4 of the error of D(h).
        for v in (direction, self._unit(image), random):
            if v is not None:
                largest = max(
                    largest,
                    self.space.norm(
                        self._difference(v, self.step) - self._difference(v, self.step / 2)
                    ),
                )
        return largest

    def _unit(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"] | None:
        """Scale a vector to length 1; None where it has no direction."""
        length = self.space.norm(v)
        return v / length if length > 0 and math.isfinite(length) else None


def check_step(step: float | None) -> None:
    """Refuse a step that is no length.

    Raises:
        ValueError: If it is not positive and finite.
    """
    if step is not None and not (math.isfinite(step) and step > 0):
        raise ValueError(f"step must be positive and finite, got {step}.")
