#!/bin/sh
# torchdiffeq 0.2.5 with torch 2.14.1: odeint_adjoint has right gradients, and no second derivative: a
# Hessian-vector product of a loss with weight decay is that of the weight decay alone.
#
# Expected: the Hessian, or an error. The adjoint runs under no_grad and is not marked
# once_differentiable, so the graph of the gradient ends there; torch.autograd.grad raises only where no
# other term of the loss is left. odeint, which records the solver's steps, is right.
# Output seen: gradients differ by 8e-10; product off by 6e-08 (odeint), by 1.00 (odeint_adjoint)
# PYTHON=... uses a Python that has torch 2.14.1 and SciPy instead of installing them.
# Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "$PYTHON" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
        torch==2.14.1 numpy
    "$folder/venv/bin/pip" install --quiet scipy
    PYTHON="$folder/venv/bin/python"
fi
"$PYTHON" -m pip install --quiet --no-deps --target "$folder/site" torchdiffeq==0.2.5
PYTHONPATH="$folder/site" "$PYTHON" -W ignore - <<'P'
import torch
from torch.autograd import grad
from torchdiffeq import odeint, odeint_adjoint

torch.manual_seed(0)

class Field(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 3).double()

    def forward(self, t, y):
        return self.layer(y).tanh()

field = Field()
params = list(field.parameters())
start, times = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0.0, 1.0]).double()

def gradient(solver, **options):
    end = solver(field, start, times, rtol=1e-9, atol=1e-10)[-1]
    return grad((end**3).sum() + 0.01 * sum((p**2).sum() for p in params), params, **options)

def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])

def product(solver):
    return flat(grad(sum(g.sum() for g in gradient(solver, create_graph=True)), params))

def shifted(step):
    with torch.no_grad():
        for p in params:
            p.add_(step)
    result = flat(gradient(odeint))
    with torch.no_grad():
        for p in params:
            p.sub_(step)
    return result

truth = (shifted(1e-4) - shifted(-1e-4)) / 2e-4
first = flat(gradient(odeint)), flat(gradient(odeint_adjoint))
same = float((first[0] - first[1]).norm() / first[0].norm())
right, wrong = (
    float((product(solver) - truth).norm() / truth.norm()) for solver in (odeint, odeint_adjoint)
)
print(
    f"gradients differ by {same:.0e}; product off by {right:.0e} (odeint), "
    f"by {wrong:.2f} (odeint_adjoint)"
)
raise SystemExit(not (same < 1e-6 and right < 1e-5 and wrong > 0.5))
P
