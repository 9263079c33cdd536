"""What is compared: numbers of one batch, each made from what the store holds of it, and where each comes from.

A metric is a function from a checkpoint's table to one number per batch, or to two whose sums are divided; NaN where a
record does not say it. Shapes: batch = records of a checkpoint, k = eigenvalues per record, m = Ritz pairs of a record.
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
_QUADRATURE = "Ubaru, Chen & Saad, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature, SIMAX 38 (2017)"
_GHORBANI = "Ghorbani, Krishnan & Xiao, An Investigation into Neural Net Optimization via Hessian Eigenvalue Density, 2019"
_MODERN_LOOK = "Andriushchenko et al., A Modern Look at the Relationship between Sharpness and Generalization, arXiv 2302.07011"
_SPHERICAL = "Lyu, Li & Arora, Understanding the Generalization Benefit of Normalization Layers: Sharpness Reduction, arXiv 2206.07085"


@dataclass(frozen=True, eq=False)
class Measured:
    """A checkpoint's table, and the settings of the protocol that say how to read it.

    Args:
        hessian: The protocol's: which end of the spectrum, the tolerance, the precision.
    """

    table: SpectraTable
    hessian: Mapping[str, Any]

    @property
    def finite(self) -> Bool[np.ndarray, " batch"]:
        """Records whose eigenvalues are numbers."""
        return np.isfinite(self.table.eigenvalues).all(axis=1)

    @property
    def certified(self) -> Bool[np.ndarray, " batch"]:
        """Records of which every eigenvalue met the tolerance."""
        return self.table.converged.all(axis=1) & self.finite

    @property
    def unknown(self) -> _Column:
        """A column of what no record says."""
        return np.full(self.table.num_records, math.nan)

    @property
    def ones(self) -> _Column:
        return np.ones(self.table.num_records)

    def end(self, name: str) -> _Column:
        """The outermost value at an end of the spectrum, "smallest" or "largest", where its residual met the tolerance."""
        values, residuals = getattr(self.table, name), getattr(self.table, f"{name}_residuals")
        if not values.shape[1]:
            return self.unknown
        return np.where(residuals[:, 0] <= self.hessian["tol"], values[:, 0], math.nan)

    @cached_property
    def probed(self) -> ProbedSpectrum | None:
        """What the quadratures of the records say of the whole spectrum; None where no record has any."""
        rows = self._probed_rows
        return (
            probed_spectrum(self.table, self.hessian["dtype"], rows.tolist()) if len(rows) else None
        )

    @cached_property
    def _probed_rows(self) -> Int[np.ndarray, " r"]:
        return probed_rows(self.table)

    def of_each(self, function: Callable[[ProbedSpectrum], np.ndarray]) -> _Column:
        """A number of each record's spectrum by its quadrature; NaN where it has none."""
        column = self.unknown
        if self.probed is not None:
            column[self._probed_rows] = function(self.probed)
        return column

    def of_all(
        self, function: Callable[[ProbedSpectrum], Estimate], rows: Int[np.ndarray, " r"]
    ) -> Estimate:
        """What these records together say of their spectra, with its error; each has a quadrature."""
        assert self.probed is not None, "rows without a quadrature say nothing of the spectrum"
        if len(rows) == len(self._probed_rows):
            return function(self.probed)
        return function(self.probed.of_operators(np.searchsorted(self._probed_rows, rows).tolist()))


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One way to say how sharp, or how far from convex, the loss is around a checkpoint.

    Args:
        label: Heading of a column.
        unit: Of the number; "1" for a share or a count.
        meaning: One sentence.
        source: Of the definition.
        of: The number of each batch; a pair of columns where the location is "ratio".
        location: What stands for all batches; see `statistics.Sample`.
        certified: Whether it is made of eigenvalues, so that records that did not converge are left out.
        estimate: Of all batches together with its errors, for what quadratures say; `of` are the parts that it is the mean, or
            the ratio, of.
        is_share: Whether it is written in percent.
        compared: Whether a difference between two series means something.
    """

    name: str
    label: str
    unit: str
    meaning: str
    source: str
    of: Callable[[Measured], Any] = field(repr=False, compare=False)
    location: Location = "median"
    certified: bool = False
    compared: bool = True
    estimate: Callable[[ProbedSpectrum], Estimate] | None = field(
        default=None, repr=False, compare=False
    )
    is_share: bool = False

    def columns(self, measured: Measured) -> tuple[_Column, _Column]:
        """Numerator and denominator of each batch."""
        found = self.of(measured)
        return found if self.location == "ratio" else (found, measured.ones)


def lambda_max(measured: Measured) -> _Column:
    """The largest eigenvalue by value.

    Of the k largest magnitudes the largest value is the largest of all if it is positive. Where all are negative, the upper
    end of the spectrum says it, if the record has that and its residual met the tolerance; otherwise nobody knows.
    """
    largest = measured.table.eigenvalues.max(axis=1)
    which = measured.hessian["which"]
    known = largest > 0 if which == "LM" else np.full(len(largest), which == "LA")
    return np.where(known, largest, measured.end("largest"))


def _lambda_min(measured: Measured) -> _Column:
    return (
        measured.table.eigenvalues.min(axis=1)
        if measured.hessian["which"] == "SA"
        else measured.end("smallest")
    )


def _magnitude(measured: Measured) -> _Column:
    found = np.abs(measured.table.eigenvalues).max(axis=1)
    return found if measured.hessian["which"] == "LM" else measured.unknown


def _top_k(measured: Measured) -> Float[np.ndarray, "batch k"]:
    """The k largest magnitudes; NaN where another end of the spectrum was asked for."""
    values = measured.table.eigenvalues
    return values if measured.hessian["which"] == "LM" else np.full(values.shape, math.nan)


def _negative_share_of_top(measured: Measured) -> _Column:
    top = _top_k(measured)
    return np.where(np.isnan(top), math.nan, top < 0).mean(axis=1)


def _positive_part_of_top(measured: Measured) -> tuple[_Column, _Column]:
    top = _top_k(measured)
    positive = np.where(np.isnan(top), math.nan, top > 0)
    return (top * positive).sum(axis=1), positive.sum(axis=1)


def _num_negative(measured: Measured) -> _Column:
    counts = measured.table.num_negative
    return np.where(counts < 0, math.nan, counts)


def _negative_mass(measured: Measured) -> tuple[_Column, _Column]:
    return (
        measured.of_each(lambda probed: probed.negative_mass_of_each()[0]),
        measured.of_each(lambda probed: probed.negative_mass_of_each()[1]),
    )


def _per_loss(measured: Measured) -> _Column:
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
        meaning="most negative eigenvalue; known where the record holds the lower end of the spectrum",
        source="the definition of convexity",
        of=_lambda_min,
    ),
    Metric(
        name="nep",
        label="NEP",
        unit="1",
        location="mean",
        certified=True,
        meaning="share of negative values among the k eigenvalues of largest magnitude, all batches pooled",
        source=f"negative eigenvalue proportion of {_PARK_KIM}",
        of=_negative_share_of_top,
    ),
    Metric(
        name="ape",
        label="APE",
        unit=UNIT,
        location="ratio",
        certified=True,
        meaning="mean of the positive values among the k eigenvalues of largest magnitude, all batches pooled",
        source=f"average of positive eigenvalues of {_PARK_KIM}",
        of=_positive_part_of_top,
    ),
    Metric(
        name="num_negative_at_least",
        label="negative (at least)",
        unit="1",
        compared=False,
        meaning="eigenvalues that are certainly negative, a lower bound: more products would prove more, so bounds of two "
        "series say nothing about their difference",
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
        meaning="estimated share of negative values among all eigenvalues: the number of them per parameter",
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
        meaning="estimated sum of |lambda| over negative eigenvalues as a share of the sum over all",
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
        meaning="estimated mean eigenvalue: twice the mean rise of the loss, per parameter, when all change independently with "
        "variance 1",
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
        meaning="largest eigenvalue per unit of loss of the same batch: a loss that is multiplied by a number keeps it",
        source="the Hessian is linear in the loss",
        of=_per_loss,
    ),
    Metric(
        name="lambda_max_equal_rms",
        label="largest x parameters",
        unit="nat",
        certified=True,
        meaning="largest eigenvalue times the number of parameters: twice the rise of the loss along the sharpest direction "
        "when the root mean square change of a parameter is 1, so that towers of different size take equal steps",
        source="Taylor's formula with |step|^2 = number of parameters",
        of=lambda measured: lambda_max(measured) * measured.table.num_params,
    ),
    Metric(
        name="spherical_sharpness",
        label="spherical sharpness",
        unit="nat",
        certified=True,
        meaning="largest eigenvalue times the squared norm of the parameters: it stays when all of them are multiplied by a "
        "number that does not change the loss",
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
# What the sentences to quote are about: which is sharper, and which is less convex.
QUOTED = ("lambda_max", "nep")
# Versions of a metric that one of its freedoms does not change, each with words that a sentence can go on with.
NORMALISED = {
    "lambda_max": {
        "lambda_max_per_loss": "per unit of loss",
        "lambda_max_equal_rms": "for equal changes per parameter",
        "spherical_sharpness": "relative to the norm of the parameters",
    }
}
# What a terminal table has room for.
HEADLINES = (
    "lambda_max",
    "nep",
    "ape",
    "lambda_max_per_loss",
    "spherical_sharpness",
    "trace_per_parameter",
)
