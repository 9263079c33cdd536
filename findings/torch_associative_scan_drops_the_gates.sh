#!/bin/sh
# torch 2.14.1: associative_scan called as its documentation shows (combine_mode="pointwise", the default) on CPU tensors gives
# the right values of h_t = a_t h_{t-1} + x_t, the right gradient of x, and a gradient of exactly 0 for every gate a.
#
# Expected: the gradient that a Python loop gives, or an error ("pointwise" is documented for CUDA). combine_mode="generic" is
# right. What follows it in a loss trains, so nothing shows but that the layers which make the gates never move.
# Output seen: values 8e-17, gradient of x 1e-16, of a: pointwise 1 (all zero: True), generic 2e-16
# PYTHON=... uses a Python that has torch 2.14.1 instead of installing it. Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "$PYTHON" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.14.1 numpy
    PYTHON="$folder/venv/bin/python"
fi
"$PYTHON" - <<'P'
import torch
from torch._higher_order_ops.associative_scan import associative_scan

torch.manual_seed(0)
a, x = (torch.rand(2, 7, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))

def loop():
    h, states = torch.zeros(2, 3, dtype=torch.float64), []
    for t in range(7):
        h = a[:, t] * h + x[:, t]
        states.append(h)
    return torch.stack(states, 1)

def scan(**mode):
    return associative_scan(lambda p, q: (p[0] * q[0], p[1] * q[0] + q[1]), (a, x), 1, **mode)[1]

def off(y, truth):
    return float((y - truth).norm() / truth.norm())

def gradients(y):
    return torch.autograd.grad(y.square().sum(), (a, x))

truth, default, generic = gradients(loop()), gradients(scan()), gradients(scan(combine_mode="generic"))
zero = not default[0].any()
print(f"values {off(scan(), loop()):.0e}, gradient of x {off(default[1], truth[1]):.0e}, of a: "
      f"pointwise {off(default[0], truth[0]):.2g} (all zero: {zero}), generic {off(generic[0], truth[0]):.0e}")
same = off(scan(), loop()) < 1e-12 and off(default[1], truth[1]) < 1e-12 and off(generic[0], truth[0]) < 1e-12
raise SystemExit(not (zero and same))
P
