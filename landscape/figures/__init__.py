"""Figures drawn with matplotlib from tables of numbers.

Opens no data file and computes no statistic beyond what drawing needs. A figure function takes
plain samples and returns a `matplotlib.figure.Figure`. It is drawn without pyplot, so nothing
global changes and no display is needed; only `save_figure` writes. matplotlib is imported when
something is drawn, or at once where MPLBACKEND could make that fail. Smoothing belongs to drawing
and is done here: the stores keep the values themselves.
"""

import os

from landscape.figures.asinh_axis import AsinhAxis
from landscape.figures.backend import import_matplotlib
from landscape.figures.density import bandwidth, kernel_density
from landscape.figures.density_layout import DensitySample
from landscape.figures.density_panels import density_figure
from landscape.figures.eigenvalue_panels import figure3
from landscape.figures.eigenvectors import eigenvectors, vector_modules
from landscape.figures.loss_slices import loss_slice
from landscape.figures.loss_surfaces import contour_levels, loss_contour, loss_surface_3d
from landscape.figures.module_map import ModuleSample, module_heat_map
from landscape.figures.observers import MAX_MODELS
from landscape.figures.ood_bars import BAR_METRICS, ood_bars, own_bars
from landscape.figures.ood_conditions import ood_conditions
from landscape.figures.own_conditions import ConditionCurve, own_conditions
from landscape.figures.page_options import PageOptions
from landscape.figures.samples import PUBLISHED_EPOCHS, EigenvalueSample, epochs_to_draw
from landscape.figures.shape_bias import shape_bias_matrix
from landscape.figures.sharpness import PANELS, sharpness
from landscape.figures.style import MAX_SERIES, SUFFIXES, save_figure
from landscape.figures.training import training

if "MPLBACKEND" in os.environ:
    import_matplotlib()

__all__ = [
    "BAR_METRICS",
    "MAX_MODELS",
    "MAX_SERIES",
    "PANELS",
    "PUBLISHED_EPOCHS",
    "SUFFIXES",
    "AsinhAxis",
    "ConditionCurve",
    "DensitySample",
    "EigenvalueSample",
    "ModuleSample",
    "PageOptions",
    "bandwidth",
    "contour_levels",
    "density_figure",
    "eigenvectors",
    "epochs_to_draw",
    "figure3",
    "kernel_density",
    "loss_contour",
    "loss_slice",
    "loss_surface_3d",
    "module_heat_map",
    "ood_bars",
    "ood_conditions",
    "own_bars",
    "own_conditions",
    "save_figure",
    "shape_bias_matrix",
    "sharpness",
    "training",
    "vector_modules",
]
