"""HVPs by a traced graph, recorded once for many batches and checkpoints.

They are those of a series that have the same shapes.

A graph can be stale: it holds what Python decided while it was recorded. Python code that decides
by values of tensors cannot be recorded, and says so. Otherwise, a graph is used for a batch only if
the network does the same operations as then, what its functions have captured is unchanged, and its
loss is that of the network to rounding. It is used for a checkpoint only if an HVP is that of the
retained graph. A graph that fails is not used again for that model.
Shapes: n = total size of the reduced parameters, c = vectors multiplied.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_flatten

from landscape.curvature.guards.explanations import no_checkpointing
from landscape.curvature.guards.fingerprint import captured_by
from landscape.curvature.hvp.evaluation import (
    Evaluated,
    Problem,
    check_gradients,
    confirmed_reduced,
    evaluated_once,
)
from landscape.curvature.hvp.memory import is_out_of_memory
from landscape.curvature.hvp.products import (
    SAME_OPERATIONS,
    Product,
    RetainedGraph,
    check_agreement,
)
from landscape.curvature.hvp.tables import reduction_of
from landscape.curvature.hvp.traced_graph import (
    BatchGraph,
    CannotTrace,
    TracedGraph,
    check_recordable,
    state_of_model,
    trace,
)
from landscape.errors import ObjectiveError, first_line
from landscape.linalg.operator import seeded
from landscape.memory import return_freed_memory

# Units of rounding, relative, by which the loss of a graph may differ from that of the network,
# whose operations it does in the same order: on a CPU they are the same to the bit. Not beside 1,
# as the loss of a network that fits its data is small.
_LOSS_ROUNDINGS = 64
# Kinds of problems that are remembered; the oldest goes.
_MAX_REMEMBERED = 16


class TracedProduct(Product):
    """The product graph of a batch, run as it was recorded.

    It is 1.1 to 1.2 times as fast as a retained graph on a CPU.
    """

    name = "traced"
    title = "double backward, traced graph"

    def __init__(self, problem: Problem, batch: BatchGraph) -> None:
        super().__init__(problem)
        self.batch = batch
        graph = batch.graph
        # Buffers for tables with their padding, which stays zero.
        with torch.inference_mode(False):
            self._padded = {
                name: problem.leaves[name].new_zeros(rows, *problem.leaves[name].shape[1:])
                for name, rows in graph.num_rows.items()
            }

    @property
    def failure(self) -> str:
        """Say why the graph is not compiled.

        "" where that was not tried.
        """
        return self.batch.graph.failure

    @torch.no_grad()
    def _multiply(self, rows: Float[Tensor, "c n"], out: Float[Tensor, "c n"]) -> None:
        for row, target in zip(rows.split(1), out.split(1)):
            self.write_padded(self.run(self.padded(row)), target)

    def run(self, vectors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Run the graph on a vector in the graph's own form.

        The vector is split by parameter with padded tables, and so are the HVPs that are returned.
        """
        return self._run(*self.batch.saved, *vectors)

    def padded(self, row: Float[Tensor, "1 n"]) -> list[Tensor]:
        """Convert a vector to the form that the graph takes.

        The next call may overwrite it.

        Raises:
            ObjectiveError: If what the graph reads was changed in place.
        """
        self.batch.check_unchanged()
        return [
            self._with_padding(name, piece)
            for name, piece in zip(self.batch.graph.names, self.split(row))
        ]

    def write_padded(self, products: Sequence[Tensor], out: Float[Tensor, "1 n"]) -> None:
        """Write the HVPs that the graph gives as a flat vector."""
        graph, given = self.batch.graph, iter(products)
        by_name = [next(given) if there else None for there in graph.with_product]
        self.write(
            [self._without_padding(name, product) for name, product in zip(graph.names, by_name)],
            out,
        )

    def _run(self, *inputs: Tensor) -> Sequence[Tensor]:
        return self.batch.graph.product(*inputs)

    def _with_padding(self, name: str, piece: Tensor) -> Tensor:
        padded = self._padded.get(name)
        if padded is None:
            return piece
        padded[: len(piece)] = piece
        return padded

    def _without_padding(self, name: str, product: Tensor | None) -> Tensor | None:
        return (
            product
            if product is None or name not in self._padded
            else product[: len(self.problem.leaves[name])]
        )


class CompiledProduct(TracedProduct):
    """The product graph, compiled.

    It is 1.9 times as fast as a retained graph of the whole parameters on a CPU.
    """

    name = "compiled"
    title = "double backward, compiled graph"

    def _run(self, *inputs: Tensor) -> Sequence[Tensor]:
        function = self.batch.graph.compiled
        assert function is not None
        return function(*inputs)


# --- use ------------------------------------------------------------------------------------------


def traced_evaluation(
    problem: Problem,
    *,
    compiles: bool,
    guard: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> tuple[Evaluated, TracedProduct]:
    """Evaluate a problem and compute its HVPs by a traced graph.

    The graph is recorded now, or was before.

    The first problem of a kind, and the first with every checkpoint, is evaluated as others are,
    and an HVP is compared with that of the retained graph. The loss of every batch is compared with
    that of the network.

    Args:
        compiles: Whether to compile the product graph; where that fails it is run as it is.
        guard: Makes the context of evaluations.

    Raises:
        CannotTrace: If there is no graph, or it does not give the same; what was found is
            remembered.
        ObjectiveError: As in `twice_evaluated`.
    """
    with problem.differentiating(), no_checkpointing(), guard():
        first = evaluated_once(problem)
    reduced = first.reduced()
    # An edited gradient is refused where it is taken.
    graph = None if first.edited else find(reduced, first.operations)
    # This graph was compared with these weights before: only the loss of this batch is new.
    if graph is not None and _is_checked(reduced, graph, compiles=compiles and not graph.failure):
        with guard():
            batch = graph.evaluate(reduced)
        _check_loss(reduced, batch.loss, first.loss)
        check_gradients(reduced.leaves, batch.gradients, first.loss)
        evaluated = Evaluated(
            first.loss, reduced, batch.gradients, first.looked_up, first.operations
        )
        return evaluated, _product(reduced, batch, compiles)
    with problem.differentiating(), no_checkpointing(), guard():
        evaluated = confirmed_reduced(first)
        vector, reference = _reference(evaluated)
    # Without the graph, which need not be in memory beside that which follows.
    evaluated = replace(
        evaluated, gradients=tuple(None if g is None else g.detach() for g in evaluated.gradients)
    )
    problem = evaluated.problem
    graph = (
        graph
        or find(problem, evaluated.operations)
        or _recorded(problem, evaluated.operations, guard)
    )
    with guard():
        batch = graph.evaluate(problem)
    _check_loss(problem, batch.loss, evaluated.loss)
    # Compiled at the first use, and tried once.
    if compiles and graph.compiled is None and not graph.failure:
        graph.compile(problem, batch)
    if compiles and graph.compiled is not None:
        _check_compiled(CompiledProduct(problem, batch), graph, vector, reference)
    product = _product(problem, batch, compiles)
    is_compiled = isinstance(product, CompiledProduct)
    if not is_compiled:
        _check_product(product, vector, reference)
    graph.checkpoints.setdefault(_owner(problem), set()).add((is_compiled, problem.contents))
    return evaluated, product


def _product(problem: Problem, batch: BatchGraph, compiles: bool) -> TracedProduct:
    kind = CompiledProduct if compiles and batch.graph.compiled is not None else TracedProduct
    return kind(problem, batch)


def _reference(evaluated: Evaluated) -> tuple[Float[Tensor, "1 n"], Float[Tensor, "1 n"]]:
    """Return a random vector and its HVP by the retained graph."""
    problem = evaluated.problem
    size = sum(leaf.numel() for leaf in problem.leaves.values())
    vector = torch.randn(1, size, generator=seeded(0), dtype=torch.float64).to(problem.like)
    product = torch.empty_like(vector)
    RetainedGraph(problem, evaluated.gradients).multiply(vector, product)
    return vector, product


def _recorded(
    problem: Problem, operations: int, guard: Callable[[], AbstractContextManager[Any]]
) -> TracedGraph:
    known = _remembered.get(kind_of(problem), ())
    assert not isinstance(known, str), "find has raised"
    padded = [graph.num_rows for graph in known]
    least_rows = {
        name: max(rows[name] for rows in padded) for name in (padded[0] if padded else ())
    }
    try:
        with guard():
            graph = trace(problem, least_rows, _made_of(problem, operations))
    except CannotTrace as error:
        remember(problem, str(error))
        raise
    # Recording keeps everything that a product computes until its end: 180 MiB for a small ViT.
    return_freed_memory()
    remember(problem, graph)
    return graph


def _check_loss(problem: Problem, loss: float, expected: float) -> None:
    """Refuse a graph whose loss is not that of the network.

    Such a graph holds something that has changed since it was recorded.

    Raises:
        CannotTrace: If so.
    """
    allowed = _LOSS_ROUNDINGS * torch.finfo(problem.like.dtype).eps * abs(expected)
    # Not `>`, which a NaN would pass.
    if not abs(loss - expected) <= allowed:
        reason = (
            f"its graph gives a loss of {loss:.9g} in place of {expected:.9g}: something that is "
            "no input of it has changed"
        )
        remember(problem, reason)
        raise CannotTrace(reason)


def _multiplied(product: TracedProduct, vector: Float[Tensor, "1 n"]) -> Float[Tensor, "1 n"]:
    with torch.inference_mode(False):
        out = torch.empty_like(vector)
        product.multiply(vector, out)
    return out


def _check_compiled(
    product: CompiledProduct,
    graph: TracedGraph,
    vector: Float[Tensor, "1 n"],
    reference: Float[Tensor, "1 n"],
) -> None:
    """Drop a compiled form that fails or gives a wrong HVP.

    The HVP is compared with that of the retained graph.
    """
    try:
        check_agreement(_multiplied(product, vector), reference, product.title, SAME_OPERATIONS)
    # Whatever compiled code raises: other strategies compute the same.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        graph.compiled, graph.failure = None, first_line(error)


def _check_product(
    product: TracedProduct, vector: Float[Tensor, "1 n"], reference: Float[Tensor, "1 n"]
) -> None:
    """Refuse a graph whose HVP is not that of the retained graph.

    Raises:
        CannotTrace: If so.
    """
    out = _multiplied(product, vector)
    try:
        check_agreement(out, reference, product.title, SAME_OPERATIONS)
    except ObjectiveError as error:
        remember(product.problem, str(error))
        raise CannotTrace(str(error)) from error


# --- what is remembered ---------------------------------------------------------------------------

# By kind of problem: graphs of different paddings, or why there is none. They hold no weights, and
# models of one kind, such as those of a series that is built anew, share them.
_remembered: "OrderedDict[Hashable, list[TracedGraph] | str]" = OrderedDict()


def kind_of(problem: Problem) -> Hashable:
    """Return the key of the problems that a graph serves.

    It is the same for all batches and checkpoints of a series that have the same shapes.
    """
    reduction = reduction_of(problem.objective)
    leaves, spec = tree_flatten(problem.batch)
    return (
        problem.code,
        str(spec),
        tuple(
            (leaf.shape, leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf)
            for leaf in leaves
        ),
        tuple(
            (name, leaf.shape)
            for name, leaf in problem.leaves.items()
            if name not in reduction.rows
        ),
        tuple(reduction.shapes.items()),
        tuple(reduction.constants),
        tuple(
            (name, tensor.shape, tensor.stride(), tensor.dtype)
            for name, tensor in state_of_model(problem).items()
        ),
        problem.like.dtype,
        str(problem.like.device),
        problem.allow_tf32,
    )


def _made_of(problem: Problem, operations: int) -> Hashable:
    """Fingerprint what a graph depends on beside its inputs.

    That is the operations of the network and what its functions have captured.
    """
    objective = problem.objective
    functions = (reduction_of(objective).forward, objective.loss)
    return operations, captured_by(functions, objective.module)


def find(problem: Problem, operations: int) -> TracedGraph | None:
    """Return the graph recorded for such problems; None if there is none.

    Args:
        operations: Hash of the operations of the network; see `Evaluated`.

    Raises:
        CannotTrace: If it was found that there can be none, or that what it is made of has changed.
    """
    check_recordable(problem.batch)
    known = _remembered.get(kind_of(problem))
    if isinstance(known, str):
        raise CannotTrace(known)
    if known and known[-1].made_of != _made_of(problem, operations):
        reason = (
            "the operations of the network, or values that its functions capture, have changed "
            "since its graph was recorded"
        )
        remember(problem, reason)
        raise CannotTrace(reason)
    # The newest is padded for most rows, of every table.
    newest = known[-1] if known else None
    fits = newest is not None and all(
        len(problem.leaves[name]) <= rows for name, rows in newest.num_rows.items()
    )
    return newest if fits else None


def remember(problem: Problem, graph: TracedGraph | str) -> None:
    """Keep a graph, or why there is none, for its kind.

    It serves later problems of that kind.
    """
    kind = kind_of(problem)
    before = _remembered.pop(kind, None)
    _remembered[kind] = (
        graph if isinstance(graph, str) else [*(before if isinstance(before, list) else ()), graph]
    )
    if len(_remembered) > _MAX_REMEMBERED:
        _remembered.popitem(last=False)


def forget_graphs() -> None:
    """Drop all graphs, and the reasons why there are none."""
    _remembered.clear()


def _is_checked(problem: Problem, graph: TracedGraph, *, compiles: bool) -> bool:
    """Tell whether an HVP of this model with these weights was compared.

    The HVP is compiled or not as asked, and the comparison was with that of a retained graph.
    """
    return (compiles, problem.contents) in graph.checkpoints.get(_owner(problem), ())


def _owner(problem: Problem) -> Any:
    """Return an object that lives as long as the model does."""
    module = problem.objective.module
    return reduction_of(problem.objective).forward if module is None else module
