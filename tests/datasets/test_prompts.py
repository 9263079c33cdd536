"""Class names and prompts: which source they come from, and that they are the paper's where they
say so.
"""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from landscape.datasets import SUITE, Classes, KnownSet, find_set, open_labelled
from landscape.datasets.names import ClassIndex, compact, readable, without_numbering, words
from landscape.errors import DataError, MissingDependencyError
from tests.helpers.folders import SHARED

FACTS = SHARED / "facts"
needs_slip = pytest.mark.skipif(
    not (FACTS / "slip_labels.json").is_file(), reason="SLIP's files are not there"
)
KNOWN = {known.identifier: known for known in SUITE}


def class_folders(root: Path, names: list[str]) -> Path:
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(root / name / "a.png")
    return root


def slip(kind: str) -> dict:
    return json.loads((FACTS / f"slip_{kind}.json").read_text())


def benchmark_package(root: Path, names: dict, templates: dict, monkeypatch) -> None:
    """A fake package folder of clip-benchmark, which find_spec finds and whose import would
    fail.
    """
    data = root / "clip_benchmark" / "datasets"
    data.mkdir(parents=True)
    (root / "clip_benchmark" / "__init__.py").write_text("raise RuntimeError('imported')")
    (data / "en_classnames.json").write_text(json.dumps(names))
    (data / "en_zeroshot_classification_templates.json").write_text(json.dumps(templates))
    monkeypatch.syspath_prepend(str(root))
    importlib.invalidate_caches()


def test_prompts_are_all_synonyms_in_all_templates():
    classes = Classes((("happy", "smiling"), ("sad",)), ("a {} face", "{:c} {}"), "a", "b")
    assert classes.prompts(0) == ["a happy face", "{:c} happy", "a smiling face", "{:c} smiling"]
    assert classes.prompts(1) == ["a sad face", "{:c} sad"]


def test_the_digest_of_classes_is_of_names_templates_and_their_order():
    one = Classes((("a",), ("b",)), ("{}",), "x", "y")
    assert (
        one.digest == Classes((("a",), ("b",)), ("{}",), "other", "sources", notes=("note",)).digest
    )
    others = [
        Classes((("b",), ("a",)), ("{}",), "x", "y"),
        Classes((("a",), ("b",)), ("{}.",), "x", "y"),
    ]
    others.append(Classes((("a", "b"),), ("{}",), "x", "y"))
    assert len({one.digest, *(other.digest for other in others)}) == 4


@pytest.mark.parametrize(
    "names, templates, said",
    [
        ((), ("{}",), "no class"),
        ((("a",), ("",)), ("{}",), "class 1 has an empty name"),
        ((("a",), ()), ("{}",), "class 1"),
        ((("a",),), (), "no prompt"),
        ((("a",),), ("a photo",), "0 places"),
        ((("a",),), ("{} and {}",), "2 places"),
    ],
)
def test_classes_without_names_or_places_for_them_are_refused(names, templates, said):
    with pytest.raises(DataError, match=said):
        Classes(names, templates, "source", "source")


@pytest.mark.parametrize(
    "one, other",
    [
        ("F/A-18", "f-a 18"),
        ("colt's foot", "Colts_foot"),
        ("polka-dotted", "Polka dotted"),
        ("Citroën", "citroen"),
    ],
)
def test_names_are_one_as_words(one, other):
    assert words(one) == words(other)


def test_numbering_is_dropped_at_the_front_only():
    assert without_numbering("001.Black_footed_Albatross") == "Black_footed_Albatross"
    assert without_numbering("001_AM_General_Hummer_SUV_2000") == "AM_General_Hummer_SUV_2000"
    assert without_numbering("42") == "42" and without_numbering("10_") == "10_"
    assert readable("017.Some_bird") == "Some bird" and compact("AnnualCrop") == compact(
        "annual crop"
    )


def test_a_spelled_out_match_goes_before_one_without_numbering():
    # Aircraft's 707-320 begins with what looks like a numbering.
    index = ClassIndex([["707-320"], ["320"], ["a 320"]])
    assert index.find("707-320") == [0] and index.find("7_320") == [1]
    assert index.match(["707-320", "320"], where="x") == [0, 1]


@needs_slip
@pytest.mark.parametrize(
    "known", [known for known in SUITE if known.templates], ids=lambda known: known.identifier
)
def test_the_tables_prompts_are_slips(known: KnownSet):
    assert list(known.templates) == slip("templates")[known.identifier]


@needs_slip
@pytest.mark.parametrize("known", SUITE, ids=lambda known: known.identifier)
def test_the_suite_has_slips_identifiers_and_numbers_of_classes(known: KnownSet):
    labels = slip("labels")[known.identifier]
    assert len(labels) == known.num_classes
    if known.names and known.identifier not in ("gtsrb", "country211"):
        assert [list(names) for names in known.names] == [
            [name] if isinstance(name, str) else name for name in labels
        ]


def test_the_suite_is_table_1_in_its_order():
    titles = (
        "Food-101 CIFAR-10 CIFAR-100 CUB SUN397 Cars Aircraft DTD Pets Caltech-101 Flowers MNIST "
        "FER-2013 STL-10 EuroSAT"
    )
    titles += (
        " RESISC45 GTSRB KITTI Country211 PCAM UCF101 Kinetics700 CLEVR HatefulMemes SST2 ImageNet"
    )
    assert [known.title for known in SUITE] == titles.split()
    per_class = {known.identifier for known in SUITE if known.metric == "mean_per_class"}
    assert per_class == {"aircraft", "pets", "caltech101", "flowers"}
    assert KNOWN["hateful_memes"].metric == "roc_auc" and KNOWN["hateful_memes"].chance == 0.5
    assert KNOWN["kinetics700_frames"].metric == "top1_top5"
    # By chance 1 of 700 is first, 5 of 700 among the first five.
    assert KNOWN["kinetics700_frames"].chance == pytest.approx((1 / 700 + 5 / 700) / 2)
    at_chance = [known.title for known in SUITE if any("At chance" in note for note in known.notes)]
    assert at_chance == ["MNIST", "PCAM", "CLEVR", "HatefulMemes", "SST2"]
    assert all(
        known.chance == 1 / known.num_classes
        for known in SUITE
        if known.metric in ("top1", "mean_per_class")
    )


@pytest.mark.parametrize(
    "name, identifier",
    [
        ("Food101", "food101"),
        ("vtab/clevr_count_all", "clevr_counts"),
        ("wds/vtab/pcam", "patch_camelyon"),
        ("FGVCAircraft", "aircraft"),
        ("imagenet1k", "imagenet"),
        ("CIFAR-10", "cifar10"),
        ("openmoji/group", "openmoji/group"),
    ],
)
def test_sets_are_found_by_every_ones_names(name, identifier):
    found = find_set(name)
    assert found is not None and found.identifier == identifier


def test_no_two_sets_share_a_name():
    names = [
        name
        for known in SUITE
        for name in {known.identifier.lower(), *(alias.lower() for alias in known.aliases)}
    ]
    assert len(names) == len(set(names))
    assert all(
        find_set(name) is known
        for known in SUITE
        for name in (known.identifier, known.title, *known.aliases)
    )


@needs_slip
def test_flowers_names_are_slips_without_its_files(tmp_path):
    # torchvision spells three of them otherwise.
    data = open_labelled("flowers", str(class_folders(tmp_path, ["1"])))
    assert [name for (name,) in data.classes.names] == slip("labels")["flowers"]
    assert data.classes.names_source == "torchvision"


def test_names_in_own_words_are_said_to_be(tmp_path):
    signs = open_labelled("gtsrb", str(class_folders(tmp_path / "g", ["00014"])))
    assert signs.classes.names[signs.label(0)] == ("stop",)
    assert any("this project's words, not the paper's" in note for note in signs.classes.notes)
    digits = open_labelled("mnist", str(class_folders(tmp_path / "m", ["7"])))
    assert not digits.classes.notes and digits.classes.prompts(digits.label(0)) == [
        'a photo of the number: "7".'
    ]


def test_caltechs_folder_names_become_the_words_of_prompts(tmp_path):
    folders = ["BACKGROUND_Google", "Faces", "airplanes", "wild_cat"]
    data = open_labelled("caltech101", str(class_folders(tmp_path, folders)))
    assert data.classes.names == (
        ("background",),
        ("off-center face",),
        ("airplane",),
        ("wild cat",),
    )
    assert (
        "The choice is among 4 classes; that of the published numbers is among 102." in data.notes
    )


def test_without_any_source_folder_names_and_a_guessed_prompt_are_used_and_said(tmp_path):
    data = open_labelled("mine", str(class_folders(tmp_path, ["001_sea_lion", "tree"])))
    assert data.classes.names == (("sea lion",), ("tree",)) and data.classes.templates == (
        "a photo of a {}.",
    )
    assert data.classes.names_source == "folder names" and any(
        "a guess" in note for note in data.classes.notes
    )
    known = open_labelled("resisc45", str(class_folders(tmp_path / "r", ["sea_ice", "airport"])))
    assert any("not the paper's prompts" in note for note in known.classes.notes)
    assert any("folder names" in note for note in known.classes.notes)


def test_files_beside_the_data_go_first(tmp_path, monkeypatch):
    root = class_folders(tmp_path / "data", ["forest", "River"])
    (root / "classnames.txt").write_text("river\nForest\n")
    (root / "zeroshot_classification_templates.txt").write_text("seen from above: {c}\n")
    benchmark_package(tmp_path / "lib", {"eurosat": ["x"]}, {"eurosat": ["y {c}"]}, monkeypatch)
    data = open_labelled(
        "eurosat", str(root), slip=FACTS if (FACTS / "slip_labels.json").is_file() else None
    )
    assert data.classes.names == (("river",), ("Forest",))
    assert {data.key(i): data.label(i) for i in range(2)} == {"River/a.png": 0, "forest/a.png": 1}
    assert data.classes.prompts(0) == ["seen from above: river"]
    assert data.classes.names_source.startswith("classnames.txt beside the data, sha256 ")
    assert data.classes.templates_source.startswith(
        "zeroshot_classification_templates.txt beside the data, sha256 "
    )


@needs_slip
def test_slips_files_go_before_the_package_and_the_table(tmp_path, monkeypatch):
    benchmark_package(tmp_path / "lib", {"eurosat": ["x"]}, {"eurosat": ["y {c}"]}, monkeypatch)
    data = open_labelled(
        "eurosat", str(class_folders(tmp_path / "data", ["Forest", "River"])), slip=FACTS
    )
    assert list(data.classes.templates) == slip("templates")["eurosat"]
    assert data.classes.names_source.startswith("SLIP files, sha256 c168feec")
    assert data.classes.templates_source.startswith("SLIP files, sha256 ccc78041")
    assert not data.classes.notes


def test_slips_files_may_have_their_own_names_and_other_contents_are_said(tmp_path):
    (tmp_path / "slip").mkdir()
    (tmp_path / "slip" / "labels.json").write_text(json.dumps({"resisc45": ["sea ice", "airport"]}))
    (tmp_path / "slip" / "templates.json").write_text(json.dumps({"resisc45": ["over {}."]}))
    data = open_labelled(
        "resisc45",
        str(class_folders(tmp_path / "r", ["sea_ice", "airport"])),
        slip=tmp_path / "slip",
    )
    assert data.classes.prompts(0) == ["over sea ice."]
    assert sum("is not the file of SLIP's commit" in note for note in data.classes.notes) == 2


def test_clip_benchmarks_package_data_is_read_without_importing_it(tmp_path, monkeypatch):
    names = {
        "fer2013": [
            ["angry"],
            ["disgusted"],
            "fearful",
            ["happy", "smiling"],
            "neutral",
            "sad",
            "surprised",
        ]
    }
    benchmark_package(
        tmp_path / "lib",
        names,
        {"fer2013": ["a {c} face", "{c}"], "resisc45": ["over {c}."]},
        monkeypatch,
    )
    data = open_labelled("fer2013", str(class_folders(tmp_path / "f", ["fear", "happy"])))
    assert data.classes.names[3] == ("happy", "smiling") and data.classes.templates == (
        "a {} face",
        "{}",
    )
    assert data.classes.names_source.startswith("clip-benchmark's package data, sha256 ")
    assert {data.key(i): data.label(i) for i in range(2)} == {"fear/a.png": 2, "happy/a.png": 3}
    other = open_labelled("resisc45", str(class_folders(tmp_path / "r", ["sea_ice"])))
    assert any("not the paper's prompts" in note for note in other.classes.notes)


def test_clip_benchmarks_sets_are_looked_up_by_its_own_names(tmp_path, monkeypatch):
    names = {"clevr_count_all": ["three", "four", "five", "six", "seven", "eight", "nine", "ten"]}
    benchmark_package(
        tmp_path / "lib", names, {"clevr_count_all": ["a picture of {c} objects"]}, monkeypatch
    )
    data = open_labelled(
        "clevr_counts", str(class_folders(tmp_path / "c", ["count_10", "count_3"]))
    )
    assert {data.key(i): data.classes.prompts(data.label(i)) for i in range(2)} == {
        "count_10/a.png": ["a picture of ten objects"],
        "count_3/a.png": ["a picture of three objects"],
    }


def test_imagenets_names_come_from_open_clip_before_slips(tmp_path):
    folder = FACTS if (FACTS / "slip_labels.json").is_file() else None
    data = open_labelled("imagenet", str(class_folders(tmp_path, ["n01440764"])), slip=folder)
    assert data.classes.names_source == "open_clip" and data.classes.templates_source.startswith(
        "open_clip"
    )
    if folder is not None:
        assert [name for (name,) in data.classes.names] == slip("labels")["imagenet"]
        assert list(data.classes.templates) == slip("templates")["imagenet"]


@pytest.mark.parametrize(
    "content, said",
    [
        ("[]", "expected an object"),
        ("{", "cannot be read"),
        ('{"resisc45": {"a": 1}}', "expected a list"),
        ('{"resisc45": [1]}', "expected a list"),
    ],
)
def test_files_that_are_not_slips_are_refused_in_one_line(tmp_path, content, said):
    (tmp_path / "labels.json").write_text(content)
    (tmp_path / "templates.json").write_text("{}")
    with pytest.raises(DataError, match=said) as caught:
        open_labelled("resisc45", str(class_folders(tmp_path / "r", ["sea_ice"])), slip=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_slip_folder_without_the_files_is_refused(tmp_path):
    with pytest.raises(DataError, match="no labels.json"):
        open_labelled("resisc45", str(class_folders(tmp_path / "r", ["sea_ice"])), slip=tmp_path)


def test_a_list_in_another_order_than_the_sets_codes_is_refused(tmp_path):
    names = [synonyms[0] for synonyms in KNOWN["country211"].names]
    names[0], names[1] = names[1], names[0]
    (tmp_path / "labels.json").write_text(json.dumps({"country211": names}))
    (tmp_path / "templates.json").write_text(json.dumps({"country211": ["{}"]}))
    with pytest.raises(DataError, match="another order"):
        open_labelled("country211", str(class_folders(tmp_path / "c", ["AD"])), slip=tmp_path)


def test_a_missing_list_of_wordnet_ids_names_the_package(tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "landscape.datasets.sources.importlib.util.find_spec",
        lambda name: (
            SimpleNamespace(submodule_search_locations=[]) if name == "timm" else real(name)
        ),
    )
    with pytest.raises(MissingDependencyError, match="timm"):
        open_labelled("imagenet", str(class_folders(tmp_path, ["n01440764"])))
