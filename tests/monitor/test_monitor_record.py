"""The record of a monitor: whole after SIGKILL at any moment, right when a training goes on,
refused where it is not its own.
"""

import csv
import fcntl
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from landscape.cli import main
from landscape.errors import StoreError
from landscape.monitor import (
    CsvSink,
    LiveLine,
    Measurement,
    SharpnessMonitor,
    Spectrum,
    TensorBoardSink,
    Threshold,
    WandbSink,
    is_record,
    read_record,
)
from landscape.monitor.record import RecordWriter
from landscape.monitor.sinks import scalars
from tests.helpers.monitored_training import CHECKPOINT, RECORD, TABLE, loss, train
from tests.helpers.processes import environment_of_scripts, helper_command

SETTINGS = {"k": 2, "which": "LA", "tol": 0.01, "num_params": 10, "batch_sha256": "ab"}


def spectrum(*values, converged=None, num_matvecs=5):
    return Spectrum(
        values=values,
        residuals=tuple(1e-3 for _ in values),
        converged=tuple(True for _ in values) if converged is None else converged,
        num_matvecs=num_matvecs,
        settled=True,
        missed="",
        missed_distance=math.inf,
        checked="operator checked",
    )


def measured(step, *values, **options):
    return Measurement(
        step=step,
        loss=1 / (1 + step),
        hessian=spectrum(*(values or (2.0, 1.0))),
        seconds=0.5,
        **options,
    )


def written(path, measurements, *, start_step=None):
    writer = RecordWriter(path, SETTINGS, start_step=start_step)
    for made in measurements:
        writer.add(made)
    writer.close()
    return writer


# what is read back


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "new" / "a.jsonl"
    threshold = Threshold(value=20.0, formula="2/η", source="a quadratic")
    everything = [
        measured(1, share=None),
        measured(
            4,
            3.0,
            0.5,
            training_loss=0.7,
            preconditioned=spectrum(9.0, 8.0),
            threshold=threshold,
            share=0.02,
        ),
        Measurement(step=6, failure="the loss is nan"),
        measured(9, -1.0, math.nan),
    ]
    written(path, everything)
    record = read_record(path)
    assert record.measurements[:3] == tuple(everything[:3]) and is_record(path)
    assert record.steps.tolist() == [1, 4, 9] and [made.step for made in record.failures] == [6]
    np.testing.assert_array_equal(record.values, [[2, 1], [3, 0.5], [-1, math.nan]])
    np.testing.assert_array_equal(
        record.preconditioned_values, [[math.nan] * 2, [9, 8], [math.nan] * 2]
    )
    assert record.converged.all() and record.preconditioned_converged.tolist() == [
        [False] * 2,
        [True] * 2,
        [False] * 2,
    ]
    assert record.num_matvecs.tolist() == [5, 10, 5]
    np.testing.assert_array_equal(record.thresholds, [math.nan, 20, math.nan])
    np.testing.assert_array_equal(record.shares, [math.nan, 0.02, math.nan])
    np.testing.assert_allclose(record.losses, [1 / 2, 1 / 5, 1 / 10])
    np.testing.assert_array_equal(record.training_losses, [math.nan, 0.7, math.nan])
    # Every line is JSON that other programs take, without their NaN.
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(name))


def test_later_lines_of_steps_that_are_taken_again_take_the_place_of_earlier_ones(tmp_path):
    path = tmp_path / "a.jsonl"
    written(path, [measured(step) for step in (1, 5, 10, 15)])
    writer = written(path, [measured(12, 7.0, 6.0), measured(20)], start_step=10)
    assert [made.step for made in writer.kept] == [1, 5, 10]
    record = read_record(path)
    assert record.steps.tolist() == [1, 5, 10, 12, 20] and record.values[3, 0] == 7
    assert [made.step for made in record.superseded] == [15]
    # From the beginning, all of them.
    written(path, [measured(2)], start_step=0)
    assert read_record(path).steps.tolist() == [2] and len(read_record(path).superseded) == 6
    assert "6 superseded" in "\n".join(read_record(path).describe())


def test_a_measurement_of_a_step_that_was_measured_takes_its_place(tmp_path):
    written(tmp_path / "a.jsonl", [measured(3), measured(3, 9.0, 8.0)])
    assert read_record(tmp_path / "a.jsonl").values.tolist() == [[9, 8]]


# what a killed writer leaves


def test_a_torn_end_is_left_out_and_cut_off_at_every_byte(tmp_path):
    path = tmp_path / "a.jsonl"
    written(path, [measured(1), measured(2)])
    whole = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        left = sum(end <= length for end in ends) - 1
        if left >= 0:
            assert read_record(path).steps.tolist() == [1, 2][:left]
        written(path, [measured(9)], start_step=2)
        assert read_record(path).steps.tolist() == [*[1, 2][: max(left, 0)], 9]
        assert path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize("num_kills", [3, pytest.param(25, marks=pytest.mark.slow)])
def test_sigkill_at_random_moments_costs_no_measurement_and_the_training_ends_with_the_same_bits(
    tmp_path, num_kills
):
    # A run takes up to four steps before it is killed, so none ends before the last kill.
    num_steps = 40 if num_kills < 10 else 140
    rng = random.Random(num_kills)
    weights = train(tmp_path, num_steps, monitored=False).state_dict()
    (tmp_path / CHECKPOINT).unlink()
    killed = 0
    for _ in range(200):
        run = subprocess.Popen(
            helper_command("monitored_training", tmp_path, num_steps),
            env=environment_of_scripts(),
            stdout=subprocess.PIPE,
        )
        said = []
        patience = rng.randrange(1, 5) if killed < num_kills else 1000
        for line in run.stdout:
            said.append(int(line.split()[1]))
            if len(said) == patience:
                break
        if killed < num_kills:
            # Now, or in the middle of the next step or measurement.
            if rng.random() < 0.7:
                try:
                    run.wait(rng.random() * 0.02)
                except subprocess.TimeoutExpired:
                    pass
            run.kill()
            killed += 1
        run.stdout.close()
        code = run.wait(120)
        there = read_record(tmp_path / RECORD)
        assert set(said) <= {int(step) for step in there.steps}
        if code == 0:
            break
    assert code == 0 and killed == num_kills
    # At most a checkpoint's distance lies between what was kept and what was taken again: nothing
    # else is missing.
    record = read_record(tmp_path / RECORD)
    steps = record.steps.tolist()
    assert steps == sorted(set(steps)) and max(np.diff([0, *steps, num_steps])) <= 3
    assert record.converged.all() and not record.failures
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert all(torch.equal(state["model"][name], tensor) for name, tensor in weights.items())
    rows = list(csv.DictReader(open(tmp_path / TABLE)))
    assert [int(row["step"]) for row in rows] == steps


def test_a_child_of_the_training_does_not_keep_the_lock(tmp_path):
    """A data loader's worker, made by fork, may live longer than a killed training."""
    writer = RecordWriter(tmp_path / "a.jsonl", SETTINGS, start_step=None)
    code = (
        "import os, sys, time; from landscape.monitor.record import RecordWriter; from pathlib "
        "import Path\n"
    )
    code += f"RecordWriter(Path({str(tmp_path / 'b.jsonl')!r}), {SETTINGS!r}, start_step=None)\n"
    code += "if not os.fork(): print('ready', flush=True)\nos.close(1), time.sleep(60)\n"
    run = subprocess.Popen(
        [sys.executable, "-c", code], env=environment_of_scripts(), stdout=subprocess.PIPE
    )
    run.stdout.readline()
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    with pytest.raises(StoreError, match="another process writes"):
        RecordWriter(tmp_path / "b.jsonl", SETTINGS, start_step=0)
    run.kill(), run.wait(), run.stdout.close()
    assert children and os.path.exists(f"/proc/{children[0]}")
    RecordWriter(tmp_path / "b.jsonl", SETTINGS, start_step=0).close()
    os.kill(int(children[0]), 9)
    writer.close()


# what is refused


def test_two_trainings_do_not_write_one_record(tmp_path):
    writer = RecordWriter(tmp_path / "a.jsonl", SETTINGS, start_step=None)
    with pytest.raises(StoreError, match="another process writes this record"):
        RecordWriter(tmp_path / "a.jsonl", SETTINGS, start_step=0)
    writer.close()
    RecordWriter(tmp_path / "a.jsonl", SETTINGS, start_step=0).close()


def test_a_record_that_is_there_needs_the_step_after_which_the_training_goes_on(tmp_path):
    path = tmp_path / "a.jsonl"
    written(path, [])
    written(path, [measured(7)])
    before = path.read_bytes()
    with pytest.raises(StoreError, match="holds measurements up to step 7") as raised:
        written(path, [])
    assert "start_step" in str(raised.value) and path.read_bytes() == before


def test_a_record_of_something_else_is_refused_and_stays_as_it_is(tmp_path):
    path = tmp_path / "a.jsonl"
    written(path, [measured(7)])
    before = path.read_bytes()
    with pytest.raises(StoreError, match="its batch_sha256 is 'ab', now it is 'cd'"):
        RecordWriter(path, SETTINGS | {"batch_sha256": "cd"}, start_step=7)
    assert path.read_bytes() == before
    for content, words in (
        (b'{"step": 1}\n', "is no record of a monitor"),
        (b"\x89HDF\r\n", "is no record of a monitor"),
        (before.replace(b'"schema_version": 1', b'"schema_version": 9'), "version 9 of the format"),
        (before + b"not JSON\n" + before.splitlines()[1] + b"\n", "line 3 is damaged"),
        (before + b'{"step": "seven", "loss": []}\n', "line 3 is damaged"),
    ):
        path.write_bytes(content)
        for use in (lambda: read_record(path), lambda: written(path, [], start_step=0)):
            with pytest.raises(StoreError, match=words) as raised:
                use()
            assert "\n" not in str(raised.value)
        assert path.read_bytes() == content
    with pytest.raises(StoreError, match="cannot be read"):
        read_record(tmp_path / "missing.jsonl")
    assert not is_record(tmp_path / "missing.jsonl") and not is_record(tmp_path)


def test_a_full_disk_is_one_line_and_takes_no_half_line(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    writer = RecordWriter(path, SETTINGS, start_step=None)
    writer.add(measured(1))
    before, write = path.read_bytes(), os.write

    def full(descriptor, content):
        if len(content) > 50:
            return write(descriptor, bytes(content[:50]))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StoreError, match="No space left on device"):
        writer.add(measured(2))
    monkeypatch.undo()
    assert path.read_bytes() == before
    writer.add(measured(3))
    writer.close()
    assert read_record(path).steps.tolist() == [1, 3]


def test_a_file_system_without_locks_is_used_without_them(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    written(tmp_path / "a.jsonl", [measured(1)])
    assert read_record(tmp_path / "a.jsonl").steps.tolist() == [1]


def test_a_monitor_goes_on_with_its_record_and_its_budget(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1).double()
    batch = torch.randn(8, 4).double(), torch.randn(8, 1).double()
    with SharpnessMonitor(model, loss, batch, output=tmp_path / "a.jsonl", budget=None) as monitor:
        for _ in range(3):
            monitor.step()
    options = {"output": tmp_path / "a.jsonl", "start_step": 2}
    # The clock stands still: no training, and so no time to measure in.
    with SharpnessMonitor(model, loss, batch, budget=1e-6, clock=lambda: 5.0, **options) as monitor:
        assert [made.step for made in monitor.measurements] == [1, 2] and monitor.num_steps == 2
        assert monitor.step() is None
    other = batch[0] + 1, batch[1]
    with pytest.raises(StoreError, match="batch_sha256"):
        SharpnessMonitor(model, loss, other, **options)


# sinks


def test_a_table_has_a_row_for_each_measurement(tmp_path):
    path = tmp_path / "a.csv"
    sink = CsvSink(path)
    sink.begin(None)
    sink.write(measured(1))
    sink.write(Measurement(step=2, failure="no"))
    # A column that the first row lacks is added.
    sink.write(measured(3, training_loss=2.0))
    rows = list(csv.DictReader(open(path)))
    assert (
        [row["step"] for row in rows] == ["1", "3"]
        and float(rows[1]["sharpness"]) == 2
        and float(rows[1]["sharpness_2"]) == 1
    )
    assert float(rows[0]["sharpness_bound"]) == 2e-3 and [row["training_loss"] for row in rows] == [
        "",
        "2.0",
    ]
    with open(path, "a") as stream:
        stream.write("5,0.1")
    again = CsvSink(path)
    with pytest.raises(StoreError, match="holds rows already"):
        again.begin(None)
    again.begin(2)
    again.write(measured(4))
    assert [row["step"] for row in csv.DictReader(open(path))] == ["1", "4"]
    path.write_text("a,b\n1,2\n")
    with pytest.raises(StoreError, match="another table"):
        CsvSink(path).begin(0)


def test_tensorboard_gets_scalars_by_its_documented_signature():
    calls = []

    class SummaryWriter:
        def add_scalar(
            self,
            tag,
            scalar_value,
            global_step=None,
            walltime=None,
            new_style=False,
            double_precision=False,
        ):
            calls.append((tag, scalar_value, global_step))

        def flush(self):
            calls.append("flush")

    sink = TensorBoardSink(SummaryWriter())
    made = measured(7, threshold=Threshold(value=20.0, formula="2/η", source=""), share=0.04)
    sink.begin(None)
    sink.write(made)
    sink.close()
    assert calls[-1] == "flush"
    assert {tag: value for tag, value, _ in calls[:-1]} == {
        f"sharpness/{name}": value for name, value in scalars(made).items()
    }
    assert {step for _, _, step in calls[:-1]} == {7} and ("sharpness/threshold", 20.0, 7) in calls


def test_tensorboards_own_writer_takes_them(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        sink = TensorBoardSink(writer)
        sink.write(measured(3))
        sink.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("sharpness/sharpness")] == [
        (3, 2.0)
    ]


def test_a_run_of_wandb_gets_them_over_the_training_step_without_a_step_of_its_own():
    calls = []

    class Run:
        def define_metric(self, name, step_metric=None):
            calls.append((name, step_metric))

        def log(self, data, step=None, commit=None):
            assert step is None and commit is False
            calls.append(data)

    sink = WandbSink(Run(), prefix="h/")
    sink.begin(None)
    sink.write(measured(7))
    sink.close()
    assert (
        calls[0] == ("h/*", "h/step") and calls[1]["h/step"] == 7 and calls[1]["h/sharpness"] == 2
    )


def test_a_live_line_is_for_terminals_alone(tmp_path):
    class Terminal:
        def __init__(self, tty):
            self.tty, self.text = tty, ""

        def isatty(self):
            return self.tty

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    for tty in (True, False):
        terminal = Terminal(tty)
        line = LiveLine(terminal)
        line.begin(None)
        line.write(measured(1)), line.write(measured(2))
        line.close(), line.close()
        assert terminal.text == (f"\r\x1b[K{measured(1)}\r\x1b[K{measured(2)}\n" if tty else "")
    assert str(measured(2)) == "step 2: sharpness 2 ± 0.002, loss 0.3333"


def test_info_says_what_is_inside(tmp_path):
    written(
        tmp_path / "a.jsonl",
        [measured(1), Measurement(step=2, failure="the loss is nan"), measured(4, 8.0, 7.0)],
    )
    result = CliRunner().invoke(main, ["info", str(tmp_path / "a.jsonl")])
    assert result.exit_code == 0, result.output
    assert "2 measurements, steps 1 to 4, all converged, 5.0 products each" in result.output
    assert (
        "1 failed, the last: the loss is nan" in result.output
        and "sharpness 8 ± 0.008" in result.output
    )
