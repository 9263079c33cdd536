"""Guards: what a loss and its graph must meet before a second derivative is trusted.

Preconditions of model, parameters and batch; the autograd graph; fingerprints of what must not
change; rounding errors of products. The check of an operator's first product by differences is in
landscape.curvature.audits, since the audit decides where it is in doubt.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landscape.curvature.guards.preconditions import (
        check_autocast,
        check_batch,
        check_loss,
        check_parameters,
        check_same_loss,
        check_twice_differentiable,
        reading_only,
    )
    from landscape.curvature.guards.rounding import moved_products, product_errors

# Where each name is. Its first use imports that module, and torch with it.
_MODULES = {
    "check_autocast": "preconditions",
    "check_batch": "preconditions",
    "check_loss": "preconditions",
    "check_parameters": "preconditions",
    "check_same_loss": "preconditions",
    "check_twice_differentiable": "preconditions",
    "moved_products": "rounding",
    "product_errors": "rounding",
    "reading_only": "preconditions",
}

__all__ = [
    "check_autocast",
    "check_batch",
    "check_loss",
    "check_parameters",
    "check_same_loss",
    "check_twice_differentiable",
    "moved_products",
    "product_errors",
    "reading_only",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
