"""Files of weights, read without torch and without running code.

Kinds: what torch.save writes (a zip archive since torch 1.6, a sequence of pickles before),
TorchScript archives, and safetensors. Sizes are checked before anything is allocated: no torch file
is compressed, so an archive that declares more than it holds is a decompression bomb. Tensors
become stubs that say where in the file their numbers lie.
"""

import io
import json
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open

from landscape.containers.inert import InertUnpickler
from landscape.containers.stand_ins import ITEM_SIZES, NamedStub, NeedsCode, Span, Storage, TooLarge
from landscape.errors import CheckpointError
from landscape.files import open_regular

TORCH, TORCH_LEGACY, SAFETENSORS, TORCHSCRIPT = (
    "torch",
    "torch before 1.6",
    "safetensors",
    "TorchScript",
)

_ZIP_END = 22
# The pickle of a CLIP ViT-B/16 with its AdamW state is 0.13 MB; reading it as data costs about 1
# microsecond per byte.
LARGEST_PICKLE = 16 << 20
_LARGEST_HEADER = 100_000_000
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "C64": "complex64",
}


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """The contents of a file of weights, with tensors as stubs.

    Attributes:
        kind: TORCH, TORCH_LEGACY, TORCHSCRIPT or SAFETENSORS; for folders, see
            landscape.containers.folders.
        stored: The object that was saved.
        files: Every file that was read, the named one first.
        metadata: What a safetensors file or an index states beside its tensors.
        aliases: Tensors that are left out because they equal another one, by safetensors' metadata:
            left out -> kept.
        foreign: Names of the classes and functions that became stand-ins, sorted.
    """

    path: Path
    kind: str
    stored: Any
    files: tuple[Path, ...]
    metadata: dict[str, Any] = field(default_factory=dict)
    foreign: tuple[str, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)


class Section(io.RawIOBase):
    """A part of an open file, as a file of its own."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self.file, self.start, self.size, self.position = file, start, size, 0

    def readable(self) -> bool:
        """Return True, as io requires."""
        return True

    def seekable(self) -> bool:
        """Return True, as io requires."""
        return True

    def tell(self) -> int:
        """Return the position within the section."""
        return self.position

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move within the section."""
        self.position = max(0, offset + (0, self.position, self.size)[whence])
        return self.position

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes, none of them behind the section."""
        left = max(0, self.size - self.position)
        self.file.seek(self.start + self.position)
        content = self.file.read(left if size is None or size < 0 else min(size, left))
        self.position += len(content)
        return content


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """Explain why the operating system refuses to read a file."""
    if isinstance(error, FileNotFoundError):
        return CheckpointError(
            f"{path}: there is no such file. Correct the path, or write it with `landscape train`."
        )
    if isinstance(error, IsADirectoryError):
        return CheckpointError(
            f"{path}: is a folder, but a checkpoint is one file. Give the file inside it."
        )
    return CheckpointError(
        f"{path}: cannot be read ({error.strerror or error}). Check its name and its permissions."
    )


def damaged(path: Path, error: Exception) -> CheckpointError:
    """Build the error for a damaged or truncated file."""
    return CheckpointError(
        f"{path}: is damaged or cut short ({one_line(error)}). Copy it again, or train that epoch "
        "again."
    )


def one_line(error: Exception) -> str:
    """Shorten another library's exception to quote it within a sentence."""
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text[:160]}{'...' if len(text) > 160 else ''}"


def read_weight_file(path: Path, *, verified: bool = True) -> WeightFile:
    """Read a file of weights, without its numbers.

    Args:
        verified: Whether the bytes are known to be right. Otherwise the checksums that torch.save
            wrote are compared, which torch.load does not do: it does not notice a flipped bit in a
            weight.

    Raises:
        CheckpointError: If the file is missing, truncated, no file of weights, asks for what no
            checkpoint needs, or declares more data than it holds.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            kind = _kind(path, file, size)
            if kind == SAFETENSORS:
                return _read_safetensors(path)
            if kind == TORCH:
                return read_archive(path, file, 0, size, verified=verified)
            return _read_legacy(path, file, size)
    except OSError as error:
        raise unreadable(path, error) from error


def _kind(path: Path, file: BinaryIO, size: int) -> str:
    """Detect a file's kind by its content, never by its name.

    A safetensors file begins with the length of its header, whose low byte can be that of a pickle.
    """
    head = file.read(9)
    if size == 0:
        raise CheckpointError(
            f"{path}: is empty (0 bytes), so writing it was interrupted. Write it again."
        )
    opens_header = head[8:9] == b"{"
    if opens_header and int.from_bytes(head[:8], "little") <= min(size - 8, _LARGEST_HEADER):
        return SAFETENSORS
    if head[:4] == b"PK\x03\x04":
        return TORCH
    if head[:1] == b"\x80":
        return TORCH_LEGACY
    if opens_header:
        return SAFETENSORS
    raise CheckpointError(
        f"{path}: is not a checkpoint (it begins with {head[:4]!r}); expected what torch.save or "
        "safetensors writes. Check that the path names the weights and that a download is complete."
    )


def read_archive(
    path: Path, whole: BinaryIO, start: int, size: int, *, verified: bool
) -> WeightFile:
    """Read an archive of torch.save or torch.jit.save within a file.

    Args:
        start, size: The archive's section of the file `whole`, in bytes.
    """
    file = Section(whole, start, size)
    # An archive without a comment has only one possible place for the end record, so all readers
    # agree on it.
    file.seek(max(size - _ZIP_END, 0))
    if file.read(4) != b"PK\x05\x06":
        raise CheckpointError(
            f"{path}: does not end, after {size} bytes, in the directory that ends files of "
            "torch.save, so it is cut short or something was appended. Copy it again, or train "
            "that epoch again."
        )
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
        script = any(_name(entry) == "constants.pkl" for entry in entries)
        entries = _checked_entries(path, entries, size, script=script)
        if not verified:
            _check_sums(path, file, entries)
        by_name = {_name(entry): entry for entry in entries}
        program = _content(file, by_name["data.pkl"], limit=LARGEST_PICKLE)
        order = (
            _content(file, by_name["byteorder"], limit=16).decode()
            if "byteorder" in by_name
            else "little"
        )
        stored, foreign = _unpickle(
            program, size, lambda *declared: _storage(path, file, by_name, order, *declared)
        )
    except CheckpointError:
        raise
    except Exception as error:
        raise refusal(path, error, size) from error
    kind = TORCHSCRIPT if script else TORCH
    return WeightFile(path=path, kind=kind, stored=stored, files=(path,), foreign=foreign)


def refusal(path: Path, error: Exception, size: int) -> CheckpointError:
    """Explain why a pickle was not read.

    A hostile or damaged pickle can raise errors of any type.
    """
    if isinstance(error, NeedsCode):
        return CheckpointError(
            f"{path}: asks for Python's '{error}', which no checkpoint needs, so the file was made "
            "to run code or holds an object that is no data. It was not run. Get the file from its "
            "author as a plain state dict or as safetensors."
        )
    if isinstance(error, TooLarge):
        return CheckpointError(
            f"{path}: declares a tensor of {error} elements in a file of {size} bytes, so it is "
            "damaged or made to exhaust memory. Get the original file."
        )
    if isinstance(error, _PickleTooLong):
        return CheckpointError(
            f"{path}: its pickle is longer than {LARGEST_PICKLE >> 20} MB, but that of a large "
            "model is below 1 MB. Save the weights alone: torch.save(model.state_dict(), file)."
        )
    return damaged(path, error)


# Names that become values or carry no information: a note would only distract.
_ORDINARY = re.compile(
    r"collections\..*|builtins\.\w+|_codecs\.encode|copyreg\._reconstructor|pathlib\..*"
    r"|argparse\.Namespace|numpy\.dtype"
    r"|numpy\.(_?core)\.multiarray\.scalar|torch\.(\w+|(cuda\.|storage\.)?\w*Storage"
    r"|serialization\._get_layout)"
    r"|torch\.distributed\..*|torch\.(_utils\._rebuild_\w+|_tensor\._rebuild_from_type_v2"
    r"|nn\.parameter\.Parameter)|__torch__\..*"
)


def note_of_stand_ins(names: Iterable[str]) -> list[str]:
    """Report which objects of a file were not made, if any."""
    foreign = [name for name in names if not _ORDINARY.fullmatch(name)]
    shown = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
    return (
        [f"Left out objects of {shown}: nothing but tensors and plain values is read."]
        if foreign
        else []
    )


class _PickleTooLong(Exception):
    """A pickle is longer than any checkpoint's."""


def _name(entry: zipfile.ZipInfo) -> str:
    """Return the name of an archive's entry within its only folder."""
    return entry.filename.partition("/")[2]


def _checked_entries(
    path: Path, entries: list[zipfile.ZipInfo], size: int, *, script: bool
) -> list[zipfile.ZipInfo]:
    """Select and check the entries that are read.

    TorchScript compresses its code, which is not read.
    """
    names = [entry.filename for entry in entries]
    if not any(_name(entry) == "data.pkl" for entry in entries):
        raise CheckpointError(
            f"{path}: is a zip archive, but not one of torch.save (it has no data.pkl). Give the "
            "checkpoint itself."
        )
    if script:
        entries = [
            entry
            for entry in entries
            if _name(entry).startswith(("data/", "data.pkl", "byteorder"))
        ]
    declared = sum(entry.file_size for entry in entries)
    packed = [
        entry.filename
        for entry in entries
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1
    ]
    if packed or declared > size:
        raise CheckpointError(
            f"{path}: unpacks to {declared} bytes from a file of {size}, {len(packed)} of "
            f"{len(entries)} entries compressed. torch.save never compresses, so the archive was "
            "made to exhaust memory, or repacked. Get the original file."
        )
    if (
        len({name.lower() for name in names}) < len(names)
        or len({name.partition("/")[0] for name in names}) > 1
    ):
        raise CheckpointError(
            f"{path}: holds several archives in one, which torch.save never writes. Get the "
            "original file."
        )
    return entries


def _start(file: Section, entry: zipfile.ZipInfo) -> int:
    """Return the first byte of an uncompressed entry.

    It follows the entry's local header, name and padding.
    """
    file.seek(entry.header_offset + 26)
    start = entry.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
    if start + entry.file_size > file.size:
        raise EOFError(f"entry {entry.filename} ends behind the file")
    return start


def _content(file: Section, entry: zipfile.ZipInfo, *, limit: int) -> bytes:
    if entry.file_size > limit:
        raise _PickleTooLong(entry.file_size)
    file.seek(_start(file, entry))
    return file.read(entry.file_size)


def _check_sums(path: Path, file: Section, entries: list[zipfile.ZipInfo]) -> None:
    # torch.save writes 0 where its config.save.compute_crc32 is off.
    for entry in (entry for entry in entries if entry.CRC):
        file.seek(_start(file, entry))
        checksum, left = 0, entry.file_size
        while left and (chunk := file.read(min(left, 1 << 24))):
            checksum, left = zlib.crc32(chunk, checksum), left - len(chunk)
        if checksum != entry.CRC:
            raise CheckpointError(
                f"{path}: the bytes of its entry {entry.filename} changed since they were written "
                f"(checksum expected {entry.CRC:08x}, got {checksum:08x}). Copy it again, or train "
                "that epoch again."
            )


def _storage(
    path: Path,
    file: Section,
    entries: dict[str, zipfile.ZipInfo],
    order: str,
    key: str,
    dtype: str,
    size: int,
) -> Storage:
    entry = entries[f"data/{key}"]
    num_bytes = size * ITEM_SIZES[dtype]
    if entry.file_size < num_bytes:
        raise EOFError(f"storage {key} of {num_bytes} bytes in an entry of {entry.file_size}")
    return Storage(key, dtype, size, Span(path, file.start + _start(file, entry), num_bytes, order))


def _unpickle(program: bytes, limit: int, storage: Any) -> tuple[Any, tuple[str, ...]]:
    machine = InertUnpickler(io.BytesIO(program), limit=limit, storage=storage)
    stored = machine.load()
    return stored, tuple(sorted(machine.names))


class _Counted:
    """A file that ends after the longest pickle allowed."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.left = file, LARGEST_PICKLE

    def read(self, size: int) -> bytes:
        """Read exactly what the machine asks for."""
        content = self.file.read(min(size, self.left + 1))
        return self._count(content)

    def readline(self) -> bytes:
        """Read a line."""
        return self._count(self.file.readline(self.left + 1))

    def _count(self, content: bytes) -> bytes:
        self.left -= len(content)
        if self.left < 0:
            raise _PickleTooLong(LARGEST_PICKLE)
        return content


def _read_legacy(path: Path, file: BinaryIO, size: int) -> WeightFile:
    """Read a file of torch before 1.6: pickles, then raw data.

    The five pickles are magic number, version, system, the object and the storage keys.
    """
    file.seek(0)
    storages: dict[str, Storage] = {}

    def storage(key: str, dtype: str, count: int, view: Any = None) -> Storage:
        if view is not None:
            raise ValueError("a view of a storage, as torch wrote before 0.4")
        return storages.setdefault(key, Storage(key, dtype, count))

    try:
        if InertUnpickler(_Counted(file), limit=size).load() != _LEGACY_MAGIC:  # type: ignore[arg-type]
            raise CheckpointError(
                f"{path}: is a Python pickle, but not one of torch.save, and is not loaded: a "
                "pickle is a program. Save the weights with torch.save(model.state_dict(), file) "
                "or as safetensors."
            )
        for _ in range(2):
            InertUnpickler(_Counted(file), limit=size).load()  # type: ignore[arg-type]
        machine = InertUnpickler(_Counted(file), limit=size, storage=storage)  # type: ignore[arg-type]
        stored = machine.load()
        keys = InertUnpickler(_Counted(file), limit=size).load()  # type: ignore[arg-type]
        _locate_legacy(path, file, size, storages, [str(key) for key in keys])
    except CheckpointError:
        raise
    except Exception as error:
        raise refusal(path, error, size) from error
    return WeightFile(
        path=path,
        kind=TORCH_LEGACY,
        stored=stored,
        files=(path,),
        foreign=tuple(sorted(machine.names)),
    )


def _locate_legacy(
    path: Path, file: BinaryIO, size: int, storages: dict[str, Storage], keys: list[str]
) -> None:
    """Locate each storage: its number of elements, then its bytes."""
    if sorted(keys) != sorted(storages):
        raise ValueError("storages and their keys differ")
    for key in keys:
        storage = storages[key]
        [count] = struct.unpack("<q", file.read(8))
        num_bytes = storage.size * ITEM_SIZES[storage.dtype]
        start = file.tell()
        if count != storage.size or start + num_bytes > size:
            raise EOFError(f"storage {key} of {num_bytes} bytes")
        storage.span = Span(path, start, num_bytes)
        file.seek(start + num_bytes)


def _read_safetensors(path: Path) -> WeightFile:
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.keys()}
        spans = _spans_of_safetensors(path)
        stored = {
            name: NamedStub(
                _SAFETENSORS_DTYPES.get(part.get_dtype(), part.get_dtype()),
                tuple(part.get_shape()),
                path,
                name,
                spans[name],
            )
            for name, part in slices.items()
        }
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise damaged(path, error) from error
    return WeightFile(
        path=path,
        kind=SAFETENSORS,
        stored=stored,
        files=(path,),
        metadata=metadata,
        aliases=aliases_in(metadata, stored),
    )


def _spans_of_safetensors(path: Path) -> dict[str, Span]:
    """Locate each tensor by the header, which safetensors has checked.

    The file holds the header's size in 8 bytes, the header as JSON, then the numbers.
    """
    with open_regular(path) as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    places = {name: described["data_offsets"] for name, described in header.items()}
    return {
        name: Span(path, 8 + size + start, stop - start) for name, (start, stop) in places.items()
    }


def aliases_in(metadata: dict[str, Any], stored: dict[str, Any]) -> dict[str, str]:
    """List tied weights that a file leaves out: left out -> kept.

    safetensors' own save_model notes them in the metadata.
    """
    return {
        name: kept
        for name, kept in metadata.items()
        if type(kept) is str and kept in stored and name not in stored
    }
