"""`landscape spectra`: check the request, then measure.

In this process, in workers, or by processes that share models.
"""

from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

from landscape.manifest import Manifest
from landscape.manifest.selection import Selection
from landscape.pipeline.products import HvpSettings
from landscape.pipeline.remaining import RunReport
from landscape.pipeline.shard_check import check_shards
from landscape.pipeline.shard_settings import ShardSettings
from landscape.pipeline.solve import SolverSettings
from landscape.pipeline.spectra import SpectraMeasurement, report_of, with_method
from landscape.workers.crew import WorkerSettings


def run(
    manifest: Manifest,
    output: Path,
    *,
    method: str | None = None,
    device: str | None = None,
    hvp: str = "double-backward",
    unaudited: bool = False,
    products: HvpSettings = HvpSettings(),
    solver: SolverSettings = SolverSettings(),
    selection: Selection = Selection(),
    workers: WorkerSettings = WorkerSettings(),
    executor: Executor | None = None,
    shards: ShardSettings | None = None,
    keep_vectors: bool = False,
    dry_run: bool = False,
    progress: bool | None = None,
) -> RunReport:
    """Measure every missing batch of every checkpoint, then merge into a file.

    Batches that are in `output` already are not measured again.

    Args:
        method: "lanczos", "power" or "pyhessian" instead of the manifest's.
        device: "cpu", "cuda", ...; by default CUDA where there is a GPU.
        hvp: "double-backward", or "finite-difference" where only first derivatives exist.
        unaudited: Measure without an audit of the second derivatives; every record says so.
        products: How HVPs are computed, and in how much memory.
        solver: Starting vectors of the solver, and its memory limit.
        selection: The part of the manifest that is measured.
        workers: Where it is measured; by default in this process.
        executor: Any executor of concurrent.futures, in place of `workers`.
        shards: Processes that share each model, of which this is one; those of torchrun or srun.
            See docs/sharded.md.
        keep_vectors: Also keep the eigenvectors of every batch. Batches that are stored without
            them are measured again.
        dry_run: Only report what is left, what would be refused, and what the rest takes in time
            and memory.
        progress: None draws a bar where stderr is a terminal and writes lines elsewhere; False is
            silent.

    Returns:
        The report; not `complete` where batches failed.

    Raises:
        LandscapeError: If anything is wrong that can be known before the first product; nothing is
            written then.
    """
    measurement, workers = checked_request(
        manifest,
        output,
        method=method,
        device=device,
        hvp=hvp,
        unaudited=unaudited,
        products=products,
        solver=solver,
        selection=selection,
        workers=workers if executor is None else replace(workers, executor=executor),
        shards=shards,
        keep_vectors=keep_vectors,
    )
    if shards is not None and not dry_run:
        from landscape.pipeline.sharded import run_sharded

        return run_sharded(measurement, shards, progress=progress)
    return report_of(measurement, workers, dry_run=dry_run, progress=progress)


def checked_request(
    manifest: Manifest,
    output: Path,
    *,
    method: str | None,
    workers: WorkerSettings,
    shards: ShardSettings | None,
    **options: Any,
) -> tuple[SpectraMeasurement, WorkerSettings]:
    """Check a request, and return its measurement and workers.

    These are all checks that need no file except the manifest; arguments are as for `run`.

    Raises:
        LandscapeError: If options contradict each other, or the manifest.
    """
    measurement = SpectraMeasurement(
        manifest=with_method(manifest, method), output=output, shards=shards, **options
    )
    measurement.check()
    if shards is not None:
        check_shards(shards, measurement, workers)
    return measurement, workers
