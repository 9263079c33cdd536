"""Evaluation of an objective in the arithmetic that second derivatives need.

Shapes: n = total size of the parameters.
"""

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from landscape.curvature.guards.explanations import no_checkpointing, overwritten_in_backward
from landscape.curvature.guards.fingerprint import code_of, contents_of
from landscape.curvature.guards.graph import differentiable_gradient, refuse_edited_gradients
from landscape.curvature.guards.nodes import (
    ModuleTimeline,
    module_timeline,
    operations_behind,
    rows_looked_up,
    unreached,
)
from landscape.curvature.guards.preconditions import check_loss, check_same_loss, reading_only
from landscape.curvature.hvp.memory import is_out_of_memory
from landscape.curvature.hvp.tables import TableInUse, reduced, reduction_of
from landscape.curvature.objective import Batch, Objective, Params, own_state
from landscape.errors import ObjectiveError
from landscape.kernels.first_order import second_order
from landscape.linalg.vectors import all_finite
from landscape.threads import single_openmp_thread

# Multiplications of a forward pass that take one core some milliseconds.
_SMALL = 10**8


@dataclass(frozen=True, eq=False, kw_only=True)
class Problem:
    """What is differentiated, and where.

    Attributes:
        leaves: The parameters as leaf tensors that require gradients, by name.
        whole: The problem that this one was reduced from; see `landscape.curvature.hvp.tables`.
        allow_tf32: Let a GPU round the factors of matrix products and convolutions to 10 bits; off
            by default, because of what cancels in a second derivative such numbers leave few
            digits.
    """

    objective: Objective
    leaves: Params
    batch: Batch
    allow_tf32: bool = False
    whole: "Problem | None" = None

    @cached_property
    def code(self) -> Hashable:
        """Fingerprint of what is computed; see `code_of`."""
        return code_of(self.objective) if self.whole is None else self.whole.code

    @cached_property
    def contents(self) -> Hashable:
        """Fingerprint all values: leaves, the model's other parameters, buffers."""
        if self.whole is not None:
            return self.whole.contents
        module = self.objective.module
        others = {} if module is None else own_state(module, self.leaves)
        return contents_of([*self.leaves.values(), *others.values()])

    @property
    def like(self) -> Tensor:
        """Return a tensor of the problem's type and device."""
        return next(iter(self.leaves.values()))

    @contextmanager
    def differentiating(self) -> Iterator[None]:
        """Set the state of torch in which everything here is computed.

        Global random state is restored at the end.
        """
        devices = [self.like.device] if self.like.device.type == "cuda" else []
        with ExitStack() as stack:
            # The caller may be in inference mode or under no_grad, where nothing can be
            # differentiated.
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(torch.random.fork_rng(devices))
            stack.enter_context(plain_arithmetic(allow_tf32=self.allow_tf32))
            if self._is_small:
                stack.enter_context(single_openmp_thread())
            yield

    @cached_property
    def _is_small(self) -> bool:
        """Tell whether threads would wait longer than they compute.

        Positions of a row, such as pixels, share parameters; numbers of the batch are at least as
        many as positions, so the product is a bound of the multiplications of a forward pass.
        """
        numbers = sum(leaf.numel() for leaf in tree_leaves(self.batch) if isinstance(leaf, Tensor))
        return numbers * sum(leaf.numel() for leaf in self.leaves.values()) < _SMALL


@dataclass(frozen=True, eq=False)
class Evaluated:
    """Results of a confirmed evaluation of a problem.

    Attributes:
        loss: The data term, in nats.
        problem: Problem that was differentiated: the given one itself, or the same with embedding
            tables reduced to the rows that are looked up and without parameters that the loss does
            not depend on; see `landscape.curvature.hvp.tables`.
        gradients: Gradient by the leaves of `problem`, None where the loss does not depend on one.
        looked_up: Rows that are looked up of parameters used only as embedding tables.
        operations: Hash of the operations in the graph of the loss, in order; 0 where there is no
            graph of all of it.
    """

    loss: float
    problem: Problem
    gradients: tuple[Tensor | None, ...]
    looked_up: dict[str, Int64[Tensor, " rows"]]
    operations: int = 0


@contextmanager
def plain_arithmetic(*, allow_tf32: bool = False) -> Iterator[None]:
    """Use twice differentiable attention and scans, and full float32 products.

    The kernels of attention and scans are those that can be differentiated twice; every product
    uses all bits of float32, unless `allow_tf32`.
    """
    with float32_products(allow_tf32=allow_tf32), sdpa_kernel(SDPBackend.MATH), second_order():
        yield


@contextmanager
def float32_products(*, allow_tf32: bool = False) -> Iterator[None]:
    """Use all bits of float32 in matrix products and convolutions, unless `allow_tf32`.

    PyTorch lets cuDNN's convolutions use TF32 by default. The switches belong to the process; they
    are put back.
    """
    # Their parts are not known to type checkers.
    backends: Any = torch.backends
    cuda = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)
    cpu = (backends.mkldnn.conv, backends.mkldnn.rnn, backends.mkldnn.matmul)
    before = [switch.fp32_precision for switch in (*cuda, *cpu)]
    # The older switch of matrix products has to say the same: PyTorch refuses to read two that
    # differ.
    legacy = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high" if allow_tf32 else "highest")
        for switch in cuda:
            switch.fp32_precision = "tf32" if allow_tf32 else "ieee"
        for switch in cpu:
            switch.fp32_precision = "ieee"
        yield
    finally:
        torch.set_float32_matmul_precision(legacy)
        for switch, precision in zip((*cuda, *cpu), before):
            switch.fp32_precision = precision


@contextmanager
def as_differentiated() -> Iterator[None]:
    """Set the state of torch in which every loss is evaluated.

    It is the same whether a derivative is wanted or not.

    A loss may take derivatives itself (physics-informed losses, gradient penalties, forces), and
    may choose its kernels by whether gradients are enabled, as torch's TransformerEncoderLayer
    does; so they always are.
    """
    with torch.inference_mode(False), torch.enable_grad(), plain_arithmetic():
        yield


def value_of(objective: Objective, params: Params, batch: Batch) -> Tensor:
    """Evaluate the objective without its L2 term, exactly as when differentiated.

    The value is detached.
    """
    with as_differentiated():
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in params.items()}
        loss = objective.data_term(leaves, batch)
        return loss.detach() if isinstance(loss, Tensor) else loss


def twice_evaluated(
    problem: Problem,
    guard: Callable[[], AbstractContextManager[Any]] = nullcontext,
    *,
    reduces: bool = False,
) -> Evaluated:
    """Evaluate twice, and return the second evaluation with its gradient's graph.

    The first evaluation confirms the second.

    Args:
        guard: Makes the context of the first evaluation, and then that of the second and the
            gradient.
        reduces: Whether the second one may be of reduced parameters; see `Evaluated`.

    Raises:
        ObjectiveError: If the loss is not one finite, deterministic, twice differentiable number
            that depends on the parameters.
    """
    # A loss that changes between two evaluations, as under dropout, has no Hessian. The first graph
    # is freed before the second is built, so that memory holds only one.
    with problem.differentiating(), no_checkpointing():
        with guard():
            first = evaluated_once(problem)
        with guard():
            return confirmed_reduced(first) if reduces else _confirmed(problem, first)


@dataclass(frozen=True, eq=False)
class FirstEvaluation:
    """Facts that the graph of a loss shows without a derivative.

    Attributes:
        loss: The data term, in nats.
        looked_up, operations: As in `Evaluated`.
        unused: Names of the parameters that do not occur in the graph.
        edited: Whether PyTorch was asked to make something other than derivatives of an embedding.
    """

    problem: Problem
    loss: float
    looked_up: dict[str, Int64[Tensor, " rows"]]
    operations: int
    unused: frozenset[str]
    edited: bool

    def reduced(self) -> Problem:
        """Return the same problem for the entries that the loss depends on.

        It is the problem itself where that is all of them, or where they are not known.
        """
        if self.edited:
            return self.problem
        objective, leaves = reduced(
            self.problem.objective, self.problem.leaves, self.looked_up, self.unused
        )
        if leaves is self.problem.leaves:
            return self.problem
        return replace(self.problem, objective=objective, leaves=leaves, whole=self.problem)


def evaluated_once(problem: Problem) -> FirstEvaluation:
    """Evaluate a problem with its graph, inspect the graph and free it.

    To be called inside of `differentiating`.

    Raises:
        ObjectiveError: If the loss is not one finite number that depends on the parameters.
    """
    leaves = problem.leaves
    with reading_only(leaves):
        loss = problem.objective.data_term(leaves, problem.batch)
    check_loss(loss, problem.batch, dtype=problem.like.dtype)
    edited = False
    try:
        refuse_edited_gradients([loss], leaves, ModuleTimeline())
    # The error is raised where the gradient is taken, which knows the module.
    except ObjectiveError:
        edited = True
    return FirstEvaluation(
        problem,
        loss.item(),
        rows_looked_up(loss, leaves),
        operations_behind(loss),
        unreached(loss, leaves),
        edited,
    )


def confirmed_reduced(first: FirstEvaluation) -> Evaluated:
    """Evaluate again with the gradient, for reduced parameters where possible.

    Raises:
        ObjectiveError: As in `twice_evaluated`.
    """
    reduced = first.reduced()
    if reduced is not first.problem:
        try:
            return _confirmed(reduced, first)
        except Exception as error:
            # The loss may not work with a stand-in for a table, and may then raise anything.
            if is_out_of_memory(error) or (
                isinstance(error, ObjectiveError) and not isinstance(error, TableInUse)
            ):
                raise
    return _confirmed(first.problem, first)


def _confirmed(problem: Problem, first: FirstEvaluation) -> Evaluated:
    """Evaluate a second time, with the gradient.

    Raises:
        ObjectiveError: As in `twice_evaluated`.
        TableInUse: If the problem is reduced, and the loss uses its tables in another way than by
            looking up those rows.
    """
    objective, leaves = problem.objective, problem.leaves
    with module_timeline(objective.module) as timeline, reading_only(leaves):
        loss = objective.data_term(leaves, problem.batch)
    operations = operations_behind(loss)
    if problem is not first.problem and operations != first.operations:
        # What asks a stand-in for its type or its strides can take another path.
        raise TableInUse("the loss is computed in another way with a stand-in for a table")
    if problem is not first.problem and not torch.isfinite(loss):
        raise TableInUse("the loss reads a stand-in for a table as a tensor")
    # The loss of the whole problem against that of the reduced one, or the same loss twice.
    check_same_loss(first.loss, loss.item(), dtype=problem.like.dtype)
    constants = reduction_of(objective).constants
    gradients = differentiable_gradient(
        loss, leaves, timeline, module=objective.module, constants=constants
    )
    check_gradients(leaves, gradients, first.loss)
    return Evaluated(first.loss, problem, gradients, first.looked_up, operations)


def backward_in_place(problem: Problem) -> str | None:
    """Find an operation whose backward pass overwrites what its derivative needs.

    Costs a gradient with its graph.

    Returns:
        Where it is and what to do, or None.
    """
    objective, leaves = problem.objective, problem.leaves
    # Whatever is raised here was raised and reported before.
    with suppress(Exception), problem.differentiating(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with (
            torch.autograd.set_detect_anomaly(True, check_nan=False),
            module_timeline(objective.module) as timeline,
        ):
            loss = objective.data_term(leaves, problem.batch)
            seed = torch.ones_like(loss, requires_grad=True)
            gradients = torch.autograd.grad(
                loss, list(leaves.values()), seed, create_graph=True, allow_unused=True
            )
        return overwritten_in_backward(gradients, timeline)
    return None


def check_gradients(leaves: Params, gradients: Sequence[Tensor | None], loss: float) -> None:
    """Refuse a gradient that is missing or not finite.

    Raises:
        ObjectiveError: If so; names the parameter.
    """
    for name, derivative in zip(leaves, gradients):
        if derivative is not None and not all_finite(derivative):
            raise ObjectiveError(
                f"{name}: the gradient of the loss is not finite although the loss is ({loss:g}). "
                "Look for a square root, norm or logarithm of zero, and keep it away from zero."
            )
    if all(derivative is None for derivative in gradients):
        raise ObjectiveError(
            "The loss does not depend on any of the selected parameters. Select others, or look "
            "for a captured model."
        )
