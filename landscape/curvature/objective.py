"""A loss as a function of named parameters, and the flat vector those parameters form.

Imports only torch and landscape.errors.
Shapes: n = total size of the selected parameters, in the order of model.named_parameters().
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from landscape.errors import ObjectiveError
from landscape.kernels.first_order import second_order
from landscape.suggestions import did_you_mean

Params = dict[str, Tensor]
# State that a recording puts in the place of a model's own; see `given_state`.
_given_state: "ContextVar[tuple[nn.Module, Mapping[str, Tensor]] | None]" = ContextVar(
    "given_state", default=None
)
Batch = Any
Features = Any


@dataclass(frozen=True)
class ConvexCut:
    """The place where a Gauss-Newton matrix cuts an objective in two.

    There, loss(features, batch) = convex(outputs(features, batch), batch).

    Attributes:
        outputs: Any nest of tensors, such as the logits of a cross-entropy: what the network is
            linearised up to.
        convex: Scalar loss of them, and convex in them, which makes the matrix positive
            semidefinite. A contrastive loss is convex in the logits, the scaled similarities of all
            pairs, but in neither the features nor the temperature.

    Source: Schraudolph, Fast curvature matrix-vector products (2002), section 3; Martens, Deep
    learning via Hessian-free optimization (2010), section 4.2, on cutting so that the loss is
    convex.
    """

    outputs: Callable[[Features, Batch], Any]
    convex: Callable[[Any, Batch], Tensor]


@dataclass(frozen=True)
class Objective:
    """loss(forward(params, batch), batch) + weight_decay / 2 * |params|^2, in nats.

    Attributes:
        forward: Features of a batch: any nest of tensors. May read nothing but its arguments and
            constants.
        loss: Scalar loss of the features; may couple all rows of the batch, as a contrastive loss
            does.
        weight_decay: Coefficient of the L2 term over the selected parameters; finite and >= 0.
        module: The model behind `forward`, where there is one: preconditions are checked on it and
            messages name its parts. It is never modified.
        rowwise: Whether row i of the features depends on row i of the batch alone. False for an
            opaque closure.
        cut: Where the loss is a convex function of outputs, for a Gauss-Newton matrix; None where
            that is not known.
        rebound: Makes the same objective of another module of the same kind, such as a copy of
            `module` in float64; None where nobody said how.

    Raises:
        ValueError: If `weight_decay` is negative or not finite.

    Examples:
        >>> import torch, landscape
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> batch = torch.randn(32, 4), torch.randn(32, 1)
        >>> def loss(model, batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        ...
        >>> objective = landscape.Objective.from_closure(model, loss, weight_decay=0.1)
        >>> params = landscape.curvature.select_parameters(model)
        >>> H = landscape.HessianOperator(objective, params, batch)
        >>> round(H.weight_decay, 3)
        0.1
    """

    forward: Callable[[Params, Batch], Features]
    loss: Callable[[Features, Batch], Tensor]
    weight_decay: float = 0.0
    module: nn.Module | None = None
    rowwise: bool = True
    cut: ConvexCut | None = None
    rebound: "Callable[[nn.Module], Objective] | None" = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay must be finite and >= 0, got {self.weight_decay}.")

    @classmethod
    def from_closure(
        cls, model: nn.Module, loss: Callable[[Any, Batch], Tensor], *, weight_decay: float = 0.0
    ) -> "Objective":
        """Build the objective of `loss(model, batch)`.

        The loss may use the model in any way: call it, its parts, its parameters.

        What the loss reaches through its `model` argument sees the parameters under study. A tensor
        that the loss captured elsewhere, such as a list made of model.parameters(), does not;
        HessianOperator refuses that.

        Raises:
            ValueError: If `model` is no module, or `weight_decay` no coefficient.
        """
        _check_model(model)

        def forward(params: Params, batch: Batch) -> Features:
            return call_with_parameters(model, params, loss, batch)

        def rebound(other: nn.Module) -> Objective:
            return cls.from_closure(other, loss, weight_decay=weight_decay)

        return cls(
            # The forward pass returns the loss itself, and whether it couples rows is not known.
            forward,
            lambda value, batch: value,
            weight_decay=weight_decay,
            module=model,
            rowwise=False,
            rebound=rebound,
        )

    @classmethod
    def from_outputs(
        cls,
        model: nn.Module,
        outputs: Callable[[Any, Batch], Any],
        loss: Callable[[Any, Batch], Tensor],
        *,
        weight_decay: float = 0.0,
    ) -> "Objective":
        """Build the objective of `loss(outputs(model, batch), batch)`.

        The loss must be convex in the outputs.

        Raises:
            ValueError: As in `from_closure`.
        """
        _check_model(model)

        def forward(params: Params, batch: Batch) -> Features:
            return call_with_parameters(model, params, outputs, batch)

        def rebound(other: nn.Module) -> Objective:
            return cls.from_outputs(other, outputs, loss, weight_decay=weight_decay)

        cut = ConvexCut(outputs=lambda features, batch: features, convex=loss)
        return cls(
            forward,
            loss,
            weight_decay=weight_decay,
            module=model,
            rowwise=False,
            cut=cut,
            rebound=rebound,
        )

    def data_term(self, params: Params, batch: Batch) -> Float[Tensor, ""]:
        """Evaluate the loss without the L2 term, on twice differentiable kernels."""
        with second_order():
            return self.loss(self.forward(params, batch), batch)

    def holding(self, held: Params) -> "Objective":
        """Return the same loss as a function of the other parameters.

        Those of `held` stay as they are, and have no L2 term.
        """
        return replace(
            self,
            forward=lambda params, batch: self.forward({**held, **params}, batch),
            rebound=None,
        )

    def __call__(self, params: Params, batch: Batch) -> Float[Tensor, ""]:
        value = self.data_term(params, batch)
        if self.weight_decay:
            value = value + 0.5 * self.weight_decay * squared_norm(params)
        return value


class LentParameters(dict[str, Tensor], ABC):
    """Parameters that are made when they are read, for one evaluation; see `landscape.sharded`."""

    @abstractmethod
    def evaluate(self, module: nn.Module, function: Callable[..., Any], *args: Any) -> Any:
        """Evaluate as `call_with_parameters` does, for these parameters."""


class _Bound(nn.Module):
    """`function(module, *args)` as a module, which is what functional_call takes.

    A criterion that is itself a module becomes part of this one: a tensor that it shares with the
    model is replaced too.
    """

    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(self.module, *args)


def call_with_parameters(
    module: nn.Module, params: Params, function: Callable[..., Any], *args: Any
) -> Any:
    """Evaluate `function(module, *args)` with `params` in place of the module's own parameters.

    Parameters not named in `params` and all buffers are replaced by detached copies: the result
    depends on `params` alone, later changes of the model cannot reach its graph, and buffers
    written during the evaluation are thrown away. Costs one copy of the rest of the model. Tensors
    tied under several names are replaced under all.

    Raises:
        ObjectiveError: If `params` names a parameter that the module does not have.
    """
    if isinstance(params, LentParameters):
        return params.evaluate(module, function, *args)
    own = dict(module.named_parameters())
    if unknown := [name for name in params if name not in own]:
        raise ObjectiveError(
            f"{type(module).__name__}: it has no parameter {unknown[0]!r}, so its loss cannot be a "
            "function of it. Take the parameters from select_parameters(model, ...)."
        )
    given = _given_state.get()
    others = own_state(module, params) if given is None or given[0] is not module else given[1]
    # Copies, so that neither an update of the model nor a written buffer reaches the graph.
    state = {name: tensor.detach().clone() for name, tensor in others.items()}
    state.update(params)
    bound = _Bound(module, function)
    return call_with_tensors(
        bound, {f"module.{name}": tensor for name, tensor in state.items()}, args
    )


def call_with_tensors(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """Call a module with other tensors in place of its own.

    They replace its parameters and buffers under all names that those have.

    `torch.func.functional_call` looks for the other names itself, but takes those of one module
    that is registered twice for two places: afterwards the module keeps the other tensors (torch
    2.14). So it gets each place once.
    """
    named: dict[str, Tensor] = {}
    places: dict[int, list[str]] = {}
    # Read once and held: weights that are made when they are read are other objects the next time.
    read: dict[int, list[tuple[str, Tensor | None]]] = {}
    for prefix, part in module.named_modules(remove_duplicate=False):
        is_first = id(part) not in read
        if is_first:
            read[id(part)] = [*part._parameters.items(), *part._buffers.items()]
        for name, tensor in read[id(part)]:
            if tensor is None:
                continue
            place = f"{prefix}.{name}" if prefix else name
            named[place] = tensor
            # A module under two names is given its tensors under the first.
            if is_first:
                places.setdefault(id(tensor), []).append(place)
    replaced = {
        place: tensor for name, tensor in tensors.items() for place in places[id(named[name])]
    }
    # Exchanges tensors by name for this call alone; the model keeps its own.
    return functional_call(module, replaced, args, dict(kwargs or {}), tie_weights=False)


def own_state(module: nn.Module, params: Container[str]) -> dict[str, Tensor]:
    """Return a module's buffers, and its parameters not in `params`, by name."""
    others = {name: tensor for name, tensor in module.named_parameters() if name not in params}
    return others | dict(module.named_buffers())


@contextmanager
def given_state(module: nn.Module | None, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Let `call_with_parameters` take these tensors for the `own_state` of a module."""
    token = _given_state.set(None if module is None else (module, state))
    try:
        yield
    finally:
        _given_state.reset(token)


def select_parameters(model: nn.Module, patterns: str | Sequence[str] = "all") -> Params:
    """Select parameters of `model` that require gradients, by name.

    They are in the order of model.named_parameters().

    Args:
        patterns: "all", or one or several shell patterns over dotted names, such as "visual.*". A
            tensor tied under several names is chosen by any of them and counted once, under its
            first name.

    Returns:
        Detached views: they follow the model, but nothing done with them reaches it.

    Raises:
        ObjectiveError: If a pattern matches no parameter that requires gradients.
        ValueError: If there is no pattern, one is no string, or `model` is no module.
    """
    _check_model(model)
    given = (
        [patterns]
        if isinstance(patterns, str) or not isinstance(patterns, Iterable)
        else list(patterns)
    )
    globs = ["*"] if patterns == "all" else given
    if not all(isinstance(glob, str) for glob in globs):
        raise ValueError(
            'parameters must be "all", a pattern or a sequence of patterns, all strings, got '
            f"{patterns!r}."
        )
    if not globs:
        raise ValueError('patterns must be "all" or at least one pattern, got none.')
    names: dict[int, list[str]] = {}
    tensors: dict[int, Tensor] = {}
    # Tied tensors come under each of their names; collect the names of each tensor.
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.setdefault(id(parameter), []).append(name)
            tensors[id(parameter)] = parameter
    for glob in globs:
        if not any(fnmatchcase(name, glob) for aliases in names.values() for name in aliases):
            raise ObjectiveError(_nothing_matches(model, glob))
    return {
        aliases[0]: tensors[key].detach()
        for key, aliases in names.items()
        if any(fnmatchcase(name, glob) for name in aliases for glob in globs)
    }


def _nothing_matches(model: nn.Module, glob: str) -> str:
    where = f"{type(model).__name__}: no parameter that requires gradients matches {glob!r}"
    if frozen := [name for name, parameter in model.named_parameters() if fnmatchcase(name, glob)]:
        return (
            f"{where}, because {frozen[0]!r} is frozen. Curvature needs a direction to move in; "
            "call requires_grad_(True)."
        )
    names = [name for name, _ in model.named_parameters()]
    tops = list(dict.fromkeys(name.partition(".")[0] for name in names))
    if not tops:
        return (
            f"{where}, because the model has no parameters at all. Pass the model that holds the "
            "weights."
        )
    return (
        f"{where}. Patterns are matched against full dotted names, whose first parts here are: "
        f"{', '.join(tops)}.{did_you_mean(glob, (*tops, *names))}"
    )


def _check_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(
            "model must be a torch.nn.Module, whose parameters are differentiated, got "
            f"{type(model).__name__}. For a function of tensors, give landscape.Objective(forward, "
            "loss) to HessianOperator."
        )


def squared_norm(params: Params) -> Float[Tensor, ""]:
    """Compute |params|^2, differentiably.

    It is the sum over tensors of their sums of squares.
    """
    return torch.stack([(tensor * tensor).sum() for tensor in params.values()]).sum()


def flatten(params: Params) -> Float[Tensor, " n"]:
    """Join all entries into one vector, in insertion order."""
    return torch.cat([tensor.reshape(-1) for tensor in params.values()])


def unflatten(vector: Float[Tensor, " n"], like: Params) -> Params:
    """Split `vector` into views with the names and shapes of `like`.

    This is the inverse of `flatten`.

    Raises:
        ValueError: If the vector's size is not the total size of `like`.
    """
    total = sum(tensor.numel() for tensor in like.values())
    if vector.shape != (total,):
        raise ValueError(
            f"Parameters of total size {total} need a vector of that size, got one of shape "
            f"{tuple(vector.shape)}."
        )
    pieces = vector.split([tensor.numel() for tensor in like.values()])
    return {name: piece.view(tensor.shape) for piece, (name, tensor) in zip(pieces, like.items())}
