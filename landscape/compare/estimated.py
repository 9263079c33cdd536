"""Differences of numbers that quadratures estimate.

A difference that lies within the brackets of the two estimates does not count. Knows arrays and
estimates, not stores.
"""

import math
from dataclasses import replace

from landscape.compare.statistics import Interval, Sample
from landscape.linalg import Estimate

Estimates = tuple[Estimate, Estimate]


def least_different(first: Sample, second: Sample, estimates: Estimates) -> Sample:
    """Move `first` towards `second` by all that their brackets leave open.

    A test of the unmoved samples would treat the middles of two wide brackets as exact numbers.
    """
    difference = float(estimates[0].value) - float(estimates[1].value)
    low, high = _open(estimates)
    shift = (
        min(max(difference - low, 0.0), difference)
        if difference > 0
        else max(min(difference - high, 0.0), difference)
    )
    # The location of (numerator - shift * denominator) / denominator is the old one less shift.
    return replace(first, numerator=first.numerator - shift * first.denominator)


def widened(difference: Interval, estimates: Estimates) -> Interval:
    """Widen the interval of a difference by what the quadratures leave open."""
    value = float(estimates[0].value) - float(estimates[1].value)
    low, high = _open(estimates)
    return replace(
        difference, low=difference.low - (value - low), high=difference.high + (high - value)
    )


def widened_quotient(quotient: Interval, estimates: Estimates) -> Interval:
    """Widen the interval of a quotient by what the quadratures leave open.

    There is no interval where the brackets allow a part to be 0 or negative.
    """
    first, second = estimates
    if not (first.low > 0 and second.low > 0):
        return replace(quotient, low=math.nan, high=math.nan)
    # The smallest quotient takes the low end of the first and the high end of the second.
    low = float(first.low / first.value) * float(second.value / second.high)
    high = float(first.high / first.value) * float(second.value / second.low)
    return replace(quotient, low=quotient.low * low, high=quotient.high * high)


def _open(estimates: Estimates) -> tuple[float, float]:
    """Return the bracket of the difference."""
    first, second = estimates
    return float(first.low) - float(second.high), float(first.high) - float(second.low)
