"""Work on the part of an operator that is not zero, and give back results for the whole of it.

A token embedding has one row per word of the vocabulary; the rows that a batch does not use have exactly no curvature
and can be most of a small model. Vectors that leave them out are shorter, and nothing is approximated.
Knows matrices, not networks. Shapes: n = dimension of the whole operator, s = size of its support, k = eigenpairs.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.linalg.combine import Restriction
from landscape.linalg.operator import EigenPairs, Quadrature, RitzValues, SymmetricOperator


class SupportedPart(Restriction):
    """The rows and columns of A in its support; those outside are zero."""

    def __init__(self, A: SymmetricOperator) -> None:
        assert A.support is not None
        super().__init__(A, A.support)

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
            vectors=torch.zeros(0, 0, dtype=self.dtype, device=self.device) if return_vectors else None,
            residuals=none,
            converged=torch.zeros(0, dtype=torch.bool),
            num_matvecs=0,
            quadrature=Quadrature(nodes=none, weights=none),
            ritz=RitzValues(values=none, norms=none, rounding=0.0, orthogonality_defect=0.0),
            settled=True,
            checked=self.checked,
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
            quadrature=None if pairs.quadrature is None else self._whole_quadrature(pairs.quadrature),
            ritz=None if pairs.ritz is None else self._whole_ritz(pairs.ritz, num_zeros),
            copies_checked=pairs.copies_checked,
            settled=pairs.settled,
            checked=pairs.checked,
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
