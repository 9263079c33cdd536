"""Processes that hold parts of one model, and what they exchange: numbers and tensors.

Imports torch.distributed, so nothing here is loaded without a mesh.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from landscape.errors import ObjectiveError
from landscape.sharded.steps import FRAME, Request, Steps, kind_of

_SAME_MODEL = (
    "All must hold the same model and pass rows of one batch. Build the model from the same seed "
    "or checkpoint in every process."
)
# The newer name, from torch 2.14 on.
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class Processes(Steps):
    """The processes of a mesh with one dimension.

    See `Steps` for the arguments, the attributes and the errors.
    """

    # --- numbers ----------------------------------------------------------------------------------

    def total(self, numbers: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Sum over the processes, with the same bits in all.

        The order of the sum is that of the processes.
        """
        if not numbers.size or self.size == 1:
            return numbers
        flat = np.ascontiguousarray(numbers, dtype=np.float64).reshape(-1)
        name = f"a sum of {len(flat)} numbers over the processes"
        few = len(flat) <= FRAME
        parts = (
            self._frames(name, flat.tolist())
            if few
            else self._gathered(torch.from_numpy(flat), name).numpy()
        )
        # One after the other: floating-point sums depend on their order.
        total = parts[0].copy()
        for part in parts[1:]:
            total += part
        return np.asarray(total.reshape(np.shape(numbers)))

    def each(self, numbers: Sequence[int]) -> np.ndarray:
        """Gather the integers of all processes (processes, numbers).

        There must be as many in each.
        """
        name = f"a list of {len(numbers)} numbers"
        return np.asarray(
            self._gathered(torch.tensor(list(numbers), dtype=torch.int64), name).numpy()
        )

    def largest(self, number: float) -> float:
        """Return the largest number of all processes."""
        return float(self._frames("the largest of all numbers", [number]).max())

    def any_of(self, flags: Tensor) -> Tensor:
        """Combine flags by "or" over all processes.

        The result is bool; flags have one shape in all.
        """
        united = flags.to("cpu", torch.uint8, copy=True)
        with self._exchange(f"flags {tuple(flags.shape)} of all processes"):
            dist.all_reduce(united, op=dist.ReduceOp.MAX, group=self._numbers)
        return united.bool()

    def from_first(self, own: Any) -> Any:
        """Send what process 0 passes to every process; collective.

        Any value that can be pickled.
        """
        self.meet("a message of process 0")
        return self._messages(own if self.rank == 0 else None)[0]

    def must_agree(self, own: Any, what: str, advice: str = _SAME_MODEL) -> None:
        """Refuse a value that differs between processes.

        Any Python value that can be compared.

        Args:
            what: Names it, in the plural.
            advice: What to do.

        Raises:
            ObjectiveError: In all processes, if it differs.
        """
        self.meet(f"the comparison of {what}")
        values = self._messages(own)
        for rank, value in enumerate(values):
            if value != values[0]:
                self._section.parted = True
                raise ObjectiveError(
                    f"Processes 0 and {rank} have different {what}: {_short(values[0])} and "
                    f"{_short(value)}. {advice}"
                )

    # --- tensors ----------------------------------------------------------------------------------

    def gather(
        self, part: Float[Tensor, "r ..."], name: str, request: Request | None = None
    ) -> Float[Tensor, "p ..."]:
        """Join the parts of all processes, one after the other.

        All have one shape. With one process, the result is a copy of the part.

        Args:
            name: Name of the step.
            request: Of what a registered lender in each process has the part, so that this process
                gets it also while the others are at another step.
        """
        part = part.contiguous()
        return self._joined(part, self._room_for(part), f"{name} {kind_of(part)}", request)

    def scatter_sum(self, whole: Float[Tensor, "p ..."], name: str) -> Float[Tensor, "r ..."]:
        """Sum over all processes, and return the part of this process.

        Args:
            name: Name of the step.
        """
        whole = whole.clone() if self.size == 1 else whole.contiguous()
        shape = (whole.shape[0] // self.size, *whole.shape[1:])
        part = (
            whole if self.size == 1 else torch.empty(shape, dtype=whole.dtype, device=whole.device)
        )
        with self._exchange(f"{name} {kind_of(whole)}"):
            if self.size > 1 and whole.numel():
                _reduce_scatter(part, whole, group=self.group)
        return part


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
