"""Figures where the surroundings are not made for them: backends of notebooks, fonts without the
letters of a label.
"""

import logging
import subprocess
import sys
import warnings

import numpy as np
import pytest
from matplotlib import ft2font

from landscape.figures import EigenvalueSample, figure3, fonts, save_figure
from landscape.figures.style import paper_style
from landscape.figures.text import text_width

# As in the environment of a command that a notebook's kernel starts: MPLBACKEND names what is not
# installed there.
HIDE_INLINE = """
import importlib.metadata, sys
sys.modules["matplotlib_inline"] = None
entry_points = importlib.metadata.entry_points
hidden = {"group": "matplotlib.backend"}
importlib.metadata.entry_points = lambda **group: () if group == hidden else entry_points(**group)
"""
DRAW = """
import os, pathlib, sys
import numpy as np
import landscape.report.page
from landscape.figures import EigenvalueSample, figure3, save_figure
from landscape.figures.style import line_styles
line_styles()
fig = figure3([EigenvalueSample("a", "A", 0, np.eye(5), np.eye(5) > -1, 5)])
for suffix in ("png", "pdf", "svg"):
    save_figure(fig, pathlib.Path(sys.argv[1]) / f"figure.{suffix}")
import matplotlib
backend = dict.__getitem__(matplotlib.rcParams, "backend")
print(os.environ["MPLBACKEND"], backend, "matplotlib.pyplot" in sys.modules, sep=",")
"""


@pytest.mark.parametrize(
    ("backend", "kept"),
    [("module://matplotlib_inline.backend_inline", False), ("nonsense", False), ("TkAgg", True)],
)
def test_the_backend_of_a_notebook_stops_no_figure_and_one_that_is_there_stays(
    backend, kept, tmp_path, monkeypatch
):
    monkeypatch.setenv("MPLBACKEND", backend)
    fails = subprocess.run(
        [sys.executable, "-c", HIDE_INLINE + "import matplotlib"], capture_output=True, text=True
    )
    assert ("not a valid value for backend" in fails.stderr) is not kept
    done = subprocess.run(
        [sys.executable, "-c", HIDE_INLINE + DRAW, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    environment, used, has_pyplot = done.stdout.strip().split(",")
    assert environment == backend and (used == backend) is kept and has_pyplot == "False"
    assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".pdf", ".svg"}


def test_a_backend_in_use_is_left_alone(tmp_path):
    import matplotlib

    before = dict.__getitem__(matplotlib.rcParams, "backend")
    save_figure(labelled("A"), tmp_path / "a.png")
    assert dict.__getitem__(matplotlib.rcParams, "backend") is before


def labelled(label, title=None):
    values = np.random.default_rng(0).normal(3, 30, (4, 5))
    return figure3(
        [EigenvalueSample("a", label, e, values, values > -1e9, 4) for e in (0, 1)], title=title
    )


@pytest.fixture
def fresh_fonts(caplog):
    """Nothing is known of fonts, nor told, before and after; warnings alone are logged."""
    # Whatever level other tests have left to the root logger.
    caplog.set_level(logging.WARNING)
    cached = (fonts.font_families, fonts._known, fonts._charmap, fonts._fonts_with, fonts._warn)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def test_letters_that_no_font_has_are_told_once_on_one_line(
    fresh_fonts, monkeypatch, tmp_path, caplog
):
    monkeypatch.setattr(fonts, "_FALL_BACKS", ())
    monkeypatch.setattr(fonts, "_installed", lambda: ())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for suffix in ("png", "pdf", "svg", "png"):
            save_figure(labelled("视觉 ViT", title="日本"), tmp_path / f"a.{suffix}")
            assert (tmp_path / f"a.{suffix}").stat().st_size > 5000
    (warning,) = caught
    text = warnings.formatwarning(
        warning.message, warning.category, warning.filename, warning.lineno, warning.line
    )
    assert "'日本视觉'" in text and "Noto Sans CJK" in text and text.count("\n") == 1
    assert not caplog.records


def test_a_fall_back_font_gives_the_letters_that_the_first_one_lacks(
    fresh_fonts, monkeypatch, tmp_path, caplog
):
    # STIX comes with matplotlib and has this letter; DejaVu Sans has not. The second font is not
    # installed.
    letter = "\N{LATIN SMALL LETTER K WITH PALATAL HOOK}"
    monkeypatch.setattr(fonts, "_FALL_BACKS", ("STIXGeneral", "No Such Font"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(labelled(letter), tmp_path / "a.svg")
    assert "STIX" in (tmp_path / "a.svg").read_text()
    assert not caplog.records


def test_a_font_that_is_not_well_known_is_used_where_it_alone_has_the_letters(
    fresh_fonts, monkeypatch, tmp_path, caplog
):
    monkeypatch.setattr(fonts, "_FALL_BACKS", ())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(labelled("\N{LATIN SMALL LETTER K WITH PALATAL HOOK}"), tmp_path / "a.svg")
    assert "STIX" in (tmp_path / "a.svg").read_text()
    assert not caplog.records


@pytest.mark.skipif(
    not hasattr(ft2font, "__libraqm_version__"), reason="matplotlib joins letters from 3.11 on"
)
def test_arabic_letters_are_joined_and_run_from_right_to_left():
    # DejaVu Sans has them. The first letter of this word has another shape than when it stands
    # alone, so the word is narrower than its letters apart.
    with paper_style():
        apart = sum(text_width(letter, points=10) for letter in "عين")
        assert text_width("عين", points=10) < 0.95 * apart


def test_fall_back_fonts_change_no_byte_of_a_figure_that_needs_none(
    fresh_fonts, monkeypatch, tmp_path, caplog
):
    for suffix in ("png", "pdf", "svg"):
        monkeypatch.setattr(fonts, "_FALL_BACKS", ())
        fonts.font_families.cache_clear()
        save_figure(labelled("plain", title="Title"), tmp_path / f"a.{suffix}")
        # Without bold letters, of which matplotlib warns at every bold title.
        monkeypatch.setattr(fonts, "_FALL_BACKS", ("STIXSizeOneSym", "cmr10"))
        fonts.font_families.cache_clear()
        assert fonts.font_families() == ("DejaVu Sans", "STIXSizeOneSym", "cmr10")
        save_figure(labelled("plain", title="Title"), tmp_path / f"b.{suffix}")
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    assert not caplog.records
