"""Nodes of the autograd graph: the walk over them, who made them, and what they say.

Imports only torch and landscape.curvature.objective.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from landscape.curvature.objective import Params

# Which of them torch takes for the same call can change after the first evaluation of a process
# (seen in torch 2.14).
_VIEWS = ("ViewBackward0", "ReshapeAliasBackward0", "UnsafeViewBackward0")


@dataclass
class ModuleTimeline:
    """Record of the submodule that made each node of an autograd graph.

    It uses the order in which nodes are made.
    """

    spans: list[tuple[int, int, str]] = field(default_factory=list)

    def name_of(self, node: Node) -> str:
        """Return the innermost submodule whose forward pass made `node`."""
        made = node._sequence_nr()
        # Autograd numbers nodes in the order in which they are made, so a module made those between
        # its entry and its exit. The shortest span around a node is that of the innermost module.
        around = [(end - start, name) for start, end, name in self.spans if start <= made < end]
        return min(around)[1] if around else "the loss, outside every submodule"


@contextmanager
def module_timeline(module: nn.Module | None) -> Iterator[ModuleTimeline]:
    """Record the forward passes of the submodules of `module`.

    It records for as long as the context lasts. The hooks are on all modules of the process, so
    none is left on the model.
    """
    parts = module.named_modules() if module is not None else ()
    names = {id(part): f"{name or 'the model'} ({type(part).__name__})" for name, part in parts}
    timeline = ModuleTimeline()
    entered: list[int] = []

    def enter(part: nn.Module, args: Any) -> None:
        entered.append(torch.autograd._get_sequence_nr())

    def leave(part: nn.Module, args: Any, output: Any) -> None:
        start = entered.pop()
        if id(part) in names:
            timeline.spans.append((start, torch.autograd._get_sequence_nr(), names[id(part)]))

    handles = [
        register_module_forward_pre_hook(enter),
        register_module_forward_hook(leave, always_call=True),
    ]
    try:
        yield timeline
    finally:
        for handle in handles:
            handle.remove()


def rows_looked_up(
    outputs: Tensor | Sequence[Tensor], params: Params
) -> dict[str, Int64[Tensor, " rows"]]:
    """Return the looked-up rows of parameters used only as embedding tables.

    The rows are ascending; the use is that by a loss, or by `outputs`.

    Which rows those are does not depend on the parameters, so the other rows have exactly no
    gradient here and around here: their rows and columns of the Hessian are zero. A table with
    another use, such as a tied output layer, is not in the result.
    """
    users: dict[int, list[Node]] = {}
    for node in graph_nodes(*([outputs] if isinstance(outputs, Tensor) else outputs)):
        for successor, _ in node.next_functions:
            if (leaf := getattr(successor, "variable", None)) is not None:
                users.setdefault(id(leaf), []).append(node)
    looked_up = {}
    for name, parameter in params.items():
        nodes = users.get(id(parameter), [])
        # A single other use, such as a tied output layer, can give every row a gradient.
        if nodes and all(node.name() == "EmbeddingBackward0" for node in nodes):
            indices: list[Tensor] = [node._saved_indices.reshape(-1) for node in nodes]  # type: ignore[attr-defined]
            # Tokens may be int32, which index_copy does not take.
            looked_up[name] = torch.cat(indices).unique().long()
    return looked_up


def unreached(outputs: Tensor | Sequence[Tensor], params: Params) -> frozenset[str]:
    """Name the parameters that do not occur in the graph behind `outputs`."""
    nodes = graph_nodes(*([outputs] if isinstance(outputs, Tensor) else outputs))
    reached = {id(leaf) for node in nodes if (leaf := getattr(node, "variable", None)) is not None}
    return frozenset(name for name, parameter in params.items() if id(parameter) not in reached)


def graph_nodes(*outputs: Tensor) -> Iterator[Node]:
    """Yield every node of the graph behind `outputs`, once."""
    seen: set[Node] = set()
    # Without recursion: a graph may be deeper than the stack of Python.
    waiting = [output.grad_fn for output in outputs]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting.extend(successor for successor, _ in node.next_functions)
            yield node


def coarsest_type(loss: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Return the floating-point type with the fewest digits behind a loss.

    It is chosen among `dtype` and the types of the operations in the graph.
    """
    dtypes = {dtype, loss.dtype}
    for node in graph_nodes(loss):
        # What comes into a backward node has the type of what its forward operation computed.
        dtypes.update(made.dtype for made in node._input_metadata)
    return max(
        (kind for kind in dtypes if kind.is_floating_point), key=lambda kind: torch.finfo(kind).eps
    )


def operations_behind(loss: Tensor) -> int:
    """Compute a hash of the operations behind a loss, in order.

    The hash of another computation differs.
    """
    names = ((type(node), node.name()) for node in graph_nodes(loss))
    return hash(tuple("view" if name in _VIEWS else (kind, name) for kind, name in names))
