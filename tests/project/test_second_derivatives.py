"""docs/second_derivatives.md holds what experiments/second_derivatives/run.py printed, and the
harness knows right from wrong.
"""

import importlib
import sys

import pytest
import torch

from tests.helpers.folders import ROOT

FOLDER = ROOT / "experiments" / "second_derivatives"


@pytest.fixture(scope="module")
def measure():
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("measure")
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("measure", "references"):
            sys.modules.pop(name, None)


class Square(torch.autograd.Function):
    """x^2, whose backward is right and cannot be differentiated again."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, dy):
        return (2 * ctx.saved_tensors[0].detach() * dy.detach()).detach()


def columns(measure, function, **options):
    case = measure.Case(function, lambda x: x * x, shapes={"x": (3, 4)}, **options)
    return measure._Measurement(case).columns(), measure.audited(case)


def test_a_right_operation_is_right_in_every_column(measure):
    cells, audit = columns(measure, lambda x: x * x)
    assert all(cell.startswith("right ") for cell in cells.values()) and audit.startswith("passed")
    cells, _ = columns(measure, lambda x: x * x, dtype=torch.float32)
    assert all(cell.startswith("right ") for cell in cells.values())


def test_a_wrong_one_is_wrong_where_it_is_and_the_audit_names_it(measure):
    cells, audit = columns(measure, lambda x: Square.apply(x))
    assert cells["first"].startswith("right ")
    assert cells["double"].startswith("WRONG ") and cells["double_by_backward"].startswith("WRONG ")
    assert cells["jvp"] == "raises: no setup_context"
    assert "graph failed" in audit and "names mixer" in audit
    cells, _ = columns(measure, lambda x: 1.01 * x * x)
    assert all(cell.startswith("WRONG ") for cell in cells.values())


def test_the_page_shows_every_row_of_the_table_that_was_measured():
    page = (ROOT / "docs" / "second_derivatives.md").read_text()
    rows = [
        line for line in (FOLDER / "table.txt").read_text().splitlines() if line.startswith("| ")
    ]
    assert len(rows) > 30 and not [row for row in rows if row not in page]


def test_every_package_of_the_table_is_pinned():
    pins = [
        line
        for line in (FOLDER / "packages.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    table = (FOLDER / "table.txt").read_text()
    assert all(pin.count("==") == 1 and f"| {pin.replace('==', ' ')} |" in table for pin in pins)
