"""Figures of a file of out-of-distribution answers: Figures 1 and 2 of the paper, and one's own pictures by level."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.errors import StoreError
from landscape.pipeline.ood import OWN, all_answers, is_own, named_checkpoints, read_ood
from landscape.store.predictions import PredictionStore

if TYPE_CHECKING:
    from landscape.figures import ConditionCurve

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
    """Draw a figure of such a file, and say so.

    Of the published stimuli where there are any, else of one's own pictures, which only "conditions" can show.

    Args:
        kind: One of `KINDS`.
        epochs: By default the last of every series.

    Raises:
        StoreError: If the file holds nothing that this figure shows.
        LandscapeError: As the figures.
    """
    from landscape.figures import (
        ood_bars,
        ood_conditions,
        own_conditions,
        save_figure,
        shape_bias_matrix,
    )
    from landscape.figures.from_store import check_figure_name

    check_figure_name(output)
    found = read_ood(store)
    answers = all_answers(found, series=series, epochs=epochs)
    # Own pictures alone were shown to the models: people of other pictures do not belong beside them.
    evaluated = set(named_checkpoints(found, series=series, epochs=epochs))
    if (
        kind == "conditions"
        and evaluated
        and answers is not None
        and not evaluated & set(answers.models)
    ):
        answers = None
    figure: Any
    if answers is not None:
        draw = {"ood": ood_bars, "shape-bias": shape_bias_matrix, "conditions": ood_conditions}[
            kind
        ]
        figure = draw(answers, title=title)
    elif kind == "conditions" and (curves := own_curves(found, series=series, epochs=epochs)):
        figure = own_conditions(curves, title=title)
    else:
        raise StoreError(
            f"{store}: holds no answers to the benchmark's stimuli, of which {kind} is drawn. Give them with `landscape ood "
            "--stimuli` or --humans, or draw --kind conditions of your own pictures."
        )
    save_figure(figure, output)
    return f"{output}: drawn."


def own_curves(
    store: PredictionStore, *, series: Sequence[str] = (), epochs: Sequence[int] | None = None
) -> "list[ConditionCurve]":
    """The accuracy of each model on one's own pictures, by distortion and level."""
    from landscape.compare.accuracy import Scored, score_of
    from landscape.figures import ConditionCurve
    from landscape.statistics import Bootstrap

    datasets: dict[str, list[Any]] = {}
    for one in store.sets.values():
        if is_own(one.dataset):
            datasets.setdefault(one.dataset, []).append(one)
    several = len({dataset.rpartition("/")[0] for dataset in datasets}) > 1
    curves = []
    for name, checkpoint in named_checkpoints(store, series=series, epochs=epochs).items():
        for dataset, conditions in datasets.items():
            there = [
                one
                for one in conditions
                if one.name in checkpoint.sets and checkpoint.sets[one.name].done.any()
            ]
            if not there:
                continue
            scored = [Scored(one, checkpoint.sets[one.name]) for one in there]
            values = [score_of(one, Bootstrap()) for one in scored]
            curves.append(
                ConditionCurve(
                    series=name,
                    dataset=dataset.removeprefix(OWN) if several else dataset.rpartition("/")[2],
                    conditions=tuple(one.condition for one in there),
                    accuracy=tuple(value.value for value in values),
                    low=tuple(value.low for value in values),
                    high=tuple(value.high for value in values),
                    num_pictures=tuple(one.num_items for one in scored),
                    chance=there[0].chance,
                )
            )
    return curves
