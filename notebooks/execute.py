"""Run the notebooks of this folder and keep what they print and draw.

    python notebooks/execute.py                     # all of them, in place
    python notebooks/execute.py notebooks/figure3.ipynb

They are committed with their outputs, so that a reader on the web sees the pictures. Each runs in
an empty folder of its own.
"""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def execute(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Run every cell in `folder`, with the commands of this Python's environment on the path.

    Raises:
        nbclient.exceptions.CellExecutionError: If a cell fails.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # tqdm would print where it is installed.
    environment = {
        **os.environ,
        "PATH": path,
        "COLUMNS": "120",
        "PYTHONWARNINGS": "ignore:IProgress",
    }
    client = NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(folder)}}, record_timing=False
    )
    client.execute(env=environment)
    # The versions of the machine that ran it change at every run and say nothing to a reader.
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def main(paths: list[Path]) -> None:
    for path in paths or sorted(HERE.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(nbformat.read(path, as_version=4), Path(folder))
        nbformat.write(notebook, path)
        print(path)


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
