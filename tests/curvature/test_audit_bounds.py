"""The numbers of the audit, each held from both sides, and the report that is made of its rows."""

import dataclasses

import pytest
import torch
from torch import nn

from landscape import audit
from landscape.curvature import Objective
from landscape.curvature.audits import (
    WHOLE,
    ZERO_TO_ROUNDING,
    AuditReport,
    AuditRow,
    audit_at,
    differences,
    objective_audit,
)
from landscape.curvature.audits.judgement import judge_blocks, judge_derivatives
from landscape.errors import ObjectiveError
from tests.curvature.test_audit import Applies, FrozenSlopeSine, OpaqueSine, mean_square, normal
from tests.curvature.test_audit_guards import InFloat32, Reordered, double, point_of, verdicts
from tests.helpers.wrong_derivatives import SavedSine


def single(*values):
    return torch.tensor(values, dtype=torch.float32)


def scaled_sine(factor):
    """sin whose backward is off by a factor, and consistently so."""

    class Sine(SavedSine):
        @staticmethod
        def backward(ctx, g):
            return factor * g * ctx.saved_tensors[0].cos()

    return Sine.apply


def network(function):
    return nn.Sequential(nn.Linear(4, 6), Applies(function), nn.Linear(6, 2))


def judged(loss, w, *, factor=1.0):
    """Verdicts on gradient and product of a loss of one number, whose gradient is said to be off by
    a factor; gradients spent.
    """
    point = point_of(lambda w: loss(w).sum(), w=w)
    slope = {"w": factor * point.loss_and_gradient()[1]["w"]}
    (curvature,) = torch.autograd.functional.hessian(lambda w: loss(w).sum(), w)
    direction = {"w": torch.ones_like(w)}
    product = point.scaled({"w": curvature @ point.scaled(direction)["w"]})
    point.num_gradients = 0
    gradient, second = judge_derivatives(point, direction, slope, product)
    return gradient.verdict, second.verdict, point.num_gradients


# --- what differences can tell --------------------------------------------------------------------


@pytest.mark.parametrize("error, verdict", [(2e-5, "passed"), (1e-3, "failed")])
def test_in_float64_a_backward_may_be_off_by_less_than_a_ten_thousandth(error, verdict):
    report = audit(network(scaled_sine(1 + error)).double(), mean_square, normal(9, 4))
    assert verdicts(report)["gradient"] == verdict, str(report)


@pytest.mark.parametrize("error, verdict", [(0.03, "passed"), (0.5, "failed")])
def test_where_only_float32_can_be_asked_a_backward_may_be_off_by_less_than_a_tenth(error, verdict):
    model = nn.Sequential(nn.Linear(4, 6), InFloat32(scaled_sine(1 + error)), nn.Linear(6, 2))
    report = audit(model, mean_square, normal(9, 4, dtype=torch.float32))
    assert report.dtype == torch.float32 and verdicts(report)["gradient"] == verdict, str(report)


@pytest.mark.parametrize("factor, verdict", [(1.005, "passed"), (1.1, "failed")])
def test_a_product_may_differ_from_that_in_float64_by_the_digits_that_float32_loses(
    factor, verdict
):
    def sine(x):
        return x.sin() * (factor if x.dtype == torch.float32 else 1)

    report = audit(network(sine), mean_square, normal(9, 4, dtype=torch.float32))
    assert verdicts(report)["precision"] == verdict and report.passed == (verdict == "passed"), str(
        report
    )


@pytest.mark.parametrize(
    "dtype, size, verdict",
    [
        (torch.float64, 3e-11, "passed"),
        (torch.float64, 1e-8, "failed"),
        (torch.float32, 1e-4, "passed"),
        (torch.float32, 1e-2, "failed"),
    ],
)
def test_sums_in_another_order_move_a_gradient_by_rounding_and_randomness_by_more(
    dtype, size, verdict
):
    reordered = Reordered(size) if dtype == torch.float64 else InFloat32(Reordered(size))
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), reordered, nn.Linear(6, 2)).to(dtype)
    report = audit(model, mean_square, normal(9, 4, dtype=dtype))
    assert report.dtype == dtype and verdicts(report)["determinism"] == verdict, str(report)


@pytest.mark.parametrize(
    "constant, noise, verdict",
    [(1e6, 1e-8, "passed"), (1e6, 1e-1, "failed"), (0.0, 3e-13, "passed"), (0.0, 1e-11, "failed")],
)
def test_the_value_of_a_loss_repeats_to_its_own_rounding_and_a_small_one_to_that_of_a_thousandth(
    constant, noise, verdict
):
    model, batch, calls = nn.Linear(4, 2).double(), normal(9, 4), []

    def loss(model, batch):
        calls.append(0)
        value = mean_square(model, batch)
        return value - value.detach() + constant + noise * (len(calls) % 2)

    assert verdicts(audit(model, loss, batch))["determinism"] == verdict


# --- steps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("w", [double(1.0), single(1.0)], ids=["float64", "float32"])
def test_the_first_step_is_small_enough_for_a_sharp_loss(w):
    sharpness = 1e3 if w.dtype == torch.float64 else 10.0
    assert judged(lambda w: torch.sin(sharpness * w), w) == ("passed", "passed", 2)


@pytest.mark.parametrize(
    "w, constant, factor",
    [(double(1.0), 1e5, 1.001), (single(1.0), 10.0, 1.5)],
    ids=["float64", "float32"],
)
def test_the_first_step_is_large_enough_for_a_fault_beside_a_constant(w, constant, factor):
    assert judged(lambda w: constant + torch.exp(w), w, factor=factor)[0] == "failed"


@pytest.mark.parametrize(
    "distance, constant", [(1e-6, 1e5), (1e-8, 1e3)], ids=["the second step", "the third step"]
)
def test_smaller_steps_stay_on_one_side_of_a_kink_and_above_rounding(distance, constant):
    assert judged(
        lambda w: constant + torch.exp(w) + 10 * torch.relu(w - 1 - distance), double(1.0)
    )[:2] == ("passed", "passed")


def test_the_second_step_in_float32_stays_on_one_side_of_a_kink_and_above_rounding():
    def loss(w):
        return 1000 * w + w.square() / 2 + 10 * torch.relu(w - 1.005)

    assert judged(loss, single(1.0))[:2] == ("passed", "passed")


def test_the_third_step_in_float32_runs_over_the_stairs_of_rounding_inside_the_loss():
    assert judged(lambda w: (4e4 + torch.sin(w)) - 4e4, single(0.7))[:2] == ("passed", "passed")


def test_a_tensor_of_zeros_is_moved_by_a_hundredth_of_a_step():
    zero = single(0.0)
    assert judged(lambda w: torch.sin(1000 * w) / 1000 + w.square(), zero)[:2] == (
        "passed",
        "passed",
    )
    assert judged(lambda w: 1 + w, zero, factor=1.5)[0] == "failed"


@pytest.mark.parametrize("value, difference", [(3.0, 0.0), (0.0, 3.0), (3.0, -3.0)])
def test_errors_are_relative_to_the_larger_of_a_product_and_its_differences(value, difference):
    outcome = judge_blocks(
        {"w": double(value)}, [{"w": double(difference)}] * 2, rounding={"w": 0.0}, tolerance=1e-4
    )
    assert outcome.error == pytest.approx(abs(value - difference) / 3, rel=1e-5)


def test_the_digits_of_a_loss_are_looked_for_once(monkeypatch):
    looked = []
    monkeypatch.setattr(differences, "coarsest_type", lambda loss, dtype: looked.append(0) or dtype)
    audit(network(torch.sin).double(), mean_square, normal(9, 4))
    assert len(looked) == 1


def test_a_loss_that_is_huge_far_away_excuses_no_fault():
    def loss(w):
        return scaled_sine(1.5)(w) + 1e12 * torch.relu((w - 1).abs() - 0.1)

    objective = Objective(
        lambda params, batch: params["w"], lambda w, batch: loss(w).sum(), rowwise=False
    )
    report = audit_at(objective, {"w": double(1.0)}, None)
    assert verdicts(report)["gradient"] == "failed", str(report)


@pytest.mark.parametrize("second, verdict", [(2.1, "failed"), (2.5, "undecided")])
def test_differences_have_settled_where_they_move_by_less_than_a_fifth_of_the_error(
    second, verdict
):
    value = {"w": torch.ones(3, dtype=torch.float64)}
    differences = [{"w": factor * value["w"]} for factor in (2.0, second, -7.0)]
    # In units of the smallest difference, 2.
    outcome = judge_blocks(value, differences, rounding={"w": 0.0}, tolerance=1e-4)
    assert outcome.verdict == verdict and outcome.error == pytest.approx(0.5, abs=1e-5)


# --- the report -----------------------------------------------------------------------------------


def report_of(*rows):
    return AuditReport(rows, torch.float64, 0, 0)


PASSED = AuditRow(WHOLE, "gradient", 1e-9, "passed")
INNER = AuditRow("1 (Scan)", "product", 0.3, "failed", "wrong")
OUTER = AuditRow(WHOLE, "product", 0.2, "failed", "wrong")
ZERO = AuditRow(WHOLE, "symmetry", 2.0, "undecided", ZERO_TO_ROUNDING)


def test_a_report_blames_what_did_not_pass_the_innermost_first():
    assert report_of(PASSED, OUTER, INNER).faulty_modules == ("1 (Scan)", WHOLE)
    assert report_of(PASSED, dataclasses.replace(PASSED, name="2 (Tanh)")).faulty_modules == ()


def test_only_a_report_whose_every_doubt_is_rounding_is_zero_to_rounding():
    assert report_of(PASSED, ZERO).is_zero_to_rounding
    assert not report_of(PASSED).is_zero_to_rounding
    assert not report_of(PASSED, ZERO, OUTER).is_zero_to_rounding


def test_the_worst_error_is_that_of_the_whole_loss():
    assert (
        report_of(PASSED, OUTER, INNER, AuditRow(WHOLE, "graph", None, "passed")).worst_error == 0.2
    )
    assert report_of(INNER).worst_error is None


# --- what is done and what not --------------------------------------------------------------------


def test_the_search_begins_only_where_something_is_in_doubt_beside_rounding(monkeypatch):
    searched = []
    monkeypatch.setattr(
        objective_audit,
        "_search",
        lambda examination: searched.append(0) or [],
    )
    audit(network(torch.sin).double(), mean_square, normal(9, 4))
    constant = audit(
        nn.Linear(5, 4).double(), lambda model, batch: model(batch).softmax(1).sum(), normal(3, 5)
    )
    assert constant.is_zero_to_rounding and not searched, str(constant)
    audit(network(FrozenSlopeSine.apply).double(), mean_square, normal(9, 4))
    assert searched == [0]


def test_what_failed_in_float64_is_not_compared_with_float32():
    report = audit(network(FrozenSlopeSine.apply), mean_square, normal(9, 4, dtype=torch.float32))
    assert set(verdicts(report)) == {"determinism", "graph", "gradient", "product", "symmetry"}, (
        str(report)
    )


@pytest.mark.parametrize("function", [FrozenSlopeSine.apply, OpaqueSine.apply])
def test_no_test_is_reported_twice(function):
    rows = audit(network(function).double(), mean_square, normal(9, 4)).rows
    assert len({(row.name, row.test) for row in rows}) == len(rows)


@pytest.mark.parametrize(
    "loss, got",
    [
        (lambda model, batch: model(batch).sum().item(), "got float"),
        (lambda model, batch: model(batch).sum().to(torch.complex128), "complex128"),
        (lambda model, batch: model(batch).sum()[None], r"shape \(1,\)"),
    ],
    ids=["float", "complex", "one entry"],
)
def test_a_loss_that_is_not_one_real_number_is_refused_in_words(loss, got):
    with pytest.raises(ObjectiveError, match=f"must be one real number.*{got}"):
        audit(nn.Linear(4, 2).double(), loss, normal(9, 4))
