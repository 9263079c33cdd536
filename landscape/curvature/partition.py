"""Partition of the parameters of a network by its modules.

Shapes: n = total size of the parameters.
"""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from landscape.curvature.objective import Params
from landscape.errors import ObjectiveError
from landscape.suggestions import did_you_mean


def modules_of(
    model: nn.Module, params: Params, patterns: Sequence[str] | None = None
) -> dict[str, tuple[str, ...]]:
    """Group the chosen parameters by modules worth a spectrum of their own.

    Without patterns they are the blocks that the network repeats: the elements of every innermost
    ModuleList or Sequential whose elements are of one class and themselves made of modules
    (resblocks.i of a CLIP, blocks.i of timm's ViT, layers.i.blocks.j of VMamba, block{i}.j of
    Simba). What is left is taken by the largest modules without such a block, and parameters that
    lie beside blocks stand alone, so that every chosen parameter is in exactly one. A network that
    repeats nothing is taken layer by layer.

    Args:
        params: The chosen parameters.
        patterns: Shell patterns of dotted names of modules or parameters instead; of nested modules
            that match, the outermost is taken. Parameters that none of them holds are left out.

    Returns:
        Module -> names of its parameters, in the order of params.

    Raises:
        ObjectiveError: If a pattern matches no module that holds a chosen parameter.
    """
    places = (
        _chosen_places(params, patterns) if patterns is not None else _own_places(model, params)
    )
    grouped: dict[str, list[str]] = {}
    for name, place in places.items():
        grouped.setdefault(place, []).append(name)
    return {place: tuple(names) for place, names in grouped.items()}


def coordinates_of(params: Params, names: Iterable[str]) -> Int64[Tensor, " s"]:
    """Return the flat indices of parameters, in the order of `names`.

    They are what `restricted(H, ...)` takes.

    Raises:
        ValueError: If a name is not in `params`.
    """
    ranges, start = {}, 0
    for name, tensor in params.items():
        ranges[name] = torch.arange(start, start + tensor.numel())
        start += tensor.numel()
    names = list(names)
    if unknown := [name for name in names if name not in ranges]:
        raise ValueError(
            f"{unknown[0]!r} is not one of the {len(ranges)} parameters of the operator."
        )
    return (
        torch.cat([ranges[name] for name in names]) if names else torch.zeros(0, dtype=torch.int64)
    )


def _chosen_places(params: Params, patterns: Sequence[str]) -> dict[str, str]:
    """Return the outermost prefix of each parameter's name that a pattern matches."""
    places: dict[str, str] = {}
    matched: set[str] = set()
    for name in params:
        for prefix in _prefixes(name):
            hits = {pattern for pattern in patterns if fnmatchcase(prefix, pattern)}
            if hits:
                places.setdefault(name, prefix)
                matched |= hits
    if missing := [pattern for pattern in patterns if pattern not in matched]:
        examples = dict.fromkeys(name.rpartition(".")[0] or name for name in list(params)[:3])
        known = (prefix for name in params for prefix in _prefixes(name))
        raise ObjectiveError(
            f"no module that holds a chosen parameter matches {missing[0]!r}. Patterns are matched "
            f"against full dotted names, such as {', '.join(examples)}."
            f"{did_you_mean(missing[0], known)}"
        )
    return places


def _own_places(model: nn.Module, params: Params) -> dict[str, str]:
    blocks = _repeated_blocks(model)
    if not blocks:
        return {name: name.rpartition(".")[0] or name for name in params}
    # What contains blocks is divided further; everything else is taken as a whole.
    above = {prefix for block in blocks for prefix in _prefixes(block)[:-1]}
    # The first prefix that is not above a block: an innermost block, a module beside blocks, or the
    # parameter itself.
    return {
        name: next(prefix for prefix in _prefixes(name) if prefix not in above) for name in params
    }


def _repeated_blocks(model: nn.Module) -> set[str]:
    """Name the elements of all lists of blocks, also of nested lists."""
    return {block for name, module in model.named_modules() for block in _blocks_in(name, module)}


def _blocks_in(name: str, module: nn.Module) -> list[str]:
    """Name a list's elements if they are blocks; else return none.

    They are blocks if all that have parameters are of one class, and made of modules that have
    some.
    """
    if not isinstance(module, nn.ModuleList | nn.Sequential):
        return []
    children = {
        key: child
        for key, child in module.named_children()
        if any(True for _ in child.parameters())
    }
    # Blocks are of one class and composite: a row of single layers, such as Linear, is none.
    kinds = {type(child) for child in children.values()}
    if len(kinds) != 1 or not all(_is_composite(child) for child in children.values()):
        return []
    return [f"{name}.{key}" if name else key for key in children]


def _is_composite(module: nn.Module) -> bool:
    return any(any(True for _ in child.parameters()) for child in module.children())


def _prefixes(name: str) -> list[str]:
    """List the prefixes of a dotted name, from the first part on."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]
