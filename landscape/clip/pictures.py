"""Pictures decoded from bytes: accepted formats, and pixels that are not 8-bit RGB.

Everything is read as open_clip and timm read it, `Image.open(...).convert("RGB")`: the first frame
of an animation, the pixels as stored whatever an EXIF orientation says, without a colour profile,
transparency dropped. Numbers of more than 8 bits are not scaled by this: all above 255 become
white.
"""

import io
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from PIL import Image, ImageFile

from landscape.files import open_regular

# The formats of torchvision's ImageFolder (torchvision.datasets.folder.IMG_EXTENSIONS), and GIF,
# which image-text pairs from the web have. Pillow opens some thirty others, for documents, fonts
# and instruments, which training data do not use.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
# Pillow's own limit of pixels, uncompressed, is close to it.
LARGEST_FILE = 600_000_000
# Kinds of pixels whose numbers are not of 8 bits: "I;16", "I;16B", "I", "F".
_DEEP = ("I", "F")
# Kinds of pixels whose colours change if they are resized before they are converted.
_UNLIKE_RGB = ("1", "P", "PA", "LA", "RGBA", "La", "RGBa")
_LOADING = Lock()


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a picture: Pillow's mode, and the size in pixels."""

    mode: str
    width: int
    height: int


def decode(content: bytes) -> Image.Image:
    """Decode a picture as RGB.

    Raises:
        UnidentifiedImageError: If it is of no format that is opened.
        Exception: Any error of Pillow's decoders; also if it is truncated, or has more pixels than
            Pillow allows.
    """
    with _whole_pictures_only(), Image.open(io.BytesIO(content), formats=FORMATS) as picture:
        return picture.convert("RGB")


def decode_with_opacity(content: bytes) -> Image.Image:
    """Decode a picture as RGBA where it has transparency, else as RGB.

    Raises:
        ValueError: If its numbers have more than 8 bits; as RGB, all above 255 would be white.
        Exception: As for `decode`.
    """
    with _whole_pictures_only(), Image.open(io.BytesIO(content), formats=FORMATS) as picture:
        if picture.mode.startswith(_DEEP):
            raise ValueError(
                f"it holds numbers of more than 8 bits (mode {picture.mode}); save it with 8 bits"
            )
        return picture.convert("RGBA" if _is_transparent(picture) else "RGB")


def has_transparency(path: Path) -> bool | None:
    """Tell whether a picture's header declares transparency; None if unreadable."""
    try:
        with (
            open_regular(path) as stream,
            _whole_pictures_only(),
            Image.open(stream, formats=FORMATS) as picture,
        ):
            return _is_transparent(picture)
    # Decoding the picture will report the error.
    except Exception:
        return None


def _is_transparent(picture: Image.Image) -> bool:
    return "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info


def header_of(path: str, offset: int, size: int | None) -> Header | None:
    """Read a picture's header; None where it cannot be read.

    The picture is a file or a piece of one.
    """
    try:
        with open(path, "rb") as stream:
            stream.seek(offset)
            # Headers stand at the front, except that of a TIFF.
            piece = stream if size is None else io.BytesIO(stream.read(size))
            with _whole_pictures_only(), Image.open(piece, formats=FORMATS) as picture:
                return Header(picture.mode, *picture.size)
    # Decoding the picture will report the error.
    except Exception:
        return None


@contextmanager
def _whole_pictures_only() -> Iterator[None]:
    """Make a truncated picture an error within the block.

    Pillow's switch LOAD_TRUNCATED_IMAGES, which any other code may have set, would fill the rest
    with grey. Pictures of which Pillow only warns (many pixels, odd metadata) are read without a
    warning, as in training.
    """
    with _LOADING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


def remarks(
    headers: Iterable[Header | None],
    *,
    image_size: int | None,
    model_size: tuple[int, int] | None,
    from_table: bool,
) -> Iterator[str]:
    """Describe how unsuitable pictures are changed, as ends of sentences.

    These are pictures that are not 8-bit RGB, or are smaller than the model's size.

    Args:
        image_size: Size to which the data set scales them first, if at all.
        model_size: (height, width) of the model's input, where it is known.
        from_table: Whether open_clip_train would read them from a table.
    """
    known = [header for header in headers if header is not None]
    modes = Counter(header.mode for header in known)
    deep = {mode: count for mode, count in modes.items() if mode.startswith(_DEEP)}
    if deep:
        yield (
            f"{_of(deep, known)} hold numbers of more than 8 bits (mode "
            f"{', '.join(sorted(deep))}); they are not scaled, so values above 255 become white, "
            "as in open_clip. Save them with 8 bits before training if this is not intended"
        )
    unlike = {mode: count for mode, count in modes.items() if mode in _UNLIKE_RGB}
    if unlike and from_table:
        yield (
            f"{_of(unlike, known)} have a palette or transparency (mode "
            f"{', '.join(sorted(unlike))}) and become RGB before they are resized, while "
            "open_clip_train, which converts pictures of a table afterwards, has other pixels"
        )
    if model_size is not None and image_size is not None and (image_size, image_size) != model_size:
        yield (
            f"all are scaled to image_size {image_size} first, then to the model's {model_size[0]} "
            f"x {model_size[1]} pixels"
        )
    least = (
        image_size if image_size is not None else min(model_size) if model_size is not None else 0
    )
    small = sum(min(header.width, header.height) < least for header in known)
    if small:
        yield (
            f"{small} of {len(known)} drawn pictures are smaller than {least} pixels, and are "
            "enlarged"
        )


def _of(some: dict[str, int], known: list[Header]) -> str:
    return f"{sum(some.values())} of {len(known)} drawn pictures"
