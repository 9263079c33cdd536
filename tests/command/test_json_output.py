"""What `--json` prints is one valid document with the keys of docs/json.md, and nothing else."""

import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from click.testing import CliRunner

import landscape
from landscape.cli import main
from landscape.curvature.audits import AuditReport, AuditRow
from landscape.json_text import json_text
from landscape.pipeline.audit import Audited
from landscape.store import SpectrumStore
from tests.helpers.comparison_stores import write_study
from tests.monitor.test_monitor_record import measured, written
from tests.store.test_damage import density
from tests.store.test_export import EXACT
from tests.store.test_store_specification import write_all

ROOT = Path(landscape.__file__).parents[1]
PAGE = (ROOT / "docs" / "json.md").read_text()
ANSWERS = ROOT / "experiments" / "accuracy" / "small" / "zeroshot.h5"
EVERY = {"kind", "file", "description"}


def documented(row: str) -> set[str]:
    """The keys of a row of a table of docs/json.md."""
    cells = re.search(rf"^\| {re.escape(row)} \| (.*) \|$", PAGE, re.M)[1]
    return set(re.findall("`([a-z_0-9]+)`", re.sub(r" \(`\w+`\)|, as in .*", "", cells)))


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def document_of(*arguments: object, exit_code: int = 0) -> dict:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout, parse_constant=refuse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_all(tmp_path_factory.mktemp("files"))
    written(folder / "monitor.jsonl", [measured(0), measured(5)])
    torch.save({"epoch": 1, "name": "a", "state_dict": {"w": torch.ones(3)}}, folder / "c.pt")
    series = {"name": "a", "model": "vit_tiny_64", "checkpoints": [{"epoch": 1, "path": "c.pt"}]}
    document = {
        "version": 1,
        "epoch_zero": "optional",
        "data": {"source": "openmoji", "image_size": 64, "num_samples": 8, "batch_size": 4},
        "hessian": {"objective": "contrastive", "k": 2},
        "series": [series],
    }
    (folder / "m.yaml").write_text(yaml.safe_dump(document))
    return folder


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("spectra.h5", "store"),
        ("densities.h5", "densities"),
        ("surface.h5", "surface"),
        ("predictions.h5", "predictions"),
        ("monitor.jsonl", "monitor"),
        ("m.yaml", "manifest"),
        ("c.pt", "checkpoint"),
    ],
)
def test_info_prints_the_documented_keys_of_every_kind_of_file(folder, name, kind):
    document = document_of("info", folder / name, "--json")
    assert document["kind"] == kind and document["file"] == str(folder / name)
    assert set(document) == EVERY | documented(f"`{kind}`")
    plain = CliRunner().invoke(main, ["info", str(folder / name)]).stdout
    assert document["description"] == plain.splitlines()


def test_the_numbers_of_a_store_are_those_of_its_datasets(folder):
    document = document_of("info", folder / "spectra.h5", "--json")
    with SpectrumStore.open(folder / "spectra.h5") as store:
        tables = {(row["series"], row["epoch"]): row for row in document["checkpoints"]}
        assert set(tables) == set(store.identities)
        for key, row in tables.items():
            table = store.records(*key)
            assert set(row) == documented("checkpoint of a store")
            assert row["largest"] == table.eigenvalues.max()
            assert row["num_not_converged"] == int((~table.converged).sum())


def test_densities_have_estimates_with_all_errors(folder):
    document = document_of("info", folder / "densities.h5", "--json")
    (row,) = document["checkpoints"]
    assert set(row) == documented("checkpoint of densities")
    # The nodes of one probe are 1 and 2, of the other 1: means 1.5 and 1; the exact part adds 3.
    record = density()
    by_hand = np.nansum(record.nodes * record.weights, axis=1).mean() * (record.n - 1) + 3
    assert row["estimates"]["trace"]["value"] == pytest.approx(by_hand, rel=1e-12)
    assert set(row["estimates"]["trace"]) >= {"value", "standard_error", "low", "high", "is_known"}


@pytest.mark.parametrize("change", [False, True])
def test_a_validation_is_a_document_too_and_keeps_its_exit_status(folder, tmp_path, change):
    path = tmp_path / "spectra.h5"
    path.write_bytes((folder / "spectra.h5").read_bytes())
    if change:
        import h5py

        with h5py.File(path, "r+") as file:
            file.attrs["surplus"] = 1
    document = document_of("info", path, "--validate", "--json", exit_code=int(change))
    assert document["conforms"] is not change and len(document["deviations"]) == change
    assert all(f"`{key}`" in PAGE for key in document)


def test_compare_json_is_format_json(tmp_path):
    study = write_study(tmp_path / "spectra.h5", epochs=(0,))
    arguments = ("compare", study, "--resamples", "99")
    document = document_of(*arguments, "--json")
    assert document == document_of(*arguments, "--format", "json")
    assert set(document) == documented("spectra")
    result = CliRunner().invoke(main, [*map(str, arguments), "--json", "--format", "csv"])
    assert result.exit_code == 2 and "leave one out" in result.stderr
    answers = document_of("compare", ANSWERS, "--json", "--resamples", "99")
    assert set(answers) == documented("accuracies")


@pytest.mark.parametrize("verdict", ["passed", "failed"])
def test_an_audit_prints_its_rows_and_keeps_its_exit_status(monkeypatch, verdict):
    row = AuditRow("the whole loss", "product", math.nan, verdict, "why")
    report = AuditReport((row,), torch.float32, 3, 4)
    result = Audited("a (m), epoch 5", report, "m", series="a", epoch=5)
    monkeypatch.setattr("landscape.pipeline.audit_target", lambda *_, **__: iter([result]))
    document = document_of("audit", "m.yaml", "--json", exit_code=int(verdict == "failed"))
    assert set(document) == documented("the document")
    assert document["passed"] is (verdict == "passed")
    (audit,) = document["audits"]
    assert set(audit) == documented("an audit")
    (test,) = audit["tests"]
    assert set(test) == documented("a test") and test["error"] is None


def test_wrong_input_prints_no_document(tmp_path):
    result = CliRunner().invoke(main, ["info", str(tmp_path / "nothing.h5"), "--json"])
    assert result.exit_code == 2 and result.stdout == "" and result.stderr.count("\n") == 1


def test_values_that_json_lacks_become_null_or_text():
    value = {
        1: [math.inf, -math.inf, math.nan, 0.1],
        "array": np.array([[1.5, np.nan]]),
        "scalar": np.float32(0.5),
        "flag": np.bool_(True),
        "path": Path("a/b"),
    }
    assert json.loads(json_text(value), parse_constant=refuse) == {
        "1": [None, None, None, 0.1],
        "array": [[1.5, None]],
        "scalar": 0.5,
        "flag": True,
        "path": "a/b",
    }


STORE = ROOT / "experiments" / "figure3" / "small" / "spectra.h5"


@pytest.fixture(scope="module")
def density_json(tmp_path_factory):
    figure = tmp_path_factory.mktemp("figure") / "d.svg"
    return document_of("density", STORE, "-o", figure, "--epochs", "25", "--json")


def test_density_prints_the_documented_keys(density_json):
    assert set(density_json) == documented("a density document")
    assert [row["series"] for row in density_json["checkpoints"]] == ["vit", "vmamba", "simba"]
    for row in density_json["checkpoints"]:
        assert set(row) == documented("a checkpoint of it")


def test_the_csv_of_a_density_has_the_numbers_of_its_json(density_json, tmp_path):
    arguments = ("density", STORE, "-o", tmp_path / "d.svg", "--epochs", "25", "--format", "csv")
    result = CliRunner().invoke(main, [*map(str, arguments)])
    table = pd.read_csv(io.StringIO(result.stdout), **EXACT)
    assert "3 densities" in result.stderr and len(table) == 18
    for row in density_json["checkpoints"]:
        of_row = table[table.series == row["series"]].set_index("quantity")
        for quantity, numbers in row["estimates"].items():
            assert of_row.loc[quantity, list(numbers)].tolist() == list(numbers.values())
        assert set(of_row.least_num_negative) == {row["least_num_negative"]}


def test_density_formats_that_contradict_are_refused(tmp_path):
    for more in (("--json", "--format", "csv"), ("--json", "--dry-run")):
        arguments = ["density", str(STORE), "-o", str(tmp_path / "d.svg"), *more]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2 and result.stdout == ""
    assert list(tmp_path.iterdir()) == []
