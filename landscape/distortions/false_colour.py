"""False colour: every colour becomes its opponent of equal luminance, in linear light.

Imports only NumPy and landscape.errors. Shapes as in `pointwise`.
"""

from functools import cache

import numpy as np
from jaxtyping import Float, Int

from landscape.distortions.pointwise import Rgb
from landscape.errors import DistortionError

# Linear light of each of the 256 values of a byte, ascending from 0 to 1.
Lut = Float[np.ndarray, "256"]

# Luminance in linear light. The published code has three matrices (to cone responses, inversion
# about a white point, and back). Their product is the reflection below with these weights.
LUMINANCE = (0.258828, 0.607436, 0.133735)


@cache
def srgb_lut() -> Lut:
    """Return the transfer function of sRGB at the values of a byte.

    Source: IEC 61966-2-1.
    """
    values = np.arange(256) / 255
    lut: Lut = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    lut.flags.writeable = False
    return lut


def check_lut(lut: Float[np.ndarray, "..."]) -> Lut:
    """Return a table of linear light as (256,).

    Raises:
        DistortionError: If it has not 256 values that ascend from 0 to 1.
    """
    flat = np.asarray(lut, dtype=np.float64).reshape(-1)
    if flat.shape != (256,) or not (np.diff(flat) > 0).all() or flat[0] < 0 or flat[-1] > 1:
        raise DistortionError(
            "gamma table: expected 256 values that ascend from 0 to 1, the linear light of each "
            f"byte, got the shape {np.shape(lut)} or others. False colour is reflected in linear "
            "light. Give such a table, or none for sRGB's."
        )
    return flat


def opponent(linear: Rgb) -> Rgb:
    """Reflect linear light v about the grey axis, without clipping.

    The result is 2 Y (1, 1, 1) - v, with the luminance Y of v.
    """
    red, green, blue = LUMINANCE
    light = red * linear[..., 0] + green * linear[..., 1] + blue * linear[..., 2]
    opposite: Rgb = 2 * light[..., None] - linear
    return opposite


def false_colour(picture: Rgb, lut: Lut | None = None) -> Rgb:
    """Replace every colour by its opponent of the same luminance.

    The colour is converted to linear light, reflected, clipped, and converted back to the nearest
    byte.

    Args:
        picture: Values are rounded to bytes first, for which the table holds.
        lut: Linear light of each byte; None for sRGB's. The published pictures have the table
            x_gamma_function.npy.
    """
    lut = srgb_lut() if lut is None else lut
    linear = lut[np.rint(255 * picture).astype(np.intp)]
    return nearest_bytes(np.clip(opponent(linear), 0, 1), lut) / 255


def nearest_bytes(linear: Rgb, lut: Lut) -> Int[np.ndarray, "h w 3"]:
    """Return the byte whose linear light is nearest.

    If two are equally near, it is the lower one, as with argmin.
    """
    return np.searchsorted((lut[1:] + lut[:-1]) / 2, linear, side="left")
