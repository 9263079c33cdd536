"""`landscape spectra --shards N`: the numbers of one process, one store for any number of them, and
all processes or none.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from landscape import ranks
from landscape.cli import main
from landscape.clip.meta_model import parameters_on_meta, remove_rows
from landscape.clip.model import build_model
from landscape.errors import WorkerDied
from landscape.pipeline import cut_vectors
from landscape.pipeline.shard_memory import WORK_VECTORS, memory_of_rank
from landscape.pipeline.shard_settings import rows_of_process
from landscape.signals import Stopped, stop_requests
from landscape.store import SpectrumStore, verdicts
from landscape.workers import launch
from tests.helpers.processes import environment_of_scripts, helper_command, is_running
from tests.helpers.spectra_study import make_study

VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_PROCID",
    "SLURM_STEP_NUM_TASKS",
)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No variables of a launcher, as some machines set them."""
    for name in VARIABLES:
        # Set first, so that what a test leaves is taken away again.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Stores and messages of all runs of sharded_study.py."""
    path = tmp_path_factory.mktemp("shards")
    environment = environment_of_scripts() | {"OMP_NUM_THREADS": "1"}
    program = subprocess.run(
        helper_command("sharded_study", path),
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert program.returncode == 0, program.stderr
    return path


@pytest.fixture(scope="module")
def seen(folder):
    return json.loads((folder / "seen.json").read_text())


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A manifest, to be refused."""
    return make_study(
        tmp_path_factory.mktemp("refused"), epochs=(0,), names=("one",), with_config=True
    )


def records(path):
    """Every record of a store by its key, as numbers."""
    with SpectrumStore.open(path) as store:
        return {
            (series, epoch): store.records(series, epoch)
            for series in store.series()
            for epoch in store.epochs(series)
        }


def lines(said):
    """What a process said that is no note and no title."""
    return [line for line in said["stderr"].splitlines() if line.startswith("landscape:")]


def invoke(*arguments):
    return CliRunner().invoke(main, ["spectra", *map(str, arguments)])


# --- the same numbers -----------------------------------------------------------------------------

# Sums over processes are rounded in another order than sums in one: by some units of 1e-16, times
# the products of a run.
RELATIVE = 1e-12


SOLVER = (
    "eigenvalues",
    "residuals",
    "largest",
    "smallest",
    "ritz_values",
    "num_matvecs",
    "num_negative",
)


def check_same(shared, alone, columns):
    """Compare the rows that are in both tables."""
    rows = len(shared.batch)
    assert shared.batch.tolist() == alone.batch[:rows].tolist()
    assert (
        shared.num_params == alone.num_params
        and shared.num_unused.tolist() == alone.num_unused[:rows].tolist()
    )
    assert (
        shared.batch_sha256 == alone.batch_sha256[:rows]
        and shared.checkpoint_sha256 == alone.checkpoint_sha256
    )
    largest = np.abs(alone.eigenvalues).max()
    for column in (*columns, "loss", "parameter_norm"):
        ours, theirs = (np.asarray(getattr(one, column), dtype=float) for one in (shared, alone))
        # What is left of large numbers, such as a residual, is known to their rounding.
        size = largest if column in SOLVER[:5] else np.abs(theirs).max()
        np.testing.assert_allclose(
            ours, theirs[:rows], rtol=0, atol=RELATIVE * size, err_msg=column
        )


@pytest.mark.parametrize(("name", "other"), [("mixed", "whole"), ("vmamba", "vmamba_whole")])
def test_processes_that_share_a_model_store_the_numbers_of_one(name, other, folder, seen):
    shared, whole = records(folder / f"{name}.h5"), records(folder / f"{other}.h5")
    assert shared.keys() == whole.keys()
    for key in shared:
        assert len(shared[key].batch) == len(whole[key].batch)
        check_same(shared[key], whole[key], SOLVER)


def test_restarts_within_a_share_of_memory_find_the_same_values(folder, seen):
    (shared,), whole = (
        records(folder / "restarted.h5").values(),
        records(folder / "whole.h5")["one", 0],
    )
    # The square of the tolerance of 1e-6.
    check_same(shared, whole, ["eigenvalues"])
    # A third of 330 kB, which holds 8 vectors of a third of 4528 numbers: the first chain is
    # shorter.
    assert shared.settings["max_basis_memory"] == 110_000
    assert np.isfinite(shared.ritz_values[0]).sum() <= 8 < np.isfinite(whole.ritz_values[0]).sum()


def test_records_say_how_many_processes_and_that_the_model_was_audited(folder, seen):
    tables = records(folder / "mixed.h5")
    assert tables["one", 1].settings["num_processes"] == 3
    assert (
        tables["one", 1].settings["product"]
        == "double backward, retained graph, model over 3 processes"
    )
    for table in tables.values():
        (audit,) = verdicts(table.extras)
        # Of the run of two processes; the others took it over.
        assert audit["passed"] and audit["dtype"] == "float64" and audit["worst_error"] < 1e-4
        assert audit["num_processes"] == 2 and audit["epoch"] == 1
        assert "operator checked: product within" in str(table.extras["operator"])


def test_a_store_goes_on_with_any_number_of_processes(folder, seen):
    counts = [
        seen[name][0]["stdout"].partition("measured ")[2]
        for name in seen
        if name.startswith("mixed")
    ]
    assert counts == ["(1 now, 0 before).\n", "(1 now, 1 before).\n", "(2 now, 2 before).\n"]


def test_one_process_speaks_and_says_what_memory_each_needs(seen):
    first, *others = seen["mixed, ended by three"]
    assert (
        "note: one: needs " in first["stderr"]
        and " in each of 3 processes, and activations on top: " in first["stderr"]
    )
    assert all(
        other["stdout"] == other["stderr"] == "" and other["status"] == 0 for other in others
    )


# --- all or none ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "status", "fragments"),
    [
        (
            "version",
            2,
            ["different versions of landscape and torch", "0.0.1", "Start the same command"],
        ),
        ("file", 2, ["is not the same for all processes", "Copy it to every machine again"]),
        (
            "killed",
            1,
            ["Another process ended, or did not answer", "Everything measured so far is kept"],
        ),
        (
            "hung",
            1,
            [
                "did not answer within the timeout",
                "Timed out waiting 3000ms",
                "the same command goes on",
            ],
        ),
    ],
)
def test_what_is_wrong_in_one_process_ends_all_with_one_line(name, status, fragments, seen):
    told = [said for said in seen[name] if said is not None]
    assert [said["status"] for said in told] == [status] * len(told) and all(
        said["error"] is None for said in told
    )
    (line,) = [line for said in told for line in lines(said)]
    for fragment in fragments:
        assert fragment in line, line


def test_nothing_is_written_where_files_or_versions_differ(seen):
    assert seen["nothing was written"]


def test_a_batch_that_fails_in_one_process_costs_that_batch_alone(seen):
    first, second = seen["failed"]
    assert first["status"] == second["status"] == 1 and not lines(first) and not lines(second)
    failure, report = first["stdout"].splitlines()
    assert failure.startswith("failed: one epoch 0 batch 1: ") and failure.endswith(
        "7.png: is no picture here."
    )
    # The run that was killed stored the first batch, the one that hung none.
    assert report.endswith("1 of 2 batches are measured (0 now, 1 before, 1 failed).")


def test_the_same_command_goes_on_after_all_that(seen):
    assert seen["after all"][0]["stdout"].endswith(
        "2 of 2 batches are measured (1 now, 1 before).\n"
    )


# --- memory ---------------------------------------------------------------------------------------


def test_no_process_ever_holds_the_model(folder, seen):
    assert seen["wide"][0]["status"] == 0, seen["wide"]
    whole = sum(
        tensor.nbytes
        for tensor in build_model("wide", config=folder / "wide" / "tiny.json").parameters()
    )
    largest = 4 * 384 * 4 * 384
    for rank in (0, 1):
        peaks = json.loads((folder / "wide" / f"peaks.{rank}").read_text())
        # The constructor of a layer makes a weight or two before it registers them.
        assert peaks["built"] < 2 * largest and peaks["after building"] < 1000
        # The rows of this process, and what the reader takes at a time.
        assert 0.49 * whole < peaks["loaded"] < 0.55 * whole + 11e6 < 0.8 * whole


def test_a_model_without_numbers_keeps_types_ties_and_buffers():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(7, 3), nn.Linear(3, 7, bias=False)
            self.head.weight = self.table.weight
            self.norm = nn.BatchNorm1d(3)
            self.frozen = nn.Parameter(torch.ones(2, dtype=torch.float64), requires_grad=False)
            self.to("cpu")

    with parameters_on_meta():
        model = Tied()
    assert model.head.weight is model.table.weight and model.head.weight.is_meta
    assert {name: p.shape for name, p in model.named_parameters()} == {
        name: p.shape for name, p in Tied().named_parameters()
    }
    assert not model.frozen.requires_grad and model.frozen.dtype == torch.float64
    assert torch.equal(model.norm.running_var, torch.ones(3))
    remove_rows(model)
    assert model.head.weight is model.table.weight
    # Outside, parameters are as ever.
    assert not nn.Linear(2, 2).weight.is_meta


def test_the_estimate_is_the_sum_of_what_a_process_holds():
    model = nn.Sequential(nn.Linear(100, 400), nn.Linear(400, 11))
    memory = memory_of_rank(model, ["0.weight", "0.bias"], num_processes=3, num_vectors=20)
    # Rows of the process that has most: 134 of 400, 4 of 11.
    vector = 4 * (134 * 100 + 134)
    assert (
        memory.gradient == vector
        and memory.krylov == 20 * vector
        and memory.work == WORK_VECTORS * vector
    )
    assert memory.weights == vector + 4 * (4 * 400 + 4)
    # The large weight is held whole, and so is a derivative by it; the others are small.
    assert memory.gathered == 2 * 4 * 400 * 100 + 4 * (400 + 11 * 400 + 11)
    assert (
        memory.total
        == memory.weights + memory.gradient + memory.krylov + memory.work + memory.gathered
    )
    limited = memory_of_rank(
        model,
        ["0.weight", "0.bias"],
        num_processes=3,
        num_vectors=20,
        max_basis_memory=5 * vector + 1,
    )
    assert limited.krylov == 5 * vector and limited.num_vectors == 5


def test_rows_are_divided_so_that_each_process_has_one():
    for num_rows, size in [(15, 4), (3, 3), (7, 2), (5, 1)]:
        parts = [
            list(range(num_rows))[rows_of_process(num_rows, rank, size)] for rank in range(size)
        ]
        assert (
            list(itertools.chain(*parts)) == list(range(num_rows))
            and max(map(len, parts)) - min(map(len, parts)) <= 1
        )


# --- eigenvectors ---------------------------------------------------------------------------------


def test_processes_that_share_a_model_keep_the_eigenvectors_of_one(folder, seen):
    assert [said["status"] for said in seen["kept"]] == [0, 0, 0]
    stores = [SpectrumStore.open(folder / name) for name in ("kept.h5", "kept_whole.h5")]
    with stores[0] as shared, stores[1] as alone:
        with shared.vectors.open("one", 0, 0) as ours, alone.vectors.open("one", 0, 0) as theirs:
            assert ours.layout == theirs.layout and ours.digests == theirs.digests
            ours.check()
            first, second = ours.read(0, ours.n), theirs.read(0, ours.n)
            # Differences of 1e-12 may round to the next number of 11 bits.
            largest = np.abs(second).max(axis=1)
            assert (np.abs(first - second).max(axis=1) <= 2**-10 * largest).all()
            np.testing.assert_allclose(ours.rounding, theirs.rounding, rtol=1e-3)
            np.testing.assert_allclose(ours.rest, theirs.rest, rtol=1e-9)
    (line,) = [said["stderr"] for said in seen["kept"] if said["stderr"]]
    assert "does not go with" not in line


class Exchange:
    """Processes of which one computes: gathering adds the padded entries of the others."""

    rank = 0

    def __init__(self, parts, block):
        self.parts, self.size, self.start, self.block = parts, len(parts), 0, block
        self.sizes = []

    def gather(self, part, name):
        count = len(part) // 2
        self.sizes.append((part.dtype, count))
        assert count <= self.block
        rows = np.zeros((self.size, count), dtype=np.float16)
        for row, values in zip(rows, self.parts):
            piece = values[self.start : self.start + count]
            row[: len(piece)] = piece
        assert torch.equal(part, torch.from_numpy(rows[0]).view(torch.uint8))
        self.start += count
        return torch.from_numpy(rows.reshape(-1)).view(torch.uint8)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_pieces_of_all_processes_are_put_in_place_a_block_at_a_time(block, monkeypatch):
    generator = np.random.default_rng(0)
    # Parameters of 3 processes, of which some have nothing of some.
    lengths = np.array([[5, 5, 2], [1, 0, 0], [8, 8, 7], [0, 0, 0], [3, 3, 0]])
    whole = generator.standard_normal(lengths.sum()).astype(np.float16)
    starts = lengths.cumsum().reshape(lengths.shape) - lengths
    parts = [
        np.concatenate([whole[a : a + size] for a, size in zip(starts[:, rank], lengths[:, rank])])
        for rank in range(3)
    ]
    monkeypatch.setattr(cut_vectors, "BLOCK", block)
    exchange = Exchange(parts, block)
    space = SimpleNamespace(processes=exchange, lengths=lengths, n=len(whole))
    joined = cut_vectors._joined(parts[0], space, torch.device("cpu"))
    np.testing.assert_array_equal(joined, whole)
    assert {dtype for dtype, _ in exchange.sizes} == {torch.uint8}


def test_a_dry_run_with_vectors_says_their_bytes(study, tmp_path):
    options = ["--shards", 2, "--dry-run", "--keep-vectors"]
    result = invoke(study, "-o", tmp_path / "x.h5", *options)
    assert result.exit_code == 0, result.output
    assert "vectors at most" in " ".join(result.stdout.split())


# --- what does not go together --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (["--workers", 2], "--shards 2: --workers would have no effect"),
        (["--scheduler", "tcp://nowhere:1"], "--shards 2: --scheduler would have no effect"),
        (["--max-memory", "1GB"], "--shards 2: --max-memory would have no effect"),
        (["--rows", 2], "--shards 2: --rows would have no effect"),
        (["--tf32"], "--shards 2: --tf32 would have no effect"),
        (["--hvp", "jvp"], "--shards 2: does not go with --hvp jvp"),
        (["--per-module"], "--shards 2: does not go with --per-module"),
        (["--device", "cuda:1"], "--shards 2: does not go with --device cuda:1"),
        (["--method", "power"], "with --shards 2: method power needs whole vectors"),
        (
            ["--shards", 5],
            "with --shards 5: a batch has 4 rows, and every process needs one. Ask for at most 4",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_options_that_do_not_go_with_shards_are_refused_in_one_line(
    options, fragment, study, tmp_path
):
    result = invoke(study, "-o", tmp_path / "x.h5", "--shards", 2, *options)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert fragment in line and line.endswith(".")
    assert not list(tmp_path.iterdir())


def test_other_processes_than_asked_for_are_refused(study, tmp_path, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    result = invoke(study, "-o", tmp_path / "x.h5", "--shards", 2)
    assert result.exit_code == 2
    assert (
        "3 processes were started by torchrun or srun" in result.stderr
        and "Say --shards 3, or start 2." in result.stderr
    )


def test_a_timeout_without_shards_is_a_wrong_use(study, tmp_path):
    result = invoke(study, "-o", tmp_path / "x.h5", "--shard-timeout", 3)
    assert (
        result.exit_code == 2
        and "--shard-timeout says how long processes of --shards wait; add it." in result.stderr
    )


def test_a_dry_run_says_what_each_process_needs_and_starts_none(study, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "launch", None)
    result = invoke(study, "-o", tmp_path / "x.h5", "--shards", 4, "--dry-run")
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "to measure: one epoch 0" in said and "1 of 1 fit by names and shapes" in said
    assert "in each of 4 processes, and activations on top: weights" in said
    assert not list(tmp_path.iterdir())


# --- the launcher ---------------------------------------------------------------------------------


@pytest.fixture
def launched(monkeypatch):
    """Launch a short program in the place of landscape; its arguments are the statements of each
    process.
    """
    monkeypatch.setattr(launch, "_TO_NOTICE", 1.0)
    program = "import os, sys, time\nexec(sys.argv[1 + int(os.environ['RANK'])])"
    monkeypatch.setattr(launch, "COMMAND", (sys.executable, "-c", program))

    def run(*programs):
        return launch.launch(programs, len(programs))

    return run


def test_the_status_of_the_first_process_that_fails_is_passed_on_and_ends_all(launched):
    assert launched("pass", "pass") == 0
    begun = time.monotonic()
    assert launched("time.sleep(60)", "sys.exit(3)") == 3
    # The process that sleeps is ended, however busy the machine is.
    assert time.monotonic() - begun < 40


def test_a_process_that_is_killed_is_named(launched):
    message = (
        "^process 1 of 2 was killed by signal 9, perhaps for memory, so all stop; "
        "results so far are saved"
    )
    with pytest.raises(WorkerDied, match=message):
        launched("time.sleep(60)", "os.kill(os.getpid(), 9)")


def test_a_request_to_stop_reaches_all_processes(launched, tmp_path):
    program = (
        f"open('{tmp_path}/' + os.environ['RANK'], 'w').write(str(os.getpid())); time.sleep(60)"
    )

    def stop():
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    with stop_requests(), pytest.raises(Stopped):
        launched(program, program)
    assert not any(is_running(int(path.read_text() or 0)) for path in tmp_path.iterdir())


def test_processes_are_told_where_to_meet_and_share_threads(launched, tmp_path):
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT".split()
    program = (
        f"open('{tmp_path}/' + os.environ['RANK'], 'w').write(repr([os.environ[n] for n in "
        f"{names}]))"
    )
    assert launched(program, program) == 0
    first, second = (eval((tmp_path / rank).read_text()) for rank in "01")
    assert first[:4] == ["0", "0", "2", "2"] and second[:4] == ["1", "1", "2", "2"]
    assert first[4:] == second[4:] and first[4] == "127.0.0.1" and int(first[5]) > 0


def test_the_command_starts_its_processes_and_ends_with_them(folder, seen, tmp_path):
    """The whole way: the command line, a launcher, two processes, a store."""
    options = {"dtype": "float64", "tol": 1e-6, "k": 2, "parameters": "image"}
    study = make_study(tmp_path, epochs=(0,), names=("one",), with_config=True, **options)
    arguments = (
        "spectra",
        str(study),
        "-o",
        str(tmp_path / "s.h5"),
        "--shards",
        "2",
        "--batches",
        "1",
    )
    result = subprocess.run(
        [sys.executable, "-m", "landscape", *arguments],
        env=environment_of_scripts() | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{tmp_path / 's.h5'}: 1 of 1 batches are measured (1 now, 0 before).\n"
    (ours,), theirs = records(tmp_path / "s.h5").values(), records(folder / "whole.h5")["one", 0]
    np.testing.assert_allclose(ours.eigenvalues[0], theirs.eigenvalues[0], rtol=RELATIVE)


# --- Slurm ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[007-010,12],login1", "gpu007"),
        ("node1", "node1"),
        ("a-3,b", "a-3"),
        ("rack[2,5]-x", "rack2-x"),
    ],
)
def test_the_first_node_of_a_list_is_where_processes_meet(nodes, first):
    assert ranks.first_node(nodes) == first


def test_a_process_of_srun_takes_its_place_and_a_script_of_sbatch_does_not(monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "0")
    ranks.take_place_in_slurm()
    assert not ranks.is_started_as_rank()
    variables = {
        "SLURM_PROCID": "3",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NODELIST": "n[1-2]",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    ranks.take_place_in_slurm()
    assert (ranks.rank(), ranks.world_size()) == (3, 4)
    assert (
        os.environ["LOCAL_RANK"] == "1"
        and os.environ["MASTER_ADDR"] == "n1"
        and int(os.environ["MASTER_PORT"]) >= 20_000
    )


def test_the_first_that_asks_reports_where_shards_started_the_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv(ranks.REPORTER, str(tmp_path / "reporter"))
    answers = []
    for number in ("1", "0", "2", "1"):
        monkeypatch.setenv("RANK", number)
        answers.append(ranks.is_reporter())
    assert answers == [True, False, False, True]
