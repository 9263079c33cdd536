"""The thresholds of the audit: each is there for a case, and the case is here."""

import copy
import math

import pytest
import torch
from torch import nn

from landscape import audit
from landscape.curvature.audits import WHOLE, blame
from landscape.curvature.audits.differences import Point
from landscape.curvature.audits.judgement import asymmetry, judge_blocks, judge_derivatives
from landscape.curvature.objective import Objective
from landscape.errors import ObjectiveError
from tests.curvature.test_audit import Applies, FrozenSlopeSine, Noisy, mean_square, normal


def verdicts(report):
    return {row.test: row.verdict for row in report.rows if row.name == WHOLE}


def point_of(loss, **params):
    """A loss of named numbers as an objective at a point."""
    return Point(
        Objective(
            lambda params, batch: params, lambda params, batch: loss(**params), rowwise=False
        ),
        params,
        None,
    )


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
    assert verdicts(report)["product"] == "failed" and "1 (Applies)" in report.faulty_modules, str(
        report
    )


def test_a_block_that_is_nothing_beside_the_others_is_not_judged_by_its_own_rounding():
    value = {"large": double(1.0), "small": double(1e-9)}
    differences = [{"large": double(1.0), "small": double(1.5e-9)}] * 2
    outcome = judge_blocks(
        value, differences, rounding={"large": 0.0, "small": 0.0}, tolerance=1e-4
    )
    assert outcome.verdict == "failed"  # half a thousandth of the largest
    differences = [{"large": double(1.0), "small": double(1e-9 + 1e-11)}] * 2
    assert (
        judge_blocks(
            value, differences, rounding={"large": 0.0, "small": 0.0}, tolerance=1e-4
        ).verdict
        == "passed"
    )


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
    [
        (torch.sin, None),
        (Reordered(1e-6), None),
        (FrozenSlopeSine.apply, "product"),
        (Noisy(), "determinism"),
    ],
    ids=["healthy", "reordered", "frozen", "random"],
)
def test_a_model_that_runs_in_float32_alone_is_judged_in_float32(function, test):
    model = nn.Sequential(nn.Linear(4, 6), InFloat32(function), nn.Linear(6, 2))
    report = audit(model, mean_square, normal(9, 4, dtype=torch.float32))
    assert report.dtype == torch.float32 and report.passed == (test is None), str(report)
    assert test is None or (
        verdicts(report)[test] == "failed" and report.faulty_modules[0].startswith("1")
    ), str(report)


def test_the_smallest_step_stays_on_one_side_of_a_kink_nearby():
    # 1e-8 from the kink: steps of 1e-5 and 1e-7 cross it.
    point = point_of(lambda w: (w * torch.relu(w - 1 + 1e-8)).sum(), w=double(1.0))
    slope = {"w": double(1.0 + 1e-8)}
    gradient, product = judge_derivatives(point, {"w": double(1.0)}, slope, {"w": double(2.0)})
    assert gradient.verdict == product.verdict == "passed"


def test_a_loss_with_a_large_constant_is_not_accused_of_its_rounding():
    report = audit(
        nn.Linear(4, 2).double(), lambda model, batch: mean_square(model, batch) + 1e9, normal(9, 4)
    )
    assert verdicts(report)["gradient"] == "passed", str(report)


def test_a_steep_loss_with_little_curvature_is_not_accused_of_its_rounding():
    slopes = 1e9 * normal(2, 4, seed=3)

    def loss(model, batch):
        return (
            mean_square(model, batch)
            + (slopes * model.weight.tanh()).sum() / 1e9
            + (slopes * model.weight).sum()
        )

    report = audit(nn.Linear(4, 2).double(), loss, normal(9, 4))
    assert verdicts(report)["product"] == "passed", str(report)


@pytest.mark.parametrize("factor", [1.0, 0.0])
def test_a_loss_without_curvature_or_of_zeros_passes(factor):
    report = audit(
        nn.Linear(4, 2).double(), lambda model, batch: factor * model(batch).sum(), normal(9, 4)
    )
    assert report.passed, str(report)


def test_a_loss_that_is_random_in_its_value_alone_is_caught():
    report = audit(
        nn.Linear(4, 2).double(),
        lambda model, batch: mean_square(model, batch) + torch.rand(()),
        normal(9, 4),
    )
    assert verdicts(report)["determinism"] == "failed"


def test_a_loss_without_any_graph_is_off_by_all_of_its_derivatives():
    report = audit(
        nn.Linear(4, 2).double(),
        lambda model, batch: mean_square(model, batch).detach(),
        normal(9, 4),
    )
    rows = {row.test: row for row in report.rows}
    assert rows["gradient"].verdict == "failed" and rows["gradient"].error > 0.1, str(report)
    # The gradient is zero wherever one looks, and so is the product.
    assert rows["product"].error == 0, str(report)


def test_a_block_that_the_product_misses_altogether_has_an_error_of_one():
    outcome = judge_blocks(
        {"w": double(0.0)}, [{"w": double(3.0)}] * 2, rounding={"w": 0.0}, tolerance=1e-4
    )
    assert outcome.verdict == "failed" and outcome.error == pytest.approx(1, abs=1e-5)


def test_where_the_derivative_cancels_along_a_direction_its_parts_set_the_scale():
    # Derivatives 1 and -1, and a value of 0: what is left of the difference is its truncation and
    # rounding.
    def loss(v, w):
        return (torch.sin(v - 0.5) / math.cos(0.5) - torch.exp(w - 1) + 1 - math.tan(0.5)).sum()

    point = point_of(loss, v=double(1.0), w=double(1.0))
    gradient, _ = judge_derivatives(
        point, {"v": double(1.0), "w": double(1.0)}, {"v": double(1.0), "w": double(-1.0)}, None
    )
    assert gradient.verdict == "passed"


def test_a_tensor_of_zeros_is_moved_far_enough_for_a_fault_to_show():
    model = nn.Sequential(nn.Linear(4, 6), Applies(FrozenSlopeSine.apply), nn.Linear(6, 2)).double()
    nn.init.zeros_(model[0].bias)
    assert (
        verdicts(audit(model, mean_square, normal(9, 4), parameters="0.bias"))["product"]
        == "failed"
    )


def test_the_asymmetry_is_that_of_the_bilinear_forms_of_two_directions():
    u, v = {"w": double(1.0, 0.0)}, {"w": double(0.0, 1.0)}
    # <u, Hv> = 3 and <v, Hu> = 4; the diagonal, which cannot tell, does not count.
    assert asymmetry([u, v], [{"w": double(1e6, 4.0)}, {"w": double(3.0, 1e6)}]) == pytest.approx(
        2**0.5 / 5
    )


def test_a_random_loss_is_tested_no_further():
    report = audit(nn.Sequential(nn.Linear(4, 2), Noisy()).double(), mean_square, normal(9, 4))
    assert set(verdicts(report)) == {"determinism", "graph"}


def test_a_second_derivative_that_is_lost_in_the_models_own_type_alone_is_caught():
    def sine(x):
        return FrozenSlopeSine.apply(x) if x.dtype == torch.float32 else x.sin()

    report = audit(
        nn.Sequential(nn.Linear(4, 6), Applies(sine), nn.Linear(6, 2)),
        mean_square,
        normal(9, 4, dtype=torch.float32),
    )
    assert verdicts(report)["precision"] == "failed" and verdicts(report)["product"] == "passed", (
        str(report)
    )


def test_parameters_in_half_precision_and_autocast_are_refused():
    model, batch = nn.Linear(4, 2), normal(9, 4, dtype=torch.float32)
    with pytest.raises(ObjectiveError, match="is in torch.bfloat16"):
        audit(copy.deepcopy(model).bfloat16(), mean_square, batch.bfloat16())
    with torch.autocast("cpu"), pytest.raises(ObjectiveError, match="autocast is enabled"):
        audit(model, mean_square, batch)


def test_a_random_model_leaves_the_random_state_alone():
    model, state = nn.Sequential(nn.Linear(4, 2), Noisy()).double(), torch.get_rng_state()
    audit(model, mean_square, normal(9, 4))
    assert torch.equal(torch.get_rng_state(), state)


# --- the search for the module --------------------------------------------------------------------


def faulty_beside(part, width=6):
    """A model with a fault, so that the search begins, and a part that it must not accuse."""
    return nn.Sequential(
        nn.Linear(4, width), part, Applies(FrozenSlopeSine.apply), nn.Linear(width, 2)
    ).double()


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class TakesIndices(nn.Module):
    def forward(self, x, indices):
        indices += 1
        return x[:, indices % x.shape[1]]


class GivesIndices(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = TakesIndices()

    def forward(self, x):
        return self.inner(x, torch.tensor([0, 2, 4, 1, 3, 5]))


class Rotates(nn.Module):
    """Hands a complex tensor to a part, a lazily conjugated one."""

    def __init__(self):
        super().__init__()
        self.inner = Applies(lambda z: z.mul_(1j))

    def forward(self, x):
        return self.inner(torch.complex(x, x.square()).conj()).imag


class Attends(nn.Module):
    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(
            x[None, None], x[None, None], x[None, None]
        )[0, 0]


class ByCount(nn.Module):
    """Hands a number to a part, and no tensor."""

    def __init__(self):
        super().__init__()
        self.inner = Applies(lambda count: torch.arange(count, dtype=torch.float64))

    def forward(self, x):
        return x * self.inner(x.shape[1])


class HalfDead(nn.Module):
    """A part without any output but zeros beside one with the identity."""

    def __init__(self):
        super().__init__()
        self.dead = Applies(lambda x: torch.relu(-1 - x.square()))

    def forward(self, x):
        return x + self.dead(x)


@pytest.mark.parametrize(
    "part",
    [
        nn.ReLU(inplace=True),
        Counting(),
        GivesIndices(),
        Rotates(),
        Attends(),
        ByCount(),
        HalfDead(),
        Reordered(3e-11),
    ],
    ids=lambda part: type(part).__name__,
)
def test_healthy_parts_are_not_accused(part):
    class Faulty(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = part

        def forward(self, x):
            return FrozenSlopeSine.apply(self.part(x))

    model = nn.Sequential(nn.Linear(4, 6), Faulty(), nn.Linear(6, 2)).double()
    report = audit(model, mean_square, normal(9, 4))
    assert set(report.faulty_modules) == {"1 (Faulty)", WHOLE}, str(report)
    assert not any(module._forward_pre_hooks for module in model.modules())


class FaultyInside(nn.Module):
    """A fault that only the right way of testing a part by itself sees, or whose part cannot be
    tested by itself.
    """

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.inner = Applies(self.frozen)
        self.ready = False

    def frozen(self, x, *_):
        if self.way == "needs its model" and not self.ready:
            raise AttributeError("not ready")
        if self.way == "complex":
            return x * x.abs().detach()
        return FrozenSlopeSine.apply(x.double()).to(x.dtype)

    def forward(self, x):
        if self.way == "complex":
            return self.inner(torch.complex(x, x.square())).imag
        if self.way == "in half precision":
            return self.inner(x.bfloat16()).double()
        if self.way == "called again with zeros":
            return self.inner(x) + self.inner(0 * x)
        self.ready = True
        y = self.inner(x)
        self.ready = False
        return y


@pytest.mark.parametrize(
    "way, culprit",
    [
        ("complex", "1.inner (Applies)"),
        ("called again with zeros", "1.inner (Applies)"),
        ("needs its model", "1 (FaultyInside)"),
        ("in half precision", "1 (FaultyInside)"),
    ],
)
def test_a_fault_is_named_as_closely_as_it_can_be(way, culprit):
    report = audit(
        nn.Sequential(nn.Linear(4, 6), FaultyInside(way), nn.Linear(6, 2)).double(),
        mean_square,
        normal(9, 4),
    )
    assert culprit in report.faulty_modules, str(report)


class Overwriting(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Applies(FrozenSlopeSine.apply)

    def forward(self, x):
        y = self.inner(x)
        x.data.zero_()
        return y


def test_inputs_are_recorded_as_they_were_when_the_part_was_called():
    model = nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), Applies(lambda x: x + 0), Overwriting(), nn.Linear(6, 2)
    ).double()
    assert "3.inner (Applies)" in audit(model, mean_square, normal(9, 4)).faulty_modules


def test_inputs_of_two_types_leave_the_search_to_the_parts_around():
    class Masked(nn.Module):
        def forward(self, x, mask):
            return FrozenSlopeSine.apply(x) * mask

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.masked = Masked()

        def forward(self, x):
            return self.masked(x, torch.ones(6, dtype=torch.float32))

    model = nn.Sequential(nn.Linear(4, 6), Outer(), nn.Linear(6, 2)).double()
    assert "1 (Outer)" in audit(model, mean_square, normal(9, 4)).faulty_modules


def test_healthy_parts_are_not_searched_and_the_number_of_tests_is_bounded(monkeypatch):
    tested = []
    test = blame._test
    monkeypatch.setattr(
        blame,
        "_test",
        lambda name, *args, **options: tested.append(name) or test(name, *args, **options),
    )
    healthy = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    assert not audit(faulty_beside(healthy), mean_square, normal(9, 4)).passed
    assert tested == ["0", "1", "2", "3"]
    monkeypatch.setattr(blame, "_MAX_TESTS", 2)
    tested.clear()
    assert audit(faulty_beside(healthy), mean_square, normal(9, 4)).faulty_modules == (WHOLE,)
    assert tested == ["0", "1"]
