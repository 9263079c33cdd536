"""`landscape evaluate`: which checkpoints answer to which labelled pictures, and what came of it."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landscape.errors import DataError, ManifestError, StoreError
from landscape.manifest import Manifest
from landscape.manifest.selection import Selection
from landscape.manifest.settings import OPENMOJI
from landscape.pipeline.evaluation_measurement import EvaluationMeasurement
from landscape.pipeline.picture_sets import Request, SetRequest, check_names
from landscape.pipeline.runner import Outcome, run_measurement
from landscape.store.predictions import PictureSet, PredictionStore, read_predictions, with_sets
from landscape.workers.crew import WorkerSettings

# What is evaluated on where nobody names data: OpenMoji's held-out pictures by their group, subgroup and name.
DEFAULT_SETS = ("openmoji/group", "openmoji/subgroup", "openmoji/name")
# Pixels at which OpenMoji is drawn for models of other pictures.
_DRAWN_SIZE = 224


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """What a run found and did.

    Attributes:
        lines: One for each set: its name, pictures, classes, prompts.
        num_planned: Units over all checkpoints.
    """

    target: Path
    lines: tuple[str, ...]
    num_checkpoints: int
    num_planned: int
    outcome: Outcome
    dry_run: bool = False
    num_unread: int = 0

    @property
    def complete(self) -> bool:
        return (
            self.dry_run or self.outcome.num_stored + self.outcome.num_measured == self.num_planned
        )

    def summary(self) -> str:
        """For a terminal."""
        outcome = self.outcome
        lines = list(self.lines)
        if self.dry_run:
            left = self.num_planned - outcome.num_stored
            lines.append(
                f"to do: {left} of {self.num_planned} units of {self.num_checkpoints} checkpoints."
            )
            return "\n".join(lines)
        done = outcome.num_stored + outcome.num_measured
        lines += outcome.failures
        lines.append(
            f"{self.target}: {done} of {self.num_planned} units of {self.num_checkpoints} checkpoints are answered "
            f"({outcome.num_measured} now, {outcome.num_stored} before). `landscape table {self.target}` shows what they say."
        )
        if self.num_unread:
            lines.append(
                f"{self.num_unread} answers are missing, as pictures could not be read; they count as wrong."
            )
        return "\n".join(lines)


def _listed(sets: Sequence[PictureSet]) -> Iterator[str]:
    """A line for each data set, whose conditions share one."""
    by_dataset: dict[str, list[PictureSet]] = {}
    for one in sets:
        by_dataset.setdefault(one.dataset, []).append(one)
    for dataset, conditions in by_dataset.items():
        first, most = conditions[0], max(map(len, conditions))
        several = f" in {len(conditions)} conditions" if len(conditions) > 1 else ""
        yield (
            f"{dataset}{several}: {most:,} pictures ({first.split or 'all'}), {len(first.class_names)} classes from "
            f"{first.sources['names']}, {first.sources['num_prompts']} prompts from {first.sources['prompts']}"
        )


def requests_of(
    manifest: Manifest, data: Sequence[str] = (), *, slip: Path | None = None
) -> tuple[SetRequest, ...]:
    """The sets that a command line or a manifest names; the embedded pictures where there are none.

    Args:
        data: "NAME=PATH", or "NAME" of a set that needs no path; these replace the manifest's.

    Raises:
        DataError: If one is malformed, or two have one name.
    """
    image_size = manifest.data.image_size if manifest.data.source == OPENMOJI else None
    slip = manifest.evaluation.slip if slip is None else Path(os.path.abspath(slip))
    common: dict[str, Any] = {
        "slip": slip,
        "image_size": _DRAWN_SIZE if image_size is None else image_size,
    }
    requests = []
    for text in data:
        name, sign, path = text.partition("=")
        if not name.strip() or sign and not path:
            raise DataError(
                f"--data {text!r}: expected NAME=PATH, such as food101=/data/food-101, or the name of a set alone."
            )
        requests.append(
            SetRequest(name=name.strip(), path=os.path.abspath(path) if sign else None, **common)
        )
    if not data:
        for one in manifest.evaluation.sets:
            requests.append(SetRequest(name=one.name, path=one.path, split=one.split, **common))
    if not requests:
        requests = [SetRequest(name=name, **common) for name in DEFAULT_SETS]
    check_names([request.name for request in requests])
    if slip is not None and not slip.is_dir():
        raise DataError(
            f"{slip}: there is no such folder; --slip names the one that holds labels.json and templates.json."
        )
    return tuple(requests)


def run_evaluation(
    manifest: Manifest,
    output: Path,
    requests: Sequence[Request],
    *,
    series: tuple[str, ...] = (),
    epochs: tuple[int, ...] | None = None,
    device: str | None = None,
    workers: WorkerSettings = WorkerSettings(),
    dry_run: bool = False,
    progress: bool | None = None,
) -> EvaluationReport:
    """Let every checkpoint answer to the pictures that it has not answered to yet.

    Args:
        output: HDF5 file of the predictions; resumed if it is there.

    Raises:
        LandscapeError: If anything is wrong that can be known before the first answer; nothing is written then.
    """
    selection = Selection(series=series, epochs=epochs)
    selection.check(manifest)
    target = Path(os.path.abspath(output))
    if not target.parent.is_dir():
        raise StoreError(f"{output}: there is no folder {target.parent}; make it first.")
    found = [request.open() for request in requests]
    opened = [one.one for one in found]
    check_names([one.place for one in opened])
    measurement = EvaluationMeasurement(
        manifest=manifest,
        checkpoints=tuple(selection.tasks(manifest)),
        requests=tuple(requests),
        sizes=tuple(len(one) for one in opened),
        identities=tuple(one.identity for one in found),
        target=target,
        device=device,
    )
    if not measurement.checkpoints:
        raise ManifestError(f"{manifest.path}: no checkpoint is selected.")
    lines = tuple(_listed(opened))
    common: dict[str, Any] = {
        "target": output,
        "lines": lines,
        "num_checkpoints": len(measurement.checkpoints),
        "num_planned": measurement.num_planned,
    }
    if dry_run:
        stored = with_sets(read_predictions(target) or PredictionStore(), opened, path=target)
        done = sum(
            bool(
                checkpoint.sets[opened[stretch.number].name]
                .done[stretch.first : stretch.last]
                .all()
            )
            for task in measurement.checkpoints
            if (checkpoint := stored.checkpoints.get((task.series.name, task.checkpoint.epoch)))
            is not None
            for stretch in measurement.stretches
            if opened[stretch.number].name in checkpoint.sets
        )
        return EvaluationReport(**common, outcome=Outcome(num_stored=done), dry_run=True)
    outcome = run_measurement(measurement, workers=workers, progress=progress)
    stored = read_predictions(target) or PredictionStore()
    unread = sum(
        len(answers.unread)
        for checkpoint in stored.checkpoints.values()
        for answers in checkpoint.sets.values()
    )
    return EvaluationReport(**common, outcome=outcome, num_unread=unread)
