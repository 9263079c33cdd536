"""Run as a program: `landscape surface` killed with SIGKILL at random moments and at random points,
and what is left of them.

Prints one line of JSON. In a program of its own because it forks, which a process with threads must
not do.
"""

import importlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

import landscape.pipeline.surface_measurement as pipeline
from landscape.cli import main
from landscape.store import StoredSurface, read_surface, write_surface
from tests.helpers import tiny_run  # noqa: F401  (registers the model with open_clip)


def surface_in_a_child(
    manifest: Path, data: Path, options: list[str], *, dies_at: int | None = None
) -> int:
    """Start the command in a process of its own; it kills itself once it has stored `dies_at`
    points. Returns its number.
    """
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.dup2(2, 1)

        def write_and_die(path: Path, stored: StoredSurface) -> None:
            write_surface(path, stored)
            if dies_at is not None and stored.num_computed >= dies_at:
                os.kill(os.getpid(), signal.SIGKILL)

        pipeline.write_surface = write_and_die
        try:
            main(
                [
                    "surface",
                    str(manifest),
                    "-o",
                    str(data.with_suffix(".png")),
                    "--device",
                    "cpu",
                    *options,
                ]
            )
        except SystemExit as stop:
            os._exit(int(stop.code or 0))
        os._exit(0)
    return pid


def points(data: Path) -> dict[str, float]:
    """The losses that a file holds, by index."""
    stored = read_surface(data)
    if stored is None:
        return {}
    return {
        str(index): stored.result.losses[tuple(index)]
        for index in np.argwhere(stored.result.computed).tolist()
    }


def kill_at_random(
    manifest: Path, folder: Path, options: list[str], *, num_kills: int, longest: float
) -> dict[str, object]:
    """Start the command and kill it until `num_kills` runs have died of it, by turns after a point
    and after a while.

    How long a run takes, and how much of that its points take, is the machine's affair: kills by
    the clock alone may all come before the first point or after the last. A file with all its
    points is finished, and another one begun.

    Returns:
        How many points were there after each kill, the points that were ever lost or ever changed,
        and all of them at the end.

    Raises:
        RuntimeError: If a run fails by itself.
    """
    generator = random.Random(0)
    number, before, by_the_clock = 0, {}, False
    counts: list[int] = []
    damaged: list[str] = []
    total = len(points(folder / "undisturbed.h5"))
    while len(counts) < num_kills:
        data = folder / f"killed_{number}.h5"
        full = len(before) == total
        dies_at = None if by_the_clock or full else generator.randint(len(before) + 1, total)
        pid = surface_in_a_child(manifest, data, options, dies_at=dies_at)
        if by_the_clock and not full:
            time.sleep(generator.uniform(0, longest))
            os.kill(pid, signal.SIGKILL)
        died = was_killed(pid)
        after = points(data)
        damaged += [key for key, loss in before.items() if after.get(key) != loss]
        counts += [len(after)] * died
        before, by_the_clock = after, died and not by_the_clock
        if not died:
            number, before = number + 1, {}
    data = folder / f"killed_{number}.h5"
    assert not was_killed(surface_in_a_child(manifest, data, options))
    final = points(data)
    damaged += [key for key, loss in before.items() if final.get(key) != loss]
    return {"counts": counts, "damaged": damaged, "final": final}


def was_killed(pid: int) -> bool:
    """Wait for a run: whether it was killed, or went through.

    Raises:
        RuntimeError: If it failed.
    """
    status = os.waitpid(pid, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError(
            f"`landscape surface` ended with the exit status {os.WEXITSTATUS(status)}"
        )
    return os.WIFSIGNALED(status)


if __name__ == "__main__":
    torch.set_num_threads(1)
    study, folder, chosen = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[4:]
    # Imported once for all children.
    for module in (
        "landscape.pipeline.surface",
        "landscape.clip.loaded_series",
        "landscape.pipeline.audit",
        "matplotlib.figure",
    ):
        importlib.import_module(module)
    begun = time.monotonic()
    assert not was_killed(surface_in_a_child(study, folder / "undisturbed.h5", chosen))
    longest = time.monotonic() - begun
    outcome = kill_at_random(study, folder, chosen, num_kills=int(sys.argv[3]), longest=longest)
    print(json.dumps(outcome | {"undisturbed": points(folder / "undisturbed.h5")}))
