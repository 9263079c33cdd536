"""Is an operator what it promises: one fixed symmetric matrix, multiplied linearly, zero outside of its support?

Knows matrices, not networks: imports only torch, landscape.errors and landscape.linalg.
Shapes: n = dimension of the operator, p = probes.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.errors import NumericalError
from landscape.linalg.operator import SymmetricOperator, check_is_operator, seeded

# Products of a network sum some 1e3 roundings; a tenth of that is usual.
_ROUNDINGS = 1000


@dataclass(frozen=True)
class OperatorCheck:
    """How far an operator is from its contract, each as a fraction of the size of its products; rounding if it holds.

    Attributes:
        asymmetry: |X^T A X - (X^T A X)^T| / |X^T A X|, with the products' size as the smallest denominator, for random X.
        nonlinearity: |A (X c) - (A X) c| / |(A X) c|.
        unrepeatability: |A x - A x| / |A x| of one vector multiplied twice, alone and as a column of a block.
        outside: |A y| / |A x| for y outside of the support, and what products have there; 0 where no support is stated.
        tol: What each may be.
    """

    asymmetry: float
    nonlinearity: float
    unrepeatability: float
    outside: float
    tol: float


def check_operator(
    A: SymmetricOperator, *, seed: int = 0, num_probes: int = 3, tol: float | None = None
) -> OperatorCheck:
    """Test the contract of an operator with random vectors, at num_probes + 2 products, one more where it states a support.

    What is not symmetric by more than `tol` in the Frobenius norm is found with near certainty: a random bilinear form
    shows the norm of the antisymmetric part as a normal deviate, and there are num_probes (num_probes - 1) / 2 of them.

    Args:
        A: Any operator, of one's own making too.
        seed: Of the probes.
        num_probes: At least 2.
        tol: Relative. Default: 1000 units of rounding, more where the operator states the error of its products.

    Returns:
        What was measured.

    Raises:
        NumericalError: If the operator breaks its contract; one sentence says how, and by how much.
        ValueError: If A is no SymmetricOperator, or `num_probes` or `tol` is out of range.
    """
    check_is_operator(A)
    if num_probes < 2:
        raise ValueError(
            f"num_probes must be at least 2, as one vector has no second to be symmetric with, got {num_probes}."
        )
    if tol is not None and not (math.isfinite(tol) and tol > 0):
        raise ValueError(f"tol must be finite and > 0, got {tol}.")
    X = _probes(A, num_probes, seed)
    products = _multiplied(A, X)
    size = float(torch.linalg.matrix_norm(products.double())) / math.sqrt(num_probes)
    check = OperatorCheck(
        asymmetry=_asymmetry(X, products, size),
        nonlinearity=_relative(
            _multiplied(A, X @ _combination(X, seed)) - products @ _combination(X, seed), size
        ),
        unrepeatability=_relative(_multiplied(A, X[:, 0]) - products[:, 0], size),
        outside=_outside(A, X[:, 0], products, size),
        tol=_default_tolerance(A, size) if tol is None else tol,
    )
    _judge(A, check)
    return check


def _probes(A: SymmetricOperator, count: int, seed: int) -> Float[Tensor, "n p"]:
    """Drawn on the CPU in float64, so that all devices and types get the same numbers."""
    return torch.randn(A.n, count, generator=seeded(seed), dtype=torch.float64).to(
        A.device, A.dtype
    )


def _combination(X: Float[Tensor, "n p"], seed: int) -> Float[Tensor, " p"]:
    """Coefficients of length 1, so that the combination is as long as a probe."""
    c = torch.randn(X.shape[1], generator=seeded(seed + 1), dtype=torch.float64)
    return (c / c.norm()).to(X.device, X.dtype)


def _multiplied(A: SymmetricOperator, V: Tensor) -> Tensor:
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
            f"{_name(A)}: its product with a tensor of shape {tuple(V.shape)} in {V.dtype} is {got}, but every solver counts on "
            "the same shape, dtype and device. Mend its matmat."
        )
    if not torch.equal(V, before):
        raise NumericalError(
            f"{_name(A)}: it changes the vectors that it multiplies, which solvers keep. Mend its matmat."
        )
    if not torch.isfinite(products).all():
        raise NumericalError(
            f"{_name(A)}: its product with a random vector is not finite, so it has no spectrum."
        )
    return products.detach()


def _asymmetry(X: Float[Tensor, "n p"], products: Float[Tensor, "n p"], size: float) -> float:
    """A random bilinear form is about as large as the Frobenius norm of A, which is about the size of a product."""
    forms = X.double().T @ products.double()
    return float((forms - forms.T).abs().max()) / size if size > 0 else 0.0


def _relative(defect: Tensor, size: float) -> float:
    length = float(torch.linalg.vector_norm(defect, dtype=torch.float64))
    return length / size if size > 0 else 0.0 if length == 0 else math.inf


def _outside(
    A: SymmetricOperator, x: Float[Tensor, " n"], products: Float[Tensor, "n p"], size: float
) -> float:
    if A.support is None:
        return 0.0
    if not bool((A.support[1:] > A.support[:-1]).all()):
        raise NumericalError(
            f"{_name(A)}: its support is not ascending, so vectors would be put together in another order."
        )
    outside = torch.ones(A.n, dtype=torch.bool, device=A.device)
    outside[A.support] = False
    return max(_relative(products[outside], size), _relative(_multiplied(A, x * outside), size))


def _default_tolerance(A: SymmetricOperator, size: float) -> float:
    # A probe has a length of about the square root of n, and the stated error is that for a vector of length 1.
    approximation = 10 * A.error_estimate * math.sqrt(A.n) / size if size > 0 else 0.0
    return _ROUNDINGS * torch.finfo(A.dtype).eps + approximation


def _judge(A: SymmetricOperator, check: OperatorCheck) -> None:
    asks = f"of a product's size; at most {check.tol:.1e} is rounding"
    faults = {
        "unrepeatability": "it is not one fixed matrix: one vector multiplied twice, alone and in a block, gave products that "
        f"differ by {check.unrepeatability:.1e} {asks}. Take what is random, or changes, out of it",
        "nonlinearity": f"it is not linear: a product of a sum misses the sum of products by {check.nonlinearity:.1e} {asks}. "
        "Only a matrix has a spectrum",
        "asymmetry": f"it is not symmetric: x.(A y) and y.(A x) of random x and y differ by {check.asymmetry:.1e} {asks}. "
        "Eigenvalues and bounds of a symmetric solver would be wrong; use its symmetric part, or mend its products",
        "outside": f"its support is wrong: outside of it products reach {check.outside:.1e} {asks}. Solvers would leave that out",
    }
    for name, sentence in faults.items():
        if not getattr(check, name) <= check.tol:
            raise NumericalError(f"{_name(A)}: {sentence}.")


def _name(A: SymmetricOperator) -> str:
    return f"{type(A).__name__} of size {A.n}"
