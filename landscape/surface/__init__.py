"""Loss surfaces: the loss along directions and lines, and what curvature predicts there."""

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
