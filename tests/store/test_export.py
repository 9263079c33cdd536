"""`landscape export`: the table read back by pandas holds the numbers of the file, bit for bit."""

import importlib.util
import re
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from packaging.version import Version

import landscape
from landscape.cli import main
from landscape.store import SpectrumWriter
from tests.helpers.store_records import manifest_of
from tests.monitor.test_monitor_record import measured, written
from tests.store.test_store_specification import write_all

# Since pandas 3.1 this is the default.
EXACT = {} if Version(pd.__version__) >= Version("3.1") else {"float_precision": "round_trip"}
PAGE = (Path(landscape.__file__).parents[1] / "docs" / "export.md").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("files"))


def run(*arguments: object, exit_code: int = 0) -> str:
    result = CliRunner().invoke(main, ["export", *map(str, arguments)])
    assert result.exit_code == exit_code, result.output
    return result.output


def table_of(path: Path, tmp_path: Path, *arguments: str) -> pd.DataFrame:
    run(path, "-o", tmp_path / "t.csv", *arguments)
    return pd.read_csv(tmp_path / "t.csv", dtype={"condition": str}, **EXACT)


def checkpoints(path: Path, group: str) -> list[tuple[str, int, dict]]:
    """The datasets of every checkpoint, and its label."""
    with h5py.File(path) as file:
        return [
            (
                series,
                int(epoch),
                {"label": place.attrs["label"]} | {name: held[()] for name, held in place.items()},
            )
            for series, epochs in file[group].items()
            for epoch, place in epochs.items()
        ]


def same_bits(column: pd.Series, expected: np.ndarray) -> bool:
    """Whether the numbers are equal, and missing where the file has NaN."""
    return np.array_equal(
        column.to_numpy(dtype=np.float64), expected.ravel().astype(np.float64), equal_nan=True
    )


@pytest.mark.parametrize(
    ("column", "dataset"),
    [
        ("eigenvalue", "eigenvalues"),
        ("residual", "residuals"),
        ("converged", "converged"),
        ("value_bound", "value_bounds"),
        ("smallest", "smallest"),
        ("largest_residual", "largest_residuals"),
    ],
)
def test_a_row_per_eigenvalue_holds_the_bits_of_the_store(folder, tmp_path, column, dataset):
    table = table_of(folder / "spectra.h5", tmp_path)
    stored = checkpoints(folder / "spectra.h5", "spectra")
    assert len(stored) == 4
    for series, epoch, group in stored:
        rows = table[(table.series == series) & (table.epoch == epoch)]
        assert same_bits(rows[column], group[dataset])
        assert rows["rank"].tolist() == [0, 1, 2] * len(group["batch"])
        assert rows.label.unique().tolist() == [group["label"]]


@pytest.mark.parametrize("table", ["eigenvalues", "batches"])
@pytest.mark.parametrize("name", ["batch", "loss", "num_matvecs", "num_negative", "seconds"])
def test_numbers_of_a_batch_are_repeated_for_its_rows(folder, tmp_path, table, name):
    frame = table_of(folder / "spectra.h5", tmp_path, "--table", table)
    for series, epoch, group in checkpoints(folder / "spectra.h5", "spectra"):
        rows = frame[(frame.series == series) & (frame.epoch == epoch)]
        column = group[name].astype(np.float64)
        if name == "num_negative":
            column[column < 0] = np.nan
        assert same_bits(rows[name], np.repeat(column, 3 if table == "eigenvalues" else 1))


def test_a_row_per_batch_has_a_column_per_eigenvalue(folder, tmp_path):
    frame = table_of(folder / "spectra.h5", tmp_path, "--table", "batches")
    for series, epoch, group in checkpoints(folder / "spectra.h5", "spectra"):
        rows = frame[(frame.series == series) & (frame.epoch == epoch)]
        wide = rows[["eigenvalue_0", "eigenvalue_1", "eigenvalue_2"]].to_numpy()
        assert np.array_equal(wide, group["eigenvalues"])
        assert rows.batch_sha256.tolist() == [text.decode() for text in group["batch_sha256"]]


def test_quadratures_leave_padding_out(folder, tmp_path):
    frame = table_of(folder / "spectra.h5", tmp_path, "--table", "quadratures")
    total = 0
    for series, epoch, group in checkpoints(folder / "spectra.h5", "spectra"):
        nodes, weights = group["ritz_values"], group["ritz_weights"]
        rows = frame[(frame.series == series) & (frame.epoch == epoch)]
        assert same_bits(rows.ritz_value, nodes[~np.isnan(nodes)])
        assert same_bits(rows.ritz_weight, weights[~np.isnan(nodes)])
        total += np.count_nonzero(~np.isnan(nodes))
    assert len(frame) == total


def test_modules_are_rows_by_name(folder, tmp_path):
    frame = table_of(folder / "spectra.h5", tmp_path, "--table", "modules")
    for series, epoch, group in checkpoints(folder / "spectra.h5", "modules"):
        values, names = group["eigenvalues"], [text.decode() for text in group["modules"]]
        for index, name in enumerate(names):
            rows = frame[(frame.series == series) & (frame.epoch == epoch) & (frame.module == name)]
            block = values[:, index]
            assert same_bits(rows.eigenvalue, block[~np.isnan(block)])
            assert set(rows.module_params) == {group["module_params"][index]}


def test_densities_surfaces_and_answers_are_tables_too(folder, tmp_path):
    nodes = table_of(folder / "densities.h5", tmp_path)
    # The probes of test_damage.density: two nodes, and one.
    assert nodes[["probe", "node", "weight"]].values.tolist() == [
        [0, 1.0, 0.5],
        [0, 2.0, 0.5],
        [1, 1.0, 1.0],
    ]
    points = table_of(folder / "surface.h5", tmp_path)
    with h5py.File(folder / "surface.h5") as file:
        computed = file["computed"][()].astype(bool)
        assert same_bits(points.loss, file["losses"][()][computed])
    answers = table_of(folder / "predictions.h5", tmp_path)
    with h5py.File(folder / "predictions.h5") as file:
        done = sum(
            int(group["done"][()].sum())
            for series in file["predictions"].values()
            for epoch in series.values()
            for group in epoch.values()
        )
    assert len(answers) == done > 0
    told = answers[answers.answer.notna()]
    assert (told.correct == (told["class"] == told.answer)).all()


def test_series_and_epochs_choose_checkpoints(folder, tmp_path):
    frame = table_of(folder / "spectra.h5", tmp_path, "--series", "wide", "--epochs", "2")
    assert set(zip(frame.series, frame.epoch)) == {("wide", 2)}


def test_every_column_is_documented(folder, tmp_path):
    known = set(re.findall("`([a-z_0-9]+)`", PAGE.partition("## Columns")[2]))
    columns = set()
    for name in ("spectra.h5", "densities.h5", "surface.h5", "predictions.h5"):
        columns |= set(table_of(folder / name, tmp_path).columns)
    for table in ("quadratures", "modules"):
        columns |= set(table_of(folder / "spectra.h5", tmp_path, "--table", table).columns)
    assert columns <= known
    assert known - columns <= {"label", "coordinate_1"}


def test_parquet_holds_the_same_table(folder, tmp_path):
    pytest.importorskip("pyarrow")
    run(folder / "spectra.h5", "-o", tmp_path / "t.parquet")
    binary = pd.read_parquet(tmp_path / "t.parquet")
    text = table_of(folder / "spectra.h5", tmp_path)
    assert binary.columns.tolist() == text.columns.tolist()
    for name in text:
        if text[name].dtype.kind == "f":
            assert same_bits(binary[name].astype("Float64").fillna(np.nan), text[name].to_numpy())
        else:
            assert binary[name].tolist() == text[name].tolist()


def test_parquet_without_pyarrow_names_the_command(folder, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "pyarrow" else find(name)
    )
    said = run(folder / "spectra.h5", "-o", tmp_path / "t.parquet", exit_code=2)
    assert "pip install pyarrow" in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_what_has_no_table_is_refused_in_one_line_and_nothing_is_written(folder, tmp_path):
    written(tmp_path / "m.jsonl", [measured(0)])
    output = tmp_path / "out" / "t.csv"
    for arguments, words in (
        ((tmp_path / "m.jsonl", "-o", output), "is the record of a monitor"),
        ((tmp_path / "none.h5", "-o", output), "no such file"),
        ((folder / "spectra.h5", "-o", output.with_suffix(".xlsx")), ".csv, .parquet"),
        ((folder / "spectra.h5", "-o", output, "--table", "points"), "it has eigenvalues"),
        ((folder / "spectra.h5", "-o", output, "--epochs", "7"), "stored are [0, 2]"),
        ((folder / "spectra.h5", "-o", output, "--series", "wid"), "did you mean 'wide'?"),
        ((folder / "surface.h5", "-o", output, "--epochs", "0"), "leave them out"),
    ):
        said = run(*arguments, exit_code=2)
        assert words in said and said.count("\n") == 1, said
        assert not output.parent.exists()


def test_a_run_before_its_first_record_has_no_table(tmp_path):
    with SpectrumWriter(tmp_path / "empty.h5", manifest_of(tmp_path)):
        assert "nothing to write" in run(
            tmp_path / "empty.h5", "-o", tmp_path / "t.csv", exit_code=2
        )
    assert not (tmp_path / "t.csv").exists()


def test_a_picture_whose_name_is_not_utf_8_is_written_as_json_writes_it(folder, tmp_path):
    from landscape.store.frames import _printable

    name = b"catA/p\xe9.png".decode("utf-8", "surrogateescape")
    assert _printable(name) == r"catA/p\udce9.png" and _printable("été.png") == "été.png"
