"""Arguments of training programs.

Known are timm, DeiT, torchvision's references, Swin, Lightning, and similar scripts.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from landscape.containers.plain import TOO_LONG
from landscape.manifest.run_files.files import (
    RunFile,
    doubt,
    is_count,
    is_number,
    mapping,
    per_channel,
    read_yaml,
    trained_as,
    unreadable,
)
from landscape.manifest.run_files.hubs import doubt_channels
from landscape.manifest.run_files.params import open_clip_settings
from landscape.manifest.trained import TrainedAs

# Entries under which scripts store their whole command line.
_NESTED = ("args", "hparams")
_OPEN_CLIP = (
    *("force_quick_gelu", "force_custom_text", "force_image_size", "force_context_length"),
    *("image_mean", "image_std", "image_interpolation", "image_resize_mode", "siglip"),
)
_GENERIC = (*_OPEN_CLIP, "num_classes", "nb_classes", "label_smoothing", "smoothing")
# Arguments of timm's train.py (kd_... since 1.0.23) and of DeiT's main.py that replace the
# cross-entropy by another loss.
_OTHER_LOSSES = ("bce_loss", "jsd_loss", "distillation_type", "kd_model_name", "labelmix_loss")
_SAY_CROSS_ENTROPY = (
    "say `loss: cross_entropy` to measure that of the cross-entropy at these weights"
)


def read_arguments(path: Path) -> RunFile | None:
    """Read a YAML file of arguments: timm's args.yaml, Lightning's hparams.yaml."""
    values = read_yaml(path)
    return of_arguments(path, path.name, values) if values else None


def of_arguments(path: Path, source: str, values: Mapping[str, Any]) -> RunFile:
    """Read the arguments of a known program, or a few common names.

    These names mean the same in all programs.

    Raises:
        ManifestError: If a value is invalid.
    """
    values = _flat(path, values)
    model = values.get("model")
    if "smoothing" in values and (model is None or isinstance(model, str)) and "model" in values:
        trained = _timm_trained(path, values, source)
        return RunFile(path, "timm", f"timm:{model}" if model else None, trained, values=values)
    if {"val_resize_size", "val_crop_size", "label_smoothing"} <= set(values):
        return RunFile(
            path, "torchvision", None, _torchvision_trained(path, values, source), values=values
        )
    stated = open_clip_settings(path, {name: values[name] for name in _OPEN_CLIP if name in values})
    doubts: dict[str, str] = {}
    for name in ("num_classes", "nb_classes", "label_smoothing"):
        value, key = (
            values.get(name),
            "label_smoothing" if name == "label_smoothing" else "num_classes",
        )
        if (
            is_count(value)
            if key == "num_classes"
            else is_number(value) and value is not None and 0 <= value < 1
        ):
            stated.setdefault(key, value)
        elif value not in (None, 0) or isinstance(value, bool):
            doubt(
                doubts, key, f"{source} says {name}: {_short(value)}; say `{key}: ...`, as it was"
            )
    notes = _cut_off(source, values)
    for name in _NESTED:
        if values.get(name) == TOO_LONG:
            doubt(doubts, "model_args", f"{source}: {name} is too long to be read")
    return RunFile(
        path,
        "training script",
        None,
        trained_as(path, source, stated, notes=notes, doubts=doubts),
        values=values,
    )


def _flat(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Merge arguments with those of a command line stored as a whole.

    Raises:
        ManifestError: If both state a setting, with different values.
    """
    flat = dict(values)
    for entry in _NESTED:
        inner = values.get(entry)
        if not isinstance(inner, Mapping):
            continue
        for name, value in inner.items():
            if name in _GENERIC and name in flat and flat[name] != value:
                raise unreadable(
                    path, f"{name} is {_short(flat[name])}, and {_short(value)} in its {entry}"
                )
            flat.setdefault(name, value)
    return flat


def _cut_off(source: str, values: Mapping[str, Any]) -> list[str]:
    return [
        f"{source}: {name} is too long to be read."
        for name, value in values.items()
        if value == TOO_LONG
    ]


def _short(value: Any) -> str:
    return (
        "a number of many digits" if type(value) is int and abs(value) > 2**63 else str(value)[:80]
    )


def _timm_trained(path: Path, values: Mapping[str, Any], source: str) -> TrainedAs:
    """Read timm's train.py (1.0) and DeiT's main.py.

    Reads arguments of the model, of pictures in validation, and of the loss.
    """
    stated: dict[str, Any] = {
        "num_classes": values.get("num_classes") or values.get("nb_classes") or None
    }
    for name, argument in (("bn_eps", "bn_eps"), ("gp", "global_pool")):
        if values.get(name) is not None:
            stated[f"model_args.{argument}"] = values[name]
    stated |= {
        f"model_args.{name}": value for name, value in mapping(path, values, "model_kwargs").items()
    }
    size = values.get("input_size") or values.get("img_size") or None
    stated["preprocess.size"] = (
        list(size[-2:]) if isinstance(size, (list, tuple)) and len(size) in (2, 3) else size
    )
    for name in ("mean", "std", "interpolation", "crop_pct", "crop_mode"):
        value = values.get(name)
        stated[f"preprocess.{name}"] = (
            None if value in ("", []) else per_channel(value) if name in ("mean", "std") else value
        )
    # DeiT calls it eval_crop_ratio. timm treats a share of 0 as no value.
    stated["preprocess.crop_pct"] = (
        stated["preprocess.crop_pct"] or values.get("eval_crop_ratio") or None
    )
    doubts: dict[str, str] = {}
    channels = values.get("in_chans") or (
        size[0] if isinstance(size, (list, tuple)) and len(size) == 3 else 3
    )
    if channels != 3:
        doubt_channels(source, _short(channels), doubts)
    if (mode := values.get("input_img_mode")) not in (None, "", "RGB"):
        why = f"{source} says input_img_mode: {_short(mode)}, but pictures are read in RGB here"
        doubt(doubts, "preprocess", f"{why}; say in `preprocess: {{...}}` what they went through")
    for name in _OTHER_LOSSES:
        if values.get(name) not in (None, False, "", "none"):
            why = (
                f"{source} says {name}: {_short(values[name])}, a loss that is not known here; "
                f"{_SAY_CROSS_ENTROPY}"
            )
            doubt(doubts, "loss", why)
    if not doubts.get("loss"):
        stated["loss"] = "cross_entropy"
        stated["label_smoothing"] = values.get("smoothing") or 0.0
    return trained_as(path, source, stated, notes=_cut_off(source, values), doubts=doubts)


def _torchvision_trained(path: Path, values: Mapping[str, Any], source: str) -> TrainedAs:
    """Read references/classification/train.py of torchvision.

    Reads the pictures in validation, and the smoothed loss.
    """
    resized, size = values["val_resize_size"], values["val_crop_size"]
    for name, value in (("val_resize_size", resized), ("val_crop_size", size)):
        if not is_count(value):
            raise unreadable(
                path, f"{name} is {_short(value)}, but a whole number from 1 is expected"
            )
    stated = {
        "preprocess.size": size,
        "preprocess.crop_pct": _share(size, resized),
        "preprocess.interpolation": values.get("interpolation") or None,
        "loss": "cross_entropy",
        "label_smoothing": values["label_smoothing"] or 0.0,
    }
    notes = _cut_off(source, values)
    if values.get("weights"):
        notes.append(f"{source}: training began with the weights {_short(values['weights'])}.")
    return trained_as(path, source, stated, notes=notes)


def _share(size: int, resized: int) -> float:
    """Find the crop_pct by which timm resizes to the same size.

    timm rounds down.
    """
    share = size / resized
    # timm resizes to floor(size / share). Rounding of the quotient can miss `resized`, so the share
    # moves to the next float until the floor is exact.
    while math.floor(size / share) != resized:
        share = math.nextafter(share, 0.0 if math.floor(size / share) < resized else math.inf)
    return share


def of_swin(path: Path, source: str, values: Mapping[str, Any]) -> RunFile:
    """Read the configuration of Swin's and VMamba's trainers.

    Reads classes, picture size, and the smoothing of the loss.

    Raises:
        ManifestError: If a value is invalid.
    """
    model, data = values["MODEL"], mapping(path, values, "DATA")
    stated = {
        "num_classes": model.get("NUM_CLASSES") or None,
        "preprocess.size": data.get("IMG_SIZE") or None,
    }
    if (smoothing := model.get("LABEL_SMOOTHING")) is not None:
        smoothing = float(smoothing) if is_number(smoothing) else smoothing
        stated |= {"loss": "cross_entropy", "label_smoothing": smoothing}
    trained = trained_as(path, source, stated, notes=_cut_off(source, values))
    return RunFile(path, "Swin", None, trained, values=values)
