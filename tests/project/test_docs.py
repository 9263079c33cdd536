"""README and docs say what the program does: links lead somewhere, tables are complete, code runs,
commands exist.
"""

import configparser
import re
import shutil
import socket
import subprocess
import sys
import unicodedata
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import nn

from landscape.cli import main
from landscape.compare import METRICS
from landscape.manifest import evaluation, language, reading, reading_series
from landscape.manifest.settings import DataSettings, HessianSettings
from landscape.manifest.trained import PREPROCESS
from landscape.version import VERSION
from tests.helpers.folders import ROOT
from tests.helpers.store_records import manifest_of
from tests.helpers.store_vectors import write_store

DOCS = ROOT / "docs"
FOLDERS = (DOCS, ROOT / ".github", ROOT / "experiments")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in folder.rglob("*.md"))])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
FENCE = re.compile(r"^(`{3,})(\w*)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
# Pages whose Python is run elsewhere, or cannot be run in the seconds that this file has; each with
# the reason.
NOT_RUN_HERE = {
    "docs/cluster.md": "run by tests/workers/test_cluster_docs.py",
    "docs/speed.md": (
        "compiles a graph, which takes a minute; the same lines are run by "
        "tests/curvature/test_compiled.py"
    ),
    "docs/sharded.md": "needs processes of torchrun; run by the tests of that page below",
}
# Blocks that show the code of another package.
OF_OTHERS = ("from pyhessian import",)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of code in a language."""
    return [match[3] for match in FENCE.finditer(text_of(page)) if match[2] == language]


# --- the first screen and links -------------------------------------------------------------------


def test_the_readme_has_at_most_120_lines_and_the_two_commands_stand_on_its_first_screen():
    lines = text_of(ROOT / "README.md").splitlines()
    assert len(lines) <= 120
    first = "\n".join(lines[:40])
    assert all(
        re.search(rf"^make {name}\b", first, re.MULTILINE)
        for name in ("figure3", "test", "test-slow")
    )


def slugs(text: str) -> set[str]:
    """Anchors that a page has both on the site (as Python-Markdown makes them) and on a code
    host.
    """
    anchors: list[set[str]] = [set(), set()]
    seen: dict[str, int] = {}
    for line in FENCE.sub("", text).splitlines():
        if match := re.match(r"#{1,6} (.*)", line):
            heading = (
                re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match[1]).replace("`", "").replace("*", "")
            )
            plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
            site = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())
            host = re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower()))
            count = seen[site] = seen.get(site, -1) + 1
            anchors[0].add(f"{site}_{count}" if count else site)
            anchors[1].add(f"{host}-{count}" if count else host)
    return anchors[0] & anchors[1]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_and_picture_of_a_page_leads_to_a_file_and_an_anchor(page):
    text = FENCE.sub("", text_of(page))
    wrong = []
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page if not path else page.parent / path
        if not file.exists() or (
            anchor and (file.suffix != ".md" or anchor not in slugs(text_of(file)))
        ):
            wrong.append(target)
    assert not wrong


def test_links_are_looked_for_where_they_stand(tmp_path):
    assert LINK.findall("see [a](b.md#c), ![d](e.png) and [f][g]") == ["b.md#c", "e.png"]
    assert slugs("# One `two`, three\n```\n# not this\n```\n## Four — five\n") == {"one-two-three"}


def test_every_page_has_a_place_in_the_navigation():
    listed = set(re.findall(r"([\w/]+\.md)$", text_of(ROOT / "mkdocs.yml"), re.MULTILINE))
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert pages - listed == set(), "add it to `nav` in mkdocs.yml"
    assert {name for name in listed if not name.startswith("source/")} - pages == set()


# --- code -----------------------------------------------------------------------------------------


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def prepared(page: str, folder: Path) -> dict[str, Any]:
    """The names and files that the code of a page takes for granted."""
    if page == "docs/xarray.md":
        shutil.copy(ROOT / "experiments/figure3/small/spectra.h5", folder / "spectra.h5")
    if page == "docs/export.md":
        store = str(ROOT / "experiments/figure3/small/spectra.h5")
        CliRunner().invoke(main, ["export", store, "-o", str(folder / "spectra.csv")])
    if page == "docs/eigenvectors.md":
        write_store(folder / "spectra.h5", manifest_of(folder, num_batches=2))
    if page == "docs/language_models.md":
        pytest.importorskip("transformers")
        (folder / "text.txt").write_bytes((ROOT / "CHANGELOG.md").read_bytes()[:24_000])
    return {
        "docs/distort.md": {"picture": np.random.default_rng(0).random((64, 64, 3))},
        "docs/from_pyhessian.md": {
            "model": small_model(),
            "inputs": torch.randn(20, 5),
            "targets": torch.arange(20) % 3,
        },
    }.get(page, {})


WITH_CODE = [page for page in NAMES if any(blocks(ROOT / page, "python"))]
# Pages that take seconds: they load transformers and train a model.
SLOW = ("docs/language_models.md",)
HERE = [page for page in WITH_CODE if page not in NOT_RUN_HERE]
RUN_HERE = [pytest.param(page, marks=pytest.mark.slow) if page in SLOW else page for page in HERE]


@pytest.mark.parametrize("page", RUN_HERE)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = prepared(page, tmp_path) | {"__name__": "__main__"}
    dtype = torch.get_default_dtype()
    try:
        for block in blocks(ROOT / page, "python"):
            if not any(words in block for words in OF_OTHERS):
                exec(compile(block, page, "exec"), names)
    finally:
        torch.set_default_dtype(dtype)
    assert "print(" not in "".join(blocks(ROOT / page, "python")) or capsys.readouterr().out


def test_pages_that_are_not_run_here_are_there_and_say_why():
    assert set(NOT_RUN_HERE) <= set(WITH_CODE)
    for reason in NOT_RUN_HERE.values():
        assert all((ROOT / name).exists() for name in re.findall(r"tests/\w+\.py", reason))


@pytest.mark.parametrize(
    "page", ["README.md", "docs/operators.md", "docs/quick_sharpness.md", "docs/approximations.md"]
)
def test_the_python_of_a_page_prints_what_it_says(page, capsys):
    text = text_of(ROOT / page)
    (code,) = blocks(ROOT / page, "python")
    printed = text[text.index(code) + len(code) :].split("```")[2].strip()
    exec(compile(code, page, "exec"), {"__name__": "__main__"})
    ours = capsys.readouterr().out
    # Rounding differs between machines in the last digits; the certificates are of its size.
    values = [float(number) for number in re.findall(r"-?\d+\.\d{4,}", printed)]
    again = [float(number) for number in re.findall(r"-?\d+\.\d{4,}", ours)]
    assert len(values) >= 2 and again[: len(values)] == pytest.approx(values, rel=1e-4)
    words = re.compile(r"[a-zA-Z_]{3,}")
    assert words.findall(" ".join(printed.split())) == words.findall(" ".join(ours.split()))


def script_on_sharding() -> str:
    (script,) = (
        block for block in blocks(DOCS / "sharded.md", "python") if "init_process_group" in block
    )
    return script


def test_the_script_of_the_page_on_sharding_runs_as_the_only_process(monkeypatch, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {
        "RANK": 0,
        "WORLD_SIZE": 1,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }.items():
        monkeypatch.setenv(name, str(value))
    exec(compile(script_on_sharding(), "docs/sharded.md", "exec"), {"__name__": "__main__"})
    assert "EigenPairs([" in capsys.readouterr().out


@pytest.mark.slow
def test_the_script_of_the_page_on_sharding_runs_under_torchrun(tmp_path):
    (tmp_path / "spectrum.py").write_text(script_on_sharding())
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "spectrum.py",
    ]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "EigenPairs([" in result.stdout


# --- commands -------------------------------------------------------------------------------------


def commands_in(text: str) -> list[list[str]]:
    """Words of every line that begins with `landscape` and a command, comments left out and
    continued lines joined.
    """
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    # In tables of benchmarks `landscape` is one of several tools.
    found = [
        re.match(r"(?:\$ )?landscape ([a-z]+.*)", line)
        for line in lines
        if "   " not in line.split(" #")[0].rstrip()
    ]
    return [match[1].split(" #")[0].split() for match in found if match]


def options_of(command: str) -> set[str]:
    parameters = main.commands[command].params
    return {
        name
        for option in parameters
        if isinstance(option, click.Option)
        for name in (*option.opts, *option.secondary_opts)
    }


def test_every_command_on_a_page_exists_with_its_options():
    number = 0
    for page in PAGES:
        text = text_of(page)
        shown = "".join(
            match[3] for match in FENCE.finditer(text) if match[2] in ("", "sh", "console")
        )
        quoted = "\n".join(re.findall(r"`(landscape [^`]+)`", FENCE.sub("", text)))
        for command, *words in commands_in(f"{shown}\n{quoted}"):
            assert command in main.commands, (page, command)
            options = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
            assert options <= options_of(command) | {"--help"}, (page, command, options)
            number += 1
    assert number > 60


def test_the_table_of_the_readme_and_the_page_of_commands_name_every_command():
    table = re.findall(r"^\| `landscape (\w+)", text_of(ROOT / "README.md"), re.MULTILINE)
    assert set(table) == set(main.commands)
    told = re.findall(r"^\*\*`landscape (\w+)", text_of(DOCS / "commands.md"), re.MULTILINE)
    assert set(told) == set(main.commands)


# --- tables that repeat what the code says --------------------------------------------------------


def test_the_findings_page_has_a_row_for_every_script_and_no_other():
    rows = re.findall(
        r"^\| \[(\w+)\]\(\.\./findings/(\w+)\.sh\)", text_of(DOCS / "findings.md"), re.MULTILINE
    )
    assert all(name == path for name, path in rows)
    assert sorted(name for name, _ in rows) == sorted(
        path.stem for path in (ROOT / "findings").glob("*.sh")
    )


def table_under(page: Path, heading: str) -> dict[str, list[str]]:
    """The rows of the first table below a heading: the other cells by the first, without
    backticks.
    """
    after = text_of(page).split(f"\n{heading}\n", 1)[1]
    section = re.split(r"^#{1,6} ", after, maxsplit=1, flags=re.MULTILINE)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    cells = [
        [cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows
    ]
    return {first: rest for first, *rest in cells}


TYPES = {str: "text", int: "whole number", float: "number", list: "list", dict: "mapping"}
BOTH = {"parameters": "text or list", "checkpoints": "text or list"}
SECTIONS = {
    "### Top level": reading._TOP,
    "### `data`": reading._DATA | language._DATA,
    "### `hessian`": reading._HESSIAN | {"parameters": str},
    "### `series`": {
        **reading_series._TEXTS,
        **reading_series._STATED,
        **dict.fromkeys(reading_series._SECTIONS, dict),
        "checkpoints": list,
        "epochs": list,
    },
    "### `checkpoints` as a list": {"epoch": int, "path": str, "sha256": str},
    "### `evaluation`": evaluation._KEYS,
    "### A set of `evaluation.sets`": evaluation._OF_SET,
}


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_manifest_page_has_every_key_with_its_type(heading):
    table = table_under(DOCS / "manifest.md", heading)
    assert set(table) == set(SECTIONS[heading])
    for key, expected in SECTIONS[heading].items():
        assert table[key][0] == BOTH.get(key, TYPES[expected]), key


@pytest.mark.parametrize(
    "heading, settings", [("### `data`", DataSettings), ("### `hessian`", HessianSettings)]
)
def test_the_manifest_page_has_the_defaults_of_the_code(heading, settings):
    table = table_under(DOCS / "manifest.md", heading)
    assert {field.name for field in fields(settings)} == set(table)
    words = {
        "image_size": "the model's",
        "caption_key": "title",
        "block_size": "none",
        "separator": r'"\t"',
    }
    for field in fields(settings):
        expected = (
            "required" if field.default is MISSING else words.get(field.name, str(field.default))
        )
        assert table[field.name][1] == expected, field.name


def test_the_keys_of_preprocess_on_the_manifest_page_are_those_of_the_code():
    assert set(table_under(DOCS / "manifest.md", "### `preprocess`")) == set(PREPROCESS)


def test_the_keys_of_a_checkpoint_are_those_that_are_read(tmp_path):
    from landscape.errors import ManifestError
    from landscape.manifest import Manifest

    (tmp_path / "m.yaml").write_text(
        "version: 1\ndata: {source: openmoji, image_size: 64, num_samples: 4, batch_size: 2}\n"
        "hessian: {objective: contrastive}\nseries: [{name: a, model: vit_tiny_64, checkpoints: "
        "[{epoch: 0, path: x, zzz: 1}]}]\n"
    )
    with pytest.raises(ManifestError, match="expected one of epoch, path, sha256"):
        Manifest.load(tmp_path / "m.yaml", checkpoints_exist=False)


def test_the_metrics_page_lists_every_metric():
    assert set(table_under(DOCS / "comparing.md", "## Metrics")) == set(METRICS)


def test_the_install_page_explains_every_dependency_and_extra():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    page = text_of(DOCS / "install.md")
    needed = [
        re.split(r"[>=<; ]", line)[0]
        for line in config["options"]["install_requires"].split("\n")
        if line
    ]
    assert [name for name in needed if not re.search(rf"\b{re.escape(name)}\b", page)] == []
    extras = config["options.extras_require"]
    assert set(table_under(DOCS / "install.md", "## Extras")) == set(extras)
    for extra in ("demo", "cluster", "language", "docs"):
        listed = [re.split(r"[>=<;\[ ]", line)[0] for line in extras[extra].split("\n") if line]
        assert [name for name in listed if name not in page] == []


def test_the_citation_names_this_version_and_its_licence():
    cited = yaml.safe_load(text_of(ROOT / "CITATION.cff"))
    assert (
        cited["version"] == VERSION
        and cited["license"] == "MIT"
        and cited["cff-version"] == "1.2.0"
    )
    assert cited["authors"] == [{"name": "The landscape authors"}]
