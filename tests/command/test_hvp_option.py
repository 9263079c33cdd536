"""`--hvp` is the one option on how Hessian-vector products are computed; its old names work, and
warn.
"""

import click
import pytest
from click.testing import CliRunner

from landscape.cli import main
from landscape.cli.options import STRATEGIES, hvp_options


def parse(*arguments: str, differences: bool = True):
    """What a command with these options is given, and what stands on its standard error."""
    given = {}

    @click.command()
    @hvp_options(differences=differences)
    def command(**options):
        given.update(options)

    result = CliRunner().invoke(command, arguments)
    return result, given


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_reaches_the_settings_without_a_word(strategy):
    result, given = parse("--hvp", strategy)
    assert result.exit_code == 0 and result.stderr == ""
    assert given["products"].hvp == strategy and given["hvp"] == "double-backward"


def test_differences_are_a_method_only_where_a_command_has_them():
    result, given = parse("--hvp", "finite-difference", "--rows", "2")
    assert given["hvp"] == "finite-difference" and given["products"].hvp == "auto"
    assert given["products"].rows == 2 and result.stderr == ""
    result, given = parse("--hvp", "finite-difference", differences=False)
    assert result.exit_code == 2 and "is not one of" in result.stderr
    assert "hvp" not in parse(differences=False)[1]


@pytest.mark.parametrize(
    ("arguments", "product", "hvp", "old", "new"),
    [
        (("--product", "jvp"), "jvp", "double-backward", "--product jvp", "--hvp jvp"),
        (
            ("--hvp", "double-backward"),
            "auto",
            "double-backward",
            "--hvp double-backward",
            "--hvp auto",
        ),
        (
            ("--hvp", "finite-difference", "--product", "auto"),
            "auto",
            "finite-difference",
            "--product auto",
            "--hvp finite-difference alone",
        ),
    ],
)
def test_an_old_name_means_what_it_meant_and_warns_in_one_line(arguments, product, hvp, old, new):
    result, given = parse(*arguments)
    assert (given["products"].hvp, given["hvp"]) == (product, hvp)
    assert result.stderr == f"landscape: {old} is an old name; use {new}.\n"


def test_both_old_names_at_once_mean_what_they_meant():
    result, given = parse("--hvp", "double-backward", "--product", "rebuilt")
    assert (given["products"].hvp, given["hvp"]) == ("rebuilt", "double-backward")
    assert [line.split(" is ")[0] for line in result.stderr.splitlines()] == [
        "landscape: --product rebuilt with --hvp double-backward"
    ]


@pytest.mark.parametrize("hvp", ["finite-difference", "rows"])
def test_names_that_contradict_each_other_are_refused(hvp):
    result, given = parse("--hvp", hvp, "--product", "jvp")
    assert result.exit_code == 2 and not given
    assert f"which says {hvp}. Leave --product out." in result.stderr


@pytest.mark.parametrize("command", ["spectra", "density"])
def test_help_shows_the_new_name_alone(command):
    shown = CliRunner().invoke(main, [command, "--help"]).stdout
    assert "--hvp [auto|retained|rebuilt|jvp|rows|traced|compiled" in shown
    assert "--product" not in shown and "double-backward" not in shown


def test_an_old_pair_of_options_gives_one_warning_with_advice_that_changes_nothing():
    result, given = parse("--product", "rows", "--hvp", "double-backward")
    assert result.stderr.count("old name") == 1 and "use --hvp rows" in result.stderr
    assert given["products"].hvp == "rows" and given["hvp"] == "double-backward"
    result, given = parse("--product", "auto", "--hvp", "finite-difference")
    assert result.stderr.count("old name") == 1 and "use --hvp finite-difference" in result.stderr
    assert given["hvp"] == "finite-difference"


def test_completion_prints_no_warning():
    environment = {
        "_LANDSCAPE_COMPLETE": "bash_complete",
        "COMP_WORDS": "landscape spectra --hvp double-backward --",
        "COMP_CWORD": "4",
    }
    result = CliRunner().invoke(main, [], prog_name="landscape", env=environment)
    assert "old name" not in result.stderr and "--output" in result.stdout


def test_settings_take_their_old_keyword():
    from landscape.pipeline import HvpSettings

    with pytest.warns(DeprecationWarning, match="product= is an old name; use hvp="):
        settings = HvpSettings(product="rows")
    with pytest.warns(DeprecationWarning, match="product is an old name"):
        assert settings.product == settings.hvp == "rows"
