"""Checkpoints of several files: shards, folders of a hub, folders of torch.distributed."""

import dataclasses
import json
import re
import shlex
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file, save_model
from torch import nn

from landscape.clip.checkpoint import describe_checkpoint, load_checkpoint
from landscape.containers.folders import digest_of_checkpoint
from landscape.containers.outline import outline
from landscape.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning")


class Tied(nn.Module):
    """Two layers; with `tie`, one weight."""

    def __init__(self, *, tie=True):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        if tie:
            self.b.weight = self.a.weight


def same(model, state):
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def write_shards(folder, state, suffix="safetensors", metadata=None):
    """One tensor a file, as transformers and huggingface_hub name them."""
    folder.mkdir()
    base = "model" if suffix == "safetensors" else "pytorch_model"
    files = {
        name: f"{base}-{number:05d}-of-{len(state):05d}.{suffix}"
        for number, name in enumerate(state, 1)
    }
    for name, file in files.items():
        (save_file if suffix == "safetensors" else torch.save)({name: state[name]}, folder / file)
    index = folder / f"{base}.{suffix}.index.json"
    index.write_text(
        json.dumps({"metadata": {"total_size": 1, **(metadata or {})}, "weight_map": files})
    )
    return index


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_load_by_their_index_or_their_folder(tmp_path, suffix):
    source = nn.Linear(3, 2)
    index = write_shards(tmp_path / "run", source.state_dict(), suffix)
    for path in (index, index.parent):
        model = nn.Linear(3, 2)
        info = load_checkpoint(model, path)
        assert same(model, source.state_dict()) and info.kind == outline(path).kind == "sharded"
        assert info.num_tensors == 2 and info.sha256 == digest_of_checkpoint(path)
    shard = sorted(index.parent.glob("*-of-*"))[0]
    with pytest.raises(
        CheckpointError, match=f"Name the index of all of them: {re.escape(str(index))}"
    ):
        describe_checkpoint(shard)


def test_a_changed_shard_is_not_the_checkpoint_that_was_listed(tmp_path):
    source = nn.Linear(3, 2)
    index = write_shards(tmp_path / "run", source.state_dict())
    digest = digest_of_checkpoint(index)
    assert describe_checkpoint(index, expected_sha256=digest).sha256 == digest
    shard = sorted(index.parent.glob("*-of-*"))[0]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CheckpointError, match="is not the file that was listed"):
        load_checkpoint(nn.Linear(3, 2), index, expected_sha256=digest)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"weight_map": {"weight": "../x.safetensors"}}, "does not name files beside it"),
        ({"weight_map": {}}, "does not name files beside it"),
        ({"weight_map": {"weight": "none.safetensors"}}, "no such file"),
        (
            {"weight_map": {"other": "model-00001-of-00002.safetensors"}},
            "files of two checkpoints are mixed",
        ),
        ({}, "damaged"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(tmp_path, index, words):
    path = write_shards(tmp_path / "run", nn.Linear(3, 2).state_dict())
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=words):
        describe_checkpoint(path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_of_a_hub_is_its_weights(tmp_path, name):
    source = nn.Linear(3, 2)
    (save_file if name.endswith("safetensors") else torch.save)(
        source.state_dict(), tmp_path / name
    )
    (tmp_path / "config.json").write_text("{}")
    model = nn.Linear(3, 2)
    load_checkpoint(model, tmp_path)
    assert same(model, source.state_dict()) and digest_of_checkpoint(
        tmp_path
    ) == digest_of_checkpoint(tmp_path / name)


def test_a_folder_without_a_checkpoint_says_what_it_holds(tmp_path):
    (tmp_path / "epoch_1.pt").touch()
    with pytest.raises(CheckpointError, match="there are epoch_1.pt"):
        describe_checkpoint(tmp_path)


def test_tied_weights_that_the_file_leaves_out_are_filled_in(tmp_path):
    source = Tied()
    save_model(source, tmp_path / "alias.safetensors")
    state = {name: tensor for name, tensor in source.state_dict().items() if name != "b.weight"}
    save_file(state, tmp_path / "bare.safetensors")
    index = write_shards(tmp_path / "shards", state, metadata={"b.weight": "a.weight"})
    for path in (tmp_path / "alias.safetensors", index):
        for tie in (True, False):
            model = Tied(tie=tie)
            info = load_checkpoint(model, path)
            assert same(model, source.state_dict()) and "'b.weight' is 'a.weight'" in info.notes[0]
    model = Tied()
    assert "the model ties them" in load_checkpoint(model, tmp_path / "bare.safetensors").notes[0]
    assert same(model, source.state_dict())
    with pytest.raises(CheckpointError, match="1 of 4 tensors missing"):
        load_checkpoint(Tied(tie=False), tmp_path / "bare.safetensors")


def test_two_values_for_one_tied_weight_are_refused(tmp_path):
    torch.save(Tied(tie=False).state_dict(), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="different numbers for 'a.weight' and 'b.weight'"):
        load_checkpoint(Tied(), tmp_path / "x.pt")


def test_safetensors_of_every_header_length_load(tmp_path):
    """The low byte of the header's length is 0x80, a pickle's first byte, in 1 of 32 files."""
    path, first = tmp_path / "w.safetensors", set()
    for pad in range(0, 256, 8):
        save_file({"w": torch.zeros(2)}, path, metadata={"pad": "x" * pad})
        first.add(path.read_bytes()[0])
        assert describe_checkpoint(path).settings == {"metadata": {"pad": "x" * pad}}
    assert 0x80 in first


# torch.distributed.checkpoint


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


def test_a_distributed_checkpoint_is_read_from_its_folder(tmp_path):
    source = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    dcp.save(
        {"model": source.state_dict(), "epoch": 3, "iteration": 9},
        checkpoint_id=tmp_path / "step 8",
        no_dist=True,
    )
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    info = load_checkpoint(model, tmp_path / "step 8")
    assert same(model, source.state_dict()) and (info.kind, info.layout) == (
        "distributed",
        "detectron2",
    )
    assert outline(tmp_path / "step 8").shapes["0.weight"] == (2, 3)
    for part in (".metadata", "__0_0.distcp"):
        with pytest.raises(
            CheckpointError,
            match=re.escape(f"Name the folder that holds all of it: {tmp_path / 'step 8'}"),
        ):
            describe_checkpoint(tmp_path / "step 8" / part)
    shard = tmp_path / "step 8/__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="is shorter than .metadata beside it says"):
        load_checkpoint(model, tmp_path / "step 8")


@pytest.mark.filterwarnings("ignore")
def test_fully_sharded_tensors_are_read_whole(tmp_path, one_process):
    from torch.distributed.fsdp import fully_shard

    source = nn.Linear(3, 2)
    state = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    fully_shard(source)
    dcp.save({"model": source.state_dict()}, checkpoint_id=tmp_path / "fsdp")
    torch.save(source.state_dict(), tmp_path / "dtensor.pt")
    for path in (tmp_path / "fsdp", tmp_path / "dtensor.pt"):
        model = nn.Linear(3, 2)
        load_checkpoint(model, path)
        assert same(model, state)


def shard_by_hand(folder, whole, cuts):
    """Write a tensor in pieces of rows, as ranks of a real run do, by torch's own writer."""
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        MetadataIndex,
        TensorProperties,
    )
    from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

    class Planner(dcp.DefaultSavePlanner):
        def create_local_plan(self):
            plan = super().create_local_plan()
            items = []
            for start, end in zip((0, *cuts), (*cuts, len(whole))):
                chunk = ChunkStorageMetadata(
                    torch.Size([start, 0]), torch.Size([end - start, whole.shape[1]])
                )
                data = TensorWriteData(
                    chunk, TensorProperties.create_from_tensor(whole), whole.size()
                )
                items.append(
                    WriteItem(
                        MetadataIndex("w", torch.Size([start, 0])),
                        WriteItemType.SHARD,
                        tensor_data=data,
                    )
                )
            self.plan = dataclasses.replace(plan, items=items)
            return self.plan

        def resolve_data(self, item):
            start = item.index.offset[0]
            return whole[start : start + item.tensor_data.chunk.sizes[0]].clone()

    dcp.save({"w": whole}, checkpoint_id=folder, planner=Planner(), no_dist=True)


def test_pieces_of_a_tensor_are_put_together(tmp_path):
    whole = torch.arange(15.0).view(5, 3)
    shard_by_hand(tmp_path / "run", whole, (2, 3))
    model = nn.Module()
    model.w = nn.Parameter(torch.zeros(5, 3))
    load_checkpoint(model, tmp_path / "run")
    assert torch.equal(model.w.data, whole)


def test_a_distributed_checkpoint_that_is_not_read_here_comes_with_a_command_that_works(
    tmp_path, monkeypatch
):
    """Whatever the reason: here a tensor of a class that is not known."""
    source = nn.Linear(3, 2)
    dcp.save({"model": source.state_dict()}, checkpoint_id=tmp_path / "a run's", no_dist=True)
    monkeypatch.setattr("landscape.containers.distributed._check_cover", refuse)
    with pytest.raises(CheckpointError, match="format_utils dcp_to_torch") as caught:
        describe_checkpoint(tmp_path / "a run's")
    monkeypatch.undo()
    command = shlex.split(re.search(r"python -m .*$", str(caught.value)).group())
    subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True)
    model = nn.Linear(3, 2)
    load_checkpoint(model, tmp_path / "a run's.pt")
    assert same(model, source.state_dict())


def refuse(*ignored):
    from landscape.containers.distributed import _Unreadable

    raise _Unreadable("a reason")


def test_metadata_that_point_out_of_the_folder_are_refused(tmp_path):
    dcp.save(nn.Linear(3, 2).state_dict(), checkpoint_id=tmp_path / "run", no_dist=True)
    (tmp_path / "run/__0_0.distcp").rename(tmp_path / "outer.pth")
    metadata = tmp_path / "run/.metadata"
    metadata.write_bytes(metadata.read_bytes().replace(b"__0_0.distcp", b"../outer.pth"))
    with pytest.raises(CheckpointError, match="do not say where the pieces lie"):
        describe_checkpoint(tmp_path / "run")


@pytest.mark.parametrize("name", ["posix.system", "builtins.eval"])
def test_metadata_that_ask_for_code_are_refused(tmp_path, name):
    dcp.save(nn.Linear(3, 2).state_dict(), checkpoint_id=tmp_path / "run", no_dist=True)
    module, function = name.split(".")
    (tmp_path / "run/.metadata").write_bytes(f"c{module}\n{function}\n(S'exit 1'\ntR.".encode())
    with pytest.raises(CheckpointError, match=f"asks for Python's '{name}'"):
        describe_checkpoint(tmp_path / "run")
