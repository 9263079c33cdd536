"""Figure 3 of arXiv 2404.19394 at two sizes, each by one command that goes on where it was stopped.

    python experiments/figure3/run.py small -o runs/figure3
    python experiments/figure3/run.py paper -o /data/runs --data '/data/{00..12}.tar' --device cuda

small: three towers of 1.7 to 1.8 M parameters at 64 pixels, 25 epochs on OpenMoji. paper: the six
models of the publication at 224 pixels, 25 epochs on image-text pairs of your own, for a GPU
machine. Both measure epochs 0, 5, 10, 15, 20 and 25, by the Hessian of the contrastive loss over
the image tower, then draw and compare. --dry-run prints the commands, --cost what they take.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

EPOCHS = (0, 5, 10, 15, 20, 25)
BATCH_SIZE = 15
OPENMOJI_PAIRS = 3535
# Products of one batch for five eigenvalues, and gradients a product costs: what the README
# measures.
PRODUCTS, GRADIENTS_PER_PRODUCT = 25, 2.0


@dataclass(frozen=True)
class Study:
    """What is trained and measured.

    Attributes:
        models: (name of the series, label, model of open_clip or of this project).
        source: The pairs; None where the user must name them.
        num_samples: Pairs measured at every checkpoint.
        image_size: Pixels; None for the models' own.
    """

    models: tuple[tuple[str, str, str], ...]
    recipe: str
    source: str | None
    num_samples: int
    image_size: int | None
    augmentation: str


STUDIES = {
    "small": Study(
        models=(
            ("vit", "ViT", "vit_medium_64"),
            ("vmamba", "VMamba", "vmamba_medium_64"),
            ("simba", "Simba", "simba_medium_64"),
        ),
        recipe="openmoji_demo",
        source="openmoji",
        num_samples=3000,
        image_size=64,
        augmentation="none",
    ),
    # The paper took its ViTs from SLIP, which trains without colour augmentation; one recipe for
    # all compares architectures.
    "paper": Study(
        models=(
            ("vmamba_t220", "VMamba-T220", "vmamba_t220_clip"),
            ("vmamba_s", "VMamba-S", "vmamba_s_clip"),
            ("vmamba_b", "VMamba-B", "vmamba_b_clip"),
            ("simba_l", "Simba-L", "simba_l_clip"),
            ("vit_b", "ViT-B", "vit_b16_slip"),
            ("vit_l", "ViT-L", "vit_l16_slip"),
        ),
        recipe="clip_mamba",
        source=None,
        num_samples=3000,
        image_size=None,
        augmentation="clip_mamba",
    ),
}


def manifest(study: Study, source: str, num_samples: int, seed: int) -> str:
    """The manifest of the measurement, as YAML."""
    data = {
        "source": source,
        "num_samples": num_samples,
        "batch_size": BATCH_SIZE,
        "augmentation": study.augmentation,
    }
    if study.image_size is not None:
        data["image_size"] = study.image_size
    content = {
        "version": 1,
        "data": data,
        "hessian": {"objective": "contrastive", "parameters": "image", "k": 5},
        "series": [
            {
                "name": name,
                "model": model,
                "label": label,
                "from": f"seed_{seed}/{name}/checkpoints.yaml",
                "epochs": list(EPOCHS),
            }
            for name, label, model in study.models
        ],
    }
    return yaml.safe_dump(content, sort_keys=False)


def commands(
    study: Study, output: Path, source: str, *, seed: int, device: str | None
) -> Iterator[list[str]]:
    """What is run, in order; the manifest is in place before the first measurement."""
    where = [] if device is None else ["--device", device]
    for name, label, model in study.models:
        data = ["--data", source] + (
            [] if study.image_size is None else ["--image-size", str(study.image_size)]
        )
        options = [
            "--recipe",
            study.recipe,
            "--epochs",
            str(EPOCHS[-1]),
            "--seed",
            str(seed),
            "--name",
            name,
            "--label",
            label,
        ]
        yield [
            "train",
            "--model",
            model,
            "-o",
            str(output / f"seed_{seed}" / name),
            *data,
            *options,
            *where,
        ]
    store = str(output / f"spectra_{seed}.h5")
    yield ["spectra", str(output / f"figure3_{seed}.yaml"), "-o", store, *where]
    yield ["figure", store, "-o", str(output / f"figure3_{seed}.png")]
    yield ["compare", store, "-o", str(output / f"comparison_{seed}.csv")]


def cost(study: Study, num_samples: int, pairs_per_epoch: float) -> str:
    """Floating-point operations of training and of measurement, counted on one picture and one
    caption of each model.

    Counts products of matrices and convolutions, not scans. A gradient is three forward passes.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from landscape.clip.model import build_model, image_size_of

    lines = [
        f"{'':14} {'forward, GFLOP a pair':>22} {'training, TFLOP':>18} {'spectra, TFLOP':>16}"
    ]
    for _, label, name in study.models:
        model = build_model(name)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.encode_image(torch.zeros(1, 3, *image_size_of(model)))
            model.encode_text(torch.zeros(1, model.context_length, dtype=torch.long))
        forward = counter.get_total_flops()
        training = 3 * forward * pairs_per_epoch * EPOCHS[-1]
        spectra = 3 * forward * GRADIENTS_PER_PRODUCT * PRODUCTS * num_samples * len(EPOCHS)
        lines.append(
            f"{label:14} {forward / 1e9:22.2f} {training / 1e12:18,.0f} {spectra / 1e12:16,.0f}"
        )
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("size", choices=STUDIES)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="folder of the whole study"
    )
    parser.add_argument(
        "--data", help="image-text pairs for paper: a CSV/TSV file or a pattern of tar shards"
    )
    parser.add_argument(
        "--num-samples",
        type=int,
        help="pairs measured at every checkpoint; default 3000, as published",
    )
    parser.add_argument(
        "--seed",
        type=int,
        action="append",
        help="of the training; may be given several times; default 0",
    )
    parser.add_argument("--device")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the manifest and the commands, run nothing"
    )
    parser.add_argument("--cost", action="store_true", help="count operations, run nothing")
    parser.add_argument(
        "--pairs",
        type=float,
        default=14_689_580,
        help="with --cost: pairs of an epoch; default YFCC15M's",
    )
    options = parser.parse_args()
    study = STUDIES[options.size]
    options.source = options.data or study.source
    if options.source is None and not options.cost:
        parser.error(
            f"{options.size} needs --data: the publication trains on YFCC15M, which cannot be "
            "shipped."
        )
    options.num_samples = study.num_samples if options.num_samples is None else options.num_samples
    number = options.num_samples
    if number < BATCH_SIZE or number % BATCH_SIZE:
        parser.error(
            f"--num-samples must be a positive multiple of {BATCH_SIZE}, the pairs of a batch, got "
            f"{number}."
        )
    if options.source == "openmoji" and number > OPENMOJI_PAIRS:
        parser.error(
            f"--num-samples must be at most {OPENMOJI_PAIRS}, the pairs of OpenMoji that are "
            f"trained on, got {number}."
        )
    return options


def main() -> int:
    """Run the study; returns the exit status of the first command that fails, or 0."""
    options = parsed()
    study = STUDIES[options.size]
    if options.cost:
        print(
            cost(
                study,
                options.num_samples,
                OPENMOJI_PAIRS if study.source == "openmoji" else options.pairs,
            )
        )
        return 0
    program = str(Path(sys.executable).with_name("landscape"))
    for seed in options.seed or [0]:
        text = manifest(study, options.source, options.num_samples, seed)
        if options.dry_run:
            print(f"# {options.output / f'figure3_{seed}.yaml'}\n{text}")
        else:
            options.output.mkdir(parents=True, exist_ok=True)
            (options.output / f"figure3_{seed}.yaml").write_text(text)
        for arguments in commands(
            study, options.output, options.source, seed=seed, device=options.device
        ):
            print(shlex.join(["landscape", *arguments]), flush=True)
            if not options.dry_run:
                # The command has said what is wrong.
                status = subprocess.run([program, *arguments]).returncode
                if status:
                    return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
