"""A study small enough to measure in seconds: CLIP models of one layer per tower on twelve painted
pictures.

Also a program, for the test that kills `landscape spectra`: it forks children that run the command,
and kills them.
"""

import csv
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import torch
import yaml
from PIL import Image

from landscape.cli import main
from landscape.clip.checkpoint import save_checkpoint
from landscape.clip.model import build_model
from landscape.store import SpectrumStore, parts_folder
from tests.helpers.tiny_run import PLAIN as MODEL
from tests.helpers.tiny_run import config_of

NUM_BATCHES, BATCH_SIZE = 3, 4


@cache
def checkpoint_bytes(seed: int, epoch: int) -> bytes:
    """Return the file of a checkpoint of random weights."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        save_checkpoint(path, model=build_model(MODEL, seed=seed), epoch=epoch, name=MODEL)
        return path.read_bytes()


def make_study(
    folder: Path,
    *,
    epochs: tuple[int, ...] = (0, 1),
    names: tuple[str, ...] = ("one", "two"),
    with_config: bool = False,
    **hessian: object,
) -> Path:
    """Pictures, captions, checkpoints of random weights and a manifest in `folder`; returns the
    manifest.

    Args:
        with_config: Name the model by a file, so that processes that have not registered it can
            build it.
    """
    with open(folder / "pairs.tsv", "w", newline="") as table:
        rows = csv.writer(table, delimiter="\t")
        rows.writerow(["filepath", "title"])
        for index in range(BATCH_SIZE * NUM_BATCHES):
            Image.new("RGB", (16, 16), (20 * index, 255 - 20 * index, (70 * index) % 255)).save(
                folder / f"{index}.png"
            )
            rows.writerow([f"{index}.png", f"picture {chr(97 + index)}"])
    series = []
    for number, name in enumerate(names):
        checkpoints = []
        for epoch in epochs:
            path = folder / f"{name}_{epoch}.pt"
            path.write_bytes(checkpoint_bytes(100 * number + epoch, epoch))
            checkpoints.append({"epoch": epoch, "path": path.name})
        architecture = {"config": "tiny.json"} if with_config else {"model": MODEL}
        series.append({"name": name, **architecture, "checkpoints": checkpoints})
    (folder / "tiny.json").write_text(json.dumps(config_of()))
    document = {
        "version": 1,
        "data": {
            "source": "pairs.tsv",
            "split": "all",
            "num_samples": BATCH_SIZE * NUM_BATCHES,
            "batch_size": BATCH_SIZE,
        },
        "hessian": {"objective": "contrastive", "k": 3, **hessian},
        "series": series,
    }
    manifest = folder / "checkpoints.yaml"
    manifest.write_text(yaml.safe_dump(document, sort_keys=False))
    return manifest


def stored(output: Path) -> dict[str, list[float]]:
    """The eigenvalues of every record of an output, by key; empty where there is none yet."""
    try:
        store = SpectrumStore.open(output)
    except Exception:
        return {}
    with store:
        tables = [
            store.records(series, epoch)
            for series in store.series()
            for epoch in store.epochs(series)
        ]
        return {
            key: row.tolist() for table in tables for key, row in zip(table.keys, table.eigenvalues)
        }


def spectra_in_a_child(manifest: Path, output: Path) -> int:
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.dup2(2, 1)
        try:
            main(["spectra", str(manifest), "-o", str(output), "--device", "cpu"])
        except SystemExit as stop:
            os._exit(int(stop.code or 0))
        os._exit(99)
    return pid


def logged(output: Path) -> int:
    """Bytes of the logs of a run that has not ended by itself."""
    sizes = []
    for path in parts_folder(output).glob("*.log"):
        try:
            sizes.append(path.stat().st_size)
        except FileNotFoundError:
            pass
    return sum(sizes)


def wait_for_more(output: Path, pid: int) -> None:
    """Wait until the logs of a run have grown, or it has ended."""
    before = logged(output)
    while (
        logged(output) <= before
        and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    ):
        time.sleep(0.001)


def kill_at_random(
    manifest: Path, folder: Path, *, num_kills: int, longest: float, seed: int
) -> dict[str, object]:
    """Start the command and kill it until `num_kills` runs have died of it; then let every output
    finish.

    Kills come by turns soon after something was stored and at any moment: how much of a run its
    records take is the machine's affair. An output that got complete is followed by a new one.

    Returns:
        The exit statuses of the last runs, how many records were there after each kill, the keys
        that were ever lost or whose values ever changed, and the records of every output.
    """
    generator = random.Random(seed)
    outputs = [folder / "killed_0.h5"]
    before: dict[str, list[float]] = {}
    counts: list[int] = []
    damaged: list[str] = []
    while len(counts) < num_kills:
        pid = spectra_in_a_child(manifest, outputs[-1])
        if len(counts) % 2 == 0:
            wait_for_more(outputs[-1], pid)
            time.sleep(generator.uniform(0, longest / 20))
        else:
            time.sleep(generator.uniform(0, longest))
        os.kill(pid, signal.SIGKILL)
        died = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        after = stored(outputs[-1])
        damaged += [key for key, values in before.items() if after.get(key) != values]
        counts += [len(after)] * died
        before = after
        if not died:
            outputs.append(folder / f"killed_{len(outputs)}.h5")
            before = {}
    statuses = [
        os.waitstatus_to_exitcode(os.waitpid(spectra_in_a_child(manifest, output), 0)[1])
        for output in outputs
    ]
    final = [stored(output) for output in outputs]
    damaged += [key for key, values in before.items() if final[-1].get(key) != values]
    return {"statuses": statuses, "counts": counts, "damaged": damaged, "final": final}


if __name__ == "__main__":
    torch.set_num_threads(1)
    study, folder = Path(sys.argv[1]), Path(sys.argv[2])
    # Imported once for all children.
    for module in (
        "landscape.pipeline.spectra",
        "landscape.clip.loaded_series",
        "landscape.pipeline.audit",
    ):
        importlib.import_module(module)
    begun = time.monotonic()
    os.waitpid(spectra_in_a_child(study, folder / "undisturbed.h5"), 0)
    # A kill falls anywhere into a whole run.
    print(
        json.dumps(
            kill_at_random(
                study, folder, num_kills=int(sys.argv[3]), longest=time.monotonic() - begun, seed=0
            )
        )
    )
