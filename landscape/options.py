"""The values and the options that commands of the command line share. Imports nothing heavy."""

import errno
import os
import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from landscape import limits, threads


class PathType(click.Path):
    """A path; the empty text, which means the current folder to Python, is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the name is empty; name a file or a folder.", param, ctx)
        try:
            os.lstat(value)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                self.fail(
                    f"the name has {len(str(value))} characters, more than a file's can; shorten it.",
                    param,
                    ctx,
                )
        return super().convert(value, param, ctx)


FILE = PathType(dir_okay=False, path_type=Path)
FOLDER = PathType(file_okay=False, path_type=Path)
SEED = click.IntRange(0, limits.MAX_INTEGER)
PROBES = click.IntRange(1, limits.MAX_PROBES)
RESAMPLES = click.IntRange(99, limits.MAX_RESAMPLES)


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
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?|)b?", value.strip(), re.IGNORECASE)
        size = 0.0 if found is None else float(found[1]) * self._UNITS[found[2].lower()]
        if not 1 <= size <= limits.MAX_INTEGER:
            self.fail(
                f"{value!r} is not an amount of memory such as 500MB, 1.5GiB or 2000000000.",
                param,
                ctx,
            )
        return int(size)


class LogitScale(click.ParamType):
    """A factor of cosines, or "learned" for each model's own, which is None."""

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


def product_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how products are computed, which the command takes as one `products`."""

    @wraps(command)
    def run(*args: Any, **options: Any) -> Any:
        from landscape.pipeline import ProductSettings

        asked = {
            name: options.pop(name) for name in ("product", "rows", "max_memory", "allow_tf32")
        }
        return command(*args, products=ProductSettings(**asked), **options)

    for option in (
        click.option(
            "--tf32",
            "allow_tf32",
            is_flag=True,
            help="Let a GPU round factors to 10 bits; recorded.",
        ),
        click.option(
            "--max-memory",
            type=Size(),
            help="What products may take, such as 4GiB. Default: what is free.",
        ),
        click.option(
            "--rows",
            type=click.IntRange(min=1),
            help="Rows of a batch that the network sees at once; exact.",
        ),
        click.option(
            "--product",
            default="auto",
            show_default=True,
            type=click.Choice(["auto", "retained", "rebuilt", "jvp", "rows", "traced", "compiled"]),
            help="How a product is computed: a graph that is kept, or rebuilt each time, jvp of the gradient, exact chunks of "
            "rows, a graph recorded once for all batches, or that compiled. auto: the fastest that fits in memory and pays. "
            "Where the way asked for does not fit or work, another is taken, and recorded.",
        ),
    ):
        run = option(run)
    return run


def threads_option(larger: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The number of threads, which is set before the command runs and does not reach it.

    Args:
        larger: What a large network gets by default.
    """
    option = click.option(
        "--threads",
        "num_threads",
        type=click.IntRange(1, limits.MAX_THREADS),
        help="CPU threads of torch in each process. Default: OMP_NUM_THREADS where it is set; else 1 for networks of less than "
        f"10 million parameters outside of embedding tables, {larger} for larger ones.",
    )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def run(*args: Any, num_threads: int | None, **options: Any) -> Any:
            threads.prepare(num_threads)
            return command(*args, **options)

        return option(run)

    return decorate


some_series = click.option(
    "--series",
    multiple=True,
    metavar="NAME",
    help="One of the series; may be repeated. Default: all.",
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
    """One of several equal shares."""

    name = "I/N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", str(value))
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            self.fail(f"{value!r} is not a share such as 1/8, the first of eight.", param, ctx)
        return int(found[1]), int(found[2])


def worker_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say where a run calculates, which the command takes as one `workers`."""

    @wraps(command)
    def run(
        *args: Any,
        num_workers: int | str,
        scheduler: str | None,
        cluster: Path | None,
        **options: Any,
    ) -> Any:
        from landscape.pipeline import WorkerSettings

        # Elsewhere the scheduler knows how many there are.
        number = (
            1
            if num_workers == "auto" and (scheduler or cluster)
            else None
            if num_workers == "auto"
            else int(num_workers)
        )
        workers = WorkerSettings(num_workers=number, scheduler=scheduler, cluster=cluster)
        return command(*args, workers=workers, **options)

    for option in (
        click.option(
            "--cluster",
            type=FILE,
            help="YAML file that says what jobs a queue (Slurm, PBS, SGE, LSF) is asked for; see docs/cluster.md.",
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
            help="Processes of this machine that calculate. auto: what free cores, memory and the job allow. 1: this process.",
        ),
    ):
        run = option(run)
    return run
