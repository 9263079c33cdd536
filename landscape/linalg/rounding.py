"""Numbers as texts, rounded to their error: the one place where a ± of an estimate is written.

Imports only the standard library.
"""

import math

# Numbers outside of these sizes are written with an exponent.
_SMALL, _LARGE = 1e-3, 1e6
# Below this share of a number, its error is written with an exponent of its own.
_TINY = 1e-7


def with_error(value: float, error: float, *, percent: bool = False) -> str:
    """Write a number and its standard error, which keeps two digits: "630 ± 180", "(3.5 ± 1.0)e-04", "38 ± 14 %".

    Args:
        value: The number; a share where `percent` is asked for.
        error: Its standard error; with 0, the number keeps six digits.
    """
    if percent:
        return f"{with_error(100 * value, 100 * error)} %"
    if not (math.isfinite(value) and math.isfinite(error)):
        return f"{short(value)} ± unknown" if math.isfinite(value) else "unknown"
    if error <= _TINY * abs(value):
        return f"{value:.6g} ± {error:.1g}"
    if error == 0:
        return "0 ± 0"
    last = math.floor(math.log10(float(f"{error:.1e}"))) - 1
    size = max(abs(value), error)
    if _SMALL <= size < _LARGE:
        return f"{_to_digit(value, last)} ± {_to_digit(error, last)}"
    exponent = math.floor(math.log10(size))
    scaled = (_to_digit(number / 10.0**exponent, last - exponent) for number in (value, error))
    return f"({' ± '.join(scaled)})e{exponent:+03d}"


def unknown(low: float, high: float, *, percent: bool = False) -> str:
    """Write a number that is known to lie in an interval only: "unknown (0.06 to 99.5 %)"."""
    if percent:
        return f"unknown ({_percent(low)} to {_percent(high)} %)"
    return f"unknown ({short(low)} to {short(high)})"


def short(value: float) -> str:
    """Three significant digits, without an exponent where it can be read without."""
    if not math.isfinite(value):
        return "?"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        digits = 3 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:.{min(digits, 5)}f}" if value else "0"
    return f"{value:.2e}"


def two_digits(error: float) -> str:
    """An error alone, as `with_error` rounds it."""
    if not (math.isfinite(error) and _SMALL <= error < _LARGE):
        return f"{error:.2g}"
    return _to_digit(error, math.floor(math.log10(float(f"{error:.1e}"))) - 1)


def _to_digit(value: float, last: int) -> str:
    """A number up to the digit of 10^last."""
    text = f"{round(value, -last):.{max(0, -last)}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def _percent(share: float) -> str:
    """A share in percent to a tenth; to one digit where it is smaller than 1 %."""
    if not math.isfinite(share):
        return "?"
    percent = 100 * share
    return f"{percent:.1g}" if abs(percent) < 0.95 else f"{percent:.1f}".removesuffix(".0")
