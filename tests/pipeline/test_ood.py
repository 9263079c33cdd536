"""`landscape ood` on tiny models: decisions by the benchmark's formula, one's own pictures, people
beside them, figures.
"""

import csv
import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from landscape.answers import CATEGORIES, IMAGENET_INDICES
from landscape.cli import main
from landscape.clip.checkpoint import load_checkpoint
from landscape.clip.model import build_model, preprocess_for, tokenizer_for
from landscape.datasets import Classes
from landscape.distortions import distort, to_bytes
from landscape.errors import DataError, LandscapeError, StoreError
from landscape.figures import own_conditions
from landscape.manifest import Manifest
from landscape.pipeline import OodRequest, draw_ood, ood_figures, run_ood, stimuli_sets
from landscape.pipeline.distorted_sets import _DistortedPictures, distorted_requests
from landscape.pipeline.ood import all_answers, read_ood, requests_for
from landscape.pipeline.ood_figures import own_curves
from landscape.pipeline.picture_sets import SetRequest
from landscape.store.predictions import num_levels
from landscape.workers.crew import WorkerSettings
from tests.helpers.folders import SHARED
from tests.helpers.spectra_study import MODEL, make_study
from tests.pipeline.test_evaluation import CLASSES, make_pictures

ONE = WorkerSettings(num_workers=1)
CONDITIONS = ("c100", "c05")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("LANDSCAPE_CACHE", str(tmp_path_factory.mktemp("cache")))
    _DistortedPictures._kept.clear()


@pytest.fixture
def few_prompts(monkeypatch):
    """One prompt a class in place of 80: the text tower is that of a test."""
    classes = Classes(
        names=tuple((name,) for name in open_clip.IMAGENET_CLASSNAMES),
        templates=("a photo of a {}.",),
        names_source="open_clip",
        templates_source="one",
    )
    monkeypatch.setattr(stimuli_sets, "_imagenet", lambda: classes)


@pytest.fixture
def study(tmp_path):
    return Manifest.load(make_study(tmp_path, epochs=(0, 1), names=("one",)))


def make_stimuli(folder: Path) -> Path:
    """Two conditions of contrast with two pictures a category, and one picture a category of
    edge.
    """
    generator = np.random.default_rng(1)
    (folder / "stimuli" / "contrast" / "dnn" / "session-1").mkdir(parents=True)
    for number, (category, condition) in enumerate(
        (c, k) for k in CONDITIONS for c in (*CATEGORIES, *CATEGORIES)
    ):
        picture = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        name = f"{number:04}_cop_dnn_{condition}_{category}_10_n0{number:07}_{number}.png"
        picture.save(folder / "stimuli" / "contrast" / "dnn" / "session-1" / name)
    for category in CATEGORIES:
        (folder / "stimuli" / "edge" / category).mkdir(parents=True)
        picture = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        picture.save(folder / "stimuli" / "edge" / category / f"{category}1.png")
    return folder / "stimuli"


def decisions_by_hand(checkpoint: Path, pictures: list[Path], scale: float) -> list[str]:
    """As model-vs-human's toolbox decides: softmax over ImageNet's classes, mean over those of each
    category, the largest.
    """
    model = build_model(MODEL)
    load_checkpoint(model, checkpoint)
    decisions = []
    with torch.no_grad():
        weights = open_clip.build_zero_shot_classifier(
            model,
            tokenizer_for(model),
            open_clip.IMAGENET_CLASSNAMES,
            [lambda name: f"a photo of a {name}."],
            device="cpu",
        )
        for path in pictures:
            feature = model.encode_image(
                preprocess_for(model).transform(Image.open(path).convert("RGB"))[None],
                normalize=True,
            )
            probabilities = (scale * (feature @ weights).double()).softmax(dim=1)[0]
            means = {
                name: float(probabilities[list(IMAGENET_INDICES[name])].mean())
                for name in CATEGORIES
            }
            decisions.append(max(means, key=lambda name: means[name]))
    return decisions


@pytest.mark.parametrize("scale", [100.0, None])
def test_decisions_are_those_of_the_benchmarks_formula(study, tmp_path, few_prompts, scale):
    stimuli, output = make_stimuli(tmp_path), tmp_path / "ood.h5"
    report = run_ood(
        study,
        output,
        OodRequest(stimuli=stimuli, logit_scale=scale),
        epochs=(1,),
        workers=ONE,
        progress=False,
    )
    assert report.complete and "contrast in 2 conditions: 32 pictures" in report.summary()
    store = read_ood(output)
    sizes = {key: len(one) for key, one in store.sets.items()}
    assert sizes == {("contrast", "c100"): 32, ("contrast", "c05"): 32, ("edge", "0"): 16}
    learned = float(
        torch.load(tmp_path / "one_1.pt", weights_only=False)["state_dict"]["logit_scale"].exp()
    )
    answers = all_answers(store)
    paths = {path.name.split("_10_")[1]: path for path in (stimuli / "contrast").rglob("*.png")}
    table = answers.table[answers.table.dataset == "contrast"]
    shown = [paths[image] for image in table.image]
    truth = decisions_by_hand(tmp_path / "one_1.pt", shown, learned if scale is None else scale)
    assert table.response.tolist() == truth and set(table.observer) == {"one"}
    assert table.category.tolist() == [paths[image].name.split("_")[4] for image in table.image]


def test_a_file_of_other_decisions_is_not_mixed(study, tmp_path, few_prompts):
    stimuli, output = make_stimuli(tmp_path), tmp_path / "ood.h5"
    run_ood(study, output, OodRequest(stimuli=stimuli), epochs=(1,), workers=ONE, progress=False)
    with pytest.raises(StoreError, match="its rule is another"):
        run_ood(
            study,
            output,
            OodRequest(stimuli=stimuli, logit_scale=None),
            epochs=(1,),
            workers=ONE,
            progress=False,
        )


def test_own_pictures_are_distorted_as_the_command_distorts_them(study, tmp_path):
    folder, output = make_pictures(tmp_path), tmp_path / "ood.h5"
    request = OodRequest(own=str(folder), kinds=("contrast", "rotation"), size=16)
    report = run_ood(study, output, request, epochs=(1,), workers=ONE, progress=False)
    assert report.complete
    store = read_ood(output)
    assert len(store.sets) == 8 + 4 and {name for name, _ in store.sets} == {
        "own/zoo/contrast",
        "own/zoo/rotation",
    }
    one, answers = (
        store.sets["own/zoo/contrast", "c10"],
        store.checkpoints["one", 1].sets["own/zoo/contrast", "c10"],
    )
    assert len(one) == 28 and one.chance == 1 / 7
    model = build_model(MODEL)
    load_checkpoint(model, tmp_path / "one_1.pt")
    templates = [lambda name: f"a photo of a {name}.", lambda name: f"a drawing of a {name}."]
    with torch.no_grad():
        weights = open_clip.build_zero_shot_classifier(
            model, tokenizer_for(model), CLASSES, templates, device="cpu"
        )
        for i, key in enumerate(one.keys):
            # Shorter side to 16 pixels by bilinear antialiased scaling, the middle cut out, then
            # the formula.
            clean = (
                Image.open(folder / key)
                .resize((16, 19), Image.Resampling.BILINEAR)
                .crop((0, 2, 16, 18))
            )
            picture = Image.fromarray(to_bytes(distort(np.asarray(clean) / 255, "contrast", "c10")))
            cosines = (
                model.encode_image(preprocess_for(model).transform(picture)[None], normalize=True)
                @ weights
            )
            np.testing.assert_allclose(answers.scores[i, 0], float(cosines.max()), atol=2e-6)
            assert one.class_names[answers.top[i, 0]] == CLASSES[int(cosines.argmax())]


def test_the_same_seed_gives_the_same_answers_in_any_process(tmp_path):
    manifest = Manifest.load(make_study(tmp_path, with_config=True))
    folder, digests = make_pictures(tmp_path), []
    for number, seed in ((1, 0), (2, 0), (1, 1)):
        request = OodRequest(own=str(folder), kinds=("uniform-noise",), size=16, seed=seed)
        output = tmp_path / f"{number}_{seed}.h5"
        run_ood(
            manifest, output, request, workers=WorkerSettings(num_workers=number), progress=False
        )
        digests.append(read_ood(output).digest())
    assert digests[0] == digests[1] != digests[2]


def test_distortions_that_small_pictures_cannot_have_are_left_out_unless_they_are_asked_for(
    tmp_path,
):
    base = SetRequest(name="zoo", path=str(make_pictures(tmp_path)))
    kinds = {request.kind for request in distorted_requests(base, size=16)}
    assert "contrast" in kinds and "eidolonI" not in kinds and not {"sketch", "silhouette"} & kinds
    for kind, reason in (
        ("eidolonI", "64"),
        ("sketch", "line layer"),
        ("blur", "no distortion of this name"),
    ):
        with pytest.raises(LandscapeError, match=reason):
            list(distorted_requests(base, kinds=[kind], size=16))


def test_headers_are_read_once_until_a_file_changes(tmp_path, monkeypatch):
    from landscape.pipeline import distorted_sets

    folder, read = make_pictures(tmp_path, per_class=1), []
    looking = distorted_sets.has_transparency
    monkeypatch.setattr(
        distorted_sets, "has_transparency", lambda path: read.append(path) or looking(path)
    )
    base = SetRequest(name="own zoo", path=str(folder))
    distorted_requests(base, size=16)
    assert len(read) == 7
    changed = folder / "red_fox" / "0.png"
    Image.open(changed).convert("RGBA").save(changed)
    (request,) = (one for one in distorted_requests(base, size=16) if one.kind == "silhouette")
    assert request.open().stored.keys == ("red_fox/0.png",) and read[7:] == [changed]


def test_what_small_pictures_cannot_have_is_said_stored_and_counted(study, tmp_path):
    folder, output = make_pictures(tmp_path, per_class=1), tmp_path / "ood.h5"
    request = OodRequest(own=str(folder), size=16)
    # Pictures with transparency, as silhouettes are made too.
    for path in folder.rglob("*.png"):
        opaque = Image.open(path).convert("RGBA")
        opaque.putalpha(Image.linear_gradient("L").resize(opaque.size))
        opaque.save(path)
    dry = run_ood(study, output, request, epochs=(1,), dry_run=True).summary()
    lines = [line for line in dry.splitlines() if "left out" in line]
    # sigma 40 is more than 16 pixels; the noise of eidolons needs 64 x 64 (20 x 20 for the third).
    assert sum("low-pass 40 (sigma 40: expected 0 to 16" in line for line in lines) == 1
    assert sum("eidolonI, eidolonII (" in line and "64 x 64" in line for line in lines) == 1
    assert sum("sketch (sketch: is made of the line layer" in line for line in lines) == 1
    assert (
        "own/zoo/low-pass in 7 of 8 conditions" in dry and "own/zoo/contrast in 8 conditions" in dry
    )
    run_ood(study, output, request, epochs=(1,), workers=ONE, progress=False)
    store = read_ood(output)
    assert num_levels(store.sets.values(), "own/zoo/low-pass") == (7, 8)
    assert num_levels(store.sets.values(), "own/zoo/contrast") == (8, 8)
    table = CliRunner().invoke(main, ["table", str(output), "--format", "json"]).output
    info = CliRunner().invoke(main, ["info", str(output)]).output
    assert "left out: low-pass 40" in " ".join(
        json.loads(table)["notes"]
    ) and "left out: low-pass 40" in " ".join(info.split())
    curves = own_curves(store)
    figure = own_conditions(
        [curve for curve in curves if curve.dataset in ("low-pass", "contrast")]
    )
    titles = {
        axes.get_title(loc=place) for axes in figure.axes for place in ("left", "center", "right")
    }
    assert "Low-pass (7 of 8 levels)" in titles and "Contrast" in titles


def test_silhouettes_are_made_of_transparency(study, tmp_path):
    folder = make_pictures(tmp_path)
    with pytest.raises(DataError, match="no picture has transparency"):
        run_ood(
            study,
            tmp_path / "ood.h5",
            OodRequest(own=str(folder), kinds=("silhouette",), size=16),
            workers=ONE,
        )
    opaque = Image.open(folder / "red_fox" / "0.png").convert("RGBA")
    opaque.putalpha(Image.linear_gradient("L").resize(opaque.size))
    opaque.save(folder / "red_fox" / "0.png")
    run_ood(
        study,
        tmp_path / "ood.h5",
        OodRequest(own=str(folder), kinds=("silhouette",), size=16),
        workers=ONE,
        progress=False,
    )
    (one,) = read_ood(tmp_path / "ood.h5").sets.values()
    assert one.keys == ("red_fox/0.png",) and any(
        "27 of 28 pictures are left out" in note for note in one.notes
    )


def write_people(folder: Path) -> Path:
    """Two people on the edge set, in model-vs-human's format: one always right, one says cat."""
    (folder / "raw-data" / "edge").mkdir(parents=True)
    header = "subj,session,trial,rt,object_response,category,condition,imagename".split(",")
    for number, answer in ((1, None), (2, "cat")):
        with open(
            folder / "raw-data" / "edge" / f"edge_subject-0{number}_session_1.csv", "w", newline=""
        ) as file:
            rows = csv.writer(file)
            rows.writerow(header)
            for trial, category in enumerate(CATEGORIES, 1):
                name = f"0001_edg_s0{number}_0_{category}_00_{category}1.png"
                rows.writerow(
                    [f"subject-0{number}", 1, trial, 0.5, answer or category, category, 0, name]
                )
    return folder / "raw-data"


def test_people_stand_beside_models_in_file_and_figures(study, tmp_path, few_prompts):
    stimuli = make_stimuli(tmp_path)
    people, output = write_people(tmp_path), tmp_path / "ood.h5"
    request = OodRequest(stimuli=stimuli, people=(people,))
    report = run_ood(study, output, request, workers=ONE, progress=False)
    assert "32 answers of people and 0 of other models" in report.summary()
    answers = all_answers(read_ood(output))
    assert set(answers.table.kind) == {"human", "model"} and list(answers.models) == ["one"]
    both = all_answers(read_ood(output), epochs=(0, 1))
    assert list(both.models) == ["one 0", "one 1"]
    for kind in ("ood", "conditions"):
        said = draw_ood(output, tmp_path / f"{kind}.png", kind=kind)
        assert said.endswith("drawn.") and (tmp_path / f"{kind}.png").stat().st_size > 10_000
    # A second run keeps the people.
    run_ood(study, output, OodRequest(stimuli=stimuli), workers=ONE, progress=False)
    assert set(all_answers(read_ood(output)).table.kind) == {"human", "model"}


def test_answers_are_written_as_the_toolbox_reads_them(study, tmp_path, few_prompts):
    stimuli, output, folder = make_stimuli(tmp_path), tmp_path / "ood.h5", tmp_path / "raw-data"
    report = run_ood(
        study, output, OodRequest(stimuli=stimuli, written=folder), workers=ONE, progress=False
    )
    assert "4 CSV files of answers" in report.summary() and len(list(folder.rglob("*.csv"))) == 4
    again = tmp_path / "again.h5"
    run_ood(None, again, OodRequest(others=(folder,)))
    ours = all_answers(read_ood(output), epochs=(0, 1))
    assert all_answers(read_ood(again)).equals(ours)
    said = CliRunner().invoke(main, ["info", str(again)]).output
    assert (
        "predictions, schema version 1: 0 checkpoints" in said
        and f"other models: {len(ours.table)}" in said
    )


def test_a_picture_that_cannot_be_read_is_wrong_by_model_too(study, tmp_path, few_prompts):
    stimuli, output = make_stimuli(tmp_path), tmp_path / "ood.h5"
    broken = stimuli / "edge" / "cat" / "cat1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    report = run_ood(
        study, output, OodRequest(stimuli=stimuli), epochs=(1,), workers=ONE, progress=False
    )
    assert "1 answers are missing" in report.summary()
    table = all_answers(read_ood(output)).table
    edge = table[table.dataset == "edge"]
    assert len(edge) == 16 and edge[edge.image == "cat1.png"].response.tolist() == ["na"]
    # It is tried again.
    again = run_ood(
        study, output, OodRequest(stimuli=stimuli), epochs=(1,), workers=ONE, progress=False
    )
    assert again.evaluation is not None and again.evaluation.outcome.num_measured == 1


def test_an_opaque_picture_has_no_silhouette_and_is_counted(study, tmp_path):
    folder, output = make_pictures(tmp_path), tmp_path / "ood.h5"
    path = folder / "red_fox" / "0.png"
    Image.open(path).convert("RGBA").save(path)
    report = run_ood(
        study,
        output,
        OodRequest(own=str(folder), kinds=("silhouette",), size=16),
        workers=ONE,
        progress=False,
    )
    assert report.complete and "2 answers are missing" in report.summary()


def test_noise_is_that_of_the_distort_command(study, tmp_path):
    folder, output = make_pictures(tmp_path), tmp_path / "stimuli"
    options = "--kind uniform-noise --level 0.2 --size 16 --workers 1".split()
    written = CliRunner().invoke(main, ["distort", str(folder), "-o", str(output), *options])
    assert written.exit_code == 0, written.output
    base = SetRequest(name="own zoo", path=str(folder))
    (request,) = (
        one
        for one in distorted_requests(base, kinds=["uniform-noise"], size=16)
        if one.level == "0.2"
    )
    opened = request.open()
    files = {
        path.stem.rsplit("_", 1)[1].replace("%2F", "/").replace("%5F", "_"): path
        for path in output.rglob("*.png")
    }
    assert len(files) == len(opened.stored) == 28
    for i, key in enumerate(opened.stored.keys):
        file = files[key.removesuffix(".png")]
        np.testing.assert_array_equal(
            np.asarray(opened.pictures.picture(i)), np.asarray(Image.open(file))
        )


def test_own_folders_may_have_any_name(study, tmp_path):
    for name in ("openmoji-mine", "pets"):
        folder = make_pictures(tmp_path, name=name)
        request = OodRequest(own=str(folder), kinds=("rotation",), size=16)
        run_ood(study, tmp_path / "ood.h5", request, workers=ONE, progress=False)
    assert {name for name, _ in read_ood(tmp_path / "ood.h5").sets} == {
        "own/openmoji-mine/rotation",
        "own/pets/rotation",
    }
    assert {curve.dataset for curve in own_curves(read_ood(tmp_path / "ood.h5"))} == {
        "openmoji-mine/rotation",
        "pets/rotation",
    }


def test_people_alone_need_no_model(tmp_path):
    people = write_people(tmp_path)
    output = tmp_path / "people.h5"
    result = CliRunner().invoke(main, ["ood", "-o", str(output), "--humans", str(people)])
    assert result.exit_code == 0 and "32 answers of people" in result.output
    result = CliRunner().invoke(
        main, ["figure", str(output), "-o", str(tmp_path / "people.png"), "--kind", "conditions"]
    )
    assert result.exit_code == 0, result.output


def own_bars_drawn(monkeypatch):
    """What is drawn as bars of own pictures from now on."""
    drawn, draw = [], ood_figures.own_bars
    monkeypatch.setattr(
        ood_figures,
        "own_bars",
        lambda values, **options: drawn.append((values, options)) or draw(values, **options),
    )
    return drawn


def test_curves_of_own_pictures_are_the_scores(study, tmp_path, monkeypatch):
    folder, output = make_pictures(tmp_path), tmp_path / "ood.h5"
    run_ood(
        study,
        output,
        OodRequest(own=str(folder), kinds=("contrast",), size=16),
        workers=ONE,
        progress=False,
    )
    (curve,) = own_curves(read_ood(output))
    store = read_ood(output)
    assert (
        curve.series == "one"
        and curve.dataset == "contrast"
        and curve.conditions[0] == "c100"
        and curve.chance == 1 / 7
    )
    for condition, accuracy in zip(curve.conditions, curve.accuracy):
        one, found = (
            store.sets["own/zoo/contrast", condition],
            store.checkpoints["one", 1].sets["own/zoo/contrast", condition],
        )
        assert accuracy == np.mean(found.top[:, 0] == one.labels)
    assert draw_ood(output, tmp_path / "own.png", kind="conditions").endswith("drawn.")
    # Figure 1a of own pictures: the mean over levels but the control.
    drawn = own_bars_drawn(monkeypatch)
    assert (
        draw_ood(output, tmp_path / "bars.png", kind="ood").endswith("drawn.")
        and (tmp_path / "bars.png").is_file()
    )
    ((values, options),) = drawn
    assert values["one"].value == pytest.approx(np.mean(curve.accuracy[1:]), abs=1e-12)
    assert values["one"].low <= values["one"].value <= values["one"].high
    assert options["chance"] == pytest.approx(1 / 7) and options["datasets"] == (
        "own/zoo/contrast",
    )
    for command, name in (("figure", "x.png"), ("report", "x.html"), ("merge", "x.h5")):
        refused = CliRunner().invoke(main, [command, str(output), "-o", str(tmp_path / name)])
        assert refused.exit_code == 2 and "holds predictions" in refused.output + (
            refused.stderr or ""
        )
    with pytest.raises(StoreError, match="holds no answers to the benchmark's stimuli"):
        draw_ood(output, tmp_path / "own.png", kind="shape-bias")


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ([], "neither a manifest nor a file of answers"),
        (["--own", "openmoji", "--humans", "HUMANS"], "no manifest names one"),
        (["--humans", "nowhere"], "nowhere"),
        (["--logit-scale", "0"], "not learned or a number above 0"),
        (["MANIFEST", "--stimuli", "nowhere"], "no such folder"),
        (["MANIFEST", "--kind", "blur"], "no distortion of this name"),
        (["MANIFEST", "--stimuli", "STIMULI", "--kind", "contrast"], "only --stimuli is given"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(tmp_path, arguments, reason):
    manifest = make_study(tmp_path, epochs=(0,), names=("one",))
    places = {
        "HUMANS": write_people(tmp_path),
        "MANIFEST": manifest,
        "STIMULI": make_stimuli(tmp_path),
    }
    output = tmp_path / "out.h5"
    result = CliRunner().invoke(
        main, ["ood", "-o", str(output), *(str(places.get(word, word)) for word in arguments)]
    )
    said = result.output + (result.stderr or "")
    assert result.exit_code == 2 and reason in said, said
    assert not list(tmp_path.glob("out.h5*"))


HUMAN = SHARED / "human"


@pytest.mark.skipif(not HUMAN.is_dir(), reason="the trial data of people are not here")
def test_the_published_numbers_come_out_of_the_commands(tmp_path):
    output, table = tmp_path / "ood.h5", tmp_path / "ood.json"
    arguments = [
        "ood",
        "-o",
        str(output),
        "--humans",
        str(HUMAN / "human.csv.gz"),
        "--answers",
        str(HUMAN / "models.csv.gz"),
    ]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    result = CliRunner().invoke(main, ["table", str(output), "-o", str(table), "--resamples", "99"])
    assert result.exit_code == 0, result.output
    rows = {row["model"]: row for row in json.loads(table.read_text())["rows"]}
    names = ("ood_accuracy_17", "accuracy_difference", "observed_consistency", "error_consistency")
    published = {
        "resnet50": (0.559, 0.087, 0.665, 0.208),
        "simclr-resnet50x1": (0.596, 0.080, 0.667, 0.179),
        "bagnet33": (0.398, 0.156, 0.567, 0.137),
    }
    for model, numbers in published.items():
        assert tuple(round(rows[model][name], 3) for name in names) == numbers
    assert (
        round(rows["humans"]["shape_bias"], 4) == 0.9587
        and round(rows["humans"]["ood_accuracy_16"], 4) == 0.7195
    )


def test_a_table_is_by_set_or_by_model(study, tmp_path, few_prompts):
    stimuli, output = make_stimuli(tmp_path), tmp_path / "ood.h5"
    run_ood(study, output, OodRequest(stimuli=stimuli), workers=ONE, progress=False)
    by_model = json.loads(
        CliRunner().invoke(main, ["table", str(output), "--format", "json"]).output
    )["rows"]
    assert [row["model"] for row in by_model] == ["one"] and by_model[0][
        "ood_accuracy_16_sets"
    ] == 1
    by_set = json.loads(
        CliRunner().invoke(main, ["table", str(output), "--format", "json", "--by", "set"]).output
    )["rows"]
    assert [(row["epoch"], row["dataset"], row["condition"]) for row in by_set] == [
        (epoch, *key)
        for epoch in (0, 1)
        for key in (("contrast", "c100"), ("contrast", "c05"), ("edge", "0"))
    ]
    own = tmp_path / "own.h5"
    run_ood(
        study,
        own,
        OodRequest(own=str(make_pictures(tmp_path)), kinds=("contrast",), size=16),
        workers=ONE,
        progress=False,
    )
    refused = CliRunner().invoke(main, ["table", str(own), "--by", "model"])
    assert refused.exit_code == 2 and "--by set" in refused.output + (refused.stderr or "")


def test_openmoji_is_distorted_by_subgroup_or_by_another_task(study):
    for own, classes in (
        (None, "subgroup"),
        ("openmoji", "subgroup"),
        ("openmoji/name", "name"),
        ("openmoji/group", "group"),
    ):
        found = requests_for(study, OodRequest(own=own, kinds=("rotation",), size=32))
        assert {request.base.name for request in found} == {f"openmoji/{classes}"} and len(
            found
        ) == 4
