"""From (model, loss, batch) to a symmetric operator."""

from landscape.curvature.audit import AuditReport, AuditRow, audit, audit_objective
from landscape.curvature.batches import HessianOfBatches, hessian_of_batches
from landscape.curvature.choice import ProductChoice
from landscape.curvature.directions import (
    Direction,
    eigenvector_directions,
    filter_axes,
    filter_normalised,
    random_directions,
)
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
from landscape.curvature.quadratic import CurvatureFit, LocalModel, fit_curvature, local_model
from landscape.curvature.reference import pyhessian_eigenpairs
from landscape.curvature.surface import (
    Axis,
    Barrier,
    LossSlice,
    LossSurface,
    centred,
    fill,
    from_the_middle,
    line_losses,
    losses_along,
)

__all__ = [
    "AuditReport",
    "AuditRow",
    "Axis",
    "Barrier",
    "Batch",
    "ConvexCut",
    "CurvatureFit",
    "Direction",
    "FiniteDifferenceOperator",
    "GaussNewtonOperator",
    "HessianBlocks",
    "HessianOfBatches",
    "HessianOperator",
    "LocalModel",
    "LossSlice",
    "LossSurface",
    "ModuleSpectrum",
    "Objective",
    "Params",
    "ProductChoice",
    "audit",
    "audit_objective",
    "call_with_parameters",
    "centred",
    "check_twice_differentiable",
    "coordinates_of",
    "eigenvector_directions",
    "fill",
    "filter_axes",
    "filter_normalised",
    "fit_curvature",
    "from_the_middle",
    "flatten",
    "gauss_newton",
    "gradient",
    "hessian",
    "hessian_of_batches",
    "line_losses",
    "local_model",
    "losses_along",
    "modules_of",
    "per_module_spectra",
    "pyhessian_eigenpairs",
    "random_directions",
    "select_parameters",
    "spectra_of",
    "squared_norm",
    "unflatten",
]
