"""The experiment with the opaque scan: the stand-in is what it says, and both operators are held
against a dense Hessian.
"""

import importlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from landscape import kernels
from landscape.curvature import HessianOperator, Objective, select_parameters
from landscape.errors import ObjectiveError
from landscape.linalg.operator import seeded
from landscape.towers import VMamba
from tests.conftest import contrastive_loss, scramble
from tests.helpers.folders import EXPERIMENTS
from tests.helpers.oracles import dense_hessian, plain_gradient, relative_error
from tests.helpers.toy_clip import make_toy_clip, toy_pictures


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module("opaque_kernel")


@pytest.fixture
def report(experiment: Any) -> Any:
    return importlib.import_module("opaque_kernel_report")


@pytest.fixture(scope="module")
def at() -> Any:
    """The contrastive loss of a VMamba of two blocks by the parameters of its first scan, in
    float64.
    """
    torch.manual_seed(0)
    tower = VMamba(dims=(4, 6), depths=(1, 1), gated=False, num_classes=0).double()
    scramble(tower, seed=1, scale=0.3)
    model = make_toy_clip(tower)
    batch = {
        "image": toy_pictures(4),
        "text": torch.tensor([[1, 9, 0], [2, 3, 9], [9, 4, 4], [5, 6, 9]]),
    }
    params = select_parameters(model, ["visual.layers.0.blocks.0.op.*", "logit_scale"])
    return Objective.from_closure(model, contrastive_loss), params, batch


@pytest.fixture(scope="module")
def dense(at: Any) -> torch.Tensor:
    return dense_hessian(*at)


def _arguments() -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    g = seeded(3)
    sizes = ((2, 4, 7), (2, 4, 7), (4, 3), (2, 2, 3, 7), (2, 2, 3, 7), (4,), (4,))
    u, delta, A, B, C, D, bias = (
        torch.randn(size, generator=g, dtype=torch.float64).requires_grad_() for size in sizes
    )
    return (u, delta, A, B, C, D), {"delta_bias": bias, "delta_softplus": True}


def test_the_stand_in_has_the_value_and_gradients_of_the_scan_and_no_graph_on_them(experiment):
    inputs, options = _arguments()
    leaves = [*inputs, options["delta_bias"]]
    y = kernels.selective_scan(*inputs, **options)
    with experiment.opaque_scan():
        opaque = kernels.selective_scan(*inputs, **options)
    seed = torch.randn(y.shape, generator=seeded(4), dtype=torch.float64)
    torch.testing.assert_close(opaque, y, rtol=0, atol=0)
    wanted = torch.autograd.grad(y, leaves, seed)
    found = torch.autograd.grad(opaque, leaves, seed.requires_grad_(), create_graph=True)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert not any(piece.requires_grad for piece in found)


def test_the_scan_is_the_right_one_again_after_an_error(experiment):
    scan = kernels.selective_scan
    with pytest.raises(KeyError), experiment.opaque_scan():
        assert kernels.selective_scan is not scan
        raise KeyError
    assert kernels.selective_scan is scan


def test_the_plain_operator_is_the_dense_hessian_with_the_right_scan_only(experiment, at, dense):
    # Same arithmetic in another order of additions: measured 4e-16.
    assert (
        relative_error(
            experiment.PlainHessian(*at) @ torch.eye(len(dense), dtype=torch.float64), dense
        )
        < 1e-12
    )
    gradient = plain_gradient(*at)
    with experiment.opaque_scan():
        torch.testing.assert_close(plain_gradient(*at), gradient, rtol=1e-12, atol=1e-14)
        opaque = experiment.PlainHessian(*at)
    assert any(name.endswith("Ds") for name in opaque.without_graph)
    matrix = opaque @ torch.eye(opaque.n, dtype=torch.float64)
    assert relative_error(matrix, dense) > 0.05
    assert relative_error(matrix, matrix.T) > 0.05


def test_the_projects_operator_refuses_the_stand_in(experiment, at):
    with experiment.opaque_scan(), pytest.raises(ObjectiveError, match="OpaqueScan"):
        HessianOperator(*at)


def test_asymmetry_estimates_the_antisymmetric_share_of_a_matrix(experiment):
    n = 300
    matrix = torch.randn(n, n, generator=seeded(5), dtype=torch.float64)
    U = torch.randn(n, 60, generator=seeded(6), dtype=torch.float64)
    # |H - H^T| / |H| is sqrt 2 for independent entries; 1,770 pairs of directions give it to a few
    # per cent.
    assert experiment.asymmetry(U, matrix @ U) == pytest.approx(2**0.5, rel=0.1)
    assert experiment.asymmetry(U, (matrix + matrix.T) @ U) < 1e-13


def test_differences_and_verdicts_tell_the_two_operators_apart(experiment, at, dense):
    verdicts, gradient_error = experiment.judge(at)
    assert gradient_error < 1e-12
    # Fourth-order differences at this step: measured 1e-11.
    assert verdicts["right"].product_error < 1e-8 and verdicts["right"].asymmetry < 1e-12
    assert verdicts["incomplete"].product_error > 0.05 and verdicts["incomplete"].asymmetry > 0.05
    U = torch.randn(len(dense), 2, generator=seeded(7), dtype=torch.float64)
    assert relative_error(experiment.differences(at, U), dense @ U) < 1e-8


def _row(report, *, epoch: int, batch: int, values: tuple[float, ...]) -> Any:
    verdicts = {
        "right": report.Verdict(1e-15, 1e-11),
        "incomplete": report.Verdict(0.4, 0.3 + batch),
    }
    arms = (("right", "eigsh"), ("right", "power iteration"), ("incomplete", "power iteration"))
    found = tuple(
        report.Spectrum(*arm, tuple(value * (i + 1) for value in values), 0.01, 30)
        for i, arm in enumerate(arms)
    )
    return report.Row(epoch, batch, 2.0, 0.0, ("a.Ds",), verdicts, found)


def test_the_summary_counts_negatives_and_averages_the_positives_over_batches(report):
    rows = [
        _row(report, epoch=0, batch=0, values=(4.0, -3.0)),
        _row(report, epoch=0, batch=1, values=(-6.0, -1.0)),
    ]
    right, _, incomplete = report.summarise(rows)
    assert (right.num_negative, right.num_values, right.mean_positive, right.largest) == (
        3,
        4,
        4.0,
        6.0,
    )
    assert (incomplete.mean_positive, incomplete.product_error, incomplete.asymmetry) == (
        12.0,
        pytest.approx(0.8),
        0.4,
    )
    assert report.summarise(rows[1:])[0].mean_positive is None


def test_a_row_survives_its_way_through_json(report):
    row = _row(report, epoch=3, batch=1, values=(4.0, -3.0))
    assert report.Row.from_dict(json.loads(json.dumps(asdict(row)))) == row


def test_a_measured_batch_is_taken_from_the_run_until_its_checkpoint_changes(
    experiment, report, tmp_path, monkeypatch
):
    checkpoint = tmp_path / "checkpoints" / "epoch_3.pt"
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"weights")
    calls = []

    def measure(path: Path, epoch: int, batch: Any, number: int) -> Any:
        calls.append(path)
        return _row(report, epoch=epoch, batch=number, values=(1.0, -1.0))

    monkeypatch.setattr(experiment, "measure", measure)
    first = experiment.measured(tmp_path, 3, None, 1)
    assert experiment.measured(tmp_path, 3, None, 1) == first and len(calls) == 1
    checkpoint.write_bytes(b"other weights")
    experiment.measured(tmp_path, 3, None, 1)
    assert len(calls) == 2


def test_table_and_figure_show_every_epoch(report, capsys):
    rows = [_row(report, epoch=e, batch=b, values=(4.0, -3.0)) for e in (0, 12) for b in (0, 1)]
    report.print_table(rows, title="A title")
    assert "A title" in (text := capsys.readouterr().out) and "12" in text and "2 of 4" in text
    left, right = report.draw(rows).axes
    drawn = [line for line in left.lines if line.get_linestyle() == "None"]
    assert [len(line.get_ydata()) for line in drawn] == [8, 8, 8]
    assert len(right.lines) == 4 and [tick.get_text() for tick in left.get_xticklabels()] == [
        "0",
        "12",
    ]
