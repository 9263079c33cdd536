"""Training under torchrun: real processes on this machine, which meet by gloo and train through the
command line.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from landscape import ranks
from landscape.cli import main
from landscape.clip.train_loop import loop_arguments, lost_processes
from landscape.errors import LandscapeError
from landscape.manifest import Manifest
from tests.helpers.folders import ROOT
from tests.helpers.tiny_run import (
    RECIPE,
    VISION,
    command_as,
    join_two_processes,
    take_place,
    write_pairs,
)

PLACE = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
LAUNCHER = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "-m",
    "landscape",
]


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No variables of a launcher, as some machines set them."""
    for name in PLACE:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A CLIP model of one layer per tower, without dropout."""
    path = tmp_path_factory.mktemp("model") / "tiny_vit.json"
    text = {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}
    path.write_text(json.dumps({"embed_dim": 8, "vision_cfg": VISION, "text_cfg": text}))
    return path


def training(model, table, output, *, epochs=3, batch_size=8):
    return [
        *(
            "train",
            "--model",
            str(model),
            "--recipe",
            "clip_mamba",
            "--data",
            str(table),
            "--split",
            "all",
            "-o",
            str(output),
        ),
        *("--epochs", str(epochs), "--batch-size", str(batch_size), "--device", "cpu"),
    ]


def under_torchrun(*arguments):
    return subprocess.run(
        [*LAUNCHER, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )


def ours(stderr):
    """The lines that are not torchrun's own report of a failure."""
    return [line for line in stderr.splitlines() if line.startswith("landscape:")]


# --- which process this is ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variables, place",
    [
        ({}, (0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "4"}, (2, 4)),
        ({"RANK": "2"}, (0, 1)),
        ({"RANK": "4", "WORLD_SIZE": "4"}, (0, 1)),
        ({"RANK": "", "WORLD_SIZE": "two"}, (0, 1)),
    ],
    ids=["alone", "third of four", "no number of processes", "beyond the last", "nonsense"],
)
def test_the_place_of_a_process_is_read_from_what_torchrun_sets(variables, place, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (ranks.rank(), ranks.world_size()) == place


def test_of_several_processes_the_first_that_asks_reports(monkeypatch):
    assert ranks.is_reporter()
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True)
    for name, value in {
        "WORLD_SIZE": "3",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
    }.items():
        monkeypatch.setenv(name, value)
    answers = []
    for number in ("1", "0", "2", "1"):
        monkeypatch.setenv("RANK", number)
        answers.append(ranks.is_reporter())
    assert answers == [True, False, False, True]
    # torchrun started all of them again: they have errors of their own.
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("RANK", "2")
    assert ranks.is_reporter()


def test_every_process_reports_where_they_have_no_store(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert ranks.is_reporter()


@pytest.mark.parametrize("command", ["spectra", "density", "surface", "info"])
def test_a_command_that_does_not_train_leaves_the_work_to_the_first_process(command, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(main, [command, "nowhere", "-o", "x"])
    assert (result.exit_code, result.stdout) == (0, "")
    assert (
        result.stderr
        == f"landscape {command}: process 0 does all the work, process 1 of 2 ends at once.\n"
    )
    monkeypatch.setenv("RANK", "0")
    assert CliRunner().invoke(main, [command, "nowhere", "-o", "x"]).exit_code == 2


@pytest.mark.parametrize(
    "message",
    [
        "[pair.cc:561] Connection closed by peer [127.0.0.1]:5",
        "writev: Broken pipe",
        "Connection reset by peer",
    ],
)
def test_a_lost_connection_is_told_as_the_end_of_another_process(message):
    with pytest.raises(
        LandscapeError, match=f"another process of this training has ended .*{re.escape(message)}"
    ):
        with lost_processes():
            raise RuntimeError(message)
    with pytest.raises(RuntimeError, match="^shapes differ$"):
        with lost_processes():
            raise RuntimeError("shapes differ")


# --- Slurm ----------------------------------------------------------------------------------------

# What Slurm 22.05.8 sets for a job of two tasks.
BATCH = {"SLURM_NTASKS": "2", "SLURM_NPROCS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
FIRST_OF_TWO = {**BATCH, "SLURM_STEP_ID": "0", "SLURM_STEPID": "0", "SLURM_STEP_NUM_TASKS": "2"}
ALLOCATION = {"SLURM_NTASKS": "2", "SLURM_NPROCS": "2"}


def set_slurm(monkeypatch, variables):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "PMI_"))]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "variables",
    [BATCH, ALLOCATION, {**BATCH, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}],
    ids=["script of a job", "shell of salloc", "interactive step of salloc"],
)
def test_training_alone_in_a_job_of_several_tasks_is_refused_in_one_line(
    variables, tmp_path, model, table, monkeypatch
):
    set_slurm(monkeypatch, variables)
    # Where the other task would be met: without the refusal this waits for it, or says that RANK is
    # missing.
    monkeypatch.setattr(torch.distributed, "init_process_group", pytest.fail)
    result = CliRunner().invoke(main, training(model, table, tmp_path / "run", epochs=0))
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("landscape: SLURM_NTASKS is 2, but srun did not start this process")
    assert "srun or torchrun" in line and "--ntasks 1" in line and "unset SLURM_NTASKS" in line
    assert not (tmp_path / "run").exists()


class _Met(Exception):
    pass


@pytest.mark.parametrize(
    "variables",
    [
        FIRST_OF_TWO,
        {**FIRST_OF_TWO, "SLURM_PROCID": "1"},
        {**BATCH, "PMI_SIZE": "2", "PMI_RANK": "0"},
    ],
    ids=["first task of srun", "second task of srun", "mpiexec within a job"],
)
def test_a_task_that_was_started_with_others_goes_to_meet_them(variables, monkeypatch):
    def meet(**place):
        assert (place["rank"], place["world_size"]) == (int(variables["SLURM_PROCID"]), 2)
        raise _Met

    set_slurm(monkeypatch, variables)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        # open_clip_train sets them; they go with the test.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.distributed, "init_process_group", meet)
    with pytest.raises(_Met):
        loop_arguments(model="tiny_vit", recipe=RECIPE, seed=0, device="cpu")


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        {"SLURM_PROCID": "0"},
        {**BATCH, "WORLD_SIZE": "1"},
    ],
    ids=["job of one task", "number of tasks unset", "one process by torchrun"],
)
def test_one_process_in_a_job_trains_alone(variables, monkeypatch):
    set_slurm(monkeypatch, variables)
    args = loop_arguments(model="tiny_vit", recipe=RECIPE, seed=0, device="cpu")
    assert (args.distributed, args.rank, args.world_size) == (False, 0, 1)


# --- python -m landscape --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, status, said",
    [
        (["--help"], 0, "Usage: landscape [OPTIONS] COMMAND"),
        (["--version"], 0, "landscape, version"),
        (["spectra"], 2, "Usage: landscape spectra [OPTIONS] MANIFEST"),
        (
            ["spectra", "nowhere.yaml", "-o", "x.h5"],
            2,
            "landscape: nowhere.yaml: there is no such file",
        ),
    ],
    ids=["help", "version", "usage", "wrong input"],
)
def test_the_module_is_the_command_with_its_name_and_exit_statuses(
    arguments, status, said, tmp_path
):
    command = [sys.executable, "-X", "importtime", "-m", "landscape", *arguments]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == status
    assert said in result.stdout + result.stderr
    assert not re.search(r"\| +torch$", result.stderr, re.MULTILINE)


# --- torchrun -------------------------------------------------------------------------------------


def weights(output, epoch):
    return torch.load(output / "checkpoints" / f"epoch_{epoch}.pt", weights_only=True)["state_dict"]


def losses(output):
    return {
        line["epoch"]: line["loss"]
        for line in map(json.loads, (output / "log.jsonl").read_text().splitlines()[1:])
    }


def without_key_bias(name, change):
    """A change without the bias of the keys: the loss does not depend on it, and Adam divides its
    rounding by its own size.
    """
    return (
        torch.cat([change.chunk(3)[0], change.chunk(3)[2]])
        if name.endswith("in_proj_bias")
        else change
    )


def test_two_processes_train_as_one_does_on_the_whole_batch_and_one_of_them_speaks(
    tmp_path, model, table
):
    result = under_torchrun(*training(model, table, tmp_path / "two"))
    assert result.returncode == 0, result.stderr
    summary = rf"{tmp_path}/two/checkpoints\.yaml: epochs 0 to 3, loss \d\.\d+; wrote 0 to 3\.\n"
    assert re.fullmatch(summary, result.stdout)
    shown = [
        line for line in result.stderr.splitlines() if not re.match(r"W\d+|\*+$|Setting OMP", line)
    ]
    assert [line.partition(", loss")[0] for line in shown if line] == [
        f"two: epoch {epoch}/3" for epoch in (1, 2, 3)
    ]

    assert CliRunner().invoke(main, training(model, table, tmp_path / "one")).exit_code == 0
    for name in ("one", "two"):
        series = Manifest.load(tmp_path / name / "checkpoints.yaml").series
        assert [item.epochs for item in series] == [(0, 1, 2, 3)]
        for checkpoint in series[0].checkpoints:
            checkpoint.verify()
        assert len(list((tmp_path / name / "checkpoints").iterdir())) == 4
    # A float32 sum over eight pairs in another order: some 1e-7, and what three epochs make of it.
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-6)
    start, one, two = (
        weights(tmp_path / "one", 0),
        weights(tmp_path / "one", 3),
        weights(tmp_path / "two", 3),
    )
    for name in start:
        assert torch.equal(start[name], weights(tmp_path / "two", 0)[name])
        change, difference = (
            without_key_bias(name, one[name] - start[name]),
            without_key_bias(name, one[name] - two[name]),
        )
        assert difference.norm() <= 1e-4 * change.norm(), name


WRONG_OPTIONS = [
    (1, "landscape: train: --batch-size: "),
    (7, "landscape: a batch of 7 pairs"),
]


@pytest.mark.slow
@pytest.mark.parametrize("batch_size, error", WRONG_OPTIONS)
def test_a_wrong_option_is_refused_in_one_line_by_one_of_the_processes(
    batch_size, error, tmp_path, model, table
):
    result = under_torchrun(*training(model, table, tmp_path / "run", batch_size=batch_size))
    assert result.returncode != 0 and result.stdout == ""
    assert [line[: len(error)] for line in ours(result.stderr)] == [error]
    assert not (tmp_path / "run").exists()


def said_by(rank, port, folder, arguments):
    """Run the command beside torchrun's store; write its outputs and status into the folder."""
    take_place(rank, 2, port)
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    result = CliRunner().invoke(main, arguments)
    said = [result.exit_code, result.stdout, result.stderr]
    (folder / f"{rank}.json").write_text(json.dumps(said))


def fork_two(context, folder, arguments):
    """The statuses, and all lines, of two processes that torchrun might have started."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True)
    processes = [
        context.Process(target=said_by, args=(rank, store.port, folder, arguments))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    seen = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    assert not any(stdout for _, stdout, _ in seen)
    return [status for status, *_ in seen], [line for *_, said in seen for line in ours(said)]


@pytest.mark.parametrize("batch_size, error", WRONG_OPTIONS)
def test_processes_that_share_a_store_refuse_a_wrong_option_in_one_line(
    batch_size, error, tmp_path, model, table, context
):
    arguments = training(model, table, tmp_path / "run", batch_size=batch_size)
    statuses, lines = fork_two(context, tmp_path, arguments)
    assert statuses == [2, 2] and [line[: len(error)] for line in lines] == [error]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [["--unknown"], ["--unknown", "train"], ["unknown"]])
def test_processes_that_share_a_store_refuse_a_wrong_command_line_in_one_line(
    arguments, tmp_path, context
):
    statuses, lines = fork_two(context, tmp_path, arguments)
    assert statuses == [2, 2] and [" ".join(line.split()[:3]) for line in lines] == [
        "landscape: No such"
    ]


def with_a_damaged_picture(folder):
    """Pairs of which row 8 is no picture."""
    table = write_pairs(folder)
    picture = folder / "7.png"
    picture.write_bytes(picture.read_bytes()[:60])
    return table


@pytest.mark.slow
def test_an_error_of_one_process_ends_all_with_its_line_and_keeps_whole_epochs(tmp_path, model):
    table = with_a_damaged_picture(tmp_path)
    result = under_torchrun(*training(model, table, tmp_path / "run"))
    assert result.returncode != 0
    (line,) = ours(result.stderr)
    assert "row 8: the picture cannot be read" in line
    check_whole(tmp_path / "run")


def test_an_error_of_one_process_that_shares_a_store_is_the_line_of_both(tmp_path, model, context):
    arguments = training(model, with_a_damaged_picture(tmp_path), tmp_path / "run")
    statuses, lines = fork_two(context, tmp_path, arguments)
    assert 0 not in statuses
    (line,) = lines
    assert "row 8: the picture cannot be read" in line
    check_whole(tmp_path / "run")


def check_whole(output):
    """Every checkpoint of the manifest is what it says, and there is no half-written file."""
    (series,) = Manifest.load(output / "checkpoints.yaml").series
    for checkpoint in series.checkpoints:
        checkpoint.verify()
    assert all(path.suffix == ".pt" for path in (output / "checkpoints").iterdir())


def process_of_rank(number, output):
    """The id of the process that torchrun started for this output; None before it is there."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command, variables = (
                (path / "cmdline").read_bytes().split(b"\0"),
                (path / "environ").read_bytes().split(b"\0"),
            )
        except OSError:
            continue
        if str(output).encode() in command and f"RANK={number}".encode() in variables:
            return int(path.name)
    return None


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("killed", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_is_killed_ends_the_other_in_one_line_and_the_same_command_goes_on(
    killed, tmp_path, model, table, context
):
    output = tmp_path / "run"
    arguments = training(model, table, output, epochs=8)
    process = subprocess.Popen(
        [*LAUNCHER, *arguments], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    # Found before it trains, so that it is killed as soon as there is an epoch to keep.
    while (victim := process_of_rank(killed, output)) is None:
        assert process.poll() is None
        time.sleep(0.1)
    while not (output / "checkpoints" / "epoch_1.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(victim, signal.SIGKILL)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode != 0
    (line,) = ours(stderr)
    # Whichever comes first: the broken connection, or torchrun's request to stop.
    assert re.match(
        "landscape: (another process of this training has ended|stopped by SIGTERM; results so far "
        "are saved)",
        line,
    )
    check_whole(output)
    # torchrun has no part in what is trained again.
    join_two_processes(context, command_as, arguments)
    (series,) = Manifest.load(output / "checkpoints.yaml").series
    assert series.epochs == tuple(range(9))
    check_whole(output)
