"""`landscape surface`: which slice of which checkpoint, point by point into a file, and the figure of it.

Every point is on disk before the next one is begun. Eigenvectors, which another run might find slightly turned, lie beside
the growing file and are removed with the last point.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from landscape.errors import LandscapeError, StoreError
from landscape.manifest import Manifest
from landscape.pipeline.draw import check_figure_name
from landscape.pipeline.surface_plan import SurfacePlan, SurfaceRequest, make_plan
from landscape.pipeline.surface_source import DIRECTIONS_FILE
from landscape.store import StoredSurface, axes_of, check_same_request, parts_folder, read_surface, write_surface
from landscape.store.lock import FolderLock


@dataclass(frozen=True, kw_only=True)
class SurfaceReport:
    """What a run found, did and drew; `figure` is None in a dry run."""

    data: Path
    plan: SurfacePlan
    num_points: int
    num_stored: int
    stored: StoredSurface | None = None
    figure: Path | None = None

    def summary(self) -> str:
        """For a terminal."""
        from landscape.pipeline.surface_words import findings

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
    dry_run: bool = False,
) -> SurfaceReport:
    """Compute the points that the data file does not hold yet, and draw them all.

    Args:
        output: The figure.
        data: The HDF5 file of the points; by default beside the figure, under its name. Resumed if it is there.
        view: "contour" or "3d" for two directions; None is a contour.
        device: "cpu", "cuda", ...; by default CUDA where there is one.
        dry_run: Only say what is left.

    Raises:
        LandscapeError: If the request, the manifest, a checkpoint or a file cannot be meant; nothing is written then.
        NumericalError: If a point could not be evaluated; those before it are kept.
    """
    plan = make_plan(manifest, request)
    data = output.with_suffix(".h5") if data is None else data
    _check_files(output, data, view, plan)
    stored = _resumable(data, plan)
    num_points = plan.points**plan.dimensions
    report = SurfaceReport(data=data, plan=plan, num_points=num_points, num_stored=stored.num_computed if stored else 0)
    if dry_run:
        return report
    # A run that was killed after its last point may have left its eigenvectors.
    if stored is None or stored.num_computed < num_points or parts_folder(data).exists():
        stored = _finished(manifest, plan, data, device=device)
    _draw(stored, plan, output, view)
    return replace(report, stored=stored, figure=output)


def _check_files(output: Path, data: Path, view: str | None, plan: SurfacePlan) -> None:
    from landscape.figures import SUFFIXES

    check_figure_name(output)
    if data.suffix.lower() in SUFFIXES:
        raise LandscapeError(f"{data}: the points are stored as HDF5; name a file such as surface.h5 with --data.")
    if view is not None and plan.dimensions == 1:
        raise LandscapeError(f"view {view}: a slice along one direction is drawn as a curve; leave --view out.")
    if not data.parent.is_dir():
        raise StoreError(f"{data}: there is no folder {data.parent}; make it first.")


def _resumable(data: Path, plan: SurfacePlan) -> StoredSurface | None:
    """What is stored, if it is of this request.

    Raises:
        StoreError: If it is of another, or no such file.
    """
    stored = read_surface(data)
    if stored is not None:
        check_same_request(data, stored.request, plan.request)
    return stored


def _finished(manifest: Manifest, plan: SurfacePlan, data: Path, *, device: str | None) -> StoredSurface:
    """The file with all its points, computed as its only writer."""
    lock = FolderLock(parts_folder(data), output=data)
    try:
        # Another run may have gone on since.
        stored = _resumable(data, plan)
        if stored is None or stored.num_computed < stored.num_points:
            stored = _compute(manifest, plan, data, stored, device=device)
        (parts_folder(data) / DIRECTIONS_FILE).unlink(missing_ok=True)
    finally:
        lock.release(remove_folder=True)
    return stored


def _compute(
    manifest: Manifest, plan: SurfacePlan, data: Path, stored: StoredSurface | None, *, device: str | None
) -> StoredSurface:
    """Compute what is missing; nothing is written before the first point."""
    from landscape.curvature import fill
    from landscape.pipeline.surface_source import open_slice

    slice_ = open_slice(manifest, plan, parts_folder(data), device=device)
    if stored is None:
        stored = StoredSurface(
            result=slice_.empty(),
            request=plan.request,
            directions_sha256=slice_.directions_sha256,
            as_trained=slice_.used,
        )
    elif stored.directions_sha256 != slice_.directions_sha256:
        raise StoreError(
            f"{data}: the directions of its points are lost (sha256 expected {stored.directions_sha256}, got "
            f"{slice_.directions_sha256}), so new points would lie in another plane. Remove {data} to begin anew."
        )
    losses, computed = stored.result.losses.copy(), stored.result.computed.copy()
    with _progress(computed.size, int(computed.sum())) as advance:
        for _ in fill(axes_of(stored.result), slice_.loss_at, losses, computed):
            stored = replace(stored, result=replace(stored.result, losses=losses, computed=computed))
            write_surface(data, stored)
            advance()
    return stored


def _draw(stored: StoredSurface, plan: SurfacePlan, output: Path, view: str | None) -> None:
    from landscape.figures import loss_contour, loss_slice, loss_surface_3d, save_figure
    from landscape.pipeline.surface_words import note

    draw: Callable[..., Any] = loss_slice if plan.dimensions == 1 else loss_surface_3d if view == "3d" else loss_contour
    save_figure(draw(stored.result, title=plan.title, note=note(stored.result, plan)), output)


@contextmanager
def _progress(total: int, done: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import Progress

    if not sys.stderr.isatty():
        yield lambda: None
        return
    with Progress(console=Console(stderr=True)) as bars:
        bar = bars.add_task("points", total=total, completed=done)
        yield lambda: bars.advance(bar)
