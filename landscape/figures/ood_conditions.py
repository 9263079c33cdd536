"""Figure 2: accuracy of models and people in every condition of the benchmark.

It has 16 panels, one per data set.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from landscape.answers import (
    CHANCE,
    DATASETS,
    HUMANS,
    SIXTEEN,
    Answers,
    Dataset,
    condition_table,
    dataset_table,
    range_over_people,
    score,
)
from landscape.errors import AnswersError
from landscape.figures.condition_panels import ConditionPanel, LevelValues, draw_condition_panels
from landscape.figures.observers import Look, check_datasets, check_num_models, observer_looks
from landscape.figures.style import paper_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def ood_conditions(
    answers: Answers,
    *,
    datasets: Sequence[str] = SIXTEEN,
    labels: Mapping[str, str] | None = None,
    title: str | None = None,
) -> "Figure":
    """Draw accuracy by condition, a panel per data set.

    A panel has a line or bar per model, and people with a band. All levels are drawn, in the
    benchmark's order; markers of levels that it leaves out of its means are hollow. The human line
    is pooled over people; its band reaches from the least to the most accurate person. Bars of sets
    with one condition have Wilson's 95 % interval for a model, and the same range for people. A set
    without answers has an empty panel.

    Args:
        datasets: Data sets of the panels; by default the paper's 16.
        labels: Labels of observers, by their names; "humans" are all people together.
        title: Heading of the figure; none by default, as in papers.

    Raises:
        ValueError: If there is no such data set.
        AnswersError: If there is no answer to any of the data sets, or there are more than 9
            models.
    """
    check_datasets(datasets)
    check_num_models(len(answers.models))
    answers = answers.only(datasets=datasets)
    if not len(answers):
        raise AnswersError(
            f"figure: there is no answer to any of {', '.join(datasets)}, so there is nothing to "
            "draw."
        )
    looks, tables = observer_looks(answers, labels), _Tables.of(answers)
    panels = [_panel(DATASETS[name], looks, tables) for name in datasets]
    with paper_style():
        return draw_condition_panels(
            panels, list(looks.values()), title=title or "", note=_note(looks, tables)
        )


@dataclass(frozen=True)
class _Tables:
    """Numbers of the panels.

    Args:
        levels: Accuracy by observer, set and condition.
        people: Range over people, by set and condition.
        wilson: Intervals of models, by set and observer.
    """

    levels: pd.DataFrame
    people: pd.DataFrame
    wilson: pd.DataFrame

    @classmethod
    def of(cls, answers: Answers) -> "_Tables":
        return cls(
            levels=condition_table(answers),
            people=range_over_people(answers),
            wilson=dataset_table(score(answers)).set_index(["dataset", "observer"]),
        )

    def ends(self, dataset: Dataset, observer: str, *, is_people: bool) -> list[np.ndarray]:
        """Return the ends of the band or the whisker in each condition.

        NaN on the lines of models.
        """
        names = [condition.name for condition in dataset.conditions]
        if is_people:
            rows = (
                self.people[self.people.dataset == dataset.name]
                .set_index("condition")
                .reindex(names)
            )
            return [rows[end].to_numpy(dtype=float) for end in ("low", "high")]
        if dataset.is_parametric:
            return [np.full(len(names), math.nan)] * 2
        return [
            np.array([self.wilson.loc[(dataset.name, observer), end]]) for end in ("low", "high")
        ]


def _panel(dataset: Dataset, looks: Mapping[str, Look], tables: _Tables) -> ConditionPanel:
    names = [condition.name for condition in dataset.conditions]
    levels = tables.levels[tables.levels.dataset == dataset.name]
    observers = []
    for name, look in looks.items():
        rows = levels[
            (levels.observer == name) & (levels.kind == (HUMANS if look.is_people else "model"))
        ]
        if len(rows):
            value = rows.set_index("condition").accuracy.reindex(names).to_numpy(dtype=float)
            observers.append(
                LevelValues(look, value, *tables.ends(dataset, name, is_people=look.is_people))
            )
    return ConditionPanel(
        title=dataset.label,
        axis_label=dataset.axis_label,
        ticks=tuple(condition.tick for condition in dataset.conditions),
        hollow=tuple(condition.excluded for condition in dataset.conditions),
        observers=tuple(observers),
        chance=CHANCE,
    )


def _note(looks: Mapping[str, Look], tables: _Tables) -> str:
    levels = tables.levels
    is_line = levels.dataset.isin(
        [name for name, dataset in DATASETS.items() if dataset.is_parametric]
    )
    sentences = ["Dotted: chance, 1/16."]
    if is_line.any():
        sentences.append("Hollow: levels that the benchmark leaves out of its means.")
    if HUMANS in looks:
        fewest, most = tables.people.num_people.min(), tables.people.num_people.max()
        counted = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        sentences.append(
            f"People: answers of all pooled ({counted} per set); the band, or the whisker of a "
            "bar, reaches from the least to the most accurate person."
        )
    models = [name for name, look in looks.items() if not look.is_people]
    if models and not is_line.all():
        sentences.append("Whiskers of models' bars: Wilson's 95 % intervals.")
    if lacking := [
        text for name in models if (text := _missing_sets(levels, name, looks[name].label))
    ]:
        sentences.append(f"No answers: {'; '.join(lacking)}.")
    return " ".join(sentences)


def _missing_sets(levels: pd.DataFrame, model: str, label: str) -> str:
    """Name the sets that others answered and a model did not."""
    there = set(levels.dataset[(levels.kind == "model") & (levels.observer == model)])
    missing = [name for name in levels.dataset.unique() if name not in there]
    return f"{label} to {', '.join(missing)}" if missing else ""
