"""The audit of the architectures of a manifest, or of a model by name, on the batches that are measured.

Of every architecture the last checkpoint is audited: what a wrong operator drops is small at initialisation and grows
with training.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.errors import ManifestError, ObjectiveError
from landscape.manifest import Checkpoint, CheckpointSeries, Manifest
from landscape.manifest.gone import digest_of, is_gone

if TYPE_CHECKING:
    import torch

    from landscape.clip.loaded_series import LoadedSeries
    from landscape.curvature import AuditReport, Objective, Params
    from landscape.manifest import HessianSettings

# Rules of differentiation do not depend on the number of rows; a batch of any size is audited by its first ones.
_AUDITED_ROWS = 16
_PROMISED = "the gradient is held against differences of the loss on every batch; no second derivative is used"


@dataclass(frozen=True)
class Audited:
    """An architecture, on which weights it was audited, and the verdict."""

    title: str
    report: "AuditReport"


def audit_target(target: str, *, device: str | None = None) -> Iterator[Audited]:
    """The audits of a manifest's series, or of a model by its name with random weights on OpenMoji pictures.

    Raises:
        LandscapeError: If the manifest, the data, a checkpoint or the name is wrong.
    """
    from landscape.clip.image_text import open_pairs
    from landscape.clip.loaded_series import LoadedSeries, device_of

    if Path(target).suffix.lower() not in (".yaml", ".yml"):
        yield _audit_model(target, device_of(device))
        return
    manifest = Manifest.load(Path(target), checkpoints_exist=False)
    pairs = open_pairs(manifest.data)
    for series in manifest.series:
        loaded = LoadedSeries.of(manifest, series, pairs, device=device_of(device))
        loaded.load(series.checkpoints[-1])
        title = f"{series.name} ({series.model}), epoch {series.checkpoints[-1].epoch}"
        yield Audited(title, audit_series(loaded, manifest.hessian))


def _audit_model(name: str, device: "torch.device") -> Audited:
    from landscape.clip.named_model import model_on_openmoji
    from landscape.clip.objectives import contrastive_objective
    from landscape.curvature import audit_objective

    model, batches = model_on_openmoji(name, device, num_batches=1)
    return Audited(
        f"{name}, random weights", audit_objective(contrastive_objective, model, batches[0])
    )


def audit_series(loaded: "LoadedSeries", hessian: "HessianSettings") -> "AuditReport":
    """The audit of a series with the weights that it has, on the first rows of its first batch that can be read."""
    from landscape.curvature import audit_objective
    from landscape.curvature.row_chunks import take_rows

    def make(model: "torch.nn.Module") -> "tuple[Objective, Params]":
        return loaded.objective_on(model, hessian)

    rows = take_rows(loaded.first_batch(), slice(0, _AUDITED_ROWS))
    return audit_objective(make, loaded.model, rows, seed=hessian.seed)


def verdict_of(
    loaded: "LoadedSeries",
    manifest: Manifest,
    series: CheckpointSeries,
    *,
    unaudited: bool,
    hvp: str,
) -> dict[str, Any]:
    """What is stored with every record of a series: JSON values.

    Where gradient and Hessian of every checkpoint that was tried are zero to rounding, as at perfect fits, nothing can be
    decided; the series is then measured, and marked so.

    Raises:
        ObjectiveError: If the audit fails and `unaudited` is not given; names the module.
    """
    from landscape.curvature.audit import ZERO_TO_ROUNDING

    if hvp == "finite-difference":
        return {"passed": True, "product": hvp, "reason": _PROMISED}
    if unaudited:
        return {"passed": False, "reason": "not audited, by --unaudited"}
    for checkpoint in _audited_in_turn(series):
        info = loaded.load(checkpoint)
        report = audit_series(loaded, manifest.hessian)
        if not report.is_zero_to_rounding:
            break
    facts = {
        "worst_error": report.worst_error,
        "dtype": str(report.dtype).removeprefix("torch."),
        "epoch": checkpoint.epoch,
        "checkpoint_sha256": info.sha256,
    }
    if report.is_zero_to_rounding:
        return {"passed": False, "reason": f"undecided: {ZERO_TO_ROUNDING}", **facts}
    if not report.passed:
        raise ObjectiveError(
            f"series {series.name!r} ({series.model}): the audit failed for {', '.join(report.blamed[:3])}, so its eigenvalues "
            f"would not be those of the Hessian. See `landscape audit {manifest.path}`; measure with --hvp finite-difference, or "
            "anyway, and marked so, with --unaudited."
        )
    return {"passed": True, **facts}


def _audited_in_turn(series: CheckpointSeries) -> list[Checkpoint]:
    """The last checkpoint that is there, and those to turn to where its loss is fitted so well that nothing can be decided."""
    there = [one for one in series.checkpoints if not is_gone(one)] or list(series.checkpoints)
    return list(dict.fromkeys((there[-1], there[len(there) // 2], there[0])))


def stored_verdict(
    series: CheckpointSeries, verdicts: Iterable[Mapping[str, Any]], digest: str | None
) -> dict[str, Any] | None:
    """The verdict among those of an output that holds for the last checkpoint of a series; None if none does.

    Args:
        verdicts: Of audits that were passed.
        digest: Of that checkpoint as the output knows it, for a file that is gone.
    """
    verdicts = list(verdicts)
    if not verdicts:
        return None
    last = series.checkpoints[-1]
    now = last.sha256 or digest_of(last, stored=digest)
    return next(
        (dict(verdict) for verdict in verdicts if verdict.get("checkpoint_sha256") == now), None
    )


def check_hvp(manifest: Manifest, hvp: str) -> None:
    """Refuse products by differences in a method that brings its own.

    Raises:
        ManifestError: If so.
    """
    if hvp == "finite-difference" and manifest.hessian.method == "pyhessian":
        raise ManifestError(
            f"{manifest.path}: pyhessian takes its own products; --hvp finite-difference needs another method."
        )
