"""`landscape ood`: answers to out-of-distribution pictures, in one file.

The answers of models stand beside those of people and other models.
"""

import io
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from landscape import clip
from landscape.answers import Answers, answers_of_model, read_answers, write_answers
from landscape.answers.benchmark import NO_ANSWER
from landscape.answers.table import joined
from landscape.compare.accuracy_tables import chosen_checkpoints, distinct_labels
from landscape.distortions import kind_of
from landscape.errors import DataError, NoEffect, StoreError, check_effects
from landscape.manifest import Manifest
from landscape.manifest.settings import OPENMOJI
from landscape.pipeline.distorted_sets import OWN, DistortedRequest, distorted_requests, forget_own
from landscape.pipeline.evaluation import DEFAULT_SETS, EvaluationReport, run_evaluation
from landscape.pipeline.picture_sets import Request, SetRequest
from landscape.pipeline.stimuli_sets import stimuli_requests
from landscape.store import parts_folder
from landscape.store.lock import FolderLock
from landscape.store.predictions import PredictionStore, read_predictions, write_predictions

# Classes of OpenMoji's pictures: its groups have too few pictures of a kind for the benchmark's
# categories.
_OWN_OPENMOJI = {OPENMOJI: "openmoji/subgroup"} | {name: name for name in DEFAULT_SETS}
# Options on the pictures, and on how models decide, by the fields of `OodRequest`.
_OF_MODELS = {
    "stimuli": "--stimuli",
    "own": "--own",
    "kinds": "--kind",
    "size": "--size",
    "seed": "--seed",
    "logit_scale": "--logit-scale",
    "written": "--write-answers",
}
_OF_RUNS = (
    "--series",
    "--epochs",
    "--device",
    "--workers",
    "--scheduler",
    "--cluster",
    "--threads",
)
# Side of pictures in pixels where no data set determines it, as in the benchmark.
_SIZE = 224


@dataclass(frozen=True, kw_only=True)
class OodRequest:
    """The pictures that models classify, and the answers of other observers.

    Args:
        stimuli: Folder of the published stimuli, or of pictures in their layout.
        own: Folder of the user's labelled pictures, to be distorted; or "openmoji", which is its
            "openmoji/subgroup", or "openmoji/group" or "openmoji/name".
        kinds: Distortions; all where none are named.
        seed: Seed of random distortions.
        size: Side in pixels of the user's pictures; None for the manifest's image_size, else 224.
        logit_scale: Factor of the cosines for decisions among the 16 categories; None for the
            learned factor.
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

    def stated(self) -> set[str]:
        """Return the options whose values are not the defaults."""
        defaults = {field.name: field.default for field in fields(self)}
        return {
            option for name, option in _OF_MODELS.items() if getattr(self, name) != defaults[name]
        }

    def answers(self) -> "Answers | None":
        """Read the answers of people and other models, if any.

        Raises:
            AnswersError: If a file cannot be read.
        """
        paths = (*self.people, *self.others)
        return read_answers(paths) if paths else None


@dataclass(frozen=True, kw_only=True)
class OodReport:
    """Report of a run; `evaluation` is None where no model was named."""

    target: Path
    evaluation: EvaluationReport | None
    answers: "Answers | None"
    files: tuple[Path, ...] = ()
    dry_run: bool = False

    @property
    def complete(self) -> bool:
        return self.evaluation is None or self.evaluation.complete

    def summary(self) -> str:
        """Format the report for a terminal."""
        lines = [] if self.evaluation is None else [self.evaluation.summary()]
        if self.answers is not None:
            table = self.answers.table
            people, models = (
                int((table["kind"] == "human").sum()),
                int((table["kind"] == "model").sum()),
            )
            holds = "would hold" if self.dry_run else "holds"
            lines.append(
                f"{self.target}: {holds} {people:,} answers of people and {models:,} of other "
                "models."
            )
        if self.files:
            lines.append(
                f"{self.files[0].parent.parent}: {len(self.files)} CSV files of answers, as "
                "model-vs-human reads them."
            )
        return "\n".join(lines)


def run_ood(
    manifest: Manifest | None,
    output: Path,
    request: OodRequest,
    *,
    dry_run: bool = False,
    stated: Collection[str] = (),
    **options: Any,
) -> OodReport:
    """Classify out-of-distribution pictures, and store other answers beside.

    Args:
        manifest: None where only people and other models are wanted.
        stated: Options that the user stated; see `check_effects`. Options of `request` that differ
            from the defaults count too.
        options: As `run_evaluation` takes them.

    Raises:
        LandscapeError: As `run_evaluation`, or if nothing was requested.
    """
    answers = request.answers()
    if manifest is None and answers is None:
        raise DataError(
            "ood: there is neither a manifest nor a file of answers, so there is nothing to do. "
            "Name one of them."
        )
    stated = {
        *stated,
        *request.stated(),
        *(f"--{name}" for name in ("series", "epochs", "device") if options.get(name)),
    }
    if manifest is None:
        why = "these are options of models, and no manifest names one"
        check_effects(
            "ood",
            stated,
            [
                NoEffect(
                    (*_OF_MODELS.values(), *_OF_RUNS), why, "Name a manifest, or leave them out."
                )
            ],
        )
    if (
        request.written is not None
        and request.stimuli is None
        and not _has_decisions(Path(os.path.abspath(output)))
    ):
        raise DataError(
            "ood: --write-answers writes answers to the published stimuli, and there are none. "
            "Give --stimuli."
        )
    evaluation = None
    if manifest is not None:
        requests = requests_for(manifest, request)
        check_effects("ood", stated, _without_effect(manifest, requests, options.get("series", ())))
        evaluation = run_evaluation(manifest, output, requests, dry_run=dry_run, **options)
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


def _without_effect(
    manifest: Manifest, requests: Sequence[Request], series: Sequence[str]
) -> Iterator[NoEffect]:
    """Yield options that have no effect on these sets and models."""
    kinds = list(
        dict.fromkeys(request.kind for request in requests if isinstance(request, DistortedRequest))
    )
    if not kinds:
        yield NoEffect(
            ("--kind", "--size", "--seed"),
            "only --stimuli is given, and nothing is distorted",
            "Add --own.",
        )
    elif not any(kind_of(kind).is_random for kind in kinds):
        why = f"nothing random is in {', '.join(kinds)}"
        yield NoEffect(
            ("--seed",), why, "Leave it out, or add --kind uniform-noise or another random one."
        )
    if not any(getattr(request, "is_published", False) for request in requests):
        why = "it is of decisions among the 16 categories of published stimuli, and none are given"
        yield NoEffect(
            ("--logit-scale",), why, "Leave it out, or name their folder with --stimuli."
        )
    elif all(
        clip.is_classifier(listed.model)
        for listed in manifest.series
        if not series or listed.name in series
    ):
        yield NoEffect(
            ("--logit-scale",), "a classifier decides by its logits as they are", "Leave it out."
        )


def _has_decisions(target: Path) -> bool:
    """Tell whether a file holds answers to the benchmark's stimuli."""
    store = read_predictions(target)
    return store is not None and any(
        pictures.rule.startswith("imagenet16") for pictures in store.sets.values()
    )


def _written(target: Path, folder: Path) -> tuple[Path, ...]:
    """Write the answers of all evaluated checkpoints on the benchmark's sets.

    Raises:
        StoreError: If there are none.
    """
    store = replace(read_ood(target), answers=b"")
    answers = (
        all_answers(store, epochs=sorted({epoch for _, epoch in store.checkpoints}))
        if store.checkpoints
        else None
    )
    if answers is None:
        raise StoreError(
            f"{target}: no model has answered to the benchmark's stimuli: nothing to write. Give "
            "--stimuli."
        )
    return tuple(write_answers(answers, folder))


def _keep(target: Path, answers: "Answers") -> None:
    """Store answers in the file; they replace the former ones."""
    lock = FolderLock(parts_folder(target), output=target)
    try:
        store = read_predictions(target) or PredictionStore()
        write_predictions(
            target, replace(store, answers=answers.table.to_csv(index=False).encode())
        )
    finally:
        lock.release(remove_folder=True)


def requests_for(manifest: Manifest, request: OodRequest) -> Sequence[Request]:
    """Return the sets that models classify.

    OpenMoji's distorted pictures where nothing is named.

    Raises:
        LandscapeError: If there are none, or a distortion is not possible.
    """
    requests: list[Request] = []
    if request.stimuli is not None:
        requests += stimuli_requests(request.stimuli, logit_scale=request.logit_scale)
    if request.own is not None or request.stimuli is None:
        size = request.size or manifest.data.image_size or _SIZE
        own = OPENMOJI if request.own is None else request.own
        if own in _OWN_OPENMOJI:
            base = SetRequest(name=_OWN_OPENMOJI[own], image_size=size)
        else:
            path = os.path.abspath(own)
            # The prefix "own" avoids the name of a known set, whose classes the folder need not
            # have.
            base = SetRequest(
                name=f"own {os.path.basename(path)}", path=path, slip=manifest.evaluation.slip
            )
        forget_own()
        requests += distorted_requests(base, kinds=request.kinds, size=size, seed=request.seed)
    return requests


# --- from a file -------------------------------------------------------------------------


def read_ood(path: Path) -> PredictionStore:
    """Read a file of predictions.

    Raises:
        StoreError: If there is none.
    """
    store = read_predictions(path)
    if store is None:
        raise StoreError(f"{path}: there is no such file; `landscape ood` writes one.")
    return store


def all_answers(
    store: PredictionStore, *, series: Iterable[str] = (), epochs: Iterable[int] | None = None
) -> "Answers | None":
    """Collect the answers of all observers on the benchmark's sets.

    Observers are people, other models and the evaluated models. None where there are no answers.

    Args:
        series, epochs: Those of the evaluated models; by default all series, each at its last
            epoch.
    """
    import pandas as pd

    parts: list[Answers] = []
    if store.answers:
        rows = pd.read_csv(io.BytesIO(store.answers), dtype=str, keep_default_na=False)
        parts.append(Answers.of_rows(rows))
    for name, checkpoint in named_checkpoints(store, series=series, epochs=epochs).items():
        by_dataset: dict[str, list[Any]] = {}
        unfinished: set[str] = set()
        for key, answers in checkpoint.sets.items():
            pictures = store.sets[key]
            if not pictures.rule.startswith("imagenet16"):
                continue
            if not answers.complete:
                unfinished.add(pictures.dataset)
            # A picture that could not be read counts as wrong, like an answer that a person did not
            # give in time.
            said = [
                pictures.class_names[best] if best >= 0 else NO_ANSWER for best in answers.top[:, 0]
            ]
            kept = range(len(pictures))
            rows = by_dataset.setdefault(pictures.dataset, [[], [], [], []])
            for column, values in zip(
                rows,
                (
                    [pictures.keys[i] for i in kept],
                    [pictures.condition] * len(kept),
                    [pictures.class_names[pictures.labels[i]] for i in kept],
                    said,
                ),
            ):
                column.extend(values)
        for dataset, (images, conditions, categories, responses) in by_dataset.items():
            if dataset in unfinished:
                # The set is reported as missing, not averaged over a part of its pictures.
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
    return joined(parts) if parts else None


def named_checkpoints(
    store: PredictionStore, *, series: Iterable[str] = (), epochs: Iterable[int] | None = None
) -> dict[str, Any]:
    """Return checkpoints by their names in figures and tables.

    The name is the label, with the epoch where a series has several.
    """
    series, epochs = tuple(series), None if epochs is None else tuple(epochs)
    if not store.checkpoints:
        check_effects("answers", _stated(series, epochs), [_NO_MODELS])
        return {}
    chosen = chosen_checkpoints(store, series=series, epochs=epochs).checkpoints
    last = {name: max(epoch for other, epoch in chosen if other == name) for name, _ in chosen}
    shown = {
        key: value for key, value in chosen.items() if epochs is not None or key[1] == last[key[0]]
    }
    several = {name for name, _ in shown if sum(other == name for other, _ in shown) > 1}
    labels = distinct_labels({name: checkpoint.label for (name, _), checkpoint in shown.items()})
    return {
        f"{labels[key[0]]} {key[1]}" if key[0] in several else labels[key[0]]: checkpoint
        for key, checkpoint in shown.items()
    }


_NO_MODELS = NoEffect(
    ("--series", "--epochs"),
    "none of the evaluated models has answered to the benchmark's stimuli",
    "Leave them out.",
)


def _stated(series: Sequence[str], epochs: Sequence[int] | None) -> set[str]:
    return {
        option
        for option, given in (("--series", bool(series)), ("--epochs", epochs is not None))
        if given
    }


def check_chosen(
    store: PredictionStore,
    answers: "Answers | None",
    *,
    series: Sequence[str] = (),
    epochs: Sequence[int] | None = None,
) -> None:
    """Refuse a choice of series or epochs for which nothing is shown.

    Raises:
        OptionError: If answers are shown, and none of them is of the chosen ones.
    """
    stated = _stated(series, epochs)
    if stated and answers is not None:
        if not {*named_checkpoints(store, series=series, epochs=epochs)} & {*answers.models}:
            check_effects("answers", stated, [_NO_MODELS])


def is_own(dataset: str) -> bool:
    """Tell whether a set is of the user's own distorted pictures."""
    return dataset.startswith(OWN)
