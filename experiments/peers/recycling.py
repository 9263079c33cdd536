"""Products a batch over many batches of one checkpoint: from a random start, and from eigenvectors
that are known already.

Those are of the batch before, or of the same batch one epoch earlier.
"""

import statistics
from dataclasses import asdict, dataclass
from typing import Any

import torch

from landscape.curvature import HessianOperator
from landscape.linalg import eigsh
from peers.problem import Case, case_title, load
from peers.processes import run_task
from peers.solvers import TOL, K


@dataclass(frozen=True)
class RecyclingRow:
    """Products of every batch, by where it starts.

    Attributes:
        cold: At random.
        warm: From the eigenvectors of the batch before; the first has none before it.
        earlier: From the eigenvectors of the same batch at the checkpoint of one epoch earlier.
    """

    model: str
    epoch: int
    cold: list[int]
    warm: list[int]
    earlier: list[int]
    all_converged: bool


def recycling_task(
    case: dict[str, Any], earlier: dict[str, Any], num_batches: int
) -> dict[str, Any]:
    """The fields of a RecyclingRow, of `case` and the case of one epoch earlier."""
    torch.set_num_threads(1)
    which, once = Case(**case), Case(**earlier)
    cold, warm, again, converged, vectors = [], [], [], True, None
    for index in range(num_batches):
        operator = HessianOperator(*load(which, torch.float32, index))
        fresh = eigsh(operator, K, tol=TOL)
        recycled = eigsh(operator, K, tol=TOL, start=vectors)
        vectors = recycled.vectors
        known = eigsh(HessianOperator(*load(once, torch.float32, index)), K, tol=TOL).vectors
        resumed = eigsh(operator, K, tol=TOL, start=known)
        for found, pairs in ((cold, fresh), (warm, recycled), (again, resumed)):
            found.append(pairs.num_matvecs)
            converged &= bool(pairs.converged.all())
    return asdict(RecyclingRow(which.model, which.epoch, cold, warm, again, converged))


def measure_recycling(case: Case, earlier: Case, num_batches: int) -> RecyclingRow:
    arguments = {"case": asdict(case), "earlier": asdict(earlier), "num_batches": num_batches}
    return RecyclingRow(**run_task("peers.recycling.recycling_task", arguments))


def recycling_table(rows: list[RecyclingRow]) -> str:
    lines = [
        f"Products a batch over {len(rows[0].cold)} batches: mean (least to most)",
        f"{'':34} {'random start':>20} {'the batch before':>20} {'one epoch earlier':>20}",
    ]
    for row in rows:
        counts = " ".join(
            f"{_spread(products):>20}" for products in (row.cold, row.warm, row.earlier)
        )
        lines.append(f"{case_title(row.model, row.epoch):34} {counts}")
    if not all(row.all_converged for row in rows):
        lines.append("not all of them converged")
    return "\n".join(lines)


def _spread(products: list[int]) -> str:
    return f"{statistics.mean(products):.1f} ({min(products)} to {max(products)})"
