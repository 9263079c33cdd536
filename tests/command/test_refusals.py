"""A wrong command line is refused on one line that says where and what to do; nothing is written.

The lines are written out here as a reader should find them.
"""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from landscape.cli import main

SPECTRA = ("spectra", "m.yaml", "-o", "s.h5")
REFUSED = {
    "unknown command": (("spectr",), "No such command 'spectr'. Did you mean 'spectra'?", ""),
    "command like none": (("xyzzy",), "No such command 'xyzzy'.", ""),
    "unknown option of all": (
        ("--verson",),
        "No such option '--verson'. Did you mean '--version'?",
        "",
    ),
    "unknown option": (
        (*SPECTRA, "--batchs", "2"),
        "spectra: No such option '--batchs'. Did you mean '--batches'?",
        "spectra",
    ),
    "option like none": ((*SPECTRA, "--xyzzy"), "spectra: No such option '--xyzzy'.", "spectra"),
    # Not the hidden --product, an old name.
    "hidden option": (
        (*SPECTRA, "--produc", "jvp"),
        "spectra: No such option '--produc'. Did you mean '--per-module'?",
        "spectra",
    ),
    "option of a line break": (
        (*SPECTRA, "--x\ny"),
        r"spectra: No such option '--x\ny'.",
        "spectra",
    ),
    "missing argument": (
        ("spectra",),
        "spectra: MANIFEST is missing. Usage: main spectra [OPTIONS] MANIFEST.",
        "spectra",
    ),
    "missing option": (
        ("spectra", "m.yaml"),
        "spectra: --output is missing: HDF5 file; resumed if unfinished.",
        "spectra",
    ),
    "missing value": (
        ("spectra", "m.yaml", "-o"),
        "spectra: Option '-o' requires an argument.",
        "spectra",
    ),
    "value of a flag": (
        ("info", "s.h5", "--json=1"),
        "info: Option '--json' does not take a value.",
        "info",
    ),
    "another name": (
        ("figure", "s.h5", "-o", "f.png", "--titel", "x"),
        "figure: No such option '--titel'. Did you mean '--title'?",
        "figure",
    ),
    "bad choice": (
        (*SPECTRA, "--method", "lanzcos"),
        "spectra: --method: 'lanzcos' is not one of 'lanczos', 'power', 'pyhessian'. "
        "Did you mean 'lanczos'?",
        "spectra",
    ),
    "bad type": (
        (*SPECTRA, "--rows", "many"),
        "spectra: --rows: 'many' is not a whole number.",
        "spectra",
    ),
    "bad number": (
        ("figure", "s.h5", "-o", "f.png", "--width", "wide"),
        "figure: --width: 'wide' is not a number.",
        "figure",
    ),
    "out of range": (
        (*SPECTRA, "--batches", "0"),
        "spectra: --batches: 0 is not in the range x>=1.",
        "spectra",
    ),
    "folder for a file": (
        ("spectra", ".", "-o", "s.h5"),
        "spectra: MANIFEST: File '.' is a directory.",
        "spectra",
    ),
    "empty name": (
        ("spectra", "", "-o", "s.h5"),
        "spectra: MANIFEST: the name is empty; name a file or a folder.",
        "spectra",
    ),
    "picture for a store": (
        ("spectra", "m.yaml", "-o", "s.png"),
        "spectra: --output: 's.png' would be an HDF5 file, which .png does not say; name it "
        "'s.h5'.",
        "spectra",
    ),
    "memory without a unit": (
        (*SPECTRA, "--max-memory", "4"),
        "spectra: --max-memory: '4' has no unit, so it means bytes; give one, such as 4GiB.",
        "spectra",
    ),
    "too many": (
        ("spectra", "m.yaml", "n.yaml", "-o", "s.h5"),
        "spectra: Got unexpected extra argument (n.yaml).",
        "spectra",
    ),
    "two that exclude each other": (
        ("compare", "s.h5", "--json", "--format", "csv"),
        "compare: --json and --format csv name two formats; leave one out.",
        "compare",
    ),
}


@pytest.mark.parametrize(("arguments", "line", "command"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_command_line_is_refused_on_one_line(
    arguments, line, command, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, arguments)
    advice = f"See `landscape {command} --help`." if command else "See `landscape --help`."
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"landscape: {line} {advice}\n"
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_refused_on_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, SPECTRA)
    assert result.exit_code == 2
    assert result.stderr.startswith("landscape: m.yaml: there is no such file; ")
    assert result.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [("audit",), ("density", "-o", "d.png")])
def test_a_path_that_names_no_model_is_called_what_it_is(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints.yaml").write_text("")
    (tmp_path / "bare").mkdir()
    (tmp_path / "text.pt").write_text("hello")
    name, *options = command
    for source, says in (
        ("run", "Name run/checkpoints.yaml."),
        ("bare", "`landscape init bare` writes one."),
        ("text.pt", "name one of these."),
        ("no.h5", "there is no such file; name "),
        ("no/run", "there is no such file; name "),
    ):
        result = CliRunner().invoke(main, [name, source, *options])
        assert result.exit_code == 2 and result.stderr.count("\n") == 1
        assert result.stderr.startswith(f"landscape: {source}: ") and says in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"run", "bare", "text.pt"}


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_refuses_an_unknown_option_on_one_line(name):
    result = CliRunner().invoke(main, [name, "--no-such-option"])
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        f"landscape: {name}: No such option '--no-such-option'. See `landscape {name} --help`."
    ]


def test_a_refusal_is_still_an_error_of_click_for_a_caller():
    with pytest.raises(click.UsageError, match="No such command 'spectr'"):
        main.main(["spectr"], standalone_mode=False)


def test_the_help_is_not_made_one_line():
    result = CliRunner().invoke(main, [])
    assert "Usage:" in result.output and "Commands:" in result.output
    assert CliRunner().invoke(main, ["spectra", "--help"]).output.startswith("Usage:")


def test_a_process_writes_the_line_to_its_standard_error(tmp_path):
    command = [sys.executable, "-m", "landscape", "spectra"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "landscape: spectra: MANIFEST is missing. Usage: landscape spectra [OPTIONS] MANIFEST. "
        "See `landscape spectra --help`.\n"
    )
