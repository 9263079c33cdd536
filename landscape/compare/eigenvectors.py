"""Kept eigenvectors: how far they turn, how localised they are, and in which modules they lie.

Angles are principal angles between the spaces of the leading vectors, in radians. Each comes with
the interval over batches, and with a bound of its error from landscape.compare.eigenvector_bounds.

Shapes: k = vectors of a batch, r = vectors of several batches, b = batches, n = parameters.

Sources: Stewart and Sun, Matrix Perturbation Theory (1990), section I.5; Björck and Golub,
Numerical Methods for Computing Angles Between Linear Subspaces (1973).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Float

from landscape.compare.eigenvector_bounds import (
    UNKNOWN,
    angle_error,
    participation_error,
    share_error,
    vector_error,
)
from landscape.errors import StoreError
from landscape.statistics import Bootstrap, Interval, percentile_interval
from landscape.store import SpectrumStore, StoredVectors
from landscape.store.vectors import CHUNK, ParameterLayout

# Numbers of all vectors that are in memory at a time: 256 MB.
_MAX_NUMBERS = 2**25


@dataclass(frozen=True, kw_only=True)
class Displacement:
    """Angles between the spaces of the leading eigenvectors, over pairs of batches.

    Args:
        first, second: Epochs. Two epochs: each batch with itself. The same epoch twice: all pairs
            of its batches.
        rank: Number of leading vectors that span each space.
        num_batches: Batches in the means.
        num_pairs: Pairs in the means.
        num_unknown: Pairs that are left out, as nothing is known of their angle: a record is not
            certified, another eigenvalue may be as large, or the errors of both spaces reach pi / 2
            together.
        angles: Mean over pairs of each principal angle, ascending, in radians; NaN without pairs.
        mean, largest: Mean and largest principal angle, mean over pairs, with the bootstrap
            interval over batches; NaN without pairs.
        error: Bound of the error of each of these means, in radians; NaN without pairs. It assumes
            that eigenvalues which the solver has not seen lie among its unwanted ones.
    """

    series: str
    first: int
    second: int
    rank: int
    num_batches: int
    num_pairs: int
    num_unknown: int
    angles: tuple[float, ...]
    mean: Interval
    largest: Interval
    error: float


@dataclass(frozen=True, kw_only=True)
class Localisation:
    """One eigenvector at an epoch, over the batches in which it is known.

    Args:
        index: Place of the vector, 1 for the leading one.
        num_batches: Batches in the means.
        num_unknown: Batches that are left out, as nothing is known of their vector: the record is
            not certified, or another eigenvalue may be as large.
        participation: Inverse participation ratio sum v^4 / (sum v^2)^2, mean over batches with its
            bootstrap interval: 1 for a single parameter, 1 / n for all alike; NaN without batches.
        participation_error: Bound of the error of this mean, by residuals, gaps and rounding.
        shares: Share of |v|^2 in each module, mean over batches; NaN without batches.
        share_error: Bound of the error of each of these means.
    """

    series: str
    epoch: int
    index: int
    num_batches: int
    num_unknown: int
    participation: Interval
    participation_error: float
    shares: Mapping[str, float]
    share_error: float


@dataclass(frozen=True, kw_only=True)
class SeriesVectors:
    """All that is computed from the kept eigenvectors of a series."""

    series: str
    label: str
    num_params: int
    num_vectors: int
    displacements: tuple[Displacement, ...]
    localisations: tuple[Localisation, ...]


@dataclass(frozen=True, eq=False)
class Moments:
    """Products of vectors that are read once, in blocks.

    Attributes:
        gram: Inner products.
        fourth: Sum of the fourth powers of each vector.
        shares: Share of the squares of each vector in each module.
    """

    gram: Float[np.ndarray, "r r"]
    fourth: Float[np.ndarray, " r"]
    shares: Float[np.ndarray, "r module"]

    @property
    def participation(self) -> Float[np.ndarray, " r"]:
        """Compute the inverse participation ratio of each vector."""
        return self.fourth / np.diag(self.gram) ** 2


def inverse_participation(vector: Float[np.ndarray, " n"]) -> float:
    """Compute sum v^4 / (sum v^2)^2: 1 for one entry, 1 / n for equal ones.

    Raises:
        ValueError: If the vector is zero or not finite.
    """
    unit = np.asarray(vector, dtype=np.float64) / np.linalg.norm(vector)
    if not np.isfinite(unit).all():
        raise ValueError("a vector that is zero or not finite has no participation ratio.")
    return float((unit**4).sum())


def principal_angles(
    first: Float[np.ndarray, "k k"],
    second: Float[np.ndarray, "k k"],
    cross: Float[np.ndarray, "k k"],
) -> Float[np.ndarray, " k"]:
    """Compute the principal angles of two spaces from inner products, ascending.

    Args:
        first, second: Inner products within the basis of each space; nearly the identity.
        cross: Those of the vectors of the first with those of the second.
    """
    left, right = np.linalg.cholesky(first), np.linalg.cholesky(second)
    cosines = np.linalg.solve(right, np.linalg.solve(left, cross).T)
    values = np.linalg.svd(cosines, compute_uv=False)
    return np.arccos(np.clip(values, 0, 1))


def moments_of(sets: Sequence[StoredVectors]) -> Moments:
    """Read the vectors of several batches once, in blocks, and multiply them.

    Raises:
        StoreError: If a batch has other parameters, or vectors are damaged.
    """
    layout = sets[0].layout
    for vectors in sets:
        if vectors.layout != layout:
            raise StoreError(
                f"{vectors.path}: the vectors of {vectors.key} have other parameters than those of "
                f"{sets[0].key}, so they do not lie in one space. Measure both under the same "
                "manifest."
            )
    count = sum(vectors.k for vectors in sets)
    gram, fourth = np.zeros((count, count)), np.zeros(count)
    squares = np.zeros((count, len(layout.names)))
    for start, stop in _blocks(layout.n, count):
        block = np.concatenate([vectors.read(start, stop) for vectors in sets])
        gram += block @ block.T
        block **= 2
        first, last, offsets = _parameters_in(layout, start, stop)
        squares[:, first:last] += np.add.reduceat(block, offsets, axis=1)
        fourth += np.einsum("rn,rn->r", block, block)
    modules = list(dict.fromkeys(layout.modules))
    shares = np.zeros((count, len(modules)))
    for column, module in enumerate(layout.modules):
        shares[:, modules.index(module)] += squares[:, column]
    return Moments(gram, fourth, shares / np.diag(gram)[:, None])


def _blocks(n: int, count: int) -> Iterator[tuple[int, int]]:
    """Cut the coordinates into blocks, of whole chunks where these fit in memory."""
    width = max(1, _MAX_NUMBERS // count)
    width = width // CHUNK * CHUNK or width
    for start in range(0, n, width):
        yield start, min(start + width, n)


def _parameters_in(layout: ParameterLayout, start: int, stop: int) -> tuple[int, int, np.ndarray]:
    """Return the first and last tensor in a block, and where each begins in it."""
    starts = layout.starts
    first = int(np.searchsorted(starts, start, side="right")) - 1
    last = int(np.searchsorted(starts, stop, side="left"))
    return first, last, np.maximum(starts[first:last] - start, 0)


def vectors_of_store(
    store: SpectrumStore,
    *,
    epochs: Sequence[int] | None = None,
    ranks: Sequence[int] | None = None,
    bootstrap: Bootstrap = Bootstrap(),
) -> tuple[SeriesVectors, ...]:
    """Analyse the kept eigenvectors of every series of a store.

    Args:
        epochs: Epochs to analyse; by default all with vectors.
        ranks: Numbers of leading vectors whose spaces are compared; by default 1 and k.
        bootstrap: Settings of the intervals over batches.

    Returns:
        An entry for each series with kept vectors; none where there are none.

    Raises:
        ValueError: If a rank is out of range.
        StoreError: If vectors are damaged.
    """
    analysed = []
    for planned in store.plan.series:
        kept = {
            epoch: batches
            for (name, epoch), batches in sorted(store.vectors.checkpoints.items())
            if name == planned.name and (epochs is None or epoch in epochs)
        }
        if kept:
            analysed.append(_Series(store, planned.name, kept, ranks, bootstrap).analysed())
    return tuple(analysed)


class _Series:
    """The analysis of a series, epoch by epoch."""

    def __init__(
        self,
        store: SpectrumStore,
        name: str,
        kept: Mapping[int, tuple[int, ...]],
        ranks: Sequence[int] | None,
        bootstrap: Bootstrap,
    ) -> None:
        self.store, self.name, self.kept, self.bootstrap = store, name, kept, bootstrap
        self.k = store.plan.k
        hessian = store.plan.protocol["hessian"]
        self.request: dict[str, Any] = {"which": hessian["which"], "tol": hessian["tol"]}
        self.ranks = sorted({1, self.k} if ranks is None else set(ranks))
        if not self.ranks or self.ranks[0] < 1 or self.ranks[-1] > self.k:
            raise ValueError(f"ranks must be between 1 and k = {self.k}, got {self.ranks}.")

    def analysed(self) -> SeriesVectors:
        """Read every vector at most twice: with the epoch before, and with the one after."""
        displacements: list[Displacement] = []
        localisations: list[Localisation] = []
        num_params, epochs = 0, list(self.kept)
        for number, epoch in enumerate(epochs):
            both = epochs[number : number + 2]
            with ExitStack() as stack:
                sets = {
                    (at, batch): stack.enter_context(self.store.vectors.open(self.name, at, batch))
                    for at in both
                    for batch in self.kept[at]
                }
                products = moments_of(list(sets.values()))
                num_params = next(iter(sets.values())).n
            here = [sets[epoch, batch] for batch in self.kept[epoch]]
            localisations += self._localisations(epoch, products, here)
            displacements += self._displacements(both, list(sets), products, sets)
        planned = self.store.plan.named(self.name)
        assert planned is not None
        return SeriesVectors(
            series=self.name,
            label=planned.label,
            num_params=num_params,
            num_vectors=self.k,
            displacements=tuple(displacements),
            localisations=tuple(localisations),
        )

    def _localisations(
        self, epoch: int, products: Moments, sets: Sequence[StoredVectors]
    ) -> Iterator[Localisation]:
        """Summarise each vector of an epoch, whose batches come first in `products`."""
        modules = list(dict.fromkeys(sets[0].layout.modules))
        for index in range(self.k):
            angles = np.array([vector_error(vectors, index, **self.request) for vectors in sets])
            batches = np.flatnonzero(angles < UNKNOWN)
            rows, count = index + self.k * batches, len(batches)
            ratios, errors = products.participation[rows], angles[batches]
            shares = products.shares[rows].sum(axis=0) / (count or math.nan)
            yield Localisation(
                series=self.name,
                epoch=epoch,
                index=index + 1,
                num_batches=count,
                num_unknown=len(sets) - count,
                participation=self.bootstrap.interval(_mean(ratios), np.zeros(count))
                if count
                else Interval(math.nan),
                participation_error=_average(map(participation_error, ratios, errors)),
                shares=dict(zip(modules, map(float, shares), strict=True)),
                share_error=_average(map(share_error, errors)),
            )

    def _displacements(
        self,
        epochs: Sequence[int],
        places: list[tuple[int, int]],
        products: Moments,
        sets: Mapping[tuple[int, int], StoredVectors],
    ) -> Iterator[Displacement]:
        """Measure the angles between the batches of an epoch, and to the next epoch."""
        batches = self.kept[epochs[0]]
        pairs = {epochs[0]: [(a, b) for a in batches for b in batches if a < b]}
        if len(epochs) == 2:
            both = [batch for batch in batches if batch in self.kept[epochs[1]]]
            pairs[epochs[1]] = [(batch, batch) for batch in both]
        for second, chosen in pairs.items():
            for rank in self.ranks if chosen else ():
                angles, errors = [], []
                for a, b in chosen:
                    ends = (epochs[0], a), (second, b)
                    first, other = map(places.index, ends)
                    angles.append(self._angles(products, first, other, rank))
                    errors.append(sum(angle_error(sets[end], rank, **self.request) for end in ends))
                yield self._displacement(
                    epochs[0], second, rank, chosen, np.array(angles), np.array(errors)
                )

    def _angles(
        self, products: Moments, first: int, second: int, rank: int
    ) -> Float[np.ndarray, " k"]:
        rows = self.k * first + np.arange(rank)
        columns = self.k * second + np.arange(rank)
        gram = products.gram
        return principal_angles(
            gram[np.ix_(rows, rows)], gram[np.ix_(columns, columns)], gram[np.ix_(rows, columns)]
        )

    def _displacement(
        self,
        first: int,
        second: int,
        rank: int,
        pairs: Sequence[tuple[int, int]],
        angles: Float[np.ndarray, "p k"],
        errors: Float[np.ndarray, " p"],
    ) -> Displacement:
        is_known = errors < UNKNOWN
        known = [pair for pair, mask in zip(pairs, is_known, strict=True) if mask]
        angles, count = angles[is_known], len(known)
        return Displacement(
            series=self.name,
            first=first,
            second=second,
            rank=rank,
            num_batches=len({batch for pair in known for batch in pair}),
            num_pairs=count,
            num_unknown=len(pairs) - count,
            angles=tuple(map(float, angles.sum(axis=0) / (count or math.nan))),
            mean=pair_interval(angles.mean(axis=1), known, self.bootstrap),
            largest=pair_interval(angles[:, -1], known, self.bootstrap),
            error=_average(errors[is_known]),
        )


def _average(numbers: Iterable[float]) -> float:
    """Average numbers; NaN where there are none."""
    return fmean(collected) if (collected := list(numbers)) else math.nan


def _mean(values: Float[np.ndarray, " b"]) -> Callable[[Float[np.ndarray, "r b"]], np.ndarray]:
    """Return the weighted mean of values as a function of weights."""
    return lambda weights: weights @ values / weights.sum(axis=1)


def pair_interval(
    values: Float[np.ndarray, " p"], pairs: Sequence[tuple[int, int]], bootstrap: Bootstrap
) -> Interval:
    """Average numbers of pairs of batches, with the bootstrap interval over batches.

    A pair counts as often as both of its batches are drawn. A resample of one batch alone says
    nothing of pairs and is left out.

    Args:
        values: The number of each pair.
        pairs: The two batches of each; twice the same for a batch with itself.

    Returns:
        The interval; NaN where there is no pair.
    """
    if not pairs:
        return Interval(math.nan)
    names = sorted({batch for pair in pairs for batch in pair})
    left, right = (np.array([names.index(pair[end]) for pair in pairs]) for end in (0, 1))

    def mean(weights: Float[np.ndarray, "r b"]) -> Float[np.ndarray, " r"]:
        counts = np.where(left == right, weights[:, left], weights[:, left] * weights[:, right])
        totals = counts.sum(axis=1)
        return np.divide(
            counts @ values, totals, out=np.full(len(weights), np.nan), where=totals > 0
        )

    resampled = bootstrap.resample(mean, np.zeros(len(names)))
    resampled = resampled[np.isfinite(resampled)]
    value = float(values.mean())
    if not resampled.size:
        return Interval(value)
    return percentile_interval(value, resampled, bootstrap.confidence)
