"""The finite-difference operator: equal to the dense Hessian within its own estimate, where only
first derivatives exist.
"""

import pytest
import torch
from torch import nn

from landscape.curvature import (
    FiniteDifferenceOperator,
    HessianOperator,
    Objective,
    select_parameters,
)
from landscape.errors import ObjectiveError
from landscape.linalg import eigsh
from tests.curvature.test_audit import Applies, OpaqueSine, mean_square, normal
from tests.helpers.oracles import dense_hessian, relative_error


def chain(function, *, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), Applies(function), nn.Linear(6, 2)).to(dtype)


def problem(function, *, dtype=torch.float64, weight_decay=0.0):
    model = chain(function, dtype=dtype)
    return Objective.from_closure(model, mean_square, weight_decay=weight_decay), select_parameters(
        model
    )


@pytest.fixture(scope="module")
def truth():
    """The dense Hessian with torch.sin, an L2 term of 0.1 included."""
    return dense_hessian(*problem(torch.sin, weight_decay=0.1), normal(9, 4))


def test_products_are_those_of_the_dense_hessian_within_the_estimate(truth):
    objective, params = problem(OpaqueSine.apply, weight_decay=0.1)
    with pytest.raises(ObjectiveError, match="cannot be differentiated"):
        HessianOperator(objective, params, normal(9, 4))
    operator = FiniteDifferenceOperator(objective, params, normal(9, 4))
    V = normal(operator.n, 5, seed=3)
    V /= V.norm(dim=0)
    errors = (operator @ V - truth @ V).norm(dim=0)
    # Differences in float64 are right to about 1e-9 here.
    assert errors.max() < 1e-7 and errors.max() <= 10 * operator.error_estimate
    assert operator.error_estimate < 1e-6
    torch.testing.assert_close(
        operator @ (7 * V[:, 0]), 7 * (operator @ V[:, 0]), rtol=1e-6, atol=1e-7
    )
    assert not (operator @ torch.zeros(operator.n, dtype=torch.float64)).any()


def test_in_float32_the_estimate_covers_the_error_and_the_bounds_cover_the_eigenvalues(truth):
    objective, params = problem(OpaqueSine.apply, dtype=torch.float32, weight_decay=0.1)
    operator = FiniteDifferenceOperator(objective, params, normal(9, 4).float())
    V = normal(operator.n, 5, seed=3).float()
    V /= V.norm(dim=0)
    errors = (operator @ V - (truth @ V.double()).float()).norm(dim=0)
    assert 0 < operator.error_estimate < 1e-2
    assert errors.max() <= 5 * operator.error_estimate
    pairs = eigsh(operator, 3, tol=1e-6)
    exact = torch.linalg.eigvalsh(truth)
    exact = exact[exact.abs().argsort(descending=True)][:3]
    assert (
        (pairs.values.double() - exact).abs() <= pairs.residuals.double() * pairs.values.abs()
    ).all()
    # No pair is certified beyond what differences can tell.
    assert not pairs.converged.any()
    assert eigsh(operator, 3, tol=2e-2).converged.all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("w", [0.0, 0.01, 1.0, 3.0])
def test_a_step_below_the_rounding_of_the_gradient_is_no_certainty(w, dtype):
    """w^4 + w, whose gradient of about 1 hides the second derivative 12 w^2 of small w."""

    class Quartic(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([w], dtype=dtype))

    model = Quartic()
    objective = Objective.from_closure(model, lambda model, batch: (model.w**4 + model.w).sum())
    operator = FiniteDifferenceOperator(
        objective, {"w": model.w.detach()}, torch.zeros(1, dtype=dtype)
    )
    assert operator.error_estimate > 0
    for factor, made in ((1.0, operator), (0.5, 0.5 * operator)):
        ritz = eigsh(made, 1).ritz
        assert abs(float(ritz.values[0]) - factor * 12 * w**2) <= float(ritz.norms[0])
        # A sign is certified only where the differences can tell it.
        assert ritz.num_positive <= (w > 0) and ritz.num_negative == 0


def test_kinks_do_not_spoil_the_step():
    objective, params = problem(torch.relu)
    exact = dense_hessian(objective, params, normal(9, 4))
    operator = FiniteDifferenceOperator(objective, params, normal(9, 4))
    v = normal(operator.n, seed=5)
    assert relative_error(operator @ v, exact @ v) < 1e-6


def test_fused_attention_needs_no_second_derivative():
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True).double().train()
    objective, params = Objective.from_closure(layer, mean_square), select_parameters(layer)
    operator = FiniteDifferenceOperator(objective, params, normal(3, 5, 4))
    v = normal(operator.n, seed=5)
    assert (
        relative_error(operator @ v, HessianOperator(objective, params, normal(3, 5, 4)) @ v) < 1e-6
    )


def test_a_step_of_ones_own_is_kept_and_a_useless_one_shows_in_the_estimate():
    objective, params = problem(torch.sin)
    operators = {
        step: FiniteDifferenceOperator(objective, params, normal(9, 4), step=step)
        for step in (1e-4, 1e-11)
    }
    assert operators[1e-4].step == 1e-4
    assert operators[1e-11].error_estimate > 1e3 * operators[1e-4].error_estimate
    for step in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="step must be positive"):
            FiniteDifferenceOperator(objective, params, normal(9, 4), step=step)


@pytest.mark.parametrize(
    "function",
    [lambda x: x * torch.sigmoid(x).detach(), lambda x: x + (x.round() - x).detach()],
    ids=["detach", "straight-through"],
)
def test_a_gradient_that_is_not_the_derivative_of_the_loss_is_refused(function):
    with pytest.raises(ObjectiveError, match="not the derivative of the loss"):
        FiniteDifferenceOperator(*problem(function), normal(9, 4))


def test_the_operator_does_not_follow_the_model_and_refuses_random_losses():
    model = chain(torch.sin)
    objective = Objective.from_closure(model, mean_square)
    operator = FiniteDifferenceOperator(objective, select_parameters(model), normal(9, 4))
    v = normal(operator.n, seed=1)
    before = operator @ v
    nn.init.zeros_(model[2].weight)
    assert torch.equal(operator @ v, before)
    with pytest.raises(ObjectiveError, match="random"):
        FiniteDifferenceOperator(*problem(lambda x: x + torch.randn_like(x)), normal(9, 4))


# --- edges ----------------------------------------------------------------------------------------


def plain(loss):
    """A loss of a vector, without a module."""
    return Objective(lambda params, batch: params["w"], lambda w, batch: loss(w), rowwise=False)


def at(*values, dtype=torch.float64):
    return {"w": torch.tensor(values, dtype=dtype)}


def test_an_objective_without_a_module_and_a_block_without_vectors_are_taken():
    operator = FiniteDifferenceOperator(plain(lambda w: (w**3).sum()), at(1.0, 2.0), None)
    exact = torch.diag(torch.tensor([6.0, 12.0], dtype=torch.float64))
    assert relative_error(operator @ torch.eye(2, dtype=torch.float64), exact) < 1e-6
    with_zero = torch.tensor([[0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    assert relative_error(operator @ with_zero, exact @ with_zero) < 1e-6
    assert (operator @ torch.zeros(2, 0, dtype=torch.float64)).shape == (2, 0)


def test_a_loss_without_curvature_has_products_of_zero_and_one_without_a_slope_is_refused():
    operator = FiniteDifferenceOperator(plain(lambda w: (3 * w).sum()), at(1.0, 2.0), None)
    assert not (operator @ torch.ones(2, dtype=torch.float64)).any()
    with pytest.raises(ObjectiveError, match="gradient is exactly zero"):
        FiniteDifferenceOperator(
            plain(lambda w: (w - w.detach()).square().sum()), at(1.0, 2.0), None
        )


class Off(torch.autograd.Function):
    """The identity with a gradient that is off by a fraction."""

    @staticmethod
    def forward(ctx, w, fraction):
        ctx.fraction = fraction
        return w.clone()

    @staticmethod
    def backward(ctx, g):
        return (1 + ctx.fraction) * g, None


@pytest.mark.parametrize(
    "dtype, small, large",
    [(torch.float64, 1e-4, 1e-2), (torch.float32, 2e-3, 0.2)],
    ids=["float64", "float32"],
)
def test_a_gradient_may_miss_the_slope_by_what_differences_cannot_tell(dtype, small, large):
    params = at(0.5, 1.0, dtype=dtype)
    FiniteDifferenceOperator(plain(lambda w: Off.apply(w, small).sin().sum()), params, None)
    with pytest.raises(ObjectiveError, match="not the derivative of the loss"):
        FiniteDifferenceOperator(plain(lambda w: Off.apply(w, large).sin().sum()), params, None)


def test_a_product_that_is_not_finite_is_refused():
    operator = FiniteDifferenceOperator(
        plain(lambda w: 1e3 * w[0] + 1e-3 * w[1].sqrt()), at(1.0, 1e-3), None, step=1e-2
    )
    with pytest.raises(ObjectiveError, match="A difference of gradients is not finite"):
        operator @ torch.tensor([0.0, 1.0], dtype=torch.float64)


def test_the_estimate_knows_the_error_along_the_gradient():
    # Curved along the gradient alone, of which a random direction has a hundredth.
    objective, params = (
        plain(lambda w: w[0] ** 5 + w[1:].square().sum()),
        {"w": torch.zeros(10_000, dtype=torch.float64)},
    )
    params["w"][0] = 1.0
    coarse, fine = (
        FiniteDifferenceOperator(objective, params, None, step=step) for step in (0.02, 0.01)
    )
    along = torch.zeros(10_000, dtype=torch.float64)
    along[0] = 1.0
    assert coarse.error_estimate >= 0.99 * float((coarse @ along - fine @ along).norm()) > 0


def test_the_loss_has_its_l2_term_and_is_one_number():
    objective, params = problem(torch.sin, weight_decay=0.1)
    plain_loss = FiniteDifferenceOperator(*problem(torch.sin), normal(9, 4)).loss
    squares = sum(float(tensor.detach().square().sum()) for tensor in params.values())
    assert FiniteDifferenceOperator(objective, params, normal(9, 4)).loss == pytest.approx(
        plain_loss + 0.05 * squares
    )
    with pytest.raises(ObjectiveError, match="must be one real number"):
        FiniteDifferenceOperator(plain(lambda w: w.sin()[:1]), at(1.0, 2.0), None)


def test_parameters_captured_outside_the_model_are_refused_by_name():
    model = chain(torch.sin)
    captured = model[0].bias
    objective = Objective.from_closure(
        model, lambda model, batch: mean_square(model, batch) + captured.square().sum()
    )
    with pytest.raises(
        ObjectiveError, match=r"^0\.bias: the loss uses this parameter other than through"
    ):
        FiniteDifferenceOperator(objective, select_parameters(model), normal(9, 4))
