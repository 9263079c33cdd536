"""Kept eigenvectors: what is written is read, to the rounding that is stored; what does not fit or
is damaged is refused in one line.
"""

import hashlib
import shutil

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from landscape.cli import main
from landscape.errors import NumericalError, StoreError
from landscape.store import (
    ParameterLayout,
    SpectrumStore,
    SpectrumWriter,
    StoredVectors,
    VectorRecord,
    merge_stores,
    parts_folder,
    validate,
)
from tests.helpers.store_records import K, manifest_of, record_of
from tests.helpers.store_vectors import LAYOUT, N, vector_record_of, vectors_of

DIGEST = hashlib.sha256(b"").hexdigest()
PLACE = "vectors/wide/0/1"


def write(output, manifest, keys, *, merge=True, with_vectors=True):
    with SpectrumWriter(output, manifest) as writer:
        for key in keys:
            kept = [vector_record_of(key, writer.plan)] if with_vectors else []
            writer.add_all([record_of(key)], vectors=kept)
        if merge:
            writer.merge()


def read(store, key):
    series, epoch, batch = key.split("/")
    with store.vectors.open(series, int(epoch), int(batch)) as vectors:
        return vectors.read(0, vectors.n), vectors.rounding


def round_trip(columns, layout):
    """Write and read vectors, and return them with the stored rounding."""
    k = columns.shape[1]
    record = VectorRecord.of(
        list(columns.T),
        series="s",
        epoch=0,
        batch=0,
        batch_sha256=DIGEST,
        checkpoint_sha256=DIGEST,
        protocol_sha256=DIGEST,
        values=np.ones(k),
        residuals=np.zeros(k),
        rest=(0.0, 0.5),
        layout=layout,
    )
    return record.image


@pytest.fixture
def keys():
    return ["wide/0/0", "wide/0/1", "wide/2/0", "narrow/0/1"]


@pytest.mark.parametrize("merge", [False, True], ids=["growing", "merged"])
def test_what_is_written_is_read_to_the_rounding_that_is_stored(tmp_path, keys, merge):
    output = tmp_path / "x.h5"
    write(output, manifest_of(tmp_path), keys, merge=merge)
    with SpectrumStore.open(output) as store:
        assert store.vectors.keys() == frozenset(keys)
        assert store.vectors.checkpoints["wide", 0] == (0, 1)
        for key in keys:
            kept, rounding = read(store, key)
            lost = np.linalg.norm(kept.T - vectors_of(key), axis=0)
            np.testing.assert_allclose(lost, rounding, rtol=1e-6)
            # 11 bits: at most 2^-11 relative, about 0.3 of that in the mean square.
            assert (rounding > 0).all() and (rounding < 2.0**-11).all()
            assert (kept[:, N // 10 : N // 2] == 0).all()
    assert parts_folder(output).exists() is not merge


def test_scaling_spends_no_entry_of_a_flat_or_peaked_vector_needlessly(tmp_path):
    n = 300_000
    flat = np.full(n, 1 / np.sqrt(n))
    peaked = np.concatenate([[1.0], np.full(n - 1, 2.0**-30)])
    layout = ParameterLayout(names=("w",), sizes=(n,), modules=("w",))
    path = tmp_path / "v.h5"
    path.write_bytes(round_trip(np.stack([flat, peaked * 1e-20], axis=1), layout))
    with h5py.File(path) as file:
        vectors = StoredVectors(file["vectors/s/0/0"], series="s", epoch=0, batch=0, path=path)
        first, second = vectors.read(0, n)
        largest = np.abs(file["vectors/s/0/0/vectors"][()]).max(axis=1)
    assert ((largest >= 2**14) & (largest <= 2**15)).all()
    np.testing.assert_allclose(first, flat, rtol=2.0**-11)
    np.testing.assert_allclose(second, peaked / np.linalg.norm(peaked), rtol=2.0**-10)


def test_zero_rows_take_almost_no_bytes():
    n, used = 2_000_000, 20_000
    columns = np.zeros((n, 1))
    columns[:used, 0] = np.random.default_rng(0).standard_normal(used)
    layout = ParameterLayout(names=("table",), sizes=(n,), modules=("table",))
    # Two bytes an entry that is not zero, a hundredth of the rest, and one block of the file.
    assert len(round_trip(columns, layout)) < 2 * used + 2 * n // 100 + 2**16


def test_a_vector_without_a_direction_is_refused(tmp_path):
    layout = ParameterLayout(names=("w",), sizes=(5,), modules=("w",))
    for bad in (np.zeros((5, 1)), np.full((5, 1), np.nan)):
        with pytest.raises(NumericalError, match="no direction to keep"):
            round_trip(bad, layout)


def test_later_runs_keep_old_vectors_and_add_those_of_older_records(tmp_path, keys):
    output, manifest = tmp_path / "x.h5", manifest_of(tmp_path)
    write(output, manifest, keys[:2])
    write(output, manifest, keys[2:], with_vectors=False)
    with SpectrumWriter(output, manifest) as writer:
        assert writer.completed_vectors() == frozenset(keys[:2])
        # Measured again elsewhere: other bits, within the residuals of both.
        again = record_of(keys[2])
        again = record_of(keys[2], values=again.values * (1 + 1e-3 * again.residuals))
        writer.add_all([again], vectors=[vector_record_of(keys[2], writer.plan)])
        assert writer.num_duplicates == 1
        writer.merge()
    with SpectrumStore.open(output) as store:
        assert store.vectors.keys() == frozenset(keys[:3])
        assert store.completed_keys() == frozenset(keys)
        np.testing.assert_array_equal(
            store.records("wide", 2).eigenvalues[0], record_of(keys[2]).values
        )


def test_a_batch_measured_again_with_other_results_is_refused(tmp_path):
    output, manifest = tmp_path / "x.h5", manifest_of(tmp_path)
    write(output, manifest, ["wide/0/0"], with_vectors=False)
    with SpectrumWriter(output, manifest) as writer:
        other = record_of("wide/0/0", values=record_of("wide/0/0").values + 1)
        with pytest.raises(StoreError, match="computed twice, with different values"):
            writer.add_all([other], vectors=[vector_record_of("wide/0/0", writer.plan)])
        assert not writer.completed_vectors()


def test_vectors_without_a_record_are_not_merged(tmp_path):
    output, manifest = tmp_path / "x.h5", manifest_of(tmp_path)
    with SpectrumWriter(output, manifest) as writer:
        writer.add_all([record_of("wide/0/0")])
        # A writer that was killed between the two leaves this.
        writer._store.vectors.add(vector_record_of("wide/0/1", writer.plan))
        assert writer.completed_vectors() == frozenset()
        writer.merge()
    with SpectrumStore.open(output) as store:
        assert store.vectors.keys() == frozenset() and len(store.completed_keys()) == 1


def test_merged_stores_hold_the_vectors_of_all(tmp_path, keys):
    manifest = manifest_of(tmp_path)
    write(tmp_path / "a.h5", manifest, keys[:3])
    write(tmp_path / "b.h5", manifest, keys[1:])
    report = merge_stores([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "c.h5")
    assert report.num_records == 4 and report.num_vector_records == 4
    assert "eigenvectors of 4 batches" in report.summary()
    with SpectrumStore.open(tmp_path / "c.h5") as store:
        for key in keys:
            kept, rounding = read(store, key)
            assert (np.linalg.norm(kept.T - vectors_of(key), axis=0) <= 1.01 * rounding).all()
    assert validate(tmp_path / "c.h5").conforms


def test_info_says_what_is_kept_and_nothing_of_old_stores(tmp_path, keys):
    output = tmp_path / "x.h5"
    write(output, manifest_of(tmp_path), keys)
    said = CliRunner().invoke(main, ["info", str(output)]).output
    assert f"wide epoch 0: {K} eigenvectors of each of 2 batches, 1 MiB, rounding at most" in said
    write(tmp_path / "y.h5", manifest_of(tmp_path), keys, with_vectors=False)
    assert "eigenvectors" not in CliRunner().invoke(main, ["info", str(tmp_path / "y.h5")]).output
    assert validate(output).conforms and validate(tmp_path / "y.h5").conforms


def replace(file, name, data, **options):
    del file[f"{PLACE}/{name}"]
    file[PLACE].create_dataset(name, data=data, **options)


def infinite(file):
    file[f"{PLACE}/vectors"][0, 7] = np.inf


def longer(file):
    file[f"{PLACE}/vectors"][0] = 2 * file[f"{PLACE}/vectors"][0]


DAMAGE = {
    "not finite": infinite,
    "not of length 1": longer,
    "another size": lambda file: replace(file, "vectors", np.ones((K, N - 1), dtype="<f2")),
    "no power of two": lambda file: replace(file, "scales", np.full(K, 0.3)),
    "a negative rounding": lambda file: replace(file, "rounding", np.full(K, -1.0)),
    "an interval upside down": lambda file: replace(file, "rest", np.array([2.0, 1.0])),
    "an eigenvalue that is NaN": lambda file: replace(file, "eigenvalues", np.full(K, np.nan)),
    "no digest": lambda file: file[PLACE].attrs.update(batch_sha256="ff"),
    "a tensor twice": lambda file: replace(
        file, "parameters", ["a", "a", "b", "c"], dtype=h5py.string_dtype()
    ),
    "more declared than stored": lambda file: (
        file[PLACE].__delitem__("vectors"),
        file[PLACE].create_dataset("vectors", shape=(K, N), dtype="<f2"),
    ),
    "a dataset is gone": lambda file: file[PLACE].__delitem__("rest"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_vectors_are_refused_in_one_line(tmp_path, what):
    output, manifest = tmp_path / "x.h5", manifest_of(tmp_path)
    write(output, manifest, ["wide/0/0", "wide/0/1"])
    with h5py.File(output, "r+") as file:
        DAMAGE[what](file)
    said = CliRunner().invoke(main, ["info", str(output), "--validate"])
    assert said.exit_code == 1 and len(said.output.splitlines()) == 2, said.output
    with SpectrumStore.open(output) as store, pytest.raises(StoreError) as error:
        # The records are read as before.
        assert store.records("wide", 0).num_records == 2
        list(store.vectors.sources(store.vectors.keys()))
    assert "\n" not in str(error.value) and str(output) in str(error.value)


def test_vectors_of_other_weights_do_not_conform(tmp_path):
    output = tmp_path / "x.h5"
    write(output, manifest_of(tmp_path), ["wide/0/0", "wide/0/1"])
    with h5py.File(output, "r+") as file:
        file[PLACE].attrs["checkpoint_sha256"] = DIGEST
    said = CliRunner().invoke(main, ["info", str(output), "--validate"])
    assert said.exit_code == 1 and "no record of the same weights" in said.output


def test_a_damaged_part_is_not_used_and_measured_again(tmp_path):
    output, manifest = tmp_path / "x.h5", manifest_of(tmp_path)
    write(output, manifest, ["wide/0/0", "wide/0/1"], merge=False)
    part = parts_folder(output) / "wide.0.1.vectors"
    content = part.read_bytes()
    part.write_bytes(content[: len(content) // 2])
    with SpectrumWriter(output, manifest) as writer:
        assert writer.completed_vectors() == {"wide/0/0"} and len(writer.rejected) == 1
        writer.add_all([record_of("wide/0/1")], vectors=[vector_record_of("wide/0/1", writer.plan)])
        writer.merge()
    assert validate(output).conforms
    with SpectrumStore.open(output) as store:
        assert store.vectors.keys() == {"wide/0/0", "wide/0/1"}


def test_a_part_damaged_after_it_was_opened_costs_only_itself(tmp_path):
    output, manifest = tmp_path / "x.h5", manifest_of(tmp_path)
    with SpectrumWriter(output, manifest) as writer:
        for key in ("wide/0/0", "wide/0/1"):
            writer.add_all([record_of(key)], vectors=[vector_record_of(key, writer.plan)])
        part = writer.folder / "wide.0.1.vectors"
        with h5py.File(part) as file:
            offset = file[f"{PLACE}/vectors"].id.get_chunk_info(0).byte_offset
        content = bytearray(part.read_bytes())
        content[offset + 40] ^= 1
        part.write_bytes(content)
        with pytest.raises(StoreError, match=r"1 records became unreadable.*vectors of wide/0/1"):
            writer.merge()
    with SpectrumStore.open(output) as store:
        assert store.vectors.keys() == {"wide/0/0"} and len(store.completed_keys()) == 2


def test_vectors_that_were_merged_while_a_reader_had_them_open_are_no_damage(tmp_path):
    output, manifest = tmp_path / "x.h5", manifest_of(tmp_path)
    write(output, manifest, ["wide/0/0"], merge=False)
    with SpectrumStore.open(output) as store:
        write(output, manifest, [])
        with pytest.raises(StoreError, match="were merged since the store was opened"):
            read(store, "wide/0/0")
    with SpectrumStore.open(output) as store:
        assert read(store, "wide/0/0")[0].shape == (K, N)


def test_vectors_of_another_run_are_not_taken(tmp_path):
    output, manifest = tmp_path / "x.h5", manifest_of(tmp_path)
    write(output, manifest, ["wide/0/0"], merge=False)
    shutil.copy(
        parts_folder(output) / "wide.0.0.vectors", parts_folder(output) / "wide.0.1.vectors"
    )
    with SpectrumWriter(output, manifest) as writer:
        assert [part.path.name for part in writer.rejected] == ["wide.0.1.vectors"]
        with pytest.raises(ValueError, match="not those of this manifest"):
            writer.add_all(
                [record_of("wide/0/1")],
                vectors=[vector_record_of("wide/0/1", writer.plan, protocol_sha256=DIGEST)],
            )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"protocol_sha256": DIGEST}, "under another protocol"),
        ({"checkpoint_sha256": DIGEST}, "on other weights"),
        ({"batch_sha256": DIGEST}, "on other samples"),
        ({"batch": 99}, "is not planned"),
        ({"values": np.ones(K - 1), "residuals": np.zeros(K - 1)}, "2 vectors instead of 3"),
    ],
)
def test_a_part_that_does_not_belong_to_its_record_is_rejected(tmp_path, changes, reason):
    output, manifest = tmp_path / "x.h5", manifest_of(tmp_path)
    with SpectrumWriter(output, manifest) as writer:
        writer.add_all([record_of("wide/0/0")])
        writer._store.vectors.add(vector_record_of("wide/0/0", writer.plan, **changes))
    with SpectrumWriter(output, manifest) as writer:
        assert [reason in part.reason for part in writer.rejected] == [True], writer.rejected
        assert not writer.completed_vectors()


def test_layouts_that_name_nothing_or_twice_are_refused():
    assert LAYOUT.n == N and LAYOUT.starts.tolist() == [0, 800, 1200, 1230]
    for names, sizes in (((), ()), (("a", "a"), (1, 2)), (("a", "b"), (1, 0)), (("a",), (1, 2))):
        with pytest.raises(ValueError, match="parameter"):
            ParameterLayout(names=names, sizes=sizes, modules=names)
