"""Memory of one of several processes that share a model, from shapes.

Activations are not included: they depend on the model, and are not known before the first product.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from landscape.sharded.layout import Cut
from landscape.sharded.weights import num_held, small_bytes
from landscape.terminal import size_text

if TYPE_CHECKING:
    from torch import nn

# Vectors beside the basis while Lanczos runs: the one that is multiplied, its product, and for a
# moment copies of both. Rows of the basis that are set aside for later are not counted; with them,
# up to twice the formula was seen (33,540 parameters).
WORK_VECTORS = 4


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes that each process needs.

    Attributes:
        weights: Its rows of all parameters.
        gradient: Its rows of the gradient, to which the graph leads.
        krylov: Its entries of the Krylov vectors.
        work: Its entries of the vectors in a step of Lanczos.
        gathered: Whole weights that are held: the small ones, the last few large ones, and a
            derivative of one of them.
        num_vectors: Krylov vectors that are kept.
    """

    weights: int
    gradient: int
    krylov: int
    work: int
    gathered: int
    num_vectors: int

    @property
    def total(self) -> int:
        return self.weights + self.gradient + self.krylov + self.work + self.gathered

    def text(self, num_processes: int) -> str:
        """Describe the memory in a sentence."""
        each = "in this process" if num_processes == 1 else f"in each of {num_processes} processes"
        return (
            f"at least {size_text(self.total)} {each}, and activations on top: weights "
            f"{size_text(self.weights)}, gradient {size_text(self.gradient)}, {self.num_vectors} "
            f"Krylov vectors {size_text(self.krylov)}, work {size_text(self.work)}, gathered "
            f"weights {size_text(self.gathered)}"
        )


def memory_of_rank(
    model: "nn.Module",
    studied: Iterable[str],
    *,
    num_processes: int,
    num_vectors: int,
    max_basis_memory: int | None = None,
) -> RankMemory:
    """Compute the memory of the process that holds most.

    Parameters may be on the meta device.

    Args:
        studied: Names of the parameters for which derivatives are computed.
        num_vectors: Expected number of Krylov vectors.
        max_basis_memory: Bytes that they may take in each process.
    """
    parameters, names = dict(model.named_parameters()), set(studied)
    local = {
        name: Cut.even(tensor.shape, num_processes).lengths()[0] * tensor.itemsize
        for name, tensor in parameters.items()
    }
    sizes = {name: math.prod(tensor.shape) * tensor.itemsize for name, tensor in parameters.items()}
    vector = sum(local[name] for name in names)
    small = sum(size for size in sizes.values() if size <= small_bytes())
    large = sorted((size for size in sizes.values() if size > small_bytes()), reverse=True)
    krylov = num_vectors * vector
    if max_basis_memory is not None and krylov > max_basis_memory:
        num_vectors = max_basis_memory // max(1, vector)
        krylov = num_vectors * vector
    # A single process holds all weights already, but copies are made all the same.
    return RankMemory(
        weights=sum(local.values()),
        gradient=vector,
        krylov=krylov,
        work=WORK_VECTORS * vector,
        gathered=small + sum(large[: num_held()]) + (large[0] if large else 0),
        num_vectors=num_vectors,
    )
