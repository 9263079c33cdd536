"""The English and the layout of the source stay within limits; `python -m tests.house` prints the
measures.
"""

import pytest

from tests import house

# Those left are of optional packages, compiled kernels, and what a command needs after its checks.
MAX_LATE_IMPORTS = 12
MAX_LONG_FILES = 33


def test_docstrings_of_functions_begin_with_a_verb():
    assert house.verb_share() >= 0.9


def test_summaries_are_short():
    median, most = house.summary_words()
    assert median <= 10 and most <= 14


def test_local_names_say_what_they_hold():
    assert house.empty_names() == []


def test_lines_are_at_most_100_characters_long():
    assert house.long_lines() == []


@pytest.mark.parametrize("room", house.HARD_ROOMS)
def test_rooms_of_hard_mathematics_are_commented(room):
    assert house.comments_per_100(room) >= 7


@pytest.mark.parametrize(
    ("docstring", "is_verb"),
    [("Return the mean.", True), ("The mean.", False), ("Whether it is.", False)],
)
def test_a_first_word_is_told_from_a_verb(docstring, is_verb):
    assert house.Summary(house.PACKAGE, "f", docstring).begins_with_verb is is_verb


def test_comments_and_code_are_counted_apart(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        '"""Docstring.\n\n# no comment\n"""\n\n# a comment\nx = 1  # beside code\n\n\n'
        'def f():\n    """Do it."""\n    return (\n        x\n    )\n'
    )
    comments, code = house._numbers_of_lines(path)
    assert comments == {6} and code == {7, 10, 12, 13, 14}


def test_imports_inside_functions_are_few():
    places = house.late_imports()
    assert len(places) <= MAX_LATE_IMPORTS, "\n".join(places)


def test_long_files_are_few_and_a_new_one_is_seen(tmp_path):
    files = house.long_files()
    assert len(files) <= MAX_LONG_FILES, "\n".join(files)
    for name, length in (("short.py", house.LENGTH), ("long.py", house.LENGTH + 1)):
        (tmp_path / name).write_text("x = 1\n" * length)
    assert house.long_files(tmp_path) == [f"long.py: {house.LENGTH + 1}"]
