"""`landscape spectra --shards 2` of language models: the numbers of one process and of
transformers' own losses.
"""

import json
import subprocess

import numpy as np
import pytest

from landscape.store import verdicts
from tests.helpers.processes import environment_of_scripts, helper_command
from tests.sharded.test_shards import SOLVER, check_same, records

transformers = pytest.importorskip("transformers")

from tests.language.test_language_manifest import (
    TEXT,
    check_with_dense_hessian,
    save_run,
    write_manifest,
)

# What a manifest says of the Hessian, by the name of a study: a table that is tied, gains, and a
# projection.
STUDIES = {
    "llama": {"parameters": ["*embed*", "*norm*"], "tol": 1e-4},
    "gpt2": {"parameters": ["*wte*", "*ln_*"], "tol": 1e-4, "k": 1},
    "float32": {"parameters": ["*norm*", "*.v_proj.*"], "tol": 1e-3, "dtype": "float32"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Stores and messages of all runs of language models of sharded_study.py."""
    path = tmp_path_factory.mktemp("shards")
    for name, hessian in STUDIES.items():
        (path / name).mkdir()
        (path / name / "text.txt").write_text(TEXT)
        save_run(
            path / name / "run",
            **({"family": "gpt2", "initializer_range": 0.3} if name == "gpt2" else {}),
        )
        write_manifest(path / name, hessian=hessian)
    program = subprocess.run(
        helper_command("sharded_study", path, "language"),
        env=environment_of_scripts() | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert program.returncode == 0, program.stderr
    return path


@pytest.fixture(scope="module")
def seen(folder):
    return json.loads((folder / "seen.json").read_text())


def test_every_run_ends_well_and_the_first_process_alone_speaks(seen):
    for name, processes in seen.items():
        first, *others = processes
        assert first["status"] == 0 and first["error"] is None, (name, first)
        assert all(
            other == {"status": 0, "stdout": "", "stderr": "", "error": None} for other in others
        )


def test_two_processes_store_the_numbers_of_one(folder, seen):
    shared, whole = records(folder / "mixed.h5"), records(folder / "whole.h5")
    assert shared.keys() == whole.keys() == {("llama", 100), ("llama", 200)}
    for key in shared:
        check_same(shared[key], whole[key], SOLVER)
        for what in ("as_trained", "num_threads"):
            assert shared[key].settings[what] == whole[key].settings[what]
        assert shared[key].extras["notes"] == whole[key].extras["notes"]
        assert shared[key].versions == whole[key].versions
    # Of these the first was audited, and both others took that over.
    for table in shared.values():
        (audit,) = verdicts(table.extras)
        assert audit["passed"] and audit["num_processes"] == 2 and audit["epoch"] == 200


def test_a_store_goes_on_with_one_process_and_back(folder, seen):
    counts = [
        seen[name][0]["stdout"].partition("measured ")[2]
        for name in seen
        if name.startswith("mixed")
    ]
    assert counts == ["(1 now, 0 before).\n", "(1 now, 1 before).\n", "(2 now, 2 before).\n"]


def test_weights_in_several_files_are_read_by_rows(folder, seen):
    files = sorted(
        path.name for path in (folder / "llama" / "run" / "checkpoint-200").glob("model*")
    )
    assert len(files) == 3 and files[-1] == "model.safetensors.index.json"
    check_with_dense_hessian(
        folder / "llama" / "run" / "checkpoint-200",
        records(folder / "mixed.h5")["llama", 200],
        lambda name: "embed" in name or "norm" in name,
    )


def test_a_tied_gpt2_has_the_dense_hessian_of_its_own_loss(folder, seen):
    check_with_dense_hessian(
        folder / "gpt2" / "run" / "checkpoint-100",
        records(folder / "gpt2.h5")["llama", 100],
        lambda name: "wte" in name or "ln_" in name,
    )


def test_float32_is_audited_in_all_digits_of_float64(folder, seen):
    (table,) = records(folder / "float32.h5").values()
    (audit,) = verdicts(table.extras)
    # With the casts of transformers to float32, differences in float64 would not settle.
    assert audit["passed"] and audit["dtype"] == "float64" and audit["worst_error"] < 1e-6


def test_the_next_batch_starts_from_the_eigenvectors_of_the_last(folder, seen):
    (table,) = records(folder / "float32.h5").values()
    assert table.settings["start"] == "recycled" and len(table.batch) == 2
    check_with_dense_hessian(
        folder / "float32" / "run" / "checkpoint-100",
        table,
        lambda name: "norm" in name or "v_proj" in name,
        rtol=1e-4,
    )
    # A start that is not random tells no density.
    assert np.isfinite(table.ritz_values[0]).any() and not np.isfinite(table.ritz_values[1]).any()


def test_differences_of_gradients_have_their_error_in_the_bounds(folder, seen):
    (table,), (exact,) = (
        records(folder / "differences.h5").values(),
        records(folder / "gpt2.h5").values(),
    )
    assert table.settings["product"] == "central differences of gradients, model over 2 processes"
    assert table.batch_sha256 == exact.batch_sha256 and table.loss[0] == pytest.approx(
        exact.loss[0], rel=1e-12
    )
    bounds = table.residuals[0] * np.abs(table.eigenvalues[0])
    assert (np.abs(table.eigenvalues - exact.eigenvalues)[0] <= bounds).all() and (bounds > 0).all()
    assert verdicts(table.extras)[0]["product"] == "finite-difference"


def test_every_process_says_what_it_needs(seen):
    assert "note: llama: needs at least" in seen["mixed, begun by two"][0]["stderr"]
    assert (
        "in each of 2 processes, and activations on top" in seen["mixed, begun by two"][0]["stderr"]
    )
