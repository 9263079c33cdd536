"""Intervals, tests and metrics of answers to labelled items.

Uses numpy and scipy; knows nothing of data sets, models or stores.
"""

from landscape.statistics.bootstrap import (
    Bootstrap,
    bootstrap_p_value,
    check_resampling,
    percentile_interval,
    stratified_weights,
)
from landscape.statistics.classification import (
    half_top_1_and_5,
    mean_class_recall,
    roc_auc,
    top_k_hits,
)
from landscape.statistics.intervals import Interval, holm
from landscape.statistics.proportions import (
    PairedAnswers,
    independent_discordant_share,
    mcnemar,
    minimal_detectable_difference,
    wilson_interval,
)
from landscape.statistics.rank_correlation import (
    MIN_POINTS,
    blocked_spearman,
    exchange_test,
    jackknife_interval,
    mean_spearman,
    spearman,
)

__all__ = [
    "MIN_POINTS",
    "Bootstrap",
    "Interval",
    "PairedAnswers",
    "blocked_spearman",
    "bootstrap_p_value",
    "check_resampling",
    "exchange_test",
    "half_top_1_and_5",
    "holm",
    "independent_discordant_share",
    "jackknife_interval",
    "mcnemar",
    "mean_class_recall",
    "mean_spearman",
    "minimal_detectable_difference",
    "percentile_interval",
    "roc_auc",
    "spearman",
    "stratified_weights",
    "top_k_hits",
    "wilson_interval",
]
