"""The figure of a monitor's record: it shows the numbers that were recorded, and says what it
leaves out.
"""

import math

import numpy as np
import pytest
from click.testing import CliRunner

from landscape.cli import main
from landscape.figures import training
from landscape.monitor import Measurement, Threshold, UpdateSharpness, read_record
from tests.monitor.test_monitor_record import measured, spectrum, written

OF_HESSIAN = Threshold(value=20.0, formula="2/η", source="a quadratic")
OF_PRECONDITIONED = Threshold(value=38.0, formula="38/η", source="a paper", of="preconditioned")


def record_of(tmp_path, measurements):
    written(tmp_path / "a.jsonl", measurements)
    return read_record(tmp_path / "a.jsonl")


def lines_of(ax):
    return {line.get_label(): line for line in ax.lines}


def texts_of(fig):
    return " ".join(text.get_text() for text in fig.texts).replace("\n", " ")


def test_values_thresholds_and_losses_are_those_of_the_record(tmp_path):
    steps = [0, 10, 25, 40]
    made = [
        measured(s, 5.0 + s, 3.0 + s, threshold=OF_HESSIAN, training_loss=0.1 * s) for s in steps
    ]
    fig = training(record_of(tmp_path, made), title="A run")
    sharp, loss = (lines_of(ax) for ax in fig.axes)
    np.testing.assert_array_equal(sharp["sharpness"].get_xydata(), [(s, 5.0 + s) for s in steps])
    np.testing.assert_array_equal(
        sharp["further eigenvalues"].get_ydata(), [3.0 + s for s in steps]
    )
    assert set(sharp["threshold 2/η"].get_ydata()) == {20.0}
    np.testing.assert_allclose(
        loss["loss of the monitor's batch"].get_ydata(), [1 / (1 + s) for s in steps]
    )
    np.testing.assert_allclose(loss["training loss"].get_ydata(), [0.1 * s for s in steps])
    assert (
        "A run" in texts_of(fig)
        and "2/η: a quadratic" in texts_of(fig)
        and "4 measurements" in texts_of(fig)
    )


def test_the_preconditioned_sharpness_has_a_panel_with_the_threshold_that_is_of_it(tmp_path):
    made = [measured(0)]
    made += [
        measured(s, preconditioned=spectrum(30.0 + s, 1.0), threshold=OF_PRECONDITIONED)
        for s in (5, 9)
    ]
    fig = training(record_of(tmp_path, made))
    assert len(fig.axes) == 3
    of_hessian, of_preconditioned = lines_of(fig.axes[0]), lines_of(fig.axes[1])
    assert "threshold 38/η" not in of_hessian
    np.testing.assert_array_equal(
        of_preconditioned["sharpness"].get_xydata(), [(5, 35.0), (9, 39.0)]
    )
    assert np.nanmax(of_preconditioned["threshold 38/η"].get_ydata()) == 38


def test_what_did_not_converge_is_left_out_and_counted_or_drawn_as_crosses(tmp_path):
    unsure = Measurement(step=5, loss=0.5, hessian=spectrum(9.0, 1.0, converged=(False, True)))
    record = record_of(
        tmp_path,
        [measured(0), unsure, measured(9), Measurement(step=12, failure="the loss is nan")],
    )
    fig = training(record)
    assert lines_of(fig.axes[0])["sharpness"].get_xdata().tolist() == [0, 9]
    assert "1 value did not meet the tolerance: left out. 1 measurement failed." in texts_of(fig)
    kept = training(record, keep_unconverged=True)
    np.testing.assert_array_equal(lines_of(kept.axes[0])["not converged"].get_xydata(), [(5, 9.0)])


def test_wide_positive_ranges_are_logarithmic_and_others_linear(tmp_path):
    wide = training(record_of(tmp_path, [measured(s, 10.0**s, 0.5) for s in range(4)]))
    assert wide.axes[0].get_yscale() == "log"
    (tmp_path / "a.jsonl").unlink()
    signed = training(record_of(tmp_path, [measured(s, 10.0**s - 2, math.nan) for s in range(4)]))
    assert signed.axes[0].get_yscale() == "linear"


def test_nothing_to_draw_is_one_line(tmp_path):
    for number, measurements in enumerate(
        (
            [],
            [Measurement(step=1, failure="no")],
            [Measurement(step=1, hessian=spectrum(9.0, 1.0, converged=(False, True)))],
        )
    ):
        path = tmp_path / f"{number}.jsonl"
        written(path, measurements)
        result = CliRunner().invoke(
            main, ["figure", str(path), "--kind", "training", "-o", str(tmp_path / "a.png")]
        )
        assert (
            result.exit_code == 2
            and "nothing to draw" in result.stderr
            and not (tmp_path / "a.png").exists()
        )


@pytest.mark.parametrize("name", ["a.png", "a.pdf", "a.svg"])
def test_the_command_draws_it_with_equal_bytes(tmp_path, name):
    written(tmp_path / "a.jsonl", [measured(s, threshold=OF_HESSIAN) for s in range(3)])
    drawn = []
    for folder in ("1", "2"):
        output = tmp_path / folder / name
        result = CliRunner().invoke(
            main, ["figure", str(tmp_path / "a.jsonl"), "--kind", "training", "-o", str(output)]
        )
        assert result.exit_code == 0, result.output
        assert "3 measurements, steps 0 to 2" in result.output
        drawn.append(output.read_bytes())
    assert drawn[0] == drawn[1]


def test_options_of_stores_and_other_files_are_refused(tmp_path):
    written(tmp_path / "a.jsonl", [measured(1)])
    command = [
        "figure",
        str(tmp_path / "a.jsonl"),
        "--kind",
        "training",
        "-o",
        str(tmp_path / "a.png"),
    ]
    for wrong, words in (
        ([*command, "--epochs", "1"], "--kind training shows steps"),
        ([*command[:-1], str(tmp_path / "a.txt")], "a figure is one of"),
        (["figure", str(tmp_path / "b.jsonl"), *command[2:]], "cannot be read"),
    ):
        result = CliRunner().invoke(main, wrong)
        assert result.exit_code == 2 and words in result.stderr


def along(critical, low, high, rate=0.1):
    return UpdateSharpness(
        rate=rate,
        critical=critical,
        critical_low=low,
        critical_high=high,
        directional=1.0,
        predicted_change=-0.1,
        change=-0.1,
        num_losses=8,
    )


def test_the_critical_sharpness_has_a_panel_with_its_bracket_and_the_limit_of_its_step(tmp_path):
    made = [measured(0, along_update=along(8.0, 7.5, 8.25))]
    made += [measured(3, along_update=along(12.0, 11.0, 12.5, rate=0.2))]
    # The search saw no end of this bracket, and the next step had no direction.
    made += [measured(6, along_update=along(math.nan, 4.0, math.inf)), measured(9)]
    fig = training(record_of(tmp_path, made))
    assert len(fig.axes) == 3
    lines = lines_of(fig.axes[1])
    np.testing.assert_array_equal(lines["critical sharpness"].get_xydata(), [(0, 8), (3, 12)])
    (limit,) = (line for label, line in lines.items() if label.startswith("2 / lr"))
    np.testing.assert_array_equal(limit.get_ydata(), [20, 10, 20, np.nan])
    (band,) = fig.axes[1].collections
    corners = {tuple(point) for point in band.get_paths()[0].vertices.tolist()}
    assert {(0, 7.5), (0, 8.25), (3, 11.0), (3, 12.5)} <= corners
    assert "None is known for 2 measurements" in texts_of(fig)
    # Without a value there is no panel.
    (tmp_path / "a.jsonl").unlink()
    assert len(training(record_of(tmp_path, [measured(0), made[2]])).axes) == 2
