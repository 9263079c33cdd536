"""CPU seconds of a batch of `landscape spectra`, before and after a change, and whether its values
are right.

    python experiments/benchmark_batch.py --run runs
    python experiments/benchmark_batch.py --hvp traced --batches 5 --models vit_tiny_64

Run it after `make figure3`; it trains 5 epochs where that was not done.

The three small models at initialisation and trained, on batches of 15 OpenMoji pairs as
checkpoints.yaml states them, float32, one thread. Each version lives in a process of its own. After
a batch that is not counted they take turns, a chunk of batches each, and a batch counts from
reading its pictures to its five eigenvalues. Then, with the clocks stopped:

    error    the largest relative difference of a value from eigsh in float64 to 1e-5, by the
             version before, kept in --run
    bounds   the values that lie within their residual bound of one in float64, of all
    MiB      the peak of the process, libraries and whatever was compiled included
    first    CPU seconds of the batch that is not counted, with child processes such as a compiler
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from peers.processes import peak_mebibytes, write_json
from versions import Worker, commit_of, requests, source_of

BEFORE = "4c0a0a5"
MODELS = ("vit_tiny_64", "vmamba_tiny_64", "simba_tiny_64")
PAIRS = 15
TRUTH_TOL = 1e-5

MANIFEST = """
version: 1
epoch_zero: optional
data:
  {{source: openmoji, split: train, image_size: 64, num_samples: {samples}, batch_size: {pairs},
   seed: 0, augmentation: none}}
hessian:
  {{objective: contrastive, parameters: all, k: 5, which: LM, tol: {tol}, max_matvecs: 300, seed: 0,
   dtype: {dtype}}}
series:
  - name: {model}
    model: {model}
    checkpoints:
      - {{epoch: {epoch}, path: {checkpoint}}}
"""


@dataclass(frozen=True)
class Row:
    """One model at one epoch; seconds, products and megabytes are medians, means and peaks.

    Attributes:
        products, before_products: Mean of a batch.
        worst_value_error, before_worst_value_error: Relative, against float64; over all batches and
        values. within_bounds, before_within_bounds: Share of the values that lie within their bound
        of a value in float64. Bounds are
            those of the operator in float32, so values whose residual is near its rounding may lie
            outside.
        first_cpu_seconds: Of the batch that is not counted, child processes included.
    """

    model: str
    state: str
    before_cpu_seconds: float
    after_cpu_seconds: float
    products: float
    worst_value_error: float
    within_bounds: float
    before_products: float
    before_worst_value_error: float
    before_within_bounds: float
    before_peak_mebibytes: float
    after_peak_mebibytes: float
    before_first_cpu_seconds: float
    after_first_cpu_seconds: float
    num_batches: int
    product: str
    chosen: str


# --- the worker, which runs on both versions ------------------------------------------------------


def work(manifest_path: Path, product: str) -> None:
    """Measure the requested batches; answer with a list of what each took and gave."""
    import torch

    from landscape.clip.image_text import open_pairs
    from landscape.clip.loaded_series import LoadedSeries
    from landscape.manifest import Manifest
    from landscape.pipeline import products as hvps
    from landscape.pipeline.solve import Solver

    torch.set_num_threads(1)
    manifest = Manifest.load(manifest_path)
    (series,) = manifest.series
    loaded = LoadedSeries.of(
        manifest, series, open_pairs(manifest.data), device=torch.device("cpu")
    )
    loaded.load(series.checkpoints[0])
    # Older versions know the settings by another name, and are measured with their defaults.
    is_older = not hasattr(hvps, "HvpSettings")
    settings = hvps.ProductSettings() if is_older else hvps.HvpSettings(hvp=product)
    products, solver = hvps.SeriesProducts(settings), Solver()

    def measure(index: int) -> dict[str, Any]:
        begun = cpu_seconds()
        pairs, _ = solver.solve(
            manifest.hessian,
            loaded,
            index,
            series=series.name,
            hvp="double-backward",
            products=products,
        )
        return {
            "cpu_seconds": cpu_seconds() - begun,
            "products": pairs.num_matvecs,
            "values": pairs.values.tolist(),
            "bounds": (pairs.residuals * pairs.values.abs()).tolist(),
            "chosen": str(products.settings().get("product", product)),
            "peak_mebibytes": peak_mebibytes(),
        }

    for indices in requests():
        print(json.dumps([measure(index) for index in indices]), flush=True)


def cpu_seconds() -> float:
    """CPU seconds of this process and of the children that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


# --- the driver -----------------------------------------------------------------------------------


def checkpoint_of(run: Path, model: str, epoch: int) -> Path:
    """The weights after an epoch, of `make figure3` or trained now up to it."""
    folder = run / model.split("_")[0]
    path = folder / "checkpoints" / f"epoch_{epoch}.pt"
    if not path.exists():
        command = [
            sys.executable,
            "-m",
            "landscape",
            "train",
            "--model",
            model,
            "-o",
            str(folder),
            "--epochs",
            str(epoch),
        ]
        subprocess.run(command, check=True)
    return path.resolve()


def write_manifest(
    path: Path, *, model: str, checkpoint: Path, epoch: int, num_batches: int, **numbers: Any
) -> Path:
    text = MANIFEST.format(
        samples=PAIRS * num_batches,
        pairs=PAIRS,
        model=model,
        checkpoint=checkpoint,
        epoch=epoch,
        **numbers,
    )
    path.write_text(text)
    return path


def truth_of(
    run: Path, model: str, epoch: int, num_batches: int, *, source: Path
) -> list[list[float]]:
    """The five values of every batch in float64, measured where they are not kept yet."""
    kept = run / f"truth_{model}_{epoch}.json"
    values: list[list[float]] = json.loads(kept.read_text()) if kept.exists() else []
    missing = list(range(len(values), num_batches))
    if missing:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = checkpoint_of(run, model, epoch)
            manifest = write_manifest(
                Path(folder) / "float64.yaml",
                model=model,
                checkpoint=checkpoint,
                epoch=epoch,
                num_batches=num_batches,
                tol=TRUTH_TOL,
                dtype="float64",
            )
            worker = Worker(__file__, ["--work", manifest, "auto"], source=source, threads=1)
            try:
                values += [answer["values"] for answer in worker.ask(missing)]
            finally:
                worker.close()
        kept.write_text(json.dumps(values))
    return values[:num_batches]


def in_turn(
    before: Worker, after: Worker, num_batches: int, *, chunk: int
) -> tuple[list[Any], list[Any]]:
    """What both answer for batches 0, 1, ..., in chunks, each chunk by the version that came second
    before.
    """
    answers: tuple[list[Any], list[Any]] = ([], [])
    for number, start in enumerate(range(0, num_batches, chunk)):
        indices = list(range(start, min(start + chunk, num_batches)))
        order = ((0, before), (1, after))
        for version, worker in order if number % 2 == 0 else order[::-1]:
            answers[version].extend(worker.ask(indices))
    return answers


def worst_error(answers: Sequence[Any], truth: Sequence[Sequence[float]]) -> float:
    """The largest relative difference of a value from that of the same rank in float64.

    Values are ranked from the largest to the smallest, signs included: of two of nearly the same
    size, rounding may decide which comes first.
    """
    errors = []
    for answer, exact in zip(answers, truth):
        errors += [abs(x - y) / abs(y) for x, y in zip(sorted(answer["values"]), sorted(exact))]
    return max(errors)


def share_within(answers: Sequence[Any], truth: Sequence[Sequence[float]]) -> float:
    """The share of values with one in float64 within their bound."""
    within = [
        min(abs(value - exact) for exact in row) <= bound
        for answer, row in zip(answers, truth)
        for value, bound in zip(answer["values"], answer["bounds"])
    ]
    return sum(within) / len(within)


def compare(
    run: Path,
    model: str,
    epoch: int,
    sources: tuple[Path, Path],
    *,
    product: str,
    num_batches: int,
    chunk: int,
) -> Row:
    """Both versions on one model at one epoch."""
    checkpoint = checkpoint_of(run, model, epoch)
    with tempfile.TemporaryDirectory() as folder:
        # One batch more, which is not counted.
        manifest = write_manifest(
            Path(folder) / "float32.yaml",
            model=model,
            checkpoint=checkpoint,
            epoch=epoch,
            num_batches=num_batches + 1,
            tol=1e-3,
            dtype="float32",
        )
        asked = ("auto", product)
        both = [
            Worker(__file__, ["--work", manifest, how], source=at, threads=1)
            for at, how in zip(sources, asked)
        ]
        try:
            first = [worker.ask([num_batches])[0] for worker in both]
            answers = in_turn(both[0], both[1], num_batches, chunk=chunk)
        finally:
            for worker in both:
                worker.close()
    truth = truth_of(run, model, epoch, num_batches, source=sources[0])
    seconds = [
        statistics.median(answer["cpu_seconds"] for answer in version) for version in answers
    ]
    products = [statistics.mean(answer["products"] for answer in version) for version in answers]
    peaks = [max(answer["peak_mebibytes"] for answer in version) for version in answers]
    return Row(
        model=model,
        state=f"epoch {epoch}" if epoch else "initialisation",
        before_cpu_seconds=seconds[0],
        after_cpu_seconds=seconds[1],
        products=products[1],
        worst_value_error=worst_error(answers[1], truth),
        within_bounds=share_within(answers[1], truth),
        before_products=products[0],
        before_worst_value_error=worst_error(answers[0], truth),
        before_within_bounds=share_within(answers[0], truth),
        before_peak_mebibytes=peaks[0],
        after_peak_mebibytes=peaks[1],
        before_first_cpu_seconds=first[0]["cpu_seconds"],
        after_first_cpu_seconds=first[1]["cpu_seconds"],
        num_batches=num_batches,
        product=product,
        chosen=answers[1][-1]["chosen"],
    )


HEADER = (
    f"{'':31} {'CPU s a batch':>21} {'products':>13} {'error':>15} {'bounds':>13} {'MiB':>11} "
    f"{'first, CPU s':>13}\n{'':31} {'before':>7} {'after':>6} {'ratio':>6} {'before':>6} "
    f"{'after':>6} {'before':>7} {'after':>7} {'before':>6} {'after':>6} {'before':>6} "
    f"{'after':>5} {'before':>6} {'after':>6}"
)


def line(row: Row) -> str:
    ratio = row.before_cpu_seconds / row.after_cpu_seconds
    return (
        f"{row.model:16}{row.state:15} {row.before_cpu_seconds:7.3f} {row.after_cpu_seconds:6.3f} "
        f"{ratio:6.2f} {row.before_products:6.1f} {row.products:6.1f} "
        f"{row.before_worst_value_error:7.0e} {row.worst_value_error:7.0e} "
        f"{row.before_within_bounds:6.1%} {row.within_bounds:6.1%} "
        f"{row.before_peak_mebibytes:6.0f} {row.after_peak_mebibytes:5.0f} "
        f"{row.before_first_cpu_seconds:6.1f} {row.after_first_cpu_seconds:6.1f}  {row.chosen}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run",
        type=Path,
        default=Path("runs"),
        help="folder of the trained models (default: %(default)s)",
    )
    parser.add_argument(
        "--before", default=BEFORE, help="commit to compare with (default: %(default)s)"
    )
    parser.add_argument(
        "--hvp",
        "--product",
        dest="product",
        default="auto",
        help="how the version after computes products (default: %(default)s)",
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument(
        "--epochs",
        nargs="+",
        type=int,
        default=[0, 5],
        help="0 is the initialisation (default: 0 5)",
    )
    parser.add_argument(
        "--batches", type=int, default=20, help="of each case (default: %(default)s)"
    )
    parser.add_argument(
        "--chunk",
        type=int,
        default=2,
        help="batches that a version measures in turn (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(Path(options.work[0]), options.work[1])
        return
    versions = (
        f"{commit_of(options.before)} against this checkout at {commit_of('HEAD')}, product "
        f"{options.product}"
    )
    print(
        f"{date.today()}, {os.cpu_count()} cores, 1 thread, load {os.getloadavg()[0]:.1f}, "
        f"{versions}"
    )
    print(HEADER)
    rows = []
    options.run.mkdir(parents=True, exist_ok=True)
    with source_of(options.before) as before, source_of(None) as after:
        for model in options.models:
            for epoch in options.epochs:
                rows.append(
                    compare(
                        options.run,
                        model,
                        epoch,
                        (before, after),
                        product=options.product,
                        num_batches=options.batches,
                        chunk=options.chunk,
                    )
                )
                print(line(rows[-1]), flush=True)
                if options.json:
                    write_json(options.json, [asdict(row) for row in rows])
    print(f"load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
