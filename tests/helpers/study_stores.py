"""Stores of whole studies for the tests of reports, written at once: no network, no files of
weights, no training.

The spectra imitate what is measured of small CLIP models: sharp with both signs at first, flatter
and more convex later, with a difficulty that a batch keeps at all epochs and for all series.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from landscape.manifest import Checkpoint, CheckpointSeries, DataSettings, HessianSettings, Manifest
from landscape.store import Record, StoreContents
from landscape.store.record import table_of
from landscape.store.schema import write_file

K = 5
EPOCHS = (0, 5, 10, 15, 20, 25)
LABELS = {"vit": "ViT-B/16", "vmamba": "VMamba-B", "simba": "Simba-L"}
AUDIT = {
    "passed": True,
    "worst_error": 3.1e-7,
    "dtype": "float64",
    "epoch": 25,
    "checkpoint_sha256": "0" * 64,
}
_AT_START = np.array([1222.9, 570.3, 504.0, -428.4, -374.0])
_LATE = np.array([29.67, 14.97, 9.25, 7.14, 5.85])
_NUM_NODES = 30


def write_study(
    path: Path,
    *,
    labels: dict[str, str] | None = None,
    epochs: Sequence[int] = EPOCHS,
    num_batches: int = 200,
    without: Sequence[tuple[str, int]] = (),
    change=lambda record: record,
    measured: int | None = None,
    seed: int = 0,
) -> Path:
    """Write a finished store.

    Args:
        without: The (series, epoch) that have no record.
        change: Of the fields of every record, before it is checked.
        measured: Batches that have a record, if not all.
    """
    labels = LABELS if labels is None else labels
    plan = plan_of(labels, epochs, num_batches)
    tables = []
    for number, name in enumerate(labels):
        for epoch in epochs:
            if (name, epoch) in without:
                continue
            rows = [
                (Record(**change(fields)), {"landscape": "0", "torch": "2"})
                for fields in _records(
                    name, number, epoch, num_batches if measured is None else measured, seed
                )
            ]
            tables.append(
                table_of(rows, model=f"{name}_model", label=labels[name], num_planned=num_batches)
            )
    write_file(path, plan, tables)
    return path


def plan_of(labels: dict[str, str], epochs: Sequence[int], num_batches: int) -> StoreContents:
    series = [
        CheckpointSeries(
            name=name,
            model=f"{name}_model",
            label=label,
            checkpoints=tuple(
                Checkpoint(epoch=epoch, path=Path(f"{name}_{epoch}.pt")) for epoch in epochs
            ),
        )
        for name, label in labels.items()
    ]
    data = DataSettings(
        source="openmoji", image_size=64, num_samples=15 * num_batches, batch_size=15
    )
    hessian = HessianSettings(objective="contrastive", k=K)
    return StoreContents.of(
        Manifest(path=Path("checkpoints.yaml"), data=data, hessian=hessian, series=tuple(series))
    )


def _records(name: str, number: int, epoch: int, num_batches: int, seed: int) -> Iterator[dict]:
    progress = min(epoch, 25) / 25
    # Each series flattens at its own pace, from the same start.
    centre = np.abs(_AT_START) ** (1 - progress) * _LATE**progress * (1 + 0.5 * number * progress)
    for batch in range(num_batches):
        difficulty = np.random.default_rng([seed, batch]).normal(0, 0.3)
        generator = np.random.default_rng([seed, batch, number, epoch])
        values = centre * np.exp(difficulty + generator.normal(0, 0.15, K))
        values[2:] *= np.where(generator.random(K - 2) < 0.5 * (1 - progress) + 0.1 * number, -1, 1)
        values = values[np.argsort(-np.abs(values))]
        inner = np.sinh(generator.normal(0, 1.5, _NUM_NODES - K)) * 0.02 * values[-1]
        nodes = np.sort(np.concatenate([values, inner]))
        weights = generator.dirichlet(1 / (1 + np.abs(nodes) * 3))
        yield {
            "series": name,
            "epoch": epoch,
            "batch": batch,
            "values": values,
            "residuals": 10 ** generator.uniform(-6, -3.01, K),
            "converged": np.ones(K, dtype=bool),
            "num_matvecs": _NUM_NODES,
            "ritz_values": nodes,
            "ritz_weights": weights / weights.sum(),
            "smallest": nodes[:K],
            "smallest_residuals": 10 ** generator.uniform(-6, -3.01, K),
            "largest": nodes[::-1][:K],
            "largest_residuals": 10 ** generator.uniform(-6, -3.01, K),
            "num_negative": int((nodes < 0).sum()),
            "num_positive": int((nodes > 0).sum()),
            "orthogonality_defect": 2e-15,
            "parameter_norm": 30.0 + number,
            "loss": float(2.7 * (1 - 0.8 * progress) + 0.2 * difficulty),
            "batch_sha256": hashlib.sha256(f"batch {batch}".encode()).hexdigest(),
            "checkpoint_sha256": hashlib.sha256(f"{name} {epoch}".encode()).hexdigest(),
            "num_params": 1_000_000 * (number + 1),
            "seconds": 1.5,
            "settings": {
                "device": "cpu",
                "num_threads": 1,
                "product": "double backward, retained graph",
            },
            "extras": {"audit": AUDIT},
        }
