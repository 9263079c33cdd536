"""Decisions of people and models about labelled pictures, and their likeness.

Uses numpy, scipy and pandas; knows no pictures.

    # model-vs-human's folder, single files, or tables of many observers
    answers = read_answers(["raw-data"])
    # accuracy out of distribution, error consistency, shape bias
    print(model_table(score(answers)))
    print(resample(answers).interval("resnet50", "error_consistency"))
    print(compare_models(answers, "resnet50", "bagnet33").table())
"""

from landscape.answers.benchmark import (
    CATEGORIES,
    CHANCE,
    CUE_CONFLICT,
    DATASETS,
    IMAGENET_INDICES,
    SEVENTEEN,
    SIXTEEN,
    Condition,
    Dataset,
    image_key,
)
from landscape.answers.comparison import DatasetTest, ModelComparison, compare_models
from landscape.answers.consistency import PairCounts, count_pairs
from landscape.answers.decision import category_scores, category_scores_of_probabilities, decide
from landscape.answers.metrics import HUMANS, METRICS
from landscape.answers.reading import read_answers
from landscape.answers.scores import (
    DatasetScores,
    Scores,
    SetMean,
    condition_table,
    dataset_table,
    model_table,
    score,
)
from landscape.answers.shape_texture import (
    ShapeBias,
    shape_bias,
    shape_bias_by_category,
    shape_bias_by_person,
)
from landscape.answers.spread import range_over_people
from landscape.answers.table import Answers, Trials, answers_of_model
from landscape.answers.uncertainty import SHAPE_BIAS, Difference, Resamples, resample
from landscape.answers.writing import write_answers

__all__ = [
    "CATEGORIES",
    "CHANCE",
    "CUE_CONFLICT",
    "DATASETS",
    "HUMANS",
    "IMAGENET_INDICES",
    "METRICS",
    "SEVENTEEN",
    "SHAPE_BIAS",
    "SIXTEEN",
    "Answers",
    "Condition",
    "Dataset",
    "DatasetScores",
    "DatasetTest",
    "Difference",
    "ModelComparison",
    "PairCounts",
    "Resamples",
    "Scores",
    "SetMean",
    "ShapeBias",
    "Trials",
    "answers_of_model",
    "category_scores",
    "category_scores_of_probabilities",
    "compare_models",
    "condition_table",
    "count_pairs",
    "dataset_table",
    "decide",
    "image_key",
    "model_table",
    "range_over_people",
    "read_answers",
    "resample",
    "score",
    "shape_bias",
    "shape_bias_by_category",
    "shape_bias_by_person",
    "write_answers",
]
