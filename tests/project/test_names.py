"""The distribution's name, and that no text sends anybody to the index for a package of that name
or of the import name.

`landscape` on PyPI is another program with the same import name and command; `hessian-landscape` is
not published there yet.
"""

import configparser
import re
import shlex

import pytest

from tests.helpers.folders import ROOT

NOT_OURS_THERE = {"landscape", "hessian-landscape"}
FOLDERS = ("docs", "experiments", "findings", "landscape", "notebooks", ".ci")
INSTALL = re.compile(
    r"\b(?:pip3?|pipx|uv|conda|mamba|poetry)(?:\s+pip)?\s+(?:install|add|download)\s+([^`\n;|&#\\]*)"
)


def texts():
    """Every text file that users are handed."""
    files = [
        path for path in ROOT.iterdir() if path.is_file() and path.name not in (".git", ".coverage")
    ]
    files += [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    for path in sorted(files):
        if path.suffix in {
            ".md",
            ".py",
            ".sh",
            ".txt",
            ".ipynb",
            ".cfg",
            ".toml",
            ".yaml",
            ".html",
            "",
        }:
            yield path, path.read_text(encoding="utf-8", errors="replace")


def asked_for(text):
    """Names of the distributions in every install command of a text."""
    for arguments in INSTALL.findall(text):
        try:
            words = shlex.split(arguments)
        except ValueError:
            words = arguments.replace('"', " ").replace("'", " ").split()
        for word in words:
            if name := re.match(r"[A-Za-z0-9][A-Za-z0-9_.-]*", word):
                yield name[0].lower().replace("_", "-").rstrip(".")


@pytest.mark.parametrize(
    "line, names",
    [
        ("`pip install landscape`", ["landscape"]),
        ("python -m pip install --upgrade 'landscape[demo]>=1'", ["landscape"]),
        ("run `pip install -U hessian_landscape`.", ["hessian-landscape"]),
        ("uv pip install landscape", ["landscape"]),
        ("pip install '.[demo]'", []),
        ("pip install --editable .", []),
    ],
)
def test_install_commands_are_read(line, names):
    assert [name for name in asked_for(line) if name in NOT_OURS_THERE] == names


def test_no_text_installs_this_project_from_the_index():
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path, text in texts()
        for name in asked_for(text)
        if name in NOT_OURS_THERE
    ]
    assert not found


def test_no_text_asks_for_an_upgrade_of_landscape():
    asks = re.compile(
        r"(?:upgrade|update|reinstall)\s+(?:to\s+)?(?:a\s+newer\s+|the\s+latest\s+)?`?landscape\b",
        re.IGNORECASE,
    )
    assert not [str(path) for path, text in texts() if asks.search(text)]


def test_the_distribution_has_a_name_of_its_own_and_the_command_keeps_its():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert config["metadata"]["name"] == "hessian-landscape"
    assert (
        config["options.entry_points"]["console_scripts"].strip()
        == "landscape = landscape.cli:main"
    )
    assert "hessian-landscape" in (ROOT / "README.md").read_text()
