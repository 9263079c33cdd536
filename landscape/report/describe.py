"""What is inside a file: a store, a loss surface, a manifest or a checkpoint."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.compare.whole_spectrum import probed_rows, probed_spectrum
from landscape.errors import LandscapeError
from landscape.linalg import ProbedSpectrum
from landscape.manifest import Manifest
from landscape.manifest.reading_series import may_be_checkpoint
from landscape.manifest.run_files import RunFile, inside_checkpoint, run_files
from landscape.manifest.setting_error import shown
from landscape.store import (
    SpectrumStore,
)
from landscape.store import describe as describe_store
from landscape.store import (
    describe_densities,
    describe_surface,
    is_density_file,
    is_store,
    is_surface,
    read_densities,
)
from landscape.store.predictions import describe_predictions, is_predictions

if TYPE_CHECKING:
    from landscape.clip.checkpoint import CheckpointInfo

# Dtypes that no product is computed in.
_CONVERTED = ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")
_WIDTH = 100


def describe(path: Path) -> list[str]:
    """The lines that `landscape info` prints.

    Raises:
        LandscapeError: If the file is missing, or is none of these.
    """
    if path.suffix.lower() in (".yaml", ".yml"):
        return Manifest.load(path).describe()
    if path.is_file() and is_surface(path):
        return describe_surface(path)
    if path.is_file() and is_predictions(path):
        return describe_predictions(path)
    if is_density_file(path):
        return [*describe_densities(path), *_of_densities(path)]
    if is_store(path):
        return [*describe_store(path), *_of_store(path)]
    if path.is_dir() and not may_be_checkpoint(path):
        raise LandscapeError(
            f"{path}: is a folder. Name a store (.h5), a manifest (.yaml) or a checkpoint in it."
        )
    if not path.exists():
        raise LandscapeError(
            f"{path}: there is no such file. Name a store (.h5), a manifest (.yaml) or a checkpoint."
        )
    return _describe_checkpoint(path)


def _of_store(path: Path) -> list[str]:
    """What the quadratures of each checkpoint's records say of its whole spectrum; nothing where there are none."""
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
                    f"{table.series} epoch {table.epoch}{left_out}: {_said(probed_spectrum(table, dtype, rows))}"
                )
    return lines


def _of_densities(path: Path) -> list[str]:
    # Their numbers travel through torch.
    from landscape.figures.density_records import spectral_density

    return [
        f"{one.series} epoch {one.epoch}: {_said(spectral_density(one).probed)}"
        for one in read_densities(path)
    ]


def _said(spectrum: ProbedSpectrum) -> str:
    return "estimated " + ", ".join(
        f"{name} {estimate}" for name, estimate in spectrum.estimates().items()
    )


def _describe_checkpoint(path: Path) -> list[str]:
    # Reads tensors, so torch is needed from here on.
    from landscape.clip.checkpoint import describe_checkpoint

    info = describe_checkpoint(path)
    name = f" of {info.name}" if info.name else ""
    unusual = [dtype for dtype in info.dtypes if dtype in _CONVERTED]
    converted = (
        f" ({', '.join(unusual)} will be converted to the manifest's dtype)" if unusual else ""
    )
    lines = [
        f"checkpoint, {info.layout} ({info.kind} file){name}, {_epoch(info)}",
        f"{info.num_tensors} tensors with {info.num_parameters:,} numbers, {', '.join(info.dtypes)}{converted}, "
        f"{info.num_bytes:,} bytes",
        f"first tensors: {', '.join(info.keys)}",
    ]
    if len(info.available) > 1:
        lines.append(
            "copies of the weights: online and averaged; say `weights: ema` in a manifest for the averaged ones"
        )
    lines.append(f"sha256 {info.sha256}")
    for entry, values in info.settings.items():
        lines += [f"{entry} in the file, less what is off or empty:", *_indented(_pairs(values))]
    lines += _taken([*run_files(path), *inside_checkpoint(info.settings, path)], info)
    return [*lines, *info.notes]


def _taken(files: list[RunFile], info: "CheckpointInfo") -> list[str]:
    """What landscape takes from each account of the run; accounts that say the same are told once."""
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
    """What the file says of the model; the heading names the file."""
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
    """Lines of items; of several, none is broken at a space within it."""
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
    """Settings by name, without those that are off or empty; a text as it is, in one piece."""
    if not isinstance(values, Mapping):
        return [" ".join(str(values).split())[:2000]]
    return [
        f"{key} {shown(value)}"
        for key, value in values.items()
        if value not in (None, False, "", [], {})
    ]
