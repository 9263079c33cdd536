"""The content of a file as values, for `landscape info --json`.

docs/json.md lists the keys of each kind of file.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape import clip
from landscape.compare.whole_spectrum import probed_rows, probed_spectrum
from landscape.figures.density_records import spectral_density
from landscape.manifest import Manifest
from landscape.monitor import read_record
from landscape.report.describe import describe, kind_of
from landscape.store import SpectrumStore, read_densities, read_surface, summarize
from landscape.store.predictions import PictureSet, read_predictions
from landscape.store.surfaces import axes_of
from landscape.store.table import UNIT, unit_of

if TYPE_CHECKING:
    from landscape.linalg import ProbedSpectrum


def facts(path: Path) -> dict[str, Any]:
    """Describe a file in values that `json_text` can format.

    Every kind has the keys "kind", "file" and "description", the lines of `landscape info`.

    Raises:
        LandscapeError: As `describe`.
    """
    kind = kind_of(path)
    return {
        "kind": kind,
        "file": str(path),
        **_FACTS[kind](path),
        "description": describe(path),
    }


def _of_manifest(path: Path) -> dict[str, Any]:
    manifest = Manifest.load(path)
    return {
        "version": manifest.version,
        "protocol": manifest.protocol(),
        "protocol_sha256": manifest.protocol_digest(),
        "series": [
            {
                "name": series.name,
                "label": series.label,
                "model": series.model,
                "checkpoints": [asdict(checkpoint) for checkpoint in series.checkpoints],
            }
            for series in manifest.series
        ],
    }


def _of_store(path: Path) -> dict[str, Any]:
    with SpectrumStore.open(path) as store:
        dtype = store.plan.protocol["hessian"]["dtype"]
        checkpoints = []
        for summary in summarize(store):
            table = store.records(summary.series, summary.epoch)
            rows = probed_rows(table).tolist()
            estimates = estimate_values(probed_spectrum(table, dtype, rows)) if rows else None
            checkpoints.append({**asdict(summary), "label": table.label, "estimates": estimates})
        num_stored = len(store.completed_keys())
        return {
            "landscape_version": store.plan.landscape_version,
            "manifest_sha256": store.plan.manifest_sha256,
            "protocol": store.plan.protocol,
            "unit": unit_of(store.plan.protocol["hessian"]),
            "num_records": num_stored,
            "num_planned": store.plan.num_records,
            "complete": num_stored == store.plan.num_records,
            "checkpoints": checkpoints,
            "modules": [
                {
                    "series": series,
                    "epoch": epoch,
                    "modules": store.module_names(series),
                    "num_batches": len(store.module_batches(series, epoch)),
                }
                for series, epoch in store.module_identities
            ],
        }


def _of_densities(path: Path) -> dict[str, Any]:
    return {
        "unit": UNIT,
        "checkpoints": [
            {
                "series": record.series,
                "label": record.label,
                "model": record.model,
                "epoch": record.epoch,
                "num_params": record.n,
                "batches": record.batches,
                "missing_batches": record.missing_batches,
                "num_probes": len(record.nodes),
                "num_matvecs": record.num_matvecs,
                "audited": record.audited,
                "exact": bool(record.dense_eigenvalues.size),
                "estimates": estimate_values(spectral_density(record).probed),
            }
            for record in read_densities(path)
        ],
    }


def _of_surface(path: Path) -> dict[str, Any]:
    stored = read_surface(path)
    assert stored is not None, "the caller has seen the file"
    losses = stored.result.losses[np.isfinite(stored.result.losses)]
    return {
        "landscape_version": stored.landscape_version,
        "request": stored.request,
        "num_points": stored.num_points,
        "num_computed": stored.num_computed,
        "num_undefined": stored.result.num_undefined,
        "smallest_loss": losses.min() if losses.size else None,
        "largest_loss": losses.max() if losses.size else None,
        "axes": [
            {
                "name": axis.name,
                "unit": axis.unit,
                "first": axis.coordinates[0],
                "last": axis.coordinates[-1],
                "eigenvalue": axis.eigenvalue,
                "bound": axis.bound,
            }
            for axis in axes_of(stored.result)
        ],
    }


def _of_predictions(path: Path) -> dict[str, Any]:
    store = read_predictions(path)
    assert store is not None, "the caller has seen the file"
    return {
        "landscape_version": store.landscape_version,
        "sets": [_of_set(pictures) for pictures in store.sets.values()],
        "checkpoints": [
            {
                "series": checkpoint.series,
                "label": checkpoint.label,
                "model": checkpoint.model,
                "epoch": checkpoint.epoch,
                "checkpoint_sha256": checkpoint.checkpoint_sha256,
                "num_sets": len(checkpoint.sets),
                "num_answers": sum(int(made.done.sum()) for made in checkpoint.sets.values()),
                "num_unread": sum(len(made.unread) for made in checkpoint.sets.values()),
            }
            for checkpoint in store.checkpoints.values()
        ],
    }


def _of_set(pictures: PictureSet) -> dict[str, Any]:
    names = ("dataset", "title", "condition", "split", "metric", "rule", "chance")
    return {
        **{name: getattr(pictures, name) for name in names},
        "num_pictures": len(pictures),
        "num_classes": len(pictures.class_names),
    }


def _of_monitor(path: Path) -> dict[str, Any]:
    record = read_record(path)
    return {
        "settings": record.settings,
        "num_superseded": len(record.superseded),
        "measurements": [made.as_plain() for made in record.measurements],
    }


def _of_checkpoint(path: Path) -> dict[str, Any]:
    # Reads tensors, so torch is needed.
    info = clip.describe_checkpoint(path)
    names = (
        "layout name epoch stored_epoch num_tensors num_parameters dtypes num_bytes available "
        "sha256 settings notes"
    )
    return {"format": info.kind, **{name: getattr(info, name) for name in names.split()}}


def estimate_values(spectrum: "ProbedSpectrum") -> dict[str, Mapping[str, Any]]:
    """Return the estimates of a whole spectrum as plain values, with their errors."""
    return {
        name.replace(" ", "_"): {
            "value": float(estimate.value),
            "standard_error": float(estimate.standard_error),
            "probe_error": float(estimate.probe_error),
            "batch_error": None if estimate.batch_error is None else float(estimate.batch_error),
            "low": float(estimate.low),
            "high": float(estimate.high),
            "is_known": estimate.is_known,
        }
        for name, estimate in spectrum.estimates().items()
    }


_FACTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "manifest": _of_manifest,
    "store": _of_store,
    "densities": _of_densities,
    "surface": _of_surface,
    "predictions": _of_predictions,
    "monitor": _of_monitor,
    "checkpoint": _of_checkpoint,
}
