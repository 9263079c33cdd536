"""Stores for the tests of comparisons: series whose eigenvalues are drawn from known distributions,
on shared batches.
"""

import hashlib
from pathlib import Path

import numpy as np

from landscape.store import SpectrumWriter
from tests.helpers.store_records import manifest_of, record_of

K = 5


def drawn_values(
    generator: np.random.Generator, num_batches: int, *, scale: float, negative: float
) -> np.ndarray:
    """Skewed top-5 values (batch, 5), descending in magnitude: the first positive, the others
    negative at a given rate.
    """
    shared = np.random.default_rng(7).normal(0, 0.3, (num_batches, 1))
    sizes = scale * np.exp(shared + generator.normal(0, 0.3, (num_batches, K)))
    sizes = -np.sort(-sizes, axis=1)
    signs = np.where(generator.random((num_batches, K)) < negative, -1.0, 1.0)
    signs[:, 0] = 1.0
    return sizes * signs


def write_store(
    path: Path,
    values: dict[tuple[str, int], np.ndarray],
    *,
    batches: dict[str, str] | None = None,
    changes: dict[tuple[str, int], dict] | None = None,
    epochs: tuple[int, ...] | None = None,
    num_batches: int | None = None,
    **settings: object,
) -> Path:
    """A merged store of the values (batch, 5) of each (series, epoch).

    Args:
        batches: Salt of the digests of the batches by series; equal by default, which means the
            same batches.
        changes: Fields of the records of a (series, epoch), one value for all or a list with one
        per batch. epochs, num_batches: That the manifest plans; by default what there is.
    """
    path.parent.mkdir(exist_ok=True, parents=True)
    names = tuple(dict.fromkeys(name for name, _ in values))
    planned = num_batches or max(len(rows) for rows in values.values())
    manifest = manifest_of(
        path.parent,
        series=names,
        epochs=epochs or tuple(sorted({epoch for _, epoch in values})),
        num_batches=planned,
        k=K,
        **settings,
    )
    with SpectrumWriter(path, manifest) as writer:
        for (name, epoch), rows in values.items():
            for batch, row in enumerate(rows):
                salt = (batches or {}).get(name, "")
                fields = {
                    "values": row,
                    "residuals": np.full(K, 1e-5),
                    "converged": np.full(K, True),
                    "smallest": np.full(K, np.nan),
                    "smallest_residuals": np.full(K, np.nan),
                    "largest": np.full(K, np.nan),
                    "largest_residuals": np.full(K, np.nan),
                    "batch_sha256": hashlib.sha256(f"{salt}{batch}".encode()).hexdigest(),
                    "checkpoint_sha256": hashlib.sha256(
                        (path.parent / f"{name}_{epoch}.pt").read_bytes()
                    ).hexdigest(),
                }
                for field, value in (changes or {}).get((name, epoch), {}).items():
                    fields[field] = value[batch] if isinstance(value, list) else value
                writer.add(record_of(f"{name}/{epoch}/{batch}", **fields))
        writer.merge()
    return path


def write_study(
    path: Path, *, num_batches: int = 40, epochs: tuple[int, ...] = (0, 5, 10), **options: object
) -> Path:
    """Three series: "vit" grows sharper than "vmamba" with training, "simba" is like "vmamba"."""
    generator = np.random.default_rng(0)
    values = {}
    for name, growth in (("vit", 0.1), ("vmamba", 0.0), ("simba", 0.0)):
        for epoch in epochs:
            scale, negative = (
                10 * np.exp(growth * epoch),
                0.5 if epoch == 0 else 0.2 if name == "vit" else 0.4,
            )
            values[name, epoch] = drawn_values(
                generator, num_batches, scale=scale, negative=negative
            )
    return write_store(path, values, **options)
