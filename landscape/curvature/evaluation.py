"""Evaluate an objective in the arithmetic that second derivatives need, and see that it has them.

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

from landscape.curvature.fingerprint import code_of, contents_of
from landscape.curvature.graph import (
    ModuleTimeline,
    differentiable_gradient,
    module_timeline,
    no_checkpointing,
    operations_behind,
    overwritten_in_backward,
    refuse_edited_gradients,
    rows_looked_up,
    unreached,
)
from landscape.curvature.memory import is_out_of_memory
from landscape.curvature.objective import Batch, Objective, Params, own_state
from landscape.curvature.preconditions import check_loss, check_same_loss, reading_only
from landscape.curvature.tables import TableInUse, reduced, reduction_of
from landscape.errors import ObjectiveError
from landscape.kernels.first_order import second_order
from landscape.threads import single_openmp_thread

# Multiplications of a forward pass that take one core some milliseconds.
_SMALL = 10**8


@dataclass(frozen=True, eq=False, kw_only=True)
class Problem:
    """What is differentiated, and where.

    Attributes:
        leaves: The parameters as leaf tensors that require gradients, by name.
        whole: The problem that this one was reduced from; see `landscape.curvature.tables`.
        allow_tf32: Let a GPU round the factors of matrix products and convolutions to 10 bits; off by default, because of
            what cancels in a second derivative such numbers leave few digits.
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
        """Fingerprint of the values of the parameters, and of the model's other parameters and buffers."""
        if self.whole is not None:
            return self.whole.contents
        module = self.objective.module
        others = {} if module is None else own_state(module, self.leaves)
        return contents_of([*self.leaves.values(), *others.values()])

    @property
    def like(self) -> Tensor:
        """A tensor of the problem's type and device."""
        return next(iter(self.leaves.values()))

    @contextmanager
    def differentiating(self) -> Iterator[None]:
        """The state of torch in which everything here is computed; global random state is put back."""
        devices = [self.like.device] if self.like.device.type == "cuda" else []
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(torch.random.fork_rng(devices))
            stack.enter_context(plain_arithmetic(allow_tf32=self.allow_tf32))
            if self._is_small:
                stack.enter_context(single_openmp_thread())
            yield

    @cached_property
    def _is_small(self) -> bool:
        """Whether threads would wait for each other longer than they compute.

        Positions of a row, such as pixels, share parameters; numbers of the batch are at least as many as positions, so the
        product is a bound of the multiplications of a forward pass.
        """
        numbers = sum(leaf.numel() for leaf in tree_leaves(self.batch) if isinstance(leaf, Tensor))
        return numbers * sum(leaf.numel() for leaf in self.leaves.values()) < _SMALL


@dataclass(frozen=True, eq=False)
class Evaluated:
    """What one confirmed evaluation of a problem tells.

    Attributes:
        loss: The data term, in nats.
        problem: What was differentiated: the problem itself, or the same with embedding tables reduced to the rows that are
            looked up and without parameters that the loss does not depend on; see `landscape.curvature.tables`.
        gradients: Gradient by the leaves of `problem`, None where the loss does not depend on one.
        looked_up: Of parameters used only as embedding tables, the rows that are.
        operations: Hash of the operations in the graph of the loss, in order; 0 where there is no graph of all of it.
    """

    loss: float
    problem: Problem
    gradients: tuple[Tensor | None, ...]
    looked_up: dict[str, Int64[Tensor, " rows"]]
    operations: int = 0


@contextmanager
def plain_arithmetic(*, allow_tf32: bool = False) -> Iterator[None]:
    """Attention and scans that can be differentiated twice, and all bits of float32 in every product.

    PyTorch lets cuDNN's convolutions use TF32 by default. The switches belong to the process; they are put back.
    """
    # Their parts are not known to type checkers.
    backends: Any = torch.backends
    cuda = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)
    cpu = (backends.mkldnn.conv, backends.mkldnn.rnn, backends.mkldnn.matmul)
    before = [switch.fp32_precision for switch in (*cuda, *cpu)]
    # The older switch of matrix products has to say the same: PyTorch refuses to read two that differ.
    legacy = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high" if allow_tf32 else "highest")
        for switch in cuda:
            switch.fp32_precision = "tf32" if allow_tf32 else "ieee"
        for switch in cpu:
            switch.fp32_precision = "ieee"
        with sdpa_kernel(SDPBackend.MATH), second_order():
            yield
    finally:
        torch.set_float32_matmul_precision(legacy)
        for switch, precision in zip((*cuda, *cpu), before):
            switch.fp32_precision = precision


@contextmanager
def as_differentiated() -> Iterator[None]:
    """The state of torch in which every loss is evaluated, whether a derivative is wanted or not.

    A loss may take derivatives itself (physics-informed losses, gradient penalties, forces), and may choose its kernels by
    whether gradients are enabled, as torch's TransformerEncoderLayer does; so they always are.
    """
    with torch.inference_mode(False), torch.enable_grad(), plain_arithmetic():
        yield


def value_of(objective: Objective, params: Params, batch: Batch) -> Tensor:
    """Evaluate the objective without its L2 term exactly as it is differentiated, and detach its value."""
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
    """An evaluation that a first one has confirmed, with the graph of its gradient.

    Args:
        guard: Makes the context of the first evaluation, and then that of the second and the gradient.
        reduces: Whether the second one may be of reduced parameters; see `Evaluated`.

    Raises:
        ObjectiveError: If the loss is not one finite, deterministic, twice differentiable number that depends on the
            parameters.
    """
    with problem.differentiating(), no_checkpointing():
        with guard():
            first = evaluated_once(problem)
        with guard():
            return confirmed_reduced(first) if reduces else _confirmed(problem, first)


@dataclass(frozen=True, eq=False)
class FirstEvaluation:
    """What the graph of a loss tells, without a derivative.

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
        """The same problem for the entries that the loss depends on; itself where that is all or more is not known."""
        if self.edited:
            return self.problem
        objective, leaves = reduced(
            self.problem.objective, self.problem.leaves, self.looked_up, self.unused
        )
        if leaves is self.problem.leaves:
            return self.problem
        return replace(self.problem, objective=objective, leaves=leaves, whole=self.problem)


def evaluated_once(problem: Problem) -> FirstEvaluation:
    """Evaluate a problem with its graph, look at it and let go of it; inside of `differentiating`.

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
    # It is said where the gradient is taken, which knows the module.
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
    """The second evaluation, of reduced parameters where they are enough for it, with the gradient.

    Raises:
        ObjectiveError: As `twice_evaluated`.
    """
    reduced = first.reduced()
    if reduced is not first.problem:
        try:
            return _confirmed(reduced, first)
        except Exception as error:
            # Code of the loss that a stand-in for a table does not suit, whatever it raises.
            if (
                is_out_of_memory(error)
                or isinstance(error, ObjectiveError)
                and not isinstance(error, TableInUse)
            ):
                raise
    return _confirmed(first.problem, first)


def _confirmed(problem: Problem, first: FirstEvaluation) -> Evaluated:
    """The second evaluation, with the gradient.

    Raises:
        ObjectiveError: As `twice_evaluated`.
        TableInUse: If the problem is reduced, and the loss uses its tables in another way than by looking up those rows.
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
    check_same_loss(first.loss, loss.item(), dtype=problem.like.dtype)
    constants = reduction_of(objective).constants
    gradients = differentiable_gradient(
        loss, leaves, timeline, module=objective.module, constants=constants
    )
    check_gradients(leaves, gradients, first.loss)
    return Evaluated(first.loss, problem, gradients, first.looked_up, operations)


def backward_in_place(problem: Problem) -> str | None:
    """Look for an operation whose backward pass overwrites what its own derivative needs; costs a gradient with its graph.

    Returns:
        Where it is and what to do, or None.
    """
    objective, leaves = problem.objective, problem.leaves
    # Whatever is raised here has been raised before, and said.
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
    """Refuse a gradient that is not finite, and one that there is not.

    Raises:
        ObjectiveError: If so; names the parameter.
    """
    for name, derivative in zip(leaves, gradients):
        if derivative is not None and not torch.isfinite(derivative).all():
            raise ObjectiveError(
                f"{name}: the gradient of the loss is not finite although the loss is ({loss:g}). Look for a square root, "
                "norm or logarithm of zero, and keep it away from zero."
            )
    if all(derivative is None for derivative in gradients):
        raise ObjectiveError(
            "The loss does not depend on any of the selected parameters. Select others, or look for a captured model."
        )
