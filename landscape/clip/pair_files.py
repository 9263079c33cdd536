"""Pairs in files: open_clip's CSV/TSV tables and webdataset tar shards. Nothing here touches the network."""

import glob
import hashlib
import io
import json
import math
import re
import tarfile
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from PIL import Image

from landscape.clip.pairs import Pairs, select_split
from landscape.errors import DataError

_PICTURE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
_CAPTION_SUFFIXES = ("txt", "json")
# LAION-5B has 231,349 shards of about 10,000 pairs.
_MOST_SHARDS = 1_000_000


@dataclass(frozen=True, slots=True)
class PictureFile:
    """One pair whose picture is a file, or a piece of one.

    Attributes:
        key: Names the picture within its source, on every machine alike.
        where: For messages: file and row, or shard and member.
        offset, size: The piece of the file in bytes; size None means the whole file.
    """

    key: str
    caption: str
    path: str
    where: str
    offset: int = 0
    size: int | None = None


class FilePairs(Pairs):
    """Pairs whose pictures lie in files and are decoded when asked for, as RGB.

    The digest covers keys, captions and, where known, picture sizes in bytes, not the pixels: reading millions of pictures to
    name a data set would take hours. The pixels that are measured on enter the digest of their batch.

    Args:
        image_size: The shorter side is scaled to so many pixels (bicubic) and the centre square cut out; None: neither.

    Raises:
        DataError: If the split is unknown or holds nothing; on reading, if a picture is missing or cannot be decoded.
    """

    def __init__(self, files: Sequence[PictureFile], *, split: str, source: str, image_size: int | None) -> None:
        chosen = select_split([file.key for file in files], [file.caption for file in files], split=split, source=source)
        self.name = f"split {split!r} of {source}"
        self._files = [files[i] for i in chosen]
        self._image_size = image_size

    @cached_property
    def digest(self) -> str:
        digest = hashlib.sha256(f"image_size {self._image_size}\n".encode())
        for file in self._files:
            digest.update(json.dumps([file.key, file.caption, file.size]).encode() + b"\n")
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Image.Image, str]:
        file = self._files[index]
        picture = _decode(file)
        return (picture if self._image_size is None else _centre_square(picture, self._image_size)), file.caption

    def check(self, indices: Iterable[int]) -> None:
        for path, where in {self._files[i].path: self._files[i].where for i in indices}.items():
            if not Path(path).is_file():
                raise DataError(_missing(where, path))


def _missing(where: str, path: str) -> str:
    return f"{where}: there is no file {path}. Picture paths are relative to the file that lists them. Restore it, or drop it."


def _decode(file: PictureFile) -> Image.Image:
    try:
        with open(file.path, "rb") as stream:
            stream.seek(file.offset)
            content = stream.read(-1 if file.size is None else file.size)
        with Image.open(io.BytesIO(content)) as picture:
            return picture.convert("RGB")
    except FileNotFoundError as error:
        raise DataError(_missing(file.where, file.path)) from error
    # Pillow's decoders raise whatever they stumble over.
    except Exception as error:
        raise DataError(
            f"{file.where}: the picture cannot be read ({type(error).__name__}: {' '.join(str(error).split())}). "
            "Restore the file, or drop the pair."
        ) from error


def _centre_square(picture: Image.Image, size: int) -> Image.Image:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    return F.center_crop(F.resize(picture, size, InterpolationMode.BICUBIC), size)


def open_csv(
    path: Path, *, split: str, image_size: int | None, separator: str, image_key: str, caption_key: str
) -> FilePairs:
    """Pairs of a table as open_clip reads it: one row per pair, a column of picture paths and one of captions.

    Unlike open_clip, relative picture paths are relative to the table's folder, wherever the program was started, and an
    entry such as "NA" or "null" is a word, not a missing number.

    Raises:
        DataError: If the file is missing, not a table, or lacks a column; if it holds no pair, or a pair without a picture.
    """
    import pandas

    try:
        with warnings.catch_warnings():
            # A row longer than the header is an error here, not a warning that its columns moved by one.
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            table = pandas.read_csv(path, sep=separator, dtype=str, keep_default_na=False, index_col=False)
    except pandas.errors.EmptyDataError as error:
        raise DataError(f"{path}: the table is empty; expected a header line and one row per pair.") from error
    except OSError as error:
        raise DataError(f"{path}: the table of pairs cannot be read ({error.strerror or error}). Check `source`.") from error
    except (ValueError, pandas.errors.ParserWarning) as error:
        problem = " ".join(str(error).split())
        raise DataError(f"{path}: this is not a table with separator {separator!r} ({problem}). Check `separator`.") from error
    for option, column in (("image_key", image_key), ("caption_key", caption_key)):
        if column not in table.columns:
            raise DataError(
                f"{path}: there is no column {column!r} (there are {list(table.columns)} with separator {separator!r}). "
                f"Set `{option}` and `separator` to what the table uses."
            )
    files = []
    for row, (name, caption) in enumerate(zip(table[image_key], table[caption_key]), start=1):
        if not name:
            raise DataError(f"{path}, row {row}: column {image_key!r} is empty, so there is no picture. Drop the row.")
        files.append(PictureFile(key=name, caption=caption, path=str(path.parent / name), where=f"{path}, row {row}"))
    return FilePairs(files, split=split, source=str(path), image_size=image_size)


def open_shards(pattern: str, *, split: str, image_size: int | None) -> FilePairs:
    """Pairs of webdataset tar shards: members "KEY.jpg|jpeg|png|webp" with "KEY.txt", or "KEY.json" that holds a "caption".

    Only the headers and the captions are read here; pictures are read in place later, so the order can be any.
    As in open_clip, a key without a picture or without a caption is left out.

    Args:
        pattern: Path of the shards; braces ("data-{000..031}.tar") and the wildcards of a shell are expanded.

    Returns:
        The pairs sorted by shard, then by key.

    Raises:
        DataError: If a shard is missing or is not an uncompressed tar archive, a caption is unreadable, or there is no pair.
    """
    files = [file for shard in _expand_shards(pattern) for file in _index_shard(shard)]
    return FilePairs(files, split=split, source=pattern, image_size=image_size)


def _expand_shards(pattern: str) -> list[Path]:
    from braceexpand import braceexpand

    if "://" in pattern or pattern.startswith("pipe:"):
        raise DataError(f"{pattern}: shards are read from the local disk only. Download them, and give their path.")
    # braceexpand lists a range before it yields the first name, so a slip in its end would fill the memory.
    sizes = [abs(int(end) - int(start)) + 1 for start, end in re.findall(r"{(-?[0-9]+)\.\.(-?[0-9]+)", pattern)]
    if math.prod(sizes) > _MOST_SHARDS:
        raise DataError(f"{pattern}: the braces name more than {_MOST_SHARDS} shards. Check the range.")
    try:
        patterns = list(braceexpand(pattern))
    except ValueError as error:
        raise DataError(f"{pattern}: the braces do not match. Write the range like data-{{000..031}}.tar.") from error
    shards: set[str] = set()
    for path in patterns:
        found = glob.glob(path) if glob.has_magic(path) else [path]
        shards.update(shard for shard in found if Path(shard).is_file())
        if not any(Path(shard).is_file() for shard in found):
            raise DataError(f"{path}: there is no such shard (source {pattern}). Check the path, and the range in the braces.")
    return sorted(Path(shard) for shard in shards)


def _index_shard(shard: Path) -> list[PictureFile]:
    members: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                key, suffix = _split_member(member.name)
                if not member.isfile() or suffix not in _PICTURE_SUFFIXES + _CAPTION_SUFFIXES:
                    continue
                if suffix in members.setdefault(key, {}):
                    raise DataError(f"{shard}: there are two members {member.name}, so the pair is not defined. Write it again.")
                members[key][suffix] = member
            pairs = [_shard_pair(archive, shard, key, members[key]) for key in sorted(members)]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"{shard}: the shard cannot be read as an uncompressed tar archive ({' '.join(str(error).split())}). "
            "Decompress it, or fetch it again."
        ) from error
    return [pair for pair in pairs if pair is not None]


def _split_member(name: str) -> tuple[str, str]:
    """webdataset's rule: the key ends at the first dot of the last path component."""
    path = PurePosixPath(name)
    stem, _, suffix = path.name.partition(".")
    return str(path.with_name(stem)) if stem else "", suffix.lower()


def _shard_pair(archive: tarfile.TarFile, shard: Path, key: str, members: dict[str, tarfile.TarInfo]) -> PictureFile | None:
    picture = next((members[suffix] for suffix in _PICTURE_SUFFIXES if suffix in members), None)
    text = next((members[suffix] for suffix in _CAPTION_SUFFIXES if suffix in members), None)
    if picture is None or text is None:
        return None
    stream = archive.extractfile(text)
    assert stream is not None
    try:
        caption = stream.read().decode()
        if text.name.lower().endswith(".json"):
            caption = json.loads(caption)["caption"]
        if not isinstance(caption, str):
            raise ValueError(f"the caption is a {type(caption).__name__}")
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(
            f"{shard}, member {text.name}: the caption cannot be read ({type(error).__name__}: {error}). "
            'Expected UTF-8 text, or JSON with a "caption".'
        ) from error
    where = f"{shard}, member {picture.name}"
    return PictureFile(key, caption, str(shard), where, offset=picture.offset_data, size=picture.size)
