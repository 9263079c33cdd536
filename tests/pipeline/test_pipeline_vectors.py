"""`landscape spectra --keep-vectors`: which vectors it keeps, how it resumes, what it refuses."""

import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.linalg import subspace_angles

from landscape import eigsh, pipeline
from landscape.cli import main
from landscape.clip.checkpoint import load_checkpoint
from landscape.clip.image_text import curvature_batches, open_pairs
from landscape.clip.model import build_model, preprocess_for, tokenizer_for
from landscape.clip.objectives import contrastive_objective
from landscape.compare import vectors_of_store
from landscape.linalg import DenseOperator
from landscape.manifest import Manifest
from landscape.pipeline.vectors import rest_of
from landscape.store import SpectrumStore, parts_folder, validate
from tests.helpers.oracles import dense_hessian
from tests.helpers.spectra_study import BATCH_SIZE, MODEL, NUM_BATCHES, make_study, stored

PATTERNS = ["visual.proj", "visual.ln_post.*", "logit_scale"]


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def spectra(study, output, *more):
    options = ["--device", "cpu", "--unaudited", "--workers", "1", "--threads", "1"]
    return invoke("spectra", study, "-o", output, *options, *more)


def all_vectors(output):
    """Every kept vector of an output, by the key of its batch."""
    with SpectrumStore.open(output) as store:
        return {
            vectors.key: vectors.read(0, vectors.n)
            for vectors in store.vectors.sources(store.vectors.keys())
        }


def same_vectors(first, second):
    return first.keys() == second.keys() and all(
        np.array_equal(first[key], second[key]) for key in first
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return make_study(
        folder,
        names=("one",),
        with_config=True,
        parameters=PATTERNS,
        dtype="float64",
        tol=1e-6,
    )


pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def reference(study):
    output = study.with_name("reference.h5")
    result = spectra(study, output, "--keep-vectors")
    assert result.exit_code == 0, result.output
    return output


@pytest.fixture(scope="module")
def dense(study):
    """Eigenvalues, the largest in magnitude first, and vectors of the dense Hessian of each epoch
    and batch, and the parameters.
    """
    manifest = Manifest.load(study)
    batches = curvature_batches(
        open_pairs(manifest.data),
        num_samples=NUM_BATCHES * BATCH_SIZE,
        batch_size=BATCH_SIZE,
        seed=0,
        transform=preprocess_for(MODEL),
        tokenizer=tokenizer_for(MODEL),
    )
    pairs = {}
    for epoch in (0, 1):
        model = build_model(MODEL, dtype=torch.float64)
        load_checkpoint(model, study.with_name(f"one_{epoch}.pt"))
        objective, params = contrastive_objective(model, parameters=PATTERNS)
        for row in range(NUM_BATCHES):
            batch = {"image": batches[row]["image"].double(), "text": batches[row]["text"]}
            values, columns = np.linalg.eigh(dense_hessian(objective, params, batch).numpy())
            order = np.argsort(-np.abs(values))
            pairs[epoch, row] = values[order], columns[:, order]
    return pairs, params


def test_the_kept_vectors_are_those_of_the_dense_hessian(reference, dense):
    pairs, params = dense
    with SpectrumStore.open(reference) as store:
        for (epoch, row), (values, columns) in pairs.items():
            with store.vectors.open("one", epoch, row) as kept:
                exact = columns[:, : kept.k]
                vectors = kept.read(0, kept.n).T
                signs = np.sign((vectors * exact).sum(axis=0))
                distance = np.linalg.norm(vectors - signs * exact, axis=0)
                # What rounding took, and the solver's error, which is far smaller at this tol.
                np.testing.assert_allclose(distance, kept.rounding, atol=1e-5)
                rest = values[kept.k :]
                assert kept.rest[0] <= rest.min() * (1 - 1e-9) and rest.max() <= kept.rest[1] + 1e-9
                assert kept.layout.names == tuple(params)
                assert kept.layout.sizes == tuple(tensor.numel() for tensor in params.values())


def test_angles_are_those_of_dense_eigenvectors_within_their_bounds(reference, dense):
    pairs, _ = dense
    with SpectrumStore.open(reference) as store:
        (series,) = vectors_of_store(store)
    between = [(a, b) for a in range(NUM_BATCHES) for b in range(a)]
    seen = set()
    for row in series.displacements:
        chosen = (
            between if row.first == row.second else [(batch, batch) for batch in range(NUM_BATCHES)]
        )
        exact = [
            np.sort(
                subspace_angles(
                    pairs[row.first, a][1][:, : row.rank], pairs[row.second, b][1][:, : row.rank]
                )
            )
            for a, b in chosen
        ]
        assert 0 < row.error < 0.02
        np.testing.assert_allclose(row.angles, np.mean(exact, axis=0), rtol=0, atol=row.error)
        seen.add((row.first, row.second, row.rank))
    assert seen == {(a, b, rank) for a, b in ((0, 0), (0, 1), (1, 1)) for rank in (1, 3)}


def test_the_eigenvalues_have_the_same_bits_with_vectors_and_without(study, reference, tmp_path):
    assert spectra(study, tmp_path / "plain.h5").exit_code == 0
    assert stored(tmp_path / "plain.h5") == stored(reference)
    assert validate(reference).conforms


def test_workers_and_restarts_keep_the_same_bits(study, reference, tmp_path):
    output = tmp_path / "x.h5"
    first = invoke(
        *("spectra", study, "-o", output, "--unaudited", "--device", "cpu", "--threads", "1"),
        *("--workers", "2", "--keep-vectors", "--batches", "2"),
    )
    assert first.exit_code == 0, first.output
    assert spectra(study, output, "--keep-vectors").exit_code == 0
    assert same_vectors(all_vectors(output), all_vectors(reference))
    again = spectra(study, output, "--keep-vectors")
    assert again.exit_code == 0 and "0 now, 6 before" in again.output


def test_batches_without_vectors_are_measured_again_and_their_records_stay(
    study, reference, tmp_path
):
    output = tmp_path / "x.h5"
    assert spectra(study, output, "--epochs", "0").exit_code == 0
    dry = spectra(study, output, "--keep-vectors", "--dry-run")
    assert "0 of 6 batches" in dry.output and "vectors" in dry.output, dry.output
    result = spectra(study, output, "--keep-vectors")
    assert result.exit_code == 0 and "6 now, 0 before" in result.output, result.output
    assert stored(output) == stored(reference)
    assert same_vectors(all_vectors(output), all_vectors(reference))
    # Without the option nothing is left, and the vectors stay.
    assert "0 now, 6 before" in spectra(study, output).output
    assert same_vectors(all_vectors(output), all_vectors(reference))


@pytest.mark.parametrize("method", ["power", "pyhessian"])
def test_the_other_methods_keep_their_vectors_too(study, tmp_path, method):
    if method == "pyhessian":
        pytest.importorskip("pyhessian")
    output = tmp_path / "x.h5"
    options = ["--keep-vectors", "--method", method, "--epochs", "1", "--batches", "1"]
    result = spectra(study, output, *options)
    assert result.exit_code == 0, result.output
    with SpectrumStore.open(output) as store, store.vectors.open("one", 1, 0) as kept:
        assert np.isnan(kept.rest).all()
        np.testing.assert_allclose(np.linalg.norm(kept.read(0, kept.n), axis=1), 1, atol=1e-3)
    assert validate(output).conforms


def test_a_disk_without_room_is_refused_before_anything_is_measured(study, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**6, 10**6, 1000)
    output = tmp_path / "x.h5"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    result = spectra(study, output, "--keep-vectors")
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("landscape:"))
    assert result.exit_code == 2 and "--keep-vectors" in line and "are free on this disk" in line
    assert not output.exists() and not parts_folder(output).exists()
    dry = spectra(study, output, "--keep-vectors", "--dry-run")
    assert dry.exit_code == 2 and "are free on this disk" in " ".join(dry.output.split())


def test_modules_keep_no_vectors_but_the_whole_does(study, tmp_path):
    output = tmp_path / "x.h5"
    options = ["--keep-vectors", "--per-module", "--epochs", "1", "--batches", "1"]
    result = spectra(study, output, *options)
    assert result.exit_code == 0, result.output
    with SpectrumStore.open(output) as store:
        assert store.vectors.checkpoints == {("one", 1): (0,)}
        modules = store.module_names("one")
        with store.vectors.open("one", 1, 0) as kept:
            assert tuple(dict.fromkeys(kept.layout.modules)) == modules


def test_the_rest_holds_every_unwanted_eigenvalue_and_no_more_than_it_must():
    generator = np.random.default_rng(0)
    values = np.concatenate([[9.0, -8.0, 7.0], generator.uniform(-2, 2, 57)])
    basis = np.linalg.qr(generator.standard_normal((60, 60)))[0]
    A = DenseOperator(torch.from_numpy(basis * values @ basis.T))
    low, high = rest_of(eigsh(A, 3, tol=1e-8))
    assert low <= values[3:].min() and values[3:].max() <= high
    assert low > -2.1 and high < 2.1
    # All of the space is wanted: nothing is left.
    assert rest_of(eigsh(DenseOperator(torch.diag(torch.tensor([1.0, 2.0]).double())), 2)) == (
        np.inf,
        -np.inf,
    )


def test_python_keeps_vectors_too(study, reference, tmp_path):
    report = pipeline.run(
        Manifest.load(study),
        tmp_path / "x.h5",
        device="cpu",
        unaudited=True,
        keep_vectors=True,
        progress=False,
    )
    assert report.complete
    assert same_vectors(all_vectors(tmp_path / "x.h5"), all_vectors(reference))
