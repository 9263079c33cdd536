"""One runner under all measurements: in this process, in several, in an executor; parts of a
manifest and their union.
"""

import concurrent.futures
import multiprocessing
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from landscape import pipeline, threads
from landscape.cli import main
from landscape.errors import (
    CheckpointError,
    LandscapeError,
    ManifestError,
    MemoryLimitError,
    WorkerDied,
)
from landscape.manifest import Manifest
from landscape.memory import peak_memory
from landscape.pipeline import Selection, WorkerSettings, plan, session
from landscape.pipeline.preparation import KnownSeries, PreparedSeries
from landscape.pipeline.session import Lot, measure_unit, prepare_in_session
from landscape.store import SpectrumStore, read_densities, read_surface, task_key
from landscape.store.module_record import MODULE_COLUMNS
from landscape.store.record import COLUMNS
from landscape.workers import crew
from landscape.workers.crew import Crew
from landscape.workers.progress import Progress
from landscape.workers.run_status import read_status
from tests.helpers.spectra_study import NUM_BATCHES, make_study

GIB = 2**30


def invoke(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


class Kept:
    """Workers that the end of a run leaves alone."""

    def __init__(self, pool):
        self._pool = pool

    def __getattr__(self, name):
        return getattr(self._pool, name)

    def close(self):
        pass


class SharedWorkers:
    """Workers that the first `--workers 2` starts and later ones share, so that torch is imported
    once.
    """

    def __init__(self):
        self._start, self._pool, self.num_starts = Crew._local_pool, None, 0

    def pool_of(self, chosen):
        if self._pool is None:
            self._pool = self._start(chosen)
            self.num_starts += 1
        return Kept(self._pool)

    def close(self):
        if self._pool is not None:
            self._pool.close()
        self._pool, self.num_starts = None, 0


@pytest.fixture(scope="module")
def shared_workers():
    workers = SharedWorkers()
    yield workers
    workers.close()


@pytest.fixture
def two_workers(shared_workers, monkeypatch):
    monkeypatch.setattr(Crew, "_local_pool", lambda self: shared_workers.pool_of(self))
    return shared_workers


@pytest.fixture(scope="module")
def executor():
    with concurrent.futures.ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn")
    ) as executor:
        yield executor


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    return make_study(folder, with_config=True, parameters=["visual.transformer.*", "visual.proj"])


def assert_same_bits(tables, others, columns):
    assert len(tables) == len(others) > 0
    for table, other in zip(tables, others):
        for name in columns:
            if name != "seconds":
                np.testing.assert_array_equal(
                    getattr(table, name), getattr(other, name), err_msg=name
                )


def tables_of(output: Path):
    with SpectrumStore.open(output) as store:
        keys = [(name, epoch) for name in store.series() for epoch in store.epochs(name)]
        return [store.records(*key) for key in keys], [
            store.modules(*key) for key in store.module_identities
        ]


# --- bits -----------------------------------------------------------------------------------------


def test_densities_and_surfaces_are_the_same_from_two_workers(study, tmp_path, two_workers):
    # Its density starts workers of its own; its surface and later tests take them.
    two_workers.close()
    for number in (1, 2):
        density = (
            "density",
            study,
            "-o",
            tmp_path / f"d{number}.svg",
            "--batches",
            2,
            "--matvecs",
            6,
            "--epochs",
            0,
        )
        result = invoke(
            *density, "--dense-limit", 0, "--workers", number, "--threads", 1, "--device", "cpu"
        )
        assert result.exit_code == 0, result.output
        assert two_workers.num_starts == number - 1
        surface = (
            "surface",
            study,
            "-o",
            tmp_path / f"s{number}.svg",
            "--series",
            "one",
            "--points",
            5,
        )
        result = invoke(
            *surface,
            "--directions",
            "eigenvectors",
            "--workers",
            number,
            "--threads",
            1,
            "--device",
            "cpu",
        )
        assert result.exit_code == 0, result.output
    for one, two in zip(
        read_densities(tmp_path / "d1.h5"), read_densities(tmp_path / "d2.h5"), strict=True
    ):
        for name in ("nodes", "weights", "operators", "exact", "num_negative"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)
        assert one.audited and two.audited and one.batches == two.batches == (0, 1)
    one, two = read_surface(tmp_path / "s1.h5"), read_surface(tmp_path / "s2.h5")
    np.testing.assert_array_equal(one.result.losses, two.result.losses)
    assert (
        one.num_computed == two.num_computed == 25
        and one.directions_sha256 == two.directions_sha256
    )
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".h5"] * 4 + [".svg"] * 4


def test_two_workers_and_an_executor_compute_the_bits_of_one_process(
    study, tmp_path, two_workers, executor
):
    command = (
        "spectra",
        study,
        "--threads",
        1,
        "--per-module",
        "--module-batches",
        1,
        "--device",
        "cpu",
    )
    for number in (1, 2):
        result = invoke(*command, "-o", tmp_path / f"{number}.h5", "--workers", number)
        assert result.exit_code == 0, result.output
        assert "12 of 12 batches are measured (12 now" in result.stdout
        assert "modules of 4 of 4 batches are measured" in result.stdout
    (one, one_modules), (two, two_modules) = (
        tables_of(tmp_path / "1.h5"),
        tables_of(tmp_path / "2.h5"),
    )
    assert_same_bits(one, two, COLUMNS)
    assert_same_bits(one_modules, two_modules, MODULE_COLUMNS)
    for table, other in zip(one, two):
        assert table.extras["audit"] == other.extras["audit"]
        assert table.settings["num_threads"] == other.settings["num_threads"] == 1
        assert table.settings["product"] == other.settings["product"]
    report = pipeline.run(
        Manifest.load(study), tmp_path / "3.h5", device="cpu", executor=executor, progress=False
    )
    assert report.complete and report.num_measured == 12
    assert_same_bits(one, tables_of(tmp_path / "3.h5")[0], COLUMNS)


# --- parts ----------------------------------------------------------------------------------------


def keys_of(tasks) -> list[str]:
    return [
        task_key(task.series.name, task.checkpoint.epoch, index)
        for task in tasks
        for index in task.indices
    ]


@pytest.mark.parametrize("num_shards", [1, 2, 5, 12, 13])
def test_shards_are_disjoint_equal_and_all(study, num_shards):
    manifest = Manifest.load(study)
    everything = keys_of(plan(manifest, frozenset()))
    shards = [
        keys_of(plan(manifest, frozenset(), Selection(shard=(i, num_shards))))
        for i in range(1, num_shards + 1)
    ]
    assert [key for shard in shards for key in shard] == everything
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    # What is stored changes no share.
    stored = frozenset(everything[::2])
    left = [
        key
        for i in range(1, num_shards + 1)
        for key in keys_of(plan(manifest, stored, Selection(shard=(i, num_shards))))
    ]
    assert left == [key for key in everything if key not in stored]


def test_a_part_of_a_manifest_is_measured_and_the_rest_later(study, tmp_path):
    output = tmp_path / "part.h5"
    command = ("spectra", study, "-o", output, "--unaudited", "--device", "cpu")
    result = invoke(*command, "--series", "one", "--epochs", 1, "--batches", 2)
    assert (
        result.exit_code == 0 and "2 of 2 batches are measured (2 now, 0 before)" in result.stdout
    )
    with SpectrumStore.open(output) as store:
        assert store.completed_keys() == {"one/1/0", "one/1/1"} and store.plan.num_records == 12
    result = invoke(*command, "--epochs", "0,1", "--series", "one", "--dry-run")
    assert (
        "one epoch 0: 3 batches (0-2)" in result.stdout
        and "one epoch 1: 1 batches (2)" in result.stdout
    )
    result = invoke(*command)
    assert (
        result.exit_code == 0
        and "12 of 12 batches are measured (10 now, 2 before)" in result.stdout
    )


@pytest.mark.parametrize("epochs", [["0,1"], ["0", "1"], ["1", "0,1"]])
def test_epochs_of_a_repeated_option_are_joined(epochs, study, tmp_path):
    options = [word for part in epochs for word in ("--epochs", part)]
    result = invoke(
        "spectra", study, "-o", tmp_path / "part.h5", "--series", "one", "--dry-run", *options
    )
    planned = [line for line in result.stdout.splitlines() if line.startswith("to measure")]
    assert planned == [f"to measure: one epoch {epoch}: 3 batches (0-2)" for epoch in (0, 1)]


def test_shards_merge_into_the_store_of_the_whole(study, tmp_path):
    command = ("spectra", study, "--unaudited", "--device", "cpu", "--threads", 1)
    assert invoke(*command, "-o", tmp_path / "whole.h5").exit_code == 0
    for number in (1, 2, 3):
        result = invoke(*command, "-o", tmp_path / f"{number}.h5", "--shard", f"{number}/3")
        assert result.exit_code == 0 and "4 of 4 batches are measured" in result.stdout, (
            result.output
        )
    result = invoke(
        "merge", *(tmp_path / f"{number}.h5" for number in (3, 1, 2)), "-o", tmp_path / "all.h5"
    )
    assert result.exit_code == 0, result.output
    assert_same_bits(
        tables_of(tmp_path / "whole.h5")[0], tables_of(tmp_path / "all.h5")[0], COLUMNS
    )
    result = invoke(*command, "-o", tmp_path / "all.h5")
    assert "12 of 12 batches are measured (0 now, 12 before)" in result.stdout


@pytest.mark.parametrize(
    "options, fragments",
    [
        (["--series", "onne"], ["there is no series 'onne'", "'one'"]),
        (["--epochs", "0,7"], ["no series has an epoch 7", "[0, 1]"]),
        (["--batches", NUM_BATCHES + 1], ["has 3 batches, but 4"]),
        (["--shard", "4/3"], ["'4/3' is not a share"]),
        (["--shard", "0/3"], ["'0/3' is not a share"]),
        (["--workers", "0"], ["'0' is not auto or a number"]),
        (["--workers", "many"], ["'many' is not auto"]),
        (
            ["--workers", 2, "--recycle"],
            ["--recycle", "every batch starts from the one before", "--workers"],
        ),
        (
            ["--workers", 2, "--scheduler", "tcp://127.0.0.1:1"],
            ["--workers and --scheduler", "one place"],
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(
    study, tmp_path, options, fragments
):
    result = invoke("spectra", study, "-o", tmp_path / "x.h5", "--device", "cpu", *options)
    assert result.exit_code == 2, result.output
    assert not list(tmp_path.iterdir())
    for fragment in fragments:
        assert fragment in " ".join(result.stderr.split()), result.stderr


def test_a_selection_of_nothing_in_a_manifest_is_an_error_of_the_manifest(study):
    with pytest.raises(ManifestError, match="no series 'x'"):
        Selection(series=("x",)).check(Manifest.load(study))


# --- how many -------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch):
    """A machine of eight cores and 16 GiB whose workers are counted and not started."""
    started = []
    monkeypatch.setattr(crew, "free_memory", lambda: 16 * GIB)
    monkeypatch.setattr(threads, "available_cores", lambda: 8)
    monkeypatch.setattr(threads, "free_cores", lambda: 6)
    monkeypatch.setattr(threads, "chosen", lambda: None)
    monkeypatch.setattr(crew, "_environments", lambda gpus, number: None)

    def pool(number, **options):
        started.append((number, options["num_threads"]))
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(crew, "LocalPool", pool)
    return started


def settle(
    settings: WorkerSettings,
    *,
    seconds: float,
    memory: int,
    num_items: int = 1000,
    num_gpus: int = 0,
    **options,
):
    """The crew of a run of so many items."""
    chosen = Crew(settings, **options)
    chosen.limit(num_items)
    chosen.settle(seconds=seconds * num_items, memory=memory, num_gpus=num_gpus)
    return chosen


AUTO = WorkerSettings(num_workers=None)


@pytest.mark.parametrize(
    "facts, number, reason",
    [
        ({"seconds": 2.0, "memory": GIB}, 6, "6 of 8 cores are free"),
        ({"seconds": 2.0, "memory": 5 * GIB}, 3, "each takes 5.0 GiB of 16.0 GiB free"),
        ({"seconds": 60.0, "memory": GIB, "num_items": 2}, 2, "2 items are left"),
        ({"seconds": 2.0, "memory": 20 * GIB}, 1, "each takes 20.0 GiB"),
        ({"seconds": 2.0, "memory": GIB, "num_gpus": 1}, 1, "1 GPU is there"),
        ({"seconds": 2.0, "memory": GIB, "num_gpus": 4}, 4, "4 GPUs are there"),
    ],
)
def test_as_many_workers_start_as_cores_memory_and_the_job_allow(machine, facts, number, reason):
    chosen = settle(AUTO, **facts)
    assert machine == ([(number, 1)] if number > 1 else [])
    (said,) = chosen.said
    assert said.startswith(f"{number} worker{'s' if number > 1 else ''}: {reason}")
    assert (
        chosen.cores_each == max(1, 8 // number) if number > 1 else chosen.cores_each in (None, 8)
    )


def test_a_small_job_and_one_in_which_batches_are_chained_stay_in_this_process(machine):
    chosen = settle(AUTO, seconds=0.05, memory=GIB)
    assert not machine and not chosen.said and chosen.num_sharing == 1
    chosen = settle(AUTO, seconds=50, memory=GIB, chained=True)
    assert not machine and chosen.num_sharing == 1


def test_more_workers_than_memory_allows_are_refused_and_the_most_is_named(machine):
    with pytest.raises(
        MemoryLimitError,
        match="--workers 8: each takes 5.0 GiB, and 16.0 GiB are free. Ask for at most 3",
    ):
        settle(WorkerSettings(num_workers=8), seconds=2, memory=5 * GIB)
    with pytest.raises(
        MemoryLimitError, match="--workers 64: a process takes 512 MiB .* at most 32"
    ):
        settle(WorkerSettings(num_workers=64), seconds=2, memory=GIB)
    assert settle(WorkerSettings(num_workers=3), seconds=2, memory=5 * GIB).num_sharing == 3
    # No more workers than items.
    assert (
        settle(WorkerSettings(num_workers=64), seconds=2, memory=GIB, num_items=2).num_sharing == 2
    )


def test_memory_limits_are_of_the_machine_and_divided_among_its_workers():
    products = pipeline.HvpSettings(max_memory=8 * GIB).sharing(4, 100 * GIB)
    assert products.max_memory == 2 * GIB
    assert pipeline.HvpSettings().sharing(4, 100 * GIB).max_memory == 25 * GIB
    assert pipeline.SolverSettings(max_basis_memory=GIB).sharing(4).max_basis_memory == GIB // 4
    assert pipeline.SolverSettings().sharing(4).max_basis_memory is None


def test_two_places_to_calculate_in_are_refused():
    settings = WorkerSettings(num_workers=1, scheduler="tcp://a:1", cluster=Path("a.yaml"))
    with pytest.raises(
        LandscapeError, match="--scheduler and --cluster: a run calculates in one place"
    ):
        settings.check(None)
    replace(settings, cluster=None).check(None)
    with pytest.raises(LandscapeError, match="--recycle: every batch starts"):
        replace(settings, cluster=None).check("--recycle")


# --- how far --------------------------------------------------------------------------------------


def test_progress_counts_all_workers_and_tells_rate_and_time_left(tmp_path, capsys):
    now = [1000.0]
    progress = Progress(
        num_planned=100, num_stored=20, noun="batches", folder=tmp_path, clock=lambda: now[0]
    )
    with progress:
        for _ in range(10):
            now[0] += 30
            progress.begin("one epoch 0")
            progress.add("worker 1", num_done=2, num_failed=0, seconds=20.0)
            progress.add("worker 2", num_done=1, num_failed=1, seconds=60.0)
        status = progress.status()
        assert (status.num_planned, status.num_done, status.num_failed) == (100, 50, 10)
        # 40 items of this run in 300 s, and 40 are left.
        assert status.rate_per_minute == pytest.approx(8) and status.seconds_left == pytest.approx(
            300
        )
        assert status.workers == (("worker 1", 20, 10.0), ("worker 2", 20, 30.0))
        now[0] += 5
        progress.tick()
        assert read_status(tmp_path) == progress.status()
    assert read_status(tmp_path) is None
    lines = capsys.readouterr().err.splitlines()
    assert lines.count("one epoch 0") == 1
    # A line every two minutes.
    assert Counter("of 100 batches" in line for line in lines)[True] == 2


def test_silent_progress_writes_nothing_to_the_terminal(tmp_path, capsys):
    with Progress(
        num_planned=4, num_stored=0, noun="points", folder=tmp_path, shown=False
    ) as progress:
        progress.begin("one")
        progress.add("this process", num_done=4, num_failed=0, seconds=1.0)
        assert read_status(tmp_path).noun == "points"
    assert capsys.readouterr() == ("", "")


# --- what a process holds from the run before -----------------------------------------------------


def test_processes_that_served_another_run_measure_the_next_with_its_own_weights_and_settings(
    study, tmp_path, executor
):
    manifest = Manifest.load(study)
    other = replace(manifest, hessian=replace(manifest.hessian, k=2))
    options = {"device": "cpu", "progress": False, "unaudited": True}
    first = Selection(series=("one",), epochs=(0,), num_batches=1)
    pipeline.run(manifest, tmp_path / "first.h5", selection=first, executor=executor, **options)
    pipeline.run(manifest, tmp_path / "all.h5", executor=executor, **options)
    pipeline.run(other, tmp_path / "other.h5", executor=executor, **options)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pipeline.run(manifest, tmp_path / "here.h5", **options)
        pipeline.run(other, tmp_path / "other_here.h5", **options)
    finally:
        torch.set_num_threads(threads_before)
    for elsewhere, here in (("all", "here"), ("other", "other_here")):
        assert_same_bits(
            tables_of(tmp_path / f"{elsewhere}.h5")[0],
            tables_of(tmp_path / f"{here}.h5")[0],
            COLUMNS,
        )


def test_a_session_begins_anew_with_another_run_and_a_bench_with_another_preparation():
    made = []

    class Weights:
        def prepare(self, session, tasks, known):
            return "prepared"

        def bench(self, session, task, prepared):
            made.append(task.series.name)
            return SimpleNamespace(
                load=lambda checkpoint: None, measure_all=lambda indices, contained: list(indices)
            )

        device = None

    def lot(run: str) -> Lot:
        task = SimpleNamespace(
            series=SimpleNamespace(name="one"),
            checkpoint=SimpleNamespace(epoch=0),
            place="one epoch 0",
        )
        return Lot(task, Weights(), PreparedSeries(num_threads=torch.get_num_threads()), False, run)

    assert measure_unit(lot("a"), (1, 2)) == [1, 2] and measure_unit(lot("a"), (3,)) == [3]
    assert made == ["one"]
    measure_unit(lot("b"), (1,))
    assert made == ["one"] * 2
    assert prepare_in_session("b", Weights(), (), KnownSeries()) == "prepared"
    measure_unit(lot("b"), (1,))
    assert made == ["one"] * 3


def test_a_checkpoint_that_this_worker_cannot_load_goes_to_another(monkeypatch):
    monkeypatch.setattr(session, "_AFTER_FAILURE", 0.0)

    class Blind:
        device = None

        def bench(self, session, task, prepared):
            raise CheckpointError("one_0.pt: there is no such file")

    task = SimpleNamespace(
        series=SimpleNamespace(name="one"), checkpoint=SimpleNamespace(epoch=0), place="one epoch 0"
    )
    prepared = PreparedSeries(num_threads=torch.get_num_threads())
    with pytest.raises(
        WorkerDied, match="one epoch 0 cannot be loaded: one_0.pt: there is no such file"
    ):
        measure_unit(Lot(task, Blind(), prepared, True, "c"), (1,))
    with pytest.raises(CheckpointError):
        measure_unit(Lot(task, Blind(), prepared, False, "d"), (1,))


# --- devices --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "listed, gpus",
    [("", []), ("-1", []), ("0,3", ["0", "3"]), ("GPU-8a1b,GPU-9c2d", ["GPU-8a1b", "GPU-9c2d"])],
)
def test_hidden_gpus_stay_hidden_from_workers(monkeypatch, listed, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert crew.visible_gpus() == gpus


def test_workers_share_gpus_in_turn_and_a_device_with_a_number_is_left_alone(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    environments = crew._environments(crew.visible_gpus(), 3)
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in environments] == ["0", "3", "0"]
    for device, share in ((None, (2, None)), ("cuda:1", (3, 16 * GIB)), ("cpu", (3, 16 * GIB))):
        chosen = Crew(WorkerSettings(num_workers=3), device=device)
        chosen.free_memory, chosen.num_sharing = 16 * GIB, 3
        assert chosen.share() == share
    assert pipeline.HvpSettings().sharing(2, None).max_memory is None


def test_as_many_workers_start_as_chosen_threads_and_divided_limits_allow(machine, monkeypatch):
    monkeypatch.setattr(threads, "chosen", lambda: 3)
    assert (
        settle(AUTO, seconds=2.0, memory=GIB)
        .said[0]
        .startswith("2 workers: 6 of 8 cores are free, 3 threads each")
    )
    monkeypatch.setattr(threads, "chosen", lambda: None)
    chosen = Crew(AUTO)
    chosen.limit(1000)
    chosen.settle(seconds=2000.0, memory=GIB, most_sharing=4)
    assert chosen.said[0].startswith("4 workers: the memory of products is divided")


def test_the_peak_of_a_process_is_its_own_and_not_that_of_its_parent():
    ballast = np.ones(GIB // 8)
    code = "from landscape.memory import peak_memory; print(peak_memory())"
    peak = int(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
    )
    assert ballast.nbytes == GIB and peak < GIB // 2 < peak_memory()
