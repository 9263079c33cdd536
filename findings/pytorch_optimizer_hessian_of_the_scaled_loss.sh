#!/bin/sh
# pytorch_optimizer 4.1.0 with torch 2.14.1: under torch.amp.GradScaler, AdaHessian divides by the
# Hessian of the scaled loss, so its steps are 65536 times too short.
#
# Expected: the step of the same loss without a scaler, which scaler.step takes with every
# optimizer of torch.optim. It divides the gradients in place, and their graph stays that of the
# scaled loss, from which AdaHessian computes its estimate. SophiaH, torch-optimizer's Adahessian
# and any other second derivative of p.grad are scaled alike. No error, no warning.
# Output seen: length of a step with a scaler over that without: Adam 1.00, AdaHessian 1.52e-05;
#   curvature with over without 65536
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
"$PYTHON" -m pip install --quiet --no-deps --target "$folder/site" pytorch_optimizer==4.1.0
PYTHONPATH="$folder/site" "$PYTHON" -W ignore - <<'P'
import torch
from pytorch_optimizer import AdaHessian

def step(optimizer_class, scaled):
    """Return the length of one step and the curvature that it took."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    x, y = torch.randn(32, 4), torch.randint(3, (32,))
    before = torch.nn.utils.parameters_to_vector(network.parameters()).detach()
    optimizer = optimizer_class(network.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    loss = torch.nn.functional.cross_entropy(network(x), y)
    scaler.scale(loss).backward(create_graph=True)
    torch.manual_seed(1)
    scaler.step(optimizer)
    after = torch.nn.utils.parameters_to_vector(network.parameters()).detach()
    curvature = optimizer.state[network[0].weight].get("hessian")
    return float((after - before).norm()), curvature

adam = step(torch.optim.Adam, True)[0] / step(torch.optim.Adam, False)[0]
(short, scaled), (long, plain) = step(AdaHessian, True), step(AdaHessian, False)
curvature = float(scaled.norm() / plain.norm())
print(
    f"length of a step with a scaler over that without: Adam {adam:.2f}, AdaHessian "
    f"{short / long:.2e};\n  curvature with over without {curvature:.0f}"
)
raise SystemExit(not (round(adam, 2) == 1 and short / long < 1e-3 and round(curvature) == 65536))
P
