"""Old checkpoints that were deleted: what was measured on them stands, what was not is refused by
name.
"""

import shutil

import pytest
import yaml
from click.testing import CliRunner

from landscape.cli import main
from landscape.manifest import sha256_of_file
from tests.helpers.spectra_study import NUM_BATCHES, make_study, stored


def invoke(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def list_epochs(manifest, epochs, *, with_sha256: bool):
    """Let the manifest of a study of one series list these epochs."""
    document = yaml.safe_load(manifest.read_text())
    entries = {entry["epoch"]: entry for entry in document["series"][0]["checkpoints"]}
    for epoch in epochs:
        path = manifest.parent / f"one_{epoch}.pt"
        entry = entries.setdefault(epoch, {"epoch": epoch, "path": path.name})
        if with_sha256 and path.exists():
            entry["sha256"] = sha256_of_file(path)
    document["series"][0]["checkpoints"] = [entries[epoch] for epoch in epochs]
    manifest.write_text(yaml.safe_dump(document, sort_keys=False))
    return manifest


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A study of three epochs, of which the first two are measured."""
    folder = tmp_path_factory.mktemp("measured")
    manifest = list_epochs(
        make_study(folder, epochs=(0, 1, 2), names=("one",)), (0, 1), with_sha256=False
    )
    assert (
        invoke(
            "spectra", manifest, "-o", folder / "s.h5", "--device", "cpu", "--unaudited"
        ).exit_code
        == 0
    )
    return folder


@pytest.fixture
def study(measured, tmp_path):
    shutil.copytree(measured, tmp_path, dirs_exist_ok=True)
    return tmp_path / "checkpoints.yaml"


@pytest.mark.parametrize("with_sha256", [True, False])
def test_a_complete_store_goes_on_and_grows_without_old_weights(study, with_sha256):
    output = study.parent / "s.h5"
    list_epochs(study, (0, 1), with_sha256=with_sha256)
    before = stored(output)
    (study.parent / "one_0.pt").unlink()
    result = invoke("spectra", study, "-o", output, "--device", "cpu", "--unaudited")
    assert (
        result.exit_code == 0 and f"{2 * NUM_BATCHES} of {2 * NUM_BATCHES} batches" in result.stdout
    )
    assert [
        line
        for line in result.stderr.splitlines()
        if "one_0.pt is gone" in line and "epoch 0: measured" in line
    ]
    list_epochs(study, (0, 1, 2), with_sha256=with_sha256)
    (study.parent / "one_1.pt").unlink()
    result = invoke("spectra", study, "-o", output, "--device", "cpu", "--unaudited")
    assert (
        result.exit_code == 0 and f"({NUM_BATCHES} now, {2 * NUM_BATCHES} before)" in result.stdout
    )
    assert "epoch 1: measured" in result.stderr
    after = stored(output)
    assert len(after) == 3 * NUM_BATCHES and all(
        after[key] == values for key, values in before.items()
    )


def test_an_epoch_with_something_left_to_measure_and_no_weights_is_refused_by_name(study):
    list_epochs(study, (0, 1, 2), with_sha256=True)
    (study.parent / "one_2.pt").unlink()
    for more in ([], ["--dry-run"]):
        result = invoke("spectra", study, "-o", study.parent / "s.h5", "--device", "cpu", *more)
        assert result.exit_code == 2, result.output
        (line,) = result.stderr.strip().splitlines()
        assert (
            "epoch 2" in line
            and "one_2.pt" in line
            and "3 of its 3 batches are not measured" in line
        )
    list_epochs(study, (0, 1), with_sha256=True)
    (study.parent / "one_1.pt").unlink()
    result = invoke(
        "spectra",
        study,
        "-o",
        study.parent / "s.h5",
        "--device",
        "cpu",
        "--per-module",
        "--module-batches",
        2,
    )
    assert result.exit_code == 2 and "2 of its 3 batches are not measured" in result.stderr


def test_another_digest_in_the_manifest_is_refused_though_the_weights_are_gone(study):
    list_epochs(study, (0, 1), with_sha256=True)
    document = yaml.safe_load(study.read_text())
    document["series"][0]["checkpoints"][0]["sha256"] = "0" * 64
    study.write_text(yaml.safe_dump(document))
    (study.parent / "one_0.pt").unlink()
    result = invoke("spectra", study, "-o", study.parent / "s.h5", "--device", "cpu")
    assert result.exit_code == 2 and "was measured on weights with sha256" in result.stderr


def test_a_store_that_is_not_there_yet_needs_all_weights(study):
    (study.parent / "one_0.pt").unlink()
    result = invoke("spectra", study, "-o", study.parent / "new.h5", "--device", "cpu")
    assert (
        result.exit_code == 2 and "epoch 0" in result.stderr and "there is no file" in result.stderr
    )
    assert not (study.parent / "new.h5").exists()


@pytest.mark.parametrize("with_sha256", [True, False])
def test_stored_densities_are_drawn_without_their_weights(study, with_sha256):
    list_epochs(study, (0, 1), with_sha256=with_sha256)
    command = [
        "density",
        study,
        "-o",
        study.parent / "d.png",
        "--matvecs",
        4,
        "--unaudited",
        "--device",
        "cpu",
    ]
    assert invoke(*command, "--epochs", 0).exit_code == 0
    (study.parent / "one_0.pt").unlink()
    (study.parent / "d.png").unlink()
    result = invoke(*command)
    assert (
        result.exit_code == 0 and "one epoch 0" in result.stdout and "one epoch 1" in result.stdout
    )
    result = invoke(*command, "--batches", 2)
    assert result.exit_code == 2 and "one_0.pt: there is no such file" in result.stderr


def test_a_stored_surface_is_drawn_without_its_weights(study):
    list_epochs(study, (0, 1), with_sha256=True)
    command = [
        "surface",
        study,
        "-o",
        study.parent / "l.png",
        "--epoch",
        0,
        "--dimensions",
        1,
        "--device",
        "cpu",
    ]
    assert invoke(*command, "--points", 5).exit_code == 0
    (study.parent / "one_0.pt").unlink()
    (study.parent / "l.png").unlink()
    result = invoke(*command, "--points", 5)
    assert result.exit_code == 0 and "(0 now, 5 before)" in result.stdout
    result = invoke(*command, "--points", 7, "--data", study.parent / "other.h5")
    assert result.exit_code == 2 and "one_0.pt: there is no such file" in result.stderr
