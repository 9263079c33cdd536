r"""Bounds that one Gauss quadrature proves for the measure behind it.

A probe v sees the measure that puts (v^T q_i)^2 at each eigenvalue lambda_i. Its quadrature has the
same first 2m moments, so it is exact for polynomials up to degree 2m - 1; of a step, such as the
share of negative eigenvalues, it proves an interval only, which is computed here. Where much of the
measure sits at the step, the interval is wide, as it must be.
Knows numbers, not operators: imports only numpy. Shapes: m = nodes, g = grid points.

Source: Karlin & Studden, Tchebycheff Systems (1966), chapter IV (Chebyshev-Markov-Stieltjes
inequalities, canonical representations); Golub & Meurant, Matrices, Moments and Quadrature (2010),
sections 6.2 and 10.1.
"""

import numpy as np
from jaxtyping import Float

# What the weights of a rule may be off by: they come from dense eigensolvers in float64.
_WEIGHT_ROUNDING = 1e-13
# Components of eigenvectors whose eigenvalues lie a gap apart are wrong by about this times the
# norm over the gap.
_MIXING = 1e-13
Interval = tuple[float, float]


def mass_below(
    nodes: Float[np.ndarray, " m"],
    weights: Float[np.ndarray, " m"],
    point: float,
    *,
    remainder: float | None = None,
) -> Interval:
    """Bound the measure of (-inf, point) and of (-inf, point].

    The interval is the tightest that holds both.

    Args:
        nodes: Distinct, ascending.
        weights: Positive; they sum to 1.
        remainder: The off-diagonal entry that would continue the tridiagonal matrix, where it is
            known: one moment more. A remainder of 0 says that the rule is the measure itself.
    """
    # Chebyshev-Markov-Stieltjes inequalities: of all measures with these moments, the rule with a
    # node at `point` has the least mass below it, and with the weight of that node the most.
    rule_nodes, rule_weights = radau_rule(nodes, weights, point, remainder=remainder)
    fixed = int(np.abs(rule_nodes - point).argmin())
    below = float(rule_weights[:fixed].sum())
    return max(0.0, below - _WEIGHT_ROUNDING), min(
        1.0, below + float(rule_weights[fixed]) + _WEIGHT_ROUNDING
    )


def radau_rule(
    nodes: Float[np.ndarray, " m"],
    weights: Float[np.ndarray, " m"],
    point: float,
    *,
    remainder: float | None = None,
) -> tuple[Float[np.ndarray, " r"], Float[np.ndarray, " r"]]:
    r"""Build the quadrature with a prescribed node at `point`.

    It has the known moments of the measure, apart from the last one.

    In the eigenvector basis of the tridiagonal matrix T, moving its last diagonal entry is a
    rank-one change tau s s^T, where s holds the last components of the eigenvectors: s_j^2 is
    proportional to 1 / (w_j prod_{k != j} (theta_j - theta_k)^2). With the remainder known, T grows
    by a row instead, and its new entry moves.

    Returns:
        r = m nodes, or m + 1 with a remainder, ascending, and their weights.
    """
    theta, first = _determined(nodes, weights)
    last = _last_components(theta, first)
    distance = theta - point
    if (distance == 0).any():
        return theta, first**2
    # Secular equation: `point` is an eigenvalue of diag(theta) - s s^T / pull exactly if
    # pull = s^T (diag(theta) - point)^{-1} s.
    pull = float(np.sum(last**2 / distance))
    if remainder is None:
        if pull == 0:
            return theta, first**2
        matrix = np.diag(theta) - np.outer(last, last) / pull
    else:
        # The Schur complement alpha - point - remainder^2 pull of the grown matrix must vanish,
        # which gives its new diagonal entry alpha.
        matrix = np.diag(np.append(theta, point + remainder**2 * pull))
        matrix[-1, :-1] = matrix[:-1, -1] = remainder * last
        first = np.append(first, 0.0)
        # The point is a node already, to rounding; the entry at infinity carries no weight.
        if not np.isfinite(matrix).all():
            return theta, first[:-1] ** 2
    # Weights are squared components of the eigenvectors along the start, here in the old
    # eigenbasis.
    values, vectors = np.linalg.eigh(matrix)
    return values, (first @ vectors) ** 2


def _determined(
    nodes: Float[np.ndarray, " m"], weights: Float[np.ndarray, " m"]
) -> tuple[Float[np.ndarray, " r"], Float[np.ndarray, " r"]]:
    """Merge nodes whose weights rounding has made meaningless.

    Returns the nodes that are left, and the roots of their weights.

    The copies of a multiple eigenvalue that rounding lets into a Krylov space are nodes side by
    side, with the weight of one shared at random. Together they are one, and the rule is one of
    fewer nodes, exact to as many moments as that can be.
    """
    theta, first = [float(nodes[0])], [float(np.sqrt(weights[0]))]
    scale = float(np.abs(nodes).max())
    for node, size in zip(nodes[1:].tolist(), np.sqrt(weights[1:]).tolist()):
        # Rounding mixes two eigenvectors by about eps |T| / gap times the larger component; a
        # smaller component below that is noise.
        small, large = sorted((size, first[-1]))
        if small * (node - theta[-1]) > _MIXING * scale * large:
            theta.append(node)
            first.append(size)
        else:
            theta[-1] = theta[-1] if first[-1] >= size else node
            first[-1] = float(np.hypot(first[-1], size))
    return np.array(theta), np.array(first) / np.linalg.norm(first)


def _last_components(
    theta: Float[np.ndarray, " m"], first: Float[np.ndarray, " m"]
) -> Float[np.ndarray, " m"]:
    """Compute the last components of a tridiagonal matrix's unit eigenvectors.

    Known are its eigenvalues theta and the first components of its unit eigenvectors.
    """
    gaps = theta[:, None] - theta[None, :]
    np.fill_diagonal(gaps, 1.0)
    # s_j^2 ~ 1 / (w_j prod_{k != j} (theta_j - theta_k)^2), in logarithms, as products overflow.
    logs = -np.log(first) - np.log(np.maximum(np.abs(gaps), np.finfo(float).tiny)).sum(axis=1)
    sizes = np.exp(logs - logs.max())
    # The signs of the derivative of the characteristic polynomial alternate.
    return sizes / np.linalg.norm(sizes) * (-1.0) ** np.arange(len(theta))[::-1]


def cumulative_bounds(
    nodes: Float[np.ndarray, " m"], weights: Float[np.ndarray, " m"], grid: Float[np.ndarray, " g"]
) -> tuple[Float[np.ndarray, " g"], Float[np.ndarray, " g"]]:
    """Bound the measure of (-inf, x] on both sides at many points.

    The bounds are sums of the weights up to the nodes around x.

    Wider than `mass_below` by a factor of about two, and as cheap as a sum.
    """
    # Stieltjes: at node i the measure of (-inf, x] lies between w_1 + ... + w_{i-1} and that plus
    # w_i. Between two nodes it is monotone, so one weight more is open on each side.
    sums = np.concatenate([[0.0], np.cumsum(weights)])
    below = np.searchsorted(nodes, grid, side="right")
    return sums[np.maximum(below - 1, 0)], np.minimum(sums[np.minimum(below + 1, len(nodes))], 1.0)


def negative_part(
    nodes: Float[np.ndarray, " m"],
    weights: Float[np.ndarray, " m"],
    *,
    remainder: float | None = None,
) -> tuple[float, Interval]:
    r"""Integrate max(-x, 0) by the rule, and bound the true value.

    Let F and G be the distribution functions of the measure and of the rule, and

        K(t) = int (x - t)_+ dF - int (x - t)_+ dG,

    so that K' = F - G. Both integrals agree for polynomials, so K is
    orthogonal to all polynomials of degree 2m - 3 and changes sign at least 2m - 2 times; F - G
    rises between two nodes, where G is constant, so K is convex there and changes sign twice at
    most. It therefore has two zeros z1 < z2 between any two nodes, falls to z1 and rises from z2:
    bounds of F bound K(0), the error of the rule.
    """
    value = float(np.sum(weights * np.maximum(-nodes, 0)))
    k = int(np.searchsorted(nodes, 0.0, side="right")) - 1
    if 0 <= k < len(nodes) - 1:
        rise = float(weights[: k + 1].sum())
        to_left = _excesses(nodes, weights, rise, np.array([nodes[k], 0.0]), remainder)
        to_right = _excesses(nodes, weights, rise, np.array([0.0, nodes[k + 1]]), remainder)
        # K(0) = int_0^z1 (G - F) where 0 < z1, int_z2^0 (F - G) where z2 < 0; between them, minus
        # one of the other integrals.
        low, high = -min(to_left[0], to_right[1]), max(to_right[0], to_left[1])
        return value, (max(value + low, 0.0), value + high)
    # All nodes lie on one side of zero; what the measure has on the other is bounded by Cauchy and
    # Schwarz: for S of measure p, the integral of |x| over S is at most sqrt(p int x^2).
    below, up_to = mass_below(nodes, weights, 0.0, remainder=remainder)
    beyond = up_to if k < 0 else 1 - below
    return value, (
        value,
        value + float(np.sqrt(beyond * _second_moment(nodes, weights, remainder))),
    )


# Where F is bounded between zero and the next node, as fractions of the way: denser towards zero,
# where eigenvalues crowd.
_FRACTIONS = np.array([0.0, 1e-6, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 0.6, 1.0])


def _excesses(
    nodes: Float[np.ndarray, " m"],
    weights: Float[np.ndarray, " m"],
    rise: float,
    ends: Float[np.ndarray, " 2"],
    remainder: float | None,
) -> tuple[float, float]:
    """Bound int (G - F)_+ and int (F - G)_+ from above.

    The integrals run between zero and a node beside it, where G has the constant value `rise`.
    """
    toward = ends[0] if ends[1] == 0 else ends[1]
    points = np.sort(toward * _FRACTIONS)
    bounds = np.array(
        [mass_below(nodes, weights, float(point), remainder=remainder) for point in points]
    )
    steps = np.diff(points)
    # F rises, so its lower bound at the left end of a step holds on the step, and its upper bound
    # at the right end.
    return float(steps @ np.maximum(rise - bounds[:-1, 0], 0)), float(
        steps @ np.maximum(bounds[1:, 1] - rise, 0)
    )


def _second_moment(
    nodes: Float[np.ndarray, " m"], weights: Float[np.ndarray, " m"], remainder: float | None
) -> float:
    """Return the second moment of the measure.

    It is known from two nodes on; from one node, only with the remainder (inf otherwise).
    """
    moment = float(np.sum(weights * nodes**2))
    if len(nodes) > 1:
        return moment
    return np.inf if remainder is None else moment + remainder**2
