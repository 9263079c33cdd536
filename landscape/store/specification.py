"""The terms in which the HDF5 files of landscape are specified.

The tables are in specified_spectra.py and specified_files.py. Readers, the validator and
docs/store.md share them.

A file is a tree of groups. A part of a path in angle brackets stands for any name of its kind:
`<series>`, `<epoch>`, `<number>`. Shapes are names of axes. Within a group an axis has one length;
the same name in two groups may have two lengths. Change a version where a reader of the old files
could misread the new ones; a column that old readers skip needs no new version.
"""

from dataclasses import dataclass, field
from typing import Any

# Types of attributes; datasets have NumPy's types, or texts.
TEXT, JSON, WHOLE, NUMBER, TRUTH, DIGEST = (
    "text",
    "JSON",
    "whole number",
    "number",
    "true or false",
    "SHA-256",
)
FLOAT, HALF, INTEGER, BOOLEAN, DIGESTS = "<f8", "<f2", "<i8", "?", "S64"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An attribute or a dataset of a group.

    Args:
        type: A type of NumPy for a dataset, one of the words above for an attribute or for a
            dataset of texts.
        shape: Names of the axes of a dataset; None for an attribute.
        others: Further shapes that a dataset may have.
        unit: Unit of the numbers; "1" for counts, shares and truth values, "" for texts.
        value: The only value that is allowed, or a tuple of those that are; None for any.
        is_optional: Whether files of this version may lack it.
        may_be_empty: Whether a dataset may have length 0 along each axis in place of its shape.
    """

    name: str
    type: str
    meaning: str
    shape: tuple[str, ...] | None = None
    others: tuple[tuple[str, ...], ...] = ()
    unit: str = ""
    value: Any = None
    is_optional: bool = False
    may_be_empty: bool = False

    @property
    def is_dataset(self) -> bool:
        """Tell whether the entry is a dataset, not an attribute."""
        return self.shape is not None


@dataclass(frozen=True, kw_only=True)
class GroupSpecification:
    """A group: its attributes and datasets.

    Groups within it have entries of their own in the specification.

    Args:
        path: Path such as "/spectra/<series>/<epoch>".
        is_optional: Whether files of this version may lack it; a path with angle brackets may
            always be missing.
    """

    path: str
    meaning: str
    entries: tuple[Entry, ...] = ()
    is_optional: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """Return the names along the path; none for the root."""
        return tuple(part for part in self.path.split("/") if part)

    @property
    def datasets(self) -> dict[str, Entry]:
        """Return the datasets by name, in order."""
        return {entry.name: entry for entry in self.entries if entry.is_dataset}

    @property
    def attributes(self) -> dict[str, Entry]:
        """Return the attributes by name, in order."""
        return {entry.name: entry for entry in self.entries if not entry.is_dataset}


@dataclass(frozen=True, kw_only=True)
class FileSpecification:
    """A kind of file.

    Args:
        kind: Content of the file, for messages.
        version_key: The attribute of the root that holds the version.
        writers: Commands that write it.
    """

    kind: str
    version_key: str
    version: int
    writers: tuple[str, ...]
    groups: tuple[GroupSpecification, ...] = field(repr=False)

    def group(self, path: str) -> GroupSpecification:
        """Return the group of a path as it stands in the table."""
        return next(group for group in self.groups if group.path == path)


def attribute(name: str, type: str, meaning: str, **more: Any) -> Entry:
    """Specify an attribute; `more` are further fields of `Entry`."""
    return Entry(name=name, type=type, meaning=meaning, **more)


def dataset(
    name: str, type: str, shape: tuple[str, ...], unit: str, meaning: str, **more: Any
) -> Entry:
    """Specify a dataset; `more` are further fields of `Entry`."""
    return Entry(name=name, type=type, shape=shape, unit=unit, meaning=meaning, **more)
