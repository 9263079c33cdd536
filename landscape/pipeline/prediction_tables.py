"""`landscape table`: the accuracy of models.

A table by data set, or by model over the benchmark's sets.
"""

from collections.abc import Collection
from pathlib import Path

from landscape.answers import resample
from landscape.compare.accuracy_tables import AccuracyTable, write_table
from landscape.errors import NoEffect, StoreError, check_effects
from landscape.pipeline.ood import all_answers, check_chosen
from landscape.pipeline.ood_tables import ood_table, write
from landscape.statistics import Bootstrap
from landscape.store.predictions import read_predictions

BY = ("auto", "set", "model")


def show_table(
    store: Path,
    *,
    output: Path | None = None,
    kind: str | None = None,
    by: str = "auto",
    series: tuple[str, ...] = (),
    epochs: tuple[int, ...] | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
    stated: Collection[str] = (),
) -> str:
    """Return the table of a file of predictions.

    If it goes to a file, return a sentence about that.

    Args:
        by: "set": a row per series, epoch and data set. "model": a row per model and one of people,
            with their means over the benchmark's sets; models at their last epoch unless epochs are
            named. "auto": by model where there are answers to the benchmark's stimuli.
        stated: Options that the user stated; see `check_effects`.

    Raises:
        StoreError: If there is no such file, or it holds no answers of these series and epochs.
        OptionError: If an option has no effect on this table.
    """
    predictions = read_predictions(store)
    if predictions is None:
        raise StoreError(
            f"{store}: there is no such file; `landscape evaluate` and `landscape ood` write one."
        )
    bootstrap = Bootstrap(num_resamples=num_resamples, seed=seed)
    answers = None if by == "set" else all_answers(predictions, series=series, epochs=epochs)
    if answers is None and by == "model":
        raise StoreError(
            f"{store}: holds no answers to the benchmark's stimuli, of which this table is. Give "
            "them with `landscape ood --stimuli` or --humans, or show the table --by set."
        )
    if answers is None:
        by_set = AccuracyTable.of(predictions, series=series, epochs=epochs, bootstrap=bootstrap)
        if not by_set.is_resampled:
            why = (
                "this table has Wilson's intervals and exact tests alone, and nothing is resampled"
            )
            check_effects(
                f"{store}", stated, [NoEffect(("--resamples", "--seed"), why, "Leave them out.")]
            )
        return write_table(by_set, output, kind=kind)
    check_chosen(predictions, answers, series=series, epochs=epochs)

    table = ood_table(answers, resamples=resample(answers, bootstrap))
    return write(table, output, kind=kind)
