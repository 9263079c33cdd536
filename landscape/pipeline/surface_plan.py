"""The plan of a loss slice, from the options of the command line.

Refuses contradictory options. Imports no torch.
"""

from dataclasses import dataclass, field
from typing import Any

from landscape.errors import LandscapeError, ManifestError
from landscape.manifest import Checkpoint, CheckpointSeries, Manifest, json_sha256
from landscape.manifest.gone import digest_of
from landscape.manifest.samples import unit_of_samples
from landscape.suggestions import nearest

DIRECTIONS = ("random", "eigenvectors", "line")


@dataclass(frozen=True, kw_only=True)
class SurfaceRequest:
    """The options of `landscape surface`.

    None stands for a default that depends on the others.

    Args:
        series: Name of the series; may be left out where there is only one.
        epoch: Default: the last one; the first one for a line.
        directions: "random" (filter-normalised), "eigenvectors" of the Hessian that the manifest
            describes, or "line".
        to: For a line, its other end: "EPOCH" or "SERIES:EPOCH". Default: the last epoch of the
            series.
        dimensions: 1 or 2. Default: 2; a line has 1.
        points: Grid points per axis; odd, so that a point lies in the middle.
        span: Extent of an axis on either side of the middle: in filter norms for random directions
            (default 1), in Euclidean length for eigenvectors (default: where the first one predicts
            a change of 1 nat).
        batches: Number of batches of the manifest, from the first, over which the loss is averaged.
        seed: Seed of random directions.
    """

    series: str | None = None
    epoch: int | None = None
    directions: str = "random"
    to: str | None = None
    dimensions: int | None = None
    points: int = 31
    span: float | None = None
    batches: int = 1
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class SurfacePlan:
    """A request with every choice made.

    Attributes:
        end: The other end of a line; None for directions.
        line_name: Name of a line by its two ends.
        num_samples, samples: Number of samples of each batch, and their name.
        request: Everything that determines the numbers, as JSON values.
    """

    series: CheckpointSeries
    checkpoint: Checkpoint
    directions: str
    end: Checkpoint | None
    line_name: str
    dimensions: int
    points: int
    span: float | None
    num_batches: int
    num_samples: int
    samples: str
    seed: int
    request: dict[str, Any] = field(default_factory=dict)

    @property
    def request_sha256(self) -> str:
        return json_sha256(self.request)

    @property
    def title(self) -> str:
        if self.end:
            return f"{self.series.label}, from {self.line_name}"
        return (
            f"{self.series.label}, "
            f"{f'epoch {self.checkpoint.epoch}' if self.checkpoint.epoch else 'initialisation'}"
        )

    def __str__(self) -> str:
        where = self.line_name if self.end else f"epoch {self.checkpoint.epoch}, {self.directions}"
        points = " x ".join([str(self.points)] * self.dimensions)
        batches = f"{self.num_batches} batches of {self.num_samples} {self.samples}"
        return f"{self.series.name}, {where}: {points} points, each the mean of {batches}"


def make_plan(manifest: Manifest, request: SurfaceRequest) -> SurfacePlan:
    """Find the requested checkpoints and digest them.

    Raises:
        ManifestError: If the manifest has no such series, epoch or number of batches.
        LandscapeError: If options contradict each other.
        CheckpointError: If a checkpoint is not the file that the manifest lists.
    """
    _check_options(manifest, request)
    series = _series(manifest, request.series)
    end, end_series, line_name = None, series, ""
    epoch = request.epoch
    if request.directions == "line":
        end_series, end = _end(manifest, series, request.to)
        epoch = series.epochs[0] if epoch is None else epoch
    checkpoint = _checkpoint(manifest, series, series.epochs[-1] if epoch is None else epoch)
    if end is not None:
        if checkpoint.path == end.path:
            raise LandscapeError(
                f"{manifest.path}: a line needs two checkpoints, but both ends are epoch "
                f"{end.epoch} of series {end_series.name!r}. Name the other end with --to EPOCH or "
                "--to SERIES:EPOCH."
            )
        ends = [(series, checkpoint), (end_series, end)]
        named = [
            f"{other.label}, epoch {point.epoch}" if other is not series else f"epoch {point.epoch}"
            for other, point in ends
        ]
        line_name = " to ".join(named)
    plan = SurfacePlan(
        series=series,
        checkpoint=checkpoint,
        directions=request.directions,
        end=end,
        line_name=line_name,
        dimensions=request.dimensions or (1 if end is not None else 2),
        points=request.points,
        span=request.span,
        num_batches=request.batches,
        num_samples=manifest.data.batch_size,
        samples=unit_of_samples(manifest.data.block_size)[1],
        seed=request.seed,
    )
    plan.request.update(_decisive(manifest, plan, end_series))
    return plan


def _check_options(manifest: Manifest, request: SurfaceRequest) -> None:
    line = request.directions == "line"
    if request.directions not in DIRECTIONS:
        raise LandscapeError(
            f"directions {request.directions!r}: must be one of {', '.join(DIRECTIONS)}."
        )
    if line and request.dimensions == 2:
        raise LandscapeError(
            "dimensions 2: a line between two checkpoints has one; leave --dimensions out."
        )
    if line and request.span is not None:
        raise LandscapeError(
            "span: a line runs from one checkpoint to the other; leave --span out."
        )
    if not line and request.to is not None:
        raise LandscapeError(
            f"to {request.to}: only a line has another end; say --directions line, or leave --to "
            "out."
        )
    if request.points < 5 or request.points % 2 == 0:
        raise LandscapeError(
            f"points {request.points}: must be odd, so that one lies in the middle, and at least 5."
        )
    if request.span is not None and not 0 < request.span < float("inf"):
        raise LandscapeError(f"span {request.span}: must be a number above 0.")
    available = manifest.data.num_batches
    if not 1 <= request.batches <= available:
        raise ManifestError(
            f"{manifest.path}: it describes {available} batches, but {request.batches} were asked "
            "for."
        )


def _series(manifest: Manifest, name: str | None) -> CheckpointSeries:
    known = [series.name for series in manifest.series]
    if name is None:
        if len(known) > 1:
            raise ManifestError(
                f"{manifest.path}: it lists the series {', '.join(known)}; choose one with "
                "--series."
            )
        return manifest.series[0]
    if name not in known:
        raise ManifestError(f"{manifest.path}: there is no series {name!r}; {nearest(name, known)}")
    return manifest.series[known.index(name)]


def _checkpoint(manifest: Manifest, series: CheckpointSeries, epoch: int) -> Checkpoint:
    if epoch not in series.epochs:
        listed = ", ".join(map(str, series.epochs))
        raise ManifestError(
            f"{manifest.path}: series {series.name!r} has no epoch {epoch}; it has {listed}."
        )
    return series.checkpoints[series.epochs.index(epoch)]


def _end(
    manifest: Manifest, series: CheckpointSeries, to: str | None
) -> tuple[CheckpointSeries, Checkpoint]:
    """Return the other end of a line."""
    if to is None:
        return series, series.checkpoints[-1]
    name, _, epoch = to.rpartition(":")
    if not epoch.isdecimal():
        raise LandscapeError(f"to {to!r}: must be EPOCH or SERIES:EPOCH, as 10 or vit:10.")
    other = _series(manifest, name) if name else series
    if other.trained.changes() != series.trained.changes():
        raise ManifestError(
            f"{manifest.path}: series {series.name!r} was trained with {series.trained.changes()}, "
            f"but {other.name!r} with {other.trained.changes()}: no line joins two different "
            "functions. Choose two checkpoints of one model."
        )
    if other.model != series.model:
        raise ManifestError(
            f"{manifest.path}: series {series.name!r} is a {series.model}, but {other.name!r} is a "
            f"{other.model}: their weights differ in names and shapes, and no line joins them. "
            "Choose two checkpoints of one model."
        )
    return other, _checkpoint(manifest, other, int(epoch))


def _decisive(
    manifest: Manifest, plan: SurfacePlan, end_series: CheckpointSeries
) -> dict[str, Any]:
    """Return what the numbers depend on."""
    protocol = manifest.protocol()
    hessian = protocol["hessian"]
    solver = {name: hessian[name] for name in ("which", "tol", "max_matvecs", "seed")}
    end = plan.end
    decisive = {
        "series": plan.series.name,
        "model": plan.series.model,
        "epoch": plan.checkpoint.epoch,
        "checkpoint_sha256": digest_of(plan.checkpoint),
        "directions": plan.directions,
        "to": None
        if end is None
        else {"series": end_series.name, "epoch": end.epoch, "checkpoint_sha256": digest_of(end)},
        "dimensions": plan.dimensions,
        "points": plan.points,
        "span": plan.span,
        "batches": plan.num_batches,
        "seed": plan.seed if plan.directions == "random" else None,
        "data": protocol["data"],
        "objective": {
            name: hessian[name] for name in ("objective", "parameters", "weight_decay", "dtype")
        },
        "solver": solver if plan.directions == "eigenvectors" else None,
    }
    trained = plan.series.trained.changes()
    return decisive | ({"trained": trained} if trained else {})
