"""What experiments/opaque_kernel.py records of every batch, and its table and figure."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Spectrum:
    """The top eigenvalues of one operator by one solver, nats per squared parameter, largest
    magnitude first.

    Attributes:
        residual: The largest relative residual of them, under the operator itself.
    """

    operator: str
    solver: str
    values: tuple[float, ...]
    residual: float
    num_products: int


@dataclass(frozen=True)
class Verdict:
    """How far an operator is from a Hessian, in float64.

    Attributes:
        asymmetry: |B - B^T| / |B| of the forms B = <u_i, H u_j>, i != j, of random directions: an
            estimate of |H - H^T| / |H| in the Frobenius norm.
        product_error: |H U - D| / |D| for the same directions U and differences D of gradients: an
            estimate of the operator's relative error in the Frobenius norm.
    """

    asymmetry: float
    product_error: float


@dataclass(frozen=True)
class Row:
    """All that is measured of one batch at one epoch.

    Attributes:
        loss: In nats.
        gradient_error: Relative difference of the stand-in's gradient and the right one, in
            float64.
        without_graph: Parameters whose gradient has no graph under the stand-in.
        verdicts: By operator.
    """

    epoch: int
    batch: int
    loss: float
    gradient_error: float
    without_graph: tuple[str, ...]
    verdicts: dict[str, Verdict]
    spectra: tuple[Spectrum, ...]

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "Row":
        verdicts = {name: Verdict(**verdict) for name, verdict in stored["verdicts"].items()}
        spectra = tuple(
            Spectrum(**{**one, "values": tuple(one["values"])}) for one in stored["spectra"]
        )
        return cls(
            **{
                **stored,
                "verdicts": verdicts,
                "spectra": spectra,
                "without_graph": tuple(stored["without_graph"]),
            }
        )


@dataclass(frozen=True)
class Summary:
    """One operator and one solver at one epoch, over all batches.

    Attributes:
        num_negative, num_values: Negative eigenvalues among the top five of every batch, and how
        many that are in all.
        mean_positive: Mean of the positive ones, nats per squared parameter; None if there is none.
        largest: Largest magnitude, likewise.
        residual, asymmetry, product_error: Medians over the batches.
    """

    epoch: int
    operator: str
    solver: str
    loss: float
    num_negative: int
    num_values: int
    mean_positive: float | None
    largest: float
    residual: float
    asymmetry: float
    product_error: float


def summarise(rows: Sequence[Row]) -> list[Summary]:
    return [
        _summary([row for row in rows if row.epoch == epoch], arm)
        for epoch in sorted({row.epoch for row in rows})
        for arm in range(len(rows[0].spectra))
    ]


def _summary(rows: Sequence[Row], arm: int) -> Summary:
    found = [row.spectra[arm] for row in rows]
    verdicts = [row.verdicts[found[0].operator] for row in rows]
    values = [value for one in found for value in one.values]
    positive = [value for value in values if value > 0]
    return Summary(
        epoch=rows[0].epoch,
        operator=found[0].operator,
        solver=found[0].solver,
        loss=statistics.mean(row.loss for row in rows),
        num_negative=sum(value < 0 for value in values),
        num_values=len(values),
        mean_positive=statistics.mean(positive) if positive else None,
        largest=max(map(abs, values)),
        residual=statistics.median(one.residual for one in found),
        asymmetry=statistics.median(verdict.asymmetry for verdict in verdicts),
        product_error=statistics.median(verdict.product_error for verdict in verdicts),
    )


def print_table(rows: Sequence[Row], *, title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    columns = (
        "epoch",
        "loss",
        "operator",
        "solver",
        "negative",
        "mean > 0",
        "largest",
        "residual",
        "asymmetry",
        "error",
    )
    for name in columns:
        table.add_column(name, justify="left" if name in ("operator", "solver") else "right")
    for one in summarise(rows):
        first = one.solver == "eigsh"
        table.add_row(
            str(one.epoch) if first else "",
            f"{one.loss:.3f}" if first else "",
            one.operator,
            one.solver,
            f"{one.num_negative} of {one.num_values}",
            "-" if one.mean_positive is None else f"{one.mean_positive:.1f}",
            f"{one.largest:.1f}",
            f"{one.residual:.0e}",
            f"{one.asymmetry:.0e}",
            f"{one.product_error:.0e}",
            end_section=one.operator == "incomplete",
        )
    # A table in a file needs no terminal's width.
    Console(width=120).print(table)
    print(
        "residual: of the worst pair. asymmetry, error (against differences): of the operator, "
        "float64. Medians of batches."
    )


# Okabe and Ito's blue, sky blue and vermilion; the markers tell them apart without colour.
_LOOKS: dict[tuple[str, str], dict[str, Any]] = {
    ("right", "eigsh"): {"color": "#0072B2", "marker": "o", "label": "right, eigsh"},
    ("right", "power iteration"): {
        "color": "#56B4E9",
        "marker": "s",
        "label": "right, power iteration",
    },
    ("incomplete", "power iteration"): {
        "color": "#D55E00",
        "marker": "^",
        "label": "incomplete, power iteration",
    },
}


def draw(rows: Sequence[Row]) -> "Figure":
    """Eigenvalues on the left, what is wrong with the operators on the right, both by epoch."""
    from matplotlib.figure import Figure

    from landscape.figures.style import paper_style

    with paper_style():
        fig = Figure(figsize=(7, 2.9), layout="constrained")
        left, right = fig.subplots(1, 2, width_ratios=(1.7, 1))
        epochs = sorted({row.epoch for row in rows})
        for axes in (left, right):
            axes.set_xticks(range(len(epochs)), [str(epoch) for epoch in epochs])
            axes.set_xlim(-0.5, len(epochs) - 0.5)
            axes.set_xlabel("Epoch")
        draw_eigenvalues(left, rows, epochs)
        draw_errors(right, rows, epochs)
    return fig


def draw_eigenvalues(axes: "Axes", rows: Sequence[Row], epochs: Sequence[int]) -> None:
    """Every eigenvalue a marker; within an arm, one column of them per batch."""
    num_batches = max(row.batch for row in rows) + 1
    for arm, look in enumerate(_LOOKS.values()):
        x: list[float] = []
        y: list[float] = []
        for row in rows:
            values = row.spectra[arm].values
            shift = (arm - 1) * 0.29 + (row.batch - (num_batches - 1) / 2) * 0.055
            x += [epochs.index(row.epoch) + shift] * len(values)
            y += values
        axes.plot(x, y, linestyle="", markersize=2.8, markeredgewidth=0, **look)
    mark_eigenvalues(axes, [value for row in rows for one in row.spectra for value in one.values])
    axes.axhline(0, color="0.4", linewidth=0.6, zorder=0)
    for between in range(1, len(epochs)):
        axes.axvline(between - 0.5, color="0.85", linewidth=0.6, zorder=0)
    axes.set_ylabel("Eigenvalue (nats per squared parameter)")
    axes.set_title(
        f"a  Top {len(rows[0].spectra[0].values)} of the same {num_batches} batches", pad=18
    )
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 0.98), "ncols": 3}
    axes.legend(
        **place, fontsize=6.5, handlelength=1, handletextpad=0.2, columnspacing=1, borderpad=0
    )


def mark_eigenvalues(axes: "Axes", values: Sequence[float]) -> None:
    """The axis of the other figures: linear about zero, logarithmic beyond, the same on both
    sides.
    """
    import numpy as np

    from landscape.figures.asinh_axis import AsinhAxis

    axis = AsinhAxis.fit(np.array(values))
    low, high = 1.5 * min([*values, -axis.linear_width]), 1.5 * max([*values, axis.linear_width])
    ticks = axis.ticks(low, high, gap=0.5)
    axes.set_yscale("asinh", linear_width=axis.linear_width)
    axes.set_ylim(low, high)
    axes.set_yticks(ticks.major, ticks.labels)
    axes.set_yticks(ticks.minor, minor=True)


def draw_errors(axes: "Axes", rows: Sequence[Row], epochs: Sequence[int]) -> None:
    """Medians over the batches."""
    found = [one for one in summarise(rows) if one.solver == "power iteration"]
    names: dict[str, tuple[str, Any, str]] = {
        "product_error": ("error of a product", "-", "o"),
        "asymmetry": ("asymmetry", (0, (4, 1.3)), "D"),
    }
    for operator, color in (("right", "#0072B2"), ("incomplete", "#D55E00")):
        for name, (label, dashes, marker) in names.items():
            y = [getattr(one, name) for one in found if one.operator == operator]
            axes.plot(
                range(len(epochs)),
                y,
                color=color,
                linestyle=dashes,
                marker=marker,
                markersize=3,
                label=f"{operator}: {label}",
            )
    axes.set_yscale("log")
    axes.set_ylabel("Relative size")
    axes.set_title("b  Is it a Hessian?", pad=18)
    axes.legend(loc="center", bbox_to_anchor=(0.5, 0.56), fontsize=6.5, handlelength=3, borderpad=0)
