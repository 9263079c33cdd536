"""Intervals and comparisons of made-up observers, held to closed forms and simulated coverage."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from landscape.answers import CATEGORIES, HUMANS, Answers, compare_models, resample
from landscape.errors import AnswersError
from landscape.statistics import Bootstrap

# The kept conditions of a data set that has three.
CONDITIONS = ("2-0-10", "4-0-10", "8-0-10")


def observer(name, correct, *, kind="model", dataset="eidolonIII", conditions=CONDITIONS):
    """Answers to the pictures (condition, category, picture) that an array says are right; NaN was
    not shown.
    """
    wrong = {name: CATEGORIES[(at + 1) % 16] for at, name in enumerate(CATEGORIES)}
    rows = [
        dict(
            condition=condition,
            category=category,
            image=f"{category}-{condition}-{at}",
            response=category if x else wrong[category],
        )
        for condition, table in zip(conditions, correct, strict=True)
        for category, values in zip(CATEGORIES, table, strict=True)
        for at, x in enumerate(values)
        if not math.isnan(x)
    ]
    return Answers.of_rows(pd.DataFrame(rows).assign(observer=name, kind=kind, dataset=dataset))


def drawn(generator, num_pictures=10, difficulty=None, shift=0.0):
    """Right answers with a probability of their own in each condition and category."""
    shares = np.linspace(0.9, 0.2, 48).reshape(3, 16) if difficulty is None else difficulty
    return (
        generator.random((*shares.shape, num_pictures)) < np.clip(shares + shift, 0, 1)[..., None]
    ).astype(float)


def joined(parts):
    answers = parts[0]
    for part in parts[1:]:
        answers = answers + part
    return answers


@pytest.fixture(scope="module")
def answers():
    generator = np.random.default_rng(0)
    people = [
        observer(f"subject-0{at}", drawn(generator, shift=0.05 * at), kind="human")
        for at in range(4)
    ]
    return joined(
        [
            *people,
            observer("net", drawn(generator)),
            observer("other", drawn(generator, shift=-0.1)),
        ]
    )


def test_the_spread_of_an_accuracy_is_that_of_its_strata(answers):
    # Conditions and categories are fixed by design, so only the variance within them counts.
    resampled = resample(answers, Bootstrap(num_resamples=4000)).by_dataset["eidolonIII"][
        "accuracy"
    ]
    trials = answers.trials["eidolonIII"]
    correct = trials.correct("model")[0].reshape(48, 10)
    closed = (correct.var(axis=1, ddof=1) / 10).sum() / 48**2
    # The standard error of a variance of 4,000 resamples is 2.2 %.
    assert resampled[:, 0].var() == pytest.approx(closed, rel=0.09)


def test_people_who_always_answer_the_same_still_vary_among_each_other():
    # Each person has all pictures right in so many categories: pictures within a stratum do not
    # vary, people do.
    shares = np.array([4, 8, 9, 11, 13])
    people = [
        observer(
            f"subject-0{at}",
            np.repeat((np.arange(48) % 16 < k).astype(float), 2).reshape(3, 16, 2),
            kind="human",
        )
        for at, k in enumerate(shares)
    ]
    resampled = resample(joined(people), Bootstrap(num_resamples=4000)).by_dataset["eidolonIII"][
        "accuracy"
    ][:, -1]
    closed = (shares / 16).var(ddof=1) / len(shares)
    assert resampled.mean() == pytest.approx((shares / 16).mean(), abs=0.01)
    assert resampled.var() == pytest.approx(closed, rel=0.1)


def test_a_data_set_is_resampled_the_same_whatever_else_is_there(answers):
    generator = np.random.default_rng(1)
    # A data set that comes before the other.
    colour = observer(
        "net",
        drawn(generator, difficulty=np.full((1, 16), 0.5)),
        dataset="colour",
        conditions=("bw",),
    )
    settings = Bootstrap(num_resamples=199)
    alone, both = resample(answers, settings), resample(answers + colour, settings)
    assert alone.interval("net", "accuracy", ["eidolonIII"]) == both.interval(
        "net", "accuracy", ["eidolonIII"]
    )
    # Two data sets are independent: the variance of the mean of two is a quarter of the sum.
    one, two = (both.by_dataset[name]["accuracy"][:, 0] for name in ("eidolonIII", "colour"))
    assert abs(np.corrcoef(one, two)[0, 1]) < 4 / math.sqrt(199)
    # The mean over 17 sets is that of those that are there.
    assert both.interval("net", "accuracy").value == pytest.approx(
        (
            both.interval("net", "accuracy", ["eidolonIII"]).value
            + both.interval("net", "accuracy", ["colour"]).value
        )
        / 2
    )


def test_two_people_give_no_interval_of_their_likeness():
    generator = np.random.default_rng(2)
    people = [observer(f"subject-0{at}", drawn(generator), kind="human") for at in range(3)]
    two = resample(people[0] + people[1], Bootstrap(num_resamples=199))
    assert math.isfinite(two.interval(HUMANS, "error_consistency").value)
    assert math.isnan(two.interval(HUMANS, "error_consistency").low) and math.isfinite(
        two.interval(HUMANS, "accuracy").low
    )
    three = resample(joined(people), Bootstrap(num_resamples=199))
    assert math.isfinite(three.interval(HUMANS, "error_consistency").low)


def test_likeness_to_other_people_is_less_certain_than_to_these(answers):
    settings = Bootstrap(num_resamples=999)
    widths = []
    for people in (False, True):
        interval = resample(answers, settings, resample_people=people).interval(
            "net", "accuracy_difference"
        )
        widths.append(interval.high - interval.low)
    assert widths[1] > 1.1 * widths[0]


def kappa_of(joint):
    """Error consistency of a population: how likely both are right, the first alone, the second
    alone, and neither.
    """
    a, b, c, d = joint
    expected = (a + b) * (a + c) + (c + d) * (b + d)
    return (a + d - expected) / (1 - expected)


def test_the_interval_of_error_consistency_covers_the_truth_in_92_to_98_percent():
    generator, covered, num_trials = np.random.default_rng(3), 0, 300
    # Of each condition and category: how likely a shared lapse is, and how likely each errs alone.
    shared, own, persons = (
        np.linspace(0.05, 0.4, 48),
        np.linspace(0.05, 0.3, 48),
        np.linspace(0.3, 0.05, 48),
    )
    first, second = (1 - shared) * (1 - own), (1 - shared) * (1 - persons)
    both = (1 - shared) * (1 - own) * (1 - persons)
    joint = np.array([both, first - both, second - both])
    joint = np.concatenate([joint, 1 - joint.sum(0, keepdims=True)]).reshape(4, 3, 16).mean(axis=2)
    truth = np.mean([kappa_of(joint[:, condition]) for condition in range(3)])
    nothing = np.zeros((3, 16, 10))
    trials = (observer("net", nothing) + observer("subject-01", nothing, kind="human")).trials[
        "eidolonIII"
    ]
    # All data sets of this test have the same pictures, so only the responses are exchanged.
    for _ in range(num_trials):
        lapse, alone, person = (
            generator.random((48, 10)) < share[:, None] for share in (shared, own, persons)
        )
        for responses, wrong in (
            (trials.model_responses, lapse | alone),
            (trials.human_responses, lapse | person),
        ):
            responses[0] = (trials.category + wrong.ravel()) % 16
        resampled = Answers(pd.DataFrame())
        resampled.__dict__.update(
            trials={"eidolonIII": trials}, models=("net",), datasets=("eidolonIII",)
        )
        interval = resample(resampled, Bootstrap(num_resamples=199)).interval(
            "net", "error_consistency"
        )
        covered += interval.low <= truth <= interval.high
    # 300 trials have a standard error of 1.3 %.
    assert 0.92 <= covered / num_trials <= 0.98


def test_two_models_are_compared_set_by_set(answers):
    generator = np.random.default_rng(4)
    edges = [drawn(generator, difficulty=np.full((1, 16), share)) for share in (0.9, 0.3)]
    edges[0][0, 0, 0] = math.nan
    parts = [
        observer(name, x, dataset="edge", conditions=("0",))
        for name, x in zip(("net", "other"), edges, strict=True)
    ]
    alone = observer(
        "net",
        drawn(generator, difficulty=np.full((1, 16), 0.5)),
        dataset="sketch",
        conditions=("0",),
    )
    comparison = compare_models(
        joined([answers, *parts, alone]), "net", "other", settings=Bootstrap(num_resamples=199)
    )
    eidolon, edge = comparison.tests
    assert (eidolon.dataset, edge.dataset) == ("eidolonIII", "edge") and len(
        comparison.missing
    ) == 15
    assert (eidolon.num_pictures, eidolon.num_left_out) == (480, 0) and (
        edge.num_pictures,
        edge.num_left_out,
    ) == (159, 1)
    first, second = (x.ravel()[1:] == 1 for x in edges)
    b, c = (first & ~second).sum(), (~first & second).sum()
    assert (edge.first_only, edge.second_only) == (b, c) and edge.difference == pytest.approx(
        (b - c) / 159
    )
    assert edge.p_value == pytest.approx(stats.binomtest(b, b + c).pvalue, rel=1e-9)
    assert edge.p_holm == pytest.approx(2 * edge.p_value) and eidolon.p_holm == max(
        eidolon.p_value, edge.p_holm
    )
    assert 0.05 < edge.detectable < 0.25
    assert (
        list(comparison.table().dataset) == ["eidolonIII", "edge"]
        and "difference" in comparison.table()
    )
    accuracy = comparison.differences["ood_accuracy_17"]
    assert (
        accuracy.num_datasets == 2 and len(accuracy.missing) == 15 and "sketch" in accuracy.missing
    )
    # People answered eidolon only; nobody answered cue-conflict.
    assert (
        comparison.differences["error_consistency"].num_datasets == 1
        and "shape_bias" not in comparison.differences
    )


def test_pairing_finds_a_difference_that_two_intervals_hide():
    # The second errs wherever the first does, and on one picture more in every category.
    generator = np.random.default_rng(5)
    first = drawn(generator)
    second = first.copy()
    for condition in range(3):
        for category in range(0, 16, 2):
            right = np.flatnonzero(second[condition, category])
            second[condition, category, right[:1]] = 0
    both = observer("first", first) + observer("second", second)
    resamples = resample(both, Bootstrap(num_resamples=999))
    one, two = (resamples.interval(name, "accuracy") for name in ("first", "second"))
    assert one.low < two.high
    comparison = compare_models(both, "first", "second", resamples=resamples)
    assert (
        comparison.differences["ood_accuracy_17"].low > 0
        and comparison.differences["ood_accuracy_17"].p_value == 0.002
    )
    assert comparison.tests[0].p_value == pytest.approx(2 * 0.5 ** comparison.tests[0].first_only)
    # Without people there is no likeness to compare.
    assert set(comparison.differences) == {"ood_accuracy_17", "ood_accuracy_16"}


def test_models_that_cannot_be_compared_are_refused(answers):
    with pytest.raises(AnswersError, match="no model 'nobody' .*net, other"):
        compare_models(answers, "net", "nobody")
    edge = observer("third", np.ones((1, 16, 2)), dataset="edge", conditions=("0",))
    with pytest.raises(AnswersError, match="third answered no picture both"):
        compare_models(answers + edge, "net", "third")
    with pytest.raises(ValueError, match="no observer 'nobody'"):
        resample(answers, Bootstrap(num_resamples=99)).interval("nobody", "accuracy")


def test_a_number_that_is_not_there_has_no_interval(answers):
    resamples = resample(answers, Bootstrap(num_resamples=99))
    for interval in (
        resamples.interval("net", "accuracy", ["edge"]),
        resamples.interval("net", "shape_bias"),
    ):
        assert math.isnan(interval.value) and math.isnan(interval.low)
    assert resamples.condition_intervals("edge") == []
    assert [
        band.low < band.value < band.high
        for band in resamples.condition_intervals("eidolonIII")[1:4]
    ] == [True] * 3
    # Conditions that nobody saw.
    assert math.isnan(resamples.condition_intervals("eidolonIII")[0].value)
