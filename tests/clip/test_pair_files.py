"""Pairs from CSV/TSV tables and tar shards, against open_clip's and webdataset's own readers, PIL
and hashlib.
"""

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from landscape.clip.image_text import curvature_batches, open_pairs, split_of
from landscape.errors import DataError
from landscape.manifest import DataSettings


def settings(source, **options):
    return DataSettings(
        source=str(source), num_samples=2, batch_size=2, **{"split": "all", **options}
    )


def picture(i, size=(7, 5)):
    return Image.fromarray(
        np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    )


def encoded(image, extension):
    stream = io.BytesIO()
    image.save(stream, {"jpg": "jpeg"}.get(extension, extension))
    return stream.getvalue()


@pytest.fixture
def table(tmp_path):
    """A folder of four pictures and a TSV that lists them by relative path."""
    captions = ["a cat, asleep", 'a "quoted" dog', "NA", "café\tau lait"]
    (tmp_path / "pictures").mkdir()
    for i in range(4):
        picture(i).save(tmp_path / "pictures" / f"{i}.png")
    rows = ["filepath\ttitle"] + [
        f"pictures/{i}.png\t{quoted(caption)}" for i, caption in enumerate(captions)
    ]
    (tmp_path / "pairs.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return tmp_path / "pairs.tsv", captions


def quoted(caption):
    return '"' + caption.replace('"', '""') + '"'


def test_a_table_yields_its_pictures_and_captions_in_order_with_paths_relative_to_the_table(
    table, monkeypatch
):
    path, captions = table
    monkeypatch.chdir("/")
    pairs = open_pairs(settings(path))
    assert len(pairs) == 4
    for i, (image, caption) in enumerate(pairs[i] for i in range(4)):
        assert caption == captions[i]
        assert image.mode == "RGB" and (np.asarray(image) == np.asarray(picture(i))).all()


def test_a_table_with_absolute_paths_reads_as_open_clip_reads_it(tmp_path):
    from open_clip_train.data import CsvDataset

    for i in range(3):
        picture(i).save(tmp_path / f"{i}.png")
    rows = ["title,filepath"] + [f'"word {i}, ""said""",{tmp_path / f"{i}.png"}' for i in range(3)]
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    theirs = CsvDataset(
        str(tmp_path / "pairs.csv"), np.asarray, "filepath", "title", sep=",", tokenizer=list
    )
    ours = open_pairs(settings(tmp_path / "pairs.csv", separator=","))
    assert [
        (np.asarray(image).tolist(), caption) for image, caption in (ours[i] for i in range(3))
    ] == [(image.tolist(), caption) for image, caption in (theirs[i] for i in range(3))]


def test_other_column_names_and_separators_are_honoured(tmp_path):
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "pairs.csv").write_text("id;file;text\n1;a.png;one word\n")
    pairs = open_pairs(
        settings(tmp_path / "pairs.csv", separator=";", image_key="file", caption_key="text")
    )
    assert pairs[0][1] == "one word"


def test_the_digest_of_a_table_is_the_same_in_any_folder_and_under_any_hash_seed(table, tmp_path):
    path, _ = table
    script = (
        "import sys; from landscape.clip.image_text import *; from landscape.manifest import "
        "DataSettings\npairs = open_pairs(DataSettings(source=sys.argv[1], num_samples=2, "
        "batch_size=2, split='all'))\nbatches = curvature_batches(pairs, num_samples=4, "
        "batch_size=2, seed=3, transform=None, tokenizer=lambda t: t)\nprint(pairs.digest, "
        "batches.indices, batches.digest(1), batches.protocol_digest)"
    )
    copy = Path(tempfile.mkdtemp(dir=tmp_path)) / "elsewhere.tsv"
    copy.write_bytes(path.read_bytes())
    (copy.parent / "pictures").symlink_to(path.parent / "pictures")
    seen = set()
    for seed, source in (("1", path), ("2", copy)):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        command = [sys.executable, "-c", script, str(source)]
        seen.add(
            subprocess.run(
                command, env=environment, capture_output=True, text=True, check=True
            ).stdout
        )
    assert len(seen) == 1 and len(seen.pop().split()[0]) == 64


def test_the_digest_changes_with_a_caption_a_path_the_order_and_the_size(table):
    path, _ = table
    content = path.read_text(encoding="utf-8")
    header, *rows = content.splitlines()
    digests = [open_pairs(settings(path)).digest, open_pairs(settings(path, image_size=4)).digest]
    for variant in (
        content.replace("asleep", "awake"),
        content.replace("0.png", "1.png"),
        "\n".join([header, *rows[::-1]]),
    ):
        path.write_text(variant, encoding="utf-8")
        digests.append(open_pairs(settings(path)).digest)
    assert len(set(digests)) == 5


def test_the_splits_of_a_table_part_its_rows_by_path_and_caption_alone(tmp_path):
    names = [f"{i}.png" for i in range(300)]
    (tmp_path / "pairs.tsv").write_text(
        "filepath\ttitle\n" + "".join(f"{name}\tpicture {name}\n" for name in names)
    )
    (tmp_path / "fewer.tsv").write_text(
        "filepath\ttitle\n" + "".join(f"{name}\tpicture {name}\n" for name in names[:150])
    )
    sizes = {
        split: len(open_pairs(settings(tmp_path / "pairs.tsv", split=split)))
        for split in ("train", "held_out", "all")
    }
    held_out = [name for name in names if split_of(name, f"picture {name}") == "held_out"]
    assert sizes == {"train": 300 - len(held_out), "held_out": len(held_out), "all": 300}
    assert 10 <= len(held_out) <= 60  # 30 expected, standard deviation 5.2
    fewer = open_pairs(settings(tmp_path / "fewer.tsv", split="held_out"))
    assert len(fewer) == len([name for name in held_out if name in names[:150]])


def test_an_image_size_scales_the_shorter_side_and_cuts_the_centre_square(tmp_path):
    Image.new("RGB", (40, 20), (10, 200, 30)).save(tmp_path / "a.png")
    wide = Image.new("RGB", (40, 20), "black")
    wide.paste((255, 255, 255), (10, 0, 30, 20))
    wide.save(tmp_path / "b.png")
    (tmp_path / "pairs.tsv").write_text("filepath\ttitle\na.png\tgreen\nb.png\tcentre\n")
    pairs = open_pairs(settings(tmp_path / "pairs.tsv", image_size=10))
    green, centre = np.asarray(pairs[0][0]), np.asarray(pairs[1][0])
    assert green.shape == (10, 10, 3) and (green == [10, 200, 30]).all()
    # The white square fills the cut; the bicubic kernel reaches two pixels over its edge.
    assert (centre[:, 2:-2] == 255).all()


def shard(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path):
    """Two shards: keys out of order, four kinds of pictures, captions as text and as JSON, and what
    is to be left out.
    """
    shard(
        tmp_path / "data-001.tar",
        [
            ("b/9.png", encoded(picture(9), "png")),
            ("b/9.json", json.dumps({"caption": "nine", "extra": 1}).encode()),
        ],
    )
    shard(
        tmp_path / "data-000.tar",
        [
            ("3.jpg", encoded(picture(3), "jpg")),
            ("3.txt", "drei é".encode()),
            ("1.webp", encoded(picture(1), "webp")),
            ("1.txt", b"one"),
            ("1.json", b'{"caption": "not this"}'),
            ("2.JPEG", encoded(picture(2), "jpg")),
            ("2.txt", b"two"),
            ("lonely.png", encoded(picture(4), "png")),
            ("wordy.txt", b"no picture"),
            ("1.cls", b"7"),
        ],
    )
    return tmp_path


@pytest.mark.parametrize(
    "pattern", ["data-{000..001}.tar", "data-*.tar", "{data-001,data-000}.tar", "data-00[01].tar"]
)
def test_shards_yield_complete_pairs_sorted_by_shard_and_key(shards, pattern):
    pairs = open_pairs(settings(shards / pattern))
    assert [pairs[i][1] for i in range(len(pairs))] == ["one", "two", "drei é", "nine"]


def test_shards_yield_the_pixels_that_webdataset_decodes(shards):
    import webdataset

    reader = webdataset.WebDataset(str(shards / "data-000.tar"), shardshuffle=False).decode(
        "pilrgb"
    )
    theirs = {sample["txt"]: sample for sample in reader if "txt" in sample}
    pairs = open_pairs(settings(shards / "data-000.tar"))
    assert len(pairs) == 3
    for image, caption in (pairs[i] for i in (2, 0, 1)):
        sample = theirs[caption]
        decoded = next(
            sample[extension] for extension in ("jpg", "jpeg", "webp") if extension in sample
        )
        assert (np.asarray(image) == np.asarray(decoded)).all()


def test_a_shard_digest_does_not_depend_on_the_order_in_which_members_were_written(
    shards, tmp_path
):
    (tmp_path / "turned").mkdir()
    with tarfile.open(shards / "data-000.tar") as archive:
        members = [(member.name, archive.extractfile(member).read()) for member in archive]
    shard(tmp_path / "turned" / "data-000.tar", members[::-1])
    first, second = (
        open_pairs(settings(folder / "data-000.tar")) for folder in (shards, tmp_path / "turned")
    )
    assert first.digest == second.digest


def refusal(source, **options):
    with pytest.raises(DataError) as caught:
        open_pairs(settings(source, **options))
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    return str(caught.value)


def test_a_wrong_table_is_refused_in_one_line_that_says_what_to_do(tmp_path):
    path = tmp_path / "pairs.tsv"
    assert "pairs.tsv" in refusal(path) and "No such file" in refusal(path)
    path.write_text("")
    assert "empty" in refusal(path)
    path.write_text("filepath\ttitle\n")
    assert "a header and no row" in refusal(path)
    path.write_text("filepath,title\na.png,x\n")
    assert "no column 'filepath'" in refusal(path) and "separator" in refusal(path)
    assert "no column 'text'" in refusal(path, separator=",", caption_key="text")
    path.write_text("filepath\ttitle\na.png\tx\n\tno picture\n")
    assert "row 2" in refusal(path)
    path.write_text("filepath\ttitle\na.png\tx\tone too many\n")
    assert "3 columns" in refusal(path)
    path.write_bytes(b"filepath\ttitle\na.png\t\xff\xfe\xfa\n")
    assert "encoding" in refusal(path)


def test_an_unknown_kind_of_source_lists_the_known_ones(tmp_path):
    assert (
        "expected openmoji, a .csv or .tsv file, or a pattern of .tar shards"
        in refusal(tmp_path / "pairs.parquet").lower()
    )


def test_a_picture_that_cannot_be_read_names_its_row(table):
    path, _ = table
    (path.parent / "pictures" / "2.png").write_bytes(b"not a picture")
    (path.parent / "pictures" / "1.png").write_bytes(encoded(picture(1, (90, 90)), "png")[:200])
    pairs = open_pairs(settings(path))
    for i in (1, 2):
        with pytest.raises(DataError, match=f"row {i + 1}.*cannot be read") as caught:
            pairs[i]
        assert "\n" not in str(caught.value)


def test_a_drawn_picture_that_is_not_there_is_refused_before_anything_is_measured(table):
    path, _ = table
    (path.parent / "pictures" / "3.png").unlink()
    pairs = open_pairs(settings(path))
    with pytest.raises(DataError, match=r"row 4: there is no file .*3\.png"):
        curvature_batches(
            pairs,
            num_samples=4,
            batch_size=2,
            seed=0,
            transform=None,
            tokenizer=lambda captions: captions,
        )
    with pytest.raises(DataError, match=r"row 4: there is no file .*3\.png"):
        pairs[3]


def test_a_wrong_shard_is_refused_in_one_line_that_says_what_to_do(shards, tmp_path):
    assert "data-002.tar" in refusal(shards / "data-{000..002}.tar")
    assert "no such shard" in refusal(shards / "other-*.tar")
    assert "braces do not match" in refusal(shards / "data-{000..tar}.tar".replace("}", ""))
    assert "more than 1000000 shards" in refusal(shards / "data-{0..99999999}.tar")
    assert "local disk" in refusal("https://example.org/data-000.tar")
    assert "local disk" in refusal("pipe:cat data-000.tar")
    (tmp_path / "text.tar").write_text("hello")
    assert "uncompressed tar" in refusal(tmp_path / "text.tar")
    with tarfile.open(tmp_path / "packed.tar", "w:gz"):
        pass
    assert "uncompressed tar" in refusal(tmp_path / "packed.tar")
    content = (shards / "data-000.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(content[:700])
    assert "uncompressed tar" in refusal(tmp_path / "cut.tar")
    shard(tmp_path / "twice.tar", [("1.png", b"x"), ("1.txt", b"one"), ("1.txt", b"eins")])
    assert "two members 1.txt" in refusal(tmp_path / "twice.tar")
    shard(tmp_path / "none.tar", [("1.png", b"x"), ("2.txt", b"two")])
    assert "there is no pair" in refusal(tmp_path / "none.tar")


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"text": "x"}', b'{"caption": 3}', b'"x"', b"\xff"]
)
def test_a_caption_that_is_not_one_names_its_member(content, tmp_path):
    shard(tmp_path / "a.tar", [("1.png", b"x"), ("1.json", content)])
    assert "member 1.json" in refusal(tmp_path / "a.tar")


def test_a_picture_in_a_shard_that_cannot_be_read_names_its_member(tmp_path):
    shard(tmp_path / "a.tar", [("1.png", b"x"), ("1.txt", b"one")])
    with pytest.raises(DataError, match=r"a\.tar, member 1\.png"):
        open_pairs(settings(tmp_path / "a.tar"))[0]
