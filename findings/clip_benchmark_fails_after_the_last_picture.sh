#!/bin/sh
# clip-benchmark 1.6.2 asks for any NumPy, and with NumPy 2.4.6 `clip_benchmark eval` classifies the whole data set and then fails: its
# accuracy() calls float() on an array with one element, which NumPy no longer takes for a number. Nothing of the evaluation is kept.
#
# Expected: a bound on NumPy, or float() of a scalar. With NumPy 2.3.5 the same command ends with its metrics.
# Output seen: accuracy of four pictures: TypeError: only 0-dimensional arrays can be converted to Python scalars
# PYTHON=... uses a Python that has torch, torchvision and open_clip instead of installing them. Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "$PYTHON" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.14.1 torchvision==0.29.1
    "$folder/venv/bin/pip" install --quiet open_clip_torch==3.3.0
    PYTHON="$folder/venv/bin/python"
fi
"$PYTHON" -m pip install --quiet --disable-pip-version-check --target "$folder/site" numpy==2.4.6 scikit-learn==1.7.2 tqdm
"$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder/site" clip-benchmark==1.6.2
PYTHONPATH="$folder/site" "$PYTHON" - <<'P'
import sys

import numpy
import torch
from clip_benchmark.metrics.zeroshot_classification import accuracy

assert numpy.__version__ == "2.4.6", numpy.__version__
scores, labels = torch.eye(4), torch.arange(4)
try:
    print("accuracy of four pictures:", accuracy(scores, labels, topk=(1,)))
    sys.exit(1)
except TypeError as error:
    print(f"accuracy of four pictures: TypeError: {error}")
P
