"""A series' model as it was trained, its loss, and the settings used."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from torch import nn

from landscape.clip.architecture import check_same_architecture
from landscape.clip.model import build_model, is_classifier, preprocess_for
from landscape.clip.objectives import contrastive_objective, cross_entropy_objective
from landscape.containers.outline import outline
from landscape.curvature import Objective, Params
from landscape.errors import CheckpointError, ModelError
from landscape.manifest import CheckpointSeries, HessianSettings, TrainedAs
from landscape.manifest.trained import ARCHITECTURE, MANIFEST

# The bias that open_clip_train --siglip begins with; a checkpoint replaces it.
_SIGLIP_BIAS = -10
# Bytes of a model in float32 by those of its checkpoint, which may hold 8 bits a weight;
# constructors draw some weights twice.
_EXPANSION = 8
# For what is made beside the weights, such as masks.
_ROOM = 2**30
_QUICK_GELU = "model_args.force_quick_gelu"
_DEFAULTS: dict[str, Any] = {
    "vision_cfg": open_clip.CLIPVisionCfg(),
    "text_cfg": open_clip.CLIPTextCfg(),
}


def build_as_trained(
    series: CheckpointSeries,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    on_meta: bool = False,
) -> nn.Module:
    """Build a series' model as it was trained, with random weights.

    On the meta device it has no weights; see `build_model`.

    Raises:
        ModelError: If it cannot be built, or the run states a setting that is not known here.
    """
    trained = series.trained
    for key, why in trained.doubts.items():
        raise ModelError(f"series {series.name!r}: {why}. [{key}]")
    if series.config is not None:
        for name in dict.fromkeys((series.model, trained.get("run_model", series.model))):
            check_same_architecture(name, series.config)
    model_args = trained.section("model_args")
    if trained.get("loss") == "siglip":
        model_args.setdefault("init_logit_bias", _SIGLIP_BIAS)
    num_classes = None
    if is_classifier(series.model):
        # A script may list open_clip's flags for classifiers too, which have none of them.
        foreign = {
            name
            for name in model_args
            if name.startswith("force_") and trained.source(f"model_args.{name}") != MANIFEST
        }
        model_args = {name: value for name, value in model_args.items() if name not in foreign}
        num_classes = trained.get("num_classes") or _classes_of(series)
    model = build_model(
        series.model,
        config=series.config,
        num_classes=num_classes,
        model_args=model_args,
        preprocess=trained.section("preprocess"),
        pretrained=trained.get("pretrained"),
        dtype=dtype,
        device=device,
        max_bytes=_most_bytes(series),
        on_meta=on_meta,
    )
    _check_facts(series, model)
    return model


def _most_bytes(series: CheckpointSeries) -> int | None:
    """Bound the memory that the model may take while it is built.

    A model that fits the last checkpoint stays within the bound. None where that checkpoint has no
    size.
    """
    path = series.checkpoints[-1].path
    # A folder, or an index of shards beside it, is at most all that lies there.
    files = (
        path.iterdir()
        if path.is_dir()
        else path.parent.iterdir()
        if path.suffix == ".json"
        else [path]
    )
    try:
        return _ROOM + _EXPANSION * sum(file.stat().st_size for file in files)
    except OSError:
        return None


def _check_facts(series: CheckpointSeries, model: nn.Module) -> None:
    """Refuse a model that contradicts what the run states of its architecture.

    The names are those of open_clip's configuration.
    """
    config: dict[str, Any] = getattr(model, "landscape_config", {})
    if not config:
        return
    facts = series.trained.facts()
    if series.trained.get(_QUICK_GELU) is False and series.trained.source(_QUICK_GELU) == MANIFEST:
        facts.setdefault("quick_gelu", False)
    for key, expected in facts.items():
        section, _, name = key.rpartition(".")
        default = getattr(_DEFAULTS.get(section), name, False if name == "quick_gelu" else None)
        used = (config.get(section, {}) if section else config).get(name, default)
        if _plain(used) != _plain(expected):
            source = series.trained.source(f"{ARCHITECTURE}.{key}")
            raise ModelError(
                f"series {series.name!r}: {key} is {used} in the model that is built "
                f"({series.model}), but {expected} by "
                f"{MANIFEST if source == 'default' else source}: the same tensors may fit both, "
                "and mean another function. Give the architecture with `config: file.json`, or say "
                "`run_files: ignore` for the series if the run's file is wrong."
            )


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and len(set(value)) == 1:
        return value[0]
    return list(value) if isinstance(value, tuple) else value


def _classes_of(series: CheckpointSeries) -> int | None:
    """Return the width of the classifier in the last checkpoint.

    None where it cannot be told; loading will then report that.
    """
    try:
        shapes = outline(series.checkpoints[-1].path).shapes
    except CheckpointError:
        return None
    head = getattr(timm.get_pretrained_cfg(series.model[len("timm:") :]), "classifier", None)
    heads = [head] if isinstance(head, str) else list(head or ())
    widths = {
        shape[0]
        for name, shape in shapes.items()
        if shape
        and any(name == f"{layer}.weight" or name.endswith(f".{layer}.weight") for layer in heads)
    }
    return widths.pop() if len(widths) == 1 else None


def objective_as_trained(
    model: nn.Module, hessian: HessianSettings, trained: TrainedAs
) -> tuple[Objective, Params]:
    """Build the settings' objective with the loss that trained the model.

    Returns:
        The objective and the parameters under study.

    Raises:
        ModelError, ObjectiveError: As the makers of objectives.
    """
    parameters: str | Sequence[str] = hessian.parameters
    if hessian.objective == "contrastive":
        return contrastive_objective(
            model,
            parameters=parameters,
            weight_decay=hessian.weight_decay,
            loss=trained.get("loss"),
        )
    smoothing = trained.get("label_smoothing", 0.0)
    return cross_entropy_objective(
        model, parameters=parameters, weight_decay=hessian.weight_decay, label_smoothing=smoothing
    )


def as_trained(
    model: nn.Module, trained: TrainedAs, hessian: HessianSettings
) -> dict[str, list[Any]]:
    """List the settings of how a model was trained, each with its source.

    Only settings that were used are listed.

    Returns:
        By name, the value and its source, as JSON values, such as {"activation": ["QuickGELU",
        "params.txt"], "image_size": [[64, 64], "default"], ...}.
    """
    pictures = preprocess_for(model)
    of_pictures = {
        "mean": list(pictures.mean),
        "std": list(pictures.std),
        "interpolation": pictures.interpolation,
    }
    used: dict[str, list[Any]] = {}
    if hessian.objective == "contrastive":
        used |= _clip_settings(model, trained)
    else:
        classes = getattr(model, "num_classes", None)
        # timm's own number of classes, unless somebody states another or the checkpoint's
        # classifier has another width.
        ordinary = getattr(model, "pretrained_cfg", {}).get("num_classes")
        whose = trained.source("num_classes")
        used["num_classes"] = [
            classes,
            "checkpoint" if whose == "default" and classes != ordinary else whose,
        ]
        used["loss"] = ["cross_entropy", trained.source("loss")]
        used["label_smoothing"] = [
            trained.get("label_smoothing", 0.0),
            trained.source("label_smoothing"),
        ]
    size_from = _first(trained, "preprocess.size", "model_args.force_image_size", "config_sha256")
    used["picture_size"] = [list(pictures.size), size_from]
    of_tag = _of_tag(model, trained)
    for name, value in {**of_pictures, **pictures.fitting}.items():
        used[name] = [
            value,
            _first(trained, f"preprocess.{name}", *(["pretrained"] if name in of_tag else [])),
        ]
    used["weights"] = [trained.get("weights", "online"), trained.source("weights")]
    shown = {
        "force_quick_gelu",
        "force_image_size",
        "force_context_length",
        "force_custom_text",
        "init_logit_bias",
    }
    for name, value in trained.section("model_args").items():
        if name not in shown:
            used[f"model_args.{name}"] = [value, trained.source(f"model_args.{name}")]
    return used


def _tower_of_hub(path: str) -> str:
    """Name a tower of transformers by its folder and its configuration's digest.

    The configuration holds the tower's activation.
    """
    config = Path(path) / "config.json"
    digest = (
        hashlib.sha256(config.read_bytes()).hexdigest()[:12]
        if config.is_file()
        else "no config.json"
    )
    return f"{Path(path).name} ({digest})"


def _of_tag(model: nn.Module, trained: TrainedAs) -> set[str]:
    """List the preprocessing settings that come from the tag of pretrained weights.

    Training began with these weights.
    """
    architecture, tag = getattr(model, "landscape_architecture", None), trained.get("pretrained")
    if architecture is None or tag is None:
        return set()
    return set(open_clip.get_pretrained_cfg(architecture.name.replace("/", "-"), str(tag)))


def _clip_settings(model: nn.Module, trained: TrainedAs) -> dict[str, list[Any]]:
    config: dict[str, Any] = getattr(model, "landscape_config", {})
    has_bias = getattr(model, "logit_bias", None) is not None
    default = "siglip" if config.get("init_logit_bias") is not None else "clip"
    text = config.get("text_cfg", {})
    tower = "CustomTextCLIP" if isinstance(model, open_clip.CustomTextCLIP) else "CLIP"
    if "hf_model_name" in text:
        tower = _tower_of_hub(text["hf_model_name"])
    where = "config_sha256"
    # --force-quick-gelu switches it on only: where it is off, a QuickGELU is the architecture's
    # own.
    forced = [] if config.get("quick_gelu") and not trained.get(_QUICK_GELU) else [_QUICK_GELU]
    return {
        "activation": [
            "QuickGELU" if config.get("quick_gelu") else "GELU",
            _first(trained, *forced, where),
        ],
        "context_length": [
            text.get("context_length", open_clip.CLIPTextCfg.context_length),
            _first(trained, "model_args.force_context_length", where),
        ],
        "text_tower": [tower, _first(trained, "model_args.force_custom_text", where)],
        "logit_bias": [
            has_bias,
            _first(
                trained, "model_args.init_logit_bias", *([where] if default == "siglip" else [])
            ),
        ],
        "loss": [
            trained.get("loss", default),
            _first(trained, "loss", *([where] if default == "siglip" else [])),
        ],
    }


def _first(trained: TrainedAs, *keys: str) -> str:
    """Name the source of the first setting that changes the model.

    If none does, of the first that is stated.
    """
    meant = [trained.source(key) for key in keys if trained.changes_model(key)]
    return (
        meant
        or [trained.source(key) for key in keys if trained.get(key) is not None]
        or ["default"]
    )[0]
