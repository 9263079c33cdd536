"""Distortions of single pixels, and rotation: colour, contrast, uniform noise.

Imports only NumPy and landscape.errors. Shapes: h = height, w = width; pictures are float64 in [0,
1].
Formulas: generalisation-humans-DNNs, code/image_manipulation.py (Geirhos et al., NeurIPS 2018),
written anew.
"""

import numpy as np
from jaxtyping import Float, UInt8

from landscape.errors import DistortionError

Rgb = Float[np.ndarray, "h w 3"]
Plane = Float[np.ndarray, "h w"]

# scikit-image's rgb2gray, with which the published pictures were made; Pillow's and torch's are
# .299, .587, .114.
GREY_WEIGHTS = (0.2125, 0.7154, 0.0721)
# Uniform noise is added to a picture of this contrast, around this grey.
NOISE_CONTRAST, NOISE_GREY = 0.3, 0.5


def check_picture(picture: Rgb) -> None:
    """Refuse arrays that are no picture.

    Raises:
        ValueError: If the array has another shape than (h, w, 3), is empty, or has a value outside
            of [0, 1].
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise ValueError(f"picture must have the shape (height, width, 3), got {picture.shape}.")
    # The comparisons are False for NaN too.
    if not (picture.min() >= 0 and picture.max() <= 1):
        raise ValueError("picture must have values in [0, 1]; divide bytes by 255.")


def grey_plane(picture: Rgb) -> Plane:
    """Compute the luminance g = .2125 R + .7154 G + .0721 B."""
    red, green, blue = GREY_WEIGHTS
    plane: Plane = red * picture[..., 0] + green * picture[..., 1] + blue * picture[..., 2]
    return plane


def stacked(plane: Plane) -> Rgb:
    """Stack a grey plane to a picture of three equal channels."""
    return np.repeat(plane[..., None], 3, axis=2)


def to_bytes(picture: Rgb) -> UInt8[np.ndarray, "h w 3"]:
    """Convert to uint8(255 x), truncated and not rounded.

    The published pictures were saved in this way.
    """
    return np.asarray(255 * picture).astype(np.uint8)


def greyscale(picture: Rgb) -> Rgb:
    """Return the grey picture g, with three equal channels."""
    return stacked(grey_plane(picture))


def contrast(picture: Rgb, level: float) -> Rgb:
    """Lower the contrast of g to c: (1 - c)/2 + c g.

    Values move towards 0.5, not towards the picture's mean.

    Args:
        level: Contrast c in [0, 1]; 1 gives g.
    """
    return stacked(_with_contrast(grey_plane(picture), level))


def _with_contrast(plane: Plane, level: float) -> Plane:
    return (1 - level) / 2 + level * plane


def uniform_noise(picture: Rgb, width: float, generator: np.random.Generator) -> Rgb:
    """Add uniform noise: clip(.35 + .3 g + U), U in [-w, w).

    U is independent for every pixel. The contrast is lowered to 30 % first, so w = 0 is no clean
    picture.

    Args:
        width: Half the width w of the noise, at least 0; above 0.65 every value of U may be
            clipped.
    """
    plane = _with_contrast(grey_plane(picture), NOISE_CONTRAST)
    return stacked(np.clip(plane + generator.uniform(-width, width, plane.shape), 0, 1))


def rotation(picture: Rgb, degrees: float) -> Rgb:
    """Rotate g counter-clockwise.

    A picture that is not square changes its shape for 90 and 270 degrees.

    Raises:
        DistortionError: If the angle is no multiple of 90 degrees.
    """
    if degrees % 90:
        raise DistortionError(
            f"rotation: {degrees:g} degrees, but only multiples of 90 move pixels to pixels. Use "
            "one."
        )
    return np.ascontiguousarray(np.rot90(greyscale(picture), int(degrees // 90)))
