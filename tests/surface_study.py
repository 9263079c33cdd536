"""Run as a program: `landscape surface` killed with SIGKILL at random moments, and what is left of its points.

Prints one line of JSON. In a program of its own because it forks, which a process with threads must not do.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import tiny_run  # noqa: F401  (registers the model with open_clip)
import torch

from landscape.cli import main
from landscape.store import read_surface


def surface_in_a_child(manifest: Path, data: Path, options: list[str]) -> int:
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.dup2(2, 1)
        try:
            main(["surface", str(manifest), "-o", str(data.with_suffix(".png")), "--device", "cpu", *options])
        except SystemExit as stop:
            os._exit(int(stop.code or 0))
        os._exit(0)
    return pid


def points(data: Path) -> dict[str, float]:
    """The losses that a file holds, by index."""
    stored = read_surface(data)
    if stored is None:
        return {}
    return {str(index): stored.result.losses[tuple(index)] for index in np.argwhere(stored.result.computed).tolist()}


def kill_at_random(manifest: Path, folder: Path, options: list[str], *, num_kills: int, longest: float) -> dict[str, object]:
    """Start the command and kill it until `num_kills` runs have died of it; then let the file finish.

    Returns:
        The exit status of the last run, how many points were there after each kill, the points that were ever lost or ever
        changed, and all of them at the end.
    """
    generator = random.Random(0)
    number, before = 0, {}
    counts: list[int] = []
    damaged: list[str] = []
    while len(counts) < num_kills:
        data = folder / f"killed_{number}.h5"
        pid = surface_in_a_child(manifest, data, options)
        time.sleep(generator.uniform(0, longest))
        os.kill(pid, signal.SIGKILL)
        died = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        after = points(data)
        damaged += [key for key, loss in before.items() if after.get(key) != loss]
        counts += [len(after)] * died
        before = after
        if not died:
            number, before = number + 1, {}
    status = os.waitstatus_to_exitcode(os.waitpid(surface_in_a_child(manifest, data, options), 0)[1])
    final = points(data)
    damaged += [key for key, loss in before.items() if final.get(key) != loss]
    return {"status": status, "counts": counts, "damaged": damaged, "final": final, "data": str(data)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    study, folder, chosen = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[4:]
    for name in ("warm_up.h5", "undisturbed.h5"):
        begun = time.monotonic()
        os.waitpid(surface_in_a_child(study, folder / name, chosen), 0)
    longest = time.monotonic() - begun
    outcome = kill_at_random(study, folder, chosen, num_kills=int(sys.argv[3]), longest=longest)
    print(json.dumps(outcome | {"undisturbed": points(folder / "undisturbed.h5")}))
