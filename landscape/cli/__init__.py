"""The command line: each command parses, calls one function, prints.

A command is loaded when it is looked up, and the room `pipeline` loads its names on first use. So
`--help` is instant, and a wrong manifest is refused before torch is loaded.
"""

from landscape.cli.group import main

__all__ = ["main"]
