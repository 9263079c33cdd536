"""The command line: each command parses, calls one function, prints.

The room `pipeline` loads its names on first use. So `--help` is instant, and a wrong manifest is
refused before torch is loaded.
"""

# Each module adds its commands to the group.
from landscape.cli import curvature, pictures, spectra, stores, training  # noqa: F401
from landscape.cli.group import main

__all__ = ["main"]
