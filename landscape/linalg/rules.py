"""Quadrature rules of single probes as arrays.

They are padded into matrices, and the block of zeros outside of a support is removed.

Imports only numpy. Shapes: p = rules, m = nodes.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

Rule = tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]


def padded(rows: Sequence[Float[np.ndarray, " m"]]) -> Float[np.ndarray, "p m"]:
    """Stack rows of different lengths in a float64 matrix padded with NaN."""
    out = np.full((len(rows), max(map(len, rows), default=0)), math.nan)
    for target, row in zip(out, rows):
        target[: len(row)] = row
    return out


def without_zero_block(
    rule: Rule, n: int
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"], int]:
    """Remove the zeros outside of the support from a rule.

    Returns nodes and weights of the support alone, ascending, and how many eigenvalues lie outside
    of it.

    `SupportedPart` adds them as a node of exactly 0 whose weight is a whole number of n-ths; no
    probe is needed to know them. Where a random probe meets nothing but 0, the matrix is 0.
    """
    order = np.argsort(rule[0], kind="stable")
    nodes, weights = (
        np.asarray(rule[0], dtype=np.float64)[order],
        np.asarray(rule[1], dtype=np.float64)[order],
    )
    if not nodes.any():
        return np.zeros(1), np.ones(1), n
    # The node of the zeros has a weight of a whole number of n-ths, which a Ritz value at 0 has by
    # chance only.
    at_zero = np.flatnonzero(nodes == 0)
    if len(at_zero) and len(nodes) > 1:
        block = int(at_zero[-1])
        count = float(weights[block]) * n
        if abs(count - round(count)) < 1e-7 * max(1.0, count) and 0 < round(count) < n:
            kept = np.arange(len(nodes)) != block
            return nodes[kept], weights[kept] / weights[kept].sum(), round(count)
    return nodes, weights, 0
