"""The command line: each command parses, calls one function, prints.

Heavy imports are inside the commands. So `--help` is instant, and a wrong manifest is refused
before torch is loaded.
"""

import errno
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from landscape import limits, ranks, threads
from landscape.errors import LandscapeError, OptionError
from landscape.json_text import json_text
from landscape.options import (
    FILE,
    FOLDER,
    PROBES,
    RESAMPLES,
    SEED,
    Choice,
    Epochs,
    FloatRange,
    LogitScale,
    PathType,
    Shard,
    Size,
    Workers,
    as_json,
    hvp_options,
    layout_options,
    some_series,
    stated_options,
    threads_option,
    worker_options,
)
from landscape.refusals import one_line_refusals
from landscape.signals import stop_requests
from landscape.suggestions import did_you_mean
from landscape.terminal import TextTable, terminal_width, wrapped
from landscape.version import VERSION

if TYPE_CHECKING:
    from landscape.figures import PageOptions
    from landscape.manifest import Manifest
    from landscape.pipeline import HvpSettings, RunReport, WorkerSettings


# Seconds in which the process where an error began can report it before another repeats it.
_FIRST_SPEAKS = 0.5


def _one_line_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Report intended errors on one line and exit with their status.

    All other errors are bugs and show their traceback.
    """

    @wraps(command)
    def run(*args: Any, **options: Any) -> Any:
        with stop_requests() as came:
            try:
                return command(*args, **options)
            except LandscapeError as error:
                if not came:
                    _say_error(" ".join(str(error).split()), is_repeated=error.is_repeated)
                    sys.exit(error.exit_code)
            except (KeyboardInterrupt, Exception) as error:
                # C++ code may turn a request to stop into an error of any type.
                if not came and not isinstance(error, KeyboardInterrupt):
                    # A disk behind standard output; files have errors of their own.
                    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                        _say_error(f"{error.filename or 'standard output'}: there is no room left.")
                        sys.exit(2)
                    if ranks.is_reporter():
                        raise
                    sys.exit(1)
        number = came[0] if came else signal.SIGINT
        what = (
            "interrupted"
            if number == signal.SIGINT
            else f"stopped by {signal.Signals(number).name}"
        )
        _say_error(f"{what}; results so far are saved; run the same command to resume.")
        sys.exit(128 + number)

    return run


def _say_error(text: str, *, is_repeated: bool = False) -> None:
    """Print an error on one line, in only one of several processes.

    A process that repeats the error of another waits for the other's report first.
    """
    if is_repeated:
        time.sleep(_FIRST_SPEAKS)
    if ranks.is_reporter():
        click.echo(f"landscape: {text}", err=True)


def _refuse_own_input(output: Path | None, *inputs: str | Path) -> None:
    """Refuse to write over what is read.

    Raises:
        LandscapeError: If the output is one of the inputs.
    """
    for path in map(Path, inputs):
        if output is not None and output.exists() and path.exists() and output.samefile(path):
            raise LandscapeError(
                f"{output}: is the input too, and would be lost; name another file."
            )


def _say(text: str) -> None:
    """Print lines that fit the terminal without breaking words."""
    click.echo(wrapped(text, terminal_width()))


def _print_json(document: dict[str, Any]) -> None:
    click.echo(json_text(document), nl=False)


def _format_of(kind: str | None, *, as_json: bool) -> str | None:
    """Return the format that `--format` or `--json` names.

    Raises:
        click.UsageError: If they name two.
    """
    if as_json and kind not in (None, "json"):
        raise click.UsageError(f"--json and --format {kind} name two formats; leave one out.")
    return "json" if as_json else kind


# Key of the context under which the original command line is stored, for other processes.
_ARGUMENTS = "landscape.arguments"


class _Commands(click.Group):
    """The group of commands.

    Ctrl-C before a command has begun, for example while options are read, also ends with its own
    status.
    """

    def make_context(
        self, info_name: str | None, args: list[str], *rest: Any, **options: Any
    ) -> click.Context:
        with _interrupted_without_work(), one_line_refusals():
            arguments = tuple(args)
            context = super().make_context(info_name, args, *rest, **options)
            context.meta[_ARGUMENTS] = arguments
            return context

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not ctx.resilient_parsing:
            ctx.fail(f"No such command {name!r}.{did_you_mean(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with _interrupted_without_work():
            try:
                with one_line_refusals(ctx):
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
    """Measure Hessian spectra of contrastive image-text models along training.

    Every number has a certificate.
    """
    command = ctx.invoked_subcommand
    # spectra does so itself, where the processes share no model.
    if command not in ("train", "spectra"):
        _leave_work_to_first(str(command))
    threads.prepare()


def _leave_work_to_first(command: str) -> None:
    """End every process except the first, which does all the work."""
    if ranks.rank() > 0:
        place = f"process {ranks.rank()} of {ranks.world_size()}"
        click.echo(
            f"landscape {command}: process 0 does all the work, {place} ends at once.", err=True
        )
        sys.exit(0)


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
@_one_line_errors
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
@_one_line_errors
def init(run_folder: Path, output: Path, **options: Any) -> None:
    """Write a manifest of the training run in RUNFOLDER.

    It takes model, settings, data, checkpoints and epochs from the files of the run. Supported are
    runs of open_clip_train, timm, Lightning, MMEngine, transformers' Trainer and others; folders of
    a hub; plain folders of checkpoints. What the run does not state is marked FILL_IN, and refused
    until it is filled in.
    """
    from landscape.manifest.init import init_manifest

    _say(init_manifest(run_folder, output, **options).summary())


@main.command()
@click.argument("manifest", type=FILE)
@click.option("-o", "--output", required=True, type=FILE, help="HDF5 file; resumed if unfinished.")
@click.option(
    "--method",
    type=Choice(["lanczos", "power", "pyhessian"]),
    help="Default: the manifest's.",
)
@hvp_options(differences=True)
@click.option(
    "--max-basis-memory",
    type=Size(),
    help="Memory limit of Krylov vectors; Lanczos restarts within it.",
)
@click.option(
    "--recycle",
    is_flag=True,
    help="Start from the last batch's eigenvectors: fewer products, no density.",
)
@click.option(
    "--unaudited",
    is_flag=True,
    help="Measure without an audit; the records and their figure say so.",
)
@click.option("--device", help="cpu, cuda, ...; default: cuda where there is one.")
@click.option(
    "--per-module",
    is_flag=True,
    help=(
        "Also measure every module of the network: the diagonal blocks of the Hessian. These keep "
        "a batch's graph and all Krylov vectors in memory, whatever --max-memory and "
        "--max-basis-memory are."
    ),
)
@click.option(
    "--modules",
    multiple=True,
    help="With --per-module: shell pattern of module names, such as 'visual.*.resblocks.*'.",
)
@click.option(
    "--module-batches",
    type=click.IntRange(min=1),
    help="With --per-module: number of batches, from the first.",
)
@click.option(
    "--keep-vectors",
    is_flag=True,
    help=(
        "Also keep the eigenvectors of every batch, in half precision; batches that were measured "
        "without them are measured again. See docs/eigenvectors.md."
    ),
)
@some_series
@click.option("--epochs", type=Epochs(), help="Measure only these epochs. Default: all.")
@click.option(
    "--batches",
    "num_batches",
    type=click.IntRange(min=1),
    help="Number of batches, from the first. Default: all.",
)
@click.option(
    "--shard",
    type=Shard(),
    help="Measure a share such as 3/8 into its own store; see `landscape merge`.",
)
@worker_options
@click.option(
    "--shards",
    type=click.IntRange(1, limits.MAX_WORKERS),
    help=(
        "Number of processes that share each model, a part in each: started here, or by torchrun "
        "or srun. See docs/sharded.md."
    ),
)
@click.option(
    "--shard-timeout",
    type=FloatRange(1.0, limits.MAX_SHARD_TIMEOUT),
    help="With --shards: seconds that a process waits for the others. Default: 600.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Show what is left, what fits in memory, and how long it takes, then stop.",
)
@threads_option("as many as make the first product clearly faster")
@_one_line_errors
def spectra(
    manifest: Path,
    output: Path,
    products: "HvpSettings",
    shards: int | None,
    shard_timeout: float | None,
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
    if shards is None:
        _leave_work_to_first("spectra")
    else:
        ranks.take_place_in_slurm()
    from landscape import pipeline
    from landscape.manifest import Manifest

    _check_shards(shards, shard_timeout, per_module=per_module)
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
    elif shards is None:
        reports = (pipeline.run(loaded, output, **options),)
    else:
        reports = (_run_sharded(loaded, output, shards, shard_timeout, options),)
    if ranks.rank() == 0:
        for report in reports:
            _say(report.summary())
    if options["dry_run"]:
        sys.exit(2 if any(report.num_refused for report in reports) else 0)
    sys.exit(0 if all(report.complete for report in reports) else 1)


def _check_shards(shards: int | None, shard_timeout: float | None, *, per_module: bool) -> None:
    """Refuse options that contradict `--shards` or need it.

    This happens before anything heavy is loaded.
    """
    if shards is None and shard_timeout is not None:
        raise click.UsageError("--shard-timeout says how long processes of --shards wait; add it.")
    if shards is not None and per_module:
        raise OptionError(
            f"--shards {shards}: does not go with --per-module: blocks of modules are measured in "
            "one process. Leave one of them out."
        )


def _run_sharded(
    manifest: "Manifest",
    output: Path,
    shards: int,
    shard_timeout: float | None,
    options: dict[str, Any],
) -> "RunReport":
    """Measure as one of the processes that share the models.

    Where they do not exist, start them and end with them.
    """
    from landscape import pipeline
    from landscape.workers.launch import launch

    timeout = {} if shard_timeout is None else {"timeout": shard_timeout}
    settings = pipeline.ShardSettings(num_processes=shards, **timeout)
    if ranks.is_started_as_rank() or shards == 1 or options["dry_run"]:
        return pipeline.run(manifest, output, shards=settings, **options)
    asked = {name: value for name, value in options.items() if name != "dry_run"}
    pipeline.checked_request(manifest, output, shards=settings, **asked)
    sys.exit(launch(click.get_current_context().meta[_ARGUMENTS], shards))


@main.command()
@click.argument("source", metavar="STORE_MANIFEST_OR_MODEL")
@click.option("-o", "--output", required=True, type=FILE, help="A .png, .pdf or .svg file.")
@some_series
@click.option(
    "--epochs",
    type=Epochs(),
    help="Epochs of the panels, and those measured of a manifest; default: all, with six panels.",
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
@_one_line_errors
def density(
    source: str,
    output: Path,
    products: "HvpSettings",
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
    from landscape import pipeline

    names = ("num_batches", "num_probes", "num_matvecs", "dense_limit", "seed")
    settings = pipeline.DensitySettings(
        **{name: options.pop(name) for name in names}, products=products
    )
    kind = _format_of(kind, as_json=as_json) or "table"
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
@_one_line_errors
def audit(target: str, device: str | None, as_json: bool) -> None:
    """Test that Hessian-vector products are second derivatives; name faulty modules.

    For a manifest, every series is tested at its last checkpoint, on the first batch: what a wrong
    operator leaves out grows with training. For a model by name (open_clip's or this project's),
    random weights are tested on OpenMoji pictures.

    Exit status: 0 passed, 1 failed or undecided, 2 wrong input.
    """
    from landscape import pipeline

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
        _print_json({"kind": "audit", "target": target, "passed": passed, "audits": results})
    sys.exit(0 if passed else 1)


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
@click.option(
    "--epochs",
    type=Epochs(),
    help="Default: all; for figure3 0 and five later ones (0,5,10,15,20,25 where present).",
)
@click.option("--title", help="Heading of the figure; none by default.")
@click.option(
    "--keep-unconverged",
    is_flag=True,
    help="Draw values without a certificate too, and say how many.",
)
@layout_options()
@_one_line_errors
def figure(store: Path, output: Path, kind: str, **options: Any) -> None:
    """Draw STORE: Figure 3 or another kind of figure.

    Figure 3 is the distribution of the top eigenvalues with a panel per epoch.
    """
    from landscape import pipeline

    _refuse_own_input(output, store)
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
        _say(pipeline.draw_training(store, output, **options))
        return
    if kind in pipeline.OOD_FIGURES:
        if options.pop("keep_unconverged"):
            raise click.UsageError(
                f"--keep-unconverged is for eigenvalues, which --kind {kind} does not show; leave "
                "it out."
            )
        options.pop("page_options")
        _say(pipeline.draw_ood(store, output, kind=kind, **options))
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
    _say(draw(store, output, **options))


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
@click.option(
    "--epochs",
    type=Epochs(),
    help="Compare only these. Default: all; for accuracies, the last that both have.",
)
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
@_one_line_errors
def compare(stores: tuple[Path, ...], as_json: bool, kind: str | None, **options: Any) -> None:
    """Compare series of the STOREs: sharpness, convexity or accuracy, with uncertainty.

    For spectra, differences are taken batch by batch, with bootstrap intervals, a permutation test
    and Holm's correction over epochs. For files of `landscape evaluate` and `landscape ood`, series
    are compared picture by picture: McNemar's exact test for each set with Holm's correction over
    sets, and a paired bootstrap for means, likeness to people and shape bias.
    """
    from landscape import pipeline

    _refuse_own_input(options["output"], *stores)
    kind = _format_of(kind, as_json=as_json)
    click.echo(pipeline.compare(stores, kind=kind, **options))


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
    type=FILE,
    help="HDF5 file of the points, resumed if unfinished; default: beside the figure.",
)
@layout_options("width", "font_size")
@click.option("--device", help="cpu, cuda, ...; default: cuda where there is one.")
@worker_options
@click.option("--dry-run", is_flag=True, help="Show what is left to compute, then stop.")
@threads_option("its share of the cores")
@_one_line_errors
def surface(
    manifest: Path,
    output: Path,
    data: Path | None,
    view: str | None,
    device: str | None,
    workers: "WorkerSettings",
    page_options: "PageOptions",
    dry_run: bool,
    **request: Any,
) -> None:
    """Draw the loss around a checkpoint of MANIFEST, or on the line to another.

    Exit status: 0 done, 1 a point could not be evaluated, 2 wrong input. Every point is saved; run
    the same command to resume, or to draw again.
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
        page_options=page_options,
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
    """Classify labelled pictures by every checkpoint of MANIFEST, zero-shot.

    Classes are given by their names, and every answer is saved.

    Exit status: 0 all is answered, 1 something failed, 2 wrong input.
    """
    from landscape import pipeline
    from landscape.manifest import Manifest

    loaded = Manifest.load(manifest, checkpoints_exist=False)
    requests = pipeline.requests_of(loaded, data, slip=slip)
    report = pipeline.run_evaluation(loaded, output, requests, stated=stated_options(), **options)
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
@click.option("--epochs", type=Epochs(), help="Evaluate these alone. Default: all.")
@click.option("--device", help="cpu, cuda, ...; default: cuda where there is one.")
@worker_options
@click.option(
    "--dry-run",
    is_flag=True,
    help="List the pictures that models would classify, and what is left; then stop.",
)
@threads_option("all cores")
@_one_line_errors
def ood(manifest: Path | None, output: Path, **options: Any) -> None:
    """Classify out-of-distribution pictures by every checkpoint of MANIFEST.

    The answers can stand beside those of people and other models. Without a MANIFEST, only the
    answers of --humans and --answers are put into the file.

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
    report = pipeline.run_ood(
        loaded, output, pipeline.OodRequest(**asked), stated=stated_options(), **options
    )
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
@click.option(
    "--epochs",
    type=Epochs(),
    help="Show only these epochs; by model, the default is the last of each series.",
)
@click.option("--resamples", "num_resamples", default=2000, show_default=True, type=RESAMPLES)
@click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of resampling.")
@_one_line_errors
def table(store: Path, **options: Any) -> None:
    """Show the accuracy of the models of STORE as a table.

    It has a row per series, epoch and data set, with intervals and paired tests.
    """
    from landscape import pipeline

    _refuse_own_input(options["output"], store)
    click.echo(pipeline.show_table(store, stated=stated_options(), **options))


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
@_one_line_errors
def report(store: Path, output: Path, **options: Any) -> None:
    """Write all of STORE as one HTML page.

    It shows spectra by epoch, comparison, certificates and provenance. The page needs no network
    and no other file. A growing store is reported as it is at present.
    """
    from landscape import pipeline

    _refuse_own_input(output, store, *(options.get("predictions") or ()))
    _say(pipeline.write_report(store, output, **options))


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
@click.option("--epochs", type=Epochs(), help="Write only these epochs. Default: all.")
@_one_line_errors
def export(store: Path, output: Path, **options: Any) -> None:
    """Write the numbers of STORE as one flat table, for pandas, R or a spreadsheet.

    STORE is an output of spectra, density, surface, evaluate or ood. Numbers are those of the file,
    bit for bit, with their certificates. docs/export.md lists the columns.
    """
    from landscape import pipeline

    _refuse_own_input(output, store)
    _say(pipeline.export(store, output, **options))


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
@_one_line_errors
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
    _say(report.summary())
    sys.exit(0 if report.complete else 1)


@main.command()
@click.argument("stores", metavar="STORE...", nargs=-1, required=True, type=FILE)
@click.option(
    "-o",
    "--output",
    required=True,
    type=FILE,
    help="A new .h5 file, or a store to which the records are added.",
)
@_one_line_errors
def merge(stores: tuple[Path, ...], output: Path) -> None:
    """Merge the records of the STOREs, shards of one manifest, into one store.

    The STOREs stay as they are. A record that several have is taken once. Values that differ by
    more than their residuals allow are refused.
    """
    from landscape.store import merge_stores

    _say(merge_stores(stores, output).summary())


@main.command()
@click.argument("file", type=PathType(path_type=Path))
@click.option(
    "--validate", is_flag=True, help="Check a store against its schema instead; see docs/store.md."
)
@as_json
@_one_line_errors
def info(file: Path, validate: bool, as_json: bool) -> None:
    """Describe FILE: a store, a loss surface, a record of a monitor, a manifest or a checkpoint.

    Exit status: 0 done, 1 with --validate where the store deviates from its schema, 2 wrong input.
    """
    from landscape import pipeline

    if validate:
        result = pipeline.validate(file)
        if as_json:
            _print_json(result.facts())
        else:
            _say("\n".join(result.lines()))
        sys.exit(0 if result.conforms else 1)
    if as_json:
        _print_json(pipeline.facts(file))
        return
    for line in pipeline.describe(file):
        _say(line)
