"""Evaluate an objective in the arithmetic that second derivatives need, and see that it has them.

Shapes: n = total size of the parameters.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from landscape.curvature.graph import differentiable_gradient, module_timeline, no_checkpointing, rows_looked_up
from landscape.curvature.objective import Batch, Objective, Params
from landscape.curvature.preconditions import check_loss, check_same_loss, reading_only
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
        allow_tf32: Let a GPU round the factors of matrix products and convolutions to 10 bits; off by default, because of
            what cancels in a second derivative such numbers leave few digits.
    """

    objective: Objective
    leaves: Params
    batch: Batch
    allow_tf32: bool = False

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
        gradients: Its gradient by parameter, None where the loss does not depend on one.
        looked_up: Of parameters used only as embedding tables, the rows that are.
    """

    loss: float
    gradients: tuple[Tensor | None, ...]
    looked_up: dict[str, Int64[Tensor, " rows"]]


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


def evaluate(objective: Objective, params: Params, batch: Batch, *, allow_tf32: bool = False) -> Tensor:
    """The objective without its L2 term, in an arithmetic that can be differentiated twice."""
    with plain_arithmetic(allow_tf32=allow_tf32):
        return objective.data_term(params, batch)


def twice_evaluated(problem: Problem, guard: Callable[[], AbstractContextManager[Any]] = nullcontext) -> Evaluated:
    """An evaluation that a first one has confirmed, with the graph of its gradient.

    Args:
        guard: Makes the context of the first evaluation, and then that of the second and the gradient.

    Raises:
        ObjectiveError: If the loss is not one finite, deterministic, twice differentiable number that depends on the
            parameters.
    """
    objective, leaves, batch = problem.objective, problem.leaves, problem.batch
    dtype = problem.like.dtype
    with problem.differentiating(), no_checkpointing():
        with guard(), reading_only(leaves):
            loss = objective.data_term(leaves, batch)
        check_loss(loss, batch, dtype=dtype)
        before = loss.item()
        del loss
        with guard():
            with module_timeline(objective.module) as timeline, reading_only(leaves):
                loss = objective.data_term(leaves, batch)
            check_same_loss(before, loss.item(), dtype=dtype)
            gradients = differentiable_gradient(loss, leaves, timeline, module=objective.module)
    check_gradients(leaves, gradients, before)
    return Evaluated(before, gradients, rows_looked_up(loss, leaves))


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
