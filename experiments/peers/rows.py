"""One row per contender and setting: measured in a process of its own, judged in float64 once the
clocks have stopped.
"""

import importlib
import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from matrix_products import product_limit

from landscape.curvature import Batch, HessianOperator, Objective, Params, gradient
from peers.judge import arpack_values, krylov_dimension, true_residuals, value_errors
from peers.problem import Case, load, scan_backend
from peers.processes import TaskFailed, peak_mebibytes, run_task
from peers.solvers import CONTENDERS, TOL, Contender, K, Settings, solve


@dataclass(frozen=True)
class Truth:
    """What is known about a case in float64.

    Attributes:
        values: The K eigenvalues largest in magnitude, by ARPACK to 1e-10.
        krylov_products: Dimension of the first Krylov space that holds them to TOL: no run from
            that start needs fewer.
        gradient_seconds: CPU seconds of one float32 gradient, median.
        matrix_gradients: CPU time of the matrix products and convolutions of one float32 product
            alone, in gradients; both the shortest of several.
    """

    n: int
    loss: float
    values: list[float]
    arpack_products: int
    krylov_products: int
    gradient_seconds: float
    matrix_gradients: float

    @property
    def limit_gradients(self) -> float:
        """What no solver can beat: the matrix products of the smallest Krylov space that holds the
        pairs.
        """
        return self.krylov_products * self.matrix_gradients


@dataclass(frozen=True)
class Row:
    """One run of a contender.

    Attributes:
        mode: "defaults" or "driven", which is until a true residual of TOL.
        products: With the Hessian, checks included.
        cpu_seconds: From the objective to the pairs, building graphs included.
        prepare_cpu_seconds: What is done once for a model, child processes such as a compiler
            included; not in `cpu_seconds`.
        gradients: The same in gradients of the same process, measured before and after: noise of
            the machine cancels.
        peak_mebibytes: Of the process, libraries and weights (`idle_mebibytes`) included.
        residuals: True ones, relative, in float64, in the order of the contender's values.
        errors: Relative, of the five values against ARPACK in float64.
        says_converged: What the contender says; None if it does not.
        failure: Why there is no result, or empty.
    """

    model: str
    epoch: int
    contender: str
    mode: str
    settings: dict[str, Any]
    products: int = 0
    cpu_seconds: float = float("nan")
    prepare_cpu_seconds: float = 0.0
    gradients: float = float("nan")
    idle_mebibytes: float = float("nan")
    peak_mebibytes: float = float("nan")
    values: list[float] = field(default_factory=list)
    residuals: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    says_converged: bool | None = None
    failure: str = ""

    @property
    def worst_residual(self) -> float:
        return _worst(self.residuals)

    @property
    def worst_error(self) -> float:
        return _worst(self.errors)

    @property
    def worst(self) -> float:
        return max(self.worst_residual, self.worst_error)

    @property
    def is_right(self) -> bool:
        return not self.failure and self.worst <= TOL


def _worst(numbers: Sequence[float]) -> float:
    """The largest; infinite if there is none, or one is no number."""
    return max(
        (float("inf") if math.isnan(number) else number for number in numbers), default=float("inf")
    )


def gradient_seconds(
    objective: Objective, params: Params, batch: Batch, rounds: int = 5
) -> list[float]:
    """CPU seconds of one gradient, several times, after one that is not counted."""
    gradient(objective, params, batch)
    seconds = []
    for _ in range(rounds):
        begun = time.process_time()
        gradient(objective, params, batch)
        seconds.append(time.process_time() - begun)
    return seconds


def truth_task(case: dict[str, Any], k: int = K, tol: float = TOL) -> dict[str, Any]:
    """The fields of a Truth."""
    torch.set_num_threads(1)
    which = Case(**case)
    with scan_backend(which.scan):
        single = load(which, torch.float32)
        seconds = gradient_seconds(*single, rounds=15)
        matrix_seconds = product_limit(HessianOperator(*single)).seconds
        operator = HessianOperator(*load(which, torch.float64))
        values, products = arpack_values(operator, k)
        krylov = krylov_dimension(operator, values, tol=tol)
    found = Truth(
        n=operator.n,
        loss=operator.loss,
        values=values.tolist(),
        arpack_products=products,
        krylov_products=krylov,
        gradient_seconds=statistics.median(seconds),
        matrix_gradients=matrix_seconds / min(seconds),
    )
    return asdict(found)


def solve_task(case: dict[str, Any], contender: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Run a contender once and judge it."""
    torch.set_num_threads(1)
    which, solver = Case(**case), CONTENDERS[contender]
    if solver.package is not None:
        importlib.import_module(solver.package)
    with scan_backend(which.scan):
        problem = load(which, torch.float32)
        before = gradient_seconds(*problem)
        idle = peak_mebibytes()
        prepare_seconds = prepared_in(solver, *problem)
        begun = time.process_time()
        found = solve(solver, *problem, settings)
        seconds, peak = time.process_time() - begun, peak_mebibytes()
        unit = statistics.median(before + gradient_seconds(*problem))
        residuals = true_residuals(
            HessianOperator(*load(which, torch.float64)), found.values, found.vectors
        )
    return {
        "products": found.products,
        "cpu_seconds": seconds,
        "prepare_cpu_seconds": prepare_seconds,
        "gradients": seconds / unit,
        "idle_mebibytes": idle,
        "peak_mebibytes": peak,
        "values": found.values.double().tolist(),
        "residuals": residuals,
        "says_converged": found.says_converged,
    }


def prepared_in(solver: Contender, objective: Objective, params: Params, batch: Batch) -> float:
    """Let a contender do what it does once for a model; the CPU seconds of that, those of child
    processes included.
    """
    if solver.prepare is None:
        return 0.0
    begun = sum(os.times()[:4])
    solver.prepare(objective, params, batch)
    return sum(os.times()[:4]) - begun


def measure(
    case: Case, truth: Truth, contender: Contender, mode: str, settings: Settings, *, python: str
) -> Row:
    """One row, from a process of its own; what fails is a row with the reason."""
    head = {
        "model": case.model,
        "epoch": case.epoch,
        "contender": contender.name,
        "mode": mode,
        "settings": dict(settings),
    }
    arguments = {"case": asdict(case), "contender": contender.name, "settings": dict(settings)}
    print(
        f"{case.model}, epoch {case.epoch}: {contender.name}, {mode} {dict(settings) or ''} ...",
        file=sys.stderr,
        flush=True,
    )
    try:
        found = run_task("peers.rows.solve_task", arguments, python=python)
    except TaskFailed as error:
        return Row(**head, failure=str(error))
    return Row(
        **head, **found, errors=value_errors(np.array(found["values"]), np.array(truth.values))
    )


def drive(case: Case, truth: Truth, contender: Contender, *, python: str, first: int = 0) -> Row:
    """The row of the loosest settings that are right to TOL, in true residuals and in values, or of
    the best where none are.

    Only that run is charged for, not the search. `first` skips settings that are known to be too
    loose.
    """
    best: Row | None = None
    for settings in contender.ladder[first:]:
        row = measure(case, truth, contender, "driven", settings, python=python)
        if best is None or row.worst < best.worst:
            best = row
        if row.is_right or row.failure:
            break
    assert best is not None
    return best
