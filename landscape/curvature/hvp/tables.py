"""Reduction of embedding tables to the rows that a batch looks up.

Vectors and derivatives then have no entries for the other rows.

The loss of a batch does not depend on the other rows, so their rows and columns of the Hessian are
zero; in a small CLIP model they are 95 % of all parameters. Where the loss uses a table in another
way than by looking rows up, the table stays whole.
Shapes: n = total size of the parameters, r = rows that are looked up, s = entries of the reduced
parameters.
"""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from landscape.curvature.objective import Batch, Features, Objective, Params
from landscape.errors import ObjectiveError

# Attributes and methods that describe a table and do not read its entries.
_METADATA = {
    Tensor.shape.__get__,  # type: ignore[attr-defined]
    Tensor.dtype.__get__,  # type: ignore[attr-defined]
    Tensor.device.__get__,
    Tensor.layout.__get__,  # type: ignore[attr-defined]
    Tensor.ndim.__get__,  # type: ignore[attr-defined]
    Tensor.is_cuda.__get__,  # type: ignore[attr-defined]
    Tensor.size,
    Tensor.dim,
    Tensor.numel,
    Tensor.nelement,
    Tensor.is_floating_point,
    Tensor.is_complex,
    Tensor.__len__,
}


class TableInUse(ObjectiveError):
    """Error where a reduced table is used other than by looking up rows.

    The rows are those that it is reduced to.
    """


class TableRows(Tensor):
    """Stand-in for an embedding table, with its shape.

    `embedding` looks its rows up among the few that are there.

    Attributes:
        leaf: The rows that are there (r, width); the result of `embedding` depends on it.
        rows: Their indices in the table (r,), ascending; more indices than rows of the table mark
            padding.
        checks: Whether an index that is not among `rows` raises; off while a graph is traced, which
            cannot depend on values.
    """

    leaf: Tensor
    rows: Tensor
    checks: bool

    @classmethod
    def of(
        cls,
        leaf: Float[Tensor, "r w"],
        rows: Int64[Tensor, " r"],
        shape: torch.Size,
        *,
        checks: bool = True,
    ) -> "TableRows":
        """Stand in for a table of this shape."""
        # One number, repeated by strides of zero; what reads it past `__torch_function__` makes the
        # loss NaN, which is seen.
        table = (
            torch.full((), torch.nan, dtype=leaf.dtype, device=leaf.device)
            .expand(shape)
            .as_subclass(cls)
        )
        table.leaf, table.rows, table.checks = leaf, rows, checks
        return table

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.embedding:
            return _look_up(*args, **kwargs)
        if func in _METADATA:
            return super().__torch_function__(func, types, args, kwargs)
        raise TableInUse(f"an embedding table is used by {getattr(func, '__name__', func)}")


def _look_up(
    indices: Tensor,
    table: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Do what `torch.nn.functional.embedding` does, among the rows that are there.

    A padding row among them is refused before tables are reduced, so that `padding_idx` has no
    effect. What edits a gradient or makes a sparse one is left to the whole table, where it is
    refused.
    """
    edits = max_norm is not None or scale_grad_by_freq or sparse
    if not isinstance(table, TableRows) or isinstance(indices, TableRows) or edits:
        raise TableInUse("an embedding table is used as something else")
    # Rows are ascending, so a binary search turns indices of the table into places among them.
    places = torch.searchsorted(table.rows, indices.to(table.rows.dtype).contiguous())
    if table.checks:
        # An index above the last row gets the place len(rows). Clamped, it meets another row in the
        # comparison and is refused like every row that is missing.
        places = places.clamp(max=len(table.rows) - 1)
        if not torch.equal(table.rows[places], indices.to(table.rows.dtype)):
            raise TableInUse(
                "The batch looks up other rows of an embedding table than when the operator was "
                "built: it was changed in place. Build the operator on a copy."
            )
    return F.embedding(places, table.leaf)


@dataclass(frozen=True, eq=False)
class ReducedForward:
    """The forward pass of an objective as a function of reduced parameters.

    Attributes:
        forward: Forward pass of the objective.
        rows: Rows (r,) of every table that is reduced, by its name.
        shapes: Shapes of the whole tables.
        constants: Parameters that the loss does not depend on; leaf tensors that require gradients,
            as they are for the whole.
        checks: See `TableRows`.
    """

    forward: Callable[[Params, Batch], Features]
    rows: Mapping[str, Int64[Tensor, " r"]]
    shapes: Mapping[str, torch.Size]
    constants: Params
    checks: bool = True

    def __call__(self, params: Params, batch: Batch) -> Features:
        tables = {
            name: TableRows.of(params[name], rows, self.shapes[name], checks=self.checks)
            for name, rows in self.rows.items()
        }
        return self.forward({**self.constants, **params, **tables}, batch)


def reduction_of(objective: Objective) -> ReducedForward:
    """Return the reduction of an objective.

    It has no tables and constants where the objective is not reduced.
    """
    forward = objective.forward
    return forward if isinstance(forward, ReducedForward) else ReducedForward(forward, {}, {}, {})


def reduced(
    objective: Objective,
    leaves: Params,
    looked_up: Mapping[str, Int64[Tensor, " r"]],
    unused: Container[str],
) -> tuple[Objective, Params]:
    """Return the same loss as a function of reduced parameters.

    They are the rows that it looks up and the parameters that it depends on.

    Args:
        leaves: Leaf tensors that require gradients.
        looked_up: Rows of the tables that can be reduced; see `rows_looked_up`.
        unused: Names of parameters that the loss does not depend on.

    Returns:
        The objective, and new leaf tensors of the reduced tables among the given leaves of the
        others; both as given where
        there is nothing to reduce.
    """
    # Of a table that is looked up in full there is nothing to leave out.
    rows = {
        name: indices for name, indices in looked_up.items() if len(indices) < len(leaves[name])
    }
    idle = {name: leaf for name, leaf in leaves.items() if name in unused}
    if not rows and not idle:
        return objective, leaves
    kept = {name: leaf for name, leaf in leaves.items() if name not in idle}
    for name, indices in rows.items():
        kept[name] = leaves[name].detach().index_select(0, indices).requires_grad_()
    forward = ReducedForward(
        objective.forward,
        rows,
        {name: leaves[name].shape for name in rows},
        idle,
    )
    return replace(objective, forward=forward, rebound=None), kept
