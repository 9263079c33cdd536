"""From (model, loss, batch) to a symmetric operator."""

from landscape.curvature.audit import AuditReport, AuditRow, audit, audit_objective
from landscape.curvature.batches import HessianOfBatches, hessian_of_batches
from landscape.curvature.choice import ProductChoice
from landscape.curvature.finite_difference import FiniteDifferenceOperator
from landscape.curvature.gauss_newton import GaussNewtonOperator, gauss_newton
from landscape.curvature.hessian import HessianOperator, gradient, hessian
from landscape.curvature.modules import (
    HessianBlocks,
    ModuleSpectrum,
    coordinates_of,
    modules_of,
    per_module_spectra,
    spectra_of,
)
from landscape.curvature.objective import (
    Batch,
    ConvexCut,
    Objective,
    Params,
    call_with_parameters,
    flatten,
    select_parameters,
    squared_norm,
    unflatten,
)
from landscape.curvature.preconditions import check_twice_differentiable
from landscape.curvature.reference import pyhessian_eigenpairs

__all__ = [
    "AuditReport",
    "AuditRow",
    "Batch",
    "ConvexCut",
    "FiniteDifferenceOperator",
    "GaussNewtonOperator",
    "HessianBlocks",
    "HessianOfBatches",
    "HessianOperator",
    "ModuleSpectrum",
    "Objective",
    "Params",
    "ProductChoice",
    "audit",
    "audit_objective",
    "call_with_parameters",
    "check_twice_differentiable",
    "coordinates_of",
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
    "squared_norm",
    "unflatten",
]
