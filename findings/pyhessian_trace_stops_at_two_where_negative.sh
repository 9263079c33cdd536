#!/bin/sh
# PyHessian 0.1 with torch 2.14.1: trace() takes two random vectors and stops where the trace is
# negative, whatever maxIter and tol are.
#
# Expected: it goes on until the mean changes by less than tol of itself. The change is divided by
# trace + 1e-6, which is negative there, and a negative number is less than any tol. So the trace of a
# model at a saddle is a mean of two, with the spread below, and that of -f is not minus that of f.
# Output seen: f: 42 to 165 vectors, 362.0 to 404.4, true 385.6
#              -f: 2 to 2 vectors, -510.2 to -292.0, true -385.6
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
"$PYTHON" -m pip install --quiet --no-deps --target "$folder/site" pyhessian==0.1
PYTHONPATH="$folder/site" "$PYTHON" -W ignore - <<'P'
import torch
from pyhessian import hessian

class Quadratic(torch.nn.Module):
    def __init__(self, matrix):
        super().__init__()
        self.w, self.matrix = torch.nn.Parameter(torch.ones(len(matrix))), matrix

    def forward(self, x):
        return self.w @ self.matrix @ self.w / 2

torch.manual_seed(0)
M = torch.randn(20, 20)
counts, spreads = [], []
for sign in (1, -1):
    matrix = sign * M @ M.T
    data = (torch.zeros(1), torch.zeros(1))
    H = hessian(Quadratic(matrix), lambda output, _: output, data=data, cuda=False)
    runs = [H.trace(maxIter=1000, tol=1e-4) for _ in range(8)]
    counts.append((min(map(len, runs)), max(map(len, runs))))
    means = [sum(run) / len(run) for run in runs]
    spreads.append(max(means) - min(means))
    print(
        f"{'f' if sign > 0 else '-f'}: {counts[-1][0]} to {counts[-1][1]} vectors, "
        f"{min(means):.1f} to {max(means):.1f}, true {matrix.trace():.1f}"
    )
raise SystemExit(not (counts[0][0] > 5 and counts[1] == (2, 2)))
P
