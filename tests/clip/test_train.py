"""The trainer: what it writes, that it repeats and resumes exactly, and what it refuses."""

import dataclasses
import fcntl
import hashlib
import io
import json
import logging
import math
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from contextlib import contextmanager

import open_clip_train.main as their_main
import pytest
import torch

from landscape.clip import train_folder
from landscape.clip.image_text import epoch_loader, open_pairs
from landscape.clip.model import build_model, preprocess_for, tokenizer_for
from landscape.clip.recipes import learning_rate, training_transform
from landscape.clip.train import _measurable
from landscape.clip.train_folder import RunFolder
from landscape.clip.train_loop import Process, loop_arguments, parameter_groups
from landscape.errors import (
    CheckpointError,
    DataError,
    LandscapeError,
    ManifestError,
    ModelError,
    NumericalError,
    StoreError,
)
from landscape.manifest import Checkpoint, DataSettings, Manifest
from tests.conftest import contrastive_loss
from tests.helpers.loggers import loggers_put_back
from tests.helpers.tiny_run import (
    MODEL,
    NUM_PAIRS,
    PLAIN,
    RECIPE,
    RESNET,
    join_two_processes,
    run,
    run_as,
    write_pairs,
)

STEPS_PER_EPOCH = NUM_PAIRS // RECIPE.batch_size
EPOCHS = RECIPE.epochs


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, table):
    """A whole run of three epochs that nothing interrupted."""
    output = tmp_path_factory.mktemp("runs") / "undisturbed"
    return run(output, table), output


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digests(output):
    return {path.name: sha256(path) for path in sorted((output / "checkpoints").iterdir())}


def weights(output, epoch):
    return torch.load(output / "checkpoints" / f"epoch_{epoch}.pt", weights_only=True)["state_dict"]


def snapshot(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


class Interrupted(Exception):
    pass


@contextmanager
def interrupted_at(epoch, monkeypatch):
    """A run is thrown out just before it would keep that epoch."""
    keep = RunFolder.add

    def add(self, number, *args):
        if number == epoch:
            raise Interrupted
        keep(self, number, *args)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(RunFolder, "add", add)
        yield


@contextmanager
def first_call_of_their_loop(monkeypatch, arguments):
    """What open_clip_train's own `main` hands to the first epoch of its loop."""
    seen = {}

    def record(model, data, loss, epoch, optimizer, *rest, **options):
        seen.setdefault("epoch", epoch)
        seen.setdefault(
            "state", {name: tensor.clone() for name, tensor in model.state_dict().items()}
        )
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        seen.setdefault(
            "groups",
            [([names[id(p)] for p in group["params"]], group) for group in optimizer.param_groups],
        )
        seen.setdefault("optimizer", optimizer.state_dict())

    monkeypatch.setattr(their_main, "train_one_epoch", record)
    with loggers_put_back():
        their_main.main(arguments)
        yield seen


def their_arguments(folder, table, *more):
    common = [
        "--train-data",
        str(table),
        "--dataset-type",
        "csv",
        "--batch-size",
        "8",
        "--workers",
        "0",
    ]
    place = [
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "--logs",
        str(folder),
        "--name",
        "theirs",
        "--save-frequency",
        "0",
    ]
    return [*common, *place, *more]


# What is written.


def test_a_run_keeps_epoch_zero_and_every_epoch_after_it_with_their_digests(undisturbed):
    report, output = undisturbed
    assert report.complete and report.trained == report.done == (0, 1, 2, 3)
    manifest = Manifest.load(output / "checkpoints.yaml")
    series = manifest.series[0]
    assert (series.name, series.model, series.epochs) == ("undisturbed", MODEL, (0, 1, 2, 3))
    for checkpoint in series.checkpoints:
        assert checkpoint.path == output / "checkpoints" / f"epoch_{checkpoint.epoch}.pt"
        assert checkpoint.sha256 == sha256(checkpoint.path)
        assert torch.load(checkpoint.path, weights_only=True)["epoch"] == checkpoint.epoch
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == [
        f"epoch_{k}.pt" for k in range(4)
    ]


def test_the_log_has_a_line_per_epoch_with_loss_and_the_last_learning_rate(undisturbed):
    report, output = undisturbed
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    assert [line["sha256"] for line in lines] == list(digests(output).values())
    assert {line["epoch"]: line["loss"] for line in lines[1:]} == report.losses
    # 1e-12 covers the order of the multiplications.
    assert lines[1]["lr"] == pytest.approx(5e-4, rel=1e-12)
    share = (STEPS_PER_EPOCH - 1) / (2 * STEPS_PER_EPOCH)
    assert lines[2]["lr"] == pytest.approx(
        1e-5 + 4.9e-4 * (1 + math.cos(math.pi * share)) / 2, rel=1e-12
    )


def test_an_epoch_is_what_a_training_loop_written_by_hand_makes_of_it(tmp_path, table):
    report = run(tmp_path / "run", table, model=PLAIN, epochs=2, seed=4)
    model = build_model(PLAIN, seed=4).train()
    loader = hand_made_loader(model, table, seed=4)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.5), betas=(0.9, 0.98), eps=1e-4)
    losses, step = {}, 0
    for epoch in range(2):
        losses[epoch + 1] = 0.0
        loader.sampler.set_epoch(epoch)
        for image, text in loader:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(RECIPE, step, steps_per_epoch=STEPS_PER_EPOCH, epochs=2)
            optimizer.zero_grad()
            loss = contrastive_loss(model, {"image": image, "text": text})
            loss.backward()
            losses[epoch + 1] += loss.item() / STEPS_PER_EPOCH
            optimizer.step()
            model.logit_scale.data.clamp_(0, math.log(100))
            step += 1
    assert step == 2 * STEPS_PER_EPOCH
    assert report.losses == pytest.approx(losses, rel=1e-5)
    start = weights(tmp_path / "run", 0)
    for name, expected in model.state_dict().items():
        found = weights(tmp_path / "run", 2)[name]
        # The same loss in another order of float32 operations, relative to how far the weights went
        # in six steps.
        assert (found - expected).norm() <= 1e-3 * (expected - start[name]).norm() + 1e-7, name


def test_weight_decay_spares_the_parameters_named_here():
    model = build_model(PLAIN, seed=0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    spared, decayed = (
        [names[id(p)] for p in group["params"]] for group in parameter_groups(model, 0.5)
    )
    block = "resblocks.0"
    weights_of_a_block = [
        "attn.in_proj_weight",
        "attn.out_proj.weight",
        "mlp.c_fc.weight",
        "mlp.c_proj.weight",
    ]
    assert set(decayed) == {
        "positional_embedding",
        "text_projection",
        "token_embedding.weight",
        "visual.positional_embedding",
        "visual.proj",
        "visual.conv1.weight",
        *(f"transformer.{block}.{name}" for name in weights_of_a_block),
        *(f"visual.transformer.{block}.{name}" for name in weights_of_a_block),
    }
    assert {
        "logit_scale",
        "visual.class_embedding",
        "visual.ln_pre.weight",
        "ln_final.bias",
    } <= set(spared)
    assert len(spared) + len(decayed) == len(names)
    assert [group["weight_decay"] for group in parameter_groups(model, 0.5)] == [0.0, 0.5]


def test_weight_decay_goes_by_name_as_well_as_by_shape():
    shapes = {
        "bias_table": (3, 2),
        "ln_scale": (2, 2),
        "bn_matrix": (2, 2),
        "gain": (4,),
        "scale": (),
        "A_log": (4, 2),
    }
    model = torch.nn.ParameterDict(
        {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}
    )
    model["frozen"] = torch.nn.Parameter(torch.ones(2, 2), requires_grad=False)
    spared, decayed = (group["params"] for group in parameter_groups(model, 0.5))
    assert [id(p) for p in decayed] == [id(model["A_log"])]
    assert {id(p) for p in spared} == {id(model[name]) for name in shapes} - {id(model["A_log"])}


def start_process(table, *, precision="fp32", rank=0):
    args = loop_arguments(model=PLAIN, recipe=RECIPE, seed=0, device="cpu")
    args.precision, args.rank = precision, rank
    model = build_model(PLAIN, seed=0)
    return Process.start(args, RECIPE, model, hand_made_loader(model, table, seed=0))


def hand_made_loader(model, table, *, seed):
    pictures = preprocess_for(model)
    pairs = open_pairs(DataSettings(source=str(table), split="all", num_samples=5, batch_size=5))
    transform = training_transform(RECIPE, 16, pictures.mean, pictures.std)
    return epoch_loader(
        pairs, transform=transform, tokenizer=tokenizer_for(PLAIN), batch_size=8, seed=seed
    )


def test_every_epoch_and_every_process_has_random_numbers_of_its_own(table):
    def numbers_in_a_step(epoch, rank):
        drawn = []
        start_process(table, rank=rank).train_epoch(
            epoch, epochs=2, on_step=lambda loss: drawn.append(torch.rand(()).item())
        )
        return drawn

    assert numbers_in_a_step(0, 0) == numbers_in_a_step(0, 0)
    assert (
        len({tuple(numbers_in_a_step(epoch, rank)) for epoch in range(2) for rank in range(2)}) == 4
    )


def test_the_scale_of_half_precision_is_saved_and_restored(tmp_path, table):
    """On a CPU, where `train` itself never takes half precision: the scale grows every other step
    here, so it shows.
    """

    def begin():
        process = start_process(table, precision="amp")
        process.scaler.set_growth_interval(2)
        return process

    def train_epoch(process, epoch):
        return process.train_epoch(epoch, epochs=2, on_step=lambda loss: None)

    whole = begin()
    train_epoch(whole, 0)
    path = tmp_path / "epoch_1.pt"
    digest = whole.save(path, 1)
    scale = whole.scaler.get_scale()
    resumed = begin()
    assert scale != resumed.scaler.get_scale()
    resumed.restore(Checkpoint(epoch=1, path=path, sha256=digest))
    assert resumed.scaler.get_scale() == scale
    assert train_epoch(resumed, 1) == train_epoch(whole, 1)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.model.parameters(), resumed.model.parameters())
    )


# Together with open_clip_train.


@pytest.mark.parametrize("model", [MODEL, RESNET])
def test_epoch_zero_is_the_initialisation_of_open_clip_train_under_the_same_seed(
    tmp_path, table, monkeypatch, model
):
    report = run(tmp_path / "ours", table, model=model, epochs=0, seed=7)
    assert report.trained == (0,) and list(digests(tmp_path / "ours")) == ["epoch_0.pt"]
    arguments = their_arguments(tmp_path, table, "--model", model, "--epochs", "1", "--seed", "7")
    with first_call_of_their_loop(monkeypatch, arguments) as theirs:
        ours = weights(tmp_path / "ours", 0)
        assert ours.keys() == theirs["state"].keys()
        assert all(torch.equal(ours[name], theirs["state"][name]) for name in ours)
        groups = parameter_groups(build_model(model), 0.2)
        assert [len(group["params"]) for group in groups] == [
            len(names) for names, _ in theirs["groups"]
        ]
        assert [group["weight_decay"] for group in groups] == [
            group["weight_decay"] for _, group in theirs["groups"]
        ]


def test_open_clip_train_resumes_from_our_checkpoint(undisturbed, tmp_path, table, monkeypatch):
    _, output = undisturbed
    ours = torch.load(output / "checkpoints" / "epoch_2.pt", weights_only=True)
    resume = [
        "--model",
        MODEL,
        "--epochs",
        "3",
        "--resume",
        str(output / "checkpoints" / "epoch_2.pt"),
    ]
    with first_call_of_their_loop(monkeypatch, their_arguments(tmp_path, table, *resume)) as theirs:
        assert theirs["epoch"] == 2
        assert all(
            torch.equal(ours["state_dict"][name], theirs["state"][name]) for name in theirs["state"]
        )
        for index, moments in theirs["optimizer"]["state"].items():
            for name, value in moments.items():
                torch.testing.assert_close(
                    value, ours["optimizer"]["state"][index][name], rtol=0, atol=0
                )


def test_open_clip_speaks_into_the_log_file_only(tmp_path, table, capfd, monkeypatch):
    others = io.StringIO()
    monkeypatch.setattr(
        logging.getLogger(),
        "handlers",
        [*logging.getLogger().handlers, logging.StreamHandler(others)],
    )
    before = list(logging.getLogger().handlers), logging.getLogger().level
    run(tmp_path / "quiet", table, epochs=1, progress=None)
    captured = capfd.readouterr()
    assert others.getvalue() == ""
    assert captured.out == ""
    assert captured.err.splitlines() == [
        line for line in captured.err.splitlines() if line.startswith("quiet: epoch 1/1, loss")
    ]
    assert captured.err.count("\n") == 1
    assert "Train Epoch: 0" in (tmp_path / "quiet" / "train.log").read_text()
    assert (list(logging.getLogger().handlers), logging.getLogger().level) == before


def test_bars_show_epochs_with_their_loss(tmp_path, table, capfd):
    report = run(tmp_path / "bars", table, epochs=2, progress=True)
    shown = capfd.readouterr().err
    for epoch, loss in report.losses.items():
        assert f"epoch {epoch}/2" in shown and f"loss {loss:.4f}" in shown


# The same again.


def test_the_same_seed_writes_the_same_files_and_another_seed_others(undisturbed, tmp_path, table):
    _, output = undisturbed
    torch.manual_seed(99)
    random.seed(99)
    run(tmp_path / "again", table)
    assert digests(tmp_path / "again") == digests(output)
    run(tmp_path / "other", table, epochs=1, seed=1)
    assert not set(digests(tmp_path / "other").values()) & set(digests(output).values())


def test_a_run_leaves_the_callers_random_numbers_alone(tmp_path, table):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(tmp_path / "run", table, epochs=1)
    assert torch.equal(torch.rand(3), expected)


def test_the_result_does_not_depend_on_the_number_of_workers(undisturbed, tmp_path, table):
    _, output = undisturbed
    run(tmp_path / "workers", table, workers=2)
    assert digests(tmp_path / "workers") == digests(output)


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_a_run_that_was_interrupted_ends_with_the_files_of_an_undisturbed_one(
    undisturbed, tmp_path, table, monkeypatch, epoch
):
    _, output = undisturbed
    with interrupted_at(epoch, monkeypatch):
        run(tmp_path / "run", table)
    report = run(tmp_path / "run", table)
    assert report.trained == tuple(range(epoch, EPOCHS + 1))
    assert digests(tmp_path / "run") == digests(output)
    assert report.losses == undisturbed[0].losses


def test_an_epoch_that_reached_the_log_but_not_the_manifest_is_logged_once(
    undisturbed, tmp_path, table, monkeypatch
):
    extend = train_folder.extend_run_manifest

    def die_at_epoch_two(*args, checkpoints, **options):
        if checkpoints[0].epoch == 2:
            raise Interrupted
        extend(*args, checkpoints=checkpoints, **options)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(train_folder, "extend_run_manifest", die_at_epoch_two)
        run(tmp_path / "run", table)
    assert run(tmp_path / "run", table).trained == (2, 3)
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2, 3]
    assert digests(tmp_path / "run") == digests(undisturbed[1])


def test_a_finished_run_is_left_as_it_is(undisturbed, table):
    report, output = undisturbed
    before = snapshot(output)
    again = run(output, table)
    assert (again.trained, again.done, again.losses) == ((), report.done, report.losses)
    assert "nothing was left to do" in again.summary()
    assert snapshot(output) == before


def test_a_run_of_no_epochs_is_continued_by_a_longer_one(undisturbed, tmp_path, table):
    run(tmp_path / "run", table, epochs=0)
    assert run(tmp_path / "run", table).trained == (1, 2, 3)
    assert digests(tmp_path / "run") == digests(undisturbed[1])


def test_a_dry_run_lists_what_is_left_and_writes_nothing(tmp_path, table, monkeypatch):
    report = run(tmp_path / "run", table, dry_run=True)
    assert (report.done, report.left, report.complete) == ((), (0, 1, 2, 3), False)
    assert "4 to do: 0 to 3" in report.summary()
    assert not (tmp_path / "run").exists()
    with interrupted_at(2, monkeypatch):
        run(tmp_path / "run", table)
    before = snapshot(tmp_path / "run")
    report = run(tmp_path / "run", table, dry_run=True)
    assert (report.done, report.left) == ((0, 1), (2, 3))
    assert snapshot(tmp_path / "run") == before


# What is refused.


@pytest.mark.parametrize(
    "change, key",
    [
        ({"epochs": 4}, "epochs was 3 .* now it is 4"),
        ({"seed": 1}, "seed was 0"),
        ({"batch_size": 4}, "batch_size was 8"),
        ({"recipe": dataclasses.replace(RECIPE, weight_decay=0.1)}, "recipe.weight_decay was 0.5"),
        ({"model": PLAIN}, "model was 'tiny_vit_with_dropout'"),
    ],
)
def test_other_settings_are_refused_by_name(undisturbed, table, change, key):
    _, output = undisturbed
    before = digests(output)
    with pytest.raises(LandscapeError, match=key):
        run(output, table, **change)
    assert digests(output) == before


def test_other_pairs_are_refused(undisturbed, tmp_path):
    with pytest.raises(LandscapeError, match="pairs.number was 26 .* now it is 20"):
        run(undisturbed[1], write_pairs(tmp_path, 20))


def test_a_checkpoint_that_was_changed_is_refused(undisturbed, tmp_path, table):
    shutil.copytree(undisturbed[1], tmp_path / "undisturbed")
    path = tmp_path / "undisturbed" / "checkpoints" / "epoch_1.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="epoch_1.pt: wrong sha256"):
        run(tmp_path / "undisturbed", table)
    path.unlink()
    with pytest.raises(ManifestError, match="epoch_1.pt"):
        run(tmp_path / "undisturbed", table)


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_what_was_whole(tmp_path, table):
    recipe = dataclasses.replace(RECIPE, lr=1e30, warmup_start_lr=1e30)
    with pytest.raises(NumericalError, match=r"epoch 1, step 2: the loss is nan"):
        run(tmp_path / "run", table, recipe=recipe)
    assert list(digests(tmp_path / "run")) == ["epoch_0.pt"]
    assert Manifest.load(tmp_path / "run" / "checkpoints.yaml").series[0].epochs == (0,)


def test_weights_that_overflow_in_the_last_step_are_not_kept(tmp_path, table):
    # One step per epoch: its loss is fine, and what it does to the weights shows only afterwards.
    recipe = dataclasses.replace(
        RECIPE, lr=1e30, warmup_start_lr=1e30, weight_decay=1e12, batch_size=26
    )
    with pytest.raises(NumericalError, match="epoch 1: .* is not finite after the last step"):
        run(tmp_path / "run", table, recipe=recipe)
    assert list(digests(tmp_path / "run")) == ["epoch_0.pt"]


def test_fewer_pairs_than_a_batch_are_refused_before_anything_is_written(tmp_path, table):
    with pytest.raises(DataError, match="batches of 27 pairs .* there are 26"):
        run(tmp_path / "run", table, batch_size=27)
    assert not (tmp_path / "run").exists()


def test_a_missing_picture_is_refused_before_anything_is_written(tmp_path):
    pairs = write_pairs(tmp_path)
    (tmp_path / "11.png").unlink()
    with pytest.raises(DataError, match="11.png"):
        run(tmp_path / "run", pairs)
    assert not (tmp_path / "run").exists()


def test_an_output_that_cannot_be_written_is_refused_before_training(tmp_path, table):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(StoreError, match="cannot be written|is a file"):
            run(output, table)
    assert (tmp_path / "file").read_text() == ""


def test_a_disk_with_too_little_room_is_refused_before_training(tmp_path, table, monkeypatch):
    usage = namedtuple("usage", "total used free")
    # Weights of 1.6 MB: once for epoch 0, three times for each of three epochs.
    num_bytes = 10 * sum(tensor.nbytes for tensor in build_model(MODEL).state_dict().values())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(num_bytes, 0, num_bytes - 1))
    with pytest.raises(StoreError, match="the disk has 0.0.* left"):
        run(tmp_path / "run", table)
    assert digests(tmp_path / "run") == {}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(num_bytes, 0, num_bytes))
    run(tmp_path / "run", table, epochs=1)


def test_a_disk_that_fills_up_loses_one_epoch_and_no_more(undisturbed, tmp_path, table):
    _, output = undisturbed
    largest = (output / "checkpoints" / "epoch_0.pt").stat().st_size + 1000
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="epoch_1.pt"):
            run(tmp_path / "run", table)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(digests(tmp_path / "run")) == ["epoch_0.pt"]
    run(tmp_path / "run", table)
    assert digests(tmp_path / "run") == digests(output)


def test_a_folder_of_another_program_is_refused_and_left_alone(tmp_path, table):
    (tmp_path / "theirs" / "checkpoints").mkdir(parents=True)
    (tmp_path / "theirs" / "checkpoints" / "epoch_1.pt").write_text("precious")
    with pytest.raises(StoreError, match="another program wrote them"):
        run(tmp_path / "theirs", table)
    assert (tmp_path / "theirs" / "checkpoints" / "epoch_1.pt").read_text() == "precious"


def test_settings_that_cannot_be_read_are_refused(undisturbed, tmp_path, table):
    shutil.copytree(undisturbed[1], tmp_path / "undisturbed")
    (tmp_path / "undisturbed" / "settings.json").write_text("{")
    with pytest.raises(StoreError, match="settings.json: cannot be read"):
        run(tmp_path / "undisturbed", table)


def test_a_second_run_in_the_same_folder_is_refused(tmp_path, table):
    (tmp_path / "run").mkdir()
    with open(tmp_path / "run" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="another run trains into this folder"):
            run(tmp_path / "run", table)
    run(tmp_path / "run", table, epochs=0)


def test_a_folder_whose_name_cannot_name_a_series_is_refused_early(tmp_path, table):
    with pytest.raises(ManifestError, match="names groups and files"):
        run(tmp_path / "mine & yours", table)
    assert not (tmp_path / "mine & yours").exists()
    report = run(tmp_path / "mine & yours", table, epochs=0, name="ours", label="Ours (2)")
    assert Manifest.load(report.manifest).series[0].label == "Ours (2)"


def test_an_unknown_model_recipe_or_device_is_refused(tmp_path, table):
    with pytest.raises(ModelError, match="no_such_model"):
        run(tmp_path / "run", table, model="no_such_model")
    with pytest.raises(ValueError, match="Unknown recipe 'sgd'"):
        run(tmp_path / "run", table, recipe="sgd")
    for device in ("abacus", "cuda:x") if torch.cuda.is_available() else ("abacus", "cuda"):
        with pytest.raises(LandscapeError, match=f"device '{device}' is not available"):
            run(tmp_path / "run", table, device=device)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "option, value",
    [("epochs", -1), ("batch_size", 1), ("seed", -1), ("seed", 2**32), ("workers", -1)],
)
def test_a_number_that_cannot_be_meant_is_a_value_error(tmp_path, table, option, value):
    with pytest.raises(ValueError, match=f"{option} must be"):
        run(tmp_path / "run", table, **{option: value})
    assert not (tmp_path / "run").exists()


# Killed, and over several processes.


def start(context, target, *arguments):
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def run_in_two_processes(context, output, table, **options):
    """The errors of the two, None where there was none."""
    join_two_processes(context, run_as, output, table, options)
    files = [output.with_name(f"{output.name}.{rank}.error") for rank in range(2)]
    return [file.read_text() if file.exists() else None for file in files]


@pytest.mark.parametrize("num_kills", [4, pytest.param(12, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_with_the_files_of_an_undisturbed_one(
    num_kills, undisturbed, tmp_path, table, context
):
    _, output = undisturbed
    begun = time.monotonic()
    start(context, run, tmp_path / "first", table).join()
    duration = time.monotonic() - begun
    generator = random.Random(0)
    kills, found_on_resuming = 0, set()

    def epochs_there():
        return len(list(tmp_path.glob("run/checkpoints/epoch_*.pt")))

    while kills < num_kills:
        before = epochs_there()
        found_on_resuming.add(before)
        process = start(context, run, tmp_path / "run", table)
        # By turns at any moment, and once another epoch is there or all is done: what of a run its
        # epochs take is the machine's affair.
        if kills % 2:
            process.join(generator.uniform(0, duration))
        else:
            while process.is_alive() and epochs_there() <= before:
                time.sleep(0.001)
            process.join(generator.uniform(0, 0.01))
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
            check_only_whole_files(tmp_path / "run", output)
        else:
            assert process.exitcode == 0 and digests(tmp_path / "run") == digests(output)
            shutil.rmtree(tmp_path / "run")
    run(tmp_path / "run", table)
    assert digests(tmp_path / "run") == digests(output)
    assert found_on_resuming & {1, 2, 3}


def check_only_whole_files(output, undisturbed):
    """Whatever is under its final name is whole, and the manifest lists nothing else."""
    expected = digests(undisturbed)
    for path in output.glob("checkpoints/epoch_*.pt"):
        assert sha256(path) == expected[path.name]
    if (output / "checkpoints.yaml").exists():
        for checkpoint in Manifest.load(output / "checkpoints.yaml").series[0].checkpoints:
            assert checkpoint.sha256 == expected[checkpoint.path.name] == sha256(checkpoint.path)


def test_a_batch_that_cannot_be_shared_out_is_refused_before_the_processes_meet(
    tmp_path, table, monkeypatch
):
    monkeypatch.setenv(
        "WORLD_SIZE", "2"
    )  # The other one never comes, and nobody says where to meet it.
    with pytest.raises(
        LandscapeError, match="a batch of 7 pairs cannot be shared out over 2 processes"
    ):
        run(tmp_path / "uneven", table, batch_size=7)
    assert not (tmp_path / "uneven").exists()


@pytest.mark.slow
def test_two_processes_under_torchrun_train_as_one_does_on_the_whole_batch(
    tmp_path, table, context
):
    options = {"model": PLAIN, "epochs": 2}
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    program = [
        "--module",
        "tests.helpers.tiny_run",
        str(tmp_path / "two"),
        str(table),
        json.dumps(options),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run([*launcher, *program], env=environment, check=True)
    report = run(tmp_path / "one", table, **options)
    assert list(digests(tmp_path / "two")) == ["epoch_0.pt", "epoch_1.pt", "epoch_2.pt"]
    assert not list((tmp_path / "two").glob("*.error"))
    start, one, two = (
        weights(tmp_path / "one", 0),
        weights(tmp_path / "one", 2),
        weights(tmp_path / "two", 2),
    )
    for name in one:
        assert torch.equal(start[name], weights(tmp_path / "two", 0)[name])
        # As in the loop by hand: the same gradient, summed in another order.
        assert (one[name] - two[name]).norm() <= 1e-3 * (one[name] - start[name]).norm() + 1e-7, (
            name
        )
    lines = [
        json.loads(line) for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()[1:]
    ]
    assert {line["epoch"]: line["loss"] for line in lines} == pytest.approx(report.losses, rel=1e-5)


def test_a_run_over_two_processes_resumes_and_refuses_in_both(tmp_path, table, context):
    assert run_in_two_processes(context, tmp_path / "whole", table) == [None, None]
    assert run_in_two_processes(context, tmp_path / "parts", table, epochs=0) == [None, None]
    assert run_in_two_processes(context, tmp_path / "parts", table) == [None, None]
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")
    before = snapshot(tmp_path / "whole" / "checkpoints")
    assert run_in_two_processes(context, tmp_path / "whole", table) == [None, None]
    with pytest.raises(LandscapeError, match="processes was 2 .* now it is 1"):
        run(tmp_path / "whole", table)
    for error in run_in_two_processes(context, tmp_path / "whole", table, seed=1):
        assert "seed was 0" in error
    assert snapshot(tmp_path / "whole" / "checkpoints") == before


@pytest.mark.parametrize(
    "pairs,samples,batch", [(50, 45, 15), (15, 15, 15), (12, 12, 12), (5000, 3000, 15)]
)
def test_the_protocol_of_a_run_asks_for_no_more_pairs_than_there_are(pairs, samples, batch):
    published = DataSettings(source="pairs.tsv", num_samples=3000, batch_size=15)
    asked = _measurable(published, pairs)
    assert (asked.num_samples, asked.batch_size) == (samples, batch)
