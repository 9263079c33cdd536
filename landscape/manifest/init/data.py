"""The data section of a run's manifest.

It follows what the training program wrote about the pairs.
"""

import csv
import glob
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from landscape.errors import ManifestError
from landscape.files import check_regular
from landscape.manifest.init.lines import Line, missing, setting
from landscape.manifest.run_files import RunFile
from landscape.manifest.settings import OPENMOJI

# Park & Kim, arXiv 2202.06709, and arXiv 2404.19394.
_NUM_SAMPLES, _BATCH_SIZE = 3000, 15
_OPENMOJI_SIZE = 64
_TABLE = (".csv", ".tsv")
_LEVELS_ABOVE = 5
_LABEL_COLUMNS = ("label", "labels", "class", "class_id", "target")
_WANT_SOURCE = "a CSV/TSV file, a pattern of .tar shards, or openmoji"


@dataclass(frozen=True)
class RunData:
    """The data section.

    Attributes:
        source: Absolute path, "openmoji", or None where it is not known.
        shown: A few words about the source.
        is_plain: Whether the source is a table as open_clip reads it by default.
        is_small: Whether it has fewer rows than the published number of samples.
    """

    lines: list[Line]
    source: str | None
    shown: str
    is_plain: bool
    is_small: bool


@dataclass(frozen=True)
class _Stated:
    """Facts about the data, and their source."""

    source: str | None = None
    comment: str = ""
    columns: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    size: int | None = None


def data_of_run(
    folder: Path,
    files: Sequence[RunFile],
    given: str | None,
    *,
    objective: str | None,
    output: Path,
) -> RunData:
    """Write the data section.

    Args:
        folder: Folder of the run.
        given: The source that the user names; None for the run's own.
        output: Path of the manifest; paths are relative to it.

    Raises:
        ManifestError: If the source that the user names does not exist.
    """
    params = next((file for file in files if file.program == "open_clip_train"), None)
    if given is not None:
        stated = _of_user(given, params)
    elif params is not None:
        stated = _of_open_clip(folder, params)
    else:
        stated = _of_others(files)
    lines = [Line("data:")]
    if stated.source is None:
        lines.append(
            missing(
                2, "source", f"data: {_WANT_SOURCE}", stand_in="pairs.csv", comment=stated.comment
            )
        )
    else:
        lines.append(setting(2, "source", written_path(stated.source, output), stated.comment))
    more, num_rows = _columns(stated, objective)
    split = "train" if stated.source == OPENMOJI else "all"
    lines += [
        setting(2, "split", split, "train, held_out or all"),
        *more,
        *_amounts(stated, num_rows),
    ]
    lines.append(setting(2, "seed", 0, "of the draw of the pairs"))
    is_plain = num_rows is not None and not more
    is_small = num_rows is not None and num_rows < _NUM_SAMPLES
    return RunData(lines, stated.source, _shown(stated, num_rows), is_plain, is_small)


def written_path(path: str | Path, output: Path) -> str:
    """Return a path as it is written in the manifest.

    It is relative to the manifest, unless they share only the root.
    """
    if path == OPENMOJI:
        return OPENMOJI
    absolute, folder = os.path.abspath(path), os.path.dirname(os.path.abspath(output))
    if os.path.commonpath([absolute, folder]) == os.path.sep:
        return absolute
    relative = Path(os.path.relpath(absolute, folder)).as_posix()
    return f"./{relative}" if relative.startswith("~") else relative


def _of_user(given: str, params: RunFile | None) -> _Stated:
    if given == OPENMOJI:
        return _Stated(OPENMOJI, "--data", size=_size_of(params))
    source = os.path.abspath(os.path.expanduser(given))
    if not source.isprintable():
        raise ManifestError(
            f"--data: {source!r} holds characters that a manifest cannot; rename it."
        )
    if _first_file(source) is None:
        raise ManifestError(f"--data: there is no file {given}; expected {_WANT_SOURCE}.")
    if not _is_table(source) and ".tar" not in os.path.basename(source).lower():
        raise ManifestError(f"--data: {given} is of no known kind; expected {_WANT_SOURCE}.")
    return _Stated(source, "--data", columns=_params_columns(params) if params is not None else {})


def _size_of(params: RunFile | None) -> int:
    size = None if params is None else params.trained.get("model_args.force_image_size")
    return size if type(size) is int else _OPENMOJI_SIZE


def _of_open_clip(folder: Path, params: RunFile) -> _Stated:
    """Find the data that params.txt names.

    The path there is relative to the folder in which training was started, which params.txt does
    not name.
    """
    name = params.path.name
    written, kind = params.values.get("train_data"), str(params.values.get("dataset_type", "auto"))
    if not written or kind == "synthetic":
        what = "made-up pictures" if kind == "synthetic" else "no train_data"
        return _Stated(comment=f"{name} names {what}; give {_WANT_SOURCE}")
    written = str(written)
    if "::" in written or written.startswith("pipe:") or "://" in written:
        return _Stated(
            comment=f"{name} says train_data: {written}; give one local source: {_WANT_SOURCE}"
        )
    known = _is_table(written) or ".tar" in os.path.basename(written).lower()
    places = [Path.cwd(), *itertools.islice(Path(os.path.abspath(folder)).parents, _LEVELS_ABOVE)]
    paths = [os.path.normpath(place / os.path.expanduser(written)) for place in places]
    source = next(
        (path for path in paths if path.isprintable() and _first_file(path) is not None), None
    )
    if source is None or not known:
        what = "which is not there" if source is None else "which is neither .csv, .tsv nor .tar"
        return _Stated(comment=f"{name} says train_data: {written}, {what}; give {_WANT_SOURCE}")
    return _Stated(source, f"{name}: train_data", columns=_params_columns(params))


def _params_columns(params: RunFile) -> dict[str, tuple[str, str]]:
    stated = {}
    for key, option in (("image_key", "csv_img_key"), ("caption_key", "csv_caption_key")):
        if params.values.get(option):
            stated[key] = (str(params.values[option]), f"{params.path.name}: {option}")
    if "csv_separator" in params.values:
        # A tab is white space at the end of its line, which was stripped.
        stated["separator"] = (
            str(params.values["csv_separator"]) or "\t",
            f"{params.path.name}: csv_separator",
        )
    return stated


def _of_others(files: Sequence[RunFile]) -> _Stated:
    """Report the data that other programs name.

    They name folders and data sets of their own kinds, which are shown in a comment.
    """
    names = ("data_dir", "dataset", "train_data", "data_path", "data", "data_root")
    for file in files:
        for name in names:
            value = file.values.get(name)
            if isinstance(value, str) and value:
                return _Stated(
                    comment=f"{file.path.name} says {name}: {value}; give {_WANT_SOURCE}"
                )
    return _Stated(comment=f"no file of the run says it; give {_WANT_SOURCE}")


def _is_table(source: str) -> bool:
    return source.lower().endswith(_TABLE)


def _first_file(source: str) -> str | None:
    """Return the first file of a source or pattern, if any."""
    if os.path.isfile(source):
        return source
    first = re.sub(r"{(\d+)\.\.\d+(?:\.\.\d+)?}", r"\1", source)
    first = re.sub(r"{([^{},]*),[^{}]*}", r"\1", first)
    return next((path for path in sorted(glob.glob(first)) if os.path.isfile(path)), None)


def _columns(stated: _Stated, objective: str | None) -> tuple[list[Line], int | None]:
    """Write the lines about the table that differ from the default.

    Returns:
        The lines, and the number of rows of the table; None where it is not known.
    """
    if stated.source is None or not _is_table(stated.source):
        return [], None
    defaults = {"separator": "\t", "image_key": "filepath", "caption_key": "title"}
    keys = {key: stated.columns.get(key, (default, "")) for key, default in defaults.items()}
    try:
        header, separator, num_rows = _look_into_table(
            stated.source, stated.columns.get("separator", ("", ""))[0]
        )
    except (OSError, csv.Error):
        return [
            setting(2, key, *value) for key, value in keys.items() if value[0] != defaults[key]
        ], None
    if "separator" not in stated.columns:
        keys["separator"] = (separator, "as in the first line of the table")
    labels = [name for name in header if name.lower() in _LABEL_COLUMNS]
    if objective == "cross_entropy" and keys["caption_key"][0] not in header and len(labels) == 1:
        keys["caption_key"] = (labels[0], "the column of the class numbers")
    lines = []
    for key, (value, comment) in keys.items():
        if key != "separator" and value not in header:
            wanted = (
                "the column of the "
                f"{'picture' if key == 'image_key' else 'caption or class number'}"
            )
            listed = ", ".join(header[:8]) + (", ..." if len(header) > 8 else "")
            lines.append(missing(2, key, f"{wanted}, of: {listed}", stand_in=defaults[key]))
        elif value != defaults[key]:
            lines.append(setting(2, key, value, comment))
    return lines, num_rows


def _look_into_table(path: str, separator: str) -> tuple[list[str], str, int]:
    """Read columns, separator and number of rows of a table.

    Rows beyond the published number of samples are not counted.
    """
    check_regular(Path(path))
    with open(path, encoding="utf-8", errors="replace", newline="") as stream:
        first = stream.readline()
        separator = separator if len(separator) == 1 else max("\t,;|", key=first.count)
        header = next(csv.reader([first], delimiter=separator), [])
        rows = csv.reader(stream, delimiter=separator)
        num_rows = sum(1 for _ in itertools.islice((row for row in rows if row), _NUM_SAMPLES))
    return [name.removeprefix("\ufeff") for name in header], separator, num_rows


def _amounts(stated: _Stated, num_rows: int | None) -> list[Line]:
    batch_size = _BATCH_SIZE if num_rows is None else max(2, min(_BATCH_SIZE, num_rows))
    num_samples = (
        _NUM_SAMPLES if num_rows is None else max(num_rows - num_rows % batch_size, batch_size)
    )
    few = num_rows is not None and num_rows < _NUM_SAMPLES
    whose = (
        f"the table has {num_rows} rows; 3000 as published"
        if few
        else "3000 as published; the same for all checkpoints"
    )
    lines = [
        setting(2, "num_samples", num_samples, whose),
        setting(
            2,
            "batch_size",
            batch_size,
            "pairs per batch, each a Hessian of its own; 15 as published",
        ),
    ]
    if stated.size is not None:
        lines.insert(
            0,
            setting(
                2, "image_size", stated.size, "pixels of a side, at which the pictures are drawn"
            ),
        )
    return lines


def _shown(stated: _Stated, num_rows: int | None) -> str:
    if stated.source is None:
        return f"to fill in: {stated.comment}"
    rows = (
        ""
        if num_rows is None
        else f", {num_rows} rows{' or more' if num_rows >= _NUM_SAMPLES else ''}"
    )
    return f"{os.path.basename(stated.source)}{rows} ({stated.comment})"
