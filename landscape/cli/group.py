"""The group of commands, and what all commands share: one-line errors and exit status."""

import errno
import importlib
import signal
import sys
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import click

from landscape import ranks, threads
from landscape.cli.messages import say_error
from landscape.cli.refusals import one_line_refusals
from landscape.errors import LandscapeError
from landscape.signals import stop_requests
from landscape.suggestions import did_you_mean
from landscape.version import VERSION

# Key of the context under which the original command line is stored, for other processes.
ARGUMENTS = "landscape.arguments"


def one_line_errors(command: Callable[..., Any]) -> Callable[..., Any]:
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
                    say_error(" ".join(str(error).split()), is_repeated=error.is_repeated)
                    sys.exit(error.exit_code)
            except (KeyboardInterrupt, Exception) as error:
                # C++ code may turn a request to stop into an error of any type.
                if not came and not isinstance(error, KeyboardInterrupt):
                    # A disk behind standard output; files have errors of their own.
                    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                        say_error(f"{error.filename or 'standard output'}: there is no room left.")
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
        say_error(f"{what}; results so far are saved; run the same command to resume.")
        sys.exit(128 + number)

    return run


# The module of each command, which is loaded when the command is looked up.
_MODULES = {
    "audit": "curvature",
    "compare": "stores",
    "density": "curvature",
    "distort": "pictures",
    "evaluate": "pictures",
    "export": "stores",
    "figure": "stores",
    "info": "stores",
    "init": "training",
    "merge": "stores",
    "ood": "pictures",
    "report": "stores",
    "spectra": "spectra",
    "surface": "curvature",
    "table": "pictures",
    "train": "training",
}


def _load(module: str) -> None:
    importlib.import_module(f"landscape.cli.{module}")


class _Commands(click.Group):
    """The group of commands.

    Ctrl-C before a command has begun, for example while options are read, also ends with its own
    status.
    """

    def make_context(
        self, info_name: str | None, args: list[str], *rest: Any, **options: Any
    ) -> click.Context:
        with _interrupted_without_work(), _reported_once(), one_line_refusals():
            arguments = tuple(args)
            context = super().make_context(info_name, args, *rest, **options)
            context.meta[ARGUMENTS] = arguments
            return context

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Look up a command in its module, which adds it to the group."""
        if cmd_name in _MODULES:
            _load(_MODULES[cmd_name])
        return self._loaded.get(cmd_name)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command of a module that is being loaded."""
        self._loaded[name or str(cmd.name)] = cmd

    @property
    def commands(self) -> MutableMapping[str, click.Command]:
        """Return all commands by their names."""
        for module in sorted(set(_MODULES.values())):
            _load(module)
        return self._loaded

    @commands.setter
    def commands(self, commands: MutableMapping[str, click.Command]) -> None:
        self._loaded = commands

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not ctx.resilient_parsing:
            ctx.fail(f"No such command {name!r}.{did_you_mean(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with _interrupted_without_work(), _reported_once(), one_line_refusals(ctx):
            return super().invoke(ctx)


@contextmanager
def _reported_once() -> Iterator[None]:
    """Let only one of several processes show the refusal that ends all."""
    try:
        yield
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
        leave_work_to_first(str(command))
    threads.prepare()


def leave_work_to_first(command: str) -> None:
    """End every process except the first, which does all the work."""
    if ranks.rank() > 0:
        place = f"process {ranks.rank()} of {ranks.world_size()}"
        click.echo(
            f"landscape {command}: process 0 does all the work, {place} ends at once.", err=True
        )
        sys.exit(0)
