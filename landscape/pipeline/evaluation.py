"""`landscape evaluate`: the request, its checks, and the report.

Checkpoints classify labelled pictures.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landscape import datasets
from landscape.errors import DataError, ManifestError, NoEffect, StoreError, check_effects
from landscape.manifest import Manifest
from landscape.manifest.language import is_language
from landscape.manifest.selection import Selection
from landscape.manifest.settings import OPENMOJI
from landscape.pipeline.evaluation_measurement import EvaluationMeasurement
from landscape.pipeline.evaluation_output import StoredAnswers
from landscape.pipeline.picture_sets import Request, SetRequest, check_names
from landscape.pipeline.runner import Outcome, run_measurement
from landscape.store import parts_folder
from landscape.store.predictions import (
    PictureSet,
    left_out_of,
    num_levels,
)
from landscape.workers.crew import WorkerSettings

# Default data sets: OpenMoji's held-out pictures by their group, subgroup and name.
DEFAULT_SETS = ("openmoji/group", "openmoji/subgroup", "openmoji/name")
# Side in pixels of OpenMoji's pictures for models of other pictures.
_DRAWN_SIZE = 224


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """Report of a run.

    Attributes:
        lines: A line for each set: its name, pictures, classes, prompts.
        num_planned: Units over all checkpoints.
    """

    target: Path
    lines: tuple[str, ...]
    num_checkpoints: int
    num_planned: int
    outcome: Outcome
    dry_run: bool = False

    @property
    def num_unread(self) -> int:
        """Return the number of missing answers, as pictures could not be read."""
        return self.outcome.num_unread

    @property
    def complete(self) -> bool:
        return (
            self.dry_run or self.outcome.num_stored + self.outcome.num_measured == self.num_planned
        )

    def summary(self) -> str:
        """Format the report for a terminal."""
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
            f"{self.target}: {done} of {self.num_planned} units of {self.num_checkpoints} "
            f"checkpoints are answered ({outcome.num_measured} now, {outcome.num_stored} before). "
            f"`landscape table {self.target}` shows what they say."
        )
        if self.num_unread:
            lines.append(
                f"{self.num_unread} answers are missing, as pictures could not be read; they count "
                "as wrong."
            )
        return "\n".join(lines)


def _listed(sets: Sequence[PictureSet]) -> Iterator[str]:
    """Yield a line for each data set, with all its conditions."""
    by_dataset: dict[str, list[PictureSet]] = {}
    for pictures in sets:
        by_dataset.setdefault(pictures.dataset, []).append(pictures)
    for dataset, conditions in by_dataset.items():
        first, most = conditions[0], max(map(len, conditions))
        there, planned = num_levels(conditions, dataset)
        of_all = f" of {planned}" if planned > there else ""
        several = f" in {there}{of_all} conditions" if planned > 1 else ""
        yield (
            f"{dataset}{several}: {most:,} pictures ({first.split or 'all'}), "
            f"{len(first.class_names)} classes from {first.sources['names']}, "
            f"{first.sources['num_prompts']} prompts from {first.sources['prompts']}"
        )


def requests_of(
    manifest: Manifest, data: Sequence[str] = (), *, slip: Path | None = None
) -> tuple[SetRequest, ...]:
    """Return the sets that a command line or a manifest names.

    The embedded pictures where none is named.

    Args:
        data: "NAME=PATH", or "NAME" of a set that needs no path; these replace the manifest's.

    Raises:
        DataError: If an entry is malformed, or two have the same name.
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
        if not name.strip() or (sign and not path):
            raise DataError(
                f"--data {text!r}: expected NAME=PATH, such as food101=/data/food-101, or the name "
                "of a set alone."
            )
        requests.append(
            SetRequest(name=name.strip(), path=os.path.abspath(path) if sign else None, **common)
        )
    if not data:
        for entry in manifest.evaluation.sets:
            requests.append(
                SetRequest(name=entry.name, path=entry.path, split=entry.split, **common)
            )
    if not requests:
        requests = [SetRequest(name=name, **common) for name in DEFAULT_SETS]
    check_names([request.name for request in requests])
    if slip is not None and not slip.is_dir():
        raise DataError(
            f"{slip}: there is no such folder; --slip names the one that holds labels.json and "
            "templates.json."
        )
    return tuple(requests)


def _without_effect(opened: Sequence[PictureSet]) -> Iterator[NoEffect]:
    sources = {str(pictures.sources[key]) for pictures in opened for key in ("names", "prompts")}
    if not any(datasets.SLIP_FILES in source for source in sources):
        why = f"names and prompts of these sets come from {' and '.join(sorted(sources))}"
        yield NoEffect(("--slip",), why, "Leave it out, or name a set of Table 1 that lacks them.")


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
    stated: Collection[str] = (),
) -> EvaluationReport:
    """Classify pictures by every checkpoint that has not yet done so.

    Args:
        output: HDF5 file of the predictions; resumed if it exists.
        stated: Options that the user stated; see `check_effects`.

    Raises:
        LandscapeError: If anything is wrong that can be known before the first answer; nothing is
            written then.
    """
    if is_language(manifest.hessian.objective):
        raise ManifestError(
            f"{manifest.path}: is of language models, which do not classify pictures. Name another "
            "manifest."
        )
    selection = Selection(series=series, epochs=epochs)
    selection.check(manifest)
    target = Path(os.path.abspath(output))
    if not target.parent.is_dir():
        raise StoreError(f"{output}: there is no folder {target.parent}; make it first.")
    opened = [request.open() for request in requests]
    sets = [opened_set.stored for opened_set in opened]
    check_names([pictures.place for pictures in sets])
    check_effects("evaluate", stated, _without_effect(sets))
    measurement = EvaluationMeasurement(
        manifest=manifest,
        checkpoints=tuple(selection.tasks(manifest)),
        requests=tuple(requests),
        sizes=tuple(len(pictures) for pictures in sets),
        identities=tuple(opened_set.identity for opened_set in opened),
        opened=tuple(opened),
        target=target,
        device=device,
    )
    if not measurement.checkpoints:
        raise ManifestError(f"{manifest.path}: no checkpoint is selected.")
    lines = (*_listed(sets), *left_out_of(sets))
    common: dict[str, Any] = {
        "target": output,
        "lines": lines,
        "num_checkpoints": len(measurement.checkpoints),
        "num_planned": measurement.num_planned,
    }
    if dry_run:
        stored = StoredAnswers(
            target,
            parts_folder(target),
            sets,
            tasks=measurement.tasks,
            stretches=measurement.stretches,
        )
        left = sum(len(task.indices) for task in stored.remaining())
        return EvaluationReport(
            **common, outcome=Outcome(num_stored=measurement.num_planned - left), dry_run=True
        )
    outcome = run_measurement(measurement, workers=workers, progress=progress)
    return EvaluationReport(**common, outcome=outcome)
