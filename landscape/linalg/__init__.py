"""Algorithms on a symmetric operator; has never heard of a network.

`import landscape.linalg` is instant: the names below are loaded on first use, and those that need no torch do not load it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landscape.linalg.check import OperatorCheck, check_operator
    from landscape.linalg.estimate import Estimate
    from landscape.linalg.lanczos import eigsh
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
    from landscape.linalg.stochastic import NegativeCounts, SpectralDensity
    from landscape.linalg.support import Restriction, restricted

_MODULES = {
    "Combination": "operator",
    "DenseOperator": "operator",
    "EigenPairs": "results",
    "Estimate": "estimate",
    "MissedLook": "missed",
    "NegativeCounts": "stochastic",
    "OperatorCheck": "check",
    "ProbedSpectrum": "probed",
    "Quadrature": "results",
    "Restriction": "support",
    "RitzValues": "results",
    "SpectralDensity": "stochastic",
    "SymmetricOperator": "operator",
    "average": "operator",
    "check_operator": "check",
    "dense_spectrum": "probing",
    "density": "probing",
    "eigsh": "lanczos",
    "power_iteration": "power",
    "restricted": "support",
    "seeded": "operator",
    "shifted": "operator",
    "trace": "probing",
}

__all__ = [
    "Combination",
    "DenseOperator",
    "EigenPairs",
    "Estimate",
    "MissedLook",
    "NegativeCounts",
    "OperatorCheck",
    "ProbedSpectrum",
    "Quadrature",
    "Restriction",
    "RitzValues",
    "SpectralDensity",
    "SymmetricOperator",
    "average",
    "check_operator",
    "dense_spectrum",
    "density",
    "eigsh",
    "power_iteration",
    "restricted",
    "seeded",
    "shifted",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
