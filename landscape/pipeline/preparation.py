"""What is learned of a series before its first unit, once, so that every process measures it in the same way."""

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

from landscape import threads
from landscape.containers import known_digests
from landscape.errors import NumericalError, ObjectiveError, StoreError
from landscape.manifest import Manifest, canonical_json
from landscape.manifest.selection import Task
from landscape.memory import free_memory, peak_memory
from landscape.pipeline.audit import stored_verdict, verdict_of
from landscape.pipeline.products import ProductSettings, SeriesProducts, strategy_for
from landscape.store import value_text
from landscape.workers.progress import show_notes

if TYPE_CHECKING:
    from torch import Tensor

    from landscape.clip.loaded_series import LoadedSeries
    from landscape.curvature import Batch, HessianOperator


@dataclass(frozen=True, kw_only=True)
class KnownSeries:
    """What an output says of a series that it has records of.

    Attributes:
        verdicts: Of audits that were passed.
        models: What was used of how the model was trained, as each record says.
        last_digest: Of its last checkpoint.
        num_threads: With which it was measured; None where it was not.
        num_stored: Items that it has.
        strategy: Of recorded HVPs, with which it was measured; None where none were recorded.
        num_planned: Items of the series in all for which HVPs may be recorded once; 0 where they may not.
        digests: Of checkpoints; see `known_digests`.
        threads_elsewhere: With which a process prepares it that is not the one that has the output.
        cores: Among which the number of threads is chosen; None where it was chosen.
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
        used: What was used of how the model was trained.
        notes: What is to be known of the data, the run and the checkpoints; see `Notes`.
        digests: Of its checkpoints; see `known_digests`.
        num_threads: Of torch.
        seconds: That an item is expected to take; 0 where that is not known.
        memory: Bytes that a process took at most.
        num_gpus: That the process sees; 0 where it calculates elsewhere.
        most_sharing: Processes among which the limits of memory can be divided; None for any number.
        details: What only this kind of measurement knows.
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
    details: Any = None

    def of(self, checkpoint: Path) -> Self:
        """The same with the digests of one checkpoint alone, small enough to be sent with every unit."""
        return replace(self, digests=digests_at(checkpoint, self.digests))


def digests_at(checkpoint: Path, digests: Mapping[Any, str]) -> dict[Any, str]:
    """Those of `known_digests` that are of one checkpoint, a file or a folder."""
    folder = f"{checkpoint}{os.sep}"
    return {
        stamps: digest
        for stamps, digest in digests.items()
        if any(name == str(checkpoint) or name.startswith(folder) for name, *_ in stamps)
    }


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Looks at a series: builds nothing anew, audits, loads every checkpoint once, chooses how HVPs are computed.

    Args:
        check_operator: Raises where the first operator cannot be measured.
        num_products: That an item is expected to take, for a forecast of its time.
        num_vectors: Krylov vectors that are kept at a time.
        max_basis_memory: Bytes that they may take; None for as many as they do.
        min_vectors: That they cannot do without.
        num_planned: Items of the series in all, those that are stored included, for which HVPs may be recorded once if that
            pays; 0 where they may not. What is left depends on where a run was interrupted, and the strategy must not.
        output: Whose records must be of the same function.
    """

    manifest: Manifest
    hvp: str
    unaudited: bool
    products: ProductSettings
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
        """What is learned of the series of `tasks`.

        Raises:
            LandscapeError: If the model, a checkpoint, the data or the HVP is not what can be measured.
        """
        from landscape.clip.loaded_series import Notes

        series = tasks[0].series
        check_same_function(self.output, series.name, loaded.used, known.models)
        audit = None
        if self.hvp != "finite-difference":
            audit = stored_verdict(series, known.verdicts, known.last_digest)
        audit = audit or verdict_of(
            loaded, self.manifest, series, unaudited=self.unaudited, hvp=self.hvp
        )
        notes, chosen = Notes(), SeriesProducts(self.products)
        seconds, num_threads, vectors, each, memory = 0.0, threads_of_torch(), 0, 0, 0
        most_sharing = None
        for task in tasks:
            notes.add(loaded, loaded.load(task.checkpoint), series=series.name)
            if (
                task is tasks[0]
                and self.hvp == "double-backward"
                and self.manifest.hessian.method != "pyhessian"
            ):
                # Batches that are left after a bad picture may all be bad.
                read = partial(loaded.first_batch, (*task.indices, *range(len(loaded.batches))))
                operator = chosen.choose(loaded.objective, loaded.params, read)
                if operator is not None:
                    self.check_operator(operator)
                    each = operator.n * operator.dtype.itemsize
                    vectors = min(self.num_vectors * each, self.max_basis_memory or sys.maxsize)
                    # A batch without a product costs itself alone, and says so when it is measured.
                    with suppress(NumericalError, ObjectiveError, MemoryError, RuntimeError):
                        num_threads, seconds = best_threads(loaded, operator, known)
                del operator
                # A compiler takes more, once, and in no other process.
                memory = peak_memory()
                if (
                    seconds
                    and self.num_planned
                    and self.products.product == "auto"
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
        """Record HVPs where that pays, or an output was begun so; the seconds of a product."""
        from landscape.curvature.compiled import has_compiler

        is_cpu = loaded.device.type == "cpu"
        strategy = known.strategy or strategy_for(
            self.num_planned * self.num_products, seconds, is_cpu=is_cpu
        )
        if strategy is None:
            return seconds
        if strategy == "compiled" and not has_compiler():
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
        """Processes that can share the limits of memory and still do what one has chosen to do.

        Args:
            each: Bytes of a vector.
        """
        from landscape.curvature.choice import SHARE

        needed = {self.max_basis_memory: self.min_vectors * each}
        if chosen.choice is not None and chosen.choice.peak:
            needed[self.products.max_memory or free_memory()] = int(
                chosen.choice.peak / SHARE["cpu"]
            )
        return min(
            (max(1, limit // amount) for limit, amount in needed.items() if limit is not None),
            default=None,
        )


def best_threads(
    loaded: "LoadedSeries", operator: "HessianOperator", known: KnownSeries
) -> tuple[int, float]:
    """The number of threads with which a series is measured, and the seconds of a product.

    Those with which an output was begun, so that it stays of one kind; else as many as pay on the first product.
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

    from landscape.linalg import seeded

    return torch.randn(operator.n, 1, generator=seeded(0)).to(operator.device, operator.dtype)


def _seconds_of(operator: "HessianOperator", vector: "Tensor") -> float:
    """Seconds of a product: the less of two, since a busy machine makes one longer and never shorter."""
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
    """Threads of torch in this process."""
    import torch

    return torch.get_num_threads()


def num_gpus(loaded: "LoadedSeries") -> int:
    """GPUs that this process sees; 0 where the series is not on one."""
    import torch

    if loaded.device.type != "cuda":
        return 0
    return torch.cuda.device_count() if loaded.device.index is None else 1


def check_same_function(
    output: Path, series: str, used: Mapping[str, Any], stored: Iterable[Mapping[str, Any]]
) -> None:
    """Refuse to add to records of a model that was prepared otherwise than this one is.

    The plan of an output knows what was stated of a run; this looks at what came of it.

    Args:
        used: What is used now of how the model was trained; see `as_trained`.
        stored: The same of each record.

    Raises:
        StoreError: If they differ; names what does.
    """
    for before in stored:
        for name, (value, source) in before.items():
            now = used.get(name, [value])
            if canonical_json(now[0]) != canonical_json(value):
                setting = name.replace("_", " ")
                raise StoreError(
                    f"{output}: series {series!r} was measured with {setting} {value_text(value)} ({source}), but now it is "
                    f"{value_text(now[0])} ({now[1]}), which is another function. Name another output with -o, or go back to the "
                    "files that were there."
                )
