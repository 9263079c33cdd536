"""Sources that could silence each other do not: what names an architecture, its pictures or a run
is compared.
"""

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner

from landscape import pipeline
from landscape.cli import main
from landscape.clip.checkpoint import save_checkpoint
from landscape.clip.model import build_model, tokenizer_for
from landscape.clip.trained import as_trained, build_as_trained
from landscape.errors import CheckpointError, ManifestError, ModelError, StoreError
from landscape.manifest import HessianSettings, Manifest, TrainedAs
from landscape.store import SpectrumWriter
from tests.helpers.spectra_study import MODEL, make_study
from tests.manifest.test_run_files import PARAMS, TIMM, classifier_study, run, write_params  # noqa: F401

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "patch_size": 4, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}


def write_config(path: Path, *, preprocess: dict | None = None, **changes: object) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(
        json.dumps({"model_cfg": {**TINY, **changes}, "preprocess_cfg": preprocess or {}})
    )
    return path


@pytest.fixture
def own(run):  # noqa: F811
    """A run of an own architecture; its manifest names the file that describes it."""
    folder, write = run
    config = write_config(folder.parent / "tiny.json")
    for file in (folder / "checkpoints").glob("*.pt"):
        save_checkpoint(
            file,
            model=build_model("tiny", config=config, seed=0),
            epoch=int(file.stem[-1]),
            name="x",
        )
    write_params(folder, model="tiny")
    return folder, lambda **keys: write(**{"model": "tiny", "config": "tiny.json", **keys})


def test_a_fact_about_the_architecture_is_compared_with_the_model_that_is_built(own):
    (series,) = Manifest.load(own[1]()).series
    build_as_trained(series)
    for key, value in (("text_cfg.heads", 2), ("vision_cfg.mlp_ratio", 2.0), ("quick_gelu", True)):
        facts = TrainedAs.stated({f"architecture.{key}": value}, "config.json")
        with pytest.raises(ModelError, match=f"{key} is .* but {value} by config.json"):
            build_as_trained(dataclasses.replace(series, trained=series.trained.joined(facts)))
    heads = TrainedAs.stated(
        {"architecture.text_cfg.heads": 1, "architecture.vision_cfg.mlp_ratio": 4.0}, "config.json"
    )
    agreeing = series.trained.joined(heads)
    build_as_trained(dataclasses.replace(series, trained=agreeing))
    assert agreeing.changes() == series.trained.changes()


def test_a_false_in_the_manifest_contradicts_an_architecture_that_says_true(own):
    folder, write = own
    write_config(folder.parent / "tiny.json", quick_gelu=True)
    (series,) = Manifest.load(write()).series
    assert build_as_trained(series).landscape_config["quick_gelu"]
    (series,) = Manifest.load(write(model_args={"force_quick_gelu": False})).series
    with pytest.raises(ModelError, match="quick_gelu is True .* but False by manifest"):
        build_as_trained(series)


def test_both_arguments_of_open_clip_for_the_activation_are_one(own):
    with pytest.raises(
        ManifestError, match="force_quick_gelu is True in manifest, but False in params.txt"
    ):
        Manifest.load(own[1](model_args={"quick_gelu": True}))


def test_the_folder_that_a_run_names_as_its_model_must_be_the_manifests(own):
    folder, write = own
    hub = write_config(
        folder.parent / "hub" / "open_clip_config.json",
        preprocess={"mean": [0.1, 0.2, 0.3]},
        quick_gelu=True,
    )
    write_params(folder, model="local-dir:hub")
    with pytest.raises(ManifestError, match="describes another architecture or other pictures"):
        Manifest.load(write())
    (series,) = Manifest.load(write(model="local-dir:hub", config=str(hub))).series
    model = build_as_trained(series)
    used = as_trained(model, series.trained, HessianSettings(objective="contrastive"))
    assert (
        used["mean"] == [[0.1, 0.2, 0.3], "open_clip_config.json"]
        and used["activation"][0] == "QuickGELU"
    )
    shutil.rmtree(hub.parent)
    assert any(
        "was not compared" in note for note in Manifest.load(write()).series[0].trained.notes
    )


def test_a_registered_name_of_the_run_must_describe_the_manifests_file(own):
    folder, write = own
    write_params(folder, model="vit_tiny_64")
    (series,) = Manifest.load(write()).series
    with pytest.raises(ModelError, match="model 'vit_tiny_64'.*run_files: ignore"):
        build_as_trained(series)
    build_as_trained(Manifest.load(write(run_files="ignore")).series[0])


def test_pictures_of_a_configuration_file_count_and_a_flag_of_the_run_goes_before_them(own):
    folder, write = own
    write_config(
        folder.parent / "tiny.json", preprocess={"mean": [0.9, 0.9, 0.9], "std": [0.5, 0.5, 0.5]}
    )
    write_params(folder, model="tiny", image_std=[0.1, 0.1, 0.1])
    trained = Manifest.load(write()).series[0].trained
    assert trained.section("preprocess") == {"mean": [0.9] * 3, "std": [0.1] * 3}
    assert (
        trained.source("preprocess.mean") == "tiny.json"
        and trained.source("preprocess.std") == "params.txt"
    )
    assert "preprocess.mean" in trained.changes()


def test_an_output_does_not_go_on_when_the_file_of_its_architecture_has_changed(own, tmp_path):
    folder, write = own
    manifest = write(epochs=[0])
    pipeline.run(Manifest.load(manifest), tmp_path / "s.h5", unaudited=True, progress=False)
    write_config(folder.parent / "tiny.json", preprocess={"mean": [0.9, 0.9, 0.9]})
    with pytest.raises(StoreError, match="preprocess.mean"):
        pipeline.run(Manifest.load(write()), tmp_path / "s.h5", unaudited=True, progress=False)


def test_records_of_another_function_are_not_added_to_though_all_that_was_stated_is_equal(
    own, tmp_path, monkeypatch
):
    """As when a name means other pictures in a newer open_clip."""
    write = own[1]
    pipeline.run(
        Manifest.load(write(epochs=[0])), tmp_path / "s.h5", unaudited=True, progress=False
    )
    import landscape.clip.model as model_module

    plain = model_module._clip_preprocessing
    monkeypatch.setattr(
        model_module, "_clip_preprocessing", lambda cfg: plain({**cfg, "interpolation": "bilinear"})
    )
    with pytest.raises(
        StoreError, match="measured with interpolation bicubic .*, but now it is bilinear"
    ):
        pipeline.run(Manifest.load(write()), tmp_path / "s.h5", unaudited=True, progress=False)


def test_equal_functions_have_equal_digests_however_they_are_spelled():
    spelled = {
        "preprocess.mean": (0, 0.5, 1),
        "model_args.force_image_size": [64, 64],
        "pretrained": "/x/y.pt",
    }
    one = TrainedAs.stated(spelled, "a")
    other = TrainedAs.stated(
        {"preprocess.mean": [0.0, 0.5, 1.0], "model_args.force_image_size": 64}, "b"
    )
    assert one.changes() == other.changes()
    one.joined(other)


def test_the_tag_of_a_timm_run_brings_its_pictures(tmp_path):
    arguments = {**TIMM, "model": "test_resnet.r160_in1k", "num_classes": 3}
    torch.save(build_model("timm:test_resnet", num_classes=3).state_dict(), tmp_path / "w.pt")
    (tmp_path / "args.yaml").write_text(yaml.safe_dump(arguments))
    path = classifier_study(tmp_path, "w.pt")
    assert Manifest.load(path).series[0].model == "timm:test_resnet.r160_in1k"
    document = yaml.safe_load(path.read_text())
    document["series"][0]["model"] = "timm:test_resnet.other_tag"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(ManifestError, match="the run trained 'timm:test_resnet.r160_in1k'"):
        Manifest.load(path)


def test_two_runs_in_one_series_are_told_apart_by_what_their_checkpoints_hold(tmp_path):
    state = build_model("timm:test_resnet", num_classes=3).state_dict()
    for epoch, mean in ((0, [0.1] * 3), (1, [0.9] * 3)):
        arguments = argparse.Namespace(**{**TIMM, "num_classes": 3, "mean": mean})
        stored = {
            "epoch": epoch,
            "arch": "test_resnet",
            "version": 2,
            "state_dict": state,
            "args": arguments,
        }
        torch.save(stored, tmp_path / f"checkpoint-{epoch}.pth.tar")
    path = classifier_study(tmp_path, "checkpoint-0.pth.tar")
    document = yaml.safe_load(path.read_text())
    document["series"][0]["checkpoints"].append({"epoch": 2, "path": "checkpoint-1.pth.tar"})
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(
        CheckpointError, match="checkpoint-0.pth.tar: preprocess.mean is .*Make two series"
    ):
        pipeline.run(Manifest.load(path), tmp_path / "s.h5", unaudited=True, progress=False)
    document["series"][0]["run_files"] = "ignore"
    path.write_text(yaml.safe_dump(document))
    assert pipeline.run(
        Manifest.load(path), tmp_path / "s.h5", unaudited=True, progress=False
    ).complete


def test_a_series_that_ignores_the_files_of_a_run_does_so_through_its_manifest_too(own):
    folder, write = own
    inner = yaml.safe_load(write().read_text())
    (folder.parent / "inner.yaml").write_text(yaml.safe_dump(inner))
    write_params(folder, model="tiny", force_quick_gelu=True)
    outer = {**inner, "series": [{"name": "s", "from": "inner.yaml", "run_files": "ignore"}]}
    path = folder.parent / "outer.yaml"
    path.write_text(yaml.safe_dump(outer))
    assert "model_args.force_quick_gelu" not in Manifest.load(path).series[0].trained.settings
    path.write_text(yaml.safe_dump({**inner, "series": [{"name": "s", "from": "inner.yaml"}]}))
    assert Manifest.load(path).series[0].trained.get("model_args.force_quick_gelu") is True


def test_a_hub_folder_needs_no_name_of_a_model(own):
    folder, write = own
    write_config(folder / "checkpoints" / "open_clip_config.json")
    (folder / "params.txt").unlink()
    path = write()
    document = yaml.safe_load(path.read_text())
    del document["series"][0]["model"], document["series"][0]["config"]
    path.write_text(yaml.safe_dump(document))
    (series,) = Manifest.load(path).series
    assert series.model == "checkpoints" and series.config.name == "open_clip_config.json"
    build_as_trained(series)


def test_a_comparison_says_where_activations_differ(tmp_path):
    for name, arguments in (("plain", {}), ("quick", {"force_quick_gelu": True})):
        folder = tmp_path / name
        folder.mkdir()
        study = yaml.safe_load(make_study(folder, names=("one",)).read_text())
        study["series"][0] |= {"name": name, "model_args": arguments}
        (folder / "m.yaml").write_text(yaml.safe_dump(study))
        pipeline.run(
            Manifest.load(folder / "m.yaml"),
            tmp_path / f"{name}.h5",
            unaudited=True,
            progress=False,
        )
    said = (
        CliRunner()
        .invoke(main, ["compare", str(tmp_path / "plain.h5"), str(tmp_path / "quick.h5")])
        .output
    )
    assert "activation: GELU" in " ".join(said.split())
    assert "QuickGELU" in said


def test_densities_and_surfaces_say_what_was_used(tmp_path):
    study = yaml.safe_load(make_study(tmp_path, names=("one",)).read_text())
    study["hessian"]["parameters"] = ["visual.proj"]
    study["series"][0]["model_args"] = {"force_quick_gelu": True}
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump(study))
    options = ["--unaudited", "--epochs", "0", "--matvecs", "8"]
    for command, output in (("density", tmp_path / "d.png"), ("surface", tmp_path / "l.png")):
        more = (
            options
            if command == "density"
            else ["--dimensions", "1", "--points", "5", "--epoch", "0"]
        )
        result = CliRunner().invoke(main, [command, str(path), "-o", str(output), *more])
        assert result.exit_code == 0, result.output
        shown = CliRunner().invoke(main, ["info", str(output.with_suffix(".h5"))]).output
        assert "as trained: manifest: activation QuickGELU" in shown, shown
        assert (
            CliRunner().invoke(main, [command, str(path), "-o", str(output), *more]).exit_code == 0
        )


def test_what_nobody_stated_is_called_a_default(tmp_path):
    (series,) = Manifest.load(make_study(tmp_path, names=("one",))).series
    used = as_trained(
        build_as_trained(series), series.trained, HessianSettings(objective="contrastive")
    )
    assert {source for _, source in used.values()} == {"default"} and series.model == MODEL
    with SpectrumWriter(tmp_path / "s.h5", Manifest.load(tmp_path / "checkpoints.yaml")) as writer:
        assert writer.plan.named("one").trained == {}
    assert PARAMS["model"] == MODEL


def test_a_link_to_a_checkpoint_finds_the_run_of_what_it_leads_to(own):
    folder, write = own
    write_params(folder, model="tiny", force_quick_gelu=True)
    (folder.parent / "latest").mkdir()
    (folder.parent / "latest" / "epoch_1.pt").symlink_to(folder / "checkpoints" / "epoch_1.pt")
    (series,) = Manifest.load(write(checkpoints="latest")).series
    assert series.trained.get("model_args.force_quick_gelu") is True
    (folder / "checkpoints").rename(folder / "ckpt")
    (series,) = Manifest.load(write(checkpoints="run/ckpt")).series
    assert series.trained.get("model_args.force_quick_gelu") is True


def test_a_tokenizer_is_looked_for_where_its_configuration_says(tmp_path, monkeypatch):
    """open_clip.get_tokenizer looks into the folder of the configuration alone; transformers is not
    needed to see where we do.
    """
    made = []
    monkeypatch.setattr(
        "landscape.clip.model.HFTokenizer", lambda source, **options: made.append((source, options))
    )
    (tmp_path / "words").mkdir()
    text = {
        **TINY["text_cfg"],
        "hf_tokenizer_name": "../words",
        "tokenizer_kwargs": {"clean": "canonicalize"},
    }
    config = write_config(tmp_path / "cfg" / "mine.json", text_cfg=text)
    tokenizer_for(str(config))
    assert made.pop() == (
        str(tmp_path / "words"),
        {"context_length": 8, "tokenizer_mode": None, "clean": "canonicalize"},
    )
    hub = write_config(
        tmp_path / "hub" / "open_clip_config.json",
        text_cfg={**text, "hf_tokenizer_name": "bert-base-uncased"},
    )
    with pytest.raises(ModelError, match="nothing is downloaded"):
        tokenizer_for(f"local-dir:{hub.parent}")
    (hub.parent / "tokenizer_config.json").write_text("{}")
    tokenizer_for(f"local-dir:{hub.parent}")
    assert made.pop()[0] == str(hub.parent)
