"""The audit of the architectures of a manifest, or of a model by name, on the batches that are measured.

Of every architecture the last checkpoint is audited: what a wrong operator drops is small at initialisation and grows
with training.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape import threads
from landscape.errors import LandscapeError, ManifestError, ObjectiveError
from landscape.manifest import Checkpoint, CheckpointSeries, DataSettings, Manifest
from landscape.pipeline.weights import digest_of, is_gone
from landscape.store import SpectrumStore, verdicts

if TYPE_CHECKING:
    import torch

    from landscape.curvature import AuditReport, Batch, Objective, Params
    from landscape.manifest import HessianSettings
    from landscape.pipeline.subject import Subject

# The protocol of the papers: batches of 15. One batch is enough to audit a model that no manifest describes.
_PAIRS_PER_BATCH = 15
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
    from landscape.pipeline.measure import device_of
    from landscape.pipeline.subject import Subject

    if Path(target).suffix.lower() not in (".yaml", ".yml"):
        yield _audit_model(target, device_of(device))
        return
    manifest = Manifest.load(Path(target), checkpoints_exist=False)
    pairs = open_pairs(manifest.data)
    for series in manifest.series:
        subject = Subject.of(manifest, series, pairs, device=device_of(device))
        subject.load(series.checkpoints[-1])
        title = f"{series.name} ({series.model}), epoch {series.checkpoints[-1].epoch}"
        yield Audited(title, audit_subject(subject, manifest.hessian))


def _audit_model(name: str, device: "torch.device") -> Audited:
    from landscape.clip.objectives import contrastive_objective
    from landscape.curvature import audit_objective

    model, batches = model_on_openmoji(name, device, num_batches=1)
    return Audited(f"{name}, random weights", audit_objective(contrastive_objective, model, batches[0]))


def model_on_openmoji(name: str, device: "torch.device", *, num_batches: int) -> "tuple[torch.nn.Module, list[Batch]]":
    """A model by its name with random weights of seed 0, and batches of OpenMoji pictures: what no manifest describes.

    Raises:
        LandscapeError: If there is no such model, or the pictures cannot be had.
    """
    from landscape.clip.image_text import curvature_batches, open_pairs
    from landscape.clip.model import build_model, image_size_of, preprocess_for, tokenizer_for

    model = build_model(name, seed=0, device=device)
    threads.fit(model)
    num_samples = num_batches * _PAIRS_PER_BATCH
    data = DataSettings(
        source="openmoji", num_samples=num_samples, batch_size=_PAIRS_PER_BATCH, image_size=image_size_of(model)[0]
    )
    batches = curvature_batches(
        open_pairs(data),
        num_samples=data.num_samples,
        batch_size=data.batch_size,
        seed=0,
        transform=preprocess_for(model),
        tokenizer=tokenizer_for(model),
    )
    return model, [{key: value.to(device) for key, value in batches[i].items()} for i in range(num_batches)]


def audit_subject(subject: "Subject", hessian: "HessianSettings") -> "AuditReport":
    """The audit of a subject with the weights that it has, on the first rows of its first batch that can be read."""
    from landscape.curvature import audit_objective
    from landscape.curvature.row_chunks import take_rows

    def make(model: "torch.nn.Module") -> "tuple[Objective, Params]":
        return subject.objective_on(model, hessian)

    rows = take_rows(subject.first_batch(), slice(0, _AUDITED_ROWS))
    return audit_objective(make, subject.model, rows, seed=hessian.seed)


def verdict_of(
    subject: "Subject", manifest: Manifest, series: CheckpointSeries, *, unaudited: bool, hvp: str
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
        info = subject.load(checkpoint)
        report = audit_subject(subject, manifest.hessian)
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


def stored_verdicts(output: Path, manifest: Manifest) -> dict[str, dict[str, Any]]:
    """The verdicts in an output that hold for the last checkpoint of their series as the manifest lists it."""
    try:
        store = SpectrumStore.open(output)
    except LandscapeError:
        return {}
    found: dict[str, dict[str, Any]] = {}
    with store:
        for series in manifest.series:
            epochs = store.epochs(series.name) if series.name in store.series() else ()
            told = [one for epoch in epochs for one in verdicts(store.records(series.name, epoch).extras) if one.get("passed")]
            if told:
                last = series.checkpoints[-1]
                # A file is read for it once; of one that is gone, its records know the digest.
                digest = last.sha256 or digest_of(last, stored=store.stored().get((series.name, last.epoch)))
                found |= {series.name: dict(one) for one in told if one.get("checkpoint_sha256") == digest}
    return found


def check_hvp(manifest: Manifest, hvp: str) -> None:
    """Refuse products by differences in a method that brings its own.

    Raises:
        ManifestError: If so.
    """
    if hvp == "finite-difference" and manifest.hessian.method == "pyhessian":
        raise ManifestError(f"{manifest.path}: pyhessian takes its own products; --hvp finite-difference needs another method.")
