"""A number that random probes suggest, with the three things that keep it from the truth told apart.

Imports only numpy and scipy. Shapes: g = numbers estimated at once, b = operators.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import special, stats

# Three standard errors of a normal distribution leave out 0.27 %, half of it on either side.
_TAIL = float(stats.norm.sf(3))
Numbers = float | Float[np.ndarray, " g"]


@dataclass(frozen=True)
class Estimate:
    """A number, or one per grid point, that random probes suggest; never a bound.

    Attributes:
        value: The estimate, the mean over the operators.
        probe_error: Standard error because each operator was seen from few random directions.
        batch_error: Standard error because the operators are a sample of all mini-batches; None where there is only one, so
            that nothing is known. For the mean over just these operators it does not count.
        low, high: What the quadratures leave open for the value, were there infinitely many probes that saw the same; rounding
            included. Not a confidence interval.

    Errors estimated from few degrees of freedom are widened by Student's t, so that three of them hold the truth as often as
    three standard deviations do.
    """

    value: Numbers
    probe_error: Numbers
    batch_error: Numbers | None
    low: Numbers
    high: Numbers

    @property
    def standard_error(self) -> Numbers:
        """All of it: probes and batches in the root of squares, and a third of what the quadratures leave open.

        A third, since that is a bound and not a deviation: three standard errors then hold all of it.
        """
        sampling = np.hypot(self.probe_error, 0.0 if self.batch_error is None else self.batch_error)
        return sampling + np.maximum(np.subtract(self.high, self.value), np.subtract(self.value, self.low)) / 3

    def __mul__(self, factor: float) -> "Estimate":
        """The estimate in another unit, by a positive factor."""
        batch_error = None if self.batch_error is None else self.batch_error * factor
        return Estimate(
            self.value * factor, self.probe_error * factor, batch_error, self.low * factor, self.high * factor
        )

    def __repr__(self) -> str:
        if np.ndim(self.value):
            return f"Estimate({np.size(self.value)} values)"
        parts = [f"probes {self.probe_error:.2g}"]
        parts += [] if self.batch_error is None else [f"batches {self.batch_error:.2g}"]
        parts += [f"quadrature {self.low:.4g} to {self.high:.4g}"] if self.high > self.low else []
        return f"{self.value:.6g} ± {self.standard_error:.2g} ({', '.join(parts)})"


@dataclass(frozen=True)
class Sums:
    """Sums over the spectra of all operators: estimates (b, ...) and their variances (b, ...).

    Attributes:
        freedom: (...) degrees of freedom behind the variances.
        skewness: (...) half the skewness of the mean estimate, which is also how the relative error of its variance goes with
            its own error in standard deviations: an estimate that is too low comes with too small a variance.
    """

    values: np.ndarray
    variances: np.ndarray
    freedom: np.ndarray
    skewness: np.ndarray

    def estimate(self, *, open_low: np.ndarray | float = 0.0, open_high: np.ndarray | float = 0.0) -> Estimate:
        """The mean over operators; `open_low` and `open_high` are what else the true value may lie below and above it."""
        count = len(self.values)
        value = self.values.mean(axis=0)
        probe_error = np.sqrt(self.variances.mean(axis=0) / count) * _widening(self.freedom) * _skew_widening(self.skewness)
        batch_error = None
        if count > 1:
            # The spread of the estimates is that of the operators and that of the probes together.
            spread = np.maximum(self.values.var(axis=0, ddof=1) - self.variances.mean(axis=0), 0.0)
            batch_error = np.sqrt(spread / count) * _widening(np.array(count - 1.0))
        return Estimate(
            _plain(value),
            _plain(probe_error),
            None if batch_error is None else _plain(batch_error),
            _plain(value - open_low),
            _plain(value + open_high),
        )


def student_widening(freedom: float) -> float:
    """What a standard error from so many degrees of freedom is multiplied by, so that three of them hold 99.73 %."""
    return float(_widening(np.array(freedom)))


def _widening(freedom: np.ndarray) -> np.ndarray:
    return np.maximum(stats.t.isf(_TAIL, np.minimum(freedom, 1e6)) / 3, 1.0)


def _skew_widening(skewness: np.ndarray) -> np.ndarray:
    """What three standard errors lack where the estimate is skew and its variance goes along with it.

    Source: the quantiles of a skew distribution by Cornish & Fisher, Moments and cumulants (1938), to first order. Beyond 0.5
    that order does not carry; there the degrees of freedom are few, and rule.
    """
    size = np.minimum(np.abs(skewness), 0.5)
    wanted = np.ones_like(size)
    for side in (-3, 3):
        quantile = side + size * (side**2 - 1) / 3
        wanted = np.maximum(wanted, np.abs(quantile) / np.sqrt(1 + size * quantile) / 3)
    return wanted


def _plain(number: np.ndarray) -> Numbers:
    return number if np.ndim(number) else float(number)


def share_error(low: float, high: float, size: float) -> float:
    """Standard error of a share of eigenvalues, seen as a measure between `low` and `high`, by `size` coordinates in all.

    The squared length that a uniform unit vector of length d has in N coordinates has the distribution Beta(N / 2, (d - N) / 2),
    and so nearly has its mean over probes with d the sum of their lengths. A third of the distance to the share that would give
    what was seen with the probability beyond three sigma; holds for a share of a few eigenvalues too, where nothing is normal.
    """
    if size == 0:
        return 0.0

    def crossing(tail: Callable[[float], float], start: float, stop: float) -> float:
        for _ in range(60):
            middle = (start + stop) / 2
            start, stop = (middle, stop) if tail(middle) > _TAIL else (start, middle)
        return (start + stop) / 2

    def below(share: float, seen: float) -> float:
        return float(special.betainc(share * size / 2, (1 - share) * size / 2, seen))

    up = crossing(lambda share: below(share, high), high, 1.0) - high if 0 < high < 1 else 0.0
    down = low - crossing(lambda share: 1 - below(share, low), low, 0.0) if 0 < low < 1 else 0.0
    return max(up, down) / 3
