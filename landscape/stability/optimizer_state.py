"""State of an optimizer for each parameter, by name.

It comes from a live optimizer, or from the state in a checkpoint. Imports only torch.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# Optimizers whose step is known to be -lr P^-1 times a momentum; P is diagonal but for Muon. The
# first match counts.
SUPPORTED: dict[str, type[torch.optim.Optimizer]] = {
    "SGD": torch.optim.SGD,
    "AdamW": torch.optim.AdamW,
    "Adam": torch.optim.Adam,
    "RMSprop": torch.optim.RMSprop,
}
# torch before 2.9 has none.
if hasattr(torch.optim, "Muon"):
    SUPPORTED["Muon"] = torch.optim.Muon


@dataclass(frozen=True)
class ParameterState:
    """The optimizer's state of one parameter.

    Attributes:
        group: Index of its group.
        entries: Tensors and counts that the optimizer keeps for it, such as "exp_avg_sq" and
            "step"; empty before its first step.
        shape: Shape of the parameter.
    """

    group: int
    entries: Mapping[str, Any]
    shape: torch.Size


@dataclass(frozen=True)
class OptimizerState:
    """State of an optimizer at one step, by parameter name.

    Attributes:
        kind: "SGD", "Adam", "AdamW", "RMSprop" or "Muon"; of several optimizers, their kinds joined
            by " and ".
        groups: Settings of each group that has parameters or had some.
        parameters: State of each parameter, by name.
        where: Name of the optimizer in messages.
        kinds: Kind of each group, where the state is of several optimizers.

    Raises:
        ValueError: If a learning rate is missing, negative or not finite.
    """

    kind: str
    groups: Sequence[Mapping[str, Any]]
    parameters: Mapping[str, ParameterState] = field(default_factory=dict)
    where: str = "the optimizer"
    kinds: Sequence[str] = ()

    def __post_init__(self) -> None:
        for index, group in enumerate(self.groups):
            rate = as_number(group.get("lr", math.nan))
            if not (math.isfinite(rate) and rate >= 0):
                raise ValueError(
                    f"{self.where}: group {index} has the learning rate {group.get('lr')!r}, but a "
                    "step size must be finite and >= 0 to say how curvature compares with it. Set "
                    "the rate of that group."
                )
        self.agreed("maximize", False)

    @property
    def learning_rate(self) -> float:
        """Return the largest learning rate of the groups.

        P and the threshold refer to it.
        """
        return max(as_number(group["lr"]) for group in self.groups)

    @property
    def maximizes(self) -> bool:
        """Tell whether the optimizer maximises the loss."""
        return bool(self.agreed("maximize", False))

    def kind_of(self, group: int) -> str:
        """Return the kind of the optimizer that has a group."""
        return self.kinds[group] if self.kinds else self.kind

    def relative_rate(self, group: int) -> float:
        """Divide the learning rate of a group by the largest.

        Returns 1 where all are zero.
        """
        largest = self.learning_rate
        return as_number(self.groups[group]["lr"]) / largest if largest else 1.0

    def l2_coefficient(self, group: int) -> float:
        """Return the coefficient of the L2 term that the optimizer adds.

        The term belongs to the loss; 0 where the weight decay is decoupled.
        """
        settings = self.groups[group]
        decoupled = self.kind_of(group) in ("AdamW", "Muon") or bool(
            settings.get("decoupled_weight_decay", False)
        )
        return 0.0 if decoupled else as_number(settings.get("weight_decay", 0.0))

    def agreed(self, key: str, default: Any) -> Any:
        """Return a setting that must be the same in all groups.

        Raises:
            ValueError: If groups differ.
        """
        values = [group.get(key, default) for group in self.groups]
        numbers = [
            [as_number(number) for number in value] if isinstance(value, tuple | list) else value
            for value in values
        ]
        other = next((index for index, number in enumerate(numbers) if number != numbers[0]), None)
        if other is not None:
            raise ValueError(
                f"{self.where}: {key} is {values[0]} in group 0 and {values[other]} in group "
                f"{other}, so its steps are those of no single rule, and no single threshold "
                "holds. Give all groups one value, or one optimizer to each."
            )
        return values[0]


def as_number(value: Any) -> float:
    """Convert a setting to a float; `capturable` optimizers hold tensors."""
    return float(value)


def kind_of(optimizer: object) -> str:
    """Name the supported optimizer whose steps this one makes.

    Raises:
        ValueError: If there is none, or it is a subclass with steps of its own.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(_not_one(optimizer))
    for name, supported in SUPPORTED.items():
        # Hooks for profiling wrap the method of a class.
        if isinstance(optimizer, supported) and inspect.unwrap(
            type(optimizer).step
        ) is inspect.unwrap(supported.step):
            return name
    inner = (
        " Pass the one inside of it, optimizer.optimizer."
        if hasattr(optimizer, "optimizer")
        else ""
    )
    raise ValueError(
        f"{type(optimizer).__name__}: its preconditioner is not known here, and a wrong one gives "
        "a wrong number without a sign of it. Supported are torch's "
        f"{', '.join(sorted(SUPPORTED))}.{inner}"
    )


def _not_one(value: object) -> str:
    return (
        "optimizer must be a torch.optim.Optimizer, whose state says what its steps are, got "
        f"{type(value).__name__}. Pass the optimizer that trains the model."
    )


def state_of(
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    named: Mapping[str, Tensor] | None = None,
) -> OptimizerState:
    """Read the state of a live optimizer, or of several that share the parameters.

    Args:
        optimizer: One of torch's SGD, Adam, AdamW, RMSprop and Muon, or a list of these.
        named: The model's own parameters by name; each is looked up in the optimizer by identity.
            None for settings alone.

    Raises:
        ValueError: If an optimizer is another one, or a parameter is not among theirs or in two of
            them.
    """
    optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else optimizer
    if not isinstance(optimizers, list | tuple):
        # A single one that is none, such as a state_dict.
        raise ValueError(_not_one(optimizers))
    if not optimizers:
        raise ValueError("optimizer: the list is empty. Pass the optimizers that train the model.")
    all_kinds = [kind_of(each) for each in optimizers]
    where = " and ".join(type(each).__name__ for each in optimizers)
    groups, kinds, places, kept = _joined(optimizers, all_kinds)
    missing = [name for name, tensor in (named or {}).items() if id(tensor) not in places]
    if named and len(missing) == len(named):
        raise ValueError(
            f"{where}: holds none of the {len(named)} parameters of the operator, such as "
            f"{missing[0]!r}, so it trains another model, or a copy. Pass the optimizer made of "
            "this model's parameters, or model= where the operator is of a copy."
        )
    if missing:
        others = "pass all optimizers of the model in a list, or measure the parameters that it"
        raise ValueError(
            f"{where}: {len(missing)} of the {len(named or {})} parameters of the operator are not "
            f"in it, such as {missing[0]!r}, so no step size is known for them. If several train "
            f"the model, {others} trains: landscape.hessian(..., parameters=[...])."
        )
    parameters = {
        name: ParameterState(places[id(tensor)], kept[id(tensor)], tensor.shape)
        for name, tensor in (named or {}).items()
    }
    kind = " and ".join(dict.fromkeys(all_kinds))
    return OptimizerState(kind, groups, parameters, where, kinds)


def _joined(
    optimizers: Sequence[torch.optim.Optimizer], kinds: Sequence[str]
) -> tuple[list[dict[str, Any]], list[str], dict[int, int], dict[int, Mapping[str, Any]]]:
    """Join the groups of optimizers.

    Returns:
        The settings and the kind of each group; the group and the state of each tensor, by
        identity.

    Raises:
        ValueError: If two optimizers hold one parameter.
    """
    groups: list[dict[str, Any]] = []
    group_kinds: list[str] = []
    places: dict[int, int] = {}
    kept: dict[int, Mapping[str, Any]] = {}
    for optimizer, kind in zip(optimizers, kinds, strict=True):
        before = set(places)
        for group in optimizer.param_groups:
            for tensor in group["params"]:
                if id(tensor) in before:
                    raise ValueError(
                        f"{type(optimizer).__name__}: a parameter of shape {tuple(tensor.shape)} "
                        "is also in an optimizer before it in the list, so its step is that of "
                        "none of both. Give each parameter to one optimizer."
                    )
                places[id(tensor)] = len(groups)
                kept[id(tensor)] = optimizer.state.get(tensor, {})
            groups.append({key: value for key, value in group.items() if key != "params"})
            group_kinds.append(kind)
    return groups, group_kinds, places, kept
