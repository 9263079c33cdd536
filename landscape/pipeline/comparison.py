"""`landscape compare`: stores of spectra, or files of predictions."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.answers import Answers
from landscape.compare.accuracy_comparison import compare_predictions
from landscape.compare.accuracy_comparison_texts import write_accuracy_comparison
from landscape.compare.files import compare as compare_spectra
from landscape.compare.tables import format_of
from landscape.errors import StoreError
from landscape.pipeline.ood import all_answers
from landscape.statistics import Bootstrap
from landscape.store.predictions import PredictionStore, is_predictions

if TYPE_CHECKING:
    from landscape.compare.accuracy_comparison import AnswersAt
    from landscape.compare.accuracy_join import JoinedStores

# Options for spectra only, and what predictions have instead.
_OF_SPECTRA = {
    "metrics": ("--metric", "every set is compared by its own metric"),
    "unpaired": ("--unpaired", "series are always compared on the pictures that both were shown"),
    "keep_unconverged": ("--keep-unconverged", "an answer has no certificate"),
}


def compare(
    stores: Sequence[Path], *, output: Path | None = None, kind: str | None = None, **options: Any
) -> str:
    """Compare the series of stores of one kind.

    Args:
        output: Where to write the comparison.
        kind: "table", "csv", "json" or "latex"; by default by the suffix of the output, and a table
            without one.
        options: For stores of spectra, those of `landscape.compare.compare_stores`; for predictions
            `series`, `epochs`, `num_resamples` and `seed`.

    Returns:
        The comparison as text, or a sentence about what was written.

    Raises:
        StoreError: If the stores are of two kinds or cannot be compared, or the output cannot be
            written.
    """
    of_predictions = [path for path in stores if is_predictions(path)]
    if not of_predictions:
        return compare_spectra(stores, output=output, kind=kind, **options)
    for path in stores:
        if path not in of_predictions:
            what = "holds no predictions" if path.exists() else "there is no such file"
            raise StoreError(
                f"{path}: {what}, but {of_predictions[0]} holds predictions, and the two have no "
                "number in common. Compare spectra with spectra, and predictions with predictions."
            )
    return _compare_predictions(stores, output=output, kind=kind, **options)


def _compare_predictions(
    stores: Sequence[Path],
    *,
    output: Path | None,
    kind: str | None,
    series: Sequence[str] = (),
    epochs: Sequence[int] | None = None,
    num_resamples: int = 4999,
    seed: int = 0,
    **others: Any,
) -> str:
    for name, value in others.items():
        if value:
            option, why = _OF_SPECTRA[name]
            raise StoreError(
                f"{stores[0]}: {option} is of spectra, and this file holds predictions: {why}. "
                "Leave it out."
            )
    try:
        wanted = format_of(output, kind=kind)
        bootstrap = Bootstrap(num_resamples=num_resamples, seed=seed)
    except ValueError as error:
        raise StoreError(f"compare: {error}") from error
    comparison = compare_predictions(
        stores,
        series=tuple(series or ()),
        epochs=epochs,
        bootstrap=bootstrap,
        answers_at=_answers_at,
    )
    return write_accuracy_comparison(comparison, output, kind=wanted)


def _answers_at(joined: "JoinedStores") -> "AnswersAt":
    """Return a function that reads all answers at an epoch.

    They are those of people and of series. Answers of people come from all files.
    """
    people = _people(joined.answers)

    def read(store: PredictionStore, epoch: int) -> "Answers | None":
        of_series = all_answers(store, epochs=(epoch,))
        return of_series if of_series is None or people is None else people + of_series

    return read


def _people(tables: Sequence[bytes]) -> "Answers | None":
    import pandas as pd

    if not tables:
        return None
    rows = pd.concat(
        [pd.read_csv(io.BytesIO(table), dtype=str, keep_default_na=False) for table in tables]
    )
    of_people = rows[rows["kind"] == "human"].drop_duplicates().reset_index(drop=True)
    return Answers.of_rows(of_people) if len(of_people) else None
