"""The planned content of an output.

Also the check whether a manifest may continue an output.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import h5py

from landscape.errors import StoreError
from landscape.manifest import Manifest, canonical_json, json_sha256
from landscape.manifest.settings import NAME, DataSettings, HessianSettings
from landscape.store.hdf5 import corrupt_file_errors, has_attribute, open_hdf5
from landscape.store.table import is_digest, task_key
from landscape.version import VERSION

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class PlannedSeries:
    """A series as an output is going to hold it.

    Args:
        trained: How its model differs from what its name says, as `TrainedAs.changes` gives it.
    """

    name: str
    model: str
    label: str
    epochs: tuple[int, ...]
    trained: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StoreContents:
    """The protocol of an output and all its planned measurements, in order.

    Args:
        manifest_sha256: Digest of the manifest that made the plan.
        protocol: The manifest's settings of data and Hessian.
        landscape_version: Version of landscape that wrote the plan.
    """

    manifest_sha256: str
    protocol: dict[str, dict[str, Any]]
    series: tuple[PlannedSeries, ...]
    landscape_version: str = VERSION

    @classmethod
    def of(cls, manifest: Manifest) -> "StoreContents":
        series = [
            PlannedSeries(
                name=entry.name,
                model=entry.model,
                label=entry.label,
                epochs=entry.epochs,
                trained=entry.trained.changes(),
            )
            for entry in manifest.series
        ]
        return cls(
            manifest_sha256=manifest.sha256, protocol=manifest.protocol(), series=tuple(series)
        )

    @property
    def num_batches(self) -> int:
        return int(self.protocol["data"]["num_samples"]) // int(self.protocol["data"]["batch_size"])

    @property
    def k(self) -> int:
        return int(self.protocol["hessian"]["k"])

    @property
    def protocol_sha256(self) -> str:
        """Compute the digest of the protocol.

        It includes how models were trained where that is not their default; see
        Manifest.protocol_digest.
        """
        trained = {series.name: series.trained for series in self.series if series.trained}
        return json_sha256(self.protocol | ({"trained": trained} if trained else {}))

    def protocol_sha256_of(self, series: str) -> str:
        """Compute the digest for one series alone.

        It stays the same when other series join.
        """
        planned = self.named(series)
        trained = {} if planned is None else planned.trained
        return json_sha256(self.protocol | ({"trained": trained} if trained else {}))

    def keys(self) -> list[str]:
        """List the keys of all measurements, by series, epochs and batches."""
        batches = range(self.num_batches)
        return [
            task_key(series.name, epoch, batch)
            for series in self.series
            for epoch in series.epochs
            for batch in batches
        ]

    @property
    def num_records(self) -> int:
        """Return the number of all planned measurements."""
        return sum(len(series.epochs) for series in self.series) * self.num_batches

    def named(self, series: str) -> PlannedSeries | None:
        return next((planned for planned in self.series if planned.name == series), None)

    def holds(self, series: str, epoch: int) -> bool:
        planned = self.named(series)
        return planned is not None and epoch in planned.epochs

    @classmethod
    def from_json(cls, value: Any) -> "StoreContents":
        """Build a plan from JSON; the inverse of `dataclasses.asdict`.

        Raises:
            ValueError, TypeError, KeyError: If it is anything else.
        """
        series = tuple(
            PlannedSeries(
                name=str(entry["name"]),
                model=str(entry["model"]),
                label=str(entry["label"]),
                epochs=tuple(map(int, entry["epochs"])),
                trained=dict(entry.get("trained", {})),
            )
            for entry in value["series"]
        )
        plan = cls(
            manifest_sha256=value["manifest_sha256"],
            protocol=value["protocol"],
            series=series,
            landscape_version=str(value["landscape_version"]),
        )
        if not is_digest(plan.manifest_sha256):
            raise ValueError(f"the digest of its manifest is {plan.manifest_sha256!r:.80}")
        _check_protocol(plan.protocol)
        if not all(
            NAME.fullmatch(entry.name) and entry.epochs and min(entry.epochs) >= 0
            for entry in series
        ):
            raise ValueError("a series has no name or no epochs")
        return plan


def _check_protocol(protocol: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that a manifest could have a stored protocol.

    Raises:
        ValueError, TypeError, KeyError: If not.
    """
    for section, settings in (("data", DataSettings), ("hessian", HessianSettings)):
        names = {field.name: field for field in fields(settings)}
        values = dict(protocol[section])
        for name in ("num_samples", "batch_size", "k", "max_matvecs", "seed"):
            if name in names and type(values[name]) is not int:
                raise ValueError(f"{section}.{name} is {values[name]!r:.80}, not a whole number")
        if section == "hessian":
            parameters = values["parameters"]
            values["parameters"] = (
                tuple(map(str, parameters)) if isinstance(parameters, list) else parameters
            )
        for name in _ALWAYS[section]:
            values[name]
        # Keys of a later landscape are not checked.
        settings(**{name: value for name, value in values.items() if name in names})


# Keys of a stored protocol that commands read.
_ALWAYS = {
    "data": ("source", "split", "num_samples", "batch_size", "augmentation", "seed"),
    "hessian": ("objective", "parameters", "method", "k", "which", "tol", "dtype"),
}


def check_schema_version(path: Path, version: object, *, written_by: object) -> None:
    """Refuse another version of the schema; name its reader.

    Raises:
        StoreError: If it is not version 1.
    """
    if version != SCHEMA_VERSION:
        reader = (
            f"landscape {written_by}, which wrote it"
            if written_by
            else "the landscape that wrote it"
        )
        raise StoreError(
            f"{path}: schema version {version}, but landscape {VERSION} reads and writes version "
            f"{SCHEMA_VERSION}. Read it with {reader}, or name another output."
        )


@contextmanager
def open_kind(path: Path, kind: str, *, otherwise: str, advice: str) -> Iterator[h5py.File]:
    """Open a file of a given kind and schema version 1.

    Args:
        otherwise: Message for a file of another kind.
        advice: Advice for a damaged file.

    Raises:
        StoreError: If it is something else, damaged (also while it is read), or of another version.
    """
    if not has_attribute(path, "kind", value=kind):
        raise StoreError(f"{path}: {otherwise}")
    with corrupt_file_errors(path, advice=advice), open_hdf5(path) as file:
        check_schema_version(
            path, file.attrs["schema_version"], written_by=file.attrs["landscape_version"]
        )
        yield file


def check_resumable(
    path: Path, plan: StoreContents, stored: Mapping[tuple[str, int], str], manifest: Manifest
) -> None:
    """Check that a manifest may continue an existing output.

    The output lies at `path` and was made under `plan`. The measurements may be added if every
    setting of data and Hessian is equal, and each stored checkpoint is still listed with the same
    weights. Series and epochs may have been added.

    Args:
        stored: The SHA-256 digest of the weights of each (series, epoch) that has a measurement.

    Raises:
        StoreError: If not; names the first setting, series or epoch that differs.
        CheckpointError: If a stored checkpoint without a digest in the manifest cannot be read.
    """
    difference = _differing_setting(plan.protocol, manifest)
    for (name, epoch), digest in stored.items():
        if difference is None:
            difference = _differing_checkpoint(plan, name, epoch, digest, manifest)
    if difference is not None:
        raise StoreError(
            f"{path}: {difference} Name another output with -o, or go back to the manifest that "
            "began this one."
        )


def differing_setting(
    protocol: Mapping[str, Mapping[str, Any]], other: Mapping[str, Mapping[str, Any]]
) -> tuple[str, str] | None:
    """Return section and key of the first differing setting.

    None if the protocols are equal.
    """
    for section in [*other, *(section for section in protocol if section not in other)]:
        settings, others = protocol.get(section, {}), other.get(section, {})
        for key in [*others, *(key for key in settings if key not in others)]:
            if settings.get(key) != others.get(key):
                return section, key
    return None


def _differing_setting(protocol: Mapping[str, Mapping[str, Any]], manifest: Manifest) -> str | None:
    wanted = manifest.protocol()
    difference = differing_setting(protocol, wanted)
    if difference is None:
        return None
    section, key = difference
    return (
        f"{section}.{key} is {protocol.get(section, {}).get(key)!r} in this output, but "
        f"{wanted.get(section, {}).get(key)!r} in {manifest.path}. Numbers measured under "
        "different settings are not comparable."
    )


def _differing_checkpoint(
    plan: StoreContents, name: str, epoch: int, digest: str, manifest: Manifest
) -> str | None:
    series = next((entry for entry in manifest.series if entry.name == name), None)
    if series is None or epoch not in series.epochs:
        missing = f"series {name!r}" if series is None else f"epoch {epoch} of series {name!r}"
        return (
            f"it holds {missing}, which {manifest.path} does not list. An output never drops "
            "measurements."
        )
    planned = plan.named(name)
    if planned is not None and planned.model != series.model:
        return (
            f"series {name!r} is of model {planned.model!r} in this output, but {series.model!r} "
            f"in {manifest.path}."
        )
    if (
        planned is not None
        and (key := _differing_key(planned.trained, series.trained.changes())) is not None
    ):
        old, new = (
            planned.trained.get(key, "the model's own"),
            series.trained.get(key, "the model's own"),
        )
        return (
            f"series {name!r} was measured with {key} {old!r}, but now it is {new!r} "
            f"({series.trained.source(key)}): the same weights mean another function."
        )
    checkpoint = series.checkpoints[series.epochs.index(epoch)]
    # For a file that is gone and has no digest in the manifest, only the stored digest is known.
    now = checkpoint.sha256 or (checkpoint.verify() if checkpoint.path.exists() else digest)
    if now != digest:
        return (
            f"epoch {epoch} of series {name!r} was measured on weights with sha256 {digest}, but "
            f"now {checkpoint.path} has {now}: it was written anew since."
        )
    return None


def _differing_key(first: Mapping[str, Any], second: Mapping[str, Any]) -> str | None:
    """Return the first key on which two mappings disagree."""
    keys = sorted({*first, *second})
    return next(
        (key for key in keys if canonical_json(first.get(key)) != canonical_json(second.get(key))),
        None,
    )
