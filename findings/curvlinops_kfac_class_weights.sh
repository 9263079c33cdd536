#!/bin/sh
# curvlinops-for-pytorch 3.0.1: KFACLinearOperator of CrossEntropyLoss(weight=...) leaves the class weights out with
# fisher_type="type-2", and squares them with "mc"; GGNLinearOperator of the same loss has them. No error, no word.
#
# Expected: all three scale with the weights, as the loss does. For one linear layer and one row KFAC is the exact GGN, so the two
# traces below agree for weights of 1, and for weights of 10 are to be 10 times as large.
# Output seen: trace for weights 10 over trace for weights 1: GGN 10.00, KFAC type-2 1.00, KFAC mc 100.00
# PYTHON=... uses a Python that has torch 2.14.1 and SciPy instead of installing them. Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "$PYTHON" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.14.1
    "$folder/venv/bin/pip" install --quiet numpy scipy tqdm
    PYTHON="$folder/venv/bin/python"
fi
"$PYTHON" -m pip install --quiet --no-deps --target "$folder/site" curvlinops-for-pytorch==3.0.1 backpack-for-pytorch==1.7.1 \
    einops==0.8.2 einconv==0.1.0 linear_operator==0.6.1 jaxtyping==0.3.11 wadler-lindig==0.1.8 opt-einsum==3.4.0 \
    unfoldnd==0.2.3 tqdm==4.70.1 mpmath==1.4.1
PYTHONPATH="$folder/site" "$PYTHON" -W ignore - <<'P'
import torch
from curvlinops import GGNLinearOperator, KFACLinearOperator

torch.manual_seed(0)
model = torch.nn.Linear(4, 3, bias=False).double()
params = list(model.parameters())
data = [(torch.randn(1, 4).double(), torch.tensor([1]))]

def trace(operator, weight, **options):
    loss = torch.nn.CrossEntropyLoss(weight=torch.full((3,), float(weight)).double(), reduction="sum")
    matrix = operator(model, loss, params, data, check_deterministic=False, **options) @ torch.eye(12, dtype=torch.float64)
    return torch.as_tensor(matrix).trace().item()

def ratio(operator, **options):
    return trace(operator, 10, **options) / trace(operator, 1, **options)

ggn = ratio(GGNLinearOperator)
exact, sampled = (ratio(KFACLinearOperator, fisher_type=kind) for kind in ("type-2", "mc"))
assert abs(trace(GGNLinearOperator, 1) / trace(KFACLinearOperator, 1, fisher_type="type-2") - 1) < 1e-9
print(f"trace for weights 10 over trace for weights 1: GGN {ggn:.2f}, KFAC type-2 {exact:.2f}, KFAC mc {sampled:.2f}")
raise SystemExit([round(x, 6) for x in (ggn, exact, sampled)] != [10, 1, 100])
P
