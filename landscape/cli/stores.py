"""Commands that read stores: draw, compare, report, export, merge, describe."""

import sys
from pathlib import Path
from typing import Any

import click

from landscape import pipeline
from landscape.cli.group import main, one_line_errors
from landscape.cli.messages import format_of, print_json, refuse_own_input, say
from landscape.cli.options import (
    as_json,
    epochs_option,
    layout_options,
    some_series,
    stated_options,
)
from landscape.cli.values import FILE, RESAMPLES, SEED, STORE, Choice, PathType

# Options on the layout that each kind of figure takes.
_LAYOUT_OF = {
    "figure3": ("--width", "--columns", "--font-size", "--linear"),
    "sharpness": ("--width", "--columns", "--font-size", "--linear"),
    "modules": ("--width", "--font-size"),
    "vectors": ("--width", "--columns", "--font-size"),
    "vector-modules": ("--width", "--font-size"),
    "training": ("--width", "--font-size", "--linear"),
}


@main.command()
@click.argument("store", type=FILE)
@click.option("-o", "--output", required=True, type=FILE, help="A .png, .pdf or .svg file.")
@click.option(
    "--kind",
    default="figure3",
    show_default=True,
    type=Choice(
        [
            "figure3",
            "sharpness",
            "modules",
            "vectors",
            "vector-modules",
            "training",
            "ood",
            "shape-bias",
            "conditions",
        ]
    ),
    help=(
        "Densities of eigenvalues; sharpness and negatives over epochs; modules over depth and "
        "epoch; angles and localisation of kept eigenvectors, and the modules in which they lie. "
        "For the record of a monitor: sharpness, threshold and loss over steps. For files of "
        "`landscape ood`: accuracy out of distribution, shape bias, and accuracy by condition "
        "beside people."
    ),
)
@some_series
@epochs_option("Default: all; for figure3 0 and five later ones (0,5,10,15,20,25 where present).")
@click.option("--title", help="Heading of the figure; none by default.")
@click.option(
    "--keep-unconverged",
    is_flag=True,
    help="Draw values without a certificate too, and say how many.",
)
@layout_options()
@one_line_errors
def figure(store: Path, output: Path, kind: str, **options: Any) -> None:
    """Draw STORE: Figure 3 or another kind of figure.

    Figure 3 is the distribution of the top eigenvalues with a panel per epoch.
    """
    refuse_own_input(output, store)
    stated = stated_options()
    for option in ("--width", "--columns", "--font-size", "--linear"):
        if option in stated and option not in _LAYOUT_OF.get(kind, ()):
            raise click.UsageError(f"{option} has no effect on --kind {kind}; leave it out.")
    if kind == "training":
        if options.pop("series") or options.pop("epochs"):
            raise click.UsageError(
                "--series and --epochs choose checkpoints, and --kind training shows steps; leave "
                "them out."
            )
        say(pipeline.draw_training(store, output, **options))
        return
    if kind in pipeline.OOD_FIGURES:
        if options.pop("keep_unconverged"):
            raise click.UsageError(
                f"--keep-unconverged is for eigenvalues, which --kind {kind} does not show; leave "
                "it out."
            )
        options.pop("page_options")
        say(pipeline.draw_ood(store, output, kind=kind, **options))
        return
    if kind in ("vectors", "vector-modules") and options.pop("keep_unconverged"):
        raise click.UsageError(
            f"--keep-unconverged is for eigenvalues; --kind {kind} shows every vector, each angle "
            "with the bound of its error. Leave it out."
        )
    draw = {
        "figure3": pipeline.draw_figure3,
        "sharpness": pipeline.draw_sharpness,
        "modules": pipeline.draw_modules,
        "vectors": pipeline.draw_vectors,
        "vector-modules": pipeline.draw_vector_modules,
    }[kind]
    say(draw(store, output, **options))


@main.command()
@click.argument("stores", metavar="STORE...", nargs=-1, required=True, type=FILE)
@click.option(
    "-o", "--output", type=FILE, help="A .txt, .csv, .json or .tex file; default: the terminal."
)
@click.option(
    "--format",
    "kind",
    type=Choice(["table", "csv", "json", "latex"]),
    help="Default: by the suffix of the output.",
)
@click.option("--json", "as_json", is_flag=True, help="Short for --format json.")
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    help="For spectra: compare only this metric; may be repeated. Default: all.",
)
@epochs_option("Compare only these. Default: all; for accuracies, the last that both have.")
@some_series
@click.option(
    "--unpaired",
    is_flag=True,
    help="For spectra: allow series that were measured on different batches.",
)
@click.option(
    "--keep-unconverged",
    is_flag=True,
    help="For spectra: count records without a certificate too, and say how many.",
)
@click.option("--resamples", "num_resamples", default=4999, show_default=True, type=RESAMPLES)
@click.option(
    "--seed", default=0, show_default=True, type=SEED, help="Seed of resampling and permutations."
)
@one_line_errors
def compare(stores: tuple[Path, ...], as_json: bool, kind: str | None, **options: Any) -> None:
    """Compare series of the STOREs: sharpness, convexity or accuracy, with uncertainty.

    For spectra, differences are taken batch by batch, with bootstrap intervals, a permutation test
    and Holm's correction over epochs. For files of `landscape evaluate` and `landscape ood`, series
    are compared picture by picture: McNemar's exact test for each set with Holm's correction over
    sets, and a paired bootstrap for means, likeness to people and shape bias.
    """
    refuse_own_input(options["output"], *stores)
    kind = format_of(kind, as_json=as_json)
    click.echo(pipeline.compare(stores, kind=kind, **options))


@main.command()
@click.argument("store", type=FILE)
@click.option("-o", "--output", required=True, type=FILE, help="An .html file.")
@some_series
@click.option("--title", help="Heading of the page; default: the name of the store.")
@click.option(
    "--predictions",
    multiple=True,
    type=FILE,
    help=(
        "A file of `landscape evaluate` or `landscape ood` for the same checkpoints: adds a "
        "chapter on accuracy beside sharpness; may be repeated."
    ),
)
@click.option(
    "--keep-unconverged",
    is_flag=True,
    help="Draw values without a certificate too, and say how many.",
)
@click.option("--resamples", "num_resamples", default=4999, show_default=True, type=RESAMPLES)
@one_line_errors
def report(store: Path, output: Path, **options: Any) -> None:
    """Write all of STORE as one HTML page.

    It shows spectra by epoch, comparison, certificates and provenance. The page needs no network
    and no other file. A growing store is reported as it is at present.
    """
    refuse_own_input(output, store, *(options.get("predictions") or ()))
    say(pipeline.write_report(store, output, **options))


@main.command()
@click.argument("store", type=FILE)
@click.option("-o", "--output", required=True, type=FILE, help="A .csv or .parquet file.")
@click.option(
    "--table",
    type=Choice(["eigenvalues", "batches", "quadratures", "modules", "points", "answers"]),
    help=(
        "A row per eigenvalue, batch, node of a quadrature, or eigenvalue of a module; per point "
        "of a loss surface; per answer. Default: eigenvalues, or what the file holds."
    ),
)
@some_series
@epochs_option("Write only these epochs. Default: all.")
@one_line_errors
def export(store: Path, output: Path, **options: Any) -> None:
    """Write the numbers of STORE as one flat table, for pandas, R or a spreadsheet.

    STORE is an output of spectra, density, surface, evaluate or ood. Numbers are those of the file,
    bit for bit, with their certificates. docs/export.md lists the columns.
    """
    refuse_own_input(output, store)
    say(pipeline.export(store, output, **options))


@main.command()
@click.argument("stores", metavar="STORE...", nargs=-1, required=True, type=FILE)
@click.option(
    "-o",
    "--output",
    required=True,
    type=STORE,
    help="A new .h5 file, or a store to which the records are added.",
)
@one_line_errors
def merge(stores: tuple[Path, ...], output: Path) -> None:
    """Merge the records of the STOREs, shards of one manifest, into one store.

    The STOREs stay as they are. A record that several have is taken once. Values that differ by
    more than their residuals allow are refused.
    """
    from landscape.store import merge_stores

    say(merge_stores(stores, output).summary())


@main.command()
@click.argument("file", type=PathType(path_type=Path))
@click.option(
    "--validate", is_flag=True, help="Check a store against its schema instead; see docs/store.md."
)
@as_json
@one_line_errors
def info(file: Path, validate: bool, as_json: bool) -> None:
    """Describe FILE: a store, a loss surface, a record of a monitor, a manifest or a checkpoint.

    Exit status: 0 done, 1 with --validate where the store deviates from its schema, 2 wrong input.
    """
    if validate:
        result = pipeline.validate(file)
        if as_json:
            print_json(result.facts())
        else:
            say("\n".join(result.lines()))
        sys.exit(0 if result.conforms else 1)
    if as_json:
        print_json(pipeline.facts(file))
        return
    for line in pipeline.describe(file):
        say(line)
