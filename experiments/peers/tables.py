"""The rows as text, for a terminal and for the README."""

import math
import statistics
from collections.abc import Sequence

from peers.problem import case_title
from peers.rows import Row, Truth
from peers.solvers import ARPACK_ON_OURS, OURS, RETAINED, TOL

_SAYS = {True: "yes", False: "no", None: "-"}


def _ours(rows: Sequence[Row]) -> Row:
    return next(row for row in rows if row.contender == OURS)


def _ratio(number: float) -> str:
    return f"{number:7.2f}" if math.isfinite(number) else f"{'-':>7}"


def architecture_table(truth: Truth, rows: Sequence[Row]) -> str:
    """One case: every contender at its defaults and driven."""
    ours = _ours(rows)
    values = " ".join(f"{value:+.5g}" for value in truth.values)
    lines = [
        f"{case_title(ours.model, ours.epoch)}: n = {truth.n:,}, loss {truth.loss:.3f}, true "
        f"values {values}",
        f"a gradient takes {1e3 * truth.gradient_seconds:.0f} ms, and the matrix products of a "
        f"product alone {truth.matrix_gradients:.2f} of that; a Krylov space of "
        f"{truth.krylov_products} products holds all five, so the limit is "
        f"{truth.limit_gradients:.1f} gradients",
        f"{'':31} {'':8} {'products':>8} {'CPU s':>7} {'gradients':>9} {'MiB':>6} {'residual':>8} "
        f"{'error':>8} {'says so':>7} {'/ ours':>7} {'/ limit':>7}",
    ]
    for row in rows:
        head = f"{row.contender:31} {row.mode:8}"
        if row.failure:
            lines.append(f"{head} failed: {row.failure}")
            continue
        once = (
            f"  after {row.prepare_cpu_seconds:.0f} CPU s once a model"
            if row.prepare_cpu_seconds
            else ""
        )
        reached = (
            "" if row.mode == "defaults" or row.is_right else f"  its best, with {row.settings}"
        )
        lines.append(
            f"{head} {row.products:8d} {row.cpu_seconds:7.2f} {row.gradients:9.1f} "
            f"{row.peak_mebibytes:6.0f} {row.worst_residual:8.1e} {row.worst_error:8.1e} "
            f"{_SAYS[row.says_converged]:>7} {_ratio(row.gradients / ours.gradients)} "
            f"{_ratio(row.gradients / truth.limit_gradients)}{reached}{once}"
        )
    return "\n".join(lines)


def summary_table(results: Sequence[tuple[Truth, Sequence[Row]]]) -> str:
    """Every contender over all cases: how much longer than we it takes to a true residual of TOL,
    and how often it gets there.
    """
    lines = [
        f"Time to a true residual of {TOL:g} for all five, as a multiple of ours, over "
        f"{len(results)} cases",
        f"{'':31} {'least':>7} {'median':>7} {'most':>7}  reached   right at defaults",
    ]
    names = list(dict.fromkeys(row.contender for _, rows in results for row in rows))
    for name in names:
        ratios, right, tried = [], 0, 0
        for _, rows in results:
            own = [row for row in rows if row.contender == name]
            good = [row.gradients for row in own if row.is_right]
            ratios += [min(good) / _ours(rows).gradients] if good else []
            right += any(row.is_right for row in own if row.mode == "defaults")
            tried += 1
        spread = (
            (min(ratios), statistics.median(ratios), max(ratios)) if ratios else (math.nan,) * 3
        )
        lines.append(
            f"{name:31} {' '.join(map(_ratio, spread))}  {len(ratios)} of {tried}   {right} of "
            f"{tried}"
        )
    fastest = [_fastest_peer(rows) for _, rows in results]
    limits = [_ours(rows).gradients / truth.limit_gradients for truth, rows in results]
    peers = ", ".join(
        f"{ratio:.2f} ({name})" if name else "none is right" for ratio, name in fastest
    )
    lines.append(f"fastest peer that is right / ours: {peers}")
    lines.append(f"ours / limit: {', '.join(f'{ratio:.2f}' for ratio in limits)}")
    return "\n".join(lines)


def _fastest_peer(rows: Sequence[Row]) -> tuple[float, str]:
    """Its time over ours, and its name; nothing if no peer is right."""
    peers = [
        row
        for row in rows
        if row.contender not in (OURS, RETAINED, ARPACK_ON_OURS) and row.is_right
    ]
    if not peers:
        return math.nan, ""
    best = min(peers, key=lambda row: row.gradients)
    return best.gradients / _ours(rows).gradients, best.contender
