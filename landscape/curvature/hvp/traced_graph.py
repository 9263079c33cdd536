"""Recording of loss, gradient and HVP as a graph, split by the vector.

It is recorded for a shape of batch, and split by what depends on the vector.

Parameters, batch and the model's other parameters and buffers are inputs of the graph, so that one
graph serves every batch and checkpoint of a series. The primal graph does not depend on the vector
and runs once a batch; the product graph runs for every vector and needs no autograd.
Shapes: n = total size of the reduced parameters, r = rows of a table that are looked up.
"""

import operator
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from landscape.curvature.hvp.compiled import CannotCompile, compiled
from landscape.curvature.hvp.evaluation import Problem
from landscape.curvature.hvp.memory import is_out_of_memory
from landscape.curvature.hvp.tables import reduction_of
from landscape.curvature.objective import Batch, given_state, own_state
from landscape.errors import ObjectiveError, first_line
from landscape.linalg.operator import seeded

# Rows that a table is padded to at least, and the share by which batches may look up more rows than
# the first one.
_MIN_ROWS, _SPARE = 64, 1.25
# Marks rows that pad a table; no token has this number.
_PADDING = torch.iinfo(torch.int64).max
_aten = torch.ops.aten
# Types that a batch may hold beside tensors: values are distinguished by their text.
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
# Hand the values of a tensor to Python past the recorder, which sees `item` and `bool` by itself.
_READS = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__}
_IDENTITIES = (_aten.detach.default, _aten.alias.default, _aten.lift_fresh_copy.default)


class CannotTrace(Exception):
    """Error where a product cannot be recorded as a graph.

    Or the graph would not be that of other batches.
    """


@dataclass(frozen=True, eq=False)
class Inputs:
    """Everything that a primal graph reads.

    Attributes:
        params: The reduced parameters, tables padded.
        rows: Rows of the reduced tables, padded with a number that no token has.
        constants: Parameters that the loss does not depend on.
        state: The model's other parameters, and its buffers.
        batch: Tensors of the batch.
    """

    params: Sequence[Tensor]
    rows: Sequence[Tensor]
    constants: Sequence[Tensor]
    state: Sequence[Tensor]
    batch: Sequence[Tensor]

    @property
    def flat(self) -> list[Tensor]:
        return [*self.params, *self.rows, *self.constants, *self.state, *self.batch]

    def like(self, flat: Sequence[Tensor]) -> "Inputs":
        """Put other tensors in the same places."""
        given = iter(flat)
        groups = (self.params, self.rows, self.constants, self.state, self.batch)
        return Inputs(*(tuple(islice(given, len(group))) for group in groups))


@dataclass(eq=False)
class TracedGraph:
    """The HVP for a model and shape of batch, as two graphs.

    Attributes:
        primal: Inputs -> loss, gradients and what the product graph needs of them.
        product: What the primal graph saves, and the pieces of a vector -> HVP by parameter.
        num_rows: Rows that each reduced table is padded to, by its name.
        names: Names of the reduced parameters, in flat order.
        with_gradient: Whether there is a gradient by each parameter.
        with_product: Whether there is an HVP by each parameter; elsewhere it is zero.
        made_of: Fingerprint of what is no input; see `landscape.curvature.hvp.traced`.
        compiled: The compiled form of the product graph; None where there is none.
        failure: Why the compiled form is not used; "" where it is, or was not asked for.
        checkpoints: For each model, whether the compiled form was used and fingerprints of the
            weights, with which an HVP was compared with that of a retained graph.
    """

    primal: fx.GraphModule
    product: fx.GraphModule
    num_rows: dict[str, int]
    names: tuple[str, ...]
    with_gradient: tuple[bool, ...]
    with_product: tuple[bool, ...]
    made_of: Hashable = None
    compiled: Callable[..., Sequence[Tensor]] | None = None
    failure: str = ""
    checkpoints: "weakref.WeakKeyDictionary[Any, set[tuple[bool, Hashable]]]" = field(
        default_factory=weakref.WeakKeyDictionary
    )

    def compile(self, problem: Problem, batch: "BatchGraph") -> None:
        """Compile the product graph; `failure` says why not.

        It is compiled for vectors and saved tensors like those of a batch.
        """
        # Contiguous, as the pieces of a vector are.
        try:
            with problem.differentiating():
                vectors = [
                    tensor.new_zeros(tensor.shape)
                    for tensor in inputs_of(problem, self.num_rows).params
                ]
                self.compiled = compiled(self.product, [*batch.saved, *vectors])
        except CannotCompile as error:
            self.failure = str(error)

    def evaluate(self, problem: Problem) -> "BatchGraph":
        """Run the primal graph on a batch."""
        inputs = inputs_of(problem, self.num_rows).flat
        with problem.differentiating(), torch.no_grad():
            # The derivatives are operations of the graph, so autograd has nothing left to do.
            loss, gradients, saved = self.primal(*inputs)
        given = iter(gradients)
        by_name = [next(given) if there else None for there in self.with_gradient]
        sizes = [
            len(leaf) if name in self.num_rows else None for name, leaf in problem.leaves.items()
        ]
        cut = tuple(g if g is None or size is None else g[:size] for g, size in zip(by_name, sizes))
        return BatchGraph(self, float(loss), cut, tuple(saved), _watched(saved, inputs))


@dataclass(frozen=True, eq=False)
class BatchGraph:
    """A traced graph with the results of its primal part on a batch.

    Attributes:
        loss: Loss in nats.
        gradients: Gradients by the reduced parameters, None where there is none.
        saved: Tensors that the product graph needs.
        watched: Those of `saved` that others can change in place, as they share memory with inputs
            such as tensors of the batch, and how often each had been changed.
    """

    graph: TracedGraph
    loss: float
    gradients: tuple[Tensor | None, ...]
    saved: tuple[Tensor, ...]
    watched: tuple[tuple[Tensor, int], ...]

    def __deepcopy__(self, memo: Any) -> "BatchGraph":
        """Return itself: nothing of it changes.

        Copied tensors would count their changes anew.
        """
        return self

    def check_unchanged(self) -> None:
        """Check that nothing the products depend on was changed in place.

        Autograd does so for the tensors that it saves.

        Raises:
            ObjectiveError: If something was.
        """
        if any(_version_of(tensor) != version for tensor, version in self.watched):
            raise ObjectiveError(
                "A tensor that the loss was computed from, such as the batch, was changed in place "
                "after the operator was built. Build it on a copy."
            )


def _watched(saved: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[tuple[Tensor, int], ...]:
    shared = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    return tuple(
        (tensor, _version_of(tensor))
        for tensor in saved
        if tensor.untyped_storage().data_ptr() in shared
    )


def _version_of(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


# --- inputs ---------------------------------------------------------------------------------------


def inputs_of(problem: Problem, num_rows: Mapping[str, int]) -> Inputs:
    """Collect the inputs of a graph whose tables have so many rows."""
    reduction = reduction_of(problem.objective)
    return Inputs(
        params=tuple(
            _padded(leaf.detach(), num_rows.get(name)) for name, leaf in problem.leaves.items()
        ),
        rows=tuple(_padded_rows(rows, num_rows[name]) for name, rows in reduction.rows.items()),
        constants=tuple(reduction.constants.values()),
        state=tuple(state_of_model(problem).values()),
        batch=_batch_tensors(problem.batch),
    )


def _padded(leaf: Tensor, num_rows: int | None) -> Tensor:
    if num_rows is None or num_rows == len(leaf):
        return leaf
    return torch.cat([leaf, leaf.new_zeros(num_rows - len(leaf), *leaf.shape[1:])])


def _padded_rows(rows: Int64[Tensor, " r"], num_rows: int) -> Int64[Tensor, " p"]:
    # Larger than every index and at the end, so that the rows stay ascending for a binary search.
    return torch.cat([rows, rows.new_full((num_rows - len(rows),), _PADDING)])


def state_of_model(problem: Problem) -> dict[str, Tensor]:
    """Return the model's undifferentiated parameters and its buffers, by name."""
    module = problem.objective.module
    return (
        {}
        if module is None
        else own_state(module, {**problem.leaves, **reduction_of(problem.objective).constants})
    )


def _batch_tensors(batch: Batch) -> tuple[Tensor, ...]:
    leaves, _ = tree_flatten(batch)
    # Inference tensors do not tell whether they were changed in place.
    return tuple(
        leaf.clone() if leaf.is_inference() else leaf for leaf in leaves if isinstance(leaf, Tensor)
    )


def check_recordable(batch: Batch) -> None:
    """Refuse a batch that holds anything but tensors and plain values.

    Tensors are inputs of the graph, plain values are told apart by their text.

    Raises:
        CannotTrace: If so.
    """
    for leaf in tree_flatten(batch)[0]:
        if not isinstance(leaf, (Tensor, *_PLAIN)):
            raise CannotTrace(f"its batch holds a {type(leaf).__name__}, which may hide tensors")


def _with_tensors(batch: Batch, tensors: Sequence[Tensor]) -> Batch:
    leaves, spec = tree_flatten(batch)
    given = iter(tensors)
    return tree_unflatten(
        [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec
    )


# --- recording ------------------------------------------------------------------------------------


def trace(problem: Problem, least_rows: Mapping[str, int], made_of: Hashable = None) -> TracedGraph:
    """Record the HVP of a problem of reduced parameters.

    Args:
        least_rows: Rows to pad tables to at least, by their names.
        made_of: See `TracedGraph`.

    Raises:
        CannotTrace: If it cannot be recorded; says why.
        MemoryError: If memory runs out.
    """
    check_recordable(problem.batch)
    reduction = reduction_of(problem.objective)
    num_rows = {
        name: max(least_rows.get(name, 0), _rows_for(len(rows), reduction.shapes[name][0]))
        for name, rows in reduction.rows.items()
    }
    try:
        with problem.differentiating():
            inputs = inputs_of(problem, num_rows)
            recorder = _Recorder(problem, inputs)
            recorded = _recorded(recorder, inputs)
        _check(recorded)
        simplify(recorded)
        primal, product = _split(recorded, len(inputs.params))
    except Exception as error:
        if is_out_of_memory(error) or isinstance(error, CannotTrace):
            raise
        raise CannotTrace(first_line(error)) from error
    flags = recorder.with_gradient, recorder.with_product
    return TracedGraph(primal, product, num_rows, tuple(problem.leaves), *flags, made_of=made_of)


def _recorded(recorder: "_Recorder", inputs: Inputs) -> fx.GraphModule:
    # Not the vector with which the graph is checked.
    generator = seeded(1)
    vectors = [
        torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf)
        for leaf in inputs.params
    ]
    # Recording tells tensors apart by identity, so that one that is given twice would count as one
    # input.
    flat = [
        tensor.detach().requires_grad_(tensor.requires_grad) for tensor in [*inputs.flat, *vectors]
    ]
    # make_fx notes the shape of every value in a fake tensor, each of a new mode where it finds
    # none: half of the time.
    shapes = TracingContext(FakeTensorMode(allow_fallback_kernels=True))
    with tracing(shapes):
        with _Unread():
            recorded = make_fx(recorder, tracing_mode="real")(*flat)
        if any(map(_mutates, recorded.graph.nodes)):
            # What is changed in place could be used again for the next vector.
            recorded = make_fx(functionalize(recorded, remove="mutations"))(*flat)
    return recorded


def _rows_for(num_rows: int, whole: int) -> int:
    """Return how many rows to pad a table to.

    It is a power of two with some to spare, for a table of `whole` rows of which `num_rows` are
    looked up.
    """
    # 1 << (m - 1).bit_length() is the least power of two that is not below m. Few sizes mean few
    # graphs.
    return min(whole, max(_MIN_ROWS, 1 << (int(_SPARE * num_rows) - 1).bit_length()))


class _Unread(TorchFunctionMode):
    """Mode that hides the values of tensors from Python during recording.

    Kernels within an operation may have them.

    Raises:
        CannotTrace: If a loss asks for them.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READS and get_proxy_mode() is not None:
            raise CannotTrace(f"it reads the values of a tensor in Python ({func.__name__})")
        return func(*args, **(kwargs or {}))


class _Recorder:
    """What is recorded: loss, gradient and HVP as a function of tensors alone.

    Attributes:
        with_gradient, with_product: See `TracedGraph`; known after the call.
    """

    def __init__(self, problem: Problem, inputs: Inputs) -> None:
        self._problem, self._inputs = problem, inputs
        self.with_gradient: tuple[bool, ...] = ()
        self.with_product: tuple[bool, ...] = ()

    def __call__(self, *flat: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        problem, inputs = self._problem, self._inputs.like(flat)
        vectors = flat[len(inputs.flat) :]
        leaves = {
            name: tensor.detach().requires_grad_()
            for name, tensor in zip(problem.leaves, inputs.params)
        }
        reduction = reduction_of(problem.objective)
        rows = dict(zip(reduction.rows, inputs.rows))
        constants = {
            name: tensor.detach().requires_grad_()
            for name, tensor in zip(reduction.constants, inputs.constants)
        }
        reading = replace(reduction, rows=rows, constants=constants, checks=False)
        objective = replace(problem.objective, forward=reading)
        state = dict(zip(state_of_model(problem), inputs.state))
        with given_state(objective.module, state):
            loss = objective.data_term(leaves, _with_tensors(problem.batch, inputs.batch))
        gradients = torch.autograd.grad(
            loss, list(leaves.values()), create_graph=True, allow_unused=True
        )
        pairs = [
            (g, vector)
            for g, vector in zip(gradients, vectors)
            if g is not None and g.requires_grad
        ]
        products: Sequence[Tensor | None] = [None] * len(leaves)
        if pairs:
            products = torch.autograd.grad(
                [g for g, _ in pairs],
                list(leaves.values()),
                [vector for _, vector in pairs],
                allow_unused=True,
            )
        self.with_gradient = tuple(g is not None for g in gradients)
        self.with_product = tuple(h is not None for h in products)
        return (
            loss.detach(),
            [g.detach() for g in gradients if g is not None],
            [h for h in products if h is not None],
        )


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _check(recorded: fx.GraphModule) -> None:
    """Refuse a graph that is not a function of its inputs.

    Raises:
        CannotTrace: If it draws random numbers, changes a tensor in place, or calls what cannot be
            looked into.
    """
    for node in recorded.graph.nodes:
        is_known = isinstance(node.target, OpOverload) or node.target is operator.getitem
        if node.op in ("call_module", "call_method") or (
            node.op == "call_function" and not is_known
        ):
            raise CannotTrace(f"it calls {node.target}")
        if (
            isinstance(node.target, OpOverload)
            and torch.Tag.nondeterministic_seeded in node.target.tags
        ):
            raise CannotTrace(f"it draws random numbers ({node.target})")
        if _mutates(node):
            raise CannotTrace(f"it changes a tensor in place ({node.target})")


def simplify(recorded: fx.GraphModule) -> None:
    """Drop what only autograd needed, and compute equal things once."""
    graph = recorded.graph
    # Equal operations on equal arguments give equal results: `_check` has refused random numbers
    # and changes in place.
    known: dict[Hashable, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        # An identity is its argument, and a node with the operation and arguments of an earlier one
        # is that one: common subexpressions are computed once.
        twin = node.args[0] if node.target in _IDENTITIES else known.setdefault(_key_of(node), node)
        if twin is not node:
            node.replace_all_uses_with(twin)
            graph.erase_node(node)
    graph.eliminate_dead_code()
    recorded.recompile()


def _key_of(node: fx.Node) -> Hashable:
    """Return what a node computes: its operation and arguments.

    Arguments are told apart by type too, as 1 and 1.0 are, and 0.0 and -0.0.
    """
    arguments, spec = tree_flatten((node.args, node.kwargs))
    return node.target, str(spec), tuple(_text_of(argument) for argument in arguments)


def _text_of(argument: Any) -> Hashable:
    return argument if isinstance(argument, fx.Node) else (type(argument), repr(argument))


def _split(recorded: fx.GraphModule, num_vectors: int) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Split a recorded graph into the primal and the product graph.

    See `TracedGraph`.
    """
    nodes = list(recorded.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    vectors = inputs[len(inputs) - num_vectors :]
    (loss, gradients, products), *_ = nodes[-1].args
    # What depends on the vector goes into the product graph, everything else runs once a batch.
    moving = set(vectors)
    for node in nodes:
        if node.op != "output" and not moving.isdisjoint(node.all_input_nodes):
            moving.add(node)
    # What passes from the one graph to the other is saved in between.
    needed = [source for node in nodes if node in moving for source in node.all_input_nodes]
    saved = [node for node in dict.fromkeys([*needed, *products]) if node not in moving]
    primal, product = fx.Graph(), fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node.op != "output" and node not in moving:
            values[node] = primal.node_copy(node, values.__getitem__)
    primal.output(
        (values[loss], [values[node] for node in gradients], [values[node] for node in saved])
    )
    values = {node: product.placeholder(f"saved_{i}") for i, node in enumerate(saved)}
    values |= {node: product.placeholder(f"vector_{i}") for i, node in enumerate(vectors)}
    for node in nodes:
        if node.op != "output" and node in moving and node not in values:
            values[node] = product.node_copy(node, values.__getitem__)
    product.output(tuple(values[node] for node in products))
    modules = fx.GraphModule(recorded, primal), fx.GraphModule(recorded, product)
    for module in modules:
        module.graph.eliminate_dead_code()
        module.recompile()
    return modules
