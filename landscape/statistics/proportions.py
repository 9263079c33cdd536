"""Shares of right answers.

The interval of one share, the exact test of two, and the difference that this test can detect.

Shapes: * = any shape; item = items (pictures) that two observers answered.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool


def wilson_interval(
    num_correct: Any, num_items: Any, *, confidence: float = 0.95
) -> tuple[Any, Any]:
    r"""Compute Wilson's score interval of a proportion.

    With p = k / n and z the normal quantile of (1 + confidence) / 2,

        (k + z^2 / 2) / (n + z^2)  ±  z / (n + z^2) * sqrt(n p (1 - p) + z^2 / 4).

    Unlike p ± z sqrt(p (1 - p) / n) it has a width at p = 0 and p = 1 and stays within [0, 1].

    Args:
        num_correct: k, a number or an array of them.
        num_items: n, broadcast with `num_correct`.

    Returns:
        The lower and upper ends, each of the broadcast shape.

    Raises:
        ValueError: If not 0 <= k <= n and 1 <= n everywhere, or `confidence` is not in (0, 1).

    Source: Wilson, Probable Inference, the Law of Succession, and Statistical Inference, JASA 22
    (1927).
    """
    k, n = np.asarray(num_correct, dtype=float), np.asarray(num_items, dtype=float)
    if not (np.all(n >= 1) and np.all(k >= 0) and np.all(k <= n)):
        raise ValueError("a proportion needs 0 <= num_correct <= num_items and at least one item.")
    z = normal_quantile((1 + _checked_share("confidence", confidence)) / 2)
    centre = (k + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * np.sqrt(k * (n - k) / n + z**2 / 4)
    # The ends at k = 0 and k = n are 0 and 1, which rounding misses.
    low, high = np.where(k == 0, 0.0, centre - half), np.where(k == n, 1.0, centre + half)
    return (float(low), float(high)) if low.ndim == 0 else (low, high)


@dataclass(frozen=True, kw_only=True)
class PairedAnswers:
    """Right and wrong answers of two observers to the same items, with a test.

    Args:
        num_items: Items that both answered.
        first_only: Items that the first alone has right.
        second_only: Items that the second alone has right.
        p_value: Two-sided p-value of McNemar's exact test; 1 where both are right on the same
            items.
    """

    num_items: int
    first_only: int
    second_only: int
    p_value: float

    @property
    def difference(self) -> float:
        """Return the accuracy of the first minus that of the second.

        NaN without items.
        """
        return (self.first_only - self.second_only) / self.num_items if self.num_items else math.nan

    @property
    def discordant_share(self) -> float:
        """Return the share of items that exactly one has right.

        NaN without items.
        """
        return (self.first_only + self.second_only) / self.num_items if self.num_items else math.nan


def mcnemar(first: Bool[np.ndarray, " item"], second: Bool[np.ndarray, " item"]) -> PairedAnswers:
    """Test by McNemar's exact test whether two observers are equally accurate.

    Items that both have right, or both wrong, contain no information about a difference. Of the b +
    c others, the first alone has b right. Where the accuracies are equal, b is Binomial(b + c,
    1/2), and p = min(1, 2 P(X <= min(b, c))).

    Args:
        first: Whether each item is right, by the first observer.
        second: The same items in the same order, by the second.

    Raises:
        ValueError: If the lengths differ.

    Source: McNemar, Note on the Sampling Error of the Difference between Correlated Proportions or
    Percentages, Psychometrika 12 (1947); the binomial form is the exact one.
    """
    from scipy import special

    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(
            f"two vectors of the same items are needed, got shapes {first.shape} and "
            f"{second.shape}."
        )
    b, c = int((first & ~second).sum()), int((~first & second).sum())
    p_value = min(1.0, 2 * float(special.bdtr(min(b, c), b + c, 0.5)))
    return PairedAnswers(num_items=len(first), first_only=b, second_only=c, p_value=p_value)


def minimal_detectable_difference(
    num_items: int, discordant_share: float, *, alpha: float = 0.05, power: float = 0.8
) -> float:
    r"""Compute the smallest difference of accuracies that a paired test detects.

    With psi the share of items that exactly one observer has right, delta the difference of the
    accuracies, and z_q the normal quantile, McNemar's test at level alpha has the requested power
    when

        n = (z_{1 - alpha/2} sqrt(psi) + z_{power} sqrt(psi - delta^2))^2 / delta^2.

    Solved for delta, with a = z_{1 - alpha/2} and b = z_{power}:

        delta = sqrt(psi) (a sqrt(n) + b sqrt(n + b^2 - a^2)) / (n + b^2).

    It is a normal approximation; the exact test needs slightly more. As a rough rule, at 80 % power
    it is 1.43 half-widths of the 95 % interval of the difference.

    Args:
        num_items: n, number of items that both answer.
        discordant_share: psi, in [0, 1]; as observed, or p (1 - q) + q (1 - p) where two observers
            of accuracies p and q err independently.
        alpha: Level of the two-sided test; divide it by the number of tests where they are
            corrected.
        power: Probability of detecting that difference; more than 0.5.

    Returns:
        delta; NaN where even a difference of psi, all discordant items in favour of one observer,
        would not be detected.

    Raises:
        ValueError: If an argument is out of range.

    Source: Connor, Sample Size for Testing Differences in Proportions for the Paired-Sample Design,
    Biometrics 43 (1987), page 209.
    """
    if num_items < 1 or not 0 <= discordant_share <= 1:
        raise ValueError(
            f"num_items must be at least 1 and discordant_share in [0, 1], got {num_items}, "
            f"{discordant_share}."
        )
    if not 0.5 < power < 1:
        raise ValueError(f"power must be more than 0.5 and less than 1, got {power}.")
    a, b = normal_quantile(1 - _checked_share("alpha", alpha) / 2), normal_quantile(power)
    if num_items + b**2 - a**2 < 0:
        return math.nan
    delta = a * math.sqrt(num_items) + b * math.sqrt(num_items + b**2 - a**2)
    delta *= math.sqrt(discordant_share) / (num_items + b**2)
    return delta if 0 < delta <= discordant_share else math.nan


def normal_quantile(probability: float) -> float:
    """Compute the quantile of the standard normal distribution."""
    from scipy import special

    return float(special.ndtri(probability))


def independent_discordant_share(first: Any, second: Any) -> Any:
    """Compute the share of items that exactly one observer has right.

    The observers are taken as independent. Observers of the same pictures rarely are: hard pictures
    are hard for both, so the true share is smaller, and with it the difference that a test can
    detect is smaller too.

    Args:
        first, second: Accuracies, numbers or arrays.
    """
    return np.asarray(first) * (1 - np.asarray(second)) + np.asarray(second) * (
        1 - np.asarray(first)
    )


def _checked_share(name: str, value: float) -> float:
    if not 0 < value < 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}.")
    return value
