"""The page of a study: what its text says, what its charts hold, and that a browser shows both.

Truth: the curves of `figure3` and `density_figure`, the areas under them, plotly's own schema, and
Chromium.
"""

import base64
import hashlib
import html
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.colors import to_hex

from landscape.cli import main
from landscape.errors import StoreError
from landscape.figures import AsinhAxis, density_figure, figure3
from landscape.pipeline import write_report
from landscape.report import render
from landscape.report.chart import dash_of, from_mathtext, literal
from landscape.report.from_store import read_study
from landscape.report.page import PLOTLY
from landscape.report.tables import certificate_table, number
from landscape.store import SpectrumStore, SpectrumWriter
from tests.helpers.browser import chromium, set_width
from tests.helpers.store_records import manifest_of, record_of
from tests.helpers.study_stores import EPOCHS, LABELS, write_study

NASTY = "<b onclick=\"x\">A</b> & </script><script>alert(1)</script> %{y} {{ 7 * 7 }} 'q'"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study of 3 series and 6 epochs, and its page."""
    folder = tmp_path_factory.mktemp("whole")
    study = read_study(write_study(folder / "study.h5", num_batches=20), num_resamples=99)
    (folder / "report.html").write_text(render(study), encoding="utf-8")
    return study, folder / "report.html"


@pytest.fixture
def small(tmp_path):
    """Writes a store of two series, three epochs and eight batches, with changes."""

    def write(**changes):
        options = {
            "labels": {"one": "Model one", "two": "Model two"},
            "epochs": (0, 1, 2),
            "num_batches": 8,
        }
        return write_study(tmp_path / "small.h5", **(options | changes))

    return write


def data_of(page):
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1]
    )


def words_of(page):
    """The page without plotly.js, which has words of its own."""
    return page.replace(PLOTLY.read_text(encoding="utf-8"), "")


def unpacked(array):
    values = np.frombuffer(base64.b64decode(array["bdata"]), dtype=array["dtype"])
    return (
        values.reshape([int(size) for size in array["shape"].split(",")])
        if "shape" in array
        else values
    )


def page_of(store, **options):
    return render(
        read_study(
            store, keep_unconverged=options.get("keep_unconverged", False), num_resamples=299
        ),
        **options,
    )


# --- the charts -----------------------------------------------------------------------------------


def test_the_curves_are_those_of_figure_3(whole):
    study, page = whole
    chart = data_of(page.read_text())["charts"]["spectrum"]
    fig = figure3(study.samples(), epochs=EPOCHS)
    width = float(re.search(r"λ / (.*)\)", chart["layout"]["xaxis"]["title"]["text"])[1])
    for frame, ax in zip(chart["frames"], fig.axes, strict=True):
        lines = [line for line in ax.lines if len(line.get_xdata()) > 2]
        curves = [trace for trace in frame if trace["mode"] == "lines"]
        for trace, line in zip(curves, lines, strict=True):
            # The page keeps single precision.
            np.testing.assert_allclose(
                unpacked(trace["x"]), AsinhAxis(width).forward(line.get_xdata()), rtol=1e-6
            )
            np.testing.assert_allclose(unpacked(trace["y"]), line.get_ydata(), rtol=1e-6)
            np.testing.assert_allclose(unpacked(trace["customdata"]), line.get_xdata(), rtol=1e-6)
            assert trace["line"]["color"].lower() == to_hex(line.get_color())


def test_the_confidence_of_intervals_is_not_rounded_to_certainty(small):
    study = read_study(small(), keep_unconverged=False, num_resamples=99)
    study = replace(study, comparison=replace(study.comparison, confidence=0.995))
    words = words_of(render(study))
    assert words.count("99.5 % bootstrap interval") >= 3 and "100% bootstrap" not in words


def test_every_value_has_a_tick_below_the_curves(small):
    store = small(num_batches=3)
    study = read_study(store, num_resamples=99)
    chart = data_of(page_of(store))["charts"]["spectrum"]
    low, high = chart["layout"]["xaxis"]["range"]
    for frame, epoch in zip(chart["frames"], study.epochs, strict=True):
        for name in study.series:
            ticks = next(
                trace for trace in frame if trace["mode"] == "markers" and trace["meta"] == name
            )
            places = unpacked(ticks["customdata"]), unpacked(ticks["x"])
            values = np.sort(study.tables[name, epoch].eigenvalues.ravel())
            assert low < places[1].min() and places[1].max() < high
            # Half of the step that merges ticks, in the drawn coordinate, is below a percent of the
            # value.
            distances = np.abs(places[0][None, :] / values[:, None] - 1).min(axis=1)
            assert distances.max() < 0.01


def test_the_whole_density_is_that_of_the_density_figure_and_encloses_area_one(
    small,
):
    store = small(without=[("two", 1)], change=lambda fields: fields | _with_zeros(fields))
    study = read_study(store, num_resamples=299)
    chart = data_of(page_of(store))["charts"]["density"]
    fig = density_figure(study.densities)
    found = re.search(r"λ / (.*)\)", chart["layout"]["xaxis"]["title"]["text"])
    axis = AsinhAxis(float(found[1]) if found else 1.0)
    for frame, ax in zip(chart["frames"], fig.axes, strict=True):
        lines = {line.get_label(): line for line in ax.lines}
        bands = [
            patch.get_paths()[0].vertices for patch in ax.collections if patch.get_label() == "band"
        ]
        pairs = {name: [trace for trace in frame if trace["meta"] == name] for name in study.series}
        for name, (band, trace) in pairs.items():
            x, y = unpacked(trace["x"]), unpacked(trace["y"])
            if study.labels[name] not in lines:
                assert np.isnan(y).all() and unpacked(band["x"]).size == 0
                continue
            line = lines[study.labels[name]]
            # The page keeps single precision.
            np.testing.assert_allclose(x, axis.forward(line.get_xdata()), rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(y, line.get_ydata(), rtol=1e-5)
            # The axis leaves out less than a part in ten of one eigenvalue of a million.
            assert np.trapezoid(np.nan_to_num(y), x) == pytest.approx(1, abs=1e-3)
            upper = bands.pop(0)[:, 1].max()
            assert unpacked(band["y"])[np.isfinite(unpacked(band["y"]))].max() == pytest.approx(
                upper, rel=1e-5
            )
    assert np.isnan(unpacked(chart["frames"][1][3]["y"])).all()
    page = " ".join(html.unescape(page_of(store)).split())
    (note,) = [
        text
        for text in (" ".join(text.get_text().split()) for text in fig.texts)
        if text.startswith("All ")
    ]
    assert (
        "Flat stretches are not resolved." in note
        and "10 % are zero by structure" in note
        and note in page
    )
    low, high = chart["layout"]["yaxis"]["range"]
    assert low == pytest.approx(np.log10(fig.axes[0].get_ylim()[0])) and high > np.log10(
        np.nanmax(y)
    )


def _with_zeros(fields):
    """A tenth of the parameters that no batch uses, as the solver leaves them: a node at zero with
    that weight.
    """
    nodes, weights = (
        np.append(fields["ritz_values"], 0.0),
        np.append(0.9 * fields["ritz_weights"], 0.1),
    )
    order = np.argsort(nodes)
    return {
        "ritz_values": nodes[order],
        "ritz_weights": weights[order],
        "num_unused": fields["num_params"] // 10,
    }


def test_the_share_below_zero_is_said_beside_a_density_with_its_error(small):
    study = read_study(small(), num_resamples=299)
    trace = data_of(page_of(small()))["charts"]["density"]["frames"][0][1]
    assert f"share of λ &lt; 0: {study.densities[0].remark}<" in trace["hovertemplate"]


def test_lines_over_epochs_are_the_numbers_of_the_comparison_and_break_where_an_epoch_is_missing(
    small,
):
    store = small(without=[("two", 1)])
    study = read_study(store, num_resamples=299)
    frame = data_of(page_of(store))["charts"]["lambda_max"]["frames"][0]
    line = {trace["meta"]: trace for trace in frame if trace["mode"] == "lines+markers"}
    band = {trace["meta"]: trace for trace in frame if trace.get("fill") == "toself"}
    values = {name: unpacked(trace["y"]) for name, trace in line.items()}
    expected = [study.comparison.summary("one", epoch, "lambda_max").value for epoch in (0, 1, 2)]
    np.testing.assert_allclose(values["one"], expected, rtol=1e-6)
    assert np.isnan(values["two"]).tolist() == [False, True, False]
    # Two polygons, each closed by a gap, and none across the missing epoch.
    assert (
        np.isnan(unpacked(band["two"]["y"])).sum() == 2
        and np.isnan(unpacked(band["one"]["y"])).sum() == 1
    )


def test_plotly_knows_every_property(whole):
    graph_objects = pytest.importorskip("plotly.graph_objects")
    for chart in data_of(whole[1].read_text())["charts"].values():
        narrow = {**chart["layout"], "xaxis": {**chart["layout"]["xaxis"], **chart["narrow"]}}
        for frame in chart["frames"]:
            for layout in (chart["layout"], narrow):
                graph_objects.Figure(
                    data=[{k: v for k, v in trace.items() if k != "shape"} for trace in frame],
                    layout=layout,
                )


def test_the_library_is_the_published_one():
    digest = hashlib.sha256(PLOTLY.read_bytes()).hexdigest()
    assert digest in PLOTLY.with_name("README.md").read_text()


def test_patterns_and_labels_of_the_figures_become_plotlys():
    from landscape.figures.style import MAX_SERIES, line_styles

    styles = line_styles()
    assert len(styles) == MAX_SERIES and styles[0].color == "#0072B2"
    assert dash_of(styles[0]) == "solid" and dash_of(styles[1]) == "8px,2.6px"
    assert (
        from_mathtext(r"$-5{\times}10^{3}$") == "−5×10<sup>3</sup>"
        and from_mathtext("−50") == "−50"
    )
    assert from_mathtext("$10^{-2}$") == "10<sup>−2</sup>"
    assert literal("a < b & %{y}") == "a &lt; b &amp; %&#123;y}"


# --- the text -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_page_of_200_batches_is_small(tmp_path):
    write_report(write_study(tmp_path / "study.h5"), tmp_path / "report.html", num_resamples=99)
    assert (tmp_path / "report.html").stat().st_size < 2.5e6


def test_the_page_asks_the_network_for_nothing_and_is_small(whole):
    page = whole[1].read_bytes()
    assert len(page) < 2.5e6
    words = words_of(page.decode())
    assert not re.search(r"https?://|//cdn|@import|url\(", re.sub(r"<cite>.*?</cite>", "", words))
    assert "default-src 'none'" in words and not re.search(
        r"<(?:script|img|iframe)[^>]* src=|<link(?! rel=\"icon\")", words
    )


def test_the_same_store_gives_the_same_bytes_in_every_process(small, tmp_path):
    store, here, elsewhere = small(), tmp_path / "here.html", tmp_path / "elsewhere.html"
    arguments = ["report", str(store), "--resamples", "99", "-o"]
    assert CliRunner().invoke(main, [*arguments, str(here)]).exit_code == 0
    # Strings have other hashes there than here, and clocks another hour.
    environment = os.environ | {"PYTHONHASHSEED": "1" if hash("a") % 2 else "2", "TZ": "UTC+11"}
    command = [sys.executable, "-m", "landscape", *arguments, str(elsewhere)]
    subprocess.run(command, check=True, env=environment)
    assert here.read_bytes() == elsewhere.read_bytes()


def test_the_page_tells_the_date_and_digest_of_the_file_and_not_where_it_lay(small, tmp_path):
    store = small()
    os.utime(store, (86400, 86400))
    words = words_of(page_of(store))
    assert "small.h5, last written 1970-01-02 00:00 UTC" in words
    assert hashlib.sha256(store.read_bytes()).hexdigest() in words
    assert str(tmp_path) not in words
    with SpectrumStore.open(store) as opened:
        assert opened.plan.manifest_sha256 in words and opened.plan.protocol_sha256 in words
        assert all(table in words for table, _ in opened.identities.values())


def test_texts_of_users_are_escaped(small):
    page = page_of(small(labels={"one": NASTY, "two": "plain"}), title=NASTY)
    words = words_of(page)
    assert "<script>alert" not in words and "<b onclick" not in words
    assert "49" not in re.findall(r"<h1>.*?</h1>", words)[0]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in words and "{{ 7 * 7 }}" in words
    hover = data_of(page)["charts"]["spectrum"]["frames"][0][0]["hovertemplate"]
    assert hover.startswith("<b>&lt;b onclick") and "<script" not in hover and "%{y} " not in hover


def test_a_missing_epoch_is_said_and_left_blank(small):
    page = page_of(small(without=[("two", 1)]))
    assert "Unfinished: 40 of 48 planned batches are measured" in page
    assert "Model two: nothing yet at epoch 1" in page
    assert re.search(
        r'<th scope="row">Model two</th><th scope="row">1</th><td>not measured</td>', page
    )
    data = data_of(page)
    assert data["remarks"]["two"][1] == "not measured"
    curve, ticks = (
        trace for trace in data["charts"]["spectrum"]["frames"][1] if trace["meta"] == "two"
    )
    assert np.isnan(unpacked(curve["y"])).all() and unpacked(ticks["x"]).size == 0


def test_a_series_without_any_record_is_said(small):
    page = page_of(small(without=[("two", 0), ("two", 1), ("two", 2)]))
    assert "two: nothing yet at epochs 0, 1, 2" in page and set(data_of(page)["remarks"]) == {"one"}


def test_one_epoch_needs_no_slider(small):
    page = page_of(small(epochs=(0,)))
    assert re.search(r'<input type="range"[^>]* disabled>', page) and data_of(page)["epochs"] == [
        "initialisation"
    ]


def test_values_that_did_not_converge_are_left_out_counted_and_drawn_on_request(small):
    def loosen(fields):
        loose = fields["batch"] < 2 and fields["series"] == "one"
        return fields | (
            {"converged": np.zeros(5, bool), "residuals": np.full(5, np.inf)} if loose else {}
        )

    store = small(change=loosen)
    page = page_of(store)
    assert "Left out: 30 values that did not converge." in page
    assert re.search(r"<dt>eigenvalues converged</dt><dd>210 <small>of 240</small>", page)
    assert "<td>30 of 40</td>" in page
    assert "Drawn: 30 values that did not converge." in page_of(store, keep_unconverged=True)


def test_a_store_in_which_nothing_converged_still_has_its_certificates(small):
    page = page_of(small(change=lambda fields: fields | {"converged": np.zeros(5, bool)}))
    assert "none of the 240 eigenvalues is finite and converged" in page
    assert (
        "0 of 40" in page
        and "spectrum" not in data_of(page)["charts"]
        and "density" in data_of(page)["charts"]
    )


def test_a_store_without_quadratures_has_no_density_and_says_why(small):
    empty = {"ritz_values": np.zeros(0), "ritz_weights": np.zeros(0)}
    page = page_of(small(change=lambda fields: fields | empty))
    assert "No density is drawn" in page
    assert "spectrum" in data_of(page)["charts"] and "density" not in data_of(page)["charts"]


def test_unaudited_records_stamp_the_page_and_verdicts_are_listed(small):
    verdict = {"passed": False, "reason": "not audited, by --unaudited"}

    def change(fields):
        return fields | ({"extras": {"audit": verdict}} if fields["epoch"] else {})

    stamped, clean = words_of(page_of(small(change=change))), words_of(page_of(small()))
    assert (
        "NOT AUDITED" in stamped
        and "not audited, by --unaudited" in stamped
        and "<td>passed</td>" in stamped
    )
    assert "NOT AUDITED" not in clean and "<td>passed</td><td>3.1e−7</td>" in clean


def test_series_on_other_pairs_keep_their_numbers_and_are_not_compared(small):
    same = page_of(small())
    other = page_of(
        small(
            change=lambda fields: (
                fields | {"batch_sha256": hashlib.sha256(fields["series"].encode()).hexdigest()}
            )
        )
    )
    assert (
        "on the same pairs, batch by batch (8 batches)" in same
        and "No comparison" not in same
        and "p (Holm)" in same
    )
    assert (
        "The pairs of 8 of 8 batches differ between checkpoints." in other
        and "p (Holm)" not in other
    )
    assert (
        "No comparison: " in other
        and "lambda_max" in data_of(other)["charts"]
        and ">trace / parameter" in other
    )


def test_certificates_say_how_many_eigenvalues_are_negative_for_certain(small):
    study = read_study(small(), keep_unconverged=False, num_resamples=99)
    counts = study.tables["two", 2].num_negative
    row = certificate_table(study).rows[-1]
    assert row[:5] == (
        "Model two",
        "2",
        "8",
        "40 of 40",
        number(study.tables["two", 2].residuals.max(), ".1e"),
    )
    assert (
        row[6].startswith(f"{np.median(counts):g} ({counts.min()}–{counts.max()})")
        and row[7] == "2.0e−15"
    )


def test_more_series_than_colours_are_refused(small):
    labels = {f"s{i}": f"Series {i}" for i in range(9)}
    with pytest.raises(StoreError, match="9 series, but more than 8"):
        page_of(small(labels=labels, epochs=(0,), num_batches=2))


def test_some_series_of_many_make_a_page_and_a_name_that_is_unknown_is_refused(small, tmp_path):
    store, output = (
        small(labels={f"s{i}": f"S{i}" for i in range(9)}, num_batches=2, epochs=(0,)),
        tmp_path / "page.html",
    )
    run = partial(CliRunner().invoke, main)
    result = run(["report", str(store), "-o", str(output)])
    assert result.exit_code == 2 and "--series" in result.stderr
    result = run(
        [
            "report",
            str(store),
            "-o",
            str(output),
            "--series",
            "s7",
            "--series",
            "s2",
            "--resamples",
            "99",
        ]
    )
    assert result.exit_code == 0 and "2 series" in result.stdout, result.output
    found = data_of(output.read_text())["charts"]
    assert {trace["meta"] for chart in found.values() for trace in chart["frames"][0]} == {
        "s2",
        "s7",
    }
    assert ">S3<" not in words_of(output.read_text())
    for command, suffix in (
        ("report", "html"),
        ("figure", "png"),
        ("density", "png"),
        ("compare", "csv"),
    ):
        result = run([command, str(store), "-o", str(tmp_path / f"x.{suffix}"), "--series", "z2"])
        assert (
            result.exit_code == 2
            and "no series 'z2'" in result.stderr
            and result.stderr.count("\n") == 1
        )
    for command in (["figure"], ["figure", "--kind", "sharpness"], ["density"]):
        result = run([*command, str(store), "-o", str(tmp_path / "some.svg"), "--series", "s2"])
        assert result.exit_code == 0 and "1 series" in result.stdout, result.output
    few = ["--metric", "nep", "--resamples", "99"]
    result = run(
        [
            "compare",
            str(store),
            "-o",
            str(tmp_path / "some.csv"),
            "--series",
            "s2",
            "--series",
            "s7",
            *few,
        ]
    )
    assert result.exit_code == 0 and "2 series" in result.stdout, result.output
    result = run(["density", "vit_tiny_64", "-o", str(tmp_path / "model.svg"), "--series", "s2"])
    assert (
        result.exit_code == 2 and "of a store" in result.stderr and result.stderr.count("\n") == 1
    )


@pytest.mark.parametrize("name", ["page.txt", "page.png", "page"])
def test_a_page_is_not_written_under_a_name_that_is_none_of_a_page(small, tmp_path, name):
    result = CliRunner().invoke(
        main, ["report", str(small(num_batches=2)), "-o", str(tmp_path / name)]
    )
    assert result.exit_code == 2 and ".html" in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1134.4, "1134"),
        (123456.0, "1.23e5"),
        (0.07, "0.0700"),
        (-1.4, "−1.40"),
        (0.0, "0"),
        (2.5e-7, "2.50e−7"),
        (float("nan"), "–"),
        (float("inf"), "–"),
    ],
)
def test_numbers_are_written_for_people(value, text):
    assert number(value) == text


# --- the command ----------------------------------------------------------------------------------


def test_a_growing_store_is_reported_as_far_as_it_is(tmp_path):
    manifest = manifest_of(tmp_path)
    output = tmp_path / "spectra.h5"
    with SpectrumWriter(output, manifest) as writer:
        for key in ("wide/0/0", "wide/0/1", "narrow/2/3"):
            writer.add(record_of(key, converged=np.ones(3, bool)))
        result = CliRunner().invoke(
            main, ["report", str(output), "-o", str(tmp_path / "new" / "page.html")]
        )
    assert result.exit_code == 0, result.output
    assert "2 series, epochs 0, 2, 3 of 16 planned records" in result.output
    page = (tmp_path / "new" / "page.html").read_text()
    assert "Unfinished: 3 of 16 planned" in page and "none while it grows" in page
    assert data_of(page)["remarks"]["narrow"][0] == "not measured"


def test_an_empty_store_is_one_line(tmp_path):
    output = tmp_path / "spectra.h5"
    with SpectrumWriter(output, manifest_of(tmp_path)):
        result = CliRunner().invoke(
            main, ["report", str(output), "-o", str(tmp_path / "page.html")]
        )
    assert (
        result.exit_code == 2
        and "no eigenvalues yet" in result.stderr
        and "landscape spectra" in result.stderr
    )
    assert result.stderr.count("\n") == 1 and not (tmp_path / "page.html").exists()


def test_a_page_that_cannot_be_written_is_one_line(small, tmp_path):
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(
        main, ["report", str(small(num_batches=2)), "-o", str(tmp_path / "file" / "page.html")]
    )
    assert (
        result.exit_code == 2
        and "cannot be written" in result.stderr
        and result.stderr.count("\n") == 1
    )


def test_the_room_is_imported_without_torch_matplotlib_and_jinja2():
    code = (
        "import sys, landscape.report; sys.exit(bool({'matplotlib', 'torch', 'jinja2'} & "
        "set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def open_page(driver, page, *, width=1280):
    set_width(driver, width)
    driver.get(Path(page).as_uri())
    driver.set_script_timeout(60)
    driver.execute_async_script(
        "const done = arguments[0];const wait = () => document.documentElement.dataset.drawn ? "
        "done() : setTimeout(wait, 20); wait();"
    )


def complaints(driver):
    """What the page asked for and could not have, threw, or warned of."""
    return [entry["message"] for entry in driver.get_log("browser")] + driver.execute_script(
        "return performance.getEntriesByType('resource').map(one => one.name).filter(name => "
        "!name.startsWith('data:'))"
    )


def paths(driver, chart):
    """The drawn curves of a chart, each with all its pieces."""
    pieces = driver.execute_script(
        "return [...document.querySelectorAll(`#chart-${arguments[0]} .scatterlayer .trace`)]  "
        ".map(trace => [...trace.querySelectorAll('.js-line')].map(line => "
        "line.getAttribute('d')).join(' '))",
        chart,
    )
    return [curve for curve in pieces if curve.strip()]


def places(driver, chart):
    """Where the curves of a chart run from left to right; the other axis follows what is shown."""
    return sorted(" ".join(re.findall(r"[ML]([-\d.]+),", curve)) for curve in paths(driver, chart))


def ticks(driver, chart):
    marks = (
        "[...document.querySelectorAll(`#chart-${arguments[0]} .xtick, #chart-${arguments[0]} "
        ".ytick`)]"
    )
    return driver.execute_script(f"return {marks}.map(one => one.textContent)", chart)


@pytest.mark.browser
def test_a_browser_opens_the_page_without_a_complaint(driver, whole):
    open_page(driver, whole[1])
    assert complaints(driver) == []
    # Of each series a line, and in the density its band.
    assert [len(paths(driver, chart)) for chart in ("spectrum", "density", "nep")] == [3, 6, 3]


@pytest.mark.browser
def test_the_slider_moves_the_curves_by_keyboard_and_leaves_the_axes(driver, whole):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    open_page(driver, whole[1])
    slider = driver.find_element(By.ID, "epoch")
    seen, axes = [paths(driver, "spectrum")], ticks(driver, "spectrum")
    densities = paths(driver, "density")
    for key, name in (
        (Keys.ARROW_RIGHT, "epoch 5"),
        (Keys.END, "epoch 25"),
        (Keys.HOME, "initialisation"),
    ):
        slider.send_keys(key)
        assert (
            driver.find_element(By.ID, "epoch-name").text
            == slider.get_attribute("aria-valuetext")
            == name
        )
        seen.append(paths(driver, "spectrum"))
        assert ticks(driver, "spectrum") == axes
    assert seen[0] == seen[3] and all(
        a != b for a, b in zip(seen[0] + seen[1], seen[1] + seen[2], strict=True)
    )
    slider.send_keys(Keys.END)
    assert paths(driver, "density") != densities
    remarks = [one.text for one in driver.find_elements(By.CSS_SELECTOR, ".remark")]
    assert remarks == [data_of(whole[1].read_text())["remarks"][name][5] for name in LABELS]
    assert complaints(driver) == []


@pytest.mark.browser
def test_series_are_switched_off_and_on_in_every_chart(driver, whole):
    from selenium.webdriver.common.by import By

    open_page(driver, whole[1])
    boxes = driver.find_elements(By.CSS_SELECTOR, ".series input")
    charts = ("spectrum", "density", "lambda_max", "nep")
    # A chart that is drawn anew may be a pixel lower than at first.
    for _ in range(2):
        boxes[0].click()
    everything = {chart: places(driver, chart) for chart in charts}
    boxes[1].click()
    for chart in charts:
        left = places(driver, chart)
        assert left and len(left) < len(everything[chart]) and set(left) <= set(everything[chart])
    for box in (boxes[0], boxes[2]):
        box.click()
    assert [paths(driver, chart) for chart in charts] == [[]] * 4
    for box in boxes:
        box.click()
    assert {chart: places(driver, chart) for chart in charts} == everything
    assert complaints(driver) == []


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 390, 768])
def test_narrow_pages_do_not_scroll_sideways_and_cut_no_text_of_a_chart(driver, whole, width):
    open_page(driver, whole[1], width=width)
    driver.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    cut = driver.execute_script(
        """
        return [...document.querySelectorAll(".chart")].flatMap((chart) => {
            const page = chart.getBoundingClientRect();
            return [...chart.querySelectorAll("text")].filter((text) => {
                const box = text.getBoundingClientRect();
                const inside = box.left > page.left - 1 && box.right < page.right + 1;
                const level = box.top > page.top - 1 && box.bottom < page.bottom + 1;
                return box.width && !(inside && level);
            }).map((text) => text.textContent);
        });
        """
    )
    assert cut == [] and complaints(driver) == []


@pytest.mark.browser
def test_gaps_and_odd_labels_reach_the_reader_as_they_are(driver, small, tmp_path):
    from selenium.webdriver.common.by import By

    store = small(labels={"one": NASTY, "two": "plain"}, without=[("two", 0)])
    write_report(store, tmp_path / "page.html", num_resamples=99)
    open_page(driver, tmp_path / "page.html", width=390)
    assert driver.find_element(By.CSS_SELECTOR, ".series span").text == NASTY
    assert driver.execute_script("return document.querySelectorAll('.charts b').length") == 0
    assert [
        len(paths(driver, "spectrum")),
        driver.find_elements(By.CSS_SELECTOR, ".remark")[1].text,
    ] == [1, "not measured"]
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
    assert complaints(driver) == []


@pytest.mark.browser
def test_without_a_value_to_draw_the_page_is_still_whole(driver, small, tmp_path):
    store = small(
        change=lambda fields: (
            fields | {"converged": np.zeros(5, bool), "ritz_values": [], "ritz_weights": []}
        )
    )
    write_report(store, tmp_path / "page.html", num_resamples=99)
    open_page(driver, tmp_path / "page.html")
    assert "none of the 240 eigenvalues" in driver.execute_script("return document.body.innerText")
    assert complaints(driver) == []
