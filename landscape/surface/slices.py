"""The loss along directions of weight space, and between two sets of weights.

There are one or two directions.

A slice shows what it shows: the loss on these batches in one or two of n dimensions. A low wall
between two points does not mean that no lower path leads around it, a bowl along random directions
does not mean that there is no negative curvature (a random direction sees the mean of all
eigenvalues), and pictures of two networks compare only as far as their filters do.

Imports only torch, numpy and this room.
Shapes: n = total size of the parameters, d = directions, m = points of an axis.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from landscape.curvature.hvp.evaluation import value_of
from landscape.curvature.objective import Batch, Objective, Params, flatten, squared_norm, unflatten
from landscape.errors import ObjectiveError
from landscape.surface.quadratic import CurvatureFit, LocalModel, extrapolate

# The loss at a point of a slice, given by its coordinates, in nats.
LossAt = Callable[..., float]
MINIMUM_POINTS = 5


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One direction of a slice, and what is known of the curvature along it.

    Attributes:
        name: Name of the direction, as "eigenvector 1".
        unit: Meaning of a coordinate of 1.
        coordinates: (m,) ascending.
        norm: Euclidean length of the direction.
        eigenvalue: Eigenvalue of an eigenvector; NaN for other directions.
        bound: An eigenvalue lies within this distance of `eigenvalue`; NaN for other directions.
        converged: Whether the eigensolver met its tolerance; None for other directions.
        fit: The curvature measured by differences of losses around the middle; None where it was
            not.
    """

    name: str
    unit: str
    coordinates: Float[np.ndarray, " m"]
    norm: float
    eigenvalue: float = math.nan
    bound: float = math.nan
    converged: bool | None = None
    fit: CurvatureFit | None = None


@dataclass(frozen=True, kw_only=True)
class Barrier:
    """The rise of the loss above the straight line between two ends.

    Attributes:
        height: Height in nats, >= 0; infinite where the loss is, NaN where that of an end is not a
            number.
        at: Place on the line; 0 is the first end, 1 the second.
        num_missing: Points without a number: not computed yet, or NaN. With any, `height` is a
            lower bound.

    Between the points of the slice the loss may be higher still.
    """

    height: float
    at: float
    num_missing: int


@dataclass(frozen=True, kw_only=True)
class LossSlice:
    """The loss at the points of a line.

    Attributes:
        losses: (m,) in nats, as computed: infinite and NaN values stay. NaN where nothing was
            computed.
        computed: (m,) which of them were computed.
        local: The quadratic that the derivatives in the middle predict; None where they were not
            taken.

    Raises:
        ValueError: If the shapes do not fit.
    """

    axis: Axis
    losses: Float[np.ndarray, " m"]
    computed: Bool[np.ndarray, " m"]
    local: LocalModel | None = None

    def __post_init__(self) -> None:
        _check_shapes((self.axis,), self.losses, self.computed)

    @property
    def predicted(self) -> Float[np.ndarray, " m"] | None:
        """Evaluate the local quadratic at the points of the slice."""
        return None if self.local is None else self.local(self.axis.coordinates[:, None])

    @property
    def num_undefined(self) -> int:
        """Count computed points whose loss is infinite or not a number."""
        return int(np.count_nonzero(self.computed & ~np.isfinite(self.losses)))

    def fit(self, *, dtype: torch.dtype) -> CurvatureFit:
        """Estimate the curvature in the middle from the slice alone.

        The steps are multiples of its own spacing: h, 2 h, 4 h, ...

        Right where the loss is smooth over a few points; a slice much wider than that says so by
        its `error`.

        Args:
            dtype: Type in which the losses were computed.

        Raises:
            ValueError: If the points are not evenly spaced around 0.
        """
        x, half = self.axis.coordinates, len(self.axis.coordinates) // 2
        if len(x) % 2 == 0 or not np.allclose(
            x, np.linspace(-x[-1], x[-1], len(x)), atol=1e-9 * abs(x[-1]), rtol=0
        ):
            raise ValueError(
                f"a curvature is fitted to evenly spaced points on both sides of 0, got {len(x)} "
                f"from {x[0]:g}."
            )
        # The largest power of two that fits, halved down to one: steps that lie on the grid.
        counts = 2 ** np.arange(int(math.log2(half)), -1, -1)
        pairs = np.stack([self.losses[half - counts], self.losses[half + counts]], axis=1)
        return extrapolate(x[half + counts], pairs, float(self.losses[half]), dtype=dtype)

    def barrier(self) -> Barrier:
        """Measure the barrier between the points 0 and 1 of the line.

        Source: Frankle, Dziugaite, Roy & Carbin, Linear Mode Connectivity and the Lottery Ticket
        Hypothesis (2020), arXiv 1912.05671, section 2, with the mean of the ends replaced by their
        linear interpolation as in Entezari, Sedghi, Saukh & Neyshabur, The Role of Permutation
        Invariance in Linear Mode Connectivity (2022), arXiv 2110.06296, definition 1.

        Raises:
            ValueError: If the slice does not run from 0 to 1.
        """
        t = self.axis.coordinates
        if t[0] != 0 or t[-1] != 1:
            raise ValueError(
                f"a barrier lies between 0 and 1, but the slice runs from {t[0]:g} to {t[-1]:g}."
            )
        missing = int(np.count_nonzero(np.isnan(self.losses)))
        ends = self.losses[[0, -1]]
        if not np.isfinite(ends).all():
            return Barrier(height=math.nan, at=math.nan, num_missing=missing)
        # The height above the straight line between the losses of the two ends.
        rise = self.losses - ((1 - t) * ends[0] + t * ends[1])
        # Points that are missing are left out here. Both ends are finite, so there is a number.
        top = int(np.nanargmax(rise))
        return Barrier(height=float(max(rise[top], 0.0)), at=float(t[top]), num_missing=missing)


@dataclass(frozen=True, kw_only=True)
class LossSurface:
    """The loss at the points of a plane.

    Attributes:
        axes: The two directions.
        losses: (m of the first axis, m of the second) in nats, as computed: infinite and NaN values
            stay.
        computed: Which of them were computed.
        local: The quadratic that the derivatives in the middle predict; None where they were not
            taken.
        cosine: Cosine of the angle between the directions; a picture with right angles is true to
            shape only where it is near 0.

    Raises:
        ValueError: If the shapes do not fit.
    """

    axes: tuple[Axis, Axis]
    losses: Float[np.ndarray, "m1 m2"]
    computed: Bool[np.ndarray, "m1 m2"]
    local: LocalModel | None = None
    cosine: float = math.nan

    def __post_init__(self) -> None:
        _check_shapes(self.axes, self.losses, self.computed)

    @property
    def predicted(self) -> Float[np.ndarray, "m1 m2"] | None:
        """Evaluate the local quadratic at the points of the surface."""
        if self.local is None:
            return None
        return self.local(
            np.stack(np.meshgrid(*(axis.coordinates for axis in self.axes), indexing="ij"), axis=-1)
        )

    @property
    def num_undefined(self) -> int:
        """Count computed points whose loss is infinite or not a number."""
        return int(np.count_nonzero(self.computed & ~np.isfinite(self.losses)))


def _check_shapes(axes: Sequence[Axis], losses: np.ndarray, computed: np.ndarray) -> None:
    expected = tuple(len(axis.coordinates) for axis in axes)
    if losses.shape != expected or computed.shape != expected:
        raise ValueError(
            f"losses and computed must have the shape {expected}, got {losses.shape} and "
            f"{computed.shape}."
        )
    if np.isfinite(losses[~computed]).any():
        raise ValueError("a loss stands where nothing was computed.")


def centred(num_points: int, span: float) -> Float[np.ndarray, " m"]:
    """Return evenly spaced coordinates from -span to span.

    0 is exactly in the middle.

    Raises:
        ValueError: If the number of points is even or below 5, or the span is not positive and
            finite.
    """
    if num_points < MINIMUM_POINTS or num_points % 2 == 0:
        raise ValueError(
            f"points must be odd, so that one lies in the middle, and at least {MINIMUM_POINTS}, "
            f"got {num_points}."
        )
    if not (math.isfinite(span) and span > 0):
        raise ValueError(f"span must be finite and > 0, got {span}.")
    half = num_points // 2
    # Whole numbers first, so that 0 is exact and the two sides are mirror images to the bit.
    return span * (np.arange(num_points) - half) / half


def losses_along(
    objective: Objective, params: Params, batches: Sequence[Batch], vectors: Float[Tensor, "n d"]
) -> LossAt:
    """Return the mean loss over batches as a function of d coordinates.

    The function evaluates at params + vectors @ coordinates, L2 term included.

    The parameters are copied. The loss is evaluated as the Hessian's is, attention in its plain
    form and gradients enabled, so one evaluation takes the memory of a forward pass with its graph.

    Raises:
        ValueError: If there is no batch, or the vectors have another length than the parameters.
    """
    _check_batches(batches)
    base = flatten(params).detach().clone()
    if vectors.ndim != 2 or len(vectors) != len(base):
        raise ValueError(
            f"directions of {len(base)} parameters have the shape ({len(base)}, d), got "
            f"{tuple(vectors.shape)}."
        )
    like = {name: tensor.detach() for name, tensor in params.items()}

    def loss_at(*coordinates: float) -> float:
        with torch.no_grad():
            steps = torch.tensor(coordinates, dtype=base.dtype, device=base.device)
            # From the centre every time, so that rounding does not add up from point to point.
            moved = base + vectors @ steps
        return _mean_loss(objective, unflatten(moved, like), batches)

    return loss_at


def line_losses(
    make: Callable[[nn.Module], tuple[Objective, Params]],
    module: nn.Module,
    end: dict[str, Tensor],
    batches: Sequence[Batch],
) -> LossAt:
    """Return the mean loss on a line between two sets of weights.

    It is a function of t, evaluated at (1 - t) start + t end, and a mean over batches. The start is
    what `module` holds now.

    Everything that is a real number moves: the parameters that are not under study too, and buffers
    such as the statistics of batch norms, so that the ends are the two models themselves. Counters
    and other whole numbers stay those of the start.

    Args:
        make: The objective of a model, and its parameters under study, which its L2 term is taken
            of.
        module: Copied; it is not modified.
        end: A state dict.

    Raises:
        ObjectiveError: If the state does not fit the module.
        ValueError: If there is no batch.
    """
    _check_batches(batches)
    _check_same_shapes(module.state_dict(), end)
    moving = copy.deepcopy(module)
    objective, params = make(moving)
    start = {name: tensor.detach().clone() for name, tensor in moving.state_dict().items()}

    def loss_at(t: float) -> float:
        with torch.no_grad():
            for name, tensor in moving.state_dict().items():
                if tensor.is_floating_point():
                    # Exact at both ends, which start + t (end - start) is not.
                    tensor.copy_(
                        (1 - t) * start[name].double()
                        + t * end[name].to(tensor.device, torch.float64)
                    )
        return _mean_loss(objective, params, batches)

    return loss_at


def _check_batches(batches: Sequence[Batch]) -> None:
    if not batches:
        raise ValueError("A mean loss needs at least one batch, got none.")


def _check_same_shapes(start: dict[str, Tensor], end: dict[str, Tensor]) -> None:
    for name in [*start, *(name for name in end if name not in start)]:
        here, there = (
            tuple(state[name].shape) if name in state else "no such tensor"
            for state in (start, end)
        )
        if here != there:
            raise ObjectiveError(
                f"{name}: {here} at one end of the line, {there} at the other. A line joins two "
                "sets of weights of one architecture; name two checkpoints of the same model."
            )


def _mean_loss(objective: Objective, params: Params, batches: Sequence[Batch]) -> float:
    """Average the loss in float64, whatever the dtype.

    A loss that is not finite is passed on.
    """
    total = sum(float(value_of(objective, params, batch)) for batch in batches) / len(batches)
    if objective.weight_decay:
        total += (
            0.5
            * objective.weight_decay
            * float(squared_norm({name: t.double() for name, t in params.items()}))
        )
    return float(total)


def from_the_middle(computed: np.ndarray) -> np.ndarray:
    """Return the indices of the missing points, the middle first.

    There is a row for each point.
    """
    missing = np.argwhere(~computed)
    # The larger of the distances along the axes: rings of squares around the middle.
    distance = np.abs(missing - np.array(computed.shape) // 2).max(axis=1)
    return missing[np.argsort(distance, kind="stable")]


def fill(
    axes: Sequence[Axis], loss_at: LossAt, losses: np.ndarray, computed: np.ndarray
) -> Iterator[tuple[int, ...]]:
    """Compute the missing points in place, from the middle outwards.

    Yields the index of each point after it is computed.

    The middle first, so that what is there after an interruption is a smaller picture and not a
    strip of a large one.
    """
    for row in from_the_middle(computed).tolist():
        index = tuple(row)
        losses[index] = loss_at(*(float(axis.coordinates[i]) for axis, i in zip(axes, index)))
        computed[index] = True
        yield index
