#!/bin/sh
# torchvision 0.29.1: CLEVRClassification gives the number of objects itself, 3 to 10, as the label, and has no `classes`; every other
# classification set of torchvision numbers its classes from 0. A classifier, or a zero-shot classifier over the published eight
# names, that takes labels as positions is wrong on every picture with fewer than eight objects or more, without an error for three to
# seven: label 3 is then the fourth class.
# Expected: labels 0 to 7 with `classes`, or a note in the documentation, which says only that the data set is for classification.
# Output seen: labels [3, 7, 10], classes None; as positions among ['3', ..., '10']: ['6', '10', 'out of range']
# PYTHON=... uses a Python that has torchvision 0.29.1 instead of installing it. Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "$PYTHON" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.14.1 torchvision==0.29.1
    "$folder/venv/bin/pip" install --quiet numpy pillow
    PYTHON="$folder/venv/bin/python"
fi
cat > "$folder/clevr.py" <<'P'
import json
import sys
from pathlib import Path

import torchvision
from PIL import Image
from torchvision.datasets import CLEVRClassification

assert torchvision.__version__.startswith("0.29.1"), torchvision.__version__
root = Path(sys.argv[1])
pictures, scenes = root / "clevr" / "CLEVR_v1.0" / "images" / "val", root / "clevr" / "CLEVR_v1.0" / "scenes"
pictures.mkdir(parents=True)
scenes.mkdir()
found = []
for number, count in enumerate((3, 7, 10)):
    name = f"CLEVR_val_{number:06}.png"
    Image.new("RGB", (8, 8)).save(pictures / name)
    found.append({"image_filename": name, "objects": [{}] * count})
(scenes / "CLEVR_val_scenes.json").write_text(json.dumps({"scenes": found}))
data = CLEVRClassification(str(root), split="val")
labels, names = [data[i][1] for i in range(len(data))], [str(count) for count in range(3, 11)]
print(f"labels {labels}, classes {getattr(data, 'classes', None)}")
print("as positions:", [names[label] if label < len(names) else "out of range" for label in labels])
sys.exit(0 if labels == [3, 7, 10] and not hasattr(data, "classes") else 1)
P
"$PYTHON" "$folder/clevr.py" "$folder"
