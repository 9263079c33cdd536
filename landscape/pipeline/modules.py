"""Measure the spectrum of every module of a manifest's networks: one record per mini-batch and checkpoint.

Beside the spectra of the whole and in the same output, as they resume, fail and merge on their own: they cost several
times as much, so fewer batches may do.
"""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.errors import LandscapeError, ManifestError, ObjectiveError
from landscape.manifest import HessianSettings, Manifest
from landscape.pipeline.audit import stored_verdicts
from landscape.pipeline.measure import How, Show, attempted, check_everything, kept, progress_shown, run, show_notes, subjects
from landscape.pipeline.plan import RunReport, Task, plan
from landscape.pipeline.products import ProductSettings
from landscape.pipeline.solve import Solver, SolverSettings
from landscape.pipeline.weights import check_weights
from landscape.store import ModuleRecord, SpectrumStore, SpectrumWriter

if TYPE_CHECKING:
    import numpy as np
    import torch

    from landscape.clip.checkpoint import CheckpointInfo
    from landscape.curvature import ModuleSpectrum
    from landscape.pipeline.subject import Subject


def run_with_modules(
    manifest: Manifest,
    output: Path,
    *,
    modules: tuple[str, ...] = (),
    module_batches: int | None = None,
    method: str | None = None,
    device: str | None = None,
    hvp: str = "double-backward",
    unaudited: bool = False,
    products: ProductSettings = ProductSettings(),
    solver: SolverSettings = SolverSettings(),
    dry_run: bool = False,
    progress: bool | None = None,
) -> tuple[RunReport, RunReport]:
    """`run`, and after it the spectra of the modules of every checkpoint that are not in `output` yet.

    Those start from random vectors, whatever `solver` says of the whole.

    Args:
        modules: Shell patterns of module names; none for every block of the network and what is left.
        module_batches: Measure the modules on the first batches only; None on all.

    The rest is as in `run`.

    Returns:
        The report of the whole and that of the modules.

    Raises:
        LandscapeError: As `run`; and if the method is not Lanczos by double backward, a pattern names no module, or the output
            has the spectra of other modules.
    """
    if (method or manifest.hessian.method) != "lanczos" or hvp != "double-backward":
        raise LandscapeError(
            f"{manifest.path}: the spectra of modules are measured by Lanczos with double backward, as only these take one block "
            "of the Hessian at a time. Leave --per-module out, or ask for --method lanczos."
        )
    if module_batches is not None and not 1 <= module_batches <= manifest.data.num_batches:
        raise ManifestError(
            f"{manifest.path}: it has {manifest.data.num_batches} batches, so modules cannot be measured on {module_batches}. "
            "Lower --module-batches."
        )
    most = manifest.data.num_batches if module_batches is None else module_batches
    check_weights(manifest, _tasks(manifest, _completed(output, manifest), most))
    for task, subject in subjects(manifest, plan(manifest, frozenset()), device) if modules else ():
        _modules_of(subject, task, modules)
    options: dict[str, Any] = {"device": device, "unaudited": unaudited, "dry_run": dry_run, "progress": progress}
    options |= {"products": products, "solver": solver}
    whole = run(manifest, output, method=method, hvp=hvp, **options)
    return whole, run_modules(manifest, output, modules=modules, module_batches=module_batches, **options)


def run_modules(
    manifest: Manifest,
    output: Path,
    *,
    modules: tuple[str, ...] = (),
    module_batches: int | None = None,
    device: str | None = None,
    unaudited: bool = False,
    products: ProductSettings = ProductSettings(),
    solver: SolverSettings = SolverSettings(),
    dry_run: bool = False,
    progress: bool | None = None,
) -> RunReport:
    """The spectra of modules alone; arguments as for `run_with_modules`."""
    most = manifest.data.num_batches if module_batches is None else module_batches
    num_planned = sum(len(one.checkpoints) for one in manifest.series) * most
    if dry_run:
        tasks = _tasks(manifest, _completed(output, manifest), most)
        num_stored = num_planned - sum(len(task.batches) for task in tasks)
        said = ("The time of modules comes on top of that of the whole.",) if tasks else ()
        todo = tuple(tasks)
        return RunReport(
            output=output, num_planned=num_planned, num_stored=num_stored, todo=todo, forecast=said, what="modules"
        )
    with SpectrumWriter(output, manifest) as writer:
        tasks = _tasks(manifest, writer.completed_modules(), most)
        num_stored = num_planned - sum(len(task.batches) for task in tasks)
        report = RunReport(output=output, num_planned=num_planned, num_stored=num_stored, what="modules")
        if tasks:
            how = How("double-backward", stored_verdicts(output, manifest), solver=Solver(solver))
            notes = check_everything(manifest, tasks, device, how, unaudited=unaudited, products=products, output=output)
            show_notes(notes, shown=progress)
            with progress_shown(num_planned, num_stored, shown=progress) as show:
                report = _measure_all(manifest, tasks, writer, report, modules, how=how, device=device, show=show)
        writer.merge()
    return report


def _completed(output: Path, manifest: Manifest) -> frozenset[str]:
    SpectrumStore.check(output, manifest)
    try:
        with SpectrumStore.open(output) as store:
            return store.completed_modules()
    except LandscapeError:
        # Nothing is there yet; what is wrong with something that is, `check` has said.
        return frozenset()


def _tasks(manifest: Manifest, stored: frozenset[str], most: int) -> list[Task]:
    """The tasks that are left on the first `most` batches."""
    tasks = (replace(task, batches=tuple(i for i in task.batches if i < most)) for task in plan(manifest, stored))
    return [task for task in tasks if task.batches]


def _measure_all(
    manifest: Manifest,
    tasks: list[Task],
    writer: SpectrumWriter,
    report: RunReport,
    patterns: tuple[str, ...],
    *,
    how: How,
    device: str | None,
    show: Show,
) -> RunReport:
    failures: list[str] = []
    measured = unconverged = 0
    for task, subject in subjects(manifest, tasks, device):
        info = subject.load(task.checkpoint)
        modules = _modules_of(subject, task, patterns)
        writer.check_modules(task.series.name, tuple(modules))
        show(f"{task.series.name} epoch {task.checkpoint.epoch}, {len(modules)} modules", 0)
        for batch in task.batches:
            record = attempted(
                partial(_measure, manifest.hessian, task, subject, batch, modules, info, how=how),
                has_worked=bool(measured or report.num_stored),
            )
            if isinstance(record, str):
                failures.append(f"modules of {task.series.name} epoch {task.checkpoint.epoch} batch {batch}: {record}")
            else:
                writer.add_modules(record)
                measured += 1
                unconverged += record.num_not_converged
            show("", 1)
    return replace(report, num_measured=measured, num_unconverged=unconverged, failures=tuple(failures))


def _modules_of(subject: "Subject", task: Task, patterns: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    from landscape.curvature import modules_of

    try:
        return modules_of(subject.model, subject.params, patterns or None)
    except ObjectiveError as error:
        raise ObjectiveError(f"series {task.series.name!r} ({task.series.model}): {error}") from error


def _measure(
    hessian: HessianSettings,
    task: Task,
    subject: "Subject",
    batch: int,
    modules: dict[str, tuple[str, ...]],
    info: "CheckpointInfo",
    *,
    how: How,
) -> ModuleRecord:
    """The spectra of the modules on one batch.

    Raises:
        ObjectiveError, NumericalError: If there are none.
        MemoryLimitError: If a product does not fit in memory.
    """
    from landscape.clip.seeding import derive_seed
    from landscape.curvature import spectra_of
    from landscape.pipeline.subject import settings_of

    begun = time.process_time()
    products = how.products[task.series.name]
    blocks = products.blocks(subject.objective, subject.params, subject.batch(batch), modules)
    seed = derive_seed("start", hessian.seed, batch)
    spectra = spectra_of(
        blocks,
        k=hessian.k,
        which=hessian.which,  # type: ignore[arg-type]
        tol=hessian.tol,
        max_matvecs=hessian.max_matvecs,
        seed=seed,
        max_basis_memory=how.solver.settings.max_basis_memory,
    )
    products.keep(blocks)
    return kept(
        ModuleRecord,
        series=task.series.name,
        epoch=task.checkpoint.epoch,
        batch=batch,
        modules=tuple(one.module for one in spectra),
        **_columns(spectra, hessian.k),
        loss=blocks.loss,
        batch_sha256=subject.batches.digest(batch),
        checkpoint_sha256=info.sha256,
        num_params=sum(tensor.numel() for tensor in subject.params.values()),
        seconds=time.process_time() - begun,
        settings=settings_of(subject, hessian, product=f"{blocks.choice.title}, block by block")
        | {"product_choice": blocks.choice.as_settings()}
        | how.solver.settings.room(),
        extras={"audit": how.audits[task.series.name], "operator": blocks.checked} | subject.notes_on(info),
    )


def _columns(spectra: "tuple[ModuleSpectrum, ...]", k: int) -> dict[str, Any]:
    import numpy as np

    rows: dict[str, list[Any]] = {}
    for one in spectra:
        pairs, ritz = one.pairs, one.pairs.ritz
        assert ritz is not None, "Lanczos gives both ends"
        (smallest, below), (largest, above) = ritz.end("SA", k), ritz.end("LA", k)
        values = {
            "eigenvalues": _padded(pairs.values, k),
            "residuals": _padded(pairs.residuals, k),
            "converged": np.concatenate([pairs.converged.numpy(), np.zeros(k - len(pairs.converged), dtype=bool)]),
            "smallest": _padded(smallest, k),
            "smallest_residuals": _padded(below, k),
            "largest": _padded(largest, k),
            "largest_residuals": _padded(above, k),
            "module_params": one.num_params,
            "num_negative": ritz.num_negative,
            "num_positive": ritz.num_positive,
            "num_matvecs": pairs.num_matvecs,
        }
        for name, value in values.items():
            rows.setdefault(name, []).append(value)
    return {name: np.stack(values) for name, values in rows.items()}


def _padded(values: "torch.Tensor", k: int) -> "np.ndarray":
    import numpy as np

    return np.concatenate([values.numpy(), np.full(k - len(values), np.nan)])
