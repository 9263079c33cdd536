"""Writing of models' answers as model-vs-human's CSV files, for its toolbox."""

import re
from pathlib import Path

import pandas as pd

from landscape.answers.benchmark import DATASETS
from landscape.answers.reading import HUMAN_PREFIX
from landscape.answers.table import Answers
from landscape.errors import AnswersError
from landscape.files import write_atomically

HEADER = ("subj", "session", "trial", "rt", "object_response", "category", "condition", "imagename")
# The toolbox reads no condition from the names of these pictures, and writes NaN.
_WITHOUT_CONDITION = ("edge", "silhouette", "cue-conflict")


def write_answers(answers: Answers, folder: Path) -> list[Path]:
    """Write the answers of models as files of the toolbox.

    There is one file per model and data set, in the layout of the toolbox's `raw-data` folder:
    FOLDER/<dataset>/<dataset>_<model>_session-1.csv. The file's name has "-" where the model's name
    has anything but letters, digits, "." and "+". FOLDER stands for `raw-data`, into which its
    subfolders can also be copied. Column `subj` keeps the model's name unchanged. Column
    `imagename` is the name of the picture that people's rows share, the only name that the toolbox
    compares. Reading the folder gives the same answers. People's answers are not written.

    Args:
        folder: Created if missing; files of the same name are replaced.

    Returns:
        The files, in the order of models and data sets.

    Raises:
        AnswersError: If there is no model, two models would have the same file, a model is named
            like a person, or the folder cannot be written.
    """
    table = answers.table[answers.table.kind == "model"]
    contents: dict[Path, bytes] = {}
    for (model, dataset), rows in table.groupby(["observer", "dataset"], observed=True, sort=False):
        if str(model).startswith(HUMAN_PREFIX):
            raise AnswersError(
                f"model {model}: names that begin with {HUMAN_PREFIX!r} are read as people. Rename "
                "the model."
            )
        path = (
            folder
            / str(dataset)
            / f"{dataset}_{re.sub('[^A-Za-z0-9.+-]', '-', str(model))}_session-1.csv"
        )
        if path in contents:
            raise AnswersError(
                f"{path}: two models would have this file, of which one is {model}. Rename one of "
                "them."
            )
        contents[path] = (
            _rows(str(model), str(dataset), rows).to_csv(index=False, lineterminator="\n").encode()
        )
    if not contents:
        raise AnswersError(
            f"{folder}: there is no answer of a model to write. People's answers are not written."
        )
    for path, content in contents.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
        except OSError as error:
            reason = error.strerror or error
            raise AnswersError(
                f"{path}: the answers cannot be written: {reason}. Choose another folder."
            ) from None
    return list(contents)


def _rows(model: str, dataset: str, rows: pd.DataFrame) -> pd.DataFrame:
    assert dataset in DATASETS
    condition = "NaN" if dataset in _WITHOUT_CONDITION else rows.condition.astype(str).to_numpy()
    columns = {
        "subj": model,
        "session": 1,
        "trial": range(1, len(rows) + 1),
        "rt": "NaN",
        "object_response": rows.response.astype(str).to_numpy(),
        "category": rows.category.astype(str).to_numpy(),
        "condition": condition,
        "imagename": rows.image.astype(str).to_numpy(),
    }
    return pd.DataFrame(columns)[list(HEADER)]
