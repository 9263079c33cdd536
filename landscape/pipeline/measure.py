"""Measure what a manifest asks for: one record per mini-batch and checkpoint, stored as soon as it is known.

Everything that can be found wrong before the first product is: the manifest, the output, the data, every checkpoint that
has a batch left. After that a batch that fails costs that batch alone.
"""

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from landscape.errors import (
    LandscapeError,
    ManifestError,
    MemoryLimitError,
    NumericalError,
    ObjectiveError,
    PictureError,
    StoreError,
)
from landscape.manifest import HessianSettings, Manifest, canonical_json
from landscape.pipeline.audit import check_hvp, stored_verdicts, verdict_of
from landscape.pipeline.forecast import forecast
from landscape.pipeline.plan import RunReport, Task, plan
from landscape.pipeline.products import ProductSettings, SeriesProducts
from landscape.pipeline.solve import Solver, SolverSettings
from landscape.pipeline.weights import check_weights
from landscape.store import Record, SpectrumStore, SpectrumWriter, models_as_trained, value_text

if TYPE_CHECKING:
    import torch

    from landscape.clip.checkpoint import CheckpointInfo
    from landscape.curvature import Params
    from landscape.linalg import RitzValues
    from landscape.pipeline.subject import Subject

Show = Callable[[str, int], None]
_Result = TypeVar("_Result")
_PRODUCTS = {"double-backward": "double backward, retained graph", "finite-difference": "central differences of gradients"}


@dataclass(frozen=True)
class How:
    """The kind of product, and of each series the verdict of the audit and the way of its products."""

    hvp: str
    audits: dict[str, Any] = field(default_factory=dict)
    products: dict[str, SeriesProducts] = field(default_factory=dict)
    solver: Solver = field(default_factory=Solver)


def run(
    manifest: Manifest,
    output: Path,
    *,
    method: str | None = None,
    device: str | None = None,
    hvp: str = "double-backward",
    unaudited: bool = False,
    products: ProductSettings = ProductSettings(),
    solver: SolverSettings = SolverSettings(),
    dry_run: bool = False,
    progress: bool | None = None,
) -> RunReport:
    """Measure every batch of every checkpoint that is not in `output` yet, then make it one file.

    Args:
        method: "lanczos", "power" or "pyhessian" instead of the manifest's.
        device: "cpu", "cuda", ...; by default CUDA where there is one.
        hvp: "double-backward", or "finite-difference" where only first derivatives exist.
        unaudited: Measure without asking whether the products are second derivatives; every record says so.
        products: How they are computed, and in how much memory.
        solver: From where the search starts, and in how much memory.
        dry_run: Only say what is left, what would be refused, and what the rest takes in time and memory.
        progress: None draws a bar where stderr is a terminal and writes a line per checkpoint elsewhere; False is silent.

    Returns:
        The report; not `complete` where batches failed.

    Raises:
        LandscapeError: If anything is wrong that can be known before the first product; nothing is written then.
    """
    manifest = _with_method(manifest, method)
    check_hvp(manifest, hvp)
    products.check(manifest.hessian.method, hvp)
    solver.check(manifest.hessian.method)
    tasks = plan(manifest, SpectrumStore.check(output, manifest))
    num_planned = sum(len(one.checkpoints) for one in manifest.series) * manifest.data.num_batches
    num_stored = num_planned - sum(len(task.batches) for task in tasks)
    report = RunReport(output=output, num_planned=num_planned, num_stored=num_stored)
    show_notes(check_weights(manifest, tasks), shown=progress)
    if dry_run:
        audited = hvp != "finite-difference" and not unaudited
        place = device_of(device)
        looked = forecast(manifest, tasks, place, hvp=hvp, audited=audited, products=products, solver=solver)
        return replace(report, todo=tuple(tasks), forecast=looked.lines, num_refused=looked.num_refused)
    how = How(hvp=hvp)
    if tasks:
        audits = {} if hvp == "finite-difference" else stored_verdicts(output, manifest)
        how = How(hvp, audits, solver=Solver(solver))
        notes = check_everything(manifest, tasks, device, how, unaudited=unaudited, products=products, output=output)
        show_notes(notes, shown=progress)
    with SpectrumWriter(output, manifest) as writer:
        # Another run may have finished since.
        tasks = plan(manifest, writer.completed_keys())
        if tasks:
            with progress_shown(num_planned, num_stored, shown=progress) as show:
                report = _measure_all(manifest, tasks, writer, report, how=how, device=device, show=show)
        writer.merge()
    return report


def _with_method(manifest: Manifest, method: str | None) -> Manifest:
    if method is None:
        return manifest
    try:
        return replace(manifest, hessian=replace(manifest.hessian, method=method))
    except ValueError as error:
        raise ManifestError(f"{manifest.path}, with --method {method}: {error}") from error


def check_everything(
    manifest: Manifest,
    tasks: list[Task],
    device: str | None,
    how: How,
    *,
    unaudited: bool,
    products: ProductSettings,
    output: Path,
) -> tuple[str, ...]:
    """Build every model, audit it and load every checkpoint once, so that a wrong one is refused before any work is done.

    Args:
        how: Gets the verdict and the way of products of every series that has something to measure. Verdicts that it has are
            not repeated.
        output: Whose records must be of the same functions.

    Returns:
        What is to be known of the data, the runs and the checkpoints, a sentence each.
    """
    notes = Notes()
    if manifest.hessian.method == "pyhessian":
        from landscape.curvature.reference import import_pyhessian

        import_pyhessian()
    for task, subject in subjects(manifest, tasks, device):
        name = task.series.name
        if name not in how.products:
            check_same_function(output, name, subject)
        if name not in how.audits:
            how.audits[name] = verdict_of(subject, manifest, task.series, unaudited=unaudited, hvp=how.hvp)
        info = subject.load(task.checkpoint)
        notes.add(subject, info, series=name)
        if name not in how.products:
            how.products[name] = SeriesProducts(products)
            if how.hvp == "double-backward" and manifest.hessian.method != "pyhessian":
                # Batches that are left after a bad picture may all be bad.
                read = partial(subject.first_batch, (*task.batches, *range(len(subject.batches))))
                operator = how.products[name].choose(subject.objective, subject.params, read)
                if operator is not None:
                    how.solver.settings.check_fits(operator, manifest.hessian.k)
    return notes.said


class Notes:
    """What is to be known of data, runs and checkpoints, each sentence once.

    Of sentences that differ in their numbers alone, as those of several epochs do, a series keeps the first.
    """

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def add(self, subject: "Subject", info: "CheckpointInfo", *, series: str) -> None:
        """Take the notes of a checkpoint that was just loaded."""
        self._said |= {note: note for note in subject.batches.notes}
        for note in (*subject.trained.notes, *info.notes):
            self._said.setdefault(f"{series} {re.sub('[0-9]+', '0', note)}", f"{series}: {note}")

    @property
    def said(self) -> tuple[str, ...]:
        return tuple(self._said.values())


def show_notes(notes: Iterable[str], *, shown: bool | None) -> None:
    """Write notes to stderr, a line each, unless progress is silent."""
    for note in notes if shown is not False else ():
        print(f"note: {note}", file=sys.stderr, flush=True)


def check_same_function(output: Path, series: str, subject: "Subject") -> None:
    """Refuse to add to records of a model that was prepared otherwise than this one is.

    The plan of an output knows what was stated of a run; this looks at what came of it.

    Raises:
        StoreError: If so; names what differs.
    """
    try:
        store = SpectrumStore.open(output)
    except LandscapeError:
        return
    with store:
        epochs = store.epochs(series) if series in store.series() else ()
        models = [used for epoch in epochs for used in models_as_trained(store.records(series, epoch).settings)]
    for used in models:
        for name, (value, source) in used.items():
            now = subject.used.get(name, [value])
            if canonical_json(now[0]) != canonical_json(value):
                setting = name.replace("_", " ")
                raise StoreError(
                    f"{output}: series {series!r} was measured with {setting} {value_text(value)} ({source}), but now it is "
                    f"{value_text(now[0])} ({now[1]}), which is another function. Name another output with -o, or go back to the "
                    "files that were there."
                )


def subjects(manifest: Manifest, tasks: list[Task], device: str | None) -> Iterator[tuple[Task, "Subject"]]:
    """Each task with its subject; a model is built once per series."""
    from landscape.clip.image_text import open_pairs
    from landscape.pipeline.subject import Subject

    pairs = open_pairs(manifest.data)
    subject, name = None, None
    for task in tasks:
        if subject is None or task.series.name != name:
            subject = Subject.of(manifest, task.series, pairs, device=device_of(device))
            name = task.series.name
        yield task, subject


def device_of(name: str | None) -> "torch.device":
    """The device of that name; by default CUDA where there is one.

    Raises:
        LandscapeError: If it is not there.
    """
    import torch

    try:
        device = torch.device(name if name is not None else "cuda" if torch.cuda.is_available() else "cpu")
        torch.empty(0, device=device)
    # torch raises what the back end raises: AssertionError, RuntimeError, NotImplementedError.
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise LandscapeError(f"device {name!r} is not available here ({reason}). Ask for another, such as cpu.") from error
    return device


def _measure_all(
    manifest: Manifest,
    tasks: list[Task],
    writer: SpectrumWriter,
    report: RunReport,
    *,
    how: How,
    device: str | None,
    show: Show,
) -> RunReport:
    failures: list[str] = []
    measured = unconverged = 0
    for task, subject in subjects(manifest, tasks, device):
        info = subject.load(task.checkpoint)
        show(f"{task.series.name} epoch {task.checkpoint.epoch}", 0)
        for batch in task.batches:
            record = attempted(
                partial(_measure, manifest.hessian, task, subject, batch, info, how),
                has_worked=bool(measured or report.num_stored),
            )
            if isinstance(record, str):
                failures.append(f"{task.series.name} epoch {task.checkpoint.epoch} batch {batch}: {record}")
            else:
                writer.add(record)
                measured += 1
                unconverged += int((~record.converged).sum())
            show("", 1)
    return replace(report, num_measured=measured, num_unconverged=unconverged, failures=tuple(failures))


def attempted(measure: Callable[[], _Result], *, has_worked: bool) -> _Result | str:
    """What `measure` finds on one batch, or why it finds nothing, on one line: such a batch costs itself alone.

    Raises:
        ObjectiveError, MemoryLimitError: If nothing has ever worked: then the model or the limit is at fault, not this batch.
    """
    try:
        return measure()
    except (NumericalError, ObjectiveError, PictureError, MemoryError, RuntimeError) as error:
        if isinstance(error, (ObjectiveError, MemoryLimitError)) and not has_worked:
            raise
        return " ".join(str(error).split())[:500]


def _measure(
    hessian: HessianSettings, task: Task, subject: "Subject", batch: int, info: "CheckpointInfo", how: How
) -> Record:
    """The spectrum of one batch.

    Raises:
        ObjectiveError, NumericalError: If there is none.
    """
    import numpy as np

    from landscape.pipeline.subject import settings_of

    begun = time.process_time()
    products = how.products.setdefault(task.series.name, SeriesProducts(ProductSettings()))
    pairs, operator = how.solver.solve(hessian, subject, batch, series=task.series.name, hvp=how.hvp, products=products)
    nodes = weights = np.zeros(0)
    if pairs.quadrature is not None:
        nodes, weights = pairs.quadrature.nodes.numpy(), pairs.quadrature.weights.numpy()
    ends: dict[str, Any] = {} if pairs.ritz is None else _ends(pairs.ritz, hessian.k)
    return kept(
        Record,
        series=task.series.name,
        epoch=task.checkpoint.epoch,
        batch=batch,
        values=pairs.values.cpu().numpy(),
        residuals=pairs.residuals.cpu().numpy(),
        converged=pairs.converged.cpu().numpy(),
        num_matvecs=pairs.num_matvecs,
        ritz_values=nodes,
        ritz_weights=weights,
        **ends,
        parameter_norm=_norm(subject.params),
        loss=operator.loss,
        batch_sha256=subject.batches.digest(batch),
        checkpoint_sha256=info.sha256,
        num_params=operator.n,
        num_unused=operator.num_unused,
        seconds=time.process_time() - begun,
        settings=settings_of(subject, hessian, product=_PRODUCTS[how.hvp]) | products.settings() | how.solver.facts(),
        extras={"audit": how.audits[task.series.name], "operator": pairs.checked} | subject.notes_on(info),
    )


def kept(kind: Callable[..., _Result], **columns: Any) -> _Result:
    """The record of these columns.

    Raises:
        NumericalError: If one holds a value that cannot be stored, as after an overflow.
    """
    try:
        return kind(**columns)
    except ValueError as error:
        raise NumericalError(f"{error} The loss or its products overflowed; scale the loss, or use dtype float64.") from error


def _ends(ritz: "RitzValues", k: int) -> dict[str, Any]:
    """Both ends of the spectrum as columns of a record."""
    (smallest, below), (largest, above) = ritz.end("SA", k), ritz.end("LA", k)
    return {
        "smallest": smallest.numpy(),
        "smallest_residuals": below.numpy(),
        "largest": largest.numpy(),
        "largest_residuals": above.numpy(),
        "num_negative": ritz.num_negative,
        "num_positive": ritz.num_positive,
        "orthogonality_defect": ritz.orthogonality_defect,
    }


def _norm(params: "Params") -> float:
    from landscape.curvature import flatten
    from landscape.linalg.krylov import norm

    return norm(flatten(params))


@contextmanager
def progress_shown(num_planned: int, num_stored: int, *, shown: bool | None) -> Iterator[Show]:
    """Calls (what is measured now or "", batches done since the last call) become a bar or lines on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    if not (sys.stderr.isatty() if shown is None else shown):
        yield lambda title, _: print(title, file=sys.stderr, flush=True) if title and shown is None else None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        bar = bars.add_task("", total=num_planned, completed=num_stored)

        def show(title: str, advance: int) -> None:
            bars.update(bar, advance=advance, description=title or None)

        yield show
