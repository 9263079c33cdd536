#!/bin/sh
# hessian-eigenthings 1.0.0a5 with torch 2.14.1: lanczos(k=5) with more than 50 steps returns the largest
# eigenvalue five times, with residuals of zero and converged=True for each; with 50 steps it is right.
#
# Expected: more steps, better values. Above 50 it leaves reorthogonalisation out, as its docstring
# says, and takes the copies that come of it for eigenvalues. The residual that decides on `converged`
# is an estimate that holds for an orthogonal basis. reorthogonalize=True is right.
# Output seen:
#   50 steps: 100.00 50.00 20.00 10.00 5.00, all converged
#   51 steps: 100.00 100.00 100.00 100.00 100.00, all converged
#   51 steps, reorthogonalize=True: 100.00 50.00 20.00 10.00 5.00, all converged
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
"$PYTHON" -m pip install --quiet --no-deps --target "$folder/site" hessian-eigenthings==1.0.0a5
PYTHONPATH="$folder/site" "$PYTHON" -W ignore - <<'P'
import torch
from hessian_eigenthings import LambdaOperator, lanczos

TRUE = [100.0, 50.0, 20.0, 10.0, 5.0]
values = torch.cat([torch.tensor(TRUE), torch.linspace(-1, 1, 1995)]).double()
operator = LambdaOperator(lambda v: values * v, 2000, dtype=torch.float64)

def solved(steps, **options):
    result = lanczos(operator, k=5, max_iter=steps, seed=0, **options)
    found = [round(float(value), 6) for value in result.eigenvalues]
    name = ", ".join([f"{steps} steps", *(f"{key}={value}" for key, value in options.items())])
    converged = "all converged" if bool(result.converged.all()) else "not all converged"
    print(f"  {name}: {' '.join(f'{value:.2f}' for value in found)}, {converged}")
    return found, converged

few, many, kept = solved(50), solved(51), solved(51, reorthogonalize=True)
expected = (TRUE, "all converged")
raise SystemExit((few, many, kept) != (expected, ([100.0] * 5, "all converged"), expected))
P
