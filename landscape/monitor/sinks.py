"""Sinks of measurements: a table, a terminal, TensorBoard, Weights & Biases.

They receive measurements beside the record. The caller passes the writers of TensorBoard and W&B,
so neither package is needed here.
"""

import csv
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from landscape.errors import StoreError
from landscape.files import read_regular, write_atomically
from landscape.monitor.measurement import Measurement

_LARGEST_TABLE = 2**30


class Sink(Protocol):
    """A receiver of the measurements of a monitor, one after the other."""

    def begin(self, start_step: int | None) -> None:
        """Prepare to receive measurements.

        Args:
            start_step: Steps that the training had taken when it began here; None for a new
                training.
        """

    def write(self, measurement: Measurement) -> None:
        """Take a measurement."""

    def close(self) -> None:
        """Finish; may be called twice."""


def scalars(measurement: Measurement) -> dict[str, float]:
    """Return the numbers of a measurement by name.

    Numbers that it lacks are left out.
    """
    numbers: dict[str, float | None] = {
        "loss": measurement.loss,
        "training_loss": measurement.training_loss,
    }
    for name in ("hessian", "preconditioned"):
        spectrum = getattr(measurement, name)
        prefix = "" if name == "hessian" else "preconditioned_"
        if spectrum is None:
            continue
        for number, (value, residual) in enumerate(
            zip(spectrum.values, spectrum.residuals), start=1
        ):
            ending = "" if number == 1 else f"_{number}"
            numbers[f"{prefix}sharpness{ending}"] = value
            numbers[f"{prefix}sharpness_bound{ending}"] = residual * abs(value)
        numbers[f"{prefix}converged"] = float(all(spectrum.converged))
        numbers[f"{prefix}products"] = float(spectrum.num_matvecs)
    if measurement.threshold is not None:
        numbers["threshold"] = measurement.threshold.value
    if measurement.along_update is not None:
        along = measurement.along_update
        numbers |= {
            "critical_sharpness": along.critical,
            "critical_sharpness_low": along.critical_low,
            "critical_sharpness_high": along.critical_high,
            "directional_sharpness": along.directional,
            "predicted_change": along.predicted_change,
            "change": along.change,
        }
    numbers |= {"seconds": measurement.seconds, "share_of_time": measurement.share}
    return {name: value for name, value in numbers.items() if value is not None}


class CsvSink:
    """A table with a row for each measurement.

    A measurement that brings a new column, as the first one after a step of Adam does, rewrites the
    table. A resumed training keeps the rows up to its first step and replaces later ones.

    Raises:
        StoreError: From `begin`, if the file cannot be read or written, or holds rows and
            `start_step` is missing.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._columns: list[str] = []

    def begin(self, start_step: int | None) -> None:
        rows = self._rows()
        if not rows:
            return
        if start_step is None:
            raise StoreError(
                f"{self.path}: holds rows already. Say after which step this training goes on, "
                "with start_step (0 begins again), or name another file."
            )
        self._columns = list(rows[0])
        self._replace([row for row in rows if int(float(row["step"] or 0)) <= start_step])

    def _rows(self) -> list[dict[str, str]]:
        try:
            text = read_regular(self.path, largest=_LARGEST_TABLE).decode()
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(
                f"{self.path}: cannot be read ({error}), so no row can be added. Name another file."
            ) from error
        # The last line of a killed training has no end.
        rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))
        if rows and "step" not in rows[0]:
            raise StoreError(
                f"{self.path}: has no column step, so it is another table. Name another file."
            )
        return rows

    def _replace(self, rows: list[dict[str, str]]) -> None:
        stream = io.StringIO()
        table = csv.DictWriter(stream, self._columns, lineterminator="\n", extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
        try:
            write_atomically(self.path, stream.getvalue().encode())
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def write(self, measurement: Measurement) -> None:
        if measurement.hessian is None:
            return
        row: dict[str, Any] = {"step": measurement.step} | scalars(measurement)
        new = [column for column in row if column not in self._columns]
        if new:
            before = self._rows() if self._columns else []
            self._columns += new
            self._replace(before)
        stream = io.StringIO()
        csv.DictWriter(stream, self._columns, lineterminator="\n").writerow(row)
        try:
            with open(self.path, "a") as table:
                table.write(stream.getvalue())
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def close(self) -> None:
        pass


def _unwritable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{path}: cannot be written ({error.strerror or error}). Name a file in a writable folder "
        "with room."
    )


class TensorBoardSink:
    """A sink that writes scalars to TensorBoard.

    Args:
        writer: A `torch.utils.tensorboard.SummaryWriter`, or anything with its
            `add_scalar(tag, scalar_value, global_step)`. It is not closed.
        prefix: Text before the name of every scalar.
    """

    def __init__(self, writer: Any, *, prefix: str = "sharpness/") -> None:
        self._writer, self._prefix = writer, prefix

    def begin(self, start_step: int | None) -> None:
        pass

    def write(self, measurement: Measurement) -> None:
        for name, value in scalars(measurement).items():
            self._writer.add_scalar(f"{self._prefix}{name}", value, global_step=measurement.step)

    def close(self) -> None:
        flush = getattr(self._writer, "flush", None)
        if flush is not None:
            flush()


class WandbSink:
    """A sink that logs to a run of Weights & Biases.

    The axis is the training step. The numbers join the run's current history step (`commit=False`),
    so that what the training itself logs keeps its steps.

    Args:
        run: Result of `wandb.init`; has `log(data, commit=...)` and
            `define_metric(name, step_metric=...)`.
        prefix: Text before the name of every number.
    """

    def __init__(self, run: Any, *, prefix: str = "sharpness/") -> None:
        self._run, self._prefix = run, prefix

    def begin(self, start_step: int | None) -> None:
        self._run.define_metric(f"{self._prefix}*", step_metric=f"{self._prefix}step")

    def write(self, measurement: Measurement) -> None:
        numbers: Mapping[str, float] = {"step": measurement.step} | scalars(measurement)
        self._run.log(
            {f"{self._prefix}{name}": value for name, value in numbers.items()}, commit=False
        )

    def close(self) -> None:
        pass


class LiveLine:
    """A line of a terminal that shows the last measurement.

    The next measurement replaces it.

    Args:
        stream: Stream to write to; stderr by default. Nothing is written where it is no terminal.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._shown = False

    def begin(self, start_step: int | None) -> None:
        pass

    def write(self, measurement: Measurement) -> None:
        if self._stream.isatty():
            # Back to the first column, and clear the line.
            self._stream.write(f"\r\x1b[K{measurement}")
            self._stream.flush()
            self._shown = True

    def close(self) -> None:
        if self._shown:
            self._stream.write("\n")
            self._shown = False
