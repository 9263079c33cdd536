"""landscape: Hessian spectra of contrastive image-text models, and of any PyTorch model, with certificates.

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
    "hessian": "landscape.curvature",
    "hessian_of_batches": "landscape.curvature",
    "Objective": "landscape.curvature",
    "per_module_spectra": "landscape.curvature",
    "HessianOperator": "landscape.curvature",
    "SymmetricOperator": "landscape.linalg",
    "EigenPairs": "landscape.linalg",
    "average": "landscape.linalg",
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
    "Manifest": "landscape.manifest",
    "SpectrumStore": "landscape.store",
}

__all__ = ["__version__", *sorted(_EXPORTS)]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'landscape' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
