#!/bin/sh
# hessian-eigenthings 1.0.0a5: microbatch_size, which bounds memory, changes the Hessian where it does not divide the batch: the
# mean over chunks weighs a last chunk of one row like a chunk of 32.
#
# Expected: the same operator for the same batch. A loader's short last batch is weighed alike ("averaged over batches"), where
# PyHessian and curvlinops weigh by rows.
# Output seen: 33 rows at once 0.6300, in microbatches of 11 0.6300, of 32 2.1474
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
"$PYTHON" -m pip install --quiet --no-deps --target "$folder/site" hessian-eigenthings==1.0.0a5
PYTHONPATH="$folder/site" "$PYTHON" -W ignore - <<'P'
import torch
from hessian_eigenthings import HessianOperator

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).double()
x, y = torch.randn(33, 5).double(), torch.randint(3, (33,))
x[-1] *= 5

def loss(model, batch):
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

def largest(**options):
    operator = HessianOperator(model, [(x, y)], loss, **options)
    n = sum(p.numel() for p in model.parameters())
    columns = [operator.matvec(e) for e in torch.eye(n, dtype=torch.float64)]
    return torch.linalg.eigvalsh(torch.stack(columns)).max().item()

whole, even, uneven = largest(), largest(microbatch_size=11), largest(microbatch_size=32)
print(f"33 rows at once {whole:.4f}, in microbatches of 11 {even:.4f}, of 32 {uneven:.4f}")
raise SystemExit(not (abs(even - whole) < 1e-9 * abs(whole) and abs(uneven - whole) > 0.1 * abs(whole)))
P
