"""The spectra of a network's modules: a record and a table.

A record holds a batch; a table holds all batches of a checkpoint.

Shapes: batch = records of a checkpoint, module = diagonal blocks of the Hessian in the order of the
network, k = eigenvalues of a block. A block smaller than k has fewer eigenvalues: its rows end in
NaN, and in False for `converged`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from landscape.store.hdf5 import LARGEST_VALUE
from landscape.store.specified_spectra import MODULES
from landscape.store.table import (
    CheckpointTable,
    check_columns,
    check_each,
    check_facts,
    facts_of,
    is_digest,
    stacked,
    task_key,
)

# The datasets of a checkpoint's group with one row per batch, each with its type in the file.
MODULE_COLUMNS: dict[str, str] = {
    name: entry.type
    for name, entry in MODULES.datasets.items()
    if entry.shape and entry.shape[0] == "batch"
}
# Columns with an axis of modules and one of eigenvalues, then columns with an axis of modules only.
MATRICES = tuple(
    name for name, entry in MODULES.datasets.items() if entry.shape == ("batch", "module", "k")
)
VECTORS = tuple(
    name for name, entry in MODULES.datasets.items() if entry.shape == ("batch", "module")
)
# Columns that the first files of this schema lack; NaN stands for an unknown value.
MODULE_LATER = tuple(name for name, entry in MODULES.datasets.items() if entry.is_optional)


@dataclass(frozen=True, kw_only=True, eq=False)
class ModuleRecord:
    """The spectra of the diagonal blocks of a batch's Hessian, with certificates.

    Args:
        modules: Dotted names, in the order of the network.
        module_params: Size of each block.
        eigenvalues: Eigenvalues in nats per squared parameter, in the order of the solver.
        residuals: |Hv - lambda v| / |lambda| of each.
        converged: Whether each residual reached the tolerance.
        smallest, largest: The outermost Ritz values of both ends; `_residuals` are their residuals.
        num_negative, num_positive: Certified lower bounds of the numbers of eigenvalues of either
            sign.
        num_matvecs: Products with each block.
        value_bounds, missed_distance, missed_probability: As in `Record`, for each block; NaN where
            not known.

    The rest is as in `Record`.

    Raises:
        ValueError: If shapes disagree, a number is not finite, or a pair without a finite residual
            counts as converged.
    """

    series: str
    epoch: int
    batch: int
    modules: tuple[str, ...]
    module_params: Int[np.ndarray, " module"]
    eigenvalues: Float[np.ndarray, "module k"]
    residuals: Float[np.ndarray, "module k"]
    converged: Bool[np.ndarray, "module k"]
    smallest: Float[np.ndarray, "module k"]
    smallest_residuals: Float[np.ndarray, "module k"]
    largest: Float[np.ndarray, "module k"]
    largest_residuals: Float[np.ndarray, "module k"]
    num_negative: Int[np.ndarray, " module"]
    num_positive: Int[np.ndarray, " module"]
    num_matvecs: Int[np.ndarray, " module"]
    loss: float
    batch_sha256: str
    checkpoint_sha256: str
    num_params: int
    seconds: float
    value_bounds: Float[np.ndarray, "module k"] = field(default_factory=lambda: np.zeros((0, 0)))
    missed_distance: Float[np.ndarray, " module"] = field(default_factory=lambda: np.zeros(0))
    missed_probability: Float[np.ndarray, " module"] = field(default_factory=lambda: np.zeros(0))
    settings: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "modules", tuple(map(str, self.modules)))
        for name in MODULE_LATER:
            if np.size(getattr(self, name)) == 0:
                object.__setattr__(
                    self,
                    name,
                    np.full(np.shape(self.eigenvalues)[: 2 if name in MATRICES else 1], np.nan),
                )
        for name in (*MATRICES, *VECTORS, "module_params"):
            array: np.ndarray = np.array(getattr(self, name), dtype=MODULE_COLUMNS.get(name, "<i8"))
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        for name in ("epoch", "batch", "num_params"):
            object.__setattr__(self, name, int(getattr(self, name)))
        for name in ("loss", "seconds"):
            object.__setattr__(self, name, float(getattr(self, name)))
        self._check()

    def _check(self) -> None:
        count = len(self.modules)
        if not count or len(set(self.modules)) < count or any(not name for name in self.modules):
            raise ValueError(
                f"{self.key}: modules must be different names, at least one, got {self.modules}."
            )
        for name in (*VECTORS, "module_params"):
            if getattr(self, name).shape != (count,):
                raise ValueError(
                    f"{self.key}: {name} must have shape ({count},), got "
                    f"{getattr(self, name).shape}."
                )
        if self.eigenvalues.ndim != 2 or not all(
            getattr(self, name).shape == (count, self.k) for name in MATRICES
        ):
            shapes = ", ".join(f"{name} {getattr(self, name).shape}" for name in MATRICES)
            raise ValueError(f"{self.key}: all values must have shape ({count}, k), got {shapes}.")
        there = np.arange(self.k) < self.module_params[:, None]
        if (
            not np.isfinite(self.eigenvalues[there]).all()
            or np.isfinite(self.eigenvalues[~there]).any()
        ):
            raise ValueError(
                f"{self.key}: a block has as many finite eigenvalues as its size allows, got "
                f"{self.eigenvalues}."
            )
        if (np.abs(self.eigenvalues[there]) > LARGEST_VALUE).any():
            raise ValueError(
                f"{self.key}: eigenvalues must be at most {LARGEST_VALUE:.3g} in magnitude, got "
                f"{self.eigenvalues}."
            )
        if not np.isfinite(self.residuals[self.converged]).all():
            raise ValueError(
                f"{self.key}: a pair without a finite residual cannot count as converged."
            )
        if (
            any((getattr(self, name) < 0).any() for name in MODULE_LATER)
            or (self.missed_probability > 1).any()
        ):
            raise ValueError(
                f"{self.key}: {', '.join(MODULE_LATER)} must not be negative, nor a probability "
                "exceed 1."
            )
        if not (
            np.isfinite(self.loss)
            and self.seconds >= 0
            and min(self.epoch, self.batch, self.num_params) >= 0
        ):
            raise ValueError(
                f"{self.key}: a finite loss is needed, and no negative numbers of anything."
            )
        for name in ("batch_sha256", "checkpoint_sha256"):
            if not is_digest(getattr(self, name)):
                raise ValueError(
                    f"{self.key}: {name} must be 64 lower-case hexadecimal digits, got "
                    f"{getattr(self, name)!r}."
                )

        if not (isinstance(self.settings, Mapping) and isinstance(self.extras, Mapping)):
            raise ValueError(f"{self.key}: settings and extras must be mappings.")
        check_facts(self.settings, self.extras)

    @property
    def key(self) -> str:
        return task_key(self.series, self.epoch, self.batch)

    @property
    def k(self) -> int:
        return int(self.eigenvalues.shape[1])

    @property
    def num_not_converged(self) -> int:
        """Count the eigenvalues whose residual did not reach the tolerance."""
        return int(np.count_nonzero(~self.converged & np.isfinite(self.eigenvalues)))


@dataclass(frozen=True, kw_only=True, eq=False)
class ModuleTable(CheckpointTable):
    """The stored spectra of all modules of a checkpoint.

    Columns are as in `ModuleRecord`, with `batch` as first axis.
    """

    modules: tuple[str, ...]
    module_params: Int[np.ndarray, " module"]
    eigenvalues: Float[np.ndarray, "batch module k"]
    residuals: Float[np.ndarray, "batch module k"]
    converged: Bool[np.ndarray, "batch module k"]
    smallest: Float[np.ndarray, "batch module k"]
    smallest_residuals: Float[np.ndarray, "batch module k"]
    largest: Float[np.ndarray, "batch module k"]
    largest_residuals: Float[np.ndarray, "batch module k"]
    value_bounds: Float[np.ndarray, "batch module k"]
    missed_distance: Float[np.ndarray, "batch module"]
    missed_probability: Float[np.ndarray, "batch module"]
    num_negative: Int[np.ndarray, "batch module"]
    num_positive: Int[np.ndarray, "batch module"]
    num_matvecs: Int[np.ndarray, "batch module"]

    @property
    def num_not_converged(self) -> int:
        """Count the eigenvalues whose residual did not reach the tolerance."""
        return int(np.count_nonzero(~self.converged & np.isfinite(self.eigenvalues)))


def module_table_of(
    records: Iterable[tuple[ModuleRecord, Mapping[str, Any]]],
    *,
    model: str,
    label: str,
    num_planned: int,
) -> ModuleTable:
    """Build the table of a checkpoint from its records.

    Each record comes with the versions of the packages that measured it.
    """
    pairs = sorted(records, key=lambda pair: pair[0].batch)
    rows = [record for record, _ in pairs]
    modules: dict[str, Any] = {
        name: getattr(rows[0], name) for name in ("modules", "module_params")
    }
    facts = facts_of(rows, (versions for _, versions in pairs))
    columns: dict[str, Any] = stacked(rows, MODULE_COLUMNS)
    return ModuleTable(
        model=model, label=label, num_planned=num_planned, **modules, **facts, **columns
    )


def check_module_table(table: ModuleTable) -> None:
    """Check that a table holds valid records, as `ModuleRecord` does.

    Raises:
        ValueError: If not; names the first wrong record and column.
    """
    check_columns(table)
    if not table.modules or len(set(table.modules)) < len(table.modules):
        raise ValueError(f"{table.series}/{table.epoch} names no modules, or one twice")
    there = np.arange(table.eigenvalues.shape[2]) < table.module_params[:, None]
    check_each(
        table,
        "eigenvalues",
        np.where(there, np.abs(table.eigenvalues) <= LARGEST_VALUE, np.isnan(table.eigenvalues)),
    )
    for name in ("smallest", "largest"):
        check_each(table, name, ~(np.abs(getattr(table, name)) > LARGEST_VALUE))
    for name in MODULE_LATER:
        check_each(table, name, ~(getattr(table, name) < 0))
    check_each(table, "missed_probability", ~(table.missed_probability > 1))
    check_each(table, "residuals", ~table.converged | np.isfinite(table.residuals))
