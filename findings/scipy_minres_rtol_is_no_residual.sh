#!/bin/sh
# SciPy 1.17.1: minres(A, b, rtol=1e-5) says that it converged with a residual of 9 % of b, for a
# symmetric positive definite matrix of condition number 1e4.
#
# Expected: |b - A x| <= rtol |b|, as with cg and gmres: "The algorithm terminates when the relative
# residual is below rtol". It compares with |A| |x| instead of |b|, and |x| is large where b has
# parts along flat directions, as a gradient has in a Newton step H x = -g. info is 0, no warning.
# Output seen: rtol 1e-05: residual over b 8.9e-02 by minres, 8.9e-06 by cg; x off by 0.25, 5e-06
#   rtol 1e-08: residual over b 1.8e-04 by minres, 7.6e-09 by cg; x off by 0.00047, 6e-09
#   info [0, 0, 0, 0]; warnings: 0
# PYTHON=... uses a Python that has SciPy 1.17.1 instead of installing it.
# Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "$PYTHON" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet numpy==2.4.6 scipy==1.17.1
    PYTHON="$folder/venv/bin/python"
fi
OPENBLAS_NUM_THREADS=1 "$PYTHON" - <<'P'
import warnings

import numpy as np
from scipy.sparse.linalg import cg, minres

values = np.logspace(-4, 0, 200)
A, b = np.diag(values), np.full(200, 200**-0.5)
infos, residuals = [], []

with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for rtol in (1e-5, 1e-8):
        found = [solver(A, b, rtol=rtol, maxiter=10000) for solver in (minres, cg)]
        infos += [info for _, info in found]
        pair = [float(np.linalg.norm(A @ x - b) / np.linalg.norm(b)) for x, _ in found]
        residuals += [residual / rtol for residual in pair]
        truth = b / values
        off = [np.linalg.norm(x - truth) / np.linalg.norm(truth) for x, _ in found]
        print(
            f"rtol {rtol:.0e}: residual over b {pair[0]:.1e} by minres, {pair[1]:.1e} by cg; "
            f"x off by {off[0]:.2g}, {off[1]:.0e}"
        )
print(f"info {infos}; warnings: {len(seen)}")
by_minres, by_cg = residuals[::2], residuals[1::2]
raise SystemExit(not (min(by_minres) > 100 and max(by_cg) <= 1 and not any(infos) and not seen))
P
