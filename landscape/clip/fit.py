"""The rules that match a checkpoint's tensors to a model by name.

They match exactly or not at all. These may differ, because they do not change the function: the
prefix of an enclosing module, constants that libraries store or not, weights that are tied, the
shape of a single number. A note reports each. Nothing else is filled in, left out or resized.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from landscape.clip.misfit import explain_misfit, is_constant
from landscape.containers.averages import average_inside
from landscape.errors import CheckpointError

State = dict[str, Tensor]

# Settings that OpenAI's TorchScript archives store among the weights.
_ARCHIVE_NUMBERS = ("input_resolution", "context_length", "vocab_size")
# Names of torchmetrics' counts, in metrics that were made persistent. Counts are integers; weights
# are not.
_METRIC_STATES = re.compile(r"(.*\.)?(tp|fp|tn|fn|confmat|correct|total)")


def fit_to_model(
    path: Path, state: State, model: nn.Module, *, aliases: Mapping[str, str] | None = None
) -> tuple[State, list[str]]:
    """Match a state dict to a model's names and shapes.

    Args:
        aliases: Tensors that the file left out because they equal another one: left out -> kept.

    Returns:
        Tensors by the model's names, in the model's order; and notes on what was filled in or left
        out.

    Raises:
        CheckpointError: If they are not exactly the model's; the message gives the probable reason.
    """
    expected = model.state_dict()
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    aliased, notes = _fill_aliases(state, aliases or {}, expected)
    fitted, said = _without_prefix(aliased, expected)
    notes += said
    fitted = _with_scalars_of(fitted, expected)
    # Where no name fits, notes on constants would only hide the reason.
    if fitted.keys() & expected.keys():
        notes += _leave_out_constants(fitted, expected)
        notes += _fill_constants(path, fitted, expected, parameters)
    notes += _fill_ties(fitted, expected)
    if expected.keys() != fitted.keys() or any(
        fitted[name].shape != expected[name].shape for name in expected
    ):
        raise CheckpointError(f"{path}: {explain_misfit(fitted, expected)}")
    _check_ties(path, fitted, expected)
    return {name: fitted[name] for name in expected}, notes


def _without_prefix(state: State, expected: Mapping[str, Tensor]) -> tuple[State, list[str]]:
    """Remove the prefix that all names share.

    Counts of metrics, which may stand beside it, are left out.
    """
    wanted = {name for name in expected if not is_constant(name)}
    if not wanted or wanted & state.keys():
        return dict(state), []
    state, left_out = _without_average(state)
    first = min(wanted, key=len)
    prefixes = [name.removesuffix(first) for name in state if name.endswith(f".{first}")]
    for prefix in prefixes:
        inside = {
            name.removeprefix(prefix): tensor
            for name, tensor in state.items()
            if name.startswith(prefix)
        }
        beside = [name for name in state if not name.startswith(prefix)]
        if all(_is_metric_state(name, state[name]) for name in beside):
            notes = [
                *left_out,
                f"Took the prefix {prefix!r} off {'its' if beside else 'all'} {len(inside)} names.",
            ]
            counts = (
                f"Left out {_listed(beside)}: counts of metrics, which the model does not read."
            )
            return inside, [*notes, counts] if beside else notes
    return dict(state), left_out


def _without_average(state: State) -> tuple[State, list[str]]:
    """Leave out the average of a network that is stored beside it.

    The average is loaded with weights: ema.
    """
    pair = average_inside(state)
    if pair is None:
        return state, []
    online, average = pair
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(average)}
    return kept, [
        f"Left out the {len(state) - len(kept)} tensors under {average!r}, the average of "
        f"{online!r}."
    ]


def _is_metric_state(name: str, tensor: Tensor) -> bool:
    return (
        _METRIC_STATES.fullmatch(name) is not None
        and not tensor.is_floating_point()
        and not tensor.is_complex()
    )


def _with_scalars_of(state: State, expected: Mapping[str, Tensor]) -> State:
    """Give stored scalars the model's shape.

    Some open_clip releases stored them as vectors of one number.
    """
    scalars = {
        name: state[name].reshape(expected[name].shape)
        for name in ("logit_scale", "logit_bias")
        if name in state and name in expected and state[name].numel() == expected[name].numel() == 1
    }
    return state | scalars


def _fill_aliases(
    state: State, aliases: Mapping[str, str], expected: Mapping[str, Tensor]
) -> tuple[State, list[str]]:
    filled = {
        left_out: kept
        for left_out, kept in aliases.items()
        if left_out not in state and kept in state
    }
    notes = [
        f"{left_out!r} is {kept!r}, as the file says of tied weights."
        for left_out, kept in filled.items()
    ]
    return state | {left_out: state[kept] for left_out, kept in filled.items()}, notes


def _leave_out_constants(state: State, expected: Mapping[str, Tensor]) -> list[str]:
    surplus = [
        name
        for name in state
        if name not in expected and (is_constant(name) or _is_number_of_archive(name, state[name]))
    ]
    for name in surplus:
        del state[name]
    return (
        [f"Left out {_listed(surplus)}: constants that this model does not store."]
        if surplus
        else []
    )


def _is_number_of_archive(name: str, tensor: Tensor) -> bool:
    return name in _ARCHIVE_NUMBERS and tensor.numel() == 1 and not tensor.is_floating_point()


def _fill_constants(
    path: Path, state: State, expected: Mapping[str, Tensor], parameters: set[str]
) -> list[str]:
    lacking = [
        name
        for name in expected
        if name not in state and is_constant(name) and name not in parameters
    ]
    check_has_numbers(path, {name: expected[name] for name in lacking})
    state.update({name: expected[name].detach().to("cpu", copy=True) for name in lacking})
    return (
        [f"Filled in {_listed(lacking)} from the model: constants that the file does not store."]
        if lacking
        else []
    )


def check_has_numbers(path: Path, constants: Mapping[str, Tensor]) -> None:
    """Refuse constants for which neither file nor model has numbers.

    Raises:
        CheckpointError: If one of them is on the meta device.
    """
    if empty := [name for name, tensor in constants.items() if tensor.is_meta]:
        raise CheckpointError(
            f"{path}: does not store {_listed(empty)}, which the model computes when it is built, "
            "and this model is on the meta device, so there are no numbers for it. Build the model "
            "with its buffers on the CPU."
        )


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Return a key that is equal for tensors in the same memory.

    On the meta device, where there is no memory, it identifies the storage.
    """
    storage = tensor.untyped_storage()
    address = storage._cdata if tensor.is_meta else storage.data_ptr()
    return (address, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _ties(expected: Mapping[str, Tensor]) -> list[list[str]]:
    """Group the names of the model that share their memory."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in expected.items():
        if tensor.numel():
            groups.setdefault(_place(tensor), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _fill_ties(state: State, expected: Mapping[str, Tensor]) -> list[str]:
    notes = []
    for names in _ties(expected):
        stored = [name for name in names if name in state]
        lacking = [name for name in names if name not in state]
        if stored and lacking:
            state.update(dict.fromkeys(lacking, state[stored[0]]))
            notes.append(
                f"{_listed(lacking)} is {stored[0]!r}: the model ties them and the file stores "
                "them once."
            )
    return notes


def _check_ties(path: Path, state: State, expected: Mapping[str, Tensor]) -> None:
    for first, *others in _ties(expected):
        for other in others:
            if not torch.equal(state[first], state[other]):
                raise CheckpointError(
                    f"{path}: stores different numbers for {first!r} and {other!r}, which are one "
                    "tensor in the model, so one of them would be lost. Build the model without "
                    "the tie."
                )


def _listed(names: Iterable[str]) -> str:
    shown = [repr(name) for name in names]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")
