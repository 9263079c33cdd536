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
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from landscape.curvature.differences import PRECISION, Outcome, Params, Point, judge_derivatives, judge_number
from landscape.curvature.evaluation import Problem
from landscape.curvature.objective import Batch, flatten, unflatten
from landscape.curvature.promotion import promoted
from landscape.curvature.row_chunks import RowChunks
from landscape.errors import ObjectiveError
from landscape.linalg.operator import seeded

# Stricter in float32 than the audit, as what is doubtful goes on in float64: smooth networks reach 3e-3, and ReLUs nothing.
_PRECISION = {
    torch.float64: PRECISION[torch.float64],
    torch.float32: replace(PRECISION[torch.float32], steps=(1e-2,), tolerance=2e-2),
}
# Numbers of float32 against differences in float64, whose steps are so small that few units come by a kink.
_WIDE = replace(PRECISION[torch.float64], steps=(1e-7, 1e-9, 1e-5), tolerance=2e-2)
# Of float32: at its usual step a difference runs smoothly over the stairs of a fine rounding.
_FINE_STEP = 1e-4
_FINE_ROUNDINGS = 20
# What is remembered of one model; a training loop makes one entry.
_MOST_REMEMBERED = 64


@dataclass(frozen=True)
class SpotCheck:
    """What differences said of an operator's first product.

    Attributes:
        verdict: "passed", "undecided", or "not made".
        product_error: Of the product against a central difference of gradients, relative, the largest over the parameters.
        gradient_error: Of the gradient along the same vector against a central difference of the loss, relative.
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
        return (
            f"operator checked: product within {self.product_error:.1e} and gradient within {self.gradient_error:.1e} of central "
            f"differences{self.reason and ' '}{self.reason}"
        )


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


def is_general(rows: Float[Tensor, "k n"]) -> bool:
    """Whether a random combination of the vectors says something of all parameters that they touch: unit vectors do not."""
    touched = int((rows != 0).any(0).sum())
    return 2 * touched >= rows.shape[1] or touched >= 1000


def spot_checked(first: FirstProduct) -> SpotCheck:
    """Check a product, once per model, loss, structure of the batch and way of products.

    Costs two gradients where it passes at once; nothing where the same was checked before, unless a tensor of the parameters
    that was all zero then, such as a gain that hides what is behind it, is no longer.

    Raises:
        ObjectiveError: If it is not the second derivative of the loss; names the module where the audit finds it.
    """
    known, key = _remembered(first.problem), _key(first)
    if key not in known:
        with first.problem.differentiating():
            made = _compared(first) or audited(first.problem)
        if len(known) >= _MOST_REMEMBERED:
            known.clear()
        known[key] = made
    return known[key]


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
        outcomes = _judged(wide, *(_widened(vector) for vector in (*pair, slope)))
    return None if outcomes is None else SpotCheck("passed", *outcomes, reason="in float64")


def _judged(point: Point, direction: Params, product: Params, slope: Params) -> tuple[float, float] | None:
    """The errors of product and gradient; None where they do not agree with differences."""
    gradient, second = judge_derivatives(point, direction, slope, product)
    assert second is not None
    agrees = gradient.verdict == second.verdict == "passed" and _agrees_closely(point, direction, slope)
    return (second.error, gradient.error) if agrees else None


def _direction_and_product(first: FirstProduct, point: Point) -> tuple[Params, Params]:
    """A direction through the vectors that were multiplied, and its product, in scaled coordinates."""
    problem = first.problem
    # Of several vectors a random combination, which says something of every one.
    mixed = torch.randn(len(first.rows), generator=seeded(0), dtype=torch.float64).to(first.rows)
    mixed = mixed if len(mixed) > 1 else torch.ones_like(mixed)
    moved = unflatten(mixed @ first.rows, problem.leaves)
    direction = {name: piece / point.scales[name] for name, piece in moved.items()}
    # A step then moves the parameters by that fraction of their size, in the mean square.
    size = float(torch.linalg.vector_norm(flatten(direction), dtype=torch.float64)) / flatten(direction).numel() ** 0.5
    direction = {name: piece / size for name, piece in direction.items()}
    return direction, point.scaled(unflatten(mixed @ first.products / size, problem.leaves))


def _widened(vector: Params) -> Params:
    return {name: piece.double() for name, piece in vector.items()}


def _slope(point: Point, first: FirstProduct) -> Params:
    """The gradient at the point, in scaled coordinates."""
    if first.gradients is None:
        return point.loss_and_gradient()[1]
    pairs = zip(first.problem.leaves.items(), first.gradients)
    return point.scaled({name: torch.zeros_like(leaf) if g is None else g for (name, leaf), g in pairs})


def _agrees_closely(point: Point, direction: Params, slope: Params) -> bool:
    """In float32 the gradient against a difference of the loss at a step so small that stairs show; elsewhere nothing."""
    if point.digits != torch.float32 or isinstance(point, _PointInChunks):
        return True
    terms = torch.stack([(slope[name] * direction[name]).sum() for name in slope])
    ahead, behind = point.loss(direction, _FINE_STEP), point.loss(direction, -_FINE_STEP)
    tolerance = point.precision.tolerance
    rounding = _FINE_ROUNDINGS * torch.finfo(torch.float32).eps * abs(ahead) / (_FINE_STEP * tolerance)
    size = float(terms.norm()) + rounding
    outcome: Outcome = judge_number(float(terms.sum()), [(ahead - behind) / (2 * _FINE_STEP)], size=size, tolerance=tolerance)
    return outcome.verdict == "passed"


def audited(problem: Problem) -> SpotCheck:
    """What the audit says of the problem.

    Raises:
        ObjectiveError: If it fails.
    """
    # The audit makes operators of its own, whose products nobody checks.
    from landscape.curvature.audit import audit_at

    params = {name: leaf.detach() for name, leaf in problem.leaves.items()}
    report = audit_at(replace(problem.objective, weight_decay=0.0), params, problem.batch)
    if report.passed:
        worst = "" if report.worst_error is None else f" (worst error {report.worst_error:.1e})"
        return SpotCheck("passed", reason=f"by the audit a little off the parameters{worst}; at them differences do not settle")
    if report.is_zero_to_rounding:
        return SpotCheck("undecided", reason=next(row.reason for row in report.rows if row.verdict != "passed"))
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
        params = {name: leaf.detach() for name, leaf in problem.leaves.items()}
        dtype = problem.like.dtype
        super().__init__(problem.objective, params, problem.batch, digits=dtype, precision=_PRECISION[dtype])
        self._problem, self._rows = problem, rows

    def loss_and_gradient(self, direction: Params | None = None, step: float = 0.0) -> tuple[float, Params]:
        self.num_gradients += 1
        problem = replace(self._problem, leaves=self.moved(direction, step))
        evaluated = RowChunks(problem, self._rows).pop_evaluated()
        pairs = zip(problem.leaves.items(), evaluated.gradients)
        gradients = {name: torch.zeros_like(leaf) if g is None else g.detach() for (name, leaf), g in pairs}
        return evaluated.loss, self.scaled(gradients)


def _point(first: FirstProduct) -> Point:
    problem, (way, rows) = first.problem, first.way
    if way == "rows":
        assert rows is not None
        return _PointInChunks(problem, rows)
    params = {name: leaf.detach() for name, leaf in problem.leaves.items()}
    # One that computes in fewer digits than its parameters have is refused when an operator is built.
    dtype = problem.like.dtype
    return Point(problem.objective, params, problem.batch, digits=dtype, precision=_PRECISION[dtype])


# --- what was checked before ------------------------------------------------------------------------------------------

_by_model: "weakref.WeakKeyDictionary[nn.Module, dict[Hashable, SpotCheck]]" = weakref.WeakKeyDictionary()


def forget(module: nn.Module) -> None:
    """Drop what was found of a model, so that its next operator is checked again."""
    _by_model.pop(module, None)


def _remembered(problem: Problem) -> dict[Hashable, SpotCheck]:
    """The checks of the problem's model; those of an objective without a model are not remembered."""
    module = problem.objective.module
    return {} if module is None else _by_model.setdefault(module, {})


def _key(first: FirstProduct) -> Hashable:
    objective, leaves = first.problem.objective, first.problem.leaves
    return (
        *(_signature(function) for function in (objective.forward, objective.loss)),
        first.operations,
        first.way,
        first.problem.allow_tf32,
        _structure(first.problem.batch),
        first.problem.like.dtype,
        str(first.problem.like.device),
        tuple((name, bool(leaf.any())) for name, leaf in leaves.items()),
    )


def _structure(batch: Batch) -> Hashable:
    """How a batch is nested, and types and shapes of its tensors but for the number of rows."""
    leaves, spec = tree_flatten(batch)
    return str(spec), tuple((leaf.dtype, leaf.shape[1:]) if isinstance(leaf, Tensor) else type(leaf) for leaf in leaves)


def _signature(value: Any, depth: int = 0) -> Hashable:
    """What a function does, as far as its code and plain values tell: a lambda that is written anew in a loop is the same."""
    code: Hashable = getattr(value, "__code__", None)
    if code is None:
        return (type(value), value if isinstance(value, (bool, int, float, str)) else None)
    if depth == 8:
        return code
    inner = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
    inner += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    return code, tuple(_signature(one, depth + 1) for one in inner)


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents
    except ValueError:
        return False
    return True
