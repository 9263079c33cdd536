"""Figure files drawn from a store."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from landscape.compare import summarize_stores
from landscape.errors import LandscapeError, StoreError
from landscape.figures import (
    PANELS,
    SUFFIXES,
    EigenvalueSample,
    PageOptions,
    figure3,
    save_figure,
    sharpness,
)
from landscape.store import SpectrumStore, is_audited


def eigenvalue_samples(store: SpectrumStore) -> list["EigenvalueSample"]:
    """Read the top-k eigenvalues of every checkpoint with a record.

    The samples are in the order of the manifest.
    """
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
    """Refuse a file name that is not a figure's, before any measurement.

    Raises:
        LandscapeError: If so.
    """
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
    page_options: PageOptions | None = None,
) -> str:
    """Draw Figure 3 of a store into a file.

    The arguments are those of `landscape.figures.figure3` and `SpectrumStore.open`. The figure is
    stamped as not audited if any record is of a product that did not pass an audit.

    Returns:
        A sentence that says what was written.

    Raises:
        StoreError: If the store cannot be read or has nothing to draw, or the figure cannot be
            written.
    """
    with SpectrumStore.open(path, series=series) as store:
        store.require_hessian("a figure")
        samples, unaudited = eigenvalue_samples(store), not is_store_audited(store)
    if not samples:
        raise StoreError(
            f"{path}: it holds no eigenvalues yet, so there is nothing to draw. Run `landscape "
            "spectra` first."
        )
    try:
        drawn = figure3(
            samples,
            epochs=epochs,
            title=title,
            keep_unconverged=keep_unconverged,
            unaudited=unaudited,
            page_options=page_options,
        )
        save_figure(drawn, output)
    except ValueError as error:
        raise StoreError(f"{path} -> {output}: {error}") from error
    names, drawn_epochs = (
        {sample.series for sample in samples},
        {sample.epoch for sample in samples},
    )
    return f"{output}: {len(names)} series, epochs {_listed(drawn_epochs)}."


def draw_sharpness(
    path: Path,
    output: Path,
    *,
    epochs: Sequence[int] | None = None,
    series: Sequence[str] | None = None,
    title: str | None = None,
    keep_unconverged: bool = False,
    page_options: PageOptions | None = None,
) -> str:
    """Draw the largest eigenvalue and NEP of a store over epochs.

    Writes a file; see `landscape.figures.sharpness`.

    Returns:
        A sentence that says what was written.

    Raises:
        StoreError: If the store cannot be read or has nothing to draw, or the figure cannot be
            written.
    """
    try:
        options: dict[str, Any] = {"metrics": list(PANELS), "epochs": epochs, "series": series}
        comparison = summarize_stores([path], keep_unconverged=keep_unconverged, **options)
        with SpectrumStore.open(path, series=series) as store:
            store.require_hessian("a figure")
            unaudited = not is_store_audited(store)
        drawn = sharpness(comparison, title=title, unaudited=unaudited, page_options=page_options)
        save_figure(drawn, output)
    except ValueError as error:
        raise StoreError(f"{path} -> {output}: {error}") from error
    return f"{output}: {len(comparison.series)} series, epochs {_listed(set(comparison.epochs))}."


def is_store_audited(store: SpectrumStore) -> bool:
    """Tell whether all products behind a store passed an audit."""
    return all(
        is_audited(store.records(name, epoch).extras)
        for name in store.series()
        for epoch in store.epochs(name)
    )


def _listed(epochs: set[int]) -> str:
    return ", ".join(map(str, sorted(epochs)))
