"""The chapter of the page on accuracy beside sharpness: what it adds, what its charts and tables
hold, and wrong files.

Truth: the rows of `sharpness_and_accuracy` (tested by itself), SciPy, plotly's own schema, and
Chromium.
"""

import re
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from landscape.cli import main
from landscape.compare.accuracy import scores_of
from landscape.compare.correlation import COVERS
from landscape.compare.correlation_sentences import TRAINING, signed
from landscape.pipeline import write_report
from landscape.report import render
from landscape.report.from_store import read_study
from landscape.store.predictions import read_predictions, write_predictions
from tests.compare.test_sharpness_accuracy import EPOCHS, LABELS, answers_of, rising
from tests.helpers.browser import chromium
from tests.helpers.spectra_study import make_study
from tests.helpers.study_stores import write_study
from tests.pipeline.test_evaluation import make_pictures
from tests.report.test_report import NASTY, complaints, data_of, open_page, unpacked, words_of
from tests.store.test_predictions import make_set

CHARTS = ("accuracy-epochs", "accuracy-zero_shot", "accuracy-ood", "accuracy-robustness")


def all_sets():
    facts = {"num_pictures": 100, "chance": 0.1}
    levels = [make_set("own/contrast", condition=c, **facts) for c in ("c100", "c50", "c05")]
    return [make_set("pets", **facts), make_set("mnist", **facts), *levels]


def by_level(name, epoch, one):
    """Accuracy above guessing that a distortion halves or quarters; of `pets` three times as much
    as of `mnist`.
    """
    above = rising(name, epoch, one) - 0.1 if epoch else 0.0
    return 0.1 + above * {"c50": 0.5, "c05": 0.25}.get(one.condition, 1) * (
        1 / 3 if one.dataset == "mnist" else 1
    )


@pytest.fixture
def files(tmp_path):
    """Writes a store of three series, four epochs and three batches, and answers to all sets."""

    def write(shares=by_level, sets=None, *, change=lambda store: store, **options):
        spectra = write_study(
            tmp_path / "small.h5",
            **({"labels": LABELS, "epochs": EPOCHS, "num_batches": 3} | options),
        )
        store = answers_of(shares, sets or all_sets(), labels=options.get("labels", LABELS))
        write_predictions(tmp_path / "answers.h5", change(store))
        return spectra, tmp_path / "answers.h5"

    return write


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The study of a page with all charts, and the page."""
    folder = tmp_path_factory.mktemp("accuracy")
    spectra = write_study(folder / "small.h5", labels=LABELS, epochs=EPOCHS, num_batches=3)
    write_predictions(folder / "answers.h5", answers_of(by_level, all_sets()))
    study = read_study(spectra, num_resamples=99, predictions=[folder / "answers.h5"])
    (folder / "page.html").write_text(render(study))
    return study, folder / "page.html"


def page_of(spectra, answers, **options):
    return render(read_study(spectra, num_resamples=99, predictions=[answers], **options))


def chapter_of(page):
    return re.search(r'<section aria-labelledby="accuracy">.*?</section>\n', page, re.DOTALL)[0]


# --- what it adds ---------------------------------------------------------------------------------


def test_the_chapter_is_added_and_the_rest_of_the_page_stays_byte_for_byte(whole):
    study, page = whole
    with_it, without = page.read_text(), render(replace(study, accuracy=None))
    assert render(study) == with_it and "accuracy" not in words_of(without).lower()
    script = re.compile(r'<script type="application/json" id="data">.*?</script>', re.DOTALL)
    assert script.sub("", with_it.replace(chapter_of(with_it), "")) == script.sub("", without)
    # The place of the chapter leaves no trace.
    assert '</section>\n<section aria-labelledby="certificates">' in without
    charts, old = data_of(with_it), data_of(without)
    added = {name: charts["charts"].pop(name) for name in CHARTS}
    assert charts == old and len(added) == 4


def test_a_report_without_the_option_is_that_of_a_study_without_answers(files, tmp_path):
    spectra, _ = files(labels={"one": "One"}, epochs=(0, 1))
    write_report(spectra, tmp_path / "page.html", num_resamples=99)
    assert (tmp_path / "page.html").read_text() == render(read_study(spectra, num_resamples=99))
    assert "answers" not in words_of((tmp_path / "page.html").read_text())


# --- the charts -----------------------------------------------------------------------------------


def test_accuracies_stand_under_sharpness_along_the_same_epochs_with_their_intervals(whole):
    study, page = whole
    chart = data_of(page.read_text())["charts"]["accuracy-epochs"]
    (frame,), layout = chart["frames"], chart["layout"]
    axes = {"y": None, "y2": "zero_shot", "y3": "ood", "y4": "robustness"}
    assert len(frame) == 3 * len(axes)
    for trace in frame:
        mean, series = axes[trace.get("yaxis", "y")], trace["meta"]
        rows = [study.accuracy.row(series, epoch) for epoch in EPOCHS]
        found = [row.means.get(mean) if mean else row.sharpness["lambda_max"] for row in rows]
        scale = 100 if mean else 1
        for name, expected in (("y", "value"), ("low", "low"), ("high", "high")):
            drawn = (
                unpacked(trace["y"])
                if name == "y"
                else unpacked(trace["customdata"])[:, int(name == "high")]
            )
            wanted = [np.nan if one is None else scale * getattr(one, expected) for one in found]
            # The page keeps single precision.
            np.testing.assert_allclose(drawn, wanted, rtol=1e-6)
        np.testing.assert_array_equal(unpacked(trace["x"]), EPOCHS)
    # Nothing is kept of guessing at the initialisation: a gap.
    assert [np.isnan(unpacked(trace["y"]))[0] for trace in frame if trace.get("yaxis") == "y4"] == [
        True
    ] * 3
    # Panels from the top, none over another, on one axis of epochs at the bottom.
    domains = [layout[axis]["domain"] for axis in ("yaxis", "yaxis2", "yaxis3", "yaxis4")]
    assert domains[0][1] == 1 and domains[3][0] == pytest.approx(0)
    assert all(lower[1] < upper[0] for upper, lower in zip(domains, domains[1:]))
    assert layout["xaxis"]["anchor"] == "y4" and layout["xaxis"]["tickvals"] == list(EPOCHS)
    assert {shape["yref"]: shape["y0"] for shape in layout["shapes"]} == {
        "y2": pytest.approx(10),
        "y3": pytest.approx(10),
    }


@pytest.mark.parametrize("name", ["zero_shot", "ood", "robustness"])
def test_every_point_is_labelled_with_its_series_and_epoch(whole, name):
    study, page = whole
    (frame,) = data_of(page.read_text())["charts"][f"accuracy-{name}"]["frames"]
    points = {}
    for trace in frame:
        places = zip(
            trace["text"],
            unpacked(trace["x"]),
            unpacked(trace["y"]),
            trace["textposition"],
            strict=True,
        )
        points |= {text: (float(x), float(y)) for text, x, y, _ in places}
    expected = {
        f"{LABELS[row.series]} {row.epoch}": (
            row.sharpness["lambda_max"].value,
            100 * row.means[name].value,
        )
        for row in study.accuracy.rows
        if name in row.means
    }
    assert set(points) == set(expected) and len(points) == (9 if name == "robustness" else 12)
    for text, point in points.items():
        assert point == pytest.approx(expected[text], rel=1e-6)


def test_plotly_knows_every_property(whole):
    graph_objects = pytest.importorskip("plotly.graph_objects")
    for name in CHARTS:
        chart = data_of(whole[1].read_text())["charts"][name]
        narrow = {**chart["layout"], "xaxis": {**chart["layout"]["xaxis"], **chart["narrow"]}}
        for layout in (chart["layout"], narrow):
            traces = [
                {k: v for k, v in trace.items() if k != "shape"} for trace in chart["frames"][0]
            ]
            graph_objects.Figure(data=traces, layout=layout)


def test_labels_keep_off_other_labels_and_points_where_they_can():
    from landscape.compare.sharpness_accuracy import CheckpointRow
    from landscape.report.accuracy_charts import _places
    from landscape.statistics import Interval

    def row(series, x, y):
        means = {"ood": Interval(y)}
        return CheckpointRow(
            series=series,
            label=series,
            epoch=1,
            sharpness={"lambda_max": Interval(x)},
            scores=(),
            means=means,
        )

    # b is right above a, so a's label goes below; nothing is near c.
    rows = [row("a", 1.0, 0.50), row("b", 1.01, 0.52), row("c", 2.0, 0.9), row("d", 0.0, 0.0)]
    places = _places(rows, "ood", {name: name * 8 for name in "abcd"}, logarithmic=False)
    assert places["a", 1] != "top right" and places["b", 1] == places["c", 1] == "top right"


# --- the text -------------------------------------------------------------------------------------


def test_the_table_of_correlations_holds_scipys_numbers_and_says_what_each_column_covers(whole):
    study, page = whole
    words = words_of(page.read_text())
    rows = study.accuracy.rows
    x, y = (
        [row.sharpness["lambda_max"].value for row in rows],
        [row.means["zero_shot"].value for row in rows],
    )
    rho = signed(stats.spearmanr(x, y).statistic)
    cells = re.findall(
        r'<tr><th scope="row">largest eigenvalue</th><th scope="row">zero-shot accuracy</th>'
        r'<th scope="row">all checkpoints</th>'
        r"<td>12</td><td>3</td><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>",
        words,
    )
    assert len(cells) == 1 and cells[0][0] == rho and cells[0][3] == "–"
    assert all(text.replace("'", "&#39;") in words for text in COVERS.values())
    assert "series at the same epoch" in words and "Along the training of each series" in words
    assert f"rank correlation {rho}" in words and TRAINING in words
    assert "3 series can give no p below 0.33" in words


def test_means_say_what_they_are_over_and_every_set_has_its_accuracy_and_chance(whole):
    words = words_of(whole[1].read_text())
    assert "Zero-shot accuracy: mean over 2 data sets (pets, mnist)" in words
    assert "mean over 1 data set (own/contrast) of the mean over conditions" in words
    assert (
        "No kept share of the accuracy is given for one epoch 0, two epoch 0, three epoch 0"
        in words
    )
    assert "Accuracy on each of the 5 sets" in words
    row = re.search(
        r'<tr><th scope="row">own/contrast</th><th scope="row">c50</th>.*?</tr>', words
    )[0]
    low, high = (100 * end for end in stats.binomtest(22, 100).proportion_ci(method="wilson"))
    # Of series "one" at epoch 2: .1 + .4 / 2 = .3; at epoch 1 .1 + .25 / 2 = .225, and 22 of 100
    # pictures.
    assert (
        f"<td>22.0 [{low:.1f},\N{NO-BREAK SPACE}{high:.1f}]</td>" in row
        and "<td>100</td><td>10.0</td>" in row
    )


def test_fewer_than_four_checkpoints_get_a_reason_instead_of_a_correlation(files):
    def cut(store):
        return replace(
            store,
            checkpoints={
                key: one
                for key, one in store.checkpoints.items()
                if key in (("one", 0), ("two", 3))
            },
        )

    words = words_of(page_of(*files(change=cut)))
    assert "No rank correlation (2 checkpoints, and ranks of fewer than 4 say nothing)" in words
    assert (
        "rank correlation −" not in words
        and "rank correlation +" not in words
        and TRAINING not in words
    )
    assert "Without answers, so not in this chapter: one epoch 1" in words


def test_a_store_in_which_nothing_converged_still_has_its_accuracies(files):
    spectra, answers = files()
    loose = {"labels": LABELS, "epochs": EPOCHS, "num_batches": 3}
    write_study(spectra, change=lambda fields: fields | {"converged": np.zeros(5, bool)}, **loose)
    page = page_of(spectra, answers)
    assert (
        "No rank correlation: no checkpoint has both" in page
        and "Accuracy on each of the 5 sets" in page
    )
    assert not set(CHARTS) & set(data_of(page)["charts"])
    assert set(CHARTS) <= set(data_of(page_of(spectra, answers, keep_unconverged=True))["charts"])


def test_texts_of_users_are_escaped(files):
    labels = {"one": NASTY, "two": "plain", "three": "x" * 60}
    page = page_of(*files(labels=labels))
    words = words_of(page)
    assert "<script>alert" not in words and "<b onclick" not in words
    (frame,) = data_of(page)["charts"]["accuracy-zero_shot"]["frames"]
    assert all("<b" not in text and "%{" not in text for trace in frame for text in trace["text"])
    assert (
        max(len(text) for trace in frame if trace["meta"] == "three" for text in trace["text"])
        <= 20
    )


def test_the_page_still_asks_the_network_for_nothing(whole):
    words = words_of(whole[1].read_text())
    assert not re.search(r"https?://|//cdn|@import|url\(", re.sub(r"<cite>.*?</cite>", "", words))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "+1.00"),
        (0.999, "+0.99"),
        (-0.996, "−0.99"),
        (-1.0, "−1.00"),
        (0.0, "0.00"),
        (-0.004, "0.00"),
    ],
)
def test_only_a_perfect_correlation_is_written_as_one(value, text):
    assert signed(value) == text


# --- the command ----------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(main, ["report", *map(str, arguments), "--resamples", "99"])


def test_the_command_takes_several_files_and_some_series(files, tmp_path):
    spectra, answers = files(sets=all_sets()[:2])
    write_predictions(tmp_path / "ood.h5", answers_of(by_level, all_sets()[2:]))
    page = tmp_path / "page.html"
    both = ["--predictions", answers, "--predictions", tmp_path / "ood.h5"]
    result = run(spectra, "-o", page, *both, "--series", "one", "--series", "two")
    assert result.exit_code == 0 and "accuracy of 8 checkpoints" in result.stdout, result.output
    words = words_of(page.read_text())
    assert "answers.h5 and ood.h5" in words and str(tmp_path) not in words
    charts = data_of(page.read_text())["charts"]
    assert set(CHARTS) <= set(charts)
    assert {trace["meta"] for name in CHARTS for trace in charts[name]["frames"][0]} == {
        "one",
        "two",
    }
    # Two series are no sample of series.
    assert "It says nothing about other series: these are fewer than three." in words


def test_wrong_files_of_answers_are_one_line_and_leave_no_page(files, tmp_path):
    def other_weights(store):
        store.checkpoints["two", 1] = replace(
            store.checkpoints["two", 1], checkpoint_sha256="e" * 64
        )
        return store

    spectra, answers = files(change=other_weights)
    page = tmp_path / "page.html"
    for paths, what in (
        ([answers], "other weights"),
        ([tmp_path / "none.h5"], "no such file"),
        ([spectra], "holds no predictions"),
        ([answers, answers], "named twice"),
    ):
        result = run(
            spectra, "-o", page, *[part for path in paths for part in ("--predictions", path)]
        )
        assert result.exit_code == 2 and what in result.stderr and result.stderr.count("\n") == 1, (
            result.output
        )
        assert not page.exists()


def test_spectra_and_answers_of_the_same_manifest_meet_in_one_page(tmp_path, monkeypatch):
    monkeypatch.setenv("LANDSCAPE_CACHE", str(tmp_path / "cache"))
    manifest, pictures = (
        make_study(tmp_path, names=("one", "two", "three")),
        make_pictures(tmp_path),
    )
    spectra, answers, page = (
        tmp_path / name for name in ("spectra.h5", "zeroshot.h5", "page.html")
    )
    for arguments in (
        ["spectra", manifest, "-o", spectra, "--batches", 2, "--unaudited"],
        ["evaluate", manifest, "-o", answers, "--data", f"zoo={pictures}"],
        ["report", spectra, "-o", page, "--predictions", answers, "--resamples", 99],
    ):
        result = CliRunner().invoke(main, list(map(str, arguments)))
        assert result.exit_code == 0, result.output
    assert "accuracy of 6 checkpoints" in result.stdout
    counted = {
        (one.series, one.epoch): one.value.value for one in scores_of(read_predictions(answers))
    }
    (scatter,) = data_of(page.read_text())["charts"]["accuracy-zero_shot"]["frames"]
    drawn = {trace["meta"]: unpacked(trace["y"]) / 100 for trace in scatter}
    for (series, epoch), value in counted.items():
        assert drawn[series][epoch] == pytest.approx(value, rel=1e-6)


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_a_browser_draws_the_chapter_without_a_complaint_and_within_the_page(driver, whole, width):
    open_page(driver, whole[1], width=width)
    assert complaints(driver) == []
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    labels = (
        "return [...document.querySelectorAll('#chart-accuracy-ood .textpoint')].map(one => "
        "one.textContent)"
    )
    assert set(driver.execute_script(labels)) == {
        f"{label} {epoch}" for label in LABELS.values() for epoch in EPOCHS
    }
