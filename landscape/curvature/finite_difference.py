"""The Hessian of an objective by central differences of its gradient, for kernels that have no second derivative.

The honest fallback: every number carries the error of the differences, which in float32 is seldom below 1e-3 of the
largest eigenvalue. Shapes: n = total size of the parameters, k = number of vectors or of eigenpairs.
"""

import math
from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.curvature.graph import (
    _nodes,
    _refuse_bypassed_parameters,
    module_timeline,
    no_checkpointing,
    refuse_edited_gradients,
)
from landscape.curvature.objective import Batch, Objective, Params, flatten, squared_norm, unflatten
from landscape.curvature.preconditions import check_loss, check_same_loss, reading_only
from landscape.curvature.unchecked import checked_leaves
from landscape.errors import ObjectiveError
from landscape.linalg.operator import SymmetricOperator, seeded

# Lengths of the step as fractions of the length of the parameters, from large to small by factors of 4.
_LARGEST = {torch.float32: 2.0**-6, torch.float64: 2.0**-8}
_MOST_STEPS = 9
# A relative change of the difference between two steps below which the ladder may end.
_USEFUL = 0.1
# A gradient may miss the slope of the loss by this fraction, beside rounding.
_SLOPE_TOLERANCE = {torch.float32: 2e-2, torch.float64: 1e-3}


class FiniteDifferenceOperator(SymmetricOperator):
    """(g(x + h v) - g(x - h v)) / 2h for vectors v of length 1, and proportionally for others.

    Needs only first derivatives, by any kernels, fused attention included. Not linear to the last digit: products carry
    rounding divided by h, and h^2 times fourth derivatives of the loss. `error_estimate` says how much. A product costs two
    gradients. The L2 term is exact.

    Args:
        objective: Must be deterministic, and its gradient the derivative of its loss, which is tested.
        params: Where to differentiate; copied.
        batch: As for HessianOperator.
        step: h, an absolute length in parameter space. By default the one of a ladder, by factors of 4, at which halving the
            step changes products least; costs about 20 gradients.

    Attributes:
        step: The step h.
        error_estimate: ||D(h) v - D(h/2) v||, the largest over a few directions v of length 1 (one random, the gradient, and
            its image, which lies towards the largest eigenvalues), and at least the rounding of the gradient over h: of the
            size of the error of a product in nats per squared parameter. An estimate and no bound. Solvers add it to every
            residual.
        loss, params, num_params: As in HessianOperator.

    Raises:
        ObjectiveError: If the loss is not one finite, deterministic number, or its gradient is not its derivative.
        ValueError: If `step` is not positive and finite.

    Source: Nocedal & Wright, Numerical Optimization (2006), section 8.1, on the two errors of a step.
    """

    def __init__(
        self, objective: Objective, params: Params, batch: Batch, *, step: float | None = None
    ) -> None:
        if step is not None and not (math.isfinite(step) and step > 0):
            raise ValueError(f"step must be positive and finite, got {step}.")
        leaves = checked_leaves(objective, params, batch, copy=True)
        first = next(iter(leaves.values()))
        self.params = {name: leaf.detach() for name, leaf in leaves.items()}
        self.dtype, self.device = first.dtype, first.device
        self.n = self.num_params = sum(leaf.numel() for leaf in leaves.values())
        self.weight_decay = objective.weight_decay
        self._objective, self._batch = objective, batch
        self._centre = flatten(self.params)
        value, slope = self._loss_and_gradient(None)
        again, _ = self._loss_and_gradient(None)
        check_same_loss(value, again, dtype=self.dtype)
        self.loss = value
        if self.weight_decay:
            self.loss += (
                0.5
                * self.weight_decay
                * float(squared_norm({k: v.double() for k, v in self.params.items()}))
            )
        direction = _unit(slope)
        if direction is None:
            raise ObjectiveError(
                "The gradient is exactly zero, so nothing tells whether it is the derivative of the loss. Use other parameters."
            )
        # Each entry of a gradient is rounded to its own last place, at least.
        self._noise = torch.finfo(self.dtype).eps * _length(slope)
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
            length = float(torch.linalg.vector_norm(v, dtype=torch.float64))
            if length == 0:
                columns.append(torch.zeros_like(v))
                continue
            columns.append(self._difference(v / length, self.step) * length)
        products = torch.stack(columns, dim=1) if columns else torch.zeros_like(V)
        if not torch.isfinite(products).all():
            raise ObjectiveError(
                "A difference of gradients is not finite: the loss overflows next to the parameters."
            )
        return products.add(V, alpha=self.weight_decay) if self.weight_decay else products

    @property
    def checked(self) -> str:
        return "operator checked: the gradient is the derivative of the loss, and products are differences of it"

    def _loss_and_gradient(
        self, offset: Float[Tensor, " n"] | None
    ) -> tuple[float, Float[Tensor, " n"]]:
        """Of the data term, at `offset` from the parameters."""
        centre = self._centre if offset is None else self._centre + offset
        with torch.inference_mode(False), torch.enable_grad(), no_checkpointing():
            # Cloned in here, because an inference tensor cannot take part in what is differentiated.
            leaves = {
                name: piece.clone().requires_grad_()
                for name, piece in unflatten(centre, self.params).items()
            }
            # What modules do is judged at the centre alone; differences, which are many, need no hooks.
            watched = module_timeline(self._objective.module) if offset is None else nullcontext()
            with watched as timeline, reading_only(leaves):
                loss = self._objective.data_term(leaves, self._batch)
            if timeline is not None:
                check_loss(loss, self._batch, dtype=self.dtype)
                refuse_edited_gradients([loss], leaves, timeline)
                if self._objective.module is not None:
                    _refuse_bypassed_parameters(list(_nodes(loss)), leaves, self._objective.module)
            gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return loss.item(), flatten(dict(zip(leaves, gradients)))

    def _difference(self, v: Float[Tensor, " n"], step: float) -> Float[Tensor, " n"]:
        return (self._loss_and_gradient(step * v)[1] - self._loss_and_gradient(-step * v)[1]) / (
            2 * step
        )

    def _ladder(self, v: Float[Tensor, " n"]) -> tuple[float, Float[Tensor, " n"]]:
        """The step whose difference along v moves least when the next smaller one is taken, and that difference."""
        step = _LARGEST[self.dtype] * max(_length(self._centre), 1e-3)
        before = self._difference(v, step)
        best, least, num_worse = (step, before), math.inf, 0
        for _ in range(_MOST_STEPS):
            step /= 4
            value = self._difference(v, step)
            # Relative, because far out, where the loss levels off, differences shrink with 1 / step. What rounding hides has
            # moved by that, or steps would look best that are too small to change the gradient at all.
            size = max(_length(value), _length(before), torch.finfo(torch.float64).tiny)
            moved = max(_length(value - before), self._noise / step) / size
            if moved < least:
                best, least, num_worse = (step, value), moved, 0
            else:
                num_worse += 1
            # Two in a row, because a kink makes a single step bad; and not where no step has been any good yet.
            if num_worse == 2 and least < _USEFUL:
                break
            before = value
        return best

    def _check_slope(self, slope: Float[Tensor, " n"], value: float) -> None:
        """The loss must fall along its gradient by what the gradient says."""
        v, size = _unit(slope), _length(slope)
        assert v is not None
        errors = []
        for step in (self.step, 4 * self.step, self.step / 4):
            ahead, behind = (
                self._loss_and_gradient(step * v)[0],
                self._loss_and_gradient(-step * v)[0],
            )
            rounding = 8 * torch.finfo(self.dtype).eps * abs(value) / step
            errors.append((abs((ahead - behind) / (2 * step) - size) - rounding) / size)
            if errors[-1] <= _SLOPE_TOLERANCE[self.dtype]:
                return
        raise ObjectiveError(
            "The gradient is not the derivative of the loss: along it the loss changes at a rate that is off by "
            f"{min(errors):.1%}. Look for detach, no_grad, rounding or a wrong backward; `landscape audit` names the module."
        )

    def _estimated_error(self, direction: Float[Tensor, " n"], image: Float[Tensor, " n"]) -> float:
        random = _unit(
            torch.randn(self.n, generator=seeded(0), dtype=torch.float64).to(
                self.device, self.dtype
            )
        )
        largest = 0.0
        for v in (direction, _unit(image), random):
            if v is not None:
                largest = max(
                    largest,
                    _length(self._difference(v, self.step) - self._difference(v, self.step / 2)),
                )
        return largest


def _length(v: Tensor) -> float:
    return float(torch.linalg.vector_norm(v, dtype=torch.float64))


def _unit(v: Tensor) -> Tensor | None:
    length = _length(v)
    return v / length if length > 0 and math.isfinite(length) else None
