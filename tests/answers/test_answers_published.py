"""The benchmark's published numbers, from the answers of its people and models; skipped where these
are not at hand.

The answers may not be copied into this repository. Truth: the toolbox's leaderboard, and values
that an independent script computed picture by picture, unrounded.
"""

import json
import math
import time

import numpy as np
import pytest

from landscape.answers import (
    CATEGORIES,
    HUMANS,
    SEVENTEEN,
    SIXTEEN,
    Resamples,
    compare_models,
    condition_table,
    model_table,
    read_answers,
    resample,
    score,
    shape_bias,
    shape_bias_by_category,
    shape_bias_by_person,
    write_answers,
)
from landscape.statistics import Bootstrap
from tests.helpers.folders import SHARED

FOLDER = SHARED / "human"
FILES = [FOLDER / "human.csv.gz", FOLDER / "models.csv.gz"]
pytestmark = pytest.mark.skipif(
    not all(file.exists() for file in FILES), reason="the benchmark's answers are not here"
)
NAMES = {
    "squared_accuracy_difference": "accuracy_difference",
    "observed": "observed_consistency",
    "error": "error_consistency",
}


@pytest.fixture(scope="module")
def answers():
    return read_answers(FILES)


@pytest.fixture(scope="module")
def scores(answers):
    return score(answers)


@pytest.fixture(scope="module")
def people():
    return json.loads((FOLDER / "checks.json").read_text())


@pytest.fixture(scope="module")
def models():
    return json.loads((FOLDER / "checks_models.json").read_text())


@pytest.mark.parametrize(
    ("model", "accuracy", "difference", "observed", "kappa"),
    # The toolbox's README and its tables for LaTeX.
    [
        ("resnet50", 0.559, 0.087, 0.665, 0.208),
        ("simclr-resnet50x1", 0.596, 0.080, 0.667, 0.179),
        ("bagnet33", 0.398, 0.156, 0.567, 0.137),
    ],
)
def test_the_leaderboard_is_reproduced_to_its_digits(
    scores, model, accuracy, difference, observed, kappa
):
    row = model_table(scores).set_index("model").loc[model]
    columns = [
        "ood_accuracy_17",
        "accuracy_difference",
        "observed_consistency",
        "error_consistency",
    ]
    assert [f"{row[column]:.3f}" for column in columns] == [
        f"{value:.3f}" for value in (accuracy, difference, observed, kappa)
    ]
    assert row.num_datasets == 17 and row.missing == ""


def test_every_number_of_people_is_the_checked_one(answers, scores, people):
    table = condition_table(answers)
    pooled = table[table.kind == HUMANS].set_index(["dataset", "condition"])
    each = table[(table.kind == "human") & ~table.excluded]
    for name, expected in people["datasets"].items():
        ours = scores[HUMANS].by_dataset[name]
        assert ours.accuracy == pytest.approx(expected["accuracy_kept"], abs=1e-9)
        for theirs, own in NAMES.items():
            assert getattr(ours, own) == pytest.approx(expected["human_human"][theirs], abs=1e-9)
        for condition, values in expected["conditions"].items():
            row = pooled.loc[(name, condition)]
            assert row.accuracy == pytest.approx(values["accuracy"], abs=1e-9)
            assert (row.num_trials, row.excluded) == (values["n"], values["excluded"])
        for person, accuracy in expected["accuracy_kept_by_subject"].items():
            rows = each[(each.dataset == name) & (each.observer == person)]
            assert np.average(rows.accuracy, weights=rows.num_trials) == pytest.approx(
                accuracy, abs=1e-9
            )
        trials = answers.trials[name]
        assert (
            len(trials.humans) == expected["observers"]
            and len(trials.images) == expected["trials_per_observer"]
        )
        # 16 is "na".
        assert (trials.human_responses == 16).sum() == expected["na"]
    for label, datasets in (("mean_17", SEVENTEEN), ("mean_16", SIXTEEN)):
        assert scores[HUMANS].mean("accuracy", datasets).value == pytest.approx(
            people[label]["accuracy"], abs=1e-9
        )
        for theirs, own in NAMES.items():
            assert scores[HUMANS].mean(own, datasets).value == pytest.approx(
                people[label][theirs], abs=1e-9
            )


def test_every_number_of_the_models_is_the_checked_one(answers, scores, models):
    table = condition_table(answers)
    accuracies = (
        table[table.kind == "model"]
        .set_index(["observer", "dataset", "condition"])
        .accuracy.to_dict()
    )
    assert answers.models == tuple(models)
    for model, expected in models.items():
        for name, values in expected["datasets"].items():
            ours = scores[model].by_dataset[name]
            assert (
                ours.accuracy == pytest.approx(values["accuracy_kept"], abs=1e-9)
                and ours.num_unanswered == 0
            )
            for theirs, own in NAMES.items():
                assert getattr(ours, own) == pytest.approx(values[theirs], abs=1e-9)
            for condition, accuracy in values["accuracy"].items():
                assert accuracies.pop((model, name, condition)) == pytest.approx(accuracy, abs=1e-9)
        for label, datasets in (("mean_17", SEVENTEEN), ("mean_16", SIXTEEN)):
            assert scores[model].mean("accuracy", datasets).value == pytest.approx(
                expected[label]["accuracy_kept"], abs=1e-9
            )
            for theirs, own in NAMES.items():
                assert scores[model].mean(own, datasets).value == pytest.approx(
                    expected[label][theirs], abs=1e-9
                )
    assert not accuracies


def counts(bias):
    return {
        "trials": bias.num_trials,
        "conflicts": bias.num_conflicts,
        "shape": bias.shape,
        "texture": bias.texture,
    }


def test_shape_bias_is_the_checked_one(answers, people, models):
    pooled = shape_bias(answers)
    assert f"{pooled.bias:.4f}" == "0.9587" and (
        pooled.shape,
        pooled.texture,
        pooled.num_conflicts,
    ) == (9236, 398, 12_000)
    expected = people["shape_bias"]
    for ours, theirs in (
        (shape_bias_by_category(answers), "by_category"),
        (shape_bias_by_person(answers), "by_subject"),
    ):
        found = {
            name: counts(bias) | {"bias": pytest.approx(bias.bias, abs=1e-9)}
            for name, bias in ours.items()
        }
        assert found == expected[theirs]
    # The mean over categories is another number.
    assert np.mean(
        [bias.bias for bias in shape_bias_by_category(answers).values()]
    ) == pytest.approx(0.9538, abs=5e-5)
    for model, values in models.items():
        bias = shape_bias(answers, model)
        assert counts(bias) | {"bias": pytest.approx(bias.bias, abs=1e-9)} == values["shape_bias"]
        ours = {name: one.bias for name, one in shape_bias_by_category(answers, model).items()}
        assert (
            ours == pytest.approx(values["shape_bias_by_category"], abs=1e-9)
            and tuple(ours) == CATEGORIES
        )


def test_all_models_written_and_read_again_are_the_same(answers, tmp_path):
    files = write_answers(answers, tmp_path)
    assert len(files) == 9 * 17 and files[0].parent.name == "colour"
    assert read_answers(tmp_path).equals(answers.only(kind="model"))


@pytest.fixture(scope="module")
def resamples(answers) -> Resamples:
    return resample(answers, Bootstrap(num_resamples=999))


def test_resampled_means_have_the_spread_of_their_strata(answers, resamples):
    # Closed form: the variance of a mean over sets of pooled accuracies, from the unbiased variance
    # within each stratum.
    variances = []
    for trials in answers.trials.values():
        correct = trials.correct("model")[trials.models.index("resnet50")]
        kept, total = trials.is_kept, 0.0
        for stratum in np.unique(trials.strata[kept]):
            values = correct[kept & (trials.strata == stratum)]
            total += len(values) * values.var(ddof=1)
        variances.append(total / kept.sum() ** 2)
    interval = resamples.interval("resnet50", "accuracy")
    error = math.sqrt(sum(variances)) / 17
    # Half a width is 1.96 standard errors; 999 resamples leave its ends uncertain by 8 % of one
    # each.
    assert (interval.high - interval.low) / 2 == pytest.approx(1.96 * error, rel=0.12)
    assert interval.value == pytest.approx(0.55882, abs=1e-5)
    assert (interval.low + interval.high) / 2 == pytest.approx(interval.value, abs=0.3 * error)


def test_intervals_hold_their_numbers_and_people_are_the_less_certain(resamples, scores):
    for observer in ("resnet50", HUMANS):
        for metric in (
            "accuracy",
            "accuracy_difference",
            "observed_consistency",
            "error_consistency",
            "shape_bias",
        ):
            interval = resamples.interval(observer, metric)
            assert interval.low < interval.value < interval.high
    widths = [
        np.subtract(
            *[getattr(resamples.interval(name, "accuracy"), end) for end in ("high", "low")]
        )
        for name in scores
    ]
    # 4 to 10 people vary more than the pictures alone.
    assert widths[-1] > max(widths[:-1])
    bands = resamples.condition_intervals("contrast")
    assert [f"{band.value:.4f}" for band in bands[:3]] == ["0.8562", "0.8266", "0.7953"]
    assert all(band.low <= band.value <= band.high for band in bands)


def test_two_models_are_compared_on_the_same_pictures(answers, resamples):
    comparison = compare_models(answers, "resnet50", "bagnet33", resamples=resamples)
    assert len(comparison.tests) == 17 and comparison.missing == ()
    accuracy = comparison.differences["ood_accuracy_17"]
    assert (
        accuracy.value == pytest.approx(0.5588 - 0.3980, abs=2e-4) and accuracy.num_datasets == 17
    )
    assert (
        accuracy.low > 0.14 and accuracy.high < 0.18 and accuracy.p_value == pytest.approx(2 / 1000)
    )
    # Pairing narrows: the difference varies less than the two would, were they independent.
    variance = sum(
        np.var(resamples._values(name, "accuracy", SEVENTEEN)[1])
        for name in ("resnet50", "bagnet33")
    )
    assert accuracy.high - accuracy.low < 0.95 * 2 * 1.96 * math.sqrt(variance)
    itself = compare_models(answers, "resnet50", "resnet50", resamples=resamples)
    assert all(test.p_value == 1 and test.difference == 0 for test in itself.tests)
    assert itself.differences["error_consistency"].p_value == 1


def test_everything_for_nine_models_takes_seconds():
    # One second to read, 0.3 to compute, 2.2 to resample 2,000 times on one thread of the machine
    # it was written on.
    start = time.process_time()
    answers = read_answers(FILES)
    model_table(score(answers)), condition_table(answers)
    assert time.process_time() - start < 15
