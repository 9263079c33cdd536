"""Eidolons: pictures whose scales are displaced at random ("partially coherent disarray").

Imports only NumPy, SciPy and landscape.errors. Shapes: h, w = height and width of the picture; the
canvas on which it is filtered, 2h x 2w, is the picture with mirrored surroundings, so that it
continues periodically without a seam.
Source: Koenderink, Valsecchi, van Doorn, Wagemans, Gegenfurtner, Eidolons: Novel stimuli for vision
research, Journal of Vision 17(2):7 (2017), with the constants of the published pictures; written
from formulas, not from anybody's code.
"""

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Complex, Float
from scipy import fft

from landscape.distortions.pointwise import Plane, Rgb, grey_plane, stacked
from landscape.errors import DistortionError

# Standard deviations in pixels of a picture's scales: .707, 1, 1.41 ... 32.
SIGMAS = tuple(2 ** ((k - 1) / 2) for k in range(12))
# The coherent field sums noise of all scales, each weighted by its standard deviation over this.
LARGEST_SIGMA = 64.0
# Every noise plane is scaled to this largest absolute value before it is blurred.
NOISE_PEAK = 127.5


def eidolon(
    picture: Rgb,
    reach: float,
    generator: np.random.Generator,
    *,
    coherence: float,
    grain: float = 10.0,
) -> Rgb:
    """Return g with every scale displaced by random fields, clipped.

    g is decomposed into differences of Gaussians. Each difference is resampled at its own
    displacement reach ((1 - coherence) N + coherence C), independently for the two axes, and the
    displaced ones are added. N is noise of the size `grain`, drawn anew for every scale; C sums
    noise of this and all larger scales, so neighbouring scales move together. The finest scale is g
    blurred with a standard deviation of .707, and positions are truncated to whole pixels, so the
    smallest reach above 0 already blurs the picture and moves parts of it by a pixel.

    The picture keeps its size. The published code scaled it to 256 x 256 first; here all lengths
    are pixels of the picture itself, and no grey value is rounded before the end.

    Args:
        reach: Factor of the displacements, at least 0. At coherence 0 and grain 10 their standard
            deviation is about 0.75 pixels times the reach. 0 gives g itself.
        coherence: 1 (eidolonI), .3 (eidolonII) or 0 (eidolonIII), or anything between.
        grain: Standard deviation in pixels of the Gaussian that blurs N.

    Raises:
        DistortionError: If the picture is too small, see `check_sides`.
    """
    plane = grey_plane(picture)
    check_sides(*plane.shape, coherence=coherence, grain=grain)
    if reach == 0:
        return stacked(plane)
    result = np.zeros_like(plane)
    fields = _displacements(plane.shape, generator, coherence=coherence, grain=grain)
    for slice_, (down, right) in zip(_slices(plane), fields, strict=True):
        result += _resampled(slice_, plane.shape, reach * down, reach * right)
    return stacked(np.clip(result, 0, 1))


def check_sides(height: int, width: int, *, coherence: float, grain: float) -> None:
    """Refuse pictures that are too small for the noise.

    Raises:
        DistortionError: If a side is shorter than twice the largest standard deviation of a blur.
            Noise that is blurred so strongly on so few pixels is constant, and the published shift
            by mean/std moves the whole picture away.
    """
    least = math.ceil(2 * max(grain, SIGMAS[-1] if coherence > 0 else 0.0))
    if min(height, width) < least:
        raise DistortionError(
            f"eidolon: the picture has {height} x {width} pixels, but noise is blurred over "
            f"{least // 2} pixels, and on less than {least} x {least} nothing of it is left. "
            "Enlarge the pictures (--size)."
        )


def _slices(plane: Plane) -> Iterator[Plane]:
    """Yield differences of Gaussians of the canvas, the largest scale first.

    Their sum is the finest blur.
    """
    shape = tuple(2 * side for side in plane.shape)
    spectrum = fft.rfft2(_mirrored(plane))
    larger = np.zeros(shape)
    for sigma in reversed(SIGMAS):
        vertical, horizontal = _transfer(sigma, shape)
        blurred = _inverse(
            spectrum[:, : len(horizontal)] * vertical[:, None] * horizontal, shape[1]
        )
        yield blurred - larger
        larger = blurred


def _displacements(
    shape: tuple[int, ...], generator: np.random.Generator, *, coherence: float, grain: float
) -> Iterator[tuple[Plane, Plane]]:
    """Yield the displacements (down, right) of each scale, the largest first.

    They have the picture's size and are those at reach 1.

    Noise that a coherence of 0 or 1 does not use is not drawn.
    """
    coherent = [np.zeros(shape), np.zeros(shape)]
    for sigma in reversed(SIGMAS):
        fields = []
        for axis in range(2):
            field = np.zeros(shape)
            if coherence < 1:
                field += (1 - coherence) * _noise(shape, grain, generator)
            if coherence > 0:
                coherent[axis] += sigma / LARGEST_SIGMA * _noise(shape, sigma, generator)
                field += coherence * coherent[axis]
            fields.append(field)
        yield fields[0], fields[1]


def _noise(shape: tuple[int, ...], sigma: float, generator: np.random.Generator) -> Plane:
    """Draw blurred normal noise; return its part over the picture.

    The published code divides the mean by the standard deviation before it subtracts it, and so
    does this one. It moves everything by some hundredths of a pixel.
    """
    canvas = tuple(2 * side for side in shape)
    noise = generator.standard_normal(canvas)
    noise *= NOISE_PEAK / max(noise.max(), -noise.min())
    vertical, horizontal = _transfer(sigma, canvas)
    # Only the frequencies that the filter passes are transformed, and only the picture's rows are
    # transformed back.
    spectrum = (
        fft.fft(fft.rfft(noise, axis=1)[:, : len(horizontal)], axis=0)
        * vertical[:, None]
        * horizontal
    )
    mean, std = _moments(spectrum, canvas)
    rows, columns = _centre(shape)
    return _inverse(spectrum, canvas[1], rows)[:, columns] - mean / std


def _transfer(
    sigma: float, shape: tuple[int, ...]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
    """Return a periodic Gaussian's transfer function, for rows and columns of `rfft2`.

    It is exp(-2 pi^2 sigma^2 f^2). The columns end where it falls below exp(-40), less than a
    double can add to 1.
    """
    last = math.sqrt(40 / 2) / (math.pi * sigma)
    horizontal = fft.rfftfreq(shape[1])
    horizontal = horizontal[: max(2, int(np.searchsorted(horizontal, last)))]
    vertical, horizontal = (
        np.exp(-2 * (np.pi * sigma * f) ** 2) for f in (fft.fftfreq(shape[0]), horizontal)
    )
    return vertical, horizontal


def _inverse(
    spectrum: Complex[np.ndarray, "n m"], num_columns: int, rows: slice = slice(None)
) -> Plane:
    """Invert `rfft2` for some rows; columns that are not given are 0."""
    plane: Plane = fft.irfft(fft.ifft(spectrum, axis=0)[rows], n=num_columns, axis=1)
    return plane


def _moments(spectrum: Complex[np.ndarray, "n m"], shape: tuple[int, ...]) -> tuple[float, float]:
    """Return mean and standard deviation of a plane from its `rfft2` (Parseval).

    Columns that are not given are 0.
    """
    power = np.square(np.abs(spectrum)).sum(axis=0)
    # Columns without a mirror image: the zero frequency, and the last one of an even number where
    # it is there.
    alone = power[0] + (power[-1] if len(power) == shape[1] // 2 + 1 else 0.0)
    size = math.prod(shape)
    mean = float(spectrum[0, 0].real) / size
    return mean, math.sqrt((2 * power.sum() - alone) / size**2 - mean**2)


def _mirrored(plane: Plane) -> Plane:
    """Surround the picture with its mirror images, half on each side."""
    return np.pad(plane, [(side // 2, side - side // 2) for side in plane.shape], mode="symmetric")


def _centre(shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(side // 2, side // 2 + side) for side in shape)


def _resampled(canvas: Plane, shape: tuple[int, ...], down: Plane, right: Plane) -> Plane:
    """Read the canvas at displaced positions.

    They are truncated to whole pixels towards zero, and kept within the canvas.
    """
    rows, columns = (np.arange(part.start, part.stop, dtype=np.float64) for part in _centre(shape))
    row = np.clip(np.trunc(rows[:, None] + down), 0, canvas.shape[0] - 1).astype(np.intp)
    column = np.clip(np.trunc(columns + right), 0, canvas.shape[1] - 1).astype(np.intp)
    return canvas[row, column]
