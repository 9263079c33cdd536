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

# Optimizers whose step is known to be -lr P^-1 times a momentum, with a diagonal P. The first
# match counts.
SUPPORTED: dict[str, type[torch.optim.Optimizer]] = {
    "SGD": torch.optim.SGD,
    "AdamW": torch.optim.AdamW,
    "Adam": torch.optim.Adam,
    "RMSprop": torch.optim.RMSprop,
}
_NO_MUON = (
    "Muon: its steps have one size whatever the gradient, as the momentum is orthogonalised, so "
    "there is no preconditioner P whose eigenvalues of P^-1/2 H P^-1/2 decide whether it diverges, "
    "and no threshold of them. Measure H itself, or the parameters that the AdamW beside it "
    "trains: landscape.hessian(..., parameters=[...])."
)


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
        kind: "SGD", "Adam", "AdamW" or "RMSprop".
        groups: Settings of each group that has parameters or had some.
        parameters: State of each parameter, by name.
        where: Name of the optimizer in messages.

    Raises:
        ValueError: If a learning rate is missing, negative or not finite.
    """

    kind: str
    groups: Sequence[Mapping[str, Any]]
    parameters: Mapping[str, ParameterState] = field(default_factory=dict)
    where: str = "the optimizer"

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
        decoupled = self.kind == "AdamW" or bool(settings.get("decoupled_weight_decay", False))
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
        raise ValueError(
            "optimizer must be a torch.optim.Optimizer, whose state says what its steps are, got "
            f"{type(optimizer).__name__}. Pass the optimizer that trains the model."
        )
    if isinstance(optimizer, getattr(torch.optim, "Muon", ())):
        raise ValueError(_NO_MUON)
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


def state_of(
    optimizer: torch.optim.Optimizer, named: Mapping[str, Tensor] | None = None
) -> OptimizerState:
    """Read the state of a live optimizer.

    Args:
        optimizer: One of torch's SGD, Adam, AdamW and RMSprop.
        named: The model's own parameters by name; each is looked up in the optimizer by identity.
            None for settings alone.

    Raises:
        ValueError: If the optimizer is another one, or a parameter is not among its own.
    """
    kind, where = kind_of(optimizer), type(optimizer).__name__
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    places = {
        id(tensor): index
        for index, group in enumerate(optimizer.param_groups)
        for tensor in group["params"]
    }
    missing = [name for name, tensor in (named or {}).items() if id(tensor) not in places]
    if named and len(missing) == len(named):
        raise ValueError(
            f"{where}: holds none of the {len(named)} parameters of the operator, such as "
            f"{missing[0]!r}, so it trains another model, or a copy. Pass the optimizer made of "
            "this model's parameters, or model= where the operator is of a copy."
        )
    if missing:
        raise ValueError(
            f"{where}: {len(missing)} of the {len(named or {})} parameters of the operator are not "
            f"in it, such as {missing[0]!r}, so no step size is known for them. Measure the "
            "parameters that it trains: landscape.hessian(..., parameters=[...])."
        )
    parameters = {
        name: ParameterState(places[id(tensor)], optimizer.state.get(tensor, {}), tensor.shape)
        for name, tensor in (named or {}).items()
    }
    return OptimizerState(kind, groups, parameters, where)
