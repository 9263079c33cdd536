"""The loss of a slice as a function of coordinates.

It is made of model, weights, batches and directions.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from landscape.clip.seeding import derive_seed
from landscape.curvature import HessianOfBatches
from landscape.errors import NumericalError
from landscape.linalg import EigenPairs, eigsh, seeded
from landscape.manifest import HessianSettings, write_atomically
from landscape.pipeline.surface_plan import SurfacePlan
from landscape.surface import (
    Axis,
    LossSlice,
    LossSurface,
    centred,
    eigenvector_directions,
    fit_curvature,
    line_losses,
    local_model,
    losses_along,
    random_directions,
)

if TYPE_CHECKING:
    from landscape.clip.loaded_series import LoadedSeries
    from landscape.curvature import Batch
    from landscape.surface import CurvatureFit, Direction
    from landscape.surface.slices import LossAt

DIRECTIONS_FILE = "directions.safetensors"
# Change of the loss in nats that the local quadratic predicts at the ends of a slice along the
# first eigenvector.
_PREDICTED_RISE = 1.0
# ... and at the largest step from which a curvature is fitted.
_FITTED_RISE = 0.1


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The ingredients of a loss slice or surface.

    Attributes:
        empty: Builds the surface before its first point: axes, certificates, the local quadratic.
        directions_sha256: Digest of the directions; "" for a line, whose ends determine it.
        used: How the model was trained: each value that was used, with its source; see
            `as_trained`.
    """

    loss_at: "LossAt"
    empty: "Callable[[], LossSlice | LossSurface]"
    directions_sha256: str = ""
    used: dict[str, Any] = field(default_factory=dict)


def open_slice(
    loaded: "LoadedSeries", hessian: HessianSettings, plan: SurfacePlan, folder: Path
) -> Slice:
    """Load the model, weights and batches of a plan.

    Args:
        loaded: The series of the plan.
        folder: Folder in which eigenvectors are stored while points are missing.

    Raises:
        LandscapeError: If a checkpoint, the data or the model is not what the manifest says, or has
            no such curvature.
    """
    end = None
    if plan.end is not None:
        loaded.load(plan.end)
        end = {name: tensor.detach().clone() for name, tensor in loaded.model.state_dict().items()}
    loaded.load(plan.checkpoint)
    batches = [loaded.batch(index) for index in range(plan.num_batches)]
    if end is not None:
        return _line(loaded, end, batches, hessian, plan)
    return _plane(loaded, batches, hessian, plan, folder / DIRECTIONS_FILE)


def _line(
    loaded: "LoadedSeries",
    end: "dict[str, torch.Tensor]",
    batches: "list[Batch]",
    hessian: HessianSettings,
    plan: SurfacePlan,
) -> Slice:
    # Exactly 0 and 1 at the ends.
    t = (centred(plan.points, 1.0) + 1) / 2

    def empty() -> LossSlice:
        axis = Axis(name=plan.line_name, unit="share of the way", coordinates=t, norm=math.nan)
        return LossSlice(
            axis=axis, losses=np.full(t.shape, np.nan), computed=np.zeros(t.shape, dtype=bool)
        )

    loss_at = line_losses(
        lambda model: loaded.objective_on(model, hessian), loaded.model, end, batches
    )
    return Slice(loss_at=_guarded(loss_at), empty=empty, used=loaded.used)


def _plane(
    loaded: "LoadedSeries",
    batches: "list[Batch]",
    hessian: HessianSettings,
    plan: SurfacePlan,
    kept: Path,
) -> Slice:
    directions = _directions(loaded, batches, hessian, plan, kept)
    vectors = torch.stack([direction.vector for direction in directions], dim=1)
    loss_at = _guarded(losses_along(loaded.objective, loaded.params, batches, vectors))
    return Slice(
        loss_at=loss_at,
        empty=lambda: _empty_plane(loaded, batches, plan, directions, loss_at),
        directions_sha256=hashlib.sha256(vectors.cpu().contiguous().numpy().tobytes()).hexdigest(),
        used=loaded.used,
    )


def _guarded(loss_at: "LossAt") -> "LossAt":
    """Wrap a loss so that errors of torch name the point.

    They become an error on one line. A loss that is not finite is a value and passes.
    """

    def guarded(*coordinates: float) -> float:
        try:
            return loss_at(*coordinates)
        except (RuntimeError, MemoryError) as error:
            point = ", ".join(f"{coordinate:g}" for coordinate in coordinates)
            reason = " ".join(str(error).split())[:300]
            raise NumericalError(
                f"point ({point}): the loss cannot be evaluated ({type(error).__name__}: "
                f"{reason}). The other points are kept; run the same command again."
            ) from error

    return guarded


def _directions(
    loaded: "LoadedSeries",
    batches: "list[Batch]",
    hessian: HessianSettings,
    plan: SurfacePlan,
    kept: Path,
) -> "tuple[Direction, ...]":
    """Return the directions: random ones from their seed, or eigenvectors.

    Eigenvectors are read from the file `kept`, or else computed and stored there.
    """
    if plan.directions == "random":
        return random_directions(
            loaded.params, plan.dimensions, generator=seeded(derive_seed("surface", plan.seed))
        )
    eigenpairs = _read_pairs(kept, plan, loaded.device)
    if eigenpairs is None:
        eigenpairs = eigsh(
            HessianOfBatches(
                loaded.objective, loaded.params, batches, keep_graphs=len(batches) == 1
            ),
            plan.dimensions,
            hessian.which,  # type: ignore[arg-type]
            tol=hessian.tol,
            max_matvecs=hessian.max_matvecs,
            seed=derive_seed("start", hessian.seed, 0),
        )
        _write_pairs(kept, plan, eigenpairs)
    return eigenvector_directions(eigenpairs)


def _write_pairs(path: Path, plan: SurfacePlan, eigenpairs: "EigenPairs") -> None:
    tensors = {
        name: getattr(eigenpairs, name).cpu().contiguous()
        for name in ("values", "vectors", "residuals", "converged")
    }
    write_atomically(
        path,
        save(
            tensors,
            metadata={"request": plan.request_sha256, "num_matvecs": str(eigenpairs.num_matvecs)},
        ),
    )


def _read_pairs(path: Path, plan: SurfacePlan, device: "torch.device") -> "EigenPairs | None":
    """Read the eigenpairs of an earlier run of the same request.

    None if there are none.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            if facts.get("request") != plan.request_sha256:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (FileNotFoundError, SafetensorError):
        return None
    tensors["vectors"] = tensors["vectors"].to(device)
    return EigenPairs(num_matvecs=int(facts["num_matvecs"]), **tensors)


def _empty_plane(
    loaded: "LoadedSeries",
    batches: "list[Batch]",
    plan: SurfacePlan,
    directions: "tuple[Direction, ...]",
    loss_at: "LossAt",
) -> "LossSlice | LossSurface":
    """Build the surface without points: axes with certificates and fits, quadratic."""
    vectors = torch.stack([direction.vector for direction in directions], dim=1)
    eigenvalues = np.array([direction.eigenvalue for direction in directions])
    local = local_model(
        loaded.objective,
        loaded.params,
        batches,
        vectors,
        loss=loss_at(*[0.0] * len(directions)),
        eigenvalues=None if np.isnan(eigenvalues).any() else eigenvalues,
    )
    coordinates = centred(plan.points, plan.span or _span(directions[0].eigenvalue))
    axes = tuple(
        Axis(
            name=direction.name,
            unit=direction.unit,
            coordinates=coordinates,
            norm=float(torch.linalg.vector_norm(direction.vector, dtype=torch.float64)),
            eigenvalue=direction.eigenvalue,
            bound=direction.bound,
            converged=direction.converged,
            fit=_fit(loss_at, number, local.hessian, vectors.dtype),
        )
        for number, direction in enumerate(directions)
    )
    shape = (plan.points,) * len(axes)
    nothing: dict[str, Any] = {
        "losses": np.full(shape, np.nan),
        "computed": np.zeros(shape, dtype=bool),
        "local": local,
    }
    if len(axes) == 1:
        return LossSlice(axis=axes[0], **nothing)
    inner = float(directions[0].vector.double() @ directions[1].vector.double())
    return LossSurface(
        axes=(axes[0], axes[1]), cosine=inner / (axes[0].norm * axes[1].norm), **nothing
    )


def _span(eigenvalue: float) -> float:
    """Return the default extent of a slice to either side.

    Along random directions (NaN) it is one filter norm. Along eigenvectors it is where the first
    one's curvature alone predicts a nat: lambda t^2 / 2 = 1, so t = sqrt(2 / |lambda|).
    """
    return math.sqrt(2 * _PREDICTED_RISE / abs(eigenvalue)) if abs(eigenvalue) > 0 else 1.0


def _fit(loss_at: "LossAt", number: int, hessian: Any, dtype: "torch.dtype") -> "CurvatureFit":
    def along(step: float) -> float:
        coordinates = [0.0] * len(hessian)
        coordinates[number] = step
        return loss_at(*coordinates)

    curvature = abs(float(hessian[number, number]))
    return fit_curvature(
        along, radius=math.sqrt(2 * _FITTED_RISE / curvature) if curvature > 0 else 1.0, dtype=dtype
    )
