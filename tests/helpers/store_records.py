"""Manifests and records for the tests of the store: no network, every number a pure function of its
key.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from landscape.manifest import Checkpoint, CheckpointSeries, DataSettings, HessianSettings, Manifest
from landscape.store import Record

K = 3


def manifest_of(
    folder: Path, *, series=("wide", "narrow"), epochs=(0, 2), num_batches=4, **settings
) -> Manifest:
    """A manifest whose checkpoint files exist; `settings` go to data, hessian, or the model."""
    model = settings.pop("model", "vit_tiny_64")
    with_sha256 = settings.pop("with_sha256", True)
    data = {
        "source": "openmoji",
        "image_size": 64,
        "num_samples": 15 * num_batches,
        "batch_size": 15,
    }
    hessian = {"objective": "contrastive", "k": K}
    for key, value in settings.items():
        (data if key in DataSettings.__dataclass_fields__ and key != "seed" else hessian)[key] = (
            value
        )
    lines = []
    for name in series:
        checkpoints = []
        for epoch in epochs:
            path = folder / f"{name}_{epoch}.pt"
            if not path.exists():
                path.write_text(f"{name} {epoch}")
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest() if with_sha256 else None
            checkpoints.append(Checkpoint(epoch=epoch, path=path, sha256=sha256))
        lines.append(
            CheckpointSeries(
                name=name, model=model, label=f"ViT, {name}", checkpoints=tuple(checkpoints)
            )
        )
    return Manifest(
        path=folder / "checkpoints.yaml",
        data=DataSettings(**data),
        hessian=HessianSettings(**hessian),
        series=tuple(lines),
    )


def record_of(key: str, **changes) -> Record:
    """The record of a key: random numbers that depend on the key alone, Ritz pairs of a length that
    varies.
    """
    series, epoch, batch = key.split("/")
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    generator = np.random.default_rng(seed)
    m = int(generator.integers(K, 12))
    fields = {
        "series": series,
        "epoch": int(epoch),
        "batch": int(batch),
        "values": generator.standard_normal(K) * 100,
        "residuals": generator.random(K) * 1e-3,
        "converged": generator.random(K) < 0.8,
        "num_matvecs": m,
        "ritz_values": generator.standard_normal(m),
        "ritz_weights": generator.dirichlet(np.ones(m)),
        "smallest": generator.standard_normal(K),
        "smallest_residuals": generator.random(K),
        "largest": generator.standard_normal(K),
        "largest_residuals": generator.random(K),
        "value_bounds": generator.random(K) * 1e-5,
        "missed_distance": generator.random() * 0.05,
        "missed_probability": generator.random() * 0.01,
        "num_negative": m // 2,
        "num_positive": m - m // 2,
        "orthogonality_defect": generator.random() * 1e-15,
        "parameter_norm": generator.random() * 30,
        "loss": generator.random(),
        "batch_sha256": hashlib.sha256(f"batch {batch}".encode()).hexdigest(),
        "checkpoint_sha256": hashlib.sha256(f"{series} {epoch}".encode()).hexdigest(),
        "num_params": 1234,
        "num_unused": 34 + int(batch),
        "seconds": generator.random(),
        "settings": {"device": "cpu", "threads": 1},
        "extras": {"audit": {"passed": True}},
    }
    return Record(**(fields | changes))


def as_parts(folder: Path) -> None:
    """Write the records of all logs in a folder as one file a record, as landscape 0.1 did, and
    remove the logs.
    """
    for log in folder.glob("records.*.log"):
        lines = log.read_bytes().split(b"\n")
        for header, body in zip(lines[0:-1:2], lines[1::2], strict=True):
            record = json.loads(body)["record"]
            modules = ".modules" if json.loads(header)["landscape"] == "modules" else ""
            name = f"{record['series']}.{record['epoch']}.{record['batch']}{modules}.jsonl"
            (folder / name).write_bytes(header + b"\n" + body + b"\n")
        log.unlink()
