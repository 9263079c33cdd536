"""Where a run calculates: which pool of workers it uses, and how many workers.

A pool is this process, several processes of this machine, those of a cluster, or an executor of the
caller's.
"""

import os
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from landscape import threads
from landscape.errors import LandscapeError, MemoryLimitError
from landscape.memory import free_memory
from landscape.terminal import duration_text, size_text
from landscape.workers.dask_pool import connect_scheduler, start_cluster
from landscape.workers.pools import ExecutorPool, InlinePool, LocalPool, Pool

# Seconds of work below which more processes are no faster: each takes about 5 s to load torch,
# the model and the data.
_SMALL_JOB = 60.0
# Bytes that a process takes before it has a model, with torch and open_clip loaded. Measured: 0.4
# to 0.5 GiB.
_EMPTY_PROCESS = 2**29


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """Where a run calculates; by default in this process.

    Args:
        num_workers: Processes of this machine; None for as many as its free cores, its memory and
            the job allow.
        scheduler: Address of a running scheduler of Dask, such as tcp://10.0.0.1:8786, or its
            scheduler file.
        cluster: A YAML file that says what jobs a queue is asked for; see docs/cluster.md.
        executor: Any executor of concurrent.futures; its processes must see the same files.
        largest_unit: Largest number of items given to a worker at a time.
    """

    num_workers: int | None = 1
    scheduler: str | None = None
    cluster: Path | None = None
    executor: Executor | None = None
    largest_unit: int = 20

    @property
    def is_elsewhere(self) -> bool:
        """Tell whether workers are started by something other than this run.

        Such workers belong to an executor, a scheduler or a cluster.
        """
        return self.executor is not None or self.scheduler is not None or self.cluster is not None

    def check(self, chained: str | None) -> None:
        """Refuse settings that exclude each other.

        Args:
            chained: An option for which items must be measured one after the other.

        Raises:
            LandscapeError: If two places are named, or several workers for items that depend on
                each other.
        """
        named = {
            "--scheduler": self.scheduler,
            "--cluster": self.cluster,
            "executor": self.executor,
        }
        places = [name for name, value in named.items() if value is not None]
        if self.num_workers not in (None, 1):
            places.insert(0, "--workers")
        if len(places) > 1:
            raise LandscapeError(
                f"{places[0]} and {places[1]}: a run calculates in one place; leave one of them "
                "out."
            )
        if self.num_workers is not None and self.num_workers < 1:
            raise LandscapeError(
                f"workers {self.num_workers}: must be at least 1, or None for as many as pay."
            )
        if chained is not None and places:
            raise LandscapeError(
                f"{chained}: every batch starts from the one before, so one process measures them "
                f"all. Leave {chained} or {places[0]} out."
            )


class Crew:
    """The workers of a run, as a context manager.

    Attributes:
        said: Messages on what was chosen, and why.
        num_sharing: Workers that share the memory of this machine.
        free_memory: Bytes that were free when the run began.
    """

    def __init__(
        self, settings: WorkerSettings, *, chained: bool = False, device: str | None = None
    ) -> None:
        self.settings = settings
        # A device with a number, such as cuda:1, is the same for all workers.
        self._gpus = visible_gpus() if device in (None, "cuda") else []
        self.said: list[str] = []
        self.free_memory = free_memory()
        self.num_sharing = 1
        self._automatic = settings.num_workers is None and not settings.is_elsewhere and not chained
        self._stack = ExitStack()
        self._pool: Pool | None = None

    def limit(self, num_items: int) -> None:
        """Set the number of items, an upper limit of workers.

        Raises:
            MemoryLimitError: If not even empty processes fit in memory.
        """
        self.num_items = num_items
        if not self.settings.is_elsewhere:
            self.num_sharing = max(1, min(self.settings.num_workers or 1, num_items))
        fitting = max(1, self.free_memory // _EMPTY_PROCESS)
        if self.num_sharing > fitting:
            raise MemoryLimitError(
                f"--workers {self.num_sharing}: a process takes {size_text(_EMPTY_PROCESS)} before "
                f"it has a model, and {size_text(self.free_memory)} are free. Ask for at most "
                f"{fitting}."
            )

    def __enter__(self) -> Self:
        return self

    @property
    def pool(self) -> Pool:
        """Return the workers, starting them on first use."""
        if self._pool is None:
            self._use(self._first_pool())
        assert self._pool is not None
        return self._pool

    def _use(self, pool: Pool) -> None:
        self._pool = pool
        self._stack.callback(pool.close)

    @property
    def cores_each(self) -> int | None:
        """Return the cores among which a worker chooses threads.

        None where the number of threads is already chosen.
        """
        if self.settings.is_elsewhere or threads.chosen() is not None:
            return None
        own = self.num_sharing == 1 and not threads.is_automatic()
        return None if own else max(1, threads.available_cores() // self.num_sharing)

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def is_remote(self) -> bool:
        """Tell whether items are measured by other processes."""
        return not isinstance(self.pool, InlinePool)

    def share(self) -> tuple[int, int | None]:
        """Return how many workers share a memory limit, and its bytes.

        The bytes are those to divide where the user gave no limit. On GPUs each worker checks on
        its own how much is free.
        """
        if self._gpus:
            return -(-self.num_sharing // len(self._gpus)), None
        return self.num_sharing, self.free_memory

    @property
    def threads_elsewhere(self) -> int | None:
        """Return the number of torch threads of a new worker.

        None where the worker is this process, whose number is already set.
        """
        return threads.chosen() or 1 if self.is_remote else None

    def _first_pool(self) -> Pool:
        settings = self.settings
        num_threads = threads.chosen() or 1
        if settings.executor is not None:
            return ExecutorPool(settings.executor)
        if settings.scheduler is not None:
            return connect_scheduler(settings.scheduler, num_threads=num_threads)
        if settings.cluster is not None:
            return start_cluster(settings.cluster, num_threads=num_threads)
        return InlinePool() if self.num_sharing == 1 else self._local_pool()

    def _local_pool(self) -> LocalPool:
        number = self.num_sharing
        return LocalPool(
            number,
            num_threads=threads.chosen() or 1,
            environments=_environments(self._gpus, number),
        )

    def settle(
        self, *, seconds: float, memory: int, num_gpus: int = 0, most_sharing: int | None = None
    ) -> None:
        """Choose the number of workers from measured costs.

        Args:
            seconds: Duration of all items together, in one process.
            memory: Bytes that a process takes.
            num_gpus: Number of GPUs that this process sees; 0 where it calculates elsewhere.
            most_sharing: Processes among which the memory limits can be divided; None for any
                number.

        Raises:
            MemoryLimitError: If the requested number of workers does not fit in memory.
        """
        fitting = max(1, self.free_memory // max(1, memory))
        if self._automatic:
            self._choose(seconds, memory, fitting, num_gpus, most_sharing)
        elif self.num_sharing > fitting:
            raise MemoryLimitError(
                f"--workers {self.num_sharing}: each takes {size_text(memory)}, and "
                f"{size_text(self.free_memory)} are free. Ask for at most {fitting}."
            )

    def _choose(
        self, seconds: float, memory: int, fitting: int, num_gpus: int, most_sharing: int | None
    ) -> None:
        """Start the number of workers that the limits allow.

        A short job gets no more workers.
        """
        if seconds < _SMALL_JOB:
            return
        free, each = threads.free_cores(), threads.chosen() or 1
        told = f"{free} of {threads.available_cores()} cores are free" + (
            f", {each} threads each" if each > 1 else ""
        )
        limits = {
            told: max(1, free // each),
            f"each takes {size_text(memory)} of {size_text(self.free_memory)} free": fitting,
            f"{self.num_items} items are left": self.num_items,
        }
        if most_sharing is not None:
            limits["the memory of products is divided"] = most_sharing
        if num_gpus:
            there = f"{num_gpus} GPU{'s are' if num_gpus > 1 else ' is'} there"
            limits = {there: num_gpus, f"{self.num_items} items are left": self.num_items}
        reason, number = min(limits.items(), key=lambda limit: limit[1])
        takes = f"about {duration_text(seconds)} of work, as measured now"
        self.said.append(f"{number} worker{'s' if number > 1 else ''}: {reason}, {takes}.")
        if number > 1:
            self.num_sharing = number
            self._use(self._local_pool())


def visible_gpus() -> list[str]:
    """List the GPUs that child processes see, without loading torch.

    Names are those of CUDA_VISIBLE_DEVICES.
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [name for name in listed.split(",") if name.strip() not in ("", "-1")]
    return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def _environments(gpus: list[str], num_workers: int) -> list[dict[str, str]] | None:
    """Build variables that assign GPUs to workers in turn.

    None if there is no GPU.
    """
    if not gpus:
        return None
    return [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(num_workers)]
