"""Values and options that several commands share. Imports nothing heavy."""

from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from landscape import limits, pipeline, ranks, threads
from landscape.cli.values import FILE, Choice, Epochs, FloatRange, Size, Workers


def stated_options() -> frozenset[str]:
    """Return the options that the command line states, such as "--seed".

    Options at their defaults are not included.
    """
    context = click.get_current_context()
    options = (option for option in context.command.params if isinstance(option, click.Option))
    return frozenset(
        max(option.opts, key=len)
        for option in options
        if option.name is not None
        and context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
    )


def epochs_option(help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add an option that names epochs; lists of a repeated one are joined."""
    return click.option("--epochs", type=Epochs(), multiple=True, callback=_joined, help=help)


def _joined(
    context: click.Context, parameter: click.Parameter, lists: tuple[tuple[int, ...], ...]
) -> tuple[int, ...] | None:
    return tuple(epoch for epochs in lists for epoch in epochs) or None


STRATEGIES = ("auto", "retained", "rebuilt", "jvp", "rows", "traced", "compiled")
BY_DIFFERENCES = "finite-difference"
# The old name of `auto`, from when `--hvp` chose only whether there are second derivatives.
_OLD_AUTO = "double-backward"


class HvpMethod(Choice):
    """A method of Hessian-vector products; an old name is passed on."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == _OLD_AUTO and BY_DIFFERENCES in self.choices:
            return value
        return super().convert(value, param, ctx)


def _warn_of_old_name(old: str, new: str) -> None:
    """Print one line that names the option to use; for one of several ranks."""
    if ranks.rank() == 0:
        click.echo(f"landscape: {old} is an old name; use {new}.", err=True)


def hvp_options(*, differences: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options on Hessian-vector products to a command.

    The command takes them as a single argument `products`. With `differences`, `--hvp
    finite-difference` is among the methods, and the command also takes `hvp`: "double-backward" or
    "finite-difference".
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def run(*args: Any, hvp: str, old_hvp: str | None, **options: Any) -> Any:
            method = _method_of(hvp, old_hvp)
            if differences:
                options["hvp"] = BY_DIFFERENCES if method == BY_DIFFERENCES else _OLD_AUTO
            strategy = "auto" if method == BY_DIFFERENCES else method
            asked = {name: options.pop(name) for name in ("rows", "max_memory", "allow_tf32")}
            return command(*args, products=pipeline.HvpSettings(hvp=strategy, **asked), **options)

        for option in _hvp_options(differences=differences):
            run = option(run)
        return run

    return decorate


def _method_of(hvp: str, old_hvp: str | None) -> str:
    """Return the method that `--hvp` or the old option `--product` states; warn of an old name.

    Raises:
        click.UsageError: If they contradict each other.
    """
    old_auto = hvp == _OLD_AUTO
    hvp = "auto" if old_auto else hvp
    if old_hvp is None:
        if old_auto:
            _warn_of_old_name(f"--hvp {_OLD_AUTO}", "--hvp auto")
        return hvp
    if "auto" not in (hvp, old_hvp) and hvp != old_hvp:
        raise click.UsageError(
            f"--product {old_hvp}: is an old name of --hvp, which says {hvp}. Leave --product out."
        )
    method = old_hvp if hvp == "auto" else hvp
    old = f"--product {old_hvp}" + f" with --hvp {_OLD_AUTO}" * old_auto
    _warn_of_old_name(
        old, f"--hvp {method} alone" if old_auto or method != old_hvp else f"--hvp {method}"
    )
    return method


def _hvp_options(*, differences: bool) -> Iterator[Callable[[Callable[..., Any]], Any]]:
    """Yield the options, the last of the help first."""
    yield click.option(
        "--tf32",
        "allow_tf32",
        is_flag=True,
        help="Allow a GPU to round factors to 10 bits; recorded.",
    )
    yield click.option(
        "--max-memory",
        type=Size(),
        help="Memory limit of products, such as 4GiB. Default: the free memory.",
    )
    yield click.option(
        "--rows",
        type=click.IntRange(min=1),
        help="Rows of a batch that the network processes at a time; exact.",
    )
    yield click.option("--product", "old_hvp", type=click.Choice(STRATEGIES), hidden=True)
    last = ", or differences of gradients, for kernels that have first derivatives only"
    yield click.option(
        "--hvp",
        default="auto",
        show_default=True,
        type=HvpMethod([*STRATEGIES, *([BY_DIFFERENCES] if differences else [])]),
        help=(
            "Method of Hessian-vector products: a graph that is kept, or rebuilt each time, exact "
            "chunks of rows, jvp of the gradient, a graph recorded once for all batches, or the "
            f"compiled graph{last if differences else ''}. auto: the fastest that fits in memory "
            "and is worth its start. If the requested method does not fit or work, another is "
            "used, and recorded."
        ),
    )


def threads_option(larger: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the option on the number of threads to a command.

    The number is set before the command runs and is not passed to it.

    Args:
        larger: Description of the default for a large network.
    """
    option = click.option(
        "--threads",
        "num_threads",
        type=click.IntRange(1, limits.MAX_THREADS),
        help=(
            "CPU threads of torch in each process. Default: OMP_NUM_THREADS where it is set; else "
            "1 for networks of less than 10 million parameters outside of embedding tables, "
            f"{larger} for larger ones."
        ),
    )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def run(*args: Any, num_threads: int | None, **options: Any) -> Any:
            threads.prepare(num_threads)
            return command(*args, **options)

        return option(run)

    return decorate


# Options of figures; the argument of each is a field of `landscape.figures.PageOptions`.
_OF_LAYOUT = {
    "width": click.option(
        "--width",
        type=FloatRange(1, 50),
        metavar="INCHES",
        help="Width of the figure. Default: 7 inches, two columns of a paper, or what it needs.",
    ),
    "num_columns": click.option(
        "--columns",
        "num_columns",
        type=click.IntRange(1, 20),
        help="Panels side by side. Default: up to three.",
    ),
    "font_size": click.option(
        "--font-size",
        type=FloatRange(3, 40),
        metavar="POINTS",
        help="Size of ordinary letters; titles and labels grow with it. Default: 7.",
    ),
    "linear": click.option(
        "--linear",
        is_flag=True,
        help="Draw values on a linear axis, instead of one of orders of magnitude.",
    ),
}


def layout_options(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options on sizes and axis of a figure to a command.

    The command takes them as a single argument `page_options`.

    Args:
        names: Fields of the page_options; all by default.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def run(*args: Any, **options: Any) -> Any:
            asked = {name: options.pop(name) for name in names or _OF_LAYOUT}
            return command(*args, page_options=pipeline.PageOptions(**asked), **options)

        for name in reversed(names or tuple(_OF_LAYOUT)):
            run = _OF_LAYOUT[name](run)
        return run

    return decorate


as_json = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON document instead; docs/json.md lists its keys.",
)
some_series = click.option(
    "--series",
    multiple=True,
    metavar="NAME",
    help="Name of a series; may be repeated. Default: all.",
)


def worker_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options on where a run calculates to a command.

    The command takes them as a single argument `workers`.
    """

    @wraps(command)
    def run(
        *args: Any,
        num_workers: int | str,
        scheduler: str | None,
        cluster: Path | None,
        **options: Any,
    ) -> Any:
        # With a scheduler or cluster, the number of workers is not known here.
        number = (
            1
            if num_workers == "auto" and (scheduler or cluster)
            else None
            if num_workers == "auto"
            else int(num_workers)
        )
        workers = pipeline.WorkerSettings(num_workers=number, scheduler=scheduler, cluster=cluster)
        return command(*args, workers=workers, **options)

    for option in (
        click.option(
            "--cluster",
            type=FILE,
            help=(
                "YAML file that describes the jobs of a queue (Slurm, PBS, SGE, LSF); see "
                "docs/cluster.md."
            ),
        ),
        click.option(
            "--scheduler",
            metavar="ADDRESS",
            help="A running scheduler of Dask: tcp://HOST:PORT, or its scheduler file.",
        ),
        click.option(
            "--workers",
            "num_workers",
            type=Workers(),
            default="auto",
            show_default=True,
            help=(
                "Worker processes on this machine. auto: as many as free cores, memory and the job "
                "allow. 1: this process."
            ),
        ),
    ):
        run = option(run)
    return run
