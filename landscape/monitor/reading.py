"""Reading of a monitor's record, also while it is being written.

Shapes: m = measurements, k = eigenvalues of each.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Bool, Float, Int64

from landscape.errors import StoreError
from landscape.files import open_regular
from landscape.monitor.measurement import Measurement, Spectrum

SCHEMA_VERSION = 1
# A line takes about 1 kB for one eigenvalue; longer ones are no record.
_LONGEST_LINE = 2**20
_OPENING = b'{"landscape": "monitor"'


@dataclass(frozen=True)
class Lines:
    """The content of the lines of a record.

    Attributes:
        header: The first line; None if the file is empty, or not even that line was finished.
        measurements: Measurements that are not superseded, by step.
        superseded: Measurements that are superseded.
        length: Bytes up to the end of the last whole line.
    """

    header: Mapping[str, Any] | None
    measurements: tuple[Measurement, ...]
    superseded: tuple[Measurement, ...]
    length: int


def is_record(path: Path) -> bool:
    """Tell whether a file begins as the record of a monitor."""
    try:
        with open_regular(path) as stream:
            return _header(stream.readline(_LONGEST_LINE)) is not None
    except OSError:
        return False


def _header(line: bytes) -> Mapping[str, Any] | None:
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) and header.get("landscape") == "monitor" else None


def read_lines(stream: BinaryIO, path: Path, *, may_be_empty: bool = False) -> Lines:
    """Read the lines of a record.

    Args:
        may_be_empty: Whether a file without a whole line is a record that was not begun.

    Raises:
        StoreError: If it is no record, of another version, or a line is damaged.
    """
    first = stream.readline(_LONGEST_LINE)
    header = _header(first) if first.endswith(b"\n") else None
    if header is None:
        # A killed writer leaves the beginning of a header and nothing after it.
        if (
            may_be_empty
            and not first.endswith(b"\n")
            and first[: len(_OPENING)] == _OPENING[: len(first)]
        ):
            return Lines(None, (), (), 0)
        raise StoreError(
            f"{path}: is no record of a monitor, which begins with a line that says so. Name the "
            "file that SharpnessMonitor writes as its output."
        )
    if header.get("schema_version") != SCHEMA_VERSION:
        raise StoreError(
            f"{path}: is in version {header.get('schema_version')} of the format, and this program "
            f"reads version {SCHEMA_VERSION}. Read it with landscape "
            f"{header.get('landscape_version')}."
        )
    kept: dict[int, Measurement] = {}
    superseded: list[Measurement] = []
    length, number = len(first), 1
    while (line := stream.readline(_LONGEST_LINE)).endswith(b"\n"):
        number += 1
        length += len(line)
        after, made = _parsed(line, path, number)
        repeated = [
            step for step in kept if step > after or (made is not None and step == made.step)
        ]
        superseded += [kept.pop(step) for step in repeated]
        if made is not None:
            kept[made.step] = made
    return Lines(header, tuple(kept[step] for step in sorted(kept)), tuple(superseded), length)


def _parsed(line: bytes, path: Path, number: int) -> tuple[float, Measurement | None]:
    """Read a line as a step and a measurement.

    A line about a resumed training gives the step after which it went on, and None. A line of a
    measurement gives inf and the measurement.

    Raises:
        StoreError: If the line is damaged.
    """
    try:
        plain = json.loads(line)
        if "resumed" in plain:
            return int(plain["resumed"]), None
        return float("inf"), Measurement.from_plain(plain)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StoreError(
            f"{path}: line {number} is damaged ({type(error).__name__}), so the record cannot be "
            "trusted as a whole. Restore the file, or remove that line to go on without its "
            "measurement."
        ) from error


@dataclass(frozen=True)
class MonitorRecord:
    """The measurements of a training, as arrays.

    The arrays have an entry for each measurement that holds a value.

    Attributes:
        settings: Facts on what was measured: batch, parameters, k, which, tolerance, optimizer, and
            the versions.
        measurements: Measurements that count, by step, failed ones included.
        superseded: Measurements of steps that a resumed training took again.
    """

    settings: Mapping[str, Any]
    measurements: tuple[Measurement, ...]
    superseded: tuple[Measurement, ...] = ()

    @cached_property
    def _made(self) -> list[Measurement]:
        return [made for made in self.measurements if made.hessian is not None]

    @property
    def failures(self) -> tuple[Measurement, ...]:
        """Return the measurements without a value."""
        return tuple(made for made in self.measurements if made.hessian is None)

    def _column(self, read: Callable[[Measurement], float | None]) -> Float[np.ndarray, " m"]:
        return np.array(
            [np.nan if (value := read(made)) is None else value for made in self._made], dtype=float
        )

    def _table(self, name: str, column: str, fill: float) -> Any:
        width = int(self.settings.get("k", 1))
        spectra: list[Spectrum | None] = [getattr(made, name) for made in self._made]
        rows = [
            (fill,) * width if spectrum is None else getattr(spectrum, column)
            for spectrum in spectra
        ]
        return np.array(rows).reshape(len(rows), width)

    @property
    def steps(self) -> Int64[np.ndarray, " m"]:
        """Return the optimizer steps taken."""
        return np.array([made.step for made in self._made], dtype=np.int64)

    @property
    def losses(self) -> Float[np.ndarray, " m"]:
        """Return the losses of the monitor's batch, in nats."""
        return self._column(lambda made: made.loss)

    @property
    def training_losses(self) -> Float[np.ndarray, " m"]:
        """Return the losses that the loop gave; NaN where it gave none."""
        return self._column(lambda made: made.training_loss)

    @property
    def values(self) -> Float[np.ndarray, "m k"]:
        """Return the eigenvalues of the Hessian, the most wanted first."""
        return self._table("hessian", "values", np.nan)

    @property
    def residuals(self) -> Float[np.ndarray, "m k"]:
        """Return the relative residuals of `values`."""
        return self._table("hessian", "residuals", np.inf)

    @property
    def converged(self) -> Bool[np.ndarray, "m k"]:
        """Tell whether each residual met the tolerance."""
        return self._table("hessian", "converged", False)

    @property
    def preconditioned_values(self) -> Float[np.ndarray, "m k"]:
        """Return the eigenvalues of the preconditioned Hessian; NaN where not measured."""
        return self._table("preconditioned", "values", np.nan)

    @property
    def preconditioned_residuals(self) -> Float[np.ndarray, "m k"]:
        """Return the relative residuals of `preconditioned_values`; inf where not measured."""
        return self._table("preconditioned", "residuals", np.inf)

    @property
    def preconditioned_converged(self) -> Bool[np.ndarray, "m k"]:
        """Tell whether each residual met the tolerance; False where not measured."""
        return self._table("preconditioned", "converged", False)

    @property
    def num_matvecs(self) -> Int64[np.ndarray, " m"]:
        """Count Hessian-vector products, those for the preconditioned Hessian included."""
        counts = [
            [
                spectrum.num_matvecs
                for spectrum in (made.hessian, made.preconditioned)
                if spectrum is not None
            ]
            for made in self._made
        ]
        return np.array([sum(count) for count in counts], dtype=np.int64)

    @property
    def thresholds(self) -> Float[np.ndarray, " m"]:
        """Return the thresholds of the optimizer; NaN where there is none."""
        return self._column(lambda made: None if made.threshold is None else made.threshold.value)

    @property
    def critical_sharpness(self) -> Float[np.ndarray, " m"]:
        """Return the critical sharpness along the next step; NaN where not measured."""
        return self._column(lambda made: _along(made, "critical"))

    @property
    def critical_ranges(self) -> Float[np.ndarray, "m 2"]:
        """Return the bracket of each critical sharpness; NaN where not measured.

        The ends are 2 over those of the learning rates; the upper end of an open bracket is inf.
        """
        low = self._column(lambda made: _along(made, "critical_low"))
        high = self._column(lambda made: _along(made, "critical_high"))
        return np.stack([low, high], axis=1)

    @property
    def rates(self) -> Float[np.ndarray, " m"]:
        """Return the learning rate of the next step; NaN where not measured along it."""
        return self._column(lambda made: _along(made, "rate"))

    @property
    def directional_sharpness(self) -> Float[np.ndarray, " m"]:
        """Return the directional sharpness of the next step; NaN where not measured."""
        return self._column(lambda made: _along(made, "directional"))

    @property
    def seconds(self) -> Float[np.ndarray, " m"]:
        """Return the seconds that each measurement took."""
        return self._column(lambda made: made.seconds)

    @property
    def shares(self) -> Float[np.ndarray, " m"]:
        """Return the time spent on measuring, as a share of training time.

        Both are counted up to the measurement.
        """
        return self._column(lambda made: made.share)

    def describe(self) -> list[str]:
        """Describe the record in lines of text."""
        settings, k = self.settings, self.settings.get("k")
        lines = [
            f"record of a monitor, landscape {settings.get('landscape_version')}: the "
            f"{k} {settings.get('which')} eigenvalue{'' if k == 1 else 's'} of "
            f"{settings.get('num_params', 0):,} parameters, to {settings.get('tol')}"
        ]
        if not self.measurements:
            return [*lines, "no measurements yet"]
        first, last = self.measurements[0].step, self.measurements[-1].step
        counts = f"{len(self._made)} measurements, steps {first} to {last}"
        if len(self._made):
            unsure = int((~self.converged[:, 0]).sum())
            counts += f", {unsure} not converged" if unsure else ", all converged"
            counts += f", {self.num_matvecs.mean():.1f} products each"
        lines.append(counts)
        lines += (
            [f"{len(self.failures)} failed, the last: {self.failures[-1].failure}"]
            if self.failures
            else []
        )
        partial = [made.failure for made in self._made if made.failure]
        lines += [f"{len(partial)} failed in part, the last: {partial[-1]}"] if partial else []
        lines += (
            [f"{len(self.superseded)} superseded by steps that were taken again"]
            if self.superseded
            else []
        )
        return [*lines, str(self.measurements[-1])]


def _along(made: Measurement, name: str) -> float | None:
    """Return a number measured along the update; None where there is none."""
    return None if made.along_update is None else float(getattr(made.along_update, name))


def read_record(path: Path | str) -> MonitorRecord:
    """Read a record, finished or not.

    An incomplete last line of a killed writer is left out.

    Raises:
        StoreError: If the file is missing, no record, or damaged.
    """
    path = Path(path)
    try:
        with open_regular(path) as stream:
            lines = read_lines(stream, path)
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be read ({error.strerror or error}). Name the output of a "
            "SharpnessMonitor."
        ) from error
    assert lines.header is not None
    return MonitorRecord(lines.header, lines.measurements, lines.superseded)
