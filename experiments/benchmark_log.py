"""What 10^5 records cost a store: writing, opening, merging, opening the merged file.

Usage: python experiments/benchmark_log.py [--records 100000] [--unit 20] [--folder DIR]

Every step runs in a process of its own, whose CPU seconds and peak memory (VmHWM, libraries
included) are shown. Records have the size of real ones: 5 eigenvalues and a quadrature of 25 nodes,
about 3.3 kB. Each unit is brought to the disk by one fsync. Also runs on versions that write one
file a record: put them first on PYTHONPATH.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from landscape.store import Record, SpectrumStore, parts_folder
from tests.helpers.store_records import manifest_of, record_of

_BATCHES, _K, _NODES = 2000, 5, 25
_STEPS = ("write", "open", "merge", "open merged")


def main() -> None:
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asked.add_argument("--records", type=int, default=100_000)
    asked.add_argument("--unit", type=int, default=20, help="Records per fsync.")
    asked.add_argument(
        "--folder", type=Path, help="Where the store is written; default: a temporary folder."
    )
    asked.add_argument("--step", choices=_STEPS, help="Run this alone, in this process.")
    options = asked.parse_args()
    if options.step:
        print(json.dumps(run(options.step, options.folder, options.records, options.unit)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        print(
            f"{options.records:,} records in {options.records // _BATCHES} checkpoints, "
            f"{options.unit} a unit"
        )
        print(f"{'step':<12} {'CPU s':>7} {'wall s':>7} {'peak MiB':>9}  files")
        for step in _STEPS:
            arguments = [
                "--records",
                options.records,
                "--unit",
                options.unit,
                "--folder",
                name,
                "--step",
                step,
            ]
            command = [sys.executable, __file__, *map(str, arguments)]
            row = json.loads(
                subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            )
            print(
                f"{step:<12} {row['cpu']:>7.1f} {row['wall']:>7.1f} {row['peak']:>9.0f}  "
                f"{row['files']}",
                flush=True,
            )


def run(step: str, folder: Path, num_records: int, unit: int) -> dict[str, Any]:
    """Take a step, and say what it cost."""
    manifest = manifest_of(
        folder, series=("wide",), epochs=range(num_records // _BATCHES), num_batches=_BATCHES, k=_K
    )
    output = folder / "spectra.h5"
    cpu, wall = time.process_time(), time.perf_counter()
    if step == "write":
        write(output, manifest, unit)
    elif step == "merge":
        with writer_of(output, manifest) as writer:
            writer.merge()
    else:
        with SpectrumStore.open(output) as store:
            assert len(store.completed_keys()) == num_records and not store.rejected
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"cpu": cpu, "wall": wall, "peak": peak, "files": files_of(output)}


def writer_of(output: Path, manifest: Any) -> Any:
    """The writer of an output, also of versions in which the store makes it."""
    if hasattr(SpectrumStore, "prepare"):
        return SpectrumStore.prepare(output, manifest)
    from landscape.store import SpectrumWriter

    return SpectrumWriter(output, manifest)


def write(output: Path, manifest: Any, unit: int) -> None:
    """Write every record of a manifest, `unit` at once where the version can."""
    with writer_of(output, manifest) as writer:
        keys = writer.plan.keys()
        for start in range(0, len(keys), unit):
            records = [record(key) for key in keys[start : start + unit]]
            if hasattr(writer, "add_all"):
                writer.add_all(records)
            else:
                for one in records:
                    writer.add(one)


def record(key: str) -> Record:
    """A record whose numbers have all their digits."""
    batch = int(key.split("/")[2])
    rng = np.random.default_rng(batch)
    ends = {
        name: rng.standard_normal(_K)
        for name in ("smallest", "smallest_residuals", "largest", "largest_residuals")
    }
    quadrature = {
        "ritz_values": rng.standard_normal(_NODES),
        "ritz_weights": rng.dirichlet(np.ones(_NODES)),
    }
    values = {
        "values": rng.standard_normal(_K),
        "residuals": rng.random(_K) * 1e-3,
        "converged": np.ones(_K, dtype=bool),
    }
    audit = {
        "audit": {
            "passed": True,
            "tests": {f"module {number}": float(rng.random()) for number in range(20)},
        }
    }
    return record_of(key, extras=audit, **ends, **quadrature, **values)


def files_of(output: Path) -> str:
    """How many files the store consists of, and their size."""
    folder = parts_folder(output)
    paths = [
        path for path in [output, *(folder.iterdir() if folder.is_dir() else ())] if path.exists()
    ]
    records = [path for path in paths if path.suffix in (".h5", ".log", ".jsonl")]
    return f"{len(records):,}, {sum(os.stat(path).st_size for path in records) / 1e6:,.1f} MB"


if __name__ == "__main__":
    main()
