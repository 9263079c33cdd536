"""A single measurement, and the table of all measurements of a checkpoint.

Shapes: batch = records of a checkpoint, k = eigenvalues per record, m = Ritz pairs of a record, the
longest in a table.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from landscape.store.hdf5 import LARGEST_VALUE
from landscape.store.specified_spectra import SPECTRA
from landscape.store.table import (
    CheckpointTable,
    check_columns,
    check_each,
    check_facts,
    ends_in_nan,
    facts_of,
    is_digest,
    padded,
    stacked,
    task_key,
)

# The datasets of a checkpoint's group, each with its type in the file.
COLUMNS: dict[str, str] = {name: entry.type for name, entry in SPECTRA.datasets.items()}
# Both ends of the spectrum, which only the Krylov methods give.
ENDS = ("smallest", "smallest_residuals", "largest", "largest_residuals")
RITZ = ("ritz_values", "ritz_weights")
# Columns of one number per eigenvalue that only the Krylov methods give.
PER_VALUE = (*ENDS, "value_bounds")
_LOOK = ("missed_distance", "missed_probability")
# Columns that the first files of this schema lack.
LATER = tuple(name for name, entry in SPECTRA.datasets.items() if entry.is_optional)


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """The spectrum of a batch at a checkpoint, with its certificates.

    Args:
        batch: Index of the batch in the order in which the seed draws them, from 0.
        values: Eigenvalues in nats per squared parameter, in the order of the solver.
        residuals: |Hv - lambda v| / |lambda| of each.
        converged: Whether each residual reached the tolerance.
        num_matvecs: Number of Hessian-vector products.
        ritz_values: Nodes of the Krylov quadrature, in nats per squared parameter; empty if the
            method has none.
        ritz_weights: Weights of the quadrature, which sum to 1.
        smallest, largest: The k smallest and the k largest Ritz values, outermost first; NaN where
            the method has fewer.
        smallest_residuals, largest_residuals: |Hv - lambda v| / |lambda| of each; NaN likewise.
        value_bounds: Bounds of |lambda - value| in nats per squared parameter, quadratic in the
            residuals and at most residual * |value|, for each of `values`; NaN where not known.
            They assume that the unseen part of the spectrum, outside the Krylov space, lies in the
            hull of the unwanted Ritz values, residuals included. Residuals need no assumption.
        missed_distance: An eigenvalue beyond the last of `values` that was missed with more than 1
            % probability lies within this distance of a computed value, as a fraction of that
            value; inf where nothing is excluded, NaN where no look was made.
        missed_probability: The largest probability, over the random start, that an eigenvalue was
            missed which lies beyond the last and farther than 5 % (than the tolerance, where that
            is larger) from every computed value; NaN where no look was made.
        num_negative, num_positive: Certified lower bounds of the numbers of eigenvalues of either
            sign; -1 if there is none.
        orthogonality_defect: max |V^T V - I| of the Krylov basis; NaN if the method has none.
        parameter_norm: Euclidean norm of the parameters under study; NaN if it was not computed.
        loss: Loss in nats, on this batch at these weights.
        batch_sha256, checkpoint_sha256: Digests of the pairs and of the file of the weights.
        num_params: Size n of the Hessian, coordinates of zero curvature included.
        num_unused: Number of parameters that this batch cannot move, such as rows of embeddings
            without a token in it. They are zeros of the spectrum, known exactly and left out of the
            solver's vectors; -1 if not counted.
        seconds: CPU time.
        settings: How it was computed where the protocol leaves freedom (device, threads, columns);
            plain JSON values.
        extras: Further facts about the checkpoint, such as the verdict of an audit; plain JSON
            values.

    Raises:
        ValueError: If shapes disagree, a number is not finite or too large for a float32, or a pair
            without a finite residual counts as converged.
    """

    series: str
    epoch: int
    batch: int
    values: Float[np.ndarray, " k"]
    residuals: Float[np.ndarray, " k"]
    converged: Bool[np.ndarray, " k"]
    num_matvecs: int
    ritz_values: Float[np.ndarray, " m"]
    ritz_weights: Float[np.ndarray, " m"]
    loss: float
    batch_sha256: str
    checkpoint_sha256: str
    num_params: int
    seconds: float
    smallest: Float[np.ndarray, " k"] = field(default_factory=lambda: np.zeros(0))
    smallest_residuals: Float[np.ndarray, " k"] = field(default_factory=lambda: np.zeros(0))
    largest: Float[np.ndarray, " k"] = field(default_factory=lambda: np.zeros(0))
    largest_residuals: Float[np.ndarray, " k"] = field(default_factory=lambda: np.zeros(0))
    value_bounds: Float[np.ndarray, " k"] = field(default_factory=lambda: np.zeros(0))
    missed_distance: float = math.nan
    missed_probability: float = math.nan
    num_unused: int = -1
    num_negative: int = -1
    num_positive: int = -1
    orthogonality_defect: float = math.nan
    parameter_norm: float = math.nan
    settings: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("values", "residuals", "converged", "ritz_values", "ritz_weights", *PER_VALUE):
            dtype = np.bool_ if name == "converged" else np.float64
            array: np.ndarray = np.array(getattr(self, name), dtype=dtype)
            if name in PER_VALUE and array.ndim == 1:
                array = padded(array[: self.values.size], self.values.size)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        for name in (
            "epoch",
            "batch",
            "num_matvecs",
            "num_params",
            "num_unused",
            "num_negative",
            "num_positive",
        ):
            object.__setattr__(self, name, int(getattr(self, name)))
        for name in ("loss", "seconds", "orthogonality_defect", "parameter_norm", *_LOOK):
            object.__setattr__(self, name, float(getattr(self, name)))
        self._check()

    def _check(self) -> None:
        if self.values.ndim != 1 or not (
            self.values.shape == self.residuals.shape == self.converged.shape
        ):
            shapes = f"{self.values.shape}, {self.residuals.shape}, {self.converged.shape}"
            raise ValueError(
                f"{self.key}: values, residuals and converged must all have shape (k,), got "
                f"{shapes}."
            )
        if self.ritz_values.ndim != 1 or self.ritz_values.shape != self.ritz_weights.shape:
            shapes = f"{self.ritz_values.shape}, {self.ritz_weights.shape}"
            raise ValueError(
                f"{self.key}: ritz_values and ritz_weights must both have shape (m,), got {shapes}."
            )
        for name in PER_VALUE:
            if getattr(self, name).shape != self.values.shape:
                raise ValueError(
                    f"{self.key}: {name} must have shape (k,), got {getattr(self, name).shape}."
                )
        for name in ("values", "ritz_values", "ritz_weights", "loss", "seconds"):
            if not np.isfinite(getattr(self, name)).all():
                raise ValueError(f"{self.key}: {name} must be finite, got {getattr(self, name)}.")
        for name in ("values", "ritz_values", "smallest", "largest"):
            if (np.abs(getattr(self, name)) > LARGEST_VALUE).any():
                raise ValueError(
                    f"{self.key}: {name} must be at most {LARGEST_VALUE:.3g} in size, got "
                    f"{getattr(self, name)}."
                )
        if not np.isfinite(self.residuals[self.converged]).all():
            raise ValueError(
                f"{self.key}: a pair without a finite residual cannot count as converged, got "
                f"{self.residuals}."
            )
        for name in ("epoch", "batch", "num_matvecs", "num_params", "seconds"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"{self.key}: {name} must not be negative, got {getattr(self, name)}."
                )
        # NaN stands for an unknown value.
        if (self.value_bounds < 0).any() or self.missed_distance < 0:
            raise ValueError(f"{self.key}: value_bounds and missed_distance must not be negative.")
        if self.missed_probability < 0 or self.missed_probability > 1:
            raise ValueError(
                f"{self.key}: missed_probability must be in [0, 1], got {self.missed_probability}."
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
        return len(self.values)


@dataclass(frozen=True, kw_only=True, eq=False)
class SpectraTable(CheckpointTable):
    """All stored spectra of a checkpoint.

    Columns are as in `Record`, whose `values` are `eigenvalues` here. Rows of `ritz_values` and
    `ritz_weights` that have fewer than m pairs end in NaN.
    """

    eigenvalues: Float[np.ndarray, "batch k"]
    residuals: Float[np.ndarray, "batch k"]
    converged: Bool[np.ndarray, "batch k"]
    num_matvecs: Int[np.ndarray, " batch"]
    ritz_values: Float[np.ndarray, "batch m"]
    ritz_weights: Float[np.ndarray, "batch m"]
    smallest: Float[np.ndarray, "batch k"]
    smallest_residuals: Float[np.ndarray, "batch k"]
    largest: Float[np.ndarray, "batch k"]
    largest_residuals: Float[np.ndarray, "batch k"]
    value_bounds: Float[np.ndarray, "batch k"]
    missed_distance: Float[np.ndarray, " batch"]
    missed_probability: Float[np.ndarray, " batch"]
    num_negative: Int[np.ndarray, " batch"]
    num_positive: Int[np.ndarray, " batch"]
    orthogonality_defect: Float[np.ndarray, " batch"]
    parameter_norm: Float[np.ndarray, " batch"]
    num_unused: Int[np.ndarray, " batch"]

    @property
    def num_not_converged(self) -> int:
        """Count the eigenvalues whose residual did not reach the tolerance."""
        return int(np.count_nonzero(~self.converged))

    def unsettled(self, *, which: str, tol: float) -> Bool[np.ndarray, " batch"]:
        """Find batches where another Ritz value may belong among the eigenvalues.

        Such a value, at either end, reaches beyond the last of the eigenvalues when its bound is
        added.

        Args:
            which, tol: As measured; a value within tol of the last eigenvalue does not count. False
                where no ends are known.
        """
        # A Ritz value theta with residual norm r = ||H v - theta v|| lies within r of an eigenvalue
        # (Parlett 1998, section 4.5). So an eigenvalue of size up to size(theta) + r is possible.
        ends = np.concatenate([self.smallest, self.largest], axis=1)
        norms = np.concatenate([self.smallest_residuals, self.largest_residuals], axis=1) * np.abs(
            ends
        )
        # Ritz values that are already among the eigenvalues do not count.
        among = np.isclose(ends[:, :, None], self.eigenvalues[:, None, :], rtol=1e-12, atol=0).any(
            axis=2
        )

        def size(values: np.ndarray) -> np.ndarray:
            return {"LM": np.abs(values), "LA": values, "SA": -values}[which]

        last = size(self.eigenvalues).min(axis=1, keepdims=True) + tol * np.abs(
            self.eigenvalues[:, -1:]
        )
        return np.asarray((~among & (size(ends) + norms > last)).any(axis=1))


def table_of(
    records: Iterable[tuple[Record, Mapping[str, Any]]], *, model: str, label: str, num_planned: int
) -> SpectraTable:
    """Build the table of a checkpoint from its records.

    Each record comes with the versions of the packages that measured it.
    """
    pairs = sorted(records, key=lambda pair: pair[0].batch)
    rows = [record for record, _ in pairs]
    facts = facts_of(rows, (versions for _, versions in pairs))
    columns: dict[str, Any] = stacked(rows, COLUMNS, eigenvalues="values")
    return SpectraTable(model=model, label=label, num_planned=num_planned, **facts, **columns)


def check_table(table: SpectraTable) -> None:
    """Check that a table holds valid records, as `Record` does.

    Raises:
        ValueError: If not; names the first wrong record and column.
    """
    check_columns(table)
    check_each(table, "eigenvalues", np.abs(table.eigenvalues) <= LARGEST_VALUE)
    for name in ("ritz_values", "smallest", "largest"):
        # NaN stands for a missing value.
        check_each(table, name, ~(np.abs(getattr(table, name)) > LARGEST_VALUE))
    if table.ritz_values.shape != table.ritz_weights.shape:
        raise ValueError(f"the quadratures of {table.series}/{table.epoch} have shapes that differ")
    check_each(
        table, "ritz_values", ends_in_nan(table.ritz_values)[:, None] | ~np.isnan(table.ritz_values)
    )
    check_each(table, "ritz_weights", ~(np.abs(table.ritz_weights) > LARGEST_VALUE))
    check_each(table, "ritz_weights", np.isnan(table.ritz_weights) == np.isnan(table.ritz_values))
    for name in ("value_bounds", *_LOOK):
        check_each(table, name, ~(getattr(table, name) < 0))
    check_each(table, "missed_probability", ~(table.missed_probability > 1))
    check_each(table, "residuals", ~table.converged | np.isfinite(table.residuals))
    check_each(table, "num_matvecs", table.num_matvecs >= 0)
