"""Numbers of the benchmark for each observer: means over data sets, and their parts.

The parts are the numbers of each data set and condition. A mean knows which data sets are missing
from it. Intervals of means are in `uncertainty`.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from landscape.answers.benchmark import SEVENTEEN, SIXTEEN
from landscape.answers.metrics import (
    HUMANS,
    METRICS,
    condition_accuracies,
    measure,
    pooled_condition_accuracies,
)
from landscape.answers.shape_texture import ShapeBias, shape_bias
from landscape.answers.table import NOT_SHOWN, Answers, Trials
from landscape.statistics import wilson_interval


@dataclass(frozen=True, kw_only=True)
class DatasetScores:
    """Numbers of one observer on one data set; NaN where there are none.

    Args:
        accuracy: Accuracy over the kept conditions; pooled over people where they are the observer.
        num_right, num_trials: Its numerator and denominator.
        num_unanswered: Pictures of the kept conditions that other observers answered, and this one
            did not; for people, those that nobody answered.
        accuracy_difference, observed_consistency, error_consistency: Compared with people; for
            people, one person compared with another.
    """

    dataset: str
    accuracy: float
    num_right: int
    num_trials: int
    num_unanswered: int
    accuracy_difference: float
    observed_consistency: float
    error_consistency: float


@dataclass(frozen=True, kw_only=True)
class SetMean:
    """Mean over data sets, and the data sets that are missing from it.

    Args:
        value: Mean over `datasets`; NaN if there are none.
        datasets: Data sets with a value.
        missing: Data sets that should have been in the mean.
    """

    value: float
    datasets: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        return not self.missing

    def __str__(self) -> str:
        total = len(self.datasets) + len(self.missing)
        gap = (
            f" ({len(self.datasets)} of {total} sets, without {', '.join(self.missing)})"
            if self.missing
            else ""
        )
        return f"{self.value:.3f}{gap}"


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Numbers of the benchmark for one observer.

    Args:
        observer: Name of a model, or "humans".
        by_dataset: Data sets that the observer answered, in the benchmark's order.
        shape_bias: Shape bias; None without answers to cue-conflict.
    """

    observer: str
    by_dataset: dict[str, DatasetScores]
    shape_bias: ShapeBias | None

    def mean(self, metric: str, datasets: Sequence[str] = SEVENTEEN) -> SetMean:
        """Average one of `METRICS` over data sets, each counting the same.

        The toolbox's leaderboard takes all 17, the default; the paper's 16 (`SIXTEEN`) are without
        cue-conflict.

        Args:
            metric: "accuracy", "accuracy_difference", "observed_consistency" or
                "error_consistency".
        """
        values = {
            name: getattr(self.by_dataset[name], metric)
            for name in datasets
            if name in self.by_dataset
        }
        present = tuple(name for name, value in values.items() if math.isfinite(value))
        value = float(np.mean([values[name] for name in present])) if present else math.nan
        return SetMean(
            value=value,
            datasets=present,
            missing=tuple(name for name in datasets if name not in present),
        )


def score(answers: Answers) -> dict[str, Scores]:
    """Compute the benchmark's numbers of every model, and of people.

    Returns:
        Models by name in the order of the table, then "humans" where there are people.
    """
    by_observer: dict[str, dict[str, DatasetScores]] = {
        name: {} for name in (*answers.models, HUMANS)
    }
    for trials in answers.trials.values():
        for observer, of_dataset in _dataset_scores(trials).items():
            by_observer[observer][trials.dataset.name] = of_dataset
    return {
        name: Scores(
            observer=name,
            by_dataset=sets,
            shape_bias=shape_bias(answers, None if name == HUMANS else name),
        )
        for name, sets in by_observer.items()
        if sets
    }


def _dataset_scores(trials: Trials) -> dict[str, DatasetScores]:
    metrics, scores = measure(trials), {}
    for index, name in enumerate((*trials.models, HUMANS)):
        responses = (
            trials.human_responses if name == HUMANS else trials.model_responses[index : index + 1]
        )
        if not (responses != NOT_SHOWN).any():
            continue
        kept = responses[:, trials.is_kept]
        scores[name] = DatasetScores(
            dataset=trials.dataset.name,
            num_right=int((kept == trials.category[trials.is_kept]).sum()),
            num_trials=int((kept != NOT_SHOWN).sum()),
            num_unanswered=int((kept == NOT_SHOWN).all(axis=0).sum()),
            **{metric: float(metrics[metric][index]) for metric in METRICS},
        )
    return scores


def model_table(scores: dict[str, Scores]) -> pd.DataFrame:
    """Tabulate the means of every observer, one row each.

    Columns: `model`, `ood_accuracy_17`, `ood_accuracy_16`, `accuracy_difference`,
    `observed_consistency`, `error_consistency` (over 17 data sets), `shape_bias`, `mean_rank`; then
    `num_datasets` of the 17 with an accuracy, and `missing`. A mean from which a data set is
    missing is NaN, since its name would be wrong; `Scores.mean` has the mean of the others.
    `mean_rank` is the benchmark's order by likeness to people: the mean of a model's ranks in the
    three columns before `shape_bias`, 1 for the most alike; NaN for people and incomplete rows.
    """
    rows = []
    for name, of_observer in scores.items():
        means = {
            "ood_accuracy_17": of_observer.mean("accuracy"),
            "ood_accuracy_16": of_observer.mean("accuracy", SIXTEEN),
        }
        means |= {metric: of_observer.mean(metric) for metric in METRICS[1:]}
        gaps = dict.fromkeys(dataset for mean in means.values() for dataset in mean.missing)
        row: dict[str, Any] = {"model": name}
        row |= {
            column: mean.value if mean.is_complete else math.nan for column, mean in means.items()
        }
        row["shape_bias"] = (
            math.nan if of_observer.shape_bias is None else of_observer.shape_bias.bias
        )
        row["mean_rank"] = math.nan
        rows.append(
            row
            | {"num_datasets": len(means["ood_accuracy_17"].datasets), "missing": ", ".join(gaps)}
        )
    table = pd.DataFrame(rows)
    if len(table):
        ranked = table[table.model != HUMANS].dropna(subset=list(METRICS[1:]))
        ranks = [
            ranked[metric].rank(ascending=metric == "accuracy_difference") for metric in METRICS[1:]
        ]
        table.loc[ranked.index, "mean_rank"] = np.mean(ranks, axis=0)
    return table


def dataset_table(scores: dict[str, Scores]) -> pd.DataFrame:
    """Tabulate every observer on every data set.

    `low` and `high` are Wilson's 95 % interval of a model's accuracy. People's accuracy has no
    interval here: several people answered the same picture, so only resampling people shows how
    they vary.
    """
    rows = []
    for name, of_observer in scores.items():
        for of_dataset in of_observer.by_dataset.values():
            low, high = math.nan, math.nan
            if name != HUMANS and of_dataset.num_trials:
                low, high = wilson_interval(of_dataset.num_right, of_dataset.num_trials)
            rows.append({"observer": name, **asdict(of_dataset), "low": low, "high": high})
    return pd.DataFrame(rows)


def condition_table(answers: Answers) -> pd.DataFrame:
    """Tabulate accuracy by condition, including excluded ones.

    These are the numbers of the benchmark's line plots.

    Columns: `observer`, `kind`, `dataset`, `condition`, `tick`, `excluded`, `accuracy`,
    `num_trials`. Kinds are "model", "human" for each person, and "humans" for all people pooled.
    """
    frames = []
    for trials in answers.trials.values():
        blocks = [
            ("model", trials.models, trials.model_responses, condition_accuracies(trials, "model")),
            ("human", trials.humans, trials.human_responses, condition_accuracies(trials, "human")),
        ]
        if trials.humans:
            blocks.append(
                (
                    HUMANS,
                    (HUMANS,),
                    trials.human_responses,
                    pooled_condition_accuracies(trials)[None],
                )
            )
        for kind, names, responses, values in blocks:
            shown = _shown(trials, responses)
            shown = shown.sum(axis=0, keepdims=True) if kind == HUMANS else shown
            frames += [
                _condition_rows(trials, kind, *row)
                for row in zip(names, values, shown, strict=True)
            ]
    table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    return table[table.num_trials > 0].reset_index(drop=True) if len(table) else table


def _shown(trials: Trials, responses: Any) -> Any:
    """Count the pictures of each condition that each observer saw."""
    conditions = range(len(trials.dataset.conditions))
    return np.stack(
        [(responses[:, trials.condition == at] != NOT_SHOWN).sum(axis=1) for at in conditions],
        axis=1,
    )


def _condition_rows(
    trials: Trials, kind: str, observer: str, accuracy: Any, num_trials: Any
) -> pd.DataFrame:
    conditions = trials.dataset.conditions
    return pd.DataFrame(
        {
            "observer": observer,
            "kind": kind,
            "dataset": trials.dataset.name,
            "condition": [condition.name for condition in conditions],
            "tick": [condition.tick for condition in conditions],
            "excluded": [condition.excluded for condition in conditions],
            "accuracy": accuracy,
            "num_trials": num_trials,
        }
    )
