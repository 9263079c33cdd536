"""Gathering of tensors that are cut over processes, differentiable to any order.

A tensor is gathered by an autograd function whose backward adds up and cuts, whose backward
gathers, and so on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from landscape.curvature.guards.nodes import graph_nodes
from landscape.curvature.objective import Params
from landscape.sharded.layout import Cut
from landscape.sharded.processes import Processes
from landscape.sharded.steps import Request


@dataclass(frozen=True, eq=False)
class Pieces:
    """This process's pieces of weights, which it lends to processes that read one by themselves.

    Attributes:
        pieces: Rows first; leaf tensors, or constants.
        cuts: How each is cut.
        number: The same in all processes.
    """

    pieces: Params
    cuts: Mapping[str, Cut]
    processes: Processes
    number: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "number", self.processes.register(self))

    def padded_piece(self, weight: str) -> Tensor:
        return self.cuts[weight].padded(self.pieces[weight].detach()).contiguous()

    def whole(self, name: str) -> Tensor:
        """Gather a weight, apart from any graph, also where the others do not read it."""
        piece = self.padded_piece(name)
        with torch.no_grad():
            step = f"the gathering of {name}"
            wholes = self.processes.gather(piece, step, Request(self.number, name))
        return self.cuts[name].without_padding(wholes)


@dataclass(frozen=True)
class Cuts:
    """Tensors of one type that are communicated together.

    Attributes:
        names: Of the weights, or what else the tensors are.
        cuts: How each is cut.
        source: Where the pieces of weights come from. A graph keeps it: another process may ask for
            them as long as the graph is differentiated.
    """

    names: tuple[str, ...]
    cuts: tuple[Cut, ...]
    processes: Processes
    source: Pieces | None = None

    def __str__(self) -> str:
        others = len(self.names) - 1
        return f"{self.names[0]} and {others} others" if others else self.names[0]


class Gather(torch.autograd.Function):
    """Gather the wholes of tensors that are cut by rows.

    The derivative is this process's pieces of a sum over the processes.
    """

    @staticmethod
    def forward(ctx: Any, step: str, cuts: Cuts, *pieces: Tensor) -> Any:
        ctx.cuts = cuts
        return tuple(_joined_pieces(step, pieces, cuts))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        # Each process uses the whole weight, so the derivative by a piece is the sum over
        # processes.
        return None, None, *_ScatterSum.apply(ctx.cuts, *gradients)


class _ScatterSum(torch.autograd.Function):
    """Sum tensors over the processes, and keep this process's pieces.

    The derivative is a gathering.
    """

    @staticmethod
    def forward(ctx: Any, these: Cuts, *wholes: Tensor) -> Any:
        ctx.cuts = these
        processes, cuts = these.processes, these.cuts
        step = f"the sum of the derivative by {these}"
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
        # Pieces of it must never meet those of the weight, which a process may read meanwhile.
        step = f"the gathering of a direction by {ctx.cuts}"
        return None, *Gather.apply(step, ctx.cuts, *gradients)


def gathered(
    name: str, piece: Tensor, cut: Cut, processes: Processes, *, source: Pieces | None = None
) -> Tensor:
    """Gather a whole tensor of which this process has a piece; collective.

    It is a function of all pieces, and can be differentiated to any order, where its piece is.
    """
    cuts, step = Cuts((name,), (cut,), processes, source), f"the gathering of {name}"
    if piece.requires_grad and torch.is_grad_enabled():
        return Gather.apply(step, cuts, piece)[0]
    return _joined_pieces(step, [piece], cuts)[0]


def _joined_pieces(step: str, pieces: Sequence[Tensor], these: Cuts) -> list[Tensor]:
    """Gather whole tensors of one type by one communication; collective."""
    cuts, processes = these.cuts, these.processes
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


def uses_of_weights(loss: Tensor) -> dict[str, list[Node]]:
    """Collect the operations of a loss that read gathered tensors, by name.

    They are nodes in the graph of the loss.
    """
    uses: dict[str, list[Node]] = {}
    for node in graph_nodes(loss):
        for successor, index in node.next_functions:
            if getattr(successor, "_forward_cls", None) is Gather:
                cuts: Cuts = successor.cuts  # type: ignore[union-attr]
                uses.setdefault(cuts.names[index], []).append(node)
    return uses
