"""A number with its interval, and p-values corrected for their number."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Interval:
    """A number and the ends of its interval.

    The ends are NaN where the data give no interval: too few, or all the same.
    """

    value: float
    low: float = math.nan
    high: float = math.nan


def holm(p_values: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Correct p-values by Holm's step-down method.

    Rejecting every hypothesis whose corrected p-value is at most alpha makes a false rejection with
    probability at most alpha. NaN, a test that could not be made, stays NaN and does not count.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of
    Statistics 6 (1979).
    """
    adjusted = np.full(len(p_values), math.nan)
    made = np.flatnonzero(np.isfinite(p_values))
    order = made[np.argsort(p_values[made], kind="stable")]
    # The k-th smallest of m p-values is multiplied by m - k + 1; the results must not decrease.
    steps = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(order) else steps
    return adjusted
