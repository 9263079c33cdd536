"""`landscape compare` on predictions: numbers against SciPy and closed forms, sentences, refusals,
and every format.
"""

import csv
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from landscape.answers import Answers, compare_models, read_answers, resample
from landscape.cli import main
from landscape.compare.accuracy import paired_tests
from landscape.compare.accuracy_comparison import compare_predictions
from landscape.compare.accuracy_comparison_texts import (
    CSV_COLUMNS,
    grids,
    to_csv,
    to_json,
    to_latex,
    to_terminal,
)
from landscape.errors import StoreError
from landscape.pipeline import compare
from landscape.pipeline.comparison import _answers_at
from landscape.statistics import Bootstrap
from landscape.store.predictions import SetPredictions, write_predictions
from tests.helpers.accuracy_stores import (
    benchmark_store,
    checkpoint_of,
    exact_answers,
    small_benchmark,
    store_of,
    two_series,
)
from tests.helpers.folders import SHARED
from tests.helpers.random_answers import made_up
from tests.store.test_predictions import make_answers, make_set

MANY = Bootstrap(num_resamples=9999)
HUMAN = SHARED / "human"
FEW = Bootstrap(num_resamples=999)


def compared(tmp_path, *stores, bootstrap=FEW, **options):
    paths = []
    for number, store in enumerate(stores):
        paths.append(tmp_path / f"{'abc'[number]}.h5")
        write_predictions(paths[-1], store)
    return compare_predictions(paths, bootstrap=bootstrap, answers_at=_answers_at, **options)


def rights(one, answers: SetPredictions):
    return np.asarray(answers.top[:, 0] == one.labels)


# --- numbers --------------------------------------------------------------------------------------


def test_each_set_has_mcnemars_exact_test_and_holms_correction(tmp_path):
    sets = [
        make_set(name, num_pictures=n) for name, n in (("food101", 150), ("dtd", 60), ("mine", 90))
    ]
    store = two_series(sets, 0.8, 0.6)
    found = compared(tmp_path, store)
    p_values = []
    for row, one in zip(found.sets, sets, strict=True):
        first, second = (
            rights(one, store.checkpoints[name, 25].sets[one.name]) for name in ("vit", "simba")
        )
        b, c = int((first & ~second).sum()), int((~first & second).sum())
        assert row.p_value == pytest.approx(stats.binomtest(b, b + c).pvalue, rel=1e-9)
        assert (row.n, row.difference) == (len(one), pytest.approx((b - c) / len(one), abs=1e-12))
        assert row.discordant_share == pytest.approx((b + c) / len(one))
        p_values.append(row.p_value)
    # Holm by hand: the smallest times 3, the next times 2, the last as it is, never falling.
    order, step, expected = np.argsort(p_values), 0.0, {}
    for at, index in enumerate(order):
        step = max(step, min(1.0, p_values[index] * (3 - at)))
        expected[index] = step
    assert [row.p_holm for row in found.sets] == pytest.approx([expected[at] for at in range(3)])
    tests = paired_tests(store, store.checkpoints["vit", 25], store.checkpoints["simba", 25])
    assert [row.p_holm for row in found.sets] == pytest.approx([test.p_holm for test in tests])


def test_the_detectable_difference_has_the_power_it_claims_after_correction(tmp_path):
    sets = [make_set(name, num_pictures=400) for name in ("food101", "dtd", "mine")]
    row = compared(tmp_path, two_series(sets, 0.7, 0.6)).sets[0]
    # The exact test at level 0.05 / 3, of samples with this difference and this share of discordant
    # pictures.
    generator = np.random.default_rng(0)
    first = (row.discordant_share + row.detectable) / 2
    draws = generator.multinomial(
        row.n, [first, row.discordant_share - first, 1 - row.discordant_share], size=10000
    )
    b, c = draws[:, 0], draws[:, 1]
    power = np.mean(2 * stats.binom.cdf(np.minimum(b, c), b + c, 0.5) <= 0.05 / 3)
    # The formula is a normal approximation, and the exact test is a little weaker; 10,000 draws
    # have a standard error of 0.004.
    assert 0.74 < power < 0.83


def test_intervals_are_those_of_scipys_paired_bootstrap(tmp_path):
    sets = [
        make_set("food101", num_pictures=200),
        make_set("mine", num_pictures=120, metric="mean_per_class"),
    ]
    store = two_series(sets, 0.8, 0.6)
    found = compared(tmp_path, store, bootstrap=MANY)
    one = sets[0]
    first, second = (
        rights(one, store.checkpoints[name, 25].sets[one.name]) * 1.0 for name in ("vit", "simba")
    )
    truth = stats.bootstrap(
        (first - second,), np.mean, n_resamples=9999, method="percentile", rng=1
    ).confidence_interval
    row = found.sets[0]
    # Each end varies by about 3 % of a standard error of 0.03, and moves in steps of 1 / 200.
    assert (row.low, row.high) == pytest.approx((truth.low, truth.high), abs=0.0075)


def test_a_mean_has_the_interval_of_independent_sets(tmp_path):
    sets = [
        make_set(name, num_pictures=n)
        for name, n in (("food101", 400), ("dtd", 100), ("eurosat", 200))
    ]
    store = two_series(sets, 0.8, 0.6)
    found = compared(tmp_path, store, bootstrap=MANY)
    (mean,) = found.means
    assert mean.name == "mean_table1" and mean.difference == pytest.approx(
        np.mean([row.difference for row in found.sets])
    )
    # Closed form: of independent sets the variance of the mean is the sum of theirs over 9.
    variance = sum((row.discordant_share - row.difference**2) / row.n for row in found.sets) / 9
    half = stats.norm.ppf(0.975) * math.sqrt(variance)
    assert (mean.low, mean.high) == pytest.approx(
        (mean.difference - half, mean.difference + half), abs=0.1 * half
    )


def test_sets_of_the_same_pictures_are_resampled_together(tmp_path):
    # Both sets ask the same of the same pictures, so their mean is as uncertain as one of them.
    one = make_set("mine/group", num_pictures=300)
    other = replace(one, dataset="mine/name", title="Name", pictures_digest="q" * 64)
    store = two_series([one], 0.8, 0.6)
    for checkpoint in store.checkpoints.values():
        checkpoint.sets[other.name] = checkpoint.sets[one.name]
    found = compared(
        tmp_path, replace(store, sets={one.name: one, other.name: other}), bootstrap=MANY
    )
    (mean,) = found.means
    row = found.sets[0]
    half = stats.norm.ppf(0.975) * math.sqrt((row.discordant_share - row.difference**2) / row.n)
    assert mean.high - mean.low == pytest.approx(2 * half, rel=0.1) and found.sets[1].low == row.low


def test_a_part_of_the_pictures_is_resampled_with_the_whole(tmp_path):
    whole = make_set("mine/all", num_pictures=200)
    part = replace(whole, dataset="mine/part", keys=whole.keys[50:150], labels=whole.labels[50:150])
    store = two_series([whole], 0.8, 0.6)
    for checkpoint in store.checkpoints.values():
        answers = checkpoint.sets[whole.name]
        cut = SetPredictions(
            top=answers.top[50:150], scores=answers.scores[50:150], done=answers.done[50:150]
        )
        checkpoint.sets[part.name] = cut
    found = compared(
        tmp_path, replace(store, sets={part.name: part, whole.name: whole}), bootstrap=MANY
    )
    by = [
        rights(whole, store.checkpoints[name, 25].sets[whole.name]) * 1.0
        for name in ("vit", "simba")
    ]
    d = by[0] - by[1]
    # The mean of both means is a weighted mean of pictures: 1/400, and for those in the part 1/200
    # more.
    weights = np.where((np.arange(200) >= 50) & (np.arange(200) < 150), 1 / 400 + 1 / 200, 1 / 400)
    centred = np.where(
        weights > 1 / 400, (d - d.mean()) / 400 + (d - d[50:150].mean()) / 200, (d - d.mean()) / 400
    )
    half = stats.norm.ppf(0.975) * math.sqrt((centred**2).sum())
    (mean,) = found.means
    assert mean.difference == pytest.approx(
        (weights * d).sum()
    ) and mean.high - mean.low == pytest.approx(2 * half, rel=0.1)


def test_conditions_of_a_data_set_count_once_in_the_mean(tmp_path):
    sets = [make_set("own/contrast", condition=name, num_pictures=20) for name in ("c10", "c05")]
    sets.append(make_set("own/sketch", condition="0", num_pictures=20))
    right = {"c10": 20, "c05": 10, "0": 4}
    answers = [{one.name: exact_answers(one, np.arange(20) < right[one.condition]) for one in sets}]
    answers.append({one.name: exact_answers(one, np.arange(20) < 0) for one in sets})
    store = store_of(
        checkpoint_of("vit", sets=answers[0]), checkpoint_of("simba", sets=answers[1]), sets=sets
    )
    (mean,) = compared(tmp_path, store).means
    assert (
        mean.name == "mean_distorted"
        and mean.difference == pytest.approx(((1 + 0.5) / 2 + 0.2) / 2)
        and mean.num_sets == 3
    )


def test_other_metrics_have_a_bootstrap_test_and_no_power(tmp_path):
    one = make_set("pets", num_pictures=140, metric="mean_per_class")
    store = two_series([one], 0.9, 0.5)
    (row,) = compared(tmp_path, store).sets
    recalls = []
    for name in ("vit", "simba"):
        right = rights(one, store.checkpoints[name, 25].sets[one.name])
        recalls.append(np.mean([right[one.labels == label].mean() for label in range(7)]))
    assert (row.first_value, row.second_value) == pytest.approx(
        tuple(recalls)
    ) and row.p_value == 0.002
    assert math.isnan(row.detectable) and 0 < row.low < row.difference < row.high


def test_pictures_of_each_class_are_resampled_by_themselves(tmp_path):
    # The first has all of class 0 right, the second all of class 1, of which there is one picture:
    # no resample differs.
    labels = np.array([0] * 50 + [1], dtype=np.int32)
    one = make_set("mine", num_pictures=51, metric="mean_per_class", labels=labels)
    answers = [{one.name: exact_answers(one, labels == label)} for label in (0, 1)]
    store = store_of(
        checkpoint_of("vit", sets=answers[0]), checkpoint_of("simba", sets=answers[1]), sets=[one]
    )
    (row,) = compared(tmp_path, store).sets
    assert (row.first_value, row.second_value, row.p_value) == (0.5, 0.5, 1) and math.isnan(row.low)


def test_sets_that_one_lacks_are_named(tmp_path):
    store = small_benchmark(datasets=("edge",))
    sets = [make_set("mine", num_pictures=20), make_set("yours", num_pictures=20)]
    sets += [
        make_set("own/contrast", title="Contrast", condition=name, num_pictures=20)
        for name in ("c10", "c05")
    ]
    for name in ("net", "other"):
        store.checkpoints[name, 25].sets.update(
            {one.name: make_answers(one, share_right=0.5, seed=1) for one in sets}
        )
    for gone in (("yours", ""), ("own/contrast", "c05")):
        del store.checkpoints["other", 25].sets[gone]
    store.sets.update({one.name: one for one in sets})
    rows = {row.name: row for row in compared(tmp_path, store).means}
    assert rows["mean_sets"].missing == ("yours",) and rows["mean_sets"].num_planned == 2
    assert (
        rows["mean_distorted"].missing == ("own/contrast c05",)
        and rows["mean_distorted"].num_sets == 1
    )


def test_series_are_compared_on_the_pictures_that_both_were_shown(tmp_path):
    one = make_set("mine", num_pictures=100)
    store = two_series([one], 0.8, 0.6)
    store.checkpoints["vit", 25].sets[one.name].done[60:] = False
    found = compared(tmp_path, store)
    first, second = (
        rights(one, store.checkpoints[name, 25].sets[one.name])[:60] for name in ("vit", "simba")
    )
    assert found.sets[0].n == 60 and found.sets[0].first_value == pytest.approx(first.mean())
    assert found.sets[0].second_value == pytest.approx(second.mean()) == found.means[0].second_value
    assert any("Mine 60 of 100" in note for note in found.notes)


# --- the benchmark --------------------------------------------------------------------------------


def test_the_benchmarks_numbers_are_those_of_its_answers(tmp_path):
    answers = made_up()
    found = compared(tmp_path, benchmark_store(answers))
    truth = compare_models(answers, "net", "other", resamples=resample(answers, FEW))
    rows = {row.name: row for row in found.means}
    assert set(rows) == set(truth.differences)
    for name, expected in truth.differences.items():
        row = rows[name]
        assert (row.first_value, row.second_value) == pytest.approx(
            (expected.first, expected.second), rel=1e-12
        )
        assert (row.low, row.high, row.p_value) == (expected.low, expected.high, expected.p_value)
        assert row.missing == expected.missing and row.num_sets == expected.num_datasets
    assert (
        [row.dataset for row in found.sets]
        == [test.dataset for test in truth.tests]
        == ["contrast", "edge", "cue-conflict"]
    )
    for row, test in zip(found.sets, truth.tests, strict=True):
        assert (row.p_value, row.p_holm, row.n) == (
            test.p_value,
            pytest.approx(test.p_holm),
            test.num_pictures,
        )
        assert row.difference == pytest.approx(test.difference) and row.num_pictures == row.n
    # The sets of the benchmark are in no other mean.
    assert not {"mean_sets", "mean_distorted", "mean_table1"} & set(rows)


def test_stimuli_that_one_could_not_read_are_wrong_and_counted(tmp_path):
    store = small_benchmark(datasets=("edge",))
    answers = store.checkpoints["net", 25].sets["edge", "0"]
    for place in range(3):
        answers.put(place, np.array([[-1]]), np.array([[np.nan]]), {0: "truncated"})
    found = compared(tmp_path, store)
    (row,) = found.sets
    assert (row.n, row.num_pictures, row.num_unread) == (32, 32, 3)
    assert row.difference == pytest.approx(
        next(mean.difference for mean in found.means if mean.name == "ood_accuracy_17")
    )
    assert any("count as wrong: Edge 3" in note for note in found.notes)


def test_people_of_two_files_count_once(tmp_path):
    answers = made_up()
    whole = benchmark_store(answers)
    halves = [benchmark_store(answers.only(models=(name,))) for name in ("net", "other")]
    together, apart = compared(tmp_path, whole), compared(tmp_path, *halves)
    assert [row.difference for row in apart.means] == [row.difference for row in together.means]
    assert [row.name for row in apart.means].count("error_consistency") == 1
    # People may also stand in a file of their own.
    alone = compared(tmp_path, replace(whole, answers=b""), replace(whole, sets={}, checkpoints={}))
    assert alone.means == together.means
    without = compared(tmp_path, replace(whole, answers=b""))
    assert {row.name for row in without.means} == {
        "ood_accuracy_17",
        "ood_accuracy_16",
        "shape_bias",
    }


@pytest.mark.skipif(not HUMAN.is_dir(), reason="the published answers are not here")
def test_two_published_models_have_their_published_numbers(tmp_path):
    answers = read_answers([HUMAN / "human.csv.gz", HUMAN / "models.csv.gz"]).only(
        models=("resnet50", "bagnet33")
    )
    found = compared(tmp_path, benchmark_store(answers), bootstrap=Bootstrap(num_resamples=99))
    rows = {
        row.name: (round(row.first_value, 3), round(row.second_value, 3)) for row in found.means
    }
    assert rows["ood_accuracy_17"] == (0.559, 0.398) and rows["accuracy_difference"] == (
        0.087,
        0.156,
    )
    assert rows["observed_consistency"] == (0.665, 0.567) and rows["error_consistency"] == (
        0.208,
        0.137,
    )
    assert (
        "bagnet33 on 16 of 17 out-of-distribution sets" in found.sentences[0]
        and not found.means[0].missing
    )


# --- words ----------------------------------------------------------------------------------------


def certain(sets, *, first: int, second: int, both: int = 0):
    """On each set, so many pictures that the first, the second or both alone have right."""
    answers = []
    for start, stop in ((0, first), (first, first + second)):
        shown = [(start <= np.arange(len(one))) & (np.arange(len(one)) < stop) for one in sets]
        agreed = [np.arange(len(one)) >= len(one) - both for one in sets]
        answers.append(
            {
                one.name: exact_answers(one, a | b)
                for one, a, b in zip(sets, shown, agreed, strict=True)
            }
        )
    return answers


def test_a_sentence_counts_the_sets_and_names_the_mean(tmp_path):
    sets = [make_set(name, num_pictures=100) for name in ("food101", "dtd", "eurosat")]
    vit, simba = certain(sets, first=40, second=20, both=10)
    # On one of three the two differ demonstrably.
    vit[sets[0].name], simba[sets[0].name] = (
        answers[sets[0].name] for answers in certain(sets, first=60, second=0)
    )
    store = store_of(
        checkpoint_of("vit", label="ViT", sets=vit),
        checkpoint_of("simba", label="Simba", sets=simba),
        sets=sets,
    )
    found = compared(tmp_path, store)
    (mean,) = found.means
    # (60 + 20 + 20) / 3 points; Holm: p of 40 against 20 is 0.0135, which is 0.027 after
    # correction.
    assert (
        stats.binomtest(20, 60).pvalue * 2 == pytest.approx(found.sets[1].p_holm)
        and found.sets[1].p_holm < 0.05
    )
    (said,) = found.sentences
    assert said == (
        "At epoch 25 ViT is more accurate than Simba on 3 of 3 sets of Table 1 (McNemar, Holm over "
        "3 sets, p < 0.05), less on none; mean difference over 3 of 26 sets 33.3 points "
        f"[{100 * mean.low:.1f}, {100 * mean.high:.1f}], p = 0.002."
    )
    # The other way round the same is said.
    turned = replace(store, checkpoints=dict(reversed(store.checkpoints.items())))
    again = compared(tmp_path, turned)
    assert again.means[0].difference == pytest.approx(-mean.difference)
    assert again.sentences[0].startswith(
        "At epoch 25 ViT is more accurate than Simba on 3 of 3 sets of Table 1 (McNemar"
    )
    assert "mean difference over 3 of 26 sets 33.3 points" in again.sentences[0]


def test_equal_series_are_not_said_to_differ(tmp_path):
    sets = [make_set(name, num_pictures=50) for name in ("mine", "yours")]
    vit, simba = certain(sets, first=10, second=10)
    found = compared(
        tmp_path,
        store_of(
            checkpoint_of("vit", 0, sets=vit), checkpoint_of("simba", 0, sets=simba), sets=sets
        ),
    )
    (said,) = found.sentences
    assert said.startswith(
        "At initialisation vit and simba do not differ demonstrably on any of 2 sets (McNemar, "
        "Holm over 2"
    )
    assert "mean difference 0.0 points [-" in said
    power = 100 * found.sets[0].detectable
    assert any(
        f"one of less than {power:.1f} points would be missed on every set" in line
        for line in found.caveats
    )


def test_a_single_set_is_named(tmp_path):
    one = make_set("mine", num_pictures=100)
    (said,) = compared(tmp_path, two_series([one], 0.95, 0.3)).sentences
    assert said.startswith(
        "At epoch 25 ViT is more accurate than Simba on Mine (McNemar, Holm over 1 set, p < 0.05); "
        "difference"
    )


def test_likeness_to_people_has_sentences_of_its_own(tmp_path):
    rows = made_up().table.astype(str)
    # Of two pictures a category, "net" names the shape of one and the texture of the other, "other"
    # both textures.
    cue = (rows.dataset == "cue-conflict") & (rows.kind == "model")
    shape = cue & (rows.observer == "net") & rows.image.str.contains("^[a-z]+0-")
    rows.loc[cue, "response"] = rows.image[cue].str.extract("-([a-z]+)1")[0]
    rows.loc[shape, "response"] = rows.category[shape]
    store = benchmark_store(Answers.of_rows(rows))
    found = compared(tmp_path, store)
    ood, kappa, bias = found.sentences
    assert "of 3 out-of-distribution sets" in ood and "mean difference over 3 of 17 sets" in ood
    assert "error consistency over 3 of 17 sets" in kappa and "paired difference" in kappa
    (row,) = (row for row in found.means if row.name == "shape_bias")
    assert (row.first_value, row.second_value, row.p_value) == (0.5, 0, 0.002)
    expected = (
        "net decides more by shape than other: shape bias 0.500 vs 0, paired difference 0.500 ["
    )
    assert bias.startswith(f"At epoch 25 {expected}") and bias.endswith(", p = 0.002.")
    # The series with the larger number stands first, in whatever order they are.
    turned = compared(
        tmp_path, replace(store, checkpoints=dict(reversed(store.checkpoints.items())))
    )
    assert turned.means[-1].difference == -0.5 and f"At epoch 25 {expected}" in turned.sentences[-1]
    assert (
        "do not differ demonstrably"
        in compared(tmp_path, benchmark_store(made_up(seed=1))).sentences[1]
    )


def test_the_caveats_say_what_the_numbers_do_not_show(tmp_path):
    note = "The prompts are clip-benchmark's, not the paper's prompts."
    sets = [
        make_set("food101", num_pictures=600, chance=1 / 7),
        make_set("dtd", num_pictures=24, chance=1 / 7, notes=(note,)),
        make_set("eurosat", num_pictures=200, chance=1 / 7),
    ]
    store = two_series(sets, 0.8, 0.6)
    for number, name in enumerate(("vit", "simba")):
        store.checkpoints[name, 25].sets[sets[2].name] = make_answers(
            sets[2], share_right=1 / 7, seed=50 + number
        )
    unread = store.checkpoints["vit", 25].sets[sets[0].name]
    unread.top[3], unread.scores[3], unread.unread[3] = -1, np.nan, "truncated"
    found = compared(tmp_path, store)
    caveats = "\n".join(found.caveats)
    assert "one training run: intervals and tests are over pictures, not over trainings" in caveats
    assert "both within chance at epoch 25 on Eurosat:" in caveats
    size = 100 * found.sets[0].difference
    assert (
        f"as large as elsewhere ({size:.1f} points) would be missed on Dtd by more than one test "
        "in five" in caveats
    )
    assert "Prompts are not the paper's for dtd:" in caveats
    assert "Pictures that could not be read count as wrong: Food101 1." in found.notes
    assert any("3 of 26 sets in mean, Table 1. Missing: CIFAR-10," in note for note in found.notes)
    assert not any(
        "within chance" in line for line in compared(tmp_path, two_series(sets[:1])).caveats
    )


def test_resamples_too_few_for_the_correction_are_said(tmp_path):
    sets = [
        make_set("pets", num_pictures=140, metric="mean_per_class"),
        make_set("dtd", num_pictures=40),
    ]
    sets.append(make_set("mine", num_pictures=40))
    store = two_series(sets, 0.9, 0.3)
    same = store.checkpoints["vit", 25].sets
    store.checkpoints["simba", 25].sets.update({one.name: same[one.name] for one in sets[1:]})
    # No resample of 99 contradicts: p = 0.02, and three times that is more than 0.05.
    found = compared(tmp_path, store, bootstrap=Bootstrap(num_resamples=99))
    assert found.sets[0].p_value == 0.02 and found.sets[0].p_holm == pytest.approx(0.06)
    assert any(
        "Too few resamples" in line and "on Pets; raise --resamples" in line
        for line in found.caveats
    )
    assert not any("Too few resamples" in line for line in compared(tmp_path, store).caveats)
    # A mean of one metric is called no mixture, whatever other means are of.
    assert any("different metrics" in line for line in found.caveats)
    apart = replace(store, sets={one.name: one for one in (sets[0], sets[2])})
    for checkpoint in apart.checkpoints.values():
        del checkpoint.sets["dtd", ""]
    assert not any("different metrics" in line for line in compared(tmp_path, apart).caveats)


def test_the_same_weights_are_called_so(tmp_path):
    store = two_series([make_set("mine", num_pictures=30)])
    same = {key: replace(one, checkpoint_sha256="a" * 64) for key, one in store.checkpoints.items()}
    notes = compared(tmp_path, replace(store, checkpoints=same)).notes
    assert any("are the same file of weights at epoch 25" in note for note in notes)


# --- which are compared ---------------------------------------------------------------------------


def test_pairs_are_compared_at_their_last_common_epoch_unless_others_are_named(tmp_path):
    one = make_set("mine", num_pictures=30)
    store = two_series([one], epochs=(1, 5, 25))
    del store.checkpoints["simba", 25]
    store.checkpoints["third", 1] = checkpoint_of(
        "third", 1, sets={one.name: make_answers(one, share_right=0.5, seed=9)}
    )
    found = compared(tmp_path, store)
    assert found.pairs == (("vit", "simba", 5), ("vit", "third", 1), ("simba", "third", 1))
    found = compared(tmp_path, store, epochs=(5,))
    assert (
        found.pairs == (("vit", "simba", 5),)
        and "ViT and third: not both have epoch 5." in found.notes
    )
    assert compared(tmp_path, store, series=("vit", "third")).pairs == (("vit", "third", 1),)
    with pytest.raises(
        StoreError, match="no two series have an epoch of 7 in common.*vit 1, 5, 25; simba 1, 5"
    ):
        compared(tmp_path, store, epochs=(7,))
    with pytest.raises(StoreError, match="'vit' is the only series"):
        compared(tmp_path, store, series=("vit",))
    with pytest.raises(
        StoreError,
        match="no series 'none' has answered anything; expected one of vit, simba, third",
    ):
        compared(tmp_path, store, series=("none",))


def test_series_of_two_files_are_joined_by_their_sets(tmp_path):
    one = make_set("mine", num_pictures=40)
    both = two_series([one])
    first, second = (
        replace(both, checkpoints={key: both.checkpoints[key]}) for key in both.checkpoints
    )
    renamed = replace(second.checkpoints["simba", 25], series="vit", label="ViT")
    found = compared(tmp_path, first, replace(second, checkpoints={renamed.key: renamed}))
    assert [info.name for info in found.series] == ["a:vit", "b:vit"]
    assert [info.label for info in found.series] == ["ViT (a:vit)", "ViT (b:vit)"]
    assert found.sets[0].p_value == compared(tmp_path, both).sets[0].p_value


@pytest.mark.parametrize(
    "changed, reason",
    [
        ({"classes_digest": "e" * 64}, "its classes or prompts are others"),
        ({"pictures_digest": "e" * 64}, "its pictures or labels are others"),
        ({"labels": np.zeros(40, dtype=np.int32)}, "its pictures or labels are others"),
        ({"keys": tuple(f"other/{i}" for i in range(40))}, "its pictures or labels are others"),
        ({"metric": "mean_per_class"}, "its metric is another"),
    ],
)
def test_sets_that_differ_between_files_are_refused_by_name(tmp_path, changed, reason):
    one = make_set("mine", num_pictures=40)
    with pytest.raises(
        StoreError, match=f"b.h5: mine: {reason} than in .*a.h5.*Evaluate both on the same data"
    ) as error:
        compared(tmp_path, two_series([one]), two_series([replace(one, **changed)]))
    assert "\n" not in str(error.value)


def run(*arguments):
    return CliRunner().invoke(main, ["compare", *map(str, arguments), "--resamples", "99"])


@pytest.mark.parametrize(
    "option", [("--metric", "lambda_max"), ("--keep-unconverged",), ("--unpaired",)]
)
def test_options_of_spectra_are_refused(tmp_path, option):
    write_predictions(tmp_path / "a.h5", two_series([make_set("mine", num_pictures=30)]))
    result = run(tmp_path / "a.h5", *option)
    assert (
        result.exit_code == 2
        and f"{option[0]} is of spectra" in result.stderr
        and result.stderr.count("\n") == 1
    )


def test_stores_of_two_kinds_are_refused(tmp_path):
    import h5py

    write_predictions(tmp_path / "a.h5", two_series([make_set("mine", num_pictures=30)]))
    with h5py.File(tmp_path / "spectra.h5", "w") as file:
        file.attrs["kind"] = "spectra"
    for order in (("a.h5", "spectra.h5"), ("spectra.h5", "a.h5")):
        result = run(*(tmp_path / name for name in order))
        assert result.exit_code == 2 and "spectra.h5: holds no predictions, but" in result.stderr
        assert result.stderr.count("\n") == 1
    for others, reason in (
        (("a.h5", "none.h5"), "none.h5: there is no such file"),
        (("a.h5", "a.h5"), "named twice"),
    ):
        result = run(*(tmp_path / name for name in others))
        assert result.exit_code == 2 and reason in result.stderr and result.stderr.count("\n") == 1


def test_a_file_without_two_series_on_one_set_is_refused(tmp_path):
    sets = [make_set(name, num_pictures=20) for name in ("mine", "yours")]
    apart = [{one.name: make_answers(one, share_right=0.5, seed=1)} for one in sets]
    store = store_of(
        checkpoint_of("vit", sets=apart[0]), checkpoint_of("simba", sets=apart[1]), sets=sets
    )
    with pytest.raises(StoreError, match="no two series were shown the same picture"):
        compared(tmp_path, store)
    with pytest.raises(StoreError, match="no series has answered a picture"):
        compared(tmp_path, small_benchmark(models=()))


# --- texts ----------------------------------------------------------------------------------------


@pytest.fixture
def both_kinds(tmp_path):
    """Sets of Table 1, others, and the benchmark's, in one file."""
    store = small_benchmark()
    for name, share in (("net", 0.8), ("other", 0.5)):
        for one in (
            make_set("food101", num_pictures=60),
            make_set("pets", num_pictures=70, metric="mean_per_class"),
        ):
            store.sets[one.name] = one
            store.checkpoints[name, 25].sets[one.name] = make_answers(
                one, share_right=share, seed=len(name)
            )
    return compared(tmp_path, store)


def test_json_holds_every_row(both_kinds):
    content = json.loads(to_json(both_kinds))
    assert content["kind"] == "accuracy" and content["sentences"] == list(both_kinds.sentences)
    for name in ("sets", "means"):
        rows = getattr(both_kinds, name)
        assert len(content[name]) == len(rows)
        for read, row in zip(content[name], rows, strict=True):
            for key, value in vars(row).items():
                value = list(value) if isinstance(value, tuple) else value
                assert read[key] == value or (read[key] is None and math.isnan(value)), key


def test_csv_holds_every_number(both_kinds):
    read = list(csv.DictReader(io.StringIO(to_csv(both_kinds))))
    assert tuple(read[0]) == tuple(CSV_COLUMNS)
    assert [row["kind"] for row in read] == ["set"] * len(both_kinds.sets) + ["mean"] * len(
        both_kinds.means
    )
    for line, row in zip(read, (*both_kinds.sets, *both_kinds.means), strict=True):
        assert line["name"] == (row.dataset if line["kind"] == "set" else row.name)
        for key in ("difference", "low", "high", "first_value", "p_value"):
            assert float(line[key] or "nan") == pytest.approx(
                getattr(row, key), nan_ok=True, rel=1e-15
            )
    assert read[1]["detectable"] == "" and read[-1]["p_holm"] == ""


def test_latex_has_every_cell_and_its_sentences_as_comments(both_kinds):
    text = to_latex(both_kinds)
    assert (
        text.count(r"\begin{table}") == 2
        and text.count(r"\toprule") == text.count(r"\bottomrule") == 2
    )
    body = [line for line in text.splitlines() if not line.startswith("%")]
    for grid in grids(both_kinds):
        for cells in grid.rows:
            assert (
                sum(
                    line.count(" & ") == len(cells) - 1 and cells[1].replace("%", r"\%") in line
                    for line in body
                )
                >= 1
            )
    for said in (*both_kinds.sentences, *both_kinds.caveats):
        assert any(line.startswith("%") and said in line for line in text.splitlines())
    assert "%" not in "".join(line.replace(r"\%", "") for line in body)


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_shows_whole_numbers_within_its_width(both_kinds, width):
    text = to_terminal(both_kinds, width=width)
    assert max(map(len, text.splitlines())) <= width and "\N{NO-BREAK SPACE}" not in text
    for row in both_kinds.sets:
        assert f"{100 * row.first_value:.1f} vs {100 * row.second_value:.1f}" in text
    assert (
        "To quote:" in text
        and "What these numbers do not show:" in text
        and "continued" not in text
    )


@pytest.mark.parametrize("suffix", ["txt", "csv", "json", "tex"])
def test_a_comparison_is_written_whole(tmp_path, suffix):
    write_predictions(tmp_path / "a.h5", two_series([make_set("mine", num_pictures=30)]))
    output = tmp_path / f"out.{suffix}"
    result = run(tmp_path / "a.h5", "-o", output)
    assert result.exit_code == 0 and result.output == f"{output}: 2 series, epochs 25.\n"
    kind = {"txt": "table", "tex": "latex"}.get(suffix, suffix)
    assert (
        output.read_text().rstrip()
        == compare([tmp_path / "a.h5"], kind=kind, num_resamples=99).rstrip()
    )
    assert (
        run(
            tmp_path / "a.h5", "-o", output, "--format", "json" if suffix != "json" else "csv"
        ).exit_code
        == 2
    )


def test_the_same_seed_gives_the_same_numbers(tmp_path):
    store = two_series(
        [
            make_set("mine", num_pictures=30),
            make_set("pets", num_pictures=35, metric="mean_per_class"),
        ]
    )
    first, second, third = (
        compared(tmp_path, store, bootstrap=Bootstrap(num_resamples=199, seed=seed)).means
        for seed in (0, 0, 1)
    )
    assert first == second and first != third
