"""Two Gram-Schmidt passes in three sweeps over a basis, as a Numba kernel for a CPU.

The subtraction of the first pass and the inner products of the second share a sweep, a stretch of
columns at a time that stays in the cache. Sums are in float64, numbers of float32 are converted in
registers, and each stretch of w is rounded once a pass. Imported only where a basis is long enough.
Shapes: n = length of a row, m = number of rows.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic
from torch import Tensor

# Numbers of w at a time. With as many of each of 22 rows they take 200 KB in float32; lengths of
# 512 to 4096 were within 10 %.
_STRETCH = 2048
# Sums may be vectorised, and a multiplication fused with an addition; nothing else is relaxed, so
# NaN and infinity survive.
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "reassoc"},
}


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile with Numba.

    The machine code is cached on disk if there is a writable place for it.
    """
    try:
        return njit(function, cache=True, **_OPTIONS)
    except RuntimeError:  # neither the package's folder nor the user's cache folder is writable
        return njit(function, **_OPTIONS)


@intrinsic
def _pointer(typing: Any, address: types.Integer, like: Any) -> Any:
    """Convert an address to a pointer to numbers of the array's dtype."""
    kind = types.CPointer(like.dtype)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.inttoptr(args[0], context.get_value_type(kind))

    return kind(types.uint64, like), generate


@njit(**_OPTIONS)
def _load(w, first, x, count):  # type: ignore[no-untyped-def]
    for i in range(count):
        x[i] = w[first + i]


@njit(**_OPTIONS)
def _round(x, count, w, first):  # type: ignore[no-untyped-def]
    """Write x into w, and read it back as it was rounded."""
    for i in range(count):
        w[first + i] = x[i]
        x[i] = w[first + i]


@njit(**_OPTIONS)
def _add_inner(rows, first, x, count, w, sums):  # type: ignore[no-untyped-def]
    for j in range(rows.size):
        # The row as an array at its address, without a copy.
        row = carray(_pointer(rows[j], w), first + count)[first:]
        total = 0.0
        for i in range(count):
            total += np.float64(row[i]) * x[i]
        sums[j] += total


@njit(**_OPTIONS)
def _subtract(rows, first, x, count, w, factors):  # type: ignore[no-untyped-def]
    for j in range(rows.size):
        row = carray(_pointer(rows[j], w), first + count)[first:]
        factor = factors[j]
        for i in range(count):
            x[i] -= factor * np.float64(row[i])


@_compiled
def _inner(rows, w, x, sums):  # type: ignore[no-untyped-def]
    """Add the inner products of w with the rows.

    `rows` are the addresses of m rows of w's length and dtype, x the float64 memory of a stretch;
    likewise below.
    """
    for first in range(0, w.size, x.size):
        count = min(x.size, w.size - first)
        _load(w, first, x, count)
        _add_inner(rows, first, x, count, w, sums)


@_compiled
def _first_pass(rows, w, x, factors, sums):  # type: ignore[no-untyped-def]
    """Subtract multiples of the rows from w in place.

    Adds the inner products of the rest with the rows to `sums`.
    """
    for first in range(0, w.size, x.size):
        count = min(x.size, w.size - first)
        _load(w, first, x, count)
        _subtract(rows, first, x, count, w, factors)
        # The second pass must see w as it is stored, rounded to its dtype.
        _round(x, count, w, first)
        # The rows' stretch is still in the cache, so the second pass's products are read from
        # there.
        _add_inner(rows, first, x, count, w, sums)


@_compiled
def _second_pass(rows, w, x, factors):  # type: ignore[no-untyped-def]
    """Subtract multiples of the rows from w in place.

    Returns the squared norm of the rest.
    """
    square = 0.0
    for first in range(0, w.size, x.size):
        count = min(x.size, w.size - first)
        _load(w, first, x, count)
        _subtract(rows, first, x, count, w, factors)
        _round(x, count, w, first)
        for i in range(count):
            square += x[i] * x[i]
    return square


@cache
def _compile_for(dtype: torch.dtype) -> None:
    """Compile all kernels and store their code before a vector is changed.

    Raises:
        OSError: If the machine code cannot be stored.
    """
    row, x = torch.zeros(1, dtype=dtype), np.empty(1)
    addresses, w = np.array([row.data_ptr()], dtype=np.uint64), torch.zeros(1, dtype=dtype).numpy()
    _inner(addresses, w, x, np.zeros(1))
    _first_pass(addresses, w, x, np.zeros(1), np.zeros(1))
    _second_pass(addresses, w, x, np.zeros(1))


def _as_they_are(numbers: np.ndarray) -> np.ndarray:
    return numbers


def orthogonalise(
    rows: Sequence[Float[Tensor, " n"]],
    w: Float[Tensor, " n"],
    total: Callable[[np.ndarray], np.ndarray] = _as_they_are,
) -> tuple[Float[np.ndarray, " m"], float]:
    """Orthogonalise w against orthonormal rows, in place, by two passes.

    Args:
        rows: On the CPU, each contiguous, of w's length and dtype: float32 or float64.
        w: Contiguous.
        total: Adds sums over these entries to those of other processes, where vectors are cut; see
            `VectorSpace.total`.

    Returns:
        The components that were removed, and the norm of what is left.

    Raises:
        OSError: If machine code cannot be stored; w is then as it was.

    Source: Giraud, Langou & Rozloznik, The loss of orthogonality in the Gram-Schmidt process
    (2005).
    """
    assert w.is_contiguous() and w.dtype in (torch.float32, torch.float64)
    assert all(
        row.is_contiguous() and row.dtype == w.dtype and row.shape == w.shape for row in rows
    )
    _compile_for(w.dtype)
    addresses = np.array([row.data_ptr() for row in rows], dtype=np.uint64)
    first, second = np.zeros(len(rows)), np.zeros(len(rows))
    numbers, x = w.detach().numpy(), np.empty(_STRETCH)
    # Sweep 1: inner products. Sweep 2: subtract them, and take what rounding has left of them.
    # Sweep 3: subtract that, after which w is orthogonal to working precision "twice is enough".
    _inner(addresses, numbers, x, first)
    first = total(first)
    _first_pass(addresses, numbers, x, first, second)
    second = total(second)
    square = _second_pass(addresses, numbers, x, second)
    return first + second, math.sqrt(total(np.array([square]))[0])
