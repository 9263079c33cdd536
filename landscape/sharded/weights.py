"""Weights that are cut over processes, gathered when a layer reads one, then freed.

A weight is gathered by an autograd function whose backward adds up and cuts, whose backward
gathers, and so on, so it can be differentiated to any order. Operations save gathered weights for
their derivatives, which would keep the whole model in the graph of the gradient; hooks on saved
tensors keep a note (a name and a view) instead, by which the weight is gathered again. All
processes gather the same weights in the same order. Whether one has to be gathered again must
therefore not depend on when Python lets go of a tensor: the last few are held, by their number.
"""

import math
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, saved_tensors_hooks

from landscape.curvature.guards.nodes import graph_nodes
from landscape.curvature.objective import LentParameters, Params
from landscape.errors import ObjectiveError
from landscape.sharded.layout import Cut
from landscape.sharded.processes import Processes

# Weights up to so many bytes, such as gains and biases, are gathered together, once for an
# evaluation, and kept in its graph: of a large model they are a thousandth, and most of the
# tensors.
_SMALL = 1 << 15
# Larger weights that are held: neighbours in a graph, such as those of one layer, are then gathered
# once for a visit.
_HELD = 4


def small_bytes() -> int:
    """Return the size in bytes up to which weights are gathered together.

    That happens once for an evaluation.
    """
    return _SMALL


def num_held() -> int:
    """Return how many larger weights are held at a time."""
    return _HELD


class _Gather(torch.autograd.Function):
    """Gather the wholes of tensors that are cut by rows.

    The derivative is this process's pieces of a sum over the processes.
    """

    @staticmethod
    def forward(
        ctx: Any, names: Sequence[str], cuts: Sequence[Cut], processes: Processes, *pieces: Tensor
    ) -> Any:
        ctx.names, ctx.cuts, ctx.processes = tuple(names), cuts, processes
        return tuple(gathered(names, pieces, cuts, processes))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        # Each process uses the whole weight, so the derivative by a piece is the sum over
        # processes.
        return None, None, None, *_ScatterSum.apply(ctx.names, ctx.cuts, ctx.processes, *gradients)


class _ScatterSum(torch.autograd.Function):
    """Sum tensors over the processes, and keep this process's pieces.

    The derivative is a gathering.
    """

    @staticmethod
    def forward(
        ctx: Any, names: Sequence[str], cuts: Sequence[Cut], processes: Processes, *wholes: Tensor
    ) -> Any:
        ctx.names, ctx.cuts, ctx.processes = tuple(names), cuts, processes
        step = f"the sum of the derivative by {_joined(names)}"
        if len(wholes) == 1:
            pieces = [processes.scatter_sum(cuts[0].padded_pieces(wholes[0]), step)]
        else:
            # By process, then by tensor: each process has its pieces of all tensors in one stretch.
            flat = [
                cut.padded_pieces(whole).reshape(processes.size, -1)
                for cut, whole in zip(cuts, wholes)
            ]
            stretch = processes.scatter_sum(torch.cat(flat, dim=1).reshape(-1), step)
            parts = stretch.split([piece.shape[1] for piece in flat])
            pieces = [part.view(max(cut.counts), *cut.row_shape) for part, cut in zip(parts, cuts)]
        return tuple(piece[: cut.counts[processes.rank]] for piece, cut in zip(pieces, cuts))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        # The transpose of a sum cut into pieces: every process gets the whole of the cotangent.
        return None, None, None, *_Gather.apply(ctx.names, ctx.cuts, ctx.processes, *gradients)


def gathered(
    names: Sequence[str], pieces: Sequence[Tensor], cuts: Sequence[Cut], processes: Processes
) -> list[Tensor]:
    """Gather whole tensors of one type by one communication; collective.

    This process has pieces of them.
    """
    step = f"the gathering of {_joined(names)}"
    if len(pieces) == 1:
        return [cuts[0].without_padding(processes.gather(cuts[0].padded(pieces[0]), step))]
    padded = [cut.padded(piece).reshape(-1) for cut, piece in zip(cuts, pieces)]
    stretches = processes.gather(torch.cat(padded), step).view(processes.size, -1)
    parts = stretches.split([len(piece) for piece in padded], dim=1)
    rows = [
        part.reshape(processes.size * max(cut.counts), *cut.row_shape)
        for part, cut in zip(parts, cuts)
    ]
    # Copies, which are small, since autograd forbids much to views that come out together.
    return [cut.without_padding(tensor).clone() for cut, tensor in zip(cuts, rows)]


def gathered_as_functions(
    names: Sequence[str], pieces: Sequence[Tensor], cuts: Sequence[Cut], processes: Processes
) -> list[Tensor]:
    """Gather whole tensors as functions of all pieces; collective.

    They can be differentiated to any order.
    """
    return list(_Gather.apply(names, cuts, processes, *pieces))


def uses_of_weights(loss: Tensor) -> dict[str, list[Node]]:
    """Collect the operations of a loss that read gathered tensors, by name.

    They are nodes in the graph of the loss.
    """
    uses: dict[str, list[Node]] = {}
    for node in graph_nodes(loss):
        for successor, index in node.next_functions:
            if getattr(successor, "_forward_cls", None) is _Gather:
                names: tuple[str, ...] = successor.names  # type: ignore[union-attr]
                uses.setdefault(names[index], []).append(node)
    return uses


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} others"


@dataclass(frozen=True)
class _Note:
    """A reference to a saved tensor that is a gathered weight, or a view of one."""

    table: "GatheredWeights"
    name: str
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class _Known:
    table: "GatheredWeights"
    name: str
    dtype: torch.dtype
    version: int
    storage: "weakref.ref[Any]" = field(repr=False)


# The gathered weight in each storage, as long as the storage exists.
_known: dict[int, _Known] = {}


class GatheredWeights:
    """The weights of one evaluation, each gathered when it is read.

    Args:
        pieces: This process's piece of each weight, rows first; leaf tensors, or constants.
        cuts: How each is cut.
    """

    def __init__(self, pieces: Params, cuts: Mapping[str, Cut], processes: Processes) -> None:
        self._pieces, self._cuts, self._processes = pieces, cuts, processes
        # By name: the whole, and the same as a function of the piece, where it is one.
        self._held: OrderedDict[str, tuple[Tensor, Tensor | None]] = OrderedDict()
        self._together = _small_groups(pieces, cuts)
        self._small: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}

    def weight(self, name: str) -> Tensor:
        """Return the whole weight as a function of all processes' pieces.

        Collective unless it is still held.
        """
        if name in self._together:
            return self._small_weight(name)
        piece = self._pieces[name]
        follows = piece.requires_grad and torch.is_grad_enabled()
        function = self._held[name][1] if name in self._held else None
        if not follows:
            return self._value(name)
        if function is None:
            (function,) = gathered_as_functions(
                [name], [piece], [self._cuts[name]], self._processes
            )
            self._hold(name, function.detach(), function)
        self._held.move_to_end(name)
        return function

    def _small_weight(self, name: str) -> Tensor:
        if name not in self._small:
            names = self._together[name]
            pieces, cuts = (
                [self._pieces[each] for each in names],
                [self._cuts[each] for each in names],
            )
            # A loss may read a weight for the first time where gradients are off, and later where
            # they are on.
            with torch.enable_grad():
                wholes = gathered_as_functions(names, pieces, cuts, self._processes)
            self._small |= dict(zip(names, wholes))
            self._versions |= {name: whole._version for name, whole in zip(names, wholes)}
        return self._small[name] if torch.is_grad_enabled() else self._small[name].detach()

    def _value(self, name: str) -> Tensor:
        """Return the whole weight, apart from any graph.

        Collective unless it is still held.
        """
        if name in self._held:
            self._held.move_to_end(name)
            return self._held[name][0]
        with torch.no_grad():
            (whole,) = gathered(
                [name], [self._pieces[name].detach()], [self._cuts[name]], self._processes
            )
        self._hold(name, whole, None)
        return whole

    def _hold(self, name: str, whole: Tensor, function: Tensor | None) -> None:
        self._held[name] = whole, function
        self._held.move_to_end(name)
        while len(self._held) > _HELD:
            self._held.popitem(last=False)
        storage = whole.untyped_storage()
        key = storage._cdata
        _known[key] = _Known(
            self,
            name,
            whole.dtype,
            whole._version,
            weakref.ref(storage, lambda _: _known.pop(key, None)),
        )

    def check_unwritten(self) -> None:
        """Refuse an evaluation that has written into a small weight.

        Larger ones are checked where they are saved.

        Raises:
            ObjectiveError: If it has.
        """
        for name, whole in self._small.items():
            if whole._version != self._versions[name]:
                raise _written(name)

    def release(self) -> None:
        """Free the weights that are held."""
        self._held.clear()
        self._small.clear()

    def again(self, note: _Note) -> Tensor:
        """Rebuild the saved tensor of a note."""
        return self._value(note.name).as_strided(note.size, note.stride, note.offset)


def _small_groups(pieces: Params, cuts: Mapping[str, Cut]) -> dict[str, tuple[str, ...]]:
    """List, for each small weight, all weights that are gathered with it.

    A group has one type, and all or none of it are followed by derivatives.
    """
    groups: dict[tuple[torch.dtype, bool], list[str]] = {}
    for name, piece in pieces.items():
        if math.prod(cuts[name].shape) * piece.element_size() <= _SMALL:
            groups.setdefault((piece.dtype, piece.requires_grad), []).append(name)
    return {name: tuple(names) for names in groups.values() for name in names}


def _pack(tensor: Tensor) -> Any:
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided or not _known:
        return tensor
    try:
        known = _known.get(tensor.untyped_storage()._cdata)
    # Wrappers of torch.func have no storage.
    except (RuntimeError, NotImplementedError):
        return tensor
    if known is None or known.dtype != tensor.dtype:
        return tensor
    if tensor._version != known.version:
        raise _written(known.name)
    return _Note(
        known.table, known.name, tensor.size(), tensor.stride(), int(tensor.storage_offset())
    )


def _written(name: str) -> ObjectiveError:
    return ObjectiveError(
        f"{name}: is written to in place while the loss is evaluated, so the loss is that of other "
        "parameters than those given. Look for max_norm in an embedding or an assignment under "
        "no_grad, and do it once before, or not at all."
    )


def _unpack(saved: Any) -> Tensor:
    return saved.table.again(saved) if isinstance(saved, _Note) else saved


@contextmanager
def notes_of_weights() -> Iterator[None]:
    """Make graphs in this section keep notes instead of gathered weights."""
    with saved_tensors_hooks(_pack, _unpack):
        yield


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

    def check_unwritten(self) -> None:
        """Refuse an evaluation that has written into a weight."""
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
            result = function(module, *args)
            self.table.check_unwritten()
            return result
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
