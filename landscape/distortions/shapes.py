"""Silhouettes and edges of your own pictures: black on white.

Imports only NumPy and SciPy. Shapes as in `pointwise`.
"""

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

from landscape.distortions.pointwise import Plane, Rgb, grey_plane, stacked

# Standard deviation in pixels of the blur, and the thresholds of the gradient: those of
# scikit-image's `canny`, where a step of height 1 has a gradient of 4 before it is blurred.
EDGE_SIGMA, WEAK_EDGE, STRONG_EDGE = 1.0, 0.1, 0.2


def silhouette(alpha: Plane) -> Rgb:
    """Draw black where the opacity is above 1/2, white elsewhere."""
    return stacked(np.where(alpha > 0.5, 0.0, 1.0))


def edge(picture: Rgb) -> Rgb:
    """Draw the edges of g as thin black lines on white.

    Source: Canny, A computational approach to edge detection, IEEE PAMI 8 (1986).
    """
    return stacked(np.where(canny(grey_plane(picture)), 0.0, 1.0))


def canny(plane: Plane) -> Bool[np.ndarray, "h w"]:
    """Find strong edges, and weak ones that are connected to them.

    The steps are blur, Sobel gradient, its maxima across the edge, two thresholds. Outside of the
    picture its border is continued. The gradient is compared with values interpolated one pixel
    further along it and one pixel back.
    """
    blurred = ndimage.gaussian_filter(plane, EDGE_SIGMA, mode="nearest")
    down, right = (ndimage.sobel(blurred, axis=axis, mode="nearest") for axis in (0, 1))
    size = np.hypot(down, right)
    unit = np.where(size > 0, size, 1.0)
    position = np.indices(plane.shape)
    step = np.stack([down / unit, right / unit])
    ahead, behind = (
        ndimage.map_coordinates(size, position + sign * step, order=1, mode="nearest")
        for sign in (1, -1)
    )
    # Of two equal neighbours only one is kept, so that straight lines are one pixel wide.
    thin = (size > ahead) & (size >= behind)
    # Pixels that touch at a corner are connected too.
    labels, _ = ndimage.label(thin & (size > WEAK_EDGE), structure=np.ones((3, 3)))
    strong = np.unique(labels[thin & (size > STRONG_EDGE)])
    edges: Bool[np.ndarray, "h w"] = np.isin(labels, strong) & (labels > 0)
    return edges
