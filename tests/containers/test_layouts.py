"""What each trainer writes, imitated by hand: the right weights, the right copy, the right epoch.
The packages' own files: experiments/containers.
"""

import argparse
import datetime
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from landscape.clip.checkpoint import describe_checkpoint, load_checkpoint
from landscape.containers.outline import outline
from landscape.errors import CheckpointError
from landscape.report.describe import describe


def weights(value):
    return {"weight": torch.full((1, 4), value), "bias": torch.full((1,), value)}


TRAINED, AVERAGE = weights(1.0), weights(0.5)
MODULE_AVERAGE = {f"module.{name}": tensor for name, tensor in AVERAGE.items()}
AVERAGED_MODEL = {"n_averaged": torch.tensor(3), **MODULE_AVERAGE}
LIGHTNING = {
    "epoch": 0,
    "global_step": 3,
    "pytorch-lightning_version": "2.6.6",
    "state_dict": TRAINED,
}


class CfgNode(dict):
    """As yacs': a dict with attributes."""


def loops(started, processed, is_last_batch):
    progress = {
        "current": {
            "ready": started,
            "started": started,
            "processed": processed,
            "completed": processed,
        }
    }
    return {
        "fit_loop": {
            "epoch_progress": progress,
            "epoch_loop.batch_progress": {"is_last_batch": is_last_batch},
        }
    }


def composer(active, epoch=1, batch=0):
    """As composer 0.32 writes them; the copy has buffers apart and counters as numbers."""
    inside, copy = (AVERAGE, TRAINED) if active else (TRAINED, AVERAGE)
    ema = {
        "ema_model": {"named_parameters_dict": copy, "named_buffers_dict": {"n": 3}},
        "ema_weights_active": active,
    }
    timestamp = {
        "epoch": epoch,
        "batch": 3,
        "batch_in_epoch": batch,
        "total_wct": datetime.timedelta(1),
    }
    return {
        "state": {
            "model": inside,
            "algorithms": [("EMA", ema)],
            "timestamp": {"Timestamp": timestamp},
        },
        "rng": [np.ones(300)],
    }


BOTH = ("online", "ema")
FILES = {
    "lightning": (LIGHTNING | {"loops": loops(1, 1, True)}, 1, ("online",)),
    "lightning without loops": (LIGHTNING | {"loops": {}}, 1, ("online",)),
    "lightning saved after fit": (
        LIGHTNING | {"epoch": 2, "loops": loops(2, 2, True)},
        2,
        ("online",),
    ),
    "lightning before fit": (
        LIGHTNING | {"global_step": 0, "loops": loops(0, 0, False)},
        0,
        ("online",),
    ),
    "lightning within an epoch": (LIGHTNING | {"loops": loops(1, 0, False)}, None, ("online",)),
    "lightning at the last step": (
        LIGHTNING | {"epoch": 1, "loops": loops(2, 1, True)},
        2,
        ("online",),
    ),
    "lightning EMA": (
        LIGHTNING | {"state_dict": AVERAGE, "current_model_state": TRAINED, "averaging_state": {}},
        1,
        BOTH,
    ),
    "lightning SWA": (
        LIGHTNING
        | {"callbacks": {"StochasticWeightAveraging{}": {"average_model_state": AVERAGE}}},
        1,
        BOTH,
    ),
    "lightning SWA, not begun": (
        LIGHTNING | {"callbacks": {"StochasticWeightAveraging": {"average_model_state": None}}},
        1,
        ("online",),
    ),
    "mmengine": (
        {
            "meta": {"epoch": 2, "iter": 6, "cfg": "lr = 1"},
            "state_dict": TRAINED,
            "message_hub": CfgNode(),
        },
        2,
        ("online",),
    ),
    "mmengine EMA": (
        {
            "meta": {"epoch": 2},
            "state_dict": AVERAGE,
            "ema_state_dict": {"steps": torch.tensor(3)}
            | {f"module.{k}": v for k, v in TRAINED.items()},
        },
        2,
        BOTH,
    ),
    "mmengine by steps": (
        {"meta": {"epoch": 0, "iter": 60}, "state_dict": TRAINED},
        None,
        ("online",),
    ),
    "composer EMA": (composer(True), 1, BOTH),
    "composer EMA, not swapped": (composer(False), 1, BOTH),
    "composer within an epoch": (composer(True, batch=2), None, BOTH),
    "timm": (
        {"epoch": 4, "arch": "vit", "version": 2, "state_dict": TRAINED, "state_dict_ema": AVERAGE},
        5,
        BOTH,
    ),
    "open_clip": ({"epoch": 7, "name": "run", "state_dict": TRAINED}, 7, ("online",)),
    "open_clip's initialisation": (
        {"epoch": 0, "name": "run", "state_dict": TRAINED},
        0,
        ("online",),
    ),
    "swin": (
        {"model": TRAINED, "epoch": 0, "config": CfgNode(TAG="x"), "max_accuracy": 81.0},
        1,
        ("online",),
    ),
    "vmamba": (
        {"model": TRAINED, "model_ema": AVERAGE, "epoch": 9, "config": CfgNode(TAG="x")},
        10,
        BOTH,
    ),
    "deit": (
        {"model": TRAINED, "model_ema": AVERAGE, "epoch": 9, "args": argparse.Namespace(lr=1)},
        10,
        BOTH,
    ),
    "torchvision": ({"model": TRAINED, "model_ema": AVERAGED_MODEL, "epoch": 0}, 1, BOTH),
    "AveragedModel": (AVERAGED_MODEL, None, ("ema",)),
    "imagenet example": (
        {"epoch": 3, "arch": "resnet18", "state_dict": TRAINED, "best_acc1": 70.0},
        3,
        ("online",),
    ),
    "pytorch-cifar": ({"net": TRAINED, "acc": 93.1, "epoch": 3}, 4, ("online",)),
    "deepspeed": ({"module": TRAINED, "ds_version": "0.14", "global_steps": 8}, None, ("online",)),
    "detectron2": ({"model": TRAINED, "iteration": 4}, None, ("online",)),
    "fastai": ({"model": TRAINED, "opt": CfgNode()}, None, ("online",)),
    "only dictionary": ({"anything": TRAINED, "epoch": 3}, None, ("online",)),
    "whole models": ({"model": nn.Linear(4, 1), "ema": nn.Linear(4, 1)}, None, BOTH),
}
(
    nn.init.constant_(FILES["whole models"][0]["model"].weight, 1.0),
    nn.init.constant_(FILES["whole models"][0]["model"].bias, 1.0),
)
(
    nn.init.constant_(FILES["whole models"][0]["ema"].weight, 0.5),
    nn.init.constant_(FILES["whole models"][0]["ema"].bias, 0.5),
)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("zipped", [True, False])
def test_every_trainers_file_gives_its_copies_and_finished_epochs(tmp_path, name, zipped):
    contents, epoch, available = FILES[name]
    torch.save(contents, tmp_path / "file.pth", _use_new_zipfile_serialization=zipped)
    for copy in available:
        model = nn.Linear(4, 1)
        info = load_checkpoint(model, tmp_path / "file.pth", weights=copy)
        assert model.bias.item() == {"online": 1.0, "ema": 0.5}[copy] and torch.all(
            model.weight == model.bias
        )
        assert (info.epoch, info.available) == (epoch, available)
    seen = outline(tmp_path / "file.pth")
    assert (seen.epoch, seen.stored_epoch, seen.available) == (
        info.epoch,
        info.stored_epoch,
        info.available,
    )
    assert (seen.layout, seen.settings, seen.shapes["weight"]) == (
        info.layout,
        info.settings,
        (1, 4),
    )
    if info.epoch != info.stored_epoch:
        assert any(f"epoch {info.stored_epoch}" in note for note in info.notes)
    for copy in set(BOTH) - set(available):
        with pytest.raises(CheckpointError, match=f'Load it with weights="{available[0]}"'):
            load_checkpoint(nn.Linear(4, 1), tmp_path / "file.pth", weights=copy)


@pytest.mark.parametrize(
    ("stored", "epoch"),
    [
        (5, 5),
        (5.0, 5),
        (0.667, None),
        (torch.tensor(5), 5),
        (torch.tensor([5.0]), 5),
        (np.int64(5), 5),
        (np.float32(5), 5),
        (True, None),
        ("5", None),
        (None, None),
        (float("nan"), None),
    ],
)
def test_whole_numbers_of_every_kind_are_epochs(tmp_path, stored, epoch):
    torch.save(
        {"epoch": stored, "name": "run", "state_dict": TRAINED, "landscape_version": "0"},
        tmp_path / "x.pt",
    )
    assert describe_checkpoint(tmp_path / "x.pt").epoch == epoch == outline(tmp_path / "x.pt").epoch


def test_an_unknown_trainers_number_is_told_but_not_taken_for_finished_epochs(tmp_path):
    torch.save({"epoch": 4, "state_dict": TRAINED}, tmp_path / "x.pt")
    info = describe_checkpoint(tmp_path / "x.pt")
    assert (info.epoch, info.stored_epoch, info.layout) == (None, 4, "training run")
    assert "not whether that counts finished epochs or starts at 0" in info.notes[0]


def test_several_sets_of_weights_are_listed_and_the_line_to_choose_works(tmp_path):
    path = tmp_path / "gan's.pt"
    torch.save({"generator": TRAINED, "discriminator": AVERAGE, "epoch": 3}, path)
    with pytest.raises(
        CheckpointError, match="'generator' with 2 tensors, 'discriminator' with 2 tensors"
    ) as caught:
        describe_checkpoint(path)
    command = (
        re.search(r"python -c .*$", str(caught.value)).group().replace("python", sys.executable, 1)
    )
    subprocess.run(command, shell=True, check=True)
    model = nn.Linear(4, 1)
    load_checkpoint(model, path.with_suffix(".weights.pt"))
    assert model.bias.item() == 1.0


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (
            {0: torch.ones(2), 1: torch.ones(2)},
            "holds a dict whose keys are numbers, but a checkpoint is a dict by name",
        ),
        ({0: torch.ones(2), "a": torch.ones(2)}, "holds a dict whose keys are not all names, but"),
        ([torch.ones(2)], "holds a list, but a checkpoint is a dict by name"),
    ],
)
def test_what_is_no_dict_by_name_is_called_what_it_is(tmp_path, stored, words):
    torch.save(stored, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=words):
        describe_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["deit", "torchvision"])
def test_scripts_that_write_the_same_entries_are_named_as_a_family(tmp_path, name):
    torch.save(FILES[name][0], tmp_path / "x.pth")
    info = describe_checkpoint(tmp_path / "x.pth")
    said = (
        "A training script of the DeiT family (DeiT, torchvision's references, MAE) counts epochs "
        "from 0: its epoch"
    )
    assert info.layout == "DeiT family" and any(note.startswith(said) for note in info.notes)


def averaging(updates, trained):
    """As Lightning's WeightAveraging writes a file."""
    state = {
        "state_dict": AVERAGE,
        "current_model_state": trained,
        "averaging_state": {"n_averaged": torch.tensor(updates)},
    }
    return LIGHTNING | state


def test_a_file_after_fit_that_holds_the_average_twice_has_no_trained_weights(tmp_path):
    torch.save(averaging(6, weights(0.5)), tmp_path / "x.ckpt")
    with pytest.raises(
        CheckpointError,
        match=r"holds the average twice \(6 updates, all 2 tensors of both copies equal\)",
    ):
        load_checkpoint(nn.Linear(4, 1), tmp_path / "x.ckpt")
    model = nn.Linear(4, 1)
    load_checkpoint(model, tmp_path / "x.ckpt", weights="ema")
    assert model.bias.item() == 0.5
    assert any(
        "both copies are the average" in note
        for note in describe_checkpoint(tmp_path / "x.ckpt").notes
    )


def test_the_first_average_equals_what_was_trained_and_is_only_noted(tmp_path):
    torch.save(averaging(1, weights(0.5)), tmp_path / "x.ckpt")
    info = load_checkpoint(nn.Linear(4, 1), tmp_path / "x.ckpt")
    assert any(
        "Both copies are equal after one update of the average" in note for note in info.notes
    )
    torch.save(averaging(6, TRAINED | {"bias": torch.full((1,), 0.5)}), tmp_path / "y.ckpt")
    assert not any(
        "copies are" in note for note in load_checkpoint(nn.Linear(4, 1), tmp_path / "y.ckpt").notes
    )


def test_settings_are_plain_values_under_the_files_own_keys(tmp_path):
    args = argparse.Namespace(
        lr=np.float64(0.1),
        out=pathlib.PurePosixPath("/a/b"),
        sizes=(1, 2),
        when=datetime.timedelta(1),
    )
    torch.save(
        {"model": TRAINED, "epoch": 0, "args": args, "config": CfgNode(MODEL=CfgNode(CLASSES=6))},
        tmp_path / "x.pt",
    )
    settings = {
        "args": {"lr": 0.1, "out": "/a/b", "sizes": [1, 2], "when": "<datetime.timedelta>"},
        "config": {"MODEL": {"CLASSES": 6}},
    }
    settings["args"]["when"] = describe_checkpoint(tmp_path / "x.pt").settings["args"]["when"]
    assert (
        describe_checkpoint(tmp_path / "x.pt").settings
        == settings
        == outline(tmp_path / "x.pt").settings
    )
    torch.save(LIGHTNING | {"hyper_parameters": {"lr": 0.1, "num_classes": 6}}, tmp_path / "l.ckpt")
    assert outline(tmp_path / "l.ckpt").settings == {
        "hyper_parameters": {"lr": 0.1, "num_classes": 6}
    }


@pytest.mark.parametrize("beside", [True, False])
def test_info_prints_the_arguments_of_a_run_once_and_then_what_is_taken_from_them(tmp_path, beside):
    args = {
        "model": "test_vit",
        "num_classes": 6,
        "smoothing": 0.1,
        "data_dir": "/data",
        "aa": "rand-m9-mstd0.5-inc1" * 3,
    }
    contents = {
        "epoch": 4,
        "arch": "test_vit",
        "version": 2,
        "state_dict": TRAINED,
        "args": argparse.Namespace(**args),
    }
    torch.save(contents, tmp_path / "x.pth.tar")
    if beside:
        (tmp_path / "args.yaml").write_text(
            "".join(f"{key}: {value}\n" for key, value in args.items())
        )
    lines = describe(tmp_path / "x.pth.tar")
    sources = f"{tmp_path / 'args.yaml'} (timm) and " if beside else ""
    start = lines.index("args in the file, less what is off or empty:")
    taken = lines.index(f"Taken from {sources}args in the file (timm):")
    settings = "".join(lines[start + 1 : taken])
    assert all(settings.count(f"{key} {value!r}") == 1 for key, value in args.items())
    assert all(line.startswith("  ") and len(line) <= 100 for line in lines[start + 1 : taken])
    assert lines[taken + 1 : taken + 5] == [
        "  model: timm:test_vit",
        "  label_smoothing: 0.1",
        "  loss: 'cross_entropy'",
        "  num_classes: 6",
    ]
    assert "test_vit" not in "".join(lines[taken + 5 :])


def test_a_whole_model_gives_its_state_dict_without_buffers_that_are_not_saved(tmp_path):
    model = nn.Sequential(
        nn.Linear(4, 2), nn.BatchNorm1d(2), nn.Sequential(nn.Linear(2, 2, bias=False))
    )
    model.register_buffer("hidden", torch.ones(1), persistent=False)
    model[1].register_buffer("absent", None)
    torch.save(model, tmp_path / "x.pt")
    assert list(outline(tmp_path / "x.pt").shapes) == list(model.state_dict())
    target = nn.Sequential(
        nn.Linear(4, 2), nn.BatchNorm1d(2), nn.Sequential(nn.Linear(2, 2, bias=False))
    )
    info = load_checkpoint(target, tmp_path / "x.pt")
    assert all(
        torch.equal(value, model.state_dict()[name]) for name, value in target.state_dict().items()
    )
    assert "a whole pickled model (torch.nn.modules.container.Sequential)" in info.notes[0]
    model[2] = Lazy()
    torch.save(model, tmp_path / "x.pt")
    with pytest.raises(
        CheckpointError, match="its module '2' is a .*Lazy, whose tensors cannot be told"
    ):
        outline(tmp_path / "x.pt")


class Lazy(nn.Module):
    """Pickles itself in a way of its own."""

    def __reduce__(self):
        return Lazy, ()
