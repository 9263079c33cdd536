"""Comparison of stored records: which architecture is sharper, which less convex.

Holds intervals, tests and tables. Uses numpy and scipy, not torch.
"""

from landscape.compare.comparison import compare_stores, summarize_stores
from landscape.compare.eigenvectors import (
    Displacement,
    Localisation,
    SeriesVectors,
    inverse_participation,
    principal_angles,
    vectors_of_store,
)
from landscape.compare.metrics import HEADLINES, METRICS, Metric
from landscape.compare.result import Comparison, Difference, SeriesInfo, Summary
from landscape.compare.sentences import sentence
from landscape.compare.statistics import Resampling, Sample, effect_size, holm
from landscape.compare.tables import (
    FORMATS,
    format_of,
    to_csv,
    to_json,
    to_latex,
    to_terminal,
    write_comparison,
)

__all__ = [
    "FORMATS",
    "HEADLINES",
    "METRICS",
    "Comparison",
    "Difference",
    "Displacement",
    "Localisation",
    "Metric",
    "Resampling",
    "Sample",
    "SeriesInfo",
    "SeriesVectors",
    "Summary",
    "compare_stores",
    "effect_size",
    "format_of",
    "holm",
    "inverse_participation",
    "principal_angles",
    "sentence",
    "summarize_stores",
    "to_csv",
    "to_json",
    "to_latex",
    "to_terminal",
    "vectors_of_store",
    "write_comparison",
]
