"""Findings of a slice of the loss, and their limits, in sentences.

For the terminal and for the text under the figure.
"""

import math
from typing import TYPE_CHECKING

from landscape.linalg.number_text import with_error
from landscape.store import axes_of

if TYPE_CHECKING:
    from landscape.surface import Axis, LossSlice, LossSurface

# Largest relative difference at which the curvature from derivatives and the one measured by
# differences of losses agree.
_AGREEMENT = 0.01


def findings(result: "LossSlice | LossSurface") -> list[str]:
    """Write a line per direction and one for the barrier.

    The lines are for a terminal.
    """
    lines = [line for number in range(len(axes_of(result))) if (line := check(result, number))]
    if result.num_undefined:
        lines.append(
            f"{result.num_undefined} of the losses are not finite; they are stored and drawn as "
            "such."
        )
    if barrier := barrier_words(result):
        lines.append(barrier)
    return lines


def check(result: "LossSlice | LossSurface", number: int) -> str:
    """Compare the predicted and the measured curvature along one direction.

    Empty where nothing was predicted.
    """
    axis = axes_of(result)[number]
    if result.local is None:
        return ""
    predicted = float(result.local.hessian[number, number])
    known = f"curvature {predicted:.5g} predicted"
    if not math.isnan(axis.eigenvalue):
        known = (
            "eigenvalue "
            f"{with_error(predicted, axis.bound)}{'' if axis.converged else ' (not converged)'}"
        )
    if axis.fit is None:
        return f"{axis.name}: {known}."
    measured = f"{with_error(axis.fit.value, axis.fit.error)} by differences of losses"
    return f"{axis.name}: {known}, {measured}: {_verdict(axis, predicted)}."


def _verdict(axis: "Axis", predicted: float) -> str:
    """Say whether two curvatures agree.

    They agree if they differ by at most 1 % of the predicted one plus the errors of both, and these
    errors are below 1 % too: a large error must not excuse a large difference. A pair without a
    certificate can be refuted, never confirmed.
    """
    assert axis.fit is not None
    bound = 0.0 if math.isnan(axis.bound) else axis.bound
    error, allowed = axis.fit.error + bound, _AGREEMENT * abs(predicted)
    difference = abs(axis.fit.value - predicted)
    if difference > allowed + error:
        return "THEY DISAGREE"
    if axis.converged is False:
        return "not compared, since the eigenvalue did not converge"
    if error <= allowed and difference <= allowed + error:
        return "they agree"
    if error < abs(predicted):
        return (
            f"consistent within errors of {100 * error / abs(predicted):.2g} %, which are too "
            "large to say more"
        )
    return "too uncertain to tell"


def barrier_words(result: "LossSlice | LossSurface") -> str:
    """Describe the barrier of a line; empty for directions."""
    measure = getattr(result, "barrier", None)
    if measure is None or result.local is not None:
        return ""
    barrier = measure()
    if math.isnan(barrier.height):
        return "barrier unknown: the loss at an end is not finite."
    least = "at least " if barrier.num_missing else ""
    if barrier.height == 0 and not least:
        return "no barrier: the loss rises nowhere above the line between the ends."
    return (
        f"barrier: {least}{barrier.height:.4g} nats above the line between the ends, at "
        f"{barrier.at:.2g} of the way."
    )


def note(
    result: "LossSlice | LossSurface",
    *,
    directions: str,
    num_batches: int,
    num_samples: int,
    samples: str,
) -> str:
    """Write the text under a figure.

    Args:
        directions: "random", "eigenvectors" or "line".
        num_batches, num_samples: Number of batches that are averaged, and of samples in each.
        samples: Name of the samples: "pairs", "blocks".
    """
    batches = f"the mean of {num_batches} batches" if num_batches > 1 else "one batch"
    sentences = [f"Loss of {batches} of {num_samples} {samples}, in nats."]
    sentences += [sentence[0].upper() + sentence[1:] for sentence in findings(result)]
    if hasattr(result, "cosine") and directions == "random":
        sentences.append(f"Cosine between the directions: {result.cosine:.1g}.")
    return " ".join([*sentences, _LIMITS[directions]])


_LIMITS = {
    "random": (
        "Directions: Gaussian, every filter scaled to the norm of the model's (Li et al. 2018); "
        "biases, gains and scalars stay. A random slice shows the mean curvature of all "
        "directions, not the largest or the negative ones, and two models only as far as their "
        "filters compare."
    ),
    "eigenvectors": (
        "Directions: the extreme eigenvectors of the Hessian in the middle. A slice through them "
        "shows the extremes of the curvature there, and nothing of the other directions."
    ),
    "line": (
        "All weights and statistics move together. Between the points the loss may be higher, and "
        "a path around a barrier may exist: the line is one of many."
    ),
}
