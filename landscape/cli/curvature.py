"""Other measures of curvature: the density of the spectrum, an audit, the loss surface."""

import sys
from pathlib import Path
from typing import Any

import click

from landscape import limits, pipeline
from landscape.cli.group import main, one_line_errors
from landscape.cli.messages import format_of, print_json, say
from landscape.cli.options import (
    as_json,
    epochs_option,
    hvp_options,
    layout_options,
    some_series,
    threads_option,
    worker_options,
)
from landscape.cli.values import FILE, PROBES, SEED, STORE, Choice
from landscape.terminal import TextTable, terminal_width, wrapped


@main.command()
@click.argument("source", metavar="STORE_MANIFEST_OR_MODEL")
@click.option("-o", "--output", required=True, type=FILE, help="A .png, .pdf or .svg file.")
@some_series
@epochs_option(
    "Epochs of the panels, and those measured of a manifest; default: all, with six panels."
)
@click.option(
    "--batches",
    "num_batches",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Number of mini-batches.",
)
@click.option(
    "--probes",
    "num_probes",
    default=2,
    show_default=True,
    type=PROBES,
    help="Random vectors per batch.",
)
@click.option(
    "--matvecs",
    "num_matvecs",
    default=64,
    show_default=True,
    type=click.IntRange(4, limits.MAX_PROBES),
    help="Products per probe.",
)
@click.option(
    "--dense-limit",
    default=3000,
    show_default=True,
    type=click.IntRange(0, limits.MAX_DENSE),
    help="Number of parameters up to which the exact spectrum is computed too.",
)
@click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of the random vectors.")
@hvp_options()
@click.option("--title", help="Heading of the figure; none by default.")
@click.option(
    "--format",
    "kind",
    type=Choice(["table", "csv", "json"]),
    help=(
        "How the estimates are printed. csv and json print nothing else on standard output. "
        "Default: table."
    ),
)
@layout_options()
@click.option("--json", "as_json", is_flag=True, help="Short for --format json.")
@click.option(
    "--unaudited", is_flag=True, help="Measure without an audit; the record and the figure say so."
)
@click.option("--device", help="cpu, cuda, ...; default: cuda where there is one.")
@worker_options
@click.option("--dry-run", is_flag=True, help="List what would be measured, then stop.")
@threads_option("as many as make the first product clearly faster")
@one_line_errors
def density(
    source: str,
    output: Path,
    products: "pipeline.HvpSettings",
    kind: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Draw the density of the whole spectrum, with estimates and their errors.

    For a store, it comes from the quadratures that `landscape spectra` saved: no product is
    computed. For a manifest, or for a model by name with random weights on OpenMoji pictures, it is
    measured with its own random vectors. It is then stored beside the figure as OUTPUT.h5, from
    which it can be drawn again.

    Exit status: 0 done, 1 some batches failed, 2 wrong input.
    """
    names = ("num_batches", "num_probes", "num_matvecs", "dense_limit", "seed")
    settings = pipeline.DensitySettings(
        **{name: options.pop(name) for name in names}, products=products
    )
    kind = format_of(kind, as_json=as_json) or "table"
    if kind != "table" and options["dry_run"]:
        raise click.UsageError(f"--dry-run measures nothing that --format {kind} could print.")
    report = pipeline.density_of(source, output, settings, **options)
    click.echo(report.numbers(kind, width=terminal_width()), nl=False)
    for line in report.messages():
        click.echo(wrapped(line, terminal_width()), err=kind != "table")
    sys.exit(0 if report.complete else 1)


@main.command()
@click.argument("target", metavar="MANIFEST_OR_MODEL")
@click.option("--device", help="cpu, cuda, ...; default: cuda where there is one.")
@as_json
@threads_option("all cores")
@one_line_errors
def audit(target: str, device: str | None, as_json: bool) -> None:
    """Test that Hessian-vector products are second derivatives; name faulty modules.

    For a manifest, every series is tested at its last checkpoint, on the first batch: what a wrong
    operator leaves out grows with training. For a model by name (open_clip's or this project's),
    random weights are tested on OpenMoji pictures.

    Exit status: 0 passed, 1 failed or undecided, 2 wrong input.
    """
    passed = True
    results = []
    for result in pipeline.audit_target(target, device=device):
        passed = passed and result.report.passed
        if as_json:
            results.append(result.facts())
            continue
        errors = ("" if row.error is None else f"{row.error:.1e}" for row in result.report.rows)
        rows = tuple(
            (row.name, row.test, error, row.verdict, row.reason)
            for row, error in zip(result.report.rows, errors)
        )
        table = TextTable(
            title=result.title,
            header=("module", "test", "error", "verdict", "why"),
            rows=rows,
            num_left=5,
        )
        click.echo(table.text(terminal_width()))
    if as_json:
        print_json({"kind": "audit", "target": target, "passed": passed, "audits": results})
    sys.exit(0 if passed else 1)


@main.command()
@click.argument("manifest", type=FILE)
@click.option(
    "-o", "--output", required=True, type=FILE, help="The figure: a .png, .pdf or .svg file."
)
@click.option("--series", help="Series of the manifest; may be left out if there is only one.")
@click.option(
    "--epoch",
    type=click.IntRange(0, limits.MAX_EPOCH),
    help="Default: the last one; for a line, the first.",
)
@click.option(
    "--directions",
    default="random",
    show_default=True,
    type=Choice(["random", "eigenvectors", "line"]),
    help=(
        "Filter-normalised random directions, eigenvectors of the Hessian, or the line to another "
        "checkpoint."
    ),
)
@click.option(
    "--to",
    metavar="[SERIES:]EPOCH",
    help="The other end of a line; default: the last epoch of the series.",
)
@click.option("--dimensions", type=click.IntRange(1, 2), help="Default: 2; a line has 1.")
@click.option(
    "--points",
    default=31,
    show_default=True,
    type=click.IntRange(max=limits.MAX_POINTS),
    help="Grid points per axis (odd).",
)
@click.option(
    "--span",
    type=float,
    help=(
        "Extent to either side. Random: in filter norms, default 1. Eigenvectors: length, by "
        "default where the loss is predicted to rise by 1 nat."
    ),
)
@click.option(
    "--batches",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Number of batches over which the loss is averaged.",
)
@click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of random directions.")
@click.option(
    "--view", type=Choice(["contour", "3d"]), help="View of two dimensions; default: contour."
)
@click.option(
    "--data",
    type=STORE,
    help="HDF5 file of the points, resumed if unfinished; default: beside the figure.",
)
@layout_options("width", "font_size")
@click.option("--device", help="cpu, cuda, ...; default: cuda where there is one.")
@worker_options
@click.option("--dry-run", is_flag=True, help="Show what is left to compute, then stop.")
@threads_option("its share of the cores")
@one_line_errors
def surface(
    manifest: Path,
    output: Path,
    data: Path | None,
    view: str | None,
    device: str | None,
    workers: "pipeline.WorkerSettings",
    page_options: "pipeline.PageOptions",
    dry_run: bool,
    **request: Any,
) -> None:
    """Draw the loss around a checkpoint of MANIFEST, or on the line to another.

    Exit status: 0 done, 1 a point could not be evaluated, 2 wrong input. Every point is saved; run
    the same command to resume, or to draw again.
    """
    from landscape.manifest import Manifest

    report = pipeline.run_surface(
        Manifest.load(manifest, checkpoints_exist=False),
        output,
        pipeline.SurfaceRequest(**request),
        data=data,
        view=view,
        device=device,
        workers=workers,
        dry_run=dry_run,
        page_options=page_options,
    )
    say(report.summary())
