"""Eigenvectors for tests of the store: no network, every number a pure function of its key."""

import hashlib

import numpy as np

from landscape.store import ParameterLayout, SpectrumWriter, VectorRecord
from tests.helpers.store_records import K, record_of

N = 1234  # `num_params` of `record_of`
LAYOUT = ParameterLayout(
    names=("embed.weight", "block.0.weight", "block.0.bias", "head"),
    sizes=(800, 400, 30, 4),
    modules=("embed", "block.0", "block.0", "head"),
)


def vectors_of(key: str, *, n: int = N, k: int = K) -> np.ndarray:
    """Orthonormal columns (n, k) with entries of very different sizes, a part exactly zero."""
    seed = int.from_bytes(hashlib.sha256(f"vectors {key}".encode()).digest()[:8], "little")
    generator = np.random.default_rng(seed)
    columns = generator.standard_normal((n, k)) * 10.0 ** generator.uniform(-6, 0, (n, 1))
    columns[n // 10 : n // 2] = 0
    return np.linalg.qr(columns)[0]


def vector_record_of(key: str, plan, **changes) -> VectorRecord:
    """The vectors that belong to `record_of(key)`."""
    record = record_of(key)
    fields = {
        "series": record.series,
        "epoch": record.epoch,
        "batch": record.batch,
        "batch_sha256": record.batch_sha256,
        "checkpoint_sha256": record.checkpoint_sha256,
        "protocol_sha256": plan.protocol_sha256_of(record.series),
        "values": record.values,
        "residuals": record.residuals,
        "rest": (-1.0, 2.0),
        "layout": LAYOUT,
    }
    fields |= changes
    return VectorRecord.of(list(vectors_of(key, k=len(fields["values"])).T), **fields)


# Eigenvalues and residuals of vectors that are certain: converged, in order, and with gaps.
CERTAIN = {"values": np.array([9.0, 6.0, 4.0]), "residuals": np.full(K, 1e-5)}


def write_store(output, manifest, **changes) -> None:
    """Write every record of a manifest, each with its vectors, changed as in `vector_record_of`."""
    with SpectrumWriter(output, manifest) as writer:
        for key in writer.plan.keys():
            writer.add_all(
                [record_of(key)], vectors=[vector_record_of(key, writer.plan, **changes)]
            )
        writer.merge()
