"""Types of the values that options take."""

import errno
import math
import os
import re
from pathlib import Path
from typing import Any

import click

from landscape import limits
from landscape.suggestions import did_you_mean


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


class StoreType(PathType):
    """The path of an HDF5 output; the suffix of another format is refused."""

    _OTHERS = frozenset(
        (".png", ".pdf", ".svg", ".csv", ".parquet", ".html", ".json", ".tex", ".yaml", ".yml")
    )

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(super().convert(value, param, ctx))
        if path.suffix.lower() in self._OTHERS:
            self.fail(
                f"{str(path)!r} would be an HDF5 file, which {path.suffix} does not say; name it "
                f"{str(path.with_suffix('.h5'))!r}.",
                param,
                ctx,
            )
        return path


FILE = PathType(dir_okay=False, path_type=Path)
STORE = StoreType(dir_okay=False, path_type=Path)
FOLDER = PathType(file_okay=False, path_type=Path)
# Bytes of memory that an option takes without a unit; smaller numbers are of MiB or GiB.
_MIN_BARE_SIZE = 1024
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
        if match is not None and not match[2] and size < _MIN_BARE_SIZE:
            self.fail(
                f"{value!r} has no unit, so it means bytes; give one, such as {match[1]}GiB.",
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
