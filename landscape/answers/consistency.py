"""Error consistency: whether two observers err on the same pictures.

More exactly: more often than their accuracies alone imply. Two observers with 90 % right each agree
about right and wrong on 82 % of the pictures even if they err independently. So agreement alone
means little. Its excess over the expected agreement, as a share of the largest possible excess, is
Cohen's kappa of their correctness.

Knows arrays of right (1), wrong (0) and not shown (NaN), no benchmark.

Shapes: f, s = first and second observers, n = pictures, * = none, or resamples.

Source: Geirhos, Meding and Wichmann, Beyond accuracy: quantifying trial-by-trial behaviour of CNNs
and humans by measuring error consistency, NeurIPS 2020 (arXiv 2006.16736); Cohen, A coefficient of
agreement for nominal scales, Educational and Psychological Measurement 20 (1960).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, eq=False)
class PairCounts:
    """Counts of right answers of many pairs of observers, alone and together.

    Only pictures that both saw count. Every property is NaN where two observers share none.

    Args:
        num_pictures: Number of shared pictures, or the sum of their weights.
        first_right, second_right: How many of them each has right.
        disagreements: On how many of them exactly one is right.
    """

    num_pictures: Float[np.ndarray, "*r f s"]
    first_right: Float[np.ndarray, "*r f s"]
    second_right: Float[np.ndarray, "*r f s"]
    disagreements: Float[np.ndarray, "*r f s"]

    @property
    def first_accuracy(self) -> Float[np.ndarray, "*r f s"]:
        """Compute p, the share that the first observer has right."""
        return share(self.first_right, self.num_pictures)

    @property
    def second_accuracy(self) -> Float[np.ndarray, "*r f s"]:
        """Compute q, the share that the second observer has right."""
        return share(self.second_right, self.num_pictures)

    @property
    def observed(self) -> Float[np.ndarray, "*r f s"]:
        """Compute the observed consistency.

        It is the share of pictures that both have right or both have wrong, c_obs = mean over
        pictures of [x_i = y_i]. Two different wrong answers agree, and so does "no answer" with any
        wrong answer.
        """
        return 1 - share(self.disagreements, self.num_pictures)

    @property
    def expected(self) -> Float[np.ndarray, "*r f s"]:
        """Compute the expected consistency.

        It is the value of c_obs if the two erred independently: c_exp = p q + (1 - p) (1 - q).
        """
        p, q = self.first_accuracy, self.second_accuracy
        return p * q + (1 - p) * (1 - q)

    @property
    def error_consistency(self) -> Float[np.ndarray, "*r f s"]:
        """Compute the error consistency: agreement beyond what the accuracies explain.

        kappa = (c_obs - c_exp) / (1 - c_exp); and 1 where c_obs = 1, also where both are always
        right and it would be 0 / 0. 1 means the same errors, 0 independent errors; negative means
        that each errs where the other does not.
        """
        # c_exp is 1 only where both are always right or both always wrong, and there nothing
        # disagrees.
        agree = self.disagreements == 0
        kappa = 1 - share(1 - self.observed, np.where(agree, 1.0, 1 - self.expected))
        return np.where(self.num_pictures > 0, np.where(agree, 1.0, kappa), np.nan)

    @property
    def squared_accuracy_difference(self) -> Float[np.ndarray, "*r f s"]:
        """Compute the benchmark's accuracy difference, (p - q)^2.

        Source: Geirhos et al. 2021 (arXiv 2106.07411).
        """
        return np.asarray((self.first_accuracy - self.second_accuracy) ** 2)


def count_pairs(
    first: Float[np.ndarray, "f n"],
    second: Float[np.ndarray, "s n"],
    weights: Float[np.ndarray, "r n"] | None = None,
) -> PairCounts:
    """Count right answers and disagreements of all pairs of observers.

    A pair is a first and a second observer. With x and y the correctness of two observers, x_i +
    y_i - 2 x_i y_i is 1 where exactly one is right. So all pairs of all resamples are matrix
    products.

    Args:
        first, second: 1 right, 0 wrong, NaN not shown; of the same pictures in the same order.
        weights: Weights of a bootstrap, how often each picture counts; the results then have one
            more axis at the front.
    """
    rows = np.ones((1, first.shape[1])) if weights is None else weights
    pairs = (len(rows), len(first), len(second))
    x, y = np.nan_to_num(first), np.nan_to_num(second)
    saw_x, saw_y = ~np.isnan(first), ~np.isnan(second)

    def both(of_first: Any, of_second: Any) -> Float[np.ndarray, "r f s"]:
        products = (of_first[:, None, :] * of_second[None, :, :]).reshape(
            len(first) * len(second), first.shape[1]
        )
        return (rows @ products.T.astype(float)).reshape(pairs)

    if saw_x.all() and saw_y.all():
        # The common case, where sums over single observers are enough.
        num = np.broadcast_to(rows.sum(axis=1)[:, None, None], pairs)
        right_x = np.broadcast_to((rows @ x.T)[:, :, None], pairs)
        right_y = np.broadcast_to((rows @ y.T)[:, None, :], pairs)
    else:
        num, right_x, right_y = both(saw_x, saw_y), both(x, saw_y), both(saw_x, y)
    # Not computed as right_x + right_y - 2 both(x, y): without disagreement it must be exactly 0.
    differ = both(x, saw_y * (1 - y)) + both(saw_x * (1 - x), y)
    counts = (num, right_x, right_y, differ)
    return PairCounts(*(counts_of[0] if weights is None else counts_of for counts_of in counts))


def share(part: Any, whole: Any) -> Any:
    """Divide, with NaN where the whole is 0."""
    shape = np.broadcast_shapes(np.shape(part), np.shape(whole))
    return np.divide(part, whole, out=np.full(shape, np.nan), where=np.asarray(whole) != 0)
