r"""The preconditioner of Muon: a step is -lr P^-1 times the momentum, with a matrix P.

torch.optim.Muon puts its momentum M, a matrix, through an odd polynomial, and multiplies it by a
number a that depends on its shape. With the singular values s_i of M / |M|, Newton-Schulz takes
each to q(s_i), so the step is -lr a U q(S) V^T = -lr P^-1 M, where

    P^-1 = a U diag(q(s_i) / s_i) U^T / |M|,

a symmetric matrix on the short side of M: a polynomial in M M^T, or where M has more rows than
columns in M^T M, on the right. q(s) / s is the product of b0 + b1 s^2 + b2 s^4 over the iterations,
each at the s before it; with torch's coefficients that is positive, also at s = 0, so P^-1 is
positive definite whatever the rank of M. For an exact polar factor, q(s) = 1, this is Shampoo's P =
(M M^T)^(1/2) / a. The polynomial is that of exact arithmetic; torch evaluates it in bfloat16, whose
rounding of M, up to 0.4 % of |M|, is all that its step has where M has less.

M is the momentum after the last step. Nesterov's next step mixes in a gradient that is not in the
state. Imports only torch. Shapes: r, c = rows and columns of a parameter, d = the smaller of both.

Sources: Jordan et al., Muon: An optimizer for hidden layers in neural networks (2024), for the
polynomial; torch.optim.Muon of torch 2.9 for everything else; Bernstein & Newhouse, Old optimizer,
new norm: an anthology (2024), arXiv 2409.20325, section 2, for Shampoo and the polar factor.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.stability.optimizer_state import OptimizerState, as_number
from landscape.stability.preconditioner import moments_of


def is_right(shape: torch.Size) -> bool:
    """Tell whether P multiplies a matrix of this shape from the right."""
    return shape[0] > shape[1]


def inverse_root(state: OptimizerState, name: str) -> Float[Tensor, "d d"] | None:
    """Compute P^-1/2 of a matrix in float64, without its group's learning rate.

    Returns None where the parameter has no state yet.

    Raises:
        ValueError: If the state lacks its momentum, has another shape than the parameter, is not
            finite or zero, or the coefficients of its group make P indefinite.
    """
    kept = state.parameters[name]
    if not kept.entries:
        return None
    group = state.groups[kept.group]
    momentum = moments_of(state, name, "momentum_buffer", lambda tensor: tensor)
    size = float(momentum.norm())
    if not (math.isfinite(size) and size > 0):
        fault = "zero" if size == 0 else "not finite"
        raise ValueError(
            f"{state.where}: its momentum of {name!r} is {fault}, so P is not known. Take a state "
            "after a step with a gradient, or measure other parameters."
        )
    scaled = (momentum.T if is_right(kept.shape) else momentum) / max(size, as_number(group["eps"]))
    squares, U = torch.linalg.eigh(scaled @ scaled.T)
    gains = _gains(squares.clamp(min=0), group) * _adjustment(group, kept.shape)
    gains /= max(size, as_number(group["eps"]))
    if not bool(((gains > 0) & torch.isfinite(gains)).all()):
        raise ValueError(
            f"{state.where}: its ns_coefficients {tuple(group['ns_coefficients'])} turn parts of "
            f"the momentum of {name!r} around, so P is not positive and has no root. Use torch's "
            "own coefficients, or measure other parameters."
        )
    return (U * gains.sqrt()) @ U.T


def _gains(squares: Float[Tensor, " d"], group: Mapping[str, Any]) -> Float[Tensor, " d"]:
    """Compute q(s) / s of Newton-Schulz from s^2."""
    b0, b1, b2 = map(as_number, group["ns_coefficients"])
    gains = torch.ones_like(squares)
    for _ in range(int(group["ns_steps"])):
        factors = b0 + b1 * squares + b2 * squares**2
        gains, squares = gains * factors, squares * factors**2
    return gains


def _adjustment(group: Mapping[str, Any], shape: torch.Size) -> float:
    """Compute the factor of the learning rate of a matrix, as torch does."""
    rows, columns = shape
    kind = group.get("adjust_lr_fn")
    if kind in (None, "original"):
        return math.sqrt(max(1.0, rows / columns))
    if kind == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    if kind == "spectral_unclamped":
        return math.sqrt(rows / columns)
    raise ValueError(
        f"Muon: adjust_lr_fn is {kind!r}, whose factor of the learning rate is not known here, so "
        "P is not known. Use original, match_rms_adamw or spectral_unclamped."
    )
