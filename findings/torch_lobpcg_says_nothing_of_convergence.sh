#!/bin/sh
# torch 2.14.1: torch.lobpcg with its defaults returns the three smallest eigenvalues of a positive
# definite matrix 12 to 15 times too large, and says nothing of convergence: no flag, no residuals, no
# warning. scipy.linalg.eigh finds them, and the largest three of torch.lobpcg are right.
#
# Expected: with the default niter=-1 ("as many iterations as it takes") values to the tolerance, or a
# word that it was not reached. The tolerance is measured against the norm of the matrix and of the
# vectors, so at a condition of 1e8 it is met by values that have no correct digit.
# Output seen: smallest 1.23e-07 1.28e-07 1.73e-07, true 1.00e-08 1.06e-08 1.13e-08
#              largest 0.8841 0.9403 1.0000, true 0.8841 0.9403 1.0000
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

torch.manual_seed(0)
values = torch.logspace(-8, 0, 300, dtype=torch.float64)
Q, _ = torch.linalg.qr(torch.randn(300, 300, dtype=torch.float64))
A = (Q * values) @ Q.T
A = (A + A.T) / 2
exact = torch.linalg.eigvalsh(A)

def by_lobpcg(largest):
    torch.manual_seed(0)
    return torch.lobpcg(A, k=3, largest=largest)[0].sort().values

def text(values, form):
    return " ".join(format(float(value), form) for value in values)

smallest, largest = by_lobpcg(False), by_lobpcg(True)
print(f"smallest {text(smallest, '.2e')}, true {text(exact[:3], '.2e')}")
print(f"largest {text(largest, '.4f')}, true {text(exact[-3:], '.4f')}")
factor, error = float((smallest / exact[:3]).min()), float((largest / exact[-3:] - 1).abs().max())
raise SystemExit(not (factor > 2 and error < 1e-6))
P
