"""The files of docs/jobs on a real Slurm of one node, changed as a user would: the store is that of
one process, to the bit.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.processes import ROOT, environment_of_scripts, require_dask, wait_until
from tests.helpers.slurm_node import missing, slurm_node, wait_for
from tests.helpers.spectra_study import make_study, stored

require_dask()
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(missing()), reason=missing())]

JOBS = ROOT / "docs" / "jobs"
# Sizes and names of this machine.
CHANGES = {
    "array.sbatch": {
        "--array=1-16": "--array=1-2",
        "num_shards=16": "num_shards=2",
        "--cpus-per-task=4": "--cpus-per-task=1",
        "--mem=16G": "--mem=1G",
    },
    "coordinator.sbatch": {"--mem=4G": "--mem=1G"},
    "slurm.yaml": {
        "workers: 16": "workers: 1",
        "cores: 4": "cores: 1",
        "memory: 16GB": "memory: 1GB",
        "queue: normal": "queue: debug",
        "interface: ib0": "interface: lo",
    },
}


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What jobs inherit: this environment as if it was activated, and the place of Slurm."""
    environment = environment_of_scripts()
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    with slurm_node(tmp_path_factory.mktemp("slurm")) as needed:
        yield environment | needed


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, variables: dict[str, str]) -> Path:
    """A manifest, its jobs, and `whole.h5`, measured in one process."""
    folder = tmp_path_factory.mktemp("study")
    make_study(folder, with_config=True)
    for name, changes in CHANGES.items():
        text = (JOBS / name).read_text()
        for old, new in changes.items():
            assert text.count(old) == 1, f"{name}: {old}"
            text = text.replace(old, new)
        (folder / name).write_text(text)
    run(folder, variables, "landscape spectra checkpoints.yaml -o whole.h5 --workers 1 --threads 1")
    assert len(stored(folder / "whole.h5")) == 12
    return folder


def run(folder: Path, variables: dict[str, str], command: str) -> str:
    """Run a command of bash; what it prints on both streams."""
    result = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def submit(folder: Path, variables: dict[str, str], script: str) -> None:
    """Submit a script and wait for the end of all jobs; `sbatch --wait` looks every half minute
    only.
    """
    run(folder, variables, f"sbatch {script}")
    wait_for(lambda: not run(folder, variables, "squeue -h"), "the end of all jobs", 240)


def test_shards_of_an_array_merge_into_the_store_of_one_process(study, variables):
    submit(study, variables, "array.sbatch")
    for number in (1, 2):
        assert (
            "6 of 6 batches are measured (6 now, 0 before)"
            in (study / f"shard-{number}.log").read_text()
        )
    said = run(study, variables, "landscape merge shard-{1..2}.h5 -o merged.h5")
    assert "12 of 12 planned records" in said
    assert stored(study / "merged.h5") == stored(study / "whole.h5")


def test_workers_of_the_cluster_file_measure_the_bits_of_one_process(study, variables):
    said = run(
        study, variables, "landscape spectra checkpoints.yaml -o cluster.h5 --cluster slurm.yaml"
    )
    assert "12 of 12 batches are measured (12 now, 0 before)" in said
    assert stored(study / "cluster.h5") == stored(study / "whole.h5")
    assert list((study / "logs").glob("dask-worker-*.err"))
    wait_until(lambda: not run(study, variables, "squeue -h"))


def test_a_coordinator_that_is_a_job_itself_does_so_and_leaves_no_job(study, variables):
    submit(study, variables, "coordinator.sbatch")
    assert (
        "12 of 12 batches are measured (12 now, 0 before)"
        in (study / "coordinator.log").read_text()
    )
    assert stored(study / "spectra.h5") == stored(study / "whole.h5")
