"""Axis of values over epochs, the same in a figure and on the page of a study.

Numbers only, no matplotlib.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

# A narrower range holds too few round numbers for a logarithmic axis.
_WIDE = 8.0
_MARGIN = 0.05


@dataclass(frozen=True)
class ValueRange:
    """Ends and scale of an axis."""

    low: float
    high: float
    is_log: bool = False

    @classmethod
    def of(cls, numbers: Iterable[float], *, linear: bool = False) -> "ValueRange":
        """Choose an axis for numbers; those that are not finite do not count.

        It is logarithmic where all are positive and span more than a factor of 8. A linear axis
        begins at zero where none is negative.

        Args:
            linear: Never logarithmic.
        """
        known = np.array([number for number in numbers if math.isfinite(number)])
        if not known.size:
            return cls(0.0, 1.0)
        low, high = float(known.min()), float(known.max())
        if low > 0 and high > _WIDE * low and not linear:
            room = (high / low) ** _MARGIN
            return cls(low / room, high * room, is_log=True)
        room = _MARGIN * (high - min(low, 0.0)) or 1.0
        return cls(0.0 if low >= 0 else low - room, high + room)

    @classmethod
    def of_shares(cls, numbers: Iterable[float]) -> "ValueRange":
        """Choose an axis for shares: linear, from just below zero, to 0.2 at least."""
        highest = max((number for number in numbers if math.isfinite(number)), default=0.0)
        return cls(-0.02, max(0.2, 1.08 * highest))

    def log_ticks(self) -> list[float]:
        """Return powers of ten on a logarithmic axis.

        With 2 and 5 times those where there are few.
        """
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        mantissas = (1, 2, 5) if self.high <= 300 * self.low else (1,)
        ticks = (m * 10.0**decade for decade in range(first, last + 1) for m in mantissas)
        return [tick for tick in ticks if self.low <= tick <= self.high]
