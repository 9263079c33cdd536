"""Curvature: from (model, loss, batch) to a symmetric operator.

Inside are `hvp`, how products are computed; `guards`, what a loss must meet; `audits`, whether a
product is the second derivative; `operators`, the matrices. `import landscape.curvature` is
instant: the names below are loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from landscape.deprecation import moved_attribute

if TYPE_CHECKING:
    from landscape.curvature.audits.objective_audit import audit, audit_objective
    from landscape.curvature.audits.report import AuditReport, AuditRow
    from landscape.curvature.modules import (
        HessianBlocks,
        ModuleSpectrum,
        per_module_spectra,
        spectra_of,
    )
    from landscape.curvature.objective import (
        Batch,
        ConvexCut,
        Objective,
        Params,
        flatten,
        select_parameters,
        unflatten,
    )
    from landscape.curvature.operators.batches import HessianOfBatches, hessian_of_batches
    from landscape.curvature.operators.finite_difference import FiniteDifferenceOperator
    from landscape.curvature.operators.fisher import EmpiricalFisherOperator, empirical_fisher
    from landscape.curvature.operators.gauss_newton import GaussNewtonOperator, gauss_newton
    from landscape.curvature.operators.hessian import HessianOperator, gradient, hessian
    from landscape.curvature.partition import coordinates_of, modules_of
    from landscape.curvature.pyhessian import pyhessian_eigenpairs

# Where each name is. Its first use imports that module, and torch with it.
_MODULES = {
    "AuditReport": "audits.report",
    "AuditRow": "audits.report",
    "Batch": "objective",
    "ConvexCut": "objective",
    "EmpiricalFisherOperator": "operators.fisher",
    "FiniteDifferenceOperator": "operators.finite_difference",
    "GaussNewtonOperator": "operators.gauss_newton",
    "HessianBlocks": "modules",
    "HessianOfBatches": "operators.batches",
    "HessianOperator": "operators.hessian",
    "ModuleSpectrum": "modules",
    "Objective": "objective",
    "Params": "objective",
    "audit": "audits.objective_audit",
    "audit_objective": "audits.objective_audit",
    "coordinates_of": "partition",
    "empirical_fisher": "operators.fisher",
    "flatten": "objective",
    "gauss_newton": "operators.gauss_newton",
    "gradient": "operators.hessian",
    "hessian": "operators.hessian",
    "hessian_of_batches": "operators.batches",
    "modules_of": "partition",
    "per_module_spectra": "modules",
    "pyhessian_eigenpairs": "pyhessian",
    "select_parameters": "objective",
    "spectra_of": "modules",
    "unflatten": "objective",
}

_SURFACE = """
    Axis Barrier CurvatureFit Direction LocalModel LossSlice LossSurface centred
    eigenvector_directions fill filter_axes filter_normalised fit_curvature from_the_middle
    line_losses local_model losses_along random_directions
"""
# Where names are that were here.
_MOVED = {
    **{name: f"landscape.surface.{name}" for name in _SURFACE.split()},
    "HvpChoice": "landscape.curvature.hvp.HvpChoice",
    "ProductChoice": "landscape.curvature.hvp.HvpChoice",
    "call_with_parameters": "landscape.curvature.objective.call_with_parameters",
    "check_twice_differentiable": "landscape.curvature.guards.check_twice_differentiable",
    "squared_norm": "landscape.curvature.objective.squared_norm",
}

__all__ = [
    "AuditReport",
    "AuditRow",
    "Batch",
    "ConvexCut",
    "EmpiricalFisherOperator",
    "FiniteDifferenceOperator",
    "GaussNewtonOperator",
    "HessianBlocks",
    "HessianOfBatches",
    "HessianOperator",
    "ModuleSpectrum",
    "Objective",
    "Params",
    "audit",
    "audit_objective",
    "coordinates_of",
    "empirical_fisher",
    "flatten",
    "gauss_newton",
    "gradient",
    "hessian",
    "hessian_of_batches",
    "modules_of",
    "per_module_spectra",
    "pyhessian_eigenpairs",
    "select_parameters",
    "spectra_of",
    "unflatten",
]

# Found as attributes, too, without an import of their own.
_FOLDERS = ("audits", "guards", "hvp", "objective", "operators")


def __getattr__(name: str) -> Any:
    if name in _FOLDERS:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    return moved_attribute(globals(), name, _MOVED)
