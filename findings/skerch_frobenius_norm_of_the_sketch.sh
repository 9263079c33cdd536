#!/bin/sh
# skerch 1.2.0 with torch 2.14.1: snorm returns the Frobenius norm of the matrix's projection on as
# many random directions as it measures: a lower bound that nears the norm only at all n of them.
#
# Expected: the estimate |A W|_F^2 / q of the squared norm from q Gaussian vectors W, 5 by default,
# which the documentation gives and whose mean is right for any matrix. It needs no other products:
# A W is Q R, and both are among what snorm returns. No error, no warning.
# Output seen: over the true norm, 400 x 400, mean of 20 seeds
#   eigenvalues of one size: snorm 0.11, from the same measurements 1.00; by 100 vectors 0.50, 1.00
#   eigenvalues 1 / k: snorm 0.85, from the same measurements 0.94; by 100 vectors 0.99, 1.01
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
"$PYTHON" -m pip install --quiet --no-deps --target "$folder/site" skerch==1.2.0 torch-dct==0.1.6
PYTHONPATH="$folder/site" "$PYTHON" -W ignore - <<'P'
import torch
from skerch.algorithms import snorm

SEEDS, SIZE = range(20), 400
torch.manual_seed(0)
basis = torch.linalg.qr(torch.randn(SIZE, SIZE, dtype=torch.float64))[0]

def ratios(eigenvalues, num_meas):
    """Return the norm by snorm, and that of the formula, over the true one."""
    A = basis @ torch.diag(eigenvalues) @ basis.T
    by_snorm, squares = [], []
    for seed in SEEDS:
        norms, (_, R, _) = snorm(A, "cpu", A.dtype, num_meas=num_meas, seed=1000 * seed)
        by_snorm.append(float(norms["fro"]))
        squares.append(float(R.square().sum()) / num_meas)
    mean = torch.tensor(by_snorm).mean() / A.norm(), torch.tensor(squares).mean().sqrt() / A.norm()
    return [round(float(value), 2) for value in mean]

ones = torch.ones(SIZE, dtype=torch.float64)
spectra = {"eigenvalues of one size": ones, "eigenvalues 1 / k": 1 / ones.cumsum(0)}
print(f"over the true norm, {SIZE} x {SIZE}, mean of {len(SEEDS)} seeds")
seen = {}
for name, eigenvalues in spectra.items():
    few, many = seen[name] = ratios(eigenvalues, 5), ratios(eigenvalues, 100)
    print(
        f"  {name}: snorm {few[0]:.2f}, from the same measurements {few[1]:.2f}; "
        f"by 100 vectors {many[0]:.2f}, {many[1]:.2f}"
    )
flat = seen["eigenvalues of one size"]
right = all(abs(formula - 1) < 0.1 for pair in seen.values() for _, formula in pair)
raise SystemExit(not (flat[0][0] < 0.15 and flat[1][0] < 0.6 and right))
P
