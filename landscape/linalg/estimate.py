"""A number that random probes suggest, with the three things that keep it from the truth told apart.

Imports only numpy and landscape.linalg.rounding; scipy, which takes a while, where it is used.
Shapes: g = numbers estimated at once, b = operators.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

from landscape.linalg.rounding import two_digits, unknown, with_error

# Three standard errors of a normal distribution leave out 0.27 %, half of it on either side.
_TAIL = math.erfc(3 / math.sqrt(2)) / 2
# As a part of the whole: what nobody asks of a count or a share.
_NEGLIGIBLE = 1e-3
Numbers = float | Float[np.ndarray, " g"]


@dataclass(frozen=True)
class Estimate:
    """A number, or one per grid point, that random probes suggest, with its errors told apart.

    Attributes:
        value: The estimate, the mean over the operators.
        probe_error: Standard error because each operator was seen from few random directions.
        batch_error: Standard error because the operators are a sample of all mini-batches; None where there is only one, so
            that nothing is known. For the mean over just these operators it does not count.
        low, high: What the quadratures leave open for the value, were there infinitely many probes that saw the same; rounding
            included. Not a confidence interval.
        whole: What it is a part of, hence between 0 and this: 1 for a share, which is written in percent, the dimension for a
            count; None for a number without a scale of its own.

    Errors estimated from few degrees of freedom are widened by Student's t, so that three of them hold the truth as often as
    three standard deviations do.
    """

    value: Numbers
    probe_error: Numbers
    batch_error: Numbers | None
    low: Numbers
    high: Numbers
    whole: float | None = None

    @property
    def sampling_error(self) -> Numbers:
        """Standard error over probes and batches, without what the quadratures leave open."""
        return np.hypot(self.probe_error, 0.0 if self.batch_error is None else self.batch_error)

    @property
    def quadrature_error(self) -> Numbers:
        """How far the value may be off by the quadratures alone, to the wider side: a bound, no deviation."""
        return np.maximum(np.subtract(self.high, self.value), np.subtract(self.value, self.low))

    @property
    def standard_error(self) -> Numbers:
        """All of it: probes and batches in the root of squares, and half of what the quadratures leave open.

        Half, since that is a bound and not a deviation, and the truth may lie at its end for every probe: two standard errors,
        which are read as 95 %, then hold all of it beside two of the sampling.
        """
        return self.sampling_error + self.quadrature_error / 2

    @property
    def is_known(self) -> bool:
        """Whether the number says more than its bracket [low, high] does; where it is not, only the bracket is to be told.

        Unknown is a number that the quadratures leave more open than sampling does, and by more than half of it. For a count or a
        share, whose value is the middle, that is a bracket whose upper end is over three times the lower: no digit of it is
        known. Where sampling is the greater doubt, the standard error tells it already; and a part that is known to a thousandth
        of the whole is known, even where it may be nothing.
        """
        size = max(abs(float(self.value)) / 2, _NEGLIGIBLE * (self.whole or 0.0))
        return float(self.quadrature_error) <= max(float(self.sampling_error), size)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """An interval that holds the truth with this confidence: the bracket, and around it the error of sampling."""
        reach = NormalDist().inv_cdf((1 + confidence) / 2) * float(self.sampling_error)
        low, high = float(self.low) - reach, float(self.high) + reach
        return (low, high) if self.whole is None else (max(low, 0.0), min(high, self.whole))

    def __mul__(self, factor: float) -> "Estimate":
        """The estimate in another unit, by a positive factor."""
        batch_error = None if self.batch_error is None else self.batch_error * factor
        whole = None if self.whole is None else self.whole * factor
        return Estimate(
            self.value * factor,
            self.probe_error * factor,
            batch_error,
            self.low * factor,
            self.high * factor,
            whole,
        )

    @property
    def is_share(self) -> bool:
        """Whether it is written in percent."""
        return self.whole == 1

    def __str__(self) -> str:
        """The number rounded to its standard error, "630 ± 180", or "unknown (0.06 to 99.5 %)"."""
        if np.ndim(self.value):
            return repr(self)
        if math.isnan(float(self.value)):
            return "unknown"
        if not self.is_known:
            return unknown(float(self.low), float(self.high), percent=self.is_share)
        return with_error(float(self.value), float(self.standard_error), percent=self.is_share)

    def __repr__(self) -> str:
        if np.ndim(self.value):
            return f"Estimate({np.size(self.value)} values)"
        unit = 100 if self.is_share else 1
        parts = [f"probes {two_digits(unit * float(self.probe_error))}"]
        parts += (
            []
            if self.batch_error is None
            else [f"batches {two_digits(unit * float(self.batch_error))}"]
        )
        is_open = self.high > self.low and self.is_known
        parts += [f"quadrature {unit * self.low:.4g} to {unit * self.high:.4g}"] if is_open else []
        return f"{self} ({', '.join(parts)})"


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

    def estimate(
        self, *, open_low: np.ndarray | float = 0.0, open_high: np.ndarray | float = 0.0
    ) -> Estimate:
        """The mean over operators; `open_low` and `open_high` are what else the true value may lie below and above it."""
        count = len(self.values)
        value = self.values.mean(axis=0)
        probe_error = (
            np.sqrt(self.variances.mean(axis=0) / count)
            * _widening(self.freedom)
            * _skew_widening(self.skewness)
        )
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
    from scipy import stats

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
    from scipy import special

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
