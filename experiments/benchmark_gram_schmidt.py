"""CPU milliseconds of a Gram-Schmidt step, the fused Numba kernel beside plain torch, on one
thread.

    python experiments/benchmark_gram_schmidt.py

Medians of alternating calls in one process; `difference` is the largest one of the components,
relative to the vector's norm. Then what the first call of the kernel takes in a new process:
compiled anew, from the cache, and with no cache.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

from landscape.linalg import DenseOperator, krylov, seeded
from landscape.linalg.krylov import KrylovBasis
from landscape.linalg.vectors import norm

SIZES = ((10_000, 22), (134_497, 22), (134_497, 60), (2_500_000, 22))
DTYPES = (torch.float32, torch.float64)
# What a new process does: the CPU seconds of the import of the kernel and its first call.
FIRST_CALL = """
import time, torch
from landscape.linalg import eigsh
begun = time.process_time()
from landscape.linalg import gram_schmidt
{prepare}
gram_schmidt.orthogonalise([torch.ones(100) / 10], torch.ones(100))
print(time.process_time() - begun)
"""
UNCACHED = """
for name in ("_inner", "_first_pass", "_second_pass"):
    compiled = gram_schmidt.njit(getattr(gram_schmidt, name).py_func, **gram_schmidt._OPTIONS)
    setattr(gram_schmidt, name, compiled)
"""


def basis_of(n: int, m: int, dtype: torch.dtype) -> KrylovBasis:
    """Rows of length 1, orthogonal to about 1 / sqrt(n)."""
    operator = DenseOperator(torch.ones(1, 1, dtype=dtype))
    operator.n = n
    basis = KrylovBasis(operator, generator=seeded(0))
    for seed in range(m):
        row = torch.randn(n, generator=seeded(seed), dtype=dtype)
        basis._append(row / norm(row))
    return basis


def compare(n: int, m: int, dtype: torch.dtype, *, rounds: int) -> dict[str, Any]:
    """Both on the same basis and vector, in turn."""
    basis, w = basis_of(n, m, dtype), torch.randn(n, generator=seeded(m), dtype=dtype)
    kernel = krylov._fused()
    assert kernel is not None
    rows = [basis.row(index) for index in range(m)]
    calls = {"torch": basis._orthogonalise_by_torch, "kernel": lambda left: kernel(rows, left)}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    components = {}
    for _ in range(rounds):
        for name, call in calls.items():
            left, begun = w.clone(), time.process_time()
            components[name], _ = call(left)
            seconds[name].append(time.process_time() - begun)
    medians = {name: 1e3 * statistics.median(times[1:]) for name, times in seconds.items()}
    difference = abs(components["torch"] - components["kernel"]).max() / norm(w)
    return {
        "n": n,
        "m": m,
        "dtype": str(dtype).removeprefix("torch."),
        **medians,
        "difference": difference,
    }


def first_call(prepare: str, cache: str) -> float:
    """CPU seconds in a new process, with this folder for machine code."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
    command = [sys.executable, "-c", FIRST_CALL.format(prepare=prepare)]
    return float(
        subprocess.run(
            command, env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=int, default=11, help="calls of each (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{date.today()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch "
        f"{torch.__version__}, CPU ms"
    )
    print(
        f"{'n':>9} {'m':>3} {'dtype':8} {'torch':>8} {'kernel':>8} {'ratio':>6} {'difference':>10}"
    )
    rows = []
    for dtype in DTYPES:
        for n, m in SIZES:
            rows.append(row := compare(n, m, dtype, rounds=options.rounds))
            ratio = row["torch"] / row["kernel"]
            numbers = (
                f"{row['torch']:8.2f} {row['kernel']:8.2f} {ratio:6.2f} {row['difference']:10.0e}"
            )
            print(f"{n:9,} {m:3} {row['dtype']:8} {numbers}", flush=True)
    with tempfile.TemporaryDirectory() as cache:
        calls = {name: first_call("", cache) for name in ("compiled", "from the cache")}
        calls["no cache"] = first_call(UNCACHED, cache)
    print(
        "first call in a process, CPU s: "
        + ", ".join(f"{name} {seconds:.2f}" for name, seconds in calls.items())
    )
    if options.json:
        options.json.write_text(json.dumps({"rows": rows, "first_calls": calls}, indent=1))


if __name__ == "__main__":
    main()
