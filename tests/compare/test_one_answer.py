"""One store, one answer: every command that prints a trace, a share or a count of it prints the
same, to the last digit.
"""

import re

import numpy as np
import pytest
from click.testing import CliRunner

from landscape.cli import main
from landscape.compare import compare_stores, summarize_stores, to_csv
from landscape.compare.tables import grids
from landscape.figures import density_figure, figure3
from landscape.figures.density_records import density_sample, stored_densities
from landscape.figures.from_store import eigenvalue_samples
from landscape.report.from_store import read_study
from landscape.report.tables import numbers_table
from landscape.store import SpectrumStore
from tests.helpers.comparison_stores import write_store
from tests.helpers.folders import SMALL_STORE

SERIES, EPOCHS = "vmamba", (0, 10)
# The name under which density and info print a number, and that of the metric.
METRICS = {
    "trace": "trace",
    "trace per parameter": "trace_per_parameter",
    "negative eigenvalues": "num_negative_estimate",
    "negative share": "negative_share",
    "negative mass": "negative_mass",
}


def run(*args):
    result = CliRunner().invoke(main, [*map(str, args)])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def comparison():
    return summarize_stores([SMALL_STORE], series=[SERIES], metrics=[*METRICS.values(), "nep"])


@pytest.fixture(scope="module")
def compared(comparison):
    """What the tables of `compare` say, by epoch and name of the metric."""
    (grid,) = grids(comparison, [*METRICS.values()])
    return {int(row[0]): dict(zip(METRICS.values(), row[3:], strict=True)) for row in grid.rows}


def test_density_and_compare_say_the_same(compared, tmp_path, monkeypatch):
    # One table, and a line for each of its rows.
    monkeypatch.setenv("COLUMNS", "400")
    text = run(
        "density",
        SMALL_STORE,
        "-o",
        tmp_path / "a.svg",
        "--series",
        SERIES,
        "--epochs",
        ",".join(map(str, EPOCHS)),
    )
    assert "2 densities" in text
    (head,) = (line.split("┃")[1:-1] for line in text.splitlines() if line.startswith("┃"))
    rows = [line.split("│")[1:-1] for line in text.splitlines() if line.startswith("│")]
    assert tuple(int(row[1]) for row in rows) == EPOCHS
    for row in rows:
        numbers = {
            name.strip().removeprefix("estimated "): cell.strip() for name, cell in zip(head, row)
        }
        assert {METRICS[name]: numbers[name] for name in METRICS} == compared[int(row[1])]


def test_info_and_compare_say_the_same(compared):
    lines = [
        line
        for line in run("info", SMALL_STORE).splitlines()
        if line.startswith(f"{SERIES} epoch") and "estimated" in line
    ]
    assert len(lines) == 6
    for line in lines:
        epoch = int(line.split()[2].rstrip(":"))
        pattern = (
            r"(trace|trace per parameter|negative \w+|sum of squares) "
            r"((?:unknown|[-(\d]).*?)(?:,(?! \d)|$)"
        )
        said = dict(re.findall(pattern, line))
        assert {
            METRICS[name]: value for name, value in said.items() if name in METRICS
        } == compared[epoch]


def test_the_report_and_compare_say_the_same(compared):
    table = numbers_table(read_study(SMALL_STORE, series=[SERIES], num_resamples=99))
    for row in table.rows:
        plain = (cell.replace("−", "-").replace("\N{NO-BREAK SPACE}", " ") for cell in row)
        cells = {head.split(" (nat")[0]: cell for head, cell in zip(table.header, plain)}
        labels = {
            "trace": "trace",
            "trace / parameter": "trace_per_parameter",
            "negative (about)": "num_negative_estimate",
        }
        labels |= {"negative share": "negative_share", "negative mass": "negative_mass"}
        for label, name in labels.items():
            # A page writes e-4 for e-04.
            assert (
                re.sub(r"e([+-])0?(\d)", r"e\1\2", compared[int(row[1])][name]).replace("e+", "e")
                == cells[label]
            )


def test_the_figures_and_compare_say_the_same(comparison, compared):
    records = [
        record
        for record in stored_densities(SMALL_STORE, series=[SERIES])
        if record.epoch in EPOCHS
    ]
    drawn = density_figure([density_sample(record) for record in records])
    shares = [ax.get_legend().get_texts()[0].get_text() for ax in drawn.axes]
    assert shares == [compared[epoch]["negative_share"] for epoch in EPOCHS]
    with SpectrumStore.open(SMALL_STORE, series=[SERIES]) as store:
        samples = eigenvalue_samples(store)
    panels = figure3(samples).axes
    for epoch in EPOCHS:
        title = "Initialisation" if epoch == 0 else f"Epoch {epoch}"
        (ax,) = (
            ax
            for ax in panels
            if title in (ax.get_title(), ax.get_title(loc="left")) and ax.get_legend()
        )
        nep = comparison.summary(SERIES, epoch, "nep").value
        assert ax.get_legend().get_texts()[-1].get_text() == f"{100 * round(nep, 12):.0f} %"


def test_the_trace_is_that_of_the_stored_quadratures(comparison):
    with SpectrumStore.open(SMALL_STORE, series=[SERIES]) as store:
        for epoch in EPOCHS:
            table = store.records(SERIES, epoch)
            traces = table.num_params * np.nansum(table.ritz_values * table.ritz_weights, axis=1)
            assert comparison.summary(SERIES, epoch, "trace").value == pytest.approx(
                traces.mean(), rel=1e-9
            )


def test_what_is_unknown_has_a_range_and_no_value_and_no_test_is_made_of_it():
    found = compare_stores(
        [SMALL_STORE],
        metrics=["trace", "negative_share"],
        series=["vit", "simba"],
        epochs=[10],
        num_resamples=99,
    )
    assert {row.metric for row in found.differences} == {"trace"}
    share = found.summary("vit", 10, "negative_share")
    assert not share.known and np.isnan(share.value) and share.low < 0.001 and share.high > 0.98
    (note,) = (
        note
        for note in found.notes
        if "no test is made of it: negative share (ViT, epoch 10; Simba, epoch 10)" in note
    )
    assert "`landscape density`" in note
    rows = [line.split(",") for line in to_csv(found).splitlines()]
    (row,) = (
        dict(zip(rows[0], row))
        for row in rows
        if row[:3] == ["series", "negative_share", "1"] and row[4] == "vit"
    )
    assert (row["value"], row["known"]) == ("", "False") and float(row["open_high"]) > 0.98


def test_density_prints_the_epochs_that_were_asked_for_alone(tmp_path):
    text = run(
        "density", SMALL_STORE, "-o", tmp_path / "a.svg", "--series", SERIES, "--epochs", "25"
    )
    assert (
        re.findall(r"^\w+ epoch (\d+)", text, flags=re.MULTILINE) == ["25"]
        and "1 series, 1 density." in text
    )


def test_the_shares_of_figure_3_are_those_compared_where_values_did_not_converge_too(tmp_path):
    values = np.array([[9.0, -8, 7, -6, 5], [10.0, 4, 3, -2, 1], [7.0, -6, -5, -4, -3]])
    converged = [np.full(5, True), np.full(5, True), np.array([True, True, False, True, True])]
    store = write_store(
        tmp_path / "a.h5", {("vit", 0): values}, changes={("vit", 0): {"converged": converged}}
    )
    for keep in (False, True):
        with SpectrumStore.open(store) as opened:
            (sample,) = eigenvalue_samples(opened)
        nep = (
            summarize_stores([store], metrics=["nep"], keep_unconverged=keep, num_resamples=99)
            .summary("vit", 0, "nep")
            .value
        )
        assert (
            sample.negative_share(keep_unconverged=keep)
            == pytest.approx(nep)
            == pytest.approx(7 / 15 if keep else 3 / 10)
        )
