"""Requests that cannot be combined with `--shards`. Imports no torch."""

from landscape import ranks
from landscape.errors import ManifestError, NoEffect, OptionError, check_effects
from landscape.pipeline.products import HvpSettings
from landscape.pipeline.shard_settings import STRATEGIES, ShardSettings
from landscape.pipeline.spectra import SpectraMeasurement
from landscape.workers.crew import WorkerSettings

_NO_EFFECT = (
    NoEffect(
        ("--workers", "--scheduler", "--cluster", "executor"),
        "the processes of --shards measure every batch together",
        "Leave it out, or measure whole models with it and without --shards.",
    ),
    NoEffect(
        ("--max-memory",),
        "what products take is not watched where a model is cut",
        "Leave it out; --hvp rebuilt keeps no graph, and more processes take less each.",
    ),
    NoEffect(
        ("--rows",),
        "every process has its own rows of a batch, at once",
        "Leave it out; more processes have fewer rows each.",
    ),
    NoEffect(
        ("--tf32",), "weights of a cut model are multiplied in full precision", "Leave it out."
    ),
)


def check_shards(
    shards: ShardSettings, measurement: SpectraMeasurement, workers: WorkerSettings
) -> None:
    """Refuse what cannot be done by processes that share a model.

    Raises:
        OptionError: If an option contradicts `--shards`, or the number of started processes
            differs.
        ManifestError: If the manifest requests something that needs a single process.
    """
    count = ranks.world_size()
    if ranks.is_started_as_rank() and count != shards.num_processes:
        there = "1 process was" if count == 1 else f"{count} processes were"
        raise OptionError(
            f"{shards.place}: but {there} started by torchrun or srun (WORLD_SIZE), and every "
            f"process holds a part of the model. Say --shards {count}, or start "
            f"{shards.num_processes}."
        )
    _check_manifest(shards, measurement)
    _check_conflicts(shards, measurement)
    check_effects(shards.place, _stated(measurement, workers), _NO_EFFECT)


def _check_manifest(shards: ShardSettings, measurement: SpectraMeasurement) -> None:
    hessian, rows = measurement.manifest.hessian, measurement.manifest.data.batch_size
    where = f"{measurement.manifest.path}, with {shards.place}"
    if hessian.method != "lanczos":
        raise ManifestError(
            f"{where}: method {hessian.method} needs whole vectors in one process. Use method "
            "lanczos, or leave --shards out."
        )
    if hessian.preconditioner != "none":
        raise ManifestError(
            f"{where}: the state of the optimizer is read whole in one process by this command. "
            "Leave --shards out; in Python, landscape.preconditioned takes an operator that is cut "
            "over processes."
        )
    if rows < shards.num_processes:
        raise ManifestError(
            f"{where}: a batch has {rows} rows, and every process needs one. Ask for at most "
            f"{rows} processes."
        )


def _check_conflicts(shards: ShardSettings, measurement: SpectraMeasurement) -> None:
    hvp, device = measurement.products.hvp, measurement.device or ""
    of_graphs = "products of a cut model are made by a graph that is retained or rebuilt"
    conflicts = [
        (hvp not in STRATEGIES, f"--hvp {hvp}", of_graphs),
        (":" in device, f"--device {device}", "every process has a device of its own"),
    ]
    for is_there, option, why in conflicts:
        if is_there:
            raise OptionError(
                f"{shards.place}: does not go with {option}: {why}. Leave one of them out."
            )


def _stated(measurement: SpectraMeasurement, workers: WorkerSettings) -> set[str]:
    """Return the options of `_NO_EFFECT` that differ from their defaults."""
    products, default = measurement.products, HvpSettings()
    values = {
        "--workers": workers.num_workers not in (None, 1),
        "--scheduler": workers.scheduler is not None,
        "--cluster": workers.cluster is not None,
        "executor": workers.executor is not None,
        "--max-memory": products.max_memory != default.max_memory,
        "--rows": products.rows != default.rows,
        "--tf32": products.allow_tf32 != default.allow_tf32,
    }
    return {name for name, is_stated in values.items() if is_stated}
