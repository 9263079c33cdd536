#!/bin/sh
# open_clip_train makes other inputs of one PNG with a palette or transparency, depending on whether a CSV or a shard holds it:
#   - from a CSV, `Image.open` goes to the transform, which resizes the picture in its own mode and converts it to RGB afterwards;
#     Pillow resizes mode P by the nearest pixel whatever filter is asked for, and RGBA weighted by its transparency;
#   - from a shard, webdataset decodes with "pilrgb": RGB first, then the bicubic resize.
# Both are documented nowhere. The order of the steps is read from the published source; the steps are done by Pillow, as
# torchvision's Resize does them for pictures (torch is not needed).
#
# Seen with open_clip_torch 3.3.0 and pillow 13.0.0 (Python 3.11), a 64 x 64 picture resized to 32 x 32:
#   palette: 99 % of the values differ, by up to 179 of 255
#   transparency: 97 % of the values differ, by up to 77 of 255
# Exits with 0 if it is still so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 numpy
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps open_clip_torch==3.3.0
cd "$folder"
"$folder/venv/bin/python" - <<'END'
import ast, io, sysconfig
from pathlib import Path

import numpy as np
from PIL import Image

packages = Path(sysconfig.get_path("purelib"))
data = (packages / "open_clip_train" / "data.py").read_text()
tree = ast.parse((packages / "open_clip" / "transform.py").read_text())
(function,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "image_transform"]
evaluation = ast.unparse(function).rpartition("if resize_mode == 'longest'")[2]
assert evaluation.index("Resize(") < evaluation.index("MaybeConvertMode()"), "the behaviour has changed"
assert "self.transforms(Image.open(str(self.images[idx])))" in data and 'wds.decode("pilrgb"' in data, "the behaviour has changed"

noise = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
pictures = {"palette": Image.fromarray(noise[..., :3].copy()).convert("P"), "transparency": Image.fromarray(noise)}
for name, picture in pictures.items():
    stream = io.BytesIO()
    picture.save(stream, "png")
    opened = Image.open(stream)
    from_table = np.asarray(opened.resize((32, 32), Image.Resampling.BICUBIC).convert("RGB")).astype(int)
    from_shard = np.asarray(opened.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
    differ, most = (from_table != from_shard).mean(), np.abs(from_table - from_shard).max()
    print(f"{name}: {100 * differ:.0f} % of the values differ, by up to {most} of 255")
    assert differ > 0.9 and most > 50, "the behaviour has changed"
END
