"""Weights of a model that are cut over processes, lent to it for one evaluation.

The modules of the model find a weight in its usual place, where it is gathered when it is read.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from landscape.curvature.objective import LentParameters, Params
from landscape.errors import ObjectiveError
from landscape.sharded.layout import Cut
from landscape.sharded.processes import Processes
from landscape.sharded.weights import GatheredWeights


@contextmanager
def gathered_on_demand(processes: Processes, module: nn.Module) -> Iterator["Lent"]:
    """Lend all of a module's parameters, cut over processes; collective.

    For evaluations without derivatives.
    """
    cuts = {
        name: Cut.even(tensor.shape, processes.size) for name, tensor in module.named_parameters()
    }
    pieces = {
        name: local_piece(name, tensor, cuts[name], processes)
        for name, tensor in module.named_parameters()
    }
    table = GatheredWeights(pieces, cuts, processes)
    try:
        yield Lent.to_module(table, module)
    finally:
        table.release()


class CutWeights:
    """Copies of a model's weights, cut over processes, and of its buffers.

    Training that goes on does not change them.

    Args:
        params: Those that derivatives are taken by: whole, in every process the same, or DTensors
            that are cut by rows.
        module: The model that has them, whose other parameters are constants; None where there is
            none.

    Attributes:
        cuts: How each parameter is cut, by name.
        leaves: This process's pieces of `params`, rows first.
    """

    def __init__(self, processes: Processes, params: Params, module: nn.Module | None) -> None:
        self.processes, self._module = processes, module
        others = (
            {}
            if module is None
            else {name: p for name, p in module.named_parameters() if name not in params}
        )
        self.cuts = {
            name: Cut.even(tensor.shape, processes.size)
            for name, tensor in {**params, **others}.items()
        }
        self.leaves = {name: self._piece(name, tensor) for name, tensor in params.items()}
        self._constants = {name: self._piece(name, tensor) for name, tensor in others.items()}
        self._places = [] if module is None else _places(module)
        self._tables: weakref.WeakSet[GatheredWeights] = weakref.WeakSet()

    def _piece(self, name: str, tensor: Tensor) -> Tensor:
        local = local_piece(name, tensor, self.cuts[name], self.processes)
        with torch.inference_mode(False):
            return local.detach().clone(memory_format=torch.contiguous_format)

    def lent(self, leaves: Params) -> "Lent":
        """Lend the parameters at other values of the leaves, for one evaluation."""
        like = next(iter(leaves.values()))
        # For differences, what is in float32 may be wanted in float64.
        dtype = None if like.dtype == next(iter(self.leaves.values())).dtype else like.dtype
        constants = {name: _converted(piece, dtype) for name, piece in self._constants.items()}
        table = GatheredWeights({**constants, **leaves}, self.cuts, self.processes)
        self._tables.add(table)
        return Lent(table, tuple(leaves), self._module, self._places, dtype)

    def release(self) -> None:
        """Free every gathered weight that is held."""
        for table in self._tables:
            table.release()


@dataclass(frozen=True)
class _Place:
    """A module, its own parameters and its buffers.

    Parameters are given by the names under which the whole model has them.
    """

    part: nn.Module
    names: dict[str, str | None]
    buffers: dict[str, Tensor | None]


def _places(module: nn.Module) -> list[_Place]:
    first = {id(parameter): name for name, parameter in module.named_parameters()}
    copies: dict[int, Tensor] = {}

    def copy(buffer: Tensor | None) -> Tensor | None:
        return None if buffer is None else copies.setdefault(id(buffer), buffer.detach().clone())

    return [
        _Place(
            part,
            {
                name: None if parameter is None else first[id(parameter)]
                for name, parameter in part._parameters.items()
            },
            {name: copy(buffer) for name, buffer in part._buffers.items()},
        )
        for part in module.modules()
    ]


class WeightTable(Protocol):
    """A source of weights that are made when they are read."""

    def weight(self, name: str) -> Tensor:
        """Return the whole weight of this name."""
        ...

    def reading_only(self) -> AbstractContextManager[None]:
        """Refuse an evaluation that writes into a weight it is given."""
        ...


class _OnDemand(dict[str, Any]):
    """The parameters of one module, each gathered when it is read.

    torch.func.functional_call, which a loss may use on a part of the model, puts other tensors in
    their places and then those back that it has read there. What was read may have no graph, so the
    name is put back in its place.
    """

    def __init__(self, table: WeightTable, names: Mapping[str, str | None]) -> None:
        super().__init__(names)
        self._table = table
        # The last tensor that was read in a place, and the name under which it was gathered.
        self._read: dict[str, tuple[weakref.ref[Tensor], str]] = {}

    def __getitem__(self, key: str) -> Tensor | None:
        name = super().__getitem__(key)
        if not isinstance(name, str):
            return name
        weight = self._table.weight(name)
        self._read[key] = weakref.ref(weight), name
        return weight

    def __setitem__(self, key: str, value: Tensor | None) -> None:
        reference, name = self._read.get(key, (None, None))
        was_read = value is not None and reference is not None and reference() is value
        super().__setitem__(key, name if was_read else value)

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default

    def values(self) -> Any:
        return [self[key] for key in self]

    def items(self) -> Any:
        return [(key, self[key]) for key in self]


class Lent(LentParameters):
    """Parameters that are gathered when they are read, by name or by the model that has them."""

    def __init__(
        self,
        table: WeightTable,
        names: Sequence[str],
        module: nn.Module | None,
        places: Sequence[_Place],
        dtype: torch.dtype | None,
    ) -> None:
        # Only the keys are used: a value is made when it is read.
        super().__init__(dict.fromkeys(names, torch.empty(0)))
        self.table, self._module, self._places, self._dtype = table, module, places, dtype

    @classmethod
    def to_module(cls, table: WeightTable, module: nn.Module) -> Self:
        """Lend all parameters of a module, for evaluations without derivatives."""
        return cls(table, (), module, _places(module), None)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self:
            raise KeyError(name)
        return self.table.weight(name)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default

    def values(self) -> Any:
        return [self[name] for name in self]

    def items(self) -> Any:
        return [(name, self[name]) for name in self]

    def evaluate(self, module: nn.Module, function: Any, *args: Any) -> Any:
        """Evaluate `function(module, *args)` with these parameters.

        They, and copies of the buffers, replace the module's own during the call.
        """
        assert module is self._module, "the parameters were cut for another module"
        copies: dict[int, Tensor] = {}
        places = [*self._places, *self._others(function)]
        before = [(place.part, place.part._parameters, place.part._buffers) for place in places]
        try:
            for place in places:
                vars(place.part)["_parameters"] = _OnDemand(self.table, place.names)
                vars(place.part)["_buffers"] = {
                    name: self._copied(buffer, copies) for name, buffer in place.buffers.items()
                }
            with self.table.reading_only():
                return function(module, *args)
        finally:
            for part, parameters, buffers in before:
                vars(part)["_parameters"], vars(part)["_buffers"] = parameters, buffers

    def _others(self, function: Any) -> list[_Place]:
        """List the modules of a loss that share parameters with the model.

        Only a loss that is itself a module has any.
        """
        if not isinstance(function, nn.Module) or self._module is None:
            return []
        known = {id(place.part) for place in self._places}
        first = {id(parameter): name for name, parameter in self._module.named_parameters()}
        return [
            _Place(
                part,
                {name: first[id(own)] for name, own in part._parameters.items()},
                dict(part._buffers),
            )
            for part in function.modules()
            if id(part) not in known
            and part._parameters
            and all(id(own) in first for own in part._parameters.values())
        ]

    def _copied(self, buffer: Tensor | None, copies: dict[int, Tensor]) -> Tensor | None:
        if buffer is None:
            return None
        return copies.setdefault(id(buffer), _converted(buffer, self._dtype).clone())


def _converted(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Convert floating-point numbers to another type, if one is given."""
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def local_piece(name: str, tensor: Tensor, cut: Cut, processes: Processes) -> Tensor:
    """Select this process's rows of a parameter.

    The parameter is whole here, or a DTensor.

    Raises:
        ObjectiveError: If it is cut in another way than by rows, or over other processes.
    """
    from torch.distributed.tensor import DTensor, Replicate, Shard

    if not isinstance(tensor, DTensor):
        return cut.as_rows(tensor.detach())[cut.rows_of(processes.rank)]
    placements, group = tensor.placements, tensor.device_mesh
    if group.ndim != 1 or group.get_group() is not processes.group:
        raise ObjectiveError(
            f"{name}: is a DTensor on the mesh {group}, but the operator is to be cut over another "
            "one. Pass the mesh of the parameters."
        )
    local = tensor.to_local().detach()
    if placements == (Replicate(),):
        return cut.as_rows(local)[cut.rows_of(processes.rank)]
    expected = (cut.counts[processes.rank], *cut.row_shape)
    if placements != (Shard(0),) or tuple(local.shape) != expected:
        raise ObjectiveError(
            f"{name}: is a DTensor with the placements {placements} and {tuple(local.shape)} here, "
            f"but weights must be cut by rows, Shard(0), which is {expected}. Redistribute it with "
            "tensor.redistribute(placements=[Shard(0)])."
        )
    return local
