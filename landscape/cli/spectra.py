"""`landscape spectra`: the extreme eigenvalues of every checkpoint."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from landscape import limits, pipeline, ranks
from landscape.cli.group import ARGUMENTS, leave_work_to_first, main, one_line_errors
from landscape.cli.messages import say
from landscape.cli.options import (
    epochs_option,
    hvp_options,
    some_series,
    threads_option,
    worker_options,
)
from landscape.cli.values import FILE, STORE, Choice, FloatRange, Shard, Size
from landscape.errors import OptionError

if TYPE_CHECKING:
    from landscape.manifest import Manifest


@main.command()
@click.argument("manifest", type=FILE)
@click.option("-o", "--output", required=True, type=STORE, help="HDF5 file; resumed if unfinished.")
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
@epochs_option("Measure only these epochs. Default: all.")
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
@one_line_errors
def spectra(
    manifest: Path,
    output: Path,
    products: "pipeline.HvpSettings",
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
        leave_work_to_first("spectra")
    else:
        ranks.take_place_in_slurm()
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
            say(report.summary())
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
) -> "pipeline.RunReport":
    """Measure as one of the processes that share the models.

    Where they do not exist, start them and end with them.
    """
    from landscape.workers.launch import launch

    timeout = {} if shard_timeout is None else {"timeout": shard_timeout}
    settings = pipeline.ShardSettings(num_processes=shards, **timeout)
    if ranks.is_started_as_rank() or shards == 1 or options["dry_run"]:
        return pipeline.run(manifest, output, shards=settings, **options)
    asked = {name: value for name, value in options.items() if name != "dry_run"}
    pipeline.checked_request(manifest, output, shards=settings, **asked)
    sys.exit(launch(click.get_current_context().meta[ARGUMENTS], shards))
