"""Fonts of the figures.

DejaVu Sans, and for characters that it lacks installed fonts of other scripts: well-known ones
first, then any that has the characters.
"""

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
# Fonts of Linux distributions, macOS and Windows for Chinese, Japanese, Korean, Arabic, Indic and
# Thai letters, and for symbols.
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


# Fonts that draw boxes for every character, and TeX's, which hold other characters than they say.
_NO_LETTERS = ("Last Resort", ".LastResort", "cm")


@cache
def font_families() -> tuple[str, ...]:
    """List DejaVu Sans and the fall-backs that are installed.

    matplotlib would warn of each fall-back that is not.
    """
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return (_FIRST, *(name for name in _FALL_BACKS if name in installed))


@contextmanager
def font_warnings_off() -> Iterator[None]:
    """Suppress matplotlib's warnings of fonts.

    These are warnings of each missing glyph in each drawing, which `complete_fonts` sums up, and of
    fall-backs that have no bold letters.
    """
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


def complete_fonts(fig: "Figure") -> None:
    """Give each text a font that has its characters, from all that are installed.

    Texts that the fonts of `font_families` can write stay as they are. Warns once, in one line, of
    characters that no font has.
    """
    from matplotlib.text import Text

    texts = [text for text in fig.findobj(Text) if text.get_visible()]
    missing = frozenset(
        character
        for text in texts
        for character in text.get_text()
        if character.isprintable() and ord(character) not in _known()
    )
    if not missing:
        return
    others, left = _fonts_with(missing)
    for text in texts:
        if others and not missing.isdisjoint(text.get_text()):
            text.set_fontfamily([*font_families(), *others])
    if left:
        _warn("".join(sorted(left)))


@cache
def _known() -> frozenset[int]:
    return frozenset().union(*(_charmap(name) for name in font_families()))


@cache
def _charmap(family: str) -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties(family=family))).get_charmap())


@cache
def _fonts_with(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Choose few installed fonts that have given characters.

    Also returns the characters that none of them has.
    """
    left, chosen = set(characters), []
    charmaps = {name: _charmap(name) for name in _installed()}
    while left:
        # Ties are broken by name, so that a figure has the same fonts every time.
        name = max(
            charmaps, key=lambda name: len(left & set(map(chr, charmaps[name]))), default=None
        )
        gained = set() if name is None else left & set(map(chr, charmaps[name]))
        if not gained or name is None:
            break
        chosen.append(name)
        left -= gained
    return tuple(chosen), frozenset(left)


def _installed() -> tuple[str, ...]:
    """List the other installed fonts whose tables of characters can be trusted."""
    from matplotlib.font_manager import fontManager

    names = sorted({font.name for font in fontManager.ttflist} - set(font_families()))
    return tuple(name for name in names if not name.startswith(_NO_LETTERS))


@cache
def _warn(characters: str) -> None:
    import matplotlib
    from matplotlib.font_manager import FontManager

    fonts = os.path.join(matplotlib.get_cachedir(), f"fontlist-v{FontManager.__version__}.json")
    shown = (
        characters if len(characters) <= 40 else f"{characters[:40]}... ({len(characters)} in all)"
    )
    warnings.warn_explicit(
        f"the figure is written, but no installed font has {shown!r}, so boxes are drawn instead. "
        "Install fonts that do (Noto Sans, Noto Sans CJK, Noto Emoji), and delete matplotlib's "
        f"list of fonts, {fonts}.",
        UserWarning,
        # So that no line of code is printed after the message.
        filename="landscape.figures",
        lineno=1,
    )
