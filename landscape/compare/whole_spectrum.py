"""Whole spectrum of a checkpoint from its records.

The records hold quadratures of the batches, each from a random probe. Everything that prints a
trace, a count or a share of a store uses this module. Knows no torch.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from landscape.linalg import ProbedSpectrum
from landscape.linalg.probed import has_enough_nodes
from landscape.linalg.rules import Rule, without_zero_block
from landscape.store import SpectraTable


def probed_rows(table: SpectraTable) -> Int[np.ndarray, " r"]:
    """List the records with a quadrature that knows its own error.

    Power iteration and recycled starts leave none.
    """
    known = []
    for row, rule in enumerate(_rules(table)):
        if len(rule[0]):
            nodes, _, num_zeros = without_zero_block(rule, table.num_params)
            known += [row] * has_enough_nodes(len(nodes), table.num_params - num_zeros)
    return np.array(known, dtype=np.int64)


def probed_spectrum(
    table: SpectraTable, dtype: str, rows: Sequence[int] | None = None
) -> ProbedSpectrum:
    """Estimate the spectrum from the probes of some or all records.

    Args:
        dtype: Precision of the products; it decides what counts as zero.

    Raises:
        ValueError: If there is no record, or a record does not know its own error.
    """
    rules = _rules(table)
    chosen = rules if rows is None else [rules[row] for row in rows]
    return ProbedSpectrum.from_rules(chosen, table.num_params, rounding=float(np.finfo(dtype).eps))


def _rules(table: SpectraTable) -> list[Rule]:
    return [
        (x[~np.isnan(x)], w[~np.isnan(w)]) for x, w in zip(table.ritz_values, table.ritz_weights)
    ]
