"""The thresholds of the audit: each is there for a case, and the case is here."""

import pytest
import torch
from test_audit import Applies, FrozenSlopeSine, Noisy, mean_square, normal
from torch import nn

from landscape import audit
from landscape.curvature.audit import WHOLE
from landscape.curvature.differences import PRECISION, Point, judge_blocks, judge_derivatives
from landscape.curvature.objective import Objective


def verdicts(report):
    return {row.test: row.verdict for row in report.rows if row.name == WHOLE}


def point_of(loss, **params):
    """A loss of named numbers as an objective at a point."""
    return Point(Objective(lambda params, batch: params, lambda params, batch: loss(**params), rowwise=False), params, None)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


class Gain(nn.Module):
    """A branch that is zero at initialisation, as in many residual networks."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.gain * x


def test_a_fault_behind_a_gain_of_zero_is_caught():
    model = nn.Sequential(nn.Linear(4, 6), Applies(FrozenSlopeSine.apply), Gain()).double()
    report = audit(model, mean_square, normal(9, 4))
    assert verdicts(report)["product"] == "failed" and "1 (Applies)" in report.blamed, str(report)


def test_a_block_that_is_nothing_beside_the_others_is_not_judged_by_its_own_rounding():
    value = {"large": double(1.0), "small": double(1e-9)}
    differences = [{"large": double(1.0), "small": double(1.5e-9)}] * 2
    outcome = judge_blocks(value, differences, rounding={"large": 0.0, "small": 0.0}, tolerance=1e-4)
    assert outcome.verdict == "failed"  # half a thousandth of the largest
    differences = [{"large": double(1.0), "small": double(1e-9 + 1e-12)}] * 2
    assert judge_blocks(value, differences, rounding={"large": 0.0, "small": 0.0}, tolerance=1e-4).verdict == "passed"


class Reordered(nn.Module):
    """Sums in an order that changes from call to call, as on a GPU."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        return x * (1 + self.size * torch.randn((), dtype=x.dtype))


def test_sums_in_another_order_are_no_randomness():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), Reordered(1e-14), nn.Linear(6, 2)).double()
    assert verdicts(audit(model, mean_square, normal(9, 4)))["determinism"] == "passed"


class InFloat32(Applies):
    """A kernel for float32 alone, so that the model cannot be judged in float64."""

    def forward(self, x):
        if x.dtype != torch.float32:
            raise TypeError("this kernel takes float32")
        return self.function(x)


@pytest.mark.parametrize(
    "function, test",
    [(torch.sin, None), (Reordered(1e-6), None), (FrozenSlopeSine.apply, "product"), (Noisy(), "determinism")],
    ids=["healthy", "reordered", "frozen", "random"],
)
def test_a_model_that_runs_in_float32_alone_is_judged_in_float32(function, test):
    model = nn.Sequential(nn.Linear(4, 6), InFloat32(function), nn.Linear(6, 2))
    report = audit(model, mean_square, normal(9, 4, dtype=torch.float32))
    assert report.dtype == torch.float32 and report.passed == (test is None), str(report)
    assert test is None or (verdicts(report)[test] == "failed" and report.blamed[0].startswith("1")), str(report)


def test_the_smallest_step_stays_on_one_side_of_a_kink_nearby():
    # 1e-8 from the kink: steps of 1e-5 and 1e-7 cross it.
    point = point_of(lambda w: (w * torch.relu(w - 1 + 1e-8)).sum(), w=double(1.0))
    slope = {"w": double(1.0 + 1e-8)}
    gradient, product = judge_derivatives(point, {"w": double(1.0)}, slope, {"w": double(2.0)})
    assert gradient.verdict == product.verdict == "passed"


def test_a_loss_with_a_large_constant_is_not_accused_of_its_rounding():
    report = audit(nn.Linear(4, 2).double(), lambda model, batch: mean_square(model, batch) + 1e9, normal(9, 4))
    assert verdicts(report)["gradient"] == "passed", str(report)


def test_a_steep_loss_with_little_curvature_is_not_accused_of_its_rounding():
    slopes = 1e9 * normal(2, 4, seed=3)

    def loss(model, batch):
        return mean_square(model, batch) + (slopes * model.weight.tanh()).sum() / 1e9 + (slopes * model.weight).sum()

    report = audit(nn.Linear(4, 2).double(), loss, normal(9, 4))
    assert verdicts(report)["product"] == "passed", str(report)


def test_products_that_are_zero_are_symmetric_and_their_differences_agree():
    report = audit(nn.Linear(4, 2).double(), lambda model, batch: model(batch).sum(), normal(9, 4))
    assert report.passed, str(report)


def test_where_the_derivative_cancels_along_a_direction_its_parts_set_the_scale():
    # Derivatives +1 and -1 along the direction; the differences of the loss see their sum, zero up to rounding.
    point = point_of(lambda v, w: (v * v - w * w).sum() / 2 + 1e3 * (v - w).sum(), v=double(1.0), w=double(1.0))
    slope = {"v": double(1001.0), "w": double(-1001.0)}
    direction = {"v": double(1.0), "w": double(1.0)}
    gradient, _ = judge_derivatives(point, direction, slope, None)
    assert gradient.verdict == "passed" and gradient.error < PRECISION[torch.float64].tolerance
