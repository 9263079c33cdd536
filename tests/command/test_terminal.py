"""Tables and texts in terminals of any width: nothing is lost, and no word or number is broken."""

import contextlib
import os
import pty
import re
import subprocess
import sys
from unicodedata import east_asian_width

import pytest

from landscape.compare import compare_stores, to_terminal
from landscape.compare.tables import grids
from landscape.terminal import TextTable, terminal_width, wrapped
from tests.helpers.comparison_stores import write_study

AUDIT = TextTable(
    title="ViT, epoch 25",
    header=("module", "test", "error", "verdict", "why"),
    rows=(
        ("(whole model)", "symmetry", "1.2e-16", "passed", ""),
        (
            "visual.blocks.0.scan",
            "gradient",
            "3.1e-01",
            "FAILED",
            "the product has no second derivatives of its own",
        ),
    ),
    num_left=5,
)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    store = write_study(tmp_path_factory.mktemp("study") / "spectra.h5", epochs=(0,))
    return compare_stores(
        [store], metrics=["lambda_max", "nep", "trace", "num_negative_estimate"], num_resamples=99
    )


def words_of(text: str) -> list[str]:
    return re.sub(r"[│┃━─┏┓┗┛┡┩┳┻╇┴┬├┤┼└┘]", " ", text).split()


@pytest.mark.parametrize("width", [300, 120, 80, 50, 20, 8])
def test_every_word_and_number_of_a_comparison_stands_whole_in_a_terminal_of_any_width(
    comparison, width
):
    text = to_terminal(comparison, width=width)
    printed = set(words_of(text.replace(":", " ")))
    for grid in grids(comparison):
        for cell in (*grid.header[2:], *(cell for row in grid.rows for cell in row)):
            assert set(cell.replace(":", " ").split()) <= printed, cell
    # What does not fit stands alone on its line.
    for line in text.splitlines():
        assert len(line) <= width or " " not in re.sub(r" (?=[±%])|(?<=±) ", "", line.strip()), line


@pytest.mark.parametrize("width", [100, 60, 20])
def test_an_audit_is_whole_in_a_terminal_of_any_width(width):
    words = set(words_of(AUDIT.text(width)))
    for row in AUDIT.rows:
        assert set(" ".join(row).split()) <= {word.removesuffix(":") for word in words}
    assert all(
        len(line) <= max(width, len("visual.blocks.0.scan"))
        for line in AUDIT.text(width).splitlines()
    )


def test_a_table_that_is_too_wide_is_split_by_its_columns_and_repeats_its_names():
    table = TextTable(title="T", header=("name", *"abcdefgh"), rows=(("x", *["1234567890"] * 8),))
    text = table.text(60)
    assert text.count("name") == 2 and text.count("1234567890") == 8 and "T (continued)" in text
    assert max(map(len, text.splitlines())) <= 60
    # Narrower than a name and a number: a block per row.
    assert "a: 1234567890" in table.text(16) and "┃" not in table.text(16)


def test_a_number_its_error_and_its_unit_stay_together():
    line = "estimated trace 630 ± 180, negative share 38 ± 14 % of all"
    for width in range(14, 60):
        lines = wrapped(line, width).splitlines()
        assert any("630 ± 180," in part for part in lines) and any(
            "38 ± 14 %" in part for part in lines
        )
    assert wrapped(line, None) == line and wrapped("", 5) == ""
    table = TextTable(title="", header=("n", "trace"), rows=(("x", "(3.5 ± 1.0)e-04"),))
    assert "(3.5 ± 1.0)e-04" in table.text(26)


@pytest.mark.parametrize("width", [80, 30])
def test_letters_that_take_two_columns_are_neither_cut_nor_out_of_line(width):
    table = TextTable(
        title="x",
        header=("series", "λ"),
        rows=(("视觉变换器", "1.5 ± 0.2"), ("ビジョン", "12"), ("plain", "3")),
    )
    lines = table.text(width).splitlines()[1:]
    assert all(name in "".join(lines) for name in ("视觉变换器", "ビジョン", "1.5 ± 0.2"))
    # Each of these letters takes two columns of a terminal (Unicode, East Asian Width W).
    wide = [sum(east_asian_width(letter) == "W" for letter in line) for line in lines]
    assert len({len(line) + more for line, more in zip(lines, wide)}) == 1


def test_a_number_of_columns_that_is_stated_holds_in_a_pipe_too(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert terminal_width() is None
    monkeypatch.setenv("COLUMNS", "60")
    assert terminal_width() == 60


@pytest.mark.parametrize(
    ("variables", "is_coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False)],
)
def test_bars_have_no_colour_where_the_user_wants_none(tmp_path, variables, is_coloured):
    code = (
        "from pathlib import Path\n"
        "from landscape.workers.progress import Progress\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "facts = {'num_planned': 2, 'num_stored': 0, 'noun': 'batches', 'folder': folder}\n"
        "with Progress(**facts) as progress:\n"
        "    progress.begin('vit epoch 0')\n"
        "    progress.add('a', num_done=2, num_failed=0, seconds=0.1)\n"
    )
    seen = shown_on_a_terminal([sys.executable, "-c", code], variables)
    assert "vit epoch 0" in seen
    assert bool(re.search(r"\x1b\[[\d;]*3\d", seen)) is is_coloured


def shown_on_a_terminal(command: list[str], variables: dict[str, str]) -> str:
    """What a program writes to a terminal of 80 columns."""
    plain = {name: value for name, value in os.environ.items() if not name.endswith("_COLOR")}
    plain |= {"TERM": "xterm-256color", "COLUMNS": "80"}
    outer, inner = pty.openpty()
    process = subprocess.Popen(command, stdout=inner, stderr=inner, env=plain | variables)
    os.close(inner)
    seen = b""
    with contextlib.suppress(OSError):
        while piece := os.read(outer, 65536):
            seen += piece
    os.close(outer)
    assert process.wait() == 0, seen.decode()
    return seen.decode()
