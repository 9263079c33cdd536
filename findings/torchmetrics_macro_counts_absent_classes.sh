#!/bin/sh
# torchmetrics 1.9.0 with torch 2.14.1: MulticlassAccuracy, whose default is average="macro", counts a
# class that the data do not have as one of accuracy 0 as soon as one row is taken for it; and
# Accuracy(task="multiclass") of the same rows is another number, because its default is "micro".
#
# Expected: the mean of the accuracies of the classes that have rows. Zero-shot heads with more classes than the data set has (1000 for the 200 of
# ImageNet-A or -R) lose most of their accuracy so: a class never predicted is left out, one predicted
# once counts as a whole class of errors.
# Output seen: 1 of 100 rows wrong: taken for the other class 0.990, for a class without rows 0.660;
#              Accuracy(task="multiclass") 0.990; mean of the classes 0.990
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
from torchmetrics import Accuracy
from torchmetrics.classification import MulticlassAccuracy

labels = torch.tensor([0] * 50 + [1] * 50)

def answers(wrong):
    predicted = labels.clone()
    predicted[0] = wrong
    return predicted

def rounded(value):
    return round(float(value), 3)

near, far = (rounded(MulticlassAccuracy(num_classes=3)(answers(k), labels)) for k in (1, 2))
micro = rounded(Accuracy(task="multiclass", num_classes=3)(answers(2), labels))
recalls = [(answers(2) == labels)[labels == label].double().mean() for label in (0, 1)]
mean = rounded(sum(recalls) / 2)
print(f"1 of 100 rows wrong: taken for the other class {near:.3f}, for a class without rows {far:.3f};")
print(f'Accuracy(task="multiclass") {micro:.3f}; mean of the classes {mean:.3f}')
raise SystemExit((near, far, micro, mean) != (0.99, 0.66, 0.99, 0.99))
P
