"""Wall time of common tasks on a free machine and beside one busy process: default settings, no
environment variables.

    python experiments/benchmark_busy.py                    # this checkout, under two minutes
    python experiments/benchmark_busy.py --ref 260ff95      # an older commit as well

Tasks: an epoch of `landscape train` (20 steps of 32 small pictures), a batch of `landscape
spectra`, and two calls of `landscape.eigsh` on a model of 325 parameters. Each task lives in a
process of its own, which does everything once before it is measured, so that imports and
compilation are not. Then free and busy take turns, and medians over the rounds are printed. The
busy process is a shell loop that the system places where it likes. Run it on a quiet machine: the
load average is printed beside the numbers. The processes inherit no variable that sets threads.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from versions import THREAD_VARIABLES, busy_process, source_of

NUM_CALLS = 2
NUM_PICTURES, BATCH_SIZE, IMAGE_SIZE = 640, 32, 64
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "grey")


@dataclass(frozen=True)
class Row:
    """Medians over the rounds, in seconds of wall time; the ratio is that of the medians."""

    task: str
    commit: str
    free: float
    busy: float
    ratio: float
    worst: float


def write_pictures(folder: Path) -> Path:
    """Write squares of one colour on another, and a table with a caption of each."""
    from PIL import Image

    folder.mkdir()
    lines = ["filepath\ttitle"]
    for index in range(NUM_PICTURES):
        back, front = COLOURS[index % len(COLOURS)], COLOURS[index // len(COLOURS) % len(COLOURS)]
        side = 8 + index % 40
        picture = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), back)
        picture.paste(Image.new("RGB", (side, side), front), (index % 17, index % 13))
        picture.save(folder / f"{index}.png")
        lines.append(
            f"{folder / f'{index}.png'}\ta {front} square of {side} on {back}, number {index}"
        )
    table = folder / "pairs.tsv"
    table.write_text("\n".join(lines) + "\n")
    return table


# Does a task once and returns its seconds of wall time.
Measure = Callable[[], float]


def _command(*arguments: str) -> None:
    from click.testing import CliRunner

    from landscape.cli import main

    result = CliRunner().invoke(main, list(arguments), catch_exceptions=False)
    if result.exit_code:
        raise SystemExit(result.output)


def _train(model: str, folder: Path, table: Path, *, epochs: int = 1) -> Path:
    run = Path(tempfile.mkdtemp(dir=folder)) / "run"
    _command(
        "train",
        "--model",
        model,
        "--data",
        str(table),
        "-o",
        str(run),
        "--epochs",
        str(epochs),
        "--batch-size",
        str(BATCH_SIZE),
    )
    return run / "checkpoints.yaml"


def train_task(model: str, folder: Path, table: Path) -> Measure:
    """An epoch, as the manifest of the run states it."""

    def measure() -> float:
        log = _train(model, folder, table).with_name("log.jsonl")
        return json.loads(log.read_text().splitlines()[-1])["seconds"]

    return measure


def spectra_task(model: str, folder: Path, table: Path) -> Measure:
    """A batch, the second of two: the time from one stored record to the next."""
    manifest = _train(model, folder, table)
    text = manifest.read_text()
    marks: list[float] = []

    def watch() -> None:
        from landscape.store.writer import SpectrumWriter

        add = SpectrumWriter.add

        def marked(*args: Any, **options: Any) -> Any:
            marks.append(time.perf_counter())
            return add(*args, **options)

        SpectrumWriter.add = marked  # type: ignore[method-assign]

    def measure() -> float:
        import yaml

        study = yaml.safe_load(text)
        study["data"] |= {"num_samples": 30, "batch_size": 15}
        study["series"][0]["checkpoints"] = study["series"][0]["checkpoints"][-1:]
        study["epoch_zero"] = "optional"
        path = manifest.with_name("study.yaml")
        path.write_text(yaml.safe_dump(study))
        marks.clear()
        _command(
            "spectra",
            str(path),
            "-o",
            str(Path(tempfile.mkdtemp(dir=folder)) / "s.h5"),
            "--unaudited",
        )
        return marks[1] - marks[0]

    watch()
    return measure


def eigsh_task(folder: Path, table: Path) -> Measure:
    """Some calls, in a process that sets nothing."""
    import torch

    import landscape

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.Tanh(), torch.nn.Linear(20, 5))
    x, y = torch.randn(100, 10), torch.randint(5, (100,))
    H = landscape.hessian(
        model,
        lambda model, batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1]),
        (x, y),
    )

    def measure() -> float:
        begun = time.perf_counter()
        for seed in range(NUM_CALLS):
            landscape.eigsh(H, k=4, seed=seed)
        return time.perf_counter() - begun

    return measure


TASKS: dict[str, Callable[[Path, Path], Measure]] = {
    "train vit": lambda folder, table: train_task("vit_tiny_64", folder, table),
    "train simba": lambda folder, table: train_task("simba_tiny_64", folder, table),
    "spectra vit": lambda folder, table: spectra_task("vit_tiny_64", folder, table),
    "eigsh of 325": eigsh_task,
}


def work(task: str, folder: Path, table: Path) -> None:
    """Measure once per line of input; print the seconds each time."""
    answers, sys.stdout = sys.stdout, sys.stderr
    measure = TASKS[task](folder, table)
    measure()
    for _ in sys.stdin:
        print(measure(), file=answers, flush=True)


@contextmanager
def worker(task: str, source: Path, folder: Path, table: Path) -> Iterator[Measure]:
    """A process for a task, with the package at `source`; call what is yielded to measure once."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(THREAD_VARIABLES)
    }
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(source), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    own = Path(tempfile.mkdtemp(dir=folder))
    command = [sys.executable, __file__, "--work", task, str(own), str(table)]
    with (own / "log").open("w") as log:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=own,
        )
        assert process.stdin is not None and process.stdout is not None
        pipe_in, pipe_out = process.stdin, process.stdout

        def measure() -> float:
            print("go", file=pipe_in, flush=True)
            line = pipe_out.readline()
            if not line:
                raise SystemExit(f"{task} failed:\n" + (own / "log").read_text()[-2000:])
            return float(line)

        try:
            yield measure
        finally:
            pipe_in.close()
            process.wait()


def measure_task(
    task: str, commit: str, source: Path, folder: Path, table: Path, *, rounds: int
) -> Row:
    """Free and busy in turn, `rounds` times."""
    free, busy = [], []
    with worker(task, source, folder, table) as measure:
        for _ in range(rounds):
            free.append(measure())
            with busy_process():
                busy.append(measure())
    alone, beside = (statistics.median(runs) for runs in (free, busy))
    return Row(task, commit, alone, beside, beside / alone, max(busy))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ref", help="a commit to measure as well, before this checkout")
    parser.add_argument(
        "--rounds",
        type=int,
        default=3,
        help="pairs of free and busy runs of each task (default: %(default)s)",
    )
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work[0], Path(options.work[1]), Path(options.work[2]))
        return
    print(
        f"{date.today()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, wall seconds, "
        f"medians of {options.rounds}"
    )
    print(f"{'task':14}{'commit':>10}{'free':>9}{'busy':>9}{'ratio':>8}{'worst':>9}")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        table = write_pictures(Path(name) / "pictures")
        for ref in (options.ref, None) if options.ref else (None,):
            with source_of(ref) as source:
                for task in options.tasks:
                    row = measure_task(
                        task, ref or "this", source, Path(name), table, rounds=options.rounds
                    )
                    numbers = f"{row.free:9.2f}{row.busy:9.2f}{row.ratio:8.2f}{row.worst:9.2f}"
                    print(f"{row.task:14}{row.commit:>10}{numbers}", flush=True)
                    rows.append(row)
    print(f"load {os.getloadavg()[0]:.1f} at the end")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
