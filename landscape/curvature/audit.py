"""Audit: is the operator the second derivative of the loss?

If it is not, the audit names the module that is to blame.

The tests do not depend on how derivatives are computed. They compare products with differences of
gradients, gradients with differences of the loss, and check symmetry and repeatability. They run in
float64 where the model can be converted, a little off the parameters under study (see `displaced`),
and never on the model itself.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from landscape.curvature.blame import FaultyModule, find_faulty_modules
from landscape.curvature.differences import (
    PRECISION,
    Outcome,
    Params,
    PlainProduct,
    Point,
    Product,
    asymmetry,
    displaced,
    judge_derivatives,
    natural_size,
    smallest_visible,
)
from landscape.curvature.memory import is_out_of_memory
from landscape.curvature.objective import Batch, Objective, flatten, select_parameters, unflatten
from landscape.curvature.preconditions import check_autocast, check_batch, check_parameters
from landscape.curvature.promotion import promoted
from landscape.curvature.unchecked import UncheckedHessian
from landscape.deprecation import warn_of_old_name
from landscape.errors import ObjectiveError
from landscape.linalg.operator import seeded

WHOLE = "the whole loss"
ZERO_TO_ROUNDING = "gradient and Hessian are zero to rounding"
_NUM_DIRECTIONS = 2
# A product in the model's own float32 against the same in float64.
_OWN_PRECISION_TOLERANCE = 0.05
_FEWER_BITS = "digits"

Make = Callable[[nn.Module], tuple[Objective, Params]]


@dataclass(frozen=True)
class AuditRow:
    """Result of a test of a module, or of the whole loss.

    Attributes:
        name: Dotted name and class of the module, or "the whole loss".
        test: "determinism", "graph", "gradient", "product", "symmetry" or "precision".
        error: Relative; None where there is no number.
        verdict: "passed", "failed" or "undecided".
        reason: Why, where it did not pass.
    """

    name: str
    test: str
    error: float | None
    verdict: str
    reason: str = ""


@dataclass(frozen=True)
class AuditReport:
    """Results of all tests.

    Attributes:
        rows: The tests of the whole loss, then those of the modules to blame.
        dtype: Type in which the tests were made.
        num_gradients: Gradients spent on the whole loss; those of the search for the module are not
            counted.
        num_products: Hessian-vector products likewise.
    """

    rows: tuple[AuditRow, ...]
    dtype: torch.dtype
    num_gradients: int
    num_products: int

    @property
    def passed(self) -> bool:
        return all(row.verdict == "passed" for row in self.rows)

    @property
    def is_zero_to_rounding(self) -> bool:
        """Tell whether the only doubt is a vanishing gradient and Hessian.

        They are then too small for differences to show, as at a perfect fit.
        """
        doubtful = [row for row in self.rows if row.verdict != "passed"]
        return bool(doubtful) and all(row.reason == ZERO_TO_ROUNDING for row in doubtful)

    @property
    def worst_error(self) -> float | None:
        """Return the largest error among the tests of the whole loss.

        None where no such test has an error.
        """
        errors = [row.error for row in self.rows if row.name == WHOLE and row.error is not None]
        return max(errors, default=None)

    @property
    def failed_test(self) -> str:
        """Return the name of the first test that did not pass; "" where all did."""
        return next((row.test for row in self.rows if row.verdict != "passed"), "")

    @property
    def faulty_modules(self) -> tuple[str, ...]:
        """Name the modules that did not pass, the innermost first.

        "the whole loss" comes last. Empty after a pass.
        """
        names = dict.fromkeys(row.name for row in self.rows if row.verdict != "passed")
        return tuple(sorted(names, key=lambda name: name == WHOLE))

    @property
    def blamed(self) -> tuple[str, ...]:
        """Return `faulty_modules`, of which this is the old name."""
        warn_of_old_name("blamed", "faulty_modules")
        return self.faulty_modules

    def __str__(self) -> str:
        cells = [("module", "test", "error", "verdict", "")]
        for row in self.rows:
            cells.append(
                (
                    row.name,
                    row.test,
                    "" if row.error is None else f"{row.error:.1e}",
                    row.verdict,
                    row.reason,
                )
            )
        widths = [max(len(row[column]) for row in cells) for column in range(4)]
        return "\n".join(
            "  ".join([*(text.ljust(width) for text, width in zip(row, widths)), row[4]]).rstrip()
            for row in cells
        )


def audit(
    model: nn.Module,
    loss: Callable[[Any, Batch], Tensor],
    batch: Batch,
    *,
    parameters: str | Sequence[str] = "all",
    weight_decay: float = 0.0,
    seed: int = 0,
) -> AuditReport:
    """Test whether `landscape.hessian` is the second derivative of the loss.

    Takes the arguments of `hessian`.

    Costs about ten gradients and five products for a healthy model, more where it has kinks. The
    search for the faulty module begins only when a test failed. The model is not touched.

    Args:
        weight_decay: Accepted so that a call can be copied from `hessian`; the L2 term is an exact
            shift and not tested.
        seed: Seed of the random directions and of the displacement.

    Raises:
        ObjectiveError: If the parameters or the batch cannot be used at all, or the loss is not one
            number.

    Examples:
        >>> import torch, landscape
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> batch = torch.randn(32, 4), torch.randn(32, 1)
        >>> def loss(model, batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        ...
        >>> report = landscape.audit(model, loss, batch)
        >>> report.passed
        True
    """

    def make(module: nn.Module) -> tuple[Objective, Params]:
        return Objective.from_closure(module, loss, weight_decay=weight_decay), select_parameters(
            module, parameters
        )

    return audit_objective(make, model, batch, seed=seed)


def audit_objective(make: Make, model: nn.Module, batch: Batch, *, seed: int = 0) -> AuditReport:
    """Audit an objective that `make` builds from a model.

    `make` gets the model or a copy of it, and returns the objective and its parameters; see
    `audit`.
    """
    objective, params = make(model)
    return audit_at(
        replace(objective, module=model, rebound=lambda other: make(other)[0]),
        params,
        batch,
        seed=seed,
    )


def audit_at(objective: Objective, params: Params, batch: Batch, *, seed: int = 0) -> AuditReport:
    """Audit an objective at given parameters; see `audit`.

    Runs in float64 where the objective can be rebound to a copy of its module.
    """
    check_parameters(params)
    device = next(iter(params.values())).device
    check_batch(batch, device)
    check_autocast(device)
    devices = [device] if device.type == "cuda" else []
    # The caller may be in inference mode or under no_grad. Random state is restored, so that an
    # audit changes no training run.
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices):
        plain = _Examination(objective, displaced(params, seeded(seed)), batch, seed=seed)
        plain.check_loss()
        # Differences need digits: a central difference of a smooth function is right to about
        # eps^(2/3), 2e-5 in float32 and 4e-11 in float64.
        examination = _promoted(objective, batch, plain, seed=seed) or plain
        rows = list(examination.rows())
        # A product that is right in float64 may still be wrong in the model's type, for which there
        # may be another kernel.
        if examination is not plain and not any(row.verdict == "failed" for row in rows):
            rows.append(plain.against(examination))
        # A perfect fit leaves nothing to test, and no module is to blame for it.
        is_doubtful = any(
            row.verdict != "passed" and row.reason != ZERO_TO_ROUNDING for row in rows
        )
        if is_doubtful and examination.objective.module is not None:
            known = {(row.name, row.test) for row in rows}
            # Where the whole is only in doubt, a part that fails by itself is a hint, and no proof.
            verdict = "failed" if any(row.verdict == "failed" for row in rows) else "undecided"
            rows += [
                AuditRow(
                    faulty.name,
                    faulty.test,
                    faulty.outcome.error,
                    verdict,
                    _REASONS.get(faulty.test, ""),
                )
                for faulty in _search(examination)
                if (faulty.name, faulty.test) not in known
            ]
    runs = {id(run): run for run in (plain, examination)}.values()
    gradients, products = (
        sum(run.point.num_gradients for run in runs),
        sum(run.num_products for run in runs),
    )
    return AuditReport(tuple(rows), examination.point.dtype, gradients, products)


_REASONS = {
    "determinism": "two evaluations at the same parameters differ",
    "gradient": (
        "the gradient is not the derivative of the loss: look for detach, no_grad, rounding or a "
        "wrong backward"
    ),
    "product": (
        "the product is not the derivative of the gradient: part of the second derivative is "
        "dropped or wrong"
    ),
    "symmetry": "<u, Hv> and <v, Hu> differ, so this is no matrix of second derivatives",
}


class _Examination:
    """The tests of one objective at fixed parameters."""

    def __init__(self, objective: Objective, params: Params, batch: Batch, *, seed: int) -> None:
        self.objective, self.batch, self.seed = objective, batch, seed
        self.point = Point(objective, params, batch)
        self.num_products = 0
        self._operator: UncheckedHessian | None = None
        self._refusal: str | None = None
        self._products: list[Params] = []
        self._is_zero = False

    def check_loss(self) -> None:
        """Check that the loss is one real number.

        Anything else that is wrong with it is left to the tests.
        """
        loss: Any = self.point.evaluate(self.point.leaves())
        if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.is_floating_point():
            got = (
                f"a tensor of shape {tuple(loss.shape)} in {loss.dtype}"
                if isinstance(loss, Tensor)
                else type(loss).__name__
            )
            raise ObjectiveError(
                f"The loss must be one real number, a tensor of shape (), got {got}."
            )

    def guard(self, *, kernels_may_fail: bool = True) -> str | None:
        """Return the reason why HessianOperator refuses the loss, or None.

        An exception of a kernel is reported in the same way, or raised if `kernels_may_fail` is
        False.
        """
        if self._operator is None and self._refusal is None:
            try:
                self._operator = UncheckedHessian(
                    _without_decay(self.objective), self.point.params, self.batch
                )
            # A kernel's backward may raise anything.
            except Exception as error:
                if is_out_of_memory(error) or not (
                    kernels_may_fail or isinstance(error, ObjectiveError)
                ):
                    raise
                self._refusal = _said(error)
            self.point.num_gradients += 1
        return self._refusal

    def directions(self) -> list[Params]:
        generator = seeded(self.seed + 1)
        return [self.point.random_direction(generator) for _ in range(_NUM_DIRECTIONS)]

    def rows(self) -> Iterator[AuditRow]:
        try:
            (loss, slope), (again, slope_again) = (self.point.loss_and_gradient() for _ in range(2))
        # The loss was evaluated before; what is raised now comes from a backward pass.
        except Exception as error:
            if is_out_of_memory(error):
                raise
            refusal = self.guard()
            if refusal:
                yield AuditRow(_named(refusal), "graph", None, "failed", refusal)
            yield AuditRow(WHOLE, "gradient", None, "failed", str(error).partition("\n")[0])
            return
        if self.point.digits not in PRECISION:
            refusal = self.guard()
            yield AuditRow(
                _named(refusal), "graph", None, *_verdict(refusal is None, refusal or "")
            )
            reason = (
                f"the loss is computed in {self.point.digits}, which has too few digits for "
                "differences"
            )
            yield AuditRow(WHOLE, "gradient", None, "undecided", reason)
            return
        # Determinism comes first: differences of a random loss would measure its noise.
        size = max(float(flatten(slope).norm()), torch.finfo(torch.float64).tiny)
        change = float((flatten(slope) - flatten(slope_again)).norm()) / size
        # The loss too, since a random term that does not depend on the parameters moves the loss
        # alone.
        change = max(change, abs(loss - again) / max(abs(loss), 1e-3))
        repeats = change <= self.point.precision.repeat
        yield AuditRow(WHOLE, "determinism", change, *_verdict(repeats, _REASONS["determinism"]))
        refusal = self.guard()
        yield AuditRow(_named(refusal), "graph", None, *_verdict(refusal is None, refusal or ""))
        if repeats:
            yield from self._numbers(slope)

    def _numbers(self, slope: Params) -> Iterator[AuditRow]:
        directions = self.directions()
        try:
            product: Product = (
                self._guarded if self._operator is not None else PlainProduct(self.point)
            )
            self._products = [product(direction) for direction in directions]
            self.num_products += len(directions)
        except (ObjectiveError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            trouble = _said(error)
            yield AuditRow(_named(trouble), "product", None, "failed", trouble)
        rows = self._compared(directions, slope)
        if any(row.verdict != "passed" for row in rows):
            rows = self._allowing_for_cancellation(rows, directions, slope)
        yield from rows

    def _compared(
        self, directions: list[Params], slope: Params, *, size: float = 0.0
    ) -> list[AuditRow]:
        """Compare gradient and products with differences.

        `size` is that of `judge_derivatives`.
        """
        products: Sequence[Params | None] = self._products or [None] * len(directions)
        outcomes = [
            judge_derivatives(self.point, direction, slope, product, size=size)
            for direction, product in zip(directions, products)
        ]
        rows = [_row("gradient", [first for first, _ in outcomes])]
        if self._products:
            rows.append(_row("product", [second for _, second in outcomes if second is not None]))
            # Differences of forms that rounding makes, of the visible size, are then within the
            # tolerance.
            floor = smallest_visible(self.point, size) / self.point.precision.tolerance
            # A Hessian is symmetric, <u, Hv> = <v, Hu>. A backward pass that drops terms usually
            # breaks that, and the test needs no differences.
            error = asymmetry(directions, self._products, floor=floor)
            allowed = error <= self.point.precision.tolerance
            rows.append(
                AuditRow(WHOLE, "symmetry", error, *_verdict(allowed, _REASONS["symmetry"]))
            )
        return rows

    def _allowing_for_cancellation(
        self, rows: list[AuditRow], directions: list[Params], slope: Params
    ) -> list[AuditRow]:
        """Repeat the tests, allowing for cancellation in the loss.

        It is the rounding of terms that cancel that is allowed for.

        What passes then is undecided where gradient and products are all below that rounding: there
        is nothing to test.
        """
        size = natural_size(self.point, directions)
        again = self._compared(directions, slope, size=size)
        visible = smallest_visible(self.point, size)
        # Something is large enough to be seen in differences, so that their comparison means
        # something.
        if any(float(flatten(vector).norm()) > visible for vector in (slope, *self._products)):
            return again
        self._is_zero = True
        return [
            row
            if row.verdict != "passed" or before.verdict == "passed"
            else replace(row, verdict="undecided", reason=ZERO_TO_ROUNDING)
            for row, before in zip(again, rows)
        ]

    def _guarded(self, direction: Params) -> Params:
        assert self._operator is not None
        flat = flatten(self.point.scaled(direction))
        return self.point.scaled(unflatten(self._operator @ flat, self.point.params))

    def against(self, other: "_Examination") -> AuditRow:
        """Compare the product in this precision with that in another.

        A kernel may be right in one type and wrong in the next.
        """
        if refusal := self.guard():
            return AuditRow(_named(refusal), "graph", None, "failed", refusal)
        try:
            mine, theirs = self._guarded(self.directions()[0]), other._products[0]
        except (ObjectiveError, RuntimeError) as refused:
            if is_out_of_memory(refused):
                raise
            return AuditRow(_named(_said(refused)), "product", None, "failed", _said(refused))
        self.num_products += 1
        size = float(flatten(theirs).norm())
        error = float((flatten(mine).double() - flatten(theirs)).norm()) / size if size > 0 else 0.0
        if error > _OWN_PRECISION_TOLERANCE and (other._is_zero or self._fits_perfectly(other)):
            return AuditRow(WHOLE, "precision", error, "undecided", ZERO_TO_ROUNDING)
        reason = f"the product in {self.point.dtype} is not that in {other.point.dtype}"
        return AuditRow(
            WHOLE, "precision", error, *_verdict(error <= _OWN_PRECISION_TOLERANCE, reason)
        )

    def _fits_perfectly(self, other: "_Examination") -> bool:
        """Tell whether rounding in this precision hides the loss.

        The value of the loss is the one that `other` computes; the rounding is that of its terms.
        """
        rounding = (
            10 * torch.finfo(self.point.dtype).eps * natural_size(self.point, self.directions())
        )
        return abs(other.point.evaluate(other.point.leaves()).item()) <= rounding


def _search(examination: _Examination) -> list[FaultyModule]:
    assert examination.objective.module is not None
    return find_faulty_modules(
        examination.objective.module, examination.point, seed=examination.seed
    )


def _promoted(
    objective: Objective, batch: Batch, plain: _Examination, *, seed: int
) -> _Examination | None:
    """Build the examination in float64; None if that fails.

    It is of a copy of the module if there is one. It fails if something in the loss cannot be
    converted.
    """
    point = (
        None
        if plain.point.dtype == torch.float64
        else promoted(objective, plain.point.params, batch)
    )
    if point is None:
        return None
    examination = _Examination(point.objective, point.params, point.batch, seed=seed)
    # It may compute in fewer digits in its backward pass alone, or refuse the type there.
    try:
        refusal = examination.guard(kernels_may_fail=False)
    except Exception:
        return None
    return None if refusal and _FEWER_BITS in refusal else examination


def _without_decay(objective: Objective) -> Objective:
    return Objective(
        objective.forward, objective.loss, module=objective.module, rowwise=objective.rowwise
    )


def _named(refusal: str | None) -> str:
    """Return the part of the model that a message begins with.

    An example is "blocks.1 (Scan): ...".
    """
    where, colon, _ = (refusal or "").partition(": ")
    return where if colon and not where.startswith("The loss") else WHOLE


def _said(error: Exception) -> str:
    """Return the message of a refusal, or of a kernel's own error.

    The latter becomes a message about the loss, since it names no module.
    """
    if isinstance(error, ObjectiveError):
        return str(error)
    first_line, *_ = str(error).splitlines() or [type(error).__name__]
    return f"The loss cannot be differentiated: {first_line}"


def _verdict(passed: bool, reason: str) -> tuple[str, str]:
    return ("passed", "") if passed else ("failed", reason)


def _row(test: str, outcomes: list[Outcome]) -> AuditRow:
    order = {"failed": 2, "undecided": 1, "passed": 0}
    worst = max(outcomes, key=lambda outcome: (order[outcome.verdict], outcome.error))
    if worst.verdict == "passed":
        return AuditRow(WHOLE, test, worst.error, "passed")
    # Steps may disagree along one direction, across a kink, and agree along another.
    best = min(outcomes, key=lambda outcome: (order[outcome.verdict], outcome.error))
    if worst.verdict == "undecided" and best.verdict == "passed":
        return AuditRow(WHOLE, test, best.error, "passed")
    reason = (
        _REASONS[test]
        if worst.verdict == "failed"
        else "the differences do not settle, so they prove nothing"
    )
    where = f" (worst for {worst.worst})" if worst.worst else ""
    return AuditRow(WHOLE, test, worst.error, worst.verdict, reason + where)
