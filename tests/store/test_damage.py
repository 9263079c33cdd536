"""Damaged, hostile and oversized files: one line that says what is wrong, never a traceback, a
wait, or memory for nothing.
"""

import json
import os
import shutil
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from landscape.cli import main
from landscape.errors import DataError, StoreError
from landscape.files import open_regular, read_regular
from landscape.store import (
    DensityRecord,
    ModuleRecord,
    SpectrumStore,
    SpectrumWriter,
    StoredSurface,
    describe,
    describe_densities,
    describe_surface,
    is_density_file,
    is_surface,
    parts_folder,
    read_densities,
    read_surface,
    write_densities,
    write_surface,
)
from tests.helpers.store_records import as_parts, manifest_of, record_of

TABLE = "spectra/wide/0"
MODULES = "modules/wide/0"


def module_record(key: str) -> ModuleRecord:
    whole = record_of(key)
    matrix = np.stack([whole.values, whole.values / 2])
    ends = dict.fromkeys(("smallest", "largest", "smallest_residuals", "largest_residuals"), matrix)
    counts = {name: np.array([3, 3]) for name in ("num_negative", "num_positive", "num_matvecs")}
    facts = {
        name: getattr(whole, name)
        for name in ("series", "epoch", "batch", "loss", "batch_sha256", "checkpoint_sha256")
    }
    return ModuleRecord(
        **facts,
        **ends,
        **counts,
        modules=("a", "b"),
        module_params=np.array([617, 617]),
        eigenvalues=matrix,
        residuals=abs(matrix),
        converged=matrix > np.inf,
        num_params=1234,
        seconds=1.0,
    )


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("intact")
    with SpectrumWriter(folder / "s.h5", manifest_of(folder, num_batches=2)) as writer:
        for key in writer.plan.keys():
            writer.add(record_of(key))
            writer.add_modules(module_record(key))
        writer.merge()
    # Imports what readers import, which counts as memory otherwise.
    read_all(folder / "s.h5")
    return folder / "s.h5"


def read_all(path: Path, *, with_xarray: bool = True) -> list[np.ndarray]:
    """Everything that any reader takes of a store."""
    with SpectrumStore.open(path) as store:
        if with_xarray:
            store.to_xarray()
            describe(path)
        tables = [store.records(*key) for key in store.identities]
        tables += [store.modules(*key) for key in store.module_identities]
        return [table.eigenvalues for table in tables]


def dataset(where: str, data: object, **options: object):
    def change(file: h5py.File) -> None:
        del file[where]
        file.create_dataset(where, data=data, **options)

    return change


def sparse(where: str, shape: tuple[int, ...], dtype: str = "f8", **options: object):
    def change(file: h5py.File) -> None:
        del file[where]
        file.create_dataset(where, shape=shape, dtype=dtype, **options)

    return change


def value(where: str, new: float):
    def change(file: h5py.File) -> None:
        array = file[where]
        array[(0,) * array.ndim] = new

    return change


def attribute(where: str, name: str, new: object):
    def change(file: h5py.File) -> None:
        file[where].attrs[name] = new

    return change


def member(where: str, make):
    def change(file: h5py.File) -> None:
        del file[where]
        make(file)

    return change


DAMAGE = {
    "texts for numbers": dataset(f"{TABLE}/loss", np.array([b"a", b"b"])),
    "numbers for texts": dataset(f"{TABLE}/batch_sha256", np.zeros(2)),
    "whole numbers for numbers": dataset(f"{TABLE}/eigenvalues", np.zeros((2, 3), dtype="i8")),
    "complex numbers": dataset(f"{TABLE}/eigenvalues", np.zeros((2, 3), dtype="c16")),
    "records for numbers": dataset(f"{TABLE}/loss", np.zeros(2, dtype=[("a", "f8")])),
    "one axis too few": dataset(f"{TABLE}/eigenvalues", np.zeros(6)),
    "one row too few": dataset(f"{TABLE}/residuals", np.zeros((1, 3))),
    "a single number": dataset(f"{TABLE}/loss", 1.0),
    "nothing at all": dataset(f"{TABLE}/loss", h5py.Empty("f8")),
    "sparse chunks": sparse(f"{TABLE}/eigenvalues", (10**9, 1000), chunks=(1000, 1000)),
    "never written": sparse(f"{TABLE}/ritz_values", (2, 10**12)),
    "sparse and packed": sparse(
        f"{TABLE}/ritz_values", (2, 10**12), chunks=(1, 10**6), compression="gzip"
    ),
    "a huge chunk": sparse(
        f"{TABLE}/loss", (2,), maxshape=(None,), chunks=(2**28,), compression="gzip"
    ),
    "a sparse plan": sparse("plan/epoch", (10**12,), "i8", chunks=(10**6,)),
    "sparse texts": sparse("plan/label", (10**12,), h5py.string_dtype(), chunks=(10**6,)),
    "NaN": value(f"{TABLE}/eigenvalues", np.nan),
    "infinity": value(f"{TABLE}/loss", np.inf),
    "1e300": value(f"{TABLE}/eigenvalues", 1e300),
    "a node of 1e300": value(f"{TABLE}/ritz_values", 1e300),
    "NaN before a node": value(f"{TABLE}/ritz_values", np.nan),
    "a negative batch": value(f"{TABLE}/batch", -1),
    "a batch twice": value(f"{TABLE}/batch", 1),
    "no digest": dataset(f"{TABLE}/batch_sha256", np.array([b"a", b"b"])),
    "a table that is a dataset": member(TABLE, lambda file: file.create_dataset(TABLE, data=1)),
    "a dataset that is a group": member(
        f"{TABLE}/loss", lambda file: file.create_group(f"{TABLE}/loss")
    ),
    "a series that is a dataset": member(
        "spectra/wide", lambda file: file.create_dataset("spectra/wide", data=1)
    ),
    "no spectra": member("spectra", lambda file: None),
    "a link to another file": member(
        f"{TABLE}/loss",
        lambda file: file[TABLE].__setitem__("loss", h5py.ExternalLink("other.h5", "x")),
    ),
    "a link": member(
        f"{TABLE}/loss",
        lambda file: file[TABLE].__setitem__("loss", h5py.SoftLink("/spectra/wide/2/loss")),
    ),
    "numbers in another file": member(
        f"{TABLE}/loss",
        lambda file: file.create_dataset(
            f"{TABLE}/loss", shape=(2,), dtype="f8", external=[("/dev/zero", 0, 16)]
        ),
    ),
    "settings that are a list": attribute(TABLE, "settings", "[]"),
    "settings that are no JSON": attribute(TABLE, "settings", "{"),
    "settings that are nested": attribute(TABLE, "settings", "[" * 100_000),
    "a model as trained that is none": attribute(TABLE, "settings", '{"as_trained": {"a": 1}}'),
    "an audit that is none": attribute(TABLE, "extras", '{"audit": {"several": [1]}}'),
    "notes that are a number": attribute(TABLE, "extras", '{"notes": 1}'),
    "parameters that are a text": attribute(TABLE, "num_params", "many"),
    "weights without a digest": attribute(TABLE, "checkpoint_sha256", "abc"),
    "a protocol without a section": attribute("/", "protocol", '{"data": {}}'),
    "a protocol of another form": attribute("/", "protocol", "[1]"),
    "a manifest without a digest": attribute("/", "manifest_sha256", np.arange(3)),
    "a version that is an array": attribute("/", "schema_version", np.arange(3)),
    "an epoch that is a word": member(
        TABLE, lambda file: file.move("spectra/wide/2", "spectra/wide/last")
    ),
    "NaN of a module": value(f"{MODULES}/eigenvalues", np.nan),
    "1e300 of a module": value(f"{MODULES}/largest", 1e300),
    "a sparse module": sparse(f"{MODULES}/eigenvalues", (10**9, 2, 3), chunks=(10**5, 2, 3)),
    "modules twice": dataset(f"{MODULES}/modules", ["a", "a"], dtype=h5py.string_dtype()),
    "no modules": dataset(f"{MODULES}/modules", np.arange(2)),
}


def damaged_copy(intact: Path, folder: Path, change) -> Path:
    path = folder / "s.h5"
    shutil.copy(intact, path)
    with h5py.File(path, "r+") as file:
        change(file)
    return path


@contextmanager
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_store_is_one_line_and_takes_no_memory(intact, tmp_path, name):
    path = damaged_copy(intact, tmp_path, DAMAGE[name])
    # Tracing is slow.
    of_size = any(word in name for word in ("sparse", "huge", "never"))
    with little_memory() if of_size else nullcontext(), pytest.raises(StoreError) as refused:
        read_all(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


def test_a_value_that_no_measurement_gives_is_named_by_its_record(intact, tmp_path):
    path = damaged_copy(intact, tmp_path, value(f"{TABLE}/eigenvalues", np.nan))
    with pytest.raises(StoreError, match="eigenvalues of wide/0/0 is nan"):
        read_all(path)
    path = damaged_copy(intact, tmp_path, value(f"{TABLE}/eigenvalues", 1e300))
    with pytest.raises(
        StoreError, match=r"eigenvalues of wide/0/0 is 1e\+300, which no measurement gives"
    ):
        read_all(path)


COMMANDS = {
    "info": ["info", "{}"],
    "density": ["density", "{}", "-o", "x.png"],
    "compare": ["compare", "{}"],
    "report": ["report", "{}", "-o", "x.html"],
    "figure": ["figure", "{}", "-o", "x.png"],
    "sharpness": ["figure", "{}", "-o", "x.png", "--kind", "sharpness"],
    "modules": ["figure", "{}", "-o", "x.png", "--kind", "modules"],
}


def one_line(arguments: list[str]) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def cut(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for position in range(2048, len(content) - 1, 97):
        content[position] ^= 0x5A
    path.write_bytes(content)


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_every_command_that_reads_a_store_refuses_a_damaged_one_with_one_line(
    intact, tmp_path, monkeypatch, arguments
):
    monkeypatch.chdir(tmp_path)
    wrong = MODULES if "modules" in arguments else TABLE
    for change in (
        sparse(f"{wrong}/eigenvalues", (10**9, 3), chunks=(1000, 3)),
        value(f"{wrong}/eigenvalues", np.nan),
    ):
        path = damaged_copy(intact, tmp_path, change)
        assert "damaged" in one_line([part.format(path) for part in arguments])
    shutil.copy(intact, path)
    cut(path)
    assert "damaged" in one_line([part.format(path) for part in arguments])
    path.write_bytes(path.read_bytes()[:5000])
    one_line([part.format(path) for part in arguments])
    assert not list(tmp_path.glob("x.*")) and not list(tmp_path.glob(".*"))


@pytest.mark.filterwarnings("ignore")
def test_bits_flipped_anywhere_are_refused_or_change_no_eigenvalue(intact, tmp_path):
    whole, expected = intact.read_bytes(), read_all(intact, with_xarray=False)
    generator = np.random.default_rng(0)
    path, refused = tmp_path / "s.h5", 0
    for _ in range(20):
        content = bytearray(whole)
        for position in generator.integers(0, len(whole), 3):
            content[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(content)
        try:
            values = read_all(path, with_xarray=False)
        except StoreError:
            refused += 1
        else:
            assert all(
                np.array_equal(one, other) for one, other in zip(values, expected, strict=True)
            )
    assert refused >= 4


def density() -> DensityRecord:
    return DensityRecord(
        series="a",
        label="A",
        model="m",
        epoch=0,
        n=4,
        checkpoint_sha256="",
        settings={"num_batches": 1},
        audited=True,
        nodes=np.array([[1.0, 2.0], [1.0, np.nan]]),
        weights=np.array([[0.5, 0.5], [1.0, np.nan]]),
        operators=np.array([0, 0]),
        remainders=np.zeros(2),
        exact=np.array([[3.0]]),
        exact_residuals=np.zeros((1, 1)),
        num_zeros=np.array([0]),
        resolution=1e-9,
        rounding=1e-9,
        dense_eigenvalues=np.arange(4.0)[None],
        num_negative=np.array([0]),
    )


@pytest.mark.parametrize(
    "change",
    [
        dataset("density/a/0/nodes", np.array([[b"a"]])),
        dataset("density/a/0/weights", np.zeros((1, 2))),
        dataset("density/a/0/operators", np.array([0, 7])),
        dataset("density/a/0/num_zeros", np.array([0, 0])),
        dataset("density/a/0/dense_eigenvalues", np.zeros((1, 5))),
        sparse("density/a/0/nodes", (10**9, 1000), chunks=(1000, 1000)),
        sparse(
            "density/a/0/dense_eigenvalues",
            (1, 4),
            maxshape=(1, None),
            chunks=(1, 2**28),
            compression="gzip",
        ),
        value("density/a/0/nodes", np.nan),
        value("density/a/0/nodes", 1e300),
        value("density/a/0/dense_eigenvalues", np.nan),
        attribute("density/a/0", "n", 10**12),
        attribute("density/a/0", "n", "x"),
        attribute("density/a/0", "settings", "[]"),
        attribute("density/a/0", "settings", '{"num_batches": 1000000000000}'),
        attribute("density/a/0", "settings", '{"num_batches": 2, "missing_batches": ["x"]}'),
        attribute("density/a/0", "settings", '{"num_batches": 1, "as_trained": {"a": 1}}'),
        member("density/a/0", lambda file: file.create_dataset("density/a/0", data=1)),
    ],
)
def test_a_damaged_file_of_densities_is_one_line(tmp_path, change):
    path = tmp_path / "d.h5"
    write_densities(path, [density()])
    assert len(read_densities(path)) == 1
    with h5py.File(path, "r+") as file:
        change(file)
    for read in (read_densities, describe_densities):
        with pytest.raises(StoreError, match="damaged"):
            read(path)
    assert "damaged" in one_line(["info", str(path)])
    assert "damaged" in one_line(["density", str(path), "-o", str(tmp_path / "x.png")])


def surface() -> StoredSurface:
    from landscape.surface import Axis, LocalModel, LossSurface

    axis = Axis(name="x", unit="1", coordinates=np.linspace(-1, 1, 5), norm=1.0)
    local = LocalModel(loss=1.0, slopes=np.zeros(2), hessian=np.eye(2))
    losses, computed = np.ones((5, 5)), np.ones((5, 5), dtype=bool)
    result = LossSurface(
        axes=(axis, axis), losses=losses, computed=computed, local=local, cosine=0.0
    )
    return StoredSurface(result=result, request={"points": 5})


@pytest.mark.parametrize(
    "change",
    [
        dataset("losses", np.zeros(5)),
        dataset("losses", np.zeros((5, 5), dtype="S1")),
        dataset("computed", np.zeros((5, 5))),
        sparse("losses", (10**9, 1000), chunks=(1000, 1000)),
        sparse("axes/0/coordinates", (10**13,), chunks=(10**6,)),
        value("axes/0/coordinates", np.nan),
        dataset("local/hessian", np.zeros((3, 3))),
        attribute("/", "request", "[]"),
        attribute("/", "as_trained", '{"a": 1}'),
        attribute("axes/0", "norm", "far"),
        lambda file: file.create_group("axes/2"),
        member("axes", lambda file: None),
    ],
)
def test_a_damaged_file_of_a_surface_is_one_line(tmp_path, change):
    path = tmp_path / "s.h5"
    write_surface(path, surface())
    assert read_surface(path) is not None
    with h5py.File(path, "r+") as file:
        change(file)
    for read in (read_surface, describe_surface):
        with pytest.raises(StoreError, match="damaged"):
            read(path)
    assert "damaged" in one_line(["info", str(path)])


# What is no regular file


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    return tmp_path / "pipe.h5"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_a_named_pipe_is_refused_at_once_in_place_of_a_store(pipe, arguments):
    assert str(pipe) in one_line([part.format(pipe) for part in arguments])


@pytest.mark.timeout(60)
@pytest.mark.parametrize("suffix", ["", ".pt", ".safetensors", ".yaml", ".json", ".index.json"])
def test_a_named_pipe_of_any_name_is_refused_at_once(tmp_path, suffix):
    path = tmp_path / f"pipe{suffix}"
    os.mkfifo(path)
    assert str(path) in one_line(["info", str(path)])
    with pytest.raises(OSError, match="named pipe"):
        open_regular(path)
    assert str(path) in one_line(["spectra", str(path), "-o", str(tmp_path / "x.h5")])


@pytest.mark.timeout(60)
def test_a_pipe_or_a_device_is_no_table_of_pairs(pipe):
    from landscape.clip.table_text import read_text

    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(DataError, match="not a regular file"):
            read_text(path, "utf-8")


@pytest.mark.timeout(60)
def test_a_picture_that_is_a_pipe_fails_its_batch(pipe):
    from landscape.clip.pair_files import PictureFile, _decode
    from landscape.errors import PictureError

    with pytest.raises(PictureError, match="named pipe"):
        _decode(PictureFile(path=str(pipe), key="a", caption="b", where="row 1"))


def test_a_file_that_is_larger_than_expected_is_not_read(tmp_path):
    path = tmp_path / "large"
    with open(path, "wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(OSError, match="1099511627776 bytes, at most 100"):
        read_regular(path, largest=100)


def test_an_empty_name_is_no_path():
    no_output = ["-o", ""]
    for arguments in (
        ["info", ""],
        ["figure", "", "-o", "x.png"],
        ["spectra", "m", *no_output],
        ["train", *no_output],
    ):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2 and "the name is empty" in result.stderr
    for probe in (is_density_file, is_surface):
        assert not probe(Path(""))


# Parts of a growing output


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: os.mkfifo(path),
        lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 2**40),
        lambda path: path.write_bytes(b"\x00"),
        lambda path: path.symlink_to("/dev/zero"),
    ],
)
@pytest.mark.parametrize(
    "name", ["wide.0.1.jsonl", "wide.0.1.modules.jsonl", "records.0.log", "plan.json"]
)
def test_a_part_that_is_no_part_is_reported_and_never_waited_for(tmp_path, spoil, name):
    output = tmp_path / "s.h5"
    with SpectrumWriter(output, manifest_of(tmp_path, num_batches=2)) as writer:
        writer.add(record_of("wide/0/0"))
        writer.merge()
        folder = parts_folder(output)
    folder.mkdir()
    spoil(folder / name)
    with SpectrumStore.open(output) as store:
        assert [part.path.name for part in store.rejected] == [name]
        assert store.completed_keys() == {"wide/0/0"}


@pytest.mark.parametrize(
    "change",
    [
        {"settings": []},
        {"extras": {"notes": 1}},
        {"values": [[1.0], [2.0, 3.0]]},
        {"values": [1e300, 1.0, 1.0]},
        {"epoch": "x"},
        {"epoch": float("inf")},
        {"series": 7},
        {"unknown": 1},
    ],
)
@pytest.mark.parametrize("a_file_a_record", [True, False])
def test_a_part_with_a_right_digest_and_wrong_content_is_reported(
    tmp_path, change, a_file_a_record
):
    import hashlib

    output = tmp_path / "s.h5"
    with SpectrumWriter(output, manifest_of(tmp_path, num_batches=2)) as writer:
        writer.add(record_of("wide/0/0"))
        writer.add(record_of("wide/0/1"))
        if a_file_a_record:
            as_parts(parts_folder(output))
        path = parts_folder(output) / ("wide.0.1.jsonl" if a_file_a_record else "records.0.log")
        *before, header, body, _ = path.read_bytes().split(b"\n")
        content = json.loads(body)
        content["record"] |= change
        body = json.dumps(content).encode()
        header = json.dumps(
            json.loads(header) | {"sha256": hashlib.sha256(body).hexdigest()}
        ).encode()
        path.write_bytes(b"\n".join([*before, header, body, b""]))
        with SpectrumStore.open(output) as store:
            assert [part.path.name for part in store.rejected] == [path.name]
            assert store.completed_keys() == {"wide/0/0"}
