"""Restrictions of an operator to some coordinates, and results extended from its support.

A token embedding has one row per word of the vocabulary; the rows that a batch does not use have
exactly no curvature and can be most of a small model. Vectors that leave them out are shorter, and
nothing is approximated.
Knows matrices, not networks. Shapes: n = dimension of the whole operator, s = number of chosen
coordinates, k = eigenpairs.
"""

from dataclasses import replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from landscape.linalg.coordinates import Coordinates
from landscape.linalg.operator import SymmetricOperator, check_is_operator
from landscape.linalg.results import EigenPairs, Quadrature, RitzValues
from landscape.linalg.vectors import VectorSpace


class Restriction(SymmetricOperator):
    """The rows and columns of A in chosen coordinates.

    This is the operator seen by vectors that are zero elsewhere.

    The restriction of a Hessian to the coordinates of a module is the Hessian of the loss by that
    module's parameters.

    Args:
        A: The whole operator.
        rows: Indices of the chosen coordinates, each once; their order is that of the restriction.
            Or `Coordinates`.

    Attributes:
        whole, rows: A and the indices, which may be a new tensor at each access.

    Raises:
        ValueError: If A is no operator, the indices are no vector of int64, one is out of range, or
            one is there twice.
    """

    def __init__(self, A: SymmetricOperator, rows: Int64[Tensor, " s"] | Coordinates) -> None:
        check_is_operator(A)
        fault = _fault(A, rows)
        # Of an operator that is cut, the coordinates are those of this process; all processes go
        # on, or none.
        if A.space.any(fault is not None):
            raise ValueError(
                fault or "Another process chose coordinates that are none; its message says which."
            )
        self.whole = A
        self._rows: Coordinates | Tensor = rows.to(A.device)
        support = A.support_runs
        is_support = rows is support
        if isinstance(self._rows, Tensor) and _ascends(self._rows):
            self._rows = Coordinates.from_indices(self._rows)
        self._space = A.space.restricted(self._rows)
        self.n, self.dtype, self.device = self._space.n, A.dtype, A.device
        self.error_estimate = A.error_estimate
        self._num_unused = 0
        if support is not None and not is_support:
            inside = _places(support, self._rows)
            num_inside = self._space.restricted(inside).n
            # If the support is empty the operator is zero, but a solver needs a coordinate to begin
            # with.
            if 0 < num_inside < self.n:
                self.support, self._num_unused = inside, self.n - num_inside

    @property
    def rows(self) -> Int64[Tensor, " s"]:
        return self._rows.indices() if isinstance(self._rows, Coordinates) else self._rows

    @property
    def space(self) -> VectorSpace:
        return self._space

    @property
    def num_unused(self) -> int:
        return self._num_unused

    @property
    def checked(self) -> str:
        """Return what the whole operator says of its products."""
        return self.whole.checked

    def matmat(self, V: Float[Tensor, "s k"]) -> Float[Tensor, "s k"]:
        return self.within(self.whole @ self.extend(V))

    def product_errors(self, v: Float[Tensor, " s"]) -> Float[Tensor, " s"]:
        return self.within(self.whole.product_errors(self.extend(v[:, None])[:, 0]))

    def within(self, V: Float[Tensor, "n ..."]) -> Float[Tensor, "s ..."]:
        """Select the chosen entries of vectors of the whole operator."""
        return (
            self._rows.select(V)
            if isinstance(self._rows, Coordinates)
            else V.index_select(0, self._rows)
        )

    def extend(self, V: Float[Tensor, "s k"]) -> Float[Tensor, "n k"]:
        """Extend vectors to the whole operator, zero outside of the chosen entries."""
        if isinstance(self._rows, Coordinates):
            return self._rows.expand(V, self.whole.num_local)
        whole = torch.zeros(self.whole.num_local, V.shape[1], dtype=V.dtype, device=V.device)
        return whole.index_copy_(0, self._rows, V)


def _fault(A: SymmetricOperator, rows: Tensor | Coordinates) -> str | None:
    """Describe what is wrong with chosen coordinates; None if nothing is."""
    if isinstance(rows, Coordinates):
        inside = rows.stop <= A.num_local
        return (
            None
            if inside
            else f"The chosen coordinates must lie in 0..{A.num_local - 1}, got {rows.stop - 1}."
        )
    if rows.ndim != 1 or rows.dtype != torch.int64:
        return (
            f"The chosen coordinates must be a vector of int64 indices, got {rows.dtype} "
            f"{tuple(rows.shape)}."
        )
    if len(rows) and not (0 <= int(rows.min()) and int(rows.max()) < A.num_local):
        return (
            f"The chosen coordinates must lie in 0..{A.num_local - 1}, got {int(rows.min())} to "
            f"{int(rows.max())}."
        )
    # Ascending indices are distinct without being sorted.
    ascending = _ascends(rows)
    if not ascending and len(rows.unique()) < len(rows):
        return (
            "A coordinate was chosen twice; its row would stand in the restriction twice. Give "
            "each index once."
        )
    if not (ascending or A.space.is_whole):
        return (
            "The chosen coordinates of an operator that is cut over several processes must ascend, "
            "as only these keep their order over all processes. Sort them."
        )
    return None


def _ascends(rows: Tensor) -> bool:
    return bool((rows[1:] > rows[:-1]).all())


def _places(support: Coordinates, rows: Coordinates | Tensor) -> Coordinates:
    """Locate the support among the chosen coordinates."""
    if isinstance(rows, Coordinates):
        return support.places_in(rows)
    return Coordinates.from_indices(torch.isin(rows, support.indices()).nonzero()[:, 0])


class SupportedPart(Restriction):
    """The rows and columns of A in its support; those outside are zero."""

    def __init__(self, A: SymmetricOperator) -> None:
        support = A.support_runs
        assert support is not None
        super().__init__(A, support)

    def matmat(self, V: Float[Tensor, "s k"]) -> Float[Tensor, "s k"]:
        return self.whole.matmat_in_support(V)

    def outside(self, count: int) -> Float[Tensor, "n c"]:
        """Build unit vectors along the first `count` coordinates outside of the support.

        They are exact eigenvectors of eigenvalue 0.
        """
        assert isinstance(self._rows, Coordinates)
        zero = self._rows.complement(self.whole.num_local)
        outside = self.whole.space.restricted(zero)
        positions = outside.positions().to(self.device)
        # Positions ascend, so that those below the count come first.
        positions = positions[positions < count]
        vectors = torch.zeros(
            self.whole.num_local, min(count, outside.n), dtype=self.dtype, device=self.device
        )
        vectors[zero.indices()[: len(positions)], positions] = 1
        return vectors

    def no_pairs(self, *, return_vectors: bool) -> EigenPairs:
        """Return the empty eigenpairs of a part without coordinates.

        They cost no product, and nothing is in doubt.
        """
        none = torch.zeros(0, dtype=torch.float64)
        return EigenPairs(
            values=none,
            vectors=torch.zeros(self.num_local, 0, dtype=self.dtype, device=self.device)
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
        """Build the whole operator's k eigenpairs from those of this part.

        The others are the zeros outside of the support.

        A random vector of the whole operator has, in the mean, the share s / n of its square in the
        support: its quadrature is that of this part with weights scaled by s / n, and one more node
        at 0 for the rest.
        """
        num_zeros = min(k, self.whole.n - self.n)
        zeros = torch.zeros(num_zeros, dtype=torch.float64)
        values = torch.cat([pairs.values, zeros])
        key = {"LM": -values.abs(), "LA": -values, "SA": values}[which]
        # Stable: among equal sizes, computed values come before the zeros.
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
            # If zeros replace values, "beyond the last" covers less than it did for the part: still
            # true.
            missed=pairs.missed,
            value_bounds=None
            if pairs.value_bounds is None
            else torch.cat([pairs.value_bounds, zeros])[order],
        )

    def _whole_ritz(self, part: RitzValues, num_zeros: int) -> RitzValues:
        """Add as many exact zeros as an end may show."""
        zeros = torch.zeros(num_zeros, dtype=torch.float64)
        values, norms = torch.cat([part.values, zeros]), torch.cat([part.norms, zeros])
        order = values.argsort(stable=True)
        return replace(part, values=values[order], norms=norms[order])

    def _whole_quadrature(self, part: Quadrature) -> Quadrature:
        # E ||part of v in the support||^2 = s / n for a random unit vector v.
        share = self.n / self.whole.n
        nodes = torch.cat([part.nodes, torch.zeros(1, dtype=torch.float64)])
        weights = torch.cat([share * part.weights, torch.tensor([1 - share], dtype=torch.float64)])
        order = nodes.argsort(stable=True)
        return replace(part, nodes=nodes[order], weights=weights[order])


def restricted(A: SymmetricOperator, rows: Int64[Tensor, " s"] | Coordinates) -> Restriction:
    """Restrict A to the coordinates `rows`; see `Restriction`.

    Examples:
        >>> import torch, landscape
        >>> from landscape.linalg import DenseOperator
        >>> values = torch.tensor([5.0, 3.0, 1.0, -1.0, -2.0], dtype=torch.float64)
        >>> A = DenseOperator(torch.diag(values))
        >>> B = landscape.restricted(A, torch.tensor([1, 4]))
        >>> B @ torch.ones(2, dtype=torch.float64)
        tensor([ 3., -2.], dtype=torch.float64)
    """
    return Restriction(A, rows)
