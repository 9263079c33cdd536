#!/bin/sh
# torch 2.14.1: a Function marked once_differentiable promises an error where it is differentiated twice. Where its output is the
# last step of a loss there is no error at all; elsewhere .backward() of the gradient raises, and torch.autograd.grad(gradient,
# inputs) returns a number with the function's terms missing.
#
# Expected: the error in all of them. The mark acts only where the incoming gradient needs one itself, and grad() runs only the
# nodes on a path to its inputs, while the node that raises leads nowhere. So the mark protects code that calls .backward()
# twice, and not Hessian-vector products, which call grad().
# Output seen:
#   x^3 + x^2: .backward() passes, autograd.grad says 2.0, the truth is 6.2
#   sin(x^3) + x^2: .backward() raises, autograd.grad says 2.0, the truth is 5.2286
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
from torch.autograd.function import once_differentiable

class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return 3 * ctx.saved_tensors[0] ** 2 * dy

def second(loss_of):
    """What .backward() of the gradient and autograd.grad of it say, and the truth by central differences of gradients."""
    x = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    def slope_at(x):
        return torch.autograd.grad(loss_of(x), x, create_graph=True)[0]
    try:
        slope_at(x).backward()
        raised = False
    except RuntimeError as error:
        raised = "once_differentiable" in str(error)
    (curvature,) = torch.autograd.grad(slope_at(x), x)
    with torch.no_grad():
        near = [x + 1e-5, x - 1e-5]
    above, below = (slope_at(point.requires_grad_()).item() for point in near)
    return raised, round(curvature.item(), 4), round((above - below) / 2e-5, 4)

last, within = second(lambda x: Cube.apply(x) + x**2), second(lambda x: Cube.apply(x).sin() + x**2)
for name, (raised, curvature, truth) in (("x^3 + x^2", last), ("sin(x^3) + x^2", within)):
    print(f"{name}: .backward() {'raises' if raised else 'passes'}, autograd.grad says {curvature}, the truth is {truth}")
raise SystemExit([(row[0], row[1] == row[2]) for row in (last, within)] != [(False, False), (True, False)])
P
