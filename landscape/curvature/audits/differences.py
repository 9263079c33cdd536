"""Central differences of a loss and its gradient along random directions.

They are compared with a product, a gradient or a number.

Everything is measured in scaled coordinates, one scale per parameter tensor: its root mean square,
at least SMALLEST. A step of h then moves every tensor by about the fraction h of its size, and
blocks of all tensors can be compared. Knows objectives, not modules.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.curvature.guards.nodes import coarsest_type
from landscape.curvature.hvp.evaluation import as_differentiated
from landscape.curvature.objective import Batch, Objective, Params

# Scale of a tensor of zeros, and how far it is moved, as a fraction, before anything is tested.
SMALLEST = 1e-2
DISPLACEMENT = 1e-2


@dataclass(frozen=True)
class Precision:
    """What differences can resolve in a floating-point type.

    Attributes:
        steps: Relative steps, tried in this order until one agrees. The small ones are there for
            kinks: the number of ReLUs that change side is proportional to the step.
        tolerance: Largest relative error that passes. Healthy networks reach 1e-7 in float64 and
            1e-2 in float32.
        repeat: Largest relative difference of two evaluations of the same gradient that only the
            order of additions can make.
    """

    steps: tuple[float, ...]
    tolerance: float
    repeat: float


# Truncation h^2 and rounding eps / h balance at h = eps^(1/3), which is 6e-6 in float64 and 5e-3 in
# float32: the first steps are near that.
PRECISION = {
    torch.float64: Precision(steps=(1e-5, 1e-7, 1e-9), tolerance=1e-4, repeat=1e-9),
    torch.float32: Precision(steps=(1e-2, 3e-3, 3e-2), tolerance=1e-1, repeat=1e-3),
}


class Point:
    """A loss and its gradient at fixed parameters and nearby.

    There is no guard and no L2 term.

    Evaluated as it is differentiated; see `as_differentiated`.

    Args:
        digits: The coarsest type of the loss, where it is known; by default looked for in its
            graph.
        precision: Steps and tolerances of differences; by default those that its digits allow.

    Attributes:
        dtype: Type of the parameters.
        num_gradients: Gradients evaluated so far.
    """

    def __init__(
        self,
        objective: Objective,
        params: Params,
        batch: Batch,
        *,
        digits: torch.dtype | None = None,
        precision: Precision | None = None,
    ) -> None:
        self.objective, self.batch = objective, batch
        self.params = {name: tensor.detach() for name, tensor in params.items()}
        self.scales = self._measured_scales()
        self.dtype = next(iter(params.values())).dtype
        self.num_gradients = 0
        self._digits = digits
        self._precision = precision

    def _measured_scales(self) -> dict[str, float]:
        return {name: scale_of(tensor) for name, tensor in self.params.items()}

    def lengths(self, vector: Params) -> dict[str, float]:
        """Compute the Euclidean norm of a vector's part for each parameter."""
        return lengths_of(vector)

    def inner(self, u: Params, v: Params) -> Tensor:
        """Compute the inner product of two vectors for each parameter."""
        return torch.stack([(u[name] * v[name]).sum() for name in u])

    @property
    def digits(self) -> torch.dtype:
        """Return the coarsest floating-point type in which the loss is computed.

        A loss has no more digits than that.
        """
        if self._digits is None:
            self.evaluate(self.leaves())
        assert self._digits is not None
        return self._digits

    @property
    def precision(self) -> Precision:
        """Return the steps and tolerances of differences at this point.

        Raises:
            KeyError: If the loss is computed in fewer digits than float32 has: then nothing.
        """
        return self._precision or PRECISION[self.digits]

    def leaves(self) -> Params:
        return {name: tensor.clone().requires_grad_() for name, tensor in self.params.items()}

    def random_direction(self, generator: torch.Generator) -> Params:
        """Draw independent normal entries, in scaled coordinates."""
        return {name: _normal(tensor, generator) for name, tensor in self.params.items()}

    def scaled(self, vector: Params) -> Params:
        """Multiply each part of a vector by the scale of its parameter.

        This takes scaled coordinates to parameters, and derivatives by parameters to those by
        scaled coordinates.
        """
        # With x = S y for scaled coordinates y, dx = S dy and d/dy = S d/dx: both uses multiply by
        # S.
        return {name: self.scales[name] * piece for name, piece in vector.items()}

    def evaluate(self, leaves: Params) -> Tensor:
        with as_differentiated():
            loss = self.objective.data_term(leaves, self.batch)
            if self._digits is None and isinstance(loss, Tensor):
                self._digits = coarsest_type(loss, self.dtype)
            return loss

    def loss(self, direction: Params, step: float) -> float:
        """Evaluate the loss at `step` times the direction away.

        Both are in scaled coordinates.
        """
        return self.evaluate(self.moved(direction, step)).item()

    def moved(self, direction: Params | None, step: float) -> Params:
        """Build leaves at `step` times the direction away."""
        leaves = self.leaves()
        if direction is not None:
            with torch.no_grad():
                for name, leaf in leaves.items():
                    leaf.add_(direction[name], alpha=step * self.scales[name])
        return leaves

    def loss_and_gradient(
        self, direction: Params | None = None, step: float = 0.0
    ) -> tuple[float, Params]:
        """Evaluate the loss and its gradient at `step` times the direction away.

        Direction and gradient are in scaled coordinates. The gradient is zero where the loss
        carries no graph.
        """
        self.num_gradients += 1
        leaves = self.moved(direction, step)
        with as_differentiated():
            loss = self.evaluate(leaves)
            return loss.item(), self.scaled(gradient_of(loss, leaves))


def gradient_of(loss: Tensor, leaves: Params) -> Params:
    """Compute a gradient by a plain backward pass.

    It is zero where the loss does not depend on a leaf, or on none.
    """
    if not loss.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    pieces = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, pieces))


def scale_of(tensor: Tensor) -> float:
    size = (
        float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64))
        / max(tensor.numel(), 1) ** 0.5
    )
    return max(size, SMALLEST)


def displaced(params: Params, generator: torch.Generator) -> Params:
    """Move every parameter at random by a hundredth of its size.

    Zero-initialised gains hide what is behind them, and zero biases put ReLUs exactly on their
    kinks; nothing is hidden close by, and derivatives that are right there are right at the
    parameters.
    """
    return {
        name: tensor.detach() + DISPLACEMENT * scale_of(tensor) * _normal(tensor, generator)
        for name, tensor in params.items()
    }


def natural_size(point: Point, directions: Sequence[Params]) -> float:
    """Estimate the size of a loss's terms, at most 1 nat.

    It is the median size of the loss where parameters differ by as much as they are large.

    A loss that has been fitted perfectly is far below the terms that cancel in it, and so are its
    derivatives; this is of the size of those terms, and scales with the loss. Bounded, since a deep
    network moved so far may give anything.
    """
    # The median over directions and signs, so that no single extreme value decides.
    sizes = sorted(
        abs(point.loss(direction, step)) for direction in directions for step in (1.0, -1.0)
    )
    middle = sizes[len(sizes) // 2]
    return min(1.0, middle) if math.isfinite(middle) else 1.0


def smallest_visible(point: Point, size: float) -> float:
    """Return the largest derivative that rounding can hide from differences.

    Rounding is that of a loss of this `size`; the result is in nats.
    """
    # A difference over a step h turns rounding of eps * size into eps * size / h; 100 is for
    # safety.
    return 100 * torch.finfo(point.digits).eps / point.precision.steps[0] * size


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw normal entries on the CPU in float64.

    All devices and types then get the same numbers.
    """
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(
        like.device, like.dtype
    )


class PlainProduct:
    """H v by double backward without a guard.

    This is what a tool computes that checks nothing.

    Raises:
        RuntimeError: What PyTorch raises where it refuses.
    """

    def __init__(self, point: Point) -> None:
        self.point = point
        self._leaves = point.leaves()
        pieces: tuple[Tensor | None, ...] = (None,) * len(self._leaves)
        point.num_gradients += 1
        with as_differentiated():
            loss = point.evaluate(self._leaves)
            # Gradients are linear in this seed, so that those of a linear loss keep a graph too.
            seed = torch.ones_like(loss, requires_grad=True)
            if loss.requires_grad:
                pieces = torch.autograd.grad(
                    loss, list(self._leaves.values()), seed, create_graph=True, allow_unused=True
                )
        gradients = dict(zip(self._leaves, pieces))
        self._attached = {
            name: piece
            for name, piece in gradients.items()
            if piece is not None and piece.requires_grad
        }

    def __call__(self, direction: Params) -> Params:
        """Multiply a vector by H, in scaled coordinates."""
        moved = self.point.scaled(direction)
        names = list(self._attached)
        with as_differentiated():
            products = torch.autograd.grad(
                [self._attached[name] for name in names],
                list(self._leaves.values()),
                [moved[name] for name in names],
                retain_graph=True,
                materialize_grads=True,
            )
        # By y the Hessian is S H S: S was applied to the vector before, and is applied to the
        # product here.
        return self.point.scaled(dict(zip(self._leaves, products)))


Product = Callable[[Params], Params]


def lengths_of(vector: Params) -> dict[str, float]:
    return {name: float(piece.norm()) for name, piece in vector.items()}
