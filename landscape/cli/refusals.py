"""Refusals of a wrong command line, on one line as all other errors.

click prints the usage, a hint and a blank line before its message. Here the same line says the
command, what is wrong with it, and which help describes it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

from landscape.suggestions import close_names

# How click prints the help of a command line without a command; click 8.1 has no such error.
_SHOWS_HELP: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())


class Refusal(click.UsageError):
    """A wrong command line, shown on one line; the exit status is 2."""

    def __init__(self, error: click.UsageError, command: str) -> None:
        super().__init__(refusal_text(error, command), error.ctx)

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"landscape: {self.message}", file=file, err=True)


@contextmanager
def one_line_refusals(context: click.Context | None = None) -> Iterator[None]:
    """Turn click's errors of usage into refusals on one line.

    Args:
        context: Context of the group, which names the command that is being read.

    Raises:
        Refusal: If the command line is wrong.
    """
    try:
        yield
    except click.UsageError as error:
        if isinstance(error, (Refusal, _SHOWS_HELP)):
            raise
        raise Refusal(error, (context and context.invoked_subcommand) or "") from None


def refusal_text(error: click.UsageError, command: str) -> str:
    """Return the line that says where, what is wrong, and what to do.

    Args:
        command: Name of the command; empty if the error is before it.
    """
    where = f"{command}: " if command else ""
    help_line = f"`{' '.join(filter(None, ('landscape', command)))} --help`"
    return " ".join(f"{where}{_problem(error)} See {help_line}.".split())


def _problem(error: click.UsageError) -> str:
    """Return a sentence on what is wrong, with a stop at its end."""
    if isinstance(error, click.MissingParameter):
        return _missing(error)
    if isinstance(error, click.BadParameter) and error.param is not None:
        return _ended(f"{_name_of(error.param, error.ctx)}: {_plainly(error.message)}")
    if isinstance(error, click.NoSuchOption):
        return f"No such option {error.option_name!r}.{_nearest_option(error)}"
    return _ended(error.format_message())


def _plainly(message: str) -> str:
    """Name a number a number: click calls it a range where it has limits."""
    message = message.replace("a valid integer range", "a whole number")
    return message.replace("a valid float range", "a number")


def _missing(error: click.MissingParameter) -> str:
    """Say what is missing, what it is, and what the command takes."""
    if error.param is None:
        return _ended(error.format_message())
    text = f"{_name_of(error.param, error.ctx)} is missing"
    if isinstance(error.param, click.Option):
        return _ended(f"{text}: {error.param.help}" if error.param.help else text)
    usage = "" if error.ctx is None else f" {error.ctx.get_usage()}"
    return _ended(f"{text}.{usage}")


def _name_of(parameter: click.Parameter, context: click.Context | None) -> str:
    if isinstance(parameter, click.Option):
        return max(parameter.opts, key=len)
    return parameter.make_metavar(context) if context else parameter.human_readable_name


def _nearest_option(error: click.NoSuchOption) -> str:
    if error.ctx is None:
        return ""
    visible = [
        name
        for parameter in error.ctx.command.get_params(error.ctx)
        if not getattr(parameter, "hidden", False)
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name.startswith("--")
    ]
    # The dashes, which all share, would make any two short names alike.
    close = close_names(error.option_name, visible, key=lambda name: name.lstrip("-").casefold())
    return f" Did you mean {close[0]!r}?" if close else ""


def _ended(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "?", "!")) else f"{text}."
