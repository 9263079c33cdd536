"""The Triton kernel: its arithmetic in Triton's interpreter, its compilation without a GPU, and on
a GPU where there is one.

The interpreter runs the same kernel text on the CPU, so its values are tested everywhere; that the
compiled kernel gives them is tested by the tests marked `gpu` alone.
"""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.utils import deterministic

from landscape.kernels import linear_scan, selective_scan
from tests.helpers.folders import ROOT

# The last one takes two programs of two tiles each, with a row and steps to spare.
SHAPES = [(1,), (7, 2), (5, 257)]


def value_and_derivatives(a: Tensor, b: Tensor, reverse: bool, backend: str) -> list[Tensor]:
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    h = linear_scan(a, b, reverse=reverse, backend=backend)
    gradient = torch.autograd.grad(h.sin().sum(), (a, b), create_graph=True)
    product = torch.autograd.grad(gradient, (a, b), (torch.cos(a).detach(), torch.sin(b).detach()))
    return [h.detach(), *(x.detach() for x in gradient), *product]


def check_against_the_reference(device: str) -> None:
    assert deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        for shape in SHAPES:
            generator = torch.Generator().manual_seed(0)
            a = (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1).to(
                device, dtype
            )
            b = torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
            # The derivatives of the reversed scan are scans forwards, and the other way round.
            expected = value_and_derivatives(a, b, True, "reference")
            for x, y in zip(value_and_derivatives(a, b, True, "gpu"), expected):
                torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)
    torch.use_deterministic_algorithms(False)


def test_the_kernels_arithmetic_equals_the_reference_to_second_order_in_the_interpreter():
    pytest.importorskip("triton")
    # Triton decides whether to interpret when it decorates a kernel: this needs a process of its
    # own.
    code = (
        "from tests.kernels import test_scan_gpu\n"
        "test_scan_gpu.check_against_the_reference('cpu'); print('equal')"
    )
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "equal"


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("element", ["fp32", "fp64"])
def test_the_kernel_compiles_for_a_gpu_without_having_one(element, reverse):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from landscape.kernels.gpu import _linear_scan

    constants = {"REVERSE": reverse, "ROWS": 4, "STEPS": 256}
    signature = dict.fromkeys("abh", f"*{element}") | {"num_rows": "i32", "length": "i32"}
    source = ASTSource(_linear_scan, signature | dict.fromkeys(constants, "constexpr"), constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32))
    assert ".entry _linear_scan" in compiled.asm["ptx"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_compiled_kernel_equals_the_reference_to_second_order():
    check_against_the_reference("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["auto", "gpu", "log_depth"])
def test_the_selective_scan_on_a_gpu_equals_the_one_on_the_cpu(backend):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 6, 65), (2, 6, 65), (6, 3), (2, 2, 3, 65), (2, 2, 3, 65), (6,), (2, 6, 65), (6,)]
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    inputs[2] = -inputs[2].exp()
    leaves = [x.cuda().requires_grad_() for x in inputs]
    out = selective_scan(*leaves, delta_softplus=True, backend=backend)
    expected = [x.requires_grad_() for x in inputs]
    truth = selective_scan(*expected, delta_softplus=True, backend="reference")
    torch.testing.assert_close(out.cpu(), truth, rtol=1e-10, atol=1e-10)
    for x, y in zip(
        torch.autograd.grad(out.sin().sum(), leaves),
        torch.autograd.grad(truth.sin().sum(), expected),
    ):
        torch.testing.assert_close(x.cpu(), y, rtol=1e-10, atol=1e-10)
