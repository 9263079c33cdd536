"""One model over several processes: exact Hessian products of cut weights and vectors.

Needs torch.distributed, which a process group or a mesh has loaded already; nothing is imported
before a name is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landscape.sharded.api import hessian
    from landscape.sharded.drawn import with_random_weights
    from landscape.sharded.finite_difference import ShardedFiniteDifferenceOperator
    from landscape.sharded.layout import CutVectors
    from landscape.sharded.operator import ShardedHessianOperator

_MODULES = {
    "CutVectors": "layout",
    "ShardedFiniteDifferenceOperator": "finite_difference",
    "ShardedHessianOperator": "operator",
    "hessian": "api",
    "with_random_weights": "drawn",
}

__all__ = [
    "CutVectors",
    "ShardedFiniteDifferenceOperator",
    "ShardedHessianOperator",
    "hessian",
    "with_random_weights",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
