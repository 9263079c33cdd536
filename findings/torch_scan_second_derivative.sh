#!/bin/sh
# torch 2.14.1: torch._higher_order_ops.scan has right gradients, and create_graph=True gives them a graph that can be
# differentiated again, but lacks terms: second derivatives are wrong without an error.
#
# Expected: right second derivatives, or an error as torch.func.jvp of the gradient gives. A step with constant coefficients (a
# cumulative sum) is right, so a check on one passes. A look at the graph finds nothing either: no gradient is detached.
# Output seen: gradient 0e+00; product of h = a h + x off by 0.31; of a cumulative sum by 0e+00
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
from torch._higher_order_ops.scan import scan

def by_scan(step, a, x):
    def both(h, inputs):
        h = step(h, *inputs)
        return h, h.clone()
    return scan(both, torch.ones_like(x[0]), (a, x))[1]

def by_loop(step, a, x):
    h, states = torch.ones_like(x[0]), []
    for t in range(len(x)):
        h = step(h, a[t], x[t])
        states.append(h)
    return torch.stack(states)

def derivatives(run, step, length):
    torch.manual_seed(0)
    leaves = [torch.rand(length, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    loss = run(step, leaves[0] + leaves[0] ** 2, leaves[1] + leaves[1] ** 2).tanh().sum()
    gradient = torch.cat(torch.autograd.grad(loss, leaves, create_graph=True))
    product = torch.autograd.grad(gradient, leaves, torch.ones_like(gradient))
    return gradient.detach(), torch.cat(product)

def off(step, length):
    pairs = zip(derivatives(by_scan, step, length), derivatives(by_loop, step, length))
    return [float((got - truth).norm() / truth.norm()) for got, truth in pairs]

def recurrence(h, a, x):
    return a * h + x

def cumulative(h, a, x):
    return h + x + 0 * a

(gradient, product), (_, constant) = off(recurrence, 6), off(cumulative, 6)
print(f"gradient {gradient:.0e}; product of h = a h + x off by {product:.2g}; of a cumulative sum by {constant:.0e}")
raise SystemExit(not (gradient < 1e-12 and product > 1e-2 and constant < 1e-12))
P
