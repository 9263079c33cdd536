"""Differences of what quadratures estimate: nothing that their brackets leave open counts as a difference.

Knows arrays and estimates, not stores.
"""

import math
from dataclasses import replace

from landscape.compare.statistics import Interval, Sample
from landscape.linalg import Estimate

Estimates = tuple[Estimate, Estimate]


def least_different(first: Sample, second: Sample, estimates: Estimates) -> Sample:
    """`first`, moved towards `second` by all that the brackets of the two leave open of their difference.

    A test of the samples as they stand would take the middles of two wide brackets for numbers.
    """
    difference = float(estimates[0].value) - float(estimates[1].value)
    low, high = _open(estimates)
    shift = (
        min(max(difference - low, 0.0), difference)
        if difference > 0
        else max(min(difference - high, 0.0), difference)
    )
    return replace(first, numerator=first.numerator - shift * first.denominator)


def widened(difference: Interval, estimates: Estimates) -> Interval:
    """The interval of a difference, by what the quadratures leave open at either end."""
    value = float(estimates[0].value) - float(estimates[1].value)
    low, high = _open(estimates)
    return replace(
        difference, low=difference.low - (value - low), high=difference.high + (high - value)
    )


def widened_quotient(quotient: Interval, estimates: Estimates) -> Interval:
    """The interval of a quotient likewise; none where the brackets let a part be 0 or negative."""
    first, second = estimates
    if not (first.low > 0 and second.low > 0):
        return replace(quotient, low=math.nan, high=math.nan)
    low = float(first.low / first.value) * float(second.value / second.high)
    high = float(first.high / first.value) * float(second.value / second.low)
    return replace(quotient, low=quotient.low * low, high=quotient.high * high)


def _open(estimates: Estimates) -> tuple[float, float]:
    """The bracket of the difference."""
    first, second = estimates
    return float(first.low) - float(second.high), float(first.high) - float(second.low)
