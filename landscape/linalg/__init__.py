"""Algorithms on a symmetric operator; has never heard of a network."""

from landscape.linalg.check import OperatorCheck, check_operator
from landscape.linalg.combine import Combination, Restriction, average, restricted, shifted
from landscape.linalg.lanczos import eigsh
from landscape.linalg.operator import DenseOperator, EigenPairs, Quadrature, RitzValues, SymmetricOperator, seeded
from landscape.linalg.power import power_iteration

__all__ = [
    "Combination",
    "DenseOperator",
    "EigenPairs",
    "OperatorCheck",
    "Quadrature",
    "Restriction",
    "RitzValues",
    "SymmetricOperator",
    "average",
    "check_operator",
    "eigsh",
    "power_iteration",
    "restricted",
    "seeded",
    "shifted",
]
