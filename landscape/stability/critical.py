r"""Critical sharpness: the curvature along an update, from forward passes alone.

The critical learning rate eta_c is the smallest at which the step along the update makes the loss
higher than it is; the critical sharpness is 2 / eta_c. With f(eta) the change of the loss and
q(eta) = f(eta) / eta, eta_c is a zero of q. On a quadratic q is a straight line, q(eta) =
g.d + eta d.H d / 2 for the update d per unit of the rate, so the secant through two points meets
the zero exactly. The search is that secant method inside of a bracket: a lower end at which the
loss is lower and an upper end at which it is higher, until they are close together. In float32 the
signs at both ends are compared with those in float64, since the rounding of a nearly fitted
network's loss is many units of it; where they differ, the search is made again in float64.

Source: Kalra, Gagnon-Audet, Gromov, Mediratta, Niu, Miller & Shvartsman, A Scalable Measure of Loss
Landscape Curvature for Analyzing the Training Dynamics of LLMs (2026), arXiv 2601.16979, whose
search doubles or halves the rate and then bisects, to 1/16 of it; the secant is ours.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from landscape.curvature.objective import Batch
from landscape.stability.nearby import LossNearby
from landscape.stability.update import Update

# Factor of the first move without a second point for a secant, and the largest of any.
_DOUBLE, _MOST = 2.0, 16.0
# Steps by which the next point passes the zero of the secant, as a share of the tolerance: both
# ends together then are within two thirds of it.
_PASSES = 1 / 3


@dataclass(frozen=True, kw_only=True)
class CriticalSharpness:
    """2 / (critical learning rate) along an update, with the bracket that certifies it.

    The unit is that of the threshold 2 / lr: one over that of the learning rate.

    Attributes:
        value: 2 over the zero of the secant between both ends of the bracket, exact on a quadratic;
            NaN where there is no bracket.
        low, high: 2 over the ends of the bracket: the loss crosses its own value at a rate between
            2 / high and 2 / low, if it is continuous. 0 where the loss did not rise at any rate
            tried, inf where it did not fall at any. A crossing at a smaller rate between two tried
            ones is not excluded.
        rates, changes: Learning rates that were tried, ascending, and the changes of the loss there
            in nats; infinite or NaN as computed, and NaN where the loss raised an exception. Both
            count as a rise.
        noise: Changes within this of zero are taken for rounding and move no end of the bracket.
        is_exact: Whether both ends of the bracket have their signs in float64 too: the model is in
            float64, or its losses were compared. False where it cannot be taken there: then `noise`
            is an allowance, and near a fit the rounding of the losses may be more.
        change: Change of the loss by the step at the update's own rate; NaN where not tried.
        loss: The loss before the step, in nats.
        num_losses: Forward passes, those that tell whether the loss is random included, and those
            in float64 not.
        converged: Whether the bracket is as narrow as `tol` asks.
    """

    value: float
    low: float
    high: float
    rates: tuple[float, ...]
    changes: tuple[float, ...]
    noise: float
    change: float
    loss: float
    num_losses: int
    converged: bool
    is_exact: bool

    def __str__(self) -> str:
        doubt = "" if self.converged else " (not converged)"
        return f"{self.value:.4g} within [{self.low:.4g}, {self.high:.4g}]{doubt}"


def critical_sharpness(
    model: nn.Module,
    loss: Callable[[Any, Batch], Tensor],
    batch: Batch,
    update: Update,
    *,
    parameters: str | Sequence[str] = "all",
    weight_decay: float = 0.0,
    tol: float = 1 / 16,
    max_losses: int = 24,
) -> CriticalSharpness:
    """Measure the critical sharpness along an update.

    It takes 6 to 10 forward passes on a smooth loss, and in float32 three more in float64.

    On a quadratic it is -d.H d / g.d, for the gradient g and the update d per unit of the rate:
    g.H g / g.g for gradient descent. For d = -P^-1 g it is then a Rayleigh quotient of P^-1/2 H
    P^-1/2, so it bounds the largest eigenvalue of `landscape.preconditioned` from below; away from
    a quadratic, and with momentum, it bounds nothing but itself.

    Args:
        model, loss, batch, parameters, weight_decay: As in `landscape.hessian`, but the parameters
            must be all that the update moves. The model stays as it is.
        update: Direction and learning rate of the first step tried; see `landscape.next_update`.
        tol: Wanted width of the bracket of rates, as a fraction of its upper end. 1/16 as in the
            source's code.
        max_losses: Limit on forward passes; as many again in float64 where rounding hides the
            crossing in float32.

    Raises:
        ObjectiveError: If the loss before the step is not one finite, deterministic number.
        ValueError: If a number is out of range, or the update is not one of these parameters.

    Source: see this module.

    Examples:
        >>> import torch, landscape
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        >>> batch = torch.randn(32, 4).double(), torch.randn(32, 1).double()
        >>> def loss(model, batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        ...
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> loss(model, batch).backward()
        >>> update = landscape.next_update(optimizer, model)
        >>> critical = landscape.critical_sharpness(model, loss, batch, update)
        >>> critical.low <= critical.value <= critical.high
        True
    """
    _check(tol, max_losses)
    nearby = LossNearby.of(model, loss, batch, parameters=parameters, weight_decay=weight_decay)
    return critical_of(nearby, update, tol=tol, max_losses=max_losses)


def critical_of(
    nearby: LossNearby, update: Update, *, tol: float = 1 / 16, max_losses: int = 24
) -> CriticalSharpness:
    """Search for the critical learning rate; see `critical_sharpness`."""
    # First that it is one of these parameters at all.
    direction = update.vector(nearby.params)
    outside = [
        name
        for name, moved in update.displacement.items()
        if name not in nearby.params and bool(moved.any())
    ]
    if outside:
        raise ValueError(
            f"{outside[0]}: the update moves it, but it is not among the selected parameters, so "
            "the losses would not be those of the step. Select all that the update moves, or give "
            "an Update of the selected ones alone."
        )

    def change_at(factor: float) -> float:
        return nearby.loss_at(factor * direction) - nearby.loss

    bracket = _Bracket(noise=nearby.noise, margin=tol * _PASSES)
    _search(bracket, change_at, tol=tol, max_tried=max_losses - nearby.num_losses)
    is_exact = direction.dtype == torch.float64
    if not is_exact:
        exact = {factor: nearby.change_in_float64(factor * direction) for factor in bracket.ends()}
        known = {factor: change for factor, change in exact.items() if change is not None}
        is_exact = len(known) == len(exact)
        if is_exact and not bracket.confirm(known, tol):
            better = _exact_bracket(nearby, direction, tol=tol, max_tried=max_losses)
            bracket, is_exact = (bracket, False) if better is None else (better, True)
    tried = sorted(bracket.tried)
    return CriticalSharpness(
        value=2 / (bracket.estimate() * update.rate),
        low=2 / (bracket.high * update.rate),
        high=2 / (bracket.low * update.rate) if bracket.low else math.inf,
        rates=tuple(factor * update.rate for factor, _ in tried),
        changes=tuple(change for _, change in tried),
        noise=bracket.noise,
        change=next((change for factor, change in tried if factor == 1), math.nan),
        loss=nearby.loss,
        num_losses=nearby.num_losses,
        converged=bracket.is_within(tol),
        is_exact=is_exact,
    )


def _exact_bracket(
    nearby: LossNearby, direction: Float[Tensor, " n"], *, tol: float, max_tried: int
) -> "_Bracket | None":
    """Search by losses in float64; None where they cannot be taken there after all."""
    is_missing = False

    def change_at(factor: float) -> float:
        nonlocal is_missing
        change = nearby.change_in_float64(factor * direction)
        is_missing = is_missing or change is None
        return math.nan if change is None else change

    digits = torch.finfo(torch.float64).eps / torch.finfo(direction.dtype).eps
    bracket = _Bracket(noise=nearby.noise * digits, margin=tol * _PASSES)
    _search(bracket, change_at, tol=tol, max_tried=max_tried)
    # Memory that runs out is no property of the loss, but would count as a rise.
    return None if is_missing else bracket


def _search(
    bracket: "_Bracket", change_at: Callable[[float], float], *, tol: float, max_tried: int
) -> None:
    """Add factors until the bracket is narrow, or none can help."""
    while len(bracket.tried) < max_tried and not bracket.is_within(tol):
        factor = bracket.propose()
        if factor is None:
            break
        bracket.add(factor, change_at(factor))


@dataclass
class _Bracket:
    """Factors of the update between which the loss crosses its own value.

    Attributes:
        noise: Changes of the loss up to this tell nothing.
        margin: Fraction by which the next factor passes the zero of the secant.
        low, high: Largest factor with a lower loss below the smallest with a higher one.
        tried: Factors and changes of the loss, in the order of the search.
        decided: Those that are beyond the noise.
        widths: Widths of the bracket after each change, once it has two ends.
        aims_at_root: Whether the last factor passed the zero of a secant to give a missing end.
        num_passed: Number of such factors that did not.
        num_blind: Number of factors above the lower end that no secant led to.
    """

    noise: float
    margin: float
    low: float = 0.0
    high: float = math.inf
    tried: list[tuple[float, float]] = field(default_factory=list)
    decided: list[tuple[float, float]] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)
    aims_at_root: bool = False
    num_passed: int = 0
    num_blind: int = 0

    def add(self, factor: float, change: float) -> None:
        """Take the change of the loss at a factor."""
        self.tried.append((factor, change))
        if abs(change) <= self.noise:
            # Too near to the zero for this arithmetic: pass it by more. A first step that is too
            # short says nothing of the zero.
            self.margin *= 2 if self.decided else 1
            return
        self.decided.append((factor, change))
        if change < 0:
            self.low = max(self.low, factor)
        else:
            # Not a number, or an exception, is no lower loss either.
            self.high = min(self.high, factor)
        if self.is_closed:
            self.widths.append(self.high - self.low)
        elif self.aims_at_root:
            self.num_passed += 1

    @property
    def is_closed(self) -> bool:
        """Tell whether both ends were seen."""
        return self.low > 0 and math.isfinite(self.high)

    def is_within(self, tol: float) -> bool:
        """Tell whether the bracket is as narrow as wanted."""
        return self.is_closed and self.high - self.low <= tol * self.high

    def ends(self) -> tuple[float, ...]:
        """Return the factors at the ends of the bracket; the first one where there is none."""
        ends = tuple(end for end in (self.low, self.high) if 0 < end < math.inf)
        return ends or tuple(factor for factor, _ in self.tried[:1])

    def confirm(self, exact: Mapping[float, float], tol: float) -> bool:
        """Take the changes at the ends from a better evaluation, if they have the same signs.

        Returns:
            Whether they have, and no factor within the noise keeps the bracket from being narrow.
        """
        if not self.is_within(tol) and len(self.decided) < len(self.tried):
            return False
        # Not a number is no lower loss.
        if not exact.get(self.low, -1.0) < 0 or exact.get(self.high, 1.0) <= 0:
            return False
        self.decided = [(factor, exact.get(factor, change)) for factor, change in self.decided]
        return True

    def propose(self) -> float | None:
        """Choose the next factor to try; None where none can help."""
        if not self.decided:
            factor = self.tried[-1][0] * _MOST if self.tried else 1.0
        elif self._is_slow():
            factor = self._middle()
        else:
            factor = self._beside_root()
        is_inside = self.low < factor < self.high and math.isfinite(factor)
        seen = any(math.isclose(factor, other, rel_tol=1e-9) for other, _ in self.tried)
        return factor if is_inside and not seen and self.margin < 0.5 else None

    def _is_slow(self) -> bool:
        """Tell whether two steps have not halved the bracket."""
        return len(self.widths) > 2 and self.widths[-1] > 0.5 * self.widths[-3]

    def _beside_root(self) -> float:
        """Pass the zero of the secant, towards the missing or farther end."""
        root = self.root()
        if root is None or not self.low < root < self.high:
            return self._middle() if self.is_closed else self._further(None)
        if not self.is_closed:
            return self._further(root * (1 + self.margin if self.low else 1 - self.margin))
        is_below = root - self.low > self.high - root
        target = root * (1 - self.margin if is_below else 1 + self.margin)
        # A zero that near to an end: the tolerance is met once the other end has come closer.
        return target if self.low < target < self.high else self._middle()

    def _further(self, target: float | None) -> float:
        """Go beyond the only end, to a target or by a factor."""
        # Each zero that was passed without a change of sign makes the next move larger, and so does
        # each move without a secant: small steps in a row have none, as the rounding hides it.
        is_blind = bool(self.low) and target is None
        growth = min(_DOUBLE ** (1 + self.num_passed + (self.num_blind if is_blind else 0)), _MOST)
        self.num_blind += is_blind
        if self.low:
            least = self.low * growth if target is None or self.num_passed else self.low
            factor = min(max(target or least, least), self.low * _MOST)
        else:
            most = self.high / growth if target is None or self.num_passed else self.high
            factor = max(min(target or most, most), self.high / _MOST)
        self.aims_at_root = factor == target
        return factor

    def _middle(self) -> float:
        """Return the middle of the bracket; the geometric one where it is wide."""
        if self.high > 4 * self.low:
            return math.sqrt(self.low * self.high)
        return (self.low + self.high) / 2

    def estimate(self) -> float:
        """Return where the loss crosses its own value; NaN without a bracket."""
        if not self.is_closed:
            return math.nan
        root = self.root()
        is_inside = root is not None and self.low < root < self.high
        return root if root is not None and is_inside else (self.low + self.high) / 2

    def root(self) -> float | None:
        """Compute the zero of a secant of change / factor.

        It goes through the points next to the zero: both ends of the bracket, or the two outermost
        on its only side.
        """
        finite = [(t, change) for t, change in self.decided if math.isfinite(change)]
        falls = sorted(point for point in finite if point[1] < 0)
        rises = sorted(point for point in finite if point[1] > 0)
        points = [*falls[-1:], *rises[:1]] if falls and rises else [*falls[-2:], *rises[:2]]
        if len(points) < 2:
            return None
        (t1, change1), (t2, change2) = points
        q1, q2 = change1 / t1, change2 / t2
        if not q2 > q1:
            return None
        return t1 - q1 * (t2 - t1) / (q2 - q1)


def _check(tol: float, max_losses: int) -> None:
    if not 0 < tol < 1:
        raise ValueError(
            f"tol must be a fraction between 0 and 1, got {tol}: the width of the bracket of "
            "learning rates over its upper end. 1/16 is the usual one."
        )
    if max_losses < 4:
        raise ValueError(
            f"max_losses must be at least 4, got {max_losses}: two forward passes before the step "
            "and one at each end of the bracket. Allow more."
        )
