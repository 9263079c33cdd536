"""How parameters and vectors are cut over processes: by rows of each parameter.

This is the cut of torch's Shard(0).

A parameter of r rows over p processes is cut into pieces of ceil(r / p) rows: the last processes
may have fewer, or none. A scalar counts as one row. Rows of a batch are as many in each process as
that process was given.
Shapes: n = total size of the parameters, l = entries of a vector in this process, t = parameters,
p = processes.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from landscape.linalg.coordinates import Coordinates
from landscape.linalg.vectors import VectorSpace, norm, random_rows
from landscape.sharded.processes import Processes


@dataclass(frozen=True)
class Cut:
    """A tensor cut by rows over processes: process i holds counts[i] rows.

    Attributes:
        shape: Shape of the whole.
        counts: Rows of each process.
    """

    shape: torch.Size
    counts: tuple[int, ...]

    @classmethod
    def even(cls, shape: torch.Size, size: int) -> "Cut":
        """Cut a parameter over `size` processes, as torch's Shard(0) does."""
        num_rows = shape[0] if shape else 1
        each = -(-num_rows // size)
        return cls(shape, tuple(max(0, min(each, num_rows - rank * each)) for rank in range(size)))

    @property
    def row_shape(self) -> torch.Size:
        return self.shape[1:]

    @property
    def num_rows(self) -> int:
        """Count the rows of the whole; 1 for a scalar."""
        return sum(self.counts)

    def rows_of(self, rank: int) -> slice:
        """Return the slice of rows that a process holds."""
        start = sum(self.counts[:rank])
        return slice(start, start + self.counts[rank])

    def lengths(self) -> list[int]:
        """Count the entries of each process."""
        width = math.prod(self.row_shape)
        return [count * width for count in self.counts]

    def as_rows(self, whole: Tensor) -> Tensor:
        """Reshape the whole so that rows come first; changes only a scalar."""
        return whole.reshape(self.num_rows, *self.row_shape)

    def padded(self, piece: Tensor) -> Tensor:
        """Pad a piece with zeros to the shape of the largest piece."""
        return _with_rows(piece, max(self.counts))

    def padded_pieces(self, whole: Tensor) -> Tensor:
        """Stack all pieces, each padded, below each other."""
        rows, most = self.as_rows(whole), max(self.counts)
        if self._is_padded_at_the_end:
            return _with_rows(rows, most * len(self.counts))
        return torch.cat([_with_rows(piece, most) for piece in rows.split(list(self.counts))])

    def without_padding(self, pieces: Tensor) -> Tensor:
        """Join padded, stacked pieces to the whole.

        The result is a view of them where possible.
        """
        if self._is_padded_at_the_end:
            return pieces[: self.num_rows].view(self.shape)
        parts = pieces.split(max(self.counts))
        return torch.cat([part[:count] for part, count in zip(parts, self.counts)]).view(self.shape)

    @property
    def _is_padded_at_the_end(self) -> bool:
        most = max(self.counts)
        partial = [rank for rank, count in enumerate(self.counts) if count < most]
        return not partial or not any(self.counts[partial[0] + 1 :])


def _with_rows(rows: Tensor, count: int) -> Tensor:
    if len(rows) == count:
        return rows
    filled = rows.new_zeros(count, *rows.shape[1:])
    filled[: len(rows)] = rows
    return filled


@dataclass(frozen=True, eq=False)
class CutVectors(VectorSpace):
    """Vectors of which this process holds some stretches, and others the rest.

    The whole vector is a row of segments: of each part of it (a parameter) that of the first
    process, of the second, ... A process holds its own segments one after the other.

    Attributes:
        lengths: (t, p) entries of each segment.
    """

    processes: Processes
    lengths: np.ndarray

    @classmethod
    def of(
        cls, processes: Processes, lengths: Sequence[Sequence[int]] | np.ndarray
    ) -> "CutVectors":
        table = np.asarray(lengths, dtype=np.int64).reshape(-1, processes.size)
        return cls(n=int(table.sum()), processes=processes, lengths=table)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CutVectors) or other.processes != self.processes:
            return False
        return np.array_equal(self.lengths, other.lengths)

    def __hash__(self) -> int:
        return hash((self.n, self.processes))

    @property
    def own(self) -> np.ndarray:
        """Return the lengths (t,) of the segments of this process."""
        return self.lengths[:, self.processes.rank]

    @property
    def num_local(self) -> int:
        return int(self.own.sum())

    @property
    def is_whole(self) -> bool:
        return False

    def together(self) -> AbstractContextManager[None]:
        return self.processes.together()

    def total(self, numbers: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        return self.processes.total(numbers)

    def largest(self, number: float) -> float:
        return self.processes.largest(number)

    def norm(self, w: Float[Tensor, " l"]) -> float:
        return float(np.sqrt(self.total(np.array([norm(w) ** 2]))[0]))

    def norms(self, V: Float[Tensor, "l m"]) -> Float[Tensor, " m"]:
        squares = torch.linalg.vector_norm(V, dim=0, dtype=torch.float64) ** 2
        return torch.from_numpy(np.sqrt(self.total(np.asarray(squares.cpu())))).to(V.device)

    def random(
        self, generator: torch.Generator, count: int | None = None
    ) -> Float[Tensor, "l ..."]:
        rows = random_rows(self.n, self.ranges(), generator, 1 if count is None else count)
        return rows[:, 0] if count is None else rows

    def ranges(self) -> list[tuple[int, int]]:
        """List first index and end of each of this process's segments.

        Indices are those in the whole vector.
        """
        # Segments lie by parameter, then by process, so their ends are sums over the table's rows.
        stops = self.lengths.cumsum().reshape(self.lengths.shape)[:, self.processes.rank]
        return [(int(stop - length), int(stop)) for stop, length in zip(stops, self.own)]

    def positions(self) -> Int64[Tensor, " l"]:
        pieces = [torch.arange(start, stop) for start, stop in self.ranges()]
        return torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64)

    def restricted(self, rows: Coordinates | Int64[Tensor, " s"]) -> "CutVectors":
        """Restrict to some entries; collective.

        They are given by their places among those of this process, ascending.
        """
        chosen = rows if isinstance(rows, Coordinates) else Coordinates.from_indices(rows)
        counts = np.diff(chosen.count_below(np.concatenate([[0], self.own.cumsum()]))).tolist()
        return CutVectors.of(self.processes, self.processes.each(counts).T)

    def gathered(self, v: Float[Tensor, "l ..."]) -> Float[Tensor, "n ..."]:
        """Gather whole vectors in every process; collective.

        A vector or a block of vectors. The result takes the memory of whole vectors.
        """
        most = int(self.lengths.sum(axis=0).max())
        with self.together():
            padded = torch.zeros((most, *v.shape[1:]), dtype=v.dtype, device=v.device)
            padded[: len(v)] = v
            whole = self.processes.gather(padded, "the gathering of vectors")
            parts = whole.split(most) if most else [v] * self.processes.size
            columns = [
                part[: column.sum()].split(column.tolist())
                for part, column in zip(parts, self.lengths.T)
            ]
            return torch.cat([piece for pieces in zip(*columns) for piece in pieces])

    def cut(self, whole: Float[Tensor, "n ..."]) -> Float[Tensor, "l ..."]:
        """Select this process's entries of a whole vector, or of a block."""
        return torch.cat([whole[start:stop] for start, stop in self.ranges()])
