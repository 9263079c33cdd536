"""Values and options that several commands share. Imports nothing heavy."""

import errno
import math
import os
import re
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from landscape import limits, pipeline, ranks, threads
from landscape.suggestions import did_you_mean


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


class PathType(click.Path):
    """A path; the empty text is refused.

    Python would take it for the current folder.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the name is empty; name a file or a folder.", param, ctx)
        try:
            os.lstat(value)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                self.fail(
                    f"the name has {len(str(value))} characters, more than a file's can; shorten "
                    "it.",
                    param,
                    ctx,
                )
        return super().convert(value, param, ctx)


FILE = PathType(dir_okay=False, path_type=Path)
FOLDER = PathType(file_okay=False, path_type=Path)
SEED = click.IntRange(0, limits.MAX_INTEGER)
PROBES = click.IntRange(1, limits.MAX_PROBES)
RESAMPLES = click.IntRange(99, limits.MAX_RESAMPLES)


class Choice(click.Choice):
    """A name from a list; the refusal of another suggests the nearest."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            self.fail(f"{error.message}{did_you_mean(str(value), self.choices)}", param, ctx)


class FloatRange(click.FloatRange):
    """A number within limits; "nan", which lies within any, is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


class Epochs(click.ParamType):
    """A comma-separated list of epochs."""

    name = "N,N,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            epochs = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of epochs such as 0,5,10.", param, ctx)
        if min(epochs) < 0 or max(epochs) > limits.MAX_EPOCH:
            self.fail(
                f"epochs count from 0, the initialisation, to at most {limits.MAX_EPOCH}.",
                param,
                ctx,
            )
        return epochs


class Size(click.ParamType):
    """An amount of memory, in bytes."""

    name = "SIZE"
    _UNITS = {
        "": 1,
        "k": 1000,
        "m": 1000**2,
        "g": 1000**3,
        "t": 1000**4,
        "ki": 2**10,
        "mi": 2**20,
        "gi": 2**30,
        "ti": 2**40,
    }

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?|)b?", value.strip(), re.IGNORECASE)
        size = 0.0 if match is None else float(match[1]) * self._UNITS[match[2].lower()]
        if not 1 <= size <= limits.MAX_INTEGER:
            self.fail(
                f"{value!r} is not an amount of memory such as 500MB, 1.5GiB or 2000000000.",
                param,
                ctx,
            )
        return int(size)


class LogitScale(click.ParamType):
    """A factor of cosines, or "learned" for each model's own.

    "learned" becomes None.
    """

    name = "NUMBER|learned"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | None:
        if value is None or value == "learned":
            return None
        try:
            scale = float(value)
        except ValueError:
            scale = 0.0
        if not 0 < scale <= limits.MAX_LOGIT_SCALE:
            self.fail(f"{value!r} is not learned or a number above 0, such as 100.", param, ctx)
        return scale


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


class Workers(click.ParamType):
    """A number of processes, or "auto"."""

    name = "auto|N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        if value == "auto":
            return "auto"
        if not str(value).isdecimal() or not 1 <= int(value) <= limits.MAX_WORKERS:
            self.fail(
                f"{value!r} is not auto or a number of processes from 1 to {limits.MAX_WORKERS}.",
                param,
                ctx,
            )
        return int(value)


class Shard(click.ParamType):
    """One of several equal shares of the work."""

    name = "I/N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", str(value))
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            self.fail(f"{value!r} is not a share such as 1/8, the first of eight.", param, ctx)
        return int(match[1]), int(match[2])


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
