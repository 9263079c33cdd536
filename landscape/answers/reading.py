"""Reading of answers from CSV files.

The files are model-vs-human's, one per observer and data set, or tables of many observers.
"""

import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from landscape.answers.benchmark import DATASETS, image_key
from landscape.answers.table import (
    COLUMNS,
    VALUES,
    Answers,
    categorical,
    codes_of,
    first_contradiction,
    first_repeated,
    first_unknown_condition,
    joined_columns,
    named,
    where,
)
from landscape.errors import AnswersError, first_line
from landscape.files import open_regular

# Names of columns, in any case, in the order of preference.
_NAMES = {
    "observer": ("observer", "subj", "subject", "model"),
    "response": ("response", "object_response"),
    "category": ("category",),
    "condition": ("condition",),
    "image": ("image", "imagename"),
}
_OPTIONAL = ("kind", "dataset")
_KNOWN = {*_OPTIONAL, *(name for names in _NAMES.values() for name in names)}
# Prefix of people's names in the benchmark; every other observer is a model.
HUMAN_PREFIX = "subject-"
_GZIP = b"\x1f\x8b"
_UNREADABLE = (OSError, EOFError, zlib.error, UnicodeDecodeError, pd.errors.ParserError)


def read_answers(paths: Path | str | Iterable[Path | str]) -> Answers:
    """Read the answers of people and models from files and folders.

    Files are CSV, plain or gzipped, of one of two kinds:

    - model-vs-human's, one per observer, data set and session: `subj`, `object_response`,
      `category`, `condition`, `imagename` (others are ignored; headers in any case). The data set
      is the folder's name (`raw-data/<dataset>/`) or the part before the first "_" of the file's
      name.
    - tables of many observers and data sets, with a column `dataset`, a column of the observer
      (`subject`, `model` or `observer`), `response`, `category`, `condition`, and `imagename` or
      `image`.

    Observers whose name begins with "subject-" are people, others are models, unless a column
    `kind` says so. Conditions are matched as `Dataset.condition_named` does.

    Args:
        paths: Files and folders, or a single one. Of folders all *.csv and *.csv.gz below them are
            read.

    Raises:
        AnswersError: If there is no file, one cannot be read or lacks a column, a data set,
            condition, category or response is none of the benchmark's, an observer answers a
            picture twice, or observers contradict each other about what a picture is.
    """
    sources = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    files = list(dict.fromkeys(file for source in sources for file in _files(source)))
    if not files:
        raise AnswersError(
            "answers: no file was named. Name model-vs-human's raw-data folder, or CSV files of "
            "answers."
        )
    tables = [_read(file) for file in files]
    table = joined_columns(tables)
    _check_consistent(table, files, [len(rows) for rows in tables])
    return Answers(table)


def _files(source: Path) -> Iterator[Path]:
    if not source.exists():
        raise AnswersError(
            f"{source}: there is nothing of that name. Name a folder or CSV files of answers."
        )
    if not source.is_dir():
        yield source
        return
    files = sorted(
        path
        for pattern in ("*.csv", "*.csv.gz")
        for path in source.rglob(pattern)
        if path.name[0] != "."
    )
    if not files:
        raise AnswersError(
            f"{source}: no *.csv or *.csv.gz is in this folder or below it. model-vs-human's "
            "answers are in raw-data/<dataset>/<dataset>_<observer>_session-1.csv."
        )
    yield from files


def _read(path: Path) -> pd.DataFrame:
    """Read one file into checked, categorical columns."""
    raw = _raw_table(path)
    columns = {own: _column(path, raw, own, names) for own, names in _NAMES.items()}
    if raw.empty:
        raise AnswersError(
            f"{path}: there is a header and no answer. Write a row per answer, or leave the file "
            "out."
        )
    _filled(path, "observer", columns["observer"])
    columns["dataset"] = (
        raw["dataset"] if "dataset" in raw else pd.Series(_dataset_of(path), index=raw.index)
    )
    if "kind" in raw:
        columns["kind"] = raw["kind"]
    else:
        kinds = named(
            columns["observer"], lambda name: "human" if name.startswith(HUMAN_PREFIX) else "model"
        )
        columns["kind"] = pd.Series(kinds, index=raw.index)
    table = {"observer": named(columns["observer"], str)}
    for name in ("kind", "dataset", "category", "response"):
        table[name] = _values(path, name, columns[name])
    table["condition"] = _conditions(path, table["dataset"], columns["condition"])
    table["image"] = named(_filled(path, "image", columns["image"]), image_key)
    return pd.DataFrame({name: table[name] for name in COLUMNS})


def _raw_table(path: Path) -> pd.DataFrame:
    """Read the used columns as texts, with names in lower case."""
    try:
        with open_regular(path) as stream:
            content = stream.read()
        content = gzip.decompress(content) if content.startswith(_GZIP) else content
        # The header is read separately, since pandas renames columns with the same name.
        header = [name.strip().lower() for name in _parsed(content, header=None, nrows=1).iloc[0]]
        used = [at for at, name in enumerate(header) if name in _KNOWN]
        table = _parsed(content, usecols=used)
    except pd.errors.EmptyDataError:
        raise AnswersError(
            f"{path}: the file is empty or no table of answers. Write a header line and a row per "
            "answer."
        ) from None
    except _UNREADABLE as error:
        raise AnswersError(
            f"{path}: the answers cannot be read: {first_line(error)}. Expected CSV in UTF-8, "
            "plain or gzipped; get it again."
        ) from None
    table.columns = [header[at] for at in used]
    if not table.columns.is_unique:
        twice = next(header[at] for at in used if header.count(header[at]) > 1)
        raise AnswersError(
            f"{path}: there are two columns {twice!r}, so which of them counts is open. Rename one "
            "of them."
        )
    return table


def _parsed(content: bytes, **options: Any) -> pd.DataFrame:
    # "na" is an answer, and "0.10" the name of a condition: pandas must not convert them.
    return pd.read_csv(
        io.BytesIO(content),
        dtype=str,
        keep_default_na=False,
        encoding="utf-8-sig",
        index_col=False,
        **options,
    )


def _column(path: Path, raw: pd.DataFrame, own: str, names: Sequence[str]) -> "pd.Series[str]":
    chosen = next((name for name in names if name in raw), None)
    if chosen is None:
        expected = " or ".join(repr(name) for name in names)
        there = (
            f"of use are {', '.join(raw.columns)}" if len(raw.columns) else "and no other of use"
        )
        raise AnswersError(
            f"{path}: there is no column {expected} ({there}), so the {own} of each answer is "
            "unknown. Expected model-vs-human's header, with commas: "
            "subj,session,trial,rt,object_response,category,condition,imagename."
        )
    return raw[chosen]


def _dataset_of(path: Path) -> str:
    """Deduce the data set of a file from its name and folder.

    Raises:
        AnswersError: If neither names a data set, or they name different ones.
    """
    by_name, by_folder = path.name.split("_")[0], path.resolve().parent.name
    named = [name for name in (by_folder, by_name) if name in DATASETS]
    if len(set(named)) > 1:
        raise AnswersError(
            f"{path}: the folder says {by_folder} and the file's name {by_name}, so the data set "
            "is open. Move or rename the file."
        )
    if not named:
        raise AnswersError(
            f"{path}: neither the folder {by_folder!r} nor the file's name is a data set, and "
            "there is no column 'dataset', so the data set is unknown. Known are "
            f"{', '.join(DATASETS)}. Name the file <dataset>_<observer>_session-1.csv, or leave it "
            "out."
        )
    return named[0]


def _filled(path: Path, name: str, values: "pd.Series[str]") -> "pd.Series[str]":
    """Refuse a row with an empty value.

    Rows that end early have no text there.
    """
    empty = (values.isna() | (values == "")).to_numpy()
    if empty.any():
        raise AnswersError(
            f"{path}, row {int(np.flatnonzero(empty)[0]) + 1}: the {name} is empty, so whose "
            "answer to what this is, is open. Complete the row, or leave it out."
        )
    return values


def _values(path: Path, name: str, values: "pd.Series[str]") -> pd.Categorical:
    codes = codes_of(name, values)
    unknown = codes < 0
    if unknown.any():
        row = int(np.flatnonzero(unknown)[0])
        others = f" ({int(unknown.sum())} rows have such)" if unknown.sum() > 1 else ""
        raise AnswersError(
            f"{path}, row {row + 1}: {name} {values.iloc[row]!r} is none of "
            f"{', '.join(VALUES[name])}{others}, so the answer can neither be right nor wrong. "
            "Correct the row, or leave it out."
        )
    return categorical(name, codes)


def _conditions(path: Path, dataset: pd.Categorical, texts: "pd.Series[str]") -> pd.Categorical:
    """Translate the texts of a file into the benchmark's names."""
    text = pd.Categorical(texts.fillna(""))
    pair = dataset.codes.astype(np.int64) * len(text.categories) + text.codes
    _, first, inverse = np.unique(pair, return_index=True, return_inverse=True)
    names = []
    for row in first:
        known = DATASETS[dataset[row]]
        name = known.condition_named(text[row].strip())
        if name is None:
            levels = ", ".join(condition.name for condition in known.conditions)
            raise AnswersError(
                f"{path}, row {row + 1}: condition {text[row]!r} is none of {known.name}'s "
                f"({levels}), so the answer belongs to no mean. Correct the row, or leave it out."
            )
        names.append(name)
    return categorical("condition", codes_of("condition", names)[inverse])


def _check_consistent(table: pd.DataFrame, files: Sequence[Path], lengths: Sequence[int]) -> None:
    """Refuse rows that contradict each other, naming their files."""
    assert first_unknown_condition(table) is None
    starts = np.cumsum([0, *lengths])

    def place(row: int) -> str:
        file = int(np.searchsorted(starts, row, side="right")) - 1
        return f"{files[file]}, row {row - starts[file] + 1}"

    if (row := first_repeated(table)) is not None:
        entry = table.iloc[row]
        names = ["kind", "observer", "dataset", "image"]
        first = int(np.flatnonzero((table[names] == entry[names]).all(axis=1))[0])
        raise AnswersError(
            f"{place(row)}: this is a second answer of {where(table, row)}; the first is in "
            f"{place(first)}. Which counts is open: leave one of the files or rows out, or rename "
            "the observer."
        )
    if (row := first_contradiction(table)) is not None:
        entry = table.iloc[row]
        same = ((table.dataset == entry.dataset) & (table.image == entry.image)).to_numpy()
        other = int(np.flatnonzero(same)[0])
        raise AnswersError(
            f"{place(row)}: {entry.dataset}, picture {entry.image!r} is {entry.category} in "
            f"condition {entry.condition} here, but {table.category.iloc[other]} in condition "
            f"{table.condition.iloc[other]} in {place(other)}, so the answers cannot be compared. "
            "Correct one of them."
        )
