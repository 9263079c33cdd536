"""The log of a growing store: what it keeps when it is torn, damaged or full, and what it costs to
read.
"""

import errno
import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest

from landscape.errors import StoreError
from landscape.signals import Stopped, stop_requests
from landscape.store import SpectrumStore, SpectrumWriter, hdf5, parts_folder, schema
from landscape.store import log as log_module
from landscape.store import parts as parts_module
from tests.helpers.store_records import manifest_of, record_of
from tests.store.test_damage import module_record
from tests.store.test_store import assert_holds, entries, refusal, write

KEYS = [f"wide/0/{batch}" for batch in range(4)]


@pytest.fixture
def manifest(tmp_path):
    return manifest_of(tmp_path, series=("wide",), epochs=(0,))


@pytest.fixture
def output(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "s.h5"


def log_of(output, number=0):
    return parts_folder(output) / f"records.{number}.log"


def ends_of_records(content):
    """Where the lines of each record end."""
    newlines = [position + 1 for position, byte in enumerate(content) if byte == ord("\n")]
    return newlines[1::2]


def stored(output):
    with SpectrumStore.open(output) as store:
        return store.completed_keys(), [part.reason for part in store.rejected]


# torn and damaged


def test_a_log_that_ends_anywhere_gives_the_records_before_its_end_without_a_word(output, manifest):
    write(output, manifest, merge=False)
    content = log_of(output).read_bytes()
    ends = ends_of_records(content)
    assert len(ends) == 4 and ends[-1] == len(content)
    for length in sorted(
        {
            *range(0, len(content), 37),
            *ends,
            *(end - 1 for end in ends),
            *(end + 1 for end in ends[:-1]),
        }
    ):
        log_of(output).write_bytes(content[:length])
        assert stored(output) == (frozenset(KEYS[: sum(end <= length for end in ends)]), []), length


def test_a_flipped_bit_costs_the_record_that_it_is_in_alone(output, manifest):
    write(output, manifest, merge=False)
    content = log_of(output).read_bytes()
    ends = ends_of_records(content)
    lines = [position for position, byte in enumerate(content) if byte == ord("\n")]
    for position in sorted({*range(0, len(content), 41), *lines[:-1], *(end for end in ends[:-1])}):
        damaged = bytearray(content)
        damaged[position] ^= 4
        log_of(output).write_bytes(damaged)
        hit = sum(end <= position for end in ends)
        keys, reasons = stored(output)
        assert keys == frozenset(KEYS) - {KEYS[hit]}, position
        assert len(reasons) == 1 and "damaged" in reasons[0] and "\n" not in reasons[0], position
    # Without its last line end, a record looks as if it were still being written.
    log_of(output).write_bytes(content[:-1] + b"\t")
    assert stored(output) == (frozenset(KEYS[:-1]), [])


@pytest.mark.parametrize(
    "junk",
    [b"\n", b"\x00" * 3_000_000, b"junk\n{}\n", b'{"landscape": "record", "schema_version": 1'],
)
def test_what_is_put_between_two_records_costs_none(output, manifest, junk):
    write(output, manifest, merge=False)
    content = log_of(output).read_bytes()
    end = ends_of_records(content)[1]
    log_of(output).write_bytes(content[:end] + junk + content[end:])
    keys, reasons = stored(output)
    assert keys == frozenset(KEYS) and len(reasons) == 1


def test_records_that_are_lost_to_damage_are_measured_again_in_a_log_of_their_own(output, manifest):
    write(output, manifest, merge=False)
    content = bytearray(log_of(output).read_bytes())
    content[ends_of_records(content)[0] + 300] ^= 1
    log_of(output).write_bytes(content)
    assert write(output, manifest, merge=False) == [KEYS[1]]
    assert bytes(content) == log_of(output).read_bytes() and log_of(output, 1).exists()
    assert write(output, manifest) == [] and entries(output.parent) == ["s.h5"]
    with SpectrumStore.open(output) as store:
        assert_holds(store, KEYS)


def test_a_writer_never_appends_to_the_log_of_another(output, manifest):
    for number, key in enumerate(KEYS):
        write(output, manifest, keys=[key], merge=False)
        with open(log_of(output, number), "ab") as stream:
            stream.write(b'{"landscape": "rec')
    assert stored(output) == (frozenset(KEYS), [])


def test_one_record_in_two_logs_is_taken_once_and_another_one_of_the_same_batch_is_said(
    tmp_path, output, manifest
):
    other = tmp_path / "other.h5"
    write(output, manifest, keys=KEYS[:2], merge=False)
    with SpectrumWriter(other, manifest) as writer:
        writer.add_all(
            [record_of(KEYS[0], seconds=9.0), record_of(KEYS[1], loss=9.0), record_of(KEYS[2])]
        )
    shutil.copy(log_of(other), log_of(output, 1))
    keys, reasons = stored(output)
    assert keys == frozenset(KEYS[:3]) and len(reasons) == 1
    assert f"{KEYS[1]} is stored with another loss before it" in reasons[0]
    with SpectrumStore.open(output) as store:
        assert_holds(store, KEYS[:3])


def test_a_record_that_a_log_holds_is_seen_by_a_reader_after_a_merge_has_removed_it(
    output, manifest
):
    with SpectrumWriter(output, manifest) as writer:
        writer.add_all(map(record_of, KEYS))
        with SpectrumStore.open(output) as store:
            writer.merge()
            assert not parts_folder(output).exists()
            assert_holds(store, KEYS)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE, errno.EMFILE])
def test_a_log_that_cannot_be_read_now_is_not_taken_for_lost(output, manifest, monkeypatch, number):
    write(output, manifest, merge=False)
    content = log_of(output).read_bytes()

    def failing(path, *, real=parts_module.open_regular):
        if path.suffix == ".log":
            raise OSError(number, os.strerror(number))
        return real(path)

    with monkeypatch.context() as patched:
        patched.setattr(parts_module, "open_regular", failing)
        for attempt in (SpectrumStore.open, lambda path: SpectrumWriter(path, manifest)):
            refusal(
                lambda attempt=attempt: attempt(output), os.strerror(number), "records are needed"
            )
    assert log_of(output).read_bytes() == content
    assert stored(output) == (frozenset(KEYS), [])


def test_many_logs_are_read_with_few_open_files(output, manifest, monkeypatch):
    for key in KEYS:
        write(output, manifest, keys=[key], merge=False)
    monkeypatch.setattr(parts_module, "_MAX_OPEN", 2)
    before = len(os.listdir("/proc/self/fd"))
    with SpectrumStore.open(output) as store:
        assert len(os.listdir("/proc/self/fd")) - before < 3
        assert_holds(store, KEYS)


# units


def test_a_unit_is_one_write_and_one_fsync(output, manifest, monkeypatch):
    calls = []
    with SpectrumWriter(output, manifest) as writer:
        writer.add(record_of(KEYS[0]))
        for name in ("write", "fsync"):
            real = getattr(os, name)
            monkeypatch.setattr(
                os, name, lambda *given, name=name, real=real: (calls.append(name), real(*given))[1]
            )
        writer.add_all([record_of(KEYS[1]), module_record(KEYS[1]), module_record(KEYS[2])])
        assert calls == ["write", "fsync"]
        assert writer.completed_keys() == {*KEYS[:2]} and writer.completed_modules() == {*KEYS[1:3]}
        writer.add_all([])
        assert calls == ["write", "fsync"]
        writer.merge()
    with SpectrumStore.open(output) as store:
        assert store.completed_keys() == {*KEYS[:2]} and store.completed_modules() == {*KEYS[1:3]}


@pytest.mark.parametrize("merged", [False, True])
def test_a_unit_that_was_computed_twice_is_stored_once_and_counted(output, manifest, merged):
    write(output, manifest, keys=KEYS[:2], merge=merged)
    with SpectrumWriter(output, manifest) as writer:
        writer.add_all(
            [
                record_of(KEYS[1], seconds=77.0),
                record_of(KEYS[2]),
                record_of(KEYS[2]),
                module_record(KEYS[0]),
            ]
        )
        assert writer.num_duplicates == 2
        writer.add_all([module_record(KEYS[0])])
        assert writer.num_duplicates == 3
        with pytest.raises(ValueError, match="stored already"):
            writer.add(record_of(KEYS[1]))
        writer.merge()
    with SpectrumStore.open(output) as store:
        assert_holds(store, KEYS[:3])
        assert store.completed_modules() == {KEYS[0]}


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize(
    "field", ["values", "residuals", "ritz_values", "loss", "num_negative", "num_matvecs"]
)
def test_a_batch_that_was_computed_twice_with_other_values_is_refused_by_name(
    output, manifest, merged, field
):
    write(output, manifest, keys=KEYS[:2], merge=merged)
    value = np.nextafter(getattr(record_of(KEYS[1]), field), np.inf)
    if field.startswith("num"):
        value = getattr(record_of(KEYS[1]), field) + 1
    with SpectrumWriter(output, manifest) as writer:
        unit = [record_of(KEYS[2]), record_of(KEYS[1], **{field: value})]
        refusal(
            lambda: writer.add_all(unit), f"{KEYS[1]} was computed twice, with different {field}"
        )
        assert writer.completed_keys() == {*KEYS[:2]} and writer.num_duplicates == 0
        other = module_record(KEYS[0])
        writer.add_modules(other)
        changed = module_record(KEYS[0])
        object.__setattr__(changed, "num_matvecs", other.num_matvecs + 1)
        refusal(
            lambda: writer.add_all([changed]),
            f"{KEYS[0]} was computed twice, with different num_matvecs",
        )


def test_a_unit_is_stored_as_a_whole_or_not_at_all(output, tmp_path):
    with SpectrumWriter(output, manifest_of(tmp_path, epochs=(0, 2))) as writer:
        for wrong, error in [
            (record_of("wide/0/9"), ValueError),
            (record_of("wide/0/1", checkpoint_sha256="0" * 64), StoreError),
            (record_of("wide/2/0", batch_sha256="0" * 64), StoreError),
        ]:
            with pytest.raises(error):
                writer.add_all([record_of("wide/0/0"), wrong])
        assert not writer.completed_keys() and not list(parts_folder(output).glob("*.log"))
        writer.add_all([record_of("wide/0/0"), record_of("wide/2/0")])
    assert stored(output) == (frozenset(["wide/0/0", "wide/2/0"]), [])


# full disks


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("where", ["write", "write after a part", "fsync"])
@pytest.mark.parametrize("cut", [True, False])
def test_an_append_that_fails_leaves_nothing_of_itself(
    output, manifest, monkeypatch, number, where, cut
):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    parts = []

    def write_a_part(descriptor, content, *, real=os.write):
        if parts:
            fail()
        parts.append(real(descriptor, content[: len(content) // 3]))
        return parts[0]

    with SpectrumWriter(output, manifest) as writer:
        writer.add(record_of(KEYS[0]))
        content = log_of(output).read_bytes()
        with monkeypatch.context() as patched:
            patched.setattr(
                log_module.os,
                "fsync" if where == "fsync" else "write",
                write_a_part if "part" in where else fail,
            )
            if not cut:
                patched.setattr(log_module.os, "ftruncate", fail)
            refusal(lambda: writer.add_all(map(record_of, KEYS[1:3])), os.strerror(number), "safe")
        assert not cut or log_of(output).read_bytes() == content
        assert writer.completed_keys() == {KEYS[0]}
        writer.add_all(map(record_of, KEYS[1:]))
        assert log_of(output, 1).exists() is not cut
    assert stored(output) == (frozenset(KEYS), [])
    assert write(output, manifest) == []
    with SpectrumStore.open(output) as store:
        assert_holds(store, KEYS)


def test_a_log_that_somebody_removes_is_noticed_at_the_next_record(output, manifest):
    with SpectrumWriter(output, manifest) as writer:
        writer.add(record_of(KEYS[0]))
        log_of(output).unlink()
        refusal(lambda: writer.add(record_of(KEYS[1])), "it was removed while", "Leave the folder")


def test_a_folder_of_parts_that_somebody_removes_is_one_line_too(output, manifest):
    with SpectrumWriter(output, manifest) as writer:
        writer.add(record_of(KEYS[0]))
        shutil.rmtree(parts_folder(output))
        refusal(lambda: writer.add(record_of(KEYS[1])), "it was removed while", "Leave the folder")
        refusal(writer.merge, str(output))
    assert not parts_folder(output).exists()
    assert write(output, manifest) == KEYS


def write_some(file, go_on, *, groups=6):
    for group in range(groups):
        go_on()
        for name in range(8):
            file.create_dataset(f"{group}/{name}", data=np.arange(500.0) + group, fletcher32=True)
        file[str(group)].attrs["text"] = "a" * 100_000


def test_hdf5_is_never_told_of_a_write_that_fails(tmp_path, monkeypatch):
    """From any write on, the disk takes nothing: the file in memory stays whole, and the error is
    raised afterwards.
    """
    path = tmp_path / "x.h5"
    calls = []
    with monkeypatch.context() as patched:
        patched.setattr(
            hdf5.os, "pwrite", lambda *given, real=os.pwrite: (calls.append(1), real(*given))[1]
        )
        hdf5.save_hdf5(path, write_some)
    for at in range(0, len(calls), 3):
        with open(tmp_path / "y", "w+b") as stream:
            disk = hdf5._DiskFile(stream.fileno())
            left = [at]

            def pwrite(descriptor, content, offset, *, left=left, real=os.pwrite):
                left[0] -= 1
                if left[0] < 0:
                    raise OSError(errno.ENOSPC, "No space left on device")
                # A disk that is nearly full takes a part.
                return real(
                    descriptor,
                    content[: max(1, len(content) // 2)] if left[0] == 0 else content,
                    offset,
                )

            with monkeypatch.context() as patched:
                patched.setattr(hdf5.os, "pwrite", pwrite)
                with h5py.File(disk, "w", track_order=True) as file:
                    write_some(file, lambda: None)
            assert disk.error is not None and disk.error.errno == errno.ENOSPC
            with h5py.File(disk, "r") as file:
                for group in range(6):
                    np.testing.assert_array_equal(file[f"{group}/7"][()], np.arange(500.0) + group)
                    assert len(file[str(group)].attrs["text"]) == 100_000


def test_a_limit_on_the_size_of_files_is_a_full_disk_at_any_size(output, manifest, tmp_path):
    old = write(output, manifest, keys=KEYS[:1])
    content = output.read_bytes()
    write(output, manifest, keys=KEYS[1:3], merge=False)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in range(5_000, len(content), 9_001):
        with SpectrumWriter(output, manifest) as writer:
            try:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
                refusal(writer.merge, "File too large", "safe")
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert output.read_bytes() == content
    assert write(output, manifest) == [KEYS[3]]
    with SpectrumStore.open(output) as store:
        assert_holds(store, [*old, *KEYS[1:]])


def test_a_disk_of_a_megabyte_keeps_what_it_took_and_merges_when_there_is_room(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True
    )
    if mount.returncode != 0:
        pytest.skip("a file system of its own cannot be mounted here")
    try:
        output = disk / "s.h5"
        manifest = manifest_of(tmp_path, num_batches=400)
        acknowledged = []
        with SpectrumWriter(output, manifest) as writer:
            with pytest.raises(StoreError, match="No space left on device"):
                for key in writer.plan.keys():
                    writer.add(record_of(key))
                    acknowledged.append(key)
            assert len(acknowledged) > 300
            refusal(writer.merge, "No space left on device", "safe")
        assert not output.exists()
        assert stored(output) == (frozenset(acknowledged), [])
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        write(output, manifest, keys=[])
        with SpectrumStore.open(output) as store:
            assert_holds(store, acknowledged)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


# memory, time, interruptions


def test_a_store_holds_no_records_and_a_merge_those_of_one_checkpoint(
    output, tmp_path, monkeypatch, records_alive
):
    manifest = manifest_of(tmp_path, epochs=tuple(range(3)), num_batches=5)
    write(output, manifest, merge=False)
    assert records_alive() == 0
    with SpectrumStore.open(output) as store:
        assert records_alive() == 0
        store.records("wide", 2)
        assert records_alive() == 0
    alive = []

    def counting(group, table, *, real=schema._write_table):
        alive.append(records_alive())
        real(group, table)

    monkeypatch.setattr(schema, "_write_table", counting)
    write(output, manifest, keys=[])
    assert len(alive) == 6 and max(alive) <= 5


def test_a_log_is_scanned_once_from_opening_to_merge(output, manifest, monkeypatch):
    write(output, manifest, keys=KEYS[:2], merge=False)
    scans = []
    monkeypatch.setattr(
        parts_module,
        "scan",
        lambda stream, real=parts_module.scan: (scans.append(1), real(stream))[1],
    )
    write(output, manifest)
    assert len(scans) == 1


def test_a_request_to_stop_ends_a_merge_between_two_checkpoints(output, tmp_path, monkeypatch):
    manifest = manifest_of(tmp_path)
    keys = write(output, manifest, merge=False)
    written = []

    def interrupted(group, table, *, real=schema._write_table):
        written.append(table.epoch)
        signal.raise_signal(signal.SIGTERM)
        real(group, table)

    with stop_requests(), SpectrumWriter(output, manifest) as writer:
        with monkeypatch.context() as patched:
            patched.setattr(schema, "_write_table", interrupted)
            with pytest.raises(Stopped):
                writer.merge()
    assert len(written) == 1 and not output.exists()
    assert write(output, manifest) == []
    with SpectrumStore.open(output) as store:
        assert_holds(store, keys)


def test_a_record_that_was_stored_as_a_request_to_stop_came_is_merged(
    output, manifest, monkeypatch
):
    with stop_requests(), SpectrumWriter(output, manifest) as writer:
        writer.add(record_of(KEYS[0]))
        with monkeypatch.context() as patched:
            patched.setattr(
                log_module.os, "fsync", lambda descriptor: signal.raise_signal(signal.SIGTERM)
            )
            with pytest.raises(Stopped):
                writer.add(record_of(KEYS[1]))
        assert writer.completed_keys() == {*KEYS[:2]}
        writer.merge()
    with SpectrumStore.open(output) as store:
        assert_holds(store, KEYS[:2])


def test_another_folder_is_asked_for_where_the_file_system_has_no_locks(
    output, manifest, monkeypatch
):
    for number in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):

        def no_locks(*_, number=number):
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patched:
            patched.setattr("fcntl.flock", no_locks)
            words = ("has no locks", os.strerror(number), "another folder", "-o flock")
            refusal(lambda: SpectrumWriter(output, manifest), str(output), *words)


def test_what_merged_files_hold_is_the_same_as_with_one_file_a_record(output, tmp_path):
    """The numbers that a reader finds do not depend on how records came into the file."""
    manifest = manifest_of(tmp_path)
    write(output, manifest)
    other = Path(tmp_path / "units.h5")
    with SpectrumWriter(other, manifest) as writer:
        writer.add_all(map(record_of, writer.plan.keys()))
        writer.merge()
    assert output.read_bytes() == other.read_bytes()
