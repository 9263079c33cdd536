"""The manifest that a training run writes of itself.

It has a single series and is rewritten whole after every epoch.
"""

import os
from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import yaml

from landscape.errors import ManifestError
from landscape.files import write_atomically
from landscape.manifest.document import Dumper
from landscape.manifest.manifest import Manifest
from landscape.manifest.reading import read_manifest
from landscape.manifest.settings import (
    OPENMOJI,
    Checkpoint,
    CheckpointSeries,
    DataSettings,
    HessianSettings,
)

_HEADER = (
    "# Written by `landscape train` after every epoch; `landscape spectra` measures it as it is.\n"
)


def write_run_manifest(
    path: Path,
    *,
    name: str,
    model: str,
    data: DataSettings,
    checkpoints: Iterable[Checkpoint],
    hessian: HessianSettings = HessianSettings(objective="contrastive"),
    label: str | None = None,
    config: Path | None = None,
) -> Manifest:
    """Write a complete manifest of a series, whole or not at all.

    It replaces an existing file.

    Args:
        checkpoints: Checkpoints with their files written and closed; epoch 0 among them.
        config: Absolute path of the configuration file that is the architecture; None where `model`
            names one.
        data, hessian: The protocol of the spectra that are measured from this manifest alone.

    Raises:
        ManifestError: If the result could not be read back: epoch 0 or a file is missing, a name is
            not allowed.
        OSError: If the file cannot be written.
    """
    checkpoints = _that_exist(path, checkpoints)
    return _write(
        path,
        name=name,
        model=model,
        label=label,
        config=config,
        data=data,
        hessian=hessian,
        checkpoints=checkpoints,
    )


def extend_run_manifest(
    path: Path,
    *,
    name: str,
    model: str,
    data: DataSettings,
    checkpoints: Iterable[Checkpoint],
    hessian: HessianSettings = HessianSettings(objective="contrastive"),
    label: str | None = None,
    config: Path | None = None,
) -> Manifest:
    """Add checkpoints to a run's manifest, or begin it.

    An epoch that is already listed gets the new entry. An existing file keeps its other entries,
    whether their files still exist or not. It also keeps its own `data`, `hessian` and label, which
    its owner may have edited.

    Raises:
        ManifestError: If the existing file is not the manifest of this series and model, or as
            write_run_manifest.
        OSError: If the file cannot be written.
    """
    checkpoints = _that_exist(path, checkpoints)
    if path.exists():
        contents = read_manifest(path, included=True, files_exist=False)
        old = contents.series[0]
        for key, expected, actual in (("series", name, old.name), ("model", model, old.model)):
            if actual != expected:
                raise ManifestError(
                    f"{path}: the {key} is {actual!r}, but this run trains {expected!r}; give the "
                    "run a folder of its own."
                )
        entries = {checkpoint.epoch: checkpoint for checkpoint in (*old.checkpoints, *checkpoints)}
        data, hessian, label, checkpoints = (
            contents.data,
            contents.hessian,
            old.label,
            tuple(entries.values()),
        )
    return _write(
        path,
        name=name,
        model=model,
        label=label,
        config=config,
        data=data,
        hessian=hessian,
        checkpoints=checkpoints,
    )


def _that_exist(path: Path, checkpoints: Iterable[Checkpoint]) -> tuple[Checkpoint, ...]:
    checkpoints = tuple(checkpoints)
    for checkpoint in checkpoints:
        if not checkpoint.path.is_file():
            raise ManifestError(
                f"{path}: epoch {checkpoint.epoch}: there is no file {checkpoint.path}; save it, "
                "then list it."
            )
    return checkpoints


def _write(
    path: Path,
    *,
    name: str,
    model: str,
    label: str | None,
    config: Path | None,
    data: DataSettings,
    hessian: HessianSettings,
    checkpoints: tuple[Checkpoint, ...],
) -> Manifest:
    path = Path(os.path.abspath(path))
    try:
        label = name if label is None else label
        series = CheckpointSeries(
            name=name, model=model, label=label, checkpoints=checkpoints, config=config
        )
        manifest = Manifest(path=path, data=data, hessian=hessian, series=(series,))
    except ValueError as error:
        raise ManifestError(f"{path}: {error}") from None
    write_atomically(path, (_HEADER + _as_yaml(manifest)).encode())
    return manifest


def _as_yaml(manifest: Manifest) -> str:
    folder = manifest.path.parent
    data = manifest.data
    if data.source != OPENMOJI:
        data = replace(data, source=_relative(Path(data.source), folder))
    hessian = asdict(manifest.hessian)
    if not isinstance(hessian["parameters"], str):
        hessian["parameters"] = list(hessian["parameters"])
    series = [
        {
            "name": entry.name,
            "model": entry.model,
            **({} if entry.config is None else {"config": _relative(entry.config, folder)}),
            "label": entry.label,
            "checkpoints": [
                {"epoch": checkpoint.epoch, "path": _relative(checkpoint.path, folder)}
                | ({} if checkpoint.sha256 is None else {"sha256": checkpoint.sha256})
                for checkpoint in entry.checkpoints
            ],
        }
        for entry in manifest.series
    ]
    top = {"version": manifest.version, "data": _without_defaults(data), "hessian": hessian}
    return _dump(top, flow=False) + _dump({"series": series}, flow=None)


def _without_defaults(data: DataSettings) -> dict[str, Any]:
    """Return all settings except unchanged defaults of files and image size."""
    of_files = ("separator", "image_key", "caption_key", "encoding", "quoting", "on_bad_picture")
    silent = ("image_size", *of_files, "block_size", "tokenizer")
    defaults = {field.name: field.default for field in fields(data)} | {
        "caption_key": data.default_caption_key
    }
    values = {field.name: getattr(data, field.name) for field in fields(data)}
    return {
        name: value
        for name, value in values.items()
        if name not in silent or value != defaults[name]
    }


def _dump(value: dict[str, Any], *, flow: bool | None) -> str:
    """Format YAML text; flow=None puts each innermost mapping on one line."""
    return yaml.dump(
        value,
        Dumper=Dumper,
        sort_keys=False,
        default_flow_style=flow,
        width=10**6,
        allow_unicode=True,
    )


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
