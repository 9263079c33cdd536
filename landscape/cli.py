"""The command line: each command parses, calls one function, prints.

Heavy imports sit inside the commands, so that `--help` is instant and a wrong manifest is refused before torch is loaded.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from landscape import limits, ranks, threads
from landscape.errors import LandscapeError
from landscape.options import (
    FILE,
    FOLDER,
    PROBES,
    RESAMPLES,
    SEED,
    Epochs,
    LogitScale,
    PathType,
    Shard,
    Size,
    Workers,
    product_options,
    some_series,
    threads_option,
    worker_options,
)
from landscape.signals import stop_requests
from landscape.terminal import TextTable, terminal_width, wrapped
from landscape.version import VERSION

if TYPE_CHECKING:
    from landscape.pipeline import ProductSettings, WorkerSettings


def _one_line_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Errors raised on purpose end the command with one line and their exit status; all others are bugs and show."""

    @wraps(command)
    def run(*args: Any, **options: Any) -> Any:
        with stop_requests() as came:
            try:
                return command(*args, **options)
            except LandscapeError as error:
                if not came:
                    _say_error(" ".join(str(error).split()))
                    sys.exit(error.exit_code)
            except (KeyboardInterrupt, Exception) as error:
                # Within C++ code, a request to stop comes out as an error of any kind.
                if not came and not isinstance(error, KeyboardInterrupt):
                    if ranks.is_reporter():
                        raise
                    sys.exit(1)
        number = came[0] if came else signal.SIGINT
        what = (
            "interrupted"
            if number == signal.SIGINT
            else f"stopped by {signal.Signals(number).name}"
        )
        _say_error(f"{what}; everything measured so far is kept, the same command goes on.")
        sys.exit(128 + number)

    return run


def _say_error(text: str) -> None:
    """Print one line; of several processes under torchrun, one prints."""
    if ranks.is_reporter():
        click.echo(f"landscape: {text}", err=True)


def _say(text: str) -> None:
    """Print lines that fit the terminal without breaking words."""
    click.echo(wrapped(text, terminal_width()))


class _Commands(click.Group):
    """The commands; Ctrl-C before one has begun, as while options are read, ends with its status too."""

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        with _interrupted_without_work():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        with _interrupted_without_work():
            try:
                return super().invoke(ctx)
            except click.ClickException as error:
                if ranks.is_reporter():
                    raise
                sys.exit(error.exit_code)


@contextmanager
def _interrupted_without_work() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        click.echo("landscape: interrupted before anything was done.", err=True)
        sys.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="landscape")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Hessian spectra of contrastive image-text models along their training, every number with its certificate."""
    command = ctx.invoked_subcommand
    if ranks.rank() > 0 and command != "train":
        place = f"process {ranks.rank()} of {ranks.world_size()}"
        click.echo(
            f"landscape {command}: process 0 does all the work, {place} ends at once.", err=True
        )
        sys.exit(0)
    threads.prepare()


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
    "--split", default="train", show_default=True, type=click.Choice(["train", "held_out", "all"])
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
    type=click.Choice(["landscape", "mamba-ssm"]),
    help="Kernel that trains Mamba towers. mamba-ssm's needs CUDA, has first derivatives only, and is never measured with.",
)
@click.option("--name", help="Of the series in the manifest; default: the folder's name.")
@click.option("--label", help="What figures call the series; default: its name.")
@click.option("--dry-run", is_flag=True, help="Say what would be trained, then stop.")
@threads_option("all cores")
@_one_line_errors
def train(**options: Any) -> None:
    """Train a CLIP model and keep every epoch, the initialisation included.

    OUTPUT/checkpoints.yaml lists each checkpoint with its sha256 and is a manifest for `landscape spectra`.
    """
    from landscape.pipeline import train_run

    report = train_run(**options)
    if ranks.rank() == 0:
        _say(report.summary())


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
@click.option("--name", help="Of the series; default: the folder's name.")
@click.option(
    "--epoch-numbers",
    "counts",
    type=click.Choice(["finished", "from-zero"]),
    help="What the number in a file or its name counts, where that is not known. Default: left to you to fill in.",
)
@click.option("--force", is_flag=True, help="Replace a manifest that is there.")
@_one_line_errors
def init(run_folder: Path, output: Path, **options: Any) -> None:
    """Write a manifest of the run in RUNFOLDER from what it says of itself: model, settings, data, checkpoints, epochs.

    Runs of open_clip_train, timm, Lightning, MMEngine, transformers' Trainer and others; folders of a hub; plain folders of
    checkpoints. What the run does not say is marked FILL_IN, and refused until it is filled in.
    """
    from landscape.manifest.init import init_manifest

    _say(init_manifest(run_folder, output, **options).summary())


@main.command()
@click.argument("manifest", type=FILE)
@click.option("-o", "--output", required=True, type=FILE, help="HDF5 file; resumed if unfinished.")
@click.option(
    "--method",
    type=click.Choice(["lanczos", "power", "pyhessian"]),
    help="Default: the manifest's.",
)
@click.option(
    "--hvp",
    default="double-backward",
    show_default=True,
    type=click.Choice(["double-backward", "finite-difference"]),
    help="Products with the Hessian; finite-difference where a kernel has first derivatives only.",
)
@product_options
@click.option(
    "--max-basis-memory",
    type=Size(),
    help="What Krylov vectors may take; Lanczos restarts within it.",
)
@click.option(
    "--recycle",
    is_flag=True,
    help="Start from the last batch's eigenvectors: fewer products, no density.",
)
@click.option(
    "--unaudited",
    is_flag=True,
    help="Measure without an audit; the records and their figure are marked so.",
)
@click.option("--device", help="cpu, cuda, ...; default: cuda where there is one.")
@click.option(
    "--per-module",
    is_flag=True,
    help="Also of every block of the network: the diagonal blocks of the Hessian. Those keep a batch's graph and "
    "all Krylov vectors, whatever --max-memory and --max-basis-memory say.",
)
@click.option(
    "--modules",
    multiple=True,
    help="With --per-module: shell pattern of module names, as 'visual.*.resblocks.*'.",
)
@click.option(
    "--module-batches",
    type=click.IntRange(min=1),
    help="With --per-module: on the first batches only.",
)
@some_series
@click.option("--epochs", type=Epochs(), help="Measure these alone. Default: all.")
@click.option(
    "--batches",
    "num_batches",
    type=click.IntRange(min=1),
    help="Measure the first so many alone. Default: all.",
)
@click.option(
    "--shard",
    type=Shard(),
    help="Measure one share of all, as 3/8, into a store of its own; see `landscape merge`.",
)
@worker_options
@click.option(
    "--dry-run", is_flag=True, help="Say what is left, what fits, and how long it takes, then stop."
)
@threads_option("as many as make the first product clearly faster")
@_one_line_errors
def spectra(
    manifest: Path,
    output: Path,
    products: "ProductSettings",
    max_basis_memory: int | None,
    recycle: bool,
    per_module: bool,
    modules: tuple[str, ...],
    module_batches: int | None,
    series: tuple[str, ...],
    epochs: tuple[int, ...] | None,
    num_batches: int | None,
    shard: tuple[int, int] | None,
    **options: Any,
) -> None:
    """Measure the extreme Hessian eigenvalues of every checkpoint in MANIFEST, batch by batch.

    Exit status: 0 all is measured, 1 some batches failed, 2 wrong input.
    """
    from landscape import pipeline
    from landscape.manifest import Manifest

    if not per_module and (modules or module_batches):
        raise click.UsageError(
            "--modules and --module-batches say what --per-module measures; add it."
        )
    solver = pipeline.SolverSettings(recycle=recycle, max_basis_memory=max_basis_memory)
    selection = pipeline.Selection(
        series=series, epochs=epochs, num_batches=num_batches, shard=shard
    )
    options |= {"products": products, "solver": solver, "selection": selection}
    loaded = Manifest.load(manifest, checkpoints_exist=False)
    reports: tuple[pipeline.RunReport, ...]
    if per_module:
        reports = pipeline.run_with_modules(
            loaded, output, modules=modules, module_batches=module_batches, **options
        )
    else:
        reports = (pipeline.run(loaded, output, **options),)
    for report in reports:
        _say(report.summary())
    if options["dry_run"]:
        sys.exit(2 if any(report.num_refused for report in reports) else 0)
    sys.exit(0 if all(report.complete for report in reports) else 1)


@main.command()
@click.argument("source", metavar="STORE_MANIFEST_OR_MODEL")
@click.option("-o", "--output", required=True, type=FILE, help="A .png, .pdf or .svg file.")
@some_series
@click.option(
    "--epochs",
    type=Epochs(),
    help="Panels, and what is measured of a manifest; default: all, and six of them drawn.",
)
@click.option(
    "--batches",
    "num_batches",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Mini-batches measured.",
)
@click.option(
    "--probes",
    "num_probes",
    default=2,
    show_default=True,
    type=PROBES,
    help="Random vectors a batch.",
)
@click.option(
    "--matvecs",
    "num_matvecs",
    default=64,
    show_default=True,
    type=click.IntRange(4, limits.MAX_PROBES),
    help="Products a probe.",
)
@click.option(
    "--dense-limit",
    default=3000,
    show_default=True,
    type=click.IntRange(0, limits.MAX_DENSE),
    help="Parameters up to which it is exact too.",
)
@click.option("--seed", default=0, show_default=True, type=SEED, help="Of the random vectors.")
@product_options
@click.option("--title", help="Heading of the figure; none by default.")
@click.option(
    "--unaudited",
    is_flag=True,
    help="Measure without an audit; the record and the figure are marked so.",
)
@click.option("--device", help="cpu, cuda, ...; default: cuda where there is one.")
@worker_options
@click.option("--dry-run", is_flag=True, help="List what would be measured, then stop.")
@threads_option("as many as make the first product clearly faster")
@_one_line_errors
def density(source: str, output: Path, products: "ProductSettings", **options: Any) -> None:
    """Draw the density of the whole spectrum, and say what it tells: estimates, each with its error.

    Of a store, from the quadratures that `landscape spectra` kept: no product is spent. Of a manifest, or of a model by name with
    random weights on OpenMoji pictures, it is measured with probes of its own and stored beside the figure as OUTPUT.h5, which
    is drawn again as it is.

    Exit status: 0 done, 1 some batches failed, 2 wrong input.
    """
    from landscape import pipeline

    names = ("num_batches", "num_probes", "num_matvecs", "dense_limit", "seed")
    settings = pipeline.DensitySettings(
        **{name: options.pop(name) for name in names}, products=products
    )
    report = pipeline.density_of(source, output, settings, **options)
    _say(report.summary())
    sys.exit(0 if report.complete else 1)


@main.command()
@click.argument("target", metavar="MANIFEST_OR_MODEL")
@click.option("--device", help="cpu, cuda, ...; default: cuda where there is one.")
@threads_option("all cores")
@_one_line_errors
def audit(target: str, device: str | None) -> None:
    """Test whether products with the Hessian are second derivatives, and name the module to blame.

    Of a manifest, every series at its last checkpoint, on the first batch: what a wrong operator drops grows with training.
    Of a model by name (open_clip's or this project's), random weights on OpenMoji pictures.

    Exit status: 0 passed, 1 failed or undecided, 2 wrong input.
    """
    from landscape import pipeline

    passed = True
    for one in pipeline.audit_target(target, device=device):
        errors = ("" if row.error is None else f"{row.error:.1e}" for row in one.report.rows)
        rows = tuple(
            (row.name, row.test, error, row.verdict, row.reason)
            for row, error in zip(one.report.rows, errors)
        )
        table = TextTable(
            title=one.title,
            header=("module", "test", "error", "verdict", "why"),
            rows=rows,
            num_left=5,
        )
        click.echo(table.text(terminal_width()))
        passed = passed and one.report.passed
    sys.exit(0 if passed else 1)


@main.command()
@click.argument("store", type=FILE)
@click.option("-o", "--output", required=True, type=FILE, help="A .png, .pdf or .svg file.")
@click.option(
    "--kind",
    default="figure3",
    show_default=True,
    type=click.Choice(["figure3", "sharpness", "modules", "ood", "shape-bias", "conditions"]),
    help="Densities of eigenvalues; sharpness and negatives over epochs; modules over depth and epoch. Of what `landscape ood` "
    "writes: accuracy out of distribution, shape bias, and accuracy by condition beside people.",
)
@some_series
@click.option(
    "--epochs",
    type=Epochs(),
    help="Default: all; of figure3 0 and five later ones (0,5,10,15,20,25 where present).",
)
@click.option("--title", help="Heading of the figure; none by default.")
@click.option(
    "--keep-unconverged",
    is_flag=True,
    help="Draw values without a certificate too, and say how many.",
)
@_one_line_errors
def figure(store: Path, output: Path, kind: str, **options: Any) -> None:
    """Draw STORE: Figure 3, the distribution of the top eigenvalues with a panel per epoch, or another kind of figure."""
    from landscape import pipeline

    if kind in pipeline.OOD_FIGURES:
        if options.pop("keep_unconverged"):
            raise click.UsageError(
                f"--keep-unconverged is for eigenvalues, which --kind {kind} does not show; leave it out."
            )
        _say(pipeline.draw_ood(store, output, kind=kind, **options))
        return
    draw = {
        "figure3": pipeline.draw_figure3,
        "sharpness": pipeline.draw_sharpness,
        "modules": pipeline.draw_modules,
    }[kind]
    _say(draw(store, output, **options))


@main.command()
@click.argument("stores", metavar="STORE...", nargs=-1, required=True, type=FILE)
@click.option(
    "-o", "--output", type=FILE, help="A .txt, .csv, .json or .tex file; default: the terminal."
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["table", "csv", "json", "latex"]),
    help="Default: by the suffix of the output.",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    help="Of spectra: compare this alone; may be repeated. Default: all known.",
)
@click.option(
    "--epochs",
    type=Epochs(),
    help="Compare these alone. Default: all; of accuracies, the last that both have.",
)
@some_series
@click.option(
    "--unpaired",
    is_flag=True,
    help="Of spectra: allow series that were measured on different batches.",
)
@click.option(
    "--keep-unconverged",
    is_flag=True,
    help="Of spectra: count records without a certificate too, and say how many.",
)
@click.option("--resamples", "num_resamples", default=4999, show_default=True, type=RESAMPLES)
@click.option(
    "--seed", default=0, show_default=True, type=SEED, help="Of resampling and permuting."
)
@_one_line_errors
def compare(stores: tuple[Path, ...], **options: Any) -> None:
    """Say which series of the STOREs is sharper and less convex, or more accurate, and how sure that is.

    Of spectra, differences are taken batch by batch, with bootstrap intervals, a permutation test and Holm's correction over
    epochs. Of what `landscape evaluate` and `landscape ood` write, series are compared picture by picture: McNemar's exact test
    for each set with Holm's correction over sets, and a paired bootstrap for means, likeness to people and shape bias.
    """
    from landscape import pipeline

    click.echo(pipeline.compare(stores, **options))


@main.command()
@click.argument("manifest", type=FILE)
@click.option(
    "-o", "--output", required=True, type=FILE, help="The figure: a .png, .pdf or .svg file."
)
@click.option("--series", help="Which series of the manifest; may be left out where there is one.")
@click.option(
    "--epoch",
    type=click.IntRange(0, limits.MAX_EPOCH),
    help="Default: the last one; of a line, the first.",
)
@click.option(
    "--directions",
    default="random",
    show_default=True,
    type=click.Choice(["random", "eigenvectors", "line"]),
    help="Filter-normalised random ones, eigenvectors of the Hessian, or the line to another checkpoint.",
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
    help="Of an axis; odd.",
)
@click.option(
    "--span",
    type=float,
    help="To either side. Random: in filter norms, default 1. Eigenvectors: length, default where 1 nat is predicted.",
)
@click.option(
    "--batches",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="The loss is the mean of so many.",
)
@click.option("--seed", default=0, show_default=True, type=SEED, help="Of random directions.")
@click.option(
    "--view", type=click.Choice(["contour", "3d"]), help="Of two dimensions; default: contour."
)
@click.option(
    "--data",
    type=FILE,
    help="HDF5 file of the points, resumed if unfinished; default: beside the figure.",
)
@click.option("--device", help="cpu, cuda, ...; default: cuda where there is one.")
@worker_options
@click.option("--dry-run", is_flag=True, help="Say what is left to compute, then stop.")
@threads_option("its share of the cores")
@_one_line_errors
def surface(
    manifest: Path,
    output: Path,
    data: Path | None,
    view: str | None,
    device: str | None,
    workers: "WorkerSettings",
    dry_run: bool,
    **request: Any,
) -> None:
    """Draw the loss around a checkpoint of MANIFEST, or along the line to another one.

    Exit status: 0 done, 1 a point could not be evaluated, 2 wrong input. Every point is kept; the same command goes on, or
    draws again.
    """
    from landscape import pipeline
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
    )
    _say(report.summary())


@main.command()
@click.argument("manifest", type=FILE)
@click.option(
    "-o",
    "--output",
    required=True,
    type=FILE,
    help="HDF5 file of the predictions; resumed if unfinished.",
)
@click.option(
    "--data",
    multiple=True,
    metavar="NAME=PATH",
    help="A data set and its files, or the name of one that needs none; may be repeated. Default: the manifest's, else OpenMoji.",
)
@click.option(
    "--slip",
    type=FOLDER,
    help="Folder of SLIP's labels.json and templates.json, the published names and prompts.",
)
@some_series
@click.option("--epochs", type=Epochs(), help="Evaluate these alone. Default: all.")
@click.option("--device", help="cpu, cuda, ...; default: cuda where there is one.")
@worker_options
@click.option(
    "--dry-run",
    is_flag=True,
    help="List sets, pictures, classes and prompts, and what is left; then stop.",
)
@threads_option("all cores")
@_one_line_errors
def evaluate(
    manifest: Path, output: Path, data: tuple[str, ...], slip: Path | None, **options: Any
) -> None:
    """Let every checkpoint of MANIFEST classify labelled pictures by their names, zero-shot, and keep each answer.

    Exit status: 0 all is answered, 1 something failed, 2 wrong input.
    """
    from landscape import pipeline
    from landscape.manifest import Manifest

    loaded = Manifest.load(manifest, checkpoints_exist=False)
    requests = pipeline.requests_of(loaded, data, slip=slip)
    report = pipeline.run_evaluation(loaded, output, requests, **options)
    _say(report.summary())
    sys.exit(0 if report.complete else 1)


@main.command()
@click.argument("manifest", type=FILE, required=False)
@click.option(
    "-o",
    "--output",
    required=True,
    type=FILE,
    help="HDF5 file of the predictions; resumed if unfinished.",
)
@click.option("--stimuli", type=FOLDER, help="The published stimuli, or pictures in their layout.")
@click.option(
    "--own",
    metavar="FOLDER",
    help="Class folders of your own, or openmoji, to be distorted. Default: openmoji.",
)
@click.option(
    "--kind", "kinds", multiple=True, help="One of the distortions; may be repeated. Default: all."
)
@click.option(
    "--size",
    type=click.IntRange(1, limits.MAX_SIDE),
    help="Pixels of own pictures; default: the manifest's, or 224.",
)
@click.option("--seed", default=0, show_default=True, type=SEED, help="Of random distortions.")
@click.option(
    "--logit-scale",
    default="100",
    show_default=True,
    type=LogitScale(),
    help="With --stimuli: by which cosines are multiplied before the softmax over ImageNet's classes, or `learned`.",
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
    help="The same of other models.",
)
@some_series
@click.option("--epochs", type=Epochs(), help="Evaluate these alone. Default: all.")
@click.option("--device", help="cpu, cuda, ...; default: cuda where there is one.")
@worker_options
@click.option(
    "--dry-run", is_flag=True, help="List what models would be shown, and what is left; then stop."
)
@threads_option("all cores")
@_one_line_errors
def ood(manifest: Path | None, output: Path, **options: Any) -> None:
    """Let every checkpoint of MANIFEST classify out-of-distribution pictures, beside people and other models.

    Without a MANIFEST, only the answers of --humans and --answers are put into the file.

    Exit status: 0 all is answered, 1 something failed, 2 wrong input.
    """
    from landscape import pipeline
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
    report = pipeline.run_ood(loaded, output, pipeline.OodRequest(**asked), **options)
    _say(report.summary())
    sys.exit(0 if report.complete else 1)


@main.command()
@click.argument("store", type=FILE)
@click.option(
    "-o", "--output", type=FILE, help="A .txt, .csv, .json or .tex file; default: the terminal."
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["table", "csv", "json", "latex"]),
    help="Default: by the suffix of the output.",
)
@click.option(
    "--by",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "set", "model"]),
    help="A row per series, epoch and data set, or per model with its means over model-vs-human's sets. auto: the latter where "
    "there are answers to its stimuli.",
)
@some_series
@click.option(
    "--epochs", type=Epochs(), help="Show these alone; by model, default the last of each series."
)
@click.option("--resamples", "num_resamples", default=2000, show_default=True, type=RESAMPLES)
@click.option("--seed", default=0, show_default=True, type=SEED, help="Of resampling.")
@_one_line_errors
def table(store: Path, **options: Any) -> None:
    """Show how accurate the models of STORE are: a row per series, epoch and data set, with intervals and paired tests."""
    from landscape import pipeline

    click.echo(pipeline.show_table(store, **options))


@main.command()
@click.argument("store", type=FILE)
@click.option("-o", "--output", required=True, type=FILE, help="An .html file.")
@some_series
@click.option("--title", help="Heading of the page; default: the name of the store.")
@click.option(
    "--predictions",
    multiple=True,
    type=FILE,
    help="A file of `landscape evaluate` or `landscape ood` of the same checkpoints, for a chapter on accuracy beside "
    "sharpness; repeat for several.",
)
@click.option(
    "--keep-unconverged",
    is_flag=True,
    help="Draw values without a certificate too, and say how many.",
)
@click.option("--resamples", "num_resamples", default=4999, show_default=True, type=RESAMPLES)
@_one_line_errors
def report(store: Path, output: Path, **options: Any) -> None:
    """Write all of STORE as one HTML page: spectra by epoch, comparison, certificates, provenance.

    The page needs no network and no other file. A store that still grows is reported as far as it is.
    """
    from landscape import pipeline

    _say(pipeline.write_report(store, output, **options))


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
    help="A distortion, such as contrast, low-pass, eidolonI or edge; may be repeated. all: every one that the pictures allow.",
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
    help="Processes. auto: as many as pay.",
)
@click.option(
    "--size",
    default=224,
    show_default=True,
    type=click.IntRange(1, limits.MAX_SIDE),
    help="Side of the pictures in pixels: the shorter side is scaled to it, and the centre square cut out.",
)
@click.option(
    "--format",
    "suffix",
    default="png",
    show_default=True,
    type=click.Choice(["png", "webp"]),
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
@_one_line_errors
def distort(num_workers: int | str, **request: Any) -> None:
    """Distort the pictures in FOLDER (`class/picture`, or pictures alone), or OpenMoji's, as model-vs-human does.

    The twelve parametric distortions at their published levels or at any other, and sketch, silhouette and edge; see
    docs/distort.md. The pictures depend on the seed alone, not on the number of processes.

    Exit status: 0 done, 1 some pictures cannot be read, 2 wrong input.
    """
    from landscape.distortions.plan import DistortRequest
    from landscape.distortions.run import distort_folder

    number = None if num_workers == "auto" else int(num_workers)
    report = distort_folder(DistortRequest(**request, num_workers=number))
    _say(report.summary())
    sys.exit(0 if report.complete else 1)


@main.command()
@click.argument("stores", metavar="STORE...", nargs=-1, required=True, type=FILE)
@click.option(
    "-o",
    "--output",
    required=True,
    type=FILE,
    help="A new .h5 file, or a store that takes the records in.",
)
@_one_line_errors
def merge(stores: tuple[Path, ...], output: Path) -> None:
    """Put the records of the STOREs, measured in shards of one manifest, into one store.

    The STOREs stay as they are. A record that several have is taken once; values that differ by more than their residuals
    allow are refused.
    """
    from landscape.store import merge_stores

    _say(merge_stores(stores, output).summary())


@main.command()
@click.argument("file", type=PathType(path_type=Path))
@_one_line_errors
def info(file: Path) -> None:
    """Say what is inside FILE: a store, a loss surface, a manifest or a checkpoint."""
    from landscape import pipeline

    for line in pipeline.describe(file):
        _say(line)
