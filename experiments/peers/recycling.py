"""Products a batch over many batches of one checkpoint: every batch from a random start, and from what the last one found."""

import statistics
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peers.problem import Case, load
from peers.processes import run_task
from peers.solvers import TOL, K

from landscape.curvature import HessianOperator
from landscape.linalg import eigsh


@dataclass(frozen=True)
class RecyclingRow:
    """Products of every batch from a random start, and from the vectors of the batch before; the first has none before it."""

    model: str
    epoch: int
    cold: list[int]
    warm: list[int]
    all_converged: bool


def recycling_task(case: dict[str, Any], num_batches: int) -> dict[str, Any]:
    """The fields of a RecyclingRow."""
    torch.set_num_threads(1)
    which = Case(**case)
    cold, warm, converged, vectors = [], [], True, None
    for index in range(num_batches):
        operator = HessianOperator(*load(which, torch.float32, index))
        fresh = eigsh(operator, K, tol=TOL)
        recycled = eigsh(operator, K, tol=TOL, start=vectors)
        vectors = recycled.vectors
        cold.append(fresh.num_matvecs)
        warm.append(recycled.num_matvecs)
        converged &= bool(fresh.converged.all() and recycled.converged.all())
    return asdict(RecyclingRow(which.model, which.epoch, cold, warm, converged))


def measure_recycling(case: Case, num_batches: int) -> RecyclingRow:
    return RecyclingRow(**run_task("peers.recycling.recycling_task", {"case": asdict(case), "num_batches": num_batches}))


def recycling_table(rows: list[RecyclingRow]) -> str:
    lines = [
        f"Products a batch over {len(rows[0].cold)} batches: mean (least to most)",
        f"{'':34} {'random start':>20} {'recycled':>20}",
    ]
    for row in rows:
        state = "at initialisation" if row.epoch == 0 else f"after {row.epoch} epochs"
        lines.append(f"{row.model + ' ' + state:34} {_spread(row.cold):>20} {_spread(row.warm):>20}")
    if not all(row.all_converged for row in rows):
        lines.append("not all of them converged")
    return "\n".join(lines)


def _spread(products: list[int]) -> str:
    return f"{statistics.mean(products):.1f} ({min(products)} to {max(products)})"
