#!/bin/sh
# torch 2.14.1: torch.autograd.gradgradcheck returns True for a Function of two inputs whose gradient
# with respect to one of them has no derivative of its own, so that its Hessian lacks terms.
#
# Expected: it raises, since the second derivatives are wrong by all of d2f/dy2. gradgradcheck gives
# the gradients to gradcheck, which leaves outputs out that need no gradient; it raises only where none
# is left. A Function with one input and the same fault is refused.
# Output seen:
#   gradgradcheck of one input: raises; of two inputs: True
#   d2f/dy2 by autograd 0.0, by central differences 9.6
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
from torch.autograd import grad, gradgradcheck

class OneInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        ctx.save_for_backward(y)
        return y**3

    @staticmethod
    def backward(ctx, dy):
        return (3 * ctx.saved_tensors[0] ** 2 * dy).detach()

class TwoInputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x**2 * y**3

    @staticmethod
    def backward(ctx, dz):
        x, y = ctx.saved_tensors
        return 2 * x * y**3 * dz, (3 * x**2 * y**2 * dz).detach()

def checked(function, *inputs):
    try:
        return str(gradgradcheck(function.apply, inputs))
    except (RuntimeError, ValueError):
        return "raises"

def leaf(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)

def slope(y, **options):
    return grad(TwoInputs.apply(x, y) + 0 * y**2, y, **options)[0]

x, y = leaf(1.0), leaf(1.6)
one, two = checked(OneInput, leaf(1.6)), checked(TwoInputs, x, y)
print(f"gradgradcheck of one input: {one}; of two inputs: {two}")
(second,) = grad(slope(y, create_graph=True), y)
truth = (slope(leaf(1.6 + 1e-5)) - slope(leaf(1.6 - 1e-5))).item() / 2e-5
print(f"d2f/dy2 by autograd {second.item():.1f}, by central differences {truth:.1f}")
raise SystemExit((one, two, second.item(), round(truth, 3)) != ("raises", "True", 0.0, 9.6))
P
