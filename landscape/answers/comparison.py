"""Comparison of two models on the same pictures.

A test per data set, and intervals of the differences of means.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from landscape.answers.benchmark import SEVENTEEN, SIXTEEN
from landscape.answers.metrics import HUMANS, METRICS
from landscape.answers.table import Answers
from landscape.answers.uncertainty import SHAPE_BIAS, Difference, Resamples, resample
from landscape.errors import AnswersError
from landscape.statistics import Bootstrap, holm, mcnemar, minimal_detectable_difference
from landscape.suggestions import did_you_mean


@dataclass(frozen=True, kw_only=True)
class DatasetTest:
    """McNemar's exact test of two models' accuracies on a data set.

    Args:
        num_pictures: Pictures of the kept conditions that both answered.
        num_left_out: Pictures that only one of the two answered.
        first, second: Accuracies on the shared pictures.
        first_only, second_only: Pictures that one has right and the other wrong.
        p_value: Two-sided p-value.
        p_holm: The p-value after Holm's correction for all data sets of the comparison.
        detectable: The difference that this test finds with 80 % power at level 5 %, uncorrected,
            given how many pictures exactly one has right; NaN where these are too few.
    """

    dataset: str
    num_pictures: int
    num_left_out: int
    first: float
    second: float
    first_only: int
    second_only: int
    p_value: float
    p_holm: float
    detectable: float

    @property
    def difference(self) -> float:
        """Return the accuracy of the first minus that of the second."""
        return self.first - self.second


@dataclass(frozen=True, kw_only=True)
class ModelComparison:
    """Results of comparing two models' answers to the same pictures.

    Args:
        tests: A row per data set that both answered.
        differences: Differences of the mean accuracy over 17 and 16 data sets, of the three
            measures of likeness to people over 17, and of shape bias; only numbers that both models
            have.
        missing: Data sets of the benchmark that one of the two did not answer.
    """

    first: str
    second: str
    tests: tuple[DatasetTest, ...]
    differences: dict[str, Difference]
    missing: tuple[str, ...]

    def table(self) -> pd.DataFrame:
        """Return the tests as a table."""
        return pd.DataFrame([asdict(test) | {"difference": test.difference} for test in self.tests])


def compare_models(
    answers: Answers,
    first: str,
    second: str,
    *,
    settings: Bootstrap | None = None,
    resamples: Resamples | None = None,
    alpha: float = 0.05,
) -> ModelComparison:
    """Compare two models on the pictures that both answered.

    Args:
        settings: Settings of the bootstrap; by default 2,000 resamples, 95 %, seed 0.
        resamples: Result of `resample(answers)`, where several pairs are compared.
        alpha: Level of the test for which the detectable difference is stated.

    Raises:
        AnswersError: If there is no such model, or the two share no picture.
    """
    for name in (first, second):
        if name not in answers.models:
            there = ", ".join(answers.models) or "none"
            raise AnswersError(
                f"answers: there is no model {name!r} to compare. There are: {there}. Name two of "
                f"them.{did_you_mean(name, answers.models)}"
            )
    tests = _tests(answers, first, second, alpha)
    if not tests:
        raise AnswersError(
            f"answers: {first} and {second} answered no picture both, so nothing can be compared. "
            "Run both on one data set."
        )
    if resamples is None:
        resamples = resample(answers.only(models=(first, second)), settings)
    differences = {
        "ood_accuracy_17": resamples.difference(first, second, "accuracy", SEVENTEEN),
        "ood_accuracy_16": resamples.difference(first, second, "accuracy", SIXTEEN),
    }
    if HUMANS in resamples.scores:
        differences |= {
            metric: resamples.difference(first, second, metric) for metric in METRICS[1:]
        }
    differences[SHAPE_BIAS] = resamples.difference(first, second, SHAPE_BIAS, ("cue-conflict",))
    tested = {test.dataset for test in tests}
    return ModelComparison(
        first=first,
        second=second,
        tests=tuple(tests),
        differences={name: row for name, row in differences.items() if np.isfinite(row.value)},
        missing=tuple(name for name in SEVENTEEN if name not in tested),
    )


def _tests(answers: Answers, first: str, second: str, alpha: float) -> list[DatasetTest]:
    rows: list[dict[str, Any]] = []
    for name, trials in answers.trials.items():
        if not {first, second} <= set(trials.models):
            continue
        correct = trials.correct("model")[:, trials.is_kept]
        right, other_right = (correct[trials.models.index(model)] for model in (first, second))
        shared = ~np.isnan(right) & ~np.isnan(other_right)
        if not shared.any():
            continue
        pair = mcnemar(right[shared] == 1, other_right[shared] == 1)
        rows.append(
            {
                "dataset": name,
                "num_pictures": pair.num_items,
                "num_left_out": int((np.isnan(right) != np.isnan(other_right)).sum()),
                "first": float(right[shared].mean()),
                "second": float(other_right[shared].mean()),
                "first_only": pair.first_only,
                "second_only": pair.second_only,
                "p_value": pair.p_value,
                "detectable": minimal_detectable_difference(
                    pair.num_items, pair.discordant_share, alpha=alpha
                ),
            }
        )
    corrected = holm(np.array([row["p_value"] for row in rows], dtype=float))
    return [DatasetTest(**row, p_holm=float(p)) for row, p in zip(rows, corrected, strict=True)]
