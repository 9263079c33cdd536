"""Audit: is the operator the second derivative of the loss?

If it is not, the audit names the module that is to blame.

The tests do not depend on how derivatives are computed. They compare products with differences of
gradients, gradients with differences of the loss, and check symmetry and repeatability. They run in
float64 where the model can be converted, a little off the parameters under study (see `displaced`),
and never on the model itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from landscape.curvature.audits.blame import FaultyModule, find_faulty_modules
from landscape.curvature.audits.differences import Params, displaced
from landscape.curvature.audits.examination import REASONS, Examination
from landscape.curvature.audits.promotion import promoted
from landscape.curvature.audits.report import ZERO_TO_ROUNDING, AuditReport, AuditRow
from landscape.curvature.guards.preconditions import check_autocast, check_batch, check_parameters
from landscape.curvature.objective import Batch, Objective, select_parameters
from landscape.linalg.operator import seeded

_FEWER_BITS = "digits"

Make = Callable[[nn.Module], tuple[Objective, Params]]


def audit(
    model: nn.Module,
    loss: Callable[[Any, Batch], Tensor],
    batch: Batch,
    *,
    parameters: str | Sequence[str] = "all",
    weight_decay: float = 0.0,
    seed: int = 0,
) -> AuditReport:
    """Test whether `landscape.hessian` is the second derivative of the loss.

    Takes the arguments of `hessian`.

    Costs about ten gradients and five products for a healthy model, more where it has kinks. The
    search for the faulty module begins only when a test failed. The model is not touched.

    Args:
        weight_decay: Accepted so that a call can be copied from `hessian`; the L2 term is an exact
            shift and not tested.
        seed: Seed of the random directions and of the displacement.

    Raises:
        ObjectiveError: If the parameters or the batch cannot be used at all, or the loss is not one
            number.

    Examples:
        >>> import torch, landscape
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> batch = torch.randn(32, 4), torch.randn(32, 1)
        >>> def loss(model, batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        ...
        >>> report = landscape.audit(model, loss, batch)
        >>> report.passed
        True
    """

    def make(module: nn.Module) -> tuple[Objective, Params]:
        return Objective.from_closure(module, loss, weight_decay=weight_decay), select_parameters(
            module, parameters
        )

    return audit_objective(make, model, batch, seed=seed)


def audit_objective(make: Make, model: nn.Module, batch: Batch, *, seed: int = 0) -> AuditReport:
    """Audit an objective that `make` builds from a model.

    `make` gets the model or a copy of it, and returns the objective and its parameters; see
    `audit`.
    """
    objective, params = make(model)
    return audit_at(
        replace(objective, module=model, rebound=lambda other: make(other)[0]),
        params,
        batch,
        seed=seed,
    )


def audit_at(objective: Objective, params: Params, batch: Batch, *, seed: int = 0) -> AuditReport:
    """Audit an objective at given parameters; see `audit`.

    Runs in float64 where the objective can be rebound to a copy of its module.
    """
    check_parameters(params)
    device = next(iter(params.values())).device
    check_batch(batch, device)
    check_autocast(device)
    devices = [device] if device.type == "cuda" else []
    # The caller may be in inference mode or under no_grad. Random state is restored, so that an
    # audit changes no training run.
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices):
        plain = Examination(objective, displaced(params, seeded(seed)), batch, seed=seed)
        plain.check_loss()
        # Differences need digits: a central difference of a smooth function is right to about
        # eps^(2/3), 2e-5 in float32 and 4e-11 in float64.
        examination = _promoted(objective, batch, plain, seed=seed) or plain
        rows = list(examination.rows())
        # A product that is right in float64 may still be wrong in the model's type, for which there
        # may be another kernel.
        if examination is not plain and not any(row.verdict == "failed" for row in rows):
            rows.append(plain.against(examination))
        # A perfect fit leaves nothing to test, and no module is to blame for it.
        is_doubtful = any(
            row.verdict != "passed" and row.reason != ZERO_TO_ROUNDING for row in rows
        )
        if is_doubtful and examination.objective.module is not None:
            known = {(row.name, row.test) for row in rows}
            # Where the whole is only in doubt, a part that fails by itself is a hint, and no proof.
            verdict = "failed" if any(row.verdict == "failed" for row in rows) else "undecided"
            rows += [
                AuditRow(
                    faulty.name,
                    faulty.test,
                    faulty.outcome.error,
                    verdict,
                    REASONS.get(faulty.test, ""),
                )
                for faulty in _search(examination)
                if (faulty.name, faulty.test) not in known
            ]
    runs = {id(run): run for run in (plain, examination)}.values()
    gradients, products = (
        sum(run.point.num_gradients for run in runs),
        sum(run.num_products for run in runs),
    )
    return AuditReport(tuple(rows), examination.point.dtype, gradients, products)


def _search(examination: Examination) -> list[FaultyModule]:
    assert examination.objective.module is not None
    return find_faulty_modules(
        examination.objective.module, examination.point, seed=examination.seed
    )


def _promoted(
    objective: Objective, batch: Batch, plain: Examination, *, seed: int
) -> Examination | None:
    """Build the examination in float64; None if that fails.

    It is of a copy of the module if there is one. It fails if something in the loss cannot be
    converted.
    """
    point = (
        None
        if plain.point.dtype == torch.float64
        else promoted(objective, plain.point.params, batch)
    )
    if point is None:
        return None
    examination = Examination(point.objective, point.params, point.batch, seed=seed)
    # It may compute in fewer digits in its backward pass alone, or refuse the type there.
    try:
        refusal = examination.guard(kernels_may_fail=False)
    except Exception:
        return None
    return None if refusal and _FEWER_BITS in refusal else examination
