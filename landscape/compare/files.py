"""Comparison of stores as text or as a file."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.compare import FORMATS, compare_stores, format_of, write_comparison
from landscape.compare.eigenvectors import SeriesVectors, vectors_of_store
from landscape.errors import StoreError
from landscape.statistics import Bootstrap
from landscape.store import SpectrumStore

if TYPE_CHECKING:
    from landscape.compare.result import Comparison


def compare(
    stores: Sequence[Path],
    *,
    output: Path | None = None,
    kind: str | None = None,
    metrics: Sequence[str] = (),
    **options: Any,
) -> str:
    """Compare the series of stores, and return or write the result.

    The further options are those of `landscape.compare.compare_stores`.

    Args:
        output: Where to write the comparison.
        kind: "table", "csv", "json" or "latex"; by default as the suffix of the output says, and a
            table without one.
        metrics: Names of metrics; all by default, of which tables show the most telling ones,
            and the kept eigenvectors.

    Returns:
        The comparison as text, or a sentence that says what was written.

    Raises:
        StoreError: If the stores cannot be compared, an option is out of range, or the output
            cannot be written.
    """
    try:
        wanted = format_of(output, kind=kind)
        comparison = compare_stores(stores, metrics=metrics or None, **options)
        if not metrics:
            comparison = _with_eigenvectors(comparison, stores, **options)
    except ValueError as error:
        raise StoreError(f"compare: {error}") from error
    shown = {"metrics": metrics} if metrics and wanted in ("table", "latex") else {}
    if output is None:
        return FORMATS[wanted](comparison, **shown).rstrip()
    write_comparison(comparison, output, kind=wanted, **shown)
    return (
        f"{output}: {len(comparison.series)} series, epochs "
        f"{', '.join(map(str, comparison.epochs))}."
    )


def _with_eigenvectors(
    comparison: "Comparison",
    stores: Sequence[Path],
    *,
    series: Sequence[str] | None = None,
    epochs: Sequence[int] | None = None,
    num_resamples: int = 4999,
    seed: int = 0,
    **_: Any,
) -> "Comparison":
    """Add what is computed from kept eigenvectors, where there are any.

    Raises:
        StoreError: If they are damaged.
    """
    bootstrap = Bootstrap(num_resamples=num_resamples, confidence=comparison.confidence, seed=seed)
    analysed: list[SeriesVectors] = []
    for path in stores:
        with SpectrumStore.open(path, series=series) as store:
            analysed += [
                replace(entry, label=_label(comparison, path, entry.series))
                for entry in vectors_of_store(store, epochs=epochs, bootstrap=bootstrap)
            ]
    return replace(comparison, eigenvectors=tuple(analysed))


def _label(comparison: "Comparison", path: Path, series: str) -> str:
    """Return the label of a series of one of the stores, as the other tables have it."""
    names = (info.name for info in comparison.series if info.store == str(path))
    return comparison.label(next(name for name in names if name.rpartition(":")[2] == series))
