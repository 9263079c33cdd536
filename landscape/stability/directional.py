"""Directional sharpness of an optimizer's update, and the change of the loss that it predicts.

Source: Pan & Li, Toward understanding why Adam converges faster than SGD for transformers (2023),
arXiv 2306.00204, for u.H u of a unit vector along the update.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from landscape.curvature.audits.promotion import promoted
from landscape.curvature.hvp.choice import HvpChoice
from landscape.curvature.hvp.unchecked import UncheckedHessian
from landscape.curvature.objective import Batch, Objective, Params, select_parameters
from landscape.curvature.operators.hessian import HessianOperator, gradient
from landscape.stability.update import Update


@dataclass(frozen=True, kw_only=True)
class DirectionalSharpness:
    """The curvature along an update u, from one Hessian-vector product.

    Attributes:
        value: u.H u / u.u, in nats per squared parameter. A Rayleigh quotient: the largest
            eigenvalue of H is at least this, and the smallest at most.
        rounding: Estimate of the error of `value`: its distance from that in float64, or where the
            model cannot be taken there, the effect of rounding the parameters. NaN where it was not
            asked for.
        length: |u|.
        slope: g.u, the first-order change of the loss by the step, in nats.
        curvature: u.H u, in nats.
        rate: Learning rate of the update.
        checked: What the operator says of its products.
    """

    value: float
    rounding: float
    length: float
    slope: float
    curvature: float
    rate: float
    checked: str = ""

    @property
    def predicted_change(self) -> float:
        """Return the change of the loss by the step, to second order.

        It is g.u + u.H u / 2, in nats: exact for a quadratic, and otherwise wrong by a term of
        third order in the length of the step.
        """
        return self.slope + self.curvature / 2

    @property
    def critical(self) -> float:
        """Return the critical sharpness of the quadratic model.

        It is -u.H u / (g.u rate), in the unit of `CriticalSharpness.value`, which it equals on a
        quadratic. Negative uphill or where the curvature is negative; NaN where the slope is zero.
        """
        return -self.curvature / (self.slope * self.rate) if self.slope else math.nan

    def __str__(self) -> str:
        error = "" if math.isnan(self.rounding) else f" ± {self.rounding:.1g}"
        return f"{self.value:.6g}{error}, predicted change {self.predicted_change:.4g}"


def directional_sharpness(
    model: nn.Module,
    loss: Callable[[Any, Batch], Tensor],
    batch: Batch,
    update: Update,
    *,
    parameters: str | Sequence[str] = "all",
    weight_decay: float = 0.0,
    hvp: str | HvpChoice = "auto",
    max_memory: int | None = None,
    estimate_rounding: bool = True,
) -> DirectionalSharpness:
    """Measure u.H u / u.u along an update u, by one product.

    Args:
        model, loss, batch, parameters, weight_decay, hvp, max_memory: As in
            `landscape.hessian`.
        update: Step of the optimizer; see `landscape.next_update`. Of some `parameters` alone, u is
            its part in them.
        estimate_rounding: Whether to compute the product once more in float64, on a copy of the
            model; or, in float64 and where that fails, four times more at parameters that differ by
            rounding.

    Raises:
        ObjectiveError: If the loss has no Hessian that could be trusted.
        ValueError: If the update is not one of these parameters.

    Source: see this module.

    Examples:
        >>> import torch, landscape
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        >>> batch = torch.randn(32, 4).double(), torch.randn(32, 1).double()
        >>> def loss(model, batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        ...
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> loss(model, batch).backward()
        >>> update = landscape.next_update(optimizer, model)
        >>> along = landscape.directional_sharpness(model, loss, batch, update)
        >>> H = landscape.hessian(model, loss, batch)
        >>> along.value <= float(landscape.eigsh(H, k=1, which="LA").values)
        True
    """
    objective = Objective.from_closure(model, loss, weight_decay=weight_decay)
    H = HessianOperator(
        objective,
        select_parameters(model, parameters),
        batch,
        hvp=hvp,
        max_memory=max_memory,
    )
    with torch.random.fork_rng([H.device] if H.device.type == "cuda" else []):
        slope = gradient(objective, H.params, batch)
        exact = (
            _quotient_in_float64(objective, H.params, batch, update, max_memory)
            if estimate_rounding
            else None
        )
    return directional_of(H, slope, update, estimate_rounding=estimate_rounding, exact=exact)


def _quotient_in_float64(
    objective: Objective, params: Params, batch: Batch, update: Update, max_memory: int | None
) -> float | None:
    """Compute u.H u / u.u in float64 at the same parameters; None where that is not possible."""
    wide = None if _is_float64(params) else promoted(objective, params, batch)
    if wide is None:
        return None
    try:
        H = UncheckedHessian(wide.objective, wide.params, wide.batch, max_memory=max_memory)
        u = update.vector(H.params)
        return float(u @ (H @ u) / (u @ u))
    # Second derivatives in float64 may have no kernel, or not fit in memory.
    except Exception:
        return None


def _is_float64(params: Params) -> bool:
    return next(iter(params.values())).dtype == torch.float64


def directional_of(
    H: HessianOperator,
    gradient: Float[Tensor, " n"],
    update: Update,
    *,
    estimate_rounding: bool = True,
    exact: float | None = None,
) -> DirectionalSharpness:
    """Measure the curvature along an update; see `directional_sharpness`.

    Args:
        gradient: That of the same objective at the same parameters.
        exact: The quotient in float64, where it is known.
    """
    u = update.vector(H.params)
    length = H.space.norm(u)
    # A product of a vector of length 1, so that small steps in float32 lose no digits.
    unit = u / length
    product = H @ unit
    slope, quotient = (float(H.space.inner(v[None], unit)[0]) for v in (gradient, product))
    rounding = math.nan
    if estimate_rounding:
        if exact is None:
            error = float(H.space.inner(H.product_errors(unit)[None], unit.abs())[0])
        else:
            error = abs(quotient - exact)
        # At least one unit of rounding of the product.
        least = torch.finfo(H.dtype).eps * H.space.norm(product)
        rounding = max(error, least) + H.error_estimate
    return DirectionalSharpness(
        value=quotient,
        rounding=rounding,
        length=length,
        slope=slope * length,
        curvature=quotient * length**2,
        rate=update.rate,
        checked=H.checked,
    )
