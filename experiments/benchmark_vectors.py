"""Time, memory and bytes of keeping the eigenvectors of one batch.

    python experiments/benchmark_vectors.py                 # 3 vectors of 10^7 parameters, seconds
    python experiments/benchmark_vectors.py --n 100000000   # a minute, 1.5 GB of memory

Random normal vectors are rounded, compressed, written, read back with their checksums, and
multiplied as `landscape compare` does. Random vectors compress worst.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from landscape.compare.eigenvectors import moments_of
from landscape.store import ParameterLayout, StoredVectors, VectorRecord

DIGEST = "0" * 64


def random_vectors(n: int, k: int) -> Iterator[np.ndarray]:
    """Draw vectors one at a time, so that one alone is in memory."""
    generator = np.random.default_rng(0)
    for _ in range(k):
        yield generator.standard_normal(n, dtype=np.float32)


def encoded(n: int, k: int) -> VectorRecord:
    """Round and compress k random vectors."""
    return VectorRecord.of(
        random_vectors(n, k),
        series="s",
        epoch=0,
        batch=0,
        batch_sha256=DIGEST,
        checkpoint_sha256=DIGEST,
        protocol_sha256=DIGEST,
        values=np.arange(k, 0.0, -1),
        residuals=np.zeros(k),
        rest=(-0.5, 0.5),
        layout=ParameterLayout(names=("w",), sizes=(n,), modules=("w",)),
    )


def peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure(n: int, k: int, path: Path) -> list[str]:
    """Return a line for each step."""
    begun = time.perf_counter()
    record = encoded(n, k)
    lines = [
        f"round and compress: {time.perf_counter() - begun:.1f} s, {len(record.image) / 1e6:.0f} MB"
        f" of {2 * k * n / 1e6:.0f}"
    ]
    begun = time.perf_counter()
    path.write_bytes(record.image)
    lines.append(f"write: {time.perf_counter() - begun:.1f} s")
    with h5py.File(path) as file:
        vectors = StoredVectors(file["vectors/s/0/0"], series="s", epoch=0, batch=0, path=path)
        steps = (("read and check", vectors.check), ("multiply", partial(moments_of, [vectors])))
        for title, step in steps:
            begun = time.perf_counter()
            step()
            lines.append(f"{title}: {time.perf_counter() - begun:.1f} s")
        lines.append(f"rounding: {vectors.rounding.max():.1e}")
    return [*lines, f"peak memory: {peak_gigabytes():.2f} GB"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=10**7, help="parameters")
    parser.add_argument("--k", type=int, default=3, help="vectors")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print("\n".join(measure(asked.n, asked.k, Path(folder) / "vectors.h5")))


if __name__ == "__main__":
    main()
