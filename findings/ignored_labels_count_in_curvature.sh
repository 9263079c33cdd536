#!/bin/sh
# curvlinops-for-pytorch 3.0.1 and backpack-for-pytorch 1.7.1 with torch 2.14.1: labels that CrossEntropyLoss
# ignores (-100, as for padding in a batch of text) count in the curvature.
#   - BackPACK: DiagHessian and DiagGGNExact have a term for each ignored row.
#   - curvlinops: KFACLinearOperator has them too; the Hessian and GGN of the same rows in two batches is
#     another matrix than in one, as batches are weighed by rows and the loss by labels that count.
#
# Expected: the Hessian of the loss of all rows; an ignored row adds nothing. No error, no warning.
# Output seen: trace; of the loss itself 1.2191
#   BackPACK DiagHessian 1.3021, DiagGGNExact 1.3021
#   curvlinops Hessian in one batch 1.2191, in two 0.9426; KFAC 1.4259, with other ignored rows 52.1
# PYTHON=... uses a Python that has torch 2.14.1 and SciPy instead of installing them.
# Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "$PYTHON" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
        torch==2.14.1 numpy
    "$folder/venv/bin/pip" install --quiet scipy tqdm
    PYTHON="$folder/venv/bin/python"
fi
"$PYTHON" -m pip install --quiet --no-deps --target "$folder/site" curvlinops-for-pytorch==3.0.1 \
    backpack-for-pytorch==1.7.1 einops==0.8.2 einconv==0.1.0 linear_operator==0.6.1 \
    jaxtyping==0.3.11 wadler-lindig==0.1.8 opt-einsum==3.4.0 unfoldnd==0.2.3 tqdm==4.70.1 mpmath==1.4.1
PYTHONPATH="$folder/site" "$PYTHON" -W ignore - <<'P'
import torch
from backpack import backpack, extend
from backpack.extensions import DiagGGNExact, DiagHessian
from curvlinops import HessianLinearOperator, KFACLinearOperator

torch.manual_seed(0)
model = torch.nn.Linear(4, 3, bias=False).double()
x, y = torch.randn(8, 4).double(), torch.tensor([0, 1, 2, 0, -100, -100, -100, 2])
params, criterion = list(model.parameters()), torch.nn.CrossEntropyLoss()

def loss(weight):
    return criterion(x @ weight.T, y)

truth = torch.func.hessian(loss)(model.weight.detach()).reshape(12, 12).trace().item()

def by_curvlinops(operator, *data, **options):
    matrix = operator(model, criterion, params, list(data), check_deterministic=False, **options)
    return torch.as_tensor(matrix @ torch.eye(12, dtype=torch.float64)).trace().item()

def by_backpack(extension, x):
    layer = torch.nn.Linear(4, 3, bias=False).double()
    layer.weight.data = model.weight.detach().clone()
    layer = extend(layer)
    with backpack(extension):
        extend(torch.nn.CrossEntropyLoss())(layer(x), y).backward()
    return getattr(layer.weight, extension.savefield).sum().item()

diagonal, ggn = by_backpack(DiagHessian(), x), by_backpack(DiagGGNExact(), x)
one = by_curvlinops(HessianLinearOperator, (x, y))
two = by_curvlinops(HessianLinearOperator, (x[:4], y[:4]), (x[4:], y[4:]))
kfac = by_curvlinops(KFACLinearOperator, (x, y), fisher_type="type-2")
other = by_curvlinops(KFACLinearOperator, (torch.where(y[:, None] < 0, 10 * x, x), y), fisher_type="type-2")
print(f"trace; of the loss itself {truth:.4f}")
print(f"  BackPACK DiagHessian {diagonal:.4f}, DiagGGNExact {ggn:.4f}")
print(
    f"  curvlinops Hessian in one batch {one:.4f}, in two {two:.4f}; "
    f"KFAC {kfac:.4f}, with other ignored rows {other:.1f}"
)
far = all(abs(value / truth - 1) > 0.05 for value in (diagonal, ggn, two, kfac, other))
raise SystemExit(not (abs(one / truth - 1) < 1e-6 and far and other > 2 * kfac))
P
