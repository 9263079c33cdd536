"""The Hessian of an objective on one batch as a symmetric operator, and the gradient beside it.

How a product is computed is left to landscape.curvature.hvp.engine, which first tries double
backward over a kept graph.
Shapes: n = total size of the parameters, k = number of vectors.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from landscape.curvature.audits.spot_check import (
    FirstProduct,
    checked_before,
    is_general,
    spot_checked,
)
from landscape.curvature.audits.spot_check_result import NOT_ASKED, EarlierCheck, SpotCheck
from landscape.curvature.guards.graph import refuse_edited_gradients
from landscape.curvature.guards.nodes import module_timeline
from landscape.curvature.guards.preconditions import check_loss, reading_only
from landscape.curvature.guards.rounding import product_errors
from landscape.curvature.hvp.choice import HvpChoice
from landscape.curvature.hvp.evaluation import Evaluated, as_differentiated
from landscape.curvature.hvp.unchecked import UncheckedHessian, checked_leaves
from landscape.curvature.objective import Batch, Objective, Params, flatten, select_parameters
from landscape.deprecation import renamed_keyword
from landscape.linalg.operator import seeded


class HessianOperator(UncheckedHessian):
    """The Hessian of `objective` at `params` on `batch`, in nats per squared parameter.

    The gradient is built once and its graph kept, if it fits in memory: a product is one more
    backward pass, at about two gradients of work. If it does not fit, the fastest of the other
    strategies that do is taken, all of which compute the same matrix: see
    `landscape.curvature.hvp.choice`. Running out of memory later has the same effect. Vectors,
    gradients and products leave out what the loss does not depend on; see
    `landscape.curvature.hvp.tables`. The parameters are copied, at the price of one n-vector, so
    that training on does not touch the operator; a batch that is changed in place makes the next
    product raise, or where no graph is kept changes it. Attention runs in its plain form
    (SDPBackend.MATH), as the fused kernels have no second derivative. The L2 term enters as an
    exact shift.

    A parameter that the loss does not depend on has a zero row and column. To autograd, "does not
    depend on" includes use under no_grad or after detach: that is what the loss says, and it is not
    refused unless it holds for all.

    Args:
        objective: Evaluated twice, to see that it is not random; global random state is restored.
        params: Parameters at which to differentiate: float32 or float64, on one device. Their order
            is the flat order.
        batch: Any nest of tensors that the objective takes, on the device of the parameters.
        hvp: "auto" chooses by trials with the first product. "retained", "rebuilt", "jvp" and
            "rows" ask for that strategy alone: double backward over a kept graph or one made for
            every product, forward mode over the gradient, or row chunks. "traced" records the
            product as a graph for all batches and checkpoints of one shape, "compiled" compiles it;
            both take long once and pay for many batches, see `landscape.curvature.hvp.traced`.
            Where the strategy asked for does not work, `choice` says why. The `choice` of an
            operator of the same model and batch size may also be given, which saves the trials.
        rows: Rows of the batch that the network sees at once, in exact row chunks, for a loss that
            may couple all rows. At most that many: fewer where memory asks for it.
        columns: Vectors multiplied by one batched pass. None is 1 on a CPU, where that is fastest
            (2.0 gradients a vector; 2.6 in blocks of 2, 2.9 in blocks of 5, at 0.6 M parameters),
            and on a GPU what is measured to be faster, as blocks pay where kernel launches rule.
            Memory grows with it.
        max_memory: Bytes that evaluations and products may take beside the parameters; None is what
            is free. On a CPU tensors get two fifths of it, because the heap that they live in may
            need the rest.
        allow_tf32: Round the factors of matrix products and convolutions to 10 bits on a GPU that
            can.
        check: Hold the first product against differences of gradients, and the gradient against
            differences of the loss, once per model, loss and structure of the batch, at two
            gradients, or some eight where a network in float32 has kinks, as ReLUs do, and is taken
            to float64; see `landscape.curvature.audits.spot_check`. Or the `check_made` of an
            operator of the same loss at other weights. It is taken over where the loss does the
            same operations and products are computed by the same strategy.

    Attributes:
        support: Flat indices of the entries that the loss depends on: all but unused parameters and
            the rows of embedding tables that the batch does not look up, whose curvature is exactly
            zero. None if that is all of them. The vector is made when it is read; `support_runs`
            holds the same as runs.
        loss: Value of the objective, the L2 term included, in nats.
        params: The copies, without gradients.
        num_params: n, the number of entries of the parameters.
        spot_check: Result of the check of the first product; None before it.

    Raises:
        ObjectiveError: If the loss is not one finite, deterministic, twice differentiable number;
            see `check_twice_differentiable` and `landscape.curvature.guards.graph`. If row chunks
            are asked for and rows are coupled inside the network; see `RowChunks`.
        MemoryLimitError: If no strategy fits in memory.
        ValueError: If an option is invalid.

    Examples:
        >>> import torch, landscape
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> batch = torch.randn(32, 4), torch.randn(32, 1)
        >>> def loss(model, batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        ...
        >>> from landscape.curvature import select_parameters
        >>> objective = landscape.Objective.from_closure(model, loss)
        >>> H = landscape.HessianOperator(objective, select_parameters(model), batch)
        >>> (H @ torch.ones(H.n)).shape
        torch.Size([49])
    """

    @renamed_keyword("product", "hvp")
    def __init__(
        self,
        objective: Objective,
        params: Params,
        batch: Batch,
        *,
        hvp: str | HvpChoice = "auto",
        rows: int | None = None,
        columns: int | None = None,
        max_memory: int | None = None,
        allow_tf32: bool = False,
        check: bool | EarlierCheck = True,
    ) -> None:
        self.spot_check: SpotCheck | None = None if check else NOT_ASKED
        self._earlier = check if isinstance(check, EarlierCheck) else None
        self._check_made: EarlierCheck | None = None
        # Gradients without their graph, and a hash of it, for the check alone.
        self._gradients: dict[str, Tensor | None] = {}
        self._operations = 0
        super().__init__(
            objective,
            params,
            batch,
            hvp=hvp,
            rows=rows,
            columns=columns,
            max_memory=max_memory,
            allow_tf32=allow_tf32,
        )

    def _describe(self, evaluated: Evaluated) -> None:
        super()._describe(evaluated)
        if self.spot_check is None:
            # They share the memory of those that are kept.
            self._gradients = {
                name: None if g is None else g.detach()
                for name, g in zip(evaluated.problem.leaves, evaluated.gradients)
            }
            self._operations = evaluated.operations

    def check(self) -> SpotCheck:
        """Compare a product with differences, unless that was done.

        Raises:
            ObjectiveError: If it is no second derivative of the loss, or the gradient no first one.
            MemoryLimitError: As in `matmat`.
        """
        if self.spot_check is None:
            # A random vector reaches every entry, so that no block of the Hessian goes untested.
            size = sum(tensor.numel() for tensor in self._reduced.values())
            rows = torch.randn(1, size, generator=seeded(0), dtype=torch.float64).to(
                self.device, self.dtype
            )
            products = torch.empty_like(rows)
            self._engine.multiply(rows, products)
            self._check(rows, products)
        assert self.spot_check is not None
        return self.spot_check

    def _check(self, rows: Float[Tensor, "k r"], products: Float[Tensor, "k r"]) -> None:
        choice = self._engine.choice
        assert choice is not None
        strategy = choice.product, choice.rows
        if self._earlier is not None and self._earlier.holds_for(strategy, self._operations):
            self.spot_check, self._check_made = self._earlier.verdict, self._earlier
        else:
            self.spot_check = checked_before(self._problem, strategy, self._operations)
            if self.spot_check is None:
                self.spot_check = spot_checked(self._first_product(rows, products, strategy))
            self._check_made = EarlierCheck(self.spot_check, strategy, self._operations)
        self._gradients = {}

    def _first_product(
        self,
        rows: Float[Tensor, "k r"],
        products: Float[Tensor, "k r"],
        strategy: tuple[str, int | None],
    ) -> FirstProduct:
        return FirstProduct(
            self._problem,
            [self._whole_gradient(name) for name in self.params],
            rows,
            products,
            strategy=strategy,
            operations=self._operations,
            extended=self._extended,
        )

    def _whole_gradient(self, name: str) -> Tensor | None:
        """Return the gradient by a parameter.

        It is zero for the rows of a table that are not looked up.
        """
        gradient, whole = self._gradients.get(name), self.params[name]
        if gradient is None or gradient.shape == whole.shape:
            return gradient
        # The loss does not depend on the other rows, so their gradient is exactly zero.
        return torch.zeros_like(whole).index_copy_(0, self._looked_up[name], gradient)

    @property
    def check_made(self) -> EarlierCheck | None:
        """Return the check that was made; None where none was.

        It can be given as `check` to an operator of the same loss at other weights.
        """
        return self._check_made

    @property
    def checked(self) -> str:
        return "" if self.spot_check is None else str(self.spot_check)

    def _judge(self, rows: Float[Tensor, "k r"], products: Float[Tensor, "k r"]) -> None:
        super()._judge(rows, products)
        if self.spot_check is None and rows.any():
            # Sparse vectors test only some columns of the Hessian; a random one is then checked
            # instead.
            if is_general(rows, self._places):
                self._check(rows, products)
            else:
                self.check()

    def product_errors(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return product_errors(self, self._at, self.params, v)

    def _at(self, params: Params) -> "HessianOperator":
        problem = self._problem
        # The same strategy, so that rounding is that of the same operations.
        hvp = self.choice or "auto"
        options = {"allow_tf32": problem.allow_tf32, "check": False}
        return HessianOperator(problem.objective, params, problem.batch, hvp=hvp, **options)


@renamed_keyword("product", "hvp")
def hessian(
    model: nn.Module,
    loss: Callable[[Any, Batch], Tensor],
    batch: Batch,
    *,
    parameters: str | Sequence[str] = "all",
    weight_decay: float = 0.0,
    hvp: str | HvpChoice = "auto",
    max_memory: int | None = None,
    check: bool = True,
) -> HessianOperator:
    """Build the Hessian of `loss(model, batch)` by the model's parameters.

    Args:
        model: Any module, in eval mode. It is not modified and its later training does not change
            the operator.
        loss: Returns one number, in nats by convention; may use the model in any way.
        batch: Batch that `loss` takes: any nest of tensors.
        parameters: "all" or shell patterns over the names of the parameters that require gradients,
            as "visual.*". The flat order is that of model.named_parameters().
        weight_decay: Adds weight_decay / 2 * |parameters|^2 to the loss.
        hvp, max_memory: As in HessianOperator. Row chunks need the network and the loss apart,
            so an Objective.
        check: Hold the first product against differences, and refuse one that is no second
            derivative of the loss. False turns that off; results say which it was.

    Raises:
        ObjectiveError: If the loss has no Hessian that could be trusted; the message says why and
            what to do. An error that the first product shows is raised by that product.
    """
    objective = Objective.from_closure(model, loss, weight_decay=weight_decay)
    return HessianOperator(
        objective,
        select_parameters(model, parameters),
        batch,
        hvp=hvp,
        max_memory=max_memory,
        check=check,
    )


def gradient(objective: Objective, params: Params, batch: Batch) -> Float[Tensor, " n"]:
    """Compute the gradient of the objective, in nats per parameter.

    The L2 term is included. Entries are zero where the loss does not reach.

    Computed as in `HessianOperator`, with plain attention, so that its differences can be compared
    with products.

    Raises:
        ObjectiveError: If the loss is not one finite number that depends on the parameters and
            leaves them as they are, or an embedding edits its gradient.
    """
    reached = reached_gradients(objective, params, batch)
    flat = flatten(
        {
            name: reached[name] if name in reached else torch.zeros_like(tensor)
            for name, tensor in params.items()
        }
    )
    # The gradient of weight_decay / 2 * |x|^2 is weight_decay * x.
    return (
        flat.add_(flatten(params).detach(), alpha=objective.weight_decay)
        if objective.weight_decay
        else flat
    )


def reached_gradients(objective: Objective, params: Params, batch: Batch) -> Params:
    """Compute the gradient of the objective without its L2 term, by name.

    Parameters that the loss does not reach are left out, as a loop leaves their `.grad` at None.

    Raises:
        ObjectiveError: As in `gradient`.
    """
    leaves = checked_leaves(objective, params, batch, copy=False)
    with as_differentiated():
        with module_timeline(objective.module) as timeline, reading_only(leaves):
            loss = objective.data_term(leaves, batch)
        check_loss(loss, batch, dtype=loss.dtype)
        refuse_edited_gradients([loss], leaves, timeline)
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {name: slope for name, slope in zip(leaves, gradients) if slope is not None}
