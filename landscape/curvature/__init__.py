"""Curvature: from (model, loss, batch) to a symmetric operator."""

import importlib
from typing import Any

from landscape.curvature.audit import AuditReport, AuditRow, audit, audit_objective
from landscape.curvature.batches import HessianOfBatches, hessian_of_batches
from landscape.curvature.choice import HvpChoice
from landscape.curvature.finite_difference import FiniteDifferenceOperator
from landscape.curvature.fisher import EmpiricalFisherOperator, empirical_fisher
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
from landscape.curvature.pyhessian import pyhessian_eigenpairs
from landscape.deprecation import renamed_attribute, warn_of_old_name

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
    "HvpChoice",
    "ModuleSpectrum",
    "Objective",
    "Params",
    "audit",
    "audit_objective",
    "call_with_parameters",
    "check_twice_differentiable",
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
    "squared_norm",
    "unflatten",
]


# Loss surfaces have a room of their own.
_MOVED = frozenset(
    """
    Axis Barrier CurvatureFit Direction LocalModel LossSlice LossSurface centred
    eigenvector_directions fill filter_axes filter_normalised fit_curvature from_the_middle
    line_losses local_model losses_along random_directions
    """.split()
)


def __getattr__(name: str) -> Any:
    if name in _MOVED:
        warn_of_old_name(f"landscape.curvature.{name}", f"landscape.surface.{name}")
        return getattr(importlib.import_module("landscape.surface"), name)
    return renamed_attribute(globals(), name, {"ProductChoice": "HvpChoice"})
