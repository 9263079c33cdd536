"""Hold the first product of an operator against differences: is it the second derivative of the loss, and the gradient the first?

The graph of a loss shows backward passes that cannot be differentiated again; one that can, and is wrong, only differences of
gradients show (torch's `scan`), and a gradient that is wrong itself only differences of the loss (straight-through rounding).
Two gradients next to the parameters, along the vector that was multiplied, tell both. Where float32 has too few digits, as for
networks with kinks, two in float64. Where they disagree, the audit decides, a little off the parameters, because a loss may
have a kink exactly at them.
Shapes: n = total size of the parameters, k = number of vectors.
"""

import weakref
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from landscape.curvature.audit import audit_at
from landscape.curvature.differences import PRECISION, Params, Point, judge_derivatives
from landscape.curvature.evaluation import Problem
from landscape.curvature.fingerprint import structure_of
from landscape.curvature.objective import flatten, unflatten
from landscape.curvature.promotion import promoted, widened
from landscape.curvature.row_chunks import RowChunks
from landscape.errors import ObjectiveError
from landscape.linalg.krylov import norm
from landscape.linalg.operator import seeded

# Stricter in float32 than the audit, as what is doubtful goes on in float64: smooth networks reach 3e-3, and ReLUs nothing.
_PRECISION = {
    torch.float64: PRECISION[torch.float64],
    torch.float32: replace(PRECISION[torch.float32], steps=(1e-2,), tolerance=2e-2),
}
# Numbers of float32 against differences in float64, whose steps are so small that few units come by a kink.
_WIDE = replace(PRECISION[torch.float64], steps=(1e-7, 1e-9, 1e-5), tolerance=2e-2)
# Of the difference of the loss along the gradient, the second where the first is lost in rounding; and its units.
_SMALL_STEPS = {torch.float32: (1e-5, 1e-4), torch.float64: (1e-7,)}
_ROUNDINGS = 4
# What is remembered of one model; a training loop makes one entry.
_MOST_REMEMBERED = 64


@dataclass(frozen=True)
class SpotCheck:
    """What differences said of an operator's first product.

    Attributes:
        verdict: "passed", "undecided", or "not made".
        product_error: Of the product against a central difference of gradients, relative, the largest over the parameters.
        gradient_error: Of the gradient, along that vector and along itself, against central differences of the loss, relative.
            None where rounding hides it, as behind a large constant in the loss.
        reason: Why it is undecided or was not made, or how it passed other than at first sight.
    """

    verdict: str
    product_error: float | None = None
    gradient_error: float | None = None
    reason: str = ""

    def __str__(self) -> str:
        if self.verdict == "not made":
            return f"operator not checked: {self.reason}"
        if self.verdict == "undecided":
            return f"operator check undecided: {self.reason}"
        if self.product_error is None:
            return f"operator checked: {self.reason}"
        gradient = (
            "" if self.gradient_error is None else f" and gradient within {self.gradient_error:.1e}"
        )
        hidden = (
            ", the gradient hidden by the rounding of the loss"
            if self.gradient_error is None
            else ""
        )
        reason = self.reason and f" {self.reason}"
        return f"operator checked: product within {self.product_error:.1e}{gradient} of central differences{reason}{hidden}"


_EARLIER = "on an earlier batch"
NOT_ASKED = SpotCheck("not made", reason="check=False")


@dataclass(frozen=True, eq=False)
class FirstProduct:
    """A product with the Hessian of a problem, without the L2 term.

    Attributes:
        gradients: By parameter, None where the loss does not depend on one; need no graph. None to have them made anew.
        rows: Vectors (k, n).
        products: Their products (k, n).
        way: Name of the way in which they were made, and for "rows" the size of its chunks.
        operations: Hash of the graph of the loss, or 0; see `Evaluated`.
    """

    problem: Problem
    gradients: Sequence[Tensor | None] | None
    rows: Float[Tensor, "k n"]
    products: Float[Tensor, "k n"]
    way: tuple[str, int | None]
    operations: int = 0


def is_general(rows: Float[Tensor, "k n"], support: Int64[Tensor, " s"] | None) -> bool:
    """Whether a random combination of the vectors says something of all that the loss depends on: unit vectors do not."""
    size = rows.shape[1] if support is None else len(support)
    return 2 * int((rows != 0).any(0).sum()) >= size


def spot_checked(first: FirstProduct) -> SpotCheck:
    """Check a product, once per model, weights, loss, structure of the batch and way of products.

    Costs two gradients and two losses where it passes at once, and nothing where the same was checked before. Faults that only
    other rows show, as behind a threshold, are not looked for again.

    Raises:
        ObjectiveError: If it is not the second derivative of the loss; names the module where the audit finds it.
    """
    known, key = _remembered(first.problem), _key(first.problem, first.way, first.operations)
    if key not in known:
        with first.problem.differentiating():
            made = _compared(first) or audited(first.problem)
        if len(known) >= _MOST_REMEMBERED:
            known.clear()
        known[key] = replace(made, reason=f"{made.reason}{made.reason and ', '}{_EARLIER}")
        return made
    return known[key]


def checked_before(
    problem: Problem, way: tuple[str, int | None], operations: int
) -> SpotCheck | None:
    """What `spot_checked` said of such a product before; None where nothing is known. Arguments as for `FirstProduct`."""
    return _remembered(problem).get(_key(problem, way, operations))


def _compared(first: FirstProduct) -> SpotCheck | None:
    """The comparison at the parameters themselves; None where it does not agree, for any reason."""
    problem = first.problem
    point = _point(first)
    pair = _direction_and_product(first, point)
    slope = _slope(point, first)
    outcomes = _judged(point, *pair, slope)
    if outcomes is not None or problem.like.dtype == torch.float64:
        return None if outcomes is None else SpotCheck("passed", *outcomes)
    wide = promoted(problem.objective, point.params, problem.batch, precision=_WIDE)
    if wide is not None:
        outcomes = _judged(wide, *widened((*pair, slope)))
    return None if outcomes is None else SpotCheck("passed", *outcomes, reason="in float64")


def _judged(
    point: Point, direction: Params, product: Params, slope: Params
) -> tuple[float, float | None] | None:
    """The errors of product and gradient, that of the gradient None where rounding hides it; None where differences disagree."""
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
    """That of the gradient's length against a difference of the loss along it, relative; None where rounding hides so much.

    Along a random vector the parts of a gradient cancel, and with them a factor by which all of it is off. The step is so small
    that stairs show, which rounding makes of a loss.
    """
    flat = flatten(slope)
    length = norm(flat)
    if length == 0:
        return None
    scale = flat.numel() ** 0.5 / length
    direction = {name: piece * scale for name, piece in slope.items()}
    expected = length * length * scale
    for step in _SMALL_STEPS[point.digits]:
        ahead, behind = point.loss(direction, step), point.loss(direction, -step)
        rounding = _ROUNDINGS * torch.finfo(point.digits).eps * abs(ahead) / step
        if rounding <= point.precision.tolerance * expected:
            return abs((ahead - behind) / (2 * step) - expected) / expected
    return None


def _direction_and_product(first: FirstProduct, point: Point) -> tuple[Params, Params]:
    """A direction through the vectors that were multiplied, and its product, in scaled coordinates."""
    leaves = first.problem.leaves
    vector, product = random_combination(first.rows, first.products)
    direction = {
        name: piece / point.scales[name] for name, piece in unflatten(vector, leaves).items()
    }
    # A step then moves the parameters by that fraction of their size, in the mean square.
    size = norm(flatten(direction)) / len(vector) ** 0.5
    direction = {name: piece / size for name, piece in direction.items()}
    return direction, point.scaled(unflatten(product / size, leaves))


def random_combination(
    rows: Float[Tensor, "k n"], products: Float[Tensor, "k n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """A combination of the vectors, and that of their products: it says something of every one. A single vector is itself."""
    if len(rows) == 1:
        return rows[0], products[0]
    mixed = torch.randn(len(rows), generator=seeded(0), dtype=torch.float64).to(rows)
    return mixed @ rows, mixed @ products


def _slope(point: Point, first: FirstProduct) -> Params:
    """The gradient at the point, in scaled coordinates."""
    if first.gradients is None:
        return point.loss_and_gradient()[1]
    return point.scaled(_by_name(first.problem.leaves, first.gradients))


def _by_name(leaves: Params, gradients: Sequence[Tensor | None]) -> Params:
    """Gradients apart from their graph, zero where the loss does not depend on a parameter."""
    pairs = zip(leaves.items(), gradients)
    return {name: torch.zeros_like(leaf) if g is None else g.detach() for (name, leaf), g in pairs}


def audited(problem: Problem) -> SpotCheck:
    """What the audit says of the problem.

    Raises:
        ObjectiveError: If it fails.
    """
    report = audit_at(replace(problem.objective, weight_decay=0.0), problem.leaves, problem.batch)
    if report.passed:
        worst = "" if report.worst_error is None else f" (worst error {report.worst_error:.1e})"
        # No semicolon: it parts what several operators say.
        return SpotCheck(
            "passed",
            reason=f"by the audit a little off the parameters{worst}: at them differences do not settle",
        )
    if report.is_zero_to_rounding:
        return SpotCheck(
            "undecided", reason=next(row.reason for row in report.rows if row.verdict != "passed")
        )
    failed = [row for row in report.rows if row.verdict == "failed"]
    if not failed:
        return SpotCheck("undecided", reason="differences do not settle next to the parameters")
    # The innermost module first.
    culprit = next((row for row in failed if row.name == report.blamed[0]), failed[0])
    error = "" if culprit.error is None else f" (off by {culprit.error:.1e})"
    raise ObjectiveError(
        f"{culprit.name}: {culprit.test} failed when the first product was held against differences{error}: {culprit.reason}. "
        "Eigenvalues would not be those of the loss. See landscape.audit(model, loss, batch) for all of it; check=False measures "
        "anyway."
    )


class _PointInChunks(Point):
    """A point whose gradients are made chunk by chunk, for a batch that does not fit in memory at once."""

    def __init__(self, problem: Problem, rows: int) -> None:
        dtype = problem.like.dtype
        super().__init__(
            problem.objective,
            problem.leaves,
            problem.batch,
            digits=dtype,
            precision=_PRECISION[dtype],
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
    problem, (way, rows) = first.problem, first.way
    if way == "rows":
        assert rows is not None
        return _PointInChunks(problem, rows)
    # One that computes in fewer digits than its parameters have is refused when an operator is built.
    dtype = problem.like.dtype
    return Point(
        problem.objective, problem.leaves, problem.batch, digits=dtype, precision=_PRECISION[dtype]
    )


# --- what was checked before ------------------------------------------------------------------------------------------

# By identity, since equal models need not do the same.
_by_model: "dict[int, tuple[weakref.ref[nn.Module], dict[Hashable, SpotCheck]]]" = {}


def forget(module: nn.Module) -> None:
    """Drop what was found of a model, so that its next operator is checked again."""
    _by_model.pop(id(module), None)


def _remembered(problem: Problem) -> dict[Hashable, SpotCheck]:
    """The checks of the problem's model; those of an objective without a model are not remembered."""
    module = problem.objective.module
    if module is None:
        return {}
    key = id(module)
    there = _by_model.get(key)
    if there is None or there[0]() is not module:
        there = _by_model[key] = (weakref.ref(module, lambda _: _by_model.pop(key, None)), {})
    return there[1]


def _key(problem: Problem, way: tuple[str, int | None], operations: int) -> Hashable:
    return (
        problem.code,
        operations,
        way,
        problem.allow_tf32,
        structure_of(problem.batch),
        problem.like.dtype,
        str(problem.like.device),
        tuple(problem.leaves),
        problem.contents,
    )
