"""Checkpoints of every kind, whole, damaged and hostile. Files are written by torch, timm and
safetensors themselves.
"""

import argparse
import copy
import datetime
import hashlib
import io
import os
import pickle
import re
import shlex
import sys
import zipfile
from collections import Counter, OrderedDict, defaultdict

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip_train.file_utils import pt_load
from safetensors.torch import save_file
from torch import nn

from landscape.clip.checkpoint import (
    describe_checkpoint,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
    write_checkpoint,
)
from landscape.errors import CheckpointError
from landscape.version import VERSION

VISION = {"layers": 1, "width": 8, "head_width": 4, "patch_size": 4, "image_size": 8}
TEXT = {"context_length": 8, "vocab_size": 50, "width": 8, "heads": 2, "layers": 1}


def make_clip(seed=0, **vision):
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = open_clip.CLIP(embed_dim=6, vision_cfg=VISION | vision, text_cfg=TEXT).eval()
    torch.set_rng_state(state)
    return model


def same(first, second):
    return list(first) == list(second) and all(
        torch.equal(first[key], second[key]) for key in first
    )


def snapshot(model):
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def refusal(model, path, **options):
    """The message of a refusal that leaves the model as it was: one line that begins with the
    file.
    """
    before = snapshot(model)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, path, **options)
    assert same(before, model.state_dict())
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{path}: ")
    return message


@pytest.fixture
def trained():
    """A model and its AdamW optimizer after one step."""
    model = make_clip(seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    image, text, scale = model(
        torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
        torch.arange(32).view(4, 8),
    )
    open_clip.ClipLoss()(image, text, scale).backward()
    optimizer.step()
    return model, optimizer


# Layouts


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."],
)
def test_a_checkpoint_of_an_open_clip_run_loads_under_any_wrapper(tmp_path, trained, prefix):
    model, optimizer = trained
    state = OrderedDict((prefix + key, tensor) for key, tensor in model.state_dict().items())
    path = tmp_path / "epoch_7.pt"
    torch.save(
        {"epoch": 7, "name": "a run", "state_dict": state, "optimizer": optimizer.state_dict()},
        path,
    )
    target = make_clip()
    info = load_checkpoint(target, path)
    assert same(target.state_dict(), model.state_dict())
    assert (info.kind, info.layout, info.epoch, info.name, info.weights) == (
        "torch",
        "open_clip",
        7,
        "a run",
        "online",
    )
    assert (
        info.num_tensors == len(state)
        and info.keys == tuple(list(model.state_dict())[:5])
        and info.notes == ()
    )
    assert info.num_parameters == sum(
        tensor.numel() for tensor in state.values()
    ) and info.dtypes == ("float32",)
    assert (
        info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        and info.num_bytes == path.stat().st_size
    )
    assert info == describe_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_bare_state_dict_loads_in_both_formats_of_torch(tmp_path, trained, zipped):
    path = tmp_path / "weights.bin"
    torch.save(trained[0].state_dict(), path, _use_new_zipfile_serialization=zipped)
    target = make_clip()
    info = load_checkpoint(target, path)
    assert same(target.state_dict(), trained[0].state_dict())
    assert info.kind == ("torch" if zipped else "torch before 1.6")
    assert (info.layout, info.epoch, info.name) == ("state dict", None, None)


def test_safetensors_are_recognised_by_content(tmp_path, trained):
    path = tmp_path / "weights.pt"
    save_file(trained[0].state_dict(), path)
    target = make_clip()
    info = load_checkpoint(target, path)
    assert same(target.state_dict(), trained[0].state_dict())
    assert (info.kind, info.layout) == (
        "safetensors",
        "state dict",
    ) and info == describe_checkpoint(path)


@pytest.mark.parametrize("weights", ["online", "ema"])
def test_timms_own_checkpoints_load_with_either_copy_of_the_weights(tmp_path, weights):
    """timm stores the command line beside the weights: an argparse.Namespace, of which its plain
    values are kept.
    """
    model, average = (
        timm.create_model("resnet10t", num_classes=3),
        timm.create_model("resnet10t", num_classes=3),
    )
    ema = argparse.Namespace(module=average)
    saver = timm.utils.CheckpointSaver(
        model,
        torch.optim.AdamW(model.parameters()),
        args=argparse.Namespace(model="resnet10t", lr=0.1),
        model_ema=ema,
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    saver.unwrap_fn = lambda model: getattr(model, "module", model)
    saver.save_checkpoint(4, metric=0.5)
    target = timm.create_model("resnet10t", num_classes=3)
    info = load_checkpoint(target, tmp_path / "last.pth.tar", weights=weights)
    assert same(target.state_dict(), (model if weights == "online" else average).state_dict())
    assert (info.layout, info.name, info.weights, info.available) == (
        "timm",
        "resnet10t",
        weights,
        ("online", "ema"),
    )
    assert (info.epoch, info.stored_epoch) == (5, 4) and "counts epochs from 0" in info.notes[1]
    assert (
        f"{'online' if weights == 'online' else 'averaged'} weights were taken. timm's own"
        in info.notes[0]
    )
    assert info.settings == {"args": {"model": "resnet10t", "lr": 0.1}}


def test_weights_under_model_load_as_deit_releases_them(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=2, img_size=32)
    torch.save({"model": model.state_dict()}, tmp_path / "deit.pth")
    target = timm.create_model("vit_tiny_patch16_224", num_classes=2, img_size=32)
    assert load_checkpoint(target, tmp_path / "deit.pth").layout == "training run"
    assert same(target.state_dict(), model.state_dict())


def make_published_clip(tmp_path, seed):
    """open_clip's CLIP around a small timm ViT, as in this project's configurations of the paper's
    models.
    """
    vision = {
        "image_size": 224,
        "timm_model_name": "test_vit",
        "timm_pool": "token",
        "timm_proj": "linear",
    }
    torch.manual_seed(seed)
    return open_clip.CLIP(embed_dim=6, vision_cfg=vision, text_cfg=TEXT)


@pytest.mark.parametrize("weights", ["online", "ema"])
def test_the_papers_released_layout_loads_with_either_copy_of_the_weights(tmp_path, weights):
    """visual.* without a trunk, image_projection as width x embedding, averaged twins `_e`, args
    and module. prefixes.
    """
    online, average = make_published_clip(tmp_path, 1), make_published_clip(tmp_path, 2)

    def as_published(state, suffix):
        for key, tensor in state.items():
            if key == "visual.head.proj.weight":
                yield f"module.image_projection{suffix}", tensor.T.contiguous()
            elif key != "logit_scale" or not suffix:
                top, dot, rest = key.replace("visual.trunk", "visual").partition(".")
                yield f"module.{top}{suffix}{dot}{rest}", tensor

    state = dict(as_published(online.state_dict(), "")) | dict(
        as_published(average.state_dict(), "_e")
    )
    args = argparse.Namespace(model="CLIP_Simba_S")
    torch.save(
        {"epoch": 25, "state_dict": state, "best_acc": 40.5, "args": args}, tmp_path / "released.pt"
    )
    target = make_published_clip(tmp_path, 3)
    info = load_checkpoint(target, tmp_path / "released.pt", weights=weights)
    expected = (
        online.state_dict()
        if weights == "online"
        else average.state_dict() | {"logit_scale": online.logit_scale.data}
    )
    assert same(target.state_dict(), expected)
    assert (info.layout, info.epoch) == ("slip", 25)
    assert "Renamed" in info.notes[0] and "Left out" in info.notes[1]


def test_averaged_weights_that_are_not_there_are_refused(tmp_path, trained):
    save_checkpoint(tmp_path / "epoch_1.pt", model=trained[0], epoch=1, name="run")
    assert "no averaged weights" in refusal(make_clip(), tmp_path / "epoch_1.pt", weights="ema")
    with pytest.raises(ValueError, match="online"):
        load_checkpoint(make_clip(), tmp_path / "epoch_1.pt", weights="best")


# Our own


def test_what_we_write_we_read_and_open_clips_trainer_resumes_from(tmp_path, trained):
    model, optimizer = trained
    path = tmp_path / "epoch_3.pt"
    digest = save_checkpoint(
        path,
        model=model,
        epoch=3,
        name="run",
        optimizer=optimizer,
        extra={"scaler": {"scale": 2.0}},
    )
    info = describe_checkpoint(path, expected_sha256=digest.upper())
    assert (info.layout, info.epoch, info.name, info.sha256) == ("landscape", 3, "run", digest)
    # What open_clip_train.main does under --resume.
    checkpoint = pt_load(str(path), map_location="cpu")
    resumed = make_clip(seed=5)
    resumed.load_state_dict(checkpoint["state_dict"])
    steps = torch.optim.AdamW(resumed.parameters(), lr=1e-3)
    steps.load_state_dict(checkpoint["optimizer"])
    assert checkpoint["epoch"] == 3 and same(resumed.state_dict(), model.state_dict())
    assert torch.equal(
        steps.state_dict()["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"]
    )
    evaluated = make_clip(seed=6)
    open_clip.load_checkpoint(evaluated, str(path))
    assert same(evaluated.state_dict(), model.state_dict())
    stored = read_checkpoint(path, expected_sha256=digest)
    assert stored["scaler"] == {"scale": 2.0} and stored["landscape_version"] == VERSION
    assert torch.equal(
        stored["optimizer"]["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"]
    )


def test_equal_contents_give_equal_bytes_whatever_the_file_is_called(tmp_path, trained):
    model, optimizer = trained
    digests = {
        save_checkpoint(tmp_path / name, model=model, epoch=1, name="run", optimizer=optimizer)
        for name in ("epoch_1.pt", "again.pt")
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    "extra",
    [
        {"metric": np.float64(0.5)},
        {"args": argparse.Namespace()},
        {"a": {"b": [object()]}},
        {"version": sys.version_info},
        {"a": defaultdict(int)},
    ],
)
def test_what_could_not_be_read_back_is_not_written(tmp_path, trained, extra):
    with pytest.raises(ValueError, match="cannot be read back"):
        save_checkpoint(tmp_path / "x.pt", model=trained[0], epoch=0, name="run", extra=extra)
    with pytest.raises(ValueError, match="epoch, optimizer"):
        save_checkpoint(
            tmp_path / "x.pt",
            model=trained[0],
            epoch=0,
            name="run",
            extra={"epoch": 1, "optimizer": {}},
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("broken", ["os.replace", "os.fsync", "torch.save"])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, trained, monkeypatch, broken):
    path = tmp_path / "x.pt"
    before = save_checkpoint(path, model=trained[0], epoch=0, name="run")

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(broken, fail)
    with pytest.raises(CheckpointError, match="No space left") as caught:
        save_checkpoint(path, model=trained[0], epoch=1, name="run")
    monkeypatch.undo()
    assert str(caught.value).startswith(f"{path}: cannot be written")
    assert (
        list(tmp_path.iterdir()) == [path]
        and describe_checkpoint(path, expected_sha256=before).epoch == 0
    )


@pytest.mark.parametrize("parent", ["no_such_folder", "a_file"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, parent):
    (tmp_path / "a_file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_checkpoint(tmp_path / parent / "x.pt", {"epoch": 0})


# Code


class Exploit:
    """A pickle of this runs a shell command when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {shlex.quote(str(self.marker))}",)


def write_exploit(path, how, exploit):
    stored = {"epoch": 1, "state_dict": make_clip().state_dict(), "args": exploit}
    if how == "plain pickle":
        path.write_bytes(pickle.dumps(exploit, protocol=2))
    elif how == "newer pickle":
        torch.save(stored, path, pickle_protocol=4)
    elif how == "in a Namespace":
        torch.save(stored | {"args": argparse.Namespace(hook=exploit)}, path)
    elif how == "in a tensor's place":
        torch.save({"epoch": 1, "state_dict": {"logit_scale": exploit}}, path)
    else:
        torch.save(stored, path, _use_new_zipfile_serialization=how == "zip")


@pytest.mark.parametrize(
    "how",
    ["zip", "legacy", "plain pickle", "newer pickle", "in a Namespace", "in a tensor's place"],
)
@pytest.mark.parametrize("forced", ["0", "1"])
def test_pickled_code_never_runs(tmp_path, monkeypatch, how, forced):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", forced)
    marker, path = tmp_path / "marker", tmp_path / "evil.pt"
    write_exploit(path, how, Exploit(marker))
    for load in (
        describe_checkpoint,
        read_checkpoint,
        lambda path: load_checkpoint(make_clip(), path),
    ):
        with pytest.raises(CheckpointError, match=r"posix\.system|nt\.system") as caught:
            load(path)
        assert not marker.exists() and "\n" not in str(caught.value)
    # The trap is a live one.
    if how == "plain pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.exists()


def test_plain_containers_beside_the_weights_are_read(tmp_path, trained):
    """Pickles of protocol 2 call `set` by its name of Python 2."""
    contents = {
        "seen": {1, 2},
        "milestones": Counter({3: 1}),
        "order": OrderedDict(a=1),
        "shape": torch.Size([2]),
    }
    torch.save({"state_dict": trained[0].state_dict()} | contents, tmp_path / "x.pt")
    stored = read_checkpoint(tmp_path / "x.pt")
    assert {key: stored[key] for key in contents} == contents


def test_objects_of_other_packages_become_stand_ins_and_are_named(tmp_path, trained):
    path = tmp_path / "old.pt"
    history = {"took": datetime.timedelta(1), "own": Harmless()}
    torch.save(
        {"epoch": 4, "name": "x", "state_dict": trained[0].state_dict(), "history": history}, path
    )
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    target = make_clip()
    info = load_checkpoint(target, path)
    assert info.epoch == 4 and same(target.state_dict(), trained[0].state_dict())
    assert (
        len(info.notes) == 1
        and "datetime.timedelta" in info.notes[0]
        and "Harmless" in info.notes[0]
    )
    torch.save({"w": torch.ones(1), "history": {"losses": np.ones(300), **history}}, path)
    stored = read_checkpoint(path)["history"]
    assert {type(value).__name__ for value in stored.values()} == {"Inert"}


class Harmless:
    pass


def test_what_a_namespace_holds_stays_data_whatever_it_is(tmp_path):
    """Attributes such as __class__ would be set on the real one, straight from the file."""
    path, args = tmp_path / "x.pt", argparse.Namespace()
    vars(args).update(__class__=OrderedDict, __setstate__=torch.Size, model="x")
    torch.save({"args": args, "w": torch.ones(2)}, path)
    args = read_checkpoint(path)["args"]
    assert (
        type(args).__name__ == "Inert"
        and not hasattr(args, "__dict__")
        and not hasattr(args, "__setstate__")
    )
    assert args.state["model"] == "x" and args.state["__class__"].name == "collections.OrderedDict"


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_learning_rates_that_numpy_computed_do_not_keep_an_open_clip_run_from_loading(
    tmp_path, trained, module
):
    """open_clip_train computed its cosine with NumPy before version 3; both of NumPy's spellings
    are in such files.
    """
    model, optimizer = trained
    for group in [optimizer.param_groups[0], copy.copy(optimizer.param_groups[0])]:
        group["lr"] = 0.5 * (1 + np.cos(np.pi * 3 / 10)) * 1e-3
        group["initial_lr"] = np.float32(1e-3)
    path = tmp_path / "epoch_3.pt"
    torch.save(
        {
            "epoch": 3,
            "name": "x",
            "state_dict": model.state_dict(),
            "optimizer": optimizer.state_dict(),
        },
        path,
    )
    rewritten(path, replace={b"numpy._core.multiarray": module.encode()})
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    target = make_clip()
    assert load_checkpoint(target, path).epoch == 3
    assert same(target.state_dict(), model.state_dict())


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_the_weights_of_a_torchscript_program_are_read_without_running_it(tmp_path):
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()
    torch.jit.save(torch.jit.trace(model, torch.ones(1, 2)), tmp_path / "program.pt")
    target = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    info = load_checkpoint(target, tmp_path / "program.pt")
    assert info.kind == "TorchScript" and same(target.state_dict(), model.state_dict())
    assert "does not fit the model" in refusal(make_clip(), tmp_path / "program.pt")


# Bombs


def rewritten(path, *, replace=None, compression=zipfile.ZIP_STORED):
    """Write a torch file anew, entry by entry, with bytes of its pickle replaced."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            for old, new in (replace or {}).items():
                content = content.replace(old, new) if name.endswith("data.pkl") else content
            archive.writestr(name, content)


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "bomb.pt"
    torch.save({"w": torch.zeros(5_000_000)}, path)
    rewritten(path, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    assert "unpacks to 20000" in refusal(make_clip(), path)
    # Also where compression did not make it smaller, and sizes alone say nothing.
    noise = torch.randint(
        0, 256, (10_000,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    torch.save({"w": noise}, path)
    with zipfile.ZipFile(path) as archive:
        kept = sum(entry.file_size for entry in archive.infolist())
    rewritten(path, compression=zipfile.ZIP_DEFLATED)
    assert kept < path.stat().st_size
    assert "entries compressed" in refusal(make_clip(), path)


def test_entries_that_share_their_bytes_are_refused(tmp_path):
    path = tmp_path / "bomb.pt"
    torch.save({"w": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        [data] = [entry for entry in archive.infolist() if entry.filename.endswith("data/0")]
        for key in range(1, 50):
            clone = copy.copy(data)
            clone.filename = clone.orig_filename = data.filename[:-1] + str(key)
            archive.filelist.append(clone)
        archive._didModify = True
    assert "exhaust memory" in refusal(make_clip(), path)


def one_tensor(path, **options):
    torch.save({"w": torch.zeros(7)}, path, **options)


def test_a_tensor_that_is_declared_larger_than_the_file_is_refused(tmp_path):
    path = tmp_path / "bomb.pt"
    number = (2_000_000_000).to_bytes(4, "little")
    one_tensor(path)
    rewritten(
        path, replace={b"K\x07tq": b"J" + number + b"tq", b"K\x07\x85": b"J" + number + b"\x85"}
    )
    assert "declares a tensor of 2000000000 elements" in refusal(make_clip(), path)
    one_tensor(path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"K\x07N", b"J" + number + b"N"))
    assert "declares a tensor of 2000000000 elements" in refusal(make_clip(), path)


def test_a_tensor_that_is_declared_larger_than_its_storage_is_refused(tmp_path):
    path = tmp_path / "bomb.pt"
    one_tensor(path)
    rewritten(path, replace={b"K\x07\x85": b"K\x08\x85"})
    assert "damaged" in refusal(make_clip(), path)


def read_with(path, expression):
    """Add an entry "x" to the dict in a torch file: a pickle's bytes that push it; then read the
    file.
    """
    rewritten(
        path, replace={b"\x80\x02}q\x00": b"\x80\x02}q\x00(X\x01\x00\x00\x00x" + expression + b"u"}
    )
    return read_checkpoint(path)


def test_functions_that_grow_memory_out_of_nothing_are_refused(tmp_path):
    """Each nested hex encoding doubles its argument, and torch's weights-only unpickler would call
    it.
    """
    path = tmp_path / "bomb.pt"
    one_tensor(path)
    first = b"c_codecs\nencode\nq\xffX\x01\x00\x00\x00aX\x06\x00\x00\x00latin1\x86R"
    assert len(read_with(path, first)["x"]) == 1
    whole = path.read_bytes()
    for other in (
        first.replace(b"\x06\x00\x00\x00latin1", b"\x06\x00\x00\x00utf_32"),
        first.replace(b"\x01\x00\x00\x00a", b"\x08\x00\x00\x00" + b"a" * 8).replace(
            b"latin1", b"latin2"
        ),
    ):
        path.write_bytes(whole)
        rewritten(path, replace={first: other})
        torch.load(path, weights_only=True)
        assert "'_codecs.encode'" in refusal(make_clip(), path)
    path.write_bytes(whole)
    doubled = b"h\xff" * 20 + first + b"X\x03\x00\x00\x00hex\x86R" * 20
    rewritten(path, replace={first: first + b"X\x01\x00\x00\x00y" + doubled})
    assert len(torch.load(path, weights_only=True)["y"]) == 2**20
    assert "'_codecs.encode'" in refusal(make_clip(), path)


def test_an_endless_pickle_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("landscape.containers.weight_files.LARGEST_PICKLE", 1000)
    torch.save({f"tensor {number}": torch.zeros(1) for number in range(50)}, tmp_path / "long.pt")
    assert "its pickle is longer" in refusal(make_clip(), tmp_path / "long.pt")


@pytest.mark.parametrize("length", [2**62, 10**6])
def test_a_safetensors_header_longer_than_the_file_is_refused(tmp_path, length):
    (tmp_path / "bomb.safetensors").write_bytes(length.to_bytes(8, "little") + b'{"w":{}}')
    assert "header" in refusal(make_clip(), tmp_path / "bomb.safetensors")


def test_a_safetensors_tensor_beyond_the_end_of_the_file_is_refused(tmp_path):
    header = b'{"w":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    (tmp_path / "bomb.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + b"\0" * 8
    )
    assert "damaged" in refusal(make_clip(), tmp_path / "bomb.safetensors")


# Damage


def write_as(path, kind, state):
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(
            {"epoch": 1, "state_dict": state}, path, _use_new_zipfile_serialization=kind == "zip"
        )


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("keep", [0, 1, 3, 8, 30, 0.01, 0.1, 0.5, 0.9, -200, -22, -1])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, kind, keep):
    path = tmp_path / "x.pt"
    write_as(path, kind, make_clip().state_dict())
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    message = refusal(make_clip(), path)
    assert any(
        words in message
        for words in (("cut short", "is not a checkpoint") if keep else ("is empty",))
    )
    with pytest.raises(CheckpointError):
        describe_checkpoint(path)


def test_a_flipped_bit_in_a_weight_is_found_without_a_digest(tmp_path, trained):
    """torch.load does not compare the checksums that torch.save writes."""
    path = tmp_path / "x.pt"
    save_checkpoint(path, model=trained[0], epoch=1, name="run")
    content = bytearray(path.read_bytes())
    content[content.find(trained[0].visual.proj.detach().numpy().tobytes()) + 2] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)
    assert "checksum" in refusal(make_clip(), path)


def test_a_file_without_checksums_is_read(tmp_path, trained):
    torch.serialization.set_crc32_options(False)
    try:
        save_checkpoint(tmp_path / "x.pt", model=trained[0], epoch=1, name="run")
    finally:
        torch.serialization.set_crc32_options(True)
    target = make_clip()
    load_checkpoint(target, tmp_path / "x.pt")
    assert same(target.state_dict(), trained[0].state_dict())


def test_a_file_other_than_the_listed_one_is_refused(tmp_path, trained):
    path = tmp_path / "x.pt"
    digest = save_checkpoint(path, model=trained[0], epoch=1, name="run")
    message = refusal(make_clip(), path, expected_sha256="0" * 64)
    assert "0" * 64 in message and digest in message
    load_checkpoint(make_clip(), path, expected_sha256=digest)


def test_what_is_no_checkpoint_at_all_is_called_that(tmp_path):
    contents = {
        "text.pt": b"git-lfs pointer: https://",
        "page.pt": b"<!DOCTYPE html><html></html>",
        "number.pt": pickle.dumps(12, protocol=2),
        "random.pt": bytes(range(1, 256)),
        "legacy.pt": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert re.search(
            "is not a checkpoint|not one of torch.save|damaged",
            refusal(make_clip(), tmp_path / name),
        )
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("folder/readme.txt", "hello")
    assert "no data.pkl" in refusal(make_clip(), tmp_path / "other.zip")
    assert "no such file" in refusal(make_clip(), tmp_path / "missing.pt")
    assert "folder" in refusal(make_clip(), tmp_path)
    torch.save(["state_dict"], tmp_path / "list.pt")
    assert "holds a list" in refusal(make_clip(), tmp_path / "list.pt")
    torch.save({1: torch.ones(1)}, tmp_path / "numbers.pt")
    assert "holds a dict" in refusal(make_clip(), tmp_path / "numbers.pt")
    torch.save({"epoch": 1}, tmp_path / "epoch.pt")
    assert "no weights found" in refusal(make_clip(), tmp_path / "epoch.pt")


def test_archives_that_two_readers_could_read_differently_are_refused(tmp_path, trained):
    path = tmp_path / "x.pt"
    save_checkpoint(path, model=trained[0], epoch=1, name="run")
    whole = path.read_bytes()
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"PK\x05\x06" + b"\0" * 17
    torch.load(path, weights_only=True)
    assert "something was appended" in refusal(make_clip(), path)
    path.write_bytes(whole)
    for name in ("other/data.pkl", "archive/DATA.pkl"):
        path.write_bytes(whole)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, b"\x80\x02}.")
        assert "several archives" in refusal(make_clip(), path)


# Fit


def test_a_checkpoint_of_another_size_names_the_tensors_and_both_shapes(tmp_path):
    torch.save(make_clip(width=16).state_dict(), tmp_path / "wide.pt")
    message = refusal(make_clip(), tmp_path / "wide.pt")
    assert "'visual.class_embedding' expected (8,), got (16,)" in message and ", ..." in message
    assert re.search(r"\d+ of \d+ tensors of another shape", message)


def test_position_embeddings_are_not_resized(tmp_path):
    path = tmp_path / "large.pt"
    torch.save(make_clip(image_size=16).state_dict(), path)
    open_clip.load_checkpoint(make_clip(), str(path))
    message = refusal(make_clip(), path)
    assert (
        "1 of" in message
        and "'visual.positional_embedding' expected (5, 8), got (17, 8)" in message
    )


def test_missing_and_surplus_tensors_are_counted_and_named(tmp_path, trained):
    state = trained[0].state_dict()
    surplus = {f"extra.{number}": torch.ones(1) for number in range(4)}
    path = tmp_path / "x.pt"
    torch.save(
        {key: tensor for key, tensor in state.items() if not key.startswith("ln_final")} | surplus,
        path,
    )
    message = refusal(make_clip(), path)
    assert f"2 of {len(state)} tensors missing ('ln_final.weight', 'ln_final.bias')" in message
    assert (
        "4 tensors that the model does not have ('extra.0', 'extra.1', 'extra.2', ...)" in message
    )


def test_a_state_dict_that_holds_a_tensor_twice_is_refused(tmp_path, trained):
    state = trained[0].state_dict()
    torch.save(state | {"_orig_mod.logit_scale": state["logit_scale"]}, tmp_path / "x.pt")
    assert "twice" in refusal(make_clip(), tmp_path / "x.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, trained, value):
    state = trained[0].state_dict()
    state["visual.proj"][0, :2] = value
    torch.save(state, tmp_path / "x.pt")
    assert (
        f"1 of {len(state)} tensors hold NaN or infinite numbers ('visual.proj' with 2 of 48)"
        in refusal(make_clip(), tmp_path / "x.pt")
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_precision_is_converted_and_noted(tmp_path, trained, dtype):
    state = {key: tensor.to(dtype) for key, tensor in trained[0].state_dict().items()}
    torch.save(state, tmp_path / "x.pt")
    target = make_clip()
    info = load_checkpoint(target, tmp_path / "x.pt")
    assert same(target.state_dict(), {key: tensor.float() for key, tensor in state.items()})
    name = str(dtype).removeprefix("torch.")
    assert info.notes == (
        f"Converted {len(state)} tensors from {name} to float32.",
    ) and info.dtypes == (name,)


def test_numbers_that_overflow_in_the_models_precision_are_refused(tmp_path, trained):
    state = {key: tensor.double() for key, tensor in trained[0].state_dict().items()}
    state["visual.proj"][0, 0] = 1e300
    torch.save(state, tmp_path / "x.pt")
    assert "infinite" in refusal(make_clip(), tmp_path / "x.pt")


def test_integers_do_not_stand_for_weights(tmp_path, trained):
    state = trained[0].state_dict()
    torch.save(state | {"visual.proj": state["visual.proj"].to(torch.int32)}, tmp_path / "x.pt")
    assert "'visual.proj' is torch.int32" in refusal(make_clip(), tmp_path / "x.pt")


def test_a_tensor_without_plain_numbers_is_refused(tmp_path, trained):
    """load_state_dict skips meta tensors with a warning and leaves the model's own weights in
    place.
    """
    state = trained[0].state_dict()
    path = tmp_path / "x.pt"
    weight = state["visual.proj"].to(torch.complex64)
    for fake in (weight.real.to("meta"), weight.real.to_sparse(), weight.conj()):
        torch.save(state | {"visual.proj": fake}, path)
        message = refusal(make_clip(), path)
        assert (
            "['visual.proj'] is a torch._utils._rebuild_" in message
            and "not plain numbers" in message
        )


@pytest.mark.parametrize("shape", [(1,), (1, 1), ()])
def test_a_temperature_stored_as_a_vector_of_one_is_accepted(tmp_path, trained, shape):
    state = trained[0].state_dict()
    torch.save(state | {"logit_scale": state["logit_scale"].reshape(shape)}, tmp_path / "x.pt")
    target = make_clip()
    load_checkpoint(target, tmp_path / "x.pt")
    assert same(target.state_dict(), state)


def test_a_float64_model_keeps_its_precision_and_training_mode(tmp_path, trained):
    save_checkpoint(tmp_path / "x.pt", model=trained[0], epoch=1, name="run")
    target = make_clip().double().train()
    load_checkpoint(target, tmp_path / "x.pt")
    assert same(
        target.state_dict(),
        {key: tensor.double() for key, tensor in trained[0].state_dict().items()},
    )
    assert target.training


def test_the_optimizers_state_is_not_copied_into_memory(tmp_path):
    """The file is mapped: bytes of entries that nobody uses stay on the disk."""
    buffer = io.BytesIO()
    torch.save(
        {
            "state_dict": {"weight": torch.ones(2, 2), "bias": torch.ones(2)},
            "optimizer": torch.zeros(10),
        },
        buffer,
    )
    (tmp_path / "x.pt").write_bytes(buffer.getvalue())
    stored = read_checkpoint(tmp_path / "x.pt")
    # A mapping of the whole file is one allocation that all tensors point into.
    addresses = [stored["state_dict"]["weight"].data_ptr(), stored["optimizer"].data_ptr()]
    assert 0 < abs(addresses[1] - addresses[0]) < len(buffer.getvalue())
