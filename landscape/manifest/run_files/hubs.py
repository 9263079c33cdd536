"""Hub folders: open_clip_config.json of open_clip, config.json of timm."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from landscape.manifest.run_files.files import (
    RunFile,
    doubt,
    mapping,
    per_channel,
    read_json,
    trained_as,
    unreadable,
)

# Arguments that have settings of their own, or that name the source of weights.
_NOT_ARGUMENTS = {
    *(
        "num_classes",
        "in_chans",
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "checkpoint_path",
        "cache_dir",
    ),
    *("scriptable", "exportable", "no_jit", "device", "dtype"),
}


def read_open_clip_config(path: Path) -> RunFile | None:
    """Read open_clip's hub folder: {"model_cfg": ..., "preprocess_cfg": ...}."""
    contents = read_json(path)
    if not isinstance(contents, dict) or not isinstance(contents.get("model_cfg"), dict):
        raise unreadable(path, "it has no model_cfg")
    for tower in ("vision_cfg", "text_cfg"):
        mapping(path, contents["model_cfg"], tower)
    pictures = mapping(path, contents, "preprocess_cfg")
    known = ("mean", "std", "interpolation", "resize_mode", "fill_color")
    stated = {f"preprocess.{name}": pictures[name] for name in known if name in pictures}
    _three_colours(stated)
    return RunFile(
        path, "open_clip", None, trained_as(path, path.name, stated), config=path, values=contents
    )


def of_timm_hub(path: Path, contents: Mapping[str, Any]) -> RunFile:
    """Read what timm.models.push_to_hf_hub writes.

    Reads architecture, classes, and the preprocessing of its pictures.
    """
    pictures = (
        mapping(path, contents, "pretrained_cfg") if "pretrained_cfg" in contents else contents
    )
    arguments = mapping(path, contents, "model_args")
    stated: dict[str, Any] = {
        f"model_args.{name}": value
        for name, value in arguments.items()
        if name not in _NOT_ARGUMENTS
    }
    stated["num_classes"] = contents.get("num_classes") or arguments.get("num_classes") or None
    size = pictures.get("input_size")
    if size is not None:
        stated["preprocess.size"] = list(size[-2:]) if isinstance(size, list) else size
    known = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
    stated |= {
        f"preprocess.{name}": pictures[name]
        for name in known
        if pictures.get(name) not in (None, "")
    }
    _three_colours(stated)
    channels = arguments.get("in_chans") or (
        size[0] if isinstance(size, list) and len(size) == 3 else 3
    )
    doubts: dict[str, str] = {}
    if channels != 3:
        doubt_channels(path.name, channels, doubts)
    trained = trained_as(path, path.name, stated, doubts=doubts)
    return RunFile(path, "timm", f"timm:{contents['architecture']}", trained, values=contents)


def doubt_channels(source: str, channels: Any, doubts: dict[str, str]) -> None:
    """Add the doubt that pictures do not have three colours."""
    why = f"{source} says in_chans: {channels}, but only pictures of three colours are read here"
    doubt(doubts, "model_args", why)


def _three_colours(stated: dict[str, Any]) -> None:
    for key in ("preprocess.mean", "preprocess.std"):
        if key in stated:
            stated[key] = per_channel(stated[key])
