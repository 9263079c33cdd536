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
from landscape.curvature.preconditions import (
    check_autocast,
    check_batch,
    check_parameters,
    check_twice_differentiable,
)
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
        self._problem = Problem(
            objective=objective, leaves=leaves, batch=batch, allow_tf32=allow_tf32
        )
        self._multiplier = Multiplier(
            self._problem, product=product, rows=rows, columns=columns, max_memory=max_memory
        )
        self._describe(self._multiplier.evaluate())

    # The parameters that derivatives are taken of, and vectors are multiplied for: see `landscape.curvature.tables`.
    _reduced: Params

    def _describe(self, evaluated: Evaluated) -> None:
        """Keep what the evaluation tells of the loss and of its support."""
        self.loss = evaluated.loss
        if self.weight_decay:
            self.loss += (
                0.5
                * self.weight_decay
                * float(squared_norm({k: v.double() for k, v in self.params.items()}))
            )
        self._looked_up = evaluated.looked_up
        self._reduced = {name: leaf.detach() for name, leaf in evaluated.problem.leaves.items()}
        dropped = self.params.keys() - self._reduced.keys()
        self._unused = unused_parameters(evaluated.problem.leaves, evaluated.gradients) | dropped
        self._entries = self._entries_of(tuple(self.params))
        support = support_indices(self.params, self._unused, self._looked_up)
        # Where the support lies among the entries that are multiplied; None where it is all of them.
        self._places = None if _same(support, self._entries) else _places(support, self._entries)
        # The L2 term reaches every row.
        self.support = None if self.weight_decay else support

    def choose(self) -> ProductChoice:
        """The `choice`, made now with a product of a random vector if there was none yet.

        Raises:
            ObjectiveError, MemoryLimitError: As `matmat`.
        """
        return self._multiplier.choose()

    def _entries_of(self, names: Sequence[str]) -> Int64[Tensor, " s"] | None:
        """The entries of some parameters that are multiplied, in that order; None for all of them."""
        whole = {name: self.params[name] for name in names}
        sizes = {name: len(tensor) for name, tensor in self._reduced.items() if tensor.ndim}
        tables = {
            name: rows for name, rows in self._looked_up.items() if sizes.get(name) == len(rows)
        }
        return support_indices(whole, whole.keys() - self._reduced.keys(), tables)

    def support_of(self, names: Sequence[str]) -> Int64[Tensor, " s"] | None:
        """The `support` of the diagonal block of some parameters, as indices of their entries in that order."""
        # The L2 term reaches every row.
        if self.weight_decay:
            return None
        return support_indices(
            {name: self.params[name] for name in names}, self._unused, self._looked_up
        )

    def multiply_block(
        self, names: Sequence[str], rows: Float[Tensor, "k b"], out: Float[Tensor, "k b"]
    ) -> bool:
        """Write the products of `rows` with the diagonal block of some parameters, without the L2 term.

        Returns:
            False where no graph is kept, or no longer because memory ran out; `out` is then to be filled in another way.

        Raises:
            ObjectiveError, MemoryLimitError: As `matmat`.
        """
        if self._unused.issuperset(names):
            out.zero_()
            return True
        entries = self._entries_of(names)
        if entries is None:
            return self._multiplier.multiply_block(names, rows, out)
        products = torch.empty(len(rows), len(entries), dtype=self.dtype, device=self.device)
        kept = [name for name in names if name in self._reduced]
        if not self._multiplier.multiply_block(kept, rows.index_select(1, entries), products):
            return False
        out.zero_().index_copy_(1, entries, products)
        return True

    @property
    def multiplier(self) -> Multiplier:
        """What computes products with vectors of the reduced parameters."""
        return self._multiplier

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
        """Multiply k vectors, the columns of V, `columns` at a time.

        Raises:
            ObjectiveError: If an operation turns out to have no second derivative, or a product is not finite; the first time
                also if the product is not the derivative of the gradient, or the gradient not that of the loss.
            MemoryLimitError: If memory ran out, and no other way fits.
        """
        rows = _plain_rows(V)
        if self._entries is None:
            products = self._multiplied(rows)
        else:
            products = torch.zeros(rows.shape, dtype=self.dtype, device=self.device)
            products.index_copy_(
                1, self._entries, self._multiplied(rows.index_select(1, self._entries))
            )
        if self.weight_decay:
            products.add_(rows, alpha=self.weight_decay)
        return products.T

    def matmat_in_support(self, V: Float[Tensor, "s k"]) -> Float[Tensor, "s k"]:
        assert not self.weight_decay, (
            "the L2 term reaches every row, so there is no support to be in"
        )
        if type(self).matmat is not UncheckedHessian.matmat:
            # A subclass has products of its own.
            return super().matmat_in_support(V)
        rows = _plain_rows(V)
        if self._places is None:
            return self._multiplied(rows).T
        size = self.n if self._entries is None else len(self._entries)
        whole = torch.zeros(len(rows), size, dtype=self.dtype, device=self.device).index_copy_(
            1, self._places, rows
        )
        return self._multiplied(whole).index_select(1, self._places).T

    def _multiplied(self, rows: Float[Tensor, "k r"]) -> Float[Tensor, "k r"]:
        """Multiply vectors of the reduced parameters, without the L2 term."""
        with torch.inference_mode(False):
            products = torch.empty(rows.shape, dtype=self.dtype, device=self.device)
            self._multiplier.multiply(rows, products)
        self._judge(rows, products)
        return products

    def _judge(self, rows: Float[Tensor, "k r"], products: Float[Tensor, "k r"]) -> None:
        """Refuse products without the L2 term that cannot be used."""
        if not torch.isfinite(products).all():
            raise ObjectiveError(_not_finite(rows, unflatten(products.sum(0), self._reduced)))

    def _extended(self, rows: Float[Tensor, "k r"]) -> Float[Tensor, "k n"]:
        """Vectors of the reduced parameters as those of all, zero elsewhere."""
        if self._entries is None:
            return rows
        return torch.zeros(len(rows), self.n, dtype=self.dtype, device=self.device).index_copy_(
            1, self._entries, rows
        )


def _plain_rows(V: Float[Tensor, "n k"]) -> Float[Tensor, "k n"]:
    """The columns of V as rows that can take part in what is differentiated, unlike inference tensors."""
    with torch.inference_mode(False):
        return (V.clone() if V.is_inference() else V.detach()).T


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return torch.equal(first, second)


def _places(
    support: Int64[Tensor, " s"] | None, entries: Int64[Tensor, " r"] | None
) -> Int64[Tensor, " s"] | None:
    """Where the indices of the support lie among those of the entries, all of which contain it."""
    assert support is not None, "a support of everything is multiplied as a whole"
    return support if entries is None else torch.searchsorted(entries, support)


def checked_leaves(objective: Objective, params: Params, batch: Batch, *, copy: bool) -> Params:
    """Leaf tensors with the values of `params`, once everything that can be checked before an evaluation holds."""
    check_parameters(params)
    device = next(iter(params.values())).device
    check_batch(batch, device)
    check_autocast(device)
    if objective.module is not None:
        check_twice_differentiable(objective.module)
    with torch.inference_mode(False):
        return {
            name: _leaf(tensor, copy=copy or tensor.is_inference())
            for name, tensor in params.items()
        }


def _leaf(tensor: Tensor, *, copy: bool) -> Tensor:
    return (tensor.detach().clone() if copy else tensor.detach()).requires_grad_()


def unused_parameters(leaves: Params, gradients: tuple[Tensor | None, ...]) -> frozenset[str]:
    """The parameters that the loss does not depend on."""
    return frozenset(name for name, gradient in zip(leaves, gradients) if gradient is None)


def support_indices(
    leaves: Params, unused: Container[str], looked_up: Params
) -> Int64[Tensor, " s"] | None:
    """The flat indices of the entries that the loss depends on; None if that is all of them."""
    kept, start = [], 0
    for name, leaf in leaves.items():
        if name in looked_up and name not in unused:
            width = leaf.numel() // max(1, leaf.shape[0])
            columns = torch.arange(start, start + width, device=leaf.device)
            kept.append((width * looked_up[name][:, None] + columns).reshape(-1))
        else:
            stop = start if name in unused else start + leaf.numel()
            kept.append(torch.arange(start, stop, device=leaf.device))
        start += leaf.numel()
    support = torch.cat(kept)
    return None if len(support) == start else support


def _not_finite(rows: Tensor, sums: Params) -> str:
    if not torch.isfinite(rows).all():
        return "A vector with infinite or NaN entries was multiplied. The Hessian is not to blame; look where it comes from."
    name = next(
        (name for name, total in sums.items() if not torch.isfinite(total).all()),
        "one of the parameters",
    )
    return (
        f"{name}: a product with the Hessian is not finite although the gradient is. The loss has no second derivative here; "
        "look for a power below 2, a norm or a square root at zero."
    )
