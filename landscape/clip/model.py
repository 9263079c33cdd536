"""The models by name: open_clip's and this project's CLIP models, timm's classifiers; what goes into them.

Importing this module registers this project's configurations with open_clip and its towers with timm.
Nothing here touches the network: no pretrained weights, no tokenizer or tower that is fetched from a hub.
"""

import difflib
import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import timm
import torch
from jaxtyping import Float, Int
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn

import landscape.towers  # noqa: F401
from landscape.clip.objectives import contrastive_objective, cross_entropy_objective
from landscape.clip.seeding import seeded_globals
from landscape.errors import ModelError

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

_CONFIGS = Path(__file__).parent / "configs"
OWN_NAMES = tuple(sorted(path.stem for path in _CONFIGS.glob("*.json")))
_TIMM = ("timm:", "timm/")
# The models of arXiv 2404.19394. Their trainers (SLIP and mamba-clip, main.py) normalise with ImageNet's statistics and
# resize as torchvision does by default.
_PUBLISHED = tuple(name for name in OWN_NAMES if name.endswith(("_slip", "_clip")))
_PUBLISHED_PREPROCESSING = {
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bilinear",
}

if not set(OWN_NAMES) <= set(open_clip.list_models()):
    open_clip.add_model_config(_CONFIGS)


@dataclass(frozen=True)
class Preprocessing:
    """From a picture to a model's input, without augmentation.

    Attributes:
        size: (height, width) of the input in pixels.
        mean, std: Per channel, of pixels scaled to [0, 1]; the input is (pixel - mean) / std.
        interpolation: How a picture of another size is resized.
        transform: RGB PIL picture -> normalised float32 tensor (3, h, w).
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    transform: Callable[[Image.Image], Tensor]

    def __call__(self, picture: Any) -> Float[Tensor, "3 h w"]:
        """Transform a PIL picture, or uint8 pixels as numpy (h, w, 3) or as a tensor (3, h, w).

        Raises:
            ValueError: If it is something else.
        """
        pixels = picture.permute(1, 2, 0).cpu().numpy() if isinstance(picture, Tensor) and picture.ndim == 3 else picture
        if isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3:
            pixels = Image.fromarray(np.ascontiguousarray(pixels))
        if not isinstance(pixels, Image.Image):
            shape = tuple(getattr(picture, "shape", ()))
            raise ValueError(
                "Expected a PIL picture, uint8 numpy (h, w, 3) or a uint8 tensor (3, h, w), "
                f"got {type(picture).__name__} {getattr(picture, 'dtype', '')} {shape}."
            )
        return self.transform(pixels.convert("RGB"))


def model_names() -> list[str]:
    """Every name of a CLIP model: this project's first, then open_clip's. A timm classifier is called "timm:NAME"."""
    return [*OWN_NAMES, *(name for name in open_clip.list_models() if name not in OWN_NAMES)]


def build_model(
    name: str,
    *,
    seed: int | None = None,
    num_classes: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """A freshly initialised model in eval mode.

    Args:
        name: One of `model_names()`, or "timm:NAME" (also "timm/NAME") for a timm classifier.
        seed: Fixes the initial weights, the same ones on every device and in every dtype; None draws them anew, for a
            checkpoint to replace. torch's own generator is left as it was either way.
        num_classes: Of a classifier; None means timm's number for it.

    Raises:
        ModelError: If the name is unknown, needs the network, or cannot be built with the installed packages.
        ValueError: If `num_classes` is given for a CLIP model.
    """
    classifier = _classifier_name(name)
    if num_classes is not None and classifier is None:
        raise ValueError(f"{name}: num_classes is for classifiers; a CLIP model has none.")
    config = _config(name) if classifier is None else {}
    try:
        with seeded_globals(secrets.randbits(63) if seed is None else seed), _silent_log():
            if classifier is None:
                model = _create_clip(name)
            else:
                classes: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
                model = timm.create_model(classifier, pretrained=False, **classes)
    # timm and open_clip raise whatever their constructors meet.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{name}: cannot be built with open_clip {open_clip.__version__} and timm {timm.__version__} "
            f"({type(error).__name__}: {reason}). Install what it asks for, or choose another model."
        ) from error
    # contrastive_objective reads from it which loss the model was made for.
    model.landscape_config = config  # type: ignore[assignment]
    return model.to(device=device, dtype=dtype).eval()


def image_size_of(model: str | nn.Module) -> tuple[int, int]:
    """(height, width) in pixels of the pictures that a model takes.

    Raises:
        ModelError: As `preprocess_for`.
    """
    return preprocess_for(model).size


def preprocess_for(model: str | nn.Module) -> Preprocessing:
    """What a model does to a picture before it sees it; by name, the model is not built.

    For a CLIP model that is open_clip's transform for evaluation: the shorter side is resized, the middle cut out. For
    a classifier it is timm's.

    Raises:
        ModelError: If the name is unknown, or the model is neither open_clip's nor timm's.
    """
    if isinstance(model, nn.Module):
        for_clip: Any = getattr(getattr(model, "visual", None), "preprocess_cfg", None)
        for_timm: Any = getattr(model, "pretrained_cfg", None)
        if for_clip is not None:
            return _clip_preprocessing(for_clip)
        if for_timm is not None:
            return _timm_preprocessing(for_timm)
        raise ModelError(
            f"{type(model).__name__}: does not say which pictures it takes, as open_clip's and timm's models do. "
            "Preprocess the pictures yourself."
        )
    classifier = _classifier_name(model)
    if classifier is not None:
        return _timm_preprocessing(vars(timm.get_pretrained_cfg(classifier)))
    size = _config(model)["vision_cfg"].get("image_size", open_clip.CLIPVisionCfg.image_size)
    return _clip_preprocessing({"size": size, **_preprocessing_of(model)})


def tokenizer_for(name: str) -> Tokenizer:
    """Captions -> token ids (b, l) int64, l being the model's context length.

    Raises:
        ModelError: If the model is a classifier, or its vocabulary would have to be fetched from a hub.
    """
    if _classifier_name(name) is not None:
        raise ModelError(f"{name}: is a classifier and reads no captions. Choose a CLIP model, or objective: cross_entropy.")
    config = _config(name)
    if vocabulary := config["text_cfg"].get("hf_tokenizer_name"):
        raise ModelError(
            f"{name}: its vocabulary is {vocabulary!r} on the Hugging Face hub, and nothing is downloaded here. "
            "Tokenise the captions yourself and hand the batches over in Python, or choose another model."
        )
    return open_clip.get_tokenizer(name.replace("/", "-"))


def _classifier_name(name: str) -> str | None:
    """timm's name in "timm:NAME", None for a CLIP model."""
    if not name.startswith(_TIMM):
        return None
    classifier = name[len(_TIMM[0]) :]
    try:
        known = timm.is_model(classifier) and timm.get_pretrained_cfg(classifier) is not None
    # Of a known architecture with a tag that it does not have.
    except RuntimeError:
        known = False
    if not known:
        raise _unknown(name, [f"timm:{candidate}" for candidate in timm.list_models()])
    return classifier


def _config(name: str) -> dict[str, Any]:
    """A CLIP model's configuration, a copy."""
    if name.startswith(("hf-hub:", "local-dir:")):
        raise ModelError(
            f"{name}: a model is built from its name alone, and nothing is downloaded here. Choose one of model_names(), or "
            "register its configuration with open_clip.add_model_config; its weights are a checkpoint."
        )
    config = open_clip.get_model_config(name.replace("/", "-"))
    if config is None:
        raise _unknown(name, model_names())
    if tower := config["text_cfg"].get("hf_model_name"):
        raise ModelError(
            f"{name}: its text tower is {tower!r} on the Hugging Face hub, and nothing is downloaded here. Choose a model with "
            "open_clip's own text tower."
        )
    return config


def _unknown(name: str, known: list[str]) -> ModelError:
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)]
    nearest = f" (nearest: {', '.join(near)})" if near else ""
    return ModelError(
        f"model {name!r} is unknown{nearest}. Give one of {', '.join(OWN_NAMES)}, a name of open_clip.list_models(), or "
        "timm:NAME for a classifier."
    )


def _preprocessing_of(name: str) -> dict[str, Any]:
    """What differs from open_clip's defaults."""
    return _PUBLISHED_PREPROCESSING if name in _PUBLISHED else {}


def _create_clip(name: str) -> nn.Module:
    model = open_clip.create_model(
        name, load_weights=False, pretrained_text=False, force_preprocess_cfg=_preprocessing_of(name)
    )
    if name in _PUBLISHED:
        # SLIP (models.py) and mamba-clip draw the image projection as CLIP does; open_clip leaves timm's head as nn.Linear does.
        projection = model.visual.head.proj.weight
        nn.init.normal_(projection, std=projection.shape[1] ** -0.5)
    return model


def _clip_preprocessing(settings: dict[str, Any]) -> Preprocessing:
    cfg = PreprocessCfg(**settings)
    size = (cfg.size, cfg.size) if isinstance(cfg.size, int) else (cfg.size[0], cfg.size[1])
    transform = image_transform_v2(cfg, is_train=False)
    return Preprocessing(
        size=size, mean=tuple(cfg.mean), std=tuple(cfg.std), interpolation=cfg.interpolation, transform=transform
    )


def _timm_preprocessing(pretrained_cfg: dict[str, Any]) -> Preprocessing:
    settings = timm.data.resolve_data_config(pretrained_cfg=pretrained_cfg)
    return Preprocessing(
        size=settings["input_size"][1:],
        mean=settings["mean"],
        std=settings["std"],
        interpolation=settings["interpolation"],
        transform=timm.data.create_transform(**settings, is_training=False),
    )


@contextmanager
def _silent_log() -> Iterator[None]:
    """open_clip warns at the root logger that no pretrained weights were loaded, which is what was asked for.

    Without any handler, that call would also install one that prints.
    """
    root, nowhere = logging.getLogger(), logging.NullHandler()
    disabled = logging.root.manager.disable
    root.addHandler(nowhere)
    logging.disable(max(disabled, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(disabled)
        root.removeHandler(nowhere)
