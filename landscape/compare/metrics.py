"""Metrics that are compared: numbers of one batch, each with its source.

A metric is a function from a checkpoint's table to one number per batch, or to two whose sums are
divided. It is NaN where a record does not contain it.

Shapes: batch = records of a checkpoint, k = eigenvalues per record, m = Ritz pairs of a record.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from landscape.compare.statistics import Location
from landscape.compare.whole_spectrum import probed_rows, probed_spectrum
from landscape.linalg import Estimate, ProbedSpectrum
from landscape.store import UNIT, SpectraTable

_Column = Float[np.ndarray, " batch"]
_PARK_KIM = "Park & Kim, How Do Vision Transformers Work?, ICLR 2022, arXiv 2202.06709"
_CLIP_MAMBA = "Huang et al., CLIP-Mamba, arXiv 2404.19394"
_QUADRATURE = (
    "Ubaru, Chen & Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, SIMAX 38 "
    "(2017)"
)
_GHORBANI = (
    "Ghorbani, Krishnan & Xiao, An Investigation into Neural Net Optimization via Hessian "
    "Eigenvalue Density, 2019"
)
_MODERN_LOOK = (
    "Andriushchenko et al., A Modern Look at the Relationship between Sharpness and "
    "Generalization, arXiv 2302.07011"
)
_SPHERICAL = (
    "Lyu, Li & Arora, Understanding the Generalization Benefit of Normalization Layers: Sharpness "
    "Reduction, arXiv 2206.07085"
)


@dataclass(frozen=True, eq=False)
class CheckpointMetrics:
    """Table of a checkpoint, with the protocol settings needed to read it.

    Args:
        table: Records of the checkpoint.
        hessian: Settings of the protocol: end of the spectrum, tolerance, precision.
    """

    table: SpectraTable
    hessian: Mapping[str, Any]

    @property
    def finite(self) -> Bool[np.ndarray, " batch"]:
        """Mark records whose eigenvalues are all finite."""
        return np.isfinite(self.table.eigenvalues).all(axis=1)

    @property
    def certified(self) -> Bool[np.ndarray, " batch"]:
        """Mark records of which every eigenvalue met the tolerance."""
        return self.table.converged.all(axis=1) & self.finite

    @property
    def unknown(self) -> _Column:
        """Return a column of NaN, for what no record contains."""
        return np.full(self.table.num_records, math.nan)

    @property
    def ones(self) -> _Column:
        return np.ones(self.table.num_records)

    def end(self, name: str) -> _Column:
        """Return the outermost value at an end of the spectrum, per record.

        NaN where its residual did not meet the tolerance.

        Args:
            name: "smallest" or "largest".
        """
        values, residuals = getattr(self.table, name), getattr(self.table, f"{name}_residuals")
        if not values.shape[1]:
            return self.unknown
        return np.where(residuals[:, 0] <= self.hessian["tol"], values[:, 0], math.nan)

    @cached_property
    def probed(self) -> ProbedSpectrum | None:
        """Estimate the whole spectrum from the quadratures of the records.

        None where no record has a quadrature.
        """
        rows = self._probed_rows
        return (
            probed_spectrum(self.table, self.hessian["dtype"], rows.tolist()) if len(rows) else None
        )

    @cached_property
    def _probed_rows(self) -> Int[np.ndarray, " r"]:
        return probed_rows(self.table)

    def of_each(self, function: Callable[[ProbedSpectrum], np.ndarray]) -> _Column:
        """Apply a function to the spectrum of each record.

        NaN where the record has no quadrature.
        """
        column = self.unknown
        if self.probed is not None:
            column[self._probed_rows] = function(self.probed)
        return column

    def of_all(
        self, function: Callable[[ProbedSpectrum], Estimate], rows: Int[np.ndarray, " r"]
    ) -> Estimate:
        """Estimate a number from the spectra of these records together.

        The estimate has an error. Each record needs a quadrature.
        """
        assert self.probed is not None, "rows without a quadrature say nothing of the spectrum"
        if len(rows) == len(self._probed_rows):
            return function(self.probed)
        return function(self.probed.of_operators(np.searchsorted(self._probed_rows, rows).tolist()))


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One measure of sharpness, or of distance from convexity, at a checkpoint.

    Args:
        label: Heading of a column.
        unit: Unit of the number; "1" for a share or a count.
        meaning: Its meaning in one sentence.
        source: Source of the definition.
        of: Function that gives the number of each batch; a pair of columns where the location is
            "ratio".
        location: Statistic over all batches; see `statistics.Sample`.
        certified: Whether it is made of eigenvalues, so that records that did not converge are left
            out.
        estimate: Function that estimates the number over all batches, with its errors, from
            quadratures; `of` then gives the parts of that mean or ratio.
        is_share: Whether it is written in percent.
        compared: Whether a difference between two series means something.
    """

    name: str
    label: str
    unit: str
    meaning: str
    source: str
    of: Callable[[CheckpointMetrics], Any] = field(repr=False, compare=False)
    location: Location = "median"
    certified: bool = False
    compared: bool = True
    estimate: Callable[[ProbedSpectrum], Estimate] | None = field(
        default=None, repr=False, compare=False
    )
    is_share: bool = False

    def columns(self, measured: CheckpointMetrics) -> tuple[_Column, _Column]:
        """Return the numerator and the denominator of each batch."""
        values = self.of(measured)
        return values if self.location == "ratio" else (values, measured.ones)


def lambda_max(measured: CheckpointMetrics) -> _Column:
    """Return the largest eigenvalue by value, per record.

    Of the k largest magnitudes, the largest value is the largest eigenvalue if it is positive.
    Where all are negative, the upper end of the spectrum gives it, if the record has that end and
    its residual met the tolerance. Otherwise it is unknown.
    """
    largest = measured.table.eigenvalues.max(axis=1)
    which = measured.hessian["which"]
    known = largest > 0 if which == "LM" else np.full(len(largest), which == "LA")
    return np.where(known, largest, measured.end("largest"))


def _lambda_min(measured: CheckpointMetrics) -> _Column:
    return (
        measured.table.eigenvalues.min(axis=1)
        if measured.hessian["which"] == "SA"
        else measured.end("smallest")
    )


def _magnitude(measured: CheckpointMetrics) -> _Column:
    largest = np.abs(measured.table.eigenvalues).max(axis=1)
    return largest if measured.hessian["which"] == "LM" else measured.unknown


def _top_k(measured: CheckpointMetrics) -> Float[np.ndarray, "batch k"]:
    """Return the k largest magnitudes.

    NaN where the run measured another end of the spectrum.
    """
    values = measured.table.eigenvalues
    return values if measured.hessian["which"] == "LM" else np.full(values.shape, math.nan)


def _negative_share_of_top(measured: CheckpointMetrics) -> _Column:
    top = _top_k(measured)
    return np.where(np.isnan(top), math.nan, top < 0).mean(axis=1)


def _positive_part_of_top(measured: CheckpointMetrics) -> tuple[_Column, _Column]:
    top = _top_k(measured)
    positive = np.where(np.isnan(top), math.nan, top > 0)
    return (top * positive).sum(axis=1), positive.sum(axis=1)


def _num_negative(measured: CheckpointMetrics) -> _Column:
    counts = measured.table.num_negative
    return np.where(counts < 0, math.nan, counts)


def _negative_mass(measured: CheckpointMetrics) -> tuple[_Column, _Column]:
    return (
        measured.of_each(lambda probed: probed.negative_mass_of_each()[0]),
        measured.of_each(lambda probed: probed.negative_mass_of_each()[1]),
    )


def _per_loss(measured: CheckpointMetrics) -> _Column:
    loss = measured.table.loss
    return np.divide(lambda_max(measured), loss, out=measured.unknown, where=loss > 0)


_ALL = (
    Metric(
        name="lambda_max",
        label="largest eigenvalue",
        unit=UNIT,
        certified=True,
        meaning="largest eigenvalue of the Hessian by value: the sharpest direction",
        source=_CLIP_MAMBA,
        of=lambda_max,
    ),
    Metric(
        name="magnitude",
        label="largest magnitude",
        unit=UNIT,
        certified=True,
        meaning="largest magnitude of an eigenvalue, whatever its sign: what power iteration finds",
        source=_PARK_KIM,
        of=_magnitude,
    ),
    Metric(
        name="lambda_min",
        label="smallest eigenvalue",
        unit=UNIT,
        certified=True,
        meaning=(
            "most negative eigenvalue; known where the record holds the lower end of the spectrum"
        ),
        source="the definition of convexity",
        of=_lambda_min,
    ),
    Metric(
        name="nep",
        label="NEP",
        unit="1",
        location="mean",
        certified=True,
        meaning=(
            "share of negative values among the k eigenvalues of largest magnitude, all batches "
            "pooled"
        ),
        source=f"negative eigenvalue proportion of {_PARK_KIM}",
        of=_negative_share_of_top,
    ),
    Metric(
        name="ape",
        label="APE",
        unit=UNIT,
        location="ratio",
        certified=True,
        meaning=(
            "mean of the positive values among the k eigenvalues of largest magnitude, all batches "
            "pooled"
        ),
        source=f"average of positive eigenvalues of {_PARK_KIM}",
        of=_positive_part_of_top,
    ),
    Metric(
        name="num_negative_at_least",
        label="negative (at least)",
        unit="1",
        compared=False,
        meaning=(
            "eigenvalues that are certainly negative, a lower bound: more products would prove "
            "more, so bounds of two series say nothing about their difference"
        ),
        source="Cauchy interlacing; Parlett, The Symmetric Eigenvalue Problem (1998), section 10.1",
        of=_num_negative,
    ),
    Metric(
        name="num_negative_estimate",
        label="negative (about)",
        unit="1",
        location="mean",
        meaning="estimated number of negative eigenvalues, by the quadrature of the Krylov space",
        source=_QUADRATURE,
        of=lambda measured: measured.of_each(ProbedSpectrum.num_negative_of_each),
        estimate=ProbedSpectrum.num_negative,
    ),
    Metric(
        name="negative_share",
        label="negative share",
        unit="1",
        location="mean",
        meaning=(
            "estimated share of negative values among all eigenvalues: the number of them per "
            "parameter"
        ),
        source=_QUADRATURE,
        of=lambda measured: (
            measured.of_each(ProbedSpectrum.num_negative_of_each) / measured.table.num_params
        ),
        estimate=ProbedSpectrum.negative_share,
        is_share=True,
    ),
    Metric(
        name="negative_mass",
        label="negative mass",
        unit="1",
        location="ratio",
        meaning=(
            "estimated sum of |lambda| over negative eigenvalues as a share of the sum over all"
        ),
        source=_GHORBANI,
        of=_negative_mass,
        estimate=ProbedSpectrum.negative_mass,
        is_share=True,
    ),
    Metric(
        name="trace",
        label="trace",
        unit=UNIT,
        location="mean",
        meaning="estimated sum of all eigenvalues",
        source=_QUADRATURE,
        of=lambda measured: measured.of_each(ProbedSpectrum.trace_of_each),
        estimate=ProbedSpectrum.trace,
    ),
    Metric(
        name="trace_per_parameter",
        label="trace / parameter",
        unit=UNIT,
        location="mean",
        meaning=(
            "estimated mean eigenvalue: twice the mean rise of the loss, per parameter, when all "
            "change independently with variance 1"
        ),
        source=f"average-case sharpness of {_MODERN_LOOK}",
        of=lambda measured: (
            measured.of_each(ProbedSpectrum.trace_of_each) / measured.table.num_params
        ),
        estimate=ProbedSpectrum.trace_per_parameter,
    ),
    Metric(
        name="lambda_max_per_loss",
        label="largest / loss",
        unit="per squared parameter",
        certified=True,
        meaning=(
            "largest eigenvalue per unit of loss of the same batch: a loss that is multiplied by a "
            "number keeps it"
        ),
        source="the Hessian is linear in the loss",
        of=_per_loss,
    ),
    Metric(
        name="lambda_max_equal_rms",
        label="largest x parameters",
        unit="nat",
        certified=True,
        meaning=(
            "largest eigenvalue times the number of parameters: twice the rise of the loss along "
            "the sharpest direction when the root mean square change of a parameter is 1, so that "
            "towers of different size take equal steps"
        ),
        source="Taylor's formula with |step|^2 = number of parameters",
        of=lambda measured: lambda_max(measured) * measured.table.num_params,
    ),
    Metric(
        name="spherical_sharpness",
        label="spherical sharpness",
        unit="nat",
        certified=True,
        meaning=(
            "largest eigenvalue times the squared norm of the parameters: it stays when all of "
            "them are multiplied by a number that does not change the loss"
        ),
        source=_SPHERICAL,
        of=lambda measured: lambda_max(measured) * measured.table.parameter_norm**2,
    ),
    Metric(
        name="loss",
        label="loss",
        unit="nat",
        location="mean",
        meaning="loss of the same batches",
        source="the definition",
        of=lambda measured: measured.table.loss,
    ),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
# Metrics of the sentences to quote: which series is sharper, and which is less convex.
QUOTED = ("lambda_max", "nep")
# Versions of a metric that are invariant under one rescaling, each with words for a sentence.
NORMALISED = {
    "lambda_max": {
        "lambda_max_per_loss": "per unit of loss",
        "lambda_max_equal_rms": "for equal changes per parameter",
        "spherical_sharpness": "relative to the norm of the parameters",
    }
}
# Metrics that fit into a terminal table.
HEADLINES = (
    "lambda_max",
    "nep",
    "ape",
    "lambda_max_per_loss",
    "spherical_sharpness",
    "trace_per_parameter",
)
