"""Tables of kept eigenvectors for `landscape compare`."""

import math
from collections.abc import Sequence

from landscape.compare.eigenvectors import Displacement, Localisation, SeriesVectors
from landscape.compare.grid import Grid
from landscape.compare.sentences import number, with_interval
from landscape.statistics import Interval

# Modules that the table names, those with the largest shares.
_NUM_MODULES = 3


def vector_grids(analysed: Sequence[SeriesVectors], *, confidence: float) -> list[Grid]:
    """Tabulate the angles, and how localised the leading vector is.

    Empty where no vectors are kept.
    """
    displacements = [(series, row) for series in analysed for row in series.displacements]
    localisations = [
        (series, row) for series in analysed for row in series.localisations if row.index == 1
    ]
    interval = f"[{100 * confidence:g} %]"
    grids = [
        Grid(
            f"Kept eigenvectors: principal angles of the leading spaces in degrees {interval}",
            ("series", "between", "pairs", "vectors", "mean", "largest", "error at most"),
            tuple(_angle_row(series, row) for series, row in displacements),
        ),
        Grid(
            f"Leading eigenvector: participation ratio {interval} and modules",
            (
                "series",
                "epoch",
                "batches",
                "ratio",
                "error at most",
                "1 / ratio",
                "largest shares",
            ),
            tuple(_localisation_row(series, row) for series, row in localisations),
        ),
    ]
    return [grid for grid in grids if grid.rows]


def _angle_row(series: SeriesVectors, row: Displacement) -> tuple[str, ...]:
    between = (
        f"batches, epoch {row.first}"
        if row.first == row.second
        else f"epochs {row.first}, {row.second}"
    )
    count = row.num_pairs
    place = series.label, between, _count(count, row.num_unknown), str(row.rank)
    if not count:
        return (*place, *["unknown"] * 3)
    return *place, _degrees(row.mean), _degrees(row.largest), number(math.degrees(row.error))


def _count(known: int, left_out: int) -> str:
    """Write how many count, and of how many where some are left out."""
    return f"{known} of {known + left_out}" if left_out else str(known)


def _degrees(interval: Interval) -> str:
    return with_interval(*map(math.degrees, (interval.value, interval.low, interval.high)))


def _localisation_row(series: SeriesVectors, row: Localisation) -> tuple[str, ...]:
    count = row.num_batches
    place = series.label, str(row.epoch), _count(count, row.num_unknown)
    if not count:
        return (*place, *["unknown"] * 4)
    ratio = row.participation
    leading = sorted(row.shares.items(), key=lambda item: -item[1])[:_NUM_MODULES]
    shares = ", ".join(f"{module} {100 * share:.0f} %" for module, share in leading)
    return (
        *place,
        with_interval(ratio.value, ratio.low, ratio.high),
        number(row.participation_error),
        f"{1 / ratio.value:,.0f} of {series.num_params:,}",
        f"{shares}; error at most {number(100 * row.share_error)} %",
    )
