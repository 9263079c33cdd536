"""The Hessian of one model over several processes, by central differences of its gradient.

For kernels without second derivatives, with the step, the tests and the error of
landscape.curvature.operators.finite_difference.
Shapes: n = total size of the parameters, l = entries of a vector in this process, k = number of
vectors.
"""

from contextlib import AbstractContextManager

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from landscape.curvature.objective import Batch, Objective, Params
from landscape.curvature.operators.finite_difference import FiniteDifferenceOperator, check_step
from landscape.sharded.layout import CutVectors
from landscape.sharded.lent import CutWeights
from landscape.sharded.objective import part_of_objective
from landscape.sharded.preconditions import cut_over, piece_of_process
from landscape.sharded.processes import Processes
from landscape.sharded.weights import notes_alone


class ShardedFiniteDifferenceOperator(FiniteDifferenceOperator):
    """(g(x + h v) - g(x - h v)) / 2h on the rows of all processes.

    No process holds more than its pieces.

    Every process of the mesh makes the operator with its own rows of the batch, and calls the same
    methods in the same order; weights, rows, losses and vectors are as in ShardedHessianOperator.
    Only first derivatives are taken.

    Args:
        objective, params, batch, mesh: As in ShardedHessianOperator.
        step: As in FiniteDifferenceOperator.

    Attributes:
        n: Total size of the parameters over all processes.
        space: How vectors are cut; `space.gathered(v)` makes one whole, `space.cut(v)` takes this
            process's entries.
        params: This process's pieces, rows first.
        step, error_estimate: As in FiniteDifferenceOperator; the same numbers in every process.
        loss: Value of the objective on all rows, the L2 term included, in nats.

    Raises:
        ObjectiveError: If the loss is not one finite, deterministic number, or its gradient is not
            its derivative; if models or settings differ between processes. What one process raises,
            the others raise too.
        MemoryLimitError: If memory runs out.
        ValueError: If `step` is not positive and finite, or the mesh none.
    """

    def __init__(
        self,
        objective: Objective,
        params: Params,
        batch: Batch,
        *,
        mesh: DeviceMesh,
        step: float | None = None,
    ) -> None:
        processes = Processes(mesh)
        with processes.together():
            check_step(step)
            weights, counts = cut_over(processes, objective, params, batch)
            self._build(objective, weights, batch, counts, step=step)

    def _build(
        self,
        objective: Objective,
        weights: CutWeights,
        batch: Batch,
        counts: tuple[int, ...],
        *,
        step: float | None,
    ) -> None:
        """Build the operator on `counts` rows, by process; collective."""
        self.objective, self.weights, self.counts, self.processes = (
            objective,
            weights,
            counts,
            weights.processes,
        )
        self._space = CutVectors.of(
            self.processes, [weights.cuts[name].lengths() for name in weights.leaves]
        )
        self.n = self.num_params = self._space.n
        part = part_of_objective(objective, weights, counts)
        self._prepare(
            part, dict(weights.leaves), batch, step=step, weight_decay=objective.weight_decay
        )

    @property
    def space(self) -> CutVectors:
        return self._space

    def matmat(self, V: Float[Tensor, "l k"]) -> Float[Tensor, "l k"]:
        with self.processes.together():
            return super().matmat(V)

    def piece_of(self, name: str, tensor: Tensor) -> Tensor:
        """Select this process's rows of a tensor shaped like a parameter; as in
        ShardedHessianOperator.
        """
        return piece_of_process(self.weights, name, tensor)

    def on(self, batch: Batch) -> "ShardedFiniteDifferenceOperator":
        """Build the operator with the same weights on other rows; collective.

        The rows must be as many in each process. The step is chosen anew.
        """
        other = object.__new__(ShardedFiniteDifferenceOperator)
        with self.processes.together():
            other._build(self.objective, self.weights, batch, self.counts, step=None)
        return other

    def release(self) -> None:
        """Free every gathered weight."""
        self.weights.release()

    def _loss_and_gradient(
        self, offset: Float[Tensor, " l"] | None
    ) -> tuple[float, Float[Tensor, " l"]]:
        try:
            part, slope = super()._loss_and_gradient(offset)
        finally:
            self.weights.release()
        return float(self.processes.total(np.array([part]))[0]), slope

    def _without_hooks(self) -> AbstractContextManager[None]:
        return notes_alone()
