"""Solvers for several batches at once, whose vectors are multiplied together.

A vmapped call of the product graph multiplies a vector of each batch.

For a GPU, where the product of a small batch takes longer to launch than to compute; a CPU has
nothing to gain. It has not run on a GPU yet, so a vmapped graph is compared with the plain product
before it is used. Every solver runs unchanged in a thread of its own until it needs a product. One
thread runs at a time: the state of torch in which products are computed belongs to the process.
Shapes: n = total size of the reduced parameters, b = batches.
"""

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, fx
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

from landscape.curvature.hvp import replayed
from landscape.curvature.hvp.choice import SHARE
from landscape.curvature.hvp.memory import free_memory, is_out_of_memory
from landscape.curvature.hvp.products import SAME_OPERATIONS, Product, check_agreement
from landscape.curvature.hvp.replayed import StaticProduct, can_replay
from landscape.curvature.hvp.tables import reduction_of
from landscape.curvature.hvp.traced import TracedProduct
from landscape.curvature.hvp.traced_graph import BatchGraph, TracedGraph, simplify, state_of_model
from landscape.curvature.hvp.unchecked import UncheckedHessian
from landscape.errors import ObjectiveError, first_line
from landscape.linalg.operator import seeded

# Copies of the saved tensors of a batch in memory: its own, those stacked with others, as much
# for what a product makes, and once more where a recording has buffers for them.
_COPIES, _COPIES_REPLAYED = 3, 4
_aten = torch.ops.aten
# Reshapes that need memory laid out as it was recorded, which that of several batches need not be.
_VIEWS = (_aten.view.default, _aten._unsafe_view.default)

# Products by parameter of stacked vectors by parameter.
_Call = Callable[[Sequence[Tensor]], Sequence[Tensor]]
_Operator = TypeVar("_Operator", bound=UncheckedHessian)
_Result = TypeVar("_Result")


def solve_in_lockstep(
    operators: Sequence[_Operator], solve: Callable[[int, _Operator], _Result]
) -> "list[_Result | Exception]":
    """Call `solve` for every operator, and multiply their waiting vectors together.

    The vectors of all runs that wait for a product are multiplied in one vmapped call.

    A run that is left alone multiplies by itself. So do all runs where the product graph cannot be
    vmapped, or memory runs out. The choice of every operator then has a trial "lockstep" that says
    why.

    Args:
        operators: Hessians of batches of one model, whose products are those of one traced graph.
        solve: Takes the number of an operator and the operator, such as lambda i, A: eigsh(A, 5,
            seed=seeds[i]). Must hold no lock while it multiplies.

    Returns:
        In order, what each call returned, or the exception that it raised.

    Raises:
        ValueError: If an operator is not traced, or shares no graph or weights with the first.
        ObjectiveError, MemoryLimitError: As in `choose` of an operator.
    """
    strategies = [_traced_product(operator) for operator in operators]
    _check_shared(strategies)
    meeting = _Meeting(strategies)
    runs = [
        _Run(partial(solve, i, operator), f"lockstep-{i}") for i, operator in enumerate(operators)
    ]
    with ExitStack() as stack:
        for operator, strategy, run in zip(operators, strategies, runs):
            stack.enter_context(operator.engine.lent(_HandedIn(strategy, run)))
        _conduct(runs, meeting)
    for operator in operators if meeting.failure else ():
        operator.engine.note("lockstep", meeting.failure)
    return [run.outcome() for run in runs]


def batches_that_fit(
    operator: UncheckedHessian, *, num_vectors: int, free: int | None = None
) -> int:
    """Count batches that memory holds in lockstep; at least 1.

    The batches are like that of the operator.

    Args:
        operator: Its products are those of a traced graph.
        num_vectors: Krylov vectors that are kept for each batch.
        free: Bytes that are free; None for what the device has.

    Raises:
        ValueError: If the operator is not traced.
        ObjectiveError, MemoryLimitError: As in `choose` of the operator.
    """
    strategy = _traced_product(operator)
    saved = [
        tensor for tensor, moves in zip(strategy.batch.saved, depends_on_batch(strategy)) if moves
    ]
    # A stack holds every number of a view that repeats some.
    vectors = num_vectors * operator.dtype.itemsize * (operator.n - operator.num_unused)
    copies = _COPIES_REPLAYED if can_replay(operator.device) else _COPIES
    needed = copies * sum(tensor.numel() * tensor.element_size() for tensor in saved) + vectors
    available = SHARE.get(operator.device.type, min(SHARE.values())) * (
        free_memory(operator.device) if free is None else free
    )
    return max(1, int(available // max(1, needed)))


def depends_on_batch(strategy: TracedProduct) -> tuple[bool, ...]:
    """Tell for each saved tensor whether it depends on the batch.

    To depend on which rows of tables the batch looks up counts too. Others depend on weights alone.
    """
    graph, reduction = strategy.batch.graph, reduction_of(strategy.problem.objective)
    fixed = len(reduction.constants) + len(state_of_model(strategy.problem))
    inputs = (
        [name in graph.num_rows for name in graph.names]
        + [True] * len(reduction.rows)
        + [False] * fixed
    )
    nodes = list(graph.primal.graph.nodes)
    placeholders = [node for node in nodes if node.op == "placeholder"]
    inputs += [True] * (len(placeholders) - len(inputs))
    # What has an input that moves with the batch moves too; nodes are in the order of computation.
    moving = {node for node, moves in zip(placeholders, inputs) if moves}
    for node in nodes:
        if not moving.isdisjoint(node.all_input_nodes):
            moving.add(node)
    _, _, saved = nodes[-1].args[0]
    return tuple(node in moving for node in saved)


def _traced_product(operator: UncheckedHessian) -> TracedProduct:
    choice = operator.choose()
    strategy = operator.engine.strategy
    if not isinstance(strategy, TracedProduct):
        raise ValueError(
            f"Lockstep needs operators whose product is traced, got {choice.title}; ask for "
            "hvp='traced'."
        )
    return strategy


def _check_shared(strategies: Sequence[TracedProduct]) -> None:
    """Refuse operators that cannot be multiplied by one call.

    Raises:
        ValueError: If so.
    """
    for strategy in strategies[1:]:
        if strategy.batch.graph is not strategies[0].batch.graph:
            raise ValueError(
                "Lockstep needs operators that share a traced graph: of one model and loss, and of "
                "batches of the same shapes whose rows of tables its padding holds."
            )
        for mine, first, moves in zip(
            strategy.batch.saved, strategies[0].batch.saved, depends_on_batch(strategies[0])
        ):
            # `_stacked` takes these tensors from the first operator, for all.
            if not moves and not torch.equal(mine, first):
                raise ValueError("Lockstep needs operators of the same weights, got others.")


# --- threads --------------------------------------------------------------------------------------


class _Abandoned(BaseException):
    """Ends a run for whose result nobody waits any more."""


class _Run(Generic[_Result]):
    """Work in a thread of its own, which runs only while `resume` waits for it."""

    def __init__(self, work: Callable[[], _Result], name: str) -> None:
        self._work = work
        self._told: SimpleQueue[Tensor | BaseException | None] = SimpleQueue()
        self._said: SimpleQueue[Tensor | None] = SimpleQueue()
        self._results: list[_Result] = []
        self._error: BaseException | None = None
        self._modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        self._stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def resume(self, answer: Tensor | BaseException | None) -> Tensor | None:
        """Hand over an awaited product, and return the next vector.

        An exception in its place is raised in the thread. Returns None at the end.
        """
        if self._thread.ident is None:
            self._thread.start()
        # Each side waits for the queue of the other, so that only one of the two threads runs.
        self._told.put(answer)
        return self._said.get()

    @property
    def is_running_here(self) -> bool:
        """Tell whether the calling thread is that of this run."""
        return threading.current_thread() is self._thread

    def exchange(self, vector: Float[Tensor, "1 n"]) -> Float[Tensor, "1 n"]:
        """Hand in a vector and wait for its product.

        To be called in the thread of the run.

        Raises:
            Exception: What the product raised.
        """
        self._said.put(vector)
        return self._heard()

    def abandon(self) -> None:
        """End the thread where it waits, and wait until it has."""
        if self._thread.ident is not None:
            self._told.put(_Abandoned())
            self._thread.join()

    def outcome(self) -> "_Result | Exception":
        """Return what the work returned, or the exception that it raised."""
        # Its traceback leads here, and must not keep itself alive.
        error, self._error = self._error, None
        if error is None:
            return self._results[0]
        if not isinstance(error, Exception):
            raise error
        return error

    def _heard(self) -> Tensor:
        answer = self._told.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer  # type: ignore[return-value]

    def _main(self) -> None:
        try:
            self._heard()
            grad, inference = self._modes
            # What belongs to a thread, as in the one that waits.
            with (
                torch.cuda.stream(self._stream),
                torch.inference_mode(inference),
                torch.set_grad_enabled(grad),
            ):
                self._results.append(self._work())
        except BaseException as error:
            self._error = error
        finally:
            self._said.put(None)


class _HandedIn(Product):
    """Products that another thread computes.

    The state of torch stays that of the caller.
    """

    def __init__(self, plain: TracedProduct, run: _Run) -> None:
        super().__init__(plain.problem)
        self._plain, self._run = plain, run

    def multiply(self, rows: Float[Tensor, "c n"], out: Float[Tensor, "c n"]) -> None:
        if not self._run.is_running_here:
            # Another run multiplies by this operator, beside its own.
            self._plain.multiply(rows, out)
            return
        for row, target in zip(rows.split(1), out.split(1)):
            target.copy_(self._run.exchange(row))

    def _multiply(self, rows: Float[Tensor, "c n"], out: Float[Tensor, "c n"]) -> None:
        raise NotImplementedError


def _conduct(runs: Sequence[_Run], meeting: "_Meeting") -> None:
    """Resume every run to its next vector, and answer all of them.

    This goes on until all runs have ended.
    """
    # A run begins without a product to take. Each round resumes those that wait, and drops those
    # that hand in nothing more.
    answers: Mapping[int, Tensor | BaseException | None] = dict.fromkeys(range(len(runs)))
    try:
        while answers:
            handed_in = {index: runs[index].resume(answer) for index, answer in answers.items()}
            answers = meeting.multiply(
                {index: row for index, row in handed_in.items() if row is not None}
            )
    finally:
        for run in runs:
            run.abandon()


# --- products -------------------------------------------------------------------------------------


class _Meeting:
    """Multiplies a vector of each of several batches.

    Attributes:
        failure: Why the batches are multiplied one by one; "" where they are not.
    """

    def __init__(self, strategies: Sequence[TracedProduct]) -> None:
        self._strategies = strategies
        self.failure = ""
        self._call: _Call | None = None
        if len(strategies) < 2:
            return
        try:
            self._call = self._checked_call()
        # Whatever vmap, a kernel without a rule for it, or an allocator raises: one by one is as
        # right.
        except Exception as error:
            self._give_up(error)

    def multiply(
        self, rows: Mapping[int, Float[Tensor, "1 n"]]
    ) -> dict[int, Tensor | BaseException | None]:
        """Return the product of each vector, or what it raises."""
        if self._call is not None and len(rows) > 1:
            try:
                return dict(self._multiply_together(self._call, rows))
            except Exception as error:
                if not is_out_of_memory(error):
                    return dict.fromkeys(rows, error)
                self._give_up(error)
        return {index: self._multiply_alone(index, row) for index, row in rows.items()}

    def _multiply_alone(self, index: int, row: Float[Tensor, "1 n"]) -> Tensor | BaseException:
        out = torch.empty_like(row)
        try:
            self._strategies[index].multiply(row, out)
        except Exception as error:
            return error
        return out

    def _multiply_together(
        self, call: "_Call", rows: Mapping[int, Float[Tensor, "1 n"]]
    ) -> dict[int, Tensor]:
        """Multiply all vectors in one call.

        A batch without a vector takes part with the vector of another; its product is not used.
        """
        spare = next(iter(rows))
        with self._strategies[0].problem.differentiating(), torch.no_grad():
            # The graph is made for all batches, so one whose solver has ended is given a vector
            # too. Copies, because `padded` returns buffers that its next call overwrites.
            vectors = [
                [piece.clone() for piece in self._padded(i, rows, spare)]
                for i in range(len(self._strategies))
            ]
            products = call([torch.stack(pieces) for pieces in zip(*vectors)])
            outs = {index: torch.empty_like(row) for index, row in rows.items()}
            for index, out in outs.items():
                self._strategies[index].write_padded([product[index] for product in products], out)
        return outs

    def _padded(self, index: int, rows: Mapping[int, Tensor], spare: int) -> list[Tensor]:
        return (
            self._strategies[index].padded(rows[index])
            if index in rows
            else self._strategies[spare].padded(rows[spare])
        )

    def _stacked(self) -> list[Tensor]:
        """Stack the saved tensors of all batches.

        Those that depend on weights alone are not repeated.
        """
        moves = depends_on_batch(self._strategies[0])
        by_tensor = zip(*(strategy.batch.saved for strategy in self._strategies))
        return [
            torch.stack(tensors) if moving else tensors[0]
            for moving, tensors in zip(moves, by_tensor)
        ]

    def _checked_call(self) -> "_Call":
        """Return the vmapped graph, once its products agree with plain ones.

        The product of each batch is compared, or of the first alone where the graph is known.

        Raises:
            ObjectiveError: If it is not.
        """
        count = len(self._strategies)
        known = _known.setdefault(self._strategies[0].batch.graph, {})
        recorded, is_new = known.get(count), count not in known
        if isinstance(recorded, str):
            raise ObjectiveError(recorded)
        saved = self._stacked()
        recorded = recorded or _Recorded(self._vmapped(saved))
        call = (
            self._replayed(recorded, saved)
            if can_replay(self._device)
            else partial(_run, recorded.graph, saved)
        )
        generator, like = seeded(0), self._strategies[0].problem.like
        rows = {
            index: torch.randn(1, strategy.size, generator=generator, dtype=torch.float64).to(like)
            for index, strategy in enumerate(self._strategies)
        }
        products = self._multiply_together(call, rows)
        for index in rows if is_new else (0,):
            expected = torch.empty_like(rows[index])
            self._strategies[index].multiply(rows[index], expected)
            check_agreement(products[index], expected, "vmapped product graph", SAME_OPERATIONS)
        known[count] = recorded
        return call

    def _vmapped(self, saved: Sequence[Tensor]) -> fx.GraphModule:
        """Build the product graph of several batches."""
        first = self._strategies[0]
        # Saved tensors that differ between batches are stacked; those of the weights are shared.
        in_dims = (
            *(0 if moves else None for moves in depends_on_batch(first)),
            *(0 for _ in first.leaves),
        )
        with first.problem.differentiating(), torch.no_grad():
            product = vmap(_with_reshapes(first.batch.graph.product), in_dims=in_dims)
            vmapped = make_fx(product, tracing_mode="real")(*saved, *self._zeros())
        simplify(vmapped)
        return vmapped

    def _zeros(self) -> list[Tensor]:
        """Build vectors of zeros for all batches."""
        first, like = self._strategies[0], self._strategies[0].problem.like
        pieces = first.padded(torch.zeros(1, first.size, dtype=like.dtype, device=like.device))
        return [torch.stack([piece] * len(self._strategies)) for piece in pieces]

    def _replayed(self, recorded: "_Recorded", saved: Sequence[Tensor]) -> "_Call":
        """Return the vmapped graph as a CUDA graph, or as it is.

        It is recorded once for each number of batches. Where recording fails, the vmapped graph
        runs as it is.
        """
        batch = replace(self._strategies[0].batch, saved=tuple(saved))
        with self._strategies[0].problem.differentiating(), torch.no_grad():
            if recorded.static is None and not recorded.failure:
                try:
                    recorded.static = StaticProduct(
                        recorded.graph, batch, self._zeros(), replayed.cuda_graph
                    )
                except RuntimeError as error:
                    if is_out_of_memory(error):
                        raise
                    recorded.failure = str(error)
        return (
            partial(_run, recorded.graph, saved)
            if recorded.static is None
            else partial(_replay, recorded.static, batch)
        )

    @property
    def _device(self) -> torch.device:
        return self._strategies[0].problem.like.device

    def _give_up(self, error: Exception) -> None:
        """Multiply the batches separately from now on.

        This holds for later batches too, unless memory was the reason.
        """
        self._call = None
        self.failure = first_line(error)
        if not is_out_of_memory(error):
            _known.setdefault(self._strategies[0].batch.graph, {})[len(self._strategies)] = (
                self.failure
            )


@dataclass(eq=False)
class _Recorded:
    """The product graph of so many batches, and its recording.

    Attributes:
        failure: Why it could not be recorded as a CUDA graph; "" where that was not tried, or
            worked.
    """

    graph: fx.GraphModule
    static: StaticProduct | None = None
    failure: str = ""


# By number of batches, or why there is none. They hold no traced graph, so that one which is
# forgotten goes.
_known: "weakref.WeakKeyDictionary[TracedGraph, dict[int, _Recorded | str]]" = (
    weakref.WeakKeyDictionary()
)


def _run(
    graph: fx.GraphModule, saved: Sequence[Tensor], vectors: Sequence[Tensor]
) -> Sequence[Tensor]:
    products: Sequence[Tensor] = graph(*saved, *vectors)
    return products


def _replay(
    static: StaticProduct, batch: BatchGraph, vectors: Sequence[Tensor]
) -> Sequence[Tensor]:
    with static.lock:
        return [product.clone() for product in static.multiply(batch, vectors)]


def _with_reshapes(product: fx.GraphModule) -> fx.GraphModule:
    """Copy a graph with its views replaced by reshapes, which may copy."""
    graph = fx.Graph()
    output = graph.graph_copy(product.graph, {})
    graph.output(output)
    for node in graph.nodes:
        if node.target in _VIEWS:
            node.target = _aten.reshape.default
    return fx.GraphModule(product, graph)
