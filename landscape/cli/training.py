"""Commands before any measurement: train a model, describe a run."""

from pathlib import Path
from typing import Any

import click

from landscape import limits, ranks
from landscape.cli.group import main, one_line_errors
from landscape.cli.messages import say
from landscape.cli.options import threads_option
from landscape.cli.values import FOLDER, Choice, FloatRange, PathType


@main.command()
@click.option(
    "--model",
    required=True,
    help="An open_clip model name, or a configuration of this project (vit_tiny_64, ...).",
)
@click.option(
    "-o", "--output", required=True, type=FOLDER, help="Folder of the run; resumed if unfinished."
)
@click.option(
    "--recipe",
    default="openmoji_demo",
    show_default=True,
    help="A named preset: clip_mamba, slip_clip, open_clip, ...",
)
@click.option(
    "--data",
    "source",
    default="openmoji",
    show_default=True,
    help="openmoji, a CSV/TSV file, or a pattern of tar shards.",
)
@click.option(
    "--split", default="train", show_default=True, type=Choice(["train", "held_out", "all"])
)
@click.option(
    "--image-size",
    type=click.IntRange(1, limits.MAX_SIDE),
    help="Side of the pictures; default: the model's.",
)
@click.option(
    "--epochs",
    type=click.IntRange(0, limits.MAX_TRAINED_EPOCHS),
    help="Default: the recipe's. 0 writes the initialisation only.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=2),
    help="Pairs per step, over all processes. Default: the recipe's.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, limits.MAX_NUMPY_SEED))
@click.option(
    "--workers",
    default=0,
    show_default=True,
    type=click.IntRange(0, limits.MAX_WORKERS),
    help="Processes that load pictures.",
)
@click.option("--device", help="cpu, cuda, ...; default: cuda where there is one.")
@click.option(
    "--scan",
    default="landscape",
    show_default=True,
    type=Choice(["landscape", "mamba-ssm"]),
    help=(
        "Kernel that trains Mamba towers. mamba-ssm's needs CUDA, has first derivatives only, and "
        "is never used to measure."
    ),
)
@click.option("--name", help="Name of the series in the manifest; default: the folder's name.")
@click.option("--label", help="Label of the series in figures; default: its name.")
@click.option(
    "--monitor",
    is_flag=True,
    help="Measure the sharpness of a fixed batch along the training; see docs/monitor.md.",
)
@click.option(
    "--monitor-budget",
    type=FloatRange(0.0, 10.0, min_open=True),
    help="With --monitor: the share of the training time that it may take. Default: 0.05.",
)
@click.option(
    "--monitor-update-sharpness",
    is_flag=True,
    help="With --monitor: also measure critical and directional sharpness of the next step.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be trained, then stop.")
@threads_option("all cores")
@one_line_errors
def train(
    monitor: bool, monitor_budget: float | None, monitor_update_sharpness: bool, **options: Any
) -> None:
    """Train a CLIP model and save every epoch, the initialisation included.

    OUTPUT/checkpoints.yaml lists each checkpoint with its sha256. It is a manifest for `landscape
    spectra`.
    """
    if monitor_budget is not None and not monitor:
        raise click.UsageError("--monitor-budget says what --monitor may take; add it.")
    if monitor_update_sharpness and not monitor:
        raise click.UsageError("--monitor-update-sharpness says what --monitor measures; add it.")
    from landscape.pipeline import train_run

    report = train_run(
        **options,
        monitor_budget=(monitor_budget or 0.05) if monitor else None,
        monitor_update_sharpness=monitor_update_sharpness,
    )
    if ranks.rank() == 0:
        say(report.summary())


@main.command()
@click.argument("run_folder", type=PathType(path_type=Path))
@click.option(
    "-o",
    "--output",
    default="checkpoints.yaml",
    show_default=True,
    type=PathType(path_type=Path),
    help="The manifest.",
)
@click.option(
    "--data",
    metavar="SOURCE",
    help="openmoji, a CSV/TSV file, or a pattern of tar shards. Default: the run's own.",
)
@click.option("--name", help="Name of the series; default: the folder's name.")
@click.option(
    "--epoch-numbers",
    "counts",
    type=Choice(["finished", "from-zero"]),
    help=(
        "Meaning of the number in a file or its name, where that is not known. Default: left to "
        "you to fill in."
    ),
)
@click.option("--force", is_flag=True, help="Replace an existing manifest.")
@one_line_errors
def init(run_folder: Path, output: Path, **options: Any) -> None:
    """Write a manifest of the training run in RUN_FOLDER.

    It takes model, settings, data, checkpoints and epochs from the files of the run. Supported are
    runs of open_clip_train, timm, Lightning, MMEngine, transformers' Trainer and others; folders of
    a hub; plain folders of checkpoints. What the run does not state is marked FILL_IN, and refused
    until it is filled in.
    """
    from landscape.manifest.init import init_manifest

    say(init_manifest(run_folder, output, **options).summary())
