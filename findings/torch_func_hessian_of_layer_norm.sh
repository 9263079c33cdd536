#!/bin/sh
# torch 2.14.1: torch.func.hessian of a network with nn.LayerNorm is wrong, and not symmetric; so is
# jacrev of jacrev. jvp of grad, column by column, is right, and torch.autograd.functional.hessian too.
#
# Expected: the Hessian. It is right without the weight and bias of the norm. Eigenvalues of such a
# matrix by eigvalsh, which reads one triangle, look as good as any.
# Output seen: error, and asymmetry, relative
#   torch.func.hessian                 0.062   0.088
#   jacrev of jacrev                   0.062   0.088
#   jvp of grad                        1e-09   2e-16
#   torch.autograd.functional.hessian  1e-09   2e-16
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
from torch.func import functional_call, grad, hessian, jacrev, jvp

torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Linear(4, 6), torch.nn.LayerNorm(6), torch.nn.Tanh(), torch.nn.Linear(6, 3)
).double()
shapes = {name: p.shape for name, p in model.named_parameters()}
x, labels = torch.randn(7, 4).double(), torch.randint(3, (7,))
point = torch.nn.utils.parameters_to_vector(model.parameters()).detach()

def loss(vector):
    parts = vector.split([shape.numel() for shape in shapes.values()])
    named = {name: part.reshape(shapes[name]) for name, part in zip(shapes, parts)}
    return torch.nn.functional.cross_entropy(functional_call(model, named, (x,)), labels)

def slope(vector):
    leaf = vector.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf), leaf)[0]

steps = 1e-5 * torch.eye(len(point), dtype=torch.float64)
truth = torch.stack([(slope(point + step) - slope(point - step)) / 2e-5 for step in steps])
matrices = {
    "torch.func.hessian": hessian(loss)(point),
    "jacrev of jacrev": jacrev(jacrev(loss))(point),
    "jvp of grad": torch.stack([jvp(grad(loss), (point,), (e * 1e5,))[1] for e in steps]),
    "torch.autograd.functional.hessian": torch.autograd.functional.hessian(loss, point),
}
print("error, and asymmetry, relative")
seen = {}
for name, H in matrices.items():
    error, odd = (float(part.norm() / truth.norm()) for part in (H - truth, H - H.T))
    text = "   ".join(f"{value:.{'3f' if value > 1e-3 else '0e'}}" for value in (error, odd))
    print(f"  {name:34} {text}")
    seen[name] = error < 1e-6
raise SystemExit(list(seen.values()) != [False, False, True, True])
P
