"""Answers of observers to pictures.

One table for people and models, and one array per data set for the metrics.

Shapes: n = pictures of a data set, observer = observers of one kind.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from landscape.answers.benchmark import (
    CATEGORIES,
    CUE_CONFLICT,
    DATASETS,
    NO_ANSWER,
    Dataset,
    image_key,
    texture_of,
)
from landscape.errors import AnswersError

Kind = Literal["human", "model"]
KINDS = ("human", "model")
RESPONSES = (*CATEGORIES, NO_ANSWER)
COLUMNS = ("observer", "kind", "dataset", "condition", "category", "image", "response")
# Entry of response arrays; the others are positions in RESPONSES.
NOT_SHOWN = -1
_CONDITIONS = tuple(
    dict.fromkeys(
        condition.name for dataset in DATASETS.values() for condition in dataset.conditions
    )
)
# Position of a condition in its data set, by the numbers of both; -1 where the data set has no such
# condition.
_LEVELS = np.array(
    [
        [
            next((at for at, level in enumerate(dataset.conditions) if level.name == name), -1)
            for name in _CONDITIONS
        ]
        for dataset in DATASETS.values()
    ]
)
VALUES = {
    "kind": KINDS,
    "dataset": tuple(DATASETS),
    "condition": _CONDITIONS,
    "category": CATEGORIES,
    "response": RESPONSES,
}


@dataclass(frozen=True, eq=False)
class Answers:
    """Table of answers: a row per observer and picture.

    Make it with `read_answers`, `answers_of_model` or `Answers.of_rows`, which check it.

    Args:
        table: Columns `COLUMNS`, all categorical: observer: Name of a model, or of a person such as
            "subject-01". People are numbered per data set: the same name in two data sets need not
            be one person, so no metric ever joins them. kind: "human" or "model". dataset,
            condition: As in `benchmark.DATASETS`. category: The right answer; in cue-conflict that
            of the shape. image: Name of the picture as `benchmark.image_key` makes it of any, the
            same for all observers. response: A category, or "na" where a person gave no answer in
            time. It counts as wrong.
    """

    table: pd.DataFrame

    @classmethod
    def of_rows(cls, rows: Any) -> "Answers":
        """Check a table and make its columns categorical.

        Args:
            rows: Whatever `pandas.DataFrame` takes, with the columns `COLUMNS`, of texts.

        Raises:
            AnswersError: If a column is missing, a value is none of the benchmark's, an observer
                answers one picture of a data set twice, or two observers' rows give a picture
                different conditions or categories.
        """
        given = pd.DataFrame(rows)
        missing = [name for name in COLUMNS if name not in given.columns]
        if missing:
            there = ", ".join(map(str, given.columns))
            raise AnswersError(
                f"answers: there is no column {missing[0]!r} among {there}; expected "
                f"{', '.join(COLUMNS)}."
            )
        columns: dict[str, Any] = {}
        for name in COLUMNS:
            if name not in VALUES:
                columns[name] = named(
                    given[name].astype(str), image_key if name == "image" else str
                )
                continue
            codes = codes_of(name, given[name])
            columns[name] = categorical(name, codes)
            if (codes < 0).any():
                row = int(np.flatnonzero(codes < 0)[0])
                raise AnswersError(
                    f"answers, row {row + 1}: {name} {given[name].iloc[row]!r} is none of "
                    f"{', '.join(VALUES[name])}, so it can neither be right nor wrong. Correct the "
                    "row."
                )
        answers = cls(pd.DataFrame(columns))
        answers.check()
        return answers

    def check(self) -> None:
        """Refuse rows that contradict each other.

        Raises:
            AnswersError: As in `of_rows`.
        """
        table = self.table
        if (row := first_unknown_condition(table)) is not None:
            raise AnswersError(
                f"{where(table, row)}: {condition_problem(table, row)}. Correct the row."
            )
        if (row := first_repeated(table)) is not None:
            raise AnswersError(
                f"{where(table, row)}: there is more than one answer to this picture, so which "
                "counts is open. Keep one."
            )
        if (row := first_contradiction(table)) is not None:
            raise AnswersError(
                f"{where(table, row)}: condition {table.condition.iloc[row]} and category "
                f"{table.category.iloc[row]} are not those that another row gives this picture, so "
                "answers cannot be compared. Correct one of the rows."
            )

    def __len__(self) -> int:
        return len(self.table)

    def __add__(self, other: "Answers") -> "Answers":
        """Join the answers of two tables.

        Raises:
            AnswersError: If they contradict each other.
        """
        return joined([self, other])

    @cached_property
    def models(self) -> tuple[str, ...]:
        """List the names of the models, in the order of the table."""
        return tuple(self.table.observer[self.table.kind == "model"].unique())

    @cached_property
    def datasets(self) -> tuple[str, ...]:
        """List the data sets with an answer, in the benchmark's order."""
        present = set(self.table.dataset.unique())
        return tuple(name for name in DATASETS if name in present)

    def only(
        self,
        *,
        kind: Kind | None = None,
        models: Collection[str] | None = None,
        datasets: Collection[str] | None = None,
    ) -> "Answers":
        """Keep one kind of observer, some models, some data sets.

        All people are kept with some models.
        """
        keep = np.ones(len(self.table), dtype=bool)
        if kind is not None:
            keep &= (self.table.kind == kind).to_numpy()
        if models is not None:
            keep &= (
                (self.table.kind == "human") | self.table.observer.isin(list(models))
            ).to_numpy()
        if datasets is not None:
            keep &= self.table.dataset.isin(list(datasets)).to_numpy()
        return Answers(self.table[keep].reset_index(drop=True))

    def equals(self, other: "Answers") -> bool:
        """Tell whether both hold the same answers, in any order of rows."""
        ours, theirs = (
            answers.table.astype(str).sort_values(list(COLUMNS)).reset_index(drop=True)
            for answers in (self, other)
        )
        return bool(ours.equals(theirs))

    @cached_property
    def trials(self) -> dict[str, "Trials"]:
        """Return the answers of each data set as arrays, by its name."""
        groups = self.table.groupby("dataset", observed=True, sort=False)
        rows = {str(name): group for name, group in groups}
        return {name: _trials(DATASETS[name], rows[name]) for name in self.datasets}


@dataclass(frozen=True, eq=False)
class Trials:
    """Answers to one data set, as arrays.

    Args:
        images: Names of the pictures that anybody saw, sorted by condition, category and name.
        condition: Position of each picture's condition in `dataset.conditions`.
        category: Position of each picture's category in `CATEGORIES`.
        humans, models: Names of the observers, sorted (people) and in the order of the table
            (models).
        human_responses, model_responses: Positions in `RESPONSES`, or `NOT_SHOWN`.
    """

    dataset: Dataset
    images: tuple[str, ...]
    condition: Int[np.ndarray, " n"]
    category: Int[np.ndarray, " n"]
    humans: tuple[str, ...]
    models: tuple[str, ...]
    human_responses: Int[np.ndarray, "observer n"]
    model_responses: Int[np.ndarray, "observer n"]

    def correct(self, kind: Kind) -> Float[np.ndarray, "observer n"]:
        """Mark right answers as 1, wrong or missing ones as 0.

        NaN means that the picture was not shown.
        """
        responses = self.human_responses if kind == "human" else self.model_responses
        return np.where(responses == NOT_SHOWN, np.nan, responses == self.category)

    @property
    def slices(self) -> list[slice]:
        """Return the slice of each condition's pictures."""
        ends = np.searchsorted(self.condition, np.arange(len(self.dataset.conditions) + 1))
        return [
            slice(int(start), int(stop)) for start, stop in zip(ends[:-1], ends[1:], strict=True)
        ]

    @property
    def is_kept(self) -> Bool[np.ndarray, " n"]:
        """Mark the pictures whose condition counts in means."""
        return ~np.array([condition.excluded for condition in self.dataset.conditions])[
            self.condition
        ]

    @property
    def strata(self) -> Int[np.ndarray, " n"]:
        """Number the combinations of condition and category of the pictures.

        The benchmark fixed their sizes.
        """
        return np.asarray(self.condition * len(CATEGORIES) + self.category)

    @property
    def texture(self) -> Int[np.ndarray, " n"]:
        """Return the position of each picture's texture in `CATEGORIES`.

        Only for cue-conflict.

        Raises:
            AnswersError: If the name of a picture does not end with a category and a number.
        """
        assert self.dataset.name == CUE_CONFLICT
        textures = [texture_of(image) for image in self.images]
        for image, texture in zip(self.images, textures, strict=True):
            if texture not in CATEGORIES:
                raise AnswersError(
                    f"{CUE_CONFLICT}, picture {image}: its texture {texture!r} is no category, so "
                    "its answers say nothing of shape bias. Pictures must be named SHAPE-TEXTURE, "
                    "such as dog10-bird2.png."
                )
        return np.array([CATEGORIES.index(texture) for texture in textures])


def joined(parts: Sequence[Answers]) -> Answers:
    """Join tables into one and check it.

    Raises:
        AnswersError: As `Answers.of_rows`.
    """
    answers = Answers(joined_columns([part.table for part in parts]))
    answers.check()
    return answers


def joined_columns(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Join the rows of tables of categorical columns, without checks."""
    return pd.DataFrame(
        {
            name: pd.api.types.union_categoricals([table[name] for table in tables])
            for name in COLUMNS
        }
    )


def answers_of_model(
    model: str,
    dataset: str,
    *,
    images: Sequence[str],
    conditions: Sequence[str],
    categories: Sequence[str],
    responses: Any,
) -> Answers:
    """Make a table of a model's decisions about one data set.

    Args:
        images: Names of the pictures, or of the trials' files.
        conditions, categories: Condition and category of each picture, as in `benchmark`.
        responses: Category of each decision; or its position in `CATEGORIES`, as `decide` returns.

    Raises:
        AnswersError: As `Answers.of_rows`.
    """
    responses = np.asarray(responses)
    if responses.dtype.kind in "iu":
        responses = np.array(CATEGORIES)[responses]
    rows = dict(
        condition=list(conditions),
        category=list(categories),
        image=list(images),
        response=responses,
    )
    return Answers.of_rows(
        pd.DataFrame({"observer": model, "kind": "model", "dataset": dataset, **rows})
    )


def codes_of(name: str, values: Any) -> Any:
    """Number a column's values by their position in `VALUES`.

    Unknown values get -1.
    """
    return pd.Index(VALUES[name], dtype=object).get_indexer(np.asarray(values, dtype=object))


def categorical(name: str, codes: Any) -> pd.Categorical:
    """Make a column of the numbers that `codes_of` gives."""
    return pd.Categorical.from_codes(codes, categories=list(VALUES[name]))


def named(texts: Any, naming: Callable[[str], str]) -> pd.Categorical:
    """Make a column of names, translating each distinct text once."""
    number, different = pd.factorize(np.asarray(texts, dtype=object))
    code, names = pd.factorize(np.array([naming(text) for text in different], dtype=object))
    return pd.Categorical.from_codes(code[number] if len(number) else [], categories=list(names))


def first_repeated(table: pd.DataFrame) -> int | None:
    """Find the first row that answers a picture for the second time."""
    repeated = _key(table, ("kind", "observer", "dataset", "image")).duplicated()
    return int(np.flatnonzero(repeated)[0]) if repeated.any() else None


def first_contradiction(table: pd.DataFrame) -> int | None:
    """Find the first row that contradicts an earlier one about its picture."""
    picture = _key(table, ("dataset", "image"))
    meaning = _key(table, ("condition", "category"))
    first = meaning[~picture.duplicated()].set_axis(picture[~picture.duplicated()])
    differs = first.reindex(picture).to_numpy() != meaning.to_numpy()
    return int(np.flatnonzero(differs)[0]) if differs.any() else None


def where(table: pd.DataFrame, row: int) -> str:
    """Identify the answer of a row, for messages."""
    entry = table.iloc[row]
    # Names come from files, and may contain line breaks.
    return f"{entry.dataset}, {entry.kind} {entry.observer!r}, picture {entry.image!r}"


def first_unknown_condition(table: pd.DataFrame) -> int | None:
    """Find the first row whose condition its data set lacks."""
    unknown = _LEVELS[table.dataset.cat.codes.to_numpy(), table.condition.cat.codes.to_numpy()] < 0
    return int(np.flatnonzero(unknown)[0]) if unknown.any() else None


def condition_problem(table: pd.DataFrame, row: int) -> str:
    """Explain what is wrong with the condition of a row."""
    names = ", ".join(condition.name for condition in DATASETS[table.dataset.iloc[row]].conditions)
    return f"condition {str(table.condition.iloc[row])!r} is none of {names}"


def _key(table: pd.DataFrame, names: Sequence[str]) -> "pd.Series[int]":
    """Number the combinations of values of categorical columns."""
    key = np.zeros(len(table), dtype=np.int64)
    for name in names:
        column = table[name].cat
        key = key * len(column.categories) + column.codes.to_numpy()
    return pd.Series(key)


def _trials(dataset: Dataset, rows: pd.DataFrame) -> Trials:
    # Numbered by condition, category and name, so that a condition is one slice of every array.
    level = _LEVELS[rows.dataset.cat.codes.to_numpy(), rows.condition.cat.codes.to_numpy()]
    right = rows.category.cat.codes.to_numpy().astype(np.int64)
    number, names = pd.factorize(rows.image.astype(object))
    _, first = np.unique(number, return_index=True)
    order = np.lexsort((np.asarray(names, dtype=str), right[first], level[first]))
    column = np.argsort(order)[number]
    images = tuple(str(names[at]) for at in order)
    condition, category = level[first][order], right[first][order]
    response = rows.response.cat.codes.to_numpy()
    observers, responses = {}, {}
    for kind in KINDS:
        here = (rows.kind == kind).to_numpy()
        names = [str(name) for name in rows.observer[here].unique()]
        observers[kind] = tuple(sorted(names) if kind == "human" else names)
        line = rows.observer[here].cat.set_categories(list(observers[kind])).cat.codes.to_numpy()
        responses[kind] = np.full((len(names), len(images)), NOT_SHOWN, dtype=np.int8)
        responses[kind][line, column[here]] = response[here]
    return Trials(
        dataset,
        images,
        condition,
        category,
        observers["human"],
        observers["model"],
        responses["human"],
        responses["model"],
    )
