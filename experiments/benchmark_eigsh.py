"""Seconds of `landscape.eigsh` on small dense matrices, at default settings, before and after a
change of threads.

    python experiments/benchmark_eigsh.py                     # some minutes
    python experiments/benchmark_eigsh.py --before HEAD~1 --sizes 50 301 --json eigsh.json

Five eigenvalues largest in magnitude of random symmetric matrices (semicircle law), which have no
gaps, so that the number of products is large. Each version lives in a process of its own that
inherits no variable that sets threads; they take turns, free and beside one busy process. Medians
over the rounds; `values` is the largest relative difference between both versions' values. The
default of --before is the last commit in which NumPy's BLAS and torch took all threads for small
work.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from peers.processes import write_json
from versions import Worker, busy_process, commit_of, requests, source_of, workers

BEFORE = "260ff95"
SIZES = (50, 301, 1000, 5000)
DTYPES = ("float64", "float32")


@dataclass(frozen=True)
class Row:
    """Medians over the rounds.

    Attributes:
        busy: Whether a process beside took all of a core.
        products: Of the version after.
        values: Largest relative difference between the values of both versions.
    """

    n: int
    dtype: str
    busy: bool
    before_seconds: float
    after_seconds: float
    before_cpu_seconds: float
    after_cpu_seconds: float
    products: int
    values: float


def work(n: int, dtype: str) -> None:
    """Solve once for each requested seed; answer with seconds, products and values."""
    import torch

    import landscape
    from landscape.linalg import DenseOperator

    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(n, n, generator=generator, dtype=torch.float64)
    operator = DenseOperator(((matrix + matrix.T) / (2 * n) ** 0.5).to(getattr(torch, dtype)))
    landscape.eigsh(operator, k=5, max_matvecs=10)
    for seed in requests():
        begun, cpu_begun = time.perf_counter(), time.process_time()
        pairs = landscape.eigsh(operator, k=5, seed=seed)
        seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu_begun
        answer = {
            "seconds": seconds,
            "cpu_seconds": cpu_seconds,
            "products": pairs.num_matvecs,
            "values": pairs.values.tolist(),
        }
        print(json.dumps(answer), flush=True)


def compare(before: Worker, after: Worker, n: int, dtype: str, *, busy: bool, rounds: int) -> Row:
    """Both versions in turn, with the same seeds."""
    answers: list[tuple[Any, Any]] = []
    with busy_process() if busy else nullcontext():
        for seed in range(rounds):
            answers.append((before.ask(seed), after.ask(seed)))

    def median(version: int, key: str) -> float:
        return statistics.median(answer[version][key] for answer in answers)

    differences = [
        abs(x - y) / abs(x) for old, new in answers for x, y in zip(old["values"], new["values"])
    ]
    seconds = (median(version, key) for key in ("seconds", "cpu_seconds") for version in (0, 1))
    return Row(
        n, dtype, busy, *seconds, products=round(median(1, "products")), values=max(differences)
    )


def line(row: Row) -> str:
    state = "busy" if row.busy else "free"
    gain, cpu_gain = (
        row.before_seconds / row.after_seconds,
        row.before_cpu_seconds / row.after_cpu_seconds,
    )
    return (
        f"{row.n:6d} {row.dtype:8} {state:5} {row.before_seconds:8.3f} {row.after_seconds:8.3f} "
        f"{gain:7.1f} {row.before_cpu_seconds:9.3f} {row.after_cpu_seconds:8.3f} {cpu_gain:7.1f} "
        f"{row.products:9d} {row.values:8.0e}"
    )


def measure(before: str, sizes: Sequence[int], *, rounds: int) -> list[Row]:
    """Print and return the rows of all sizes and types."""
    rows = []
    print(f"{'':6} {'':8} {'':5} {'wall s':>8} {'':8} {'before':>7} {'CPU s':>9} {'':8} {'before'}")
    print(
        f"{'n':>6} {'dtype':8} {'':5} {'before':>8} {'after':>8} {'/after':>7} {'before':>9} "
        f"{'after':>8} {'/after':>7} {'products':>9} {'values':>8}"
    )
    with source_of(before) as old, source_of(None) as new:
        for n in sizes:
            for dtype in DTYPES:
                arguments = ["--work", n, dtype]
                with workers(__file__, {old: arguments, new: arguments}) as started:
                    for busy in (False, True):
                        rows.append(
                            compare(started[old], started[new], n, dtype, busy=busy, rounds=rounds)
                        )
                        print(line(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--before", default=BEFORE, help="commit to compare with (default: %(default)s)"
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="rows of the matrices")
    parser.add_argument(
        "--rounds", type=int, default=3, help="runs of each version (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(int(options.work[0]), options.work[1])
        return
    versions = f"{commit_of(options.before)} against this checkout at {commit_of('HEAD')}"
    print(
        f"{date.today()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {versions}, "
        f"medians of {options.rounds} runs"
    )
    rows = measure(options.before, options.sizes, rounds=options.rounds)
    print(f"load {os.getloadavg()[0]:.1f} at the end")
    if options.json:
        write_json(options.json, [asdict(row) for row in rows])


if __name__ == "__main__":
    main()
