"""Safe reading of YAML files into plain mappings with line numbers.

Anybody may have written the file; nothing in it is ever executed. Of YAML this reads what a
manifest needs: mappings, lists, text, true/false, null, decimal numbers (1e-3 included).
"""

import math
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from landscape.errors import ManifestError
from landscape.files import HDF5_SIGNATURE
from landscape.limits import MAX_INTEGER
from landscape.manifest.settings import shown
from landscape.suggestions import nearest

# A thousand checkpoints take about 120 kB.
LARGEST_FILE = 2**19
DEEPEST_NESTING = 16
# Text that `landscape init` writes where only the user knows the value.
FILL_IN = "FILL_IN"

_PREFIX = "tag:yaml.org,2002:"
_PLAIN = {
    "null": (re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")),
    "int": (re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z"), list("-+0123456789")),
    "float": (
        re.compile(
            r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)\Z"
        ),
        list("-+.0123456789"),
    ),
}
_QUOTE = "write the value out, and quote a text that begins with one of & * !"
# Unicode categories that no name, path or pattern holds: control, surrogate, line and paragraph
# separators.
_UNWRITABLE = ("Cc", "Cs", "Zl", "Zp")
_RESOLVERS: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
for _name, (_pattern, _first_characters) in _PLAIN.items():
    for _character in _first_characters:
        _RESOLVERS.setdefault(_character, []).append((_PREFIX + _name, _pattern))


class Located(dict[str, Any]):
    """A mapping of the file, with the line of each key.

    `line` is the line where the mapping begins.
    """

    line: int
    lines: dict[str, int]


class _Loader(yaml.SafeLoader):
    """SafeLoader without tags, aliases, dates, octal numbers and duplicate keys."""

    yaml_implicit_resolvers = _RESOLVERS
    yaml_constructors = {
        _PREFIX + name: yaml.SafeLoader.yaml_constructors[_PREFIX + name]
        for name in (*_PLAIN, "seq")
    }
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        problem = None
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            problem = f"anchors (&) and aliases (*) are not read; {_QUOTE}"
        elif getattr(event, "tag", None) is not None:
            problem = f"tags (!) are not read; {_QUOTE}"
        elif self.depth >= DEEPEST_NESTING:
            problem = f"more than {DEEPEST_NESTING} levels deep"
        if problem is not None:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_text(self, node: yaml.ScalarNode) -> str:
        for character in node.value:
            if character != "\t" and unicodedata.category(character) in _UNWRITABLE:
                problem = f"the text {shown(node.value)} holds the control character {character!r}"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return str(node.value)

    def construct_located(self, node: yaml.MappingNode) -> Located:
        mapping = Located()
        mapping.line = node.start_mark.line + 1
        mapping.lines = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            problem = None
            if not isinstance(key, str):
                problem = f"the key {shown(key)} is not text; quote it if it is meant"
            elif key in mapping:
                problem = (
                    f"the key {shown(key)} is there twice (first on line {mapping.lines[key]}); "
                    "keep one"
                )
            if problem is not None:
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            mapping[key] = self.construct_object(value_node, deep=True)
            mapping.lines[key] = key_node.start_mark.line + 1
        return mapping


_Loader.add_constructor(_PREFIX + "map", _Loader.construct_located)
_Loader.add_constructor(_PREFIX + "str", _Loader.construct_text)


class Dumper(yaml.SafeDumper):
    """A writer of text that the loader above reads back unchanged.

    "1e-3" is quoted, a date is not.
    """

    yaml_implicit_resolvers = _RESOLVERS


def read_document(path: Path) -> "Section":
    """Read a YAML file whose top level is a mapping.

    Raises:
        ManifestError: If there is no such file, or it is not a YAML mapping; says on which line.
    """
    content = _read_guarded(path)
    if content.startswith(HDF5_SIGNATURE):
        raise ManifestError(
            f"{path}: not a readable manifest but an HDF5 file, such as a store; name the YAML "
            "file that it was measured from."
        )
    try:
        value = yaml.load(content, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark is not None else ""
        hint = (
            f"; {_QUOTE}"
            if error.context in ("while scanning an alias", "while scanning an anchor")
            else ""
        )
        problem = _one_line(error.problem or error.context)
        raise ManifestError(f"{path}{line}: not a readable manifest: {problem}{hint}.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ManifestError(f"{path}: not a readable manifest: {_one_line(error)}.") from None
    if not isinstance(value, Located):
        actual = "nothing" if value is None else kind(value)
        raise ManifestError(
            f"{path}: expected a mapping with the keys version, data, hessian and series, got "
            f"{actual}."
        )
    return Section(path, "", value)


def _read_guarded(path: Path) -> bytes:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ManifestError(
                f"{path}: expected a manifest, got something that is not a regular file."
            )
        if status.st_size > LARGEST_FILE:
            raise ManifestError(
                f"{path}: {status.st_size} bytes, but a manifest has at most {LARGEST_FILE}; is it "
                "another file?"
            )
        return path.read_bytes()
    except FileNotFoundError:
        advice = "`landscape train` writes a manifest beside its checkpoints"
        raise ManifestError(f"{path}: there is no such file; {advice}.") from None
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}).") from error


def _one_line(message: object) -> str:
    return " ".join(str(message).split()).rstrip(".")


def kind(value: object) -> str:
    """Name the kind of a YAML value, for a message."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    return shown(value)


@dataclass(frozen=True)
class Section:
    """A mapping of the file with its place, for messages.

    `name` is "data." or "series 'vit'." or "".
    """

    path: Path
    name: str
    mapping: Located

    def refuse(self, sentence: str, *, key: str | None = None) -> NoReturn:
        """Raise a ManifestError with file, line and section."""
        line = self.mapping.line if key is None else self.mapping.lines.get(key, self.mapping.line)
        raise ManifestError(f"{self.path}, line {line}: {self.name}{sentence}")

    def check_keys(self, *, known: Iterable[str], required: Iterable[str]) -> None:
        known = list(known)
        for key in self.mapping:
            if key not in known:
                self.refuse(
                    f"{shown(key)[1:-1]} is not a known key; {nearest(key, known)}", key=key
                )
        for key in required:
            if key not in self.mapping:
                self.refuse(f"{key} is missing; add `{key}: ...`.")

    def take(self, types: Mapping[str, type]) -> dict[str, Any]:
        """Return the values of the present keys, each of its type."""
        return {key: self.value(key, types[key]) for key in self.mapping if key in types}

    def value(self, key: str, expected: type) -> Any:
        """Return a value of the expected type.

        Types are str, int, float (an int is accepted), list, or mapping (as a Section).
        """
        value = self.mapping[key]
        if value == FILL_IN:
            self.refuse(
                f"{key} is still to be filled in; the comment beside or above it says with what.",
                key=key,
            )
        if expected is dict and isinstance(value, Located):
            return Section(self.path, f"{self.name}{key}.", value)
        if expected is float and type(value) in (int, float):
            if not math.isfinite(value):
                self.refuse(f"{key} is {value}, but it must be finite.", key=key)
            return float(value)
        if (
            expected is int
            and type(value) is float
            and value.is_integer()
            and abs(value) <= MAX_INTEGER
        ):
            self.refuse(
                f"{key}: expected a whole number, got {value}; write {int(value)}.", key=key
            )
        if expected in (str, int, list) and type(value) is expected:
            return value
        words = {
            str: "text",
            int: "a whole number",
            float: "a number",
            list: "a list",
            dict: "a mapping",
        }
        hint = "; put it in quotes" if expected is str and type(value) in (bool, int, float) else ""
        self.refuse(f"{key}: expected {words[expected]}, got {kind(value)}{hint}.", key=key)

    def items(self, key: str) -> list["Section"]:
        """Return the mappings of a list as sections."""
        sections = []
        for position, item in enumerate(self.value(key, list), start=1):
            if not isinstance(item, Located):
                self.refuse(
                    f"{key}: expected a list of mappings, got {kind(item)} at position {position}.",
                    key=key,
                )
            sections.append(Section(self.path, f"{self.name}{key}[{position}].", item))
        return sections
