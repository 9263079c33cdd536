"""CLIP architectures: open_clip models from a name, a configuration or a hub folder.

Nothing is downloaded. Importing this module registers this project's configurations with open_clip.
"""

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
from torch import nn

from landscape.errors import ModelError
from landscape.files import check_regular
from landscape.limits import MAX_LAYERS
from landscape.manifest.setting_error import shown
from landscape.manifest.trained import CLIP_PREPROCESS, HUB_CONFIG, LOCAL_DIR
from landscape.signals import stopping_later
from landscape.suggestions import close_names

_CONFIGS = Path(__file__).parent / "configs"
OWN_NAMES = tuple(sorted(path.stem for path in _CONFIGS.glob("*.json")))
# The models of arXiv 2404.19394. Their trainers (SLIP and mamba-clip, main.py) normalise with
# ImageNet's statistics and resize as torchvision does by default.
PUBLISHED = tuple(name for name in OWN_NAMES if name.endswith(("_slip", "_clip")))
_PUBLISHED_PREPROCESSING = {
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bilinear",
}
_HUB = "hf-hub:"

if not set(OWN_NAMES) <= set(open_clip.list_models()):
    open_clip.add_model_config(_CONFIGS)


@dataclass(frozen=True)
class Architecture:
    """The configuration of a CLIP model and the preprocessing of its pictures.

    Attributes:
        name: Name for messages; also the name in open_clip's registry where it has one.
        config: open_clip's `model_cfg`, with absolute paths of local towers.
        preprocess: The settings that differ from open_clip's defaults.
        is_registered: Whether open_clip knows the configuration by `name`.
        folder: Folder of the configuration file; None for a registered one.
    """

    name: str
    config: dict[str, Any]
    preprocess: dict[str, Any] = field(default_factory=dict)
    is_registered: bool = True
    folder: Path | None = None

    def with_arguments(self, model_args: Mapping[str, Any]) -> dict[str, Any]:
        """Apply arguments to the configuration as open_clip.create_model does."""
        config = deepcopy(self.config)
        for name, value in model_args.items():
            if name == "force_quick_gelu":
                config["quick_gelu"] = bool(value) or config.get("quick_gelu", False)
            elif name == "force_custom_text":
                config["custom_text"] = bool(value) or config.get("custom_text", False)
            elif name == "force_image_size":
                config["vision_cfg"]["image_size"] = value
            elif name == "force_context_length":
                config["text_cfg"]["context_length"] = value
            elif name == "force_patch_dropout":
                config["vision_cfg"]["patch_dropout"] = value
            else:
                config[name] = value
        return config

    def as_file(self) -> dict[str, Any] | None:
        """Return the contents of the folder's open_clip_config.json.

        None where open_clip knows the architecture by its name.
        """
        return (
            None
            if self.is_registered
            else {"model_cfg": self.config, "preprocess_cfg": self.preprocess}
        )

    @contextmanager
    def schema(self) -> Iterator[str]:
        """Yield a name under which open_clip builds the model and its tokenizer.

        The name is valid within the block.
        """
        if self.is_registered:
            yield self.name
            return
        with _temporary_folder() as folder:
            (folder / HUB_CONFIG).write_text(json.dumps(self.as_file()))
            yield f"{LOCAL_DIR}{folder}"


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Make a temporary folder for the block, then remove it.

    It is removed even if Ctrl-C comes, also while it is made or removed.
    """
    with stopping_later():
        folder = tempfile.TemporaryDirectory(prefix="landscape-")
    try:
        yield Path(folder.name)
    finally:
        with stopping_later():
            folder.cleanup()


def model_names() -> list[str]:
    """List the names of all CLIP models: this project's, then open_clip's.

    A timm classifier is named "timm:NAME" and is not in the list.
    """
    return [*OWN_NAMES, *(name for name in open_clip.list_models() if name not in OWN_NAMES)]


def architecture_of(name: str, *, config: Path | None = None) -> Architecture:
    """Find an architecture.

    Args:
        name: An element of `model_names()`, the path of a configuration (.json), or
            "local-dir:FOLDER" of a hub folder.
        config: A configuration file. It defines the architecture, whatever the name is.

    Raises:
        ModelError: If there is none, or one of its towers would have to be downloaded.
    """
    if config is None and (name.endswith(".json") or name.startswith(LOCAL_DIR)):
        config = Path(name.removeprefix(LOCAL_DIR)).expanduser()
        config = config / HUB_CONFIG if name.startswith(LOCAL_DIR) else config
        name = config.parent.name if config.name == HUB_CONFIG else config.stem
    if config is not None:
        architecture = _of_file(name, config)
    else:
        architecture = _of_name(name)
    if (tower := architecture.config["text_cfg"].get("hf_model_name")) and not Path(tower).is_dir():
        raise ModelError(
            f"{name}: its text tower is {tower!r} on the Hugging Face hub, and nothing is "
            "downloaded here. Save it with transformers' save_pretrained into a folder, and name "
            "that folder as hf_model_name in a configuration of your own."
        )
    return architecture


def check_same_architecture(name: str, config: Path) -> None:
    """Refuse a registered name that differs from the run's own configuration file.

    Raises:
        ModelError: If so; names the first key that differs.
    """
    known = (
        open_clip.get_model_config(name.replace("/", "-"))
        if not name.startswith((_HUB, LOCAL_DIR))
        else None
    )
    if known is None or config.stem == name:
        return
    theirs = _of_file(name, config).config
    for section in ("", "vision_cfg", "text_cfg"):
        ours, other = (
            whole if not section else whole.get(section, {}) for whole in (known, theirs)
        )
        for key in sorted({*ours, *other} - {"vision_cfg", "text_cfg"}):
            if ours.get(key) != other.get(key):
                raise ModelError(
                    f"model {name!r}: {section + '.' if section else ''}{key} is {ours.get(key)!r} "
                    f"in open_clip {open_clip.__version__}, but {other.get(key)!r} in {config}, "
                    f"which describes the run. Write `config: {config.name}` with a name of its "
                    "own, or say `run_files: ignore`."
                )


def _of_name(name: str) -> Architecture:
    if name.startswith(_HUB):
        raise ModelError(
            f"{name}: nothing is downloaded here. Download the folder, and name it: `model: "
            "local-dir:FOLDER`; its weights are a checkpoint."
        )
    config = open_clip.get_model_config(name.replace("/", "-"))
    if config is None:
        raise unknown(name, model_names())
    return Architecture(name, config, _PUBLISHED_PREPROCESSING if name in PUBLISHED else {})


def _of_file(name: str, path: Path) -> Architecture:
    try:
        check_regular(path)
        contents = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        there = (
            sorted(entry.name for entry in path.parent.glob("*.json"))
            if path.parent.is_dir()
            else []
        )
        hint = (
            f" The folder holds {', '.join(there[:3])}: name such a file itself."
            if there
            else " Check the path."
        )
        raise ModelError(
            f"{path}: cannot be read ({error.strerror}), so there is no architecture.{hint}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"{path}: is not JSON ({' '.join(str(error).split())}). Name a configuration of "
            "open_clip."
        ) from error
    hub = (
        contents
        if isinstance(contents, dict) and "model_cfg" in contents
        else {"model_cfg": contents}
    )
    config = hub["model_cfg"]
    if not isinstance(config, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= set(config):
        raise ModelError(
            f"{path}: is no configuration of open_clip: it needs embed_dim, vision_cfg and "
            "text_cfg."
        )
    _check_sections(path, config, hub.get("preprocess_cfg"))
    for key in ("hf_model_name", "hf_tokenizer_name"):
        local = path.parent / str(config["text_cfg"].get(key, "\0"))
        if "\0" not in str(local) and local.is_dir():
            config["text_cfg"][key] = str(local.resolve())
    preprocess = {
        key: value
        for key, value in (hub.get("preprocess_cfg") or {}).items()
        if key in CLIP_PREPROCESS
    }
    return Architecture(name, config, preprocess, is_registered=False, folder=path.parent)


def _check_sections(path: Path, config: Mapping[str, Any], preprocess: Any) -> None:
    """Refuse sections and values of a wrong type.

    open_clip does not check these types.
    """
    sections = {
        "vision_cfg": config["vision_cfg"],
        "text_cfg": config["text_cfg"],
        "preprocess_cfg": preprocess or {},
    }
    for key, value in sections.items():
        if not isinstance(value, dict):
            raise ModelError(
                f"{path}: {key} is {shown(value)}, but a mapping is expected. Correct it."
            )
    for key in ("vision_cfg", "text_cfg"):
        layers = config[key].get("layers", 0)
        counts = layers if isinstance(layers, list) else [layers]
        most = max((count for count in counts if isinstance(count, int)), default=0)
        if most > MAX_LAYERS:
            raise ModelError(
                f"{path}: {key}.layers is {shown(layers)}, but a tower has at most {MAX_LAYERS}. "
                "Correct it."
            )
    for key in ("hf_model_name", "hf_tokenizer_name"):
        value = config["text_cfg"].get(key)
        if not isinstance(value, str | None):
            raise ModelError(
                f"{path}: text_cfg.{key} is {shown(value)}, but a text is expected. Correct it."
            )


def create_clip(
    architecture: Architecture,
    *,
    model_args: Mapping[str, Any],
    preprocess: Mapping[str, Any],
    pretrained: str | None,
) -> nn.Module:
    """Build a CLIP model with random weights.

    Args:
        model_args: Arguments of open_clip.create_model.
        preprocess: Preprocessing of the pictures; replaces the architecture's.
        pretrained: Tag of the weights from which training began. The tag has its own preprocessing.
    """
    if foreign := sorted(set(preprocess) - set(CLIP_PREPROCESS)):
        raise ModelError(
            f"{architecture.name}: preprocess.{foreign[0]} belongs to timm's classifiers; a CLIP "
            f"model has {', '.join(CLIP_PREPROCESS)}."
        )
    of_tag = (
        open_clip.get_pretrained_cfg(architecture.name.replace("/", "-"), pretrained)
        if pretrained
        else {}
    )
    of_tag = {key: value for key, value in of_tag.items() if key in CLIP_PREPROCESS}
    with architecture.schema() as name:
        model = open_clip.create_model(
            name,
            load_weights=False,
            pretrained_text=False,
            force_preprocess_cfg={**architecture.preprocess, **of_tag, **preprocess},
            **model_args,
        )
    if architecture.name in PUBLISHED and architecture.is_registered:
        # SLIP (models.py) and mamba-clip draw the image projection as CLIP does; open_clip keeps
        # nn.Linear's initialisation of timm's head.
        projection = model.visual.head.proj.weight
        nn.init.normal_(projection, std=projection.shape[1] ** -0.5)
    return model


def unknown(name: str, known: list[str]) -> ModelError:
    """Build the error for an unknown name, with the nearest known names."""
    near = close_names(name, known, count=3, cutoff=0.5)
    nearest = f" (nearest: {', '.join(near)})" if near else ""
    return ModelError(
        f"model {name!r} is unknown{nearest}. Give one of {', '.join(OWN_NAMES)}, a name of "
        "open_clip.list_models(), timm:NAME for a classifier, or the path of your own "
        "configuration, such as configs/mine.json."
    )


@contextmanager
def silent_log() -> Iterator[None]:
    """Silence open_clip's warning that no pretrained weights were loaded.

    Random weights are intended here. open_clip warns at the root logger; without any handler, that
    call would also install a handler that prints.
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
