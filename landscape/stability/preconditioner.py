r"""The diagonal preconditioner P: a step is -lr P^-1 times the momentum.

- SGD: P = 1.
- Adam, AdamW: torch divides the first moment m by 1 - beta1^t and by sqrt(v / (1 - beta2^t)) + eps,
  so P = (1 - beta1^t) (sqrt(v / (1 - beta2^t)) + eps), as in Cohen et al. (2022); with amsgrad, v
  is the largest so far.
- RMSprop: P = sqrt(v) + eps, and sqrt(v - g^2) + eps with the running mean g of the gradient where
  it is centred.

A group whose learning rate is a fraction r of the largest has P / r: its step is then -lr P^-1
times the momentum with the largest rate too. t and v are those after the last step, before the
gradient at the present parameters enters them. Imports only torch. Shapes: those of a parameter.

Source: Cohen et al., Adaptive gradient methods at the edge of stability (2022), arXiv 2207.14484,
section 3.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.stability.optimizer_state import OptimizerState, as_number

# Takes a tensor with the shape of a parameter to the part of it that this process holds.
Piece = Callable[[Tensor], Tensor]


def preconditioner(state: OptimizerState, name: str, piece: Piece) -> Float[Tensor, "..."] | None:
    """Compute P of a parameter in float64, without its group's learning rate.

    Returns None where the parameter has no state yet.

    Raises:
        ValueError: If the state lacks an entry, has another shape than the parameter, or is not
            finite.
    """
    kept = state.parameters[name]
    kind = state.kind_of(kept.group)
    if kind == "SGD":
        return torch.ones((), dtype=torch.float64)
    if not kept.entries:
        return None
    group = state.groups[kept.group]
    made = _of_rmsprop if kind == "RMSprop" else _of_adam
    P = made(state, name, group, piece)
    if P is not None and not torch.isfinite(P).all():
        raise ValueError(
            f"{state.where}: its state of {name!r} is not finite, so its steps are not either. "
            "Training has diverged or the file is damaged; take a state from before."
        )
    return P


def second_moments(state: OptimizerState, name: str, piece: Piece) -> Tensor | None:
    """Return the mean squares of a parameter's gradients, of which P is made.

    None where P is made of none, or the parameter has no state yet.

    Raises:
        ValueError: As `moments_of`.
    """
    kept = state.parameters[name]
    kind = state.kind_of(kept.group)
    if kind not in ("Adam", "AdamW", "RMSprop") or not kept.entries:
        return None
    return moments_of(state, name, "square_avg" if kind == "RMSprop" else "exp_avg_sq", piece)


def _of_adam(
    state: OptimizerState, name: str, group: Mapping[str, Any], piece: Piece
) -> Tensor | None:
    step = as_number(_entry(state, name, "step"))
    if step < 1:
        return None
    beta1, beta2 = map(as_number, group["betas"])
    key = "max_exp_avg_sq" if group.get("amsgrad", False) else "exp_avg_sq"
    moments = moments_of(state, name, key, piece)
    # P is everything that divides the momentum in Adam's step, both bias corrections included.
    return (1 - beta1**step) * ((moments / (1 - beta2**step)).sqrt() + as_number(group["eps"]))


def _of_rmsprop(
    state: OptimizerState, name: str, group: Mapping[str, Any], piece: Piece
) -> Tensor | None:
    if as_number(_entry(state, name, "step")) < 1:
        return None
    moments = moments_of(state, name, "square_avg", piece)
    if group.get("centered", False):
        # The mean of g^2 less the square of the mean of g: the variance of the gradient g.
        moments = moments - moments_of(state, name, "grad_avg", piece) ** 2
    return moments.sqrt() + as_number(group["eps"])


def _entry(state: OptimizerState, name: str, key: str) -> Any:
    kept = state.parameters[name]
    entries = kept.entries
    if key not in entries:
        raise ValueError(
            f"{state.where}: its state of {name!r} has no {key!r} (it has "
            f"{', '.join(map(str, entries))}), so it is not that of {state.kind_of(kept.group)} "
            "with these settings. Say which optimizer it is, or load the state that belongs to its "
            "settings."
        )
    return entries[key]


def moments_of(state: OptimizerState, name: str, key: str, piece: Piece) -> Tensor:
    """Read a tensor of a parameter's state in float64.

    Raises:
        ValueError: If it is missing, or has another shape than the parameter.
    """
    tensor, shape = _entry(state, name, key), state.parameters[name].shape
    if tensor.shape != shape:
        raise ValueError(
            f"{state.where}: {key!r} of {name!r} has the shape {tuple(tensor.shape)}, but the "
            f"parameter has {tuple(shape)}: the state is that of another model. Load the state "
            "that was saved with these weights."
        )
    return piece(tensor.detach()).double()
