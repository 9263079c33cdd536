"""Sharpness from a few passes against closed forms on quadratics, dense Hessians and exhaustive
maxima; and the model, which must stay as it was.
"""

import copy
import itertools
import math
import random
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import landscape
from landscape.curvature import Objective, select_parameters
from landscape.linalg import seeded
from tests.helpers.oracles import dense_hessian, plain_gradient

DOUBLE = torch.float64
SIZE = 6


class Quadratic(nn.Module):
    """x H x / 2 + 1 over two parameters; H has the given eigenvalues."""

    def __init__(self, eigenvalues, seed=3):
        super().__init__()
        generator = seeded(seed)
        self.head = nn.Parameter(torch.randn(2, generator=generator, dtype=DOUBLE))
        self.rest = nn.Parameter(torch.randn(SIZE - 2, generator=generator, dtype=DOUBLE))
        Q = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=DOUBLE))[0]
        self.H = Q @ torch.tensor(eigenvalues, dtype=DOUBLE).diag() @ Q.T

    @property
    def x(self):
        return torch.cat([self.head, self.rest])

    def forward(self):
        return 0.5 * self.x @ self.H @ self.x + 1


CONVEX = (0.2, 0.3, 0.5, 1.0, 1.5, 4.0)
INDEFINITE = (-2.0, -0.5, 0.1, 0.3, 1.0, 3.0)


def value(model, batch):
    return model()


def gradient_of(model):
    return (model.H @ model.x).detach()


def descent(model, rate):
    """The update of gradient descent."""
    step = -rate * gradient_of(model)
    return landscape.Update({"head": step[:2], "rest": step[2:]}, rate)


def net(seed=0, **options):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(**options)


def batch(count=20, dtype=DOUBLE):
    generator = seeded(1)
    inputs = torch.randn(count, 5, generator=generator, dtype=DOUBLE).to(dtype)
    return inputs, torch.randint(3, (count,), generator=generator)


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


# --- the critical sharpness -----------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1e-3, 0.1, 0.7, 30.0])
@pytest.mark.parametrize("seed", [3, 4, 5])
def test_critical_sharpness_of_descent_on_a_quadratic_is_a_rayleigh_quotient(rate, seed):
    model = Quadratic(CONVEX, seed)
    g = gradient_of(model)
    exact = float(g @ model.H @ g / (g @ g))
    measured = landscape.critical_sharpness(model, value, None, descent(model, rate))
    # Differences of losses near 1 have an absolute rounding of 1e-16; changes are 1e-4 or more.
    assert measured.value == pytest.approx(exact, rel=1e-9)
    assert measured.low < exact < measured.high and measured.converged
    assert measured.high - measured.low <= measured.high / 16 * (1 + 1e-12)
    assert measured.num_losses <= 8


def test_both_ends_of_the_bracket_are_losses_that_anyone_can_evaluate_again():
    model, rate = net(dtype=DOUBLE), 0.5
    loss(model, batch()).backward()
    update = landscape.next_update(torch.optim.SGD(model.parameters(), lr=rate), model)
    measured = landscape.critical_sharpness(model, loss, batch(), update, tol=1e-2)
    before = loss(model, batch()).item()

    def after(rate):
        moved = {
            name: tensor + rate / update.rate * update.displacement[name]
            for name, tensor in model.named_parameters()
        }
        scores = torch.func.functional_call(model, moved, (batch()[0],)).detach().log_softmax(1)
        return -float(scores[range(20), batch()[1]].mean())

    assert after(2 / measured.high) < before < after(2 / measured.low)
    assert measured.high - measured.low <= 1e-2 * measured.high
    crossing = brentq(lambda rate: after(rate) - before, 2 / measured.high, 2 / measured.low)
    assert measured.value == pytest.approx(2 / crossing, rel=1e-2)
    assert measured.change == pytest.approx(after(update.rate) - before, rel=1e-12)
    for tried, change in zip(measured.rates, measured.changes):
        assert change == pytest.approx(after(tried) - before, rel=1e-9)


def test_critical_sharpness_of_adam_bounds_its_preconditioned_sharpness_on_a_quadratic():
    model = Quadratic(CONVEX)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.0, 0.999), eps=1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        model().backward()
        optimizer.step()
    H = landscape.hessian(model, value, None)
    A = landscape.preconditioned(H, optimizer)
    # Without momentum the direction is -P^-1 g, with the P of the last step.
    direction = -(A.scales**2) * gradient_of(model)
    update = landscape.Update({"head": direction[:2], "rest": direction[2:]}, 1.0)
    measured = landscape.critical_sharpness(model, value, None, update)
    scales = A.scales.diag()
    largest = float(torch.linalg.eigvalsh(scales @ model.H @ scales)[-1])
    y = A.scales * gradient_of(model)
    assert measured.value == pytest.approx(float(y @ scales @ model.H @ scales @ y / (y @ y)))
    assert 0.3 * largest < measured.value <= largest


def test_a_loss_that_is_flat_for_long_and_then_steep_is_bracketed_all_the_same():
    class Valley(nn.Module):
        def __init__(self):
            super().__init__()
            self.x = nn.Parameter(torch.ones(1, dtype=DOUBLE))

    def steep(model, batch):
        # Falls to 1e-5 within 10 steps, and rises above its first value, 1, after 1000 of them.
        return (torch.exp(-(1 - model.x)) + ((1 - model.x) / 1000) ** 12).sum()

    update = landscape.Update({"x": torch.full((1,), -1.0, dtype=DOUBLE)}, 1.0)
    measured = landscape.critical_sharpness(Valley(), steep, None, update)
    assert measured.converged and measured.num_losses <= 22
    assert measured.low < 2 / 1000 < measured.high


def test_a_step_uphill_has_no_rate_at_which_the_loss_falls():
    model = Quadratic(CONVEX)
    uphill = landscape.Update({n: -d for n, d in descent(model, 0.1).displacement.items()}, 0.1)
    measured = landscape.critical_sharpness(model, value, None, uphill)
    assert measured.high == math.inf and math.isnan(measured.value) and not measured.converged
    assert measured.low == 2 / measured.rates[0] and measured.num_losses <= 24


def test_a_direction_along_which_the_loss_only_falls_has_no_rate_at_which_it_rises():
    model = Quadratic((-1.0,) * SIZE)
    measured = landscape.critical_sharpness(model, value, None, descent(model, 0.1))
    assert measured.low == 0 and math.isnan(measured.value) and not measured.converged


def test_a_loss_that_overflows_counts_as_higher():
    class Wall(nn.Module):
        def __init__(self):
            super().__init__()
            self.x = nn.Parameter(torch.ones(1, dtype=DOUBLE))

    def walled(model, batch):
        return (1 - (1 - model.x).clamp(min=0) - 0.5 * torch.log(2.5 - (1 - model.x))).sum()

    # Along -1 the loss falls until x = -1.5, where the logarithm ends: NaN beyond.
    update = landscape.Update({"x": torch.full((1,), -1.0, dtype=DOUBLE)}, 1.0)
    measured = landscape.critical_sharpness(Wall(), walled, None, update, tol=1e-3)
    assert 2 / measured.high <= 2.5 and measured.converged


def guarded(limit):
    """A loss that raises where the scores are large, as a user's own check would."""

    def function(model, batch):
        scores = model(batch[0])
        if not scores.abs().max() < limit:
            raise RuntimeError("scores exploded")
        return nn.functional.cross_entropy(scores, batch[1])

    return function


def test_a_point_at_which_the_loss_raises_counts_as_higher():
    model = net(dtype=DOUBLE)
    loss(model, batch()).backward()
    update = landscape.next_update(torch.optim.SGD(model.parameters(), lr=0.5), model)
    free = landscape.critical_sharpness(model, loss, batch(), update)

    def largest_score(rate):
        moved = {
            name: tensor + rate / update.rate * update.displacement[name]
            for name, tensor in model.named_parameters()
        }
        return float(torch.func.functional_call(model, moved, (batch()[0],)).detach().abs().max())

    # A wall halfway to where the loss rises: scores grow along the step.
    wall = 1 / free.value
    limit = largest_score(wall)
    measured = landscape.critical_sharpness(model, guarded(limit), batch(), update)
    assert measured.converged and 2 / measured.high < wall <= 2 / measured.low
    assert any(math.isnan(change) for change in measured.changes)


def test_a_loss_that_raises_at_the_parameters_themselves_is_an_error():
    model = net(dtype=DOUBLE)
    loss(model, batch()).backward()
    update = landscape.next_update(torch.optim.SGD(model.parameters(), lr=0.5), model)
    with pytest.raises(RuntimeError, match="scores exploded"):
        landscape.critical_sharpness(model, guarded(0), batch(), update)


def test_memory_that_runs_out_along_a_step_is_no_rise():
    model = Quadratic(CONVEX)
    calls = []

    def hungry(model, batch):
        calls.append(1)
        if len(calls) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return model()

    with pytest.raises(torch.OutOfMemoryError):
        landscape.critical_sharpness(model, hungry, None, descent(model, 0.1))


@pytest.mark.parametrize("num_steps", [1, 20])
def test_an_ascent_stays_where_the_loss_is_a_number(num_steps):
    model = net(dtype=DOUBLE)
    limit = 1.05 * float(model(batch()[0]).detach().abs().max())
    measured = landscape.sam_sharpness(
        model, guarded(limit), batch(), radius=3.0, num_steps=num_steps
    )
    assert math.isnan(measured.first) and math.isfinite(measured.value)
    assert (measured.value > 0) == (num_steps > 1)


def test_changes_within_rounding_move_no_end():
    model = Quadratic(CONVEX).float()
    model.H = model.H.float()
    model.forward = lambda: 0.5 * model.x @ model.H @ model.x + 1000.0
    update = landscape.Update(
        {n: d.float() for n, d in descent(model, 0.1).displacement.items()}, 0.1
    )
    measured = landscape.critical_sharpness(model, value, None, update, tol=1e-4)
    # Losses of 1000 in float32 have a spacing of 6e-5: differences below 1e-3 say nothing.
    assert measured.noise == pytest.approx(8 * 2.0**-23 * measured.loss)
    by_rate = dict(zip(measured.rates, measured.changes))
    ends = [
        min(by_rate, key=lambda rate: abs(rate - 2 / end)) for end in (measured.low, measured.high)
    ]
    assert all(abs(by_rate[rate]) > measured.noise for rate in ends)
    assert not measured.converged
    g = gradient_of(model).double()
    assert measured.low < float(g @ model.H.double() @ g / (g @ g)) < measured.high


def test_a_part_of_what_the_update_moves_is_refused():
    model = Quadratic(CONVEX)
    update = descent(model, 0.1)
    with pytest.raises(ValueError) as error:
        landscape.critical_sharpness(model, value, None, update, parameters=["head"])
    one_line(error, "rest", "parameters")
    # The same step with the rest held in place is a step of the head.
    held = {"head": update.displacement["head"], "rest": torch.zeros(SIZE - 2, dtype=DOUBLE)}
    measured = landscape.critical_sharpness(
        model, value, None, landscape.Update(held, 0.1), parameters=["head"]
    )
    g, d = gradient_of(model)[:2], held["head"] / 0.1
    exact = -float(d @ model.H[:2, :2] @ d / (g @ d))
    assert measured.value == pytest.approx(exact, rel=1e-9)


# --- the update and the curvature along it --------------------------------------------------------

OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=0.1),
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    "AdamW": partial(torch.optim.AdamW, lr=1e-2),
    "RMSprop": partial(torch.optim.RMSprop, lr=1e-2, momentum=0.5),
    "NAdam": partial(torch.optim.NAdam, lr=1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_next_update_is_the_step_that_the_optimizer_then_takes(name):
    model = net(dtype=DOUBLE)
    optimizer = OPTIMIZERS[name](model.parameters())
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    for _ in range(4):
        optimizer.zero_grad()
        loss(model, batch()).backward()
        optimizer.step()
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    update = landscape.next_update(optimizer, model)
    assert len(calls) == 4
    optimizer.step()
    for name, tensor in model.named_parameters():
        assert torch.equal(update.displacement[name], tensor.detach() - before[name])


def test_gradients_may_be_given_and_parameters_without_one_stay():
    model = net(dtype=DOUBLE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    given = {"0.weight": torch.ones(7, 5, dtype=DOUBLE)}
    update = landscape.next_update(optimizer, model, given)
    # One subtraction of numbers of size 1.
    torch.testing.assert_close(
        update.displacement["0.weight"], -0.5 * given["0.weight"], rtol=0, atol=1e-15
    )
    assert not any(
        tensor.any() for name, tensor in update.displacement.items() if name != "0.weight"
    )
    assert all(parameter.grad is None for parameter in model.parameters())


class Scaled(torch.optim.SGD):
    """An optimizer with an attribute that its class has too, and one of its own."""

    scale = 1.0

    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.scale, self.counts = 5.0, {}

    @torch.no_grad()
    def step(self, closure=None):
        self.counts["steps"] = self.counts.get("steps", 0) + 1
        for parameter in self.param_groups[0]["params"]:
            parameter.add_(parameter.grad, alpha=-self.param_groups[0]["lr"] * self.scale)


def test_the_update_of_an_optimizer_with_attributes_of_its_own_is_its_real_step():
    model = net(dtype=DOUBLE)
    optimizer = Scaled(model.parameters(), 0.1)
    loss(model, batch()).backward()
    before = model[0].weight.detach().clone()
    update = landscape.next_update(optimizer, model)
    assert not optimizer.counts and torch.equal(model[0].weight, before)
    optimizer.step()
    assert torch.equal(update.displacement["0.weight"], model[0].weight.detach() - before)


def test_a_scheduler_does_not_hinder_the_update_and_does_not_see_it():
    model = net(dtype=DOUBLE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    loss(model, batch()).backward()
    before = model[0].weight.detach().clone()
    update = landscape.next_update(optimizer, model)
    assert torch.equal(model[0].weight, before) and not hasattr(optimizer, "_opt_called")
    optimizer.step()
    scheduler.step()
    assert torch.equal(update.displacement["0.weight"], model[0].weight.detach() - before)


def test_the_next_update_draws_nothing_and_runs_no_hook_of_all_optimizers():
    class Noisy(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure=None):
            for parameter in self.param_groups[0]["params"]:
                parameter.add_(torch.randn_like(parameter))
            super().step()

    model, calls = net(dtype=DOUBLE), []
    optimizer = Noisy(model.parameters(), lr=0.1)
    loss(model, batch()).backward()
    handles = [
        register_optimizer_step_pre_hook(lambda *_: calls.append("before")),
        register_optimizer_step_post_hook(lambda *_: calls.append("after")),
    ]
    try:
        drawn = torch.get_rng_state()
        landscape.next_update(optimizer, model)
        assert torch.equal(torch.get_rng_state(), drawn) and not calls
        optimizer.step()
        assert set(calls) == {"before", "after"}
    finally:
        for handle in handles:
            handle.remove()


def clipped(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: nn.utils.clip_grad_norm_(model.parameters(), 1e-3))
    return optimizer


def patched(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.step = lambda closure=None: None
    return optimizer


class NeedsClosure(torch.optim.SGD):
    def step(self, closure=None):
        assert closure is not None, "needs a closure"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (clipped, ("SGD", "hooks", "Update(")),
        (patched, ("SGD", "step()", "Update(")),
        (lambda model: NeedsClosure(model.parameters(), lr=0.1), ("NeedsClosure", "a closure")),
    ],
)
def test_an_update_that_cannot_be_known_is_refused_in_one_line(make, words):
    model = net(dtype=DOUBLE)
    optimizer = make(model)
    loss(model, batch()).backward()
    with pytest.raises(ValueError) as error:
        landscape.next_update(optimizer, model)
    text = str(error.value)
    assert "\n" not in text and all(word in text for word in words), text


def descended(num_steps):
    """A network in float32 after some steps of gradient descent, its gradients, and its batch."""
    model, data = net(dtype=torch.float32), batch(dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(num_steps + 1):
        optimizer.zero_grad()
        loss(model, data).backward()
        optimizer.step()
    return model, data


@pytest.mark.parametrize("rate", [0.5, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("num_steps", [0, 20, 60])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_the_critical_sharpness_in_float32_is_that_of_float64_at_any_rate(kind, num_steps, rate):
    narrow, data = descended(num_steps)
    wide = copy.deepcopy(narrow).double()
    both = []
    for model, inputs in ((narrow, data[0]), (wide, data[0].double())):
        for own, parameter in zip(model.parameters(), narrow.parameters()):
            own.grad = parameter.grad.to(own)
        update = landscape.next_update(kind(model.parameters(), lr=rate), model)
        both.append(landscape.critical_sharpness(model, loss, (inputs, data[1]), update))
    first, second = both
    assert second.converged
    # Brackets of one number overlap.
    assert first.low <= second.high and second.low <= first.high and first.converged


class Float32Only(torch.optim.SGD):
    """An optimizer with a kernel for one type, as those in half of all extensions are."""

    def step(self, closure=None):
        if any(p.dtype != torch.float32 for p in self.param_groups[0]["params"]):
            raise RuntimeError("no kernel")
        super().step()


def test_a_step_in_few_bits_that_is_mostly_rounding_is_refused():
    model, _ = descended(20)
    update = landscape.next_update(Float32Only(model.parameters(), lr=0.1), model)
    for name, parameter in model.named_parameters():
        # Half a unit of rounding of weights of size 1.
        assert (update.displacement[name] + 0.1 * parameter.grad).abs().max() < 1e-7
    with pytest.raises(ValueError) as error:
        landscape.next_update(Float32Only(model.parameters(), lr=1e-6), model)
    one_line(error, "Float32Only", "torch.float32", "learning rate")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_directional_sharpness_is_the_quotient_of_a_dense_hessian(name):
    model = net(dtype=DOUBLE)
    optimizer = OPTIMIZERS[name](model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        loss(model, batch()).backward()
        optimizer.step()
    update = landscape.next_update(optimizer, model)
    measured = landscape.directional_sharpness(model, loss, batch(), update)
    objective, params = Objective.from_closure(model, loss), select_parameters(model)
    H = dense_hessian(objective, params, batch())
    g = plain_gradient(objective, params, batch())
    u = torch.cat([update.displacement[name].reshape(-1) for name in params])
    exact = float(u @ H @ u / (u @ u))
    assert abs(measured.value - exact) <= measured.rounding < 1e-13
    assert measured.length == pytest.approx(float(u.norm()), rel=1e-14)
    assert measured.predicted_change == pytest.approx(float(g @ u + 0.5 * u @ H @ u), rel=1e-12)
    assert measured.critical == pytest.approx(float(-u @ H @ u / (g @ u * update.rate)), rel=1e-12)
    values = torch.linalg.eigvalsh(H)
    assert values[0] <= measured.value <= values[-1]


def test_the_predicted_change_is_that_of_the_loss_to_third_order():
    model = net(dtype=DOUBLE)
    objective, params = Objective.from_closure(model, loss), select_parameters(model)
    g = plain_gradient(objective, params, batch())
    errors = []
    for rate in (0.04, 0.02):
        pieces = torch.split(-rate * g, [tensor.numel() for tensor in params.values()])
        step = {name: piece.view_as(params[name]) for name, piece in zip(params, pieces)}
        update = landscape.Update(step, rate)
        predicted = landscape.directional_sharpness(
            model, loss, batch(), update, estimate_rounding=False
        )
        after = objective({name: params[name] + step[name] for name in params}, batch())
        errors.append(float(after - objective(params, batch())) - predicted.predicted_change)
        assert math.isnan(predicted.rounding)
    # Halving the step divides an error of third order by 8.
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.05)


def test_the_rounding_in_float32_covers_the_difference_to_float64():
    covered = []
    for seed in range(12):
        wide = net(seed, dtype=DOUBLE).float().double()
        narrow = net(seed, dtype=DOUBLE).float()
        step = {
            name: torch.randn(tensor.shape, generator=seeded(seed)).double()
            for name, tensor in wide.named_parameters()
        }
        data = batch(dtype=torch.float32)
        exact = landscape.directional_sharpness(
            wide, loss, (data[0].double(), data[1]), landscape.Update(step, 1.0)
        )
        measured = landscape.directional_sharpness(narrow, loss, data, landscape.Update(step, 1.0))
        covered.append(abs(measured.value - exact.value) <= measured.rounding)
        assert measured.rounding < 1e-4 * abs(measured.value)
    assert sum(covered) >= 11


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_steps", [300, 900])
def test_the_rounding_in_float32_covers_the_difference_to_float64_near_a_fit(seed, num_steps):
    model, data, wide, wide_data = fitted(seed, num_steps)
    step = {
        name: torch.randn(p.shape, generator=seeded(seed)) for name, p in wide.named_parameters()
    }
    measured = landscape.directional_sharpness(model, loss, data, landscape.Update(step, 1.0))
    objective, params = Objective.from_closure(wide, loss), select_parameters(wide)
    H = dense_hessian(objective, params, wide_data)
    u = torch.cat([step[name].double().reshape(-1) for name in params])
    exact = float(u @ H @ u / (u @ u))
    assert abs(measured.value - exact) <= 3 * measured.rounding
    assert measured.rounding < 0.05 * abs(exact)


def test_a_model_that_stays_in_float32_has_a_rounding_all_the_same():
    class Narrow(nn.Linear):
        def forward(self, x):
            if self.weight.dtype != torch.float32:
                raise TypeError("no kernel")
            return super().forward(x)

    torch.manual_seed(0)
    model, data = Narrow(5, 3), batch(dtype=torch.float32)
    step = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    measured = landscape.directional_sharpness(model, loss, data, landscape.Update(step, 1.0))
    assert 0 < measured.rounding < 1e-4


# --- the highest loss in a region -----------------------------------------------------------------


def highest_in_ball(H, g, radius):
    """The maximum of g.x + x H x / 2 over |x| <= radius: (mu - H) x = g with mu above all
    eigenvalues and |x| = radius, or a point inside.
    """
    values, vectors = np.linalg.eigh(H.numpy())
    c = vectors.T @ g.numpy()
    assert values[-1] > 0, "the maximum is on the sphere where H is not negative definite"
    low = values[-1] + abs(c[-1]) / radius * (1 - 1e-12)
    high = values[-1] + np.linalg.norm(c) / radius
    mu = brentq(lambda mu: np.linalg.norm(c / (mu - values)) - radius, low, high, xtol=1e-14)
    y = c / (mu - values)
    return float(c @ y + 0.5 * values @ y**2)


@pytest.mark.parametrize("eigenvalues", [CONVEX, INDEFINITE])
@pytest.mark.parametrize("radius", [0.05, 1.0, 20.0])
def test_the_rise_in_a_ball_is_a_lower_bound_that_more_steps_bring_to_the_maximum(
    eigenvalues, radius
):
    model = Quadratic(eigenvalues)
    g = gradient_of(model)
    exact = highest_in_ball(model.H, g, radius)
    measured = landscape.sam_sharpness(model, value, None, radius=radius)
    e = radius * g / g.norm()
    assert measured.first == pytest.approx(float(g @ e + 0.5 * e @ model.H @ e), rel=1e-9)
    assert measured.num_gradients == 1 and measured.num_losses == 3
    more = landscape.sam_sharpness(model, value, None, radius=radius, num_steps=60)
    ulps = 1e-13 * (1 + exact)
    assert 0 <= measured.value <= more.value <= exact + ulps
    assert more.value == pytest.approx(exact, rel=1e-3)
    for result in (measured, more):
        assert result.reach == pytest.approx(radius, rel=1e-12)
        at = gradient_of(model) @ result.offset + 0.5 * result.offset @ model.H @ result.offset
        assert result.value == pytest.approx(float(at), rel=1e-9)


@pytest.mark.parametrize("eigenvalues", [CONVEX, INDEFINITE])
@pytest.mark.parametrize("epsilon", [1e-3, 0.3])
def test_the_rise_in_a_box_is_a_lower_bound_of_the_highest_corner(eigenvalues, epsilon):
    model = Quadratic(eigenvalues)
    g, units = gradient_of(model), epsilon * (model.x.detach().abs() + 1)
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=SIZE)), dtype=DOUBLE) * units
    exact = float((corners @ g + 0.5 * (corners @ model.H * corners).sum(1)).max())
    measured = landscape.keskar_sharpness(model, value, None, epsilon=epsilon)
    # A corner need not be the maximum where H has negative curvature along an edge.
    slack = 0.0 if eigenvalues is CONVEX else 0.5 * 2.0 * float(units @ units)
    assert 0 < measured.value <= exact + slack + 1e-13
    assert measured.value >= (0.999 if epsilon < 0.1 else 0.8) * exact
    assert measured.reach <= epsilon * (1 + 1e-10)
    assert measured.relative == pytest.approx(100 * measured.value / (1 + model().item()))


def test_at_a_minimum_the_ascent_begins_in_a_random_direction():
    model = Quadratic(CONVEX)
    with torch.no_grad():
        model.head.zero_(), model.rest.zero_()
    measured = landscape.sam_sharpness(model, value, None, radius=0.1, num_steps=80)
    assert measured.value == pytest.approx(0.5 * CONVEX[-1] * 0.01, rel=1e-3)
    again = landscape.sam_sharpness(model, value, None, radius=0.1, num_steps=80)
    assert torch.equal(measured.offset, again.offset)


def test_a_concave_loss_is_climbed_by_shorter_steps():
    model = Quadratic(tuple(-value for value in CONVEX))
    # The maximum, 1, lies at zero, well inside of the ball.
    measured = landscape.sam_sharpness(model, value, None, radius=20.0, num_steps=400)
    exact = 1 - model().item()
    assert measured.first < 0 and 0.9 * exact < measured.value <= exact
    single = landscape.sam_sharpness(model, value, None, radius=20.0)
    assert single.value == 0 and not single.offset.any() and single.first == measured.first


def fitted(seed, num_steps):
    """A network in float32 after some steps of Adam, its copy in float64, and both batches."""
    model, data = net(seed, dtype=torch.float32), batch(dtype=torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss(model, data).backward()
        optimizer.step()
    return model, data, copy.deepcopy(model).double(), (data[0].double(), data[1])


@pytest.mark.parametrize("size", [0.1, 1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("num_steps", [0, 300, 900])
@pytest.mark.parametrize("seed", range(3))
def test_the_rise_in_float32_is_a_lower_bound_of_that_in_float64(seed, num_steps, size):
    model, data, wide, wide_data = fitted(seed, num_steps)
    centre = nn.utils.parameters_to_vector(model.parameters()).detach()
    before = loss(wide, wide_data).item()
    for name, probe, units in (
        ("radius", landscape.sam_sharpness, None),
        ("epsilon", landscape.keskar_sharpness, centre.double().abs() + 1),
    ):
        measured = probe(model, loss, data, num_steps=10, **{name: size})
        # The point that was evaluated, as float32 rounds it.
        point = (centre + measured.offset).double()
        moved = point - centre.double()
        reach = moved.norm() if units is None else (moved.abs() / units).max()
        nn.utils.vector_to_parameters(point, wide.parameters())
        after = loss(wide, wide_data).item()
        nn.utils.vector_to_parameters(centre.double(), wide.parameters())
        # 64 units of rounding of a loss in float64.
        assert measured.value <= max(after - before, 0) + 64 * 2.0**-52 * after
        assert float(reach) <= size * (1 + 1e-15) and measured.reach <= size
        assert measured.noise > 0


def test_a_rise_below_rounding_is_zero_and_says_so():
    model = Quadratic(CONVEX).float()
    model.H = model.H.float()
    model.forward = lambda: 0.5 * model.x @ model.H @ model.x + 1000.0
    measured = landscape.sam_sharpness(model, value, None, radius=1e-5)
    # Losses of 1000 in float32 have a spacing of 6e-5; the rise is 1e-5 of a gradient near 1.
    assert measured.value == 0 and measured.noise == pytest.approx(8 * 2.0**-23 * measured.loss)
    assert "rounding 0.001" in str(measured)


# --- what a probe leaves as it was ----------------------------------------------------------------


class Watched(nn.Module):
    """A network with buffers, frozen parts, and a generator that its loss draws from."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.layer, self.norm, self.out = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.drop = nn.Dropout(0.5)
        self.out.bias.requires_grad_(False)
        self.double().eval()

    def forward(self, x):
        torch.rand(3), np.random.random(), random.random()
        return self.out(self.drop(torch.tanh(self.norm(self.layer(x)))))


def state(model, optimizer):
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    numbers = str(optimizer.state_dict())
    return tensors, grads, modes, torch.get_rng_state(), numbers


def probes(model, optimizer, function):
    update = landscape.next_update(optimizer, model)
    yield lambda: landscape.next_update(optimizer, model)
    trained = {"parameters": ["layer.*", "norm.*", "out.weight"]}
    yield lambda: landscape.critical_sharpness(model, function, batch(), update, **trained)
    yield lambda: landscape.directional_sharpness(model, function, batch(), update, **trained)
    yield lambda: landscape.sam_sharpness(model, function, batch(), num_steps=3)
    yield lambda: landscape.keskar_sharpness(model, function, batch(), num_steps=3)


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("breaks", [False, True])
def test_a_probe_leaves_the_model_as_it_was_even_where_the_loss_raises(number, breaks):
    model = Watched()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loss(model, batch()).backward()
    optimizer.step()
    calls = []

    def function(model, batch):
        calls.append(1)
        if breaks and len(calls) == 3:
            raise KeyboardInterrupt
        return loss(model, batch)

    probe = list(probes(model, optimizer, function))[number]
    tensors, grads, modes, drawn, numbers = state(model, optimizer)
    kept = {name: None if grad is None else grad.clone() for name, grad in grads.items()}
    if breaks and number:
        with pytest.raises(KeyboardInterrupt):
            probe()
    else:
        probe()
    after = state(model, optimizer)
    assert all(torch.equal(after[0][name], tensor) for name, tensor in tensors.items())
    for name, grad in after[1].items():
        assert grad is grads[name] and (grad is None or torch.equal(grad, kept[name]))
    assert after[2] == modes and torch.equal(after[3], drawn) and after[4] == numbers
    assert not calls or number


# --- refusals -------------------------------------------------------------------------------------


def one_line(error, *words):
    text = str(error.value)
    assert "\n" not in text and all(word in text for word in words), text


STEP = {"head": torch.ones(2, dtype=DOUBLE), "rest": torch.ones(SIZE - 2, dtype=DOUBLE)}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: landscape.critical_sharpness(
            m, value, None, landscape.Update(STEP, 1.0), tol=0.0), ("tol", "0.0")),
        (lambda m: landscape.critical_sharpness(
            m, value, None, landscape.Update(STEP, 1.0), max_losses=3), ("max_losses", "3")),
        (lambda m: landscape.critical_sharpness(
            m, value, None, landscape.Update({"head": STEP["head"]}, 1.0)), ("rest", "none")),
        (lambda m: landscape.directional_sharpness(
            m, value, None, landscape.Update({**STEP, "rest": torch.ones(3)}, 1.0)),
         ("rest", "(3,)")),
        (lambda m: landscape.critical_sharpness(
            m, value, None, landscape.Update({n: 0 * s for n, s in STEP.items()}, 1.0)), ("zero",)),
        (lambda m: landscape.critical_sharpness(
            m, value, None, landscape.Update({n: s * math.nan for n, s in STEP.items()}, 1.0)),
         ("NaN",)),
        (lambda m: landscape.Update(STEP, 0.0), ("rate", "0.0")),
        (lambda m: landscape.sam_sharpness(m, value, None, radius=0.0), ("radius", "0.0")),
        (lambda m: landscape.sam_sharpness(m, value, None, num_steps=0), ("num_steps", "0")),
        (lambda m: landscape.keskar_sharpness(m, value, None, epsilon=math.inf),
         ("epsilon", "inf")),
        (lambda m: landscape.next_update(torch.optim.SGD(m.parameters(), lr=0.1), m),
         ("gradient", "backward()")),
        (lambda m: landscape.next_update(torch.optim.SGD(net().parameters(), lr=0.1), m),
         ("no parameter", "Quadratic")),
        (lambda m: landscape.next_update(m, m), ("torch.optim.Optimizer", "Quadratic")),
        (lambda m: landscape.next_update(torch.optim.LBFGS(m.parameters()), m, STEP),
         ("LBFGS", "closure")),
    ],
)  # fmt: skip
def test_wrong_input_is_refused_in_one_line(call, words):
    with pytest.raises(ValueError) as error:
        call(Quadratic(CONVEX))
    one_line(error, *words)


def test_a_random_loss_and_train_mode_are_refused():
    def noisy(model, batch):
        return loss(model, batch) + 0.01 * torch.rand((), dtype=DOUBLE)

    model = net(dtype=DOUBLE)
    with pytest.raises(landscape.curvature.objective.ObjectiveError) as error:
        landscape.sam_sharpness(model, noisy, batch())
    one_line(error, "random")
    with pytest.raises(landscape.curvature.objective.ObjectiveError) as error:
        landscape.keskar_sharpness(Watched().train(), loss, batch())
    one_line(error, "eval()")


@pytest.mark.parametrize("margin", [100, 150])
def test_near_a_fit_the_critical_sharpness_in_float32_is_that_in_float64(margin):
    """Losses of 1e-8 and 1e-12, of which float32 has no or few digits: 1 + exp(-17) rounds."""
    for seed in range(4):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
        x = torch.randn(64, 8)
        labels = model(x).argmax(1)
        with torch.no_grad():
            model[2].weight.mul_(margin), model[2].bias.mul_(margin)
            gaps = model(x).topk(2, dim=1).values.diff(dim=1).abs()[:, 0]
        x, labels = x[gaps > 0.15 * margin], labels[gaps > 0.15 * margin]

        def loss(model, batch):
            return nn.functional.cross_entropy(model(batch[0]), batch[1])

        wide = copy.deepcopy(model).double()
        loss(wide, (x.double(), labels)).backward()
        displacement = {name: -0.1 * tensor.grad for name, tensor in wide.named_parameters()}
        update = landscape.Update(displacement, 0.1)
        exact = landscape.critical_sharpness(wide, loss, (x.double(), labels), update)
        critical = landscape.critical_sharpness(model, loss, (x, labels), update)
        assert critical.converged and critical.is_exact and exact.is_exact
        assert critical.low <= exact.high and exact.low <= critical.high
        # A zero of a secant within a bracket of 1/16.
        assert critical.value == pytest.approx(exact.value, rel=0.02)


def nearly_fitted(residual):
    """A network in float32, its batch, both in float64, and a step of gradient descent."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    wide = copy.deepcopy(model).double()
    x = torch.randn(24, 8)
    with torch.no_grad():
        y = (wide(x.double()) + residual * torch.randn(24, 1).double()).float()
    wide_data = x.double(), y.double()
    squared_error(wide, wide_data).backward()
    update = landscape.next_update(torch.optim.SGD(wide.parameters(), lr=0.01), wide)
    return model, (x, y), wide, wide_data, update


def squared_error(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


@pytest.mark.parametrize("residual", [1e-6, 1e-7])
def test_near_a_fit_the_rounding_of_the_points_does_not_move_the_bracket(residual):
    """Steps of 1e-7, which weights in float32 round by as much."""
    model, data, wide, wide_data, update = nearly_fitted(residual)
    exact = landscape.critical_sharpness(wide, squared_error, wide_data, update)
    critical = landscape.critical_sharpness(model, squared_error, data, update)
    assert critical.converged and critical.is_exact
    # So near to the minimum the loss is a quadratic, which has one crossing.
    assert critical.low <= exact.value <= critical.high
    assert critical.value == pytest.approx(exact.value, rel=0.02)


def test_memory_that_runs_out_in_float64_is_no_rise_of_the_loss():
    model, data, _, _, update = nearly_fitted(1e-7)
    plain = landscape.critical_sharpness(model, squared_error, data, update)
    num_wide = 0

    def scarce(model, batch):
        nonlocal num_wide
        value = squared_error(model, batch)
        num_wide += value.dtype == torch.float64
        # After the first losses in float64, which ask for a search there.
        if num_wide > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return value

    critical = landscape.critical_sharpness(model, scarce, data, update)
    assert num_wide > 4 and plain.is_exact and not critical.is_exact


def test_what_float64_cannot_check_is_said():
    class OnlySingle(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            assert x.dtype == torch.float32
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    batch = torch.randn(16, 3), torch.randn(16, 1)

    def loss(model, batch):
        return (OnlySingle.apply(model(batch[0])) - batch[1]).square().mean()

    loss(model, batch).backward()
    update = landscape.next_update(torch.optim.SGD(model.parameters(), lr=0.1), model)
    assert not landscape.critical_sharpness(model, loss, batch, update).is_exact
