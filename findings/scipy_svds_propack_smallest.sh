#!/bin/sh
# SciPy 1.17.1: svds(A, k=2, which="SM", solver="propack") of a matrix with singular values 1 .. 40 returns [0, 0], and no warning.
#
# Expected: 1 and 2, or an error, which which="LM" of the same solver raises for this matrix. Such a zero looks like an
# exactly flat direction. solver="arpack" is right.
# Output seen: propack [0.0, 0.0], arpack [1.0, 2.0]; warnings: 0
# Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 scipy==1.17.1
OPENBLAS_NUM_THREADS=1 "$folder/venv/bin/python" - <<'P'
import warnings

import numpy as np
from scipy.sparse.linalg import svds

A = np.diag(np.arange(1.0, 41.0))

def smallest(**options):
    values = svds(A, k=2, which="SM", return_singular_vectors=False, rng=np.random.default_rng(0), **options)
    return [round(float(value), 3) + 0.0 for value in sorted(values)]

with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    made_up = smallest(solver="propack")
right = smallest(solver="arpack")
print(f"propack {made_up}, arpack {right}; warnings: {len(seen)}")
raise SystemExit(not (made_up == [0, 0] and right == [1, 2] and not seen))
P
