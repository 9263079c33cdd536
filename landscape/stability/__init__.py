"""Curvature in the units of an optimizer, its stability threshold, and quick sharpness.

The threshold is the eigenvalue of the preconditioned Hessian above which training is unstable.
Quick sharpness is that along an update, or in a region, from a few passes through the model.

`import landscape.stability` is instant: the names below are loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landscape.stability.ascent import LossRise, keskar_sharpness, sam_sharpness
    from landscape.stability.critical import CriticalSharpness, critical_sharpness
    from landscape.stability.directional import DirectionalSharpness, directional_sharpness
    from landscape.stability.operator import (
        PreconditionedHessian,
        preconditioned,
        preconditioner_of,
    )
    from landscape.stability.optimizer_state import (
        OptimizerState,
        ParameterState,
        kind_of,
        state_of,
    )
    from landscape.stability.threshold import StabilityThreshold, stability_threshold, threshold_of
    from landscape.stability.update import Update, next_update

_MODULES = {
    "CriticalSharpness": "critical",
    "DirectionalSharpness": "directional",
    "LossRise": "ascent",
    "OptimizerState": "optimizer_state",
    "ParameterState": "optimizer_state",
    "PreconditionedHessian": "operator",
    "StabilityThreshold": "threshold",
    "Update": "update",
    "critical_sharpness": "critical",
    "directional_sharpness": "directional",
    "keskar_sharpness": "ascent",
    "kind_of": "optimizer_state",
    "next_update": "update",
    "preconditioned": "operator",
    "preconditioner_of": "operator",
    "sam_sharpness": "ascent",
    "stability_threshold": "threshold",
    "state_of": "optimizer_state",
    "threshold_of": "threshold",
}

__all__ = [
    "CriticalSharpness",
    "DirectionalSharpness",
    "LossRise",
    "OptimizerState",
    "ParameterState",
    "PreconditionedHessian",
    "StabilityThreshold",
    "Update",
    "critical_sharpness",
    "directional_sharpness",
    "keskar_sharpness",
    "kind_of",
    "next_update",
    "preconditioned",
    "preconditioner_of",
    "sam_sharpness",
    "stability_threshold",
    "state_of",
    "threshold_of",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
