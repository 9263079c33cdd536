"""Hessian-vector products (HVPs): the evaluation of a loss, strategies, and the choice among them.

The classes of strategies have the same contract, `Product`; `HvpEngine` picks the fastest that fits
in memory. Nothing here checks a product by differences: HessianOperator does.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landscape.curvature.hvp.choice import SHARE, STRATEGIES, HvpChoice, Trial
    from landscape.curvature.hvp.compiled import has_compiler
    from landscape.curvature.hvp.engine import HvpEngine
    from landscape.curvature.hvp.evaluation import Evaluated, Problem
    from landscape.curvature.hvp.lockstep import batches_that_fit, solve_in_lockstep
    from landscape.curvature.hvp.memory import MemoryWatch, free_memory, is_out_of_memory
    from landscape.curvature.hvp.products import (
        Product,
        RebuiltGraph,
        RetainedGraph,
        TangentOfGradient,
    )
    from landscape.curvature.hvp.replayed import ReplayedGraph, ReplayedTrace
    from landscape.curvature.hvp.row_chunks import RowChunks, take_rows
    from landscape.curvature.hvp.traced import CompiledProduct, TracedProduct, forget_graphs
    from landscape.curvature.hvp.unchecked import UncheckedHessian

# Where each name is. Its first use imports that module, and torch with it.
_MODULES = {
    "SHARE": "choice",
    "STRATEGIES": "choice",
    "CompiledProduct": "traced",
    "Evaluated": "evaluation",
    "HvpChoice": "choice",
    "HvpEngine": "engine",
    "MemoryWatch": "memory",
    "Problem": "evaluation",
    "Product": "products",
    "RebuiltGraph": "products",
    "ReplayedGraph": "replayed",
    "ReplayedTrace": "replayed",
    "RetainedGraph": "products",
    "RowChunks": "row_chunks",
    "TangentOfGradient": "products",
    "TracedProduct": "traced",
    "Trial": "choice",
    "UncheckedHessian": "unchecked",
    "batches_that_fit": "lockstep",
    "forget_graphs": "traced",
    "free_memory": "memory",
    "has_compiler": "compiled",
    "is_out_of_memory": "memory",
    "solve_in_lockstep": "lockstep",
    "take_rows": "row_chunks",
}

__all__ = [
    "SHARE",
    "STRATEGIES",
    "CompiledProduct",
    "Evaluated",
    "HvpChoice",
    "HvpEngine",
    "MemoryWatch",
    "Problem",
    "Product",
    "RebuiltGraph",
    "ReplayedGraph",
    "ReplayedTrace",
    "RetainedGraph",
    "RowChunks",
    "TangentOfGradient",
    "TracedProduct",
    "Trial",
    "UncheckedHessian",
    "batches_that_fit",
    "forget_graphs",
    "free_memory",
    "has_compiler",
    "is_out_of_memory",
    "solve_in_lockstep",
    "take_rows",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
