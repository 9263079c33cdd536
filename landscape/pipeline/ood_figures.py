"""Figures of a file of out-of-distribution answers.

These are Figures 1 and 2 of the paper, and the user's own pictures by level.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.compare.accuracy import Scored, score_of
from landscape.compare.accuracy_means import OOD, accuracy_means
from landscape.errors import StoreError
from landscape.figures import (
    ConditionCurve,
    ood_bars,
    ood_conditions,
    own_bars,
    own_conditions,
    save_figure,
    shape_bias_matrix,
)
from landscape.figures.from_store import check_figure_name
from landscape.pipeline.ood import (
    OWN,
    all_answers,
    check_chosen,
    is_own,
    named_checkpoints,
    read_ood,
)
from landscape.statistics import Bootstrap
from landscape.store.predictions import PredictionStore, num_levels

if TYPE_CHECKING:
    from landscape.statistics import Interval

KINDS = ("ood", "shape-bias", "conditions")


def draw_ood(
    store: Path,
    output: Path,
    *,
    kind: str,
    series: Sequence[str] = (),
    epochs: Sequence[int] | None = None,
    title: str | None = None,
) -> str:
    """Draw a figure of a file of answers; return a sentence about it.

    It shows the published stimuli if there are any, else the user's own pictures, which have no
    "shape-bias".

    Args:
        kind: One of `KINDS`.
        epochs: Epochs to show; by default the last of every series.

    Raises:
        StoreError: If the file holds nothing that this figure shows.
        LandscapeError: As the figures.
    """
    check_figure_name(output)
    predictions = read_ood(store)
    answers = all_answers(predictions, series=series, epochs=epochs)
    # If models have classified only own pictures, answers of people to other pictures are not
    # comparable.
    evaluated = set(named_checkpoints(predictions, series=series, epochs=epochs))
    if (
        kind == "conditions"
        and evaluated
        and answers is not None
        and not evaluated & set(answers.models)
    ):
        answers = None
    check_chosen(predictions, answers, series=series, epochs=epochs)
    figure: Any
    if answers is not None:
        draw = {"ood": ood_bars, "shape-bias": shape_bias_matrix, "conditions": ood_conditions}[
            kind
        ]
        figure = draw(answers, title=title)
    elif kind == "conditions" and (curves := own_curves(predictions, series=series, epochs=epochs)):
        figure = own_conditions(curves, title=title)
    elif (
        kind == "ood"
        and (mean := _own_means(predictions, series=series, epochs=epochs)) is not None
    ):
        values, datasets, chance, notes = mean
        figure = own_bars(values, datasets=datasets, chance=chance, notes=notes, title=title)
    else:
        raise StoreError(
            f"{store}: holds no answers to the benchmark's stimuli, of which {kind} is drawn. Give "
            "them with `landscape ood --stimuli` or --humans, or draw --kind ood or conditions of "
            "your own pictures."
        )
    save_figure(figure, output)
    return f"{output}: drawn."


def _own_means(
    store: PredictionStore, *, series: Sequence[str], epochs: Sequence[int] | None
) -> "tuple[dict[str, Interval], tuple[str, ...], float, tuple[str, ...]] | None":
    """Return the mean accuracy of each model on the user's distorted pictures.

    With the sets of the mean, chance, and notes; None without any.
    """
    own = {name: pictures for name, pictures in store.sets.items() if is_own(pictures.dataset)}
    checkpoints = named_checkpoints(store, series=series, epochs=epochs)
    mean = accuracy_means(own, list(checkpoints.values())).get(OOD)
    if mean is None:
        return None
    values = {
        name: mean.values[checkpoint.key]
        for name, checkpoint in checkpoints.items()
        if checkpoint.key in mean.values
    }
    return values, mean.datasets, mean.chance, mean.notes


def own_curves(
    store: PredictionStore, *, series: Sequence[str] = (), epochs: Sequence[int] | None = None
) -> "list[ConditionCurve]":
    """Return each model's accuracy on own pictures, by distortion and level."""
    datasets: dict[str, list[Any]] = {}
    for pictures in store.sets.values():
        if is_own(pictures.dataset):
            datasets.setdefault(pictures.dataset, []).append(pictures)
    several = len({dataset.rpartition("/")[0] for dataset in datasets}) > 1
    curves = []
    for name, checkpoint in named_checkpoints(store, series=series, epochs=epochs).items():
        for dataset, conditions in datasets.items():
            answered = {name for name, answers in checkpoint.sets.items() if answers.done.any()}
            there = [condition for condition in conditions if condition.name in answered]
            if not there:
                continue
            scored = [Scored(condition, checkpoint.sets[condition.name]) for condition in there]
            values = [score_of(entry, Bootstrap()) for entry in scored]
            curves.append(
                ConditionCurve(
                    series=name,
                    dataset=dataset.removeprefix(OWN) if several else dataset.rpartition("/")[2],
                    conditions=tuple(pictures.condition for pictures in there),
                    accuracy=tuple(value.value for value in values),
                    low=tuple(value.low for value in values),
                    high=tuple(value.high for value in values),
                    num_pictures=tuple(entry.num_items for entry in scored),
                    chance=there[0].chance,
                    num_levels=num_levels(store.sets.values(), dataset)[1],
                )
            )
    return curves
