"""CLIPConfig of transformers in config.json, and its image processor."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from landscape.manifest.run_files.files import (
    RunFile,
    doubt,
    flag,
    is_count,
    is_number,
    is_size,
    mapping,
    per_channel,
    read_json,
    trained_as,
    unreadable,
)
from landscape.manifest.setting_error import shown

# Defaults of CLIPTextConfig, CLIPVisionConfig and CLIPConfig in transformers 5.24: a file may leave
# them out.
_TOWER = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_hidden_layers": 12}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "text": {
        **_TOWER,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
        "vocab_size": 49408,
        "eos_token_id": 49407,
    },
    "vision": {
        **_TOWER,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 32,
        "num_channels": 3,
    },
}
_EMBED_DIM = 512
_COUNTS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# Defaults of CLIPImageProcessor. Mean and standard deviation are also open_clip's defaults.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_PROCESSOR: dict[str, Any] = {
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "do_normalize": True,
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "resample": 3,
    "rescale_factor": 1 / 255,
}
_PROCESSORS = (
    "CLIPImageProcessor",
    "CLIPImageProcessorFast",
    "CLIPImageProcessorPil",
    "CLIPFeatureExtractor",
)
# Pillow's filters that open_clip has. For transformers, null means bilinear.
_FILTERS = {
    2: "bilinear",
    3: "bicubic",
    None: "bilinear",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
}
_SAY = "say in `preprocess: {...}` what its pictures went through"


def of_clip_config(path: Path, contents: Mapping[str, Any]) -> RunFile:
    """Read CLIPConfig: architecture, activation, and size of pictures.

    Raises:
        ManifestError: If a value is invalid.
    """
    text, vision = (_tower(path, contents, name) for name in ("text", "vision"))
    stated: dict[str, Any] = {
        "loss": "clip",
        "model_args.force_image_size": _plain_size(vision["image_size"]),
    }
    stated |= _facts(text, vision)
    embed_dim = contents.get("projection_dim")
    stated["architecture.embed_dim"] = _EMBED_DIM if embed_dim is None else embed_dim
    doubts: dict[str, str] = {}
    activations = sorted({text["hidden_act"], vision["hidden_act"]})
    if activations == ["quick_gelu"]:
        stated |= {"model_args.force_quick_gelu": True, "architecture.quick_gelu": True}
    elif activations == ["gelu"]:
        stated["architecture.quick_gelu"] = False
    else:
        doubt(
            doubts,
            "model_args",
            f"{path} says hidden_act {', '.join(activations)}, which open_clip's towers do not "
            "have",
        )
    if any(tower["layer_norm_eps"] != 1e-5 for tower in (text, vision)):
        doubt(
            doubts,
            "model_args",
            f"{path} says a layer_norm_eps other than 1e-05, which open_clip's towers do not have",
        )
    if vision["num_channels"] != 3:
        doubt(
            doubts,
            "model_args",
            f"{path} says num_channels {vision['num_channels']}, but pictures of three are read "
            "here",
        )
    # 2 stands for the rule of old files, the token of the largest number, which is also open_clip's
    # rule.
    if text["eos_token_id"] not in (2, text["vocab_size"] - 1):
        end = f"{path} says eos_token_id {shown(text['eos_token_id'])}"
        doubt(
            doubts,
            "model_args",
            f"{end}, but open_clip's text tower ends at the token of the largest number",
        )
    pictures, more = _pictures(path, vision["image_size"])
    for key, why in more.items():
        doubt(doubts, key, why)
    trained = trained_as(path, path.name, stated, doubts=doubts)
    if pictures:
        source, settings = pictures
        trained = trained.joined(trained_as(path.with_name(source), source, settings))
    return RunFile(path, "transformers", None, trained, values=contents)


def _tower(path: Path, contents: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Read the configuration of a tower.

    `..._config_dict` of old files replaces it, as in CLIPConfig.
    """
    given = mapping(path, contents, f"{name}_config_dict") or mapping(
        path, contents, f"{name}_config"
    )
    tower = {key: given.get(key, default) for key, default in _DEFAULTS[name].items()}
    where = f"{name}_config"
    for key in _COUNTS:
        if not is_count(tower[key]):
            raise unreadable(
                path, f"{where}.{key} is {shown(tower[key])}, but a whole number from 1 is expected"
            )
    if tower["hidden_size"] % tower["num_attention_heads"]:
        heads = tower["num_attention_heads"]
        raise unreadable(
            path, f"{where}.hidden_size is {tower['hidden_size']}, which {heads} heads cannot share"
        )
    if not isinstance(tower["hidden_act"], str):
        raise unreadable(
            path, f"{where}.hidden_act is {shown(tower['hidden_act'])}, but a name is expected"
        )
    for key in ("vocab_size", "max_position_embeddings"):
        if key in tower and not is_count(tower[key]):
            raise unreadable(
                path, f"{where}.{key} is {shown(tower[key])}, but a whole number from 1 is expected"
            )
    for key in ("image_size", "patch_size"):
        if key in tower and not is_size(tower[key]):
            raise unreadable(
                path, f"{where}.{key} is {shown(tower[key])}, but a number of pixels is expected"
            )
    return tower


def _facts(text: Mapping[str, Any], vision: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration under open_clip's names."""
    facts = {
        "text_cfg.heads": text["num_attention_heads"],
        "text_cfg.context_length": text["max_position_embeddings"],
        "text_cfg.vocab_size": text["vocab_size"],
        "vision_cfg.head_width": vision["hidden_size"] // vision["num_attention_heads"],
        "vision_cfg.patch_size": _plain_size(vision["patch_size"]),
        "vision_cfg.image_size": _plain_size(vision["image_size"]),
    }
    for name, tower in (("text_cfg", text), ("vision_cfg", vision)):
        facts |= {
            f"{name}.layers": tower["num_hidden_layers"],
            f"{name}.width": tower["hidden_size"],
        }
        # open_clip's files round it to four places, such as 4.9231; a wrong width would not fit the
        # tensors.
        ratio = tower["intermediate_size"] / tower["hidden_size"]
        if round(ratio, 4) == ratio:
            facts[f"{name}.mlp_ratio"] = ratio
    return {f"architecture.{key}": value for key, value in facts.items()}


def _plain_size(size: Any) -> Any:
    """Reduce the size of a square to a single number."""
    return size[0] if isinstance(size, (list, tuple)) and size[0] == size[1] else size


def _pictures(
    path: Path, image_size: Any
) -> tuple[tuple[str, dict[str, Any]] | None, dict[str, str]]:
    """Read the image processor: its file name, settings, and doubts.

    transformers 5 stores it inside processor_config.json, earlier versions in a separate file.
    Where both exist, 5 reads the former and earlier ones the latter.
    """
    read: list[tuple[str, dict[str, Any], dict[str, str]]] = []
    for name in ("processor_config.json", "preprocessor_config.json"):
        beside = path.with_name(name)
        if not beside.is_file():
            continue
        contents = read_json(beside)
        if not isinstance(contents, dict):
            raise unreadable(beside, "values by name are expected")
        if name == "processor_config.json":
            contents = mapping(beside, contents, "image_processor")
        if contents:
            read.append((name, *_of_image_processor(beside, contents, image_size)))
    if len(read) == 2 and read[0][1] != read[1][1]:
        why = (
            f"{path.parent}: {read[0][0]} and {read[1][0]} say different preprocessing, and "
            "versions of transformers read "
        )
        return None, {"preprocess": f"{why}one or the other; {_SAY}"}
    return ((read[0][0], read[0][1]), read[0][2]) if read else (None, {})


def _of_image_processor(
    path: Path, given: Mapping[str, Any], image_size: Any
) -> tuple[dict[str, Any], dict[str, str]]:
    """Read the settings of a CLIPImageProcessor, and doubts about them.

    It resizes the shorter side, crops the centre, then computes (pixel * factor - mean) / std.
    """
    settings = {**_PROCESSOR, **given}
    doubts: dict[str, str] = {}
    stated = _normalisation(path, settings, doubts)
    kind = given.get("image_processor_type") or given.get("feature_extractor_type")
    if kind is not None and kind not in _PROCESSORS:
        doubt(doubts, "preprocess", f"{path} is of a {shown(kind)}, which is not CLIP's; {_SAY}")
    resample = settings["resample"]
    if isinstance(resample, (int, str, type(None))) and resample in _FILTERS:
        if "resample" in given:
            stated["preprocess.interpolation"] = _FILTERS[resample]
    else:
        doubt(
            doubts,
            "preprocess",
            f"{path} says resample: {shown(resample)}, a filter that open_clip does not have; "
            f"{_SAY}",
        )
    unlike = _unlike_open_clip(path, settings, image_size, stated)
    if unlike:
        doubt(doubts, "preprocess", f"{path} says {unlike}; {_SAY}")
    return stated, doubts


def _normalisation(
    path: Path, settings: Mapping[str, Any], doubts: dict[str, str]
) -> dict[str, Any]:
    """Return mean and standard deviation of pictures scaled to [0, 1].

    The processor computes (p f - m) / s for a pixel p from 0 to 255. With x = p / 255 this is (x -
    m / (255 f)) / (s / (255 f)).
    """
    stated: dict[str, Any] = {}
    for name in ("mean", "std"):
        if settings.get(f"image_{name}") is not None:
            stated[f"preprocess.{name}"] = per_channel(settings[f"image_{name}"])
    if not flag(path, settings, "do_normalize", True):
        stated = {"preprocess.mean": [0.0] * 3, "preprocess.std": [1.0] * 3}
    if not flag(path, settings, "do_rescale", True):
        doubt(
            doubts,
            "preprocess",
            f"{path} says do_rescale: false, so the pictures' range is not known; {_SAY}",
        )
        return stated
    factor = settings["rescale_factor"]
    if not is_number(factor) or factor <= 0:
        raise unreadable(
            path, f"rescale_factor is {shown(factor)}, but a positive number is expected"
        )
    if abs(255 * factor - 1) > 1e-6:
        trained_as(path, path.name, stated)
        mean, std = stated.get("preprocess.mean", _MEAN), stated.get("preprocess.std", _STD)
        stated["preprocess.mean"] = [value / (255 * factor) for value in mean]
        stated["preprocess.std"] = [value / (255 * factor) for value in std]
    return stated


def _unlike_open_clip(
    path: Path, settings: Mapping[str, Any], image_size: Any, stated: dict[str, Any]
) -> str:
    """Describe where resizing differs from open_clip; empty if it does not.

    States `resize_mode` where open_clip can do the same.
    """
    if not flag(path, settings, "do_resize", True):
        return "do_resize: false"
    if flag(path, settings, "do_pad"):
        return "do_pad: true"
    model = [image_size] * 2 if isinstance(image_size, int) else list(image_size)
    crops = flag(path, settings, "do_center_crop", True)
    crop = _edges(path, "crop_size", settings["crop_size"]) if crops else {}
    size = _edges(path, "size", settings["size"])
    if crops and set(crop) == {"shortest_edge"}:
        crop = {"height": crop["shortest_edge"], "width": crop["shortest_edge"]}
    if set(size) == {"height", "width"}:
        if [size["height"], size["width"]] != model or (crops and crop != size):
            return (
                f"size: {shown(size)} and crop_size: {shown(crop or None)} for a model of "
                f"{model[0]}x{model[1]}"
            )
        stated["preprocess.resize_mode"] = "squash"
        return ""
    if set(size) != {"shortest_edge"}:
        return f"size: {shown(size)}"
    if not crops:
        return "do_center_crop: false, and pictures of every shape"
    if [crop.get("height"), crop.get("width")] != model or [size["shortest_edge"]] * 2 != model:
        return (
            f"size: {shown(size)} and crop_size: {shown(crop)} for a model of {model[0]}x{model[1]}"
        )
    return ""


def _edges(path: Path, name: str, size: Any) -> dict[str, int]:
    """Return a size by name; a number means the shorter side."""
    edges = {"shortest_edge": size} if is_count(size) else size
    if isinstance(size, (list, tuple)) and is_size(size):
        edges = {"height": size[0], "width": size[1]}
    if not isinstance(edges, Mapping):
        raise unreadable(path, f"{name} is {shown(size)}, but a number of pixels is expected")
    given = {key: value for key, value in edges.items() if value is not None}
    if not given or not all(is_count(value) for value in given.values()):
        raise unreadable(path, f"{name} is {shown(size)}, but numbers of pixels are expected")
    return given
