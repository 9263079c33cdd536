"""Central differences of a loss and of its gradient along random directions, and what they say of a product.

Everything is measured in scaled coordinates, one scale per parameter tensor: its root mean square, at least SMALLEST.
A step of h then moves every tensor by about the fraction h of its size, and blocks of all tensors can be compared.
Knows objectives, not modules.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.curvature.evaluation import as_differentiated
from landscape.curvature.graph import coarsest_type
from landscape.curvature.objective import Batch, Objective, Params

# Scale of a tensor of zeros, and how far it is moved, as a fraction, before anything is tested.
SMALLEST = 1e-2
DISPLACEMENT = 1e-2
# Blocks below this fraction of the largest are not judged by their own size.
_NEGLIGIBLE = 1e-6
# Differences have settled where two steps differ by at most this fraction of what is held against them.
_SETTLED = 0.2


@dataclass(frozen=True)
class Precision:
    """What differences in a floating-point type can tell.

    Attributes:
        steps: Relative steps, tried in this order until one agrees. The small ones are there for kinks: the number of
            ReLUs that change side is proportional to the step.
        tolerance: Of relative errors. Healthy networks reach 1e-7 in float64 and 1e-2 in float32.
        repeat: Largest relative difference of two evaluations of the same gradient that only the order of additions can make.
    """

    steps: tuple[float, ...]
    tolerance: float
    repeat: float


PRECISION = {
    torch.float64: Precision(steps=(1e-5, 1e-7, 1e-9), tolerance=1e-4, repeat=1e-9),
    torch.float32: Precision(steps=(1e-2, 3e-3, 3e-2), tolerance=1e-1, repeat=1e-3),
}


@dataclass(frozen=True)
class Outcome:
    """A comparison with differences.

    Attributes:
        error: Largest over the parameters of the relative error at the step that suits the value best.
        verdict: "passed", "failed", or "undecided" where no step agrees, but the steps do not agree among themselves either.
        worst: Name of the parameter with that error.
    """

    error: float
    verdict: str
    worst: str


class Point:
    """An objective at fixed parameters: loss and gradient there and nearby, without any guard, without the L2 term.

    Evaluated as it is differentiated; see `as_differentiated`.

    Args:
        digits: The coarsest type of the loss, where it is known; by default looked for in its graph.
        precision: What to ask of differences; by default what its digits allow.

    Attributes:
        dtype: Of the parameters.
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
        self.scales = {name: scale_of(tensor) for name, tensor in params.items()}
        self.dtype = next(iter(params.values())).dtype
        self.num_gradients = 0
        self._digits = digits
        self._precision = precision

    @property
    def digits(self) -> torch.dtype:
        """The coarsest floating-point type in which the loss is computed: a loss has no more digits than that."""
        if self._digits is None:
            self.evaluate(self.leaves())
        assert self._digits is not None
        return self._digits

    @property
    def precision(self) -> Precision:
        """What differences can tell here.

        Raises:
            KeyError: If the loss is computed in fewer digits than float32 has: then nothing.
        """
        return self._precision or PRECISION[self.digits]

    def leaves(self) -> Params:
        return {name: tensor.clone().requires_grad_() for name, tensor in self.params.items()}

    def random_direction(self, generator: torch.Generator) -> Params:
        """Independent normal entries, in scaled coordinates."""
        return {name: _normal(tensor, generator) for name, tensor in self.params.items()}

    def scaled(self, vector: Params) -> Params:
        """From scaled coordinates to parameters, and from derivatives by parameters to those by scaled coordinates."""
        return {name: self.scales[name] * piece for name, piece in vector.items()}

    def evaluate(self, leaves: Params) -> Tensor:
        with as_differentiated():
            loss = self.objective.data_term(leaves, self.batch)
            if self._digits is None and isinstance(loss, Tensor):
                self._digits = coarsest_type(loss, self.dtype)
            return loss

    def loss(self, direction: Params, step: float) -> float:
        """The loss at `step` times the direction away, in scaled coordinates."""
        return self.evaluate(self.moved(direction, step)).item()

    def moved(self, direction: Params | None, step: float) -> Params:
        """Leaves at `step` times the direction away."""
        leaves = self.leaves()
        if direction is not None:
            with torch.no_grad():
                for name, leaf in leaves.items():
                    leaf.add_(direction[name], alpha=step * self.scales[name])
        return leaves

    def loss_and_gradient(
        self, direction: Params | None = None, step: float = 0.0
    ) -> tuple[float, Params]:
        """At `step` times the direction away, both in scaled coordinates; zeros where the loss carries no graph."""
        self.num_gradients += 1
        leaves = self.moved(direction, step)
        with as_differentiated():
            loss = self.evaluate(leaves)
            return loss.item(), self.scaled(gradient_of(loss, leaves))


def gradient_of(loss: Tensor, leaves: Params) -> Params:
    """One plain backward pass; zeros where the loss does not depend on a leaf, or on none."""
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
    """Every parameter moved at random by a hundredth of its size.

    Zero-initialised gains hide what is behind them, and zero biases put ReLUs exactly on their kinks; nothing is hidden
    a little way off, and derivatives that are right there are right at the parameters.
    """
    return {
        name: tensor.detach() + DISPLACEMENT * scale_of(tensor) * _normal(tensor, generator)
        for name, tensor in params.items()
    }


def natural_size(point: Point, directions: Sequence[Params]) -> float:
    """The size that the loss has where parameters differ by as much as they are large: at most 1 nat.

    A loss that has been fitted perfectly is far below the terms that cancel in it, and so are its derivatives; this is of the
    size of those terms, and scales with the loss. Bounded, since a deep network moved so far may give anything.
    """
    sizes = sorted(
        abs(point.loss(direction, step)) for direction in directions for step in (1.0, -1.0)
    )
    middle = sizes[len(sizes) // 2]
    return min(1.0, middle) if math.isfinite(middle) else 1.0


def smallest_visible(point: Point, size: float) -> float:
    """The largest derivative that the rounding of a loss of this `size` can hide from differences, in nats."""
    return 100 * torch.finfo(point.digits).eps / point.precision.steps[0] * size


def judge_derivatives(
    point: Point, direction: Params, slope: Params, product: Params | None, *, size: float = 0.0
) -> tuple[Outcome, Outcome | None]:
    """The gradient against differences of the loss, and a product against differences of the gradient.

    Args:
        direction: In scaled coordinates, as everything here.
        slope: The gradient at the point.
        product: H @ direction; None if there is none.
        size: Of terms that cancel in the loss, whose rounding is to be allowed for; see `natural_size`.
    """
    precision = point.precision
    derivative = torch.stack([(slope[name] * direction[name]).sum() for name in slope])
    # The root of the sum of squares, not the sum, which may cancel.
    length = float(derivative.norm())
    gradients: list[Params] = []
    losses: list[float] = []
    # Added to a size, so many units let a difference be off by as many units of the rounding of what was subtracted.
    unit = torch.finfo(point.digits).eps / (precision.steps[0] * precision.tolerance)
    first = second = None
    for step in precision.steps:
        ahead, behind = (
            point.loss_and_gradient(direction, step),
            point.loss_and_gradient(direction, -step),
        )
        losses.append((ahead[0] - behind[0]) / (2 * step))
        gradients.append({name: (ahead[1][name] - behind[1][name]) / (2 * step) for name in slope})
        noise = 100 * unit * max(abs(ahead[0]), size)
        first = judge_number(
            float(derivative.sum()), losses, size=length + noise, tolerance=precision.tolerance
        )
        if product is not None:
            rounding = {
                name: 10 * unit * max(float(piece.norm()), size) for name, piece in slope.items()
            }
            second = judge_blocks(
                product, gradients, rounding=rounding, tolerance=precision.tolerance
            )
        if first.verdict == "passed" and (second is None or second.verdict == "passed"):
            break
    assert first is not None
    return first, second


def judge_blocks(
    value: Params, differences: list[Params], *, rounding: dict[str, float], tolerance: float
) -> Outcome:
    """Each block of `value` against the same block of the differences at several steps."""
    sizes = {
        name: max(float(piece.norm()), min(float(one[name].norm()) for one in differences))
        for name, piece in value.items()
    }
    floor = _NEGLIGIBLE * max(sizes.values()) + torch.finfo(torch.float64).tiny
    outcomes = []
    for name, piece in value.items():
        size = sizes[name] + floor + rounding[name]
        errors = [float((piece - one[name]).norm()) / size for one in differences]
        moves = [
            float((one[name] - other[name]).norm()) / size
            for one, other in zip(differences, differences[1:])
        ]
        outcomes.append(Outcome(min(errors), _verdict(errors, moves, tolerance), name))
    order = {"failed": 2, "undecided": 1, "passed": 0}
    return max(outcomes, key=lambda one: (order[one.verdict], one.error))


def judge_number(
    value: float, differences: list[float], *, size: float, tolerance: float
) -> Outcome:
    """A number against differences at several steps, in units of `size`."""
    size = size + torch.finfo(torch.float64).tiny
    errors = [abs(value - one) / size for one in differences]
    moves = [abs(one - other) / size for one, other in zip(differences, differences[1:])]
    return Outcome(min(errors), _verdict(errors, moves, tolerance), "")


def _verdict(errors: list[float], moves: list[float], tolerance: float) -> str:
    if min(errors) <= tolerance:
        return "passed"
    settled = any(move <= _SETTLED * min(errors) for move in moves)
    return "failed" if settled else "undecided"


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Drawn on the CPU in float64, so that all devices and types get the same numbers."""
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(
        like.device, like.dtype
    )


class PlainProduct:
    """H v by double backward with no guard: what a tool that asks no questions computes.

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
        """In scaled coordinates."""
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
        return self.point.scaled(dict(zip(self._leaves, products)))


def asymmetry(directions: list[Params], products: list[Params], *, floor: float = 0.0) -> float:
    """|B - B^T| / |B| of the bilinear forms B = <u_i, H u_j>, i != j, in the Frobenius norm; 0 for forms of zero.

    Args:
        floor: The smallest denominator, where rounding hides what is below it.
    """
    forms = torch.tensor(
        [[_inner(u, product) for product in products] for u in directions], dtype=torch.float64
    )
    forms -= torch.diag(forms.diagonal())
    size = max(float(forms.norm()), floor)
    return float((forms - forms.T).norm()) / size if size > 0 else 0.0


def _inner(u: Params, v: Params) -> float:
    return sum(float((u[name].double() * v[name].double()).sum()) for name in u)


Product = Callable[[Params], Params]
