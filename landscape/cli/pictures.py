"""Commands on labelled pictures: classify, distort, and show the accuracy."""

import sys
from pathlib import Path
from typing import Any

import click

from landscape import limits, pipeline
from landscape.cli.group import main, one_line_errors
from landscape.cli.messages import refuse_own_input, say
from landscape.cli.options import (
    epochs_option,
    some_series,
    stated_options,
    threads_option,
    worker_options,
)
from landscape.cli.values import (
    FILE,
    FOLDER,
    RESAMPLES,
    SEED,
    STORE,
    Choice,
    LogitScale,
    PathType,
    Workers,
)


@main.command()
@click.argument("manifest", type=FILE)
@click.option(
    "-o",
    "--output",
    required=True,
    type=STORE,
    help="HDF5 file of the predictions; resumed if unfinished.",
)
@click.option(
    "--data",
    multiple=True,
    metavar="NAME=PATH",
    help=(
        "A data set and its files, or the name of a set without files; may be repeated. Default: "
        "the manifest's, else OpenMoji."
    ),
)
@click.option(
    "--slip",
    type=FOLDER,
    help="Folder of SLIP's labels.json and templates.json, the published names and prompts.",
)
@some_series
@epochs_option("Evaluate these alone. Default: all.")
@click.option("--device", help="cpu, cuda, ...; default: cuda where there is one.")
@worker_options
@click.option(
    "--dry-run",
    is_flag=True,
    help="List sets, pictures, classes and prompts, and what is left; then stop.",
)
@threads_option("all cores")
@one_line_errors
def evaluate(
    manifest: Path, output: Path, data: tuple[str, ...], slip: Path | None, **options: Any
) -> None:
    """Classify labelled pictures by every checkpoint of MANIFEST, zero-shot.

    Classes are given by their names, and every answer is saved.

    Exit status: 0 all is answered, 1 something failed, 2 wrong input.
    """
    from landscape.manifest import Manifest

    loaded = Manifest.load(manifest, checkpoints_exist=False)
    requests = pipeline.requests_of(loaded, data, slip=slip)
    report = pipeline.run_evaluation(loaded, output, requests, stated=stated_options(), **options)
    say(report.summary())
    sys.exit(0 if report.complete else 1)


@main.command()
@click.argument("manifest", type=FILE, required=False)
@click.option(
    "-o",
    "--output",
    required=True,
    type=STORE,
    help="HDF5 file of the predictions; resumed if unfinished.",
)
@click.option("--stimuli", type=FOLDER, help="The published stimuli, or pictures in their layout.")
@click.option(
    "--own",
    metavar="FOLDER",
    help=(
        "Your own class folders, or openmoji[/group|/subgroup|/name], to be distorted. Default: "
        "openmoji."
    ),
)
@click.option("--kind", "kinds", multiple=True, help="A distortion; may be repeated. Default: all.")
@click.option(
    "--size",
    type=click.IntRange(1, limits.MAX_SIDE),
    help="Side of --own pictures in pixels; default: the manifest's, or 224.",
)
@click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of random distortions.")
@click.option(
    "--logit-scale",
    default="100",
    show_default=True,
    type=LogitScale(),
    help=(
        "With --stimuli: factor of the cosines before the softmax over ImageNet's classes, or "
        "`learned`."
    ),
)
@click.option(
    "--humans",
    "people",
    multiple=True,
    type=PathType(path_type=Path),
    help="Answers of people: files or folders.",
)
@click.option(
    "--write-answers",
    "written",
    type=FOLDER,
    help="Write the models' answers here, as CSV files of model-vs-human.",
)
@click.option(
    "--answers",
    "others",
    multiple=True,
    type=PathType(path_type=Path),
    help="Answers of other models, in the same format.",
)
@some_series
@epochs_option("Evaluate these alone. Default: all.")
@click.option("--device", help="cpu, cuda, ...; default: cuda where there is one.")
@worker_options
@click.option(
    "--dry-run",
    is_flag=True,
    help="List the pictures that models would classify, and what is left; then stop.",
)
@threads_option("all cores")
@one_line_errors
def ood(manifest: Path | None, output: Path, **options: Any) -> None:
    """Classify out-of-distribution pictures by every checkpoint of MANIFEST.

    The answers can stand beside those of people and other models. Without a MANIFEST, only the
    answers of --humans and --answers are put into the file.

    Exit status: 0 all is answered, 1 something failed, 2 wrong input.
    """
    from landscape.manifest import Manifest

    names = (
        "stimuli",
        "own",
        "kinds",
        "size",
        "seed",
        "logit_scale",
        "people",
        "others",
        "written",
    )
    asked = {name: options.pop(name) for name in names}
    loaded = None if manifest is None else Manifest.load(manifest, checkpoints_exist=False)
    report = pipeline.run_ood(
        loaded, output, pipeline.OodRequest(**asked), stated=stated_options(), **options
    )
    say(report.summary())
    sys.exit(0 if report.complete else 1)


@main.command()
@click.argument("store", type=FILE)
@click.option(
    "-o", "--output", type=FILE, help="A .txt, .csv, .json or .tex file; default: the terminal."
)
@click.option(
    "--format",
    "kind",
    type=Choice(["table", "csv", "json", "latex"]),
    help="Default: by the suffix of the output.",
)
@click.option(
    "--by",
    default="auto",
    show_default=True,
    type=Choice(["auto", "set", "model"]),
    help=(
        "A row per series, epoch and data set, or per model with its means over model-vs-human's "
        "sets. auto: the latter if the store has answers to these stimuli."
    ),
)
@some_series
@epochs_option("Show only these epochs; by model, the default is the last of each series.")
@click.option("--resamples", "num_resamples", default=2000, show_default=True, type=RESAMPLES)
@click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of resampling.")
@one_line_errors
def table(store: Path, **options: Any) -> None:
    """Show the accuracy of the models of STORE as a table.

    It has a row per series, epoch and data set, with intervals and paired tests.
    """
    refuse_own_input(options["output"], store)
    click.echo(pipeline.show_table(store, stated=stated_options(), **options))


@main.command()
@click.argument("source", metavar="FOLDER")
@click.option(
    "-o",
    "--output",
    required=True,
    type=FOLDER,
    help="Folder of the distorted pictures; resumed if unfinished.",
)
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    required=True,
    help=(
        "A distortion, such as contrast, low-pass, eidolonI or edge; may be repeated. all: all "
        "that the pictures allow."
    ),
)
@click.option(
    "--level",
    "levels",
    multiple=True,
    help="0.1, c10, 32-10-10, ...; may be repeated. Default: the published ones.",
)
@click.option(
    "--seed", default=0, show_default=True, type=SEED, help="Seed of the random distortions."
)
@click.option(
    "--workers",
    "num_workers",
    type=Workers(),
    default="auto",
    show_default=True,
    help="Processes. auto: as many as help.",
)
@click.option(
    "--size",
    default=224,
    show_default=True,
    type=click.IntRange(1, limits.MAX_SIDE),
    help=(
        "Side of the pictures in pixels: the shorter side is scaled to it, and the centre square "
        "cut out."
    ),
)
@click.option(
    "--format",
    "suffix",
    default="png",
    show_default=True,
    type=Choice(["png", "webp"]),
    help="Both lossless.",
)
@click.option(
    "--gamma-lut",
    type=FILE,
    help="False colour: .npy file, the linear light of each byte. Default: sRGB's.",
)
@click.option(
    "--mean-spectrum",
    type=FILE,
    help="Power equalisation: .npy file. Default: the mean over the pictures in FOLDER.",
)
@click.option("--dry-run", is_flag=True, help="Count what is left to write, then stop.")
@one_line_errors
def distort(num_workers: int | str, **request: Any) -> None:
    """Distort the pictures in FOLDER as model-vs-human does.

    FOLDER holds `class/picture` or only pictures; OpenMoji's pictures can also be distorted. There
    are twelve parametric distortions at their published levels or at any other, and sketch,
    silhouette and edge; see docs/distort.md. The pictures depend only on the seed, not on the
    number of processes.

    Exit status: 0 done, 1 some pictures cannot be read, 2 wrong input.
    """
    from landscape.distortions.plan import DistortRequest
    from landscape.distortions.run import distort_folder

    number = None if num_workers == "auto" else int(num_workers)
    report = distort_folder(DistortRequest(**request, num_workers=number, stated=stated_options()))
    say(report.summary())
    sys.exit(0 if report.complete else 1)
