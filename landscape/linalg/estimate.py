"""A stochastic estimate with its three error sources: probes, batches, quadrature.

Imports only numpy and landscape.linalg.number_text; scipy, which takes a while, where it is used.
Shapes: g = numbers estimated at once, b = operators.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

from landscape.linalg.number_text import two_digits, unknown, with_error

# Three standard errors of a normal distribution leave out 0.27 %, half of it on either side.
_TAIL = math.erfc(3 / math.sqrt(2)) / 2
# Part of the whole below which a count or a share need not be known.
_NEGLIGIBLE = 1e-3
Numbers = float | Float[np.ndarray, " g"]


@dataclass(frozen=True)
class Estimate:
    """An estimate from random probes, or one per grid point, with separate errors.

    Attributes:
        value: The estimate, the mean over the operators.
        probe_error: Standard error because each operator was seen from few random directions.
        batch_error: Standard error because the operators are a sample of all mini-batches; None
            where there is only one, so that nothing is known. For the mean over just these
            operators it does not count.
        low, high: The range that the quadratures allow for the value, if infinitely many probes saw
            the same; rounding included. Not a confidence interval.
        whole: The total that the value is a part of, so that it lies between 0 and this: 1 for a
            share, which is written in percent, the dimension for a count; None for a number without
            a scale of its own.

    Errors estimated from few degrees of freedom are widened by Student's t, so that three of them
    hold the truth as often as three standard deviations do.

    Examples:
        >>> import torch, landscape
        >>> from landscape.linalg import DenseOperator
        >>> values = torch.tensor([5.0, 3.0, 1.0, -1.0, -2.0], dtype=torch.float64)
        >>> A = DenseOperator(torch.diag(values))
        >>> estimate = landscape.trace(A, num_matvecs=5)
        >>> round(estimate.value, 6), estimate.probe_error
        (6.0, 0.0)
    """

    value: Numbers
    probe_error: Numbers
    batch_error: Numbers | None
    low: Numbers
    high: Numbers
    whole: float | None = None

    @property
    def sampling_error(self) -> Numbers:
        """Return the standard error over probes and batches.

        What the quadratures leave open is not included.
        """
        return np.hypot(self.probe_error, 0.0 if self.batch_error is None else self.batch_error)

    @property
    def quadrature_error(self) -> Numbers:
        """Bound the error from the quadratures alone, to the wider side.

        This is a bound, not a standard deviation.
        """
        return np.maximum(np.subtract(self.high, self.value), np.subtract(self.value, self.low))

    @property
    def standard_error(self) -> Numbers:
        """Combine all errors: sampling, plus half the quadrature error.

        The sampling error is the root of the squares of the errors from probes and batches.

        Half, since that is a bound and not a deviation, and the truth may lie at its end for every
        probe: two standard errors, which are read as 95 %, then hold all of it beside two of the
        sampling.
        """
        return self.sampling_error + self.quadrature_error / 2

    @property
    def is_known(self) -> bool:
        """Tell whether the number says more than its bracket [low, high].

        Where it does not, only the bracket should be reported.

        A number is unknown if its quadrature error is larger than its sampling error, and larger
        than half of the number. For a count or a share, whose value is the middle, that is a
        bracket whose upper end is over three times the lower: no digit of it is known. Where the
        error of sampling is larger, the standard error shows it already; and a part that is known
        to a thousandth of the whole is known, even where it may be nothing.
        """
        size = max(abs(float(self.value)) / 2, _NEGLIGIBLE * (self.whole or 0.0))
        return float(self.quadrature_error) <= max(float(self.sampling_error), size)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return an interval that holds the truth with this confidence.

        It is the bracket, widened by the error of sampling.
        """
        reach = NormalDist().inv_cdf((1 + confidence) / 2) * float(self.sampling_error)
        low, high = float(self.low) - reach, float(self.high) + reach
        return (low, high) if self.whole is None else (max(low, 0.0), min(high, self.whole))

    def __mul__(self, factor: float) -> "Estimate":
        """Convert the estimate to another unit, by a positive factor."""
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
        """Tell whether the number is a share, which is written in percent."""
        return self.whole == 1

    def __str__(self) -> str:
        """Round the number to its standard error.

        For example "630 ± 180", or "unknown (0.06 to 99.5 %)".
        """
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
        skewness: (...) half the skewness of the mean estimate, which is also how the relative error
            of its variance goes with its own error in standard deviations: an estimate that is too
            low comes with too small a variance.
    """

    values: np.ndarray
    variances: np.ndarray
    freedom: np.ndarray
    skewness: np.ndarray

    def estimate(
        self, *, open_low: np.ndarray | float = 0.0, open_high: np.ndarray | float = 0.0
    ) -> Estimate:
        """Average over operators.

        `open_low` and `open_high` are how far the true value may lie below and above the value,
        beside the errors of sampling.
        """
        count = len(self.values)
        value = self.values.mean(axis=0)
        # The variance of a mean of b independent estimates is the mean of their variances over b.
        probe_error = (
            np.sqrt(self.variances.mean(axis=0) / count)
            * _widening(self.freedom)
            * _skew_widening(self.skewness)
        )
        batch_error = None
        if count > 1:
            # The variance of the estimates is that of the operators plus that of the probes.
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
    """Compute the factor that widens a standard error of few degrees of freedom.

    With it, three standard errors hold 99.73 %, as for a normal distribution.
    """
    return float(_widening(np.array(freedom)))


def _widening(freedom: np.ndarray) -> np.ndarray:
    from scipy import stats

    # The three-sigma quantile of Student's t in units of the normal one.
    return np.maximum(stats.t.isf(_TAIL, np.minimum(freedom, 1e6)) / 3, 1.0)


def _skew_widening(skewness: np.ndarray) -> np.ndarray:
    """Compute the factor that widens three standard errors of a skew estimate.

    The variance of such an estimate goes along with its value.

    Source: the quantiles of a skew distribution by Cornish & Fisher, Moments and cumulants (1938),
    to first order. Beyond 0.5 the first order is not enough; there the degrees of freedom are few,
    and their widening dominates.
    """
    size = np.minimum(np.abs(skewness), 0.5)
    wanted = np.ones_like(size)
    for side in (-3, 3):
        # Cornish-Fisher: z + kappa / 6 (z^2 - 1) for skewness kappa = 2 size. An estimate so many
        # deviations off has a variance estimate off by the factor 1 + size * quantile.
        quantile = side + size * (side**2 - 1) / 3
        wanted = np.maximum(wanted, np.abs(quantile) / np.sqrt(1 + size * quantile) / 3)
    return wanted


def _plain(number: np.ndarray) -> Numbers:
    return number if np.ndim(number) else float(number)


def share_error(low: float, high: float, size: float) -> float:
    """Compute the standard error of a share of eigenvalues.

    The share is seen as a measure between `low` and `high`, by `size` coordinates in all.

    The squared length that a uniform unit vector of length d has in N coordinates has the
    distribution Beta(N / 2, (d - N) / 2), and so nearly has its mean over probes with d the sum of
    their lengths. A third of the distance to the share that would give what was seen with the
    probability beyond three sigma; holds for a share of a few eigenvalues too, where nothing is
    normal.
    """
    if size == 0:
        return 0.0
    from scipy import special

    def crossing(tail: Callable[[float], float], start: float, stop: float) -> float:
        # Bisection; 60 halvings reach the resolution of float64.
        for _ in range(60):
            middle = (start + stop) / 2
            start, stop = (middle, stop) if tail(middle) > _TAIL else (start, middle)
        return (start + stop) / 2

    def below(share: float, seen: float) -> float:
        return float(special.betainc(share * size / 2, (1 - share) * size / 2, seen))

    # The shares for which what was seen would lie three standard deviations off, as in a
    # Clopper-Pearson interval.
    up = crossing(lambda share: below(share, high), high, 1.0) - high if 0 < high < 1 else 0.0
    down = low - crossing(lambda share: 1 - below(share, low), low, 0.0) if 0 < low < 1 else 0.0
    return max(up, down) / 3


def mass_error(
    means: Float[np.ndarray, " g"], errors: Float[np.ndarray, " g"], count: int
) -> Float[np.ndarray, " g"]:
    """Widen standard errors of means of squared lengths |A z|^2, which are skew.

    Where such a mean is too small, so is the spread about it. It is taken as a chi-squared variable
    of the relative variance that was seen. The result is a third of the distance to the mass for
    which a mean as small has the probability beyond three sigma, and never less than the error.

    Args:
        means: Means over vectors z of random signs.
        errors: Standard errors of these, from their spread.
        count: Number of vectors.

    Source: Satterthwaite, An approximate distribution of estimates of variance components (1946),
    Biometrics Bulletin 2, for the degrees of freedom.
    """
    from scipy import special

    relative = np.divide(errors, means, out=np.zeros_like(errors), where=means > 0) ** 2
    # Of z^T B z the variance is 2 sum_{i != j} B_ij^2, at most 2 trace(B)^2 for B = A^T A. The
    # other limit keeps the degrees of freedom finite; the widening is negligible there.
    freedom = 2 / np.clip(relative, 1e-8, 2 / count)
    quantile = 2 * special.gammaincinv(freedom / 2, _TAIL) / freedom
    return np.maximum(errors, means * (1 / quantile - 1) / 3)
