"""Algorithms on a symmetric operator, without any knowledge of networks.

`import landscape.linalg` is instant: the names below are loaded on first use, and those that need
no torch do not load it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landscape.linalg.angles import PrincipalAngles, principal_angles
    from landscape.linalg.block_scaled import BlockScaledOperator, MatrixFactor
    from landscape.linalg.blocks import BlockMasses, block_masses
    from landscape.linalg.check import OperatorCheck, check_operator
    from landscape.linalg.comparison import CurvatureComparison, Likeness, compare_curvature
    from landscape.linalg.coordinates import Coordinates
    from landscape.linalg.diagonals import DiagonalEstimate, DiagonalOperator, diagonal
    from landscape.linalg.estimate import Estimate
    from landscape.linalg.lanczos import (
        MIN_EXTRA_VECTORS,
        eigsh,
        num_spot_checks,
        num_vectors_in,
    )
    from landscape.linalg.missed import MissedLook
    from landscape.linalg.operator import (
        Combination,
        DenseOperator,
        SymmetricOperator,
        average,
        seeded,
        shifted,
    )
    from landscape.linalg.power import power_iteration
    from landscape.linalg.probed import ProbedSpectrum
    from landscape.linalg.probing import dense_spectrum, density, trace
    from landscape.linalg.results import EigenPairs, Quadrature, RitzValues
    from landscape.linalg.scaled import ScaledOperator
    from landscape.linalg.stochastic import NegativeCounts, SpectralDensity
    from landscape.linalg.support import Restriction, restricted
    from landscape.linalg.vectors import norm

_MODULES = {
    "MIN_EXTRA_VECTORS": "lanczos",
    "BlockMasses": "blocks",
    "BlockScaledOperator": "block_scaled",
    "Combination": "operator",
    "Coordinates": "coordinates",
    "CurvatureComparison": "comparison",
    "DenseOperator": "operator",
    "DiagonalEstimate": "diagonals",
    "DiagonalOperator": "diagonals",
    "EigenPairs": "results",
    "Estimate": "estimate",
    "Likeness": "comparison",
    "MatrixFactor": "block_scaled",
    "MissedLook": "missed",
    "NegativeCounts": "stochastic",
    "OperatorCheck": "check",
    "PrincipalAngles": "angles",
    "ProbedSpectrum": "probed",
    "Quadrature": "results",
    "Restriction": "support",
    "RitzValues": "results",
    "ScaledOperator": "scaled",
    "SpectralDensity": "stochastic",
    "SymmetricOperator": "operator",
    "average": "operator",
    "block_masses": "blocks",
    "check_operator": "check",
    "compare_curvature": "comparison",
    "dense_spectrum": "probing",
    "density": "probing",
    "diagonal": "diagonals",
    "eigsh": "lanczos",
    "norm": "vectors",
    "num_spot_checks": "lanczos",
    "num_vectors_in": "lanczos",
    "power_iteration": "power",
    "principal_angles": "angles",
    "restricted": "support",
    "seeded": "operator",
    "shifted": "operator",
    "trace": "probing",
}

__all__ = [
    "MIN_EXTRA_VECTORS",
    "BlockMasses",
    "BlockScaledOperator",
    "Combination",
    "Coordinates",
    "CurvatureComparison",
    "DenseOperator",
    "DiagonalEstimate",
    "DiagonalOperator",
    "EigenPairs",
    "Estimate",
    "Likeness",
    "MatrixFactor",
    "MissedLook",
    "NegativeCounts",
    "OperatorCheck",
    "PrincipalAngles",
    "ProbedSpectrum",
    "Quadrature",
    "Restriction",
    "RitzValues",
    "ScaledOperator",
    "SpectralDensity",
    "SymmetricOperator",
    "average",
    "block_masses",
    "check_operator",
    "compare_curvature",
    "dense_spectrum",
    "density",
    "diagonal",
    "eigsh",
    "norm",
    "num_spot_checks",
    "num_vectors_in",
    "power_iteration",
    "principal_angles",
    "restricted",
    "seeded",
    "shifted",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
