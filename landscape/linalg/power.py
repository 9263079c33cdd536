"""Power iteration with deflation, kept to repeat and assess published numbers.

Knows matrices, not networks: imports only torch, landscape.errors and landscape.linalg.
Shapes: n = dimension of the operator, k = wanted eigenpairs.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.errors import NumericalError
from landscape.linalg.operator import SymmetricOperator, check_num_pairs, seeded, together
from landscape.linalg.results import EigenPairs


@together
def power_iteration(
    A: SymmetricOperator,
    k: int,
    *,
    tol: float = 1e-3,
    max_iterations: int = 100,
    seed: int = 0,
    generator: torch.Generator | None = None,
) -> EigenPairs:
    """Compute the k eigenvalues of largest magnitude as PyHessian does.

    It computes them one after the other.

    Random normal start; before each product the vector is made orthogonal to the eigenvectors
    already known and divided by its norm + 1e-6; the iteration stops when the Rayleigh quotient
    changes by less than `tol` relative to its previous value, or after `max_iterations` products,
    and returns the *previous* quotient with the *last* product as its vector. That rule does not
    bound the error: two eigenvalues of nearly equal magnitude and opposite sign make both values
    arbitrary. The residual of each returned pair is therefore computed, at one more product each.

    Args:
        A: The operator.
        k: Number of pairs, 1 <= k <= n.
        tol: Relative change of the Rayleigh quotient at which an iteration stops; also the residual
            that `converged` asks for.
        max_iterations: Products per pair. Default 100, as in PyHessian's `eigenvalues(maxIter=100,
            tol=1e-3)`.
        seed: Seed of the starting vectors; ignored where `generator` is given.
        generator: CPU generator of the starting vectors.

    Returns:
        The pairs in the order of their computation. `converged` says whether the residual is at
        most `tol`, not that the iteration stopped; `num_matvecs` includes the k products for the
        residuals.

    Raises:
        ValueError: If A is no operator, or k, tol or max_iterations is out of range.
        NumericalError: If a product is not finite.

    Source: Yao, Gholami, Keutzer & Mahoney, PyHessian (2020), arXiv 1912.07145, algorithm 1 and
    version 0.1 of the package.

    Examples:
        >>> import torch, landscape
        >>> from landscape.linalg import DenseOperator
        >>> values = torch.tensor([5.0, 3.0, 1.0, -1.0, -2.0], dtype=torch.float64)
        >>> A = DenseOperator(torch.diag(values))
        >>> landscape.power_iteration(A, k=1, tol=1e-8).values.round(decimals=4)
        tensor([5.], dtype=torch.float64)
    """
    check_num_pairs(A, k)
    if not (math.isfinite(tol) and tol > 0):
        raise ValueError(f"tol must be finite and > 0, got {tol}.")
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1, got {max_iterations}.")
    generator = generator if generator is not None else seeded(seed)
    values: list[float] = []
    vectors: list[Tensor] = []
    products = 0
    for _ in range(k):
        value, vector, spent = _dominant_pair(A, vectors, tol, max_iterations, generator)
        values.append(value)
        vectors.append(vector)
        products += spent
    V = torch.stack(vectors, dim=1)
    residuals = torch.tensor(
        [_residual(A, value, vector) for value, vector in zip(values, vectors)], dtype=torch.float64
    )
    numbers = torch.tensor(values, dtype=torch.float64)
    return EigenPairs(numbers, V, residuals, residuals <= tol, products + k, checked=A.checked)


def _dominant_pair(
    A: SymmetricOperator,
    known: list[Tensor],
    tol: float,
    max_iterations: int,
    generator: torch.Generator,
) -> tuple[float, Float[Tensor, " n"], int]:
    """Compute one eigenpair of A deflated by the vectors known so far.

    Returns the eigenvalue, its vector, and the products spent.
    """
    v = A.random(generator)
    # 1e-6 is PyHessian's guard against a division by zero.
    v = v / (A.space.norm(v) + 1e-6)
    previous: float | None = None
    for iteration in range(1, max_iterations + 1):
        # Deflation: without it the iteration would return to the pairs already known.
        for u in known:
            v = v - float(A.space.inner(u[None], v)[0]) * u
        v = v / (A.space.norm(v) + 1e-6)
        product = A @ v
        # The Rayleigh quotient v^T A v of a unit vector.
        quotient = float(A.space.inner(v[None], product)[0])
        if not math.isfinite(quotient):
            raise NumericalError(
                f"product {iteration} of power iteration for eigenvalue {len(known) + 1} is not "
                "finite: its eigenvalues do not exist. Check the loss and the parameters for "
                "overflow, or use dtype float64."
            )
        v = product / (A.space.norm(product) + 1e-6)
        # PyHessian's stopping rule, which bounds no error; see `power_iteration`.
        if previous is not None and abs(previous - quotient) / (abs(previous) + 1e-6) < tol:
            break
        previous = quotient
    assert previous is not None
    return previous, v, iteration


def _residual(A: SymmetricOperator, value: float, vector: Tensor) -> float:
    size = A.space.norm(vector)
    # A v = 0: the zero vector that the last product left is exact for the value 0 alone.
    if size == 0:
        return 0.0 if value == 0 else math.inf
    remaining = A.space.norm(A @ vector - value * vector) / size + A.error_estimate
    if value == 0:
        return 0.0 if remaining == 0 else math.inf
    return remaining / abs(value)
