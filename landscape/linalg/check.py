"""Tests of an operator's contract with random vectors.

The contract: one fixed symmetric matrix, multiplied linearly, zero outside of its support.

Knows matrices, not networks: imports only torch, numpy, landscape.errors and landscape.linalg.
Shapes: n = dimension of the operator, p = probes.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from landscape.errors import NumericalError
from landscape.linalg.coordinates import Coordinates
from landscape.linalg.operator import SymmetricOperator, check_is_operator, seeded, together
from landscape.linalg.vectors import all_finite

# Products of a network sum some 1e3 roundings; a tenth of that is usual.
_ROUNDINGS = 1000


@dataclass(frozen=True)
class OperatorCheck:
    """Measured violations of an operator's contract.

    Each is a fraction of the size of the products, and at the level of rounding where the contract
    holds.

    Attributes:
        asymmetry: |X^T A X - (X^T A X)^T| / |X^T A X|, with the products' size as the smallest
            denominator, for random X.
        nonlinearity: |A (X c) - (A X) c| / |(A X) c|.
        unrepeatability: |A x - A x| / |A x| of one vector multiplied twice, alone and as a column
            of a block.
        outside: |A y| / |A x| for y outside of the support, and what products have there; 0 where
            no support is stated.
        tol: The largest allowed value of each.
    """

    asymmetry: float
    nonlinearity: float
    unrepeatability: float
    outside: float
    tol: float


@together
def check_operator(
    A: SymmetricOperator, *, seed: int = 0, num_probes: int = 3, tol: float | None = None
) -> OperatorCheck:
    """Test the contract of an operator with random vectors.

    Costs num_probes + 2 products, and one more where the operator states a support.

    An asymmetry of more than `tol` in the Frobenius norm is detected with near certainty:
    a random bilinear form is a normal deviate in units of the norm of the antisymmetric part, and
    there are num_probes (num_probes - 1) / 2 of them.

    Args:
        A: Any operator, also a user's own.
        seed: Seed of the random vectors.
        num_probes: Number of random vectors, at least 2.
        tol: Largest relative violation. Default: 1000 units of rounding, more where the operator
            states the error of its products.

    Returns:
        What was measured.

    Raises:
        NumericalError: If the operator breaks its contract; one sentence says how, and by how much.
        ValueError: If A is no SymmetricOperator, or `num_probes` or `tol` is out of range.

    Examples:
        >>> import torch, landscape
        >>> from landscape.linalg import DenseOperator
        >>> values = torch.tensor([5.0, 3.0, 1.0, -1.0, -2.0], dtype=torch.float64)
        >>> A = DenseOperator(torch.diag(values))
        >>> check = landscape.check_operator(A)
        >>> check.asymmetry < 1e-12
        True
    """
    check_is_operator(A)
    if num_probes < 2:
        raise ValueError(
            "num_probes must be at least 2, as one vector has no second to be symmetric with, got "
            f"{num_probes}."
        )
    if tol is not None and not (math.isfinite(tol) and tol > 0):
        raise ValueError(f"tol must be finite and > 0, got {tol}.")
    X = _probes(A, num_probes, seed)
    products = _multiplied(A, X)
    size = A.space.norm(products) / math.sqrt(num_probes)
    check = OperatorCheck(
        asymmetry=_asymmetry(A, X, products, size),
        nonlinearity=_relative(
            A, _multiplied(A, X @ _combination(X, seed)) - products @ _combination(X, seed), size
        ),
        unrepeatability=_relative(A, _multiplied(A, X[:, 0]) - products[:, 0], size),
        outside=_outside(A, X[:, 0], products, size),
        tol=_default_tolerance(A, size) if tol is None else tol,
    )
    _judge(A, check)
    return check


def _probes(A: SymmetricOperator, count: int, seed: int) -> Float[Tensor, "n p"]:
    """Draw random vectors.

    They are the same on all devices, in all types and on any number of processes.
    """
    return A.random(seeded(seed), count)


def _combination(X: Float[Tensor, "n p"], seed: int) -> Float[Tensor, " p"]:
    """Draw coefficients of length 1.

    The combination is then as long as a probe.
    """
    c = torch.randn(X.shape[1], generator=seeded(seed + 1), dtype=torch.float64)
    return (c / c.norm()).to(X.device, X.dtype)


def _multiplied(A: SymmetricOperator, V: Tensor) -> Tensor:
    # A copy, to see whether the operator changes its argument in place.
    before = V.clone()
    products = A @ V
    if not isinstance(products, Tensor) or (products.shape, products.dtype, products.device) != (
        V.shape,
        V.dtype,
        V.device,
    ):
        got = (
            f"{tuple(products.shape)} in {products.dtype}"
            if isinstance(products, Tensor)
            else f"a {type(products).__name__}"
        )
        raise NumericalError(
            f"{_name(A)}: its product with a tensor of shape {tuple(V.shape)} in {V.dtype} is "
            f"{got}, but every solver counts on the same shape, dtype and device. Correct its "
            "matmat."
        )
    if A.space.any(not torch.equal(V, before)):
        raise NumericalError(
            f"{_name(A)}: it changes the vectors that it multiplies, which solvers keep. Correct "
            "its matmat."
        )
    if A.space.any(not all_finite(products)):
        raise NumericalError(
            f"{_name(A)}: its product with a random vector is not finite, so it has no spectrum."
        )
    return products.detach()


def _asymmetry(
    A: SymmetricOperator, X: Float[Tensor, "n p"], products: Float[Tensor, "n p"], size: float
) -> float:
    """Measure the asymmetry of a random bilinear form.

    Such a form is about as large as the Frobenius norm of A, which is about the size of a product.
    """
    # x^T A y - y^T A x = x^T (A - A^T) y, for standard normal x and y a random number with mean 0
    # and standard deviation ||A - A^T||_F.
    forms = A.space.total(np.asarray((X.double().T @ products.double()).cpu()))
    return float(np.abs(forms - forms.T).max()) / size if size > 0 else 0.0


def _relative(A: SymmetricOperator, defect: Tensor, size: float) -> float:
    length = A.space.norm(defect)
    return length / size if size > 0 else 0.0 if length == 0 else math.inf


def _outside(
    A: SymmetricOperator, x: Float[Tensor, " n"], products: Float[Tensor, "n p"], size: float
) -> float:
    support, fault = _support_or_fault(A)
    if A.space.any(bool(fault)):
        raise NumericalError(
            fault
            or f"{_name(A)}: another process states a support that is none; its message says why."
        )
    if support is None:
        return 0.0
    # Zero columns: A maps vectors outside of the support to 0. Zero rows: no product reaches there.
    outside = support.complement(A.num_local)
    elsewhere = outside.expand(outside.select(x), A.num_local)
    return max(
        _relative(A, outside.select(products), size), _relative(A, _multiplied(A, elsewhere), size)
    )


def _support_or_fault(A: SymmetricOperator) -> tuple[Coordinates | None, str]:
    """Return this process's support, or what is wrong with it."""
    try:
        return A.support_runs, ""
    except ValueError as error:
        return None, str(error)


def _default_tolerance(A: SymmetricOperator, size: float) -> float:
    # A probe has a length of about the square root of n, and the stated error is that for a vector
    # of length 1.
    approximation = 10 * A.error_estimate * math.sqrt(A.n) / size if size > 0 else 0.0
    return _ROUNDINGS * torch.finfo(A.dtype).eps + approximation


def _judge(A: SymmetricOperator, check: OperatorCheck) -> None:
    asks = f"of a product's size; at most {check.tol:.1e} is rounding"
    faults = {
        "unrepeatability": (
            "it is not one fixed matrix: one vector multiplied twice, alone and in a block, gave "
            f"products that differ by {check.unrepeatability:.1e} {asks}. Take what is random, or "
            "changes, out of it"
        ),
        "nonlinearity": (
            "it is not linear: a product of a sum misses the sum of products by "
            f"{check.nonlinearity:.1e} {asks}. Only a matrix has a spectrum"
        ),
        "asymmetry": (
            "it is not symmetric: x.(A y) and y.(A x) of random x and y differ by "
            f"{check.asymmetry:.1e} {asks}. Eigenvalues and bounds of a symmetric solver would be "
            "wrong; use its symmetric part, or correct its products"
        ),
        "outside": (
            f"its support is wrong: outside of it products reach {check.outside:.1e} {asks}. "
            "Solvers would leave that out"
        ),
    }
    for name, sentence in faults.items():
        if not getattr(check, name) <= check.tol:
            raise NumericalError(f"{_name(A)}: {sentence}.")


def _name(A: SymmetricOperator) -> str:
    return f"{type(A).__name__} of size {A.n}"
