"""Metrics of answers, held to hand-counted examples, naive loops, Cohen's kappa of a 2 x 2 table,
and decisions by hand.
"""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from landscape.answers import (
    CATEGORIES,
    CHANCE,
    DATASETS,
    HUMANS,
    IMAGENET_INDICES,
    SEVENTEEN,
    SIXTEEN,
    Answers,
    answers_of_model,
    category_scores,
    category_scores_of_probabilities,
    condition_table,
    count_pairs,
    dataset_table,
    decide,
    image_key,
    model_table,
    score,
    shape_bias,
    shape_bias_by_category,
    shape_bias_by_person,
)
from landscape.answers.benchmark import texture_of

# The facts of the benchmark.


def test_the_categories_hold_207_imagenet_classes():
    # Counted in the toolbox's own list.
    counts = (
        "airplane 1 bear 4 bicycle 2 bird 49 boat 5 bottle 7 car 3 cat 6 chair 4 clock 3 dog 109 "
        "elephant 2 keyboard 2"
    )
    words = (counts + " knife 1 oven 1 truck 8").split()
    expected = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    assert {name: len(indices) for name, indices in IMAGENET_INDICES.items()} == expected
    every = [index for indices in IMAGENET_INDICES.values() for index in indices]
    assert len(set(every)) == len(every) == 207 and min(every) >= 0 and max(every) < 1000
    assert tuple(IMAGENET_INDICES) == CATEGORIES == tuple(sorted(CATEGORIES)) and CHANCE == 0.0625


def test_the_imagenet_classes_of_a_category_are_of_that_kind():
    from open_clip import IMAGENET_CLASSNAMES

    names = {
        name: [IMAGENET_CLASSNAMES[index] for index in indices]
        for name, indices in IMAGENET_INDICES.items()
    }
    assert names["airplane"] == ["airliner"] and names["elephant"] == [
        "Asian elephant",
        "African bush elephant",
    ]
    assert (
        names["clock"] == ["analog clock", "digital clock", "wall clock"]
        and names["keyboard"][0] == "computer keyboard"
    )
    assert names["oven"] == ["rotisserie"] and names["knife"] == ["cleaver"]
    assert all("bear" in name for name in names["bear"])
    # The dogs of ImageNet are 151 to 268, and the cats 281 to 285; the toolbox leaves some out, and
    # takes the cougar.
    assert (
        all(151 <= index <= 268 for index in IMAGENET_INDICES["dog"])
        and names["cat"][-1] == "cougar"
    )


def test_seventeen_data_sets_have_the_conditions_of_the_benchmark():
    assert (
        len(SEVENTEEN) == 17
        and len(SIXTEEN) == 16
        and set(SEVENTEEN) - set(SIXTEEN) == {"cue-conflict"}
    )
    # Of the toolbox's lists: 73 levels of 12 distortions, 32 of them excluded, and five sets of one
    # condition.
    assert sum(len(dataset.conditions) for dataset in DATASETS.values()) == 73 + 5
    assert (
        sum(condition.excluded for dataset in DATASETS.values() for condition in dataset.conditions)
        == 32
    )
    for dataset in DATASETS.values():
        kept = [not condition.excluded for condition in dataset.conditions]
        # The undistorted condition comes first and is excluded; what is kept has no gap.
        assert (
            kept[0] != dataset.is_parametric
            and "".join(str(int(keep)) for keep in kept).strip("0").find("0") < 0
        )
        assert (dataset.axis_label != "") == dataset.is_parametric
    assert sum(dataset.is_parametric for dataset in DATASETS.values()) == 12
    assert [condition.name for condition in DATASETS["low-pass"].kept] == ["1", "3", "5", "7", "10"]


@pytest.mark.parametrize(
    ("dataset", "text", "name"),
    [
        ("high-pass", "3", "3.0"),
        ("high-pass", "0.70", "0.7"),
        ("high-pass", "Inf", "inf"),
        ("uniform-noise", "0.00", "0.0"),
        ("uniform-noise", "0", "0.0"),
        ("low-pass", "10.0", "10"),
        ("false-colour", "true", "True"),
        ("false-colour", "FALSE", "False"),
        ("contrast", "c05", "c05"),
        ("contrast", "5", None),
        ("contrast", "1", None),
        ("false-colour", "1", None),
        ("eidolonI", "1-3-10", None),
        ("edge", "NaN", "0"),
        ("edge", "", "0"),
        ("cue-conflict", "nan", "0"),
        ("sketch", "0.0", "0"),
        ("sketch", "1", None),
        ("low-pass", "NaN", None),
        ("low-pass", "", None),
    ],
)
def test_conditions_are_matched_as_text_then_truth_then_number(dataset, text, name):
    assert DATASETS[dataset].condition_named(text) == name


@pytest.mark.parametrize(
    ("imagename", "key"),
    [
        ("0001_cl_s01_cr_oven_40_n04111531_14126.png", "n04111531_14126.png"),
        ("n04111531_14126.png", "n04111531_14126.png"),
        ("0161_s5n_s10_0_airplane_00_airplane8-oven2.png", "airplane8-oven2.png"),
        ("0002_ske_s01_0_dog_00_dog-4581-sketch-16.png", "dog-4581-sketch-16.png"),
        ("cat3.png", "cat3.png"),
    ],
)
def test_the_key_of_a_picture_is_the_same_for_all_observers(imagename, key):
    assert image_key(imagename) == key == image_key(key)


def test_the_texture_is_the_last_word_of_a_name():
    assert (
        texture_of("dog10-bird2.png")
        == texture_of("0001_s5n_s01_0_dog_00_dog10-bird2.png")
        == "bird"
    )


# Decisions.


def test_a_decision_is_the_largest_mean_probability():
    logits = np.random.default_rng(0).normal(size=(5, 3, 1000)) * 3
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    scores = category_scores(logits)
    assert scores.shape == (5, 3, 16) and scores.dtype == np.float64
    for at, name in enumerate(CATEGORIES):
        slow = sum(probabilities[..., index] for index in IMAGENET_INDICES[name]) / len(
            IMAGENET_INDICES[name]
        )
        np.testing.assert_allclose(scores[..., at], slow, rtol=1e-12)
    np.testing.assert_allclose(category_scores_of_probabilities(probabilities), scores, rtol=1e-12)
    np.testing.assert_allclose(category_scores(logits / 100, scale=100), scores, rtol=1e-9)
    assert (decide(scores) == scores.argmax(-1)).all()


def test_a_category_of_many_classes_has_no_advantage_from_their_number():
    # 0.4 for the airliner, 0.6 spread over 109 dogs: the sum says dog, the mean says airplane.
    probabilities = np.zeros(1000)
    probabilities[404] = 0.4
    probabilities[list(IMAGENET_INDICES["dog"])] = 0.6 / 109
    assert CATEGORIES[int(decide(category_scores_of_probabilities(probabilities)))] == "airplane"


def test_the_scale_of_logits_changes_decisions():
    # Two bicycle classes with cosines .30 and .10, one airplane class with .29.
    cosines = np.full(1000, -1.0)
    cosines[list(IMAGENET_INDICES["bicycle"])] = 0.30, 0.10
    cosines[404] = 0.29
    # At 100: e^30 / 2 < e^29 is false: e^1 / 2 = 1.36 > 1, bicycle. At 10: (e^3 + e^1) / 2 = 11.4 <
    # e^2.9 = 18.2, airplane.
    assert CATEGORIES[int(decide(category_scores(cosines, scale=100)))] == "bicycle"
    assert CATEGORIES[int(decide(category_scores(cosines, scale=10)))] == "airplane"


def test_of_equal_scores_the_last_category_wins():
    scores = np.zeros((2, 16))
    scores[1, [2, 7, 9]] = 0.5
    assert [CATEGORIES[at] for at in decide(scores)] == ["truck", "clock"]


def test_large_logits_do_not_overflow():
    logits = np.zeros(1000)
    logits[281] = 50_000.0
    assert CATEGORIES[int(decide(category_scores(logits)))] == "cat"
    assert category_scores(logits.astype(np.float32)).dtype == np.float64


def test_scores_that_decide_nothing_are_refused():
    with pytest.raises(ValueError, match="1000 ImageNet classes"):
        category_scores(np.zeros((2, 16)))
    with pytest.raises(ValueError, match="1 of the logits are not finite"):
        category_scores(np.where(np.arange(1000) == 3, np.nan, 0.0))
    with pytest.raises(ValueError, match="are these logits"):
        category_scores_of_probabilities(np.full(1000, 0.1))
    with pytest.raises(ValueError, match="16 scores"):
        decide(np.full(16, np.nan))


# Error consistency.


def test_error_consistency_by_hand():
    # Ten pictures; the first has 1 to 8 right, the second 3 to 10: they agree on six, and 0.68 is
    # expected of independent ones.
    first, second = np.array([[1.0] * 8 + [0] * 2]), np.array([[0.0] * 2 + [1] * 8])
    pair = count_pairs(first, second)
    assert pair.observed == pytest.approx(0.6) and pair.expected == pytest.approx(0.68)
    assert (
        pair.error_consistency == pytest.approx((0.6 - 0.68) / 0.32)
        and pair.squared_accuracy_difference == 0
    )


@pytest.mark.parametrize(
    ("first", "second", "observed", "kappa"),
    [
        ([1, 1, 1], [1, 1, 1], 1, 1),
        ([0, 0, 0], [0, 0, 0], 1, 1),
        ([1, 0, 1], [1, 0, 1], 1, 1),
        ([1, 1, 1], [0, 0, 0], 0, 0),
        ([1, 1, 1, 1], [1, 0, 1, 0], 0.5, 0),
        ([1, 0, 1, 0], [0, 1, 0, 1], 0, -1),
    ],
)
def test_error_consistency_at_its_edges(first, second, observed, kappa):
    pair = count_pairs(np.array([first], float), np.array([second], float))
    assert pair.observed[0, 0] == observed and pair.error_consistency[0, 0] == pytest.approx(
        kappa, abs=1e-15
    )


def cohens_kappa(x, y):
    """From the 2 x 2 table, by its determinant: 2 (ad - bc) / ((a + b)(b + d) + (a + c)(c + d))."""
    a, b, c, d = ((x == i) & (y == j) for i, j in ((1, 1), (1, 0), (0, 1), (0, 0)))
    a, b, c, d = (int(part.sum()) for part in (a, b, c, d))
    return 2 * (a * d - b * c) / ((a + b) * (b + d) + (a + c) * (c + d))


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_error_consistency_is_cohens_kappa_of_every_pair_and_resample(missing):
    generator = np.random.default_rng(1)
    first, second = (generator.random((m, 60)) < 0.7 for m in (3, 2))
    first, second = (
        np.where(generator.random(x.shape) < missing, np.nan, x) for x in (first, second)
    )
    weights = generator.integers(0, 3, size=(4, 60)).astype(float)
    plain, weighted = count_pairs(first, second), count_pairs(first, second, weights)
    assert plain.observed.shape == (3, 2) and weighted.observed.shape == (4, 3, 2)
    for i, j in itertools.product(range(3), range(2)):
        for row in range(5):
            # Pictures are repeated as often as they count.
            index = np.repeat(np.arange(60), 1 if row == 4 else weights[row].astype(int))
            x, y = first[i, index], second[j, index]
            both = ~np.isnan(x) & ~np.isnan(y)
            x, y = x[both], y[both]
            values = plain if row == 4 else weighted
            at = (i, j) if row == 4 else (row, i, j)
            assert values.num_pictures[at] == len(x)
            assert values.observed[at] == pytest.approx((x == y).mean(), rel=1e-12)
            assert values.error_consistency[at] == pytest.approx(
                cohens_kappa(x, y), rel=1e-10, abs=1e-12
            )
            assert values.squared_accuracy_difference[at] == pytest.approx(
                (x.mean() - y.mean()) ** 2, rel=1e-10, abs=1e-15
            )


def test_an_observer_is_consistent_with_itself_and_not_with_independent_coins():
    generator = np.random.default_rng(2)
    coins = (generator.random((2, 200_000)) < [[0.8], [0.6]]).astype(float)
    kappa = count_pairs(coins, coins).error_consistency
    assert kappa[0, 0] == kappa[1, 1] == 1
    # Its standard error is about sqrt(p q (1 - p) (1 - q)) / (p + q - 2 p q) / sqrt(n) x 2 = 0.002.
    assert abs(kappa[0, 1]) < 0.01


def test_observers_without_a_shared_picture_have_no_consistency():
    pair = count_pairs(np.array([[1.0, np.nan]]), np.array([[np.nan, 0.0]]))
    assert np.isnan(pair.observed).all() and np.isnan(pair.error_consistency).all()


# Metrics of a data set, and means.


def observer(
    name,
    right,
    dataset="high-pass",
    kind="model",
    conditions=("3.0", "1.5", "1.0", "0.7"),
    wrong="oven",
):
    """Answers to pictures 1, 2, … of category cat in each condition: right where `right` says 1,
    not shown where None.
    """
    rows = [
        dict(
            condition=condition,
            image=f"n02123394_{condition}-{at}.png",
            response="cat" if is_right else wrong,
        )
        for condition, answers in zip(conditions, right, strict=True)
        for at, is_right in enumerate(answers)
        if is_right is not None
    ]
    return Answers.of_rows(
        pd.DataFrame(rows).assign(observer=name, kind=kind, dataset=dataset, category="cat")
    )


PEOPLE = (
    observer("subject-01", [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], kind="human")
    + observer(
        "subject-02",
        [[1, 1, 0, 1], [1, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]],
        kind="human",
        wrong="na",
    )
    + observer("subject-03", [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], kind="human")
)
MODEL = observer("net", [[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]])


def test_means_are_taken_over_conditions_then_people_by_hand():
    scores = score(PEOPLE + MODEL)["net"].by_dataset["high-pass"]
    net = [[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    people = [
        [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]],
        [[1, 1, 0, 1], [1, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]],
        [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]],
    ]
    observed, kappas, squares = [], [], []
    for person in people:
        pairs = [(np.array(a), np.array(b)) for a, b in zip(net, person, strict=True)]
        observed.append(np.mean([(a == b).mean() for a, b in pairs]))
        kappas.append(np.mean([1.0 if (a == b).all() else cohens_kappa(a, b) for a, b in pairs]))
        squares.append(np.mean([(a.mean() - b.mean()) ** 2 for a, b in pairs]))
    assert scores.accuracy == 5 / 16 and (
        scores.num_right,
        scores.num_trials,
        scores.num_unanswered,
    ) == (5, 16, 0)
    assert scores.observed_consistency == pytest.approx(np.mean(observed), rel=1e-12)
    assert scores.error_consistency == pytest.approx(np.mean(kappas), rel=1e-12)
    assert scores.accuracy_difference == pytest.approx(np.mean(squares), rel=1e-12)


def test_people_are_pooled_and_compared_pair_by_pair():
    humans = score(PEOPLE)[HUMANS].by_dataset["high-pass"]
    assert humans.accuracy == pytest.approx((6 + 7 + 9) / 48) and humans.num_trials == 48
    # Of 4 pictures in each of 4 conditions, the three pairs agree on so many.
    agreements = [2 + 2 + 4 + 3, 3 + 3 + 3 + 4, 3 + 3 + 3 + 3]
    assert humans.observed_consistency == pytest.approx(np.mean(agreements) / 16)
    # Accuracies of the pairs in fourths: 3 3, 3 4, 3 4; 2 2, 2 3, 2 3; 1 1, 1 2, 1 2; 0 1, 0 0, 1
    # 0.
    assert humans.accuracy_difference == pytest.approx(np.mean([1, 3, 4]) / 16 / 4)


def test_excluded_conditions_count_in_tables_and_not_in_means():
    easy = observer("net", [[1, 1, 1, 1]], conditions=("inf",))
    assert score(MODEL + easy)["net"].by_dataset["high-pass"].accuracy == 5 / 16
    table = condition_table(MODEL + easy).set_index("condition")
    assert table.accuracy.to_dict() == {
        "inf": 1.0,
        "3.0": 0.5,
        "1.5": 0.25,
        "1.0": 0.25,
        "0.7": 0.25,
    }
    assert table.excluded.to_dict() == {
        "inf": True,
        "3.0": False,
        "1.5": False,
        "1.0": False,
        "0.7": False,
    }


def test_conditions_of_different_sizes_are_pooled_in_the_accuracy_of_a_set():
    uneven = observer("net", [[1, 1, 1, 1, 1, 1], [0], [0], [0]])
    assert score(uneven)["net"].by_dataset["high-pass"].accuracy == pytest.approx(6 / 9)


def test_pictures_without_an_answer_are_counted_and_left_out():
    partial = observer("net", [[1, None, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, None]])
    scores = score(PEOPLE + partial)["net"].by_dataset["high-pass"]
    assert scores.accuracy == 4 / 14 and scores.num_trials == 14 and scores.num_unanswered == 2


def test_a_set_without_a_kept_condition_has_no_accuracy_and_is_named():
    partial = observer("net", [[1, 0, 0, 0]], conditions=("3.0",))
    mean = score(PEOPLE + partial)["net"].mean("accuracy")
    assert math.isnan(mean.value) and mean.missing == SEVENTEEN


def test_a_mean_names_the_sets_that_are_missing():
    edge = observer("net", [[1, 1, 1, 0]], dataset="edge", conditions=("0",))
    scores = score(PEOPLE + MODEL + edge)
    mean = scores["net"].mean("accuracy", ("high-pass", "edge", "sketch"))
    assert mean.value == pytest.approx((5 / 16 + 3 / 4) / 2) and mean.datasets == (
        "high-pass",
        "edge",
    )
    assert (
        mean.missing == ("sketch",)
        and not mean.is_complete
        and str(mean) == "0.531 (2 of 3 sets, without sketch)"
    )
    # People answered high-pass only.
    assert scores["net"].mean("error_consistency", ("high-pass", "edge")).missing == ("edge",)
    row = model_table(scores).set_index("model").loc["net"]
    assert (
        math.isnan(row.ood_accuracy_17)
        and row.num_datasets == 2
        and "sketch" in row.missing
        and math.isnan(row.shape_bias)
    )
    assert dataset_table(scores).groupby("observer").size().to_dict() == {"net": 2, "humans": 1}


def test_models_alone_and_people_alone_are_scored():
    alone = score(MODEL)
    assert list(alone) == ["net"] and math.isnan(
        alone["net"].by_dataset["high-pass"].error_consistency
    )
    assert list(score(PEOPLE)) == [HUMANS]
    one = PEOPLE.table[PEOPLE.table.observer == "subject-01"].reset_index(drop=True)
    single = score(Answers(one))[HUMANS].by_dataset["high-pass"]
    assert single.accuracy == 6 / 16 and math.isnan(single.error_consistency)


def test_the_rank_by_likeness_is_the_mean_of_three_ranks():
    datasets = [
        observer(
            name,
            [right] * len(DATASETS[dataset].kept),
            dataset,
            kind,
            [level.name for level in DATASETS[dataset].kept],
        )
        for dataset in SEVENTEEN
        for name, kind, right in [
            ("subject-01", "human", [1, 1, 0, 0]),
            ("subject-02", "human", [1, 1, 0, 0]),
            ("twin", "model", [1, 1, 0, 0]),
            ("anti", "model", [0, 0, 1, 1]),
            ("half", "model", [1, 0, 0, 0]),
        ]
        # Names of cue-conflict pictures must say a texture.
        if dataset != "cue-conflict"
    ]
    answers = datasets[0]
    for part in datasets[1:]:
        answers = answers + part
    images = ["cat1-dog1.png", "cat2-dog1.png", "cat3-dog1.png", "cat4-cat1.png"]
    for name, kind, right in [
        ("subject-01", "human", [1, 1, 0, 0]),
        ("subject-02", "human", [1, 1, 0, 0]),
    ]:
        rows = dict(
            observer=name,
            kind=kind,
            dataset="cue-conflict",
            condition="0",
            category="cat",
            image=images,
        )
        answers = answers + Answers.of_rows(
            pd.DataFrame(rows).assign(response=np.where(right, "cat", "dog"))
        )
    for name, right in [("twin", [1, 1, 0, 0]), ("anti", [0, 0, 1, 1]), ("half", [1, 0, 0, 0])]:
        answers = answers + answers_of_model(
            name,
            "cue-conflict",
            images=images,
            conditions=["0"] * 4,
            categories=["cat"] * 4,
            responses=np.where(right, "cat", "dog"),
        )
    table = model_table(score(answers)).set_index("model")
    # Accuracy difference: twin and anti 0, half 1/16. Observed: 1, 0, 3/4. Kappa: 1, -1, 1/2.
    assert table.accuracy_difference.tolist() == pytest.approx([0, 0, 1 / 16, 0])
    assert table.observed_consistency.tolist() == pytest.approx([1, 0, 0.75, 1])
    assert table.error_consistency.tolist() == pytest.approx([1, -1, 0.5, 1])
    assert table.mean_rank.tolist()[:3] == pytest.approx(
        [(1.5 + 1 + 1) / 3, (1.5 + 3 + 3) / 3, (3 + 2 + 2) / 3]
    )
    assert (table.num_datasets == 17).all() and (table.missing == "").all()
    # twin: shape of 1 and 2, texture of 3; 4 has no conflict.
    assert table.shape_bias["twin"] == pytest.approx(2 / 3)


# Shape bias.


def cue_conflict(name, kind, answers):
    rows = [
        dict(category=image.split("-")[0].rstrip("0123456789"), image=image, response=response)
        for image, response in answers.items()
    ]
    return Answers.of_rows(
        pd.DataFrame(rows).assign(observer=name, kind=kind, dataset="cue-conflict", condition="0")
    )


def test_shape_bias_counts_shape_and_texture_where_they_differ():
    images = ["dog1-cat1.png", "dog2-cat1.png", "dog3-bird2.png", "cat1-cat2.png", "cat2-dog9.png"]
    net = dict(zip(images, ["dog", "cat", "bear", "cat", "cat"], strict=True))
    first = dict(zip(images, ["dog", "dog", "na", "cat", "dog"], strict=True))
    second = first | {"dog3-bird2.png": "bird", "cat2-dog9.png": "cat"}
    answers = cue_conflict("net", "model", net) + cue_conflict("subject-01", "human", first)
    answers = answers + cue_conflict("subject-02", "human", second)
    model = shape_bias(answers, "net")
    assert (model.shape, model.texture, model.num_conflicts, model.num_trials) == (2, 1, 4, 5)
    assert model.bias == pytest.approx(2 / 3)
    people = shape_bias(answers)
    assert (people.shape, people.texture, people.num_conflicts, people.num_trials) == (5, 2, 8, 10)
    categories = shape_bias_by_category(answers, "net")
    assert (
        categories["dog"].bias == 0.5
        and categories["cat"].bias == 1
        and math.isnan(categories["oven"].bias)
    )
    assert {name: one.bias for name, one in shape_bias_by_person(answers).items()} == {
        "subject-01": pytest.approx(2 / 3),
        "subject-02": pytest.approx(3 / 4),
    }


def test_shape_bias_without_cue_conflict_is_none():
    assert (
        shape_bias(MODEL, "net") is None
        and shape_bias_by_category(MODEL) == {}
        and shape_bias_by_person(MODEL) == {}
    )
    assert shape_bias(cue_conflict("net", "model", {"dog1-cat1.png": "dog"})) is None


def test_a_cue_conflict_picture_without_a_texture_is_refused():
    from landscape.errors import AnswersError

    with pytest.raises(AnswersError, match="dog10-zebra2.png"):
        shape_bias(cue_conflict("net", "model", {"dog10-zebra2.png": "dog"}), "net")
