"""Sharpness, the optimizer's threshold and the loss over the steps of a training, a panel below the
other.

What is drawn was measured by landscape.monitor; nothing is computed here. Sizes are in inches.
Shapes: m = measurements, k = eigenvalues.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from landscape.compare.sentences import counted
from landscape.figures.page import MEASURED, MISSING, PREDICTED, Page
from landscape.figures.page_options import PageOptions
from landscape.figures.style import paper_style
from landscape.monitor import MonitorRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Ranges that span less hold too few round numbers for a logarithmic axis.
_WIDE = 8.0
# More markers would run into each other.
_MAX_MARKERS = 60
_FURTHER: dict[str, Any] = {"color": "#56B4E9", "linestyle": "-", "linewidth": 0.8, "zorder": 2}
_TRAINING: dict[str, Any] = {"color": "0.6", "linestyle": "-", "linewidth": 0.8, "zorder": 2}
_TITLES = {
    "LA": "Largest eigenvalue",
    "LM": "Largest eigenvalue in magnitude",
    "SA": "Smallest eigenvalue",
}
_CRITICAL, _RATE_LIMIT = "critical sharpness", "2 / lr: above it, the step raises the loss"
_STEP_LIMIT: dict[str, Any] = {**PREDICTED, "linestyle": ":"}


@dataclass(frozen=True, eq=False)
class _Curve:
    """One matrix over the steps.

    Args:
        title: Above the panel.
        unit: On the axis.
        label: Of the first value, in the legend.
        thresholds: NaN where there is none of this matrix.
        formula: Of the threshold; "" without one.
    """

    title: str
    unit: str
    label: str
    steps: Int64[np.ndarray, " m"]
    values: Float[np.ndarray, "m k"]
    bounds: Float[np.ndarray, "m k"]
    converged: Bool[np.ndarray, "m k"]
    thresholds: Float[np.ndarray, " m"]
    formula: str

    @property
    def threshold_label(self) -> str:
        return f"threshold {self.formula}"


@dataclass(frozen=True, eq=False)
class _AlongUpdate:
    """Critical sharpness of the next step over the steps; NaN where it is unknown.

    Args:
        ranges: Bracket of each value; the upper end may be infinite.
        limits: 2 / learning rate of the step.
    """

    steps: Int64[np.ndarray, " m"]
    values: Float[np.ndarray, " m"]
    ranges: Float[np.ndarray, "m 2"]
    limits: Float[np.ndarray, " m"]


def training(
    record: MonitorRecord,
    *,
    title: str | None = None,
    keep_unconverged: bool = False,
    page_options: PageOptions | None = None,
) -> "Figure":
    """Draw a record: panels for the Hessian, for the preconditioned Hessian and for the critical
    sharpness where those were measured, and for the loss.

    The threshold is dashed, in the panel of the matrix that it is of. Values that did not meet the
    tolerance are left out and counted in the note.

    Args:
        title: Heading of the figure; none by default.
        keep_unconverged: Draw those values too, as crosses.
        page_options: Width, letters and axis; by default those described here.

    Raises:
        ValueError: If there is nothing to draw.
    """
    curves = _curves(record)
    along = _along_update(record)
    if not len(record.steps):
        raise ValueError("no measurement has a value, so there is nothing to draw.")
    shown = [curve.converged[:, 0] | keep_unconverged for curve in curves]
    if not any(mask.any() for mask in shown):
        raise ValueError(
            "no value met its tolerance, so there is nothing to draw; --keep-unconverged draws "
            "them all the same."
        )
    page_options = page_options or PageOptions()
    with paper_style(page_options.scale):
        page = Page(
            num_columns=1,
            num_rows=len(curves) + (along is not None) + 1,
            panel=(5.4, 1.5),
            title=title or "",
            note=_note(record, curves, keep_unconverged=keep_unconverged),
            left=0.65,
            panel_titles=0.18,
            row_gap=0.42,
            legend=_legend(record, curves, keep_unconverged=keep_unconverged),
        ).fitted(page_options)
        fig, axes = page.figure()
        for ax, curve in zip(axes, curves):
            _draw_values(ax, curve, keep_unconverged=keep_unconverged)
        if along is not None:
            _draw_critical(axes[len(curves)], along)
        _draw_loss(axes[-1], record)
        if not page_options.linear:
            _set_scales(axes)
        low, high = int(record.steps[0]), int(record.steps[-1])
        room = 0.015 * (high - low) or 0.5
        for ax in axes:
            ax.set_xlim(low - room, high + room)
        axes[-1].set_xlabel("optimizer steps")
        page.write(fig, axes)
    return fig


def _curves(record: MonitorRecord) -> list[_Curve]:
    made = [measurement for measurement in record.measurements if measurement.hessian is not None]
    thresholds = {name: np.full(len(made), np.nan) for name in ("hessian", "preconditioned")}
    formulas = dict.fromkeys(thresholds, "")
    for index, measurement in enumerate(made):
        if measurement.threshold is not None:
            thresholds[measurement.threshold.of][index] = measurement.threshold.value
            formulas[measurement.threshold.of] = measurement.threshold.formula
    what = _TITLES[str(record.settings.get("which", "LA"))]

    def curve(
        of: str,
        title: str,
        unit: str,
        values: np.ndarray,
        residuals: np.ndarray,
        converged: np.ndarray,
    ) -> _Curve:
        return _Curve(
            title=f"{what} of the {title}",
            unit=unit,
            label="sharpness",
            steps=record.steps,
            values=values,
            bounds=residuals * np.abs(values),
            converged=converged,
            thresholds=thresholds[of],
            formula=formulas[of],
        )

    curves = [
        curve(
            "hessian",
            "Hessian",
            "nats / parameter²",
            record.values,
            record.residuals,
            record.converged,
        )
    ]
    if np.isfinite(record.preconditioned_values).any():
        values, residuals = record.preconditioned_values, record.preconditioned_residuals
        title, unit = "preconditioned Hessian", "in the optimizer's units"
        curves.append(
            curve("preconditioned", title, unit, values, residuals, record.preconditioned_converged)
        )
    return curves


def _along_update(record: MonitorRecord) -> _AlongUpdate | None:
    """Return what was measured along the next step; None where no value is known."""
    values = record.critical_sharpness
    if not np.isfinite(values).any():
        return None
    return _AlongUpdate(record.steps, values, record.critical_ranges, 2 / record.rates)


def _legend(
    record: MonitorRecord, curves: Sequence[_Curve], *, keep_unconverged: bool
) -> tuple[str, ...]:
    labels = ["sharpness"]
    labels += ["further eigenvalues"] if curves[0].values.shape[1] > 1 else []
    labels += [curve.threshold_label for curve in curves if curve.formula]
    labels += [] if _along_update(record) is None else [_CRITICAL, _RATE_LIMIT]
    labels += (
        ["not converged"]
        if keep_unconverged and any(not curve.converged.all() for curve in curves)
        else []
    )
    labels += ["loss of the monitor's batch"]
    labels += ["training loss"] if np.isfinite(record.training_losses).any() else []
    return tuple(dict.fromkeys(labels))


def _note(record: MonitorRecord, curves: Sequence[_Curve], *, keep_unconverged: bool) -> str:
    residuals = [record.residuals, record.preconditioned_residuals][: len(curves)]
    bounds = np.concatenate(
        [table[curve.converged[:, 0], 0] for table, curve in zip(residuals, curves)]
    )
    sentences = [
        f"{_measurements(len(record.steps))} of one batch, {record.num_matvecs.mean():.1f} "
        "products each."
    ]
    if len(bounds):
        sentences.append(f"Residual bounds are at most {100 * bounds.max():.2g} % of the values.")
    unsure = sum(
        int((~curve.converged[:, 0] & np.isfinite(curve.values[:, 0])).sum()) for curve in curves
    )
    if unsure:
        sentences.append(
            f"{counted(unsure, 'value', 'values')} did not meet the tolerance: "
            f"{'shown as crosses' if keep_unconverged else 'left out'}."
        )
    if record.failures:
        sentences.append(f"{_measurements(len(record.failures))} failed.")
    if (along := _along_update(record)) is not None:
        sentences.append("Brackets of the critical sharpness are shaded.")
        unknown = int((~np.isfinite(along.values)).sum())
        sentences += [f"None is known for {_measurements(unknown)}."] if unknown else []
    thresholds = [
        measurement.threshold for measurement in record.measurements if measurement.threshold
    ]
    sources = dict.fromkeys(f"{threshold.formula}: {threshold.source}" for threshold in thresholds)
    return " ".join([*sentences, *(f"Threshold {source}." for source in sources)])


def _measurements(count: int) -> str:
    return counted(count, "measurement", "measurements")


def _draw_values(ax: "Axes", curve: _Curve, *, keep_unconverged: bool) -> None:
    markers: dict[str, Any] = (
        {"marker": "o", "markersize": 2.5} if len(curve.steps) <= _MAX_MARKERS else {}
    )
    certain = curve.converged & np.isfinite(curve.values)
    for number in range(curve.values.shape[1] - 1, -1, -1):
        style, label = (MEASURED, curve.label) if number == 0 else (_FURTHER, "further eigenvalues")
        values = np.where(certain[:, number], curve.values[:, number], np.nan)
        kept = np.isfinite(values)
        ax.plot(
            curve.steps[kept],
            values[kept],
            label=label,
            **style,
            **(markers if number == 0 else {}),
        )
    first = certain[:, 0]
    low, high = (curve.values[first, 0] + sign * curve.bounds[first, 0] for sign in (-1, 1))
    ax.fill_between(
        curve.steps[first], low, high, color=MEASURED["color"], alpha=0.25, linewidth=0, zorder=1
    )
    unsure = np.isfinite(curve.values[:, 0]) & ~curve.converged[:, 0]
    if keep_unconverged and unsure.any():
        ax.plot(curve.steps[unsure], curve.values[unsure, 0], label="not converged", **MISSING)
    if curve.formula:
        # Schedules are mostly smooth, so a line is nearer to the thresholds between measurements
        # than steps would be.
        ax.plot(curve.steps, curve.thresholds, label=curve.threshold_label, **PREDICTED)
    ax.set_title(curve.title)
    ax.set_ylabel(curve.unit)


def _draw_critical(ax: "Axes", along: _AlongUpdate) -> None:
    known = np.isfinite(along.values)
    few = len(along.steps) <= _MAX_MARKERS
    markers: dict[str, Any] = {"marker": "o", "markersize": 2.5} if few else {}
    ax.plot(along.steps[known], along.values[known], label=_CRITICAL, **MEASURED, **markers)
    low, high = along.ranges[known].T
    # A value has both ends of its bracket.
    ax.fill_between(
        along.steps[known], low, high, color=MEASURED["color"], alpha=0.25, linewidth=0, zorder=1
    )
    ax.plot(along.steps, along.limits, label=_RATE_LIMIT, **_STEP_LIMIT)
    ax.set_title("Critical sharpness along the next step")
    ax.set_ylabel("1 / learning rate")


def _draw_loss(ax: "Axes", record: MonitorRecord) -> None:
    if np.isfinite(record.training_losses).any():
        ax.plot(record.steps, record.training_losses, label="training loss", **_TRAINING)
    ax.plot(
        record.steps,
        record.losses,
        label="loss of the monitor's batch",
        color="black",
        linewidth=1.1,
        zorder=3,
    )
    ax.set_title("Loss")
    ax.set_ylabel("nats")


def _set_scales(axes: "Sequence[Axes]") -> None:
    for ax in axes:
        _set_scale(ax, np.concatenate([np.ravel(line.get_ydata()) for line in ax.lines]))


def _set_scale(ax: "Axes", drawn: Float[np.ndarray, " v"]) -> None:
    """A logarithmic axis where everything is positive and spans a wide range."""
    from matplotlib.ticker import FuncFormatter, LogFormatterMathtext, LogLocator, NullFormatter

    finite = drawn[np.isfinite(drawn)]
    if not (len(finite) and finite.min() > 0 and finite.max() > _WIDE * finite.min()):
        return
    ax.set_yscale("log")
    is_wide = finite.max() > 300 * finite.min()
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0,) if is_wide else (1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(
        LogFormatterMathtext() if is_wide else FuncFormatter(lambda value, _: f"{value:g}")
    )
    ax.yaxis.set_minor_formatter(NullFormatter())
