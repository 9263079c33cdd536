"""The drawn coordinate of eigenvalues: u = asinh(lambda / w), linear within about +-w, logarithmic beyond.

Eigenvalues have both signs and heavy tails over several decades; this axis shows both sides alike and has a zero.
Shapes: n = values.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Ticks:
    """Where an axis is marked, in eigenvalues, ascending; `labels` belong to `major` and may be empty."""

    major: tuple[float, ...]
    labels: tuple[str, ...]
    minor: tuple[float, ...]


@dataclass(frozen=True)
class AsinhAxis:
    """The map lambda -> u = asinh(lambda / linear_width); `linear_width` > 0 has the unit of lambda."""

    linear_width: float

    @classmethod
    def fit(cls, values: Float[np.ndarray, " n"]) -> "AsinhAxis":
        """Let the linear part end where the data begin, so that neither the gap around zero nor the bulk fills the axis.

        The width is the 5 % quantile of the magnitudes of the finite values other than zero, but at least a thousandth
        of their median (a few numerically zero values must not stretch the axis), rounded down to 1, 2 or 5 times a
        power of ten. It is 1 when all values are zero.
        """
        magnitudes = np.abs(values[np.isfinite(values) & (values != 0)])
        if magnitudes.size == 0:
            return cls(linear_width=1.0)
        width = float(max(np.quantile(magnitudes, 0.05), np.median(magnitudes) / 1e3))
        decade = 10.0 ** math.floor(math.log10(width))
        return cls(
            linear_width=max(m * decade for m in (1, 2, 5) if m * decade <= width * (1 + 1e-9))
        )

    def forward(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """lambda -> u."""
        return np.arcsinh(values / self.linear_width)

    def inverse(self, drawn: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """u -> lambda."""
        return self.linear_width * np.sinh(drawn)

    def ticks(self, low: float, high: float, *, gap: float) -> Ticks:
        """Mark zero and the powers of ten within the eigenvalues `low` < 0 < `high`, on both sides alike.

        Args:
            gap: Smallest distance between two labels, in units of u. Powers of ten that would come closer stay
                without a label; 2 and 5, then 3 to 9 times powers of ten are labelled too where there are few of them.
        """
        first = math.floor(math.log10(self.linear_width))
        last = math.floor(math.log10(max(-low, high)))
        decades = [10.0**exponent for exponent in range(first, last + 1)]
        major = labelled = [0.0]
        for mantissas in ((1,), (1, 2, 5), range(1, 10)):
            if len(labelled) < 3:
                major = _both_signs(
                    [m * d for d in decades for m in mantissas], self.linear_width, low, high
                )
                labelled = self._thin(major, gap=gap)
        minor = _both_signs(
            [m * d for d in decades for m in range(2, 10)], self.linear_width, low, high
        )
        powers = all(abs(tick) in decades for tick in labelled if tick)
        plain = all(0.01 <= abs(tick) < (1e3 if powers else 1e4) for tick in labelled if tick)
        return Ticks(
            major=tuple(major),
            labels=tuple(
                tick_label(tick, plain=plain) if tick in labelled else "" for tick in major
            ),
            minor=tuple(tick for tick in minor if tick not in major) if len(decades) <= 5 else (),
        )

    def _thin(self, ticks: list[float], *, gap: float) -> list[float]:
        """Zero, and every tick whose magnitude is at least `gap` in u from the magnitudes already kept, going outwards."""
        kept = [0.0]
        for size in sorted({abs(tick) for tick in ticks}):
            if (
                math.asinh(size / self.linear_width) - math.asinh(kept[-1] / self.linear_width)
                >= gap
            ):
                kept.append(size)
        return [tick for tick in ticks if abs(tick) in kept]


def _both_signs(sizes: Iterable[float], smallest: float, low: float, high: float) -> list[float]:
    """Zero, and +-size for every size >= `smallest`, as far as they lie within the axis."""
    signed = {
        sign * size for size in sizes if size >= smallest * (1 - 1e-9) for sign in (-1.0, 1.0)
    }
    return sorted(x for x in signed | {0.0} if low <= x <= high)


def tick_label(value: float, *, plain: bool) -> str:
    """Text of a tick, as a number when all of an axis are short (`plain`), otherwise as a power of ten."""
    if value == 0 or plain:
        return f"{value:g}".replace("-", "\N{MINUS SIGN}")
    exponent = math.floor(math.log10(abs(value)) + 1e-9)
    power = {0: "1", 1: "10"}.get(exponent, f"10^{{{exponent}}}")
    mantissa = round(abs(value) / 10.0**exponent)
    if mantissa != 1:
        power = rf"{mantissa}{{\times}}{power}"
    return f"${'-' if value < 0 else ''}{power}$"
