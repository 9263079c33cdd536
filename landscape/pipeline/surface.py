"""`landscape surface`: compute a loss slice into a file, and draw it."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.errors import LandscapeError, NumericalError, StoreError
from landscape.figures import (
    SUFFIXES,
    PageOptions,
    loss_contour,
    loss_slice,
    loss_surface_3d,
    save_figure,
)
from landscape.figures.from_store import check_figure_name
from landscape.figures.loss_slices import SLICE
from landscape.figures.loss_surfaces import CONTOUR, RELIEF
from landscape.figures.page import Page
from landscape.figures.surface_summary import findings, note
from landscape.manifest import Manifest
from landscape.pipeline.remaining import refuse_preconditioned
from landscape.pipeline.runner import run_measurement
from landscape.pipeline.surface_plan import SurfacePlan, SurfaceRequest, make_plan
from landscape.store import StoredSurface, parts_folder
from landscape.workers.crew import WorkerSettings

if TYPE_CHECKING:
    from landscape.figures import PageOptions


@dataclass(frozen=True, kw_only=True)
class SurfaceReport:
    """Report of a run; `figure` is None in a dry run."""

    data: Path
    plan: SurfacePlan
    num_points: int
    num_stored: int
    stored: StoredSurface | None = None
    figure: Path | None = None

    def summary(self) -> str:
        """Format the report for a terminal."""
        done = self.num_stored if self.stored is None else self.stored.num_computed
        lines = [] if self.stored is None else findings(self.stored.result)
        if self.figure is None:
            lines.append(f"to compute: {self.plan}")
        counts = f"{done - self.num_stored} now, {self.num_stored} before"
        lines.append(f"{self.data}: {done} of {self.num_points} points are computed ({counts}).")
        if self.figure is not None:
            lines.append(f"{self.figure}: drawn.")
        return "\n".join(lines)


def run_surface(
    manifest: Manifest,
    output: Path,
    request: SurfaceRequest,
    *,
    data: Path | None = None,
    view: str | None = None,
    device: str | None = None,
    workers: WorkerSettings = WorkerSettings(),
    dry_run: bool = False,
    page_options: PageOptions | None = None,
) -> SurfaceReport:
    """Compute the points that the data file lacks, and draw all points.

    Args:
        output: The figure.
        data: The HDF5 file of the points; by default beside the figure, under its name. Resumed if
            it exists.
        view: "contour" or "3d" for two directions; None is a contour.
        device: "cpu", "cuda", ...; by default CUDA where there is a GPU.
        workers: Where they are computed; by default in this process.
        dry_run: Only report what is left.
        page_options: Width and letters of the figure.

    Raises:
        LandscapeError: If the request, the manifest, a checkpoint or a file is invalid; nothing is
            written then.
        NumericalError: If a point could not be evaluated; the others are stored.
    """
    refuse_preconditioned(manifest, "a loss surface")
    plan = make_plan(manifest, request)
    # Absolute, since workers may have another folder.
    data = Path(os.path.abspath(output.with_suffix(".h5") if data is None else data))
    _check_files(output, data, view, plan)
    _check_page(output, view, plan, page_options)
    # A request that cannot be met is refused before torch is loaded.
    from landscape.pipeline.surface_measurement import SurfaceMeasurement

    measurement = SurfaceMeasurement(manifest=manifest, plan=plan, data=data, device=device)
    stored, num_points = measurement.stored(), measurement.num_planned
    report = SurfaceReport(
        data=data, plan=plan, num_points=num_points, num_stored=stored.num_computed if stored else 0
    )
    if dry_run:
        return report
    # A run that was killed after its last point may have left its eigenvectors.
    if stored is None or stored.num_computed < num_points or parts_folder(data).exists():
        failures = run_measurement(measurement, workers=workers).failures
        if failures:
            others = f" {len(failures) - 1} other points failed." if len(failures) > 1 else ""
            raise NumericalError(failures[0] + others)
        stored = measurement.stored()
        assert stored is not None, "the points were written"
    _draw(stored, plan, output, view, page_options)
    return replace(report, stored=stored, figure=output)


def _check_page(
    output: Path, view: str | None, plan: SurfacePlan, page_options: PageOptions | None
) -> None:
    layout = SLICE if plan.dimensions == 1 else RELIEF if view == "3d" else CONTOUR
    try:
        Page(title="", note="", **layout).fitted(page_options or PageOptions())
    except ValueError as error:
        raise StoreError(f"{output}: {error}") from error


def _check_files(output: Path, data: Path, view: str | None, plan: SurfacePlan) -> None:
    check_figure_name(output)
    if data.suffix.lower() in SUFFIXES:
        raise LandscapeError(
            f"{data}: the points are stored as HDF5; name a file such as surface.h5 with --data."
        )
    if view is not None and plan.dimensions == 1:
        raise LandscapeError(
            f"view {view}: a slice along one direction is drawn as a curve; leave --view out."
        )
    if not data.parent.is_dir():
        raise StoreError(f"{data}: there is no folder {data.parent}; make it first.")


def _draw(
    stored: StoredSurface,
    plan: SurfacePlan,
    output: Path,
    view: str | None,
    page_options: PageOptions | None,
) -> None:
    draw: Callable[..., Any] = (
        loss_slice if plan.dimensions == 1 else loss_surface_3d if view == "3d" else loss_contour
    )
    words = note(
        stored.result,
        directions=plan.directions,
        num_batches=plan.num_batches,
        num_samples=plan.num_samples,
        samples=plan.samples,
    )
    try:
        drawn = draw(stored.result, title=plan.title, note=words, page_options=page_options)
        save_figure(drawn, output)
    except ValueError as error:
        raise StoreError(f"{output}: {error}") from error
