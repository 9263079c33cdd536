"""Low-pass and high-pass filters: a Gaussian that is truncated at 4 standard deviations.

Imports only NumPy, SciPy and landscape.errors. Shapes as in `pointwise`.
"""

import math

import numpy as np
from scipy import ndimage

from landscape.distortions.pointwise import Plane, Rgb, grey_plane, stacked
from landscape.errors import DistortionError

# The grey around the picture, and the mean of a high-passed picture. It is the constant of the
# published code (the mean of its ImageNet pictures).
MEAN_GREY = 0.4423
# Standard deviations at which the Gaussian is truncated: SciPy's default, as in the published code.
TRUNCATE = 4.0


def check_sigma(sigma: float, height: int, width: int) -> None:
    """Refuse a filter that is wider than the picture.

    Raises:
        DistortionError: If sigma is larger than the longer side, negative or NaN.
    """
    if not 0 <= sigma <= max(height, width):
        raise DistortionError(
            f"sigma {sigma:g}: expected 0 to {max(height, width)}, the longer side of a picture of "
            f"{height} x {width} pixels. A wider filter sees little but the constant border. Lower "
            "sigma, or enlarge the pictures (--size)."
        )


def low_pass(picture: Rgb, sigma: float) -> Rgb:
    """Blur g: clip(G * g).

    Outside of the picture is the constant .4423.

    Args:
        sigma: Standard deviation of the Gaussian G in pixels, whatever the picture's size; 0 gives
            g.

    Raises:
        DistortionError: If sigma is larger than the picture.
    """
    plane = grey_plane(picture)
    check_sigma(sigma, *plane.shape)
    return stacked(np.clip(_blurred(plane, sigma), 0, 1))


def high_pass(picture: Rgb, sigma: float) -> Rgb:
    """Remove the blur from g, around a mean grey.

    The result is clip(h - mean h + .4423) with h = g - G * g. Outside of the picture is the
    constant .4423.

    Args:
        sigma: Standard deviation of the Gaussian G in pixels; inf gives clip(g - mean g + .4423),
            the limit, without a filter.

    Raises:
        DistortionError: If sigma is finite and larger than the picture, or 0, where nothing is
            left.
    """
    plane = grey_plane(picture)
    if sigma == 0:
        raise DistortionError(
            "high-pass: sigma 0 leaves nothing of the picture. Use a larger one; inf is the clean "
            "picture."
        )
    if not math.isinf(sigma):
        check_sigma(sigma, *plane.shape)
        plane = plane - _blurred(plane, sigma)
    return stacked(np.clip(plane - plane.mean() + MEAN_GREY, 0, 1))


def _blurred(plane: Plane, sigma: float) -> Plane:
    if sigma == 0:
        return plane
    blurred: Plane = ndimage.gaussian_filter(
        plane, sigma, mode="constant", cval=MEAN_GREY, truncate=TRUNCATE
    )
    return blurred
