"""The sharpness monitor: it changes nothing of a training, and what it says is true of a dense
Hessian in float64.
"""

import json
import math
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import landscape
from landscape.curvature.objective import Objective, select_parameters
from landscape.errors import ObjectiveError, StoreError
from landscape.linalg.operator import seeded
from landscape.monitor import (
    Measurement,
    SharpnessMonitor,
    Threshold,
    UpdateSharpness,
    optimizers,
)
from landscape.monitor import along_update as along_update_module
from landscape.monitor import meter as meter_module
from landscape.monitor.sinks import scalars
from tests.helpers.oracles import dense_hessian


def cross_entropy(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def squares(model, batch):
    return ((model(batch[0]) - batch[1]) ** 2).mean() / 2


def classifier(*, norm=True):
    return nn.Sequential(
        nn.Linear(6, 16),
        nn.BatchNorm1d(16) if norm else nn.Identity(),
        nn.Tanh(),
        nn.Dropout(0.2),
        nn.LayerNorm(16),
        nn.Linear(16, 3),
    )


def labelled(num_rows=40, *, seed=0, dtype=torch.float32):
    generator = seeded(seed)
    return torch.randn(num_rows, 6, generator=generator, dtype=dtype), torch.randint(
        3, (num_rows,), generator=generator
    )


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def state_of(model, optimizer):
    """Everything that a training goes on from, and flags that a measurement could leave changed."""
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "flags": [(p.requires_grad, p.is_leaf, id(p), p._version) for p in model.parameters()],
        "modes": [part.training for part in model.modules()],
        "hooks": [
            (len(part._forward_hooks), len(part._forward_pre_hooks), len(part._backward_hooks))
            for part in model.modules()
        ],
        "optimizer": [
            {
                key: value.clone() if isinstance(value, torch.Tensor) else value
                for key, value in state.items()
            }
            for state in optimizer.state.values()
        ],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),
        "python": random.getstate(),
        "switches": (
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.is_inference_mode_enabled(),
        ),
    }


def assert_same(first, second):
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=0, atol=0, equal_nan=True, msg=key)


# it changes nothing


def trained(make_optimizer, *, monitored, along=False, num_steps=25, norm=True):
    """A training with dropout, batch norm and noise of all three generators in every step."""
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    model = classifier(norm=norm)
    # One module stays in eval mode in the middle of the training, as frozen layers do.
    model[4].eval()
    optimizer = make_optimizer(model.parameters())
    data, losses = labelled(), []
    options = {"optimizer": optimizer, "update_sharpness": True} if along else {}
    monitor = (
        SharpnessMonitor(
            model, cross_entropy, labelled(20, seed=1), budget=None, every=2, **options
        )
        if monitored
        else None
    )
    for _ in range(num_steps):
        noise = random.random() + np.random.random() + float(torch.rand(()))
        rows = torch.randperm(40)[:16]
        optimizer.zero_grad()
        loss = (1 + 0.1 * noise) * cross_entropy(model, (data[0][rows], data[1][rows]))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if monitor is not None:
            before = state_of(model, optimizer)
            monitor.step(loss=loss)
            assert_same(before, state_of(model, optimizer))
    return losses, state_of(model, optimizer), monitor


@pytest.mark.parametrize(
    "make_optimizer",
    [lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: torch.optim.AdamW(p, lr=1e-2)],
    ids=["SGD", "AdamW"],
)
@pytest.mark.parametrize("along", [False, True])
def test_training_with_a_monitor_gives_the_same_bits(one_thread, make_optimizer, along):
    plain, state, _ = trained(make_optimizer, monitored=False)
    losses, monitored_state, monitor = trained(make_optimizer, monitored=True, along=along)
    assert all((made.along_update is not None) == along for made in monitor.measurements)
    assert losses == plain and len(monitor.measurements) == 13
    for key in ("weights", "gradients", "modes", "optimizer", "torch", "numpy", "python"):
        torch.testing.assert_close(monitored_state[key], state[key], rtol=0, atol=0, msg=key)


def test_gradients_that_are_none_stay_none_and_gradients_that_are_there_stay():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = SharpnessMonitor(model, cross_entropy, labelled(), budget=None)
    monitor.measure()
    assert all(parameter.grad is None for parameter in model.parameters())
    cross_entropy(model, labelled()).backward()
    before = state_of(model, optimizer)
    with torch.no_grad():
        monitor.measure()
    assert_same(before, state_of(model, optimizer))


def test_it_measures_where_a_loop_is_under_autocast_or_inference_mode():
    model = classifier()
    monitor = SharpnessMonitor(model, cross_entropy, labelled(), budget=None)
    plain = monitor.measure().hessian
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = monitor.measure().hessian
        assert torch.is_autocast_enabled("cpu")
    with torch.inference_mode():
        inside = monitor.measure().hessian
    # In bfloat16, with 8 bits, the values would differ by about 1e-2.
    for other in (under, inside):
        assert other.value == pytest.approx(plain.value, abs=plain.bound + other.bound, rel=1e-4)


def test_a_model_that_does_more_in_eval_is_only_switched():
    class Merging(nn.Linear):
        def train(self, mode=True):
            with torch.no_grad():
                self.weight.add_(1.0)
            return super().train(mode)

    model = nn.Sequential(Merging(6, 3))
    before = model[0].weight.clone()
    SharpnessMonitor(model, cross_entropy, labelled(), budget=None).measure()
    assert torch.equal(model[0].weight, before)


def test_modes_and_random_states_are_put_back_when_a_measurement_fails():
    model = classifier()

    def broken(model, batch):
        torch.rand(3), random.random(), np.random.random()
        return cross_entropy(model, batch) * math.nan

    monitor = SharpnessMonitor(model, broken, labelled(), budget=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = state_of(model, optimizer)
    with pytest.raises(ObjectiveError, match="loss is nan"):
        monitor.step()
    assert_same(before, state_of(model, optimizer))


# what it measures


def dense_values(model, loss, batch):
    """The eigenvalues of the loss in eval mode, ascending, in float64 by the oracle."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    hessian = dense_hessian(Objective.from_closure(model, loss), select_parameters(model), batch)
    for part, training in modes:
        part.training = training
    return torch.linalg.eigvalsh((hessian + hessian.T) / 2)


def assert_holds(spectrum, exact, *, unseen=0.0):
    """Each value lies within its bound of an eigenvalue, and the values are the largest ones.

    `unseen` is the distance from a value, as a fraction of it, within which a further one may be
    unseen.
    """
    top = exact.flip(0)[: len(spectrum.values)]
    for value, residual, truth in zip(spectrum.values, spectrum.residuals, top.tolist()):
        bound = residual * abs(value) + 1e-10
        assert float((exact - value).abs().min()) <= bound
        # The one at this place, not only some eigenvalue.
        assert abs(value - truth) <= max(bound, unseen * abs(value))
        assert residual <= 1e-2


@pytest.mark.parametrize(
    "num_steps", [60, pytest.param(500, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_certificates_hold_in_every_step_against_the_dense_hessian(num_steps):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Dropout(0.1), nn.Linear(6, 2)).double()
    generator = seeded(1)
    batch = (
        torch.randn(24, 3, generator=generator).double(),
        torch.randn(24, 2, generator=generator).double(),
    )
    # A learning rate at which the sharpness reaches 2 / 0.4 and stays there.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.4, momentum=0.3)
    monitor = SharpnessMonitor(model, squares, batch, budget=None, k=2)
    for _ in range(num_steps):
        optimizer.zero_grad()
        squares(model, batch).backward()
        optimizer.step()
        made = monitor.step()
        assert all(made.hessian.converged) and made.hessian.settled
        assert_holds(made.hessian, dense_values(model, squares, batch))
    assert len(monitor.measurements) == num_steps and all(
        made.failure == "" for made in monitor.measurements
    )


class TwoBlocks(nn.Module):
    """Blocks of parameters that share no curvature; the loss weighs their quadratics by a number
    that moves.
    """

    def __init__(self, size):
        super().__init__()
        self.first = nn.Parameter(torch.randn(size, generator=seeded(0), dtype=torch.float64))
        self.second = nn.Parameter(torch.randn(size, generator=seeded(1), dtype=torch.float64))
        self.register_buffer("at", torch.zeros((), dtype=torch.float64))
        spread = torch.linspace(0.01, 1, size, dtype=torch.float64) ** 3
        self.register_buffer("spread", spread)


def crossing(model, batch):
    """Largest curvatures 1 + at and 2 - at, with a quartic term of known curvature that keeps it
    from being a plain quadratic.
    """
    first = (1 + model.at) * (model.spread * model.first**2).sum() / 2
    return first + (2 - model.at) * (model.spread * model.second**2).sum() / 2


@pytest.mark.parametrize(
    "num_steps", [60, pytest.param(500, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
@pytest.mark.parametrize(
    "size", [30, 700], ids=["n = 60, a thorough look", "n = 1400, a look along the chain"]
)
def test_the_leading_eigenvalue_may_change_hands_between_steps(size, num_steps):
    """The two blocks swap places again and again; the old eigenvector is exactly orthogonal to the
    new one.
    """
    model = TwoBlocks(size)
    monitor = SharpnessMonitor(model, crossing, None, budget=None)
    owners = []
    for step in range(num_steps):
        # From 0 to 1 and back every 20 steps: the curvatures cross at 1/2, at times by a jump.
        model.at.fill_(abs((step % 20) / 10 - 1) ** (0.2 if step % 3 else 1))
        made = monitor.step()
        exact = (
            torch.cat([(1 + model.at) * model.spread, (2 - model.at) * model.spread]).sort().values
        )
        # A large operator is looked at to 5 %, as its certificate says: of two values
        # that lie closer, the second may be the one that is found.
        assert_holds(made.hessian, exact, unseen=0.05 if size == 700 else 0.0)
        if size == 700:
            assert (
                # A quotient of two computed numbers, so to rounding.
                made.hessian.missed_distance <= 0.05 * (1 + 1e-12)
                and "99 % probability" in made.hessian.missed
            )
        owners.append(bool(1 + model.at > 2 - model.at))
    assert sum(a != b for a, b in zip(owners, owners[1:])) >= num_steps // 20


def test_the_first_measurement_is_that_of_eigsh_and_later_ones_take_the_check_over():
    torch.manual_seed(0)
    model = classifier(norm=False).double().eval()
    batch = labelled(dtype=torch.float64)
    monitor = SharpnessMonitor(model, cross_entropy, batch, budget=None, k=3, which="LM")
    first = monitor.measure()
    H = landscape.hessian(model, cross_entropy, batch)
    expected = landscape.eigsh(H, 3, "LM", tol=1e-2)
    np.testing.assert_allclose(first.hessian.values, expected.values, rtol=1e-4)
    assert first.loss == pytest.approx(H.loss)
    checks = []
    for _ in range(12):
        with torch.no_grad():
            model[0].weight.mul_(1.01)
        checks.append("at earlier weights" in monitor.measure().hessian.checked)
    # The first of all is number 0, and number 10 checks anew.
    assert checks == [True] * 9 + [False] + [True] * 2
    assert "operator checked" in monitor.last.hessian.checked


def test_a_check_is_made_anew_where_the_loss_does_other_operations():
    model = classifier(norm=False)
    power = {"value": 2}

    def loss(model, batch):
        return cross_entropy(model, batch) + (
            0 if power["value"] == 2 else sum(p.pow(4).sum() for p in model.parameters())
        )

    monitor = SharpnessMonitor(model, loss, labelled(), budget=None)
    monitor.measure()
    power["value"] = 4
    assert "at earlier weights" not in monitor.measure().hessian.checked
    assert "at earlier weights" in monitor.measure().hessian.checked


def test_a_product_that_is_no_derivative_is_refused_also_when_it_becomes_one_later():
    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return x.round()

        @staticmethod
        def backward(context, gradient):
            return gradient

    model = nn.Linear(6, 3).double()
    rounds = {"on": False}

    def loss(model, batch):
        logits = model(batch[0])
        return F.cross_entropy(Rounded.apply(8 * logits) / 8 if rounds["on"] else logits, batch[1])

    monitor = SharpnessMonitor(model, loss, labelled(dtype=torch.float64), budget=None)
    monitor.measure()
    rounds["on"] = True
    with pytest.raises(ObjectiveError):
        monitor.measure()


def test_in_the_mode_of_the_training_batch_norm_and_dropout_are_refused():
    for model, words in (
        (classifier(), "batch norm in train mode"),
        (classifier(norm=False), "active dropout"),
    ):
        monitor = SharpnessMonitor(model, cross_entropy, labelled(), eval_mode=False, budget=None)
        with pytest.raises(ObjectiveError, match=words) as raised:
            monitor.step()
        assert "\n" not in str(raised.value)


def test_batch_norm_is_measured_with_its_running_statistics():
    torch.manual_seed(0)
    model, batch = classifier().double(), labelled(dtype=torch.float64)
    model(batch[0])
    made = SharpnessMonitor(model, cross_entropy, batch, budget=None).measure()
    assert_holds(made.hessian, dense_values(model, cross_entropy, batch))


def test_a_compiled_or_parallel_wrapper_is_looked_through():
    model = classifier()
    monitor = SharpnessMonitor(torch.compile(model), cross_entropy, labelled(), budget=None)
    assert monitor.measure().hessian.value == pytest.approx(
        SharpnessMonitor(model, cross_entropy, labelled(), budget=None).measure().hessian.value,
        rel=1e-3,
    )


def test_an_objective_takes_the_place_of_a_loss():
    model = classifier(norm=False)
    objective = Objective.from_closure(model, cross_entropy, weight_decay=0.5)
    made = SharpnessMonitor(model, objective, labelled(), budget=None).measure()
    plain = SharpnessMonitor(model, cross_entropy, labelled(), budget=None).measure()
    assert made.hessian.value == pytest.approx(plain.hessian.value + 0.5, rel=1e-3)


# steps


def test_attached_to_an_optimizer_it_needs_no_line_in_the_loop():
    model = classifier(norm=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = SharpnessMonitor(model, cross_entropy, labelled(), budget=None, every=2)
    handle = monitor.attach(optimizer)
    for _ in range(6):
        cross_entropy(model, labelled()).backward()
        optimizer.step()
    handle.remove()
    optimizer.step()
    assert [made.step for made in monitor.measurements] == [1, 3, 5] and monitor.num_steps == 6


def test_steps_may_be_counted_by_the_loop_and_the_initialisation_measured():
    monitor = SharpnessMonitor(classifier(), cross_entropy, labelled(), budget=None, every=10)
    monitor.measure()
    for step in (4, 12, 19, 22):
        monitor.step(step, loss=torch.tensor(float(step), requires_grad=True))
    assert [(made.step, made.training_loss) for made in monitor.measurements] == [
        (0, None),
        (12, 12.0),
        (22, 22.0),
    ]


def test_a_later_failure_is_recorded_and_warned_of_once_and_the_training_goes_on():
    model = classifier(norm=False)
    monitor = SharpnessMonitor(model, cross_entropy, labelled(), budget=None)
    monitor.step()
    good = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    with pytest.warns(RuntimeWarning, match="step 2: the sharpness could not be measured"):
        made = monitor.step()
    assert (
        made.hessian is None and "infinite or NaN" in made.failure and "no sharpness" in str(made)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.step()
    with torch.no_grad():
        model[0].weight.copy_(good)
    assert monitor.step().hessian.converged == (True,)


def test_parameters_that_are_frozen_or_released_later_are_a_failure_with_its_reason():
    model = classifier(norm=False)
    first = model[0]
    monitor = SharpnessMonitor(model, cross_entropy, labelled(), budget=None)
    monitor.step()
    first.requires_grad_(False)
    with pytest.warns(RuntimeWarning, match="was frozen since"):
        made = monitor.step()
    assert made.hessian is None and "0.bias: was frozen" in made.failure
    assert "2 of the parameters" in made.failure and "\n" not in made.failure
    first.requires_grad_(True)
    assert monitor.step().hessian.converged == (True,)

    model[-1].requires_grad_(False)
    monitor = SharpnessMonitor(model, cross_entropy, labelled(), budget=None)
    monitor.step()
    model[-1].requires_grad_(True)
    with pytest.warns(RuntimeWarning, match="was released since"):
        monitor.step()


# wrong use


def test_wrong_use_is_one_clear_line(monkeypatch):
    model, other = classifier(), classifier()
    monkeypatch.setattr(meter_module, "threshold_of", lambda *_: None)
    for optimizer, words in (
        (torch.optim.SGD(other.parameters(), lr=0.1), "holds no parameter of this Sequential"),
        (torch.optim.SGD(model[0].parameters(), lr=0.1), "does not hold 1.weight"),
        ([torch.optim.SGD(model.parameters(), lr=0.1)], "a monitor for each"),
    ):
        with pytest.raises(ObjectiveError, match=words) as raised:
            SharpnessMonitor(model, cross_entropy, labelled(), optimizer=optimizer)
        assert "\n" not in str(raised.value)
    # What is left out of the measurement need not be trained.
    chosen = torch.optim.SGD(model[0].parameters(), lr=0.1)
    SharpnessMonitor(model, cross_entropy, labelled(), optimizer=chosen, parameters="0.*")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 0}, "every must be 1 step"),
        ({"budget": 0.0}, "budget must be a share > 0"),
        ({"budget": math.nan}, "budget must be a share > 0"),
        ({"k": 0}, "k must be between 1"),
        ({"k": 10**6}, "k must be between 1"),
        ({"which": "BE"}, "which must be"),
        ({"tol": 0.0}, "tol must be"),
        ({"start_step": -1}, "start_step must be"),
    ],
)
def test_a_number_that_cannot_be_meant_is_refused_before_a_record_is_begun(
    tmp_path, options, words
):
    with pytest.raises(ValueError, match=words):
        SharpnessMonitor(
            classifier(), cross_entropy, labelled(), output=tmp_path / "a.jsonl", **options
        )
    assert not list(tmp_path.iterdir())


def test_an_objective_of_another_model_is_refused():
    objective = Objective.from_closure(classifier(), cross_entropy)
    with pytest.raises(ValueError, match="of another model"):
        SharpnessMonitor(classifier(), objective, labelled())
    with pytest.raises(ValueError, match="weight_decay"):
        SharpnessMonitor(objective.module, objective, labelled(), weight_decay=0.1)


# thresholds


def test_the_threshold_follows_the_learning_rate(monkeypatch):
    def threshold(optimizer, weight_decay):
        return Threshold(
            value=2 / optimizer.param_groups[0]["lr"], formula="2/η", source="a quadratic"
        )

    monkeypatch.setattr(meter_module, "threshold_of", threshold)
    model = classifier(norm=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = SharpnessMonitor(model, cross_entropy, labelled(), optimizer=optimizer, budget=None)
    made = [monitor.step().threshold.value]
    optimizer.param_groups[0]["lr"] = 0.05
    made.append(monitor.step().threshold.value)
    assert made == [20.0, 40.0]
    assert "% of 2/η = 40" in str(monitor.last) and monitor.last.preconditioned is None


def test_an_adaptive_optimizer_adds_the_preconditioned_sharpness():
    torch.manual_seed(0)
    model = classifier(norm=False).double()
    batch = labelled(dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    monitor = SharpnessMonitor(model, cross_entropy, batch, optimizer=optimizer, budget=None)
    assert monitor.measure().preconditioned is None
    for _ in range(5):
        optimizer.zero_grad()
        cross_entropy(model, batch).backward()
        optimizer.step()
        made = monitor.step()
        model.eval()
        H = landscape.hessian(model, cross_entropy, batch)
        exact = landscape.eigsh(landscape.preconditioned(H, optimizer), 1, "LA", tol=1e-6).values[0]
        model.train()
        assert abs(
            made.preconditioned.value - float(exact)
        ) <= made.preconditioned.bound + 1e-6 * float(exact)
    assert made.threshold.of == "preconditioned" and made.watched is made.preconditioned


def test_muon_adds_the_preconditioned_sharpness_without_a_threshold():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False))
    model, batch = model.double(), labelled(dtype=torch.float64)
    muon = torch.optim.Muon(model.parameters(), lr=1e-2)
    monitor = SharpnessMonitor(model, cross_entropy, batch, optimizer=muon, budget=None)
    assert monitor.measure().preconditioned is None
    for _ in range(3):
        muon.zero_grad()
        cross_entropy(model, batch).backward()
        muon.step()
        made = monitor.step()
    A = landscape.preconditioned(landscape.hessian(model, cross_entropy, batch), muon)
    exact = float(torch.linalg.eigvalsh(A @ torch.eye(A.n, dtype=A.dtype))[-1])
    assert abs(made.preconditioned.value - exact) <= made.preconditioned.bound + 1e-9 * exact
    assert made.threshold is None and made.watched is made.hessian


def test_sgd_measures_the_hessian_itself_unless_its_steps_have_other_units():
    model = classifier()
    plain = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    decayed = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-3)
    groups = [{"params": model[0].parameters(), "lr": 0.2}, {"params": model[4].parameters()}]
    several = torch.optim.SGD(groups, lr=0.1)
    assert (
        not optimizers.is_adaptive(plain)
        and optimizers.is_adaptive(decayed)
        and optimizers.is_adaptive(several)
    )
    assert not optimizers.is_adaptive(decayed, 1e-3)
    adam = torch.optim.Adam(model.parameters())
    assert (
        optimizers.is_adaptive(adam)
        and not optimizers.has_units(adam)
        and optimizers.has_units(plain)
    )


# along the update


def along_update(make_optimizer, *, weight_decay=0.0, num_steps=4, record=None):
    """A measurement along the update of a small network in float64, its model and optimizer."""
    torch.manual_seed(2)
    model = classifier(norm=False).double().eval()
    optimizer = make_optimizer(model.parameters())
    data = labelled(dtype=torch.float64)
    for _ in range(num_steps):
        optimizer.zero_grad()
        cross_entropy(model, data).backward()
        optimizer.step()
    with SharpnessMonitor(
        model,
        cross_entropy,
        data,
        optimizer=optimizer,
        update_sharpness=True,
        weight_decay=weight_decay,
        output=record,
    ) as monitor:
        made = monitor.measure()
    return made, model, optimizer, data


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("adds", [False, True])
def test_the_recorded_sharpness_is_that_of_the_step_that_the_optimizer_takes(decay, adds):
    own = decay if adds else 0.0
    made, model, optimizer, data = along_update(
        lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9, weight_decay=own), weight_decay=decay
    )
    objective = Objective.from_closure(model, cross_entropy, weight_decay=decay)
    params = {name: t.detach().clone() for name, t in model.named_parameters()}
    H = dense_hessian(objective, params, data)
    before = float(objective(params, data))
    # The L2 term is in the loss, or is what the optimizer adds: never both.
    optimizer.zero_grad()
    plain = Objective.from_closure(model, cross_entropy, weight_decay=0.0 if adds else decay)
    leaves = dict(model.named_parameters())
    plain(leaves, data).backward()
    optimizer.step()
    u = torch.cat([(leaves[name].detach() - params[name]).reshape(-1) for name in params])
    after = float(objective({name: leaf.detach() for name, leaf in leaves.items()}, data))
    along = made.along_update
    assert along.directional == pytest.approx(float(u @ H @ u / (u @ u)), rel=1e-9)
    assert along.change == pytest.approx(after - before, rel=1e-9)
    assert along.critical_low <= along.critical <= along.critical_high and along.rate == 0.2


def test_sharpness_along_the_update_is_kept_in_the_record(tmp_path):
    path = tmp_path / "record.jsonl"
    made, *_ = along_update(lambda p: torch.optim.AdamW(p, lr=1e-3), record=path)
    record = landscape.monitor.read_record(path)
    assert record.measurements == (made,)
    assert record.critical_sharpness.tolist() == [made.along_update.critical]
    assert record.directional_sharpness.tolist() == [made.along_update.directional]
    numbers = scalars(made)
    assert numbers["critical_sharpness"] == made.along_update.critical
    assert numbers["change"] == made.along_update.change and "critical sharpness" in str(made)


def test_a_bracket_that_is_open_survives_the_record():
    made = Measurement(step=1, along_update=UpdateSharpness(**{
        "rate": 0.1, "critical": math.nan, "critical_low": 2.0, "critical_high": math.inf,
        "directional": 1.0, "predicted_change": 0.1, "change": math.nan, "num_losses": 9,
    }))  # fmt: skip
    read = Measurement.from_plain(json.loads(json.dumps(made.as_plain()))).along_update
    assert read.critical_high == math.inf and math.isnan(read.critical) and math.isnan(read.change)
    assert read.critical_low == 2.0 and read.num_losses == 9


def test_a_record_without_that_column_is_written_as_before():
    assert "along_update" not in Measurement(step=1).as_plain()
    model = classifier()
    monitor = SharpnessMonitor(model, cross_entropy, labelled())
    assert "update_sharpness" not in monitor._meter.settings()


@pytest.mark.parametrize("before", [False, True])
def test_a_record_with_that_column_goes_on_with_it_and_without_it_without(before, tmp_path):
    model, output = classifier(), tmp_path / "record.jsonl"

    def monitor(along):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return SharpnessMonitor(
            model,
            cross_entropy,
            labelled(),
            optimizer=optimizer,
            update_sharpness=along,
            output=output,
            start_step=0,
        )

    monitor(before).close()
    content = output.read_bytes()
    with pytest.raises(StoreError) as error:
        monitor(not before)
    assert f"its update_sharpness is {before}, now it is {not before}" in str(error.value)
    assert output.read_bytes() == content
    monitor(before).close()


def test_a_learning_rate_of_zero_has_no_sharpness_along_the_update():
    made, *_ = along_update(lambda p: torch.optim.SGD(p, lr=0.0))
    assert made.along_update is None and made.hessian is not None


def test_a_gradient_of_zero_has_no_sharpness_along_the_update():
    model = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        model.weight.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = torch.ones(3, 2).double(), torch.zeros(3, 1).double()
    monitor = SharpnessMonitor(model, squares, data, optimizer=optimizer, update_sharpness=True)
    made = monitor.measure()
    assert made.along_update is None and made.hessian.value == pytest.approx(2)


def test_what_fails_along_the_update_does_not_end_the_training(monkeypatch):
    def fails(*arguments):
        raise ValueError("some reason")

    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"optimizer": optimizer, "update_sharpness": True, "budget": None}
    monitor = SharpnessMonitor(model, cross_entropy, labelled(), **options)
    monitor.step()
    monkeypatch.setattr(along_update_module, "critical_of", fails)
    with pytest.warns(RuntimeWarning, match="some reason"):
        monitor.step()
    # The spectrum of that measurement is kept.
    assert monitor.last.failure == "along the update: some reason"
    assert monitor.last.hessian.converged == (True,) and "some reason" in str(monitor.last)
    read = Measurement.from_plain(json.loads(json.dumps(monitor.last.as_plain())))
    assert read == monitor.last


def test_a_loss_that_raises_does_not_end_the_training():
    """Neither at the weights, nor beyond them along the update."""
    model, limit = classifier(norm=False), 50.0

    def guarded(model, batch):
        scores = model(batch[0])
        if not scores.abs().max() < limit:
            raise RuntimeError("scores exploded\nat length")
        return F.cross_entropy(scores, batch[1])

    # The step of this rate is far beyond the guard.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e4)
    options = {"optimizer": optimizer, "update_sharpness": True, "budget": None}
    with SharpnessMonitor(model, guarded, labelled(), **options) as monitor:
        made = monitor.step()
        assert made.failure == "" and made.along_update.critical_low > 2 / 1e4
        with torch.no_grad():
            model[-1].weight.mul_(1e3)
        with pytest.warns(RuntimeWarning, match="scores exploded"):
            made = monitor.step()
        assert made.hessian is None and made.failure == "scores exploded"
        with pytest.raises(RuntimeError, match="scores exploded"):
            SharpnessMonitor(model, guarded, labelled()).step()


class WithUnused(nn.Module):
    """A network with a layer that its loss never calls."""

    def __init__(self):
        super().__init__()
        self.body, self.unused = classifier(norm=False), nn.Linear(9, 9)

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_parameters_that_the_loss_does_not_reach_stay_as_in_the_loop(kind, decay):
    torch.manual_seed(0)
    model, data = WithUnused().double().eval(), labelled(dtype=torch.float64)
    optimizer = kind(model.parameters(), lr=0.05, weight_decay=0.1)
    monitor = SharpnessMonitor(
        model,
        cross_entropy,
        data,
        optimizer=optimizer,
        update_sharpness=True,
        weight_decay=decay if kind is torch.optim.SGD else 0.0,
    )
    along = monitor.measure().along_update
    params = {name: t.detach().clone() for name, t in model.named_parameters()}
    objective = Objective.from_closure(model, cross_entropy)
    cross_entropy(model, data).backward()
    optimizer.step()
    moved = {name: t.detach() - params[name] for name, t in model.named_parameters()}
    assert not moved["unused.weight"].any() and not moved["unused.bias"].any()
    H = dense_hessian(objective, params, data)
    u = torch.cat([moved[name].reshape(-1) for name in params])
    exact = float(u @ H @ u / (u @ u)) + monitor._meter._objective.weight_decay
    assert along.directional == pytest.approx(exact, rel=1e-9)


def test_losses_along_the_update_are_those_of_the_whole_step_where_some_parameters_are_measured():
    torch.manual_seed(2)
    model, data = classifier(norm=False).double().eval(), labelled(dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    name = next(name for name, _ in model.named_parameters())
    options = {"optimizer": optimizer, "update_sharpness": True, "parameters": [name]}
    along = SharpnessMonitor(model, cross_entropy, data, **options).measure().along_update
    params = {name: t.detach().clone() for name, t in model.named_parameters()}
    objective = Objective.from_closure(model, cross_entropy)
    H = dense_hessian(objective, params, data)
    before = cross_entropy(model, data)
    before.backward()
    optimizer.step()
    assert along.change == pytest.approx(
        cross_entropy(model, data).item() - before.item(), rel=1e-9
    )
    # What is made of a product is of the part of the step in the measured parameters, the first.
    u = (model.get_parameter(name).detach() - params[name]).reshape(-1)
    block = H[: len(u), : len(u)]
    assert along.directional == pytest.approx(float(u @ block @ u / (u @ u)), rel=1e-9)
    slope = -u / 0.2
    assert along.predicted_change == pytest.approx(float(slope @ u + 0.5 * u @ block @ u), rel=1e-9)


def test_sharpness_along_the_update_needs_the_optimizer():
    with pytest.raises(ValueError, match="Give optimizer="):
        SharpnessMonitor(classifier(), cross_entropy, labelled(), update_sharpness=True)
