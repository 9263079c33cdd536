"""Tests of an operator that is cut over processes, against differences.

They are those of landscape.curvature.audits.spot_check, made of the first product.

All numbers that decide are sums over the processes, so that all come to the same verdict.
Shapes: n = total size of the parameters, l = entries of a vector in this process, k = number of
vectors.
"""

import math
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from landscape.curvature.audits import ZERO_TO_ROUNDING
from landscape.curvature.audits.differences import (
    DISPLACEMENT,
    SMALLEST,
    Params,
    Point,
    Precision,
    as_differentiated,
    gradient_of,
    natural_size,
)
from landscape.curvature.audits.judgement import Outcome, judge_derivatives
from landscape.curvature.audits.promotion import widened, widening
from landscape.curvature.audits.spot_check import (
    OWN_PRECISION,
    WIDE_PRECISION,
    error_along,
    random_combination,
)
from landscape.curvature.audits.spot_check_result import SpotCheck
from landscape.curvature.hvp.evaluation import Problem
from landscape.curvature.objective import Objective
from landscape.errors import ObjectiveError
from landscape.linalg.operator import seeded
from landscape.linalg.vectors import norm
from landscape.sharded.layout import CutVectors
from landscape.sharded.lent import CutWeights
from landscape.sharded.objective import part_of_objective
from landscape.sharded.processes import Processes
from landscape.sharded.weights import notes_of_weights

# Directions in which derivatives are tested a little off the parameters.
_NUM_DIRECTIONS = 2


class Checked(Protocol):
    """The attributes of a ShardedHessianOperator that its check reads."""

    objective: Objective
    problem: Problem
    weights: CutWeights
    counts: tuple[int, ...]
    processes: Processes
    params: Params
    gradients: Params
    dtype: torch.dtype
    n: int

    @property
    def space(self) -> CutVectors: ...

    def unflatten(self, vector: Tensor) -> Params: ...


class CutPoint(Point):
    """Loss and gradient near the parameters of an operator that is cut.

    Vectors are this process's pieces.
    """

    def __init__(
        self,
        operator: Checked,
        *,
        precision: Precision,
        dtype: torch.dtype,
        params: Params | None = None,
    ) -> None:
        self.operator = operator
        objective, batch = operator.problem.objective, operator.problem.batch
        params = operator.params if params is None else params
        if dtype != operator.dtype:
            objective, batch, params = _in_float64(operator), widened(batch), widened(params)
        super().__init__(objective, params, batch, digits=dtype, precision=precision)

    def _measured_scales(self) -> dict[str, float]:
        sizes = {name: math.prod(self.operator.weights.cuts[name].shape) for name in self.params}
        lengths = self.lengths(self.params)
        return {
            name: max(lengths[name] / max(size, 1) ** 0.5, SMALLEST) for name, size in sizes.items()
        }

    def lengths(self, vector: Params) -> dict[str, float]:
        squares = np.array([norm(piece) ** 2 for piece in vector.values()])
        return dict(zip(vector, np.sqrt(self.operator.processes.total(squares)).tolist()))

    def inner(self, u: Params, v: Params) -> Tensor:
        parts = [float((u[name].double() * v[name].double()).sum()) for name in u]
        return torch.from_numpy(self.operator.processes.total(np.array(parts)))

    def loss(self, direction: Params, step: float) -> float:
        with notes_of_weights():
            part = self.evaluate(self.moved(direction, step)).item()
        self.operator.weights.release()
        return float(self.operator.processes.total(np.array([part]))[0])

    def loss_and_gradient(
        self, direction: Params | None = None, step: float = 0.0
    ) -> tuple[float, Params]:
        self.num_gradients += 1
        leaves = self.moved(direction, step)
        with as_differentiated(), notes_of_weights():
            part = self.evaluate(leaves)
            slope = self.scaled(gradient_of(part, leaves))
        self.operator.weights.release()
        return float(self.operator.processes.total(np.array([part.item()]))[0]), slope

    def random_direction(self, generator: torch.Generator) -> Params:
        """Draw independent normal entries in scaled coordinates.

        They are the same for any number of processes.
        """
        vector = self.operator.space.random(generator)
        return {
            name: piece.to(self.params[name])
            for name, piece in self.operator.unflatten(vector).items()
        }


def _in_float64(operator: Checked) -> Objective:
    """Build the same part of the loss in float64.

    Tensors that the loss captured are converted too.
    """
    part = part_of_objective(operator.objective, operator.weights, operator.counts)
    return replace(part, forward=widening(part.forward), loss=widening(part.loss))


def spot_checked(
    operator: Checked, rows: Float[Tensor, "k l"], products: Float[Tensor, "k l"]
) -> SpotCheck:
    """Check products without the L2 term; collective.

    Costs two gradients and two losses where it passes at once.

    Raises:
        ObjectiveError: If they are no second derivatives of the loss, or the gradient is not its
            first.
    """
    point = CutPoint(operator, precision=OWN_PRECISION[operator.dtype], dtype=operator.dtype)
    vector, product = random_combination(rows, products)
    # Scaled coordinates x / scale: there a direction is v / scale, and a derivative is scale * H v.
    direction = {
        name: piece / point.scales[name] for name, piece in operator.unflatten(vector).items()
    }
    size = _length(point, direction) / operator.n**0.5
    direction = {name: piece / size for name, piece in direction.items()}
    triple = (
        direction,
        point.scaled(operator.unflatten(product / size)),
        point.scaled(operator.gradients),
    )
    outcomes = _judged(point, *triple)
    if outcomes is not None:
        return SpotCheck("passed", *outcomes)
    wide = _wide_point(operator)
    if wide is not None and operator.dtype != torch.float64:
        outcomes = _judged(wide, *widened(triple))
        if outcomes is not None:
            return SpotCheck("passed", *outcomes, reason="in float64")
    return _off_the_parameters(operator, wide is not None)


def _wide_point(operator: Checked) -> CutPoint | None:
    """Build the point in float64, if the loss can be evaluated there.

    None, in all processes, if something in the loss of any of them cannot be converted.

    Raises:
        LandscapeError: If memory runs out in a process, or one is lost.
    """

    def evaluated() -> CutPoint:
        point = CutPoint(operator, precision=WIDE_PRECISION, dtype=torch.float64)
        point.loss({name: torch.zeros_like(piece) for name, piece in point.params.items()}, 0.0)
        return point

    # Any exception counts: what a kernel raises for an unknown type is not known.
    point = operator.processes.try_measure(evaluated)
    operator.weights.release()
    return point


def _length(point: CutPoint, vector: Params) -> float:
    return math.sqrt(sum(length**2 for length in point.lengths(vector).values()))


def _judged(
    point: CutPoint, direction: Params, product: Params, slope: Params
) -> tuple[float, float | None] | None:
    """Compute the errors of product and gradient.

    None where differences disagree. See `landscape.curvature.audits.spot_check`.
    """
    gradient, second = judge_derivatives(point, direction, slope, product)
    assert second is not None
    if not gradient.verdict == second.verdict == "passed":
        return None
    along = error_along(point, slope, _length(point, slope), point.operator.n)
    if along is None:
        return second.error, None
    return (
        (second.error, max(along, gradient.error)) if along <= point.precision.tolerance else None
    )


@dataclass(frozen=True)
class _Nearby:
    """A point a little off the parameters, with products there.

    A loss has no kink there, and no gain is zero.
    """

    point: CutPoint
    directions: list[Params]
    products: list[Params]
    slope: Params

    @classmethod
    def of(cls, operator: Checked, is_wide: bool) -> "_Nearby":
        dtype = torch.float64 if is_wide else operator.dtype
        here = CutPoint(operator, precision=OWN_PRECISION[dtype], dtype=dtype)
        moves = here.random_direction(seeded(0))
        pieces = {
            name: piece + DISPLACEMENT * here.scales[name] * moves[name]
            for name, piece in here.params.items()
        }
        point = CutPoint(operator, precision=OWN_PRECISION[dtype], dtype=dtype, params=pieces)
        generator = seeded(1)
        directions = [point.random_direction(generator) for _ in range(_NUM_DIRECTIONS)]
        return cls(point, directions, *_products_at(operator, point, directions))

    def outcomes(self, size: float = 0.0) -> tuple[list[Outcome], list[Outcome]]:
        """Test the gradient and the products, by direction.

        `size` is that of `judge_derivatives`.
        """
        gradients, products = [], []
        for direction, product in zip(self.directions, self.products):
            first, second = judge_derivatives(self.point, direction, self.slope, product, size=size)
            assert second is not None
            gradients.append(first)
            products.append(second)
        return gradients, products

    def asymmetry(self) -> float:
        """Measure the asymmetry of the products.

        As `landscape.curvature.audits.differences.asymmetry` does.
        """
        forms = torch.tensor(
            [
                [float(self.point.inner(u, product).sum()) for product in self.products]
                for u in self.directions
            ]
        )
        # Only the entries off the diagonal compare <u, H v> with <v, H u>.
        forms -= torch.diag(forms.diagonal())
        size = float(forms.norm())
        return float((forms - forms.T).norm()) / size if size > 0 else 0.0

    def allowing_for_cancellation(self) -> SpotCheck:
        """Judge again, allowing for rounding of terms that cancel in the loss.

        Raises:
            ObjectiveError: If a test failed.
        """
        gradients, products = self.outcomes(natural_size(self.point, self.directions))
        outcomes = [*gradients, *products]
        if all(outcome.verdict == "passed" for outcome in outcomes):
            return SpotCheck("undecided", reason=ZERO_TO_ROUNDING)
        failed = [outcome for outcome in outcomes if outcome.verdict == "failed"]
        if not failed:
            return SpotCheck("undecided", reason="differences do not settle next to the parameters")
        worst = max(failed, key=lambda outcome: outcome.error)
        raise _wrong(f"{worst.worst}: " if worst.worst else "", f"off by {worst.error:.1e}")


def _wrong(where: str, how: str) -> ObjectiveError:
    return ObjectiveError(
        f"{where}derivatives failed when the first product was held against differences ({how}): "
        "they are not those of the loss, and neither would eigenvalues be. See "
        "landscape.audit(model, loss, batch), in one process, for the module that is to blame; "
        "check=False measures anyway."
    )


def _off_the_parameters(operator: Checked, is_wide: bool) -> SpotCheck:
    """Judge a little off the parameters.

    At the parameters themselves a loss may have a kink, and gains that are zero hide what is behind
    them.
    """
    nearby = _Nearby.of(operator, is_wide)
    outcomes = [outcome for outcomes in nearby.outcomes() for outcome in outcomes]
    if all(outcome.verdict == "passed" for outcome in outcomes):
        worst = max(outcome.error for outcome in outcomes)
        return SpotCheck(
            "passed",
            reason=(
                f"a little off the parameters (worst error {worst:.1e}): at them differences do "
                "not settle"
            ),
        )
    return nearby.allowing_for_cancellation()


def audited(operator: Checked) -> SpotCheck:
    """Audit an operator by the tests of `landscape.audit`; collective.

    `landscape.audit` makes these tests of a whole loss.

    Gradient and products are compared with differences along random directions, a little off the
    parameters and in float64 where the model follows, and products against symmetry. That the loss
    repeats, and that its graph can be differentiated twice, was tested when the operator was made.
    The faulty module is not searched for.

    Returns:
        The verdict, "passed" or "undecided", with the largest errors; the reason says in which
        type.

    Raises:
        ObjectiveError: If they are no derivatives of the loss.
    """
    with operator.processes.together():
        nearby = _Nearby.of(operator, _wide_point(operator) is not None)
        gradients, products = nearby.outcomes()
        if any(outcome.verdict != "passed" for outcome in (*gradients, *products)):
            return nearby.allowing_for_cancellation()
        if (asymmetry := nearby.asymmetry()) > nearby.point.precision.tolerance:
            raise _wrong("", f"<u, Hv> and <v, Hu> differ by {asymmetry:.1e}")
        product, gradient = (
            max(outcome.error for outcome in outcomes) for outcomes in (products, gradients)
        )
        return SpotCheck(
            "passed",
            max(product, asymmetry),
            gradient,
            str(nearby.point.dtype).removeprefix("torch."),
        )


def _products_at(
    operator: Checked, point: CutPoint, directions: list[Params]
) -> tuple[list[Params], Params]:
    """Compute products with the directions at the point, and the gradient.

    All are in scaled coordinates.
    """
    leaves = point.leaves()
    with as_differentiated(), notes_of_weights():
        gradients = torch.autograd.grad(
            point.evaluate(leaves), list(leaves.values()), create_graph=True, allow_unused=True
        )
    slope = {
        name: torch.zeros_like(leaf) if gradient is None else gradient.detach()
        for (name, leaf), gradient in zip(leaves.items(), gradients)
    }
    attached = {name: g for name, g in zip(leaves, gradients) if g is not None and g.requires_grad}
    products = []
    for direction in directions:
        moved = point.scaled(direction)
        with as_differentiated():
            pieces = torch.autograd.grad(
                list(attached.values()),
                list(leaves.values()),
                [moved[name] for name in attached],
                retain_graph=True,
                materialize_grads=True,
            )
        products.append(point.scaled(dict(zip(leaves, pieces))))
    operator.weights.release()
    return products, point.scaled(slope)
