"""Levels of distortions: the benchmark's names ("c10", "pow") and plain numbers ("0.1").

Imports only the standard library and landscape.errors.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from landscape.errors import DistortionError


@dataclass(frozen=True, slots=True)
class Level:
    """The strength of a distortion.

    Attributes:
        text: The condition's name as in model-vs-human's file names; levels that were not published
            are named in the same way.
        value: Number for the formula, such as 0.1 for "c10"; 0 and 1 where there are two
            conditions.
    """

    text: str
    value: float


class _Unknown(Exception):
    """A text that is no level; the message says what is expected."""


# A rule that reads a text which is not the name of a published level.
Rule = Callable[[str], Level]


def published_levels(names: Sequence[str], rule: Rule) -> tuple[Level, ...]:
    """Read the names of published levels.

    The names are kept unchanged.
    """
    return tuple(Level(name, rule(name).value) for name in names)


def read_level(kind: str, given: str | float, published: Sequence[Level], rule: Rule) -> Level:
    """Read a level of a distortion.

    A number that means a published level gets that level's name.

    Raises:
        DistortionError: If it is none.
    """
    text = str(given).strip()
    exact = next((level for level in published if level.text == text), None)
    if exact is not None:
        return exact
    try:
        level = rule(text)
    except _Unknown as problem:
        names = " ".join(level.text for level in published)
        raise DistortionError(
            f"{kind}: {text!r} is no level; expected {problem}. The published levels are {names}."
        ) from None
    return next((known for known in published if known.value == level.value), level)


def numbers(lowest: float, highest: float, what: str, *, infinite: bool = False) -> Rule:
    """Make a rule for numbers in a range.

    Their text is the shortest of up to six digits.

    Args:
        what: The quantity and its unit, for messages.
        infinite: Whether inf is a level too.
    """

    def rule(text: str) -> Level:
        value = _number(text)
        if value is None or not (lowest <= value <= highest or (infinite and value == math.inf)):
            above = f"up to {highest:g}" if math.isfinite(highest) else "or more"
            raise _Unknown(f"{what}: {lowest:g} {above}{', or inf' if infinite else ''}")
        return Level(f"{value:g}", float(f"{value:g}"))

    return rule


def fractions_in_percent(text: str) -> Level:
    """Read a contrast: "c10" or "0.1", which both mean 10 %."""
    percent = re.fullmatch(r"c(\d+(?:\.\d+)?)", text)
    value = float(percent[1]) if percent else _times_hundred(_number(text))
    if value is None or not 0 <= value <= 100:
        raise _Unknown("a contrast such as 0.1, from 0 to 1, or c10, from c0 to c100")
    name = f"{value:g}"
    return Level(f"c{'0' if float(name) < 10 else ''}{name}", float(name) / 100)


def choices(**values: float) -> Rule:
    """Make a rule for a few names, whatever their case."""

    def rule(text: str) -> Level:
        name = next((name for name in values if name.lower() == text.lower()), None)
        if name is None:
            raise _Unknown(" or ".join(values))
        return Level(name, values[name])

    return rule


def reaches(coherence: int, grain: int) -> Rule:
    """Make a rule for eidolons: "32-10-10", or the reach alone.

    The numbers are reach, coherence in tenths, grain.
    """

    def rule(text: str) -> Level:
        reach = _number(text.removesuffix(f"-{coherence}-{grain}"))
        if reach is None or not 0 <= reach < math.inf:
            raise _Unknown(f"a reach such as 32, 0 or more, or 32-{coherence}-{grain}")
        return Level(f"{reach:g}-{coherence}-{grain}", float(f"{reach:g}"))

    return rule


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    # -0 and 0 are one level.
    return None if math.isnan(value) else value + 0.0


def _times_hundred(value: float | None) -> float | None:
    return None if value is None else 100 * value
