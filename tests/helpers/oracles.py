"""Second derivatives from outside the code under test.

Two independent ways: double backward, one row at a time, and central differences of first
gradients. They share nothing with landscape.curvature but the objective itself, and test_hessian.py
compares them with each other and with closed forms. torch.func.hessian is not used: it is wrong
through LayerNorm.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.curvature.objective import Batch, Objective, Params


def _leaves(params: Params) -> Params:
    return {name: tensor.detach().clone().requires_grad_() for name, tensor in params.items()}


def dense_hessian(objective: Objective, params: Params, batch: Batch) -> Tensor:
    """All second derivatives of the objective (n, n), L2 term included, by double backward row by
    row.
    """
    leaves = _leaves(params)
    tensors = list(leaves.values())
    with sdpa_kernel(SDPBackend.MATH):
        gradients = torch.autograd.grad(
            objective(leaves, batch), tensors, create_graph=True, materialize_grads=True
        )
    rows = []
    for gradient in gradients:
        for entry in gradient.reshape(-1):
            if entry.requires_grad:
                row = torch.autograd.grad(entry, tensors, retain_graph=True, materialize_grads=True)
            else:
                row = [torch.zeros_like(tensor) for tensor in tensors]
            rows.append(torch.cat([piece.reshape(-1) for piece in row]))
    return torch.stack(rows)


def plain_gradient(objective: Objective, params: Params, batch: Batch) -> Tensor:
    """The gradient (n,) by one ordinary backward pass, L2 term included."""
    leaves = _leaves(params)
    gradients = torch.autograd.grad(
        objective(leaves, batch), list(leaves.values()), materialize_grads=True
    )
    return torch.cat([gradient.reshape(-1) for gradient in gradients])


def difference_product(
    objective: Objective, params: Params, batch: Batch, direction: Tensor, *, step: float = 1e-3
) -> Tensor:
    """H v (n,) from four gradients along `direction`: the five-point central difference, error
    O(step^4).

    In float64 with a step of 1e-3 rounding leaves 1e-13 of the gradient's scale and truncation
    step^4 / 30 times the fifth derivative along `direction`, 1e-12 for a random direction of length
    1 and more along a single influential weight.
    """

    def at(shift: float) -> Tensor:
        offset = shift * step * direction
        pieces = offset.split([tensor.numel() for tensor in params.values()])
        moved = {
            name: tensor.detach() + piece.view(tensor.shape)
            for piece, (name, tensor) in zip(pieces, params.items())
        }
        return plain_gradient(objective, moved, batch)

    return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)


def dense_jacobian(function: Callable[[Params], Tensor], params: Params) -> Tensor:
    """All first derivatives of a function's flattened values (q, n), one value at a time by an
    ordinary backward pass.
    """
    leaves = _leaves(params)
    with sdpa_kernel(SDPBackend.MATH):
        values = function(leaves).reshape(-1)
    rows = [
        torch.autograd.grad(value, list(leaves.values()), retain_graph=True, materialize_grads=True)
        for value in values
    ]
    return torch.stack([torch.cat([piece.reshape(-1) for piece in row]) for row in rows])


def difference_pushforward(
    function: Callable[[Params], Tensor], params: Params, direction: Tensor, *, step: float = 1e-3
) -> Tensor:
    """J v (q,) from four values along `direction`: the five-point central difference, as in
    `difference_product`.
    """

    def at(shift: float) -> Tensor:
        pieces = (shift * step * direction).split([tensor.numel() for tensor in params.values()])
        moved = {
            name: tensor.detach() + piece.view(tensor.shape)
            for piece, (name, tensor) in zip(pieces, params.items())
        }
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            return function(moved).reshape(-1)

    return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)


def relative_error(value: Tensor, truth: Tensor) -> float:
    """|value - truth| / |truth| in the Frobenius norm."""
    return float(torch.linalg.norm(value - truth) / torch.linalg.norm(truth))
