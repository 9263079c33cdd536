"""Settings of `--shards`. Imports no torch."""

from dataclasses import dataclass

# How HVPs of a cut model are computed; see landscape.sharded.
STRATEGIES = ("auto", "retained", "rebuilt")
# Seconds; the default of torch.distributed for nccl.
DEFAULT_TIMEOUT = 600.0


@dataclass(frozen=True, kw_only=True)
class ShardSettings:
    """Settings of processes that hold parts of a model.

    They measure every batch together.

    Args:
        num_processes: Number of processes.
        timeout: Seconds that a process waits for the others before all give up. While process 0
            computes the digest of a checkpoint, about a second for every GB, the others wait.
    """

    num_processes: int
    timeout: float = DEFAULT_TIMEOUT

    @property
    def place(self) -> str:
        return f"--shards {self.num_processes}"


def rows_of_process(num_rows: int, rank: int, size: int) -> slice:
    """Return the rows of a batch for a process.

    Processes differ by one row at most; the first ones take the remainder.
    """
    each, more = divmod(num_rows, size)
    start = rank * each + min(rank, more)
    return slice(start, start + each + (rank < more))
