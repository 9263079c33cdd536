"""Probes of random signs, and estimates of ratios from them.

Knows matrices, not networks: imports only torch, numpy and landscape.linalg.
Shapes: n = dimension of the operator, q = vectors, m = number of probes, s = sums that are
estimated.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from landscape.errors import NumericalError
from landscape.linalg.estimate import Estimate, student_widening
from landscape.linalg.operator import SymmetricOperator
from landscape.linalg.vectors import all_finite

# Fewest random vectors from which an error is estimated. A sum of products of random signs, such as
# an entry of z * (A z), takes each of its values with probability 1/2 at most, or is constant. So m
# probes agree by chance with a probability of at most 2^(1 - m): for 10 that is below the 0.27 % by
# which three standard deviations miss.
MIN_PROBES = 10
# Largest entry of Q^T Q - I of vectors that count as orthonormal, as a multiple of the root of the
# rounding unit.
_ORTHONORMAL = 10.0


@dataclass(frozen=True)
class SignProbes:
    """Vectors z with E[z z^T] = I: random signs, or all unit vectors times the root of n.

    The mean over the unit vectors of what is quadratic in z is its expectation, so that it is
    exact.

    Attributes:
        operator: Operator whose vectors are drawn.
        count: Number of vectors.
        are_exact: Whether they are the unit vectors.
        generator: CPU generator of the signs.
    """

    operator: SymmetricOperator
    count: int
    are_exact: bool
    generator: torch.Generator

    def __iter__(self) -> Iterator[Float[Tensor, " n"]]:
        A = self.operator
        for number in range(self.count):
            if self.are_exact:
                z = torch.zeros(A.n, dtype=torch.float64, device=A.device)
                z[number] = math.sqrt(A.n)
            else:
                # Signs of the numbers that every device and type gets alike.
                z = A.space.random(self.generator).to(A.device)
                z = torch.where(z < 0, -1.0, 1.0).double()
            yield z

    def product(self, A: SymmetricOperator, z: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Multiply in the operator's type, and return float64.

        Raises:
            NumericalError: If the product is not finite.
        """
        product = A @ z.to(A.dtype)
        if not all_finite(product):
            raise NumericalError(
                f"the product of the {type(A).__name__} with a random probe is not finite, so "
                "nothing can be estimated from it. Check the loss and the parameters for overflow, "
                "or use dtype float64."
            )
        return product.double()


def sign_probes(A: SymmetricOperator, num_probes: int, generator: torch.Generator) -> SignProbes:
    """Choose probes: unit vectors where there may be n or more.

    Raises:
        ValueError: If there are fewer than `MIN_PROBES` and fewer than n.
    """
    check_num_probes(num_probes, A.n)
    exact = num_probes >= A.n
    return SignProbes(A, A.n if exact else num_probes, exact, generator)


def check_num_probes(num_probes: int, n: int) -> None:
    """Refuse too few random vectors in n dimensions to tell an error.

    Raises:
        ValueError: If there are fewer than `MIN_PROBES` and fewer than n.
    """
    if num_probes < min(MIN_PROBES, n):
        raise ValueError(
            f"num_probes must be at least {min(MIN_PROBES, n)}, got {num_probes}: fewer random "
            "vectors may agree by chance, so their spread tells no error. Spend more products."
        )


def checked_basis(
    A: SymmetricOperator, vectors: Float[Tensor, "n q"] | None
) -> Float[Tensor, "n q"]:
    """Return orthonormal vectors in float64; none by default.

    Raises:
        ValueError: If they have another length than the operator's, or are not orthonormal.
    """
    if vectors is None:
        return torch.zeros(A.n, 0, dtype=torch.float64, device=A.device)
    if vectors.ndim != 2 or len(vectors) != A.n:
        raise ValueError(
            f"deflate must be vectors of {A.n} entries as columns, got shape "
            f"{tuple(vectors.shape)}. Pass the vectors of landscape.eigsh(A, k)."
        )
    Q = vectors.to(A.device, torch.float64)
    defect = (Q.T @ Q - torch.eye(Q.shape[1], dtype=Q.dtype, device=Q.device)).abs()
    limit = _ORTHONORMAL * math.sqrt(torch.finfo(vectors.dtype).eps)
    if Q.shape[1] and not float(defect.max()) <= limit:
        raise ValueError(
            f"deflate must be orthonormal, got inner products that are off by "
            f"{float(defect.max()):.1e}, so parts would count twice. Take torch.linalg.qr of it."
        )
    # What is left of that defect would count twice as well.
    return torch.linalg.qr(Q)[0] if Q.shape[1] else Q


def jackknife(
    samples: Float[np.ndarray, "m s"],
    statistic: Callable[[Float[np.ndarray, "... s"]], Float[np.ndarray, "..."]],
    *,
    known: Float[np.ndarray, " s"],
    rounding: float,
    exact: bool,
) -> Estimate:
    """Estimate a function of sums from samples, with its standard error.

    Args:
        samples: Independent unbiased samples of the part of the sums that is not known.
        statistic: The function; of an array whose last axis are the sums.
        known: Part of the sums that is known.
        rounding: Least error, by rounding of the products behind the sums.
        exact: Whether the mean of the samples is their expectation.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), section 11.2: the samples
    are left out one at a time; widened by Student's t for few.
    """
    count = len(samples)
    value = float(statistic(known + samples.mean(axis=0)))
    if exact or count < 2:
        return Estimate(value, 0.0, None, value, value)
    without = statistic(known + (samples.sum(axis=0) - samples) / (count - 1))
    # Leaving out sample i moves a mean by (mean - x_i) / (m - 1). So for a mean this is the usual
    # sum of squared deviations over m (m - 1).
    variance = (count - 1) / count * float(np.square(without - without.mean()).sum())
    error = math.sqrt(variance) * student_widening(count - 1)
    return Estimate(value, max(error, rounding), None, value, value)
