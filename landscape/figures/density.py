"""Smoothing of an eigenvalue density for drawing.

A density has to be computed in the coordinate in which it is drawn, otherwise the areas under it
mean nothing. Everything here works in u = asinh(lambda / w), see asinh_axis.py.

Shapes: n = values, m = grid points.
"""

import math

import numpy as np
from jaxtyping import Float

# Rows of the (values, grid) kernel matrix held at once.
_CHUNK = 4096


def bandwidth(drawn: Float[np.ndarray, " n"], *, floor: float, ceiling: float = math.inf) -> float:
    """Choose the standard deviation of the Gaussian kernel, in u.

    0.9 min(s, IQR / 1.34) n^(-1/5), with s and IQR of the deviations from the mean of the values
    *of the same sign*. The largest magnitudes are never near zero, so the two signs are separate
    clusters. Applied to both together, the rule would take the gap between them for spread and
    smooth the curves over it.

    Args:
        drawn: Finite values u, at least one.
        floor: Smallest bandwidth to return, in units of u; it applies where all values are equal.
        ceiling: Largest bandwidth, unless the floor is larger; it applies where a few values are
            far apart.

    Source: Silverman, Density Estimation for Statistics and Data Analysis (1986), eq. (3.31).
    """
    deviations = np.concatenate(
        [side - side.mean() for side in (drawn[drawn < 0], drawn[drawn >= 0]) if side.size]
    )
    spread = float(np.sqrt(np.mean(deviations**2)))
    quartiles = float(np.subtract(*np.quantile(deviations, [0.75, 0.25]))) / 1.34
    if quartiles > 0:
        spread = min(spread, quartiles)
    return max(min(0.9 * spread * drawn.size ** (-0.2), ceiling), floor)


def kernel_density(
    drawn: Float[np.ndarray, " n"], grid: Float[np.ndarray, " m"], *, width: float
) -> Float[np.ndarray, " m"]:
    """Average Gaussian kernels around the values, per unit of u.

    The kernels have the standard deviation `width`; the integral is 1.

    Written out because `scipy.stats.gaussian_kde` refuses values that are all equal.
    """
    total = np.zeros(grid.shape)
    for chunk in np.array_split(drawn, math.ceil(drawn.size / _CHUNK)):
        total += np.exp(-0.5 * ((grid[None, :] - chunk[:, None]) / width) ** 2).sum(axis=0)
    return total / (drawn.size * width * math.sqrt(2 * math.pi))
