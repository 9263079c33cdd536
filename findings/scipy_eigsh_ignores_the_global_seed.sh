#!/bin/sh
# SciPy 1.17.1: after np.random.seed(0), eigsh starts from another vector each time, so eigenvectors come
# back with either sign, and values to a loose tolerance differ from run to run.
#
# Expected: as the functions of scipy.stats, the start of numpy's global generator; older versions began
# from the same vector every time. The start is drawn from a new generator that nothing seeds; rng=0 or v0
# fixes it. Angles between eigenvectors of two checkpoints, or their mean over runs, take other signs.
# Output seen: np.random.seed: 2 signs in 20 runs, values differ; rng=0: 1 sign, the same bits
# Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet scipy==1.17.1 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'P'
import numpy as np
from scipy.sparse.linalg import eigsh

A = np.diag(np.arange(1.0, 301.0))

def run(**options):
    np.random.seed(0)
    values, vectors = eigsh(A, k=3, tol=1e-2, **options)
    return values.tobytes(), np.sign(vectors[-1, -1])

def summary(**options):
    runs = [run(**options) for _ in range(20)]
    return len({sign for _, sign in runs}), len({values for values, _ in runs})

seeded, fixed = summary(), summary(rng=0)
print(
    f"np.random.seed: {seeded[0]} signs in 20 runs, values {'differ' if seeded[1] > 1 else 'agree'}; "
    f"rng=0: {fixed[0]} sign, {'the same bits' if fixed[1] == 1 else 'other bits'}"
)
raise SystemExit(not (seeded[0] == 2 and seeded[1] > 1 and fixed == (1, 1)))
P
