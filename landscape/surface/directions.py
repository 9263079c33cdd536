r"""Directions in weight space along which a loss is drawn.

Imports only torch and this room.
Shapes: n = total size of the parameters, d = number of directions.

What a *filter* is here: the weights that produce one output feature, whose common size a following
normalisation can undo.

| parameter | shape | one filter |
|---|---|---|
| Linear, attention's `in_proj_weight` (q, k and v stacked) | (out, in) | a row |
| Conv, depthwise too | (out, in / groups, ...) | all but the first axis |
| Embedding, positional embedding | (rows, width) | a row |
| open_clip's `proj` and `text_projection`, which multiply from the right | (in, out) | a column |
| VMamba's `x_proj_weight` (K, R + 2N, d) and `dt_projs_weight` (K, d, R) | (K, out, in) | one
output of one of the K scans | | `A_log`, `A_logs`: the rates of a scan | (channels, N) | the N
rates of a channel | | anything else of two or more axes | (out, ...) | all but the first axis |

Zero in every direction: tensors of at most one axis (biases, the gains of normalisations, class
tokens, `D`, `logit_scale`) and biases of any shape (`dt_projs_bias` is (K, d)). Moving them would
change the function at a scale that no filter sets.
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
    """A direction in weight space, and the curvature known along it.

    Attributes:
        name: Name for figures and files.
        unit: Meaning of a step of 1 along `vector`.
        vector: (n,), in the flat order of the parameters.
        eigenvalue: Eigenvalue of the Hessian that `vector` belongs to, in nats per squared
            parameter; NaN for other directions.
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
    """Return the axes of a parameter that number its filters.

    None where a filter-normalised direction does not move it.
    """
    last = name.rpartition(".")[2]
    if tensor.ndim <= 1 or last.endswith("bias"):
        return None
    axes = _AXES.get(last, (0,))
    # Axes that leave nothing within a filter are not meant: then the first axis numbers filters.
    return axes if len(axes) < tensor.ndim else (0,)


def filter_normalised(direction: Params, params: Params) -> Params:
    """Give every filter of `direction` the norm of that filter in `params`.

    See the module for what a filter is.

    A filter of zeros in either stays zeros. Norms are taken in float64.

    Source: Li, Xu, Taylor, Studer & Goldstein, Visualizing the Loss Landscape of Neural Nets
    (2018), arXiv 1712.09913, section 4. Their epsilon in the denominator is left out, so that the
    norms are equal and not nearly so.

    Raises:
        ValueError: If names or shapes differ.
    """
    if [(name, tensor.shape) for name, tensor in direction.items()] != [
        (name, t.shape) for name, t in params.items()
    ]:
        raise ValueError(
            "A direction needs the names and shapes of the parameters, in their order; take it "
            "from `unflatten`."
        )
    normalised = {}
    for name, weights in params.items():
        axes = filter_axes(name, weights)
        if axes is None:
            normalised[name] = torch.zeros_like(weights)
            continue
        rest = [axis for axis in range(weights.ndim) if axis not in axes]
        # A normalisation that follows undoes the size of a filter, so that the same function can
        # have weights of any size. Steps in units of filter norms do not depend on that size.
        wanted, present = _norms(weights, rest), _norms(direction[name], rest)
        scale = torch.where(present > 0, wanted / present, torch.zeros_like(present))
        normalised[name] = (direction[name].double() * scale).to(weights.dtype)
    return normalised


def _norms(tensor: Tensor, axes: list[int]) -> Tensor:
    return torch.linalg.vector_norm(tensor, dim=axes, keepdim=True, dtype=torch.float64)


def random_directions(
    params: Params, count: int, *, generator: torch.Generator
) -> tuple[Direction, ...]:
    """Draw filter-normalised Gaussian directions.

    They come from the CPU's generator, so that every device draws the same.

    They are not made orthogonal: in n dimensions two of them have a cosine of about 1 / sqrt(n).

    Raises:
        ObjectiveError: If no parameter has a filter, so that every direction is zero.
        ValueError: If `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}.")
    if all(filter_axes(name, tensor) is None for name, tensor in params.items()):
        raise ObjectiveError(
            f"none of the {len(params)} selected parameters ({next(iter(params), 'none')!r}, ...) "
            "has a filter: biases and gains of normalisations do not move along a "
            "filter-normalised direction. Select weights, or take eigenvectors."
        )
    directions = []
    for number in range(1, count + 1):
        # Drawn in float64 and rounded, so that all types get the same direction.
        draw = {
            name: torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t)
            for name, t in params.items()
        }
        vector = flatten(filter_normalised(draw, params))
        # A step of 1 along the vector moves every filter by its own norm.
        directions.append(
            Direction(name=f"random direction {number}", unit=FILTER_UNIT, vector=vector)
        )
    return tuple(directions)


def eigenvector_directions(eigenpairs: EigenPairs) -> tuple[Direction, ...]:
    """Return the eigenvectors as directions of length 1.

    Each is turned so that its largest entry is positive.

    Raises:
        ValueError: If the eigenpairs come without vectors.
    """
    if eigenpairs.vectors is None:
        raise ValueError("The eigenpairs have no vectors; compute them with return_vectors=True.")
    directions = []
    rows: Iterable[Tensor] = eigenpairs.vectors.T
    for number, vector in enumerate(rows, start=1):
        value, residual = (
            float(eigenpairs.values[number - 1]),
            float(eigenpairs.residuals[number - 1]),
        )
        directions.append(
            Direction(
                name=f"eigenvector {number}",
                unit=LENGTH_UNIT,
                # An eigenvector is known up to its sign; with a fixed sign pictures can be
                # compared.
                vector=vector * torch.sign(vector[vector.abs().argmax()]),
                eigenvalue=value,
                bound=_absolute(value, residual),
                converged=bool(eigenpairs.converged[number - 1]),
            )
        )
    return tuple(directions)


def _absolute(value: float, residual: float) -> float:
    """Convert a relative residual into an absolute bound.

    For a value of zero it is 0 if the residual is 0, and infinite otherwise, which means unknown.
    """
    if value == 0 or residual == 0:
        return 0.0 if residual == 0 else math.inf
    # A symmetric matrix has an eigenvalue within ||H v - value v|| of `value`, for |v| = 1
    # (Parlett, The Symmetric Eigenvalue Problem, 1998, theorem 4.5.1).
    return abs(value) * residual
