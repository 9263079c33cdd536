"""The step that an optimizer would take next, without taking it.

Shapes: n = total size of the parameters under study.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from landscape.curvature.hvp.memory import is_out_of_memory
from landscape.curvature.objective import Params, flatten
from landscape.errors import first_line
from landscape.stability.optimizer_state import as_number

# Part of a step that rounding may be, in an optimizer that works in few bits alone. As the half of
# the tolerance of the critical sharpness, 1/16.
_ROUNDED = 1 / 32
_BY_HAND = "Take a step yourself, and give Update(after - before, rate)."


@dataclass(frozen=True)
class Update:
    """A step of an optimizer, as a displacement of named parameters.

    Attributes:
        displacement: Parameters after the step less those before, by name.
        rate: Learning rate of the step, the largest of all groups. Scaled by a factor, the
            displacement is the step at that factor times the rate: the steps of torch's optimizers
            are proportional to it.

    Raises:
        ValueError: If the rate is not positive and finite.

    Examples:
        >>> import torch, landscape
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        >>> batch = torch.randn(32, 4).double(), torch.randn(32, 1).double()
        >>> def loss(model, batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        ...
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> loss(model, batch).backward()
        >>> update = landscape.next_update(optimizer, model)
        >>> update.rate, list(update.displacement)
        (0.1, ['0.weight', '0.bias', '2.weight', '2.bias'])
    """

    displacement: Params
    rate: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise ValueError(
                f"rate must be positive and finite, got {self.rate}: a step of rate 0 has no "
                "direction. Probe at a step at which the learning rate is above 0."
            )

    def vector(self, params: Params) -> Float[Tensor, " n"]:
        """Join the displacement of some parameters into one vector.

        Raises:
            ValueError: If one is missing, has another shape, or does not move finitely; or if none
                moves at all.
        """
        pieces = {}
        for name, tensor in params.items():
            moved = self.displacement.get(name)
            if moved is None or moved.shape != tensor.shape:
                got = "none" if moved is None else f"one of shape {tuple(moved.shape)}"
                raise ValueError(
                    f"{name}: needs a displacement of shape {tuple(tensor.shape)}, got {got}, so "
                    "the update is not one of these parameters. Select those that it moves with "
                    "parameters=..., or make the update of this model."
                )
            pieces[name] = moved.detach().to(tensor)
        flat = flatten(pieces)
        if not bool(torch.isfinite(flat).all()) or not bool(flat.any()):
            fault = "is zero" if not bool(flat.any()) else "has infinite or NaN entries"
            raise ValueError(
                f"The update {fault}, so it has no direction to probe. Look at the gradients and "
                "the learning rate of the optimizer."
            )
        return flat


def next_update(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    gradients: Mapping[str, Tensor] | None = None,
) -> Update:
    """Compute the step that the optimizer would take next.

    A copy of the optimizer with copies of the parameters takes it, so it is the real one, with
    momentum, second moments and weight decay. The copies are in float64, where the optimizer works
    in that: parameters of fewer bits round a small step away. The optimizer, the model and torch's
    random state stay as they are. Hooks of all optimizers, and those after the optimizer's step,
    do not run. Costs a copy of both, and no evaluation of the model.

    Args:
        optimizer: Any optimizer whose `step()` needs no closure.
        model: The model that it trains.
        gradients: Gradients by name; parameters without one do not move. By default those that the
            parameters hold in `.grad`.

    Raises:
        ValueError: If the optimizer trains no parameter of the model, has no gradient to take a
            step along, has hooks before its step or a `step` of its own, cannot be copied, fails in
            the step, or has a learning rate of 0; or if it works in fewer bits alone, which round
            the step by more than 1/32 of its length.

    Examples:
        >>> import torch, landscape
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        >>> batch = torch.randn(32, 4).double(), torch.randn(32, 1).double()
        >>> def loss(model, batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        ...
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> loss(model, batch).backward()
        >>> update = landscape.next_update(optimizer, model)
        >>> before = model[0].weight.detach().clone()
        >>> optimizer.step()
        >>> torch.allclose(model[0].weight - before, update.displacement["0.weight"])
        True
    """
    kind = type(optimizer).__name__
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(
            f"optimizer must be a torch.optim.Optimizer, got {kind}. Pass the one that trains the "
            "model, without wrappers."
        )
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    held = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    own = {names[id(tensor)]: place for place, tensor in enumerate(held) if id(tensor) in names}
    if not own:
        raise ValueError(
            f"{kind}: holds no parameter of this {type(model).__name__}, so its steps do not move "
            "it. Pass the optimizer made of this model's parameters."
        )
    given = (
        {name: held[place].grad for name, place in own.items()}
        if gradients is None
        else {name: gradients.get(name) for name in own}
    )
    if all(gradient is None for gradient in given.values()):
        raise ValueError(
            f"{kind}: none of the {len(own)} parameters has a gradient, so there is no next step. "
            "Call backward() first, or give gradients={name: tensor}."
        )
    after = _stepped(optimizer, {own[name]: gradient for name, gradient in given.items()})
    displacement = {
        name: after[place] - held[place].detach().to(after[place]) for name, place in own.items()
    }
    _check_rounding(kind, [(after[place], displacement[name]) for name, place in own.items()])
    return Update(displacement, max(as_number(group["lr"]) for group in optimizer.param_groups))


def _stepped(
    optimizer: torch.optim.Optimizer, gradients: Mapping[int, Tensor | None]
) -> list[Tensor]:
    """Return all parameters after a copy's step, in the optimizer's order.

    They are in float64 where the optimizer can take the step in that.
    """
    _check_step(optimizer)
    try:
        return _stepped_in(torch.float64, optimizer, gradients)
    except Exception as error:
        if is_out_of_memory(error):
            raise
    try:
        return _stepped_in(None, optimizer, gradients)
    except Exception as error:
        # The optimizer may be anyone's.
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"{type(optimizer).__name__}: a copy of it cannot take a step ({first_line(error)}), "
            f"so its next update is not known. {_BY_HAND}"
        ) from error


def _stepped_in(
    dtype: torch.dtype | None,
    optimizer: torch.optim.Optimizer,
    gradients: Mapping[int, Tensor | None],
) -> list[Tensor]:
    """Return the parameters after a copy's step in a type; None for their own."""
    twin = _copied(optimizer)
    moved: list[Tensor] = [tensor for group in twin.param_groups for tensor in group["params"]]
    for place, tensor in enumerate(moved):
        if dtype is not None and tensor.dtype != dtype and tensor.is_floating_point():
            tensor.grad = None
            tensor.data = tensor.data.to(dtype)
            twin.state[tensor] = _converted(twin.state[tensor], dtype)
        gradient = gradients.get(place)
        # What a copy of a parameter holds as its gradient depends on the version of torch.
        tensor.grad = None if gradient is None else gradient.detach().to(tensor, copy=True)
    devices = {tensor.device for tensor in moved if tensor.is_cuda}
    with torch.random.fork_rng(list(devices)), _without_shared_hooks():
        twin.step()
    return [tensor.detach() for tensor in moved]


def _converted(entries: Any, dtype: torch.dtype) -> Any:
    """Convert the arrays in the state of a parameter; counts stay as they are."""
    if isinstance(entries, dict):
        return {name: _converted(value, dtype) for name, value in entries.items()}
    if isinstance(entries, list):
        return [_converted(value, dtype) for value in entries]
    is_array = isinstance(entries, Tensor) and entries.is_floating_point() and entries.ndim > 0
    return entries.to(dtype) if is_array else entries


def _check_rounding(kind: str, steps: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Refuse a step that the rounding of the parameters after it distorts.

    Args:
        steps: Parameters after the step, and their displacements.

    Raises:
        ValueError: If it does.
    """
    rounding = length = 0.0
    for after, moved in steps:
        is_moved = moved != 0
        # Half a unit of rounding at most; entries that rounding leaves in place count too.
        units = torch.finfo(after.dtype).eps / 2 * after.double().abs()
        rounding += float(units.square().sum()) if bool(is_moved.any()) else 0.0
        length += float(moved.double().square().sum())
    if rounding > (_ROUNDED * math.sqrt(length)) ** 2:
        raise ValueError(
            f"{kind}: the parameters in {steps[0][0].dtype} round its step of length "
            f"{math.sqrt(length):.3g} by up to {math.sqrt(rounding):.3g}, so its direction is lost "
            "in rounding, and a copy of the optimizer cannot take it in float64. Probe at a larger "
            "learning rate, or train in float64."
        )


def _check_step(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer whose step is more than that of its class.

    Raises:
        ValueError: If it is.
    """
    own = vars(optimizer)
    patched = own.get("step")
    if own.get("_optimizer_step_pre_hooks"):
        fault = "has hooks that run before its step and may change it"
    elif patched is not None and not hasattr(patched, "_wrapped_by_lr_sched"):
        fault = "has a step() of its own, put in the place of that of its class"
    else:
        return
    raise ValueError(
        f"{type(optimizer).__name__}: {fault}, and would act on the training itself if a copy took "
        f"the step, so its next update is not known. {_BY_HAND}"
    )


def _copied(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Copy an optimizer with its parameters and all of its attributes, but without hooks.

    Its own deepcopy leaves out the attributes that a subclass adds.
    """
    twin = type(optimizer).__new__(type(optimizer))
    kept = {
        name: value
        for name, value in vars(optimizer).items()
        # A scheduler's wrapper around the step counts the steps of the training.
        if name != "step" and not name.endswith("_hooks")
    }
    # What refers to the optimizer shall refer to its copy.
    twin.__setstate__(copy.deepcopy(kept, {id(optimizer): twin}))
    return twin


@contextmanager
def _without_shared_hooks() -> Iterator[None]:
    """Suspend the hooks that torch runs around the steps of all optimizers."""
    tables: list[dict[int, Any]] = [_global_optimizer_pre_hooks, _global_optimizer_post_hooks]
    kept = [dict(table) for table in tables]
    for table in tables:
        table.clear()
    try:
        yield
    finally:
        for table, hooks in zip(tables, kept):
            table.update(hooks)
