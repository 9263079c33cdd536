#!/bin/sh
# torch 2.14.1: torch.func.grad of torch.func.jvp, a Hessian-vector product in reverse over forward
# mode, is wrong through layer_norm, instance_norm and batch_norm in training; forward over reverse,
# jvp of grad, is right, and so are rms_norm and group_norm. No error, no warning.
#
# Expected: both orders are the same product. Where the outer grad runs, the derivative of the
# statistics of a batch or row is lost, so the "Hessian" is not even symmetric.
# Output seen: error of H v, relative to central differences of gradients
#   layer_norm      jvp(grad) 2e-10, grad(jvp) 0.40
#   instance_norm   jvp(grad) 2e-10, grad(jvp) 0.40
#   batch_norm      jvp(grad) 7e-10, grad(jvp) 0.14
#   rms_norm        jvp(grad) 1e-10, grad(jvp) 1e-10
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
import torch.nn.functional as F
from torch.func import grad, jvp

torch.manual_seed(0)
x, weights, v = (torch.randn(5, 6, dtype=torch.float64) for _ in range(3))
NORMS = {
    "layer_norm": lambda x: F.layer_norm(x, (6,)),
    "instance_norm": lambda x: F.instance_norm(x[None])[0],
    "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
    "rms_norm": lambda x: F.rms_norm(x, (6,)),
}

def errors(norm):
    def loss(x):
        return (norm(x) * weights).sin().sum()

    def slope(x):
        return torch.autograd.grad(loss(x := x.clone().requires_grad_()), x)[0]

    truth = (slope(x + 1e-5 * v) - slope(x - 1e-5 * v)) / 2e-5
    forward_over_reverse = jvp(grad(loss), (x,), (v,))[1]
    reverse_over_forward = grad(lambda x: jvp(loss, (x,), (v,))[1])(x)
    return [
        float((product - truth).norm() / truth.norm())
        for product in (forward_over_reverse, reverse_over_forward)
    ]

print("error of H v, relative to central differences of gradients")
seen = {}
for name, norm in NORMS.items():
    right, other = errors(norm)
    print(f"  {name:15} jvp(grad) {right:.0e}, grad(jvp) {other:.{'2f' if other > 1e-3 else '0e'}}")
    seen[name] = (right < 1e-7, other < 1e-7)
expected = {name: (True, name == "rms_norm") for name in NORMS}
raise SystemExit(seen != expected)
P
