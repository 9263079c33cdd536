#!/bin/sh
# torchmetrics 1.9.0 with torch 2.14.1: the calibration error of the same scores depends on how they are
# cut into batches: update() takes a softmax of a batch if one of its values is outside of [0, 1].
#
# Expected: the same number for the same rows. The rule is in the documentation, for "preds", and is
# applied to each call by itself. Cosines of an image-text model are such scores: a batch without a
# negative one passes as probabilities, the next one gets a softmax, and both are counted together.
# Output seen: calibration error in batches of 200 0.7351, of 100 0.4937; of the softmax of all 0.7351
# PYTHON=... uses a Python that has torch 2.14.1 and packaging instead of installing them.
# Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "$PYTHON" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
        torch==2.14.1 numpy
    "$folder/venv/bin/pip" install --quiet packaging
    PYTHON="$folder/venv/bin/python"
fi
"$PYTHON" -m pip install --quiet --no-deps --target "$folder/site" torchmetrics==1.9.0 lightning-utilities==0.15.2
PYTHONPATH="$folder/site" "$PYTHON" -W ignore - <<'P'
import torch
from torchmetrics.classification import MulticlassCalibrationError

cosines = 0.9 * torch.rand(200, 5, generator=torch.Generator().manual_seed(0))
cosines[100:] -= 0.3
labels = cosines.argmax(dim=1)

def error(scores, rows):
    metric = MulticlassCalibrationError(num_classes=5)
    for part, answers in zip(scores.split(rows), labels.split(rows)):
        metric.update(part, answers)
    return round(float(metric.compute()), 4)

whole, halves, softmax = error(cosines, 200), error(cosines, 100), error(cosines.softmax(1), 100)
print(
    f"calibration error in batches of 200 {whole:.4f}, of 100 {halves:.4f}; "
    f"of the softmax of all {softmax:.4f}"
)
raise SystemExit(not (whole == softmax and abs(whole - halves) > 0.1))
P
