"""The Hessian of an objective on a batch, without a check by differences.

That check examines a doubtful product with operators of its own, which are of this class; all other
callers take HessianOperator.
Shapes: n = total size of the parameters, k = number of vectors.
"""

from collections.abc import Container, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from landscape.curvature.guards.preconditions import (
    check_autocast,
    check_batch,
    check_parameters,
    check_twice_differentiable,
)
from landscape.curvature.hvp.choice import HvpChoice
from landscape.curvature.hvp.engine import HvpEngine
from landscape.curvature.hvp.evaluation import Evaluated, Problem
from landscape.curvature.objective import Batch, Objective, Params, squared_norm, unflatten
from landscape.errors import ObjectiveError
from landscape.linalg.coordinates import Coordinates
from landscape.linalg.operator import SymmetricOperator
from landscape.linalg.vectors import all_finite


class UncheckedHessian(SymmetricOperator):
    """The Hessian of `objective` at `params` on `batch`, as a symmetric operator.

    It is in nats per squared parameter.

    Arguments, attributes and what is raised: see HessianOperator, of which only `check` and its
    consequences are missing.
    """

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
        self._engine = HvpEngine(
            self._problem, hvp=hvp, rows=rows, columns=columns, max_memory=max_memory
        )
        self._describe(self._engine.evaluate())

    # The parameters that derivatives are taken of, and vectors are multiplied for: see
    # `landscape.curvature.hvp.tables`.
    _reduced: Params

    def _describe(self, evaluated: Evaluated) -> None:
        """Store the loss and its support from the evaluation."""
        self.loss = evaluated.loss
        if self.weight_decay:
            # In float64: the sum of n squares would lose digits in float32.
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
        support = supported_coordinates(self.params, self._unused, self._looked_up)
        # Where the support lies among the entries that are multiplied; None where it is all of
        # them.
        self._places = None if support == self._entries else _places(support, self._entries)
        # The L2 term reaches every row.
        self.support = None if self.weight_decay else support

    def choose(self) -> HvpChoice:
        """Return the `choice`, made with a random vector if there was none.

        Raises:
            ObjectiveError, MemoryLimitError: As in `matmat`.
        """
        return self._engine.choose()

    def _entries_of(self, names: Sequence[str]) -> Coordinates | None:
        """Return the entries of some parameters that are multiplied.

        They are in the order of `names`; None for all of them.
        """
        whole = {name: self.params[name] for name in names}
        # A table that was reduced has as many rows as are looked up. One that stayed whole has
        # more, unless all of its rows are looked up.
        sizes = {name: len(tensor) for name, tensor in self._reduced.items() if tensor.ndim}
        tables = {
            name: rows for name, rows in self._looked_up.items() if sizes.get(name) == len(rows)
        }
        return supported_coordinates(whole, whole.keys() - self._reduced.keys(), tables)

    def support_of(self, names: Sequence[str]) -> Coordinates | None:
        """Return the `support` of the diagonal block of some parameters.

        Its indices are among their entries in that order.
        """
        # The L2 term reaches every row.
        if self.weight_decay:
            return None
        return supported_coordinates(
            {name: self.params[name] for name in names}, self._unused, self._looked_up
        )

    def multiply_block(
        self, names: Sequence[str], rows: Float[Tensor, "k b"], out: Float[Tensor, "k b"]
    ) -> bool:
        """Write the products of `rows` with a diagonal block.

        The block is that of some parameters, without the L2 term.

        Returns:
            False where no graph is kept, or no longer because memory ran out; `out` is then to be
            filled in another way.

        Raises:
            ObjectiveError, MemoryLimitError: As in `matmat`.
        """
        # The loss depends on none of them, so the block is zero.
        if self._unused.issuperset(names):
            out.zero_()
            return True
        entries = self._entries_of(names)
        if entries is None:
            return self._engine.multiply_block(names, rows, out)
        # Multiply the entries that the loss reaches, and leave the others zero.
        products = torch.empty(len(rows), len(entries), dtype=self.dtype, device=self.device)
        kept = [name for name in names if name in self._reduced]
        if not self._engine.multiply_block(kept, entries.select(rows, 1), products):
            return False
        entries.expand(products, out.shape[1], 1, out=out)
        return True

    @property
    def engine(self) -> HvpEngine:
        """Return the engine of products with vectors of the reduced parameters."""
        return self._engine

    @property
    def choice(self) -> HvpChoice | None:
        """Return how products are computed, and why; None before the first."""
        return self._engine.choice

    @property
    def module(self) -> nn.Module | None:
        """Return the model behind the loss, whose parameters were copied.

        None where the objective names none.
        """
        return self._problem.objective.module

    @property
    def parameter_names(self) -> tuple[str, ...]:
        return tuple(self.params)

    def unflatten(self, vector: Float[Tensor, " n"]) -> Params:
        """Split a vector by parameter name and shape, as views."""
        return unflatten(vector, self.params)

    def matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Multiply k vectors, the columns of V, `columns` at a time.

        Raises:
            ObjectiveError: If an operation turns out to have no second derivative, or a product is
                not finite; the first time also if the product is not the derivative of the
                gradient, or the gradient not that of the loss.
            MemoryLimitError: If memory ran out, and no other strategy fits.
        """
        rows = _plain_rows(V)
        if self._entries is None:
            products = self._multiplied(rows)
        else:
            products = self._extended(self._multiplied(self._entries.select(rows, 1)))
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
        # The entries that are multiplied may be more than the support. Rows and columns outside of
        # it are zero, so zeros are put there before and the products there are dropped.
        return self._places.select(self._multiplied(self._places.expand(rows, size, 1)), 1).T

    def _multiplied(self, rows: Float[Tensor, "k r"]) -> Float[Tensor, "k r"]:
        """Multiply vectors of the reduced parameters, without the L2 term."""
        with torch.inference_mode(False):
            products = torch.empty(rows.shape, dtype=self.dtype, device=self.device)
            self._engine.multiply(rows, products)
        self._judge(rows, products)
        return products

    def _judge(self, rows: Float[Tensor, "k r"], products: Float[Tensor, "k r"]) -> None:
        """Refuse products without the L2 term that cannot be used."""
        if not all_finite(products):
            # The sum over the vectors is not finite wherever one of them is not.
            raise ObjectiveError(_not_finite(rows, unflatten(products.sum(0), self._reduced)))

    def _extended(self, rows: Float[Tensor, "k r"]) -> Float[Tensor, "k n"]:
        """Extend vectors of the reduced parameters to all, with zeros elsewhere."""
        return rows if self._entries is None else self._entries.expand(rows, self.n, 1)


def _plain_rows(V: Float[Tensor, "n k"]) -> Float[Tensor, "k n"]:
    """Return the columns of V as rows that can be differentiated.

    Inference tensors cannot take part in that and are copied.
    """
    with torch.inference_mode(False):
        return (V.clone() if V.is_inference() else V.detach()).T


def _places(support: Coordinates | None, entries: Coordinates | None) -> Coordinates:
    """Return the places of the support among the entries, which contain it."""
    assert support is not None, "a support of everything is multiplied as a whole"
    return support if entries is None else support.places_in(entries)


def checked_leaves(objective: Objective, params: Params, batch: Batch, *, copy: bool) -> Params:
    """Check all that can be checked before an evaluation, and return leaves.

    The leaf tensors have the values of `params`.
    """
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
    """Name the parameters that the loss does not depend on."""
    return frozenset(name for name, gradient in zip(leaves, gradients) if gradient is None)


def supported_coordinates(
    leaves: Params, unused: Container[str], looked_up: Params
) -> Coordinates | None:
    """Return the flat coordinates that the loss depends on; None for all."""
    starts, stops, start = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)], 0
    for name, leaf in leaves.items():
        if name in looked_up and name not in unused:
            # A row of a table is a run of `width` neighbouring entries of the flat vector.
            width = leaf.numel() // max(1, leaf.shape[0])
            starts.append(start + width * looked_up[name].to("cpu", torch.int64).numpy())
            stops.append(starts[-1] + width)
        elif name not in unused:
            starts.append(np.array([start]))
            stops.append(np.array([start + leaf.numel()]))
        start += leaf.numel()
    device = next(iter(leaves.values())).device
    support = Coordinates(np.concatenate(starts), np.concatenate(stops), device)
    return None if len(support) == start else support


def _not_finite(rows: Tensor, sums: Params) -> str:
    if not all_finite(rows):
        return (
            "A vector with infinite or NaN entries was multiplied. The Hessian is not to blame; "
            "look where it comes from."
        )
    name = next(
        (name for name, total in sums.items() if not all_finite(total)), "one of the parameters"
    )
    return (
        f"{name}: a product with the Hessian is not finite although the gradient is. The loss has "
        "no second derivative here; look for a power below 2, a norm or a square root at zero."
    )
