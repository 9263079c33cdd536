"""Which way of computing a product is used: the fastest that fits in memory, found by trying, and another when it runs out.

On a CPU the retained graph is taken where it fits, because nothing there is faster for one batch; whether it fits is seen while
the first product is made. Where it does not, the other ways that fit make that product each, and the fastest stays.
Measured on 100 pairs of small CLIP models, in the memory of an evaluation with its graph: retained 3.3 to 3.5, rebuilt 2.5 to
2.6, jvp of the gradient 4.6 to 4.7, chunks of 16 rows 0.6 to 0.7. So forward mode, which is not faster either, is never a
way out; it is used where it is asked for. So are recorded graphs, which pay for many batches: `landscape.pipeline` knows how many
there are.
Shapes: n = total size of the parameters, c = vectors multiplied at once, k = vectors to multiply.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.curvature.evaluation import Evaluated, Problem, twice_evaluated
from landscape.curvature.memory import (
    MemoryWatch,
    forget_failed_backward,
    free_memory,
    is_out_of_memory,
)
from landscape.curvature.preconditions import describe_batch
from landscape.curvature.products import Product, RebuiltGraph, RetainedGraph, TangentOfGradient
from landscape.curvature.replayed import ReplayedGraph, ReplayedTrace, can_replay
from landscape.curvature.row_chunks import RowChunks, count_rows
from landscape.curvature.traced import CompiledProduct, TracedProduct, traced_evaluation
from landscape.errors import MemoryLimitError, first_line
from landscape.linalg.operator import seeded

# In the order in which they are fallen back to: each takes less memory than the one before it.
_LADDER = ("retained", "rebuilt", "rows")
PRODUCTS = ("auto", "retained", "rebuilt", "jvp", "rows", "traced", "compiled")
# Ways that record a graph once for many batches.
RECORDED = (TracedProduct.name, ReplayedTrace.name, CompiledProduct.name)
_WAYS = (
    RetainedGraph,
    RebuiltGraph,
    TangentOfGradient,
    RowChunks,
    ReplayedGraph,
    TracedProduct,
    ReplayedTrace,
    CompiledProduct,
)
_TITLES = {way.name: way.title for way in _WAYS}
# Of the memory that is allowed or free, the share that tensors may take. On a CPU the C library's heap held up to 2.4 times what
# lived in it (1.1 times where each tensor is mapped for itself), and running over is fatal; on a GPU it is an error.
SHARE = {"cpu": 0.4, "cuda": 0.9}
# A first evaluation tells whether memory has to be watched at all: products took at most 4.6 times as much, and a few vectors.
_AMPLE_EVALUATIONS, _AMPLE_VECTORS = 8, 16
# Vectors in a block that is tried on a GPU.
_BLOCK = 8
_MIB = 2**20
_OPAQUE = "or give the network and the loss apart, as landscape.Objective(forward, loss), so that rows can be taken in chunks"

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One way that was tried: `seconds` for a vector and the `mebibytes` at its peak, or why it was not taken."""

    product: str
    rows: int | None = None
    seconds: float | None = None
    mebibytes: int | None = None
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class ProductChoice:
    """How products are computed, and why. Another operator of the same model and batch size may be given it as `product`.

    Attributes:
        product: "retained", "rebuilt", "jvp", "rows", "replayed", "traced", "traced-replayed" or "compiled".
        rows: Rows in a chunk, for "rows".
        columns: Vectors multiplied by one pass.
        reason: Why this way.
        limit: Bytes that tensors might take: two fifths of what was allowed or free on a CPU, nine tenths on a
            GPU.
        held: Bytes of tensors that are kept between products, as counted; 0 where that was not counted.
        peak: The same at the peak of a product.
        trials: What was tried, in order.
    """

    product: str
    rows: int | None = None
    columns: int = 1
    allow_tf32: bool = False
    reason: str = ""
    limit: int = 0
    held: int = 0
    peak: int = 0
    trials: tuple[Trial, ...] = ()

    @property
    def title(self) -> str:
        """What is done, in words."""
        return _TITLES[self.product] + (f" of {self.rows}" if self.rows else "")

    def __str__(self) -> str:
        return f"{self.title}: {self.reason}"

    def as_settings(self) -> dict[str, Any]:
        """Plain JSON values, for a record."""
        facts = asdict(self)
        return facts | {
            f"{key}_mebibytes": facts.pop(key) // _MIB for key in ("limit", "held", "peak")
        }


@dataclass(frozen=True, eq=False)
class _Candidate:
    name: str
    make: Callable[[], Product]
    rows: int | None = None


@dataclass(frozen=True, eq=False)
class _Fitting:
    """A way that has made the product `out`."""

    way: Product
    out: Tensor
    trial: Trial
    seconds: float
    peak: int


class Multiplier:
    """Products with the Hessian of the data term, by a way that is chosen with the first of them.

    Args:
        product: One of `PRODUCTS`: "auto", or the way to begin with; or the choice that another operator made, which is then
            not measured again.
        rows: At most that many rows in a chunk; asks for row chunks.
        columns: Vectors multiplied by one pass; None for 1 on a CPU, and on a GPU for what is faster.
        max_memory: Bytes that products may take beside the parameters; None for what is free.

    Attributes:
        choice: None before the first product.

    Raises:
        ValueError: If an argument cannot be meant.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        product: str | ProductChoice = "auto",
        rows: int | None = None,
        columns: int | None = None,
        max_memory: int | None = None,
    ) -> None:
        _check_arguments(product, rows, columns, max_memory)
        self._problem = problem
        self._device = problem.like.device
        given = product if isinstance(product, ProductChoice) else None
        self._free = free_memory(self._device)
        self._share = SHARE.get(self._device.type, min(SHARE.values()))
        self._watch = MemoryWatch(int(self._share * (max_memory or self._free)))
        # What fitted once may not fit now, or in what is allowed here.
        self._given = (
            given
            if given is not None and self._fits(given, limited=max_memory is not None)
            else None
        )
        asked = (
            product.product
            if isinstance(product, ProductChoice)
            else "rows"
            if rows is not None
            else product
        )
        # A graph that was recorded for many batches is recorded here too, within what is allowed.
        keeps = given is None or self._given is not None or given.product in RECORDED
        self._asked = asked if keeps else "auto"
        if self._asked == ReplayedTrace.name and self._given is None:
            self._asked = TracedProduct.name
        self._why = "asked for" if given is None else given.reason
        self._max_rows = rows if self._given is None else self._given.rows
        self.columns = columns if self._given is None else self._given.columns
        self._watches = self._given is None
        self._floor = _rank(self._asked)
        self._way: Product | None = None
        self._gradients: tuple[Tensor | None, ...] | None = None
        self._chunks: RowChunks | None = None
        self._traced: TracedProduct | None = None
        self._trials: list[Trial] = []
        self.choice: ProductChoice | None = None

    def _fits(self, given: ProductChoice, *, limited: bool) -> bool:
        allowed = (
            not limited or given.limit <= self._watch.limit or 0 < given.peak <= self._watch.limit
        )
        return given.peak <= self._free and allowed

    def evaluate(self) -> Evaluated:
        """Evaluate the problem, in chunks of rows where all of it does not fit.

        Vectors are from then on those of the leaves of `Evaluated.problem`.

        Raises:
            ObjectiveError: As `twice_evaluated` and `RowChunks`.
            MemoryLimitError: If it does not fit.
        """
        if self._asked in RECORDED:
            evaluated = self._evaluate_traced()
            if evaluated is not None:
                return evaluated
        if self._floor < _rank("rows"):
            evaluated = self._guarded(
                "retained",
                None,
                lambda: twice_evaluated(self._problem, self._guard, reduces=True),
                watched=False,
            )
            if evaluated is not None:
                self._problem = evaluated.problem
                self._gradients = evaluated.gradients if self._floor == 0 else None
                return evaluated
            # No graph of the whole gradient fits.
            self._floor = _rank("rows")
        if self._asked == "rows" or self._problem.objective.rowwise:
            for size in self._sizes():
                self._chunks = self._guarded("rows", size, lambda: RowChunks(self._problem, size))
                if self._chunks is not None:
                    return self._chunks.pop_evaluated()
        raise MemoryLimitError(self._nothing_fits())

    def _evaluate_traced(self) -> Evaluated | None:
        """Evaluate by a traced graph; None, and a note, where there is none to be trusted."""
        asked = self._asked
        made = self._guarded(
            asked,
            None,
            lambda: traced_evaluation(
                self._problem, compiles=asked == "compiled", guard=self._guard
            ),
            optional=True,
            watched=False,
        )
        if made is None:
            # What is wrong with the loss itself is said by the evaluation that follows.
            self._asked, self._given, self._watches = "auto", None, True
            return None
        evaluated, traced = made
        self._problem = evaluated.problem
        if asked == ReplayedTrace.name and self._given is not None:
            replayed = self._guarded(asked, None, lambda: ReplayedTrace(traced), optional=True)
            self._way, self.choice = replayed or traced, self._given
            if replayed is None:
                self.choice = replace(
                    self._given, product=traced.name, trials=(*self._given.trials, *self._trials)
                )
        elif traced.name != asked:
            self._trials.append(Trial(product=asked, failure=traced.failure))
            self._asked, self._given, self._watches, self._traced = traced.name, None, True, traced
        elif self._given is not None:
            self._way, self.choice = traced, self._given
        else:
            self._traced = traced
        return evaluated

    def _guard(self) -> AbstractContextManager[Any]:
        """The watch over the first evaluation, and over what comes after it unless there is plenty for that."""
        n = sum(leaf.numel() for leaf in self._problem.leaves.values())
        ample = (
            _AMPLE_EVALUATIONS * self._watch.peak
            + _AMPLE_VECTORS * n * self._problem.like.element_size()
        )
        if self._watch.peak and ample < self._watch.limit:
            self._watches = False
        return self._watched()

    def _watched(self) -> AbstractContextManager[Any]:
        return self._watch if self._watches else nullcontext()

    def choose(self) -> ProductChoice:
        """The choice, made with a product of a random vector if there was none yet, or memory has run out since.

        Raises:
            ObjectiveError, MemoryLimitError: As `multiply`.
        """
        if (
            self._way is None
            and self._given is not None
            and self._given.product == "retained"
            and self._gradients is not None
        ):
            self._way, self._gradients = RetainedGraph(self._problem, self._gradients), None
            self.choice = self._given
        if self._way is None:
            like = self._problem.like
            n = sum(leaf.numel() for leaf in self._problem.leaves.values())
            with torch.inference_mode(False):
                row = torch.randn(1, n, generator=seeded(0)).to(like.device, like.dtype)
                self._multiply(row, torch.empty_like(row))
        assert self.choice is not None
        return self.choice

    @property
    def way(self) -> Product | None:
        """What computes products; None before the first."""
        return self._way

    @contextmanager
    def lent(self, product: Product) -> Iterator[None]:
        """Compute products by another way, one vector at a time, in this section; the way of before goes on after it.

        Where memory runs out meanwhile, a way is chosen anew, which stays.
        """
        way, columns = self._way, self.columns
        self._way, self.columns = product, 1
        try:
            yield
        finally:
            self._way = way if self._way is product else self._way
            self.columns = columns

    def note(self, product: str, failure: str) -> None:
        """Add to the choice why something was not done, unless it says so."""
        assert self.choice is not None, "a choice comes first"
        trial = Trial(product=product, failure=failure)
        if trial not in self.choice.trials:
            self.choice = replace(self.choice, trials=(*self.choice.trials, trial))

    def multiply_block(
        self, names: Sequence[str], rows: Float[Tensor, "k b"], out: Float[Tensor, "k b"]
    ) -> bool:
        """Write the products of `rows` with the diagonal block of some parameters, through their part of the graph that is kept.

        Returns:
            False where no graph is kept, or memory runs out, which is the end of the graph: the block has to go its own way.

        Raises:
            ObjectiveError: If an operation turns out to have no second derivative.
        """
        self.choose()
        way = self._way.plain if isinstance(self._way, ReplayedGraph) else self._way
        if not isinstance(way, RetainedGraph):
            return False
        leaves = {name: self._problem.leaves[name] for name in names}
        gradients = dict(zip(self._problem.leaves, way.gradients))
        block = RetainedGraph(
            replace(self._problem, leaves=leaves), [gradients[name] for name in names]
        )
        try:
            self._check_free()
            for row, product in zip(rows.split(1), out.split(1)):
                block.multiply(row, product)
            return True
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        del way, block, gradients
        self._descend()
        return False

    def multiply(self, rows: Float[Tensor, "k n"], out: Float[Tensor, "k n"]) -> None:
        """Write the products with `rows` to `out`, a few at a time.

        Raises:
            ObjectiveError: If an operation turns out to have no second derivative.
            MemoryLimitError: If no way of it fits in memory any more.
        """
        columns = self.columns or self._measured_columns(rows)
        for start in range(0, len(rows), columns):
            self._multiply(rows[start : start + columns], out[start : start + columns])

    def _multiply(self, rows: Float[Tensor, "c n"], out: Float[Tensor, "c n"]) -> None:
        if self._way is not None:
            try:
                self._check_free()
                self._way.multiply(rows, out)
                return
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            self._descend()
        self._settle(rows, out)

    def _settle(self, rows: Float[Tensor, "c n"], out: Float[Tensor, "c n"]) -> None:
        """Choose among the ways that are left by letting them make this product."""
        fitting: list[_Fitting] = []
        for candidate in self._candidates():
            made = self._try(candidate, rows)
            if made is None:
                continue
            fitting.append(made)
            if (
                candidate.name == TracedProduct.name
                or candidate.name == "retained"
                and self._asked in ("auto", "replayed")
            ):
                fitting += self._replayed(made, rows)
            if candidate.name != "rebuilt" or self._asked != "auto":
                break
        if not fitting:
            raise MemoryLimitError(self._nothing_fits())
        best = min(fitting, key=lambda one: one.seconds)
        out.copy_(best.out)
        self._way, self._chunks = best.way, None
        self.choice = self._chosen(best, len(fitting))

    def _candidates(self) -> Iterator[_Candidate]:
        """The ways that are left, from the one that takes most memory down; what one holds is dropped before the next."""
        problem = self._problem
        traced, self._traced = self._traced, None
        if traced is not None:
            yield _Candidate(traced.name, lambda: traced)
        gradients, self._gradients = self._gradients, None
        if gradients is not None:
            retained = RetainedGraph(problem, gradients)
            if self._asked == "jvp":
                yield _Candidate(
                    "jvp", lambda: TangentOfGradient(problem, None if self._given else retained)
                )
            yield _Candidate("retained", lambda: retained)
            del retained, gradients
        if self._floor <= _rank("rebuilt"):
            yield _Candidate("rebuilt", lambda: RebuiltGraph(problem))
        if problem.objective.rowwise:
            for size in self._sizes():
                yield _Candidate("rows", lambda: self._chunks or RowChunks(problem, size), size)
                self._chunks = None

    def _sizes(self) -> list[int]:
        """Rows of a chunk, halved down to 1, from those that are known to fit, from what was asked for, or from half."""
        num_rows = count_rows(self._problem.batch)
        size = (
            self._chunks.rows if self._chunks is not None else self._max_rows or -(-num_rows // 2)
        )
        sizes = [max(1, min(size, num_rows))]
        while sizes[-1] > 1:
            sizes.append(-(-sizes[-1] // 2))
        return sizes

    def _try(self, candidate: _Candidate, rows: Float[Tensor, "c n"]) -> _Fitting | None:
        """Let a way make products, under the watch; None, and a note why, where it does not fit or cannot."""
        out = torch.empty_like(rows)

        def attempt() -> tuple[Product, float]:
            way = candidate.make()
            begun = self._clock()
            way.multiply(rows, out)
            return way, self._clock() - begun

        self._watch.peak = self._watch.live
        made = self._guarded(
            candidate.name,
            candidate.rows,
            attempt,
            optional=candidate.name not in ("retained", "rebuilt"),
        )
        if made is None:
            return None
        way, seconds = made
        if self._device.type == "cuda":
            # The first product also pays for what is set up once.
            begun = self._clock()
            way.multiply(rows, out)
            seconds = self._clock() - begun
        peak = self._watch.peak if self._watches else 0
        trial = Trial(
            product=candidate.name,
            rows=candidate.rows,
            seconds=float(f"{seconds / len(rows):.3g}"),
            mebibytes=peak // _MIB,
        )
        self._trials.append(trial)
        return _Fitting(way, out, trial, seconds, peak)

    def _guarded(
        self,
        name: str,
        rows: int | None,
        make: Callable[[], _T],
        *,
        optional: bool = False,
        watched: bool = True,
    ) -> _T | None:
        """What `make` makes within the limit, or None and a note.

        Args:
            optional: Whether any other error, too, is only a reason not to take this way.
            watched: False where `make` sees to it.
        """
        try:
            with self._watched() if watched else nullcontext():
                return make()
        except Exception as error:
            if is_out_of_memory(error):
                failure = "does not fit in memory"
            elif optional:
                failure = first_line(error)
            else:
                raise
        forget_failed_backward(self._device)
        self._trials.append(Trial(product=name, rows=rows, failure=failure))
        return None

    def _replayed(self, fitting: _Fitting, rows: Float[Tensor, "c n"]) -> list[_Fitting]:
        """The same way replayed, where the device can do that."""
        if not can_replay(self._device):
            return []
        plain = fitting.way
        if isinstance(plain, TracedProduct):
            candidate = _Candidate(ReplayedTrace.name, lambda: ReplayedTrace(plain))
        else:
            assert isinstance(plain, RetainedGraph)
            candidate = _Candidate(ReplayedGraph.name, lambda: ReplayedGraph(plain))
        made = self._try(candidate, rows)
        return [] if made is None else [made]

    def _measured_columns(self, rows: Float[Tensor, "k n"]) -> int:
        """1 on a CPU. On a GPU what is faster for a vector, one at a time or a block, once a block is there to try."""
        if self._device.type != "cuda" or len(rows) == 1:
            return 1
        out = torch.empty_like(rows[:_BLOCK])
        self._multiply(rows[:1], out[:1])
        assert self.choice is not None and self._way is not None
        single = next(
            one.seconds for one in reversed(self._trials) if one.product == self.choice.product
        )
        way = self._way
        block = self._try(_Candidate(way.name, lambda: way, self.choice.rows), rows[:_BLOCK])
        pays = block is not None and single is not None and block.seconds / len(out) < single
        self.columns = len(out) if pays else 1
        self.choice = replace(self.choice, columns=self.columns, trials=tuple(self._trials))
        return self.columns

    def _descend(self) -> None:
        """Leave a way for which memory ran out, and look for one that takes less of what is free now."""
        assert self.choice is not None
        left = self.choice
        self._trials.append(
            Trial(
                product=left.product, rows=left.rows, failure="ran out of memory in a later product"
            )
        )
        self._way = self._given = None
        forget_failed_backward(self._device)
        self._asked = "auto"
        if left.rows is not None and left.rows > 1:
            self._max_rows, self._floor = -(-left.rows // 2), _rank("rows")
        else:
            self._floor = _rank(left.product) + 1
        self._watches = True
        self._watch.limit = min(
            self._watch.limit, self._watch.live + int(self._share * free_memory(self._device))
        )

    def _check_free(self) -> None:
        """On a CPU, where no allocation fails, see that what the next product takes is there, if it is a large part."""
        if self.choice is None or self._device.type != "cpu":
            return
        needed = self.choice.peak - self.choice.held
        if needed > self._free // 8 and needed > free_memory(self._device):
            raise MemoryError(f"{needed:,} bytes are needed and not free")

    def _clock(self) -> float:
        if self._device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _chosen(self, best: _Fitting, num_fitting: int) -> ProductChoice:
        given, trial = self._given, best.trial
        return ProductChoice(
            product=trial.product,
            rows=trial.rows,
            columns=self.columns or 1,
            allow_tf32=self._problem.allow_tf32,
            reason=self._reason(best, num_fitting) if given is None else given.reason,
            limit=self._watch.limit if given is None else given.limit,
            held=self._watch.live if given is None else given.held,
            peak=best.peak if given is None else given.peak,
            trials=tuple(self._trials) if given is None else given.trials,
        )

    def _reason(self, best: _Fitting, num_fitting: int) -> str:
        failures = {
            f"{one.product}: {one.failure}"
            for one in self._trials
            if one.failure and one.product != best.trial.product
        }
        why = f" ({'; '.join(sorted(failures))})" if failures else ""
        if best.trial.product == self._asked:
            return f"{self._why}{why}"
        if best.trial.product == "retained" and num_fitting == 1:
            return f"its graph fits in memory{why}"
        return (
            f"the fastest of {num_fitting} ways that fit"
            if num_fitting > 1
            else "it fits in memory"
        ) + why

    def _nothing_fits(self) -> str:
        tried = [
            f"{one.product}{f' of {one.rows}' if one.rows else ''} ({one.failure})"
            for one in self._trials
            if one.failure
        ]
        return (
            f"Products with the Hessian do not fit in memory: {self._watch.limit / self._share / _MIB:.0f} MiB are allowed "
            f"for the batch {describe_batch(self._problem.batch)}, and these were tried: {', '.join(tried)}. Allow or free more "
            f"memory, {'select fewer parameters, or take smaller batches' if self._problem.objective.rowwise else _OPAQUE}."
        )


def _rank(product: str) -> int:
    """The place on the ladder; what is not on it comes before it."""
    return _LADDER.index(product) if product in _LADDER else 0


def _check_arguments(
    product: str | ProductChoice, rows: int | None, columns: int | None, max_memory: int | None
) -> None:
    if isinstance(product, str) and product not in PRODUCTS:
        raise ValueError(
            f"product must be one of {', '.join(PRODUCTS)} or a ProductChoice, got {product!r}."
        )
    if rows is not None and product not in ("auto", "rows"):
        raise ValueError(
            f"rows are those of a chunk, and product={product!r} takes no chunks. Leave one of them out."
        )
    for name, value in (("rows", rows), ("columns", columns), ("max_memory", max_memory)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
