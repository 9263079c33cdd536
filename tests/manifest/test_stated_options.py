"""Options that cannot have an effect are refused: for each command a table of every option by what
else is given.
"""

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from landscape.answers import DATASETS, answers_of_model
from landscape.cli import main
from landscape.clip.checkpoint import save_checkpoint
from landscape.clip.model import build_model
from landscape.datasets.sources import SLIP_FILES
from landscape.errors import OptionError
from landscape.pipeline import OodRequest, run_ood
from landscape.store.predictions import write_predictions
from tests.helpers.accuracy_stores import store_of, two_series
from tests.helpers.spectra_study import make_study
from tests.pipeline.test_evaluation import make_pictures
from tests.pipeline.test_ood import make_stimuli, write_people
from tests.store.test_predictions import make_set

# Options of a run that say where it calculates, and on what: a dry run takes them as the run would.
RUN = {"--series": "one", "--epochs": "0", "--device": "cpu", "--workers": "1", "--threads": "1"}
# They are not tried: they would need a scheduler.
ELSEWHERE = {"--scheduler", "--cluster"}
ALWAYS = {"--output", "--dry-run"}
OF_MODELS = {"--stimuli", "--own", "--kind", "--size", "--seed", "--logit-scale", "--write-answers"}


def options_of(command: str) -> set[str]:
    return {
        max(one.opts, key=len)
        for one in main.commands[command].params
        if one.param_type_name == "option"
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A manifest of one series, pictures of one's own, stimuli, and answers of people."""
    folder = tmp_path_factory.mktemp("stated")
    make_study(folder, epochs=(0,), names=("one",))
    make_pictures(folder, per_class=1)
    make_stimuli(folder)
    write_people(folder)
    distort = [
        "distort",
        str(folder / "zoo"),
        "-o",
        str(folder / "made"),
        "--kind",
        "rotation",
        "--size",
        "16",
        "--workers",
        "1",
    ]
    assert CliRunner().invoke(main, distort).exit_code == 0
    save_checkpoint(
        folder / "vit.pt", model=build_model("timm:test_vit", seed=0), epoch=0, name="timm:test_vit"
    )
    document = yaml.safe_load((folder / "checkpoints.yaml").read_text())
    document["hessian"]["objective"] = "cross_entropy"
    document["series"] = [
        {"name": "one", "model": "timm:test_vit", "checkpoints": [{"epoch": 0, "path": "vit.pt"}]}
    ]
    (folder / "classifier.yaml").write_text(yaml.safe_dump(document))
    return folder


def said(place, command: str, words: str, *, output: str = "out.h5"):
    """Exit status and text of a command; words with a slash are places."""
    arguments = [str(place / word[1:]) if word.startswith("/") else word for word in words.split()]
    result = CliRunner().invoke(main, [command, *arguments, "-o", str(place / output)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


OOD = {
    **RUN,
    "--stimuli": "/stimuli",
    "--own": "/zoo",
    "--kind": "contrast",
    "--size": "16",
    "--seed": "0",
    "--logit-scale": "100",
    "--humans": "/raw-data",
    "--answers": "/raw-data",
    "--write-answers": "/written",
}
NOTHING_DISTORTED = dict.fromkeys(("--kind", "--size", "--seed"), "nothing is distorted")
# What is given, and the options that then say nothing, each with a word of the reason.
OOD_MODES = {
    "people": (
        "--humans /raw-data",
        dict.fromkeys({*OF_MODELS, *RUN}, "no manifest names one"),
    ),
    "own": (
        "/checkpoints.yaml --own /zoo --kind rotation --size 16",
        {
            "--seed": "nothing random",
            "--logit-scale": "published stimuli",
            "--write-answers": "there are none",
        },
    ),
    "own at random": (
        "/checkpoints.yaml --own /zoo --kind uniform-noise --size 16",
        {"--logit-scale": "published stimuli", "--write-answers": "there are none"},
    ),
    "stimuli": ("/checkpoints.yaml --stimuli /stimuli", NOTHING_DISTORTED),
    "stimuli of distort": (
        "/checkpoints.yaml --stimuli /made",
        {**NOTHING_DISTORTED, "--logit-scale": "published stimuli"},
    ),
    "stimuli and own": (
        "/checkpoints.yaml --stimuli /stimuli --own /zoo --kind uniform-noise --size 16",
        {},
    ),
    "a classifier": (
        "/classifier.yaml --stimuli /stimuli",
        {**NOTHING_DISTORTED, "--logit-scale": "logits"},
    ),
}


def test_the_tables_know_every_option():
    assert options_of("ood") == {*OOD, *ELSEWHERE, *ALWAYS}
    assert options_of("evaluate") == {*RUN, *ELSEWHERE, *ALWAYS, "--data", "--slip"}
    assert options_of("table") == {
        "--output",
        "--format",
        "--by",
        "--series",
        "--epochs",
        "--resamples",
        "--seed",
    }
    assert options_of("figure") == {
        "--output",
        "--kind",
        "--series",
        "--epochs",
        "--title",
        "--keep-unconverged",
        # test_figure_layout.py tries these with every kind.
        "--width",
        "--columns",
        "--font-size",
        "--linear",
    }
    # All have an effect on the page of any file of answers.
    assert options_of("report") == {
        "--output",
        "--series",
        "--title",
        "--predictions",
        "--keep-unconverged",
        "--resamples",
    }


@pytest.mark.parametrize("mode", OOD_MODES)
def test_ood_refuses_what_says_nothing_and_takes_the_rest(place, mode):
    given, without_effect = OOD_MODES[mode]
    for option, value in OOD.items():
        # What is given twice, or is given so as to change the mode, is another row.
        if option in given or (
            option in ("--stimuli", "--own", "--kind") and option not in without_effect
        ):
            continue
        status, text = said(place, "ood", f"{given} {option} {value} --dry-run")
        if option in without_effect:
            assert (
                status == 2 and option in text and without_effect[option] in " ".join(text.split())
            ), (option, text)
            assert len(text.strip().splitlines()) == 1
        else:
            assert status == 0, (option, text)
    assert not list(place.glob("out.h5*"))


def test_people_alone_refuse_a_cluster_too(place):
    (place / "cluster.yaml").write_text("")
    for words in ("--scheduler tcp://nowhere:1", "--cluster /cluster.yaml"):
        status, text = said(place, "ood", f"--humans /raw-data {words}")
        assert status == 2 and "no manifest names one" in text


def test_the_same_holds_in_python(place):
    for facts in ({"seed": 1}, {"logit_scale": None}, {"size": 16}):
        with pytest.raises(OptionError, match="no manifest names one"):
            run_ood(None, place / "out.h5", OodRequest(people=(place / "raw-data",), **facts))
    with pytest.raises(OptionError, match="--series would have no effect"):
        run_ood(None, place / "out.h5", OodRequest(people=(place / "raw-data",)), series=("one",))


def test_evaluate_refuses_slips_files_where_no_set_reads_them(place, monkeypatch):
    (place / "slip").mkdir(exist_ok=True)
    status, text = said(
        place,
        "evaluate",
        "/checkpoints.yaml --data zoo=" + str(place / "zoo") + " --slip /slip --dry-run",
    )
    assert status == 2 and "--slip would have no effect" in text and "classnames.txt" in text
    assert (
        said(
            place, "evaluate", "/checkpoints.yaml --data zoo=" + str(place / "zoo") + " --dry-run"
        )[0]
        == 0
    )
    # Where a source is SLIP's, it is taken.
    told = dict.fromkeys(("names", "prompts"), SLIP_FILES) | {"num_prompts": 1}
    monkeypatch.setattr("landscape.pipeline.picture_sets.sources_of", lambda _: told)
    assert (
        said(
            place,
            "evaluate",
            "/checkpoints.yaml --data zoo=" + str(place / "zoo") + " --slip /slip --dry-run",
        )[0]
        == 0
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of answers: people alone, two series by top-1, by another metric, and over several
    sets.
    """
    folder = tmp_path_factory.mktemp("files")
    categories = ["cat", "dog"] * 8
    images = [f"{name}{number}.png" for number, name in enumerate(categories)]
    conditions = [DATASETS["edge"].conditions[0].name] * len(images)
    other = answers_of_model(
        "other",
        "edge",
        images=images,
        conditions=conditions,
        categories=categories,
        responses=["cat"] * len(images),
    )
    table = other.table.to_csv(index=False).encode()
    pets, mnist = make_set("pets", num_pictures=20), make_set("mnist", num_pictures=20)
    recall = make_set("aircraft", num_pictures=20, metric="mean_per_class")
    own = [
        make_set("own/zoo/contrast", condition=name, num_pictures=20, chance=0.1)
        for name in ("c100", "c50")
    ]
    for name, store in {
        "people": store_of(answers=table),
        "top1": two_series([pets]),
        "recall": two_series([recall]),
        "means": two_series([pets, mnist]),
        "own": two_series(own),
    }.items():
        write_predictions(folder / f"{name}.h5", store)
    both = two_series(own)
    write_predictions(
        folder / "own_and_others.h5", store_of(*both.checkpoints.values(), sets=own, answers=table)
    )
    return folder


NONE_ANSWERED, WILSON = "none of the evaluated models has answered", "nothing is resampled"
TABLE_MODES = {
    "people": {"--series": NONE_ANSWERED, "--epochs": NONE_ANSWERED},
    "own_and_others": {"--series": NONE_ANSWERED, "--epochs": NONE_ANSWERED},
    "own_and_others --by set": {"--resamples": WILSON, "--seed": WILSON},
    "top1": {"--resamples": WILSON, "--seed": WILSON},
    "recall": {},
    "means": {},
}


@pytest.mark.parametrize("mode", TABLE_MODES)
def test_table_refuses_what_says_nothing_and_takes_the_rest(files, mode):
    store, *given = mode.split()
    for option, value in {
        "--series": "vit",
        "--epochs": "25",
        "--resamples": "99",
        "--seed": "0",
    }.items():
        few = (
            []
            if option == "--resamples" or "--resamples" in TABLE_MODES[mode]
            else ["--resamples", "99"]
        )
        words = ["table", str(files / f"{store}.h5"), *given, *few, option, value]
        result = CliRunner().invoke(main, words)
        text = " ".join((result.output).split())
        expected = TABLE_MODES[mode].get(option)
        assert result.exit_code == (2 if expected else 0), (option, text)
        assert not expected or (option in text and expected in text)


@pytest.mark.parametrize(
    "store, kind, refused",
    [
        ("people", "ood", True),
        ("people", "conditions", True),
        ("own_and_others", "ood", True),
        ("own", "conditions", False),
    ],
)
def test_figures_refuse_a_choice_of_which_nothing_is_shown(files, tmp_path, store, kind, refused):
    for option, value in (("--series", "vit"), ("--epochs", "25")):
        words = [
            "figure",
            str(files / f"{store}.h5"),
            "-o",
            str(tmp_path / "x.png"),
            "--kind",
            kind,
            option,
            value,
        ]
        result = CliRunner().invoke(main, words)
        text = result.output
        assert result.exit_code == (2 if refused else 0) and (NONE_ANSWERED in text) == refused, (
            text
        )
        assert (tmp_path / "x.png").exists() != refused


@pytest.mark.parametrize(
    "words, reason",
    [
        ("--kind contrast --seed 0", "nothing random is in contrast"),
        ("--kind false-colour --level True --gamma-lut TABLE", "it is of false-colour"),
        ("--kind contrast --mean-spectrum TABLE", "it is of power-equalisation"),
        ("--kind uniform-noise --seed 0", None),
        ("--kind false-colour --gamma-lut TABLE", None),
    ],
)
def test_distort_refuses_what_no_distortion_reads(place, words, reason):
    np.save(place / "lut.npy", np.linspace(0, 1, 256))
    arguments = words.replace("TABLE", str(place / "lut.npy")).split()
    result = CliRunner().invoke(
        main,
        [
            "distort",
            str(place / "zoo"),
            "-o",
            str(place / "x"),
            "--size",
            "16",
            "--dry-run",
            *arguments,
        ],
    )
    text = result.output
    assert result.exit_code == (2 if reason else 0) and (reason or "") in text, text
