"""Measured densities with their own probes: an HDF5 file, density schema version 1.

The file lies beside its figure.

/                           density_schema_version, landscape_version, unit
/density/<series>/<epoch>/  datasets of `ARRAYS`; attributes model, label, n, checkpoint_sha256,
                            settings (JSON), audited, resolution, rounding, num_matvecs,
                            orthogonality_defect

Shapes: b = mini-batches, p = probes over all of them, m = nodes, c = eigenvalues known
individually, n = parameters.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float, Int

from landscape.errors import StoreError
from landscape.files import write_atomically
from landscape.manifest import canonical_json
from landscape.store.as_trained import described_as_trained
from landscape.store.hdf5 import (
    LARGEST_VALUE,
    check_mapping,
    corrupt_file_errors,
    file_image,
    groups_in,
    has_attribute,
    open_hdf5,
    read_array,
)
from landscape.store.table import UNIT, check_facts, ends_in_nan
from landscape.version import VERSION

DENSITY_SCHEMA_VERSION = 1
ARRAYS = (
    "nodes",
    "weights",
    "operators",
    "remainders",
    "exact",
    "exact_residuals",
    "num_zeros",
    "dense_eigenvalues",
    "num_negative",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class DensityRecord:
    """The density of a checkpoint over a few mini-batches.

    The numbers are those of `landscape.linalg.SpectralDensity`.

    Args:
        checkpoint_sha256: Digest of the weights' file; empty for random weights.
        settings: How it was measured; plain JSON values. `num_batches` and `missing_batches`
            (absent where there are none) name the batches: those from 0 that are not missing.
            `operator` holds the result of the check of the first products.
        audited: Whether the products passed an audit.
        dense_eigenvalues: (b, n) all eigenvalues, from the assembled matrix; (0, 0) where it is too
            large.
        num_negative: (b,) certified lower bounds of the number of negative eigenvalues; -1 where
            there is none.
    """

    series: str
    label: str
    model: str
    epoch: int
    n: int
    checkpoint_sha256: str
    settings: Mapping[str, Any]
    audited: bool
    nodes: Float[np.ndarray, "p m"]
    weights: Float[np.ndarray, "p m"]
    operators: Int[np.ndarray, " p"]
    remainders: Float[np.ndarray, " p"]
    exact: Float[np.ndarray, "b c"]
    exact_residuals: Float[np.ndarray, "b c"]
    num_zeros: Int[np.ndarray, " b"]
    resolution: float
    rounding: float
    num_matvecs: int = 0
    orthogonality_defect: float = 0.0
    dense_eigenvalues: Float[np.ndarray, "b n"] = field(default_factory=lambda: np.zeros((0, 0)))
    num_negative: Int[np.ndarray, " b"] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @property
    def missing_batches(self) -> tuple[int, ...]:
        """Return the requested batches that are missing: failed or not reached."""
        return tuple(self.settings.get("missing_batches", ()))

    @property
    def batches(self) -> tuple[int, ...]:
        """Return the indices of the measured batches."""
        return tuple(
            i for i in range(self.settings["num_batches"]) if i not in self.missing_batches
        )

    def num_batches_in_words(self) -> str:
        """Return "3 batches", or "2 of 3 batches (1 missing)"."""
        there, missing = len(self.num_zeros), self.missing_batches
        if not missing:
            return f"{there} batches"
        return f"{there} of {there + len(missing)} batches ({', '.join(map(str, missing))} missing)"

    def matches(self, settings: Mapping[str, Any]) -> bool:
        """Tell whether its batches were measured with these settings.

        Which batches they are does not count.
        """
        return _but_batches(self.settings) == _but_batches(settings)


# Settings that describe the progress or the findings of a measurement, not the request.
_NOT_ASKED = ("num_batches", "missing_batches", "as_trained", "operator")


def _but_batches(settings: Mapping[str, Any]) -> str:
    return canonical_json(
        {name: value for name, value in settings.items() if name not in _NOT_ASKED}
    )


def is_density_file(path: Path) -> bool:
    """Tell whether a path is a readable density file.

    Decided by its attributes.
    """
    return has_attribute(path, "density_schema_version")


def write_densities(path: Path, records: Sequence[DensityRecord]) -> None:
    """Write a whole file, or leave the old one.

    Raises:
        StoreError: If the disk does not take it.
    """

    def write(file: h5py.File) -> None:
        file.attrs["density_schema_version"] = DENSITY_SCHEMA_VERSION
        file.attrs["landscape_version"] = VERSION
        file.attrs["unit"] = UNIT
        for record in records:
            group = file.create_group(f"density/{record.series}/{record.epoch}", track_order=True)
            for entry in fields(record):
                value = getattr(record, entry.name)
                if entry.name in ARRAYS:
                    # An exact spectrum may be mostly zeros, of parameters that a batch does not
                    # use.
                    packed = "gzip" if entry.name == "dense_eigenvalues" and value.size else None
                    group.create_dataset(
                        entry.name, data=value, fletcher32=value.size > 0, compression=packed
                    )
                elif entry.name not in ("series", "epoch"):
                    group.attrs[entry.name] = (
                        canonical_json(value) if entry.name == "settings" else value
                    )

    content = file_image(write)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written ({error.strerror}) - the density is not stored - choose a "
            "folder that is writable."
        ) from error


def read_densities(path: Path) -> list[DensityRecord]:
    """Read a density file, in the order of measurement.

    Raises:
        StoreError: If there is no file, or it is of another version, or damaged.
    """
    if not is_density_file(path):
        raise StoreError(
            f"{path}: not a file of densities; `landscape density` writes one beside its figure."
        )
    with (
        corrupt_file_errors(path, advice="Measure again into another file."),
        open_hdf5(path) as file,
    ):
        version = int(file.attrs["density_schema_version"])
        if version != DENSITY_SCHEMA_VERSION:
            raise StoreError(
                f"{path}: density schema version {version}, but this landscape reads "
                f"{DENSITY_SCHEMA_VERSION}. Read it with landscape "
                f"{file.attrs['landscape_version']}, which wrote it."
            )
        series = groups_in(file["density"]) if "density" in file else ()
        return [
            _read(name, int(epoch), group)
            for name, epochs in series
            for epoch, group in groups_in(epochs)
        ]


def describe_densities(path: Path) -> list[str]:
    """Describe a density file in the lines that `landscape info` prints.

    Raises:
        StoreError: As `read_densities`.
    """
    lines = [f"densities, schema version {DENSITY_SCHEMA_VERSION}; in {UNIT}"]
    for record in read_densities(path):
        exact = ", exact spectrum too" if record.dense_eigenvalues.size else ""
        lines.append(
            f"{record.series} epoch {record.epoch} ({record.model}, {record.n} parameters): "
            f"{record.num_batches_in_words()}, {len(record.nodes)} probes, {record.num_matvecs} "
            f"products{exact}, {'audited' if record.audited else 'not audited'}"
        )
        checks = str(record.settings.get("operator", "")).split("; ")
        lines += [
            f"{record.series} epoch {record.epoch} {line}"
            for line in described_as_trained(record.settings)
        ]
        lines += [f"{record.series} epoch {record.epoch} {check}" for check in checks if check]
    return lines


def _read(series: str, epoch: int, group: h5py.Group) -> DensityRecord:
    facts: dict[str, Any] = {
        name: str(group.attrs[name]) for name in ("label", "model", "checkpoint_sha256")
    }
    facts |= {name: int(group.attrs[name]) for name in ("n", "num_matvecs")}
    facts |= {
        name: float(group.attrs[name])
        for name in ("resolution", "rounding", "orthogonality_defect")
    }
    settings, audited = json.loads(group.attrs["settings"]), bool(group.attrs["audited"])
    check_facts(check_mapping(settings, "settings"), {})
    arrays = _arrays(group, facts["n"])
    record = DensityRecord(
        series=series, epoch=epoch, settings=settings, audited=audited, **facts, **arrays
    )
    _check_batches(record)
    _check_numbers(record)
    return record


def _arrays(group: h5py.Group, n: int) -> dict[str, Any]:
    """Read the datasets of a record, and check that their shapes match."""
    nodes = read_array(group, "nodes", dtype="<f8", shape=(None, None))
    num_zeros = read_array(group, "num_zeros", dtype="<i8", shape=(None,))
    exact = read_array(group, "exact", dtype="<f8", shape=(len(num_zeros), None))
    arrays = {"nodes": nodes, "num_zeros": num_zeros, "exact": exact}
    shapes: dict[str, tuple[int | None, ...]] = {
        "weights": nodes.shape,
        "operators": nodes.shape[:1],
        "remainders": nodes.shape[:1],
        "exact_residuals": exact.shape,
        "dense_eigenvalues": (len(num_zeros), n) if group["dense_eigenvalues"].size else (0, 0),
        "num_negative": num_zeros.shape if group["num_negative"].size else (0,),
    }
    for name, shape in shapes.items():
        arrays[name] = read_array(
            group,
            name,
            dtype="<i8" if name in ("operators", "num_negative") else "<f8",
            shape=shape,
        )
    return arrays


def _check_batches(record: DensityRecord) -> None:
    """Raise ValueError if a record lacks batches that it names."""
    count, missing = record.settings.get("num_batches"), record.missing_batches
    place = f"{record.series} epoch {record.epoch}"
    if count is not None:
        if type(count) is not int or not len(missing) <= count == len(record.num_zeros) + len(
            missing
        ):
            raise ValueError(
                f"{place} has {len(record.num_zeros)} batches and names {count!r}, {len(missing)} "
                "of them missing"
            )
        if not all(type(batch) is int and 0 <= batch < count for batch in missing):
            raise ValueError(f"{place} names missing batches {missing!r:.80}")
    if record.operators.size and not 0 <= record.operators.min() <= record.operators.max() < len(
        record.num_zeros
    ):
        raise ValueError(f"{place} has probes of batches that it does not have")


def _check_numbers(record: DensityRecord) -> None:
    """Raise ValueError for a number that no measurement gives."""
    place = f"{record.series} epoch {record.epoch}"
    if record.n < 1 or record.num_matvecs < 0:
        raise ValueError(f"{place} has {record.n} parameters and {record.num_matvecs} products")
    for name in ("nodes", "weights", "remainders", "exact", "dense_eigenvalues"):
        values = getattr(record, name)
        wrong = values[np.abs(values) > LARGEST_VALUE]
        if wrong.size or (name == "dense_eigenvalues" and np.isnan(values).any()):
            raise ValueError(
                f"{name} of {place} is {wrong[0] if wrong.size else np.nan}, which no measurement "
                "gives"
            )
    for values, others in ((record.nodes, record.weights), (record.exact, record.exact_residuals)):
        if not (ends_in_nan(values).all() and (np.isnan(values) == np.isnan(others)).all()):
            raise ValueError(f"{place} has a NaN among its nodes, weights or exact eigenvalues")
