"""From the `series` section of a manifest to checked series.

They include what the files of their runs state.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from landscape.containers.outline import Outline, outline
from landscape.errors import CheckpointError, ManifestError
from landscape.limits import MAX_INTEGER
from landscape.manifest.document import Located, Section, kind
from landscape.manifest.run_files import RunFile, inside_checkpoint, run_files
from landscape.manifest.setting_error import SettingError, shown
from landscape.manifest.settings import Checkpoint, CheckpointSeries
from landscape.manifest.trained import (
    BY_HAND,
    HUB_CONFIG,
    LOCAL_DIR,
    MANIFEST,
    PREPROCESS,
    Disagreement,
    Setting,
    TrainedAs,
    check_values,
    joined,
)

Settings = TypeVar("Settings")
Include = Callable[[Section, str, str | None], CheckpointSeries]

_TEXTS = {"name": str, "model": str, "label": str, "from": str, "config": str, "run_files": str}
_STATED = {"num_classes": int, "label_smoothing": float, "loss": str, "weights": str}
_SECTIONS = ("model_args", "preprocess")
# open_clip has two arguments for the same setting.
_SYNONYMS = {"quick_gelu": "force_quick_gelu"}
_EPOCH_FILE = re.compile(r"epoch_([0-9]+)\.pth?")
_LATEST = "epoch_latest.pt"
_FOLDER_SIGNS = (
    ".metadata",
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model.bin.index.json",
)
_IGNORE = (
    "remove what is wrong from the manifest, or say `run_files: ignore` for the series if the "
    "run's file is"
)


def read_series(
    section: Section, *, include: Include | None, files_exist: bool
) -> CheckpointSeries:
    """Read a series.

    Args:
        include: Reads the manifest that `from:` names; None where `from:` is not allowed.
        files_exist: Refuse checkpoints that do not exist.

    Raises:
        ManifestError: Where, what, why, and what to do.
    """
    section.check_keys(
        known=[*_TEXTS, *_STATED, *_SECTIONS, "checkpoints", "epochs"], required=["name"]
    )
    values = section.take(_TEXTS)
    section = Section(section.path, f"series {shown(values['name'])}: ", section.mapping)
    source, config, ignore = (
        values.pop("from", None),
        values.pop("config", None),
        _ignores(section, values),
    )
    if (source is not None) == ("checkpoints" in section.mapping):
        section.refuse(
            "it needs either checkpoints or from: checkpoints lists the files, from names a run's "
            "manifest."
        )
    if include is None and source is not None:
        section.refuse(
            "a manifest that `from` names may not use `from` itself; list its checkpoints.",
            key="from",
        )
    values, path = _architecture(section, values, config)
    stated = _stated(section)
    if source is not None:
        assert include is not None
        run = include(section, source, values.get("model"))
        if ignore:
            run = replace(run, trained=run.trained.stated_by(MANIFEST))
        values, path, stated, checkpoints = _included(section, values, path, stated, run)
    else:
        checkpoints = _read_checkpoints(section, files_exist=files_exist)
        files = [] if ignore else _files_of_run(checkpoints)
        values, path, stated = _with_run(section, values, path, stated, files)
    if path is not None:
        stated = _with_config(section, stated, path)
        values = {"model": path.parent.name if path.name == HUB_CONFIG else path.stem} | values
    if "model" not in values:
        section.refuse("model is missing; add `model: ...`.")
    if "epochs" in section.mapping:
        checkpoints = _only_epochs(section, checkpoints)
    everything = (
        {"label": values["name"]}
        | values
        | {"checkpoints": checkpoints, "config": path, "trained": stated}
    )
    everything["reads_runs"] = not ignore
    return build(section, CheckpointSeries, everything)


def build(section: Section, settings: Callable[..., Settings], values: dict[str, Any]) -> Settings:
    """Construct settings; refuse a wrong value with its line."""
    try:
        return settings(**values)
    except SettingError as error:
        section.refuse(str(error), key=error.key)


def absolute(manifest: Path, written: str) -> Path:
    """Resolve a path relative to the file that contains it.

    `~` is a home folder.
    """
    return Path(os.path.abspath(manifest.parent / os.path.expanduser(written)))


def _ignores(section: Section, values: dict[str, Any]) -> bool:
    choice = values.pop("run_files", "read")
    if choice not in ("read", "ignore"):
        section.refuse(
            f"run_files is {shown(choice)}, but it must be read or ignore.", key="run_files"
        )
    return bool(choice == "ignore")


def _architecture(
    section: Section, values: dict[str, Any], config: str | None
) -> tuple[dict[str, Any], Path | None]:
    """Return model name and configuration file, where the manifest names a file.

    `model` or `config` may name it.
    """
    key = "config" if config is not None else "model"
    written = values.get("model", "") if config is None else config
    if config is None and not written.endswith(".json") and not written.startswith(LOCAL_DIR):
        return values, None
    path = absolute(section.path, written.removeprefix(LOCAL_DIR))
    if written.startswith(LOCAL_DIR) or path.is_dir():
        name, folder, path = path.name, path, path / HUB_CONFIG
        if not path.is_file():
            others = (
                sorted(entry.name for entry in folder.glob("*.json")) if folder.is_dir() else []
            )
            written = written.removeprefix(LOCAL_DIR)
            advice = (
                f"name the file itself, `{key}: {written}/{others[0]}`"
                if others
                else "check the path"
            )
            section.refuse(f"{key}: there is no {HUB_CONFIG} in {folder}; {advice}.", key=key)
    else:
        name = path.stem
        if not path.is_file():
            section.refuse(
                f"{key}: there is no file {shown(written)} in {section.path.parent}; check the "
                "path.",
                key=key,
            )
    return ({"model": name} | values if config is not None else values | {"model": name}), path


def _stated(section: Section) -> TrainedAs:
    """Read what the manifest states about the trained model."""
    values: dict[str, Any] = section.take(_STATED)
    for name in _SECTIONS:
        if name in section.mapping:
            inner = section.value(name, dict).mapping
            for key, value in inner.items():
                if isinstance(value, Located):
                    section.refuse(
                        f"{name}: {key} is a mapping, but a plain value is expected.", key=name
                    )
                values[f"{name}.{_SYNONYMS.get(key, key)}"] = value
    try:
        check_values(values)
    except SettingError as error:
        section.refuse(str(error), key=error.key)
    return TrainedAs.stated(values, MANIFEST)


def _with_config(section: Section, stated: TrainedAs, config: Path) -> TrainedAs:
    """Add what a configuration file states about architecture and pictures.

    It counts only where no other source states a value.
    """
    architecture, preprocess = _contents_of(config)
    text = json.dumps(architecture, sort_keys=True, separators=(",", ":"))
    digest = TrainedAs.stated(
        {"config_sha256": hashlib.sha256(text.encode()).hexdigest()}, config.name
    )
    pictures = {
        f"preprocess.{key}": value
        for key, value in preprocess.items()
        if key in PREPROCESS and key != "size"
    }
    try:
        check_values(pictures)
    except SettingError as error:
        raise ManifestError(f"{config}: {error}") from None
    return _agreed(section, [stated, digest]).filled(TrainedAs.stated(pictures, config.name))


def _contents_of(config: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read architecture and preprocessing of an open_clip configuration."""
    try:
        contents = json.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise ManifestError(
            f"{config}: cannot be read ({error.strerror}); check `config`."
        ) from error
    except (ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())[:200]
        raise ManifestError(
            f"{config}: is not JSON ({problem}), so it describes no model; name open_clip's JSON."
        ) from error
    architecture = contents.get("model_cfg", contents) if isinstance(contents, dict) else None
    if not isinstance(architecture, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= set(
        architecture
    ):
        raise ManifestError(
            f"{config}: is no configuration of open_clip: it needs embed_dim, vision_cfg and "
            "text_cfg."
        )
    preprocess = contents.get("preprocess_cfg")
    return architecture, preprocess if isinstance(preprocess, dict) else {}


def _included(
    section: Section,
    values: dict[str, Any],
    path: Path | None,
    stated: TrainedAs,
    run: CheckpointSeries,
) -> tuple[dict[str, Any], Path | None, TrainedAs, tuple[Checkpoint, ...]]:
    """Join the series of a run's manifest with what is stated here.

    Both must agree.
    """
    if values.get("model", run.model) != run.model:
        section.refuse(
            f"model is {shown(values['model'])}, but the run trained {run.model!r}; remove one.",
            key="model",
        )
    settings = {
        key: Setting(setting.value, BY_HAND[1]) if setting.source == MANIFEST else setting
        for key, setting in run.trained.settings.items()
    }
    theirs = TrainedAs(settings, run.trained.notes, run.trained.doubts)
    together = _agreed(section, [stated, theirs])
    return (
        {"model": run.model, "label": run.label} | values,
        path or run.config,
        together,
        run.checkpoints,
    )


def _files_of_run(checkpoints: tuple[Checkpoint, ...]) -> list[RunFile]:
    """Read the run's own files, each once, and the last existing checkpoint."""
    if not checkpoints:
        return []
    files: dict[Path, RunFile] = {}
    # One checkpoint of each folder is enough, and one of each folder that a link leads to.
    paths = [checkpoint.path for checkpoint in checkpoints]
    places = {(path.parent, path.resolve().parent, path.is_dir() and path): path for path in paths}
    for path in places.values():
        files |= {file.path: file for file in run_files(path)}
    there = [
        checkpoint for checkpoint in checkpoints if may_be_checkpoint(checkpoint.path)
    ] or checkpoints
    last = max(there, key=lambda checkpoint: checkpoint.epoch).path
    return [
        *files.values(),
        *(inside_checkpoint(dict(look.settings), last) if (look := _look(last)) else []),
    ]


def _look(path: Path) -> Outline | None:
    """Read the outline of a checkpoint: everything except its numbers.

    None if it cannot be read; whoever loads it then reports the error.
    """
    try:
        return outline(path)
    except CheckpointError:
        return None


def _with_run(
    section: Section,
    values: dict[str, Any],
    path: Path | None,
    stated: TrainedAs,
    files: list[RunFile],
) -> tuple[dict[str, Any], Path | None, TrainedAs]:
    """Complete the manifest's values by the run's; refuse disagreement."""
    together = _agreed(section, [stated, *(file.trained for file in files)])
    for file in files:
        if file.config is not None:
            path = _same_config(section, path, file.config, file.path)
        if file.model is None:
            continue
        if file.model.startswith(LOCAL_DIR):
            hub = absolute(section.path, file.model.removeprefix(LOCAL_DIR)) / HUB_CONFIG
            if hub.is_file():
                path = _same_config(section, path, hub, file.path)
            else:
                note = (
                    f"{file.path} names the model {file.model}, which is not here; it was not "
                    "compared with the manifest's."
                )
                together = TrainedAs(together.settings, (*together.notes, note), together.doubts)
            continue
        values = {"model": file.model} | values
        same = _same_model(values["model"], file.model)
        if not same and path is None:
            section.refuse(
                f"model is {shown(values['model'])}, but {file.path} says that the run trained "
                f"{shown(file.model)}: other weights may fit both, and mean another function; "
                f"{_IGNORE}.",
                key="model",
            )
        # timm's tag, after the dot, implies a preprocessing of its own.
        values["model"] = (
            values["model"]
            if path is not None or "." in values["model"]
            else same or values["model"]
        )
        together = together.filled(TrainedAs.stated({"run_model": file.model}, file.path.name))
    return values, path, together


def _same_config(section: Section, config: Path | None, of_run: Path, file: Path) -> Path:
    """Return the configuration file of the run.

    It must equal that of the manifest, where that names one.
    """
    if config is not None and _contents_of(config) != _contents_of(of_run):
        section.refuse(
            f"config is {config}, but {file} means {of_run}, which describes another architecture "
            f"or other pictures; {_IGNORE}.",
            key="config" if "config" in section.mapping else "model",
        )
    return config or of_run


def _same_model(model: str, other: str) -> str | None:
    """Return the fuller of two names of an architecture.

    None if they name different ones. open_clip writes / as -, and timm's names may end in a tag.
    """
    plain = [name.replace("timm/", "timm:", 1) for name in (model, other)]
    if plain[0].startswith("timm:") and plain[1].startswith("timm:"):
        (first, _, tag), (second, _, other_tag) = (name.partition(".") for name in plain)
        return (
            max(plain, key=len)
            if first == second and (not tag or not other_tag or tag == other_tag)
            else None
        )
    return model if plain[0].replace("/", "-") == plain[1].replace("/", "-") else None


def _agreed(section: Section, all_of_them: list[TrainedAs]) -> TrainedAs:
    try:
        return joined(all_of_them)
    except Disagreement as error:
        key = error.key.partition(".")[0]
        section.refuse(
            f"{error}; the same tensors fit both, and their Hessians differ; {_IGNORE}.", key=key
        )


def _read_checkpoints(section: Section, *, files_exist: bool) -> tuple[Checkpoint, ...]:
    if isinstance(section.mapping["checkpoints"], str):
        return _checkpoints_of_folder(section, section.mapping["checkpoints"])
    if "epochs" in section.mapping:
        section.refuse(
            "epochs selects from a folder or from a run, but checkpoints is a list; remove epochs.",
            key="epochs",
        )
    types = {"epoch": int, "path": str, "sha256": str}
    checkpoints = []
    for item in section.items("checkpoints"):
        item.check_keys(known=types, required=["epoch", "path"])
        values = item.take(types)
        values["path"] = absolute(section.path, values["path"])
        if "sha256" in values:
            values["sha256"] = values["sha256"].lower()
        if files_exist and not may_be_checkpoint(values["path"]):
            written = shown(item.mapping["path"])
            item.refuse(
                f"path: there is no file {written} in {section.path.parent}; restore it or train "
                "it again.",
                key="path",
            )
        checkpoints.append(build(item, Checkpoint, values))
    return tuple(checkpoints)


def may_be_checkpoint(path: Path) -> bool:
    """Tell whether a path may be a checkpoint.

    That is a file, or a folder that is a single checkpoint: shards with their index, or the format
    of torch.distributed.checkpoint.
    """
    if not path.is_dir():
        return path.is_file()
    return any(next(path.glob(pattern), None) is not None for pattern in _FOLDER_SIGNS)


def _checkpoints_of_folder(section: Section, source: str) -> tuple[Checkpoint, ...]:
    folder = absolute(section.path, source)
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        reason = (
            f"checkpoints: {shown(source)} is not a readable folder ({error.strerror}); name one, "
            "or list the files."
        )
        section.refuse(reason, key="checkpoints")
    matches = ((_EPOCH_FILE.fullmatch(name), folder / name) for name in names)
    checkpoints = tuple(
        Checkpoint(epoch=int(match[1]), path=path)
        for match, path in matches
        if match and len(match[1]) < 19
    )
    if checkpoints:
        return checkpoints
    if _LATEST in names:
        look = _look(folder / _LATEST)
        if look is not None and look.epoch is not None:
            return (Checkpoint(epoch=look.epoch, path=folder / _LATEST),)
        reason = (
            f"checkpoints: {_LATEST} in {shown(source)} does not say its epoch; list it: - "
            f"{{epoch: ..., path: ...}}."
        )
        section.refuse(reason, key="checkpoints")
    section.refuse(
        f"checkpoints: the folder {shown(source)} holds no epoch_K.pt, as open_clip writes them to "
        "<run>/checkpoints; list other files one by one, or let `landscape init FOLDER` write the "
        "manifest.",
        key="checkpoints",
    )


def _only_epochs(section: Section, checkpoints: tuple[Checkpoint, ...]) -> tuple[Checkpoint, ...]:
    wanted = section.value("epochs", list)
    there = {checkpoint.epoch: checkpoint for checkpoint in checkpoints}
    for epoch in wanted:
        if type(epoch) is not int or not 0 <= epoch <= MAX_INTEGER:
            section.refuse(
                f"epochs: expected a list of epochs, got {kind(epoch)} in it.", key="epochs"
            )
        if epoch not in there:
            listed = shown(sorted(there))
            section.refuse(
                f"epochs: epoch {epoch} is not there (it has {listed}); train further, or remove "
                "it.",
                key="epochs",
            )
        if wanted.count(epoch) > 1:
            section.refuse(f"epochs: epoch {epoch} is there twice; keep one.", key="epochs")
    return tuple(there[epoch] for epoch in wanted)
