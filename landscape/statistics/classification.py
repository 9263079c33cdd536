"""Metrics of classified items: top-k, mean recall per class, area under the ROC curve.

The last two take weights, for the bootstrap.

Shapes: n = items, k = best classes of an item, r = resamples.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int


def top_k_hits(
    labels: Int[np.ndarray, " n"], best: Int[np.ndarray, "n k"], k: int
) -> Bool[np.ndarray, " n"]:
    """Tell for each item whether its class is among the k best.

    Args:
        labels: Class of each item.
        best: Classes in descending order of their scores; at least `k` of them.

    Raises:
        ValueError: If `best` holds fewer than `k` classes, or `k` is less than 1.
    """
    if not 1 <= k <= best.shape[1]:
        raise ValueError(
            f"k must be between 1 and the {best.shape[1]} classes that are given per item, got {k}."
        )
    return (best[:, :k] == labels[:, None]).any(axis=1)


def half_top_1_and_5(
    labels: Int[np.ndarray, " n"], best: Int[np.ndarray, "n k"]
) -> Float[np.ndarray, " n"]:
    """Average whether each item is a top-1 and a top-5 hit.

    1 where its class is the best, 1/2 where it is among the best five, else 0. The mean over items
    is (top-1 + top-5) / 2, the metric of Kinetics-700.

    Raises:
        ValueError: If `best` holds fewer than five classes.
    """
    return (top_k_hits(labels, best, 1).astype(float) + top_k_hits(labels, best, 5)) / 2


def mean_class_recall(
    labels: Int[np.ndarray, " n"],
    correct: Bool[np.ndarray, " n"],
    weights: Float[np.ndarray, "r n"] | None = None,
) -> Any:
    """Average the shares of right answers over the classes that occur.

    Each class counts the same. Also called mean per-class accuracy and balanced accuracy.

    Args:
        labels: Class of each item, any integers.
        correct: Whether each item was answered right.
        weights: Weights of a bootstrap; one result per row. A class of which a resample has no item
            is left out of its mean; with classes as strata there is none.

    Returns:
        A number, or (r,) with weights.

    Raises:
        ValueError: If there is no item.
    """
    if not len(labels):
        raise ValueError("the mean recall over classes needs at least one item.")
    rows = np.ones((1, len(labels))) if weights is None else weights
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=labels[order[0]] - 1))
    totals = np.add.reduceat(rows[:, order], starts, axis=1)
    hits = np.add.reduceat((rows * correct)[:, order], starts, axis=1)
    recalls = np.divide(hits, totals, out=np.zeros_like(hits), where=totals > 0)
    means = recalls.sum(axis=1) / (totals > 0).sum(axis=1)
    return float(means[0]) if weights is None else means


def roc_auc(
    scores: Float[np.ndarray, " n"],
    positive: Bool[np.ndarray, " n"],
    weights: Float[np.ndarray, "r n"] | None = None,
) -> Any:
    """Compute the area under the ROC curve.

    P(score of a positive > score of a negative), ties counting one half. It is the Mann-Whitney
    statistic divided by the number of pairs, from one sort instead of all pairs.

    Args:
        scores: Scores that are larger for items that are more likely positive.
        weights: Weights of a bootstrap; one result per row. Stratify by `positive`, so that no
            resample lacks a class.

    Returns:
        A number, or (r,) with weights; NaN where a resample has only one class.

    Raises:
        ValueError: If a score is NaN, or one of the two classes does not occur.

    Source: Hanley and McNeil, The Meaning and Use of the Area under a Receiver Operating
    Characteristic (ROC) Curve, Radiology 143 (1982).
    """
    positive = np.asarray(positive, dtype=bool)
    if np.isnan(scores).any():
        raise ValueError(
            f"{int(np.isnan(scores).sum())} of {len(scores)} scores are NaN, which have no rank."
        )
    if positive.all() or not positive.any():
        raise ValueError(
            "the area under the ROC curve needs positive and negative items, and there is only one "
            "kind."
        )
    rows = np.ones((1, len(scores))) if weights is None else weights
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    # Items with equal scores form a group. Compared, not subtracted, since inf - inf is NaN.
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    positives = np.add.reduceat((rows * positive)[:, order], starts, axis=1)
    negatives = np.add.reduceat((rows * ~positive)[:, order], starts, axis=1)
    # Weight of the negatives below each group of equal scores; those in the group count one half.
    below = np.cumsum(negatives, axis=1) - negatives / 2
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    areas = np.divide(
        (positives * below).sum(axis=1), pairs, out=np.full(len(rows), np.nan), where=pairs > 0
    )
    return float(areas[0]) if weights is None else areas
