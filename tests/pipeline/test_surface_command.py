"""`landscape surface` from a manifest to a figure: what it computes, how it resumes, what it
refuses; and its file.
"""

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from landscape.clip.checkpoint import load_checkpoint, save_checkpoint
from landscape.clip.image_text import curvature_batches, open_pairs
from landscape.clip.model import build_model, preprocess_for, tokenizer_for
from landscape.clip.objectives import contrastive_objective
from landscape.curvature import HessianOperator
from landscape.errors import StoreError
from landscape.linalg import eigsh
from landscape.manifest import Manifest
from landscape.pipeline import SurfaceRequest, run_surface
from landscape.pipeline import surface_source as source_module
from landscape.store import StoredSurface, parts_folder, read_surface, write_surface
from tests.helpers.processes import environment_of_scripts, helper_command
from tests.helpers.spectra_study import BATCH_SIZE, MODEL, NUM_BATCHES, make_study
from tests.helpers.surface_study import points
from tests.helpers.tiny_run import RESNET
from tests.pipeline.test_pipeline import assert_refused, invoke

FEW = ["--points", "5", "--device", "cpu"]


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path, dtype="float64")


def surface(study: Path, *options: object, output: str = "surface.png"):
    return invoke("surface", study, "-o", study.parent / output, *FEW, *options)


def loss_of(study: Path, state: dict, index: int, *, model: str = MODEL) -> float:
    """The loss of one batch at a state dict, by loading it into a fresh model."""
    manifest = Manifest.load(study)
    net = build_model(model, dtype=torch.float64)
    net.load_state_dict(state)
    batches = curvature_batches(
        open_pairs(manifest.data),
        num_samples=NUM_BATCHES * BATCH_SIZE,
        batch_size=BATCH_SIZE,
        seed=0,
        transform=preprocess_for(model),
        tokenizer=tokenizer_for(model),
    )
    objective, params = contrastive_objective(net)
    batch = {"image": batches[index]["image"].double(), "text": batches[index]["text"]}
    with torch.no_grad():
        return float(objective(params, batch))


def state_of(path: Path, *, model: str = MODEL) -> dict:
    net = build_model(model, dtype=torch.float64)
    load_checkpoint(net, path)
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def read(study: Path, name: str = "surface.h5") -> StoredSurface:
    stored = read_surface(study.parent / name)
    assert stored is not None
    return stored


# --- what it computes -----------------------------------------------------------------------------


def test_a_random_surface_holds_the_losses_of_models_moved_by_hand_on_the_mean_of_the_batches(
    study,
):
    result = surface(study, "--series", "two", "--epoch", "1", "--batches", "2", "--span", "0.5")
    assert result.exit_code == 0, result.output
    stored = read(study)
    assert stored.num_computed == 25 and stored.request["epoch"] == 1
    state = state_of(study.parent / "two_1.pt")
    middle = np.mean([loss_of(study, state, index) for index in (0, 1)])
    assert stored.result.losses[2, 2] == pytest.approx(middle, rel=1e-12)
    assert stored.result.axes[0].coordinates.tolist() == [-0.5, -0.25, 0, 0.25, 0.5]
    assert stored.result.axes[0].unit == "filter norms" and abs(stored.result.cosine) < 0.1
    # Predicted by derivatives, measured by differences.
    for number, axis in enumerate(stored.result.axes):
        assert axis.fit.value == pytest.approx(
            stored.result.local.hessian[number, number], rel=1e-4
        )
    assert result.stdout.count("they agree") == 2


def test_a_slice_along_an_eigenvector_is_that_of_the_operators_own_eigenvector(study):
    assert (
        surface(
            study, "--series", "one", "--directions", "eigenvectors", "--dimensions", "1"
        ).exit_code
        == 0
    )
    stored = read(study)
    axis = stored.result.axis
    model = build_model(MODEL, dtype=torch.float64)
    load_checkpoint(model, study.parent / "one_1.pt")
    manifest = Manifest.load(study)
    batches = curvature_batches(
        open_pairs(manifest.data),
        num_samples=NUM_BATCHES * BATCH_SIZE,
        batch_size=BATCH_SIZE,
        seed=0,
        transform=preprocess_for(MODEL),
        tokenizer=tokenizer_for(MODEL),
    )
    objective, params = contrastive_objective(model)
    batch = {"image": batches[0]["image"].double(), "text": batches[0]["text"]}
    pairs = eigsh(HessianOperator(objective, params, batch), 1, tol=1e-8)
    assert (
        axis.eigenvalue == pytest.approx(float(pairs.values[0]), rel=1e-5)
        and axis.converged
        and axis.bound > 0
    )
    assert axis.fit.value == pytest.approx(float(pairs.values[0]), rel=0.01)
    # The span is where half the eigenvalue times its square is one nat.
    assert 0.5 * abs(axis.eigenvalue) * axis.coordinates[-1] ** 2 == pytest.approx(1.0)
    vector = pairs.vectors[:, 0] * torch.sign(pairs.vectors[pairs.vectors[:, 0].abs().argmax(), 0])
    state, start = state_of(study.parent / "one_1.pt"), 0
    for name, parameter in model.named_parameters():
        piece = vector[start : start + parameter.numel()].view(parameter.shape)
        state[name] = state[name] + axis.coordinates[-1] * piece
        start += parameter.numel()
    assert stored.result.losses[-1] == pytest.approx(loss_of(study, state, 0), rel=1e-3)


def test_a_line_joins_two_checkpoints_of_one_series_by_default_the_first_and_the_last(study):
    result = surface(study, "--series", "one", "--directions", "line")
    assert result.exit_code == 0 and "barrier" in result.stdout
    result = read(study).result
    start, end = state_of(study.parent / "one_0.pt"), state_of(study.parent / "one_1.pt")
    for t, loss in zip(result.axis.coordinates, result.losses):
        # This model has no whole numbers in its state.
        state = {name: torch.lerp(start[name], end[name], t) for name in start}
        assert loss == pytest.approx(loss_of(study, state, 0), rel=1e-10)


def test_a_line_joins_two_series_of_one_model(study):
    result = surface(
        study,
        "--series",
        "one",
        "--epoch",
        "1",
        "--directions",
        "line",
        "--to",
        "two:0",
        "--batches",
        "3",
    )
    assert result.exit_code == 0, result.output
    result = read(study).result
    for end, path in ((0, "one_1.pt"), (-1, "two_0.pt")):
        mean = np.mean([loss_of(study, state_of(study.parent / path), index) for index in range(3)])
        assert result.losses[end] == pytest.approx(mean, rel=1e-12)


def test_both_ends_of_a_line_between_batch_norms_have_their_own_statistics(tmp_path):
    """With the statistics of the start kept along the line, its end would not be the model that was
    trained.
    """
    study = make_study(tmp_path, dtype="float64", names=("one",))
    document = yaml.safe_load(study.read_text())
    document["series"][0]["model"] = RESNET
    study.write_text(yaml.safe_dump(document))
    for epoch in (0, 1):
        model = build_model(RESNET, seed=epoch)
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.mul_(1 + 3 * epoch)
        save_checkpoint(tmp_path / f"one_{epoch}.pt", model=model, epoch=epoch, name=RESNET)
    assert surface(study, "--directions", "line").exit_code == 0
    losses = read(study).result.losses
    for end, epoch in ((0, 0), (-1, 1)):
        expected = loss_of(
            study, state_of(tmp_path / f"one_{epoch}.pt", model=RESNET), 0, model=RESNET
        )
        assert losses[end] == pytest.approx(expected, rel=1e-12)


def test_losses_that_are_not_finite_are_stored_drawn_and_counted(study, monkeypatch):
    guarded = source_module._guarded

    def overflowing(loss_at):
        loss_at = guarded(loss_at)
        return lambda *at: (
            float("inf") if at[0] == 1.0 else float("nan") if at[0] == -1.0 else loss_at(*at)
        )

    monkeypatch.setattr(source_module, "_guarded", overflowing)
    result = surface(study, "--series", "one", "--dimensions", "1", output="surface.svg")
    assert result.exit_code == 0 and "2 of the losses are not finite" in result.stdout
    stored = read(study)
    assert (
        stored.num_computed == 5
        and np.isnan(stored.result.losses[0])
        and stored.result.losses[4] == np.inf
    )
    monkeypatch.undo()
    again = surface(study, "--series", "one", "--dimensions", "1", output="surface.svg")
    assert "0 now, 5 before" in again.stdout
    assert "2 not finite" in invoke("info", study.parent / "surface.h5").stdout


# --- the file, and going on -----------------------------------------------------------------------


def test_a_second_run_computes_nothing_and_only_draws_in_another_view(study):
    assert surface(study, "--series", "one").exit_code == 0
    before = (study.parent / "surface.h5").read_bytes()
    result = surface(
        study,
        "--series",
        "one",
        "--view",
        "3d",
        "--data",
        study.parent / "surface.h5",
        output="relief.pdf",
    )
    assert result.exit_code == 0 and "0 now, 25 before" in result.stdout
    assert (study.parent / "surface.h5").read_bytes() == before and (
        study.parent / "relief.pdf"
    ).exists()
    assert not list(study.parent.glob("*.parts")) and not list(study.parent.glob(".*"))


def test_a_run_that_fails_keeps_its_points_and_the_next_one_goes_on_to_the_same_numbers(
    study, monkeypatch
):
    options = ("--series", "one", "--directions", "eigenvectors")
    assert surface(study, *options, output="whole.png").exit_code == 0
    whole = points(study.parent / "whole.h5")
    from landscape.surface import losses_along

    def breaking(*args):
        inner, calls = losses_along(*args), []

        def loss_at(*at):
            calls.append(at)
            if len(calls) > 50:
                raise RuntimeError("out of memory")
            return inner(*at)

        return loss_at

    monkeypatch.setattr("landscape.pipeline.surface_source.losses_along", breaking)
    result = surface(study, *options)
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
    assert "point (" in result.stderr and "out of memory" in result.stderr
    # The eigenvectors wait beside the file; 39 of the losses went into the two fits and the middle.
    assert 5 < len(points(study.parent / "surface.h5")) < 25
    assert [path.name for path in parts_folder(study.parent / "surface.h5").iterdir()] == [
        "directions.safetensors"
    ]
    monkeypatch.undo()
    monkeypatch.setattr(
        "landscape.pipeline.surface_source.eigsh",
        lambda *args, **options: pytest.fail("the eigenvectors were found again"),
    )
    result = surface(study, *options)
    assert result.exit_code == 0, result.output
    assert points(study.parent / "surface.h5") == whole
    assert not list(study.parent.glob("*.parts"))


def test_what_a_run_left_that_died_after_its_last_point_is_removed(study):
    options = ("--series", "one", "--dimensions", "1")
    assert surface(study, *options).exit_code == 0
    folder = parts_folder(study.parent / "surface.h5")
    folder.mkdir()
    (folder / "directions.safetensors").write_bytes(b"old")
    assert "0 now, 5 before" in surface(study, *options).stdout
    assert not folder.exists()


def test_points_whose_eigenvectors_were_lost_are_not_mixed_with_others(study, monkeypatch):
    options = ("--series", "one", "--directions", "eigenvectors")
    assert surface(study, *options).exit_code == 0
    path = study.parent / "surface.h5"
    with h5py.File(path, "a") as file:
        file["computed"][0, 0], file["losses"][0, 0] = False, np.nan
        file.attrs["directions_sha256"] = "0" * 64
    before = path.read_bytes()
    result = surface(study, *options)
    assert result.exit_code == 2 and "directions of its points are lost" in result.stderr
    assert path.read_bytes() == before


def test_points_of_another_function_of_the_same_weights_are_not_added_to(study):
    options = ("--series", "one", "--dimensions", "1")
    assert surface(study, *options).exit_code == 0
    path = study.parent / "surface.h5"
    with h5py.File(path, "a") as file:
        file["computed"][0], file["losses"][0] = False, np.nan
        used = json.loads(file.attrs["as_trained"])
        file.attrs["as_trained"] = json.dumps({**used, "activation": ["QuickGELU", "params.txt"]})
    before = path.read_bytes()
    result = surface(study, *options)
    assert result.exit_code == 2
    assert "activation QuickGELU (params.txt), but now it is GELU" in result.stderr
    assert path.read_bytes() == before


def test_a_surface_is_read_back_as_it_was_written(study):
    surface(study, "--series", "one", "--directions", "eigenvectors")
    stored = read(study)
    write_surface(study.parent / "copy.h5", stored)
    assert (study.parent / "copy.h5").read_bytes() == (study.parent / "surface.h5").read_bytes()
    with h5py.File(study.parent / "copy.h5") as file:
        assert (
            file.attrs["schema_version"] == 1
            and file["losses"].shape == (5, 5)
            and file.attrs["unit"] == "nat"
        )
        assert set(file["axes"]) == {"0", "1"} and file["axes/0"].attrs["converged"] == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--epoch", "0"],
        ["--points", "7"],
        ["--span", "2"],
        ["--batches", "2"],
        ["--seed", "1"],
        ["--directions", "eigenvectors"],
    ],
)
def test_a_file_of_another_picture_is_refused_and_left_alone(study, options):
    assert surface(study, "--series", "one").exit_code == 0
    before = (study.parent / "surface.h5").read_bytes()
    result = surface(study, "--series", "one", *options)
    assert (
        result.exit_code == 2
        and options[0].removeprefix("--") in result.stderr
        and "--data" in result.stderr
    )
    assert (study.parent / "surface.h5").read_bytes() == before


def test_weights_that_changed_since_are_refused(study):
    assert surface(study, "--series", "one").exit_code == 0
    save_checkpoint(
        study.parent / "one_1.pt", model=build_model(MODEL, seed=55), epoch=1, name=MODEL
    )
    result = surface(study, "--series", "one")
    assert result.exit_code == 2 and "checkpoint_sha256" in result.stderr


def test_another_writer_is_refused(study):
    from landscape.store.lock import FolderLock

    data = study.parent / "surface.h5"
    lock = FolderLock(parts_folder(data), output=data)
    result = surface(study, "--series", "one")
    lock.release(remove_folder=True)
    assert result.exit_code == 2 and "is writing it" in result.stderr


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"no"),
        lambda path: path.write_bytes(path.read_bytes()[:3000]),
        "schema",
        "foreign",
    ],
)
def test_a_file_that_is_no_surface_is_refused_and_left_alone(study, damage):
    assert surface(study, "--series", "one").exit_code == 0
    path = study.parent / "surface.h5"
    if callable(damage):
        damage(path)
    else:
        with h5py.File(path, "a") as file:
            file.attrs["schema_version" if damage == "schema" else "kind"] = 7
    before = path.read_bytes()
    with pytest.raises(StoreError):
        read_surface(path)
    result = surface(study, "--series", "one")
    assert result.exit_code == 2 and "surface.h5" in result.stderr and path.read_bytes() == before


# --- what it refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        ([], ["one, two", "--series"]),
        (["--series", "onne"], ["'onne'", "did you mean 'one'"]),
        (["--series", "one", "--epoch", "7"], ["no epoch 7", "0, 1"]),
        (["--series", "one", "--points", "6"], ["points 6", "odd"]),
        (["--series", "one", "--points", "3"], ["points 3", "at least 5"]),
        (["--series", "one", "--span", "-1"], ["span", "above 0"]),
        (["--series", "one", "--span", "nan"], ["span", "above 0"]),
        (["--series", "one", "--batches", "4"], ["3 batches", "4 were asked"]),
        (["--series", "one", "--to", "0"], ["--directions line"]),
        (["--series", "one", "--directions", "line", "--span", "1"], ["leave --span out"]),
        (
            ["--series", "one", "--directions", "line", "--dimensions", "2"],
            ["leave --dimensions out"],
        ),
        (["--series", "one", "--directions", "line", "--to", "last"], ["'last'", "SERIES:EPOCH"]),
        (["--series", "one", "--directions", "line", "--to", "three:0"], ["'three'", "one, two"]),
        (["--series", "one", "--directions", "line", "--to", "9"], ["no epoch 9"]),
        (["--series", "one", "--directions", "line", "--epoch", "1"], ["two checkpoints", "--to"]),
        (["--series", "one", "--view", "3d", "--dimensions", "1"], ["leave --view out"]),
        (["--series", "one", "--device", "nonsense"], ["nonsense"]),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(study, options, fragments):
    result = invoke("surface", study, "-o", study.parent / "surface.png", "--points", "5", *options)
    assert_refused(result, *fragments, output=study.parent / "surface.png")
    assert not list(study.parent.glob("surface.*"))


def test_a_line_from_the_only_checkpoint_is_refused(tmp_path):
    study = make_study(tmp_path, epochs=(0,), names=("one",))
    result = surface(study, "--directions", "line")
    assert_refused(result, "needs two checkpoints", "--to", output=tmp_path / "surface.png")


def test_a_line_between_two_models_is_refused(study):
    document = yaml.safe_load(study.read_text())
    document["series"][1]["model"] = RESNET
    study.write_text(yaml.safe_dump(document))
    result = surface(study, "--series", "one", "--directions", "line", "--to", "two:1")
    assert_refused(result, "tiny_vit", "tiny_resnet", "shapes", output=study.parent / "surface.png")


def test_weights_that_do_not_fit_the_model_are_refused_at_either_end_of_a_line(study):
    save_checkpoint(
        study.parent / "one_1.pt", model=build_model(RESNET, seed=1), epoch=1, name=RESNET
    )
    result = surface(study, "--series", "one", "--directions", "line")
    assert_refused(result, "one_1.pt", "does not fit", output=study.parent / "surface.png")


def test_wrong_names_of_files_are_refused_before_any_work(study):
    for name in ("surface.docx", "surface"):
        result = surface(study, "--series", "one", output=name)
        assert result.exit_code == 2 and ".png" in result.stderr
    result = surface(study, "--series", "one", "--data", study.parent / "points.png")
    assert result.exit_code == 2 and "--data" in result.stderr
    result = surface(study, "--series", "one", "--data", study.parent / "none" / "points.h5")
    assert result.exit_code == 2 and "no folder" in result.stderr
    assert not list(study.parent.glob("surface*"))


def test_a_dry_run_says_what_is_left_and_writes_nothing(study):
    result = surface(study, "--series", "one", "--dry-run", "--batches", "2")
    assert (
        result.exit_code == 0 and "5 x 5 points, each the mean of 2 batches of 4" in result.stdout
    )
    assert "0 of 25 points" in result.stdout and not list(study.parent.glob("surface*"))


def test_help_and_wrong_series_need_no_torch(study):
    for command, status in (
        (["surface", "--help"], 0),
        (["surface", str(study), "-o", "x.png", "--series", "three"], 2),
    ):
        code = (
            f"import sys; from landscape.cli import main\ntry:\n    main({command})\nexcept "
            "SystemExit as stop:\n"
        )
        code += f"    assert stop.code == {status}\nassert 'torch' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_command_is_a_function_too(study):
    report = run_surface(
        Manifest.load(study),
        study.parent / "a.svg",
        SurfaceRequest(series="two", points=5, dimensions=1),
    )
    assert (
        report.stored is not None
        and report.stored.num_computed == 5
        and report.figure == study.parent / "a.svg"
    )


@pytest.mark.parametrize(
    "num_kills, points",
    [(3, 5), pytest.param(8, 7, marks=pytest.mark.slow)],
    ids=["three kills", "eight kills"],
)
def test_sigkill_at_random_moments_loses_no_point_and_changes_none(num_kills, points, tmp_path):
    study = make_study(tmp_path, dtype="float64")
    options = ["--series", "one", "--directions", "eigenvectors", "--points", points]
    command = helper_command("surface_study", study, tmp_path, num_kills, *options)
    finished = subprocess.run(
        command, capture_output=True, text=True, env=environment_of_scripts(), timeout=500
    )
    assert finished.returncode == 0, finished.stderr
    outcome = json.loads(finished.stdout)
    assert not outcome["damaged"] and len(outcome["counts"]) == num_kills
    # Half of the kills or more came right after a point, the others at any moment.
    assert len(set(outcome["counts"])) > num_kills // 3
    assert any(0 < count < points**2 for count in outcome["counts"])
    assert outcome["final"] == outcome["undisturbed"] and len(outcome["final"]) == points**2
    assert not list(tmp_path.glob("*.parts"))
