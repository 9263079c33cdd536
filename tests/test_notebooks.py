"""The notebooks run from the first cell to the last, and what is committed is what they print."""

import importlib.util
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
# Rows of the words of a notebook that a reader would miss if they went away, whatever the numbers are.
SAYS = {
    "first_spectrum": ["EigenPairs(", "the whole loss  product", "active dropout"],
    "figure3": [
        "vmamba: epoch 3/3",
        "report.html: 2 series",
        "8 of 8 records",
        "certified negative",
    ],
    "why_the_kernel_matters": [
        "difference of the gradients: 0.0",
        "cannot be differentiated",
        "asymmetry",
    ],
    "compare_two_runs": [
        "96 of 96 batches are measured",
        "learning rate 3e-4 is sharper",
        "epoch 0:",
        "- Each series is one",
    ],
}


def read(path):
    return nbformat.read(path, as_version=4)


def outputs(notebook):
    return [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]


def printed(notebook):
    return "".join(output.get("text", "") for output in outputs(notebook))


def test_the_four_notebooks_are_there():
    assert set(NAMES) == set(SAYS)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_runs_and_says_what_it_says(path, tmp_path):
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    notebook = read(path)
    for output in outputs(notebook):
        output.clear()
    notebook = module.execute(notebook, tmp_path)
    assert [words for words in SAYS[path.stem] if words not in printed(notebook)] == []
    kinds = [set(output.get("data", {})) for output in outputs(notebook)]
    assert any("image/png" in kind for kind in kinds)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_committed_notebook_is_executed_whole_small_and_tells_of_no_machine(path):
    notebook = read(path)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [
        output
        for output in outputs(notebook)
        if output.output_type == "error" or output.get("name") == "stderr"
    ]
    assert [words for words in SAYS[path.stem] if words not in printed(notebook)] == []
    # Progress bars, which a terminal overwrites and a page repeats.
    assert "\x1b[" not in printed(notebook)
    assert not re.search(r"/(home|root|tmp|usr|work|Users)/", printed(notebook))
    assert path.stat().st_size < 400_000
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_notebooks_use_only_names_without_underscore(path):
    code = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "code")
    assert not re.search(r"landscape[\w.]*\._|from landscape[\w.]* import _", code)
