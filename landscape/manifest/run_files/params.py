"""params.txt, the command line of open_clip_train, and out.log.

The log beside it contains the printed model.
"""

import ast
import re
import warnings
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from landscape.manifest.run_files.files import (
    RunFile,
    doubt,
    flag,
    per_channel,
    read_text,
    trained_as,
    unreadable,
)
from landscape.manifest.trained import TrainedAs

# Bytes of out.log that are read. The log grows during the run, but the model is printed before the
# first step.
_LARGEST_LOG = 2**22
_LINE = re.compile(r"([a-z_][a-z0-9_]*):(?: (.*))?")
_PRINTED = re.compile(r"^\s*\(\w+\): (QuickGELU\(\)|GELU\()", re.MULTILINE)
_ARGUMENTS = ("force_quick_gelu", "force_custom_text", "force_image_size", "force_context_length")
_PICTURES = ("mean", "std", "interpolation", "resize_mode")
# Arguments that identify a params.txt of open_clip: no other program is likely to have three of
# them.
_OWN = {
    *(
        "force_quick_gelu",
        "force_custom_text",
        "force_image_size",
        "force_context_length",
        "force_patch_dropout",
    ),
    *(
        "precision",
        "dataset_type",
        "train_data",
        "val_data",
        "csv_separator",
        "csv_img_key",
        "csv_caption_key",
    ),
    *(
        "imagenet_val",
        "imagenet_v2",
        "zeroshot_frequency",
        "lock_image",
        "lock_text",
        "local_loss",
        "gather_with_grad",
    ),
    *(
        "use_bn_sync",
        "openai_pretrained",
        "skip_scheduler",
        "distill_model",
        "use_bnb_linear",
        "siglip",
        "wandb_notes",
    ),
    *(
        "image_mean",
        "image_std",
        "image_interpolation",
        "image_resize_mode",
        "tensorboard_path",
        "save_most_recent",
    ),
}
# Arguments that are read below: if such a line is out of order, that is reported as a doubt.
_READ = {
    *_ARGUMENTS,
    *(f"image_{name}" for name in _PICTURES),
    "siglip",
    "distill_model",
    "use_bnb_linear",
    "pretrained",
}
_QUICK_GELU = "model_args.force_quick_gelu"
_SAY_QUICK_GELU = "say `model_args: {force_quick_gelu: true}` or false, as it was"


def read_params(path: Path) -> RunFile | None:
    """Read the command line of open_clip_train.

    It has a line "name: value" for every argument, sorted by name.
    """
    values, others = _lines(read_text(path))
    if "model" not in {*values, *others} or len(_OWN & {*values, *others}) < 3:
        return None
    if "model" not in values or len(_OWN & set(values)) < 3:
        raise unreadable(path, "its lines are not sorted by name, as open_clip_train writes them")
    source = path.name
    doubts: dict[str, str] = {}
    stated = open_clip_settings(path, values)
    if values.get("siglip"):
        # The value that open_clip_train sets: https://github.com/mlfoundations/open_clip,
        # open_clip_train/main.py.
        stated["model_args.init_logit_bias"] = -10
    _doubt_losses(path, values, doubts)
    for name in sorted(others & _READ):
        why = (
            f"{path} says {name} where it does not stand in order, so it may be a part of another "
            "value"
        )
        doubt(doubts, _setting(name), f"{why}; state it in the manifest as it was")
    tag = values.get("pretrained") or ("openai" if values.get("openai_pretrained") else None)
    if tag:
        stated["pretrained"] = str(tag)
    trained = trained_as(path, source, stated, notes=_notes(values, source), doubts=doubts)
    trained = _with_activation(path, values, trained)
    return RunFile(path, "open_clip_train", str(values["model"]), trained, values=values)


def open_clip_settings(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that arguments of open_clip state.

    Any program may have passed them to open_clip.

    Raises:
        ManifestError: If a value is invalid.
    """
    stated = {f"model_args.{name}": values[name] for name in _ARGUMENTS if name in values}
    size = stated.get("model_args.force_image_size")
    if isinstance(size, (list, tuple)) and len(size) == 1:
        stated["model_args.force_image_size"] = size[0]
    for name in _PICTURES:
        if f"image_{name}" in values:
            value = values[f"image_{name}"]
            stated[f"preprocess.{name}"] = per_channel(value) if name in ("mean", "std") else value
    if stated.get("preprocess.interpolation") == "random":
        # "random" is for training; open_clip resizes pictures in validation bicubically.
        stated["preprocess.interpolation"] = "bicubic"
    if values.get("siglip") is not None:
        stated["loss"] = "siglip" if flag(path, values, "siglip") else "clip"
    return stated


def _lines(text: str) -> tuple[dict[str, Any], set[str]]:
    """Return values by name, and names of lines out of order.

    Those other lines would be settings if they stood in order. Values can have several lines, as
    notes have, and any of these lines can look like a setting. The settings are the longest
    sequence of lines that is sorted by name.
    """
    lines = text.splitlines()
    settings = [(i, match) for i, line in enumerate(lines) if (match := _LINE.fullmatch(line))]
    kept = _longest_sorted([match[1] for _, match in settings])
    chosen = [settings[i] for i in kept]
    values = {}
    for (start, match), end in zip(chosen, [*(i for i, _ in chosen[1:]), len(lines)]):
        values[match[1]] = _literal("\n".join([match[2] or "", *lines[start + 1 : end]]))
    return values, {match[1] for _, match in settings} - set(values)


def _longest_sorted(names: list[str]) -> list[int]:
    """Return the positions of the longest strictly sorted subsequence.

    Patience sorting: `ends[l]` is the smallest last name of a sorted subsequence of l + 1 names so
    far, so a binary search places each name. `before` links every name to its predecessor.
    """
    ends: list[str] = []
    positions: list[int] = []
    before: list[int | None] = []
    for i, name in enumerate(names):
        length = bisect_left(ends, name)
        ends[length:] = [name, *ends[length + 1 :]]
        positions[length:] = [i, *positions[length + 1 :]]
        before.append(positions[length - 1] if length else None)
    chain: list[int] = []
    position = positions[-1] if positions else None
    while position is not None:
        chain.append(position)
        position = before[position]
    return chain[::-1]


def _literal(text: str) -> Any:
    try:
        with warnings.catch_warnings():
            # For example, a path that begins with a number gives a warning.
            warnings.simplefilter("ignore")
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return text.strip()


def _setting(name: str) -> str:
    if name in _ARGUMENTS:
        return f"model_args.{name}"
    if name.startswith("image_"):
        return f"preprocess.{name.removeprefix('image_')}"
    return {"siglip": "loss", "distill_model": "loss", "use_bnb_linear": "model_args"}.get(
        name, name
    )


def _doubt_losses(path: Path, values: Mapping[str, Any], doubts: dict[str, str]) -> None:
    contrastive = (
        "and the sum is not known here; say `loss: clip` to measure the contrastive part alone"
    )
    if values.get("distill_model"):
        why = "so the run minimised a distillation loss beside the contrastive one"
        doubt(
            doubts,
            "loss",
            f"{path} says distill_model: {values['distill_model']}, {why}, {contrastive}",
        )
    elif "coca" in str(values["model"]).lower():
        why = "so the run minimised the loss of captions beside the contrastive one"
        doubt(doubts, "loss", f"{path} says model: {values['model']}, {why}, {contrastive}")
    if values.get("use_bnb_linear"):
        why = (
            f"{path} says use_bnb_linear: {values['use_bnb_linear']}, so the linear layers were "
            "bitsandbytes' quantised ones, which have no second derivative; only a model with "
            "plain linear layers can be measured"
        )
        doubt(doubts, "model_args", why)


def _notes(values: Mapping[str, Any], source: str) -> tuple[str, ...]:
    notes = []
    if str(values.get("precision")) in ("bf16", "fp16", "pure_bf16", "pure_fp16"):
        notes.append(
            f"{source}: trained in {values['precision']}; measured in the manifest's dtype at the "
            "stored weights."
        )
    for tower in ("image", "text"):
        if values.get(f"lock_{tower}"):
            notes.append(
                f"{source}: the {tower} tower was locked in training; `parameters` decides what is "
                "measured."
            )
    if values.get("image_interpolation") == "random":
        notes.append(
            f"{source}: pictures were resized at random in training, and bicubically in "
            "validation, as here."
        )
    return (*notes, *_note_gradients(values, source))


def _note_gradients(values: Mapping[str, Any], source: str) -> tuple[str, ...]:
    """State how gradients of several processes differ from those of the loss.

    Without --gather-with-grad a process takes the features of the others for constants, and the
    mean over processes is taken: findings/open_clip_gradients_by_processes.sh.
    """
    count = values.get("world_size")
    if not isinstance(count, int) or count < 2 or values.get("gather_with_grad") is not False:
        return ()
    if values.get("siglip"):
        return ()
    how = (
        "were not those of the loss"
        if values.get("local_loss")
        else f"were 1/{count} of the loss's except that of logit_scale, and so are the roots of "
        f"Adam's second moments: `preconditioner: adam` measures up to {count} times what the "
        "optimizer met"
    )
    return (f"{source}: on {count} processes without gather_with_grad, gradients {how}.",)


def _with_activation(path: Path, values: Mapping[str, Any], trained: TrainedAs) -> TrainedAs:
    """Determine the activation from out.log where params.txt leaves it open.

    open_clip before 3 built every model with `--pretrained openai` with QuickGELU; 3 and later
    build it as configured. The first versions had no --force-quick-gelu and built every transformer
    with QuickGELU except those beside timm's towers. params.txt does not state the version.
    """
    tag = str(trained.get("pretrained", ""))
    if (
        "quickgelu" in str(values["model"]).lower()
        or values.get("force_quick_gelu")
        or _QUICK_GELU in trained.doubts
    ):
        return trained
    if "force_quick_gelu" not in values:
        why = (
            "says no force_quick_gelu, and open_clip's versions before that argument trained with "
            "QuickGELU"
        )
    elif tag.lower() == "openai":
        why = (
            f"says pretrained: {tag}, which open_clip before version 3 trains with QuickGELU and "
            "later ones as configured"
        )
    else:
        return trained
    log = path.with_name("out.log")
    printed = (
        set(_PRINTED.findall(read_text(log, largest=_LARGEST_LOG, cut=True)))
        if log.is_file()
        else set()
    )
    rest = replace(
        trained,
        settings={key: value for key, value in trained.settings.items() if key != _QUICK_GELU},
    )
    if printed:
        return rest.joined(TrainedAs.stated({_QUICK_GELU: "QuickGELU()" in printed}, log.name))
    return replace(rest, doubts={**trained.doubts, _QUICK_GELU: f"{path} {why}; {_SAY_QUICK_GELU}"})
