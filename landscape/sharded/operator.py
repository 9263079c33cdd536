"""The Hessian of one model over several processes.

No process holds more than its pieces of weights and vectors.

Shapes: n = total size of the parameters, l = entries of a vector in this process, k = number of
vectors.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.distributed.device_mesh import DeviceMesh

from landscape.curvature.audits.spot_check_result import NOT_ASKED, SpotCheck
from landscape.curvature.guards.explanations import (
    explained_errors,
)
from landscape.curvature.guards.graph import differentiable_gradient
from landscape.curvature.guards.nodes import module_timeline
from landscape.curvature.guards.preconditions import (
    check_same_loss,
    reading_only,
)
from landscape.curvature.guards.rounding import moved_products
from landscape.curvature.hvp.evaluation import Problem, check_gradients, evaluated_once
from landscape.curvature.hvp.products import RetainedGraph
from landscape.curvature.hvp.unchecked import supported_coordinates
from landscape.curvature.objective import (
    Batch,
    Objective,
    Params,
    flatten,
    select_parameters,
    squared_norm,
    unflatten,
)
from landscape.deprecation import renamed_keyword
from landscape.errors import ObjectiveError
from landscape.linalg.coordinates import Coordinates
from landscape.linalg.operator import SymmetricOperator, count_unused, seeded
from landscape.linalg.vectors import all_finite
from landscape.sharded.check import spot_checked
from landscape.sharded.gathering import uses_of_weights
from landscape.sharded.layout import CutVectors
from landscape.sharded.lent import CutWeights
from landscape.sharded.objective import part_of_objective
from landscape.sharded.preconditions import cut_over, piece_of_process
from landscape.sharded.processes import Processes
from landscape.sharded.weights import notes_alone

STRATEGIES = ("auto", "retained", "rebuilt")


class ShardedHessianOperator(SymmetricOperator):
    """The Hessian of `objective` at `params` on the rows of all processes.

    Its unit is nats per squared parameter.

    Every process of the mesh makes the operator with its own rows of the batch, and calls the same
    methods in the same order. Weights and vectors are cut by rows of each parameter; a weight is
    gathered when a layer reads it and freed afterwards, in forward and backward passes, and every
    product is exact double backward. Attention runs in its plain form (SDPBackend.MATH). Solvers of
    landscape.linalg take the operator as any other, and give the same result in every process.

    Of an objective with features by row, such as the contrastive ones, the loss sees the features
    of all rows. A loss of another kind, as `hessian` makes it, must be a mean over rows: the
    operator is that of the mean over all rows, which may be more in one process than in another.

    Args:
        objective: The same in every process. Evaluated twice, to see that it is not random.
        params: Where to differentiate: float32 or float64. Whole and the same in every process, or
            DTensors cut by rows (Shard(0)) over the mesh. Their order is the flat order. Copied,
            this process's pieces alone; so are the other parameters and the buffers of the
            objective's module, whose own weights are not needed any more.
        batch: This process's rows, at least one: any nest of tensors that the objective takes.
        mesh: A DeviceMesh of one dimension.
        hvp: "retained" keeps the graph of the gradient, "rebuilt" makes it for every product,
            which takes less memory between products and half as much time again. "auto" is
            "retained".
        check: Compare the first product with differences of gradients, and the gradient with
            differences of the loss.

    Attributes:
        n: Total size of the parameters over all processes.
        space: How vectors are cut; `space.gathered(v)` makes one whole, `space.cut(v)` takes this
            process's entries.
        params: This process's pieces, rows first.
        loss: Value of the objective on all rows, the L2 term included, in nats.
        support: As in HessianOperator, of all rows; indices among the entries of this process.
        spot_check: The result of the check of the first product; None before it.

    Raises:
        ObjectiveError: For what HessianOperator refuses; if models or settings differ between
            processes; for modules that another library has wrapped for several processes. What one
            process raises, the others raise too.
        MemoryLimitError: If memory runs out.
        ValueError: If an option has an invalid value.
    """

    @renamed_keyword("product", "hvp")
    def __init__(
        self,
        objective: Objective,
        params: Params,
        batch: Batch,
        *,
        mesh: DeviceMesh,
        hvp: str = "auto",
        check: bool = True,
    ) -> None:
        processes = Processes(mesh)
        with processes.together():
            if hvp not in STRATEGIES:
                raise ValueError(
                    f"hvp must be one of {', '.join(STRATEGIES)} where a model is cut over "
                    f"processes, got {hvp!r}."
                )
            weights, counts = cut_over(processes, objective, params, batch)
            self._build(
                objective,
                weights,
                dict(weights.leaves),
                batch,
                counts,
                hvp=hvp,
                check=check,
            )

    def _build(
        self,
        objective: Objective,
        weights: CutWeights,
        pieces: Params,
        batch: Batch,
        counts: tuple[int, ...],
        *,
        hvp: str,
        check: bool,
    ) -> None:
        """Build the operator at these pieces of the parameters; collective."""
        self.objective, self.weights, self.counts, self.hvp = (
            objective,
            weights,
            counts,
            hvp,
        )
        self.params = pieces
        with torch.inference_mode(False):
            leaves = {name: piece.detach().requires_grad_() for name, piece in pieces.items()}
        first = next(iter(pieces.values()))
        self.dtype, self.device = first.dtype, first.device
        self.processes = weights.processes
        self._space = CutVectors.of(
            self.processes, [weights.cuts[name].lengths() for name in pieces]
        )
        self.n = self.num_params = self._space.n
        self.weight_decay = objective.weight_decay
        self.spot_check: SpotCheck | None = None if check else NOT_ASKED
        part = part_of_objective(objective, weights, counts)
        self.problem = Problem(objective=part, leaves=leaves, batch=batch)
        self._graph: RetainedGraph | None = None
        self._evaluate()

    @property
    def space(self) -> CutVectors:
        return self._space

    @property
    def num_unused(self) -> int:
        return self._num_unused

    @property
    def checked(self) -> str:
        return "" if self.spot_check is None else str(self.spot_check)

    @property
    def module(self) -> nn.Module | None:
        """Return the model behind the loss; None where the objective names none.

        Its parameters were copied.
        """
        return self.objective.module

    @property
    def parameter_names(self) -> tuple[str, ...]:
        return tuple(self.params)

    def piece_of(self, name: str, tensor: Tensor) -> Tensor:
        """Select this process's rows of a tensor shaped like a parameter.

        The tensor is whole, or a DTensor that is cut alike.
        """
        return piece_of_process(self.weights, name, tensor)

    def unflatten(self, vector: Float[Tensor, " l"]) -> Params:
        """Split a vector by parameter, as views.

        Each has this process's rows of the parameter.
        """
        return unflatten(vector, self.params)

    def gradient(self) -> Float[Tensor, " l"]:
        """Return this process's entries of the objective's gradient.

        The L2 term is included; in nats per parameter.
        """
        return flatten(self.gradients).add(flatten(self.params), alpha=self.weight_decay)

    # --- evaluation -------------------------------------------------------------------------------

    def _evaluate(self) -> None:
        """Evaluate the loss twice, and its gradient with its graph."""
        problem = self.problem
        with problem.differentiating(), notes_alone():
            first = evaluated_once(problem)
            self.weights.release()
            with (
                module_timeline(problem.objective.module) as timeline,
                reading_only(problem.leaves),
            ):
                loss = problem.objective.data_term(problem.leaves, problem.batch)
            check_same_loss(first.loss, loss.item(), dtype=self.dtype)
            uses = uses_of_weights(loss)
            gradients = differentiable_gradient(
                loss, problem.leaves, timeline, module=problem.objective.module
            )
            check_gradients(problem.leaves, gradients, first.loss)
        self.weights.release()
        self.data_loss = float(self.processes.total(np.array([first.loss]))[0])
        self.loss = self.data_loss
        if self.weight_decay:
            square = float(
                squared_norm({name: piece.double() for name, piece in self.params.items()})
            )
            self.loss += (
                0.5 * self.weight_decay * float(self.processes.total(np.array([square]))[0])
            )
        self.gradients = {
            name: torch.zeros_like(piece) if gradient is None else gradient.detach()
            for (name, piece), gradient in zip(self.params.items(), gradients)
        }
        # The L2 term reaches every row.
        support = self._supported(uses)
        self.support = None if self.weight_decay else support
        self._num_unused = count_unused(self._space, self.support_runs)
        self._places = support
        if self.hvp != "rebuilt":
            self._graph = RetainedGraph(problem, gradients)

    def _supported(self, uses: dict[str, list[Node]]) -> Coordinates | None:
        """Find this process's entries of the support of all rows.

        None, in all processes, if the support is everything.

        Args:
            uses: Operations of this process that read a weight, by its name.
        """
        own = [uses.get(name, []) for name in self.params]
        is_table = [all(node.name() == "EmbeddingBackward0" for node in nodes) for nodes in own]
        flags = torch.tensor([[bool(nodes) for nodes in own], [not table for table in is_table]])
        # A weight is used if any process uses it. It is a table only if every process just looks
        # rows up.
        used, other = self.processes.any_of(flags).tolist()
        unused = {name for name, use in zip(self.params, used) if not use}
        kept, reduced = {}, bool(unused)
        for name, nodes, no_table in zip(self.params, own, other):
            if name in unused or no_table:
                continue
            cut = self.weights.cuts[name]
            rows = torch.zeros(cut.num_rows, dtype=torch.bool)
            for node in nodes:
                rows[node._saved_indices.reshape(-1).cpu()] = True  # type: ignore[attr-defined]
            rows = self.processes.any_of(rows)
            reduced |= not bool(rows.all())
            kept[name] = rows[cut.rows_of(self.processes.rank)].nonzero()[:, 0].to(self.device)
        if not reduced:
            return None
        here = supported_coordinates(self.params, unused, kept)
        return Coordinates.all(self.num_local, self.device) if here is None else here

    # --- products ---------------------------------------------------------------------------------

    def matmat(self, V: Float[Tensor, "l k"]) -> Float[Tensor, "l k"]:
        """Multiply k vectors, one by one; collective.

        Raises:
            ObjectiveError: If an operation turns out to have no second derivative, or a product is
                not finite; the first time also if the product is not the derivative of the
                gradient, or the gradient not that of the loss.
            MemoryLimitError: If memory ran out.
        """
        with self.processes.together():
            with torch.inference_mode(False):
                rows = (V.clone() if V.is_inference() else V.detach()).T.contiguous()
                products = torch.empty_like(rows)
                for row, product in zip(rows.split(1), products.split(1)):
                    self._multiply(row, product)
            if self.space.any(not all_finite(products)):
                raise ObjectiveError(
                    "A product with the Hessian is not finite although the gradient is, or the "
                    "vector is not. Look for a power below 2, a norm or a square root at zero."
                )
            if self.spot_check is None:
                self._check_with(rows, products)
            if self.weight_decay:
                products.add_(rows, alpha=self.weight_decay)
        return products.T

    def _multiply(self, row: Float[Tensor, "1 l"], out: Float[Tensor, "1 l"]) -> None:
        """Write the product without the L2 term to `out`."""
        try:
            with self.problem.differentiating(), explained_errors():
                if self._graph is not None:
                    self._graph.double_backward(self._graph.gradients, row, out, retain_graph=True)
                else:
                    with notes_alone():
                        leaves = self.problem.leaves
                        loss = self.problem.objective.data_term(leaves, self.problem.batch)
                        gradients = torch.autograd.grad(
                            loss, list(leaves.values()), create_graph=True, allow_unused=True
                        )
                    RetainedGraph(self.problem, gradients).double_backward(
                        gradients, row, out, retain_graph=False
                    )
        finally:
            # Also after a failure: the processes may then hold different weights, and would next
            # gather different ones.
            self.weights.release()

    def check(self) -> SpotCheck:
        """Compare a product with differences, unless that was done; collective.

        Raises:
            ObjectiveError: If it is no second derivative of the loss, or the gradient no first one.
        """
        if self.spot_check is None:
            self.matmat(self.random(seeded(0))[:, None])
        assert self.spot_check is not None
        return self.spot_check

    def _check_with(self, rows: Float[Tensor, "k l"], products: Float[Tensor, "k l"]) -> None:
        """Compare products with differences.

        Where these products say too little, that of a random vector is compared.
        """
        counts = np.array([float(torch.count_nonzero((rows != 0).any(0)))])
        if not self.processes.total(counts)[0]:
            return
        if 2 * self.processes.total(counts)[0] < self.n - self._num_outside:
            rows = self.random(seeded(0))[None]
            products = torch.empty_like(rows)
            self._multiply(rows, products)
        self.spot_check = spot_checked(self, rows, products)

    @property
    def _num_outside(self) -> int:
        """Count the entries outside of the support of the data term."""
        return count_unused(self._space, self._places)

    def product_errors(self, v: Float[Tensor, " l"]) -> Float[Tensor, " l"]:
        """Estimate a product's errors as HessianOperator does.

        The random moves of the parameters are the same.
        """

        def at(pieces: Params) -> ShardedHessianOperator:
            return self.at(pieces, check=False)

        def moved(
            generator: torch.Generator, move: Callable[[Tensor, torch.Generator], Tensor]
        ) -> Params:
            cuts = self.weights.cuts
            pieces = {}
            for name, piece in self.params.items():
                # Solvers call this for operators of some tens of entries only, so every process
                # draws all of them.
                ones = move(torch.ones(cuts[name].shape, dtype=piece.dtype), generator)
                factors = cuts[name].as_rows(ones)[cuts[name].rows_of(self.processes.rank)]
                pieces[name] = piece * factors.to(piece.device)
            return pieces

        return moved_products(self, at, moved, v)

    def release(self) -> None:
        """Free the graph and the gradient.

        Nothing can be multiplied any more, but `at` makes other operators.
        """
        self._graph, self.gradients = None, {}
        self.weights.release()

    def at(
        self, pieces: Params, *, check: bool = True, batch: Batch | None = None
    ) -> "ShardedHessianOperator":
        """Build the operator of the same loss at other parameters; collective.

        They are given as this process's pieces.
        """
        other = object.__new__(ShardedHessianOperator)
        batch = self.problem.batch if batch is None else batch
        with self.processes.together():
            other._build(
                self.objective,
                self.weights,
                pieces,
                batch,
                self.counts,
                hvp=self.hvp,
                check=check,
            )
        return other


def sharded_hessian(
    model: nn.Module,
    loss: Callable[[Any, Batch], Tensor],
    batch: Batch,
    *,
    mesh: DeviceMesh,
    parameters: str | Sequence[str] = "all",
    weight_decay: float = 0.0,
    hvp: Any = "auto",
    check: bool = True,
) -> ShardedHessianOperator:
    """Build the Hessian of the mean of `loss(model, rows)` over all rows.

    They are the rows of all processes; see `ShardedHessianOperator`.

    Args:
        loss: A mean over the rows that it is given.
        batch: This process's rows.
    """
    objective = Objective.from_closure(model, loss, weight_decay=weight_decay)
    return ShardedHessianOperator(
        objective,
        select_parameters(model, parameters),
        batch,
        mesh=mesh,
        hvp=hvp,
        check=check,
    )
