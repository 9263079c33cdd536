"""From a YAML document to checked settings and series.

Every rule about a manifest as a file is here.
"""

import os
from dataclasses import MISSING, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from landscape.errors import ManifestError
from landscape.manifest.document import Section, kind, read_document
from landscape.manifest.evaluation import EvaluationSettings, read_evaluation
from landscape.manifest.language import (
    check_text_data,
    is_language,
    read_language_series,
    read_text_data,
)
from landscape.manifest.reading_series import absolute, build, read_series
from landscape.manifest.setting_error import shown
from landscape.manifest.settings import (
    CAUSAL_LM,
    OPENMOJI,
    CheckpointSeries,
    DataSettings,
    HessianSettings,
)
from landscape.suggestions import nearest

VERSION = 1
EPOCH_ZERO = ("required", "optional")

_TOP = {
    "version": int,
    "epoch_zero": str,
    "data": dict,
    "hessian": dict,
    "evaluation": dict,
    "series": list,
}
_DATA = {
    "source": str,
    "split": str,
    "image_size": int,
    "num_samples": int,
    "batch_size": int,
    "seed": int,
    "augmentation": str,
    "separator": str,
    "image_key": str,
    "caption_key": str,
    "encoding": str,
    "quoting": str,
    "on_bad_picture": str,
}
_CSV_ONLY = ("separator", "image_key", "encoding", "quoting")
_HESSIAN = {
    "objective": str,
    "weight_decay": float,
    "method": str,
    "k": int,
    "which": str,
    "tol": float,
    "max_matvecs": int,
    "seed": int,
    "dtype": str,
    "preconditioner": str,
}


@dataclass(frozen=True)
class Contents:
    """A manifest as read.

    `epoch_zero` tells whether every series must start at epoch 0.
    """

    data: DataSettings
    hessian: HessianSettings
    series: tuple[CheckpointSeries, ...]
    epoch_zero: str
    evaluation: EvaluationSettings = EvaluationSettings()


def read_manifest(
    path: Path,
    *,
    included: bool = False,
    files_exist: bool = True,
    checkpoints_exist: bool | None = None,
) -> Contents:
    """Read and check a manifest of version 1.

    Args:
        included: Whether `from:` in another manifest names the file. It must then list a single
            series, which need not start at epoch 0.
        files_exist: Refuse checkpoints and data files that do not exist.
        checkpoints_exist: The same for checkpoints alone; None for the same as `files_exist`.

    Raises:
        ManifestError: Where, what, why, and what to do.
    """
    top = read_document(path)
    _check_version(top)
    top.check_keys(known=_TOP, required=("version", "data", "hessian", "series"))
    values = top.take(_TOP)
    hessian = _read_hessian(values["hessian"])
    of_text = is_language(hessian.objective)
    # The Trainer of transformers writes no checkpoint before its first step.
    epoch_zero = values.get("epoch_zero", "optional" if of_text else "required")
    if epoch_zero not in EPOCH_ZERO:
        top.refuse(
            f"epoch_zero is {shown(epoch_zero)}, but it must be required or optional.",
            key="epoch_zero",
        )
    read_data = read_text_data if of_text else _read_data
    data = read_data(values["data"], files_exist=files_exist and not included)
    evaluation = (
        read_evaluation(values["evaluation"]) if "evaluation" in values else EvaluationSettings()
    )
    sections = top.items("series")
    if included and len(sections) != 1:
        top.refuse(
            f"series: a manifest that `from` names lists one series, got {len(sections)}.",
            key="series",
        )
    files_exist = files_exist if checkpoints_exist is None else checkpoints_exist
    include = partial(_included_series, files_exist=files_exist)
    if of_text:
        series = tuple(
            read_language_series(section, files_exist=files_exist) for section in sections
        )
    else:
        series = tuple(
            read_series(section, include=None if included else include, files_exist=files_exist)
            for section in sections
        )
    try:
        check_manifest(data, hessian, series, epoch_zero="optional" if included else epoch_zero)
    except ValueError as error:
        raise ManifestError(f"{path}: {error}") from None
    return Contents(data, hessian, series, epoch_zero, evaluation)


def _check_version(top: Section) -> None:
    version = top.mapping.get("version", VERSION)
    if version is True or version != VERSION:
        newer = type(version) is int and version > VERSION
        advice = (
            "read it with the landscape that it was written for"
            if newer
            else f"write `version: {VERSION}`"
        )
        top.refuse(
            f"version is {kind(version)}, but this landscape reads version {VERSION}; {advice}.",
            key="version",
        )


def check_manifest(
    data: DataSettings,
    hessian: HessianSettings,
    series: tuple[CheckpointSeries, ...],
    *,
    epoch_zero: str,
) -> None:
    """Check the rules that concern several settings together.

    Raises:
        ValueError: If the settings contradict each other.
    """
    if hessian.objective == "contrastive" and data.batch_size < 2:
        raise ValueError(
            "data.batch_size is 1, but the contrastive loss of a single pair is zero whatever the "
            "weights, and so is its Hessian; use batch_size: 15 as published, or at least 2."
        )
    if is_language(hessian.objective):
        check_text_data(data, hessian.parameters)
    elif data.block_size is not None:
        raise ValueError(
            "data.block_size is of text, but hessian.objective is not causal_lm; change one of "
            "them."
        )
    if not series:
        raise ValueError(
            "series is empty, but there must be at least one; `landscape train` writes one."
        )
    names = [entry.name for entry in series]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"series {name!r} is there twice, but names tell series apart; rename one."
            )
    for entry in series:
        _check_loss(entry, hessian)
        if hessian.preconditioner != "none":
            if entry.epochs[0] == 0:
                raise ValueError(
                    f"series {entry.name!r} lists epoch 0, before the first step of the optimizer, "
                    "so there is no preconditioner yet. List later epochs alone, or say "
                    "`preconditioner: none`."
                )
            continue
        if epoch_zero == "required" and entry.epochs[0] != 0:
            raise ValueError(
                f"series {entry.name!r} starts at epoch {entry.epochs[0]}, but every series needs "
                "epoch 0. Sharpness is reported relative to initialisation. Write it with "
                "`landscape train --epochs 0`, or say `epoch_zero: optional`."
            )


def _check_loss(series: CheckpointSeries, hessian: HessianSettings) -> None:
    """Raise ValueError if a series was trained by another kind of loss."""
    losses = {
        "contrastive": ("clip", "siglip"),
        "cross_entropy": ("cross_entropy",),
        CAUSAL_LM: (CAUSAL_LM,),
    }[hessian.objective]
    loss = series.trained.get("loss", losses[0])
    if loss not in losses:
        raise ValueError(
            f"series {series.name!r} has the loss {loss} ({series.trained.source('loss')}), but "
            f"hessian.objective is {hessian.objective}, so another function would be measured than "
            "was trained; change one of them."
        )


def _required(settings: type[Any]) -> list[str]:
    return [field.name for field in fields(settings) if field.default is MISSING]


def _read_data(section: Section, *, files_exist: bool) -> DataSettings:
    section.check_keys(known=_DATA, required=_required(DataSettings))
    values = section.take(_DATA)
    source = values["source"]
    for key in _CSV_ONLY:
        if key in values and (source == OPENMOJI or source.endswith(".tar")):
            section.refuse(
                f"{key} is for a CSV/TSV file, but the source is {shown(source)}; remove it.",
                key=key,
            )
    if "caption_key" in values and source == OPENMOJI:
        reason = (
            "caption_key is for a CSV/TSV file or for shards, but the source is openmoji; remove "
            "it."
        )
        section.refuse(reason, key="caption_key")
    if "://" in source or source.startswith("pipe:"):
        section.refuse(
            f"source is {shown(source)}, but data is read from local files only; download it "
            "first.",
            key="source",
        )
    if source.strip() and source != OPENMOJI:
        values["source"] = str(absolute(section.path, source))
        if files_exist and not _may_be_there(values["source"]):
            advice = (
                "check the path." if "/" in source or "." in source else nearest(source, [OPENMOJI])
            )
            reason = (
                f"source is {shown(source)}, but there is no such file in {section.path.parent}; "
                f"{advice}"
            )
            section.refuse(reason, key="source")
    return build(section, DataSettings, values)


def _may_be_there(source: str) -> bool:
    """Tell whether a data source may exist.

    False if a plain path does not exist; a pattern of shards ({0000..0009}, *) is not expanded
    here.
    """
    return any(character in source for character in "{[*?") or os.path.isfile(source)


def _read_hessian(section: Section) -> HessianSettings:
    section.check_keys(known=[*_HESSIAN, "parameters"], required=_required(HessianSettings))
    values = section.take(_HESSIAN)
    if "parameters" in section.mapping:
        parameters = section.mapping["parameters"]
        if isinstance(parameters, list):
            if not all(isinstance(pattern, str) for pattern in parameters):
                section.refuse(
                    "parameters: expected a list of patterns, each a text in quotes.",
                    key="parameters",
                )
            parameters = tuple(parameters)
        elif not isinstance(parameters, str):
            section.refuse(
                "parameters: expected all, image, text, or a list of patterns, got "
                f"{kind(parameters)}.",
                key="parameters",
            )
        values["parameters"] = parameters
    return build(section, HessianSettings, values)


def _included_series(
    section: Section, source: str, model: str | None, *, files_exist: bool
) -> CheckpointSeries:
    path = absolute(section.path, source)
    if not os.path.exists(path):
        what = f" --model {model}" if model is not None else ""
        section.refuse(
            f"from: there is no {source}; train the series with `landscape train{what}` first.",
            key="from",
        )
    return read_manifest(path, included=True, files_exist=files_exist).series[0]
