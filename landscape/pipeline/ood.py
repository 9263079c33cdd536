"""`landscape ood`: models on out-of-distribution pictures, beside people and other models, in one file."""

import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.errors import DataError, StoreError
from landscape.manifest import Manifest
from landscape.manifest.settings import OPENMOJI
from landscape.pipeline.distorted_sets import OWN, distorted_requests, forget_own
from landscape.pipeline.evaluation import EvaluationReport, run_evaluation
from landscape.pipeline.picture_sets import Request, SetRequest
from landscape.store import parts_folder
from landscape.store.lock import FolderLock
from landscape.store.predictions import PredictionStore, read_predictions, write_predictions

if TYPE_CHECKING:
    from landscape.answers import Answers

# What OpenMoji's pictures are graded by: its groups of things have too few pictures of a kind for the benchmark's categories.
_OWN_OPENMOJI = "openmoji/subgroup"
# Pixels of a side where no data set fixes them, as in the benchmark.
_SIZE = 224


@dataclass(frozen=True, kw_only=True)
class OodRequest:
    """What models are shown, and whose answers stand beside theirs.

    Args:
        stimuli: Folder of the published stimuli, or of pictures in their layout.
        own: Folder of one's own labelled pictures, or "openmoji", to be distorted.
        kinds: Distortions; all where none are named.
        seed: Of random distortions.
        size: Side in pixels of one's own pictures; None for the manifest's image_size, else 224.
        logit_scale: By which cosines are multiplied for decisions among the 16 categories; None for the learned one.
        people, others: Files and folders of answers of people and of other models.
        written: Folder for the answers of the evaluated models as model-vs-human's CSV files.
    """

    stimuli: Path | None = None
    own: str | None = None
    kinds: tuple[str, ...] = ()
    seed: int = 0
    size: int | None = None
    logit_scale: float | None = 100.0
    people: tuple[Path, ...] = ()
    others: tuple[Path, ...] = ()
    written: Path | None = None

    def answers(self) -> "Answers | None":
        """The answers of people and other models; None where none are named.

        Raises:
            AnswersError: If a file cannot be read.
        """
        from landscape.answers import read_answers

        paths = (*self.people, *self.others)
        return read_answers(paths) if paths else None


@dataclass(frozen=True, kw_only=True)
class OodReport:
    """What a run found and did; `evaluation` is None where no model was named."""

    target: Path
    evaluation: EvaluationReport | None
    answers: "Answers | None"
    files: tuple[Path, ...] = ()
    dry_run: bool = False

    @property
    def complete(self) -> bool:
        return self.evaluation is None or self.evaluation.complete

    def summary(self) -> str:
        """For a terminal."""
        lines = [] if self.evaluation is None else [self.evaluation.summary()]
        if self.answers is not None and not self.dry_run:
            table = self.answers.table
            people, models = (
                int((table["kind"] == "human").sum()),
                int((table["kind"] == "model").sum()),
            )
            lines.append(
                f"{self.target}: holds {people:,} answers of people and {models:,} of other models."
            )
        if self.files:
            lines.append(
                f"{self.files[0].parent.parent}: {len(self.files)} CSV files of answers, as model-vs-human reads them."
            )
        return "\n".join(lines)


def run_ood(
    manifest: Manifest | None,
    output: Path,
    request: OodRequest,
    *,
    dry_run: bool = False,
    **options: Any,
) -> OodReport:
    """Let every checkpoint answer to out-of-distribution pictures, and keep other answers beside.

    Args:
        manifest: None where only people and other models are wanted.
        options: As `run_evaluation` takes them.

    Raises:
        LandscapeError: As `run_evaluation`, or if nothing was asked for.
    """
    answers = request.answers()
    if manifest is None and answers is None:
        raise DataError(
            "ood: there is neither a manifest nor a file of answers, so there is nothing to do. Name one of them."
        )
    if manifest is None and (
        request.stimuli or request.own or request.kinds or request.size or request.written
    ):
        raise DataError(
            "ood: --stimuli, --own, --kind, --size and --write-answers are of models, but no manifest names one. Name one."
        )
    if (
        request.written is not None
        and request.stimuli is None
        and not _has_decisions(Path(os.path.abspath(output)))
    ):
        raise DataError(
            "ood: --write-answers writes answers to the published stimuli, and there are none. Give --stimuli."
        )
    evaluation = None
    if manifest is not None:
        evaluation = run_evaluation(
            manifest, output, requests_for(manifest, request), dry_run=dry_run, **options
        )
    elif not Path(os.path.abspath(output)).parent.is_dir():
        raise StoreError(
            f"{output}: there is no folder {Path(os.path.abspath(output)).parent}; make it first."
        )
    if answers is not None and not dry_run:
        _keep(Path(os.path.abspath(output)), answers)
    files = (
        ()
        if request.written is None or dry_run
        else _written(Path(os.path.abspath(output)), request.written)
    )
    return OodReport(
        target=output, evaluation=evaluation, answers=answers, files=files, dry_run=dry_run
    )


def _has_decisions(target: Path) -> bool:
    """Whether a file holds answers to the benchmark's stimuli."""
    store = read_predictions(target)
    return store is not None and any(
        one.rule.startswith("imagenet16") for one in store.sets.values()
    )


def _written(target: Path, folder: Path) -> tuple[Path, ...]:
    """Write the answers of all evaluated checkpoints about the benchmark's sets.

    Raises:
        StoreError: If there are none.
    """
    from landscape.answers import write_answers

    store = replace(read_ood(target), answers=b"")
    answers = (
        all_answers(store, epochs=sorted({epoch for _, epoch in store.checkpoints}))
        if store.checkpoints
        else None
    )
    if answers is None:
        raise StoreError(
            f"{target}: no model has answered to the benchmark's stimuli: nothing to write. Give --stimuli."
        )
    return tuple(write_answers(answers, folder))


def _keep(target: Path, answers: "Answers") -> None:
    """Put answers into the file, in the place of those that were there."""
    lock = FolderLock(parts_folder(target), output=target)
    try:
        store = read_predictions(target) or PredictionStore()
        write_predictions(
            target, replace(store, answers=answers.table.to_csv(index=False).encode())
        )
    finally:
        lock.release(remove_folder=True)


def requests_for(manifest: Manifest, request: OodRequest) -> Sequence[Request]:
    """The sets that models are shown; OpenMoji's distorted pictures where nothing is named.

    Raises:
        LandscapeError: If there are none, or a distortion cannot be had.
    """
    requests: list[Request] = []
    if request.stimuli is not None and request.own is None and (request.kinds or request.size):
        raise DataError(
            "ood: --kind and --size are of your own pictures, but only --stimuli is given. Add --own."
        )
    if request.stimuli is not None:
        from landscape.pipeline.stimuli_sets import stimuli_requests

        requests += stimuli_requests(request.stimuli, logit_scale=request.logit_scale)
    if request.own is not None or request.stimuli is None:
        size = request.size or manifest.data.image_size or _SIZE
        own = OPENMOJI if request.own is None else request.own
        if own == OPENMOJI:
            base = SetRequest(name=_OWN_OPENMOJI, image_size=size)
        else:
            path = os.path.abspath(own)
            # Never the name of a known set, whose classes it need not have.
            base = SetRequest(
                name=f"own {os.path.basename(path)}", path=path, slip=manifest.evaluation.slip
            )
        forget_own()
        requests += distorted_requests(base, kinds=request.kinds, size=size, seed=request.seed)
    return requests


# --- from a file ------------------------------------------------------------------------------------------------------


def read_ood(path: Path) -> PredictionStore:
    """Read a file of predictions.

    Raises:
        StoreError: If there is none.
    """
    found = read_predictions(path)
    if found is None:
        raise StoreError(f"{path}: there is no such file; `landscape ood` writes one.")
    return found


def all_answers(
    store: PredictionStore, *, series: Iterable[str] = (), epochs: Iterable[int] | None = None
) -> "Answers | None":
    """The answers of people, other models and the evaluated ones about the benchmark's sets; None where there are none.

    Args:
        series, epochs: Of the evaluated ones; by default all series, each at its last epoch.
    """
    import pandas as pd

    from landscape.answers import Answers, answers_of_model
    from landscape.answers.benchmark import NO_ANSWER

    parts: list[Answers] = []
    if store.answers:
        rows = pd.read_csv(io.BytesIO(store.answers), dtype=str, keep_default_na=False)
        parts.append(Answers.of_rows(rows))
    for name, checkpoint in named_checkpoints(store, series=series, epochs=epochs).items():
        by_dataset: dict[str, list[Any]] = {}
        unfinished: set[str] = set()
        for key, answers in checkpoint.sets.items():
            one = store.sets[key]
            if not one.rule.startswith("imagenet16"):
                continue
            if not answers.complete:
                unfinished.add(one.dataset)
            # A picture that could not be read counts as wrong, as an answer that a person did not give in time.
            said = [one.class_names[best] if best >= 0 else NO_ANSWER for best in answers.top[:, 0]]
            kept = range(len(one))
            rows = by_dataset.setdefault(one.dataset, [[], [], [], []])
            for column, values in zip(
                rows,
                (
                    [one.keys[i] for i in kept],
                    [one.condition] * len(kept),
                    [one.class_names[one.labels[i]] for i in kept],
                    said,
                ),
            ):
                column.extend(values)
        for dataset, (images, conditions, categories, responses) in by_dataset.items():
            if dataset in unfinished:
                # Named as missing, not averaged over what is there.
                continue
            parts.append(
                answers_of_model(
                    name,
                    dataset,
                    images=images,
                    conditions=conditions,
                    categories=categories,
                    responses=responses,
                )
            )
    joined: Answers | None = None
    for part in parts:
        joined = part if joined is None else joined + part
    return joined


def named_checkpoints(
    store: PredictionStore, *, series: Iterable[str] = (), epochs: Iterable[int] | None = None
) -> dict[str, Any]:
    """Checkpoints by the name that figures and tables give them: the label, with the epoch where a series has several."""
    from landscape.compare.accuracy_tables import chosen_checkpoints, distinct_labels

    if not store.checkpoints:
        return {}
    series, epochs = tuple(series), None if epochs is None else tuple(epochs)
    chosen = chosen_checkpoints(store, series=series, epochs=epochs).checkpoints
    last = {name: max(epoch for one, epoch in chosen if one == name) for name, _ in chosen}
    shown = (
        chosen
        if epochs is not None
        else {key: one for key, one in chosen.items() if key[1] == last[key[0]]}
    )
    several = {name for name, _ in shown if sum(one == name for one, _ in shown) > 1}
    labels = distinct_labels({name: one.label for (name, _), one in shown.items()})
    return {
        f"{labels[key[0]]} {key[1]}" if key[0] in several else labels[key[0]]: one
        for key, one in shown.items()
    }


def is_own(dataset: str) -> bool:
    """Whether a set is of one's own distorted pictures."""
    return dataset.startswith(OWN)
