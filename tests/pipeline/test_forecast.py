"""`landscape spectra --dry-run`: what it says of models, checkpoints, the first batch, time and
memory, and what it refuses.
"""

import re
import time
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner

from landscape import pipeline
from landscape.cli import main
from landscape.clip.checkpoint import save_checkpoint
from landscape.clip.model import build_model
from landscape.curvature import HessianOperator
from landscape.manifest import Manifest
from landscape.terminal import duration_text, seconds_text, size_text
from tests.helpers.spectra_study import MODEL, make_study

PATTERNS = ["visual.proj", "visual.ln_post.*", "logit_scale"]


def dry_run(manifest: Path, *options: object):
    arguments = ["spectra", manifest, "-o", manifest.with_suffix(".h5"), "--dry-run", *options]
    before = {path: path.read_bytes() for path in manifest.parent.rglob("*") if path.is_file()}
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert {
        path: path.read_bytes() for path in manifest.parent.rglob("*") if path.is_file()
    } == before
    return result


def edit(manifest: Path, change) -> Path:
    document = yaml.safe_load(manifest.read_text())
    change(document)
    manifest.write_text(yaml.safe_dump(document))
    return manifest


def test_a_dry_run_lists_tasks_first_then_what_each_series_takes(tmp_path, monkeypatch):
    # 12 batches of 25 products of 7.2 s are 36 minutes; reading and evaluating these small batches
    # takes no minute.
    monkeypatch.setattr("landscape.pipeline.forecast._seconds_of_product", lambda *_, **__: 7.2)
    result = dry_run(make_study(tmp_path))
    assert result.exit_code == 0, result.stdout
    lines = result.stdout.splitlines()
    assert lines[0].startswith("to measure: one epoch 0") and "0 of 12" in lines[4]
    num_params = sum(parameter.numel() for parameter in build_model(MODEL).parameters())
    text = " ".join(result.stdout.split())
    assert f"one: {MODEL}, {num_params:,} parameters, all studied" in text
    assert "as trained default: activation GELU" in text
    assert text.count("checkpoints 2 fit; epoch 1 was loaded whole") == 2
    assert "product 7.2 s, double backward, retained graph" in text
    assert "time about 18 minutes for 6 batches" in text
    assert "In all about 36 minutes on this machine" in text
    assert f"{size_text(25 * 4 * num_params)} for Krylov vectors" in text
    assert max(map(len, lines[5:])) <= 80


def test_the_check_in_the_first_product_is_not_in_the_time_of_a_product(tmp_path, monkeypatch):
    multiply, seen = HessianOperator.__matmul__, []

    def slow_at_first(operator, vector):
        if not any(operator is other for other in seen):
            seen.append(operator)
            time.sleep(4)
        return multiply(operator, vector)

    monkeypatch.setattr(HessianOperator, "__matmul__", slow_at_first)
    text = " ".join(dry_run(make_study(tmp_path, names=("one",))).stdout.split())
    number, unit = re.search(r"product ([\d.]+) (ms|s),", text).groups()
    assert seen and float(number) / (1000 if unit == "ms" else 1) < 2


def test_a_long_job_is_told_what_the_run_saves(tmp_path, monkeypatch):
    monkeypatch.setattr("landscape.pipeline.forecast._seconds_of_product", lambda *_, **__: 7.2)
    monkeypatch.setattr("landscape.pipeline.products._MIN_RECORDED_PRODUCTS", 1)
    study = make_study(tmp_path, names=("one",))
    said = "; the run compiles a graph once, for about half"
    assert said in " ".join(dry_run(study).stdout.split())
    assert said not in " ".join(dry_run(study, "--hvp", "retained").stdout.split())


def test_the_first_batch_is_that_of_the_run(tmp_path):
    study = make_study(tmp_path, names=("one",), epochs=(0,), parameters=PATTERNS)
    said = re.search(r"sha256 ([0-9a-f]{16})", dry_run(study).stdout)
    pipeline.run(Manifest.load(study), study.with_suffix(".h5"), progress=False)
    from landscape.store import SpectrumStore

    with SpectrumStore.open(study.with_suffix(".h5")) as store:
        assert said and store.records("one", 0).batch_sha256[0].startswith(said[1])


def test_the_memory_holds_what_products_keep(tmp_path):
    """The copy of the parameters is whole; gradient, product and graph are of the entries that the
    batch reaches.
    """
    study = make_study(tmp_path, names=("one",), epochs=(0,), k=1)
    [mebibytes] = map(int, re.findall(r"memory +(\d+) MiB for products", dry_run(study).stdout))
    n = sum(parameter.numel() for parameter in build_model(MODEL).parameters())
    assert 4 * n < mebibytes * 2**20 < 20 * 4 * n


def test_a_checkpoint_that_does_not_fit_is_named_and_the_other_series_is_looked_at(tmp_path):
    study = make_study(tmp_path)
    state = torch.load(tmp_path / "one_0.pt", weights_only=True)
    del state["state_dict"]["visual.proj"]
    torch.save(state, tmp_path / "one_0.pt")
    result = dry_run(study)
    assert result.exit_code == 2
    [refused] = [line for line in result.stdout.splitlines() if line.startswith("  refused")]
    assert str(tmp_path / "one_0.pt") in refused and "'visual.proj'" in refused
    text = " ".join(result.stdout.split())
    assert (
        "checkpoints 1 fits of 2" in text and "checkpoints 2 fit; epoch 1 was loaded whole" in text
    )
    assert result.stdout.count("  product") == 2
    assert "this run would be refused: 1 reason above" in result.stdout


@pytest.mark.parametrize("position", [0, 1])
def test_an_epoch_that_the_file_contradicts_is_refused(tmp_path, position):
    study = make_study(tmp_path, names=("one",))
    save_checkpoint(
        tmp_path / f"one_{position}.pt", model=build_model(MODEL, seed=3), epoch=7, name=MODEL
    )
    result = dry_run(study)
    assert result.exit_code == 2 and "was written after 7 finished epochs" in result.stdout


def test_numbers_that_are_not_finite_are_seen_in_the_last_checkpoint(tmp_path):
    study = make_study(tmp_path, names=("one",))
    state = torch.load(tmp_path / "one_1.pt", weights_only=True)
    state["state_dict"]["visual.proj"][0, 0] = float("nan")
    torch.save(state, tmp_path / "one_1.pt")
    result = dry_run(study)
    assert result.exit_code == 2 and "NaN" in result.stdout


def test_every_series_that_cannot_be_built_is_refused_at_once(tmp_path):
    def change(document):
        document["series"][0]["model"] = "no_such_model"
        document["series"][1]["model"] = "timm:resnet18"

    result = dry_run(edit(make_study(tmp_path), change))
    assert result.exit_code == 2
    refused = [line for line in result.stdout.splitlines() if line.startswith("  refused")]
    assert (
        len(refused) == 2 and "no_such_model" in refused[0] and "2 reasons above" in result.stdout
    )


def test_too_few_pairs_and_a_missing_picture_are_refused(tmp_path):
    study = make_study(tmp_path, names=("one",), epochs=(0,))
    (tmp_path / "0.png").rename(tmp_path / "gone")
    result = dry_run(study)
    assert result.exit_code == 2 and "0.png" in result.stdout
    (tmp_path / "gone").rename(tmp_path / "0.png")
    result = dry_run(edit(study, lambda document: document["data"].update(num_samples=6000)))
    assert result.exit_code == 2 and "asked for 6000 pairs" in result.stdout
    (tmp_path / "pairs.tsv").write_text("filepath\n0.png\n")
    result = dry_run(study)
    assert (
        result.exit_code == 2
        and "refused: " in result.stdout
        and "no column 'title'" in result.stdout
    )


def test_memory_that_does_not_suffice_is_refused_as_the_run_would(tmp_path):
    study = make_study(tmp_path, names=("one",), epochs=(0,))
    for option in ("--max-memory", "--max-basis-memory"):
        result = dry_run(study, option, "100k")
        assert result.exit_code == 2 and "  refused" in result.stdout
        run = CliRunner().invoke(
            main,
            ["spectra", str(study), "-o", str(tmp_path / "x.h5"), option, "100k", "--unaudited"],
        )
        assert run.exit_code == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--hvp", "finite-difference"), "central differences of gradients"),
        (("--method", "power"), "How many products method power takes is not known before"),
        (("--hvp", "rows"), "chunks"),
    ],
)
def test_other_ways_of_measuring_are_forecast_as_far_as_that_is_known(tmp_path, options, said):
    study = make_study(tmp_path, names=("one",), epochs=(0,), parameters=PATTERNS, k=1)
    result = dry_run(study, *options)
    assert result.exit_code == 0, result.stdout
    assert said in " ".join(result.stdout.split())


def test_what_is_not_in_the_time_is_said(tmp_path):
    study = make_study(tmp_path, names=("one",), epochs=(0,), k=1)
    text = " ".join(dry_run(study, "--per-module").stdout.split())
    assert "The audit of each series comes on top." in text
    assert "The time of modules comes on top" in text
    assert "comes on top" not in dry_run(study, "--unaudited").stdout


def test_what_is_measured_already_is_not_forecast(tmp_path):
    study = make_study(tmp_path, names=("one",), epochs=(0,), parameters=PATTERNS, k=1)
    pipeline.run(Manifest.load(study), study.with_suffix(".h5"), progress=False)
    result = dry_run(study)
    assert result.exit_code == 0 and "In all" not in result.stdout and "3 of 3" in result.stdout


def test_amounts_are_said_as_people_say_them():
    durations = {0.4: "1 second", 40: "40 seconds", 100: "2 minutes", 3000: "50 minutes"}
    durations |= {11_520: "3.2 hours", 216_000: "2.5 days"}
    assert {seconds: duration_text(seconds) for seconds in durations} == durations
    sizes = {1: "1 MiB", 340 * 2**20: "340 MiB", int(1.3 * 2**30): "1.3 GiB"}
    assert {size: size_text(size) for size in sizes} == sizes
    assert [seconds_text(value) for value in (0.0123, 0.53, 12.4)] == ["12 ms", "0.53 s", "12 s"]
