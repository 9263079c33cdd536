"""What is written never takes the place of what is read, or of a file of another kind."""

import contextlib
import os
import shutil
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from landscape.cli import main
from tests.helpers.folders import SMALL_STORE


@pytest.fixture
def store(tmp_path):
    return Path(shutil.copy(SMALL_STORE, tmp_path / "s.h5"))


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 2 and result.stdout == "", result.output
    assert len(result.stderr.splitlines()) == 1
    return result.stderr


@pytest.mark.parametrize(
    ("command", "suffix"),
    [
        ("compare --json --resamples 99", ".h5"),
        ("compare --resamples 99", ".csv"),
        ("export", ".csv"),
        ("figure", ".png"),
        ("report", ".html"),
    ],
)
def test_an_output_that_is_the_input_is_refused_and_the_input_stays(store, command, suffix):
    path = store.rename(store.with_suffix(suffix))
    before = path.read_bytes()
    name, *options = command.split()
    assert "is the input too" in refused(name, path, "-o", path, *options)
    link = path.with_name("link" + suffix)
    os.link(path, link)
    assert "is the input too" in refused(name, path, "-o", link, *options)
    assert path.read_bytes() == before


def test_a_comparison_takes_the_place_of_no_file_of_another_kind(store, tmp_path):
    weights = tmp_path / "epoch_1.pt"
    weights.write_bytes(b"weights")
    said = refused("compare", store, "-o", weights, "--json", "--resamples", "99")
    assert "is not overwritten" in said and weights.read_bytes() == b"weights"


@pytest.mark.parametrize(
    "options",
    [
        "--width 1 --font-size 20",
        "--width 2 --font-size 40 --columns 1",
        "--width 1 --font-size 40 --kind sharpness",
    ],
)
def test_a_page_without_room_for_its_panels_is_refused(store, tmp_path, options):
    output = tmp_path / "f.png"
    assert "inches more" in refused("figure", store, "-o", output, *options.split())
    assert not output.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        "figure s.h5 -o f.png --width nan",
        "figure s.h5 -o f.png --font-size nan",
        "density s.h5 -o f.png --width nan",
        "train --model vit_tiny_64 -o r --monitor --monitor-budget nan",
    ],
)
def test_nan_is_no_number(store, monkeypatch, arguments):
    monkeypatch.chdir(store.parent)
    result = CliRunner().invoke(main, arguments.split())
    assert result.exit_code == 2 and "'nan' is not a number" in result.stderr
    assert sorted(path.name for path in store.parent.iterdir()) == ["s.h5"]


MANIFEST = """
version: 1
epoch_zero: optional
data: {source: openmoji, image_size: 64, num_samples: 30, batch_size: 15}
hessian: {objective: contrastive}
series:
  - {name: tiny, model: vit_tiny_64, checkpoints: [{epoch: 1, path: e.pt}, {epoch: 2, path: e.pt}]}
"""


@pytest.mark.parametrize(
    "command",
    [
        "density m.yaml -o f.png --width 1 --columns 6",
        "surface m.yaml -o f.png --width 1 --font-size 40",
        "surface m.yaml -o f.png --width 1 --font-size 40 --dimensions 2 --view 3d",
    ],
)
def test_a_page_without_room_is_refused_before_anything_is_measured(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.yaml").write_text(MANIFEST)
    (tmp_path / "e.pt").write_bytes(b"never read")
    assert "inches more" in refused(*command.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.pt", "m.yaml"]


def test_a_full_disk_behind_standard_output_is_one_line(store, monkeypatch):
    import click

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    real = click.echo
    monkeypatch.setattr(
        "click.echo", lambda text="", err=False, **more: real(text, err=True) if err else full()
    )
    assert "standard output: there is no room left" in refused("info", store, "--json")


def test_an_error_of_a_file_after_a_request_to_stop_is_that_request(store, monkeypatch):
    """What a stopped call raises may be of any kind, such as an interrupted write."""
    import signal

    def stopped(*_: object, **__: object) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("landscape.cli.messages.json_text", stopped)
    result = CliRunner().invoke(main, ["info", str(store), "--json"])
    assert result.exit_code == 143 and "stopped by SIGTERM" in result.stderr
