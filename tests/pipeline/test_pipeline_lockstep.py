"""`landscape spectra` with the batches of a unit in lockstep, switched on for a CPU, against one by
one.
"""

from dataclasses import replace

import numpy as np
import pytest

from landscape import pipeline
from landscape.curvature.hvp import lockstep as curvature_lockstep
from landscape.errors import PictureError
from landscape.manifest import Manifest
from landscape.pipeline import lockstep
from landscape.pipeline.modules import ModuleMeasurement
from landscape.pipeline.preparation import PreparedSeries
from landscape.pipeline.solve import SolverSettings
from landscape.pipeline.spectra import SpectraMeasurement
from landscape.store import SpectrumStore
from landscape.workers.dispatch import _Plan, dispatch
from landscape.workers.pools import InlinePool
from tests.helpers.spectra_study import make_study

pytestmark = pytest.mark.timeout(300)

PATTERNS = ["visual.proj", "visual.ln_post.*", "logit_scale"]
COLUMNS = [
    "eigenvalues",
    "residuals",
    "smallest",
    "smallest_residuals",
    "largest",
    "largest_residuals",
    "value_bounds",
    "missed_distance",
    "missed_probability",
]
SAME = [
    "keys",
    "converged",
    "num_matvecs",
    "loss",
    "num_params",
    "num_unused",
    "num_negative",
    "num_positive",
    "batch_sha256",
]


@pytest.fixture
def lots(monkeypatch):
    """Switch lockstep on, in units of all batches of a checkpoint, and tell which lots were
    solved.
    """
    sizes, solve = [], curvature_lockstep.solve_in_lockstep

    def solved(operators, work):
        sizes.append(len(operators))
        return solve(operators, work)

    monkeypatch.setattr(lockstep, "DEVICES", {"cpu"})
    monkeypatch.setattr(_Plan, "_size", lambda self: 3)
    monkeypatch.setattr(curvature_lockstep, "solve_in_lockstep", solved)
    return sizes


def measure(study, output, **options):
    products = pipeline.HvpSettings(hvp="traced")
    return pipeline.run(
        Manifest.load(study),
        output,
        device="cpu",
        products=products,
        unaudited=True,
        progress=False,
        **options,
    )


def records(output):
    with SpectrumStore.open(output) as store:
        return {epoch: store.records("one", epoch) for epoch in store.epochs("one")}


def test_records_are_those_of_one_by_one(tmp_path, lots, monkeypatch):
    study = make_study(
        tmp_path, epochs=(0, 1), names=("one",), parameters=PATTERNS, tol=1e-6, dtype="float64"
    )
    assert measure(study, tmp_path / "together.h5").num_measured == 6
    assert lots == [3, 3]
    monkeypatch.setattr(lockstep, "DEVICES", set())
    assert measure(study, tmp_path / "alone.h5").num_measured == 6
    together, alone = records(tmp_path / "together.h5"), records(tmp_path / "alone.h5")
    assert together.keys() == alone.keys() == {0, 1}
    for epoch, table in together.items():
        expected = alone[epoch]
        for name in SAME:
            assert np.array_equal(getattr(table, name), getattr(expected, name)), name
        for name in COLUMNS:
            # Rounding of other orders of sums, of a few units of the largest eigenvalue.
            size = 1e-12 * np.abs(expected.eigenvalues).max()
            np.testing.assert_allclose(
                getattr(table, name), getattr(expected, name), rtol=1e-9, atol=size, err_msg=name
            )
        assert table.extras == expected.extras
        choice, other = (one.settings.pop("product_choice") for one in (table, expected))
        assert table.settings == expected.settings
        # The same but for how long it took, and no note that lockstep failed.
        assert (
            [trial["product"] for trial in choice["trials"]]
            == [trial["product"] for trial in other["trials"]]
            == ["traced"]
        )


def test_vectors_are_kept_of_batches_in_lockstep_too(tmp_path, lots, monkeypatch):
    study = make_study(
        tmp_path, epochs=(0,), names=("one",), parameters=PATTERNS, tol=1e-6, dtype="float64"
    )
    kept = {}
    for name in ("together.h5", "alone.h5"):
        assert measure(study, tmp_path / name, keep_vectors=True).num_measured == 3
        with SpectrumStore.open(tmp_path / name) as store:
            kept[name] = {
                vectors.key: vectors.read(0, vectors.n)
                for vectors in store.vectors.sources(store.vectors.keys())
            }
        monkeypatch.setattr(lockstep, "DEVICES", set())
    assert lots == [3] and len(kept["together.h5"]) == 3
    for key, vectors in kept["together.h5"].items():
        cosines = np.abs((vectors * kept["alone.h5"][key]).sum(axis=1))
        # Both are rounded to half precision, and have unit length to 3e-4.
        np.testing.assert_allclose(cosines, 1, atol=1e-3)


def test_a_bad_batch_costs_itself_alone(tmp_path, lots, monkeypatch):
    from landscape.clip.loaded_series import LoadedSeries

    study = make_study(tmp_path, epochs=(0,), names=("one",), parameters=PATTERNS, dtype="float64")
    batch = LoadedSeries.batch

    def read(self, index):
        if index == 0:
            raise PictureError("2.png: is no picture")
        return batch(self, index)

    monkeypatch.setattr(LoadedSeries, "batch", read)
    report = measure(study, tmp_path / "spectra.h5")
    assert report.num_measured == 2 and lots == [2]
    assert len(report.failures) == 1 and "batch 0: 2.png" in report.failures[0]
    monkeypatch.setattr(lockstep, "DEVICES", set())
    measure(study, tmp_path / "alone.h5")
    table, expected = records(tmp_path / "spectra.h5")[0], records(tmp_path / "alone.h5")[0]
    # Each began at the random vector of its own number.
    np.testing.assert_allclose(table.ritz_weights, expected.ritz_weights, atol=1e-8)


def test_what_raises_in_a_solve_is_the_failure_of_its_batch():
    class Alone:
        """No operator of a traced graph, so that each is solved by itself."""

    def solve(index, operator):
        if index == 2:
            raise MemoryError("no room")
        return index

    def record(index, pairs, operator, seconds):
        assert pairs == index and seconds >= 0
        return f"record {index}"

    results = lockstep.measure_in_lockstep(
        [3, 2, 1],
        operator=lambda index: Alone(),
        solve=solve,
        record=record,
        num_vectors=10,
        contained=True,
    )
    assert results[0] == "record 3" and results[1].reason == "no room" and results[2] == "record 1"


def test_units_are_of_several_batches_where_they_gain_from_each_other(tmp_path):
    study = Manifest.load(make_study(tmp_path, epochs=(0,), names=("one",)))
    traced, retained = {"product": "traced"}, {"product": "retained"}
    measurement = SpectraMeasurement(manifest=study, output=tmp_path / "spectra.h5")
    on_gpu = PreparedSeries(choice=traced, num_gpus=1)
    assert measurement.unit_seconds(on_gpu) == lockstep.UNIT_SECONDS
    assert measurement.unit_seconds(PreparedSeries(choice=traced)) == 0
    assert measurement.unit_seconds(PreparedSeries(choice=retained, num_gpus=1)) == 0
    assert replace(measurement, solver=SolverSettings(recycle=True)).unit_seconds(on_gpu) == 0
    assert (
        ModuleMeasurement(manifest=study, output=tmp_path / "spectra.h5").unit_seconds(on_gpu) == 0
    )

    def units(**options):
        return [
            len(done.items)
            for done in dispatch(
                {"task": range(20)}, InlinePool(), lambda task, items: items, **options
            )
        ]

    assert units() == [1] * 20
    assert (
        units(unit_seconds=1e6)[:3] == [1, 9, 5]
        and max(units(unit_seconds=1e6, largest_unit=4)) == 4
    )
