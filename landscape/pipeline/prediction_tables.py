"""`landscape table`: how accurate models are, by data set, or by model over the benchmark's sets."""

from pathlib import Path

from landscape.errors import StoreError
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
) -> str:
    """The table of a file of predictions, or a sentence that says where it was written.

    Args:
        by: "set": a row per series, epoch and data set. "model": a row per model and one of people, with their means over the
            benchmark's sets; models at their last epoch unless epochs are named. "auto": by model where there are answers to
            the benchmark's stimuli.

    Raises:
        StoreError: If there is no such file, or it holds no answers of these series and epochs.
    """
    from landscape.compare.accuracy_tables import AccuracyTable, write_table
    from landscape.pipeline.ood import all_answers
    from landscape.statistics import Bootstrap

    found = read_predictions(store)
    if found is None:
        raise StoreError(
            f"{store}: there is no such file; `landscape evaluate` and `landscape ood` write one."
        )
    bootstrap = Bootstrap(num_resamples=num_resamples, seed=seed)
    answers = None if by == "set" else all_answers(found, series=series, epochs=epochs)
    if answers is None and by == "model":
        raise StoreError(
            f"{store}: holds no answers to the benchmark's stimuli, of which this table is. Give them with `landscape ood "
            "--stimuli` or --humans, or show the table --by set."
        )
    if answers is None:
        return write_table(
            AccuracyTable.of(found, series=series, epochs=epochs, bootstrap=bootstrap),
            output,
            kind=kind,
        )
    from landscape.answers import resample
    from landscape.pipeline.ood_tables import ood_table, write

    table = ood_table(answers, resamples=resample(answers, bootstrap))
    return write(table, output, kind=kind)
