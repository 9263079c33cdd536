"""The Hessian of an objective on one batch, without the check of its products against differences.

That check examines a doubtful product with operators of its own, which are of this class; everybody else takes HessianOperator.
Shapes: n = total size of the parameters, k = number of vectors.
"""

from collections.abc import Container, Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from landscape.curvature.choice import Multiplier, ProductChoice
from landscape.curvature.evaluation import Evaluated, Problem
from landscape.curvature.objective import Batch, Objective, Params, squared_norm, unflatten
from landscape.curvature.preconditions import check_autocast, check_batch, check_parameters, check_twice_differentiable
from landscape.errors import ObjectiveError
from landscape.linalg.operator import SymmetricOperator


class UncheckedHessian(SymmetricOperator):
    """Multiply with the Hessian of `objective` at `params` on `batch`, in nats per squared parameter.

    Arguments, attributes and what is raised: see HessianOperator, of which only `check` and its consequences are missing.
    """

    def __init__(
        self,
        objective: Objective,
        params: Params,
        batch: Batch,
        *,
        product: str | ProductChoice = "auto",
        rows: int | None = None,
        columns: int | None = None,
        max_memory: int | None = None,
        allow_tf32: bool = False,
    ) -> None:
        leaves = checked_leaves(objective, params, batch, copy=True)
        first = next(iter(leaves.values()))
        self.dtype, self.device = first.dtype, first.device
        self.params = {name: leaf.detach() for name, leaf in leaves.items()}
        self.n = self.num_params = sum(leaf.numel() for leaf in leaves.values())
        self.weight_decay = objective.weight_decay
        self._problem = Problem(objective=objective, leaves=leaves, batch=batch, allow_tf32=allow_tf32)
        self._multiplier = Multiplier(self._problem, product=product, rows=rows, columns=columns, max_memory=max_memory)
        self._describe(self._multiplier.evaluate())

    def _describe(self, evaluated: Evaluated) -> None:
        """Keep what the evaluation tells of the loss and of its support."""
        self.loss = evaluated.loss
        if self.weight_decay:
            self.loss += 0.5 * self.weight_decay * float(squared_norm({k: v.double() for k, v in self.params.items()}))
        self._looked_up = evaluated.looked_up
        self._unused = unused_parameters(self._problem.leaves, evaluated.gradients)
        self.support = self.support_of(tuple(self.params))

    def choose(self) -> ProductChoice:
        """The `choice`, made now with a product of a random vector if there was none yet.

        Raises:
            ObjectiveError, MemoryLimitError: As `matmat`.
        """
        return self._multiplier.choose()

    def support_of(self, names: Sequence[str]) -> Int64[Tensor, " s"] | None:
        """The `support` of the diagonal block of some parameters, as indices of their entries in that order."""
        # The L2 term reaches every row.
        if self.weight_decay:
            return None
        return support_indices({name: self.params[name] for name in names}, self._unused, self._looked_up)

    def multiply_block(self, names: Sequence[str], rows: Float[Tensor, "k b"], out: Float[Tensor, "k b"]) -> bool:
        """Write the products of `rows` with the diagonal block of some parameters, without the L2 term.

        Returns:
            False where no graph is kept, or no longer because memory ran out; `out` is then to be filled in another way.

        Raises:
            ObjectiveError, MemoryLimitError: As `matmat`.
        """
        if self._unused.issuperset(names):
            out.zero_()
            return True
        return self._multiplier.multiply_block(names, rows, out)

    @property
    def choice(self) -> ProductChoice | None:
        """How products are computed, and why; None before the first."""
        return self._multiplier.choice

    @property
    def parameter_names(self) -> tuple[str, ...]:
        return tuple(self.params)

    def unflatten(self, vector: Float[Tensor, " n"]) -> Params:
        """The entries of a vector by parameter name and shape, as views."""
        return unflatten(vector, self.params)

    def matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Multiply k vectors, the columns of V, `columns` at a time."""
        with torch.inference_mode(False):
            # An inference tensor cannot take part in what is differentiated.
            rows = (V.clone() if V.is_inference() else V.detach()).T
            products = torch.empty(rows.shape, dtype=self.dtype, device=self.device)
            self._multiplier.multiply(rows, products)
        self._judge(rows, products)
        if self.weight_decay:
            products.add_(rows, alpha=self.weight_decay)
        return products.T

    def _judge(self, rows: Float[Tensor, "k n"], products: Float[Tensor, "k n"]) -> None:
        """Refuse products without the L2 term that cannot be used."""
        if not torch.isfinite(products).all():
            raise ObjectiveError(_not_finite(rows, unflatten(products.sum(0), self.params)))


def checked_leaves(objective: Objective, params: Params, batch: Batch, *, copy: bool) -> Params:
    """Leaf tensors with the values of `params`, once everything that can be checked before an evaluation holds."""
    check_parameters(params)
    device = next(iter(params.values())).device
    check_batch(batch, device)
    check_autocast(device)
    if objective.module is not None:
        check_twice_differentiable(objective.module)
    with torch.inference_mode(False):
        return {name: _leaf(tensor, copy=copy or tensor.is_inference()) for name, tensor in params.items()}


def _leaf(tensor: Tensor, *, copy: bool) -> Tensor:
    return (tensor.detach().clone() if copy else tensor.detach()).requires_grad_()


def unused_parameters(leaves: Params, gradients: tuple[Tensor | None, ...]) -> frozenset[str]:
    """The parameters that the loss does not depend on."""
    return frozenset(name for name, gradient in zip(leaves, gradients) if gradient is None)


def support_indices(leaves: Params, unused: Container[str], looked_up: Params) -> Int64[Tensor, " s"] | None:
    """The flat indices of the entries that the loss depends on; None if that is all of them."""
    kept, start = [], 0
    for name, leaf in leaves.items():
        entries = torch.arange(start, start + leaf.numel(), device=leaf.device)
        if name in unused:
            entries = entries[:0]
        elif name in looked_up:
            entries = entries.view(leaf.shape[0], -1)[looked_up[name]].reshape(-1)
        kept.append(entries)
        start += leaf.numel()
    support = torch.cat(kept)
    return None if len(support) == start else support


def _not_finite(rows: Tensor, sums: Params) -> str:
    if not torch.isfinite(rows).all():
        return "A vector with infinite or NaN entries was multiplied. The Hessian is not to blame; look where it comes from."
    name = next((name for name, total in sums.items() if not torch.isfinite(total).all()), "one of the parameters")
    return (
        f"{name}: a product with the Hessian is not finite although the gradient is. The loss has no second derivative here; "
        "look for a power below 2, a norm or a square root at zero."
    )
