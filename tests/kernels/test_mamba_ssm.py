"""The real mamba-ssm, where it is installed: our scan equals its reference functions, and the audit
refuses its kernels.

Truth: functions that mamba-ssm publishes as plain PyTorch. Its compiled CUDA extension is replaced
by an empty module where it is missing, and its kernels run in Triton's interpreter, so no GPU is
needed: `MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE pip install --no-deps
--no-build-isolation mamba-ssm einops`.
"""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import types

import pytest
import torch
import torch.nn.functional as F

from landscape.kernels import selective_scan
from tests.helpers.folders import ROOT
from tests.kernels.test_selective_scan import random_inputs

HARNESS = ROOT / "experiments" / "second_derivatives" / "measure.py"

for _package in ("mamba_ssm", "einops", "triton"):
    if importlib.util.find_spec(_package) is None:
        pytest.skip(f"{_package} is not installed", allow_module_level=True)


@pytest.fixture()
def mamba(monkeypatch):
    """Import a module of mamba-ssm without the package's own __init__, which imports its language
    models.
    """
    package = types.ModuleType("mamba_ssm")
    package.__path__ = list(importlib.util.find_spec("mamba_ssm").submodule_search_locations)
    before = {
        name: module
        for name, module in sys.modules.items()
        if name.partition(".")[0] == "mamba_ssm"
    }
    for name in before:
        del sys.modules[name]
    monkeypatch.setitem(sys.modules, "mamba_ssm", package)
    if importlib.util.find_spec("selective_scan_cuda") is None:
        monkeypatch.setitem(
            sys.modules, "selective_scan_cuda", types.ModuleType("selective_scan_cuda")
        )
    yield lambda name: importlib.import_module(f"mamba_ssm.{name}")
    for name in [name for name in sys.modules if name.startswith("mamba_ssm.")]:
        del sys.modules[name]
    sys.modules.update(before)


def value_and_derivatives(scan, inputs):
    """The value of a loss, its gradient and one product with its Hessian."""
    leaves = [tensor.clone().requires_grad_() for tensor in inputs.values()]
    y = scan(**dict(zip(inputs, leaves)))
    loss = (torch.arange(y.numel(), dtype=y.dtype).cos().view_as(y) * y.tanh()).sum()
    gradients = torch.autograd.grad(loss, leaves, create_graph=True)
    along = sum((gradient * gradient.detach()).sum() for gradient in gradients)
    return [loss.detach(), *(x.detach() for x in gradients), *torch.autograd.grad(along, leaves)]


def assert_equal(got, expected, tolerance):
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=tolerance * max(1.0, float(y.abs().max())))


@pytest.mark.parametrize("backend", ["auto", "log_depth"])
@pytest.mark.parametrize("groups", [None, 1, 2])
@pytest.mark.parametrize("parts", ["all", "no gate, skip or bias"])
def test_our_scan_equals_selective_scan_ref_to_second_order(mamba, backend, groups, parts):
    inputs = random_inputs(2, 4, 3, 17, groups=groups, dtype=torch.float32)
    for name in ("D", "z", "delta_bias") if parts != "all" else ():
        del inputs[name]
    theirs = mamba("ops.selective_scan_interface").selective_scan_ref
    assert_equal(
        value_and_derivatives(
            lambda **x: selective_scan(**x, delta_softplus=True, backend=backend), inputs
        ),
        value_and_derivatives(lambda **x: theirs(**x, delta_softplus=True), inputs),
        # selective_scan_ref computes in float32 whatever it is given.
        2e-5,
    )


def test_constant_matrices_and_the_last_state_are_theirs(mamba):
    inputs = random_inputs(2, 3, 2, 9, dtype=torch.float32)
    inputs["B"], inputs["C"] = torch.ones(3, 2), torch.full((3, 2), 0.5)
    theirs = mamba("ops.selective_scan_interface").selective_scan_ref
    got, expected = (
        scan(**inputs, delta_softplus=True, return_last_state=True)
        for scan in (selective_scan, theirs)
    )
    assert_equal(got, expected, 1e-5)


def test_our_scan_equals_the_minimal_state_space_dual_of_mamba_2_to_second_order(
    mamba, monkeypatch
):
    kernels = types.ModuleType("ssd_combined")
    kernels.mamba_chunk_scan_combined = None
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.triton.ssd_combined", kernels)
    minimal = mamba("modules.ssd_minimal").ssd_minimal_discrete
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (2, 8, 3, 4), "dt": (2, 8, 3), "A": (3,), "B": (2, 8, 1, 5), "C": (2, 8, 1, 5)}
    inputs = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }

    def theirs(x, dt, A, B, C):
        dt = F.softplus(dt)
        B, C = B.expand(2, 8, 3, 5), C.expand(2, 8, 3, 5)
        return minimal(x * dt[..., None], -dt * A.exp(), B, C, block_len=4)[0]

    def ours(x, dt, A, B, C):
        u = x.flatten(2).transpose(1, 2)
        delta = dt.repeat_interleave(4, dim=2).transpose(1, 2)
        rates = -A.exp().repeat_interleave(4)[:, None].expand(12, 5)
        y = selective_scan(
            u,
            delta,
            rates,
            B[:, :, 0].transpose(1, 2),
            C[:, :, 0].transpose(1, 2),
            delta_softplus=True,
        )
        return y.transpose(1, 2).reshape(x.shape)

    assert_equal(value_and_derivatives(ours, inputs), value_and_derivatives(theirs, inputs), 1e-10)


@pytest.mark.parametrize("operation", ["mamba_chunk_scan_combined", "rms_norm_fn"])
def test_the_audit_refuses_their_triton_kernels_whose_first_gradients_are_right(operation):
    # Triton decides whether to interpret when it decorates a kernel: this needs a process of its
    # own.
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    command = [sys.executable, str(HARNESS), f"mamba-ssm/{operation}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert row["first"].startswith("right") and row["double"].startswith("WRONG")
    assert "graph failed" in row["audit"] and "names mixer" in row["audit"]
