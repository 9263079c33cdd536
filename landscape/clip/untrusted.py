"""Read a file of weights that nobody vouches for, without running anything that it contains.

Three kinds are read: what torch.save writes (a zip archive since torch 1.6, a sequence of pickles before), and safetensors.
A pickle is a program. The one inside a torch file is first disassembled, not run, and refused by name if it asks for
anything but tensors and plain containers; then torch's own weights-only unpickler reads it. Sizes are checked before
anything is allocated: no torch file is compressed, so one that declares more than it holds is a bomb.

Weights-only alone has not been enough: before torch 2.10 a crafted file could corrupt memory (GHSA-63cw-57p8-fm3p), and the
functions it still allows can make 64 GB out of a hundred bytes (nested `_codecs.encode(..., "hex")`). It is also too strict
for what training runs have saved: command lines, and learning rates that NumPy computed (open_clip before 3).
"""

import pickletools
import re
import struct
import zipfile
import zlib
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from landscape.errors import CheckpointError

TORCH, TORCH_LEGACY, SAFETENSORS = "torch", "torch before 1.6", "safetensors"

_ZIP_END = 22
# The disassembly costs about 0.4 microseconds per byte; the pickle of a CLIP ViT-B/16 with its AdamW state is 0.13 MB.
_LARGEST_PICKLE = 16 << 20
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

_HARMLESS = re.compile(
    r"collections\.(OrderedDict|Counter)|builtins\.(set|complex)"
    r"|torch\.(Size|device|serialization\._get_layout|nn\.parameter\.Parameter|(cuda\.|storage\.)?\w*Storage)"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state)"
    r"|torch\.(b?float|half|double|u?int|short|long|bool|complex)\w*"
)


_DISCARDED_NAMES = ("argparse.Namespace", "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
# How pickles of protocol 2 spell bytes, those of a NumPy scalar among them.
_BYTES = "_codecs.encode"
_LONGEST_SCALAR = 64


class _Discarded:
    """What a command line (argparse.Namespace) or a NumPy scalar becomes: nothing of what the file says of it is kept.

    Training scripts save them beside the weights (timm, DeiT, SLIP, mamba-clip the one, open_clip before 3 the other). The
    real Namespace would be given attributes of the file's choosing, `__class__` and `__setstate__` among them.
    """

    __slots__ = ()

    def __init__(self, *ignored: Any) -> None:
        pass

    def __setstate__(self, ignored: Any) -> None:
        pass


class _Name(NamedTuple):
    """A Python object that a pickle asks for."""

    name: str


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """The sentence for a file that the operating system does not give us."""
    if isinstance(error, FileNotFoundError):
        return CheckpointError(f"{path}: there is no such file. Correct the path, or write it with `landscape train`.")
    if isinstance(error, IsADirectoryError):
        return CheckpointError(f"{path}: is a folder, but a checkpoint is one file. Give the file inside it.")
    return CheckpointError(f"{path}: cannot be read ({error.strerror or error}). Check its permissions.")


def read_untrusted(path: Path, *, verified: bool = False) -> tuple[str, Any]:
    """The kind of a file, and what is stored in it.

    Tensors are on the CPU and, except in files before torch 1.6, mapped from the file: what is not used is not copied.

    Args:
        verified: The file's sha256 is known to be right. Otherwise the checksums that torch.save wrote are compared, which
            torch.load does not do: a flipped bit in a weight passes it.

    Returns:
        TORCH, TORCH_LEGACY or SAFETENSORS; and the stored object, of which nothing is promised yet.

    Raises:
        CheckpointError: If the file is missing, truncated, no file of weights, would need code to be run, or declares
            more data than it holds.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            kind = _kind(path, file, size)
            if kind == TORCH:
                _check_torch_zip(path, file, size, verified=verified)
            elif kind == TORCH_LEGACY:
                _check_torch_legacy(path, file, size)
    except OSError as error:
        raise unreadable(path, error) from error
    return kind, _load_safetensors(path) if kind == SAFETENSORS else _load_torch(path, mmap=kind == TORCH)


def _kind(path: Path, file: BinaryIO, size: int) -> str:
    """By content, never by the file's name."""
    head = file.read(9)
    if size == 0:
        raise CheckpointError(f"{path}: is empty (0 bytes), so writing it was interrupted. Write it again.")
    if head[:4] == b"PK\x03\x04":
        return TORCH
    if head[:1] == b"\x80":
        return TORCH_LEGACY
    if head[8:9] == b"{":
        return SAFETENSORS
    raise CheckpointError(
        f"{path}: is not a checkpoint (it begins with {head[:4]!r}); expected what torch.save or safetensors writes. "
        "Check that the path names the weights and that a download is complete."
    )


def _check_torch_zip(path: Path, file: BinaryIO, size: int, *, verified: bool) -> None:
    """Refuse an archive that torch.save did not write whole, before torch opens it."""
    # Without a comment there is one place for the end record, so zipfile and torch's reader cannot disagree on it.
    file.seek(max(size - _ZIP_END, 0))
    if file.read(4) != b"PK\x05\x06":
        raise CheckpointError(
            f"{path}: does not end, after {size} bytes, in the directory that ends files of torch.save, so it is cut short or "
            "something was appended. Copy it again, or train that epoch again."
        )
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
        program = _check_entries(path, entries, size)
        if not verified:
            _check_sums(path, file, entries)
        _seek_entry(file, program)
        _check_pickle(path, _disassemble(path, file.read(program.file_size)), size)
    except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, EOFError) as error:
        raise _damaged(path, error) from error


def _check_entries(path: Path, entries: list[zipfile.ZipInfo], size: int) -> zipfile.ZipInfo:
    """The entry that is the pickle."""
    names = [entry.filename for entry in entries]
    programs = [entry for entry in entries if entry.filename.partition("/")[2] == "data.pkl"]
    if any(name.partition("/")[2] == "constants.pkl" for name in names):
        raise CheckpointError(
            f"{path}: is a TorchScript program, not a file of weights, and is not run here. Where you trust it, save its "
            "weights: torch.save(torch.jit.load(file).state_dict(), new_file)."
        )
    if not programs:
        raise CheckpointError(
            f"{path}: is a zip archive, but not one of torch.save (it has no data.pkl). Give the checkpoint itself."
        )
    declared = sum(entry.file_size for entry in entries)
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1]
    if packed or declared > size:
        raise CheckpointError(
            f"{path}: unpacks to {declared} bytes from a file of {size}, {len(packed)} of {len(entries)} entries compressed. "
            "torch.save never compresses, so the archive was made to exhaust memory, or repacked. Get the original file."
        )
    if len({name.lower() for name in names}) < len(names) or len({name.partition("/")[0] for name in names}) > 1:
        raise CheckpointError(f"{path}: holds several archives in one, which torch.save never writes. Get the original file.")
    return programs[0]


def _seek_entry(file: BinaryIO, entry: zipfile.ZipInfo) -> None:
    """Stand on the first byte of an uncompressed entry: past its local header, name and padding."""
    file.seek(entry.header_offset + 26)
    file.seek(sum(struct.unpack("<HH", file.read(4))), 1)


def _check_sums(path: Path, file: BinaryIO, entries: list[zipfile.ZipInfo]) -> None:
    # torch.save writes 0 where its config.save.compute_crc32 is off.
    for entry in (entry for entry in entries if entry.CRC):
        _seek_entry(file, entry)
        checksum, left = 0, entry.file_size
        while left and (chunk := file.read(min(left, 1 << 24))):
            checksum, left = zlib.crc32(chunk, checksum), left - len(chunk)
        if checksum != entry.CRC:
            raise CheckpointError(
                f"{path}: the bytes of its entry {entry.filename} changed since they were written (checksum expected "
                f"{entry.CRC:08x}, got {checksum:08x}). Copy it again, or train that epoch again."
            )


def _check_torch_legacy(path: Path, file: BinaryIO, size: int) -> None:
    """Magic number, version, system, the object, the storage keys: five pickles, then the raw data."""
    file.seek(0)
    try:
        magic = list(_disassemble(path, file))
        if not any(argument == _LEGACY_MAGIC for _, argument in magic):
            _check_pickle(path, magic, size)
            raise CheckpointError(
                f"{path}: is a Python pickle, but not one of torch.save, and is not loaded: a pickle is a program. "
                "Save the weights with torch.save(model.state_dict(), file) or as safetensors."
            )
        for _ in range(4):
            _check_pickle(path, _disassemble(path, file), size)
    except (ValueError, EOFError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error


def _disassemble(path: Path, program: Any) -> Iterator[tuple[str, Any]]:
    """(opcode, argument) of one pickle, without executing it.

    Raises:
        ValueError: If the stream is no pickle or ends within one; pickletools says it so.
    """
    for opcode, argument, position in pickletools.genops(program):
        if position is not None and position > _LARGEST_PICKLE:
            raise CheckpointError(
                f"{path}: its pickle is longer than {_LARGEST_PICKLE >> 20} MB, but that of a large model is below 1 MB. Save "
                "the weights alone: torch.save(model.state_dict(), file)."
            )
        yield opcode.name, argument


def _resolve(program: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """(opcode, what it pushes) where that is a name, a string or an integer, else None; the memo is followed."""
    memo: dict[Any, Any] = {}
    top: Any = None
    before: Any = None
    for opcode, argument in program:
        if opcode in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = top
            continue
        if opcode in ("GLOBAL", "INST"):
            pushed: Any = _Name(_current_name(*argument.split(" ", 1)))
        elif opcode == "STACK_GLOBAL":
            pushed = _Name(_current_name(str(before), str(top)))
        elif opcode in ("BINGET", "LONG_BINGET", "GET"):
            pushed = memo.get(argument)
        else:
            pushed = argument if isinstance(argument, (str, int)) else None
        before, top = top, pushed
        yield opcode, pushed


def _check_pickle(path: Path, program: Iterable[tuple[str, Any]], size: int) -> None:
    """Refuse a pickle that asks for code, or for a storage larger than the file."""
    steps = list(_resolve(program))
    last_integer = 0
    for opcode, value in steps:
        if isinstance(value, int):
            last_integer = value
        elif opcode == "BINPERSID" and last_integer > size:
            raise CheckpointError(
                f"{path}: declares a tensor of {last_integer} elements in a file of {size} bytes, so it is damaged or made "
                "to exhaust memory. Get the original file."
            )
    allowed = {*_allowed_by_user(), *_DISCARDED_NAMES}
    if all(_spells_bytes(steps[i : i + 5]) for i, (_, value) in enumerate(steps) if value == _Name(_BYTES)):
        allowed.add(_BYTES)
    wanted = {value.name for _, value in steps if isinstance(value, _Name)}
    if refused := sorted(name for name in wanted if not _HARMLESS.fullmatch(name) and name not in allowed):
        raise _needs_code(path, refused)


def _spells_bytes(steps: list[tuple[str, Any]]) -> bool:
    """Whether this is encode("...", "latin1") with a short literal, called at once."""
    values, opcodes = [value for _, value in steps], [opcode for opcode, _ in steps]
    literal = values[1] if len(steps) == 5 else None
    short = isinstance(literal, str) and len(literal) <= _LONGEST_SCALAR
    return short and values[2] == "latin1" and opcodes[3:] == ["TUPLE2", "REDUCE"]


def _current_name(module: str, name: str) -> str:
    """Pickles of protocol 2 spell Python 3's modules as Python 2 did."""
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


def _allowed_by_user() -> set[str]:
    allowed = torch.serialization.get_safe_globals()
    return {item[1] if isinstance(item, tuple) else f"{item.__module__}.{item.__qualname__}" for item in allowed}


def _needs_code(path: Path, names: list[str]) -> CheckpointError:
    convert = (
        "python -c \"import torch; c = torch.load('OLD', map_location='cpu', weights_only=False); "
        "torch.save({'epoch': c.get('epoch'), 'state_dict': c['state_dict']}, 'NEW')\""
    )
    shown = ", ".join(repr(name) for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return CheckpointError(
        f"{path}: asks for Python's {shown}, and loading that could run any code its author chose, so only tensors and plain "
        "containers are read. If you trust its source, keep its weights alone, on a machine that may run "
        f"its code: {convert}. In Python you may instead vouch for it with torch.serialization.add_safe_globals([...])."
    )


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: is damaged or cut short ({one_line(error)}). Copy it again, or train that epoch again.")


def one_line(error: Exception) -> str:
    """An exception from elsewhere, fit to be quoted within a sentence."""
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text[:160]}{'...' if len(text) > 160 else ''}"


def _load_torch(path: Path, *, mmap: bool) -> Any:
    try:
        with torch.serialization.safe_globals([(_Discarded, name) for name in _DISCARDED_NAMES]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    # A hostile or damaged file can make the unpickler raise anything.
    except Exception as error:
        raise _damaged(path, error) from error


def _load_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            stored: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from error
    return stored
