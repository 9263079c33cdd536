"""Pictures per CPU second of `landscape evaluate` beside clip-benchmark's command and the bare
forward pass, and their answers.

    python experiments/benchmark_evaluate.py --json evaluate.json

ViT-B-32 with random weights, 2,000 JPEG pictures of ten classes in clip-benchmark's shards, read by
both from the same files with the same class names and prompts. clip-benchmark, as PyPI has it, runs
in an environment that this makes in --environment. Each command is a process of its own with all
its children; CPU seconds are of the whole command, starting included. `forward` is the image tower
alone on tensors that are there, in batches of 32.
"""

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from peers.environment import Peer, make_environment
from peers.processes import write_json
from PIL import Image

CLASSES = ("cat", "dog", "tree", "house", "boat", "chair", "clock", "knife", "truck", "bird")
TEMPLATES = ("a photo of a {c}.", "a drawing of a {c}.")
MODEL = "ViT-B-32"
SIDE, NUM_SHARDS = 300, 4
# It imports requests and does not ask for it, and fails after its last picture where NumPy no
# longer takes an array for a number.
THEIRS = Peer(
    "clip-benchmark",
    "clip_benchmark.cli",
    without=("numpy==2.3.5",),
    needs=("clip-benchmark", "requests"),
)
MANIFEST = """
version: 1
epoch_zero: optional
data: {{source: openmoji, image_size: 64, num_samples: 15, batch_size: 15}}
hessian: {{objective: contrastive}}
series:
  - {{name: vit, model: {model}, checkpoints: [{{epoch: 1, path: {checkpoint}}}]}}
"""


@dataclass(frozen=True)
class Row:
    """One way of evaluating all pictures; seconds are medians over the rounds."""

    way: str
    cpu_seconds: float
    wall_seconds: float
    pictures_per_cpu_second: float


def write_shards(folder: Path, count: int) -> None:
    """Smooth noise as JPEG in clip-benchmark's layout; with fewer shards than loaders it fails."""
    generator = np.random.default_rng(0)
    (folder / "test").mkdir(parents=True)
    (folder / "classnames.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    (folder / "zeroshot_classification_templates.txt").write_text(
        "".join(f"{text}\n" for text in TEMPLATES)
    )
    each = -(-count // NUM_SHARDS)
    (folder / "test" / "nshards.txt").write_text(str(NUM_SHARDS))
    for shard in range(NUM_SHARDS):
        with tarfile.open(folder / "test" / f"{shard}.tar", "w") as tar:
            for number in range(each * shard, min(count, each * (shard + 1))):
                coarse = generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)
                content = io.BytesIO()
                picture = Image.fromarray(coarse).resize(
                    (SIDE, SIDE + number % 80), Image.Resampling.BICUBIC
                )
                picture.save(content, "JPEG", quality=90)
                label = int(generator.integers(len(CLASSES)))
                for suffix, member in (("jpg", content.getvalue()), ("cls", str(label).encode())):
                    info = tarfile.TarInfo(f"s{number:07}.{suffix}")
                    info.size = len(member)
                    tar.addfile(info, io.BytesIO(member))


def write_weights(path: Path) -> None:
    """Random weights of seed 0, as open_clip saves them."""
    import torch

    from landscape.clip.model import build_model

    torch.save(build_model(MODEL, seed=0).state_dict(), path)


def timed(command: Sequence[str], *, threads: int) -> tuple[float, float]:
    """CPU and wall seconds of a command and its children."""
    before, begun = _children(), time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command[:6])} ...: status {done.returncode}\n{done.stderr[-2000:]}"
        )
    return _children() - before, time.perf_counter() - begun


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def forward(count: int) -> None:
    """The image tower alone on as many pictures."""
    import torch

    from landscape.clip.model import build_model

    model: Any = build_model(MODEL, seed=0)
    pictures = torch.rand(32, 3, 224, 224)
    with torch.no_grad():
        for start in range(0, count, 32):
            model.encode_image(pictures[: min(32, count - start)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument(
        "--rounds", type=int, default=1, help="each way in turn, so often (default: %(default)s)"
    )
    parser.add_argument(
        "--environment",
        type=Path,
        default=Path("runs/benchmark/clip_benchmark"),
        help="of clip-benchmark",
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--forward", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.forward:
        forward(options.forward)
        return
    environment = make_environment(options.environment.resolve(), [THEIRS])
    if environment.failures:
        raise SystemExit(f"clip-benchmark cannot be installed: {environment.failures}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_shards(root / "shards", options.pictures)
        write_weights(root / "weights.pt")
        (root / "manifest.yaml").write_text(
            MANIFEST.format(model=MODEL, checkpoint=root / "weights.pt")
        )
        measure(root, options, environment.python, environment.versions)


def measure(root: Path, options: argparse.Namespace, python: str, versions: Any) -> None:
    """Run each way in turn, compare the answers, print and write."""
    ways: dict[str, list[tuple[float, float]]] = {
        "forward": [],
        "landscape evaluate": [],
        "clip-benchmark": [],
    }
    for number in range(options.rounds):
        ours, theirs = root / f"ours_{number}.h5", root / f"theirs_{number}.json"
        ways["forward"].append(
            timed([sys.executable, __file__, "--forward", str(options.pictures)], threads=1)
        )
        command = [
            sys.executable,
            "-m",
            "landscape",
            "evaluate",
            str(root / "manifest.yaml"),
            "-o",
            str(ours),
            "--workers",
            "2",
        ]
        os.environ["LANDSCAPE_CACHE"] = str(root / f"cache_{number}")
        ways["landscape evaluate"].append(
            timed([*command, "--data", f"bench={root / 'shards'}"], threads=1)
        )
        command = [
            python,
            "-m",
            "clip_benchmark.cli",
            "eval",
            "--dataset",
            "wds/bench",
            "--dataset_root",
            str(root / "shards"),
        ]
        command += [
            "--model",
            MODEL,
            "--pretrained",
            str(root / "weights.pt"),
            "--output",
            str(theirs),
            "--num_workers",
            "2",
        ]
        ways["clip-benchmark"].append(
            timed([*command, "--no_amp", "--batch_size", "32"], threads=1)
        )
    rows = [
        Row(
            way,
            cpu := statistics.median(seconds for seconds, _ in found),
            statistics.median(wall for _, wall in found),
            options.pictures / cpu,
        )
        for way, found in ways.items()
    ]
    print(
        f"{date.today()}, {os.cpu_count()} cores, {MODEL}, {options.pictures} pictures, "
        f"clip-benchmark {dict(versions)}"
    )
    for row in rows:
        rate = f"{row.pictures_per_cpu_second:7.2f} pictures per CPU s"
        print(f"{row.way:20} {row.cpu_seconds:8.1f} CPU s {row.wall_seconds:8.1f} s {rate}")
    agreed = agreement(root / "ours_0.h5", json.loads((root / "theirs_0.json").read_text()))
    print(f"ours / theirs: {agreed}")
    if options.json:
        write_json(options.json, {"rows": [asdict(row) for row in rows], "agreement": agreed})


def agreement(ours: Path, theirs: Any) -> dict[str, tuple[float, float]]:
    """Top-1, top-5 and mean per class of both."""
    from landscape.statistics import mean_class_recall, top_k_hits
    from landscape.store.predictions import read_predictions

    store = read_predictions(ours)
    assert store is not None
    (one,), (checkpoint,) = store.sets.values(), store.checkpoints.values()
    top = checkpoint.sets[one.name].top
    hits = top_k_hits(one.labels, top, 1)
    metrics = theirs["metrics"]
    return {
        "top-1": (float(hits.mean()), metrics["acc1"]),
        "top-5": (float(top_k_hits(one.labels, top, 5).mean()), metrics["acc5"]),
        "mean per class": (
            float(mean_class_recall(one.labels, hits)),
            metrics["mean_per_class_recall"],
        ),
    }


if __name__ == "__main__":
    main()
