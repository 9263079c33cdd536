"""`landscape spectra` from a manifest to a store: what it computes, how it resumes, and what it
refuses before it begins.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

from landscape import pipeline
from landscape.cli import main
from landscape.clip.checkpoint import load_checkpoint, save_checkpoint
from landscape.clip.image_text import curvature_batches, open_pairs
from landscape.clip.model import build_model, preprocess_for, tokenizer_for
from landscape.clip.objectives import contrastive_objective
from landscape.errors import MemoryLimitError, NumericalError, ObjectiveError
from landscape.manifest import HessianSettings, Manifest
from landscape.manifest.selection import Task
from landscape.store import SpectrumStore
from tests.helpers.oracles import dense_hessian
from tests.helpers.processes import environment_of_scripts, helper_command
from tests.helpers.spectra_study import BATCH_SIZE, MODEL, NUM_BATCHES, make_study, stored

PATTERNS = ["visual.proj", "visual.ln_post.*", "logit_scale"]


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path)


def invoke(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def measured_template(tmp_path_factory):
    """A study whose store is complete; not to be changed."""
    folder = tmp_path_factory.mktemp("measured")
    result = invoke("spectra", make_study(folder), "-o", folder / "spectra.h5")
    assert result.exit_code == 0 and "12 now, 0 before" in result.stdout, result.output
    return folder


@pytest.fixture
def measured(measured_template, tmp_path):
    """The manifest of a study of its own, measured into `spectra.h5` beside it."""
    shutil.copytree(measured_template, tmp_path, dirs_exist_ok=True)
    return tmp_path / "checkpoints.yaml"


@pytest.fixture(scope="module")
def plain_template(tmp_path_factory):
    """A study of one checkpoint in float64, few parameters, and its store in `plain.h5`."""
    folder = tmp_path_factory.mktemp("plain")
    study = make_study(
        folder, epochs=(0,), names=("one",), parameters=PATTERNS, dtype="float64", tol=1e-6
    )
    assert invoke("spectra", study, "-o", folder / "plain.h5").exit_code == 0
    return folder


def edit(manifest: Path, section: str, **values: object) -> Path:
    document = yaml.safe_load(manifest.read_text())
    document[section].update(values)
    manifest.write_text(yaml.safe_dump(document, sort_keys=False))
    return manifest


def assert_refused(result, *fragments: str, output: Path) -> None:
    """One line on stderr that holds every fragment, exit status 2, and nothing left behind."""
    assert result.exit_code == 2, (result.output, result.exception)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    for fragment in fragments:
        assert fragment in lines[0], lines[0]
    assert not list(output.parent.glob(f"*{output.name}*"))


def test_the_stored_eigenvalues_are_those_of_the_dense_hessian(tmp_path):
    manifest = Manifest.load(make_study(tmp_path, parameters=PATTERNS, dtype="float64", tol=1e-6))
    report = pipeline.run(manifest, tmp_path / "spectra.h5", progress=False)
    assert report.complete and report.num_measured == 2 * 2 * NUM_BATCHES
    model = build_model(MODEL, dtype=torch.float64)
    load_checkpoint(model, tmp_path / "two_1.pt")
    batches = curvature_batches(
        open_pairs(manifest.data),
        num_samples=NUM_BATCHES * BATCH_SIZE,
        batch_size=BATCH_SIZE,
        seed=0,
        transform=preprocess_for(MODEL),
        tokenizer=tokenizer_for(MODEL),
    )
    objective, params = contrastive_objective(model, parameters=PATTERNS)
    with SpectrumStore.open(tmp_path / "spectra.h5") as store:
        table = store.records("two", 1)
    for row in range(NUM_BATCHES):
        batch = {"image": batches[row]["image"].double(), "text": batches[row]["text"]}
        exact = np.linalg.eigvalsh(dense_hessian(objective, params, batch).numpy())
        exact = exact[np.argsort(-np.abs(exact))][:3]
        np.testing.assert_allclose(table.eigenvalues[row], exact, rtol=1e-6, atol=1e-9)
        assert table.loss[row] == pytest.approx(float(objective(params, batch)), rel=1e-12)
        assert table.batch_sha256[row] == batches.digest(row)
        spectrum = np.sort(np.linalg.eigvalsh(dense_hessian(objective, params, batch).numpy()))
        for found, residuals, true in (
            (table.smallest[row], table.smallest_residuals[row], spectrum[:3]),
            (table.largest[row], table.largest_residuals[row], spectrum[::-1][:3]),
        ):
            distance = np.abs(spectrum[:, None] - found).min(axis=0)
            assert (distance <= residuals * np.abs(found)).all()
            assert found[0] == pytest.approx(true[0], rel=1e-5)
        assert 0 < table.num_negative[row] <= (spectrum < 0).sum()
        assert 0 < table.num_positive[row] <= (spectrum > 0).sum()
        assert table.orthogonality_defect[row] < 1e-12
        norm = np.sqrt(sum(float((tensor.double() ** 2).sum()) for tensor in params.values()))
        assert table.parameter_norm[row] == pytest.approx(norm, rel=1e-12)
    assert table.converged.all() and (table.residuals <= 1e-6).all()
    np.testing.assert_allclose(np.nansum(table.ritz_weights, axis=1), 1)


def test_all_series_and_epochs_are_measured_on_the_same_batches(measured, tmp_path):
    with SpectrumStore.open(tmp_path / "spectra.h5") as store:
        digests = {
            store.records(series, epoch).batch_sha256
            for series in store.series()
            for epoch in store.epochs(series)
        }
    assert len(digests) == 1 and len(set(*digests)) == NUM_BATCHES


def test_a_second_run_measures_nothing_and_leaves_the_file_as_it_is(measured, tmp_path):
    output = tmp_path / "spectra.h5"
    before = output.read_bytes()
    again = invoke("spectra", measured, "-o", output)
    assert again.exit_code == 0 and "0 now, 12 before" in again.stdout
    assert output.read_bytes() == before and not list(tmp_path.glob("*.parts"))


def test_an_epoch_that_was_added_is_all_that_the_next_run_measures(measured, tmp_path):
    output = tmp_path / "spectra.h5"
    before = stored(output)
    document = yaml.safe_load(measured.read_text())
    save_checkpoint(tmp_path / "late.pt", model=build_model(MODEL, seed=7), epoch=2, name=MODEL)
    document["series"][0]["checkpoints"].append({"epoch": 2, "path": "late.pt"})
    measured.write_text(yaml.safe_dump(document))
    result = invoke("spectra", measured, "-o", output)
    assert f"{NUM_BATCHES} now, 12 before" in result.stdout
    after = stored(output)
    assert {key: after[key] for key in before} == before and len(after) == 12 + NUM_BATCHES


def test_a_dry_run_lists_what_is_left_and_writes_nothing(study, tmp_path):
    result = invoke("spectra", study, "-o", tmp_path / "spectra.h5", "--dry-run")
    assert result.exit_code == 0
    assert "one epoch 0: 3 batches (0-2)" in result.stdout and "0 of 12" in result.stdout
    assert not list(tmp_path.glob("spectra.h5*"))


def test_the_plan_names_runs_of_batches(study):
    manifest = Manifest.load(study)
    tasks = pipeline.plan(manifest, frozenset({"one/0/1", "one/1/0", "one/1/1", "one/1/2"}))
    assert [str(task) for task in tasks][:2] == [
        "one epoch 0: 2 batches (0, 2)",
        "two epoch 0: 3 batches (0-2)",
    ]
    assert isinstance(tasks[0], Task)


def test_the_same_seed_gives_the_same_values_and_another_seed_agrees_within_the_bounds(tmp_path):
    tables = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        manifest = make_study(tmp_path / name, epochs=(0,), names=("one",), seed=seed)
        pipeline.run(Manifest.load(manifest), tmp_path / name / "spectra.h5", progress=False)
        with SpectrumStore.open(tmp_path / name / "spectra.h5") as store:
            tables.append(store.records("one", 0))
    np.testing.assert_allclose(tables[1].eigenvalues, tables[0].eigenvalues, rtol=1e-5)
    bounds = [table.residuals * np.abs(table.eigenvalues) for table in tables]
    assert (np.abs(tables[2].eigenvalues - tables[0].eigenvalues) <= bounds[0] + bounds[2]).all()


@pytest.mark.parametrize("method", ["power", "pyhessian"])
def test_the_published_methods_run_on_the_same_objective(tmp_path, method):
    if method == "pyhessian":
        pytest.importorskip("pyhessian")
    study = make_study(tmp_path, epochs=(0,), names=("one",), parameters=PATTERNS, k=1)
    assert invoke("spectra", study, "-o", tmp_path / "ours.h5").exit_code == 0
    result = invoke("spectra", study, "-o", tmp_path / "theirs.h5", "--method", method)
    assert result.exit_code == 0, result.output
    with SpectrumStore.open(tmp_path / "theirs.h5") as store:
        assert store.plan.protocol["hessian"]["method"] == method
        table = store.records("one", 0)
    assert table.ritz_values.shape[1] == 0
    assert np.isnan(table.largest).all() and (table.num_negative == -1).all()
    ours = np.array(list(stored(tmp_path / "ours.h5").values()))
    # Its stopping rule allows an error of about the residual it leaves; the residual is ours, so it
    # must cover the error.
    assert (np.abs(table.eigenvalues - ours) <= (table.residuals + 1e-3) * np.abs(ours)).all()


def test_a_batch_that_fails_costs_that_batch_alone_and_the_next_run_tries_it_again(
    tmp_path, monkeypatch
):
    from landscape.pipeline.solve import Solver

    solve = Solver.solve

    def failing(self, hessian, subject, index, **options):
        if index == 1:
            raise NumericalError("product 3 of the operator is not finite.")
        return solve(self, hessian, subject, index, **options)

    monkeypatch.setattr(Solver, "solve", failing)
    command = (
        "spectra",
        make_study(tmp_path, names=("one",)),
        "-o",
        tmp_path / "spectra.h5",
        "--unaudited",
    )
    result = invoke(*command)
    assert result.exit_code == 1
    assert "failed: one epoch 0 batch 1: product 3" in result.stdout and "4 of 6" in result.stdout
    monkeypatch.undo()
    result = invoke(*command)
    assert result.exit_code == 0 and "2 now, 4 before" in result.stdout


def test_what_is_refused_ends_the_run_only_while_nothing_has_worked():
    from landscape.pipeline.runner import refusal
    from landscape.pipeline.session import Failure, try_measure

    def refused():
        raise ObjectiveError("no second\n derivative")

    def overflowed():
        raise NumericalError("not finite")

    def too_large():
        raise MemoryLimitError("does not fit")

    for fault, error in ((refused, ObjectiveError), (too_large, MemoryLimitError)):
        assert isinstance(refusal([try_measure(fault)], has_worked=False), error)
        assert refusal([try_measure(fault)], has_worked=True) is None
        assert refusal([try_measure(fault), {}], has_worked=False) is None
    assert try_measure(refused).reason == "no second derivative"
    assert try_measure(too_large).reason == "does not fit"
    assert try_measure(overflowed) == Failure(reason="not finite")
    assert refusal([try_measure(overflowed)], has_worked=False) is None
    assert try_measure(dict) == {}


def test_an_error_that_no_batch_should_raise_shows_in_one_process_and_is_a_failure_among_many():
    from landscape.pipeline.session import Failure, try_measure

    def broken():
        raise KeyError("weight")

    with pytest.raises(KeyError):
        try_measure(broken)
    assert try_measure(broken, contained=True) == Failure(reason="KeyError: 'weight'")


def test_a_batch_whose_krylov_vectors_do_not_fit_costs_that_batch_alone(tmp_path):
    from landscape.pipeline.session import try_measure
    from landscape.pipeline.solve import Solver, SolverSettings
    from tests.linalg.test_stochastic import Padded

    # Room for 11 vectors of 100 numbers, which k = 5 needs; of 105 numbers, those of a batch with
    # more tokens, for 10.
    solver = Solver(SolverSettings(max_basis_memory=11 * 100 * 8))
    small, large = (Padded(np.linspace(-1, 2, size) ** 3, 500 - size) for size in (100, 105))
    hessian = HessianSettings(objective="contrastive", k=5)
    found = try_measure(lambda: solver.lanczos(small, hessian, 1, series="one"))
    assert float(found.values[0]) == pytest.approx(8, rel=1e-6)
    why = try_measure(lambda: solver.lanczos(large, hessian, 1, series="one")).reason
    assert (
        why.startswith("--max-basis-memory: 8,800 bytes hold 10 vectors of 105 numbers")
        and "Allow 9,240 bytes" in why
    )


def test_the_first_batch_of_every_checkpoint_gets_a_second_start_and_every_batch_its_look(
    tmp_path, monkeypatch
):
    from landscape.linalg import lanczos

    eigsh, calls = lanczos.eigsh, []

    def recorded(A, *arguments, **settings):
        pairs = eigsh(A, *arguments, **settings)
        if not isinstance(A, lanczos.SupportedPart):
            calls.append((settings.get("num_checks"), pairs))
        return pairs

    monkeypatch.setattr(lanczos, "eigsh", recorded)
    result = invoke("spectra", make_study(tmp_path, names=("one",)), "-o", tmp_path / "spectra.h5")
    assert result.exit_code == 0, result.output
    assert [checks for checks, _ in calls] == [4, *[None] * (NUM_BATCHES - 1)] * 2
    with SpectrumStore.open(tmp_path / "spectra.h5") as store:
        tables = [
            store.records(series, epoch)
            for series in store.series()
            for epoch in store.epochs(series)
        ]
    assert [miss for table in tables for miss in table.missed_probability] == [
        pairs.missed.far_probability for _, pairs in calls
    ]
    assert all((table.missed_probability[1:] <= 0.01).all() for table in tables)
    assert all((table.missed_distance[1:] <= 0.05 * (1 + 1e-9)).all() for table in tables)
    for table in tables:
        bounds = table.residuals * np.abs(table.eigenvalues)
        assert (table.value_bounds > 0).all() and (table.value_bounds <= bounds).all()
    said = invoke("info", tmp_path / "spectra.h5").stdout
    assert "from every value found, would have been seen with 99 % probability" in said


def test_where_eigsh_looks_for_copies_to_the_end_the_first_batch_asks_for_no_less():
    from landscape.linalg.lanczos import num_spot_checks
    from tests.linalg.test_stochastic import Padded

    # What counts is the size of the vectors, those in the support.
    assert (
        num_spot_checks(Padded(np.ones(1000), 500)) is None
        and num_spot_checks(Padded(np.ones(1001), 500)) == 4
    )


def test_recycled_and_restarted_runs_find_the_same_values_and_say_how(tmp_path):
    study = make_study(
        tmp_path, epochs=(0, 1), names=("one",), parameters=PATTERNS, tol=1e-6, dtype="float64"
    )
    assert invoke("spectra", study, "-o", tmp_path / "plain.h5").exit_code == 0
    with SpectrumStore.open(tmp_path / "plain.h5") as store:
        size = 8 * store.records("one", 0).num_params
    # Ten vectors: k = 3 and what a restarted run needs at least, and one more.
    for name, options in {
        "warm": ["--recycle"],
        "small": ["--max-basis-memory", str(10 * size)],
    }.items():
        result = invoke("spectra", study, "-o", tmp_path / f"{name}.h5", *options)
        assert result.exit_code == 0, result.output
        with (
            SpectrumStore.open(tmp_path / f"{name}.h5") as store,
            SpectrumStore.open(tmp_path / "plain.h5") as plain,
        ):
            for epoch in (0, 1):
                table, expected = store.records("one", epoch), plain.records("one", epoch)
                np.testing.assert_allclose(table.eigenvalues, expected.eigenvalues, rtol=1e-9)
                assert table.converged.all()
        if name == "warm":
            assert table.settings["start"] == "recycled" and np.isnan(table.ritz_values).all()
        else:
            assert (
                table.settings["max_basis_memory"] == 10 * size and (table.num_matvecs > 10).all()
            )
            # A node for every product before the first restart.
            assert (np.isfinite(table.ritz_values).sum(1) <= 10).all()


@pytest.mark.parametrize(
    "options, fragments",
    [
        (
            ["--max-basis-memory", "1kB"],
            ["--max-basis-memory: 1,000 bytes hold", "3 eigenvalues need 9", "Allow"],
        ),
        (["--max-basis-memory", "lots"], ["not an amount of memory"]),
        (["--recycle", "--method", "power"], ["method power", "--recycle"]),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_anything_is_written(
    study, tmp_path, options, fragments
):
    result = invoke("spectra", study, "-o", tmp_path / "spectra.h5", *options)
    assert result.exit_code == 2 and all(fragment in result.stderr for fragment in fragments), (
        result.output
    )
    assert not list(tmp_path.glob("spectra.h5*"))


def test_too_little_memory_for_vectors_of_finite_differences_is_refused_in_one_line(
    study, tmp_path
):
    options = ["--max-basis-memory", "1kB", "--hvp", "finite-difference", "--unaudited"]
    result = invoke("spectra", study, "-o", tmp_path / "spectra.h5", *options)
    assert result.exit_code == 2 and "1,000 bytes hold" in result.stderr.splitlines()[-1], (
        result.output
    )
    assert result.exc_info[0] is SystemExit


def test_pairs_that_miss_the_tolerance_are_stored_and_said_to(tmp_path):
    study = make_study(tmp_path, epochs=(0,), names=("one",), max_matvecs=4, tol=1e-5)
    result = invoke("spectra", study, "-o", tmp_path / "spectra.h5")
    assert result.exit_code == 0 and "missed the tolerance" in result.stdout
    with SpectrumStore.open(tmp_path / "spectra.h5") as store:
        table = store.records("one", 0)
    assert not table.converged.all() and (table.num_matvecs == 4).all()


@pytest.mark.parametrize(
    "section, values, fragments",
    [
        ("data", {"num_samples": 40}, ["40", "12", "Lower num_samples"]),
        ("data", {"batch_size": 1}, ["batch_size", "contrastive"]),
        ("data", {"num_samples": 13}, ["multiple"]),
        ("data", {"augmentation": "nonsense"}, ["nonsense", "clip_mamba"]),
        ("data", {"source": "nowhere.tsv"}, ["nowhere.tsv"]),
        ("hessian", {"k": 9_999_999, "max_matvecs": 9_999_999}, ["k is 9999999", "at most 10000"]),
        ("hessian", {"k": 2, "parameters": ["logit_scale"]}, ["k is 2", "eigenvalues"]),
        ("hessian", {"parameters": ["nonsense.*"]}, ["nonsense"]),
        ("hessian", {"kk": 5}, ["kk"]),
        ("hessian", {"which": "SA", "method": "power"}, ["which"]),
        ("hessian", {"objective": "cross_entropy"}, ["contrastive"]),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_in_one_line(
    study, tmp_path, section, values, fragments
):
    result = invoke("spectra", edit(study, section, **values), "-o", tmp_path / "out.h5")
    assert_refused(result, *fragments, output=tmp_path / "out.h5")


@pytest.mark.parametrize(
    "damage, fragments",
    [
        (lambda path: path.unlink(), ["two_1.pt"]),
        (lambda path: path.write_bytes(path.read_bytes()[:-1000]), ["two_1.pt"]),
        (lambda path: path.write_bytes(b"not a checkpoint"), ["two_1.pt"]),
        (
            lambda path: torch.save({"state_dict": {"a": torch.zeros(3)}}, path),
            ["two_1.pt", "missing"],
        ),
    ],
)
def test_a_broken_last_checkpoint_is_found_before_the_first_product(
    study, tmp_path, damage, fragments
):
    damage(tmp_path / "two_1.pt")
    result = invoke("spectra", study, "-o", tmp_path / "out.h5")
    assert_refused(result, *fragments, output=tmp_path / "out.h5")


def test_a_wrong_sha256_is_refused(study, tmp_path):
    document = yaml.safe_load(study.read_text())
    document["series"][0]["checkpoints"][1]["sha256"] = "0" * 64
    study.write_text(yaml.safe_dump(document))
    result = invoke("spectra", study, "-o", tmp_path / "out.h5")
    assert_refused(result, "sha256", "one_1.pt", output=tmp_path / "out.h5")


def test_a_checkpoint_of_another_epoch_than_the_manifest_says_is_refused(study, tmp_path):
    document = yaml.safe_load(study.read_text())
    document["series"][0]["checkpoints"][1]["path"] = "one_0.pt"
    study.write_text(yaml.safe_dump(document))
    result = invoke("spectra", study, "-o", tmp_path / "out.h5")
    assert_refused(result, "one_0.pt", "epoch 0", "epoch 1", output=tmp_path / "out.h5")


def test_an_unknown_model_is_refused_with_the_nearest_name(study, tmp_path):
    document = yaml.safe_load(study.read_text())
    document["series"][0]["model"] = "vit_tinny_64"
    study.write_text(yaml.safe_dump(document))
    assert_refused(
        invoke("spectra", study, "-o", tmp_path / "out.h5"),
        "vit_tiny_64",
        output=tmp_path / "out.h5",
    )


def test_spectra_without_epoch_zero_says_how_to_get_it(tmp_path):
    study = make_study(tmp_path, epochs=(1, 2))
    result = invoke("spectra", study, "-o", tmp_path / "out.h5")
    assert_refused(result, "epoch 0", "landscape train", output=tmp_path / "out.h5")


def test_a_missing_manifest_and_a_missing_folder_are_refused(study, tmp_path):
    result = invoke("spectra", tmp_path / "none.yaml", "-o", tmp_path / "out.h5")
    assert_refused(result, "none.yaml", output=tmp_path / "out.h5")
    result = invoke("spectra", study, "-o", tmp_path / "missing" / "out.h5")
    assert (
        result.exit_code == 2 and "missing" in result.stderr and not (tmp_path / "missing").exists()
    )


def test_an_output_of_another_protocol_is_refused_and_left_alone(measured, tmp_path):
    output = tmp_path / "spectra.h5"
    before = output.read_bytes()
    result = invoke("spectra", edit(measured, "hessian", k=2), "-o", output)
    assert result.exit_code == 2 and "k" in result.stderr
    assert output.read_bytes() == before


def test_train_mode_batch_norm_or_dropout_cannot_reach_a_measurement(study, tmp_path, monkeypatch):
    from landscape.clip import trained

    monkeypatch.setattr(
        trained, "build_model", lambda name, **options: build_model(name, **options).train()
    )
    monkeypatch.setattr(trained, "build_model", _with_dropout)
    result = invoke("spectra", study, "-o", tmp_path / "out.h5")
    assert_refused(result, "dropout", output=tmp_path / "out.h5")


def _with_dropout(name, **options):
    model = build_model(name, **options)
    model.visual.patch_dropout = torch.nn.Dropout(0.5).train()
    return model


# --- how products are computed --------------------------------------------------------------------


def settings_in(output: Path) -> dict:
    with SpectrumStore.open(output) as store:
        return store.records("one", 0).settings


@pytest.mark.parametrize(
    "options, product, reason",
    [
        ([], "double backward, retained graph", "its graph fits in memory"),
        (["--rows", 3], "double backward in chunks of rows of 3", "asked for"),
        (["--hvp", "rebuilt"], "double backward, graph rebuilt for every product", "asked for"),
        (["--hvp", "jvp", "--tf32"], "jvp of the gradient", "asked for"),
    ],
)
def test_the_way_of_products_is_recorded_and_does_not_change_the_values(
    plain_template, tmp_path, options, product, reason
):
    plain, output = plain_template / "plain.h5", tmp_path / "spectra.h5"
    # Strategies are chosen on the first batch of a series; none of them is another one on another
    # batch.
    selection = ["--batches", 2, "--unaudited"] if options else []
    result = invoke(
        "spectra", plain_template / "checkpoints.yaml", "-o", output, *options, *selection
    )
    assert result.exit_code == 0, result.output
    values, expected = stored(output), stored(plain)
    assert len(values) == (2 if options else NUM_BATCHES)
    for key in values:
        np.testing.assert_allclose(values[key], expected[key], rtol=1e-9)
    settings = settings_in(output)
    # One choice for the series: records that differed would be stored as several.
    assert settings["product"] == product and settings["product_choice"]["reason"] == reason
    assert settings["product_choice"]["allow_tf32"] is ("--tf32" in options)


def test_batches_whose_graph_does_not_fit_are_measured_in_chunks(tmp_path, monkeypatch):
    from landscape.curvature.hvp import engine

    def too_large(problem, guard, **options):
        raise MemoryError("short")

    study = make_study(tmp_path, epochs=(0,), names=("one",), parameters=PATTERNS)
    whole, lean = tmp_path / "whole.h5", tmp_path / "lean.h5"
    assert invoke("spectra", study, "-o", whole).exit_code == 0
    monkeypatch.setattr(engine, "twice_evaluated", too_large)
    result = invoke("spectra", study, "-o", lean)
    assert result.exit_code == 0, result.output
    made = settings_in(lean)["product_choice"]
    assert (made["product"], made["rows"]) == (
        "rows",
        2,
    ) and "retained: does not fit in memory" in made["reason"]
    for key, values in stored(whole).items():
        np.testing.assert_allclose(stored(lean)[key], values, rtol=1e-3)


def test_a_graph_is_recorded_for_a_long_job_and_the_values_stay(tmp_path, monkeypatch):
    from landscape.pipeline import products

    study = make_study(tmp_path, names=("one",), parameters=PATTERNS)
    plain, recorded = tmp_path / "plain.h5", tmp_path / "recorded.h5"
    assert invoke("spectra", study, "-o", plain).exit_code == 0
    monkeypatch.setattr(products, "_MIN_RECORDED_PRODUCTS", 1)
    assert invoke("spectra", study, "-o", recorded).exit_code == 0
    assert settings_in(plain)["product_choice"]["product"] == "retained"
    choice = settings_in(recorded)["product_choice"]
    assert choice["product"] == "traced" and choice["reason"].startswith("pays for ")
    for key, values in stored(plain).items():
        np.testing.assert_allclose(stored(recorded)[key], values, rtol=1e-5)


@pytest.mark.parametrize(
    "num_products, seconds, is_cpu, strategy",
    [
        (2999, 1.0, True, None),
        (3000, 0.01, True, "traced"),
        (3000, 1.0, True, "compiled"),
        (3000, 1.0, False, "traced"),
    ],
)
def test_the_strategy_follows_the_length_of_the_job(num_products, seconds, is_cpu, strategy):
    from landscape.pipeline.products import strategy_for

    assert strategy_for(num_products, seconds, is_cpu=is_cpu) == strategy


def test_modules_share_one_graph_so_that_a_recorded_product_is_refused(study, tmp_path):
    result = invoke("spectra", study, "-o", tmp_path / "out.h5", "--per-module", "--hvp", "traced")
    assert_refused(result, "--hvp traced", "parts of one", output=tmp_path / "out.h5")


def test_a_memory_limit_that_cannot_be_met_is_refused_before_anything_is_written(study, tmp_path):
    result = invoke("spectra", study, "-o", tmp_path / "out.h5", "--max-memory", "10kB")
    assert_refused(
        result,
        "do not fit in memory",
        "rows of 1",
        "Allow or free more memory",
        output=tmp_path / "out.h5",
    )


@pytest.mark.parametrize(
    "options, fragment",
    [
        (["--max-memory", "plenty"], "not an amount of memory"),
        (["--max-memory", "0"], "not an amount of memory"),
        (["--rows", 0], "0 is not in the range"),
        (["--hvp", "fast"], "'fast' is not one of"),
        (["--hvp", "jvp", "--rows", 2], "takes none"),
        (["--hvp", "finite-difference", "--rows", 2], "--rows"),
        (["--method", "pyhessian", "--hvp", "jvp"], "--hvp"),
    ],
)
def test_options_of_products_that_cannot_be_meant_are_refused(study, tmp_path, options, fragment):
    result = invoke("spectra", study, "-o", tmp_path / "out.h5", *options)
    assert result.exit_code == 2 and fragment in result.stderr
    assert not list(tmp_path.glob("out.h5*"))


def test_memory_that_runs_out_in_one_batch_costs_no_batch(measured, tmp_path, monkeypatch):
    from landscape.curvature.hvp.products import RetainedGraph

    multiply, counts = RetainedGraph._multiply, {"made": 0}

    def run(self, rows, out):
        counts["made"] += 1
        if counts["made"] == 20:
            raise MemoryError("short")
        multiply(self, rows, out)

    monkeypatch.setattr(RetainedGraph, "_multiply", run)
    selection = ("--series", "one", "--epochs", 0)
    result = invoke("spectra", measured, "-o", tmp_path / "short.h5", *selection)
    assert result.exit_code == 0 and "3 now" in result.stdout, result.output
    values, expected = stored(tmp_path / "short.h5"), stored(tmp_path / "spectra.h5")
    assert len(values) == NUM_BATCHES
    for key in values:
        np.testing.assert_allclose(values[key], expected[key], rtol=1e-3)
    made = settings_in(tmp_path / "short.h5")["product_choice"]
    assert (
        made["product"] != "retained"
        and "retained: ran out of memory in a later product" in made["reason"]
    )


def test_help_is_instant_because_torch_is_not_imported():
    code = (
        "import sys; from landscape.cli import main\ntry:\n    main(['spectra', '--help'])\nexcept "
        "SystemExit:\n    pass\n"
    )
    code += "assert not {'torch', 'numpy', 'h5py'} & set(sys.modules), 'heavy imports'"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_wrong_manifest_is_refused_before_torch_is_imported(study, tmp_path):
    edit(study, "hessian", tol=-1.0)
    command = ["spectra", str(study), "-o", str(tmp_path / "out.h5")]
    code = f"import sys; from landscape.cli import main\ntry:\n    main({command})\n"
    code += (
        "except SystemExit as stop:\n    assert stop.code == 2\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_embeddings_that_no_caption_of_a_batch_looks_up_are_counted(tmp_path):
    manifest = Manifest.load(make_study(tmp_path, epochs=(0,), names=("one",)))
    pipeline.run(manifest, tmp_path / "spectra.h5", progress=False)
    pairs, settings = (
        open_pairs(manifest.data),
        {"num_samples": NUM_BATCHES * BATCH_SIZE, "batch_size": BATCH_SIZE, "seed": 0},
    )
    batches = curvature_batches(
        pairs, **settings, transform=preprocess_for(MODEL), tokenizer=tokenizer_for(MODEL)
    )
    words, width = build_model(MODEL).token_embedding.weight.shape
    unused = [width * (words - len(batches[row]["text"].unique())) for row in range(NUM_BATCHES)]
    with SpectrumStore.open(tmp_path / "spectra.h5") as store:
        assert store.records("one", 0).num_unused.tolist() == unused
    said = invoke("info", tmp_path / "spectra.h5").stdout
    assert (
        f" parameters, {min(unused)} " in said
        and f"{max(unused)} of them unused by a batch)" in said
    )


def test_info_describes_a_store_a_manifest_and_a_checkpoint(measured, tmp_path):
    output = tmp_path / "spectra.h5"
    assert "12 of 12 records" in invoke("info", output).stdout
    assert "2 series" in invoke("info", measured).stdout
    assert "epoch 1" in invoke("info", tmp_path / "one_1.pt").stdout
    assert invoke("info", tmp_path / "nothing").exit_code == 2
    assert invoke("info", tmp_path).exit_code == 2


def test_figure_draws_a_store_and_refuses_what_it_cannot(measured, tmp_path):
    output = tmp_path / "spectra.h5"
    for suffix in ("png", "pdf", "svg"):
        assert invoke("figure", output, "-o", tmp_path / f"figure.{suffix}").exit_code == 0
        assert (tmp_path / f"figure.{suffix}").stat().st_size > 1000
    assert invoke("figure", output, "-o", tmp_path / "figure.docx").exit_code == 2
    assert invoke("figure", tmp_path / "none.h5", "-o", tmp_path / "f.png").exit_code == 2
    assert invoke("figure", output, "-o", tmp_path / "f.png", "--epochs", "0,9").exit_code == 2
    assert invoke("figure", output, "-o", tmp_path / "f.png", "--epochs", "zero").exit_code == 2
    assert not (tmp_path / "f.png").exists()


@pytest.mark.parametrize("num_kills", [3, pytest.param(12, marks=pytest.mark.slow)])
def test_sigkill_at_random_moments_loses_nothing_and_changes_nothing(num_kills, tmp_path):
    study = make_study(tmp_path)
    command = helper_command("spectra_study", study, tmp_path, num_kills)
    finished = subprocess.run(command, capture_output=True, text=True, env=environment_of_scripts())
    assert finished.returncode == 0, finished.stderr
    outcome = json.loads(finished.stdout)
    assert (
        len(outcome["counts"]) == num_kills
        and not outcome["damaged"]
        and not any(outcome["statuses"])
    )
    # The kills came at different stages, with something stored and with nothing.
    assert len(set(outcome["counts"])) > 1
    reference = stored(tmp_path / "undisturbed.h5")
    assert len(reference) == 2 * 2 * NUM_BATCHES
    for final in outcome["final"]:
        assert final.keys() == reference.keys()
        for key, values in reference.items():
            np.testing.assert_allclose(final[key], values, rtol=1e-5)
    assert not list(tmp_path.glob("*.parts"))
