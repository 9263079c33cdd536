"""What `landscape density` measures: the checkpoints of a manifest, or a model by name, each ready to be measured."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.errors import ManifestError, ObjectiveError
from landscape.manifest import Checkpoint, CheckpointSeries, Manifest
from landscape.manifest.trained import LOCAL_DIR
from landscape.pipeline.audit import model_on_openmoji, verdict_of
from landscape.pipeline.density_shelf import Key, stored_digests
from landscape.pipeline.measure import Notes, device_of
from landscape.pipeline.products import ProductSettings, SeriesProducts
from landscape.pipeline.weights import digest_of

if TYPE_CHECKING:
    from landscape.linalg import SymmetricOperator
    from landscape.pipeline.subject import Subject


@dataclass(frozen=True, kw_only=True)
class DensitySettings:
    """How densities are measured.

    Args:
        num_batches: Mini-batches of each checkpoint, the first of the protocol.
        num_probes, num_matvecs: As `landscape.density` takes them.
        dense_limit: Up to so many parameters that a batch uses, the exact spectrum is measured too.
        seed: Of the random vectors.
        products: How they are computed, and in how much memory.
    """

    num_batches: int = 1
    num_probes: int = 2
    num_matvecs: int = 64
    dense_limit: int = 3000
    seed: int = 0
    products: ProductSettings = ProductSettings()

    def facts(self, manifest: Manifest | None) -> dict[str, Any]:
        """What a stored record must agree with to be taken as it is."""
        numbers = ("num_batches", "num_probes", "num_matvecs", "dense_limit", "seed")
        facts = {name: getattr(self, name) for name in numbers}
        facts["protocol_sha256"] = None if manifest is None else manifest.protocol_digest()
        # All ways of a product compute the same matrix, but for what this rounds off.
        return facts | ({"allow_tf32": True} if self.products.allow_tf32 else {})


@dataclass(frozen=True)
class DensityJob:
    """One checkpoint: what identifies it, how to check it (which gives notes), and how to get its audit and its operators."""

    facts: dict[str, Any]
    check: Callable[[], tuple[str, ...]]
    prepare: "Callable[[Sequence[int]], tuple[bool, Iterable[SymmetricOperator]]]"
    # What was used of how the model was trained, known once it was checked.
    used: Callable[[], dict[str, Any]] = dict

    @property
    def key(self) -> Key:
        return self.facts["series"], self.facts["epoch"]

    def __str__(self) -> str:
        return f"{self.facts['series']} epoch {self.facts['epoch']}"


def manifest_jobs(manifest: Manifest, settings: DensitySettings, options: dict[str, Any]) -> Iterator[DensityJob]:
    wanted = options.get("epochs")
    if settings.num_batches > manifest.data.num_batches:
        raise ManifestError(
            f"{manifest.path}: has {manifest.data.num_batches} batches, but a density over {settings.num_batches} was asked for. "
            "Lower --batches, or raise num_samples."
        )
    known = sorted({one.epoch for series in manifest.series for one in series.checkpoints})
    if wanted is not None and not set(wanted) <= set(known):
        raise ManifestError(f"{manifest.path}: no series has an epoch {sorted(set(wanted) - set(known))[0]}; it has {known}.")
    stored = stored_digests(options["target"])
    subject = _OneSubject(manifest, options.get("device"))
    for series in manifest.series:
        one = _Series(subject, series, settings, unaudited=bool(options.get("unaudited")))
        for checkpoint in series.checkpoints:
            if wanted is None or checkpoint.epoch in wanted:
                facts = {
                    "series": series.name,
                    "label": series.label,
                    "model": series.model,
                    "epoch": checkpoint.epoch,
                    "checkpoint_sha256": digest_of(checkpoint, stored=stored.get((series.name, checkpoint.epoch))),
                    "settings": settings.facts(manifest),
                }
                yield DensityJob(facts, partial(one.check, checkpoint), partial(one.operators, checkpoint), one.what_was_used)


class _OneSubject:
    """The model of the series that is worked on; that of the one before is let go of."""

    def __init__(self, manifest: Manifest, device: str | None) -> None:
        self.manifest, self.device, self.notes = manifest, device, Notes()
        self._series: CheckpointSeries | None = None
        self._subject: Any = None

    def of(self, series: CheckpointSeries) -> "Subject":
        from landscape.clip.image_text import open_pairs
        from landscape.pipeline.subject import Subject

        if self._series is not series:
            self._series = self._subject = None
            self._subject = Subject.of(self.manifest, series, open_pairs(self.manifest.data), device=device_of(self.device))
            self._series = series
        return self._subject


class _Series:
    """The checkpoints of a series: to be checked first, and then measured."""

    def __init__(self, subject: _OneSubject, series: CheckpointSeries, settings: DensitySettings, *, unaudited: bool) -> None:
        self.subject, self.series, self.unaudited = subject, series, unaudited
        self.products = SeriesProducts(settings.products)
        self.used: dict[str, Any] = {}
        self._audited: bool | None = None

    def check(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        """Load a checkpoint once, so that a wrong one is refused before anything is measured; the first time audit the model.

        Returns:
            What is to be known of the data and the checkpoints so far.

        Raises:
            LandscapeError: If the model, the data or the checkpoint is wrong, the audit failed, or products do not fit in memory.
        """
        subject = self.subject.of(self.series)
        self.used = subject.used
        if self._audited is None:
            manifest = self.subject.manifest
            verdict = verdict_of(subject, manifest, self.series, unaudited=self.unaudited, hvp="double-backward")
            self._audited = bool(verdict["passed"])
        self.subject.notes.add(subject, subject.load(checkpoint), series=self.series.name)
        if self.products.choice is None:
            self.products.choose(subject.objective, subject.params, subject.first_batch)
        return self.subject.notes.said

    def what_was_used(self) -> dict[str, Any]:
        """What was used of how the model was trained; empty before it was checked."""
        return self.used

    def operators(self, checkpoint: Checkpoint, indices: Sequence[int]) -> "tuple[bool, Iterable[SymmetricOperator]]":
        """The verdict, and the Hessians of some batches with the weights of a checkpoint."""
        assert self._audited is not None, "check comes first"
        subject = self.subject.of(self.series)
        subject.load(checkpoint)
        return self._audited, self.products.operators(subject.objective, subject.params, map(subject.batch, indices))


def model_job(name: str, settings: DensitySettings, options: dict[str, Any]) -> Iterator[DensityJob]:
    built: list[Any] = []

    def check() -> tuple[str, ...]:
        from landscape.clip.objectives import contrastive_objective
        from landscape.curvature import audit_objective

        model, batches = model_on_openmoji(name, device_of(options.get("device")), num_batches=settings.num_batches)
        audited = False
        if not options.get("unaudited"):
            report = audit_objective(contrastive_objective, model, batches[0])
            audited = report.passed
            if not audited:
                raise ObjectiveError(
                    f"{name}: the audit failed for {', '.join(report.blamed[:3])}, so the density would not be the Hessian's. "
                    f"See `landscape audit {name}`, or measure anyway, and marked so, with --unaudited."
                )
        objective, params = contrastive_objective(model)
        products = SeriesProducts(settings.products)
        products.choose(objective, params, lambda: batches[0])
        built[:] = [audited, products, objective, params, batches]
        return ()

    def prepare(indices: Sequence[int]) -> "tuple[bool, Iterable[SymmetricOperator]]":
        audited, products, objective, params, batches = built
        return audited, products.operators(objective, params, [batches[i] for i in indices])

    is_path = name.startswith(LOCAL_DIR) or name.endswith(".json")
    series = Path(name.removeprefix(LOCAL_DIR)).stem if is_path else name.replace("/", "-")
    facts = {"series": series, "label": name, "model": name, "epoch": 0, "checkpoint_sha256": ""}
    yield DensityJob(facts | {"settings": settings.facts(None)}, check, prepare)
