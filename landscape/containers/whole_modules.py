"""The state dict of a model that was pickled whole, from its stand-in."""

from pathlib import Path
from typing import Any

from landscape.containers.stand_ins import Inert, Stub
from landscape.errors import CheckpointError

_PARTS = ("_parameters", "_buffers", "_modules")
_MAX_DEPTH = 100


def is_module(value: Any) -> bool:
    """Tell whether this stands for a torch.nn.Module or a compiled TorchScript module."""
    return (
        isinstance(value, Inert)
        and isinstance(value.state, dict)
        and (_is_plain_module(value) or _is_script(value))
    )


def _is_plain_module(value: Inert) -> bool:
    return all(isinstance(value.state.get(part), dict) for part in _PARTS)


def _is_script(value: Inert) -> bool:
    return value.name.startswith("__torch__.")


def state_of_module(path: Path, module: Inert) -> dict[str, Stub]:
    """Collect parameters and persistent buffers by name, as model.state_dict() does.

    Raises:
        CheckpointError: If a part of it is no module whose tensors are known.
    """
    state: dict[str, Stub] = {}
    _collect(path, module, "", state, _MAX_DEPTH)
    if not state:
        raise CheckpointError(
            f"{path}: holds a {module.name} without tensors, so there is nothing to measure. Save "
            "model.state_dict()."
        )
    return state


def _collect(path: Path, module: Any, prefix: str, state: dict[str, Stub], depth: int) -> None:
    if not is_module(module) or depth < 0:
        name = module.name if isinstance(module, Inert) else type(module).__name__
        raise CheckpointError(
            f"{path}: its module {prefix.rstrip('.') or 'at the top'!r} is a {name}, whose tensors "
            "cannot be told without running its code. Where the model is at hand, save "
            "model.state_dict() instead."
        )
    if not _is_plain_module(module):
        # TorchScript keeps parameters, buffers, modules and constants as attributes alike.
        tensors, modules = (
            module.state,
            {k: v for k, v in module.state.items() if isinstance(v, Inert) and is_module(v)},
        )
    else:
        hidden = module.state.get("_non_persistent_buffers_set") or ()
        buffers = {
            name: value for name, value in module.state["_buffers"].items() if name not in hidden
        }
        tensors, modules = {**module.state["_parameters"], **buffers}, module.state["_modules"]
        tensors = {name: value for name, value in tensors.items() if value is not None}
        if wrong := [name for name, value in tensors.items() if not isinstance(value, Stub)]:
            raise CheckpointError(
                f"{path}: {prefix}{wrong[0]} is a "
                f"{getattr(tensors[wrong[0]], 'name', type(tensors[wrong[0]]).__name__)}, not "
                "plain numbers, so it cannot be read. Save model.state_dict() of the plain model."
            )
    state.update(
        {f"{prefix}{name}": value for name, value in tensors.items() if isinstance(value, Stub)}
    )
    for name, child in modules.items():
        if child is not None:
            _collect(path, child, f"{prefix}{name}.", state, depth - 1)
    if len(state) > 1_000_000:
        raise CheckpointError(
            f"{path}: holds more than a million tensors, as no model does. Get the original file."
        )
