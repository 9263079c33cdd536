"""Restrict an operator to some coordinates, and extend results for its support to the whole of it.

A token embedding has one row per word of the vocabulary; the rows that a batch does not use have exactly no curvature
and can be most of a small model. Vectors that leave them out are shorter, and nothing is approximated.
Knows matrices, not networks. Shapes: n = dimension of the whole operator, s = number of chosen coordinates, k = eigenpairs.
"""

from dataclasses import replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from landscape.linalg.operator import SymmetricOperator, check_is_operator
from landscape.linalg.results import EigenPairs, Quadrature, RitzValues


class Restriction(SymmetricOperator):
    """The rows and columns of A in chosen coordinates: the operator seen by vectors that are zero elsewhere.

    The restriction of a Hessian to the coordinates of a module is the Hessian of the loss by that module's parameters.

    Args:
        A: The whole operator.
        rows: Indices of the chosen coordinates, each once; their order is that of the restriction.

    Attributes:
        whole, rows: A and the indices.

    Raises:
        ValueError: If A is no operator, the indices are no vector of int64, one is out of range, or one is there twice.
    """

    def __init__(self, A: SymmetricOperator, rows: Int64[Tensor, " s"]) -> None:
        check_is_operator(A)
        if rows.ndim != 1 or rows.dtype != torch.int64:
            raise ValueError(
                f"The chosen coordinates must be a vector of int64 indices, got {rows.dtype} {tuple(rows.shape)}."
            )
        if len(rows) and not (0 <= int(rows.min()) and int(rows.max()) < A.n):
            raise ValueError(
                f"The chosen coordinates must lie in 0..{A.n - 1}, got {int(rows.min())} to {int(rows.max())}."
            )
        # Ascending indices need no sorting to be seen as different.
        if not bool((rows[1:] > rows[:-1]).all()) and len(rows.unique()) < len(rows):
            raise ValueError(
                "A coordinate was chosen twice; its row would stand in the restriction twice. Give each index once."
            )
        self.whole = A
        self.rows = rows.to(A.device)
        self.n, self.dtype, self.device = len(rows), A.dtype, A.device
        self.error_estimate = A.error_estimate
        if A.support is not None and A.support is not rows:
            inside = torch.isin(self.rows, A.support)
            # Where nothing is inside all is zero, but a solver needs a coordinate to begin with.
            self.support = (
                inside.nonzero()[:, 0] if bool(inside.any()) and not bool(inside.all()) else None
            )

    @property
    def checked(self) -> str:
        """What the whole operator says."""
        return self.whole.checked

    def matmat(self, V: Float[Tensor, "s k"]) -> Float[Tensor, "s k"]:
        return (self.whole @ self.extend(V)).index_select(0, self.rows)

    def product_errors(self, v: Float[Tensor, " s"]) -> Float[Tensor, " s"]:
        return self.whole.product_errors(self.extend(v[:, None])[:, 0]).index_select(0, self.rows)

    def extend(self, V: Float[Tensor, "s k"]) -> Float[Tensor, "n k"]:
        """The same vectors as vectors of the whole operator, zero in the coordinates that were not chosen."""
        whole = torch.zeros(self.whole.n, V.shape[1], dtype=V.dtype, device=V.device)
        return whole.index_copy_(0, self.rows, V)


class SupportedPart(Restriction):
    """The rows and columns of A in its support; those outside are zero."""

    def __init__(self, A: SymmetricOperator) -> None:
        assert A.support is not None
        super().__init__(A, A.support)

    def matmat(self, V: Float[Tensor, "s k"]) -> Float[Tensor, "s k"]:
        return self.whole.matmat_in_support(V)

    def outside(self, count: int) -> Float[Tensor, "n c"]:
        """Unit vectors along the first `count` coordinates outside of the support: exact eigenvectors of eigenvalue 0."""
        zero = torch.ones(self.whole.n, dtype=torch.bool, device=self.device)
        zero[self.rows] = False
        indices = zero.nonzero()[:count, 0]
        vectors = torch.zeros(self.whole.n, len(indices), dtype=self.dtype, device=self.device)
        vectors[indices, torch.arange(len(indices), device=self.device)] = 1
        return vectors

    def no_pairs(self, *, return_vectors: bool) -> EigenPairs:
        """The eigenpairs of a part without coordinates: none, for no product, and nothing in doubt."""
        none = torch.zeros(0, dtype=torch.float64)
        return EigenPairs(
            values=none,
            vectors=torch.zeros(0, 0, dtype=self.dtype, device=self.device)
            if return_vectors
            else None,
            residuals=none,
            converged=torch.zeros(0, dtype=torch.bool),
            num_matvecs=0,
            quadrature=Quadrature(nodes=none, weights=none),
            ritz=RitzValues(values=none, norms=none, rounding=0.0, orthogonality_defect=0.0),
            settled=True,
            checked=self.checked,
            value_bounds=none,
        )

    def whole_pairs(self, pairs: EigenPairs, k: int, which: str) -> EigenPairs:
        """The wanted k eigenpairs of the whole operator, from those of this part and the zeros outside of it.

        A random vector of the whole operator has, in the mean, the share s / n of its square in the support: its
        quadrature is that of this part with weights scaled by s / n, and one more node at 0 for the rest.
        """
        num_zeros = min(k, self.whole.n - self.n)
        zeros = torch.zeros(num_zeros, dtype=torch.float64)
        values = torch.cat([pairs.values, zeros])
        key = {"LM": -values.abs(), "LA": -values, "SA": values}[which]
        order = key.argsort(stable=True)[:k]
        vectors = pairs.vectors
        if vectors is not None:
            wanted = self.extend(vectors)
            vectors = (
                torch.cat([wanted, self.outside(num_zeros)], dim=1)[:, order]
                if (order >= len(pairs.values)).any()
                else wanted[:, order]
            )
        return EigenPairs(
            values=values[order],
            vectors=vectors,
            residuals=torch.cat([pairs.residuals, zeros])[order],
            converged=torch.cat([pairs.converged, torch.ones(num_zeros, dtype=torch.bool)])[order],
            num_matvecs=pairs.num_matvecs,
            quadrature=None
            if pairs.quadrature is None
            else self._whole_quadrature(pairs.quadrature),
            ritz=None if pairs.ritz is None else self._whole_ritz(pairs.ritz, num_zeros),
            copies_checked=pairs.copies_checked,
            settled=pairs.settled,
            checked=pairs.checked,
            # Where zeros take the places of values, "beyond the last" says less than it did of the part.
            missed=pairs.missed,
            value_bounds=None
            if pairs.value_bounds is None
            else torch.cat([pairs.value_bounds, zeros])[order],
        )

    def _whole_ritz(self, part: RitzValues, num_zeros: int) -> RitzValues:
        """With as many exact zeros as an end may show."""
        zeros = torch.zeros(num_zeros, dtype=torch.float64)
        values, norms = torch.cat([part.values, zeros]), torch.cat([part.norms, zeros])
        order = values.argsort(stable=True)
        return replace(part, values=values[order], norms=norms[order])

    def _whole_quadrature(self, part: Quadrature) -> Quadrature:
        share = self.n / self.whole.n
        nodes = torch.cat([part.nodes, torch.zeros(1, dtype=torch.float64)])
        weights = torch.cat([share * part.weights, torch.tensor([1 - share], dtype=torch.float64)])
        order = nodes.argsort(stable=True)
        return replace(part, nodes=nodes[order], weights=weights[order])


def restricted(A: SymmetricOperator, rows: Int64[Tensor, " s"]) -> Restriction:
    """The rows and columns of A in the coordinates `rows`; see `Restriction`."""
    return Restriction(A, rows)
