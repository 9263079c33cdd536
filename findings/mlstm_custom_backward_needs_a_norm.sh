#!/bin/sh
# mlstm-kernels 2.0.6: two backends of one mLSTM, parallel native_autograd and native_custbw, have the same values and other first
# gradients: the backward of the second treats the normaliser max(|n q|, exp(-m)) as a constant.
#
# Expected: gradients of the function, or a word that they are not. With a layer norm over the head right behind it, as in xLSTM,
# which does not see the normaliser, the whole is right to the norm's epsilon; without one, training follows other gradients.
# Output seen: values 0e+00; gradients: autograd 4e-10, custom 3.4, custom and layer norm 1e-05 off central differences
# PYTHON=... uses a Python that has torch 2.14.1 and triton instead of installing them. Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "$PYTHON" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.14.1 triton numpy
    PYTHON="$folder/venv/bin/python"
fi
"$PYTHON" -m pip install --quiet --no-deps --target "$folder/site" mlstm-kernels==2.0.6 einops==0.8.2
PYTHONPATH="$folder/site" "$PYTHON" -W ignore - <<'P'
import torch
from mlstm_kernels.torch.parallel.native.fwbw import mlstm_parallel__native_autograd as autograd
from mlstm_kernels.torch.parallel.native.fwbw import mlstm_parallel__native_custbw as custom

torch.manual_seed(0)
shapes = [(1, 2, 8, 4)] * 3 + [(1, 2, 8)] * 2
leaves = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
direction = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
weights = torch.randn(1, 2, 8, 4, dtype=torch.float64)

def loss(kernel, inputs, norm):
    y = kernel(*inputs)
    y = torch.nn.functional.layer_norm(y, (4,)) if norm else y
    return (weights * y).sum()

def off(kernel, norm):
    """How far the derivative along a direction is from central differences, relative."""
    slope = sum((g * d).sum() for g, d in zip(torch.autograd.grad(loss(kernel, leaves, norm), leaves), direction))
    with torch.no_grad():
        ends = [loss(kernel, [x + s * 1e-6 * d for x, d in zip(leaves, direction)], norm) for s in (1, -1)]
    truth = (ends[0] - ends[1]) / 2e-6
    return float(((slope - truth) / truth).abs())

with torch.no_grad():
    values = [autograd(*leaves), custom(*leaves)]
values = float((values[0] - values[1]).norm() / values[0].norm())
right, wrong, normed = off(autograd, False), off(custom, False), off(custom, True)
print(f"values {values:.0e}; gradients: autograd {right:.0e}, custom {wrong:.2g}, custom and layer norm {normed:.0e} off central differences")
raise SystemExit(not (values < 1e-6 and right < 1e-6 and wrong > 1e-2 and normed < 1e-3))
P
