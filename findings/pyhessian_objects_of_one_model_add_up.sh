#!/bin/sh
# PyHessian 0.1: a second `hessian(model, criterion, data=...)` of a model is the Hessian of both batches together, because the
# constructor calls backward() onto the gradients that the first one left in the model's .grad.
#
# Expected: [hessian(model, criterion, data=batch) for batch in batches] are the Hessians of the batches. They are running sums,
# so eigenvalues grow with the number of objects, and a study "per batch" finds later batches sharper.
# Output seen: largest eigenvalues 0.6848 1.3096 1.8981 of the batches alone 0.6848 0.7220 0.6238
# PYTHON=... uses a Python that has torch 2.14.1 instead of installing it. Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "$PYTHON" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.14.1 numpy
    PYTHON="$folder/venv/bin/python"
fi
"$PYTHON" -m pip install --quiet --no-deps --target "$folder/site" pyhessian==0.1
PYTHONPATH="$folder/site" "$PYTHON" -W ignore - <<'P'
import torch
from pyhessian import hessian

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).double()
criterion = torch.nn.CrossEntropyLoss()
batches = [(torch.randn(20, 5).double(), torch.randint(3, (20,))) for _ in range(3)]

def largest(H):
    torch.manual_seed(0)
    return H.eigenvalues(maxIter=1000, tol=1e-8)[0][0]

def dense(batches):
    """The truth: the sum of the batches' Hessians, its largest eigenvalue."""
    names = [name for name, _ in model.named_parameters()]
    sizes = [p.shape for p in model.parameters()]
    def loss(flat):
        parts = flat.split([size.numel() for size in sizes])
        params = {name: part.view(size) for name, part, size in zip(names, parts, sizes)}
        return sum(criterion(torch.func.functional_call(model, params, x), y) for x, y in batches)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))
    return values[values.abs().argmax()].item()

together = [hessian(model, criterion, data=batch, cuda=False) for batch in batches]
seen = [largest(H) for H in together]
alone, sums = [dense([batch]) for batch in batches], [dense(batches[: i + 1]) for i in range(3)]
print("largest eigenvalues", *(f"{value:.4f}" for value in seen), "of the batches alone", *(f"{value:.4f}" for value in alone))
def near(x, y):
    return all(abs(a - b) < 1e-3 for a, b in zip(x, y))
raise SystemExit(not (near(seen, sums) and not near(seen, alone)))
P
