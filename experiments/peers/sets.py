"""Whether five converged values are the top five: over many batches, of a Lanczos that looks at
residuals alone, and of ours.

The truth is a run from another random vector to a hundredth of the tolerance, with a long search
for missed values.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from landscape.curvature import HessianOperator
from landscape.linalg import eigsh
from peers.judge import first_converged, value_errors
from peers.problem import Case, case_title, load
from peers.processes import run_task
from peers.solvers import TOL, K

NUM_CHECKS = 12


@dataclass(frozen=True)
class SetsRow:
    """The batches whose set was wrong, and the products that were spent, by batch.

    Attributes:
        wrong: Of the first Krylov space in which all five residuals are small.
        ours_wrong: Of `eigsh` at its defaults.
        largest_error: Of a value that was taken for another, relative, over all batches and both.
    """

    model: str
    epoch: int
    products: list[int]
    wrong: list[int]
    ours_products: list[int]
    ours_wrong: list[int]
    largest_error: float


def sets_task(case: dict[str, Any], num_batches: int) -> dict[str, Any]:
    """The fields of a SetsRow."""
    torch.set_num_threads(1)
    which = Case(**case)
    products, ours, wrong, ours_wrong, worst = [], [], [], [], 0.0
    for index in range(num_batches):
        operator = HessianOperator(*load(which, torch.float32, index))
        truth = eigsh(
            operator, K, tol=TOL / 100, seed=1, num_checks=NUM_CHECKS, return_vectors=False
        ).values.numpy()
        spent, values = next(first_converged(operator, K, tol=TOL, seed=0))
        pairs = eigsh(operator, K, tol=TOL, seed=0, return_vectors=False)
        products.append(spent)
        ours.append(pairs.num_matvecs)
        for found, places in ((values, wrong), (pairs.values.numpy(), ours_wrong)):
            error = max(value_errors(np.asarray(found), truth))
            if error > TOL:
                places.append(index)
                worst = max(worst, error)
    return asdict(SetsRow(which.model, which.epoch, products, wrong, ours, ours_wrong, worst))


def measure_sets(case: Case, num_batches: int) -> SetsRow:
    return SetsRow(
        **run_task("peers.sets.sets_task", {"case": asdict(case), "num_batches": num_batches})
    )


def sets_table(rows: list[SetsRow]) -> str:
    lines = [
        f"Batches of {len(rows[0].products)} whose five converged values are not the top five, and "
        "the products spent on average",
        f"{'':34} {'residuals alone':>20} {'landscape eigsh':>20}",
    ]
    for row in rows:
        cells = (
            f"{len(places)} ({np.mean(spent):.1f})"
            for places, spent in ((row.wrong, row.products), (row.ours_wrong, row.ours_products))
        )
        lines.append(
            f"{case_title(row.model, row.epoch):34} {' '.join(f'{cell:>20}' for cell in cells)}"
        )
    if any(row.largest_error for row in rows):
        lines.append(f"a wrong value is off by up to {max(row.largest_error for row in rows):.1%}")
    return "\n".join(lines)
