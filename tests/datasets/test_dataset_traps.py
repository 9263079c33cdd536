"""Sets whose labels go wrong by position: a tiny fake folder each, whose right answer is known."""

import json
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from landscape.datasets import LabelledPictures, find_set, open_labelled
from landscape.datasets.names import words
from landscape.datasets.torchvision_sets import FER_LABELS, KITTI_LABELS, kitti_label
from landscape.errors import DataError, PictureError
from tests.helpers.folders import SHARED

FACTS = SHARED / "facts"
needs_slip = pytest.mark.skipif(
    not (FACTS / "slip_labels.json").is_file(), reason="SLIP's files are not there"
)


def save(path: Path, *, value: int = 128) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2), (value, value, value)).save(path)


def class_folders(root: Path, names: list[str]) -> Path:
    for name in names:
        save(root / name / "a.png")
    return root


def answers(data: LabelledPictures) -> dict[str, str]:
    """Folder of each picture to the first name of its class."""
    return {
        data.key(i).partition("/")[0]: data.classes.names[data.label(i)][0]
        for i in range(len(data))
    }


def slip_names(identifier: str) -> list:
    return json.loads((FACTS / "slip_labels.json").read_text())[identifier]


@needs_slip
def test_pets_folders_get_slips_index_of_their_name(tmp_path):
    # SLIP: ASCII order, cats first; torchvision: official numbers, alphabetical whatever the case.
    folders = ["Abyssinian", "american_bulldog", "Bengal", "yorkshire_terrier", "Sphynx"]
    data = open_labelled("pets", str(class_folders(tmp_path, folders)), slip=FACTS)
    labels = {data.key(i).partition("/")[0]: data.label(i) for i in range(len(data))}
    assert labels == {
        "Abyssinian": 0,
        "american_bulldog": 12,
        "Bengal": 1,
        "yorkshire_terrier": 36,
        "Sphynx": 11,
    }
    assert len(data.classes.names) == 37
    assert "SLIP files, sha256 c168feec" in data.classes.names_source


@needs_slip
def test_torchvisions_pets_are_joined_by_name(tmp_path):
    annotations = tmp_path / "oxford-iiit-pet" / "annotations"
    annotations.mkdir(parents=True)
    rows = [("Abyssinian_1", 1), ("american_bulldog_1", 2), ("Bengal_1", 3)]
    for image, _ in rows:
        save(tmp_path / "oxford-iiit-pet" / "images" / f"{image}.jpg")
    (annotations / "test.txt").write_text(
        "".join(f"{image} {label} 1 1\n" for image, label in rows)
    )
    data = open_labelled("OxfordIIITPet", str(tmp_path), slip=FACTS)
    assert {data.key(i): data.label(i) for i in range(3)} == {
        "images/Abyssinian_1.jpg": 0,
        "images/american_bulldog_1.jpg": 12,
        "images/Bengal_1.jpg": 1,
    }


def fer_csv(root: Path, monkeypatch) -> None:
    (root / "fer2013").mkdir()
    pixels = " ".join(["7"] * 48 * 48)
    rows = [f"{label},{pixels},PublicTest" for label in range(7)] + [
        f"3,{pixels},PrivateTest",
        f"0,{pixels},Training",
    ]
    (root / "fer2013" / "fer2013.csv").write_text("emotion,pixels,Usage\n" + "\n".join(rows) + "\n")
    # Only the official file passes the md5 check.
    monkeypatch.setattr(
        "torchvision.datasets.fer2013.check_integrity", lambda path, md5: os.path.exists(path)
    )


@pytest.mark.parametrize("slip", [pytest.param(FACTS, marks=needs_slip), None])
def test_fer2013_has_its_csvs_numbering_and_pools_synonyms(tmp_path, monkeypatch, slip):
    fer_csv(tmp_path, monkeypatch)
    data = open_labelled("fer2013", str(tmp_path), slip=slip)
    # The CSV's numbering: 0 angry, 1 disgust, 2 fear, 3 happy, 4 sad, 5 surprise, 6 neutral; then
    # the private test picture.
    expected = ["angry", "disgusted", "fearful", "happy", "sad", "surprised", "neutral", "happy"]
    assert [data.classes.names[data.label(i)][0] for i in range(8)] == expected
    assert data.classes.names[data.label(3)] == ("happy", "smiling")
    assert data.classes.names[data.label(5)] == ("surprised", "shocked", "spooked")
    prompts = data.classes.prompts(data.label(5))
    assert len(prompts) == 3 * len(data.classes.templates)
    assert not any("[" in prompt for prompt in prompts)
    assert np.asarray(data.picture(0)).shape == (48, 48, 3)


def test_fer2013_folders_match_any_synonym(tmp_path):
    data = open_labelled(
        "fer2013", str(class_folders(tmp_path, ["Surprise", "bored", "disgust", "angry"]))
    )
    assert answers(data) == {
        "Surprise": "surprised",
        "bored": "neutral",
        "disgust": "disgusted",
        "angry": "angry",
    }
    assert len(FER_LABELS) == 7


CALTECH = [
    "Faces",
    "Faces_easy",
    "Leopards",
    "accordion",
    "car_side",
    "crocodile_head",
    "crocodile",
    "cougar_body",
    "yin_yang",
]


@needs_slip
def test_caltech101_has_102_classes_with_background_pictures(tmp_path):
    folders = [*CALTECH, "BACKGROUND_Google", "snoopy", "water_lilly"]
    data = open_labelled("caltech101", str(class_folders(tmp_path, folders)), slip=FACTS)
    assert len(data.classes.names) == 102
    found = answers(data)
    assert found["BACKGROUND_Google"] == "background" and found["Faces"] == "off-center face"
    assert found["Faces_easy"] == "centered face" and found["cougar_body"] == "body of a cougar cat"
    assert found["crocodile_head"] == "head of a crocodile" and found["crocodile"] == "crocodile"
    assert any("102 classes" in note for note in data.notes)


@needs_slip
def test_caltech101_without_background_has_101_classes_and_says_so(tmp_path):
    root = class_folders(tmp_path / "caltech101" / "101_ObjectCategories", CALTECH)
    data = open_labelled("caltech101", str(tmp_path), slip=FACTS)
    assert str(root) in data._pictures._files[0].path
    assert len(data.classes.names) == 101 and data.classes.names[0] == ("off-center face",)
    assert [data.label(i) for i in range(len(data)) if data.key(i) == "Faces/a.png"] == [0]
    assert any("101 classes, not 102" in note for note in data.notes)


@needs_slip
def test_every_folder_of_caltech101_and_of_eurosat_has_a_class(tmp_path):
    # The 102 folder names of the archive, in ASCII order, which is the order of SLIP's list.
    names = (
        "BACKGROUND_Google Faces Faces_easy Leopards Motorbikes accordion airplanes anchor ant "
        "barrel bass beaver binocular bonsai brain brontosaurus buddha butterfly camera cannon "
        "car_side ceiling_fan cellphone chair chandelier cougar_body cougar_face crab crayfish "
        "crocodile crocodile_head cup dalmatian dollar_bill dolphin dragonfly electric_guitar "
        "elephant emu euphonium ewer ferry flamingo flamingo_head garfield gerenuk gramophone "
        "grand_piano hawksbill headphone hedgehog helicopter ibis inline_skate joshua_tree "
        "kangaroo ketch lamp laptop llama lobster lotus mandolin mayfly menorah metronome minaret "
        "nautilus octopus okapi pagoda panda pigeon pizza platypus pyramid revolver rhino rooster "
        "saxophone schooner scissors scorpion sea_horse snoopy soccer_ball stapler starfish "
        "stegosaurus stop_sign strawberry sunflower tick trilobite umbrella watch water_lilly "
        "wheelchair wild_cat windsor_chair wrench yin_yang"
    ).split()
    data = open_labelled("caltech101", str(class_folders(tmp_path, names)), slip=FACTS)
    assert [data.label(i) for i in range(102)] == list(range(102))


def test_eurosats_folders_have_the_classes_of_its_table(tmp_path):
    names = (
        "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop "
        "Residential River SeaLake"
    ).split()
    data = open_labelled("eurosat", str(class_folders(tmp_path, names)))
    assert [data.label(i) for i in range(10)] == list(range(10))
    assert answers(data)["SeaLake"] == "lake or sea"


@pytest.mark.parametrize("slip", [pytest.param(FACTS, marks=needs_slip), None])
def test_kittis_folders_mean_their_distances(tmp_path, slip):
    folders = ["above_20", "below_20", "below_8", "no_vehicle"]
    found = answers(open_labelled("kitti", str(class_folders(tmp_path, folders)), slip=slip))
    assert found == {
        "above_20": "a photo i took with a car in the distance.",
        "below_20": "a photo i took with a car nearby.",
        "below_8": "a photo i took of a car on my left or right side.",
        "no_vehicle": "a photo i took with no car.",
    }


def test_kittis_labels_are_limits_of_the_nearest_vehicle():
    def line(kind: str, z: float) -> str:
        return f"{kind} 0.0 0 0.0 0 0 1 1 1.5 1.6 3.9 0.0 1.7 {z} 0.0"

    label = lambda *lines: KITTI_LABELS[kitti_label("\n".join(lines))]
    assert label(line("Pedestrian", 3.0), line("DontCare", -1000)) == "no_vehicle"
    assert label(line("Car", 30.0), line("Van", 7.9)) == "below_8"
    assert label(line("Truck", 8.1)) == "below_20" and label(line("Car", 20.0)) == "below_20"
    assert label(line("Car", 20.1), line("Cyclist", 1.0)) == "above_20"


def test_kitti_is_labelled_from_its_label_files(tmp_path):
    base = tmp_path / "Kitti" / "raw" / "training"
    for i, distance in enumerate((30.0, 5.0)):
        save(base / "image_2" / f"{i:06d}.png")
        (base / "label_2").mkdir(exist_ok=True)
        (base / "label_2" / f"{i:06d}.txt").write_text(
            f"Car 0.0 0 0.0 0 0 1 1 1.5 1.6 3.9 0.0 1.7 {distance} 0.0\n"
        )
    data = open_labelled("kitti_distance", str(tmp_path))
    assert [data.classes.names[data.label(i)][0] for i in range(2)] == [
        "a photo i took with a car in the distance.",
        "a photo i took of a car on my left or right side.",
    ]
    assert any("without a seed" in note for note in data.notes)


@pytest.mark.parametrize("slip", [pytest.param(FACTS, marks=needs_slip), None])
def test_clevrs_label_is_the_number_of_objects(tmp_path, slip):
    base = tmp_path / "clevr" / "CLEVR_v1.0"
    scenes = []
    for i, count in enumerate((3, 10, 7)):
        save(base / "images" / "val" / f"CLEVR_val_{i:06d}.png")
        scenes.append({"image_filename": f"CLEVR_val_{i:06d}.png", "objects": [{}] * count})
    (base / "scenes").mkdir()
    (base / "scenes" / "CLEVR_val_scenes.json").write_text(json.dumps({"scenes": scenes}))
    data = open_labelled("CLEVR", str(tmp_path), slip=slip)
    assert [data.classes.names[data.label(i)] for i in range(3)] == [("3",), ("10",), ("7",)]
    # SLIP's order is that of text: "10" first.
    assert [data.label(i) for i in range(3)] == [1, 0, 5]
    assert data.classes.prompts(0) == ["a photo of 10 objects."]


@pytest.mark.parametrize("slip", [pytest.param(FACTS, marks=needs_slip), None])
def test_flowers_folders_are_official_numbers(tmp_path, slip):
    folders = ["1", "10", "100", "2", "93", "16"]
    data = open_labelled("flowers", str(class_folders(tmp_path, folders)), slip=slip)
    assert [data.key(i).partition("/")[0] for i in range(6)] == ["1", "2", "10", "16", "93", "100"]
    assert [data.label(i) for i in range(6)] == [0, 1, 9, 15, 92, 99]
    found = answers(data)
    assert (
        found["1"] == "pink primrose"
        and found["10"] == "globe thistle"
        and found["100"] == "blanket flower"
    )


@needs_slip
def test_flowers_named_as_torchvision_does_are_the_same_classes(tmp_path):
    from torchvision.datasets import Flowers102

    (tmp_path / "classes.txt").write_text(
        "".join(f"{i + 1}\t{name}\n" for i, name in enumerate(Flowers102.classes))
    )
    data = open_labelled(
        "flowers", str(class_folders(tmp_path, [str(i) for i in range(1, 103)])), slip=FACTS
    )
    assert [data.label(i) for i in range(102)] == list(range(102))


@needs_slip
def test_aircrafts_slashes_and_blanks_are_dashes_in_folders(tmp_path):
    names = slip_names("aircraft")
    folders = [name.replace("/", "-").replace(" ", "-") for name in names]
    # The order of the folders differs from that of the names.
    assert sorted(folders) != [name.replace("/", "-").replace(" ", "-") for name in sorted(names)]
    data = open_labelled(
        "aircraft", str(class_folders(tmp_path / "test", folders).parent), slip=FACTS
    )
    assert data.split == "test"
    found = answers(data)
    assert found == dict(zip(folders, names))
    assert found["F-A-18"] == "F/A-18" and found["BAE-146-200"] == "BAE 146-200"


@needs_slip
def test_cars_folders_are_numbered(tmp_path):
    names = slip_names("cars")
    folders = [
        f"{i + 1:03d}_{name.replace('/', '-').replace(' ', '_')}" for i, name in enumerate(names)
    ]
    data = open_labelled("cars", str(class_folders(tmp_path, folders)), slip=FACTS)
    assert folders[0] == "001_AM_General_Hummer_SUV_2000"
    assert answers(data) == dict(zip(folders, names))


@needs_slip
def test_birds_videos_and_scenes_are_named_in_their_archives_ways(tmp_path):
    birds = open_labelled(
        "cub200", str(class_folders(tmp_path / "cub", ["001.Black_footed_Albatross"])), slip=FACTS
    )
    assert birds.label(0) == 0
    videos = open_labelled(
        "UCF101", str(class_folders(tmp_path / "ucf", ["HandstandPushups", "YoYo"])), slip=FACTS
    )
    assert answers(videos) == {"HandstandPushups": "Hand Stand Pushups", "YoYo": "Yo Yo"}


@needs_slip
def test_sun397_is_read_in_the_order_of_its_paths(tmp_path):
    classes = ["/a/abbey", "/a/apartment_building/outdoor", "/a/airport_terminal"]
    (tmp_path / "SUN397").mkdir()
    (tmp_path / "SUN397" / "ClassName.txt").write_text("".join(f"{name}\n" for name in classes))
    for name in reversed(classes):
        save(tmp_path / "SUN397" / name[1:] / "sun_a.jpg")
    data = open_labelled("sun397", str(tmp_path), slip=FACTS)
    assert [data.key(i) for i in range(3)] == sorted(data.key(i) for i in range(3))
    by_key = {data.key(i): data.classes.names[data.label(i)][0] for i in range(3)}
    assert by_key["a/apartment_building/outdoor/sun_a.jpg"] == "apartment building outdoor"
    assert any("no splits of SUN397" in note for note in data.notes)


@pytest.mark.parametrize("slip", [pytest.param(FACTS, marks=needs_slip), None])
def test_hateful_memes_second_score_is_hate(tmp_path, slip):
    for name in ("a", "b"):
        save(tmp_path / "img" / f"{name}.png")
    lines = [{"id": 1, "img": "img/a.png", "label": 1}, {"id": 2, "img": "img/b.png", "label": 0}]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = open_labelled("hateful_memes", str(tmp_path), slip=slip)
    assert [data.label(0), data.label(1)] == [1, 0]
    assert data.classes.names == (("meme",), ("hatespeech meme",))
    folders = open_labelled(
        "hateful_memes", str(class_folders(tmp_path / "f", ["hatespeech_meme", "meme"])), slip=slip
    )
    assert answers(folders) == {"hatespeech_meme": "hatespeech meme", "meme": "meme"}


@needs_slip
def test_country211s_codes_are_in_the_order_of_slips_names(tmp_path):
    names = slip_names("country211")
    own = find_set("country211").names
    same = sum(words(name) == words(synonyms[0]) for name, synonyms in zip(names, own))
    assert len(own) == 211 and same > 180
    class_folders(tmp_path / "country211" / "test", ["AE", "AF", "ZW", "DE"])
    data = open_labelled("country211", str(tmp_path), slip=FACTS)
    found = {data.key(i).split("/")[1]: data.classes.names[data.label(i)][0] for i in range(4)}
    assert found == {
        "AE": "United Arab Emirates",
        "AF": "Afghanistan",
        "ZW": "Zimbabwe",
        "DE": "Germany",
    }
    # torchvision calls the validation part "valid".
    class_folders(tmp_path / "country211" / "valid", ["AE"])
    assert (
        open_labelled("country211", str(tmp_path), slip=FACTS, split="val").key(0)
        == "valid/AE/a.png"
    )


@pytest.mark.parametrize("slip", [pytest.param(FACTS, marks=needs_slip), None])
def test_gtsrbs_folders_are_class_ids(tmp_path, slip):
    data = open_labelled(
        "gtsrb", str(class_folders(tmp_path, ["00000", "00014", "00042"])), slip=slip
    )
    assert [data.label(i) for i in range(3)] == [0, 14, 42]
    found = answers(data)
    assert found["00014"] == "stop" and "20" in found["00000"]


def test_imagenets_folders_are_wordnet_ids_and_its_duplicates_are_named(tmp_path):
    # Official numbers: tench 0, missile 657 and 744, sunglasses 836 and 837.
    folders = ["n01440764", "n03773504", "n04008634", "n04355933", "n04356056"]
    data = open_labelled("imagenet", str(class_folders(tmp_path / "val", folders).parent))
    assert [data.label(i) for i in range(5)] == [0, 657, 744, 836, 837]
    assert data.classes.names[0] == ("tench",) and len(data.classes.names) == 1000
    assert data.classes.names_source == "open_clip" and len(data.classes.templates) == 7
    never = [note for note in data.notes if "can never be right" in note]
    assert len(never) == 2
    assert sum("class 837 " in note and "sunglasses" in note for note in never) == 1
    assert sum("class 744 " in note and "missile" in note for note in never) == 1


def test_pcams_split_val_is_the_file_called_valid(tmp_path):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "pcam").mkdir()
    stem = tmp_path / "pcam" / "camelyonpatch_level_2_split_valid_"
    with h5py.File(f"{stem}x.h5", "w") as file:
        file["x"] = np.arange(2, dtype=np.uint8)[:, None, None, None] * np.ones(
            (1, 4, 4, 3), np.uint8
        )
    with h5py.File(f"{stem}y.h5", "w") as file:
        file["y"] = np.array([1, 0], np.uint8).reshape(2, 1, 1, 1)
    data = open_labelled("pcam", str(tmp_path))
    assert data.split == "val" and [data.label(0), data.label(1)] == [1, 0]
    assert "tumor" in data.classes.names[1][0]
    assert np.asarray(data.picture(1)).tolist() == [[[1] * 3] * 4] * 4
    copy = pickle.loads(pickle.dumps(data))
    with h5py.File(f"{stem}x.h5", "w") as file:
        file["x"] = np.zeros((1, 4, 4, 3), np.uint8)
    with pytest.raises(
        PictureError, match="split val, picture val/000001: the picture cannot be read"
    ):
        copy.picture(1)


def test_cifar10_is_read_from_torchvisions_pickles_only_with_the_official_sums(
    tmp_path, monkeypatch
):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    with pytest.raises(DataError, match="md5"):
        open_labelled("cifar10", str(tmp_path))
    pixels = np.arange(2 * 3072, dtype=np.uint16).astype(np.uint8).reshape(2, 3072)
    (folder / "test_batch").write_bytes(pickle.dumps({"data": pixels, "labels": [9, 1]}))
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: True)
    data = open_labelled("cifar10", str(tmp_path))
    assert [data.classes.names[data.label(i)][0] for i in range(2)] == ["truck", "automobile"]
    assert np.array_equal(
        np.asarray(data.picture(1)), pixels[1].reshape(3, 32, 32).transpose(1, 2, 0)
    )
    assert data.key(0) == "test/000000"


def test_resisc45_is_split_as_vissl_means_to(tmp_path, monkeypatch):
    # 45 classes of 700 pictures in truth.
    monkeypatch.setattr("landscape.datasets.folders._RESISC45", (3, 10))
    names = [f"{number:03d}.png" for number in range(1, 11)]
    for label in ("airport", "beach", "sea_ice"):
        (tmp_path / "r" / label).mkdir(parents=True)
        for name in names:
            (tmp_path / "r" / label / name).touch()
    generator, parts = random.Random(42), {"train": [], "test": []}
    for label in ("airport", "beach", "sea_ice"):
        shuffled = sorted(names)
        generator.shuffle(shuffled)
        parts["train"] += [f"{label}/{name}" for name in sorted(shuffled[:8])]
        parts["test"] += [f"{label}/{name}" for name in sorted(shuffled[8:])]
    default = open_labelled("resisc45", str(tmp_path / "r"))
    assert [default.key(i) for i in range(len(default))] == parts[
        "test"
    ] and default.split == "test"
    assert any("VISSL's rule" in note for note in default.notes)
    train = open_labelled("resisc45", str(tmp_path / "r"), split="train")
    assert [train.key(i) for i in range(len(train))] == parts["train"]
    # Of a folder that is a part already, nothing is taken away.
    (tmp_path / "r" / "beach" / "001.png").unlink()
    part = open_labelled("resisc45", str(tmp_path / "r"))
    assert len(part) == 29 and "The folder has no splits; all its pictures are used." in part.notes


def test_eurosats_split_val_is_numbers_1000_to_1499_of_each_class(tmp_path, monkeypatch):
    for name in ("Forest", "River"):
        for i in range(4):
            save(tmp_path / "eurosat" / "2750" / name / f"{name}_{i}.png")

    def pictures(folder: Path) -> list[Path]:
        return [folder / f"{folder.name}_{i:05d}.jpg" for i in range(2000)]

    monkeypatch.setattr("landscape.datasets.folders._pictures", pictures)
    data = open_labelled("eurosat", str(tmp_path))
    assert len(data) == 1000 and data.split == "val"
    assert data.key(0) == "Forest/Forest_01000.jpg" and data.key(499) == "Forest/Forest_01499.jpg"
    assert any("VISSL's rule" in note for note in data.notes)
