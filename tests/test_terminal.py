"""Tables and texts in terminals of any width: nothing is lost, and no word or number is broken."""

import re

import pytest
from compare_by_hand import write_study

from landscape.compare import compare_stores, to_terminal
from landscape.compare.tables import grids
from landscape.terminal import TextTable, wrapped

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
