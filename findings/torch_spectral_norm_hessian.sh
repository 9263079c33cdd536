#!/bin/sh
# torch 2.14.1: through torch.nn.utils.parametrizations.spectral_norm, gradients are right and
# Hessian-vector products are not, also with as many power iterations as converge.
#
# Expected: derivatives of W / ||W||_2, which the network computes in training. The singular vectors
# are constants of the graph. For the gradient of u'Wv that changes nothing at the fixed point; the
# second derivative lacks how they turn with W. The exact norm by torch.linalg.matrix_norm is right.
# Output seen: gradient off by 5e-09; product off by 1.24 by spectral_norm, by 4e-08 by matrix_norm
# PYTHON=... uses a Python that has torch 2.14.1 instead of installing it.
# Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "$PYTHON" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
        torch==2.14.1 numpy
    PYTHON="$folder/venv/bin/python"
fi
"$PYTHON" -W ignore - <<'P'
import torch
from torch.nn.utils.parametrizations import spectral_norm

torch.manual_seed(0)
layer = torch.nn.Linear(4, 4, bias=False).double()
layer = spectral_norm(layer, n_power_iterations=500).train()
W = layer.parametrizations.weight.original
x, v = torch.randn(3, 4, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64)

def by_layer(W):
    return (layer(x) ** 3).sum()

def by_norm(W):
    return ((x @ W.T / torch.linalg.matrix_norm(W, 2)) ** 3).sum()

def slope(function, **options):
    return torch.autograd.grad(function(W), W, **options)[0]

def product(function):
    return torch.autograd.grad((slope(function, create_graph=True) * v).sum(), W)[0]

def differences(of, step=1e-5):
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            W.add_(sign * step * v)
        ends.append(of().detach().clone())
        with torch.no_grad():
            W.sub_(sign * step * v)
    return (ends[0] - ends[1]) / (2 * step)

first = differences(lambda: by_layer(W))
gradient = float(((slope(by_layer) * v).sum() / first - 1).abs())
truth = differences(lambda: slope(by_layer))
wrong, right = (float((product(f) - truth).norm() / truth.norm()) for f in (by_layer, by_norm))
print(
    f"gradient off by {gradient:.0e}; product off by {wrong:.2f} by spectral_norm, "
    f"by {right:.0e} by matrix_norm"
)
raise SystemExit(not (gradient < 1e-6 and wrong > 0.05 and right < 1e-6))
P
