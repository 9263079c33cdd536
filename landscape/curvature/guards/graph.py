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

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.autograd.graph import Node, disable_saved_tensors_hooks
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

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
# Which of them torch takes for the same call can change after the first evaluation of a process
# (seen in torch 2.14).
_VIEWS = ("ViewBackward0", "ReshapeAliasBackward0", "UnsafeViewBackward0")
SAVED_TENSOR_HOOKS = "saved tensor hooks are not allowed in the loss"
_IN_PLACE = "modified by an inplace operation"
_NO_INPUT_REQUIRES_GRAD = "None of the inputs have requires_grad=True"


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


def overwritten_in_backward(
    gradients: Sequence[Tensor | None], timeline: ModuleTimeline
) -> str | None:
    """Find an operation whose backward pass overwrites what its derivative needs.

    Returns the operation, its module and what to do; None if there is none.

    Args:
        gradients: Made with create_graph=True in torch's anomaly mode, which notes who made which
            node.
    """
    for node in graph_nodes(*(gradient for gradient in gradients if gradient is not None)):
        metadata: Any = node.metadata
        parent = metadata.get("parent_")
        if parent is not None and _reads_what_was_overwritten(node):
            return (
                f"{timeline.name_of(parent)}: the backward pass of {parent.name()} overwrites a "
                "tensor that its own derivative needs, so PyTorch refuses to differentiate it "
                "again. Use an implementation whose backward works out of place."
            )
    return None


def _reads_what_was_overwritten(node: Node) -> bool:
    for name in dir(node):
        if name.startswith("_saved_") or name == "saved_tensors":
            try:
                getattr(node, name)
            except RuntimeError as error:
                if _IN_PLACE in str(error):
                    return True
    return False


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


@contextmanager
def no_checkpointing() -> Iterator[None]:
    """Forbid recomputation and other hooks on saved tensors.

    They make a retained graph depend on more than itself.

    Raises:
        ObjectiveError: If the loss is evaluated under such a hook or installs one.
    """
    with checkpointing_explained(), disable_saved_tensors_hooks(SAVED_TENSOR_HOOKS):
        yield


@contextmanager
def checkpointing_explained() -> Iterator[None]:
    """Explain errors about saved-tensor hooks, and refuse untraced checkpointing.

    Untraced is reentrant checkpointing that leaves no node in the graph.

    Raises:
        ObjectiveError: If so.
    """
    try:
        with warnings.catch_warnings():
            # Reentrant checkpointing of a block whose input needs no gradient leaves no trace in
            # the graph but this.
            warnings.filterwarnings("error", message=_NO_INPUT_REQUIRES_GRAD)
            yield
    except (RuntimeError, UserWarning) as error:
        if SAVED_TENSOR_HOOKS not in str(error) and _NO_INPUT_REQUIRES_GRAD not in str(error):
            raise
        raise ObjectiveError(
            "The loss uses gradient checkpointing or another hook on saved tensors, which drops "
            "terms of the second derivative or recomputes the network from weights that may have "
            "changed. Switch it off; model.set_grad_checkpointing(False) does so in timm and "
            "open_clip."
        ) from error


# Fragments of PyTorch's messages about second derivatives -> what they mean here.
_EXPLANATIONS = {
    ("derivative for"): (
        "an operation of the loss has no second derivative in PyTorch. Replace it by one that has"
    ),
    ("double backward"): (
        "an operation of the loss has no second derivative. Replace it, or do not compile the model"
    ),
    "Can't call numpy()": (
        "the backward pass of an operation hands its tensors to NumPy, and no derivative leads "
        "through that. Use an implementation whose backward is made of differentiable operations"
    ),
    "inside of a function being transformed": (
        "it takes a derivative of its own, which forward mode cannot be taken through. Leave "
        "hvp='jvp' out"
    ),
    _IN_PLACE: (
        "a tensor that the loss was computed from, such as the batch, was changed in place after "
        "the operator was built. Build it on a copy"
    ),
}


@contextmanager
def explained_errors(find_culprit: Callable[[], str | None] = lambda: None) -> Iterator[None]:
    """Turn PyTorch's errors about second derivatives into an ObjectiveError.

    The error says what to do. Other errors pass.

    Args:
        find_culprit: Looks for a backward pass that works in place, where PyTorch complains of
            something overwritten.
    """
    try:
        yield
    except RuntimeError as error:
        if _IN_PLACE in str(error) and (culprit := find_culprit()):
            raise ObjectiveError(culprit) from error
        for fragment, meaning in _EXPLANATIONS.items():
            if fragment in str(error):
                first_line = str(error).partition("\n")[0]
                raise ObjectiveError(
                    f"The loss cannot be differentiated twice: {meaning}. PyTorch says: "
                    f"{first_line}"
                ) from error
        raise
