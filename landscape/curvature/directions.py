r"""Directions in weight space along which a loss is drawn.

Imports only torch and this room. Shapes: n = total size of the parameters, d = number of directions.

What a *filter* is here: the weights that produce one output feature, whose common size a following normalisation can undo.

| parameter | shape | one filter |
|---|---|---|
| Linear, attention's `in_proj_weight` (q, k and v stacked) | (out, in) | a row |
| Conv, depthwise too | (out, in / groups, ...) | all but the first axis |
| Embedding, positional embedding | (rows, width) | a row |
| open_clip's `proj` and `text_projection`, which multiply from the right | (in, out) | a column |
| VMamba's `x_proj_weight` (K, R + 2N, d) and `dt_projs_weight` (K, d, R) | (K, out, in) | one output of one of the K scans |
| `A_log`, `A_logs`: the rates of a scan | (channels, N) | the N rates of a channel |
| anything else of two or more axes | (out, ...) | all but the first axis |

Zero in every direction: tensors of at most one axis (biases, the gains of normalisations, class tokens, `D`, `logit_scale`)
and biases of any shape (`dt_projs_bias` is (K, d)). Moving them would change the function at a scale that no filter sets.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.curvature.objective import Params, flatten
from landscape.errors import ObjectiveError
from landscape.linalg.results import EigenPairs

# Parameters whose outputs are not numbered by the first axis, by the last part of their name.
_AXES = {"proj": (1,), "text_projection": (1,), "x_proj_weight": (0, 1), "dt_projs_weight": (0, 1)}
FILTER_UNIT = "filter norms"
LENGTH_UNIT = "Euclidean length"


@dataclass(frozen=True, eq=False, kw_only=True)
class Direction:
    """A direction in weight space, and what is known of the curvature along it.

    Attributes:
        name: For figures and files.
        unit: What a step of 1 along `vector` means.
        vector: (n,), in the flat order of the parameters.
        eigenvalue: Of the Hessian that `vector` belongs to, in nats per squared parameter; NaN for other directions.
        bound: An eigenvalue lies within this distance of `eigenvalue`; NaN for other directions.
        converged: Whether the eigensolver met its tolerance; None for other directions.
    """

    name: str
    unit: str
    vector: Float[Tensor, " n"]
    eigenvalue: float = math.nan
    bound: float = math.nan
    converged: bool | None = None


def filter_axes(name: str, tensor: Tensor) -> tuple[int, ...] | None:
    """The axes of a parameter that number its filters; None where a filter-normalised direction does not move it."""
    last = name.rpartition(".")[2]
    if tensor.ndim <= 1 or last.endswith("bias"):
        return None
    axes = _AXES.get(last, (0,))
    return axes if len(axes) < tensor.ndim else (0,)


def filter_normalised(direction: Params, params: Params) -> Params:
    """Give every filter of `direction` the norm of the same filter of `params`; see the module for what a filter is.

    A filter of zeros in either stays zeros. Norms are taken in float64.

    Source: Li, Xu, Taylor, Studer & Goldstein, Visualizing the Loss Landscape of Neural Nets (2018), arXiv 1712.09913,
    section 4. Their epsilon in the denominator is left out, so that the norms are equal and not nearly so.

    Raises:
        ValueError: If names or shapes differ.
    """
    if [(name, tensor.shape) for name, tensor in direction.items()] != [
        (name, t.shape) for name, t in params.items()
    ]:
        raise ValueError(
            "A direction needs the names and shapes of the parameters, in their order; take it from `unflatten`."
        )
    normalised = {}
    for name, weights in params.items():
        axes = filter_axes(name, weights)
        if axes is None:
            normalised[name] = torch.zeros_like(weights)
            continue
        rest = [axis for axis in range(weights.ndim) if axis not in axes]
        wanted, found = _norms(weights, rest), _norms(direction[name], rest)
        scale = torch.where(found > 0, wanted / found, torch.zeros_like(found))
        normalised[name] = (direction[name].double() * scale).to(weights.dtype)
    return normalised


def _norms(tensor: Tensor, axes: list[int]) -> Tensor:
    return torch.linalg.vector_norm(tensor, dim=axes, keepdim=True, dtype=torch.float64)


def random_directions(
    params: Params, count: int, *, generator: torch.Generator
) -> tuple[Direction, ...]:
    """Gaussian directions, filter-normalised; on the CPU's generator, so that every device draws the same ones.

    They are not made orthogonal: in n dimensions two of them have a cosine of about 1 / sqrt(n).

    Raises:
        ObjectiveError: If no parameter has a filter, so that every direction is zero.
        ValueError: If `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}.")
    if all(filter_axes(name, tensor) is None for name, tensor in params.items()):
        raise ObjectiveError(
            f"none of the {len(params)} selected parameters ({next(iter(params), 'none')!r}, ...) has a filter: biases and "
            "gains of normalisations do not move along a filter-normalised direction. Select weights, or take eigenvectors."
        )
    directions = []
    for number in range(1, count + 1):
        draw = {
            name: torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t)
            for name, t in params.items()
        }
        vector = flatten(filter_normalised(draw, params))
        directions.append(
            Direction(name=f"random direction {number}", unit=FILTER_UNIT, vector=vector)
        )
    return tuple(directions)


def eigenvector_directions(pairs: EigenPairs) -> tuple[Direction, ...]:
    """The eigenvectors as directions of length 1, each turned so that its largest entry is positive.

    Raises:
        ValueError: If the pairs come without vectors.
    """
    if pairs.vectors is None:
        raise ValueError("The eigenpairs have no vectors; compute them with return_vectors=True.")
    directions = []
    rows: Iterable[Tensor] = pairs.vectors.T
    for number, vector in enumerate(rows, start=1):
        value, residual = float(pairs.values[number - 1]), float(pairs.residuals[number - 1])
        directions.append(
            Direction(
                name=f"eigenvector {number}",
                unit=LENGTH_UNIT,
                vector=vector * torch.sign(vector[vector.abs().argmax()]),
                eigenvalue=value,
                bound=_absolute(value, residual),
                converged=bool(pairs.converged[number - 1]),
            )
        )
    return tuple(directions)


def _absolute(value: float, residual: float) -> float:
    """The absolute bound behind a relative residual; that of a value of zero is 0 if nothing was left over, else unknown."""
    if value == 0 or residual == 0:
        return 0.0 if residual == 0 else math.inf
    return abs(value) * residual
