"""The Hessian of an objective on one batch as a symmetric operator, and the gradient beside it.

By double backward, the one composition of derivatives that is right or loud on everything a Transformer needs:
forward-over-reverse through LayerNorm is silently wrong in some of its forms (torch.func.hessian is one).
Shapes: n = total size of the parameters, k = number of vectors.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.curvature.graph import differentiable_gradient, explained_errors, module_timeline, no_checkpointing, rows_looked_up
from landscape.curvature.objective import Batch, Objective, Params, flatten, select_parameters, squared_norm, unflatten
from landscape.curvature.preconditions import (
    check_autocast,
    check_batch,
    check_loss,
    check_parameters,
    check_same_loss,
    check_twice_differentiable,
)
from landscape.errors import ObjectiveError
from landscape.linalg.operator import SymmetricOperator


class HessianOperator(SymmetricOperator):
    """The Hessian of `objective` at `params` on `batch`, in nats per squared parameter.

    The gradient is built once and its graph kept: a product is one more backward pass, at about two gradients of work.
    The parameters are copied, at the price of one n-vector beside the graph, so that training on does not touch the
    operator; a batch that is changed in place makes the next product raise. Attention runs in its plain form
    (SDPBackend.MATH), as the fused kernels have no second derivative. The L2 term enters as an exact shift.

    A parameter that the loss does not depend on has a zero row and column. To autograd, "does not depend on" includes
    use under no_grad or after detach: that is what the loss says, and it is not refused unless it holds for all.

    Args:
        objective: Evaluated twice, to see that it is not random; global random state is restored.
        params: Where to differentiate: float32 or float64, on one device. Their order is the flat order.
        batch: Any nest of tensors that the objective takes, on the device of the parameters.
        columns: Vectors multiplied by one batched pass. 1 is fastest on a CPU (2.0 gradients a vector; 2.6 in blocks of
            2, 2.9 in blocks of 5, at 0.6 M parameters); blocks pay where kernel launches rule. Memory grows with it.

    Attributes:
        support: Flat indices of the entries that the loss depends on: all but unused parameters and the rows of embedding
            tables that the batch does not look up, whose curvature is exactly zero. None if that is all of them.
        loss: Value of the objective, the L2 term included, in nats.
        params: The copies, without gradients.
        num_params: n, the number of entries of the parameters.

    Raises:
        ObjectiveError: If the loss is not one finite, deterministic, twice differentiable number; see
            `check_twice_differentiable` and `landscape.curvature.graph`.
        ValueError: If `columns` is not positive.
    """

    def __init__(self, objective: Objective, params: Params, batch: Batch, *, columns: int = 1) -> None:
        if columns < 1:
            raise ValueError(f"columns must be at least 1, got {columns}.")
        self.columns = columns
        leaves = _leaves(objective, params, batch, copy=True)
        first = next(iter(leaves.values()))
        self.dtype, self.device = first.dtype, first.device
        self.params = {name: leaf.detach() for name, leaf in leaves.items()}
        self.n = self.num_params = sum(leaf.numel() for leaf in leaves.values())
        self.weight_decay = objective.weight_decay
        data_term, gradients, looked_up = _twice_evaluated(objective, leaves, batch)
        self.loss = data_term
        if self.weight_decay:
            self.loss += 0.5 * self.weight_decay * float(squared_norm({k: v.double() for k, v in self.params.items()}))
        self._leaves = tuple(leaves.values())
        self._sizes = [leaf.numel() for leaf in self._leaves]
        # What is left out is zero everywhere: unused parameters, and gradients that are detached zeros.
        used = {i: gradient for i, gradient in enumerate(gradients) if gradient is not None and gradient.requires_grad}
        self._used = tuple(used)
        self._gradients = tuple(used.values())
        # The L2 term reaches every row.
        self.support = None if self.weight_decay else _support(leaves, gradients, looked_up)

    @property
    def parameter_names(self) -> tuple[str, ...]:
        return tuple(self.params)

    def unflatten(self, vector: Float[Tensor, " n"]) -> Params:
        """The entries of a vector by parameter name and shape, as views."""
        return unflatten(vector, self.params)

    def matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Multiply k vectors, the columns of V, `columns` at a time.

        Raises:
            ObjectiveError: If an operation turns out to have no second derivative, or a product is not finite.
        """
        rows = V.detach().T
        products = torch.empty(rows.shape, dtype=self.dtype, device=self.device)
        for start in range(0, len(rows), self.columns):
            part = slice(start, start + self.columns)
            with explained_errors():
                torch.cat(self._multiply(rows[part]), dim=1, out=products[part])
        if self.weight_decay:
            products.add_(rows, alpha=self.weight_decay)
        if not torch.isfinite(products).all():
            raise ObjectiveError(_not_finite(rows, unflatten(products.sum(0), self.params)))
        return products.T

    def _multiply(self, rows: Float[Tensor, "c n"]) -> list[Float[Tensor, "c _"]]:
        """The products of the data term's Hessian with `rows`, one block per parameter."""
        count = len(rows)
        batched = count > 1
        lead = (count,) if batched else ()
        pieces = rows.split(self._sizes, dim=1)
        cotangents = [pieces[i].reshape(lead + self._leaves[i].shape) for i in self._used]
        if not cotangents:
            return [rows.new_zeros(count, self.n)]
        # Not materialize_grads: with is_grads_batched its zeros lack the dimension of the block.
        products = torch.autograd.grad(
            self._gradients, self._leaves, cotangents, retain_graph=True, allow_unused=True, is_grads_batched=batched
        )
        return [
            rows.new_zeros(count, size) if product is None else product.reshape(count, size)
            for product, size in zip(products, self._sizes)
        ]


def hessian(
    model: nn.Module,
    loss: Callable[[Any, Batch], Tensor],
    batch: Batch,
    *,
    parameters: str | Sequence[str] = "all",
    weight_decay: float = 0.0,
) -> HessianOperator:
    """The Hessian of `loss(model, batch)` by the model's parameters.

    Args:
        model: Any module, in eval mode. It is not modified and its later training does not change the operator.
        loss: Returns one number, in nats by convention; may use the model in any way.
        batch: What `loss` takes: any nest of tensors.
        parameters: "all" or shell patterns over the names of the parameters that require gradients, as "visual.*".
            The flat order is that of model.named_parameters().
        weight_decay: Adds weight_decay / 2 * |parameters|^2 to the loss.

    Raises:
        ObjectiveError: If the loss has no Hessian that could be trusted; the message says why and what to do.
    """
    objective = Objective.from_closure(model, loss, weight_decay=weight_decay)
    return HessianOperator(objective, select_parameters(model, parameters), batch)


def gradient(objective: Objective, params: Params, batch: Batch) -> Float[Tensor, " n"]:
    """The gradient of the objective, the L2 term included, in nats per parameter; zero where the loss does not reach.

    Computed as in `HessianOperator`, with plain attention, so that its differences can be compared with products.

    Raises:
        ObjectiveError: If the loss is not one finite number that depends on the parameters.
    """
    leaves = _leaves(objective, params, batch, copy=False)
    with torch.inference_mode(False), torch.enable_grad():
        loss = evaluate(objective, leaves, batch)
        check_loss(loss, batch, dtype=loss.dtype)
        gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    flat = flatten(dict(zip(leaves, gradients)))
    return flat.add_(flatten(params).detach(), alpha=objective.weight_decay) if objective.weight_decay else flat


def evaluate(objective: Objective, params: Params, batch: Batch) -> Tensor:
    """The objective without its L2 term, with the attention that can be differentiated twice."""
    with sdpa_kernel(SDPBackend.MATH):
        return objective.data_term(params, batch)


def _leaves(objective: Objective, params: Params, batch: Batch, *, copy: bool) -> Params:
    """Leaf tensors with the values of `params`, once everything that can be checked before an evaluation holds."""
    check_parameters(params)
    device = next(iter(params.values())).device
    check_batch(batch, device)
    check_autocast(device)
    if objective.module is not None:
        check_twice_differentiable(objective.module)
    with torch.inference_mode(False):
        return {name: _leaf(tensor, copy=copy or tensor.is_inference()) for name, tensor in params.items()}


def _leaf(tensor: Tensor, *, copy: bool) -> Tensor:
    return (tensor.detach().clone() if copy else tensor.detach()).requires_grad_()


def _support(leaves: Params, gradients: tuple[Tensor | None, ...], looked_up: Params) -> Int64[Tensor, " s"] | None:
    """The flat indices of the entries that the loss depends on; None if that is all of them."""
    kept, start = [], 0
    for (name, leaf), derivative in zip(leaves.items(), gradients):
        entries = torch.arange(start, start + leaf.numel(), device=leaf.device)
        if derivative is None:
            entries = entries[:0]
        elif name in looked_up:
            entries = entries.view(leaf.shape[0], -1)[looked_up[name]].reshape(-1)
        kept.append(entries)
        start += leaf.numel()
    support = torch.cat(kept)
    return None if len(support) == start else support


def _twice_evaluated(
    objective: Objective, leaves: Params, batch: Batch
) -> tuple[float, tuple[Tensor | None, ...], dict[str, Int64[Tensor, " rows"]]]:
    """The data term, its gradient with a graph, and the rows that it looks up in embedding tables.

    From an evaluation that a first one has confirmed.
    """
    first = next(iter(leaves.values()))
    devices = [first.device] if first.device.type == "cuda" else []
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices), no_checkpointing():
        loss = evaluate(objective, leaves, batch)
        check_loss(loss, batch, dtype=first.dtype)
        before = loss.item()
        del loss
        with module_timeline(objective.module) as timeline:
            loss = evaluate(objective, leaves, batch)
        check_same_loss(before, loss.item(), dtype=first.dtype)
        gradients = differentiable_gradient(loss, leaves, timeline, module=objective.module)
    for name, derivative in zip(leaves, gradients):
        if derivative is not None and not torch.isfinite(derivative).all():
            raise ObjectiveError(
                f"{name}: the gradient of the loss is not finite although the loss is ({before:g}). Look for a square root, "
                "norm or logarithm of zero, and keep it away from zero."
            )
    if all(derivative is None for derivative in gradients):
        raise ObjectiveError(
            "The loss does not depend on any of the selected parameters. Select others, or look for a captured model."
        )
    return before, gradients, rows_looked_up(loss, leaves)


def _not_finite(rows: Tensor, sums: Params) -> str:
    if not torch.isfinite(rows).all():
        return "A vector with infinite or NaN entries was multiplied. The Hessian is not to blame; look where it comes from."
    name = next((name for name, total in sums.items() if not torch.isfinite(total).all()), "one of the parameters")
    return (
        f"{name}: a product with the Hessian is not finite although the gradient is. The loss has no second derivative here; "
        "look for a power below 2, a norm or a square root at zero."
    )
