"""The fonts of the figures: DejaVu Sans, and for the characters that it lacks those of other scripts that are installed."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FIRST = "DejaVu Sans"
# What Linux distributions, macOS and Windows bring for Chinese, Japanese, Korean, Arabic, Indic and Thai letters and symbols.
_FALL_BACKS = (
    *(f"Noto Sans CJK {place}" for place in ("SC", "TC", "HK", "JP", "KR")),
    *(f"Noto Sans {place}" for place in ("SC", "TC", "HK", "JP", "KR")),
    *(
        "Source Han Sans SC",
        "WenQuanYi Micro Hei",
        "WenQuanYi Zen Hei",
        "Droid Sans Fallback",
        "IPAGothic",
        "NanumGothic",
    ),
    *(
        "PingFang SC",
        "Hiragino Sans GB",
        "Hiragino Sans",
        "Apple SD Gothic Neo",
        "Arial Unicode MS",
    ),
    *("Microsoft YaHei", "SimHei", "Yu Gothic", "MS Gothic", "Malgun Gothic"),
    *(
        f"Noto Sans {script}"
        for script in ("Arabic", "Hebrew", "Devanagari", "Bengali", "Gurmukhi", "Gujarati", "Oriya")
    ),
    *(
        f"Noto Sans {script}"
        for script in ("Tamil", "Telugu", "Kannada", "Malayalam", "Sinhala", "Thai", "Khmer")
    ),
    *(
        f"Noto Sans {script}"
        for script in ("Myanmar", "Ethiopic", "Mongolian", "Symbols", "Symbols 2", "Math")
    ),
    *("Nirmala UI", "Leelawadee UI", "FreeSans", "Noto Emoji", "Segoe UI Symbol", "Unifont"),
)


@cache
def font_families() -> tuple[str, ...]:
    """DejaVu Sans and the fall-backs that are installed; matplotlib warns of each that is not."""
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return (_FIRST, *(name for name in _FALL_BACKS if name in installed))


@contextmanager
def font_warnings_off() -> Iterator[None]:
    """Leave out matplotlib's warnings of each missing glyph in each drawing, which `tell_missing` sums up, and of fall-backs
    that have no bold letters."""
    logger = logging.getLogger("matplotlib.font_manager")
    logger.addFilter(_is_not_of_weight)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"Glyph \d+ .*missing from (font|current)")
            yield
    finally:
        logger.removeFilter(_is_not_of_weight)


def _is_not_of_weight(record: logging.LogRecord) -> bool:
    return "Failed to find font weight" not in record.getMessage()


def tell_missing(fig: "Figure") -> None:
    """Warn once, on one line, of the characters of a figure that no font has."""
    from matplotlib.text import Text

    written = {
        character
        for text in fig.findobj(Text)
        if text.get_visible()
        for character in text.get_text()
    }
    missing = {
        character
        for character in written
        if character.isprintable() and ord(character) not in _known()
    }
    if missing:
        _warn("".join(sorted(missing)))


@cache
def _known() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = (get_font(findfont(FontProperties(family=name))) for name in font_families())
    return frozenset(code for font in fonts for code in font.get_charmap())


@cache
def _warn(characters: str) -> None:
    import matplotlib
    from matplotlib.font_manager import FontManager

    fonts = os.path.join(matplotlib.get_cachedir(), f"fontlist-v{FontManager.__version__}.json")
    shown = (
        characters if len(characters) <= 40 else f"{characters[:40]}... ({len(characters)} in all)"
    )
    warnings.warn_explicit(
        f"the figure is written, but no font at hand has {shown!r}, so boxes stand in their place. Install fonts that do "
        f"(Noto Sans, Noto Sans CJK, Noto Emoji), and delete matplotlib's list of fonts, {fonts}.",
        UserWarning,
        # Without a line of code after it.
        filename="landscape.figures",
        lineno=1,
    )
