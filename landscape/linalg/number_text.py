"""Numbers as texts, rounded to their error.

The only place that writes the ± of an estimate.

Imports only the standard library.
"""

import math

# Numbers outside of these sizes are written with an exponent.
_SMALL, _LARGE = 1e-3, 1e6
# Below this share of a number, its error is written with an exponent of its own.
_TINY = 1e-7


def with_error(value: float, error: float, *, percent: bool = False) -> str:
    """Write a number and its standard error, which keeps two digits.

    For example "630 ± 180", "(3.5 ± 1.0)e-04", "38 ± 14 %".

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
    # The power of ten of the error's second digit, after rounding to two digits: 0.0996 is 0.10.
    last = math.floor(math.log10(float(f"{error:.1e}"))) - 1
    size = max(abs(value), error)
    if _SMALL <= size < _LARGE:
        return f"{_to_digit(value, last)} ± {_to_digit(error, last)}"
    exponent = math.floor(math.log10(size))
    scaled = (_to_digit(number / 10.0**exponent, last - exponent) for number in (value, error))
    return f"({' ± '.join(scaled)})e{exponent:+03d}"


def unknown(low: float, high: float, *, percent: bool = False) -> str:
    """Write a number of which only an interval is known.

    For example "unknown (0.06 to 99.5 %)".
    """
    if percent:
        return f"unknown ({_percent(low)} to {_percent(high)} %)"
    return f"unknown ({short(low)} to {short(high)})"


def short(value: float) -> str:
    """Write three significant digits, without an exponent if readable."""
    if not math.isfinite(value):
        return "?"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        digits = 3 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:.{min(digits, 5)}f}" if value else "0"
    return f"{value:.2e}"


def two_digits(error: float) -> str:
    """Write an error alone, rounded as in `with_error`."""
    if not (math.isfinite(error) and _SMALL <= error < _LARGE):
        return f"{error:.2g}"
    return _to_digit(error, math.floor(math.log10(float(f"{error:.1e}"))) - 1)


def _to_digit(value: float, last: int) -> str:
    """Write a number up to the digit of 10^last."""
    text = f"{round(value, -last):.{max(0, -last)}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def _percent(share: float) -> str:
    """Write a share in percent, to a tenth.

    Shares below 1 % keep one digit.
    """
    if not math.isfinite(share):
        return "?"
    percent = 100 * share
    return f"{percent:.1g}" if abs(percent) < 0.95 else f"{percent:.1f}".removesuffix(".0")
