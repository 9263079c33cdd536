"""The notebooks run from the first cell to the last, and what is committed is what they print."""

import importlib.util
import re
import shlex
import sys

import pytest
import torch
from click.testing import CliRunner

from landscape.cli import main
from tests.helpers.folders import ROOT

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
Config = pytest.importorskip("traitlets.config").Config

FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
# Rows of the words of a notebook that a reader would miss if they went away, whatever the numbers
# are.
SAYS = {
    "edge_of_stability": [
        "threshold 10",
        "of 2/η, all certified: True",
        "threshold 20, mean after step 500",
        "threshold 1900 ((2 + 2 beta1) / ((1 - beta1) lr))",
        "adam.png: 60 measurements",
    ],
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
    "zero_shot_and_out_of_distribution": [
        "2 of 2 units",
        "8 of 8 units",
        ".531",
        "--series would have no effect",
        "ViT epoch 1: largest",
    ],
}
# Commands of landscape that the notebooks run; none in the others.
NUM_COMMANDS = {"figure3": 6, "zero_shot_and_out_of_distribution": 9, "edge_of_stability": 2}


def read(path):
    return nbformat.read(path, as_version=4)


def outputs(notebook):
    return [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]


def printed(notebook):
    return "".join(output.get("text", "") for output in outputs(notebook))


def test_the_notebooks_are_there():
    assert set(NAMES) == set(SAYS)


def executed(notebook, folder):
    spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for output in outputs(notebook):
        output.clear()
    notebook = module.execute(notebook, folder)
    kinds = [set(output.get("data", {})) for output in outputs(notebook)]
    assert any("image/png" in kind for kind in kinds)
    return printed(notebook)


# A kernel imports torch anew: one runs by default, and the cells of two others run in this process.
IN_A_KERNEL = {"first_spectrum"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name not in IN_A_KERNEL)) for name in NAMES],
)
def test_a_notebook_runs_and_says_what_it_says(name, tmp_path):
    said = executed(read(FOLDER / f"{name}.ipynb"), tmp_path)
    assert [words for words in SAYS[name] if words not in said] == []


@pytest.fixture
def shell(monkeypatch, tmp_path):
    """An interactive shell without a kernel, in an empty folder; what its cells set for torch and
    Python is set back.
    """
    from IPython.core.interactiveshell import InteractiveShell
    from matplotlib import pyplot

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    # Its module takes the place of the program's.
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    dtype = torch.get_default_dtype()
    yield InteractiveShell(config=Config(HistoryManager={"enabled": False}))
    torch.set_default_dtype(dtype)
    pyplot.close("all")


# Smaller numbers for a short run, which change what is said. A notebook that starts seven commands
# is left to slow tests.
HERE = {
    "why_the_kernel_matters": ([], SAYS["why_the_kernel_matters"]),
    "compare_two_runs": (
        [
            ("NUM_PICTURES = 120", "NUM_PICTURES = 30"),
            ("num_samples: 120", "num_samples: 30"),
            ("epochs=30", "epochs=3"),
            ("epoch: 30", "epoch: 3"),
            ("epoch_30.pt", "epoch_3.pt"),
        ],
        ["24 of 24 batches are measured", "epoch 3:", "- Each series is one"],
    ),
}


def test_trainings_settle_at_the_thresholds_of_their_optimizers(shell, capsys):
    """2/η for gradient descent (Cohen et al., arXiv 2103.00065) and 38/η for Adam (arXiv
    2207.14484), from the notebook's own training, measured a fifth as often.
    """
    cells = [cell.source for cell in read(FOLDER / "edge_of_stability.ipynb").cells]
    code = [source for source in cells if "def " in source or source.startswith("%matplotlib")]
    code = [source for source in code if "!landscape" not in source]
    for source in code:
        plain = source.replace("%matplotlib inline\n", "").replace("every=10", "every=50")
        assert shell.run_cell(plain).success
    sharpness = "lambda made: made.hessian.values[0]"
    units = "lambda made: made.preconditioned.values[0]"
    for optimizer, lr, value, threshold in (
        ("SGD", 0.2, sharpness, 2 / 0.2),
        ("SGD", 0.1, sharpness, 2 / 0.1),
        ("Adam", 0.02, units, 38 / 0.02),
    ):
        start = f"train(lambda p: torch.optim.{optimizer}(p, lr={lr}), '{optimizer}{lr}', "
        done = shell.run_cell(f"({value}), {start}num_steps=1000)")
        assert done.success
        value_of, record = done.result
        late = [value_of(made) for made in record.measurements if made.step > 500]
        assert all(made.hessian.converged[0] for made in record.measurements)
        assert record.measurements[-1].threshold.value == pytest.approx(threshold)
        # They hover: single values are up to a fifth off, in either direction, their mean a tenth.
        assert abs(sum(late) / len(late) / threshold - 1) < 0.1
        assert max(late) < 1.4 * threshold and min(late) > 0.6 * threshold


@pytest.mark.parametrize("name", HERE)
def test_the_cells_of_a_notebook_run_and_say_what_they_say(name, shell, capsys):
    replaced, says = HERE[name]
    sources = [
        cell.source for cell in read(FOLDER / f"{name}.ipynb").cells if cell.cell_type == "code"
    ]
    for old, new in replaced:
        assert any(old in source for source in sources), old
        sources = [source.replace(old, new) for source in sources]
    for source in sources:
        shell.run_cell(source.replace("%matplotlib inline\n", "")).raise_error()
    said = capsys.readouterr().out
    assert [words for words in says if words not in said] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_every_command_of_a_notebook_is_one_of_the_program(path):
    code = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "code")
    # Without what the shell does with the output.
    commands = re.findall(r"^!landscape (.*?)(?: 2>.*)?$", code, re.MULTILINE)
    assert len(commands) == NUM_COMMANDS.get(path.stem, 0)
    for command in commands:
        # An unknown option is refused before help is printed.
        result = CliRunner().invoke(main, [*shlex.split(command), "--help"])
        assert result.exit_code == 0, (command, result.output)


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
