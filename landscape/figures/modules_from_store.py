"""Heat map of the spectra of modules in a store."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from landscape.errors import StoreError
from landscape.figures import ModuleSample, module_heat_map, save_figure
from landscape.figures.page_options import PageOptions
from landscape.store import ModuleTable, SpectrumStore, is_audited


def draw_modules(
    path: Path,
    output: Path,
    *,
    epochs: Sequence[int] | None = None,
    series: Sequence[str] | None = None,
    title: str | None = None,
    keep_unconverged: bool = False,
    page_options: PageOptions | None = None,
) -> str:
    """Draw the sharpness of a store's modules over depth and epoch.

    A value is the median over batches of the largest eigenvalue of the module's block. Batches
    where that missed the tolerance are left out and counted; a module where all missed it is
    hatched.

    Args:
        epochs: Epochs to draw; by default all that any series has.
        series: As in `SpectrumStore.open`.
        keep_unconverged: Take the median over all batches, and say how many missed the tolerance.

    Returns:
        A sentence that says what was written.

    Raises:
        StoreError: If the store cannot be read or has no such spectra, or the figure cannot be
            written.
    """
    with SpectrumStore.open(path, series=series) as store:
        store.require_hessian("a figure")
        samples, note = module_samples(store, epochs=epochs, keep_unconverged=keep_unconverged)
    if not samples:
        wanted = "" if epochs is None else f" of epochs {', '.join(map(str, epochs))}"
        raise StoreError(
            f"{path}: it holds no spectra of modules{wanted}; `landscape spectra --per-module` "
            "measures them."
        )
    try:
        drawn = module_heat_map(samples, title=title, note=note, page_options=page_options)
        save_figure(drawn, output)
    except ValueError as error:
        raise StoreError(f"{path} -> {output}: {error}") from error
    counts = ", ".join(
        f"{sample.series} with {len(sample.modules)} modules at epochs {_listed(sample.epochs)}"
        for sample in samples
    )
    return f"{output}: {counts}."


def module_samples(
    store: SpectrumStore, *, epochs: Sequence[int] | None = None, keep_unconverged: bool = False
) -> tuple[list[ModuleSample], str]:
    """Read the samples for `module_heat_map`, and write the note under it.

    Both are empty where no module was measured.
    """
    tables = _tables(store, epochs)
    if not tables:
        return [], ""
    tol = float(store.plan.protocol["hessian"]["tol"])
    samples = [_sample(rows, tol, keep_unconverged=keep_unconverged) for rows in tables.values()]
    return samples, _note(tables, tol, keep_unconverged=keep_unconverged)


def _tables(store: SpectrumStore, epochs: Sequence[int] | None) -> dict[str, list[ModuleTable]]:
    """Read the tables of each series, epochs ascending.

    Series are in the order of the manifest.
    """
    tables: dict[str, list[ModuleTable]] = {}
    for series, epoch in store.module_identities:
        if epochs is None or epoch in epochs:
            tables.setdefault(series, []).append(store.modules(series, epoch))
    return {series: sorted(rows, key=lambda table: table.epoch) for series, rows in tables.items()}


def _certified(table: ModuleTable, tol: float) -> Bool[np.ndarray, "batch module"]:
    return np.isfinite(table.largest[:, :, 0]) & (table.largest_residuals[:, :, 0] <= tol)


def _sample(rows: list[ModuleTable], tol: float, *, keep_unconverged: bool) -> ModuleSample:
    medians = [_medians(table, tol, keep_unconverged=keep_unconverged) for table in rows]
    return ModuleSample(
        series=rows[0].series,
        label=rows[0].label,
        modules=rows[0].modules,
        epochs=tuple(table.epoch for table in rows),
        values=np.stack([values for values, _ in medians]),
        converged=np.stack([converged for _, converged in medians]),
    )


def _medians(
    table: ModuleTable, tol: float, *, keep_unconverged: bool
) -> tuple[Float[np.ndarray, " module"], Bool[np.ndarray, " module"]]:
    """Compute medians over the certified batches, else over all.

    NaN where there is no finite value at all.
    """
    certified = _certified(table, tol)
    converged = certified.any(axis=0) | (
        keep_unconverged & np.isfinite(table.largest[:, :, 0]).any(axis=0)
    )
    used = (
        np.isfinite(table.largest[:, :, 0])
        if keep_unconverged
        else np.where(certified.any(axis=0), certified, True)
    )
    values = np.full(len(table.modules), np.nan)
    for module, chosen in enumerate(used.T):
        largest = table.largest[chosen, module, 0]
        values[module] = (
            np.median(largest[np.isfinite(largest)]) if np.isfinite(largest).any() else np.nan
        )
    return values, converged


def _note(tables: dict[str, list[ModuleTable]], tol: float, *, keep_unconverged: bool) -> str:
    every = [table for rows in tables.values() for table in rows]
    batches = sorted({table.num_records for table in every})
    missed = sum(int(np.count_nonzero(~_certified(table, tol))) for table in every)
    total = sum(table.largest[:, :, 0].size for table in every)
    counts = f"{batches[0]}" if len(batches) == 1 else f"{batches[0]}\N{EN DASH}{batches[-1]}"
    sentences = [
        "NOT AUDITED: nobody has checked that these are second derivatives of the whole model."
        * (not all(is_audited(table.extras) for table in every)),
        f"Largest eigenvalue of each module's block of the Hessian, median over {counts} batches.",
        f"{'Drawn' if keep_unconverged else 'Left out'}: {missed} of {total} values that did not "
        "converge." * (missed > 0),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _listed(epochs: Sequence[int]) -> str:
    return ", ".join(map(str, epochs))
