"""Shards whose members are named otherwise than expected, against open_clip's own filter and
webdataset's decoder.
"""

import io
import json
import tarfile

import pytest
from click.testing import CliRunner
from PIL import Image

from landscape.cli import main
from landscape.clip.image_text import curvature_batches, open_pairs
from landscape.clip.labels import with_labels
from landscape.errors import DataError
from landscape.manifest import DataSettings


def png(colour=(1, 2, 3)):
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(stream, "png")
    return stream.getvalue()


@pytest.fixture
def write(tmp_path):
    def written(**members):
        """Each argument is a member's content by its name, with two underscores for a dot."""
        path = tmp_path / "data-000.tar"
        with tarfile.open(path, "w") as archive:
            for name, content in members.items():
                content = content.encode() if isinstance(content, str) else content
                entry = tarfile.TarInfo(name.replace("__", "."))
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        return path

    return written


def opened(path, **options):
    return open_pairs(
        DataSettings(source=str(path), num_samples=2, batch_size=2, split="all", **options)
    )


def targets(pairs):
    return [pairs[i][1] for i in range(len(pairs))]


def refusal(path, **options):
    with pytest.raises(DataError) as caught:
        opened(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_shards_without_a_pair_say_what_is_in_there_and_why_nothing_matched(write):
    message = refusal(write(a__gif=b"x", b__gif=b"x", a__text="one", b__text="two"))
    assert (
        "there is no pair" in message and ".gif (2), .text (2)" in message and "KEY.txt" in message
    )
    assert "no picture has a caption" in refusal(write(a__png=b"x", a__text="one"))
    assert "no caption has a picture" in refusal(write(a__gif=b"x", a__txt="one"))
    assert "different keys" in refusal(write(a__png=b"x", b__txt="one"))
    assert "first dot" in refusal(write(**{"photo__v2__jpg": b"x", "photo__v2__txt": "one"}))
    assert "Members: none" in refusal(write())


def test_names_in_upper_case_are_read_as_webdataset_reads_them(write):
    import webdataset

    path = write(a__JPEG=png(), a__TXT="one", b__PNG=png(), b__Json='{"caption": "two"}')
    assert targets(opened(path)) == ["one", "two"]
    theirs = list(webdataset.WebDataset(str(path), shardshuffle=False))
    suffixes = [sorted(name for name in sample if not name.startswith("__")) for sample in theirs]
    assert suffixes == [["jpeg", "txt"], ["json", "png"]]


def test_what_is_left_out_is_counted_in_the_notes(write):
    from open_clip_train.data import filter_no_caption_or_no_image

    path = write(a__png=png(), a__txt="one", b__png=png(), c__png=png(), d__txt="four", e__gif=b"x")
    pairs = opened(path)
    assert targets(pairs) == ["one"] and opened(write(a__png=png(), a__txt="one")).notes == ()
    (note,) = pairs.notes
    assert note.endswith(
        "left out, as by open_clip: pictures without a caption (2), captions without a picture (1)."
    )
    keys = {"a": ["png", "txt"], "b": ["png"], "c": ["png"], "d": ["txt"], "e": ["gif"]}
    assert [
        key
        for key, names in keys.items()
        if filter_no_caption_or_no_image(dict.fromkeys(names, b""))
    ] == ["a"]


def test_the_classes_of_a_shard_are_the_labels_of_a_classifier(write):
    from webdataset.autodecode import basichandlers

    path = write(a__png=png(), a__cls="7", b__png=png(), b__cls=" 12\n")
    pairs = opened(path)
    assert (
        targets(pairs)
        == targets(with_labels(pairs))
        == [7, 12]
        == [basichandlers("cls", text) for text in (b"7", b" 12\n")]
    )
    assert "no picture has a caption" in pairs.notes[0]
    batches = curvature_batches(
        with_labels(pairs), num_samples=2, batch_size=2, seed=0, transform=_tensor, tokenizer=None
    )
    assert sorted(batches[0]["label"].tolist()) == [7, 12]


def _tensor(picture):
    from torchvision.transforms.functional import to_tensor

    return to_tensor(picture)


def test_captions_go_before_classes_unless_classes_are_asked_for(write):
    path = write(a__png=png(), a__txt="a cat", a__cls="3", b__png=png(), b__txt="a dog", b__cls="1")
    pairs = opened(path)
    assert targets(pairs) == ["a cat", "a dog"] and targets(with_labels(pairs)) == [3, 1]
    assert with_labels(pairs).digest != pairs.digest
    captions_alone = opened(write(a__png=png(), a__txt="a cat", b__png=png(), b__txt="a dog"))
    assert captions_alone.digest == pairs.digest
    partly = opened(
        write(a__png=png(), a__txt="a cat", a__cls="3", b__png=png(), b__txt="a dog", b__cls="dog")
    )
    with pytest.raises(DataError, match=r"member b\.png: there is no KEY\.cls.*1 of 2"):
        with_labels(partly)


def test_classes_in_a_contrastive_study_are_refused_in_one_line(write, tmp_path):
    write(a__png=png(), a__cls="7", b__png=png(), b__cls="1")
    (tmp_path / "epoch_0.pt").touch()
    (tmp_path / "m.yaml").write_text(
        "version: 1\ndata: {source: data-000.tar, split: all, num_samples: 2, batch_size: "
        "2}\nhessian: {objective: contrastive}\nseries: [{name: s, model: vit_tiny_64, "
        "checkpoints: [{epoch: 0, path: epoch_0.pt}]}]\n"
    )
    result = CliRunner().invoke(
        main, ["spectra", str(tmp_path / "m.yaml"), "-o", str(tmp_path / "a.h5")]
    )
    assert (
        result.exit_code == 2
        and "classes in place of captions" in result.output
        and "cross_entropy" in result.output
    )


@pytest.mark.parametrize("content", ["cat", "", "-1", "1.5", "9" * 30, b"\xff"])
def test_a_class_that_is_no_number_names_its_member(content, write):
    assert "member a.cls: expected the number of a class" in refusal(
        write(a__png=png(), a__cls=content)
    )


def test_captions_stand_under_the_key_of_the_json_that_is_named(write):
    path = write(a__png=png(), a__json=json.dumps({"text": "one", "title": "eins"}))
    message = refusal(path)
    assert (
        "member a.json" in message
        and "no 'caption', but 'text', 'title'" in message
        and "`caption_key`" in message
    )
    assert targets(opened(path, caption_key="text")) == ["one"] and targets(
        opened(path, caption_key="title")
    ) == ["eins"]
    # A text beside it holds another caption.
    path = write(
        a__png=png(), a__txt="alt", a__json=json.dumps({"text": "one", "caption": "other"})
    )
    assert targets(opened(path)) == ["alt"] and targets(opened(path, caption_key="text")) == ["one"]


def test_a_shard_that_loses_pairs_without_a_word_does_not_pass(write):
    path = write(a__png=png(), a__txt="one", b__png=png(), b__txt="two")
    content = path.read_bytes()
    with tarfile.open(path) as archive:
        third = archive.getmember("b.png").offset
        end = archive.getmember("b.txt").offset_data + 512
    # tarfile, and so webdataset, takes a damaged header for the end.
    path.write_bytes(content[:third] + b"\xff" + content[third + 1 :])
    with tarfile.open(path) as archive:
        assert archive.getnames() == ["a.png", "a.txt"]
    assert f"header at byte {third} is damaged" in refusal(path)
    path.write_bytes(content[:end])
    assert targets(opened(path)) == ["one", "two"] and "has no end" in opened(path).notes[0]
    path.write_bytes(content + content)
    assert (
        targets(opened(path)) == ["one", "two"]
        and "left out, as by webdataset" in opened(path).notes[0]
    )


def test_names_with_line_ends_stay_on_one_line(write):
    path = write(**{"a\nb__png": b"x", "a\nb__txt": "one"})
    with pytest.raises(DataError, match=r"member 'a\\nb\.png': the picture") as caught:
        opened(path)[0]
    assert "\n" not in str(caught.value)
