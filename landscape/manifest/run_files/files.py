"""Reading of files about a run as text, JSON and YAML.

Every value of these files is checked here.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from landscape.errors import ManifestError
from landscape.files import check_regular
from landscape.manifest.setting_error import SettingError, shown
from landscape.manifest.trained import TrainedAs, check_values

_LARGEST_FILE = 2**20
# Largest number of nodes of a YAML file after its aliases are expanded: a file of 1 kB can expand
# to 2**30 nodes.
_MAX_NODES = 100_000


@dataclass(frozen=True)
class RunFile:
    """A file about a run.

    Attributes:
        program: The program that wrote it.
        model: The architecture that it names, as a manifest would name it; None where it names
            none.
        trained: What it states about the model as it was trained.
        config: The file itself where it describes the architecture; None otherwise.
        values: All its values, for other uses.
    """

    path: Path
    program: str
    model: str | None
    trained: TrainedAs
    config: Path | None = None
    values: Mapping[str, Any] = field(default_factory=dict)


def unreadable(path: Path, reason: object) -> ManifestError:
    """Build the error for a run's file that cannot be understood."""
    return ManifestError(
        f"{path}: cannot be read ({' '.join(str(reason).split())[:200]}), so what the run was is "
        "not known. Restore it, or say `run_files: ignore` for the series and state the settings "
        "in the manifest."
    )


def read_text(path: Path, *, largest: int = _LARGEST_FILE, cut: bool = False) -> str:
    """Read a text file of at most `largest` bytes.

    A larger file is refused, or `cut`.
    """
    try:
        check_regular(path)
        if not cut and path.stat().st_size > largest:
            raise unreadable(path, f"{path.stat().st_size} bytes, at most {largest} are expected")
        with path.open(encoding="utf-8-sig", errors="replace") as stream:
            return stream.read(largest)
    except OSError as error:
        raise unreadable(path, error.strerror or error) from error


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise unreadable(path, error) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping of plain values; do not build Python objects."""
    text = read_text(path)
    try:
        loader = _PlainLoader(text)
        node = loader.get_single_node()
        if node is None:
            return {}
        if _expanded(node, {}) > _MAX_NODES:
            raise unreadable(
                path, f"with its aliases written out it holds more than {_MAX_NODES:,} values"
            )
        values = loader.construct_document(node)
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
    ) as error:
        raise unreadable(path, getattr(error, "problem", None) or error) from error
    return {str(key): value for key, value in values.items()} if isinstance(values, dict) else {}


class _PlainLoader(yaml.SafeLoader):
    """A SafeLoader that reduces an object of any class to its plain parts.

    Lightning writes tags of such objects.
    """

    def plain_parts(self, suffix: str, node: yaml.Node) -> Any:
        """Return the plain content of a tagged node.

        That is the attributes of a Namespace, the items of a tuple, the text of anything else.
        """
        if isinstance(node, yaml.MappingNode):
            return self.construct_mapping(node, deep=True)
        if isinstance(node, yaml.SequenceNode):
            return self.construct_sequence(node, deep=True)
        return str(node.value)[:200]


_PlainLoader.add_multi_constructor("", _PlainLoader.plain_parts)


def _expanded(node: yaml.Node, known: dict[int, int]) -> int:
    """Count the nodes of a document with every alias expanded.

    A node that contains itself counts as more than the limit.
    """
    if id(node) not in known:
        # While its parts are counted, a node counts as more than the limit: only a cycle returns to
        # it.
        known[id(node)] = _MAX_NODES + 1
        parts: Iterable[yaml.Node] = ()
        if isinstance(node, yaml.MappingNode):
            parts = (part for pair in node.value for part in pair)
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        known[id(node)] = 1 + sum(_expanded(part, known) for part in parts)
    return known[id(node)]


def trained_as(
    path: Path,
    source: str,
    stated: Mapping[str, Any],
    *,
    notes: Iterable[str] = (),
    doubts: Mapping[str, str] | None = None,
) -> TrainedAs:
    """Check the values of a file and return what it states.

    Values in doubt are not stated.

    Raises:
        ManifestError: If a value is invalid.
    """
    doubts = doubts or {}
    given = {key: value for key, value in stated.items() if value is not None}
    for key, value in given.items():
        fits, wanted = _shape_of(key)
        if not fits(value):
            raise unreadable(path, f"{key} is {_shown(value)}, but {wanted} is expected")
    try:
        check_values(given)
    except (SettingError, TypeError, ValueError) as error:
        raise unreadable(path, error) from error
    kept = {key: value for key, value in stated.items() if key not in doubts}
    return TrainedAs.stated(kept, source, notes=tuple(notes), doubts=doubts)


def doubt(doubts: dict[str, str], key: str, why: str) -> None:
    """Add a doubt to the existing doubts about a setting."""
    doubts[key] = f"{doubts[key]}; {why}" if key in doubts else why


def flag(path: Path, values: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """Return the value of a switch.

    Raises:
        ManifestError: If it is neither true nor false.
    """
    value = values.get(name)
    if value is not None and not isinstance(value, bool):
        raise unreadable(path, f"{name} is {_shown(value)}, but true or false is expected")
    return default if value is None else value


def mapping(path: Path, values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a part of a file that holds values by name.

    Empty where it is left out.

    Raises:
        ManifestError: If the part is something else.
    """
    value = values.get(name)
    if value is not None and not (
        isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    ):
        raise unreadable(path, f"{name} is {_shown(value)}, but values by name are expected")
    return value or {}


def per_channel(value: Any) -> Any:
    """Expand a number, or a list of one, to the three colours."""
    if is_number(value):
        return [value] * 3
    if isinstance(value, (list, tuple)):
        return list(value) * 3 if len(value) == 1 else list(value)
    return value


def is_number(value: Any) -> bool:
    """Tell whether a value is a finite number."""
    return (type(value) is int and abs(value) < 2**63) or (
        type(value) is float and math.isfinite(value)
    )


def is_count(value: Any) -> bool:
    """Tell whether a value is a whole number from 1."""
    return type(value) is int and 1 <= value < 2**63


def is_size(value: Any) -> bool:
    """Tell whether a value is a number of pixels, or two.

    Two are height and width.
    """
    pair = (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and all(is_count(part) for part in value)
    )
    return is_count(value) or pair


def _shown(value: Any) -> str:
    try:
        return shown(value)
    except ValueError:
        return "a number of too many digits"


_Shape = tuple[Callable[[Any], bool], str]


def _choice(*names: str) -> _Shape:
    return (lambda value: isinstance(value, str) and value in names), f"one of {', '.join(names)}"


_FLAG: _Shape = (lambda value: isinstance(value, bool), "true or false")
_COUNT: _Shape = (is_count, "a whole number from 1")
_SIZE: _Shape = (is_size, "a number of pixels, or [height, width]")
_TEXT: _Shape = (lambda value: isinstance(value, str) and bool(value), "a name")
_POSITIVE: _Shape = (lambda value: is_number(value) and value > 0, "a positive number")
_COLOURS: _Shape = (
    lambda value: (
        isinstance(value, (list, tuple)) and len(value) == 3 and all(map(is_number, value))
    ),
    "a list of three numbers",
)
_SHAPES: dict[str, _Shape] = {
    "model_args.force_quick_gelu": _FLAG,
    "model_args.force_custom_text": _FLAG,
    "model_args.force_image_size": _SIZE,
    "model_args.force_context_length": _COUNT,
    "model_args.bn_eps": _POSITIVE,
    "model_args.global_pool": _TEXT,
    "preprocess.size": _SIZE,
    "preprocess.mean": _COLOURS,
    "preprocess.std": _COLOURS,
    "preprocess.interpolation": _choice(
        "nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"
    ),
    "preprocess.resize_mode": _choice("shortest", "longest", "squash"),
    "preprocess.crop_pct": _POSITIVE,
    "preprocess.crop_mode": _choice("center", "squash", "border"),
    "num_classes": _COUNT,
    "label_smoothing": (
        lambda value: is_number(value) and 0 <= value < 1,
        "a number from 0 to below 1",
    ),
    "pretrained": (lambda value: isinstance(value, str), "the tag of weights"),
    "architecture.quick_gelu": _FLAG,
    "architecture.embed_dim": _COUNT,
    "architecture.vision_cfg.patch_size": _SIZE,
    "architecture.vision_cfg.image_size": _SIZE,
    "architecture.vision_cfg.mlp_ratio": _POSITIVE,
    "architecture.text_cfg.mlp_ratio": _POSITIVE,
}


def _shape_of(key: str) -> _Shape:
    if key.startswith("architecture."):
        return _SHAPES.get(key, _COUNT)
    return _SHAPES.get(key, (_is_plain, "a text, a number, true, false or a list of these"))


def _is_plain(value: Any) -> bool:
    items = value if isinstance(value, (list, tuple)) else [value]
    return all(isinstance(item, (bool, str)) or is_number(item) for item in items)
