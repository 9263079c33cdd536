"""What an output is going to hold, and whether a manifest may go on with it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from landscape.errors import StoreError
from landscape.manifest import Manifest, canonical_json, json_sha256
from landscape.manifest.settings import NAME, DataSettings, HessianSettings
from landscape.store.table import is_digest, task_key
from landscape.version import VERSION

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class PlannedSeries:
    """A series as an output is going to hold it.

    Args:
        trained: What makes its model another than its name says, as `TrainedAs.changes` gives it.
    """

    name: str
    model: str
    label: str
    epochs: tuple[int, ...]
    trained: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The protocol of an output and every measurement it is going to hold, in order.

    Args:
        manifest_sha256: Digest of the manifest that made the plan.
        protocol: Its settings of data and Hessian.
        landscape_version: That wrote the plan.
    """

    manifest_sha256: str
    protocol: dict[str, dict[str, Any]]
    series: tuple[PlannedSeries, ...]
    landscape_version: str = VERSION

    @classmethod
    def of(cls, manifest: Manifest) -> "Plan":
        series = [
            PlannedSeries(
                name=one.name,
                model=one.model,
                label=one.label,
                epochs=one.epochs,
                trained=one.trained.changes(),
            )
            for one in manifest.series
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
        """Digest of the protocol and of how models were trained where that is not their default; see Manifest.protocol_digest."""
        trained = {one.name: one.trained for one in self.series if one.trained}
        return json_sha256(self.protocol | ({"trained": trained} if trained else {}))

    def protocol_sha256_of(self, series: str) -> str:
        """The same of one series alone, which stays when others join."""
        planned = self.named(series)
        trained = {} if planned is None else planned.trained
        return json_sha256(self.protocol | ({"trained": trained} if trained else {}))

    def keys(self) -> list[str]:
        """Of every measurement, in the order of series, epochs and batches."""
        batches = range(self.num_batches)
        return [
            task_key(one.name, epoch, batch)
            for one in self.series
            for epoch in one.epochs
            for batch in batches
        ]

    @property
    def num_records(self) -> int:
        """Number of measurements over all series, epochs and batches."""
        return sum(len(one.epochs) for one in self.series) * self.num_batches

    def named(self, series: str) -> PlannedSeries | None:
        return next((one for one in self.series if one.name == series), None)

    def holds(self, series: str, epoch: int) -> bool:
        planned = self.named(series)
        return planned is not None and epoch in planned.epochs

    @classmethod
    def from_json(cls, value: Any) -> "Plan":
        """The inverse of `dataclasses.asdict`.

        Raises:
            ValueError, TypeError, KeyError: If it is anything else.
        """
        series = tuple(
            PlannedSeries(
                name=str(one["name"]),
                model=str(one["model"]),
                label=str(one["label"]),
                epochs=tuple(map(int, one["epochs"])),
                trained=dict(one.get("trained", {})),
            )
            for one in value["series"]
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
            NAME.fullmatch(one.name) and one.epochs and min(one.epochs) >= 0 for one in series
        ):
            raise ValueError("a series has no name or no epochs")
        return plan


def _check_protocol(protocol: Mapping[str, Mapping[str, Any]]) -> None:
    """Whether a stored protocol holds settings that a manifest could have.

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
        # Keys of a later landscape are none of ours to judge.
        settings(**{name: value for name, value in values.items() if name in names})


# What commands read of a stored protocol.
_ALWAYS = {
    "data": ("source", "split", "num_samples", "batch_size", "augmentation", "seed"),
    "hessian": ("objective", "parameters", "method", "k", "which", "tol", "dtype"),
}


def check_schema_version(path: Path, found: object, *, written_by: object) -> None:
    """Refuse another version of the schema, and name the landscape that can read it.

    Raises:
        StoreError: If it is not version 1.
    """
    if found != SCHEMA_VERSION:
        reader = (
            f"landscape {written_by}, which wrote it"
            if written_by
            else "the landscape that wrote it"
        )
        raise StoreError(
            f"{path}: schema version {found}, but landscape {VERSION} reads and writes version {SCHEMA_VERSION}. "
            f"Read it with {reader}, or name another output."
        )


def check_resumable(
    path: Path, plan: Plan, stored: Mapping[tuple[str, int], str], manifest: Manifest
) -> None:
    """May the measurements of `manifest` go into the output at `path`, made under `plan`?

    They may if every setting of data and Hessian is equal and each stored checkpoint is still listed with the same
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
            f"{path}: {difference} Name another output with -o, or go back to the manifest that began this one."
        )


def differing_setting(
    one: Mapping[str, Mapping[str, Any]], other: Mapping[str, Mapping[str, Any]]
) -> tuple[str, str] | None:
    """Section and key of the first setting in which two protocols differ; None where they are equal."""
    for section in [*other, *(section for section in one if section not in other)]:
        settings, others = one.get(section, {}), other.get(section, {})
        for key in [*others, *(key for key in settings if key not in others)]:
            if settings.get(key) != others.get(key):
                return section, key
    return None


def _differing_setting(protocol: Mapping[str, Mapping[str, Any]], manifest: Manifest) -> str | None:
    wanted = manifest.protocol()
    found = differing_setting(protocol, wanted)
    if found is None:
        return None
    section, key = found
    return (
        f"{section}.{key} is {protocol.get(section, {}).get(key)!r} in this output, but {wanted.get(section, {}).get(key)!r} in "
        f"{manifest.path}. Numbers measured under different settings are not comparable."
    )


def _differing_checkpoint(
    plan: Plan, name: str, epoch: int, digest: str, manifest: Manifest
) -> str | None:
    series = next((one for one in manifest.series if one.name == name), None)
    if series is None or epoch not in series.epochs:
        missing = f"series {name!r}" if series is None else f"epoch {epoch} of series {name!r}"
        return f"it holds {missing}, which {manifest.path} does not list. An output never drops measurements."
    planned = plan.named(name)
    if planned is not None and planned.model != series.model:
        return f"series {name!r} is of model {planned.model!r} in this output, but {series.model!r} in {manifest.path}."
    if (
        planned is not None
        and (key := _differing_key(planned.trained, series.trained.changes())) is not None
    ):
        old, new = (
            planned.trained.get(key, "the model's own"),
            series.trained.get(key, "the model's own"),
        )
        return (
            f"series {name!r} was measured with {key} {old!r}, but now it is {new!r} ({series.trained.source(key)}): the same "
            "weights mean another function."
        )
    checkpoint = series.checkpoints[series.epochs.index(epoch)]
    # Of a file that is gone and has no digest in the manifest, only the stored one is known.
    now = checkpoint.sha256 or (checkpoint.verify() if checkpoint.path.exists() else digest)
    if now != digest:
        return (
            f"epoch {epoch} of series {name!r} was measured on weights with sha256 {digest}, but now {checkpoint.path} "
            f"has {now}: it was written anew since."
        )
    return None


def _differing_key(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first key on which two mappings of JSON values disagree."""
    return next(
        (
            key
            for key in sorted({*one, *other})
            if canonical_json(one.get(key)) != canonical_json(other.get(key))
        ),
        None,
    )
