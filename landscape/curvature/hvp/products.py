"""Strategies of multiplying by the Hessian of a loss.

They share a contract, and differ in time and memory, not in the result.

Double backward over a graph that is kept (the fastest) or rebuilt for every product, and forward
mode over the gradient. Row chunks are in row_chunks.py, recordings in replayed.py;
landscape.curvature.hvp.choice picks. Never here: jvp of jacrev and grad of jvp, which are silently
wrong through LayerNorm (torch.func.hessian is one).
Shapes: n = total size of the parameters, c = vectors multiplied at once.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jvp, vmap

from landscape.curvature.guards.explanations import explained_errors
from landscape.curvature.hvp.evaluation import Problem, backward_in_place
from landscape.errors import ObjectiveError

# Relative difference of two strategies, above which one of them is wrong: rounding through a deep
# network is far below, and the wrong rules that are known are off by 1e-2 and more.
AGREEMENT = {torch.float32: 3e-3, torch.float64: 1e-7}
# The same where both strategies do the same operations, in another order at most.
SAME_OPERATIONS = {torch.float32: 1e-4, torch.float64: 1e-10}


class Product(ABC):
    """A strategy of multiplying by the Hessian of a problem's data term."""

    name: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.leaves = tuple(problem.leaves.values())
        self._sizes = [leaf.numel() for leaf in self.leaves]

    def multiply(self, rows: Float[Tensor, "c n"], out: Float[Tensor, "c n"]) -> None:
        """Write the products with the vectors `rows` to `out`.

        Raises:
            ObjectiveError: If an operation turns out to have no second derivative.
        """
        with (
            self.problem.differentiating(),
            explained_errors(partial(backward_in_place, self.problem)),
        ):
            self._multiply(rows, out)

    @abstractmethod
    def _multiply(self, rows: Float[Tensor, "c n"], out: Float[Tensor, "c n"]) -> None: ...

    @property
    def size(self) -> int:
        """Return the length of a vector."""
        return sum(self._sizes)

    def split(self, rows: Float[Tensor, "c n"]) -> list[Tensor]:
        """Split the vectors by parameter, each in its parameter's shape.

        There is a leading dimension c only if there are several vectors.
        """
        lead = (len(rows),) if len(rows) > 1 else ()
        return [
            piece.reshape(lead + leaf.shape)
            for piece, leaf in zip(rows.split(self._sizes, dim=1), self.leaves)
        ]

    def write(self, products: Sequence[Tensor | None], out: Float[Tensor, "c n"]) -> None:
        """Write products by parameter as flat vectors, None as zero."""
        for product, target in zip(products, out.split(self._sizes, dim=1)):
            if product is None:
                target.zero_()
            else:
                target.copy_(product.reshape(target.shape))

    def double_backward(
        self,
        gradients: Sequence[Tensor | None],
        rows: Float[Tensor, "c n"],
        out: Float[Tensor, "c n"],
        *,
        retain_graph: bool,
    ) -> None:
        """Differentiate <gradient, vector> once more."""
        # H v is the gradient of <g(x), v> with v held constant (Pearlmutter, Fast Exact
        # Multiplication by the Hessian, Neural Computation 6, 1994). What is left out is zero
        # everywhere: unused parameters, and gradients that are detached zeros.
        pairs = [
            (gradient, vector)
            for gradient, vector in zip(gradients, self.split(rows))
            if gradient is not None and gradient.requires_grad
        ]
        if not pairs:
            out.zero_()
            return
        # Not materialize_grads: with is_grads_batched its zeros lack the dimension of the block.
        products = torch.autograd.grad(
            [gradient for gradient, _ in pairs],
            self.leaves,
            [vector for _, vector in pairs],
            retain_graph=retain_graph,
            allow_unused=True,
            is_grads_batched=len(rows) > 1,
        )
        self.write(products, out)


class RetainedGraph(Product):
    """Double backward over a gradient's graph that is kept.

    The graph is built once. A product is one more backward pass, at about two gradients of work.

    Args:
        gradients: The gradient by parameter with its graph, None where the loss does not depend on
            one.
    """

    name = "retained"
    title = "double backward, retained graph"

    def __init__(self, problem: Problem, gradients: Sequence[Tensor | None]) -> None:
        super().__init__(problem)
        self.gradients = tuple(gradients)

    def _multiply(self, rows: Float[Tensor, "c n"], out: Float[Tensor, "c n"]) -> None:
        self.double_backward(self.gradients, rows, out, retain_graph=True)

    def part(self, names: Sequence[str]) -> "RetainedGraph":
        """Return the diagonal block of some parameters, through the same graph."""
        # The graph is that of all parameters; only the second pass is cut short.
        gradients = dict(zip(self.problem.leaves, self.gradients))
        leaves = {name: self.problem.leaves[name] for name in names}
        return RetainedGraph(
            replace(self.problem, leaves=leaves), [gradients[name] for name in names]
        )


class RebuiltGraph(Product):
    """Double backward over a graph that is built for every block of vectors.

    It is freed as it is used. A product costs 2.6 to 3.3 gradients for a single vector.
    """

    name = "rebuilt"
    title = "double backward, graph rebuilt for every product"

    def _multiply(self, rows: Float[Tensor, "c n"], out: Float[Tensor, "c n"]) -> None:
        loss = self.problem.objective.data_term(self.problem.leaves, self.problem.batch)
        # One graph for all vectors of the block.
        gradients = torch.autograd.grad(loss, self.leaves, create_graph=True, allow_unused=True)
        self.double_backward(gradients, rows, out, retain_graph=False)


class TangentOfGradient(Product):
    """jvp of the gradient: forward mode over reverse mode.

    A product costs 3.5 to 4.8 gradients, and more memory than a retained graph.

    Needs a forward-mode rule of every operation of the network and of its backward pass. Where one
    is missing PyTorch raises; a wrong rule is only detected by a comparison.

    Args:
        reference: A double-backward strategy to compare the first product with.

    Raises:
        ObjectiveError: On the first product, if it is not that of the reference.
    """

    name = "jvp"
    title = "jvp of the gradient"

    def __init__(self, problem: Problem, reference: Product | None = None) -> None:
        super().__init__(problem)
        self._reference = reference

    def multiply(self, rows: Float[Tensor, "c n"], out: Float[Tensor, "c n"]) -> None:
        super().multiply(rows, out)
        if self._reference is not None:
            expected = torch.empty_like(out)
            self._reference.multiply(rows, expected)
            check_agreement(out, expected, self.title)
            self._reference = None

    def _multiply(self, rows: Float[Tensor, "c n"], out: Float[Tensor, "c n"]) -> None:
        params = {name: leaf.detach() for name, leaf in self.problem.leaves.items()}
        gradient = grad(lambda params: self.problem.objective.data_term(params, self.problem.batch))

        # The derivative of the gradient along v, d/dt g(x + t v) at t = 0, is H v.
        def push(*pieces: Tensor) -> tuple[Tensor, ...]:
            return tuple(jvp(gradient, (params,), (dict(zip(params, pieces)),))[1].values())

        pieces = self.split(rows)
        self.write(vmap(push)(*pieces) if len(rows) > 1 else push(*pieces), out)


def check_agreement(
    product: Tensor,
    reference: Tensor,
    title: str,
    tolerances: Mapping[torch.dtype, float] = AGREEMENT,
) -> None:
    """Refuse a product that is not that of another way.

    Args:
        tolerances: Relative difference that rounding may make, by type.

    Raises:
        ObjectiveError: If they differ by more than rounding can.
    """
    size = float(torch.linalg.vector_norm(reference, dtype=torch.float64))
    error = float(torch.linalg.vector_norm(product - reference, dtype=torch.float64))
    # Not `>`, which a NaN would pass.
    if not error <= tolerances[reference.dtype] * size:
        raise ObjectiveError(
            f"{title}: differs from double backward by {error / (size or 1):.1e}, so it is not "
            "used."
        )
