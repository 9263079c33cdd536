"""The number of this process among several, and which one reports an error.

The processes are those of torchrun, Slurm or `--shards`. Imports nothing heavy: torch only where an
error of several processes is reported.
"""

import os
import re
from datetime import timedelta

# Time limit of torchrun's store; without an answer, every process reports.
_TIMEOUT = timedelta(seconds=5)
# Set by landscape.workers.launch: path at which the reporting process leaves its number.
REPORTER = "LANDSCAPE_REPORTER"
# Ports without a registered service, which no system assigns by itself.
_FIRST_PORT, _NUM_PORTS = 20_000, 12_000


def rank() -> int:
    """Return the number of this process; 0 if it is alone.

    It counts the processes that torchrun started.
    """
    return _place()[0]


def world_size() -> int:
    """Return the number of processes that torchrun started together."""
    return _place()[1]


def is_started_as_rank() -> bool:
    """Tell whether this process was started with a rank.

    That may be as one of several, or as the only one.
    """
    return _stated_place() is not None


def _place() -> tuple[int, int]:
    return _stated_place() or (0, 1)


def _stated_place() -> tuple[int, int] | None:
    try:
        number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return None
    return (number, count) if 0 <= number < count else None


def take_place_in_slurm() -> None:
    """Set the variables of torchrun in a process of srun.

    Only if srun has started it with others; no effect elsewhere. A script of sbatch is no such
    process, whatever number of tasks its job has: only srun sets the number of tasks of a step.
    """
    if is_started_as_rank():
        return
    try:
        number, count = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_STEP_NUM_TASKS"])
    except (KeyError, ValueError):
        return
    if count < 2 or not 0 <= number < count:
        return
    job, step = (int(os.environ.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    os.environ.update({"RANK": str(number), "WORLD_SIZE": str(count)})
    os.environ.setdefault("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    os.environ.setdefault(
        "MASTER_ADDR", first_node(os.environ.get("SLURM_STEP_NODELIST", "localhost"))
    )
    os.environ.setdefault("MASTER_PORT", str(_FIRST_PORT + (17 * job + step) % _NUM_PORTS))


def first_node(nodes: str) -> str:
    """Return the first node of a Slurm list, such as "gpu[007-010,12],login1"."""
    match = re.match(r"([^,\[]+)(?:\[([^,\]-]+)[^\]]*\]([^,]*))?", nodes)
    return nodes if match is None else "".join(part or "" for part in match.groups())


def is_reporter() -> bool:
    """Decide whether this process reports the error that ends it.

    Of all processes, the first that asks reports. Most errors, such as a wrong option, end all
    processes alike, and the error of one ends the others by lost connections. The first is
    determined by the store of torchrun's processes, or by the folder of those that `--shards`
    started.
    """
    if world_size() == 1:
        return True
    if path := os.environ.get(REPORTER):
        return claim_report(path, str(rank()))
    from torch.distributed import TCPStore

    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(host, port, is_master=False, timeout=_TIMEOUT)
        key, own = (
            f"landscape/reporter/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}",
            str(rank()),
        )
        return bool(store.compare_set(key, "", own) == own.encode())
    # There is no such store: two reports are better than none.
    except (KeyError, ValueError, RuntimeError, OSError):
        return True


def claim_report(path: str, name: str) -> bool:
    """Decide whether this name is the first at a path.

    Each process that asks gives its own name.
    """
    try:
        # A link is created whole or not at all.
        os.symlink(name, path)
        return True
    except FileExistsError:
        return os.readlink(path) == name
    # The folder is gone, and so is the process that started the others.
    except OSError:
        return True
