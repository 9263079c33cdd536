"""Hessian spectra of image-text models and any PyTorch model, with certificates.

`import landscape` is instant: the names below are loaded on first use.
"""

import importlib
from typing import Any

from landscape.version import VERSION as __version__

_EXPORTS = {
    "audit": "landscape.curvature",
    "FiniteDifferenceOperator": "landscape.curvature",
    "GaussNewtonOperator": "landscape.curvature",
    "gauss_newton": "landscape.curvature",
    "EmpiricalFisherOperator": "landscape.curvature",
    "empirical_fisher": "landscape.curvature",
    "hessian": "landscape.sharded",
    "hessian_of_batches": "landscape.curvature",
    "Objective": "landscape.curvature",
    "per_module_spectra": "landscape.curvature",
    "HessianOperator": "landscape.curvature",
    "ShardedFiniteDifferenceOperator": "landscape.sharded",
    "ShardedHessianOperator": "landscape.sharded",
    "SymmetricOperator": "landscape.linalg",
    "EigenPairs": "landscape.linalg",
    "average": "landscape.linalg",
    "block_masses": "landscape.linalg",
    "compare_curvature": "landscape.linalg",
    "diagonal": "landscape.linalg",
    "principal_angles": "landscape.linalg",
    "check_operator": "landscape.linalg",
    "eigsh": "landscape.linalg",
    "restricted": "landscape.linalg",
    "shifted": "landscape.linalg",
    "density": "landscape.linalg",
    "trace": "landscape.linalg",
    "Estimate": "landscape.linalg",
    "SpectralDensity": "landscape.linalg",
    "NegativeCounts": "landscape.linalg",
    "power_iteration": "landscape.linalg",
    "preconditioned": "landscape.stability",
    "preconditioner_of": "landscape.stability",
    "stability_threshold": "landscape.stability",
    "critical_sharpness": "landscape.stability",
    "directional_sharpness": "landscape.stability",
    "keskar_sharpness": "landscape.stability",
    "next_update": "landscape.stability",
    "sam_sharpness": "landscape.stability",
    "Update": "landscape.stability",
    "Manifest": "landscape.manifest",
    "SharpnessMonitor": "landscape.monitor",
    "SpectrumStore": "landscape.store",
}

__all__ = ["__version__", *sorted(_EXPORTS)]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'landscape' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
