"""Differences of accuracies in words.

Sentences to quote, what is missing, and what the numbers do not show.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

from landscape.compare.accuracy_join import JoinedStores
from landscape.compare.accuracy_result import (
    FAMILIES,
    AccuracyComparison,
    MeanDifference,
    SetDifference,
)
from landscape.compare.sentences import counted, epoch_text, p_text
from landscape.compare.sentences import with_interval as numbers_with_interval
from landscape.linalg.number_text import short
from landscape.store.predictions import left_out_of, notes_on

# Words for the series with the larger number, and for two that do not differ.
_LIKENESS = {
    "error_consistency": (
        "errs more like people than {other}",
        "in error consistency with people",
        "error consistency",
    ),
    "shape_bias": ("decides more by shape than {other}", "in shape bias", "shape bias"),
}
# Mean that is quoted with the tests of a family.
_MEAN_OF = {
    "table1": "mean_table1",
    "sets": "mean_sets",
    "distorted": "mean_distorted",
    "ood": "ood_accuracy_17",
}
# Names that a sentence lists before it counts the others.
_MAX_NAMES = 6


def sentences(comparison: AccuracyComparison) -> tuple[str, ...]:
    """Write one sentence per pair, epoch and headline."""
    said = []
    for pair in comparison.pairs:
        sets, means = comparison.of_pair(pair)
        by_name = {row.name: row for row in means}
        for family in FAMILIES:
            rows = [row for row in sets if row.family == family]
            if rows:
                said.append(
                    _accuracy_sentence(comparison, rows, by_name.get(_MEAN_OF[family]), len(sets))
                )
        said += [
            _likeness_sentence(comparison, by_name[name]) for name in _LIKENESS if name in by_name
        ]
    return tuple(said)


def _accuracy_sentence(
    comparison: AccuracyComparison,
    rows: Sequence[SetDifference],
    mean: MeanDifference | None,
    num_tests: int,
) -> str:
    """Say on how many sets a series is better, and how much.

    The series that is better more often stands first. `mean` gives the average difference.
    """
    directions = [row.direction(comparison.alpha) for row in rows]
    more, less = directions.count(1), directions.count(-1)
    first, second = (comparison.label(name) for name in (rows[0].first, rows[0].second))
    if less > more or (less == more and mean is not None and mean.difference < 0):
        first, second, more, less = second, first, less, more
        mean = None if mean is None else _turned(mean)
    several = len(rows) > 1
    sets = f"of {len(rows)} {FAMILIES[rows[0].family]}" if several else rows[0].place
    test = (
        f"({_tests(rows)}, Holm over {counted(num_tests, 'set', 'sets')}, p < "
        f"{comparison.alpha:.2g})"
    )
    at = f"At {epoch_text(rows[0].epoch)}"
    if more:
        rest = f", less on {less or 'none'}" if several else ""
        claim = (
            f"{at} {first} is more accurate than {second} on {f'{more} ' if several else ''}{sets} "
            f"{test}{rest}"
        )
    else:
        claim = (
            f"{at} {first} and {second} do not differ demonstrably on "
            f"{'any ' if several else ''}{sets} {test}"
        )
    return f"{claim}{'' if mean is None else '; ' + _mean_text(mean)}."


def _tests(rows: Sequence[SetDifference]) -> str:
    exact = [row.is_exact for row in rows]
    return (
        "McNemar"
        if all(exact)
        else "McNemar or paired bootstrap"
        if any(exact)
        else "paired bootstrap"
    )


def _mean_text(mean: MeanDifference) -> str:
    over = f" over {mean.num_sets} of {mean.num_planned} sets" if mean.missing else ""
    what = "mean difference" if mean.num_planned > 1 else "difference"
    return (
        f"{what}{over} {points(mean.difference, mean.low, mean.high)}, p = {p_text(mean.p_value)}"
    )


def _likeness_sentence(comparison: AccuracyComparison, mean: MeanDifference) -> str:
    claim, undecided, name = _LIKENESS[mean.name]
    larger = mean.direction(comparison.alpha)
    mean = _turned(mean) if larger < 0 else mean
    first, second = (comparison.label(series) for series in (mean.first, mean.second))
    said = (
        f"{first} {claim.format(other=second)}"
        if larger
        else f"{first} and {second} do not differ demonstrably {undecided}"
    )
    over = f" over {mean.num_sets} of {mean.num_planned} sets" if mean.missing else ""
    values = f"{short(mean.first_value)} vs {short(mean.second_value)}"
    by = numbers_with_interval(mean.difference, mean.low, mean.high)
    return (
        f"At {epoch_text(mean.epoch)} {said}: {name}{over} {values}, paired difference {by}, p = "
        f"{p_text(mean.p_value)}."
    )


def _turned(mean: MeanDifference) -> MeanDifference:
    """Swap the first and the second series."""
    return replace(
        mean,
        first=mean.second,
        second=mean.first,
        first_value=mean.second_value,
        second_value=mean.first_value,
        difference=-mean.difference,
        low=-mean.high,
        high=-mean.low,
    )


def points(value: float, low: float, high: float) -> str:
    """Format a difference of shares with its interval, in percentage points."""
    ends = "" if math.isnan(low) else f" [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * value:.1f} points{ends}"


def listed(names: Sequence[str]) -> str:
    """List a few names, and say how many more there are."""
    names = list(dict.fromkeys(names))
    if len(names) <= _MAX_NAMES:
        return ", ".join(names)
    return f"{', '.join(names[:_MAX_NAMES])} and {len(names) - _MAX_NAMES} more"


# --- what is missing ------------------------------------------------------------------------------


def notes(
    comparison: AccuracyComparison,
    joined: JoinedStores,
    compared: Sequence[tuple[str, str, int]],
    *,
    wanted: Sequence[int] | None,
) -> tuple[str, ...]:
    """Name gaps, partial answers, and differences from the paper.

    Args:
        compared: Pairs and epochs that were examined.
        wanted: Epochs that were requested.
    """
    said = _uncompared(comparison, compared, wanted)
    said += _of_answers(comparison)
    said += _missing_sets(comparison)
    for first, second, epoch in compared:
        weights = {
            joined.store.checkpoints[name, epoch].checkpoint_sha256 for name in (first, second)
        }
        if len(weights) == 1:
            labels = " and ".join(map(comparison.label, (first, second)))
            at = epoch_text(epoch)
            said.append(
                f"{labels} are the same file of weights at {at}: a difference there is not due to "
                "training."
            )
    names = {(row.dataset, row.condition) for row in comparison.sets} | {
        (row.dataset, "") for row in comparison.sets
    }
    of_ood = {row.dataset for row in comparison.sets if row.family == "ood"}
    used = [
        pictures
        for name, pictures in joined.store.sets.items()
        if name in names or name[0] in of_ood
    ]
    return (*said, *notes_on(used), *left_out_of(used))


def _uncompared(
    comparison: AccuracyComparison,
    compared: Sequence[tuple[str, str, int]],
    wanted: Sequence[int] | None,
) -> list[str]:
    said = []
    names = [info.name for info in comparison.series]
    for at, first in enumerate(names):
        for second in names[at + 1 :]:
            labels = f"{comparison.label(first)} and {comparison.label(second)}"
            epochs = {epoch for *pair, epoch in compared if pair == [first, second]}
            if not epochs and wanted is None:
                said.append(f"{labels} have no epoch in common.")
            lacking = [epoch for epoch in wanted or () if epoch not in epochs]
            if lacking:
                said.append(f"{labels}: not both have epoch {', '.join(map(str, lacking))}.")
            for epoch in sorted(
                epochs - {epoch for *pair, epoch in comparison.pairs if pair == [first, second]}
            ):
                said.append(f"{labels} were shown no picture both at {epoch_text(epoch)}.")
    return said


def _of_answers(comparison: AccuracyComparison) -> list[str]:
    """Name pictures not shown to both, or not readable."""
    said = []
    partly = [
        f"{row.place} {row.n:,} of {row.num_pictures:,}"
        for row in comparison.sets
        if row.n < row.num_pictures
    ]
    if partly:
        said.append(f"Compared on the pictures that both have answered: {listed(partly)}.")
    if unread := {row.place: row.num_unread for row in comparison.sets if row.num_unread}:
        parts = listed([f"{place} {count:,}" for place, count in unread.items()])
        said.append(f"Pictures that could not be read count as wrong: {parts}.")
    return said


def _missing_sets(comparison: AccuracyComparison) -> list[str]:
    # Means that lack the same sets share a sentence, and so do pairs with the same gaps.
    gaps: dict[tuple[str, tuple[str, ...]], dict[str, list[str]]] = {}
    for row in comparison.means:
        if row.missing:
            who = (
                f"{comparison.label(row.first)} and {comparison.label(row.second)} at "
                f"{epoch_text(row.epoch)}"
            )
            share = f"{row.num_sets} of {row.num_planned} sets"
            gaps.setdefault((who, row.missing), {}).setdefault(share, []).append(row.label)
    pairs: dict[str, list[str]] = {}
    for (who, missing), shares in gaps.items():
        what = "; ".join(f"{share} in {', '.join(labels)}" for share, labels in shares.items())
        pairs.setdefault(f"{what}. Missing: {', '.join(missing)}.", []).append(who)
    return [f"{'; '.join(who)}: {what}" for what, who in pairs.items()]


# --- what is not shown ----------------------------------------------------------------------------


def caveats(comparison: AccuracyComparison, joined: JoinedStores) -> tuple[str, ...]:
    """Say in sentences what these numbers cannot show."""
    said = [
        "Each series is one training run: intervals and tests are over pictures, not over "
        "trainings, and another seed may move the numbers further.",
        "Holm's correction covers the sets of one pair at one epoch, not the choice of pairs or "
        f"epochs; intervals hold {100 * comparison.confidence:g} % one at a time, and p values of "
        "means are not corrected.",
        "MDD, the minimal detectable difference, is what the test of a set would find in 80 % of "
        "cases, at Holm's first step.",
        *_chance(comparison),
        *_power(comparison),
        *_resamples(comparison),
    ]
    if any(
        len({row.metric for row in comparison.sets if row.family == family}) > 1
        for family in FAMILIES
    ):
        said.append("The means average different metrics, which need not be of one scale.")
    other = [
        pictures.place
        for pictures in joined.store.sets.values()
        if any("not the paper's prompts" in note for note in pictures.notes)
    ]
    if other:
        said.append(
            f"Prompts are not the paper's for {listed(other)}: differences between series are "
            "fair, values are not those of published tables."
        )
    if sum(row.family == "ood" for row in comparison.sets) > 1:
        said.append(
            "About a tenth of the benchmark's pictures are in two of its sets, distorted in two "
            "ways, but sets are resampled apart: intervals of its means may be slightly too narrow."
        )
    if any(row.name == "error_consistency" for row in comparison.means):
        said.append(
            "Likeness to people is measured on these few people: intervals are over pictures, and "
            "other people may answer otherwise."
        )
    return tuple(said)


def _chance(comparison: AccuracyComparison) -> list[str]:
    """Name sets on which neither series is demonstrably better than chance."""
    said = []
    for pair in comparison.pairs:
        places = [row.place for row in comparison.of_pair(pair)[0] if row.at_chance]
        if places:
            first, second = map(comparison.label, pair[:2])
            said.append(
                f"{first} and {second} are both within chance at {epoch_text(pair[2])} on "
                f"{listed(places)}: a difference there says little of either."
            )
    return said


def _power(comparison: AccuracyComparison) -> list[str]:
    """Name sets whose test could miss a difference as large as elsewhere.

    Where no difference was significant, say what size the tests could have detected.
    """
    said = []
    for pair in comparison.pairs:
        rows = comparison.of_pair(pair)[0]
        names = f"{' and '.join(map(comparison.label, pair[:2]))} at {epoch_text(pair[2])}"
        shown = [row for row in rows if row.direction(comparison.alpha)]
        open_ = [row for row in rows if not row.direction(comparison.alpha) and row.is_exact]
        if not shown and open_:
            known = [row for row in open_ if math.isfinite(row.detectable)]
            least = min((row.detectable for row in known), default=math.nan)
            what = f"of less than {100 * least:.1f} points" if known else "of any size"
            said.append(
                f"{names}: on no single set was a difference demonstrated, and one {what} would be "
                "missed on every set by at least one test in five; that is no evidence of equality."
            )
        elif shown and open_:
            size = statistics.median(abs(row.difference) for row in shown)
            blind = [row.place for row in open_ if not row.detectable <= size]
            if blind:
                seen = f"({100 * size:.1f} points{', the median' if len(shown) > 1 else ''})"
                said.append(
                    f"{names}: a difference as large as elsewhere {seen} would be missed on "
                    f"{listed(blind)} by more than one test in five; that is no evidence of "
                    "equality there."
                )
    return said


def _resamples(comparison: AccuracyComparison) -> list[str]:
    """Name sets whose p value the number of resamples limits.

    No resample contradicts the difference, but the p value cannot be as small as the correction
    needs.
    """
    smallest = 2 / (comparison.num_resamples + 1)
    tests = [
        row for row in comparison.sets if not row.is_exact and not row.direction(comparison.alpha)
    ]
    few = [row.place for row in tests if row.p_value <= smallest]
    said = (
        f"Too few resamples to demonstrate a difference after Holm's correction on {listed(few)}; "
        "raise --resamples."
    )
    return [said] if few else []
