"""What is inside an output, in lines for a terminal and as values."""

import os
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from landscape.linalg.missed import NEAR, PROBABILITY, MissedLook
from landscape.store.as_trained import described_as_trained, notes_of
from landscape.store.lock import lock_owner
from landscape.store.parts import parts_folder
from landscape.store.record import SpectraTable
from landscape.store.store import SpectrumStore
from landscape.store.table import UNIT, combined
from landscape.store.verdicts import operator_checks
from landscape.workers.run_status import read_status, status_lines


@dataclass(frozen=True, kw_only=True)
class CheckpointSummary:
    """One checkpoint in numbers; eigenvalues in nats per squared parameter, over all its batches.

    Args:
        num_unused: Parameters that a batch cannot move, the fewest and the most over batches; None where nobody counted.
        num_not_converged: Eigenvalues whose residual did not reach the tolerance.
        num_unsettled: Batches in which another Ritz value may belong among the eigenvalues.
        worst_residual: The largest relative residual.
    """

    series: str
    epoch: int
    model: str
    num_params: int
    num_unused: tuple[int, int] | None
    num_records: int
    num_planned: int
    num_not_converged: int
    num_unsettled: int
    largest: float
    smallest: float
    worst_residual: float
    mean_loss: float


def is_store(path: Path) -> bool:
    """Whether a path looks like an output, finished or growing, from its first bytes alone."""
    return parts_folder(path).is_dir() or (path.is_file() and bool(h5py.is_hdf5(path)))


def summarize(store: SpectrumStore) -> list[CheckpointSummary]:
    """One summary per checkpoint that has a record, in the order of the manifest."""
    return [_summary(store.records(*key), store) for key in store.identities]


def _summary(table: SpectraTable, store: SpectrumStore) -> CheckpointSummary:
    hessian = store.plan.protocol["hessian"]
    return CheckpointSummary(
        series=table.series,
        epoch=table.epoch,
        model=table.model,
        num_params=table.num_params,
        num_unused=None
        if table.num_unused.min() < 0
        else (int(table.num_unused.min()), int(table.num_unused.max())),
        num_records=table.num_records,
        num_planned=table.num_planned,
        num_not_converged=table.num_not_converged,
        num_unsettled=int(table.unsettled(which=hessian["which"], tol=hessian["tol"]).sum()),
        largest=float(table.eigenvalues.max()),
        smallest=float(table.eigenvalues.min()),
        worst_residual=float(np.max(table.residuals)),
        mean_loss=float(table.loss.mean()),
    )


def _unused(one: CheckpointSummary) -> str:
    """What to say of parameters that a batch leaves out; nothing where there are none."""
    if one.num_unused is None or one.num_unused[1] == 0:
        return ""
    fewest, most = one.num_unused
    return (
        f", {fewest} of them unused by a batch"
        if fewest == most
        else f", {fewest} to {most} of them unused by a batch"
    )


def _unsettled(one: CheckpointSummary) -> str:
    if not one.num_unsettled:
        return ""
    return f", in {one.num_unsettled} batch{'es' * (one.num_unsettled > 1)} another value may belong among them"


def _look(tables: list[SpectraTable], *, tol: float) -> list[str]:
    """What was excluded beyond the last values of a series, and in how many batches; nothing where no look was made."""
    distances = np.concatenate([table.missed_distance for table in tables])
    misses = np.concatenate([table.missed_probability for table in tables])
    excluded = misses <= PROBABILITY
    if not excluded.any():
        return []
    worst = MissedLook(
        probability=PROBABILITY,
        distance=float(distances[excluded].max()),
        near=max(NEAR, tol),
        far_probability=float(misses[excluded].max()),
    )
    return [f"in {excluded.sum()} of {len(misses)} batches {worst}"]


def describe(path: str | Path) -> list[str]:
    """The lines that `landscape info` prints of a store.

    Raises:
        StoreError: As `SpectrumStore.open`.
    """
    with SpectrumStore.open(path) as store:
        lines = [*_head(store), *_running(store)]
        tables: dict[str, list[SpectraTable]] = {}
        for key in store.identities:
            table = store.records(*key)
            lines.append(_line(_summary(table, store)))
            tables.setdefault(table.series, []).append(table)
        for series, stored in tables.items():
            settings, extras = (
                combined(table.settings for table in stored),
                combined(table.extras for table in stored),
            )
            lines += [f"{series} {line}" for line in described_as_trained(settings)]
            lines += [f"{series} note: {note}" for note in notes_of(extras)]
            lines += [f"{series} {said}" for said in operator_checks(extras)]
            lines += [
                f"{series} {said}"
                for said in _look(stored, tol=store.plan.protocol["hessian"]["tol"])
            ]
        for series, epoch in store.module_identities:
            modules, batches = store.module_names(series), store.module_batches(series, epoch)
            lines.append(
                f"{series} epoch {epoch}: spectra of {len(modules or ())} modules on {len(batches)} batches"
            )
        lines += [f"not used: {part.path.name}: {part.reason}" for part in store.rejected]
    return lines


def _head(store: SpectrumStore) -> list[str]:
    """What was asked for, and how much of it is there."""
    data, hessian = store.plan.protocol["data"], store.plan.protocol["hessian"]
    num_planned = store.plan.num_records
    num_stored = len(store.completed_keys())
    state = "complete" if num_stored == num_planned else "unfinished"
    return [
        f"store, schema version 1, {state}: {num_stored} of {num_planned} records",
        f"written by landscape {store.plan.landscape_version}, manifest sha256 {store.plan.manifest_sha256}",
        f"data: {data['source']} ({data['split']}), {data['num_samples']} pairs in batches of {data['batch_size']}, "
        f"augmentation {data['augmentation']}, seed {data['seed']}",
        f"eigenvalues: {hessian['k']} {hessian['which']} by {hessian['method']} of the {hessian['objective']} loss, "
        f"parameters {hessian['parameters']}, tol {hessian['tol']}, {hessian['dtype']}; in {UNIT}",
    ]


def _running(store: SpectrumStore) -> list[str]:
    """How far the run is that writes the store; nothing where none does, as far as this machine can see."""
    folder = parts_folder(store.path)
    status = read_status(folder)
    if status is None or (status.host == os.uname().nodename and lock_owner(folder) is None):
        return []
    return status_lines(status)


def _line(summary: CheckpointSummary) -> str:
    return (
        f"{summary.series} epoch {summary.epoch} ({summary.model}, {summary.num_params} parameters{_unused(summary)}): "
        f"{summary.num_records} of {summary.num_planned} batches, eigenvalues {summary.smallest:.4g} to {summary.largest:.4g}, "
        f"{summary.num_not_converged} not converged{_unsettled(summary)}, worst residual {summary.worst_residual:.1e}, "
        f"mean loss {summary.mean_loss:.4f}"
    )
