"""Operators: the matrices of curvature of a loss, bound to their parameters and batches.

The functions that build them from a model are in the face of landscape.curvature.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landscape.curvature.operators.batches import HessianOfBatches
    from landscape.curvature.operators.finite_difference import FiniteDifferenceOperator
    from landscape.curvature.operators.fisher import EmpiricalFisherOperator
    from landscape.curvature.operators.gauss_newton import GaussNewtonOperator
    from landscape.curvature.operators.hessian import HessianOperator

# Where each name is. Its first use imports that module, and torch with it.
_MODULES = {
    "EmpiricalFisherOperator": "fisher",
    "FiniteDifferenceOperator": "finite_difference",
    "GaussNewtonOperator": "gauss_newton",
    "HessianOfBatches": "batches",
    "HessianOperator": "hessian",
}

__all__ = [
    "EmpiricalFisherOperator",
    "FiniteDifferenceOperator",
    "GaussNewtonOperator",
    "HessianOfBatches",
    "HessianOperator",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
