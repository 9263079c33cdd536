"""The state of Adam from its state_dict, where parameters are numbers.

Here the numbers are matched with the names of parameters.

torch numbers the parameters of an optimizer group by group, in the order in which it was given
them. Names follow where it stored them ("param_names"), and else from the rule by which a trainer
makes its groups, which is then compared with the shapes of what was stored for each number.
Imports only torch.
"""

import math
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
    for index, group in enumerate(groups):
        _check_settings(group, f"{where}: group {index}")
    numbers = [list(group["params"]) for group in groups]
    names = _names_of(groups, numbers, named, where)
    parameters: dict[str, ParameterState] = {}
    for index, (group_names, group_numbers) in enumerate(zip(names, numbers)):
        for name, number in zip(group_names, group_numbers):
            kept = entries.get(number, {})
            amsgrad = bool(groups[index].get("amsgrad", False))
            _check_entries(name, number, kept, named[name].shape, where, amsgrad=amsgrad)
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


def _check_settings(group: Mapping[str, Any], where: str) -> None:
    """Refuse settings of a group that are not those of Adam.

    Raises:
        ValueError: If one is missing, or no number in its range.
    """
    betas = group.get("betas")
    if not isinstance(betas, list | tuple) or len(betas) != 2:
        raise ValueError(
            f"{where}: has no betas (got {_short(betas)}), so this is not the state of Adam or "
            "AdamW, and P is not known. Use `preconditioner: none`."
        )
    ranges = [("lr", group.get("lr"), math.inf), ("eps", group.get("eps"), math.inf)]
    ranges += [(f"beta{place}", beta, 1.0) for place, beta in enumerate(betas, start=1)]
    ranges += [("weight_decay", group.get("weight_decay", 0.0), math.inf)]
    for name, value, below in ranges:
        number = _number(value)
        if number is None or not 0 <= number < below:
            end = "" if math.isinf(below) else f" and below {below:g}"
            raise ValueError(
                f"{where}: {name} is {_short(value)}, but must be a number of at least 0{end}, so "
                "P is not known. Take the file as training wrote it, or `preconditioner: none`."
            )
    if not all(type(number) is int for number in group["params"]):
        raise ValueError(
            f"{where}: its parameters are not all numbers, as torch stores them, so which is which "
            "is open. Take the file as training wrote it, or `preconditioner: none`."
        )


def _number(value: object) -> float | None:
    """Read a setting, a number or a tensor that holds one; None if it is neither."""
    if isinstance(value, Tensor):
        value = value.item() if value.numel() == 1 and not value.is_complex() else None
    return float(value) if isinstance(value, int | float) else None


def _short(value: object) -> str:
    """Describe a value in a message: itself if it is short, else its type."""
    if isinstance(value, Tensor) and value.numel() != 1:
        return f"a tensor of {str(value.dtype).removeprefix('torch.')}"
    text = repr(value)
    return text if len(text) <= 40 and "\n" not in text else f"a {type(value).__name__}"


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
        names = [[_plain(str(name)) for name in group["param_names"]] for group in groups]
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


def _check_entries(
    name: str,
    number: int,
    kept: object,
    shape: torch.Size,
    where: str,
    *,
    amsgrad: bool,
) -> None:
    """Refuse what is not Adam's state of a parameter of this shape.

    Raises:
        ValueError: If an entry is missing, or not a number or a tensor of the shape.
    """
    if isinstance(kept, Mapping) and not kept:
        return
    keys = [*_OF_ADAM, *(["max_exp_avg_sq"] if amsgrad else [])]
    missing = next((key for key in keys if not isinstance(kept, Mapping) or key not in kept), None)
    if missing is not None:
        raise ValueError(
            f"{where}: its state of parameter {number} has no {missing!r}, so this is not the "
            "state of Adam or AdamW. Use `preconditioner: none`."
        )
    assert isinstance(kept, Mapping)
    step = _number(kept["step"])
    if step is None or not math.isfinite(step):
        raise ValueError(
            f"{where}: the step of its parameter {number} is {_short(kept['step'])}, but must be a "
            "number, so P is not known. Take the file as training wrote it, or `preconditioner: "
            "none`."
        )
    for key in keys[2:]:
        moments = kept[key]
        if not isinstance(moments, Tensor) or not moments.is_floating_point():
            raise ValueError(
                f"{where}: {key!r} of its parameter {number} is {_short(moments)}, but must be a "
                "tensor of real numbers, so P is not known. Take the file as training wrote it, or "
                "`preconditioner: none`."
            )
        if moments.shape != shape:
            raise ValueError(
                f"{where}: its parameter {number} has the shape {tuple(moments.shape)}, but should "
                f"be {name!r} of shape {tuple(shape)}, so its numbers are in another order than "
                "thought, or of another model. Use `preconditioner: none`."
            )
