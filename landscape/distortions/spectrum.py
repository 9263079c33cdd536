"""Distortions of the Fourier transform: phase scrambling and power equalisation.

Imports only NumPy, SciPy and landscape.errors. Shapes as in `pointwise`. Amplitude spectra are
those of fftshift(fft2 g), not divided by anything: the zero frequency stands at (h // 2, w // 2).
"""

import numpy as np
from jaxtyping import Complex
from scipy import fft

from landscape.distortions.pointwise import Plane, Rgb, grey_plane, stacked
from landscape.errors import DistortionError


def phase_scrambling(
    picture: Rgb, width: float, generator: np.random.Generator, *, mirrored: bool = False
) -> Rgb:
    """Shift the Fourier phases of g by random angles.

    The real part of the result is taken and clipped. The block of frequencies that has the zero
    frequency at its centre is flattened; if a side is even, its Nyquist frequency stays outside:
    223 x 223 of 224 x 224. Its first half gets angles s, its second half -s in the same order, as
    in the published pictures. That spectrum is not Hermitian: taking the real part lowers the
    contrast. Without clipping the expected power of every frequency in the block falls to (1 + (sin
    w / w)^2)/2 of what it was.

    Args:
        width: Largest angle w in degrees, 0 to 180; the angles are uniform in [-w, w). 0 gives g.
        mirrored: Give -s to the second half in the opposite order, so that the transform stays
            Hermitian. Every amplitude, and so the contrast, is then unchanged until values are
            clipped.
    """
    plane = grey_plane(picture)
    if width == 0:
        return stacked(plane)
    spectrum = fft.fftshift(fft.fft2(plane))
    block = spectrum[_block(plane.shape)]
    angles = np.deg2rad(generator.uniform(-width, width, block.size // 2))
    opposite = -angles[::-1] if mirrored else -angles
    shifts = np.concatenate([angles, [0.0], opposite]).reshape(block.shape)
    spectrum[_block(plane.shape)] = block * np.exp(1j * shifts)
    return _picture_of(spectrum)


def _block(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return slices of the frequencies whose negatives are there too."""
    return tuple(slice(1 - side % 2, None) for side in shape)


def amplitude_spectrum(picture: Rgb) -> Plane:
    """Compute the absolute values of fftshift(fft2 g)."""
    return np.abs(fft.fftshift(fft.fft2(grey_plane(picture))))


def power_equalisation(picture: Rgb, amplitudes: Plane) -> Rgb:
    """Give g another amplitude spectrum and its own phases; clip.

    Args:
        amplitudes: Spectrum as from `amplitude_spectrum`, of the picture's own size: usually the
            mean over a set of pictures.

    Raises:
        DistortionError: If the spectrum has another size than the picture.
    """
    plane = grey_plane(picture)
    check_amplitudes(amplitudes, *plane.shape)
    return _picture_of(amplitudes * np.exp(1j * np.angle(fft.fftshift(fft.fft2(plane)))))


def check_amplitudes(amplitudes: Plane, height: int, width: int) -> None:
    """Refuse a spectrum that does not fit pictures of this size.

    Raises:
        DistortionError: If its shape differs, or it has values that no amplitude can have.
    """
    if amplitudes.shape != (height, width):
        raise DistortionError(
            f"mean spectrum: it has the shape {amplitudes.shape}, but the pictures have {height} x "
            f"{width} pixels, and each frequency of a picture needs one amplitude. Give one of "
            "this size, or none: then it is that of the pictures."
        )
    if not (np.isfinite(amplitudes).all() and amplitudes.min() >= 0):
        raise DistortionError(
            "mean spectrum: it has values that are negative or not finite, so they are no "
            "amplitudes."
        )


def _picture_of(spectrum: Complex[np.ndarray, "h w"]) -> Rgb:
    plane = fft.ifft2(fft.ifftshift(spectrum)).real
    return stacked(np.clip(plane, 0, 1))
