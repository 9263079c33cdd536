"""The preparation of a series before its first unit.

It is done once, so that every process measures the series in the same way.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from landscape import clip, linalg, threads
from landscape.containers import known_digests
from landscape.curvature import hvp
from landscape.errors import NumericalError, ObjectiveError, StoreError
from landscape.manifest import Manifest, canonical_json
from landscape.manifest.selection import Task
from landscape.memory import free_memory, peak_memory
from landscape.pipeline.audit import stored_verdict, verdict_of
from landscape.pipeline.products import HvpSettings, SeriesProducts, strategy_for
from landscape.store import value_text
from landscape.workers.progress import show_notes

if TYPE_CHECKING:
    from torch import Tensor

    from landscape.clip.loaded_series import LoadedSeries
    from landscape.curvature import Batch, HessianOperator


@dataclass(frozen=True, kw_only=True)
class KnownSeries:
    """Facts in an output about a series with records.

    Attributes:
        verdicts: Verdicts of audits that were passed.
        models: How the model was trained, as each record states.
        last_digest: Digest of its last checkpoint.
        num_threads: Number of threads with which it was measured; None where it was not.
        num_stored: Number of stored items.
        strategy: Strategy of recorded HVPs with which it was measured; None where none were
            recorded.
        num_planned: All items of the series for which HVPs may be recorded once; 0 where they may
            not.
        digests: Digests of checkpoints; see `known_digests`.
        threads_elsewhere: Number of threads in a process that prepares it but does not have the
            output.
        cores: Cores from which the number of threads is chosen; None where it was chosen.
    """

    verdicts: tuple[Mapping[str, Any], ...] = ()
    models: tuple[Mapping[str, Any], ...] = ()
    last_digest: str | None = None
    num_threads: int | None = None
    num_stored: int = 0
    strategy: str | None = None
    num_planned: int = 0
    digests: Mapping[Any, str] = field(default_factory=dict)
    threads_elsewhere: int | None = None
    cores: int | None = None


@dataclass(frozen=True, kw_only=True)
class PreparedSeries:
    """How a series is measured, the same in every process.

    Attributes:
        audit: Verdict of the audit, as it is stored.
        choice: How HVPs are computed, as plain values; None leaves it to the first batch.
        used: How the model was trained: each value that was used, with its source.
        notes: Caveats on the data, the run and the checkpoints; see `Notes`.
        digests: Digests of its checkpoints; see `known_digests`.
        num_threads: Threads of torch.
        seconds: Expected time of an item; 0 where it is not known.
        memory: Peak bytes of a process.
        num_gpus: Number of GPUs that the process sees; 0 where it calculates elsewhere.
        most_sharing: Processes among which the memory limits can be divided; None for any number.
        vector_bytes: Bytes of the kept eigenvectors of an item, about; 0 where none are kept.
        details: Facts for this kind of measurement only.
    """

    audit: dict[str, Any] = field(default_factory=dict)
    choice: Mapping[str, Any] | None = None
    used: dict[str, Any] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    digests: Mapping[Any, str] = field(default_factory=dict)
    num_threads: int = 1
    seconds: float = 0.0
    memory: int = 0
    num_gpus: int = 0
    most_sharing: int | None = None
    vector_bytes: int = 0
    details: Any = None

    def of(self, checkpoint: Path) -> Self:
        """Return the same with the digests of one checkpoint alone.

        It is then small enough to be sent with every unit.
        """
        return replace(self, digests=digests_at(checkpoint, self.digests))


def digests_at(checkpoint: Path, digests: Mapping[Any, str]) -> dict[Any, str]:
    """Select the entries of `known_digests` for a checkpoint.

    It is a file or a folder.
    """
    folder = f"{checkpoint}{os.sep}"
    return {
        stamps: digest
        for stamps, digest in digests.items()
        if any(name == str(checkpoint) or name.startswith(folder) for name, *_ in stamps)
    }


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """The preparation of a series.

    It audits the series, loads every checkpoint once, and chooses how HVPs are computed. It does
    not build the model again.

    Args:
        check_operator: Raises where the first operator cannot be measured.
        num_products: Expected number of products of an item, for a forecast of its time.
        num_vectors: Number of Krylov vectors that are kept at a time.
        max_basis_memory: Bytes that they may take; None for as many as they do.
        min_vectors: Smallest possible number of Krylov vectors.
        num_planned: All items of the series, stored ones included, for which HVPs may be recorded
            once if that saves time; 0 where they may not. The number that is left depends on where
            a run was interrupted, and the strategy must not.
        output: The output, whose records must be of the same function.
    """

    manifest: Manifest
    hvp: str
    unaudited: bool
    products: HvpSettings
    num_products: int
    num_vectors: int
    output: Path
    max_basis_memory: int | None = None
    min_vectors: int = 1
    num_planned: int = 0
    check_operator: "Callable[[HessianOperator], object]" = lambda operator: None

    def of(
        self, loaded: "LoadedSeries", tasks: Sequence[Task], known: KnownSeries
    ) -> PreparedSeries:
        """Prepare the series of `tasks`.

        Raises:
            LandscapeError: If the model, a checkpoint, the data or the HVP cannot be measured.
        """
        series = tasks[0].series
        check_same_function(self.output, series.name, loaded.used, known.models)
        audit = None
        if self.hvp != "finite-difference":
            audit = stored_verdict(series, known.verdicts, known.last_digest)
        audit = audit or verdict_of(
            loaded, self.manifest, series, unaudited=self.unaudited, hvp=self.hvp
        )
        notes, chosen = clip.Notes(), SeriesProducts(self.products)
        seconds, num_threads, vectors, each, memory = 0.0, threads_of_torch(), 0, 0, 0
        most_sharing = None
        for task in tasks:
            notes.add(loaded, loaded.load(task.checkpoint), series=series.name)
            if (
                task is tasks[0]
                and self.hvp == "double-backward"
                and self.manifest.hessian.method != "pyhessian"
            ):
                # All batches that are left may hold unreadable pictures, so the other batches are
                # tried too.
                read = partial(loaded.first_batch, (*task.indices, *range(len(loaded.batches))))
                operator = chosen.choose(loaded.objective, loaded.params, read)
                if operator is not None:
                    self.check_operator(operator)
                    each = operator.n * operator.dtype.itemsize
                    vectors = min(self.num_vectors * each, self.max_basis_memory or sys.maxsize)
                    # A batch without a product fails by itself, when it is measured.
                    with suppress(NumericalError, ObjectiveError, MemoryError, RuntimeError):
                        num_threads, seconds = best_threads(loaded, operator, known)
                del operator
                # Measured before a compiler runs, which takes more, but only once and only in this
                # process.
                memory = peak_memory()
                if (
                    seconds
                    and self.num_planned
                    and self.products.hvp == "auto"
                    and self.products.rows is None
                ):
                    with suppress(NumericalError, ObjectiveError, MemoryError, RuntimeError):
                        seconds = self._recorded(chosen, loaded, read(), seconds, known)
                if each:
                    most_sharing = self._most_sharing(chosen, each)
        return PreparedSeries(
            audit=audit,
            choice=chosen.plain_choice(),
            used=loaded.used,
            notes=notes.by_sentence,
            digests=known_digests(),
            num_threads=num_threads,
            seconds=self.num_products * seconds,
            memory=(memory or peak_memory()) + (0 if num_gpus(loaded) else vectors),
            num_gpus=num_gpus(loaded),
            most_sharing=most_sharing,
        )

    def _recorded(
        self,
        chosen: SeriesProducts,
        loaded: "LoadedSeries",
        batch: "Batch",
        seconds: float,
        known: KnownSeries,
    ) -> float:
        """Record HVPs if that saves time; return the seconds of a product.

        They are also recorded if the output was begun so.
        """
        is_cpu = loaded.device.type == "cpu"
        strategy = known.strategy or strategy_for(
            self.num_planned * self.num_products, seconds, is_cpu=is_cpu
        )
        if strategy is None:
            return seconds
        if strategy == "compiled" and not hvp.has_compiler():
            strategy = "traced"
        if strategy == "compiled" and sys.stderr.isatty():
            show_notes(
                ["HVPs are being compiled, which takes some minutes once on a machine."], shown=None
            )
        reason = f"pays for {self.num_planned:,} batches"
        operator = chosen.record(
            loaded.objective, loaded.params, batch, strategy=strategy, reason=reason
        )
        return _seconds_of(operator, _random_vector(operator))

    def _most_sharing(self, chosen: SeriesProducts, each: int) -> int | None:
        """Return the number of processes that can share the memory limits.

        With its share, each can still use the chosen strategy. A limit is divided by the number of
        processes, so it allows limit / needed of them.

        Args:
            each: Bytes of a vector.
        """
        needed = {self.max_basis_memory: self.min_vectors * each}
        if chosen.choice is not None and chosen.choice.peak:
            needed[self.products.max_memory or free_memory()] = int(
                chosen.choice.peak / hvp.SHARE["cpu"]
            )
        return min(
            (max(1, limit // amount) for limit, amount in needed.items() if limit is not None),
            default=None,
        )


def best_threads(
    loaded: "LoadedSeries", operator: "HessianOperator", known: KnownSeries
) -> tuple[int, float]:
    """Choose the number of threads of a series.

    Also returns the seconds of a product. An output keeps the number with which it was begun, so
    that its records stay of one kind. Otherwise the number is the fastest on the first product.
    """
    import torch

    vector = _random_vector(operator)
    # The first product is checked, which takes longer than the product.
    operator @ vector
    if known.cores is not None and loaded.device.type == "cpu":
        count = min(known.num_threads or 1, known.cores)
        if known.num_threads is None:
            product, size = partial(operator.matmat, vector), threads.num_multiplied(loaded.model)
            count = threads.faster_with((known.cores,), product, num_parameters=size)
        torch.set_num_threads(count)
    return torch.get_num_threads(), _seconds_of(operator, vector)


def _random_vector(operator: "HessianOperator") -> "Tensor":
    import torch

    return torch.randn(operator.n, 1, generator=linalg.seeded(0)).to(
        operator.device, operator.dtype
    )


def _seconds_of(operator: "HessianOperator", vector: "Tensor") -> float:
    """Return the shorter time of two products in seconds.

    Load of the machine can make a product slower, never faster.
    """
    import torch

    seconds = math.inf
    for _ in range(2):
        begun = time.perf_counter()
        operator @ vector
        if vector.device.type == "cuda":
            torch.cuda.synchronize(vector.device)
        seconds = min(seconds, time.perf_counter() - begun)
    return seconds


def threads_of_torch() -> int:
    """Return the number of torch threads in this process."""
    import torch

    return torch.get_num_threads()


def num_gpus(loaded: "LoadedSeries") -> int:
    """Return the number of visible GPUs.

    0 for a series on another device.
    """
    import torch

    if loaded.device.type != "cuda":
        return 0
    return torch.cuda.device_count() if loaded.device.index is None else 1


def check_same_function(
    output: Path, series: str, used: Mapping[str, Any], stored: Iterable[Mapping[str, Any]]
) -> None:
    """Refuse to add to records of a model prepared in another way.

    The plan of an output holds what was stated about a run; this compares the values that were used
    in the end.

    Args:
        used: How the model was trained, as used now; see `as_trained`.
        stored: The same for each record.

    Raises:
        StoreError: If they differ; names the difference.
    """
    for before in stored:
        for name, (value, source) in before.items():
            now = used.get(name, [value])
            if canonical_json(now[0]) != canonical_json(value):
                setting = name.replace("_", " ")
                raise StoreError(
                    f"{output}: series {series!r} was measured with {setting} {value_text(value)} "
                    f"({source}), but now it is {value_text(now[0])} ({now[1]}), which is another "
                    "function. Name another output with -o, or go back to the files that were "
                    "there."
                )
