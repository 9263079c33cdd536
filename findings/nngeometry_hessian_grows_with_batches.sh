#!/bin/sh
# nngeometry 0.4: the Hessian of the same rows grows with the number of batches of the loader: Hessians of the batches are added
# up and never divided, while the FIM of the same call is an average over the rows.
#
# Expected: one matrix for one data set, whatever the batch size; Hessian and FIM of one loader on one scale.
# Output seen: 40 rows in 1, 2, 5 batches: trace of the Hessian over that in one batch 1.00 2.00 5.00, of the FIM 1.00 1.00 1.00
# PYTHON=... uses a Python that has torch 2.14.1 instead of installing it. Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "$PYTHON" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.14.1 numpy
    PYTHON="$folder/venv/bin/python"
fi
"$PYTHON" -m pip install --quiet --no-deps --target "$folder/site" nngeometry==0.4
PYTHONPATH="$folder/site" "$PYTHON" -W ignore - <<'P'
import torch
from nngeometry import FIM, Hessian
from nngeometry.object import PMatDense
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(5, 3))
data = TensorDataset(torch.randn(40, 5), torch.randint(3, (40,)))

def traces(size):
    loader = DataLoader(data, batch_size=size)
    H = Hessian(model=model, loader=loader, representation=PMatDense, function=torch.nn.functional.cross_entropy)
    F = FIM(model=model, loader=loader, representation=PMatDense, variant="classif_logits")
    return float(H.trace()), float(F.trace())

rows = [traces(size) for size in (40, 20, 8)]
hessians, fims = ([trace / first for trace in column] for column, first in zip(zip(*rows), rows[0]))
print("40 rows in 1, 2, 5 batches: trace of the Hessian over that in one batch", *(f"{x:.2f}" for x in hessians),
      "of the FIM", *(f"{x:.2f}" for x in fims))
raise SystemExit([round(x, 2) for x in (*hessians, *fims)] != [1, 2, 5, 1, 1, 1])
P
