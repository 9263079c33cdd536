"""Check of an operator's first product against differences.

Is it the second derivative of the loss, and the gradient the first?

The graph of a loss shows backward passes that cannot be differentiated again. A pass that can be,
and is wrong, shows only in differences of gradients (torch's `scan`). A gradient that is wrong
itself shows only in differences of the loss (straight-through rounding). Two gradients next to the
parameters, along the vector that was multiplied, test both. They are computed in float64 where
float32 has too few digits, as for networks with kinks. Where they disagree, the audit decides. It
works a little off the parameters, because a loss may have a kink exactly at them.
Shapes: n = total size of the parameters, k = number of vectors.
"""

import weakref
from collections.abc import Callable, Hashable, Sequence, Sized
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from landscape.curvature.audits import audit_at
from landscape.curvature.audits.differences import PRECISION, Params, Point
from landscape.curvature.audits.judgement import judge_derivatives
from landscape.curvature.audits.promotion import promoted, widened
from landscape.curvature.audits.spot_check_result import EARLIER, SpotCheck
from landscape.curvature.guards.fingerprint import structure_of
from landscape.curvature.hvp.evaluation import Problem
from landscape.curvature.hvp.row_chunks import RowChunks
from landscape.curvature.objective import flatten, unflatten
from landscape.errors import ObjectiveError
from landscape.linalg.operator import seeded
from landscape.linalg.vectors import norm

# Stricter in float32 than the audit, as what is doubtful goes on in float64: smooth networks reach
# 3e-3, and ReLUs nothing.
OWN_PRECISION = {
    torch.float64: PRECISION[torch.float64],
    torch.float32: replace(PRECISION[torch.float32], steps=(1e-2,), tolerance=2e-2),
}
# Numbers of float32 against differences in float64, whose steps are so small that few units come by
# a kink.
WIDE_PRECISION = replace(PRECISION[torch.float64], steps=(1e-7, 1e-9, 1e-5), tolerance=2e-2)
# Steps of the difference of the loss along the gradient, the second for where the first is lost in
# rounding; and units of that rounding.
_SMALL_STEPS = {torch.float32: (1e-5, 1e-4), torch.float64: (1e-7,)}
_ROUNDINGS = 4
# Checks that are remembered for a model; a training loop makes one entry.
_MAX_REMEMBERED = 64


@dataclass(frozen=True, eq=False)
class FirstProduct:
    """A product with the Hessian of a problem, without the L2 term.

    Attributes:
        gradients: Gradients by parameter, None where the loss does not depend on one; need no
            graph. None to have them made anew.
        rows: Vectors (k, n), or their entries in a part of all coordinates, outside of which they
            are zero.
        products: Their products, in the same coordinates.
        strategy: Name of the strategy that computed them, and for "rows" the size of its chunks.
        operations: Hash of the graph of the loss, or 0; see `Evaluated`.
        extended: Makes whole vectors of those of that part.
    """

    problem: Problem
    gradients: Sequence[Tensor | None] | None
    rows: Float[Tensor, "k r"]
    products: Float[Tensor, "k r"]
    strategy: tuple[str, int | None]
    operations: int = 0
    extended: Callable[[Float[Tensor, "k r"]], Float[Tensor, "k n"]] = lambda rows: rows


def is_general(rows: Float[Tensor, "k n"], support: Sized | None) -> bool:
    """Tell whether random combinations of the vectors test the whole support.

    They say something of all that the loss depends on, unless the vectors are sparse: unit vectors
    do not.
    """
    # Dense vectors touch all of the support, and a unit vector one entry; half lies between.
    size = rows.shape[1] if support is None else len(support)
    return 2 * int(torch.count_nonzero((rows != 0).any(0))) >= size


def spot_checked(first: FirstProduct) -> SpotCheck:
    """Check a product, and remember the result for products like it.

    Products are alike if model, weights, loss, structure of the batch and strategy are the same.

    Costs two gradients and two losses where the product passes at once, and nothing where a product
    like it was checked before. Faults that only other rows show, as behind a threshold, are not
    looked for again.

    Raises:
        ObjectiveError: If it is not the second derivative of the loss; names the module where the
            audit finds it.
    """
    known, key = _remembered(first.problem), _key(first.problem, first.strategy, first.operations)
    if key not in known:
        with first.problem.differentiating():
            made = _compared(first) or audited(first.problem)
        if len(known) >= _MAX_REMEMBERED:
            known.clear()
        known[key] = replace(made, reason=f"{made.reason}{made.reason and ', '}{EARLIER}")
        return made
    return known[key]


def checked_before(
    problem: Problem, strategy: tuple[str, int | None], operations: int
) -> SpotCheck | None:
    """Return what `spot_checked` said of such a product; None if unknown.

    The arguments are those of `FirstProduct`.
    """
    return _remembered(problem).get(_key(problem, strategy, operations))


def _compared(first: FirstProduct) -> SpotCheck | None:
    """Compare with differences at the parameters themselves.

    None where they do not agree, for any reason.
    """
    problem = first.problem
    point = _point(first)
    pair = _direction_and_product(first, point)
    slope = _slope(point, first)
    outcomes = _judged(point, *pair, slope)
    if outcomes is not None or problem.like.dtype == torch.float64:
        return None if outcomes is None else SpotCheck("passed", *outcomes)
    wide = promoted(problem.objective, point.params, problem.batch, precision=WIDE_PRECISION)
    if wide is not None:
        outcomes = _judged(wide, *widened((*pair, slope)))
    return None if outcomes is None else SpotCheck("passed", *outcomes, reason="in float64")


def _judged(
    point: Point, direction: Params, product: Params, slope: Params
) -> tuple[float, float | None] | None:
    """Return the errors of product and gradient; None where differences disagree.

    The error of the gradient is None where rounding hides it.
    """
    gradient, second = judge_derivatives(point, direction, slope, product)
    assert second is not None
    if not gradient.verdict == second.verdict == "passed":
        return None
    along = _error_along_the_gradient(point, slope)
    if along is None:
        return second.error, None
    return (
        (second.error, max(along, gradient.error)) if along <= point.precision.tolerance else None
    )


def _error_along_the_gradient(point: Point, slope: Params) -> float | None:
    """Compare the gradient's length with a difference of the loss along it.

    Returns the relative error; None where rounding hides too much.

    Along a random vector the parts of a gradient cancel, and with them a factor by which all of it
    is off. The step is so small that stairs show, which rounding makes of a loss.
    """
    flat = flatten(slope)
    return error_along(point, slope, norm(flat), flat.numel())


def error_along(point: Point, slope: Params, length: float, size: int) -> float | None:
    """Compare as `_error_along_the_gradient`, for a given length and size.

    The length is that of the gradient, the size its number of entries.
    """
    if length == 0:
        return None
    # `direction` has a mean square of 1, so that a step moves the parameters by that fraction of
    # their size. The slope along scale g is scale g.g = scale length^2.
    scale = size**0.5 / length
    direction = {name: piece * scale for name, piece in slope.items()}
    expected = length * length * scale
    for step in _SMALL_STEPS[point.digits]:
        ahead, behind = point.loss(direction, step), point.loss(direction, -step)
        # Each loss is off by some units of its rounding, and the difference is divided by 2 step. A
        # step at which this may exceed the tolerance says nothing.
        rounding = _ROUNDINGS * torch.finfo(point.digits).eps * abs(ahead) / step
        if rounding <= point.precision.tolerance * expected:
            return abs((ahead - behind) / (2 * step) - expected) / expected
    return None


def _direction_and_product(first: FirstProduct, point: Point) -> tuple[Params, Params]:
    """Combine the multiplied vectors into a direction, with its product.

    Both are in scaled coordinates.
    """
    leaves = first.problem.leaves
    # Whole vectors are made here, so that none is held while the loss is evaluated.
    vector, product = (
        first.extended(row[None])[0] for row in random_combination(first.rows, first.products)
    )
    # x = S y: a vector is divided by the scales, and a product, as a derivative, is multiplied by
    # them: S H S y = S (H x). Both are then divided by the same size.
    direction = {
        name: piece / point.scales[name] for name, piece in unflatten(vector, leaves).items()
    }
    # A step then moves the parameters by that fraction of their size, in the mean square.
    size = norm(flatten(direction)) / len(vector) ** 0.5
    for piece in direction.values():
        piece.div_(size)
    return direction, point.scaled(unflatten(product / size, leaves))


def random_combination(
    rows: Float[Tensor, "k n"], products: Float[Tensor, "k n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Combine the vectors at random, and their products likewise.

    The result says something of every vector. A single vector is returned as it is.
    """
    if len(rows) == 1:
        return rows[0], products[0]
    # Products are linear, so the combination of the products must be the product of the
    # combination. Every vector has a random weight, so an error in any of them shows.
    mixed = torch.randn(len(rows), generator=seeded(0), dtype=torch.float64).to(rows)
    return mixed @ rows, mixed @ products


def _slope(point: Point, first: FirstProduct) -> Params:
    """Return the gradient at the point, in scaled coordinates."""
    if first.gradients is None:
        return point.loss_and_gradient()[1]
    return point.scaled(_by_name(first.problem.leaves, first.gradients))


def _by_name(leaves: Params, gradients: Sequence[Tensor | None]) -> Params:
    """Return detached gradients by name.

    They are zero where the loss does not depend on a parameter.
    """
    pairs = zip(leaves.items(), gradients)
    return {name: torch.zeros_like(leaf) if g is None else g.detach() for (name, leaf), g in pairs}


def audited(problem: Problem) -> SpotCheck:
    """Audit the problem and return the result.

    Raises:
        ObjectiveError: If it fails.
    """
    report = audit_at(replace(problem.objective, weight_decay=0.0), problem.leaves, problem.batch)
    if report.passed:
        worst = "" if report.worst_error is None else f" (worst error {report.worst_error:.1e})"
        # No semicolon: it parts what several operators say.
        return SpotCheck(
            "passed",
            reason=(
                f"by the audit a little off the parameters{worst}: at them differences do not "
                "settle"
            ),
        )
    if report.is_zero_to_rounding:
        return SpotCheck(
            "undecided", reason=next(row.reason for row in report.rows if row.verdict != "passed")
        )
    failed = [row for row in report.rows if row.verdict == "failed"]
    if not failed:
        return SpotCheck("undecided", reason="differences do not settle next to the parameters")
    # The innermost module first.
    culprit = next((row for row in failed if row.name == report.faulty_modules[0]), failed[0])
    error = "" if culprit.error is None else f" (off by {culprit.error:.1e})"
    raise ObjectiveError(
        f"{culprit.name}: {culprit.test} failed when the first product was held against "
        f"differences{error}: {culprit.reason}. Eigenvalues would not be those of the loss. See "
        "landscape.audit(model, loss, batch) for all of it; check=False measures anyway."
    )


class _PointInChunks(Point):
    """A point whose gradients are computed chunk by chunk.

    It is for a batch that does not fit in memory at once.
    """

    def __init__(self, problem: Problem, rows: int) -> None:
        dtype = problem.like.dtype
        super().__init__(
            problem.objective,
            problem.leaves,
            problem.batch,
            digits=dtype,
            precision=OWN_PRECISION[dtype],
        )
        self._problem, self._rows = problem, rows

    def loss(self, direction: Params, step: float) -> float:
        return self.loss_and_gradient(direction, step)[0]

    def loss_and_gradient(
        self, direction: Params | None = None, step: float = 0.0
    ) -> tuple[float, Params]:
        self.num_gradients += 1
        problem = replace(self._problem, leaves=self.moved(direction, step))
        evaluated = RowChunks(problem, self._rows).pop_evaluated()
        return evaluated.loss, self.scaled(_by_name(problem.leaves, evaluated.gradients))


def _point(first: FirstProduct) -> Point:
    problem, (strategy, rows) = first.problem, first.strategy
    if strategy == "rows":
        assert rows is not None
        return _PointInChunks(problem, rows)
    # One that computes in fewer digits than its parameters have is refused when an operator is
    # built.
    dtype = problem.like.dtype
    return Point(
        problem.objective,
        problem.leaves,
        problem.batch,
        digits=dtype,
        precision=OWN_PRECISION[dtype],
    )


# --- what was checked before ----------------------------------------------------------------------

# By identity, since equal models need not do the same.
_by_model: "dict[int, tuple[weakref.ref[nn.Module], dict[Hashable, SpotCheck]]]" = {}


def forget(module: nn.Module) -> None:
    """Drop a model's checks, so that its next operator is checked."""
    _by_model.pop(id(module), None)


def _remembered(problem: Problem) -> dict[Hashable, SpotCheck]:
    """Return the checks of the problem's model.

    Those of an objective without a model are not remembered.
    """
    module = problem.objective.module
    if module is None:
        return {}
    key = id(module)
    there = _by_model.get(key)
    if there is None or there[0]() is not module:
        there = _by_model[key] = (weakref.ref(module, lambda _: _by_model.pop(key, None)), {})
    return there[1]


def _key(problem: Problem, strategy: tuple[str, int | None], operations: int) -> Hashable:
    return (
        problem.code,
        operations,
        strategy,
        problem.allow_tf32,
        structure_of(problem.batch),
        problem.like.dtype,
        str(problem.like.device),
        tuple(problem.leaves),
        problem.contents,
    )
