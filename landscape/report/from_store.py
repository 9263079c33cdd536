"""Page made from a store."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.compare import compare_stores, summarize_stores
from landscape.compare.sharpness_accuracy import sharpness_and_accuracy
from landscape.errors import StoreError
from landscape.figures.density_records import density_sample, record_of_table
from landscape.figures.modules_from_store import module_samples
from landscape.manifest import canonical_json, sha256_of_file, write_atomically
from landscape.report import Study, render
from landscape.store import SpectraTable, SpectrumStore, is_audited, parts_folder, verdicts

if TYPE_CHECKING:
    from landscape.compare import Comparison
    from landscape.figures import DensitySample


def write_report(
    path: Path,
    output: Path,
    *,
    title: str | None = None,
    series: Sequence[str] | None = None,
    keep_unconverged: bool = False,
    num_resamples: int = 4999,
    predictions: Sequence[Path] = (),
) -> str:
    """Write the page of a store into a file.

    The file is written whole or not at all. The store may be finished or growing.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise StoreError(
            f"{output}: a report is an HTML page; name a file that ends in .html or .htm."
        )
    options: dict[str, Any] = {
        "series": series,
        "keep_unconverged": keep_unconverged,
        "num_resamples": num_resamples,
    }
    study = read_study(path, predictions=predictions, **options)
    page = render(study, title=title, keep_unconverged=keep_unconverged).encode()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, page)
    except OSError as error:
        raise StoreError(
            f"{output}: cannot be written ({error.strerror}); choose a folder that is writable."
        ) from error
    unfinished = (
        "" if study.num_records == study.num_planned else f" of {study.num_planned} planned"
    )
    answered = (
        "" if study.accuracy is None else f"accuracy of {len(study.accuracy.rows)} checkpoints, "
    )
    return (
        f"{output}: {len(study.series)} series, epochs {', '.join(map(str, study.epochs))}, "
        f"{study.num_records}{unfinished} records, {answered}{len(page) / 1e6:.1f} MB."
    )


def read_study(
    path: Path,
    *,
    series: Sequence[str] | None = None,
    keep_unconverged: bool = False,
    num_resamples: int = 4999,
    predictions: Sequence[Path] = (),
) -> "Study":
    """Read everything that a page shows of a store.

    Raises as `write_report`.
    """
    with SpectrumStore.open(path, series=series) as store:
        store.require_hessian("a report")
        tables = {
            (name, epoch): store.records(name, epoch)
            for name in store.series()
            for epoch in store.epochs(name)
        }
        modules, modules_note = module_samples(store, keep_unconverged=keep_unconverged)
        plan, rejected = (
            store.plan,
            tuple(f"{part.path.name}: {part.reason}" for part in store.rejected),
        )
    if not tables:
        raise StoreError(
            f"{path}: it holds no eigenvalues yet, so there is nothing to report. Run `landscape "
            "spectra` first."
        )
    options: dict[str, Any] = {
        "series": series,
        "keep_unconverged": keep_unconverged,
        "num_resamples": num_resamples,
    }
    # Before the long computations, as a wrong file is noticed here.
    accuracy = sharpness_and_accuracy(path, predictions, **options) if predictions else None
    changed, sha256 = _date_and_digest(path)
    densities, why_no_density = _densities(
        Path(path.name), tables.values(), plan.protocol["hessian"]["dtype"]
    )
    comparison, why_not = _comparison(path, **options)
    return Study(
        name=path.name,
        plan=plan,
        tables=tables,
        audits=_audits(tables),
        unaudited=not all(is_audited(table.extras) for table in tables.values()),
        changed=changed,
        sha256=sha256,
        rejected=rejected,
        comparison=comparison,
        why_no_comparison=why_not,
        modules=tuple(modules),
        modules_note=modules_note,
        densities=densities,
        why_no_density=why_no_density,
        accuracy=accuracy,
    )


def _densities(
    path: Path, tables: Iterable[SpectraTable], dtype: str
) -> "tuple[tuple[DensitySample, ...], str]":
    """Read the whole densities of the checkpoints that have one.

    The second value is a sentence that says why another checkpoint has none.
    """
    samples, why_not = [], ""
    for table in tables:
        try:
            samples.append(density_sample(record_of_table(table, path, dtype)))
        except StoreError as error:
            why_not = why_not or str(error)
    return tuple(samples), why_not


def _audits(
    tables: Mapping[tuple[str, int], SpectraTable],
) -> dict[str, tuple[Mapping[str, Any], ...]]:
    """Collect the distinct verdicts of each series."""
    by_series: dict[str, dict[str, Mapping[str, Any]]] = {}
    for (name, _), table in tables.items():
        of_series = by_series.setdefault(name, {})
        of_series.update(
            {canonical_json(dict(verdict)): verdict for verdict in verdicts(table.extras)}
        )
    return {name: tuple(of_series.values()) for name, of_series in by_series.items()}


def _date_and_digest(path: Path) -> tuple[datetime, str | None]:
    """Return when the store was last written, and its digest.

    The digest is that of the file; it is None while there are parts beside the file.
    """
    folder = parts_folder(path)
    growing = sorted(folder.iterdir()) if folder.is_dir() else []
    written = max(file.stat().st_mtime for file in ([path] if path.exists() else []) + growing)
    return datetime.fromtimestamp(written, UTC), None if growing else sha256_of_file(path)


def _comparison(path: Path, **options: Any) -> "tuple[Comparison | None, str]":
    """Compare the series of a store, or summarize them.

    A page shows the rest anyway: the comparison may be without differences, or None. The second
    value is a sentence that says why.
    """
    try:
        return compare_stores([path], **options), ""
    except StoreError as error:
        why_not = str(error)
    try:
        return summarize_stores([path], **options), why_not
    except StoreError:
        return None, why_not
