"""The record of a batch: columns of eigenpairs."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from landscape import curvature, linalg
from landscape.errors import NumericalError

if TYPE_CHECKING:
    from landscape.curvature import Params
    from landscape.linalg import EigenPairs, RitzValues


_Result = TypeVar("_Result")


def columns_of(eigenpairs: "EigenPairs", k: int) -> dict[str, Any]:
    """Convert the eigenpairs of a batch to columns of a record."""
    import numpy as np

    nodes = weights = np.zeros(0)
    if eigenpairs.quadrature is not None:
        nodes, weights = eigenpairs.quadrature.nodes.numpy(), eigenpairs.quadrature.weights.numpy()
    return {
        "values": eigenpairs.values.cpu().numpy(),
        "residuals": eigenpairs.residuals.cpu().numpy(),
        "converged": eigenpairs.converged.cpu().numpy(),
        **_look_columns(eigenpairs),
        "num_matvecs": eigenpairs.num_matvecs,
        "ritz_values": nodes,
        "ritz_weights": weights,
        **({} if eigenpairs.ritz is None else _ends(eigenpairs.ritz, k)),
    }


def _look_columns(eigenpairs: "EigenPairs") -> dict[str, Any]:
    """Return bounds of the values and facts on missed ones, as columns.

    What the solver does not report is left out.
    """
    columns: dict[str, Any] = {}
    if eigenpairs.value_bounds is not None:
        columns["value_bounds"] = eigenpairs.value_bounds.numpy()
    if eigenpairs.missed is not None:
        columns["missed_distance"] = eigenpairs.missed.distance
        columns["missed_probability"] = eigenpairs.missed.far_probability
    return columns


def _ends(ritz: "RitzValues", k: int) -> dict[str, Any]:
    """Return both ends of the spectrum as columns of a record."""
    (smallest, below), (largest, above) = ritz.end("SA", k), ritz.end("LA", k)
    return {
        "smallest": smallest.numpy(),
        "smallest_residuals": below.numpy(),
        "largest": largest.numpy(),
        "largest_residuals": above.numpy(),
        "num_negative": ritz.num_negative,
        "num_positive": ritz.num_positive,
        "orthogonality_defect": ritz.orthogonality_defect,
    }


def checked_record(kind: Callable[..., _Result], **columns: Any) -> _Result:
    """Build a record from columns.

    Raises:
        NumericalError: If a column holds a value that cannot be stored, as after an overflow.
    """
    try:
        return kind(**columns)
    except ValueError as error:
        raise NumericalError(
            f"{error} The loss or its products overflowed; scale the loss, or use dtype float64."
        ) from error


def norm_of(params: "Params") -> float:
    return linalg.norm(curvature.flatten(params))
