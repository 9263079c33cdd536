"""What the audit says where kernels fail, memory runs out, fits are perfect, or the model is there
in one type alone.
"""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from landscape import audit
from landscape.curvature import Objective, select_parameters
from landscape.curvature.audits import WHOLE, ZERO_TO_ROUNDING, audit_at, examination
from landscape.curvature.audits.judgement import Outcome
from landscape.errors import MemoryLimitError, ObjectiveError
from tests.curvature.test_audit import Applies, FrozenSlopeSine, OpaqueSine, mean_square, normal
from tests.curvature.test_audit_conditions import Mixer
from tests.curvature.test_audit_guards import double, verdicts
from tests.helpers.wrong_derivatives import SavedSine


def single(*shape, seed=0):
    return normal(*shape, seed=seed, dtype=torch.float32)


def network(middle, dtype=torch.float64):
    return nn.Sequential(nn.Linear(4, 6), middle, nn.Linear(6, 2)).to(dtype)


# --- kernels that fail ----------------------------------------------------------------------------


def failing_sine(message, *, when, error=RuntimeError, dtype=None):
    """sin with a kernel that fails in its first backward pass, where a graph of that is wanted, or
    in the second one.
    """

    class Second(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.cos()

        @staticmethod
        def backward(ctx, g):
            raise error(message)

    class Sine(SavedSine):
        @staticmethod
        def backward(ctx, g):
            if when == "first" or (when == "with a graph" and torch.is_grad_enabled()):
                raise error(message)
            return g * Second.apply(ctx.saved_tensors[0])

    return lambda x: Sine.apply(x) if dtype in (None, x.dtype) else x.sin()


@pytest.mark.parametrize("message", ["kernel: no such shape", "kernel failed\nat line 3", ""])
@pytest.mark.parametrize(
    "when, test", [("first", "gradient"), ("with a graph", "product"), ("second", "product")]
)
def test_a_kernel_that_fails_is_a_row_and_its_module_is_named(message, when, test):
    report = audit(network(Applies(failing_sine(message, when=when))), mean_square, normal(9, 4))
    rows = {row.test: row for row in report.rows if row.name == WHOLE}
    assert rows[test].verdict == "failed" and message.partition("\n")[0] in rows[test].reason, str(
        report
    )
    assert "\n" not in rows[test].reason
    assert (rows["graph"].verdict == "failed") == (when != "second"), str(report)
    assert report.faulty_modules == ("1 (Applies)", WHOLE)


@pytest.mark.parametrize("when", ["with a graph", "second"])
def test_a_kernel_that_fails_in_the_models_own_type_alone_is_a_row(when):
    model = network(
        Applies(failing_sine("kernel failed", when=when, dtype=torch.float32)), torch.float32
    )
    report = audit(model, mean_square, single(9, 4))
    failed = [row for row in report.rows if row.verdict == "failed"]
    assert (
        failed[0].name == WHOLE
        and failed[0].reason == "The loss cannot be differentiated: kernel failed"
    ), str(report)


@pytest.mark.parametrize("error", [TypeError, NotImplementedError])
def test_a_backward_that_does_not_take_float64_leaves_the_model_to_be_judged_in_float32(error):
    function = failing_sine("float32 alone", when="first", error=error, dtype=torch.float64)
    report = audit(network(Applies(function), torch.float32), mean_square, single(9, 4))
    assert report.passed and report.dtype == torch.float32, str(report)


@pytest.mark.parametrize("when", ["first", "with a graph", "second"])
def test_memory_that_runs_out_is_no_fault_of_the_model(when):
    function = failing_sine("no memory left", when=when, error=torch.OutOfMemoryError)
    # In a model that is refused products are made without an operator.
    for middle in (nn.Identity(), Applies(OpaqueSine.apply), nn.BatchNorm1d(6)):
        middle = nn.Sequential(Applies(function), nn.Linear(6, 6), middle)
        with pytest.raises((torch.OutOfMemoryError, MemoryLimitError)):
            audit(network(middle), mean_square, normal(9, 4))


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError])
def test_what_goes_wrong_only_once_is_told_as_it_is(error):
    calls = []

    class Sine(SavedSine):
        @staticmethod
        def backward(ctx, g):
            calls.append(0)
            if len(calls) == 1:
                raise error("this once")
            return g * ctx.saved_tensors[0].cos()

    model = network(Applies(Sine.apply))
    if error is RuntimeError:
        rows = audit(model, mean_square, normal(9, 4)).rows
        assert [(row.name, row.test, row.reason) for row in rows] == [
            (WHOLE, "gradient", "this once")
        ]
    else:
        with pytest.raises(error, match="this once"):
            audit(model, mean_square, normal(9, 4))


@pytest.mark.parametrize("where", ["__init__", "__matmul__"])
def test_an_operator_that_runs_out_of_memory_ends_the_audit(where, monkeypatch):
    class Operator(examination.UncheckedHessian):
        pass

    def run_out(self, *args, **options):
        if where == "__init__" or self.dtype == torch.float32:
            raise torch.OutOfMemoryError("no memory left")
        return examination.UncheckedHessian.__mro__[1].__matmul__(self, *args, **options)

    monkeypatch.setattr(Operator, where, run_out)
    monkeypatch.setattr(examination, "UncheckedHessian", Operator)
    dtype = torch.float64 if where == "__init__" else torch.float32
    with pytest.raises(torch.OutOfMemoryError):
        audit(network(nn.Tanh(), dtype), mean_square, normal(9, 4, dtype=dtype))


def test_a_loss_that_even_its_own_operator_cannot_take_is_refused_by_graph_and_gradient():
    def overwritten(x):
        y = x.exp()
        return y.mul_(2)

    rows = audit(network(Applies(overwritten)), mean_square, normal(9, 4)).rows
    assert [(row.test, row.verdict) for row in rows[:2]] == [
        ("graph", "failed"),
        ("gradient", "failed"),
    ]
    assert all("inplace" in row.reason for row in rows[:2])


# --- objectives without a module, and models in one type alone ------------------------------------


def plain(loss):
    return Objective(
        lambda params, batch: params["w"], lambda w, batch: loss(w).sum(), rowwise=False
    )


def test_without_a_module_the_whole_loss_is_blamed():
    report = audit_at(
        plain(lambda w: FrozenSlopeSine.apply(w).square()), {"w": double(1.0, 0.5)}, None
    )
    assert report.faulty_modules == (WHOLE,) and verdicts(report)["product"] == "failed"


def float32_cases():
    yield plain(torch.sin), {"w": double(1.0).float()}, None
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).eval()
    labelled = {"x": single(9, 4), "label": torch.arange(9) % 3, "power": 2}

    def loss(model, batch):
        return F.cross_entropy(model(batch["x"]), batch["label"]) ** batch["power"]

    yield Objective.from_closure(model, loss), select_parameters(model), labelled
    linear = nn.Linear(4, 2)
    forward = Objective(
        lambda params, batch: torch.func.functional_call(linear, params, (batch,)),
        lambda outputs, batch: outputs.square().mean(),
        module=linear,
    )
    yield forward, select_parameters(linear), single(9, 4)


@pytest.mark.parametrize(
    "case", range(3), ids=["no module", "buffers and labels", "not to be rebound"]
)
def test_what_can_be_judged_in_float64_is(case):
    report = audit_at(*list(float32_cases())[case])
    assert (
        report.passed
        and report.dtype == torch.float64
        and verdicts(report)["precision"] == "passed"
    ), str(report)


def test_a_refused_model_is_judged_in_float64_and_one_that_stays_in_float32_as_it_is():
    assert (
        audit(network(Applies(OpaqueSine.apply), torch.float32), mean_square, single(9, 4)).dtype
        == torch.float64
    )
    both = nn.Sequential(Applies(lambda x: x.float().to(x.dtype)), Applies(OpaqueSine.apply))
    assert audit(network(both, torch.float32), mean_square, single(9, 4)).dtype == torch.float32


def test_a_loss_without_curvature_passes_in_float32_too():
    report = audit(nn.Linear(4, 2), lambda model, batch: model(batch).sum(), single(9, 4))
    assert report.passed and verdicts(report)["precision"] == "passed", str(report)


@pytest.mark.parametrize(
    "function, operators", [(torch.sin, 2), (OpaqueSine.apply, 1)], ids=["healthy", "refused"]
)
def test_an_operator_is_made_once_in_each_type(function, operators, monkeypatch):
    made = []
    make = examination.UncheckedHessian
    monkeypatch.setattr(
        examination,
        "UncheckedHessian",
        lambda *args, **options: made.append(0) or make(*args, **options),
    )
    audit(network(Applies(function), torch.float32), mean_square, single(9, 4))
    assert len(made) == operators


# --- perfect fits ---------------------------------------------------------------------------------


def fitted(size, *, cancels=True, wrong_in_float32=1.0):
    """A loss of some size near its parameters and of about 1 nat far from them, where terms of 1
    cancel or not.
    """

    def loss(w):
        factor = wrong_in_float32 if w.dtype == torch.float32 else 1.0
        near = size * torch.sin(factor * w)
        return ((1 + near) - 1 if cancels else near) + F.relu((w - 1).abs() - 0.1)

    return plain(loss)


def test_a_loss_that_cancels_passes_as_long_as_its_derivatives_are_above_rounding():
    assert audit_at(fitted(1e-8), {"w": double(1.0)}, None).passed
    report = audit_at(fitted(2e-10), {"w": double(1.0)}, None)
    assert report.is_zero_to_rounding, str(report)
    # What needs no allowance is left as it is.
    assert verdicts(report) == {
        "determinism": "passed",
        "graph": "passed",
        "gradient": "undecided",
        "product": "passed",
        "symmetry": "passed",
    }


@pytest.mark.parametrize(
    "size, factor, verdict",
    [
        (1e-9, 1.0, "passed"),
        (1e-9, 1.01, "passed"),
        (1e-9, 1.2, "undecided"),
        (1e-5, 1.2, "failed"),
    ],
    ids=["a fit that is right", "a fit to a hundredth", "a fit that nobody can judge", "no fit"],
)
def test_float32_is_excused_by_a_perfect_fit_and_by_nothing_else(size, factor, verdict):
    report = audit_at(
        fitted(size, cancels=False, wrong_in_float32=factor), {"w": double(1.0).float()}, None
    )
    assert verdicts(report)["precision"] == verdict, str(report)
    assert (ZERO_TO_ROUNDING in {row.reason for row in report.rows}) == (verdict == "undecided")


# --- verdicts -------------------------------------------------------------------------------------


def half_frozen_sine(share):
    """sin, whose second backward pass forgets a share of what came into the first."""

    class Sine(SavedSine):
        @staticmethod
        def backward(ctx, g):
            return ((1 - share) * g + share * g.detach()) * ctx.saved_tensors[0].cos()

    return Sine.apply


@pytest.mark.parametrize("share, verdict", [(2e-5, "passed"), (3e-3, "failed")])
def test_products_are_symmetric_to_a_ten_thousandth(share, verdict):
    rows = {
        row.test: row
        for row in audit(network(Applies(half_frozen_sine(share))), mean_square, normal(9, 4)).rows
    }
    assert (
        rows["symmetry"].verdict == verdict and 0.01 * share < rows["symmetry"].error < 10 * share
    )


@pytest.mark.parametrize(
    "verdicts_along, verdict, error, reason",
    [
        (("passed", "passed"), "passed", 0.2, ""),
        (("undecided", "passed"), "passed", 0.2, ""),
        (
            ("failed", "passed"),
            "failed",
            0.1,
            "the gradient is not the derivative of the loss: .*worst for w",
        ),
        (
            ("undecided", "undecided"),
            "undecided",
            0.2,
            "the differences do not settle.*worst for w",
        ),
        (("undecided", "failed"), "failed", 0.2, "the gradient is not the derivative"),
    ],
)
def test_a_kink_along_one_direction_is_excused_by_another_and_a_fault_is_not(
    verdicts_along, verdict, error, reason
):
    first, second = verdicts_along
    row = examination._row("gradient", [Outcome(0.1, first, "w"), Outcome(0.2, second, "w")])
    assert (row.verdict, row.error) == (verdict, error)
    assert row.reason == "" if not reason else re.search(reason, row.reason)


def test_no_test_of_a_module_that_was_refused_is_reported_twice():
    model = nn.Sequential(nn.Linear(4, 4), Mixer(), nn.Linear(4, 1)).double()
    rows = audit(model, mean_square, normal(3, 4)).rows
    assert len({(row.name, row.test) for row in rows}) == len(rows)


def test_parameters_are_checked_before_anything_is_evaluated():
    with pytest.raises(ObjectiveError, match="No parameters were given"):
        audit_at(plain(torch.sin), {}, None)
