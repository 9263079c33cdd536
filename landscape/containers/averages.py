"""Averaged weights stored with the trained ones in one dictionary, or with a counter."""

import re
from collections.abc import Mapping
from typing import Any

from landscape.containers.stand_ins import Stub

State = dict[str, Stub]

_AVERAGE = re.compile(r"(\w+_)?(ema|swa|avg|average|averaged|polyak)(_\w+)?")


def averaged(state: State) -> State:
    """Remove the counter from the weights of an average.

    The average is an AveragedModel or MMEngine's copy. Other states are returned unchanged.
    """
    counters = {"n_averaged", "steps"}.intersection(state)
    if counters and all(name.startswith("module.") or name in counters for name in state):
        return {
            name.removeprefix("module."): value
            for name, value in state.items()
            if name not in counters
        }
    return state


def with_twins(copies: dict[str, State]) -> dict[str, State]:
    """Add mamba-clip's averages, which share a dictionary with the trained weights.

    They stand there as twins of the trained weights, so each copy is the whole dictionary.
    """
    online = copies.get("online", {})
    twins = any(name.removeprefix("module.") == "image_projection_e" for name in online)
    return copies | {"ema": online} if twins else copies


def average_inside(state: Mapping[str, Any]) -> tuple[str, str] | None:
    """Find a network and its average that a module keeps as `self.ema`.

    Both have the same names and shapes under their prefixes. A "teacher" or "target" can be the
    average or another network, so these names are not recognised.

    Returns:
        The prefixes of the network and of its average; None where there is no such pair.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, value in state.items():
        first, _, rest = name.partition(".")
        groups.setdefault(first, {})[rest] = value.shape
    averages = [first for first in groups if _AVERAGE.fullmatch(first)]
    if len(averages) != 1:
        return None
    shapes = _unwrapped(groups.pop(averages[0]))
    same = [first for first, others in groups.items() if others == shapes]
    return (f"{same[0]}.", f"{averages[0]}.") if len(same) == 1 else None


def with_average_inside(copies: dict[str, State]) -> tuple[dict[str, State], tuple[str, ...]]:
    """Add the average that a module keeps inside.

    The online copy stays whole: a model may own both.

    Returns:
        The copies, and what to say of them.
    """
    state = copies.get("online", {})
    pair = None if "ema" in copies else average_inside(state)
    if pair is None:
        return copies, ()
    online, ema = pair
    average = _unwrapped(
        {name.removeprefix(ema): value for name, value in state.items() if name.startswith(ema)}
    )
    others = {name: value for name, value in state.items() if not name.startswith(pair)}
    # The note is a format string, so braces in names are doubled.
    said = f"The module holds {online!r} and its average {ema!r}.".replace("{", "{{").replace(
        "}", "}}"
    )
    return copies | {"ema": {f"{ema}{name}": value for name, value in average.items()} | others}, (
        said,
    )


def _unwrapped(group: dict[str, Any]) -> dict[str, Any]:
    """Remove the counter and wrapper of an AveragedModel or timm's ModelEma."""
    group = averaged(group)
    wrapped = all(name.startswith("module.") for name in group)
    return (
        {name.removeprefix("module."): value for name, value in group.items()} if wrapped else group
    )
