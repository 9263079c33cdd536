"""Common parts of all tables of a store: facts on a checkpoint, and columns.

A column has a row per batch.

Shapes: batch = records of a checkpoint.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import Float, Int

from landscape.manifest import canonical_json
from landscape.manifest.settings import SHA256
from landscape.store.as_trained import models_as_trained, notes_of
from landscape.store.hdf5 import check_mapping, read_array
from landscape.store.verdicts import verdicts

if TYPE_CHECKING:
    import h5py

UNIT = "nat per squared parameter"
PRECONDITIONED_UNIT = "1 / learning rate"
_Table = TypeVar("_Table", bound="CheckpointTable")


def task_key(series: str, epoch: int, batch: int) -> str:
    """Return the stable name of a measurement within an output: "vit/5/12"."""
    return f"{series}/{epoch}/{batch}"


def is_digest(text: object) -> bool:
    return isinstance(text, str) and SHA256.fullmatch(text) is not None


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckpointTable:
    """The stored records of a checkpoint, one row per batch, sorted by `batch`.

    Where records disagree on a value of `settings`, `versions` or `extras` (a run resumed
    elsewhere), the value is {"several": [...]}. `num_planned` counts the records that the
    checkpoint is going to have.
    """

    series: str
    epoch: int
    model: str
    label: str
    num_planned: int
    checkpoint_sha256: str
    num_params: int
    settings: dict[str, Any]
    versions: dict[str, Any]
    extras: dict[str, Any]
    batch: Int[np.ndarray, " batch"]
    loss: Float[np.ndarray, " batch"]
    batch_sha256: tuple[str, ...]
    seconds: Float[np.ndarray, " batch"]

    @property
    def num_records(self) -> int:
        return len(self.batch)

    @property
    def keys(self) -> list[str]:
        return [task_key(self.series, self.epoch, int(batch)) for batch in self.batch]


def facts_of(rows: Sequence[Any], versions: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the fields of a table that its records share.

    Also the digests of the pairs.

    Args:
        rows: Records of a checkpoint, of a single kind, in order of batch.
        versions: Versions of the packages that measured each record.
    """
    first = rows[0]
    return {
        **{
            name: getattr(first, name)
            for name in ("series", "epoch", "checkpoint_sha256", "num_params")
        },
        "settings": combined(row.settings for row in rows),
        "versions": combined(versions),
        "extras": combined(row.extras for row in rows),
        "batch_sha256": tuple(row.batch_sha256 for row in rows),
    }


def stacked(rows: Sequence[Any], columns: Mapping[str, str], **names: str) -> dict[str, np.ndarray]:
    """Stack the columns of a table, except its digests.

    Arrays of different lengths are padded with NaN.

    Args:
        columns: The type of each column in a file.
        names: Names of the fields of a record that differ from the column's name.
    """
    stacks = {}
    for column, dtype in columns.items():
        if column != "batch_sha256":
            arrays = [
                np.asarray(getattr(row, names.get(column, column)), dtype=dtype) for row in rows
            ]
            longest = max((array.shape[-1] for array in arrays if array.ndim), default=0)
            stacks[column] = np.stack([padded(array, longest) for array in arrays])
    return stacks


def joined(table: _Table, other: _Table, *, columns: Iterable[str]) -> _Table:
    """Join two tables of a checkpoint.

    Batches in both come from the first.
    """
    new = ~np.isin(other.batch, table.batch)
    order = np.argsort(np.concatenate([table.batch, other.batch[new]]), kind="stable")

    def rows(name: str) -> np.ndarray:
        first, second = getattr(table, name), getattr(other, name)[new]
        longest = max(first.shape[-1], second.shape[-1])
        return np.concatenate(
            [padded(first, longest), padded(second, longest)] if first.ndim > 1 else [first, second]
        )[order]

    digests = [
        *table.batch_sha256,
        *(digest for digest, is_new in zip(other.batch_sha256, new) if is_new),
    ]
    changes: dict[str, Any] = {name: rows(name) for name in columns if name != "batch_sha256"}
    for name in ("settings", "versions", "extras"):
        changes[name] = combined([getattr(table, name), getattr(other, name)])
    return replace(table, batch_sha256=tuple(digests[i] for i in order), **changes)


def unit_of(settings: Mapping[str, Any]) -> str:
    """The unit of the eigenvalues of records with these settings, or of this protocol of a
    Hessian.
    """
    return UNIT if settings.get("preconditioner", "none") == "none" else PRECONDITIONED_UNIT


def write_attributes(
    group: "h5py.Group", table: CheckpointTable, *, num_not_converged: int
) -> None:
    """Write the facts of a table as attributes of its group."""
    for name in ("settings", "versions", "extras"):
        group.attrs[name] = canonical_json(getattr(table, name))
    for name in ("num_params", "checkpoint_sha256", "model", "label", "num_records", "num_planned"):
        group.attrs[name] = getattr(table, name)
    group.attrs["num_not_converged"] = num_not_converged
    group.attrs["unit"] = unit_of(table.settings)


def read_facts(group: "h5py.Group") -> dict[str, Any]:
    """Read from attributes how a table was measured.

    Also the digest of the weights, and the number of parameters.

    Raises:
        ValueError, TypeError, KeyError: If an attribute is missing or has another form.
    """
    facts: dict[str, Any] = {
        name: json.loads(group.attrs[name]) for name in ("settings", "versions", "extras")
    }
    for name, value in facts.items():
        check_mapping(value, f"{name} of {group.name}")
    check_facts(facts["settings"], facts["extras"])
    facts |= {
        "checkpoint_sha256": str(group.attrs["checkpoint_sha256"]),
        "num_params": int(group.attrs["num_params"]),
    }
    if not is_digest(facts["checkpoint_sha256"]) or facts["num_params"] < 0:
        raise ValueError(f"{group.name} has a wrong digest or number of parameters")
    return facts


def check_facts(settings: Mapping[str, Any], extras: Mapping[str, Any]) -> None:
    """Check the form of all facts that landscape interprets.

    Raises:
        ValueError, TypeError, AttributeError: If not.
    """
    models_as_trained(settings)
    notes_of(extras)
    for verdict in verdicts(extras):
        check_mapping(verdict, "the verdict of an audit")


def batches_in(group: "h5py.Group") -> dict[int, str]:
    """Read the digest of the pairs of each batch.

    Raises:
        ValueError: If a dataset has another form.
    """
    batches = read_array(group, "batch", dtype="<i8", shape=(None,))
    digests = read_array(group, "batch_sha256", dtype="S64", shape=batches.shape)
    return {int(batch): digest.decode() for batch, digest in zip(batches, digests)}


def check_columns(table: CheckpointTable) -> None:
    """Check the values of the columns that all tables have.

    Raises:
        ValueError: If a value is not possible for a measurement; names the record.
    """
    check_each(table, "batch", table.batch >= 0)
    check_each(table, "seconds", np.isfinite(table.seconds) & (table.seconds >= 0))
    check_each(table, "loss", np.isfinite(table.loss))
    check_each(
        table,
        "batch_sha256",
        np.array([is_digest(digest) for digest in table.batch_sha256], dtype=bool),
    )
    if len(set(table.keys)) < table.num_records:
        raise ValueError(f"{table.series}/{table.epoch} holds a batch twice")


def check_each(table: CheckpointTable, name: str, good: np.ndarray) -> None:
    """Raise ValueError for the first wrong value of a column."""
    wrong = np.flatnonzero(~good.reshape(len(good), -1).all(axis=1))
    if wrong.size:
        row = int(wrong[0])
        value = np.asarray(getattr(table, name))[row]
        value = value[~good[row]].flat[0] if np.ndim(value) else value
        raise ValueError(f"{name} of {table.keys[row]} is {value}, which no measurement gives")


def ends_in_nan(rows: np.ndarray) -> np.ndarray:
    """Tell for each row whether NaN is only padding at its end."""
    missing = np.isnan(rows)
    return np.asarray((missing[:, 1:] >= missing[:, :-1]).all(axis=1))


def padded(array: np.ndarray, length: int) -> np.ndarray:
    """Pad the last axis with NaN up to `length`.

    An array that is long enough, or a single number, is returned as it is.
    """
    if not array.ndim or array.shape[-1] >= length:
        return array
    filler = np.full((*array.shape[:-1], length - array.shape[-1]), math.nan)
    return np.concatenate([array, filler], axis=-1)


def combined(facts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Combine facts that many records state; {"several": [...]} if they disagree."""
    variants: dict[str, dict[str, Any]] = {}
    for fact in facts:
        for key, value in fact.items():
            several = (
                value["several"]
                if isinstance(value, Mapping) and set(value) == {"several"}
                else [value]
            )
            for item in several:
                variants.setdefault(key, {}).setdefault(canonical_json(item), item)
    return {
        key: next(iter(values.values())) if len(values) == 1 else {"several": list(values.values())}
        for key, values in variants.items()
    }
