"""The audit of the architectures of a manifest, or of a model by name.

It uses the batches that are measured. The last checkpoint of every architecture is audited: what a
wrong operator leaves out is small at initialisation and grows with training.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape import clip, curvature
from landscape.curvature import audits
from landscape.errors import ManifestError, ObjectiveError
from landscape.manifest import Checkpoint, CheckpointSeries, Manifest
from landscape.manifest.gone import digest_of, is_gone
from landscape.pipeline.series import check_model_name, load_series, open_data

if TYPE_CHECKING:
    import torch

    from landscape.clip.loaded_series import LoadedSeries
    from landscape.curvature import AuditReport, Objective, Params
    from landscape.manifest import HessianSettings

# Rules of differentiation do not depend on the number of rows, so the first rows of a batch suffice
# for its audit.
AUDITED_ROWS = 16
_PROMISED = (
    "the gradient is held against differences of the loss on every batch; no second derivative is "
    "used"
)


@dataclass(frozen=True)
class Audited:
    """An audited architecture: its title, with the weights, and the report.

    `series` and `epoch` are None for a model by name.
    """

    title: str
    report: "AuditReport"
    model: str
    series: str | None = None
    epoch: int | None = None

    def facts(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        report = self.report
        return {
            "title": self.title,
            "model": self.model,
            "series": self.series,
            "epoch": self.epoch,
            "passed": report.passed,
            "faulty_modules": report.faulty_modules,
            "worst_error": report.worst_error,
            "dtype": str(report.dtype).removeprefix("torch."),
            "num_gradients": report.num_gradients,
            "num_products": report.num_products,
            "tests": [
                {
                    "module": row.name,
                    "test": row.test,
                    "error": row.error,
                    "verdict": row.verdict,
                    "reason": row.reason,
                }
                for row in report.rows
            ],
        }


def audit_target(target: str, *, device: str | None = None) -> Iterator[Audited]:
    """Audit the series of a manifest, or a model by its name.

    A model by name has random weights and is audited on OpenMoji pictures.

    Raises:
        LandscapeError: If the manifest, the data, a checkpoint or the name is wrong.
    """
    if Path(target).suffix.lower() not in (".yaml", ".yml"):
        check_model_name(target, "a manifest (.yaml) or the name of a model")
        yield _audit_model(target, clip.device_of(device))
        return
    manifest = Manifest.load(Path(target), checkpoints_exist=False)
    data = open_data(manifest)
    for series in manifest.series:
        loaded = load_series(manifest, series, data, device=clip.device_of(device))
        loaded.load(series.checkpoints[-1])
        epoch = series.checkpoints[-1].epoch
        title = f"{series.name} ({series.model}), epoch {epoch}"
        report = audit_series(loaded, manifest.hessian)
        yield Audited(title, report, series.model, series=series.name, epoch=epoch)


def _audit_model(name: str, device: "torch.device") -> Audited:
    model, batches = clip.model_on_openmoji(name, device, num_batches=1)
    report = curvature.audit_objective(clip.contrastive_objective, model, batches[0])
    return Audited(f"{name}, random weights", report, name)


def audit_series(loaded: "LoadedSeries", hessian: "HessianSettings") -> "AuditReport":
    """Audit a series with its present weights.

    Uses the first rows of the first batch that can be read.
    """

    def make(model: "torch.nn.Module") -> "tuple[Objective, Params]":
        return loaded.objective_on(model, hessian)

    rows = curvature.hvp.take_rows(loaded.first_batch(), slice(0, AUDITED_ROWS))
    return curvature.audit_objective(make, loaded.model, rows, seed=hessian.seed)


def verdict_of(
    loaded: "LoadedSeries",
    manifest: Manifest,
    series: CheckpointSeries,
    *,
    unaudited: bool,
    hvp: str,
) -> dict[str, Any]:
    """Audit a series; return the verdict for its records.

    The verdict is made of JSON values. Where gradient and Hessian of every checkpoint that was
    tried are zero to rounding, as at perfect fits, nothing can be decided. The series is then
    measured, and its records say so.

    Raises:
        ObjectiveError: If the audit fails and `unaudited` is not given; names the module.
    """
    if (stated := stated_verdict(unaudited=unaudited, hvp=hvp)) is not None:
        return stated
    for checkpoint in audited_in_turn(series):
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
        return {"passed": False, "reason": f"undecided: {audits.ZERO_TO_ROUNDING}", **facts}
    if not report.passed:
        raise ObjectiveError(
            f"series {series.name!r} ({series.model}): the audit failed for "
            f"{', '.join(report.faulty_modules[:3])} (test of the {report.failed_test}), so its "
            "eigenvalues would not be those of the "
            f"Hessian. See `landscape audit {manifest.path}`; measure with --hvp "
            "finite-difference, or anyway, and marked so, with --unaudited."
        )
    return {"passed": True, **facts}


def stated_verdict(*, unaudited: bool, hvp: str) -> dict[str, Any] | None:
    """Return the verdict that is stored without an audit.

    None where an audit is made.
    """
    if hvp == "finite-difference":
        return {"passed": True, "product": hvp, "reason": _PROMISED}
    return {"passed": False, "reason": "not audited, by --unaudited"} if unaudited else None


def audited_in_turn(series: CheckpointSeries) -> list[Checkpoint]:
    """Return the checkpoints to audit: the last one, then alternatives.

    The alternatives are for a loss that is fitted so well that nothing can be decided. Only
    existing checkpoints are listed, unless none exists.
    """
    there = [checkpoint for checkpoint in series.checkpoints if not is_gone(checkpoint)] or list(
        series.checkpoints
    )
    return list(dict.fromkeys((there[-1], there[len(there) // 2], there[0])))


def stored_verdict(
    series: CheckpointSeries, verdicts: Iterable[Mapping[str, Any]], digest: str | None
) -> dict[str, Any] | None:
    """Return a stored verdict on the last checkpoint, if any.

    Args:
        verdicts: Verdicts of audits that were passed.
        digest: Digest of that checkpoint in the output, for a file that is gone.
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
    """Refuse HVPs by differences in a method with its own products.

    Raises:
        ManifestError: If the method is such.
    """
    if hvp == "finite-difference" and manifest.hessian.method == "pyhessian":
        raise ManifestError(
            f"{manifest.path}: pyhessian takes its own products; --hvp finite-difference needs "
            "another method."
        )
