"""Densities that were measured with probes of their own: an HDF5 file beside its figure, density schema version 1.

/                           density_schema_version, landscape_version, unit
/density/<series>/<epoch>/  datasets of `ARRAYS`; attributes model, label, n, checkpoint_sha256, settings (JSON), audited,
                            resolution, rounding, num_matvecs, orthogonality_defect

Shapes: b = mini-batches, p = probes over all of them, m = nodes, c = eigenvalues known one by one, n = parameters.
"""

import io
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
from landscape.store.table import UNIT
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
    """The density of one checkpoint over a few mini-batches; the numbers are those of `landscape.linalg.SpectralDensity`.

    Args:
        checkpoint_sha256: Digest of the weights' file; empty for random weights.
        settings: How it was measured; plain JSON values. `num_batches` and `missing_batches` (absent where there are none) say
            which batches it is of: those from 0 that are not missing.
        audited: Whether the products passed an audit.
        dense_eigenvalues: (b, n) all eigenvalues, from the assembled matrix; (0, 0) where it is too large.
        num_negative: (b,) certified lower bounds of the number of negative eigenvalues; -1 where there is none.
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
        """Batches that were asked for and are not in it: they failed, or the run was stopped."""
        return tuple(self.settings.get("missing_batches", ()))

    @property
    def batches(self) -> tuple[int, ...]:
        """The batches that it is of."""
        return tuple(i for i in range(self.settings["num_batches"]) if i not in self.missing_batches)

    def num_batches_in_words(self) -> str:
        """As "3 batches", or "2 of 3 batches (1 missing)"."""
        there, missing = len(self.num_zeros), self.missing_batches
        if not missing:
            return f"{there} batches"
        return f"{there} of {there + len(missing)} batches ({', '.join(map(str, missing))} missing)"

    def matches(self, settings: Mapping[str, Any]) -> bool:
        """Whether its batches, whichever they are, were measured as these settings ask."""
        return _but_batches(self.settings) == _but_batches(settings)


# What says how far a record is, and what it was found to be of.
_NOT_ASKED = ("num_batches", "missing_batches", "as_trained")


def _but_batches(settings: Mapping[str, Any]) -> str:
    return canonical_json({name: value for name, value in settings.items() if name not in _NOT_ASKED})


def is_density_file(path: Path) -> bool:
    """Whether a path is a file of densities that can be opened, from its attributes."""
    if not (path.is_file() and h5py.is_hdf5(path)):
        return False
    try:
        with h5py.File(path, "r", locking=False) as file:
            return "density_schema_version" in file.attrs
    except OSError:
        return False


def write_densities(path: Path, records: Sequence[DensityRecord]) -> None:
    """Write a whole file, or leave what was there as it was.

    Raises:
        StoreError: If the disk does not take it.
    """
    stream = io.BytesIO()
    with h5py.File(stream, "w", track_order=True) as file:
        file.attrs["density_schema_version"] = DENSITY_SCHEMA_VERSION
        file.attrs["landscape_version"] = VERSION
        file.attrs["unit"] = UNIT
        for record in records:
            group = file.create_group(f"density/{record.series}/{record.epoch}", track_order=True)
            for one in fields(record):
                value = getattr(record, one.name)
                if one.name in ARRAYS:
                    # An exact spectrum may be zeros for the most part, of parameters that a batch does not use.
                    packed = "gzip" if one.name == "dense_eigenvalues" and value.size else None
                    group.create_dataset(one.name, data=value, fletcher32=value.size > 0, compression=packed)
                elif one.name not in ("series", "epoch"):
                    group.attrs[one.name] = canonical_json(value) if one.name == "settings" else value
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, stream.getvalue())
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written ({error.strerror}) - the density is not stored - choose a folder that is writable."
        ) from error


def read_densities(path: Path) -> list[DensityRecord]:
    """Everything in a file of densities, in the order in which it was measured.

    Raises:
        StoreError: If there is none, it is of another version, or damaged.
    """
    if not is_density_file(path):
        raise StoreError(f"{path}: not a file of densities; `landscape density` writes one beside its figure.")
    try:
        with h5py.File(path, "r", locking=False) as file:
            version = int(file.attrs["density_schema_version"])
            if version != DENSITY_SCHEMA_VERSION:
                raise StoreError(
                    f"{path}: density schema version {version}, but this landscape reads {DENSITY_SCHEMA_VERSION}. "
                    f"Read it with landscape {file.attrs['landscape_version']}, which wrote it."
                )
            groups = file.get("density", {})
            return [_read(series, int(epoch), group) for series, one in groups.items() for epoch, group in one.items()]
    except (OSError, KeyError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise StoreError(f"{path}: damaged, or not written by landscape ({reason}). Measure again into another file.") from error


def describe_densities(path: Path) -> list[str]:
    """The lines that `landscape info` prints of a file of densities.

    Raises:
        StoreError: As `read_densities`.
    """
    lines = [f"densities, schema version {DENSITY_SCHEMA_VERSION}; in {UNIT}"]
    for one in read_densities(path):
        exact = ", exact spectrum too" if one.dense_eigenvalues.size else ""
        lines.append(
            f"{one.series} epoch {one.epoch} ({one.model}, {one.n} parameters): {one.num_batches_in_words()}, "
            f"{len(one.nodes)} probes, {one.num_matvecs} products{exact}, {'audited' if one.audited else 'not audited'}"
        )
        lines += [f"{one.series} epoch {one.epoch} {line}" for line in described_as_trained(one.settings)]
    return lines


def _read(series: str, epoch: int, group: h5py.Group) -> DensityRecord:
    arrays: dict[str, Any] = {name: group[name][()] for name in ARRAYS}
    facts: dict[str, Any] = {name: str(group.attrs[name]) for name in ("label", "model", "checkpoint_sha256")}
    facts |= {name: int(group.attrs[name]) for name in ("n", "num_matvecs")}
    facts |= {name: float(group.attrs[name]) for name in ("resolution", "rounding", "orthogonality_defect")}
    settings, audited = json.loads(group.attrs["settings"]), bool(group.attrs["audited"])
    record = DensityRecord(series=series, epoch=epoch, settings=settings, audited=audited, **facts, **arrays)
    if "num_batches" in settings and len(record.batches) != len(record.num_zeros):
        raise ValueError(f"{series} epoch {epoch} has {len(record.num_zeros)} batches and names {len(record.batches)}")
    return record
