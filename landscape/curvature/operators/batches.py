"""The average Hessian of many batches, with a single graph in memory.

Shapes: n = total size of the parameters, k = number of vectors.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from landscape.curvature.audits.spot_check import FirstProduct, is_general, spot_checked
from landscape.curvature.audits.spot_check_result import NOT_ASKED, SpotCheck
from landscape.curvature.guards.explanations import no_checkpointing
from landscape.curvature.guards.preconditions import check_batch, describe_batch
from landscape.curvature.guards.rounding import product_errors
from landscape.curvature.hvp.evaluation import Problem, twice_evaluated
from landscape.curvature.hvp.products import Product, RetainedGraph
from landscape.curvature.hvp.row_chunks import RowChunks, count_rows
from landscape.curvature.hvp.unchecked import (
    checked_leaves,
    supported_coordinates,
    unused_parameters,
)
from landscape.curvature.objective import (
    Batch,
    Objective,
    Params,
    select_parameters,
    squared_norm,
    unflatten,
)
from landscape.errors import ObjectiveError
from landscape.linalg.coordinates import Coordinates
from landscape.linalg.operator import (
    SymmetricOperator,
    normalized_weights,
    said_once,
    union_of_supports,
)
from landscape.linalg.vectors import all_finite

# As in check_same_loss: the order of additions on a GPU may vary.
_ROUNDINGS = 1000


class HessianOfBatches(SymmetricOperator):
    """The weighted average over batches of the Hessian of `objective` at `params`.

    It is in nats per squared parameter.

    For a loss that is a mean over rows, equal batches average to the Hessian of all their rows; a
    contrastive loss compares the rows of a batch with each other, and the average stays one over
    batches.

    Every batch is evaluated twice to begin with, and refused for all that a HessianOperator
    refuses. After that, graphs are made anew for every block of vectors and freed batch by batch:
    memory is that of one graph and a few n-vectors, at 2.6 to 3.3 gradients of work a batch for one
    vector, and 2 for each further vector of the block. The parameters are copied once. What else a
    loss depends on must stay as it is: a batch whose loss has changed makes the next product raise,
    unless graphs are kept or rows are taken in chunks.

    Args:
        objective: Objective of one batch.
        params: Parameters at which to differentiate: float32 or float64, on one device. Their order
            is the flat order.
        batches: At least one; kept, as they are needed again.
        weights: One number >= 0 per batch, of any positive sum, such as the sizes of the batches;
            equal by default.
        keep_graphs: Keep the graph of every batch, for products of 2 gradients a batch.
        rows: Rows of a batch that the network sees at once, in exact row chunks; memory is then
            that of a chunk's graph and of the features of all batches, as nothing else is kept.
            Needs the network and the loss apart, so an Objective.
        check: As in HessianOperator, for the first batch and every other of another structure.

    Attributes:
        losses: Loss of each batch without the L2 term, in nats.
        loss: Their weighted average, the L2 term included.
        support, params, num_params: As in HessianOperator; the support is that of all batches of
            positive weight.

    Raises:
        ObjectiveError: As in HessianOperator; the message names the batch.
        ValueError: If there is no batch, `batches` is a tensor or a mapping, the weights are no
            weights, rows is not positive, or graphs are to be kept of chunks.
    """

    def __init__(
        self,
        objective: Objective,
        params: Params,
        batches: Iterable[Batch],
        *,
        weights: Sequence[float] | None = None,
        keep_graphs: bool = False,
        rows: int | None = None,
        check: bool = True,
    ) -> None:
        if rows is not None and not (isinstance(rows, int) and rows >= 1):
            raise ValueError(f"rows must be a whole number from 1 on, got {rows!r}.")
        if rows is not None and keep_graphs:
            raise ValueError(
                "rows: chunks keep no graph, so keep_graphs=True cannot be obeyed. Leave one of "
                "them out."
            )
        batches = _listed(batches)
        self.rows = rows
        self.weights = tuple(normalized_weights(len(batches), weights))
        leaves = checked_leaves(objective, params, batches[0], copy=True)
        self._problems = [
            Problem(objective=objective, leaves=leaves, batch=batch) for batch in batches
        ]
        self.dtype, self.device = self._problems[0].like.dtype, self._problems[0].like.device
        self.params = {name: leaf.detach() for name, leaf in leaves.items()}
        self.n = self.num_params = sum(leaf.numel() for leaf in leaves.values())
        self.weight_decay = objective.weight_decay
        self._kept: list[Product | None] = []
        self._operations: list[int] = []
        self._unchecked = set(range(len(batches))) if check else set()
        self._spot_checks: list[SpotCheck] = [] if check else [NOT_ASKED]
        losses, supports = [], []
        for index, problem in enumerate(self._problems):
            loss, support, product = self._evaluated(index, problem)
            losses.append(loss)
            # A batch of weight zero adds nothing to the matrix, and nothing to its support.
            supports += [support] if self.weights[index] else []
            self._kept.append(product if keep_graphs or rows is not None else None)
        self.losses = tuple(losses)
        self.loss = sum(weight * loss for weight, loss in zip(self.weights, losses))
        if self.weight_decay:
            self.loss += (
                0.5
                * self.weight_decay
                * float(squared_norm({k: v.double() for k, v in self.params.items()}))
            )
        # The L2 term reaches every row.
        self.support = None if self.weight_decay else union_of_supports(supports)

    @property
    def checked(self) -> str:
        return said_once(map(str, self._spot_checks))

    @property
    def module(self) -> nn.Module | None:
        """Return the model behind the loss, whose parameters were copied.

        None where the objective names none.
        """
        return self._problems[0].objective.module

    @property
    def num_batches(self) -> int:
        return len(self._problems)

    def unflatten(self, vector: Float[Tensor, " n"]) -> Params:
        """Split a vector by parameter name and shape, as views."""
        return unflatten(vector, self.params)

    def matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Multiply k vectors, batch by batch.

        Raises:
            ObjectiveError: If the loss of a batch is not what it was, an operation turns out to
                have no second derivative, or a product is not finite; the message names the batch.
        """
        with torch.inference_mode(False):
            rows = (V.clone() if V.is_inference() else V.detach()).T
            # The Hessian of weight_decay / 2 * |x|^2 is weight_decay times the identity: an exact
            # shift.
            total, products = self.weight_decay * rows, torch.empty_like(rows)
            # Batches outside and vectors inside: a graph that is built anew serves all vectors
            # before it is freed. One buffer holds the products of each batch in turn.
            for index, weight in enumerate(self.weights):
                if weight and len(rows):
                    self._multiply(index, rows, products)
                    total.add_(products, alpha=weight)
        return total.T

    def product_errors(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return product_errors(self, self._at, self.params, v)

    def _at(self, params: Params) -> "HessianOfBatches":
        batches = [problem.batch for problem in self._problems]
        options: dict[str, Any] = {"weights": self.weights, "rows": self.rows, "check": False}
        return HessianOfBatches(self._problems[0].objective, params, batches, **options)

    def _multiply(
        self, index: int, rows: Float[Tensor, "k n"], products: Float[Tensor, "k n"]
    ) -> None:
        try:
            strategy = self._kept[index] or self._rebuilt(index)
            for row, product in zip(rows.split(1), products.split(1)):
                strategy.multiply(row, product)
            if index in self._unchecked and is_general(rows, self.support_runs):
                self._check(index, rows, products, strategy.name)
            if not all_finite(products):
                raise ObjectiveError(
                    "a product with the Hessian is not finite: the vector or a second derivative "
                    "is not."
                )
        except ObjectiveError as error:
            raise ObjectiveError(f"batch {index} of {self.num_batches}: {error}") from error

    def _check(
        self, index: int, rows: Float[Tensor, "k n"], products: Float[Tensor, "k n"], strategy: str
    ) -> None:
        first = FirstProduct(
            self._problems[index],
            None,
            rows,
            products,
            strategy=(strategy, self.rows),
            operations=self._operations[index],
        )
        self._spot_checks.append(spot_checked(first))
        self._unchecked.discard(index)

    def _evaluated(self, index: int, problem: Problem) -> tuple[float, Coordinates | None, Product]:
        """Return a batch's loss, the support of its Hessian, and its products."""
        chunks = None
        try:
            check_batch(problem.batch, self.device)
            if self.rows is not None:
                chunks = RowChunks(problem, self.rows)
            evaluated = twice_evaluated(problem) if chunks is None else chunks.pop_evaluated()
        except ObjectiveError as error:
            raise ObjectiveError(f"batch {index} of {self.num_batches}: {error}") from error
        except Exception as error:
            # A pair of tensors may be two batches or one: what the loss says of its first half is
            # hard to read without this.
            error.add_note(
                f"Raised for item {index} of {self.num_batches} in `batches`, "
                f"{describe_batch(problem.batch)}. Every item must be a whole batch, as the loss "
                "takes it; a single one is given as [batch]."
            )
            raise
        self._operations.append(evaluated.operations)
        unused = unused_parameters(problem.leaves, evaluated.gradients)
        support = supported_coordinates(problem.leaves, unused, evaluated.looked_up)
        return evaluated.loss, support, chunks or RetainedGraph(problem, evaluated.gradients)

    def _rebuilt(self, index: int) -> RetainedGraph:
        problem, before = self._problems[index], self.losses[index]
        with problem.differentiating(), no_checkpointing():
            # The graph was freed after its last use. A loss that has changed since would mix two
            # matrices in one operator.
            loss = problem.objective.data_term(problem.leaves, problem.batch)
            if abs(loss.item() - before) > _ROUNDINGS * torch.finfo(self.dtype).eps * max(
                1.0, abs(before)
            ):
                raise ObjectiveError(
                    f"its loss is {loss.item():.9g} now and was {before:.9g}, so this is no longer "
                    "one matrix. The batch, or parameters and buffers that were not selected, were "
                    "changed since. Build the operator on a copy."
                )
            gradients = torch.autograd.grad(
                loss, list(problem.leaves.values()), create_graph=True, allow_unused=True
            )
        return RetainedGraph(problem, gradients)


def _listed(batches: Iterable[Batch]) -> list[Batch]:
    """List the batches, and refuse what can only be a single batch."""
    if not isinstance(batches, Iterable) or isinstance(batches, Tensor | Mapping):
        raise ValueError(
            "batches must be a sequence of batches, each what the loss takes, got "
            f"{type(batches).__name__}: its parts would be taken for batches. Give [batch] for a "
            "single one, or list(tensor) for one batch per row."
        )
    listed = list(batches)
    if not listed:
        raise ValueError("batches must hold at least one batch, got none.")
    return listed


def _numbers_of_rows(batches: Sequence[Batch]) -> list[int] | None:
    """Count the rows of each batch.

    None for batches of equal shapes without a common first dimension.
    """
    try:
        return [count_rows(batch) for batch in batches]
    except ObjectiveError:
        pass
    # Batches of equal shapes count alike, whatever a row is in them.
    shapes = [describe_batch(batch) for batch in batches]
    other = next((index for index, shape in enumerate(shapes) if shape != shapes[0]), None)
    if other is None:
        return None
    raise ValueError(
        f"batches: their rows cannot be counted (batch 0 is {shapes[0]}, batch {other} is "
        f"{shapes[other]}), so how much each counts in the average is open. Pass weights=[...], "
        "one number per batch: the rows that its loss is the mean of."
    )


def hessian_of_batches(
    model: nn.Module,
    loss: Callable[[Any, Batch], Tensor],
    batches: Iterable[Batch],
    *,
    parameters: str | Sequence[str] = "all",
    weight_decay: float = 0.0,
    weights: Sequence[float] | None = None,
    keep_graphs: bool = False,
    check: bool = True,
) -> HessianOfBatches:
    """Average the Hessians of `loss(model, batch)` over batches, by the model's parameters.

    Args:
        model, loss, parameters, weight_decay: As in `hessian`.
        batches: Batches, each as `loss` takes it; any iterable, such as a DataLoader, whose last
            batch may be smaller.
        weights: One number >= 0 per batch. By default the number of its rows, so that for a loss
            that is a mean over rows the average is the Hessian of all rows, as in PyHessian.
        keep_graphs, check: As in HessianOfBatches.

    Raises:
        ObjectiveError: If the loss has no Hessian that could be trusted; the message names the
            batch and says why.
        ValueError: As in HessianOfBatches; and if no weights are given, the batches differ, and
            their rows cannot be counted.

    Examples:
        >>> import torch, landscape
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> batch = torch.randn(32, 4), torch.randn(32, 1)
        >>> def loss(model, batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        ...
        >>> halves = [tuple(part[:16] for part in batch), tuple(part[16:] for part in batch)]
        >>> H = landscape.hessian_of_batches(model, loss, halves)
        >>> v = torch.ones(H.n)
        >>> torch.allclose(H @ v, landscape.hessian(model, loss, batch) @ v, rtol=1e-4, atol=1e-5)
        True
    """
    batches = _listed(batches)
    weights = _numbers_of_rows(batches) if weights is None else weights
    objective = Objective.from_closure(model, loss, weight_decay=weight_decay)
    chosen = select_parameters(model, parameters)
    return HessianOfBatches(
        objective, chosen, batches, weights=weights, keep_graphs=keep_graphs, check=check
    )
