"""A message that refuses a name suggests the nearest valid one, and nothing where none is near."""

import pytest
import torch
from click.testing import CliRunner

from landscape.cli import main
from landscape.curvature import modules_of
from landscape.curvature.objective import select_parameters
from landscape.errors import ObjectiveError
from landscape.suggestions import close_names, did_you_mean, nearest
from tests.helpers.comparison_stores import write_study

NAMES = ("lambda_max", "lambda_min", "trace", "negative_share")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study") / "spectra.h5", epochs=(0,))


def output_of(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def test_the_closest_spelling_comes_first():
    # One letter is missing of the first name and two letters differ from the second.
    assert close_names("lamda_max", NAMES, count=2) == ["lambda_max", "lambda_min"]


def test_case_does_not_count():
    assert nearest("TRACE", NAMES) == "did you mean 'trace'?"
    assert did_you_mean("Negative_Share", NAMES) == " Did you mean 'negative_share'?"


def test_a_word_like_none_of_the_names_gets_the_list():
    assert nearest("xyz", NAMES) == "expected one of lambda_max, lambda_min, trace, negative_share."
    assert did_you_mean("xyz", NAMES) == ""


def test_no_names_and_many_names_are_both_said_in_a_line():
    assert nearest("x", ()) == "there are none."
    listed = nearest("xyz", (f"module_{i}" for i in range(500)))
    assert listed.endswith("module_39, ... (500 in all).") and "module_40" not in listed


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("fgure", "x.h5"), "figure"),
        (("compare", "STORE", "--metrc", "trace"), "--metric"),
        (("figure", "STORE", "-o", "x.png", "--kind", "sharpnes"), "sharpness"),
        (("figure", "STORE", "-o", "x.png", "--series", "VITT"), "vit"),
        (("compare", "STORE", "--metric", "lamda_max"), "lambda_max"),
        (("density", "STORE", "-o", "x.png", "--series", "vitt"), "vit"),
        (("train", "--model", "vit_tiny_64", "-o", "x", "--recipe", "clip_mamb"), "clip_mamba"),
        (("distort", ".", "-o", "x", "--kind", "contrst"), "contrast"),
    ],
)
def test_commands_suggest_the_nearest_name(study, tmp_path, monkeypatch, arguments, name):
    monkeypatch.chdir(tmp_path)
    said = output_of(*(study if argument == "STORE" else argument for argument in arguments))
    assert f"id you mean '{name}'?" in said
    assert list(tmp_path.iterdir()) == []


def test_a_pattern_that_matches_nothing_names_the_nearest_module_or_parameter():
    model = torch.nn.Sequential()
    model.add_module("encoder", torch.nn.Linear(2, 2))
    model.add_module("decoder", torch.nn.Linear(2, 2))
    with pytest.raises(ObjectiveError, match="Did you mean 'encoder'"):
        modules_of(model, select_parameters(model), ["encodr"])
    with pytest.raises(ObjectiveError, match="Did you mean 'decoder.weight'"):
        select_parameters(model, "decoder.wieght")


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        (["fig"], ["figure"]),
        (["figure", "--kin"], ["--kind"]),
        (["figure", "--kind", "s"], ["sharpness", "shape-bias"]),
    ],
)
def test_the_shell_completes_commands_options_and_their_values(words, completions):
    variables = {
        "_LANDSCAPE_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["landscape", *words]),
        "COMP_CWORD": str(len(words)),
    }
    result = CliRunner().invoke(main, env=variables, prog_name="landscape")
    assert result.stdout.split() == [f"plain,{name}" for name in completions]
