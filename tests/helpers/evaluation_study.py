"""Kills `landscape evaluate` at random moments: a program that forks children that run the command.

Prints the exit status of the last run, how many units were stored after each kill, and the digests
of all outputs.
"""

import importlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from landscape.cli import main
from landscape.pipeline import evaluation_measurement
from landscape.store.predictions import read_predictions
from tests.helpers import tiny_run  # noqa: F401 (registers the model)
from tests.helpers.spectra_study import logged, wait_for_more

PICTURES_A_UNIT = 5


def evaluate_in_a_child(manifest: Path, pictures: Path, output: Path) -> int:
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.dup2(2, 1)
        try:
            main(
                [
                    "evaluate",
                    str(manifest),
                    "-o",
                    str(output),
                    "--data",
                    f"zoo={pictures}",
                    "--workers",
                    "1",
                    "--device",
                    "cpu",
                ]
            )
        except SystemExit as stop:
            os._exit(int(stop.code or 0))
        os._exit(99)
    return pid


def kill_at_random(
    manifest: Path, pictures: Path, folder: Path, *, num_kills: int, longest: float
) -> dict[str, object]:
    """Start the command and kill it until `num_kills` runs have died of it; then let every output
    finish.

    Kills come by turns soon after something was stored and at any moment.
    """
    generator = random.Random(0)
    outputs, sizes = [folder / "killed_0.h5"], []
    while len(sizes) < num_kills:
        pid = evaluate_in_a_child(manifest, pictures, outputs[-1])
        if len(sizes) % 2 == 0:
            wait_for_more(outputs[-1], pid)
            time.sleep(generator.uniform(0, longest / 20))
        else:
            time.sleep(generator.uniform(0, longest))
        os.kill(pid, signal.SIGKILL)
        if os.WIFSIGNALED(os.waitpid(pid, 0)[1]):
            sizes.append(logged(outputs[-1]))
        else:
            outputs.append(folder / f"killed_{len(outputs)}.h5")
    statuses = [
        os.waitstatus_to_exitcode(os.waitpid(evaluate_in_a_child(manifest, pictures, one), 0)[1])
        for one in outputs
    ]
    found = [read_predictions(one) for one in outputs]
    return {
        "statuses": statuses,
        "sizes": sizes,
        "digests": [one.digest() if one else None for one in found],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    evaluation_measurement.PICTURES_A_UNIT = PICTURES_A_UNIT
    manifest, pictures, folder, num_kills = (
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        Path(sys.argv[3]),
        int(sys.argv[4]),
    )
    # Imported once for all children.
    importlib.import_module("landscape.pipeline.evaluation")
    begun = time.monotonic()
    os.waitpid(evaluate_in_a_child(manifest, pictures, folder / "undisturbed.h5"), 0)
    longest = time.monotonic() - begun
    undisturbed = read_predictions(folder / "undisturbed.h5")
    assert undisturbed is not None
    outcome = kill_at_random(manifest, pictures, folder, num_kills=num_kills, longest=longest)
    print(json.dumps(outcome | {"undisturbed": undisturbed.digest()}))
