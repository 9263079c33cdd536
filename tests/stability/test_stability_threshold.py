"""Thresholds against real runs of torch's optimizers on quadratics: just below they converge, just
above they diverge.
"""

import math
from functools import partial

import pytest
import torch
from torch import nn

import landscape
from landscape.linalg import seeded
from landscape.stability import OptimizerState, threshold_of

DOUBLE = torch.float64
RATE = 1e-2
SIZE, NEAR = 6, 1e-4
# The second moments stay as they are: of the squares of the gradients 1e-15 enters. Runs start so
# near to the minimum that this is nothing until they have gone a thousand times as far.
STILL = 1 - 1e-15
Adam, AdamW, RMSprop, SGD = (
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.RMSprop,
    torch.optim.SGD,
)

CASES = {
    "gradient descent": (partial(SGD, lr=RATE), 2 / RATE),
    "heavy ball": (partial(SGD, lr=RATE, momentum=0.9), 3.8 / RATE),
    "dampened": (partial(SGD, lr=RATE, momentum=0.7, dampening=0.4), 3.4 / (0.6 * RATE)),
    "as an average": (partial(SGD, lr=RATE, momentum=0.9, dampening=0.9), 38 / RATE),
    "nesterov": (partial(SGD, lr=RATE, momentum=0.9, nesterov=True), 3.8 / (2.8 * RATE)),
    "L2": (partial(SGD, lr=RATE, momentum=0.5, weight_decay=20.0), 3 / RATE),
    "Adam": (partial(Adam, lr=RATE, betas=(0.9, STILL)), 38 / RATE),
    "Adam with less momentum": (partial(Adam, lr=RATE, betas=(0.4, STILL)), 2.8 / (0.6 * RATE)),
    "Adam without momentum": (partial(Adam, lr=RATE, betas=(0.0, STILL)), 2 / RATE),
    "amsgrad": (partial(Adam, lr=RATE, betas=(0.9, STILL), amsgrad=True), 38 / RATE),
    "Adam with L2": (partial(Adam, lr=RATE, betas=(0.9, STILL), weight_decay=20.0), 38 / RATE),
    "AdamW": (partial(AdamW, lr=RATE, betas=(0.9, STILL), weight_decay=0.0), 38 / RATE),
    "RMSprop": (partial(RMSprop, lr=RATE, alpha=STILL), 2 / RATE),
    "RMSprop with momentum": (partial(RMSprop, lr=RATE, alpha=STILL, momentum=0.6), 3.2 / RATE),
}


class Quadratic(nn.Module):
    """Half of x H x over two parameters, where H is random with eigenvalues from 0.3 to 1, times a
    factor.
    """

    def __init__(self):
        super().__init__()
        generator = seeded(3)
        self.head = nn.Parameter(torch.randn(2, generator=generator, dtype=DOUBLE))
        self.rest = nn.Parameter(torch.randn(SIZE - 2, generator=generator, dtype=DOUBLE))
        Q = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=DOUBLE))[0]
        self.H = Q @ torch.linspace(0.3, 1.0, SIZE, dtype=DOUBLE).diag() @ Q.T
        self.sign = 1.0

    @property
    def x(self):
        return torch.cat([self.head, self.rest])

    def forward(self, _):
        return self.sign * 0.5 * self.x @ self.H @ self.x


def loss(model, batch):
    return model(batch)


def prepared(make, *, rates=(RATE, RATE)):
    """A quadratic and an optimizer whose second moments have long been stationary."""
    model = Quadratic()
    optimizer = make([{"params": [model.head]}, {"params": [model.rest]}])
    for group, rate in zip(optimizer.param_groups, rates):
        group["lr"] = rate
    model.sign = -1.0 if optimizer.param_groups[0]["maximize"] else 1.0
    start = [tensor.detach().clone() for tensor in (model.head, model.rest)]
    loss(model, None).backward()
    optimizer.step()
    with torch.no_grad():
        # From moments of nothing the first step of RMSprop is enormous.
        for tensor, before in zip((model.head, model.rest), start):
            tensor.copy_(NEAR * before)
    generator = seeded(4)
    for state in optimizer.state.values():
        for key in state:
            if key in ("exp_avg_sq", "max_exp_avg_sq", "square_avg"):
                # The same for both, or amsgrad would keep the larger.
                state[key] = torch.rand(state[key].shape, generator=seeded(5), dtype=DOUBLE) + 0.1
            elif key == "step":
                # So many that no bias is left to correct, and one more is the same number.
                state[key] = torch.tensor(1e18)
            elif state[key] is not None:
                state[key].copy_(
                    NEAR * torch.randn(state[key].shape, generator=generator, dtype=DOUBLE)
                )
    return model, optimizer


def preconditioned_matrix(model, optimizer):
    A = landscape.preconditioned(
        landscape.hessian(model, loss, torch.zeros(1), check=False), optimizer
    )
    return A @ torch.eye(SIZE, dtype=DOUBLE)


def bring_to(model, optimizer, wanted):
    """Scale the quadratic until the largest preconditioned eigenvalue is the wanted one; L2 terms
    do not scale with it.
    """
    plain = model.H.clone()
    first = preconditioned_matrix(model, optimizer)
    model.H = 2 * plain
    rise = preconditioned_matrix(model, optimizer) - first
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        largest = float(torch.linalg.eigvalsh(first + (middle - 1) * rise)[-1])
        low, high = (middle, high) if largest < wanted else (low, middle)
    model.H = plain * low
    assert float(
        torch.linalg.eigvalsh(preconditioned_matrix(model, optimizer))[-1]
    ) == pytest.approx(wanted, rel=1e-9)


def grown(model, optimizer, steps=350):
    """How far x is from the minimum after many steps, as a fraction of the start; ends early where
    that is far.
    """
    start = float(model.x.detach().norm())
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, None).backward()
        optimizer.step()
        ratio = float(model.x.detach().norm()) / start
        if ratio > 1e3:
            break
    return ratio


@pytest.mark.parametrize("rates", [(RATE, RATE), (0.4 * RATE, RATE)])
@pytest.mark.parametrize("name", CASES)
def test_a_run_just_below_the_threshold_converges_and_a_run_just_above_diverges(name, rates):
    make, value = CASES[name]
    assert landscape.stability_threshold(prepared(make)[1]).value == pytest.approx(value, rel=1e-12)
    for factor, converges in ((0.98, True), (1.02, False)):
        model, optimizer = prepared(make, rates=rates)
        threshold = landscape.stability_threshold(optimizer)
        assert threshold.value == pytest.approx(value, rel=1e-12)
        bring_to(model, optimizer, factor * threshold.value)
        ratio = grown(model, optimizer)
        assert ratio < 1e-3 if converges else ratio > 1e3, ratio


def test_an_optimizer_that_climbs_has_its_threshold_in_the_curvature_of_the_negated_loss():
    make = partial(Adam, lr=RATE, betas=(0.9, STILL), maximize=True)
    for factor, converges in ((0.98, True), (1.02, False)):
        model, optimizer = prepared(make)
        bring_to(model, optimizer, factor * landscape.stability_threshold(optimizer).value)
        ratio = grown(model, optimizer)
        assert ratio < 1e-3 if converges else ratio > 1e3, ratio


def test_decoupled_decay_lowers_the_threshold_by_half_of_what_a_step_takes():
    """The factor 1 - lr w / 2 that the documentation states; w is enormous here, to be seen."""
    make = partial(AdamW, lr=RATE, betas=(0.9, STILL), weight_decay=20.0)
    for factor, converges in ((0.98, True), (1.02, False)):
        model, optimizer = prepared(make)
        bring_to(
            model,
            optimizer,
            factor * (1 - RATE * 20 / 2) * landscape.stability_threshold(optimizer).value,
        )
        ratio = grown(model, optimizer)
        assert ratio < 1e-3 if converges else ratio > 1e3, ratio


def test_muon_diverges_at_no_curvature_so_it_has_no_threshold():
    """Its steps have one size: on a quadratic a thousand times too sharp for gradient descent it
    still only oscillates.
    """
    generator = seeded(6)
    curvature = 2e3 / RATE
    weight = nn.Parameter(torch.randn(3, 3, generator=generator, dtype=DOUBLE))
    muon = torch.optim.Muon([weight], lr=RATE, weight_decay=0.0)
    for _ in range(1000):
        muon.zero_grad()
        (0.5 * curvature * weight.square().sum()).backward()
        muon.step()
    assert float(weight.detach().abs().max()) < 100 * RATE
    with pytest.raises(ValueError, match="Muon: .* no threshold"):
        landscape.stability_threshold(muon)


def test_the_threshold_tells_its_formula_its_source_and_the_numbers_in_it():
    weight = nn.Parameter(torch.ones(2))
    threshold = landscape.stability_threshold(AdamW([weight], lr=torch.tensor(1e-3), foreach=False))
    assert (
        threshold.formula == "(2 + 2 beta1) / ((1 - beta1) lr)" and "2207.14484" in threshold.source
    )
    assert threshold.settings == {"beta1": 0.9, "lr": pytest.approx(1e-3)}
    assert float(threshold) == threshold.value == pytest.approx(38e3, rel=1e-6)
    said = (
        "38000 = (2 + 2 beta1) / ((1 - beta1) lr) with beta1 = 0.9, lr = 0.001 (Cohen et al. 2022, "
        "arXiv 2207.14484)"
    )
    assert str(threshold) == said
    rates = [{"params": [weight]}, {"params": [nn.Parameter(torch.ones(2))], "lr": 0.5}]
    assert landscape.stability_threshold(SGD(rates, lr=0.1)).value == 4.0
    assert landscape.stability_threshold(SGD([weight], lr=0.0)).value == math.inf


@pytest.mark.parametrize(
    "groups, words",
    [
        (
            ({"lr": 0.1, "momentum": 0.9}, {"lr": 0.1, "momentum": 0.5}),
            "momentum is 0.9 in group 0 and 0.5 in group 1",
        ),
        (({"lr": 0.1, "momentum": 1.0},), "has a momentum of 1"),
        (({"lr": 0.1, "momentum": 0.9, "dampening": 1.0},), "has a dampening of 1"),
        (({"lr": math.inf},), "has the learning rate inf"),
        (({},), "has the learning rate None"),
    ],
)
def test_settings_without_a_threshold_are_refused(groups, words):
    with pytest.raises(ValueError, match=words) as caught:
        threshold_of(OptimizerState("SGD", groups))
    assert "\n" not in str(caught.value)
