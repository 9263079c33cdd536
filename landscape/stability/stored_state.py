"""The state of Adam from its state_dict, where parameters are numbers.

Here the numbers are matched with the names of parameters.

torch numbers the parameters of an optimizer group by group, in the order in which it was given
them. Names follow where it stored them ("param_names"), and else from the rule by which a trainer
makes its groups, which is then compared with the shapes of what was stored for each number.
Imports only torch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from landscape.stability.optimizer_state import OptimizerState, ParameterState

# Parts of names of parameters without weight decay in open_clip_train and this project's trainer.
# Parameters of fewer than two dimensions have none either. Source: open_clip_train/main.py of
# open_clip_torch 3.3, `exclude`.
_SPARED = ("bn", "ln", "bias", "logit_scale")
_OF_ADAM = ("step", "exp_avg", "exp_avg_sq")


def adam_state_of(stored: object, named: Mapping[str, Tensor], *, where: str) -> OptimizerState:
    """Read the state of Adam or AdamW from `optimizer.state_dict()`.

    Files of torch before 2.7 do not say whether weight decay is decoupled; they are taken for
    AdamW's.

    Args:
        stored: The state_dict.
        named: The parameters that the optimizer trained, by name, in the order of
            model.named_parameters().
        where: Name of the state in messages.

    Raises:
        ValueError: If it is no state of Adam, its numbers cannot be matched with the names in
            exactly one way, or a shape differs.
    """
    entries, groups = _parts(stored, where)
    if any("betas" not in group for group in groups):
        raise ValueError(
            f"{where}: its groups have no betas, so this is not the state of Adam or AdamW, and P "
            "is not known. Use `preconditioner: none`."
        )
    numbers = [list(group["params"]) for group in groups]
    names = _names_of(groups, numbers, named, where)
    parameters: dict[str, ParameterState] = {}
    for index, (group_names, group_numbers) in enumerate(zip(names, numbers)):
        for name, number in zip(group_names, group_numbers):
            kept = entries.get(number, {})
            _check_shape(name, number, kept, named[name].shape, where)
            parameters[name] = ParameterState(index, kept, named[name].shape)
    settings = [
        {"decoupled_weight_decay": True}
        | {key: value for key, value in group.items() if key not in ("params", "param_names")}
        for group in groups
    ]
    return OptimizerState("Adam", settings, parameters, where)


def _parts(
    stored: object, where: str
) -> tuple[Mapping[Any, Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
    """Return the state by number, and the groups."""
    entries = stored.get("state") if isinstance(stored, Mapping) else None
    groups = stored.get("param_groups") if isinstance(stored, Mapping) else None
    if isinstance(entries, Mapping) and isinstance(groups, list | tuple) and groups:
        if all(
            isinstance(group, Mapping) and isinstance(group.get("params"), list | tuple)
            for group in groups
        ):
            return entries, groups
    raise ValueError(
        f"{where}: holds no state_dict of an optimizer of torch, with its state by number and its "
        "groups, so P is not known. Take a checkpoint that training could go on from, or "
        "`preconditioner: none`."
    )


def _names_of(
    groups: Sequence[Mapping[str, Any]],
    numbers: Sequence[Sequence[Any]],
    named: Mapping[str, Tensor],
    where: str,
) -> list[list[str]]:
    """Find the parameter names of the numbers in each group.

    Raises:
        ValueError: If they cannot be known.
    """
    if all("param_names" in group for group in groups):
        names = [[_plain(name) for name in group["param_names"]] for group in groups]
        said = "the names that it stored"
    elif len(groups) == 1:
        names, said = [list(named)], "all parameters in the order of the model"
    elif len(groups) == 2:
        names, said = (
            _two_groups(named),
            "the two groups of open_clip_train: gains and biases, then the rest",
        )
    else:
        raise ValueError(
            f"{where}: has {len(groups)} groups of numbered parameters, and no trainer is known "
            "whose groups these are, so which number is which parameter is open. Use "
            "`preconditioner: none`, or store names: pass model.named_parameters() to the "
            "optimizer."
        )
    unknown = next((name for group in names for name in group if name not in named), None)
    sizes, stored = [len(group) for group in names], [len(group) for group in numbers]
    if unknown is not None or sizes != stored or sum(sizes) != len(named):
        actual = (
            f"the name {unknown!r}" if unknown is not None else f"groups of {stored} parameters"
        )
        raise ValueError(
            f"{where}: has {actual}, but by {said} the model would have groups of {sizes}, so "
            "which number is which parameter is open. Name the model that it trained, with all of "
            "its parameters free, or use `preconditioner: none`."
        )
    return names


def _two_groups(named: Mapping[str, Tensor]) -> list[list[str]]:
    spared = [
        name
        for name, tensor in named.items()
        if tensor.ndim < 2 or any(part in name for part in _SPARED)
    ]
    return [spared, [name for name in named if name not in set(spared)]]


def _plain(name: str) -> str:
    """Remove the prefixes of wrappers from a name."""
    for prefix in ("module.", "_orig_mod."):
        name = name.removeprefix(prefix)
    return name


def _check_shape(
    name: str, number: object, kept: Mapping[str, Any], shape: torch.Size, where: str
) -> None:
    if not kept:
        return
    missing = next((key for key in _OF_ADAM if key not in kept), None)
    if missing is not None:
        raise ValueError(
            f"{where}: its state of parameter {number} has no {missing!r}, so this is not the "
            "state of Adam or AdamW. Use `preconditioner: none`."
        )
    if kept["exp_avg_sq"].shape != shape:
        raise ValueError(
            f"{where}: its parameter {number} has the shape {tuple(kept['exp_avg_sq'].shape)}, but "
            f"should be {name!r} of shape {tuple(shape)}, so its numbers are in another order than "
            "thought, or of another model. Use `preconditioner: none`."
        )
