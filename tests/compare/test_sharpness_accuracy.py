"""Sharpness joined with accuracy: rank correlations against SciPy and by hand, intervals, and what
must not be joined.

Truth: `scipy.stats` (spearmanr, permutation_test, jackknife by hand), counting, and simulated
studies of known correlation.
"""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from landscape.compare import summarize_stores
from landscape.compare.accuracy_means import OOD, ROBUSTNESS, ZERO_SHOT, accuracy_means, control_of
from landscape.compare.correlation import ALL, ONE_SERIES, SAME_EPOCH, WITHIN
from landscape.compare.sharpness_accuracy import sharpness_and_accuracy
from landscape.errors import StoreError
from landscape.statistics import (
    Bootstrap,
    blocked_spearman,
    exchange_test,
    jackknife_interval,
    mean_spearman,
    spearman,
    wilson_interval,
)
from landscape.store.predictions import (
    CheckpointPredictions,
    PredictionStore,
    SetPredictions,
    write_predictions,
)
from tests.helpers.study_stores import write_study
from tests.store.test_predictions import make_answers, make_set

LABELS = {"one": "Model one", "two": "Model two", "three": "Model three"}
EPOCHS = (0, 1, 2, 3)
FEW = Bootstrap(num_resamples=200)


def exactly(one, share: float) -> SetPredictions:
    """Answers of which exactly this share is right, the first ones."""
    found = SetPredictions.empty(len(one), 5)
    right = np.arange(len(one)) < round(share * len(one))
    best = np.where(right, one.labels, (one.labels + 1) % len(one.class_names)).astype(np.int32)
    others = (best[:, None] + np.arange(1, 5)) % len(one.class_names)
    found.put(
        0,
        np.concatenate([best[:, None], others], axis=1),
        np.tile(np.float32([5, 4, 3, 2, 1]), (len(one), 1)),
        {},
    )
    return found


def answers_of(shares, sets, *, labels=LABELS) -> PredictionStore:
    """A store in which (series, epoch) has the share `shares(series, epoch, set)` right."""
    store = PredictionStore(sets={one.name: one for one in sets})
    for name, label in labels.items():
        for epoch in EPOCHS:
            digest = hashlib.sha256(f"{name} {epoch}".encode()).hexdigest()
            one = CheckpointPredictions(
                series=name, label=label, model="m", epoch=epoch, checkpoint_sha256=digest
            )
            one.sets.update({each.name: exactly(each, shares(name, epoch, each)) for each in sets})
            store.checkpoints[one.key] = one
    return store


def rising(name, epoch, one):
    return 0.2 + 0.15 * epoch + 0.02 * list(LABELS).index(name)


@pytest.fixture
def files(tmp_path):
    """Writes a store of spectra and one of answers, and returns their paths."""

    def write(shares=rising, sets=None, *, change=lambda store: store, **options):
        spectra = write_study(
            tmp_path / "spectra.h5",
            **({"labels": LABELS, "epochs": EPOCHS, "num_batches": 8} | options),
        )
        store = answers_of(shares, sets or [make_set(num_pictures=100)])
        write_predictions(tmp_path / "answers.h5", change(store))
        return spectra, tmp_path / "answers.h5"

    return write


def joined(spectra, *answers, **options):
    return sharpness_and_accuracy(spectra, answers, **({"num_resamples": 99} | options))


# --- the statistics -------------------------------------------------------------------------------


def test_rank_correlations_are_scipys_with_ties_too():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(2, 5, 18)).round(0)
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(spearman(x, y), expected, atol=1e-12)
    names = np.repeat(["a", "b", "c"], 6)
    within = [
        [stats.spearmanr(a[names == n], b[names == n]).statistic for n in "abc"]
        for a, b in zip(x, y, strict=True)
    ]
    np.testing.assert_allclose(mean_spearman(x, y, names), np.mean(within, axis=1), atol=1e-12)
    assert np.isnan(spearman(np.ones(5), np.arange(5.0))) and np.isnan(
        spearman(np.array([1, np.nan, 3, 4]), np.arange(4.0))
    )


def test_what_differs_between_blocks_does_not_count_in_the_rank_correlation_within_blocks():
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(2, 20))
    blocks = np.repeat(np.arange(4), 5)
    # Blocks of one size without ties: the mean of the correlations of the blocks.
    each = [stats.spearmanr(x[blocks == b], y[blocks == b]).statistic for b in range(4)]
    assert blocked_spearman(x, y, blocks) == pytest.approx(np.mean(each), abs=1e-12)
    assert blocked_spearman(x + 100 * blocks, y - 7 * blocks, blocks) == pytest.approx(
        np.mean(each), abs=1e-12
    )
    assert abs(spearman(x + 100 * blocks, y - 7 * blocks) - np.mean(each)) > 0.5


@pytest.mark.parametrize("size", [4, 5, 6])
def test_exchanging_series_of_one_checkpoint_each_is_scipys_exact_permutation_test(size):
    x, y = np.random.default_rng(size).normal(size=(2, size))
    p_value, smallest = exchange_test(
        lambda a, b: spearman(a[..., 0], b[..., 0]), x[:, None], y[:, None]
    )
    truth = stats.permutation_test(
        (x,),
        lambda a: stats.spearmanr(a, y).statistic,
        permutation_type="pairings",
        n_resamples=np.inf,
        vectorized=False,
    )
    assert p_value == pytest.approx(truth.pvalue, abs=1e-12) and smallest == 2 / len(
        truth.null_distribution
    )


def test_series_are_exchanged_whole_and_three_of_them_give_no_small_p_value():
    # 30 epochs in perfect order: exchanged one by one they would give p = 2 / 6 ** 30.
    x = np.arange(3.0)[:, None] + np.linspace(0, 50, 30)
    blocks = np.tile(np.arange(30), 3)

    def statistic(a, b):
        return blocked_spearman(a.reshape(*a.shape[:-2], -1), b.reshape(*b.shape[:-2], -1), blocks)

    assert exchange_test(statistic, x, -x) == pytest.approx((2 / 6, 2 / 6))


def test_beyond_eight_series_random_arrangements_stand_for_all():
    x, y = np.random.default_rng(5).normal(size=(2, 10))
    p_value, smallest = exchange_test(
        lambda a, b: spearman(a[..., 0], b[..., 0]), x[:, None], y[:, None]
    )
    # The t distribution of SciPy's own p-value is the exact one to 0.01 for 10 points; a share of
    # 10,000 varies by 0.005.
    assert (
        p_value == pytest.approx(stats.spearmanr(x, y).pvalue, abs=0.04) and smallest == 2 / 10_000
    )


def test_the_interval_over_series_is_students_for_a_mean_and_none_for_two_series():
    generator = np.random.default_rng(2)
    x, y = generator.normal(size=(2, 120))
    names = np.repeat(np.arange(4), 30)
    each = np.array([stats.spearmanr(x[names == n], y[names == n]).statistic for n in range(4)])
    found = jackknife_interval(
        lambda mask: float(mean_spearman(x[mask], y[mask], names[mask])), names
    )
    # The jackknife of a mean is its standard error.
    low, high = stats.t.interval(0.95, 3, loc=each.mean(), scale=stats.sem(each))
    assert (found.value, found.low, found.high) == pytest.approx(
        (each.mean(), max(low, -1), min(high, 1)), abs=1e-12
    )
    assert found.low > -1 and found.high < 1
    two = names < 2
    found = jackknife_interval(lambda mask: float(spearman(x[two][mask], y[two][mask])), names[two])
    assert np.isfinite(found.value) and np.isnan(found.low) and np.isnan(found.high)


def test_series_that_all_agree_give_no_width_of_zero():
    names = np.repeat(np.arange(3), 4)
    x = np.tile(np.arange(4.0), 3)
    found = jackknife_interval(
        lambda mask: float(mean_spearman(x[mask], x[mask], names[mask])), names
    )
    assert found.value == pytest.approx(1) and np.isnan(found.low)


def test_over_simulated_studies_the_interval_over_series_covers_as_often_as_the_page_says():
    generator = np.random.default_rng(3)

    def study(num_series):
        both = generator.multivariate_normal([0, 0], [[1, -0.7], [-0.7, 1]], size=num_series)
        walks = 0.3 * generator.normal(size=(2, num_series, 6)).cumsum(axis=2)
        trend = np.linspace(-1, 1, 6)
        return (both[:, :1] - trend + walks[0]).ravel(), (both[:, 1:] + trend + walks[1]).ravel()

    truth = float(spearman(*study(20_000)))
    names, held = np.repeat(np.arange(6), 6), []
    for _ in range(200):
        x, y = study(6)
        found = jackknife_interval(lambda mask: float(spearman(x[mask], y[mask])), names)
        held.append(found.low <= truth <= found.high)
    # 200 studies tell a share of 0.9 to 0.02; the page says 72 to 100 %.
    assert 0.8 < np.mean(held) <= 1


# --- the means of accuracies ----------------------------------------------------------------------


def test_the_mean_over_zero_shot_sets_counts_each_set_the_same_and_one_set_has_wilsons_interval():
    one, other = make_set("pets", num_pictures=100), make_set("mnist", num_pictures=20)
    store = answers_of(lambda name, epoch, each: 0.6 if each is one else 0.2, [one, other])
    found = accuracy_means(store.sets, list(store.checkpoints.values()), FEW)
    assert set(found) == {ZERO_SHOT} and found[ZERO_SHOT].values["one", 0].value == pytest.approx(
        0.4
    )
    assert found[ZERO_SHOT].datasets == ("pets", "mnist")
    (mean,) = accuracy_means({one.name: one}, list(store.checkpoints.values()), FEW).values()
    interval = mean.values["one", 0]
    assert (interval.low, interval.high) == pytest.approx(wilson_interval(60, 100))


def _distorted(**facts):
    levels = [
        make_set("own/contrast", condition=c, num_pictures=100, chance=0.1)
        for c in ("c100", "c50", "c05")
    ]
    return [*levels, make_set("own/edge", condition="0", num_pictures=100, chance=0.1, **facts)]


def test_distorted_sets_count_alike_without_their_control_and_what_is_kept_is_above_chance():
    shares = {"c100": 0.8, "c50": 0.5, "c05": 0.3, "0": 0.2}
    store = answers_of(
        lambda name, epoch, each: shares[each.condition] if epoch else 0.1, _distorted()
    )
    found = accuracy_means(store.sets, list(store.checkpoints.values()), FEW)
    assert found[OOD].values["one", 1].value == pytest.approx((0.4 + 0.2) / 2)
    assert found[ROBUSTNESS].values["one", 1].value == pytest.approx((0.4 - 0.1) / (0.8 - 0.1))
    assert found[ROBUSTNESS].datasets == ("own/contrast",)
    # At epoch 0 there is only guessing.
    assert ("one", 0) in found[OOD].values and ("one", 0) not in found[ROBUSTNESS].values
    assert (
        "one epoch 0" in found[ROBUSTNESS].notes[0]
        and "has nothing to reduce" in found[ROBUSTNESS].notes[0]
    )


def test_published_sets_leave_out_what_the_benchmark_excludes():
    from landscape.answers import DATASETS

    levels = {"c100": 0.9, "c50": 0.6, "c03": 0.0}
    sets = [
        make_set("contrast", condition=c, num_pictures=100, rule="imagenet16:100", chance=1 / 16)
        for c in levels
    ]
    cue = make_set(
        "cue-conflict", condition="0", num_pictures=100, rule="imagenet16:100", chance=1 / 16
    )
    store = answers_of(lambda name, epoch, each: levels.get(each.condition, 0.0), [*sets, cue])
    found = accuracy_means(store.sets, list(store.checkpoints.values()), FEW)
    assert found[OOD].values["one", 1].value == pytest.approx(0.6) and found[OOD].datasets == (
        "contrast",
    )
    for name, one in DATASETS.items():
        expected = one.conditions[0].name if one.is_parametric else None
        assert control_of(name) == control_of(f"own/{name}") == expected, name


def test_conditions_of_the_same_pictures_are_resampled_together():
    # The same pictures are right in both: the mean is as uncertain as one condition, not as two
    # halves.
    sets = [
        make_set("own/contrast", condition=c, num_pictures=100, chance=0.1) for c in ("c50", "c30")
    ]
    store = answers_of(lambda *_: 0.5, sets)
    found = accuracy_means(
        store.sets, list(store.checkpoints.values()), Bootstrap(num_resamples=2000)
    )
    spread = found[OOD].resamples["one", 0].std()
    # 2,000 resamples tell a standard deviation to 1.6 %; independent conditions would give 0.035.
    assert spread == pytest.approx(np.sqrt(0.5 * 0.5 / 99), rel=0.06)


def test_a_set_that_not_every_checkpoint_was_shown_whole_is_left_out_of_the_mean_and_named():
    one, other = make_set("pets", num_pictures=50), make_set("mnist", num_pictures=50)
    store = answers_of(lambda *_: 0.5, [one, other])
    store.checkpoints["two", 1].sets[other.name].done[3] = False
    found = accuracy_means(store.sets, list(store.checkpoints.values()), FEW)[ZERO_SHOT]
    assert found.datasets == ("pets",) and "mnist" in found.notes[0] and len(found.values) == 12


# --- the join -------------------------------------------------------------------------------------


def test_sharpness_is_the_comparisons_and_accuracy_is_counted(files):
    spectra, answers = files()
    found = joined(spectra, answers, num_resamples=299)
    comparison = summarize_stores([spectra], num_resamples=299)
    for row in found.rows:
        for metric, interval in row.sharpness.items():
            truth = comparison.summary(row.series, row.epoch, metric)
            np.testing.assert_equal(
                (interval.value, interval.low, interval.high), (truth.value, truth.low, truth.high)
            )
        (score,) = row.scores
        assert (
            score.value.value
            == row.means[ZERO_SHOT].value
            == pytest.approx(rising(row.series, row.epoch, None), abs=1e-9)
        )
    assert [row.key for row in found.rows] == [(name, epoch) for name in LABELS for epoch in EPOCHS]
    assert found.files == ("answers.h5",) and not found.notes


def test_every_scope_has_scipys_rank_correlation(files):
    generator = np.random.default_rng(4)
    shares = {
        (name, epoch): generator.integers(10, 90) / 100 for name in LABELS for epoch in EPOCHS
    }
    spectra, answers = files(lambda name, epoch, one: shares[name, epoch])
    found = joined(spectra, answers)
    points = {row.key: (row.sharpness["lambda_max"].value, shares[row.key]) for row in found.rows}

    def rho(keys):
        return stats.spearmanr(*zip(*(points[key] for key in keys), strict=True)).statistic

    by_scope = {
        (one.scope, one.series): one for one in found.correlations if one.metric == "lambda_max"
    }
    each = {name: rho([(name, epoch) for epoch in EPOCHS]) for name in LABELS}
    assert by_scope[ALL, ""].value == pytest.approx(rho(list(points)), abs=1e-12)
    assert by_scope[WITHIN, ""].value == pytest.approx(np.mean(list(each.values())), abs=1e-12)
    for name, value in each.items():
        assert by_scope[ONE_SERIES, name].value == pytest.approx(value, abs=1e-12)
        assert np.isnan(by_scope[ONE_SERIES, name].p_value) and np.isnan(
            by_scope[ONE_SERIES, name].clusters.low
        )
    same = np.mean([rho([(name, epoch) for name in LABELS]) for epoch in EPOCHS])
    assert by_scope[SAME_EPOCH, ""].value == pytest.approx(same, abs=1e-12)
    assert by_scope[SAME_EPOCH, ""].smallest_p == pytest.approx(1 / 3) and np.isnan(
        by_scope[ALL, ""].p_value
    )
    for one in found.correlations:
        if np.isfinite(one.measured.low):
            assert -1 <= one.measured.low < one.measured.high <= 1


def test_noise_of_few_pictures_widens_the_interval_of_the_correlation(files):
    def width(num_pictures):
        sets = [make_set(num_pictures=num_pictures)]
        found = joined(*files(lambda name, epoch, one: 0.4 + 0.05 * epoch, sets), num_resamples=299)
        one = next(
            one for one in found.correlations if one.scope == ALL and one.metric == "lambda_max"
        )
        return one.measured.high - one.measured.low

    assert width(20) > 1.5 * width(2000)


def test_fewer_than_four_checkpoints_have_no_correlation_and_the_reason_is_said(files):
    def cut(store):
        kept = {
            key: one for key, one in store.checkpoints.items() if key[0] == "one" and key[1] < 3
        }
        return replace(store, checkpoints=kept)

    found = joined(*files(change=cut))
    assert len(found.rows) == 3
    for one in found.correlations:
        assert (
            np.isnan(one.value) and "3 checkpoints" in one.why_not and "fewer than 4" in one.why_not
        )
    assert "Without answers" in found.notes[0] and "two epoch 0" in found.notes[0]


def test_equal_accuracies_have_no_order(files):
    found = joined(*files(lambda *_: 0.5))
    assert all(np.isnan(one.value) and "the same" in one.why_not for one in found.correlations)


def test_one_checkpoint_of_each_of_four_series_has_an_exact_p_value(tmp_path):
    labels = {name: name for name in "abcd"}
    spectra = write_study(tmp_path / "spectra.h5", labels=labels, epochs=(0, 25), num_batches=8)
    one = make_set(num_pictures=100)
    store = answers_of(lambda name, epoch, _: 0.2 + 0.1 * "abcd".index(name), [one], labels=labels)
    for name in labels:
        digest = hashlib.sha256(f"{name} 25".encode()).hexdigest()
        store.checkpoints[name, 25] = replace(
            store.checkpoints[name, 1], epoch=25, checkpoint_sha256=digest
        )
        del store.checkpoints[name, 0]
    write_predictions(tmp_path / "answers.h5", store)
    found = joined(spectra, tmp_path / "answers.h5")
    (one,) = [one for one in found.correlations if one.metric == "lambda_max"]
    # The series of `study_stores` are the sharper at the end the later they come.
    assert (
        one.scope == ALL
        and one.value == pytest.approx(1)
        and one.p_value == one.smallest_p == pytest.approx(2 / 24)
    )
    assert "Without answers" in found.notes[0] and "without spectra" in found.notes[1]


def test_files_of_several_kinds_are_joined_and_contradictions_are_one_line(files, tmp_path):
    spectra, answers = files()
    more = tmp_path / "ood.h5"
    write_predictions(more, answers_of(lambda *_: 0.5, _distorted()))
    assert set(joined(spectra, answers, more).means) == {ZERO_SHOT, OOD, ROBUSTNESS}

    def refused(*paths):
        with pytest.raises(StoreError) as error:
            joined(spectra, *paths)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "named twice" in refused(answers, answers)
    assert "no such file" in refused(tmp_path / "none.h5")
    write_predictions(more, answers_of(rising, [make_set(num_pictures=100)]))
    assert "in a file before too" in refused(answers, more)
    write_predictions(
        more, answers_of(rising, [make_set(num_pictures=100, pictures_digest="q" * 64)])
    )
    assert "other pictures" in refused(answers, more)
    other = answers_of(rising, _distorted())
    other.checkpoints["two", 1] = replace(other.checkpoints["two", 1], checkpoint_sha256="e" * 64)
    write_predictions(more, other)
    assert "other weights" in refused(answers, more) and "eeeeeeeeeeee" in refused(answers, more)
    assert "'two' epoch 1" in refused(more) and "spectra.h5" in refused(more)
    write_predictions(more, answers_of(lambda *_: 0.5, _distorted(), labels={"vit": "ViT"}))
    assert "no checkpoint of it has answers" in refused(more) and "vit" in refused(more)


def test_batches_are_drawn_for_all_checkpoints_together(files):
    """A batch that makes all checkpoints sharper cannot change their order."""

    def common(fields):
        factor = np.exp(fields["batch"])
        values = fields["values"] / np.abs(fields["values"][0]) * (10 - fields["epoch"]) * factor
        return fields | {"values": values}

    spectra, answers = files(rising, change=lambda store: store, labels=LABELS)
    write_study(spectra, labels=LABELS, epochs=EPOCHS, num_batches=8, change=common)
    found = joined(spectra, answers, series=["one"])
    one = next(one for one in found.correlations if one.metric == "lambda_max")
    # Drawn for each by itself, an e-fold between batches would turn the order of 7 to 10.
    assert one.value == pytest.approx(-1) and (
        np.isnan(one.measured.low) or one.measured.high < -0.7
    )


def test_made_up_answers_are_as_uncertain_as_the_binomial_says():
    one = make_set(num_pictures=400)
    store = PredictionStore(sets={one.name: one})
    answers = make_answers(one, share_right=0.5, seed=0)
    store.checkpoints["a", 0] = CheckpointPredictions(
        series="a",
        label="a",
        model="m",
        epoch=0,
        checkpoint_sha256="0" * 64,
        sets={one.name: answers},
    )
    mean = accuracy_means(
        store.sets, list(store.checkpoints.values()), Bootstrap(num_resamples=2000)
    )[ZERO_SHOT]
    share = mean.values["a", 0].value
    assert mean.resamples["a", 0].std() == pytest.approx(
        np.sqrt(share * (1 - share) / 400), rel=0.06
    )
