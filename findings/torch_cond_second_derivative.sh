#!/bin/sh
# torch 2.14.1: torch.cond has right first derivatives in eager mode, and a graph of the gradient that
# lacks the branch's second derivative.
#
# Expected: the second derivative, or an error. As the branch is taken out of the graph of the gradient,
# a Hessian-vector product sees it as linear; torch.autograd.grad raises only where no other term is
# left. The same function behind `if` is right, and so is torch's `map` over rows.
# Output seen: f'' of sin(x) x + x^3 by torch.cond 4.2000, by if 5.2787, by central differences 5.2787
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

def branch(x):
    return x.sin() * x

def by_cond(x):
    return torch.cond(x > 0, branch, lambda x: x.cos(), (x,)) + x**3

def by_if(x):
    return (branch(x) if x > 0 else x.cos()) + x**3

def slope(function, x, **options):
    return torch.autograd.grad(function(x), x, **options)[0]

def leaf(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)

def second(function):
    x = leaf(0.7)
    return torch.autograd.grad(slope(function, x, create_graph=True), x)[0].item()

first = abs(slope(by_cond, leaf(0.7)) - slope(by_if, leaf(0.7))).item()
truth = (slope(by_if, leaf(0.7 + 1e-5)) - slope(by_if, leaf(0.7 - 1e-5))).item() / 2e-5
wrong, right = second(by_cond), second(by_if)
print(
    f"f'' of sin(x) x + x^3 by torch.cond {wrong:.4f}, by if {right:.4f}, "
    f"by central differences {truth:.4f}"
)
raise SystemExit(not (first < 1e-12 and abs(right - truth) < 1e-6 and abs(wrong - 4.2) < 1e-9))
P
