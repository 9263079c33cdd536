"""Loss surfaces: the loss along directions and lines, and what curvature predicts there.

`import landscape.surface` is instant: the names below are loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landscape.surface.directions import (
        Direction,
        eigenvector_directions,
        filter_axes,
        filter_normalised,
        random_directions,
    )
    from landscape.surface.quadratic import CurvatureFit, LocalModel, fit_curvature, local_model
    from landscape.surface.slices import (
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

_MODULES = {
    "Axis": "slices",
    "Barrier": "slices",
    "CurvatureFit": "quadratic",
    "Direction": "directions",
    "LocalModel": "quadratic",
    "LossSlice": "slices",
    "LossSurface": "slices",
    "centred": "slices",
    "eigenvector_directions": "directions",
    "fill": "slices",
    "filter_axes": "directions",
    "filter_normalised": "directions",
    "fit_curvature": "quadratic",
    "from_the_middle": "slices",
    "line_losses": "slices",
    "local_model": "quadratic",
    "losses_along": "slices",
    "random_directions": "directions",
}

__all__ = [
    "Axis",
    "Barrier",
    "CurvatureFit",
    "Direction",
    "LocalModel",
    "LossSlice",
    "LossSurface",
    "centred",
    "eigenvector_directions",
    "fill",
    "filter_axes",
    "filter_normalised",
    "fit_curvature",
    "from_the_middle",
    "line_losses",
    "local_model",
    "losses_along",
    "random_directions",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
