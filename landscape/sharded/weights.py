"""Weights that are cut over processes, gathered when a layer reads one, then freed.

Operations save gathered weights for their derivatives, which would keep the whole model in the
graph of the gradient; hooks on saved tensors keep a note (a name and a view) instead, by which the
weight is gathered again. All processes gather the same weights in the same order where they
evaluate the loss. Where they differentiate it, a process may need a weight again that others do
not: it asks for it, and they lend their pieces wherever they are. To ask costs more than to meet,
so the last few weights are held by their number, whenever Python lets go of them.
"""

import math
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from landscape.curvature.guards.explanations import SAVED_TENSOR_HOOKS, checkpointing_explained
from landscape.curvature.objective import Params
from landscape.errors import ObjectiveError
from landscape.sharded.gathering import Cuts, Gather, Pieces, gathered
from landscape.sharded.layout import Cut
from landscape.sharded.processes import Processes

# Weights up to so many bytes, such as gains and biases, are gathered together, once for an
# evaluation, and kept in its graph: of a large model they are a thousandth, and most of the
# tensors.
_SMALL = 1 << 15
# Fragments of PyTorch's messages about transforms of torch.func in a loss.
_TRANSFORMS = ("yet support saved tensor hooks", "functorch transforms")
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


@dataclass(frozen=True)
class _Versioned:
    """A tensor, and its version when it was gathered or saved."""

    tensor: Tensor
    version: int

    @classmethod
    def now(cls, tensor: Tensor) -> Self:
        return cls(tensor, tensor._version)

    def detached(self) -> Self:
        """Return the same apart from its graph; a tensor shares its version with the detached."""
        return replace(self, tensor=self.tensor.detach())

    @property
    def is_written(self) -> bool:
        """Tell whether the tensor was written to in place since."""
        return self.tensor._version != self.version


# The gathered weight in each storage, as long as the storage exists.
_known: dict[int, _Known] = {}


class GatheredWeights:
    """The weights of one evaluation, each gathered when it is read.

    Args:
        pieces: This process's piece of each weight, rows first; leaf tensors, or constants.
        cuts: How each is cut.
    """

    def __init__(self, pieces: Params, cuts: Mapping[str, Cut], processes: Processes) -> None:
        self._source = Pieces(pieces, cuts, processes)
        # Weights as functions of the pieces. Which of them are held depends on what the loss reads
        # alone, never on what its derivatives read: gatherings of a loss that takes derivatives
        # itself are then the same in all processes.
        self._functions: OrderedDict[str, _Versioned] = OrderedDict()
        # Weights that were read apart from a graph; at least one, so that they are one more in a
        # loss that reads both kinds.
        self._values: OrderedDict[str, _Versioned] = OrderedDict()
        self._is_evaluating = False
        self._together = _small_groups(pieces, cuts)
        self._small: dict[str, _Versioned] = {}

    def weight(self, name: str) -> Tensor:
        """Return the whole weight as a function of all processes' pieces.

        Collective unless it is still held.
        """
        if name in self._together:
            return self._small_weight(name)
        source, piece = self._source, self._source.pieces[name]
        if not (piece.requires_grad and torch.is_grad_enabled()):
            return self._value(name)
        if name not in self._functions:
            if name in self._values:
                _check_unwritten(name, self._values.pop(name))
            function = gathered(name, piece, source.cuts[name], source.processes, source=source)
            self._hold(name, function, self._functions)
        self._functions.move_to_end(name)
        return self._functions[name].tensor

    def _small_weight(self, name: str) -> Tensor:
        if name not in self._small:
            names, source = self._together[name], self._source
            cuts = tuple(source.cuts[each] for each in names)
            these = Cuts(names, cuts, source.processes, source)
            # A loss may read a weight for the first time where gradients are off, and later where
            # they are on.
            with torch.enable_grad():
                pieces = [source.pieces[each] for each in names]
                wholes = Gather.apply(f"the gathering of {these}", these, *pieces)
            self._small |= {name: _Versioned.now(whole) for name, whole in zip(names, wholes)}
        whole = self._small[name].tensor
        return whole if torch.is_grad_enabled() else whole.detach()

    def _value(self, name: str) -> Tensor:
        """Return the whole weight, apart from any graph.

        Collective unless it is still held.
        """
        if name in self._functions:
            return self._functions[name].tensor.detach()
        if name not in self._values:
            self._hold(name, self._source.whole(name), self._values)
        self._values.move_to_end(name)
        return self._values[name].tensor

    def _hold(self, name: str, whole: Tensor, held: "OrderedDict[str, _Versioned]") -> None:
        held[name] = _Versioned.now(whole)
        _limit(self._functions, _HELD)
        _limit(self._values, max(1, _HELD - len(self._functions)))
        storage = whole.untyped_storage()
        key = storage._cdata
        _known[key] = _Known(
            self,
            name,
            whole.dtype,
            whole._version,
            weakref.ref(storage, lambda _: _known.pop(key, None)),
        )

    @contextmanager
    def reading_only(self) -> Iterator[None]:
        """Refuse an evaluation that writes into a weight it is given.

        Raises:
            ObjectiveError: If it does.
        """
        before, self._is_evaluating = self._is_evaluating, True
        try:
            yield
            self._check_unwritten()
        except RuntimeError:
            # Autograd may complain of the same in other words.
            self._check_unwritten()
            raise
        finally:
            self._is_evaluating = before

    def _check_unwritten(self) -> None:
        for held in (self._functions, self._values, self._small):
            for name, weight in held.items():
                _check_unwritten(name, weight)

    def release(self) -> None:
        """Free the weights that are held."""
        for held in (self._functions, self._values, self._small):
            held.clear()

    def again(self, note: _Note) -> Tensor:
        """Rebuild the saved tensor of a note."""
        if not self._is_evaluating:
            # The loss is known, and nobody reads a weight as a function any more.
            while self._functions:
                name, held = self._functions.popitem(last=False)
                self._values[name] = held.detached()
            _limit(self._values, _HELD)
        return self._value(note.name).as_strided(note.size, note.stride, note.offset)


def _limit(held: "OrderedDict[str, _Versioned]", count: int) -> None:
    while len(held) > count:
        _check_unwritten(*held.popitem(last=False))


def _check_unwritten(name: str, weight: _Versioned) -> None:
    """Refuse a weight that was written to in place.

    Raises:
        ObjectiveError: If it was.
    """
    if weight.is_written:
        raise _written(name)


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
    # Detached, since the result of an operation that saves it would keep the operation alive, which
    # keeps it. Autograd puts it back into the graph.
    return _note_of(tensor) or _Versioned.now(tensor.detach())


def _note_of(tensor: Tensor) -> _Note | None:
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided or not _known:
        return None
    # Such as the imaginary part of a conjugate, of which no stride tells.
    if tensor.is_neg():
        return None
    try:
        known = _known.get(tensor.untyped_storage()._cdata)
    # Wrappers of torch.func have no storage.
    except (RuntimeError, NotImplementedError):
        return None
    if known is None or known.dtype != tensor.dtype:
        return None
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


def _unpack(saved: _Note | _Versioned) -> Tensor:
    if isinstance(saved, _Note):
        return saved.table.again(saved)
    # Where hooks are installed, autograd does not look.
    if saved.is_written:
        raise ObjectiveError(
            f"A tensor {tuple(saved.tensor.shape)} that the loss was computed from was changed in "
            "place afterwards, so its derivatives would be those of another loss. If the loss "
            "does so, compute out of place; if it is the batch, build the operator on a copy."
        )
    return saved.tensor


@contextmanager
def notes_of_weights() -> Iterator[None]:
    """Make graphs in this section keep notes instead of gathered weights."""
    with saved_tensors_hooks(_pack, _unpack):
        yield


@contextmanager
def _transforms_explained() -> Iterator[None]:
    """Explain PyTorch's errors about transforms of torch.func.

    Raises:
        ObjectiveError: In their place.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(fragment in str(error) for fragment in _TRANSFORMS):
            raise
        raise ObjectiveError(
            "The loss uses a transform of torch.func, such as vmap, jvp or jacrev, in which no "
            "weight can be gathered from other processes. Use operations on whole batches and "
            "torch.autograd.grad, or one process."
        ) from error


@contextmanager
def notes_alone() -> Iterator[None]:
    """Keep notes of weights in graphs, and refuse hooks of the loss.

    Such hooks are those of checkpointing.

    Raises:
        ObjectiveError: If the loss installs one, or uses a transform of torch.func.
    """
    enter = saved_tensors_hooks.__enter__

    def refused(self: saved_tensors_hooks) -> None:
        raise RuntimeError(SAVED_TENSOR_HOOKS)

    with checkpointing_explained(), _transforms_explained(), notes_of_weights():
        saved_tensors_hooks.__enter__ = refused  # type: ignore[method-assign]
        try:
            yield
        finally:
            saved_tensors_hooks.__enter__ = enter  # type: ignore[method-assign]
