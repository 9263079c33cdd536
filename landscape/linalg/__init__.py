"""Algorithms on a symmetric operator; has never heard of a network."""

from landscape.linalg.lanczos import eigsh
from landscape.linalg.operator import DenseOperator, EigenPairs, Quadrature, RitzValues, SymmetricOperator, seeded
from landscape.linalg.power import power_iteration

__all__ = ["DenseOperator", "EigenPairs", "Quadrature", "RitzValues", "SymmetricOperator", "eigsh", "power_iteration", "seeded"]
