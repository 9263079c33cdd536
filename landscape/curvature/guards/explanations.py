"""Errors of PyTorch about second derivatives, explained."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node, disable_saved_tensors_hooks

from landscape.curvature.guards.nodes import ModuleTimeline, graph_nodes
from landscape.errors import ObjectiveError

SAVED_TENSOR_HOOKS = "saved tensor hooks are not allowed in the loss"
_IN_PLACE = "modified by an inplace operation"
_NO_INPUT_REQUIRES_GRAD = "None of the inputs have requires_grad=True"


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
