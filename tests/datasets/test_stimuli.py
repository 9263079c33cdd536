"""Stimuli on disk: the two layouts of model-vs-human, one's own sets, those of `landscape distort`,
and wrong input.
"""

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from landscape.answers import CATEGORIES, answers_of_model
from landscape.cli import main
from landscape.datasets import Stimuli, open_stimuli
from landscape.errors import DataError, PictureError


def picture(path, color=(200, 30, 10), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (4, 3), color).save(path)
    return path


@pytest.fixture
def published(tmp_path):
    folder = tmp_path / "stimuli"
    session = folder / "high-pass/dnn/session-1"
    # The files write 1 and 0.70 where the levels are 1.0 and 0.7.
    picture(session / "0001_hp_dnn_0.70_bear_10_n02134084_5274.png")
    picture(session / "0002_hp_dnn_1_cat_10_n02123394_133.png")
    picture(session / "0003_hp_dnn_inf_dog_10_n02088364_9.png", 77, "L")
    picture(session / "0004_hp_dnn_1.0_airplane_10_n02690373_11.png")
    picture(folder / "false-colour/dnn/session-1/0001_fc_dnn_true_car_35_n03100240_4.png")
    picture(folder / "sketch/dnn/session-1/0001_ske_dnn_0_dog_00_dog-4581-sketch-16.png")
    picture(folder / "edge/cat/cat3.png")
    picture(folder / "edge/oven/oven10.png")
    picture(folder / "cue-conflict/dog/dog10-bird2.png")
    picture(folder / "cue-conflict/dog/dog1-dog3.png")
    (folder / "edge/README.txt").write_text("not a picture")
    (folder / "edge/cat/.hidden.png").write_text("not a picture")
    (folder / ".cache/x").mkdir(parents=True)
    return folder


def test_conditions_have_the_benchmarks_names_and_order(published):
    stimuli = open_stimuli(published)
    assert list(stimuli) == [
        ("high-pass", "inf"),
        ("high-pass", "1.0"),
        ("high-pass", "0.7"),
        ("false-colour", "True"),
        ("sketch", "0"),
        ("edge", "0"),
        ("cue-conflict", "0"),
    ]
    level = stimuli["high-pass", "1.0"]
    assert (
        isinstance(level, Stimuli)
        and len(level) == 2
        and level.is_published
        and level.classes == CATEGORIES
    )
    assert (level.keys, level.categories) == (
        ("n02123394_133.png", "n02690373_11.png"),
        ("cat", "airplane"),
    )
    assert [path.name[:4] for path in level.paths] == ["0002", "0004"] and level.textures == (
        None,
        None,
    )
    assert stimuli["sketch", "0"].keys == ("dog-4581-sketch-16.png",)
    assert stimuli["edge", "0"].keys == ("cat3.png", "oven10.png")
    assert list(open_stimuli(published, datasets=["edge"])) == [("edge", "0")]


def test_keys_and_conditions_are_those_of_answers(published):
    for (dataset, condition), level in open_stimuli(published).items():
        num = len(level)
        options = {
            "images": level.keys,
            "conditions": [condition] * num,
            "categories": level.categories,
        }
        answers = answers_of_model("net", dataset, responses=level.categories, **options)
        assert set(answers.table.image) == set(level.keys)


def test_textures_of_cue_conflict(published):
    level = open_stimuli(published)["cue-conflict", "0"]
    assert dict(zip(level.keys, level.textures)) == {
        "dog10-bird2.png": "bird",
        "dog1-dog3.png": "dog",
    }
    picture(published / "cue-conflict/dog/dog10-fish2.png")
    with pytest.raises(DataError, match="dog10-fish2.png: the texture 'fish' is no category"):
        open_stimuli(published)


def test_pictures_are_rgb_and_unreadable_ones_raise_when_they_are_read(published):
    level = open_stimuli(published)["high-pass", "inf"]
    read = level.picture(0)
    assert read.mode == "RGB" and np.asarray(read).tolist() == [[[77] * 3] * 4] * 3
    level.paths[0].write_bytes(b"no picture")
    with pytest.raises(PictureError, match="n02088364_9.png"):
        level.picture(0)
    level.paths[0].unlink()
    with pytest.raises(PictureError, match="counted as missing"):
        level.picture(0)


def test_the_digest_tells_other_pictures(published):
    before = open_stimuli(published)["edge", "0"].digest
    assert open_stimuli(published)["edge", "0"].digest == before
    picture(published / "edge/oven/oven11.png")
    after = open_stimuli(published)["edge", "0"].digest
    assert after != before
    (published / "edge/oven/oven11.png").rename(published / "edge/oven/oven12.png")
    assert open_stimuli(published)["edge", "0"].digest not in (before, after)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "high-pass/dnn/session-1/0001_hp_dnn_1_cat.png",
            "has 5 fields between '_', expected at least 6",
        ),
        (
            "high-pass/dnn/session-1/0001_hp_dnn_1.1_cat_10_n1_1.png",
            "high-pass has no condition '1.1', but inf, 3.0",
        ),
        (
            "colour/dnn/session-1/0001_cl_dnn_blue_cat_10_n1_1.png",
            "colour has no condition 'blue', but cr, bw",
        ),
        (
            "high-pass/dnn/session-1/0001_hp_dnn_1_fish_10_n1_1.png",
            "the category 'fish' is none of the benchmark's 16",
        ),
        ("silhouette/fish/fish1.png", "the category 'fish' is none"),
        ("edge/oven/cat3.png", "the key cat3.png, as .*edge/cat/cat3.png in the same condition"),
        (
            "high-pass/dnn/session-2/0009_hp_dnn_0.7_bear_10_n02134084_5274.png",
            "the key n02134084_5274.png, as",
        ),
        (
            "high-pass/dnn/session-1/0001_hp_dnn\n_1_c_1_1.png",
            r"session-1/0001_hp_dnn\\n_1_c_1_1.png'",
        ),
    ],
)
def test_a_wrong_file_is_named_in_one_line(published, path, message):
    picture(published / path)
    with pytest.raises(DataError, match=message) as raised:
        open_stimuli(published)
    assert "\n" not in str(raised.value)


def test_a_wrong_folder_is_named_in_one_line(published, tmp_path):
    with pytest.raises(DataError, match="nothing: there is no such folder of stimuli"):
        open_stimuli(tmp_path / "nothing")
    with pytest.raises(DataError, match="README.txt: this is a file"):
        open_stimuli(published / "edge/README.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: there is no data set in it"):
        open_stimuli(tmp_path / "empty")
    # One level too deep.
    with pytest.raises(DataError, match="edge: there is no data set in it"):
        open_stimuli(published / "edge")
    with pytest.raises(DataError, match="high-pass: this is one data set.*Name .*stimuli[.]"):
        open_stimuli(published / "high-pass")
    with pytest.raises(
        DataError, match="there is no data set contrast, but high-pass, false-colour"
    ):
        open_stimuli(published, datasets=["contrast"])
    (published / "contrast/dnn/session-1").mkdir(parents=True)
    with pytest.raises(DataError, match="contrast: the data set has no picture"):
        open_stimuli(published)
    assert open_stimuli(published, datasets=["edge"])


def test_own_sets_may_have_any_classes_and_levels(tmp_path):
    picture(tmp_path / "mine/fish/1.png")
    picture(tmp_path / "mine/sea horse/1.png")
    picture(tmp_path / "blur/dnn/session-1/0001_b_dnn_10_fish_00_a.png")
    picture(tmp_path / "blur/dnn/session-1/0002_b_dnn_9_fish_00_a.png")
    stimuli = open_stimuli(tmp_path)
    assert list(stimuli) == [("blur", "9"), ("blur", "10"), ("mine", "0")]
    own = stimuli["mine", "0"]
    assert (
        own.keys == ("fish/1.png", "sea horse/1.png")
        and own.classes == ("fish", "sea horse")
        and not own.is_published
    )
    for level in ("2.0", "inf", "0.4", "0.70", "3.0"):
        picture(tmp_path / f"high-pass/dnn/session-1/0001_b_dnn_{level}_fish_00_a.png")
    levels = [
        condition for _, condition in open_stimuli(tmp_path, datasets=["high-pass"], own=True)
    ]
    assert levels == ["inf", "3.0", "2.0", "0.7", "0.4"]
    picture(tmp_path / "edge/fish/1.png")
    with pytest.raises(DataError, match="say that the pictures are your own"):
        open_stimuli(tmp_path)
    assert open_stimuli(tmp_path, own=True)["edge", "0"].categories == ("fish",)


def test_what_distort_writes_is_read_back(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("sea_horse/a_1.png", "sea_horse/n0_2.png", "100%/b.png"):
        path = tmp_path / "own" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    command = ["distort", str(tmp_path / "own"), "-o", str(tmp_path / "out"), "--size", "16"]
    for kind, level in (
        ("contrast", "0.1"),
        ("contrast", "c42"),
        ("contrast", "1"),
        ("edge", None),
    ):
        result = CliRunner().invoke(
            main, [*command, "--kind", kind, *(["--level", level] if level else [])]
        )
        assert result.exit_code == 0, result.output
    stimuli = open_stimuli(tmp_path / "out")
    assert list(stimuli) == [
        ("contrast", "c100"),
        ("contrast", "c42"),
        ("contrast", "c10"),
        ("edge", "0"),
    ]
    for level in stimuli.values():
        assert set(zip(level.keys, level.categories)) == {
            ("sea_horse/a_1", "sea_horse"),
            ("sea_horse/n0_2", "sea_horse"),
            ("100%/b", "100%"),
        }
        assert level.classes == ("100%", "sea_horse") and not level.is_published
        assert level.picture(0).size == (16, 16)
    with pytest.raises(DataError, match="is none of the benchmark's 16"):
        open_stimuli(tmp_path / "out", own=False)
    (tmp_path / "out/distort.json").write_text("{")
    with pytest.raises(DataError, match="distort.json: the record cannot be read"):
        open_stimuli(tmp_path / "out")
