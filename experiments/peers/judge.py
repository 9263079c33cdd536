"""What is true about the eigenpairs of an operator, from outside the solvers that are compared.

Values come from ARPACK in float64, residuals from products in float64, the smallest possible number
of products from a textbook Lanczos in float64.
Shapes: n = size of the operator, k = number of eigenpairs, m = dimension of a Krylov space.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from scipy.sparse.linalg import LinearOperator
from scipy.sparse.linalg import eigsh as arpack
from torch import Tensor

from landscape.linalg import SymmetricOperator


def arpack_values(
    A: SymmetricOperator, k: int, *, tol: float = 1e-10, seed: int = 0
) -> tuple[Float[np.ndarray, " k"], int]:
    """The k eigenvalues of A largest in magnitude, largest first, and the products that ARPACK
    took.
    """
    products = 0

    def multiply(vector: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        nonlocal products
        products += 1
        return (
            (A @ torch.from_numpy(np.ascontiguousarray(vector).reshape(-1)).to(A.dtype))
            .double()
            .numpy()
        )

    start = np.random.default_rng(seed).standard_normal(A.n)
    operator = LinearOperator((A.n, A.n), matvec=multiply, dtype=np.float64)
    values = arpack(operator, k, which="LM", tol=tol, v0=start, return_eigenvectors=False)
    return values[np.argsort(-np.abs(values))], products


def textbook_lanczos(
    A: SymmetricOperator, *, seed: int = 0, limit: int = 300
) -> Iterator[tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]]:
    """Ritz values and the norms of their residuals in the Krylov spaces of a random vector, of
    dimension m = 1, 2, ...

    By Lanczos with two passes of full reorthogonalisation, whose residuals are coupling * |last
    component|. Where the operator knows its support, inside that.
    """
    inside = torch.arange(A.n) if A.support is None else A.support
    basis = torch.empty(min(limit, len(inside)) + 1, len(inside), dtype=A.dtype)
    start = torch.randn(len(inside), generator=torch.Generator().manual_seed(seed), dtype=A.dtype)
    basis[0] = start / start.norm()
    diagonal: list[float] = []
    couplings: list[float] = []
    for m in range(1, len(basis)):
        whole = torch.zeros(A.n, dtype=A.dtype)
        whole[inside] = basis[m - 1]
        product = (A @ whole)[inside]
        diagonal.append(float(product @ basis[m - 1]))
        for _ in range(2):
            product -= basis[:m].T @ (basis[:m] @ product)
        couplings.append(float(product.norm()))
        values, vectors = np.linalg.eigh(
            np.diag(diagonal) + np.diag(couplings[:-1], 1) + np.diag(couplings[:-1], -1)
        )
        yield values, couplings[-1] * np.abs(vectors[-1])
        basis[m] = product / couplings[-1]


def first_converged(
    A: SymmetricOperator, k: int, *, tol: float, seed: int = 0, limit: int = 300
) -> Iterator[tuple[int, Float[np.ndarray, " k"]]]:
    """The dimensions of those Krylov spaces whose k dominant Ritz pairs have residuals of at most
    tol, and their values.
    """
    for m, (values, norms) in enumerate(textbook_lanczos(A, seed=seed, limit=limit), start=1):
        wanted = np.argsort(-np.abs(values))[:k]
        if m >= k and (norms[wanted] <= tol * np.abs(values[wanted])).all():
            yield m, values[wanted]


def krylov_dimension(
    A: SymmetricOperator,
    values: Float[np.ndarray, " k"],
    *,
    tol: float,
    seed: int = 0,
    limit: int = 300,
) -> int:
    """The dimension of the first Krylov space of a random vector that holds the k dominant pairs to
    a residual of tol.

    No solver that starts from this vector can do with fewer products.

    Args:
        values: The true ones. Small residuals alone do not tell: a Krylov space may hold another
            eigenpair to the last digit before it has seen one that is larger in magnitude.

    Raises:
        RuntimeError: If `limit` products do not suffice.
    """
    for m, found in first_converged(A, len(values), tol=tol, seed=seed, limit=limit):
        if max(value_errors(found, values)) <= tol:
            return m
    raise RuntimeError(f"{limit} products do not give {len(values)} pairs to a residual of {tol}.")


def true_residuals(
    A: SymmetricOperator, values: Float[Tensor, " k"], vectors: Float[Tensor, "n k"]
) -> list[float]:
    """||A v - value v|| / |value| of what a solver returned, its vectors scaled to length 1;
    infinite for a value of zero.
    """
    V = vectors.to(A.dtype)
    V = V / V.norm(dim=0)
    defects = (A @ V - V * values.to(A.dtype)).norm(dim=0)
    return (defects / values.to(A.dtype).abs()).tolist()


def value_errors(found: Float[np.ndarray, " k"], truth: Float[np.ndarray, " k"]) -> list[float]:
    """|found - true| / |true| in the order of the truth, each found value matched with one true
    value, at the least sum.

    A value that was found twice costs the one that was missed; two of nearly one magnitude may come
    in either order.
    """
    errors = (
        np.abs(np.asarray(found)[None, :] - np.asarray(truth)[:, None]) / np.abs(truth)[:, None]
    )
    rows, columns = linear_sum_assignment(errors)
    return errors[rows, columns].tolist()
