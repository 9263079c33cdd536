"""Models by name, and their preprocessing and tokenizers.

These are open_clip's and this project's CLIP models, and timm's classifiers. Importing this module
registers this project's configurations with open_clip and its towers with timm. Nothing is
downloaded: no pretrained weights, and no tokenizer or tower from a hub.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import timm
import torch
from jaxtyping import Float, Int
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn

import landscape.towers  # noqa: F401
from landscape.clip.architecture import (
    OWN_NAMES,
    Architecture,
    architecture_of,
    create_clip,
    model_names,
    silent_log,
    unknown,
)
from landscape.clip.meta_model import convert_around_meta, parameters_on_meta
from landscape.clip.objectives import contrastive_objective, cross_entropy_objective
from landscape.clip.seeding import seeded_globals
from landscape.curvature.hvp.memory import MemoryWatch, free_memory, is_out_of_memory
from landscape.errors import ModelError
from landscape.manifest.trained import TIMM_PREPROCESS

__all__ = [
    "OWN_NAMES",
    "Preprocessing",
    "build_model",
    "contrastive_objective",
    "cross_entropy_objective",
    "image_size_of",
    "model_names",
    "preprocess_for",
    "tokenizer_for",
]

Tokenizer = Callable[[str | Sequence[str]], Int[Tensor, "b l"]]

_TIMM = ("timm:", "timm/")


@dataclass(frozen=True)
class Preprocessing:
    """The steps from a picture to a model's input, without augmentation.

    Attributes:
        size: (height, width) of the input in pixels.
        mean, std: Statistics per channel, of pixels scaled to [0, 1]; the input is (pixel - mean) /
            std.
        interpolation: How a picture of another size is resized.
        transform: RGB PIL picture -> normalised float32 tensor (3, h, w).
        fitting: How a picture of another shape is made to fit: `resize_mode` and `fill_color`
            (open_clip), `crop_pct` and `crop_mode` (timm).
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    transform: Callable[[Image.Image], Tensor]
    fitting: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, picture: Any) -> Float[Tensor, "3 h w"]:
        """Transform a picture to the model's input.

        Args:
            picture: A PIL picture, or uint8 pixels as numpy (h, w, 3) or as a tensor (3, h, w).

        Raises:
            ValueError: If it is something else.
        """
        pixels = (
            picture.permute(1, 2, 0).cpu().numpy()
            if isinstance(picture, Tensor) and picture.ndim == 3
            else picture
        )
        if (
            isinstance(pixels, np.ndarray)
            and pixels.dtype == np.uint8
            and pixels.ndim == 3
            and pixels.shape[2] == 3
        ):
            pixels = Image.fromarray(np.ascontiguousarray(pixels))
        if not isinstance(pixels, Image.Image):
            shape = tuple(getattr(picture, "shape", ()))
            raise ValueError(
                "Expected a PIL picture, uint8 numpy (h, w, 3) or a uint8 tensor (3, h, w), "
                f"got {type(picture).__name__} {getattr(picture, 'dtype', '')} {shape}."
            )
        return self.transform(pixels.convert("RGB"))


def build_model(
    name: str,
    *,
    seed: int | None = None,
    num_classes: int | None = None,
    config: Path | None = None,
    model_args: Mapping[str, Any] | None = None,
    preprocess: Mapping[str, Any] | None = None,
    pretrained: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    max_bytes: int | None = None,
    on_meta: bool = False,
) -> nn.Module:
    """Build a model with new weights, in eval mode.

    Args:
        name: An element of `model_names()`, "timm:NAME" (also "timm/NAME") for a timm classifier,
            the path of an open_clip configuration (.json), or "local-dir:FOLDER" of a hub folder.
        seed: Seed of the initial weights, which are the same on every device and in every dtype.
            None draws them anew, for a checkpoint to replace. The state of torch's own generator is
            restored either way.
        num_classes: Number of a classifier's classes; None means timm's number for it.
        config: A configuration file instead of the one that open_clip knows by `name`.
        model_args: Arguments of open_clip.create_model (`force_quick_gelu`, `force_image_size`,
            ...) or timm.create_model.
        preprocess: Changes to the model's own preprocessing: `mean`, `std`, `interpolation`,
            `size`, and `resize_mode`, `fill_color` (CLIP) or `crop_pct`, `crop_mode` (timm).
        pretrained: Tag of the open_clip weights from which training began. No weights are loaded,
            but their preprocessing is used.
        max_bytes: Limit of the memory that its tensors may take while it is built, in float32; by
            default the free memory.
        on_meta: Build it with parameters on the meta device, which have no numbers, and real
            buffers.

    Raises:
        ModelError: If the name is unknown, needs the network, or cannot be built with the installed
            packages.
        ValueError: If `num_classes` is given for a CLIP model.
    """
    classifier = _classifier_name(name) if config is None else None
    if num_classes is not None and classifier is None:
        raise ValueError(f"{name}: num_classes is for classifiers; a CLIP model has none.")
    architecture = architecture_of(name, config=config) if classifier is None else None
    model_args, preprocess = dict(model_args or {}), dict(preprocess or {})
    limit = free_memory(torch.device("cpu")) if max_bytes is None else max_bytes
    section = parameters_on_meta() if on_meta else nullcontext()
    try:
        with (
            seeded_globals(secrets.randbits(63) if seed is None else seed),
            silent_log(),
            MemoryWatch(limit),
            section,
        ):
            if classifier is not None:
                classes: dict[str, Any] = (
                    {} if num_classes is None else {"num_classes": num_classes}
                )
                model = timm.create_model(classifier, pretrained=False, **classes, **model_args)
            else:
                assert architecture is not None
                model = create_clip(
                    architecture,
                    model_args=model_args,
                    preprocess=preprocess,
                    pretrained=pretrained,
                )
    except ModelError:
        raise
    # timm's and open_clip's constructors raise errors of any type.
    except Exception as error:
        raise _not_built(name, model_args, error, limited=max_bytes is not None) from error
    # contrastive_objective reads in it which loss the model was made for; preprocess_for and
    # tokenizer_for read the rest.
    model.landscape_config = {} if architecture is None else architecture.with_arguments(model_args)  # type: ignore[assignment]
    model.landscape_architecture = architecture  # type: ignore[assignment]
    model.landscape_preprocess = preprocess  # type: ignore[assignment]
    if on_meta:
        return convert_around_meta(model, dtype=dtype, device=device).eval()
    return model.to(device=device, dtype=dtype).eval()


def _not_built(
    name: str, model_args: Mapping[str, Any], error: Exception, *, limited: bool
) -> ModelError:
    """Explain why the constructor of a model failed."""
    reason = " ".join(str(error).split())[:200]
    if is_out_of_memory(error):
        whose = "what its checkpoint can fill" if limited else "the memory that is free"
        return ModelError(
            f"{name}: is larger than {whose} ({reason}). Check widths, sizes and numbers of "
            "classes in its configuration and in model_args."
        )
    given = f" with {dict(model_args)}" if model_args else ""
    return ModelError(
        f"{name}: cannot be built{given} by open_clip {open_clip.__version__} and timm "
        f"{timm.__version__} ({type(error).__name__}: {reason}). Install what it asks for, correct "
        "model_args, or choose another model."
    )


def image_size_of(model: str | nn.Module) -> tuple[int, int]:
    """Return (height, width) in pixels of a model's input pictures.

    Raises:
        ModelError: As `preprocess_for`.
    """
    return preprocess_for(model).size


def preprocess_for(model: str | nn.Module) -> Preprocessing:
    """Return the preprocessing that a model applies to its pictures.

    For a CLIP model that is open_clip's transform for evaluation: the shorter side is resized, the
    middle cut out. For a classifier it is timm's. Preprocessing that was given to `build_model`
    replaces them. A model that is given by its name is not built.

    Raises:
        ModelError: If the name is unknown, or the model is neither open_clip's nor timm's.
    """
    if isinstance(model, nn.Module):
        for_clip: Any = getattr(getattr(model, "visual", None), "preprocess_cfg", None)
        for_timm: Any = getattr(model, "pretrained_cfg", None)
        if for_clip is not None:
            return _clip_preprocessing(for_clip)
        if for_timm is not None:
            return _timm_preprocessing(for_timm, getattr(model, "landscape_preprocess", {}))
        raise ModelError(
            f"{type(model).__name__}: does not say which pictures it takes, as open_clip's and "
            "timm's models do. Preprocess the pictures yourself."
        )
    classifier = _classifier_name(model)
    if classifier is not None:
        return _timm_preprocessing(vars(timm.get_pretrained_cfg(classifier)), {})
    architecture = architecture_of(model)
    size = architecture.config["vision_cfg"].get("image_size", open_clip.CLIPVisionCfg.image_size)
    return _clip_preprocessing({"size": size, **architecture.preprocess})


def tokenizer_for(model: str | nn.Module) -> Tokenizer:
    """Make a model's tokenizer: captions -> token ids (b, l) int64.

    l is the model's context length.

    Args:
        model: A name, as for `build_model`, or a model that it built, whose own context length then
            counts.

    Raises:
        ModelError: If the model is a classifier, or its vocabulary would have to be downloaded from
            a hub.
    """
    if isinstance(model, nn.Module):
        architecture: Architecture | None = getattr(model, "landscape_architecture", None)
        name = type(model).__name__ if architecture is None else architecture.name
        config: dict[str, Any] = getattr(model, "landscape_config", {})
    else:
        name = model
        architecture = None if _classifier_name(model) is not None else architecture_of(model)
        config = {} if architecture is None else architecture.config
    if architecture is None:
        raise ModelError(
            f"{name}: is a classifier and reads no captions. Choose a CLIP model, or objective: "
            "cross_entropy."
        )
    vocabulary = config["text_cfg"].get("hf_tokenizer_name")
    # A hub folder holds its own tokenizer, whatever its name on the hub is.
    if (
        vocabulary
        and architecture.folder is not None
        and (architecture.folder / "tokenizer_config.json").is_file()
    ):
        vocabulary = str(architecture.folder)
    if vocabulary and not Path(vocabulary).is_dir():
        raise ModelError(
            f"{name}: its vocabulary is {vocabulary!r} on the Hugging Face hub, and nothing is "
            "downloaded here. Save it with transformers' save_pretrained into a folder, and name "
            "that as hf_tokenizer_name in a configuration of your own."
        )
    length = config["text_cfg"].get("context_length", open_clip.CLIPTextCfg.context_length)
    try:
        if vocabulary and architecture.folder is not None:
            # open_clip.get_tokenizer reads only the folder of the configuration, not the folder
            # that hf_tokenizer_name gives.
            text = config["text_cfg"]
            options = {
                "tokenizer_mode": text.get("tokenizer_mode"),
                **text.get("tokenizer_kwargs", {}),
            }
            with silent_log():
                return HFTokenizer(vocabulary, context_length=length, **options)
        with silent_log(), architecture.schema() as schema:
            registered = schema.replace("/", "-") if architecture.is_registered else schema
            return open_clip.get_tokenizer(registered, context_length=length)
    # transformers, where it is needed, raises errors of any type for a bad folder.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{name}: its tokenizer cannot be made ({type(error).__name__}: {reason}). Install "
            "what it asks for, or correct hf_tokenizer_name in its configuration."
        ) from error


def is_classifier(name: str) -> bool:
    """Tell whether a name is that of a timm classifier."""
    return name.startswith(_TIMM)


def _classifier_name(name: str) -> str | None:
    """Return timm's name in "timm:NAME"; None for a CLIP model.

    Raises:
        ModelError: If timm has no model of this name.
    """
    if not is_classifier(name):
        return None
    classifier = name[len(_TIMM[0]) :]
    try:
        known = timm.is_model(classifier) and timm.get_pretrained_cfg(classifier) is not None
    # Raised for a known architecture with an unknown tag.
    except RuntimeError:
        known = False
    if not known:
        raise unknown(name, [f"timm:{candidate}" for candidate in timm.list_models()])
    return classifier


def _clip_preprocessing(settings: dict[str, Any]) -> Preprocessing:
    known = {
        key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()
    }
    cfg = PreprocessCfg(**known)
    size = (cfg.size, cfg.size) if isinstance(cfg.size, int) else (cfg.size[0], cfg.size[1])
    return Preprocessing(
        size=size,
        mean=tuple(cfg.mean),
        std=tuple(cfg.std),
        interpolation=cfg.interpolation,
        transform=image_transform_v2(cfg, is_train=False),
        fitting={"resize_mode": cfg.resize_mode, "fill_color": cfg.fill_color},
    )


def _timm_preprocessing(
    pretrained_cfg: dict[str, Any], changed: Mapping[str, Any]
) -> Preprocessing:
    if foreign := sorted(set(changed) - set(TIMM_PREPROCESS)):
        raise ModelError(
            f"preprocess.{foreign[0]} belongs to CLIP models; a timm classifier has "
            f"{', '.join(TIMM_PREPROCESS)}."
        )
    arguments = {
        name: value for name, value in changed.items() if name != "size" and value is not None
    }
    if (size := changed.get("size")) is not None:
        arguments["input_size"] = (3, size, size) if isinstance(size, int) else (3, *size)
    settings = timm.data.resolve_data_config(arguments, pretrained_cfg=pretrained_cfg)
    return Preprocessing(
        size=settings["input_size"][1:],
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        interpolation=settings["interpolation"],
        transform=timm.data.create_transform(**settings, is_training=False),
        fitting={"crop_pct": settings["crop_pct"], "crop_mode": settings["crop_mode"]},
    )
