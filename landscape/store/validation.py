"""Validation of a file against the specification of its kind.

Checks groups, attributes, datasets, types, shapes, units and values.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from landscape.errors import StoreError
from landscape.manifest.settings import NAME
from landscape.store.densities import read_densities
from landscape.store.hdf5 import corrupt_file_errors, open_hdf5
from landscape.store.parts import parts_folder
from landscape.store.predictions import read_predictions
from landscape.store.specification import (
    DIGEST,
    JSON,
    NUMBER,
    TEXT,
    TRUTH,
    WHOLE,
    Entry,
    FileSpecification,
    GroupSpecification,
)
from landscape.store.specified_files import (
    DENSITY_FILE,
    FILES,
    PREDICTION_FILE,
    SPECTRA_FILE,
    SURFACE_FILE,
)
from landscape.store.store import SpectrumStore
from landscape.store.surfaces import read_surface
from landscape.store.table import is_digest
from landscape.store.vectors import StoredVectors

# Patterns of the names that replace a name in angle brackets.
_WILDCARDS = {
    "<series>": NAME,
    "<epoch>": re.compile(r"0|[1-9][0-9]{0,18}"),
    "<number>": re.compile(r"0|[1-9][0-9]{0,8}"),
}
_LONGEST_NAME = 80


@dataclass(frozen=True, kw_only=True)
class Validation:
    """The kind of a file, and its deviations from the specification.

    Args:
        deviations: A line for each deviation, in the order of the file.
        num_groups, num_datasets: Numbers of checked groups and datasets.
    """

    path: Path
    specification: FileSpecification
    deviations: tuple[str, ...]
    num_groups: int
    num_datasets: int

    @property
    def conforms(self) -> bool:
        """Tell whether the file has no deviation."""
        return not self.deviations

    def facts(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "kind": "validation",
            "file": str(self.path),
            "schema": self.specification.kind,
            "schema_version": self.specification.version,
            "conforms": self.conforms,
            "deviations": self.deviations,
            "num_groups": self.num_groups,
            "num_datasets": self.num_datasets,
        }

    def lines(self) -> list[str]:
        """Return the deviations, then a summary line."""
        specification = self.specification
        schema = f"schema version {specification.version} of {specification.kind}"
        if self.conforms:
            return [
                f"{self.path}: conforms to {schema} ({self.num_groups} groups, {self.num_datasets} "
                "datasets)."
            ]
        count = len(self.deviations)
        written = " or ".join(f"`{command}`" for command in specification.writers)
        advice = (
            f"The file was changed, or not written by {written}; write it again, or restore it "
            "from a copy."
        )
        return [
            *self.deviations,
            f"{self.path}: {count} deviation{'s' * (count > 1)} from {schema}. {advice}",
        ]


def validate(path: Path) -> Validation:
    """Check a file against the specification of its kind.

    Where its structure conforms, all of it is read too, so that checksums and values are checked.

    Raises:
        StoreError: If the file is missing, damaged, or none that landscape writes.
    """
    if not path.exists():
        if parts_folder(path).is_dir():
            raise StoreError(
                f"{path}: is not finished: its records are still in {parts_folder(path)}, and the "
                "specification is of the finished file. Run the command that measures it to its "
                "end, then validate."
            )
        raise StoreError(f"{path}: there is no such file. Name an HDF5 file that landscape wrote.")
    try:
        file = open_hdf5(path)
    except OSError as error:
        reason = " ".join(str(error.strerror or error).split())[:200]
        raise StoreError(
            f"{path}: cannot be opened as HDF5 ({reason}), so it is no store. Name a file that "
            "landscape wrote."
        ) from error
    with file, corrupt_file_errors(path):
        specification = _kind_of(path, file)
        check = _Check(specification)
        check.version(file)
        if not check.deviations:
            check.group(file, "/")
    if not check.deviations:
        try:
            _READERS[specification.kind](path)
        except StoreError as error:
            check.deviations.append(f"values: {str(error).removeprefix(f'{path}: ')}")
    return Validation(
        path=path,
        specification=specification,
        deviations=tuple(check.deviations),
        num_groups=check.num_groups,
        num_datasets=check.num_datasets,
    )


def _kind_of(path: Path, file: h5py.File) -> FileSpecification:
    """Return the specification that a file says it follows."""
    kind = file.attrs.get("kind")
    if kind is not None:
        match = next(
            (
                candidate
                for candidate in (SURFACE_FILE, PREDICTION_FILE)
                if candidate.kind == str(kind)
            ),
            None,
        )
    else:
        match = next(
            (
                candidate
                for candidate in (DENSITY_FILE, SPECTRA_FILE)
                if candidate.version_key in file.attrs
            ),
            None,
        )
    if match is None:
        kinds = ", ".join(candidate.kind for candidate in FILES)
        raise StoreError(
            f"{path}: an HDF5 file, but none that landscape writes ({kinds}): it has no "
            "schema_version, or an unknown kind. Name another file."
        )
    return match


class _Check:
    """A walk through a file that collects deviations."""

    def __init__(self, specification: FileSpecification) -> None:
        self.specification = specification
        self.deviations: list[str] = []
        self.num_groups = self.num_datasets = 0

    def version(self, file: h5py.File) -> None:
        """Check only the version, which determines how the rest is read."""
        key, expected = self.specification.version_key, self.specification.version
        version = file.attrs.get(key)
        if not _is_whole(version) or version != expected:
            self._add(
                "/",
                f"attribute {key} is {_shown(version)}, not {expected}; nothing else was checked",
            )

    def group(self, group: h5py.Group, pattern: str) -> None:
        """Check a group by its path in the specification, and its groups."""
        self.num_groups += 1
        specification = self.specification.group(pattern)
        self._attributes(group, specification)
        members = _Members(group)
        self._datasets(group, specification, members)
        inner = [
            other
            for other in self.specification.groups
            if other.parts and other.parts[:-1] == specification.parts
        ]
        fixed = {other.parts[-1]: other for other in inner if other.parts[-1] not in _WILDCARDS}
        for name, fixed_group in fixed.items():
            if name not in members.kinds and not fixed_group.is_optional:
                self._add(group.name, f"group {name} is missing")
        for name, kind in members.kinds.items():
            if name in specification.datasets:
                continue
            other = fixed.get(name) or next(
                (candidate for candidate in inner if _matches(candidate.parts[-1], name)), None
            )
            if other is None:
                self._add(group.name, f"unexpected {kind} {name[:_LONGEST_NAME]}{_expected(inner)}")
            elif kind != "group":
                self._add(group.name, f"{name} is a {kind}, not a group")
            else:
                self.group(group[name], other.path)

    def _attributes(self, group: h5py.Group, specification: GroupSpecification) -> None:
        expected = specification.attributes
        for name, entry in expected.items():
            if name not in group.attrs:
                if not entry.is_optional:
                    self._add(group.name, f"attribute {name} is missing")
                continue
            problem = _problem_of_attribute(group.attrs[name], entry)
            if problem:
                self._add(group.name, f"attribute {name} {problem}")
        for name in group.attrs:
            if name not in expected:
                self._add(group.name, f"unexpected attribute {name[:_LONGEST_NAME]}")

    def _datasets(
        self, group: h5py.Group, specification: GroupSpecification, members: "_Members"
    ) -> None:
        lengths: dict[str, tuple[int, str]] = {}
        for name, entry in specification.datasets.items():
            kind = members.kinds.get(name)
            if kind is None:
                if not entry.is_optional:
                    self._add(group.name, f"dataset {name} is missing")
            elif kind != "dataset":
                self._add(group.name, f"{name} is a {kind}, not a dataset")
            else:
                self.num_datasets += 1
                for problem in (
                    _problem_of_type(group[name], entry),
                    _problem_of_shape(group[name].shape, entry, lengths),
                ):
                    if problem:
                        self._add(group.name, f"dataset {name} {problem}")

    def _add(self, place: str, problem: str) -> None:
        self.deviations.append(f"{place}: {problem}.")


class _Members:
    """The direct members of a group.

    Each is a "group", a "dataset", or a "link", which may lead to other files.
    """

    def __init__(self, group: h5py.Group) -> None:
        self.kinds = {name: self._kind(group, name) for name in group}

    @staticmethod
    def _kind(group: h5py.Group, name: str) -> str:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            return "link"
        kind = group.get(name, getclass=True)
        return "group" if kind is h5py.Group else "dataset" if kind is h5py.Dataset else "object"


def _matches(part: str, name: str) -> bool:
    return part in _WILDCARDS and _WILDCARDS[part].fullmatch(name) is not None


def _expected(inner: list[GroupSpecification]) -> str:
    """Return the end of a message on an unexpected group.

    It names what is allowed there.
    """
    names = [group.parts[-1] for group in inner]
    return f" (expected {' or '.join(names)})" if names else ""


def _problem_of_attribute(value: Any, entry: Entry) -> str | None:
    if not _TESTS[entry.type](value):
        return (
            f"is {_shown(value)}, not a {entry.type}"
            if entry.type != JSON
            else f"is {_shown(value)}, not a mapping in JSON"
        )
    allowed = entry.value if isinstance(entry.value, tuple) else (entry.value,)
    if entry.value is not None and value not in allowed:
        return f"is {_shown(value)}, not {' or '.join(map(_shown, allowed))}"
    return None


def _problem_of_type(dataset: h5py.Dataset, entry: Entry) -> str | None:
    if entry.type == TEXT:
        is_right = h5py.check_string_dtype(dataset.dtype) is not None
    else:
        is_right = dataset.dtype == np.dtype(entry.type)
    return (
        None
        if is_right
        else (
            f"holds {dataset.dtype}, not "
            f"{entry.type if entry.type == TEXT else np.dtype(entry.type)}"
        )
    )


def _problem_of_shape(
    shape: tuple[int, ...] | None, entry: Entry, lengths: dict[str, tuple[int, str]]
) -> str | None:
    """Describe what is wrong with a shape, if anything.

    `lengths` holds the length of each axis, and the dataset in which it first appeared.
    """
    assert entry.shape is not None, "datasets alone have shapes"
    if shape is None:
        return "is empty"
    if entry.may_be_empty and not any(shape) and len(shape) == len(entry.shape):
        return None
    axes = next((axes for axes in (entry.shape, *entry.others) if len(axes) == len(shape)), None)
    if axes is None:
        wanted = " or ".join(f"({', '.join(axes)})" for axes in (entry.shape, *entry.others))
        return f"has shape {shape}, not {wanted}"
    for axis, length in zip(axes, shape, strict=True):
        known, name = lengths.setdefault(axis, (length, entry.name))
        if known != length:
            return f"has shape {shape}, but its axis {axis} has length {known} in {name}"
    return None


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.bool_))


def _is_json(value: Any) -> bool:
    try:
        return isinstance(value, str) and isinstance(json.loads(value), dict)
    except (ValueError, RecursionError):
        return False


_TESTS: Mapping[str, Callable[[Any], bool]] = {
    TEXT: lambda value: isinstance(value, str),
    JSON: _is_json,
    WHOLE: _is_whole,
    NUMBER: lambda value: isinstance(value, (float, np.floating)),
    TRUTH: lambda value: isinstance(value, (bool, np.bool_)),
    DIGEST: is_digest,
}


def _shown(value: Any) -> str:
    """Format a value briefly for a message."""
    text = " ".join(repr(value.item() if isinstance(value, np.generic) else value).split())
    return text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}…"


def _read_spectra(path: Path) -> None:
    with SpectrumStore.open(path) as store:
        for key in store.identities:
            store.records(*key)
        for key in store.module_identities:
            store.modules(*key)
        for vectors in store.vectors.sources(store.vectors.keys()):
            _check_vectors(store, vectors)


def _check_vectors(store: SpectrumStore, vectors: StoredVectors) -> None:
    """Check that vectors belong to a stored record."""
    checkpoint = (vectors.series, vectors.epoch)
    expected = (
        *store.identities.get(checkpoint, ("", 0)),
        store.batches(*checkpoint).get(vectors.batch),
    )
    digests = vectors.digests
    if (digests["checkpoint_sha256"], vectors.n, digests["batch_sha256"]) != expected:
        raise StoreError(
            f"{store.path}: the vectors of {vectors.key} have no record of the same weights, size "
            "and samples"
        )


_READERS: Mapping[str, Callable[[Path], object]] = {
    SPECTRA_FILE.kind: _read_spectra,
    DENSITY_FILE.kind: read_densities,
    SURFACE_FILE.kind: read_surface,
    PREDICTION_FILE.kind: read_predictions,
}
