r"""Principal angles between eigenspaces of two operators, with a bound of their error.

The computed vectors of k eigenpairs span a space that is tilted against the invariant one by an
angle whose sine is at most |R| / gap: R holds the residuals of the pairs, and the gap lies between
their values and the eigenvalues of the rest (Davis and Kahan's sin-theta theorem). Angles between
two spaces change by at most the tilts of both (the triangle inequality of principal angles).

Knows matrices, not networks: imports only torch and landscape.linalg.
Shapes: n = dimension of the operators, k = dimension of the spaces.

Sources: Davis & Kahan, The rotation of eigenvectors by a perturbation III (1970); Stewart & Sun,
Matrix Perturbation Theory (1990), section V.3; Knyazev & Argentati, Majorization for changes in
angles between subspaces, Ritz values, and graph Laplacian spectra (2006); Björck & Golub, Numerical
methods for computing angles between linear subspaces (1973).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.linalg.results import EigenPairs

_RIGHT = math.pi / 2


@dataclass(frozen=True)
class PrincipalAngles:
    """Angles between two eigenspaces of one dimension.

    Attributes:
        angles: (k,) in radians, ascending: 0 is a shared direction, pi / 2 one that is orthogonal
            to all of the other space.
        error: Bound of the error of every angle, in radians; pi / 2 says that nothing is known, as
            where the last eigenvalue of the space is as large as the next one.
        tilts: Bounds of the angles between computed and invariant spaces, in radians.

    The bounds hold if no eigenvalue was missed; see `EigenPairs.missed`.
    """

    angles: Float[Tensor, " k"]
    error: float
    tilts: tuple[float, float]

    @property
    def overlap(self) -> float:
        """Return the mean of cos^2: 1 for equal spaces, 0 for orthogonal."""
        return float(self.angles.cos().square().mean())

    def __str__(self) -> str:
        if self.error >= _RIGHT:
            return "unknown (no gap after the last eigenvalue)"
        degrees = ", ".join(f"{math.degrees(angle):.3g}" for angle in self.angles.tolist())
        return f"{degrees} degrees ± {math.degrees(self.error):.1g}"


def principal_angles(first: EigenPairs, second: EigenPairs) -> PrincipalAngles:
    """Compute the angles between leading eigenspaces, of all pairs but the last.

    The last pair of each operator tells the gap.

    Args:
        first, second: The k + 1 pairs of largest magnitude of two operators of one size, from
            `eigsh(A, k + 1, "LM")`, with vectors.

    Raises:
        ValueError: If the pairs have no vectors, fewer than two, or their numbers differ.

    Examples:
        >>> import torch, landscape
        >>> from landscape.linalg import DenseOperator
        >>> values = torch.tensor([5.0, 3.0, 1.0, -1.0, -2.0], dtype=torch.float64)
        >>> A = DenseOperator(torch.diag(values))
        >>> B = DenseOperator(torch.diag(values.flip(0)))
        >>> first, second = (landscape.eigsh(operator, k=2) for operator in (A, B))
        >>> landscape.principal_angles(first, second).angles
        tensor([1.5708], dtype=torch.float64)
    """
    for pairs in (first, second):
        if pairs.vectors is None or len(pairs.values) < 2:
            raise ValueError(
                "principal_angles needs k + 1 eigenpairs with vectors, the last of which tells the "
                f"gap, got {len(pairs.values)}{' without vectors' * (pairs.vectors is None)}. Use "
                "landscape.eigsh(A, k + 1, 'LM')."
            )
    assert first.vectors is not None and second.vectors is not None
    if first.vectors.shape != second.vectors.shape:
        raise ValueError(
            f"The spaces must have one dimension, got vectors of shapes "
            f"{tuple(first.vectors.shape)} and {tuple(second.vectors.shape)}. Ask for as many "
            "pairs of both operators."
        )
    tilts = tilt_of(first), tilt_of(second)
    U, V = (pairs.vectors[:, :-1].double().cpu() for pairs in (first, second))  # type: ignore[index]
    return PrincipalAngles(_angles(U, V), min(sum(tilts), _RIGHT), tilts)


def tilt_of(pairs: EigenPairs) -> float:
    """Bound the angle between computed and invariant space, in radians.

    The space is that of all pairs but the last. The pairs are those of largest magnitude; the angle
    is pi / 2 where nothing is known.
    """
    sizes = pairs.values.double().abs()
    norms = torch.where(sizes > 0, sizes * pairs.residuals.double(), pairs.residuals.double())
    # The eigenvalues of the rest are at most as large as the last pair's, whose own error counts;
    # those of the space are further out, so the two are separated by an interval around 0.
    gap = float(sizes[:-1].min() - sizes[-1] - norms[-1])
    residual = float(torch.linalg.vector_norm(norms[:-1]))
    if not pairs.settled or not gap > 0 or not residual < gap:
        return _RIGHT
    return math.asin(residual / gap)


def _angles(U: Float[Tensor, "n k"], V: Float[Tensor, "n k"]) -> Float[Tensor, " k"]:
    """Compute principal angles of orthonormal bases, ascending."""
    inner = U.T @ V
    cosines = torch.linalg.svdvals(inner).clamp(max=1)
    sines = torch.linalg.svdvals(V - U @ inner).flip(0).clamp(max=1)
    # A cosine near 1 tells little of a small angle, and a sine near 1 little of a large one.
    return torch.where(sines**2 < 0.5, sines.asin(), cosines.acos())
