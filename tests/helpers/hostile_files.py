"""Ways to spoil a file: bytes, kinds, pictures, tars, archives of weights, HDF5. Each takes the
file and a generator of numbers.

Nothing here does harm where it is read: what would be run leaves an empty file named CANARY, and
what would fill memory is harmless as soon as its size is compared with the file's.
"""

import io
import os
import pickle
import random
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.helpers.hostile_study import png

Spoil = Callable[[Path, random.Random], None]
CANARY = "CANARY"


class Canary:
    """What makes a file named CANARY where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (CANARY, "w")


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 8, 64])):
        content[rng.randrange(len(content))] ^= rng.randrange(1, 256)
    path.write_bytes(content)


def flip_head(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(4):
        content[rng.randrange(min(len(content), 512))] ^= rng.randrange(1, 256)
    path.write_bytes(content)


def cut(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def cut_front(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[rng.randrange(1, 64) :])


def empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def append(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.choice([1, 1000])))


def zeros(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    start = rng.randrange(len(content))
    content[start : start + 4096] = bytes(len(content[start : start + 4096]))
    path.write_bytes(content)


def grown(path: Path, rng: random.Random) -> None:
    # Sparse, so that it takes no disk.
    with open(path, "r+b") as file:
        file.truncate(10**12)


def noise(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.randbytes(5000))


def removed(path: Path, rng: random.Random) -> None:
    path.unlink()


def folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path, rng: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def loop(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def dangling(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def device(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to(rng.choice(["/dev/zero", "/dev/full", "/dev/null"]))


def other_kind(path: Path, rng: random.Random) -> None:
    others = [
        "pairs.tsv",
        "data-0.tar",
        "run/checkpoints/epoch_0.pt",
        "s.h5",
        "d.h5",
        "f.h5",
        "m.yaml",
        "pics/0.png",
        "tiny.json",
    ]
    top = (
        path.parent
        if (path.parent / "m.yaml").exists()
        else next(p for p in path.parents if (p / "m.yaml").exists())
    )
    shutil.copyfile(top / rng.choice([name for name in others if top / name != path]), path)


ANY: dict[str, Spoil] = {
    f.__name__: f for f in (flip, flip_head, cut, cut_front, empty, append, zeros, grown, noise)
} | {f.__name__: f for f in (removed, folder, pipe, loop, dangling, device, other_kind)}


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_sizes(width: int, height: int, depth: int = 8) -> bytes:
    """A PNG that declares a size and holds a few rows."""
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    parts = (
        _chunk(b"IHDR", header),
        _chunk(b"IDAT", zlib.compress(bytes(1000))),
        _chunk(b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def _pixels(rng: random.Random, *shape: int) -> np.ndarray:
    return np.random.default_rng(rng.randrange(2**32)).integers(0, 256, shape, dtype=np.uint8)


def pictures() -> dict[str, Spoil]:
    """Pictures that are odd or lie about themselves, by name."""
    grey = (np.arange(256, dtype=np.uint16).reshape(16, 16)) * 257
    contents: dict[str, Callable[[random.Random], bytes]] = {
        "huge": lambda rng: png_of_sizes(
            *rng.choice([(2**31 - 1, 2**31 - 1), (100_000, 100_000), (1, 2**31 - 1)])
        ),
        "bomb": lambda rng: png_of_sizes(13_000, 13_000),
        "none wide": lambda rng: png_of_sizes(0, 16),
        "sixteen bits": lambda rng: _saved(Image.fromarray(grey), "PNG"),
        "floats": lambda rng: _saved(
            Image.fromarray(np.full((16, 16), np.nan, dtype=np.float32)), "TIFF"
        ),
        "palette": lambda rng: _saved(
            Image.fromarray(_pixels(rng, 16, 16, 3)).quantize(8), "PNG", transparency=0
        ),
        "animation": lambda rng: _saved(
            Image.new("P", (16, 16)),
            "GIF",
            save_all=True,
            append_images=[Image.new("P", (16, 16), 3)] * 3,
        ),
        "cmyk": lambda rng: _saved(Image.fromarray(_pixels(rng, 16, 16, 4), "CMYK"), "JPEG"),
        "one pixel": lambda rng: png(1, side=1),
        "thin": lambda rng: _saved(Image.new("RGB", (1, 4000)), "PNG"),
        "pdf": lambda rng: _saved(Image.new("RGB", (16, 16)), "PDF"),
        "eps": lambda rng: _saved(Image.new("RGB", (16, 16)), "EPS"),
        "svg": lambda rng: b"<svg xmlns='http://www.w3.org/2000/svg' width='16' height='16'/>",
        "page": lambda rng: b"<html><body>404 not found</body></html>",
    }
    return {
        name: lambda path, rng, make=make: path.write_bytes(make(rng)) and None
        for name, make in contents.items()
    }


def _members(path: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(path) as archive:
        return [(member, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]


def _rewrite(
    path: Path,
    members: list[tuple[tarfile.TarInfo, bytes]],
    mode: str = "w",
    format: int = tarfile.GNU_FORMAT,
) -> None:
    with tarfile.open(path, mode, format=format) as archive:  # type: ignore[call-overload]
        for member, content in members:
            if member.isfile():
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def tars() -> dict[str, Spoil]:
    """Shards with members that should not be there, or that lie about their sizes, by name."""

    def changed(
        change: Callable[[list[tuple[tarfile.TarInfo, bytes]], random.Random], None], **options: Any
    ) -> Spoil:
        def spoil(path: Path, rng: random.Random) -> None:
            members = _members(path)
            change(members, rng)
            _rewrite(path, members, **options)

        return spoil

    def add(
        name: str, content: bytes = b"x", **attributes: Any
    ) -> Callable[[list[tuple[tarfile.TarInfo, bytes]], random.Random], None]:
        def change(members: list[tuple[tarfile.TarInfo, bytes]], rng: random.Random) -> None:
            member = tarfile.TarInfo(name)
            for key, value in attributes.items():
                setattr(member, key, value)
            members.insert(rng.randrange(len(members)), (member, content))

        return change

    def caption(
        content: bytes,
    ) -> Callable[[list[tuple[tarfile.TarInfo, bytes]], random.Random], None]:
        def change(members: list[tuple[tarfile.TarInfo, bytes]], rng: random.Random) -> None:
            place = 1 + 2 * rng.randrange(len(members) // 2)
            members[place] = (members[place][0], content)

        return change

    def declared(path: Path, rng: random.Random) -> None:
        content = bytearray(path.read_bytes())
        start = 512 * rng.choice([0, 0, 2])
        size = rng.choice(
            [
                b"77777777777\0",
                b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7,
                b"\xff" * 12,
                b"notanumber\0\0",
            ]
        )
        content[start + 124 : start + 136] = size
        content[start + 148 : start + 156] = b"%06o\0 " % sum(
            content[start : start + 148] + b" " * 8 + content[start + 156 : start + 512]
        )
        path.write_bytes(content)

    return {
        "declared size": declared,
        "upwards": changed(add("../../CANARY.txt")),
        "absolute": changed(add("/CANARY.png")),
        "link": changed(add("0000.json", type=tarfile.SYMTYPE, linkname="/etc/passwd")),
        "hard link": changed(add("0000.json", type=tarfile.LNKTYPE, linkname="0000.json")),
        "pipe": changed(add("0000.json", type=tarfile.FIFOTYPE)),
        "device": changed(add("0000.json", type=tarfile.CHRTYPE, devmajor=1, devminor=5)),
        "twice": changed(add("0000.png")),
        "odd name": changed(add("a\nb\x1b[31m.png")),
        "long name": changed(add("x" * 5000 + ".png")),
        "pax": changed(
            add("0000.json", pax_headers={"size": "9" * 30, "path": "\0"}),
            format=tarfile.PAX_FORMAT,
        ),
        "bytes as caption": changed(caption(b"\xff\xfe\x00")),
        "empty caption": changed(caption(b"")),
        "long caption": changed(caption(b"a " * 500_000)),
        "compressed": changed(lambda members, rng: None, mode="w:gz"),
        "no members": changed(lambda members, rng: members.clear()),
        "no captions": changed(lambda members, rng: members.__delitem__(slice(1, None, 2))),
        "deep json": changed(add("0000.json", b"[" * 100_000)),
    }


def weights() -> dict[str, Spoil]:
    """Checkpoints that would run code, or that lie about their sizes, by name."""
    import torch

    def saved(change: Callable[[dict[str, Any]], Any], **options: Any) -> Spoil:
        def spoil(path: Path, rng: random.Random) -> None:
            torch.save(change(torch.load(path, weights_only=False)), path, **options)

        return spoil

    def pickled(path: Path, rng: random.Random) -> None:
        path.write_bytes(
            pickle.dumps({"epoch": 1, "state_dict": Canary()}, protocol=rng.randrange(2, 6))
        )

    def tensors(change: Callable[[Any], Any]) -> Spoil:
        def nested(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: nested(item) for key, item in value.items()}
            return (
                change(value)
                if isinstance(value, torch.Tensor) and value.is_floating_point()
                else value
            )

        return saved(nested)

    def zipped(change: Callable[[zipfile.ZipFile, dict[str, bytes]], None]) -> Spoil:
        def spoil(path: Path, rng: random.Random) -> None:
            with zipfile.ZipFile(path) as archive:
                entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
            with zipfile.ZipFile(path, "w") as archive:
                change(archive, entries)

        return spoil

    def rewritten(
        archive: zipfile.ZipFile, entries: dict[str, bytes], kind: int = zipfile.ZIP_STORED
    ) -> None:
        for name, content in entries.items():
            archive.writestr(name, content, compress_type=kind)

    def inflated(archive: zipfile.ZipFile, entries: dict[str, bytes]) -> None:
        first = next(name for name in entries if "/data/" in name)
        rewritten(archive, entries | {first: bytes(50_000_000)}, zipfile.ZIP_DEFLATED)

    def safetensors(header: bytes, length: int | None = None) -> Spoil:
        return lambda path, rng: (
            path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header)
            and None
        )

    wide = b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    return {
        "canary": saved(lambda stored: stored | {"extra": Canary()}),
        "canary before 1.6": saved(
            lambda stored: stored | {"extra": Canary()}, _use_new_zipfile_serialization=False
        ),
        "canary alone": saved(lambda stored: Canary()),
        "canary pickled": pickled,
        "not a number": tensors(lambda value: value * float("nan")),
        "overflow": tensors(lambda value: value * 1e38),
        "zero": tensors(lambda value: value * 0),
        "other shapes": tensors(lambda value: value.reshape(-1)),
        "complex": tensors(lambda value: value.to(torch.complex64)),
        "half": tensors(lambda value: value.half()),
        "expanded": saved(lambda stored: {"state_dict": {"a": torch.zeros(1).expand(10**12)}}),
        "list": saved(lambda stored: [1, 2, 3]),
        "number": saved(lambda stored: 10**30),
        "odd keys": saved(
            lambda stored: {"state_dict": {"a\nb\x1b[31m": torch.zeros(2), "": torch.zeros(1)}}
        ),
        "epoch": saved(lambda stored: stored | {"epoch": 10**30}),
        "epoch not a number": saved(
            lambda stored: stored | {"epoch": float("nan"), "name": "x" * 10_000}
        ),
        "deflated": zipped(
            lambda archive, entries: rewritten(archive, entries, zipfile.ZIP_DEFLATED)
        ),
        "bomb": zipped(inflated),
        "no data": zipped(
            lambda archive, entries: rewritten(
                archive, {n: c for n, c in entries.items() if "/data/" not in n}
            )
        ),
        "numpy": zipped(lambda archive, entries: rewritten(archive, {"a.npy": b"\x93NUMPY"})),
        "safetensors beyond": safetensors(wide),
        "safetensors length": safetensors(b"{}", 2**63),
        "safetensors deep": safetensors(b'{"a":' * 5000),
        "safetensors empty": safetensors(b"{}"),
    }
