"""The loss of a batch whose rows are spread over processes.

It is a function of this process's pieces of the weights.

Shapes: b = rows of the batch in this process.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from landscape.curvature.objective import Batch, Features, Objective, Params
from landscape.errors import ObjectiveError
from landscape.sharded.gathering import gathered
from landscape.sharded.layout import Cut
from landscape.sharded.lent import CutWeights
from landscape.sharded.processes import Processes


def part_of_objective(
    objective: Objective, weights: CutWeights, counts: tuple[int, ...]
) -> Objective:
    """Build this process's part of an objective of all rows.

    It has no L2 term. The parts add up to the whole.

    Of a loss that is opaque, and therefore a mean over rows, the mean over the rows here, times
    their share of all rows. Of an objective with features by row, the loss of the features of all
    rows, which are gathered, divided by the number of processes: every process computes all of it.

    Args:
        weights: Where the parameters of the objective come from.
        counts: Rows of the batch in each process.
    """
    processes = weights.processes
    share = counts[processes.rank] / sum(counts)

    def forward(leaves: Params, batch: Batch) -> Features:
        return objective.forward(weights.lent(leaves), batch)

    def mean(features: Features, batch: Batch) -> Tensor:
        # The sum over processes of (b_i / b) * mean_i is the mean over all b rows.
        return _scaled(objective.loss(features, batch), share)

    def coupled(features: Features, batch: Batch) -> Tensor:
        # Every process computes the whole loss. Gathering adds up the processes' gradients, so each
        # takes the loss divided by their number.
        everything = tree_map(
            lambda leaf: _all_rows(leaf, counts, processes, "the features"), features
        )
        return _scaled(
            objective.loss(everything, _whole_batch(batch, counts, processes)), 1 / processes.size
        )

    loss = coupled if objective.rowwise else mean
    return replace(
        objective,
        forward=forward,
        loss=loss,
        weight_decay=0.0,
        rowwise=False,
        cut=None,
        rebound=None,
    )


def _scaled(loss: Any, factor: float) -> Any:
    # What is no tensor is refused later, by a message of its own.
    return loss * factor if isinstance(loss, Tensor) else loss


def _all_rows(leaf: Any, counts: tuple[int, ...], processes: Processes, name: str) -> Any:
    """Gather all processes' rows of a tensor with one entry a row."""
    if not isinstance(leaf, Tensor):
        return leaf
    if not leaf.ndim or len(leaf) != counts[processes.rank]:
        raise ObjectiveError(
            f"A tensor of {name} has the shape {tuple(leaf.shape)}, but this process has "
            f"{counts[processes.rank]} rows, so those of all processes cannot be put together. "
            "Give one entry for each row, in the first dimension."
        )
    cut = Cut(torch.Size((sum(counts), *leaf.shape[1:])), counts)
    return gathered(name, leaf, cut, processes)


class _WholeBatch(dict[Any, Any]):
    """A batch whose tensors are gathered from all processes when they are read."""

    def __init__(
        self, batch: Mapping[Any, Any], counts: tuple[int, ...], processes: Processes
    ) -> None:
        super().__init__(batch)
        self._gathered: dict[Any, Any] = {}
        self._given = counts, processes

    def __getitem__(self, key: Any) -> Any:
        if key not in self._gathered:
            own, (counts, processes) = super().__getitem__(key), self._given
            self._gathered[key] = _whole_batch(own, counts, processes)
        return self._gathered[key]

    def get(self, key: Any, default: Any = None) -> Any:
        return self[key] if key in self else default

    def values(self) -> Any:
        return [self[key] for key in self]

    def items(self) -> Any:
        return [(key, self[key]) for key in self]


def _whole_batch(batch: Batch, counts: tuple[int, ...], processes: Processes) -> Batch:
    """Gather the batch of all processes, as far as the loss reads it."""
    if isinstance(batch, Mapping):
        return _WholeBatch(batch, counts, processes)
    return tree_map(lambda leaf: _all_rows(leaf, counts, processes, "the batch"), batch)
