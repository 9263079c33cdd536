"""An operator's vectors as this process holds them: inner products, norms, random draws.

Solvers sum over the n entries of a vector, and draw n numbers, through here alone. So an operator
whose vectors are cut over several processes runs in every solver, once it says how sums are added
up and which numbers are its own.
Knows numbers, not operators: imports only torch, numpy and landscape.linalg.coordinates. Shapes: n
= dimension of the operator, l = entries of a vector that this process holds, m = number of vectors.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from landscape.linalg.coordinates import Coordinates

# Elements converted to float64 at a time: large enough for BLAS, small enough for the cache and for
# GPU memory.
CHUNK = {"cpu": 1 << 16, "cuda": 1 << 22}
# Normal numbers that torch draws together on a CPU: see `random_rows`.
_TORCH_BLOCK = 16
# Random numbers that are drawn at a time where only some of them are kept: 8 MB.
_DRAWN = 1 << 20


def inner(V: Float[Tensor, "m l"], w: Float[Tensor, " l"]) -> Float[np.ndarray, " m"]:
    """Compute inner products of the rows of V with w in float64.

    Sums are accumulated in float64 whatever the dtype.

    In float32 the CPU's own dot product of 1e7..1e8 elements is wrong in the third or fourth digit,
    which is enough to let a Krylov basis lose its orthogonality.
    """
    if V.dtype == torch.float64:
        return np.asarray((V @ w).cpu())
    # In chunks, since a float64 copy of all rows would take twice their memory.
    total = torch.zeros(V.shape[0], dtype=torch.float64, device=V.device)
    step = CHUNK.get(V.device.type, 1 << 20)
    for start in range(0, V.shape[1], step):
        total += V[:, start : start + step].double() @ w[start : start + step].double()
    return np.asarray(total.cpu())


def norm(w: Float[Tensor, " l"]) -> float:
    """Compute the Euclidean norm, accumulated in float64.

    `torch.linalg.vector_norm` in float32 is off by up to 1 %.
    """
    return float(torch.linalg.vector_norm(w, dtype=torch.float64))


def all_finite(x: Tensor) -> bool:
    """Tell whether no entry is infinite or NaN.

    A finite sum has finite terms. It takes a third of the time of a test of all entries, and no
    memory. A sum that overflows decides nothing.
    """
    return bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())


@dataclass(frozen=True)
class VectorSpace:
    """Vectors of n entries, all of which this process holds.

    A space that is cut over several processes overrides `num_local`, `is_whole`, `together`,
    `total`, `largest`, `norms`, `random`, `positions` and `restricted`. Every method but those two
    properties may then be collective: all processes call it in the same order, and all get the same
    numbers, to the last bit, so that they decide alike.

    Attributes:
        n: Dimension of the space, over all processes.
    """

    n: int

    @property
    def num_local(self) -> int:
        """Count the entries of a vector that this process holds."""
        return self.n

    @property
    def is_whole(self) -> bool:
        """Tell whether this process holds every entry."""
        return True

    def together(self) -> AbstractContextManager[None]:
        """Return the section for work that all processes begin and end together.

        What fails in one process fails in all.
        """
        return nullcontext()

    def total(self, numbers: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Sum the processes' sums over their own entries."""
        return numbers

    def largest(self, number: float) -> float:
        """Return the largest of the processes' numbers."""
        return number

    def any(self, flag: bool) -> bool:
        """Tell whether the flag is set in any process."""
        return self.largest(float(flag)) > 0

    def inner(self, V: Float[Tensor, "m l"], w: Float[Tensor, " l"]) -> Float[np.ndarray, " m"]:
        """Compute inner products of the rows of V with w in float64."""
        return self.total(inner(V, w))

    def norm(self, w: Float[Tensor, " l"]) -> float:
        """Compute the Euclidean norm, accumulated in float64."""
        return norm(w)

    def norms(self, V: Float[Tensor, "l m"]) -> Float[Tensor, " m"]:
        """Compute Euclidean norms of the columns of V, accumulated in float64.

        The result is on V's device.
        """
        return torch.linalg.vector_norm(V, dim=0, dtype=torch.float64)

    def random(
        self, generator: torch.Generator, count: int | None = None
    ) -> Float[Tensor, "l ..."]:
        """Draw a standard normal vector, or `count` columns, in float64 on the CPU.

        The entry of a given index is the same number however the space is cut.
        """
        shape = (self.n,) if count is None else (self.n, count)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def positions(self) -> Int64[Tensor, " l"]:
        """Return the whole-vector index of each entry in this process, ascending."""
        return torch.arange(self.n)

    def restricted(self, rows: Coordinates | Int64[Tensor, " s"]) -> "VectorSpace":
        """Restrict to some entries, given by their places in this process."""
        return VectorSpace(len(rows))


def random_rows(
    n: int, ranges: Sequence[tuple[int, int]], generator: torch.Generator, count: int = 1
) -> Float[Tensor, "l c"]:
    """Draw some rows of torch.randn(n, count), without storing the others.

    The rows are `start..stop` for ascending ranges. Memory is that of few more numbers than these.

    All n * count numbers are drawn, a stretch at a time, so that the generator is left as
    torch.randn leaves it. On a CPU torch draws normal numbers in blocks of 16 from one stream of
    uniform ones, and where 16 does not divide their number it draws the last 16 anew: stretches of
    whole blocks, the last of which is no shorter than 16, give the same bits.
    """
    total, kept, done = n * count, [], 0
    wanted = [(start * count, stop * count) for start, stop in ranges if stop > start]
    assert _DRAWN % _TORCH_BLOCK == 0 and all(
        before[1] <= after[0] for before, after in zip(wanted, wanted[1:])
    )
    while done < total:
        # The last stretch takes along a remainder that would be shorter than a block.
        left = total - done
        size = left if left < _DRAWN + _TORCH_BLOCK else _DRAWN
        numbers = torch.randn(size, generator=generator, dtype=torch.float64)
        for start, stop in wanted:
            low, high = max(start, done) - done, min(stop, done + size) - done
            if low < high:
                kept.append(numbers[low:high].clone())
        done += size
    return torch.cat(kept).view(-1, count) if kept else torch.empty(0, count, dtype=torch.float64)
