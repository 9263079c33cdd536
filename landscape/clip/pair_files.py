"""Pairs whose pictures are files, or pieces of files, decoded on demand.

Nothing here accesses the network.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from landscape.clip.pairs import Pair, Pairs, select_split
from landscape.clip.pictures import FORMATS, LARGEST_FILE, Header, decode, header_of, remarks
from landscape.errors import DataError, PictureError
from landscape.files import open_regular


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A pair whose picture is a file, or a piece of one.

    Attributes:
        key: Name of the picture within its source, the same on every machine.
        where: Place for messages: file and row, or shard and member.
        offset, size: The piece of the file in bytes; size None means the whole file.
        label: Number of the class where the source gives one.
        captioned: False if there is nothing but a label; the caption is then the label's text.
    """

    key: str
    caption: str
    path: str
    where: str
    offset: int = 0
    size: int | None = None
    label: int | None = None
    captioned: bool = True


class FilePairs(Pairs):
    """Pairs whose pictures lie in files and are decoded on demand, as RGB.

    The digest covers keys, captions and, where known, picture sizes in bytes, but not the pixels:
    reading millions of pictures to name a data set would take hours. The pixels that are measured
    on enter the digest of their batch.

    Args:
        image_size: The shorter side is scaled to so many pixels (bicubic) and the centre square cut
            out; None: neither.
        notes: What was left out or is read differently than elsewhere, a sentence each.

    Raises:
        DataError: If the split is unknown or holds nothing.
        PictureError: On reading, if a picture is missing or cannot be decoded.
    """

    def __init__(
        self,
        files: Sequence[PictureFile],
        *,
        split: str,
        source: str,
        image_size: int | None,
        notes: tuple[str, ...] = (),
    ) -> None:
        chosen = select_split(
            [file.key for file in files],
            [file.caption for file in files],
            split=split,
            source=source,
        )
        self.name = f"split {split!r} of {source}"
        self.notes = notes
        self._files = [files[i] for i in chosen]
        self._image_size = image_size

    @cached_property
    def digest(self) -> str:
        digest = hashlib.sha256(f"image_size {self._image_size}\n".encode())
        for file in self._files:
            digest.update(json.dumps([file.key, file.caption, file.size]).encode() + b"\n")
        return digest.hexdigest()

    @property
    def files(self) -> tuple[PictureFile, ...]:
        """Return the pairs in their order, as they were listed."""
        return tuple(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Pair:
        picture = _decode(self._files[index])
        return (
            picture if self._image_size is None else _centre_square(picture, self._image_size)
        ), self.target(index)

    def target(self, index: int) -> str | int:
        file = self._files[index]
        return file.caption if file.captioned or file.label is None else file.label

    def labelled(self) -> "FilePairs | None":
        """Return the same pairs with class numbers in place of captions.

        None if the source gives none.

        Raises:
            DataError: If only some pairs have one.
        """
        without = [file for file in self._files if file.label is None]
        if len(without) == len(self._files):
            return None
        if without:
            raise DataError(
                f"{without[0].where}: there is no KEY.cls with the number of a class beside this "
                f"picture ({len(without)} of {len(self._files)} pairs lack it), so its class is "
                "unknown. Add it, or use objective: contrastive."
            )
        labelled = object.__new__(FilePairs)
        labelled.__dict__.update(self.__dict__)
        for cached in ("digest", "_problems", "_headers"):
            labelled.__dict__.pop(cached, None)
        labelled._files = [
            replace(file, caption=str(file.label), captioned=False) for file in self._files
        ]
        return labelled

    def check(self, indices: Iterable[int]) -> None:
        for path, where in {self._files[i].path: self._files[i].where for i in indices}.items():
            if not is_file(path):
                raise _missing(where, path)

    def notes_on(
        self, indices: Sequence[int], model_size: tuple[int, int] | None = None
    ) -> tuple[str, ...]:
        headers = [self._header(index) for index in indices]
        from_table = all(self._files[index].size is None for index in indices)
        said = remarks(
            headers, image_size=self._image_size, model_size=model_size, from_table=from_table
        )
        return tuple(f"{self.name}: {remark}." for remark in said)

    def _header(self, index: int) -> Header | None:
        if index not in self._headers:
            file = self._files[index]
            self._headers[index] = (
                header_of(file.path, file.offset, file.size) if is_file(file.path) else None
            )
        return self._headers[index]

    @cached_property
    def _headers(self) -> dict[int, Header | None]:
        return {}


def is_file(path: str | Path) -> bool:
    """Tell whether a file exists; False for what cannot be a name."""
    try:
        return Path(path).is_file()
    # Raised for example for a name that is too long.
    except (OSError, ValueError):
        return False


def in_one_line(name: str) -> str:
    """Quote a name of a file or member that holds line ends."""
    return name if name.isprintable() else repr(name)


def _missing(where: str, path: str) -> PictureError:
    return PictureError(
        f"{where}: there is no file {in_one_line(path)}.",
        "Picture paths are relative to the file that lists them. Restore it, or drop it.",
    )


def _decode(file: PictureFile) -> Image.Image:
    try:
        size = os.path.getsize(file.path) if file.size is None else file.size
        if size > LARGEST_FILE:
            raise OSError(f"it has {size} bytes, more than any picture of at most {LARGEST_FILE}")
        with open_regular(Path(file.path)) as stream:
            stream.seek(file.offset)
            content = stream.read(size)
        if not content:
            raise OSError("it is empty, 0 bytes")
        return decode(content)
    except FileNotFoundError as error:
        raise _missing(file.where, file.path) from error
    except UnidentifiedImageError as error:
        kinds = ", ".join(FORMATS)
        raise _unreadable(file, f"{len(content)} bytes, which are none of {kinds}") from error
    # Pillow's decoders raise errors of any type.
    except Exception as error:
        raise _unreadable(
            file, f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


def _unreadable(file: PictureFile, reason: str) -> PictureError:
    return PictureError(
        f"{file.where}: the picture cannot be read ({reason}).",
        "Restore it, or drop the pair; measurements take another pair in its place with "
        "`on_bad_picture: skip` below `data:`.",
    )


def _centre_square(picture: Image.Image, size: int) -> Image.Image:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    return F.center_crop(F.resize(picture, size, InterpolationMode.BICUBIC), size)
