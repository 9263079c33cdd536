"""Choice of the strategy that computes products with the Hessian.

It is the fastest that fits in memory, found by trying; another is taken when memory runs out.

On a CPU the retained graph is taken where it fits, because nothing there is faster for one batch;
whether it fits is seen while the first product is computed. Where it does not, each other strategy
that fits computes that product, and the fastest is kept. Measured on 100 pairs of small CLIP
models, in the memory of an evaluation with its graph: retained 3.3 to 3.5, rebuilt 2.5 to 2.6, jvp
of the gradient 4.6 to 4.7, chunks of 16 rows 0.6 to 0.7. So forward mode, which is not faster
either, saves no memory and is used only where it is asked for. So are recorded graphs, which pay
for many batches: `landscape.pipeline` knows how many there are.
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

from landscape.curvature.guards.preconditions import describe_batch
from landscape.curvature.hvp.evaluation import Evaluated, Problem, twice_evaluated
from landscape.curvature.hvp.memory import (
    MemoryWatch,
    forget_failed_backward,
    free_memory,
    is_out_of_memory,
)
from landscape.curvature.hvp.products import Product, RebuiltGraph, RetainedGraph, TangentOfGradient
from landscape.curvature.hvp.replayed import ReplayedGraph, ReplayedTrace, can_replay
from landscape.curvature.hvp.row_chunks import RowChunks, count_rows
from landscape.curvature.hvp.traced import CompiledProduct, TracedProduct, traced_evaluation
from landscape.errors import MemoryLimitError, first_line
from landscape.linalg.operator import seeded

# In the order in which they are fallen back to: each takes less memory than the one before it.
_LADDER = ("retained", "rebuilt", "rows")
STRATEGIES = ("auto", "retained", "rebuilt", "jvp", "rows", "traced", "compiled")
# Strategies that record a graph once for many batches.
RECORDED = (TracedProduct.name, ReplayedTrace.name, CompiledProduct.name)
_CLASSES = (
    RetainedGraph,
    RebuiltGraph,
    TangentOfGradient,
    RowChunks,
    ReplayedGraph,
    TracedProduct,
    ReplayedTrace,
    CompiledProduct,
)
_TITLES = {strategy.name: strategy.title for strategy in _CLASSES}
# Share of the allowed or free memory that tensors may take. On a CPU the C library's
# heap held up to 2.4 times what lived in it (1.1 times where each tensor is mapped for itself), and
# running over is fatal; on a GPU it is an error.
SHARE = {"cpu": 0.4, "cuda": 0.9}
# A first evaluation tells whether memory has to be watched at all: products took at most 4.6 times
# as much, and a few vectors.
_AMPLE_EVALUATIONS, _AMPLE_VECTORS = 8, 16
# Vectors in a block that is tried on a GPU.
_BLOCK = 8
_MIB = 2**20
_OPAQUE = (
    "or give the network and the loss apart, as landscape.Objective(forward, loss), so that rows "
    "can be taken in chunks"
)

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A strategy that was tried.

    Holds `seconds` for a vector and the `mebibytes` at its peak, or the `failure` for which it was
    not taken.
    """

    product: str
    rows: int | None = None
    seconds: float | None = None
    mebibytes: int | None = None
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class HvpChoice:
    """How products are computed, and why.

    Another operator of the same model and batch size may be given it as `hvp`.

    Attributes:
        product: "retained", "rebuilt", "jvp", "rows", "replayed", "traced", "traced-replayed" or
            "compiled".
        rows: Rows in a chunk, for "rows".
        columns: Vectors multiplied by one pass.
        reason: Why this strategy was chosen.
        limit: Bytes that tensors might take: two fifths of what was allowed or free on a CPU, nine
            tenths on a GPU.
        held: Bytes of tensors that are kept between products, as counted; 0 where that was not
            counted.
        peak: The same at the peak of a product.
        trials: Strategies that were tried, in order.
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
        """Describe in words how products are computed."""
        return _TITLES[self.product] + (f" of {self.rows}" if self.rows else "")

    def __str__(self) -> str:
        return f"{self.title}: {self.reason}"

    def as_settings(self) -> dict[str, Any]:
        """Return plain JSON values for a record."""
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
    """A strategy that has computed the product `out`."""

    strategy: Product
    out: Tensor
    trial: Trial
    seconds: float
    peak: int


class HvpEngine:
    """Products with the Hessian of the data term, by a strategy chosen at first use.

    Args:
        hvp: One of `STRATEGIES`: "auto", or the strategy to begin with; or the choice that
            another operator made, which is then not measured again.
        rows: At most that many rows in a chunk; asks for row chunks.
        columns: Vectors multiplied by one pass; None for 1 on a CPU, and on a GPU for what is
            faster.
        max_memory: Bytes that products may take beside the parameters; None for what is free.

    Attributes:
        choice: None before the first product.

    Raises:
        ValueError: If an argument is invalid.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        hvp: str | HvpChoice = "auto",
        rows: int | None = None,
        columns: int | None = None,
        max_memory: int | None = None,
    ) -> None:
        _check_arguments(hvp, rows, columns, max_memory)
        self._problem = problem
        self._device = problem.like.device
        given = hvp if isinstance(hvp, HvpChoice) else None
        self._free = free_memory(self._device)
        self._share = SHARE.get(self._device.type, min(SHARE.values()))
        self._watch = MemoryWatch(int(self._share * (max_memory or self._free)))
        # A strategy that fitted before may not fit now, or in what is allowed here.
        self._given = (
            given
            if given is not None and self._fits(given, limited=max_memory is not None)
            else None
        )
        asked = hvp.product if isinstance(hvp, HvpChoice) else "rows" if rows is not None else hvp
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
        self._strategy: Product | None = None
        self._gradients: tuple[Tensor | None, ...] | None = None
        self._chunks: RowChunks | None = None
        self._traced: TracedProduct | None = None
        self._trials: list[Trial] = []
        self.choice: HvpChoice | None = None

    def _fits(self, given: HvpChoice, *, limited: bool) -> bool:
        # It was chosen within a limit that is no larger than this one, or its peak was counted and
        # is within this one.
        allowed = (
            not limited or given.limit <= self._watch.limit or 0 < given.peak <= self._watch.limit
        )
        return given.peak <= self._free and allowed

    def evaluate(self) -> Evaluated:
        """Evaluate the problem, in row chunks where the whole does not fit.

        From then on, vectors are those of the leaves of `Evaluated.problem`.

        Raises:
            ObjectiveError: As in `twice_evaluated` and `RowChunks`.
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
        # Chunk by chunk then, with ever smaller chunks until an evaluation fits.
        if self._asked == "rows" or self._problem.objective.rowwise:
            for size in self._sizes():
                self._chunks = self._guarded("rows", size, lambda: RowChunks(self._problem, size))
                if self._chunks is not None:
                    return self._chunks.pop_evaluated()
        raise MemoryLimitError(self._nothing_fits())

    def _evaluate_traced(self) -> Evaluated | None:
        """Evaluate by a traced graph.

        Returns None, and notes the failure as a trial, where no graph can be trusted.
        """
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
            self._strategy, self.choice = replayed or traced, self._given
            if replayed is None:
                self.choice = replace(
                    self._given, product=traced.name, trials=(*self._given.trials, *self._trials)
                )
        elif traced.name != asked:
            self._trials.append(Trial(product=asked, failure=traced.failure))
            self._asked, self._given, self._watches, self._traced = traced.name, None, True, traced
        elif self._given is not None:
            self._strategy, self.choice = traced, self._given
        else:
            self._traced = traced
        return evaluated

    def _guard(self) -> AbstractContextManager[Any]:
        """Return the memory watch for an evaluation.

        After the first evaluation it watches nothing if memory is ample for what follows.
        """
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

    def choose(self) -> HvpChoice:
        """Return the choice, made now if there is none.

        It is made with a product of a random vector, if there was none yet or memory has run out
        since.

        Raises:
            ObjectiveError, MemoryLimitError: As in `multiply`.
        """
        if (
            self._strategy is None
            and self._given is not None
            and self._given.product == "retained"
            and self._gradients is not None
        ):
            self._strategy, self._gradients = RetainedGraph(self._problem, self._gradients), None
            self.choice = self._given
        if self._strategy is None:
            like = self._problem.like
            n = sum(leaf.numel() for leaf in self._problem.leaves.values())
            with torch.inference_mode(False):
                row = torch.randn(1, n, generator=seeded(0)).to(like.device, like.dtype)
                self._multiply(row, torch.empty_like(row))
        assert self.choice is not None
        return self.choice

    @property
    def strategy(self) -> Product | None:
        """Return the strategy that computes products; None before the first product."""
        return self._strategy

    @contextmanager
    def lent(self, product: Product) -> Iterator[None]:
        """Compute products by another strategy in this section.

        Vectors are multiplied one at a time. The previous strategy goes on afterwards.

        Where memory runs out meanwhile, a new strategy is chosen and stays in use.
        """
        strategy, columns = self._strategy, self.columns
        self._strategy, self.columns = product, 1
        try:
            yield
        finally:
            self._strategy = strategy if self._strategy is product else self._strategy
            self.columns = columns

    def note(self, product: str, failure: str) -> None:
        """Add to the choice why something was not done, once."""
        assert self.choice is not None, "a choice comes first"
        trial = Trial(product=product, failure=failure)
        if trial not in self.choice.trials:
            self.choice = replace(self.choice, trials=(*self.choice.trials, trial))

    def multiply_block(
        self, names: Sequence[str], rows: Float[Tensor, "k b"], out: Float[Tensor, "k b"]
    ) -> bool:
        """Write the products of `rows` with a diagonal block.

        The block is that of some parameters. Products go through their part of the retained graph.

        Returns:
            False where no graph is kept, or memory runs out and the graph is freed. The block then
            has to compute its products by itself.

        Raises:
            ObjectiveError: If an operation turns out to have no second derivative.
        """
        self.choose()
        strategy = (
            self._strategy.plain if isinstance(self._strategy, ReplayedGraph) else self._strategy
        )
        if not isinstance(strategy, RetainedGraph):
            return False
        leaves = {name: self._problem.leaves[name] for name in names}
        gradients = dict(zip(self._problem.leaves, strategy.gradients))
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
        del strategy, block, gradients
        self._descend()
        return False

    def multiply(self, rows: Float[Tensor, "k n"], out: Float[Tensor, "k n"]) -> None:
        """Write the products with `rows` to `out`, a few at a time.

        Raises:
            ObjectiveError: If an operation turns out to have no second derivative.
            MemoryLimitError: If no strategy fits in memory any more.
        """
        columns = self.columns or self._measured_columns(rows)
        for start in range(0, len(rows), columns):
            self._multiply(rows[start : start + columns], out[start : start + columns])

    def _multiply(self, rows: Float[Tensor, "c n"], out: Float[Tensor, "c n"]) -> None:
        if self._strategy is not None:
            try:
                self._check_free()
                self._strategy.multiply(rows, out)
                return
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            self._descend()
        self._settle(rows, out)

    def _settle(self, rows: Float[Tensor, "c n"], out: Float[Tensor, "c n"]) -> None:
        """Choose among the remaining strategies by letting each compute this product."""
        fitting: list[_Fitting] = []
        for candidate in self._candidates():
            made = self._try(candidate, rows)
            if made is None:
                continue
            fitting.append(made)
            if candidate.name == TracedProduct.name or (
                candidate.name == "retained" and self._asked in ("auto", "replayed")
            ):
                fitting += self._replayed(made, rows)
            # Only a rebuilt graph is compared with what follows, row chunks: a retained graph is
            # faster than both where it fits.
            if candidate.name != "rebuilt" or self._asked != "auto":
                break
        if not fitting:
            raise MemoryLimitError(self._nothing_fits())
        best = min(fitting, key=lambda made: made.seconds)
        # The trial has computed this product, so the winner need not do so again.
        out.copy_(best.out)
        self._strategy, self._chunks = best.strategy, None
        self.choice = self._chosen(best, len(fitting))

    def _candidates(self) -> Iterator[_Candidate]:
        """Yield the remaining strategies, from the most memory to the least.

        What a strategy holds is dropped before the next begins.
        """
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
        """List chunk sizes in rows, halved down to 1.

        The first is the size that is known to fit, that was asked for, or half of the batch.
        """
        num_rows = count_rows(self._problem.batch)
        # Rounded up, so that two chunks of the first size hold the batch.
        size = (
            self._chunks.rows if self._chunks is not None else self._max_rows or -(-num_rows // 2)
        )
        sizes = [max(1, min(size, num_rows))]
        while sizes[-1] > 1:
            sizes.append(-(-sizes[-1] // 2))
        return sizes

    def _try(self, candidate: _Candidate, rows: Float[Tensor, "c n"]) -> _Fitting | None:
        """Let a strategy compute products under the memory watch.

        Returns None, and notes the failure as a trial, where it does not fit or fails.
        """
        out = torch.empty_like(rows)

        def attempt() -> tuple[Product, float]:
            strategy = candidate.make()
            begun = self._clock()
            strategy.multiply(rows, out)
            return strategy, self._clock() - begun

        # Measure the peak of this trial alone.
        self._watch.peak = self._watch.live
        made = self._guarded(
            candidate.name,
            candidate.rows,
            attempt,
            optional=candidate.name not in ("retained", "rebuilt"),
        )
        if made is None:
            return None
        strategy, seconds = made
        if self._device.type == "cuda":
            # The first product also pays for what is set up once.
            begun = self._clock()
            strategy.multiply(rows, out)
            seconds = self._clock() - begun
        peak = self._watch.peak if self._watches else 0
        trial = Trial(
            product=candidate.name,
            rows=candidate.rows,
            seconds=float(f"{seconds / len(rows):.3g}"),
            mebibytes=peak // _MIB,
        )
        self._trials.append(trial)
        return _Fitting(strategy, out, trial, seconds, peak)

    def _guarded(
        self,
        name: str,
        rows: int | None,
        make: Callable[[], _T],
        *,
        optional: bool = False,
        watched: bool = True,
    ) -> _T | None:
        """Call `make` within the memory limit.

        Returns None, and notes the failure as a trial, where memory runs out.

        Args:
            optional: Whether any other error, too, only rules this strategy out.
            watched: Whether to watch the memory here; False where `make` does so itself.
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
        """Test a strategy replayed as a CUDA graph, where the device can."""
        if not can_replay(self._device):
            return []
        plain = fitting.strategy
        if isinstance(plain, TracedProduct):
            candidate = _Candidate(ReplayedTrace.name, lambda: ReplayedTrace(plain))
        else:
            assert isinstance(plain, RetainedGraph)
            candidate = _Candidate(ReplayedGraph.name, lambda: ReplayedGraph(plain))
        made = self._try(candidate, rows)
        return [] if made is None else [made]

    def _measured_columns(self, rows: Float[Tensor, "k n"]) -> int:
        """Measure how many vectors to multiply in a single pass.

        This is 1 on a CPU. On a GPU a block is compared with single vectors, once a block is there
        to try; the faster per vector wins.
        """
        if self._device.type != "cuda" or len(rows) == 1:
            return 1
        out = torch.empty_like(rows[:_BLOCK])
        self._multiply(rows[:1], out[:1])
        assert self.choice is not None and self._strategy is not None
        single = next(
            trial.seconds
            for trial in reversed(self._trials)
            if trial.product == self.choice.product
        )
        strategy = self._strategy
        block = self._try(
            _Candidate(strategy.name, lambda: strategy, self.choice.rows), rows[:_BLOCK]
        )
        # A block pays if it takes less time per vector than a vector by itself.
        pays = block is not None and single is not None and block.seconds / len(out) < single
        self.columns = len(out) if pays else 1
        self.choice = replace(self.choice, columns=self.columns, trials=tuple(self._trials))
        return self.columns

    def _descend(self) -> None:
        """Leave a strategy that ran out of memory.

        The next is sought among those that take less, within what is free now.
        """
        assert self.choice is not None
        left = self.choice
        self._trials.append(
            Trial(
                product=left.product, rows=left.rows, failure="ran out of memory in a later product"
            )
        )
        self._strategy = self._given = None
        forget_failed_backward(self._device)
        self._asked = "auto"
        # Row chunks can be halved. Every other strategy is followed by the next on the ladder.
        if left.rows is not None and left.rows > 1:
            self._max_rows, self._floor = -(-left.rows // 2), _rank("rows")
        else:
            self._floor = _rank(left.product) + 1
        self._watches = True
        # Less may be free now than when the limit was set.
        self._watch.limit = min(
            self._watch.limit, self._watch.live + int(self._share * free_memory(self._device))
        )

    def _check_free(self) -> None:
        """Check that the memory for the next product is free.

        This is for a CPU, where no allocation fails. Only products that take a large part of it are
        checked.
        """
        if self.choice is None or self._device.type != "cpu":
            return
        # What a product takes beside what is kept between products.
        needed = self.choice.peak - self.choice.held
        if needed > self._free // 8 and needed > free_memory(self._device):
            raise MemoryError(f"{needed:,} bytes are needed and not free")

    def _clock(self) -> float:
        if self._device.type != "cuda":
            # Time of this process, which others on the machine do not lengthen.
            return time.process_time()
        # Kernels run asynchronously, so wait for them before the time is read.
        torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _chosen(self, best: _Fitting, num_fitting: int) -> HvpChoice:
        given, trial = self._given, best.trial
        return HvpChoice(
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
            f"{trial.product}: {trial.failure}"
            for trial in self._trials
            if trial.failure and trial.product != best.trial.product
        }
        why = f" ({'; '.join(sorted(failures))})" if failures else ""
        if best.trial.product == self._asked:
            return f"{self._why}{why}"
        if best.trial.product == "retained" and num_fitting == 1:
            return f"its graph fits in memory{why}"
        return (
            f"the fastest of {num_fitting} strategies that fit"
            if num_fitting > 1
            else "it fits in memory"
        ) + why

    def _nothing_fits(self) -> str:
        tried = [
            f"{trial.product}{f' of {trial.rows}' if trial.rows else ''} ({trial.failure})"
            for trial in self._trials
            if trial.failure
        ]
        smaller = "select fewer parameters, or take smaller batches"
        return (
            "Products with the Hessian do not fit in memory: "
            f"{self._watch.limit / self._share / _MIB:.0f} MiB are allowed for the batch "
            f"{describe_batch(self._problem.batch)}, and these were tried: {', '.join(tried)}. "
            f"Allow or free more memory, {smaller if self._problem.objective.rowwise else _OPAQUE}."
        )


def _rank(product: str) -> int:
    """Return the place of a strategy on the ladder.

    What is not on the ladder comes before it.
    """
    return _LADDER.index(product) if product in _LADDER else 0


def _check_arguments(
    hvp: str | HvpChoice, rows: int | None, columns: int | None, max_memory: int | None
) -> None:
    if isinstance(hvp, str) and hvp not in STRATEGIES:
        raise ValueError(f"hvp must be one of {', '.join(STRATEGIES)} or a HvpChoice, got {hvp!r}.")
    if rows is not None and hvp not in ("auto", "rows"):
        raise ValueError(
            f"rows are those of a chunk, and hvp={hvp!r} takes no chunks. Leave one of them out."
        )
    for name, value in (("rows", rows), ("columns", columns), ("max_memory", max_memory)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
