"""The content of an output, as lines for a terminal and as values."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from landscape.linalg.missed import NEAR, PROBABILITY, MissedLook
from landscape.manifest.samples import samples_in_full, source_in_full
from landscape.store.as_trained import described_as_trained, notes_of
from landscape.store.lock import lock_owner
from landscape.store.parts import parts_folder
from landscape.store.record import SpectraTable
from landscape.store.store import SpectrumStore
from landscape.store.table import combined, unit_of
from landscape.store.verdicts import operator_checks
from landscape.terminal import size_text
from landscape.workers.run_status import read_status, status_lines


@dataclass(frozen=True, kw_only=True)
class CheckpointSummary:
    """Summary of a checkpoint over all its batches.

    Eigenvalues are in nats per squared parameter.

    Args:
        num_unused: Parameters that a batch cannot move: the fewest and the most over batches; None
            where they were not counted.
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
    """Tell whether a path looks like an output.

    Decided from its first bytes. The output may be finished or growing.
    """
    return parts_folder(path).is_dir() or (path.is_file() and bool(h5py.is_hdf5(path)))


def summarize(store: SpectrumStore) -> list[CheckpointSummary]:
    """Summarize each checkpoint with a record, in manifest order."""
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


def _unused(summary: CheckpointSummary) -> str:
    """Describe parameters that a batch does not use, if any."""
    if summary.num_unused is None or summary.num_unused[1] == 0:
        return ""
    fewest, most = summary.num_unused
    return (
        f", {fewest} of them unused by a batch"
        if fewest == most
        else f", {fewest} to {most} of them unused by a batch"
    )


def _unsettled(summary: CheckpointSummary) -> str:
    if not summary.num_unsettled:
        return ""
    return (
        f", in {summary.num_unsettled} batch{'es' * (summary.num_unsettled > 1)} another value may "
        "belong among them"
    )


def _look(tables: list[SpectraTable], *, tol: float) -> list[str]:
    """Describe which eigenvalues the look for missed ones excludes.

    They lie beyond the last values of a series. Also says in how many batches; empty where no look
    was made.
    """
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


def _threshold(table: SpectraTable) -> str:
    """The value that preconditioned eigenvalues compare with; nothing for those of the Hessian
    itself.
    """
    facts = table.settings.get("preconditioner")
    if not isinstance(facts, Mapping):
        return ""
    if "no_threshold" in facts:
        return f", no stability threshold ({facts['no_threshold']})"
    if facts.get("threshold") is None:
        return (
            ", no stability threshold "
            f"({'several runs' if 'several' in facts else 'the learning rate is 0'})"
        )
    share = 100 * float(table.eigenvalues.max()) / facts["threshold"]
    return (
        f", stability threshold {facts['threshold']:.4g} = {facts['formula']} at lr "
        f"{facts['learning_rate']:.4g} ({facts['source']}): the largest eigenvalue is {share:.3g} "
        "% of it"
    )


def describe(path: str | Path) -> list[str]:
    """Describe a store in the lines that `landscape info` prints.

    Raises:
        StoreError: As `SpectrumStore.open`.
    """
    with SpectrumStore.open(path) as store:
        lines = [*_head(store), *running_lines(store.path)]
        tables: dict[str, list[SpectraTable]] = {}
        for key in store.identities:
            table = store.records(*key)
            lines.append(_line(_summary(table, store)) + _threshold(table))
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
                for said in _mixed_versions(combined(table.versions for table in stored))
            ]
            lines += [
                f"{series} {said}"
                for said in _look(stored, tol=store.plan.protocol["hessian"]["tol"])
            ]
        for series, epoch in store.module_identities:
            modules, batches = store.module_names(series), store.module_batches(series, epoch)
            lines.append(
                f"{series} epoch {epoch}: spectra of {len(modules or ())} modules on "
                f"{len(batches)} batches"
            )
        lines += _vectors(store)
        lines += [f"not used: {part.path.name}: {part.reason}" for part in store.rejected]
    return lines


def _vectors(store: SpectrumStore) -> list[str]:
    """Describe the kept eigenvectors, a line for each checkpoint."""
    lines = []
    for (series, epoch), batches in store.vectors.checkpoints.items():
        size, rounding, k = 0, 0.0, 0
        for batch in batches:
            with store.vectors.open(series, epoch, batch) as vectors:
                size, k = size + vectors.num_stored_bytes, vectors.k
                rounding = max(rounding, float(vectors.rounding.max()))
        lines.append(
            f"{series} epoch {epoch}: {k} eigenvectors of each of {len(batches)} batches, "
            f"{size_text(size)}, rounding at most {rounding:.1e}"
        )
    return lines


def _mixed_versions(versions: Mapping[str, Any]) -> list[str]:
    """List packages of which several versions measured a series.

    Empty where all records share the same versions.
    """
    return [
        f"records by several versions of {package}: {', '.join(map(str, version['several']))}"
        for package, version in versions.items()
        if isinstance(version, Mapping)
    ]


def _head(store: SpectrumStore) -> list[str]:
    """Describe the request, and how much of it is stored."""
    data, hessian = store.plan.protocol["data"], store.plan.protocol["hessian"]
    # Text has no augmentation.
    augmentation = (
        "" if data.get("block_size") is not None else f"augmentation {data['augmentation']}, "
    )
    num_planned = store.plan.num_records
    num_stored = len(store.completed_keys())
    state = "complete" if num_stored == num_planned else "unfinished"
    return [
        f"store, schema version 1, {state}: {num_stored} of {num_planned} records",
        f"written by landscape {store.plan.landscape_version}, manifest sha256 "
        f"{store.plan.manifest_sha256}",
        f"data: {source_in_full(data)}, {data['num_samples']} {samples_in_full(data)} in batches "
        f"of {data['batch_size']}, {augmentation}seed {data['seed']}",
        f"eigenvalues: {hessian['k']} {hessian['which']} by {hessian['method']} of the "
        f"{hessian['objective']} loss, parameters {hessian['parameters']}, tol {hessian['tol']}, "
        f"{hessian['dtype']}; in {unit_of(hessian)}",
        *(
            ["preconditioned by Adam: eigenvalues of P^-1/2 H P^-1/2"]
            if store.preconditioner != "none"
            else []
        ),
    ]


def running_lines(path: Path) -> list[str]:
    """Describe the progress of the run that writes an output.

    Empty where no run does, as far as this machine can see.
    """
    folder = parts_folder(path)
    status = read_status(folder)
    if status is None or (status.host == os.uname().nodename and lock_owner(folder) is None):
        return []
    return status_lines(status)


def _line(summary: CheckpointSummary) -> str:
    return (
        f"{summary.series} epoch {summary.epoch} ({summary.model}, {summary.num_params} "
        f"parameters{_unused(summary)}): {summary.num_records} of {summary.num_planned} batches, "
        f"eigenvalues {summary.smallest:.4g} to {summary.largest:.4g}, {summary.num_not_converged} "
        f"not converged{_unsettled(summary)}, worst residual {summary.worst_residual:.1e}, mean "
        f"loss {summary.mean_loss:.4f}"
    )
