"""Pairs of webdataset tar shards, read in place on the local disk."""

import glob
import json
import math
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from landscape.clip.pair_files import FilePairs, PictureFile, in_one_line
from landscape.clip.table_text import PICTURE_SUFFIXES
from landscape.errors import DataError
from landscape.files import check_regular

_CAPTION_KEY = "caption"
_READ_SUFFIXES = (*PICTURE_SUFFIXES, "txt", "json", "cls")
_LONGEST_PADDING = 2**20
_LARGEST_TEXT = 2**24
# LAION-5B has 231,349 shards of about 10,000 pairs.
_MAX_SHARDS = 1_000_000


def open_shards(
    pattern: str, *, split: str, image_size: int | None, caption_key: str = _CAPTION_KEY
) -> FilePairs:
    """List the pairs of shards: pictures with captions or classes.

    A pair is a member "KEY.jpg|jpeg|png|webp" with "KEY.txt", "KEY.json" or "KEY.cls", in upper or
    lower case. Only the headers, captions and classes are read here; pictures are read in place
    later, so the order can be any. As in open_clip, a key without a picture or without a caption is
    left out; the notes of the pairs count them. Shards in which nothing has a caption give the
    class numbers in KEY.cls instead.

    Args:
        pattern: Path of the shards; braces ("data-{000..031}.tar") and the wildcards of a shell are
            expanded.
        caption_key: Key of the caption in KEY.json. KEY.txt takes precedence over "caption", but
            not over another key.

    Returns:
        The pairs sorted by shard, then by key.

    Raises:
        DataError: If a shard is missing or is not an uncompressed tar archive, a caption is
            unreadable, or there is no pair.
    """
    contents = _Contents(pattern, caption_key)
    for shard in _expand_shards(pattern):
        contents.read(shard)
    files = contents.captioned or contents.classified
    if not files:
        raise DataError(contents.why_nothing())
    return FilePairs(
        files, split=split, source=pattern, image_size=image_size, notes=tuple(contents.notes())
    )


def _expand_shards(pattern: str) -> list[Path]:
    from braceexpand import braceexpand

    if "://" in pattern or pattern.startswith("pipe:"):
        raise DataError(
            f"{pattern}: shards are read from the local disk only. Download them, and give their "
            "path."
        )
    # braceexpand lists a whole range before it yields the first name: a typing error in the end of
    # the range would fill the memory.
    sizes = [
        abs(int(end) - int(start)) + 1
        for start, end in re.findall(r"{(-?[0-9]+)\.\.(-?[0-9]+)", pattern)
    ]
    if math.prod(sizes) > _MAX_SHARDS:
        raise DataError(
            f"{pattern}: the braces name more than {_MAX_SHARDS} shards. Check the range."
        )
    try:
        patterns = list(braceexpand(pattern))
    except ValueError as error:
        raise DataError(
            f"{pattern}: the braces do not match. Write the range like data-{{000..031}}.tar."
        ) from error
    shards: set[str] = set()
    for path in patterns:
        matches = glob.glob(path) if glob.has_magic(path) else [path]
        shards.update(shard for shard in matches if Path(shard).is_file())
        if not any(Path(shard).is_file() for shard in matches):
            raise DataError(
                f"{path}: there is no such shard (source {pattern}). Check the path, and the range "
                "in the braces."
            )
    return sorted(Path(shard) for shard in shards)


@dataclass
class _Contents:
    """The contents of the shards of a pattern.

    Attributes:
        captioned: Pairs of a picture and a caption.
        classified: Pairs of a picture and a class number alone.
        alone: Counts of keys with only a picture or only a caption, by what they have.
        suffixes: Counts of members by what follows the first dot of their name.
        ends: Sentences on shards that do not end as archives do.
    """

    pattern: str
    caption_key: str
    captioned: list[PictureFile] = field(default_factory=list)
    classified: list[PictureFile] = field(default_factory=list)
    alone: Counter[str] = field(default_factory=Counter)
    suffixes: Counter[str] = field(default_factory=Counter)
    ends: list[str] = field(default_factory=list)

    def read(self, shard: Path) -> None:
        """Index a shard.

        Raises:
            DataError: If it is no uncompressed tar archive, two members have one name, or a caption
                is unreadable.
        """
        members: dict[str, dict[str, tarfile.TarInfo]] = {}
        try:
            check_regular(shard)
            with tarfile.open(shard, "r:") as archive:
                for member in archive:
                    if member.isfile():
                        self._sort(shard, member, members)
                self._check_end(archive, shard)
                for key in sorted(members):
                    self._add(archive, shard, key, members[key])
        # tarfile raises errors of several types for sizes beyond the file, or beyond any number.
        except (tarfile.TarError, OSError, EOFError, MemoryError, ValueError) as error:
            raise DataError(
                f"{shard}: the shard cannot be read as an uncompressed tar archive "
                f"({' '.join(str(error).split())}). Decompress it, or fetch it again."
            ) from error

    def _check_end(self, archive: tarfile.TarFile, shard: Path) -> None:
        """Refuse a damaged header, and note an unusual end of the archive.

        tarfile takes a damaged header for the end. Noted is an end that is not marked, or that data
        follow.

        Raises:
            DataError: If there is something else than blocks of zeros where the archive ends.
        """
        with open(shard, "rb") as file:
            file.seek(archive.offset)
            block = file.read(tarfile.BLOCKSIZE)
            if block.strip(b"\0"):
                raise DataError(
                    f"{shard}: the header at byte {archive.offset} is damaged, so the members "
                    "after it would be lost silently. Fetch the shard again."
                )
            # Padding has 10 kB; a file that was extended can have any number of zeros.
            rest = file.read(_LONGEST_PADDING).strip(b"\0") or file.read(1)
        if not block:
            self.ends.append(
                f"{shard}: the archive has no end, so it may have been cut off between two members."
            )
        elif rest:
            self.ends.append(
                f"{shard}: what follows the end of the archive is left out, as by webdataset."
            )

    def _sort(
        self, shard: Path, member: tarfile.TarInfo, members: dict[str, dict[str, tarfile.TarInfo]]
    ) -> None:
        key, suffix = _split_member(member.name)
        self.suffixes[suffix] += 1
        if suffix not in _READ_SUFFIXES:
            return
        if suffix in members.setdefault(key, {}):
            name = in_one_line(member.name)
            raise DataError(
                f"{shard}: there are two members {name}, so the pair is not defined. Write it "
                "again."
            )
        members[key][suffix] = member

    def _add(
        self, archive: tarfile.TarFile, shard: Path, key: str, members: dict[str, tarfile.TarInfo]
    ) -> None:
        picture = next((members[suffix] for suffix in PICTURE_SUFFIXES if suffix in members), None)
        names = ("txt", "json") if self.caption_key == _CAPTION_KEY else ("json",)
        text = next((members[suffix] for suffix in names if suffix in members), None)
        if picture is None or (text is None and "cls" not in members):
            self.alone["caption" if picture is None else "picture"] += 1
            return
        label = (
            _label(archive, shard, members["cls"], required=text is None)
            if "cls" in members
            else None
        )
        caption = str(label) if text is None else _caption(archive, shard, text, self.caption_key)
        pairs = self.classified if text is None else self.captioned
        pairs.append(
            PictureFile(
                key,
                caption,
                str(shard),
                f"{shard}, member {in_one_line(picture.name)}",
                offset=picture.offset_data,
                size=picture.size,
                label=label,
                captioned=text is not None,
            )
        )

    def notes(self) -> Iterator[str]:
        """Yield notes on what was left out, or may be missing."""
        yield from self.ends[:3]
        if len(self.ends) > 3:
            yield f"{self.pattern}: {len(self.ends) - 3} further shards end in such a way."
        if not self.captioned:
            yield f"{self.pattern}: no picture has a caption, so the classes in KEY.cls are read."
        pictures = self.alone["picture"] + (len(self.classified) if self.captioned else 0)
        counts = {
            "pictures without a caption": pictures,
            "captions without a picture": self.alone["caption"],
        }
        if any(counts.values()):
            listed = ", ".join(f"{what} ({count})" for what, count in counts.items() if count)
            yield f"{self.pattern}: left out, as by open_clip: {listed}."
        empty = sum(not file.caption.strip() for file in self.captioned)
        if empty:
            yield (
                f"{self.pattern}: {empty} of {len(self.captioned)} captions are empty; they are "
                "read as such, as by open_clip."
            )

    def why_nothing(self) -> str:
        """Explain in one line why the shards have no pair.

        The line says what they hold instead.
        """
        frequent = sorted(self.suffixes.items(), key=lambda item: (-item[1], item[0]))[:8]
        listed = ", ".join(
            f".{suffix[:30]} ({count})" if suffix else f"no suffix ({count})"
            for suffix, count in frequent
        )
        expected = "KEY.jpg, .jpeg, .png or .webp beside KEY.txt, KEY.json or KEY.cls"
        if self.caption_key != _CAPTION_KEY:
            expected = (
                f"KEY.jpg, .jpeg, .png or .webp beside KEY.json that holds {self.caption_key!r}"
            )
        reason = "there is no file"
        if any(
            "." in suffix and suffix.rpartition(".")[2] in _READ_SUFFIXES
            for suffix in self.suffixes
        ):
            reason = (
                "a key ends at the first dot of a name, and these names have more; rename the files"
            )
        elif self.alone["picture"] and self.alone["caption"]:
            reason = "pictures and captions have different keys; name them alike"
        elif self.alone["picture"]:
            reason = "no picture has a caption beside it; add it, or rename the file that holds it"
        elif self.alone["caption"]:
            reason = (
                "no caption has a picture beside it; add it, or write it again as one of these "
                "kinds"
            )
        elif self.suffixes:
            reason = "none of the files is of these kinds; rename them, or write the shards again"
        return (
            f"{self.pattern}: there is no pair. Members: {listed or 'none'}; expected {expected}. "
            f"Here {reason}."
        )


def _split_member(name: str) -> tuple[str, str]:
    """Split a member's name into key and suffix, by webdataset's rule.

    The key ends at the first dot of the last path component.
    """
    path = PurePosixPath(name)
    stem, _, suffix = path.name.partition(".")
    return str(path.with_name(stem)) if stem else "", suffix.lower()


def _caption(archive: tarfile.TarFile, shard: Path, member: tarfile.TarInfo, key: str) -> str:
    try:
        caption = _text(archive, member)
        if member.name.lower().endswith(".json"):
            content = json.loads(caption)
            if isinstance(content, dict) and key not in content:
                names = ", ".join(repr(name)[:40] for name in list(content)[:10]) or "nothing"
                raise DataError(
                    f"{shard}, member {in_one_line(member.name)}: the caption cannot be read: "
                    f"there is no {key!r}, but {names}. Set `caption_key` below `data:` to the one "
                    "that holds it."
                )
            caption = content[key]
        if not isinstance(caption, str):
            raise ValueError(f"the caption is a {type(caption).__name__}")
        return caption
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(
            f"{shard}, member {in_one_line(member.name)}: the caption cannot be read "
            f"({type(error).__name__}: {error}). Expected UTF-8 text, or JSON with a "
            f"{json.dumps(key)} that is text. Write the member again."
        ) from error


def _label(
    archive: tarfile.TarFile, shard: Path, member: tarfile.TarInfo, *, required: bool
) -> int | None:
    try:
        text = _text(archive, member).strip()
    except ValueError:
        text = ""
    if text.isascii() and text.isdigit() and len(text) < 19:
        return int(text)
    if required:
        raise DataError(
            f"{shard}, member {in_one_line(member.name)}: expected the number of a class, 0 or "
            f"more, got {text[:40]!r}. Write the member again."
        )
    return None


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    # A sparse member can stand for any number of zeros.
    if member.issparse() or member.size > _LARGEST_TEXT:
        raise ValueError(f"it is sparse, or larger than {_LARGEST_TEXT} bytes")
    stream = archive.extractfile(member)
    assert stream is not None
    return stream.read().decode()
