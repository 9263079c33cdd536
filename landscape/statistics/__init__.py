"""Intervals, tests and metrics of answers to labelled items: numpy and scipy, nothing of data sets, models or stores."""

from landscape.statistics.bootstrap import Bootstrap, bootstrap_p_value, percentile_interval, stratified_weights
from landscape.statistics.classification import half_top_1_and_5, mean_class_recall, roc_auc, top_k_hits
from landscape.statistics.intervals import Interval, holm
from landscape.statistics.proportions import (
    PairedAnswers,
    independent_discordant_share,
    mcnemar,
    minimal_detectable_difference,
    wilson_interval,
)

__all__ = [
    "Bootstrap",
    "Interval",
    "PairedAnswers",
    "bootstrap_p_value",
    "half_top_1_and_5",
    "holm",
    "independent_discordant_share",
    "mcnemar",
    "mean_class_recall",
    "minimal_detectable_difference",
    "percentile_interval",
    "roc_auc",
    "stratified_weights",
    "top_k_hits",
    "wilson_interval",
]
