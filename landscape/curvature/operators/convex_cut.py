"""A loss cut into a network's outputs and a convex function of them, for Gauss-Newton matrices."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from landscape.curvature.guards.graph import refuse_bypassed_parameters
from landscape.curvature.guards.nodes import graph_nodes
from landscape.curvature.guards.preconditions import check_loss, reading_only
from landscape.curvature.hvp.evaluation import Problem
from landscape.curvature.objective import Batch, Objective
from landscape.curvature.operators.hessian import HessianOperator
from landscape.errors import ObjectiveError
from landscape.linalg.lanczos import eigsh

# Products with the Hessian by the outputs, of which a direction of negative curvature is looked
# for. They touch no network.
_CONVEXITY_PRODUCTS = 20
# Units of rounding below which curvature along a direction counts as zero.
ROUNDINGS = 1000


class Nest:
    """Outputs as a flat list that can be nested again.

    It holds the outputs to differentiate, and the places of the rest, which do not depend on the
    parameters.
    """

    def __init__(self, outputs: Any) -> None:
        self.values, self.spec = tree_flatten(outputs)
        self.places = [
            i
            for i, value in enumerate(self.values)
            if isinstance(value, Tensor) and value.requires_grad
        ]
        if not self.places:
            raise ObjectiveError(
                "The outputs must be a tensor, or tuples, lists and dicts of tensors, that depend "
                f"on the parameters; got a {type(outputs).__name__}."
            )
        self.differentiable = tuple(self.values[i] for i in self.places)
        # The outputs keep their graph alive; what is left here is a constant.
        for i in self.places:
            self.values[i] = None

    def names(self) -> list[str]:
        return [f"output {i}" for i in self.places]

    def filled(self, tensors: Sequence[Tensor]) -> Any:
        values = list(self.values)
        for place, tensor in zip(self.places, tensors):
            values[place] = tensor
        return tree_unflatten(values, self.spec)


def cut_in_two(problem: Problem) -> tuple[Any, Tensor]:
    """Evaluate the outputs, and the convex loss of them."""
    objective, batch = problem.objective, problem.batch
    assert objective.cut is not None
    outputs = objective.cut.outputs(objective.forward(problem.leaves, batch), batch)
    return outputs, objective.cut.convex(outputs, batch)


def checked_cut(problem: Problem) -> float:
    """Check that the cut gives the loss, and return it.

    The loss is the data term.

    Raises:
        ObjectiveError: If there is no cut, it gives another number, or the loss is not one finite
            number.
    """
    objective, leaves, batch, dtype = (
        problem.objective,
        problem.leaves,
        problem.batch,
        problem.like.dtype,
    )
    if objective.cut is None:
        raise ObjectiveError(
            "The objective does not say in what its loss is convex, and a Gauss-Newton matrix is "
            "linearised up to that. Give Objective a cut, or use landscape.gauss_newton(model, "
            "outputs, loss, batch)."
        )
    with reading_only(leaves):
        features = objective.forward(leaves, batch)
        whole = objective.loss(features, batch)
        parts = objective.cut.convex(objective.cut.outputs(features, batch), batch)
    check_loss(whole, batch, dtype=dtype)
    check_loss(parts, batch, dtype=dtype)
    if objective.module is not None:
        refuse_bypassed_parameters(list(graph_nodes(whole, parts)), leaves, objective.module)
    if abs(whole.item() - parts.item()) > ROUNDINGS * torch.finfo(dtype).eps * max(
        1.0, abs(whole.item())
    ):
        raise ObjectiveError(
            f"The two parts of the cut do not make the loss: they give {parts.item():.9g} instead "
            f"of {whole.item():.9g}, so the Gauss-Newton matrix would be that of another loss. "
            "Mend the cut of the objective."
        )
    return parts.item()


def hessian_by_outputs(
    convex: Callable[[Any, Batch], Tensor], nest: Nest, outputs: Sequence[Tensor], batch: Batch
) -> HessianOperator:
    """Build the Hessian of the loss by the outputs.

    It refuses all that any Hessian refuses.
    """
    # The outputs take the place of parameters, as detached copies, so that products with H end at
    # the outputs and do not enter the network.
    objective = Objective(
        lambda params, batch: nest.filled(list(params.values())), convex, rowwise=False
    )
    return HessianOperator(objective, dict(zip(nest.names(), outputs)), batch, hvp="retained")


def largest_curvature(head: HessianOperator) -> float:
    """Return the size of the Hessian by the outputs.

    A short search first looks for a direction in which the curvature is negative.

    Raises:
        ObjectiveError: If it found one. A Ritz value is the curvature along a direction, so this is
            no estimate.
    """
    # A Krylov space finds the ends of a spectrum first, so a few products show an eigenvalue that
    # is clearly negative.
    eigenpairs = eigsh(
        head,
        1,
        "SA",
        max_matvecs=min(head.n, _CONVEXITY_PRODUCTS),
        num_checks=0,
        return_vectors=False,
    )
    assert eigenpairs.quadrature is not None
    nodes = eigenpairs.quadrature.nodes
    # Ritz values lie between the extreme eigenvalues, so `largest` is at most |H|, and a negative
    # `least` is the curvature along some direction.
    largest, least = float(nodes.abs().max()), float(nodes.min())
    if least < -ROUNDINGS * torch.finfo(head.dtype).eps * largest:
        raise not_convex(least, largest)
    return largest


def not_convex(curvature: float, largest: float) -> ObjectiveError:
    return ObjectiveError(
        "The loss is not convex in its outputs: along one direction its curvature is "
        f"{curvature:.3g}, where the largest is {largest:.3g}, so the Gauss-Newton matrix would "
        "have negative eigenvalues. Cut the loss where it is convex: at the logits of a "
        "cross-entropy, say, not at normalised features."
    )
