"""Judgement of derivatives: do they agree with differences?"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from landscape.curvature.audits.differences import Point, lengths_of
from landscape.curvature.objective import Params

# Differences have settled where two steps differ by at most this fraction of what is held against
# them.
_SETTLED = 0.2
# Blocks below this fraction of the largest are not judged by their own size.
_NEGLIGIBLE = 1e-6


@dataclass(frozen=True)
class Outcome:
    """A comparison with differences.

    Attributes:
        error: Largest over the parameters of the relative error at the step that suits the value
            best.
        verdict: "passed", "failed", or "undecided" where no step agrees, but the steps do not agree
            among themselves either.
        worst: Name of the parameter with that error.
    """

    error: float
    verdict: str
    worst: str


def judge_derivatives(
    point: Point, direction: Params, slope: Params, product: Params | None, *, size: float = 0.0
) -> tuple[Outcome, Outcome | None]:
    """Compare the gradient and a product with central differences.

    The gradient is compared with differences of the loss, the product with differences of the
    gradient.

    Args:
        direction: Direction in scaled coordinates, as everything here.
        slope: The gradient at the point.
        product: H @ direction; None if there is none.
        size: Size of terms that cancel in the loss, whose rounding is to be allowed for; see
            `natural_size`.
    """
    precision = point.precision
    derivative = point.inner(slope, direction)
    # The root of the sum of squares, not the sum, which may cancel.
    length = float(derivative.norm())
    gradients: list[Params] = []
    losses: list[float] = []
    # Added to a size, so many units let a difference be off by as many units of the rounding of
    # what was subtracted.
    unit = torch.finfo(point.digits).eps / (precision.steps[0] * precision.tolerance)
    first = second = None
    for step in precision.steps:
        ahead, behind = (
            point.loss_and_gradient(direction, step),
            point.loss_and_gradient(direction, -step),
        )
        # Central differences: (f(x + hv) - f(x - hv)) / 2h = f'v + h^2 f'''vvv / 6 + ... Truncation
        # falls as h^2, rounding grows as eps / h, and a kink between the two points spoils both. So
        # several steps are tried.
        losses.append((ahead[0] - behind[0]) / (2 * step))
        gradients.append({name: (ahead[1][name] - behind[1][name]) / (2 * step) for name in slope})
        # tolerance * noise = 100 eps |loss| / h with h the first step: the slope may be off by that
        # much beside the relative tolerance. Likewise 10 eps |gradient| / h for each block of the
        # product.
        noise = 100 * unit * max(abs(ahead[0]), size)
        first = judge_number(
            float(derivative.sum()), losses, size=length + noise, tolerance=precision.tolerance
        )
        if product is not None:
            rounding = {
                name: 10 * unit * max(length, size) for name, length in point.lengths(slope).items()
            }
            second = judge_blocks(
                product,
                gradients,
                rounding=rounding,
                tolerance=precision.tolerance,
                lengths=point.lengths,
            )
        if first.verdict == "passed" and (second is None or second.verdict == "passed"):
            break
    assert first is not None
    return first, second


def _difference(u: Params, v: Params) -> Params:
    return {name: u[name] - v[name] for name in u}


def judge_blocks(
    value: Params,
    differences: list[Params],
    *,
    rounding: dict[str, float],
    tolerance: float,
    lengths: Callable[[Params], dict[str, float]] = lengths_of,
) -> Outcome:
    """Compare each block of `value` with its differences at several steps."""
    own, others = lengths(value), [lengths(difference) for difference in differences]
    # Errors are relative to the size of the block. The least of the differences counts for it: a
    # single wild difference must not make an error look small.
    sizes = {name: max(own[name], min(parts[name] for parts in others)) for name in value}
    floor = _NEGLIGIBLE * max(sizes.values()) + torch.finfo(torch.float64).tiny
    off = [lengths(_difference(value, difference)) for difference in differences]
    apart = [lengths(_difference(u, v)) for u, v in zip(differences, differences[1:])]
    # `off` is the distance of the value from each difference, `apart` that of each difference from
    # the next. `tiny` keeps a value and differences that are all zero from dividing by zero.
    outcomes = []
    for name in value:
        size = sizes[name] + floor + rounding[name]
        errors, moves = ([parts[name] / size for parts in steps] for steps in (off, apart))
        # The best step counts, since truncation spoils large steps and rounding small ones.
        outcomes.append(Outcome(min(errors), _verdict(errors, moves, tolerance), name))
    order = {"failed": 2, "undecided": 1, "passed": 0}
    return max(outcomes, key=lambda outcome: (order[outcome.verdict], outcome.error))


def judge_number(
    value: float, differences: list[float], *, size: float, tolerance: float
) -> Outcome:
    """Compare a number with differences at several steps.

    Errors are in units of `size`.
    """
    size = size + torch.finfo(torch.float64).tiny
    errors = [abs(value - difference) / size for difference in differences]
    moves = [abs(after - before) / size for before, after in zip(differences, differences[1:])]
    return Outcome(min(errors), _verdict(errors, moves, tolerance), "")


def _verdict(errors: list[float], moves: list[float], tolerance: float) -> str:
    if min(errors) <= tolerance:
        return "passed"
    # Two steps that agree with each other, and not with the value, prove it wrong. Where they do
    # not agree either, the differences may be what is wrong, as at a kink.
    settled = any(move <= _SETTLED * min(errors) for move in moves)
    return "failed" if settled else "undecided"


def asymmetry(directions: list[Params], products: list[Params], *, floor: float = 0.0) -> float:
    """Measure the relative asymmetry |B - B^T| / |B| of the Hessian.

    B holds the bilinear forms <u_i, H u_j>, i != j. Norms are Frobenius norms; the result is 0
    where B is 0.

    Args:
        floor: The smallest denominator, where rounding hides what is below it.
    """
    # U^T H U is symmetric if H is; a few forms need no further product.
    forms = torch.tensor(
        [[_inner(u, product) for product in products] for u in directions], dtype=torch.float64
    )
    # The diagonal is symmetric by itself, and would only hide what is beside it.
    forms -= torch.diag(forms.diagonal())
    size = max(float(forms.norm()), floor)
    return float((forms - forms.T).norm()) / size if size > 0 else 0.0


def _inner(u: Params, v: Params) -> float:
    return sum(float((u[name].double() * v[name].double()).sum()) for name in u)
