"""`landscape evaluate` end to end on tiny CLIP models: answers against open_clip's own classifier,
and interrupted runs.
"""

import json
import os
import pickle
import subprocess
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image

from landscape.cli import main
from landscape.clip.checkpoint import load_checkpoint
from landscape.clip.model import build_model, preprocess_for, tokenizer_for
from landscape.errors import DataError, LandscapeError, StoreError
from landscape.manifest import Manifest
from landscape.pipeline import evaluation_measurement, requests_of, run_evaluation
from landscape.pipeline.evaluation_measurement import EvaluationMeasurement
from landscape.pipeline.evaluation_output import EvaluationOutput
from landscape.pipeline.picture_sets import SetRequest
from landscape.store.predictions import read_predictions
from landscape.workers.crew import WorkerSettings
from tests.helpers.processes import environment_of_scripts, helper_command
from tests.helpers.spectra_study import MODEL, make_study

CLASSES = ("red fox", "blue whale", "green frog", "small dog", "big cat", "old tree", "new house")
TEMPLATES = ("a photo of a {c}.", "a drawing of a {c}.")
PER_CLASS = 4


def make_pictures(
    folder: Path,
    *,
    name: str = "zoo",
    per_class: int = PER_CLASS,
    classes: tuple[str, ...] = CLASSES,
) -> Path:
    """Class folders of noise, with class names and prompts beside them."""
    generator = np.random.default_rng(0)
    for label in classes:
        of_class = folder / name / label.replace(" ", "_")
        of_class.mkdir(parents=True)
        for i in range(per_class):
            Image.fromarray(generator.integers(0, 256, (24, 20, 3), dtype=np.uint8)).save(
                of_class / f"{i}.png"
            )
    (folder / name / "classnames.txt").write_text("".join(f"{label}\n" for label in classes))
    (folder / name / "zeroshot_classification_templates.txt").write_text(
        "".join(f"{t}\n" for t in TEMPLATES)
    )
    return folder / name


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("LANDSCAPE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def study(tmp_path):
    return Manifest.load(make_study(tmp_path))


@pytest.fixture
def small_units(monkeypatch):
    monkeypatch.setattr(evaluation_measurement, "PICTURES_A_UNIT", 5)


def evaluated(study: Manifest, pictures: Path, output: Path, **options):
    return run_evaluation(
        study, output, requests_of(study, [f"zoo={pictures}"]), progress=False, **options
    )


def scores_by_open_clip(path: Path, pictures: list[Path]) -> torch.Tensor:
    """Cosines by open_clip's own zero-shot classifier, picture by picture."""
    model = build_model(MODEL)
    load_checkpoint(model, path)
    templates = [lambda name, t=template: t.replace("{c}", name) for template in TEMPLATES]
    with torch.no_grad():
        weights = open_clip.build_zero_shot_classifier(
            model, tokenizer_for(model), CLASSES, templates, device="cpu"
        )
        inputs = [
            preprocess_for(model).transform(Image.open(picture).convert("RGB"))[None]
            for picture in pictures
        ]
        return torch.cat([model.encode_image(one, normalize=True) @ weights for one in inputs])


def test_answers_are_those_of_open_clips_classifier(study, tmp_path, small_units):
    folder = make_pictures(tmp_path)
    report = evaluated(study, folder, tmp_path / "out.h5")
    assert (
        report.complete
        and report.num_planned == 2 * 2 * 6
        and "zoo: 28 pictures" in report.summary()
    )
    store = read_predictions(tmp_path / "out.h5")
    (one,) = store.sets.values()
    assert len(one.keys) == 28 and sorted(np.bincount(one.labels)) == [PER_CLASS] * len(CLASSES)
    for (series, epoch), checkpoint in store.checkpoints.items():
        truth = scores_by_open_clip(
            tmp_path / f"{series}_{epoch}.pt", [folder / key for key in one.keys]
        )
        answers = checkpoint.sets[one.name]
        assert answers.complete and not answers.unread and answers.top.shape == (28, 7)
        found = np.take_along_axis(truth.numpy(), answers.top.astype(int), axis=1)
        # Float32 cosines of eight features, in another order of sums.
        np.testing.assert_allclose(answers.scores, found, atol=2e-6)
        assert (np.diff(answers.scores, axis=1) <= 0).all()
        # By name, whatever the order of the folders is.
        names = [CLASSES.index(one.class_names[label]) for label in one.labels]
        assert [Path(key).parts[0].replace("_", " ") for key in one.keys] == [
            CLASSES[name] for name in names
        ]


def test_a_second_run_answers_nothing_and_one_more_set_only_that(study, tmp_path, monkeypatch):
    folder, other = (
        make_pictures(tmp_path),
        make_pictures(tmp_path, name="farm", classes=CLASSES[:3]),
    )
    evaluated(study, folder, tmp_path / "out.h5", epochs=(0,))
    digest = read_predictions(tmp_path / "out.h5").digest()
    again = evaluated(study, folder, tmp_path / "out.h5", epochs=(0,))
    assert (again.outcome.num_measured, again.outcome.num_stored) == (0, 2)
    assert read_predictions(tmp_path / "out.h5").digest() == digest
    more = run_evaluation(
        study, tmp_path / "out.h5", requests_of(study, [f"farm={other}"]), progress=False
    )
    assert more.outcome.num_measured == 4
    store = read_predictions(tmp_path / "out.h5")
    assert [name for name, _ in store.sets] == ["zoo", "farm"]
    assert {key: len(one.sets) for key, one in store.checkpoints.items()} == {
        ("one", 0): 2,
        ("one", 1): 1,
        ("two", 0): 2,
        ("two", 1): 1,
    }
    dry = evaluated(study, folder, tmp_path / "out.h5", dry_run=True)
    assert "to do: 2 of 4 units of 4 checkpoints" in dry.summary()


def test_a_run_that_ends_anywhere_loses_nothing_and_counts_nothing_twice(
    study, tmp_path, small_units, monkeypatch
):
    folder = make_pictures(tmp_path)
    evaluated(study, folder, tmp_path / "whole.h5", workers=WorkerSettings(num_workers=1))
    keep, merge = EvaluationOutput.keep, EvaluationOutput.finish
    calls = {"kept": 0}
    for moment in (1, 2, 5):
        output = tmp_path / f"cut_{moment}.h5"

        def stopping(self, *args, **options):
            calls["kept"] += 1
            found = keep(self, *args, **options)
            if calls["kept"] == moment:
                raise KeyboardInterrupt
            return found

        calls["kept"] = 0
        monkeypatch.setattr(EvaluationOutput, "keep", stopping)
        with pytest.raises(KeyboardInterrupt):
            evaluated(study, folder, output, workers=WorkerSettings(num_workers=1))
        assert not output.exists() and (tmp_path / f"cut_{moment}.h5.parts").is_dir()
        monkeypatch.setattr(EvaluationOutput, "keep", keep)
        report = evaluated(study, folder, output, workers=WorkerSettings(num_workers=1))
        assert report.outcome.num_stored >= moment and report.complete
        assert read_predictions(output).digest() == read_predictions(tmp_path / "whole.h5").digest()
        assert not (tmp_path / f"cut_{moment}.h5.parts").exists()
    # Between the file and the removal of the log.
    output = tmp_path / "cut_late.h5"

    def finished_only_half(self):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            merge(self)

    monkeypatch.setattr(EvaluationOutput, "finish", finished_only_half)
    with pytest.raises(KeyboardInterrupt):
        evaluated(study, folder, output, workers=WorkerSettings(num_workers=1))
    monkeypatch.setattr(EvaluationOutput, "finish", merge)
    assert (
        evaluated(study, folder, output, workers=WorkerSettings(num_workers=1)).outcome.num_measured
        == 0
    )
    assert read_predictions(output).digest() == read_predictions(tmp_path / "whole.h5").digest()


def test_sets_are_opened_once_in_a_process(study, tmp_path, monkeypatch):
    folder, opened = make_pictures(tmp_path), []
    opening = SetRequest.open
    monkeypatch.setattr(SetRequest, "open", lambda self: opened.append(self.name) or opening(self))
    report = evaluated(study, folder, tmp_path / "out.h5", workers=WorkerSettings(num_workers=1))
    assert report.complete and opened == ["zoo"]
    # What is sent to another process is the request, not the pictures.
    measurement = EvaluationMeasurement(
        manifest=study,
        checkpoints=(),
        requests=(),
        sizes=(),
        identities=(),
        target=tmp_path / "x.h5",
        opened=(object(),),
    )
    assert pickle.loads(pickle.dumps(measurement)).opened is None


def test_a_forecast_is_the_median_and_leaves_the_first_time_out(monkeypatch):
    # The first holds what is done once, and one of the others met a busy machine.
    lasts, now = iter([9.0, 0.1, 3.0, 0.1, 0.1, 0.1]), [0.0]

    def work():
        now[0] += next(lasts)

    monkeypatch.setattr(evaluation_measurement.time, "perf_counter", lambda: now[0])
    assert evaluation_measurement.median_seconds(work) == pytest.approx(0.1)
    # Three of long ones are enough.
    assert len(list(lasts)) == 2


def test_a_dry_run_counts_what_the_run_would_answer(study, tmp_path, small_units, monkeypatch):
    folder, output = make_pictures(tmp_path), tmp_path / "out.h5"
    broken = folder / "red_fox" / "1.png"
    broken.write_bytes(broken.read_bytes()[:200])

    def left():
        said = evaluated(study, folder, output, epochs=(0,), dry_run=True).summary()
        return int(said.split("to do: ")[1].split()[0])

    assert left() == 12 and not list(tmp_path.glob("out.h5*"))
    finish = EvaluationOutput.finish
    monkeypatch.setattr(
        EvaluationOutput, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        evaluated(study, folder, output, epochs=(0,), workers=WorkerSettings(num_workers=1))
    # The log is not merged, and the stretch with the broken picture of each of two series is tried
    # again.
    logs = {path: path.read_bytes() for path in (tmp_path / "out.h5.parts").iterdir()}
    assert not output.exists() and left() == 2
    assert {path: path.read_bytes() for path in (tmp_path / "out.h5.parts").iterdir()} == logs
    monkeypatch.setattr(EvaluationOutput, "finish", finish)
    again = evaluated(study, folder, output, epochs=(0,), workers=WorkerSettings(num_workers=1))
    assert again.outcome.num_measured == 2 and left() == 2


@pytest.mark.parametrize("num_kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_sigkill_at_random_moments_loses_nothing_and_counts_nothing_twice(num_kills, tmp_path):
    manifest, folder = make_study(tmp_path), make_pictures(tmp_path, per_class=20)
    command = helper_command("evaluation_study", manifest, folder, tmp_path, num_kills)
    finished = subprocess.run(command, capture_output=True, text=True, env=environment_of_scripts())
    assert finished.returncode == 0, finished.stderr
    outcome = json.loads(finished.stdout)
    assert len(outcome["sizes"]) == num_kills and not any(outcome["statuses"])
    # The kills came at different stages, with something stored and with nothing.
    assert len(set(outcome["sizes"])) > min(2, num_kills // 4) and max(outcome["sizes"]) > 0
    assert set(outcome["digests"]) == {outcome["undisturbed"]}
    assert not list(tmp_path.glob("*.parts"))


def test_a_damaged_log_costs_only_what_it_held(study, tmp_path, small_units, monkeypatch):
    folder, output = make_pictures(tmp_path), tmp_path / "out.h5"
    monkeypatch.setattr(
        EvaluationOutput, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        evaluated(study, folder, output)
    monkeypatch.undo()
    (log,) = (tmp_path / "out.h5.parts").glob("*.log")
    lines = log.read_bytes().split(b"\n")
    # The body of one unit: its digest is now wrong.
    lines[9] = lines[9].replace(b"0", b"1", 1)
    log.write_bytes(b"\n".join(lines))
    monkeypatch.setattr(evaluation_measurement, "PICTURES_A_UNIT", 5)
    report = evaluated(study, folder, output)
    assert report.complete and 1 <= report.outcome.num_measured <= 2


def test_a_picture_that_cannot_be_read_has_no_answer_and_is_counted(study, tmp_path):
    folder = make_pictures(tmp_path)
    broken = folder / "red_fox" / "1.png"
    broken.write_bytes(broken.read_bytes()[:200])
    report = evaluated(study, folder, tmp_path / "out.h5", epochs=(0,))
    assert (
        report.complete and report.num_unread == 2 and "2 answers are missing" in report.summary()
    )
    store = read_predictions(tmp_path / "out.h5")
    (one,) = store.sets.values()
    place = one.keys.index("red_fox/1.png")
    answers = store.checkpoints["one", 0].sets[one.name]
    assert (
        list(answers.unread) == [place]
        and (answers.top[place] == -1).all()
        and np.isnan(answers.scores[place]).all()
    )
    rows = json.loads(
        CliRunner().invoke(main, ["table", str(tmp_path / "out.h5"), "--format", "json"]).output
    )["rows"]
    assert {(row["n"], row["num_unread"]) for row in rows} == {(28, 1)}


@pytest.mark.parametrize(
    "change, reason",
    [
        (
            lambda folder: (folder / "zeroshot_classification_templates.txt").write_text("a {c}"),
            "classes or prompts",
        ),
        (lambda folder: (folder / "red_fox" / "1.png").unlink(), "pictures or labels"),
    ],
)
def test_other_pictures_or_prompts_are_not_mixed_into_a_file(study, tmp_path, change, reason):
    folder = make_pictures(tmp_path)
    evaluated(study, folder, tmp_path / "out.h5", epochs=(0,))
    before = (tmp_path / "out.h5").read_bytes()
    change(folder)
    with pytest.raises(StoreError, match=reason):
        evaluated(study, folder, tmp_path / "out.h5")
    assert (tmp_path / "out.h5").read_bytes() == before and not list(tmp_path.glob("*.parts"))


def test_other_weights_are_not_mixed_into_a_file(study, tmp_path):
    folder = make_pictures(tmp_path)
    evaluated(study, folder, tmp_path / "out.h5", epochs=(0,))
    os.replace(tmp_path / "one_1.pt", tmp_path / "one_0.pt")
    with pytest.raises(LandscapeError, match="sha256"):
        evaluated(study, folder, tmp_path / "out.h5", epochs=(0,))


def test_two_processes_give_the_same_answers(study, tmp_path, small_units):
    folder = make_pictures(tmp_path)
    manifest = Manifest.load(make_study(tmp_path, with_config=True))
    for number in (1, 2):
        evaluated(
            manifest, folder, tmp_path / f"{number}.h5", workers=WorkerSettings(num_workers=number)
        )
    assert (
        read_predictions(tmp_path / "1.h5").digest() == read_predictions(tmp_path / "2.h5").digest()
    )


def test_text_features_are_kept_and_a_spoilt_file_of_them_is_made_anew(
    study, tmp_path, monkeypatch
):
    from landscape.zeroshot import ZeroShotModel

    folder, made = make_pictures(tmp_path), []
    encode = ZeroShotModel._encode_text
    monkeypatch.setattr(
        ZeroShotModel,
        "_encode_text",
        lambda self, prompts: made.append(len(prompts)) or encode(self, prompts),
    )
    evaluated(study, folder, tmp_path / "first.h5", epochs=(0,))
    assert made == [14, 14]
    evaluated(study, folder, tmp_path / "second.h5", epochs=(0,))
    assert made == [14, 14]
    for file in (Path(os.environ["LANDSCAPE_CACHE"]) / "classes").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    evaluated(study, folder, tmp_path / "third.h5", epochs=(0,))
    assert made == [14] * 4
    assert (
        len(
            {
                read_predictions(tmp_path / f"{name}.h5").digest()
                for name in ("first", "second", "third")
            }
        )
        == 1
    )


def test_a_manifest_names_its_sets(tmp_path):
    folder, path = make_pictures(tmp_path), make_study(tmp_path, epochs=(0,), names=("one",))
    document = yaml.safe_load(path.read_text())
    path.write_text(
        yaml.safe_dump(
            document
            | {"evaluation": {"sets": {"zoo": "zoo", "pair": {"path": "zoo", "split": None}}}}
        )
    )
    refused = CliRunner().invoke(main, ["evaluate", str(path), "-o", str(tmp_path / "out.h5")])
    assert refused.exit_code == 2 and "evaluation.sets.pair.split" in refused.output + (
        refused.stderr or ""
    )
    path.write_text(yaml.safe_dump(document | {"evaluation": {"sets": {"zoo": "zoo"}}}))
    manifest = Manifest.load(path)
    assert (
        manifest.evaluation.sets[0].path == str(folder)
        and manifest.sha256 == Manifest.load(path).sha256
    )
    result = CliRunner().invoke(
        main, ["evaluate", str(path), "-o", str(tmp_path / "out.h5"), "--workers", "1"]
    )
    assert result.exit_code == 0, result.output
    shown = CliRunner().invoke(main, ["table", str(tmp_path / "out.h5")])
    assert shown.exit_code == 0 and "zoo" in shown.output
    told = CliRunner().invoke(main, ["info", str(tmp_path / "out.h5")])
    assert (
        told.exit_code == 0
        and "set zoo: 28 pictures" in told.output
        and "one epoch 0: 28 answers on 1 sets" in told.output
    )


@pytest.mark.parametrize(
    "data, reason",
    [
        (["zoo="], "expected NAME=PATH"),
        (["=x"], "expected NAME=PATH"),
        (["zoo=nowhere"], "nowhere"),
        (["zoo=a", "zoo=b"], "given twice"),
    ],
)
def test_wrong_data_is_one_line_and_writes_nothing(study, tmp_path, data, reason):
    with pytest.raises(DataError, match=reason) as error:
        run_evaluation(study, tmp_path / "out.h5", requests_of(study, data))
    assert "\n" not in str(error.value) and not list(tmp_path.glob("out.h5*"))


def test_scores_that_are_not_finite_are_no_answer(study, tmp_path, monkeypatch):
    from landscape.zeroshot import ZeroShotModel

    monkeypatch.setattr(
        ZeroShotModel,
        "scores",
        lambda self, pictures, classes: torch.full((len(pictures), 7), torch.nan),
    )
    report = evaluated(
        study,
        make_pictures(tmp_path),
        tmp_path / "out.h5",
        epochs=(0,),
        workers=WorkerSettings(num_workers=1),
    )
    assert not report.complete and "scores are not finite" in report.summary()


def test_one_set_under_two_names_and_a_missing_folder_of_prompts_are_refused(study, tmp_path):
    folder = make_pictures(tmp_path, classes=("airplane", "automobile"))
    with pytest.raises(DataError, match="given twice"):
        run_evaluation(
            study,
            tmp_path / "out.h5",
            requests_of(study, [f"cifar10={folder}", f"CIFAR-10={folder}"]),
        )
    with pytest.raises(DataError, match="--slip names"):
        requests_of(study, [f"zoo={folder}"], slip=tmp_path / "nowhere")
    assert not list(tmp_path.glob("out.h5*"))


def test_a_classifier_is_evaluated_on_imagenet_alone(tmp_path):
    from landscape.clip.checkpoint import save_checkpoint

    make_study(tmp_path, epochs=(0,), names=("one",))
    name = "timm:test_vit"
    save_checkpoint(
        tmp_path / "vit.pt", model=build_model(name, seed=0, num_classes=10), epoch=0, name=name
    )
    document = yaml.safe_load((tmp_path / "checkpoints.yaml").read_text())
    document["hessian"]["objective"] = "cross_entropy"
    document["series"] = [
        {
            "name": "net",
            "model": name,
            "num_classes": 10,
            "checkpoints": [{"epoch": 0, "path": "vit.pt"}],
        }
    ]
    (tmp_path / "checkpoints.yaml").write_text(yaml.safe_dump(document))
    manifest, folder = Manifest.load(tmp_path / "checkpoints.yaml"), make_pictures(tmp_path)
    with pytest.raises(LandscapeError, match="is a classifier with 10 outputs and reads no text"):
        evaluated(manifest, folder, tmp_path / "out.h5")
