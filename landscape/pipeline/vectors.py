"""The leading eigenvectors of a batch, as `landscape spectra --keep-vectors` keeps them."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape import curvature
from landscape.errors import StoreError
from landscape.store import (
    ParameterLayout,
    Record,
    StoreContents,
    VectorRecord,
)
from landscape.store.vectors import RoundedVector
from landscape.terminal import size_text

if TYPE_CHECKING:
    from torch import nn

    from landscape.curvature import Params
    from landscape.linalg import EigenPairs
    from landscape.manifest import Manifest

# Share of its bytes to which deflate packs a vector's zeros, and the least size of a file.
_PACKED_ZEROS = 200
_LEAST_BYTES = 2**16


@dataclass(frozen=True, kw_only=True, eq=False)
class SpectrumWithVectors:
    """A record, and the eigenvectors of its eigenvalues."""

    record: Record
    vectors: VectorRecord


def with_vectors(
    record: Record,
    eigenpairs: "EigenPairs",
    layout: ParameterLayout,
    manifest: "Manifest",
    rounded: Sequence[RoundedVector] | None = None,
) -> SpectrumWithVectors:
    """Add the eigenvectors to a record.

    Args:
        rounded: The eigenvectors, where those of the eigenpairs are parts of them.

    Raises:
        NumericalError: If a vector is zero.
    """
    vectors = eigenpairs.vectors
    assert vectors is not None, "the solver was told to return them"
    facts: dict[str, Any] = {
        name: getattr(record, name)
        for name in ("series", "epoch", "batch", "batch_sha256", "checkpoint_sha256", "residuals")
    }
    kept = VectorRecord.of(
        (vectors[:, index].cpu().numpy() for index in range(record.k))
        if rounded is None
        else rounded,
        values=record.values,
        rest=rest_of(eigenpairs),
        layout=layout,
        protocol_sha256=StoreContents.of(manifest).protocol_sha256_of(record.series),
        **facts,
    )
    return SpectrumWithVectors(record=record, vectors=kept)


def layout_of(model: "nn.Module", params: "Params") -> ParameterLayout:
    """Return the tensors under study in order, with the modules of `--per-module`."""
    modules = {
        name: module
        for module, names in curvature.modules_of(model, params).items()
        for name in names
    }
    names = tuple(name for name, tensor in params.items() if tensor.numel())
    return ParameterLayout(
        names=names,
        sizes=tuple(params[name].numel() for name in names),
        modules=tuple(modules[name] for name in names),
    )


def rest_of(eigenpairs: "EigenPairs") -> tuple[float, float]:
    """Bound all Ritz values but the wanted ones, residuals included.

    Returns:
        The smallest and the largest possible value; (inf, -inf) where there is no other Ritz
        value, NaN where the method keeps none.
    """
    if eigenpairs.ritz is None:
        return np.nan, np.nan
    values, norms = eigenpairs.ritz.values.numpy(), eigenpairs.ritz.norms.numpy()
    is_other = np.ones(len(values), dtype=bool)
    for value in eigenpairs.values.numpy():
        # Wanted values are copies of Ritz values; of equal ones, each stands for one.
        is_other[np.flatnonzero(is_other & (values == value))[:1]] = False
    low, high = (values - norms)[is_other], (values + norms)[is_other]
    return float(low.min(initial=np.inf)), float(high.max(initial=-np.inf))


def bytes_of_vectors(num_vectors: int, num_params: int, num_used: int) -> int:
    """Estimate the bytes of a batch's vectors on the disk.

    Args:
        num_used: Parameters that a batch can move; the entries of the others are zeros.
    """
    return _LEAST_BYTES + 2 * num_vectors * (num_used + num_params // _PACKED_ZEROS)


def check_room(output: Path, num_bytes: int) -> None:
    """Refuse vectors for which the disk has no room.

    They need it twice: among the parts, and in the merged file beside the old one.

    Args:
        num_bytes: Bytes of all vectors that are left.

    Raises:
        StoreError: If the disk lacks room.
    """
    old = output.stat().st_size if output.exists() else 0
    needed, free = old + 2 * num_bytes, shutil.disk_usage(output.absolute().parent).free
    if needed > free:
        raise StoreError(
            f"{output}: --keep-vectors: the vectors that are left take about "
            f"{size_text(num_bytes)}, and {size_text(needed)} while they are merged, but "
            f"{size_text(free)} are free on this disk, so the run would stop on the way. Free "
            "some, name an output on another disk, or measure fewer with --batches or --epochs."
        )
