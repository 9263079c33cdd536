"""The status of a running store: written whole, read by others, said by `landscape info`, gone with
the run.
"""

import json
import math
import os
import time
from dataclasses import replace

import pytest
from click.testing import CliRunner

from landscape.cli import main
from landscape.store import (
    RunStatus,
    SpectrumStore,
    SpectrumWriter,
    describe,
    parts_folder,
    read_status,
    write_status,
)
from landscape.store.lock import FolderLock
from landscape.workers.run_status import status_lines
from tests.helpers.store_records import manifest_of, record_of
from tests.store.test_store_specification import write_all

STATUS = RunStatus(
    num_planned=3000,
    num_done=120,
    num_failed=2,
    started=1000.0,
    updated=2000.0,
    rate_per_minute=14.23,
    seconds_left=12_240.0,
    workers=(("node1", 40, 8.0), ("node2", 30, 9.0), ("node3", 20, 14.0), ("new", 0, 0.0)),
    dashboard="http://login:8787/status",
    pid=os.getpid(),
    host=os.uname().nodename,
)


def test_a_status_comes_back_as_it_was_written(tmp_path):
    for status in (STATUS, replace(STATUS, workers=(), dashboard=None, seconds_left=math.inf)):
        write_status(tmp_path, status)
        assert read_status(tmp_path) == status
        assert os.listdir(tmp_path) == ["status.json"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        "[" * 100_000,
        '{"num_planned": 1}',
        "null",
        json.dumps({**vars(STATUS), "workers": [[1]]}),
    ],
)
def test_a_damaged_status_is_none(tmp_path, content):
    assert read_status(tmp_path) is None
    (tmp_path / "status.json").write_text(content)
    assert read_status(tmp_path) is None


def test_a_status_that_cannot_be_written_ends_no_run(tmp_path, monkeypatch):
    write_status(tmp_path / "nowhere", STATUS)
    write_status(tmp_path, STATUS)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("landscape.workers.run_status.os.replace", full)
    write_status(tmp_path, replace(STATUS, num_done=121))
    assert read_status(tmp_path) == STATUS and os.listdir(tmp_path) == ["status.json"]


def test_the_lines_say_how_far_how_fast_how_long_and_who_is_slow():
    assert status_lines(STATUS, now=2012.0) == [
        f"running: process {STATUS.pid} on {STATUS.host}: 120 of 3000 batches, 14.2 a minute, "
        "about 3.4 hours left, 2 failed, updated 12 s ago",
        "dashboard: http://login:8787/status",
        "slowest worker node3: 14 s each beside a median of 9 s",
    ]
    begun = replace(
        STATUS,
        workers=STATUS.workers[:1],
        dashboard=None,
        seconds_left=math.inf,
        rate_per_minute=0,
        num_failed=0,
    )
    (line,) = status_lines(begun, now=2100.0)
    assert line.endswith("120 of 3000 batches, 0 failed, updated 1.7 minutes ago")


def test_info_says_it_while_the_run_goes_on_and_not_afterwards(tmp_path):
    output, manifest = tmp_path / "s.h5", manifest_of(tmp_path)

    def said():
        return [line for line in describe(output) if line.startswith("running")]

    with SpectrumWriter(output, manifest) as writer:
        writer.add(record_of("wide/0/0"))
        write_status(parts_folder(output), replace(STATUS, updated=time.time()))
        assert len(said()) == 1
        with SpectrumStore.open(output) as store:
            assert not store.rejected
    # The run was stopped: on this machine nobody holds its lock.
    assert said() == []
    write_status(parts_folder(output), replace(STATUS, host="another"))
    assert "on another" in said()[0]
    with SpectrumWriter(output, manifest) as writer:
        writer.merge()
    assert said() == [] and not parts_folder(output).exists()


@pytest.mark.parametrize("name", ["densities.h5", "surface.h5", "predictions.h5"])
def test_info_says_it_of_every_file_that_a_run_writes(name, tmp_path):
    output = write_all(tmp_path) / name

    def said():
        result = CliRunner().invoke(main, ["info", str(output)])
        assert result.exit_code == 0, result.output
        return [line for line in result.stdout.splitlines() if line.startswith("running: ")]

    assert said() == []
    lock = FolderLock(parts_folder(output), output=output)
    write_status(lock.folder, replace(STATUS, updated=time.time()))
    (line,) = said()
    assert f"process {STATUS.pid}" in line and "120 of 3000" in line
    lock.release(remove_folder=False)
    assert said() == []


def test_a_run_without_a_record_takes_its_status_with_it(tmp_path):
    with SpectrumWriter(tmp_path / "s.h5", manifest_of(tmp_path)):
        write_status(parts_folder(tmp_path / "s.h5"), STATUS)
    assert not parts_folder(tmp_path / "s.h5").exists()
