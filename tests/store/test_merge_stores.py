"""Stores of the shards of one manifest as one store: what is joined, what is counted, and what is
refused.
"""

import os
import shutil

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from landscape.cli import main
from landscape.store import (
    SpectrumStore,
    SpectrumWriter,
    describe,
    merge_stores,
    parts_folder,
    schema,
)
from tests.helpers.store_records import K, as_parts, manifest_of, record_of
from tests.store.test_damage import module_record
from tests.store.test_store import assert_holds, entries, refusal, write

ALL = [
    f"{name}/{epoch}/{batch}"
    for name in ("wide", "narrow")
    for epoch in (0, 2)
    for batch in range(4)
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def shards(folder, tmp_path, num, *, merge=True, **options):
    """Stores of every num-th record of one manifest."""
    paths = [folder / f"shard{number}.h5" for number in range(num)]
    for number, path in enumerate(paths):
        write(path, manifest_of(tmp_path, **options), keys=ALL[number::num], merge=merge)
    return paths


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("merge", [True, False])
def test_shards_become_the_store_that_one_run_would_have_written(folder, tmp_path, merge):
    paths = shards(folder, tmp_path, 3, merge=merge)
    if not merge:
        as_parts(parts_folder(paths[1]))
    before = contents(folder)
    report = merge_stores(paths, folder / "all.h5")
    assert (report.num_records, report.num_planned, report.num_equal, report.num_close) == (
        16,
        16,
        0,
        0,
    )
    assert report.sources == tuple(zip(paths, (6, 5, 5)))
    after = contents(folder)
    assert {path: after[path] for path in before} == before and set(after) - set(before) == {
        folder / "all.h5"
    }
    with SpectrumStore.open(folder / "all.h5") as store:
        assert_holds(store, ALL)
        assert store.series() == ("wide", "narrow") and store.plan.keys() == ALL
    # It is a store like any other: the whole manifest has nothing left to measure.
    assert write(folder / "all.h5", manifest_of(tmp_path)) == []
    write(folder / "one.h5", manifest_of(tmp_path))
    with h5py.File(folder / "all.h5") as merged, h5py.File(folder / "one.h5") as one:
        assert list(merged["spectra/wide/0"].attrs.items()) == list(
            one["spectra/wide/0"].attrs.items()
        )
        np.testing.assert_array_equal(
            merged["spectra/wide/0/ritz_values"], one["spectra/wide/0/ritz_values"]
        )


def test_series_and_epochs_that_one_store_has_alone_are_joined(folder, tmp_path):
    for name, series, epochs in [
        ("a", ("wide",), (0, 2)),
        ("b", ("narrow", "wide"), (0, 1)),
        ("c", ("third",), (0,)),
    ]:
        write(folder / f"{name}.h5", manifest_of(tmp_path, series=series, epochs=epochs))
    report = merge_stores([folder / f"{name}.h5" for name in "abc"], folder / "all.h5")
    with SpectrumStore.open(folder / "all.h5") as store:
        assert store.series() == ("wide", "narrow", "third")
        assert [store.epochs(name) for name in store.series()] == [(0, 1, 2), (0, 1), (0,)]
        assert_holds(store, store.plan.keys())
    assert report.num_records == report.num_planned == 6 * 4 and report.num_equal == 4


def test_an_output_that_is_a_store_takes_the_records_in(folder, tmp_path):
    manifest = manifest_of(tmp_path)
    write(folder / "all.h5", manifest, keys=ALL[:2])
    write(folder / "all.h5", manifest, keys=ALL[2:4], merge=False)
    write(folder / "b.h5", manifest, keys=ALL[1:9])
    report = merge_stores([folder / "b.h5"], folder / "all.h5")
    assert (
        report.sources == ((folder / "all.h5", 4), (folder / "b.h5", 5)) and report.num_equal == 3
    )
    assert entries(folder) == ["all.h5", "b.h5"]
    with SpectrumStore.open(folder / "all.h5") as store:
        assert_holds(store, ALL[:9])


def close_to(key, factor, **changes):
    values = record_of(key).values
    return record_of(
        key, values=values * factor, residuals=np.full(K, 1e-6), converged=[True] * K, **changes
    )


def store_with(path, manifest, records):
    with SpectrumWriter(path, manifest) as writer:
        writer.add_all(records)
        writer.merge()
    return path


def test_records_of_two_machines_are_one_record_where_their_residuals_allow_it(folder, tmp_path):
    manifest, key = manifest_of(tmp_path), ALL[0]
    a = store_with(
        folder / "a.h5", manifest, [close_to(key, 1.0), record_of(ALL[1]), record_of(ALL[2])]
    )
    b = store_with(
        folder / "b.h5",
        manifest,
        [close_to(key, 1 + 1.9e-6), record_of(ALL[1], seconds=99.0), record_of(ALL[3])],
    )
    report = merge_stores([a, b], folder / "all.h5")
    assert (report.num_equal, report.num_close, report.num_records) == (1, 1, 4)
    assert report.largest_difference == pytest.approx(
        1.9e-6 * abs(record_of(key).values).max(), rel=1e-6
    )
    with SpectrumStore.open(folder / "all.h5") as store:
        np.testing.assert_array_equal(
            store.records("wide", 0).eigenvalues[0], record_of(key).values
        )
    # Two equal sizes of opposite sign may come in either order.
    values = np.array([5.0, -4.999999, 1.0])
    bound = {"residuals": np.full(K, 1e-6), "converged": [True] * K}
    a = store_with(folder / "c.h5", manifest, [record_of(key, values=values, **bound)])
    b = store_with(folder / "d.h5", manifest, [record_of(key, values=values[[1, 0, 2]], **bound)])
    assert merge_stores([a, b], folder / "swapped.h5").num_close == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (close_to(ALL[0], 1.0), close_to(ALL[0], 1 + 2.1e-6)),
        (
            close_to(ALL[0], 1.0),
            record_of(ALL[0], residuals=[np.inf] * K, converged=[False] * K, values=[1, 2, 3]),
        ),
        (
            close_to(ALL[0], 1.0),
            record_of(ALL[0], residuals=[np.nan] * K, converged=[False] * K, values=[1, 2, 3]),
        ),
    ],
)
def test_two_records_of_one_batch_that_disagree_are_refused_by_name(
    folder, tmp_path, first, second
):
    manifest = manifest_of(tmp_path)
    paths = [
        store_with(folder / f"{number}.h5", manifest, [record])
        for number, record in enumerate((first, second))
    ]
    before = contents(folder)
    refusal(
        lambda: merge_stores(paths, folder / "all.h5"),
        str(paths[1]),
        ALL[0],
        "one of the two is wrong",
    )
    assert contents(folder) == before and entries(folder) == ["0.h5", "1.h5"]


def test_spectra_of_modules_are_joined_and_compared_too(folder, tmp_path):
    manifest = manifest_of(tmp_path)
    a = store_with(folder / "a.h5", manifest, [module_record(key) for key in ALL[:3]])
    b = store_with(folder / "b.h5", manifest, [*map(module_record, ALL[2:6]), record_of(ALL[2])])
    report = merge_stores([a, b], folder / "all.h5")
    assert (report.num_records, report.num_module_records, report.num_equal) == (1, 6, 1)
    with SpectrumStore.open(folder / "all.h5") as store:
        assert store.completed_modules() == frozenset(ALL[:6])
        np.testing.assert_array_equal(
            store.modules("wide", 2).eigenvalues[1], module_record(ALL[5]).eigenvalues
        )
    exact = [module_record(ALL[2]) for _ in range(2)]
    for factor, record in enumerate(exact, start=1):
        object.__setattr__(record, "eigenvalues", record.eigenvalues * factor)
        object.__setattr__(record, "residuals", np.full_like(record.residuals, 0.1))
    c, e = (
        store_with(folder / f"c{number}.h5", manifest, [record])
        for number, record in enumerate(exact)
    )
    refusal(
        lambda: merge_stores([c, e], folder / "x.h5"),
        f"spectra of the modules of {ALL[2]} differs in eigenvalues",
    )
    other = module_record(ALL[7])
    object.__setattr__(other, "modules", ("a", "c"))
    d = store_with(folder / "d.h5", manifest, [other])
    refusal(
        lambda: merge_stores([a, d], folder / "x.h5"), "2 modules, and of 2 others", "--modules"
    )
    assert not (folder / "x.h5").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tol": 0.5}, ["hessian.tol is 0.5, but 0.001", "not comparable"]),
        ({"num_samples": 75}, ["data.num_samples is 75, but 60"]),
        (
            {"model": "vit_small_64"},
            ["model of series 'wide' is 'vit_small_64', but 'vit_tiny_64'"],
        ),
    ],
)
def test_stores_of_other_settings_are_refused_by_the_setting(folder, tmp_path, change, words):
    write(folder / "a.h5", manifest_of(tmp_path))
    write(folder / "b.h5", manifest_of(tmp_path, **change))
    before = contents(folder)
    refusal(
        lambda: merge_stores([folder / "a.h5", folder / "b.h5"], folder / "all.h5"),
        str(folder / "b.h5"),
        *words,
    )
    refusal(lambda: merge_stores([folder / "b.h5"], folder / "a.h5"), str(folder / "b.h5"), *words)
    assert contents(folder) == before


def test_other_weights_and_other_pairs_are_refused(folder, tmp_path):
    manifest = manifest_of(tmp_path, with_sha256=False)
    a = store_with(folder / "a.h5", manifest, [record_of("wide/0/0")])
    b = store_with(folder / "b.h5", manifest, [record_of("wide/0/1", checkpoint_sha256="0" * 64)])
    c = store_with(folder / "c.h5", manifest, [record_of("wide/2/0", batch_sha256="0" * 64)])
    refusal(
        lambda: merge_stores([a, b], folder / "all.h5"),
        str(b),
        "epoch 0 of series 'wide'",
        "0" * 64,
        "two checkpoints",
    )
    refusal(
        lambda: merge_stores([a, c], folder / "all.h5"),
        str(c),
        "batch 0 of series 'wide'",
        "0" * 64,
        "pairs",
    )
    assert entries(folder) == ["a.h5", "b.h5", "c.h5"]


def test_a_store_that_is_written_or_named_twice_or_missing_is_refused(folder, tmp_path):
    (a, b), manifest = shards(folder, tmp_path, 2), manifest_of(tmp_path)
    os.symlink(a, folder / "link.h5")
    refusal(lambda: merge_stores([a, folder / "link.h5"], folder / "all.h5"), "named twice")
    refusal(lambda: merge_stores([a, b], folder / "link.h5"), "it is the output too")
    refusal(
        lambda: merge_stores([a, folder / "none.h5"], folder / "all.h5"), "there is no such store"
    )
    for name, word in [("thesis.h5", "not an HDF5 file"), ("other.h5", "not a landscape store")]:
        (folder / "thesis.h5").write_text("mine")
        h5py.File(folder / "other.h5", "w").close()
        refusal(lambda name=name: merge_stores([a, b], folder / name), word)
    with SpectrumWriter(folder / "running.h5", manifest) as writer:
        writer.add(record_of(ALL[0]))
        refusal(
            lambda: merge_stores([a, folder / "running.h5"], folder / "all.h5"),
            f"process {os.getpid()}",
            "is writing it",
        )
        refusal(
            lambda: merge_stores([a], folder / "running.h5"),
            f"process {os.getpid()}",
            "is writing it",
        )
    assert merge_stores([a, folder / "running.h5"], folder / "all.h5").num_equal == 1
    write(folder / "empty.h5", manifest, keys=[], merge=False)
    assert (
        not parts_folder(folder / "empty.h5").exists()
        and not parts_folder(folder / "none.h5").exists()
    )


def test_an_output_whose_plan_is_lost_keeps_its_records(folder, tmp_path):
    (a, b) = shards(folder, tmp_path, 2, merge=False)
    (parts_folder(b) / "plan.json").unlink()
    before = contents(folder)
    refusal(lambda: merge_stores([a], b), "its plan is lost")
    assert contents(folder) == before


def test_a_merge_that_fails_leaves_the_stores_and_the_output(folder, tmp_path, monkeypatch):
    (a, b), target = shards(folder, tmp_path, 2), folder / "all.h5"
    shutil.copy(a, target)
    before = contents(folder)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        refusal(lambda: merge_stores([b], target), "No space left on device")
    assert contents(folder) == before and not parts_folder(target).exists()
    assert merge_stores([b], target).num_records == 16


def test_damage_in_a_store_is_said_and_costs_what_is_damaged(folder, tmp_path):
    a, b = shards(folder, tmp_path, 2, merge=False)
    log = parts_folder(b) / "records.0.log"
    content = bytearray(log.read_bytes())
    content[500] ^= 1
    log.write_bytes(content)
    report = merge_stores([a, b], folder / "all.h5")
    assert (
        report.num_records == 15
        and len(report.rejected) == 1
        and f"not used: {log}" in report.summary()
    )


def test_one_checkpoint_is_in_memory_at_a_time(folder, tmp_path, monkeypatch, records_alive):
    paths = shards(folder, tmp_path, 2, merge=False)
    alive = []

    def counting(group, table, *, real=schema._write_table):
        alive.append(records_alive())
        real(group, table)

    monkeypatch.setattr(schema, "_write_table", counting)
    merge_stores(paths, folder / "all.h5")
    assert len(alive) == 4 and max(alive) <= 4


def test_the_command_says_what_came_from_where(folder, tmp_path):
    manifest = manifest_of(tmp_path)
    write(folder / "a.h5", manifest, keys=ALL[:9])
    write(folder / "b.h5", manifest, keys=ALL[7:12], merge=False)
    names = [str(folder / name) for name in ("a.h5", "b.h5", "all.h5")]
    result = CliRunner().invoke(main, ["merge", *names[:2], "-o", names[2]])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        f"{names[0]}: 9 records taken",
        f"{names[1]}: 3 records taken",
        "2 records were there twice with equal values; one of each is kept.",
        f"{names[2]}: 12 of 16 planned records.",
    ]
    assert "unfinished: 12 of 16 records" in describe(names[2])[0]
    again = CliRunner().invoke(main, ["merge", *names[:2], "-o", names[0]])
    assert (
        again.exit_code == 2
        and "it is the output too" in again.stderr
        and len(again.stderr.splitlines()) == 1
    )
    assert CliRunner().invoke(main, ["merge", "-o", names[2]]).exit_code == 2
