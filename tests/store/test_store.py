"""The store: what is written survives, what is read is what was written, and what does not fit is
refused.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading

import h5py
import numpy as np
import pytest

import landscape.files as files
import landscape.store.schema as schema
import landscape.store.snapshot as snapshot_module
import landscape.store.writer as writer_module
from landscape.errors import StoreError
from landscape.manifest import Manifest
from landscape.store import (
    Record,
    SpectrumStore,
    SpectrumWriter,
    describe,
    is_store,
    parts_folder,
    summarize,
    task_key,
)
from landscape.store.agreement import differing_field
from landscape.store.record import LATER
from landscape.version import VERSION
from tests.helpers.processes import environment_of_scripts, helper_command
from tests.helpers.store_records import K, as_parts, manifest_of, record_of


def write(output, manifest, keys=None, *, merge=True):
    """Write records (all of the manifest, or those of `keys`) that are not stored yet; returns the
    keys written.
    """
    with SpectrumWriter(output, manifest) as writer:
        wanted = writer.plan.keys() if keys is None else keys
        new = [key for key in wanted if key not in writer.completed_keys()]
        for key in new:
            writer.add(record_of(key))
        if merge:
            writer.merge()
    return new


def assert_holds(store, keys):
    """Every value of these keys, and no other key, is what `record_of` says."""
    assert sorted(store.completed_keys()) == sorted(keys)
    seen = []
    for series in store.series():
        for epoch in store.epochs(series):
            table = store.records(series, epoch)
            seen += table.keys
            assert list(table.batch) == sorted(table.batch)
            for row, key in enumerate(table.keys):
                record = record_of(key)
                m = len(record.ritz_values)
                np.testing.assert_array_equal(table.eigenvalues[row], record.values)
                np.testing.assert_array_equal(table.residuals[row], record.residuals)
                np.testing.assert_array_equal(table.converged[row], record.converged)
                np.testing.assert_array_equal(table.ritz_values[row, :m], record.ritz_values)
                np.testing.assert_array_equal(table.ritz_weights[row, :m], record.ritz_weights)
                assert (
                    np.isnan(table.ritz_values[row, m:]).all()
                    and np.isnan(table.ritz_weights[row, m:]).all()
                )
                for name in LATER:
                    np.testing.assert_array_equal(getattr(table, name)[row], getattr(record, name))
                assert (table.loss[row], table.seconds[row]) == (record.loss, record.seconds)
                assert (table.num_matvecs[row], table.batch_sha256[row]) == (
                    record.num_matvecs,
                    record.batch_sha256,
                )
                assert (table.checkpoint_sha256, table.num_params) == (
                    record.checkpoint_sha256,
                    record.num_params,
                )
    assert sorted(seen) == sorted(keys)


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def refusal(call, *words):
    with pytest.raises(StoreError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700, message
    for word in words:
        assert word in message, message
    assert caught.value.exit_code == 2


@pytest.fixture
def output(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "spectra.h5"


# what is read is what was written


@pytest.mark.parametrize(
    ("which", "values", "smallest", "largest", "residuals", "unsettled"),
    [
        ("LM", [9, -8, 7], [-8, -6.9, 0], [9, 7, 6.8], [0, 0.02, 0], True),
        ("LM", [9, -8, 7], [-8, -6.9, 0], [9, 7, 6.8], [0, 0.01, 0], False),
        ("LA", [9, 8, 7], [-8, -6.9, 0], [9, 8, 7], [0, 0.1, 0], False),
        ("SA", [-9, -8, -7], [-9, -8, -7], [9, 8, -6.9], [0, 0, 0.02], True),
        ("LM", [9, -8, 7], [np.nan] * 3, [np.nan] * 3, [np.nan] * 3, False),
    ],
    ids=str,
)
def test_a_batch_in_which_another_value_may_belong_among_the_eigenvalues_is_told(
    tmp_path, which, values, smallest, largest, residuals, unsettled
):
    manifest = manifest_of(tmp_path, series=("wide",), epochs=(0,), num_batches=1, which=which)
    ends = {
        "smallest": smallest,
        "smallest_residuals": residuals,
        "largest": largest,
        "largest_residuals": residuals,
    }
    record = record_of(
        "wide/0/0",
        checkpoint_sha256=manifest.series[0].checkpoints[0].sha256,
        values=np.array(values),
        **ends,
    )
    with SpectrumWriter(tmp_path / "a.h5", manifest) as writer:
        writer.add(record)
        writer.merge()
    with SpectrumStore.open(tmp_path / "a.h5") as store:
        assert store.records("wide", 0).unsettled(which=which, tol=1e-3).tolist() == [unsettled]
        assert summarize(store)[0].num_unsettled == int(unsettled)
    assert (
        any(
            "in 1 batch another value may belong among them" in line
            for line in describe(tmp_path / "a.h5")
        )
        == unsettled
    )


def test_what_was_excluded_beyond_the_last_values_is_told_with_the_number_of_batches(tmp_path):
    manifest = manifest_of(tmp_path, epochs=(0,), num_batches=3)
    looks = {"wide": [(0.02, 1e-3), (0.0312, 0.01), (0.9, 0.2)], "narrow": [(np.nan, np.nan)] * 3}
    with SpectrumWriter(tmp_path / "a.h5", manifest) as writer:
        for series in ("wide", "narrow"):
            for batch, (distance, probability) in enumerate(looks[series]):
                writer.add(
                    record_of(
                        f"{series}/0/{batch}",
                        missed_distance=distance,
                        missed_probability=probability,
                    )
                )
        writer.merge()
    lines = [line for line in describe(tmp_path / "a.h5") if "further eigenvalue" in line]
    where = "a further eigenvalue beyond the last, more than 3.2 % from every value found"
    assert lines == [f"wide in 2 of 3 batches {where}, would have been seen with 99 % probability"]


@pytest.mark.parametrize(
    "changes",
    [
        {"value_bounds": [-1.0, 0, 0]},
        {"missed_distance": -0.1},
        {"missed_probability": -0.1},
        {"missed_probability": 1.1},
    ],
    ids=str,
)
def test_bounds_and_probabilities_that_cannot_be_are_refused_on_the_way_in_and_out(
    tmp_path, output, changes
):
    with pytest.raises(ValueError, match=next(iter(changes))):
        record_of("wide/0/0", **changes)
    write(output, manifest_of(tmp_path, epochs=(0,)))
    with h5py.File(output, "r+") as file:
        for name, value in changes.items():
            file[f"spectra/wide/0/{name}"][0] = value
    with SpectrumStore.open(output) as store:
        refusal(lambda: store.records("wide", 0), next(iter(changes)), "wide/0/0")


def test_an_older_record_is_the_same_measurement_as_one_that_knows_more(tmp_path, output):
    write(output, manifest_of(tmp_path, epochs=(0,), num_batches=1))
    new = record_of("wide/0/0")
    with h5py.File(output, "r+") as file:
        for name in ("value_bounds", "missed_distance", "missed_probability"):
            del file[f"spectra/wide/0/{name}"]
    with SpectrumStore.open(output) as store:
        old = store.stored_record("wide", 0, 0)
    assert np.isnan(old.value_bounds).all() and np.isnan(old.missed_distance)
    assert differing_field(old, new) is None and differing_field(new, old) == "value_bounds"


def test_every_number_comes_back_exactly_from_the_parts_and_from_the_merged_file(tmp_path, output):
    manifest = manifest_of(tmp_path)
    keys = write(output, manifest, merge=False)
    assert keys == [
        task_key(name, epoch, b)
        for name in ("wide", "narrow")
        for epoch in (0, 2)
        for b in range(4)
    ]
    assert not output.exists()
    with SpectrumStore.open(output) as growing:
        assert_holds(growing, keys)
    assert write(output, manifest) == [], "nothing is measured twice"
    assert entries(output.parent) == ["spectra.h5"]
    with SpectrumStore.open(output) as finished:
        assert_holds(finished, keys)
        assert finished.series() == ("wide", "narrow"), "in the order of the manifest"
        assert finished.epochs("wide") == (0, 2)


def test_a_file_from_before_the_later_columns_is_read_with_unknown_values_and_can_grow(
    tmp_path, output
):
    write(output, manifest_of(tmp_path, epochs=(0,)))
    with h5py.File(output, "r+") as file:
        for series in file["spectra"].values():
            for name in LATER:
                del series["0"][name]
    with SpectrumStore.open(output) as store:
        old = store.records("wide", 0)
    assert (
        old.smallest.shape == (4, K)
        and np.isnan(old.smallest).all()
        and np.isnan(old.parameter_norm).all()
    )
    assert (
        (old.num_negative == -1).all()
        and (old.num_unused == -1).all()
        and old.num_positive.dtype == np.int64
    )
    np.testing.assert_array_equal(old.eigenvalues[1], record_of("wide/0/1").values)
    write(output, manifest_of(tmp_path, epochs=(0, 2)))
    with SpectrumStore.open(output) as store:
        assert (store.records("wide", 0).num_negative == -1).all()
        assert store.records("wide", 2).num_negative[3] == record_of("wide/2/3").num_negative


def test_a_reader_that_knows_only_the_published_schema_finds_everything(tmp_path, output):
    manifest = manifest_of(tmp_path)
    write(output, manifest)
    with h5py.File(output) as file:
        attributes = dict(file.attrs)
        assert attributes["schema_version"] == 1
        assert attributes["manifest_sha256"] == manifest.sha256
        assert attributes["landscape_version"] == VERSION
        assert json.loads(attributes["protocol"])["data"]["num_samples"] == 60
        assert (
            hashlib.sha256(attributes["protocol"].encode()).hexdigest()
            == attributes["protocol_sha256"]
        )
        assert list(file["spectra"]) == ["wide", "narrow"]
        assert list(file["plan/series"].asstr()) == ["wide", "wide", "narrow", "narrow"]
        assert file["plan/label"].asstr()[0] == "ViT, wide"
        assert (
            list(file["plan/epoch"]) == [0, 2, 0, 2] and list(file["plan/num_batches"]) == [4] * 4
        )
        group = file["spectra/wide/2"]
        m = max(len(record_of(f"wide/2/{batch}").ritz_values) for batch in range(4))
        assert {name: (data.shape, data.dtype.str) for name, data in group.items()} == {
            "batch": ((4,), "<i8"),
            "eigenvalues": ((4, K), "<f8"),
            "residuals": ((4, K), "<f8"),
            "converged": ((4, K), "|b1"),
            "num_matvecs": ((4,), "<i8"),
            "ritz_values": ((4, m), "<f8"),
            "ritz_weights": ((4, m), "<f8"),
            "smallest": ((4, K), "<f8"),
            "smallest_residuals": ((4, K), "<f8"),
            "largest": ((4, K), "<f8"),
            "largest_residuals": ((4, K), "<f8"),
            "value_bounds": ((4, K), "<f8"),
            "missed_distance": ((4,), "<f8"),
            "missed_probability": ((4,), "<f8"),
            "num_negative": ((4,), "<i8"),
            "num_positive": ((4,), "<i8"),
            "orthogonality_defect": ((4,), "<f8"),
            "parameter_norm": ((4,), "<f8"),
            "num_unused": ((4,), "<i8"),
            "loss": ((4,), "<f8"),
            "batch_sha256": ((4,), "|S64"),
            "seconds": ((4,), "<f8"),
        }
        np.testing.assert_array_equal(group["eigenvalues"][3], record_of("wide/2/3").values)
        np.testing.assert_allclose(np.nansum(group["ritz_weights"], axis=1), 1, rtol=1e-12)
        assert group["batch_sha256"][1] == hashlib.sha256(b"batch 1").hexdigest().encode()
        facts = dict(group.attrs)
        assert facts["unit"] == "nat per squared parameter"
        assert facts["num_params"] == 1234
        assert facts["checkpoint_sha256"] == hashlib.sha256(b"wide 2").hexdigest()
        assert (facts["model"], facts["label"]) == ("vit_tiny_64", "ViT, wide")
        assert (facts["num_records"], facts["num_planned"]) == (4, 4)
        assert facts["num_not_converged"] == np.count_nonzero(~group["converged"][()])
        assert json.loads(facts["settings"]) == {"device": "cpu", "threads": 1}
        assert json.loads(facts["extras"]) == {"audit": {"passed": True}}
        versions = json.loads(facts["versions"])
        assert versions["numpy"] == np.__version__ and versions["h5py"] == h5py.__version__
        assert versions["python"] == sys.version.split()[0]
        assert {"landscape", "torch"} <= set(versions)


def test_records_without_a_quadrature_are_stored_too(tmp_path, output):
    manifest = manifest_of(tmp_path, series=("wide",), epochs=(0,), num_batches=2, method="power")
    with SpectrumWriter(output, manifest) as writer:
        for key in writer.plan.keys():
            writer.add(record_of(key, ritz_values=[], ritz_weights=[]))
        writer.merge()
    with SpectrumStore.open(output) as store:
        assert store.records("wide", 0).ritz_values.shape == (2, 0)


def test_pairs_that_did_not_converge_are_stored_as_such(tmp_path, output):
    manifest = manifest_of(tmp_path, series=("wide",), epochs=(0,), num_batches=1)
    residuals = [1e-4, np.inf, np.nan]
    with SpectrumWriter(output, manifest) as writer:
        writer.add(record_of("wide/0/0", residuals=residuals, converged=[True, False, False]))
        writer.merge()
    with SpectrumStore.open(output) as store:
        table = store.records("wide", 0)
        np.testing.assert_array_equal(table.residuals, [residuals])
        assert table.num_not_converged == 2


def test_an_output_grows_by_epochs_and_series_and_takes_their_new_labels(tmp_path, output):
    small = manifest_of(tmp_path, series=("wide",), epochs=(0,))
    first = write(output, small)
    large = manifest_of(tmp_path, series=("narrow", "wide"), epochs=(0, 1, 2))
    assert SpectrumStore.check(output, large) == frozenset(first)
    second = write(output, large, keys=["wide/1/3", "narrow/2/0"], merge=False)
    with SpectrumStore.open(output) as growing:
        assert_holds(growing, first + second)
        assert growing.series() == ("narrow", "wide")
    third = write(output, large)
    assert len(first + second + third) == 2 * 3 * 4
    with SpectrumStore.open(output) as store:
        assert_holds(store, first + second + third)
        assert store.plan.manifest_sha256 == large.sha256


def test_a_merge_of_what_there_is_keeps_the_rest_for_later(tmp_path, output):
    manifest = manifest_of(tmp_path)
    some = ["wide/0/3", "wide/0/1", "narrow/2/2"]
    write(output, manifest, keys=some)
    with SpectrumStore.open(output) as store:
        assert_holds(store, some)
        assert store.records("wide", 0).num_planned == 4
        assert store.epochs("narrow") == (2,)
    with h5py.File(output) as file:
        assert file["spectra/wide/0"].attrs["num_records"] == 2
    rest = write(output, manifest, keys=["wide/0/0", "wide/0/2"])
    with SpectrumStore.open(output) as store:
        assert_holds(store, some + rest)


def test_a_finished_output_is_not_written_again(tmp_path, output):
    manifest = manifest_of(tmp_path)
    write(output, manifest)
    before = output.stat()
    assert write(output, manifest) == []
    after = output.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert entries(output.parent) == ["spectra.h5"]


def test_a_finished_output_takes_a_plan_that_grew(tmp_path, output):
    keys = write(output, manifest_of(tmp_path, epochs=(0,)))
    write(output, manifest_of(tmp_path, epochs=(0, 2)), keys=[])
    assert entries(output.parent) == ["spectra.h5"]
    with h5py.File(output) as file:
        assert list(file["plan/epoch"]) == [0, 2, 0, 2]
    with SpectrumStore.open(output) as store:
        assert_holds(store, keys)


def test_what_resumed_runs_disagree_on_is_stated_with_all_its_values(tmp_path, output, monkeypatch):
    manifest = manifest_of(tmp_path, series=("wide",), epochs=(0,), num_batches=3)
    for batch, threads, version in [(0, 1, "2.13"), (1, 2, "2.15"), (2, 1, "2.15")]:
        monkeypatch.setattr(
            writer_module,
            "package_versions",
            lambda version=version: {"torch": version, "numpy": "2"},
        )
        with SpectrumWriter(output, manifest) as writer:
            writer.add(record_of(f"wide/0/{batch}", settings={"device": "cpu", "threads": threads}))
            writer.merge()
    with SpectrumStore.open(output) as store:
        table = store.records("wide", 0)
    assert table.settings == {"device": "cpu", "threads": {"several": [1, 2]}}
    assert table.versions == {"torch": {"several": ["2.13", "2.15"]}, "numpy": "2"}


def test_facts_larger_than_an_ordinary_attribute_are_stored(tmp_path, output):
    manifest = manifest_of(tmp_path, series=("wide",), epochs=(0,), num_batches=1)
    extras = {"audit": {f"module {number}": "x" * 100 for number in range(1000)}}
    with SpectrumWriter(output, manifest) as writer:
        writer.add(record_of("wide/0/0", extras=extras))
        writer.merge()
    with SpectrumStore.open(output) as store:
        assert store.records("wide", 0).extras == extras


# killed


def laboratory(*arguments):
    command = helper_command("crash_store_writers", *arguments)
    result = subprocess.run(command, capture_output=True, text=True, env=environment_of_scripts())
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("unit", "stride", "kills"),
    [(1, 12, 60), (3, 5, 30), pytest.param(1, 5, 80, marks=pytest.mark.slow)],
)
def test_a_writer_killed_before_or_within_any_file_operation_loses_nothing(unit, stride, kills):
    result = laboratory("every_call", unit, stride)
    # Torn ends of logs, and merged files that were not whole yet.
    assert result["kills"] > kills and result["torn"] > 0 and result["unmerged"] >= 20


def test_a_writer_of_vectors_killed_at_any_file_operation_loses_nothing():
    result = laboratory("every_call", 3, 50, "vectors")
    assert result["kills"] > 30 and result["torn"] > 0 and result["unmerged"] >= 10


@pytest.mark.parametrize(
    ("num_kills", "finished"), [(10, 1), pytest.param(40, 2, marks=pytest.mark.slow)]
)
def test_writers_killed_at_random_moments_lose_nothing_and_write_nothing_twice(num_kills, finished):
    result = laboratory("random", num_kills, 0)
    assert result["kills"] >= num_kills and result["finished"] >= finished
    assert (result["lost"], result["twice"]) == (0, 0)


def test_a_full_disk_loses_nothing_and_says_so(tmp_path, output, monkeypatch):
    manifest = manifest_of(tmp_path)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    with SpectrumWriter(output, manifest) as writer:
        writer.add(record_of("wide/0/0"))
        with monkeypatch.context() as patched:
            patched.setattr(files.os, "fsync", full_disk)
            refusal(lambda: writer.add(record_of("wide/0/1")), "No space left on device", "safe")
        assert writer.completed_keys() == {"wide/0/0"}
        with monkeypatch.context() as patched:
            patched.setattr(files.os, "fsync", full_disk)
            refusal(writer.merge, "No space left on device", "safe")
        assert not output.exists()
    with SpectrumStore.open(output) as store:
        assert_holds(store, ["wide/0/0"])
    assert entries(parts_folder(output)) == ["lock", "plan.json", "records.0.log"]


def test_a_merged_file_that_cannot_be_read_back_replaces_nothing(tmp_path, output, monkeypatch):
    manifest = manifest_of(tmp_path)
    first = write(output, manifest, keys=["wide/0/0"])
    whole = output.read_bytes()

    def cut_short(path, write, *, check, real=schema.save_hdf5, **options):
        def cut_and_check(written):
            os.truncate(written, written.stat().st_size // 2)
            check(written)

        real(path, write, check=cut_and_check, **options)

    with monkeypatch.context() as patched:
        patched.setattr(schema, "save_hdf5", cut_short)
        with pytest.raises(StoreError):
            write(output, manifest, keys=["wide/0/1"])
    assert output.read_bytes() == whole
    with SpectrumStore.open(output) as store:
        assert_holds(store, first + ["wide/0/1"])


def test_a_part_that_is_damaged_before_the_merge_is_reported_and_the_rest_kept(tmp_path, output):
    manifest = manifest_of(tmp_path)
    with SpectrumWriter(output, manifest) as writer:
        for key in ("wide/0/0", "wide/0/1"):
            writer.add(record_of(key))
        flip(parts_folder(output) / "records.0.log", -3)
        refusal(
            writer.merge, "1 records became unreadable", "wide/0/1", "Run the same command again"
        )
    assert entries(output.parent) == ["spectra.h5"]
    assert len(write(output, manifest)) == 15


# damaged and foreign parts


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2]),
        lambda path: path.write_bytes(b"\x00" * 500),
        lambda path: path.write_bytes(b"[" * 100_000 + b"\n{}\n"),
        lambda path: path.write_bytes(b"[]\n[]\n"),
        lambda path: path.write_bytes(
            path.read_bytes().replace(b'"schema_version": 1', b'"schema_version": 2')
        ),
        lambda path: path.write_bytes(
            path.read_bytes().replace(b'"seconds": 0.', b'"seconds": 1.')
        ),
        lambda path: flip(path, 20),
        lambda path: flip(path, 300),
        lambda path: flip(path, -3),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: shutil.copy(path.with_name("wide.0.0.jsonl"), path),
        lambda path: shutil.copy(path.with_name("plan.json"), path),
    ],
)
def test_a_damaged_part_is_reported_never_used_and_measured_again(tmp_path, output, damage):
    manifest = manifest_of(tmp_path, series=("wide",), epochs=(0,))
    write(output, manifest, keys=["wide/0/0", "wide/0/1", "wide/0/2"], merge=False)
    as_parts(parts_folder(output))
    path = parts_folder(output) / "wide.0.1.jsonl"
    damage(path)
    with SpectrumStore.open(output) as store:
        assert_holds(store, ["wide/0/0", "wide/0/2"])
        (rejected,) = store.rejected
        assert rejected.path == path and rejected.reason and "\n" not in rejected.reason
    assert "not used: wide.0.1.jsonl" in describe(output)[-1]
    if path.is_dir():
        path.rmdir()
    with SpectrumWriter(output, manifest) as writer:
        assert writer.completed_keys() == {"wide/0/0", "wide/0/2"}
        for key in ("wide/0/1", "wide/0/3"):
            writer.add(record_of(key))
        writer.merge()
    with SpectrumStore.open(output) as store:
        assert_holds(store, manifest_keys(manifest))
        assert not store.rejected


def manifest_keys(manifest: Manifest) -> list[str]:
    batches = range(manifest.data.num_batches)
    return [
        task_key(one.name, epoch, batch)
        for one in manifest.series
        for epoch in one.epochs
        for batch in batches
    ]


def test_parts_of_another_run_are_not_mixed_in(tmp_path, output):
    """Another protocol, an unplanned series, other weights: the name fits, the content does not."""
    manifest = manifest_of(tmp_path, series=("wide",), epochs=(0,))
    write(output, manifest, keys=["wide/0/0"], merge=False)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    other_seed = elsewhere / "seed.h5"
    write(
        other_seed,
        manifest_of(tmp_path, series=("wide",), epochs=(0,), seed=1),
        keys=["wide/0/1"],
        merge=False,
    )
    other_series = elsewhere / "series.h5"
    write(
        other_series,
        manifest_of(tmp_path, series=("other",), epochs=(0,)),
        keys=["other/0/0"],
        merge=False,
    )
    other_weights = elsewhere / "weights.h5"
    with SpectrumWriter(other_weights, manifest) as writer:
        writer.add(record_of("wide/0/3", checkpoint_sha256="0" * 64))
    for source in (other_seed, other_series, other_weights):
        as_parts(parts_folder(source))
        for part in parts_folder(source).glob("*.jsonl"):
            shutil.copy(part, parts_folder(output))
    with SpectrumStore.open(output) as store:
        assert_holds(store, ["wide/0/0"])
        reasons = {part.path.name: part.reason for part in store.rejected}
    assert "another protocol" in reasons["wide.0.1.jsonl"]
    assert "not planned" in reasons["other.0.0.jsonl"]
    assert "other weights" in reasons["wide.0.3.jsonl"]
    assert write(output, manifest) == ["wide/0/1", "wide/0/2", "wide/0/3"]


def test_parts_of_another_output_beside_a_file_are_refused(tmp_path, output):
    write(output, manifest_of(tmp_path))
    other = output.with_name("other.h5")
    write(other, manifest_of(tmp_path, seed=1), merge=False)
    parts_folder(other).rename(parts_folder(output))
    log = (parts_folder(output) / "records.0.log").read_bytes()
    refusal(lambda: SpectrumStore.open(output), "were not measured for", "move it away")
    refusal(lambda: SpectrumWriter(output, manifest_of(tmp_path)), "move it away")
    assert (parts_folder(output) / "records.0.log").read_bytes() == log and log.count(
        b"\n"
    ) == 2 * 16


def test_a_plan_that_is_lost_or_damaged_is_mended_by_the_manifest(tmp_path, output):
    manifest = manifest_of(tmp_path, series=("wide",), epochs=(0,))
    plan = parts_folder(output) / "plan.json"
    for damage in (plan.unlink, lambda: flip(plan, 200)):
        write(output, manifest, keys=["wide/0/0", "wide/0/1"], merge=False)
        damage()
        refusal(lambda: SpectrumStore.open(output), "its plan is lost", "landscape spectra")
        assert SpectrumStore.check(output, manifest) == {"wide/0/0", "wide/0/1"}
        write(output, manifest, keys=[], merge=False)
        with SpectrumStore.open(output) as store:
            assert_holds(store, ["wide/0/0", "wide/0/1"])


def test_files_of_others_in_the_folder_of_parts_are_left_alone(tmp_path, output):
    manifest = manifest_of(tmp_path, series=("wide",), epochs=(0,))
    write(output, manifest, merge=False)
    (parts_folder(output) / "notes.txt").write_text("mine")
    write(output, manifest)
    assert entries(parts_folder(output)) == ["notes.txt"]
    with SpectrumStore.open(output) as store:
        assert_holds(store, manifest_keys(manifest))


# two at once


def test_a_second_writer_is_refused_and_told_who_writes(tmp_path, output):
    manifest = manifest_of(tmp_path)
    with SpectrumWriter(output, manifest) as writer:
        writer.add(record_of("wide/0/0"))
        refusal(lambda: SpectrumWriter(output, manifest), f"process {os.getpid()}", "is writing it")
        writer.add(record_of("wide/0/1"))
    assert len(write(output, manifest)) == 14


def test_a_lock_on_a_file_that_was_just_removed_guards_nothing(tmp_path, output, monkeypatch):
    """The writer before us removes its lock, and another begins, between our opening of the lock
    and our locking it.
    """
    manifest = manifest_of(tmp_path)
    first = SpectrumWriter(output, manifest)
    others = []

    def flock(descriptor, operation, *, real=fcntl.flock):
        monkeypatch.setattr(fcntl, "flock", real)
        first.close()
        others.append(SpectrumWriter(output, manifest))
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    refusal(lambda: SpectrumWriter(output, manifest), "is writing it")
    others[0].close()
    assert entries(output.parent) == []


def test_the_lock_dies_with_a_killed_writer_even_if_its_children_live_on(tmp_path, output):
    manifest_of(tmp_path)
    code = (
        "import os, sys, time\nfrom pathlib import Path\n"
        "from tests.helpers.store_records import *\n"
        "from landscape.store import *\nwriter = SpectrumWriter(sys.argv[2], "
        "manifest_of(Path(sys.argv[1])))\nwriter.add(record_of('wide/0/0'))\nchild = os.fork()\nif "
        "child == 0:\n    time.sleep(60)\nprint(child, flush=True); time.sleep(60)\n"
    )
    environment = environment_of_scripts()
    command = [sys.executable, "-c", code, str(tmp_path), str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        child = int(process.stdout.readline())
        try:
            manifest = manifest_of(tmp_path)
            refusal(
                lambda: SpectrumWriter(output, manifest), f"process {process.pid}", "is writing it"
            )
            process.kill()
            process.wait()
            assert len(write(output, manifest)) == 15
        finally:
            os.kill(child, 9)


def test_readers_beside_a_writer_always_see_everything_stored_before(tmp_path, output):
    """Two full cycles of parts, merge, and growth, with a reader that opens all the time."""
    steps = [manifest_of(tmp_path, epochs=epochs) for epochs in [(0,), (0, 2)]]
    acknowledged: list[str] = []
    failures: list[str] = []
    done = threading.Event()

    def read():
        while not done.is_set():
            before = set(acknowledged)
            try:
                with SpectrumStore.open(output) as store:
                    if not before <= store.completed_keys():
                        failures.append(f"missing: {before - store.completed_keys()}")
                    for key in store.stored():
                        store.records(*key)
            except StoreError as error:
                if before:
                    failures.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    for manifest in steps:
        for keys in (manifest_keys(manifest)[: len(manifest_keys(manifest)) // 2], None):
            with SpectrumWriter(output, manifest) as writer:
                for key in writer.plan.keys() if keys is None else keys:
                    if key not in writer.completed_keys():
                        writer.add(record_of(key))
                        acknowledged.append(key)
                writer.merge()
    done.set()
    reader.join()
    assert not failures, failures[:3]


def test_a_merge_while_a_reader_opens_hides_nothing(tmp_path, output, monkeypatch):
    """The merge falls between the reader's two looks, at the parts and at the file, whichever comes
    first.
    """
    manifest = manifest_of(tmp_path)
    writer = SpectrumWriter(output, manifest)
    for key in manifest_keys(manifest):
        writer.add(record_of(key))
    looks = []

    def before_the_second(look):
        def looked(*arguments, **options):
            looks.append(look)
            if len(looks) == 2:
                writer.merge()
            return look(*arguments, **options)

        return looked

    monkeypatch.setattr(
        snapshot_module, "read_parts", before_the_second(snapshot_module.read_parts)
    )
    monkeypatch.setattr(schema, "open_file", before_the_second(schema.open_file))
    with SpectrumStore.open(output) as store:
        assert_holds(store, manifest_keys(manifest))
    assert entries(output.parent) == ["spectra.h5"]


# what is refused


@pytest.mark.parametrize(
    "change, words",
    [
        ({"num_samples": 75}, ["data.num_samples is 60 in this output, but 75"]),
        ({"split": "all"}, ["data.split is 'train'"]),
        ({"tol": 0.5}, ["hessian.tol is 0.001 in this output, but 0.5"]),
        ({"parameters": ("visual.*",)}, ["hessian.parameters is 'all'", "['visual.*']"]),
        ({"seed": 1}, ["hessian.seed is 0"]),
        ({"series": ("wide",)}, ["it holds series 'narrow'", "does not list"]),
        ({"epochs": (0,)}, ["it holds epoch 2 of series 'wide'", "does not list"]),
        (
            {"model": "vit_small_64"},
            ["series 'wide' is of model 'vit_tiny_64' in this output, but 'vit_small_64'"],
        ),
    ],
)
@pytest.mark.parametrize("merge", [False, True])
def test_an_output_of_another_manifest_is_refused_and_left_as_it_was(
    tmp_path, output, change, words, merge
):
    write(output, manifest_of(tmp_path), merge=merge)
    before = {path: path.read_bytes() for path in output.parent.rglob("*") if path.is_file()}
    other = manifest_of(tmp_path, **change)
    refusal(lambda: SpectrumWriter(output, other), str(output), "Name another output", *words)
    refusal(lambda: SpectrumStore.check(output, other), *words)
    assert {
        path: path.read_bytes() for path in output.parent.rglob("*") if path.is_file()
    } == before


@pytest.mark.parametrize("with_sha256", [True, False])
def test_a_checkpoint_written_anew_is_not_mixed_with_its_old_measurements(
    tmp_path, output, with_sha256
):
    keys = write(
        output, manifest_of(tmp_path, with_sha256=with_sha256), keys=["wide/2/0", "narrow/0/0"]
    )
    assert write(output, manifest_of(tmp_path, with_sha256=with_sha256), keys=keys) == []
    (tmp_path / "narrow_2.pt").write_text("a checkpoint without a measurement may change")
    assert write(output, manifest_of(tmp_path, with_sha256=with_sha256), keys=keys) == []
    (tmp_path / "wide_2.pt").write_text("trained again")
    changed = manifest_of(tmp_path, with_sha256=with_sha256)
    refusal(lambda: SpectrumWriter(output, changed), "epoch 2 of series 'wide'", "written anew")


def set_attribute(path, name, value):
    with h5py.File(path, "r+") as file:
        file.attrs[name] = value


def test_another_schema_version_is_refused_with_the_version_that_can_read_it(tmp_path, output):
    manifest = manifest_of(tmp_path)
    write(output, manifest)
    set_attribute(output, "schema_version", 2)
    set_attribute(output, "landscape_version", "7.5")
    for call in (lambda: SpectrumStore.open(output), lambda: SpectrumWriter(output, manifest)):
        refusal(
            call, "schema version 2", "reads and writes version 1", "landscape 7.5, which wrote it"
        )
    assert entries(output.parent) == ["spectra.h5"]


def test_parts_of_another_schema_version_are_refused(tmp_path, output):
    manifest = manifest_of(tmp_path)
    write(output, manifest, keys=["wide/0/0"], merge=False)
    plan = parts_folder(output) / "plan.json"
    plan.write_bytes(plan.read_bytes().replace(b'"schema_version": 1', b'"schema_version": 2'))
    before = entries(parts_folder(output))
    refusal(
        lambda: SpectrumWriter(output, manifest), "schema version 2", f"{VERSION}, which wrote it"
    )
    assert entries(parts_folder(output)) == before


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda path: path.write_text("my thesis"), ["not an HDF5 file", "Name another output"]),
        (lambda path: path.write_bytes(b""), ["not an HDF5 file"]),
        (lambda path: h5py.File(path, "w").close(), ["not a landscape store"]),
        (lambda path: path.mkdir(), ["not a regular file"]),
        (lambda path: path.symlink_to("/dev/null"), ["not a regular file"]),
        (lambda path: path.symlink_to("/nowhere/at/all"), ["there is no folder /nowhere/at"]),
    ],
)
def test_what_is_not_a_store_is_never_overwritten(tmp_path, output, make, words):
    make(output)
    refusal(lambda: SpectrumWriter(output, manifest_of(tmp_path)), str(output), *words)
    assert entries(output.parent) == ["spectra.h5"]


def test_who_only_reads_is_not_told_of_overwriting(output):
    output.write_text("# My thesis")
    with pytest.raises(StoreError, match="not an HDF5 file; so it is no store") as refused:
        SpectrumStore.open(output)
    assert "overwrite" not in str(refused.value) and "output" not in str(refused.value).replace(
        str(output), ""
    )


def test_a_store_is_opened_as_if_it_had_some_series_alone(tmp_path, output):
    manifest = manifest_of(tmp_path)
    write(output, manifest)
    with SpectrumStore.open(output) as whole, SpectrumStore.open(output, series=["wide"]) as some:
        assert (
            len(whole.series()) > 1
            and some.series() == ("wide",)
            and [one.name for one in some.plan.series] == ["wide"]
        )
        assert some.completed_keys() == {
            key for key in whole.completed_keys() if key.startswith("wide/")
        }
        refusal(lambda: some.records(whole.series()[1], 0), "no series")
    refusal(
        lambda: SpectrumStore.open(output, series=["wide", "wid"]),
        "no series 'wid'",
        "did you mean 'wide'?",
    )


def test_a_damaged_store_is_refused_with_a_sentence(tmp_path, output):
    manifest = manifest_of(tmp_path)
    write(output, manifest)
    whole = output.read_bytes()
    for size in (len(whole) // 2, len(whole) - 100, 3000):
        output.write_bytes(whole[:size])
        refusal(lambda: SpectrumStore.open(output), str(output))
    output.write_bytes(whole)
    with h5py.File(output, "r+") as file:
        offset = file["spectra/wide/0/eigenvalues"].id.get_chunk_info(0).byte_offset
    flip(output, offset + 5)
    with SpectrumStore.open(output) as store:
        refusal(lambda: store.records("wide", 0), "damaged")
    output.write_bytes(whole)
    with h5py.File(output, "r+") as file:
        del file["spectra/wide/0/loss"]
    with SpectrumStore.open(output) as store:
        refusal(lambda: store.records("wide", 0), "damaged")


def test_a_folder_that_takes_no_files_is_refused_before_any_work(tmp_path):
    manifest = manifest_of(tmp_path)
    refusal(lambda: SpectrumWriter(tmp_path / "none" / "x.h5", manifest), "there is no folder")
    refusal(lambda: SpectrumWriter(tmp_path / "wide_0.pt" / "x.h5", manifest), "there is no folder")
    # Root may write in any ordinary folder, but not here.
    refusal(lambda: SpectrumWriter("/proc/x.h5", manifest), "writable")
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    if os.access(locked, os.W_OK):
        return
    refusal(lambda: SpectrumWriter(locked / "x.h5", manifest), "not writable")


def test_a_run_without_a_record_leaves_nothing_behind(tmp_path, output):
    manifest = manifest_of(tmp_path)
    with SpectrumWriter(output, manifest) as writer:
        writer.merge()
    assert entries(output.parent) == []
    with pytest.raises(RuntimeError), SpectrumWriter(output, manifest):
        raise RuntimeError("the model is unknown")
    assert entries(output.parent) == []
    refusal(lambda: SpectrumStore.open(output), "there is no such store")


def test_looking_at_what_is_left_writes_nothing(tmp_path, output):
    manifest = manifest_of(tmp_path)
    assert SpectrumStore.check(output, manifest) == frozenset()
    assert entries(output.parent) == []


def test_a_record_that_does_not_belong_is_refused(tmp_path, output):
    with SpectrumWriter(output, manifest_of(tmp_path)) as writer:
        writer.add(record_of("wide/0/0"))
        for key in ("other/0/0", "wide/1/0", "wide/0/4"):
            with pytest.raises(ValueError, match="not a measurement of this manifest"):
                writer.add(record_of(key))
        with pytest.raises(ValueError, match="stored already"):
            writer.add(record_of("wide/0/0"))
        with pytest.raises(ValueError, match="has 2 eigenvalues"):
            writer.add(
                record_of("wide/0/1", values=[1, 2], residuals=[0, 0], converged=[True, True])
            )
        refusal(
            lambda: writer.add(record_of("wide/0/1", checkpoint_sha256="0" * 64)),
            "weights are not those",
            "0" * 64,
        )
        refusal(
            lambda: writer.add(record_of("wide/2/0", batch_sha256="0" * 64)),
            "pairs are not those",
            "0" * 64,
        )
        assert writer.completed_keys() == {"wide/0/0"}
    with pytest.raises(ValueError, match="closed"):
        writer.add(record_of("wide/0/1"))


def test_pairs_that_changed_between_two_runs_are_noticed(tmp_path, output):
    manifest = manifest_of(tmp_path)
    write(output, manifest, keys=["wide/0/0"])
    with SpectrumWriter(output, manifest) as writer:
        refusal(
            lambda: writer.add(record_of("wide/2/0", batch_sha256="0" * 64)),
            "pairs are not those",
            "changed",
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"values": [1.0, 2.0]},
        {"values": [[1.0, 2.0, 3.0]]},
        {"values": [1.0, np.nan, 2.0]},
        {"loss": np.inf},
        {"residuals": [np.nan, 0, 0], "converged": [True, True, True]},
        {"ritz_weights": []},
        {"num_matvecs": -1},
        {"batch_sha256": "abc"},
        {"checkpoint_sha256": "A" * 64},
    ],
)
def test_a_record_that_makes_no_sense_is_not_made(changes):
    with pytest.raises(ValueError, match="wide/0/0: "):
        record_of("wide/0/0", **changes)


def test_a_record_cannot_be_changed_afterwards():
    values = np.ones(K)
    record = record_of("wide/0/0", values=values)
    values[0] = 7
    assert record.values[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        record.values[0] = 7
    assert isinstance(record, Record) and record.key == "wide/0/0"


def test_asking_for_what_is_not_there_names_what_is(tmp_path, output):
    write(output, manifest_of(tmp_path))
    with SpectrumStore.open(output) as store:
        refusal(lambda: store.epochs("wid"), "no series 'wid'", "did you mean 'wide'?")
        refusal(lambda: store.records("wide", 1), "no epoch 1", "it has 0, 2")


# around it


def test_a_description_says_what_is_inside(tmp_path, output):
    manifest = manifest_of(tmp_path)
    assert not is_store(output)
    write(output, manifest, keys=["wide/0/0", "wide/0/1", "narrow/2/3"], merge=False)
    assert is_store(output)
    text = "\n".join(describe(output))
    assert "unfinished: 3 of 16 records" in text
    write(output, manifest)
    assert is_store(output) and not is_store(tmp_path / "wide_0.pt")
    text = "\n".join(describe(output))
    for words in (
        "complete: 16 of 16 records",
        manifest.sha256,
        "60 pairs",
        "nat per squared parameter",
        "narrow epoch 2",
    ):
        assert words in text
    with SpectrumStore.open(output) as store:
        (summary, *_) = summarize(store)
    values = np.stack([record_of(f"wide/0/{batch}").values for batch in range(4)])
    assert (summary.largest, summary.smallest, summary.num_records) == (
        values.max(),
        values.min(),
        4,
    )


def test_the_store_imports_no_torch():
    code = "import sys, landscape.store; print('torch' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "False"
    )
