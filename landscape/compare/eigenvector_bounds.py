"""Bounds of the errors of kept eigenvectors, from what is stored beside them.

The computed vectors span a space that is tilted against the invariant one by an angle whose sine is
at most |R| / gap: R holds the residuals, and the gap lies between their values and all other
eigenvalues. These are taken to lie where the other Ritz values lie, each widened by its residual.
That is known only of a record that is certified, and the space is that of the leading eigenvalues
only if these are larger, as `which` compares them, than all others.

Sources: Davis and Kahan, The Rotation of Eigenvectors by a Perturbation III, SIAM Journal on
Numerical Analysis 7 (1970); Stewart and Sun, Matrix Perturbation Theory (1990), section V.3.
"""

import numpy as np
from jaxtyping import Float

from landscape.store import StoredVectors

UNKNOWN = np.pi / 2


def angle_error(vectors: StoredVectors, rank: int, *, which: str, tol: float) -> float:
    """Bound the largest angle between a kept space and the true one, in radians.

    The kept vectors span a space within rounding of the Ritz vectors; these lie within the norm of
    their residuals over the gap of the true eigenvectors. The gap is the distance of the leading
    values to the interval that holds all other eigenvalues: that of the other kept values and of
    the unwanted Ritz values, each widened by its residual.

    Args:
        rank: Number of leading vectors that span the space.
        which: End of the spectrum that was measured: "LM", "LA" or "SA".
        tol: Tolerance of the measurement.

    Returns:
        pi / 2 where nothing is known: the record is not certified, or another eigenvalue may be as
        large as the leading ones. Under "LM", 5 is as large as -5, whatever lies between them.
    """
    values, norms = vectors.values, vectors.residuals * np.abs(vectors.values)
    if not is_certified(vectors, which=which, tol=tol):
        return UNKNOWN
    sizes, residual = _sizes(values, which), float(np.linalg.norm(norms[:rank]))
    reach = np.max(np.append(sizes[rank:] + norms[rank:], _reach(vectors, which)))
    # The eigenvalues of the space lie within the residuals of its values.
    if not sizes[:rank].min() - reach > residual:
        return UNKNOWN
    others, other_norms = values[rank:], norms[rank:]
    low = float(np.min(np.append(others - other_norms, vectors.rest[0])))
    high = float(np.max(np.append(others + other_norms, vectors.rest[1])))
    gap = float(np.min(np.maximum(values[:rank] - high, low - values[:rank])))
    return _tilt(residual / gap, float(np.linalg.norm(vectors.rounding[:rank])))


def vector_error(vectors: StoredVectors, index: int, *, which: str, tol: float) -> float:
    """Bound the angle between a kept eigenvector and the true one, in radians.

    As `angle_error`; here the gap is the distance of its value to every other eigenvalue, those of
    the other kept vectors included.

    Args:
        index: Place of the vector, 0 for the leading one.

    Returns:
        pi / 2 where nothing is known: the record is not certified, or another eigenvalue may be as
        large, so that the vector of this place is not determined.
    """
    if not is_certified(vectors, which=which, tol=tol):
        return UNKNOWN
    values, norms = vectors.values, vectors.residuals * np.abs(vectors.values)
    sizes, value, norm = _sizes(values, which), values[index], norms[index]
    larger, smaller = slice(index), slice(index + 1, None)
    above = np.min(sizes[larger] - norms[larger], initial=np.inf)
    below = np.max(sizes[smaller] + norms[smaller], initial=_reach(vectors, which))
    if not (above > sizes[index] + norm and sizes[index] - norm > below):
        return UNKNOWN
    rest = max(value - vectors.rest[1], vectors.rest[0] - value)
    gap = np.min(np.delete(np.abs(values - value) - norms, index), initial=rest)
    return _tilt(float(norm / gap), float(vectors.rounding[index]))


def share_error(angle: float) -> float:
    """Bound how much a share of |v|^2 changes when v turns by at most an angle.

    The share of a module is cos^2 of the angle a between v and its coordinates, and |cos^2 a -
    cos^2 b| = sin |a - b| sin(a + b), where |a - b| is at most the angle by which v turns.
    """
    return float(np.sin(min(angle, UNKNOWN)))


def participation_error(ratio: float, angle: float) -> float:
    """Bound how much a participation ratio changes when v turns by at most an angle.

    The ratio is the fourth power of the 4-norm of the unit vector. By the triangle inequality this
    norm changes by at most the 4-norm of the difference, which is at most its length.
    """
    length = 2 * np.sin(min(angle, UNKNOWN) / 2)
    return float(min((ratio**0.25 + length) ** 4 - ratio, 1.0))


def is_certified(vectors: StoredVectors, *, which: str, tol: float) -> bool:
    """Tell whether the kept values are certainly those that were asked for.

    These are the conditions `converged` and `settled` of `EigenPairs`, derived from what is stored:
    all residuals are at most `tol`, and every other Ritz value, widened by its residual, is at most
    as large as the last kept one, but for `tol`. False for methods that keep no other Ritz values.
    """
    last = np.min(_sizes(vectors.values, which)) + tol * abs(vectors.values[-1])
    return bool(np.all(vectors.residuals <= tol) and _reach(vectors, which) <= last)


def _sizes(values: Float[np.ndarray, " k"], which: str) -> Float[np.ndarray, " k"]:
    """Compute the sort key for `which`: larger means wanted first."""
    return {"LM": np.abs(values), "LA": values, "SA": -values}[which]


def _reach(vectors: StoredVectors, which: str) -> float:
    """Bound the size of all values that are not kept; -inf where there are none."""
    low, high = map(float, vectors.rest)
    return {"LM": max(high, -low), "LA": high, "SA": -low}[which]


def _tilt(sine: float, rounding: float) -> float:
    """Add the angles of two sines: of the residuals, and of what rounding took."""
    return float(min(np.arcsin(np.clip([sine, rounding], 0, 1)).sum(), UNKNOWN))
