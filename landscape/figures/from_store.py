"""From a store to a figure file."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.errors import LandscapeError, StoreError
from landscape.store import SpectrumStore, is_audited

if TYPE_CHECKING:
    from landscape.figures import EigenvalueSample


def eigenvalue_samples(store: SpectrumStore) -> list["EigenvalueSample"]:
    """The top-k eigenvalues of every checkpoint that has a record, in the order of the manifest."""
    from landscape.figures import EigenvalueSample

    samples = []
    for name in store.series():
        for epoch in store.epochs(name):
            table = store.records(name, epoch)
            samples.append(
                EigenvalueSample(
                    series=name,
                    label=table.label,
                    epoch=epoch,
                    values=table.eigenvalues,
                    converged=table.converged,
                    planned=table.num_planned,
                )
            )
    return samples


def check_figure_name(output: Path) -> None:
    """Refuse a file that cannot be a figure, before anything is measured for it.

    Raises:
        LandscapeError: If so.
    """
    from landscape.figures import SUFFIXES

    if output.suffix.lower() not in SUFFIXES:
        raise LandscapeError(
            f"{output}: a figure is one of {', '.join(SUFFIXES)}; name such a file with -o."
        )


def draw_figure3(
    path: Path,
    output: Path,
    *,
    epochs: Sequence[int] | None = None,
    series: Sequence[str] | None = None,
    title: str | None = None,
    keep_unconverged: bool = False,
) -> str:
    """Draw Figure 3 of a store into a file; the arguments are those of `landscape.figures.figure3` and `SpectrumStore.open`.

    It is stamped as not audited if any record is of a product that did not pass an audit.

    Returns:
        A sentence that says what was written.

    Raises:
        StoreError: If the store cannot be read or has nothing to draw, or the figure cannot be written.
    """
    from landscape.figures import figure3, save_figure

    with SpectrumStore.open(path, series=series) as store:
        samples, unaudited = eigenvalue_samples(store), not _is_audited(store)
    if not samples:
        raise StoreError(
            f"{path}: it holds no eigenvalues yet, so there is nothing to draw. Run `landscape spectra` first."
        )
    try:
        drawn = figure3(
            samples,
            epochs=epochs,
            title=title,
            keep_unconverged=keep_unconverged,
            unaudited=unaudited,
        )
        save_figure(drawn, output)
    except ValueError as error:
        raise StoreError(f"{path} -> {output}: {error}") from error
    return f"{output}: {len({one.series for one in samples})} series, epochs {_listed({one.epoch for one in samples})}."


def draw_sharpness(
    path: Path,
    output: Path,
    *,
    epochs: Sequence[int] | None = None,
    series: Sequence[str] | None = None,
    title: str | None = None,
    keep_unconverged: bool = False,
) -> str:
    """Draw the largest eigenvalue and NEP of a store over epochs into a file; see `landscape.figures.sharpness`.

    Returns:
        A sentence that says what was written.

    Raises:
        StoreError: If the store cannot be read or has nothing to draw, or the figure cannot be written.
    """
    from landscape.compare import summarize_stores
    from landscape.figures import PANELS, save_figure, sharpness

    try:
        options: dict[str, Any] = {"metrics": list(PANELS), "epochs": epochs, "series": series}
        found = summarize_stores([path], keep_unconverged=keep_unconverged, **options)
        with SpectrumStore.open(path, series=series) as store:
            unaudited = not _is_audited(store)
        save_figure(sharpness(found, title=title, unaudited=unaudited), output)
    except ValueError as error:
        raise StoreError(f"{path} -> {output}: {error}") from error
    return f"{output}: {len(found.series)} series, epochs {_listed(set(found.epochs))}."


def _is_audited(store: SpectrumStore) -> bool:
    return all(
        is_audited(store.records(name, epoch).extras)
        for name in store.series()
        for epoch in store.epochs(name)
    )


def _listed(epochs: set[int]) -> str:
    return ", ".join(map(str, sorted(epochs)))
