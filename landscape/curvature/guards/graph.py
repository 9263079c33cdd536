"""Checks of a loss's autograd graph for missing or wrong second derivatives.

A network built from such operations has right gradients. Nothing is raised when they are
differentiated again, but terms of the second derivative are dropped. Looking at the graph costs a
few milliseconds per thousand operations.

What is found: an operation whose backward pass leaves the autograd graph (an `autograd.Function`
around an opaque kernel, or marked once_differentiable, whose error PyTorch prunes), one that
computes in fewer bits than the parameters (autocast inside the loss), reentrant and other
checkpointing, PyTorch's fused weight normalisation, and model parameters that the loss reached
without the substitution.
What is not: a backward pass that is differentiable in the incoming gradient but treats something
saved in the forward pass as constant. In the graph that looks like a linear operation; only
differences of gradients can tell.

Gradients that are wrong themselves are found where PyTorch makes them so on request: those of
embeddings with a padding row that the batch looks up, or with scale_grad_by_freq.

Imports only torch, landscape.errors, landscape.curvature.objective and
landscape.curvature.guards.preconditions.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from landscape.curvature.guards.explanations import explained_errors
from landscape.curvature.guards.nodes import ModuleTimeline, graph_nodes
from landscape.curvature.guards.preconditions import SCALED_BY_FREQUENCY
from landscape.curvature.objective import Params
from landscape.errors import ObjectiveError

# Nodes of the forward graph that mean wrong second derivatives: name -> what happens and what to
# do.
_REFUSED_NODES = {
    "CheckpointFunctionBackward": (
        "runs under reentrant gradient checkpointing, which drops terms of the second derivative. "
        "Switch checkpointing off"
    ),
    # gradgradcheck fails for it, torch 2.13 to 2.15; checked by a test.
    "WeightNormInterfaceBackward0": (
        "applies torch's fused weight normalisation, whose second derivative is wrong. Fold it "
        "into the weight with torch.nn.utils.parametrize.remove_parametrizations or "
        "torch.nn.utils.remove_weight_norm"
    ),
}


def differentiable_gradient(
    loss: Tensor,
    params: Params,
    timeline: ModuleTimeline,
    *,
    module: nn.Module | None,
    constants: Params | None = None,
) -> tuple[Tensor | None, ...]:
    """Compute the gradient of `loss` with its own graph.

    Refuses to build a graph whose derivatives would be wrong.

    Args:
        constants: As in `differentiable_pullback`.

    Returns:
        Per parameter its gradient, or None where the loss does not depend on it.

    Raises:
        ObjectiveError: As in `differentiable_pullback`.
    """
    seeds = [torch.ones_like(loss, requires_grad=True)]
    return differentiable_pullback(
        [loss], seeds, params, timeline, module=module, constants=constants
    )


def differentiable_pullback(
    outputs: Sequence[Tensor],
    seeds: Sequence[Tensor],
    params: Params,
    timeline: ModuleTimeline,
    *,
    module: nn.Module | None,
    constants: Params | None = None,
) -> tuple[Tensor | None, ...]:
    """Compute J^T w with its own graph, or refuse.

    J is the Jacobian of `outputs`, and the `seeds` are w. A graph whose derivatives would be wrong
    is refused.

    The seeds must require gradients. Every correct backward pass is linear in the gradient that
    comes in. So each gradient that goes out is attached to the graph, that of a linear function
    too; a detached one has lost its second derivative. A gradient of zeros may be detached (that of
    round, say).

    Args:
        constants: Parameters under study that the outputs do not depend on; no derivative by them
            is taken.

    Returns:
        Per parameter its part, or None where the outputs do not depend on it.

    Raises:
        ObjectiveError: If an operation of the loss has no second derivative, or a wrong one, or too
            few bits, naming the submodule and the operation; if an embedding edits its gradient; or
            if the loss reaches parameters of `module` other than `params`.
    """
    nodes = list(graph_nodes(*outputs))
    _refuse_known_nodes(nodes, timeline)
    refuse_edited_gradients(outputs, params, timeline)
    if module is not None:
        refuse_bypassed_parameters(nodes, {**params, **(constants or {})}, module)
    # A hook on every node sees the gradients that come in and go out during the one backward pass
    # below, and so finds the operation that leaves the graph.
    faults: list[str] = []
    dtype = next(iter(params.values())).dtype
    handles = [
        node.register_hook(
            partial(_inspect, partial(timeline.name_of, node), node.name(), faults, dtype)
        )
        for node in nodes
        if not hasattr(node, "variable")
    ]
    try:
        with explained_errors():
            gradients = torch.autograd.grad(
                outputs, list(params.values()), seeds, create_graph=True, allow_unused=True
            )
    finally:
        for handle in handles:
            handle.remove()
    if faults:
        raise ObjectiveError(faults[0])
    return gradients


def refuse_edited_gradients(
    outputs: Sequence[Tensor], params: Params, timeline: ModuleTimeline
) -> None:
    """Refuse embeddings whose gradients PyTorch was asked to edit.

    Such a gradient is no derivative.

    Raises:
        ObjectiveError: If one zeroes the gradient of a padding row that is looked up, of a table
            made of `params`, or divides gradients by counts of words; the message begins with the
            submodule.
    """
    for node in graph_nodes(*outputs):
        if fault := _edited_gradient(node, params):
            raise ObjectiveError(f"{timeline.name_of(node)}: {fault}")


def _edited_gradient(node: Node, params: Params) -> str | None:
    # EmbeddingBag handles padding correctly, but has no second derivative at all.
    if node.name() != "EmbeddingBackward0":
        return None
    saved: Any = node
    if saved._saved_scale_grad_by_freq:
        return (
            f"{SCALED_BY_FREQUENCY}. Set scale_grad_by_freq = False, which leaves the loss as it "
            "is."
        )
    row = saved._saved_padding_idx
    # Without one, the unsigned number that -1 is, which is no index.
    if row >= saved._saved_weight_sym_argsize_0 or not _made_of(node.next_functions[0][0], params):
        return None
    if not bool((saved._saved_indices == row).any()):
        return None
    return (
        f"zeroes the gradient of row {row} (padding_idx={row}), which the batch looks up, so the "
        "rows and columns of its entries would be missing from the Hessian. Set module.padding_idx "
        "= None, which leaves the loss as it is, or freeze the table."
    )


def _made_of(table: Node | None, params: Params) -> bool:
    """Tell whether an embedding's table is a parameter under study, or computed."""
    leaf = getattr(table, "variable", None)
    return leaf is None or any(leaf is parameter for parameter in params.values())


def _refuse_known_nodes(nodes: list[Node], timeline: ModuleTimeline) -> None:
    for node in nodes:
        if reason := _REFUSED_NODES.get(node.name()):
            raise ObjectiveError(f"{timeline.name_of(node)}: {reason}.")


def refuse_bypassed_parameters(nodes: list[Node], params: Params, module: nn.Module) -> None:
    """Refuse a graph that holds an original of a replaced parameter.

    A parameter under study was replaced, so the model's own tensor of that name must not be in the
    graph.
    """
    replaced = {id(tensor): name for name, tensor in module.named_parameters() if name in params}
    for node in nodes:
        name = replaced.get(id(getattr(node, "variable", None)))
        if name is not None:
            raise ObjectiveError(
                f"{name}: the loss uses this parameter other than through the model it is given, "
                "so that part of its curvature would be missing. Take parameters from the `model` "
                "argument inside the loss, not from a list made before."
            )


def _inspect(
    where: Callable[[], str],
    operation: str,
    faults: list[str],
    dtype: torch.dtype,
    going_out: tuple[Any, ...],
    coming_in: tuple[Any, ...],
) -> None:
    """Judge a backward pass by the gradients that it returned.

    What is wrong with it is added to `faults`.
    """
    for gradient in going_out:
        if gradient is None:
            continue
        if gradient.layout != torch.strided:
            faults.append(
                f"{where()}: {operation} gives a sparse gradient, which cannot be differentiated "
                "again. Build the embedding with sparse=False."
            )
        elif torch.finfo(gradient.dtype).eps > torch.finfo(dtype).eps:
            faults.append(
                f"{where()}: {operation} computes in {gradient.dtype}, but the parameters are in "
                f"{dtype}, so the second derivative would have fewer digits than it seems. Take "
                "autocast and casts out of the loss, or convert the model to the smaller type if "
                "that is float32."
            )
        elif _left_the_graph(gradient) and torch.count_nonzero(gradient):
            faults.append(
                f"{where()}: the backward pass of {operation} cannot be differentiated, so PyTorch "
                "would drop its part of the second derivative without a word. Use an "
                "implementation of it whose backward is made of differentiable operations."
            )


def _left_the_graph(gradient: Tensor) -> bool:
    """Tell whether a gradient is detached from the graph.

    Attached to the error node of once_differentiable alone counts too, since autograd.grad prunes
    it.
    """
    return not gradient.requires_grad or (
        gradient.grad_fn is not None and gradient.grad_fn.name() == "torch::autograd::Error"
    )
