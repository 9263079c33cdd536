"""Spectra of the batches of a unit in lockstep; see `landscape.curvature.hvp.lockstep`."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from landscape.curvature import hvp
from landscape.pipeline.session import Failure, try_measure

if TYPE_CHECKING:
    from landscape.curvature import HessianOperator
    from landscape.linalg import EigenPairs

# Devices and strategies for which batches are measured together; on a CPU this is no faster.
DEVICES = {"cuda"}
STRATEGIES = ("traced", "traced-replayed")
# Seconds of a unit, which are lost if a run is interrupted. Without lockstep, units of one process
# have a single batch.
UNIT_SECONDS = 10.0


def measure_in_lockstep(
    indices: Sequence[int],
    *,
    operator: "Callable[[int], HessianOperator]",
    solve: "Callable[[int, HessianOperator], EigenPairs]",
    record: "Callable[[int, EigenPairs, HessianOperator, float], Any]",
    num_vectors: int,
    contained: bool,
) -> list[Any]:
    """Measure batches together, as many at a time as fit in memory.

    Args:
        operator: Builds the operator of a batch.
        record: Also takes the CPU seconds of the batch: its share of those of all batches measured
            with it.
        num_vectors: Krylov vectors that a batch is expected to need.
        contained: As `try_measure`.

    Returns:
        The record of each batch, or its `Failure`.
    """
    results: dict[int, Any] = {}
    waiting = list(indices)
    while waiting:
        begun, size = time.process_time(), 1
        lot: dict[int, HessianOperator] = {}
        while waiting and len(lot) < size:
            index = waiting.pop(0)
            made = try_measure(partial(operator, index), contained=contained)
            if isinstance(made, Failure):
                results[index] = made
                continue
            if not lot:
                num_fitting = try_measure(
                    partial(hvp.batches_that_fit, made, num_vectors=num_vectors), contained=True
                )
                size = num_fitting if isinstance(num_fitting, int) else 1
            lot[index] = made
        outcomes = _solved(lot, solve)
        seconds = (time.process_time() - begun) / max(1, len(lot))
        for (index, hessian), outcome in zip(lot.items(), outcomes):
            results[index] = try_measure(
                partial(_recorded, record, index, outcome, hessian, seconds), contained=contained
            )
    return [results[index] for index in indices]


def _solved(
    lot: "dict[int, HessianOperator]", solve: "Callable[[int, HessianOperator], EigenPairs]"
) -> "list[EigenPairs | Exception]":
    indices, operators = list(lot), list(lot.values())
    try:
        return hvp.solve_in_lockstep(
            operators, lambda place, hessian: solve(indices[place], hessian)
        )
    # Batches that share no graph are solved separately; other errors of a batch are raised there.
    except Exception:
        return [_attempted(partial(solve, index, hessian)) for index, hessian in lot.items()]


def _attempted(solve: "Callable[[], EigenPairs]") -> "EigenPairs | Exception":
    try:
        return solve()
    except Exception as error:
        return error


def _recorded(
    record: Callable[..., Any],
    index: int,
    outcome: Any,
    operator: "HessianOperator",
    seconds: float,
) -> Any:
    if isinstance(outcome, Exception):
        raise outcome
    return record(index, outcome, operator, seconds)
