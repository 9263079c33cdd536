"""`landscape density`: the figure, the file behind it, and the numbers it prints, held against
dense Hessians.
"""

import os
import re
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from landscape.errors import StoreError
from landscape.figures import DensitySample, density_figure
from landscape.figures.density_layout import make_density_layout
from landscape.figures.density_records import density_sample, spectral_density
from landscape.linalg import DenseOperator, density
from landscape.manifest import Manifest
from landscape.store import (
    DensityRecord,
    StoreContents,
    parts_folder,
    read_densities,
    write_densities,
)
from landscape.store.densities import ARRAYS
from landscape.store.lock import FolderLock
from landscape.store.schema import write_file
from tests.helpers.spectra_study import NUM_BATCHES, make_study
from tests.pipeline.test_pipeline import invoke

PATTERNS = ["visual.ln_*", "visual.proj", "visual.class_embedding", "logit_scale"]
QUICK = ("--probes", "1", "--matvecs", "12")


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path, epochs=(0, 1), names=("one",), parameters=PATTERNS, dtype="float64")


def sample(series="one", epoch=0, *, values=None, dense=True, seed=0):
    values = (
        np.r_[50, 20, -10, np.random.default_rng(seed).standard_normal(60)]
        if values is None
        else values
    )
    operator = DenseOperator(torch.diag(torch.from_numpy(values)))
    found = density(operator, num_probes=1, num_matvecs=15, num_deflation=10, seed=seed)
    return DensitySample(series, f"Model {series}", epoch, found, values[None] if dense else None)


def curve(ax, label):
    (line,) = [line for line in ax.lines if line.get_label() == label]
    return np.asarray(line.get_xdata()), np.nan_to_num(np.asarray(line.get_ydata()))


def test_a_manifest_is_measured_drawn_and_stored_with_the_exact_spectrum(study, tmp_path):
    output = tmp_path / "density.svg"
    result = invoke("density", study, "-o", output, "--batches", 2, *QUICK)
    assert result.exit_code == 0, result.output
    assert "estimated" in result.stdout and "certified:" in result.stdout
    assert "at least" in result.stdout
    assert output.read_text().startswith("<?xml") and "NOT AUDITED" not in output.read_text()
    records = read_densities(tmp_path / "density.h5")
    assert [(one.series, one.epoch, one.audited) for one in records] == [
        ("one", 0, True),
        ("one", 1, True),
    ]
    for record in records:
        found = spectral_density(record)
        assert record.dense_eigenvalues.shape == (2, record.n) and found.num_operators == 2
        exact = record.dense_eigenvalues
        # The two batches are the whole here, so their spread is no error.
        trace = found.trace()
        assert abs(trace.value - exact.sum(axis=1).mean()) <= 3 * trace.probe_error + (
            trace.high - trace.low
        )
        assert (record.num_negative <= (exact < 0).sum(axis=1)).all()
        assert 0 < record.orthogonality_defect < 1e-12


def test_what_is_stored_is_not_measured_again_and_other_settings_are(study, tmp_path):
    output, target = tmp_path / "density.svg", tmp_path / "density.h5"
    dry = invoke("density", study, "-o", output, *QUICK, "--dry-run")
    assert dry.exit_code == 0 and "to measure: one epoch 1" in dry.stdout and not target.exists()
    assert (
        invoke("density", study, "-o", output, *QUICK, "--epochs", 0, "--dense-limit", 0).exit_code
        == 0
    )
    before = read_densities(target)[0]
    assert before.dense_eigenvalues.size == 0
    again = invoke("density", study, "-o", output, *QUICK, "--dense-limit", 0, "--dry-run")
    assert "0: 1 of 2" in again.stdout.replace("density.h5", "0") and "epoch 0" not in again.stdout
    bytes_before = target.read_bytes()
    assert (
        invoke("density", study, "-o", output, *QUICK, "--epochs", 0, "--dense-limit", 0).exit_code
        == 0
    )
    assert target.read_bytes() == bytes_before
    other = invoke("density", study, "-o", output, *QUICK, "--seed", 1, "--dry-run")
    assert "to measure: one epoch 0" in other.stdout
    lines = invoke("info", target).stdout
    assert "densities, schema version 1" in lines and "one epoch 0" in lines
    redrawn = invoke("density", target, "-o", tmp_path / "again.svg")
    assert redrawn.exit_code == 0 and (tmp_path / "again.svg").exists()


def test_products_are_computed_as_asked_and_to_the_same_density(study, tmp_path):
    quick = (*QUICK, "--epochs", 0, "--dense-limit", 0)
    assert invoke("density", study, "-o", tmp_path / "whole.svg", *quick).exit_code == 0
    assert (
        invoke(
            "density", study, "-o", tmp_path / "rows.svg", *quick, "--hvp", "rows", "--rows", 3
        ).exit_code
        == 0
    )
    (whole,), (rows,) = read_densities(tmp_path / "whole.h5"), read_densities(tmp_path / "rows.h5")
    # Chunks sum in another order: equal but for rounding, which differs.
    assert not np.array_equal(rows.nodes, whole.nodes)
    assert spectral_density(rows).trace().value == pytest.approx(
        spectral_density(whole).trace().value, rel=1e-9
    )
    for wrong in (("--max-memory", "10kB"), ("--hvp", "jvp", "--rows", 3)):
        result = invoke("density", study, "-o", tmp_path / "no.svg", *quick, *wrong)
        assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1, result.output
        assert not (tmp_path / "no.svg").exists() and not (tmp_path / "no.h5").exists()


@pytest.fixture
def failing(monkeypatch):
    """Makes the products of some (series, epoch, batch) NaN; lets them be again where called with
    none.
    """
    from landscape.clip.loaded_series import LoadedSeries
    from landscape.curvature import HessianOperator

    load, batch, matmat = LoadedSeries.load, LoadedSeries.batch, HessianOperator.matmat
    there, wrong = {}, set()

    def loaded(self, checkpoint):
        there["checkpoint"] = (checkpoint.path.stem.split("_")[0], checkpoint.epoch)
        return load(self, checkpoint)

    def taken(self, index):
        there["batch"] = index
        if (*there["checkpoint"], index, "unreadable") in wrong:
            raise RuntimeError("the pictures cannot be read")
        return batch(self, index)

    def multiplied(self, V):
        return matmat(self, V) * (
            float("nan") if (*there["checkpoint"], there["batch"]) in wrong else 1
        )

    def fail(*places):
        wrong.clear()
        wrong.update(places)

    monkeypatch.setattr(LoadedSeries, "load", loaded)
    monkeypatch.setattr(LoadedSeries, "batch", taken)
    monkeypatch.setattr(HessianOperator, "matmat", multiplied)
    return fail


PLAIN = (*QUICK, "--dense-limit", 0, "--unaudited")


def test_a_batch_that_fails_costs_that_batch_alone_and_the_next_run_tries_it_again(
    study, tmp_path, failing
):
    output, target = tmp_path / "density.svg", tmp_path / "density.h5"
    command = ("density", study, "-o", output, "--batches", 3, *PLAIN)
    failing(("one", 0, 1), ("one", 1, 0, "unreadable"), ("one", 1, 2))
    result = invoke(*command)
    assert result.exit_code == 1 and result.exc_info[0] is SystemExit, result.output
    assert "failed: one epoch 0 batch 1: product 1 of the operator is not finite" in result.stdout
    assert "failed: one epoch 1 batch 0: the pictures cannot be read" in result.stdout
    assert "failed: one epoch 1 batch 2: product 1" in result.stdout
    assert (
        "2 of 3 batches (1 missing)" in result.stdout
        and "1 of 3 batches (0, 2 missing)" in result.stdout
    )
    assert "2 of 3 batches (1 missing)" in invoke("info", target).stdout
    assert output.exists() and [len(one.num_zeros) for one in read_densities(target)] == [2, 1]
    dry = invoke(*command, "--dry-run")
    assert (
        dry.exit_code == 0
        and "to measure: one epoch 0" in dry.stdout
        and "to measure: one epoch 1" in dry.stdout
    )
    failing()
    result = invoke(*command)
    assert result.exit_code == 0 and "failed" not in result.stdout
    assert [len(one.num_zeros) for one in read_densities(target)] == [3, 3]
    # What is left of a failure is the density of the other batches.
    failing(("one", 0, 0), ("one", 0, 1), ("one", 0, 2))
    result = invoke(*command, "--seed", 1)
    assert result.exit_code == 1 and result.stdout.count("failed: one epoch 0 batch") == 3
    assert [(one.epoch, len(one.num_zeros)) for one in read_densities(target)] == [(1, 3)]


def arrays_of(target):
    """All numbers of a file, by checkpoint."""
    names = (*ARRAYS, "num_matvecs")
    return {
        (one.series, one.epoch): {name: getattr(one, name) for name in names}
        for one in read_densities(target)
    }


def counted(monkeypatch, *, stopping_at=None):
    """The seeds of the densities that are measured; the run is stopped from outside when the list
    is that long.
    """
    import landscape.linalg

    made, measure = [], landscape.linalg.density

    def counting(operator, *, seed, **options):
        if len(made) == stopping_at:
            raise KeyboardInterrupt
        made.append(seed)
        return measure(operator, seed=seed, **options)

    monkeypatch.setattr(landscape.linalg, "density", counting)
    return made


def test_a_run_that_is_stopped_loses_no_batch_and_the_next_measures_the_others_alone(
    tmp_path, monkeypatch
):
    # Few parameters, so that dense spectra, which are cut off too, take no longer than the rest.
    few = ["visual.class_embedding", "logit_scale"]
    study = make_study(tmp_path, epochs=(0, 1), names=("one",), parameters=few, dtype="float64")
    command = ("density", study, "--batches", 3, *QUICK, "--unaudited")
    assert invoke(*command, "-o", tmp_path / "whole.svg").exit_code == 0
    output = tmp_path / "stopped.svg"
    counted(monkeypatch, stopping_at=5)
    assert invoke(*command, "-o", output).exit_code == 130
    monkeypatch.undo()
    assert [one.batches for one in read_densities(tmp_path / "stopped.h5")] == [
        (0, 1, 2),
        (0, 1),
    ] and not output.exists()
    made = counted(monkeypatch)
    assert invoke(*command, "-o", output).exit_code == 0 and made == [2 * 7919]
    whole, stopped = (arrays_of(tmp_path / f"{name}.h5") for name in ("whole", "stopped"))
    assert whole.keys() == stopped.keys()
    for key, arrays in whole.items():
        assert len(arrays["dense_eigenvalues"]) == 3
        for name, array in arrays.items():
            np.testing.assert_array_equal(stopped[key][name], array, err_msg=name)


def test_more_batches_of_the_same_density_cost_no_more_than_themselves(
    study, tmp_path, monkeypatch
):
    command = ("density", study, "--epochs", 0, *QUICK, "--unaudited")
    assert invoke(*command, "--batches", 2, "-o", tmp_path / "whole.svg").exit_code == 0
    assert invoke(*command, "--batches", 1, "-o", tmp_path / "grown.svg").exit_code == 0
    made = counted(monkeypatch)
    assert invoke(*command, "--batches", 2, "-o", tmp_path / "grown.svg").exit_code == 0
    assert made == [7919]
    for name, array in arrays_of(tmp_path / "whole.h5")["one", 0].items():
        np.testing.assert_array_equal(
            arrays_of(tmp_path / "grown.h5")["one", 0][name], array, err_msg=name
        )


def test_densities_of_another_function_of_the_same_weights_are_not_added_to(study, tmp_path):
    command = ("density", study, "--epochs", 0, *QUICK, "--unaudited", "-o", tmp_path / "d.svg")
    assert invoke(*command, "--batches", 1).exit_code == 0
    path = tmp_path / "d.h5"
    (record,) = read_densities(path)
    used = {**record.settings["as_trained"], "activation": ["QuickGELU", "params.txt"]}
    write_densities(path, [replace(record, settings={**record.settings, "as_trained": used})])
    before = path.read_bytes()
    result = invoke(*command, "--batches", 2)
    assert result.exit_code == 2
    assert "activation QuickGELU (params.txt), but now it is GELU" in result.stderr
    assert path.read_bytes() == before and not parts_folder(path).exists()


def test_two_runs_do_not_write_one_file_and_nothing_is_left_of_the_lock(study, tmp_path):
    command = ("density", study, "--epochs", 0, *PLAIN, "-o", tmp_path / "density.svg")
    lock = FolderLock(parts_folder(tmp_path / "density.h5"), output=tmp_path / "density.h5")
    result = invoke(*command)
    assert (
        result.exit_code == 2
        and f"process {os.getpid()}" in result.stderr
        and not (tmp_path / "density.h5").exists()
    )
    lock.release(remove_folder=True)
    assert invoke(*command).exit_code == 0
    assert sorted(path.name for path in tmp_path.glob("density*")) == ["density.h5", "density.svg"]


def test_fewer_batches_are_drawn_from_what_is_there_and_take_nothing_away(
    study, tmp_path, monkeypatch
):
    command = ("density", study, *PLAIN)
    assert invoke(*command, "--batches", 1, "-o", tmp_path / "one.svg").exit_code == 0
    assert invoke(*command, "--batches", 3, "-o", tmp_path / "density.svg").exit_code == 0
    before, made = (tmp_path / "density.h5").read_bytes(), counted(monkeypatch)
    result = invoke(*command, "--batches", 1, "--epochs", 0, "-o", tmp_path / "density.svg")
    assert result.exit_code == 0 and not made and (tmp_path / "density.h5").read_bytes() == before
    few = invoke(*command, "--batches", 1, "--epochs", 0, "-o", tmp_path / "one.svg")
    assert ", 1 batches, " in few.stdout
    assert result.stdout == few.stdout.replace("one.svg", "density.svg").replace(
        "one.h5", "density.h5"
    )
    dry = invoke(*command, "--batches", 1, "-o", tmp_path / "density.svg", "--dry-run")
    assert "2 of 2 densities are measured" in dry.stdout


def test_batches_that_fail_while_a_density_grows_are_missing_from_it(study, tmp_path, failing):
    command = ("density", study, "--epochs", 0, *PLAIN, "-o", tmp_path / "density.svg")
    assert invoke(*command, "--batches", 1).exit_code == 0
    failing(("one", 0, 1), ("one", 0, 2))
    result = invoke(*command, "--batches", 3)
    assert result.exit_code == 1 and "1 of 3 batches (1, 2 missing)" in result.stdout
    assert read_densities(tmp_path / "density.h5")[0].missing_batches == (1, 2)


def test_an_audit_that_was_left_out_is_made_up_for_and_nothing_is_measured(
    study, tmp_path, monkeypatch
):
    command = (
        "density",
        study,
        "--epochs",
        0,
        *QUICK,
        "--dense-limit",
        0,
        "-o",
        tmp_path / "density.svg",
    )
    assert invoke(*command, "--unaudited").exit_code == 0
    made = counted(monkeypatch)
    assert "NOT AUDITED" in (tmp_path / "density.svg").read_text()
    assert invoke(*command).exit_code == 0 and not made
    assert (
        read_densities(tmp_path / "density.h5")[0].audited
        and "NOT AUDITED" not in (tmp_path / "density.svg").read_text()
    )
    # Without one, what has a verdict keeps it.
    assert (
        invoke(*command, "--unaudited").exit_code == 0
        and read_densities(tmp_path / "density.h5")[0].audited
    )
    assert invoke(*command, "--unaudited", "--batches", 2).exit_code == 0
    assert not read_densities(tmp_path / "density.h5")[0].audited


def test_zeros_of_an_exact_spectrum_cost_no_memory_in_the_figure_and_no_room_in_the_file(tmp_path):
    values = np.r_[5.0, 1.0, -0.5, np.zeros(200_000)]
    probes = density(
        DenseOperator(torch.diag(torch.from_numpy(values[:40]))), num_probes=1, num_matvecs=15
    )
    arrays = {
        name: getattr(probes, name).numpy()
        for name in ("nodes", "weights", "operators", "remainders", "exact")
    }
    facts = {
        "series": "a",
        "label": "A",
        "model": "m",
        "epoch": 0,
        "n": len(values),
        "checkpoint_sha256": "",
        "audited": True,
    }
    record = DensityRecord(
        settings={},
        resolution=1e-12,
        rounding=1e-16,
        exact_residuals=probes.exact_residuals.numpy(),
        num_zeros=np.array([len(values) - 40]),
        dense_eigenvalues=values[None],
        **facts,
        **arrays,
    )
    write_densities(tmp_path / "a.h5", [record])
    assert (tmp_path / "a.h5").stat().st_size < 100_000
    sample = density_sample(read_densities(tmp_path / "a.h5")[0])
    tracemalloc.start()
    plan = make_density_layout([sample])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A kernel for each of them would take 1.2 GB.
    assert peak < 50e6
    exact = plan.curves["a", 0].exact
    assert np.trapezoid(exact, plan.grid) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", ["figure.xyz", "figure"])
def test_a_file_that_cannot_be_a_figure_is_refused_before_anything_is_measured(
    study, tmp_path, name
):
    result = invoke("density", study, "-o", tmp_path / name, *PLAIN)
    assert (
        result.exit_code == 2
        and "a figure is one of" in result.stderr
        and len(result.stderr.splitlines()) == 1
    )
    assert not list(tmp_path.glob("figure*"))


def test_a_wrong_checkpoint_or_model_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    study = make_study(tmp_path, parameters=PATTERNS)
    last = tmp_path / "two_1.pt"
    content = torch.load(last, weights_only=True)
    del content["state_dict"]["logit_scale"]
    torch.save(content, last)
    made = counted(monkeypatch)
    result = invoke("density", study, "-o", tmp_path / "density.svg", *PLAIN)
    assert (
        result.exit_code == 2
        and "two_1.pt" in result.stderr
        and len(result.stderr.splitlines()) == 1
    ), result.output
    assert not made and not list(tmp_path.glob("density.*"))


def test_where_nothing_can_be_measured_nothing_is_drawn(study, tmp_path, failing):
    failing(("one", 0, 0), ("one", 1, 0))
    result = invoke("density", study, "-o", tmp_path / "density.svg", *PLAIN)
    assert result.exit_code == 1 and result.exc_info[0] is SystemExit, result.output
    assert (
        "failed: one epoch 0 batch 0" in result.stdout
        and "failed: one epoch 1 batch 0" in result.stdout
    )
    assert "nothing was measured" in result.stdout
    assert not list(tmp_path.glob("density.*"))


def test_the_densities_of_the_others_are_those_without_a_failure(study, tmp_path, failing):
    command = ("density", study, "--batches", 2, "--epochs", 0, *PLAIN)
    assert invoke(*command, "-o", tmp_path / "all.svg").exit_code == 0
    failing(("one", 0, 0))
    assert invoke(*command, "-o", tmp_path / "some.svg").exit_code == 1
    (everything,), (some,) = (
        read_densities(tmp_path / "all.h5"),
        read_densities(tmp_path / "some.h5"),
    )
    second = everything.operators == 1
    assert (some.operators == 0).all()
    np.testing.assert_array_equal(some.nodes, everything.nodes[second][:, : some.nodes.shape[1]])


def test_the_next_checkpoint_takes_the_way_that_the_last_has_come_to(study, tmp_path, monkeypatch):
    from landscape.pipeline.products import SeriesProducts

    asked, operator = [], SeriesProducts.operator

    def spied(self, *arguments):
        asked.append(self.choice)
        return operator(self, *arguments)

    monkeypatch.setattr(SeriesProducts, "operator", spied)
    assert invoke("density", study, "-o", tmp_path / "density.svg", *PLAIN).exit_code == 0
    # The check of the first checkpoint chooses.
    assert [choice and choice.product for choice in asked] == [None, "retained", "retained"]


def test_what_is_known_stays_in_the_file_when_an_earlier_epoch_is_measured(study, tmp_path):
    output, target = tmp_path / "density.svg", tmp_path / "density.h5"
    assert invoke("density", study, "-o", output, *PLAIN, "--epochs", 1).exit_code == 0
    result = invoke("density", study, "-o", output, *PLAIN, "--epochs", 0)
    assert result.exit_code == 0 and "1 series, 1 density." in result.stdout
    assert [one.epoch for one in read_densities(target)] == [0, 1]
    assert invoke("density", study, "-o", output, *PLAIN).exit_code == 0
    assert [one.epoch for one in read_densities(target)] == [0, 1]
    # What was measured in another way does not stand beside it.
    assert invoke("density", study, "-o", output, *PLAIN, "--epochs", 0, "--seed", 1).exit_code == 0
    assert [one.epoch for one in read_densities(target)] == [0]


def test_a_store_is_drawn_from_the_quadratures_that_it_keeps(study, tmp_path):
    store = tmp_path / "spectra.h5"
    assert invoke("spectra", study, "-o", store).exit_code == 0
    before = store.read_bytes()
    result = invoke("density", store, "-o", tmp_path / "figure.svg")
    assert result.exit_code == 0, result.output
    assert store.read_bytes() == before and not (tmp_path / "figure.h5").exists()
    assert (
        f"{NUM_BATCHES} batches, {NUM_BATCHES} probes" in result.stdout
        and "batches" in result.stdout
    )
    assert re.search(r"certified: .* at least \d+", result.stdout, re.DOTALL)


def test_power_iteration_leaves_no_density_and_says_so(study, tmp_path):
    store = tmp_path / "spectra.h5"
    assert invoke("spectra", study, "-o", store, "--method", "power").exit_code == 0
    result = invoke("density", store, "-o", tmp_path / "figure.svg")
    assert (
        result.exit_code == 2
        and "lanczos" in result.stderr
        and len(result.stderr.splitlines()) == 1
    )


def test_recycled_starts_leave_no_density_and_are_named_as_the_reason(study, tmp_path):
    store = tmp_path / "spectra.h5"
    assert invoke("spectra", study, "-o", store, "--recycle").exit_code == 0
    result = invoke("density", store, "-o", tmp_path / "figure.svg")
    assert (
        result.exit_code == 2
        and len(result.stderr.splitlines()) == 1
        and not (tmp_path / "figure.svg").exists()
    )
    # The first batch of the series started cold.
    assert "one epoch 0: batch 1 has no quadrature" in result.stderr
    assert "without --recycle" in result.stderr and "power iteration" not in result.stderr


def test_fewer_products_than_tell_an_error_are_refused_before_anything_is_read(study, tmp_path):
    result = invoke("density", study, "-o", tmp_path / "a.png", "--matvecs", 3)
    assert result.exit_code == 2 and "--matvecs" in result.stderr and "4<=x<=" in result.stderr


def test_a_store_whose_quadratures_do_not_know_their_error_is_refused(tmp_path):
    study = make_study(
        tmp_path, epochs=(0,), names=("one",), parameters=PATTERNS, k=1, max_matvecs=3
    )
    store = tmp_path / "spectra.h5"
    assert invoke("spectra", study, "-o", store).exit_code == 0
    result = invoke("density", store, "-o", tmp_path / "figure.svg")
    assert (
        result.exit_code == 2
        and len(result.stderr.splitlines()) == 1
        and not (tmp_path / "figure.svg").exists()
    )
    assert (
        "one epoch 0: quadrature 0 has 3 nodes" in result.stderr and "max_matvecs" in result.stderr
    )


def test_wrong_input_exits_with_2_in_one_line(study, tmp_path):
    (tmp_path / "text.txt").write_text("no store")
    (tmp_path / "other.h5").write_text("not densities")
    write_file(tmp_path / "empty.h5", StoreContents.of(Manifest.load(study)), [])
    for source, output, *more in (
        (tmp_path / "text.txt", tmp_path / "a.png"),
        ("no_such_model", tmp_path / "b.png"),
        (study, tmp_path / "other.png"),
        (study, tmp_path / "c.png", "--batches", NUM_BATCHES + 1),
        (study, tmp_path / "d.png", "--epochs", 7),
        (tmp_path / "missing.h5", tmp_path / "e.png"),
        (tmp_path / "empty.h5", tmp_path / "f.png"),
    ):
        result = invoke("density", source, "-o", output, *more)
        assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1, result.output
        assert not output.with_suffix(".png").exists()
    assert "empty.h5: it holds no eigenvalues yet" in result.stderr
    assert (tmp_path / "other.h5").read_text() == "not densities"


def test_unaudited_densities_stamp_their_figure(study, tmp_path):
    output = tmp_path / "density.svg"
    assert (
        invoke("density", study, "-o", output, *QUICK, "--epochs", 0, "--unaudited").exit_code == 0
    )
    assert "NOT AUDITED" in output.read_text()
    assert not read_densities(tmp_path / "density.h5")[0].audited


def test_a_record_survives_the_file_whole_and_a_wrong_version_is_refused(tmp_path):
    found = sample().density
    arrays = {
        name: getattr(found, name).numpy()
        for name in ("nodes", "weights", "operators", "remainders")
    }
    arrays |= {
        name: getattr(found, name).numpy() for name in ("exact", "exact_residuals", "num_zeros")
    }
    facts = {
        "series": "a",
        "label": "A",
        "model": "m",
        "epoch": 3,
        "n": found.n,
        "checkpoint_sha256": "",
        "audited": True,
    }
    settings = {"seed": 1, "num_batches": 2, "missing_batches": [1]}
    record = DensityRecord(
        settings=settings, resolution=found.resolution, rounding=found.rounding, **facts, **arrays
    )
    path = tmp_path / "density.h5"
    write_densities(path, [record])
    (back,) = read_densities(path)
    assert back.missing_batches == (1,) and back.batches == (0,)
    settings = {"seed": 1, "num_batches": 2}
    assert (
        back.matches(settings)
        and back.matches({**settings, "num_batches": 4})
        and not back.matches({"num_batches": 2})
    )
    write_densities(path, [replace(record, settings=settings)])
    with pytest.raises(StoreError, match="damaged.*a epoch 3 has 1 batches and names 2"):
        read_densities(path)
    write_densities(path, [record])
    assert repr(spectral_density(back).trace()) == repr(found.trace())
    import h5py

    with h5py.File(path, "r+") as file:
        file.attrs["density_schema_version"] = 2
    with pytest.raises(StoreError, match="schema version 2"):
        read_densities(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(StoreError):
        read_densities(path)


def test_every_curve_encloses_area_one_on_the_axis_that_is_drawn():
    fig = density_figure([sample("one"), sample("two", seed=1), sample("one", 5, seed=2)])
    panels = [ax for ax in fig.axes if ax.axison]
    assert [ax.get_title(loc="left") for ax in panels] == ["Initialisation", "Epoch 5"]
    width = float(re.search(r"/ ([\d.e+-]+)\)", fig.get_supxlabel()).group(1))
    for ax, labels in zip(panels, (("Model one", "Model two"), ("Model one",))):
        assert ax.get_yscale() == "log" and ax.get_xscale() == "asinh"
        for label in labels:
            x, y = curve(ax, label)
            # The curve ends where it meets the axis, at a tenth of the height of one of the 63
            # eigenvalues.
            assert np.trapezoid(y, np.arcsinh(x / width)) == pytest.approx(1, abs=0.02)
            bands = [patch for patch in ax.collections if patch.get_label() == "band"]
            assert len(bands) == len(labels)


def test_the_exact_spectrum_stands_behind_its_curve_only_where_it_is_known():
    fig = density_figure([sample("one"), sample("two", dense=False)])
    exact = [patch for patch in fig.axes[0].collections if patch.get_label() == "exact"]
    assert len(exact) == 1 and exact[0].get_zorder() < min(
        line.get_zorder() for line in fig.axes[0].lines[1:]
    )
    assert "Grey: the exact spectrum" in " ".join(
        text.get_text().replace("\n", " ") for text in fig.texts
    )
    assert not [
        patch
        for patch in density_figure([sample(dense=False)]).axes[0].collections
        if patch.get_label() == "exact"
    ]


def test_the_note_states_the_kernel_the_band_and_the_number_of_probes():
    fig = density_figure([sample()], width=0.25)
    note = " ".join(" ".join(text.get_text().split()) for text in fig.texts)
    for fragment in ("63 eigenvalues", "width 0.25", "2 standard errors", "random probes"):
        assert fragment in note


def test_a_wrong_figure_is_refused():
    for samples, options in (
        ([], {}),
        ([sample(), sample()], {}),
        ([sample()], {"epochs": [3]}),
        ([sample()], {"width": 0.0}),
        ([sample(f"s{i}") for i in range(9)], {}),
    ):
        with pytest.raises(ValueError):
            density_figure(samples, **options)
