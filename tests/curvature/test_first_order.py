"""mamba-ssm's scan: the trainer may take it, curvature never gets it. A stand-in takes the place of
the package and its GPU.

The stand-in has the package's signature and gradients that carry no graph, as the kernel has; it
has not been compared with the kernel itself, for which a GPU is needed.
"""

import sys
import types

import pytest
import torch
from torch import nn

import landscape
from landscape.clip.train import train
from landscape.clip.train_loop import Process
from landscape.errors import LandscapeError, MissingDependencyError
from landscape.kernels import first_order, reference, selective_scan
from landscape.kernels.first_order import first_order_kernels, second_order
from landscape.manifest import DataSettings
from landscape.towers.state_space import state_space
from tests.helpers.tiny_run import PLAIN, run, write_pairs
from tests.kernels.test_selective_scan import random_inputs

CPU = torch.device("cpu")


class Opaque(torch.autograd.Function):
    """The scan with right gradients that cannot be differentiated again."""

    @staticmethod
    def forward(ctx, softplus, *tensors):
        ctx.softplus = softplus
        ctx.save_for_backward(*tensors)
        return by_loop(softplus, *tensors)

    @staticmethod
    def backward(ctx, dy):
        leaves = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            return None, *torch.autograd.grad(by_loop(ctx.softplus, *leaves), leaves, dy)


def by_loop(softplus, u, delta, A, B, C, D, delta_bias):
    y, _ = reference.selective_scan_loop(u, delta, A, B, C, delta_bias, softplus)
    return reference.finish(y, u, D, None)


@pytest.fixture()
def calls(monkeypatch):
    """The calls of the stand-in, which runs on a CPU."""
    made = []

    def selective_scan_fn(
        u,
        delta,
        A,
        B,
        C,
        D=None,
        z=None,
        delta_bias=None,
        delta_softplus=False,
        return_last_state=False,
    ):
        assert z is None and not return_last_state
        made.append(u.shape)
        return Opaque.apply(delta_softplus, u, delta, A, B, C, D, delta_bias)

    module = types.ModuleType(first_order._MODULE)
    module.selective_scan_fn = selective_scan_fn
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, first_order._MODULE, module)
    monkeypatch.setattr(first_order, "_DEVICE", "cpu")
    return made


class Tower(nn.Module):
    """Linear, the state-space layer of the towers, linear."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(4, 3 * 4 + 2 * 2 * 4), nn.Linear(3 * 4, 2)
        self.A_log, self.D, self.bias = (
            nn.Parameter(torch.zeros(3, 2)),
            nn.Parameter(torch.ones(3)),
            nn.Parameter(torch.zeros(3)),
        )

    def forward(self, x):
        u, B, C = self.stem(x).split([12, 8, 8], dim=-1)
        u, B, C = u.view(-1, 3, 4), B.view(-1, 1, 2, 4), C.view(-1, 1, 2, 4)
        return self.head(state_space(u, u, self.A_log, B, C, self.D, self.bias).flatten(1))


@pytest.fixture()
def tower():
    torch.manual_seed(0)
    return Tower()


def rows():
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


def loss(model, x):
    return model(x).square().mean()


def gradient(model, x):
    return torch.autograd.grad(loss(model, x), list(model.parameters()))


def test_training_takes_the_packages_kernel_and_gets_the_same_gradients(calls, tower):
    x = rows()
    expected = gradient(tower, x)
    assert not calls
    with first_order_kernels(CPU):
        got = gradient(tower, x)
    assert len(calls) == 1
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("measure", ["hessian", "gauss_newton", "finite differences", "audit"])
def test_curvature_never_gets_it_even_inside_the_block(calls, tower, measure):
    x = rows()

    def measured():
        if measure == "audit":
            return landscape.audit(tower, loss, x)
        if measure == "gauss_newton":
            H = landscape.gauss_newton(
                tower, lambda model, x: model(x), lambda out, x: out.square().mean(), x
            )
        elif measure == "hessian":
            H = landscape.hessian(tower, loss, x)
        else:
            objective = landscape.Objective.from_closure(tower, loss)
            H = landscape.FiniteDifferenceOperator(objective, dict(tower.named_parameters()), x)
        return H @ torch.ones(H.n)

    expected = measured()
    with first_order_kernels(CPU):
        got = measured()
    assert not calls
    if measure == "audit":
        assert got.passed and got == expected
    else:
        assert torch.equal(got, expected)


def test_a_second_order_block_wins_over_the_one_around_it_and_ends(calls):
    inputs = random_inputs(1, 2, 2, 5, dtype=torch.float32)
    del inputs["z"]
    inputs["delta"] = inputs["delta"].abs() + inputs["delta_bias"].abs().max()
    with first_order_kernels(CPU):
        with second_order():
            selective_scan(**inputs)
        assert not calls
        selective_scan(**inputs, backend="log_depth")
        selective_scan(**inputs, return_last_state=True)
        assert not calls
        selective_scan(**inputs)
    selective_scan(**inputs)
    assert len(calls) == 1


def test_a_block_that_raises_is_closed(calls):
    with pytest.raises(KeyError), first_order_kernels(CPU):
        raise KeyError
    assert first_order._open == {"first": 0, "second": 0}


def test_it_needs_a_gpu_and_the_package(monkeypatch):
    with (
        pytest.raises(LandscapeError, match="runs on cuda devices, not on cpu"),
        first_order_kernels(CPU),
    ):
        pass
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    with pytest.raises(MissingDependencyError, match="pip install --no-build-isolation mamba-ssm"):
        with first_order_kernels(torch.device("cuda")):
            pass


@pytest.mark.parametrize(
    "scan, message", [("mamba-ssm", "runs on cuda devices"), ("other", "scan must be")]
)
def test_training_refuses_it_before_anything_is_written(scan, message, tmp_path):
    with pytest.raises((LandscapeError, ValueError), match=message):
        train(
            model="vmamba_tiny_64",
            output=tmp_path / "run",
            data=DataSettings(source="x.tsv", num_samples=4, batch_size=4),
            recipe="openmoji_demo",
            device="cpu",
            scan=scan,
        )
    assert not (tmp_path / "run").exists()


def test_the_trainer_takes_steps_inside_the_block_and_keeps_the_choice_with_the_run(
    calls, monkeypatch, tmp_path
):
    steps, train_epoch = [], Process.train_epoch

    def watched(self, *args, **options):
        steps.append(dict(first_order._open))
        return train_epoch(self, *args, **options)

    monkeypatch.setattr(Process, "train_epoch", watched)
    table = write_pairs(tmp_path)
    run(tmp_path / "run", table, model=PLAIN, epochs=1, device="cpu", scan="mamba-ssm")
    assert steps == [{"first": 1, "second": 0}] and first_order._open == {"first": 0, "second": 0}
    with pytest.raises(LandscapeError, match="scan"):
        run(tmp_path / "run", table, model=PLAIN, epochs=1, device="cpu")
