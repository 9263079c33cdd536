"""What a run says of itself is read, compared with the manifest, stored, and keeps different
functions apart.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image

from landscape import pipeline
from landscape.cli import main
from landscape.clip.model import build_model, preprocess_for
from landscape.clip.objectives import cross_entropy_objective
from landscape.clip.trained import build_as_trained
from landscape.errors import ManifestError, ModelError, StoreError
from landscape.manifest import Manifest, TrainedAs
from landscape.manifest.run_files import inside_checkpoint, run_files
from landscape.manifest.trained import Disagreement
from landscape.store import SpectrumStore, SpectrumWriter
from tests.helpers.spectra_study import MODEL, make_study

PARAMS = {
    "model": MODEL,
    "precision": "fp32",
    "force_quick_gelu": False,
    "force_custom_text": False,
    "force_image_size": None,
    "force_context_length": None,
    "image_mean": None,
    "image_std": None,
    "image_interpolation": None,
    "image_resize_mode": None,
    "siglip": False,
    "pretrained": "",
    "distill_model": None,
    "use_bnb_linear": None,
    "lock_image": False,
    "wandb_notes": "siglip: True is not what this says",
}
TIMM = {
    "model": "test_resnet",
    "num_classes": 6,
    "bce_loss": False,
    "jsd_loss": False,
    "smoothing": 0.1,
    "mean": None,
}


def write_params(folder: Path, **values: object) -> Path:
    """params.txt as open_clip_train writes it: "name: value" a line, sorted."""
    folder.mkdir(exist_ok=True, parents=True)
    everything = {**PARAMS, **values}
    (folder / "params.txt").write_text(
        "".join(f"{name}: {everything[name]}\n" for name in sorted(everything))
    )
    return folder


def said(folder: Path, **values: object) -> TrainedAs:
    write_params(folder, **values)
    (file,) = run_files(folder / "checkpoints")
    assert file.program == "open_clip_train" and file.model == values.get("model", MODEL)
    return file.trained


@pytest.fixture
def run(tmp_path):
    """Two epochs of a tiny model in an open_clip run's folder, and the manifest that names the
    folder.
    """
    study = make_study(tmp_path)
    document = yaml.safe_load(study.read_text())
    series = document["series"][0]
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for entry in series["checkpoints"]:
        shutil.copy(tmp_path / entry["path"], folder / f"epoch_{entry['epoch']}.pt")
    document["series"] = [{"name": "s", "model": MODEL, "checkpoints": "run/checkpoints"}]
    document["epoch_zero"] = "optional"
    path = tmp_path / "run.yaml"

    def write(**keys: object) -> Path:
        document["series"][0] = {
            "name": "s",
            "model": MODEL,
            "checkpoints": "run/checkpoints",
            **keys,
        }
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        return path

    write_params(tmp_path / "run")
    write()
    return tmp_path / "run", write


def test_params_txt_is_read_beside_the_folder_of_checkpoints(tmp_path):
    trained = said(
        tmp_path, force_quick_gelu=True, force_image_size=[96], image_mean=[0.1, 0.2, 0.3]
    )
    assert trained.section("model_args") == {"force_quick_gelu": True, "force_image_size": 96}
    assert trained.section("preprocess") == {"mean": [0.1, 0.2, 0.3]}
    assert trained.get("loss") == "clip" and trained.source("loss") == "params.txt"


def test_a_plain_run_changes_nothing_so_stores_that_are_older_go_on(tmp_path):
    assert said(tmp_path).changes() == {}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"world_size": 8, "gather_with_grad": False, "local_loss": False}, "were 1/8 of the loss"),
        ({"world_size": 8, "gather_with_grad": False, "local_loss": True}, "were not those of the"),
        ({"world_size": 8, "gather_with_grad": True, "local_loss": True}, None),
        ({"world_size": 1, "gather_with_grad": False, "local_loss": False}, None),
        ({"world_size": 8, "gather_with_grad": False, "siglip": True}, None),
        ({"gather_with_grad": False}, None),
    ],
)
def test_gradients_that_were_not_those_of_the_loss_are_noted(values, expected, tmp_path):
    # The factor is that of findings/open_clip_gradients_by_processes.sh.
    trained = said(tmp_path, **values)
    assert [note for note in trained.notes if "gather_with_grad" in note] == [
        note for note in trained.notes if expected and expected in note
    ]
    assert bool(trained.notes) == bool(expected) and trained.changes().keys() <= {"loss"} | {
        "model_args.init_logit_bias"
    }


def test_siglip_is_the_loss_and_the_bias_that_open_clip_train_gives_it(tmp_path):
    trained = said(tmp_path, siglip=True)
    assert trained.section("model_args") == {"init_logit_bias": -10} and trained.changes() == {
        "loss": "siglip"
    }


@pytest.mark.parametrize(
    "values, key, word",
    [
        ({"distill_model": "ViT-L-14"}, "loss", "distillation"),
        ({"use_bnb_linear": "SwitchBackLinear"}, "model_args", "bitsandbytes"),
        (
            {"pretrained": "openai", "model": "ViT-B-32"},
            "model_args.force_quick_gelu",
            "before version 3",
        ),
    ],
)
def test_what_is_not_known_is_refused_by_name_until_the_manifest_says_it(
    tmp_path, values, key, word
):
    trained = said(tmp_path, **values)
    assert word in trained.doubts[key]
    assert key not in trained.settings
    settled = TrainedAs.stated({key: True}, "manifest").joined(trained)
    assert not settled.doubts


@pytest.mark.parametrize(
    "printed, quick", [("(gelu): QuickGELU()", True), ("(gelu): GELU(approximate='none')", False)]
)
def test_the_printed_model_in_out_log_settles_what_the_openai_tag_leaves_open(
    tmp_path, printed, quick
):
    (tmp_path / "out.log").write_text(f"2026-01-01,00:00:00 | INFO | Model:\n{printed}\n")
    trained = said(tmp_path, pretrained="openai", model="ViT-B-32")
    assert trained.get("model_args.force_quick_gelu") is quick and not trained.doubts
    assert trained.source("model_args.force_quick_gelu") == "out.log"


def test_a_tag_brings_its_own_preprocessing_which_a_flag_overrides():
    tagged = preprocess_for(
        build_model("ViT-B-16-SigLIP", config=own_vocabulary(), pretrained="webli")
    )
    assert tagged.mean == (0.5, 0.5, 0.5) and tagged.fitting["resize_mode"] == "squash"
    mean = {"mean": [0.1, 0.2, 0.3]}
    forced = preprocess_for(
        build_model("ViT-B-16-SigLIP", config=own_vocabulary(), pretrained="webli", preprocess=mean)
    )
    assert forced.mean == (0.1, 0.2, 0.3) and forced.std == (0.5, 0.5, 0.5)


def own_vocabulary() -> Path:
    """A configuration file of a tiny model, which needs no vocabulary from a hub."""
    path = Path(tempfile.mkdtemp(prefix="landscape-test-")) / "tiny.json"
    vision = {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
    text = {"context_length": 6, "vocab_size": 64, "width": 8, "heads": 1, "layers": 1}
    path.write_text(json.dumps({"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}))
    return path


def test_a_file_of_another_program_of_the_same_name_is_not_taken_for_open_clips(tmp_path):
    (tmp_path / "params.txt").write_text("temperature: 300\nmodel: ising\n")
    assert run_files(tmp_path / "checkpoints") == []


def test_a_file_that_cannot_be_read_is_refused_because_nobody_knows_what_the_run_was(tmp_path):
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": ')
    with pytest.raises(ManifestError, match="open_clip_config.json.*run_files: ignore"):
        run_files(tmp_path)


def test_timm_arguments_give_classes_pictures_and_the_smoothed_loss(tmp_path):
    (tmp_path / "args.yaml").write_text(
        yaml.safe_dump({**TIMM, "img_size": 96, "crop_pct": 0.9, "bn_eps": 1e-3})
    )
    (file,) = run_files(tmp_path)
    assert file.model == "timm:test_resnet"
    assert file.trained.get("num_classes") == 6 and file.trained.get("label_smoothing") == 0.1
    assert file.trained.section("preprocess") == {"size": 96, "crop_pct": 0.9}
    assert file.trained.section("model_args") == {"bn_eps": 1e-3}


@pytest.mark.parametrize("flag", ["bce_loss", "jsd_loss"])
def test_a_loss_of_timm_that_is_not_known_here_is_not_replaced_in_silence(tmp_path, flag):
    (tmp_path / "args.yaml").write_text(yaml.safe_dump({**TIMM, flag: True}))
    (file,) = run_files(tmp_path)
    assert f"{flag}: True" in file.trained.doubts["loss"] and file.trained.get("loss") is None


def test_hparams_of_lightning_are_read_without_building_the_objects_that_they_name(tmp_path):
    (tmp_path / "hparams.yaml").write_text(
        "lr: 0.1\nnum_classes: 7\npath: !!python/object/apply:os.system ['touch made']\n"
    )
    (file,) = run_files(tmp_path / "checkpoints")
    assert file.trained.get("num_classes") == 7
    assert not (tmp_path / "made").exists() and not Path("made").exists()


def test_arguments_of_deit_and_the_configuration_of_swin_give_the_smoothed_loss(tmp_path):
    deit = {
        "model": "deit_tiny_patch16_224",
        "nb_classes": 5,
        "smoothing": 0.1,
        "bce_loss": False,
        "distillation_type": "none",
    }
    swin = {"MODEL": {"NUM_CLASSES": 5, "LABEL_SMOOTHING": 0.1}, "DATA": {"IMG_SIZE": 64}}
    for settings in ({"args": deit}, {"config": swin}):
        (file,) = inside_checkpoint(settings, tmp_path / "checkpoint.pth")
        assert file.trained.get("num_classes") == 5 and file.trained.get("label_smoothing") == 0.1
    (file,) = inside_checkpoint(
        {"args": {**deit, "distillation_type": "hard"}}, tmp_path / "checkpoint.pth"
    )
    assert "distillation_type: hard" in file.trained.doubts["loss"]


def test_a_false_that_changes_a_model_is_not_taken_for_its_default(tmp_path):
    arguments = {**TIMM, "model_kwargs": {"qkv_bias": False}}
    (file,) = inside_checkpoint({"args": arguments}, tmp_path / "checkpoint-3.pth.tar")
    assert file.trained.section("model_args") == {"qkv_bias": False}
    assert file.trained.changes()["model_args.qkv_bias"] is False


def test_what_a_checkpoint_holds_about_its_run_counts_like_a_file_beside_it(tmp_path):
    (file,) = inside_checkpoint({"args": TIMM}, tmp_path / "checkpoint-3.pth.tar")
    assert file.trained.source("num_classes") == "args in checkpoint-3.pth.tar"


def test_transformers_default_activation_is_quick_gelu_also_where_its_file_leaves_it_out(tmp_path):
    config = {"model_type": "clip", "text_config": {}, "vision_config": {"image_size": 64}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    processor = {
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.2, 0.2, 0.2],
        "resample": 2,
        "size": {"shortest_edge": 64},
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    (file,) = run_files(tmp_path)
    assert file.trained.section("model_args") == {"force_quick_gelu": True, "force_image_size": 64}
    assert file.trained.section("preprocess") == {
        "mean": [0.5] * 3,
        "std": [0.2] * 3,
        "interpolation": "bilinear",
    }
    config["vision_config"]["hidden_act"] = "gelu"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "gelu, quick_gelu" in run_files(tmp_path)[0].trained.doubts["model_args"]


def test_two_sources_that_disagree_are_both_named():
    one = TrainedAs.stated({"model_args.force_quick_gelu": False}, "manifest")
    with pytest.raises(Disagreement, match="False in manifest, but True in params.txt"):
        one.joined(TrainedAs.stated({"model_args.force_quick_gelu": True}, "params.txt"))


@pytest.mark.parametrize(
    "params, keys, words",
    [
        (
            {"force_quick_gelu": True},
            {"model_args": {"force_quick_gelu": False}},
            ["False in manifest", "True in params.txt"],
        ),
        ({"model": "ViT-B-32"}, {}, ["'ViT-B-32'", "params.txt", "run_files: ignore"]),
        ({"siglip": True}, {"loss": "clip"}, ["'clip' in manifest", "'siglip' in params.txt"]),
        (
            {"image_mean": None},
            {"preprocess": {"mean": [0.1, 0.1, 0.1]}},
            ["manifest", "the model's own in params.txt"],
        ),
    ],
)
def test_a_manifest_that_disagrees_with_its_run_is_refused_and_both_are_named(
    run, params, keys, words
):
    folder, write = run
    write_params(folder, **params)
    manifest = write(**keys)
    with pytest.raises(ManifestError) as caught:
        Manifest.load(manifest)
    assert all(word in str(caught.value) for word in words), caught.value
    # The advice works: the run's file is left alone then.
    Manifest.load(write(**keys, run_files="ignore"))


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"loss": "triplet"}, ["loss is 'triplet'", "clip, siglip"]),
        ({"weights": "best"}, ["online, ema"]),
        ({"model_args": {"pretrained": "openai"}}, ["pretrained cannot be given here"]),
        ({"model_args": {"force_quick_gelu": {"a": 1}}}, ["is a mapping"]),
        ({"preprocess": {"mean": [0.1]}}, ["mean is [0.1]", "three numbers"]),
        ({"preprocess": {"sharpen": 1}}, ["sharpen is not known"]),
        ({"num_classes": 0}, ["1 to 10000000 classes"]),
        ({"run_files": "maybe"}, ["read or ignore"]),
        ({"config": "nothing.json"}, ["there is no file 'nothing.json'"]),
    ],
)
def test_a_key_that_cannot_be_meant_is_refused_in_one_line(run, keys, words):
    with pytest.raises(ManifestError) as caught:
        Manifest.load(run[1](**keys))
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words), (
        caught.value
    )


def test_doubts_are_refused_when_the_model_is_built(run):
    folder, write = run
    write_params(folder, distill_model="ViT-L-14")
    with pytest.raises(ModelError, match="distill_model.*say `loss: clip`"):
        build_as_trained(Manifest.load(write()).series[0])
    build_as_trained(Manifest.load(write(loss="clip")).series[0])


def test_what_was_used_and_who_says_so_is_stored_and_shown(run, tmp_path):
    folder, write = run
    write_params(folder, force_quick_gelu=True)
    manifest = write(preprocess={"interpolation": "bicubic"}, run_files="read")
    with pytest.raises(ManifestError):
        Manifest.load(manifest)
    output = tmp_path / "s.h5"
    manifest = write()
    result = CliRunner().invoke(main, ["spectra", str(manifest), "-o", str(output), "--unaudited"])
    assert result.exit_code == 0, result.output
    with SpectrumStore.open(output) as store:
        used = store.records("s", 1).settings["as_trained"]
    assert used["activation"] == ["QuickGELU", "params.txt"] and used["interpolation"] == [
        "bicubic",
        "default",
    ]
    shown = CliRunner().invoke(main, ["info", str(output)]).output
    (line,) = (line for line in shown.splitlines() if "as trained" in line)
    assert (
        line.startswith("s as trained: params.txt: activation QuickGELU")
        and "default: context_length 8" in line
    )
    assert (
        "model_args.force_quick_gelu: True (params.txt)"
        in CliRunner().invoke(main, ["info", str(manifest)]).output
    )
    page = tmp_path / "page.html"
    assert (
        CliRunner()
        .invoke(main, ["report", str(output), "-o", str(page), "--resamples", "99"])
        .exit_code
        == 0
    )
    assert "QuickGELU (params.txt)" in page.read_text()


def test_an_output_that_was_measured_as_another_function_is_not_resumed(run, tmp_path):
    folder, write = run
    output = tmp_path / "s.h5"
    manifest = Manifest.load(write(run_files="ignore"))
    pipeline.run(manifest, output, unaudited=True, progress=False)
    pipeline.run(Manifest.load(write()), output, unaudited=True, progress=False)
    write_params(folder, force_quick_gelu=True)
    changed = Manifest.load(write())
    assert (
        changed.protocol_digest() != manifest.protocol_digest()
        and changed.sha256 != manifest.sha256
    )
    with pytest.raises(StoreError, match="force_quick_gelu.*now it is True .params.txt."):
        pipeline.run(changed, output, unaudited=True, progress=False)


def test_parts_of_another_function_are_not_merged(run, tmp_path):
    folder, write = run
    output = tmp_path / "s.h5"
    manifest = Manifest.load(write())
    with SpectrumWriter(output, manifest) as writer:
        plain = writer.plan.protocol_sha256_of("s")
        assert plain == writer.plan.protocol_sha256 == manifest.protocol_digest()
    write_params(folder, force_quick_gelu=True)
    changed = Manifest.load(write())
    with SpectrumWriter(tmp_path / "t.h5", changed) as writer:
        assert (
            writer.plan.protocol_sha256_of("s")
            != plain
            != writer.plan.protocol_sha256
            == changed.protocol_digest()
        )


def test_the_smoothed_loss_is_that_of_torch_and_convex_at_its_logits():
    model = build_model("timm:test_resnet", num_classes=4, seed=0, dtype=torch.float64)
    batch = {
        "image": torch.randn(3, 3, 64, 64, dtype=torch.float64),
        "label": torch.tensor([0, 3, 1]),
    }
    objective, params = cross_entropy_objective(model, label_smoothing=0.3)
    logits = model(batch["image"])
    share = torch.full((3, 4), 0.3 / 4, dtype=torch.float64)
    share[torch.arange(3), batch["label"]] += 0.7
    expected = -(share * logits.log_softmax(1)).sum(1).mean()
    assert objective(params, batch).item() == pytest.approx(expected.item(), rel=1e-12)


def test_series_that_minimise_different_losses_are_not_compared(run, tmp_path):
    folder, write = run
    for name, keys in (
        ("a", {}),
        ("b", {"loss": "siglip", "run_files": "ignore", "model_args": {"init_logit_bias": -10}}),
    ):
        manifest = write(**keys)
        if name == "b":
            for file in sorted((folder / "checkpoints").glob("*.pt")):
                stored = torch.load(file, weights_only=True)
                stored["state_dict"]["logit_bias"] = torch.tensor(-10.0)
                torch.save(stored, file)
        pipeline.run(
            Manifest.load(manifest), tmp_path / f"{name}.h5", unaudited=True, progress=False
        )
    result = CliRunner().invoke(
        main, ["compare", str(tmp_path / "a.h5"), str(tmp_path / "b.h5"), "--resamples", "99"]
    )
    assert result.exit_code == 2 and "clip by a:s; siglip by b:s" in result.stderr, result.output


def test_timm_args_inside_a_checkpoint_are_read_from_the_command_line(tmp_path):
    """What timm's CheckpointSaver writes: the namespace of the command line, and a classifier of
    its own width.
    """
    model = build_model("timm:test_resnet", num_classes=6, seed=0)
    arguments = argparse.Namespace(**TIMM)
    stored = {
        "epoch": 0,
        "arch": "test_resnet",
        "state_dict": model.state_dict(),
        "version": 2,
        "args": arguments,
    }
    torch.save(stored, tmp_path / "checkpoint-0.pth.tar")
    used, _ = used_in(classifier_study(tmp_path, "checkpoint-0.pth.tar"))
    assert used["num_classes"] == [6, "args in checkpoint-0.pth.tar"]
    assert used["label_smoothing"] == [0.1, "args in checkpoint-0.pth.tar"]


def classifier_study(folder: Path, checkpoint: str, **series: object) -> Path:
    """Six labelled pictures, and a manifest of one checkpoint of test_resnet."""
    rng = np.random.default_rng(0)
    rows = ["filepath,label"]
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{i % 3}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    columns = {"source": "labels.csv", "separator": ",", "caption_key": "label"}
    document = {
        "version": 1,
        "epoch_zero": "optional",
        "data": {**columns, "split": "all", "num_samples": 6, "batch_size": 3},
        "hessian": {"objective": "cross_entropy", "parameters": ["fc.*"], "k": 2},
        "series": [
            {
                "name": "r",
                "model": "timm:test_resnet",
                "checkpoints": [{"epoch": 1, "path": checkpoint}],
                **series,
            }
        ],
    }
    path = folder / "m.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def used_in(manifest: Path) -> tuple[dict, float]:
    """What was used of how the model was trained, and the loss of the first batch."""
    output = manifest.with_name(f"{len(list(manifest.parent.glob('*.h5')))}.h5")
    result = CliRunner().invoke(main, ["spectra", str(manifest), "-o", str(output), "--unaudited"])
    assert result.exit_code == 0, result.output
    with SpectrumStore.open(output) as store:
        table = store.records("r", 1)
        return table.settings["as_trained"], float(table.loss[0])


def test_the_width_of_a_classifier_is_that_of_its_checkpoint_where_nobody_says_it(tmp_path):
    torch.save(
        build_model("timm:test_resnet", num_classes=3, seed=0).state_dict(), tmp_path / "w.pt"
    )
    assert used_in(classifier_study(tmp_path, "w.pt"))[0]["num_classes"] == [3, "checkpoint"]
    assert used_in(classifier_study(tmp_path, "w.pt", num_classes=3))[0]["num_classes"] == [
        3,
        "manifest",
    ]


def test_a_manifest_chooses_the_averaged_weights(tmp_path):
    online, average = (
        build_model("timm:test_resnet", num_classes=3, seed=seed).state_dict() for seed in (0, 1)
    )
    stored = {
        "epoch": 0,
        "arch": "test_resnet",
        "version": 2,
        "state_dict": online,
        "state_dict_ema": average,
    }
    torch.save(stored, tmp_path / "both.pth.tar")
    torch.save(average, tmp_path / "average.pt")
    used, loss = used_in(classifier_study(tmp_path, "both.pth.tar", weights="ema"))
    assert used["weights"] == ["ema", "manifest"]
    assert loss == used_in(classifier_study(tmp_path, "average.pt"))[1]
    assert loss != used_in(classifier_study(tmp_path, "both.pth.tar"))[1]
    shown = CliRunner().invoke(main, ["info", str(tmp_path / "both.pth.tar")]).output
    assert "online and averaged" in shown and "epoch 1 (stored as 0)" in shown


def test_a_folder_with_the_latest_checkpoint_alone_is_read_at_the_epoch_that_it_says(run):
    folder, write = run
    for name in ("epoch_0.pt", "epoch_1.pt"):
        (folder / "checkpoints" / name).replace(folder / "checkpoints" / "epoch_latest.pt")
    (series,) = Manifest.load(write()).series
    assert series.epochs == (1,) and series.checkpoints[0].path.name == "epoch_latest.pt"


def test_an_own_architecture_is_trained_measured_and_audited_by_the_path_of_its_file(run, tmp_path):
    """The run folder holds a copy of the file, so that it can be moved; a changed file does not go
    on in it.
    """
    config = own_vocabulary()
    contents = json.loads(config.read_text())
    contents["text_cfg"]["vocab_size"] = 49408
    config.write_text(json.dumps(contents))
    options = [
        "--data",
        str(tmp_path / "pairs.tsv"),
        "--split",
        "all",
        "--epochs",
        "1",
        "--batch-size",
        "4",
    ]
    arguments = ["train", "--model", str(config), "-o", str(tmp_path / "own"), *options]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    series = yaml.safe_load((tmp_path / "own" / "checkpoints.yaml").read_text())["series"][0]
    assert series["model"] == "tiny" and series["config"] == "open_clip_config.json"
    document = yaml.safe_load(run[1]().read_text())
    document["series"] = [{"name": "own", "from": "moved/checkpoints.yaml"}]
    (tmp_path / "own").rename(tmp_path / "moved")
    manifest = tmp_path / "own.yaml"
    manifest.write_text(yaml.safe_dump(document))
    result = CliRunner().invoke(
        main, ["spectra", str(manifest), "-o", str(tmp_path / "own.h5"), "--unaudited"]
    )
    assert result.exit_code == 0, result.output
    assert CliRunner().invoke(main, ["audit", str(manifest)]).exit_code == 0
    contents["vision_cfg"]["layers"] = 2
    config.write_text(json.dumps(contents))
    arguments[4] = str(tmp_path / "moved")
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and "model_config.vision_cfg.layers was 1" in result.stderr
