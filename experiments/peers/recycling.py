"""Products a batch over many batches of one checkpoint: every batch from a random start, and from what the last one found."""

import inspect
import statistics
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peers.problem import Case, load
from peers.processes import run_task
from peers.solvers import TOL, K

from landscape.curvature import HessianOperator
from landscape.linalg import EigenPairs, eigsh


@dataclass(frozen=True)
class RecyclingRow:
    """Products of every batch; `warm` is empty where the solver takes no start."""

    model: str
    epoch: int
    cold: list[int]
    warm: list[int]
    all_converged: bool


def can_recycle() -> bool:
    """Whether `eigsh` takes vectors to start from."""
    return "start" in inspect.signature(eigsh).parameters


def recycling_task(case: dict[str, Any], num_batches: int) -> dict[str, Any]:
    """The fields of a RecyclingRow."""
    torch.set_num_threads(1)
    which = Case(**case)
    cold, warm, converged, last = [], [], True, None
    for index in range(num_batches):
        operator = HessianOperator(*load(which, torch.float32, index))
        pairs = eigsh(operator, K, tol=TOL)
        cold.append(pairs.num_matvecs)
        converged &= bool(pairs.converged.all())
        if can_recycle():
            last = _from(operator, last)
            warm.append(last.num_matvecs)
            converged &= bool(last.converged.all())
    return asdict(RecyclingRow(which.model, which.epoch, cold, warm, converged))


def _from(operator: HessianOperator, last: EigenPairs | None) -> EigenPairs:
    """The pairs of an operator from the vectors of the last one."""
    options: dict[str, Any] = {} if last is None else {"start": last.vectors}
    return eigsh(operator, K, tol=TOL, **options)


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
    if not rows[0].warm:
        lines.append("recycled: not measured, eigsh takes no start")
    return "\n".join(lines)


def _spread(products: list[int]) -> str:
    return f"{statistics.mean(products):.1f} ({min(products)} to {max(products)})" if products else "-"
