"""A store as an xarray.Dataset: every number in its place, gaps, units, and what happens without
xarray.
"""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from landscape.errors import MissingDependencyError, StoreError
from landscape.store import UNIT, SpectrumStore, SpectrumWriter
from landscape.store.record import COLUMNS
from landscape.store.xarray import VARIABLES
from tests.helpers.comparison_stores import K, write_store
from tests.helpers.folders import ROOT
from tests.helpers.store_records import manifest_of, record_of

xarray = pytest.importorskip("xarray")
PAGE = ROOT / "docs" / "xarray.md"


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Two series of which one lacks an epoch, and one lacks a batch; Ritz values of lengths that
    vary.
    """
    folder = tmp_path_factory.mktemp("study")
    manifest = manifest_of(folder, series=("wide", "narrow"), epochs=(0, 2), num_batches=4)
    keys = [f"wide/{epoch}/{batch}" for epoch in (0, 2) for batch in range(4)] + [
        f"narrow/2/{batch}" for batch in (0, 2, 3)
    ]
    records = [record_of(key) for key in keys]
    with SpectrumWriter(folder / "spectra.h5", manifest) as writer:
        for record in records:
            writer.add(record)
        writer.merge()
    return folder / "spectra.h5", records


def test_every_number_of_every_record_stands_at_its_coordinates(stored):
    path, records = stored
    dataset = SpectrumStore.open(path).to_xarray()
    assert (
        dict(dataset.sizes)["series"] == 2
        and tuple(dataset.epoch.values) == (0, 2)
        and dataset.sizes["batch"] == 4
    )
    for record in records:
        at = dataset.sel(series=record.series, epoch=record.epoch, batch=record.batch)
        np.testing.assert_array_equal(at.eigenvalues, record.values)
        np.testing.assert_array_equal(at.converged, record.converged.astype(float))
        np.testing.assert_array_equal(at.smallest_residuals, record.smallest_residuals)
        m = len(record.ritz_values)
        np.testing.assert_array_equal(at.ritz_values[:m], record.ritz_values)
        assert np.isnan(at.ritz_weights[m:]).all() and at.ritz_weights[:m].sum() == pytest.approx(1)
        assert float(at.loss) == record.loss and int(at.num_negative) == record.num_negative
        assert str(at.batch_sha256.values) == record.batch_sha256


def test_what_was_not_measured_is_nan_and_has_no_digest(stored):
    dataset = SpectrumStore.open(stored[0]).to_xarray()
    gap = dataset.sel(series="narrow", epoch=0)
    assert all(np.isnan(gap[name]).all() for name in VARIABLES)
    assert (
        set(gap.batch_sha256.values) == {""}
        and str(gap.checkpoint_sha256.values) == ""
        and np.isnan(gap.num_params)
    )
    assert (
        np.isnan(dataset.loss.sel(series="narrow", epoch=2, batch=1))
        and int(dataset.loss.notnull().sum()) == 11
    )


def test_every_column_of_the_store_is_there_with_dimensions_unit_and_meaning(stored):
    dataset = SpectrumStore.open(stored[0]).to_xarray()
    assert set(COLUMNS) - {"batch"} <= set(dataset.data_vars)
    for name, (dims, unit, _) in VARIABLES.items():
        assert dataset[name].dims == ("series", "epoch", *dims)
        assert dataset[name].attrs["units"] == unit and dataset[name].attrs["long_name"]
    assert dataset.eigenvalues.attrs["units"] == UNIT
    assert json.loads(dataset.attrs["protocol"])["data"]["batch_size"] == 15
    assert list(dataset.label.values) == ["ViT, wide", "ViT, narrow"]


def test_facts_of_the_runs_are_texts_of_json_and_coordinates_say_what_they_are(stored):
    path, records = stored
    dataset = SpectrumStore.open(path).to_xarray()
    with SpectrumStore.open(path) as store:
        table = store.records("wide", 2)
    at = dataset.sel(series="wide", epoch=2)
    for name in ("settings", "versions", "extras"):
        assert json.loads(str(at[name].values)) == getattr(table, name)
        assert str(dataset[name].sel(series="narrow", epoch=0).values) == ""
    assert "torch" in json.loads(str(at.versions.values)) and int(at.num_planned) == 4
    for name in dataset.coords:
        assert dataset[name].attrs["long_name"]
        assert ("units" in dataset[name].attrs) == (dataset[name].dtype.kind in "if")


def test_the_page_about_it_lists_every_variable_with_its_dimensions_unit_and_meaning(stored):
    dataset = SpectrumStore.open(stored[0]).to_xarray()
    rows = [
        re.split(r"(?<!\\)\|", line)
        for line in PAGE.read_text().splitlines()
        if line.startswith("| `")
    ]
    described = {
        row[1].strip(" `"): [cell.strip().replace("\\|", "|") for cell in row[2:5]] for row in rows
    }
    assert len(rows) == len(described) and set(described) == set(map(str, dataset.variables))
    for name, (dims, unit, meaning) in described.items():
        variable = dataset[name]
        assert dims == ", ".join(map(str, variable.dims)) and unit == variable.attrs.get(
            "units", ""
        ), name
        assert meaning == variable.attrs["long_name"], name


def test_a_bound_that_a_method_does_not_give_is_nan_and_not_minus_one(tmp_path):
    path = write_store(
        tmp_path / "a.h5", {("vit", 0): np.ones((2, K))}, changes={("vit", 0): {"num_negative": -1}}
    )
    assert np.isnan(SpectrumStore.open(path).to_xarray().num_negative).all()


def test_the_dataset_survives_a_round_trip_through_pandas(stored):
    dataset = SpectrumStore.open(stored[0]).to_xarray()
    frame = dataset[["eigenvalues"]].to_dataframe().dropna()
    assert len(frame) == 11 * 3
    assert frame.loc[("wide", 2, 1, 0), "eigenvalues"] == record_of("wide/2/1").values[0]


def test_an_empty_store_says_so(tmp_path):
    with SpectrumWriter(tmp_path / "a.h5", manifest_of(tmp_path)):
        with pytest.raises(StoreError, match="no eigenvalues yet"):
            SpectrumStore.open(tmp_path / "a.h5").to_xarray()


def test_without_xarray_the_package_to_install_is_named(stored, monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(MissingDependencyError, match="pip install xarray"):
        SpectrumStore.open(stored[0]).to_xarray()


def test_a_store_is_opened_without_importing_xarray_or_torch():
    code = (
        "import sys, landscape.store; sys.exit(bool({'xarray', 'torch', 'scipy'} & "
        "set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
