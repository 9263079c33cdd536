"""What commands print: lines, JSON and errors, and checks of where it goes."""

import time
from pathlib import Path
from typing import Any

import click

from landscape import ranks
from landscape.errors import LandscapeError
from landscape.json_text import json_text
from landscape.terminal import terminal_width, wrapped

# Seconds in which the process where an error began can report it before another repeats it.
_FIRST_SPEAKS = 0.5


def say_error(text: str, *, is_repeated: bool = False) -> None:
    """Print an error on one line, in only one of several processes.

    A process that repeats the error of another waits for the other's report first.
    """
    if is_repeated:
        time.sleep(_FIRST_SPEAKS)
    if ranks.is_reporter():
        click.echo(f"landscape: {text}", err=True)


def refuse_own_input(output: Path | None, *inputs: str | Path) -> None:
    """Refuse to write over what is read.

    Raises:
        LandscapeError: If the output is one of the inputs.
    """
    for path in map(Path, inputs):
        if output is not None and output.exists() and path.exists() and output.samefile(path):
            raise LandscapeError(
                f"{output}: is the input too, and would be lost; name another file."
            )


def say(text: str) -> None:
    """Print lines that fit the terminal without breaking words."""
    click.echo(wrapped(text, terminal_width()))


def print_json(document: dict[str, Any]) -> None:
    click.echo(json_text(document), nl=False)


def format_of(kind: str | None, *, as_json: bool) -> str | None:
    """Return the format that `--format` or `--json` names.

    Raises:
        click.UsageError: If they name two.
    """
    if as_json and kind not in (None, "json"):
        raise click.UsageError(f"--json and --format {kind} name two formats; leave one out.")
    return "json" if as_json else kind
