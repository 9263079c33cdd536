"""Eigenvectors of a model that several processes share, rounded and gathered in the first.

Shapes: n = parameters under study, l = entries that this process holds, k = vectors.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float16

from landscape.store.vectors import BLOCK, RoundedVector, blocks_of, direction_of, rounded

if TYPE_CHECKING:
    from landscape.sharded.layout import CutVectors


def gathered_in_first(
    vectors: Float[torch.Tensor, "l k"], space: "CutVectors", where: str
) -> list[RoundedVector]:
    """Round vectors to half precision, and gather them in process 0; collective.

    Every process rounds its own entries. What is exchanged, and what process 0 holds of whole
    vectors, has 2 bytes an entry; the other processes hold a block of each at a time.

    Args:
        space: How the vectors are cut.
        where: Name of the batch in messages.

    Returns:
        The vectors in process 0, an empty list elsewhere.

    Raises:
        NumericalError: In every process, if a vector is zero or not finite.
    """
    made: list[RoundedVector] = []
    for index in range(vectors.shape[1]):
        own = vectors[:, index].cpu().numpy()
        squares = sum(float(block @ block) for _, block in blocks_of(own))
        largest = max((float(np.abs(block).max()) for _, block in blocks_of(own)), default=0.0)
        # A NaN has no place among sizes; the sum of the squares tells of it.
        norm, exponent = direction_of(
            float(space.total(np.array([squares]))[0]),
            space.largest(float(np.nan_to_num(largest, nan=0.0))),
            f"{where}: eigenvector {index}",
        )
        half, lost = np.empty(len(own), dtype=np.float16), 0.0
        for start, block in blocks_of(own):
            half[start : start + len(block)], more = rounded(block, norm, exponent)
            lost += more
        rounding = float(np.sqrt(space.total(np.array([lost]))[0]))
        whole = _joined(half, space, vectors.device)
        if whole is not None:
            scale = float(np.ldexp(1.0, -exponent))
            made.append(RoundedVector(half=whole, scale=scale, rounding=rounding))
    return made


def _joined(
    own: Float16[np.ndarray, " l"], space: "CutVectors", device: torch.device
) -> Float16[np.ndarray, " n"] | None:
    """Join the entries of all processes in process 0, a block of each at a time."""
    processes = space.processes
    most = int(space.lengths.sum(axis=0).max())
    whole = np.empty(space.n, dtype=np.float16) if processes.rank == 0 else None
    for start in range(0, most, BLOCK):
        size = min(BLOCK, most - start)
        piece = np.zeros(size, dtype=np.float16)
        piece[: max(0, len(own) - start)] = own[start : start + size]
        # Bytes, which every backend exchanges.
        parts = processes.gather(
            torch.from_numpy(piece).view(torch.uint8).to(device), "the eigenvectors"
        )
        if whole is not None:
            halves = parts.cpu().view(torch.float16).numpy().reshape(processes.size, size)
            for rank, half in enumerate(halves):
                _place(whole, half, start, space.lengths, rank)
    return whole


def _place(
    whole: Float16[np.ndarray, " n"],
    half: Float16[np.ndarray, " c"],
    start: int,
    lengths: np.ndarray,
    rank: int,
) -> None:
    """Write a block of a process's entries, from its entry `start` on, into the whole vector."""
    own = lengths[:, rank]
    stops_here = own.cumsum()
    # Segments of the whole lie by parameter, then by process.
    begins = lengths.cumsum().reshape(lengths.shape)[:, rank] - own
    first = int(np.searchsorted(stops_here, start, side="right"))
    for place in range(first, len(own)):
        segment = int(stops_here[place] - own[place])
        low, high = max(segment, start), min(int(stops_here[place]), start + len(half))
        if low >= start + len(half):
            break
        at = int(begins[place]) + low - segment
        whole[at : at + high - low] = half[low - start : high - start]
