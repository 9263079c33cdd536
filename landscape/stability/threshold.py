r"""The stability threshold: the curvature at which an optimizer diverges.

It is exact for a quadratic.

Along an eigenvector of P^-1/2 H P^-1/2 with eigenvalue a, in the coordinate x of P^1/2 times the
parameters, every supported optimizer is a linear recurrence while P stays as it is. It is stable
exactly where both roots of its characteristic polynomial z^2 - T z + D lie inside of the unit
circle: |D| < 1, 1 - T + D > 0 and 1 + T + D > 0 (Jury). The last one is the threshold. With eta the
learning rate and c = eta a:

- SGD without momentum: x' = (1 - c) x, so a < 2 / eta.
- SGD with momentum mu and dampening tau: b' = mu b + (1 - tau) a x and x' = x - eta b', so
  T = 1 + mu - (1 - tau) c and D = mu: a < (2 + 2 mu) / ((1 - tau) eta).
- SGD with Nesterov's momentum: b' = mu b + a x and x' = x - eta (a x + mu b'), so
  T = (1 + mu) (1 - c) and D = mu (1 - c): a < (2 + 2 mu) / ((1 + 2 mu) eta).
- Adam and AdamW: m' = beta1 m + (1 - beta1) a x and x' = x - eta m', heavy ball with dampening
  beta1: a < (2 + 2 beta1) / ((1 - beta1) eta), 38 / eta at beta1 = 0.9.
- RMSprop: heavy ball without dampening, and 2 / eta without momentum.

Muon has none. Its P is made of its momentum and shrinks with it, so that on a quadratic the largest
eigenvalue of P^-1/2 H P^-1/2 comes back to the same numbers whatever the curvature; see
docs/stability.md.

Decoupled weight decay w multiplies the parameters by 1 - eta w before each step, which lowers the
threshold by the factor 1 - eta w / 2: 5e-6 less at AdamW's defaults. It is left out, as in the
literature.

Sources: Cohen et al., Gradient descent on neural networks typically occurs at the edge of stability
(2021), arXiv 2103.00065, appendix B, for momentum; Cohen et al., Adaptive gradient methods at the
edge of stability (2022), arXiv 2207.14484, section 3, for Adam. The dampening of torch.optim.SGD
and its form of Nesterov's momentum are derived above.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from landscape.stability.optimizer_state import OptimizerState, as_number, state_of

_OF_DESCENT = "Cohen et al. 2021, arXiv 2103.00065"
_OF_ADAPTIVE = "Cohen et al. 2022, arXiv 2207.14484"
_NO_MUON = (
    "Muon: its steps have one size whatever the gradient, as the momentum is orthogonalised, so on "
    "a quadratic it diverges at no curvature, and P changes as fast as its momentum: there is no "
    "threshold. landscape.preconditioned(H, optimizer) gives P^-1/2 H P^-1/2 without one; the "
    "AdamW beside it has its own."
)


@dataclass(frozen=True)
class StabilityThreshold:
    """The eigenvalue above which an optimizer diverges on a quadratic.

    The eigenvalue is one of P^-1/2 H P^-1/2.

    Attributes:
        value: In the unit of the preconditioned Hessian, one over that of the learning rate;
            infinite where the rate is 0.
        formula: Formula by which it follows from the settings, such as
            "(2 + 2 beta1) / ((1 - beta1) lr)".
        source: Source of the formula.
        settings: The numbers that went into the formula, by name.
    """

    value: float
    formula: str
    source: str
    settings: dict[str, float]

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        numbers = ", ".join(f"{name} = {number:g}" for name, number in self.settings.items())
        return f"{self.value:.6g} = {self.formula} with {numbers} ({self.source})"


def stability_threshold(
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
) -> StabilityThreshold:
    """Compute the eigenvalue above which the optimizer diverges on a quadratic.

    The eigenvalue is one of `preconditioned(H, optimizer)`.

    The quadratic model is exact for a constant preconditioner: always for SGD, and for Adam, AdamW
    and RMSprop in their stationary regime, where the second moments change slowly beside the
    oscillation. Where groups have several learning rates, the value is that of the largest, to
    which the preconditioner scales the others. AdamW's decoupled decay is left out; see
    landscape.stability.threshold for derivations.

    Args:
        optimizer: torch.optim.SGD, Adam, AdamW or RMSprop, or a list of those of one kind.

    Raises:
        ValueError: If the optimizer is another one, such as Muon, its groups differ in momentum, a
            setting has no threshold, such as a momentum of 1, or a learning rate is not finite.

    Examples:
        >>> import torch, landscape
        >>> weight = torch.nn.Parameter(torch.zeros(3))
        >>> landscape.stability_threshold(torch.optim.SGD([weight], lr=0.1)).value
        20.0
        >>> round(landscape.stability_threshold(torch.optim.Adam([weight], lr=1e-3)).value, 1)
        38000.0
    """
    return threshold_of(state_of(optimizer))


def threshold_of(state: OptimizerState) -> StabilityThreshold:
    """Compute the threshold from an optimizer's settings; see `stability_threshold`.

    Raises:
        ValueError: As in `stability_threshold`.
    """
    if "Muon" in (state.kind, *state.kinds):
        raise ValueError(_NO_MUON)
    if len(set(state.kinds)) > 1:
        raise ValueError(
            f"{state.where}: their steps are those of no single rule, so no single threshold holds "
            "for the parameters of all. Ask for the threshold of each optimizer by itself."
        )
    rate = state.learning_rate
    if state.kind in ("Adam", "AdamW"):
        beta1 = as_number(state.agreed("betas", (0.9, 0.999))[0])
        _check(state, "beta1", beta1)
        settings = {"beta1": beta1, "lr": rate}
        return _threshold(
            2 + 2 * beta1,
            (1 - beta1) * rate,
            "(2 + 2 beta1) / ((1 - beta1) lr)",
            _OF_ADAPTIVE,
            settings,
        )
    source = _OF_ADAPTIVE if state.kind == "RMSprop" else _OF_DESCENT
    momentum = as_number(state.agreed("momentum", 0.0))
    _check(state, "momentum", momentum)
    if not momentum:
        return _threshold(2.0, rate, "2 / lr", source, {"lr": rate})
    settings = {"momentum": momentum, "lr": rate}
    if state.kind == "SGD" and state.agreed("nesterov", False):
        formula = "(2 + 2 momentum) / ((1 + 2 momentum) lr)"
        return _threshold(2 + 2 * momentum, (1 + 2 * momentum) * rate, formula, source, settings)
    dampening = as_number(state.agreed("dampening", 0.0)) if state.kind == "SGD" else 0.0
    if not dampening:
        return _threshold(2 + 2 * momentum, rate, "(2 + 2 momentum) / lr", source, settings)
    if not dampening < 1:
        raise ValueError(
            f"{state.where}: has a dampening of {dampening:g}, with which the gradient does not "
            "enter its momentum downhill, so there is no threshold. Use a dampening below 1."
        )
    formula = "(2 + 2 momentum) / ((1 - dampening) lr)"
    settings = {"momentum": momentum, "dampening": dampening, "lr": rate}
    return _threshold(2 + 2 * momentum, (1 - dampening) * rate, formula, source, settings)


def _check(state: OptimizerState, name: str, value: float) -> None:
    """Refuse a momentum with which no curvature is stable."""
    if not 0 <= value < 1:
        raise ValueError(
            f"{state.where}: has a {name} of {value:g}, with which its steps die out for no "
            "curvature at all, so there is no threshold. Use a value from 0 up to, and not "
            "including, 1."
        )


def _threshold(
    numerator: float, denominator: float, formula: str, source: str, settings: dict[str, float]
) -> StabilityThreshold:
    value = numerator / denominator if denominator else math.inf
    return StabilityThreshold(value, formula, source, settings)
