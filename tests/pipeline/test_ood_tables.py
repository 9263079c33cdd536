"""The table of Figure 1 in every format: numbers, intervals, missing sets, and files."""

import csv
import io
import json
import re

import pytest

from landscape.answers import (
    HUMANS,
    SEVENTEEN,
    SIXTEEN,
    Answers,
    model_table,
    read_answers,
    resample,
    score,
)
from landscape.errors import AnswersError, StoreError
from landscape.pipeline.ood_tables import (
    COLUMNS,
    ood_table,
    rows,
    to_csv,
    to_json,
    to_latex,
    to_terminal,
    write,
)
from landscape.statistics import Bootstrap
from tests.helpers.folders import SHARED
from tests.helpers.random_answers import made_up

FEW = Bootstrap(num_resamples=99)
METRICS = (
    "ood_accuracy_17",
    "ood_accuracy_16",
    "accuracy_difference",
    "observed_consistency",
    "error_consistency",
)
HUMAN = SHARED / "human"


@pytest.fixture(scope="module")
def answers():
    return made_up(datasets=SEVENTEEN)


@pytest.fixture(scope="module")
def resamples(answers):
    return resample(answers, FEW)


@pytest.fixture(scope="module")
def table(answers, resamples):
    return ood_table(answers, resamples=resamples)


@pytest.fixture(scope="module")
def partial():
    answers = made_up(drop=[("net", "edge")])
    return ood_table(answers, resamples=resample(answers, FEW))


def test_the_columns_are_the_benchmarks_means_with_the_bootstraps_intervals(
    answers, resamples, table
):
    expected = model_table(score(answers)).set_index("model")
    found = {row["model"]: row for row in rows(table)}
    assert list(found) == ["net", "other", HUMANS] and [row["kind"] for row in found.values()] == [
        "model",
        "model",
        "human",
    ]
    for name, row in found.items():
        assert tuple(row) == COLUMNS and row["missing"] == ""
        for column in (*METRICS, "shape_bias"):
            assert row[column] == pytest.approx(expected.loc[name, column], rel=1e-12)
        interval = resamples.interval(name, "accuracy", SIXTEEN)
        assert (row["ood_accuracy_16_low"], row["ood_accuracy_16_high"]) == (
            interval.low,
            interval.high,
        )
        interval = resamples.interval(name, "shape_bias")
        assert (row["shape_bias_low"], row["shape_bias_high"]) == (interval.low, interval.high)
        assert [row[f"{column}_sets"] for column in METRICS] == [17, 16, 17, 17, 17] and row[
            "shape_bias_sets"
        ] == 1


def test_csv_and_json_hold_the_same_rows(table):
    read = list(csv.DictReader(io.StringIO(to_csv(table))))
    content = json.loads(to_json(table))
    assert (
        content["rows"] == rows(table)
        and content["confidence"] == 0.95
        and content["notes"] == table.notes
    )
    for text, row in zip(read, rows(table), strict=True):
        for column in METRICS:
            assert float(text[column]) == row[column]


def test_means_over_fewer_sets_say_so_and_name_the_missing_ones(partial):
    net, other, people = rows(partial)
    assert (
        net["ood_accuracy_16_sets"] == 1
        and other["ood_accuracy_16_sets"] == people["ood_accuracy_16_sets"] == 2
    )
    assert "edge" in net["missing"].split(", ") and "edge" not in other["missing"].split(", ")
    assert len(other["missing"].split(", ")) == 14
    text = to_terminal(partial, width=120)
    assert (
        text.count("(2 of 17)") == 4
        and text.count("(3 of 17)") == 8
        and text.count("(2 of 16)") == 2
    )
    flat = " ".join(text.split())
    assert (
        "Not in the means of net: colour," in flat
        and "Not in the means of other, people: colour," in flat
    )


def test_what_is_unknown_is_empty():
    alone = made_up(people=(), datasets=("edge",))
    table = ood_table(alone, resamples=resample(alone, FEW))
    [net, _] = rows(table)
    assert (
        net["error_consistency"] is None
        and net["shape_bias"] is None
        and net["ood_accuracy_17"] is not None
    )
    assert net["error_consistency_sets"] == net["shape_bias_sets"] == 0
    assert next(csv.DictReader(io.StringIO(to_csv(table))))["error_consistency"] == ""
    assert "nan" not in (to_terminal(table) + to_json(table) + to_latex(table)).lower()
    assert not any("people" in note for note in table.notes)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_terminal_table_fits_and_keeps_intervals_whole(table, width):
    lines = to_terminal(table, width=width).splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    # 18 numbers, each with its interval.
    assert len(re.findall(r"\[-?\.\d{3}, (?:-?\.\d{3}|1\.000)\]", text)) == 18
    assert text.index(" net ") < text.index(" people ")


def test_numbers_are_written_with_three_decimals(table):
    value = table.rows[0].cells["ood_accuracy_17"].interval.value
    assert f" {value:.3f} ".replace(" 0.", " .") in to_terminal(table, width=400)


def test_latex_is_one_tabular_with_a_row_per_observer(table):
    text = to_latex(ood_table(made_up(datasets=("edge",)), labels={"net": "a_b & c"}))
    assert text.count(r"\begin{tabular}{lrrrrrr}") == 1 and r"a\_b \& c &" in text
    body = [line for line in to_latex(table).splitlines() if line.endswith(r"\\")]
    assert len(body) == 4 and all(line.count(" & ") == 6 for line in body)


def test_labels_stand_for_names(answers, resamples):
    table = ood_table(answers, resamples=resamples, labels={"net": "Simba", HUMANS: "observers"})
    assert [row["label"] for row in rows(table)] == ["Simba", "other", "observers"]
    assert "Simba" in to_terminal(table) and "people" not in {row.label for row in table.rows}


def test_files_get_the_format_of_their_suffix(table, tmp_path):
    for suffix, text in (
        (".csv", to_csv(table)),
        (".json", to_json(table)),
        (".tex", to_latex(table)),
    ):
        path = tmp_path / "new" / f"table{suffix}"
        assert write(table, path) == f"{path}: 3 rows." and path.read_text() == text
    assert write(table, kind="csv") == to_csv(table).rstrip()
    assert write(table) == to_terminal(table)
    with pytest.raises(StoreError, match="must be one of"):
        write(table, tmp_path / "table.xlsx")
    with pytest.raises(StoreError, match="--format says csv"):
        write(table, tmp_path / "table.json", kind="csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        write(table, tmp_path / "file" / "table.csv")


def test_no_answers_are_refused(answers):
    with pytest.raises(AnswersError, match="there is no answer"):
        ood_table(Answers(answers.table.iloc[:0]))


@pytest.mark.skipif(
    not (HUMAN / "models.csv.gz").exists(), reason="the benchmark's answers are not here"
)
def test_the_leaderboard_is_printed_as_published():
    answers = read_answers([HUMAN / "human.csv.gz", HUMAN / "models.csv.gz"])
    table = ood_table(answers, resamples=resample(answers, FEW))
    printed = {row[1]: row[2:] for row in csv.reader(io.StringIO(to_csv(table)))}
    at = {name: COLUMNS.index(name) - 2 for name in METRICS}
    # The toolbox's README.
    published = {
        "resnet50": (0.559, 0.087, 0.665, 0.208),
        "simclr-resnet50x1": (0.596, 0.080, 0.667, 0.179),
    }
    published["bagnet33"] = (0.398, 0.156, 0.567, 0.137)
    for model, numbers in published.items():
        ours = [float(printed[model][at[name]]) for name in ("ood_accuracy_17", *METRICS[2:])]
        assert [f"{value:.3f}" for value in ours] == [f"{value:.3f}" for value in numbers]
    assert f"{float(printed['people'][COLUMNS.index('shape_bias') - 2]):.4f}" == "0.9587"
    assert max(map(len, to_terminal(table, width=120).splitlines())) <= 120
