"""Trials of strategies: each computes a product within a limit of memory.

Shapes: n = total size of the parameters, c = vectors multiplied at once.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.curvature.guards.preconditions import describe_batch
from landscape.curvature.hvp.choice import SHARE, HvpChoice, Trial
from landscape.curvature.hvp.evaluation import Problem
from landscape.curvature.hvp.memory import (
    MemoryWatch,
    forget_failed_backward,
    free_memory,
    is_out_of_memory,
)
from landscape.curvature.hvp.products import Product
from landscape.errors import first_line

# A first evaluation tells whether memory has to be watched at all: products took at most 4.6 times
# as much, and a few vectors.
_AMPLE_EVALUATIONS, _AMPLE_VECTORS = 8, 16
_MIB = 2**20
_OPAQUE = (
    "or give the network and the loss apart, as landscape.Objective(forward, loss), so that rows "
    "can be taken in chunks"
)

_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class Candidate:
    """A strategy to try: its name, how it is made, and the rows of its chunks."""

    name: str
    make: Callable[[], Product]
    rows: int | None = None


@dataclass(frozen=True, eq=False)
class Fitting:
    """A strategy that has computed the product `out`."""

    strategy: Product
    out: Tensor
    trial: Trial
    seconds: float
    peak: int


class Trials:
    """The strategies tried on a batch, and the memory that they may take.

    Args:
        max_memory: Bytes that products may take beside the parameters; None for what is free.

    Attributes:
        free: Bytes that were free at first.
        watch: Watches the memory of tensors.
        watches: Whether anything is watched: not where memory is ample.
        made: The trials, in order.
    """

    def __init__(self, device: torch.device, *, max_memory: int | None) -> None:
        self._device = device
        self.free = free_memory(self._device)
        self._share = SHARE.get(self._device.type, min(SHARE.values()))
        self.watch = MemoryWatch(int(self._share * (max_memory or self.free)))
        self.watches = True
        self.made: list[Trial] = []

    def fit(self, given: HvpChoice, *, limited: bool) -> bool:
        """Tell whether a choice of another operator fits here.

        It does if it was made within a limit that is no larger than this one, or if its peak was
        counted and is within this one.
        """
        # A peak of 0 was not counted: memory was ample there.
        peak, limit = given.peak, self.watch.limit
        return peak <= self.free and (not limited or given.limit <= limit or 0 < peak <= limit)

    def watched(self) -> AbstractContextManager[Any]:
        """Return the memory watch, or nothing where memory is ample."""
        return self.watch if self.watches else nullcontext()

    def guard(self, problem: Problem) -> AbstractContextManager[Any]:
        """Return the memory watch for an evaluation.

        After the first evaluation it watches nothing if memory is ample for what follows.
        """
        n = sum(leaf.numel() for leaf in problem.leaves.values())
        ample = (
            _AMPLE_EVALUATIONS * self.watch.peak + _AMPLE_VECTORS * n * problem.like.element_size()
        )
        if self.watch.peak and ample < self.watch.limit:
            self.watches = False
        return self.watched()

    def guarded(
        self,
        name: str,
        rows: int | None,
        make: Callable[[], _T],
        *,
        optional: bool = False,
        watched: bool = True,
    ) -> _T | None:
        """Call `make` within the memory limit.

        Returns None, and notes the failure as a trial, where memory runs out.

        Args:
            optional: Whether any other error, too, only rules this strategy out.
            watched: Whether to watch the memory here; False where `make` does so itself.
        """
        # What `make` allocates is dropped with the exception, before the next strategy begins.
        try:
            with self.watched() if watched else nullcontext():
                return make()
        except Exception as error:
            if is_out_of_memory(error):
                failure = "does not fit in memory"
            elif optional:
                failure = first_line(error)
            else:
                raise
        forget_failed_backward(self._device)
        self.made.append(Trial(product=name, rows=rows, failure=failure))
        return None

    def attempt(self, candidate: Candidate, rows: Float[Tensor, "c n"]) -> Fitting | None:
        """Let a strategy compute products under the memory watch.

        Returns None, and notes the failure as a trial, where it does not fit or fails.
        """
        out = torch.empty_like(rows)

        def compute() -> tuple[Product, float]:
            strategy = candidate.make()
            begun = self.clock()
            strategy.multiply(rows, out)
            return strategy, self.clock() - begun

        # Measure the peak of this trial alone.
        self.watch.peak = self.watch.live
        made = self.guarded(
            candidate.name,
            candidate.rows,
            compute,
            optional=candidate.name not in ("retained", "rebuilt"),
        )
        if made is None:
            return None
        strategy, seconds = made
        if self._device.type == "cuda":
            # The first product also pays for what is set up once.
            begun = self.clock()
            strategy.multiply(rows, out)
            seconds = self.clock() - begun
        peak = self.watch.peak if self.watches else 0
        trial = Trial(
            product=candidate.name,
            rows=candidate.rows,
            seconds=float(f"{seconds / len(rows):.3g}"),
            mebibytes=peak // _MIB,
        )
        self.made.append(trial)
        return Fitting(strategy, out, trial, seconds, peak)

    def seconds_of(self, product: str) -> float | None:
        """Return the seconds for a vector in the last trial of a strategy."""
        return next(trial.seconds for trial in reversed(self.made) if trial.product == product)

    def clock(self) -> float:
        """Read the clock of this process on a CPU; that of the device elsewhere."""
        if self._device.type != "cuda":
            # Time of this process, which others on the machine do not lengthen.
            return time.process_time()
        # Kernels run asynchronously, so wait for them before the time is read.
        torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def check_free(self, needed: int) -> None:
        """Check that the memory for the next product is free.

        This is for a CPU, where no allocation fails. Only products that take a large part of it are
        checked.

        Raises:
            MemoryError: If it is not.
        """
        if self._device.type != "cpu":
            return
        if needed > self.free // 8 and needed > free_memory(self._device):
            raise MemoryError(f"{needed:,} bytes are needed and not free")

    def lower_limit(self) -> None:
        """Watch from now on, within what is free now.

        Less may be free than when the limit was set.
        """
        self.watches = True
        self.watch.limit = min(
            self.watch.limit, self.watch.live + int(self._share * free_memory(self._device))
        )

    def reason(self, best: Fitting, num_fitting: int, *, asked: str, why: str) -> str:
        """Say why a strategy is used.

        Args:
            asked: The strategy asked for, or "auto".
            why: Why it was asked for.
        """
        failures = {
            f"{trial.product}: {trial.failure}"
            for trial in self.made
            if trial.failure and trial.product != best.trial.product
        }
        others = f" ({'; '.join(sorted(failures))})" if failures else ""
        if best.trial.product == asked:
            return f"{why}{others}"
        if best.trial.product == "retained" and num_fitting == 1:
            return f"its graph fits in memory{others}"
        return (
            f"the fastest of {num_fitting} strategies that fit"
            if num_fitting > 1
            else "it fits in memory"
        ) + others

    def nothing_fits(self, problem: Problem) -> str:
        """Say what was tried, and what to do."""
        tried = [
            f"{trial.product}{f' of {trial.rows}' if trial.rows else ''} ({trial.failure})"
            for trial in self.made
            if trial.failure
        ]
        smaller = "select fewer parameters, or take smaller batches"
        return (
            "Products with the Hessian do not fit in memory: "
            f"{self.watch.limit / self._share / _MIB:.0f} MiB are allowed for the batch "
            f"{describe_batch(problem.batch)}, and these were tried: {', '.join(tried)}. "
            f"Allow or free more memory, {smaller if problem.objective.rowwise else _OPAQUE}."
        )
