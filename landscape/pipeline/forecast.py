"""The forecast of a run: models, checkpoints, first batch, time and memory.

Nothing is written. An error in a series does not prevent the forecast of the others.
"""

import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape import curvature, linalg
from landscape.errors import LandscapeError, PictureError, StoreError
from landscape.manifest import HessianSettings, Manifest
from landscape.manifest.selection import Task
from landscape.pipeline.optimizer import check_optimizer
from landscape.pipeline.products import HvpSettings, SeriesProducts, strategy_for
from landscape.pipeline.series import load_series, open_data
from landscape.pipeline.shard_settings import ShardSettings
from landscape.pipeline.solve import SolverSettings
from landscape.pipeline.vectors import bytes_of_vectors, check_room
from landscape.store.as_trained import described_as_trained
from landscape.terminal import duration_text, seconds_text, size_text

if TYPE_CHECKING:
    import torch

    from landscape.clip.loaded_series import LoadedSeries
    from landscape.clip.pairs import Pairs
    from landscape.curvature import Batch, FiniteDifferenceOperator, HessianOperator

# Products of `eigsh` for k = 5 on the six cases of experiments/benchmark_peers.txt: 21, 22, 24, 25,
# 26 and 30. For the power methods no such number is known: they stop by a relative change.
_NUM_PRODUCTS, _MEASURED_K = 25, 5
_COLUMNS, _MARGIN = 80, 15
_NUM_TIMED, _ENOUGH_SECONDS = 3, 1.0
# Time saved by recording HVPs, by strategy.
_SAVED = {
    "traced": "; the run records a graph, for a tenth less",
    "compiled": "; the run compiles a graph once, for about half",
}


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Lines that a dry run prints beside the list of tasks.

    Attributes:
        lines: Lines for a terminal.
        num_refused: Number of reasons for which the run would be refused.
    """

    lines: tuple[str, ...] = ()
    num_refused: int = 0


@dataclass
class _Series:
    """Findings about a series."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    seconds: float = 0.0
    memory: int = 0
    vector_bytes: int = 0


def forecast(
    manifest: Manifest,
    tasks: Sequence[Task],
    device: "torch.device",
    *,
    hvp: str,
    audited: bool,
    products: HvpSettings,
    solver: SolverSettings,
    shards: ShardSettings | None = None,
    vectors_in: Path | None = None,
) -> Forecast:
    """Check what a run needs, and time a product per series.

    Args:
        vectors_in: The output, if it is going to hold eigenvectors.
        audited: Whether an audit of each series comes first; it is not made here.
        shards: Processes that share each model: then nothing is timed, and no numbers of a
            checkpoint are read.
    """
    if not tasks:
        return Forecast()
    try:
        pairs = open_data(manifest)
    except LandscapeError as error:
        return Forecast(lines=(f"refused: {error}",), num_refused=1)
    lines: list[str] = []
    seen: list[_Series] = []
    for name, group in groupby(tasks, key=lambda task: task.series.name):
        options: dict[str, Any] = {
            "hvp": hvp,
            "products": products,
            "solver": solver,
            "shards": shards,
            "keep_vectors": vectors_in is not None,
        }
        look = (_Look if shards is None else _LookAtCut)(
            manifest, list(group), pairs, device, **options
        )
        seen.append(look.all())
        lines += ["", f"{name}: {look.title}", *_rows(seen[-1].rows)]
        # Each on one line, as the run would print it.
        lines += [f"  {'refused':<{_MARGIN - 2}}{reason}" for reason in seen[-1].refusals]
    if vectors_in is not None:
        reasons = _refused_vectors(vectors_in, seen)
        lines += ["", *(f"refused: {reason}" for reason in reasons)] if reasons else []
        seen[-1].refusals += reasons
    num_refused = sum(len(series.refusals) for series in seen)
    closing = (
        _in_all(manifest.hessian, seen, audited=audited) if shards is None or num_refused else []
    )
    return Forecast(lines=(*lines, *([""] if closing else []), *closing), num_refused=num_refused)


def _refused_vectors(output: Path, seen: Sequence[_Series]) -> list[str]:
    """Explain why the disk cannot hold the vectors, if so."""
    try:
        check_room(output, sum(series.vector_bytes for series in seen))
    except StoreError as error:
        return [str(error)]
    return []


def _rows(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Format rows for a terminal.

    Long rows are wrapped, and a repeated key is shown once.
    """
    lines: list[str] = []
    before = ""
    for key, text in rows:
        first = f"  {'' if key == before else key:<{_MARGIN - 2}}"
        lines += textwrap.wrap(
            text,
            width=_COLUMNS,
            initial_indent=first,
            subsequent_indent=" " * (_MARGIN + 2),
            break_long_words=False,
            break_on_hyphens=False,
        )
        before = key
    return lines


def num_products_of(hessian: HessianSettings) -> int:
    """Return the assumed number of products per batch.

    For k <= 5 it is the measured number; above, it is proportional to k.
    """
    return min(hessian.max_matvecs, _NUM_PRODUCTS * max(hessian.k, _MEASURED_K) // _MEASURED_K)


def _in_all(hessian: HessianSettings, seen: Sequence[_Series], *, audited: bool) -> list[str]:
    num_refused = sum(len(series.refusals) for series in seen)
    if num_refused:
        reasons = "1 reason" if num_refused == 1 else f"{num_refused} reasons"
        return [f"As it is, this run would be refused: {reasons} above."]
    seconds, memory = sum(series.seconds for series in seen), max(series.memory for series in seen)
    if hessian.method != "lanczos":
        return [
            f"{size_text(memory)} beside the model. How many products method {hessian.method} "
            "takes is",
            "not known before, and so neither is the time.",
        ]
    how = "" if hessian.k <= _MEASURED_K else f", in proportion for k = {hessian.k}"
    audit = " The audit of each series comes on top." if audited else ""
    assumed = (
        f"Assumed are {num_products_of(hessian)} products a batch: 21 to 30 were measured for k = "
        f"{_MEASURED_K} on small CLIP models{how}; the limit is {hessian.max_matvecs}.{audit}"
    )
    total = (
        f"In all about {duration_text(seconds)} on this machine, {size_text(memory)} beside the "
        "model."
    )
    return [total, *textwrap.wrap(assumed, width=_COLUMNS)]


class _Look:
    """A check of a series, as far as possible."""

    def __init__(
        self,
        manifest: Manifest,
        tasks: list[Task],
        pairs: "Pairs | None",
        device: "torch.device",
        *,
        hvp: str,
        products: HvpSettings,
        solver: SolverSettings,
        shards: ShardSettings | None = None,
        keep_vectors: bool = False,
    ) -> None:
        self.shards, self.keep_vectors = shards, keep_vectors
        self.manifest, self.tasks, self.pairs, self.device = manifest, tasks, pairs, device
        self.hvp, self.solver, self.products = hvp, solver, SeriesProducts(products)
        self.seen = _Series()
        self.title = tasks[0].series.model
        self._index = tasks[0].indices[0]

    def all(self) -> _Series:
        """Build, load, read and time a series.

        Each failure is a refusal; steps that need the failed one are left out.
        """
        loaded = self._tried(self._build)
        if loaded is None:
            return self.seen
        fits = self._checkpoints(loaded)
        batch = self._tried(partial(self._first_batch, loaded))
        if batch is not None and fits:
            self._tried(partial(self._time, loaded))
        return self.seen

    def _tried(self, step: Callable[[], Any]) -> Any:
        try:
            return step()
        except (LandscapeError, MemoryError, RuntimeError) as error:
            self.seen.refusals.append(" ".join(str(error).split())[:500])
            return None

    def _build(self) -> "LoadedSeries":
        on_meta = self.shards is not None
        loaded = load_series(
            self.manifest, self.tasks[0].series, self.pairs, device=self.device, on_meta=on_meta
        )
        total = sum(parameter.numel() for parameter in loaded.model.parameters())
        studied = sum(parameter.numel() for parameter in loaded.params.values())
        which = "all studied" if studied == total else f"{studied:,} studied"
        self.title = f"{self.tasks[0].series.model}, {total:,} parameters, {which}"
        for line in described_as_trained({"as_trained": loaded.used}):
            self.seen.rows += [
                ("as trained", part) for part in line.removeprefix("as trained: ").split("; ")
            ]
        return loaded

    def _checkpoints(self, loaded: "LoadedSeries") -> bool:
        """Compare names and shapes of all checkpoints, and load the last one."""
        before = len(self.seen.refusals)
        for task in self.tasks[:-1]:
            self._tried(partial(loaded.check_fit, task.checkpoint))
        last = self.tasks[-1].checkpoint
        info = self._tried(partial(loaded.load, last))
        if info is not None:
            self.seen.rows += [("note", note) for note in loaded.notes_on(info).get("notes", [])]
        wrong = len(self.seen.refusals) - before
        fitting = len(self.tasks) - wrong
        rest = f"; epoch {last.epoch} was loaded whole" if not wrong else f" of {len(self.tasks)}"
        self.seen.rows.append(("checkpoints", f"{fitting} fit{'s' if fitting == 1 else ''}{rest}"))
        return fitting > 0

    def _first_batch(self, loaded: "LoadedSeries") -> "Batch":
        """Read the first batch with readable pictures.

        An unreadable picture affects only its own batch.
        """
        for index in self.tasks[0].indices:
            try:
                batch = loaded.batch(index)
                break
            except PictureError as error:
                self.seen.rows.append(("batch", f"batch {index} would fail: {error}"))
        else:
            raise PictureError(
                f"{self.manifest.path}: no batch that is left can be read; restore the pictures."
            )
        self._index = index
        shapes = ", ".join(
            f"{name} {' x '.join(map(str, value.shape))}" for name, value in batch.items()
        )
        self.seen.rows.append(("batch", f"{shapes}; sha256 {loaded.batches.digest(index)[:16]}..."))
        return batch

    def _time(self, loaded: "LoadedSeries") -> None:
        hessian, index = self.manifest.hessian, self._index
        with _peak_memory(self.device) as peak:
            operator = self._operator(loaded, index)
            title = self._choose(operator)
        if hessian.method == "lanczos":
            self.solver.check_fits(operator, hessian.k)
        if hessian.preconditioner != "none":
            for task in self.tasks:
                self._tried(partial(check_optimizer, loaded, operator, task.checkpoint))
        del operator
        begun = time.perf_counter()
        operator = self._operator(loaded, index)
        loaded.batches.digest(index)
        # This builds what is kept between products, as every batch does.
        self._choose(operator)
        per_batch = time.perf_counter() - begun
        # The first product also checks the operator, which a run does once, not for every product.
        _seconds_of_product(operator, at_most=1)
        seconds = _seconds_of_product(operator)
        num_batches = sum(len(task.indices) for task in self.tasks)
        num_products = num_products_of(hessian)
        # Lanczos keeps a vector per product; vectors of the other methods are not counted.
        vectors = (
            operator.n * operator.dtype.itemsize * num_products * (hessian.method == "lanczos")
        )
        if self.solver.max_basis_memory is not None:
            vectors = min(vectors, self.solver.max_basis_memory)
        self.seen.memory = peak[0] + vectors
        self.seen.seconds = num_batches * (per_batch + num_products * seconds)
        saved = self._saved(num_batches * num_products, seconds)
        self.seen.rows.append(("product", f"{seconds_text(seconds)}, {title}{saved}"))
        self.seen.rows.append(
            (
                "memory",
                f"{size_text(peak[0])} for products, {size_text(vectors)} for Krylov vectors",
            )
        )
        if self.keep_vectors:
            num_used = operator.n - operator.num_unused
            size = num_batches * bytes_of_vectors(hessian.k, operator.n, num_used)
            self.seen.vector_bytes = size
            text = f"{size_text(size)} on the disk for {hessian.k} of each of {num_batches} batches"
            self.seen.rows.append(("vectors", text))
        if hessian.method == "lanczos":
            self.seen.rows.append(
                ("time", f"about {duration_text(self.seen.seconds)} for {num_batches} batches")
            )

    def _saved(self, num_products: int, seconds: float) -> str:
        """Describe how the run will be faster than the forecast."""
        if self.hvp == "finite-difference" or self.products.asked.hvp != "auto":
            return ""
        return _SAVED.get(
            strategy_for(num_products, seconds, is_cpu=self.device.type == "cpu") or "", ""
        )

    def _operator(
        self, loaded: "LoadedSeries", index: int
    ) -> "HessianOperator | FiniteDifferenceOperator":
        batch = loaded.batch(index)
        if self.hvp == "finite-difference":
            return curvature.FiniteDifferenceOperator(loaded.objective, loaded.params, batch)
        return self.products.operator(loaded.objective, loaded.params, batch)

    def _choose(self, operator: "HessianOperator | FiniteDifferenceOperator") -> str:
        if isinstance(operator, curvature.FiniteDifferenceOperator):
            _seconds_of_product(operator, at_most=1)
            return "central differences of gradients"
        choice = operator.choose()
        self.products.keep(operator)
        return choice.title


class _LookAtCut(_Look):
    """A check of a series whose model several processes share.

    It runs in a single process that does not load the model.
    """

    def _checkpoints(self, loaded: "LoadedSeries") -> bool:
        """Compare names and shapes of all checkpoints."""
        before = len(self.seen.refusals)
        for task in self.tasks:
            self._tried(partial(loaded.check_fit, task.checkpoint))
        fitting = len(self.tasks) - (len(self.seen.refusals) - before)
        self.seen.rows.append(
            ("checkpoints", f"{fitting} of {len(self.tasks)} fit by names and shapes")
        )
        return fitting > 0

    def _time(self, loaded: "LoadedSeries") -> None:
        from landscape.pipeline.shard_memory import memory_of_rank

        assert self.shards is not None
        count = self.shards.num_processes
        memory = memory_of_rank(
            loaded.model,
            loaded.params,
            num_processes=count,
            num_vectors=num_products_of(self.manifest.hessian),
            max_basis_memory=self.solver.sharing(count).max_basis_memory,
        )
        self.seen.rows.append(("memory", memory.text(count)))
        if self.keep_vectors:
            k, num_params = self.manifest.hessian.k, sum(p.numel() for p in loaded.params.values())
            num_batches = sum(len(task.indices) for task in self.tasks)
            # Which parameters a batch does not use is not known without a product.
            self.seen.vector_bytes = num_batches * bytes_of_vectors(k, num_params, num_params)
            text = f"at most {size_text(self.seen.vector_bytes)} on the disk"
            self.seen.rows.append(("vectors", f"{text} for {k} of each of {num_batches} batches"))


def _seconds_of_product(
    operator: "HessianOperator | FiniteDifferenceOperator", *, at_most: int = _NUM_TIMED
) -> float:
    """Measure the mean time of a few products with a random vector."""
    import torch

    vector = torch.randn(operator.n, 1, generator=linalg.seeded(0)).to(
        operator.device, operator.dtype
    )
    begun, done = time.perf_counter(), 0
    while done < at_most and (not done or time.perf_counter() - begun < _ENOUGH_SECONDS):
        operator @ vector
        if vector.device.type == "cuda":
            torch.cuda.synchronize(vector.device)
        done += 1
    return (time.perf_counter() - begun) / done


@contextmanager
def _peak_memory(device: "torch.device") -> Iterator[list[int]]:
    """Measure the peak bytes of tensors, beyond those that existed before."""
    import torch

    peak = [0]
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak[0] = torch.cuda.max_memory_allocated(device) - before
        return
    with curvature.hvp.MemoryWatch(sys.maxsize) as watch:
        yield peak
    peak[0] = watch.peak
