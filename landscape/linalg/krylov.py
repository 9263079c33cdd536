"""An orthonormal Krylov basis that grows by one product at a time.

It stays orthonormal in any precision.

Knows matrices, not networks: imports only torch, numpy, landscape.errors and landscape.threads;
Numba, which takes half a second, for long rows alone.
All sums over the n entries go through the operator, which may hold only some of them in this
process.
Shapes: n = dimension of the operator, l = entries that this process holds, m = vectors multiplied
so far, p = vectors waiting to be multiplied.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from landscape.errors import NumericalError
from landscape.linalg.operator import SymmetricOperator
from landscape.linalg.vectors import CHUNK, inner
from landscape.threads import single_blas_thread, threads_for, torch_threads

# Rows are allocated in blocks, so that memory follows the number of products and not their limit. A
# block has at least so many rows, and more where they are short: every block costs some
# microseconds a product.
_BLOCK_ROWS = 16
_BLOCK_NUMBERS = 1 << 16
# Up to this size the rounding of a product is measured by itself: fewer than some tens of products
# tell too little of it.
_MEASURED_SIZE = 64

# Length of a row from which the Numba kernel orthogonalises. On 22 rows in float32 it is 2.6 to 4
# times as fast at 134,497 and 1.9 times at 2,500,000; in float64 1.0 to 1.2 times. Its first call
# in a process takes 0.6 CPU seconds, or 2 where nothing is cached, which is what it saves in 7 runs
# of 22 products in float32 at 134,497, and in one or two from a million on. A rule of the size
# alone, so that the same command comes to the same numbers.
_FUSED_LENGTH = {torch.float32: 100_000, torch.float64: 1_000_000}


@cache
def _fused() -> Callable[..., tuple[np.ndarray, float]] | None:
    """Return the Numba kernel; None if Numba cannot be imported."""
    try:
        from landscape.linalg.gram_schmidt import orthogonalise
    except ImportError:
        return None
    return orthogonalise


class KrylovBasis:
    r"""Orthonormal rows V with A V_done^T = V^T H.

    Rows are fully reorthogonalised, and there may be any number of starting vectors.

    Some rows have been multiplied by A ("done"), the others wait ("pending"). With one starting
    vector this is the Lanczos process: one pending row, H tridiagonal. A further random start,
    orthogonal to everything that is there, makes a second Krylov chain in the same basis; it finds
    what one chain cannot see, a further copy of a multiple eigenvalue.

    For y (m,) and the Ritz vector x = V_done^T y with value theta, ||A x - theta x|| = ||B y||
    exactly, where B (p, m) is the part of H that couples done rows to pending ones.

    Args:
        A: The operator.
        generator: Source of the random starting vectors; on the CPU, so that all devices draw the
            same ones.
        max_rows: Vectors kept at most, the pending ones included; None for as many as come.

    Attributes:
        num_matvecs: Products spent, those whose rows a restart has compressed included.
        scale: The largest ||A v|| seen, a lower bound of ||A||.
        asymmetry: The largest difference seen between a product's components along earlier rows and
            what symmetry says they are.
        measured: Rounding of the first product of a small operator, as it measures it itself.
        random_share: The length at least of the random part of the first start, which has length 1.

    Source: Ruhe, Implementation aspects of band Lanczos algorithms (1979); two Gram-Schmidt passes:
    Giraud, Langou & Rozloznik, The loss of orthogonality in the Gram-Schmidt process (2005);
    restarts: Wu & Simon, Thick-restart Lanczos method for large symmetric eigenvalue problems
    (2000).
    """

    def __init__(
        self, A: SymmetricOperator, *, generator: torch.Generator, max_rows: int | None = None
    ) -> None:
        self.A = A
        self.generator = generator
        self.max_rows = max_rows
        self.num_matvecs = 0
        self.num_restarts = 0
        self.done: list[int] = []
        self.pending: list[int] = []
        self.chain_starts: list[int] = []
        self._blocks: list[Tensor] = []
        self._block_rows = max(_BLOCK_ROWS, _BLOCK_NUMBERS // max(A.num_local, 1))
        self._size = 0
        self._coefficients = np.zeros((_BLOCK_ROWS, _BLOCK_ROWS))
        self.scale = 0.0
        self.asymmetry = 0.0
        self.measured = 0.0
        self._first_quadrature: tuple[np.ndarray, np.ndarray] | None = None
        self._first_recurrence: tuple[np.ndarray, np.ndarray] | None = None
        self.random_share = 1.0

    @property
    def is_full(self) -> bool:
        """Tell whether the next product needs a restart first.

        A product adds a row, and two if a chain has to be started for it.
        """
        return self.max_rows is not None and self._size + (1 if self.pending else 2) > self.max_rows

    @property
    def is_complete(self) -> bool:
        """Tell whether the basis spans the whole space.

        If it does, no eigenvalue can be missing.
        """
        return len(self.done) == self.A.n

    @property
    def rounding(self) -> float:
        """Bound the effect of rounding on a Ritz value or a residual norm.

        A few units in the last place of ||A|| for the basis (0.7 was the most seen in 400 random
        matrices in float32), which every restart rounds anew, and some more, in float64, for the
        dense eigensolver (15 was the most seen). The products of a network carry errors that no
        constant knows; they break the symmetry of V A V^T, whose two halves come from different
        products, so they are measured there. An operator that is not symmetric at all cannot be
        certified for the same reason.
        """
        # Roundings of restarts are independent and add up like a random walk: hence the square
        # root.
        basis = (
            4 * math.sqrt(1 + self.num_restarts) * torch.finfo(self.A.dtype).eps
            + 64 * torch.finfo(torch.float64).eps
        )
        return basis * self.scale + 2 * self.asymmetry + self.measured

    @property
    def error(self) -> float:
        """Bound the error of a Ritz value: rounding and stated product error.

        The bound holds for residual norms too.
        """
        return self.rounding + self.A.error_estimate

    def row(self, index: int) -> Float[Tensor, " n"]:
        return self._blocks[index // self._block_rows][index % self._block_rows]

    def _threads(self) -> AbstractContextManager[None]:
        """Return the section for work that reads every row once."""
        return threads_for(max(self._size, 1) * self.A.num_local)

    def start_chain(
        self, towards: Float[Tensor, " n"] | None = None, *, noise: float = 0.1
    ) -> bool:
        """Append a random unit vector orthogonal to all rows.

        It is multiplied next. Returns False if the space is full.

        Args:
            towards: A direction to which the random vector is added: a start that is near the
                wanted eigenvectors, and still has a component along every other one.
            noise: Length of the random vector where `towards` has length 1.
        """
        if self._size == self.A.n:
            return False
        with self._threads():
            w = self.A.random(self.generator)
            w /= self.A.space.norm(w)
            if towards is not None:
                w = towards / self.A.space.norm(towards) + noise * w
                # |u + c r| <= 1 + c for unit u and r, so scaled to length 1 the random part keeps a
                # length of at least c / (1 + c).
                if not self.chain_starts:
                    self.random_share = noise / (1 + noise)
                w /= self.A.space.norm(w)
            # The second round matters if little is left of w, that is if the rows nearly span the
            # space.
            for _ in range(2):
                w /= self._orthogonalise(w)[1]
            self.pending.insert(0, self._append(w))
        self.chain_starts.append(self.num_matvecs)
        return True

    def lock(self, V: Float[Tensor, "n k"]) -> None:
        """Keep the whole basis orthogonal to the columns of V as well.

        The columns are never multiplied.

        Where they are eigenvectors, what is built is the Krylov space of the operator on their
        orthogonal complement.
        """
        for column in V.T:
            w = column.clone(memory_format=torch.contiguous_format)
            with self._threads():
                self._append(w, self._orthogonalise(w)[1])

    def expand(self) -> bool:
        """Multiply the first pending row by A, and append the new direction.

        The new direction waits behind those of the other chains.

        A chain that spans an invariant subspace adds no new direction; if no other chain waits, a
        new one starts.

        Returns:
            False if there was nothing left to multiply: the basis spans the whole space.

        Raises:
            NumericalError: If the product is not finite.
        """
        if not self.pending and not self.start_chain():
            return False
        index = self.pending.pop(0)
        w = self.A @ self.row(index)
        # Few products give few pairs to compare, so `asymmetry` would underestimate the rounding.
        if self.num_matvecs == 0 and self.A.n <= _MEASURED_SIZE:
            self.measured = self.A.space.norm(self.A.product_errors(self.row(index)))
        self.num_matvecs += 1
        with self._threads():
            self._add_product(index, w)
        return True

    def _add_product(self, index: int, w: Float[Tensor, " n"]) -> None:
        """Add the product of a row to the basis; w is overwritten."""
        size = self.A.space.norm(w)
        if not math.isfinite(size):
            raise NumericalError(
                f"product {self.num_matvecs} of the operator is not finite: its eigenvalues do not "
                "exist. Check the loss and the parameters for overflow, or use dtype float64."
            )
        self.scale = max(self.scale, size)
        self._coefficients[: self._size, index], remaining = self._orthogonalise(w)
        # For symmetric A, v_i^T A v_j = v_j^T A v_i. The two come from different products, so their
        # difference shows the products' error.
        defect = self._coefficients[self.done, index] - self._coefficients[index, self.done]
        self.asymmetry = max(self.asymmetry, float(np.linalg.norm(defect)))
        self.done.append(index)
        # A direction that is all rounding would only repeat what is there.
        if (
            remaining > max(self.rounding, 10 * torch.finfo(self.A.dtype).eps * size)
            and self._size < self.A.n
        ):
            new = self._append(w, remaining)
            self._coefficients[new, index] = remaining
            self.pending.append(new)

    def quadrature(self) -> tuple[Float[np.ndarray, " j"], Float[np.ndarray, " j"]]:
        """Return the first chain's nodes and weights, up to the first restart.

        The first chain alone is a plain Lanczos run.
        """
        if self._first_quadrature is not None:
            return self._first_quadrature
        length = self._first_length
        with single_blas_thread():
            # Golub-Welsch: nodes are the eigenvalues of the tridiagonal matrix, weights the squared
            # first components of its eigenvectors.
            nodes, vectors = np.linalg.eigh(self.projected()[0][:length, :length])
        return nodes, vectors[0] ** 2

    def recurrence(self) -> tuple[Float[np.ndarray, " j"], Float[np.ndarray, " j"]]:
        """Return the recurrence coefficients of the first chain.

        These are alpha_1..alpha_j and beta_1..beta_j up to the first restart or second start.

        Without the last step of a chain that ended by itself, whose beta is zero to rounding.
        """
        if self._first_recurrence is not None:
            return self._first_recurrence
        rows = np.array(self.done[: self._first_length], dtype=int)
        # Rows follow one another, since each product of a single chain appends one; the last of a
        # chain that ended has none.
        following = rows[rows + 1 < self._size]
        beta = self._coefficients[following + 1, following]
        length = len(beta) if beta.all() else int(np.argmin(beta != 0))
        return self._coefficients[rows, rows][:length], beta[:length]

    @property
    def _first_length(self) -> int:
        return self.chain_starts[1] if len(self.chain_starts) > 1 else len(self.done)

    def restart(self, values: Float[np.ndarray, " j"], Y: Float[np.ndarray, "m j"]) -> None:
        """Replace the done rows by j Ritz vectors V_done^T Y, in place.

        The Ritz vectors have these values. The pending rows stay.

        The Ritz vectors are coupled to the pending rows by B Y, so A V^T = V^T H goes on to hold
        for the smaller basis.
        """
        if self._first_quadrature is None:
            self._first_quadrature, self._first_recurrence = self.quadrature(), self.recurrence()
        _, coupling = self.projected()
        kept, waiting = Y.shape[1], len(self.pending)
        # The new rows as combinations of the old: Ritz vectors first, then the pending rows
        # unchanged.
        weights = np.zeros((kept + waiting, self._size))
        weights[:kept, self.done] = Y.T
        weights[kept + np.arange(waiting), self.pending] = 1
        with self._threads():
            self._transform(weights)
        # H of the new basis is an arrowhead: Ritz values on the diagonal, B Y in the pending rows.
        self._coefficients[:] = 0
        self._coefficients[np.arange(kept), np.arange(kept)] = values
        self._coefficients[kept : kept + waiting, :kept] = coupling @ Y
        self._size = kept + waiting
        self.done, self.pending = list(range(kept)), list(range(kept, kept + waiting))
        self.num_restarts += 1

    def _transform(self, weights: Float[np.ndarray, "r s"]) -> None:
        """Replace the s rows by r <= s combinations of them.

        It works on a stretch of columns at a time, and frees the memory of the other rows.
        """
        step = max(1, CHUNK.get(self.A.device.type, 1 << 20) // self._size)
        W = torch.as_tensor(weights).to(self.A.device)
        for start in range(0, self.A.num_local, step):
            columns = slice(start, start + step)
            piece = torch.cat([block[:, columns] for block in self._blocks])[: self._size].double()
            new = (W @ piece).to(self.A.dtype)
            for first, block in zip(range(0, len(new), self._block_rows), self._blocks):
                rows = new[first : first + self._block_rows]
                block[: len(rows), columns] = rows
        del self._blocks[math.ceil(len(weights) / self._block_rows) :]

    def projected(self) -> tuple[Float[np.ndarray, "m m"], Float[np.ndarray, "p m"]]:
        """Return H on the done rows, and their coupling to pending rows.

        H has the shape (m, m), the coupling B (p, m).
        """
        H = self._coefficients[np.ix_(self.done, self.done)]
        # Column j is complete for the rows that existed when j was multiplied; the rest follows
        # from symmetry.
        indices = np.arange(len(H))
        return np.where(indices[:, None] <= indices, H, H.T), self._coefficients[
            np.ix_(self.pending, self.done)
        ]

    def combine(self, Y: Float[np.ndarray, "m k"]) -> Float[Tensor, "n k"]:
        """Compute the vectors V_done^T Y."""
        weights = np.zeros((self._size, Y.shape[1]))
        weights[self.done] = Y
        out = torch.zeros(self.A.num_local, Y.shape[1], dtype=self.A.dtype, device=self.A.device)
        with self._threads():
            for start, block in zip(range(0, self._size, self._block_rows), self._blocks):
                rows = weights[start : start + self._block_rows]
                out.addmm_(block[: len(rows)].T, torch.as_tensor(rows).to(out))
        return out

    def orthogonality_defect(self) -> float:
        """Compute max |V V^T - I| over all rows.

        It bounds spurious copies of eigenvalues ("ghosts") in this basis. Costs about 1/6 of a
        second pass.
        """
        # Spurious copies of eigenvalues need rows that are not orthogonal, which V V^T shows.
        gram = torch.zeros(self._size, self._size, dtype=torch.float64, device=self.A.device)
        # Of all rows at once, so that each number is converted once.
        step = max(1, CHUNK.get(self.A.device.type, 1 << 20) // max(self._size, 1))
        with self._threads():
            for start in range(0, self.A.num_local, step):
                piece = torch.cat([block[:, start : start + step] for block in self._blocks])[
                    : self._size
                ].double()
                gram.addmm_(piece, piece.T)
        gram = torch.as_tensor(self.A.space.total(np.asarray(gram.cpu())))
        return (
            float((gram - torch.eye(self._size, dtype=torch.float64)).abs().max())
            if self._size
            else 0.0
        )

    def _orthogonalise(self, w: Float[Tensor, " n"]) -> tuple[Float[np.ndarray, " m"], float]:
        """Orthogonalise w against all rows, in place.

        Returns the components that were removed, and the norm of what is left.
        """
        # The kernel has one thread. It adds up as often as its twin, so that another process may
        # take that one.
        if (
            len(w) >= _FUSED_LENGTH.get(w.dtype, math.inf)
            and w.device.type == "cpu"
            and torch_threads() == 1
        ):
            fused = _fused() if w.is_contiguous() else None
            if fused is not None:
                # Numba writes what it has compiled to a cache, before it calls it.
                with suppress(OSError):
                    return fused(
                        [self.row(index) for index in range(self._size)], w, self.A.space.total
                    )
        return self._orthogonalise_by_torch(w)

    def _orthogonalise_by_torch(
        self, w: Float[Tensor, " n"]
    ) -> tuple[Float[np.ndarray, " m"], float]:
        total = np.zeros(self._size)
        # Classical Gram-Schmidt loses orthogonality by cancellation; a second pass restores it to
        # working precision (Giraud, Langou & Rozloznik).
        for _ in range(2):
            components = self._inner(w)
            for start, block in zip(range(0, self._size, self._block_rows), self._blocks):
                rows = torch.as_tensor(components[start : start + self._block_rows]).to(w)
                w.addmv_(block[: len(rows)].T, rows, alpha=-1)
            total += components
        return total, self.A.space.norm(w)

    def _inner(self, w: Float[Tensor, " n"]) -> Float[np.ndarray, " m"]:
        starts = range(0, self._size, self._block_rows)
        parts = [
            inner(block[: self._size - start], w) for start, block in zip(starts, self._blocks)
        ]
        return self.A.space.total(np.concatenate(parts) if parts else np.zeros(0))

    def _append(self, w: Tensor, divisor: float = 1.0) -> int:
        if self._size % self._block_rows == 0:
            self._blocks.append(
                torch.empty(
                    self._rows_to_come(), self.A.num_local, dtype=self.A.dtype, device=self.A.device
                )
            )
        if self._size == len(self._coefficients):
            self._coefficients = np.pad(self._coefficients, (0, len(self._coefficients)))
        self._size += 1
        torch.div(w, float(divisor), out=self.row(self._size - 1))
        return self._size - 1

    def _rows_to_come(self) -> int:
        most = self.A.n if self.max_rows is None else min(self.A.n, self.max_rows)
        return min(self._block_rows, most - self._size)
