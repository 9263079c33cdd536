"""Checkpoints read by rows: each of several processes reads its part of every tensor, from every
kind of file.

Truth: the tensors in memory that torch, safetensors and torch.distributed.checkpoint wrote.
"""

import json
import multiprocessing
import os
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from landscape.clip import checkpoint_rows, stored_rows, unread_tensors
from landscape.clip.checkpoint import check_fit, describe_checkpoint, load_checkpoint
from landscape.clip.checkpoint_rows import CheckpointRows, VerifiedFiles, load_rows, verify_once
from landscape.containers.folders import digest_of_checkpoint, read_weights
from landscape.errors import CheckpointError
from landscape.memory import peak_memory, return_freed_memory
from tests.clip.test_checkpoint_folders import Tied, shard_by_hand, write_shards
from tests.clip.test_fit import as_transformers, make_clip

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning")


def tensors():
    """Shapes and dtypes of all sorts; some are no rows one after another in their file."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(7, 6, 5, generator=generator)
    return {
        "matrix": base[0].clone(),
        "odd": torch.arange(21, dtype=torch.uint8).view(7, 3),
        "cube": base,
        "half": base[:, 0].bfloat16(),
        "double": base[1].double(),
        "complex": torch.complex(base[0], base[1]),
        "signs": base[2] > 0,
        "counts": torch.arange(7),
        "none": torch.empty(0, 4),
        "single": torch.tensor(3.5),
    }


def views():
    """Tensors that torch.save stores as views."""
    base = tensors()["cube"]
    return {
        "columns": base[0].T,
        "swapped": base.permute(1, 2, 0),
        "third": base.flatten()[::3],
        "repeated": base[0, 0].expand(4, 5),
        "inner": base[2:6, 1:4, 1:3],
        "tied": base[2:6],
    }


def write(folder, kind, state):
    """A checkpoint of this kind, by its own writer."""
    if kind == "safetensors":
        save_file(
            {name: tensor.contiguous() for name, tensor in state.items()}, folder / "x.safetensors"
        )
        return folder / "x.safetensors"
    if kind == "shards":
        return write_shards(folder / "run", state, "safetensors")
    if kind == "distributed":
        dcp.save({"model": state}, checkpoint_id=folder / "run", no_dist=True)
        return folder / "run"
    torch.save(state, folder / "x.pt", _use_new_zipfile_serialization=kind == "torch")
    return folder / "x.pt"


@pytest.fixture(params=[1 << 20, 64], ids=["whole", "blocks of 64 bytes"])
def blocks(request, monkeypatch):
    """Small tensors also take the way of large ones, which are read block by block."""
    monkeypatch.setattr(stored_rows, "_BLOCK", request.param)
    monkeypatch.setattr(unread_tensors, "_BLOCK", min(request.param, 7))


@pytest.mark.parametrize(
    "kind", ["safetensors", "shards", "torch", "torch before 1.6", "distributed"]
)
def test_rows_are_those_that_were_written(tmp_path, kind, blocks):
    state = tensors() | (views() if kind.startswith("torch") else {})
    with CheckpointRows(write(tmp_path, kind, state)) as checkpoint:
        assert checkpoint.shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}
        assert checkpoint.dtypes == {name: tensor.dtype for name, tensor in state.items()}
        for name, tensor in state.items():
            assert torch.equal(checkpoint.read(name), tensor)
            for start, stop in (
                [(0, 1), (1, 4), (2, 2)] if len(tensor.shape) and len(tensor) else []
            ):
                rows = checkpoint.read(name, start, stop)
                assert torch.equal(rows, tensor[start:stop]) and rows.dtype == tensor.dtype
                assert rows.untyped_storage().nbytes() == rows.nbytes, (
                    "more was read than was asked for"
                )


def test_bytes_of_another_order_are_turned(tmp_path):
    big = tensors()["double"].numpy().astype(">f8").tobytes()
    path = tmp_path / "x.pt"
    torch.save({"w": tensors()["double"]}, path)
    content = path.read_bytes()
    path.write_bytes(
        content.replace(tensors()["double"].numpy().tobytes(), big).replace(b"little", b"big\0\0\0")
    )
    # The checksums are those of before.
    truth = tensors()["double"]
    with CheckpointRows(path, verified=VerifiedFiles.of(path, "0" * 64, [path])) as checkpoint:
        assert torch.equal(checkpoint.read("w", 2, 5), truth[2:5])


@pytest.mark.parametrize("cuts", [(2, 3), (1, 2, 3, 4)])
def test_only_the_pieces_with_these_rows_are_read(tmp_path, cuts):
    whole = torch.arange(15.0).view(5, 3)
    shard_by_hand(tmp_path / "run", whole, cuts)
    with CheckpointRows(tmp_path / "run") as checkpoint:
        for start in range(5):
            for stop in range(start, 6):
                assert torch.equal(checkpoint.read("w", start, stop), whole[start:stop])


# Models


def split(rank, world_size):
    """Rows of each process as torch.chunk and DTensor divide them: uneven, the last ones empty."""

    def rows_of(name, shape):
        size = -(-shape[0] // world_size)
        return min(rank * size, shape[0]), min((rank + 1) * size, shape[0])

    return rows_of


def on_meta(model):
    """The model with parameters on the meta device, ties kept, and buffers as they are."""
    moved = {parameter: nn.Parameter(parameter.to("meta")) for parameter in model.parameters()}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            module._parameters[name] = moved.get(parameter)
    return model


def put_together(model, path, world_size=3, **options):
    """The state dict of a model from the rows of all processes."""
    parts = [
        load_rows(model, path, split(rank, world_size), **options) for rank in range(world_size)
    ]
    whole = {
        name: torch.cat([part.parameters[name] for part in parts]) if rows.ndim else rows
        for name, rows in parts[0].parameters.items()
    }
    assert all(
        torch.equal(part.buffers[name], value)
        for part in parts
        for name, value in parts[0].buffers.items()
    )
    return whole | parts[0].buffers, parts[0].info


def assert_same(got, model):
    expected = {name: parameter.detach() for name, parameter in model.named_parameters()} | dict(
        model.named_buffers()
    )
    assert set(got) == set(expected) & set(model.state_dict())
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, expected[name].to(tensor.dtype), rtol=0, atol=0)


def network():
    """Seven, three and one rows for three processes, and buffers."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 7), nn.BatchNorm1d(7), nn.Linear(7, 3), nn.Linear(3, 1))
    model.register_parameter("logit_scale", nn.Parameter(torch.tensor(2.5)))
    model[1](torch.randn(5, 7))
    return model


def layouts(state):
    """The same weights as several trainers write them."""
    ema = {
        name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in state.items()
    }
    return {
        "open_clip": (
            {
                "epoch": 3,
                "name": "run",
                "state_dict": {f"module.{name}": t for name, t in state.items()},
            },
            "online",
        ),
        "compiled": ({"model": {f"_orig_mod.{name}": t for name, t in state.items()}}, "online"),
        "lightning": ({"state_dict": {f"net.{name}": t for name, t in state.items()}}, "online"),
        "average": ({"state_dict": ema, "state_dict_ema": state, "epoch": 1}, "ema"),
        "scalar": ({"state_dict": state | {"logit_scale": state["logit_scale"][None]}}, "online"),
        "optimizer": (
            {"model": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(9, 9)}}}},
            "online",
        ),
    }


@pytest.mark.parametrize("layout", list(layouts(network().state_dict())))
@pytest.mark.parametrize("kind", ["torch", "distributed"])
def test_names_and_copies_are_found_as_by_the_loader_of_whole_models(tmp_path, layout, kind):
    source = network()
    contents, copy = layouts(source.state_dict())[layout]
    if kind == "torch":
        path = tmp_path / "x.pt"
        torch.save(contents, path)
    else:
        path = tmp_path / "run"
        dcp.save(contents, checkpoint_id=path, no_dist=True)
    whole, info = put_together(on_meta(network()), path, weights=copy)
    assert_same(whole, source)
    assert info == load_checkpoint(network(), path, weights=copy)


@pytest.mark.parametrize("kind", ["torch", "safetensors", "distributed"])
def test_matrices_that_are_transposed_and_joined_are_read_by_rows(tmp_path, kind, blocks):
    source = make_clip()
    path = write(tmp_path, kind, dict(as_transformers(source.state_dict())))
    # Of the 96 rows of q, k and v, cuts lie within each.
    whole, info = put_together(on_meta(make_clip()), path, world_size=5)
    assert_same(whole, source)
    assert "q, k and v joined" in info.notes[0]


def test_numbers_take_the_dtype_of_the_model(tmp_path, blocks):
    path = write(tmp_path, "distributed", network().state_dict())
    whole, info = put_together(on_meta(network().double()), path)
    assert_same(whole, network())
    assert {whole["0.weight"].dtype, whole["1.running_mean"].dtype} == {torch.float64}
    assert (
        whole["1.num_batches_tracked"].dtype == torch.int64
        and "from float32 to float64" in info.notes[-1]
    )


@pytest.mark.parametrize("twice", [False, True])
def test_tied_weights_of_a_model_on_the_meta_device_are_read_once(tmp_path, twice):
    source = Tied()
    stored = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    if not twice:
        del stored["b.weight"]
    path = write(tmp_path, "safetensors", stored)
    whole, _ = put_together(on_meta(Tied()), path, world_size=2)
    assert_same(whole, source)
    if twice:
        save_file(stored | {"b.weight": stored["a.weight"] + 1}, path)
        with pytest.raises(
            CheckpointError, match="different numbers for 'a.weight' and 'b.weight'"
        ):
            load_rows(on_meta(Tied()), path, split(0, 2))


def test_a_fit_is_checked_without_reading_numbers(tmp_path, monkeypatch):
    path = write(tmp_path, "distributed", dict(as_transformers(make_clip().state_dict())))
    monkeypatch.setattr(
        stored_rows.StoredRows, "copy", lambda *ignored: pytest.fail("numbers were read")
    )
    assert check_fit(make_clip(), path).layout


# Memory


@pytest.fixture(scope="module")
def large_files(tmp_path_factory):
    """The same 32 MB in every kind of file, and as float64."""
    generator = torch.Generator().manual_seed(2)
    state = {name: torch.rand(2048, 2048, generator=generator) for name in "ab"}
    folder = tmp_path_factory.mktemp("large")
    paths = {kind: write(folder, kind, state) for kind in ("safetensors", "torch", "distributed")}
    paths["float64"] = folder / "double.pt"
    torch.save({name: tensor.double() for name, tensor in state.items()}, paths["float64"])
    return paths


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK),
    reason="the peak of memory cannot be set back here",
)
@pytest.mark.parametrize("kind", ["safetensors", "torch", "distributed", "float64"])
def test_a_quarter_of_the_rows_takes_a_quarter_of_the_memory(large_files, kind):
    """All resident memory counts, pages that are mapped from a file too."""
    model = nn.Module()
    model.a, model.b = (nn.Parameter(torch.empty(2048, 2048, device="meta")) for _ in range(2))
    verified = VerifiedFiles.of(large_files[kind], "0" * 64, read_weights(large_files[kind]).files)

    def load():
        return load_rows(model, large_files[kind], lambda *ignored: (1024, 1536), verified=verified)

    load()
    held, taken = 8 << 20, []
    for _ in range(3):
        return_freed_memory()
        # The peak begins anew at what is resident now.
        Path("/proc/self/clear_refs").write_text("5")
        before = peak_memory()
        loaded = load()
        taken.append(peak_memory() - before)
        assert sum(tensor.nbytes for tensor in loaded.parameters.values()) == held
        del loaded
    # A block of 1 MB is converted, blocks of 256 kB are checked for NaN; a whole tensor has 16 MB.
    # The least counts: the allocator of a process that has run other tests may keep freed blocks.
    assert 0.9 * held < min(taken) < held + (5 << 20)


# What does not fit, is damaged or is not there


def message(path, model=None, rows_of=split(0, 2), **options):
    with pytest.raises(CheckpointError) as caught:
        load_rows(on_meta(network() if model is None else model), path, rows_of, **options)
    assert str(caught.value).startswith(str(path).rpartition("/")[0]) and "\n" not in str(
        caught.value
    )
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("2.weight"), "1 of 12 tensors missing ('2.weight')"),
        (
            lambda state: state.update(extra=torch.ones(2)),
            "1 tensors that the model does not have ('extra')",
        ),
        (
            lambda state: state.update({"0.weight": torch.ones(7, 5)}),
            "'0.weight' expected (7, 4), got (7, 5)",
        ),
        (
            lambda state: state.update({"0.bias": torch.arange(7)}),
            "'0.bias' is torch.int64, but the model's is torch.float32",
        ),
    ],
)
def test_what_does_not_fit_is_named_as_by_the_loader_of_whole_models(tmp_path, change, words):
    state = network().state_dict()
    change(state)
    path = write(tmp_path, "torch", dict(state))
    assert words in message(path)
    with pytest.raises(CheckpointError, match=re.escape(message(path))):
        load_checkpoint(network(), path)


def test_numbers_that_are_not_finite_are_refused_by_who_reads_them(tmp_path):
    state = network().state_dict()
    state["0.weight"][6, 1] = torch.nan
    path = write(tmp_path, "safetensors", state)
    load_rows(on_meta(network()), path, split(0, 2))
    assert "'0.weight' with 1 of 12" in message(path, rows_of=split(1, 2))


def test_buffers_without_numbers_are_refused(tmp_path):
    state = {
        name: tensor for name, tensor in network().state_dict().items() if "num_batches" not in name
    }
    path = write(tmp_path, "safetensors", state)
    assert_same(put_together(on_meta(network()), path)[0], network())
    with torch.device("meta"):
        model = network()
    assert "does not store '1.num_batches_tracked'" in message(path, model)
    model = network()
    model.register_buffer("mask", torch.empty(3, device="meta"), persistent=False)
    assert "does not store 'mask', which the model computes" in message(path, model)


def test_shards_that_are_missing_cut_or_listed_wrongly_are_named(tmp_path):
    index = write(tmp_path, "shards", network().state_dict())
    files = json.loads(index.read_text())
    shard = index.parent / files["weight_map"]["2.weight"]
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    assert f"{shard}: is damaged or cut short" in message(index)
    shard.unlink()
    assert f"{shard}: there is no such file" in message(index)
    shard.write_bytes(content)
    files["weight_map"]["lost"] = shard.name
    index.write_text(json.dumps(files))
    assert "1 tensors are not where it says" in message(index)


def test_folders_of_torch_distributed_that_lack_pieces_are_named(tmp_path):
    folder = write(tmp_path, "distributed", network().state_dict())
    pieces = folder / "__0_0.distcp"
    content = pieces.read_bytes()
    pieces.write_bytes(content[:-10])
    assert f"{pieces}: is shorter than .metadata beside it says" in message(folder)
    pieces.unlink()
    assert str(pieces) in message(folder)
    pieces.write_bytes(content)
    (folder / ".metadata").write_bytes(b"cposix\nsystem\n(S'exit 1'\ntR.")
    assert "asks for Python's 'posix.system'" in message(folder)


@pytest.mark.parametrize("kind", ["safetensors", "torch", "torch before 1.6", "distributed"])
def test_a_file_that_becomes_shorter_while_it_is_read_is_an_error(tmp_path, kind):
    path = write(tmp_path, kind, {"w": torch.ones(50_000)})
    file = path / "__0_0.distcp" if path.is_dir() else path
    with CheckpointRows(path) as checkpoint:
        os.truncate(file, 100_000)
        with pytest.raises(
            CheckpointError, match=f"{file}: is damaged or cut short .*became shorter"
        ):
            checkpoint.read("w", 30_000, 50_000)


def test_rows_and_names_that_are_not_there_are_refused(tmp_path):
    path = write(tmp_path, "safetensors", network().state_dict())
    with CheckpointRows(path) as checkpoint:
        for rows in [(0, 8), (-1, 2), (3, 2)]:
            with pytest.raises(
                ValueError,
                match=re.escape(f"'0.weight' of shape (7, 4) has no rows [{rows[0]}, {rows[1]})"),
            ):
                checkpoint.read("0.weight", *rows)
        with pytest.raises(ValueError, match="'logit_scale' of shape .* has no rows .*, all of it"):
            checkpoint.read("logit_scale", 0, 0)
        with pytest.raises(CheckpointError, match="has no tensor 'x' among its 12"):
            checkpoint.read("x")
    with pytest.raises(ValueError, match="has no rows"):
        load_rows(on_meta(network()), path, lambda name, shape: (0, shape[0] + 1))
    with pytest.raises(ValueError, match='"online" or "ema"'):
        CheckpointRows(path, weights="both")


def test_a_dtype_that_torch_does_not_read_is_named(tmp_path):
    header = json.dumps({"w": {"dtype": "F4", "shape": [2, 4], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match="'w' is stored as F4, which is not read here"):
        CheckpointRows(path)


def test_digest_and_checksums_are_computed_unless_they_are_known(tmp_path, monkeypatch):
    path = write(tmp_path, "torch", network().state_dict())
    verified = verify_once(path)
    assert verified.sha256 == digest_of_checkpoint(path) == describe_checkpoint(path).sha256
    with pytest.raises(CheckpointError, match="is not the file that was listed"):
        load_rows(on_meta(network()), path, split(0, 2), expected_sha256="0" * 64)
    with monkeypatch.context() as patched:
        patched.setattr("landscape.clip.checkpoint_state.digest_of_checkpoint", pytest.fail)
        assert (
            load_rows(on_meta(network()), path, split(0, 2), verified=verified).info.sha256
            == verified.sha256
        )
    content = bytearray(path.read_bytes())
    content[content.index(network().state_dict()["0.weight"].numpy().tobytes()) + 2] ^= 1
    path.write_bytes(content)
    assert "changed since they were written" in message(path)
    with pytest.raises(CheckpointError, match="changed since they were written"):
        verify_once(path)
    # What was verified is not what is there.
    assert "is not the file that was verified" in message(path, verified=verified)


def test_what_was_verified_must_be_what_is_expected_and_what_is_read(tmp_path):
    path = write(tmp_path, "torch", dict(network().state_dict()))
    verified = verify_once(path, expected_sha256=digest_of_checkpoint(path).upper())
    load_rows(
        on_meta(network()), path, split(0, 2), expected_sha256=verified.sha256, verified=verified
    )
    assert "is not the file that was listed" in message(
        path, expected_sha256="0" * 64, verified=verified
    )
    with pytest.raises(ValueError, match="verified must be what verify_once returned, got a str"):
        load_rows(on_meta(network()), path, split(0, 2), verified=verified.sha256)
    (tmp_path / "other").mkdir()
    other = write(
        tmp_path / "other",
        "torch",
        {name: tensor + 1 for name, tensor in network().state_dict().items()},
    )
    assert other.stat().st_size == path.stat().st_size
    assert "is not the file that was verified" in message(other, verified=verified)

    def replaced_meanwhile(name, shape):
        os.replace(other, path)
        return 0, shape[0]

    rows = iter([replaced_meanwhile])
    rows_of = split(0, 2)
    said = message(
        path, rows_of=lambda name, shape: next(rows, rows_of)(name, shape), verified=verified
    )
    assert "is not the file that was verified" in said


# Two processes


def write_and_read(rank, folder):
    """What each of two processes does; its answers become a file."""
    # The threads of the process that was forked are not here.
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    generator = torch.Generator().manual_seed(3)
    whole = {
        "rows": torch.randn(5, 4, generator=generator),
        "columns": torch.randn(3, 7, generator=generator),
        "one": torch.randn(1, 2, generator=generator),
        "copies": torch.randn(6, generator=generator),
        "scale": torch.tensor(1.25),
    }
    placements = {"rows": Shard(0), "columns": Shard(1), "one": Shard(0)}
    state = {
        name: distribute_tensor(tensor, mesh, [placements.get(name, Replicate())])
        for name, tensor in whole.items()
    }
    dcp.save({"model": state}, checkpoint_id=folder / "run")
    assert {path.name for path in (folder / "run").glob("*.distcp")} == {
        "__0_0.distcp",
        "__1_0.distcp",
    }
    model = nn.Module()
    for name, tensor in whole.items():
        model.register_parameter(name, nn.Parameter(tensor.to("meta")))
    verified = verify_once(folder / "run")

    def rows_of(name, shape):
        """Cut elsewhere than DTensor does, so that each process reads pieces of both."""
        cut = (shape[0] + 3) // 4
        return (0, cut) if rank == 0 else (cut, shape[0])

    loaded = load_rows(model, folder / "run", rows_of, verified=verified)
    for name, tensor in whole.items():
        part = tensor[slice(*rows_of(name, tensor.shape))] if tensor.ndim else tensor
        assert torch.equal(loaded.parameters[name], part), name

    def refused(path, **options):
        with pytest.raises(BaseException) as caught:
            verify_once(path, **options)
        return f"{type(caught.value).__name__}: {caught.value}"

    def failing(*args):
        raise MemoryError("no room for a digest")

    # As one file that only the first process sees, and as copies on two machines.
    own = folder / f"machine {rank}"
    own.mkdir()
    torch.save({"w": torch.ones(3 + 100 * rank)}, own / "x.pt")
    dist.barrier()
    answers = [
        verified.sha256,
        refused(folder / "machine 0/x.pt" if rank == 0 else folder / "gone.pt"),
        refused(folder / "machine 0/x.pt", expected_sha256="0" * 64),
        refused(own / "x.pt"),
    ]
    # What is no CheckpointError, in the process that computes the digest alone.
    if rank == 0:
        checkpoint_rows.read_with_digest = failing
    answers.append(refused(folder / "run"))
    (folder / f"{rank}.json").write_text(json.dumps(answers))
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_two_processes_read_what_two_wrote_and_agree_on_what_is_wrong(tmp_path):
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=write_and_read, args=(rank, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
        process.kill()
    assert [process.exitcode for process in ranks] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first[0] == second[0] == digest_of_checkpoint(tmp_path / "run")
    assert first[1] == second[1] and f"{tmp_path / 'gone.pt'}: there is no such file" in first[1]
    assert first[2] == second[2] and "is not the file that was listed" in first[2]
    for line in (first[3], second[3]):
        assert (
            "is not the same for all processes (process 0 sees 1 file of " in line
            and "process 1 1 file of" in line
        )
    assert first[4] == "MemoryError: no room for a digest"
    expected = (
        f"{tmp_path / 'run'}: was not verified, because process 0 failed, so all stop. It says: "
        f"{first[4]}"
    )
    assert second[4] == f"CheckpointError: {expected}"
