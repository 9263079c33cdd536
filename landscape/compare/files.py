"""From stores to a comparison, as text or as a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from landscape.errors import StoreError


def compare(
    stores: Sequence[Path],
    *,
    output: Path | None = None,
    kind: str | None = None,
    metrics: Sequence[str] = (),
    **options: Any,
) -> str:
    """Compare the series of stores; the further options are those of `landscape.compare.compare_stores`.

    Args:
        output: Where to write the comparison.
        kind: "table", "csv", "json" or "latex"; by default by the suffix of the output, and a table without one.
        metrics: Names of metrics; all by default, of which tables show the most telling ones.

    Returns:
        The comparison as text, or a sentence that says what was written.

    Raises:
        StoreError: If the stores cannot be compared, an option is out of range, or the output cannot be written.
    """
    from landscape.compare import FORMATS, compare_stores, format_of, write_comparison

    try:
        wanted = format_of(output, kind=kind)
        comparison = compare_stores(stores, metrics=metrics or None, **options)
    except ValueError as error:
        raise StoreError(f"compare: {error}") from error
    shown = {"metrics": metrics} if metrics and wanted in ("table", "latex") else {}
    if output is None:
        return FORMATS[wanted](comparison, **shown).rstrip()
    write_comparison(comparison, output, kind=wanted, **shown)
    return f"{output}: {len(comparison.series)} series, epochs {', '.join(map(str, comparison.epochs))}."
