"""Class names and prompts, each from the first of these sources that has them.

1. Files beside the data: `classnames.txt` and `zeroshot_classification_templates.txt`, as
   clip-benchmark writes them.
2. open_clip, for ImageNet: 1000 names and the 7 prompts of the paper.
3. SLIP's two files (`labels.json`, `templates.json`), where the user names their folder: the
   paper's own protocol.
4. The package data of clip-benchmark where it is installed; read as data, never imported.
5. The project's table (`landscape.datasets.suite`); then the data themselves (class names, folder
   names), with the table's prompts or "a photo of a {}."

Names and prompts may come from different sources. In clip-benchmark's shards, where the names
beside the data are the writer's, SLIP's take precedence if the user gives them.
"""

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landscape.datasets.classes import GENERIC_TEMPLATE
from landscape.datasets.labelled import RawPictures
from landscape.datasets.names import compact, readable
from landscape.datasets.suite import KnownSet
from landscape.errors import DataError, MissingDependencyError

SLIP_FILES = "SLIP files"
NOT_THE_PAPERS = "not the paper's prompts"
# The first digits of the sha256 of SLIP's files at commit c6faf5d.
_SLIP_DIGESTS = {"labels": "c168feec", "templates": "ccc78041"}
# clip-benchmark's prompts equal SLIP's but for these sets (and ImageNet's, which open_clip gives).
_OTHER_PROMPTS = ("resisc45", "patch_camelyon", "clevr_counts")
# Sets whose names in the project's table differ from SLIP's.
_OWN_WORDS = ("gtsrb", "country211")
_MAX_BYTES = 2**24


@dataclass(frozen=True)
class Found:
    """The names or prompts of a source.

    Attributes:
        content: Synonyms of each class, or templates.
        listed: Whether names come in the order of the set's published lists, so that `KnownSet.ids`
            belong to them in order.
        own: Whether name i belongs to label i of the data by definition, so that nothing is to be
            matched.
        notes: What differs from the paper.
    """

    content: tuple[Any, ...]
    source: str
    listed: bool = False
    own: bool = False
    notes: tuple[str, ...] = ()


def find_names(known: KnownSet | None, raw: RawPictures, slip: Path | None) -> Found:
    """Find the names of the classes of a set.

    Raises:
        DataError: If a source is there and cannot be read.
    """
    choices: list[Callable[[], Found | None]] = [lambda: _names_beside(raw)]
    if known is not None:
        others: list[Callable[[], Found | None]] = [
            lambda: _open_clip_names(known),
            lambda: _slip(known, slip, "labels"),
            lambda: _clip_benchmark(known, "en_classnames.json"),
            lambda: _table_names(known),
            lambda: _flower_names(known),
        ]
        # In shards, classnames.txt gives the meaning of the integers; the user asks for the paper's
        # words explicitly.
        choices = [others[1], *choices, *others] if raw.numbered else [*choices, *others]
    for choice in choices:
        if (source_content := choice()) is not None:
            return source_content
    named = tuple(
        label.replace("_", " ") if raw.classes_are_named else readable(label)
        for label in raw.classes
    )
    named = tuple(_spoken(known, name) for name in named)
    source = "the data set's class names" if raw.classes_are_named else "folder names"
    papers = known is not None and not known.identifier.startswith("openmoji/")
    notes = (f"The class names are {source}; the paper's spelling may differ.",) if papers else ()
    return Found(tuple((name,) for name in named), source, own=True, notes=notes)


def find_templates(known: KnownSet | None, raw: RawPictures, slip: Path | None) -> Found:
    """Find the prompts of a set.

    Raises:
        DataError: If a source is there and cannot be read.
    """
    choices: list[Callable[[], Found | None]] = [lambda: _templates_beside(raw)]
    if known is not None:
        others: list[Callable[[], Found | None]] = [
            lambda: _open_clip_templates(known),
            lambda: _slip(known, slip, "templates"),
            lambda: _clip_benchmark(known, "en_zeroshot_classification_templates.json"),
            lambda: Found(known.templates, "this project's table") if known.templates else None,
        ]
        choices = [others[1], *choices, *others] if raw.numbered else [*choices, *others]
    for choice in choices:
        if (source_content := choice()) is not None:
            return source_content
    note = f'The prompt is the general "{GENERIC_TEMPLATE}"' + (
        f", {NOT_THE_PAPERS}." if known is not None else ", a guess."
    )
    return Found((GENERIC_TEMPLATE,), "this project's default", notes=(note,))


def class_ids(known: KnownSet) -> tuple[tuple[str, ...], ...]:
    """List the numbers or codes of each class, in published order.

    ImageNet's are read from timm's package data.

    Raises:
        MissingDependencyError: If that file is not there.
    """
    if known.identifier != "imagenet":
        return known.ids
    path = _package_file("timm", "data/_info/imagenet_synsets.txt")
    if path is None:
        raise MissingDependencyError(
            "imagenet: timm's list of WordNet ids is not there, so folders have no class. Install "
            "timm>=1.0."
        )
    return tuple((wnid,) for wnid in path.read_text().split())


def _spoken(known: KnownSet | None, name: str) -> str:
    """Return the words of the prompts for a name.

    A name without known words is returned unchanged.
    """
    for group in known.same if known is not None else ():
        if compact(name) in {compact(spelling) for spelling in group}:
            return group[0]
    return name


def _names_beside(raw: RawPictures) -> Found | None:
    return (
        None
        if raw.names is None
        else Found(tuple((name,) for name in raw.names), raw.names_file, own=raw.numbered)
    )


def _templates_beside(raw: RawPictures) -> Found | None:
    return None if raw.templates is None else Found(raw.templates, raw.templates_file)


def _open_clip_names(known: KnownSet) -> Found | None:
    if known.identifier != "imagenet":
        return None
    from open_clip import IMAGENET_CLASSNAMES

    return Found(tuple((name,) for name in IMAGENET_CLASSNAMES), "open_clip", listed=True)


def _open_clip_templates(known: KnownSet) -> Found | None:
    if known.identifier != "imagenet":
        return None
    from open_clip import SIMPLE_IMAGENET_TEMPLATES

    return Found(
        tuple(template("{}") for template in SIMPLE_IMAGENET_TEMPLATES),
        "open_clip, the 7 templates",
    )


def _table_names(known: KnownSet) -> Found | None:
    if not known.names:
        return None
    notes = (
        ("The class names are this project's words, not the paper's.",)
        if known.identifier in _OWN_WORDS
        else ()
    )
    return Found(known.names, "this project's table", listed=True, notes=notes)


def _flower_names(known: KnownSet) -> Found | None:
    if known.identifier != "flowers":
        return None
    from torchvision.datasets import Flowers102

    names = getattr(Flowers102, "classes", None)
    return (
        None
        if names is None
        else Found(tuple((_spoken(known, name),) for name in names), "torchvision", listed=True)
    )


def _slip(known: KnownSet, folder: Path | None, kind: str) -> Found | None:
    if folder is None or known.identifier.startswith("openmoji/"):
        return None
    paths = [folder / f"{kind}.json", folder / f"slip_{kind}.json"]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise DataError(
            f"{folder}: there is no {kind}.json of SLIP's repository. Give the folder that holds "
            "labels.json and templates.json."
        )
    table, digest = _read_json(path)
    if known.identifier not in table:
        return None
    notes: tuple[str, ...] = ()
    if not digest.startswith(_SLIP_DIGESTS[kind]):
        notes = (f"{path.name} (sha256 {digest[:12]}) is not the file of SLIP's commit c6faf5d.",)
    content = _checked(table[known.identifier], path, known.identifier, synonyms=kind == "labels")
    return Found(content, f"{SLIP_FILES}, sha256 {digest}", listed=True, notes=notes)


def _clip_benchmark(known: KnownSet, file_name: str) -> Found | None:
    path = _package_file("clip_benchmark", f"datasets/{file_name}")
    if path is None:
        return None
    table, digest = _read_json(path)
    name = next((name for name in _benchmark_names(known) if name in table), None)
    if name is None:
        return None
    names = file_name == "en_classnames.json"
    content = _checked(table[name], path, name, synonyms=names)
    notes: tuple[str, ...] = ()
    if not names and known.identifier in _OTHER_PROMPTS:
        notes = (f"The prompts are clip-benchmark's, {NOT_THE_PAPERS}.",)
    if not names:
        content = tuple(template.replace("{c}", "{}") for template in content)
    return Found(
        content, f"clip-benchmark's package data, sha256 {digest}", listed=names, notes=notes
    )


def _benchmark_names(known: KnownSet) -> Iterator[str]:
    for name in (known.identifier, *known.aliases):
        yield name
        yield name.removeprefix("vtab/")


def _package_file(package: str, path: str) -> Path | None:
    """Find a file of an installed package without importing it."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        if (Path(folder) / path).is_file():
            return Path(folder) / path
    return None


def _read_json(path: Path) -> tuple[dict[str, Any], str]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES} bytes")
        content = path.read_bytes()
        table = json.loads(content)
        if not isinstance(table, dict):
            raise ValueError(f"expected an object, got {type(table).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: class names or prompts cannot be read ({error}). Fetch the file again."
        ) from error
    return table, hashlib.sha256(content).hexdigest()


def _checked(content: Any, path: Path, name: str, *, synonyms: bool) -> tuple[Any, ...]:
    """Turn a set's list into tuples; synonyms are lists within it.

    Raises:
        DataError: If the list is malformed.
    """

    def text_list(value: Any) -> bool:
        return (
            isinstance(value, list)
            and bool(value)
            and all(isinstance(entry, str) for entry in value)
        )

    if isinstance(content, list) and content:
        if synonyms and all(isinstance(entry, str) or text_list(entry) for entry in content):
            return tuple(
                (" ".join(entry.split()),) if isinstance(entry, str) else tuple(entry)
                for entry in content
            )
        if not synonyms and text_list(content):
            return tuple(content)
    raise DataError(
        f"{path}, {name!r}: expected a list of texts, got {str(content)[:60]!r}. Fetch the file "
        "again."
    )
