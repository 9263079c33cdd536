"""An operator in other units of its coordinates: D A D + E with diagonal D and E.

Knows matrices, not networks: imports only torch and landscape.linalg.
Shapes: n = dimension of the operator, l = entries that this process holds (n unless the operator is
cut), k = number of vectors, s = number of entries in the support.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.linalg.coordinates import Coordinates
from landscape.linalg.operator import SymmetricOperator, check_is_operator, count_unused
from landscape.linalg.vectors import VectorSpace


class ScaledOperator(SymmetricOperator):
    """D A D + E for an operator A, a diagonal D and a diagonal E.

    Solvers take it as any other operator, with the certificates of A: an error e of A becomes D e
    D, so `error_estimate` grows by the square of the largest scale in the support, and
    `product_errors` are scaled entry by entry. Where the operator is cut over several processes,
    both diagonals are the entries of this process, and making it is collective.

    Args:
        A: The operator.
        scales: The diagonal of D, finite, in the operator's dtype on its device. Entries outside of
            A's support have no effect.
        diagonal: The diagonal of E, finite; None for zero.

    Attributes:
        whole, scales, diagonal: What the operator is made of.
        support: The support of A, and the coordinates where E is not zero.

    Raises:
        ValueError: If A is no operator, or a diagonal has another shape, dtype or device, or is not
            finite.
    """

    def __init__(
        self,
        A: SymmetricOperator,
        scales: Float[Tensor, " l"],
        diagonal: Float[Tensor, " l"] | None = None,
    ) -> None:
        check_is_operator(A)
        fault = _fault(A, "scales", scales) or (
            None if diagonal is None else _fault(A, "diagonal", diagonal)
        )
        if A.space.any(fault is not None):
            raise ValueError(
                fault or "Another process has scales that cannot be used; its message says why."
            )
        self.whole = A
        self.n, self.dtype, self.device = A.n, A.dtype, A.device
        self.scales, self.diagonal = scales, diagonal
        self._space = A.space
        # Vectors in the support of A alone are those of A in its support.
        self._inner_support = runs = A.support_runs
        self._num_unused = A.num_unused
        if runs is not None and diagonal is not None and A.space.any(bool(diagonal.any())):
            runs = _with_entries(runs, diagonal)
            self._num_unused = count_unused(self._space, runs)
            self._inner_support = None
        self.support = runs
        self.error_estimate = 0.0
        if A.error_estimate:
            within = scales if A.support_runs is None else A.support_runs.select(scales)
            # ||D e D|| <= max |d_i|^2 ||e||.
            largest = A.space.largest(float(within.abs().max()) if within.numel() else 0.0)
            self.error_estimate = largest**2 * A.error_estimate

    @property
    def space(self) -> VectorSpace:
        return self._space

    @property
    def num_unused(self) -> int:
        return self._num_unused

    @property
    def checked(self) -> str:
        """Return what the operator that is scaled says of its products."""
        return self.whole.checked

    def matmat(self, V: Float[Tensor, "l k"]) -> Float[Tensor, "l k"]:
        products = (self.whole @ (V * self.scales[:, None])) * self.scales[:, None]
        return products if self.diagonal is None else products.add_(V * self.diagonal[:, None])

    def matmat_in_support(self, V: Float[Tensor, "s k"]) -> Float[Tensor, "s k"]:
        if self._inner_support is None:
            return super().matmat_in_support(V)
        scales = self._inner_support.select(self.scales)[:, None]
        products = self.whole.matmat_in_support(V * scales) * scales
        if self.diagonal is not None:
            products.add_(V * self._inner_support.select(self.diagonal)[:, None])
        return products

    def product_errors(self, v: Float[Tensor, " l"]) -> Float[Tensor, " l"]:
        return self.scales.abs() * self.whole.product_errors(self.scales * v)


def _with_entries(support: Coordinates, diagonal: Float[Tensor, " l"]) -> Coordinates:
    """Add the diagonal's nonzero entries to the support."""
    return Coordinates.union([support, Coordinates.from_indices(diagonal.nonzero()[:, 0])])


def _fault(A: SymmetricOperator, name: str, diagonal: Tensor) -> str | None:
    """Describe what is wrong with a diagonal; None if nothing is."""
    if (diagonal.shape, diagonal.dtype, diagonal.device) != ((A.num_local,), A.dtype, A.device):
        return (
            f"{name}: must be a vector of the operator's {A.num_local} entries in {A.dtype} on "
            f"{A.device}, got shape {tuple(diagonal.shape)} in {diagonal.dtype} on "
            f"{diagonal.device}."
        )
    if not torch.isfinite(diagonal).all():
        return f"{name}: must be finite, got infinite or NaN entries, which no eigenvalue survives."
    return None
