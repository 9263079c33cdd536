"""Tables of pairs as real people write them, against csv, pandas, and what open_clip_train would
train on.
"""

import csv
import io
import tempfile
from pathlib import Path

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landscape.clip.image_text import open_pairs
from landscape.errors import DataError
from landscape.manifest import DataSettings


def opened(path, **options):
    return open_pairs(
        DataSettings(source=str(path), num_samples=2, batch_size=2, **{"split": "all", **options})
    )


def captions(path, **options):
    pairs = opened(path, **options)
    return [pairs.target(i) for i in range(len(pairs))]


def refusal(path, **options):
    with pytest.raises(DataError) as caught:
        opened(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def lines(*captions, header="filepath\ttitle"):
    return "".join(
        f"{line}\n"
        for line in (header, *(f"img/{i:03d}.png\t{caption}" for i, caption in enumerate(captions)))
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pairs.tsv"


# Everything but what no encoding holds (surrogates) and NUL.
TEXT = st.text(
    st.one_of(
        st.sampled_from('",;\t\n\r |ab'),
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    )
)


@settings(max_examples=200, deadline=None)
@given(
    written=st.lists(TEXT, min_size=1, max_size=5),
    separator=st.sampled_from("\t,;|"),
    encoding=st.sampled_from(["utf-8", "utf-16"]),
)
def test_what_csv_writes_is_read_as_it_was_and_as_pandas_reads_it(written, separator, encoding):
    stream = io.StringIO(newline="")
    rows = [
        ["id", "filepath", "title"],
        *([i, f"{i}.png", caption] for i, caption in enumerate(written)),
    ]
    csv.writer(stream, delimiter=separator).writerows(rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.csv"
        path.write_bytes(stream.getvalue().encode(encoding))
        assert captions(path, separator=separator) == written
        table = pandas.read_csv(
            path, sep=separator, dtype=str, keep_default_na=False, encoding=encoding
        )
        assert table["title"].tolist() == written


PLAIN = st.text(
    st.one_of(
        st.sampled_from('", ab'),
        st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n\t"),
    )
)


@settings(max_examples=200, deadline=None)
@given(
    written=st.lists(PLAIN, min_size=1, max_size=5),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    last=st.booleans(),
)
def test_without_quoting_every_mark_is_a_character(written, end, last):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.tsv"
        path.write_bytes(
            lines(*written).replace("\n", end).removesuffix("" if last else end).encode()
        )
        assert captions(path, quoting="none") == written


def test_an_open_quotation_mark_that_joins_rows_is_refused_with_row_and_caption(path):
    written = [f"a red circle number {i}" for i in range(15)]
    written[5], written[12] = '"Sunset over the hills', 'bridge at night"'
    path.write_text(lines(*written))
    # pandas, and so open_clip, makes eight rows one.
    assert len(pandas.read_csv(path, sep="\t")) == 8
    message = refusal(path)
    assert "row 6 (line 7)" in message and "Sunset over the hills" in message
    assert (
        "a quotation mark is not closed" in message
        and "the next 7 rows" in message
        and "separator" not in message
    )
    # The advice, followed.
    assert "`quoting: none`" in message
    assert captions(path, quoting="none") == written


@pytest.mark.parametrize(
    "order", [("title", "filepath"), ("filepath", "title", "id"), ("id", "filepath", "title")]
)
def test_rows_are_not_joined_in_whatever_order_the_columns_stand(order, path):
    rows = [{"id": str(i), "filepath": f"a/{i}", "title": f"word {i}"} for i in range(6)]
    (path.parent / "a").mkdir()
    for row in rows:
        (path.parent / row["filepath"]).touch()
    rows[1]["title"], rows[4]["title"] = '"first', 'last"'
    path.write_text(
        "\n".join(
            "\t".join(row) for row in [order, *([row[name] for name in order] for row in rows)]
        )
    )
    assert "row 2 (line 3), caption '\"first'" in refusal(path) and "the next 3 rows" in refusal(
        path
    )


def test_a_caption_of_several_lines_that_are_no_rows_is_one_caption(path):
    path.write_text(lines('"line one\nline\ttwo"', '"a\nb\tc"', "plain"))
    assert captions(path) == ["line one\nline\ttwo", "a\nb\tc", "plain"]


def test_marks_that_enclose_no_field_are_characters_and_the_notes_say_so(path):
    written = ['"Sunset" over the hills', 'bridge at night"', 'a 5" disk', '"', 'the "end', '"open']
    path.write_text(lines(*written))
    assert captions(path) == written
    (note,) = opened(path).notes
    assert "3 fields begin with a quotation mark" in note and "`quoting: none`" in note
    path.write_text(lines("plain", '"quoted ""so"""', 'a 5" disk'))
    assert captions(path) == ["plain", 'quoted "so"', 'a 5" disk'] and opened(path).notes == ()


def test_a_quotation_mark_that_stays_open_to_the_end_is_not_blamed_on_the_separator(path):
    path.write_text(lines("plain", '"Sunset over the hills', "other"))
    assert captions(path) == ["plain", '"Sunset over the hills', "other"]
    path.write_text(lines("plain", '"of two\nlines', "other"))
    assert "row 3 (line 4)" in refusal(path) and "quotation marks" in refusal(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_honoured(encoding, path):
    path.write_bytes(lines("café", "日本").encode(encoding))
    assert captions(path) == ["café", "日本"]
    assert captions(path, encoding="cp1252") == ["café", "日本"]


@pytest.mark.parametrize(
    ("encoding", "guess"),
    [
        ("latin-1", "latin-1"),
        ("cp1252", "cp1252"),
        ("utf-16-le", "utf-16-le"),
        ("utf-16-be", "utf-16-be"),
    ],
)
def test_another_encoding_is_named_with_the_row_and_the_advice_works(encoding, guess, path):
    written = ["plain", "caf\u00e9 " + ("\u201cset\u201d" if encoding == "cp1252" else "")]
    path.write_bytes(lines(*written).encode(encoding))
    message = refusal(path)
    assert (
        "encoding" in message and f"`encoding: {guess}`" in message and "separator" not in message
    )
    assert (
        ("row 2" in message and "café" in message)
        if "utf" not in encoding
        else "filepath" in message
    )
    assert captions(path, encoding=guess) == written


def test_a_byte_order_mark_before_something_else_is_not_blamed_on_the_key(path):
    path.write_bytes(lines("plain").encode("utf-8-sig") + "1.png\tcaf\u00e9\n".encode("latin-1"))
    assert "row 2: the encoding is not utf-8-sig" in refusal(path) and "`encoding:" not in refusal(
        path
    )


def test_quoting_none_is_advised_only_where_it_helps(path):
    path.write_text('filepath\ttitle\tid\na.png\t"b\t1"\n')
    assert "`quoting: none`" in refusal(path) and captions(path, quoting="none") == ['"b']
    path.write_text('filepath\ttitle\na.png\t"several\nlines" and more\n')
    assert "`quoting: none`" not in refusal(path)


def test_other_files_than_tables_are_called_what_they_are(path):
    for start, kind in ((b"\x1f\x8b\x08", "gzip"), (b"PK\x03\x04", "zip"), (b"PAR1", "Parquet")):
        path.write_bytes(start + bytes(200))
        assert kind in refusal(path)
    path.write_bytes(lines("a", "b\0c", "d").encode())
    assert "line 3" in refusal(path) and "NUL" in refusal(path)


def test_a_row_of_another_length_is_refused_where_it_stands(path):
    path.write_text(lines("a", "b\tc", "d"))
    assert (
        "row 2 (line 3)" in refusal(path)
        and "3 columns" in refusal(path)
        and "expected 2" in refusal(path)
    )
    path.write_text(lines("a") + "img/1.png\n")
    assert "row 2 (line 3)" in refusal(path) and "1 columns" in refusal(path)
    path.write_bytes(lines("a", "b\rc").encode())
    assert "row 3" in refusal(path)


@pytest.mark.parametrize("end", ["\r", "\r\n"])
def test_line_ends_of_every_kind_and_lines_of_blanks_are_no_trouble(end, path):
    path.write_bytes((end + lines("a", "b\n\n  ", "c")).replace("\n", end).encode())
    assert captions(path) == ["a", "b", "c"]


def test_the_header_decides_the_columns(path):
    path.write_text("filepath\ttitle\n")
    assert "a header and no row" in refusal(path)
    path.write_text(lines("a", header=" filepath \t title"))
    assert captions(path) == ["a"]
    path.write_text("filepath\ttitle\ttitle\na.png\tx\ty\n")
    assert "2 columns 'title'" in refusal(path)
    path.write_text("filepath\ttitle\tnote\tnote\na.png\tx\ty\tz\n")
    assert captions(path) == ["x"]


def test_a_separator_is_advised_only_where_another_one_fits(path):
    path.write_text("filepath;title\na.png;x\n")
    assert '`separator: ";"`' in refusal(path)
    assert captions(path, separator=";") == ["x"]
    path.write_text("filepath\tcaption\na.png\tx\n")
    assert "separator" not in refusal(path).split(". ")[-1] and "`caption_key`" in refusal(path)
    assert captions(path, caption_key="caption") == ["x"]


def test_empty_captions_are_counted_in_the_notes(path):
    path.write_text(lines("a", "", " "))
    assert captions(path) == ["a", "", " "]
    (note,) = opened(path).notes
    assert "2 of 3 captions are empty" in note


def test_a_large_table_takes_time_in_proportion(path):
    # Marks that open and close nothing must not be searched for to the end of the file, row by row.
    written = [f'"{"" if i % 2 else """x ""y"" """}word {i}' for i in range(40_000)]
    path.write_text(lines(*written))
    assert captions(path) == written
