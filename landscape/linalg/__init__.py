"""Algorithms on a symmetric operator; has never heard of a network."""

from landscape.linalg.check import OperatorCheck, check_operator
from landscape.linalg.combine import Combination, Restriction, average, restricted, shifted
from landscape.linalg.estimate import Estimate
from landscape.linalg.lanczos import eigsh
from landscape.linalg.operator import DenseOperator, EigenPairs, Quadrature, RitzValues, SymmetricOperator, seeded
from landscape.linalg.power import power_iteration
from landscape.linalg.probing import dense_spectrum, density, trace
from landscape.linalg.stochastic import NegativeCounts, SpectralDensity

__all__ = [
    "Combination",
    "DenseOperator",
    "EigenPairs",
    "Estimate",
    "NegativeCounts",
    "OperatorCheck",
    "Quadrature",
    "Restriction",
    "RitzValues",
    "SpectralDensity",
    "SymmetricOperator",
    "average",
    "check_operator",
    "dense_spectrum",
    "density",
    "eigsh",
    "power_iteration",
    "restricted",
    "seeded",
    "shifted",
    "trace",
]
