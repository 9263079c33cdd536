"""From the kept eigenvectors of a store to a figure file."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.compare import vectors_of_store
from landscape.errors import StoreError
from landscape.figures import PageOptions, eigenvectors, save_figure, vector_modules
from landscape.figures.from_store import check_figure_name, is_store_audited
from landscape.store import SpectrumStore

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_vectors(path: Path, output: Path, *, title: str | None = None, **options: Any) -> str:
    """Draw angles and participation ratios; see `landscape.figures.eigenvectors`.

    Args:
        options: `epochs` to draw, by default all with vectors; `series` as in
            `SpectrumStore.open`; `page_options` as in the function that draws.

    Returns:
        A sentence that says what was written.

    Raises:
        LandscapeError: If the output is no figure.
        StoreError: If the store cannot be read or keeps no vectors, or the figure cannot be
            written.
    """
    return _drawn(eigenvectors, path, output, title, **options)


def draw_vector_modules(
    path: Path, output: Path, *, title: str | None = None, **options: Any
) -> str:
    """Draw shares of modules; see `landscape.figures.vector_modules`.

    Arguments, result and errors are those of `draw_vectors`.
    """
    return _drawn(vector_modules, path, output, title, **options)


def _drawn(
    draw: "Callable[..., Figure]",
    path: Path,
    output: Path,
    title: str | None,
    *,
    epochs: Sequence[int] | None = None,
    series: Sequence[str] | None = None,
    page_options: PageOptions | None = None,
) -> str:
    """Analyse the vectors of a store, and draw them into a file."""
    check_figure_name(output)
    with SpectrumStore.open(path, series=series) as store:
        store.require_hessian("a figure")
        analysed = vectors_of_store(store, epochs=epochs)
        unaudited = not is_store_audited(store)
    if not analysed:
        wanted = "" if epochs is None else f" of epochs {', '.join(map(str, epochs))}"
        raise StoreError(
            f"{path}: it keeps no eigenvectors{wanted}, so there is nothing to draw. `landscape "
            "spectra --keep-vectors` keeps them."
        )
    try:
        drawing = draw(analysed, title=title, unaudited=unaudited, page_options=page_options)
        save_figure(drawing, output)
    except ValueError as error:
        raise StoreError(f"{path} -> {output}: {error}") from error
    drawn = sorted({row.epoch for entry in analysed for row in entry.localisations})
    return f"{output}: eigenvectors of {len(analysed)} series, epochs {', '.join(map(str, drawn))}."
