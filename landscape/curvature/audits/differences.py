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
# Blocks below this fraction of the largest are not judged by their own size.
_NEGLIGIBLE = 1e-6
# Differences have settled where two steps differ by at most this fraction of what is held against
# them.
_SETTLED = 0.2


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


@dataclass(frozen=True)
class Outcome:
    """A comparison with differences.

    Attributes:
        error: Largest over the parameters of the relative error at the step that suits the value
            best.
        verdict: "passed", "failed", or "undecided" where no step agrees, but the steps do not agree
            among themselves either.
        worst: Name of the parameter with that error.
    """

    error: float
    verdict: str
    worst: str


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
        return _lengths(vector)

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


def judge_derivatives(
    point: Point, direction: Params, slope: Params, product: Params | None, *, size: float = 0.0
) -> tuple[Outcome, Outcome | None]:
    """Compare the gradient and a product with central differences.

    The gradient is compared with differences of the loss, the product with differences of the
    gradient.

    Args:
        direction: Direction in scaled coordinates, as everything here.
        slope: The gradient at the point.
        product: H @ direction; None if there is none.
        size: Size of terms that cancel in the loss, whose rounding is to be allowed for; see
            `natural_size`.
    """
    precision = point.precision
    derivative = point.inner(slope, direction)
    # The root of the sum of squares, not the sum, which may cancel.
    length = float(derivative.norm())
    gradients: list[Params] = []
    losses: list[float] = []
    # Added to a size, so many units let a difference be off by as many units of the rounding of
    # what was subtracted.
    unit = torch.finfo(point.digits).eps / (precision.steps[0] * precision.tolerance)
    first = second = None
    for step in precision.steps:
        ahead, behind = (
            point.loss_and_gradient(direction, step),
            point.loss_and_gradient(direction, -step),
        )
        # Central differences: (f(x + hv) - f(x - hv)) / 2h = f'v + h^2 f'''vvv / 6 + ... Truncation
        # falls as h^2, rounding grows as eps / h, and a kink between the two points spoils both. So
        # several steps are tried.
        losses.append((ahead[0] - behind[0]) / (2 * step))
        gradients.append({name: (ahead[1][name] - behind[1][name]) / (2 * step) for name in slope})
        # tolerance * noise = 100 eps |loss| / h with h the first step: the slope may be off by that
        # much beside the relative tolerance. Likewise 10 eps |gradient| / h for each block of the
        # product.
        noise = 100 * unit * max(abs(ahead[0]), size)
        first = judge_number(
            float(derivative.sum()), losses, size=length + noise, tolerance=precision.tolerance
        )
        if product is not None:
            rounding = {
                name: 10 * unit * max(length, size) for name, length in point.lengths(slope).items()
            }
            second = judge_blocks(
                product,
                gradients,
                rounding=rounding,
                tolerance=precision.tolerance,
                lengths=point.lengths,
            )
        if first.verdict == "passed" and (second is None or second.verdict == "passed"):
            break
    assert first is not None
    return first, second


def _lengths(vector: Params) -> dict[str, float]:
    return {name: float(piece.norm()) for name, piece in vector.items()}


def _difference(u: Params, v: Params) -> Params:
    return {name: u[name] - v[name] for name in u}


def judge_blocks(
    value: Params,
    differences: list[Params],
    *,
    rounding: dict[str, float],
    tolerance: float,
    lengths: Callable[[Params], dict[str, float]] = _lengths,
) -> Outcome:
    """Compare each block of `value` with its differences at several steps."""
    own, others = lengths(value), [lengths(difference) for difference in differences]
    # Errors are relative to the size of the block. The least of the differences counts for it: a
    # single wild difference must not make an error look small.
    sizes = {name: max(own[name], min(parts[name] for parts in others)) for name in value}
    floor = _NEGLIGIBLE * max(sizes.values()) + torch.finfo(torch.float64).tiny
    off = [lengths(_difference(value, difference)) for difference in differences]
    apart = [lengths(_difference(u, v)) for u, v in zip(differences, differences[1:])]
    # `off` is the distance of the value from each difference, `apart` that of each difference from
    # the next. `tiny` keeps a value and differences that are all zero from dividing by zero.
    outcomes = []
    for name in value:
        size = sizes[name] + floor + rounding[name]
        errors, moves = ([parts[name] / size for parts in steps] for steps in (off, apart))
        # The best step counts, since truncation spoils large steps and rounding small ones.
        outcomes.append(Outcome(min(errors), _verdict(errors, moves, tolerance), name))
    order = {"failed": 2, "undecided": 1, "passed": 0}
    return max(outcomes, key=lambda outcome: (order[outcome.verdict], outcome.error))


def judge_number(
    value: float, differences: list[float], *, size: float, tolerance: float
) -> Outcome:
    """Compare a number with differences at several steps.

    Errors are in units of `size`.
    """
    size = size + torch.finfo(torch.float64).tiny
    errors = [abs(value - difference) / size for difference in differences]
    moves = [abs(after - before) / size for before, after in zip(differences, differences[1:])]
    return Outcome(min(errors), _verdict(errors, moves, tolerance), "")


def _verdict(errors: list[float], moves: list[float], tolerance: float) -> str:
    if min(errors) <= tolerance:
        return "passed"
    # Two steps that agree with each other, and not with the value, prove it wrong. Where they do
    # not agree either, the differences may be what is wrong, as at a kink.
    settled = any(move <= _SETTLED * min(errors) for move in moves)
    return "failed" if settled else "undecided"


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


def asymmetry(directions: list[Params], products: list[Params], *, floor: float = 0.0) -> float:
    """Measure the relative asymmetry |B - B^T| / |B| of the Hessian.

    B holds the bilinear forms <u_i, H u_j>, i != j. Norms are Frobenius norms; the result is 0
    where B is 0.

    Args:
        floor: The smallest denominator, where rounding hides what is below it.
    """
    # U^T H U is symmetric if H is; a few forms need no further product.
    forms = torch.tensor(
        [[_inner(u, product) for product in products] for u in directions], dtype=torch.float64
    )
    # The diagonal is symmetric by itself, and would only hide what is beside it.
    forms -= torch.diag(forms.diagonal())
    size = max(float(forms.norm()), floor)
    return float((forms - forms.T).norm()) / size if size > 0 else 0.0


def _inner(u: Params, v: Params) -> float:
    return sum(float((u[name].double() * v[name].double()).sum()) for name in u)


Product = Callable[[Params], Params]
