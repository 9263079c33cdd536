"""Products with the Hessian of the data term, by the fastest strategy that fits in memory.

How it is chosen, and why, is in landscape.curvature.hvp.choice.
Shapes: n = total size of the parameters, c = vectors multiplied at once, k = vectors to multiply.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.curvature.hvp.choice import RECORDED, HvpChoice, Trial, check_arguments, rank
from landscape.curvature.hvp.evaluation import Evaluated, Problem, twice_evaluated
from landscape.curvature.hvp.memory import forget_failed_backward, is_out_of_memory
from landscape.curvature.hvp.products import Product, RebuiltGraph, RetainedGraph, TangentOfGradient
from landscape.curvature.hvp.replayed import ReplayedGraph, ReplayedTrace, can_replay
from landscape.curvature.hvp.row_chunks import RowChunks, chunk_sizes, count_rows
from landscape.curvature.hvp.traced import TracedProduct, traced_evaluation
from landscape.curvature.hvp.trials import Candidate, Fitting, Trials
from landscape.errors import MemoryLimitError
from landscape.linalg.operator import seeded

# Vectors in a block that is tried on a GPU.
_BLOCK = 8


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
        check_arguments(hvp, rows, columns, max_memory)
        self._problem = problem
        self._device = problem.like.device
        given = hvp if isinstance(hvp, HvpChoice) else None
        self._trials = Trials(self._device, max_memory=max_memory)
        # A strategy that fitted before may not fit now, or in what is allowed here.
        fits = given is not None and self._trials.fit(given, limited=max_memory is not None)
        self._given = given if fits else None
        asked = hvp.product if isinstance(hvp, HvpChoice) else "rows" if rows is not None else hvp
        # A graph that was recorded for many batches is recorded here too, within what is allowed.
        keeps = given is None or self._given is not None or given.product in RECORDED
        self._asked = asked if keeps else "auto"
        if self._asked == ReplayedTrace.name and self._given is None:
            self._asked = TracedProduct.name
        self._why = "asked for" if given is None else given.reason
        self._max_rows = rows if self._given is None else self._given.rows
        self.columns = columns if self._given is None else self._given.columns
        self._trials.watches = self._given is None
        self._floor = rank(self._asked)
        self._strategy: Product | None = None
        self._gradients: tuple[Tensor | None, ...] | None = None
        self._chunks: RowChunks | None = None
        self._traced: TracedProduct | None = None
        self.choice: HvpChoice | None = None

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
        if self._floor < rank("rows"):
            guard = partial(self._trials.guard, self._problem)
            evaluated = self._trials.guarded(
                "retained",
                None,
                lambda: twice_evaluated(self._problem, guard, reduces=True),
                watched=False,
            )
            if evaluated is not None:
                self._problem = evaluated.problem
                self._gradients = evaluated.gradients if self._floor == 0 else None
                return evaluated
            # No graph of the whole gradient fits.
            self._floor = rank("rows")
        # Chunk by chunk then, with ever smaller chunks until an evaluation fits.
        if self._asked == "rows" or self._problem.objective.rowwise:
            for size in self._sizes():
                self._chunks = self._trials.guarded(
                    "rows", size, lambda: RowChunks(self._problem, size)
                )
                if self._chunks is not None:
                    return self._chunks.pop_evaluated()
        raise MemoryLimitError(self._trials.nothing_fits(self._problem))

    def _evaluate_traced(self) -> Evaluated | None:
        """Evaluate by a traced graph.

        Returns None, and notes the failure as a trial, where no graph can be trusted.
        """
        asked, guard = self._asked, partial(self._trials.guard, self._problem)
        made = self._trials.guarded(
            asked,
            None,
            lambda: traced_evaluation(self._problem, compiles=asked == "compiled", guard=guard),
            optional=True,
            watched=False,
        )
        if made is None:
            # What is wrong with the loss itself is said by the evaluation that follows.
            self._asked, self._given, self._trials.watches = "auto", None, True
            return None
        evaluated, traced = made
        self._problem = evaluated.problem
        if asked == ReplayedTrace.name and self._given is not None:
            replayed = self._trials.guarded(
                asked, None, lambda: ReplayedTrace(traced), optional=True
            )
            self._strategy, self.choice = replayed or traced, self._given
            if replayed is None:
                self.choice = replace(
                    self._given,
                    product=traced.name,
                    trials=(*self._given.trials, *self._trials.made),
                )
        elif traced.name != asked:
            self._trials.made.append(Trial(product=asked, failure=traced.failure))
            self._asked, self._given, self._traced = traced.name, None, traced
            self._trials.watches = True
        elif self._given is not None:
            self._strategy, self.choice = traced, self._given
        else:
            self._traced = traced
        return evaluated

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
        strategy = self._strategy
        strategy = strategy.plain if isinstance(strategy, ReplayedGraph) else strategy
        if not isinstance(strategy, RetainedGraph):
            return False
        block = strategy.part(names)
        try:
            self._check_free()
            for row, product in zip(rows.split(1), out.split(1)):
                block.multiply(row, product)
            return True
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        del strategy, block
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
        fitting: list[Fitting] = []
        for candidate in self._candidates():
            made = self._trials.attempt(candidate, rows)
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
            raise MemoryLimitError(self._trials.nothing_fits(self._problem))
        best = min(fitting, key=lambda made: made.seconds)
        # The trial has computed this product, so the winner need not do so again.
        out.copy_(best.out)
        self._strategy, self._chunks = best.strategy, None
        self.choice = self._chosen(best, len(fitting))

    def _candidates(self) -> Iterator[Candidate]:
        """Yield the remaining strategies, from the most memory to the least.

        What a strategy holds is dropped before the next begins.
        """
        problem = self._problem
        traced, self._traced = self._traced, None
        if traced is not None:
            yield Candidate(traced.name, lambda: traced)
        gradients, self._gradients = self._gradients, None
        if gradients is not None:
            retained = RetainedGraph(problem, gradients)
            if self._asked == "jvp":
                yield Candidate(
                    "jvp", lambda: TangentOfGradient(problem, None if self._given else retained)
                )
            yield Candidate("retained", lambda: retained)
            del retained, gradients
        if self._floor <= rank("rebuilt"):
            yield Candidate("rebuilt", lambda: RebuiltGraph(problem))
        if problem.objective.rowwise:
            for size in self._sizes():
                yield Candidate("rows", lambda: self._chunks or RowChunks(problem, size), size)
                self._chunks = None

    def _sizes(self) -> list[int]:
        # The first is the size that is known to fit, that was asked for, or half of the batch.
        known = self._max_rows if self._chunks is None else self._chunks.rows
        return chunk_sizes(count_rows(self._problem.batch), known)

    def _replayed(self, fitting: Fitting, rows: Float[Tensor, "c n"]) -> list[Fitting]:
        """Test a strategy replayed as a CUDA graph, where the device can."""
        if not can_replay(self._device):
            return []
        plain = fitting.strategy
        if isinstance(plain, TracedProduct):
            candidate = Candidate(ReplayedTrace.name, lambda: ReplayedTrace(plain))
        else:
            assert isinstance(plain, RetainedGraph)
            candidate = Candidate(ReplayedGraph.name, lambda: ReplayedGraph(plain))
        made = self._trials.attempt(candidate, rows)
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
        single = self._trials.seconds_of(self.choice.product)
        strategy = self._strategy
        block = self._trials.attempt(
            Candidate(strategy.name, lambda: strategy, self.choice.rows), rows[:_BLOCK]
        )
        # A block pays if it takes less time per vector than a vector by itself.
        pays = block is not None and single is not None and block.seconds / len(out) < single
        self.columns = len(out) if pays else 1
        self.choice = replace(self.choice, columns=self.columns, trials=tuple(self._trials.made))
        return self.columns

    def _descend(self) -> None:
        """Leave a strategy that ran out of memory.

        The next is sought among those that take less, within what is free now.
        """
        assert self.choice is not None
        left = self.choice
        failure = "ran out of memory in a later product"
        self._trials.made.append(Trial(product=left.product, rows=left.rows, failure=failure))
        self._strategy = self._given = None
        forget_failed_backward(self._device)
        self._asked = "auto"
        # Row chunks can be halved. Every other strategy is followed by the next on the ladder.
        if left.rows is not None and left.rows > 1:
            self._max_rows, self._floor = -(-left.rows // 2), rank("rows")
        else:
            self._floor = rank(left.product) + 1
        self._trials.lower_limit()

    def _chosen(self, best: Fitting, num_fitting: int) -> HvpChoice:
        made: dict[str, Any] = {
            "product": best.trial.product,
            "rows": best.trial.rows,
            "columns": self.columns or 1,
            "allow_tf32": self._problem.allow_tf32,
        }
        if self._given is not None:
            return replace(self._given, **made)
        trials = self._trials
        return HvpChoice(
            **made,
            reason=trials.reason(best, num_fitting, asked=self._asked, why=self._why),
            limit=trials.watch.limit,
            held=trials.watch.live,
            peak=best.peak,
            trials=tuple(trials.made),
        )

    def _check_free(self) -> None:
        if self.choice is not None:
            # What a product takes beside what is kept between products.
            self._trials.check_free(self.choice.peak - self.choice.held)
