"""A small valid study, of which hostile inputs are made: pictures, table, shard, manifests,
checkpoints, stores, figures.

Everything of it can be read and measured in a second.
"""

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

NUM_PAIRS = 12
CONFIG = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 8, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
MANIFEST = """\
version: 1
data: {{source: {source}, split: all, num_samples: 6, batch_size: 3, seed: 0}}
hessian:
  objective: contrastive
  parameters: ["visual.*"]
  weight_decay: 0.1
  k: 2
  max_matvecs: 40
  tol: 0.01
series:
  - name: vit
    label: ViT
    config: tiny.json
    checkpoints:
      - {{epoch: 0, path: run/checkpoints/epoch_0.pt}}
      - {{epoch: 1, path: run/checkpoints/epoch_1.pt}}
"""


def png(seed: int, side: int = 16) -> bytes:
    """A picture of noise."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def write_inputs(folder: Path) -> None:
    """Write what a user brings: pictures, a table and a shard of them, a configuration,
    manifests.
    """
    (folder / "pics").mkdir()
    rows = ["filepath\ttitle"]
    with tarfile.open(folder / "data-0.tar", "w") as archive:
        for i in range(NUM_PAIRS):
            content = png(i)
            (folder / f"pics/{i}.png").write_bytes(content)
            rows.append(f"pics/{i}.png\ta picture of colour {i}")
            for suffix, data in (("png", content), ("txt", f"a picture of colour {i}".encode())):
                member = tarfile.TarInfo(f"{i:04}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    (folder / "pairs.tsv").write_text("\n".join(rows) + "\n")
    (folder / "tiny.json").write_text(json.dumps(CONFIG))
    (folder / "m.yaml").write_text(MANIFEST.format(source="pairs.tsv"))
    (folder / "shards.yaml").write_text(MANIFEST.format(source='"data-{0..0}.tar"'))


def commands() -> list[list[str]]:
    """The commands that make the rest, in order."""
    return [
        (
            "train --model tiny.json --data pairs.tsv --split all --epochs 1 --batch-size 4 -o run"
        ).split(),
        "spectra m.yaml -o s.h5 --per-module --modules visual.transformer.*".split(),
        "density m.yaml -o d.png --probes 1 --matvecs 5 --dense-limit 0".split(),
        "surface m.yaml -o f.png --dimensions 1 --points 5".split(),
    ]


def write_other_weights(folder: Path) -> None:
    """Write the last checkpoint in other containers: safetensors, and torch's format before 1.6."""
    import torch
    from safetensors.torch import save_file

    state = torch.load(folder / "run/checkpoints/epoch_1.pt", weights_only=True)
    weights = next(
        value for value in state.values() if isinstance(value, dict) and "visual.proj" in value
    )
    save_file(
        {name: value.contiguous() for name, value in weights.items()}, folder / "w.safetensors"
    )
    torch.save({"state_dict": weights}, folder / "old.pt", _use_new_zipfile_serialization=False)


def main(folder: Path) -> None:
    """Make the whole study; for a process of its own."""
    import os

    from landscape.cli import main as landscape

    os.chdir(folder)
    write_inputs(folder)
    for command in commands():
        try:
            landscape(command, standalone_mode=False)
        except SystemExit as error:
            assert error.code == 0, command


if __name__ == "__main__":
    main(Path(sys.argv[1]))
