"""Which of several processes this is under torchrun, and which of them reports an error.

Imports nothing heavy: torch only where an error of several processes is reported.
"""

import os
from datetime import timedelta

# For the answer of torchrun's store; without one, every process reports.
_TIMEOUT = timedelta(seconds=5)


def rank() -> int:
    """Number of this process among all that torchrun started; 0 where it is the only one."""
    return _place()[0]


def world_size() -> int:
    """Number of processes that torchrun started together."""
    return _place()[1]


def _place() -> tuple[int, int]:
    try:
        number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError):
        return 0, 1
    return (number, count) if 0 <= number < count else (0, 1)


def is_reporter() -> bool:
    """Decide whether this process reports the error that ends it: of all processes, the first that asks does.

    Most errors, such as a wrong option, end all processes alike, and the error of one ends the others by lost connections. Who
    comes first is known to the store in which torchrun's processes meet.
    """
    if world_size() == 1:
        return True
    from torch.distributed import TCPStore

    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(host, port, is_master=False, timeout=_TIMEOUT)
        key, own = (
            f"landscape/reporter/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}",
            str(rank()),
        )
        return bool(store.compare_set(key, "", own) == own.encode())
    # No such store: two reports are better than none.
    except (KeyError, ValueError, RuntimeError, OSError):
        return True
