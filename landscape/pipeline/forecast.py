"""What a run would meet: models, checkpoints, the first batch, and the time and memory of its products.

Nothing is written, and an error in one series does not keep the others from being looked at.
"""

import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

from landscape.errors import LandscapeError, PictureError
from landscape.manifest import HessianSettings, Manifest
from landscape.manifest.selection import Task
from landscape.pipeline.products import ProductSettings, SeriesProducts, strategy_for
from landscape.pipeline.solve import SolverSettings
from landscape.store.as_trained import described_as_trained
from landscape.terminal import duration_text, seconds_text, size_text

if TYPE_CHECKING:
    import torch

    from landscape.clip.loaded_series import LoadedSeries
    from landscape.clip.pairs import Pairs
    from landscape.curvature import Batch, FiniteDifferenceOperator, HessianOperator

# Of `eigsh` for k = 5 on the six cases of experiments/benchmark_peers.txt: 21, 22, 24, 25, 26 and 30. Of the power methods
# no such number is known: they stop by a relative change.
_NUM_PRODUCTS, _MEASURED_K = 25, 5
_COLUMNS, _MARGIN = 80, 15
_NUM_TIMED, _ENOUGH_SECONDS = 3, 1.0
# What recording HVPs takes off the time, by strategy.
_SAVED = {
    "traced": "; the run records a graph, for a tenth less",
    "compiled": "; the run compiles a graph once, for about half",
}


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a dry run says beside the list of tasks.

    Attributes:
        lines: For a terminal.
        num_refused: Reasons for which the run would be refused.
    """

    lines: tuple[str, ...] = ()
    num_refused: int = 0


@dataclass
class _Series:
    """What was seen of one series."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    seconds: float = 0.0
    memory: int = 0


def forecast(
    manifest: Manifest,
    tasks: Sequence[Task],
    device: "torch.device",
    *,
    hvp: str,
    audited: bool,
    products: ProductSettings,
    solver: SolverSettings,
) -> Forecast:
    """Look at everything that a run would need, and time a product of each series.

    Args:
        audited: Whether an audit of each series comes first; it is not made here.
    """
    from landscape.clip.image_text import open_pairs

    if not tasks:
        return Forecast()
    try:
        pairs = open_pairs(manifest.data)
    except LandscapeError as error:
        return Forecast(lines=(f"refused: {error}",), num_refused=1)
    lines: list[str] = []
    seen: list[_Series] = []
    for name, group in groupby(tasks, key=lambda task: task.series.name):
        look = _Look(
            manifest, list(group), pairs, device, hvp=hvp, products=products, solver=solver
        )
        seen.append(look.all())
        lines += ["", f"{name}: {look.title}", *_rows(seen[-1].rows)]
        # On one line each, as the run would print it.
        lines += [f"  {'refused':<{_MARGIN - 2}}{reason}" for reason in seen[-1].refusals]
    num_refused = sum(len(one.refusals) for one in seen)
    return Forecast(
        lines=(*lines, "", *_in_all(manifest.hessian, seen, audited=audited)),
        num_refused=num_refused,
    )


def _rows(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Rows for a terminal; long ones are wrapped, and a key that repeats is said once."""
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
    """Products of a batch that are assumed: at k = 5 what was measured, above in proportion."""
    return min(hessian.max_matvecs, _NUM_PRODUCTS * max(hessian.k, _MEASURED_K) // _MEASURED_K)


def _in_all(hessian: HessianSettings, seen: Sequence[_Series], *, audited: bool) -> list[str]:
    num_refused = sum(len(one.refusals) for one in seen)
    if num_refused:
        reasons = "1 reason" if num_refused == 1 else f"{num_refused} reasons"
        return [f"As it is, this run would be refused: {reasons} above."]
    seconds, memory = sum(one.seconds for one in seen), max(one.memory for one in seen)
    if hessian.method != "lanczos":
        return [
            f"{size_text(memory)} beside the model. How many products method {hessian.method} takes is",
            "not known before, and so neither is the time.",
        ]
    how = "" if hessian.k <= _MEASURED_K else f", in proportion for k = {hessian.k}"
    audit = " The audit of each series comes on top." if audited else ""
    assumed = (
        f"Assumed are {num_products_of(hessian)} products a batch: 21 to 30 were measured for k = {_MEASURED_K} on small CLIP "
        f"models{how}; the limit is {hessian.max_matvecs}.{audit}"
    )
    total = f"In all about {duration_text(seconds)} on this machine, {size_text(memory)} beside the model."
    return [total, *textwrap.wrap(assumed, width=_COLUMNS)]


class _Look:
    """Looks at one series, as far as it goes."""

    def __init__(
        self,
        manifest: Manifest,
        tasks: list[Task],
        pairs: "Pairs",
        device: "torch.device",
        *,
        hvp: str,
        products: ProductSettings,
        solver: SolverSettings,
    ) -> None:
        self.manifest, self.tasks, self.pairs, self.device = manifest, tasks, pairs, device
        self.hvp, self.solver, self.products = hvp, solver, SeriesProducts(products)
        self.seen = _Series()
        self.title = tasks[0].series.model
        self._index = tasks[0].indices[0]

    def all(self) -> _Series:
        """Build, load, read and time; what fails is a refusal, and what needs it is left out."""
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
        from landscape.clip.loaded_series import LoadedSeries

        loaded = LoadedSeries.of(
            self.manifest, self.tasks[0].series, self.pairs, device=self.device
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
        """The first batch whose pictures can be read: a bad picture costs its own batch alone."""
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
        del operator
        begun = time.perf_counter()
        operator = self._operator(loaded, index)
        loaded.batches.digest(index)
        # Builds what is kept between products, as every batch does.
        self._choose(operator)
        per_batch = time.perf_counter() - begun
        seconds = _seconds_of_product(operator)
        num_batches = sum(len(task.indices) for task in self.tasks)
        num_products = num_products_of(hessian)
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
        if hessian.method == "lanczos":
            self.seen.rows.append(
                ("time", f"about {duration_text(self.seen.seconds)} for {num_batches} batches")
            )

    def _saved(self, num_products: int, seconds: float) -> str:
        """What the run will do to be faster than the forecast."""
        if self.hvp == "finite-difference" or self.products.asked.product != "auto":
            return ""
        return _SAVED.get(
            strategy_for(num_products, seconds, is_cpu=self.device.type == "cpu") or "", ""
        )

    def _operator(
        self, loaded: "LoadedSeries", index: int
    ) -> "HessianOperator | FiniteDifferenceOperator":
        from landscape.curvature import FiniteDifferenceOperator

        batch = loaded.batch(index)
        if self.hvp == "finite-difference":
            return FiniteDifferenceOperator(loaded.objective, loaded.params, batch)
        return self.products.operator(loaded.objective, loaded.params, batch)

    def _choose(self, operator: "HessianOperator | FiniteDifferenceOperator") -> str:
        from landscape.curvature import FiniteDifferenceOperator

        if isinstance(operator, FiniteDifferenceOperator):
            _seconds_of_product(operator, at_most=1)
            return "central differences of gradients"
        choice = operator.choose()
        self.products.keep(operator)
        return choice.title


def _seconds_of_product(
    operator: "HessianOperator | FiniteDifferenceOperator", *, at_most: int = _NUM_TIMED
) -> float:
    """Mean time of a few products of a random vector."""
    import torch

    from landscape.linalg.operator import seeded

    vector = torch.randn(operator.n, 1, generator=seeded(0)).to(operator.device, operator.dtype)
    begun, done = time.perf_counter(), 0
    while done < at_most and (not done or time.perf_counter() - begun < _ENOUGH_SECONDS):
        operator @ vector
        if vector.device.type == "cuda":
            torch.cuda.synchronize(vector.device)
        done += 1
    return (time.perf_counter() - begun) / done


@contextmanager
def _peak_memory(device: "torch.device") -> Iterator[list[int]]:
    """Bytes of tensors at their peak, beside those that were there before."""
    import torch

    from landscape.curvature.memory import MemoryWatch

    peak = [0]
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak[0] = torch.cuda.max_memory_allocated(device) - before
        return
    with MemoryWatch(sys.maxsize) as watch:
        yield peak
    peak[0] = watch.peak
