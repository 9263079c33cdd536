"""Descriptions of a file: a store, a loss surface, a manifest or a checkpoint."""

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape import clip
from landscape.compare.whole_spectrum import probed_rows, probed_spectrum
from landscape.errors import LandscapeError
from landscape.figures.density_records import spectral_density
from landscape.linalg import ProbedSpectrum
from landscape.manifest import Manifest
from landscape.manifest.reading_series import may_be_checkpoint
from landscape.manifest.run_files import RunFile, inside_checkpoint, run_files
from landscape.manifest.setting_error import shown
from landscape.monitor import is_record, read_record
from landscape.store import (
    SpectrumStore,
    describe_densities,
    describe_surface,
    is_density_file,
    is_store,
    is_surface,
    read_densities,
    running_lines,
)
from landscape.store import describe as describe_store
from landscape.store.predictions import describe_predictions, is_predictions

if TYPE_CHECKING:
    from landscape.clip.checkpoint import CheckpointInfo

# Dtypes in which no product is computed.
_CONVERTED = ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")
_WIDTH = 100


def kind_of(path: Path) -> str:
    """Name the kind of a file.

    It is "manifest", "monitor", "surface", "predictions", "densities", "store" or "checkpoint".

    Raises:
        LandscapeError: If the file is missing, or is none of these kinds.
    """
    if path.suffix.lower() in (".yaml", ".yml"):
        return "manifest"
    if path.is_file() and is_record(path):
        return "monitor"
    if path.is_file() and is_surface(path):
        return "surface"
    if path.is_file() and is_predictions(path):
        return "predictions"
    if is_density_file(path):
        return "densities"
    if is_store(path):
        return "store"
    if path.is_dir() and not may_be_checkpoint(path):
        raise LandscapeError(
            f"{path}: is a folder. Name a store (.h5), a manifest (.yaml) or a checkpoint in it."
        )
    if not path.exists():
        raise LandscapeError(
            f"{path}: there is no such file. Name a store (.h5), a manifest (.yaml) or a "
            "checkpoint."
        )
    return "checkpoint"


def describe(path: Path) -> list[str]:
    """Write the lines that `landscape info` prints.

    Raises:
        LandscapeError: As `kind_of`, or if the file cannot be read.
    """
    lines: dict[str, Callable[[Path], list[str]]] = {
        "manifest": lambda path: Manifest.load(path).describe(),
        "monitor": lambda path: read_record(path).describe(),
        "surface": lambda path: _with_progress(describe_surface(path), path),
        "predictions": lambda path: _with_progress(describe_predictions(path), path),
        "densities": lambda path: _with_progress(
            [*describe_densities(path), *_of_densities(path)], path
        ),
        "store": lambda path: [*describe_store(path), *_of_store(path)],
        "checkpoint": _describe_checkpoint,
    }
    return lines[kind_of(path)](path)


def _with_progress(lines: list[str], path: Path) -> list[str]:
    """Add the progress of the run that writes the file, after the line on what it is."""
    return [*lines[:1], *running_lines(path), *lines[1:]]


def _of_store(path: Path) -> list[str]:
    """Describe the whole spectrum of each checkpoint, from its quadratures.

    There is no line where a checkpoint has none.
    """
    lines = []
    with SpectrumStore.open(path) as store:
        dtype = store.plan.protocol["hessian"]["dtype"]
        for table in (
            store.records(series, epoch)
            for series in store.series()
            for epoch in store.epochs(series)
        ):
            rows = probed_rows(table).tolist()
            left_out = (
                f" ({len(rows)} of {table.num_records} batches)"
                if len(rows) < table.num_records
                else ""
            )
            if rows:
                lines.append(
                    f"{table.series} epoch {table.epoch}{left_out}: "
                    f"{_said(probed_spectrum(table, dtype, rows))}"
                )
    return lines


def _of_densities(path: Path) -> list[str]:
    # The numbers are converted through torch tensors.

    return [
        f"{record.series} epoch {record.epoch}: {_said(spectral_density(record).probed)}"
        for record in read_densities(path)
    ]


def _said(spectrum: ProbedSpectrum) -> str:
    return "estimated " + ", ".join(
        f"{name} {estimate}" for name, estimate in spectrum.estimates().items()
    )


def _describe_checkpoint(path: Path) -> list[str]:
    # Reads tensors, so torch is needed from here on.
    info = clip.describe_checkpoint(path)
    name = f" of {info.name}" if info.name else ""
    unusual = [dtype for dtype in info.dtypes if dtype in _CONVERTED]
    converted = (
        f" ({', '.join(unusual)} will be converted to the manifest's dtype)" if unusual else ""
    )
    lines = [
        f"checkpoint, {info.layout} ({info.kind} file){name}, {_epoch(info)}",
        f"{info.num_tensors} tensors with {info.num_parameters:,} numbers, "
        f"{', '.join(info.dtypes)}{converted}, {info.num_bytes:,} bytes",
        f"first tensors: {', '.join(info.keys)}",
    ]
    if len(info.available) > 1:
        lines.append(
            "copies of the weights: online and averaged; say `weights: ema` in a manifest for the "
            "averaged ones"
        )
    lines.append(f"sha256 {info.sha256}")
    for entry, values in info.settings.items():
        lines += [f"{entry} in the file, less what is off or empty:", *_indented(_pairs(values))]
    lines += _taken([*run_files(path), *inside_checkpoint(info.settings, path)], info)
    return [*lines, *info.notes]


def _taken(files: list[RunFile], info: "CheckpointInfo") -> list[str]:
    """List what landscape takes from each source of settings of the run.

    Sources with the same settings share their lines.
    """
    sources: dict[tuple[str, ...], list[str]] = {}
    doubts: dict[str, None] = {}
    for file in files:
        model = [] if file.model is None else [f"model: {file.model}"]
        facts = (*model, *_without_sources(file))
        sources.setdefault(facts, []).append(f"{_place(file, info)} ({file.program})")
        doubts.update(dict.fromkeys(file.trained.doubts.values()))
    lines = []
    for facts, places in sources.items():
        verb = "Taken" if facts else "Nothing is taken"
        lines.append(f"{verb} from {' and '.join(places)}{':' if facts else ''}")
        lines += [line for fact in facts for line in _indented([fact])]
    return [*lines, *(f"not known: {why}" for why in doubts)]


def _without_sources(file: RunFile) -> list[str]:
    """List what the file says of the model, without naming the file.

    The heading names it.
    """
    endings = {f" ({setting.source})" for setting in file.trained.settings.values()}
    return [
        next((line.removesuffix(ending) for ending in endings if line.endswith(ending)), line)
        for line in file.trained.describe()
    ]


def _place(file: RunFile, info: "CheckpointInfo") -> str:
    if file.path != info.path:
        return str(file.path)
    sources = {setting.source for setting in file.trained.settings.values()}
    inside = (
        f"{entry} in the file"
        for entry in info.settings
        if f"{entry} in {info.path.name}" in sources
    )
    return next(inside, "the file")


def _indented(items: list[str]) -> list[str]:
    """Wrap items into indented lines.

    Among several items, none is broken at a space within it.
    """
    space = " " if len(items) == 1 else "\0"
    text = ", ".join(item.replace(" ", space) for item in items)
    lines = textwrap.wrap(
        text,
        _WIDTH,
        initial_indent="  ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\0", " ") for line in lines]


def _epoch(info: "CheckpointInfo") -> str:
    if info.epoch is None:
        return (
            "no epoch stored"
            if info.stored_epoch is None
            else f"epoch {info.stored_epoch} as stored"
        )
    if info.epoch == 0:
        return "epoch 0, the initialisation"
    stored = "" if info.stored_epoch in (None, info.epoch) else f" (stored as {info.stored_epoch})"
    return f"epoch {info.epoch}{stored}"


def _pairs(values: Any) -> list[str]:
    """Format settings with their names, without those that are off or empty.

    A text stays in one piece.
    """
    if not isinstance(values, Mapping):
        return [" ".join(str(values).split())[:2000]]
    return [
        f"{key} {shown(value)}"
        for key, value in values.items()
        if value not in (None, False, "", [], {})
    ]
