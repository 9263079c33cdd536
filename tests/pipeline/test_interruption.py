"""Ctrl-C, SIGTERM and full disks, at every moment of every save: what was there stays, nothing
half-written is left.
"""

import concurrent.futures
import errno
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from landscape import files, pipeline
from landscape.cli import main
from landscape.clip import checkpoint as checkpoints
from landscape.clip.checkpoint import write_checkpoint
from landscape.errors import CheckpointError, LandscapeError, StoreError
from landscape.files import save_atomically, write_atomically
from landscape.signals import Stopped, obey_lost_request, stop_requests, stopping_later
from landscape.store import SpectrumStore, SpectrumWriter, hdf5, parts_folder
from tests.helpers.spectra_study import make_study, stored
from tests.helpers.store_records import manifest_of, record_of


def left_over(folder: Path) -> list[str]:
    """Temporary files in a folder and below."""
    return [
        path.name
        for path in folder.rglob("*")
        if path.name.startswith(".") and path.suffix in (".tmp", ".part")
    ]


# Requests to stop


def test_a_request_to_stop_waits_for_the_end_of_a_save(tmp_path):
    path, done = tmp_path / "file", []

    def write(stream):
        stream.write(b"one")
        signal.raise_signal(signal.SIGINT)
        stream.write(b" two")
        done.append(True)

    with pytest.raises(KeyboardInterrupt):
        save_atomically(path, write)
    assert done and path.read_bytes() == b"one two" and not left_over(tmp_path)


def test_a_second_request_to_stop_is_obeyed_at_once(tmp_path):
    path, went_on = tmp_path / "file", []
    path.write_bytes(b"old")

    def write(stream):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        went_on.append(True)

    with pytest.raises(KeyboardInterrupt):
        save_atomically(path, write)
    assert not went_on and path.read_bytes() == b"old" and not left_over(tmp_path)


def test_a_request_that_comes_in_a_finalizer_is_not_lost(capfd):
    class Noisy:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    with stop_requests() as came:
        with pytest.raises(Stopped):
            Noisy()
            time.sleep(5)
        assert set(came) == {signal.SIGTERM}
    assert "Exception ignored" not in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_request_to_stop_is_raised_with_its_number_and_handlers_come_back(number):
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(Stopped) as stopped, stop_requests() as came, stopping_later():
        signal.raise_signal(number)
    assert stopped.value.number == number and came == [number]
    assert [
        signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    ] == before


def test_a_signal_that_is_ignored_stays_ignored():
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests() as came, stopping_later():
            signal.raise_signal(signal.SIGHUP)
        assert not came
    finally:
        signal.signal(signal.SIGHUP, old)


def test_an_error_in_a_save_gives_way_to_the_request_to_stop():
    with pytest.raises(KeyboardInterrupt), stopping_later():
        signal.raise_signal(signal.SIGINT)
        raise RuntimeError("inline_container.cc")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_at_any_moment_of_a_checkpoint_leaves_a_whole_file_and_is_a_request(
    tmp_path, monkeypatch, number
):
    path, calls = tmp_path / "epoch_1.pt", []
    contents = {"epoch": 1, "state_dict": {name: torch.ones(5) for name in "ab"}}
    real = checkpoints._Sink.write
    for moment in range(1000):
        calls.clear()

        def write(self, content, moment=moment):
            if len(calls) == moment:
                signal.raise_signal(number)
            calls.append(moment)
            return real(self, content)

        monkeypatch.setattr(checkpoints._Sink, "write", write)
        try:
            with stop_requests():
                write_checkpoint(path, contents)
        except Stopped as stopped:
            assert stopped.number == number
        else:
            assert moment > 3
            break
        assert not left_over(tmp_path)
        assert torch.equal(checkpoints.read_checkpoint(path)["state_dict"]["b"], torch.ones(5))
        path.unlink()


def stopping(number: int, *, at: int, real):
    """`real`, but before its call `at` the process gets a signal."""
    calls = []

    def call(*arguments, **options):
        calls.append(None)
        if len(calls) == at:
            signal.raise_signal(number)
        return real(*arguments, **options)

    return call


def assert_stopped(result, number: int) -> None:
    assert result.exit_code == 128 + number, (result.output, result.exception)
    last = result.stderr.strip().splitlines()[-1]
    assert ("interrupted" if number == signal.SIGINT else "stopped by SIGTERM") in last, last
    assert "Traceback" not in result.stderr


def invoke(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("study"), names=("one",))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_spectra_that_are_stopped_keep_what_they_have_and_go_on(
    study, tmp_path, monkeypatch, number
):
    from landscape.pipeline import spectra_bench

    output = tmp_path / "s.h5"
    with monkeypatch.context() as patched:
        patched.setattr(
            spectra_bench, "_measure", stopping(number, at=4, real=spectra_bench._measure)
        )
        assert_stopped(
            invoke("spectra", study, "-o", output, "--device", "cpu", "--unaudited"), number
        )
    assert len(stored(output)) == 3 and not left_over(tmp_path)
    result = invoke("spectra", study, "-o", output, "--device", "cpu", "--unaudited")
    assert result.exit_code == 0 and "(3 now, 3 before)" in result.stdout
    assert os.listdir(tmp_path) == ["s.h5"]


def test_sigterm_ends_density_surface_and_figure_without_temporary_files(
    study, tmp_path, monkeypatch
):
    from landscape.pipeline import density_measurement, surface_measurement

    data = tmp_path / "x.h5"
    measured = stopping(signal.SIGTERM, at=2, real=density_measurement._measure)
    written = stopping(signal.SIGTERM, at=3, real=surface_measurement.write_surface)
    with monkeypatch.context() as patched:
        patched.setattr(density_measurement, "_measure", measured)
        command = [
            "density",
            study,
            "-o",
            tmp_path / "x.png",
            "--matvecs",
            4,
            "--unaudited",
            "--batches",
            2,
            "--epochs",
            0,
        ]
        assert_stopped(invoke(*command), signal.SIGTERM)
    assert os.listdir(tmp_path) == ["x.h5"]
    assert invoke(*command).exit_code == 0
    data.unlink()
    with monkeypatch.context() as patched:
        patched.setattr(surface_measurement, "write_surface", written)
        command = ["surface", study, "-o", tmp_path / "x.png", "--dimensions", 1, "--points", 5]
        assert_stopped(invoke(*command), signal.SIGTERM)
    assert "(3 now, 2 before)" in invoke(*command).stdout
    assert sorted(os.listdir(tmp_path)) == ["x.h5", "x.png"]
    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", stopping(signal.SIGTERM, at=1, real=os.fsync))
        (tmp_path / "x.png").unlink()
        assert_stopped(invoke(*command), signal.SIGTERM)
    assert sorted(os.listdir(tmp_path)) == ["x.h5", "x.png"]


def test_an_interrupt_that_comes_out_of_c_code_as_an_error_is_an_interrupt(monkeypatch):
    for error in (RuntimeError("inline_container.cc"), CheckpointError("cannot be written")):

        def describe(path, error=error):
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                raise error from None

        monkeypatch.setattr(pipeline, "describe", describe)
        assert_stopped(invoke("info", "x"), signal.SIGINT)


# Disks that fail


class FailingFile:
    """A file whose call number `at` fails, counted over all files that are opened; 0 for none."""

    calls = 0
    at = 0

    def __init__(self, stream):
        self._stream = stream

    def _count(self):
        FailingFile.calls += 1
        if FailingFile.calls == FailingFile.at:
            raise OSError(errno.ENOSPC, "No space left on device")

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stream.close()

    def write(self, content):
        self._count()
        # A disk that is full takes a part first.
        return self._stream.write(content)

    def flush(self):
        self._count()
        self._stream.flush()

    def truncate(self, size):
        self._count()
        return self._stream.truncate(size)

    def fileno(self):
        self._count()
        return self._stream.fileno()


def counted(call):
    """A call of the operating system that fails as those of a `FailingFile` do."""

    def count_and_call(*arguments):
        FailingFile._count(FailingFile)
        return call(*arguments)

    return count_and_call


@pytest.fixture
def failing(monkeypatch):
    """Make every call on files that landscape writes fail in turn: what `attempt` does must raise,
    and leave nothing.
    """

    def open_failing(path, mode, **options):
        return (
            FailingFile(open(path, mode, **options))
            if mode == "r+b"
            else open(path, mode, **options)
        )

    monkeypatch.setattr(files, "open", open_failing, raising=False)
    for name in ("write", "pwrite", "pread", "ftruncate"):
        monkeypatch.setattr(hdf5.os, name, counted(getattr(os, name)))

    def at_every_call(attempt, check):
        failures = 0
        for at in range(1, 1000):
            FailingFile.calls, FailingFile.at = 0, at
            try:
                attempt()
            except LandscapeError as error:
                assert "No space left on device" in str(error) and "\n" not in str(error)
                failures += 1
            else:
                assert FailingFile.calls < at
                FailingFile.at = 0
                return failures
            finally:
                FailingFile.at = 0
            check()
        raise AssertionError("it never went through")

    return at_every_call


def test_a_disk_that_is_full_at_any_call_of_a_merge_keeps_the_old_file_and_all_parts(
    tmp_path, failing
):
    output = tmp_path / "s.h5"
    with SpectrumWriter(output, manifest_of(tmp_path, num_batches=1)) as writer:
        writer.add(record_of("wide/0/0"))
        writer.merge()
    old, keys = output.read_bytes(), ["narrow/0/0", "wide/0/0", "wide/2/0"]
    with SpectrumWriter(output, manifest_of(tmp_path, num_batches=1)) as writer:
        writer.add(record_of("wide/2/0"))
        writer.add(record_of("narrow/0/0"))

        def check():
            assert output.read_bytes() == old and not left_over(tmp_path)
            assert (parts_folder(output) / "records.0.log").read_bytes().count(b"\n") == 2 * 2
            with SpectrumStore.open(output) as store:
                assert sorted(store.completed_keys()) == keys

        assert failing(writer.merge, check) >= 40
    with SpectrumStore.open(output) as store:
        assert sorted(store.completed_keys()) == keys
    assert not parts_folder(output).exists()


def test_a_disk_that_is_full_at_any_call_of_a_checkpoint_keeps_the_old_one(tmp_path, failing):
    path = tmp_path / "epoch_1.pt"
    write_checkpoint(path, {"old": torch.ones(3)})
    old = path.read_bytes()

    def check():
        assert path.read_bytes() == old and not left_over(tmp_path)

    new = {name: torch.ones(100) for name in "abc"}
    assert failing(lambda: write_checkpoint(path, new), check) > 8
    assert sorted(checkpoints.read_checkpoint(path)) == ["a", "b", "c"]


def test_a_disk_that_is_full_at_any_call_spares_figures_densities_and_surfaces(tmp_path, failing):
    from matplotlib.figure import Figure

    from landscape.figures import save_figure
    from landscape.store import write_densities, write_surface
    from tests.store.test_damage import density, surface

    writers = {
        "f.png": lambda path: save_figure(Figure(), path),
        "d.h5": lambda path: write_densities(path, [density()]),
        "s.h5": lambda path: write_surface(path, surface()),
    }
    for name, write in writers.items():
        path = tmp_path / name
        path.write_bytes(b"old")

        def check(path=path):
            assert path.read_bytes() == b"old" and not left_over(tmp_path)

        assert failing(lambda path=path, write=write: write(path), check) >= 4
        assert path.read_bytes() != b"old"


def test_a_disk_with_too_little_room_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    class Usage:
        total, free = 10**9, 1000

    output = tmp_path / "s.h5"
    with SpectrumWriter(output, manifest_of(tmp_path, num_batches=1)) as writer:
        writer.add(record_of("wide/0/0"))
        with monkeypatch.context() as patched:
            patched.setattr(files.shutil, "disk_usage", lambda path: Usage)
            patched.setattr(files, "_open_alone", lambda _: pytest.fail("it was opened"))
            with pytest.raises(
                StoreError,
                match="No space left on device: it takes [0-9,]+ bytes, and 1,000 are free",
            ):
                writer.merge()
            with pytest.raises(CheckpointError, match="1,000 are free"):
                write_checkpoint(tmp_path / "x.pt", {"state_dict": {"a": torch.ones(1000)}})
        assert writer.completed_keys() == {"wide/0/0"}
        writer.merge()
    assert output.exists()


# Several writers


def test_a_file_that_another_process_writes_is_refused_and_not_mixed(tmp_path):
    path = tmp_path / "file"

    def write(stream):
        stream.write(b"first")
        with pytest.raises(OSError, match="another process is writing it"):
            write_atomically(path, b"second")

    save_atomically(path, write)
    assert path.read_bytes() == b"first" and not left_over(tmp_path)


def test_a_temporary_file_that_was_renamed_before_it_was_locked_is_not_emptied(
    tmp_path, monkeypatch
):
    path, temporary = tmp_path / "file", tmp_path / ".file.tmp"
    temporary.write_bytes(b"whole")
    real, calls = files.fcntl.flock, []

    def renamed_meanwhile(stream, how):
        if not calls:
            calls.append(os.rename(temporary, path))
        return real(stream, how)

    monkeypatch.setattr(files.fcntl, "flock", renamed_meanwhile)
    files._open_alone(temporary).close()
    assert path.read_bytes() == b"whole" and temporary.read_bytes() == b""


def test_what_a_killed_writer_left_is_overwritten(tmp_path):
    (tmp_path / ".file.tmp").write_bytes(b"x" * 1000)
    write_atomically(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"new"


def test_only_regular_files_are_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="named pipe"):
        write_atomically(tmp_path / "pipe", b"new")
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_request_that_a_callback_has_swallowed_is_obeyed_by_the_next_tick():
    with stop_requests() as came:
        obey_lost_request()
        future = concurrent.futures.Future()
        future.add_done_callback(lambda _: signal.raise_signal(signal.SIGTERM))
        try:
            future.set_result(None)
        except KeyboardInterrupt:
            # As code does that hands every exception on.
            pass
        assert came == [signal.SIGTERM]
        with pytest.raises(Stopped) as caught:
            obey_lost_request()
        assert caught.value.number == signal.SIGTERM
    obey_lost_request()
