"""Pickles are read as data: hostile ones import nothing, call nothing and allocate nothing."""

import io
import pickle
import subprocess
import sys
import time
import zipfile

import pytest
import torch
from torch import nn

from landscape.clip.checkpoint import describe_checkpoint, load_checkpoint, read_checkpoint
from landscape.containers.inert import InertUnpickler
from landscape.containers.outline import outline
from landscape.containers.plain import TOO_LONG, plain
from landscape.containers.stand_ins import Global, Inert, NeedsCode, TooLarge
from landscape.errors import CheckpointError

ENTRIES = {
    "epoch": 3,
    "name": "run",
    "state_dict": {"weight": torch.ones(1, 2), "bias": torch.ones(1)},
}


def machine(program, limit=10_000):
    return InertUnpickler(io.BytesIO(program), limit=limit)


class Trace:
    """An object whose construction, state, items and entries each would leave a trace, were they
    real.
    """

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __reduce__(self):
        maker = pickle.loads(f"c{self.module}\n{self.name}\n.".encode())
        return maker, ("made",), {"state": 1}, iter(["item"]), iter([("key", "value")])


@pytest.fixture
def tracer(tmp_path, monkeypatch):
    """A module that writes a file when it is imported, and a class that does so at whatever is done
    to it.
    """
    trace = tmp_path / "trace"
    (tmp_path / "traced_module.py").write_text(
        f"from pathlib import Path\nTRACE = Path({str(trace)!r})\n"
        "def leave(*ignored): TRACE.open('a').write('x')\nleave()\n"
        "class Maker:\n"
        "    def __new__(cls, *ignored): leave(); return object.__new__(cls)\n"
        "    __init__ = __setstate__ = __setitem__ = append = extend = leave\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("traced_module", None)
    yield trace
    sys.modules.pop("traced_module", None)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_no_module_is_imported_and_no_object_is_made(tmp_path, tracer, protocol, zipped):
    path = tmp_path / "x.pt"
    entries = ENTRIES | {"extra": Trace("traced_module", "Maker")}
    torch.save(entries, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert tracer.exists()
    tracer.unlink()
    del sys.modules["traced_module"]
    model = nn.Linear(2, 1)
    info = load_checkpoint(model, path)
    assert info.epoch == 3 and "traced_module.Maker" in info.notes[0]
    assert outline(path).epoch == 3 and describe_checkpoint(path).epoch == 3
    extra = read_checkpoint(path)["extra"]
    assert (extra.name, extra.args, extra.state, extra.items) == (
        "traced_module.Maker",
        ("made",),
        {"state": 1},
        ["item"],
    )
    assert extra.entries == {"key": "value"} and torch.equal(model.weight.data, torch.ones(1, 2))
    assert not tracer.exists() and "traced_module" not in sys.modules
    # The trap is a live one.
    torch.load(path, weights_only=False)
    assert tracer.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'echo'\ntR.",
        b"(S'echo'\nios\nsystem\n.",
        b"(cos\nsystem\nS'echo'\no.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04echo\x85R.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"\x80\x02csubprocess\nPopen\n)\x81.",
        b"c_codecs\nencode\n(S'a'\nS'hex'\ntR.",
        b"cbuiltins\nexec\n.",
        b"ccommands\ngetoutput\n.",
    ],
)
def test_what_no_checkpoint_needs_is_refused_by_name(program):
    with pytest.raises(NeedsCode, match=r"system|eval|exec|Popen|encode|getoutput"):
        machine(program).load()


def test_names_lead_to_no_object_even_where_they_are_called():
    made = machine(b"cbuiltins\ngetattr\n(cbuiltins\ndict\nS'__class__'\ntR(S'x'\ntR.").load()
    assert isinstance(made, Inert) and made.name == "builtins.getattr()"
    assert machine(b"ctorch._utils\n_rebuild_tensor_v2\n.").load() == Global(
        "torch._utils._rebuild_tensor_v2"
    )


@pytest.mark.parametrize(
    "program",
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n(N}S'__defaults__'\nNst0b.",
        b"ccollections\nOrderedDict\n(N}S'x'\nK\x01st0b.",
        b"]}S'append'\nK\x01sb.",
    ],
)
def test_no_attribute_of_anything_is_set(program):
    """The C unpickler would set attributes of torch's own functions so, for the whole process."""
    with pytest.raises((ValueError, IndexError, AttributeError, pickle.UnpicklingError)):
        machine(program).load()


@pytest.mark.parametrize(
    "opcode", [b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00", b"Pid\n", b"\x97", b"\x98"]
)
def test_instructions_that_torch_never_writes_are_unknown(opcode):
    """Extension registry, text identities and out-of-band buffers reach objects of the process."""
    with pytest.raises(KeyError):
        machine(opcode + b".").load()


def test_every_instruction_of_pickle_is_inherited_on_purpose_replaced_or_unknown():
    plain_moves = {
        code[0] for code in vars(sys.modules["landscape.containers.inert"])["_INHERITED"]
    }
    acting = (
        pickle.REDUCE,
        pickle.BUILD,
        pickle.NEWOBJ,
        pickle.NEWOBJ_EX,
        pickle.INST,
        pickle.OBJ,
        pickle.APPEND,
        pickle.APPENDS,
    )
    assert all(
        InertUnpickler.dispatch[code[0]] is not pickle._Unpickler.dispatch[code[0]]
        for code in acting
    )
    own = {
        code
        for code, method in InertUnpickler.dispatch.items()
        if method is not pickle._Unpickler.dispatch[code]
    }
    assert own | plain_moves == set(InertUnpickler.dispatch) and not own & plain_moves
    assert {InertUnpickler.dispatch[code].__module__ for code in own} == {
        "landscape.containers.inert"
    }


def test_keys_whose_hash_takes_exponential_time_are_refused():
    nested = b")q\x000" + b"".join(b"h%ch%c\x86q%c0" % (i, i, i + 1) for i in range(40))
    started = time.process_time()
    with pytest.raises(ValueError, match="a key that is a tuple"):
        machine(b"\x80\x02" + nested + b"}(h\x28K\x01u.").load()
    assert time.process_time() - started < 1


def test_settings_that_refer_to_one_part_again_and_again_are_cut_off():
    value = ["x"]
    for _ in range(60):
        value = [value] * 3
    # Twenty-four levels of three would be 4 * 10**11 lists.
    assert plain({"args": value, "epochs": 3}) == {"args": TOO_LONG, "epochs": 3}
    assert str(plain([value])) == TOO_LONG


@pytest.mark.parametrize(
    "program",
    [
        # One list of 200 elements, copied into 100 sets.
        b"\x80\x02]("
        + b"K\x01" * 200
        + b"eq\x000"
        + b"cbuiltins\nset\nq\x010("
        + b"h\x01h\x00\x85R" * 100
        + b"l.",
        b"X\xc8\x00\x00\x00"
        + b"a" * 200
        + b"q\x000c_codecs\nencode\nq\x010("
        + b"h\x01h\x00X\x06\x00\x00\x00latin1\x86R" * 100
        + b"l.",
        b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x00.",
    ],
)
def test_memory_grows_no_faster_than_the_pickle(program):
    with pytest.raises(TooLarge):
        machine(program, limit=len(program)).load()


def test_a_broadcast_tensor_that_unfolds_to_more_than_the_file_is_refused(tmp_path):
    torch.save({"state_dict": {"w": torch.zeros(1).expand(10_000_000)}}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="declares a tensor of 10000000 elements"):
        describe_checkpoint(tmp_path / "x.pt")


def test_an_outline_needs_neither_torch_nor_the_numbers(tmp_path):
    path = tmp_path / "x.pt"
    torch.save(ENTRIES, path)
    program = (
        "import sys; from pathlib import Path; from landscape.containers.outline import outline; o "
        f"= outline(Path({str(path)!r})); assert 'torch' not in sys.modules; print(o.layout, "
        "o.epoch, o.shapes, o.dtypes)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split(" ", 2)[:2] == ["open_clip", "3"] and "'weight': (1, 2)" in done.stdout
    with zipfile.ZipFile(path) as archive:
        damaged = path.read_bytes().replace(archive.read("x/data/0"), b"\xff" * 8)
    path.write_bytes(damaged)
    assert outline(path).epoch == 3


@pytest.mark.parametrize("zipped", [True, False])
def test_views_of_one_storage_keep_their_strides_and_stay_views(tmp_path, zipped):
    whole = torch.arange(24, dtype=torch.float64).view(4, 6)
    parts = {
        "t": whole.T,
        "corner": whole[1:3, ::2],
        "half": whole.half(),
        "none": whole[:0],
        "number": whole[2, 3],
    }
    torch.save(parts, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    stored = read_checkpoint(tmp_path / "x.pt")
    assert all(
        torch.equal(stored[name], parts[name]) and stored[name].dtype == parts[name].dtype
        for name in parts
    )
    assert stored["t"].untyped_storage().data_ptr() == stored["corner"].untyped_storage().data_ptr()


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float8_e4m3fn, torch.uint16, torch.bool, torch.complex128, torch.int8],
)
def test_every_dtype_is_read_as_torch_reads_it(tmp_path, dtype):
    value = torch.randint(0, 2, (3, 5), generator=torch.Generator().manual_seed(0)).to(dtype)
    torch.save({"w": value}, tmp_path / "x.pt")
    assert torch.equal(
        read_checkpoint(tmp_path / "x.pt")["w"].view(torch.uint8), value.view(torch.uint8)
    )


def test_numbers_of_a_big_endian_machine_are_turned_round(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"w": torch.tensor([1.0, 2.0])}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    entries["x/byteorder"] = b"big"
    entries["x/data/0"] = torch.tensor([1.0, 2.0]).numpy().astype(">f4").tobytes()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    assert read_checkpoint(path)["w"].tolist() == [1.0, 2.0]
