"""One measurement of a monitor, as it is recorded.

Knows numbers, not models: imports nothing heavy. Shapes: k = number of eigenvalues.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from landscape.linalg import EigenPairs


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Extreme eigenvalues of one matrix with their certificates; see `landscape.EigenPairs`.

    Attributes:
        values: (k,), the most wanted first, in nats per squared parameter; of a preconditioned
            Hessian in its units.
        residuals: (k,) relative: an eigenvalue lies within residual * |value| of the value.
        converged: (k,) whether the residual met the tolerance.
        num_matvecs: Matrix-vector products spent.
        settled: Whether no other Ritz value can still belong among the values.
        missed: Statement on eigenvalues that were not seen, in words.
        missed_distance: A further eigenvalue that was missed with more than 1 % probability lies
            within this of a value found, as a fraction of that value; inf where nothing is
            excluded. 0 where the search from a second random start was completed.
        checked: Result of the check of the operator's products.
    """

    values: tuple[float, ...]
    residuals: tuple[float, ...]
    converged: tuple[bool, ...]
    num_matvecs: int
    settled: bool
    missed: str
    missed_distance: float
    checked: str

    @classmethod
    def of(cls, eigenpairs: "EigenPairs") -> Self:
        missed, distance = _missed(eigenpairs)
        return cls(
            values=tuple(eigenpairs.values.tolist()),
            residuals=tuple(eigenpairs.residuals.tolist()),
            converged=tuple(eigenpairs.converged.tolist()),
            num_matvecs=eigenpairs.num_matvecs,
            settled=eigenpairs.settled,
            missed=missed,
            missed_distance=distance,
            checked=eigenpairs.checked,
        )

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        distance = plain["missed_distance"]
        read = {
            "values": tuple(
                math.nan if value is None else float(value) for value in plain["values"]
            ),
            "residuals": tuple(
                math.inf if value is None else float(value) for value in plain["residuals"]
            ),
            "converged": tuple(map(bool, plain["converged"])),
            "missed_distance": math.inf if distance is None else float(distance),
        }
        return cls(**{**plain, **read})

    @property
    def value(self) -> float:
        """Return the most wanted eigenvalue."""
        return self.values[0]

    @property
    def bound(self) -> float:
        """Bound the distance from `value` to the nearest eigenvalue."""
        return self.residuals[0] * abs(self.value)


def _missed(eigenpairs: "EigenPairs") -> tuple[str, float]:
    if eigenpairs.copies_checked:
        return "a further eigenvalue would have been seen with 99 % probability", 0.0
    if eigenpairs.missed is not None:
        return str(eigenpairs.missed), eigenpairs.missed.distance
    return "further eigenvalues beyond the last are not excluded", math.inf


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """The sharpness above which the optimizer is unstable on a quadratic.

    Attributes:
        value: The threshold, in the unit of the matrix `of`.
        formula, source: Formula by which it follows from the optimizer's settings, and its source.
        of: Matrix whose eigenvalues it compares with: "hessian", or "preconditioned" for the
            Hessian in the units of an adaptive optimizer.
    """

    value: float
    formula: str
    source: str
    of: str = "hessian"

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        # A learning rate of zero has no finite threshold.
        return cls(
            **{**plain, "value": math.inf if plain["value"] is None else float(plain["value"])}
        )


@dataclass(frozen=True, kw_only=True)
class UpdateSharpness:
    """Sharpness along the step that the optimizer would take next on the monitor's batch.

    Attributes:
        rate: Learning rate of that step.
        critical: 2 over the critical learning rate; NaN where no bracket was seen.
        critical_low, critical_high: 2 over the ends of its bracket; see
            `landscape.stability.CriticalSharpness`.
        directional: u.H u / u.u for the step u in the measured parameters, in nats per squared
            parameter.
        predicted_change: Change of the loss by that step, to second order, in nats.
        change: Change of the loss by the step as evaluated, in nats. The step is that of all
            parameters that the optimizer trains, as it is for `critical`.
        num_losses: Forward passes.
    """

    rate: float
    critical: float
    critical_low: float
    critical_high: float
    directional: float
    predicted_change: float
    change: float
    num_losses: int

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        # What was not finite: the upper end of an open bracket, and numbers that are not known.
        unknown = {"critical_high": math.inf}
        read: dict[str, Any] = {
            name: unknown.get(name, math.nan) if value is None else value
            for name, value in plain.items()
        }
        return cls(**read)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One measurement, after a number of training steps.

    Attributes:
        step: Optimizer steps taken.
        loss: Loss of the monitor's batch at these weights, in nats; None where the measurement
            failed.
        training_loss: Loss that the loop gave to `step`; None where it gave none.
        hessian: Spectrum of the Hessian; None where the measurement failed.
        preconditioned: Spectrum of P^-1/2 H P^-1/2; None without an adaptive optimizer, or before
            its first step.
        threshold: Threshold of the optimizer; None without one.
        along_update: Sharpness along the optimizer's next step; None where it was not asked for, or
            that step is none: at a learning rate of 0, or a gradient of zero.
        seconds: Time that the measurement took.
        training_seconds: Time of training so far, without measuring.
        share: Time spent on measuring so far, as a share of that; None before there is any.
        failure: Reason why there is no value, or, beside a spectrum, none along the update; ""
            where nothing failed.
    """

    step: int
    loss: float | None = None
    training_loss: float | None = None
    hessian: Spectrum | None = None
    preconditioned: Spectrum | None = None
    threshold: Threshold | None = None
    along_update: UpdateSharpness | None = None
    seconds: float = 0.0
    training_seconds: float = 0.0
    share: float | None = None
    failure: str = ""

    def as_plain(self) -> dict[str, Any]:
        """Convert to JSON values; what is not finite becomes None."""
        plain: dict[str, Any] = _finite(asdict(self))
        # Programs before this column cannot read it.
        if self.along_update is None:
            del plain["along_update"]
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Build a measurement from the result of `as_plain`.

        Raises:
            TypeError, KeyError, ValueError: If it is something else.
        """
        spectra = {name: plain.get(name) for name in ("hessian", "preconditioned")}
        threshold, along_update = plain.get("threshold"), plain.get("along_update")
        return cls(
            **{
                **plain,
                **{
                    name: None if value is None else Spectrum.from_plain(value)
                    for name, value in spectra.items()
                },
                "step": int(plain["step"]),
                "threshold": None if threshold is None else Threshold.from_plain(threshold),
                "along_update": None
                if along_update is None
                else UpdateSharpness.from_plain(along_update),
            }
        )

    @property
    def watched(self) -> Spectrum | None:
        """Return the spectrum with which the threshold compares."""
        return (
            self.preconditioned
            if self.threshold is not None and self.threshold.of == "preconditioned"
            else self.hessian
        )

    def __str__(self) -> str:
        if self.hessian is None:
            return f"step {self.step}: no sharpness, {self.failure}"
        texts = [f"step {self.step}: sharpness {_with_bound(self.hessian)}"]
        if self.preconditioned is not None:
            texts.append(f"preconditioned {_with_bound(self.preconditioned)}")
        if self.threshold is not None and self.watched is not None:
            share = self.watched.value / self.threshold.value
            texts.append(
                f"{100 * share:.0f} % of {self.threshold.formula} = {self.threshold.value:.4g}"
            )
        if self.along_update is not None:
            texts.append(f"critical sharpness {self.along_update.critical:.4g}")
        if self.failure:
            texts.append(self.failure.rstrip("."))
        texts += [] if self.loss is None else [f"loss {self.loss:.4g}"]
        texts += [] if self.share is None else [f"{100 * self.share:.1f} % of the training time"]
        return ", ".join(texts)


def _with_bound(spectrum: Spectrum) -> str:
    return (
        f"{spectrum.value:.4g} ± "
        f"{spectrum.bound:.1g}{'' if spectrum.converged[0] else ' (not converged)'}"
    )


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
