"""The leading eigenvectors of a batch, in half precision.

They are a group /vectors/<series>/<epoch>/<batch> of a store or, while it grows, of a file among
its parts. A unit vector is multiplied by a power of two, so that its largest entry lies between
2^14 and 2^15. Half precision then rounds entries of at least 2^-28 of the largest to 11 bits, and
smaller ones to within 2^-39 of the largest. What rounding took is measured and stored.

Shapes: k = vectors, n = parameters under study.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
from jaxtyping import Float, Float16, Int

from landscape.errors import NumericalError
from landscape.store.hdf5 import (
    LARGEST_VALUE,
    corrupt_file_errors,
    file_image,
    open_array,
    read_array,
    read_texts,
)
from landscape.store.specified_spectra import VECTORS
from landscape.store.table import is_digest, task_key

VECTOR_GROUP = "vectors"
DIGESTS = tuple(VECTORS.attributes)
# Entries of a vector that are compressed together, and that are in memory at a time.
CHUNK = 2**16
BLOCK = 2**20
# Of a scaled vector, the largest entry is below 2 to this power.
_EXPONENT = 15
# A power iteration returns a vector of length 1 to about this.
_UNIT = 1e-6


@dataclass(frozen=True, kw_only=True)
class ParameterLayout:
    """The tensors whose entries are the coordinates of a vector, in order.

    Args:
        names: Dotted name of each tensor.
        sizes: Its number of entries, at least 1.
        modules: The module that holds it.

    Raises:
        ValueError: If the lengths differ, a name occurs twice, or a tensor is empty.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    modules: tuple[str, ...]

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.sizes) == len(self.modules) > 0:
            raise ValueError("names, sizes and modules of parameters differ in number, or are none")
        if len(set(self.names)) < len(self.names) or min(self.sizes) < 1:
            raise ValueError("a parameter occurs twice, or is empty")

    @property
    def n(self) -> int:
        return sum(self.sizes)

    @property
    def starts(self) -> Int[np.ndarray, " parameter"]:
        """Return the first coordinate of each tensor."""
        return np.concatenate([[0], np.cumsum(self.sizes)[:-1]]).astype(np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class RoundedVector:
    """A unit vector that is in half precision already.

    Args:
        half: Its entries, multiplied by a power of two.
        scale: One over that power.
        rounding: Norm of what rounding took.
    """

    half: Float16[np.ndarray, " n"]
    scale: float
    rounding: float


@dataclass(frozen=True, kw_only=True, eq=False)
class VectorRecord:
    """The eigenvectors of a batch as they are written, in memory.

    Args:
        image: HDF5 file with the group of the batch.
    """

    series: str
    epoch: int
    batch: int
    batch_sha256: str
    checkpoint_sha256: str
    protocol_sha256: str
    k: int
    n: int
    image: bytes

    @property
    def key(self) -> str:
        return task_key(self.series, self.epoch, self.batch)

    @classmethod
    def of(
        cls,
        vectors: Iterable[Float[np.ndarray, " n"] | RoundedVector],
        *,
        values: Float[np.ndarray, " k"],
        residuals: Float[np.ndarray, " k"],
        rest: tuple[float, float],
        layout: ParameterLayout,
        **facts: Any,
    ) -> Self:
        """Round eigenvectors to half precision and compress them, one at a time.

        Args:
            vectors: As many as `values`, each of any length but zero, or rounded already.
            rest: Smallest and largest of the other Ritz values, with their residuals.
            facts: The key and the digests.

        Raises:
            NumericalError: If a vector is zero or not finite.
        """
        record = cls(k=len(values), n=layout.n, image=b"", **facts)

        def write(file: h5py.File) -> None:
            group = _group_of(file, record.series, record.epoch).create_group(str(record.batch))
            for name in DIGESTS:
                group.attrs[name] = getattr(record, name)
            _write_vectors(group, vectors, record)
            columns = {"eigenvalues": values, "residuals": residuals, "rest": rest}
            for name, column in columns.items():
                _write_numbers(group, name, column)
            _write_layout(group, layout)

        object.__setattr__(record, "image", file_image(write))
        return record


def _group_of(file: h5py.File, series: str, epoch: int) -> h5py.Group:
    """Return the group of a checkpoint's vectors, made where it is missing."""
    group = file
    for name in (VECTOR_GROUP, series, str(epoch)):
        group = group[name] if name in group else group.create_group(name, track_order=True)
    return group


def _write_numbers(group: h5py.Group, name: str, numbers: Any) -> None:
    dtype = VECTORS.datasets[name].type
    group.create_dataset(name, data=np.asarray(numbers, dtype=dtype), fletcher32=True)


def _write_layout(group: h5py.Group, layout: ParameterLayout) -> None:
    for name, texts in (("parameters", layout.names), ("parameter_modules", layout.modules)):
        group.create_dataset(name, data=list(texts), dtype=h5py.string_dtype())
    _write_numbers(group, "parameter_sizes", layout.sizes)


def _make_dataset(group: h5py.Group, k: int, n: int) -> h5py.Dataset:
    return group.create_dataset(
        "vectors",
        shape=(k, n),
        dtype=VECTORS.datasets["vectors"].type,
        chunks=(1, min(n, CHUNK)),
        shuffle=True,
        compression="gzip",
        compression_opts=1,
        fletcher32=True,
    )


def _copy_chunks(source: h5py.Dataset, target: h5py.Dataset) -> None:
    """Copy chunks as they are packed; those packed in another way entry by entry."""
    kinds = [
        (dataset.chunks, dataset.shuffle, dataset.compression, dataset.fletcher32, dataset.dtype)
        for dataset in (source, target)
    ]
    if kinds[0] != kinds[1]:
        for row, start in product(range(source.shape[0]), range(0, source.shape[1], BLOCK)):
            target[row, start : start + BLOCK] = source[row, start : start + BLOCK]
        return
    for number in range(source.id.get_num_chunks()):
        offset = source.id.get_chunk_info(number).chunk_offset
        mask, content = source.id.read_direct_chunk(offset)
        target.id.write_direct_chunk(offset, content, mask)


def _write_vectors(
    group: h5py.Group,
    vectors: Iterable[Float[np.ndarray, " n"] | RoundedVector],
    record: VectorRecord,
) -> None:
    dataset = _make_dataset(group, record.k, record.n)
    scales, rounding = np.zeros(record.k), np.zeros(record.k)
    for row, vector in enumerate(vectors):
        if isinstance(vector, RoundedVector):
            for start in range(0, record.n, BLOCK):
                dataset[row, start : start + BLOCK] = vector.half[start : start + BLOCK]
            scales[row], rounding[row] = vector.scale, vector.rounding
            continue
        scales[row], rounding[row] = _write_vector(dataset, row, vector, record.key)
    _write_numbers(group, "scales", scales)
    _write_numbers(group, "rounding", rounding)


def _write_vector(
    dataset: h5py.Dataset, row: int, vector: Float[np.ndarray, " n"], key: str
) -> tuple[float, float]:
    """Write a vector in blocks; return its scale and what rounding took."""
    norm, exponent = direction_of(
        sum(float(block @ block) for _, block in blocks_of(vector)),
        max((float(np.abs(block).max()) for _, block in blocks_of(vector)), default=0.0),
        f"{key}: eigenvector {row}",
    )
    lost = 0.0
    for start, block in blocks_of(vector):
        half, squares = rounded(block, norm, exponent)
        dataset[row, start : start + len(half)] = half
        lost += squares
    return float(np.ldexp(1.0, -exponent)), float(np.sqrt(lost))


def direction_of(squares: float, largest: float, where: str) -> tuple[float, int]:
    """Compute the norm of a vector, and the power of two for its rounding.

    Args:
        squares: Sum of the squares of its entries.
        largest: The largest of their sizes.
        where: Name of the vector in messages.

    Raises:
        NumericalError: If it is zero or not finite.
    """
    if not (np.isfinite(squares) and squares > 0):
        raise NumericalError(
            f"{where} is zero or not finite, so it has no direction to keep. Look for an overflow, "
            "or leave --keep-vectors out."
        )
    norm = float(np.sqrt(squares))
    # frexp: the largest entry is m 2^e with 1/2 <= m < 1.
    return norm, _EXPONENT - int(np.frexp(largest / norm)[1])


def rounded(
    block: Float[np.ndarray, " c"], norm: float, exponent: int
) -> tuple[Float16[np.ndarray, " c"], float]:
    """Round some entries of a vector of this norm; also return the squares of what that took."""
    unit = block / norm
    half = np.ldexp(unit, exponent).astype(np.float16)
    remainder = unit - np.ldexp(half.astype(np.float64), -exponent)
    return half, float(remainder @ remainder)


def blocks_of(vector: Float[np.ndarray, " n"]) -> Iterator[tuple[int, Float[np.ndarray, " c"]]]:
    """Cut a vector into blocks in float64, each with its first coordinate."""
    for start in range(0, len(vector), BLOCK):
        yield start, vector[start : start + BLOCK].astype(np.float64)


class StoredVectors:
    """The kept eigenvectors of a batch, read in blocks.

    Args:
        group: Group of the batch, in an open file.
        path: The file, for messages.

    Attributes:
        path: The file.
        values, residuals: Eigenvalues and residuals of the vectors, in the order of the solver.
        rest: Smallest and largest of the other Ritz values, with their residuals.
        rounding: Norm of what rounding took from each unit vector.
        layout: Tensors of the coordinates.
        num_stored_bytes: Size of the compressed vectors.

    Raises:
        ValueError, LookupError, TypeError: If the group is something else, or damaged.
    """

    def __init__(
        self, group: h5py.Group, *, series: str, epoch: int, batch: int, path: Path
    ) -> None:
        self.series, self.epoch, self.batch, self.path = series, epoch, batch, path
        self.digests = {name: group.attrs[name] for name in DIGESTS}
        wrong = next((name for name in DIGESTS if not is_digest(self.digests[name])), None)
        if wrong is not None:
            raise ValueError(f"{wrong} of the vectors of {self.key} is no SHA-256 digest")
        sizes = read_array(group, "parameter_sizes", dtype="<i8", shape=(None,))
        self.layout = ParameterLayout(
            names=tuple(read_texts(group, "parameters")),
            sizes=tuple(map(int, sizes)),
            modules=tuple(read_texts(group, "parameter_modules")),
        )
        self.values = read_array(group, "eigenvalues", dtype="<f8", shape=(None,))
        shape = self.values.shape
        self.residuals = read_array(group, "residuals", dtype="<f8", shape=shape)
        self.rest = read_array(group, "rest", dtype="<f8", shape=(2,))
        self.rounding = read_array(group, "rounding", dtype="<f8", shape=shape)
        self._scales = read_array(group, "scales", dtype="<f8", shape=shape)
        self._vectors = open_array(group, "vectors", dtype="<f2", shape=(self.k, self.n))
        self.num_stored_bytes = int(self._vectors.id.get_storage_size())
        self._check_numbers()

    @property
    def key(self) -> str:
        return task_key(self.series, self.epoch, self.batch)

    @property
    def k(self) -> int:
        return len(self.values)

    @property
    def n(self) -> int:
        return self.layout.n

    def _check_numbers(self) -> None:
        mantissas, _ = np.frexp(self._scales)
        low, high = self.rest
        good = {
            "eigenvalues": np.abs(self.values) <= LARGEST_VALUE,
            "residuals": ~(self.residuals < 0),
            "rounding": (self.rounding >= 0) & (self.rounding < 1),
            "scales": (mantissas == 0.5) & (self._scales <= 2.0 ** (1 - _EXPONENT)),
            "rest": np.isnan([low, high]) | (low <= high) | ((low, high) == (np.inf, -np.inf)),
        }
        wrong = next((name for name, values in good.items() if not values.all()), None)
        if wrong is not None:
            raise ValueError(f"{wrong} of the vectors of {self.key}: no measurement gives them")

    def read(self, start: int, stop: int) -> Float[np.ndarray, "k c"]:
        """Read coordinates `start` to `stop` of all vectors.

        Raises:
            StoreError: If they are damaged.
        """
        with corrupt_file_errors(self.path):
            half: Float16[np.ndarray, "k c"] = self._vectors[:, start:stop]
            if not np.isfinite(half).all():
                raise ValueError(f"the vectors of {self.key} are not finite")
        return half.astype(np.float64) * self._scales[:, None]

    def check(self) -> None:
        """Read all vectors, so that checksums are verified, and check their lengths.

        Raises:
            StoreError: If they are damaged.
        """
        squares = np.zeros(self.k)
        for start in range(0, self.n, BLOCK):
            block = self.read(start, start + BLOCK)
            squares += (block**2).sum(axis=1)
        with corrupt_file_errors(self.path):
            if (np.abs(np.sqrt(squares) - 1) > self.rounding + _UNIT).any():
                raise ValueError(f"the vectors of {self.key} are no unit vectors")

    def copy_to(self, file: h5py.File) -> None:
        """Copy the group into another file, without unpacking the vectors."""
        target = _group_of(file, self.series, self.epoch).create_group(str(self.batch))
        for name in DIGESTS:
            target.attrs[name] = self.digests[name]
        _copy_chunks(self._vectors, _make_dataset(target, self.k, self.n))
        columns = {
            "scales": self._scales,
            "rounding": self.rounding,
            "eigenvalues": self.values,
            "residuals": self.residuals,
            "rest": self.rest,
        }
        for name, column in columns.items():
            _write_numbers(target, name, column)
        _write_layout(target, self.layout)
