"""Metrics of predictions against closed forms, SciPy and counting; the table in its four
formats.
"""

import csv
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from landscape.compare.accuracy import Scored, paired_tests, scores_of, winners
from landscape.compare.accuracy_tables import (
    COLUMNS,
    AccuracyTable,
    to_csv,
    to_json,
    to_latex,
    to_terminal,
    write_table,
)
from landscape.errors import StoreError
from landscape.statistics import Bootstrap
from landscape.store.predictions import CheckpointPredictions, PredictionStore, SetPredictions
from tests.store.test_predictions import make_answers, make_set, make_store

FEW = Bootstrap(num_resamples=400)


def store_of(one, **answers: SetPredictions) -> PredictionStore:
    checkpoints = {
        (series, 0): CheckpointPredictions(
            series=series,
            label=series,
            model="m",
            epoch=0,
            checkpoint_sha256="0" * 64,
            sets={one.name: found},
        )
        for series, found in answers.items()
    }
    return PredictionStore(sets={one.name: one}, checkpoints=checkpoints)


def test_top_1_has_wilsons_interval():
    one = make_set(num_pictures=200)
    (score,) = scores_of(store_of(one, vit=make_answers(one, share_right=0.7, seed=1)), FEW)
    right = round(score.value.value * 200)
    truth = stats.binomtest(right, 200).proportion_ci(method="wilson")
    assert (score.value.low, score.value.high) == pytest.approx((truth.low, truth.high), abs=1e-12)
    assert 100 < right < 170 and score.n == score.num_pictures == 200 and score.metric == "top1"


def test_mean_per_class_counts_each_class_that_occurs_the_same():
    one = make_set(
        num_pictures=21,
        metric="mean_per_class",
        labels=np.array([0] * 18 + [1] * 3, dtype=np.int32),
    )
    found = SetPredictions.empty(21, 5)
    # 9 of 18 and 3 of 3; five other classes do not occur.
    top = np.tile(np.arange(5, dtype=np.int32), (21, 1))
    top[9:18, 0], top[9:18, 4] = 4, 0
    top[18:, 0], top[18:, 1] = 1, 0
    found.put(0, top, np.zeros((21, 5), dtype=np.float32), {})
    (score,) = scores_of(store_of(one, vit=found), FEW)
    assert score.value.value == pytest.approx((0.5 + 1) / 2)
    assert score.value.low < 0.75 < score.value.high


def test_kinetics_metric_is_the_mean_of_top_1_and_top_5():
    one = make_set(num_classes=30, num_pictures=90, metric="top1_top5")
    answers = make_answers(one, share_right=0.5, seed=3)
    # Ten answers without the label at all.
    answers.top[:10] = (one.labels[:10, None] + np.arange(1, 6)) % 30
    (score,) = scores_of(store_of(one, vit=answers), FEW)
    top_1 = np.mean([row[0] == label for row, label in zip(answers.top, one.labels)])
    top_5 = np.mean([label in row for row, label in zip(answers.top, one.labels)])
    assert score.value.value == pytest.approx((top_1 + top_5) / 2) and top_1 < top_5 < 1


def test_the_area_under_the_curve_is_counted_over_pairs():
    one = make_set(num_classes=2, num_pictures=40, metric="roc_auc")
    generator = np.random.default_rng(0)
    scores = generator.random((40, 2)).round(1).astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable").astype(np.int32)
    found = SetPredictions.empty(40, 2)
    found.put(0, order, np.take_along_axis(scores, order, axis=1), {})
    (score,) = scores_of(store_of(one, vit=found), FEW)
    margin = scores[:, 1].astype(float) - scores[:, 0]
    pairs = [
        (a > b) + 0.5 * (a == b) for a in margin[one.labels == 1] for b in margin[one.labels == 0]
    ]
    assert score.value.value == pytest.approx(np.mean(pairs), abs=1e-12)


def test_a_picture_that_cannot_be_read_counts_as_wrong():
    one = make_set(num_classes=2, num_pictures=4, metric="roc_auc")
    perfect = np.array([[0, 1], [1, 0], [0, 1], [1, 0]], dtype=np.int32)
    found = SetPredictions.empty(4, 2)
    found.put(0, perfect, np.tile(np.array([[0.9, 0.1]], dtype=np.float32), (4, 1)), {})
    assert scores_of(store_of(one, vit=found), FEW)[0].value.value == 1
    found.top[1], found.scores[1], found.unread[1] = -1, np.nan, "cut"
    (score,) = scores_of(store_of(one, vit=found), FEW)
    # Of 2 x 2 pairs, the two with the unread positive are lost.
    assert score.value.value == 0.5 and score.num_unread == 1
    top_1 = scores_of(store_of(make_set(num_classes=2, num_pictures=4), vit=found), FEW)
    assert top_1[0].value.value == 0.75


def test_a_set_that_is_not_answered_whole_says_of_how_many_pictures():
    one = make_set(num_pictures=100)
    answers = make_answers(one, share_right=1.0, seed=0)
    answers.done[60:] = False
    (score,) = scores_of(store_of(one, vit=answers), FEW)
    assert (score.n, score.num_pictures, score.value.value) == (60, 100, 1.0)


def test_paired_tests_are_mcnemars_with_holm_over_the_sets():
    store = make_store(vit=0.9, simba=0.3)
    first, second = store.checkpoints.values()
    tests = paired_tests(store, first, second, FEW)
    raw = []
    for test in tests:
        name = test.dataset, test.condition
        hits = [Scored(store.sets[name], one.sets[name]).correct for one in (first, second)]
        b, c = int((hits[0] & ~hits[1]).sum()), int((hits[1] & ~hits[0]).sum())
        raw.append(stats.binomtest(b, b + c).pvalue)
        assert test.p_value == pytest.approx(raw[-1]) and test.difference.value == pytest.approx(
            (b - c) / test.n
        )
        assert (
            test.difference.low < test.difference.value < test.difference.high
            and 0 < test.detectable < 1
        )
    small, large = sorted(raw)
    assert sorted(test.p_holm for test in tests) == pytest.approx(
        [2 * small, max(large, 2 * small)]
    )


def test_the_interval_of_a_difference_is_that_of_resampled_pictures():
    one = make_set(num_pictures=400)
    answers = [
        make_answers(one, share_right=share, seed=seed) for share, seed in ((0.8, 1), (0.6, 2))
    ]
    store = store_of(one, a=answers[0], b=answers[1])
    (test,) = paired_tests(store, *store.checkpoints.values(), Bootstrap(num_resamples=20_000))
    hits = [Scored(one, found).correct.astype(float) for found in answers]
    truth = stats.bootstrap(
        (hits[0] - hits[1],), np.mean, n_resamples=20_000, method="percentile", rng=0
    ).confidence_interval
    # Ends move by 0.006 standard errors of 0.03 between two such bootstraps, and in steps of 1 /
    # 400.
    assert (test.difference.low, test.difference.high) == pytest.approx(tuple(truth), abs=0.004)


def test_only_a_series_that_beats_all_others_is_the_best():
    one = make_set(num_pictures=300)
    clear, equal = (
        make_answers(one, share_right=0.9, seed=0),
        make_answers(one, share_right=0.5, seed=1),
    )
    assert winners(store_of(one, a=clear, b=equal), FEW) == {("a", 0, "pets", "")}
    close = make_answers(one, share_right=0.9, seed=2)
    assert winners(store_of(one, a=clear, b=equal, c=close), FEW) == set()
    assert winners(store_of(one, a=clear), FEW) == set()


# --- the table ------------------------------------------------------------------------------------


def test_rows_are_the_same_in_csv_and_json():
    table = AccuracyTable.of(make_store(), bootstrap=FEW)
    rows = json.loads(to_json(table))["rows"]
    assert len(rows) == 4 and list(rows[0]) == COLUMNS
    assert rows[0]["chance"] is None and rows[1]["chance"] == 0.2
    read = list(csv.DictReader(io.StringIO(to_csv(table))))
    for row, text in zip(rows, read, strict=True):
        assert {key: "" if value is None else str(value) for key, value in row.items()} == text
    assert {row["dataset"] for row in rows} == {"pets", "mnist"} and rows[0]["low"] < rows[0][
        "value"
    ] < rows[0]["high"]


def test_texts_show_percent_with_half_the_interval():
    store = make_store(vit=1.0, simba=0.0)
    table = AccuracyTable.of(store, bootstrap=FEW)
    text = to_terminal(table)
    # 20 of 20: Wilson's interval reaches from 0.839 to 1.
    assert (
        "100.0 ± 8.1 *" in text
        and "0.0 ± 8.1" in text
        and "Mnist c10" in text
        and "pets and mnist c10: a note" in text
    )
    assert r"\textbf{100.0 $\pm$ 8.1}" in to_latex(table).replace("±", r"$\pm$")


def test_series_and_epochs_are_chosen_and_unknown_ones_refused(tmp_path):
    store = make_store()
    assert {
        score.series for score in AccuracyTable.of(store, series=["vit"], bootstrap=FEW).scores
    } == {"vit"}
    for options, reason in (
        ({"series": ["vitt"]}, "no series 'vitt'"),
        ({"epochs": [7]}, "has an epoch 7"),
    ):
        with pytest.raises(StoreError, match=reason):
            AccuracyTable.of(store, bootstrap=FEW, **options)
    with pytest.raises(StoreError, match="nothing is answered"):
        AccuracyTable.of(PredictionStore(), bootstrap=FEW)
    said = write_table(AccuracyTable.of(store, bootstrap=FEW), tmp_path / "table.csv", kind=None)
    assert said.endswith("table.csv: 4 rows.") and (tmp_path / "table.csv").read_text().startswith(
        "series,label"
    )
    with pytest.raises(StoreError, match="its name says csv"):
        write_table(AccuracyTable.of(store, bootstrap=FEW), tmp_path / "table.csv", kind="json")


def test_json_holds_no_nan():
    text = to_json(AccuracyTable.of(make_store(), bootstrap=FEW))
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_the_mean_is_over_sets_of_different_pictures_that_all_have_answered():
    one, other = (
        make_set("pets", num_pictures=100),
        make_set("mnist", num_classes=5, num_pictures=60),
    )
    third = make_set("food101", num_pictures=30)
    store = PredictionStore(sets={each.name: each for each in (one, other, third)})
    for number, series in enumerate(("a", "b")):
        checkpoint = CheckpointPredictions(
            series=series, label=series, model="m", epoch=0, checkpoint_sha256="0" * 64
        )
        for at, each in enumerate((one, other, third)):
            if series == "a" or each is not third:
                checkpoint.sets[each.name] = make_answers(
                    each, share_right=0.3 + 0.3 * number, seed=10 * at + number
                )
        store.checkpoints[checkpoint.key] = checkpoint
    mean = AccuracyTable.of(store, bootstrap=Bootstrap(num_resamples=4000)).mean
    first = mean.values["a", 0]
    assert mean.datasets == ("pets", "mnist") and list(mean.values) == [("a", 0), ("b", 0)]
    hits = [
        Scored(each, store.checkpoints["a", 0].sets[each.name]).correct for each in (one, other)
    ]
    assert first.value == pytest.approx(np.mean([hit.mean() for hit in hits]))
    # The standard error of the mean of two independent shares.
    error = math.sqrt(sum(hit.mean() * (1 - hit.mean()) / len(hit) for hit in hits)) / 2
    assert first.high - first.low == pytest.approx(2 * 1.96 * error, rel=0.08)
    text = to_terminal(AccuracyTable.of(store, bootstrap=FEW))
    assert "mean of 2 of 26 sets" in text and "food101, cifar10" in text
    assert "Left out of means, as not every checkpoint was shown all of it: food101." in text
    # Arrays are keyed by numbers, which several sets have; tasks of OpenMoji are of the same
    # pictures, drawn together.
    arrays = [make_set(name, num_pictures=100, keys=one.keys) for name in ("cifar10", "cifar100")]
    tasks = [
        make_set(name, num_pictures=100, keys=one.keys)
        for name in ("openmoji/group", "openmoji/name")
    ]
    for sets, error in ((arrays, math.sqrt(0.25 / 99 / 2)), (tasks, math.sqrt(0.25 / 99))):
        pair = PredictionStore(sets={each.name: each for each in sets})
        found = {each.name: make_answers(each, share_right=0.5, seed=1) for each in sets}
        pair.checkpoints["a", 0] = CheckpointPredictions(
            series="a", label="a", model="m", epoch=0, checkpoint_sha256="0" * 64, sets=found
        )
        interval = AccuracyTable.of(pair, bootstrap=Bootstrap(num_resamples=4000)).mean.values[
            "a", 0
        ]
        # The same answers are right in both: in the same pictures, the mean is as uncertain as one
        # of the two.
        assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.08)


def test_series_of_one_label_are_told_apart():
    store = make_store(vit=1.0, simba=0.0)
    for key, one in store.checkpoints.items():
        store.checkpoints[key] = replace(one, label="ViT")
    text = to_terminal(AccuracyTable.of(store, bootstrap=FEW))
    assert "ViT (vit) 5" in text and "ViT (simba) 5" in text and "100.0" in text


def test_an_area_without_one_of_the_classes_is_not_known():
    one = make_set(
        num_classes=2, num_pictures=6, metric="roc_auc", labels=np.zeros(6, dtype=np.int32)
    )
    answers = [make_answers(one, share_right=share, seed=0, width=2) for share in (1.0, 0.0)]
    store = store_of(one, a=answers[0], b=answers[1])
    assert all(math.isnan(score.value.value) for score in scores_of(store, FEW))
    assert winners(store, FEW) == set()
