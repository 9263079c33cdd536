"""How the model of a series was trained, each value with its source.

Imports no torch.

A checkpoint holds tensors. The function they belong to is described elsewhere: in the manifest, in
what the training program wrote beside its checkpoints, or nowhere; then the model's defaults hold.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from landscape.limits import MAX_CLASSES, MAX_SIDE
from landscape.manifest.setting_error import SettingError, shown
from landscape.suggestions import did_you_mean, nearest

MANIFEST = "manifest"
BY_HAND = (MANIFEST, "the run's manifest")
DEFAULT = "default"
LOSSES = ("clip", "siglip", "cross_entropy")
WEIGHTS = ("online", "ema")
_CHOICES = {"loss": LOSSES, "weights": WEIGHTS}

# Arguments that would fetch, load or place weights, or that have a key of their own.
_RESERVED = {
    "cache_dir",
    "checkpoint_path",
    "device",
    "dtype",
    "force_preprocess_cfg",
    "jit",
    "load_weights",
    "model_name",
    "num_classes",
    "output_dict",
    "precision",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_image",
    "pretrained_image_path",
    "pretrained_text",
    "pretrained_text_path",
    "require_pretrained",
    "weights_only",
}
# Preprocessing settings of open_clip's models, and of timm's.
CLIP_PREPROCESS = ("size", "mean", "std", "interpolation", "resize_mode", "fill_color")
TIMM_PREPROCESS = ("size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
PREPROCESS = tuple(dict.fromkeys((*CLIP_PREPROCESS, *TIMM_PREPROCESS)))
# open_clip's prefix for a model that a folder describes, and the file there that describes it.
LOCAL_DIR, HUB_CONFIG = "local-dir:", "open_clip_config.json"
# Values beside None that leave a model as it is by default. open_clip's `force_...: False` does,
# timm's `qkv_bias: False` does not.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "pretrained": ("",),
    "weights": ("online",),
    "label_smoothing": (0,),
}
_FORCE = "model_args.force_"
# Normalisations apply to pixels from 0 to 1, or from 0 to 255.
_MAX_OF_PIXELS = 1000
# Settings that the checkpoint determines: parameters that it replaces, and shapes that must fit it.
_CHECKED = ("num_classes", "run_model", "model_args.init_logit_bias", "model_args.init_logit_scale")
# Facts that are compared with the model once it is built, by the names of open_clip's
# configuration.
ARCHITECTURE = "architecture"
_PATHS = ("/", "\\", ".pt", ".pth", ".bin", ".safetensors")


@dataclass(frozen=True)
class Setting:
    """A value and its source.

    The source is the name of a file, such as "manifest" or "params.txt", or "default".
    """

    value: Any
    source: str


class Disagreement(ValueError):
    """Two sources state different values of a setting; the message names both."""

    def __init__(self, key: str, first: Setting, second: Setting) -> None:
        values = [f"{_said(setting.value)} in {setting.source}" for setting in (first, second)]
        super().__init__(f"{key} is {values[0]}, but {values[1]}")
        self.key = key


@dataclass(frozen=True)
class TrainedAs:
    """The known facts about a model as it was trained.

    Args:
        settings: By name: `model_args.NAME` (an argument of open_clip.create_model or
            timm.create_model), `preprocess.NAME` (of the pictures), `num_classes`, `loss`,
            `label_smoothing`, `weights`, `pretrained` (the tag of the weights that training began
            with), `config_sha256` (of the architecture's configuration file), `run_model` (the name
            by which the run knows its model), `architecture.KEY` (facts to be compared with the
            model that is built).
        notes: Facts that do not change the function, a sentence each.
        doubts: By setting: why the run's value is not known or not supported, a sentence each. The
            model is not built with doubts, unless the manifest states the setting.
    """

    settings: Mapping[str, Setting] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    doubts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def stated(cls, values: Mapping[str, Any], source: str, **more: Any) -> "TrainedAs":
        """Build a description from plain values of a source."""
        return cls({key: Setting(value, source) for key, value in values.items()}, **more)

    def joined(self, other: "TrainedAs") -> "TrainedAs":
        """Join two descriptions; values of the first settle doubts of the other.

        Raises:
            Disagreement: If they state different values of a setting.
        """
        for key in self.settings:
            if key in other.settings and not _agree(
                key, self.settings[key].value, other.settings[key].value
            ):
                raise Disagreement(key, self.settings[key], other.settings[key])
        settings = {**other.settings, **self.settings}
        everything = {**other.doubts, **self.doubts}
        # Preprocessing has many keys: any key that the user states settles a doubt about it.
        pictures = any(
            key.startswith("preprocess.") and setting.source in BY_HAND
            for key, setting in settings.items()
        )
        settled = {*settings, *(["preprocess"] if pictures else [])}
        doubts = {key: why for key, why in everything.items() if key not in settled}
        return TrainedAs(settings, tuple(dict.fromkeys((*self.notes, *other.notes))), doubts)

    def filled(self, other: "TrainedAs") -> "TrainedAs":
        """Add settings of `other` where only the model's default is stated here."""
        missing = {
            key: setting for key, setting in other.settings.items() if not self.changes_model(key)
        }
        return TrainedAs({**self.settings, **missing}, self.notes, self.doubts)

    def stated_by(self, source: str) -> "TrainedAs":
        """Keep only what a given source states."""
        return TrainedAs(
            {key: setting for key, setting in self.settings.items() if setting.source == source}
        )

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a setting, or `default`."""
        setting = self.settings.get(key)
        return default if setting is None or setting.value is None else setting.value

    def source(self, key: str) -> str:
        """Return the source of a setting, "default" if it is not stated."""
        setting = self.settings.get(key)
        return DEFAULT if setting is None or setting.value is None else setting.source

    def changes_model(self, key: str) -> bool:
        """Tell whether a setting has a value other than the model's own."""
        return key in self.settings and not _is_neutral(key, self.settings[key].value)

    def section(self, name: str) -> dict[str, Any]:
        """Return the values of `name.KEY` by KEY, without defaults."""
        return {
            key.partition(".")[2]: setting.value
            for key, setting in self._meant()
            if key.startswith(f"{name}.")
        }

    def facts(self) -> dict[str, Any]:
        """Return the run's facts about the architecture, by open_clip's dotted names."""
        prefix = f"{ARCHITECTURE}."
        return {
            key.removeprefix(prefix): setting.value
            for key, setting in self.settings.items()
            if key.startswith(prefix)
        }

    def changes(self) -> dict[str, Any]:
        """Return the values that change the function of the same weights.

        They are compared with the default, and returned as JSON values. Not included are the number
        of classes, without which weights do not fit, and values that weights replace.
        """
        ordinary = (("loss", "clip"), ("loss", "cross_entropy"))
        meant = sorted(self._meant(), key=lambda pair: pair[0])
        kept = [
            (key, setting.value)
            for key, setting in meant
            if key not in _CHECKED and (key, setting.value) not in ordinary
        ]
        return {
            key: _plainest(value)
            for key, value in kept
            if not (key == "pretrained" and _is_path(value))
        }

    def _meant(self) -> Iterator[tuple[str, Setting]]:
        facts = f"{ARCHITECTURE}."
        return (
            (key, setting)
            for key, setting in self.settings.items()
            if not _is_neutral(key, setting.value) and not key.startswith(facts)
        )

    def describe(self) -> list[str]:
        """Describe each setting that is not the default.

        With its source; then the notes.
        """
        meant = sorted(self._meant(), key=lambda pair: pair[0])
        lines = [f"{key}: {_said(setting.value)} ({setting.source})" for key, setting in meant]
        return [*lines, *self.notes]


def check_values(values: Mapping[str, Any]) -> None:
    """Refuse invalid values.

    Raises:
        SettingError: If a value is invalid; names the key of the manifest.
    """
    for key, value in values.items():
        section, _, name = key.partition(".")
        if section == "model_args":
            _check_argument(name, value)
        elif section == "preprocess":
            _check_preprocess(name, value)
        elif key == "num_classes" and not 1 <= value <= MAX_CLASSES:
            raise SettingError(
                key, f"num_classes is {value}, but a classifier has 1 to {MAX_CLASSES} classes."
            )
        elif key == "label_smoothing" and not 0 <= value < 1:
            raise SettingError(key, f"label_smoothing is {value}, but it lies from 0 to below 1.")
        elif key in _CHOICES and value not in _CHOICES[key]:
            raise SettingError(
                key,
                f"{key} is {shown(value)}, but it must be one of {', '.join(_CHOICES[key])}."
                f"{did_you_mean(str(value), _CHOICES[key])}",
            )


def _check_argument(name: str, value: Any) -> None:
    if name in _RESERVED:
        hint = (
            "it has a key of its own"
            if name in ("num_classes", "pretrained")
            else "weights come from the checkpoints alone"
        )
        raise SettingError(
            "model_args", f"model_args: {name} cannot be given here: {hint}; remove it."
        )
    if not isinstance(value, (bool, int, float, str, type(None))) and not _is_list_of_plain(value):
        reason = "a text, a number, true, false or a list of these is expected"
        raise SettingError("model_args", f"model_args: {name} is {shown(value)}, but {reason}.")


def _check_preprocess(name: str, value: Any) -> None:
    if name not in PREPROCESS:
        raise SettingError(
            "preprocess",
            f"preprocess: {name} is not known; {nearest(name, PREPROCESS)}",
        )
    values = value if isinstance(value, (list, tuple)) else [value]
    numbers = all(type(item) in (int, float) and abs(item) <= _MAX_OF_PIXELS for item in values)
    sides = all(type(item) is int and 1 <= item <= MAX_SIDE for item in values)
    fits = {
        "size": sides and (values is not value or len(values) == 2),
        "mean": numbers and values is value and len(values) == 3,
        "std": numbers and values is value and len(values) == 3 and min(values) > 0,
        "fill_color": type(value) is int and 0 <= value <= 255,
        "crop_pct": numbers and values is not value and value > 0,
    }.get(name, isinstance(value, str))
    if not fits:
        wanted = {
            "size": f"a number of pixels up to {MAX_SIDE}, or [height, width]",
            "mean": "a list of three numbers",
            "std": "a list of three positive numbers",
            "fill_color": "a whole number from 0 to 255",
            "crop_pct": "a positive number",
        }.get(name, "a text")
        raise SettingError(
            "preprocess", f"preprocess: {name} is {shown(value)}, but {wanted} is expected."
        )


def _is_list_of_plain(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(item, (bool, int, float, str)) for item in value
    )


def _is_neutral(key: str, value: Any) -> bool:
    if value is None or (key.startswith(_FORCE) and value is False):
        return True
    return not isinstance(value, (list, tuple)) and value in _NEUTRAL.get(key, ())


def _is_path(value: Any) -> bool:
    """Tell whether `pretrained` is a file of weights, not a tag.

    A file of weights implies no preprocessing.
    """
    return any(part in str(value) for part in _PATHS)


def _plainest(value: Any) -> Any:
    """Return the common form of equal values.

    Lists for tuples, floats in lists of numbers, 64 for [64, 64].
    """
    if not isinstance(value, (list, tuple)):
        return value
    if len(value) == 2 and value[0] == value[1] and type(value[0]) is int:
        return value[0]
    return [float(item) if type(item) in (int, float) else item for item in value]


def _agree(key: str, first: Any, second: Any) -> bool:
    """Tell whether two values of a setting mean the same.

    Lists equal tuples, and all values are equal that leave the model as it is.
    """
    if _plainest(first) == _plainest(second):
        return True
    return bool(first == second) or (_is_neutral(key, first) and _is_neutral(key, second))


def _said(value: Any) -> str:
    if value is None:
        return "left at the model's own"
    return shown(list(value) if isinstance(value, tuple) else value)


def joined(all_of_them: Iterable[TrainedAs]) -> TrainedAs:
    """Join what several sources state; the first settle doubts of the next.

    Raises:
        Disagreement: If two state different values of a setting.
    """
    result = TrainedAs()
    for trained in all_of_them:
        result = result.joined(trained)
    return result
