"""Tests of an objective at fixed parameters, in the precision of these parameters.

Products are compared with differences of gradients, gradients with differences of the loss;
symmetry and repeatability are checked.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from landscape.curvature.audits.differences import (
    PRECISION,
    Params,
    PlainProduct,
    Point,
    Product,
    natural_size,
    smallest_visible,
)
from landscape.curvature.audits.judgement import Outcome, asymmetry, judge_derivatives
from landscape.curvature.audits.report import WHOLE, ZERO_TO_ROUNDING, AuditRow
from landscape.curvature.hvp.memory import is_out_of_memory
from landscape.curvature.hvp.unchecked import UncheckedHessian
from landscape.curvature.objective import Batch, Objective, flatten, unflatten
from landscape.errors import ObjectiveError
from landscape.linalg.operator import seeded

_NUM_DIRECTIONS = 2
# A product in the model's own float32 against the same in float64.
_OWN_PRECISION_TOLERANCE = 0.05

REASONS = {
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


class Examination:
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
        yield AuditRow(WHOLE, "determinism", change, *_verdict(repeats, REASONS["determinism"]))
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
            rows.append(AuditRow(WHOLE, "symmetry", error, *_verdict(allowed, REASONS["symmetry"])))
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

    def against(self, other: "Examination") -> AuditRow:
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

    def _fits_perfectly(self, other: "Examination") -> bool:
        """Tell whether rounding in this precision hides the loss.

        The value of the loss is the one that `other` computes; the rounding is that of its terms.
        """
        rounding = (
            10 * torch.finfo(self.point.dtype).eps * natural_size(self.point, self.directions())
        )
        return abs(other.point.evaluate(other.point.leaves()).item()) <= rounding


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
        REASONS[test]
        if worst.verdict == "failed"
        else "the differences do not settle, so they prove nothing"
    )
    where = f" (worst for {worst.worst})" if worst.worst else ""
    return AuditRow(WHOLE, test, worst.error, worst.verdict, reason + where)
