"""Files about a run, as their programs write them and as they are damaged: read as the program
reads them, or refused.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import yaml

from landscape.containers.outline import outline
from landscape.containers.plain import TOO_LONG, plain
from landscape.errors import ManifestError
from landscape.manifest import TrainedAs
from landscape.manifest.run_files import inside_checkpoint, run_files

# What open_clip_train 3.3 writes, in part.
PARAMS = {
    "csv_img_key": "filepath",
    "dataset_type": "csv",
    "distill_model": None,
    "force_context_length": None,
    "force_custom_text": False,
    "force_image_size": None,
    "force_quick_gelu": False,
    "image_interpolation": None,
    "image_mean": None,
    "image_std": None,
    "model": "ViT-B-32",
    "precision": "amp",
    "pretrained": "",
    "siglip": False,
    "wandb_notes": "",
    "zeroshot_frequency": 2,
}
TIMM = {
    "model": "test_resnet",
    "num_classes": 6,
    "bce_loss": False,
    "jsd_loss": False,
    "smoothing": 0.1,
    "mean": None,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
VISION = {
    **TEXT,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 16,
}
PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 64},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 64, "width": 64},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.1, 0.2, 0.3],
}


def of_params(
    folder: Path, *, without: tuple[str, ...] = (), newline: str = "\n", **values: object
) -> TrainedAs:
    folder.mkdir(exist_ok=True, parents=True)
    everything = {
        name: value for name, value in {**PARAMS, **values}.items() if name not in without
    }
    text = "".join(f"{name}: {everything[name]}\n" for name in sorted(everything))
    (folder / "params.txt").write_bytes(text.replace("\n", newline).encode())
    (file,) = run_files(folder / "checkpoints")
    return file.trained


def of_clip(
    folder: Path, *, text: object = None, vision: object = None, **keys: object
) -> TrainedAs:
    config = {"model_type": "clip", "text_config": TEXT if text is None else text}
    config |= {"vision_config": VISION if vision is None else vision, "projection_dim": 32, **keys}
    (folder / "config.json").write_text(json.dumps(config))
    (file,) = run_files(folder)
    return file.trained


def of_processor(
    folder: Path, *, name: str = "preprocessor_config.json", **keys: object
) -> TrainedAs:
    processor = {key: value for key, value in {**PROCESSOR, **keys}.items() if value is not ...}
    contents = {"image_processor": processor} if name == "processor_config.json" else processor
    (folder / name).write_text(json.dumps(contents))
    return of_clip(folder)


def inside(values: object, entry: str = "hyper_parameters") -> TrainedAs:
    (file,) = inside_checkpoint({entry: values}, Path("last.ckpt"))
    return file.trained


# transformers


def test_the_configuration_of_transformers_is_stated_in_open_clips_names(tmp_path):
    facts = of_clip(tmp_path).facts()
    assert facts == {
        "quick_gelu": True,
        "embed_dim": 32,
        "vision_cfg.layers": 2,
        "vision_cfg.width": 32,
        "vision_cfg.head_width": 8,
        "vision_cfg.patch_size": 16,
        "vision_cfg.image_size": 64,
        "vision_cfg.mlp_ratio": 4.0,
        "text_cfg.layers": 1,
        "text_cfg.width": 32,
        "text_cfg.heads": 2,
        "text_cfg.mlp_ratio": 4.0,
        "text_cfg.context_length": 77,
        "text_cfg.vocab_size": 49408,
    }


def test_what_transformers_leaves_out_is_its_default_which_is_vit_b_32(tmp_path):
    """open_clip's own configuration of the same model is the truth."""
    trained = of_clip(tmp_path, text={}, vision={}, projection_dim=None)
    config = open_clip.get_model_config("ViT-B-32")
    vision, text = (
        open_clip.CLIPVisionCfg(**config["vision_cfg"]),
        open_clip.CLIPTextCfg(**config["text_cfg"]),
    )
    for key, value in trained.facts().items():
        tower, _, name = key.rpartition(".")
        if tower:
            assert getattr(vision if tower == "vision_cfg" else text, name) == value, key
    assert trained.get("architecture.embed_dim") == config["embed_dim"]


def test_gelu_is_a_fact_and_no_flag(tmp_path):
    trained = of_clip(
        tmp_path, text={**TEXT, "hidden_act": "gelu"}, vision={**VISION, "hidden_act": "gelu"}
    )
    assert trained.get("architecture.quick_gelu") is False
    assert "model_args.force_quick_gelu" not in trained.settings


def test_the_dict_of_an_old_file_replaces_the_configuration_of_its_tower(tmp_path):
    trained = of_clip(tmp_path, text_config_dict={**TEXT, "num_attention_heads": 8})
    assert trained.get("architecture.text_cfg.heads") == 8
    # A key that it leaves out has its default, whatever text_config says, as in CLIPConfig.
    assert (
        of_clip(tmp_path, text_config_dict={"hidden_size": 32}).get("architecture.text_cfg.layers")
        == 12
    )


def test_a_ratio_that_open_clip_would_write_rounded_is_left_to_the_tensors(tmp_path):
    trained = of_clip(
        tmp_path,
        vision={
            **VISION,
            "hidden_size": 1664,
            "num_attention_heads": 16,
            "intermediate_size": 8192,
        },
    )
    assert "architecture.vision_cfg.mlp_ratio" not in trained.settings


@pytest.mark.parametrize(
    "text, words",
    [
        ({"eos_token_id": 5}, "eos_token_id 5"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps"),
        ({"hidden_act": "gelu_new"}, "gelu_new"),
    ],
)
def test_towers_that_open_clip_does_not_have_are_in_doubt(tmp_path, text, words):
    assert words in of_clip(tmp_path, text={**TEXT, **text}).doubts["model_args"]


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_the_image_processor_is_read_from_the_files_of_old_and_new_transformers(tmp_path, name):
    trained = of_processor(tmp_path, name=name, resample=2)
    expected = {"mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3], "interpolation": "bilinear"}
    assert trained.section("preprocess") == expected and not trained.doubts
    assert trained.source("preprocess.mean") == name


def test_two_image_processors_that_differ_are_in_doubt(tmp_path):
    of_processor(tmp_path, name="processor_config.json")
    trained = of_processor(tmp_path, image_mean=[0.5, 0.5, 0.5])
    assert "say different preprocessing" in trained.doubts["preprocess"] and not trained.section(
        "preprocess"
    )


def test_pictures_that_are_not_normalised_have_mean_zero_and_deviation_one(tmp_path):
    trained = of_processor(tmp_path, do_normalize=False)
    assert trained.section("preprocess") == {
        "mean": [0.0] * 3,
        "std": [1.0] * 3,
        "interpolation": "bicubic",
    }


@pytest.mark.parametrize("factor", [1 / 127.5, 1.0])
def test_another_rescale_factor_is_stated_by_mean_and_deviation(tmp_path, factor):
    trained = of_processor(tmp_path, rescale_factor=factor, image_mean=..., image_std=...)
    pixel = 200
    mean, std = trained.get("preprocess.mean")[0], trained.get("preprocess.std")[0]
    assert (pixel / 255 - mean) / std == pytest.approx(
        (pixel * factor - 0.48145466) / 0.26862954, rel=1e-12
    )


@pytest.mark.parametrize("keys", [{"do_center_crop": False}, {}])
def test_a_height_and_a_width_are_squashed_pictures(tmp_path, keys):
    trained = of_processor(tmp_path, size={"height": 64, "width": 64}, **keys)
    assert trained.get("preprocess.resize_mode") == "squash" and not trained.doubts


def test_sizes_as_plain_numbers_are_those_of_old_files(tmp_path):
    assert not of_processor(tmp_path, size=64, crop_size=64).doubts


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"do_rescale": False}, "do_rescale: false"),
        ({"do_resize": False}, "do_resize: false"),
        ({"do_center_crop": False}, "do_center_crop: false"),
        ({"do_pad": True}, "do_pad: true"),
        ({"resample": 1}, "resample: 1"),
        ({"resample": 0}, "resample: 0"),
        ({"size": {"shortest_edge": 80}}, "80"),
        ({"size": {"longest_edge": 64}}, "longest_edge"),
        ({"size": {"height": 80, "width": 80}}, "80"),
        ({"size": {"shortest_edge": 32}, "crop_size": 32}, "model of 64x64"),
        ({"size": ..., "crop_size": ...}, "224"),
        ({"image_processor_type": "SiglipImageProcessor"}, "SiglipImageProcessor"),
    ],
)
def test_preprocessing_that_open_clip_does_not_have_is_in_doubt(tmp_path, keys, words):
    why = of_processor(tmp_path, **keys).doubts["preprocess"]
    assert words in why and "`preprocess: {...}`" in why


# open_clip


def test_a_file_without_the_activations_flag_is_of_a_version_that_trained_with_quick_gelu(tmp_path):
    assert (
        "QuickGELU"
        in of_params(tmp_path, without=("force_quick_gelu",)).doubts["model_args.force_quick_gelu"]
    )
    (tmp_path / "out.log").write_text(
        "name: my QuickGELU() run\n          (gelu): GELU(approximate='none')\n"
    )
    trained = of_params(tmp_path, without=("force_quick_gelu",))
    assert trained.get("model_args.force_quick_gelu") is False and not trained.doubts


def test_a_missing_key_of_a_newer_version_is_unknown_by_itself(tmp_path):
    trained = of_params(tmp_path, without=("siglip", "precision"), image_mean=[0.1, 0.2, 0.3])
    assert "loss" not in trained.settings and trained.get("preprocess.mean") == [0.1, 0.2, 0.3]


def test_lines_of_a_note_are_not_settings(tmp_path):
    note = "first try\nforce_quick_gelu: False\nimage_mean: [0.9, 0.9, 0.9]\nwarmup: 5"
    trained = of_params(tmp_path, wandb_notes=note, force_quick_gelu=True)
    assert trained.section("model_args") == {"force_quick_gelu": True} and not trained.section(
        "preprocess"
    )


def test_a_setting_that_stands_only_out_of_order_is_in_doubt(tmp_path):
    trained = of_params(
        tmp_path, without=("image_mean",), wandb_notes="x\nimage_mean: [0.9, 0.9, 0.9]"
    )
    assert "does not stand in order" in trained.doubts["preprocess.mean"]


def test_a_file_whose_lines_are_not_sorted_is_not_passed_over(tmp_path):
    lines = [f"{name}: {value}\n" for name, value in sorted(PARAMS.items(), reverse=True)]
    (tmp_path / "params.txt").write_text("".join(lines))
    with pytest.raises(ManifestError, match="not sorted by name"):
        run_files(tmp_path)


@pytest.mark.filterwarnings("error")
def test_a_path_that_begins_with_a_number_is_read_without_a_warning(tmp_path):
    of_params(tmp_path, dataset_type="1if", wandb_notes="'\\d'")


def test_line_ends_of_windows_are_line_ends(tmp_path):
    assert of_params(tmp_path, newline="\r\n", image_mean=[0.9, 0.9, 0.9]).get(
        "preprocess.mean"
    ) == [0.9, 0.9, 0.9]


def test_a_caption_loss_is_in_doubt(tmp_path):
    assert "captions" in of_params(tmp_path, model="coca_ViT-B-32").doubts["loss"]


def test_an_epoch_behind_a_link_is_read_with_the_files_of_its_run(tmp_path):
    of_params(tmp_path / "run", image_mean=[0.9, 0.9, 0.9])
    for folder in ("run/weights", "picked"):
        (tmp_path / folder).mkdir()
    torch.save({}, tmp_path / "run/weights/epoch_1.pt")
    (tmp_path / "picked/epoch_1.pt").symlink_to(tmp_path / "run/weights/epoch_1.pt")
    for path in ("run/weights/epoch_1.pt", "run/weights", "picked/epoch_1.pt"):
        (file,) = run_files(tmp_path / path)
        assert file.trained.get("preprocess.mean") == [0.9, 0.9, 0.9]


# timm, torchvision and Lightning


def test_timm_normalises_each_colour_alike_where_a_single_number_is_given():
    trained = inside({**TIMM, "mean": [0.5], "std": 0.2}, "args")
    assert trained.section("preprocess") == {"mean": [0.5] * 3, "std": [0.2] * 3}


@pytest.mark.parametrize(
    "values, key, words",
    [
        ({"kd_model_name": "resnet50"}, "loss", "kd_model_name: resnet50"),
        ({"in_chans": 1}, "model_args", "in_chans: 1"),
        ({"input_size": [1, 96, 96]}, "model_args", "in_chans: 1"),
        ({"input_img_mode": "L"}, "preprocess", "input_img_mode: L"),
    ],
)
def test_a_teacher_and_grey_pictures_are_in_doubt(values, key, words):
    assert words in inside({**TIMM, **values}, "args").doubts[key]


def test_the_crop_of_deit_is_timms():
    assert inside({**TIMM, "eval_crop_ratio": 0.95}, "args").get("preprocess.crop_pct") == 0.95


@pytest.mark.parametrize("size, resized", [(224, 256), (224, 232), (64, 93), (176, 232)])
def test_arguments_of_torchvisions_reference_give_timms_pictures(size, resized):
    values = {
        "model": "resnet50",
        "val_resize_size": resized,
        "val_crop_size": size,
        "interpolation": "bilinear",
    }
    trained = inside({**values, "label_smoothing": 0.1, "weights": None}, "args")
    assert trained.get("preprocess.size") == size and trained.get("label_smoothing") == 0.1
    # As timm's transforms_imagenet_eval resizes.
    assert math.floor(size / trained.get("preprocess.crop_pct")) == resized


def test_arguments_of_timms_hub_that_are_settings_of_their_own_are_not_passed_on(tmp_path):
    pictures = {"input_size": [3, 64, 64], "mean": [0.5, 0.5, 0.5], "crop_pct": 0.9}
    arguments = {"num_classes": 6, "in_chans": 3, "global_pool": "max"}
    contents = {
        "architecture": "test_resnet",
        "num_classes": 6,
        "model_args": arguments,
        "pretrained_cfg": pictures,
    }
    (tmp_path / "config.json").write_text(json.dumps(contents))
    trained = run_files(tmp_path)[0].trained
    assert (
        trained.section("model_args") == {"global_pool": "max"} and trained.get("num_classes") == 6
    )
    contents["model_args"]["in_chans"] = 1
    (tmp_path / "config.json").write_text(json.dumps(contents))
    assert "in_chans: 1" in run_files(tmp_path)[0].trained.doubts["model_args"]


def test_unmistakable_names_count_in_any_script_and_within_its_command_line():
    values = {"force_quick_gelu": True, "image_mean": [0.5], "siglip": True}
    for given in (values, {"lr": 1.0, "args": values}):
        trained = inside(given)
        assert (
            trained.get("model_args.force_quick_gelu") is True and trained.get("loss") == "siglip"
        )
        assert trained.get("preprocess.mean") == [0.5] * 3
    with pytest.raises(ManifestError, match="siglip is False, and True in its args"):
        inside({"siglip": False, "args": values})


def test_a_namespace_in_hparams_yaml_is_looked_into(tmp_path):
    (tmp_path / "hparams.yaml").write_text(
        yaml.dump({"args": argparse.Namespace(force_quick_gelu=True, size=(1, 2))})
    )
    assert run_files(tmp_path)[0].trained.get("model_args.force_quick_gelu") is True


# What cannot be meant


@pytest.mark.parametrize(
    "values",
    [
        {"image_std": [0.0, 0.1, 0.2]},
        {"image_mean": "'0.5'"},
        {"image_mean": [0.5, 0.5]},
        {"image_mean": '"[0.9, 0.9'},
        {"image_mean": [1e999, 0, 0]},
        {"image_resize_mode": "stretch"},
        {"force_image_size": "abc"},
        {"force_quick_gelu": "maybe"},
        {"siglip": "maybe"},
    ],
)
def test_a_value_of_params_txt_that_cannot_be_meant_is_refused(tmp_path, values):
    with pytest.raises(ManifestError, match="params.txt: cannot be read .* is .*run_files: ignore"):
        of_params(tmp_path, **values)


@pytest.mark.parametrize(
    "values",
    [
        {"mean": "0.5"},
        {"std": [0.1, 0.0, 0.1]},
        {"crop_pct": "1.0"},
        {"crop_mode": "five"},
        {"interpolation": "random"},
        {"model_kwargs": ["act_layer=gelu"]},
        {"model_kwargs": {"act_layer": {"a": 1}}},
        {"input_size": "3 96 96"},
        {"smoothing": 1.5},
        {"num_classes": "six"},
        {"num_classes": True},
        {"bn_eps": 10**5000},
    ],
)
def test_a_value_of_timm_that_cannot_be_meant_is_refused(values):
    with pytest.raises(ManifestError, match="last.ckpt: cannot be read"):
        inside({**TIMM, **values}, "args")


@pytest.mark.parametrize(
    "contents",
    [
        {"model_type": "clip", "text_config": [1], "vision_config": "x"},
        {"model_type": "clip", "text_config": {"hidden_act": ["gelu"]}},
        {"model_type": "clip", "text_config": {"num_attention_heads": 0}},
        {"model_type": "clip", "vision_config": {"image_size": "large"}},
        {"architecture": "resnet18", "model_args": [1], "pretrained_cfg": {}},
        {"architecture": "resnet18", "pretrained_cfg": {"mean": "grey"}},
        {"architecture": "resnet18", "pretrained_cfg": [1]},
    ],
)
def test_a_config_json_that_cannot_be_meant_is_refused(tmp_path, contents):
    (tmp_path / "config.json").write_text(json.dumps(contents))
    with pytest.raises(ManifestError, match="config.json: cannot be read"):
        run_files(tmp_path)


def test_aliases_that_stand_for_millions_of_values_are_refused_at_once(tmp_path):
    lines = ["a0: &a0 [lol, lol]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40))]
    (tmp_path / "args.yaml").write_text(
        "\n".join([*lines, "smoothing: 0.1", "model: resnet18", "mean: *a39"])
    )
    start = time.process_time()
    with pytest.raises(ManifestError, match="aliases"):
        run_files(tmp_path)
    (tmp_path / "args.yaml").write_text("a: &a [*a]\n")
    with pytest.raises(ManifestError, match="aliases"):
        run_files(tmp_path)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    "text",
    [
        "a: \x01",
        "a: [",
        "a: &a",
        "? {}\n: 1",
        "a: 2020-99-99",
        "[" * 5000,
        "<<: 1",
        "a: !!binary 1",
    ],
)
def test_yaml_that_is_damaged_is_refused_in_a_line(tmp_path, text):
    (tmp_path / "hparams.yaml").write_text(text)
    try:
        run_files(tmp_path)
    except ManifestError as error:
        assert "\n" not in str(error)


def test_names_of_classes_do_not_hide_what_is_said_after_them(tmp_path):
    settings = {"class_names": [f"c{i}" for i in range(21_841)], "label_smoothing": 0.1}
    stored = {
        "state_dict": {"w": torch.ones(2)},
        "hyper_parameters": settings,
        "pytorch-lightning_version": "2.4.0",
    }
    torch.save({**stored, "epoch": 0, "global_step": 1, "loops": {}}, tmp_path / "a.ckpt")
    (file,) = inside_checkpoint(outline(tmp_path / "a.ckpt").settings, tmp_path / "a.ckpt")
    assert file.trained.get("label_smoothing") == 0.1
    assert file.trained.notes == (
        "hyper_parameters in a.ckpt: class_names is too long to be read.",
    )


def test_a_setting_that_is_too_long_to_be_read_is_refused_or_in_doubt():
    with pytest.raises(ManifestError, match="too long to be read"):
        inside({**TIMM, "mean": TOO_LONG}, "args")
    assert "too long" in inside({"num_classes": TOO_LONG}).doubts["num_classes"]
    assert "too long" in inside({"args": TOO_LONG}).doubts["model_args"]


def test_a_part_that_a_pickle_repeats_under_every_name_is_copied_within_a_budget():
    bomb: object = ["x"]
    for _ in range(20):
        bomb = [bomb, bomb]
    start = time.process_time()
    copied = plain({**{f"k{i}": bomb for i in range(5_000)}, "last": 1})
    assert time.process_time() - start < 5
    assert copied["k0"] == copied["last"] == TOO_LONG


ODD = [
    None,
    True,
    False,
    0,
    1,
    -1,
    3,
    0.5,
    math.nan,
    math.inf,
    10**30,
    "",
    "0.5",
    "nan",
    "squash",
    [],
    [0.5],
    [0.1, 0.2, 0.3],
]
ODD += [
    [0, 0, 0],
    [1, 2],
    [[1]],
    ["a"],
    [None] * 3,
    {},
    {"a": 1},
    {"height": 64, "width": 64},
    {"shortest_edge": 0},
    "a: b\nc",
]


def odd(rng: np.random.Generator, known: dict) -> dict:
    """Known settings, some of them with a value of another kind."""
    values = {
        key: odd(rng, value) if isinstance(value, dict) and rng.random() < 0.5 else value
        for key, value in known.items()
    }
    for key in rng.choice(list(known), size=min(len(known), 2), replace=False) if known else ():
        values[str(key)] = ODD[rng.integers(len(ODD))]
    return values


@pytest.mark.parametrize("seed", range(50))
def test_whatever_a_file_says_is_read_or_refused_in_a_line(tmp_path, seed):
    rng = np.random.default_rng(seed)
    config = {
        "model_type": "clip",
        "text_config": TEXT,
        "vision_config": VISION,
        "projection_dim": 32,
    }
    pictures = {
        "input_size": [3, 64, 64],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "crop_pct": 0.9,
    }
    hub = {
        "architecture": "test_resnet",
        "num_classes": 6,
        "model_args": {"in_chans": 3},
        "pretrained_cfg": pictures,
    }
    folder = {
        "model_cfg": {"vision_cfg": {}, "text_cfg": {}},
        "preprocess_cfg": {"mean": [0.5] * 3, "resize_mode": "squash"},
    }
    timm = {
        **TIMM,
        "std": [0.5],
        "input_size": None,
        "model_kwargs": {"a": 1},
        "crop_pct": 1.0,
        "in_chans": 3,
        "gp": "max",
    }
    torchvision = {
        "val_resize_size": 256,
        "val_crop_size": 224,
        "label_smoothing": 0.1,
        "interpolation": "bilinear",
    }
    files = {
        "config.json": json.dumps(odd(rng, config if rng.random() < 0.6 else hub)),
        "preprocessor_config.json": json.dumps(odd(rng, PROCESSOR)),
        "processor_config.json": json.dumps(odd(rng, {"image_processor": PROCESSOR})),
        "open_clip_config.json": json.dumps(odd(rng, folder)),
        "args.yaml": yaml.safe_dump(odd(rng, timm)),
        "hparams.yaml": yaml.safe_dump(odd(rng, {"args": PARAMS, **torchvision})),
        "params.txt": "".join(f"{key}: {value}\n" for key, value in odd(rng, PARAMS).items()),
    }
    for name in files:
        for file in tmp_path.iterdir():
            file.unlink()
        for beside in (name, *(["config.json"] if "processor" in name else [])):
            (tmp_path / beside).write_text(files[beside] if beside == name else json.dumps(config))
        try:
            assert all(isinstance(file.trained, TrainedAs) for file in run_files(tmp_path))
        except ManifestError as error:
            assert "\n" not in str(error) and "cannot be read" in str(error)
    swin = {"MODEL": {"NUM_CLASSES": 5, "LABEL_SMOOTHING": 0.1}, "DATA": {"IMG_SIZE": 64}}
    for entry, known in (("args", timm), ("hyper_parameters", {"args": PARAMS}), ("config", swin)):
        try:
            inside_checkpoint({entry: odd(rng, known)}, tmp_path / "a.pt")
        except ManifestError as error:
            assert "\n" not in str(error) and "cannot be read" in str(error)
