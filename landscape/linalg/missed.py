r"""Where a Lanczos chain may have missed an eigenvalue, by its Christoffel function.

This costs no further product.

Let A be symmetric, v_1 a random unit vector, and v_{j+1} = p_j(A) v_1 the vectors of its Lanczos
chain. The p_j are the orthonormal polynomials of the measure that puts (q_i^T v_1)^2 at each
eigenvalue lambda_i; the recurrence of the chain gives their values anywhere. For an eigenvalue mu
with unit eigenvector q, q^T v_{j+1} = p_j(mu) q^T v_1. The v_j are orthonormal, so by Bessel's
inequality

    (q^T v_1)^2 K_m(mu) <= 1,    K_m(mu) = sum_{j=0}^m p_j(mu)^2.

The Christoffel function 1 / K_m(mu) thus bounds what the start can have along q, and far from all
Ritz values K_m grows exponentially. One coordinate of a vector that is uniform on the sphere of R^n
has the density Gamma(n/2) / (sqrt(pi) Gamma((n-1)/2)) (1 - t^2)^((n-3)/2), and Gamma(x + 1/2) /
Gamma(x) <= sqrt(x), so

    P(|q^T v_1| <= t) <= t sqrt(2 (n - 1) / pi).

What the probability is of: the start is random; the operator and one of its eigenvalues, mu, are
fixed. A look that excludes mu while mu is an eigenvalue needs a start with |q^T v_1| below a
threshold that depends on n and the wanted probability alone, at whatever step the look is made: q^T
v_1 is fixed, and K_m only grows. So no number of looks adds to the probability. It holds for each
eigenvalue by itself; of r eigenvalues, some is missed with at most r times that. Of a multiple
eigenvalue, q is the direction of v_1 within its eigenspace, and the probability is smaller; its
further copies are invisible, as one chain sees that one direction.

A start near a given direction: v_1 = (u + c r) / |u + c r| with a random unit vector r that is
independent of the unit vector u. |u + c r| <= 1 + c, and the density of q^T r is symmetric and
falls away from 0, so that a shift by q^T u only takes from the interval around 0 (Anderson):

    P(|q^T v_1| <= t) <= P(|q^T r| <= t (1 + c) / c) <= t (1 + c) / c sqrt(2 (n - 1) / pi).

The price is that factor, and that rounding weighs more: v_1 has most of its length beside the
largest values.

What rounding does: A V = V T + beta_m v_{m+1} e_m^T + F with ||F|| <= epsilon, and p_j(mu) q^T v_1
= q^T v_{j+1} + p_j(mu) q^T F_j (mu - T_j)^{-1} e_1, T_j the leading block and F_j the first
columns. With all j together, and ||V^T V|| <= (1 + eta)^2,

    |q^T v_1| <= (1 + eta + epsilon ||(mu - T_m)^{-1}||_F) / sqrt(K_m(mu))
                 + epsilon ||(mu - T_m)^{-1} e_1||.

The last term caps K_m: a component of the start below the rounding of the basis cannot be told from
none, however long the chain.

Between the points where K_m is computed: between two neighbouring zeros of p_m, the Ritz values,
each p_j has one zero at most, and where it has none, log |p_j| is concave, since its zeros are
real. So on a cell between two points, without a Ritz value inside, p_j^2 is at least the smaller of
its values at the ends where p_j has one sign there, and beyond all Ritz values it grows. The terms
of rounding are convex on a cell. What is said of a cell holds in all of it, however narrow a place
may be.

Imports only numpy. Shapes: m = products of the chain, g = points, k = values.

Source: Szego, Orthogonal Polynomials (1975), sections 3.1 to 3.4 (Christoffel function, interlacing
zeros); Golub & Meurant, Matrices, Moments and Quadrature (2010), chapter 2; the density of a
coordinate: Muirhead, Aspects of Multivariate Statistical Theory (1982), section 1.5; the ratio of
Gamma functions: Wendel, Note on the Gamma Function (1948); shifts: Anderson, The integral of a
symmetric unimodal function (1955).
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

# An eigenvalue that was missed with more than this probability ...
PROBABILITY = 0.01
# ... may lie only within this of a known value, as a fraction of it. In 36 batches of small CLIP
# models it took 0.2 products a batch to get there, and 1.3 to get to 1 %.
NEAR = 0.05
# Bound of the norm of V in the docstring's last formula: m times an orthogonality defect of 1e-6 is
# below it.
_NORM_OF_BASIS = 1.001
# Points that approach each end of a gap, at distances from 1e-4 to 1/2 of it: the resolution of
# `distance`, not of the proof.
_FRACTIONS = np.geomspace(1e-4, 0.5, 40)
# Beyond the last value, as multiples of the size of the spectrum; the last cell goes on to
# infinity.
_BEYOND = np.geomspace(1e-4, 4.0, 40)
# Polynomials that grow beyond this are scaled back to 1: no probability needs more, and squares
# must not overflow.
_LARGEST = 1e100


@dataclass(frozen=True)
class MissedLook:
    """The places where a further eigenvalue may still be.

    Beyond the last value these are only near known values.

    An eigenvalue counts as further if it lies beyond the last of the values, in the sense of
    `which` and by more than what the tolerance leaves open there. Known are the values and all
    other Ritz values that met the tolerance. Further copies of multiple eigenvalues are not seen at
    all; see `EigenPairs.copies_checked`. Sources and proof: `landscape.linalg.missed`.

    Attributes:
        probability: The chance of a miss that is accepted for each single eigenvalue, over the
            random start.
        distance: A further eigenvalue that was missed with more than `probability` lies within this
            of a known value, as a fraction of that value; inf where nothing is excluded.
        near: The distance at which `far_probability` is taken.
        far_probability: The largest probability with which a further eigenvalue farther than `near`
            from all known values was missed, over all places where it can be.
    """

    probability: float
    distance: float
    near: float
    far_probability: float

    @property
    def satisfied(self) -> bool:
        """Tell whether further eigenvalues can only lie within `near` of known values."""
        return self.far_probability <= self.probability

    def __str__(self) -> str:
        if not math.isfinite(self.distance):
            return "further eigenvalues beyond the last are not excluded"
        seen = f"would have been seen with {100 * (1 - self.probability):g} % probability"
        return (
            f"a further eigenvalue beyond the last, more than {percent_up(self.distance)} from "
            f"every value found, {seen}"
        )


def percent_up(fraction: float) -> str:
    """Write a fraction in percent, in two digits, rounded up."""
    percent = 100 * fraction
    if percent <= 0:
        return "0 %"
    unit = 10.0 ** (math.floor(math.log10(percent)) - 1)
    return f"{math.ceil(percent / unit * (1 - 1e-9)) * unit:.3g} %"


@dataclass(frozen=True)
class Chain:
    """The coefficients of a Lanczos chain from a random start.

    Attributes:
        diagonal: (m,) alpha_1 to alpha_m.
        couplings: (m,) beta_1 to beta_m; the last leads to the vector that is multiplied next.
        n: Dimension of the sphere's space, in which the start was drawn.
        error: Bound epsilon of the norm of what rounding, and errors of the products, add
            to A V - V T.
        start_error: Bound of what rounding did to a component of the start.
        random_share: The length at least of the random part of the start.
    """

    diagonal: Float[np.ndarray, " m"]
    couplings: Float[np.ndarray, " m"]
    n: int
    error: float
    start_error: float
    random_share: float = 1.0

    def mirrored(self) -> "Chain":
        """Return the chain of -A with the same start.

        Its vectors are the same with alternating signs.
        """
        return replace(self, diagonal=-self.diagonal)

    def rule(self) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
        """Compute the chain's Ritz values and their quadrature weights.

        The values ascend; a weight is the squared first component of an eigenvector.
        """
        off_diagonal = self.couplings[:-1]
        values, vectors = np.linalg.eigh(
            np.diag(self.diagonal) + np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1)
        )
        return values, vectors[0] ** 2


def look(
    chain: Chain,
    which: str,
    values: Float[np.ndarray, " k"],
    others: Float[np.ndarray, " j"],
    *,
    slack: float,
    near: float = NEAR,
    probability: float = PROBABILITY,
) -> tuple[MissedLook, bool]:
    """Bound where a further eigenvalue may have been missed.

    Args:
        which: "LM", "LA" or "SA".
        values: The wanted ones, most wanted first.
        others: Further Ritz values that met the tolerance.
        slack: What lies beyond the last value by no more than this does not count as further.
        near, probability: As in `MissedLook`.

    Returns:
        The look, and whether a longer chain could satisfy it: not where rounding alone caps what
        can be told.
    """
    known = np.concatenate([values, others])
    last = abs(values[-1]) if which == "LM" else values[-1] if which == "LA" else -values[-1]
    ends = {"LA": [(chain, known)], "SA": [(chain.mirrored(), -known)]}
    # The lower end of A is the upper end of -A, so that one function serves both.
    ends["LM"] = ends["LA"] + ends["SA"]
    cells = [_cells_above(part, last + slack, there, near) for part, there in ends[which]]
    distances, misses, floors = (np.concatenate(columns) for columns in zip(*cells))
    far = distances > near * (1 + 1e-9)
    made = MissedLook(
        probability=probability,
        distance=float(distances.max(where=misses > probability, initial=0.0)),
        near=near,
        far_probability=float(misses.max(where=far, initial=0.0)),
    )
    return made, bool(floors.max(where=far, initial=0.0) <= probability)


def _cells_above(
    chain: Chain, edge: float, known: Float[np.ndarray, " j"], near: float
) -> tuple[Float[np.ndarray, " g"], Float[np.ndarray, " g"], Float[np.ndarray, " g"]]:
    """Cover [edge, inf) by cells, and bound the misses in each.

    No cell has a Ritz value inside.

    Returns:
        For each cell the largest relative distance to the nearest known value, the largest
        probability with which an eigenvalue there was missed, and the part of it that is due to
        rounding.
    """
    nodes, weights = chain.rule()
    known = known[known + near * np.abs(known) > edge]
    points = _points(edge, nodes, known, near)
    sums = christoffel_sums(chain, points)[1]
    with np.errstate(divide="ignore"):
        inverse_squares = 1 / (points[:, None] - nodes) ** 2
        sizes = np.abs(known)
        relative = np.abs(points[:, None] - known) / np.where(sizes > 0, sizes, np.nan)
    # With T_m = Y diag(theta) Y^T: ||(mu - T_m)^{-1}||_F^2 = sum_i (mu - theta_i)^{-2}, and for the
    # column of e_1 each term has the weight y_{1i}^2. At a Ritz value nothing is known, whatever
    # the precision.
    error = max(chain.error, np.finfo(float).tiny)
    noise = error * np.sqrt(inverse_squares.sum(axis=1))
    floor = chain.start_error + error * np.sqrt(
        (weights * inverse_squares).sum(axis=1, where=weights > 0)
    )
    # The last cell reaches from the last point to infinity, and all terms are largest at that
    # point.
    noise, floor = (np.append(np.maximum(term[:-1], term[1:]), term[-1]) for term in (noise, floor))
    distances = np.append(
        np.nan_to_num(np.maximum(relative[:-1], relative[1:]), nan=np.inf).min(
            axis=1, initial=np.inf
        ),
        np.inf,
    )
    # The bound of |q^T v_1| of the module's docstring, with rounding.
    component = (_NORM_OF_BASIS + noise) / np.sqrt(sums) + floor
    return distances, _chance(component, chain), _chance(floor, chain)


def _chance(component: Float[np.ndarray, " g"], chain: Chain) -> Float[np.ndarray, " g"]:
    """Bound the probability that a start has a small component.

    The component is along a given unit vector, and small means no more than `component`.
    """
    # P(|q^T v_1| <= t) <= t / share sqrt(2 (n - 1) / pi); see the module's docstring.
    return np.minimum(1.0, component / chain.random_share * math.sqrt(2 * (chain.n - 1) / math.pi))


def _points(
    edge: float, nodes: Float[np.ndarray, " m"], known: Float[np.ndarray, " j"], near: float
) -> Float[np.ndarray, " g"]:
    """Choose the ends of the cells from `edge` on.

    Every Ritz value is one, and so are all places at the distance `near`.
    """
    around = np.concatenate([known - near * np.abs(known), known + near * np.abs(known)])
    # Within a cell distances to known values and the bounds of rounding are convex: their largest
    # values are at the ends, so no narrow place in between is overlooked.
    cuts = np.concatenate([[edge], nodes, known])
    cuts = np.unique(cuts[cuts >= edge])
    steps = np.diff(cuts)[:, None] * _FRACTIONS
    size = max(float(np.abs(nodes).max()), abs(float(cuts[-1])), np.finfo(float).tiny)
    inner = [
        (cuts[:-1, None] + steps).ravel(),
        (cuts[1:, None] - steps).ravel(),
        cuts[-1] + size * _BEYOND,
    ]
    return np.unique(np.concatenate([cuts, around[around > edge], *inner]))


def christoffel_sums(
    chain: Chain, points: Float[np.ndarray, " g"]
) -> tuple[Float[np.ndarray, " g"], Float[np.ndarray, " g"]]:
    """Compute K_m at ascending points, and a lower bound on each cell.

    A cell begins at each point; the last cell is unbounded.

    Cells must have no Ritz value inside, and the last point must lie beyond all of them. Where K_m
    is huge, less is returned.
    """
    before, now = np.zeros_like(points), np.ones_like(points)
    at_points, on_cells = np.zeros_like(points), np.zeros_like(points)
    previous = 0.0
    for alpha, beta in zip([*chain.diagonal, 0.0], [*chain.couplings, 1.0]):
        # `now` holds p_j, `before` p_{j-1}, both up to one factor.
        squares = now**2
        at_points += squares
        # p_j has no zero in a cell at whose ends it has one sign; log |p_j| is concave there, so
        # p_j^2 is at least the smaller of its values at the ends.
        same_sign = now[:-1] * np.sign(now[1:]) > 0
        on_cells[:-1] += np.where(same_sign, np.minimum(squares[:-1], squares[1:]), 0.0)
        on_cells[-1] += squares[-1]
        # Three-term recurrence: beta_{j+1} p_{j+1} = (x - alpha_{j+1}) p_j - beta_j p_{j-1}.
        before, now = now, ((points - alpha) * now - previous * before) / beta
        previous = beta
        # The sums so far keep their scale, and later terms get too small: still a lower bound of
        # K_m.
        size = np.maximum(np.abs(now), np.abs(before))
        size = np.where(size > _LARGEST, size, 1.0)
        before, now = before / size, now / size
    return at_points, on_cells
