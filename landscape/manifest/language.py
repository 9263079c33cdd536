"""Manifests of language models.

They have text in place of pictures, and series of folders that transformers wrote.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from landscape.errors import ManifestError
from landscape.manifest.document import Section
from landscape.manifest.reading_series import absolute, build, may_be_checkpoint
from landscape.manifest.setting_error import shown
from landscape.manifest.settings import CAUSAL_LM, Checkpoint, CheckpointSeries, DataSettings
from landscape.manifest.trained import TrainedAs

CONFIG = "config.json"
TOKENIZERS = ("model", "bytes")
# Files of tokens, which need no tokenizer.
TOKEN_FILES = (".npy",)
_DATA = {
    "source": str,
    "num_samples": int,
    "batch_size": int,
    "seed": int,
    "block_size": int,
    "tokenizer": str,
}
_REQUIRED = ("source", "num_samples", "batch_size", "block_size")
_SERIES = {"name": str, "model": str, "label": str}
_STEP_FOLDER = re.compile(r"checkpoint-([0-9]{1,18})")
# Entries of a configuration about how it was written or is used, which do not change the loss.
_INCIDENTAL = (
    "transformers_version",
    "_name_or_path",
    "dtype",
    "torch_dtype",
    "use_cache",
    "architectures",
)


def read_text_data(section: Section, *, files_exist: bool) -> DataSettings:
    """Read the section `data` of a manifest of language models.

    Raises:
        ManifestError: Where, what, why, and what to do.
    """
    section.check_keys(known=_DATA, required=_REQUIRED)
    values = section.take(_DATA)
    source = values["source"]
    if "://" in source or source.startswith("pipe:"):
        section.refuse(
            f"source is {shown(source)}, but text is read from local files only; download it "
            "first.",
            key="source",
        )
    if source.strip():
        values["source"] = str(absolute(section.path, source))
        if files_exist and not os.path.isfile(values["source"]):
            reason = (
                f"source is {shown(source)}, but there is no such file in {section.path.parent}; "
                "check the path."
            )
            section.refuse(reason, key="source")
    tokenizer = values.get("tokenizer", TOKENIZERS[0])
    if tokenizer not in TOKENIZERS:
        values["tokenizer"] = str(absolute(section.path, tokenizer))
        if files_exist and not os.path.isdir(values["tokenizer"]):
            reason = (
                "it must be model (that of each series), bytes, or the folder of a tokenizer; "
                "check the path."
            )
            section.refuse(f"tokenizer is {shown(tokenizer)}, but {reason}", key="tokenizer")
    # All of the text: there is no held-out part.
    return build(section, DataSettings, {**values, "split": "all"})


def check_text_data(data: DataSettings, parameters: str | tuple[str, ...]) -> None:
    """Check the rules on settings that only language models have.

    Raises:
        ValueError: If the settings contradict each other.
    """
    if data.block_size is None:
        raise ValueError(
            "data.block_size is missing, but a language model is measured on blocks; give their "
            "tokens."
        )
    if parameters in ("image", "text"):
        raise ValueError(
            f"hessian.parameters is {parameters}, but a language model has no such tower; use all, "
            'or a list of patterns such as ["*mlp*"].'
        )


def read_language_series(section: Section, *, files_exist: bool) -> CheckpointSeries:
    """Read a series of folders of transformers, with config.json and weights.

    Raises:
        ManifestError: Where, what, why, and what to do.
    """
    section.check_keys(known=[*_SERIES, "checkpoints", "epochs"], required=["name", "checkpoints"])
    values = section.take(_SERIES)
    section = Section(section.path, f"series {shown(values['name'])}: ", section.mapping)
    if isinstance(section.mapping["checkpoints"], str):
        checkpoints = _checkpoints_of_trainer(section, section.mapping["checkpoints"])
    else:
        checkpoints = _listed_checkpoints(section, files_exist=files_exist)
    config = _config_of(section, values.pop("model", None), checkpoints, files_exist=files_exist)
    described = _contents(config) if config is not None and config.is_file() else {}
    model = str(described.get("model_type", values["name"]))
    trained = (
        TrainedAs.stated({"config_sha256": digest_of_config(described)}, CONFIG)
        if described
        else TrainedAs()
    )
    everything = {"label": values["name"], "model": model} | values
    everything |= {
        "checkpoints": checkpoints,
        "config": config,
        "trained": trained,
        "reads_runs": False,
    }
    return build(section, CheckpointSeries, everything)


def _checkpoints_of_trainer(section: Section, source: str) -> tuple[Checkpoint, ...]:
    """List the folders checkpoint-N of a run as "epoch" N.

    The Trainer of transformers has written them. Lists all folders, or those that `epochs` names.
    """
    folder = absolute(section.path, source)
    try:
        names = os.listdir(folder)
    except OSError as error:
        reason = (
            f"checkpoints: {shown(source)} is not a readable folder ({error.strerror}); name one, "
            "or list the checkpoints."
        )
        section.refuse(reason, key="checkpoints")
    matches = {
        int(match[1]): folder / match[0] for match in map(_STEP_FOLDER.fullmatch, names) if match
    }
    steps = sorted(step for step, path in matches.items() if may_be_checkpoint(path))
    if not steps:
        section.refuse(
            f"checkpoints: the folder {shown(source)} holds no checkpoint-N with weights, as the "
            "Trainer of transformers writes them; list other folders one by one: - {epoch: 100, "
            "path: ...}.",
            key="checkpoints",
        )
    if "epochs" in section.mapping:
        wanted = section.value("epochs", list)
        for step in wanted:
            if type(step) is not int or step not in steps:
                section.refuse(
                    f"epochs: there is no checkpoint-{step} (it has {shown(steps)}); remove it.",
                    key="epochs",
                )
        steps = wanted
    return tuple(
        build(section, Checkpoint, {"epoch": step, "path": matches[step]}) for step in steps
    )


def _listed_checkpoints(section: Section, *, files_exist: bool) -> tuple[Checkpoint, ...]:
    if "epochs" in section.mapping:
        section.refuse(
            "epochs selects from a folder, but checkpoints is a list; remove epochs.", key="epochs"
        )
    types = {"epoch": int, "path": str, "sha256": str}
    checkpoints = []
    for item in section.items("checkpoints"):
        item.check_keys(known=types, required=["epoch", "path"])
        values = item.take(types)
        written = shown(values["path"])
        values["path"] = absolute(section.path, values["path"])
        if "sha256" in values:
            values["sha256"] = values["sha256"].lower()
        if files_exist and not may_be_checkpoint(values["path"]):
            if (values["path"] / CONFIG).is_file():
                item.refuse(
                    f"path: {written} holds {CONFIG} but no weights (model.safetensors, or shards "
                    "with an index); copy them there.",
                    key="path",
                )
            item.refuse(
                f"path: there are no weights in {written} of {section.path.parent}; check the "
                "path.",
                key="path",
            )
        checkpoints.append(build(item, Checkpoint, values))
    return tuple(checkpoints)


def _config_of(
    section: Section, model: str | None, checkpoints: tuple[Checkpoint, ...], *, files_exist: bool
) -> Path | None:
    """Return the configuration that `model` names, else that of the weights.

    It then lies beside the last checkpoint that has one.
    """
    places = [
        checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
        for checkpoint in checkpoints
    ]
    known = [place / CONFIG for place in places if (place / CONFIG).is_file()]
    if model is not None:
        path = absolute(section.path, model)
        path = path / CONFIG if path.is_dir() else path
        if files_exist and not path.is_file():
            section.refuse(
                f"model: there is no {CONFIG} in {shown(model)}; name the folder that holds it.",
                key="model",
            )
        _check_named(section, path, known)
        return path
    if not known and files_exist:
        section.refuse(
            f"there is no {CONFIG} beside its weights, which says what the model is; name the "
            "folder that holds it with `model: FOLDER`.",
        )
    for path in known:
        if digest_of_config(_contents(path)) != digest_of_config(_contents(known[-1])):
            section.refuse(
                f"{path} describes another model than {known[-1]}, so its checkpoints are not of "
                "one run; make two series.",
                key="checkpoints",
            )
    return known[-1] if known else None


def _check_named(section: Section, named: Path, known: list[Path]) -> None:
    """Refuse a configuration that differs from those beside the weights."""
    if not named.is_file():
        return
    for path in known:
        stored, given = _contents(path), _contents(named)
        if digest_of_config(stored) != digest_of_config(given):
            keys = sorted(
                key
                for key in {*stored, *given} - {*_INCIDENTAL}
                if stored.get(key) != given.get(key)
            )
            section.refuse(
                f"model: {named} describes another model than {path}, which lies beside its "
                f"weights ({', '.join(keys[:5])}), so another function would be measured than was "
                "trained; remove model, or the file that is wrong.",
                key="model",
            )


def is_step_folder(path: Path) -> bool:
    """Tell whether a folder is named like a Trainer checkpoint."""
    return _STEP_FOLDER.fullmatch(path.name) is not None


def digest_of_config(contents: dict[str, Any]) -> str:
    """Compute the SHA-256 digest of a transformers configuration.

    Entries that do not describe the model itself are left out.
    """
    kept = {key: value for key, value in contents.items() if key not in _INCIDENTAL}
    return hashlib.sha256(
        json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def _contents(path: Path) -> dict[str, Any]:
    try:
        contents = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())[:200]
        raise ManifestError(
            f"{path}: is no readable JSON ({problem}), so it describes no model; restore it."
        ) from error
    if not isinstance(contents, dict):
        raise ManifestError(f"{path}: describes no model: values by name are expected.")
    return contents


def is_language(objective: str) -> bool:
    """Tell whether an objective is that of language models."""
    return objective == CAUSAL_LM
