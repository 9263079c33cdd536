"""`landscape init`: small hand-made run folders of each kind become manifests that say what a
hand-written one would.
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import nn

from landscape.cli import main
from landscape.errors import ManifestError
from landscape.manifest import Manifest
from landscape.manifest.init import init_manifest
from tests.helpers.tiny_run import PLAIN, write_pairs
from tests.manifest.test_run_settings import measured, train

PARAMS = {
    "model": "ViT-B-32",
    "precision": "amp",
    "force_quick_gelu": False,
    "siglip": False,
    "pretrained": "",
    "seed": 7,
    "dataset_type": "auto",
    "csv_separator": "\t",
    "csv_img_key": "filepath",
    "csv_caption_key": "title",
}
TIMM_ARGS = {
    "model": "resnet18",
    "bce_loss": False,
    "jsd_loss": False,
    "num_classes": 4,
    "smoothing": 0.1,
    "data_dir": "/data/in1k",
}


def invoke(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def save(path: Path, contents: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(contents, path)
    return path


def weights(prefix: str = "") -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in nn.Linear(3, 2).state_dict().items()}


def write_table(
    path: Path, num_rows: int = 40, *, separator: str = "\t", header=("filepath", "title")
) -> Path:
    rows = [separator.join(header), *(f"{i}.png{separator}a dog" for i in range(num_rows))]
    path.write_text("\n".join(rows) + "\n")
    return path


def open_clip_run(folder: Path, epochs=(1, 2), **params: object) -> Path:
    for epoch in epochs:
        save(
            folder / "checkpoints" / f"epoch_{epoch}.pt",
            {"epoch": epoch, "name": "run", "state_dict": weights()},
        )
    values = {**PARAMS, **params}
    (folder / "params.txt").write_text(
        "".join(f"{key}: {value}\n" for key, value in sorted(values.items()))
    )
    return folder


def epochs_of(manifest: Path) -> dict[int, str]:
    """Epoch -> file name, from the written text itself."""
    [series] = yaml.safe_load(manifest.read_text())["series"]
    return {entry["epoch"]: Path(entry["path"]).name for entry in series["checkpoints"]}


def written(tmp_path: Path, run: Path, **options: object) -> tuple[Path, dict]:
    output = tmp_path / "out.yaml"
    report = init_manifest(run, output, **options)
    assert report.written
    return output, yaml.safe_load(output.read_text())


def test_the_manifest_of_an_open_clip_run_means_what_a_hand_written_one_means(tmp_path):
    write_table(tmp_path / "pairs.tsv", 40)
    run = open_clip_run(
        tmp_path / "logs" / "my run", train_data=tmp_path / "pairs.tsv", force_quick_gelu=True
    )
    output, document = written(tmp_path, run)
    by_hand = {
        "version": 1,
        "epoch_zero": "optional",
        "data": {"source": "pairs.tsv", "split": "all", "num_samples": 30, "batch_size": 15},
        "hessian": {"objective": "contrastive"},
        "series": [
            {
                "name": "my_run",
                "label": "my run",
                "model": "ViT-B-32",
                "checkpoints": "logs/my run/checkpoints",
            }
        ],
    }
    (tmp_path / "hand.yaml").write_text(yaml.safe_dump(by_hand))
    assert Manifest.load(output).sha256 == Manifest.load(tmp_path / "hand.yaml").sha256
    assert Manifest.load(output).series[0].trained.get("model_args.force_quick_gelu") is True
    # The run's settings stand in comments, not in keys that could come to disagree with the run's
    # own file.
    assert set(document["series"][0]) == {"name", "label", "model", "checkpoints"}
    assert "model_args.force_quick_gelu: True (params.txt)" in output.read_text()


def test_a_relative_path_of_the_data_is_found_from_the_folders_above_the_run(tmp_path):
    (tmp_path / "data").mkdir()
    write_table(tmp_path / "data" / "pairs.csv", 16, separator=",", header=("img", "txt"))
    params = {
        "train_data": "data/pairs.csv",
        "csv_separator": ",",
        "csv_img_key": "img",
        "csv_caption_key": "txt",
    }
    run = open_clip_run(tmp_path / "logs" / "run", **params)
    data = Manifest.load(written(tmp_path, run)[0]).data
    assert data.source == str(tmp_path / "data" / "pairs.csv")
    assert (data.separator, data.image_key, data.caption_key, data.num_samples) == (
        ",",
        "img",
        "txt",
        15,
    )


def test_data_that_is_gone_is_to_be_filled_in_and_the_manifest_is_refused_until_then(tmp_path):
    run = open_clip_run(tmp_path / "run", train_data="/nowhere/pairs.tsv")
    output = tmp_path / "out.yaml"
    result = invoke("init", run, "-o", output)
    assert result.exit_code == 0, result.stderr
    [number] = [
        i
        for i, line in enumerate(output.read_text().splitlines(), start=1)
        if "source: FILL_IN" in line
    ]
    assert result.stdout.splitlines()[-2] == f"Fill in line {number}, then:"
    with pytest.raises(ManifestError, match=f"line {number}: data.source is still to be filled in"):
        Manifest.load(output)
    write_table(tmp_path / "pairs.tsv")
    output.write_text(output.read_text().replace("FILL_IN", "pairs.tsv", 1))
    assert Manifest.load(output).data.source == str(tmp_path / "pairs.tsv")


def test_data_that_the_user_names_takes_the_place_of_the_runs_own(tmp_path, monkeypatch):
    run = open_clip_run(tmp_path / "run", train_data="/nowhere/pairs.tsv")
    write_table(tmp_path / "mine.tsv", 3100)
    monkeypatch.chdir(tmp_path)
    data = Manifest.load(written(tmp_path, run, data="mine.tsv")[0]).data
    assert (data.source, data.num_samples, data.batch_size) == (
        str(tmp_path / "mine.tsv"),
        3000,
        15,
    )
    shards = Manifest.load(written(tmp_path, run, data="openmoji", force=True)[0]).data
    assert (shards.source, shards.image_size) == ("openmoji", 64)


def test_shards_keep_their_pattern(tmp_path):
    for i in range(2):
        (tmp_path / f"s-{i:03d}.tar").write_bytes(b"")
    run = open_clip_run(
        tmp_path / "run", train_data=tmp_path / "s-{000..001}.tar", dataset_type="webdataset"
    )
    assert Manifest.load(written(tmp_path, run)[0]).data.source == str(
        tmp_path / "s-{000..001}.tar"
    )


def test_epochs_count_finished_ones_whatever_the_trainer_counts(tmp_path):
    versions = {"pytorch-lightning_version": "2.6.6", "state_dict": weights("net.")}
    logs = tmp_path / "pl" / "lightning_logs" / "version_0"
    save(logs / "checkpoints" / "epoch=0-step=3.ckpt", {**versions, "epoch": 0, "global_step": 3})
    save(logs / "checkpoints" / "epoch=1-step=6.ckpt", {**versions, "epoch": 1, "global_step": 6})
    save(logs / "checkpoints" / "last.ckpt", {**versions, "epoch": 1, "global_step": 6})
    (logs / "hparams.yaml").write_text("num_classes: 2\narch: my_net\n")
    output, document = written(tmp_path, tmp_path / "pl")
    assert epochs_of(output) == {1: "epoch=0-step=3.ckpt", 2: "epoch=1-step=6.ckpt"}
    text = output.read_text()
    assert "last.ckpt: epoch 2 as well, which is listed as epoch=1-step=6.ckpt" in text
    assert (
        document["series"][0]["model"] == "FILL_IN"
        and "net.weight [2, 3]" in text
        and "arch: my_net" in text
    )
    assert (
        document["series"][0]["name"] == "pl_version_0"
        and document["hessian"]["objective"] == "cross_entropy"
    )

    args = yaml.safe_dump(TIMM_ARGS)
    for number in (0, 9, 10):
        contents = {
            "epoch": number,
            "arch": "resnet18",
            "version": 2,
            "state_dict": weights(),
            "args": TIMM_ARGS,
        }
        save(tmp_path / "timm" / f"checkpoint-{number}.pth.tar", contents)
    save(tmp_path / "timm" / "model_best.pth.tar", contents)
    (tmp_path / "timm" / "args.yaml").write_text(args)
    output, document = written(tmp_path, tmp_path / "timm", force=True)
    assert epochs_of(output) == {
        1: "checkpoint-0.pth.tar",
        10: "checkpoint-9.pth.tar",
        11: "checkpoint-10.pth.tar",
    }
    assert document["series"][0]["model"] == "timm:resnet18"
    assert (
        document["hessian"]["objective"] == "cross_entropy" and "/data/in1k" in output.read_text()
    )

    for number in (1, 2):
        contents = {"meta": {"epoch": number, "iter": 9 * number}, "state_dict": weights()}
        save(tmp_path / "mm" / f"epoch_{number}.pth", contents)
    (tmp_path / "mm" / "last_checkpoint").write_text("epoch_2.pth")
    assert epochs_of(written(tmp_path, tmp_path / "mm", force=True)[0]) == {
        1: "epoch_1.pth",
        2: "epoch_2.pth",
    }


def test_checkpoints_of_transformers_trainer_are_listed_by_their_whole_epochs(tmp_path):
    from safetensors.torch import save_file

    for steps, epoch in ((3, 1.0), (5, 1.667), (6, 2.0)):
        folder = tmp_path / "hf" / f"checkpoint-{steps}"
        folder.mkdir(parents=True)
        save_file(weights(), folder / "model.safetensors")
        torch.save({}, folder / "optimizer.pt")
        (folder / "trainer_state.json").write_text(
            json.dumps({"epoch": epoch, "global_step": steps})
        )
        (folder / "config.json").write_text("{}")
    save_file(weights(), tmp_path / "hf" / "model.safetensors")
    output, document = written(tmp_path, tmp_path / "hf")
    entries = document["series"][0]["checkpoints"]
    steps = {1: 3, 2: 6}
    assert entries == [
        {"epoch": e, "path": f"hf/checkpoint-{s}/model.safetensors"} for e, s in steps.items()
    ]
    assert "trainer_state.json says epoch 1.667" in output.read_text()


def test_a_hub_folder_is_described_by_its_own_configuration(tmp_path):
    hub = tmp_path / "hub"
    clip = {"logit_scale": torch.ones(())} | weights("visual.")
    save(hub / "open_clip_pytorch_model.bin", clip)
    config = {"embed_dim": 8, "vision_cfg": {"image_size": 16}, "text_cfg": {"width": 8}}
    (hub / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3]}})
    )
    output, document = written(tmp_path, hub)
    assert document["series"][0]["model"] == "local-dir:hub"
    assert document["hessian"]["objective"] == "contrastive"
    write_table(tmp_path / "p.tsv")
    text = (
        output.read_text()
        .replace("source: FILL_IN", "source: p.tsv")
        .replace("epoch: FILL_IN", "epoch: 3")
    )
    output.write_text(text)
    series = Manifest.load(output).series[0]
    assert series.config == hub / "open_clip_config.json" and series.epochs == (3,)
    assert series.trained.get("preprocess.mean") == [0.1, 0.2, 0.3]


def test_files_that_do_not_say_their_epoch_are_left_to_the_user_unless_told_what_names_count(
    tmp_path,
):
    for number in (0, 2, 10):
        save(tmp_path / "plain" / f"model_{number}.pt", weights())
    result = invoke("init", tmp_path / "plain", "-o", tmp_path / "out.yaml")
    assert result.exit_code == 0
    text = (tmp_path / "out.yaml").read_text()
    assert text.count("epoch: FILL_IN") == 3 and "its name says 10" in text
    assert "--epoch-numbers finished" in " ".join(result.stdout.split())
    for counts, shift in (("finished", 0), ("from-zero", 1)):
        invoke(
            "init", tmp_path / "plain", "-o", tmp_path / f"{counts}.yaml", "--epoch-numbers", counts
        )
        names = {epoch + shift: f"model_{epoch}.pt" for epoch in (0, 2, 10)}
        assert epochs_of(tmp_path / f"{counts}.yaml") == names


def test_a_run_of_landscape_train_has_its_manifest_already(tmp_path):
    run = open_clip_run(tmp_path / "run")
    (run / "checkpoints.yaml").write_text("# Written by `landscape train` after every epoch; ...\n")
    for folder in (run, run / "checkpoints", tmp_path):
        result = invoke("init", folder, "-o", tmp_path / "out.yaml")
        assert result.exit_code == 0 and "is this run's manifest already" in result.stdout
        assert f"landscape spectra {run / 'checkpoints.yaml'}" in result.stdout
    assert not (tmp_path / "out.yaml").exists()


def test_a_file_that_cannot_be_read_is_left_out_with_the_reason(tmp_path):
    run = open_clip_run(tmp_path / "run")
    (run / "checkpoints" / "epoch_3.pt").write_bytes(b"")
    (run / "checkpoints" / "epoch_4.pt").write_bytes(
        (run / "checkpoints" / "epoch_1.pt").read_bytes()[:300]
    )
    output, _ = written(tmp_path, run)
    assert list(epochs_of(output)) == [1, 2]
    assert "epoch_3.pt: is empty" in output.read_text() and "- epoch_4.pt: " in output.read_text()


@pytest.mark.timeout(60)
def test_pipes_are_no_checkpoints_and_broken_links_are_named(tmp_path):
    run = open_clip_run(tmp_path / "run")
    os.mkfifo(run / "checkpoints" / "epoch_3.pt")
    (run / "checkpoints" / "epoch_4.pt").symlink_to("gone.pt")
    (run / "loop").symlink_to(".")
    output, _ = written(tmp_path, run)
    assert list(epochs_of(output)) == [1, 2]
    assert "epoch_4.pt: there is no such file" in output.read_text()


def test_two_files_of_one_epoch_are_said(tmp_path):
    run = open_clip_run(tmp_path / "run")
    save(
        run / "checkpoints" / "other_run_epoch_2.pt",
        {"epoch": 2, "name": "other", "state_dict": weights()},
    )
    (run / "checkpoints" / "link.pt").symlink_to("epoch_1.pt")
    result = invoke("init", run, "-o", tmp_path / "out.yaml")
    said = " ".join(result.stdout.split())
    assert "epoch_2.pt and other_run_epoch_2.pt are both of epoch 2" in said
    assert (
        "link.pt and" not in said
        and "link.pt: epoch 1 as well" in (tmp_path / "out.yaml").read_text()
    )


def test_doubts_of_the_run_are_shown_and_to_be_looked_at(tmp_path):
    run = open_clip_run(tmp_path / "run", distill_model="ViT-L-14", distill=True)
    result = invoke("init", run, "-o", tmp_path / "out.yaml")
    assert "distillation loss" in " ".join(result.stdout.split())
    assert "Not known, to be stated here" in (tmp_path / "out.yaml").read_text()


@pytest.mark.parametrize(
    "wrong", ["none", "file", "empty", "several", "no_folder", "exists", "data", "name", "damaged"]
)
def test_wrong_input_is_one_line_and_nothing_is_written(tmp_path, wrong):
    run = open_clip_run(tmp_path / "runs" / "a", train_data="/nowhere.tsv")
    (tmp_path / "nothing").mkdir()
    output, folder, options = tmp_path / "out.yaml", run, []
    expected = {
        "none": "there is no such folder",
        "file": "is a file",
        "empty": "holds no checkpoint",
        "several": "holds 2 runs ('a', 'b')",
        "no_folder": "there is no folder",
        "exists": "--force",
        "data": "--data: there is no file",
        "name": "--name",
        "damaged": "run_files: ignore",
    }[wrong]
    if wrong == "none":
        folder = tmp_path / "missing"
    elif wrong == "file":
        folder = run / "params.txt"
    elif wrong == "empty":
        folder = tmp_path / "nothing"
    elif wrong == "several":
        open_clip_run(tmp_path / "runs" / "b")
        folder = tmp_path / "runs"
    elif wrong == "no_folder":
        output = tmp_path / "missing" / "out.yaml"
    elif wrong == "exists":
        output.write_text("mine\n")
    elif wrong == "data":
        options = ["--data", tmp_path / "missing.tsv"]
    elif wrong == "name":
        options = ["--name", "a/b"]
    elif wrong == "damaged":
        (run / "hparams.yaml").write_text("a: [1\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result = invoke("init", folder, "-o", output, *options)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and expected in result.stderr, (
        result.stderr
    )
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_output_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    run = open_clip_run(tmp_path / "run")

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("landscape.manifest.init.write.write_atomically", full)
    result = invoke("init", run, "-o", tmp_path / "out.yaml")
    assert (
        result.exit_code == 2
        and result.stderr.count("\n") == 1
        and "No space left" in result.stderr
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_odd_names_survive(tmp_path, monkeypatch):
    run = open_clip_run(
        tmp_path / "läufe: # 1" / "~ 'x' {0..1}, éß 試",
        train_data=write_table(tmp_path / "a #b: c.tsv"),
    )
    save(run / "checkpoints" / "bad\nname.pt", {"epoch": 9, "name": "x", "state_dict": weights()})
    output, document = written(tmp_path, run)
    assert "bad name.pt: its name holds characters that a manifest cannot" in output.read_text()
    series = Manifest.load(output).series[0]
    assert [c.path for c in series.checkpoints] == [
        run / "checkpoints" / f"epoch_{i}.pt" for i in (1, 2)
    ]
    assert (
        Manifest.load(output).data.source == str(tmp_path / "a #b: c.tsv")
        and series.label == run.name
    )
    monkeypatch.chdir(run.parent)
    init_manifest(Path(run.name), Path("here.yaml"))
    assert document["series"][0]["checkpoints"][0]["path"].startswith("läufe")
    assert Manifest.load("here.yaml").series[0].checkpoints[0].path == series.checkpoints[0].path


def test_init_needs_no_torch(tmp_path):
    run = open_clip_run(tmp_path / "run", epochs=range(25))
    code = (
        "import sys; from landscape.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert not {'torch', 'pandas', 'open_clip'} & set(sys.modules)"
    )
    arguments = ["init", str(run), "-o", str(tmp_path / "out.yaml")]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=dict(os.environ),
    )
    assert result.returncode == 0, result.stderr
    assert "0 to 24, 25 checkpoints" in result.stdout


def test_the_command_for_epoch_zero_works_as_it_is_written(tmp_path, monkeypatch):
    checkpoints = train(tmp_path, write_pairs(tmp_path), "--seed", "3", model="vit_tiny_64")
    monkeypatch.chdir(tmp_path)
    assert invoke("init", checkpoints.parent).exit_code == 0
    text = Path("checkpoints.yaml").read_text()
    [command] = [line.strip("# ") for line in text.splitlines() if "landscape train" in line]
    assert "--seed 3" in command
    result = invoke(*shlex.split(command)[1:])
    assert result.exit_code == 0, result.stderr
    first = "      - {epoch: 1, "
    text = text.replace(first, "      - {epoch: 0, path: init/checkpoints/epoch_0.pt}\n" + first)
    text = text.replace("epoch_zero: optional", "epoch_zero: required")
    Path("checkpoints.yaml").write_text(text)
    result = invoke("spectra", "checkpoints.yaml", "-o", "s.h5", "--dry-run")
    assert result.exit_code == 0, result.stdout
    assert "2 fit; epoch 1 was loaded whole" in result.stdout


def test_a_real_run_goes_from_init_to_spectra(tmp_path):
    checkpoints = train(
        tmp_path, write_pairs(tmp_path), "--force-quick-gelu", "--image-mean", "0.1", "0.2", "0.3"
    )
    output = tmp_path / "out.yaml"
    assert invoke("init", checkpoints.parent, "-o", output, "--name", "s").exit_code == 0
    assert yaml.safe_load(output.read_text())["series"][0]["model"] == PLAIN
    result = invoke("spectra", output, "-o", tmp_path / "s.h5", "--dry-run")
    assert result.exit_code == 0 and "to measure: s epoch 1: 1 batches (0)" in result.stdout
    assert not list(tmp_path.glob("s.h5*"))
    values, used = measured(output)
    assert values.shape == (1, 5) and np.isfinite(values).all()
    assert used["activation"] == ["QuickGELU", "params.txt"] and used["mean"] == [
        [0.1, 0.2, 0.3],
        "params.txt",
    ]
