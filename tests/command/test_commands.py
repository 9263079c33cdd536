"""Commands are loaded when they are looked up, each from the module that the group names."""

import subprocess
import sys

import click

from landscape.cli import group, main
from tests.helpers.processes import ROOT


def test_every_command_is_in_the_module_that_the_group_names():
    context = click.Context(main)
    assert main.list_commands(context) == sorted(main.commands) and len(main.commands) > 10
    for name, command in main.commands.items():
        assert main.get_command(context, name) is command
        assert command.callback.__module__ == f"landscape.cli.{group._MODULES[name]}"
    assert main.get_command(context, "spectrum") is None


def test_a_command_loads_no_module_of_another():
    code = (
        "import sys, click; from landscape.cli import main; "
        "main.get_command(click.Context(main), 'info'); "
        "print(*(name for name in sys.modules if name.startswith('landscape.cli.')))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = result.stdout.split()
    assert "landscape.cli.stores" in loaded
    assert not {"landscape.cli.spectra", "landscape.cli.training"} & set(loaded)
