"""`landscape spectra` of this checkout against an older commit: wall and CPU seconds of the same
manifest.

    python experiments/benchmark_workers.py --ref 0ffda8f          # 15 minutes on two free cores
    python experiments/benchmark_workers.py --ref 0ffda8f --busy   # beside one busy process
    python experiments/benchmark_workers.py --ref 0ffda8f --large --batches 4

Two networks, 40 batches of 15 pairs each: of about 1 million parameters outside of embedding
tables, or with --large of 13 million. The variants take turns, each run a process of its own: the
older commit with its default threads, the older commit with one thread, this checkout with its
default, with one worker and with two. CPU seconds are those of the process and of all its children.
The eigenvalues of every run are compared with those of the first. Run it on a quiet machine: the
load average is printed beside the numbers.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import date
from pathlib import Path

import numpy as np
import yaml
from benchmark_busy import ROOT, THREAD_VARIABLES, busy_process, checkout, write_pictures

NUM_BATCHES, BATCH_SIZE, IMAGE_SIZE = 40, 15, 32
VARIANTS = {
    "before, default": ("before", ()),
    "before, --threads 1": ("before", ("--threads", "1")),
    "now, default": ("now", ()),
    "now, --workers 1": ("now", ("--workers", "1")),
    "now, --workers 2": ("now", ("--workers", "2")),
}


def write_study(folder: Path, num_batches: int, *, large: bool) -> Path:
    """Write pictures, two networks of random weights, and the manifest."""
    from landscape.clip.checkpoint import save_checkpoint
    from landscape.clip.model import build_model

    write_pictures(folder / "pictures")
    series = []
    for name, width, layers in (
        (("wide", 512, 4), ("deep", 384, 7)) if large else (("wide", 192, 2), ("deep", 128, 5))
    ):
        config = {
            "embed_dim": 128,
            "vision_cfg": {
                "image_size": IMAGE_SIZE,
                "patch_size": 16,
                "width": width,
                "layers": layers,
                "head_width": 64,
            },
            "text_cfg": {
                "context_length": 16,
                "vocab_size": 49408,
                "width": 64,
                "heads": 1,
                "layers": 1,
            },
        }
        path = folder / f"{name}.json"
        path.write_text(json.dumps(config))
        save_checkpoint(
            folder / f"{name}.pt", model=build_model(str(path), seed=0), epoch=0, name=name
        )
        series.append(
            {"name": name, "config": path.name, "checkpoints": [{"epoch": 0, "path": f"{name}.pt"}]}
        )
    data = {
        "source": "pictures/pairs.tsv",
        "split": "all",
        "num_samples": num_batches * BATCH_SIZE,
        "batch_size": BATCH_SIZE,
    }
    document = {
        "version": 1,
        "data": data,
        "hessian": {"objective": "contrastive", "k": 5},
        "series": series,
    }
    manifest = folder / "checkpoints.yaml"
    manifest.write_text(yaml.safe_dump(document, sort_keys=False))
    return manifest


def run(code: Path, manifest: Path, output: Path, options: Sequence[str]) -> tuple[float, float]:
    """Run `landscape spectra` once; wall and CPU seconds of it and its children."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(THREAD_VARIABLES)
    }
    environment["PYTHONPATH"] = str(code)
    # Without -P, the current folder would come before PYTHONPATH.
    command = [
        sys.executable,
        "-P",
        "-c",
        "from landscape.cli import main; main()",
        "spectra",
        str(manifest),
        "-o",
        str(output),
    ]
    begun = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--device", "cpu", "--unaudited", *options],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    if status:
        raise SystemExit(f"{' '.join(command)}: ended with wait status {status}")
    return seconds, usage.ru_utime + usage.ru_stime


def eigenvalues(output: Path) -> np.ndarray:
    """All eigenvalues of a store, in the order of the manifest."""
    from landscape.store import SpectrumStore

    with SpectrumStore.open(output) as store:
        keys = [(name, epoch) for name in store.series() for epoch in store.epochs(name)]
        return np.concatenate([store.records(*key).eigenvalues for key in keys])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ref", required=True, help="the older commit")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--batches", type=int, default=NUM_BATCHES)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    chosen = parser.parse_args()
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen.variants}
    values: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as name, checkout(chosen.ref) as before:
        folder = Path(name) / "study"
        folder.mkdir()
        manifest = write_study(folder, chosen.batches, large=chosen.large)
        with busy_process() if chosen.busy else nullcontext():
            for number in range(chosen.rounds):
                for variant in chosen.variants:
                    where, options = VARIANTS[variant]
                    output = folder / f"{len(values)}_{number}.h5"
                    seen[variant].append(
                        run(before if where == "before" else ROOT, manifest, output, options)
                    )
                    values.setdefault(variant, eigenvalues(output))
                    wall, cpu = seen[variant][-1]
                    print(
                        f"# {variant}: {wall:.1f} s wall, {cpu:.1f} s CPU, load "
                        f"{os.getloadavg()[0]:.1f}",
                        flush=True,
                    )
    report(seen, values, chosen)


def report(
    seen: dict[str, list[tuple[float, float]]],
    values: dict[str, np.ndarray],
    chosen: argparse.Namespace,
) -> None:
    """Print medians over the rounds, and the ratios to the first variant."""
    beside = ", beside one busy process" if chosen.busy else ""
    print(
        f"{date.today()}, before: {chosen.ref}, {os.cpu_count()} cores{beside}, {chosen.batches} "
        "batches of 2 networks"
    )
    print(
        f"{'variant':22} {'wall s':>8} {'CPU s':>8} {'wall':>6} {'CPU':>6}  largest relative "
        "difference"
    )
    medians = {
        name: [statistics.median(column) for column in zip(*rows)] for name, rows in seen.items()
    }
    first = next(iter(medians))
    for name, (wall, cpu) in medians.items():
        gain, cost = medians[first][0] / wall, cpu / medians[first][1]
        difference = float(np.max(np.abs(values[name] / values[first] - 1)))
        print(f"{name:22} {wall:8.1f} {cpu:8.1f} {gain:5.2f}x {cost:5.2f}x  {difference:.1e}")


if __name__ == "__main__":
    main()
