"""The quadratic model of a loss around a point, and an independent check.

The check measures the same curvature by differences of the loss alone.

The two share no derivative: one comes from products with the Hessian, the other from values. That
they agree is the check. Imports only torch, numpy and this room.
Shapes: n = total size of the parameters, d = directions (1 or 2).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from landscape.curvature.objective import Batch, Objective, Params
from landscape.curvature.operators.batches import HessianOfBatches
from landscape.curvature.operators.hessian import gradient

# Rounding of a loss, in units of its last place. Second differences of the losses of a small CLIP
# model at twenty neighbouring points showed at most 1.3, in either precision.
_ROUNDING_UNITS = 4
# Halvings of the first step: from a tenth of a nat of curvature to 1e-6 of it.
_NUM_STEPS = 9


@dataclass(frozen=True, kw_only=True)
class CurvatureFit:
    """A second derivative along a line, from values of the loss alone.

    It is in nats per squared unit of the direction.

    Attributes:
        error: Estimate of truncation and rounding errors: the larger of the last two changes under
            extrapolation, plus the rounding of the losses as it enters `value`. An estimate, not a
            bound.
        step: The largest step that `value` rests on.
    """

    value: float
    error: float
    step: float


def fit_curvature(
    loss_at: Callable[[float], float],
    *,
    radius: float,
    dtype: torch.dtype,
    num_steps: int = _NUM_STEPS,
) -> CurvatureFit:
    """Estimate the second derivative of `loss_at` at 0 from values.

    Takes 2 num_steps + 1 values, at 0 and +-radius / 2^j.

    Args:
        radius: Largest step. It may be far too large: what does not help is left out.
        dtype: Type in which the losses are computed; it decides how much of a difference may be
            rounding.

    Raises:
        ValueError: If `radius` is not positive and finite.
    """
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"radius must be finite and > 0, got {radius}.")
    # Halving is exact in binary, so the ratio of two steps is exactly a power of two, as the
    # weights of the extrapolation take it to be.
    steps = radius * 0.5 ** np.arange(num_steps)
    pairs = np.array([(loss_at(-step), loss_at(step)) for step in steps])
    return extrapolate(steps, pairs, loss_at(0.0), dtype=dtype)


def extrapolate(
    steps: Float[np.ndarray, " s"],
    losses: Float[np.ndarray, "s 2"],
    centre: float,
    *,
    dtype: torch.dtype,
) -> CurvatureFit:
    """Estimate a second derivative by Richardson extrapolation.

    It extrapolates second differences at steps that halve, and takes the entry of least error.

    Where the loss is far from a quadratic, coarse steps can agree with each other by accident. So
    an entry must also agree, to within their rounding, with what all finer steps say; what is left
    of that disagreement is part of its error.

    Args:
        steps: Descending, each half the one before.
        losses: At minus and plus each step. Steps down to the last one with a loss that is not
            finite are left out.
        centre: The loss in the middle.

    Returns:
        NaN with an infinite error where fewer than two steps are left.

    Source: Ridders, Accurate computation of F'(x) and F'(x) F''(x), Advances in Engineering
    Software 4 (1982); the weights of the rounding are those of the extrapolation itself.
    """
    # Keep only steps finer than every step at which a loss is not finite.
    bad = np.flatnonzero(~np.isfinite(losses).all(axis=1))
    first = (int(bad[-1]) + 1 if len(bad) else 0) if math.isfinite(centre) else len(steps)
    table = _extrapolation_table(
        steps[first:], losses[first:], centre, unit=_ROUNDING_UNITS * torch.finfo(dtype).eps
    )
    best = CurvatureFit(value=math.nan, error=math.inf, step=math.nan)
    for row, entries in enumerate(table):
        finer = [later[1] for later in table[row + 1 :]]
        for order in range(1, len(entries)):
            value, noise = entries[order]
            # An entry is made of two of one order less. Where it agrees with both, extrapolation
            # has converged; entries of order 0 have nothing to agree with.
            change = max(
                abs(value - entries[order - 1][0]), abs(value - table[row - 1][order - 1][0])
            )
            # Finer steps have less truncation, so what they say beyond their rounding is an error
            # of this entry.
            doubt = max(
                (abs(value - other) - other_noise for other, other_noise in finer), default=0.0
            )
            if (error := change + noise + max(doubt, 0.0)) < best.error:
                best = CurvatureFit(
                    value=value, error=error, step=float(steps[first + row - order])
                )
    return best


def _extrapolation_table(
    steps: Float[np.ndarray, " s"], losses: Float[np.ndarray, "s 2"], centre: float, *, unit: float
) -> list[list[tuple[float, float]]]:
    """Build the table of repeated extrapolations.

    Row i, entry j holds the value that j extrapolations make of the steps i - j to i, and the
    rounding in it.
    """
    table: list[list[tuple[float, float]]] = []
    for step, (below, after) in zip(steps.tolist(), losses.tolist()):
        # (f(-h) - 2 f(0) + f(h)) / h^2 = f'' + c_1 h^2 + c_2 h^4 + ..., and its rounding grows as 1
        # / h^2.
        rounding = unit * (abs(below) + 2 * abs(centre) + abs(after))
        # Each loss minus the centre first: for losses within a factor of two of each other that is
        # exact, whereas below + after would be rounded.
        entries = [(((below - centre) + (after - centre)) / step**2, rounding / step**2)]
        for order, (old, old_noise) in enumerate(table[-1] if table else (), start=1):
            # Half the step divides the term h^(2j) by 4^j, so (4^j new - old) / (4^j - 1) cancels
            # it.
            # The roundings of the two are added as if of the same sign, the worst case.
            (value, noise), weight = entries[-1], 4.0**order
            entries.append(
                ((weight * value - old) / (weight - 1), (weight * noise + old_noise) / (weight - 1))
            )
        table.append(entries)
    return table


@dataclass(frozen=True, kw_only=True)
class LocalModel:
    """The quadratic that a loss looks like near a point: loss + slopes . t + t . hessian . t / 2.

    Attributes:
        loss: Loss in the middle, in nats.
        slopes: First derivatives along the directions (d,).
        hessian: Second derivatives along the directions (d, d).
    """

    loss: float
    slopes: Float[np.ndarray, " d"]
    hessian: Float[np.ndarray, "d d"]

    def __call__(self, steps: Float[np.ndarray, "*points d"]) -> Float[np.ndarray, "*points"]:
        """Evaluate the quadratic at every row of `steps`."""
        curved = np.einsum("...i,ij,...j->...", steps, self.hessian, steps)
        return self.loss + steps @ self.slopes + 0.5 * curved


def local_model(
    objective: Objective,
    params: Params,
    batches: Sequence[Batch],
    vectors: Float[Tensor, "n d"],
    *,
    loss: float,
    eigenvalues: Float[np.ndarray, " d"] | None = None,
) -> LocalModel:
    """Build the quadratic model of a mean loss along `vectors`.

    The mean is over batches of an objective, L2 term included.

    Args:
        loss: The value in the middle.
        eigenvalues: Eigenvalues of the vectors, if these are orthonormal eigenvectors. They are
            then the curvature; without them it takes one product per direction and batch.

    Raises:
        ObjectiveError: If the loss is not finite, or has no second derivative and no eigenvalues
            are given.
    """
    slopes = torch.zeros(vectors.shape[1], dtype=torch.float64)
    for batch in batches:
        # The gradient of the mean, projected on the directions.
        slopes += _inner(vectors, gradient(objective, params, batch)[:, None])[:, 0] / len(batches)
    if eigenvalues is None:
        products = (
            HessianOfBatches(objective, params, batches, keep_graphs=len(batches) == 1) @ vectors
        )
        hessian = _inner(vectors, products).numpy()
    else:
        # V^T H V for orthonormal eigenvectors V.
        hessian = np.diag(np.asarray(eigenvalues, dtype=np.float64))
    # Symmetric to the bit: rounding makes the two triangles differ.
    return LocalModel(loss=loss, slopes=slopes.numpy(), hessian=(hessian + hessian.T) / 2)


def _inner(V: Float[Tensor, "n d"], W: Float[Tensor, "n e"]) -> Float[Tensor, "d e"]:
    return (V.double().T @ W.double()).cpu()
