"""Ascending coordinates of a vector, held as runs where these are long.

A loss depends on nearly all coordinates, in few long runs: their indices would take 8 bytes each,
twice as much as a vector in float32, and copies by index take three times as long as copies of
runs.
Knows numbers, not operators: imports only torch and numpy. Shapes: n = entries of a vector, s =
coordinates, r = runs.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

# Mean length of a run from which runs are copied, and not single entries by their index.
_MEAN_LENGTH = {"cpu": 2048, "cuda": 1 << 15}
# Zeros that are held at once to fill gaps between runs.
_ZEROS = 1 << 18


class Coordinates:
    """Ascending coordinates, each once.

    They are held as runs, or as indices where the runs are so short that copies by index take less
    time.

    Args:
        starts, stops: First coordinate of each run, and that after its last; ascending, no two runs
            overlap. Runs that touch are joined, and empty ones are left out.
        device: Device of the vectors whose entries are selected.

    Attributes:
        stop: One more than the last coordinate; 0 if there is none.
    """

    def __init__(
        self,
        starts: Int64[np.ndarray, " r"],
        stops: Int64[np.ndarray, " r"],
        device: torch.device | str = "cpu",
    ) -> None:
        starts, stops = _joined(starts, stops)
        self.device = torch.device(device)
        self.stop = int(stops[-1]) if len(stops) else 0
        self._count = int((stops - starts).sum())
        self._runs: tuple[np.ndarray, np.ndarray] | None = None
        self._indices: Tensor | None = None
        if len(starts) * _MEAN_LENGTH.get(self.device.type, _MEAN_LENGTH["cuda"]) >= self._count:
            self._indices = _expanded(starts, stops).to(self.device)
        else:
            self._runs = starts, stops
            # Gap, run, gap, run, ...: how a vector is cut up to the end of the last run.
            self._sizes: list[int] = np.diff(
                np.stack([starts, stops], axis=1).reshape(-1), prepend=0
            ).tolist()

    @classmethod
    def from_indices(cls, indices: Int64[Tensor, " s"]) -> "Coordinates":
        """Convert a vector of indices, for vectors on its device.

        Raises:
            ValueError: If it is no vector of int64, or the indices do not ascend from 0 or more.
        """
        if indices.ndim != 1 or indices.dtype != torch.int64:
            raise ValueError(
                f"Coordinates must be a vector of int64 indices, got {indices.dtype} "
                f"{tuple(indices.shape)}."
            )
        steps = indices[1:] - indices[:-1]
        if len(indices) and (int(indices[0]) < 0 or bool((steps < 1).any())):
            raise ValueError(
                "Coordinates are not ascending indices from 0 on, each once: vectors would be put "
                "together in another order. Sort them."
            )
        return cls(*_runs_of(indices), indices.device)

    @classmethod
    def all(cls, n: int, device: torch.device | str = "cpu") -> "Coordinates":
        """Select all coordinates of a vector of n entries."""
        return cls(np.array([0]), np.array([n]), device)

    @classmethod
    def union(cls, several: "Sequence[Coordinates]") -> "Coordinates":
        """Unite several sets of coordinates, at least one."""
        starts, stops = (np.concatenate(ends) for ends in zip(*(each.runs() for each in several)))
        order = np.argsort(starts, kind="stable")
        # How far the runs up to each have reached: a later run may end before an earlier one.
        starts, reached = starts[order], np.maximum.accumulate(stops[order])
        # A run begins where all before it have ended.
        begins = np.concatenate([[True], starts[1:] > reached[:-1]])[: len(starts)]
        last = np.append(np.flatnonzero(begins)[1:] - 1, len(starts) - 1)[: int(begins.sum())]
        return cls(starts[begins], reached[last], several[0].device)

    def __len__(self) -> int:
        return self._count

    def __eq__(self, other: object) -> bool:
        """Tell whether the coordinates are the same, whatever their devices."""
        if not isinstance(other, Coordinates):
            return NotImplemented
        return len(self) == len(other) and all(map(np.array_equal, self.runs(), other.runs()))

    def __repr__(self) -> str:
        return f"Coordinates({len(self):,} in {len(self.runs()[0]):,} runs)"

    def runs(self) -> tuple[Int64[np.ndarray, " r"], Int64[np.ndarray, " r"]]:
        """Return the first coordinate of each run, and that after its last.

        The arrays must not be written to.
        """
        if self._runs is not None:
            return self._runs
        assert self._indices is not None
        return _runs_of(self._indices)

    def indices(self) -> Int64[Tensor, " s"]:
        """Return the coordinates as a vector.

        It may be a new tensor at each call, and must not be written to.
        """
        return _expanded(*self.runs()).to(self.device) if self._indices is None else self._indices

    def to(self, device: torch.device | str) -> "Coordinates":
        """Move to another device: the same coordinates of vectors there."""
        return self if torch.device(device) == self.device else Coordinates(*self.runs(), device)

    # --- vectors ----------------------------------------------------------------------------------

    def select(self, x: Tensor, dim: int = 0) -> Tensor:
        """Copy the entries of x at the coordinates, which count along `dim`."""
        if self._indices is not None:
            return x.index_select(dim, self._indices)
        pieces = x.split([*self._sizes, x.shape[dim] - self.stop], dim)
        return torch.cat(pieces[1::2], dim)

    def expand(self, x: Tensor, n: int, dim: int = 0, *, out: Tensor | None = None) -> Tensor:
        """Copy x to the coordinates among n, with zeros elsewhere.

        `select` is its inverse.

        Args:
            x: With s entries along `dim`.
            out: Where to write the result; its values do not matter.
        """
        shape = list(x.shape)
        if self._indices is not None:
            shape[dim] = n
            whole = (
                torch.zeros(shape, dtype=x.dtype, device=x.device) if out is None else out.zero_()
            )
            return whole.index_copy_(dim, self._indices, x)
        gaps = [*self._sizes[::2], n - self.stop]
        shape[dim] = min(max(gaps), _ZEROS)
        zeros = torch.zeros(shape, dtype=x.dtype, device=x.device)
        # Concatenation writes the result once, and on a GPU needs one kernel launch for many
        # pieces.
        pieces = []
        for gap, piece in zip(gaps, (*x.split(self._sizes[1::2], dim), None)):
            pieces += [
                zeros.narrow(dim, 0, min(_ZEROS, gap - start)) for start in range(0, gap, _ZEROS)
            ]
            pieces += [] if piece is None else [piece]
        return torch.cat(pieces, dim) if out is None else torch.cat(pieces, dim, out=out)

    # --- other coordinates ------------------------------------------------------------------------

    def places_in(self, other: "Coordinates") -> "Coordinates":
        """Locate shared coordinates: their positions within `other`."""
        starts, stops = other.runs()
        # Coordinates in earlier runs, so that run r begins at place before[r].
        before = np.concatenate([[0], (stops - starts).cumsum()])
        # Between two neighbouring ends, all coordinates are in a run or none.
        ends = np.unique(np.concatenate([*self.runs(), starts, stops]))
        low, high = ends[:-1], ends[1:]
        both = (_run_with(low, *self.runs()) >= 0) & (_run_with(low, starts, stops) >= 0)
        low, high = low[both], high[both]
        run = _run_with(low, starts, stops)
        places = before[run] + low - starts[run]
        return Coordinates(places, places + high - low, self.device)

    def complement(self, n: int) -> "Coordinates":
        """Select the other coordinates of a vector of n entries."""
        starts, stops = self.runs()
        return Coordinates(np.concatenate([[0], stops]), np.concatenate([starts, [n]]), self.device)

    def count_below(self, bounds: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        """Count the coordinates below each of several bounds."""
        starts, stops = self.runs()
        before = np.concatenate([[0], (stops - starts).cumsum()])
        begun = np.searchsorted(starts, bounds)
        # All coordinates of the runs that begin below a bound, minus those of the last run beyond
        # it.
        beyond = np.concatenate([[0], stops])[begun] - bounds
        return before[begun] - np.maximum(beyond, 0)


def _joined(starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drop empty runs and join those that touch."""
    starts, stops = np.asarray(starts, dtype=np.int64), np.asarray(stops, dtype=np.int64)
    filled = stops > starts
    starts, stops = starts[filled], stops[filled]
    assert (starts[1:] >= stops[:-1]).all(), "runs overlap or do not ascend"
    parted = starts[1:] > stops[:-1]
    return starts[np.concatenate([[True], parted])[: len(starts)]], stops[
        np.concatenate([parted, [True]])[: len(stops)]
    ]


def _expanded(starts: np.ndarray, stops: np.ndarray) -> Tensor:
    """List the indices in runs, on the CPU."""
    lengths = stops - starts
    # Steps from each index to the next, added up in place.
    indices = np.ones(lengths.sum(), dtype=np.int64)
    indices[lengths.cumsum() - lengths] = (
        starts - np.concatenate([[0], stops[:-1] - 1])[: len(starts)]
    )
    return torch.from_numpy(np.cumsum(indices, out=indices))


def _runs_of(indices: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Split ascending indices into runs, on the CPU."""
    numbers = indices.cpu().numpy()
    parted = np.diff(numbers) != 1
    starts = numbers[np.concatenate([[True], parted])[: len(numbers)]]
    return starts, numbers[np.concatenate([parted, [True]])[: len(numbers)]] + 1


def _run_with(coordinates: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Find the run that holds each coordinate; -1 for none."""
    if not len(starts):
        return np.full(len(coordinates), -1)
    run = np.searchsorted(starts, coordinates, side="right") - 1
    return np.where((run >= 0) & (coordinates < stops[run]), run, -1)
