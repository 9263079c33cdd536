"""Edges of the guards: where a refusal begins and ends, whom the search accuses, and what is left
behind.
"""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.modules import module as modules

import landscape
from landscape import audit
from landscape.curvature import HessianOperator, Objective, hessian, select_parameters
from landscape.curvature.audits import WHOLE, blame
from landscape.curvature.audits import spot_check as spot_check_module
from landscape.curvature.guards import check_twice_differentiable, explanations, nodes
from landscape.curvature.guards.preconditions import check_same_loss
from landscape.curvature.hvp.evaluation import value_of
from landscape.errors import ObjectiveError
from tests.curvature.test_audit import Applies, FrozenSlopeSine, OpaqueSine, mean_square, normal
from tests.curvature.test_audit_bounds import scaled_sine
from tests.curvature.test_audit_conditions import Mixer
from tests.curvature.test_audit_guards import TakesIndices


def network(middle, width=6):
    return nn.Sequential(nn.Linear(4, width), middle, nn.Linear(width, 2)).double()


# --- the search for the module --------------------------------------------------------------------


class Behind(nn.Module):
    """A faulty layer behind another part."""

    def __init__(self, part, function=FrozenSlopeSine.apply):
        super().__init__()
        self.part, self.fault = part, Applies(function)

    def forward(self, x):
        return self.fault(self.part(x))


def test_a_maximum_of_zeros_behind_a_relu_is_not_accused():
    for seed in range(3):
        middle = nn.Sequential(nn.ReLU(), Behind(nn.MaxPool1d(3, stride=1, padding=1)))
        report = audit(network(middle), mean_square, normal(9, 4), seed=seed)
        assert set(report.faulty_modules) == {"1.1.fault (Applies)", WHOLE}, str(report)


class FrozenSlopeLog(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.slope = 1 / x.detach()
        return x.log()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.slope


def test_a_fault_at_the_border_of_what_a_part_takes_is_named():
    # Moved by a hundredth of their size, the small numbers would have no logarithm.
    def numbers(x):
        return (1 + x.tanh() / 2) * torch.tensor([1, 1e-3, 1, 1e-3, 1, 1e-3], dtype=x.dtype)

    report = audit(
        network(Behind(Applies(numbers), FrozenSlopeLog.apply)), mean_square, normal(9, 4)
    )
    assert set(report.faulty_modules) == {"1.fault (Applies)", WHOLE}, str(report)


def test_a_part_that_is_not_called_or_called_in_two_places_is_tested_never_or_once(monkeypatch):
    tested = []
    test = blame._test
    monkeypatch.setattr(
        blame,
        "_test",
        lambda name, *args, **options: tested.append(name) or test(name, *args, **options),
    )

    class Twice(nn.Module):
        def __init__(self, shared):
            super().__init__()
            self.shared, self.unused = shared, nn.Linear(3, 3)
            self.fault = Applies(FrozenSlopeSine.apply)

        def forward(self, x):
            return self.fault(self.shared(x))

    # What fails is examined once more, next to its inputs.
    examined = []
    examine = blame._examined
    monkeypatch.setattr(
        blame,
        "_examined",
        lambda title, *args, **how: examined.append(title) or examine(title, *args, **how),
    )
    shared = nn.Linear(6, 6)
    model = nn.Sequential(nn.Linear(4, 6), Twice(shared), Twice(shared), nn.Linear(6, 2)).double()
    assert not audit(model, mean_square, normal(9, 4)).passed
    expected = [
        "0",
        "1",
        "1",
        "1.shared",
        "1.fault",
        "1.fault",
        "2",
        "2",
        "2.fault",
        "2.fault",
        "3",
    ]
    assert [title.split()[0] for title in examined] == expected
    assert tested == ["0", "1", "1.shared", "1.fault", "2", "2.fault", "3"]


class FaultyTimes(nn.Module):
    def forward(self, x, factor):
        return factor * FrozenSlopeSine.apply(x), 0 * x, torch.arange(3), "no tensor"


class Chooses(nn.Module):
    """A part that writes into the indices it gets, one that gets a number alone, and a faulty one
    with outputs of all kinds.
    """

    def __init__(self):
        super().__init__()
        self.take, self.fault = TakesIndices(), FaultyTimes()
        self.count = Applies(lambda count: torch.arange(count, dtype=torch.float64))

    def forward(self, x):
        return self.fault(self.take(x, torch.tensor([0, 2, 4, 1, 3, 5])), 2)[0] * self.count(6)


def test_numbers_and_indices_are_handed_to_a_part_as_they_were():
    assert audit(network(Chooses()), mean_square, normal(9, 4)).faulty_modules == (
        "1.fault (FaultyTimes)",
        WHOLE,
    )


def test_a_part_that_takes_complex_numbers_gets_them():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = Applies(lambda z: torch.view_as_real(z) * torch.view_as_real(z).detach())

        def forward(self, x):
            return self.parts(torch.complex(x, x.square())).sum(-1)

    assert (
        audit(network(Turned()), mean_square, normal(9, 4)).faulty_modules[0] == "1.parts (Applies)"
    )


class Table(nn.Module):
    """A faulty function of its own parameters: what comes in is no number that can be
    differentiated.
    """

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(normal(5, 4))

    def forward(self, rows):
        return FrozenSlopeSine.apply(self.weight)[rows]


def test_a_fault_in_a_function_of_parameters_alone_is_named():
    model = nn.Sequential(Table(), nn.Linear(4, 2)).double()
    assert audit(model, mean_square, torch.tensor([3, 0, 1])).faulty_modules == ("0 (Table)", WHOLE)


# --- what is raised in a second backward pass -----------------------------------------------------


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        ctx.save_for_backward(y)
        return y * y

    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


class _OverwritesWhatAFunctionSaved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        y = ctx.saved_tensors[0].clone()
        z = _Square.apply(y)
        y.add_(1.0)
        return 3 * z * g


class SquareMixer(Mixer):
    def forward(self, x):
        return _OverwritesWhatAFunctionSaved.apply(self.weight * x)


@pytest.mark.parametrize("mixer", [Mixer, SquareMixer])
def test_a_backward_that_overwrites_is_named_beside_unused_parameters_and_where_warnings_are_errors(
    mixer,
):
    model = nn.ModuleDict(
        {"unused": nn.Linear(2, 2), "mixer": mixer(), "head": nn.Linear(4, 1)}
    ).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        H = hessian(
            model,
            lambda model, batch: model["head"](model["mixer"](batch)).square().sum(),
            normal(3, 4),
        )
        with pytest.raises(
            ObjectiveError, match=r"^mixer \(\w+\): the backward pass of \w+ overwrites"
        ):
            H @ normal(H.n)


def test_only_an_error_about_something_overwritten_starts_the_search_for_it():
    asked = []
    with pytest.raises(ObjectiveError, match="no second derivative in PyTorch"):
        with explanations.explained_errors(lambda: asked.append(0)):
            raise RuntimeError("derivative for aten::thing is not implemented")
    assert not asked


def test_an_operation_that_refuses_to_show_what_it_saved_is_not_accused():
    class Freed:
        @property
        def _saved_self(self):
            raise RuntimeError("Trying to access saved tensors after they have already been freed.")

    assert not explanations._reads_what_was_overwritten(Freed())


# --- the graph ------------------------------------------------------------------------------------


def test_a_gradient_of_zeros_may_be_detached():
    class Staircase(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.round()

        @staticmethod
        def backward(ctx, g):
            return torch.zeros_like(g).detach()

    model, batch = network(Applies(lambda x: x.sin() + Staircase.apply(x))), normal(9, 4)
    H = hessian(model, mean_square, batch)
    H @ normal(H.n)
    assert H.checked.startswith("operator checked: product within ")


def test_the_rows_of_a_table_are_those_that_all_outputs_look_up():
    table, other = torch.ones(6, 2, requires_grad=True), torch.ones(6, 2, requires_grad=True)
    first, second = (
        nn.functional.embedding(torch.tensor(rows), table) for rows in ([4, 1], [1, 2])
    )
    looked_up = nodes.rows_looked_up([first, second * other[:2]], {"table": table, "other": other})
    assert {name: rows.tolist() for name, rows in looked_up.items()} == {"table": [1, 2, 4]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_digits_of_complex_numbers_are_those_of_their_parts(dtype):
    w = torch.ones(2, dtype=dtype, requires_grad=True)
    assert nodes.coarsest_type(torch.complex(w, w).abs().sum(), dtype) == dtype


def test_no_hooks_are_left_whatever_happens():
    for function in (torch.sin, OpaqueSine.apply, FrozenSlopeSine.apply):
        audit(network(Applies(function)), mean_square, normal(9, 4))
    assert not modules._global_forward_hooks and not modules._global_forward_pre_hooks


# --- losses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype, loss, noise, is_same",
    [
        (torch.float64, 1.0, 1e-13, True),
        (torch.float64, 1.0, 2e-12, False),
        (torch.float64, 1e6, 1e-7, True),
        (torch.float64, 1e-9, 1e-13, True),
        (torch.float32, 1.0, 5e-5, True),
        (torch.float32, 1.0, 1e-3, False),
    ],
)
def test_two_evaluations_may_differ_by_a_thousand_roundings_of_a_loss_or_of_one(
    dtype, loss, noise, is_same
):
    if is_same:
        check_same_loss(loss, loss + noise, dtype=dtype)
    else:
        with pytest.raises(ObjectiveError, match="The loss is random"):
            check_same_loss(loss, loss + noise, dtype=dtype)


def test_a_value_carries_no_graph_and_one_that_is_no_tensor_is_handed_on():
    model, batch = network(nn.Tanh()), normal(9, 4)
    params = select_parameters(model)
    assert not value_of(Objective.from_closure(model, mean_square), params, batch).requires_grad
    number = Objective.from_closure(model, lambda model, batch: mean_square(model, batch).item())
    assert value_of(number, params, batch) == mean_square(model, batch).item()


# --- dropout by name ------------------------------------------------------------------------------


class DropsNothing(nn.Module):
    """Called after dropping, with numbers in it that are no rates."""

    def __init__(self):
        super().__init__()
        self.p, self.momentum = 0.0, 0.1
        self.drop_rate, self.drop_last, self.droplets = None, True, 7

    def forward(self, x):
        return x


def test_what_is_called_drop_and_is_no_rate_is_no_dropout():
    check_twice_differentiable(nn.Sequential(DropsNothing()).train())


# --- the check of the first product ---------------------------------------------------------------


def test_what_was_checked_is_remembered_up_to_a_number(monkeypatch):
    monkeypatch.setattr(spot_check_module, "_MAX_REMEMBERED", 3)
    model, made = network(nn.Tanh()), []
    compared = spot_check_module._compared
    monkeypatch.setattr(
        spot_check_module, "_compared", lambda first: made.append(0) or compared(first)
    )

    def multiply(power):
        H = landscape.hessian(
            model, lambda model, batch: model(batch).abs().pow(power).mean(), normal(9, 4)
        )
        H @ normal(H.n)

    for power in (2, 3, 2, 3, 4):
        multiply(power)
    assert len(made) == 3
    multiply(5)
    assert len(spot_check_module._by_model[id(model)][1]) == 1


def test_what_was_forgotten_is_checked_again(monkeypatch):
    model, made = network(nn.Tanh()), []
    compared = spot_check_module._compared
    monkeypatch.setattr(
        spot_check_module, "_compared", lambda first: made.append(0) or compared(first)
    )
    for again in (False, False, True):
        if again:
            spot_check_module.forget(model)
        H = landscape.hessian(model, mean_square, normal(9, 4))
        H @ normal(H.n)
    assert len(made) == 2


def test_in_float32_a_twentieth_is_too_much():
    H = landscape.hessian(
        network(Applies(scaled_sine(1.05))).float(), mean_square, normal(9, 4, dtype=torch.float32)
    )
    with pytest.raises(ObjectiveError, match=r"^1 \(Applies\): gradient failed"):
        H @ normal(H.n, dtype=torch.float32)


def test_in_float32_the_finest_stairs_are_seen():
    class FineStairs(nn.Module):
        def forward(self, x):
            return x + ((4096 * x).round() / 4096 - x).detach()

    H = landscape.hessian(
        network(FineStairs()).float(), mean_square, normal(9, 4, dtype=torch.float32)
    )
    with pytest.raises(ObjectiveError, match=r"^1 \(FineStairs\): gradient failed"):
        H @ normal(H.n, dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_chunks_are_checked_without_an_evaluation_of_the_whole_batch(dtype):
    rows = []

    def forward(params, batch):
        rows.append(len(batch))
        return torch.func.functional_call(model, params, (batch,))

    model = network(nn.Tanh()).to(dtype)
    model[1].unused = nn.Parameter(torch.ones(1, dtype=dtype))
    objective = Objective(forward, lambda features, batch: features.square().mean(), module=model)
    H = HessianOperator(objective, select_parameters(model), normal(8, 4, dtype=dtype), rows=3)
    rows.clear()
    H @ normal(H.n, dtype=dtype)
    assert H.checked.startswith("operator checked: product within ") and max(rows) < 8
