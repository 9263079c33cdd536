"""Records -> which architecture is sharper, and which is less convex: intervals, tests and tables; numpy and scipy, no torch."""

from landscape.compare.comparison import compare_stores, summarize_stores
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
    "Comparison",
    "Difference",
    "FORMATS",
    "HEADLINES",
    "METRICS",
    "Metric",
    "Resampling",
    "Sample",
    "SeriesInfo",
    "Summary",
    "compare_stores",
    "effect_size",
    "format_of",
    "holm",
    "sentence",
    "summarize_stores",
    "to_csv",
    "to_json",
    "to_latex",
    "to_terminal",
    "write_comparison",
]
