"""SIGKILL within `landscape spectra --workers 2`: experiments/kill_campaign.py does so a hundred
times, this twice.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from landscape.cli import main
from landscape.store import parts_folder
from tests.helpers.processes import environment_of_scripts, is_running, wait_until
from tests.helpers.spectra_study import NUM_BATCHES, make_study, stored


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("study"), with_config=True, epochs=(0, 1, 2))


@pytest.fixture(scope="module")
def reference(study: Path) -> dict[str, list[float]]:
    """The values of a run in one process, with one thread too."""
    output = study.with_name("reference.h5")
    finish_here(study, output)
    values = stored(output)
    assert len(values) == 2 * 3 * NUM_BATCHES
    return values


def command_of(study: Path, output: Path, *, workers: int) -> list[str]:
    options = ["--unaudited", "--device", "cpu", "--threads", "1"]
    return ["spectra", str(study), "-o", str(output), "--workers", str(workers), *options]


def start(study: Path, output: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "landscape", *command_of(study, output, workers=2)]
    with open(output.with_suffix(".stderr"), "wb") as stderr:
        return subprocess.Popen(
            command, env=environment_of_scripts(), stdout=subprocess.DEVNULL, stderr=stderr
        )


def finish_here(study: Path, output: Path) -> None:
    """Run the command in this process, where torch is imported."""
    result = CliRunner().invoke(main, command_of(study, output, workers=1))
    assert result.exit_code == 0, result.output


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def wait_for_records(output: Path, run: "subprocess.Popen[bytes]") -> dict[str, list[float]]:
    """Wait until a run has stored a record; it must not be done by then."""
    for _ in range(6):
        try:
            wait_until(lambda: bool(stored(output)) or run.poll() is not None)
            break
        # On a busy machine it takes longer to begin.
        except AssertionError:
            continue
    assert run.poll() is None and parts_folder(output).exists(), output.with_suffix(
        ".stderr"
    ).read_text()
    return stored(output)


def wait_until_gone(pids: list[int]) -> None:
    wait_until(lambda: not any(map(is_running, pids)))


def test_a_killed_child_costs_no_record_and_the_run_ends_with_the_same_bits(
    study, tmp_path, reference
):
    output = tmp_path / "killed.h5"
    run = start(study, output)
    wait_for_records(output, run)
    children = children_of(run.pid)
    assert len(children) == 2
    os.kill(children[0], signal.SIGKILL)
    assert run.wait(120) == 0
    assert stored(output) == reference and not parts_folder(output).exists()
    assert "Traceback" not in output.with_suffix(".stderr").read_text()
    wait_until_gone(children)


def test_a_killed_parent_leaves_no_child_and_every_record_and_the_same_command_goes_on(
    study, tmp_path, reference
):
    output = tmp_path / "killed.h5"
    run = start(study, output)
    before = wait_for_records(output, run)
    children = children_of(run.pid)
    assert len(children) == 2
    run.kill()
    run.wait()
    wait_until_gone(children)
    after = stored(output)
    assert before.keys() <= after.keys() and after.items() <= reference.items()
    finish_here(study, output)
    assert stored(output) == reference and not parts_folder(output).exists()
