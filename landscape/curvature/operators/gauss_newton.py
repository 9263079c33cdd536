"""The generalised Gauss-Newton matrix of an objective.

It is the Hessian with the network linearised, and positive semidefinite.

With outputs z(parameters) and a loss convex in z it is J^T H J, for J the Jacobian of z and H the
Hessian of the loss by z. J v comes from differentiating the pullback w -> J^T w once more, by w.
That is the transpose of a backward pass, whatever derivative rules for tangents the operations have
or lack, so LayerNorm and custom kernels are as right as their gradients.
Shapes: n = total size of the parameters, q = total size of the outputs, c = vectors multiplied at
once.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from landscape.curvature.audits.judgement import judge_number
from landscape.curvature.audits.spot_check import audited, random_combination
from landscape.curvature.audits.spot_check_result import NOT_ASKED, SpotCheck
from landscape.curvature.guards.explanations import explained_errors, no_checkpointing
from landscape.curvature.guards.graph import differentiable_pullback
from landscape.curvature.guards.nodes import module_timeline, rows_looked_up
from landscape.curvature.guards.preconditions import check_same_loss
from landscape.curvature.guards.rounding import product_errors
from landscape.curvature.hvp.evaluation import Problem
from landscape.curvature.hvp.unchecked import (
    checked_leaves,
    supported_coordinates,
    unused_parameters,
)
from landscape.curvature.objective import (
    Batch,
    Objective,
    Params,
    flatten,
    select_parameters,
    squared_norm,
    unflatten,
)
from landscape.curvature.operators.convex_cut import (
    ROUNDINGS,
    Nest,
    checked_cut,
    cut_in_two,
    hessian_by_outputs,
    largest_curvature,
    not_convex,
)
from landscape.errors import ObjectiveError
from landscape.linalg.operator import SymmetricOperator, seeded
from landscape.linalg.vectors import all_finite, norm

# Check of the first product against differences of the outputs: steps as fractions of the length of
# the parameters, and tolerances.
_STEPS = {torch.float32: (1e-3, 3e-4, 3e-3), torch.float64: (1e-5, 1e-7, 1e-6)}
_TOLERANCE = {torch.float32: 2e-2, torch.float64: 1e-4}


class GaussNewtonOperator(SymmetricOperator):
    """J^T H J of `objective` at `params` on `batch`, in nats per squared parameter.

    The weight decay of the objective is added as a shift.

    It equals the Hessian where the outputs are linear in the parameters, and is what is left of it
    where the loss is at its minimum in every output. What the cut of the objective calls the
    outputs decides which matrix it is.

    The graph of the outputs and that of their pullback are kept: a product is one pass through
    each, at 1.2 to 1.6 gradients of work on ViT, VMamba and Simba towers of 0.1 M parameters (a
    Hessian's costs 1.6 to 1.7 there, jvp and then vjp 2.3 to 2.7). Parameters are copied, attention
    runs in its plain form, and what the loss does not depend on has zero rows, as for
    HessianOperator.

    Args:
        objective: With a cut; its two parts are evaluated twice, and held to its loss.
        params: Parameters at which to take the matrix: float32 or float64, on one device. Their
            order is the flat order.
        batch: Any nest of tensors that the objective takes, on the device of the parameters.
        columns: Vectors multiplied by one batched pass, as in HessianOperator.
        check: Hold the first product against a central difference of the outputs, at two
            evaluations.

    Attributes:
        support, loss, params, num_params: As in HessianOperator.
        num_outputs: q, the number of entries of the outputs that depend on the parameters.
        spot_check: Result of the check of the first product; None before it.

    Raises:
        ObjectiveError: If the objective has no cut, or one that is not its loss; if the loss is not
            convex in the outputs along a direction that was looked at; and as HessianOperator.
        ValueError: If `columns` is not positive.

    Source: Schraudolph, Fast curvature matrix-vector products for second-order gradient descent
    (2002), section 3.

    Examples:
        >>> import torch, landscape
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> batch = torch.randn(32, 4), torch.randn(32, 1)
        >>> def loss(model, batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        ...
        >>> from landscape.curvature import select_parameters
        >>> objective = landscape.Objective.from_outputs(
        ...     model,
        ...     lambda model, batch: model(batch[0]),
        ...     lambda outputs, batch: (outputs - batch[1]).square().mean(),
        ... )
        >>> G = landscape.GaussNewtonOperator(objective, select_parameters(model), batch)
        >>> G.n, G.num_outputs
        (49, 32)
    """

    def __init__(
        self,
        objective: Objective,
        params: Params,
        batch: Batch,
        *,
        columns: int = 1,
        check: bool = True,
    ) -> None:
        if columns < 1:
            raise ValueError(f"columns must be at least 1, got {columns}.")
        self.columns = columns
        self.spot_check: SpotCheck | None = None if check else NOT_ASKED
        leaves = checked_leaves(objective, params, batch, copy=True)
        self._problem = Problem(objective=objective, leaves=leaves, batch=batch)
        self.dtype, self.device = self._problem.like.dtype, self._problem.like.device
        self.params = {name: leaf.detach() for name, leaf in leaves.items()}
        self.n = self.num_params = sum(leaf.numel() for leaf in leaves.values())
        self.weight_decay = objective.weight_decay
        self.loss, nest, gradients = self._linearised()
        if self.weight_decay:
            self.loss += (
                0.5
                * self.weight_decay
                * float(squared_norm({k: v.double() for k, v in self.params.items()}))
            )
        self._leaves = tuple(leaves.values())
        self._sizes = [leaf.numel() for leaf in self._leaves]
        # A part without a graph does not depend on w, and J^T w is linear in w: that part is zero.
        used = {
            i: gradient
            for i, gradient in enumerate(gradients)
            if gradient is not None and gradient.requires_grad
        }
        self._used, self._gradients = tuple(used), tuple(used.values())
        unused, looked_up = (
            unused_parameters(leaves, gradients),
            rows_looked_up(self._outputs, leaves),
        )
        self.support = (
            None if self.weight_decay else supported_coordinates(leaves, unused, looked_up)
        )
        assert objective.cut is not None
        self._head = hessian_by_outputs(objective.cut.convex, nest, self._outputs, batch)
        self.num_outputs = self._head.n
        self._head_size = largest_curvature(self._head)

    def _linearised(self) -> tuple[float, Nest, tuple[Tensor | None, ...]]:
        """Return the data term, the nested outputs, and their differentiable pullback."""
        problem = self._problem
        with problem.differentiating(), no_checkpointing():
            before = checked_cut(problem)
            with module_timeline(problem.objective.module) as timeline:
                outputs, loss = cut_in_two(problem)
            check_same_loss(before, loss.item(), dtype=self.dtype)
            nest = Nest(outputs)
            self._outputs = nest.differentiable
            # Of no special values: a pullback is linear, so its derivative is the same everywhere.
            generator = seeded(0)
            self._seeds = tuple(
                _normal_like(output, generator).requires_grad_() for output in self._outputs
            )
            module = problem.objective.module
            # J^T w is linear in w, so its derivative by w, contracted with v, is J v: forward mode
            # from two reverse passes (Townsend, A new trick for calculating Jacobian vector
            # products, 2017).
            gradients = differentiable_pullback(
                self._outputs, self._seeds, problem.leaves, timeline, module=module
            )
        for name, gradient in zip(problem.leaves, gradients):
            if gradient is not None and not all_finite(gradient):
                raise ObjectiveError(
                    f"{name}: the derivative of the outputs is not finite although the loss is "
                    f"({before:g}). Look for a square root, norm or logarithm of zero, and keep it "
                    "away from zero."
                )
        return before, nest, gradients

    @property
    def module(self) -> nn.Module | None:
        """Return the model behind the loss, whose parameters were copied.

        None where the objective names none.
        """
        return self._problem.objective.module

    def unflatten(self, vector: Float[Tensor, " n"]) -> Params:
        """Split a vector by parameter name and shape, as views."""
        return unflatten(vector, self.params)

    def matmat(self, V: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Multiply k vectors, the columns of V, `columns` at a time.

        Raises:
            ObjectiveError: If the loss turns out not to be convex in its outputs, or a product is
                not finite; the first time also if it is not what differences of the outputs make of
                it.
        """
        with torch.inference_mode(False):
            # An inference tensor cannot take part in what is differentiated.
            rows = (V.clone() if V.is_inference() else V.detach()).T
            products = torch.empty(rows.shape, dtype=self.dtype, device=self.device)
        for start in range(0, len(rows), self.columns):
            part = slice(start, start + self.columns)
            with self._problem.differentiating(), explained_errors():
                # G v = J^T (H (J v)), from right to left, so that no matrix is formed.
                products[part] = self._pulled_back(self._curved(self._pushed_forward(rows[part])))
        if self.spot_check is None and rows.any() and all_finite(products):
            self.spot_check = self._checked(rows, products)
        if self.weight_decay:
            products.add_(rows, alpha=self.weight_decay)
        if not all_finite(products):
            raise ObjectiveError(
                "A product with the Gauss-Newton matrix is not finite: the vector was not, or a "
                "derivative of the outputs overflows at these parameters."
            )
        return products.T

    def product_errors(self, v: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return product_errors(self, self._at, self.params, v)

    def _at(self, params: Params) -> "GaussNewtonOperator":
        return GaussNewtonOperator(
            self._problem.objective, params, self._problem.batch, check=False
        )

    @property
    def checked(self) -> str:
        return "" if self.spot_check is None else str(self.spot_check)

    def _checked(self, rows: Float[Tensor, "k n"], products: Float[Tensor, "k n"]) -> SpotCheck:
        """Compare v.(G v) with d.(H d), for a central difference d.

        The difference d is that of the outputs along v.

        Raises:
            ObjectiveError: If they differ at every step, and the steps agree.
        """
        # v.(G v) = (J v).(H J v) tests J^T along with J, since v.(J^T w) = (J v).w, and takes two
        # evaluations of the outputs a step and no derivative of the network.
        v, product = random_combination(rows, products)
        value, curvatures = float(v.double() @ product.double()), []
        # A fraction of 1 moves the parameters by their own length along v.
        scale = (norm(flatten(self.params)) or 1.0) / norm(v)
        for step in (scale * fraction for fraction in _STEPS[self.dtype]):
            # The difference d approximates J v, so that d.(H d) approximates (J v).(H J v) = v.(G
            # v).
            tangent = (self._outputs_at(v, step) - self._outputs_at(v, -step)) / (2 * step)
            curvatures.append(float(tangent.double() @ (self._head @ tangent).double()))
            largest = max(abs(value), *map(abs, curvatures))
            outcome = judge_number(
                value, curvatures, size=largest, tolerance=_TOLERANCE[self.dtype]
            )
            if outcome.verdict == "passed":
                return SpotCheck(
                    "passed",
                    reason=f"curvature within {outcome.error:.1e} of differences of the outputs",
                )
        # The audit distinguishes, in float64, kinks from the stairs that rounding makes.
        said = audited(self._problem)
        if outcome.verdict == "undecided":
            return said
        raise ObjectiveError(
            "The Gauss-Newton matrix is not that of the outputs: along the first vector its "
            f"curvature is {value:.3g}, but differences of the outputs give {curvatures[0]:.3g}. "
            "Look for detach, rounding or a wrong backward in the network; landscape.audit(model, "
            "loss, batch) names the module, and check=False measures anyway."
        )

    def _outputs_at(self, v: Float[Tensor, " n"], step: float) -> Float[Tensor, " q"]:
        """Evaluate the outputs at `step` times v away, as one vector."""
        with self._problem.differentiating():
            pieces = self.unflatten(v.detach())
            leaves = {
                name: tensor.add(pieces[name], alpha=step).requires_grad_()
                for name, tensor in self.params.items()
            }
            outputs = Nest(cut_in_two(replace(self._problem, leaves=leaves))[0]).differentiable
            return torch.cat([output.detach().reshape(-1).to(self.dtype) for output in outputs])

    def _pushed_forward(self, rows: Float[Tensor, "c n"]) -> Float[Tensor, "c q"]:
        """Compute J v for every row v."""
        lead = (len(rows),) if len(rows) > 1 else ()
        pieces = rows.split(self._sizes, dim=1)
        cotangents = [pieces[i].reshape(lead + self._leaves[i].shape) for i in self._used]
        if not cotangents:
            return rows.new_zeros(len(rows), self.num_outputs)
        # <J^T w, v> = <w, J v> is linear in w, so its derivative by w is J v, whatever the seeds
        # are.
        tangents = torch.autograd.grad(
            self._gradients,
            self._seeds,
            cotangents,
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=bool(lead),
        )
        return _as_rows(tangents, self._seeds, len(rows))

    def _curved(self, tangents: Float[Tensor, "c q"]) -> Float[Tensor, "c q"]:
        """Compute H u for every row u = J v.

        Refuses the loss as not convex where u.(H u) is negative.
        """
        products = (self._head @ tangents.T).T
        # A convex loss has u.(H u) >= 0 in every direction u. Rounding may take it below zero by
        # some units of |H| |u|^2.
        curvatures = (tangents.double() * products.double()).sum(1)
        least = (
            -ROUNDINGS
            * torch.finfo(self.dtype).eps
            * self._head_size
            * tangents.double().square().sum(1)
        )
        if (curvatures < least).any():
            raise not_convex(
                float((curvatures / tangents.double().square().sum(1)).min()), self._head_size
            )
        return products

    def _pulled_back(self, cotangents: Float[Tensor, "c q"]) -> Float[Tensor, "c n"]:
        """Compute J^T w for every row w."""
        lead = (len(cotangents),) if len(cotangents) > 1 else ()
        pieces = cotangents.split([output.numel() for output in self._outputs], dim=1)
        seeds = [
            piece.reshape(lead + output.shape).to(output.dtype)
            for piece, output in zip(pieces, self._outputs)
        ]
        products = torch.autograd.grad(
            self._outputs,
            self._leaves,
            seeds,
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=bool(lead),
        )
        return _as_rows(products, self._leaves, len(cotangents))


def gauss_newton(
    model: nn.Module,
    outputs: Callable[[Any, Batch], Any],
    loss: Callable[[Any, Batch], Tensor],
    batch: Batch,
    *,
    parameters: str | Sequence[str] = "all",
    weight_decay: float = 0.0,
    check: bool = True,
) -> GaussNewtonOperator:
    """Build the Gauss-Newton matrix of `loss(outputs(model, batch), batch)`.

    It is taken by the model's parameters.

    Args:
        model: Any module, in eval mode. It is not modified and its later training does not change
            the operator.
        outputs: Returns a tensor or a nest of tensors; may use the model in any way.
        loss: Returns one number, in nats by convention, convex in the outputs: cross-entropy of
            logits, squared error.
        batch: Batch that `outputs` and `loss` take: any nest of tensors.
        parameters, weight_decay, check: As in `hessian`.

    Raises:
        ObjectiveError: If there is no such matrix, or none that could be trusted; the message says
            why and what to do.

    Examples:
        >>> import torch, landscape
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> batch = torch.randn(32, 4), torch.randn(32, 1)
        >>> def loss(model, batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        ...
        >>> G = landscape.gauss_newton(
        ...     model,
        ...     lambda model, batch: model(batch[0]),
        ...     lambda outputs, batch: (outputs - batch[1]).square().mean(),
        ...     batch,
        ... )
        >>> bool(landscape.eigsh(G, k=1, which="SA").values > -1e-4)
        True
    """
    objective = Objective.from_outputs(model, outputs, loss, weight_decay=weight_decay)
    return GaussNewtonOperator(objective, select_parameters(model, parameters), batch, check=check)


def _normal_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(
        tensor.device, tensor.dtype
    )


def _as_rows(
    pieces: Sequence[Tensor | None], like: Sequence[Tensor], count: int
) -> Float[Tensor, "c _"]:
    """Join pieces by tensor into a row per vector.

    Entries are zero where nothing depends on a tensor.
    """
    blocks = [
        tensor.new_zeros(count, tensor.numel())
        if piece is None
        else piece.reshape(count, tensor.numel())
        for piece, tensor in zip(pieces, like)
    ]
    return torch.cat(blocks, dim=1)
