"""What a training program wrote beside its checkpoints about the run: read as text, never executed. Imports no torch.

    params.txt                 open_clip_train; beside `checkpoints/`
    open_clip_config.json      open_clip's hub folders: architecture and preprocessing
    args.yaml                  timm's train.py
    hparams.yaml               Lightning; what the LightningModule was constructed with
    config.json                transformers (CLIP), with preprocessor_config.json; timm's hub folders
"""

import ast
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from landscape.errors import ManifestError
from landscape.manifest.trained import TrainedAs

_LARGEST_FILE = 2**20
# Of out.log, which grows as long as the run does; the model is printed before the first step.
_LARGEST_LOG = 2**22
_LINE = re.compile(r"([a-z_][a-z0-9_]*): ?(.*)")
_OPEN_CLIP_ARGUMENTS = (
    "force_quick_gelu",
    "force_custom_text",
    "force_image_size",
    "force_context_length",
)
_PILLOW_FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class RunFile:
    """One file about a run.

    Attributes:
        program: What wrote it.
        model: The architecture that it names, as a manifest would name it; None where it names none.
        trained: What it says of the model as it was trained.
        config: The file itself where it describes the architecture; None otherwise.
        values: All that it says, for whoever wants to know more.
    """

    path: Path
    program: str
    model: str | None
    trained: TrainedAs
    config: Path | None = None
    values: Mapping[str, Any] = field(default_factory=dict)


def run_files(checkpoint: Path) -> list[RunFile]:
    """Every file about the run of a checkpoint, in the places where its writer puts it.

    Args:
        checkpoint: A file, or the folder that is one.

    Raises:
        ManifestError: If such a file is there and cannot be read: nobody knows then what the run was.
    """
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    above = [folder.parent] if folder.name == "checkpoints" else []
    places: list[tuple[str, Iterable[Path], Callable[[Path], RunFile | None]]] = [
        ("params.txt", (*above, folder), _read_params),
        ("open_clip_config.json", (folder,), _read_hub_config),
        ("args.yaml", (folder,), _read_timm_args),
        ("hparams.yaml", (*above, folder), _read_hparams),
        ("config.json", (folder,), _read_config),
    ]
    files = []
    for name, folders, read in places:
        path = next((place / name for place in folders if (place / name).is_file()), None)
        if path is not None and (file := read(path)) is not None:
            files.append(file)
    return files


def inside_checkpoint(settings: Mapping[str, Any], checkpoint: Path) -> list[RunFile]:
    """The same of what a checkpoint itself holds about its run: timm's `args`, Lightning's `hyper_parameters`.

    Args:
        settings: Plain values by the entry of the file in which they stand.
    """
    files = []
    for entry in ("args", "hyper_parameters", "config"):
        values = settings.get(entry)
        source = f"{entry} in {checkpoint.name}"
        if isinstance(values, Mapping) and isinstance(values.get("MODEL"), Mapping):
            files.append(RunFile(checkpoint, "Swin", None, _swin_trained(values, source), values=values))
        elif isinstance(values, Mapping) and values:
            files.append(_of_arguments(checkpoint, source, values))
    return files


def unreadable(path: Path, reason: object) -> ManifestError:
    """The refusal of a run's file that says nothing anybody can understand."""
    return ManifestError(
        f"{path}: cannot be read ({' '.join(str(reason).split())[:200]}), so what the run was is not known. Restore it, or "
        "say `run_files: ignore` for the series and state the settings in the manifest."
    )


def _text(path: Path, *, largest: int = _LARGEST_FILE, cut: bool = False) -> str:
    try:
        if not cut and path.stat().st_size > largest:
            raise unreadable(path, f"{path.stat().st_size} bytes, at most {largest} are expected")
        with path.open(encoding="utf-8", errors="replace") as stream:
            return stream.read(largest)
    except OSError as error:
        raise unreadable(path, error.strerror or error) from error


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise unreadable(path, error) from error


def _read_params(path: Path) -> RunFile | None:
    """open_clip_train's command line, "name: value" a line, every argument listed."""
    values = {match[1]: _literal(match[2]) for line in _text(path).splitlines() if (match := _LINE.fullmatch(line))}
    if not {"model", "precision", "force_quick_gelu"} <= set(values):
        return None
    source = path.name
    stated: dict[str, Any] = {f"model_args.{name}": values[name] for name in _OPEN_CLIP_ARGUMENTS if name in values}
    size = stated.get("model_args.force_image_size")
    if isinstance(size, list) and len(size) == 1:
        stated["model_args.force_image_size"] = size[0]
    for name in ("mean", "std", "interpolation", "resize_mode"):
        if f"image_{name}" in values:
            stated[f"preprocess.{name}"] = values[f"image_{name}"]
    stated["loss"] = "siglip" if values.get("siglip") else "clip"
    if values.get("siglip"):
        # As open_clip_train sets it: https://github.com/mlfoundations/open_clip, open_clip_train/main.py.
        stated["model_args.init_logit_bias"] = -10
    doubts = _params_doubts(path, values)
    for key in doubts:
        stated.pop(key, None)
    trained = TrainedAs.stated(stated, source, notes=_params_notes(values, source), doubts=doubts)
    if values.get("pretrained"):
        trained = _with_pretrained(path, values, trained)
    return RunFile(path, "open_clip_train", str(values["model"]), trained, values=values)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text.strip()


def _params_doubts(path: Path, values: Mapping[str, Any]) -> dict[str, str]:
    doubts = {}
    if values.get("distill_model"):
        doubts["loss"] = (
            f"{path} says distill_model: {values['distill_model']}, so the run minimised a distillation loss beside the "
            "contrastive one, and the sum is not known here; say `loss: clip` to measure the contrastive part alone"
        )
    if values.get("use_bnb_linear"):
        doubts["model_args"] = (
            f"{path} says use_bnb_linear: {values['use_bnb_linear']}, so the linear layers were bitsandbytes' quantised ones, "
            "which have no second derivative; only a model with plain linear layers can be measured"
        )
    return doubts


def _params_notes(values: Mapping[str, Any], source: str) -> tuple[str, ...]:
    notes = []
    if str(values["precision"]) in ("bf16", "fp16", "pure_bf16", "pure_fp16"):
        notes.append(f"{source}: trained in {values['precision']}; measured in the manifest's dtype at the stored weights.")
    for tower in ("image", "text"):
        if values.get(f"lock_{tower}"):
            notes.append(f"{source}: the {tower} tower was locked in training; `parameters` decides what is measured.")
    return tuple(notes)


def _with_pretrained(path: Path, values: Mapping[str, Any], trained: TrainedAs) -> TrainedAs:
    """The tag that training began with brings its own preprocessing, and in old versions its activation.

    open_clip before 3 built every model with `--pretrained openai` with QuickGELU, 3 and later build it as configured;
    params.txt does not say the version. out.log prints the model.
    """
    tag = str(values["pretrained"])
    trained = trained.joined(TrainedAs.stated({"pretrained": tag}, path.name))
    if tag.lower() != "openai" or "quickgelu" in str(values["model"]).lower() or values.get("force_quick_gelu"):
        return trained
    log = path.with_name("out.log")
    printed = _text(log, largest=_LARGEST_LOG, cut=True) if log.is_file() else ""
    key = "model_args.force_quick_gelu"
    rest = {name: one for name, one in trained.settings.items() if name != key}
    if "QuickGELU()" in printed or "GELU(" in printed:
        quick = TrainedAs.stated({key: "QuickGELU()" in printed}, log.name)
        return replace(trained, settings=rest).joined(quick)
    why = (
        f"{path} says pretrained: {tag}, which open_clip before version 3 trains with QuickGELU and later ones as the model is "
        "configured; say `model_args: {force_quick_gelu: true}` or false, as it was"
    )
    return replace(trained, settings=rest, doubts={**trained.doubts, key: why})


def _read_hub_config(path: Path) -> RunFile | None:
    """open_clip's hub folders: {"model_cfg": ..., "preprocess_cfg": ...}."""
    contents = _json(path)
    if not isinstance(contents, dict) or not isinstance(contents.get("model_cfg"), dict):
        raise unreadable(path, "it has no model_cfg")
    preprocess = contents.get("preprocess_cfg") or {}
    known = ("mean", "std", "interpolation", "resize_mode", "fill_color")
    stated = {f"preprocess.{name}": preprocess[name] for name in known if name in preprocess}
    return RunFile(path, "open_clip", None, TrainedAs.stated(stated, path.name), config=path, values=contents)


def _read_timm_args(path: Path) -> RunFile | None:
    values = _yaml(path)
    return _of_arguments(path, path.name, values) if values else None


def _read_hparams(path: Path) -> RunFile | None:
    values = _yaml(path)
    return _of_arguments(path, path.name, values) if values else None


def _yaml(path: Path) -> dict[str, Any]:
    """A mapping of plain values; what asks for Python objects is refused by the loader, not built."""
    try:
        values = yaml.load(_text(path), _PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise unreadable(path, getattr(error, "problem", None) or error) from error
    return {str(key): value for key, value in values.items()} if isinstance(values, dict) else {}


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader to which an object of any class is its plain text: Lightning writes such tags."""


_PlainLoader.add_multi_constructor("", lambda loader, suffix, node: str(getattr(node, "value", ""))[:200])


def _of_arguments(path: Path, source: str, values: Mapping[str, Any]) -> RunFile:
    """timm's command line, or DeiT's, where these are its arguments; else the few names that mean the same everywhere."""
    if "smoothing" in values and "model" in values:
        model = values.get("model")
        return RunFile(path, "timm", f"timm:{model}" if model else None, _timm_trained(values, source), values=values)
    stated: dict[str, Any] = {}
    for name in ("num_classes", "nb_classes"):
        if type(values.get(name)) is int and values[name] > 0:
            stated.setdefault("num_classes", values[name])
    if isinstance(values.get("label_smoothing"), (int, float)) and 0 <= values["label_smoothing"] < 1:
        stated["label_smoothing"] = values["label_smoothing"]
    return RunFile(path, "training script", None, TrainedAs.stated(stated, source), values=values)


def _timm_trained(values: Mapping[str, Any], source: str) -> TrainedAs:
    """Of timm's train.py (1.0), and of DeiT's main.py: arguments for the model, for the pictures in validation, for the loss."""
    stated: dict[str, Any] = {}
    if classes := values.get("num_classes") or values.get("nb_classes"):
        stated["num_classes"] = classes
    for name, argument in (("bn_eps", "bn_eps"), ("gp", "global_pool")):
        if values.get(name) is not None:
            stated[f"model_args.{argument}"] = values[name]
    stated |= {f"model_args.{name}": value for name, value in (values.get("model_kwargs") or {}).items()}
    size = values.get("input_size") or values.get("img_size")
    if size:
        stated["preprocess.size"] = list(size[-2:]) if isinstance(size, (list, tuple)) else size
    for name in ("mean", "std", "interpolation", "crop_pct", "crop_mode"):
        value = values.get(name) or None
        stated[f"preprocess.{name}"] = value * 3 if isinstance(value, list) and len(value) == 1 else value
    doubts = {}
    other_losses = ("bce_loss", "jsd_loss", "distillation_type")
    unusual = [name for name in other_losses if values.get(name) not in (None, False, "none")]
    if unusual:
        doubts["loss"] = (
            f"{source} says {unusual[0]}: {values[unusual[0]]}, a loss that is not known here; say `loss: cross_entropy` to "
            "measure that of the cross-entropy at these weights"
        )
    else:
        stated["loss"] = "cross_entropy"
        stated["label_smoothing"] = values.get("smoothing") or 0.0
    return TrainedAs.stated(stated, source, doubts=doubts)


def _swin_trained(values: Mapping[str, Any], source: str) -> TrainedAs:
    """Of the configuration of Swin's and VMamba's trainers: classes, picture size, and the smoothing of the loss."""
    model, data = values["MODEL"], values.get("DATA")
    stated: dict[str, Any] = {}
    if type(model.get("NUM_CLASSES")) is int and model["NUM_CLASSES"] > 0:
        stated["num_classes"] = model["NUM_CLASSES"]
    if isinstance(data, Mapping) and type(data.get("IMG_SIZE")) is int:
        stated["preprocess.size"] = data["IMG_SIZE"]
    if isinstance(model.get("LABEL_SMOOTHING"), (int, float)):
        stated |= {"loss": "cross_entropy", "label_smoothing": float(model["LABEL_SMOOTHING"])}
    return TrainedAs.stated(stated, source)


def _read_config(path: Path) -> RunFile | None:
    contents = _json(path)
    if not isinstance(contents, dict):
        return None
    if contents.get("model_type") == "clip":
        return _of_transformers(path, contents)
    if isinstance(contents.get("architecture"), str) and isinstance(contents.get("pretrained_cfg"), dict):
        return _of_timm_hub(path, contents)
    return None


def _of_transformers(path: Path, contents: Mapping[str, Any]) -> RunFile:
    """CLIPConfig of transformers; what it leaves out is its default: QuickGELU, and 1e-5 in layer norms."""
    towers = {name: contents.get(f"{name}_config") or {} for name in ("text", "vision")}
    activations = {tower.get("hidden_act", "quick_gelu") for tower in towers.values()}
    stated: dict[str, Any] = {"loss": "clip"}
    doubts = {}
    if activations <= {"quick_gelu"} or activations <= {"gelu"}:
        stated["model_args.force_quick_gelu"] = activations == {"quick_gelu"}
    else:
        doubts["model_args"] = f"{path} says hidden_act {', '.join(sorted(activations))}, which open_clip's towers do not have"
    if any(tower.get("layer_norm_eps", 1e-5) != 1e-5 for tower in towers.values()):
        doubts["model_args"] = f"{path} says a layer_norm_eps other than 1e-05, which open_clip's towers do not have"
    if "image_size" in towers["vision"]:
        stated["model_args.force_image_size"] = towers["vision"]["image_size"]
    trained = TrainedAs.stated(stated, path.name, doubts=doubts)
    pictures = path.with_name("preprocessor_config.json")
    if pictures.is_file():
        trained = trained.joined(_of_image_processor(pictures))
    return RunFile(path, "transformers", None, trained, values=contents)


def _of_image_processor(path: Path) -> TrainedAs:
    """CLIPImageProcessor: the shorter side resized, the middle cut out, then (pixel - mean) / std."""
    contents = _json(path)
    contents = contents if isinstance(contents, dict) else {}
    stated = {f"preprocess.{name}": contents[f"image_{name}"] for name in ("mean", "std") if f"image_{name}" in contents}
    if contents.get("resample") in _PILLOW_FILTERS:
        stated["preprocess.interpolation"] = _PILLOW_FILTERS[contents["resample"]]
    size = contents.get("size")
    if isinstance(size, dict) and "height" in size:
        stated["preprocess.resize_mode"] = "squash"
    return TrainedAs.stated(stated, path.name)


def _of_timm_hub(path: Path, contents: Mapping[str, Any]) -> RunFile:
    """What timm.models.push_to_hf_hub writes: architecture, classes, and the preprocessing of its pictures."""
    pictures = contents["pretrained_cfg"]
    stated: dict[str, Any] = {f"model_args.{name}": value for name, value in (contents.get("model_args") or {}).items()}
    if contents.get("num_classes"):
        stated["num_classes"] = contents["num_classes"]
    if isinstance(pictures.get("input_size"), list):
        stated["preprocess.size"] = pictures["input_size"][-2:]
    known = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
    stated |= {f"preprocess.{name}": pictures[name] for name in known if pictures.get(name)}
    trained = TrainedAs.stated(stated, path.name)
    return RunFile(path, "timm", f"timm:{contents['architecture']}", trained, values=contents)
