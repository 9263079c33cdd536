"""Axis of eigenvalues: u = asinh(lambda / w).

The axis is linear within about +-w and logarithmic beyond. Eigenvalues have both signs and heavy
tails over several decades; this axis shows both signs alike and includes zero.

Shapes: n = values.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Ticks:
    """Tick positions in eigenvalues, ascending.

    `labels` belong to `major` and may be empty.
    """

    major: tuple[float, ...]
    labels: tuple[str, ...]
    minor: tuple[float, ...]


@dataclass(frozen=True)
class AsinhAxis:
    """Coordinate u = asinh(lambda / linear_width) of eigenvalues lambda.

    `linear_width` > 0 has the unit of lambda.
    """

    linear_width: float

    @classmethod
    def fit(cls, values: Float[np.ndarray, " n"]) -> "AsinhAxis":
        """Choose the linear part so that it ends where the data begin.

        Then neither the gap around zero nor the bulk fills the axis.

        The width is the 5 % quantile of the magnitudes of the finite values other than zero, but at
        least a thousandth of their median (a few numerically zero values must not stretch the
        axis), rounded down to 1, 2 or 5 times a power of ten. It is 1 when all values are zero.
        """
        magnitudes = np.abs(values[np.isfinite(values) & (values != 0)])
        if magnitudes.size == 0:
            return cls(linear_width=1.0)
        width = float(max(np.quantile(magnitudes, 0.05), np.median(magnitudes) / 1e3))
        return cls(linear_width=_round_down(width))

    @property
    def scale(self) -> tuple[str, dict[str, float]]:
        """Return matplotlib's name of the scale, and its settings."""
        return "asinh", {"linear_width": self.linear_width}

    @property
    def coordinate(self) -> str:
        """Return u as a formula."""
        width = self.linear_width
        return "asinh($\\lambda$)" if width == 1 else f"asinh($\\lambda$ / {width:g})"

    @property
    def drawn_at(self) -> str:
        """Return the end of the axis' label that says how it is drawn."""
        return f", drawn at {self.coordinate}"

    def forward(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Map lambda to u."""
        return np.arcsinh(values / self.linear_width)

    def inverse(self, drawn: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Map u to lambda."""
        return self.linear_width * np.sinh(drawn)

    def ticks(self, low: float, high: float, *, gap: float) -> Ticks:
        """Mark zero and the powers of ten on an axis.

        The axis reaches from the eigenvalue `low` < 0 to `high` > 0. Both signs are marked alike.

        Args:
            gap: Smallest distance between two labels, in units of u. Powers of ten that would come
                closer have no label; where there are few of them, 2 and 5, then 3 to 9 times powers
                of ten are labelled too.
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
        """Keep zero, and ticks at least `gap` apart in u, going outwards.

        The distance is between magnitudes, so that both signs are thinned alike.
        """
        kept = [0.0]
        for size in sorted({abs(tick) for tick in ticks}):
            if (
                math.asinh(size / self.linear_width) - math.asinh(kept[-1] / self.linear_width)
                >= gap
            ):
                kept.append(size)
        return [tick for tick in ticks if abs(tick) in kept]


@dataclass(frozen=True)
class LinearAxis(AsinhAxis):
    """Coordinate u = lambda / w: a linear axis, whose largest magnitude is about 10."""

    @classmethod
    def fit(cls, values: Float[np.ndarray, " n"]) -> "LinearAxis":
        """Choose w: a tenth of the largest magnitude, rounded down to 1, 2 or 5."""
        magnitudes = np.abs(values[np.isfinite(values)])
        largest = float(magnitudes.max()) if magnitudes.size else 0.0
        return cls(linear_width=_round_down(largest / 10) if largest else 1.0)

    @property
    def scale(self) -> tuple[str, dict[str, float]]:
        return "linear", {}

    @property
    def coordinate(self) -> str:
        return "$\\lambda$" if self.linear_width == 1 else f"$\\lambda$ / {self.linear_width:g}"

    @property
    def drawn_at(self) -> str:
        return ""

    def forward(self, values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        return values / self.linear_width

    def inverse(self, drawn: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        return drawn * self.linear_width

    def ticks(self, low: float, high: float, *, gap: float) -> Ticks:
        """Mark multiples of 1, 2 or 5 times a power of ten, at least `gap` apart."""
        least = gap * self.linear_width
        step = next(
            mantissa * 10.0**exponent
            for exponent in itertools.count(math.floor(math.log10(least)))
            for mantissa in (1, 2, 5)
            if mantissa * 10.0**exponent >= least
        )
        first, last = math.ceil(low / step), math.floor(high / step)
        major = tuple(step * number for number in range(first, last + 1))
        return Ticks(major, tuple(tick_label(tick, plain=True) for tick in major), ())


def _round_down(value: float) -> float:
    """Round a positive number down to 1, 2 or 5 times a power of ten."""
    decade = 10.0 ** math.floor(math.log10(value))
    return max(m * decade for m in (1, 2, 5) if m * decade <= value * (1 + 1e-9))


def _both_signs(sizes: Iterable[float], smallest: float, low: float, high: float) -> list[float]:
    """Return zero, and +-size for every size that lies within the axis.

    Sizes below `smallest` are left out.
    """
    signed = {
        sign * size for size in sizes if size >= smallest * (1 - 1e-9) for sign in (-1.0, 1.0)
    }
    return sorted(x for x in signed | {0.0} if low <= x <= high)


def tick_label(value: float, *, plain: bool) -> str:
    """Format a tick, as a plain number or a power of ten.

    Args:
        plain: Whether all ticks of the axis are short as plain numbers.
    """
    if value == 0 or plain:
        return f"{value:g}".replace("-", "\N{MINUS SIGN}")
    exponent = math.floor(math.log10(abs(value)) + 1e-9)
    power = {0: "1", 1: "10"}.get(exponent, f"10^{{{exponent}}}")
    mantissa = round(abs(value) / 10.0**exponent)
    if mantissa != 1:
        power = rf"{mantissa}{{\times}}{power}"
    return f"${'-' if value < 0 else ''}{power}$"
