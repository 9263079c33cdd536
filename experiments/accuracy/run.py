"""Accuracy beside Figure 3: zero-shot and out of distribution, of the checkpoints that
experiments/figure3/run.py trains.

    python experiments/figure3/run.py small -o runs/figure3
    python experiments/accuracy/run.py runs/figure3 -o runs/accuracy

Evaluates every epoch of the manifest on OpenMoji's held-out pictures and on 15 sets of them that
are distorted, measures a few batches of the spectra of the same weights, and writes tables,
figures, comparisons and one page. Goes on where it was stopped. --dry-run prints the commands.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

# Pairs of a batch, as in Figure 3.
BATCH_SIZE = 15


def smaller(manifest: Path, num_samples: int) -> str:
    """The manifest with fewer pairs, as YAML; its paths made absolute."""
    content = yaml.safe_load(manifest.read_text())
    content["data"]["num_samples"] = num_samples
    for series in content["series"]:
        series["from"] = str((manifest.parent / series["from"]).resolve())
    text: str = yaml.safe_dump(content, sort_keys=False)
    return text


def commands(manifest: Path, output: Path, *, size: int, device: str | None) -> Iterator[list[str]]:
    """What is run, in order."""
    where = [] if device is None else ["--device", device]
    zeroshot, ood, spectra = (
        str(output / name) for name in ("zeroshot.h5", "ood.h5", "spectra.h5")
    )
    yield ["evaluate", str(manifest), "-o", zeroshot, *where]
    # By name, which models that train on names do best.
    yield ["ood", str(manifest), "-o", ood, "--own", "openmoji/name", "--size", str(size), *where]
    yield ["spectra", str(manifest), "-o", spectra, *where]
    for store, name in ((zeroshot, "zeroshot"), (ood, "ood")):
        for suffix in ("txt", "csv"):
            yield ["table", store, "-o", str(output / f"{name}.{suffix}")]
        yield ["compare", store, "-o", str(output / f"{name}_comparison.txt")]
    yield ["figure", ood, "--kind", "ood", "-o", str(output / "ood.png"), "--epochs", "0,5,25"]
    yield ["figure", ood, "--kind", "conditions", "-o", str(output / "conditions.png")]
    predictions = ["--predictions", zeroshot, "--predictions", ood]
    yield ["report", spectra, *predictions, "-o", str(output / "report.html")]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="output folder of experiments/figure3/run.py")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument(
        "--seed", type=int, default=0, help="of the training (default: %(default)s)"
    )
    parser.add_argument(
        "--num-samples", type=int, default=150, help="pairs of the spectra (default: %(default)s)"
    )
    parser.add_argument(
        "--size", type=int, default=64, help="pixels of distorted pictures (default: %(default)s)"
    )
    parser.add_argument("--device")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    options = parser.parse_args()
    options.manifest = options.study / f"figure3_{options.seed}.yaml"
    if not options.manifest.is_file():
        parser.error(
            f"{options.manifest} is not there; experiments/figure3/run.py writes it before it "
            "measures."
        )
    if options.num_samples < BATCH_SIZE or options.num_samples % BATCH_SIZE:
        parser.error(
            f"--num-samples must be a positive multiple of {BATCH_SIZE}, a batch, got "
            f"{options.num_samples}."
        )
    return options


def main() -> int:
    """Run the commands; returns the exit status of the first that fails, or 0."""
    options = parsed()
    manifest = options.output / "manifest.yaml"
    if not options.dry_run:
        options.output.mkdir(parents=True, exist_ok=True)
        manifest.write_text(smaller(options.manifest, options.num_samples))
    program = str(Path(sys.executable).with_name("landscape"))
    for arguments in commands(manifest, options.output, size=options.size, device=options.device):
        print(shlex.join(["landscape", *arguments]), flush=True)
        if not options.dry_run and (status := subprocess.run([program, *arguments]).returncode):
            # The command has said what is wrong.
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
