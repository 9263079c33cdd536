#!/bin/sh
# entmax 1.3 with torch 2.14.1: SparsemaxLoss and Entmax15Loss have right gradients, and the graph of
# their gradient takes the predicted probabilities for constants: a Hessian-vector product of a network
# lacks the whole term J' H_loss J. No error.
#
# Expected: the Hessian, or an error. The backward pass multiplies by a difference that the forward pass
# saved, which is no function of the scores there. The same loss from its formula, with the package's own
# sparsemax, is right.
# Output seen: gradient off by 2e-09; product off by 0.93 (SparsemaxLoss), by 2.59 (Entmax15Loss), by
#              2e-09 (sparsemax loss from its formula)
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
"$PYTHON" -m pip install --quiet --no-deps --target "$folder/site" entmax==1.3
PYTHONPATH="$folder/site" "$PYTHON" -W ignore - <<'P'
import torch
from entmax import Entmax15Loss, SparsemaxLoss, sparsemax

torch.manual_seed(0)
x, v = (torch.randn(5, 6, dtype=torch.float64) for _ in range(2))
M, labels = torch.randn(6, 6, dtype=torch.float64), torch.arange(5)

def formula(scores, labels):
    p = sparsemax(scores, dim=-1)
    score = scores.gather(1, labels[:, None])[:, 0]
    return ((p * scores).sum(-1) - 0.5 * (p * p).sum(-1) + 0.5 - score).sum()

def network(loss):
    return lambda x: loss((x @ M).tanh() * 1.5, labels)

def slope(function, x, **options):
    return torch.autograd.grad(function(x), x, **options)[0]

def off(function):
    leaf = x.clone().requires_grad_()
    ends = [(x + sign * 1e-5 * v).requires_grad_() for sign in (1, -1)]
    first = (function(ends[0]) - function(ends[1])).item() / 2e-5
    truth = (slope(function, ends[0]) - slope(function, ends[1])) / 2e-5
    g = slope(function, leaf, create_graph=True)
    (product,) = torch.autograd.grad((g * v).sum(), leaf)
    return abs((g * v).sum().item() / first - 1), float((product - truth).norm() / truth.norm())

losses = (SparsemaxLoss(reduction="sum"), Entmax15Loss(reduction="sum"), formula)
(a, sparse), (b, entmax), (c, right) = (off(network(loss)) for loss in losses)
print(
    f"gradient off by {max(a, b, c):.0e}; product off by {sparse:.2f} (SparsemaxLoss), "
    f"by {entmax:.2f} (Entmax15Loss), by {right:.0e} (sparsemax loss from its formula)"
)
raise SystemExit(not (max(a, b, c) < 1e-6 and min(sparse, entmax) > 0.1 and right < 1e-6))
P
