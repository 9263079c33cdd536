"""Losses that take derivatives, operators of other kinds, other digits, perfect fits: what the
audit says of them.
"""

import pytest
import torch
from torch import nn
from torch._higher_order_ops.associative_scan import associative_scan
from torch.nn import functional as F

import landscape
from landscape import audit
from landscape.curvature import (
    FiniteDifferenceOperator,
    Objective,
    gradient,
    select_parameters,
)
from landscape.curvature.audits import WHOLE, ZERO_TO_ROUNDING
from landscape.errors import ObjectiveError
from landscape.linalg.operator import seeded
from landscape.surface import losses_along
from landscape.surface.slices import line_losses
from tests.helpers.oracles import dense_hessian
from tests.helpers.wrong_derivatives import SavedSine, faulty


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def verdicts(report):
    return {row.test: row.verdict for row in report.rows if row.name == WHOLE}


# --- losses with derivatives inside ---------------------------------------------------------------


def physics_informed(model, batch):
    """The residual of u' = u."""
    points = batch.detach().clone().requires_grad_(True)
    u = model(points)
    (slope,) = torch.autograd.grad(u.sum(), points, create_graph=True)
    return ((slope.sum(1) - u[:, 0]) ** 2).mean()


def penalised(model, batch):
    """A gradient penalty: the loss and the squared length of its gradient by the parameters."""
    loss = model(batch).square().mean()
    pieces = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    return loss + 0.1 * torch.stack([piece.square().sum() for piece in pieces]).sum()


@pytest.fixture(params=[physics_informed, penalised], ids=["physics-informed", "gradient penalty"])
def differentiating_loss(request):
    model = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    return model, request.param, normal(8, 2)


def test_a_loss_that_takes_derivatives_passes_the_audit(differentiating_loss):
    report = audit(*differentiating_loss)
    assert report.passed, str(report)


@torch.no_grad()
def test_a_loss_that_takes_derivatives_is_evaluated_on_every_path(differentiating_loss):
    model, loss, batch = differentiating_loss
    objective, params = Objective.from_closure(model, loss), select_parameters(model)
    with torch.enable_grad():
        expected, truth = loss(model, batch).item(), dense_hessian(objective, params, batch)
    v = normal(truth.shape[0])
    assert losses_along(objective, params, [batch], v[:, None])(0.0) == pytest.approx(
        expected, rel=1e-12
    )
    along = line_losses(
        lambda m: (Objective.from_closure(m, loss), select_parameters(m)),
        model,
        model.state_dict(),
        [batch],
    )
    assert along(0.3) == pytest.approx(expected, rel=1e-12)
    assert gradient(objective, params, batch).shape == v.shape
    torch.testing.assert_close(landscape.hessian(model, loss, batch) @ v, truth @ v)
    # A central difference of gradients of size 1 is right to about 1e-8 in float64.
    torch.testing.assert_close(
        FiniteDifferenceOperator(objective, params, batch) @ v, truth @ v, rtol=1e-5, atol=1e-6
    )


def test_forward_mode_through_a_derivative_is_refused_in_words():
    model = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    H = landscape.hessian(model, physics_informed, normal(8, 2), hvp="jvp")
    # Forward mode is asked for and fails; the audit's way, double backward, is what is left.
    H @ normal(H.n)
    assert H.choice.product == "retained" and "jvp" in H.choice.reason


# --- what PyTorch raises in a second backward pass ------------------------------------------------


class _InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        y = x.clone()
        z = y * y
        y.add_(1.0)
        return 3 * z * g


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return _InPlace.apply(self.weight * x)


def test_a_backward_that_works_in_place_is_named_with_its_module():
    model = nn.Sequential(nn.Linear(4, 4), Mixer(), nn.Linear(4, 1)).double()

    def loss(model, batch):
        return model(batch).square().sum()

    report = audit(model, loss, normal(3, 4))
    assert report.faulty_modules[0] == "1 (Mixer)" and verdicts(report)["gradient"] == "passed"
    H = landscape.hessian(model, loss, normal(3, 4))
    with pytest.raises(
        ObjectiveError, match=r"^1 \(Mixer\): the backward pass of _InPlaceBackward overwrites"
    ):
        H @ normal(H.n)


def test_a_batch_that_was_changed_is_still_blamed_on_the_batch():
    model, batch = nn.Linear(3, 1).double(), normal(4, 3)
    H = landscape.hessian(model, lambda model, batch: (model(batch) ** 3).sum(), batch)
    batch.add_(1)
    with pytest.raises(ObjectiveError, match="changed in place after the operator was built"):
        H @ normal(H.n)


class AssociativeScan(nn.Module):
    """torch's scan in its default mode: the gradient by the gates is zero (torch 2.14)."""

    def forward(self, ab):
        a, b = ab.chunk(2, -1)
        return associative_scan(
            lambda p, q: (p[0] * q[0], p[1] * q[0] + q[1]), (a.sigmoid(), b), 1
        )[1]


def test_higher_order_operators_are_run_and_judged():
    model = nn.Sequential(nn.Linear(3, 4), AssociativeScan(), nn.Linear(2, 1)).double()
    report = audit(model, lambda model, batch: (model(batch) ** 3).sum(), normal(2, 4, 3))
    assert {row.test for row in report.rows if row.verdict == "failed"} == {"gradient", "product"}
    assert report.faulty_modules[0] == "1 (AssociativeScan)"


# --- digits ---------------------------------------------------------------------------------------


class Cast(nn.Module):
    """What some libraries do to logits."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, x):
        return x.to(self.dtype)


@pytest.mark.parametrize("back", [[], [Cast(torch.float64)]], ids=["to the end", "and back"])
def test_a_float64_model_with_a_float32_inside_gets_the_steps_of_float32(back):
    model = nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), Cast(torch.float32), nn.Softplus(), *back
    ).double()
    for seed in range(10):
        report = audit(
            model, lambda model, batch: model(batch).square().mean(), normal(5, 4), seed=seed
        )
        assert verdicts(report)["gradient"] == verdicts(report)["product"] == "passed", str(report)
        assert [row.test for row in report.rows if row.verdict == "failed"] == ["graph"]


def test_fewer_digits_than_float32_are_too_few_for_differences():
    model = nn.Sequential(nn.Linear(4, 6), Cast(torch.bfloat16), nn.Tanh(), Cast(torch.float32))
    report = audit(
        model, lambda model, batch: model(batch).square().mean(), normal(5, 4, dtype=torch.float32)
    )
    assert verdicts(report)["gradient"] == "undecided" and not report.passed
    assert "computed in torch.bfloat16" in next(
        row.reason for row in report.rows if row.test == "gradient"
    )


# --- perfect fits ---------------------------------------------------------------------------------


def classifier(margin, dtype):
    """A linear classifier whose smallest margin is about `margin`, and what it fits."""
    model, x = nn.Linear(20, 3).double(), normal(64, 20)
    with torch.no_grad():
        top = model(x).topk(2).values
        x = x[top[:, 0] - top[:, 1] > 0.15]
        top = model(x).topk(2).values
        model.weight.mul_(margin / (top[:, 0] - top[:, 1]).min())
        model.bias.mul_(margin)
        label = model(x).argmax(1)
    return model.to(dtype), (x.to(dtype), label)


def cross_entropy(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_no_perfect_fit_is_accused(dtype):
    found = set()
    for margin in (3, 10, 15, 20, 25, 30, 33, 40, 90, 300, 800):
        report = audit(
            *(lambda model, batch: (model, cross_entropy, batch))(*classifier(margin, dtype))
        )
        assert report.passed or report.is_zero_to_rounding, (margin, str(report))
        found.add(report.is_zero_to_rounding)
    assert found == {True, False}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_identical_pairs_have_nothing_to_test(dtype):
    # All logits are equal whatever the weights: the loss is a constant, and rounding is all that is
    # left of its derivatives.
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)).to(dtype)
    same = normal(1, 5, dtype=dtype).expand(6, 5)

    def contrastive(model, batch):
        features = F.normalize(model(batch), dim=-1)
        logits = 14 * features @ features.T
        return F.cross_entropy(logits, torch.arange(6))

    report = audit(model, contrastive, same)
    assert report.is_zero_to_rounding and not report.passed, str(report)
    assert {row.reason for row in report.rows if row.verdict != "passed"} == {ZERO_TO_ROUNDING}


@pytest.mark.parametrize("factor", [1e-20, 1.0, 1e6])
def test_a_wrong_backward_is_no_perfect_fit_whatever_the_size_of_the_loss(factor):
    for name in (
        "a straight-through estimator",
        "an opaque function that drops terms",
        "a backward that is off by a factor",
    ):
        model, loss, batch = faulty(name, 0, torch.float64)
        report = audit(model, lambda model, batch: factor * loss(model, batch), batch)
        assert report.faulty_modules[0].startswith("1 ("), (name, str(report))


class _Sine(SavedSine):
    """sin, whose backward hands what comes in to NumPy: fine for a first derivative, where nothing
    requires one of it.
    """

    @staticmethod
    def backward(ctx, g):
        return torch.from_numpy(g.numpy() * ctx.saved_tensors[0].detach().cos().numpy())


class _Broken(_Sine):
    @staticmethod
    def backward(ctx, g):
        raise ValueError("this kernel has no backward pass")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_whatever_a_backward_raises_is_a_row_and_not_an_exception(dtype):
    class Layer(nn.Module):
        def forward(self, x):
            return function.apply(x)

    model, batch = (
        nn.Sequential(nn.Linear(4, 4), Layer(), nn.Linear(4, 1)).to(dtype),
        normal(3, 4, dtype=dtype),
    )
    for function, said in ((_Sine, "hands its tensors to NumPy"), (_Broken, "no backward pass")):
        report = audit(model, lambda model, batch: model(batch).square().mean(), batch)
        assert not report.passed and any(said in row.reason for row in report.rows), str(report)
    function = _Sine
    with pytest.raises(ObjectiveError, match="hands its tensors to NumPy"):
        landscape.hessian(model, lambda model, batch: model(batch).square().mean(), batch)
